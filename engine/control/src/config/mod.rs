//! Owns: the configuration: its file's shape, reading, checking, errors, schema and reference.
//! Never: acts on it; no socket is opened and no content is read here.
//! Flow: YAML -> `tree` (positions, `${VAR}`) -> `file` (its shape) -> `model::Config` -> engine.

mod diagnostic;
mod download;
mod file;
mod load;
pub mod model;
mod ranges;
mod read;
pub mod reference;
mod resolve;
mod sections;
mod seed;
mod tree;
mod units;
mod variables;

#[cfg(test)]
mod tests;

pub(crate) use file::parse_tracker_url as tracker_url;
pub(crate) use variables::control_socket as control_socket_of_environment;

pub use diagnostic::{Diagnostic, Severity};
pub use download::FetchOptions;
pub use load::Loaded;
pub use model::Config;
pub use seed::SeedOptions;
