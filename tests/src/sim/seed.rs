//! Seeds: peers that shards download from, honest ones and hostile ones.
//!
//! Owns: what a seed has and how it gives it: pace, chokes, rejects, lies. Never: the shard's code
//! for the same things. Flow: connect -> say what it has -> unchoke -> requests -> blocks at its
//! pace; cut off, it comes again.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    rc::Rc,
};

use seedring_proto::{
    units::{Block, PeerId, PieceIndex},
    wire::{Handshake, Message, Reserved},
};

use super::{
    leech::Stream,
    peer::{Ended, Peer, PeerIo},
    rng,
    torrent::SimTorrent,
};

/// What is wrong with a seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malice {
    None,
    /// Chance in 1,000 that a block has a wrong byte.
    Poison(u16),
    /// Sends blocks that nobody asked for beside the others.
    Unrequested,
    /// Begins its first block and ends it never.
    Endless,
    /// Says that it has everything and gives nothing.
    Lies,
}

/// How a seed goes about it.
#[derive(Clone, Debug)]
pub struct Manners {
    pub fast: bool,
    pub bytes_per_s: u64,
    /// What it has, by piece; of the rest it gets one every so often.
    pub has: Vec<bool>,
    pub gains_every_ns: Option<u64>,
    /// Chance in 1,000 a block that it chokes for some seconds.
    pub chokes: u16,
    /// Chance in 1,000 a request that it is turned down (with the fast extension).
    pub rejects: u16,
    /// Goes without a word in the middle of this block of those it gives, and comes again.
    pub vanishes_at: Option<u64>,
    pub malice: Malice,
    /// It waits to be dialled; otherwise it connects, and comes again when it is cut off.
    pub waits: bool,
}

impl Manners {
    /// Has everything and gives it at this pace.
    pub fn plain(pieces: u32, bytes_per_s: u64) -> Manners {
        Manners {
            fast: true,
            bytes_per_s,
            has: vec![true; pieces as usize],
            gains_every_ns: None,
            chokes: 0,
            rejects: 0,
            vanishes_at: None,
            malice: Malice::None,
            waits: false,
        }
    }
}

/// What all seeds of a run gave.
#[derive(Default, Debug)]
pub struct Given {
    pub bytes: u64,
    /// Whole blocks, by piece and begin: how often each was sent.
    pub blocks: BTreeMap<(u32, u32), u32>,
    pub poisoned: u64,
    /// Pieces in the order in which they were first asked for.
    pub order: Vec<u32>,
    /// What the shard asked for although it may not: each is a failure.
    pub wrong: Vec<String>,
}

impl Given {
    /// Blocks that were sent more than once.
    pub fn doubles(&self) -> u64 {
        self.blocks.values().map(|times| u64::from(*times - 1)).sum()
    }
}

pub type Gifts = Rc<RefCell<Given>>;

pub struct Seed {
    torrent: Rc<SimTorrent>,
    manners: Manners,
    gifts: Gifts,
    address: SocketAddr,
    peer_id: PeerId,
    stream: Stream,
    queue: VecDeque<Block>,
    serving: bool,
    choking: bool,
    wanted: bool,
    given: u64,
    attempt: u64,
    retired: bool,
}

const SERVE: u64 = 1;
const UNCHOKE: u64 = 2;
const GAIN: u64 = 3;
const DRIP: u64 = 4;
const SECOND_NS: u64 = 1_000_000_000;
/// Bytes in its own kernel above which a seed waits.
const UNSENT_MAX: usize = 256 << 10;

impl Seed {
    pub fn new(
        torrent: Rc<SimTorrent>,
        manners: Manners,
        gifts: Gifts,
        address: SocketAddr,
        number: u64,
    ) -> Seed {
        let mut peer_id = PeerId(*b"-SE0001-............");
        rng::fill(number, 0, &mut peer_id.0[8..]);
        Seed {
            torrent,
            manners,
            gifts,
            address,
            peer_id,
            stream: Stream::default(),
            queue: VecDeque::new(),
            serving: false,
            choking: true,
            wanted: false,
            given: 0,
            attempt: 0,
            retired: false,
        }
    }

