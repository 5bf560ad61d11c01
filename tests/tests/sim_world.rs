//! The simulator itself: a toy seeder under weather, storms and planted bugs.
//!
//! Owns: the proof that faults are hit, oracles find, and a seed repeats itself. Never: the engine.
//! Flow: seed -> world, toy, readers -> verdict.

mod toy;

use std::{cell::RefCell, net::SocketAddr, rc::Rc, time::Duration};

use seedring_platform::{descriptors::Socket, op::Io};
use seedring_tests::sim::{
    Content, Ended, FaultKind, Faults, Peer, PeerIo, Rng, SimIo, SimOptions, World,
    oracle::Checked,
    planted::{Plant, Planted},
    rng,
};
use toy::Toy;

const FILE_SEED: u64 = 99;
const FILE_BYTES: u64 = 3_000_017;

#[derive(Default)]
struct Score {
    finished: u32,
    ended: u32,
    wrong: Vec<String>,
    bytes: u64,
}

/// Asks for ranges of the file, two at a time, and looks at every byte.
struct Reader {
    score: Rc<RefCell<Score>>,
    left: u32,
    asked: Vec<(u64, u32)>,
    inbox: Vec<u8>,
}

impl Reader {
    fn ask(&mut self, io: &mut PeerIo<'_>) {
        while self.left > 0 && self.asked.len() < 2 {
            self.left -= 1;
            let length = io.rng().between(1, 40_000) as u32;
            let offset = io.rng().below(FILE_BYTES - u64::from(length));
            self.asked.push((offset, length));
            io.send(&[&offset.to_le_bytes()[..], &length.to_le_bytes()[..]].concat());
        }
        if self.asked.is_empty() {
            self.score.borrow_mut().finished += 1;
            io.close();
        }
    }
}

impl Peer for Reader {
    fn opened(&mut self, io: &mut PeerIo<'_>) {
        self.ask(io);
    }

    fn received(&mut self, io: &mut PeerIo<'_>, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        while let Some(&(offset, length)) = self.asked.first() {
            let whole = 4 + length as usize;
            if self.inbox.len() < whole {
                return;
            }
            let header: [u8; 4] = self.inbox[..4].try_into().expect("4 bytes");
            let differs = rng::differs(FILE_SEED, offset, &self.inbox[4..whole]);
            let mut score = self.score.borrow_mut();
            if u32::from_le_bytes(header) != length || differs.is_some() {
                score.wrong.push(format!("{length} bytes at {offset}: {differs:?}"));
            }
            score.bytes += u64::from(length);
            drop(score);
            self.inbox.drain(..whole);
            self.asked.remove(0);
            self.ask(io);
        }
    }

    fn ended(&mut self, _: &mut PeerIo<'_>, _: Ended) {
        self.score.borrow_mut().ended += 1;
    }
}

struct Verdict {
    world: World,
    findings: Vec<String>,
    trace: u64,
    finished: u32,
    bytes: u64,
}

const PEERS: u32 = 5;

