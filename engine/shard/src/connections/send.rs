//! Sends and their completions.
//!
//! Owns: one ordered send in flight a connection, partial sends, whether zero-copy pays on a route.
//! Never: what is in a batch. Flow: pump fills a batch -> submit -> sent (-> released) -> pump.

use std::{collections::HashMap, io, net::IpAddr, sync::atomic::Ordering, time::Duration};

use seedring_platform::{
    op::{Io, Op, Shutdown},
    send_batch::SendBatch,
};

use super::{BATCH_BLOCKS_MAX, Key, LastSend, Open, Sending, Stage, ZeroCopy};
use crate::{shard::Shard, token::Target, torrent::TorrentId};

/// A send that took less lets the next one be larger, one that took more makes it smaller: a fast
/// peer gets large sends, a slow one does not pin the cache.
const SEND_QUICK: Duration = Duration::from_millis(50);
const SEND_SLOW: Duration = Duration::from_millis(250);
/// Smaller sends are cheaper copied.
const ZERO_COPY_BYTES_MIN: usize = 16 << 10;
/// So many sends reported as copied, and the route is left alone for a while.
const COPIED_MAX: u8 = 3;
/// Zero-copy pages stay pinned until the peer acknowledges them: so many sends and bytes a
/// connection, then copies. It also bounds the operations in flight a connection.
const PINNED_SENDS_MAX: u32 = 4;
const PINNED_BYTES_MAX: usize = 2 << 20;
/// A peer that takes fewer blocks a send is slow: it gets copies.
const ZERO_COPY_BLOCKS_MIN: u32 = 4;
const ROUTE_REST: Duration = Duration::from_secs(600);
const ROUTES_MAX: usize = 4_096;

/// Routes on which zero-copy was copied after all (loopback, veth, some tunnels), by the peer's
/// /24 or /64.
#[derive(Debug, Default)]
pub struct Routes {
    copied: HashMap<IpAddr, Duration>,
}

impl Routes {
    fn of(ip: IpAddr) -> IpAddr {
        match ip.to_canonical() {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                IpAddr::from([a, b, c, 0])
            }
            IpAddr::V6(v6) => {
                let s = v6.segments();
                IpAddr::from([s[0], s[1], s[2], s[3], 0, 0, 0, 0])
            }
        }
    }

    pub fn is_worth(&self, ip: IpAddr, now: Duration) -> bool {
        self.copied.get(&Self::of(ip)).is_none_or(|until| *until <= now)
    }

    pub fn was_copied(&mut self, ip: IpAddr, now: Duration) {
        if self.copied.len() >= ROUTES_MAX {
            self.copied.retain(|_, until| *until > now);
        }
        if self.copied.len() < ROUTES_MAX {
            self.copied.insert(Self::of(ip), now + ROUTE_REST);
        }
    }
}

impl Open {
    /// The batch in flight is with the socket: the blocks that it was. None if it was the
    /// handshake, on its way since before the connection was open.
    fn batch_taken(&mut self, now: Duration) -> Vec<Sending> {
        let Some(flow) = self.flow.as_mut().filter(|flow| flow.in_flight_bytes > 0) else {
            return Vec::new();
        };
        let took = now.saturating_sub(flow.sent_at);
        if took < SEND_QUICK {
            self.batch_blocks = (self.batch_blocks * 2).min(BATCH_BLOCKS_MAX);
        } else if took > SEND_SLOW {
            self.batch_blocks = (self.batch_blocks / 2).max(1);
        }
        flow.in_flight_bytes = 0;
        std::mem::take(&mut flow.in_flight)
    }

    /// The room of one batch's list serves the next.
    fn keep_room(&mut self, mut blocks: Vec<Sending>) {
        blocks.clear();
        if let Some(flow) = &mut self.flow {
            flow.in_flight = blocks;
        }
    }
}

