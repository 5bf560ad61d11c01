//! Operations in flight on the simulated kernel, and what each of them reports when.
//!
//! Owns: the in-flight table of one shard, the life of each operation. Never: decides time (events
//! do). Flow: start -> signal -> ready -> produce -> a completion.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use seedring_platform::{
    descriptors::{File, Socket, Virtual},
    memory::Lease,
    op::{Allocation, Completion, Op, OpenRequest, Outcome, Token},
    send_batch::SendBatch,
    write_batch::WriteBatch,
};

use super::{
    describe::{describe, describe_outcome},
    fault::FaultKind,
    net::{OpRef, VSocket},
    outcome::snapshot,
    world::{Closed, Core, Event},
};

/// A virtual descriptor; its last handle's drop tells the world.
pub(super) struct Descriptor {
    pub id: u64,
    pub what: Closed,
    pub local: Option<SocketAddr>,
    pub closed: Arc<Mutex<Vec<Closed>>>,
}

impl Virtual for Descriptor {
    fn id(&self) -> u64 {
        self.id
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        self.local
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.closed.lock().expect("invariant: one thread").push(self.what);
    }
}

pub(super) enum Kind {
    Accept {
        listener: Socket,
        ending: Option<i32>,
    },
    Connect {
        socket: Socket,
        address: SocketAddr,
    },
    Receive {
        socket: Socket,
        once: bool,
    },
    Send {
        socket: Socket,
        batch: Box<SendBatch>,
        zero_copy: bool,
        snapshot: u64,
    },
    /// Sent, and the kernel still reads from it.
    Release {
        batch: Box<SendBatch>,
        copied: bool,
        snapshot: u64,
    },
    Open {
        request: Box<OpenRequest>,
    },
    Identify {
        file: File,
    },
    Read {
        file: File,
        offset: u64,
        length: u32,
        lease: Lease,
    },
    Write {
        file: File,
        offset: u64,
        batch: Box<WriteBatch>,
        snapshot: u64,
    },
    Sync {
        file: File,
        /// The last change that it makes durable.
        covers: u64,
    },
    Allocate {
        file: File,
        length_bytes: u64,
        mode: Allocation,
    },
}

impl Kind {
    /// The file that the operation holds.
    fn file(&self) -> Option<&File> {
        match self {
            Kind::Identify { file }
            | Kind::Read { file, .. }
            | Kind::Write { file, .. }
            | Kind::Sync { file, .. }
            | Kind::Allocate { file, .. } => Some(file),
            _ => None,
        }
    }
}

pub(super) struct Flight {
    token: Token,
    kind: Kind,
    cancelled: bool,
    ready: bool,
    delayed: bool,
}

/// The simulated kernel's side of one shard.
pub(super) struct ShardIo {
    ops: BTreeMap<u64, Flight>,
    queued: Vec<u64>,
    ready: Vec<u64>,
    pub in_flight_max: usize,
}

impl ShardIo {
    pub fn new(in_flight_max: usize) -> ShardIo {
        ShardIo { ops: BTreeMap::new(), queued: Vec::new(), ready: Vec::new(), in_flight_max }
    }

    pub fn mark_ready(&mut self, op: u64) {
        if let Some(flight) = self.ops.get_mut(&op)
            && !flight.ready
        {
            flight.ready = true;
            flight.delayed = false;
            self.ready.push(op);
        }
    }

    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.queued.is_empty()
    }
}

pub(super) fn socket_id(socket: &Socket) -> u64 {
    socket.as_virtual_id().expect("a descriptor of another backend came to the simulator")
}

pub(super) fn file_id(file: &File) -> u64 {
    file.as_virtual_id().expect("a descriptor of another backend came to the simulator")
}

