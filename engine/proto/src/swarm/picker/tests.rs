//! Owns: what a pick must and must not be. Never: peers, blocks. Flow: tables of pieces, picks.

use std::cell::RefCell;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

struct Table {
    priority: Vec<u8>,
    availability: Vec<u32>,
    seeds: u32,
    taken: RefCell<BTreeSet<u32>>,
}

impl Table {
    fn new(availability: &[u32]) -> Self {
        Self {
            priority: vec![4; availability.len()],
            availability: availability.to_vec(),
            seeds: 0,
            taken: RefCell::default(),
        }
    }

    fn claim(&self, piece: PieceIndex) -> bool {
        self.taken.borrow_mut().insert(piece.0)
    }
}

impl Pieces for Table {
    fn count(&self) -> u32 {
        self.priority.len() as u32
    }
    fn priority(&self, piece: PieceIndex) -> u8 {
        self.priority[piece.0 as usize]
    }
    fn availability(&self, piece: PieceIndex) -> u32 {
        self.availability[piece.0 as usize]
    }
    fn is_free(&self, piece: PieceIndex) -> bool {
        !self.taken.borrow().contains(&piece.0)
    }
    fn only_seeds_have(&self, piece: PieceIndex) -> bool {
        self.availability(piece) == self.seeds
    }
}

fn picks(table: &Table, order: Order, count: usize) -> Vec<u32> {
    let mut picker = Picker::new(7);
    let mut pick =
        || picker.pick(table, order, Duration::ZERO, |_| true, |piece| table.claim(piece));
    (0..count).map_while(|_| pick().map(|piece| piece.0)).collect()
}

#[test]
fn the_rarest_come_first_and_priority_comes_before_rarity() {
    let mut table = Table::new(&[3, 1, 2, 9]);
    table.priority[3] = 6;
    assert_eq!(picks(&table, Order::RarestFirst, 9), [3, 1, 2, 0]);
}

#[test]
fn sequential_is_in_order_whatever_is_rare() {
    let table = Table::new(&[3, 1, 2, 9, 1]);
    table.claim(PieceIndex(0));
    assert_eq!(picks(&table, Order::Sequential, 9), [1, 2, 3, 4]);
}

#[test]
fn random_ignores_rarity_and_differs_by_seed() {
    let of = |seed| {
        let table = Table::new(&[1; 64]);
        let mut picker = Picker::new(seed);
        picker.pick(&table, Order::Random, Duration::ZERO, |_| true, |p| table.claim(p))
    };
    let first: BTreeSet<_> = (1..40).map(of).collect();
    assert!(first.len() > 10, "{first:?}");
}

#[test]
fn of_a_seed_only_what_nobody_else_has_comes_first() {
    for order in [Order::Random, Order::RarestFirst] {
        let mut table = Table::new(&[2, 5, 2, 3, 2]);
        table.seeds = 2;
        let mut picker = Picker::new(5);
        let mut pick = |table: &Table, lacks: u32| {
            let may = |piece: PieceIndex| piece.0 != lacks;
            let claim = |piece| table.claim(piece);
            picker.pick_of_seeds(table, order, Duration::ZERO, may, claim).map(|piece| piece.0)
        };
        let first = pick(&table, 2).expect("two of the three");
        // A leech has got the other one since the list was made.
        table.availability[4 - first as usize] += 1;
        assert_eq!(pick(&table, 9), Some(2), "{order:?}");
        assert_eq!(pick(&table, 9), None, "leeches have the others: {order:?}");
        assert_eq!(picks(&table, Order::RarestFirst, 9).len(), 3, "which are free all the same");
    }
}

#[test]
fn the_first_pieces_of_a_seed_are_random_among_those_that_only_seeds_have() {
    let of = |seed| {
        let mut table = Table::new(&[1, 2].repeat(32));
        table.seeds = 1;
        let mut picker = Picker::new(seed);
        let claim = |piece| table.claim(piece);
        picker.pick(&table, Order::Random, Duration::ZERO, |_| true, claim).map(|piece| piece.0)
    };
    let first: BTreeSet<u32> = (1..40).filter_map(of).collect();
    assert!(first.len() > 10 && first.iter().all(|piece| piece % 2 == 0), "{first:?}");
}

#[test]
fn what_is_not_wanted_or_not_the_peers_is_left() {
    let mut table = Table::new(&[1, 1, 1]);
    table.priority[0] = 0;
    let mut picker = Picker::new(1);
    let mut pick = |has: u32| {
        let has = move |piece: PieceIndex| piece.0 == has;
        picker.pick(&table, Order::RarestFirst, Duration::ZERO, has, |p| table.claim(p))
    };
    assert_eq!(pick(0), None);
    assert_eq!(pick(2), Some(PieceIndex(2)));
    assert_eq!(pick(2), None, "claimed");
    assert_eq!(pick(1), Some(PieceIndex(1)));
}

#[test]
fn a_claim_that_is_lost_leads_to_the_next_piece() {
    let table = Table::new(&[1, 2]);
    let mut picker = Picker::new(1);
    let claim = |piece: PieceIndex| piece.0 != 0;
    let picked = picker.pick(&table, Order::RarestFirst, Duration::ZERO, |_| true, claim);
    assert_eq!(picked, Some(PieceIndex(1)));
}

#[test]
fn a_list_is_made_anew_as_peers_come_and_go() {
    let mut table = Table::new(&[1, 5, 5]);
    let mut picker = Picker::new(1);
    let mut pick = |table: &Table, s| {
        let now = Duration::from_secs(s);
        picker.pick(table, Order::RarestFirst, now, |_| true, |p| table.claim(p)).map(|p| p.0)
    };
    assert_eq!(pick(&table, 0), Some(0));
    table.availability = vec![9, 9, 1];
    assert_eq!(pick(&table, 3), Some(2));
}

#[test]
fn a_torrent_larger_than_a_window_is_picked_whole() {
    let table = Table::new(&vec![1; 3 * WINDOW as usize + 5]);
    let picked = picks(&table, Order::RarestFirst, usize::MAX);
    let different: BTreeSet<_> = picked.iter().collect();
    assert_eq!((picked.len(), different.len()), (table.priority.len(), table.priority.len()));
}

proptest! {
    /// Whatever peers have: each wanted piece that somebody has is picked once, no other is.
    #[test]
    fn every_piece_that_can_be_had_is_picked_once(
        priority in proptest::collection::vec(0u8..=PRIORITY_MAX, 1..200),
        peers in proptest::collection::vec(any::<u64>(), 1..5),
        order in prop_oneof![
            Just(Order::Random), Just(Order::RarestFirst), Just(Order::Sequential)
        ],
    ) {
        let count = priority.len();
        let mut table = Table::new(&vec![1; count]);
        table.priority = priority;
        let has = |peer: u64, piece: PieceIndex| peer >> (piece.0 % 64) & 1 == 1;
        let mut picker = Picker::new(3);
        let mut picked = BTreeSet::new();
        for peer in &peers {
            while let Some(piece) = picker.pick(
                &table, order, Duration::ZERO, |piece| has(*peer, piece), |p| table.claim(p),
            ) {
                prop_assert!(has(*peer, piece) && table.priority(piece) > 0);
                prop_assert!(picked.insert(piece.0), "picked twice");
            }
        }
        let expected = (0..count as u32).filter(|at| {
            table.priority(PieceIndex(*at)) > 0
                && peers.iter().any(|peer| has(*peer, PieceIndex(*at)))
        });
        prop_assert_eq!(picked, expected.collect::<BTreeSet<_>>());
    }
}
