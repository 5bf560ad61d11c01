//! Honest leeches: they fetch a torrent, each with habits of its own, and look at every byte.
//!
//! Owns: one leech's blocks, requests and habits. Never: a file. Flow: unchoke -> requests ->
//! blocks
//! -> compared with the torrent's content -> complete; cut off, it comes again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
};

use seedring_proto::{
    units::{Block, PeerId, PieceIndex},
    wire::{
        Handshake, Message, Reserved,
        extended::{ExtensionHandshake, HANDSHAKE, METADATA_PIECE_BYTES, MetadataMessage},
    },
};

use super::{Score, Stream};
use crate::sim::{
    peer::{Ended, Peer, PeerIo, Reading},
    rng::{self, Rng},
    torrent::SimTorrent,
};

/// How a leech goes about it.
#[derive(Clone, Debug)]
pub struct Habits {
    pub fast: bool,
    pub extended: bool,
    /// Requests outstanding.
    pub pipeline: usize,
    pub block_bytes: u32,
    pub sequential: bool,
    /// Chance in 1,000 that a request is cancelled at once.
    pub cancels: u16,
    /// Chance in 1,000 a block that it drops the connection in the middle of things.
    pub leaves: u16,
    /// Chance in 1,000 a block that it loses interest for a while.
    pub toggles: u16,
    pub reading: Reading,
    /// Tells of pieces that it has.
    pub haves: bool,
    /// Fetches the metadata too (BEP 9).
    pub metadata: bool,
    /// Sends its handshake in bits.
    pub halting: bool,
}

impl Habits {
    pub fn random(rng: &mut Rng) -> Habits {
        let slow = rng.between(30_000, 400_000);
        Habits {
            fast: rng.per_mille(600),
            extended: rng.per_mille(700),
            pipeline: *rng.pick(&[1, 4, 16, 100, 400]),
            block_bytes: *rng.pick(&[16_384, 16_384, 16_384, 1_000, 32_768, 131_072]),
            sequential: rng.per_mille(500),
            cancels: *rng.pick(&[0, 0, 50, 300]),
            leaves: *rng.pick(&[0, 0, 0, 20]),
            toggles: *rng.pick(&[0, 0, 30]),
            reading: *rng.pick(&[
                Reading::AtOnce,
                Reading::AtOnce,
                Reading::AtOnce,
                Reading::BytesPerSecond(slow),
            ]),
            haves: rng.per_mille(500),
            metadata: rng.per_mille(300),
            halting: rng.per_mille(200),
        }
    }

    /// A client that takes what it can get and does nothing unusual.
    pub fn plain() -> Habits {
        Habits {
            fast: true,
            extended: true,
            pipeline: 64,
            block_bytes: 16_384,
            sequential: true,
            cancels: 0,
            leaves: 0,
            toggles: 0,
            reading: Reading::AtOnce,
            haves: false,
            metadata: false,
            halting: false,
        }
    }
}

/// A file that somebody changes while it is served: its range in the torrent, its new seed, when.
#[derive(Clone, Copy, Debug)]
pub struct Changed {
    pub from: u64,
    pub to: u64,
    pub seed: u64,
    pub at_ns: u64,
}

pub struct Leech {
    torrent: Rc<SimTorrent>,
    habits: Habits,
    score: Score,
    address: SocketAddr,
    pub peer_id: PeerId,
    changed: Vec<Changed>,
    /// Blocks still to ask for, next one last.
    needed: Vec<Block>,
    asked: BTreeSet<(u32, u32, u32)>,
    /// Answers that may still come, by block: one a request, wanted or given up meanwhile.
    due: BTreeMap<(u32, u32, u32), u32>,
    left_of_piece: BTreeMap<u32, u32>,
    /// What the seeder says that it has.
    offered: Vec<bool>,
    /// Its completion is asked for; not where the content is spoilt on purpose.
    counts: bool,
    stream: Stream,
    choked: bool,
    interested: bool,
    progress_ns: u64,
    opened_ns: u64,
    /// A request was turned down: the next ones wait a little.
    pausing: bool,
    done: bool,
    attempts: u32,
    /// The number under which the seeder wants metadata requests, and parts that came.
    metadata_id: Option<u8>,
    metadata_parts: BTreeSet<u32>,
    halting: Vec<u8>,
}

