//! What peers send: bytes to sessions, sessions' events to the shard.
//!
//! Owns: the end of a connection (close), what a session's events lead to.
//! Never: the format of messages. Flow: dispatch -> received -> session -> pump later in this tick.

use std::{io, sync::atomic::Ordering};

use seedring_platform::op::{Io, Received, Shutdown};
use seedring_proto::{
    peer::session::Event as Said,
    wire::{Violation, pex::PexMessage},
};

use super::{Key, Stage, exchange::Heard};
use crate::{
    contract::{DialOutcome, Event},
    shard::Shard,
    torrent::TorrentId,
};

/// Messages that wait for a peer to read; an honest one has at most a bitfield, metadata in flight
/// and rejects of a full queue, about 600 KiB.
const OUT_BYTES_MAX: usize = 1 << 20;

impl<I: Io> Shard<I> {
    pub(crate) fn received(&mut self, key: Key, result: io::Result<Received>) {
        let Some(connection) = self.connections.get(key) else { return };
        let single = std::mem::replace(&mut connection.receiving_once, false);
        let ended = single || !matches!(&result, Ok(bytes) if !bytes.is_empty());
        if ended {
            self.operation_ended(key);
        }
        let Some(connection) = self.connections.get(key) else { return };
        match (&connection.stage, result) {
            (Stage::Greeting(_), Ok(bytes)) => self.greeting_received(key, &bytes),
            (Stage::Open(_), Ok(bytes)) if !bytes.is_empty() => self.open_received(key, &bytes),
            (Stage::Closing(_), Ok(_)) => {}
            _ => self.close(key, Shutdown::Reset),
        }
    }

    /// Bytes of a handshaken connection.
    pub(crate) fn open_received(&mut self, key: Key, bytes: &[u8]) {
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Open(open) = &mut connection.stage else { return };
        let Some(local) = self.torrents.get(&open.torrent) else { return };
        let contents = local.contents.as_ref().expect("invariant: kept while a peer is here");
        let view = local.view(contents, key);
        let now = self.io.now();
        let mut events = Vec::new();
        let before = connection.out.len();
        let torrent = open.torrent;
        let mut heard = Heard {
            sink: self.downloads.sink(torrent, key),
            teller: connection.address.ip(),
            contacts: PexMessage::default(),
        };
        let out = &mut connection.out;
        let result = open.session.receive(bytes, &view, now, out, &mut events, &mut heard);
        let contacts = heard.contacts;
        if connection.out.len() > OUT_BYTES_MAX {
            let address = connection.address;
            let why = format!("over {OUT_BYTES_MAX} bytes of answers wait, and it does not read");
            self.tell(Event::PeerFault { address, why });
            self.stats.violations += 1;
            return self.close(key, Shutdown::Reset);
        }
        let mut ready = connection.out.len() > before;
        self.tell_metadata();
        self.take_contacts(torrent, contacts);
        let Some(open) = self.connections.get(key).and_then(|c| c.open()) else { return };
        open.queue_has(open.session.queue().len(), now);
        for event in events {
            self.leech_said(key, event);
            match event {
                Said::Requested => ready = true,
                Said::Interested => self.became_interested(key),
                Said::NotInterested => self.lost_interest(key),
                Said::Introduced => self.introduced(key),
                Said::PeerComplete if self.is_source(key) => {
                    self.tell_met(key);
                    self.peer_pieces(key);
                }
                Said::PeerUploadOnly if self.is_source(key) => self.tell_met(key),
                Said::PeerComplete | Said::PeerUploadOnly => {
                    self.dial_ended(key, DialOutcome::Seed);
                    return self.close(key, Shutdown::Orderly);
                }
                said => self.source_said(key, said),
            }
        }
        if let Err(violation) = result {
            return self.violated(key, &violation);
        }
        if ready {
            self.enqueue(key);
        }
    }

    /// The peer broke the protocol: that connection closes, the others do not notice.
    pub(crate) fn violated(&mut self, key: Key, violation: &Violation) {
        if violation.is_fault() {
            self.stats.violations += 1;
        }
        if let Some(connection) = self.connections.get(key) {
            let address = connection.address;
            self.tell(Event::PeerFault { address, why: violation.to_string() });
        }
        self.close(key, Shutdown::Reset);
    }

    /// Ends a connection: shut down now, closed when its last operation has completed.
    pub(crate) fn close(&mut self, key: Key, how: Shutdown) {
        let Some(connection) = self.connections.get(key) else { return };
        if matches!(connection.stage, Stage::Closing(_)) {
            return;
        }
        self.tell_left(key);
        self.dial_ended(key, DialOutcome::Closed);
        self.source_left(key);
        let Some(connection) = self.connections.get(key) else { return };
        let connecting = matches!(connection.stage, Stage::Connecting);
        let stage = std::mem::replace(&mut connection.stage, Stage::Closing(None));
        connection.out = Vec::new();
        if let Stage::Open(open) = &stage
            && open.flow.as_ref().is_some_and(|flow| flow.partial)
        {
            // Its rest will not be sent: nothing of that send is left for the socket.
            connection.operations -= 1;
        }
        let idle = connection.operations == 0;
        if let Some(torrent) = connection.admitted.take() {
            torrent.left(self.options.shard);
        }
        if connecting {
            self.io.cancel(crate::token::Target::Connect(key).token());
        }
        self.io.shutdown(&connection.socket, how);
        match stage {
            Stage::Open(mut open) => {
                self.stats.connections -= 1;
                if open.counted {
                    self.count_interest(open.torrent, false);
                }
                if !open.session.am_choking() {
                    self.slot_freed(open.torrent);
                }
                self.settle_partial(key, &mut open);
                self.leave(open.torrent, |local| local.left(&open.peer_id));
            }
            Stage::Waiting(torrent, _) => {
                self.stats.half_open -= 1;
                self.leave(torrent, |local| local.waiting.retain(|k| *k != key));
            }
            Stage::Connecting | Stage::Greeting(_) => self.stats.half_open -= 1,
            Stage::Closing(_) => unreachable!("invariant: checked above"),
        }
        self.options.globals.connections.fetch_sub(1, Ordering::Relaxed);
        if idle {
            self.connections.remove(key);
        }
    }

    fn leave(&mut self, id: TorrentId, how: impl FnOnce(&mut crate::torrent::Local)) {
        let now = self.io.now();
        if let Some(local) = self.torrents.get_mut(&id) {
            how(local);
            if local.is_unused() {
                local.idle_since = Some(now);
            }
        }
    }
}
