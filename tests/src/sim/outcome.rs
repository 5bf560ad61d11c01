//! What each operation reports when it is looked at: the faults live here.
//!
//! Owns: the outcome of accepts, connects, receives, sends, opens and reads. Never: the in-flight
//! table. Flow: `reap` takes a ready operation and asks here what it has to say.

use std::{io, net::SocketAddr};

use seedring_platform::{
    descriptors::{File, Socket},
    op::{Access, Identity, OpenRequest, Outcome, Received, Shutdown, Token},
    send_batch::SendBatch,
};

use super::{
    fault::FaultKind,
    flight::{Descriptor, Flight, Kind, Produced, file_id, socket_id},
    net::{ConnId, Release, VSocket},
    rng::mix,
    world::{Closed, Core, OpenFile},
};

/// A hash of what a batch would send or write now.
pub(super) fn snapshot<'a>(slices: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut hash = 0u64;
    for slice in slices {
        for chunk in slice.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = mix(hash ^ u64::from_le_bytes(word)).wrapping_add(chunk.len() as u64);
        }
    }
    hash
}

pub(super) fn fails<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

const ANY: SocketAddr =
    SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0));

impl Core {
    pub fn accept(
        &mut self,
        id: u64,
        listener: Socket,
        ending: Option<i32>,
        cancelled: bool,
    ) -> (Option<Outcome>, Option<Kind>, bool) {
        let socket = socket_id(&listener);
        let waiting = self.net.sockets.get(&socket).and_then(|s| s.listener.as_ref());
        let (waiting, gone) = (waiting.map_or(0, |l| l.backlog.len()), waiting.is_none());
        let shut = self.net.sockets.get(&socket).is_none_or(|s| s.shutdown.is_some());
        let raced = cancelled && waiting > 0 && self.strikes(FaultKind::CancelRaced);
        let ending = match ending {
            Some(errno) => Some(errno),
            None if cancelled && !raced => Some(libc::ECANCELED),
            None if gone || shut => Some(libc::EINVAL),
            None if waiting > 0 && self.strikes(FaultKind::AcceptEnded) => Some(libc::EINVAL),
            None => None,
        };
        if let Some(errno) = ending {
            let kind = Kind::Accept { listener, ending: None };
            self.let_go(id, &kind);
            let error = io::Error::from_raw_os_error(errno);
            return (Some(Outcome::AcceptEnded(error)), None, false);
        }
        if waiting == 0 {
            return (None, Some(Kind::Accept { listener, ending: None }), false);
        }
        if self.strikes(FaultKind::AcceptFailed) {
            use libc::{ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM};
            let errno = *self.rng.pick(&[EMFILE, ENFILE, ENOBUFS, ENOMEM, ECONNABORTED]);
            if errno == ECONNABORTED
                && let Some(conn) = self.next_waiting(socket)
            {
                self.kill(conn, libc::ECONNRESET, true);
            }
            let kind = Kind::Accept { listener, ending: Some(errno) };
            return (Some(Outcome::Accepted(fails(errno))), Some(kind), true);
        }
        let conn = self.next_waiting(socket).expect("invariant: one waits");
        let accepted = self.accepted(socket, conn);
        let kind = Kind::Accept { listener, ending: None };
        (Some(Outcome::Accepted(Ok(accepted))), Some(kind), waiting > 1 || raced)
    }

    fn next_waiting(&mut self, listener: u64) -> Option<ConnId> {
        let socket = self.net.sockets.get_mut(&listener)?;
        socket.listener.as_mut()?.backlog.pop_front()
    }

    fn accepted(&mut self, listener: u64, conn_id: ConnId) -> (Socket, SocketAddr) {
        let local = self.net.sockets[&listener].local;
        let mut socket = VSocket::new(local);
        socket.conn = Some(conn_id);
        let (id, handle) = self.open_socket(socket);
        let conn = self.net.conns.get_mut(&conn_id).expect("invariant: queued connections live");
        conn.socket = Some(id);
        conn.was_accepted = true;
        let address = conn.peer_address;
        if self.strikes(FaultKind::AcceptedDead) {
            self.kill(conn_id, libc::ECONNRESET, true);
        }
        (handle, address)
    }