impl Core {
    /// Queues an operation, or gives it back where the table is full.
    pub fn submit(&mut self, shard: usize, op: Op) -> Result<(), Op> {
        let busy = self.shards[shard].in_flight();
        if busy >= self.shards[shard].in_flight_max {
            self.faults.hit(FaultKind::TableFull);
            return Err(op);
        }
        // A table that is a little smaller: only refused where something is there to complete.
        if busy >= 4 && self.strikes(FaultKind::TableFull) {
            return Err(op);
        }
        let (what, token, number) = describe(&op);
        self.trace.note(self.now_ns, shard, what, token.0, number);
        let kind = match op {
            Op::Accept { listener, .. } => Kind::Accept { listener, ending: None },
            Op::Connect { socket, address, .. } => Kind::Connect { socket, address },
            Op::ReceiveOnce { socket, .. } => Kind::Receive { socket, once: true },
            Op::Receive { socket, .. } => Kind::Receive { socket, once: false },
            Op::SendBatch { socket, batch, zero_copy, .. } => {
                if batch.is_empty() {
                    self.violation(format!("an empty batch was submitted, token {token:?}"));
                }
                let snapshot = snapshot(batch.slices());
                Kind::Send { socket, batch, zero_copy, snapshot }
            }
            Op::Open { request, .. } => Kind::Open { request },
            Op::Identify { file, .. } => Kind::Identify { file },
            Op::Read { file, offset, length, lease, .. } => {
                self.check_read(&file, offset, length, &lease);
                Kind::Read { file, offset, length, lease }
            }
            Op::Write { file, offset, batch, .. } => {
                self.check_write(&file, offset, &batch);
                let snapshot = snapshot(batch.slices());
                Kind::Write { file, offset, batch, snapshot }
            }
            // What was reaped before is what it makes durable.
            Op::Sync { file, .. } => Kind::Sync { file, covers: self.disk.last_change() },
            Op::Allocate { file, length_bytes, mode, .. } => {
                Kind::Allocate { file, length_bytes, mode }
            }
        };
        let id = self.next_id();
        self.hold(shard, id, &kind);
        let flight = Flight { token, kind, cancelled: false, ready: false, delayed: false };
        self.shards[shard].ops.insert(id, flight);
        self.shards[shard].queued.push(id);
        Ok(())
    }

    fn check_read(&mut self, file: &File, offset: u64, length: u32, lease: &Lease) {
        if length as usize > lease.len() || length == 0 {
            self.violation(format!("a read of {length} bytes into {}", lease.len()));
        }
        let memory = [(lease.as_ptr() as usize, length as usize)];
        if !self.is_aligned(file, offset, memory.into_iter()) {
            self.violation(format!("an unaligned direct read: {length} bytes at {offset}"));
        }
    }

    /// Whether a direct file takes a transfer of this memory (addresses and lengths); any other
    /// file does.
    pub fn is_aligned(
        &self,
        file: &File,
        offset: u64,
        mut memory: impl Iterator<Item = (usize, usize)>,
    ) -> bool {
        let direct = self.files.get(&file_id(file)).is_some_and(|file| file.direct);
        let Some(needs) = self.disk.direct.filter(|_| direct) else { return true };
        let (unit, bytes) = (needs.memory_bytes as usize, needs.offset_bytes as usize);
        offset.is_multiple_of(bytes as u64)
            && memory.all(|(at, length)| at.is_multiple_of(unit) && length.is_multiple_of(bytes))
    }

    /// The operation holds its descriptor from now on.
    fn hold(&mut self, shard: usize, op: u64, kind: &Kind) {
        let reference: OpRef = (shard, op);
        let (handle, slot): (&Socket, Slot) = match kind {
            Kind::Accept { listener, .. } => (listener, |s| Some(&mut s.accept)),
            Kind::Connect { socket, .. } => (socket, |_| None),
            Kind::Receive { socket, .. } => (socket, |s| Some(&mut s.receive)),
            Kind::Send { socket, .. } => (socket, |s| Some(&mut s.send)),
            _ => {
                let Some(file) = kind.file() else { return };
                let id = file_id(file);
                match self.files.get_mut(&id) {
                    Some(file) => file.in_flight += 1,
                    None => self.violation(format!("an operation on file {id}, which is closed")),
                }
                return;
            }
        };
        let id = socket_id(handle);
        let Some(socket) = self.net.sockets.get_mut(&id) else {
            self.violation(format!("an operation on socket {id}, which is closed"));
            return;
        };
        socket.in_flight += 1;
        let occupied = slot(socket).and_then(|slot| slot.replace(reference));
        if let Some((_, other)) = occupied
            && let Some(what) = self.shards.iter().find_map(|s| s.ops.get(&other)).map(name)
        {
            self.violation(format!("two operations '{what}' in flight on socket {id}"));
        }
    }

