//! Owns: the engine as one who downloads: by `seedring download`, or by a configuration file, in
//! which case it seeds on.
//! Never: helps it find peers: the .torrent's trackers name them.
//! Flow: started on a host -> its own word that all is there -> files compared -> others fetch
//! from it.

use super::seeder::quoted;
use super::{Host, Process, seedring_binary, wait_until};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LISTEN_PORT: u16 = 6881;

#[derive(Debug)]
pub struct Downloader {
    process: Process,
    state: PathBuf,
}

impl Downloader {
    /// `seedring run` with one torrent to download into `copy`; it seeds it on.
    pub fn start(host: &Host, folder: &Path, torrent: &Path, copy: &Path) -> Result<Self> {
        Self::start_with(host, folder, torrent, copy, "")
    }

    /// The same with more of a configuration.
    pub fn start_with(
        host: &Host,
        folder: &Path,
        torrent: &Path,
        copy: &Path,
        yaml: &str,
    ) -> Result<Self> {
        let (configuration, state) = (folder.join("seedring.yaml"), folder.join("state"));
        let yaml = format!(
            "state_dir: {}\nlisten: [\"{}:{LISTEN_PORT}\"]\nmemory: {{ cache: 64MiB }}\n{yaml}\
             torrents:\n  - files: {}\n    content: {}\n    download: true\n    trackers: keep\n",
            quoted(&state)?,
            host.address(),
            quoted(torrent)?,
            quoted(copy)?
        );
        std::fs::write(&configuration, yaml)?;
        let mut command = host.command(seedring_binary()?);
        command.arg("run").arg(&configuration);
        let process = Process::start("seedring", &mut command, &folder.join("seedring.log"))?;
        Ok(Self { process, state })
    }

    /// `seedring download` of a .torrent or a magnet link, which ends when it is there.
    pub fn start_once(host: &Host, folder: &Path, source: &str, copy: &Path) -> Result<Self> {
        let state = folder.join("state");
        let mut command = host.command(seedring_binary()?);
        command.args(["download", source, "--to"]).arg(copy);
        command.args(["--listen", &format!("{}:{LISTEN_PORT}", host.address())]);
        command.arg("--state-dir").arg(&state);
        let process = Process::start("seedring", &mut command, &folder.join("seedring.log"))?;
        Ok(Self { process, state })
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What `seedring list` says of its one torrent.
    pub fn torrent(&self) -> Result<Value> {
        let mut command = Command::new(seedring_binary()?);
        command.args(["list", "--json", "--state-dir"]).arg(&self.state);
        let output = command.output()?;
        if !output.status.success() {
            bail!("seedring list: {}", String::from_utf8_lossy(&output.stderr));
        }
        let mut report: Value = serde_json::from_slice(&output.stdout)?;
        let torrent = report["torrents"].get_mut(0).context("no torrent is listed")?;
        Ok(torrent.take())
    }

    /// Waits until it says that all is there.
    pub fn wait_complete(&mut self, limit: Duration) -> Result<()> {
        let mut last = Value::Null;
        let complete = wait_until("the download", limit, || {
            self.process.check_running()?;
            // Between its start and its control socket nobody answers.
            last = self.torrent().unwrap_or_default();
            Ok((last["state"] == "seeding").then_some(()))
        });
        complete.map_err(|error| self.process.failure(&format!("{error:#}; it is {last}")))
    }
}
