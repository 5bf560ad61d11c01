//! From an accepted socket to a handshaken connection on the right shard.
//!
//! Owns: the way through Greeting and Waiting to Open, and who is turned away.
//! Never: messages after the handshake. Flow: accepted -> bytes -> handshake -> placed (here, or
//! handed over).

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use seedring_platform::{
    descriptors::Socket,
    op::{Io, Op, Shutdown},
};
use seedring_proto::{
    peer::session::{self, Session},
    swarm::SuperSeed,
    wire::{Handshake, Reserved},
};

use super::{BATCH_BLOCKS_MAX, Connection, Key, Open, Rate, Stage, ZeroCopy, exchange::Known};
use crate::{
    contract::{DialOutcome, Event, Handover},
    shard::Shard,
    token::Target,
    torrent::{Phase, Shared, TorrentId},
};

/// Bytes that may come with a handshake before the torrent is known.
const GREETING_BYTES_MAX: usize = 64 << 10;
/// Pieces that a choked peer may ask for (BEP 6), where slots are limited.
const ALLOWED_FAST: usize = 10;
/// Accepting rests so long after it failed (descriptor limit).
const ACCEPT_REST: Duration = Duration::from_secs(1);

impl<I: Io> Shard<I> {
    pub(crate) fn accept(&mut self, listener: u32) {
        let op = Op::Accept {
            token: Target::Listener(listener).token(),
            listener: self.listeners[listener as usize].clone(),
        };
        self.submit_now(op);
    }

    pub(crate) fn accepted(&mut self, socket: Socket, address: SocketAddr) {
        self.stats.accepted += 1;
        let banned = self.options.globals.banned.load();
        let unwelcome = !banned.is_empty() && banned.contains(&address.ip().to_canonical());
        if self.stopping || unwelcome || !self.admit() {
            self.stats.refused += 1;
            self.io.shutdown(&socket, Shutdown::Reset);
            return;
        }
        self.greet(socket, address, Vec::new(), None);
    }

    pub(crate) fn accept_ended(&mut self, listener: u32) {
        if !self.stopping {
            self.accept_again.push((self.io.now() + ACCEPT_REST, listener));
        }
    }

    /// Counts one more connection of the process, if there may be one.
    pub(crate) fn admit(&self) -> bool {
        let globals = &self.options.globals;
        let max = globals.connections_max.load(Ordering::Relaxed);
        // Relaxed: a count, nothing is published with it; taken back below when over.
        if globals.connections.fetch_add(1, Ordering::Relaxed) < max {
            return true;
        }
        globals.connections.fetch_sub(1, Ordering::Relaxed);
        false
    }

    /// Starts reading the handshake of an admitted connection.
    fn greet(
        &mut self,
        socket: Socket,
        address: SocketAddr,
        bytes: Vec<u8>,
        admitted: Option<Arc<Shared>>,
    ) {
        let deadline = self.io.now() + self.options.globals.handshake_timeout();
        let key = self.connections.insert(Connection {
            socket,
            address,
            dialed: None,
            admitted,
            stage: Stage::Greeting(bytes),
            operations: 0,
            out: Vec::new(),
            sending: false,
            queued: false,
            receiving_once: false,
            held: false,
            settling: false,
            deadline,
        });
        self.stats.half_open += 1;
        self.deadlines.timers.set(deadline, key);
        self.greeted(key);
    }

