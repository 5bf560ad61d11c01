//! Whole shards in simulated swarms, a seed a run.
//!
//! Owns: the plan of a run drawn from its seed, and what must hold at its end. Never: real time,
//! files or sockets. Flow: seed -> torrents, peers, faults -> run -> verdict. `SEEDRING_SIM_SEEDS`
//! says how many seeds (200), `SEEDRING_SIM_SEED` runs one alone.

use std::{collections::BTreeMap, net::SocketAddr, rc::Rc, sync::atomic::Ordering, time::Duration};

use seedring_proto::units::{PeerId, PieceIndex};
use seedring_shard::{Command, stats::Stats, torrent::Phase};
use seedring_tests::sim::{
    FaultKind, Faults, Link, Rng, World,
    leech::{
        honest::{Changed, Habits, Leech},
        hostile::{Behaviour, Hostile},
    },
    planted::Plant,
    rng,
    swarm::{Plan, Swarm},
    torrent::SimTorrent,
};

const START: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

struct Verdict {
    seed: u64,
    findings: Vec<String>,
    faults: Faults,
    trace: u64,
    entries: u64,
    tail: String,
    took: Duration,
    score: seedring_tests::sim::leech::Tally,
}

/// What a run is asked to do beside what its seed draws.
#[derive(Clone, Copy, Default)]
struct Wish {
    plant: Option<Plant>,
    calm: bool,
}

fn seconds(rng: &mut Rng, low: u64, high: u64) -> Duration {
    Duration::from_millis(rng.between(low * 1_000, high * 1_000))
}

fn faults_of(rng: &mut Rng, calm: bool) -> Faults {
    let mut faults = if calm { Faults::weather() } else { Faults::storm(rng) };
    // The shard's table holds all that its limits allow: a full one is the shard's own fault.
    faults.set(FaultKind::TableFull, 0);
    faults.until_ns = seconds(rng, 40, 300).as_nanos() as u64;
    faults
}

/// Spoils a file of the torrent at some time, if the seed wants it.
fn spoil(world: &World, torrent: &SimTorrent, rng: &mut Rng) -> Option<Vec<Changed>> {
    use FaultKind::*;
    let faults = world.faults();
    let kinds = [FileChanged, FileShrunk, FileVanished];
    let kind = kinds.into_iter().find(|&kind| rng.per_mille(faults.chance(kind) / 2))?;
    let files: Vec<usize> =
        (0..torrent.nodes.len()).filter(|&n| torrent.layout.files[n].length > 0).collect();
    let files: Vec<usize> = files.into_iter().filter(|&n| torrent.nodes[n].is_some()).collect();
    let file = *rng.pick(&files);
    let node = torrent.nodes[file].expect("filtered above");
    let (from, length) = (torrent.layout.files[file].offset, torrent.layout.files[file].length);
    let at = seconds(rng, 2, 20);
    let (seed, shorter) = (rng.draw(), rng.below(length));
    match kind {
        FileChanged => world.disk_at(at, kind, move |disk, now| disk.change(node, seed, now)),
        FileShrunk => world.disk_at(at, kind, move |disk, now| disk.truncate(node, shorter, now)),
        _ => {
            let path = torrent.path(file);
            let root = world.first_directory();
            world.disk_at(at, kind, move |disk, now| disk.unlink(root, &path, now));
        }
    }
    let changed = Changed { from, to: from + length, seed, at_ns: at.as_nanos() as u64 };
    Some(if kind == FileChanged { vec![changed] } else { Vec::new() })
}

