//! The ring, and epoll, under everything at once: cancels, closing peers, few buffers, an
//! overflowing completion queue, zero-copy, short reads, writes and new files. Streams and files
//! stay right, every operation ends, every lease comes home; debug builds also check that nothing
//! wrote into memory after it came home.
//!
//! `SEEDRING_STORM_SECONDS` makes it long, `SEEDRING_STORM_SEED` repeats one.

mod ending;

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::unix::fs::{FileExt, OpenOptionsExt},
    time::{Duration, Instant},
};

use seedring_platform::{
    Access, Allocation, Io, Op, OpenRequest, Outcome, Shutdown, Token,
    descriptors::{self, File, ListenOptions, Socket},
    epoll::{Epoll, EpollOptions},
    memory::{Class, Pool, PoolOptions, Share},
    ring::{Ring, RingOptions, Statistics},
    write_batch::WriteBatch,
};

const PERIOD: usize = 64 << 10;
const FILE_BYTES: u64 = 1 << 20;
/// A file that is written to: byte `at` is `pattern(at)` or, where nothing was written yet, 0.
const SCRATCH_BYTES: u64 = 4 << 20;
const ACCEPT: Token = Token(0);

fn pattern(at: u64) -> u8 {
    let at = at as usize % PERIOD;
    (at.wrapping_mul(197) ^ (at >> 8)) as u8
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64*: enough for choosing what to do next.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % limit
    }
}

/// One direction of a connection: from `near` to `far`, both in this ring.
struct Stream {
    near: Socket,
    far: Socket,
    sent: u64,
    received: u64,
    sending: bool,
    receiving: Option<Token>,
    over: bool,
}

#[derive(Clone, Copy, Debug)]
enum Pending {
    Send(usize),
    Release,
    Receive { which: usize, once: bool },
    Read(u64),
    ReadScratch(u64),
    Write(usize),
    Sync,
    Allocate,
    Create,
    Identify,
}

/// What is written to, all in one folder that goes at the end.
struct Scratch {
    file: File,
    /// What offsets and lengths are multiples of: 4096 for direct I/O, else 1. One file has one
    /// way: where direct and buffered transfers meet in the page cache, syncs fail with EIO.
    unit: u64,
    root: File,
    _folder: tempfile::TempDir,
}

impl Scratch {
    fn new(direct: bool) -> Scratch {
        let folder = tempfile::tempdir().expect("folder");
        let open = |flags| {
            let mut options = std::fs::OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
            options.open(folder.path().join("scratch"))
        };
        // Some file systems have no direct I/O.
        let found = direct.then(|| open(libc::O_DIRECT).ok()).flatten();
        let unit = if found.is_some() { 4096 } else { 1 };
        let file = found.unwrap_or_else(|| open(0).expect("file"));
        Scratch {
            file: File::from_os(file.into()),
            unit,
            root: descriptors::open_directory(folder.path()).expect("folder"),
            _folder: folder,
        }
    }
}

struct Storm<I: Io> {
    io: I,
    random: Random,
    share: Share,
    file: File,
    scratch: Scratch,
    listener_address: SocketAddr,
    streams: Vec<Stream>,
    pending: HashMap<Token, Pending>,
    token: u64,
    submitted: u64,
    ended: u64,
    bytes: u64,
    written: u64,
}

impl<I: Io> Storm<I> {
    fn new(seed: u64, mut io: I) -> Storm<I> {
        let pool = io.pool().clone();
        let mut lease = pool.lease(Class::K64).expect("lease");
        lease.iter_mut().enumerate().for_each(|(at, byte)| *byte = pattern(at as u64));
        let listener = descriptors::listen(ListenOptions {
            address: "127.0.0.1:0".parse().expect("an address"),
            backlog: 256,
            reuse_port: false,
            v6_only: false,
        })
        .expect("listen");
        let listener_address = listener.local_addr().expect("address");
        io.submit(Op::Accept { token: ACCEPT, listener: listener.into() }).expect("room");
        let content: Vec<u8> = (0..FILE_BYTES).map(pattern).collect();
        let file = tempfile::tempfile().expect("file");
        file.write_all_at(&content, 0).expect("write");
        Storm {
            io,
            random: Random(seed | 1),
            share: lease.freeze(PERIOD),
            file: File::from_os(file.into()),
            scratch: Scratch::new(seed % 2 == 1),
            listener_address,
            streams: Vec::new(),
            pending: HashMap::new(),
            token: 1,
            submitted: 0,
            ended: 0,
            bytes: 0,
            written: 0,
        }
    }

    fn token(&mut self) -> Token {
        self.token += 1;
        Token(self.token)
    }

