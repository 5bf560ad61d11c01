//! Addresses that trackers named, and leeches that announced to ours: when each is dialled, and
//! when again.
//!
//! Owns: a bounded book of addresses a torrent, with backoff. Never: sockets; shards dial.
//! Flow: tracker event or leech -> learn -> Command::Dial -> Event::Dialed -> backoff.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use seedring_proto::units::InfoHash;
use seedring_shard::{Command, DialOutcome, torrent::TorrentId};

use super::Engine;
use crate::plan::uses_embedded;

/// Addresses kept a torrent.
const BOOK_MAX: usize = 200;
/// Dials asked for at once a torrent.
const DIALS_MAX: usize = 30;
/// Banned addresses that are remembered; more are a sign that the ban is wrong.
const BANNED_MAX: usize = 4_096;
pub(super) const FIRST_BACKOFF: Duration = Duration::from_secs(60);
/// A dial that the shard had no room for.
const LATER: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(3_600);
/// Leeches of the embedded tracker that wait to be learned of.
pub(super) const LEECHES_MAX: usize = 1_024;
/// A leech of the embedded tracker has just been given our address. Whoever can reach us over TCP
/// has done so by then; where two dials cross, each end may take the other's connection for the
/// second one, and both are closed. Clients that try uTP first turn to TCP after 4 s.
const LEECH_AFTER: Duration = Duration::from_secs(2);
/// Whoever announces chooses the port, and behind a proxy all of them have this machine's address:
/// no services are dialled on their word.
const LEECH_PORT_MIN: u16 = 1_024;

#[derive(Default)]
pub struct PeerBooks {
    books: HashMap<TorrentId, Book>,
    /// They sent what they knew, or should have known, to be wrong.
    banned: HashSet<IpAddr>,
}

#[derive(Default)]
struct Book {
    entries: HashMap<SocketAddr, Entry>,
    /// Nothing is due before this time; `None`: look.
    next: Option<Instant>,
}

struct Entry {
    failures: u32,
    /// `None`: being dialled, connected, or ourselves.
    again: Option<Instant>,
}

impl PeerBooks {
    /// Notes addresses to be dialled at `at`; those that are our own or can't be dialled are left.
    /// In a full book new ones take the places of those that failed most.
    pub fn learn(&mut self, id: TorrentId, peers: &[SocketAddr], own: &[SocketAddr], at: Instant) {
        let book = self.books.entry(id).or_default();
        for peer in peers {
            let ip = peer.ip();
            let useless = peer.port() == 0 || ip.is_unspecified() || ip.is_multicast();
            let useless = useless || self.banned.contains(&ip.to_canonical());
            if useless || own.contains(peer) || book.entries.contains_key(peer) {
                continue;
            }
            if book.entries.len() >= BOOK_MAX && !book.drop_worst() {
                continue;
            }
            let entry = Entry { failures: 0, again: Some(at) };
            book.entries.insert(*peer, entry);
            book.next = None;
        }
    }

    /// Addresses whose time has come.
    fn due(&mut self, id: TorrentId, now: Instant) -> Vec<SocketAddr> {
        let Some(book) = self.books.get_mut(&id) else { return Vec::new() };
        if book.next.is_some_and(|next| next > now) {
            return Vec::new();
        }
        let due = book.entries.iter_mut();
        let due = due.filter(|(_, entry)| entry.again.is_some_and(|at| at <= now));
        let due: Vec<SocketAddr> = due
            .take(DIALS_MAX)
            .map(|(address, entry)| {
                entry.again = None;
                *address
            })
            .collect();
        let next = book.entries.values().filter_map(|entry| entry.again).min();
        book.next = Some(next.unwrap_or(now + BACKOFF_MAX));
        due
    }

    /// No torrent dials this address any more.
    /// Whom to ban on every shard, too: it may come by itself.
    pub fn banned(&self) -> &HashSet<IpAddr> {
        &self.banned
    }

    pub fn ban(&mut self, ip: IpAddr) {
        let ip = ip.to_canonical();
        if self.banned.len() < BANNED_MAX {
            self.banned.insert(ip);
        }
        for book in self.books.values_mut() {
            book.entries.retain(|address, _| address.ip() != ip);
        }
    }

