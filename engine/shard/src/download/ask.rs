//! What is asked of whom.
//!
//! Owns: interest, which connections with room are asked now, what becomes of blocks that do not
//! come, how many peers have a piece. Never: which block (`next`), bytes, hashing. Flow: what a
//! session says and every second -> here -> requests in the connection's output.

use std::{sync::atomic::Ordering, time::Duration};

use seedring_platform::op::Io;
use seedring_proto::{
    peer::session::{Event as Said, Session},
    swarm::picker::Pieces as _,
    units::{Block, PieceIndex},
};

use super::{
    Downloads, Fetch, POOL_PART,
    next::{Asking, Next},
    partial::{Partial, Sender},
    throttle::{BLOCKS_HELD_MAX, Limits},
};
use crate::{
    connections::{Key, Stage},
    contract::MetadataSaid,
    shard::Shard,
    torrent::{Choice, TorrentId},
};

/// Connections asked in one tick.
const ASKED_MAX: usize = 512;
/// Blocks asked of one connection in one go; the next tick goes on.
const BLOCKS_MAX: usize = 256;
/// A peer that rejected a request though it does not choke us is left alone for this long.
const REJECTED_REST: Duration = Duration::from_secs(1);
/// A piece that nothing comes of for this long goes back where another shard has a peer that has
/// it; seconds.
const STALLED_AFTER_S: u32 = 30;
/// And who did not bring it is not asked for so long.
const STALLED_REST: Duration = Duration::from_secs(10);

/// A connection's part in a download.
#[derive(Default)]
pub struct Source {
    /// In the queue of those with room.
    pub(super) queued: bool,
    /// The pieces that it is counted for among a torrent's availability; empty: as a seed, or not.
    counted: Vec<u64>,
    counted_as_seed: bool,
    /// Not asked before this time.
    rest_until: Duration,
}

impl<I: Io> Shard<I> {
    /// This connection may have room for requests.
    pub(crate) fn ask_later(&mut self, key: Key) {
        if let Some(open) = self.connections.get(key).and_then(|c| c.open())
            && open.session.downloads()
            && !std::mem::replace(&mut open.source.get_or_insert_default().queued, true)
        {
            self.downloads.asking.push_back(key);
        }
    }

    /// Asks everybody who has room. `true`: there are more.
    pub(super) fn ask_all(&mut self, now: Duration) -> bool {
        for _ in 0..ASKED_MAX {
            let Some(key) = self.downloads.asking.pop_front() else { return false };
            self.ask(key, now);
        }
        !self.downloads.asking.is_empty()
    }

    fn ask(&mut self, key: Key, now: Duration) {
        let budget =
            if self.downloads.is_behind() { 0 } else { self.io.pool().cap_bytes() / POOL_PART };
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Open(open) = &mut connection.stage else { return };
        let source = open.source.get_or_insert_default();
        source.queued = false;
        if now < source.rest_until || !open.session.downloads() {
            return;
        }
        let id = open.torrent;
        let Downloads { torrents, held_bytes, starved, .. } = &mut self.downloads;
        let Some(fetch) = torrents.get_mut(&id) else { return };
        if fetch.download.is_halted() {
            return;
        }
        let (mut asked, mut again, mut held) = (0, false, None);
        let shared = fetch.shared.clone();
        let limits = Limits::of(&self.options.globals, &shared);
        let most = if limits.hold() { BLOCKS_HELD_MAX } else { BLOCKS_MAX };
        while open.session.room() > 0 {
            held = limits.held_until(now);
            if asked == most || held.is_some() {
                again = held.is_none();
                break;
            }
            let asking =
                Asking { session: &open.session, key, now, shard: self.options.shard, budget };
            let pool = self.io.pool();
            match asking.next(fetch, held_bytes, |class| self.storage.lease(pool, class)) {
                Next::Ask(block) => {
                    open.session.request(block, now, &mut connection.out);
                    limits.take(block.length, now);
                    asked += 1;
                }
                Next::Nothing => break,
                Next::NoMemory => {
                    *starved = true;
                    break;
                }
            }
        }
        for kept in std::mem::take(&mut fetch.to_restore) {
            self.restore(id, kept);
        }
        if asked > 0 {
            self.enqueue(key);
        }
        if let Some(until) = held {
            self.hold_back(key, until, now);
        }
        if again {
            self.ask_later(key);
        }
    }