    fn submit(&mut self, op: Op, pending: Pending, token: Token) -> bool {
        match self.io.submit(op) {
            Ok(()) => {
                self.submitted += 1;
                assert!(self.pending.insert(token, pending).is_none());
                true
            }
            Err(_full) => false,
        }
    }

    /// A connection made outside the ring; its accepted end comes through the ring's accept.
    fn connect(&mut self) {
        let near = std::net::TcpStream::connect(self.listener_address).expect("connect");
        let mut completions = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(10);
        let far = loop {
            assert!(Instant::now() < deadline, "the connection was not accepted");
            self.io.wait(Some(self.io.now() + Duration::from_millis(10)), &|| false);
            self.io.reap(&mut completions, 1);
            match completions.pop() {
                Some(it) if it.token == ACCEPT => match it.outcome {
                    Outcome::Accepted(Ok((far, _))) => break far,
                    other => panic!("accept gave {other:?}"),
                },
                Some(it) => self.complete(it.token, it.outcome),
                None => {}
            }
        };
        let near = Socket::from_os(near.into());
        self.streams.push(Stream {
            near,
            far,
            sent: 0,
            received: 0,
            sending: false,
            receiving: None,
            over: false,
        });
    }

    fn act(&mut self) {
        let which = self.random.below(self.streams.len() as u64) as usize;
        match self.random.below(100) {
            0..40 => self.send(which),
            40..66 => self.receive(which),
            66..72 => {
                if let Some(token) = self.streams[which].receiving {
                    self.io.cancel(token);
                }
            }
            72..83 => self.read(),
            83..93 => self.write(),
            93..96 => self.create_or_sync(),
            96..98 => {
                let (token, file) = (self.token(), self.file.clone());
                self.submit(Op::Identify { token, file }, Pending::Identify, token);
            }
            98 if self.random.below(20) == 0 => {
                let stream = &mut self.streams[which];
                stream.over = true;
                let how =
                    if self.random.below(2) == 0 { Shutdown::Reset } else { Shutdown::Orderly };
                self.io.shutdown(&stream.near, how);
                self.io.shutdown(&stream.far, how);
            }
            _ => {}
        }
    }

    fn send(&mut self, which: usize) {
        let stream = &self.streams[which];
        if stream.sending || stream.over {
            return;
        }
        let (mut at, socket) = (stream.sent, stream.near.clone());
        let mut batch = self.io.batch();
        for _ in 0..=self.random.below(20) {
            let start = at as usize % PERIOD;
            let len = (1 + self.random.below(20_000) as usize).min(PERIOD - start);
            if self.random.below(3) == 0 {
                let own = &self.share[start..start + len.min(64)];
                batch.push_bytes(own);
                at += own.len() as u64;
            } else {
                batch.push_share(&self.share, start..start + len);
                at += len as u64;
            }
        }
        let (token, zero_copy) = (self.token(), self.random.below(2) == 0);
        let op = Op::SendBatch { token, socket, batch, zero_copy };
        self.streams[which].sending = self.submit(op, Pending::Send(which), token);
    }

    fn receive(&mut self, which: usize) {
        if self.streams[which].receiving.is_some() {
            return;
        }
        let (token, socket) = (self.token(), self.streams[which].far.clone());
        let once = self.random.below(2) == 0;
        let op = if once {
            Op::ReceiveOnce { token, socket }
        } else {
            Op::Receive { token, socket, bulk: false }
        };
        if self.submit(op, Pending::Receive { which, once }, token) {
            self.streams[which].receiving = Some(token);
        }
    }

    fn read(&mut self) {
        let class = [Class::K16, Class::K64, Class::K256][self.random.below(3) as usize];
        let Some(lease) = self.io.pool().lease(class) else { return };
        let offset = self.random.below(FILE_BYTES + 10_000);
        let length = 1 + self.random.below(class.bytes() as u64) as u32;
        let (token, unit) = (self.token(), self.scratch.unit);
        let (file, offset, length, pending) = if self.random.below(3) == 0 {
            let (offset, length) = (offset / unit * unit, length.next_multiple_of(unit as u32));
            (self.scratch.file.clone(), offset, length, Pending::ReadScratch(offset))
        } else {
            (self.file.clone(), offset, length, Pending::Read(offset))
        };
        self.submit(Op::Read { token, file, offset, length, lease }, pending, token);
    }

