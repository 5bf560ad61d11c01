//! Owns: cutting a byte stream into frames: at most one frame that arrived in parts is kept.
//! Never: keeps more than arrived, or a frame that nobody reads.
//! Flow: each receive's bytes go in, whole messages come out, in their order; the data of pieces
//! in parts where that is asked for.

use crate::units::Block;
use crate::wire::message::{self, Length, Message, id};
use crate::wire::violation::Violation;

/// No frame is longer, a bitfield by piece count excepted.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;
/// An extension message at most: handshakes of real clients stay under 1 KiB, metadata pieces
/// (BEP 9) at 16 KiB and a head.
pub const EXTENDED_BYTES_MAX: u32 = 64 << 10;

/// A `piece` frame before its data: length prefix, id, piece and begin.
const PIECE_HEAD_BYTES: usize = 13;
/// Room for a request or cancel that arrives in parts; longer frames grow it, then give it back.
const KEPT_BYTES: usize = 32;

/// What a connection accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameLimits {
    /// Bytes of a bitfield at most, without the id: (pieces + 7) / 8.
    pub bitfield_bytes: u32,
    /// Bytes of data in a `piece` message at most; 0 steps over such messages.
    pub piece_data_bytes: u32,
    /// The highest extension number that our handshake gave; others are stepped over.
    pub extended_id: u8,
}

/// See the module. It holds 32 bytes once a frame came in parts, and none after `shrink`.
#[derive(Debug)]
pub struct FrameReader {
    limits: FrameLimits,
    /// The front of a frame whose rest has not come yet.
    partial: Vec<u8>,
    /// `partial` was given out whole and is emptied at the next call.
    spent: bool,
    /// `piece` frames are given out in parts.
    stream_pieces: bool,
    /// The frame whose `rest_bytes` are to come is given out, not skipped.
    streaming: bool,
    /// Bytes of a skipped or streamed frame that are still to come.
    rest_bytes: u32,
}

/// What the first bytes of a frame say.
enum Head {
    /// This many bytes in all are needed to say more.
    Need(usize),
    /// The frame has this many bytes, prefix counted.
    Whole(usize),
    /// Step over it: bytes of the head, and the frame's length after the prefix.
    Skip { head: usize, id: u8, length: u32 },
    /// Give the data of a `piece` out as it comes.
    Stream(Block),
}

