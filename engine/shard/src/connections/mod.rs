//! The connections of a shard: who they are and what is in flight for each.
//!
//! Owns: the table of connections, their stages, the count of operations in flight of each.
//! Never: the protocol (proto's session), bytes of content. Flow: accept or dial -> greet -> open
//! -> closing.
//!
//! A key carries a generation: a completion for a connection that is gone finds nothing. A
//! connection's place is free only when its last operation has completed.

pub mod choke;
pub mod deadlines;
pub mod dial;
pub mod exchange;
pub mod greet;
pub mod receive;
pub mod send;
pub mod showing;
pub mod throttled;
pub mod turnover;
pub mod turns;

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use seedring_platform::descriptors::Socket;
use seedring_proto::{peer::session::Session, units::PeerId};

use crate::{
    download::Source,
    torrent::{Shared, TorrentId},
};

/// A connection on this shard: index in the low 32 bits, generation in the next 28.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Key(pub u64);

impl Key {
    fn index(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }
}

/// A blocks-a-send bound that adapts to how fast the peer takes them.
pub const BATCH_BLOCKS_MAX: u32 = 32;

pub struct Connection {
    pub socket: Socket,
    pub address: SocketAddr,
    /// We connected to it; the torrent that we did it for.
    pub dialed: Option<TorrentId>,
    /// The torrent in whose count it is, on this shard.
    pub admitted: Option<Arc<Shared>>,
    pub stage: Stage,
    /// Operations in the kernel's hands (a pending zero-copy notification is one).
    pub operations: u16,
    /// A single-shot receive is in flight (handshake), not a multishot one.
    pub receiving_once: bool,
    /// Bytes of messages to send before the next block.
    pub out: Vec<u8>,
    /// A send is in flight: at most one, and it is in order.
    pub sending: bool,
    /// In the shard's run queue.
    pub queued: bool,
    /// Among those that a rate limit holds back, or that found no memory.
    pub held: bool,
    /// Among those that may give memory back soon.
    pub settling: bool,
    /// When the shard looks at this connection next: the moment of its live reminder.
    pub deadline: Duration,
}

pub enum Stage {
    /// Dialled, not connected yet.
    Connecting,
    /// Until the handshake is whole: the bytes of it that came.
    Greeting(Vec<u8>),
    /// The handshake named a cold torrent: all bytes that came, until its contents are loaded.
    Waiting(TorrentId, Vec<u8>),
    Open(Box<Open>),
    /// Shut down; waits for its last operation.
    Closing(Option<Box<LastSend>>),
}

/// A block on its way into the socket.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    pub asked_at: Duration,
    /// Bytes of its batch up to its end.
    pub end: u32,
    pub length: u32,
}

/// What a closing connection has in flight: the send's completion says how much of it went.
pub struct LastSend {
    pub torrent: TorrentId,
    pub blocks: Vec<Sending>,
    /// Bytes of the batch that the socket took before this send.
    pub taken_bytes: u32,
}

/// A handshaken connection.
pub struct Open {
    pub session: Session,
    pub torrent: TorrentId,
    pub peer_id: PeerId,
    /// Sends and requests under way; `None` once a connection has settled.
    pub flow: Option<Box<Flow>>,
    /// Counted as interested.
    pub counted: bool,
    pub batch_blocks: u32,
    /// Where the last served block ended in the torrent, and how long the run was: sequential
    /// readers get larger reads.
    pub run_end: u64,
    pub run_bytes: u64,
    /// Pumps for which misses are looked for ahead of the send.
    pub cold: u8,
    pub zero_copy: ZeroCopy,
    /// What control knows of it.
    pub known: exchange::Known,
    /// Its part in our download, while there is one.
    pub source: Option<Box<Source>>,
    pub uploaded_bytes: u64,
    pub rate: Rate,
}

/// What a connection keeps while something moves on it, and only then: most rest.
#[derive(Default, Debug)]
pub struct Flow {
    /// When the requests in the queue came.
    pub asked: Asked,
    /// The blocks of the batch in flight.
    pub in_flight: Vec<Sending>,
    /// Bytes of the batch in flight that the socket has not taken.
    pub in_flight_bytes: u32,
    /// Bytes of the whole batch in flight.
    pub batch_bytes: u32,
    pub sent_at: Duration,
    /// Where the batch last handed to the kernel lies: what tells it from older ones that are
    /// still to be released.
    pub batch_at: usize,
    /// The socket did not take the tail of that batch; it is sent on when it is released.
    pub partial: bool,
    /// Zero-copy sends that the kernel still reads from: how many, and their bytes.
    pub pinned_sends: u32,
    pub pinned_bytes: usize,
    /// Sent since its turn among those that a rate limit holds back began.
    pub turn_bytes: u64,
}

impl Open {
    pub fn flow(&mut self) -> &mut Flow {
        self.flow.get_or_insert_default()
    }

    /// The queue has `requests` now; what is new came at `now`.
    pub fn queue_has(&mut self, requests: usize, now: Duration) {
        if requests > 0 || self.flow.is_some() {
            self.flow().asked.grow_to(requests, now);
        }
    }
}

/// Whether sends of a connection use zero-copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ZeroCopy {
    /// Never: loopback, or switched off.
    Off,
    /// On; so many sends of the last ones were copied after all.
    On { copied: u8 },
}

