//! Owns: `seedring-bench micro`: parts of the engine measured by themselves.
//! Never: starts an engine. Flow: one subcommand a part.

mod device;
mod hash;
mod zero_copy;

use std::process::ExitCode;

use anyhow::Result;

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    part: Part,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Hash pieces side by side, with each kernel that this CPU has.
    Hash(hash::Options),
    /// Send cached blocks to a device that only takes frames, copying and zero-copy.
    ZeroCopy(zero_copy::Options),
}

pub fn run(options: Options) -> Result<ExitCode> {
    match options.part {
        Part::Hash(options) => hash::run(&options),
        Part::ZeroCopy(options) => zero_copy::run(&options),
    }
}
