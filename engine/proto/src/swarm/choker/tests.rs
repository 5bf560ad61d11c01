use proptest::prelude::*;

use super::*;

type Peer = Candidate<u32, u32>;

/// Peers with a capacity each, served by a choker in virtual time.
struct Swarm {
    choker: Choker,
    slots: (Slots, Slots),
    peers: Vec<Peer>,
    capacity: Vec<u64>,
    now: Duration,
    /// How many waited as long or longer when each began to wait.
    ahead: Vec<usize>,
}

impl Swarm {
    fn new(global: Slots, per_torrent: Slots, seed: u64) -> Self {
        Self {
            choker: Choker::new(global, seed),
            slots: (global, per_torrent),
            peers: Vec::new(),
            capacity: Vec::new(),
            now: Duration::ZERO,
            ahead: Vec::new(),
        }
    }

    fn join(&mut self, torrent: u32, capacity: u64) -> usize {
        let key = self.peers.len() as u32;
        self.peers.push(Candidate {
            key,
            torrent,
            torrent_slots: self.slots.1,
            interested: false,
            unchoked: false,
            rate_bytes_per_s: 0,
            trade: None,
            last_unchoked: None,
            waiting_since: None,
        });
        self.capacity.push(capacity);
        self.ahead.push(0);
        self.set_interested(key as usize, true);
        key as usize
    }

    fn set_interested(&mut self, at: usize, interested: bool) {
        let waits = interested && !self.peers[at].unchoked;
        self.peers[at].interested = interested;
        if waits && self.peers[at].waiting_since.is_none() {
            self.start_waiting(at);
        } else if !interested {
            self.peers[at].waiting_since = None;
        }
    }

    fn start_waiting(&mut self, at: usize) {
        // Who starts at the same moment waits in a drawn order: each counts as before the others.
        self.ahead[at] = 0;
        for (other, peer) in self.peers.iter().enumerate() {
            self.ahead[at] += usize::from(peer.waiting_since.is_some());
            self.ahead[other] += usize::from(peer.waiting_since == Some(self.now));
        }
        self.peers[at].waiting_since = Some(self.now);
    }

    fn rechoke(&mut self) {
        let mut decisions = Vec::new();
        self.choker.rechoke(self.now, &self.peers, &mut decisions);
        for (key, unchoke) in decisions {
            let at = key as usize;
            assert_ne!(self.peers[at].unchoked, unchoke, "only changes are decided");
            self.peers[at].unchoked = unchoke;
            if unchoke {
                assert!(self.peers[at].interested);
                let since = self.peers[at].waiting_since.take().expect("it waited");
                self.check_wait(at, self.now - since);
                self.peers[at].last_unchoked = Some(self.now);
                self.peers[at].rate_bytes_per_s = self.capacity[at];
            } else {
                self.peers[at].rate_bytes_per_s = 0;
                if self.peers[at].interested {
                    self.start_waiting(at);
                }
            }
            self.check_slots();
        }
        for at in 0..self.peers.len() {
            if let Some(since) = self.peers[at].waiting_since {
                self.check_wait(at, self.now - since);
            }
        }
    }

    fn check_slots(&self) {
        let unchoked = self.peers.iter().filter(|peer| peer.unchoked);
        assert!(unchoked.clone().count() <= self.slots.0.count());
        for torrent in 0..4 {
            let inside = unchoked.clone().filter(|peer| peer.torrent == torrent).count();
            assert!(inside <= self.slots.1.count(), "torrent {torrent}: {inside}");
        }
    }

    /// The bound of the module's head.
    fn check_wait(&self, at: usize, waited: Duration) {
        let rotating_slots = seeding::rotating(self.slots.0.count().min(self.slots.1.count()));
        let turns = (self.ahead[at] / rotating_slots) as u32 + 1;
        assert!(waited <= (TENURE + INTERVAL) * turns + INTERVAL, "peer {at}: {waited:?}");
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds / 10 {
            self.rechoke();
            self.now += INTERVAL;
        }
    }

