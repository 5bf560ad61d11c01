//! The virtual network: listeners, connections, what closes and breaks them.
//!
//! Owns: sockets and connections of all shards, links, TCP_USER_TIMEOUT. Never: completions (an
//! operation is only told that it may have something to report). Flow: peers and operations ->
//! pipes
//! -> events -> peers and operations.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use seedring_platform::op::Shutdown;

use super::{
    fault::FaultKind,
    peer::{Ended, PeerId},
    pipe::Pipe,
    world::{Core, Event},
};

#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub(super) struct ConnId(pub u64);

/// What a connection runs over.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub latency_ns: u64,
    pub ns_per_kib: u64,
    /// The send buffer of either side, and its receive window.
    pub queue_bytes: usize,
    pub window_bytes: usize,
}

impl Link {
    /// Quick enough to be out of the way.
    pub const FAST: Link =
        Link { latency_ns: 100_000, ns_per_kib: 100, queue_bytes: 1 << 20, window_bytes: 1 << 20 };
}

pub(super) struct Conn {
    pub up: Pipe,
    pub down: Pipe,
    pub far: Far,
    pub peer_address: SocketAddr,
    latency_ns: u64,
    pub socket: Option<u64>,
    pub established: bool,
    /// A shard had it at some time.
    pub was_accepted: bool,
    /// Why the shard's side is dead.
    pub error: Option<i32>,
    /// The peer has closed: whatever arrives there is answered by a reset.
    peer_left: bool,
    timeout_scheduled: bool,
    pub releases: Vec<Release>,
}

/// Who is at the other end of a connection: it writes `up` and reads `down`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Far {
    Peer(PeerId),
    /// A socket that connected to a listener of the same machine, until it is closed.
    Socket(Option<u64>),
}

/// A zero-copy batch that waits for its bytes to be acknowledged.
pub(super) struct Release {
    pub shard: usize,
    pub op: u64,
    pub up: bool,
    /// The byte of the stream after its last one.
    pub until: u64,
}

impl Far {
    fn peer(self) -> Option<PeerId> {
        match self {
            Far::Peer(peer) => Some(peer),
            Far::Socket(_) => None,
        }
    }

    fn socket(self) -> Option<u64> {
        match self {
            Far::Peer(_) => None,
            Far::Socket(socket) => socket,
        }
    }
}

impl Conn {
    /// What a socket reads from; `far`: the one at the far end.
    pub fn incoming(&mut self, far: bool) -> &mut Pipe {
        if far { &mut self.down } else { &mut self.up }
    }

    pub fn outgoing(&mut self, far: bool) -> &mut Pipe {
        if far { &mut self.up } else { &mut self.down }
    }
}

/// An operation of a shard.
pub(super) type OpRef = (usize, u64);

pub(super) struct VSocket {
    pub listener: Option<Listener>,
    pub conn: Option<ConnId>,
    /// At the far end of its connection (it connected to a listener of the same machine).
    pub far: bool,
    pub local: SocketAddr,
    pub shutdown: Option<Shutdown>,
    pub accept: Option<OpRef>,
    pub receive: Option<OpRef>,
    pub send: Option<OpRef>,
    /// Operations that hold the descriptor (a pending zero-copy notification does not).
    pub in_flight: u32,
}

pub(super) struct Listener {
    pub backlog: VecDeque<ConnId>,
}

#[derive(Default)]
pub(super) struct Network {
    pub conns: BTreeMap<ConnId, Conn>,
    pub sockets: BTreeMap<u64, VSocket>,
    listeners: BTreeMap<SocketAddr, Vec<u64>>,
    pub peer_listeners: BTreeMap<SocketAddr, PeerId>,
    pub link: Option<Link>,
    ports_used: u16,
}

const BACKLOG_MAX: usize = 1024;
const FIRST_PORT: u16 = 32_768;
/// TCP_USER_TIMEOUT as ARCHITECTURE.md has it.
const USER_TIMEOUT_NS: u64 = 30_000_000_000;