    pub fn open_socket(&mut self, socket: VSocket) -> (u64, Socket) {
        let id = self.next_id();
        let local = Some(socket.local);
        self.net.sockets.insert(id, socket);
        let closed = self.closed.clone();
        let descriptor = Descriptor { id, what: Closed::Socket(id), local, closed };
        (id, Socket::from_virtual(Box::new(descriptor)))
    }

    pub fn connect_result(
        &mut self,
        socket: &Socket,
        to: SocketAddr,
        cancelled: bool,
    ) -> io::Result<()> {
        if cancelled && !self.strikes(FaultKind::CancelRaced) {
            return fails(libc::ECANCELED);
        }
        if self.strikes(FaultKind::ConnectTimedOut) {
            return fails(*self.rng.pick(&[
                libc::ETIMEDOUT,
                libc::ENETUNREACH,
                libc::EHOSTUNREACH,
            ]));
        }
        let listening = self.net.peer_listeners.get(&to).copied();
        let free = listening.filter(|peer| self.peers[peer.0].conn.is_none());
        let id = socket_id(socket);
        let conn = match free {
            _ if self.strikes(FaultKind::ConnectRefused) => None,
            Some(peer) => Some(self.connect(peer, Some(id))),
            None => self.connect_within(id, to),
        };
        let Some(conn) = conn else { return fails(libc::ECONNREFUSED) };
        if let Some(socket) = self.net.sockets.get_mut(&id) {
            socket.conn = Some(conn);
            if socket.shutdown.is_some() {
                self.kill(conn, libc::ECONNABORTED, true);
            }
        }
        Ok(())
    }

    pub fn receive(
        &mut self,
        id: u64,
        handle: Socket,
        once: bool,
        cancelled: bool,
        held: impl FnOnce(Kind) -> Flight,
    ) -> Produced {
        let socket = socket_id(&handle);
        let (conn, far, shut) = match self.net.sockets.get(&socket) {
            Some(socket) => (socket.conn, socket.far, socket.shutdown.is_some()),
            None => (None, false, true),
        };
        let found = conn.and_then(|conn| self.net.conns.get_mut(&conn));
        let (waiting, at_end, error) = match found {
            Some(conn) => {
                let error = conn.error;
                let pipe = conn.incoming(far);
                (pipe.arrived_bytes(), pipe.at_end(), error)
            }
            None => (0, false, Some(libc::ENOTCONN)),
        };
        let kind = Kind::Receive { socket: handle, once };
        let ending = if shut {
            Some(Ok(Received::from_vec(Vec::new())))
        } else if cancelled && !(waiting > 0 && self.strikes(FaultKind::CancelRaced)) {
            Some(fails(libc::ECANCELED))
        } else if waiting > 0 && self.strikes(FaultKind::ReceiveReset) {
            self.break_off(conn, libc::ECONNRESET);
            Some(fails(libc::ECONNRESET))
        } else if waiting > 0 && self.strikes(FaultKind::ConnectionTimedOut) {
            self.break_off(conn, libc::ETIMEDOUT);
            Some(fails(libc::ETIMEDOUT))
        } else if let Some(errno) = error {
            Some(fails(errno))
        } else if at_end {
            Some(Ok(Received::from_vec(Vec::new())))
        } else {
            None
        };
        if let Some(result) = ending {
            self.let_go(id, &kind);
            return Produced::last(Outcome::Received(result));
        }
        if waiting == 0 {
            return Produced { outcome: None, rest: Some(held(kind)), again: false };
        }
        let max = if self.strikes(FaultKind::ReceiveFragmented) {
            self.rng.between(1, (waiting as u64).min(200)) as usize
        } else {
            *self.rng.pick(&[4096, 16 << 10, 64 << 10])
        };
        let conn_id = conn.expect("invariant: bytes wait on a connection");
        let conn = self.net.conns.get_mut(&conn_id).expect("invariant: looked at above");
        let pipe = conn.incoming(far);
        let bytes = pipe.take(max);
        let more = pipe.arrived_bytes() > 0 || pipe.at_end() || cancelled;
        self.launch(conn_id, !far);
        let outcome = Outcome::Received(Ok(Received::from_vec(bytes)));
        if once {
            self.let_go(id, &kind);
            return Produced::last(outcome);
        }
        Produced { outcome: Some(outcome), rest: Some(held(kind)), again: more }
    }

