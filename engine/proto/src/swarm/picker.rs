//! Owns: the order in which free pieces are taken up: priority, then rarity, then chance.
//! Never: holds a claim or a buffer; asks for availability, priority and claims, and has a piece
//! claimed by its caller. Flow: a peer has room for requests -> pick -> claim -> blocks.
//!
//! One picker serves one torrent on one shard. It keeps a list of candidates, made anew when it is
//! old or used up, so that a pick looks at a few pieces and not at all of them. What another shard
//! takes meanwhile is found taken when its turn comes. A list covers [`WINDOW`] pieces: all of
//! nearly every torrent; of larger ones a window that moves on, so that making a list is bounded
//! (2,097,152 pieces would take milliseconds of a shard's tick).

use std::time::Duration;

use crate::units::PieceIndex;

/// Pieces looked at to make a list.
pub const WINDOW: u32 = 8_192;
/// Free pieces looked at for one that only seeds have: they are in front, as of the last list.
const OF_SEEDS_MAX: usize = 32;
/// Windows looked through in one pick.
const WINDOWS_MAX: u32 = 4;
/// A list older than this is made anew: availability has moved on.
pub const LIST_AGE_MAX: Duration = Duration::from_secs(2);
/// Pieces of the highest priority.
pub const PRIORITY_MAX: u8 = 7;

/// In which order pieces of one priority are taken up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Order {
    /// The first pieces of a download: something to trade with soon, and not what all others want.
    /// Of seeds what nobody else has comes first all the same.
    Random,
    #[default]
    RarestFirst,
    /// For whoever looks at the content while it comes.
    Sequential,
}

/// What a picker asks about pieces.
pub trait Pieces {
    fn count(&self) -> u32;
    /// From 1 to [`PRIORITY_MAX`]; 0 is not wanted.
    fn priority(&self, piece: PieceIndex) -> u8;
    /// Connected peers that have it.
    fn availability(&self, piece: PieceIndex) -> u32;
    /// Neither had nor claimed by anybody.
    fn is_free(&self, piece: PieceIndex) -> bool;
    /// No connected peer has it but those that have everything.
    fn only_seeds_have(&self, piece: PieceIndex) -> bool;
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Picker {
    /// The best last, so that taking it is a pop.
    candidates: Vec<(u64, PieceIndex)>,
    order: Order,
    made_at: Option<Duration>,
    /// Where the next window begins.
    window_at: u32,
    random: u64,
}

impl Picker {
    /// `seed` decides among pieces that are equal otherwise.
    pub fn new(seed: u64) -> Self {
        Self {
            candidates: Vec::new(),
            order: Order::default(),
            made_at: None,
            window_at: 0,
            random: seed,
        }
    }

    /// The best piece that the peer has and that `claim` gets. `None`: there is nothing free that
    /// this peer has, as far as this list goes.
    pub fn pick(
        &mut self,
        pieces: &impl Pieces,
        order: Order,
        now: Duration,
        peer_has: impl Fn(PieceIndex) -> bool,
        mut claim: impl FnMut(PieceIndex) -> bool,
    ) -> Option<PieceIndex> {
        self.list_if_old(pieces, order, now);
        let windows = pieces.count().div_ceil(WINDOW).min(WINDOWS_MAX);
        for window in 0..windows {
            if let Some(piece) = self.take(pieces, usize::MAX, &peer_has, &mut claim) {
                return Some(piece);
            }
            if window + 1 < windows {
                self.list(pieces, order, now);
            }
        }
        None
    }

    /// The same for a seed, of pieces that only seeds have. `None`: there is none in front.
    pub fn pick_of_seeds(
        &mut self,
        pieces: &impl Pieces,
        order: Order,
        now: Duration,
        may: impl Fn(PieceIndex) -> bool,
        mut claim: impl FnMut(PieceIndex) -> bool,
    ) -> Option<PieceIndex> {
        self.list_if_old(pieces, order, now);
        let wanted = |piece| may(piece) && pieces.only_seeds_have(piece);
        self.take(pieces, OF_SEEDS_MAX, &wanted, &mut claim)
    }

    fn list_if_old(&mut self, pieces: &impl Pieces, order: Order, now: Duration) {
        let old = self.made_at.is_none_or(|at| now.saturating_sub(at) >= LIST_AGE_MAX);
        if old || order != self.order {
            self.list(pieces, order, now);
        }
    }

    /// A claim was given back, or a piece came to be wanted: the next pick looks anew.
    pub fn refresh(&mut self) {
        self.made_at = None;
    }

    /// Bytes on the heap.
    pub fn held_bytes(&self) -> usize {
        self.candidates.capacity() * size_of::<(u64, PieceIndex)>()
    }

    /// The best of the first `looked_max` that are free.
    fn take(
        &mut self,
        pieces: &impl Pieces,
        looked_max: usize,
        peer_has: &impl Fn(PieceIndex) -> bool,
        claim: &mut impl FnMut(PieceIndex) -> bool,
    ) -> Option<PieceIndex> {
        // What was taken by others goes, wherever a pick meets it.
        let mut at = self.candidates.len();
        let mut gone_from = None;
        let mut picked = None;
        let mut looked = 0;
        while at > 0 && looked < looked_max {
            at -= 1;
            let piece = self.candidates[at].1;
            if !pieces.is_free(piece) {
                gone_from = Some(at);
                continue;
            }
            looked += 1;
            if peer_has(piece) && claim(piece) {
                gone_from = Some(at);
                picked = Some(piece);
                break;
            }
        }
        if let Some(from) = gone_from {
            let tail = self.candidates.split_off(from);
            let left = tail
                .into_iter()
                .filter(|(_, piece)| picked != Some(*piece) && pieces.is_free(*piece));
            self.candidates.extend(left);
        }
        picked
    }

    fn list(&mut self, pieces: &impl Pieces, order: Order, now: Duration) {
        self.order = order;
        self.made_at = Some(now);
        self.candidates.clear();
        let count = pieces.count();
        // Sequential means from the front; elsewhere a window goes round.
        let first =
            if order == Order::Sequential { self.first_free(pieces) } else { self.window_at };
        for step in 0..count.min(WINDOW) {
            let piece =
                PieceIndex(((u64::from(first) + u64::from(step)) % u64::from(count)) as u32);
            let priority = pieces.priority(piece).min(PRIORITY_MAX);
            if priority == 0 || !pieces.is_free(piece) {
                continue;
            }
            let chance = self.draw() >> 40; // 24 bits
            let rank = match order {
                Order::Random => u64::from(!pieces.only_seeds_have(piece)) << 24 | chance,
                Order::RarestFirst => {
                    u64::from(pieces.availability(piece)).min(0xffff) << 24 | chance
                }
                Order::Sequential => u64::from(piece.0),
            };
            // Low keys are better; the list is sorted with the best last.
            let key = u64::from(PRIORITY_MAX - priority) << 48 | rank;
            self.candidates.push((key, piece));
        }
        self.window_at = if count == 0 { 0 } else { (first % count + count.min(WINDOW)) % count };
        self.candidates.sort_unstable_by(|a, b| b.cmp(a));
    }

    fn first_free(&self, pieces: &impl Pieces) -> u32 {
        let wanted =
            |at: &u32| pieces.priority(PieceIndex(*at)) > 0 && pieces.is_free(PieceIndex(*at));
        (0..pieces.count()).find(wanted).unwrap_or(0)
    }

    /// SplitMix64: the order of equals need not be unguessable, only different on each machine.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests;