    /// The operation lets its descriptor go.
    pub fn let_go(&mut self, op: u64, kind: &Kind) {
        let handle = match kind {
            Kind::Accept { listener, .. } => listener,
            Kind::Connect { socket, .. }
            | Kind::Receive { socket, .. }
            | Kind::Send { socket, .. } => socket,
            _ => {
                if let Some(file) = kind.file().and_then(|file| self.files.get_mut(&file_id(file)))
                {
                    file.in_flight -= 1;
                }
                return;
            }
        };
        if let Some(socket) = self.net.sockets.get_mut(&socket_id(handle)) {
            socket.in_flight -= 1;
            for slot in [&mut socket.accept, &mut socket.receive, &mut socket.send] {
                if slot.is_some_and(|(_, id)| id == op) {
                    *slot = None;
                }
            }
        }
    }

    /// An operation may have something to report: now, or after a delay.
    pub fn signal(&mut self, op: Option<OpRef>) {
        let Some((shard, id)) = op else { return };
        let Some(flight) = self.shards[shard].ops.get_mut(&id) else { return };
        if flight.ready || flight.delayed {
            return;
        }
        if self.strikes(FaultKind::Delayed) {
            let delay_ns = self.rng.between(50_000, 50_000_000);
            self.shards[shard].ops.entry(id).and_modify(|flight| flight.delayed = true);
            self.after(delay_ns, Event::Ready { shard, op: id });
        } else {
            self.shards[shard].mark_ready(id);
        }
    }

    /// The kernel takes what was queued.
    pub fn start_queued(&mut self, shard: usize) {
        for id in std::mem::take(&mut self.shards[shard].queued) {
            let Some(flight) = self.shards[shard].ops.get(&id) else { continue };
            let (mut low_ns, mut high_ns) = match flight.kind {
                Kind::Connect { .. } => (100_000, 200_000_000),
                Kind::Open { .. } | Kind::Identify { .. } => (10_000, 2_000_000),
                Kind::Read { .. } => (50_000, 10_000_000),
                Kind::Write { .. } => (20_000, 20_000_000),
                Kind::Sync { .. } => (500_000, 50_000_000),
                Kind::Allocate { .. } => (10_000, 5_000_000),
                _ => {
                    self.signal(Some((shard, id)));
                    continue;
                }
            };
            let read = matches!(flight.kind, Kind::Read { .. });
            let writes = matches!(flight.kind, Kind::Write { .. } | Kind::Sync { .. });
            if matches!(flight.kind, Kind::Connect { .. }) && self.strikes(FaultKind::ConnectSlow) {
                (low_ns, high_ns) = (5_000_000_000, 30_000_000_000);
            }
            if read && self.strikes(FaultKind::ReadStalled) {
                (low_ns, high_ns) = (500_000_000, 20_000_000_000);
            }
            if writes && self.strikes(FaultKind::WriteStalled) {
                (low_ns, high_ns) = (500_000_000, 20_000_000_000);
            }
            let delay_ns = self.rng.between(low_ns, high_ns);
            self.after(delay_ns, Event::Ready { shard, op: id });
        }
    }

    pub fn cancel(&mut self, shard: usize, token: Token) {
        self.trace.note(self.now_ns, shard, "cancel", token.0, 0);
        let mut found = Vec::new();
        for (&id, flight) in &mut self.shards[shard].ops {
            let can = matches!(
                flight.kind,
                Kind::Accept { .. } | Kind::Connect { .. } | Kind::Receive { .. }
            );
            if flight.token == token && can {
                flight.cancelled = true;
                found.push(id);
            }
        }
        for id in found {
            self.signal(Some((shard, id)));
        }
    }

    /// Up to `max` completions of what is ready.
    pub fn reap(&mut self, shard: usize, completions: &mut Vec<Completion>, max: usize) {
        let mut ready = std::mem::take(&mut self.shards[shard].ready);
        if ready.len() > 1 && self.strikes(FaultKind::Reordered) {
            self.rng.shuffle(&mut ready);
        }
        let mut produced = 0;
        let mut later = Vec::new();
        for id in ready {
            if produced >= max {
                later.push(id);
                continue;
            }
            let Some(mut flight) = self.shards[shard].ops.remove(&id) else { continue };
            flight.ready = false;
            let token = flight.token;
            let Produced { outcome, rest, again } = self.produce(shard, id, flight);
            if let Some(mut flight) = rest {
                flight.ready = again;
                self.shards[shard].ops.insert(id, flight);
                if again {
                    later.push(id);
                }
            }
            if let Some(outcome) = outcome {
                let (what, number) = describe_outcome(&outcome);
                self.trace.note(self.now_ns, shard, what, token.0, number);
                completions.push(Completion { token, outcome });
                produced += 1;
            }
        }
        // What was signalled meanwhile comes after what waited before.
        later.append(&mut self.shards[shard].ready);
        self.shards[shard].ready = later;
    }

