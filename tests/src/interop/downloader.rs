//! Owns: the engine as one who downloads: by `seedring download`, or by a configuration file, in
//! which case it seeds on.
//! Never: helps it find peers: the .torrent's trackers name them.
//! Flow: started on a host -> its own word that all is there -> files compared -> others fetch
//! from it.

use super::seeder::quoted;
use super::{Host, Process, Source, seedring_binary, wait_until};
use crate::live::engine::IO;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const LISTEN_PORT: u16 = 6881;

#[derive(Debug)]
pub struct Downloader {
    process: Process,
    state: PathBuf,
}

impl Downloader {
    /// `seedring run` with one torrent to download into `copy`; it seeds it on.
    pub fn start(host: &Host, folder: &Path, source: Source<'_>, copy: &Path) -> Result<Self> {
        Self::start_with(host, folder, source, copy, "")
    }

    /// The same with these lines more in the torrent's entry, each indented by four spaces.
    pub fn start_with(
        host: &Host,
        folder: &Path,
        source: Source<'_>,
        copy: &Path,
        more: &str,
    ) -> Result<Self> {
        let entry = match source {
            Source::Torrent(torrent) => {
                format!("files: {}\n    download: true\n    trackers: keep", quoted(torrent)?)
            }
            Source::Magnet(link) => format!("magnet: \"{link}\""),
        };
        let content = quoted(copy)?;
        let torrents = format!("torrents:\n  - {entry}\n    content: {content}\n{more}");
        Self::run(host, folder, &torrents)
    }

    /// Of a torrent, with more of a configuration.
    pub fn start_configured(
        host: &Host,
        folder: &Path,
        torrent: &Path,
        copy: &Path,
        yaml: &str,
    ) -> Result<Self> {
        let (torrent, content) = (quoted(torrent)?, quoted(copy)?);
        let entry = format!("files: {torrent}\n    download: true\n    trackers: keep");
        Self::run(host, folder, &format!("{yaml}torrents:\n  - {entry}\n    content: {content}\n"))
    }

    /// `seedring run` without a torrent, to be told by commands what to do.
    pub fn idle(host: &Host, folder: &Path) -> Result<Self> {
        let mut engine = Self::run(host, folder, "")?;
        wait_until("the control socket", Duration::from_secs(10), || {
            engine.process.check_running()?;
            Ok(engine.command(&["list"]).ok())
        })?;
        Ok(engine)
    }

    fn run(host: &Host, folder: &Path, torrents: &str) -> Result<Self> {
        let (configuration, state) = (folder.join("seedring.yaml"), folder.join("state"));
        let yaml = format!(
            "state_dir: {}\nlisten: [\"{}:{LISTEN_PORT}\"]\nmemory: {{ cache: 64MiB }}\n{IO}\
             {torrents}",
            quoted(&state)?,
            host.address(),
        );
        std::fs::write(&configuration, yaml)?;
        let mut command = host.command(seedring_binary()?);
        command.arg("run").arg(&configuration);
        if std::env::var_os("SEEDRING_LOG").is_none() {
            // Why peers went: what is asked first when a transfer fails.
            command.env("SEEDRING_LOG", "info,seedring_control=debug");
        }
        let process = Process::start("seedring", &mut command, &folder.join("seedring.log"))?;
        Ok(Self { process, state })
    }

    /// `seedring download` of a .torrent or a magnet link, which ends when it is there.
    pub fn start_once(
        host: &Host,
        folder: &Path,
        source: &str,
        copy: &Path,
        more: &[&str],
    ) -> Result<Self> {
        let state = folder.join("state");
        let mut command = host.command(seedring_binary()?);
        command.args(["download", source, "--to"]).arg(copy).args(more);
        command.args(["--listen", &format!("{}:{LISTEN_PORT}", host.address())]);
        command.arg("--state-dir").arg(&state);
        let process = Process::start("seedring", &mut command, &folder.join("seedring.log"))?;
        Ok(Self { process, state })
    }

    /// One that was started otherwise, by its state folder.
    pub fn at(state: &Path, process: Process) -> Self {
        Self { process, state: state.to_path_buf() }
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A command to this engine; what it printed. One that fails is an error with what it said.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(seedring_binary()?);
        command.args(arguments).arg("--state-dir").arg(&self.state);
        let output = command.output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("seedring {}: {}: {said}", arguments.join(" "), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What `seedring list` says of its one torrent.
    pub fn torrent(&self) -> Result<Value> {
        let mut report: Value = serde_json::from_str(&self.command(&["list", "--json"])?)?;
        let torrent = report["torrents"].get_mut(0).context("no torrent is listed")?;
        Ok(torrent.take())
    }

    /// A number of what `list` says; 0 until it answers.
    pub fn number(&self, key: &str) -> u64 {
        self.torrent().ok().and_then(|torrent| torrent[key].as_u64()).unwrap_or(0)
    }

    pub fn is_complete(&mut self) -> Result<bool> {
        self.process.check_running()?;
        Ok(self.torrent().unwrap_or_default()["state"] == "seeding")
    }

    /// Waits until it says that all is there. Prints how long it stood still, where that is worth
    /// a look.
    pub fn wait_complete(&mut self, limit: Duration) -> Result<()> {
        let mut pauses = Pauses::default();
        self.wait("the download", limit, |torrent| {
            pauses.look(torrent);
            torrent["state"] == "seeding"
        })
        .map(drop)
    }

    /// Waits until what `list` says of its one torrent is as awaited, and returns that.
    pub fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        mut awaited: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let found = wait_until(what, limit, || {
            self.process.check_running()?;
            // Between its start and its control socket nobody answers.
            last = self.torrent().unwrap_or_default();
            Ok(awaited(&last).then(|| last.clone()))
        });
        found.map_err(|error| self.process.failure(&format!("{error:#}; it is {last}")))
    }
}

/// When nothing came, after the first byte had come, and what came of it.
#[derive(Default)]
struct Pauses {
    last: (u64, bool),
    since: Option<Instant>,
}

impl Pauses {
    const WORTH_A_LOOK: Duration = Duration::from_secs(3);

    fn look(&mut self, torrent: &Value) {
        let bytes = torrent["downloaded_bytes"].as_u64().unwrap_or(0);
        let now = (bytes, torrent["state"] == "seeding");
        if now == self.last {
            return;
        }
        let pause = self.since.replace(Instant::now()).map(|since| since.elapsed());
        if let Some(pause) = pause.filter(|pause| *pause >= Self::WORTH_A_LOOK) {
            let (before, seconds) = (self.last.0, pause.as_secs_f64());
            println!("  nothing came for {seconds:.1} s after {before} bytes, then: {torrent}");
        }
        self.last = now;
    }
}
