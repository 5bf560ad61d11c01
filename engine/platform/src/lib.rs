//! The kernel and the CPU, behind safe types.
//!
//! Owns: rings, registered memory, descriptors, wake-up, pinning, hashing kernels; the only
//! unsafe code.
//! Never: anything of BitTorrent.
//! Flow: a shard submits an `Op` through `trait Io` and reaps `Completion`s.

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod copy;
pub mod cpu;
pub mod descriptors;
pub mod epoll;
mod files;
pub mod hash;
pub mod memory;
pub mod op;
pub mod probe;
mod receive;
pub mod resources;
pub mod ring;
pub mod send_batch;
mod slots;
pub mod wake;
pub mod window;
pub mod write_batch;

pub use op::{
    Access, Allocation, Completion, DirectAlignment, Identity, Io, Op, OpenRequest, Outcome,
    Received, Shutdown, Token,
};
