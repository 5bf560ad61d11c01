//! Owns: `check-config` and `schema`.
//! Never: checks itself; `Config::load` does.
//! Flow: findings go to stderr, the summary to stdout.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::print;
use crate::config::model::Source;
use crate::config::{Config, Diagnostic, Loaded, reference};

/// Findings printed of one file.
const SHOWN_MAX: usize = 50;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The configuration file.
    file: PathBuf,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: CheckArgs) -> ExitCode {
    let loaded = Config::load(&args.file, &environment);
    if args.json {
        let (usable, findings) = match &loaded {
            Ok(loaded) => (true, &loaded.warnings),
            Err(findings) => (false, findings),
        };
        let report = serde_json::json!({ "usable": usable, "findings": findings });
        print::json(&report);
        return if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    match loaded {
        Ok(loaded) => {
            show(&loaded.warnings);
            print::text(&summary(&args.file, &loaded))
        }
        Err(findings) => {
            show(&findings);
            let errors = findings.iter().filter(|one| one.is_error()).count();
            let plural = if errors == 1 { "" } else { "s" };
            print::failed(&format!("{}: {errors} error{plural}", args.file.display()))
        }
    }
}

pub(super) fn schema() -> ExitCode {
    print::json(&reference::schema())
}

/// What `${VAR}` in a configuration file is looked up in. A value that is not UTF-8 counts as
/// unset.
pub(super) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Reads a file for a command that needs it, printing what is wrong or odd.
pub(super) fn load(path: &Path) -> Result<Config, ExitCode> {
    match Config::load(path, &environment) {
        Ok(loaded) => {
            show(&loaded.warnings);
            Ok(loaded.config)
        }
        Err(findings) => {
            show(&findings);
            let message = "the configuration cannot be used; nothing was started";
            Err(print::failed(&format!("{}: {message}", path.display())))
        }
    }
}

fn show(findings: &[Diagnostic]) {
    for finding in findings.iter().take(SHOWN_MAX) {
        print::note(finding);
    }
    if findings.len() > SHOWN_MAX {
        print::note(&format!("and {} more", findings.len() - SHOWN_MAX));
    }
}

fn summary(path: &Path, loaded: &Loaded) -> String {
    let config = &loaded.config;
    let (mut folders, mut files, mut matched, mut magnets) = (0, 0, 0, 0);
    for torrent in &config.torrents {
        match &torrent.source {
            Source::Folder(_) => folders += 1,
            Source::Magnet(_) => magnets += 1,
            Source::Files(source) => {
                files += 1;
                matched += source.expand().map_or(0, |paths| paths.len());
            }
        }
    }
    let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    let magnets = if magnets > 0 { format!(", {magnets} magnet links") } else { String::new() };
    format!(
        "{}: usable; listens on {}; {folders} folders, {files} entries of .torrent files \
         ({matched} files now){magnets}\n",
        path.display(),
        listen.join(", "),
    )
}
