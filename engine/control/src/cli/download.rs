//! Owns: the arguments of `download`.
//! Never: downloads; the engine does.
//! Flow: arguments -> `Config` -> the engine, until all is there.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{print, run, storage::StorageArgs};
use crate::config::model::{DownloadOptions, Rate};
use crate::config::{Config, FetchOptions};

#[derive(Debug, Args)]
pub(super) struct DownloadArgs {
    /// A .torrent file or a magnet link.
    torrent: String,
    /// The folder to download into; made if it is not there.
    #[arg(long, value_name = "DIR", default_value = ".")]
    to: PathBuf,
    /// Go on seeding when all is there, until stopped.
    #[arg(long)]
    seed: bool,
    /// Fetch from the first piece to the last.
    #[arg(long)]
    sequential: bool,
    /// A pattern of the files that are wanted; several allowed.
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Where peers connect; several allowed. Left out: any free port of all addresses.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// Limit of the upload, such as 100Mbit/s.
    #[arg(long, value_name = "RATE", default_value = "unlimited")]
    upload: Rate,
    /// Limit of the download, such as 100Mbit/s.
    #[arg(long, value_name = "RATE", default_value = "unlimited")]
    limit: Rate,
    #[command(flatten)]
    storage: StorageArgs,
    /// Where it is kept what is there already. Left out: a folder for this torrent in the user's
    /// state folder.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

pub(super) fn run(args: DownloadArgs) -> ExitCode {
    let storage = match args.storage.storage() {
        Ok(storage) => storage,
        Err(reason) => return print::failed(&reason),
    };
    let options = FetchOptions {
        torrent: args.torrent,
        folder: args.to,
        listen: args.listen,
        state_dir: args.state_dir,
        upload: args.upload,
        rate: args.limit,
        download: DownloadOptions { sequential: args.sequential, only: args.only, storage },
        seed: args.seed,
    };
    match Config::for_download(options) {
        Ok(config) => run::start(config),
        Err(reason) => print::failed(&reason),
    }
}