    /// Whether this peer has something that we want now.
    pub(super) fn look_at_peer(&mut self, key: Key, now: Duration) {
        self.take_back_if_halted(key);
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Open(open) = &mut connection.stage else { return };
        let Some(fetch) = self.downloads.torrents.get_mut(&open.torrent) else { return };
        let before = connection.out.len();
        if !open.session.downloads() {
            if !fetch.wants_of(&open.session) {
                return;
            }
            // It was told that nothing is wanted, and now it has what is.
            let Some(local) = self.torrents.get(&open.torrent) else { return };
            let contents = local.contents.as_ref().expect("invariant: kept while a peer is here");
            let view = local.view(contents, key);
            open.session.wants_again(now, &view, &mut connection.out);
            self.count_pieces(key);
            return self.look_at_peer(key, now);
        }
        let wants = !fetch.download.is_halted() && fetch.wants_of(&open.session);
        open.session.set_interested(wants, &mut connection.out);
        let snubs = open.session.check_requests(now);
        if let Some(requests) = open.session.requests() {
            let late =
                requests.late(now).filter(|_| !snubs).chain(requests.iter().filter(|_| snubs));
            for block in late {
                if let Some(partial) = fetch.partials.get_mut(&block.piece) {
                    partial.is_late(block);
                }
            }
        }
        let ready = connection.out.len() > before;
        if ready {
            self.enqueue(key);
        }
        self.ask_later(key);
    }

    /// Whether this connection may bring us something.
    pub(crate) fn is_source(&mut self, key: Key) -> bool {
        let open = self.connections.get(key).and_then(|connection| connection.open());
        open.is_some_and(|open| open.session.downloads())
    }

    /// What a session says that concerns a download.
    pub(crate) fn source_said(&mut self, key: Key, said: Said) {
        match said {
            Said::Block(block) => self.block_arrived(key, block),
            Said::Returned(block) => self.block_returned(key, block),
            Said::Have(piece) => self.peer_got(key, piece),
            Said::Pieces | Said::DontHave(_) => self.peer_pieces(key),
            Said::MetadataSize(bytes) => self.say_metadata(key, MetadataSaid::Size(bytes)),
            Said::MetadataRejected(at) => self.say_metadata(key, MetadataSaid::Rejected(at)),
            Said::Unchoked | Said::AllowedFast(_) => self.ask_later(key),
            _ => {}
        }
    }

    /// What a peer has changed.
    pub(crate) fn peer_pieces(&mut self, key: Key) {
        let now = self.io.now();
        self.count_pieces(key);
        self.look_at_peer(key, now);
    }

    /// A peer has one more piece: the common case, without a look at all the others.
    pub(crate) fn peer_got(&mut self, key: Key, piece: PieceIndex) {
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Open(open) = &mut connection.stage else { return };
        let Some(fetch) = self.downloads.torrents.get(&open.torrent) else { return };
        let id = open.torrent;
        let source = open.source.get_or_insert_default();
        if open.session.pieces().is_complete() || source.counted.is_empty() {
            // Its first piece, or its last.
            self.peer_pieces(key);
            if self.downloads.torrents.get(&id).is_some_and(|fetch| fetch.spreads(piece)) {
                self.choose_again(id, piece);
            }
            return;
        }
        let (word, bit) = (piece.0 as usize / 64, 1 << (piece.0 % 64));
        if source.counted[word] & bit == 0 {
            source.counted[word] |= bit;
            fetch.download.peer_has(piece);
        }
        let missing = fetch.download.missing_word(&fetch.shared.pieces, word) & bit != 0;
        let spreads = missing && fetch.spreads(piece);
        if missing && !fetch.download.is_halted() {
            let was = open.session.am_interested();
            open.session.set_interested(true, &mut connection.out);
            if !was {
                self.enqueue(key);
            }
            self.ask_later(key);
        }
        if spreads {
            self.choose_again(id, piece);
        }
    }

