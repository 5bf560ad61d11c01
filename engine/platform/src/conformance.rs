//! One suite that every backend of `trait Io` passes: ring, simulator, and what comes later.
//!
//! Owns: the seam's promises as cases. Never: a backend's insides (only `Io` and the rig).
//! Flow: a backend's test calls `run` with a way to make fresh rigs; a broken promise panics with
//! the case's name.

mod files;
mod sockets;
mod transfers;
mod waiting;
mod writes;

use std::{net::SocketAddr, time::Duration};

use crate::{
    descriptors::{File, Socket},
    memory::{Class, Share},
    op::{Access, Completion, Io, Op, OpenRequest, Outcome, Received, Token},
    send_batch::SendBatch,
};

/// A backend with its surroundings, fresh for each case.
pub struct Rig<I: Io> {
    pub io: I,
    pub world: Box<dyn World>,
    /// The limit that the backend was made with; small (64), since a case fills it.
    pub in_flight_max: usize,
    /// Whether other threads may use the waker while `wait` sleeps (no, in virtual time).
    pub threads: bool,
}

/// What a case needs around the backend. The pool must hold 16 MiB.
pub trait World {
    /// A listening socket and where to reach it.
    fn listen(&mut self) -> (Socket, SocketAddr);
    /// An address where connecting is refused.
    fn refusing(&mut self) -> SocketAddr;
    /// The directory that files are opened beneath.
    fn root(&self) -> File;
    /// Makes or replaces a file beneath the root, with the folders above it.
    fn write(&mut self, path: &str, content: &[u8]);
    /// Makes a symbolic link beneath the root.
    fn link(&mut self, path: &str, target: &str);
}