fn run(seed: u64, wish: Wish) -> Verdict {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let world = World::new(seed, faults_of(&mut rng, wish.calm));
    if rng.per_mille(400) {
        world.set_direct_io(*rng.pick(&[512, 4096]));
    }
    let plan = Plan {
        shards: rng.between(1, 3) as usize,
        pool_bytes: *rng.pick(&[1 << 20, 2 << 20, 8 << 20, 32 << 20]),
        direct_io: rng.per_mille(500),
        zero_copy: rng.per_mille(700),
        plant: wish.plant.unwrap_or(Plant::None),
        again: false,
    };
    let mut swarm = Swarm::new(world.clone(), plan);
    limits(&mut swarm, &mut rng);
    let mut fates = Vec::new();
    for id in 0..rng.between(1, 3) {
        fates.push(add_torrent(&mut swarm, id as u32, &mut rng));
    }
    add_leeches(&mut swarm, &fates, &mut rng);
    let hostile = if wish.calm { 0 } else { rng.below(7) };
    for n in 0..hostile {
        add_hostile(&mut swarm, n as u8, &mut rng);
    }
    let whole = carry_out(order(seed, wish), &mut swarm, &fates[0].torrent);
    let all = |swarm: &Swarm| {
        let score = swarm.score.borrow();
        score.complete >= score.honest
    };
    let complete = !whole || swarm.run(HOUR, all);
    let took = swarm.world.now();
    // Time for the hostile ones to be rid of, and for what is left of the connections.
    let until = took.max(Duration::from_secs(30)) + Duration::from_secs(350);
    if hostile > 0 && whole {
        swarm.run(until, |_| false);
    }
    let score = swarm.score.clone();
    let tail = world.trace_tail(60);
    let (mut findings, stats) = swarm.stop();
    if !complete && findings.is_empty() {
        let score = score.borrow();
        let (some, all) = (score.complete, score.honest);
        findings.push(format!("{some} of {all} honest leeches are complete after an hour"));
    }
    let score = std::mem::take(&mut *score.borrow_mut());
    findings.extend(miscounted(&stats));
    Verdict {
        seed,
        findings,
        faults: world.faults(),
        trace: world.trace_hash(),
        entries: world.trace_entries(),
        tail,
        took,
        score,
    }
}

/// What control does in the middle of a run.
#[derive(Clone, Copy)]
enum Order {
    Nothing,
    /// The first torrent is paused or parked, and comes back.
    Look(Phase, Duration, Duration),
    Remove(Duration),
    /// It changes its trackers: everybody goes, and may come again.
    Disconnect(Duration),
    /// Everything stops under load.
    Stop(Duration),
}

/// Drawn apart from the rest, so that a seed's swarm is the same with and without.
fn order(seed: u64, wish: Wish) -> Order {
    let mut rng = Rng::new(seed ^ 0x00de5);
    let at = START + seconds(&mut rng, 0, 40);
    let phase = *rng.pick(&[Phase::Paused, Phase::Parked]);
    let back = at + seconds(&mut rng, 0, 20);
    match rng.below(20) {
        _ if wish.calm => Order::Nothing,
        0 | 1 => Order::Look(phase, at, back),
        2 => Order::Remove(at),
        3 | 4 => Order::Stop(at),
        5 | 6 => Order::Disconnect(at),
        _ => Order::Nothing,
    }
}

/// Whether everybody can be complete after it.
fn carry_out(order: Order, swarm: &mut Swarm, torrent: &SimTorrent) -> bool {
    let shared = swarm.torrents.iter().find(|(known, _)| known.id == torrent.id);
    let shared = shared.expect("it was added").1.clone();
    let look = |swarm: &mut Swarm, phase, at| {
        swarm.run(at, |_| false);
        shared.set_phase(phase);
        swarm.tell_all(|| Command::Look(torrent.id));
    };
    match order {
        Order::Nothing => true,
        Order::Look(phase, at, back) => {
            look(swarm, phase, at);
            look(swarm, Phase::Active, back);
            true
        }
        Order::Remove(at) => {
            look(swarm, Phase::Removed, at);
            swarm.tell_all(|| Command::Remove(torrent.id));
            swarm.run(at + Duration::from_secs(60), |_| false);
            false
        }
        Order::Disconnect(at) => {
            swarm.run(at, |_| false);
            swarm.tell_all(|| Command::Disconnect(torrent.id));
            true
        }
        Order::Stop(at) => {
            swarm.run(at, |_| false);
            false
        }
    }
}