    /// A piece that one peer had when it was asked for has got to another one, and nothing of it
    /// has come: where many ask one seed for the same few pieces, theirs go to one of them, and the
    /// others had better ask for what nobody has.
    fn choose_again(&mut self, id: TorrentId, piece: PieceIndex) {
        for key in self.keys_here(id) {
            if self.take_back(key, piece) {
                self.ask_later(key);
            }
        }
        self.drop_partial(id, piece);
    }

    /// A block will not come from this peer.
    pub(crate) fn block_returned(&mut self, key: Key, block: Block) {
        let now = self.io.now();
        let Some(open) = self.connections.get(key).and_then(|c| c.open()) else { return };
        let id = open.torrent;
        if !open.session.peer_choking() {
            open.source.get_or_insert_default().rest_until = now + REJECTED_REST;
        }
        self.give_back(id, key, block);
        self.ask_others(id);
    }

    fn give_back(&mut self, id: TorrentId, key: Key, block: Block) {
        let Some(fetch) = self.downloads.torrents.get_mut(&id) else { return };
        Limits::of(&self.options.globals, &fetch.shared).give_back(block.length);
        let Some(partial) = fetch.partials.get_mut(&block.piece) else { return };
        partial.returned(key, block);
        if !partial.is_begun() && !partial.is_asked_for() {
            // Nobody is at work on it: another shard may have better peers.
            self.downloads.held_bytes -= Partial::buffer_bytes(partial.length());
            fetch.partials.remove(&block.piece);
            fetch.download.release(block.piece, self.options.shard);
            fetch.picker.refresh();
        }
    }

    /// Gives back what this shard's peers do not bring and another shard's may: at once where none
    /// of its own has it. What nobody else has stays, with all that came of it: whoever brings the
    /// rest may come back.
    pub(super) fn give_up_stalled(&mut self, id: TorrentId, now: Duration) {
        let Some(fetch) = self.downloads.torrents.get_mut(&id) else { return };
        let (download, shared) = (fetch.download.clone(), fetch.shared.clone());
        let quiet = fetch.partials.values_mut().map(|partial| {
            (partial.piece(), partial.look() >= STALLED_AFTER_S, partial.is_asked_for())
        });
        let quiet: Vec<(PieceIndex, bool)> = quiet
            .filter(|(_, stalled, asked)| *stalled || !asked)
            .map(|(piece, stalled, _)| (piece, stalled))
            .collect();
        let keys = self.keys_here(id);
        let choice = Choice { download: &download, had: &shared.pieces };
        let mut orphans = Vec::new();
        for (piece, stalled) in quiet {
            let here = keys.iter().filter(|key| self.has_for_us(**key, piece)).count();
            let elsewhere = choice.availability(piece) as usize > here;
            if elsewhere && (stalled || here == 0) {
                self.give_up(id, piece, &keys, now);
            } else if here == 0 {
                orphans.push(piece);
            }
        }
        self.drop_orphan(id, &orphans);
    }

    /// Pieces that nobody can go on with must not hold the memory that the next one needs: of them
    /// the one that has come least far goes.
    fn drop_orphan(&mut self, id: TorrentId, orphans: &[PieceIndex]) {
        let budget = self.io.pool().cap_bytes() / POOL_PART;
        let under_way = self.downloads.held_bytes - self.downloads.write_back_bytes;
        let Some(fetch) = self.downloads.torrents.get(&id) else { return };
        if under_way + Partial::buffer_bytes(fetch.contents.layout.piece_bytes) <= budget {
            return;
        }
        let orphans = orphans.iter().filter_map(|piece| fetch.partials.get(piece));
        if let Some(partial) = orphans.min_by_key(|partial| partial.here()) {
            let piece = partial.piece();
            self.drop_partial(id, piece);
        }
    }