    /// A connection from another shard: its torrent is at home here.
    pub(crate) fn taken_over(&mut self, handover: Handover) {
        if self.stopping {
            handover.torrent.left(self.options.shard);
            self.options.globals.connections.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        // The other shard counted it already.
        let Handover { socket, address, bytes, torrent } = handover;
        self.greet(Socket::from(socket), address, bytes, Some(torrent));
    }

    pub(crate) fn receive_once(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        connection.operations += 1;
        connection.receiving_once = true;
        let socket = connection.socket.clone();
        self.submit_now(Op::ReceiveOnce { token: Target::Receive(key).token(), socket });
    }

    /// More bytes of a handshake came (nothing is in flight now).
    pub(crate) fn greeting_received(&mut self, key: Key, bytes: &[u8]) {
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Greeting(so_far) = &mut connection.stage else { return };
        so_far.extend_from_slice(bytes);
        if bytes.is_empty() || so_far.len() > GREETING_BYTES_MAX {
            return self.close(key, Shutdown::Reset);
        }
        self.greeted(key);
    }

    /// Looks whether the handshake is whole, and for whom it is.
    fn greeted(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let dialed = connection.dialed;
        let Stage::Greeting(bytes) = &connection.stage else { return };
        let handshake = match Handshake::parse(bytes) {
            Ok(Some(handshake)) => handshake,
            Ok(None) => return self.receive_once(key),
            Err(violation) => return self.violated(key, &violation),
        };
        let known = self.by_hash.get(&handshake.info_hash).copied();
        let wanted = match (known, dialed) {
            (Some(id), Some(asked)) if id != asked => None,
            (known, _) => known,
        };
        let Some(id) = wanted else {
            self.stats.refused += 1;
            return self.close(key, Shutdown::Orderly);
        };
        let shared = self.torrents[&id].shared.clone();
        if shared.phase() != Phase::Active {
            self.stats.refused += 1;
            return self.close(key, Shutdown::Orderly);
        }
        let connection = self.connections.get(key).expect("invariant: looked up above");
        if connection.admitted.is_none() {
            let here = self.options.shard;
            let mut admitted = shared.admit(here);
            if admitted.is_none() && dialed.is_none() && self.make_room(id, handshake.peer_id) {
                admitted = shared.admit(here);
            }
            let Some(shard) = admitted else {
                self.stats.refused += 1;
                return self.close(key, Shutdown::Orderly);
            };
            if shard != here {
                if self.hand_over(key, shard, shared.clone()) {
                    return;
                }
                shared.moved(shard, here);
            }
            let connection = self.connections.get(key).expect("invariant: it stays");
            connection.admitted = Some(shared);
        }
        self.place(key, id);
    }

    /// Moves a connection with nothing in flight to another shard. `false`: it stays.
    fn hand_over(&mut self, key: Key, to: usize, torrent: Arc<Shared>) -> bool {
        if self.links.to_shards[to].as_ref().is_none_or(|sender| sender.room() == 0) {
            return false;
        }
        let Some(connection) = self.connections.get(key) else { return false };
        if connection.operations != 0 || connection.dialed.is_some() {
            return false;
        }
        let Some(connection) = self.connections.remove(key) else { return false };
        self.stats.half_open -= 1;
        let Stage::Greeting(bytes) = connection.stage else {
            unreachable!("invariant: only greeting connections are handed over")
        };
        let socket = match connection.socket.into_owned() {
            Ok(socket) => socket,
            Err(_) => unreachable!("invariant: nothing in flight, so no other holder"),
        };
        let sender = self.links.to_shards[to].as_mut().expect("invariant: checked above");
        let handover = Handover { socket, address: connection.address, bytes, torrent };
        let sent = sender.send(handover);
        assert!(sent.is_ok(), "one producer: the room that was seen is still there");
        self.stats.handed_over += 1;
        true
    }

    /// The connection stays here: open it, or let it wait until the torrent's contents are loaded.
    pub(crate) fn place(&mut self, key: Key, id: TorrentId) {
        let Some(local) = self.torrents.get_mut(&id) else { return };
        if local.shared.phase() != Phase::Active {
            return self.close(key, Shutdown::Orderly);
        }
        let cold = local.contents().is_none();
        let Some(connection) = self.connections.get(key) else { return };
        if cold {
            if let Stage::Greeting(bytes) = &mut connection.stage {
                connection.stage = Stage::Waiting(id, std::mem::take(bytes));
                local.waiting.push(key);
            }
            if !local.asked {
                local.asked = true;
                self.tell(Event::Activate(id));
            }
            return;
        }
        let bytes = match &mut connection.stage {
            Stage::Greeting(bytes) | Stage::Waiting(_, bytes) => std::mem::take(bytes),
            _ => return,
        };
        self.open(key, id, &bytes);
    }

    fn open(&mut self, key: Key, id: TorrentId, bytes: &[u8]) {
        let handshake = match Handshake::parse(bytes) {
            Ok(Some(handshake)) => handshake,
            _ => unreachable!("invariant: the handshake was whole"),
        };
        let ours = self.options.globals.peer_id;
        let local = self.torrents.get_mut(&id).expect("invariant: placed by a known torrent");
        let oneself = handshake.peer_id == ours;
        if oneself || !local.enters(handshake.peer_id, key) {
            self.dial_ended(key, if oneself { DialOutcome::Oneself } else { DialOutcome::Closed });
            return self.close(key, Shutdown::Orderly);
        }
        local.idle_since = None;
        self.follow_download(id);
        let wants_more = self.downloads.wants_more(id);
        let bounded = self.is_bounded(id);
        let local = self.torrents.get_mut(&id).expect("invariant: looked up above");
        let downloading = wants_more || local.shared.pieces.piece_count() == 0;
        let contents = local.contents.clone().expect("invariant: place checked");
        let now = self.io.now();
        let hides = !downloading && local.hides();
        if hides {
            let pieces = local.shared.pieces.piece_count();
            let seed = self.options.seed ^ u64::from(id.0);
            let machine =
                local.super_seed.get_or_insert_with(|| SuperSeed::new(pieces, seed).into());
            machine.joined(key, now);
            self.showing = true;
        }
        let view = local.view(&contents, key);
        let connection = self.connections.get(key).expect("invariant: the caller has it");
        let globals = &self.options.globals;
        let port = globals.listen_port.load(Ordering::Relaxed);
        let options = session::Options {
            client: globals.client,
            your_ip: Some(connection.address.ip()),
            listen_port: (port != 0).then_some(port),
            upload_only: !downloading,
            allowed_fast: if bounded { ALLOWED_FAST } else { 0 },
            hides,
            exchange: local.shared.exchange.load(Ordering::Relaxed),
            ..session::Options::new(handshake.reserved)
        };
        let accepted = connection.dialed.is_none();
        if accepted {
            let reserved = Reserved::OURS;
            let info_hash = handshake.info_hash;
            let answer = Handshake { reserved, info_hash, peer_id: ours };
            connection.out.extend_from_slice(&answer.encode());
        }
        let seed = self.options.seed ^ key.0;
        let session = Session::open(&options, &view, now, seed, &mut connection.out);
        let zero_copy = globals.zero_copy.load(Ordering::Relaxed)
            && !is_loopback(connection.address.ip())
            && self.choking.routes.is_worth(connection.address.ip(), now);
        connection.stage = Stage::Open(Box::new(Open {
            session,
            torrent: id,
            peer_id: handshake.peer_id,
            known: Known::new(accepted, now),
            flow: None,
            source: None,
            counted: false,
            batch_blocks: BATCH_BLOCKS_MAX / 4,
            run_end: u64::MAX,
            run_bytes: 0,
            cold: 0,
            zero_copy: if zero_copy { ZeroCopy::On { copied: 0 } } else { ZeroCopy::Off },
            uploaded_bytes: 0,
            rate: Rate::default(),
        }));
        connection.operations += 1;
        let socket = connection.socket.clone();
        self.stats.half_open -= 1;
        self.stats.connections += 1;
        self.dial_ended(key, DialOutcome::Connected);
        self.tell_accepted(key);
        // Content comes only to who wants some; the others hear requests.
        let bulk = self.downloads.wants_more(id);
        self.submit_now(Op::Receive { token: Target::Receive(key).token(), socket, bulk });
        self.open_received(key, &bytes[Handshake::LEN..]);
        if hides {
            self.show_pieces(id);
        }
        // The reminder of the greeting serves from here on.
        self.enqueue(key);
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}
