//! Owns: peer exchange (BEP 11) both ways: what a torrent's connections are told of each other,
//! what each was told already, and what is taken from each.
//! Never: tells of a peer that we are not and were not connected to, or whose listening port we
//! do not know. Private torrents (BEP 27) have none of this: their sessions do not offer ut_pex.
//! Flow: connections open and close -> `Book`; once a minute each connection's `Sender` -> a
//! message; a peer's message -> `Receiver` -> read -> contacts for the roster.
//!
//! What everybody is told is kept once a torrent, numbered in the order in which it happened. So
//! a connection keeps the last number it was told and no list, and each message is what came
//! after that number: who joined and left in between cancels out. Of a peer that comes and goes
//! often it may hear once too often that it left, which changes nothing.
//!
//! A book is a value that one thread changes and others may read copies of; a connection's part is
//! 19 bytes, since there are thousands of connections that never say a word.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::address::{dialable, exchangeable};
use crate::wire::Violation;
use crate::wire::pex::{CONTACTS_MAX, Contact, Flags, PexMessage};

/// Between two messages to one peer (BEP 11).
pub const INTERVAL: Duration = Duration::from_secs(60);
/// Before the first message, so that it tells also of those who joined in the same moment.
pub const FIRST_AFTER: Duration = Duration::from_secs(5);
/// Peers that are here and told of: where there are more, those that came last, so that the
/// newcomers of a large swarm are not all sent to the same few.
const HERE_MAX: usize = 200;
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
const IGNORED_MAX: u8 = 10;

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

/// A peer that joined, or that joined and left. 28 bytes: torrents with a peer or two come by the
/// 10,000.
#[derive(Clone, Copy, Debug)]
struct Change {
    ip: [u8; 16],
    port: u16,
    flags: Flags,
    here: bool,
    number: u32,
    /// The number under which it joined first: who was told less never heard of it.
    joined: u32,
}

impl Change {
    fn address(&self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(self.ip).to_canonical(), self.port)
    }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// What the connections of one torrent may be told: at most 200 peers that are connected, and 256
/// that were.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// Changes are numbered from 1. There are enough numbers for 1,000 changes a second in 49 days;
    /// what comes then is not told.
    last: u32,
    /// By number. Short enough to be gone through for an address.
    changes: Vec<Change>,
    here: usize,
}

impl Book {
    /// Peers that are here and may be told of.
    pub fn here(&self) -> usize {
        self.here
    }

    /// A connection to a peer is open, and its [`contact_address`] known. Again for one that is
    /// here: its flags are now these, which is told to those who have not heard of it yet.
    /// False: nothing is new.
    pub fn joined(&mut self, address: SocketAddr, flags: Flags) -> bool {
        let Some(address) = dialable(address) else { return false };
        let place = self.place(address);
        let mut joined = None;
        if let Some(at) = place {
            let known = &mut self.changes[at];
            if known.here {
                return std::mem::replace(&mut known.flags, flags) != flags;
            }
            // Who heard of it before and not that it left must hear that it leaves again.
            joined = Some(known.joined);
            self.changes.remove(at);
        }
        if self.here == HERE_MAX
            && let Some(oldest) = self.changes.iter().position(|change| change.here)
        {
            self.changes.remove(oldest);
            self.here -= 1;
        }
        let noted = self.note(|number| Change {
            ip: octets(address.ip()),
            port: address.port(),
            flags,
            here: true,
            number,
            joined: joined.unwrap_or(number),
        });
        self.here += usize::from(noted);
        noted
    }

    /// The connection to a peer has closed. False: it was not told of.
    pub fn left(&mut self, address: SocketAddr) -> bool {
        let Some(at) = dialable(address).and_then(|address| self.place(address)) else {
            return false;
        };
        let change = self.changes[at];
        if !change.here {
            return false;
        }
        self.changes.remove(at);
        self.here -= 1;
        if self.changes.len() - self.here == DEPARTED_MAX
            && let Some(oldest) = self.changes.iter().position(|change| !change.here)
        {
            self.changes.remove(oldest);
        }
        self.note(|number| Change { here: false, number, ..change })
    }

