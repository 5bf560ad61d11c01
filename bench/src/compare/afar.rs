//! Owns: loads that agents make for a comparison, in place of a process beside it.
//! Never: measures. Flow: a preset's `Options::leech` -> here -> controller -> agents -> `Outcome`.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser as _;

use super::{Preset, TARGET, interrupted::Interrupted};
use crate::{
    agents::runner::Runner,
    leech::{self, Outcome},
};

#[derive(Clone, Debug)]
pub struct Afar {
    pub runner: Arc<Runner>,
    /// Where targets listen.
    pub target: SocketAddr,
}

/// The load's command line, read here instead of by a process of its own.
#[derive(clap::Parser)]
struct Leech {
    #[command(flatten)]
    options: leech::Options,
}

impl Afar {
    pub fn leech(&self, torrent: &Path, pid: Option<u32>, more: &[String]) -> Result<Outcome> {
        let mut words = vec!["leech".to_owned(), self.target.to_string(), "--torrent".to_owned()];
        words.push(torrent.display().to_string());
        words.extend(pid.iter().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]));
        words.extend_from_slice(more);
        let Leech { options } = Leech::try_parse_from(&words).context("the load's arguments")?;
        let outcome = self.runner.leech(&options)?;
        let why = match &outcome.partial {
            Some(why) => format!("PARTIAL: {why}"),
            None if outcome.pieces_bad > 0 => outcome.bad_in_words(),
            None => return Ok(outcome),
        };
        let why = format!("leech {}: {why}", more.join(" "));
        bail!(Interrupted { why, outcome: Box::new(outcome) })
    }

    pub fn begin(&self, torrent: &Path, more: &[String]) -> Load {
        let (afar, torrent, more) = (self.clone(), torrent.to_path_buf(), more.to_vec());
        Load::Afar(thread::spawn(move || afar.leech(&torrent, None, &more)))
    }
}

/// A load that goes on while something else happens.
pub enum Load {
    Here(Child),
    Afar(JoinHandle<Result<Outcome>>),
}

impl Load {
    pub fn here(mut command: Command) -> Result<Load> {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(Load::Here(child.context("the load")?))
    }

    pub fn finish(self) -> Result<Outcome> {
        match self {
            Load::Here(child) => {
                let output = child.wait_with_output().context("the load")?;
                let complaint = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "the load: {}", complaint.trim());
                serde_json::from_slice(&output.stdout).context("the load's JSON")
            }
            Load::Afar(thread) => thread.join().map_err(|_| anyhow!("the load panicked"))?,
        }
    }
}

/// Presets whose load is one that agents can make.
pub fn check_preset(preset: Preset, name: &str) -> Result<()> {
    let why = match preset {
        Preset::Seeding
        | Preset::Download
        | Preset::Spread
        | Preset::Connections
        | Preset::SlowReaders
        | Preset::Churn
        | Preset::SeedMany
        | Preset::Restart => return Ok(()),
        Preset::Recheck | Preset::StartUp => "has no load",
        Preset::Mixed => "makes its swarm in a network of its own",
        Preset::Cold | Preset::Many | Preset::Beside => "compares parts of one machine",
    };
    bail!("`compare: {name}` {why}: run it without --controller")
}

/// Where a block is asked for from, to know whether a target serves: not an address of the load's.
pub fn asker(target: SocketAddr, number: usize) -> Option<SocketAddr> {
    let last = (number % 250) as u8 + 1;
    match target.ip() {
        _ if target == TARGET => Some(SocketAddr::from(([10, 77, 9, last], 0))),
        IpAddr::V4(address) if address.is_loopback() => {
            Some(SocketAddr::from(([127, 63, 9, last], 0)))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_load_for_agents_is_refused_with_the_reason() {
        for preset in [Preset::Recheck, Preset::StartUp, Preset::Mixed, Preset::Cold] {
            let error = check_preset(preset, "x").expect_err("refused").to_string();
            assert!(error.contains("run it without --controller"), "{error}");
        }
        assert!(check_preset(Preset::Seeding, "seeding").is_ok());
        assert!(check_preset(Preset::Download, "download").is_ok());
    }
}
