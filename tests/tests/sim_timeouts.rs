//! The user's timeouts in virtual time: what they close, what they leave, and that a reload's new
//! values hold under open connections.
//!
//! Owns: peers that say nothing, or only that they are there. Never: real time.
//! Flow: a quiet peer -> shards -> when its connection ended.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::atomic::Ordering, time::Duration};

use seedring_proto::{
    units::{InfoHash, PeerId},
    wire::{Handshake, Reserved},
};
use seedring_shard::{Command, DialOutcome};
use seedring_tests::sim::{
    Ended, FaultKind, Faults, Link, Peer, PeerIo, Rng, World,
    swarm::{Plan, Swarm},
    torrent::SimTorrent,
};

const START: Duration = Duration::from_secs(1);
const SECOND_NS: u64 = 1_000_000_000;

/// When a connection began and when it was over, by the peer's number.
#[derive(Default, Debug)]
struct Lives {
    opened_s: [Option<f64>; 4],
    ended_s: [Option<f64>; 4],
}

/// A peer that handshakes, if it does that, and then says nothing but keep-alives.
struct Quiet {
    number: usize,
    hello: Option<InfoHash>,
    keep_alive_s: Option<u64>,
    lives: Rc<RefCell<Lives>>,
}

fn seconds(io: &PeerIo<'_>) -> f64 {
    io.now_ns() as f64 / SECOND_NS as f64
}

impl Peer for Quiet {
    fn opened(&mut self, io: &mut PeerIo<'_>) {
        self.lives.borrow_mut().opened_s[self.number] = Some(seconds(io));
        if let Some(info_hash) = self.hello {
            let peer_id = PeerId([b'0' + self.number as u8; 20]);
            io.send(&Handshake { reserved: Reserved::OURS, info_hash, peer_id }.encode());
        }
        self.timer(io, 1);
    }

    fn received(&mut self, _: &mut PeerIo<'_>, _: &[u8]) {}

    fn timer(&mut self, io: &mut PeerIo<'_>, tag: u64) {
        if tag == 0 && io.connected() {
            io.send(&[0; 4]);
        }
        if let Some(every_s) = self.keep_alive_s {
            io.timer(every_s * SECOND_NS, 0);
        }
    }

    fn ended(&mut self, io: &mut PeerIo<'_>, _: Ended) {
        self.lives.borrow_mut().ended_s[self.number] = Some(seconds(io));
        io.close();
    }
}

struct Scene {
    swarm: Swarm,
    torrent: Rc<SimTorrent>,
    lives: Rc<RefCell<Lives>>,
}

impl Scene {
    fn new(faults: Faults) -> Scene {
        let world = World::new(3, faults);
        world.set_link(Some(Link::FAST));
        let mut swarm = Swarm::new(world, Plan::default());
        let torrent = SimTorrent::plain(0, 1 << 20, 256 << 10, &mut Rng::new(3));
        let contents = torrent.contents(false);
        let torrent = swarm.add(torrent, |shared| {
            shared.pieces.set_all_verified(true);
            shared.pieces.set_all_offered(true);
            shared.contents.store(Some(contents));
        });
        Scene { swarm, torrent, lives: Rc::default() }
    }

    /// A peer at an address of its own, which waits to be dialled.
    fn peer(&mut self, number: usize, hello: bool, keep_alive_s: Option<u64>) -> SocketAddr {
        let hello = hello.then_some(self.torrent.info_hash);
        let quiet = Quiet { number, hello, keep_alive_s, lives: self.lives.clone() };
        let address = SocketAddr::from(([10, 3, number as u8, 1], 7_000));
        let peer = self.swarm.world.add_peer(Box::new(quiet), address);
        self.swarm.world.peer_listens(peer);
        address
    }

    /// The same, and it dials.
    fn comes(&mut self, number: usize, hello: bool, keep_alive_s: Option<u64>) {
        let hello = hello.then_some(self.torrent.info_hash);
        let quiet = Quiet { number, hello, keep_alive_s, lives: self.lives.clone() };
        let address = SocketAddr::from(([10, 3, number as u8, 1], 7_000));
        let peer = self.swarm.world.add_peer(Box::new(quiet), address);
        let at = self.swarm.world.now().max(START);
        self.swarm.world.dial_at(peer, self.swarm.address, at);
    }

    fn dial(&mut self, address: SocketAddr) {
        self.swarm.tell(0, Command::Dial { torrent: self.torrent.id, address });
    }

    fn run_to(&mut self, s: u64) {
        self.swarm.run(Duration::from_secs(s), |_| false);
    }

    fn ended(&self, number: usize) -> Option<f64> {
        self.lives.borrow().ended_s[number]
    }