/// Arrival times of queued requests, a run a receive: requests are served in about the order in
/// which they came, so the oldest time goes with the next block.
#[derive(Default, Debug)]
pub struct Asked {
    runs: VecDeque<(Duration, u32)>,
    total: u32,
}

impl Asked {
    /// The queue has `queued` requests now; what is new came at `now`.
    pub fn grow_to(&mut self, queued: usize, now: Duration) {
        let new = (queued as u32).saturating_sub(self.total);
        if new > 0 {
            match self.runs.back_mut() {
                Some((at, count)) if *at == now => *count += new,
                _ => self.runs.push_back((now, new)),
            }
            self.total += new;
        }
        // Requests that were cancelled or rejected: the oldest times go.
        while self.total > queued as u32 {
            self.next(now);
        }
    }

    /// When the oldest request came.
    pub fn oldest(&self) -> Option<Duration> {
        self.runs.front().map(|(at, _)| *at)
    }

    /// The arrival time of the next request that is served.
    pub fn next(&mut self, now: Duration) -> Duration {
        let Some((at, count)) = self.runs.front_mut() else { return now };
        let at = *at;
        *count -= 1;
        self.total -= 1;
        if *count == 0 {
            self.runs.pop_front();
        }
        at
    }
}

/// Bytes a second over the last few seconds, without a timer.
#[derive(Clone, Copy, Default, Debug)]
pub struct Rate {
    bytes: u64,
    since: Duration,
    per_s: u64,
}

impl Rate {
    const WINDOW: Duration = Duration::from_secs(4);

    pub fn add(&mut self, bytes: u64, now: Duration) {
        self.settle(now);
        self.bytes += bytes;
    }

    pub fn per_s(&mut self, now: Duration) -> u64 {
        self.settle(now);
        self.per_s
    }

    fn settle(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.since);
        if elapsed >= Self::WINDOW {
            self.per_s = (u128::from(self.bytes) * 1_000 / elapsed.as_millis().max(1)) as u64;
            self.bytes = 0;
            self.since = now;
        }
    }
}

/// The table.
#[derive(Default)]
pub struct Connections {
    slots: Vec<(u32, Option<Connection>)>,
    free: Vec<u32>,
    live: usize,
}

impl Connections {
    pub fn insert(&mut self, connection: Connection) -> Key {
        self.live += 1;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                if self.slots.len() == self.slots.capacity() {
                    // An eighth at a time: doubled, half of a large table would lie idle.
                    self.slots.reserve_exact(self.slots.len() / 8 + 32);
                }
                self.slots.push((0, None));
                self.slots.len() as u32 - 1
            }
        };
        let slot = &mut self.slots[index as usize];
        assert!(slot.1.is_none(), "a free place holds a connection");
        slot.1 = Some(connection);
        Key(u64::from(slot.0) << 32 | u64::from(index))
    }

    pub fn get(&mut self, key: Key) -> Option<&mut Connection> {
        let (generation, connection) = self.slots.get_mut(key.index())?;
        if u64::from(*generation) != key.0 >> 32 {
            return None;
        }
        connection.as_mut()
    }

    /// Takes a connection out; its key finds nothing from now on.
    pub fn remove(&mut self, key: Key) -> Option<Connection> {
        self.get(key)?;
        let slot = &mut self.slots[key.index()];
        slot.0 = (slot.0 + 1) & 0x0fff_ffff;
        self.free.push(key.index() as u32);
        self.live -= 1;
        slot.1.take()
    }

    pub fn len(&self) -> usize {
        self.live
    }

    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    pub fn keys(&self) -> Vec<Key> {
        let key = |(i, (generation, c)): (usize, &(u32, Option<Connection>))| {
            c.as_ref().map(|_| Key(u64::from(*generation) << 32 | i as u64))
        };
        self.slots.iter().enumerate().filter_map(key).collect()
    }
}

impl Connection {
    /// Gives back what a burst left behind.
    pub fn shrink(&mut self) {
        if let Stage::Open(open) = &mut self.stage
            && !self.sending
            && open.flow.as_ref().is_none_or(|flow| flow.pinned_sends == 0)
            && open.session.queue().is_empty()
        {
            open.flow = None;
            open.session.shrink();
        }
    }

    pub fn open(&mut self) -> Option<&mut Open> {
        match &mut self.stage {
            Stage::Open(open) => Some(open),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_served_block_gets_the_time_at_which_it_was_asked_for() {
        let mut asked = Asked::default();
        let at = Duration::from_millis;
        asked.grow_to(2, at(1));
        asked.grow_to(5, at(7));
        let mut served: Vec<u128> = (0..3).map(|_| asked.next(at(9)).as_millis()).collect();
        asked.grow_to(1, at(8)); // one of the two left was cancelled
        asked.grow_to(2, at(9));
        served.extend((0..2).map(|_| asked.next(at(9)).as_millis()));
        assert_eq!(served, [1, 1, 7, 7, 9]);
    }

    #[test]
    fn a_rate_is_bytes_a_second_and_decays_to_nothing() {
        let mut rate = Rate::default();
        for ms in (0..8_000).step_by(100) {
            rate.add(100_000, Duration::from_millis(ms));
        }
        let per_s = rate.per_s(Duration::from_millis(8_000));
        assert!((950_000..=1_050_000).contains(&per_s), "{per_s}");
        rate.per_s(Duration::from_millis(12_500));
        assert_eq!(rate.per_s(Duration::from_millis(17_000)), 0);
    }
}