impl<I: Io> Shard<I> {
    /// Hands a batch to the kernel. The connection has none in flight.
    pub(crate) fn send(&mut self, key: Key, batch: Box<SendBatch>) {
        let now = self.io.now();
        let connection = self.connections.get(key).expect("invariant: the caller has it");
        assert!(!connection.sending, "one ordered send in flight a connection");
        connection.sending = true;
        connection.operations += 1;
        let socket = connection.socket.clone();
        let mut zero_copy = false;
        if let Stage::Open(open) = &mut connection.stage {
            let bytes = batch.len_bytes();
            let wanted = matches!(open.zero_copy, ZeroCopy::On { .. })
                && bytes >= ZERO_COPY_BYTES_MIN
                && open.batch_blocks >= ZERO_COPY_BLOCKS_MIN;
            let flow = open.flow();
            flow.sent_at = now;
            flow.batch_at = std::ptr::from_ref(&*batch).addr();
            if flow.in_flight_bytes == 0 {
                flow.batch_bytes = bytes as u32; // not the rest of one
            }
            flow.in_flight_bytes = bytes as u32;
            zero_copy = wanted
                && flow.pinned_sends < PINNED_SENDS_MAX
                && flow.pinned_bytes + bytes <= PINNED_BYTES_MAX;
        }
        self.stats.sends += 1;
        self.stats.zero_copy_sends += u64::from(zero_copy);
        self.submit_now(Op::SendBatch {
            token: Target::Send(key).token(),
            socket,
            batch,
            zero_copy,
        });
    }

    /// The socket took bytes, or the connection is broken.
    pub(crate) fn sent(
        &mut self,
        key: Key,
        result: io::Result<usize>,
        batch: Option<Box<SendBatch>>,
    ) {
        let Some(connection) = self.connections.get(key) else { return };
        let Some(mut batch) = batch else {
            // Zero-copy: the operation goes on until the pages are released. What was taken is
            // counted now, and the next batch may go.
            self.taken(key, result);
            return;
        };
        connection.operations -= 1;
        connection.sending = false;
        let closing = matches!(connection.stage, Stage::Closing(_));
        match result {
            Ok(n) if n < batch.len_bytes() && !closing && n > 0 => {
                self.stats.sent_bytes += n as u64;
                batch.advance(n);
                return self.send(key, batch);
            }
            Ok(n) if n == batch.len_bytes() => {
                self.io.recycle(batch);
                self.memory_came_home = true;
                self.finished(key, n);
            }
            result => {
                self.io.recycle(batch);
                self.memory_came_home = true;
                if closing {
                    self.finished(key, result.unwrap_or(0));
                }
                self.close(key, Shutdown::Reset);
            }
        }
        self.settle_closing(key);
    }

    /// A zero-copy send was taken whole (MSG_WAITALL), or in part, or failed. Its pages stay with
    /// the kernel; the socket does not.
    fn taken(&mut self, key: Key, result: io::Result<usize>) {
        let Some(connection) = self.connections.get(key) else { return };
        let mut whole = true;
        if let Stage::Open(open) = &mut connection.stage {
            let flow = open.flow();
            flow.pinned_sends += 1;
            flow.pinned_bytes += flow.in_flight_bytes as usize;
            if let Ok(n) = &result
                && *n < flow.in_flight_bytes as usize
            {
                // The rest can't be sent before the kernel gives the batch back; `released` does
                // it then, and until then the send counts as in flight.
                whole = false;
                flow.in_flight_bytes -= *n as u32;
                flow.partial = true;
                self.stats.sent_bytes += *n as u64;
            }
        }
        if !whole {
            return;
        }
        connection.sending = false;
        connection.operations -= 1;
        match result {
            Ok(n) => self.finished(key, n),
            Err(_) => self.close(key, Shutdown::Reset),
        }
        self.settle_closing(key);
    }

    /// The kernel let go of a zero-copy batch.
    pub(crate) fn released(&mut self, key: Key, mut batch: Box<SendBatch>, copied: bool) {
        let now = self.io.now();
        self.memory_came_home = true;
        self.stats.zero_copy_copied += u64::from(copied);
        let Some(connection) = self.connections.get(key) else {
            self.io.recycle(batch);
            return;
        };
        let ip = connection.address.ip();
        if let Stage::Open(open) = &mut connection.stage {
            let flow = open.flow.as_mut().expect("invariant: kept while a send is pinned");
            flow.pinned_sends -= 1;
            flow.pinned_bytes -= batch.len_bytes();
            if let ZeroCopy::On { copied: times } = &mut open.zero_copy {
                *times = if copied { *times + 1 } else { 0 };
                if *times >= COPIED_MAX {
                    open.zero_copy = ZeroCopy::Off;
                    self.choking.routes.was_copied(ip, now);
                }
            }
            if flow.partial && flow.batch_at == std::ptr::from_ref(&*batch).addr() {
                flow.partial = false;
                let rest = flow.in_flight_bytes as usize;
                batch.advance(batch.len_bytes() - rest);
                connection.operations -= 1;
                connection.sending = false;
                return self.send(key, batch);
            }
        }
        self.io.recycle(batch);
    }

