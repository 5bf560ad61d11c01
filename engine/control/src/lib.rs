#![forbid(unsafe_code)]
//! The control plane.

pub mod cli;
pub mod config;
pub mod create;
pub mod trackers;
