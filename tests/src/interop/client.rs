//! Owns: the clients that the engine meets: each is started with a torrent and some of its content,
//! says through its real interface that it has everything, and seeds on until it is stopped.
//! Never: changes a client's way with peers, beyond switching off DHT, LSD and PEX, so that what
//! arrives came by way of the tracker under test. (rqbit's PEX cannot be switched off.)
//! Flow: [`RunningClient::start`] -> [`RunningClient::is_complete`] -> [`RunningClient::stop`],
//! after which its files are compared; a module each has the client's own ways.

mod aria2;
mod libtorrent;
mod qbittorrent;
mod rqbit;
mod rtorrent;
mod transmission;

use super::{Host, Process, wait_until};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(30);
const WEB_PORT: u16 = 8080;
pub(super) const PEER_PORT: u16 = 51413;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Qbittorrent,
    Transmission,
    Aria2,
    Rtorrent,
    Libtorrent,
    Rqbit,
}

/// What a client is given.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    Torrent(&'a Path),
    Magnet(&'a str),
}

impl Source<'_> {
    pub fn argument(self) -> Result<String> {
        match self {
            Self::Torrent(path) => Ok(text(path)?.to_owned()),
            Self::Magnet(link) => Ok(link.to_owned()),
        }
    }
}

/// How much of the content a client finds when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Has {
    Nothing,
    /// Files of the right length with some of the pieces: it has to hash them.
    Some,
    All,
}

/// Where a client runs.
#[derive(Debug, Clone)]
pub struct Place {
    pub host: Host,
    /// Takes logs and settings.
    pub folder: PathBuf,
    /// Holds the torrent's top folder.
    pub save: PathBuf,
    pub has: Has,
}

impl Client {
    pub const ALL: [Self; 6] = [
        Self::Qbittorrent,
        Self::Transmission,
        Self::Aria2,
        Self::Rtorrent,
        Self::Libtorrent,
        Self::Rqbit,
    ];

    /// Debian has no rqbit, and nothing here compiles one: without it on the PATH its part of a
    /// test is left out, which the test says.
    pub fn is_there(self) -> bool {
        if self != Self::Rqbit {
            return true; // its absence is a failure
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let there = std::env::split_paths(&path).any(|folder| folder.join("rqbit").is_file());
        if !there {
            println!("rqbit is not installed: tested without it");
        }
        there
    }

    /// Transmission 3.00 does not create files without bytes.
    pub fn skips_empty_files(self) -> bool {
        self == Self::Transmission
    }

    /// Fetches `source` into `copy`, on `host`; `folder` takes logs and settings.
    pub fn fetch(
        self,
        host: &Host,
        folder: &Path,
        copy: &Path,
        source: Source<'_>,
        limit: Duration,
    ) -> Result<()> {
        let (host, folder, save) = (host.clone(), folder.to_path_buf(), copy.to_path_buf());
        let place = Place { host, folder, save, has: Has::Nothing };
        let fetched = RunningClient::start(self, place, source).and_then(|mut client| {
            client.wait_complete(limit)?;
            client.stop()
        });
        fetched.with_context(|| format!("{self:?}: {source:?}"))
    }
}

/// A client at work on one torrent.
#[derive(Debug)]
pub struct RunningClient {
    client: Client,
    place: Place,
    process: Process,
    /// It did not answer, which was said.
    was_silent: bool,
}

impl RunningClient {
    /// Returns when it has taken the torrent.
    pub fn start(client: Client, place: Place, source: Source<'_>) -> Result<Self> {
        let start = match client {
            Client::Qbittorrent => qbittorrent::start,
            Client::Transmission => transmission::start,
            Client::Aria2 => aria2::start,
            Client::Rtorrent => rtorrent::start,
            Client::Libtorrent => libtorrent::start,
            Client::Rqbit => rqbit::start,
        };
        let process = start(&place, source)?;
        Ok(Self { client, place, process, was_silent: false })
    }

    pub fn client(&self) -> Client {
        self.client
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its own word that it has everything; that it ended is an error. A question that a busy
    /// client does not answer is asked again, as long as the caller's limit goes.
    pub fn is_complete(&mut self) -> Result<bool> {
        self.process.check_running()?;
        let said = match self.client {
            Client::Qbittorrent => qbittorrent::is_complete(&self.place),
            Client::Transmission => transmission::is_complete(&self.place),
            Client::Aria2 => aria2::is_complete(&self.place),
            Client::Rtorrent => Ok(rtorrent::is_complete(&self.place)),
            Client::Libtorrent => Ok(libtorrent::is_complete(&self.process)),
            Client::Rqbit => rqbit::is_complete(&self.place),
        };
        said.or_else(|error| {
            if !std::mem::replace(&mut self.was_silent, true) {
                println!("  {:?} did not answer once: {error:#}", self.client);
            }
            Ok(false)
        })
    }

    pub fn wait_complete(&mut self, limit: Duration) -> Result<()> {
        let what = format!("{:?} to have everything", self.client);
        let complete = wait_until(&what, limit, || Ok(self.is_complete()?.then_some(())));
        complete.map_err(|error| self.failure(&format!("{error:#}")))
    }

    /// An error with what it says of itself and the end of its log.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        let state = match self.client {
            Client::Qbittorrent => qbittorrent::state(&self.place),
            Client::Transmission => transmission::state(&self.place),
            Client::Aria2 => aria2::state(&self.place),
            Client::Rtorrent => rtorrent::state(&self.place),
            Client::Rqbit => rqbit::state(&self.place),
            Client::Libtorrent => String::new(),
        };
        self.process.failure(&format!("{what}; {state}"))
    }

    /// Ends it in its orderly way: what it has is in its files, and nobody gets more from it.
    pub fn stop(mut self) -> Result<()> {
        self.process.terminate(START_LIMIT).map(drop)
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path outside UTF-8")
}