    fn has_for_us(&mut self, key: Key, piece: PieceIndex) -> bool {
        let open = self.connections.get(key).and_then(|connection| connection.open());
        open.is_some_and(|open| open.session.downloads() && open.session.pieces().has(piece))
    }

    fn give_up(&mut self, id: TorrentId, piece: PieceIndex, keys: &[Key], now: Duration) {
        for key in keys {
            if self.take_back(*key, piece)
                && let Some(open) = self.connections.get(*key).and_then(|c| c.open())
            {
                open.source.get_or_insert_default().rest_until = now + STALLED_REST;
            }
        }
        self.drop_partial(id, piece);
    }

    /// Takes back what a peer was asked for of a piece. Whether that was something.
    fn take_back(&mut self, key: Key, piece: PieceIndex) -> bool {
        let Some(connection) = self.connections.get(key) else { return false };
        let Stage::Open(open) = &mut connection.stage else { return false };
        let asked = open.session.requests().into_iter().flat_map(|requests| requests.iter());
        let asked: Vec<Block> = asked.filter(|block| block.piece == piece).collect();
        if asked.is_empty() {
            return false;
        }
        asked.into_iter().for_each(|block| open.session.cancel(block, &mut connection.out));
        self.enqueue(key);
        true
    }

    /// A piece is under way here no more.
    fn drop_partial(&mut self, id: TorrentId, piece: PieceIndex) {
        let Some(fetch) = self.downloads.torrents.get_mut(&id) else { return };
        let Some(partial) = fetch.partials.remove(&piece) else { return };
        self.downloads.held_bytes -= Partial::buffer_bytes(partial.length());
        fetch.download.release(piece, self.options.shard);
        fetch.picker.refresh();
    }

    /// The download ends or is another one: this peer counts for it no more, and what it was asked
    /// for is taken back.
    pub(super) fn source_ended(&mut self, key: Key) {
        self.uncount_pieces(key);
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Open(open) = &mut connection.stage else { return };
        let Some(requests) = open.session.requests() else { return };
        let asked: Vec<Block> = requests.iter().collect();
        if !asked.is_empty() {
            asked.into_iter().for_each(|block| open.session.cancel(block, &mut connection.out));
            self.enqueue(key);
        }
    }

    /// A halted download keeps nothing that comes now: what this peer was asked for is taken back.
    pub(super) fn take_back_if_halted(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Open(open) = &mut connection.stage else { return };
        let id = open.torrent;
        let fetch = self.downloads.torrents.get(&id);
        let halted = fetch.is_some_and(|fetch| fetch.download.is_halted());
        let asked: Vec<Block> = match open.session.requests() {
            Some(requests) if halted && !requests.is_empty() => requests.iter().collect(),
            _ => return,
        };
        asked.iter().for_each(|block| open.session.cancel(*block, &mut connection.out));
        asked.into_iter().for_each(|block| self.give_back(id, key, block));
        self.enqueue(key);
    }

    /// Blocks came free: whoever has room may take them.
    pub(super) fn ask_others(&mut self, id: TorrentId) {
        let Some(local) = self.torrents.get(&id) else { return };
        let keys: Vec<Key> = local.peers.values().copied().collect();
        keys.into_iter().for_each(|key| self.ask_later(key));
    }

    /// A connection is closing: what it was asked for is free again. Before its session goes.
    pub(crate) fn source_left(&mut self, key: Key) {
        self.say_metadata(key, MetadataSaid::Left);
        self.uncount_pieces(key);
        let Some(open) = self.connections.get(key).and_then(|c| c.open()) else { return };
        let id = open.torrent;
        let Some(requests) = open.session.requests() else { return };
        let blocks: Vec<Block> = requests.iter().collect();
        if blocks.is_empty() {
            return;
        }
        blocks.into_iter().for_each(|block| self.give_back(id, key, block));
        self.ask_others(id);
    }

