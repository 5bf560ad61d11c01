//! Shards that download, in simulated swarms.
//!
//! Owns: seeds and their habits drawn from a number, and what must hold of a download at any moment
//! and at its end. Never: real time, files or sockets. Flow: seed -> torrent, seeds, faults -> run
//! -> verdict. `SEEDRING_SIM_SEEDS` says how many seeds, `SEEDRING_SIM_SEED` runs one alone.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use seedring_proto::units::PieceIndex;
use seedring_shard::{Command, torrent::Download};
use seedring_tests::sim::{
    FaultKind, Faults, Link, Rng, Survives, World,
    planted::Plant,
    seed::{Gifts, Malice, Manners, Seed},
    swarm::{Plan, Swarm},
    torrent::SimTorrent,
};

const START: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const BLOCK: u64 = 16 << 10;

/// A swarm that downloads one torrent, and what its seeds gave.
struct Run {
    swarm: Swarm,
    torrent: Rc<SimTorrent>,
    gifts: Gifts,
    seeds: u8,
}

impl Run {
    fn new(
        world: World,
        shards: usize,
        torrent: SimTorrent,
        prepare: impl FnOnce(&Download),
    ) -> Run {
        Run::planted(world, Plan { shards, ..Plan::default() }, torrent, prepare)
    }

    fn planted(
        world: World,
        plan: Plan,
        torrent: SimTorrent,
        prepare: impl FnOnce(&Download),
    ) -> Run {
        let mut swarm = Swarm::new(world, plan);
        let torrent = swarm.add_download(torrent, prepare);
        Run { swarm, torrent, gifts: Gifts::default(), seeds: 0 }
    }

    fn pieces(&self) -> u32 {
        self.torrent.layout.piece_count()
    }

    /// A seed that comes at `at`, or waits for a shard that dials it.
    fn add(&mut self, manners: Manners, at: Duration) -> SocketAddr {
        self.seeds += 1;
        let from = SocketAddr::from(([10, 9, 0, self.seeds], 7_000));
        let waits = manners.waits;
        let (torrent, gifts, to) = (self.torrent.clone(), self.gifts.clone(), self.swarm.address);
        let seed = Seed::new(torrent, manners, gifts, to, u64::from(self.seeds));
        let peer = self.swarm.world.add_peer(Box::new(seed), from);
        if waits {
            self.swarm.world.peer_listens(peer);
            let shard = usize::from(self.seeds) % self.swarm.shards();
            let torrent = self.torrent.id;
            self.swarm.tell(shard, Command::Dial { torrent, address: from });
        } else {
            self.swarm.world.dial_at(peer, to, at);
        }
        from
    }

    /// Runs to completion, and looks each second whether what is had is there.
    fn load(&mut self, until: Duration) -> Result<Duration, String> {
        let mut look = Duration::ZERO;
        let mut lost = Vec::new();
        let done = self.swarm.run(until, |swarm| {
            if swarm.world.now() >= look {
                look = swarm.world.now() + Duration::from_secs(1);
                lost = swarm.had_and_not_there();
            }
            swarm.is_loaded() || !lost.is_empty()
        });
        if !lost.is_empty() {
            return Err(format!("had and not on the disk: {lost:?}"));
        }
        if !done {
            let l = &self.swarm.loadings.all[0];
            return Err(format!(
                "{} of {} pieces after {:?}, {} claims, {} connections, halted {}, {:?}",
                l.shared.pieces.verified_count(),
                self.pieces(),
                until,
                self.swarm.claims(),
                self.swarm.connections(),
                l.download.is_halted(),
                self.swarm.world.violations(),
            ));
        }
        Ok(self.swarm.world.now())
    }

    /// What is wrong at the end: a piece that is not there, a claim that is held, memory away.
    fn end(self) -> Vec<String> {
        let mut findings = self.swarm.had_and_not_there();
        findings.extend(self.swarm.safe_and_not_there(&self.swarm.world));
        if self.swarm.is_loaded() && self.swarm.claims() > 0 {
            findings.push(format!("{} claims are held at the end", self.swarm.claims()));
        }
        findings.extend(self.gifts.borrow().wrong.iter().cloned());
        findings.extend(self.swarm.stop().0);
        findings
    }
}

fn calm(seed: u64) -> World {
    let world = World::new(seed, Faults::none());
    world.set_link(Some(Link::FAST));
    world
}