    /// `downloading`: a seed is what the torrent wants.
    pub fn dialed(
        &mut self,
        id: TorrentId,
        address: SocketAddr,
        outcome: DialOutcome,
        downloading: bool,
    ) {
        let Some(book) = self.books.get_mut(&id) else { return };
        let Some(entry) = book.entries.get_mut(&address) else { return };
        let now = Instant::now();
        match outcome {
            // Also where the end of an earlier connection was told while it was dialled anew.
            DialOutcome::Connected => *entry = Entry { failures: 0, again: None },
            // Kept, so that a tracker that names it again does not get it dialled again.
            DialOutcome::Oneself => {}
            DialOutcome::Later => entry.again = Some(now + LATER),
            DialOutcome::Seed if downloading => entry.again = Some(now + FIRST_BACKOFF),
            DialOutcome::Seed => entry.again = Some(now + BACKOFF_MAX),
            DialOutcome::Refused | DialOutcome::Closed => {
                let backoff = FIRST_BACKOFF * 2u32.saturating_pow(entry.failures.min(10));
                entry.failures += 1;
                entry.again = Some(now + backoff.min(BACKOFF_MAX));
            }
        }
        book.next = None;
    }

    /// The torrent begins anew: resumed, hashed again, or more of it is wanted. Whoever was left
    /// for that may be dialled now; a dial that is due within moments keeps its time.
    pub fn begin_anew(&mut self, id: TorrentId, now: Instant) {
        let Some(book) = self.books.get_mut(&id) else { return };
        for entry in book.entries.values_mut() {
            if entry.again.is_some_and(|at| at > now + LATER) {
                *entry = Entry { failures: 0, again: Some(now) };
            }
        }
        book.next = None;
    }

    /// The torrent goes on under another number; whoever was connected is dialled `again`.
    pub fn renumber(&mut self, old: TorrentId, new: TorrentId, again: Duration) {
        let Some(mut book) = self.books.remove(&old) else { return };
        let again = Instant::now() + again;
        book.entries.values_mut().for_each(|entry| entry.again = entry.again.or(Some(again)));
        book.next = None;
        self.books.insert(new, book);
    }

    pub fn forget(&mut self, id: TorrentId) {
        self.books.remove(&id);
    }
}

impl Book {
    /// `false`: nobody in it has failed.
    fn drop_worst(&mut self) -> bool {
        let resting = self.entries.iter().filter(|(_, e)| e.failures > 0 && e.again.is_some());
        let worst = resting.max_by_key(|(_, e)| e.failures).map(|(address, _)| *address);
        worst.is_some_and(|address| self.entries.remove(&address).is_some())
    }
}

impl Engine {
    /// Nothing more from or to this address.
    pub(super) fn ban(&mut self, ip: IpAddr) {
        self.peers.ban(ip);
        self.globals.banned.store(Arc::new(self.peers.banned().clone()));
    }

    /// A leech announced to the embedded tracker for a torrent that it gives us out for.
    pub(super) fn leech_announced(&mut self, hash: InfoHash, address: SocketAddr) {
        let Some(id) = self.id_of(&hash) else { return };
        // A reload may have taken it from that tracker while this was on its way.
        let still = self.torrents.get(id).is_some_and(|t| uses_embedded(&t.wanted.trackers));
        if still && address.port() >= LEECH_PORT_MIN {
            let at = Instant::now() + LEECH_AFTER;
            self.peers.learn(id, &[address], &self.shards.listening, at);
        }
    }

    /// The torrent leaves its trackers' swarm for another one: peers go, on their way or connected.
    pub(super) fn leave_swarm(&mut self, id: TorrentId) {
        self.peers.forget(id);
        self.shards.send_all(|| Command::Disconnect(id));
    }

    /// Dials what is due of one torrent, on its home shard.
    pub(super) fn dial_due(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        if !torrent.is_active() {
            return;
        }
        let home = self.home(&torrent.info_hash());
        for address in self.peers.due(id, Instant::now()) {
            self.shards.send(home, Command::Dial { torrent: id, address });
        }
    }

