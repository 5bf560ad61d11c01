//! Connect, announce, send again.
//!
//! Owns: connection ids, transactions, when what is sent to which address, and the outcome.
//! Never: opens a socket or reads a clock; believes a datagram whose transaction it did not open
//! at that address.
//! Flow: [`Exchanges::begin`] an announce, give it what arrives, send what [`Exchanges::poll`]
//! says until `None`, call again at [`Exchanges::deadline`].
//!
//! BEP 15 waits 15 s for an answer, then 30 s, and so on until 3840 s: two hours in which a torrent
//! would not turn to its next tracker. Clients give up sooner: libtorrent sends one packet an
//! address and waits 10 s. Here the waits are BEP 15's, but an announce ends with its time, that
//! of an HTTP announce (30 s), hence after two packets. The series of waits goes on over the
//! announces that follow, since it belongs to the address: an address that is silent gets a
//! connect request after 15, 30, 60, 120, 240 and then every 480 s, however many torrents name it,
//! and announces in between fail at once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::connection::{Connection, TurnedAway};
use super::packet::{self, ConnectionId, Family, PacketError};
use super::transactions::{Owner, TransactionId, Transactions};
use crate::tracker::announce::Request;
use crate::tracker::announcer::Failure;
use crate::tracker::reply::{Reply, Retry};
use crate::tracker::url::TrackerUrl;

/// Addresses that have nothing to remember are forgotten when there are this many.
const CONNECTIONS_SWEEP: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// The first wait for an answer (BEP 15); each further one is twice as long.
    pub wait: Duration,
    /// BEP 15 goes to 8, and then gives up. A seedbox does not, so it stays at 8 minutes.
    pub doublings_max: u32,
    /// A whole announce: connecting and sending again included.
    pub announce: Duration,
    /// BEP 15: a client may use a connection id for a minute.
    pub connection_life: Duration,
    /// A host's next address is asked when the one before is silent for this long.
    pub stagger: Duration,
    /// In place of `wait` and `announce` at shutdown. libtorrent gives a `stopped` 5 s.
    pub hurried_wait: Duration,
    pub hurried_announce: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(15),
            doublings_max: 5,
            announce: Duration::from_secs(30),
            connection_life: Duration::from_secs(60),
            stagger: Duration::from_secs(1),
            hurried_wait: Duration::from_secs(2),
            hurried_announce: Duration::from_secs(5),
        }
    }
}

pub type ExchangeId = u64;

/// What to announce, and under which address a tracker knows its user (BEP 41).
#[derive(Debug, Clone)]
pub struct Announcement {
    pub request: Request,
    pub url: TrackerUrl,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Send { to: SocketAddr, datagram: Vec<u8> },
    Ended { id: ExchangeId, outcome: Result<Reply, Failure> },
}

/// One announce.
#[derive(Debug)]
struct Exchange {
    what: Announcement,
    addresses: Vec<SocketAddr>,
    /// How many of them are asked to connect, from the front.
    dialled: usize,
    next_dial: Duration,
    end: Duration,
    /// The same for every packet of this announce, so that a late answer counts.
    transaction: Option<TransactionId>,
    waiting: Option<Waiting>,
    /// Who was sent the announce, once a packet.
    announced_to: Vec<SocketAddr>,
    /// A tracker that did not know its connection id was asked for another.
    renewed: bool,
    fault: Option<PacketError>,
}

/// An announce is on its way.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    at: SocketAddr,
    /// The number of the connection id that it bears.
    grant: u64,
    until: Duration,
}

#[derive(Debug)]
pub struct Exchanges {
    timing: Timing,
    hurried: bool,
    transactions: Transactions,
    connections: HashMap<SocketAddr, Connection>,
    /// As many as the governor lets run.
    exchanges: BTreeMap<ExchangeId, Exchange>,
    out: VecDeque<Action>,
    polled: Duration,
    strays: u64,
}

