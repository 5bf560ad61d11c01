//! Owns: who has the slots of torrents that seed.
//! Never: torrents that download. Flow: the choker's share of slots -> here -> who is chosen.
//!
//! Slots go, in this order, to
//! 1. peers unchoked less than [`TENURE`] ago, so that each turn is long enough to be of use and
//!    its rate means something;
//! 2. who has waited longest, until a fifth of the slots (at least one) are such turns;
//! 3. the peers that took most bytes from us, who keep their place while they are fast;
//! 4. who has waited longest, while slots are free.
//!
//! So a fast newcomer, once tried, displaces the slowest; and with `s` = a fifth of the smaller
//! bound (at least 1), a peer with `a` peers waiting as long or longer is unchoked within
//! `(a / s + 1) * (TENURE + INTERVAL) + INTERVAL`.
//!
//! [`TENURE`]: super::TENURE

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Candidate, View};

/// One slot in so many rotates among those who wait.
const ROTATING_ONE_IN: usize = 5;

pub(super) fn choose<K, T: Copy + Ord>(
    view: &View<'_, K, T>,
    members: &[usize],
    slots: usize,
    chosen: &mut [bool],
) {
    let View { now, rotates, candidates, lots } = *view;
    let (mut holding, mut waiting): (Vec<usize>, Vec<usize>) =
        members.iter().partition(|at| candidates[**at].unchoked);
    let in_tenure = |at: &usize| candidates[*at].in_tenure(now);
    waiting.sort_unstable_by_key(|at| (candidates[*at].waiting_since.unwrap_or(now), lots[*at]));
    // Those in tenure first, the longest there first; then the others by rate.
    holding.sort_unstable_by_key(|at| {
        let peer = &candidates[*at];
        match in_tenure(at) {
            true => (false, Reverse(0), peer.last_unchoked, lots[*at]),
            false => (true, Reverse(peer.rate_bytes_per_s), None, lots[*at]),
        }
    });
    let turns = holding.iter().take_while(|at| in_tenure(at)).count();
    let (in_turn, fast) = holding.split_at(turns);

    let mut room = Room::new(slots, candidates, members, chosen);
    in_turn.iter().for_each(|at| room.give(*at, true));
    if rotates {
        waiting.iter().for_each(|at| room.give_turn(*at));
    }
    fast.iter().chain(&waiting).for_each(|at| room.give(*at, false));
}

/// Slots given so far in one torrent.
#[derive(Clone, Copy, Default)]
struct Given {
    slots: usize,
    turns: usize,
    /// Interested peers that are unchoked as it stands.
    holders: usize,
}

/// What is left of both bounds while slots are given.
///
/// A torrent whose holders fill its own bound rotates by itself: a turn there displaces one of
/// its own, so it neither needs nor uses up the turns of the common bound. Counted together, the
/// one kind could starve the other.
struct Room<'a, K, T> {
    candidates: &'a [Candidate<K, T>],
    chosen: &'a mut [bool],
    slots_all: usize,
    slots: usize,
    /// Turns in torrents that are not full by themselves.
    turns: usize,
    given: BTreeMap<T, Given>,
}

impl<'a, K, T: Copy + Ord> Room<'a, K, T> {
    fn new(
        slots_all: usize,
        candidates: &'a [Candidate<K, T>],
        members: &[usize],
        chosen: &'a mut [bool],
    ) -> Self {
        let mut given: BTreeMap<T, Given> = BTreeMap::new();
        for peer in members.iter().map(|at| &candidates[*at]).filter(|peer| peer.unchoked) {
            given.entry(peer.torrent).or_default().holders += 1;
        }
        Self { candidates, chosen, slots_all, slots: 0, turns: 0, given }
    }

    /// Gives a slot, if both bounds leave one.
    fn give(&mut self, at: usize, turn: bool) {
        if self.chosen[at] || self.slots >= self.slots_all {
            return;
        }
        let peer = &self.candidates[at];
        let bound = peer.torrent_slots.count();
        let torrent = self.given.entry(peer.torrent).or_default();
        if torrent.slots >= bound {
            return;
        }
        self.chosen[at] = true;
        self.slots += 1;
        torrent.slots += 1;
        torrent.turns += usize::from(turn);
        self.turns += usize::from(turn && torrent.holders < bound);
    }

    /// Gives a slot to one who waited, while fewer than the rotating ones are such turns.
    fn give_turn(&mut self, at: usize) {
        let peer = &self.candidates[at];
        let bound = peer.torrent_slots.count();
        let torrent = self.given.get(&peer.torrent).copied().unwrap_or_default();
        let full = torrent.holders >= bound;
        let some_left = full || self.turns < rotating(self.slots_all);
        if some_left && torrent.turns < rotating(bound) {
            self.give(at, true);
        }
    }
}

pub(super) fn rotating(slots: usize) -> usize {
    slots.div_ceil(ROTATING_ONE_IN)
}
