use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Leeches that fetch what they are shown, and may pass on one piece a second.
struct Swarm {
    seed: SuperSeed<u32>,
    has: BTreeMap<u32, Vec<bool>>,
    /// Shown and not fetched.
    shown: Vec<(u32, PieceIndex)>,
    /// Who passes nothing on.
    selfish: Vec<u32>,
    given: usize,
    now: Duration,
    random: u64,
}

impl Swarm {
    fn new(pieces: u32, leeches: u32, seed: u64) -> Self {
        let mut swarm = Self {
            seed: SuperSeed::new(pieces, seed),
            has: BTreeMap::new(),
            shown: Vec::new(),
            selfish: Vec::new(),
            given: 0,
            now: Duration::ZERO,
            random: seed,
        };
        (0..leeches).for_each(|key| swarm.join(key));
        swarm
    }

    fn join(&mut self, key: u32) {
        self.seed.joined(key, self.now);
        self.has.insert(key, vec![false; self.seed.pieces.len()]);
    }

    fn leave(&mut self, key: u32) {
        self.seed.left(key);
        self.has.remove(&key);
        self.shown.retain(|(of, _)| *of != key);
    }

    fn get(&mut self, key: u32, piece: PieceIndex) {
        let has = self.has.get_mut(&key).expect("here");
        if !std::mem::replace(&mut has[piece.0 as usize], true) {
            self.seed.got(key, piece, self.now);
        }
    }

    /// A second: the seed gives `rate` pieces, each leech passes one on.
    fn round(&mut self, rate: usize) {
        let shown = self.seed.next(self.now, |_| Some(100));
        for (key, piece) in &shown {
            assert!(self.seed.is_shown(*key, *piece));
        }
        self.shown.extend(shown);
        for (key, piece) in self.shown.drain(..rate.min(self.shown.len())).collect::<Vec<_>>() {
            if !self.has[&key][piece.0 as usize] {
                self.given += 1;
                self.get(key, piece);
            }
        }
        let keys: Vec<u32> = self.has.keys().copied().collect();
        for from in keys.iter().copied() {
            if self.selfish.contains(&from) {
                continue;
            }
            let start = draw(&mut self.random) as usize;
            let others = (0..keys.len()).map(|n| keys[(start + n) % keys.len()]);
            let lacks = |to: u32| {
                let pair = self.has[&from].iter().zip(&self.has[&to]);
                let at = pair.enumerate().find(|(_, (mine, its))| **mine && !**its);
                at.map(|(at, _)| (to, PieceIndex(at as u32)))
            };
            let found = others.filter(|to| *to != from).find_map(lacks);
            if let Some((to, piece)) = found {
                self.get(to, piece);
            }
        }
        self.now += SECOND;
    }

    fn run(&mut self, rate: usize, seconds: u32) -> bool {
        for _ in 0..seconds {
            if self.has.values().flatten().all(|has| *has) {
                return true;
            }
            self.round(rate);
        }
        false
    }
}

#[test]
fn each_piece_is_given_about_once() {
    for (leeches, seed) in [(2, 1), (3, 2), (8, 3), (40, 4)] {
        let mut swarm = Swarm::new(200, leeches, seed);
        assert!(swarm.run(1, 3_000), "{leeches} leeches");
        assert!((200..=210).contains(&swarm.given), "{leeches} leeches: {} of 200", swarm.given);
    }
}

#[test]
fn a_peer_that_is_alone_gets_all_without_waiting() {
    let mut swarm = Swarm::new(100, 1, 1);
    let shown = swarm.seed.next(swarm.now, |_| Some(100));
    assert_eq!(shown.len(), AHEAD_ALONE);
    swarm.shown.extend(shown);
    assert!(swarm.run(4, 27), "{} given", swarm.given);
    assert_eq!(swarm.given, 100);
    assert!(swarm.seed.is_over() && !swarm.seed.others_seed());
}

#[test]
fn who_stays_alone_is_shown_everything() {
    let mut swarm = Swarm::new(3_000, 1, 1);
    assert_eq!(swarm.seed.next(swarm.now, |_| Some(100)).len(), AHEAD_ALONE);
    swarm.now += ALONE_AFTER;
    let mut shown = AHEAD_ALONE;
    for _ in 0..3 {
        shown += swarm.seed.next(swarm.now, |_| Some(100)).len();
    }
    assert_eq!(shown, 3_000);
    assert_eq!(swarm.seed.next(swarm.now, |_| Some(100)), []);
}

#[test]
fn who_passes_nothing_on_waits_for_each_piece() {
    let mut swarm = Swarm::new(50, 4, 1);
    swarm.selfish = vec![3];
    assert!(swarm.run(4, 10_000));
    assert!((50..=60).contains(&swarm.given), "{}", swarm.given);
    let mut swarm = Swarm::new(10, 3, 1);
    swarm.selfish = vec![0, 1, 2];
    assert!(swarm.run(3, 10_000), "nobody helps anybody, and yet all complete");
    assert!(swarm.now > PATIENCE * 3, "patience is asked of them: {:?}", swarm.now);
}

