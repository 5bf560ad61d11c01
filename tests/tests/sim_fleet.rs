//! A swarm of engines of ours, in one virtual world: how long it takes beside the least that is
//! possible, and how evenly it is carried.
//!
//! Owns: the shape of the swarm, the formula of the ideal time, the index of fairness.
//! Never: how an engine chooses, real time. Flow: engines, one of them with everything -> run until
//! all have it -> figures. `SEEDRING_FLEET_ENGINES` says how many engines, the seed included,
//! `SEEDRING_FLEET_MIB` of how many MiB: the long form is 50 of 32. `SEEDRING_FLEET_SLOTS` bounds
//! the slots of each.

use std::{sync::atomic::Ordering, time::Duration};

use seedring_tests::{
    figures::{fairness, ideal_time},
    sim::{
        Faults, Link, Rng, World,
        fleet::Fleet,
        swarm::{Plan, Swarm},
        torrent::SimTorrent,
    },
};

const ENGINES: u8 = 12;
const MIB: u64 = 16;
/// What each engine gives a second, the seed as well as the leeches.
const UP: u64 = 256 << 10;
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

/// The goal is 1.3. 1.34 is what 12 engines need and 1.91 what 50 do: in each case as often as the
/// seed gives a copy, since many take the same rare piece of it at once.
const RATIO_MAX: f64 = 1.6;
const RATIO_MAX_OF_MANY: f64 = 2.2;
const FAIRNESS_MIN: f64 = 0.9;

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Engine 0 has everything, the others nothing.
fn fleet(seed: u64, engines: u8, bytes: u64) -> Fleet {
    let world = World::new(seed, Faults::none());
    world.set_link(Some(LINK));
    let mut fleet = Fleet::new(world, Plan::default(), engines);
    let mut id = None;
    for (number, engine) in fleet.engines.iter_mut().enumerate() {
        engine.globals.upload.set(Some(UP));
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
    let slots = number("SEEDRING_FLEET_SLOTS", u32::MAX);
    for (_, shared) in fleet.engines.iter().flat_map(|engine| &engine.torrents) {
        shared.slots.store(slots, Ordering::Relaxed);
    }
    fleet.connect(id.expect("the first engine made it"));
    fleet
}

#[test]
fn a_swarm_of_engines_completes_near_the_ideal_and_evenly() {
    let engines = number("SEEDRING_FLEET_ENGINES", ENGINES);
    let bytes = number("SEEDRING_FLEET_MIB", MIB) << 20;
    let leeches = u64::from(engines) - 1;
    let mut fleet = fleet(9, engines, bytes);
    let began = fleet.world.now();
    let loaded = |fleet: &Fleet| fleet.engines.iter().all(Swarm::is_loaded);
    let done = fleet.run(HOURS, loaded);
    assert!(done, "after {:?}: {}", fleet.world.now(), fleet.state());
    let took = fleet.world.now() - began;
    let ideal = ideal_time(bytes, UP, &vec![UP; leeches as usize], None);
    let ratio = took.as_secs_f64() / ideal.as_secs_f64();
    let given: Vec<u64> = fleet.engines[1..].iter().map(Swarm::uploaded_bytes).collect();
    let fair = fairness(&given);
    let from_seed = fleet.engines[0].uploaded_bytes() as f64 / bytes as f64;
    println!(
        "{engines} engines, {} MiB: {:.1} s, ideal {:.1} s, ratio {ratio:.2}, fairness of upload \
         {fair:.3}, the seed gave {from_seed:.2} copies",
        bytes >> 20,
        took.as_secs_f64(),
        ideal.as_secs_f64(),
    );
    assert!(fleet.engines.iter().all(|engine| engine.had_and_not_there().is_empty()));
    let ratio_max = if engines > ENGINES { RATIO_MAX_OF_MANY } else { RATIO_MAX };
    assert!(ratio < ratio_max, "{took:?}, the ideal is {ideal:?}");
    assert!(fair >= FAIRNESS_MIN, "{fair}: {given:?}");
    assert_eq!(fleet.stop(), Vec::<String>::new());
}

#[test]
fn a_swarm_of_engines_gives_the_same_trace_for_the_same_seed() {
    let trace = |seed| {
        let mut fleet = fleet(seed, 5, 2 << 20);
        fleet.run(Duration::from_secs(20), |_| false);
        let world = fleet.world.clone();
        drop(fleet.stop());
        (world.trace_hash(), world.trace_entries())
    };
    assert_eq!(trace(3), trace(3));
    assert_ne!(trace(3), trace(4));
}
