//! Owns: which block a connection asks for next.
//! Never: knows what arrived; a rejected block comes back through the connection's own list.
//! Flow: connection refill -> `next` -> request.

use std::time::Duration;

use clap::ValueEnum as _;

use crate::torrent::Grid;

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Each connection walks the torrent from its own place, evenly spread.
    Sequential,
    /// Random blocks; with --verify random pieces.
    Random,
    /// All connections walk the torrent from its first block.
    Together,
    /// Pieces in one shuffled order, each connection from its own place of it: what rarest first
    /// makes of a crowd at a seed. Where connections are alike in speed, hardly a piece is asked
    /// for again before all have been.
    RarestFirst,
}

impl Pattern {
    /// As it is written on the command line and in scenarios.
    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, good enough to choose blocks and content.
#[derive(Clone, Copy)]
pub struct Random(pub u64);

/// What each number moves it on by.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// As it is after so many numbers of this seed.
    pub fn after(seed: u64, numbers: u64) -> Random {
        Random(seed.wrapping_add(numbers.wrapping_mul(STEP)))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to less than 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A time of this mean, in seconds, as long as it is: between two that come by chance.
    pub fn exponential(&mut self, mean: f64) -> Duration {
        Duration::from_secs_f64(-mean * (1.0 - self.unit()).ln())
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

pub struct Walk {
    grid: Grid,
    random: Random,
    kind: Kind,
    /// Blocks still to hand out; `None`: for ever.
    left: Option<u64>,
}

enum Kind {
    Line {
        next: u64,
    },
    Blocks,
    /// Every piece once before any again, in a stride's order: no piece is open twice. The stride
    /// is the connection's own, or, rarest first, the crowd's.
    Pieces {
        piece: u64,
        stride: u64,
        left: std::ops::Range<u64>,
    },
}

impl Walk {
    /// The walk of connection `index` of `connections`, whose places are evenly spread; `None`: one
    /// that comes later, to a place by chance. `once`: the whole torrent, then nothing.
    pub fn new(
        grid: Grid,
        pattern: Pattern,
        whole_pieces: bool,
        once: bool,
        index: usize,
        connections: Option<usize>,
        seed: u64,
    ) -> Self {
        let mut random = Random(seed ^ (index as u64).wrapping_mul(0xd6e8_feb8_6659_fd93));
        let mut place_of = |all: u64| match connections {
            Some(connections) => all * index as u64 / connections as u64,
            None => random.below(all),
        };
        let kind = match pattern {
            // Verification needs whole pieces: start at the piece's first block.
            Pattern::Sequential if whole_pieces => {
                Kind::Line { next: grid.of_piece(place_of(grid.pieces())).start }
            }
            Pattern::Sequential => Kind::Line { next: place_of(grid.blocks) },
            Pattern::Together => Kind::Line { next: 0 },
            Pattern::Random if whole_pieces => {
                let stride = stride(&mut random, grid.pieces());
                Kind::Pieces { piece: random.below(grid.pieces()), stride, left: 0..0 }
            }
            Pattern::RarestFirst => {
                let pieces = grid.pieces();
                let stride = stride(&mut Random(seed), pieces);
                let piece =
                    (u128::from(place_of(pieces)) * u128::from(stride) % u128::from(pieces)) as u64;
                Kind::Pieces { piece, stride, left: 0..0 }
            }
            Pattern::Random => Kind::Blocks,
        };
        Walk { grid, random, kind, left: once.then_some(grid.blocks) }
    }

    /// Nothing is left to hand out.
    pub fn is_over(&self) -> bool {
        self.left == Some(0)
    }

    pub fn next(&mut self) -> Option<u64> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1)?;
        }
        Some(match &mut self.kind {
            Kind::Line { next } => {
                let number = *next;
                *next = (number + 1) % self.grid.blocks;
                number
            }
            Kind::Blocks => self.random.below(self.grid.blocks),
            Kind::Pieces { piece, stride, left } => {
                if left.is_empty() {
                    *piece = (*piece + *stride) % self.grid.pieces();
                    *left = self.grid.of_piece(*piece);
                }
                left.next().expect("invariant: a piece has a block")
            }
        })
    }
}

