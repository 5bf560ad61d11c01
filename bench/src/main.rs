//! Owns: the command line of `seedring-bench`.
//! Never: measures anything itself; knows the engine's insides (targets are processes like any
//! other).
//! Flow: parse -> one subcommand -> a report on stdout, progress and complaints on stderr.
#![forbid(unsafe_code)]

mod compare;
mod leech;
mod meters;
mod micro;
mod namespace;
mod page;
mod payload;
mod probe;
mod pull;
mod report;
mod scenario;
mod torrent;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "seedring-bench",
    version,
    about = "What a BitTorrent seeder costs, block by block"
)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a scenario file: targets side by side, a report with plots.
    Run(scenario::Options),
    /// Open connections to a seeder, keep requests outstanding, report its speed and its cost.
    Leech(leech::Options),
    /// Run seeders side by side, interleaved, and write a report.
    Compare(compare::Options),
    /// Pull a file over HTTP, drop it unread: the ceiling of sending files.
    Pull(pull::Options),
    /// Make content from a seed number, and its .torrent.
    Payload(payload::Options),
    /// Measure one part of the engine by itself.
    Micro(micro::Options),
}

fn main() -> ExitCode {
    let outcome = match Options::parse().command {
        Command::Run(options) => scenario::run(options),
        Command::Leech(options) => leech::run(options),
        Command::Compare(options) => compare::run(options),
        Command::Pull(options) => pull::run(options),
        Command::Payload(options) => payload::run(options),
        Command::Micro(options) => micro::run(options),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("seedring-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
