//! Owns: what a mixed peer fetches from who downloads from it: which pieces it lacks, which are
//! under way, and that each byte is the content's.
//! Never: sends; keeps a block. Flow: bitfield, have, unchoke -> `ask` -> requests; a block ->
//! `take` -> the piece is had, and told to all.

use std::collections::VecDeque;

use anyhow::{Result, ensure};
use seedring_proto::units::{Block, PieceIndex};

use super::Seeder;
use crate::leech::frames::{self, id};

/// As clients ask for them.
const BLOCK_BYTES: u32 = 16 << 10;
/// Requests that are kept outstanding.
const OUTSTANDING: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Lacking,
    Coming,
    Here,
}

/// Pieces beyond the seeder's share, of all its connections.
pub struct Gained {
    states: Vec<State>,
    /// In the order in which they came.
    here: Vec<u32>,
}

impl Gained {
    pub fn new(pieces: usize) -> Self {
        Gained { states: vec![State::Lacking; pieces], here: Vec::new() }
    }

    pub fn has(&self, piece: u32) -> bool {
        self.states[piece as usize] == State::Here
    }

    pub fn count(&self) -> usize {
        self.here.len()
    }
}

/// A piece whose blocks are being asked for.
struct Coming {
    piece: u32,
    length: u32,
    /// Where the next request begins.
    next: u32,
    /// Bytes that have not come.
    left: u32,
}

/// One connection's side of it.
pub struct Fetch<'a> {
    seeder: &'a Seeder,
    /// What the other side has.
    theirs: Vec<bool>,
    is_unchoked: bool,
    is_interested: bool,
    coming: Vec<Coming>,
    /// Requests without an answer.
    asked: VecDeque<Block>,
    /// How many of the seeder's pieces this connection was told of.
    told: usize,
    expected: Vec<u8>,
}

impl<'a> Fetch<'a> {
    /// `told`: how many gained pieces the bitfield had.
    pub fn new(seeder: &'a Seeder, told: usize) -> Self {
        Fetch {
            seeder,
            theirs: vec![false; seeder.torrent.piece_hashes.len()],
            is_unchoked: false,
            is_interested: false,
            coming: Vec::new(),
            asked: VecDeque::new(),
            told,
            expected: Vec::new(),
        }
    }

    /// A message that is not a seeder's business.
    pub fn hear(&mut self, kind: u8, body: &[u8]) -> Result<()> {
        match kind {
            id::BITFIELD => {
                ensure!(body.len() == self.theirs.len().div_ceil(8), "a bitfield of another size");
                for (piece, has) in self.theirs.iter_mut().enumerate() {
                    *has |= body[piece / 8] & (0x80 >> (piece % 8)) != 0;
                }
            }
            id::HAVE => {
                ensure!(body.len() == 4, "a have of another form");
                let piece = frames::word(body, 0) as usize;
                ensure!(piece < self.theirs.len(), "a have of piece {piece}, which is none");
                self.theirs[piece] = true;
            }
            id::UNCHOKE => self.is_unchoked = true,
            id::CHOKE => {
                // What was asked for is not answered any more (BEP 3).
                self.is_unchoked = false;
                self.let_go();
            }
            id::PIECE => self.take(body)?,
            _ => {}
        }
        Ok(())
    }

    /// Says what has changed, and asks for what is lacking.
    pub fn ask(&mut self, out: &mut Vec<u8>) {
        self.tell(out);
        if !self.is_interested && self.wants_any() {
            self.is_interested = true;
            frames::push_interested(out);
        }
        while self.is_unchoked && self.asked.len() < OUTSTANDING {
            let Some(block) = self.next_block() else { break };
            frames::push_request(out, block);
            self.asked.push_back(block);
        }
        if self.is_interested && self.asked.is_empty() && !self.wants_any() {
            self.is_interested = false;
            out.extend_from_slice(&[0, 0, 0, 1, id::NOT_INTERESTED]);
        }
    }

    /// Pieces that came here, over whichever connection.
    fn tell(&mut self, out: &mut Vec<u8>) {
        let gained = self.seeder.gained();
        for piece in &gained.here[self.told..] {
            out.extend_from_slice(&[0, 0, 0, 5, id::HAVE]);
            out.extend_from_slice(&piece.to_be_bytes());
        }
        self.told = gained.here.len();
    }

    fn wants_any(&self) -> bool {
        let gained = self.seeder.gained();
        let mut pieces = self.theirs.iter().zip(&gained.states).zip(0..);
        pieces.any(|((theirs, own), piece)| {
            *theirs && *own == State::Lacking && !self.seeder.share.has(piece)
        })
    }

    fn next_block(&mut self) -> Option<Block> {
        if self.coming.last().is_none_or(|coming| coming.next == coming.length) {
            let piece = self.claim()?;
            let length = self.seeder.torrent.piece_length(PieceIndex(piece));
            self.coming.push(Coming { piece, length, next: 0, left: length });
        }
        let coming = self.coming.last_mut()?;
        let (begin, length) = (coming.next, BLOCK_BYTES.min(coming.length - coming.next));
        coming.next += length;
        Some(Block { piece: PieceIndex(coming.piece), begin, length })
    }

    /// A piece that they have and nobody here has asked for. Seeders begin at places of their own,
    /// so that not all want the same.
    fn claim(&self) -> Option<u32> {
        let count = self.theirs.len() as u32;
        let share = self.seeder.share;
        let first = (u64::from(count) * u64::from(share.number) / u64::from(share.of)) as u32;
        let mut gained = self.seeder.gained();
        let wanted = |piece: &u32| {
            let at = *piece as usize;
            self.theirs[at] && gained.states[at] == State::Lacking && !share.has(*piece)
        };
        let piece = (first..count).chain(0..first).find(wanted)?;
        gained.states[piece as usize] = State::Coming;
        Some(piece)
    }

    /// One that was not asked for, as it comes after a choke, is dropped.
    fn take(&mut self, body: &[u8]) -> Result<()> {
        ensure!(body.len() > 8, "a block without bytes");
        let (piece, begin) = (frames::word(body, 0), frames::word(body, 4));
        let payload = &body[8..];
        let is_it = |block: &Block| {
            (block.piece.0, block.begin, block.length) == (piece, begin, payload.len() as u32)
        };
        let Some(at) = self.asked.iter().position(is_it) else { return Ok(()) };
        self.asked.remove(at);
        let seeder = self.seeder;
        self.expected.resize(payload.len(), 0);
        let offset = u64::from(piece) * u64::from(seeder.torrent.piece_bytes) + u64::from(begin);
        seeder.content.read(&mut self.expected, offset)?;
        seeder.got(payload.len() as u64, self.expected == payload);
        ensure!(self.expected == payload, "a block of piece {piece} is not the content's");
        let at = self.coming.iter().position(|coming| coming.piece == piece);
        let Some(at) = at else { return Ok(()) };
        self.coming[at].left -= payload.len() as u32;
        if self.coming[at].left == 0 {
            self.coming.remove(at);
            let mut gained = seeder.gained();
            gained.states[piece as usize] = State::Here;
            gained.here.push(piece);
        }
        Ok(())
    }

    /// What was begun may be fetched by another connection.
    fn let_go(&mut self) {
        self.asked.clear();
        let mut gained = self.seeder.gained();
        for coming in self.coming.drain(..) {
            gained.states[coming.piece as usize] = State::Lacking;
        }
    }
}

impl Drop for Fetch<'_> {
    fn drop(&mut self) {
        self.let_go();
    }
}
