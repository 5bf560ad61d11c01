//! Owns: the peer wire format: handshake, frames, messages, extension messages, and the faults.
//! Never: keeps the state of a peer, or decides what to answer.
//! Flow: connections feed received bytes, the peer session gets messages and appends answers.

pub mod extended;
mod frame;
pub mod handshake;
pub mod message;
pub mod pex;
mod violation;

pub use frame::{FrameLimits, FrameReader};
pub use handshake::{Handshake, Reserved};
pub use message::{Message, piece_header};
pub use violation::Violation;
