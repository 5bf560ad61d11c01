//! Owns: the addresses of one torrent's peers: who said so, when each is dialled, and when again.
//! Never: dials, resolves a name, or dials for a private torrent whom its tracker did not name.
//! Flow: trackers, peer exchange, magnet links, incoming peers, LSD and DHT -> `learn`; `next` ->
//! addresses to dial; what became of each -> `dialled`.
//!
//! - Order: fewest failures first, then canonical peer priority (BEP 40).
//! - Connections to one IP address are bounded, with incoming ones counted ([`Roster::accept`]),
//!   and so is what one address or network may have in here. Addresses of local networks are not:
//!   many may be behind one.
//! - A connection ends a row of failures only if it lasted; retries are spread by a seed.
//! - In a full roster who failed most goes first, then who was named by the least trusted source,
//!   so that what peers tell cannot displace what the tracker said.
//! - Who has everything keeps few, and none of whom it is told that they have everything too.

mod bans;
mod entry;
mod live;
mod priority;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::address::{dialable, is_global};
use crate::tracker::jitter::Jitter;

pub use bans::Bans;
use entry::{Entry, State};
use live::Live;
pub use priority::priority;

/// Trackers name 50 to 200 at a time. It is 100 KB a torrent where it is full.
pub const ADDRESSES_MAX_DEFAULT: usize = 1_000;
/// The same for who has everything: leeches come to it by themselves, and it may have thousands of
/// torrents.
const ADDRESSES_COMPLETE_MAX: usize = 200;
/// The first rest after a failure; each further one doubles it.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(60);
pub const BACKOFF_MAX: Duration = Duration::from_secs(3_600);
/// Where there was no room to dial.
pub const LATER: Duration = Duration::from_secs(10);
/// A connection that lasted so long was no failure.
pub const LASTED: Duration = Duration::from_secs(60);
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
    /// Connections to one global IP address, those included that it opened. `None`: no bound.
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
    /// It has everything: not again for long if we have that too.
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
    live: Live,
    /// Dials under way.
    dialling: u32,
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
            live: Live::default(),
            dialling: 0,
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

    /// Whether nothing is lost with it.
    pub fn is_unused(&self) -> bool {
        self.entries.is_empty() && self.live.is_empty()
    }

    /// Dials under way.
    pub fn dialling(&self) -> u32 {
        self.dialling
    }

    /// The most trusted that named an address.
    pub fn source_of(&self, address: SocketAddr) -> Option<Source> {
        self.entries.get(&dialable(address)?).map(|entry| entry.source)
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

    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether we have all we want: then peers that have everything are not dialled, and few are
    /// kept.
    pub fn set_complete(&mut self, complete: bool) {
        if self.complete == complete {
            return;
        }
        self.complete = complete;
        if complete {
            self.entries.retain(|_, entry| !entry.is_idle() || !entry.seed);
            let excess = self.entries.len().saturating_sub(self.places());
            let idle = self.entries.iter().filter(|(_, entry)| entry.is_idle());
            let mut idle: Vec<_> = idle.map(|(at, entry)| (entry.worth_less(), *at)).collect();
            idle.sort_unstable_by(|one, other| other.cmp(one));
            for (_, address) in idle.into_iter().take(excess) {
                self.entries.remove(&address);
            }
        }
        self.look_again();
    }

    /// Now also, or only from now on: metadata says so late. Whom the tracker did not name goes.
    pub fn set_private(&mut self) {
        self.options.private = true;
        self.entries.retain(|_, entry| !entry.is_idle() || entry.source == Source::Tracker);
    }

    /// For connections from now on.
    pub fn set_connections_per_ip(&mut self, max: Option<u32>) {
        if self.options.connections_per_ip_max != max {
            self.options.connections_per_ip_max = max;
            self.look_again();
        }
    }

    fn places(&self) -> usize {
        let max = self.options.addresses_max;
        if self.complete { max.min(ADDRESSES_COMPLETE_MAX) } else { max }
    }

    /// Notes an address that may be dialled at once. `seed`: whoever named it says that it has
    /// everything. False: it cannot be dialled, is ourselves, from a source that this torrent may
    /// not use, or there is no place for it. Who is banned is the caller's to leave out.
    pub fn learn(&mut self, address: SocketAddr, source: Source, seed: bool) -> bool {
        self.learn_for(address, source, seed, Duration::ZERO)
    }

    /// The same, not to be dialled before `from`.
    pub fn learn_for(
        &mut self,
        address: SocketAddr,
        source: Source,
        seed: bool,
        from: Duration,
    ) -> bool {
        let allowed = !self.options.private || source == Source::Tracker;
        let Some(address) = dialable(address).filter(|_| allowed) else { return false };
        if self.own.contains(&address) {
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
        if self.complete && seed {
            return false;
        }
        let reckoned = self.own.iter().find_map(|own| priority(*own, address));
        let lot = (self.jitter.next_u64() >> 32) as u32;
        let entry = Entry::new(source, seed, reckoned.unwrap_or(lot), from);
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
                self.dialling += 1;
                self.live.add(address.ip());
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
        let complete = self.complete;
        let Some(entry) = self.entries.get_mut(&address).filter(|entry| entry.is_dialled()) else {
            return;
        };
        if entry.state == State::Dialling {
            self.dialling -= 1;
        }
        match outcome {
            Outcome::Connected => return entry.state = State::Connected { since: now },
            Outcome::Failed => entry.failed(now, &mut self.jitter),
            Outcome::Closed => entry.closed(now, &mut self.jitter),
            Outcome::NothingToSay if complete => {
                entry.state = State::Idle { again: now + BACKOFF_MAX };
            }
            // It may be a torrent that was complete just now, and wants more.
            Outcome::NothingToSay => entry.state = State::Idle { again: now + BACKOFF_FIRST },
            Outcome::Oneself => entry.state = State::Oneself,
            Outcome::NoRoom => entry.state = State::Idle { again: now + LATER },
        }
        self.ended(address);
    }

    /// Whether a connection that comes from this address may stay: it has not as many as it may.
    /// If so it is counted until [`Roster::accepted_closed`].
    pub fn accept(&mut self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let may = !self.ip_is_full(ip);
        if may {
            self.live.add(ip);
        }
        may
    }

    /// A peer that came to us said where it listens: it is kept, and not dialled while it is here.
    /// Who has everything keeps none of them: whoever found it finds it again.
    pub fn accepted_listens(&mut self, ip: IpAddr, port: u16, seed: bool, now: Duration) {
        let Some(address) = dialable(SocketAddr::new(ip, port)) else { return };
        if !self.complete {
            self.learn(address, Source::Incoming, seed);
        }
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

    /// It lied or sent what is wrong: its addresses are forgotten, those in use when they end.
    /// Connections to it are the caller's to close, as is whether it is learnt again.
    pub fn ban(&mut self, ip: IpAddr) {
        let ip = ip.to_canonical();
        for (_, entry) in self.entries.range_mut(ports_of(ip)) {
            entry.banned = true;
        }
        self.entries.retain(|_, entry| !entry.banned || !entry.is_idle());
    }

    /// All connections of the torrent are gone, as when it is admitted anew; whoever was connected
    /// is dialled `after` so long.
    pub fn restart(&mut self, now: Duration, after: Duration) {
        self.live = Live::default();
        self.dialling = 0;
        for entry in self.entries.values_mut().filter(|entry| entry.is_live()) {
            let spread = self.jitter.up_to(after / 4);
            entry.state = State::Idle { again: now + after + spread };
        }
        self.entries.retain(|_, entry| !entry.banned);
        self.look_again();
    }

    /// More is wanted than before, so that whoever was left or failed may be dialled now; who is
    /// due within moments keeps its time.
    pub fn begin_anew(&mut self, now: Duration) {
        for entry in self.entries.values_mut() {
            if entry.again().is_some_and(|again| again > now + LATER) {
                entry.failures = 0;
                entry.state = State::Idle { again: now };
            }
        }
        self.look_again();
    }

    /// A connection or dial counts no more.
    fn ended(&mut self, address: SocketAddr) {
        self.live.remove(address.ip());
        if self.entries.get(&address).is_some_and(|entry| entry.banned && entry.is_idle()) {
            self.entries.remove(&address);
        }
        self.look_again();
    }

    fn look_again(&mut self) {
        self.due = Some(Duration::ZERO);
    }

    fn ip_is_full(&self, ip: IpAddr) -> bool {
        self.options.connections_per_ip_max.is_some_and(|max| self.live.of(ip) >= max)
    }

    /// Whether there is a place for a new entry, which may be that of a worse one: of its IP
    /// address, its network, or anybody, whichever is full.
    fn make_room(&mut self, address: SocketAddr, entry: &Entry) -> bool {
        let places = self.places();
        let mut bounds = vec![(network(address.ip(), true), places)];
        if let Some(max) = self.options.connections_per_ip_max
            && is_global(address.ip())
        {
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
