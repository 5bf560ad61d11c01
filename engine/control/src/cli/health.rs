//! Owns: `health`: an exit status for whoever watches over a container or a service.
//! Never: starts anything, waits longer than a health check may.
//! Flow: arguments -> control socket -> one line and the exit status.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::list::EngineArgs;
use super::print;
use crate::control_socket;
use crate::engine::status::HealthReport;

/// The engine answers in milliseconds; what takes longer is not well.
const ANSWER_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// Fail also until everything wanted has been prepared and verified.
    #[arg(long)]
    ready: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: HealthArgs) -> ExitCode {
    let socket = match args.engine.socket_path() {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    let report = match control_socket::health(&socket, ANSWER_MAX) {
        Ok(report) => report,
        Err(error) => return print::failed(&error),
    };
    if args.json {
        print::json(&serde_json::json!(report));
    } else {
        print::text(&line(&report));
    }
    if report.silent_shards.is_empty() && (report.ready || !args.ready) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn line(report: &HealthReport) -> String {
    let state = match (&report.silent_shards[..], report.ready) {
        ([], true) => String::from("works"),
        ([], false) => String::from("works, not everything is prepared and verified yet"),
        (silent, _) => format!("does not work: no word from shards {silent:?}"),
    };
    let saved = if report.not_saved.is_some() { ", changes not saved" } else { "" };
    format!(
        "{state}: {} torrents, {} waiting for content, {} failed{saved}, up {} s\n",
        report.torrents, report.waiting, report.failed, report.uptime_s
    )
}
