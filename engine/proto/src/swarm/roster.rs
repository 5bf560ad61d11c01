//! Owns: the addresses of one torrent's peers: who said so, when each is dialled, and when again.
//! Never: dials, resolves a name, or dials for a private torrent whom its tracker did not name.
//! Flow: trackers, peer exchange, magnet links, incoming peers, LSD and DHT -> `learn`; `next` ->
//! addresses to dial; what became of each -> `dialled`.
//!
//! Made to take the place of control's books of addresses (`engine/peers.rs`), which hold what
//! trackers name for seeding: `learn`, `next` for `due`, `dialled` for `dialed` (its `Refused` is
//! `Failed`, `Seed` is `NothingToSay`, `Later` is `NoRoom`), `restart` for `renumber`. What is new:
//! - order: fewest failures first, then canonical peer priority (BEP 40);
//! - connections to one IP address are bounded, with incoming ones counted
//!   ([`Roster::accept`]), and so is what one address or network may have in here;
//! - a connection ends a row of failures only if it lasted; retries are spread by a seed;
//! - in a full roster who failed most goes first, then who was named by the least trusted source,
//!   so that what peers tell cannot displace what the tracker said.

mod entry;
mod priority;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::address::dialable;
use crate::tracker::jitter::Jitter;

use entry::{Entry, State};
pub use priority::priority;

/// Trackers name 50 to 200 at a time. It is 100 KB a torrent where it is full.
pub const ADDRESSES_MAX_DEFAULT: usize = 1_000;
/// The first rest after a failure; each further one doubles it.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(60);
pub const BACKOFF_MAX: Duration = Duration::from_secs(3_600);
/// Where there was no room to dial.
pub const LATER: Duration = Duration::from_secs(10);
/// A connection that lasted so long was no failure.
pub const LASTED: Duration = Duration::from_secs(60);
/// Addresses that are banned; the oldest are let off first.
const BANNED_MAX: usize = 1_000;
/// Ports of one IP address that are kept for each connection that may go there: a client that is
/// started anew listens on another.
const PORTS_A_CONNECTION: usize = 4;
/// One IPv4 /24 or IPv6 /64 may have this part of the places.
const NETWORK_ONE_IN: usize = 4;

/// Who named an address, the least trusted first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// Another peer (BEP 11).
    Pex,
    Dht,
    /// Local service discovery (BEP 14).
    Lsd,
    /// The peer itself: it came to us and said where it listens.
    Incoming,
    /// `x.pe` of a magnet link, which the user gave.
    Magnet,
    Tracker,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    pub addresses_max: usize,
    /// Connections to one IP address, those included that it opened. `None`: no bound, as where
    /// many peers are behind one router, or on one machine.
    pub connections_per_ip_max: Option<u32>,
    /// BEP 27: peers come from the tracker alone.
    pub private: bool,
}

impl Default for Options {
    fn default() -> Self {
        let addresses_max = ADDRESSES_MAX_DEFAULT;
        Self { addresses_max, connections_per_ip_max: Some(1), private: false }
    }
}

/// What became of an address that [`Roster::next`] gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The handshakes are exchanged. One of the others follows when the connection ends.
    Connected,
    /// Nobody is there, or nobody who speaks BitTorrent and has the torrent.
    Failed,
    /// It was connected, and is not any more.
    Closed,
    /// Both have everything: not again for long.
    NothingToSay,
    /// It was ourselves: never again.
    Oneself,
    /// Not tried.
    NoRoom,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Roster {
    options: Options,
    /// Where others reach us.
    own: Vec<SocketAddr>,
    complete: bool,
    entries: BTreeMap<SocketAddr, Entry>,
    /// Connections and dials under way to an IP address, and connections from it; none of 0.
    live: BTreeMap<IpAddr, u32>,
    /// With the number of the ban.
    banned: BTreeMap<IpAddr, u64>,
    bans: u64,
    jitter: Jitter,
    /// Nothing can be dialled before; `None`: nothing at all, as it stands.
    due: Option<Duration>,
}

