//! Owns: the pieces of a metadata of one size: which arrived and from whom, which are asked for,
//! and whether all may give or one peer at a time.
//! Never: knows the info-hash, a deadline of a request, or how much other sizes hold.
//! Flow: the fetch takes the next piece to ask from it and puts in what arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::wire::extended::METADATA_PIECE_BYTES;

/// The first turn of a size, or of a peer that gives alone, while others wait. Each later one is
/// twice as long, so that in the end a slow honest peer gets done.
pub const TURN: Duration = Duration::from_secs(60);
const TURN_DOUBLINGS_MAX: u32 = 7;
/// Peers of whom the same piece is asked, where all are asked for: the last piece then does not
/// hang on one slow peer.
const ASKERS_MAX: u32 = 2;

pub fn piece_count(size: u32) -> u32 {
    size.div_ceil(METADATA_PIECE_BYTES as u32)
}

/// Bytes of this piece, which is below [`piece_count`].
pub fn piece_bytes(size: u32, piece: u32) -> usize {
    let start = piece as usize * METADATA_PIECE_BYTES;
    (size as usize - start).min(METADATA_PIECE_BYTES)
}

#[derive(Clone, Debug)]
struct Piece<K> {
    giver: K,
    data: Box<[u8]>,
}

/// One peer at a time gives everything.
#[derive(Clone, Debug)]
struct Single<K> {
    giver: Option<K>,
    /// After that another may try.
    until: Duration,
    /// How often each peer was chosen.
    tries: BTreeMap<K, u32>,
    /// Those who gave a part of what was wrong.
    suspects: BTreeSet<K>,
}

/// See the module. A piece that was asked for and has not arrived is in `asked`, or in `again`
/// where nobody is waited for.
#[derive(Clone, Debug)]
pub struct Whole<K> {
    arrived: BTreeMap<u32, Piece<K>>,
    held_bytes: usize,
    /// How many peers are waited for, at least one.
    asked: BTreeMap<u32, u32>,
    again: BTreeSet<u32>,
    /// No piece from here on was asked for.
    fresh: u32,
    single: Option<Single<K>>,
    turns: u32,
    /// `None`: it has no turn, and takes nothing in.
    turn_ends: Option<Duration>,
}

impl<K> Default for Whole<K> {
    fn default() -> Self {
        Self {
            arrived: BTreeMap::new(),
            held_bytes: 0,
            asked: BTreeMap::new(),
            again: BTreeSet::new(),
            fresh: 0,
            single: None,
            turns: 0,
            turn_ends: None,
        }
    }
}

impl<K> Whole<K> {
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Turns that ended while others waited.
    pub fn turns(&self) -> u32 {
        self.turns
    }

    pub fn has_turn(&self) -> bool {
        self.turn_ends.is_some()
    }

    pub fn begin_turn(&mut self, now: Duration) {
        self.turn_ends.get_or_insert(now + turn(self.turns));
    }

    /// Nobody waits: a turn that runs begins only now.
    pub fn renew_turn(&mut self, now: Duration) {
        if self.turn_ends.is_some() {
            self.turn_ends = Some(now + turn(self.turns));
        }
    }

    pub fn end_turn(&mut self, now: Duration) {
        if self.turn_ends.is_some_and(|ends| ends <= now) {
            self.turn_ends = None;
            self.turns = self.turns.saturating_add(1);
        }
    }

    /// Takes the turn away, and what arrived. False: it had none.
    pub fn suspend(&mut self) -> bool {
        let had = self.turn_ends.take().is_some() || self.held_bytes > 0 || self.fresh > 0;
        self.restart();
        had
    }

    /// When a turn ends that is not over yet.
    pub fn next_turn(&self, now: Duration) -> Option<Duration> {
        let single = self.single.as_ref().map(|single| single.until);
        self.turn_ends.into_iter().chain(single).filter(|ends| *ends > now).min()
    }

    pub fn is_single(&self) -> bool {
        self.single.is_some()
    }

    pub fn is_whole(&self, size: u32) -> bool {
        self.arrived.len() == piece_count(size) as usize
    }

