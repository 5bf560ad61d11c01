//! Who is here: what control hears of connections, and what peers tell each other (BEP 11).
//!
//! Owns: the events on comings and goings, when a connection tells its peer of others.
//! Never: keeps an address, or decides whom to tell of (control's book) or to dial (its roster).
//! Flow: open -> `Accepted`; the peer's extension handshake -> `Met`, a reminder; when due ->
//! `Shared::contacts` -> a message. A peer's message -> `Contacts`. Close -> `Left`.

use std::{net::IpAddr, time::Duration};

use seedring_platform::op::{Io, Shutdown};
use seedring_proto::{
    peer::{pex::contact_address, session::Blocks},
    units::Block,
    wire::{Violation, pex::PexMessage},
};

use super::{Connection, Key, Open};
use crate::{contract::Event, download::Sink, shard::Shard, torrent::TorrentId};

/// Times that control is told of one connection: a peer that says another port again and again is
/// not followed any more.
const MET_MAX: u8 = 8;
/// A torrent that wants nothing and has so many connections takes no addresses.
const CONTACTS_WANTED_BELOW: u32 = 30;

/// What control knows of an open connection, and since when it is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// It came to us, and control counts it.
    accepted: bool,
    seed: bool,
    /// 0: none is known.
    listen_port: u16,
    told: u8,
    opened_s: u32,
}

impl Known {
    pub fn new(accepted: bool, now: Duration) -> Known {
        let opened_s = now.as_secs() as u32;
        Known { accepted, seed: false, listen_port: 0, told: 0, opened_s }
    }

    /// When it opened, to the second.
    pub fn opened(self) -> Duration {
        Duration::from_secs(self.opened_s.into())
    }

    fn listen_port(self) -> Option<u16> {
        (self.listen_port != 0).then_some(self.listen_port)
    }
}

/// Where a session's blocks go, and with whom the peer says it is connected.
pub(super) struct Heard<'a> {
    pub sink: Sink<'a>,
    pub teller: IpAddr,
    pub contacts: PexMessage,
}

impl Blocks for Heard<'_> {
    fn data(&mut self, block: Block, at: u32, bytes: &[u8]) {
        self.sink.data(block, at, bytes);
    }

    fn metadata(&mut self, piece: u32, total_bytes: u32, data: &[u8]) {
        self.sink.metadata(piece, total_bytes, data);
    }

    fn contacts(&mut self, payload: &[u8]) -> Result<(), Violation> {
        let message = PexMessage::parse(payload, self.teller)?;
        self.contacts.added.extend(message.added);
        Ok(())
    }
}

impl Connection {
    /// Where others reach the peer, as far as known.
    pub fn contact(&self) -> Option<std::net::SocketAddr> {
        let super::Stage::Open(open) = &self.stage else { return None };
        let port = open.session.peer_listen_port();
        contact_address(self.address, !open.known.accepted, port)
    }
}

impl Open {
    /// What is to be told of it, if it is news.
    fn news(&mut self) -> Option<Known> {
        let seed = self.session.peer_wants_nothing();
        let listen_port = self.session.peer_listen_port().unwrap_or(0);
        let now = Known { seed, listen_port, ..self.known };
        if now == self.known || now.told == MET_MAX {
            return None;
        }
        self.known = Known { told: now.told + 1, ..now };
        Some(self.known)
    }
}

impl<I: Io> Shard<I> {
    pub(super) fn tell_accepted(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let address = connection.address;
        let Some(open) = connection.open().filter(|open| open.known.accepted) else { return };
        let torrent = open.torrent;
        self.tell(Event::Accepted { torrent, peer: key.0, address });
    }

    /// A connection is about to close.
    pub(super) fn tell_left(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let address = connection.address;
        let Some(open) = connection.open().filter(|open| open.known.accepted) else { return };
        let (torrent, listen_port) = (open.torrent, open.known.listen_port());
        self.tell(Event::Left { torrent, address, listen_port });
    }

    /// The peer said who it is: control hears of it, and it is told of others soon.
    pub(super) fn introduced(&mut self, key: Key) {
        self.tell_met(key);
        let Some(connection) = self.connections.get(key) else { return };
        let deadline = connection.deadline;
        let due = connection.open().and_then(|open| open.session.next_exchange());
        if let Some(due) = due.filter(|due| *due < deadline) {
            self.remind(key, due);
        }
    }

    pub(super) fn tell_met(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let address = connection.address;
        let Some(open) = connection.open() else { return };
        let torrent = open.torrent;
        let Some(local) = self.torrents.get(&torrent) else { return };
        if local.contents.as_ref().is_none_or(|contents| contents.private) {
            return;
        }
        let Some(Known { accepted, seed, .. }) = open.news() else { return };
        let (dialed, listen_port) = (!accepted, open.known.listen_port());
        self.tell(Event::Met { torrent, address, dialed, listen_port, seed });
    }

    /// Tells a peer of others if that is due; when it is due next.
    pub(super) fn exchange(&mut self, key: Key, now: Duration) -> Option<Duration> {
        let connection = self.connections.get(key)?;
        let (ip, contact) = (connection.address.ip(), connection.contact());
        let super::Stage::Open(open) = &mut connection.stage else { return None };
        let due = open.session.next_exchange()?;
        if due > now {
            return Some(due);
        }
        let contacts = self.torrents.get(&open.torrent)?.shared.contacts.load();
        let out = &mut connection.out;
        open.session.tell_contacts(contacts.as_deref(), ip, contact, now, out);
        open.session.next_exchange()
    }

    /// Addresses that a peer told us, in the receive just now.
    pub(super) fn take_contacts(&mut self, torrent: TorrentId, heard: PexMessage) {
        if heard.added.is_empty() {
            return;
        }
        let Some(local) = self.torrents.get(&torrent) else { return };
        let wants = self.downloads.wants_more(torrent) || local.shared.pieces.piece_count() == 0;
        // Relaxed: a count, nothing is published with it.
        let connections = local.shared.connections.load(std::sync::atomic::Ordering::Relaxed);
        if wants || connections < CONTACTS_WANTED_BELOW {
            self.tell(Event::Contacts { torrent, contacts: heard.added });
        }
    }

    pub(crate) fn close_one(&mut self, torrent: TorrentId, key: Key) {
        let open = self.connections.get(key).and_then(|connection| connection.open());
        if open.is_some_and(|open| open.torrent == torrent) {
            self.close(key, Shutdown::Orderly);
        }
    }

    /// Whoever is at this address is not spoken to any more.
    pub(crate) fn shun(&mut self, ip: IpAddr) {
        let mut keys = self.connections.keys();
        keys.retain(|key| {
            let connection = self.connections.get(*key);
            connection.is_some_and(|c| c.address.ip().to_canonical() == ip)
        });
        keys.into_iter().for_each(|key| self.close(key, Shutdown::Reset));
    }
}
