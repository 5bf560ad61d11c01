//! Whole shards in a simulated swarm: torrents, leeches, hostile peers, faults, from a seed.
//!
//! Owns: a run: its shards and their mailboxes, a control that only loads and looks, the order in
//! which shards and time take turns. Never: threads. Flow: plan -> run -> stop -> verdict.

use std::{
    cell::RefCell, collections::BTreeSet, net::SocketAddr, rc::Rc, sync::Arc, time::Duration,
};

use seedring_platform::{
    descriptors::File,
    hash::{Kernel, Pace},
    wake::Waker,
};
use seedring_proto::units::{PeerId, PieceIndex};
use seedring_shard::{
    Command, Event, Globals, Links, Options, Shard, Tick,
    mailbox::{Receiver, Sender, Wake, channel},
    stats::Stats,
    storage,
    torrent::{KeptPiece, Shared, TorrentId},
};

use super::{
    io::{SimDriver, SimIo, SimOptions, Waiting},
    leech::{Score, Tally},
    loading::Loadings,
    oracle::{Checked, Findings},
    planted::{Plant, Planted},
    torrent::SimTorrent,
    world::World,
};
use seedring_platform::op::Io;

pub type SimShard = Shard<Checked<Planted<SimIo>>>;

/// What shards are made with.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub shards: usize,
    pub pool_bytes: usize,
    pub direct_io: bool,
    pub zero_copy: bool,
    pub plant: Plant,
    /// The world was rebooted: its disk is that of an earlier swarm.
    pub again: bool,
}

impl Default for Plan {
    fn default() -> Self {
        let plant = Plant::None;
        Plan {
            shards: 1,
            pool_bytes: 16 << 20,
            direct_io: false,
            zero_copy: true,
            plant,
            again: false,
        }
    }
}

struct Seat {
    shard: SimShard,
    driver: SimDriver,
    findings: Findings,
    commands: Sender<Command>,
    events: Receiver<Event>,
    stopped: Option<Box<Stats>>,
    gone: bool,
}

pub struct Swarm {
    pub world: World,
    pub globals: Arc<Globals>,
    pub torrents: Vec<(Rc<SimTorrent>, Arc<Shared>)>,
    pub score: Score,
    pub address: SocketAddr,
    /// What stands for `/`.
    pub root: super::disk::DirectoryId,
    direct_io: bool,
    seats: Vec<Seat>,
    /// What shards told of files in trouble, pieces that failed, and dialled peers.
    pub troubles: u32,
    pub failed_pieces: u32,
    /// Connections that came, of which a shard told and not yet that they are gone.
    here: BTreeSet<(usize, TorrentId, SocketAddr)>,
    /// Torrents whose files somebody changes; pieces of the others never fail.
    pub spoilt: BTreeSet<TorrentId>,
    pub dialed: Vec<seedring_shard::DialOutcome>,
    pub loadings: Loadings,
    /// The stop needed the peers' end.
    pub cut_at_stop: bool,
    verify_again: Vec<(Duration, usize, TorrentId)>,
    ticks: u64,
}

/// Ticks of one shard in a row before time moves on in any case.
const TICKS_IN_A_ROW: u32 = 10_000;
/// A run that needs more ticks than this has a shard that spins.
const TICKS_MAX: u64 = 20_000_000;
/// For a stop: longer than the user timeout, and the release that follows it.
const STOP_GRACE: Duration = Duration::from_secs(60);
const VERIFY_AGAIN: Duration = Duration::from_secs(10);
const OUR_PEER_ID: PeerId = PeerId(*b"-SR0100-simulated000");

impl Swarm {
    pub fn new(world: World, plan: Plan) -> Swarm {
        Swarm::nth(world, plan, 0)
    }

