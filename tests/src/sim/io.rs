//! The second implementation of `trait Io`: a shard's view of the simulated machine.
//!
//! Owns: the pool, the free batches, the sleeper of one shard. Never: the system's clock; blocks
//! only where a real thread must wake it. Flow: a shard (or the conformance suite) -> world.

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use seedring_platform::{
    descriptors::{File, OwnedFile, OwnedSocket, Socket, Virtual},
    memory::{Class, Pool, PoolOptions},
    op::{Completion, Io, Op, Shutdown, Token},
    send_batch::SendBatch,
    wake::{Sleeper, Waker},
    window::Window,
};

use super::{
    disk::DirectoryId,
    fault::FaultKind,
    flight::{ShardIo, socket_id},
    net::VSocket,
    peer::PeerId,
    world::{Core, OpenFile, World},
};

/// What `wait` does with virtual time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// Time moves on to the next thing that happens: one shard alone in its world.
    Advances,
    /// Returns at once and remembers; a driver of many shards moves the time.
    Notes,
}

#[derive(Clone, Copy, Debug)]
pub struct SimOptions {
    pub pool_bytes: usize,
    pub in_flight_max: usize,
    pub waiting: Waiting,
}

impl Default for SimOptions {
    fn default() -> Self {
        SimOptions { pool_bytes: 64 << 20, in_flight_max: 4096, waiting: Waiting::Advances }
    }
}

pub struct SimIo {
    world: World,
    shard: usize,
    pool: Pool,
    now: Duration,
    waiting: Waiting,
    sleep: Rc<Sleep>,
    waker: Waker,
    /// Boxed, as the seam hands them out.
    #[allow(clippy::vec_box)]
    free: Vec<Box<SendBatch>>,
}

/// Whether a shard sleeps, and until when.
struct Sleep {
    sleeper: Sleeper,
    asleep: Cell<bool>,
    until: Cell<Option<Duration>>,
}

/// A driver's view of a shard whose `Io` the shard itself has swallowed.
pub struct SimDriver {
    world: World,
    shard: usize,
    sleep: Rc<Sleep>,
}

/// Virtual time that a reap takes, so that a shard that never sleeps does not stop the clock.
const REAP_NS: u64 = 1_000;
const FREE_BATCHES_MAX: usize = 64;
/// Rounds in which a sleep without end waits for another thread, before it counts as a deadlock.
const ROUNDS_MAX: u32 = 20_000;

impl Sleep {
    fn end(&self) {
        if self.asleep.replace(false) {
            self.sleeper.disarm();
        }
    }

    /// Whether somebody used the waker; sleeps on where not.
    fn woken(&self) -> bool {
        let woken = self.sleeper.disarm() || !self.sleeper.arm();
        self.asleep.set(!woken);
        woken
    }
}

impl SimDriver {
    /// Whether there is a reason to run this shard now.
    pub fn runnable(&self) -> bool {
        let core = self.world.core.borrow();
        let until = self.sleep.until.get();
        let due = until.is_some_and(|until| until.as_nanos() as u64 <= core.now_ns);
        due || core.shards[self.shard].has_ready() || !self.sleep.asleep.get() || self.sleep.woken()
    }

    /// When the shard wants to run again of itself.
    pub fn sleeps_until(&self) -> Option<Duration> {
        self.sleep.until.get()
    }

    pub fn in_flight(&self) -> usize {
        self.world.core.borrow().shards[self.shard].in_flight()
    }
}

impl SimIo {
    pub fn new(world: &World, options: SimOptions) -> SimIo {
        let pool = PoolOptions { cap_bytes: options.pool_bytes, huge_pages: false };
        let pool = Pool::new(pool).expect("memory for a simulated pool");
        let mut core = world.core.borrow_mut();
        core.shards.push(ShardIo::new(options.in_flight_max));
        let (waker, sleeper) = Waker::virtual_pair();
        let until = Cell::new(Some(Duration::ZERO));
        SimIo {
            world: world.clone(),
            shard: core.shards.len() - 1,
            pool,
            now: Duration::from_nanos(core.now_ns),
            waiting: options.waiting,
            sleep: Rc::new(Sleep { sleeper, asleep: Cell::new(false), until }),
            waker,
            free: Vec::new(),
        }
    }

    pub fn world(&self) -> &World {
        &self.world
    }

    pub fn driver(&self) -> SimDriver {
        SimDriver { world: self.world.clone(), shard: self.shard, sleep: self.sleep.clone() }
    }

    /// What a kernel does between two calls: closes, starts what was queued.
    fn enter(&mut self) {
        let mut core = self.world.core.borrow_mut();
        core.sweep();
        core.start_queued(self.shard);
        if self.pool.leased_bytes() + Class::K16.bytes() > self.pool.cap_bytes() {
            core.faults.hit(FaultKind::PoolExhausted);
        }
    }

    /// Whether the sleep is over as far as the kernel knows.
    fn something_is_ready(&self) -> bool {
        self.world.core.borrow().shards[self.shard].has_ready()
    }

    fn sleep_in_virtual_time(&mut self, until: Option<Duration>) {
        let mut rounds = 0;
        while !self.something_is_ready() {
            let next = {
                let core = self.world.core.borrow();
                let until_ns = until.map(|until| until.as_nanos() as u64);
                if until_ns.is_some_and(|until_ns| until_ns <= core.now_ns) {
                    break;
                }
                match (core.next_event_ns(), until_ns) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                }
            };
            match next {
                Some(next_ns) => self.world.core.borrow_mut().advance(next_ns),
                None if rounds == ROUNDS_MAX => {
                    self.world.violation("the shard sleeps for ever and nothing is under way");
                    break;
                }
                // Nothing virtual can end this sleep: only another thread's waker.
                None => std::thread::park_timeout(Duration::from_micros(500)),
            }
            rounds += u32::from(next.is_none());
            if self.sleep.woken() {
                break;
            }
        }
    }
}

