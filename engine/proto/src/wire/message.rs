//! Owns: the messages of BEP 3, BEP 5 (port), BEP 6 and BEP 10: ids, lengths, parsing, encoding.
//! Never: knows a torrent: bounds against pieces are the session's to check.
//! Flow: the frame reader hands whole frames here; sessions encode answers into a send buffer.

use crate::units::{Block, PieceIndex};
use crate::wire::Violation;

/// The first byte of a frame.
pub mod id {
    pub const CHOKE: u8 = 0;
    pub const UNCHOKE: u8 = 1;
    pub const INTERESTED: u8 = 2;
    pub const NOT_INTERESTED: u8 = 3;
    pub const HAVE: u8 = 4;
    pub const BITFIELD: u8 = 5;
    pub const REQUEST: u8 = 6;
    pub const PIECE: u8 = 7;
    pub const CANCEL: u8 = 8;
    pub const PORT: u8 = 9;
    pub const SUGGEST: u8 = 13;
    pub const HAVE_ALL: u8 = 14;
    pub const HAVE_NONE: u8 = 15;
    pub const REJECT: u8 = 16;
    pub const ALLOWED_FAST: u8 = 17;
    pub const EXTENDED: u8 = 20;
}

/// A message; what it carries lies in the bytes it was parsed from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    KeepAlive,
    Choke,
    Unchoke,
    Interested,
    NotInterested,
    Have(PieceIndex),
    Bitfield(&'a [u8]),
    Request(Block),
    Piece {
        piece: PieceIndex,
        begin: u32,
        data: &'a [u8],
    },
    /// The front of a `piece` whose data a streaming reader gives out as it comes.
    PieceBegin(Block),
    /// The next bytes of the piece that began last; never none.
    PieceData(&'a [u8]),
    Cancel(Block),
    Port(u16),
    Suggest(PieceIndex),
    HaveAll,
    HaveNone,
    Reject(Block),
    AllowedFast(PieceIndex),
    /// Number 0 is the extension handshake, others are what our handshake gave them.
    Extended {
        id: u8,
        payload: &'a [u8],
    },
    /// A frame that the reader steps over without keeping it: an unknown id, or a `piece` where
    /// none can be expected. `length` counts the bytes after the length prefix.
    Skipped {
        id: u8,
        length: u32,
    },
}

/// How long the frame of this id is, the id counted: exactly, or at least.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Length {
    Exactly(u32),
    AtLeast(u32),
    Unknown,
}

pub(super) fn length_of(id: u8) -> Length {
    match id {
        id::CHOKE | id::UNCHOKE | id::INTERESTED | id::NOT_INTERESTED => Length::Exactly(1),
        id::HAVE_ALL | id::HAVE_NONE => Length::Exactly(1),
        id::HAVE | id::SUGGEST | id::ALLOWED_FAST => Length::Exactly(5),
        id::REQUEST | id::CANCEL | id::REJECT => Length::Exactly(13),
        id::PORT => Length::Exactly(3),
        id::BITFIELD => Length::AtLeast(1),
        id::PIECE => Length::AtLeast(9),
        id::EXTENDED => Length::AtLeast(2),
        _ => Length::Unknown,
    }
}

impl<'a> Message<'a> {
    /// Reads the bytes after the length prefix; none is a keep-alive.
    ///
    /// # Errors
    /// A length that is not the message's.
    pub fn parse(frame: &'a [u8]) -> Result<Self, Violation> {
        let Some((&id, body)) = frame.split_first() else {
            return Ok(Self::KeepAlive);
        };
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let wrong = Violation::MessageLength { id, length };
        let fits = match length_of(id) {
            Length::Exactly(expected) => length == expected,
            Length::AtLeast(least) => length >= least,
            Length::Unknown => true,
        };
        if !fits {
            return Err(wrong);
        }
        let message = match id {
            id::CHOKE => Self::Choke,
            id::UNCHOKE => Self::Unchoke,
            id::INTERESTED => Self::Interested,
            id::NOT_INTERESTED => Self::NotInterested,
            id::HAVE => Self::Have(PieceIndex(number(body, 0))),
            id::BITFIELD => Self::Bitfield(body),
            id::REQUEST => Self::Request(block(body)),
            id::PIECE => Self::Piece {
                piece: PieceIndex(number(body, 0)),
                begin: number(body, 4),
                data: &body[8..],
            },
            id::CANCEL => Self::Cancel(block(body)),
            id::PORT => Self::Port(u16::from_be_bytes([body[0], body[1]])),
            id::SUGGEST => Self::Suggest(PieceIndex(number(body, 0))),
            id::HAVE_ALL => Self::HaveAll,
            id::HAVE_NONE => Self::HaveNone,
            id::REJECT => Self::Reject(block(body)),
            id::ALLOWED_FAST => Self::AllowedFast(PieceIndex(number(body, 0))),
            id::EXTENDED => Self::Extended { id: body[0], payload: &body[1..] },
            _ => Self::Skipped { id, length },
        };
        Ok(message)
    }