    /// Brings a torrent's availability up to what the peer has now.
    fn count_pieces(&mut self, key: Key) {
        let Some(open) = self.connections.get(key).and_then(|c| c.open()) else { return };
        let Some(fetch) = self.downloads.torrents.get(&open.torrent) else { return };
        let (download, pieces) = (&fetch.download, open.session.pieces());
        let source = open.source.get_or_insert_default();
        let seed = pieces.is_complete();
        if seed != source.counted_as_seed {
            source.counted_as_seed = seed;
            if seed { download.seed_came() } else { download.seed_left() }
        }
        let words = (pieces.total() as usize).div_ceil(64);
        let none = pieces.count() == 0 && source.counted.is_empty();
        if !seed && !none {
            source.counted.resize(words, 0);
        }
        for (at, counted) in source.counted.iter_mut().enumerate() {
            let has = if seed { 0 } else { pieces.word(at) };
            each_bit(at, has & !*counted, |piece| download.peer_has(piece));
            each_bit(at, *counted & !has, |piece| download.peer_had(piece));
            *counted = has;
        }
        if seed {
            source.counted = Vec::new();
        }
    }

    pub(super) fn uncount_pieces(&mut self, key: Key) {
        let Some(open) = self.connections.get(key).and_then(|c| c.open()) else { return };
        let Some(source) = open.source.take() else { return };
        let Some(fetch) = self.downloads.torrents.get(&open.torrent) else { return };
        if source.counted_as_seed {
            fetch.download.seed_left();
        }
        for (at, counted) in source.counted.iter().enumerate() {
            each_bit(at, *counted, |piece| fetch.download.peer_had(piece));
        }
    }

    /// A block came whole and was written into its piece.
    pub(crate) fn block_arrived(&mut self, key: Key, block: Block) {
        let now = self.io.now();
        let Some(connection) = self.connections.get(key) else { return };
        let sender = Sender { key, ip: Some(connection.address.ip().to_canonical()) };
        let Some(open) = connection.open() else { return };
        let id = open.torrent;
        self.stats.downloaded_bytes += u64::from(block.length);
        if let Some(local) = self.torrents.get(&id) {
            // Relaxed: a total, read by control when it announces or stores.
            let total = &local.shared.downloaded_bytes;
            total.fetch_add(u64::from(block.length), Ordering::Relaxed);
        }
        self.ask_later(key);
        let Some(fetch) = self.downloads.torrents.get_mut(&id) else { return };
        let Some(partial) = fetch.partials.get_mut(&block.piece) else { return };
        let Some(other) = partial.arrived(sender, block) else { return };
        if partial.is_whole() {
            let partial = fetch.partials.remove(&block.piece).expect("invariant: looked up above");
            self.downloads.gathered(id, partial, now);
        }
        if let Some(other) = other
            && let Some(connection) = self.connections.get(other)
            && let Stage::Open(open) = &mut connection.stage
        {
            open.session.cancel(block, &mut connection.out);
            self.enqueue(other);
            self.ask_later(other);
        }
    }
}

fn each_bit(word: usize, mut bits: u64, mut what: impl FnMut(PieceIndex)) {
    while bits != 0 {
        what(PieceIndex(word as u32 * 64 + bits.trailing_zeros()));
        bits &= bits - 1;
    }
}

impl Fetch {
    /// Whether a second peer has just got a piece of which nothing has come here.
    fn spreads(&self, piece: PieceIndex) -> bool {
        let choice = Choice { download: &self.download, had: &self.shared.pieces };
        let second = choice.availability(piece) == 2;
        second && self.partials.get(&piece).is_some_and(Partial::is_untouched)
    }

    /// Whether a peer has a piece that is wanted and missing.
    fn wants_of(&self, session: &Session) -> bool {
        let pieces = session.pieces();
        let words = (pieces.total() as usize).div_ceil(64);
        (0..words)
            .any(|at| pieces.word(at) & self.download.missing_word(&self.shared.pieces, at) != 0)
    }
}
