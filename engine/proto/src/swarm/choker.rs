//! Owns: which interested peers are unchoked while we seed.
//! Never: holds a peer, or changes more than it must: decisions name the changes alone.
//! Flow: every [`INTERVAL`], and when interest changes, candidates in, decisions out.
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

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two rotations; libtorrent's and the original client's figure.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// A turn that is given to one who waited, at least.
pub const TENURE: Duration = Duration::from_secs(30);
/// One slot in so many rotates among those who wait.
const ROTATING_ONE_IN: usize = 5;

/// How many peers may be unchoked at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slots {
    Unlimited,
    Limited(u32),
}

impl Slots {
    fn count(self) -> usize {
        match self {
            Self::Unlimited => usize::MAX,
            Self::Limited(count) => count as usize,
        }
    }
}

/// A peer as the choker sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate<K, T> {
    /// The caller's name of the connection.
    pub key: K,
    pub torrent: T,
    /// The torrent's own bound; the same for all candidates of one torrent.
    pub torrent_slots: Slots,
    pub interested: bool,
    pub unchoked: bool,
    /// What we send it.
    pub rate_bytes_per_s: u64,
    pub last_unchoked: Option<Duration>,
    /// Since when it is interested and choked.
    pub waiting_since: Option<Duration>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Choker {
    slots_global: Slots,
    random: u64,
    rotates_at: Duration,
}

impl Choker {
    /// `seed` decides between peers that are equal otherwise.
    pub fn new(slots_global: Slots, seed: u64) -> Self {
        Self { slots_global, random: seed, rotates_at: Duration::ZERO }
    }

    /// A new bound; it holds from the next `rechoke`.
    pub fn set_slots(&mut self, slots_global: Slots) {
        self.slots_global = slots_global;
    }

    /// When the next rotation is due.
    pub fn rotates_at(&self) -> Duration {
        self.rotates_at
    }

    /// Appends (key, unchoke?) for each peer whose state changes, chokes first, so that bounds
    /// hold at each step. Before [`Choker::rotates_at`] it only fills slots that are free.
    pub fn rechoke<K: Copy, T: Copy + Ord>(
        &mut self,
        now: Duration,
        candidates: &[Candidate<K, T>],
        decisions: &mut Vec<(K, bool)>,
    ) {
        let rotates = now >= self.rotates_at;
        if rotates {
            self.rotates_at = now + INTERVAL;
        }
        let unlimited = |peer: &Candidate<K, T>| peer.torrent_slots == Slots::Unlimited;
        if self.slots_global == Slots::Unlimited && candidates.iter().all(unlimited) {
            let waiting = candidates.iter().filter(|peer| peer.interested && !peer.unchoked);
            decisions.extend(waiting.map(|peer| (peer.key, true)));
            return;
        }
        let chosen = self.choose(now, rotates, candidates);
        let choked =
            candidates.iter().zip(&chosen).filter(|(peer, chosen)| peer.unchoked && !**chosen);
        decisions.extend(choked.map(|(peer, _)| (peer.key, false)));
        let freed =
            candidates.iter().zip(&chosen).filter(|(peer, chosen)| !peer.unchoked && **chosen);
        decisions.extend(freed.map(|(peer, _)| (peer.key, true)));
    }

    fn choose<K, T: Copy + Ord>(
        &mut self,
        now: Duration,
        rotates: bool,
        candidates: &[Candidate<K, T>],
    ) -> Vec<bool> {
        let lots: Vec<u64> = candidates.iter().map(|_| self.draw()).collect();
        let mut holding: Vec<usize> = Vec::new();
        let mut waiting: Vec<usize> = Vec::new();
        for (at, peer) in candidates.iter().enumerate().filter(|(_, peer)| peer.interested) {
            if peer.unchoked { holding.push(at) } else { waiting.push(at) }
        }
        let in_tenure = |at: &usize| {
            let since = candidates[*at].last_unchoked;
            since.is_some_and(|since| now.saturating_sub(since) < TENURE)
        };
        waiting
            .sort_unstable_by_key(|at| (candidates[*at].waiting_since.unwrap_or(now), lots[*at]));
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

        let mut room = Room::new(self.slots_global, candidates);
        in_turn.iter().for_each(|at| room.give(*at, true));
        if rotates {
            waiting.iter().for_each(|at| room.give_turn(*at));
        }
        fast.iter().chain(&waiting).for_each(|at| room.give(*at, false));
        room.chosen
    }

    /// splitmix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
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
/// its own, so it neither needs nor uses up the turns of the global bound. Counted together, the
/// one kind could starve the other.
struct Room<'a, K, T> {
    candidates: &'a [Candidate<K, T>],
    chosen: Vec<bool>,
    slots_global: usize,
    slots: usize,
    /// Turns in torrents that are not full by themselves.
    turns: usize,
    given: BTreeMap<T, Given>,
}

impl<'a, K, T: Copy + Ord> Room<'a, K, T> {
    fn new(global: Slots, candidates: &'a [Candidate<K, T>]) -> Self {
        let mut given: BTreeMap<T, Given> = BTreeMap::new();
        for peer in candidates.iter().filter(|peer| peer.interested && peer.unchoked) {
            given.entry(peer.torrent).or_default().holders += 1;
        }
        Self {
            candidates,
            chosen: vec![false; candidates.len()],
            slots_global: global.count(),
            slots: 0,
            turns: 0,
            given,
        }
    }

    /// Gives a slot, if both bounds leave one.
    fn give(&mut self, at: usize, turn: bool) {
        if self.chosen[at] || self.slots >= self.slots_global {
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
        let some_left = full || self.turns < rotating(self.slots_global);
        if some_left && torrent.turns < rotating(bound) {
            self.give(at, true);
        }
    }
}

fn rotating(slots: usize) -> usize {
    slots.div_ceil(ROTATING_ONE_IN)
}

#[cfg(test)]
mod tests;