    fn place(&self, address: SocketAddr) -> Option<usize> {
        let (ip, port) = (octets(address.ip()), address.port());
        self.changes.iter().position(|change| change.port == port && change.ip == ip)
    }

    fn note(&mut self, change: impl FnOnce(u32) -> Change) -> bool {
        if self.last == u32::MAX {
            return false;
        }
        self.last += 1;
        if self.changes.len() == self.changes.capacity() {
            self.changes.reserve_exact(self.changes.len() / 2 + 2);
        }
        self.changes.push(change(self.last));
        true
    }
}

/// What one connection was told, in a few words. Time is in whole seconds, rounded up, so that the
/// messages of many connections are due together.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    /// Number of the last change when it was told for the first time: of who had left by then it
    /// never hears.
    began: u32,
    /// Number of the last change that it was told, or that is not for it.
    told: u32,
    due_s: u32,
}

impl Sender {
    /// For a connection that has just opened.
    pub fn new(now: Duration) -> Self {
        Self { began: 0, told: 0, due_s: seconds_up(now + FIRST_AFTER) }
    }

    pub fn has_told(&self) -> bool {
        self.told > 0
    }

    /// No message is due before.
    pub fn due(&self) -> Duration {
        Duration::from_secs(self.due_s.into())
    }

    /// Nothing can be told now: looked at again a minute later.
    pub fn pass(&mut self, now: Duration) {
        self.due_s = seconds_up(now + INTERVAL);
    }

    /// The next message to a peer at `ip`, where one is due and there is something to tell.
    /// `itself`: the contact address of this peer, as far as known. Whatever comes of it, the next
    /// one is due a minute later.
    pub fn message(
        &mut self,
        book: &Book,
        ip: IpAddr,
        itself: Option<SocketAddr>,
        now: Duration,
    ) -> Option<PexMessage> {
        if now < self.due() {
            return None;
        }
        self.pass(now);
        let mut message = PexMessage::default();
        if self.told == 0 {
            self.began = book.last;
        }
        let told_before = self.told;
        let begin = book.changes.partition_point(|change| change.number <= told_before);
        for change in &book.changes[begin..] {
            let address = change.address();
            let fit = itself != Some(address) && exchangeable(address, ip).is_some();
            if fit && change.here {
                if message.added.len() == CONTACTS_MAX {
                    break;
                }
                message.added.push(Contact { address, flags: change.flags });
            } else if fit && change.number > self.began && change.joined <= told_before {
                if message.dropped.len() == CONTACTS_MAX {
                    break;
                }
                message.dropped.push(address);
            }
            self.told = change.number;
        }
        (!message.is_empty()).then_some(message)
    }
}

fn seconds_up(at: Duration) -> u32 {
    let whole = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
    whole.saturating_add(u32::from(at.subsec_nanos() > 0))
}

/// How often one connection may tell us.
#[derive(Clone, Copy, Default, Debug)]
pub struct Receiver {
    /// When the next message would come if all had kept their time, in seconds.
    next_s: u32,
    ignored: u8,
}

impl Receiver {
    /// Whether a message that came now is to be read. False: it came too early.
    ///
    /// # Errors
    /// Many messages that came too early.
    pub fn admit(&mut self, now: Duration) -> Result<bool, Violation> {
        let now_s = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        let interval_s = RECEIVE_INTERVAL.as_secs() as u32;
        if self.next_s > now_s.saturating_add(interval_s * EARLY_MAX) {
            self.ignored += 1;
            if self.ignored > IGNORED_MAX {
                return Err(Violation::PexFlood { ignored: self.ignored.into() });
            }
            return Ok(false);
        }
        self.next_s = self.next_s.max(now_s).saturating_add(interval_s);
        self.ignored = self.ignored.saturating_sub(1);
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
