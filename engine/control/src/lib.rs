#![forbid(unsafe_code)]
//! The control plane.

pub mod config;
pub mod trackers;
