//! Whose turn it is among those that a rate limit holds back.
//!
//! Owns: the order in which they are let go. Never: the limits (`limits`), what is sent (`upload`).
//! Flow: an upload meets a limit -> held -> the limit is open -> one of them is let go.
//!
//! A limit makes upload scarce, so what it is spent on counts. Served in equal parts, many peers
//! all wait long for their first whole piece, and have nothing to give each other meanwhile; and
//! where several ask for the same piece it goes out several times, though one of them would pass it
//! on. So turns are whole pieces, as far as nobody waits too long for that, and the next turn is
//! for the piece that was given least.

use std::{collections::VecDeque, time::Duration};

use seedring_platform::op::Io;

use super::Key;
use crate::shard::Shard;

/// Compared for a turn: the first so many of those held back.
const COMPARED_MAX: usize = 64;
/// Who has waited this long for a block is next, whatever it asks for: clients give a peer up after
/// 20 to 60 s.
const PATIENCE: Duration = Duration::from_secs(15);
/// All that are held back have had a turn in about this time, so turns are shorter where many are.
const ROUND: Duration = Duration::from_secs(10);
/// A turn's bytes.
const TURN_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=4 << 20;

/// The lower, the sooner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Rank {
    Overdue,
    /// Its turn is not over, nor is its piece.
    GoesOn,
    /// Has a part of a piece.
    Begun,
    /// Wants a piece that so many have been given.
    New(u16),
}

impl<I: Io> Shard<I> {
    /// One whose limits are open gets its turn; what it leaves is the next one's. Waking all of
    /// them would let the first take everything, each time.
    pub(crate) fn wake_throttled(&mut self, now: Duration) {
        if self.throttled.is_empty() || now < self.throttled_until {
            return;
        }
        let mut next = Duration::MAX;
        let mut best: Option<(Rank, usize)> = None;
        for at in 0..self.throttled.len() {
            if at >= COMPARED_MAX && best.is_some() {
                break;
            }
            let key = self.throttled[at];
            if let Some(until) = self.held_until(key, now) {
                next = next.min(until);
                continue;
            }
            let rank = self.rank(key, now);
            if best.is_none_or(|(best, _)| rank < best) {
                best = Some((rank, at));
            }
        }
        let Some((_, at)) = best else {
            self.throttled_until = next;
            return;
        };
        let key = self.throttled.remove(at).expect("invariant: a place in it");
        self.throttled_until = now;
        if self.throttled_turn.replace(key) != Some(key)
            && let Some(open) = self.connections.get(key).and_then(|c| c.open())
        {
            open.flow().turn_bytes = 0;
        }
        self.let_go(VecDeque::from([key]));
    }

    fn rank(&mut self, key: Key, now: Duration) -> Rank {
        let goes_on = self.throttled_turn == Some(key);
        let turn_bytes = self.turn_bytes(key);
        let Some(open) = self.connections.get(key).and_then(|c| c.open()) else {
            return Rank::Overdue; // gone: it takes no turn
        };
        let asked = open.flow.as_ref().map(|flow| (flow.asked.oldest(), flow.turn_bytes));
        let (Some((oldest, sent_bytes)), Some(block)) = (asked, open.session.queue().get(0)) else {
            return Rank::Overdue;
        };
        if oldest.is_some_and(|at| now.saturating_sub(at) >= PATIENCE) {
            return Rank::Overdue;
        }
        let Some(local) = self.torrents.get(&open.torrent) else { return Rank::Overdue };
        let before = local.contents.as_ref().and_then(|c| c.piece_before(open.run_end));
        match before == Some(block.piece) {
            true if goes_on && sent_bytes < turn_bytes => Rank::GoesOn,
            true => Rank::Begun,
            false => Rank::New(local.given(block.piece)),
        }
    }

    /// How long a turn of this connection is.
    fn turn_bytes(&mut self, key: Key) -> u64 {
        let torrent = self.connections.get(key).and_then(|c| c.open()).map(|open| open.torrent);
        let local = torrent.and_then(|id| self.torrents.get(&id));
        let meters = [Some(&self.options.globals.upload), local.map(|local| &local.shared.upload)];
        let rate = meters.into_iter().flatten().filter_map(|meter| meter.rate()).min();
        let round_bytes = rate.unwrap_or(u64::MAX).saturating_mul(ROUND.as_secs());
        let turn = round_bytes / self.throttled.len().max(1) as u64;
        turn.clamp(*TURN_BYTES.start(), *TURN_BYTES.end())
    }
}