    fn unchoked(&self) -> usize {
        self.peers.iter().filter(|peer| peer.unchoked).count()
    }
}

#[test]
fn unlimited_serves_everyone_interested() {
    let mut swarm = Swarm::new(Slots::Unlimited, Slots::Unlimited, 1);
    for torrent in 0..100 {
        swarm.join(torrent % 3, 1000);
    }
    swarm.set_interested(5, false);
    swarm.rechoke();
    assert_eq!(swarm.unchoked(), 99);
    assert!(!swarm.peers[5].unchoked);
}

#[test]
fn no_slots_serve_nobody() {
    let mut choker = Choker::new(Slots::Limited(0), 1);
    let mut swarm = Swarm::new(Slots::Unlimited, Slots::Unlimited, 1);
    swarm.join(0, 1);
    let mut decisions = Vec::new();
    choker.rechoke(Duration::ZERO, &swarm.peers, &mut decisions);
    assert!(decisions.is_empty());
}

#[test]
fn every_slot_is_used_and_a_free_one_goes_at_once() {
    let mut swarm = Swarm::new(Slots::Limited(4), Slots::Unlimited, 2);
    for _ in 0..10 {
        swarm.join(0, 1000);
    }
    swarm.rechoke();
    assert_eq!(swarm.unchoked(), 4);
    let leaver = swarm.peers.iter().position(|peer| peer.unchoked).expect("one");
    swarm.now += Duration::from_secs(3);
    swarm.set_interested(leaver, false);
    swarm.rechoke();
    assert!(!swarm.peers[leaver].unchoked);
    assert_eq!(swarm.unchoked(), 4);
}

#[test]
fn nothing_rotates_between_the_intervals() {
    let mut swarm = Swarm::new(Slots::Limited(2), Slots::Unlimited, 3);
    for _ in 0..6 {
        swarm.join(0, 1000);
    }
    swarm.run(100);
    let before = swarm.peers.clone();
    swarm.now -= Duration::from_secs(5);
    swarm.rechoke();
    assert_eq!(swarm.peers, before);
}

#[test]
fn a_fast_newcomer_displaces_the_slowest_and_stays() {
    let mut swarm = Swarm::new(Slots::Limited(5), Slots::Unlimited, 4);
    for at in 0..12 {
        swarm.join(0, 1000 + at);
    }
    swarm.run(600);
    let newcomer = swarm.join(0, 1_000_000);
    swarm.run(600);
    assert!(swarm.peers[newcomer].unchoked);
    let unchoked_at = swarm.peers[newcomer].last_unchoked;
    swarm.run(3600);
    assert_eq!(swarm.peers[newcomer].last_unchoked, unchoked_at, "never lost its slot again");
}

#[test]
fn slow_peers_all_get_turns_beside_fast_ones() {
    let mut swarm = Swarm::new(Slots::Limited(5), Slots::Unlimited, 5);
    for _ in 0..5 {
        swarm.join(0, 1_000_000);
    }
    swarm.run(60);
    for _ in 0..20 {
        swarm.join(0, 10);
    }
    swarm.run(1200);
    let mut turns = 0;
    for peer in &swarm.peers[5..] {
        turns += usize::from(peer.last_unchoked.is_some());
    }
    assert_eq!(turns, 20);
    let fast = swarm.peers[..5].iter().filter(|peer| peer.unchoked).count();
    assert!(fast >= 4, "{fast} of the fast ones hold their slots");
}

#[test]
fn the_same_seed_decides_the_same() {
    let histories = [7, 7, 8].map(|seed| {
        let mut swarm = Swarm::new(Slots::Limited(3), Slots::Limited(2), seed);
        for at in 0..30 {
            swarm.join(at % 4, 100);
        }
        let mut history = Vec::new();
        for _ in 0..50 {
            swarm.run(10);
            history.push(swarm.peers.iter().map(|peer| peer.unchoked).collect::<Vec<_>>());
        }
        history
    });
    assert_eq!(histories[0], histories[1]);
    assert_ne!(histories[0], histories[2]);
}