/// Gauges that are not zero after the last connection, or totals that contradict each other.
fn miscounted(stats: &[Stats]) -> Option<String> {
    let bad = |s: &&Stats| {
        let gauges = [s.connections, s.half_open, s.interested, s.unchoked];
        gauges.iter().any(|&gauge| gauge != 0) || s.uploaded_bytes > s.sent_bytes
    };
    let s = stats.iter().find(bad)?;
    Some(format!(
        "after the stop: {} connections, {} half open, {} interested, {} unchoked; {} of {} bytes",
        s.connections, s.half_open, s.interested, s.unchoked, s.uploaded_bytes, s.sent_bytes
    ))
}

fn limits(swarm: &mut Swarm, rng: &mut Rng) {
    if rng.per_mille(200) {
        swarm.globals.upload.set(Some(rng.between(50_000, 2_000_000)));
    }
    if rng.per_mille(300) {
        let slots = rng.between(1, 4) as u32;
        swarm.tell_all(|| Command::Slots(slots));
    }
    if rng.per_mille(100) {
        swarm.globals.connections_max.store(rng.between(3, 8) as u32, Ordering::Relaxed);
    }
}

/// What a torrent's leeches must know: when they may come, what was spoilt.
struct Fate {
    torrent: Rc<SimTorrent>,
    from: Duration,
    spoilt: Option<Vec<Changed>>,
}

fn add_torrent(swarm: &mut Swarm, id: u32, rng: &mut Rng) -> Fate {
    let torrent = SimTorrent::random(id, rng);
    let mode = rng.below(3);
    let cold = mode < 2 && rng.per_mille(500);
    let contents = torrent.contents(rng.per_mille(500));
    let torrent = swarm.add(torrent, |shared| {
        shared.pieces.set_all_verified(mode == 0);
        shared.pieces.set_all_offered(mode <= 1);
        if !cold {
            shared.contents.store(Some(contents));
        }
        if rng.per_mille(100) {
            shared.upload.set(Some(rng.between(50_000, 1_000_000)));
        }
    });
    let mut from = START;
    if mode == 2 {
        let (first, count) = (PieceIndex(0), torrent.layout.piece_count());
        let shard = rng.below(swarm.shards() as u64) as usize;
        swarm.tell(shard, Command::Verify { torrent: torrent.id, first, count, offer: true });
        from += Duration::from_secs(30);
    }
    let spoilt = spoil(&swarm.world, &torrent, rng);
    if spoilt.is_some() {
        swarm.spoilt.insert(torrent.id);
    }
    Fate { torrent, from, spoilt }
}

fn add_leeches(swarm: &mut Swarm, fates: &[Fate], rng: &mut Rng) {
    for n in 0..rng.between(1, 6) {
        let fate = &fates[rng.below(fates.len() as u64) as usize];
        let from = SocketAddr::from(([10, 1, rng.below(3) as u8, n as u8 + 1], 7_000));
        let leech = Leech::new(
            fate.torrent.clone(),
            Habits::random(rng),
            swarm.score.clone(),
            swarm.address,
            fate.spoilt.clone().unwrap_or_default(),
            fate.spoilt.is_none(),
            rng,
        );
        let peer = swarm.world.add_peer(Box::new(leech), from);
        let at = fate.from + seconds(rng, 0, 15);
        if rng.per_mille(300) {
            swarm.world.peer_listens(peer);
            let shard = rng.below(swarm.shards() as u64) as usize;
            swarm.tell(shard, Command::Dial { torrent: fate.torrent.id, address: from });
            // A seeder that could not reach it: it comes by itself.
            swarm.world.dial_at(peer, swarm.address, at + Duration::from_secs(30));
        } else {
            swarm.world.dial_at(peer, swarm.address, at);
        }
    }
}

