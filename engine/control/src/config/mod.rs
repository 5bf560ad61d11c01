//! Owns: the configuration: its file's shape, reading, checking, errors, schema and reference.
//! Never: acts on it; no socket is opened and no content is read here.
//! Flow: YAML -> `tree` (positions, `${VAR}`) -> `file` (its shape) -> `model::Config` -> engine.

pub mod model;
mod sections;
mod units;

pub use model::Config;