impl VSocket {
    pub fn new(local: SocketAddr) -> VSocket {
        VSocket {
            listener: None,
            conn: None,
            far: false,
            local,
            shutdown: None,
            accept: None,
            receive: None,
            send: None,
            in_flight: 0,
        }
    }
}

impl Core {
    pub fn listen(&mut self, address: SocketAddr) -> u64 {
        let id = self.next_id();
        let mut socket = VSocket::new(address);
        socket.listener = Some(Listener { backlog: VecDeque::new() });
        self.net.sockets.insert(id, socket);
        self.net.listeners.entry(address).or_default().push(id);
        id
    }

    fn link(&mut self) -> Link {
        if let Some(link) = self.net.link {
            return link;
        }
        Link {
            latency_ns: self.rng.between(50_000, 80_000_000),
            ns_per_kib: *self.rng.pick(&[0, 100, 1_000, 10_000, 100_000, 1_000_000]),
            queue_bytes: *self.rng.pick(&[16 << 10, 87_380, 256 << 10, 1 << 20]),
            window_bytes: *self.rng.pick(&[4 << 10, 64 << 10, 256 << 10]),
        }
    }

    pub fn connect(&mut self, peer: PeerId, socket: Option<u64>) -> ConnId {
        let address = self.peers[peer.0].address;
        let (id, latency_ns) = self.connection(Far::Peer(peer), address, socket);
        self.peers[peer.0].conn = Some(id);
        self.after(latency_ns, Event::PeerOpened { peer, conn: id });
        id
    }

    /// Connects a socket to a listener of the same machine, if one has room.
    pub fn connect_within(&mut self, socket: u64, to: SocketAddr) -> Option<ConnId> {
        let listener = self.listener_at(to)?;
        self.net.ports_used = self.net.ports_used % (u16::MAX - FIRST_PORT) + 1;
        let from = SocketAddr::new(to.ip(), FIRST_PORT + self.net.ports_used);
        let (id, _) = self.connection(Far::Socket(Some(socket)), from, None);
        if let Some(socket) = self.net.sockets.get_mut(&socket) {
            (socket.conn, socket.far) = (Some(id), true);
        }
        self.knock(listener, id);
        Some(id)
    }

    fn connection(
        &mut self,
        far: Far,
        peer_address: SocketAddr,
        socket: Option<u64>,
    ) -> (ConnId, u64) {
        let link = self.link();
        let pipe = |queue| Pipe::new(queue, link.window_bytes, link.latency_ns, link.ns_per_kib);
        let id = ConnId(self.next_id());
        // A peer holds itself back (`PeerIo::unsent_bytes`).
        let up_queue_bytes = if far.peer().is_some() { usize::MAX } else { link.queue_bytes };
        let conn = Conn {
            up: pipe(up_queue_bytes),
            down: pipe(link.queue_bytes),
            far,
            peer_address,
            latency_ns: link.latency_ns,
            socket,
            established: true,
            was_accepted: socket.is_some(),
            error: None,
            peer_left: false,
            timeout_scheduled: false,
            releases: Vec::new(),
        };
        self.net.conns.insert(id, conn);
        (id, link.latency_ns)
    }

    /// One of the listeners on the address (SO_REUSEPORT), if it has room.
    fn listener_at(&mut self, address: SocketAddr) -> Option<u64> {
        let listeners = self.net.listeners.get(&address).cloned().unwrap_or_default();
        let chosen = (!listeners.is_empty()).then(|| *self.rng.pick(&listeners));
        let full = |id: &u64| {
            let listener = &self.net.sockets[id].listener;
            listener.as_ref().is_none_or(|l| l.backlog.len() >= BACKLOG_MAX)
        };
        chosen.filter(|id| !full(id))
    }

    /// The listener queues the connection.
    fn knock(&mut self, listener: u64, conn: ConnId) {
        let socket = self.net.sockets.get_mut(&listener).expect("invariant: a listener is open");
        let accept = socket.accept;
        if let Some(listener) = &mut socket.listener {
            listener.backlog.push_back(conn);
        }
        self.signal(accept);
    }

