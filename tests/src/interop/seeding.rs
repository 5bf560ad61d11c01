//! Owns: seeds other than the engine: each client with content that is there already, libtorrent
//! with a part of it or a limit.
//! Never: judges by the client's word alone: a test awaits its announce at the tracker as well.
//! Flow: [`SeedingClient::start`] -> the client checks the content and announces -> downloads from
//! it -> [`SeedingClient::stop`], after which the content must be as it was.

use super::client::{Has, PEER_PORT, Place, RunningClient};
use super::{Client, Content, Host, Process, Source, python, script};
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::path::Path;
use std::time::Duration;

/// Hashing 24 MiB, on a machine that does much else.
const CHECK_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct SeedingClient {
    running: RunningClient,
}

impl SeedingClient {
    /// Seeds `content` as `torrent` says; returns when the client says so.
    pub fn start(
        client: Client,
        host: &Host,
        folder: &Path,
        content: &Content,
        torrent: &Path,
    ) -> Result<Self> {
        let save = content.root().parent().context("content has a folder")?.to_path_buf();
        let place = Place { host: host.clone(), folder: folder.to_path_buf(), save, has: Has::All };
        let what = || format!("{client:?} as a seed of {}", torrent.display());
        let source = Source::Torrent(torrent);
        let mut running = RunningClient::start(client, place, source).with_context(what)?;
        running.wait_complete(CHECK_LIMIT).with_context(what)?;
        Ok(Self { running })
    }

    pub fn process(&mut self) -> &mut Process {
        self.running.process()
    }

    /// From then on nobody gets anything from it.
    pub fn stop(self) -> Result<()> {
        self.running.stop()
    }
}

/// libtorrent, told what and how fast to seed.
#[derive(Debug)]
pub struct ControlledSeed {
    process: Process,
}

impl ControlledSeed {
    /// Every `parts`-th piece from `part` on, copied to `folder`, and no other.
    pub fn partial(
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

    /// Everything, at so many bytes a second to all peers together, until [`Self::unleash`].
    pub fn slow(
        host: &Host,
        folder: &Path,
        content: &Content,
        torrent: &Path,
        bytes_per_s: u32,
    ) -> Result<Self> {
        let parent = content.root().parent().context("content has a folder")?;
        let mut command = host.command(python()?);
        command.arg(script("libtorrent_client.py")).args([torrent, parent]);
        command.arg(format!("0.0.0.0:{PEER_PORT}")).arg(bytes_per_s.to_string());
        let mut process = Process::start("slow seed", &mut command, &folder.join("seed.log"))?;
        process.wait_for_log("the check of its pieces", CHECK_LIMIT, |log| {
            log.lines().any(|line| line == "complete").then_some(())
        })?;
        Ok(Self { process })
    }

    /// No limit any more.
    pub fn unleash(&self) -> Result<()> {
        self.process.signal(Signal::USR1)
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Bytes of content that it sent; from then on nobody gets anything from it.
    pub fn stop(mut self) -> Result<u64> {
        self.process.terminate(STOP_LIMIT)?;
        let log = self.process.log();
        let sent = log.lines().rev().find_map(|line| line.strip_prefix("uploaded "));
        Ok(sent.map_or(Ok(0), str::parse)?)
    }
}

/// Puts every `parts`-th piece from `part` on where a client will look for it, in files of the
/// right length that are empty otherwise.
pub fn put_pieces(
    content: &Content,
    torrent: &Path,
    save: &Path,
    part: usize,
    parts: usize,
) -> Result<()> {
    let parent = content.root().parent().context("content has a folder")?;
    let mut command = std::process::Command::new(python()?);
    command.arg(script("copy_pieces.py")).args([torrent, parent, save]);
    let output = command.args([part.to_string(), parts.to_string()]).output()?;
    anyhow::ensure!(
        output.status.success(),
        "copy_pieces.py: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