impl Exchanges {
    /// `seed` decides the transaction ids; it comes from the kernel, since who guesses one could
    /// answer in the tracker's place.
    #[must_use]
    pub fn new(timing: Timing, seed: [u8; 32]) -> Self {
        Self {
            timing,
            hurried: false,
            transactions: Transactions::new(seed),
            connections: HashMap::new(),
            exchanges: BTreeMap::new(),
            out: VecDeque::new(),
            polled: Duration::ZERO,
            strays: 0,
        }
    }

    /// Announces to one of `addresses`, those of one host; the first in front is preferred.
    pub fn begin(
        &mut self,
        now: Duration,
        id: ExchangeId,
        addresses: Vec<SocketAddr>,
        what: Announcement,
    ) {
        assert!(!addresses.is_empty(), "an announce without an address to send it to");
        if self.connections.len() >= CONNECTIONS_SWEEP {
            self.sweep(now);
        }
        let exchange = Exchange {
            what,
            addresses: addresses.into_iter().map(plain).collect(),
            dialled: 0,
            next_dial: now,
            end: now
                + if self.hurried { self.timing.hurried_announce } else { self.timing.announce },
            transaction: None,
            waiting: None,
            announced_to: Vec::new(),
            renewed: false,
            fault: None,
        };
        let before = self.exchanges.insert(id, exchange);
        assert!(before.is_none(), "an announce was begun twice");
    }

    /// Nobody waits for it any more: nothing further is sent for it, and no outcome comes.
    pub fn abandon(&mut self, id: ExchangeId) {
        if let Some(transaction) = self.exchanges.remove(&id).and_then(|e| e.transaction) {
            self.transactions.close(transaction);
        }
    }

    /// Shutdown: shorter waits, now and from here on.
    pub fn hurry(&mut self, now: Duration) {
        self.hurried = true;
        let soon = now + self.timing.hurried_wait;
        for connection in self.connections.values_mut() {
            connection.hurry(soon);
        }
        for exchange in self.exchanges.values_mut() {
            exchange.end = exchange.end.min(now + self.timing.hurried_announce);
            if let Some(waiting) = &mut exchange.waiting {
                waiting.until = waiting.until.min(soon);
            }
        }
    }

    /// A datagram arrived. What it leads to comes with the next [`Self::poll`].
    pub fn received(&mut self, now: Duration, from: SocketAddr, datagram: &[u8]) {
        let from = plain(from);
        let transaction = packet::transaction(datagram);
        let owner = transaction.and_then(|t| self.transactions.owner(t));
        match (owner, transaction) {
            (Some(Owner::Connect(asked)), Some(t)) if asked == from => {
                self.connected(now, from, t, packet::parse_connect(datagram));
            }
            (Some(Owner::Announce(id)), _) if self.announced(id, from) => {
                let answer = packet::parse_announce(datagram, Family::of(from.ip()));
                self.answered(now, id, from, answer);
            }
            _ => self.strays += 1,
        }
    }

    /// The kernel did not take a datagram to this address; `why` is fit to show.
    pub fn unsendable(&mut self, now: Duration, to: SocketAddr, why: String) {
        if let Some(connection) = self.connections.get_mut(&plain(to)) {
            connection.turn_away(now, TurnedAway::Unsendable(why));
        }
    }

    /// The next thing to do; call until `None`.
    pub fn poll(&mut self, now: Duration) -> Option<Action> {
        self.polled = now;
        if self.out.is_empty() {
            let ids: Vec<ExchangeId> = self.exchanges.keys().copied().collect();
            for id in ids {
                self.step(now, id);
            }
        }
        self.out.pop_front()
    }

