#![forbid(unsafe_code)]
//! The control plane.

pub mod cli;
pub mod config;
pub mod control_socket;
pub mod create;
pub mod engine;
pub mod identity;
pub mod logs;
pub mod plan;
pub mod state;
pub mod trackers;