    /// A peer's SYN.
    pub fn dialled(&mut self, peer: PeerId, address: SocketAddr) {
        if self.peers[peer.0].conn.is_some() {
            return;
        }
        let Some(listener) = self.listener_at(address) else {
            self.after(1_000_000, Event::PeerEnded { peer, conn: None, how: Ended::Refused });
            return;
        };
        let conn = self.connect(peer, None);
        self.knock(listener, conn);
    }

    /// Sends what the window allows, and tells a waiting send that there is room again.
    pub fn launch(&mut self, id: ConnId, up: bool) {
        let now_ns = self.now_ns;
        let Some(conn) = self.net.conns.get_mut(&id) else { return };
        let pipe = if up { &mut conn.up } else { &mut conn.down };
        let mut arrivals = Vec::new();
        while let Some(at) = pipe.launch(now_ns) {
            arrivals.push(at);
        }
        let (waits, room) = (pipe.queued_bytes() > 0, pipe.room_bytes() > 0);
        let timeout = (!up && waits && !conn.timeout_scheduled).then_some(pipe.progress_ns);
        conn.timeout_scheduled |= timeout.is_some();
        let writer = if up { conn.far.socket() } else { conn.socket };
        for at in arrivals {
            self.at(at, Event::Arrive { conn: id, up });
        }
        if let Some(since_ns) = timeout {
            self.at(since_ns + USER_TIMEOUT_NS, Event::UserTimeout { conn: id });
        }
        if room {
            let send = writer.and_then(|id| self.net.sockets.get(&id)).and_then(|s| s.send);
            self.signal(send);
        }
    }

    pub fn arrive(&mut self, id: ConnId, up: bool) {
        let now_ns = self.now_ns;
        let Some(conn) = self.net.conns.get_mut(&id) else { return };
        let pipe = if up { &mut conn.up } else { &mut conn.down };
        pipe.arrive(now_ns);
        let delivered = pipe.delivered_bytes;
        let acknowledged = |release: &mut Release| release.up == up && release.until <= delivered;
        let due: Vec<_> = conn.releases.extract_if(.., acknowledged).collect();
        let refused = !up && conn.peer_left && conn.down.arrived_bytes() > 0;
        let (reader, far) = (if up { conn.socket } else { conn.far.socket() }, conn.far);
        due.iter().for_each(|release| self.release(release));
        match far {
            _ if refused => self.kill(id, libc::ECONNRESET, false),
            Far::Peer(peer) if !up && self.peers[peer.0].conn == Some(id) => {
                self.peer_read(peer, false);
            }
            Far::Peer(_) if !up => {}
            _ => self.arrived_at(reader),
        }
    }

    /// Bytes for a socket: its receive reports them, late where no buffer is free.
    fn arrived_at(&mut self, socket: Option<u64>) {
        let socket = socket.and_then(|id| self.net.sockets.get(&id));
        match socket.and_then(|socket| socket.receive) {
            Some((shard, op)) if self.strikes(FaultKind::ReceiveBuffersOut) => {
                let delay_ns = self.rng.between(1_000_000, 300_000_000);
                self.after(delay_ns, Event::Ready { shard, op });
            }
            receive => self.signal(receive),
        }
    }

    /// The acknowledgement of a zero-copy batch came; the notification may still take its time.
    fn release(&mut self, release: &Release) {
        let (shard, op) = (release.shard, release.op);
        let delay_ns = if self.strikes(FaultKind::ReleasedLate) {
            self.rng.between(1_000_000, 5_000_000_000)
        } else {
            self.rng.between(0, 200_000)
        };
        self.after(delay_ns, Event::Ready { shard, op });
    }

