//! Owns: the list of faults a peer can have, one variant each, in words for a log line.
//! Never: holds what the peer sent, or decides about a ban.
//! Flow: wire and session return one; the connection closes and counts it.

use std::time::Duration;

use crate::bencode;
use crate::units::{Block, PieceIndex};

/// What a peer did that closes its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    #[error("the first bytes are no BitTorrent handshake")]
    NotBitTorrent,
    #[error("no whole handshake within {0:?}")]
    HandshakeTimeout(Duration),
    #[error("a frame of {length} bytes, allowed are {max} for message {id}")]
    FrameTooLong { id: u8, length: u32, max: u32 },
    #[error("a frame of {0} bytes, no message is that long")]
    FrameLength(u32),
    #[error("message {id} has {length} bytes, which is not its length")]
    MessageLength { id: u8, length: u32 },
    #[error("message {0} belongs to the fast extension, which was not negotiated")]
    FastNotNegotiated(u8),
    #[error("an extension message, though the extension protocol was not negotiated")]
    ExtendedNotNegotiated,
    #[error("a bitfield of {got} bytes for a torrent that needs {expected}")]
    BitfieldLength { got: usize, expected: usize },
    #[error("a bitfield with spare bits set")]
    BitfieldSpareBits,
    #[error("piece {piece} of a torrent with {count} pieces")]
    PieceOutOfRange { piece: PieceIndex, count: u32 },
    #[error("a request for no bytes of piece {0}")]
    RequestEmpty(PieceIndex),
    #[error("a request for {length} bytes, allowed are {max}")]
    RequestTooLong { length: u32, max: u32 },
    #[error("a request past the end of piece {}: {} bytes at {}", .0.piece, .0.length, .0.begin)]
    RequestPastEnd(Block),
    #[error("a request for piece {0}, which was not offered")]
    RequestNotOffered(PieceIndex),
    #[error("{refused} requests refused and more sent")]
    RequestFlood { refused: u32 },
    #[error("{count} requests repeated or taken back and more sent")]
    IdleFlood { count: u32 },
    #[error("{count} rejects of what was not asked for")]
    RejectFlood { count: u32 },
    #[error("{bytes} bytes that nobody asked for")]
    UnwantedData { bytes: u64 },
    #[error("an extension handshake that is not bencode: {0}")]
    ExtensionHandshake(bencode::Error),
    #[error("a metadata message that is not bencode: {0}")]
    MetadataMessage(bencode::Error),
    #[error("{bytes} bytes of metadata sent and more asked for")]
    MetadataFlood { bytes: u64 },
    #[error("a metadata piece of a whole of {got} bytes, after {claimed} were claimed")]
    MetadataTotal { got: u32, claimed: u32 },
    #[error("metadata piece {piece} has {got} bytes, expected were {expected}")]
    MetadataLength { piece: u32, got: usize, expected: usize },
    #[error("metadata piece {piece} of a whole that has {count}")]
    MetadataOutOfRange { piece: u32, count: u32 },
    #[error("a peer exchange message that is not bencode: {0}")]
    PexMessage(bencode::Error),
    #[error("peer exchange more often than once a minute, {ignored} messages too many")]
    PexFlood { ignored: u32 },
    #[error("an lt_donthave message of {got} bytes, expected were 4")]
    DontHaveLength { got: usize },
    #[error("nothing heard for {0:?}")]
    Silent(Duration),
    #[error("nobody interested for {0:?}")]
    Inactive(Duration),
}

impl Violation {
    /// Whether the peer broke a rule. The other ends of a connection are ordinary: they close it
    /// and say nothing about the peer.
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::Silent(_) | Self::Inactive(_))
    }
}
