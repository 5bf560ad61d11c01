//! Whom each torrent knows and is connected to: who is dialled, and who is told of whom.
//!
//! Owns: a roster and a book a torrent (proto decides), the engine's bans, whose turn it is to
//! dial. Never: sockets; shards dial and close. Flow: tracker, leech, magnet or peer -> learn -> a
//! turn -> Command::Dial -> Event::Dialed -> roster; connections open and close -> book -> shards.

mod dial;
mod turns;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use seedring_proto::{
    address::is_global,
    peer::pex::{Book, contact_address},
    swarm::roster::{Bans, Options, Outcome, Roster, Source},
    units::InfoHash,
    wire::pex::{Contact, Flags},
};
use seedring_shard::{Command, DialOutcome, torrent::TorrentId};

use self::turns::Turns;
use super::{
    Engine,
    torrents::{State, Torrent},
};
use crate::plan::uses_embedded;

/// Whoever was connected is dialled again so long after its connections ended with its torrent's
/// number.
pub(super) const FIRST_BACKOFF: Duration = seedring_proto::swarm::roster::BACKOFF_FIRST;
/// Leeches of the embedded tracker that wait to be learned of.
pub(super) const LEECHES_MAX: usize = 1_024;
/// A leech of the embedded tracker has just been given our address. Whoever can reach us over TCP
/// has done so by then; where two dials cross, each end may take the other's connection for the
/// second one, and both are closed. Clients that try uTP first turn to TCP after 4 s.
const LEECH_AFTER: Duration = Duration::from_secs(2);
/// Whoever announces chooses the port, and behind a proxy all of them have this machine's address:
/// no services are dialled on their word.
const LEECH_PORT_MIN: u16 = 1_024;
/// What peers are told of changes no more often. Each copy is at most 13 KB.
const TELL_EVERY: Duration = Duration::from_secs(5);

pub struct Peers {
    swarms: HashMap<TorrentId, Swarm>,
    /// They sent what they knew, or should have known, to be wrong.
    bans: Bans,
    /// Where others reach us: where we listen, and what trackers see (BEP 24), one a family.
    own: Vec<SocketAddr>,
    told: Vec<SocketAddr>,
    connections_per_ip: Option<u32>,
    turns: Turns,
    /// Books that changed since they were put where shards read them.
    news: Vec<TorrentId>,
    turned_over: Instant,
}

/// What is known of one torrent's peers; nothing for most torrents of a large seedbox.
#[derive(Default)]
struct Swarm {
    roster: Option<Box<Roster>>,
    /// Shared with the shards as long as nothing changes.
    book: Option<Arc<Book>>,
    is_news: bool,
    told_at: Option<Duration>,
}

/// What a roster has to know of its torrent.
#[derive(Clone, Copy)]
pub(super) struct Facts {
    id: TorrentId,
    private: bool,
    /// It has something to get of a seed.
    wants: bool,
    /// BEP 11 may be spoken.
    exchange: bool,
}

impl Peers {
    pub fn new(own: Vec<SocketAddr>, connections_per_ip: Option<u32>) -> Peers {
        Peers {
            swarms: HashMap::new(),
            bans: Bans::default(),
            own,
            told: Vec::new(),
            connections_per_ip,
            turns: Turns::default(),
            news: Vec::new(),
            turned_over: Instant::now(),
        }
    }

    /// Whether a torrent knows of somebody to dial now.
    fn could_dial(&self, id: TorrentId, now: Duration) -> bool {
        let roster = self.swarms.get(&id).and_then(|swarm| swarm.roster.as_ref());
        roster.and_then(|roster| roster.due()).is_some_and(|due| due <= now)
    }

    /// A tracker says where it sees us. Peers see us there too: what is reckoned from addresses on
    /// both sides (BEP 40) comes out alike.
    pub fn seen_at(&mut self, address: SocketAddr) {
        let ip = address.ip();
        if self.told.contains(&address) || ip.is_unspecified() || ip.is_multicast() {
            return;
        }
        self.told.retain(|other| other.is_ipv4() != address.is_ipv4());
        self.told.push(address);
        // What trackers say first: behind address translation nobody sees where we listen.
        let own = [&self.told[..], &self.own].concat();
        let rosters = self.swarms.values_mut().filter_map(|swarm| swarm.roster.as_mut());
        rosters.for_each(|roster| roster.set_own(&own));
    }

    pub fn set_connections_per_ip(&mut self, max: Option<u32>) {
        self.connections_per_ip = max;
        let rosters = self.swarms.values_mut().filter_map(|swarm| swarm.roster.as_mut());
        rosters.for_each(|roster| roster.set_connections_per_ip(max));
    }

