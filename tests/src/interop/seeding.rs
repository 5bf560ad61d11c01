//! Owns: how each client is told to seed content that is there already.
//! Never: judges by the client's word alone: a test awaits its announce at the tracker as well.
//! Flow: [`SeedingClient::start`] -> the client checks the content and announces -> downloads from
//! it -> [`SeedingClient::stop`], after which the content must be as it was.

use super::client::{
    PEER_PORT, START_LIMIT, add_to_qbittorrent, start_aria2, start_qbittorrent, start_rtorrent,
    start_transmission, transmission_remote,
};
use super::{Client, Content, Host, Process, Source, python, script, wait_until};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// Hashing 24 MiB, on a machine that does much else.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct SeedingClient {
    process: Process,
}

impl SeedingClient {
    /// Seeds `content` as `torrent` says; returns when the client says so, where it says anything.
    pub fn start(
        client: Client,
        host: &Host,
        folder: &Path,
        content: &Content,
        torrent: &Path,
    ) -> Result<Self> {
        let parent = content.root().parent().context("content has a folder")?;
        let start = match client {
            Client::Qbittorrent => qbittorrent,
            Client::Transmission => transmission,
            Client::Aria2 => aria2,
            Client::Rtorrent => rtorrent,
            Client::Libtorrent => libtorrent,
        };
        let process = start(host, folder, parent, torrent)
            .with_context(|| format!("{client:?} as a seed of {}", torrent.display()))?;
        Ok(Self { process })
    }

    /// Libtorrent with every `parts`-th piece from `part` on, copied to `folder`, and no other.
    pub fn start_partial(
        host: &Host,
        folder: &Path,
        content: &Content,
        torrent: &Path,
        part: u32,
        parts: u32,
    ) -> Result<Self> {
        let parent = content.root().parent().context("content has a folder")?;
        let mut command = host.command(python()?);
        command.arg(script("libtorrent_partial.py")).args([torrent, parent, folder]);
        command.arg(format!("0.0.0.0:{PEER_PORT}"));
        command.args([part.to_string(), parts.to_string()]);
        let mut process = Process::start("partial seed", &mut command, &folder.join("seed.log"))?;
        process.wait_for_log("the check of its pieces", CHECK_LIMIT, |log| {
            log.contains("ready").then_some(())
        })?;
        Ok(Self { process })
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// From then on nobody gets anything from it.
    pub fn stop(mut self) -> Result<()> {
        self.process.terminate(START_LIMIT).map(drop)
    }
}

fn qbittorrent(host: &Host, folder: &Path, parent: &Path, torrent: &Path) -> Result<Process> {
    let (mut process, api) = start_qbittorrent(host, folder)?;
    let source = Source::Torrent(torrent);
    add_to_qbittorrent(host, &api, source, parent, "skip_checking=true")?;
    let list = format!("{api}/torrents/info");
    wait_until("qBittorrent to seed", CHECK_LIMIT, || {
        process.check_running()?;
        let torrents: Value = serde_json::from_slice(&host.http_get(&list)?)?;
        let state = torrents[0]["state"].as_str().unwrap_or_default();
        Ok((state.ends_with("UP") && torrents[0]["amount_left"] == 0).then_some(()))
    })?;
    Ok(process)
}

fn transmission(host: &Host, folder: &Path, parent: &Path, torrent: &Path) -> Result<Process> {
    let mut process = start_transmission(host, folder, parent)?;
    let torrent = torrent.to_str().context("a path outside UTF-8")?;
    transmission_remote(host, &["--add", torrent])?;
    transmission_remote(host, &["--torrent", "all", "--verify"])?;
    let seeding = wait_until("Transmission to seed", CHECK_LIMIT, || {
        process.check_running()?;
        let info = transmission_remote(host, &["--torrent", "all", "--info"])?;
        let state = ["State: Idle", "State: Seeding"].iter().any(|state| info.contains(state));
        Ok((info.contains("Percent Done: 100%") && state).then_some(()))
    });
    if let Err(error) = seeding {
        let info = transmission_remote(host, &["--torrent", "all", "--info"]).unwrap_or_default();
        return Err(process.failure(&format!("{error:#}: {info}")));
    }
    Ok(process)
}

fn aria2(host: &Host, folder: &Path, parent: &Path, torrent: &Path) -> Result<Process> {
    // A ratio of 0 stands for no limit.
    let seeds = ["--check-integrity=true", "--seed-ratio=0.0", "--bt-hash-check-seed=true"];
    start_aria2(host, folder, parent, Source::Torrent(torrent), &seeds)
}

fn rtorrent(host: &Host, folder: &Path, parent: &Path, torrent: &Path) -> Result<Process> {
    start_rtorrent(host, folder, parent, torrent).map(|(process, _)| process)
}

fn libtorrent(host: &Host, folder: &Path, parent: &Path, torrent: &Path) -> Result<Process> {
    let mut command = host.command(python()?);
    command.arg(script("libtorrent_seed.py")).arg(torrent).arg(parent);
    command.arg(format!("0.0.0.0:{PEER_PORT}"));
    let mut process = Process::start("libtorrent", &mut command, &folder.join("libtorrent.log"))?;
    process.wait_for_log("its magnet link", CHECK_LIMIT, |log| {
        log.contains("magnet:?").then_some(())
    })?;
    Ok(process)
}
