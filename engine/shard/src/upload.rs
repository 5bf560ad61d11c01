//! Serving requests: from a connection's queue to a batch of blocks.
//!
//! Owns: which of a connection's requests go into its next send.
//! Never: how bytes get into memory (storage), who is unchoked (choke). Flow: pump -> gather -> send.
//!
//! A batch takes what is ready among the first requests, in their order, and never waits for more. Reads
//! are only of what was asked for, rounded to the chunk that a sequential reader will ask for next.

use std::time::Duration;

use seedring_platform::{memory::Class, op::Io, send_batch::SendBatch};
use seedring_proto::{
    peer::UploadQueue,
    units::{Block, PieceIndex},
    wire::piece_header,
};

use crate::{
    connections::{Key, Open, Stage},
    shard::Shard,
    storage::{Gather, cache::Waiter},
    torrent::{Contents, Local},
};

/// Requests looked at in one pump.
const WINDOW: usize = 64;
/// Pumps for which a connection that missed the cache has its next requests read ahead.
const COLD_PUMPS: u8 = 16;
/// A block of 16 KiB that crosses files and chunks has rarely more parts than this.
const BLOCK_PARTS_ROOM: usize = 8;
/// Contiguous bytes asked for or served after which reads are of the largest class.
const SEQUENTIAL_BYTES: u64 = 128 << 10;

/// What a request led to.
enum Step {
    /// Taken into the batch (removed from the queue).
    Taken,
    /// Stays in the queue; look at the next.
    Later,
    /// Rejected (removed from the queue).
    Rejected,
    /// No further block can go now.
    Stop,
}

impl<I: Io> Shard<I> {
    /// Sends what a connection has ready, if no send of it is in flight.
    pub(crate) fn pump(&mut self, key: Key) {
        let now = self.io.now();
        let Some(connection) = self.connections.get(key) else { return };
        if connection.sending || matches!(connection.stage, Stage::Closing) {
            return;
        }
        let mut batch = self.io.batch();
        self.take_messages(key, &mut batch);
        self.take_blocks(key, &mut batch, now);
        self.take_messages(key, &mut batch); // rejects that came up meanwhile
        if batch.is_empty() {
            self.io.recycle(batch);
            return;
        }
        if let Some(open) = self.connections.get(key).and_then(|c| c.open()) {
            open.in_flight_bytes = batch.len_bytes() as u32;
        }
        self.send(key, batch);
    }

    /// Moves waiting messages into the batch, as many bytes as it has room for.
    fn take_messages(&mut self, key: Key, batch: &mut SendBatch) {
        const CHUNK: usize = 16 << 10;
        let Some(connection) = self.connections.get(key) else { return };
        while !connection.out.is_empty() {
            let n = connection.out.len().min(CHUNK);
            if !batch.room_for(1, n) {
                // What is left goes first in the next batch: a message may be cut here, so no
                // block may come between. The caller adds blocks only to an emptied queue.
                return;
            }
            batch.push_bytes(&connection.out[..n]);
            connection.out.drain(..n);
        }
        if connection.out.capacity() > CHUNK {
            connection.out = Vec::new();
        }
    }

    fn take_blocks(&mut self, key: Key, batch: &mut SendBatch, now: Duration) {
        let mut at = 0;
        let mut taken = 0;
        for _ in 0..WINDOW {
            let Some(connection) = self.connections.get(key) else { return };
            let Stage::Open(open) = &mut connection.stage else { return };
            if !connection.out.is_empty() && batch.is_full() {
                return;
            }
            if at >= open.session.queue().len() {
                return;
            }
            let full = taken >= open.batch_blocks || !batch.room_for(1 + BLOCK_PARTS_ROOM, 13);
            if full && open.cold == 0 {
                return;
            }
            match self.step(key, at, batch, full, now) {
                Step::Taken => taken += 1,
                Step::Rejected => {}
                Step::Later => at += 1,
                Step::Stop => return,
            }
        }
    }

