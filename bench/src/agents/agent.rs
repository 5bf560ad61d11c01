//! Owns: `seedring-bench agent`: plays its part of each load that a controller asks for.
//! Never: needs a file; looks at the target's process. Flow: controller's task -> `leech`, `pull`
//! or iperf3 in this process -> what it found.

use std::process::ExitCode;

use anyhow::{Result, bail};

use super::Secret;
use crate::leech::Source;

#[derive(clap::Args)]
pub struct Options {
    /// The controller, as HOST:PORT.
    controller: String,
    #[command(flatten)]
    secret: Secret,
    /// What it is called in the report; its node and process by default.
    #[arg(long)]
    name: Option<String>,
    /// What its machine is called; the host name by default.
    #[arg(long)]
    node: Option<String>,
    /// Seconds in which a controller is looked for, at first and after it was lost.
    #[arg(long, default_value_t = 60.0)]
    patience: f64,
    /// Threads of the load.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Cores to run on, such as 1 or 2-3,6.
    #[arg(long, value_name = "CORES")]
    cores: Option<String>,
    /// Addresses of this machine to connect from, as ADDRESS/PREFIX; otherwise its own, or on
    /// loopback a part of 127.64.0.0/12.
    #[arg(long)]
    source: Option<Source>,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    options.secret.read()?;
    bail!("the agent is not finished yet: it plays no load")
}