fn add_hostile(swarm: &mut Swarm, n: u8, rng: &mut Rng) {
    let behaviour = *rng.pick(Behaviour::ALL);
    let (torrent, _) = rng.pick(&swarm.torrents).clone();
    let mut peer_id = PeerId(*b"-HO0001-............");
    rng::fill(rng.draw(), 0, &mut peer_id.0[8..]);
    let ours = swarm.globals.peer_id;
    let copies = if behaviour == Behaviour::Twin { 2 } else { 1 };
    for copy in 0..copies {
        let from = SocketAddr::from(([10, 66, copy, n + 1], 6_666));
        let score = swarm.score.clone();
        let hostile = Hostile::new(behaviour, torrent.clone(), score, swarm.address, peer_id, ours);
        let peer = swarm.world.add_peer(Box::new(hostile), from);
        let at = START + seconds(rng, 0, 20);
        swarm.world.dial_at(peer, swarm.address, at);
    }
}

#[track_caller]
fn clean(verdict: &Verdict) {
    assert!(
        verdict.findings.is_empty(),
        "seed {} (SEEDRING_SIM_SEED={} runs it alone): {:#?}\n{:?}\n{}",
        verdict.seed,
        verdict.seed,
        verdict.findings,
        verdict.score,
        verdict.tail
    );
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SEEDRING_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDRING_SIM_SEEDS").unwrap_or(200),
    }
}

#[test]
fn swarms_in_storms() {
    let mut hits = Faults::none();
    let mut ended = BTreeMap::<&str, u32>::new();
    let mut cut = BTreeMap::<&str, u32>::new();
    let (mut bytes, mut complete, mut virtual_time) = (0, 0, Duration::ZERO);
    let mut failures = Vec::new();
    let all = seeds();
    let alone = all.end - all.start == 1;
    for seed in all {
        let verdict = match std::panic::catch_unwind(|| run(seed, Wish::default())) {
            Ok(verdict) => verdict,
            Err(_) => {
                failures.push(format!("seed {seed}: panicked"));
                continue;
            }
        };
        if !verdict.findings.is_empty() {
            failures.push(format!("seed {seed}: {:?}", verdict.findings));
            if alone {
                clean(&verdict);
            }
        }
        hits.add_hits(&verdict.faults);
        verdict.score.ended.iter().for_each(|(k, n)| *ended.entry(k).or_default() += n);
        verdict.score.cut.iter().for_each(|(k, n)| *cut.entry(k).or_default() += n);
        bytes += verdict.score.bytes;
        complete += verdict.score.complete;
        virtual_time += verdict.took;
    }
    println!("{bytes} bytes, {complete} leeches complete, {} virtual s", virtual_time.as_secs());
    println!("ended: {ended:?}\ncut: {cut:?}");
    FaultKind::ALL.iter().for_each(|&kind| println!("{kind:?}: {}", hits.hits(kind)));
    let shown = failures.len().min(20);
    assert!(failures.is_empty(), "{} seeds: {:#?}", failures.len(), &failures[..shown]);
    if alone {
        return;
    }
    let possible = |kind: &FaultKind| *kind != FaultKind::TableFull && !kind.is_of_writing();
    let missed: Vec<_> = hits.never_hit().into_iter().filter(possible).collect();
    assert!(missed.is_empty(), "never hit: {missed:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..12 {
        let (a, b) = (run(seed, Wish::default()), run(seed, Wish::default()));
        assert_eq!((a.trace, a.entries, a.took), (b.trace, b.entries, b.took), "seed {seed}");
        assert_eq!(a.score.bytes, b.score.bytes, "seed {seed}");
    }
}

