//! The simulated machine: one clock, one network, one disk, for all shards of a run.
//!
//! Owns: virtual time, the queue of what happens next, what broke a promise. Never: the system's
//! clock, entropy, threads, or the order of a hash map. Flow: `SimIo` and peers put events in; time
//! moves to the next one; same seed, same trace.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use seedring_platform::op::DirectAlignment;

use super::{
    disk::{Content, DirectoryId, Disk, NodeId},
    fault::{FaultKind, Faults},
    flight::ShardIo,
    net::{ConnId, Link, Network},
    peer::{Peer, PeerId, PeerSlot},
    rng::Rng,
    trace::Trace,
};

/// What happens to the disk at a moment, in nanoseconds.
type Script = Box<dyn FnOnce(&mut Disk, u64)>;

/// Something that will happen.
pub(super) enum Event {
    /// Bytes of a connection arrive: `up` is from the peer to the shard.
    Arrive {
        conn: ConnId,
        up: bool,
    },
    /// A peer's SYN reaches the listeners at `address`.
    Dial {
        peer: PeerId,
        address: SocketAddr,
    },
    PeerOpened {
        peer: PeerId,
        conn: ConnId,
    },
    PeerEnded {
        peer: PeerId,
        conn: Option<ConnId>,
        how: super::peer::Ended,
    },
    PeerTimer {
        peer: PeerId,
        tag: u64,
    },
    PeerRead {
        peer: PeerId,
    },
    /// Looks whether a connection has made no progress for too long.
    UserTimeout {
        conn: ConnId,
    },
    /// An operation may report something.
    Ready {
        shard: usize,
        op: u64,
    },
    Script(Script),
}

/// A descriptor whose last handle was dropped.
#[derive(Clone, Copy, Debug)]
pub(super) enum Closed {
    Socket(u64),
    File(u64),
}

pub(super) struct OpenFile {
    pub node: Option<NodeId>,
    pub directory: Option<DirectoryId>,
    /// Of a directory: the folder in it that this handle stands for; empty: itself.
    pub folder: Vec<u8>,
    pub direct: bool,
    pub writable: bool,
    pub in_flight: u32,
}

pub(super) struct Core {
    pub seed: u64,
    pub now_ns: u64,
    pub rng: Rng,
    pub faults: Faults,
    pub trace: Trace,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub net: Network,
    pub peers: Vec<PeerSlot>,
    pub disk: Disk,
    pub files: BTreeMap<u64, OpenFile>,
    pub shards: Vec<ShardIo>,
    pub closed: Arc<Mutex<Vec<Closed>>>,
    next_id: u64,
    pub violations: Vec<String>,
}

/// Violations kept; one is enough to fail, a flood of them says no more.
const VIOLATIONS_MAX: usize = 20;

impl Core {
    pub fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn at(&mut self, at_ns: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((at_ns.max(self.now_ns), self.sequence), event);
    }

    pub fn after(&mut self, delay_ns: u64, event: Event) {
        self.at(self.now_ns + delay_ns, event);
    }

    pub fn strikes(&mut self, kind: FaultKind) -> bool {
        self.faults.strikes(kind, &mut self.rng, self.now_ns)
    }

    pub fn violation(&mut self, text: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(format!("at {:.6} s: {text}", self.now_ns as f64 / 1e9));
        }
    }

    pub fn next_event_ns(&self) -> Option<u64> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Moves the clock to `to_ns`, and lets happen what is due on the way.
    pub fn advance(&mut self, to_ns: u64) {
        self.sweep();
        while let Some(entry) = self.events.first_entry() {
            let at = entry.key().0;
            if at > to_ns {
                break;
            }
            let event = entry.remove();
            self.now_ns = self.now_ns.max(at);
            self.happen(event);
        }
        self.now_ns = self.now_ns.max(to_ns);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { conn, up } => self.arrive(conn, up),
            Event::Dial { peer, address } => self.dialled(peer, address),
            Event::PeerOpened { peer, conn } => self.peer_opened(peer, conn),
            Event::PeerEnded { peer, conn, how } => self.peer_ended(peer, conn, how),
            Event::PeerTimer { peer, tag } => {
                self.with_peer(peer, |actor, io| actor.timer(io, tag))
            }
            Event::PeerRead { peer } => self.peer_read(peer, true),
            Event::UserTimeout { conn } => self.user_timeout(conn),
            Event::Ready { shard, op } => self.shards[shard].mark_ready(op),
            Event::Script(script) => script(&mut self.disk, self.now_ns),
        }
    }

    /// Closes descriptors whose handles are gone.
    pub fn sweep(&mut self) {
        let closed = std::mem::take(&mut *self.closed.lock().expect("invariant: one thread"));
        for descriptor in closed {
            match descriptor {
                Closed::Socket(id) => self.socket_closed(id),
                Closed::File(id) => {
                    let file = self.files.remove(&id);
                    if file.is_some_and(|file| file.in_flight > 0) {
                        self.violation(format!("file {id} was closed with operations in flight"));
                    }
                }
            }
        }
    }
}

/// A handle to the machine, for tests and scripts.
#[derive(Clone)]
pub struct World {
    pub(super) core: Rc<RefCell<Core>>,
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> World {
        let core = Core {
            seed,
            now_ns: 1_000_000_000,
            rng: Rng::new(seed),
            faults,
            trace: Trace::default(),
            events: BTreeMap::new(),
            sequence: 0,
            net: Network::default(),
            peers: Vec::new(),
            disk: Disk::default(),
            files: BTreeMap::new(),
            shards: Vec::new(),
            closed: Arc::default(),
            next_id: 100,
            violations: Vec::new(),
        };
        World { core: Rc::new(RefCell::new(core)) }
    }

