//! The shard threads, and control's end of their mailboxes.
//!
//! Owns: starting a thread a shard (memory, ring, listeners), sending commands, gathering events.
//! Never: what commands mean. Flow: `start` once; the engine sends and receives; `join` at the end.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use seedring_platform::{
    cpu,
    descriptors::{File, ListenOptions, OwnedFile, OwnedSocket, listen, open_directory},
    epoll::{Epoll, EpollOptions},
    hash::Pace,
    memory::{Pool, PoolOptions},
    op::Io,
    ring::{Ring, RingOptions, SetupError},
    wake::Waker,
};
use seedring_shard::{
    Command, Event, Globals, Handover, Links, Options, Shard, mailbox,
    mailbox::{Receiver, Sender},
    storage,
};
use tokio::sync::Notify;

use crate::config::model::IoBackend;

/// Messages to a shard that wait; what does not fit waits in control.
const COMMANDS_MAX: usize = 1_024;
const EVENTS_MAX: usize = 4_096;
const HANDOVERS_MAX: usize = 256;
const BACKLOG: u32 = 4_096;
/// Reads in flight a shard: enough for any one device's queue, few enough to bound memory.
const READS_MAX: usize = 128;

/// What the shards are started with.
pub struct Setup {
    pub shards: usize,
    pub pin: bool,
    pub listen: Vec<SocketAddr>,
    pub cache_bytes: usize,
    pub connections_max: u32,
    pub open_files_max: usize,
    pub io: IoBackend,
    pub zero_copy: bool,
    /// Content that lies in the page cache is hashed there.
    pub in_place: bool,
}

/// Control's handle on all shards.
pub struct Shards {
    links: Vec<Link>,
    threads: Vec<JoinHandle<()>>,
    /// The addresses listened on, ports resolved.
    pub listening: Vec<SocketAddr>,
    /// What each shard has to do without, a sentence each.
    pub steps_down: Vec<String>,
    /// What the shards' clocks count from.
    epoch: Instant,
}

struct Link {
    commands: Sender<Command>,
    events: Receiver<Event>,
    /// Commands that found the mailbox full, in order. Bounded by what reconcile produces, which
    /// looks at the length first.
    waiting: std::collections::VecDeque<Command>,
}

struct Ready {
    waker: Waker,
    links: mpsc::Sender<Links>,
    steps_down: Vec<String>,
}

impl Shards {
    /// Starts all threads; returns when each has its ring, or with the first error.
    pub fn start(
        setup: &Setup,
        globals: &Arc<Globals>,
        notify: &Arc<Notify>,
    ) -> anyhow::Result<Shards> {
        let (mut listening, mut sockets) = (Vec::new(), Vec::new());
        for address in &setup.listen {
            let (address, listeners) = listeners(*address, setup.shards)?;
            listening.push(address);
            sockets.push(listeners);
        }
        let root = open_directory("/").context("opening / to read content below it")?;
        let epoch = Instant::now();
        let cores = cpu::cores().unwrap_or_default();
        let (mut threads, mut ready) = (Vec::new(), Vec::new());
        for shard in 0..setup.shards {
            let mine = sockets.iter_mut().filter_map(|all| all.pop()).collect();
            let core = (setup.pin && cores.len() >= setup.shards).then(|| cores[shard]);
            let (tell, told) = mpsc::channel();
            let start = Start {
                shard,
                core,
                listeners: mine,
                cache_bytes: setup.cache_bytes / setup.shards,
                in_flight_max: setup.connections_max.saturating_mul(4).clamp(4_096, 1 << 20),
                open_files_max: (setup.open_files_max / setup.shards).max(16),
                io: setup.io,
                zero_copy: setup.zero_copy,
                in_place: setup.in_place,
                globals: globals.clone(),
                root: root.try_clone_owned().context("duplicating the descriptor of /")?,
                epoch,
            };
            let spawned = std::thread::Builder::new()
                .name(format!("shard-{shard}"))
                .spawn(move || start.run(&tell))
                .context("starting a shard's thread")?;
            threads.push(spawned);
            ready.push(told);
        }
        let ready: Vec<Ready> = ready
            .into_iter()
            .map(|told| told.recv().map_err(|_| anyhow!("a shard's thread ended at start"))?)
            .collect::<anyhow::Result<_>>()?;
        let steps_down = ready[0].steps_down.clone();
        let links = connect(ready, notify)?;
        Ok(Shards { links, threads, listening, steps_down, epoch })
    }