    /// What arrived, in its order.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.arrived.values().map(|piece| &*piece.data)
    }

    /// All of it, as one.
    pub fn put_together(&mut self, size: u32) -> Vec<u8> {
        let mut all = Vec::with_capacity(size as usize);
        while let Some((_, piece)) = self.arrived.pop_first() {
            all.extend_from_slice(&piece.data);
        }
        self.restart();
        all
    }

    fn restart(&mut self) {
        self.arrived.clear();
        self.held_bytes = 0;
        self.asked.clear();
        self.again.clear();
        self.fresh = 0;
    }

    /// The piece to ask of a peer: one that nobody is waited for, else one that one other is.
    pub fn next_piece(&mut self, size: u32, waits_for: impl Fn(u32) -> bool) -> Option<u32> {
        if let Some(piece) = self.again.first() {
            return Some(*piece);
        }
        while self.arrived.contains_key(&self.fresh) {
            self.fresh += 1;
        }
        if self.fresh < piece_count(size) {
            return Some(self.fresh);
        }
        let open = |(piece, askers): &(&u32, &u32)| **askers < ASKERS_MAX && !waits_for(**piece);
        self.asked.iter().find(open).map(|(piece, _)| *piece)
    }

    pub fn asked(&mut self, piece: u32) {
        self.again.remove(&piece);
        self.fresh = self.fresh.max(piece + 1);
        *self.asked.entry(piece).or_default() += 1;
    }

    /// One of those who were asked for it is not waited for any more.
    pub fn unasked(&mut self, piece: u32) {
        let Some(askers) = self.asked.get_mut(&piece) else { return };
        *askers -= 1;
        if *askers == 0 {
            self.asked.remove(&piece);
            self.again.insert(piece);
        }
    }
}

impl<K: Copy + Ord> Whole<K> {
    /// Whether this peer's pieces are taken at the moment.
    pub fn may_give(&self, peer: K) -> bool {
        let alone = self.single.as_ref();
        self.turn_ends.is_some() && alone.is_none_or(|single| single.giver == Some(peer))
    }

    pub fn arrived(&mut self, piece: u32, giver: K, data: &[u8]) {
        if !self.may_give(giver) || self.arrived.contains_key(&piece) {
            return;
        }
        self.asked.remove(&piece);
        self.again.remove(&piece);
        self.held_bytes += data.len();
        self.arrived.insert(piece, Piece { giver, data: data.into() });
    }

    /// What arrived is wrong as a whole. Gives those who gave it; where they are several, one at
    /// a time gives from now on.
    pub fn failed(&mut self) -> Vec<K> {
        let givers: BTreeSet<K> = self.arrived.values().map(|piece| piece.giver).collect();
        self.restart();
        if givers.len() > 1 {
            let suspects = givers.clone();
            let (giver, until, tries) = (None, Duration::ZERO, BTreeMap::new());
            self.single = Some(Single { giver, until, tries, suspects });
        }
        givers.into_iter().collect()
    }

    pub fn peer_left(&mut self, peer: K) {
        let Some(single) = &mut self.single else { return };
        single.tries.remove(&peer);
        single.suspects.remove(&peer);
        if single.giver == Some(peer) {
            single.giver = None;
            self.restart();
        }
    }

    /// Chooses who gives alone, of those who can: whoever was chosen stays until it rests or its
    /// turn is over, and where nobody else can. True: it is another one now.
    pub fn choose_single(&mut self, able: impl Iterator<Item = K>, now: Duration) -> bool {
        let Some(single) = &mut self.single else { return false };
        let tries_of = |peer: &K| single.tries.get(peer).copied().unwrap_or(0);
        let able: Vec<K> = able.collect();
        let stays = single.giver.filter(|giver| now < single.until && able.contains(giver));
        let next = able
            .into_iter()
            .filter(|peer| single.giver != Some(*peer))
            .min_by_key(|peer| (tries_of(peer), single.suspects.contains(peer), *peer));
        let (None, Some(next)) = (stays, next) else { return false };
        let tries = single.tries.entry(next).or_default();
        single.until = now + turn(*tries);
        *tries += 1;
        single.giver = Some(next);
        self.restart();
        true
    }
}

fn turn(before: u32) -> Duration {
    TURN * 2u32.pow(before.min(TURN_DOUBLINGS_MAX))
}