const TICK: u64 = 1;
const AGAIN: u64 = 2;
const INTEREST: u64 = 3;
const HALTING: u64 = 4;
const PAUSE: u64 = 5;
const SECOND_NS: u64 = 1_000_000_000;
const TICK_NS: u64 = 10 * SECOND_NS;
/// Nothing came for so long: requests count as lost, as in every client.
const SNUBBED_NS: u64 = 25 * SECOND_NS;
/// Nothing came for so long: worth a line in the verdict.
const STUCK_NS: u64 = 300 * SECOND_NS;
/// Unchoked with nothing on offer for so long, it looks elsewhere, and here again later.
const LEFT_NS: u64 = 90 * SECOND_NS;
const ATTEMPTS_MAX: u32 = 500;

fn name(block: Block) -> (u32, u32, u32) {
    (block.piece.0, block.begin, block.length)
}

fn block((piece, begin, length): (u32, u32, u32)) -> Block {
    Block { piece: PieceIndex(piece), begin, length }
}

impl Leech {
    pub fn new(
        torrent: Rc<SimTorrent>,
        habits: Habits,
        score: Score,
        address: SocketAddr,
        changed: Vec<Changed>,
        counts: bool,
        rng: &mut Rng,
    ) -> Leech {
        let mut needed = Vec::new();
        let mut left_of_piece = BTreeMap::new();
        for piece in 0..torrent.layout.piece_count() {
            let bytes = torrent.layout.piece_length(PieceIndex(piece));
            for begin in (0..bytes).step_by(habits.block_bytes as usize) {
                let length = habits.block_bytes.min(bytes - begin);
                needed.push(Block { piece: PieceIndex(piece), begin, length });
                *left_of_piece.entry(piece).or_default() += 1;
            }
        }
        if habits.sequential {
            needed.reverse();
        } else {
            rng.shuffle(&mut needed);
        }
        let mut peer_id = PeerId(*b"-XX0001-............");
        rng::fill(rng.draw(), 0, &mut peer_id.0[8..]);
        score.borrow_mut().honest += u32::from(counts);
        Leech {
            torrent,
            habits,
            score,
            address,
            peer_id,
            changed,
            needed,
            asked: BTreeSet::new(),
            due: BTreeMap::new(),
            left_of_piece,
            offered: Vec::new(),
            counts,
            stream: Stream::default(),
            choked: true,
            interested: false,
            progress_ns: 0,
            opened_ns: 0,
            pausing: false,
            done: false,
            attempts: 0,
            metadata_id: None,
            metadata_parts: BTreeSet::new(),
            halting: Vec::new(),
        }
    }

    fn say(&self, io: &mut PeerIo<'_>, message: Message<'_>) {
        let mut out = Vec::new();
        message.encode(&mut out);
        io.send(&out);
    }

    /// Keeps the pipeline full.
    fn ask(&mut self, io: &mut PeerIo<'_>) {
        while !self.choked
            && self.interested
            && !self.pausing
            && self.asked.len() < self.habits.pipeline
        {
            let offered = |block: &Block| self.offered[block.piece.0 as usize];
            let Some(at) = self.needed.iter().rposition(offered) else { return };
            let block = self.needed.remove(at);
            self.say(io, Message::Request(block));
            self.asked.insert(name(block));
            *self.due.entry(name(block)).or_default() += 1;
            if io.rng().per_mille(self.habits.cancels) {
                self.say(io, Message::Cancel(block));
                self.asked.remove(&name(block));
                self.needed.insert(0, block);
            }
        }
    }