    /// A few parts of the one share, which follow each other in the file as they do in the pattern.
    fn write(&mut self) {
        let unit = self.scratch.unit;
        let offset = self.random.below(SCRATCH_BYTES) / unit * unit;
        let (mut at, mut batch) = (offset, Box::new(WriteBatch::new()));
        for _ in 0..=self.random.below(8) {
            let start = at as usize % PERIOD;
            let len = (1 + self.random.below(5) * unit).next_multiple_of(unit) as usize;
            let len = (len * (1 + self.random.below(1000 / unit + 1) as usize)).min(PERIOD - start);
            batch.push(&self.share, start..start + len);
            at += len as u64;
        }
        let (token, len, file) = (self.token(), batch.len_bytes(), self.scratch.file.clone());
        self.submit(Op::Write { token, file, offset, batch }, Pending::Write(len), token);
    }

    fn create_or_sync(&mut self) {
        let (token, file) = (self.token(), self.scratch.file.clone());
        match self.random.below(6) {
            0 => {
                let data_only = self.random.below(2) == 0;
                self.submit(Op::Sync { token, file, data_only }, Pending::Sync, token);
            }
            1 => {
                let length_bytes = self.random.below(SCRATCH_BYTES);
                let mode = [Allocation::Sparse, Allocation::Full][self.random.below(2) as usize];
                let op = Op::Allocate { token, file, length_bytes, mode };
                self.submit(op, Pending::Allocate, token);
            }
            _ => {
                let mut part = || self.random.below(4);
                let path = format!("{}/{}/{}/file", part(), part(), part());
                let path = std::ffi::CString::new(path).expect("no zero byte");
                let (root, access) = (self.scratch.root.clone(), Access::Create);
                let request = Box::new(OpenRequest { root, path, direct: false, access });
                self.submit(Op::Open { token, request }, Pending::Create, token);
            }
        }
    }

    fn end(&mut self, token: Token) {
        self.ended += 1;
        assert!(self.pending.remove(&token).is_some(), "an operation ends once");
    }

    fn complete(&mut self, token: Token, outcome: Outcome) {
        if token == ACCEPT {
            return;
        }
        let pending = *self.pending.get(&token).expect("an operation in flight");
        match (pending, outcome) {
            (Pending::Send(which), Outcome::Sent { result, batch }) => {
                let stream = &mut self.streams[which];
                stream.sending = false;
                match result {
                    Ok(taken) => stream.sent += taken as u64,
                    Err(_) => stream.over = true,
                }
                if let Some(batch) = batch {
                    self.io.recycle(batch);
                    self.end(token);
                } else {
                    self.pending.insert(token, Pending::Release);
                }
            }
            (Pending::Release, Outcome::Released { batch, .. }) => {
                self.io.recycle(batch);
                self.end(token);
            }
            (Pending::Receive { which, once }, Outcome::Received(result)) => {
                let stream = &mut self.streams[which];
                if let Ok(bytes) = &result {
                    for &byte in bytes.iter() {
                        assert_eq!(byte, pattern(stream.received), "byte {}", stream.received);
                        stream.received += 1;
                    }
                    self.bytes += bytes.len() as u64;
                }
                let over = match &result {
                    Ok(bytes) if bytes.is_empty() => Some(true),
                    Ok(_) => None,
                    Err(error) => Some(error.raw_os_error() != Some(libc::ECANCELED)),
                };
                stream.over |= over == Some(true);
                if over.is_some() || once {
                    stream.receiving = None;
                    self.end(token);
                }
            }
            (Pending::Read(offset), Outcome::Read { result, lease }) => {
                let len = result.expect("read");
                let right = (0..len).all(|at| lease[at] == pattern(offset + at as u64));
                assert!(right, "a read at {offset} brought other bytes");
                self.end(token);
            }
            (Pending::ReadScratch(offset), Outcome::Read { result, lease }) => {
                let len = result.expect("read");
                let right = |at: usize| [0, pattern(offset + at as u64)].contains(&lease[at]);
                assert!((0..len).all(right), "a read at {offset} brought what nobody wrote");
                self.end(token);
            }
            (Pending::Write(len), Outcome::Written { result, batch }) => {
                let written = result.expect("written");
                assert!(written > 0 && written <= len && batch.len_bytes() == len);
                self.written += written as u64;
                self.end(token);
            }
            (Pending::Sync, Outcome::Synced(result)) => {
                result.expect("synced");
                self.end(token);
            }
            (Pending::Allocate, Outcome::Allocated(result)) => {
                let unsupported = |e: &std::io::Error| e.raw_os_error() == Some(libc::EOPNOTSUPP);
                assert!(result.as_ref().is_ok() || result.as_ref().is_err_and(unsupported));
                self.end(token);
            }
            (Pending::Create, Outcome::Opened(result)) => {
                assert_eq!(result.expect("made or found").1.size_bytes, 0);
                self.end(token);
            }
            (Pending::Identify, Outcome::Identified(result)) => {
                assert_eq!(result.expect("identity").size_bytes, FILE_BYTES);
                self.end(token);
            }
            (_, other) => panic!("{token:?} gave {other:?}"),
        }
    }

