//! Owns: decisions over all peers at once: who is served.
//! Never: holds a session or a connection; sees peers as values.
//! Flow: the shard's timer hands candidates in and carries the decisions out.

pub mod choker;

pub use choker::{Candidate, Choker, Slots};