impl Roster {
    /// `seed` spreads retries, and orders peers where our own address is not known.
    pub fn new(options: Options, seed: u64) -> Self {
        Self {
            options,
            own: Vec::new(),
            complete: false,
            entries: BTreeMap::new(),
            live: BTreeMap::new(),
            banned: BTreeMap::new(),
            bans: 0,
            jitter: Jitter::new(seed),
            due: None,
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where others reach us: not dialled, and what priorities are reckoned from, the first of
    /// each family.
    pub fn set_own(&mut self, own: &[SocketAddr]) {
        self.own = own.iter().copied().filter_map(dialable).collect();
        let own = &self.own;
        self.entries.retain(|address, entry| !entry.is_idle() || !own.contains(address));
        for (address, entry) in &mut self.entries {
            if let Some(reckoned) = own.iter().find_map(|own| priority(*own, *address)) {
                entry.priority = reckoned;
            }
        }
        self.look_again();
    }

    /// Whether we have all we want: then peers that have everything are not dialled.
    pub fn set_complete(&mut self, complete: bool) {
        self.complete = complete;
        self.look_again();
    }

    /// Notes an address. `seed`: whoever named it says that it has everything. False: it cannot
    /// be dialled, is ourselves, banned, from a source that this torrent may not use, or there is
    /// no place for it.
    pub fn learn(&mut self, address: SocketAddr, source: Source, seed: bool) -> bool {
        let allowed = !self.options.private || source == Source::Tracker;
        let Some(address) = dialable(address).filter(|_| allowed) else { return false };
        if self.own.contains(&address) || self.is_banned(address.ip()) {
            return false;
        }
        if let Some(known) = self.entries.get_mut(&address) {
            known.source = known.source.max(source);
            if known.seed && !seed {
                known.seed = false;
                self.look_again();
            }
            return true;
        }
        let reckoned = self.own.iter().find_map(|own| priority(*own, address));
        let lot = (self.jitter.next_u64() >> 32) as u32;
        let entry = Entry::new(source, seed, reckoned.unwrap_or(lot));
        if !self.make_room(address, &entry) {
            return false;
        }
        self.entries.insert(address, entry);
        self.look_again();
        true
    }

    /// Appends addresses to dial now, at most `room`, the best first. The caller says of each
    /// what became of it.
    pub fn next(&mut self, now: Duration, room: usize, dial: &mut Vec<SocketAddr>) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        let complete = self.complete;
        let wanted = |entry: &Entry| entry.is_idle() && !(complete && entry.seed);
        let mut candidates: Vec<(u32, u32, SocketAddr)> = self
            .entries
            .iter()
            .filter(|(_, entry)| wanted(entry) && entry.again().is_some_and(|at| at <= now))
            .map(|(address, entry)| (entry.failures, u32::MAX - entry.priority, *address))
            .collect();
        candidates.sort_unstable();
        let mut given = 0;
        for (.., address) in candidates {
            if given == room {
                break;
            }
            if self.ip_is_full(address.ip()) {
                continue;
            }
            if let Some(entry) = self.entries.get_mut(&address) {
                entry.state = State::Dialling;
                *self.live.entry(address.ip()).or_default() += 1;
                dial.push(address);
                given += 1;
            }
        }
        let rest = self
            .entries
            .iter()
            .filter(|(address, entry)| wanted(entry) && !self.ip_is_full(address.ip()));
        self.due = rest.filter_map(|(_, entry)| entry.again()).min();
    }

    /// When [`Roster::next`] may have something, at the earliest. `None`: not before something
    /// changes here.
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// What became of an address that `next` gave, and then of its connection.
    pub fn dialled(&mut self, address: SocketAddr, outcome: Outcome, now: Duration) {
        let Some(address) = dialable(address) else { return };
        let Some(entry) = self.entries.get_mut(&address).filter(|entry| entry.is_dialled()) else {
            return;
        };
        match outcome {
            Outcome::Connected => return entry.state = State::Connected { since: now },
            Outcome::Failed => entry.failed(now, &mut self.jitter),
            Outcome::Closed => entry.closed(now, &mut self.jitter),
            Outcome::NothingToSay => entry.state = State::Idle { again: now + BACKOFF_MAX },
            Outcome::Oneself => entry.state = State::Oneself,
            Outcome::NoRoom => entry.state = State::Idle { again: now + LATER },
        }
        self.ended(address);
    }

    /// Whether a connection that comes from this address may stay: it is not banned and has not
    /// as many as it may. If so it is counted until [`Roster::accepted_closed`].
    pub fn accept(&mut self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let may = !self.is_banned(ip) && !self.ip_is_full(ip);
        if may {
            *self.live.entry(ip).or_default() += 1;
        }
        may
    }

    /// A peer that came to us said where it listens: it is kept, and not dialled while it is here.
    pub fn accepted_listens(&mut self, ip: IpAddr, port: u16, now: Duration) {
        let Some(address) = dialable(SocketAddr::new(ip, port)) else { return };
        self.learn(address, Source::Incoming, false);
        if let Some(entry) = self.entries.get_mut(&address).filter(|entry| entry.is_idle()) {
            entry.state = State::Accepted { since: now };
        }
    }

    /// A connection that was accepted has closed; `port`: where the peer said that it listens.
    pub fn accepted_closed(&mut self, ip: IpAddr, port: Option<u16>, now: Duration) {
        let ip = ip.to_canonical();
        let address = port.and_then(|port| dialable(SocketAddr::new(ip, port)));
        if let Some(address) = address
            && let Some(entry) = self.entries.get_mut(&address)
            && matches!(entry.state, State::Accepted { .. })
        {
            entry.closed(now, &mut self.jitter);
        }
        self.ended(SocketAddr::new(ip, port.unwrap_or(0)));
    }

    /// It lied or sent what is wrong: not dialled and not accepted any more. Connections to it
    /// are the caller's to close.
    pub fn ban(&mut self, ip: IpAddr) {
        let ip = ip.to_canonical();
        self.bans += 1;
        self.banned.insert(ip, self.bans);
        if self.banned.len() > BANNED_MAX {
            let oldest = self.banned.iter().min_by_key(|(_, number)| **number);
            if let Some(oldest) = oldest.map(|(ip, _)| *ip) {
                self.banned.remove(&oldest);
            }
        }
        self.entries.retain(|address, entry| address.ip() != ip || !entry.is_idle());
    }

    pub fn is_banned(&self, ip: IpAddr) -> bool {
        self.banned.contains_key(&ip.to_canonical())
    }

    /// All connections of the torrent are gone, as when it is admitted anew.
    pub fn restart(&mut self, now: Duration) {
        self.live.clear();
        for entry in self.entries.values_mut().filter(|entry| entry.is_live()) {
            let spread = self.jitter.up_to(BACKOFF_FIRST / 4);
            entry.state = State::Idle { again: now + BACKOFF_FIRST + spread };
        }
        let banned = &self.banned;
        self.entries.retain(|address, _| !banned.contains_key(&address.ip()));
        self.look_again();
    }

    /// A connection or dial counts no more.
    fn ended(&mut self, address: SocketAddr) {
        let ip = address.ip();
        if let Some(live) = self.live.get_mut(&ip) {
            *live -= 1;
            if *live == 0 {
                self.live.remove(&ip);
            }
        }
        if self.is_banned(ip) && self.entries.get(&address).is_some_and(Entry::is_idle) {
            self.entries.remove(&address);
        }
        self.look_again();
    }

    fn look_again(&mut self) {
        self.due = Some(Duration::ZERO);
    }

    fn ip_is_full(&self, ip: IpAddr) -> bool {
        let live = self.live.get(&ip).copied().unwrap_or(0);
        self.options.connections_per_ip_max.is_some_and(|max| live >= max)
    }

    /// Whether there is a place for a new entry, which may be that of a worse one: of its IP
    /// address, its network, or anybody, whichever is full.
    fn make_room(&mut self, address: SocketAddr, entry: &Entry) -> bool {
        let places = self.options.addresses_max;
        let mut bounds = vec![(network(address.ip(), true), places)];
        if let Some(max) = self.options.connections_per_ip_max {
            let network_places = (places / NETWORK_ONE_IN).max(1);
            bounds.push((network(address.ip(), false), network_places));
            let ports = PORTS_A_CONNECTION.saturating_mul(max as usize);
            bounds.push((ports_of(address.ip()), ports));
        }
        // The narrowest first: the place that is won there may be all that is needed.
        for (range, max) in bounds.into_iter().rev() {
            if self.entries.range(range.clone()).count() < max {
                continue;
            }
            let idle = self.entries.range(range).filter(|(_, entry)| entry.is_idle());
            let worst = idle.max_by_key(|(_, entry)| entry.worth_less());
            let Some((worst, _)) = worst.filter(|(_, worst)| entry.is_better_than(worst)) else {
                return false;
            };
            let worst = *worst;
            self.entries.remove(&worst);
        }
        true
    }
}

/// Every port of an IP address, as the entries are sorted.
fn ports_of(ip: IpAddr) -> RangeInclusive<SocketAddr> {
    SocketAddr::new(ip, 0)..=SocketAddr::new(ip, u16::MAX)
}

/// The addresses of the same IPv4 /24 or IPv6 /64; or all that there are.
fn network(ip: IpAddr, all: bool) -> RangeInclusive<SocketAddr> {
    let last_v6 = IpAddr::from([0xff; 16]);
    let (first, last) = match ip {
        _ if all => (IpAddr::from([0; 4]), last_v6),
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            (IpAddr::from([a, b, c, 0]), IpAddr::from([a, b, c, 0xff]))
        }
        IpAddr::V6(v6) => {
            let network = v6.to_bits() & !u128::from(u64::MAX);
            let last = network | u128::from(u64::MAX);
            (IpAddr::from(network.to_be_bytes()), IpAddr::from(last.to_be_bytes()))
        }
    };
    SocketAddr::new(first, 0)..=SocketAddr::new(last, u16::MAX)
}

#[cfg(test)]
mod tests;
