//! Hostile peers: each has one way of being a nuisance, and a time by which it must be rid of.
//!
//! Owns: the behaviours, their deadlines, the check of both. Never: harm to anybody but the shard.
//! Flow: connect -> misbehave -> closed in time, or kept where there is nothing wrong with it.

use std::{net::SocketAddr, rc::Rc};

use seedring_proto::{
    units::{Block, InfoHash, PeerId, PieceIndex},
    wire::{Handshake, Message, Reserved, extended::MetadataMessage},
};

use super::Score;
use crate::sim::{
    peer::{Ended, Peer, PeerIo, Reading},
    rng,
    torrent::SimTorrent,
};

macro_rules! behaviours {
    ($($(#[$doc:meta])* $name:ident $deadline:expr),* $(,)?) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
        pub enum Behaviour { $($(#[$doc])* $name),* }

        impl Behaviour {
            pub const ALL: &'static [Behaviour] = &[$(Behaviour::$name),*];

            pub fn name(self) -> &'static str {
                match self { $(Behaviour::$name => stringify!($name)),* }
            }

            /// Seconds after which the connection must be over; `None`: nothing forbids it.
            pub fn deadline_s(self) -> Option<u64> {
                match self { $(Behaviour::$name => $deadline),* }
            }
        }
    };
}

/// A message that is wrong in itself ends the connection when it is read; the rest is latency.
const AT_ONCE: Option<u64> = Some(10);
/// The handshake's total of 10 s.
const HANDSHAKE: Option<u64> = Some(20);
/// Nothing heard for 180 s; sooner where a send makes no progress (30 s, 60 s), but what it asked
/// for may have fitted into the buffers of both kernels.
const SILENT: Option<u64> = Some(300);

behaviours! {
    /// 200 random bytes.
    Garbage HANDSHAKE,
    /// A web browser.
    HttpRequest HANDSHAKE,
    /// A good handshake for a torrent that nobody has.
    UnknownTorrent HANDSHAKE,
    /// A handshake byte a second.
    DripHandshake HANDSHAKE,
    /// Connects and says nothing.
    Mute HANDSHAKE,
    /// The protocol string, then nothing.
    HalfHandshake HANDSHAKE,
    /// A good handshake, then random bytes.
    GarbageAfterHandshake SILENT,
    /// A frame of 2 GiB.
    FrameOfGigabytes AT_ONCE,
    /// A request in a frame of 1 MiB.
    FrameTooLongForMessage AT_ONCE,
    /// A `have` of three bytes.
    MessageOfWrongLength AT_ONCE,
    /// A request for piece 0xffffffff.
    RequestNoSuchPiece AT_ONCE,
    /// A request past its piece's end.
    RequestPastEnd AT_ONCE,
    /// A request for nothing.
    RequestEmpty AT_ONCE,
    /// A request for 1 MiB.
    RequestTooLong AT_ONCE,
    /// 20,000 requests as fast as they go, answers read.
    RequestFlood None,
    /// Requests everything and never reads.
    NeverReads SILENT,
    /// Requests everything and reads 50 bytes a second.
    ReadsDrops None,
    /// A good handshake, then gone without a word.
    Vanishes SILENT,
    /// Gone without a word in the middle of blocks.
    VanishesMidBlock SILENT,
    /// Resets in the middle of blocks, and comes again, 20 times.
    ResetsMidBlock None,
    /// Finishes its side after it asked for blocks.
    HalfCloses Some(60),
    /// The same peer id on two connections: this is the second.
    Twin None,
    /// The shard's own peer id.
    OurOwnId AT_ONCE,
    /// Asks for metadata 5,000 times.
    MetadataFlood None,
    /// Asks for a metadata part that there is not.
    MetadataNoSuchPart None,
    /// An extension handshake that is no bencode.
    BadExtension AT_ONCE,
    /// Bencode nested 10,000 deep.
    NestedExtension AT_ONCE,
    /// A bitfield one byte too long.
    BitfieldTooLong AT_ONCE,
    /// A bitfield with all spare bits set.
    BitfieldSpareBits None,
    /// Two bitfields, which real clients send (aria2): no fault.
    BitfieldTwice None,
    /// A `have` of a piece that there is not.
    HaveNoSuchPiece AT_ONCE,
    /// Fast extension messages without having agreed on them.
    FastUnasked AT_ONCE,
    /// Extension messages without having agreed on them.
    ExtensionUnasked AT_ONCE,
    /// Blocks that nobody asked for, megabytes of them.
    UnwantedBlocks None,
    /// Interested, not interested, thousands of times.
    InterestStorm None,
    /// Cancels what it never asked for.
    CancelStorm None,
    /// Requests before it is interested.
    RequestsChoked None,
    /// A message type that there is not, and long.
    UnknownMessages None,
    /// Keep-alives, twenty a second.
    KeepAliveStorm None,
}

pub struct Hostile {
    behaviour: Behaviour,
    torrent: Rc<SimTorrent>,
    score: Score,
    address: SocketAddr,
    peer_id: PeerId,
    ours: PeerId,
    opened_ns: u64,
    open: bool,
    rounds: u32,
    attempt: u64,
}

const STEP: u64 = 1;
const JUDGE: u64 = 2;
const SECOND_NS: u64 = 1_000_000_000;
/// Faults of the run may hold a completion or a segment back for so long.
const SLACK_NS: u64 = 15 * SECOND_NS;
const BLOCK: u32 = 16_384;

impl Hostile {
    pub fn new(
        behaviour: Behaviour,
        torrent: Rc<SimTorrent>,
        score: Score,
        address: SocketAddr,
        peer_id: PeerId,
        ours: PeerId,
    ) -> Hostile {
        score.borrow_mut().hostile += 1;
        let (opened_ns, open, rounds, attempt) = (0, false, 0, 0);
        Hostile {
            behaviour,
            torrent,
            score,
            address,
            peer_id,
            ours,
            opened_ns,
            open,
            rounds,
            attempt,
        }
    }

    fn handshake(&self) -> [u8; 68] {
        use Behaviour::*;
        let mut reserved = Reserved::OURS;
        if self.behaviour == FastUnasked {
            reserved.0[7] = 0;
        }
        if self.behaviour == ExtensionUnasked {
            reserved.0[5] = 0;
        }
        let mut info_hash = self.torrent.info_hash;
        if self.behaviour == UnknownTorrent {
            info_hash = InfoHash([0xab; 20]);
        }
        let peer_id = if self.behaviour == OurOwnId { self.ours } else { self.peer_id };
        Handshake { reserved, info_hash, peer_id }.encode()
    }

    fn say(&self, io: &mut PeerIo<'_>, messages: &[Message<'_>]) {
        let mut out = Vec::new();
        messages.iter().for_each(|message| message.encode(&mut out));
        io.send(&out);
    }

    fn random_block(&self, io: &mut PeerIo<'_>) -> Block {
        let piece = PieceIndex(io.rng().below(u64::from(self.torrent.layout.piece_count())) as u32);
        let length = self.torrent.layout.piece_length(piece).min(BLOCK);
        Block { piece, begin: 0, length }
    }

    fn ask_blocks(&self, io: &mut PeerIo<'_>, count: u32) {
        for _ in 0..count {
            let block = self.random_block(io);
            self.say(io, &[Message::Request(block)]);
        }
    }

    fn request(&self, io: &mut PeerIo<'_>, piece: u32, begin: u32, length: u32) {
        let block = Block { piece: PieceIndex(piece), begin, length };
        self.say(io, &[Message::Interested, Message::Request(block)]);
    }

    fn extension(&self, io: &mut PeerIo<'_>, payload: &[u8]) {
        self.say(io, &[Message::Extended { id: 0, payload }]);
    }

    /// What it does once, right after it connected.
    fn begin(&mut self, io: &mut PeerIo<'_>) {
        use Behaviour::*;
        match self.behaviour {
            Garbage => return self.noise(io, 200),
            HttpRequest => return io.send(b"GET /announce HTTP/1.1\r\nHost: seedring\r\n\r\n"),
            DripHandshake => return io.timer(SECOND_NS, STEP | self.attempt << 8),
            Mute => return,
            HalfHandshake => return io.send(&self.handshake()[..40]),
            _ => io.send(&self.handshake()),
        }
        let field = (self.torrent.layout.piece_count() as usize).div_ceil(8);
        let piece_bytes = self.torrent.layout.piece_length(PieceIndex(0));
        match self.behaviour {
            GarbageAfterHandshake => self.noise(io, 3_000),
            FrameOfGigabytes => io.send(&[0x7f, 0xff, 0xff, 0xff, 6, 0, 0]),
            FrameTooLongForMessage => io.send(&[0, 0x10, 0, 0, 6, 0, 0, 0, 0]),
            MessageOfWrongLength => io.send(&[0, 0, 0, 4, 4, 0, 0, 0]),
            RequestNoSuchPiece => self.request(io, u32::MAX, 0, BLOCK),
            RequestPastEnd => self.request(io, 0, piece_bytes - 1, 2),
            RequestEmpty => self.request(io, 0, 0, 0),
            RequestTooLong => self.request(io, 0, 0, 1 << 20),
            NeverReads => io.read(Reading::Never),
            ReadsDrops => io.read(Reading::BytesPerSecond(50)),
            BadExtension => self.extension(io, b"this is no bencode"),
            NestedExtension => self.extension(io, &[b'l'; 10_000]),
            BitfieldTooLong => self.say(io, &[Message::Bitfield(&vec![0; field + 1])]),
            BitfieldSpareBits => {
                let mut bits = vec![0; field];
                bits[field - 1] = 0xff;
                self.say(io, &[Message::Bitfield(&bits)]);
            }
            BitfieldTwice => {
                let bits = vec![0; field];
                self.say(io, &[Message::Bitfield(&bits), Message::Bitfield(&bits)]);
            }
            HaveNoSuchPiece => self.say(io, &[Message::Have(PieceIndex(u32::MAX - 1))]),
            FastUnasked => self.say(io, &[Message::HaveNone]),
            ExtensionUnasked => self.extension(io, b"de"),
            Vanishes => io.vanish(),
            MetadataNoSuchPart => {
                let mut out = Vec::new();
                MetadataMessage::Request { piece: u32::MAX }.encode(1, &mut out);
                io.send(&out);
            }
            _ => {}
        }
        io.timer(SECOND_NS / 20, STEP | self.attempt << 8);
    }

    /// What it does again and again; `true`: and again.
    fn go_on(&mut self, io: &mut PeerIo<'_>) -> bool {
        use Behaviour::*;
        let first = self.rounds == 0;
        self.rounds += 1;
        if first {
            let greedy = [RequestFlood, NeverReads, ReadsDrops, VanishesMidBlock, ResetsMidBlock];
            if greedy.contains(&self.behaviour) || self.behaviour == HalfCloses {
                self.say(io, &[Message::Interested]);
            }
        }
        match self.behaviour {
            DripHandshake => {
                let at = (self.rounds as usize - 1).min(67);
                io.send(&self.handshake()[at..=at]);
                io.timer(SECOND_NS, STEP | self.attempt << 8);
                return false;
            }
            RequestFlood if io.unsent_bytes() < 100_000 => self.ask_blocks(io, 100),
            NeverReads | ReadsDrops if self.rounds == 10 => self.ask_blocks(io, 500),
            VanishesMidBlock if self.rounds == 10 => self.ask_blocks(io, 200),
            VanishesMidBlock if self.rounds == 12 => io.vanish(),
            ResetsMidBlock if self.rounds % 12 == 10 => self.ask_blocks(io, 50),
            ResetsMidBlock if self.rounds.is_multiple_of(12) => {
                io.dial(self.address, SECOND_NS / 10);
                return false;
            }
            HalfCloses if self.rounds == 10 => self.ask_blocks(io, 20),
            HalfCloses if self.rounds == 11 => io.finish(),
            MetadataFlood if io.unsent_bytes() < 100_000 => {
                let mut out = Vec::new();
                (0..100).for_each(|_| MetadataMessage::Request { piece: 0 }.encode(1, &mut out));
                io.send(&out);
            }
            UnwantedBlocks if io.unsent_bytes() < 100_000 => {
                let data = [7; BLOCK as usize];
                let piece = PieceIndex(0);
                self.say(io, &[Message::Piece { piece, begin: 0, data: &data }]);
            }
            InterestStorm => (0..50).for_each(|_| {
                self.say(io, &[Message::Interested, Message::NotInterested]);
            }),
            CancelStorm => (0..50).for_each(|_| {
                let block = self.random_block(io);
                self.say(io, &[Message::Cancel(block)]);
            }),
            RequestsChoked => self.ask_blocks(io, 5),
            UnknownMessages if io.unsent_bytes() < 100_000 => {
                io.send(&[0, 0, 4, 0, 99]);
                io.send(&[1; 1023]);
            }
            KeepAliveStorm => self.say(io, &[Message::KeepAlive]),
            _ => {}
        }
        self.rounds < 400
    }

    fn noise(&self, io: &mut PeerIo<'_>, bytes: usize) {
        let mut noise = vec![0; bytes];
        rng::fill(io.rng().draw(), 0, &mut noise);
        io.send(&noise);
    }

    /// Its connection ended, or the time to do so is over.
    fn judge(&mut self, io: &mut PeerIo<'_>, ended: bool) {
        let took_ns = io.now_ns() - self.opened_ns;
        let Some(deadline_s) = self.behaviour.deadline_s() else { return };
        let late = took_ns > deadline_s * SECOND_NS + 2 * SLACK_NS || !ended;
        if late && !self.score.borrow().stopping {
            let name = self.behaviour.name();
            let text = format!("{name} was kept for {} s", took_ns / SECOND_NS);
            self.score.borrow_mut().wrong(text);
        }
    }
}

impl Peer for Hostile {
    fn opened(&mut self, io: &mut PeerIo<'_>) {
        self.opened_ns = io.now_ns();
        self.open = true;
        self.rounds = if self.behaviour == Behaviour::ResetsMidBlock { self.rounds } else { 0 };
        self.attempt += 1;
        self.begin(io);
        if let Some(deadline_s) = self.behaviour.deadline_s()
            && io.connected()
        {
            io.timer(deadline_s * SECOND_NS + SLACK_NS + 1, JUDGE | self.attempt << 8);
        }
    }

    fn received(&mut self, _: &mut PeerIo<'_>, _: &[u8]) {}

    fn timer(&mut self, io: &mut PeerIo<'_>, tag: u64) {
        if tag >> 8 != self.attempt || !io.connected() {
            return;
        }
        match tag & 0xff {
            STEP if self.go_on(io) => io.timer(SECOND_NS / 20, tag),
            JUDGE if self.open => {
                let ended = io.is_abandoned();
                if ended {
                    let name = self.behaviour.name();
                    *self.score.borrow_mut().ended.entry(name).or_default() += 1;
                }
                self.judge(io, ended);
            }
            _ => {}
        }
    }

    fn ended(&mut self, io: &mut PeerIo<'_>, how: Ended) {
        if how == Ended::Refused {
            // Nobody could take it: it tries again, or a run would prove nothing.
            io.dial(self.address, SECOND_NS);
            return;
        }
        self.open = false;
        *self.score.borrow_mut().ended.entry(self.behaviour.name()).or_default() += 1;
        self.judge(io, true);
    }
}