    /// Changes a torrent's roster, which is made if there is none.
    fn roster<T>(&mut self, facts: Facts, change: impl FnOnce(&mut Roster) -> T) -> T {
        let swarm = self.swarms.entry(facts.id).or_default();
        let roster = swarm.roster.get_or_insert_with(|| {
            let options = Options {
                connections_per_ip_max: self.connections_per_ip,
                private: facts.private,
                ..Options::default()
            };
            let mut roster = Roster::new(options, rand::random());
            roster.set_own(&[&self.told[..], &self.own].concat());
            Box::new(roster)
        });
        roster.set_complete(!facts.wants);
        let before = roster.dialling();
        let result = change(roster);
        self.turns.dialling += roster.dialling();
        self.turns.dialling -= before;
        self.turns.due(facts.id, roster.due());
        result
    }

    /// The same, where there is one.
    fn known_roster(&mut self, facts: Facts, change: impl FnOnce(&mut Roster)) {
        if self.swarms.get(&facts.id).is_some_and(|swarm| swarm.roster.is_some()) {
            self.roster(facts, change);
        }
    }

    /// It did not dial in its turn. If that was for want of room, it is not its turn again before
    /// `at`, unless something changes there.
    fn rest(&mut self, id: TorrentId, now: Duration, at: Duration) {
        if self.could_dial(id, now) {
            self.turns.due(id, Some(at));
        }
    }

    /// Notes addresses to be dialled at `at`.
    pub(super) fn learn(
        &mut self,
        facts: Facts,
        peers: &[SocketAddr],
        source: Source,
        at: Duration,
    ) {
        let welcome = peers.iter().filter(|peer| !self.bans.contains(peer.ip()));
        let welcome: Vec<SocketAddr> = welcome.copied().collect();
        if !welcome.is_empty() {
            self.roster(facts, |roster| {
                welcome.iter().for_each(|peer| _ = roster.learn_for(*peer, source, false, at));
            });
        }
    }

    /// Whom another peer named.
    pub(super) fn told(&mut self, facts: Facts, contacts: &[Contact]) {
        let of_use = |contact: &&Contact| facts.wants || !contact.flags.has(Flags::SEED);
        let mut contacts: Vec<Contact> = contacts.iter().filter(of_use).copied().collect();
        contacts.retain(|contact| !self.bans.contains(contact.address.ip()));
        if facts.exchange && !contacts.is_empty() {
            self.roster(facts, |roster| {
                for Contact { address, flags } in contacts {
                    roster.learn(address, Source::Pex, flags.has(Flags::SEED));
                }
            });
        }
    }

    /// A peer came to us. False: it is to be closed.
    pub(super) fn accepted(&mut self, facts: Facts, ip: IpAddr) -> bool {
        if self.bans.contains(ip) {
            return false;
        }
        // Where nothing is counted there is nothing to keep.
        if self.connections_per_ip.is_none() || !is_global(ip) {
            return true;
        }
        self.roster(facts, |roster| roster.accept(ip))
    }

    /// What became of an address that was given out to be dialled.
    pub(super) fn dialed(
        &mut self,
        facts: Facts,
        address: SocketAddr,
        outcome: DialOutcome,
        now: Duration,
    ) {
        let outcome = match outcome {
            DialOutcome::Connected => Outcome::Connected,
            DialOutcome::Seed => Outcome::NothingToSay,
            DialOutcome::Oneself => Outcome::Oneself,
            DialOutcome::Refused => Outcome::Failed,
            DialOutcome::Later => Outcome::NoRoom,
            DialOutcome::Closed => Outcome::Closed,
        };
        self.known_roster(facts, |roster| roster.dialled(address, outcome, now));
        match outcome {
            Outcome::Connected => self.here(facts, Some(address), Flags::OUTGOING),
            _ => self.gone(facts.id, Some(address)),
        }
    }

    /// Where a peer that came to us listens.
    pub(super) fn listens(
        &mut self,
        facts: Facts,
        address: SocketAddr,
        port: u16,
        seed: bool,
        now: Duration,
    ) {
        // Who has everything waits for those who want it.
        if facts.wants && !self.bans.contains(address.ip()) {
            self.roster(facts, |roster| roster.accepted_listens(address.ip(), port, seed, now));
        }
    }

    pub(super) fn left(
        &mut self,
        facts: Facts,
        address: SocketAddr,
        port: Option<u16>,
        now: Duration,
    ) {
        self.known_roster(facts, |roster| roster.accepted_closed(address.ip(), port, now));
        self.gone(facts.id, contact_address(address, false, port));
    }

