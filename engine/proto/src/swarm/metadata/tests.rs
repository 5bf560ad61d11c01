use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::wire::extended::{METADATA_PIECE_BYTES, metadata_piece};

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn metadata(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 7 % 251) as u8).collect()
}

fn info_hash(metadata: &[u8]) -> InfoHash {
    InfoHash(Sha1::digest(metadata).into())
}

fn asks(actions: &[Action<u32>]) -> Vec<(u32, u32)> {
    let ask = |action: &Action<u32>| match action {
        Action::Ask { peer, piece } => Some((*peer, *piece)),
        Action::Ban(_) | Action::Done(_) => None,
    };
    actions.iter().filter_map(ask).collect()
}

/// One fetch, and what it wants done.
struct Bench {
    fetch: MetadataFetch<u32>,
    all: Vec<u8>,
    actions: Vec<Action<u32>>,
}

impl Bench {
    fn new(bytes: usize, peers: &[u32]) -> Self {
        let all = metadata(bytes);
        let mut fetch = MetadataFetch::new(info_hash(&all));
        for peer in peers {
            assert!(fetch.claimed(*peer, bytes as u32));
        }
        Self { fetch, all, actions: Vec::new() }
    }

    fn step(&mut self, now: Duration) -> Vec<(u32, u32)> {
        self.actions.clear();
        self.fetch.step(now, &mut self.actions);
        asks(&self.actions)
    }

    /// The peer gives a piece, wrong where `wrong` says so; what comes of it is left in `actions`.
    fn give(&mut self, peer: u32, piece: u32, wrong: bool) -> Taken {
        let mut data = metadata_piece(&self.all, piece).expect("a piece of it").to_vec();
        data[0] ^= u8::from(wrong);
        let total = self.all.len() as u32;
        self.actions.clear();
        let taken = self.fetch.received(peer, piece, total, &data, &mut self.actions);
        taken.expect("no rule is broken")
    }
}

#[test]
fn several_peers_share_the_work() {
    let mut bench = Bench::new(METADATA_PIECE_BYTES * 4 + 5, &[1, 2, 3]);
    let asked = bench.step(secs(0));
    let pieces: Vec<u32> = asked.iter().map(|(_, piece)| *piece).collect();
    assert_eq!(pieces[..5], [0, 1, 2, 3, 4]);
    assert_eq!(asked[..3], [(1, 0), (2, 1), (3, 2)], "each has a part in it");
    assert!(asked.len() <= 9, "three a peer at most: {asked:?}");
    assert_eq!(asked.iter().collect::<BTreeSet<_>>().len(), asked.len(), "none twice of one");
    assert!(bench.step(secs(0)).is_empty(), "nothing more to ask");
    for (peer, piece) in asked {
        assert_eq!(bench.give(peer, piece, false), Taken::Asked);
        if bench.fetch.is_done() {
            assert_eq!(bench.actions, [Action::Done(bench.all.clone())]);
            assert_eq!(bench.fetch.held_bytes(), 0);
            return;
        }
    }
    panic!("all was given");
}

#[test]
fn what_does_not_come_is_asked_of_another_and_taken_late() {
    let mut bench = Bench::new(METADATA_PIECE_BYTES, &[1]);
    assert_eq!(bench.step(secs(0)), [(1, 0)]);
    assert_eq!(bench.fetch.next_step(secs(0)), Some(ANSWER_WITHIN));
    bench.fetch.claimed(2, METADATA_PIECE_BYTES as u32);
    assert_eq!(bench.step(secs(1)), [(2, 0)], "two may be asked for the last piece");
    bench.fetch.left(2);
    assert!(bench.step(secs(2)).is_empty(), "1 is still waited for");
    assert!(bench.step(secs(10)).is_empty(), "1 rests");
    assert_eq!(bench.fetch.next_step(secs(10)), Some(secs(10) + SILENT_REST));
    assert_eq!(bench.give(1, 0, false), Taken::Asked, "late is better than never");
    assert!(bench.fetch.is_done());
}

