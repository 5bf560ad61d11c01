//! Owns: the seeder under test, its configuration file and what it printed for clients.
//! Never: helps the engine: what clients are given is what its users are given.
//! Flow: a [`Recipe`] becomes YAML, `seedring run` is started with it, and its magnet link and
//! .torrent go to the clients.
//!
//! `SEEDRING_SEEDER=libtorrent` puts libtorrent in the engine's place: where a test fails with
//! that too, the harness or the client is at fault.

use super::{Client, Content, Host, Opentracker, Process, python, script, seedring_binary};
use crate::live::engine::IO;
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(60);
const LISTEN_PORT: u16 = 6881;
const TRACKER_PORT: u16 = 6969;

/// What is seeded, and how the swarm hears of it.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    pub content: &'a Content,
    /// An existing .torrent; without one the engine makes it.
    pub torrent: Option<&'a Path>,
    /// Announce to the embedded tracker; without it to those of the .torrent.
    pub embedded_tracker: bool,
    /// `full`, `quick` or `trust`.
    pub verify: &'a str,
    /// Pieces are shown one by one (BEP 16).
    pub super_seeding: bool,
}

impl Recipe<'_> {
    fn yaml(&self, host: &Host, state: &Path) -> Result<String> {
        let address = host.address();
        let mut yaml = format!(
            "state_dir: {}\nlisten: [\"{address}:{LISTEN_PORT}\"]\n{IO}\
             memory: {{ cache: 64MiB }}\n",
            quoted(state)?
        );
        if self.embedded_tracker {
            writeln!(yaml, "tracker: {{ listen: \"{address}:{TRACKER_PORT}\" }}")?;
        }
        let trackers = if self.embedded_tracker { "[embedded]" } else { "keep" };
        match self.torrent {
            Some(torrent) => {
                let parent = self.content.root().parent().context("content has a folder")?;
                writeln!(yaml, "torrents:\n  - files: {}", quoted(torrent)?)?;
                writeln!(yaml, "    content: {}", quoted(parent)?)?;
            }
            None => {
                writeln!(yaml, "torrents:\n  - folder: {}", quoted(self.content.root())?)?;
                writeln!(yaml, "    name: {}", self.content.name()?)?;
            }
        }
        write!(yaml, "    trackers: {trackers}\n    verify: {}\n", self.verify)?;
        if self.super_seeding {
            writeln!(yaml, "    super_seeding: true")?;
        }
        Ok(yaml)
    }
}

/// A YAML string; JSON's escapes are YAML's.
pub(super) fn quoted(path: &Path) -> Result<String> {
    Ok(serde_json::to_string(path.to_str().context("a path outside UTF-8")?)?)
}

#[derive(Debug)]
pub struct Seeder {
    process: Process,
    magnet: String,
    torrent: PathBuf,
    /// Stands in for the embedded tracker where libtorrent stands in for the engine.
    _tracker: Option<Opentracker>,
}

impl Seeder {
    pub fn start(host: &Host, folder: &Path, recipe: Recipe<'_>) -> Result<Self> {
        match std::env::var("SEEDRING_SEEDER").as_deref() {
            Err(_) => Self::start_engine(host, folder, recipe),
            Ok("libtorrent") => Self::start_libtorrent(host, folder, recipe),
            Ok(other) => bail!("SEEDRING_SEEDER={other}: the only stand-in is libtorrent"),
        }
    }

    fn start_engine(host: &Host, folder: &Path, recipe: Recipe<'_>) -> Result<Self> {
        let configuration = folder.join("seedring.yaml");
        std::fs::write(&configuration, recipe.yaml(host, &folder.join("state"))?)?;
        let mut command = host.command(seedring_binary()?);
        command.arg("run").arg(&configuration);
        let process = Process::start("seedring", &mut command, &folder.join("seedring.log"))?;
        Self::read_links(host, folder, process)
    }

