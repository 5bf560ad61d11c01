//! Serving requests: from a connection's queue to a batch of blocks.
//!
//! Owns: which of a connection's requests go into its next send; who is held back, and why.
//! Never: how bytes get into memory (storage), who is unchoked (choke). Flow: pump -> gather ->
//! send.
//!
//! A batch takes what is ready among the first requests, in their order, and never waits for more.
//! Reads are only of what was asked for, rounded to the chunk that a sequential reader will ask for
//! next.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use seedring_platform::{memory::Class, op::Io, send_batch::SendBatch};
use seedring_proto::{
    peer::UploadQueue,
    units::{Block, PieceIndex},
    wire::piece_header,
};

use crate::{
    connections::{Key, Open, Sending, Stage},
    contract::Globals,
    shard::Shard,
    stats::Stats,
    storage::{Gather, Part, Storage, cache::Waiter},
    torrent::{Contents, Local},
    verify::Verify,
};

/// Requests looked at in one pump.
const WINDOW: usize = 64;
/// Blocks that are looked up together rather than one by one.
const TOUCH_MIN: usize = 4;
/// Blocks for which a connection that missed the cache has its next requests read ahead.
const COLD_PUMPS: u8 = 16;
/// A block of 16 KiB that crosses files and chunks has rarely more parts than this.
const BLOCK_PARTS_ROOM: usize = 8;
/// Contiguous bytes asked for or served after which reads are of the largest class.
const SEQUENTIAL_BYTES: u64 = 128 << 10;
/// Bytes read behind what a sequential reader of cold content has asked for: 32 requests are two
/// reads, which leaves the disk idle while the peer asks again.
const READ_ON_BYTES: u64 = 2 << 20;
/// Blocks for which it goes on after a read that it began: four chunks.
const READ_ON_BLOCKS: u8 = 64;
/// In steps of the largest chunk.
const READ_ON_STEP: u64 = 256 << 10;

/// What a request led to.
enum Step {
    /// Taken into the batch (removed from the queue).
    Taken,
    /// Stays in the queue; look at the next.
    Later,
    /// Rejected (removed from the queue).
    Rejected,
    /// A rate limit is reached, until then.
    Throttled(Duration),
    /// No chunk can be had for a read.
    NoMemory,
    /// No further block can go now.
    Stop,
}

impl<I: Io> Shard<I> {
    /// Sends what a connection has ready, if no send of it is in flight. Returns how many bytes.
    pub(crate) fn pump(&mut self, key: Key) -> usize {
        let now = self.io.now();
        let Some(connection) = self.connections.get(key) else { return 0 };
        if connection.sending || self.stopping || matches!(connection.stage, Stage::Closing(_)) {
            return 0;
        }
        let mut batch = self.io.batch();
        self.take_messages(key, &mut batch);
        self.take_blocks(key, &mut batch, now);
        self.choke_unheard(key);
        self.take_messages(key, &mut batch); // rejects that came up meanwhile
        if batch.is_empty() {
            self.io.recycle(batch);
            self.settle_later(key);
            return 0;
        }
        let bytes = batch.len_bytes();
        self.send(key, batch);
        self.show_next(key);
        bytes
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
        // Messages are rare beside blocks, which never lie here: nothing is kept for the next one.
        connection.out = Vec::new();
    }