#[test]
fn planted_bugs_are_found() {
    for &plant in Plant::ALL {
        let found = (0..60).find_map(|seed| {
            let wish = Wish { plant: Some(plant), calm: true };
            let found = std::panic::catch_unwind(|| run(seed, wish).findings.into_iter().next());
            let asserted = || Some("an assertion of the shard's own".to_owned());
            found.unwrap_or_else(|_| asserted()).map(|what| (seed, what))
        });
        let (seed, what) = found.unwrap_or_else(|| panic!("{plant:?} was not found"));
        println!("{plant:?}: seed {seed}: {what}");
    }
}

/// A calm swarm of `leeches` that all want one torrent of `bytes`.
fn calm(leeches: u8, bytes: u64, shards: usize, prepare: impl FnOnce(&mut Swarm)) -> Swarm {
    let habits = Habits { sequential: false, ..Habits::plain() };
    swarm_of(Faults::none(), habits, leeches, bytes, shards, prepare)
}

fn swarm_of(
    faults: Faults,
    habits: Habits,
    leeches: u8,
    bytes: u64,
    shards: usize,
    prepare: impl FnOnce(&mut Swarm),
) -> Swarm {
    let world = World::new(7, faults);
    world.set_link(Some(Link::FAST));
    let plan = Plan { shards, pool_bytes: 64 << 20, ..Plan::default() };
    let mut swarm = Swarm::new(world, plan);
    let mut rng = Rng::new(7);
    let torrent = SimTorrent::plain(0, bytes, 256 << 10, &mut rng);
    let contents = torrent.contents(false);
    let torrent = swarm.add(torrent, |shared| {
        shared.pieces.set_all_verified(true);
        shared.pieces.set_all_offered(true);
        shared.contents.store(Some(contents));
    });
    prepare(&mut swarm);
    for n in 0..leeches {
        let score = swarm.score.clone();
        let (habits, changed) = (habits.clone(), Vec::new());
        let leech =
            Leech::new(torrent.clone(), habits, score, swarm.address, changed, true, &mut rng);
        let from = SocketAddr::from(([10, 2, n, 1], 7_000));
        let peer = swarm.world.add_peer(Box::new(leech), from);
        swarm.world.dial_at(peer, swarm.address, START + Duration::from_millis(u64::from(n) * 37));
    }
    swarm
}

/// Bytes that leeches got between two moments, as a part of what the limit allows.
fn ratio_of_limit(swarm: &mut Swarm, limit: u64, from_s: u64, to_s: u64) -> f64 {
    swarm.run(Duration::from_secs(from_s), |_| false);
    let before = swarm.score.borrow().bytes;
    swarm.run(Duration::from_secs(to_s), |_| false);
    let got = swarm.score.borrow().bytes - before;
    got as f64 / (limit * (to_s - from_s)) as f64
}

#[test]
fn rate_limits_hold_within_two_percent_in_virtual_time() {
    for (limit, shards, of_torrent) in [
        (200_000, 1, false),
        (1_000_000, 1, false),
        (1_000_000, 3, false),
        (5_000_000, 2, false),
        (1_000_000, 2, true),
    ] {
        let mut swarm = calm(12, 40 * limit / 12 + (4 << 20), shards, |swarm| {
            if of_torrent {
                swarm.torrents[0].1.upload.set(Some(limit));
            } else {
                swarm.globals.upload.set(Some(limit));
            }
        });
        let ratio = ratio_of_limit(&mut swarm, limit, 5, 35);
        assert!((0.98..=1.02).contains(&ratio), "{limit} B/s, {shards} shards: {ratio}");
        assert_eq!(swarm.stop().0, Vec::<String>::new());
    }
}

