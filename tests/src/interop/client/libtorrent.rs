//! Owns: libtorrent's ways: a script around its Python binding. Never: other settings than its own,
//! but for what `client.rs` says. Flow: `client.rs`.

use super::{PEER_PORT, Place, Source};
use crate::interop::{Process, python, script};
use anyhow::Result;

pub(super) fn start(place: &Place, source: Source<'_>) -> Result<Process> {
    let mut command = place.host.command(python()?);
    command.arg(script("libtorrent_client.py")).arg(source.argument()?).arg(&place.save);
    // Every address, as by default: on loopback it reaches a tracker that listens there.
    command.arg(format!("0.0.0.0:{PEER_PORT}"));
    Process::start("libtorrent", &mut command, &place.folder.join("libtorrent.log"))
}

pub(super) fn is_complete(process: &Process) -> bool {
    process.log().lines().any(|line| line == "complete")
}
