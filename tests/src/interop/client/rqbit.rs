//! Owns: rqbit's ways: its command line and HTTP API. Never: its server, which keeps state.
//! Flow: `client.rs`.

use super::{PEER_PORT, Place, START_LIMIT, Source, WEB_PORT, text};
use crate::interop::{Process, wait_until};
use anyhow::Result;
use serde_json::Value;

fn api(what: &str) -> String {
    format!("http://127.0.0.1:{WEB_PORT}/{what}")
}

pub(super) fn start(place: &Place, source: Source<'_>) -> Result<Process> {
    let Place { host, folder, save, .. } = place;
    let mut command = host.command("rqbit");
    command.args(["-v", "info", "--disable-dht", "--disable-lsd", "--ipv4-only"]);
    command.args(["--listen-ip", "0.0.0.0", "--listen-port", &PEER_PORT.to_string()]);
    command.args(["--http-api-listen-addr", &format!("127.0.0.1:{WEB_PORT}")]);
    command.arg("--disable-upnp-port-forward");
    // What is there is hashed; without --overwrite it is an error.
    command.args(["download", "--overwrite", "-o", text(save)?, &source.argument()?]);
    command.env("HOME", folder);
    let mut process = Process::start("rqbit", &mut command, &folder.join("rqbit.log"))?;
    wait_until("rqbit's HTTP API", START_LIMIT, || {
        process.check_running()?;
        Ok(host.http_get(&api("")).ok())
    })?;
    Ok(process)
}

/// Until a magnet's metadata is there, its torrent is not.
fn statistics(place: &Place) -> Option<Value> {
    serde_json::from_slice(&place.host.http_get(&api("torrents/0/stats/v1")).ok()?).ok()
}

pub(super) fn is_complete(place: &Place) -> Result<bool> {
    Ok(statistics(place).is_some_and(|torrent| torrent["finished"] == true))
}

pub(super) fn state(place: &Place) -> String {
    statistics(place).map(|torrent| torrent.to_string()).unwrap_or_default()
}