fn seeds(short: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SEEDRING_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDRING_SIM_SEEDS").unwrap_or(short),
    }
}

/// Runs each seed, and fails with those that found something.
#[track_caller]
fn each(short: u64, run: impl Fn(u64) -> Vec<String> + std::panic::RefUnwindSafe) {
    let mut failures = Vec::new();
    for seed in seeds(short) {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(findings) if findings.is_empty() => {}
            Ok(findings) => failures.push(format!("seed {seed}: {findings:?}")),
            Err(_) => failures.push(format!("seed {seed}: panicked")),
        }
    }
    let shown = failures.len().min(10);
    assert!(failures.is_empty(), "{} seeds: {:#?}", failures.len(), &failures[..shown]);
}

/// Some pieces, drawn.
fn some(pieces: u32, per_mille: u16, rng: &mut Rng) -> Vec<bool> {
    (0..pieces).map(|_| rng.per_mille(per_mille)).collect()
}

fn habits(pieces: u32, rng: &mut Rng) -> Manners {
    let mut manners = Manners::plain(pieces, rng.between(50_000, 2_000_000));
    manners.fast = rng.per_mille(600);
    manners.waits = rng.per_mille(300);
    manners.chokes = *rng.pick(&[0, 0, 20]);
    manners.rejects = *rng.pick(&[0, 0, 50]);
    if rng.per_mille(400) {
        manners.has = some(pieces, 500, rng);
        manners.gains_every_ns = rng.per_mille(500).then_some(1_000_000_000);
    }
    if rng.per_mille(300) {
        manners.vanishes_at = Some(rng.between(1, 30));
    }
    if rng.per_mille(150) {
        manners.bytes_per_s = 2_000;
    }
    manners
}

#[test]
fn one_seed_gives_one_shard_everything_in_the_time_of_its_rate() {
    let mut rng = Rng::new(1);
    let torrent = SimTorrent::plain(0, 24 << 20, 256 << 10, &mut rng);
    let mut run = Run::new(calm(1), 1, torrent, |_| {});
    run.add(Manners::plain(run.pieces(), 2 << 20), START);
    let took = run.load(HOUR).expect("complete") - START;
    let ideal = Duration::from_secs(12);
    assert!(took < ideal.mul_f64(2.0), "{took:?}, the ideal is {ideal:?}");
    assert_eq!(run.gifts.borrow().doubles(), 0);
    assert_eq!(run.end(), Vec::<String>::new());
}

#[test]
fn many_seeds_add_up_and_little_comes_twice() {
    for shards in [1, 2] {
        let mut rng = Rng::new(2);
        let torrent = SimTorrent::plain(0, 64 << 20, 256 << 10, &mut rng);
        let mut run = Run::new(calm(2), shards, torrent, |_| {});
        for _ in 0..20 {
            run.add(Manners::plain(run.pieces(), 200_000), START);
        }
        let took = run.load(HOUR).expect("complete") - START;
        let ideal = Duration::from_secs_f64(f64::from(64 << 20) / 4e6);
        let doubles = run.gifts.borrow().doubles();
        println!("{shards} shards: {took:?}, ideal {ideal:?}, {doubles} blocks twice");
        assert!(took < ideal.mul_f64(1.3), "{shards} shards: {took:?}, the ideal is {ideal:?}");
        assert!(doubles * BLOCK < (64 << 20) * 4 / 100, "{doubles} blocks came twice");
        assert_eq!(run.end(), Vec::<String>::new());
    }
}

#[test]
fn swarms_of_all_habits_complete_in_any_weather() {
    each(40, |seed| {
        let mut rng = Rng::new(seed ^ 0xd0);
        let mut faults = match seed % 3 {
            0 => Faults::weather(),
            1 => Faults::storm(&mut rng),
            _ => Faults::storm_on_writes(&mut rng),
        };
        faults.set(FaultKind::TableFull, 0);
        faults.until_ns = rng.between(30, 120) * 1_000_000_000;
        let world = World::new(seed, faults);
        let torrent = SimTorrent::random(0, &mut rng);
        let shards = rng.between(1, 3) as usize;
        let mut run = Run::new(world, shards, torrent, |_| {});
        for _ in 0..rng.between(1, 12) {
            let at = START + Duration::from_millis(rng.below(10_000));
            run.add(habits(run.pieces(), &mut rng), at);
        }
        // Somebody has everything and stays.
        run.add(Manners::plain(run.pieces(), 300_000), START);
        let result = run.load(HOUR);
        result.err().into_iter().chain(run.end()).collect()
    });
}