    fn greeted(&mut self, io: &mut PeerIo<'_>, handshake: [u8; 68]) {
        let parsed = Handshake::parse(&handshake);
        match parsed {
            Ok(Some(found)) if found.info_hash == self.torrent.info_hash => {
                self.habits.extended &= found.reserved.extended();
            }
            found => self.score.borrow_mut().wrong(format!("a strange handshake: {found:?}")),
        }
        if self.habits.extended {
            let said = ExtensionHandshake { ut_metadata: Some(3), ..Default::default() };
            let mut out = Vec::new();
            said.encode(&mut out);
            io.send(&out);
        }
        self.interested = true;
        self.say(io, Message::Interested);
    }

    fn message(&mut self, io: &mut PeerIo<'_>, frame: &[u8]) {
        let message = match Message::parse(frame) {
            Ok(message) => message,
            Err(violation) => {
                self.score.borrow_mut().wrong(format!("a message that is none: {violation}"));
                return;
            }
        };
        match message {
            Message::Choke => {
                self.choked = true;
                if !self.habits.fast {
                    self.requests_lost();
                }
            }
            Message::Unchoke => {
                self.choked = false;
                self.ask(io);
            }
            Message::Piece { piece, begin, data } => {
                let length = data.len() as u32;
                self.block_came(io, Block { piece, begin, length }, data);
            }
            Message::Reject(block) => self.rejected(io, block),
            Message::HaveAll => self.offered.fill(true),
            Message::Have(piece) => {
                self.offered[piece.0 as usize] = true;
                self.ask(io);
            }
            Message::Bitfield(bits) => {
                for (piece, offered) in self.offered.iter_mut().enumerate() {
                    *offered = bits[piece / 8] & (0x80 >> (piece % 8)) != 0;
                }
            }
            Message::Extended { id: HANDSHAKE, payload } => self.extension(io, payload),
            Message::Extended { payload, .. } => self.metadata(io, payload),
            _ => {}
        }
    }

    fn block_came(&mut self, io: &mut PeerIo<'_>, block: Block, data: &[u8]) {
        self.progress_ns = io.now_ns();
        let key = name(block);
        let was_asked = self.asked.remove(&key);
        let was_due = self.answered(key);
        let mut score = self.score.borrow_mut();
        score.blocks += 1;
        score.bytes += data.len() as u64;
        *score.by_peer.entry(io.id()).or_default() += data.len() as u64;
        score.after_cancel += u64::from(!was_asked);
        if !was_due {
            score.wrong(format!("a block that nobody asked for: {block:?}"));
        }
        let offset = self.torrent.layout.block_offset(block);
        if let Some(at) = self.torrent.differs(offset, data) {
            if self.is_stale(io.now_ns(), offset, data) {
                score.stale += 1;
            } else {
                score.wrong(format!("a wrong byte {at} in {block:?} of {:?}", self.torrent.id));
            }
        }
        drop(score);
        if was_asked {
            self.block_done(io, block);
        }
        let habits = &self.habits;
        if io.rng().per_mille(habits.leaves) {
            self.requests_lost();
            io.reset();
            self.come_again(io, "left of its own");
        } else if io.rng().per_mille(habits.toggles) {
            self.interested = false;
            self.say(io, Message::NotInterested);
            let pause_ns = io.rng().between(1, 3 * SECOND_NS);
            io.timer(pause_ns, INTEREST);
        } else {
            self.ask(io);
        }
    }

    fn block_done(&mut self, io: &mut PeerIo<'_>, block: Block) {
        let left = self.left_of_piece.get_mut(&block.piece.0).expect("invariant: its own piece");
        *left -= 1;
        let piece_done = *left == 0;
        if self.needed.is_empty() && self.asked.is_empty() && !self.done {
            self.done = true;
            self.score.borrow_mut().complete += u32::from(self.counts);
            io.close();
        } else if piece_done && self.habits.haves {
            self.say(io, Message::Have(block.piece));
        }
    }