    pub(super) fn dial_again(&mut self) {
        let ids: Vec<TorrentId> = self.peers.books.keys().copied().collect();
        ids.into_iter().for_each(|id| self.dial_due(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TorrentId = TorrentId(1);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_dialled_once_and_rests_after_a_failure() {
        let mut books = PeerBooks::default();
        let own = [address("10.0.0.1:6881")];
        let peers = ["10.0.0.1:6881", "10.0.0.2:1", "10.0.0.3:0", "0.0.0.0:5"].map(address);
        books.learn(ID, &peers, &own, Instant::now());
        let now = Instant::now();
        assert_eq!(books.due(ID, now), [address("10.0.0.2:1")]);
        assert!(books.due(ID, now).is_empty(), "it is under way");
        books.dialed(ID, address("10.0.0.2:1"), DialOutcome::Refused, false);
        assert!(books.due(ID, Instant::now() + Duration::from_secs(59)).is_empty());
        assert_eq!(books.due(ID, Instant::now() + Duration::from_secs(61)).len(), 1);
        books.dialed(ID, address("10.0.0.2:1"), DialOutcome::Oneself, false);
        books.learn(ID, &peers, &own, Instant::now());
        assert!(books.due(ID, Instant::now() + Duration::from_secs(9_999)).is_empty());
    }

    #[test]
    fn a_connected_peer_rests_though_the_end_of_an_earlier_connection_was_told_late() {
        let mut books = PeerBooks::default();
        let peer = address("10.0.0.2:1");
        let soon = Instant::now() + LEECH_AFTER;
        books.learn(ID, &[peer], &[], soon);
        assert!(books.due(ID, soon - Duration::from_millis(1)).is_empty(), "not yet");
        assert_eq!(books.due(ID, soon), [peer]);
        books.dialed(ID, peer, DialOutcome::Closed, false);
        books.dialed(ID, peer, DialOutcome::Connected, false);
        assert!(books.due(ID, soon + BACKOFF_MAX).is_empty());
        books.dialed(ID, peer, DialOutcome::Closed, false);
        assert_eq!(books.due(ID, soon + BACKOFF_MAX), [peer]);
    }

    #[test]
    fn a_download_comes_back_to_seeds_and_nobody_to_who_is_banned() {
        let mut books = PeerBooks::default();
        let (seed, liar) = (address("10.0.0.2:1"), address("10.0.0.3:1"));
        books.learn(ID, &[seed, liar], &[], Instant::now());
        assert_eq!(books.due(ID, Instant::now()).len(), 2);
        books.dialed(ID, seed, DialOutcome::Seed, true);
        books.dialed(ID, liar, DialOutcome::Closed, true);
        books.ban(liar.ip());
        books.learn(ID, &[address("10.0.0.3:2")], &[], Instant::now());
        let later = Instant::now() + FIRST_BACKOFF + Duration::from_secs(1);
        assert_eq!(books.due(ID, later), [seed]);
        books.dialed(ID, seed, DialOutcome::Seed, false);
        assert!(books.due(ID, later).is_empty(), "two seeds are no use to each other");
    }

    #[test]
    fn whoever_was_left_is_dialled_when_the_torrent_begins_anew() {
        let mut books = PeerBooks::default();
        let (seed, other) = (address("10.0.0.2:1"), address("10.0.0.3:1"));
        books.learn(ID, &[seed, other], &[], Instant::now());
        assert_eq!(books.due(ID, Instant::now()).len(), 2);
        books.dialed(ID, seed, DialOutcome::Closed, true);
        assert!(books.due(ID, Instant::now()).is_empty(), "it rests");
        let now = Instant::now();
        books.begin_anew(ID, now);
        assert_eq!(books.due(ID, now), [seed], "the other one is connected");
        books.dialed(ID, seed, DialOutcome::Later, true);
        books.begin_anew(ID, Instant::now());
        assert!(books.due(ID, Instant::now()).is_empty(), "there was no room just now");
    }

    #[test]
    fn a_book_is_bounded() {
        let mut books = PeerBooks::default();
        let peers: Vec<SocketAddr> =
            (1..1_000u16).map(|port| SocketAddr::from(([10, 0, 0, 9], port))).collect();
        books.learn(ID, &peers, &[], Instant::now());
        assert_eq!(books.books[&ID].entries.len(), BOOK_MAX);
        let failed = books.due(ID, Instant::now())[0];
        books.dialed(ID, failed, DialOutcome::Refused, false);
        books.learn(ID, &[address("10.0.0.7:7")], &[], Instant::now());
        assert_eq!(books.books[&ID].entries.len(), BOOK_MAX);
        assert!(!books.books[&ID].entries.contains_key(&failed), "the place of one that failed");
        assert!(books.books[&ID].entries.contains_key(&address("10.0.0.7:7")));
    }
}
