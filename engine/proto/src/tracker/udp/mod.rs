//! Announces over UDP (BEP 15, 41).
//!
//! Owns: the packets, and the machine that connects, announces and sends again.
//! Never: opens a socket, resolves a name, reads a clock.
//! Flow: control resolves a host, gives [`exchanges::Exchanges`] an announce and every datagram,
//! and sends what it asks for; the outcome is a [`super::reply::Reply`], as over HTTP.

mod connection;
pub mod exchanges;
pub mod packet;
mod transactions;