    /// Whether the bytes are those that somebody wrote into the file a moment ago.
    fn is_stale(&self, now_ns: u64, offset: u64, data: &[u8]) -> bool {
        data.iter().enumerate().all(|(i, &byte)| {
            let at = offset + i as u64;
            let mut expected = [0];
            self.torrent.fill(at, &mut expected);
            byte == expected[0]
                || self.changed.iter().any(|changed| {
                    let mut new = [0];
                    rng::fill(changed.seed, at.saturating_sub(changed.from), &mut new);
                    let inside = (changed.from..changed.to).contains(&at);
                    inside && now_ns >= changed.at_ns && byte == new[0]
                })
        })
    }

    fn rejected(&mut self, io: &mut PeerIo<'_>, block: Block) {
        self.score.borrow_mut().rejects += 1;
        let key = name(block);
        let was_due = self.answered(key);
        if self.asked.remove(&key) {
            self.needed.insert(0, block);
            if !std::mem::replace(&mut self.pausing, true) {
                let pause_ns = io.rng().between(SECOND_NS / 2, 3 * SECOND_NS);
                io.timer(pause_ns, PAUSE);
            }
        }
        if !was_due {
            let text = format!("a reject of what was not asked for: {block:?}");
            self.score.borrow_mut().wrong(text);
        }
    }

    /// Whether an answer was due for the block; one less is now.
    fn answered(&mut self, key: (u32, u32, u32)) -> bool {
        let left = self.due.get(&key).copied().unwrap_or(0);
        self.due.insert(key, left.saturating_sub(1));
        left > 0
    }

    /// Requests that count as lost: what is already on its way may still come.
    fn requests_lost(&mut self) {
        let lost = std::mem::take(&mut self.asked);
        self.needed.extend(lost.into_iter().rev().map(block));
    }

    fn extension(&mut self, io: &mut PeerIo<'_>, payload: &[u8]) {
        let Ok(said) = ExtensionHandshake::parse(payload) else {
            return self.score.borrow_mut().wrong("an extension handshake that is none".into());
        };
        let bytes = self.torrent.raw_info.len() as u32;
        if said.metadata_bytes.is_some_and(|said| said != bytes) {
            self.score.borrow_mut().wrong("a wrong metadata size".into());
        }
        self.metadata_id = said.ut_metadata.filter(|&id| id > 0);
        let Some(id) = self.metadata_id.filter(|_| self.habits.metadata) else { return };
        for piece in 0..bytes.div_ceil(METADATA_PIECE_BYTES as u32) {
            let mut out = Vec::new();
            MetadataMessage::Request { piece }.encode(id, &mut out);
            io.send(&out);
        }
    }

    fn metadata(&mut self, _: &mut PeerIo<'_>, payload: &[u8]) {
        let Ok(Some(MetadataMessage::Data { piece, data, .. })) = MetadataMessage::parse(payload)
        else {
            return;
        };
        let at = piece as usize * METADATA_PIECE_BYTES;
        let raw_info = self.torrent.raw_info.clone();
        let mut score = self.score.borrow_mut();
        if raw_info.get(at..at + data.len()) != Some(data) {
            score.wrong(format!("wrong metadata in part {piece}"));
        }
        self.metadata_parts.insert(piece);
        if self.metadata_parts.len() == raw_info.len().div_ceil(METADATA_PIECE_BYTES) {
            score.metadata += 1;
        }
    }

    /// What it waits for, in words.
    fn state(&self) -> String {
        let offered = self.needed.iter().filter(|b| self.offered[b.piece.0 as usize]).count();
        format!(
            "torrent {}: choked {}, interested {}, {} asked, {} needed ({offered} offered), {:?}",
            self.torrent.id.0,
            self.choked,
            self.interested,
            self.asked.len(),
            self.needed.len(),
            self.habits
        )
    }