#[test]
fn who_rejects_is_left_alone_for_a_while() {
    let mut bench = Bench::new(METADATA_PIECE_BYTES * 2, &[1]);
    assert_eq!(bench.step(secs(0)), [(1, 0), (1, 1)]);
    bench.fetch.rejected(1, 0, secs(1));
    bench.fetch.rejected(1, 1, secs(1));
    bench.fetch.rejected(1, 1, secs(500));
    assert!(bench.step(secs(60)).is_empty());
    assert_eq!(bench.fetch.next_step(secs(60)), Some(secs(61)));
    assert_eq!(bench.step(secs(61)), [(1, 0), (1, 1)]);
}

#[test]
fn broken_rules() {
    let mut bench = Bench::new(METADATA_PIECE_BYTES + 5, &[1]);
    let size = METADATA_PIECE_BYTES as u32 + 5;
    bench.step(secs(0));
    let table: [(u32, u32, usize, Violation); 4] = [
        (0, size + 1, 16384, Violation::MetadataTotal { got: size + 1, claimed: size }),
        (2, size, 5, Violation::MetadataOutOfRange { piece: 2, count: 2 }),
        (1, size, 16384, Violation::MetadataLength { piece: 1, got: 16384, expected: 5 }),
        (0, size, 0, Violation::MetadataLength { piece: 0, got: 0, expected: 16384 }),
    ];
    for (piece, total, length, violation) in table {
        let data = vec![1; length];
        let taken = bench.fetch.received(1, piece, total, &data, &mut bench.actions);
        assert_eq!(taken, Err(violation));
    }
    assert_eq!(bench.fetch.held_bytes(), 0);
    assert_eq!(bench.give(1, 1, false), Taken::Asked);
    assert_eq!(bench.give(1, 1, false), Taken::Unwanted, "twice");
    assert_eq!(bench.give(7, 0, false), Taken::Unwanted, "a stranger");
}

#[test]
fn senseless_sizes_are_not_asked_for() {
    let mut bench = Bench::new(100, &[]);
    for bytes in [0, (64 << 20) + 1, u32::MAX] {
        assert!(!bench.fetch.claimed(1, bytes));
        assert!(bench.step(secs(0)).is_empty());
    }
    assert!(bench.fetch.claimed(1, 64 << 20));
    assert_eq!(bench.step(secs(0)).len(), ASKS_A_PEER_MAX);
    assert!(bench.fetch.claimed(1, 100), "it may change its mind");
    assert_eq!(bench.step(secs(0)), [(1, 0)]);
    assert!(!bench.fetch.claimed(1, 0));
    assert_eq!(bench.fetch.next_step(secs(0)), None, "and give it up");
}

#[test]
fn who_alone_gave_what_is_wrong_is_banned() {
    let mut bench = Bench::new(METADATA_PIECE_BYTES * 2, &[1]);
    bench.step(secs(0));
    bench.give(1, 0, false);
    bench.give(1, 1, true);
    assert_eq!(bench.actions, [Action::Ban(1)]);
    assert_eq!(bench.fetch.held_bytes(), 0);
    assert!(bench.step(secs(1)).is_empty());
    bench.fetch.claimed(2, METADATA_PIECE_BYTES as u32 * 2);
    assert_eq!(bench.step(secs(2)).len(), 2);
}

#[test]
fn of_several_each_is_tried_alone() {
    let mut bench = Bench::new(METADATA_PIECE_BYTES * 2, &[1, 2]);
    let asked = bench.step(secs(0));
    assert_eq!(asked[..2], [(1, 0), (2, 1)]);
    bench.give(1, 0, true);
    bench.give(2, 1, false);
    assert!(bench.actions.is_empty(), "nobody can tell who lied: {:?}", bench.actions);
    bench.fetch.claimed(3, METADATA_PIECE_BYTES as u32 * 2);
    let asked = bench.step(secs(1));
    assert_eq!(asked, [(3, 0), (3, 1)], "who gave nothing before comes first");
    bench.fetch.rejected(3, 0, secs(1));
    assert_eq!(bench.step(secs(1)), [(1, 0), (1, 1)]);
    bench.give(1, 0, true);
    bench.give(1, 1, false);
    assert_eq!(bench.actions, [Action::Ban(1)]);
    assert_eq!(bench.step(secs(2)), [(2, 0), (2, 1)]);
    bench.give(2, 0, false);
    bench.give(2, 1, false);
    assert_eq!(bench.actions, [Action::Done(bench.all.clone())]);
}