    fn take_blocks(&mut self, key: Key, batch: &mut SendBatch, now: Duration) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.held {
            return; // its turn comes: whoever asks more often gets no more
        }
        let out = &mut connection.out;
        let Stage::Open(open) = &mut connection.stage else { return };
        if open.session.queue().is_empty() || (!out.is_empty() && batch.is_full()) {
            return;
        }
        let local = self.torrents.get_mut(&open.torrent).expect("invariant: kept while in use");
        let contents = local.contents.clone().expect("invariant: kept while in use");
        // Another shard may have seen a file change: what this one read before is old then.
        let epoch = local.shared.epoch.load(Ordering::Acquire);
        self.storage.see_epoch(local.shared.id, epoch, &mut self.news);
        let mut serving = Serving {
            io: &mut self.io,
            stats: &mut self.stats,
            storage: &mut self.storage,
            verify: &mut self.verify,
            parts: &mut self.parts,
            globals: &self.options.globals,
            local,
            contents: &contents,
            key,
            now,
        };
        serving.touch(open);
        let was_cold = open.cold > 0;
        // Under a rate limit a turn is for one piece: a block of the next that goes out while the
        // disk brings this one's makes two that are begun.
        let (limited, mut piece) = (serving.is_limited(), None);
        let (mut at, mut taken) = (0, 0);
        for _ in 0..WINDOW {
            let asked = open.session.queue().get(at).map(|block| block.piece);
            let over = limited && piece.is_some() && piece != asked;
            let full = taken >= open.batch_blocks || !batch.room_for(1 + BLOCK_PARTS_ROOM, 13);
            let full = full || over;
            if at >= open.session.queue().len() {
                if was_cold {
                    serving.read_on(open);
                }
                return;
            }
            if full && open.cold == 0 && !was_cold {
                return;
            }
            match serving.step(open, out, at, batch, full) {
                Step::Taken => {
                    piece = piece.or(asked);
                    taken += 1;
                }
                Step::Rejected => {}
                Step::Later => {
                    piece = piece.or(asked);
                    at += 1;
                }
                Step::Throttled(until) => return self.throttle(key, until),
                Step::NoMemory => return self.starve(key),
                Step::Stop => return,
            }
        }
    }

    /// Held back by a rate limit, in turn.
    fn throttle(&mut self, key: Key, until: Duration) {
        if self.throttled.is_empty() || until < self.throttled_until {
            self.throttled_until = until;
        }
        if self.hold(key) {
            self.throttled.push_back(key);
        }
    }

    /// Found no memory for a read, in turn.
    fn starve(&mut self, key: Key) {
        self.stats.memory_stalls += 1;
        if self.hold(key) {
            self.starved.push_back(key);
        }
    }

    /// `false`: it is held already. One that is in both kinds of trouble waits for the first.
    fn hold(&mut self, key: Key) -> bool {
        self.connections.get(key).is_some_and(|c| !std::mem::replace(&mut c.held, true))
    }

    pub(crate) fn let_go(&mut self, held: VecDeque<Key>) {
        for key in held {
            if let Some(connection) = self.connections.get(key) {
                connection.held = false;
                self.enqueue(key);
            }
        }
    }

    /// When the limits of a connection are open again; `None`: now, or it is gone.
    pub(crate) fn held_until(&mut self, key: Key, now: Duration) -> Option<Duration> {
        let open = self.connections.get(key)?.open()?;
        let local = self.torrents.get(&open.torrent)?;
        let meters = [&self.options.globals.upload, &local.shared.upload];
        meters.into_iter().filter(|m| !m.is_open(now)).map(|m| m.ready_at()).max()
    }

    /// Memory came home: those who found none try again.
    pub(crate) fn wake_starved(&mut self) {
        if std::mem::take(&mut self.memory_came_home) {
            self.verify.ready |= std::mem::take(&mut self.verify.starved);
            let held = std::mem::take(&mut self.starved);
            self.let_go(held);
        }
    }

    /// Something that was waited for came or failed.
    pub(crate) fn wake(&mut self, waiter: Waiter) {
        self.memory_came_home |= !self.starved.is_empty();
        match waiter {
            Waiter::Connection(key) => self.enqueue(Key(key)),
            Waiter::Verify | Waiter::Scan => self.verify.ready = true,
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

/// What serving one connection in one pump needs of the shard.
struct Serving<'a, I: Io> {
    io: &'a mut I,
    stats: &'a mut Stats,
    storage: &'a mut Storage,
    verify: &'a mut Verify,
    parts: &'a mut Vec<Part>,
    globals: &'a Globals,
    local: &'a mut Local,
    contents: &'a Contents,
    key: Key,
    now: Duration,
}

impl<I: Io> Serving<'_, I> {
    /// One request of a connection's queue. `full`: only see to it that its bytes are being read.
    fn step(
        &mut self,
        open: &mut Open,
        out: &mut Vec<u8>,
        at: usize,
        batch: &mut SendBatch,
        full: bool,
    ) -> Step {
        let Some(block) = open.session.queue().get(at) else { return Step::Stop };
        if !full && let Some(until) = self.throttled_until() {
            return Step::Throttled(until);
        }
        let pieces = &self.local.shared.pieces;
        if !pieces.is_verified(block.piece) {
            if pieces.is_offered(block.piece) {
                let noted = self.verify.want(open.torrent, block.piece, self.key, self.local);
                return if noted { Step::Later } else { Step::NoMemory };
            }
            return self.reject(open, out, at);
        }
        let offset = self.contents.layout.piece_offset(block.piece) + u64::from(block.begin);
        if full {
            return match self.look_ahead(open, at, offset, block.length) {
                true => Step::Later,
                false => Step::Stop,
            };
        }
        match self.gather(open, at, offset, block.length) {
            Gather::Ready if !batch.room_for(1 + self.parts.len(), 13) => {
                if batch.is_empty() && batch.room_for(2, 13 + block.length as usize) {
                    self.copy(batch, block);
                    self.account(open, at, block, offset, batch.len_bytes());
                    return Step::Taken;
                }
                self.parts.clear();
                if batch.is_empty() { self.reject(open, out, at) } else { Step::Stop }
            }
            Gather::Ready => {
                batch.push_bytes(&piece_header(block));
                for part in self.parts.drain(..) {
                    batch.push_share(&part.share, part.from..part.to);
                }
                self.account(open, at, block, offset, batch.len_bytes());
                Step::Taken
            }
            Gather::Waiting => {
                open.cold = COLD_PUMPS;
                Step::Later
            }
            Gather::NoMemory => Step::NoMemory,
            Gather::Failed => self.reject(open, out, at),
        }
    }

    /// What the first requests of the queue will look for comes near.
    fn touch(&mut self, open: &Open) {
        let (queue, layout) = (open.session.queue(), &self.contents.layout);
        let count = queue.len().min(open.batch_blocks as usize);
        if count >= TOUCH_MIN {
            let blocks = (0..count).filter_map(|at| queue.get(at));
            let offsets = blocks.map(|b| layout.piece_offset(b.piece) + u64::from(b.begin));
            self.storage.touch(self.local.shared.id, self.contents, offsets);
        }
    }

    fn gather(&mut self, open: &Open, at: usize, offset: u64, length: u32) -> Gather {
        let contents = self.contents;
        self.storage.gather(
            self.io,
            self.stats,
            self.local.shared.id,
            contents,
            (offset, length),
            || class_for(open, contents, at, offset),
            Waiter::Connection(self.key.0),
            self.parts,
        )
    }

    /// Sees to it that a request's bytes are being read, as far as look-ahead may go.
    fn look_ahead(&mut self, open: &Open, at: usize, offset: u64, length: u32) -> bool {
        let contents = self.contents;
        self.storage.look_ahead(
            self.io,
            self.stats,
            self.local.shared.id,
            contents,
            (offset, length),
            || class_for(open, contents, at, offset),
            Waiter::Connection(self.key.0),
        )
    }

    /// Reads on behind the last request of a peer that reads cold content in order. What nobody
    /// came for yet counts as look-ahead, of which all readers together have a share of the pool.
    fn read_on(&mut self, open: &mut Open) {
        if open.run_bytes < SEQUENTIAL_BYTES {
            return;
        }
        let queue = open.session.queue();
        let last = queue.len().checked_sub(1).and_then(|last| queue.get(last));
        let from = last.map_or(open.run_end, |block| end_of(block, self.contents));
        if from.saturating_sub(open.run_end) > READ_ON_BYTES || from < open.run_end {
            return; // what is queued is somewhere else
        }
        let misses = self.stats.cache_misses;
        let (mut at, end) = (from, self.here_until(from, from + READ_ON_BYTES));
        while at < end {
            let length = (READ_ON_STEP - at % READ_ON_STEP).min(end - at) as u32;
            let (id, waiter) = (self.local.shared.id, Waiter::Connection(self.key.0));
            let (range, class) = ((at, length), || Class::K256);
            let (io, stats, contents) = (&mut *self.io, &mut *self.stats, self.contents);
            if !self.storage.look_ahead(io, stats, id, contents, range, class, waiter) {
                break;
            }
            at += u64::from(length);
        }
        if self.stats.cache_misses > misses {
            open.cold = READ_ON_BLOCKS; // still cold, though nothing had to be waited for
        }
    }

    /// Where the pieces end that are here from `at` on; at most `limit`. Of others the files may
    /// not be there, and a read that nobody asked for must not make that a trouble of the torrent.
    fn here_until(&self, at: u64, limit: u64) -> u64 {
        let (layout, pieces) = (&self.contents.layout, &self.local.shared.pieces);
        let (piece_bytes, limit) = (u64::from(layout.piece_bytes), limit.min(layout.total_bytes));
        let first = at / piece_bytes;
        let here = |piece: &u64| {
            let piece = PieceIndex(*piece as u32);
            pieces.is_verified(piece) || pieces.is_offered(piece)
        };
        let missing = (first..limit.div_ceil(piece_bytes)).find(|piece| !here(piece));
        missing.map_or(limit, |piece| limit.min(piece * piece_bytes)).max(at)
    }

    fn reject(&mut self, open: &mut Open, out: &mut Vec<u8>, at: usize) -> Step {
        self.stats.rejected += 1;
        open.session.reject(at, out);
        Step::Rejected
    }

    /// A block of more parts than a batch holds (hundreds of tiny files): copied together.
    fn copy(&mut self, batch: &mut SendBatch, block: Block) {
        batch.push_bytes(&piece_header(block));
        let mut whole = Vec::with_capacity(block.length as usize);
        self.parts.drain(..).for_each(|p| whole.extend_from_slice(&p.share[p.from..p.to]));
        batch.push_bytes(&whole);
    }

    fn is_limited(&self) -> bool {
        [&self.globals.upload, &self.local.shared.upload].iter().any(|m| m.rate().is_some())
    }

    /// Until when a rate limit holds everybody (or this torrent's peers) back.
    fn throttled_until(&self) -> Option<Duration> {
        let meters = [&self.globals.upload, &self.local.shared.upload];
        let closed = meters.into_iter().filter(|meter| !meter.is_open(self.now));
        closed.map(|meter| meter.ready_at()).max()
    }

    /// Notes a block as part of the batch, which ends with it at `end`, and pays for it.
    fn account(&mut self, open: &mut Open, at: usize, block: Block, offset: u64, end: usize) {
        let taken = open.session.take(at);
        debug_assert_eq!(taken, Some(block));
        let bytes = u64::from(block.length);
        self.globals.upload.take(bytes, self.now);
        self.local.shared.upload.take(bytes, self.now);
        if self.is_limited() && self.contents.piece_before(open.run_end) != Some(block.piece) {
            self.local.gives(block.piece);
        }
        if let Some(seed) = &mut self.local.super_seed {
            seed.served(self.key, block.piece, block.length, self.now);
        }
        open.flow().turn_bytes += bytes;
        open.run_bytes = if open.run_end == offset { open.run_bytes + bytes } else { bytes };
        open.run_end = offset + bytes;
        let flow = open.flow();
        let asked_at = flow.asked.next(self.now);
        flow.in_flight.push(Sending { asked_at, end: end as u32, length: block.length });
        open.cold = open.cold.saturating_sub(1);
    }
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

/// Where a block ends in the torrent.
fn end_of(block: Block, contents: &Contents) -> u64 {
    contents.layout.piece_offset(block.piece) + u64::from(block.begin) + u64::from(block.length)
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

#[cfg(test)]
mod tests {
    use seedring_platform::op::Op;

    use crate::{
        connections::send::tests::{ask, peer},
        verify::tests::{Bench, GOOD, bench},
    };

    const PIECE: u32 = 1 << 20;
    const CHUNK: u64 = 256 << 10;
    const LENGTH: u64 = 4 << 20;

    /// Offsets of the reads that go on while the first of these blocks are being sent, whose own
    /// lie below `served`.
    fn read_while_serving(blocks: impl Iterator<Item = u32>, served: u64) -> Vec<u64> {
        let mut bench: Bench = bench(64 << 20, PIECE, LENGTH);
        let key = peer(&mut bench);
        ask(&mut bench, key, PIECE, blocks);
        (0..4).for_each(|_| bench.complete(|offset| (offset < served).then_some(GOOD)));
        let ops = &bench.shard.io().ops;
        assert!(ops.iter().any(|op| matches!(op, Op::SendBatch { .. })), "something is sent");
        let offset = |op: &Op| match op {
            Op::Read { offset, .. } => Some(*offset),
            _ => None,
        };
        let mut offsets: Vec<u64> = ops.iter().filter_map(offset).collect();
        offsets.sort_unstable();
        offsets
    }

    #[test]
    fn who_reads_cold_content_in_order_is_read_ahead_of_and_not_past_the_end() {
        let ahead: Vec<u64> = (2..10).map(|n| n * CHUNK).collect();
        assert_eq!(read_while_serving(0..32, 2 * CHUNK), ahead, "2 MiB behind what was asked for");
        let to_the_end: Vec<u64> = (14..16).map(|n| n * CHUNK).collect();
        assert_eq!(read_while_serving(192..224, 14 * CHUNK), to_the_end);
    }

    #[test]
    fn who_reads_here_and_there_is_not_read_ahead_of() {
        let everywhere = (0..32).map(|n| n * 40 % 256);
        assert_eq!(read_while_serving(everywhere, LENGTH), []);
    }

    /// Whether a block goes out that the disk has brought, while it brings the first one's.
    fn sends_past_the_first(limit: Option<u64>, second: u32) -> bool {
        let mut bench: Bench = bench(64 << 20, PIECE, LENGTH);
        let key = peer(&mut bench);
        bench.shard.options.globals.upload.set(limit);
        ask(&mut bench, key, PIECE, [0, second].into_iter());
        let sends = |bench: &mut Bench| {
            bench.shard.io().ops.iter().any(|op| matches!(op, Op::SendBatch { .. }))
        };
        (0..4).for_each(|_| bench.complete(|offset| (offset > 0).then_some(GOOD)));
        let sent = sends(&mut bench);
        bench.complete(|_| Some(GOOD));
        assert!(sends(&mut bench), "with the first block there it goes on");
        sent
    }

    #[test]
    fn under_a_rate_limit_no_other_piece_is_begun_while_the_disk_brings_the_rest_of_one() {
        let limit = Some(64 << 20);
        assert!(sends_past_the_first(None, 64), "a block of the next piece");
        assert!(sends_past_the_first(limit, 32), "a block of the same piece");
        assert!(!sends_past_the_first(limit, 64));
    }
}
