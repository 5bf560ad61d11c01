//! Owns: the arguments of `list` and where the running engine is found.
//! Never: speaks to it here; the control socket does.
//! Flow: arguments -> socket path -> the engine's answer, printed.

use std::process::ExitCode;

use clap::Args;

use std::path::PathBuf;

use super::{check, print};

/// Which engine is meant: one of these, or the quickstart's state_dir.
#[derive(Debug, Args)]
pub struct EngineArgs {
    /// The engine's control socket.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["state_dir", "config"])]
    pub socket: Option<PathBuf>,
    /// The engine's state_dir.
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub state_dir: Option<PathBuf>,
    /// The engine's configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl EngineArgs {
    /// The socket's path; what is wrong with the configuration file is printed.
    pub(super) fn socket_path(&self) -> Result<PathBuf, ExitCode> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        if let Some(dir) = &self.state_dir {
            return Ok(dir.join("control.sock"));
        }
        match &self.config {
            Some(file) => check::load(file).map(|config| config.control_socket),
            None => Ok(PathBuf::from("var/seedring/control.sock")),
        }
    }
}

pub fn run(args: ListArgs) -> ExitCode {
    let socket = match args.engine.socket_path() {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    print::failed(&format!("{}: this build has no control socket", socket.display()))
}