#[test]
fn peers_that_have_parts_are_enough_together() {
    each(10, |seed| {
        let mut rng = Rng::new(seed ^ 0xaa);
        let torrent = SimTorrent::plain(0, 4 << 20, 128 << 10, &mut rng);
        let mut run = Run::new(World::new(seed, Faults::weather()), 2, torrent, |_| {});
        let halves = some(run.pieces(), 500, &mut rng);
        let others: Vec<bool> = halves.iter().map(|has| !has).collect();
        for has in [halves, others] {
            let mut manners = Manners::plain(run.pieces(), 500_000);
            manners.has = has;
            run.add(manners, START);
        }
        for _ in 0..6 {
            let mut manners = habits(run.pieces(), &mut rng);
            manners.has = some(run.pieces(), 300, &mut rng);
            run.add(manners, START);
        }
        let result = run.load(HOUR);
        result.err().into_iter().chain(run.end()).collect()
    });
}

#[test]
fn who_poisons_is_named_and_nobody_else() {
    let mut named = 0;
    for seed in seeds(20) {
        let mut rng = Rng::new(seed ^ 0xbad);
        let torrent = SimTorrent::plain(0, 4 << 20, 128 << 10, &mut rng);
        let id = torrent.id;
        let mut run = Run::new(World::new(seed, Faults::weather()), 2, torrent, |_| {});
        run.swarm.spoilt.insert(id);
        let malice = [Malice::Poison(300), Malice::Unrequested, Malice::Endless, Malice::Lies];
        let mut poisoners = Vec::new();
        for malice in malice {
            let mut manners = Manners::plain(run.pieces(), 400_000);
            manners.malice = malice;
            manners.fast = rng.per_mille(500);
            let address = run.add(manners, START);
            // What nobody asked for is another block's bytes; asked for since, it is poison.
            if matches!(malice, Malice::Poison(_) | Malice::Unrequested) {
                poisoners.push(address.ip());
            }
        }
        for _ in 0..4 {
            run.add(Manners::plain(run.pieces(), 200_000), START);
        }
        let result = run.load(HOUR);
        assert_eq!(result.err(), None, "seed {seed}");
        let banned = run.swarm.loadings.poisoned.clone();
        assert!(banned.iter().all(|b| poisoners.contains(b)), "seed {seed}: {banned:?}");
        named += banned.len();
        assert_eq!(run.end(), Vec::<String>::new(), "seed {seed}");
    }
    assert!(named > 0, "nobody was named");
}

#[test]
fn what_is_synced_survives_the_loss_of_power_at_any_moment() {
    each(20, |seed| {
        let mut rng = Rng::new(seed ^ 0xd2);
        let mut faults = Faults::storm_on_writes(&mut rng);
        faults.set(FaultKind::TableFull, 0).set(FaultKind::SyncFailed, 100);
        faults.until_ns = 60_000_000_000;
        let torrent = SimTorrent::random(0, &mut rng);
        let shards = rng.between(1, 2) as usize;
        let mut run = Run::new(World::new(seed, faults), shards, torrent, |_| {});
        for _ in 0..3 {
            run.add(Manners::plain(run.pieces(), rng.between(20_000, 200_000)), START);
        }
        let mut findings = Vec::new();
        for cut in 0..20 {
            let next = run.swarm.world.now() + Duration::from_millis(rng.between(1, 3_000));
            run.swarm.run(next, |_| false);
            let last = run.swarm.world.with_disk(|disk| disk.last_change());
            for survives in [Survives::Prefix(0), Survives::Prefix(last), Survives::Chance] {
                let after = run.swarm.world.reboot(seed, Faults::none(), survives);
                let lost = run.swarm.safe_and_not_there(&after);
                if !lost.is_empty() {
                    findings.push(format!("cut {cut}, {survives:?}: lost {lost:?}"));
                }
            }
        }
        findings.extend(run.end());
        findings
    });
}