#[derive(Clone, Debug)]
enum Step {
    Join { torrent: u32, capacity: u64 },
    Interest { at: usize, interested: bool },
    Pass { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..4u32, 0..1_000_000u64)
            .prop_map(|(torrent, capacity)| Step::Join { torrent, capacity }),
        1 => (0..100usize, any::<bool>())
            .prop_map(|(at, interested)| Step::Interest { at, interested }),
        3 => (1..20u64).prop_map(|seconds| Step::Pass { seconds }),
    ]
}

proptest! {
    // `rechoke` checks both bounds at each decision, and each peer's wait at each call.
    #[test]
    fn slots_hold_and_nobody_starves(
        global in 1..20u32,
        per_torrent in 1..20u32,
        unlimited in any::<bool>(),
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let per_torrent = if unlimited { Slots::Unlimited } else { Slots::Limited(per_torrent) };
        let mut swarm = Swarm::new(Slots::Limited(global), per_torrent, seed);
        for step in steps {
            match step {
                Step::Join { torrent, capacity } => {
                    swarm.join(torrent, capacity);
                    swarm.rechoke();
                }
                Step::Interest { at, interested } => {
                    if at < swarm.peers.len() {
                        swarm.set_interested(at, interested);
                        swarm.rechoke();
                    }
                }
                Step::Pass { seconds } => {
                    for _ in 0..seconds {
                        swarm.now += Duration::from_secs(1);
                        if swarm.now >= swarm.choker.rotates_at() {
                            swarm.rechoke();
                        }
                    }
                }
            }
        }
        swarm.run(2000);
    }
}

#[test]
fn each_torrent_has_a_bound_of_its_own() {
    let mut swarm = Swarm::new(Slots::Unlimited, Slots::Limited(2), 7);
    for at in 0..12 {
        swarm.join(at % 2, 1000);
    }
    for peer in swarm.peers.iter_mut().filter(|peer| peer.torrent == 1) {
        peer.torrent_slots = Slots::Limited(5);
    }
    let mut decisions = Vec::new();
    let peers = swarm.peers.clone();
    swarm.choker.rechoke(Duration::ZERO, &peers, &mut decisions);
    let of = |torrent| {
        decisions.iter().filter(|(key, on)| *on && peers[*key as usize].torrent == torrent).count()
    };
    assert_eq!((of(0), of(1)), (2, 5));
}

fn candidate(key: u32, torrent: u32, trade: Option<Trade>) -> Peer {
    Candidate {
        key,
        torrent,
        torrent_slots: Slots::Unlimited,
        interested: true,
        unchoked: false,
        rate_bytes_per_s: 0,
        trade,
        last_unchoked: None,
        waiting_since: Some(Duration::ZERO),
    }
}

/// Decides, and lets the candidates know.
fn decide(choker: &mut Choker, now: Duration, peers: &mut [Peer]) {
    let mut decisions = Vec::new();
    choker.rechoke(now, peers, &mut decisions);
    for (key, unchoke) in decisions {
        let peer = &mut peers[key as usize];
        assert_ne!(peer.unchoked, unchoke, "only changes are decided");
        peer.unchoked = unchoke;
        peer.last_unchoked = if unchoke { Some(now) } else { peer.last_unchoked };
        peer.waiting_since = (!unchoke).then_some(now);
    }
}

fn unchoked_of(peers: &[Peer], torrent: u32) -> usize {
    peers.iter().filter(|peer| peer.unchoked && peer.torrent == torrent).count()
}

