//! Owns: the arguments that say how a download is kept on disk.
//! Never: defaults; those are the configuration's.
//! Flow: `add` and `download` take them along.

use std::path::PathBuf;

use clap::Args;

use crate::config::model::{Preallocate, Storage};
use crate::engine::commands::StorageChoice;

#[derive(Debug, Args)]
pub(super) struct StorageArgs {
    /// What of a file's space is taken when it is made. Left out: as configured, or sparse.
    #[arg(long, value_name = "HOW", value_enum)]
    preallocate: Option<Preallocate>,
    /// The folder that it lies in until it is complete.
    #[arg(long, value_name = "DIR")]
    incomplete_folder: Option<PathBuf>,
    /// What the names of its files end with until it is complete; such as .part.
    #[arg(long, value_name = "SUFFIX")]
    incomplete_suffix: Option<String>,
    /// The folder that it is moved to when it is complete.
    #[arg(long, value_name = "DIR")]
    move_completed_to: Option<PathBuf>,
}

impl StorageArgs {
    /// With absolute paths, since the engine has a working directory of its own.
    pub(super) fn choice(self) -> Result<StorageChoice, String> {
        let absolute = |path: Option<PathBuf>| {
            let absolute = path.map(|path| {
                std::path::absolute(&path).map_err(|error| format!("{}: {error}", path.display()))
            });
            absolute.transpose()
        };
        Ok(StorageChoice {
            preallocate: self.preallocate,
            incomplete_folder: absolute(self.incomplete_folder)?,
            incomplete_suffix: self.incomplete_suffix,
            move_completed_to: absolute(self.move_completed_to)?,
        })
    }

    /// Where nothing is configured.
    pub(super) fn storage(self) -> Result<Storage, String> {
        self.choice().map(|choice| choice.over(&Storage::default()))
    }
}