    fn come_again(&mut self, io: &mut PeerIo<'_>, why: &'static str) {
        *self.score.borrow_mut().cut.entry(why).or_default() += 1;
        self.requests_lost();
        self.due.clear();
        self.attempts += 1;
        if self.attempts < ATTEMPTS_MAX {
            let pause_ns = io.rng().between(SECOND_NS, 8 * SECOND_NS);
            io.timer(pause_ns, AGAIN);
        }
    }
}

impl Peer for Leech {
    fn opened(&mut self, io: &mut PeerIo<'_>) {
        self.stream = Stream::default();
        self.offered = vec![false; self.torrent.layout.piece_count() as usize];
        self.choked = true;
        self.interested = false;
        self.opened_ns = io.now_ns();
        let mut reserved = Reserved::default();
        reserved.0[7] |= if self.habits.fast { 0x04 } else { 0 };
        reserved.0[5] |= if self.habits.extended { 0x10 } else { 0 };
        let info_hash = self.torrent.info_hash;
        let handshake = Handshake { reserved, info_hash, peer_id: self.peer_id }.encode();
        if self.habits.halting {
            self.halting = handshake.to_vec();
            io.timer(1, HALTING | u64::from(self.attempts) << 8);
        } else {
            io.send(&handshake);
        }
        io.read(self.habits.reading);
        io.timer(TICK_NS, TICK | u64::from(self.attempts) << 8);
    }

    fn received(&mut self, io: &mut PeerIo<'_>, bytes: &[u8]) {
        self.stream.feed(bytes);
        if !self.stream.greeted {
            let Some(handshake) = self.stream.handshake() else { return };
            self.greeted(io, handshake);
        }
        while io.connected()
            && let Some(frame) = self.stream.frame()
        {
            self.message(io, &frame);
        }
    }

    fn timer(&mut self, io: &mut PeerIo<'_>, tag: u64) {
        // Reminders of an earlier connection mean nothing any more.
        let (tag, attempt) = (tag & 0xff, tag >> 8);
        let of_connection = matches!(tag, TICK | HALTING);
        if self.done || (of_connection && attempt != u64::from(self.attempts)) {
            return;
        }
        match tag {
            TICK if io.connected() => {
                if io.now_ns() - self.opened_ns.max(self.progress_ns) > SNUBBED_NS
                    && !self.asked.is_empty()
                {
                    self.requests_lost();
                    self.ask(io);
                }
                if io.now_ns() - self.progress_ns > STUCK_NS {
                    self.score.borrow_mut().stuck.insert(io.id(), self.state());
                }
                let idle_ns = io.now_ns() - self.opened_ns.max(self.progress_ns);
                if idle_ns > LEFT_NS && self.asked.is_empty() && !self.choked {
                    io.reset();
                    return self.come_again(io, "nothing to ask for");
                }
                self.say(io, Message::KeepAlive);
                io.timer(TICK_NS, TICK | u64::from(self.attempts) << 8);
            }
            PAUSE => {
                self.pausing = false;
                if io.connected() {
                    self.ask(io);
                }
            }
            AGAIN if !io.connected() => io.dial(self.address, 0),
            INTEREST if io.connected() && self.stream.greeted => {
                if !self.interested {
                    self.interested = true;
                    self.say(io, Message::Interested);
                }
                self.ask(io);
            }
            HALTING if !self.halting.is_empty() && io.connected() => {
                let n = io.rng().between(1, 20).min(self.halting.len() as u64) as usize;
                let bytes: Vec<u8> = self.halting.drain(..n).collect();
                io.send(&bytes);
                let pause_ns = io.rng().between(1, SECOND_NS / 4);
                io.timer(pause_ns, HALTING | u64::from(self.attempts) << 8);
            }
            _ => {}
        }
    }

    fn ended(&mut self, io: &mut PeerIo<'_>, how: Ended) {
        if !self.done {
            let why = match how {
                Ended::Finished if !self.stream.greeted => "turned away before the handshake",
                Ended::Finished => "closed",
                Ended::Reset => "reset",
                Ended::Refused => "refused",
            };
            self.come_again(io, why);
        }
    }
}