/// A download of 2 MiB in which the power goes, each time that something was written or became
/// safe, with each prefix of the writes that no sync covers: what was lost of what was safe, and
/// how many prefixes there were.
fn every_prefix(seed: u64, plant: Plant) -> (Vec<String>, u32) {
    let mut rng = Rng::new(seed ^ 0xd3);
    let torrent = SimTorrent::plain(0, 2 << 20, 64 << 10, &mut rng);
    let plan = Plan { shards: 2, plant, ..Plan::default() };
    let mut run = Run::planted(World::new(seed, Faults::weather()), plan, torrent, |_| {});
    for _ in 0..3 {
        run.add(Manners::plain(run.pieces(), rng.between(100_000, 400_000)), START);
    }
    let download = run.swarm.loadings.all[0].download.clone();
    let (mut findings, mut seen, mut prefixes) = (Vec::new(), None, 0);
    let mut safe = 0;
    while safe < run.pieces() && run.swarm.world.now() < HOUR {
        let next = run.swarm.world.now() + Duration::from_millis(2);
        run.swarm.run(next, |_| false);
        safe = download.synced_bitfield().iter().map(|byte| byte.count_ones()).sum();
        let (first, last) =
            run.swarm.world.with_disk(|disk| (disk.first_unsynced(), disk.last_change()));
        if seen.replace((last, safe)) == Some((last, safe)) {
            continue;
        }
        // Before the first of them: none of them.
        for prefix in first.unwrap_or(last).saturating_sub(1)..=last {
            let after = run.swarm.world.reboot(seed, Faults::none(), Survives::Prefix(prefix));
            let lost = run.swarm.safe_and_not_there(&after);
            prefixes += 1;
            if !lost.is_empty() {
                findings.push(format!("{prefix} of {last}: lost {lost:?}"));
            }
        }
    }
    assert_eq!(safe, run.pieces(), "seed {seed}: it does not come to its end");
    findings.extend(run.end());
    (findings, prefixes)
}

#[test]
fn what_is_synced_survives_every_prefix_of_the_writes() {
    for seed in seeds(3) {
        let (findings, prefixes) = every_prefix(seed, Plant::None);
        assert_eq!(findings, Vec::<String>::new(), "seed {seed}");
        assert!(prefixes > 100, "seed {seed}: {prefixes} prefixes");
    }
    let found = |plant| (0..5).any(|seed| !every_prefix(seed, plant).0.is_empty());
    assert!(found(Plant::SyncSkipped), "a sync that is not waited for");
}

#[test]
fn a_stop_in_the_middle_syncs_what_was_written() {
    for seed in seeds(10) {
        let mut rng = Rng::new(seed ^ 0x57);
        let torrent = SimTorrent::plain(0, 8 << 20, 128 << 10, &mut rng);
        let mut run = Run::new(World::new(seed, Faults::weather()), 2, torrent, |_| {});
        for _ in 0..4 {
            run.add(Manners::plain(run.pieces(), 500_000), START);
        }
        run.swarm.run(Duration::from_millis(rng.between(2_000, 5_000)), |_| false);
        let (shared, download) =
            (run.swarm.loadings.all[0].shared.clone(), run.swarm.loadings.all[0].download.clone());
        let (world, root) = (run.swarm.world.clone(), run.swarm.root);
        let torrent = run.torrent.clone();
        assert_eq!(run.end(), Vec::<String>::new(), "seed {seed}");
        let after = world.reboot(seed, Faults::none(), Survives::Chance);
        for piece in (0..torrent.layout.piece_count()).map(PieceIndex) {
            let had = shared.pieces.is_verified(piece);
            assert_eq!(had, download.is_synced(piece), "seed {seed}: {piece}");
            let there = torrent.is_on(&after, root, piece);
            assert!(!had || there, "seed {seed}: {piece} was had and is not there");
            assert!(!download.is_claimed(piece), "seed {seed}: {piece} is claimed");
        }
    }
}

/// A torrent of 4 MiB from twelve seeds; what was found, and blocks that came twice.
fn with_bug(seed: u64, plant: Plant, meddle: impl Fn(&Download)) -> (Vec<String>, u64) {
    let mut rng = Rng::new(seed);
    let torrent = SimTorrent::plain(0, 4 << 20, 64 << 10, &mut rng);
    let plan = Plan { shards: 2, plant, ..Plan::default() };
    let mut run = Run::planted(World::new(seed, Faults::weather()), plan, torrent, |_| {});
    for _ in 0..12 {
        run.add(Manners::plain(run.pieces(), 100_000), START);
    }
    run.swarm.run(Duration::from_millis(3_000), |_| false);
    meddle(&run.swarm.loadings.all[0].download);
    let mut findings: Vec<String> = run.load(HOUR).err().into_iter().collect();
    let after = run.swarm.world.reboot(seed, Faults::none(), Survives::Prefix(0));
    findings.extend(run.swarm.safe_and_not_there(&after));
    let doubles = run.gifts.borrow().doubles();
    findings.extend(run.end());
    (findings, doubles)
}

