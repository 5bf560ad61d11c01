#![forbid(unsafe_code)]
//! The data plane: one shard a core.
//!
//! Owns: connections, the block cache, uploads, verification; everything between the ring and the
//! session.
//! Never: an async runtime, a lock, a blocking call, a clock of its own (time comes from `trait
//! Io`).
//! Flow: `Shard::run` ticks: reap, dispatch, mailbox, timers, verification, sends, wait.

pub mod commands;
pub mod connections;
mod contract;
mod dispatch;
pub mod download;
pub mod limits;
pub mod mailbox;
mod mix;
mod shard;
pub mod stats;
pub mod storage;
mod sync;
mod timers;
mod token;
pub mod torrent;
mod upload;
mod verify;

pub use contract::{
    Command, DialOutcome, Event, Globals, Handover, MetadataSaid, PeerReport, Trouble,
};
pub use shard::{Links, Options, Shard, Tick};