#[test]
fn a_download_has_its_slots_beside_thousands_of_peers_of_seeding_torrents() {
    let mut choker = Choker::new(Slots::Limited(40), 1);
    let trade = |torrent| (torrent == 9).then(Trade::default);
    let torrents = (0..3_000).map(|n| n % 8).chain([9; 30]);
    let mut peers: Vec<Peer> =
        torrents.enumerate().map(|(n, t)| candidate(n as u32, t, trade(t))).collect();
    for round in 0..20 {
        decide(&mut choker, INTERVAL * round, &mut peers);
        assert!((4..=5).contains(&unchoked_of(&peers, 9)), "{}", unchoked_of(&peers, 9));
        assert_eq!(peers.iter().filter(|peer| peer.unchoked).count(), 40);
    }
    // As many want something of both: each kind has half.
    peers.truncate(30);
    peers.iter_mut().for_each(|peer| *peer = candidate(peer.key, 1, None));
    peers.extend((30..60).map(|n| candidate(n, 9, trade(9))));
    decide(&mut choker, INTERVAL * 20, &mut peers);
    assert_eq!((unchoked_of(&peers, 1), unchoked_of(&peers, 9)), (20, 20));
}

#[test]
fn more_downloads_than_slots_take_turns() {
    let mut choker = Choker::new(Slots::Limited(3), 1);
    let mut peers: Vec<Peer> =
        (0..80).map(|n| candidate(n, n % 10, Some(Trade::default()))).collect();
    let mut served = [0; 10];
    for round in 0..60 {
        decide(&mut choker, INTERVAL * round, &mut peers);
        assert_eq!(peers.iter().filter(|peer| peer.unchoked).count(), 3);
        (0..10).for_each(|torrent| served[torrent as usize] += unchoked_of(&peers, torrent));
    }
    assert!(served.iter().all(|rounds| (12..=24).contains(rounds)), "{served:?}");
}

#[test]
fn a_slot_is_lost_to_no_other_group_between_rotations() {
    let mut choker = Choker::new(Slots::Limited(6), 1);
    let mut peers: Vec<Peer> = (0..6).map(|n| candidate(n, 1, None)).collect();
    decide(&mut choker, Duration::ZERO, &mut peers);
    peers.extend((6..20).map(|n| candidate(n, 2, Some(Trade::default()))));
    decide(&mut choker, Duration::from_secs(5), &mut peers);
    assert_eq!(unchoked_of(&peers, 1), 6, "nothing is free");
    peers[0].interested = false;
    decide(&mut choker, Duration::from_secs(6), &mut peers);
    assert_eq!((unchoked_of(&peers, 1), unchoked_of(&peers, 2)), (5, 1));
    decide(&mut choker, Duration::from_secs(10), &mut peers);
    assert_eq!(unchoked_of(&peers, 1) + unchoked_of(&peers, 2), 6);
    assert!(unchoked_of(&peers, 2) >= 3, "its part at the next rotation");
}

#[test]
fn slots_that_the_user_leaves_open_follow_the_rate() {
    let kib = [0, 20, 100, 1024, 10_240, 102_400].map(|kib| trading_slots(kib << 10));
    assert_eq!(kib, [4, 4, 7, 24, 78, 247]);
    assert!(trading_slots(u64::MAX) > 1_000_000);
}

#[test]
fn a_seed_under_a_limit_has_slots_for_those_whom_it_can_give_a_piece_soon() {
    let slots = |kib: u64, piece_kib: u32| seeding_slots(kib << 10, piece_kib << 10);
    assert_eq!((slots(1_024, 128), slots(256, 128)), (trading_slots(1 << 20), 12), "as a trader");
    assert_eq!([512, 1_024, 2_048].map(|piece_kib| slots(1_024, piece_kib)), [20, 10, 5]);
    assert_eq!((slots(100, 16_384), slots(0, 16_384)), (4, 4), "so many in any case");
    assert_eq!(seeding_slots(u64::MAX, 0), trading_slots(u64::MAX));
}