    /// Waits for the magnet link and the .torrent in the engine's output.
    pub fn read_links(host: &Host, folder: &Path, mut process: Process) -> Result<Self> {
        let (magnet, torrent) =
            process.wait_for_log("a magnet link and a .torrent", START_LIMIT, |log| {
                Some((link(log, |word| word.starts_with("magnet:?"))?, torrent_link(log)?))
            })?;
        let torrent = if torrent.starts_with("http") {
            let path = folder.join("fetched.torrent");
            std::fs::write(&path, host.http_get(&torrent)?)?;
            path
        } else {
            PathBuf::from(torrent)
        };
        Ok(Self { process, magnet, torrent, _tracker: None })
    }

    fn start_libtorrent(host: &Host, folder: &Path, recipe: Recipe<'_>) -> Result<Self> {
        let own = folder.join("stand-in.torrent");
        let torrent = recipe.torrent.map_or(own.clone(), Path::to_path_buf);
        let mut tracker = None;
        if recipe.torrent.is_none() {
            let url = format!("http://{}:{TRACKER_PORT}/announce", host.address());
            let info_hash = make_torrent(recipe.content, &url, &own, 0)?;
            tracker = Some(Opentracker::start(host, folder, &[&info_hash])?);
        }
        let parent = recipe.content.root().parent().context("content has a folder")?;
        let mut command = host.command(python()?);
        command.arg(script("libtorrent_seed.py")).arg(&torrent).arg(parent);
        command.arg(format!("{}:{LISTEN_PORT}", host.address()));
        let process = Process::start("stand-in", &mut command, &folder.join("stand-in.log"))?;
        let mut seeder = Self::read_links(host, folder, process)?;
        if let Some(tracker) = &mut tracker {
            tracker.wait_for(&seeder.info_hash()?, 1, 0)?;
        }
        seeder._tracker = tracker;
        Ok(seeder)
    }

    pub fn magnet(&self) -> &str {
        &self.magnet
    }

    pub fn torrent(&self) -> &Path {
        &self.torrent
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// In hexadecimal, out of the magnet link.
    pub fn info_hash(&self) -> Result<String> {
        let rest = self.magnet.split_once("urn:btih:").context("a magnet link without btih")?.1;
        let hash: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
        if hash.len() != 40 {
            bail!("{}: not an info-hash in hexadecimal", self.magnet);
        }
        Ok(hash.to_ascii_lowercase())
    }
}

/// Makes a v1 .torrent with libtorrent; returns its info-hash. `piece_bytes` 0 is its own choice.
pub fn make_torrent(
    content: &Content,
    announce: &str,
    torrent: &Path,
    piece_bytes: u32,
) -> Result<String> {
    let output = std::process::Command::new(python()?)
        .arg(script("make_torrent.py"))
        .args([content.root(), torrent])
        .arg(announce)
        .env("SEEDRING_PIECE_BYTES", piece_bytes.to_string())
        .output()?;
    if !output.status.success() {
        bail!("make_torrent.py: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The whole of one transfer: fetch with `client`, compare every file, see the source unharmed.
pub fn transfer(
    client: Client,
    host: &Host,
    folder: &Path,
    source: super::Source<'_>,
    content: &Content,
    limit: Duration,
) -> Result<()> {
    let copy = folder.join("copy");
    std::fs::create_dir_all(&copy)?;
    client.fetch(host, folder, &copy, source, limit)?;
    content.compare(&copy.join(content.name()?), client.skips_empty_files())?;
    content.check_untouched()
}

fn words(log: &str) -> impl Iterator<Item = &str> {
    log.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '\u{1b}'))
}

/// The first complete line's word that `wanted` accepts.
fn link(log: &str, wanted: impl Fn(&str) -> bool) -> Option<String> {
    let complete = &log[..log.rfind('\n')?];
    words(complete).find(|word| wanted(word)).map(str::to_owned)
}

fn torrent_link(log: &str) -> Option<String> {
    link(log, |word| word.len() > 8 && word.ends_with(".torrent") && !word.starts_with("magnet:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_in_what_an_engine_prints() {
        let log =
            "seeding docs\n  magnet   magnet:?xt=urn:btih:00&dn=x\n  torrent  var/x.torrent\n";
        assert_eq!(torrent_link(log).unwrap(), "var/x.torrent");
        assert_eq!(
            link(log, |w| w.starts_with("magnet:?")).unwrap(),
            "magnet:?xt=urn:btih:00&dn=x"
        );
        assert_eq!(torrent_link("half a line.torrent"), None);
    }
}
