//! Owns: the command line of `seedring-bench`.
//! Never: measures anything itself; knows the engine's insides (targets are processes like any
//! other).
//! Flow: parse -> one subcommand -> a report on stdout, progress and complaints on stderr.
#![forbid(unsafe_code)]

mod agents;
mod bare;
mod caution;
mod compare;
mod cut;
mod environment;
mod faulty;
mod index;
mod judge;
mod leech;
mod merge;
mod meters;
mod micro;
mod namespace;
mod nic;
mod page;
mod payload;
mod place;
mod probe;
mod pull;
mod report;
mod scenario;
#[cfg(test)]
mod schema;
mod seed;
mod swarm;
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
    Run(Box<scenario::Options>),
    /// Write the page by which the reports of one folder are found.
    Index(index::Options),
    /// Open connections to a seeder, keep requests outstanding, report its speed and its cost.
    Leech(Box<leech::Options>),
    /// Run seeders side by side, interleaved, and write a report (--preset); or judge two reports
    /// (OLD NEW).
    Compare(Box<Compare>),
    /// Add up what several agents of the load found, at the same time, of the same target.
    Merge(merge::Options),
    /// Bring agents, a comparison and those who watch together, for load from several machines.
    Controller(agents::controller::Options),
    /// Play a part of each load that a controller asks for.
    Agent(agents::agent::Options),
    /// Follow a comparison whose load comes from agents, and keep its report.
    Watch(agents::watch::Options),
    /// Run a scenario in a Docker Swarm, or remove what killed runs left there.
    #[command(subcommand)]
    Swarm(swarm::Command),
    /// A seeder of the bench's own that may have a part of the pieces only.
    Seed(seed::Options),
    /// A seeder without policy, from memory: what answering requests costs by itself.
    Bare(bare::Options),
    /// A seeder that does one thing wrong, to see that the load catches it. Not for figures.
    Faulty(faulty::Options),
    /// Pull a file over HTTP, drop it unread: the ceiling of sending files.
    Pull(pull::Options),
    /// Make content from a seed number, and its .torrent.
    Payload(payload::Options),
    /// Become another program, on some cores, with a priority of its own.
    #[command(hide = true)]
    Place(place::Options),
    /// Measure one part of the engine by itself.
    Micro(micro::Options),
}

#[derive(clap::Args)]
struct Compare {
    #[command(flatten)]
    reports: judge::Options,
    #[command(flatten)]
    run: compare::Options,
}

fn main() -> ExitCode {
    let outcome = match Options::parse().command {
        Command::Run(options) => scenario::run(*options),
        Command::Index(options) => index::run(&options),
        Command::Leech(options) => leech::run(&options),
        Command::Compare(options) if options.reports.is_asked_for() => judge::run(&options.reports),
        Command::Compare(options) => compare::run(options.run),
        Command::Merge(options) => merge::run(&options),
        Command::Controller(options) => agents::controller::run(&options),
        Command::Agent(options) => agents::agent::run(&options),
        Command::Watch(options) => agents::watch::run(&options),
        Command::Swarm(command) => swarm::run(command),
        Command::Seed(options) => seed::run(&options),
        Command::Bare(options) => bare::run(&options),
        Command::Faulty(options) => faulty::run(&options),
        Command::Pull(options) => pull::run(options),
        Command::Payload(options) => payload::run(options),
        Command::Place(options) => place::run(&options),
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
