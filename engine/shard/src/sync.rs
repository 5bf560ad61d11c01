//! What shared state is made of: the standard atomics and rtrb, or what loom can interleave.
//!
//! Owns: that choice (feature `loom`, for models alone). Never: state.
//! Flow: `limits`, `mailbox` and `torrent::piece_map` build on it; tests/*_model.rs check them.

#[cfg(feature = "loom")]
pub(crate) mod queue;

#[cfg(not(feature = "loom"))]
pub(crate) use rtrb as queue;

pub(crate) mod atomic {
    #[cfg(feature = "loom")]
    pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

    #[cfg(not(feature = "loom"))]
    pub(crate) use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
}