#[test]
fn planted_bugs_are_found() {
    let found = |plant, meddle: fn(&Download)| {
        (0..10).any(|seed| {
            let run = std::panic::catch_unwind(|| with_bug(seed, plant, meddle));
            run.is_err()
                || run.is_ok_and(|(findings, doubles)| !findings.is_empty() || doubles > 10)
        })
    };
    for plant in Plant::OF_WRITING {
        assert!(found(*plant, |_| {}), "{plant:?}");
    }
    // A claim that is given twice: it is free again while its holder works on.
    let twice = |download: &Download| {
        for piece in (0..64).map(PieceIndex).filter(|piece| download.is_claimed(*piece)) {
            // It says whose it is not, and gives it back all the same.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                download.release(piece, 0);
            }));
        }
    };
    assert!(found(Plant::None, twice), "a claim that is given twice");
    let (findings, _) = with_bug(0, Plant::None, |_| {});
    assert_eq!(findings, Vec::<String>::new(), "without a bug");
}

#[test]
fn a_download_that_is_exchanged_goes_on_with_the_same_peers() {
    let mut rng = Rng::new(6);
    let torrent = SimTorrent::plain(0, 8 << 20, 128 << 10, &mut rng);
    let mut run = Run::new(calm(6), 2, torrent, |_| {});
    for _ in 0..4 {
        run.add(Manners::plain(run.pieces(), 400_000), START);
        let mut partial = Manners::plain(run.pieces(), 400_000);
        partial.has = some(run.pieces(), 500, &mut rng);
        run.add(partial, START);
    }
    run.swarm.run(Duration::from_millis(2_500), |_| false);
    let before = run.swarm.connections();
    let shared = run.swarm.loadings.all[0].shared.clone();
    let other = Arc::new(Download::new(run.pieces()));
    shared.download.store(Some(other.clone()));
    let torrent = run.torrent.id;
    run.swarm.tell_all(|| Command::Look(torrent));
    // At the end those who have everything too are closed.
    let meanwhile = std::cell::Cell::new(before);
    let all = |swarm: &Swarm| {
        let complete = other.is_complete(&shared.pieces);
        if !complete {
            meanwhile.set(meanwhile.get().min(swarm.connections()));
        }
        complete
    };
    assert!(run.swarm.run(Duration::from_secs(30), all), "{:?}", run.swarm.world.violations());
    assert_eq!((before, meanwhile.get()), (8, 8));
    assert_eq!(run.end(), Vec::<String>::new());
}

#[test]
fn order_and_priorities_are_followed() {
    let mut rng = Rng::new(5);
    let torrent = SimTorrent::plain(0, 8 << 20, 256 << 10, &mut rng);
    let mut run = Run::new(calm(5), 1, torrent, |download| {
        download.set_sequential(true);
        for piece in 0..32 {
            let priority = [4, 0, 7][piece as usize % 3];
            download.set_priority(PieceIndex(piece), priority);
        }
    });
    run.add(Manners::plain(run.pieces(), 1 << 20), START);
    run.load(HOUR).expect("complete");
    let order = run.gifts.borrow().order.clone();
    let mut expected: Vec<u32> = (0..32).filter(|piece| piece % 3 == 2).collect();
    expected.extend((0..32).filter(|piece| piece % 3 == 0));
    assert_eq!(order, expected, "the urgent ones first, each kind from the front");
    assert_eq!(run.end(), Vec::<String>::new());
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| {
        let mut rng = Rng::new(seed);
        let torrent = SimTorrent::random(0, &mut rng);
        let faults = Faults::storm_on_writes(&mut rng).with(FaultKind::TableFull, 0);
        let mut run = Run::new(World::new(seed, faults), 2, torrent, |_| {});
        for _ in 0..5 {
            let manners = habits(run.pieces(), &mut rng);
            run.add(manners, START);
        }
        run.swarm.run(Duration::from_secs(30), |_| false);
        let world = run.swarm.world.clone();
        drop(run.end());
        (world.trace_hash(), world.trace_entries())
    };
    (0..5).for_each(|seed| assert_eq!(trace(seed), trace(seed), "seed {seed}"));
}