    #[track_caller]
    fn ended_between(&self, number: usize, low_s: f64, high_s: f64) {
        let ended = self.ended(number);
        let fits = ended.is_some_and(|at| (low_s..=high_s).contains(&at));
        assert!(fits, "peer {number}: {ended:?}, wanted {low_s}..{high_s}");
    }

    #[track_caller]
    fn stop(self) {
        assert_eq!(self.swarm.stop().0, Vec::<String>::new());
    }
}

fn idle(scene: &Scene, s: u64) {
    scene.swarm.globals.idle_timeout_ms.store(s * 1_000, Ordering::Relaxed);
}

#[test]
fn who_says_nothing_is_closed_after_the_idle_timeout() {
    let mut scene = Scene::new(Faults::none());
    idle(&scene, 40);
    scene.comes(0, true, None);
    scene.comes(1, true, Some(30));
    scene.run_to(100);
    scene.ended_between(0, 41.0, 42.5);
    assert_eq!(scene.ended(1), None, "it says that it is there");
    scene.stop();
}

#[test]
fn a_reload_changes_the_idle_timeout_of_open_connections() {
    let mut scene = Scene::new(Faults::none());
    idle(&scene, 180);
    scene.comes(0, true, None);
    scene.comes(1, true, Some(15));
    scene.run_to(60);
    // Shorter: who is over it goes at once, long before any reminder of the old value.
    idle(&scene, 20);
    scene.run_to(70);
    scene.ended_between(0, 60.0, 62.0);
    assert_eq!(scene.ended(1), None);
    // Longer than what BEP 3 has in mind: nobody goes at the old value, nor at the default.
    idle(&scene, 500);
    scene.comes(2, true, None);
    scene.run_to(400);
    assert_eq!((scene.ended(1), scene.ended(2)), (None, None));
    scene.run_to(600);
    scene.ended_between(2, 570.0, 572.0);
    scene.stop();
}

/// Handshaken at once, a reminder that was set before must not stay: each connection has one.
#[test]
fn reloads_do_not_multiply_reminders() {
    let mut scene = Scene::new(Faults::none());
    scene.comes(0, true, Some(60));
    scene.run_to(10);
    for round in 0..100 {
        idle(&scene, 180 + round % 2);
        scene.run_to(12 + round * 2);
    }
    let ticks = |scene: &Scene| scene.swarm.stats(0).ticks;
    scene.run_to(220);
    let before = ticks(&scene);
    scene.run_to(520);
    let each_s = (ticks(&scene) - before) as f64 / 300.0;
    assert!(each_s < 3.0, "{each_s} ticks a second for one quiet connection");
    assert_eq!(scene.ended(0), None);
    scene.stop();
}

#[test]
fn a_dial_takes_as_long_as_the_connect_timeout_allows() {
    // Every connect takes 5 to 30 s.
    let mut scene = Scene::new(Faults::none().with(FaultKind::ConnectSlow, 1_000));
    let connect = |scene: &Scene, s: u64| {
        scene.swarm.globals.connect_timeout_ms.store(s * 1_000, Ordering::Relaxed);
    };
    let (first, second) = (scene.peer(0, true, None), scene.peer(1, true, None));
    connect(&scene, 3);
    scene.run_to(1);
    scene.dial(first);
    scene.run_to(3);
    assert_eq!(scene.swarm.dialed, []);
    scene.run_to(5);
    assert_eq!(scene.swarm.dialed, [DialOutcome::Closed], "given up after 3 s");
    assert_eq!(scene.swarm.connections(), 0);
    // The same after a reload, which gives it more time than its handshake may take.
    connect(&scene, 60);
    scene.swarm.globals.handshake_timeout_ms.store(2_000, Ordering::Relaxed);
    scene.dial(second);
    scene.run_to(40);
    assert_eq!(scene.swarm.dialed, [DialOutcome::Closed, DialOutcome::Connected]);
    assert_eq!(scene.ended(1), None);
    scene.stop();
}

#[test]
fn the_handshake_timeout_counts_from_the_connection() {
    let mut scene = Scene::new(Faults::none().with(FaultKind::ConnectSlow, 1_000));
    scene.swarm.globals.connect_timeout_ms.store(60_000, Ordering::Relaxed);
    scene.swarm.globals.handshake_timeout_ms.store(7_000, Ordering::Relaxed);
    let mute = scene.peer(0, false, None);
    scene.run_to(1);
    scene.dial(mute);
    scene.comes(1, false, None);
    scene.run_to(60);
    let opened = scene.lives.borrow().opened_s[0].expect("connected");
    scene.ended_between(0, opened + 6.9, opened + 7.5);
    scene.ended_between(1, 8.0, 8.5);
    scene.stop();
}