#[test]
fn nobody_who_is_interested_starves() {
    // Two slots for ten leeches: everybody has a turn within a few minutes.
    let mut swarm = calm(10, 64 << 20, 1, |swarm| {
        swarm.globals.upload.set(Some(400_000));
        swarm.tell_all(|| Command::Slots(2));
    });
    swarm.run(Duration::from_secs(400), |_| false);
    let got = swarm.score.borrow().by_peer.clone();
    assert_eq!(got.len(), 10, "bytes by peer: {got:?}");
    assert_eq!(swarm.stop().0, Vec::<String>::new());
    // A limit and no slots: all of a shard get about the same. Turns are whole pieces, and what was
    // given least goes first, which makes it a little uneven. Shards share the limit by chance, so
    // that one connection alone on its shard may get more than those on the other.
    for shards in [1, 2, 3] {
        let limit = |swarm: &mut Swarm| swarm.globals.upload.set(Some(500_000));
        let mut swarm = calm(10, 40 << 20, shards, limit);
        swarm.run(Duration::from_secs(60), |_| false);
        let got = swarm.score.borrow().by_peer.clone();
        let least = got.values().min().copied().unwrap_or(0);
        let most = got.values().max().copied().unwrap_or(0);
        let fair = if shards == 1 { least * 4 > most * 3 } else { least * 40 > most };
        assert!(got.len() == 10 && fair, "{shards} shards, bytes by peer: {got:?}");
        assert_eq!(swarm.stop().0, Vec::<String>::new());
    }
}

/// Who does not hear rejects is choked for a round where a disk fails for a while, and goes on
/// then; by its own patience it would wait for half a minute.
#[test]
fn dropped_requests_are_asked_again_without_the_fast_extension() {
    for slots in [u32::MAX, 4] {
        let mut faults = Faults::none().with(FaultKind::ReadFailed, 1000);
        faults.until_ns = Duration::from_secs(3).as_nanos() as u64;
        let habits = Habits { fast: false, ..Habits::plain() };
        let mut swarm = swarm_of(faults, habits, 3, 8 << 20, 1, |swarm| {
            swarm.tell_all(|| Command::Slots(slots));
        });
        let all = |swarm: &Swarm| swarm.score.borrow().complete == 3;
        assert!(swarm.run(Duration::from_secs(18), all), "{:?}", swarm.score.borrow());
        assert!(swarm.troubles > 0 && swarm.stats(0).rejected > 0, "the disk failed");
        let (findings, stats) = swarm.stop();
        assert_eq!((findings, miscounted(&stats)), (Vec::new(), None));
    }
}

/// Of a torrent whose second file was not wanted, that file is not there: a peer that reads in
/// order up to it does not make it a trouble.
#[test]
fn what_is_not_here_is_not_read_ahead() {
    let world = World::new(8, Faults::none());
    world.set_link(Some(Link::FAST));
    let plan = Plan { shards: 1, pool_bytes: 64 << 20, ..Plan::default() };
    let (mut swarm, mut rng) = (Swarm::new(world, plan), Rng::new(8));
    let files = [("first", 2 << 20), ("second", 2 << 20)];
    let torrent = SimTorrent::of_files(0, 256 << 10, &files, &mut rng);
    let contents = torrent.contents(false);
    let torrent = swarm.add(torrent, |shared| {
        for piece in (0..8).map(PieceIndex) {
            shared.pieces.set_verified(piece, true);
            shared.pieces.set_offered(piece, true);
        }
        shared.contents.store(Some(contents));
    });
    let root = swarm.world.first_directory();
    swarm.world.with_disk(|disk| disk.unlink(root, &torrent.path(1), 0));
    let (habits, score) = (Habits::plain(), swarm.score.clone());
    let leech = Leech::new(torrent, habits, score, swarm.address, Vec::new(), false, &mut rng);
    let peer = swarm.world.add_peer(Box::new(leech), SocketAddr::from(([10, 2, 0, 1], 7_000)));
    swarm.world.dial_at(peer, swarm.address, START);
    let half = |swarm: &Swarm| swarm.score.borrow().bytes >= 2 << 20;
    assert!(swarm.run(Duration::from_secs(10), half), "{:?}", swarm.score.borrow());
    swarm.run(Duration::from_secs(12), |_| false);
    assert_eq!((swarm.troubles, swarm.stop().0), (0, Vec::new()));
}