    /// The time as the shards have it.
    pub fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Queues a command. Never blocks; what does not fit goes with `flush`.
    pub fn send(&mut self, shard: usize, command: Command) {
        let link = &mut self.links[shard];
        if !link.waiting.is_empty() {
            link.waiting.push_back(command);
        } else if let Err(command) = link.commands.send(command) {
            link.waiting.push_back(command);
        }
    }

    pub fn send_all(&mut self, command: impl Fn() -> Command) {
        (0..self.len()).for_each(|shard| self.send(shard, command()));
    }

    /// Sends what waited. `true`: something still waits.
    pub fn flush(&mut self) -> bool {
        for link in &mut self.links {
            while let Some(command) = link.waiting.pop_front() {
                if let Err(command) = link.commands.send(command) {
                    link.waiting.push_front(command);
                    break;
                }
            }
        }
        self.links.iter().any(|link| !link.waiting.is_empty())
    }

    /// The next event of any shard.
    pub fn receive(&mut self) -> Option<(usize, Event)> {
        let events = self.links.iter_mut().enumerate();
        events.filter_map(|(shard, link)| Some((shard, link.events.receive()?))).next()
    }

    /// Whether a shard's thread has ended (it panicked, or was stopped).
    pub fn any_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    pub fn all_ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Waits for the threads (after `Command::Stop`).
    pub fn join(self) -> anyhow::Result<()> {
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a shard's thread panicked"))?;
        }
        Ok(())
    }
}

/// One listener a shard on the same address: the kernel spreads connections over them.
fn listeners(address: SocketAddr, shards: usize) -> anyhow::Result<(SocketAddr, Vec<OwnedSocket>)> {
    let mut bound = address;
    let mut sockets = Vec::with_capacity(shards);
    for _ in 0..shards {
        let options = ListenOptions {
            address: bound,
            backlog: BACKLOG,
            reuse_port: shards > 1,
            v6_only: address.is_ipv6(),
        };
        let socket = listen(options).map_err(|error| cannot_listen(address, &error))?;
        bound = socket.local_addr().context("reading the listening address")?;
        sockets.push(socket);
    }
    Ok((bound, sockets))
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there; stop it, or choose another port under `listen`"
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address; correct `listen`"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need a privilege (CAP_NET_BIND_SERVICE); choose a higher port"
        }
        _ => "correct `listen`",
    };
    anyhow!("can't listen on {address}: {error}; {remedy}")
}

/// Makes all mailboxes and hands each shard its ends.
fn connect(ready: Vec<Ready>, notify: &Arc<Notify>) -> anyhow::Result<Vec<Link>> {
    let shards = ready.len();
    let mut from: Vec<Vec<Receiver<Handover>>> = (0..shards).map(|_| Vec::new()).collect();
    let mut to: Vec<Vec<Option<Sender<Handover>>>> = (0..shards).map(|_| Vec::new()).collect();
    for (a, senders) in to.iter_mut().enumerate() {
        for (b, receivers) in from.iter_mut().enumerate() {
            if a == b {
                senders.push(None);
                continue;
            }
            let waker = ready[b].waker.clone();
            let (sender, receiver) =
                mailbox::channel(HANDOVERS_MAX, Box::new(move || waker.wake()));
            senders.push(Some(sender));
            receivers.push(receiver);
        }
    }
    let mut links = Vec::with_capacity(shards);
    for ((ready, to_shards), from_shards) in ready.into_iter().zip(to).zip(from) {
        let waker = ready.waker;
        let (commands, inbox) = mailbox::channel(COMMANDS_MAX, Box::new(move || waker.wake()));
        let notify = notify.clone();
        let (outbox, events) = mailbox::channel(EVENTS_MAX, Box::new(move || notify.notify_one()));
        let ends = Links { commands: inbox, events: outbox, to_shards, from_shards };
        ready.links.send(ends).map_err(|_| anyhow!("a shard's thread ended at start"))?;
        links.push(Link { commands, events, waiting: std::collections::VecDeque::new() });
    }
    Ok(links)
}

