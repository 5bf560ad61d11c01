//! Owns: peer exchange (BEP 11) both ways: what a torrent's connections are told of each other,
//! what each was told already, and what is taken from each.
//! Never: tells of a peer that we are not and were not connected to, or whose listening port we
//! do not know; says or takes a thing for private torrents (BEP 27).
//! Flow: connections open and close -> `Book`; once a minute each connection's `Sender` -> a
//! message; a peer's message -> `Receiver` -> contacts for the roster.
//!
//! What everybody is told is kept once a torrent, numbered in the order in which it happened. So
//! a connection keeps the last number it was told and no list, and each message is what came
//! after that number: who joined and left in between cancels out. Of a peer that comes and goes
//! often it may hear once too often that it left, which changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::address::{dialable, exchangeable};
use crate::wire::Violation;
use crate::wire::pex::{CONTACTS_MAX, Contact, Flags, PexMessage};

/// Between two messages to one peer (BEP 11).
pub const INTERVAL: Duration = Duration::from_secs(60);
/// Before the first message, so that it tells also of those who joined in the same moment.
pub const FIRST_AFTER: Duration = Duration::from_secs(5);
/// Peers that left, kept to be told as dropped; the oldest are forgotten first. Who is not told
/// tries an address in vain, no more.
const DEPARTED_MAX: usize = 256;

/// What counts as a minute from others: "there should be some tolerance to clients that send a
/// PEX message just under a minute since the last" (the Azureus and µTorrent conventions).
const RECEIVE_INTERVAL: Duration = Duration::from_secs(50);
/// Messages that may come before their time: the first one, as ours, and one that was held up in
/// the network while the next was made.
const EARLY_MAX: u32 = 1;
/// Messages ignored for their time, less those that kept it, before the connection closes.
const IGNORED_MAX: u32 = 10;

/// The address at which others reach a peer. `None` while it is not known: the port that an
/// incoming connection comes from is not the one that the peer listens on.
pub fn contact_address(
    remote: SocketAddr,
    we_dialled: bool,
    listen_port: Option<u16>,
) -> Option<SocketAddr> {
    let port = if we_dialled { Some(remote.port()) } else { listen_port };
    port.and_then(|port| dialable(SocketAddr::new(remote.ip(), port)))
}

/// A peer that joined, or that joined and left.
#[derive(Clone, Copy, Debug)]
struct Change {
    contact: Contact,
    /// The number under which it joined first: who was told less never heard of it.
    joined: u64,
    here: bool,
}

/// What the connections of one torrent may be told. Grows with the peers that are connected, and
/// with at most 256 that were.
#[derive(Clone, Debug)]
pub struct Book {
    private: bool,
    last: u64,
    changes: BTreeMap<u64, Change>,
    numbers: BTreeMap<SocketAddr, u64>,
    departed: BTreeSet<u64>,
}

impl Book {
    pub fn new(private: bool) -> Self {
        Self {
            private,
            last: 0,
            changes: BTreeMap::new(),
            numbers: BTreeMap::new(),
            departed: BTreeSet::new(),
        }
    }

    /// A connection to a peer is open, and its [`contact_address`] known. Again for one that is
    /// here: its flags are now these, which is told to those who have not heard of it yet.
    pub fn joined(&mut self, address: SocketAddr, flags: Flags) {
        let Some(address) = dialable(address).filter(|_| !self.private) else { return };
        let contact = Contact { address, flags };
        let mut joined = None;
        if let Some(number) = self.numbers.get(&address).copied() {
            match self.changes.get_mut(&number) {
                Some(change) if change.here => return change.contact = contact,
                known => joined = known.map(|change| change.joined),
            }
            // Who heard of it before and not that it left must hear that it leaves again.
            self.forget(number);
        }
        self.note(|number| Change { contact, joined: joined.unwrap_or(number), here: true });
    }