    /// One request of a connection's queue. `full`: only see to it that its bytes are being read.
    fn step(
        &mut self,
        key: Key,
        at: usize,
        batch: &mut SendBatch,
        full: bool,
        now: Duration,
    ) -> Step {
        let connection = self.connections.get(key).expect("invariant: the caller has it");
        let Stage::Open(open) = &mut connection.stage else { return Step::Stop };
        let local = self.torrents.get_mut(&open.torrent).expect("invariant: kept while in use");
        let contents = local.contents.clone().expect("invariant: kept while in use");
        let Some(block) = open.session.queue().get(at) else { return Step::Stop };
        if !full && self.is_throttled(key, now) {
            return Step::Stop;
        }
        let connection = self.connections.get(key).expect("invariant: the caller has it");
        let Stage::Open(open) = &mut connection.stage else { return Step::Stop };
        let local = self.torrents.get_mut(&open.torrent).expect("invariant: kept while in use");
        let pieces = &local.shared.pieces;
        if !pieces.is_verified(block.piece) {
            if pieces.is_offered(block.piece) {
                self.verify.want(open.torrent, block.piece, key, local);
                return Step::Later;
            }
            self.stats.rejected += 1;
            open.session.reject(at, &mut connection.out);
            return Step::Rejected;
        }
        let offset = contents.layout.piece_offset(block.piece) + u64::from(block.begin);
        let class = class_for(open, &contents, at, offset);
        let gathered = self.storage.gather(
            &mut self.io,
            &mut self.stats,
            local.shared.id,
            &contents,
            (offset, block.length),
            class,
            Waiter::Connection(key.0),
            &mut self.parts,
        );
        match gathered {
            Gather::Ready if full => {
                self.parts.clear();
                Step::Later
            }
            Gather::Ready if !batch.room_for(1 + self.parts.len(), 13) => {
                self.parts.clear();
                if batch.is_empty() { self.copy_block(key, at, batch, block) } else { Step::Stop }
            }
            Gather::Ready => {
                batch.push_bytes(&piece_header(block));
                for part in self.parts.drain(..) {
                    batch.push_share(&part.share, part.from..part.to);
                }
                account(open, local, &self.options.globals.upload, at, block, offset, now);
                Step::Taken
            }
            Gather::Waiting => {
                open.cold = COLD_PUMPS;
                Step::Later
            }
            Gather::NoMemory => {
                self.stats.memory_stalls += 1;
                if !self.starved.contains(&key) {
                    self.starved.push_back(key);
                }
                Step::Stop
            }
            Gather::Failed => {
                self.stats.rejected += 1;
                open.session.reject(at, &mut connection.out);
                Step::Rejected
            }
        }
    }

    /// A block with more parts than a batch holds (hundreds of tiny files): refused as such; peers
    /// ask for 16 KiB, which fits unless files are a few bytes each.
    fn copy_block(&mut self, key: Key, at: usize, batch: &mut SendBatch, block: Block) -> Step {
        let connection = self.connections.get(key).expect("invariant: the caller has it");
        let Stage::Open(open) = &mut connection.stage else { return Step::Stop };
        let local = self.torrents.get_mut(&open.torrent).expect("invariant: kept while in use");
        let contents = local.contents.clone().expect("invariant: kept while in use");
        let offset = contents.layout.piece_offset(block.piece) + u64::from(block.begin);
        let gathered = self.storage.gather(
            &mut self.io,
            &mut self.stats,
            local.shared.id,
            &contents,
            (offset, block.length),
            Class::K16,
            Waiter::Connection(key.0),
            &mut self.parts,
        );
        if gathered != Gather::Ready || !batch.room_for(2, 13 + block.length as usize) {
            self.parts.clear();
            self.stats.rejected += 1;
            open.session.reject(at, &mut connection.out);
            return Step::Rejected;
        }
        batch.push_bytes(&piece_header(block));
        let mut whole = Vec::with_capacity(block.length as usize);
        self.parts.drain(..).for_each(|p| whole.extend_from_slice(&p.share[p.from..p.to]));
        batch.push_bytes(&whole);
        let now = self.io.now();
        account(open, local, &self.options.globals.upload, at, block, offset, now);
        Step::Taken
    }