    /// Appends the message with its length prefix.
    ///
    /// # Panics
    /// For [`Message::Skipped`], which stands for bytes that are not there, and for the parts of a
    /// piece, [`Message::PieceBegin`] and [`Message::PieceData`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::KeepAlive => out.extend_from_slice(&[0; 4]),
            Self::Choke => bare(out, id::CHOKE),
            Self::Unchoke => bare(out, id::UNCHOKE),
            Self::Interested => bare(out, id::INTERESTED),
            Self::NotInterested => bare(out, id::NOT_INTERESTED),
            Self::HaveAll => bare(out, id::HAVE_ALL),
            Self::HaveNone => bare(out, id::HAVE_NONE),
            Self::Have(piece) => with_piece(out, id::HAVE, piece),
            Self::Suggest(piece) => with_piece(out, id::SUGGEST, piece),
            Self::AllowedFast(piece) => with_piece(out, id::ALLOWED_FAST, piece),
            Self::Request(block) => with_block(out, id::REQUEST, block),
            Self::Cancel(block) => with_block(out, id::CANCEL, block),
            Self::Reject(block) => with_block(out, id::REJECT, block),
            Self::Bitfield(bits) => {
                prefix(out, id::BITFIELD, bits.len());
                out.extend_from_slice(bits);
            }
            Self::Piece { piece, begin, data } => {
                let length = u32::try_from(data.len()).expect("invariant: a block fits in a frame");
                out.extend_from_slice(&piece_header(Block { piece, begin, length }));
                out.extend_from_slice(data);
            }
            Self::Port(port) => {
                prefix(out, id::PORT, 2);
                out.extend_from_slice(&port.to_be_bytes());
            }
            Self::Extended { id, payload } => {
                prefix(out, id::EXTENDED, payload.len() + 1);
                out.push(id);
                out.extend_from_slice(payload);
            }
            Self::Skipped { .. } => panic!("a skipped frame has no bytes to encode"),
            Self::PieceBegin(_) | Self::PieceData(_) => panic!("a part of a piece is no frame"),
        }
    }
}

/// The 13 bytes before a block's data: length prefix, id, piece and begin.
pub fn piece_header(block: Block) -> [u8; 13] {
    let mut header = [0; 13];
    header[..4].copy_from_slice(&(9 + block.length).to_be_bytes());
    header[4] = id::PIECE;
    header[5..9].copy_from_slice(&block.piece.0.to_be_bytes());
    header[9..].copy_from_slice(&block.begin.to_be_bytes());
    header
}

/// The block of these 13 bytes, whose length prefix is at least 9.
pub(super) fn piece_block(header: &[u8; 13]) -> Block {
    let length = number(header, 0) - 9;
    Block { piece: PieceIndex(number(header, 5)), begin: number(header, 9), length }
}

fn number(body: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]])
}

fn block(body: &[u8]) -> Block {
    Block { piece: PieceIndex(number(body, 0)), begin: number(body, 4), length: number(body, 8) }
}

/// Length prefix and id of a frame with `body` bytes after the id.
pub(crate) fn prefix(out: &mut Vec<u8>, id: u8, body: usize) {
    let length = u32::try_from(body + 1).expect("invariant: frames are far below 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.push(id);
}

fn bare(out: &mut Vec<u8>, id: u8) {
    out.extend_from_slice(&[0, 0, 0, 1, id]);
}

fn with_piece(out: &mut Vec<u8>, id: u8, piece: PieceIndex) {
    let [a, b, c, d] = piece.0.to_be_bytes();
    out.extend_from_slice(&[0, 0, 0, 5, id, a, b, c, d]);
}

fn with_block(out: &mut Vec<u8>, id: u8, block: Block) {
    let mut frame = [0; 17];
    frame[3] = 13;
    frame[4] = id;
    frame[5..9].copy_from_slice(&block.piece.0.to_be_bytes());
    frame[9..13].copy_from_slice(&block.begin.to_be_bytes());
    frame[13..].copy_from_slice(&block.length.to_be_bytes());
    out.extend_from_slice(&frame);
}

#[cfg(test)]
mod tests;
