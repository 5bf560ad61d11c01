//! The simulator: a seeded machine in memory, on which shards run in virtual time.
//!
//! Owns: the backend of `trait Io` with a virtual network, disk and clock; faults; oracles; peers.
//! Never: the system's clock, entropy or network. Flow: a seed -> a world -> shards and peers -> a
//! verdict and a trace that the same seed gives again.

mod describe;
pub mod disk;
mod durable;
pub mod fault;
pub mod fleet;
mod flight;
pub mod io;
pub mod leech;
pub mod loading;
mod net;
pub mod oracle;
mod outcome;
pub mod peer;
mod pipe;
pub mod planted;
pub mod rng;
pub mod seed;
pub mod swarm;
pub mod torrent;
mod trace;
pub mod watch;
mod world;
mod writing;

pub use disk::{Content, DirectoryId, NodeId};
pub use durable::Survives;
pub use fault::{FaultKind, Faults};
pub use io::{SimIo, SimOptions, Waiting};
pub use net::Link;
pub use peer::{Ended, Peer, PeerId, PeerIo, Reading};
pub use rng::Rng;
pub use world::World;