    /// Whether a rate limit holds the connection back now; if so it is in the queue of those.
    fn is_throttled(&mut self, key: Key, now: Duration) -> bool {
        let connection = self.connections.get(key).expect("invariant: the caller has it");
        let Stage::Open(open) = &mut connection.stage else { return false };
        let local = &self.torrents[&open.torrent];
        let global = &self.options.globals.upload;
        let closed = [global, &local.shared.upload].into_iter().filter(|m| !m.is_open(now));
        let Some(until) = closed.map(|meter| meter.ready_at()).max() else { return false };
        if self.throttled.is_empty() {
            self.throttled_until = until;
        }
        self.throttled_until = self.throttled_until.min(until);
        if !self.throttled.contains(&key) {
            self.throttled.push_back(key);
        }
        true
    }

    /// Connections held back by a limit get their turn again, in the order in which they came.
    pub(crate) fn wake_throttled(&mut self, now: Duration) {
        if self.throttled.is_empty() || now < self.throttled_until {
            return;
        }
        for key in std::mem::take(&mut self.throttled) {
            self.enqueue(key);
        }
    }

    /// Memory came home: those who found none try again.
    pub(crate) fn wake_starved(&mut self) {
        if !std::mem::take(&mut self.memory_came_home) || self.starved.is_empty() {
            return;
        }
        for key in std::mem::take(&mut self.starved) {
            self.enqueue(key);
        }
        self.verify.ready = true;
    }

    /// Something that was waited for came or failed.
    pub(crate) fn wake(&mut self, waiter: Waiter) {
        self.memory_came_home |= !self.starved.is_empty();
        match waiter {
            Waiter::Connection(key) => self.enqueue(Key(key)),
            Waiter::Verify => self.verify.ready = true,
        }
    }

    /// A piece was hashed: those who asked for it go on.
    pub(crate) fn piece_settled(&mut self, waiting: Vec<Key>, piece: PieceIndex, good: bool) {
        for key in waiting {
            if let Some(connection) = self.connections.get(key)
                && let Stage::Open(open) = &mut connection.stage
                && !good
            {
                open.session.reject_piece(piece, &mut connection.out);
            }
            self.enqueue(key);
        }
    }
}

/// Notes a block as part of the batch, and pays for it.
fn account(
    open: &mut Open,
    local: &Local,
    global: &crate::limits::Meter,
    at: usize,
    block: Block,
    offset: u64,
    now: Duration,
) {
    let taken = open.session.take(at);
    debug_assert_eq!(taken, Some(block));
    let asked_at = open.asked.next(now);
    let bytes = u64::from(block.length);
    global.take(bytes, now);
    local.shared.upload.take(bytes, now);
    open.run_bytes = if open.run_end == offset { open.run_bytes + bytes } else { bytes };
    open.run_end = offset + bytes;
    open.in_flight.push(asked_at);
    open.payload_in_flight += block.length;
    open.cold = open.cold.saturating_sub(1);
}

/// How much to read for a request: what the peer has asked for or served in one run says what it
/// will ask for next.
fn class_for(open: &Open, contents: &Contents, at: usize, offset: u64) -> Class {
    if open.run_end == offset && open.run_bytes >= SEQUENTIAL_BYTES {
        return Class::K256;
    }
    let bytes = run_ahead(open.session.queue(), contents, at);
    if bytes >= SEQUENTIAL_BYTES {
        Class::K256
    } else if bytes >= 48 << 10 {
        Class::K64
    } else {
        Class::K16
    }
}

/// Contiguous bytes queued from `at` on.
fn run_ahead(queue: &UploadQueue, contents: &Contents, at: usize) -> u64 {
    let start_of = |b: Block| contents.layout.piece_offset(b.piece) + u64::from(b.begin);
    let Some(first) = queue.get(at) else { return 0 };
    let (start, mut end) = (start_of(first), start_of(first) + u64::from(first.length));
    for next in at + 1..queue.len() {
        let Some(block) = queue.get(next) else { break };
        if start_of(block) != end || end - start >= SEQUENTIAL_BYTES {
            break;
        }
        end += u64::from(block.length);
    }
    end - start
}