    pub fn seed(&self) -> u64 {
        self.core.borrow().seed
    }

    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.core.borrow().now_ns)
    }

    /// Lets time pass without any shard looking.
    pub fn pass(&self, time: Duration) {
        let mut core = self.core.borrow_mut();
        let to_ns = core.now_ns + time.as_nanos() as u64;
        core.advance(to_ns);
    }

    /// When something happens next of itself.
    pub fn next_event(&self) -> Option<Duration> {
        self.core.borrow().next_event_ns().map(Duration::from_nanos)
    }

    pub fn advance_to(&self, to: Duration) {
        self.core.borrow_mut().advance(to.as_nanos() as u64);
    }

    pub fn shuffle<T>(&self, items: &mut [T]) {
        self.core.borrow_mut().rng.shuffle(items);
    }

    pub fn trace_hash(&self) -> u64 {
        self.core.borrow().trace.hash()
    }

    pub fn trace_entries(&self) -> u64 {
        self.core.borrow().trace.entries()
    }

    pub fn faults(&self) -> Faults {
        self.core.borrow().faults.clone()
    }

    pub fn set_faults(&self, faults: Faults) {
        let mut core = self.core.borrow_mut();
        let mut faults = faults;
        faults.add_hits(&core.faults);
        core.faults = faults;
    }

    pub fn hit(&self, kind: FaultKind) {
        self.core.borrow_mut().faults.hit(kind);
    }

    /// The link that connections made from now on have; `None`: drawn for each one.
    pub fn set_link(&self, link: Option<Link>) {
        self.core.borrow_mut().net.link = link;
    }

    /// Notes that a promise was broken; `check` fails on it.
    pub fn violation(&self, text: impl Into<String>) {
        self.core.borrow_mut().violation(text.into());
    }

    pub fn violations(&self) -> Vec<String> {
        self.core.borrow().violations.clone()
    }

    /// Fails where a promise was broken, with the seed and the last lines of the trace.
    #[track_caller]
    pub fn check(&self) {
        let core = self.core.borrow();
        if let Some(first) = core.violations.first() {
            panic!(
                "seed {}: {first} ({} in all)\n{}",
                core.seed,
                core.violations.len(),
                core.trace.tail(60)
            );
        }
    }

    pub fn trace_tail(&self, lines: usize) -> String {
        self.core.borrow().trace.tail(lines)
    }

    pub fn add_peer(&self, actor: Box<dyn Peer>, address: SocketAddr) -> PeerId {
        self.core.borrow_mut().add_peer(actor, address)
    }

    /// Has a peer connect to `to` at the virtual time `at`.
    pub fn dial_at(&self, peer: PeerId, to: SocketAddr, at: Duration) {
        let mut core = self.core.borrow_mut();
        core.at(at.as_nanos() as u64, Event::Dial { peer, address: to });
    }

    /// Runs something on a peer as if an event had woken it.
    pub fn with_peer(
        &self,
        peer: PeerId,
        f: impl FnOnce(&mut dyn Peer, &mut super::peer::PeerIo<'_>),
    ) {
        self.core.borrow_mut().with_peer(peer, f);
    }

    /// All peers reset their connections, and come no more.
    pub fn reset_peers(&self) {
        let mut core = self.core.borrow_mut();
        core.retire_peers();
    }

    /// Wakes a peer's `timer` at the virtual time `at`.
    pub fn peer_timer_at(&self, peer: PeerId, tag: u64, at: Duration) {
        self.core.borrow_mut().at(at.as_nanos() as u64, Event::PeerTimer { peer, tag });
    }

    pub fn with_disk<T>(&self, f: impl FnOnce(&mut Disk) -> T) -> T {
        f(&mut self.core.borrow_mut().disk)
    }

    /// The directory that stands for `/` in a swarm.
    pub fn first_directory(&self) -> DirectoryId {
        DirectoryId(1)
    }

    /// The disk does direct I/O, with this alignment.
    pub fn set_direct_io(&self, align_bytes: u32) {
        let align = DirectAlignment { memory_bytes: align_bytes, offset_bytes: align_bytes };
        self.core.borrow_mut().disk.direct = Some(align);
    }

    pub fn write_file(
        &self,
        directory: DirectoryId,
        path: &str,
        size_bytes: u64,
        content: Content,
    ) -> NodeId {
        let mut core = self.core.borrow_mut();
        let now_ns = core.now_ns;
        core.disk.write(directory, path, size_bytes, content, now_ns)
    }

    /// Has something happen to the disk at the virtual time `at`; counted as `kind`.
    pub fn disk_at(
        &self,
        at: Duration,
        kind: FaultKind,
        script: impl FnOnce(&mut Disk, u64) + 'static,
    ) {
        let mut core = self.core.borrow_mut();
        core.faults.hit(kind);
        core.at(at.as_nanos() as u64, Event::Script(Box::new(script)));
    }

    /// Sockets that some handle or operation still holds.
    pub fn open_sockets(&self) -> usize {
        let mut core = self.core.borrow_mut();
        core.sweep();
        core.net.sockets.len()
    }

    pub fn open_files(&self) -> usize {
        let mut core = self.core.borrow_mut();
        core.sweep();
        core.files.values().filter(|file| file.node.is_some()).count()
    }
}
