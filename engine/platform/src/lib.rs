//! The kernel and the CPU, behind safe types.
//!
//! Owns: rings, registered memory, descriptors, wake-up, pinning, hashing kernels; the only unsafe code.
//! Never: anything of BitTorrent. Flow: a shard submits an `Op` through `trait Io` and reaps `Completion`s.
