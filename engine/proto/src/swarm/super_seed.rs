//! Owns: which piece a seed shows to which peer, where it shows them one by one (BEP 16).
//! Never: serves, or speaks; peers are keys and bits. Flow: what peers get and who comes and goes
//! -> `next` -> pieces to show, each by a `have`.
//!
//! A seed that begins a swarm wants to send each piece about once, and have its peers spread it. So
//! it says that it has nothing, and shows each peer one piece that nobody has or is getting. It
//! shows the next when it hears of that piece from somebody else. Whoever passes on is shown more
//! at a time, since some clients look but every 10 s for what a peer has.
//!
//! That a peer has what it was shown it need not say to one that has it too, so it counts as had
//! when all of it was served.
//!
//! That alone could stand still, so a peer also gets another piece where it is alone, where what it
//! has got is passed on by nobody for [`PATIENCE`], where it does not fetch what it was shown for
//! [`FETCH_WITHIN`], and, once all pieces are out, where it gained nothing for [`STUCK_AFTER`].
//! When a peer is a seed by itself, there is nothing to begin any more: [`SuperSeed::is_over`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::peer::RemotePieces;
use crate::units::PieceIndex;

/// A piece that nobody passed on for so long holds its peer up no more.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// A piece that was not fetched in this time may be shown to others. It may be of a file that the
/// peer does not want.
pub const FETCH_WITHIN: Duration = Duration::from_secs(60);
/// With all pieces out there, a peer that gained none for so long is helped.
pub const STUCK_AFTER: Duration = Duration::from_secs(10);
/// Pieces shown at a time to a peer that is alone: it need not wait a round trip for each.
const AHEAD_ALONE: usize = 4;
/// Who is alone for so long is shown everything: there is nobody to begin a swarm with.
pub const ALONE_AFTER: Duration = Duration::from_secs(10);
/// As many in one call at most.
const SHOWN_MAX: usize = 1_024;
/// Pieces that a peer which passes on has at a time, fetched or to be passed on.
const CREDIT_MAX: usize = 8;
/// Pieces looked at for one that a peer lacks.
const LOOKED_AT_MAX: usize = 256;

#[derive(Clone, Copy, Default, Debug)]
struct Piece {
    /// Connected peers that have it.
    seen: u16,
    /// Peers that it was shown to and that are to fetch it.
    fetched_by: u16,
    queued: bool,
}

#[derive(Debug)]
struct Leech {
    has: Bits,
    has_count: usize,
    shown: Bits,
    /// Shown lately, and not had.
    fetching: Vec<Fetching>,
    /// Had by it and nobody else; with the time.
    passing: Vec<(PieceIndex, Duration)>,
    gained_at: Duration,
    /// Pieces that it may have at a time, fetched from us or not passed on yet.
    credit: usize,
}

#[derive(Clone, Copy, Debug)]
struct Fetching {
    piece: PieceIndex,
    since: Duration,
    /// Bytes that were not served yet.
    left: u32,
}

#[derive(Clone, Debug)]
struct Bits(Box<[u64]>);

impl Bits {
    fn new(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)].into())
    }

    fn has(&self, piece: PieceIndex) -> bool {
        self.0[piece.0 as usize / 64] & 1 << (piece.0 % 64) != 0
    }

    /// Whether that is news.
    fn set(&mut self, piece: PieceIndex) -> bool {
        let news = !self.has(piece);
        self.0[piece.0 as usize / 64] |= 1 << (piece.0 % 64);
        news
    }

    fn clear(&mut self, piece: PieceIndex) {
        self.0[piece.0 as usize / 64] &= !(1 << (piece.0 % 64));
    }

    fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
}

/// See the module.
#[derive(Debug)]
pub struct SuperSeed<K> {
    pieces: Vec<Piece>,
    leeches: BTreeMap<K, Leech>,
    /// Pieces that nobody had or was getting when they came in here.
    queue: VecDeque<PieceIndex>,
    /// A peer has got everything, or had it.
    over: bool,
    alone_since: Option<Duration>,
    /// A peer came that had everything: somebody else seeds.
    others_seed: bool,
}

