//! Owns: decisions over all peers at once: who is served, which piece is taken up next, who gives
//! metadata, who is dialled, who makes room for others.
//! Never: holds a session or a connection; sees peers as values.
//! Flow: the shard's timer hands candidates in and carries the decisions out.

pub mod choker;
pub mod metadata;
pub mod picker;
pub mod roster;
pub mod super_seed;
pub mod turnover;

pub use choker::{Candidate, Choker, Slots, Trade};
pub use picker::Picker;
pub use super_seed::SuperSeed;