fn run(seed: u64, faults: Faults, plant: Plant) -> Verdict {
    let world = World::new(seed, faults);
    let mut rng = Rng::new(seed ^ 1);
    let address: SocketAddr = "10.0.0.1:6881".parse().expect("an address");
    let folder = world.directory();
    world.write_file(
        folder,
        "content",
        FILE_BYTES,
        Content::Generated { seed: FILE_SEED, base: 0 },
    );
    let listener = Socket::from(world.listen(address));
    let in_flight_max = if rng.per_mille(300) { 12 } else { 4096 };
    let options = SimOptions { pool_bytes: 512 << 10, in_flight_max, ..SimOptions::default() };
    let io = Checked::new(Planted::new(SimIo::new(&world, options), plant));
    let findings = io.findings();
    let score = Rc::new(RefCell::new(Score::default()));
    let zero_copy = rng.per_mille(500);
    let mut toy = Toy::new(io, listener, world.root_handle(folder), zero_copy);
    for n in 0..PEERS {
        let reader =
            Reader { score: score.clone(), left: 20, asked: Vec::new(), inbox: Vec::new() };
        let from = SocketAddr::from(([10, 1, 0, n as u8], 5000));
        let peer = world.add_peer(Box::new(reader), from);
        world.dial_at(peer, address, Duration::from_secs(2) + Duration::from_millis(u64::from(n)));
    }
    let end = Duration::from_secs(600);
    while world.now() < end && findings.borrow().is_empty() && world.violations().is_empty() {
        toy.tick();
        let until = world.now() + Duration::from_millis(200);
        toy.io.wait(Some(until.min(end)), &|| false);
        let score = score.borrow();
        if score.finished + score.ended >= PEERS || !score.wrong.is_empty() {
            break;
        }
    }
    let unhappy = !findings.borrow().is_empty() || !score.borrow().wrong.is_empty();
    if !unhappy && world.violations().is_empty() {
        let give_up = world.now() + Duration::from_secs(120);
        while !toy.stop() && world.now() < give_up {
            toy.tick();
            let until = world.now() + Duration::from_secs(1);
            toy.io.wait(Some(until), &|| false);
        }
        toy.io.finish();
    }
    let mut found = findings.borrow().clone();
    found.extend(world.violations());
    found.extend(score.borrow().wrong.iter().cloned());
    let (finished, bytes) = (score.borrow().finished, score.borrow().bytes);
    let trace = world.trace_hash();
    drop(toy);
    if found.is_empty() && world.open_sockets() + world.open_files() > 0 {
        found.push("a descriptor was left open".into());
    }
    Verdict { world, findings: found, trace, finished, bytes }
}

#[track_caller]
fn clean(verdict: &Verdict) {
    let seed = verdict.world.seed();
    let tail = verdict.world.trace_tail(40);
    assert!(verdict.findings.is_empty(), "seed {seed}: {:?}\n{tail}", verdict.findings);
}

#[test]
fn in_all_weather_everybody_gets_everything() {
    for seed in 0..60 {
        let verdict = run(seed, Faults::weather(), Plant::None);
        clean(&verdict);
        assert_eq!(verdict.finished, PEERS, "seed {seed}\n{}", verdict.world.trace_tail(40));
    }
}

#[test]
fn in_storms_nobody_gets_a_wrong_byte_and_everything_comes_home() {
    let mut hits = Faults::none();
    let mut bytes = 0;
    for seed in 0..200 {
        let verdict = run(seed, Faults::storm(&mut Rng::new(seed)), Plant::None);
        clean(&verdict);
        hits.add_hits(&verdict.world.faults());
        bytes += verdict.bytes;
    }
    assert!(bytes > 50 << 20, "{bytes} bytes were served over all seeds");
    use FaultKind::*;
    // What a toy that neither connects nor identifies its file can't meet.
    let never =
        [ConnectRefused, ConnectTimedOut, ConnectSlow, CancelRaced, FileChanged, FileShrunk];
    let never = [&never[..], &[FileVanished, IdentifyFailed, WakeLost]].concat();
    let missed =
        hits.never_hit().into_iter().filter(|kind| !never.contains(kind) && !kind.is_of_writing());
    let missed: Vec<_> = missed.collect();
    assert!(missed.is_empty(), "never hit: {missed:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..10 {
        let storm = || Faults::storm(&mut Rng::new(seed));
        let (a, b) = (run(seed, storm(), Plant::None), run(seed, storm(), Plant::None));
        assert_eq!((a.trace, a.bytes), (b.trace, b.bytes), "seed {seed}");
        assert_eq!(a.world.trace_entries(), b.world.trace_entries(), "seed {seed}");
        let other = run(seed + 1000, storm(), Plant::None);
        assert_ne!(a.trace, other.trace, "seed {seed}");
    }
}

#[test]
fn planted_bugs_are_found() {
    for &plant in Plant::ALL {
        let found = (0..40).find_map(|seed| {
            let found = std::panic::catch_unwind(|| {
                run(seed, Faults::weather(), plant).findings.into_iter().next()
            });
            found.unwrap_or_else(|_| Some("the toy's own assertion".into())).map(|f| (seed, f))
        });
        let stalled = || {
            let verdict = run(0, Faults::weather(), plant);
            (verdict.finished < PEERS).then(|| (0, "a peer waits for ever".to_owned()))
        };
        let found = found.or_else(stalled);
        let (seed, what) = found.unwrap_or_else(|| panic!("{plant:?} was not found"));
        println!("{plant:?}: seed {seed}: {what}");
    }
}
