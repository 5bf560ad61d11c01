//! Owns: a session's part in peer exchange (BEP 11): whether it is offered, the peer's number for
//! it, what the peer was told, how often it may tell us.
//! Never: reads who is named (the caller does, who knows where the peer is), or keeps it.
//! Flow: `Options::exchange` -> extension handshakes -> `tell_contacts` when due; a message in time
//! -> [`Blocks::contacts`](super::Blocks::contacts).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Blocks, Session, State};
use crate::peer::pex::{Book, Receiver, Sender};
use crate::wire::Violation;
use crate::wire::extended::UT_PEX;

/// 24 bytes in each of thousands of sessions.
#[derive(Debug)]
pub(super) struct Exchange {
    /// Our handshake has a number for it.
    offered: bool,
    /// The number under which the peer wants it; 0: it does not.
    receiver_id: u8,
    receiver: Receiver,
    sender: Sender,
}

impl Exchange {
    pub fn new(offered: bool, now: Duration) -> Self {
        let (receiver, sender) = (Receiver::default(), Sender::new(now));
        Self { offered, receiver_id: 0, receiver, sender }
    }

    pub fn local_id(&self) -> Option<u8> {
        self.offered.then_some(UT_PEX)
    }

    /// What the peer's handshake says of it.
    pub fn said(&mut self, receiver_id: Option<u8>, now: Duration) {
        let Some(receiver_id) = receiver_id.filter(|_| self.offered) else { return };
        let before = std::mem::replace(&mut self.receiver_id, receiver_id);
        if before == 0 && !self.sender.has_told() {
            self.sender = Sender::new(now);
        }
    }
}

impl State {
    pub(super) fn on_exchange(
        &mut self,
        payload: &[u8],
        now: Duration,
        blocks: &mut impl Blocks,
    ) -> Result<(), Violation> {
        if !self.exchange.offered {
            return self.unwanted(payload.len(), now);
        }
        if self.exchange.receiver.admit(now)? { blocks.contacts(payload) } else { Ok(()) }
    }
}

impl Session {
    /// When the peer may be told of others; `None`: never.
    pub fn next_exchange(&self) -> Option<Duration> {
        let exchange = &self.state.exchange;
        (exchange.receiver_id > 0).then(|| exchange.sender.due())
    }

    /// Tells the peer, who is at `ip`, who came and left since it was told, where that is due.
    /// `itself`: its contact address. Without a book nothing is said; it is due again a minute
    /// later in any case.
    pub fn tell_contacts(
        &mut self,
        book: Option<&Book>,
        ip: IpAddr,
        itself: Option<SocketAddr>,
        now: Duration,
        out: &mut Vec<u8>,
    ) {
        let exchange = &mut self.state.exchange;
        if exchange.receiver_id == 0 || now < exchange.sender.due() {
            return;
        }
        let Some(book) = book else { return exchange.sender.pass(now) };
        if let Some(message) = exchange.sender.message(book, ip, itself, now) {
            message.encode(exchange.receiver_id, out);
            self.state.clock.sent(now);
        }
    }

    /// The port that the peer says it listens on.
    pub fn peer_listen_port(&self) -> Option<u16> {
        self.state.peer_listen_port.map(std::num::NonZeroU16::get)
    }
}
