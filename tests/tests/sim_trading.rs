//! Simulated swarms in which who gives what to whom is looked at.
//!
//! Owns: super seeding, pieces that are lost. Never: real time, files or sockets.
//! Flow: engines in one world -> run -> what each has given.

use std::time::Duration;

use seedring_proto::{swarm::picker::Pieces, units::PieceIndex};
use seedring_shard::torrent::{Choice, Shared};
use seedring_tests::sim::{
    Faults, Link, Rng, World,
    fleet::Fleet,
    swarm::{Plan, Swarm},
    torrent::SimTorrent,
};

const HOUR: Duration = Duration::from_secs(3_600);
const RATE: u64 = 1 << 20;

fn torrent(bytes: u64) -> SimTorrent {
    SimTorrent::plain(0, bytes, 128 << 10, &mut Rng::new(9))
}

/// One that has all of a torrent and others that download it, at the same rate, all connected.
fn fleet(engines: u8, bytes: u64, plan: Plan, seed: impl Fn(&Shared)) -> Fleet {
    let world = World::new(u64::from(engines), Faults::none());
    world.set_link(Some(Link::FAST));
    let mut fleet = Fleet::new(world, plan, engines);
    let id = torrent(bytes).id;
    for (n, engine) in fleet.engines.iter_mut().enumerate() {
        engine.globals.upload.set(Some(RATE));
        if n > 0 {
            engine.add_download(torrent(bytes), |_| {});
            continue;
        }
        let contents = torrent(bytes).contents(false);
        engine.add(torrent(bytes), |shared| {
            shared.pieces.set_all_verified(true);
            shared.pieces.set_all_offered(true);
            shared.contents.store(Some(contents));
            seed(shared);
        });
    }
    fleet.connect(id);
    fleet
}

fn super_seeds(shared: &Shared) {
    shared.super_seeding.store(true, std::sync::atomic::Ordering::Relaxed);
}

fn load(fleet: &mut Fleet) -> Duration {
    let began = fleet.world.now();
    let loaded = |fleet: &Fleet| fleet.engines.iter().all(Swarm::is_loaded);
    let done = fleet.run(HOUR, loaded);
    assert!(done, "after {:?}: {}", fleet.world.now(), fleet.state());
    assert!(fleet.engines.iter().all(|engine| engine.had_and_not_there().is_empty()));
    fleet.world.now() - began
}

#[test]
fn a_super_seed_gives_each_piece_about_once() {
    let bytes = 12 << 20;
    for (engines, shards) in [(3, 1), (8, 1), (16, 2)] {
        let plan = Plan { shards, ..Plan::default() };
        let given = |seed: fn(&Shared)| {
            let mut fleet = fleet(engines, bytes, plan, seed);
            let took = load(&mut fleet);
            let given = fleet.engines[0].uploaded_bytes() as f64 / bytes as f64;
            println!("{engines} engines: {took:?}, the seed gave {given:.3} of the torrent");
            assert_eq!(fleet.stop(), Vec::<String>::new());
            (took, given)
        };
        let (took, once) = given(super_seeds);
        let (_, plain) = given(|_| {});
        assert!((1.0..=1.1).contains(&once), "{engines} engines: {once}; else {plain}");
        assert!(took < Duration::from_secs(60), "{engines} engines: {took:?}");
    }
}

#[test]
fn one_peer_alone_gets_all_of_a_super_seed_at_the_rate_of_a_plain_one() {
    let bytes = 12 << 20;
    let mut fleet = fleet(2, bytes, Plan::default(), super_seeds);
    let took = load(&mut fleet);
    assert!(took < Duration::from_secs(15), "{took:?}, the ideal is 12 s");
    assert_eq!(fleet.engines[0].uploaded_bytes(), bytes);
    assert_eq!(fleet.stop(), Vec::<String>::new());
}

/// A file that is another one than it was: each piece that is asked for fails, and is taken back.
#[test]
fn what_a_seed_finds_bad_is_taken_back_from_those_who_heard_of_it() {
    let bytes = 1 << 20;
    let unverified = |shared: &Shared| shared.pieces.set_all_verified(false);
    let mut fleet = fleet(2, bytes, Plan::default(), unverified);
    let seed = &mut fleet.engines[0];
    let (known, root) = (seed.torrents[0].0.clone(), seed.root);
    seed.spoilt.insert(known.id);
    fleet.world.with_disk(|disk| {
        let node = disk.find(root, known.path(0).as_bytes()).expect("it was written");
        disk.change(node, 7, 0);
    });
    let counted = |fleet: &Fleet| -> Vec<u32> {
        let loading = &fleet.engines[1].loadings.all[0];
        let choice = Choice { download: &loading.download, had: &loading.shared.pieces };
        (0..choice.count()).map(|piece| choice.availability(PieceIndex(piece))).collect()
    };
    fleet.run(fleet.world.now() + Duration::from_secs(2), |fleet| counted(fleet)[0] > 0);
    let none = |fleet: &Fleet| counted(fleet).iter().all(|peers| *peers == 0);
    let until = fleet.world.now() + Duration::from_secs(120);
    assert!(fleet.run(until, none), "{:?}, {}", counted(&fleet), fleet.state());
    assert_eq!(fleet.engines[1].connections(), 1, "it stays");
    assert_eq!(fleet.stop(), Vec::<String>::new());
}
