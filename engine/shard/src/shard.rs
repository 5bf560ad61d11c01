//! A shard: its fields and its tick.
//!
//! Owns: the order in which a tick does its work, and the bound of each step.
//! Never: how a step works (each has its own file). Flow: `run` -> `tick` -> wait.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use seedring_platform::{
    descriptors::{File, OwnedSocket, Socket},
    op::{Completion, Io, Op},
};
use seedring_proto::units::InfoHash;

use crate::{
    connections::{
        Connections, Key, choke::Choking, deadlines::Deadlines, dial::Dialing, turns::Turns,
    },
    contract::{Command, Event, Globals, Handover},
    download::Downloads,
    mailbox::{Receiver, Sender},
    mix::Hashed,
    stats::Stats,
    storage::{self, News, Part, Storage},
    torrent::{Local, TorrentId},
    verify::{HASH_TIME, Verify},
};

/// Completions taken a tick.
const COMPLETIONS_MAX: usize = 1_024;
/// Messages taken a tick from control and from each other shard.
const MESSAGES_MAX: usize = 64;
/// Timers fired a tick.
const TIMERS_MAX: usize = 256;
/// Housekeeping interval.
const CHORES_EVERY: Duration = Duration::from_secs(1);

/// The mailboxes of a shard.
pub struct Links {
    pub commands: Receiver<Command>,
    pub events: Sender<Event>,
    /// By shard number; `None` for itself.
    pub to_shards: Vec<Option<Sender<Handover>>>,
    pub from_shards: Vec<Receiver<Handover>>,
}

/// What a shard is made with.
pub struct Options {
    pub shard: usize,
    pub globals: Arc<Globals>,
    pub storage: storage::Options,
    /// How many pieces go side by side, and how long they take.
    pub hashing: seedring_platform::hash::Pace,
    /// A descriptor of `/`.
    pub root: File,
    /// Mixed into what is random in sessions.
    pub seed: u64,
}

/// What a tick leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tick {
    /// More work is at hand: tick again at once.
    Busy,
    /// Nothing to do before this time.
    Idle(Option<Duration>),
    /// Stopped and drained.
    Stopped,
}

pub struct Shard<I: Io> {
    pub(crate) io: I,
    pub(crate) options: Options,
    pub(crate) links: Links,
    pub(crate) listeners: Vec<Socket>,
    /// Listeners whose accept ended, to be armed again at this time.
    pub(crate) accept_again: Vec<(Duration, u32)>,
    pub(crate) connections: Connections,
    pub(crate) torrents: HashMap<TorrentId, Local, Hashed>,
    pub(crate) by_hash: HashMap<InfoHash, TorrentId>,
    pub(crate) storage: Storage,
    pub(crate) verify: Verify,
    pub(crate) downloads: Downloads,
    pub(crate) dialing: Dialing,
    pub(crate) choking: Choking,
    pub(crate) deadlines: Deadlines,
    /// Connections that may have something to send.
    pub(crate) turns: Turns,
    /// Held back by a rate limit, in turn.
    pub(crate) throttled: VecDeque<Key>,
    pub(crate) throttled_until: Duration,
    /// Whose turn it was last.
    pub(crate) throttled_turn: Option<Key>,
    /// A torrent here shows its pieces one by one (as of the last chores).
    pub(crate) showing: bool,
    /// Found no memory for a read, in turn.
    pub(crate) starved: VecDeque<Key>,
    pub(crate) memory_came_home: bool,
    pub(crate) stats: Stats,
    pub(crate) news: Vec<News>,
    pub(crate) parts: Vec<Part>,
    /// Events that found the mailbox full; hints that matter are repeated from here.
    pub(crate) outbox: VecDeque<Event>,
    pub(crate) chores_at: Duration,
    pub(crate) stopping: bool,
    pub(crate) stop_by: Duration,
    pub(crate) stopped: bool,
    completions: Vec<Completion>,
}