#[test]
fn a_piece_whose_only_peer_left_is_given_again() {
    let mut swarm = Swarm::new(2, 2, 1);
    let shown = swarm.seed.next(swarm.now, |_| Some(100));
    assert_eq!(shown.len(), 2, "one each, and not the same");
    let ((a, first), (b, second)) = (shown[0], shown[1]);
    assert_ne!(first, second);
    swarm.get(a, first);
    assert_eq!(swarm.seed.next(swarm.now, |_| Some(100)), []);
    swarm.leave(a);
    swarm.get(b, second);
    assert_eq!(swarm.seed.next(swarm.now, |_| Some(100)), [(b, first)]);
}

#[test]
fn the_next_is_shown_when_another_peer_has_it() {
    let mut swarm = Swarm::new(9, 2, 1);
    let shown = swarm.seed.next(swarm.now, |_| Some(100));
    let (key, piece) = shown[0];
    let (other, _) = shown[1];
    swarm.get(key, piece);
    assert_eq!(swarm.seed.next(swarm.now, |_| Some(100)), []);
    swarm.get(other, piece);
    let next = swarm.seed.next(swarm.now, |_| Some(100));
    assert_eq!(next.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [key; 2], "it passed one on");
    swarm.now += FETCH_WITHIN;
    let later = swarm.seed.next(swarm.now, |_| Some(100));
    assert!(later.iter().any(|(key, _)| *key == other), "it does not want what it was shown");
}

#[test]
fn what_was_served_whole_counts_as_had() {
    // It says nothing of what it got, since we have that too.
    let mut swarm = Swarm::new(20, 1, 1);
    let mut shown: VecDeque<_> = swarm.seed.next(swarm.now, |_| Some(100)).into();
    let mut served = 0;
    while let Some((key, piece)) = shown.pop_front() {
        swarm.seed.served(key, piece, 60, swarm.now);
        assert_eq!(swarm.seed.next(swarm.now, |_| Some(100)), [], "not all of it");
        swarm.seed.served(key, piece, 40, swarm.now);
        shown.extend(swarm.seed.next(swarm.now, |_| Some(100)));
        served += 1;
    }
    assert_eq!(served, 20);
    assert!(swarm.seed.is_over());
}

#[test]
fn another_seed_ends_it_and_what_is_not_offered_is_not_shown() {
    let mut swarm = Swarm::new(9, 1, 1);
    assert_eq!(
        swarm.seed.next(swarm.now, |piece| (piece.0 == 4).then_some(9)),
        [(0, PieceIndex(4))]
    );
    swarm.join(7);
    let mut all = RemotePieces::new(9);
    all.insert_all();
    swarm.seed.has(7, &all, swarm.now);
    assert!(swarm.seed.is_over() && swarm.seed.others_seed());
}

#[test]
fn lost_pieces_count_as_lost() {
    let mut swarm = Swarm::new(3, 1, 1);
    let mut pieces = RemotePieces::new(3);
    pieces.insert(PieceIndex(1)).expect("inside");
    swarm.seed.has(0, &pieces, swarm.now);
    swarm.seed.lost(0, PieceIndex(1));
    let shown = swarm.seed.next(swarm.now, |_| Some(100));
    assert!(shown.contains(&(0, PieceIndex(1))), "{shown:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever comes and goes, and whoever passes nothing on: those who stay complete, and counts
    /// hold (they would underflow otherwise).
    #[test]
    fn all_who_stay_complete(
        pieces in 1..60u32,
        stay in 1..6u32,
        visits in prop::collection::vec((0..20u32, 1..30u64, any::<bool>()), 0..20),
        seed in any::<u64>(),
    ) {
        let mut swarm = Swarm::new(pieces, stay, seed);
        for (n, (rounds, length, selfish)) in visits.into_iter().enumerate() {
            (0..rounds).for_each(|_| swarm.round(2));
            let key = 100 + n as u32;
            swarm.join(key);
            if selfish {
                swarm.selfish.push(key);
            }
            (0..length).for_each(|_| swarm.round(2));
            swarm.leave(key);
        }
        prop_assert!(swarm.run(2, 100_000));
        let fetched: u32 = swarm.seed.pieces.iter().map(|piece| u32::from(piece.fetched_by)).sum();
        let fetching: usize = swarm.seed.leeches.values().map(|leech| leech.fetching.len()).sum();
        prop_assert_eq!(fetched as usize, fetching);
        for (at, piece) in swarm.seed.pieces.iter().enumerate() {
            let seen = swarm.has.values().filter(|has| has[at]).count();
            prop_assert_eq!(usize::from(piece.seen), seen);
        }
    }
}
