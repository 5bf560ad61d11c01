//! Owns: what is known and decided about one peer: its session, its upload queue, its name.
//! Never: touches a socket, reads a piece, or knows another peer.
//! Flow: shards feed received bytes to a session and send what it appends.

mod client;

pub use client::{client_name, peer_id};