    fn break_off(&mut self, conn: Option<ConnId>, errno: i32) {
        if let Some(conn) = conn {
            self.kill(conn, errno, true);
        }
    }

    pub fn send(
        &mut self,
        shard: usize,
        id: u64,
        kind: Kind,
        held: impl FnOnce(Kind) -> Flight,
    ) -> Produced {
        let Kind::Send { socket: handle, batch, zero_copy, snapshot } = kind else {
            unreachable!("only sends come here")
        };
        let socket = self.net.sockets.get(&socket_id(&handle));
        let shut = socket.is_none_or(|socket| socket.shutdown.is_some());
        let reset = socket.is_some_and(|socket| socket.shutdown == Some(Shutdown::Reset));
        let conn_id = socket.and_then(|socket| socket.conn);
        let far = socket.is_some_and(|socket| socket.far);
        let error = match conn_id.and_then(|id| self.net.conns.get(&id)) {
            _ if reset || shut => Some(libc::EPIPE),
            Some(conn) => conn.error,
            None => Some(libc::ENOTCONN),
        };
        let error = match error {
            Some(errno) => Some(errno),
            None if self.strikes(FaultKind::SendNoBuffers) => Some(libc::ENOBUFS),
            None if self.strikes(FaultKind::Interrupted) => Some(libc::EINTR),
            None if self.strikes(FaultKind::SendReset) => {
                let errno = *self.rng.pick(&[libc::EPIPE, libc::ECONNRESET]);
                self.break_off(conn_id, errno);
                Some(errno)
            }
            None => None,
        };
        if let Some(errno) = error {
            self.check_snapshot(Token(id), &batch, snapshot);
            self.let_go(id, &Kind::Connect { socket: handle, address: ANY });
            return Produced::last(Outcome::Sent { result: fails(errno), batch: Some(batch) });
        }
        let conn_id = conn_id.expect("invariant: without a connection it failed above");
        let found = self.net.conns.get_mut(&conn_id);
        let room = found.map_or(0, |conn| conn.outgoing(far).room_bytes());
        if room == 0 {
            let kind = Kind::Send { socket: handle, batch, zero_copy, snapshot };
            return Produced { outcome: None, rest: Some(held(kind)), again: false };
        }
        let mut taken = room.min(batch.len_bytes());
        if taken > 1 && self.strikes(FaultKind::PartialSend) {
            taken = self.rng.between(1, taken as u64 - 1) as usize;
        }
        let until = self.take(conn_id, far, &batch, taken);
        self.let_go(id, &Kind::Connect { socket: handle, address: ANY });
        self.launch(conn_id, far);
        if !zero_copy || self.strikes(FaultKind::ReleasedAtOnce) {
            self.check_snapshot(Token(id), &batch, snapshot);
            return Produced::last(Outcome::Sent { result: Ok(taken), batch: Some(batch) });
        }
        let copied = self.strikes(FaultKind::ReleasedCopied);
        let conn = self.net.conns.get_mut(&conn_id).expect("invariant: looked at above");
        conn.releases.push(Release { shard, op: id, up: far, until });
        let outcome = Outcome::Sent { result: Ok(taken), batch: None };
        let kind = Kind::Release { batch, copied, snapshot };
        Produced { outcome: Some(outcome), rest: Some(held(kind)), again: false }
    }

    /// The socket takes the first `taken` bytes; up to which byte of the stream that is.
    fn take(&mut self, conn: ConnId, far: bool, batch: &SendBatch, taken: usize) -> u64 {
        let now_ns = self.now_ns;
        let conn = self.net.conns.get_mut(&conn).expect("invariant: the caller looked");
        let pipe = conn.outgoing(far);
        let mut left = taken;
        for slice in batch.slices() {
            let n = slice.len().min(left);
            pipe.offer(&slice[..n], now_ns);
            left -= n;
            if left == 0 {
                break;
            }
        }
        pipe.taken_bytes
    }

