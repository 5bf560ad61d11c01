//! A seeder in two hundred lines, to prove the simulator before the shard meets it.
//!
//! Owns: its connections, one read and one ordered send each. Never: BitTorrent. Flow: a peer sends
//! offset (8 bytes) and length (4); the toy answers with the length and that range of one file.

use std::collections::{BTreeMap, VecDeque};

use seedring_platform::{
    descriptors::{File, Socket},
    memory::{Class, Share},
    op::{Access, Completion, Io, Op, OpenRequest, Outcome, Shutdown, Token},
    send_batch::SendBatch,
};

const LISTENER: Token = Token(1);
const OPEN: Token = Token(2);
const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const READ: u64 = 2;

pub struct Conn {
    socket: Option<Socket>,
    inbox: Vec<u8>,
    requests: VecDeque<(u64, u32)>,
    ready: VecDeque<Share>,
    current: Option<Box<SendBatch>>,
    reading: bool,
    sending: bool,
    closing: bool,
    busy: u32,
}

pub struct Toy<I: Io> {
    pub io: I,
    listener: Option<Socket>,
    accepting: bool,
    file: Option<File>,
    conns: BTreeMap<u64, Conn>,
    next: u64,
    zero_copy: bool,
    pub opened: bool,
}

fn token(conn: u64, what: u64) -> Token {
    Token(conn << 8 | what)
}

impl<I: Io> Toy<I> {
    pub fn new(mut io: I, listener: Socket, root: File, zero_copy: bool) -> Toy<I> {
        let (path, access) = (c"content".to_owned(), Access::Read);
        let request = OpenRequest { root, path, direct: false, access };
        io.submit(Op::Open { token: OPEN, request: Box::new(request) }).expect("room");
        let accept = Op::Accept { token: LISTENER, listener: listener.clone() };
        io.submit(accept).expect("room");
        let listener = Some(listener);
        Toy {
            io,
            listener,
            accepting: true,
            file: None,
            conns: BTreeMap::new(),
            next: 1,
            zero_copy,
            opened: false,
        }
    }

    pub fn tick(&mut self) {
        let mut completions = Vec::new();
        self.io.reap(&mut completions, 64);
        for completion in completions {
            self.dispatch(completion);
        }
        if !self.accepting
            && let Some(listener) = self.listener.clone()
        {
            self.accepting = self.io.submit(Op::Accept { token: LISTENER, listener }).is_ok();
        }
        for id in self.conns.keys().copied().collect::<Vec<_>>() {
            self.serve(id);
        }
    }

    /// Closes everything; `true` when nothing is left.
    pub fn stop(&mut self) -> bool {
        if self.listener.take().is_some() && self.accepting {
            self.io.cancel(LISTENER);
        }
        let ids: Vec<_> = self.conns.keys().copied().collect();
        ids.into_iter().for_each(|id| self.close(id));
        self.file = None;
        self.conns.is_empty() && self.io.in_flight() == 0
    }

    fn dispatch(&mut self, Completion { token: Token(token), outcome }: Completion) {
        let id = token >> 8;
        match outcome {
            Outcome::Accepted(Ok((socket, _))) => self.accepted(socket),
            Outcome::Accepted(Err(_)) => {}
            Outcome::AcceptEnded(_) => self.accepting = false,
            Outcome::Opened(result) => {
                self.file = result.ok().map(|(file, _)| file);
                self.opened = self.file.is_some();
            }
            Outcome::Received(result) => {
                let end = !result.as_ref().is_ok_and(|bytes| !bytes.is_empty());
                let Some(conn) = self.conns.get_mut(&id) else { return };
                if end {
                    conn.busy -= 1;
                    self.close(id);
                } else if let Ok(bytes) = result {
                    conn.inbox.extend_from_slice(&bytes);
                    while let Some((request, rest)) = conn.inbox.split_first_chunk::<12>() {
                        let (offset, length) = request.split_at(8);
                        let offset = u64::from_le_bytes(offset.try_into().expect("8 bytes"));
                        let length = u32::from_le_bytes(length.try_into().expect("4 bytes"));
                        conn.requests.push_back((offset, length));
                        conn.inbox = rest.to_vec();
                    }
                }
            }
            Outcome::Read { result, lease } => {
                let Some(conn) = self.conns.get_mut(&id) else { return };
                conn.busy -= 1;
                conn.reading = false;
                let (_, length) = *conn.requests.front().expect("a read is for the first request");
                match result {
                    Ok(n) if n == length as usize => {
                        conn.requests.pop_front();
                        conn.ready.push_back(lease.freeze(n));
                    }
                    // Short: asked again whole. A real seeder asks for the rest.
                    Ok(n) if n > 0 => {}
                    Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                    Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                    _ => self.close(id),
                }
            }
            Outcome::Sent { result, batch } => self.sent(id, result, batch),
            Outcome::Released { batch, .. } => self.io.recycle(batch),
            _ => panic!("never asked for"),
        }
    }