impl FrameReader {
    pub fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            partial: Vec::new(),
            spent: false,
            stream_pieces: false,
            streaming: false,
            rest_bytes: 0,
        }
    }

    /// From the next `piece` frame on: on, it is [`Message::PieceBegin`] and then
    /// [`Message::PieceData`] for what came of it, so that data is never gathered here; off, it is
    /// [`Message::Piece`]. Where `piece_data_bytes` is 0 it is stepped over either way.
    pub fn stream_pieces(&mut self, on: bool) {
        self.stream_pieces = on;
    }

    /// Other limits, from the next frame on.
    pub fn set_limits(&mut self, limits: FrameLimits) {
        self.limits = limits;
    }

    /// Reads the next message from `input`, which continues where the last call stopped. Gives
    /// the count of bytes used; without a message, all are used.
    ///
    /// # Errors
    /// A frame longer than allowed, as soon as its length and id are there, or a message whose
    /// length is not its own.
    pub fn next<'a>(
        &'a mut self,
        input: &'a [u8],
    ) -> Result<(usize, Option<Message<'a>>), Violation> {
        if self.spent {
            self.spent = false;
            self.release();
        }
        if self.streaming && self.rest_bytes > 0 {
            return Ok(self.data(input));
        }
        let skipped = (self.rest_bytes as usize).min(input.len());
        self.rest_bytes -= skipped as u32;
        let rest = &input[skipped..];
        if !self.partial.is_empty() {
            return self.complete(rest, skipped);
        }
        match head(rest, &self.limits, self.stream_pieces)? {
            Head::Whole(bytes) if bytes <= rest.len() => {
                Ok((skipped + bytes, Some(Message::parse(&rest[4..bytes])?)))
            }
            Head::Skip { head, id, length } => {
                Ok((skipped + head, Some(self.skip(head, id, length))))
            }
            Head::Stream(block) => Ok((skipped + PIECE_HEAD_BYTES, Some(self.stream(block)))),
            Head::Whole(_) | Head::Need(_) => {
                if !rest.is_empty() {
                    self.partial.reserve_exact(KEPT_BYTES.max(rest.len()));
                    self.partial.extend_from_slice(rest);
                }
                Ok((input.len(), None))
            }
        }
    }

    /// Whether the stream stands in the middle of a frame.
    pub fn mid_frame(&self) -> bool {
        self.rest_bytes > 0 || (!self.partial.is_empty() && !self.spent)
    }

    /// Bytes held on the heap.
    pub fn held_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// Gives the kept bytes back between two frames.
    pub fn shrink(&mut self) {
        if self.spent || self.partial.is_empty() {
            self.spent = false;
            self.partial = Vec::new();
        }
    }

    /// Adds to the frame in `partial` what it lacks, and not a byte more.
    fn complete<'a>(
        &'a mut self,
        rest: &'a [u8],
        skipped: usize,
    ) -> Result<(usize, Option<Message<'a>>), Violation> {
        let mut used = 0;
        // One that is being gathered already goes on so.
        let stream_pieces = self.stream_pieces && self.partial.len() <= PIECE_HEAD_BYTES;
        loop {
            let (wanted, whole) = match head(&self.partial, &self.limits, stream_pieces)? {
                Head::Need(bytes) => (bytes, false),
                Head::Whole(bytes) => (bytes, true),
                Head::Skip { head, id, length } => {
                    debug_assert_eq!(head, self.partial.len(), "the head was gathered bytewise");
                    self.partial.clear();
                    return Ok((skipped + used, Some(self.skip(head, id, length))));
                }
                Head::Stream(block) => {
                    debug_assert_eq!(PIECE_HEAD_BYTES, self.partial.len(), "gathered bytewise");
                    self.partial.clear();
                    return Ok((skipped + used, Some(self.stream(block))));
                }
            };
            let taken = (wanted - self.partial.len()).min(rest.len() - used);
            self.partial.extend_from_slice(&rest[used..used + taken]);
            used += taken;
            if self.partial.len() < wanted {
                return Ok((skipped + used, None));
            }
            if whole {
                break;
            }
        }
        self.spent = true;
        Ok((skipped + used, Some(Message::parse(&self.partial[4..])?)))
    }

    fn skip(&mut self, head: usize, id: u8, length: u32) -> Message<'static> {
        self.streaming = false;
        self.rest_bytes = 4 + length - head as u32;
        Message::Skipped { id, length }
    }

    fn stream(&mut self, block: Block) -> Message<'static> {
        self.streaming = true;
        self.rest_bytes = block.length;
        Message::PieceBegin(block)
    }

    /// What `input` brings of the frame that is streamed.
    fn data<'a>(&mut self, input: &'a [u8]) -> (usize, Option<Message<'a>>) {
        let bytes = (self.rest_bytes as usize).min(input.len());
        self.rest_bytes -= bytes as u32;
        (bytes, (bytes > 0).then(|| Message::PieceData(&input[..bytes])))
    }

    fn release(&mut self) {
        if self.partial.capacity() > KEPT_BYTES {
            self.partial = Vec::with_capacity(KEPT_BYTES);
        } else {
            self.partial.clear();
        }
    }
}

fn head(bytes: &[u8], limits: &FrameLimits, stream_pieces: bool) -> Result<Head, Violation> {
    let Some((prefix, frame)) = bytes.split_first_chunk::<4>() else {
        return Ok(Head::Need(4));
    };
    let length = u32::from_be_bytes(*prefix);
    if length == 0 {
        return Ok(Head::Whole(4));
    }
    if length > FRAME_BYTES_MAX.max(limits.bitfield_bytes + 1) {
        return Err(Violation::FrameLength(length));
    }
    let Some(&id) = frame.first() else {
        return Ok(Head::Need(5));
    };
    let skip = Head::Skip { head: 5, id, length };
    let fits = match message::length_of(id) {
        Length::Exactly(expected) => length == expected,
        Length::AtLeast(least) => length >= least,
        Length::Unknown => return Ok(skip),
    };
    if !fits {
        return Err(Violation::MessageLength { id, length });
    }
    let max = match id {
        id::BITFIELD => limits.bitfield_bytes + 1,
        id::PIECE if limits.piece_data_bytes == 0 => return Ok(skip),
        id::PIECE => limits.piece_data_bytes + 9,
        id::EXTENDED => match frame.get(1) {
            None => return Ok(Head::Need(6)),
            Some(&number) if number > limits.extended_id => {
                return Ok(Head::Skip { head: 6, id, length });
            }
            Some(_) => EXTENDED_BYTES_MAX,
        },
        _ => FRAME_BYTES_MAX,
    };
    if length > max {
        return Err(Violation::FrameTooLong { id, length, max });
    }
    if id != id::PIECE || !stream_pieces {
        return Ok(Head::Whole(4 + length as usize));
    }
    Ok(match bytes.first_chunk() {
        None => Head::Need(PIECE_HEAD_BYTES),
        Some(header) => Head::Stream(message::piece_block(header)),
    })
}

#[cfg(test)]
mod tests;
