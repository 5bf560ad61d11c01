//! Owns: `run` and `seed`: from arguments to a configuration.
//! Never: starts anything itself; `engine::run` does.
//! Flow: arguments -> `Config` -> the engine, until it is stopped.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{check, print};
use crate::config::model::{Rate, Verify};
use crate::config::{Config, SeedOptions};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The configuration file; config/reference.yaml explains every key.
    config: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct SeedArgs {
    /// Folders and files to make torrents of, and .torrent files whose content lies beside them.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Where peers connect; several allowed. Left out: port 6881 of all addresses.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// A tracker to announce to; several allowed, each a tier of its own.
    #[arg(long, value_name = "URL", value_parser = tracker_url)]
    tracker: Vec<String>,
    /// Where the embedded tracker listens.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6969")]
    embedded_tracker: SocketAddr,
    /// Run no tracker of our own.
    #[arg(long)]
    no_embedded_tracker: bool,
    /// Where identity, totals and what was verified are kept.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// What is hashed before it is uploaded.
    #[arg(long)]
    verify: Option<Verify>,
    /// Limit of the upload, such as 100Mbit/s.
    #[arg(long, value_name = "RATE", default_value = "unlimited")]
    upload: Rate,
    /// Where the content of .torrent files lies. Left out: beside each of them.
    #[arg(long, value_name = "DIR")]
    content: Option<PathBuf>,
    /// The torrent's name. Left out: the folder's or file's.
    #[arg(long)]
    name: Option<String>,
    /// Peers come from the trackers alone (BEP 27).
    #[arg(long)]
    private: bool,
    /// Show pieces to peers one by one (BEP 16): for the first seed of a swarm.
    #[arg(long)]
    super_seeding: bool,
}

pub(super) fn run(args: RunArgs) -> ExitCode {
    match check::load(&args.config) {
        Ok(config) => start(config),
        Err(code) => code,
    }
}

pub(super) fn seed(args: SeedArgs) -> ExitCode {
    let options = SeedOptions {
        listen: args.listen,
        trackers: args.tracker,
        embedded_tracker: (!args.no_embedded_tracker).then_some(args.embedded_tracker),
        state_dir: args.state_dir,
        verify: args.verify,
        upload: args.upload,
        content: args.content,
        name: args.name,
        private: args.private,
        super_seeding: args.super_seeding,
    };
    match Config::for_seed(&args.paths, options) {
        Ok(config) => start(config),
        Err(reason) => print::failed(&reason),
    }
}

pub(super) fn start(config: Config) -> ExitCode {
    crate::logs::init(&config.log);
    match crate::engine::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => print::failed(&format!("{error:#}")),
    }
}

/// As the configuration file takes it.
pub(super) fn tracker_url(text: &str) -> Result<String, String> {
    crate::config::tracker_url(text)
}
