//! Owns: a stand-alone tracker, opentracker, on a host.
//! Never: is asked by the test for peers; clients and engine do that.
//! Flow: started with the info-hashes that it may serve; a test awaits the seed's announce there
//! before it starts a client, since the client's next announce would come half an hour later.

use super::{Host, Process, wait_until};
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

const PORT: u16 = 6969;

#[derive(Debug)]
pub struct Opentracker {
    host: Host,
    process: Process,
}

impl Opentracker {
    /// `info_hashes` in hexadecimal: Debian's build serves only torrents that it is told of.
    pub fn start(host: &Host, folder: &Path, info_hashes: &[&str]) -> Result<Self> {
        let root = folder.join("opentracker");
        std::fs::create_dir_all(&root)?;
        std::fs::write(root.join("allowed.txt"), info_hashes.join("\n") + "\n")?;
        let configuration = format!(
            "listen.tcp {0}:{PORT}\nlisten.udp {0}:{PORT}\n\
             access.whitelist /allowed.txt\ntracker.rootdir {1}\n",
            host.address(),
            root.display()
        );
        let path = folder.join("opentracker.conf");
        std::fs::write(&path, configuration)?;
        let log = folder.join("opentracker.log");
        let process =
            Process::start("opentracker", host.command("opentracker").arg("-f").arg(&path), &log)?;
        let mut tracker = Self { host: host.clone(), process };
        wait_until("opentracker to answer", Duration::from_secs(10), || {
            tracker.process.check_running()?;
            Ok(tracker.counts(&"00".repeat(20)).ok())
        })?;
        Ok(tracker)
    }

    /// `scheme` is http or udp.
    pub fn announce_url(&self, scheme: &str) -> String {
        format!("{scheme}://{}:{PORT}/announce", self.host.address())
    }

    /// Seeds and leeches that it knows of.
    pub fn counts(&self, info_hash: &str) -> Result<(u64, u64)> {
        let mut query = String::new();
        for pair in info_hash.as_bytes().chunks(2) {
            write!(query, "%{}", std::str::from_utf8(pair)?)?;
        }
        let url = format!("http://{}:{PORT}/scrape?info_hash={query}", self.host.address());
        let reply = self.host.http_get(&url)?;
        let reply = String::from_utf8_lossy(&reply);
        Ok((counter(&reply, "8:complete"), counter(&reply, "10:incomplete")))
    }

    /// Waits until it knows at least so many seeds and leeches.
    pub fn wait_for(&mut self, info_hash: &str, seeds: u64, leeches: u64) -> Result<()> {
        let what = format!("{seeds} seeds and {leeches} leeches at opentracker");
        self.wait_until(&what, info_hash, |complete, incomplete| {
            complete >= seeds && incomplete >= leeches
        })
    }

    /// Waits until it knows at least so many. aria2 says that nothing is left of what it knows by
    /// a magnet link alone, so that a leech may count as a seed.
    pub fn wait_for_members(&mut self, info_hash: &str, members: u64) -> Result<()> {
        let what = format!("{members} members at opentracker");
        self.wait_until(&what, info_hash, |complete, incomplete| complete + incomplete >= members)
    }

    fn wait_until(
        &mut self,
        what: &str,
        info_hash: &str,
        enough: impl Fn(u64, u64) -> bool,
    ) -> Result<()> {
        let mut known = (0, 0);
        let found = wait_until(what, Duration::from_secs(20), || {
            self.process.check_running()?;
            known = self.counts(info_hash)?;
            Ok(enough(known.0, known.1).then_some(()))
        });
        found.with_context(|| {
            format!("info-hash {info_hash}: {} seeds, {} leeches", known.0, known.1)
        })
    }
}

/// The bencoded integer after `key`; 0 where the torrent is unknown.
fn counter(reply: &str, key: &str) -> u64 {
    let rest = reply.split_once(&format!("{key}i")).map_or("", |(_, rest)| rest);
    rest.split_once('e').and_then(|(digits, _)| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn counters_are_read_from_a_scrape() {
        let reply = "d5:filesd20:aaaaaaaaaaaaaaaaaaaad8:completei3e10:downloadedi1e\
                     10:incompletei12eeee";
        assert_eq!(super::counter(reply, "8:complete"), 3);
        assert_eq!(super::counter(reply, "10:incomplete"), 12);
        assert_eq!(super::counter("d5:filesdee", "8:complete"), 0);
    }
}