    /// One of several engines of a world: its number gives it its address, name and disk. They come
    /// up in the order of their numbers, before anything else is made.
    pub fn nth(world: World, plan: Plan, engine: u8) -> Swarm {
        let address = SocketAddr::from(([10, 0, 0, engine + 1], 6881));
        let mut peer_id = OUR_PEER_ID;
        peer_id.0[19] += engine;
        let globals = Arc::new(Globals::new(peer_id, "seedring simulated"));
        globals.zero_copy.store(plan.zero_copy, std::sync::atomic::Ordering::Relaxed);
        let root = if plan.again { world.first_directory() } else { world.directory() };
        let first = engine > 0 || root == world.first_directory();
        assert!(first, "the first directory of a world stands for / of its first engine");
        let ios: Vec<SimIo> = (0..plan.shards)
            .map(|_| {
                let (pool_bytes, waiting) = (plan.pool_bytes, Waiting::Notes);
                SimIo::new(&world, SimOptions { pool_bytes, waiting, in_flight_max: 8_192 })
            })
            .collect();
        let wakers: Vec<Waker> = ios.iter().map(Io::waker).collect();
        let mut links = handovers(&wakers);
        let mut seats = Vec::new();
        for (number, io) in ios.into_iter().enumerate() {
            let (commands, received) = channel(256, wake(&wakers[number]));
            let (told, events) = channel(64, Box::new(|| {}));
            let (to_shards, from_shards) = std::mem::take(&mut links[number]);
            let driver = io.driver();
            let io = Checked::new(Planted::new(io, plan.plant));
            let findings = io.findings();
            let options = Options {
                shard: number,
                globals: globals.clone(),
                storage: storage::Options { reads_max: 64, open_files_max: 16, in_place: true },
                // Not measured: a seed has to give the same swarm on every machine.
                hashing: Pace::of(&[(Kernel::Single, 36_000), (Kernel::Avx512, 115_000)]),
                root: File::from(world.root(root)),
                seed: world.seed() ^ (u64::from(engine) << 32),
            };
            let links = Links { commands: received, events: told, to_shards, from_shards };
            let shard = Shard::new(io, options, links, vec![world.listen(address)]);
            let (stopped, gone) = (None, false);
            seats.push(Seat { shard, driver, findings, commands, events, stopped, gone });
        }
        Swarm {
            world,
            globals,
            torrents: Vec::new(),
            score: Rc::new(RefCell::new(Tally::default())),
            address,
            root,
            direct_io: plan.direct_io,
            seats,
            troubles: 0,
            failed_pieces: 0,
            here: BTreeSet::new(),
            spoilt: BTreeSet::new(),
            dialed: Vec::new(),
            loadings: Loadings::default(),
            cut_at_stop: false,
            verify_again: Vec::new(),
            ticks: 0,
        }
    }

    /// Tells every shard of a torrent; `prepare` sets its bits and limits first.
    pub fn add(
        &mut self,
        mut torrent: SimTorrent,
        prepare: impl FnOnce(&Shared),
    ) -> Rc<SimTorrent> {
        torrent.write(&self.world, self.root);
        let shared = torrent.shared(self.seats.len());
        prepare(&shared);
        let torrent = Rc::new(torrent);
        self.torrents.push((torrent.clone(), shared.clone()));
        self.tell_all(|| Command::Add(vec![shared.clone()]));
        torrent
    }

    pub fn tell_all(&mut self, command: impl Fn() -> Command) {
        for at in 0..self.seats.len() {
            self.tell(at, command());
        }
    }

    pub fn tell(&mut self, shard: usize, command: Command) {
        let sent = self.seats[shard].commands.send(command);
        assert!(sent.is_ok(), "a simulated control says little");
    }

    pub fn shards(&self) -> usize {
        self.seats.len()
    }

    pub fn stats(&self, shard: usize) -> &Stats {
        self.seats[shard].shard.stats()
    }

    pub fn uploaded_bytes(&self) -> u64 {
        self.seats.iter().map(|seat| seat.shard.stats().uploaded_bytes).sum()
    }