    /// The connection is over for the shard's side, and for the peer's if `tell_peer`.
    pub fn kill(&mut self, id: ConnId, errno: i32, tell_peer: bool) {
        let Some(conn) = self.net.conns.get_mut(&id) else { return };
        if conn.error.is_some() {
            return;
        }
        conn.error = Some(errno);
        conn.up.cut();
        conn.down.cut();
        let (far, latency_ns, socket) = (conn.far, conn.latency_ns, conn.socket);
        std::mem::take(&mut conn.releases).iter().for_each(|release| self.release(release));
        if tell_peer && let Far::Peer(peer) = far {
            self.after(latency_ns, Event::PeerEnded { peer, conn: Some(id), how: Ended::Reset });
        }
        for socket in [socket, far.socket()].into_iter().flatten() {
            let Some(socket) = self.net.sockets.get(&socket) else { continue };
            let (receive, send) = (socket.receive, socket.send);
            self.signal(receive);
            self.signal(send);
        }
    }

    pub fn retire_peers(&mut self) {
        self.peers.iter_mut().for_each(|peer| peer.retire());
        for id in self.net.conns.keys().copied().collect::<Vec<_>>() {
            self.kill(id, libc::ECONNRESET, false);
        }
    }

    pub fn peer_left(&mut self, id: ConnId) {
        let Some(conn) = self.net.conns.get_mut(&id) else { return };
        conn.peer_left = true;
        if conn.down.arrived_bytes() > 0 || conn.down.queued_bytes() > 0 {
            self.kill(id, libc::ECONNRESET, false);
        }
    }

    pub fn user_timeout(&mut self, id: ConnId) {
        let now_ns = self.now_ns;
        let Some(conn) = self.net.conns.get_mut(&id) else { return };
        conn.timeout_scheduled = false;
        if conn.error.is_some() || conn.down.queued_bytes() == 0 {
            return;
        }
        let due_ns = conn.down.progress_ns + USER_TIMEOUT_NS;
        if now_ns >= due_ns {
            self.kill(id, libc::ETIMEDOUT, true);
        } else {
            conn.timeout_scheduled = true;
            self.at(due_ns, Event::UserTimeout { conn: id });
        }
    }

    pub fn shutdown(&mut self, id: u64, how: Shutdown) {
        let Some(socket) = self.net.sockets.get_mut(&id) else { return };
        if socket.shutdown != Some(Shutdown::Reset) {
            socket.shutdown = Some(how);
        }
        let (conn, far) = (socket.conn, socket.far);
        let (receive, send) = (socket.receive, socket.send);
        if let Some(id) = conn
            && how == Shutdown::Orderly
            && let Some(conn) = self.net.conns.get_mut(&id)
            && conn.error.is_none()
        {
            conn.outgoing(far).finish();
            self.launch(id, far);
        }
        self.signal(receive);
        self.signal(send);
    }

    /// The last handle of a socket is gone.
    pub fn socket_closed(&mut self, id: u64) {
        let Some(socket) = self.net.sockets.remove(&id) else {
            self.violation(format!("socket {id} was closed twice"));
            return;
        };
        if socket.in_flight > 0 {
            let n = socket.in_flight;
            self.violation(format!("socket {id} was closed with {n} operations in flight"));
        }
        if let Some(listener) = socket.listener {
            if let Some(ids) = self.net.listeners.get_mut(&socket.local) {
                ids.retain(|&listener| listener != id);
            }
            for conn in listener.backlog {
                self.kill(conn, libc::ECONNRESET, true);
            }
        }
        let Some(conn_id) = socket.conn else { return };
        let Some(conn) = self.net.conns.get_mut(&conn_id) else { return };
        match socket.far {
            true => conn.far = Far::Socket(None),
            false => conn.socket = None,
        }
        // Linux resets where the application leaves bytes unread.
        if socket.shutdown == Some(Shutdown::Reset) || conn.incoming(socket.far).arrived_bytes() > 0
        {
            self.kill(conn_id, libc::ECONNRESET, true);
        } else if conn.error.is_none() {
            conn.outgoing(socket.far).finish();
            self.launch(conn_id, socket.far);
        }
    }
}
