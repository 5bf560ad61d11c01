//! Owns: a real engine process on loopback, peers that speak the protocol byte by byte, and a
//! tracker that writes down what it is told.
//! Never: shares code with the engine: peers and tracker are an opinion of their own.
//! Flow: `tests/tests/{hostile,reload,dialed}.rs`. Each engine has a loopback address of its
//! own out of 127/8, so that tests run side by side without choosing ports.

pub mod announces;
pub mod engine;
pub mod peer;
pub mod torrent;

pub use announces::{Announce, RecordingTracker};
pub use engine::{Engine, loopback_address};
pub use peer::{Message, Peer};
pub use torrent::SingleFile;
