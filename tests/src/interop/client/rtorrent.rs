//! Owns: rTorrent's ways: a configuration that has it say in files how far it is.
//! Never: its terminal interface. Flow: `client.rs`.

use super::{PEER_PORT, Place, Source, text};
use crate::interop::Process;
use anyhow::Result;

pub(super) fn start(place: &Place, source: Source<'_>) -> Result<Process> {
    let Place { host, folder, save, .. } = place;
    let state = folder.join("rtorrent");
    let session = state.join("session");
    std::fs::create_dir_all(&session)?;
    let configuration = state.join("rtorrent.rc");
    std::fs::write(
        &configuration,
        format!(
            "system.daemon.set = true\nsession.path.set = {session}\n\
             directory.default.set = {copy}\nnetwork.port_range.set = {PEER_PORT}-{PEER_PORT}\n\
             dht.mode.set = disable\nprotocol.pex.set = no\ntrackers.use_udp.set = no\n\
             pieces.hash.on_completion.set = yes\nlog.open_file = \"log\", {log}\n\
             log.add_output = \"info\", \"log\"\nlog.add_output = \"tracker_info\", \"log\"\n\
             schedule2 = look, 1, 1, \
             \"d.multicall2=seeding,\\\"execute.nothrow=touch,{done}\\\"\"\n\
             load.start = \"{source}\"\n",
            session = text(&session)?,
            copy = text(save)?,
            log = text(&state.join("events.log"))?,
            done = text(&state.join("complete"))?,
            source = source.argument()?,
        ),
    )?;
    let mut command = host.command("rtorrent");
    command.args(["-n", "-o", &format!("import={}", text(&configuration)?)]);
    command.env("HOME", folder).env("TERM", "xterm");
    Process::start("rtorrent", &mut command, &folder.join("rtorrent.log"))
}

pub(super) fn is_complete(place: &Place) -> bool {
    place.folder.join("rtorrent/complete").exists()
}

pub(super) fn state(place: &Place) -> String {
    std::fs::read_to_string(place.folder.join("rtorrent/events.log")).unwrap_or_default()
}