/// All that moves to a shard's thread.
struct Start {
    shard: usize,
    core: Option<cpu::CpuId>,
    listeners: Vec<OwnedSocket>,
    cache_bytes: usize,
    in_flight_max: u32,
    open_files_max: usize,
    io: IoBackend,
    zero_copy: bool,
    in_place: bool,
    globals: Arc<Globals>,
    root: OwnedFile,
    epoch: Instant,
}

impl Start {
    fn run(self, tell: &mpsc::Sender<anyhow::Result<Ready>>) {
        if let Some(core) = self.core
            && let Err(error) = cpu::pin_current_thread(core)
        {
            tracing::warn!("shard {}: not pinned to core {}: {error}", self.shard, core.0);
        }
        match self.backend() {
            Ok((Backend::Ring(ring), steps_down)) => self.run_on(ring, steps_down, tell),
            Ok((Backend::Epoll(epoll), steps_down)) => self.run_on(epoll, steps_down, tell),
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        }
    }

    fn run_on<I: Io>(
        self,
        io: I,
        steps_down: Vec<String>,
        tell: &mpsc::Sender<anyhow::Result<Ready>>,
    ) {
        let (links, ends) = mpsc::channel();
        if tell.send(Ok(Ready { waker: io.waker(), links, steps_down })).is_err() {
            return;
        }
        let Ok(links) = ends.recv() else { return };
        let options = Options {
            shard: self.shard,
            globals: self.globals,
            storage: storage::Options {
                reads_max: READS_MAX,
                open_files_max: self.open_files_max,
                in_place: self.in_place,
            },
            hashing: Pace::measured().clone(),
            root: File::from(self.root),
            seed: rand::random(),
        };
        Shard::new(io, options, links, self.listeners).run();
    }

    /// The way to the kernel, and what it has to do without.
    fn backend(&self) -> anyhow::Result<(Backend, Vec<String>)> {
        let pool = Pool::new(PoolOptions { cap_bytes: self.cache_bytes, huge_pages: true })
            .with_context(|| format!("reserving {} bytes for the block cache", self.cache_bytes))?;
        if self.io == IoBackend::Epoll {
            return Ok((self.epoll(pool)?, Vec::new()));
        }
        let mut options = RingOptions::new(pool.clone(), self.epoch);
        options.zero_copy = self.zero_copy;
        options.in_flight_max = self.in_flight_max;
        match Ring::new(options) {
            Ok(ring) => {
                let without = |step: &String| format!("io_uring: doing without {step}");
                let steps_down = ring.features().steps_down.iter().map(without).collect();
                Ok((Backend::Ring(ring), steps_down))
            }
            Err(SetupError::Unavailable(why)) if self.io == IoBackend::Auto => {
                let step = format!(
                    "{why}. Until then epoll and threads for files do its work, for more CPU \
                     (`io: epoll` takes them without this warning, `io: uring` ends here)"
                );
                Ok((self.epoll(pool)?, vec![step]))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn epoll(&self, pool: Pool) -> anyhow::Result<Backend> {
        let options = EpollOptions {
            in_flight_max: self.in_flight_max,
            ..EpollOptions::new(pool, self.epoch)
        };
        Ok(Backend::Epoll(Epoll::new(options).context("setting up epoll")?))
    }
}

/// A shard's way to the kernel.
#[allow(clippy::large_enum_variant)] // one a shard, for a moment
enum Backend {
    Ring(Ring),
    Epoll(Epoll),
}