#[test]
fn a_majority_for_a_huge_size_gives_way() {
    let mut bench = Bench::new(100, &[1]);
    (10..20).for_each(|liar| assert!(bench.fetch.claimed(liar, 64 << 20)));
    let asked = bench.step(secs(0));
    assert!(asked.iter().all(|(peer, _)| *peer >= 10), "the most claimed first: {asked:?}");
    let ends = bench.fetch.next_step(secs(0)).expect("something is waited for");
    assert_eq!(ends, ANSWER_WITHIN);
    for second in 1..60 {
        assert!(bench.step(secs(second)).iter().all(|(peer, _)| *peer >= 10));
    }
    assert_eq!(bench.step(secs(60)), [(1, 0)]);
    bench.give(1, 0, false);
    assert!(bench.fetch.is_done());
}

#[test]
fn a_turn_that_runs_is_not_taken_away() {
    let half = METADATA_PIECE_BYTES;
    let mut bench = Bench::new(half * 2, &[1]);
    bench.step(secs(0));
    bench.give(1, 0, false);
    assert!(bench.step(secs(1_000)).is_empty(), "1 is late");
    (10..20).for_each(|liar| assert!(bench.fetch.claimed(liar, 64 << 20)));
    assert!(bench.step(secs(1_001)).is_empty(), "they wait for the end of the turn");
    assert_eq!(bench.fetch.held_bytes(), half);
    assert_eq!(bench.step(secs(1_059)), [(1, 1)]);
    assert!(bench.step(secs(1_060)).iter().all(|(peer, _)| *peer >= 10));
    assert_eq!(bench.fetch.held_bytes(), 0, "what it had is dropped with its turn");
    assert!(bench.step(secs(1_120)).iter().all(|(peer, _)| *peer >= 10), "one turn each");
    assert_eq!(bench.step(secs(1_240)), [(1, 0), (1, 1)], "and then again");
}

#[test]
fn sizes_that_fit_are_fetched_side_by_side() {
    let mut bench = Bench::new(100, &[1]);
    (10..20).for_each(|liar| assert!(bench.fetch.claimed(liar, 1 << 20)));
    assert!(bench.step(secs(0)).contains(&(1, 0)), "a minority does not wait");
}

#[derive(Clone, Copy, Debug)]
enum Conduct {
    Honest,
    /// One bit of this piece, or of the last one, is wrong.
    Poison(u32),
    Silent,
    Rejects,
    /// Claims so many bytes more, and gives noise.
    Size(u32),
    /// Says another total than it claimed.
    Total,
}

/// A swarm in virtual time: who is asked answers after its own delay.
struct Swarm {
    bench: Bench,
    peers: Vec<(Conduct, Duration)>,
    /// Time, peer, piece.
    answers: BTreeSet<(Duration, u32, u32)>,
    banned: BTreeSet<u32>,
}

impl Swarm {
    /// When it was done.
    fn run(&mut self, until: Duration) -> Option<Duration> {
        let mut now = Duration::ZERO;
        while now < until {
            let asked = self.bench.step(now);
            for (peer, piece) in asked {
                assert!(!self.banned.contains(&peer));
                let (_, delay) = self.peers[peer as usize];
                self.answers.insert((now + delay, peer, piece));
            }
            let answer = self.answers.first().copied();
            let step = self.bench.fetch.next_step(now);
            let step = step.inspect(|next| assert!(*next > now, "time goes on"));
            match (answer, step) {
                (Some((at, peer, piece)), step) if step.is_none_or(|step| at <= step) => {
                    self.answers.pop_first();
                    now = now.max(at);
                    self.answer(peer, piece, now);
                }
                (_, Some(step)) => now = step,
                (_, None) => return None,
            }
            if self.bench.fetch.is_done() {
                return Some(now);
            }
        }
        None
    }