    fn accepted(&mut self, socket: Socket) {
        let id = self.next;
        self.next += 1;
        let op = Op::Receive { token: token(id, RECEIVE), socket: socket.clone(), bulk: false };
        if self.io.submit(op).is_err() {
            return;
        }
        let conn = Conn {
            socket: Some(socket),
            inbox: Vec::new(),
            requests: VecDeque::new(),
            ready: VecDeque::new(),
            current: None,
            reading: false,
            sending: false,
            closing: false,
            busy: 1,
        };
        self.conns.insert(id, conn);
    }

    fn sent(&mut self, id: u64, result: std::io::Result<usize>, batch: Option<Box<SendBatch>>) {
        let current = self.conns.get_mut(&id).and_then(|conn| {
            conn.busy -= 1;
            conn.sending = false;
            conn.current.take()
        });
        let again = [libc::EINTR, libc::ENOBUFS];
        let taken = match &result {
            Ok(n) => Some(*n),
            Err(error) if error.raw_os_error().is_some_and(|e| again.contains(&e)) => Some(0),
            Err(_) => None,
        };
        let (rest, spare) = match (batch, current, taken) {
            (Some(mut batch), _, Some(n)) => {
                batch.advance(n);
                (Some(batch), None)
            }
            (None, rest, Some(n)) => {
                // The kernel keeps the batch; `current` is a second hold on the same bytes.
                let mut rest = rest.expect("a zero-copy send keeps a second hold");
                rest.advance(n);
                (Some(rest), None)
            }
            (batch, _, None) => {
                self.close(id);
                (None, batch)
            }
        };
        spare.into_iter().for_each(|batch| self.io.recycle(batch));
        let Some(rest) = rest else { return };
        match self.conns.get_mut(&id) {
            Some(conn) if !rest.is_empty() && !conn.closing => conn.current = Some(rest),
            _ => self.io.recycle(rest),
        }
    }

    fn serve(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.closing {
            if conn.busy == 0 {
                self.conns.remove(&id);
            }
            return;
        }
        let Some(socket) = conn.socket.clone() else { return };
        if !conn.reading
            && conn.ready.len() < 4
            && let (Some(&(offset, length)), Some(file)) = (conn.requests.front(), &self.file)
            && let Some(lease) = self.io.pool().lease(Class::for_bytes(length as usize))
        {
            let file = file.clone();
            let read = Op::Read { token: token(id, READ), file, offset, length, lease };
            conn.reading = self.io.submit(read).is_ok();
            conn.busy += u32::from(conn.reading);
        }
        if conn.sending {
            return;
        }
        if conn.current.is_none() && !conn.ready.is_empty() {
            let mut batch = self.io.batch();
            for share in conn.ready.drain(..) {
                batch.push_bytes(&(share.len() as u32).to_le_bytes());
                batch.push_share(&share, 0..share.len());
            }
            conn.current = Some(batch);
        }
        let Some(batch) = conn.current.take() else { return };
        if self.zero_copy {
            conn.current = Some(batch.remainder(0));
        }
        let zero_copy = self.zero_copy;
        let send = Op::SendBatch { token: token(id, SEND), socket, batch, zero_copy };
        match self.io.submit(send) {
            Ok(()) => {
                conn.sending = true;
                conn.busy += 1;
            }
            Err(Op::SendBatch { batch, .. }) => conn.current = Some(batch),
            Err(_) => unreachable!("the operation itself comes back"),
        }
    }

    fn close(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.closing = true;
        conn.ready.clear();
        conn.requests.truncate(usize::from(conn.reading));
        if !conn.sending {
            conn.current = None;
        }
        if let Some(socket) = conn.socket.take() {
            self.io.shutdown(&socket, Shutdown::Orderly);
        }
    }
}