    /// Others may be told of this peer.
    fn here(&mut self, facts: Facts, contact: Option<SocketAddr>, flags: Flags) {
        let Some(contact) = contact.filter(|_| facts.exchange) else { return };
        let swarm = self.swarms.entry(facts.id).or_default();
        let book = swarm.book.get_or_insert_default();
        if Arc::make_mut(book).joined(contact, flags) {
            self.is_news(facts.id);
        }
    }

    fn gone(&mut self, id: TorrentId, contact: Option<SocketAddr>) {
        let Some(contact) = contact else { return };
        let book = self.swarms.get_mut(&id).and_then(|swarm| swarm.book.as_mut());
        if book.is_some_and(|book| Arc::make_mut(book).left(contact)) {
            self.is_news(id);
        }
    }

    fn is_news(&mut self, id: TorrentId) {
        let swarm = self.swarms.get_mut(&id).filter(|swarm| !swarm.is_news);
        if let Some(swarm) = swarm {
            swarm.is_news = true;
            self.news.push(id);
        }
    }

    /// Books that shards are to have now.
    fn news(&mut self, now: Duration) -> Vec<(TorrentId, Arc<Book>)> {
        let mut due = Vec::new();
        self.news.retain(|id| {
            let Some(swarm) = self.swarms.get_mut(id).filter(|swarm| swarm.is_news) else {
                return false;
            };
            if swarm.told_at.is_some_and(|at| now.saturating_sub(at) < TELL_EVERY) {
                return true;
            }
            swarm.is_news = false;
            let Some(book) = &swarm.book else { return false };
            // To one peer alone there is nothing to tell.
            if book.here() > 1 || swarm.told_at.is_some() {
                swarm.told_at = Some(now);
                due.push((*id, book.clone()));
            }
            false
        });
        due
    }

    /// Nobody is connected any more: what they were told counts for nobody, and what is not needed
    /// to dial goes.
    fn deserted(&mut self, id: TorrentId) {
        let Some(swarm) = self.swarms.get_mut(&id) else { return };
        swarm.book = None;
        swarm.is_news = false;
        swarm.told_at = None;
        if swarm.roster.as_ref().is_none_or(|roster| roster.is_unused()) {
            self.forget(id);
        }
    }

    /// The torrent begins anew: resumed, hashed again, or more of it is wanted. Whoever was left
    /// for that may be dialled now; a dial that is due within moments keeps its time.
    pub(super) fn begin_anew(&mut self, facts: Facts, now: Duration) {
        self.known_roster(facts, |roster| roster.begin_anew(now));
    }

    /// The torrent goes on under another number; whoever was connected is dialled `again`.
    pub fn renumber(
        &mut self,
        old: TorrentId,
        new: TorrentId,
        private: bool,
        (now, again): (Duration, Duration),
    ) {
        let Some(mut swarm) = self.forget(old) else { return };
        if let Some(roster) = &mut swarm.roster {
            roster.restart(now, again);
            if private {
                roster.set_private();
            }
            self.turns.due(new, roster.due());
        }
        self.swarms.insert(new, Swarm { roster: swarm.roster, ..Swarm::default() });
    }

    fn forget(&mut self, id: TorrentId) -> Option<Swarm> {
        self.turns.forget(id);
        let swarm = self.swarms.remove(&id)?;
        self.turns.dialling -= swarm.roster.as_ref().map_or(0, |roster| roster.dialling());
        Some(swarm)
    }

    /// Nobody dials this address any more. False: it was banned already.
    fn ban(&mut self, ip: IpAddr) -> bool {
        let rosters = self.swarms.values_mut().filter_map(|swarm| swarm.roster.as_mut());
        rosters.for_each(|roster| roster.ban(ip));
        self.bans.add(ip)
    }

    /// Who named a peer, the most trusted.
    pub fn source_of(&self, id: TorrentId, contact: SocketAddr) -> Option<Source> {
        self.swarms.get(&id)?.roster.as_ref()?.source_of(contact)
    }
}

impl Engine {
    pub(super) fn facts(&self, id: TorrentId) -> Option<Facts> {
        let torrent = self.torrents.get(id)?;
        let wants = torrent.is_downloading() || torrent.state == State::Metadata;
        let exchange = self.exchanges(torrent);
        Some(Facts { id, private: torrent.private, wants, exchange })
    }

    /// Whether a torrent's peers may be told of each other.
    pub(super) fn exchanges(&self, torrent: &Torrent) -> bool {
        torrent.wanted.pex.unwrap_or(self.config.pex) && !torrent.private
    }

    /// A torrent's switch, for connections from now on; where it is off, nothing is said any more
    /// on those that are open.
    pub(super) fn apply_exchange(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        let exchanges = self.exchanges(torrent);
        torrent.shared.exchange.store(exchanges, Ordering::Relaxed);
        if !exchanges {
            torrent.shared.contacts.store(None);
            if let Some(swarm) = self.peers.swarms.get_mut(&id) {
                (swarm.book, swarm.told_at) = (None, None);
            }
        }
    }