/// Steps of it go through all pieces.
fn stride(random: &mut Random, pieces: u64) -> u64 {
    let stride = 1 + random.below(pieces);
    (stride..).find(|stride| coprime(*stride, pieces)).unwrap_or(1)
}

fn coprime(one: u64, other: u64) -> bool {
    let (mut one, mut other) = (one, other);
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torrent::Torrent;

    fn grid() -> Grid {
        let torrent = Torrent {
            info_hash: [0; 20],
            total_bytes: 10 * 32_768 - 5,
            piece_bytes: 32_768,
            piece_hashes: vec![[0; 20]; 10],
        };
        Grid::new(&torrent, 16_384)
    }

    #[test]
    fn once_hands_out_each_block_once_and_ends() {
        let mut walk = Walk::new(grid(), Pattern::Sequential, false, true, 3, Some(7), 1);
        let mut seen: Vec<u64> = std::iter::from_fn(|| walk.next()).collect();
        assert_ne!(seen[0], 0, "connections start apart");
        seen.sort_unstable();
        assert_eq!(seen, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn random_pieces_are_whole_and_each_comes_once_a_round() {
        let mut walk = Walk::new(grid(), Pattern::Random, true, false, 0, Some(1), 9);
        for _ in 0..3 {
            let mut pieces = [0; 10];
            for _ in 0..10 {
                let first = walk.next().expect("endless");
                assert_eq!(first % 2, 0);
                assert_eq!(walk.next(), Some(first + 1));
                pieces[first as usize / 2] += 1;
            }
            assert_eq!(pieces, [1; 10]);
        }
    }

    /// The pieces of the next so many blocks, two each, which come whole.
    fn pieces(walk: &mut Walk, count: usize) -> Vec<u64> {
        let piece = || {
            let first = walk.next().expect("endless");
            assert_eq!((first % 2, walk.next()), (0, Some(first + 1)));
            first / 2
        };
        std::iter::repeat_with(piece).take(count).collect()
    }

    #[test]
    fn rarest_first_the_crowd_asks_for_all_pieces_before_any_again() {
        let of = |index, connections, seed| {
            Walk::new(grid(), Pattern::RarestFirst, false, false, index, connections, seed)
        };
        for connections in [1, 2, 5, 10] {
            let mut walks: Vec<Walk> =
                (0..connections).map(|index| of(index, Some(connections), 4)).collect();
            for round in 1..=3 {
                let of_one = |walk: &mut Walk| pieces(walk, 10 / connections);
                let mut asked: Vec<u64> = walks.iter_mut().flat_map(of_one).collect();
                asked.sort_unstable();
                assert_eq!(asked, (0..10).collect::<Vec<_>>(), "{connections}, round {round}");
            }
        }
        // One order, that of the seed, from wherever a connection begins.
        let order = pieces(&mut of(0, Some(1), 4), 20);
        let is_in_order = |part: &[u64]| order.windows(part.len()).any(|window| window == part);
        assert!(is_in_order(&pieces(&mut of(2, Some(3), 4), 10)), "{order:?}");
        assert!((5..9).any(|seed| pieces(&mut of(0, Some(1), seed), 10) != order[..10]));
    }

    #[test]
    fn those_that_come_later_begin_at_places_of_their_own() {
        for pattern in [Pattern::Sequential, Pattern::RarestFirst] {
            let first = |index| Walk::new(grid(), pattern, true, false, index, None, 4).next();
            let firsts: std::collections::BTreeSet<_> = (20..80).map(first).collect();
            assert!(firsts.len() >= 8, "{pattern:?}: {firsts:?} of ten pieces");
        }
    }

    #[test]
    fn random_blocks_reach_everything_and_differ_by_connection() {
        let mut seen = [false; 20];
        let mut walk = Walk::new(grid(), Pattern::Random, false, false, 0, Some(2), 9);
        let mut other = Walk::new(grid(), Pattern::Random, false, false, 1, Some(2), 9);
        let mut equal = 0;
        for _ in 0..500 {
            let number = walk.next().expect("endless");
            seen[number as usize] = true;
            equal += usize::from(other.next() == Some(number));
        }
        assert!(seen.iter().all(|seen| *seen));
        assert!(equal < 100, "{equal} of 500 equal");
    }
}
