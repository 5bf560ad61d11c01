//! The other ends of connections: actors that the world wakes.
//!
//! Owns: `trait Peer`, what a peer may do, how fast it reads. Never: the shard's side. Flow: an
//! event of the world -> a method of the peer -> bytes, timers, ends through `PeerIo`.

use std::net::SocketAddr;

use super::{
    net::ConnId,
    rng::Rng,
    world::{Core, Event},
};

#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct PeerId(pub usize);

/// How a connection was over, seen from the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The shard finished its side.
    Finished,
    /// The shard, or the network, reset it.
    Reset,
    /// Nobody listens there.
    Refused,
}

/// How quickly a peer takes bytes from its own kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    AtOnce,
    BytesPerSecond(u64),
    Never,
}

pub trait Peer {
    fn opened(&mut self, io: &mut PeerIo<'_>);
    fn received(&mut self, io: &mut PeerIo<'_>, bytes: &[u8]);
    fn timer(&mut self, _io: &mut PeerIo<'_>, _tag: u64) {}
    fn ended(&mut self, io: &mut PeerIo<'_>, how: Ended);
}

pub(super) struct PeerSlot {
    actor: Option<Box<dyn Peer>>,
    pub address: SocketAddr,
    pub conn: Option<ConnId>,
    reading: Reading,
    read_scheduled: bool,
    rng: Rng,
}

impl PeerSlot {
    /// It is never woken again.
    pub fn retire(&mut self) {
        self.actor = None;
        self.conn = None;
    }
}

/// How often a slow reader reads.
const SLOW_READ_NS: u64 = 50_000_000;

impl Core {
    pub fn add_peer(&mut self, actor: Box<dyn Peer>, address: SocketAddr) -> PeerId {
        let rng = self.rng.fork();
        self.peers.push(PeerSlot {
            actor: Some(actor),
            address,
            conn: None,
            reading: Reading::AtOnce,
            read_scheduled: false,
            rng,
        });
        PeerId(self.peers.len() - 1)
    }

    /// Runs `f` on a peer. What a peer does only queues events, so nothing comes back here.
    pub fn with_peer(&mut self, peer: PeerId, f: impl FnOnce(&mut dyn Peer, &mut PeerIo<'_>)) {
        let Some(mut actor) = self.peers[peer.0].actor.take() else { return };
        f(&mut *actor, &mut PeerIo { core: self, peer });
        self.peers[peer.0].actor = Some(actor);
    }

    pub fn peer_opened(&mut self, peer: PeerId, conn: ConnId) {
        if self.peers[peer.0].conn == Some(conn) {
            self.with_peer(peer, |actor, io| actor.opened(io));
            self.peer_read(peer, false);
        }
    }

    pub fn peer_ended(&mut self, peer: PeerId, conn: Option<ConnId>, how: Ended) {
        if conn.is_none() || self.peers[peer.0].conn == conn {
            self.peers[peer.0].conn = None;
            self.peers[peer.0].reading = Reading::AtOnce;
            self.with_peer(peer, |actor, io| actor.ended(io, how));
        }
    }

    /// The peer reads what has arrived, as much as its pace allows; `due`: a slow reader's moment.
    pub fn peer_read(&mut self, peer: PeerId, due: bool) {
        if due {
            self.peers[peer.0].read_scheduled = false;
        }
        let Some(conn_id) = self.peers[peer.0].conn else { return };
        let max = match self.peers[peer.0].reading {
            Reading::AtOnce => usize::MAX,
            Reading::Never => return,
            Reading::BytesPerSecond(rate) if due => {
                (rate.max(20) * SLOW_READ_NS / 1_000_000_000) as usize
            }
            Reading::BytesPerSecond(_) => 0,
        };
        let Some(conn) = self.net.conns.get_mut(&conn_id) else { return };
        if !conn.established {
            return;
        }
        let bytes = conn.down.take(max);
        let (left, at_end) = (conn.down.arrived_bytes(), conn.down.at_end());
        if !bytes.is_empty() {
            self.launch(conn_id, false);
            self.with_peer(peer, |actor, io| actor.received(io, &bytes));
        }
        if at_end && self.peers[peer.0].conn == Some(conn_id) {
            self.after(0, Event::PeerEnded { peer, conn: Some(conn_id), how: Ended::Finished });
        } else if left > 0 && !self.peers[peer.0].read_scheduled {
            self.peers[peer.0].read_scheduled = true;
            self.after(SLOW_READ_NS, Event::PeerRead { peer });
        }
    }
}

/// What a peer may do while it is awake.
pub struct PeerIo<'a> {
    core: &'a mut Core,
    peer: PeerId,
}

impl PeerIo<'_> {
    pub fn id(&self) -> PeerId {
        self.peer
    }

    pub fn now_ns(&self) -> u64 {
        self.core.now_ns
    }

    pub fn rng(&mut self) -> &mut Rng {
        &mut self.core.peers[self.peer.0].rng
    }

    pub fn connected(&self) -> bool {
        self.core.peers[self.peer.0].conn.is_some()
    }

    /// The shard has closed its socket, whether or not the peer has read so far.
    pub fn is_abandoned(&self) -> bool {
        let id = self.core.peers[self.peer.0].conn;
        let conn = id.and_then(|id| self.core.net.conns.get(&id));
        conn.is_none_or(|conn| conn.was_accepted && conn.socket.is_none())
    }

    /// Sends bytes; without a connection they go nowhere.
    pub fn send(&mut self, bytes: &[u8]) {
        let Some(id) = self.core.peers[self.peer.0].conn else { return };
        let now_ns = self.core.now_ns;
        if let Some(conn) = self.core.net.conns.get_mut(&id)
            && conn.up.fin() == super::pipe::Fin::None
        {
            conn.up.offer(bytes, now_ns);
            self.core.launch(id, true);
        }
    }

    /// Bytes that the shard's side has not taken yet; a flood stops while there are many.
    pub fn unsent_bytes(&self) -> usize {
        let id = self.core.peers[self.peer.0].conn;
        id.and_then(|id| self.core.net.conns.get(&id)).map_or(0, |conn| conn.up.queued_bytes())
    }

    pub fn read(&mut self, reading: Reading) {
        self.core.peers[self.peer.0].reading = reading;
        if reading != Reading::Never && !self.core.peers[self.peer.0].read_scheduled {
            self.core.peers[self.peer.0].read_scheduled = true;
            self.core.after(0, Event::PeerRead { peer: self.peer });
        }
    }

    pub fn timer(&mut self, after_ns: u64, tag: u64) {
        self.core.after(after_ns, Event::PeerTimer { peer: self.peer, tag });
    }

    /// Connects to `address` after a while; the old connection is left first.
    pub fn dial(&mut self, address: SocketAddr, after_ns: u64) {
        self.reset();
        self.core.after(after_ns, Event::Dial { peer: self.peer, address });
    }

    /// Finishes this side (FIN) and goes on reading.
    pub fn finish(&mut self) {
        if let Some(id) = self.core.peers[self.peer.0].conn
            && let Some(conn) = self.core.net.conns.get_mut(&id)
        {
            conn.up.finish();
            self.core.launch(id, true);
        }
    }

    /// Closes both ways, orderly: FIN, and whatever still comes is refused.
    pub fn close(&mut self) {
        self.finish();
        if let Some(id) = self.core.peers[self.peer.0].conn.take() {
            self.core.peer_left(id);
        }
    }

    /// Resets the connection.
    pub fn reset(&mut self) {
        if let Some(id) = self.core.peers[self.peer.0].conn.take() {
            self.core.kill(id, libc::ECONNRESET, false);
        }
    }

    /// Goes without a word: no FIN, no RST, no acknowledgement ever again.
    pub fn vanish(&mut self) {
        if let Some(id) = self.core.peers[self.peer.0].conn.take()
            && let Some(conn) = self.core.net.conns.get_mut(&id)
        {
            conn.down.vanish();
            conn.up.cut();
        }
    }
}