    fn answer(&mut self, peer: u32, piece: u32, now: Duration) {
        if self.banned.contains(&peer) {
            return;
        }
        let (conduct, _) = self.peers[peer as usize];
        let size = self.bench.all.len() as u32;
        let (mut claimed, mut total) = (size, size);
        match conduct {
            Conduct::Silent => return,
            Conduct::Rejects => return self.bench.fetch.rejected(peer, piece, now),
            Conduct::Size(more) => (claimed, total) = (size + more, size + more),
            Conduct::Total => total += 1,
            Conduct::Honest | Conduct::Poison(_) => {}
        }
        let mut data = metadata_piece(&self.bench.all, piece).unwrap_or_default().to_vec();
        data.resize(piece_bytes(claimed, piece), 7);
        if let Conduct::Poison(wrong) = conduct
            && piece == wrong.min(piece_count(size) - 1)
        {
            data[0] ^= 1;
        }
        let mut actions = Vec::new();
        match self.bench.fetch.received(peer, piece, total, &data, &mut actions) {
            Ok(_) => {}
            Err(_) => {
                self.bench.fetch.left(peer);
                self.banned.insert(peer);
            }
        }
        for action in actions {
            match action {
                Action::Ban(liar) => assert!(self.banned.insert(liar), "banned twice"),
                Action::Done(all) => assert_eq!(all, self.bench.all),
                Action::Ask { .. } => panic!("only a step asks"),
            }
        }
    }
}

fn conduct() -> impl Strategy<Value = Conduct> {
    prop_oneof![
        2 => Just(Conduct::Honest),
        3 => (0..4u32).prop_map(Conduct::Poison),
        1 => Just(Conduct::Silent),
        1 => Just(Conduct::Rejects),
        2 => (1..40_000u32).prop_map(Conduct::Size),
        1 => Just(Conduct::Total),
    ]
}

proptest! {
    /// One honest peer is enough, whoever else is there, and it is never banned. Of two pieces or
    /// more from many liars, each costs its turn at most.
    #[test]
    fn one_honest_peer_is_enough(
        bytes in 1..60_000usize,
        mut peers in prop::collection::vec((conduct(), 1..20_000u64), 0..12),
        honest in (0..13usize, 1..9_000u64),
    ) {
        peers.insert(honest.0.min(peers.len()), (Conduct::Honest, honest.1));
        let mut bench = Bench::new(bytes, &[]);
        let mut count = 0;
        for (peer, (conduct, _)) in peers.iter().enumerate() {
            let more = if let Conduct::Size(more) = conduct { *more } else { 0 };
            assert!(bench.fetch.claimed(peer as u32, bytes as u32 + more));
            count += 1;
        }
        let peers = peers
            .into_iter()
            .map(|(conduct, delay)| (conduct, Duration::from_millis(delay)))
            .collect();
        let (answers, banned) = (BTreeSet::new(), BTreeSet::new());
        let mut swarm = Swarm { bench, peers, answers, banned };
        let done = swarm.run(secs(3_600));
        prop_assert!(done.is_some_and(|done| done < secs(120 + 60 * count)), "{done:?}");
        for banned in &swarm.banned {
            let (conduct, _) = swarm.peers[*banned as usize];
            prop_assert!(!matches!(conduct, Conduct::Honest), "{banned} is honest");
        }
    }

    #[test]
    fn pieces_add_up(size in 1..200_000u32) {
        let lengths = (0..piece_count(size)).map(|piece| piece_bytes(size, piece));
        prop_assert!(lengths.clone().all(|length| (1..=METADATA_PIECE_BYTES).contains(&length)));
        prop_assert_eq!(lengths.sum::<usize>(), size as usize);
    }
}
