//! Trackers, as pure machines.
//!
//! Owns: announce requests and replies, when each torrent announces to whom, the embedded
//! tracker's swarms.
//! Never: resolve a name, open a socket, read a clock; time and seeds are arguments.
//! Flow: control feeds commands and outcomes to [`schedule::Schedule`], executes the jobs it
//! hands
//! out, and gives peers found to the shards; the embedded tracker feeds
//! [`swarm_store::SwarmStore`].

pub mod announce;
pub mod announcer;
pub mod governor;
pub mod jitter;
pub mod query;
pub mod redact;
pub mod reply;
pub mod schedule;
pub mod swarm_store;
pub mod udp;
pub mod url;
