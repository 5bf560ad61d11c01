#![forbid(unsafe_code)]
//! The data plane: one shard a core.
