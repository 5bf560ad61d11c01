//! Owns: the load of a comparison: its arguments, in words too, and that it is run, here or by
//! agents.
//! Never: measures. Flow: a preset -> `heat`, `window` -> `leech` -> `Outcome`.

use std::{ffi::OsString, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use super::{Cores, Interrupted, Options, SOURCES, TARGET, afar, bytes_in_words, on_cores};
use crate::leech::{Outcome, Pattern};

/// One piece in so many is hashed in what is measured, which costs the load 0.004 CPU-s a GiB. Of
/// single blocks at random none can be: pieces never come whole.
pub const VERIFY_SAMPLE: &str = "50";
/// One whole download, each piece hashed.
const HEAT: [&str; 6] = ["--once", "--verify", "--pattern", "sequential", "--connections", "1"];
/// In shorter windows system calls are not counted: that would take longer than the rest.
const SYSCALLS_MIN_SECONDS: f64 = 2.0;

impl Options {
    /// One run of the load on its own core, as a process of its own; `more`: its arguments.
    pub fn leech(&self, torrent: &Path, pid: u32, more: &[String]) -> Result<Outcome> {
        self.leech_on(&Cores::one(self.site.load_core), torrent, pid, more)
    }

    /// The same on these cores.
    pub fn leech_on(
        &self,
        cores: &Cores,
        torrent: &Path,
        pid: u32,
        more: &[String],
    ) -> Result<Outcome> {
        if let Some(afar) = &self.site.afar {
            return afar.leech(torrent, Some(pid), more);
        }
        let this = std::env::current_exe().context("the path of this program")?;
        self.run_leech(on_cores(&this, cores), torrent, pid, more)
    }

    fn run_leech(
        &self,
        mut command: Command,
        torrent: &Path,
        pid: u32,
        more: &[String],
    ) -> Result<Outcome> {
        command.args(leech_of(torrent)).args(["--pid", &pid.to_string()]).args(more);
        let output = command.output().context("cannot run this program once more")?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            let why = format!("leech {}: {}", more.join(" "), complaint.trim());
            match serde_json::from_slice(&output.stdout) {
                Ok(outcome) => bail!(Interrupted { why, outcome: Box::new(outcome) }),
                Err(_) => bail!(why),
            }
        }
        serde_json::from_slice(&output.stdout).context("the load's JSON")
    }

    /// One whole download, so that all of the content is in the target's own cache, whatever that
    /// is; a target that does not send the content is found here, before it is measured.
    pub fn heat(&self, torrent: &Path, pid: u32) -> Result<()> {
        self.leech(torrent, pid, &HEAT.map(String::from))
            .map(drop)
            .context("one whole download before it is measured")
    }

    /// The load on its own core, with no target's process to look at; it goes on meanwhile.
    pub fn begin_load(&self, torrent: &Path, more: &[String]) -> Result<afar::Load> {
        if let Some(afar) = &self.site.afar {
            return Ok(afar.begin(torrent, more));
        }
        let this = std::env::current_exe().context("the path of this program")?;
        let mut command = on_cores(&this, &Cores::one(self.site.load_core));
        command.args(leech_of(torrent)).args(more);
        afar::Load::here(command)
    }

    /// The measured window's arguments, with what is read beside CPU time and memory.
    pub fn window(&self) -> Vec<String> {
        let mut arguments = self.plain_window();
        arguments.extend(self.asked());
        arguments.extend(["--target-core".into(), self.site.server_core.to_string()]);
        if self.seconds >= SYSCALLS_MIN_SECONDS {
            arguments.push("--syscalls".into());
        }
        arguments
    }

    pub fn plain_window(&self) -> Vec<String> {
        [
            "--duration".into(),
            self.seconds.to_string(),
            "--warm-up".into(),
            self.warm_up.to_string(),
        ]
        .to_vec()
    }

    /// Which blocks a load asks for, how, and what of them is hashed.
    pub fn asked(&self) -> Vec<String> {
        let (outstanding, block) = (self.outstanding.to_string(), self.block.to_string());
        let pattern = self.pattern.name();
        let mut words =
            vec!["--pattern", &pattern, "--outstanding", &outstanding, "--block", &block];
        words.extend(self.sample().iter().flat_map(|sample| ["--verify-sample", sample]));
        words.into_iter().map(String::from).collect()
    }

    /// Of how many pieces one is hashed in what is measured.
    pub fn sample(&self) -> Option<&'static str> {
        (self.pattern != Pattern::Random).then_some(VERIFY_SAMPLE)
    }

    /// The same in words.
    pub fn blocks(&self) -> String {
        let which = match self.pattern {
            Pattern::Random => "at random",
            Pattern::Sequential => "in order",
            Pattern::Together => "in order from the first",
            Pattern::RarestFirst => "of pieces, rarest first",
        };
        let hashed = self.sample().map(|sample| format!(", one piece in {sample} hashed"));
        format!(
            "{} blocks {which}, {} outstanding{}",
            bytes_in_words(self.block),
            self.outstanding,
            hashed.unwrap_or_default()
        )
    }
}

fn leech_of(torrent: &Path) -> Vec<OsString> {
    let target = TARGET.to_string();
    let words = ["leech", &target, "--source", SOURCES, "--json", "--torrent"];
    words.iter().map(OsString::from).chain([torrent.into()]).collect()
}