impl Io for SimIo {
    fn now(&self) -> Duration {
        self.now
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn batch(&mut self) -> Box<SendBatch> {
        self.free.pop().unwrap_or_default()
    }

    fn recycle(&mut self, mut batch: Box<SendBatch>) {
        batch.clear();
        if self.free.len() < FREE_BATCHES_MAX {
            self.free.push(batch);
        }
    }

    fn submit(&mut self, op: Op) -> Result<(), Op> {
        let mut core = self.world.core.borrow_mut();
        core.sweep();
        core.submit(self.shard, op)
    }

    fn cancel(&mut self, token: Token) {
        self.world.core.borrow_mut().cancel(self.shard, token);
    }

    fn socket(&mut self, remote: SocketAddr, bind: Option<IpAddr>) -> std::io::Result<Socket> {
        let unspecified = match remote {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let local = SocketAddr::new(bind.unwrap_or(unspecified), 0);
        Ok(self.world.core.borrow_mut().open_socket(VSocket::new(local)).1)
    }

    fn shutdown(&mut self, socket: &Socket, how: Shutdown) {
        let mut core = self.world.core.borrow_mut();
        let (now_ns, id) = (core.now_ns, socket_id(socket));
        core.trace.note(now_ns, self.shard, "shutdown", id, i64::from(how == Shutdown::Reset));
        core.shutdown(id, how);
    }

    fn reap(&mut self, completions: &mut Vec<Completion>, max: usize) {
        self.sleep.end();
        self.enter();
        let mut core = self.world.core.borrow_mut();
        let now_ns = core.now_ns + REAP_NS;
        core.advance(now_ns);
        core.reap(self.shard, completions, max);
        self.now = Duration::from_nanos(core.now_ns);
    }

    fn wait(&mut self, until: Option<Duration>, pending: &dyn Fn() -> bool) {
        self.sleep(until, pending);
        self.now = self.world.now();
    }

    fn window(&mut self, file: &File, offset: u64, length: usize) -> Option<Window> {
        let bytes = self.world.core.borrow().window(file, offset, length)?;
        Some(Window::from_vec(bytes, !self.strikes(FaultKind::ShortRead)))
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn in_flight(&self) -> usize {
        self.world.core.borrow().shards[self.shard].in_flight()
    }
}

impl SimIo {
    fn sleep(&mut self, until: Option<Duration>, pending: &dyn Fn() -> bool) {
        self.sleep.end();
        self.enter();
        self.sleep.until.set(Some(Duration::ZERO));
        if self.something_is_ready() || self.strikes(FaultKind::SpuriousWake) {
            return;
        }
        // Legal: who wakes a shard queues first, and `pending` looks at what was queued.
        if self.world.core.borrow().faults.chance(FaultKind::WakeLost) > 0
            && self.sleep.sleeper.disarm()
        {
            self.world.hit(FaultKind::WakeLost);
        }
        self.sleep.asleep.set(self.sleep.sleeper.arm());
        if !self.sleep.asleep.get() || pending() {
            self.sleep.end();
            return;
        }
        self.sleep.until.set(until);
        if self.waiting == Waiting::Advances {
            self.sleep_in_virtual_time(until);
            self.sleep.end();
        }
    }

    fn strikes(&self, kind: FaultKind) -> bool {
        self.world.core.borrow_mut().strikes(kind)
    }
}

/// A directory handle: any number of them, none of which closes anything.
struct Root(u64);

impl Virtual for Root {
    fn id(&self) -> u64 {
        self.0
    }

    fn try_clone(&self) -> Option<Box<dyn Virtual>> {
        Some(Box::new(Root(self.0)))
    }
}

impl World {
    pub fn directory(&self) -> DirectoryId {
        self.core.borrow_mut().disk.directory()
    }

    /// A handle to open files beneath.
    pub fn root(&self, directory: DirectoryId) -> OwnedFile {
        self.root_beneath(directory, "")
    }

    /// The same of a folder in it, which need not hold anything yet.
    pub fn root_beneath(&self, directory: DirectoryId, folder: &str) -> OwnedFile {
        let mut core = self.core.borrow_mut();
        let id = core.next_id();
        let root = OpenFile {
            node: None,
            directory: Some(directory),
            folder: folder.as_bytes().to_vec(),
            direct: false,
            writable: false,
            in_flight: 0,
        };
        core.files.insert(id, root);
        OwnedFile::from_virtual(Box::new(Root(id)))
    }

    pub fn root_handle(&self, directory: DirectoryId) -> File {
        File::from(self.root(directory))
    }

    /// A socket that listens at `address`; several may (SO_REUSEPORT).
    pub fn listen(&self, address: SocketAddr) -> OwnedSocket {
        let mut core = self.core.borrow_mut();
        let id = core.listen(address);
        OwnedSocket::from_virtual(Box::new(core.descriptor(id)))
    }

    /// Has a peer wait for a connection at its address.
    pub fn peer_listens(&self, peer: PeerId) {
        let mut core = self.core.borrow_mut();
        let address = core.peers[peer.0].address;
        core.net.peer_listeners.insert(address, peer);
    }
}

impl Core {
    fn descriptor(&self, id: u64) -> super::flight::Descriptor {
        super::flight::Descriptor {
            id,
            what: super::world::Closed::Socket(id),
            local: Some(self.net.sockets[&id].local),
            closed: self.closed.clone(),
        }
    }
}
