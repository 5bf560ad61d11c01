//! A swarm of engines of ours, in one virtual world: how long it takes beside the least that is
//! possible, and how evenly it is carried.
//!
//! Owns: the shape of the swarm, what is asked of it. Never: how an engine chooses, real time.
//! Flow: engines, one of them with everything -> run until all have it -> figures, held against
//! `figures::ideal_time` and Jain's index.
//!
//! The environment may set: `SEEDRING_FLEET_ENGINES` (the seed included; the long form is 50),
//! `SEEDRING_FLEET_MIB`, `SEEDRING_FLEET_KIB` (what each gives a second), `SEEDRING_FLEET_TRACE`
//! (a line for each virtual second), `SEEDRING_SIM_SEEDS` and `SEEDRING_SIM_SEED` as elsewhere.

use std::time::Duration;

use seedring_tests::{
    figures::{fairness, ideal_time, spread},
    sim::{
        Faults, Link, Rng, World,
        fleet::Fleet,
        swarm::{Plan, Swarm},
        torrent::SimTorrent,
        watch::Watch,
    },
};

const ENGINES: u8 = 12;
const MIB: u64 = 16;
/// What each engine gives a second, the seed as well as the leeches.
const UP_KIB: u64 = 256;
/// What one connection carries a second either way; an engine takes from all of its connections
/// at once, so that no download rate binds.
const LINK: Link = Link {
    latency_ns: 20_000_000,
    ns_per_kib: 1_000,
    queue_bytes: 256 << 10,
    window_bytes: 1 << 20,
};
const PIECE_BYTES: u32 = 128 << 10;
const HOURS: Duration = Duration::from_secs(4 * 3_600);

/// Beside the ideal, to which nothing is added for the way of a piece from peer to peer.
const RATIO_MAX: f64 = 1.3;
const FAIRNESS_MIN: f64 = 0.9;

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn seeds(short: u64) -> std::ops::Range<u64> {
    match number("SEEDRING_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDRING_SIM_SEEDS").unwrap_or(short),
    }
}

/// Engine 0 has everything, the others nothing.
fn fleet(seed: u64, engines: u8, bytes: u64, up: u64) -> Fleet {
    let world = World::new(seed, Faults::none());
    world.set_link(Some(LINK));
    let mut fleet = Fleet::new(world, Plan::default(), engines);
    let mut id = None;
    for (number, engine) in fleet.engines.iter_mut().enumerate() {
        engine.globals.upload.set(Some(up));
        let torrent = SimTorrent::plain(0, bytes, PIECE_BYTES, &mut Rng::new(seed));
        if number > 0 {
            engine.add_download(torrent, |_| {});
            continue;
        }
        id = Some(torrent.id);
        let contents = torrent.contents(false);
        engine.add(torrent, |shared| {
            shared.pieces.set_all_verified(true);
            shared.pieces.set_all_offered(true);
            shared.contents.store(Some(contents));
        });
    }
    fleet.connect(id.expect("the first engine made it"));
    fleet
}

/// How a swarm shared.
#[derive(Debug)]
struct Figures {
    /// The time that all took, in ideal times.
    ratio: f64,
    /// Jain's index of what the leeches gave.
    fairness: f64,
}

fn share(seed: u64, engines: u8, bytes: u64, up: u64) -> Figures {
    let mut fleet = fleet(seed, engines, bytes, up);
    let began = fleet.world.now();
    let mut watch =
        number::<u8>("SEEDRING_FLEET_TRACE").map(|_| Watch::new(&fleet, up, PIECE_BYTES));
    let done = fleet.run(HOURS, |fleet| {
        watch.iter_mut().for_each(|watch| watch.look(fleet));
        fleet.engines.iter().all(Swarm::is_loaded)
    });
    watch.iter().flat_map(|watch| &watch.lines).for_each(|line| println!("{line}"));
    assert!(done, "after {:?}: {}", fleet.world.now(), fleet.state());
    let took = fleet.world.now() - began;
    let leeches = &fleet.engines[1..];
    let ideal = ideal_time(bytes, up, &vec![up; leeches.len()], None);
    let given: Vec<u64> = leeches.iter().map(Swarm::uploaded_bytes).collect();
    let mut at: Vec<Duration> =
        leeches.iter().filter_map(|leech| leech.loadings.all[0].complete_at).collect();
    at.sort_unstable();
    let figures =
        Figures { ratio: took.as_secs_f64() / ideal.as_secs_f64(), fairness: fairness(&given) };
    let all_bytes = fleet.engines.iter().map(Swarm::uploaded_bytes).sum::<u64>();
    println!(
        "seed {seed}: {engines} engines, {} MiB: {:.1} s, ideal {:.1} s, ratio {:.3}, fairness of \
         upload {:.3}, the seed gave {:.2} copies, {:.1} % came twice, complete from {:.1} s \
         on, nine in ten at {:.1} s",
        bytes >> 20,
        took.as_secs_f64(),
        ideal.as_secs_f64(),
        figures.ratio,
        figures.fairness,
        fleet.engines[0].uploaded_bytes() as f64 / bytes as f64,
        all_bytes as f64 / (bytes * leeches.len() as u64) as f64 * 100.0 - 100.0,
        (at[0] - began).as_secs_f64(),
        (at[(at.len() * 9).div_ceil(10) - 1] - began).as_secs_f64(),
    );
    assert!(fleet.engines.iter().all(|engine| engine.had_and_not_there().is_empty()));
    assert_eq!(fleet.stop(), Vec::<String>::new());
    figures
}

#[test]
fn a_swarm_of_engines_completes_near_the_ideal_and_evenly() {
    let engines = number("SEEDRING_FLEET_ENGINES").unwrap_or(ENGINES);
    let bytes = number("SEEDRING_FLEET_MIB").unwrap_or(MIB) << 20;
    let up = number("SEEDRING_FLEET_KIB").unwrap_or(UP_KIB) << 10;
    let runs: Vec<Figures> = seeds(2).map(|seed| share(seed, engines, bytes, up)).collect();
    let mut ratios: Vec<f64> = runs.iter().map(|run| run.ratio).collect();
    let mut fair: Vec<f64> = runs.iter().map(|run| run.fairness).collect();
    println!("{engines} engines, {} seeds: {}", runs.len(), spread(&mut ratios, &mut fair));
    for run in runs {
        assert!(run.ratio <= RATIO_MAX && run.fairness >= FAIRNESS_MIN, "{run:?}");
    }
}

#[test]
fn a_swarm_of_engines_gives_the_same_trace_for_the_same_seed() {
    let trace = |seed| {
        let mut fleet = fleet(seed, 5, 2 << 20, UP_KIB << 10);
        fleet.run(Duration::from_secs(20), |_| false);
        let world = fleet.world.clone();
        drop(fleet.stop());
        (world.trace_hash(), world.trace_entries())
    };
    assert_eq!(trace(3), trace(3));
    assert_ne!(trace(3), trace(4));
}