    /// A whole batch is with the socket; of a closing connection's, so many bytes.
    fn finished(&mut self, key: Key, bytes: usize) {
        let now = self.io.now();
        self.stats.sent_bytes += bytes as u64;
        let Some(connection) = self.connections.get(key) else { return };
        match &mut connection.stage {
            Stage::Closing(last) => {
                if let Some(last) = last.take() {
                    self.count_taken(last.torrent, &last.blocks, last.taken_bytes + bytes as u32);
                }
            }
            Stage::Open(open) => {
                let blocks = open.batch_taken(now);
                let payload = blocks.iter().map(|block| u64::from(block.length)).sum();
                open.uploaded_bytes += payload;
                open.rate.add(payload, now);
                open.session.sent(now);
                let torrent = open.torrent;
                self.count_taken(torrent, &blocks, u32::MAX);
                if let Some(open) = self.connections.get(key).and_then(super::Connection::open) {
                    open.keep_room(blocks);
                }
                self.enqueue(key);
            }
            _ => {}
        }
    }

    /// Counts the blocks that end within the first `taken_bytes` of their batch.
    fn count_taken(&mut self, torrent: TorrentId, blocks: &[Sending], taken_bytes: u32) {
        let now = self.io.now();
        let mut payload = 0;
        for block in blocks.iter().take_while(|block| block.end <= taken_bytes) {
            self.stats.served(now.saturating_sub(block.asked_at));
            self.stats.blocks += 1;
            payload += u64::from(block.length);
        }
        self.stats.uploaded_bytes += payload;
        if let Some(local) = self.torrents.get(&torrent) {
            // Relaxed: a total, read by control when it announces or stores.
            local.shared.uploaded_bytes.fetch_add(payload, Ordering::Relaxed);
        }
    }

    /// A connection ends with a batch in flight: what the socket took whole is counted, now and
    /// when the send completes; what it took in part is not (D4: totals are never over-counted).
    pub(crate) fn settle_partial(&mut self, key: Key, open: &mut Open) {
        let Some(flow) = &mut open.flow else { return };
        let mut blocks = std::mem::take(&mut flow.in_flight);
        let (taken_bytes, partial) = (flow.batch_bytes - flow.in_flight_bytes, flow.partial);
        self.count_taken(open.torrent, &blocks, taken_bytes);
        blocks.retain(|block| block.end > taken_bytes);
        let Some(connection) = self.connections.get(key) else { return };
        if connection.sending && !partial && !blocks.is_empty() {
            let last = LastSend { torrent: open.torrent, blocks, taken_bytes };
            connection.stage = Stage::Closing(Some(Box::new(last)));
        }
    }

