//! Owns: a real engine process on loopback, peers that speak the protocol byte by byte, seeds that
//! a test may make hostile, and a tracker that writes down what it is told.
//! Never: shares code with the engine: peers and tracker are an opinion of their own.
//! Flow: `tests/tests/{hostile,reload,dialed,download_*}.rs`. Each engine has a loopback address of
//! its own out of 127/8, so that tests run side by side without choosing ports.

pub mod announces;
pub mod dialer;
pub mod engine;
pub mod faulty_disk;
pub mod frames;
pub mod haves;
pub mod liars;
pub mod peer;
pub mod seed;
pub mod small_disk;
pub mod torrent;
pub mod watcher;

pub use announces::{Announce, RecordingTracker};
pub use engine::{Engine, loopback_address, run_program_behind};
pub use faulty_disk::FaultyDisk;
pub use haves::{Stored, StoredHaves};
pub use peer::{Message, Peer};
pub use seed::{Manner, Seed};
pub use small_disk::SmallDisk;
pub use torrent::SingleFile;
