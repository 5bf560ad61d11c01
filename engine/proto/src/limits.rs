//! Owns: the bounds on what a .torrent file, magnet link or `info` dictionary may claim.
//! Never: a capacity of this machine, or what a user may set: those have homes of their own.
//! Flow: parsers and create check against them, so that nothing downstream checks again.

/// A .torrent file, and so metadata from peers: 2,097,152 pieces take 40 MiB of it.
pub const TORRENT_BYTES_MAX: usize = 64 << 20;

/// As libtorrent's.
pub const PIECES_MAX: u32 = 2_097_152;

/// As libtorrent's. A piece is hashed, and may be held in memory, as a whole.
pub const PIECE_BYTES_MAX: u32 = 256 << 20;

/// Components of a file's path, as libtorrent's.
pub const DIRECTORY_DEPTH_MAX: usize = 100;

/// `NAME_MAX` of Linux file systems.
pub const COMPONENT_BYTES_MAX: usize = 255;

/// Requests beyond it are refused by every client; honest ones ask for 16 KiB (BEP 3).
pub const BLOCK_BYTES_MAX: u32 = 128 << 10;

/// Trackers over all tiers, web seeds, and DHT nodes: what comes after is ignored.
pub const ADDRESSES_MAX: usize = 1000;

/// Of a tracker or web seed; longer ones are ignored.
pub const URL_BYTES_MAX: usize = 4096;

/// Of comment, creator and the like; longer ones are cut.
pub const TEXT_BYTES_MAX: usize = 4096;

/// A magnet link: a thousand trackers would fit.
pub const MAGNET_BYTES_MAX: usize = 256 << 10;