    fn settle_closing(&mut self, key: Key) {
        if let Some(connection) = self.connections.get(key)
            && connection.operations == 0
            && matches!(connection.stage, Stage::Closing(_))
        {
            self.connections.remove(key);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;

    use seedring_platform::{
        descriptors::{OwnedSocket, Virtual},
        op::{Completion, Outcome},
    };
    use seedring_proto::{
        units::{Block, PeerId, PieceIndex},
        wire::{Handshake, Message, Reserved},
    };

    use super::*;
    use crate::{
        contract::Handover,
        verify::tests::{Bench, GOOD, bench},
    };

    struct Nothing;

    impl Virtual for Nothing {
        fn id(&self) -> u64 {
            1
        }
    }

    pub const BLOCK: u32 = 16 << 10;
    /// A block and its header on the wire.
    const FRAME: usize = 13 + BLOCK as usize;

    /// The batch that is being sent, taken out of the kernel's hands.
    fn sending(bench: &mut Bench) -> Option<(seedring_platform::op::Token, Box<SendBatch>)> {
        let ops = &mut bench.shard.io().ops;
        let at = ops.iter().position(|op| matches!(op, Op::SendBatch { .. }))?;
        match ops.remove(at) {
            Op::SendBatch { token, batch, .. } => Some((token, batch)),
            _ => None,
        }
    }

    fn completes(bench: &mut Bench, result: io::Result<usize>) {
        let (token, batch) = sending(bench).expect("a send is in flight");
        let outcome = Outcome::Sent { result, batch: Some(batch) };
        bench.shard.dispatch(Completion { token, outcome });
    }

    /// An unchoked peer of a torrent that is all verified; nothing is being sent to it.
    pub fn peer(bench: &mut Bench) -> Key {
        bench.shared.pieces.set_all_verified(true);
        bench.shared.pieces.set_all_offered(true);
        bench.shared.admit(0).expect("there is room");
        bench.shard.options.globals.connections.fetch_add(1, Ordering::Relaxed);
        let (info_hash, peer_id) = (bench.shared.info_hash, PeerId([9; 20]));
        let handshake = Handshake { reserved: Reserved::default(), info_hash, peer_id };
        let mut bytes = handshake.encode().to_vec();
        Message::Interested.encode(&mut bytes);
        bench.shard.taken_over(Handover {
            socket: OwnedSocket::from_virtual(Box::new(Nothing)),
            address: SocketAddr::from(([127, 0, 0, 1], 4_000)),
            bytes,
            torrent: bench.shared.clone(),
        });
        bench.shard.tick();
        while let Some((token, batch)) = sending(bench) {
            let outcome = Outcome::Sent { result: Ok(batch.len_bytes()), batch: Some(batch) };
            bench.shard.dispatch(Completion { token, outcome });
            bench.shard.tick();
        }
        bench.shard.connections.keys()[0]
    }

    /// The peer asks for blocks by their place in the torrent, of pieces of this size.
    pub fn ask(bench: &mut Bench, key: Key, piece_bytes: u32, blocks: impl Iterator<Item = u32>) {
        let mut bytes = Vec::new();
        let each = piece_bytes / BLOCK;
        for n in blocks {
            let (piece, begin) = (PieceIndex(n / each), n % each * BLOCK);
            Message::Request(Block { piece, begin, length: BLOCK }).encode(&mut bytes);
        }
        bench.shard.open_received(key, &bytes);
        bench.shard.tick();
    }

    /// A peer that has asked for four blocks, which are in one send.
    fn four_blocks_in_flight() -> (Bench, Key) {
        let mut bench = bench(8 << 20, 4 * BLOCK, 4 * u64::from(BLOCK));
        let key = peer(&mut bench);
        ask(&mut bench, key, 4 * BLOCK, 0..4);
        (0..3).for_each(|_| bench.complete(|_| Some(GOOD)));
        (bench, key)
    }

    fn uploaded(bench: &Bench) -> (u64, u64) {
        let shared = bench.shared.uploaded_bytes.load(Ordering::Relaxed);
        (bench.shard.stats().uploaded_bytes / u64::from(BLOCK), shared / u64::from(BLOCK))
    }

    #[test]
    fn blocks_that_went_whole_before_a_connection_ended_are_counted() {
        let (mut bench, key) = four_blocks_in_flight();
        completes(&mut bench, Ok(FRAME + 5)); // in part, and sent on
        assert_eq!(uploaded(&bench), (0, 0));
        bench.shard.close(key, Shutdown::Reset);
        assert_eq!(uploaded(&bench), (1, 1), "what the socket had taken");
        completes(&mut bench, Ok(2 * FRAME - 6)); // a byte of the third is missing
        assert_eq!(uploaded(&bench), (2, 2), "what it took after that");
    }

    #[test]
    fn a_send_that_fails_counts_what_went_before_it() {
        let (mut bench, _) = four_blocks_in_flight();
        completes(&mut bench, Ok(2 * FRAME));
        completes(&mut bench, Err(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(uploaded(&bench), (2, 2));
    }

    #[test]
    fn a_batch_that_goes_whole_counts_once_also_when_the_connection_is_closing() {
        for closing in [false, true] {
            let (mut bench, key) = four_blocks_in_flight();
            if closing {
                bench.shard.close(key, Shutdown::Orderly);
            }
            completes(&mut bench, Ok(4 * FRAME));
            bench.shard.close(key, Shutdown::Orderly);
            assert_eq!(uploaded(&bench), (4, 4));
        }
    }

    #[test]
    fn a_route_that_copies_rests_and_is_tried_again() {
        let mut routes = Routes::default();
        let at = Duration::from_secs(1);
        routes.was_copied("10.1.2.3".parse().unwrap(), at);
        assert!(!routes.is_worth("10.1.2.200".parse().unwrap(), at));
        assert!(routes.is_worth("10.1.3.1".parse().unwrap(), at));
        assert!(routes.is_worth("10.1.2.3".parse().unwrap(), at + ROUTE_REST));
    }
}