    /// When [`Self::poll`] may have something, if nothing arrives before; right after a poll that
    /// gave `None`.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let mut next: Option<Duration> = None;
        let mut at = |time: Duration| {
            if time > self.polled {
                next = Some(next.map_or(time, |n| n.min(time)));
            }
        };
        for exchange in self.exchanges.values() {
            at(exchange.end);
            if let Some(waiting) = exchange.waiting {
                at(waiting.until);
                continue;
            }
            at(exchange.next_dial);
            for address in &exchange.addresses[..exchange.dialled] {
                if let Some(connection) = self.connections.get(address) {
                    connection.deadlines().into_iter().for_each(&mut at);
                }
            }
        }
        next
    }

    /// Datagrams that answered nothing we asked at that address.
    #[must_use]
    pub fn strays(&self) -> u64 {
        self.strays
    }

    #[must_use]
    pub fn running(&self) -> usize {
        self.exchanges.len()
    }

    /// Moves one announce as far as it can be moved now.
    fn step(&mut self, now: Duration, id: ExchangeId) {
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        if now >= exchange.end {
            return self.give_up(now, id, false);
        }
        if let Some(waiting) = exchange.waiting {
            if now < waiting.until {
                return;
            }
            // A tracker that began anew ignores ids of before, so the next packet has a fresh one.
            self.start_over(now, id, waiting);
        }
        if !self.dial(now, id) {
            self.give_up(now, id, true);
        }
    }

    /// Back to connecting, with the host's other addresses first.
    fn start_over(&mut self, now: Duration, id: ExchangeId, waiting: Waiting) {
        if let Some(connection) = self.connections.get_mut(&waiting.at) {
            connection.forget(waiting.grant);
        }
        let exchange = self.exchanges.get_mut(&id).expect("invariant: called for a running one");
        exchange.waiting = None;
        exchange.dialled = 0;
        exchange.next_dial = now;
        if let Some(at) = exchange.addresses.iter().position(|a| *a == waiting.at) {
            exchange.addresses[at..].rotate_left(1);
        }
    }

    /// Announces where there is a connection, else asks for one; false where no address is left
    /// that may answer in time.
    fn dial(&mut self, now: Duration, id: ExchangeId) -> bool {
        let exchange = self.exchanges.get_mut(&id).expect("invariant: called for a running one");
        let connected = exchange
            .addresses
            .iter()
            .find_map(|address| Some((*address, self.connections.get(address)?.id(now)?)));
        if let Some((address, connection)) = connected {
            self.announce(now, id, address, connection);
            return true;
        }
        loop {
            let mut hope = false;
            for at in 0..self.exchanges[&id].dialled {
                let exchange = &self.exchanges[&id];
                let (address, end) = (exchange.addresses[at], exchange.end);
                hope |= self.connect(now, address, end);
            }
            let exchange =
                self.exchanges.get_mut(&id).expect("invariant: called for a running one");
            if exchange.dialled == exchange.addresses.len() {
                return hope;
            }
            if hope && now < exchange.next_dial {
                return true;
            }
            exchange.dialled += 1;
            exchange.next_dial = now + self.timing.stagger;
        }
    }

    /// Sends a connect request where the schedule allows one; false where there is no hope of an
    /// answer before `end`.
    fn connect(&mut self, now: Duration, to: SocketAddr, end: Duration) -> bool {
        let wait = if self.hurried { self.timing.hurried_wait } else { self.timing.wait };
        let connection = self.connections.entry(to).or_default();
        if !connection.may_ask(now) {
            return connection.has_hope(now, end);
        }
        connection.ask(now, wait, self.timing.doublings_max);
        let asked = &mut connection.asked;
        let transaction = *asked.get_or_insert_with(|| self.transactions.open(Owner::Connect(to)));
        let datagram = packet::connect_request(transaction);
        self.out.push_back(Action::Send { to, datagram });
        true
    }

    fn announce(
        &mut self,
        now: Duration,
        id: ExchangeId,
        to: SocketAddr,
        (connection, grant): (ConnectionId, u64),
    ) {
        let wait = if self.hurried { self.timing.hurried_wait } else { self.timing.wait };
        let exchange = self.exchanges.get_mut(&id).expect("invariant: called for a running one");
        let transactions = &mut self.transactions;
        let transaction =
            *exchange.transaction.get_or_insert_with(|| transactions.open(Owner::Announce(id)));
        let Announcement { request, url } = &exchange.what;
        let family = Family::of(to.ip());
        let datagram = packet::announce_request(connection, transaction, request, url, family);
        let doublings = (exchange.announced_to.len() as u32).min(self.timing.doublings_max);
        let until = now + wait.saturating_mul(1 << doublings);
        exchange.waiting = Some(Waiting { at: to, grant, until });
        exchange.announced_to.push(to);
        self.out.push_back(Action::Send { to, datagram });
    }

    fn announced(&self, id: ExchangeId, at: SocketAddr) -> bool {
        self.exchanges.get(&id).is_some_and(|e| e.announced_to.contains(&at))
    }

    fn connected(
        &mut self,
        now: Duration,
        from: SocketAddr,
        transaction: TransactionId,
        answer: Result<ConnectionId, PacketError>,
    ) {
        let Some(connection) = self.connections.get_mut(&from) else { return };
        match answer {
            Ok(id) => connection.granted(now, id, self.timing.connection_life),
            Err(PacketError::Refused(text)) => {
                connection.turn_away(now, TurnedAway::Refused(text));
            }
            Err(fault) => return connection.note(fault),
        }
        connection.asked = None;
        self.transactions.close(transaction);
    }

    fn answered(
        &mut self,
        now: Duration,
        id: ExchangeId,
        from: SocketAddr,
        answer: Result<Reply, PacketError>,
    ) {
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        match answer {
            Ok(reply) => self.end(id, Ok(reply)),
            Err(PacketError::Refused(text)) => match exchange.waiting {
                // "Connection ID missmatch." (opentracker): it began anew, or we have another
                // address now. Once, and only where this id is the one that it speaks of.
                Some(waiting)
                    if waiting.at == from
                        && !exchange.renewed
                        && text.to_ascii_lowercase().contains("connection") =>
                {
                    exchange.renewed = true;
                    self.start_over(now, id, waiting);
                }
                _ => {
                    let failure = Failure {
                        message: text,
                        retry: Retry::Backoff,
                        refused: true,
                        maybe_heard: exchange.announced_to.iter().any(|a| *a != from),
                        unreached: false,
                    };
                    self.end(id, Err(failure));
                }
            },
            Err(fault) => exchange.fault = Some(fault),
        }
    }

    /// Says why. `hopeless` where it is known before its time that no answer will come.
    fn give_up(&mut self, now: Duration, id: ExchangeId, hopeless: bool) {
        let exchange = &self.exchanges[&id];
        let maybe_heard = !exchange.announced_to.is_empty();
        let known = exchange.addresses.iter().filter_map(|a| Some((a, self.connections.get(a)?)));
        let again = known.clone().map(|(_, c)| c.wait(now)).min().unwrap_or_default();
        let refused = !maybe_heard && known.clone().any(|(_, c)| c.is_refused());
        let fault = exchange.fault.as_ref().map(ToString::to_string);
        let message = fault.or_else(|| known.clone().find_map(|(a, c)| c.reason(*a)));
        let message = message.unwrap_or_else(|| match (maybe_heard, hopeless) {
            (true, _) => "the tracker does not answer, though it let us connect".to_owned(),
            (_, true) => format!(
                "the tracker is silent; it is asked again in {} s at the earliest",
                again.as_secs()
            ),
            _ => "no answer from the tracker".to_owned(),
        });
        let retry = if hopeless { Retry::After(again) } else { Retry::Backoff };
        // Silence is kept account of here, an address at a time.
        let unreached = false;
        self.end(id, Err(Failure { message, retry, refused, maybe_heard, unreached }));
    }

    fn end(&mut self, id: ExchangeId, outcome: Result<Reply, Failure>) {
        self.abandon(id);
        self.out.push_back(Action::Ended { id, outcome });
    }

    /// Forgets addresses without a connection whose next connect request may go out anyway.
    fn sweep(&mut self, now: Duration) {
        let transactions = &mut self.transactions;
        self.connections.retain(|_, connection| {
            let keep = !connection.is_idle(now);
            if let (false, Some(transaction)) = (keep, connection.asked) {
                transactions.close(transaction);
            }
            keep
        });
    }
}

/// Without IPv6's scope and flow, which the kernel fills in on what arrives.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

#[cfg(test)]
mod tests;