type Case<I> = (&'static str, fn(&mut Bench<I>));

/// Runs every case, each on a fresh rig.
pub fn run<I: Io>(make: impl Fn() -> Rig<I>) {
    let suites =
        [sockets::cases(), transfers::cases(), files::cases(), writes::cases(), waiting::cases()];
    for (name, case) in suites.into_iter().flatten() {
        // Captured output: shown where the case fails.
        println!("conformance: {name}");
        let mut bench = Bench { rig: make(), seen: Vec::new() };
        case(&mut bench);
        bench.finish(name);
    }
}

/// A case's hands on the backend.
struct Bench<I: Io> {
    rig: Rig<I>,
    /// Completions not asked for yet, in order.
    seen: Vec<Completion>,
}

impl<I: Io> Bench<I> {
    fn submit(&mut self, op: Op) {
        if let Err(op) = self.rig.io.submit(op) {
            panic!("refused with {} in flight: {op:?}", self.rig.io.in_flight());
        }
    }

    /// One turn of the loop that a shard runs: sleep a little, reap.
    fn turn(&mut self) {
        let until = self.rig.io.now() + Duration::from_millis(20);
        self.rig.io.wait(Some(until), &|| false);
        self.reap();
    }

    /// Received bytes are copied out: their buffers may be held for one dispatch only, and a case
    /// looks at them when it asks.
    fn reap(&mut self) {
        let known = self.seen.len();
        self.rig.io.reap(&mut self.seen, 64);
        for completion in &mut self.seen[known..] {
            if let Outcome::Received(Ok(bytes)) = &mut completion.outcome {
                *bytes = Received::from_vec(bytes.to_vec());
            }
        }
    }

    /// The next completion with this token, waiting for it.
    fn next(&mut self, token: u64) -> Outcome {
        let start = self.rig.io.now();
        self.reap();
        loop {
            if let Some(at) = self.seen.iter().position(|seen| seen.token == Token(token)) {
                return self.seen.remove(at).outcome;
            }
            let waited = self.rig.io.now() - start;
            assert!(waited < Duration::from_secs(20), "nothing came for token {token}");
            self.turn();
        }
    }

    /// Lets time pass and asserts that nothing came for this token.
    fn silent(&mut self, token: u64) {
        for _ in 0..3 {
            self.turn();
        }
        let found = self.seen.iter().find(|seen| seen.token == Token(token));
        assert!(found.is_none(), "unexpected: {found:?}");
    }

    /// A connected pair: (connecting end, accepted end).
    fn pair(&mut self) -> (Socket, Socket) {
        let (listener, address) = self.rig.world.listen();
        let pair = self.pair_through(&listener, address);
        drop(listener);
        pair
    }

    fn pair_through(&mut self, listener: &Socket, address: SocketAddr) -> (Socket, Socket) {
        const ACCEPT: u64 = 1 << 40;
        const CONNECT: u64 = ACCEPT + 1;
        self.submit(Op::Accept { token: Token(ACCEPT), listener: listener.clone() });
        let socket = self.rig.io.socket(address, None).expect("socket");
        self.submit(Op::Connect { token: Token(CONNECT), socket: socket.clone(), address });
        expect_connected(self.next(CONNECT)).expect("connected");
        let accepted = match self.next(ACCEPT) {
            Outcome::Accepted(Ok((accepted, _))) => accepted,
            other => panic!("accept gave {other:?}"),
        };
        self.rig.io.cancel(Token(ACCEPT));
        match self.next(ACCEPT) {
            Outcome::AcceptEnded(error) => assert_cancelled(&error),
            other => panic!("cancelled accept gave {other:?}"),
        }
        (socket, accepted)
    }

    /// A share filled with a pattern that `start` shifts.
    fn share(&mut self, class: Class, start: usize) -> Share {
        let mut lease = self.rig.io.pool().lease(class).expect("the pool holds 16 MiB");
        for (at, byte) in lease.iter_mut().enumerate() {
            *byte = pattern(start + at);
        }
        lease.freeze(class.bytes())
    }

    /// Sends all of `batch`, however it is taken, and returns how many sends that took.
    fn send(&mut self, token: u64, socket: &Socket, batch: Box<SendBatch>) {
        let mut batch = batch;
        while !batch.is_empty() {
            let op = Op::SendBatch {
                token: Token(token),
                socket: socket.clone(),
                batch,
                zero_copy: false,
            };
            self.submit(op);
            let Outcome::Sent { result, batch: back } = self.next(token) else {
                panic!("a send gave something else")
            };
            batch = back.expect("a copying send gives its batch back");
            let taken = result.expect("sent");
            assert!(taken > 0, "a send takes something");
            batch.advance(taken);
        }
        self.rig.io.recycle(batch);
    }

    /// What a multishot receive brings until its ending.
    fn received(&mut self, token: u64) -> (Vec<u8>, std::io::Result<()>) {
        let mut bytes = Vec::new();
        loop {
            match self.next(token) {
                Outcome::Received(Ok(more)) if more.is_empty() => return (bytes, Ok(())),
                Outcome::Received(Ok(more)) => bytes.extend_from_slice(&more),
                Outcome::Received(Err(error)) => return (bytes, Err(error)),
                other => panic!("a receive gave {other:?}"),
            }
        }
    }

    fn open(&mut self, token: u64, path: &str, direct: bool) -> Outcome {
        self.open_for(token, path, direct, Access::Read)
    }

    fn open_for(&mut self, token: u64, path: &str, direct: bool, access: Access) -> Outcome {
        let request = Box::new(OpenRequest {
            root: self.rig.world.root(),
            path: std::ffi::CString::new(path).expect("no zero byte"),
            direct,
            access,
        });
        self.submit(Op::Open { token: Token(token), request });
        self.next(token)
    }

    /// What every case ends with: nothing in flight, every lease home.
    fn finish(mut self, name: &str) {
        let start = self.rig.io.now();
        while self.rig.io.in_flight() > 0 {
            let waited = self.rig.io.now() - start;
            assert!(
                waited < Duration::from_secs(20),
                "{name}: {} operations never ended",
                self.rig.io.in_flight()
            );
            self.turn();
        }
        self.turn();
        let left = std::mem::take(&mut self.seen);
        assert!(
            left.iter().all(|it| matches!(it.outcome, Outcome::Released { .. })),
            "{name}: nobody asked for {left:?}"
        );
        drop(left);
        assert_eq!(self.rig.io.pool().leased_bytes(), 0, "{name}: leases did not come home");
    }
}

fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(131) ^ (at >> 9)) as u8
}

fn patterned(len: usize) -> Vec<u8> {
    (0..len).map(pattern).collect()
}

fn expect_connected(outcome: Outcome) -> std::io::Result<()> {
    match outcome {
        Outcome::Connected(result) => result,
        other => panic!("a connect gave {other:?}"),
    }
}

fn assert_cancelled(error: &std::io::Error) {
    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED), "{error}");
}