    fn say(&self, io: &mut PeerIo<'_>, message: Message<'_>) {
        let mut out = Vec::new();
        message.encode(&mut out);
        io.send(&out);
    }

    fn remind(&self, io: &mut PeerIo<'_>, after_ns: u64, tag: u64) {
        io.timer(after_ns, tag | self.attempt << 8);
    }

    fn say_what_it_has(&self, io: &mut PeerIo<'_>) {
        let has = &self.manners.has;
        let all = self.manners.malice == Malice::Lies || has.iter().all(|has| *has);
        if all && self.manners.fast {
            return self.say(io, Message::HaveAll);
        }
        let mut bits = vec![0u8; has.len().div_ceil(8)];
        for (piece, _) in has.iter().enumerate().filter(|(_, has)| all || **has) {
            bits[piece / 8] |= 0x80 >> (piece % 8);
        }
        self.say(io, Message::Bitfield(&bits));
    }

    fn message(&mut self, io: &mut PeerIo<'_>, frame: &[u8]) {
        match Message::parse(frame) {
            Ok(Message::Interested) => {
                self.wanted = true;
                if self.choking {
                    let after_ns = io.rng().below(SECOND_NS / 2);
                    self.remind(io, after_ns, UNCHOKE);
                }
            }
            Ok(Message::NotInterested) => self.wanted = false,
            Ok(Message::Request(block)) => self.requested(io, block),
            Ok(Message::Cancel(block)) => {
                let before = self.queue.len();
                self.queue.retain(|queued| *queued != block);
                if self.queue.len() < before && self.manners.fast {
                    self.say(io, Message::Reject(block));
                }
            }
            Ok(_) => {}
            Err(violation) => self.wrong(format!("a message that is none: {violation}")),
        }
    }

    fn wrong(&self, text: String) {
        self.gifts.borrow_mut().wrong.push(text);
    }

    fn requested(&mut self, io: &mut PeerIo<'_>, block: Block) {
        let liar = self.manners.malice == Malice::Lies;
        let has = self.manners.has.get(block.piece.0 as usize).copied().unwrap_or(false);
        if !has && !liar {
            return self.wrong(format!("asked for {block:?}, which this seed does not have"));
        }
        if self.queue.contains(&block) {
            return self.wrong(format!("asked twice for {block:?}"));
        }
        let length = self.torrent.layout.piece_length(block.piece);
        if block.length == 0 || block.begin + block.length > length {
            return self.wrong(format!("asked for {block:?} of a piece of {length} bytes"));
        }
        let mut gifts = self.gifts.borrow_mut();
        if !gifts.order.contains(&block.piece.0) {
            gifts.order.push(block.piece.0);
        }
        drop(gifts);
        let refused = self.choking || liar || io.rng().per_mille(self.manners.rejects);
        if refused && self.manners.fast {
            return self.say(io, Message::Reject(block));
        }
        if self.choking || liar {
            return; // dropped: a choke crossed with it, or it says nothing
        }
        self.queue.push_back(block);
        self.serve_later(io);
    }

    /// The next block takes its time.
    fn serve_later(&mut self, io: &mut PeerIo<'_>) {
        let Some(block) = self.queue.front() else { return };
        if !self.serving {
            self.serving = true;
            let cost_ns = u64::from(block.length) * SECOND_NS / self.manners.bytes_per_s.max(1);
            self.remind(io, cost_ns, SERVE);
        }
    }