    /// Addresses that a tracker or the user named: dialled as soon as it is this torrent's turn.
    pub(super) fn learn(&mut self, id: TorrentId, peers: &[SocketAddr], source: Source) {
        if let Some(facts) = self.facts(id) {
            self.peers.learn(facts, peers, source, Duration::ZERO);
        }
    }

    /// Nothing more from or to this address.
    pub(super) fn ban(&mut self, ip: IpAddr) {
        let ip = ip.to_canonical();
        if self.peers.ban(ip) {
            self.globals.banned.store(Arc::new(self.peers.bans.all().clone()));
        }
        self.shards.send_all(|| Command::Shun(ip));
    }

    /// A leech announced to the embedded tracker for a torrent that it gives us out for.
    pub(super) fn leech_announced(&mut self, hash: InfoHash, address: SocketAddr) {
        let Some(id) = self.id_of(&hash) else { return };
        // A reload may have taken it from that tracker while this was on its way.
        let still = self.torrents.get(id).is_some_and(|t| uses_embedded(&t.wanted.trackers));
        if still
            && address.port() >= LEECH_PORT_MIN
            && let Some(facts) = self.facts(id)
        {
            let at = self.shards.now() + LEECH_AFTER;
            self.peers.learn(facts, &[address], Source::Tracker, at);
        }
    }

    /// The torrent leaves its trackers' swarm for another one: peers go, on their way or connected.
    pub(super) fn leave_swarm(&mut self, id: TorrentId) {
        self.forget_peers(id);
        self.shards.send_all(|| Command::Disconnect(id));
    }

    pub(super) fn forget_peers(&mut self, id: TorrentId) {
        self.peers.forget(id);
        if let Some(torrent) = self.torrents.get(id) {
            torrent.shared.contacts.store(None);
        }
    }

    pub(super) fn dialed(&mut self, id: TorrentId, address: SocketAddr, outcome: DialOutcome) {
        let Some(facts) = self.facts(id) else { return };
        let now = self.shards.now();
        self.peers.dialed(facts, address, outcome, now);
        if outcome != DialOutcome::Connected {
            self.if_deserted(id);
        }
    }

    pub(super) fn accepted(
        &mut self,
        shard: usize,
        torrent: TorrentId,
        peer: u64,
        address: SocketAddr,
    ) {
        let Some(facts) = self.facts(torrent) else { return };
        if !self.peers.accepted(facts, address.ip()) {
            tracing::debug!("{address}: too many connections of that address, or banned");
            self.shards.send(shard, Command::Close { torrent, peer });
        }
    }

    pub(super) fn met(
        &mut self,
        id: TorrentId,
        address: SocketAddr,
        dialed: bool,
        listen_port: Option<u16>,
        seed: bool,
    ) {
        let Some(facts) = self.facts(id) else { return };
        let now = self.shards.now();
        if let Some(port) = listen_port.filter(|_| !dialed) {
            self.peers.listens(facts, address, port, seed, now);
        }
        let outgoing = if dialed { Flags::OUTGOING } else { Flags::default() };
        let flags = if seed { outgoing.with(Flags::SEED) } else { outgoing };
        self.peers.here(facts, contact_address(address, dialed, listen_port), flags);
    }

    pub(super) fn left(&mut self, id: TorrentId, address: SocketAddr, port: Option<u16>) {
        let Some(facts) = self.facts(id) else { return };
        let now = self.shards.now();
        self.peers.left(facts, address, port, now);
        self.if_deserted(id);
    }

    fn if_deserted(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        // Relaxed: a count. Who opens a connection just now is told of whoever comes from here on.
        if torrent.shared.connections.load(Ordering::Relaxed) == 0 {
            torrent.shared.contacts.store(None);
            self.peers.deserted(id);
        }
    }

    pub(super) fn contacts(&mut self, id: TorrentId, contacts: &[Contact]) {
        if let Some(facts) = self.facts(id) {
            self.peers.told(facts, contacts);
        }
    }

    /// Once a second: what changed of whom peers are told.
    pub(super) fn tell_contacts(&mut self) {
        let now = self.shards.now();
        for (id, book) in self.peers.news(now) {
            let Some(torrent) = self.torrents.get(id) else { continue };
            // Before its metadata is known, a torrent may be private.
            if self.exchanges(torrent) && torrent.state != State::Metadata {
                torrent.shared.contacts.store(Some(book));
            }
        }
    }
}

#[cfg(test)]
mod tests;
