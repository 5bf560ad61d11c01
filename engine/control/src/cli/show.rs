//! Owns: the arguments of `show` and where the running engine is found.
//! Never: speaks to it here; the control socket does.
//! Flow: arguments -> socket path -> the engine's answer, printed.

use std::process::ExitCode;

use clap::Args;

use super::list::EngineArgs;
use super::print;

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The torrent: its info-hash, the beginning of it, or its name.
    pub torrent: String,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: ShowArgs) -> ExitCode {
    let socket = match args.engine.socket_path() {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    print::failed(&format!("{}: this build has no control socket", socket.display()))
}