    fn serve(&mut self, io: &mut PeerIo<'_>) {
        if io.unsent_bytes() > UNSENT_MAX {
            return self.remind(io, SECOND_NS / 20, SERVE);
        }
        self.serving = false;
        let Some(block) = self.queue.pop_front() else { return };
        let mut data = vec![0; block.length as usize];
        self.torrent.fill(self.torrent.layout.block_offset(block), &mut data);
        let poison =
            matches!(self.manners.malice, Malice::Poison(chance) if io.rng().per_mille(chance));
        if poison {
            data[block.length as usize / 2] ^= 0x55;
        }
        let mut out = Vec::new();
        let (piece, begin) = (block.piece, block.begin);
        Message::Piece { piece, begin, data: &data }.encode(&mut out);
        self.given += 1;
        if self.manners.malice == Malice::Endless {
            io.send(&out[..100]);
            self.serving = true; // for ever
            return self.remind(io, SECOND_NS, DRIP);
        }
        if self.manners.vanishes_at == Some(self.given) {
            io.send(&out[..out.len() / 2]);
            io.vanish();
            return self.come_again(io);
        }
        io.send(&out);
        let mut gifts = self.gifts.borrow_mut();
        gifts.bytes += u64::from(block.length);
        gifts.poisoned += u64::from(poison);
        *gifts.blocks.entry((piece.0, begin)).or_default() += 1;
        drop(gifts);
        if self.manners.malice == Malice::Unrequested && io.rng().per_mille(100) {
            self.say(io, Message::Piece { piece: PieceIndex(0), begin: 0, data: &data });
        }
        if io.rng().per_mille(self.manners.chokes) {
            self.choke(io);
        }
        self.serve_later(io);
    }

    fn choke(&mut self, io: &mut PeerIo<'_>) {
        self.choking = true;
        self.say(io, Message::Choke);
        let dropped = std::mem::take(&mut self.queue);
        if self.manners.fast {
            dropped.into_iter().for_each(|block| self.say(io, Message::Reject(block)));
        }
        let pause_ns = io.rng().between(SECOND_NS, 8 * SECOND_NS);
        self.remind(io, pause_ns, UNCHOKE);
    }

    /// One more piece of those it lacks.
    fn gain(&mut self, io: &mut PeerIo<'_>) {
        let lacks: Vec<usize> =
            (0..self.manners.has.len()).filter(|at| !self.manners.has[*at]).collect();
        if lacks.is_empty() {
            return;
        }
        let piece = *io.rng().pick(&lacks);
        self.manners.has[piece] = true;
        if io.connected() && self.stream.greeted {
            self.say(io, Message::Have(PieceIndex(piece as u32)));
        }
    }

    fn come_again(&mut self, io: &mut PeerIo<'_>) {
        // Control bans who poisons, and who was never honest has no need to come back.
        self.retired |= self.manners.malice != Malice::None;
        if !self.manners.waits && !self.retired {
            let pause_ns = io.rng().between(SECOND_NS, 8 * SECOND_NS);
            io.dial(self.address, pause_ns);
        }
    }
}

impl Peer for Seed {
    fn opened(&mut self, io: &mut PeerIo<'_>) {
        self.attempt += 1;
        self.stream = Stream::default();
        self.queue.clear();
        (self.serving, self.choking, self.wanted) = (false, true, false);
        let mut reserved = Reserved::default();
        reserved.0[7] |= if self.manners.fast { 0x04 } else { 0 };
        let (info_hash, peer_id) = (self.torrent.info_hash, self.peer_id);
        io.send(&Handshake { reserved, info_hash, peer_id }.encode());
        self.say_what_it_has(io);
        if let Some(every_ns) = self.manners.gains_every_ns {
            self.remind(io, every_ns, GAIN);
        }
    }

    fn received(&mut self, io: &mut PeerIo<'_>, bytes: &[u8]) {
        self.stream.feed(bytes);
        if !self.stream.greeted && self.stream.handshake().is_none() {
            return;
        }
        while io.connected()
            && let Some(frame) = self.stream.frame()
        {
            self.message(io, &frame);
        }
    }

    fn timer(&mut self, io: &mut PeerIo<'_>, tag: u64) {
        if tag >> 8 != self.attempt || !io.connected() {
            return;
        }
        match tag & 0xff {
            SERVE => self.serve(io),
            UNCHOKE if self.wanted && self.choking => {
                self.choking = false;
                self.say(io, Message::Unchoke);
            }
            GAIN => {
                self.gain(io);
                let every_ns = self.manners.gains_every_ns.unwrap_or(SECOND_NS);
                self.remind(io, every_ns, GAIN);
            }
            DRIP => {
                io.send(&[0]);
                self.remind(io, SECOND_NS, DRIP);
            }
            _ => {}
        }
    }

    fn ended(&mut self, io: &mut PeerIo<'_>, how: Ended) {
        self.attempt += 1;
        if how == Ended::Refused {
            return io.dial(self.address, SECOND_NS);
        }
        self.come_again(io);
    }
}