impl<I: Io> Shard<I> {
    pub fn new(io: I, options: Options, links: Links, listeners: Vec<OwnedSocket>) -> Self {
        let storage = Storage::new(options.storage, options.root.clone(), io.pool());
        let choking = Choking::new(options.seed);
        let stats = Stats::new(options.shard);
        let deadlines = Deadlines::new(options.globals.idle_timeout());
        let mut shard = Shard {
            io,
            options,
            links,
            listeners: listeners.into_iter().map(Socket::from).collect(),
            accept_again: Vec::new(),
            connections: Connections::default(),
            torrents: HashMap::default(),
            by_hash: HashMap::new(),
            storage,
            verify: Verify::default(),
            downloads: Downloads::default(),
            dialing: Dialing::default(),
            choking,
            deadlines,
            turns: Turns::default(),
            throttled: VecDeque::new(),
            throttled_until: Duration::ZERO,
            throttled_turn: None,
            showing: false,
            starved: VecDeque::new(),
            memory_came_home: false,
            stats,
            news: Vec::new(),
            parts: Vec::new(),
            outbox: VecDeque::new(),
            chores_at: Duration::ZERO,
            stopping: false,
            stop_by: Duration::ZERO,
            stopped: false,
            completions: Vec::with_capacity(COMPLETIONS_MAX),
        };
        (0..shard.listeners.len() as u32).for_each(|listener| shard.accept(listener));
        shard
    }

    /// Ticks until stopped.
    pub fn run(&mut self) {
        loop {
            match self.tick() {
                Tick::Busy => {}
                Tick::Idle(until) => self.sleep(until),
                Tick::Stopped => return,
            }
        }
    }

    /// Sleeps as `Io::wait` says, unless a message is there.
    pub fn sleep(&mut self, until: Option<Duration>) {
        let links = &self.links;
        let pending = || {
            !links.commands.is_empty() || links.from_shards.iter().any(|queue| !queue.is_empty())
        };
        self.io.wait(until, &pending);
    }

    /// One turn: everything that is at hand, each kind bounded.
    pub fn tick(&mut self) -> Tick {
        self.stats.ticks += 1;
        let mut completions = std::mem::take(&mut self.completions);
        self.io.reap(&mut completions, COMPLETIONS_MAX);
        let full = completions.len() == COMPLETIONS_MAX;
        completions.drain(..).for_each(|completion| self.dispatch(completion));
        self.completions = completions;

        let messages = self.receive_messages(MESSAGES_MAX);
        let now = self.io.now();
        let fired = self.fire_timers(now, TIMERS_MAX);
        if now >= self.chores_at {
            self.chores(now);
            self.chores_at = now + CHORES_EVERY;
        }
        self.deliver_news();
        self.wake_throttled(now);
        self.wake_starved();
        let hashing = self.verify_step(HASH_TIME);
        let downloading = self.download_step();
        self.deliver_news();
        self.dial_next();
        let pumping = self.pump_ready();
        self.flush_outbox();
        if self.stopping && self.drain() {
            return Tick::Stopped;
        }
        let woken = self.verify.ready || self.memory_came_home || !self.news.is_empty();
        if full || messages || fired || hashing || downloading || pumping || woken {
            return Tick::Busy;
        }
        Tick::Idle(Some(self.next_deadline()))
    }

    fn next_deadline(&self) -> Duration {
        let others = [
            self.deadlines.timers.next(),
            (!self.throttled.is_empty()).then_some(self.throttled_until),
            self.storage.next_attempt(self.io.now()),
            self.downloads.next_deadline(),
            self.next_dial(),
        ];
        others.into_iter().flatten().fold(self.chores_at, Duration::min)
    }

    pub(crate) fn submit_now(&mut self, op: Op) {
        let submitted = self.io.submit(op);
        assert!(submitted.is_ok(), "the in-flight table is sized for all its holders");
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    pub fn io(&mut self) -> &mut I {
        &mut self.io
    }
}
