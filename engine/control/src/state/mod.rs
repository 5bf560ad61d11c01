//! The state store: what must outlive the process, in SQLite.
//!
//! Owns: the database file, its schema and versions, one writing thread, batched transactions.
//! Never: decisions; it keeps what it is told. Flow: engine -> `Store` (queue) -> thread -> disk;
//! `load` at start.
//!
//! Write-ahead log, `synchronous = FULL`: a flush that returned is on disk. Records of one torrent
//! that come faster than the disk takes them are merged; the newest one wins.

mod downloads;
mod encode;
mod schema;
#[cfg(test)]
mod tests;
mod thread;

use std::{collections::HashMap, path::PathBuf, time::Duration};

use seedring_platform::op::Allocation;
use seedring_proto::units::InfoHash;
use seedring_shard::torrent::{KeptPiece, Stamp};

pub use self::thread::{Flush, Store};

/// What is kept of a torrent.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Record {
    pub name: String,
    pub uploaded_bytes: u64,
    /// Verified pieces, BEP 3 bit order; empty: none.
    pub verified: Vec<u8>,
    /// Size and time of each file when its pieces were verified.
    pub stamps: Vec<Option<Stamp>>,
    /// Seconds since 1970.
    pub added_at: i64,
    /// Payload received, what was thrown away included.
    pub downloaded_bytes: u64,
    /// By the user's word.
    pub paused: bool,
    /// Blocks of pieces in part that are on disk.
    pub kept: Vec<KeptPiece>,
    /// All that is on disk is to be hashed; `verified` says what was since that began.
    pub recheck: bool,
}

/// A torrent that is, or was, downloaded. Its .torrent lies in `torrents/` once it is known, and
/// is there (synced) before this says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Download {
    /// The folder that it lies in now, absolute.
    pub folder: PathBuf,
    /// Identity of that folder (D5): what its marker file says; empty: it was not made yet.
    pub root: String,
    /// The link it came by. Until `files` is known it is all there is.
    pub magnet: Option<String>,
    /// A row a file, in the torrent's order; empty: the metadata is not known yet.
    pub files: Vec<FileRow>,
    /// Patterns of the files to download; empty: all.
    pub only: Vec<String>,
    pub sequential: bool,
    pub labels: Vec<String>,
    /// Added by a command, so that a command may remove it; else by the configuration.
    pub by_command: bool,
    pub added_at: i64,
    /// Everything wanted was there and synced, seconds since 1970.
    pub completed_at: Option<i64>,
    /// What of a file's space is taken when it is made.
    pub allocation: Allocation,
    /// What its files' names end with while it is incomplete; may be empty.
    pub suffix: String,
    /// The folder that was asked for, where that is another one than it lies in.
    pub chosen: Option<PathBuf>,
    /// Where it goes when it is complete; `None`: it stays.
    pub goal: Option<Goal>,
    pub moving: Moving,
}

/// A folder to be moved to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    pub folder: PathBuf,
    /// As `Download::root`.
    pub root: String,
}

/// How far a move is, so that it can be gone on with after a crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Moving {
    /// All is at its folder. What may lie in the goal's folder for parts is a copy that was not
    /// finished.
    #[default]
    No,
    /// Files are being renamed: each is at the one place or at the other.
    Renaming,
    /// A whole, synced, verified copy is in the goal's folder for parts, or beyond it: the rest is
    /// put in its place.
    Placing,
    /// The goal has become its folder; what is left in this one is removed.
    Removing,
}

impl Default for Download {
    fn default() -> Self {
        Download {
            folder: PathBuf::new(),
            root: String::new(),
            magnet: None,
            files: Vec::new(),
            only: Vec::new(),
            sequential: false,
            labels: Vec::new(),
            by_command: false,
            added_at: 0,
            completed_at: None,
            allocation: Allocation::Sparse,
            suffix: String::new(),
            chosen: None,
            goal: None,
            moving: Moving::No,
        }
    }
}

/// What is kept of one file of a download.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileRow {
    /// 0: not wanted; at most 7.
    pub priority: u8,
    /// It was there before us: never deleted (D6).
    pub foreign: bool,
}

/// A folder whose torrent was made: valid while `manifest` (paths, sizes, times, options) is the
/// same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeTorrent {
    pub manifest: [u8; 20],
    /// Digest of the options alone: which torrent waits for the folder while its content is away.
    pub options: [u8; 20],
    pub info_hash: InfoHash,
}

/// Everything, as read at start.
#[derive(Debug, Default)]
pub struct Loaded {
    pub torrents: HashMap<InfoHash, Record>,
    pub downloads: HashMap<InfoHash, Download>,
    /// In the order in which they were made.
    pub made: HashMap<PathBuf, Vec<MadeTorrent>>,
    /// Told to trackers so that they know us when our address changes; kept for good.
    pub tracker_key: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("state_dir {path}: {source}; it must be a folder that this user may write to")]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Database { path: PathBuf, source: rusqlite::Error },
    #[error("{path} was written by a newer seedring (schema {found}, this one knows {known})")]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("{0} is a database that another program made")]
    Foreign(PathBuf),
    #[error("another seedring is running with state_dir {0}; give this one a state_dir of its own")]
    InUse(PathBuf),
}

/// How long records wait for others to share their transaction.
const BATCH: Duration = Duration::from_millis(500);