    /// Connections that shards have now.
    pub fn connections(&self) -> u32 {
        self.globals.connections.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Lets the shards work until `done` or until the virtual time `until`. `true`: `done`.
    pub fn run(&mut self, until: Duration, mut done: impl FnMut(&Swarm) -> bool) -> bool {
        loop {
            self.turn();
            if done(self) {
                return true;
            }
            if self.world.now() >= until || self.is_broken() {
                return false;
            }
            let next = self.wakes_at().into_iter().chain(self.world.next_event());
            let next = next.min().unwrap_or(until);
            self.world.advance_to(next.min(until));
        }
    }

    /// Whether something was found, so that going on makes no sense.
    pub fn is_broken(&self) -> bool {
        !self.world.violations().is_empty()
            || !self.score.borrow().wrong.is_empty()
            || self.seats.iter().any(|seat| !seat.findings.borrow().is_empty())
    }

    /// When a shard wants to run again of itself.
    pub(super) fn wakes_at(&self) -> Option<Duration> {
        let sleeps = self.seats.iter().filter(|seat| !seat.gone);
        sleeps.filter_map(|seat| seat.driver.sleeps_until()).min()
    }

    /// Each shard that has a reason to runs until it sleeps.
    pub(super) fn turn(&mut self) {
        // Shards of a process run at once: which comes first is chance.
        let mut order: Vec<usize> = (0..self.seats.len()).collect();
        self.world.shuffle(&mut order);
        for at in order {
            let seat = &mut self.seats[at];
            for _ in 0..TICKS_IN_A_ROW {
                if seat.gone || !seat.driver.runnable() {
                    break;
                }
                self.ticks += 1;
                match seat.shard.tick() {
                    Tick::Busy => {}
                    Tick::Idle(until) => seat.shard.sleep(until),
                    Tick::Stopped => seat.gone = true,
                }
            }
            self.listen(at);
        }
        self.repeat();
        if self.ticks > TICKS_MAX {
            self.world.violation("a shard ticks without end");
        }
    }

    /// Pieces that could not be read when they were verified are tried again.
    fn repeat(&mut self) {
        self.load_on();
        let now = self.world.now();
        while let Some(at) = self.verify_again.iter().position(|(when, ..)| *when <= now) {
            let (_, shard, torrent) = self.verify_again.swap_remove(at);
            let known = self.torrents.iter().find(|(t, _)| t.id == torrent);
            let count = known.map_or(0, |(t, _)| t.layout.piece_count());
            let first = PieceIndex(0);
            self.tell(shard, Command::Verify { torrent, first, count, offer: true });
        }
    }

    /// A shard told that a connection came, or that it is gone: each in its turn.
    fn came(&mut self, shard: usize, torrent: TorrentId, address: SocketAddr, came: bool) {
        let connection = (shard, torrent, address);
        let changed = match came {
            true => self.here.insert(connection),
            false => self.here.remove(&connection),
        };
        if !changed {
            self.world.violation(format!("{connection:?} came or left twice ({came})"));
        }
    }

    /// What control does: loads contents that are asked for, drops those that are not needed.
    fn listen(&mut self, at: usize) {
        while let Some(event) = self.seats[at].events.receive() {
            match event {
                Event::Activate(id) => {
                    let (torrent, shared) =
                        self.torrents.iter().find(|(t, _)| t.id == id).expect("a known torrent");
                    shared.contents.store(Some(torrent.contents(self.direct_io)));
                    self.tell_all(|| Command::Look(id));
                }
                Event::Verified { torrent, failed, done: true, .. } if failed > 0 => {
                    self.verify_again.push((self.world.now() + VERIFY_AGAIN, at, torrent));
                }
                Event::Trouble { .. } => self.troubles += 1,
                Event::PieceFailed { torrent, piece } => {
                    self.failed_pieces += 1;
                    if !self.spoilt.contains(&torrent) {
                        let text = format!("{piece} of {torrent:?} failed, its file is intact");
                        self.world.violation(text);
                    }
                }
                Event::Dialed { torrent, address, outcome } => {
                    self.dialed.push(outcome);
                    self.dial_failed(at, torrent, address, outcome);
                }
                Event::Accepted { torrent, address, .. } => self.came(at, torrent, address, true),
                Event::Left { torrent, address, .. } => self.came(at, torrent, address, false),
                Event::Offered { torrent, piece } => self.offered(torrent, piece),
                Event::Lost { torrent, piece } => {
                    self.tell_all(|| Command::Lost { torrent, piece });
                }
                Event::WriteFailed { torrent, .. } => self.write_failed(torrent),
                Event::Poisoned { ip, .. } => self.loadings.poisoned.push(ip),
                Event::Complete(id) => self.completed(id),
                Event::Kept { piece, slot, blocks, .. } => {
                    self.kept(KeptPiece { piece, slot, blocks });
                }
                Event::Stopped(stats) => self.seats[at].stopped = Some(stats),
                _ => {}
            }
        }
    }

    /// Stops all shards and looks whether everything came home. What was found, and the last
    /// statistics of each shard.
    pub fn stop(mut self) -> (Vec<String>, Vec<Stats>) {
        let broken = self.is_broken();
        let mut findings = self.world.violations();
        if !broken {
            self.score.borrow_mut().stopping = true;
            self.tell_all(|| Command::Stop);
            let all = |swarm: &Swarm| swarm.seats.iter().all(|s| s.gone && s.stopped.is_some());
            let soon = self.world.now() + STOP_GRACE;
            if !self.run(soon, all) && !self.is_broken() {
                // A peer that reads a few bytes a second keeps a closed socket's last bytes, and
                // with zero-copy their memory: the end of the process is what ends that.
                self.cut_at_stop = true;
                self.world.reset_peers();
            }
            if !self.run(soon + STOP_GRACE, all) {
                findings.push("a shard did not stop although all peers are gone".into());
            } else if self.connections() > 0 {
                findings.push(format!("{} connections are still counted", self.connections()));
            } else if !self.here.is_empty() {
                findings.push(format!("nobody was told that these left: {:?}", self.here));
            }
            for seat in &mut self.seats {
                seat.shard.io().finish();
            }
        }
        findings.extend(self.world.violations());
        for seat in &self.seats {
            findings.extend(seat.findings.borrow().iter().cloned());
        }
        findings.extend(self.score.borrow().wrong.iter().cloned());
        let stats = self.seats.iter().filter_map(|s| s.stopped.as_deref().cloned()).collect();
        let Swarm { world, seats, .. } = self;
        drop(seats);
        if findings.is_empty() && world.open_sockets() + world.open_files() > 0 {
            let (sockets, files) = (world.open_sockets(), world.open_files());
            findings.push(format!("{sockets} sockets and {files} files were left open"));
        }
        (findings, stats)
    }

    /// Stopped: nothing is left of it but what it told.
    pub fn is_gone(&self) -> bool {
        self.seats.iter().all(|seat| seat.gone && seat.stopped.is_some())
    }

    /// What its shards' oracles found, after the end.
    pub fn findings(&mut self) -> Vec<String> {
        self.seats.iter_mut().for_each(|seat| seat.shard.io().finish());
        let all = self.seats.iter().flat_map(|seat| seat.findings.borrow().clone());
        all.chain(self.score.borrow().wrong.iter().cloned()).collect()
    }
}

fn wake(waker: &Waker) -> Wake {
    let waker = waker.clone();
    Box::new(move || waker.wake())
}

type Mail =
    (Vec<Option<Sender<seedring_shard::Handover>>>, Vec<Receiver<seedring_shard::Handover>>);

/// The mailboxes between all pairs of shards, small ones so that they are full at times.
fn handovers(wakers: &[Waker]) -> Vec<Mail> {
    let mut mail: Vec<Mail> = wakers.iter().map(|_| Mail::default()).collect();
    for from in 0..wakers.len() {
        for to in 0..wakers.len() {
            if from == to {
                mail[from].0.push(None);
                continue;
            }
            let (sender, receiver) = channel(4, wake(&wakers[to]));
            mail[from].0.push(Some(sender));
            mail[to].1.push(receiver);
        }
    }
    mail
}
