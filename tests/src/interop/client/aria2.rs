//! Owns: aria2's ways: its command line and JSON-RPC. Never: a configuration file.
//! Flow: `client.rs`.

use super::{PEER_PORT, Place, START_LIMIT, Source, WEB_PORT, text};
use crate::interop::{Has, Process, wait_until};
use anyhow::Result;
use serde_json::Value;

pub(super) fn start(place: &Place, source: Source<'_>) -> Result<Process> {
    let Place { host, folder, save, has } = place;
    let mut command = host.command("aria2c");
    command.args(["--no-conf", "--enable-dht=false", "--enable-dht6=false"]);
    command.args(["--bt-enable-lpd=false", "--enable-peer-exchange=false"]);
    command.args(["--console-log-level=info", "--summary-interval=5", "--file-allocation=none"]);
    // A ratio of 0 stands for no limit: it seeds on.
    command.args(["--seed-ratio=0.0", "--enable-rpc", &format!("--rpc-listen-port={WEB_PORT}")]);
    if *has != Has::Nothing {
        command.args(["--check-integrity=true", "--bt-hash-check-seed=true"]);
    }
    command.args([&format!("--listen-port={PEER_PORT}"), "--dir", text(save)?]);
    command.arg(source.argument()?).env("HOME", folder);
    let mut process = Process::start("aria2c", &mut command, &folder.join("aria2.log"))?;
    wait_until("aria2's RPC", START_LIMIT, || {
        process.check_running()?;
        Ok(active(place).ok())
    })?;
    Ok(process)
}

fn active(place: &Place) -> Result<Value> {
    let url = format!("http://127.0.0.1:{WEB_PORT}/jsonrpc?method=aria2.tellActive&id=0");
    let mut reply: Value = serde_json::from_slice(&place.host.http_get(&url)?)?;
    Ok(reply["result"].take())
}

/// It is a seed only once it has every piece; the download of a magnet's metadata, which comes
/// before, never is.
pub(super) fn is_complete(place: &Place) -> Result<bool> {
    Ok(active(place)?.as_array().is_some_and(|all| all.iter().any(|one| one["seeder"] == "true")))
}

pub(super) fn state(place: &Place) -> String {
    active(place).map(|active| active.to_string()).unwrap_or_default()
}
