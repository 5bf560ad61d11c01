#![forbid(unsafe_code)]
//! BitTorrent as pure machines: bytes and time in, actions out.
//!
//! Owns: every format and every decision of the protocol. Never: clock, socket, file, thread,
//! async, unsafe.
//! Flow: shard and control feed it bytes and time; it answers with values.

pub mod address;
pub mod bencode;
pub mod create;
pub mod layout;
pub mod limits;
pub mod magnet;
pub mod metainfo;
pub mod peer;
pub mod rate;
pub mod sanitise;
pub mod swarm;
pub mod tracker;
pub mod units;
pub mod wire;