    pub fn check_snapshot(&mut self, token: Token, batch: &SendBatch, then: u64) {
        if snapshot(batch.slices()) != then {
            self.violation(format!("bytes of a batch changed while it was in flight ({token:?})"));
        }
    }

    pub fn open(&mut self, request: &OpenRequest) -> io::Result<(File, Identity)> {
        let root = self.files.get(&file_id(&request.root));
        let root = root.and_then(|file| Some((file.directory?, file.folder.clone())));
        let Some((directory, folder)) = root else { return fails(libc::ENOTDIR) };
        // Beneath the folder: by itself first, so that nothing leads out of it.
        let beneath = match self.disk.walk(directory, request.path.as_bytes()) {
            Ok((path, _)) if !folder.is_empty() => [&folder[..], &path].join(&b'/'),
            Ok((path, _)) => path,
            Err(errno) => return fails(errno),
        };
        let (path, found) = match self.disk.walk(directory, &beneath) {
            Ok(walked) => walked,
            Err(errno) => return fails(errno),
        };
        let creates = request.access == Access::Create;
        if found.is_none() && !creates {
            return fails(libc::ENOENT);
        }
        if self.strikes(FaultKind::OpenFailed) {
            return fails(*self.rng.pick(&[libc::EMFILE, libc::EACCES, libc::EIO]));
        }
        let node = match found {
            Some(node) => node,
            None => self.disk.create(directory, &path, self.now_ns),
        };
        // The directory's sync comes after, and fails alone.
        if creates && self.strikes(FaultKind::SyncFailed) {
            return fails(libc::EIO);
        }
        if creates {
            self.disk.sync_name(directory, &path);
        }
        let id = self.next_id();
        let direct = request.direct && self.disk.direct.is_some();
        let writable = request.access != Access::Read;
        let file = OpenFile {
            node: Some(node),
            directory: None,
            folder: Vec::new(),
            direct,
            writable,
            in_flight: 0,
        };
        self.files.insert(id, file);
        let closed = self.closed.clone();
        let handle = Descriptor { id, what: Closed::File(id), local: None, closed };
        Ok((File::from_virtual(Box::new(handle)), self.disk.identity(node, direct)))
    }

    pub fn identify(&mut self, file: &File) -> io::Result<Identity> {
        if self.strikes(FaultKind::IdentifyFailed) {
            return fails(*self.rng.pick(&[libc::EIO, libc::ESTALE]));
        }
        match self.files.get(&file_id(file)) {
            Some(OpenFile { node: Some(node), direct, .. }) => {
                Ok(self.disk.identity(*node, *direct))
            }
            _ => fails(libc::EBADF),
        }
    }

    /// Every other window of each file lies in memory.
    pub fn window(&self, file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
        let Some(OpenFile { node: Some(node), .. }) = self.files.get(&file_id(file)) else {
            return None;
        };
        if (node.0 + offset / length as u64) % 2 == 1 {
            return None;
        }
        let mut bytes = vec![0; length];
        (self.disk.read(*node, offset, &mut bytes) == length).then_some(bytes)
    }

    pub fn read(&mut self, file: &File, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let Some(OpenFile { node: Some(node), direct, .. }) = self.files.get(&file_id(file)) else {
            return fails(libc::EBADF);
        };
        let (node, needs) = (*node, self.disk.direct.filter(|_| *direct));
        let step = needs.map_or(1, |needs| u64::from(needs.offset_bytes));
        if !offset.is_multiple_of(step) || !(out.len() as u64).is_multiple_of(step) {
            return fails(libc::EINVAL);
        }
        if self.strikes(FaultKind::ReadFailed) {
            return fails(libc::EIO);
        }
        if self.strikes(FaultKind::Interrupted) {
            return fails(*self.rng.pick(&[libc::EINTR, libc::EAGAIN]));
        }
        let mut length = out.len();
        if length > 1 && self.strikes(FaultKind::ShortRead) {
            length = self.rng.between(1, length as u64 - 1) as usize;
        }
        Ok(self.disk.read(node, offset, &mut out[..length]))
    }
}
