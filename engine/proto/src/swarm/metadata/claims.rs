//! Owns: what one peer claimed and was asked for: deadlines, answers that may still come, rests.
//! Never: knows what is needed, or holds data.
//! Flow: the fetch asks through it, and learns from it which answers were wanted.

use std::time::Duration;

use super::{ASKS_A_PEER_MAX, SILENT_REST};

/// Requests kept a peer, those included that are not waited for any more; the oldest are
/// forgotten, and an answer to one counts as unwanted.
const ASKS_KEPT_MAX: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Ask {
    piece: u32,
    /// `None`: not waited for any more, but an answer may be under way.
    deadline: Option<Duration>,
}

/// A peer that says it has metadata.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// `metadata_size`, at least 1.
    pub claim_bytes: u32,
    asks: Vec<Ask>,
    rests_until: Duration,
}

impl Claimant {
    pub fn new(claim_bytes: u32) -> Self {
        Self { claim_bytes, asks: Vec::new(), rests_until: Duration::ZERO }
    }

    /// The pieces that it is waited for.
    pub fn waiting(&self) -> impl Iterator<Item = u32> {
        self.asks.iter().filter(|ask| ask.deadline.is_some()).map(|ask| ask.piece)
    }

    pub fn waits_for(&self, piece: u32) -> bool {
        self.waiting().any(|waiting| waiting == piece)
    }

    pub fn asked(&mut self, piece: u32, deadline: Duration) {
        self.asks.retain(|ask| ask.piece != piece);
        if self.asks.len() >= ASKS_KEPT_MAX
            && let Some(oldest) = self.asks.iter().position(|ask| ask.deadline.is_none())
        {
            self.asks.remove(oldest);
        }
        self.asks.push(Ask { piece, deadline: Some(deadline) });
        debug_assert!(self.asks.len() <= ASKS_KEPT_MAX, "few are waited for");
    }

    /// Data or a reject came. `None`: nobody asked; else whether it was still waited for.
    pub fn answered(&mut self, piece: u32) -> Option<bool> {
        let at = self.asks.iter().position(|ask| ask.piece == piece)?;
        Some(self.asks.remove(at).deadline.is_some())
    }

    /// Nothing is waited for any more.
    pub fn give_up_all(&mut self) {
        self.asks.iter_mut().for_each(|ask| ask.deadline = None);
    }

    /// Gives up what is late, and lets a peer that is late rest.
    pub fn expire(&mut self, now: Duration, mut given_up: impl FnMut(u32)) {
        for ask in &mut self.asks {
            if ask.deadline.is_some_and(|deadline| deadline <= now) {
                ask.deadline = None;
                self.rests_until = self.rests_until.max(now + SILENT_REST);
                given_up(ask.piece);
            }
        }
    }

    pub fn rest(&mut self, until: Duration) {
        self.rests_until = self.rests_until.max(until);
    }

    /// It gave something: it may be asked again.
    pub fn rested(&mut self) {
        self.rests_until = Duration::ZERO;
    }

    pub fn is_resting(&self, now: Duration) -> bool {
        now < self.rests_until
    }

    pub fn can_be_asked(&self, now: Duration) -> bool {
        !self.is_resting(now) && self.waiting().count() < ASKS_A_PEER_MAX
    }

    /// The next time at which it expires or has rested.
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        let rested = Some(self.rests_until).filter(|until| *until > now);
        self.asks.iter().filter_map(|ask| ask.deadline).chain(rested).min()
    }
}