    /// The connection to a peer has closed.
    pub fn left(&mut self, address: SocketAddr) {
        let Some(number) = dialable(address).and_then(|address| self.numbers.get(&address)) else {
            return;
        };
        let number = *number;
        let Some(change) = self.changes.get(&number).copied().filter(|change| change.here) else {
            return;
        };
        self.forget(number);
        let number = self.note(|_| Change { here: false, ..change });
        self.departed.insert(number);
        if self.departed.len() > DEPARTED_MAX
            && let Some(oldest) = self.departed.first().copied()
        {
            self.forget(oldest);
        }
    }

    fn note(&mut self, change: impl FnOnce(u64) -> Change) -> u64 {
        self.last += 1;
        let change = change(self.last);
        self.numbers.insert(change.contact.address, self.last);
        self.changes.insert(self.last, change);
        self.last
    }

    fn forget(&mut self, number: u64) {
        self.departed.remove(&number);
        if let Some(change) = self.changes.remove(&number) {
            self.numbers.remove(&change.contact.address);
        }
    }
}

/// What one connection was told, in a few words.
#[derive(Clone, Debug)]
pub struct Sender {
    ip: IpAddr,
    /// Number of the last change before it opened: of who had left by then it never hears.
    opened: u64,
    /// Number of the last change that it was told, or that is not for it.
    told: u64,
    due: Duration,
}

impl Sender {
    /// For a connection to a peer at `ip` that has just opened and said a number for ut_pex.
    pub fn new(book: &Book, ip: IpAddr, now: Duration) -> Self {
        Self { ip, opened: book.last, told: 0, due: now + FIRST_AFTER }
    }

    /// No message is due before.
    pub fn due(&self) -> Duration {
        self.due
    }

    /// The next message, where one is due and there is something to tell. `itself`: the contact
    /// address of this peer, as far as known.
    pub fn message(
        &mut self,
        book: &Book,
        itself: Option<SocketAddr>,
        now: Duration,
    ) -> Option<PexMessage> {
        if now < self.due {
            return None;
        }
        let mut message = PexMessage::default();
        let told_before = self.told;
        for (number, change) in book.changes.range(self.told + 1..) {
            let address = change.contact.address;
            let fit = itself != Some(address) && exchangeable(address, self.ip).is_some();
            if fit && change.here {
                if message.added.len() == CONTACTS_MAX {
                    break;
                }
                message.added.push(change.contact);
            } else if fit && *number > self.opened && change.joined <= told_before {
                if message.dropped.len() == CONTACTS_MAX {
                    break;
                }
                message.dropped.push(address);
            }
            self.told = *number;
        }
        if message.is_empty() {
            return None;
        }
        self.due = now + INTERVAL;
        Some(message)
    }
}

/// What is taken from one connection.
#[derive(Clone, Debug)]
pub struct Receiver {
    private: bool,
    ip: IpAddr,
    /// When the next message would come if all had kept their time.
    next: Duration,
    ignored: u32,
}

impl Receiver {
    /// For a connection to a peer at `ip`.
    pub fn new(private: bool, ip: IpAddr) -> Self {
        Self { private, ip, next: Duration::ZERO, ignored: 0 }
    }

    /// Reads a payload. `None`: it came too early, or the torrent is private, and is not looked
    /// at.
    ///
    /// # Errors
    /// No bencode, or many messages that came too early.
    pub fn receive(
        &mut self,
        payload: &[u8],
        now: Duration,
    ) -> Result<Option<PexMessage>, Violation> {
        if self.next > now + RECEIVE_INTERVAL * EARLY_MAX {
            self.ignored += 1;
            if self.ignored > IGNORED_MAX {
                return Err(Violation::PexFlood { ignored: self.ignored });
            }
            return Ok(None);
        }
        self.next = self.next.max(now) + RECEIVE_INTERVAL;
        self.ignored = self.ignored.saturating_sub(1);
        if self.private {
            return Ok(None);
        }
        PexMessage::parse(payload, self.ip).map(Some)
    }
}

#[cfg(test)]
mod tests;
