//! Trackers.
//!
//! Owns: the task that announces every torrent, its connections, and the embedded tracker.
//! Never: decides when or to whom (proto's schedule does), keeps totals, or shows a passkey.
//! Flow: the engine's commands in through [`Trackers`], [`Event`]s out; jobs of the schedule run
//! as
//! tokio tasks on the control thread.

pub mod connect;
pub mod embedded;
pub mod http;
pub mod rule;
mod run;
#[cfg(test)]
mod tests;
pub mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use seedring_proto::tracker::announce::{Crypto, Event as AnnounceEvent, Totals};
use seedring_proto::tracker::announcer::State;
use seedring_proto::tracker::schedule::{self, Stops, Torrent};
use seedring_proto::tracker::url::UrlError;
use seedring_proto::units::{InfoHash, PeerId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub use connect::TlsSetupError;
pub use http::HttpOptions;
pub use udp::UdpOptions;

/// Commands that wait; a sender waits when there are more.
const COMMANDS_MAX: usize = 1024;
/// Events that wait; further ones are dropped and counted, since peers and status come again.
const EVENTS_MAX: usize = 4096;

#[derive(Debug, Clone)]
pub struct Options {
    pub peer_id: PeerId,
    /// The announced port.
    pub port: u16,
    /// Random, the same for the life of the process.
    pub key: u32,
    /// Announced addresses, where they are not those that trackers see.
    pub ip: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    pub numwant: u32,
    pub crypto: Crypto,
    pub schedule: schedule::Options,
    pub http: HttpOptions,
    pub udp: UdpOptions,
}

impl Options {
    #[must_use]
    pub fn new(peer_id: PeerId, port: u16, key: u32) -> Self {
        Self {
            peer_id,
            port,
            key,
            ip: None,
            ipv6: None,
            numwant: 80,
            crypto: Crypto::Unsupported,
            schedule: schedule::Options { seed: u64::from(key), ..schedule::Options::default() },
            http: HttpOptions::default(),
            udp: UdpOptions::default(),
        }
    }
}

/// Asked when a request is about to go out, so that what trackers hear is what was counted.
pub trait TotalsSource: Send + Sync + 'static {
    fn totals(&self, info_hash: &InfoHash) -> Totals;
}

impl<F: Fn(&InfoHash) -> Totals + Send + Sync + 'static> TotalsSource for F {
    fn totals(&self, info_hash: &InfoHash) -> Totals {
        self(info_hash)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Peers to dial. With `replace` set another tracker answered for a private torrent, and
    /// peers of
    /// the one before are to be dropped (BEP 27).
    Peers { info_hash: InfoHash, peers: Vec<SocketAddr>, replace: bool },
    /// An announce ended; for logs. Addresses and messages have their secrets masked.
    Announced {
        info_hash: InfoHash,
        tracker: String,
        event: AnnounceEvent,
        /// `false`: its host can't be reached, which others found out.
        asked: bool,
        result: Result<Heard, String>,
    },
    /// A removed torrent's `stopped` was sent or given up.
    Removed { info_hash: InfoHash },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub peers: usize,
    pub seeders: Option<u32>,
    pub leechers: Option<u32>,
    /// Where it sees us (BEP 24).
    pub external_ip: Option<IpAddr>,
    pub warning: Option<String>,
}

/// A tracker of a torrent, as `seedring show` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackerStatus {
    pub tier: u16,
    /// Secrets masked.
    pub url: String,
    pub state: State,
    pub next_announce_in: Option<Duration>,
    pub last_success_ago: Option<Duration>,
    pub seeders: Option<u32>,
    pub leechers: Option<u32>,
    pub peers: u32,
    pub message: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    pub trackers: Vec<TrackerStatus>,
    /// Addresses that cannot be used, secrets masked, and why.
    pub unusable: Vec<(String, UrlError)>,
}

enum Command {
    Add(Torrent),
    Remove(InfoHash, Totals),
    WantMorePeers(InfoHash),
    AnnounceNow(InfoHash),
    Completed(InfoHash),
    Status(InfoHash, oneshot::Sender<Option<Status>>),
    Shutdown(Duration, oneshot::Sender<Stops>),
}

/// The handle; clones speak to the same task. After a shutdown commands do nothing.
#[derive(Clone)]
pub struct Trackers {
    commands: mpsc::Sender<Command>,
}

impl Trackers {
    /// Starts the task on the current tokio runtime.
    ///
    /// # Errors
    /// The extra certificates cannot be read.
    pub fn start(
        options: Options,
        totals: Arc<dyn TotalsSource>,
    ) -> Result<(Self, mpsc::Receiver<Event>, JoinHandle<()>), TlsSetupError> {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (events, outbox) = mpsc::channel(EVENTS_MAX);
        let task = run::Task::new(options, totals, inbox, events)?;
        Ok((Self { commands }, outbox, tokio::spawn(task.run())))
    }

    /// Announces a torrent from now on; `started` goes out when its turn comes.
    pub async fn add(&self, torrent: Torrent) {
        self.send(Command::Add(torrent)).await;
    }

    /// Sends `stopped` with these last totals; [`Event::Removed`] follows.
    pub async fn remove(&self, info_hash: InfoHash, totals: Totals) {
        self.send(Command::Remove(info_hash, totals)).await;
    }

    /// Announces early, as far as the tracker's minimum interval allows.
    pub async fn want_more_peers(&self, info_hash: InfoHash) {
        self.send(Command::WantMorePeers(info_hash)).await;
    }

    /// The same for a user: trackers in backoff or given up are tried again.
    pub async fn announce_now(&self, info_hash: InfoHash) {
        self.send(Command::AnnounceNow(info_hash)).await;
    }

    /// The torrent's last piece is there.
    pub async fn completed(&self, info_hash: InfoHash) {
        self.send(Command::Completed(info_hash)).await;
    }

    pub async fn status(&self, info_hash: InfoHash) -> Option<Status> {
        let (answer, status) = oneshot::channel();
        self.send(Command::Status(info_hash, answer)).await;
        status.await.ok().flatten()
    }

    /// Sends `stopped` for every torrent that a tracker knows of, and ends the task when all are
    /// sent
    /// or `deadline` has passed.
    pub async fn shutdown(&self, deadline: Duration) -> Stops {
        let (answer, stops) = oneshot::channel();
        self.send(Command::Shutdown(deadline, answer)).await;
        stops.await.unwrap_or_default()
    }

    async fn send(&self, command: Command) {
        // The receiver is gone only after a shutdown, when there is nothing left to do.
        let _ = self.commands.send(command).await;
    }
}