    fn produce(&mut self, shard: usize, id: u64, flight: Flight) -> Produced {
        let Flight { token, kind, cancelled, .. } = flight;
        let held = |kind| Flight { token, kind, cancelled, ready: false, delayed: false };
        match kind {
            Kind::Accept { listener, ending } => {
                let (outcome, kind, again) = self.accept(id, listener, ending, cancelled);
                Produced { outcome, rest: kind.map(held), again }
            }
            Kind::Connect { socket, address } => {
                let result = self.connect_result(&socket, address, cancelled);
                self.let_go(id, &Kind::Connect { socket, address });
                Produced::last(Outcome::Connected(result))
            }
            Kind::Receive { socket, once } => self.receive(id, socket, once, cancelled, held),
            Kind::Send { .. } => self.send(shard, id, kind, held),
            Kind::Release { batch, copied, snapshot } => {
                self.check_snapshot(token, &batch, snapshot);
                Produced::last(Outcome::Released { batch, copied })
            }
            Kind::Open { request } => Produced::last(Outcome::Opened(self.open(&request))),
            Kind::Identify { file } => {
                let result = self.identify(&file);
                self.let_go(id, &Kind::Identify { file });
                Produced::last(Outcome::Identified(result))
            }
            Kind::Read { file, offset, length, mut lease } => {
                let result = self.read(&file, offset, &mut lease[..length as usize]);
                let kind = Kind::Identify { file };
                self.let_go(id, &kind);
                Produced::last(Outcome::Read { result, lease })
            }
            Kind::Write { file, offset, batch, snapshot } => {
                let result = self.write(&file, offset, &batch);
                self.check_written(token, &batch, snapshot);
                self.let_go(id, &Kind::Identify { file });
                Produced::last(Outcome::Written { result, batch })
            }
            Kind::Sync { file, covers } => {
                let result = self.sync(&file, covers);
                self.let_go(id, &Kind::Identify { file });
                Produced::last(Outcome::Synced(result))
            }
            Kind::Allocate { file, length_bytes, mode } => {
                let result = self.allocate(&file, length_bytes, mode);
                self.let_go(id, &Kind::Identify { file });
                Produced::last(Outcome::Allocated(result))
            }
        }
    }

    /// Writes that the kernel has and that did not complete.
    pub fn writes_in_flight(&self) -> impl Iterator<Item = (&File, u64, &WriteBatch)> {
        let started = |shard: &ShardIo, id: &u64| !shard.queued.contains(id);
        let all = self.shards.iter().flat_map(move |shard| {
            shard.ops.iter().filter(move |(id, _)| started(shard, id)).map(|(_, flight)| flight)
        });
        all.filter_map(|flight| match &flight.kind {
            Kind::Write { file, offset, batch, .. } => Some((file, *offset, &**batch)),
            _ => None,
        })
    }
}

/// The place where a socket remembers its operation of a kind.
type Slot = fn(&mut VSocket) -> Option<&mut Option<OpRef>>;

/// What an operation came to: a completion perhaps, the operation where it goes on, and whether it
/// has more to say at once.
pub(super) struct Produced {
    pub outcome: Option<Outcome>,
    pub rest: Option<Flight>,
    pub again: bool,
}

impl Produced {
    pub fn last(outcome: Outcome) -> Produced {
        Produced { outcome: Some(outcome), rest: None, again: false }
    }
}

fn name(flight: &Flight) -> &'static str {
    match flight.kind {
        Kind::Accept { .. } => "accept",
        Kind::Connect { .. } => "connect",
        Kind::Receive { .. } => "receive",
        Kind::Send { .. } => "send",
        Kind::Release { .. } => "release",
        Kind::Open { .. } => "open",
        Kind::Identify { .. } => "identify",
        Kind::Read { .. } => "read",
        Kind::Write { .. } => "write",
        Kind::Sync { .. } => "sync",
        Kind::Allocate { .. } => "allocate",
    }
}
