//! Owns: Transmission's ways: its daemon, driven by transmission-remote. Never: uTP, see
//! docs/INTEROPERABILITY.md. Flow: `client.rs`.

use super::{PEER_PORT, Place, START_LIMIT, Source, WEB_PORT, text};
use crate::interop::{Has, Process, wait_until};
use anyhow::Result;

pub(super) fn start(place: &Place, source: Source<'_>) -> Result<Process> {
    let Place { host, folder, save, has } = place;
    let settings = folder.join("transmission");
    std::fs::create_dir_all(&settings)?;
    let mut command = host.command("transmission-daemon");
    command.args(["--foreground", "--no-dht", "--no-lpd", "--no-portmap", "--no-auth"]);
    command.args(["--config-dir", text(&settings)?, "--download-dir", text(save)?]);
    command.args(["--port", &WEB_PORT.to_string(), "--peerport", &PEER_PORT.to_string()]);
    command.args(["--log-debug", "--no-utp"]).env("HOME", folder);
    let mut process =
        Process::start("transmission-daemon", &mut command, &folder.join("transmission.log"))?;
    wait_until("transmission's RPC", START_LIMIT, || {
        process.check_running()?;
        Ok(remote(place, &["--session-info"]).ok())
    })?;
    remote(place, &["--add", &source.argument()?])?;
    if *has != Has::Nothing {
        remote(place, &["--torrent", "all", "--verify"])?;
    }
    Ok(process)
}

fn remote(place: &Place, arguments: &[&str]) -> Result<String> {
    let port = WEB_PORT.to_string();
    let argv = [&["transmission-remote", &port], arguments].concat();
    Ok(String::from_utf8_lossy(&place.host.output(&argv)?).into_owned())
}

pub(super) fn is_complete(place: &Place) -> Result<bool> {
    let info = remote(place, &["--torrent", "all", "--info"])?;
    let finished = ["State: Idle", "State: Seeding", "State: Finished"];
    Ok(info.contains("Percent Done: 100%") && finished.iter().any(|state| info.contains(state)))
}

pub(super) fn state(place: &Place) -> String {
    remote(place, &["--torrent", "all", "--info", "--info-peers"]).unwrap_or_default()
}