    /// A fresh connection in the place of one that is over.
    fn replace_over(&mut self) {
        let idle = |it: &Stream| it.over && !it.sending && it.receiving.is_none();
        if let Some(which) = self.streams.iter().position(idle) {
            self.connect();
            let old = self.streams.swap_remove(which);
            self.reset(&old);
        }
    }

    /// A zero-copy send that the peer never reads pins its pages until the connection times out;
    /// resetting lets go of them at once.
    fn reset(&mut self, stream: &Stream) {
        self.io.shutdown(&stream.near, Shutdown::Reset);
        self.io.shutdown(&stream.far, Shutdown::Reset);
    }

    fn turn(&mut self, max: usize) {
        let mut completions = Vec::new();
        self.io.reap(&mut completions, max);
        for it in completions {
            self.complete(it.token, it.outcome);
        }
    }

    fn run(&mut self, duration: Duration) {
        for _ in 0..24 {
            self.connect();
        }
        let end = Instant::now() + duration;
        while Instant::now() < end {
            for _ in 0..self.random.below(12) {
                self.act();
            }
            let max = 1 + self.random.below(40) as usize;
            self.turn(max);
            self.replace_over();
            if self.random.below(3) == 0 {
                let until = self.io.now() + Duration::from_millis(1);
                self.io.wait(Some(until), &|| false);
            }
        }
    }

    /// Ends everything and sees it all come home.
    fn settle(mut self) -> I {
        let streams = std::mem::take(&mut self.streams);
        streams.iter().for_each(|stream| self.reset(stream));
        self.streams = streams;
        for token in self.pending.keys() {
            self.io.cancel(*token);
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        // The accept stays in flight.
        while self.io.in_flight() > 1 {
            assert!(Instant::now() < deadline, "never ended: {:?}", self.pending);
            self.turn(64);
            if self.streams.iter().all(|it| !it.sending && it.receiving.is_none()) {
                self.streams.clear();
            }
            self.io.wait(Some(self.io.now() + Duration::from_millis(5)), &|| false);
        }
        assert_eq!(self.submitted, self.ended);
        assert!(self.pending.is_empty());
        assert!(self.bytes > 0 && self.written > 0);
        let (pool, share) = (self.io.pool().clone(), self.share);
        assert_eq!(share.holders(), 1);
        drop(share);
        assert_eq!(pool.leased_bytes(), 0);
        let (ended, bytes, written) = (self.ended, self.bytes, self.written);
        println!("{ended} operations, {bytes} bytes received, {written} written");
        self.io
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

fn pool() -> Pool {
    Pool::new(PoolOptions { cap_bytes: 4 << 20, huge_pages: true }).expect("pool")
}

fn storm_over<I: Io>(seed: u64, io: I) -> I {
    let seed = number("SEEDRING_STORM_SEED", seed);
    println!("seed {seed}");
    let mut storm = Storm::new(seed, io);
    storm.run(Duration::from_secs(number("SEEDRING_STORM_SECONDS", 2)));
    storm.settle()
}

fn storm(seed: u64, receive_buffers: u32, completion_entries: u32) -> Statistics {
    let options = RingOptions {
        entries: 8,
        in_flight_max: 256,
        receive_buffers,
        receive_buffer_bytes: 4096,
        ..RingOptions::new(pool(), Instant::now())
    };
    let ring = Ring::with_completion_entries(options, completion_entries).expect("ring");
    let statistics = storm_over(seed, ring).statistics();
    println!("{statistics:?}");
    statistics
}

#[test]
fn a_storm_with_room() {
    storm(0x5EED_0001, 256, 4096);
}

#[test]
fn a_storm_on_epoll() {
    for receive_buffer_bytes in [4096, 100] {
        let options = EpollOptions {
            in_flight_max: 256,
            receive_buffer_bytes,
            ..EpollOptions::new(pool(), Instant::now())
        };
        storm_over(0x5EED_0004, Epoll::new(options).expect("epoll"));
    }
}

#[test]
fn a_storm_with_few_receive_buffers() {
    let statistics = storm(0x5EED_0002, 2, 4096);
    assert!(statistics.starved > 0, "buffers never ran out: {statistics:?}");
}

#[test]
fn a_storm_with_a_short_completion_queue() {
    let statistics = storm(0x5EED_0003, 64, 8);
    assert!(statistics.overflows > 0, "it never overflowed: {statistics:?}");
}
