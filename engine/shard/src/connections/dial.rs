//! Connections that we begin: a box behind NAT must serve too.
//!
//! Owns: the queue of addresses to dial, how many are under way, what is told about each.
//! Never: when to dial again (control's backoff). Flow: Command::Dial -> connect -> handshake ->
//! greet.

use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use seedring_platform::op::{Io, Op, Shutdown};
use seedring_proto::wire::{Handshake, Reserved};

use super::{Connection, Key, Stage};
use crate::{
    contract::{DialOutcome, Event},
    shard::Shard,
    token::Target,
    torrent::{Phase, TorrentId},
};

/// Connects under way at once on a shard.
const UNDER_WAY_MAX: usize = 64;
/// Addresses waiting; control offers those that did not fit again.
const QUEUE_MAX: usize = 1_024;

#[derive(Debug, Default)]
pub struct Dialing {
    queue: VecDeque<(TorrentId, SocketAddr)>,
    under_way: usize,
}

impl Dialing {
    /// What waits for this torrent is not dialled, and nothing is told of it.
    pub(crate) fn forget(&mut self, torrent: TorrentId) {
        self.queue.retain(|(id, _)| *id != torrent);
    }
}

impl<I: Io> Shard<I> {
    pub(crate) fn dial(&mut self, torrent: TorrentId, address: SocketAddr) {
        if self.dialing.queue.len() < QUEUE_MAX {
            self.dialing.queue.push_back((torrent, address));
        } else {
            self.tell(Event::Dialed { torrent, address, outcome: DialOutcome::Later });
        }
    }

    /// When the tick should look at the queue: at once while there is room.
    pub(crate) fn next_dial(&self) -> Option<Duration> {
        let room = self.dialing.under_way < UNDER_WAY_MAX && !self.dialing.queue.is_empty();
        (room && !self.stopping).then_some(Duration::ZERO)
    }

    /// Begins as many dials as may be under way.
    pub(crate) fn dial_next(&mut self) {
        while self.dialing.under_way < UNDER_WAY_MAX && !self.stopping {
            let Some((torrent, address)) = self.dialing.queue.pop_front() else { return };
            self.connect(torrent, address);
        }
    }

    fn connect(&mut self, torrent: TorrentId, address: SocketAddr) {
        let active = self.torrents.get(&torrent).is_some_and(|l| l.shared.phase() == Phase::Active);
        if !active || !self.admit() {
            self.tell(Event::Dialed { torrent, address, outcome: DialOutcome::Later });
            return;
        }
        let socket = match self.io.socket(address, None) {
            Ok(socket) => socket,
            Err(_) => {
                use std::sync::atomic::Ordering;
                self.options.globals.connections.fetch_sub(1, Ordering::Relaxed);
                self.tell(Event::Dialed { torrent, address, outcome: DialOutcome::Refused });
                return;
            }
        };
        let deadline = self.io.now() + self.options.globals.connect_timeout();
        let key = self.connections.insert(Connection {
            socket: socket.clone(),
            address,
            dialed: Some(torrent),
            admitted: None,
            stage: Stage::Connecting,
            operations: 1,
            out: Vec::new(),
            sending: false,
            queued: false,
            receiving_once: false,
            held: false,
            settling: false,
            deadline,
        });
        self.dialing.under_way += 1;
        self.stats.half_open += 1;
        self.deadlines.timers.set(deadline, key);
        self.submit_now(Op::Connect { token: Target::Connect(key).token(), socket, address });
    }

    /// Completion of a connect (already counted off).
    pub(crate) fn connected(&mut self, key: Key, result: io::Result<()>) {
        let Some(connection) = self.connections.get(key) else { return };
        if !matches!(connection.stage, Stage::Connecting) {
            return;
        }
        if result.is_err() {
            self.dial_ended(key, DialOutcome::Refused);
            return self.close(key, Shutdown::Reset);
        }
        let connection = self.connections.get(key).expect("invariant: looked up above");
        let Some(id) = connection.dialed else { return };
        let Some(local) = self.torrents.get(&id) else {
            return self.close(key, Shutdown::Reset);
        };
        connection.stage = Stage::Greeting(Vec::new());
        let handshake = Handshake {
            reserved: Reserved::OURS,
            info_hash: local.shared.info_hash,
            peer_id: self.options.globals.peer_id,
        };
        connection.out.extend_from_slice(&handshake.encode());
        let whole_by = self.io.now() + self.options.globals.handshake_timeout();
        self.remind(key, whole_by);
        self.stats.dialed += 1;
        self.enqueue(key);
        self.receive_once(key);
    }

    /// Tells control what became of a dialled address, once.
    pub(crate) fn dial_ended(&mut self, key: Key, outcome: DialOutcome) {
        let Some(connection) = self.connections.get(key) else { return };
        let Some(torrent) = connection.dialed else { return };
        let address = connection.address;
        let half_open = !matches!(connection.stage, Stage::Open(_));
        if outcome == DialOutcome::Connected || half_open {
            self.dialing.under_way = self.dialing.under_way.saturating_sub(1);
        }
        if outcome != DialOutcome::Connected {
            // Once: the connection is about to close, and closing tells again otherwise.
            if let Some(connection) = self.connections.get(key) {
                connection.dialed = None;
            }
        }
        self.tell(Event::Dialed { torrent, address, outcome });
    }
}