impl<K: Copy + Ord> SuperSeed<K> {
    /// `seed` gives the order in which pieces go out.
    pub fn new(piece_count: u32, seed: u64) -> Self {
        let mut random = seed;
        let mut order: Vec<PieceIndex> = (0..piece_count).map(PieceIndex).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, (draw(&mut random) % (at as u64 + 1)) as usize);
        }
        let piece = Piece { queued: true, ..Piece::default() };
        Self {
            pieces: vec![piece; piece_count as usize],
            leeches: BTreeMap::new(),
            queue: order.into(),
            over: false,
            alone_since: None,
            others_seed: false,
        }
    }

    /// A peer came that was told that we have nothing.
    pub fn joined(&mut self, key: K, now: Duration) {
        let bits = || Bits::new(self.pieces.len());
        let (has, shown) = (bits(), bits());
        let (fetching, passing) = (Vec::new(), Vec::new());
        let leech =
            Leech { has, has_count: 0, shown, fetching, passing, gained_at: now, credit: 1 };
        self.leeches.insert(key, leech);
    }

    /// A peer has one more piece.
    pub fn got(&mut self, key: K, piece: PieceIndex, now: Duration) {
        let Some(leech) = self.leeches.get_mut(&key) else { return };
        if piece.0 as usize >= self.pieces.len() || !leech.has.set(piece) {
            return;
        }
        leech.gained_at = now;
        leech.has_count += 1;
        let state = &mut self.pieces[piece.0 as usize];
        state.seen += 1;
        if state.seen == 1 && leech.shown.has(piece) {
            leech.passing.push((piece, now));
        }
        // Whom else it was shown to passed it on, or need not fetch it from us any more.
        for (other, leech) in &mut self.leeches {
            let before = (leech.fetching.len(), leech.passing.len());
            leech.fetching.retain(|fetching| fetching.piece != piece);
            leech.passing.retain(|(passed, _)| *passed != piece || *other == key);
            self.pieces[piece.0 as usize].fetched_by -= (before.0 - leech.fetching.len()) as u16;
            if *other != key && before != (leech.fetching.len(), leech.passing.len()) {
                leech.credit = (leech.credit + 1).min(CREDIT_MAX);
            }
        }
        self.look_for_end(key);
    }

    /// Bytes of a piece went to a peer.
    pub fn served(&mut self, key: K, piece: PieceIndex, bytes: u32, now: Duration) {
        let Some(leech) = self.leeches.get_mut(&key) else { return };
        let fetching = leech.fetching.iter_mut().find(|fetching| fetching.piece == piece);
        let Some(fetching) = fetching else { return };
        fetching.left = fetching.left.saturating_sub(bytes);
        if fetching.left == 0 {
            self.got(key, piece, now);
        }
    }

    /// What a peer has was said anew; pieces are only ever added by that.
    pub fn has(&mut self, key: K, pieces: &RemotePieces, now: Duration) {
        let Some(leech) = self.leeches.get(&key) else { return };
        let mut news = Vec::new();
        for (at, had) in leech.has.0.iter().enumerate() {
            each_bit(at, pieces.word(at) & !had, |piece| news.push(piece));
        }
        news.into_iter().for_each(|piece| self.got(key, piece, now));
    }

    /// A peer lost a piece.
    pub fn lost(&mut self, key: K, piece: PieceIndex) {
        let Some(leech) = self.leeches.get_mut(&key) else { return };
        if (piece.0 as usize) < self.pieces.len() && leech.has.has(piece) {
            leech.has.clear(piece);
            leech.has_count -= 1;
            self.unseen(piece);
        }
    }

    /// A peer is gone.
    pub fn left(&mut self, key: K) {
        let Some(leech) = self.leeches.remove(&key) else { return };
        for Fetching { piece, .. } in leech.fetching {
            self.pieces[piece.0 as usize].fetched_by -= 1;
            self.queue_again(piece);
        }
        for (at, had) in leech.has.0.iter().enumerate() {
            each_bit(at, *had, |piece| self.unseen(piece));
        }
    }

    /// Whether a peer was shown this piece, and so may ask for it.
    pub fn is_shown(&self, key: K, piece: PieceIndex) -> bool {
        self.leeches.get(&key).is_some_and(|leech| leech.shown.has(piece))
    }

    pub fn is_known(&self, key: K) -> bool {
        self.leeches.contains_key(&key)
    }

    pub fn keys(&self) -> impl Iterator<Item = K> + '_ {
        self.leeches.keys().copied()
    }

    /// Nothing is left to begin: a peer has everything. Who comes from here on is told all.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Somebody else seeds too: all may be told all.
    pub fn others_seed(&self) -> bool {
        self.others_seed
    }

    /// Bytes on the heap.
    pub fn held_bytes(&self) -> usize {
        let bits = 2 * self.pieces.len().div_ceil(64) * 8;
        let piece = size_of::<Piece>() + size_of::<PieceIndex>();
        self.pieces.len() * piece + self.leeches.len() * (size_of::<(K, Leech)>() + bits)
    }

    /// What is to be shown now: to whom, which piece. `bytes`: of a piece; `None`: we have it not.
    pub fn next(
        &mut self,
        now: Duration,
        bytes: impl Fn(PieceIndex) -> Option<u32>,
    ) -> Vec<(K, PieceIndex)> {
        let offered = |piece| bytes(piece).is_some();
        self.give_up_unfetched(now);
        let mut shown = Vec::new();
        let keys: Vec<K> = self.keys().collect();
        match keys[..] {
            [_] => _ = self.alone_since.get_or_insert(now),
            _ => self.alone_since = None,
        }
        for key in keys {
            while shown.len() < SHOWN_MAX && self.may_have_more(key, now) {
                let needed = self.take_needed(key, &offered);
                let helped = needed.is_none();
                let Some(piece) = needed.or_else(|| self.help(key, now, &offered)) else {
                    break;
                };
                let leech = self.leeches.get_mut(&key).expect("invariant: a key of now");
                leech.shown.set(piece);
                let left = bytes(piece).unwrap_or(0);
                leech.fetching.push(Fetching { piece, since: now, left });
                self.pieces[piece.0 as usize].fetched_by += 1;
                shown.push((key, piece));
                if helped {
                    break; // each such look goes through all pieces
                }
            }
        }
        shown
    }

    fn may_have_more(&self, key: K, now: Duration) -> bool {
        let leech = &self.leeches[&key];
        let waits = |(_, since): &&(PieceIndex, Duration)| now.saturating_sub(*since) < PATIENCE;
        match self.alone_since {
            Some(since) if now.saturating_sub(since) >= ALONE_AFTER => true,
            Some(_) => leech.fetching.len() < AHEAD_ALONE,
            None => {
                leech.fetching.len() + leech.passing.iter().filter(waits).count() < leech.credit
            }
        }
    }

    /// The next piece that nobody has or is getting, and that this peer may be shown.
    fn take_needed(&mut self, key: K, offered: &impl Fn(PieceIndex) -> bool) -> Option<PieceIndex> {
        if self.over {
            return None;
        }
        let mut aside = Vec::new();
        let mut taken = None;
        for _ in 0..LOOKED_AT_MAX {
            let Some(piece) = self.queue.pop_front() else { break };
            let state = &mut self.pieces[piece.0 as usize];
            state.queued = false;
            if state.seen > 0 || state.fetched_by > 0 {
                continue;
            }
            if offered(piece) && !self.leeches[&key].shown.has(piece) {
                taken = Some(piece);
                break;
            }
            aside.push(piece);
        }
        aside.into_iter().for_each(|piece| self.queue_again(piece));
        taken
    }

    /// The rarest piece that a peer lacks which gets nothing by itself.
    fn help(
        &self,
        key: K,
        now: Duration,
        offered: &impl Fn(PieceIndex) -> bool,
    ) -> Option<PieceIndex> {
        let leech = &self.leeches[&key];
        let stuck = now.saturating_sub(leech.gained_at) >= STUCK_AFTER;
        if !stuck && self.alone_since.is_none() {
            return None;
        }
        let lacks = |piece: &PieceIndex| {
            !leech.has.has(*piece) && !leech.shown.has(*piece) && offered(*piece)
        };
        let rarity = |piece: &PieceIndex| {
            let state = self.pieces[piece.0 as usize];
            u32::from(state.seen) + u32::from(state.fetched_by)
        };
        (0..self.pieces.len() as u32).map(PieceIndex).filter(lacks).min_by_key(rarity)
    }

    fn give_up_unfetched(&mut self, now: Duration) {
        let mut given_up = Vec::new();
        for leech in self.leeches.values_mut() {
            leech.fetching.retain(|fetching| {
                let keep = now.saturating_sub(fetching.since) < FETCH_WITHIN;
                if !keep {
                    given_up.push(fetching.piece);
                }
                keep
            });
        }
        for piece in given_up {
            self.pieces[piece.0 as usize].fetched_by -= 1;
            self.queue_again(piece);
        }
    }

    /// One peer less has it.
    fn unseen(&mut self, piece: PieceIndex) {
        self.pieces[piece.0 as usize].seen -= 1;
        self.queue_again(piece);
    }

    fn queue_again(&mut self, piece: PieceIndex) {
        let state = &mut self.pieces[piece.0 as usize];
        if state.seen == 0 && state.fetched_by == 0 && !state.queued {
            state.queued = true;
            self.queue.push_back(piece);
        }
    }

    fn look_for_end(&mut self, key: K) {
        let leech = &self.leeches[&key];
        if leech.has_count == self.pieces.len() {
            self.over = true;
            self.others_seed |= leech.shown.count() == 0;
        }
    }
}

fn each_bit(word: usize, mut bits: u64, mut what: impl FnMut(PieceIndex)) {
    while bits != 0 {
        what(PieceIndex(word as u32 * 64 + bits.trailing_zeros()));
        bits &= bits - 1;
    }
}

/// splitmix64.
fn draw(random: &mut u64) -> u64 {
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *random;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
