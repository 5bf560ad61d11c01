//! Owns: when a session last heard, said and wanted something, and what follows from silence.
//! Never: asks for the time: every moment is handed in.
//! Flow: receive and upload note moments; the shard's timer calls `timeout` when the last one said.

use std::time::Duration;

use super::Session;
use crate::wire::Violation;
use crate::wire::message::Message;

/// We say something at least this often, give or take a tenth. BEP 3 wants it every two minutes.
pub const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(100);
/// A peer that says nothing is closed: two minutes by BEP 3, and room for a late keep-alive.
pub const SILENT_AFTER: Duration = Duration::from_secs(180);
/// A connection on which nobody wants anything is closed, as libtorrent does when it is full.
pub const INACTIVE_AFTER: Duration = Duration::from_secs(600);
/// Unwanted bytes are forgotten after this long.
const UNWANTED_SPAN: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Clock {
    last_heard: Duration,
    last_said: Duration,
    keep_alive_after: Duration,
    uninterested_since: Option<Duration>,
    waiting_since: Option<Duration>,
    last_choked: Option<Duration>,
    last_unchoked: Option<Duration>,
    unwanted_since: Duration,
}

impl Clock {
    /// `seed` spreads keep-alives, so that connections made together do not wake together.
    pub fn new(now: Duration, seed: u64) -> Self {
        let spread_ms = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        Self {
            last_heard: now,
            last_said: now,
            keep_alive_after: KEEP_ALIVE_AFTER - Duration::from_millis(spread_ms % 10_000),
            uninterested_since: Some(now),
            waiting_since: None,
            last_choked: None,
            last_unchoked: None,
            unwanted_since: now,
        }
    }

    pub fn heard(&mut self, now: Duration) {
        self.last_heard = now;
    }

    pub fn sent(&mut self, now: Duration) {
        self.last_said = now;
    }

    pub fn interest(&mut self, interested: bool, am_choking: bool, now: Duration) {
        if interested {
            self.uninterested_since = None;
            if am_choking {
                self.waiting_since.get_or_insert(now);
            }
        } else {
            self.waiting_since = None;
            self.uninterested_since.get_or_insert(now);
        }
    }

    pub fn choked(&mut self, peer_interested: bool, now: Duration) {
        self.last_said = now;
        self.last_choked = Some(now);
        self.waiting_since = peer_interested.then_some(now);
    }

    pub fn unchoked(&mut self, now: Duration) {
        self.last_said = now;
        self.last_unchoked = Some(now);
        self.waiting_since = None;
    }

    pub fn choked_within(&self, span: Duration, now: Duration) -> bool {
        self.last_choked.is_some_and(|at| now.saturating_sub(at) < span)
    }

    pub fn last_unchoked(&self) -> Option<Duration> {
        self.last_unchoked
    }

    pub fn waiting_since(&self) -> Option<Duration> {
        self.waiting_since
    }

    pub fn unwanted_span_over(&mut self, now: Duration) -> bool {
        let over = now.saturating_sub(self.unwanted_since) >= UNWANTED_SPAN;
        if over {
            self.unwanted_since = now;
        }
        over
    }
}

impl Session {
    /// Does what is due, and gives the moment of the next call. A call too early does no harm.
    ///
    /// # Errors
    /// The peer was silent for [`SILENT_AFTER`], or not interested for [`INACTIVE_AFTER`]: the
    /// connection is to be closed, without blame.
    pub fn timeout(
        &mut self,
        now: Duration,
        out: &mut Vec<u8>,
    ) -> Result<Option<Duration>, Violation> {
        let clock = &mut self.state.clock;
        let silent_at = clock.last_heard + SILENT_AFTER;
        if now >= silent_at {
            return Err(Violation::Silent(SILENT_AFTER));
        }
        let inactive_at = clock.uninterested_since.map(|since| since + INACTIVE_AFTER);
        if inactive_at.is_some_and(|at| now >= at) {
            return Err(Violation::Inactive(INACTIVE_AFTER));
        }
        if now >= clock.last_said + clock.keep_alive_after {
            Message::KeepAlive.encode(out);
            clock.last_said = now;
        }
        let next = silent_at.min(clock.last_said + clock.keep_alive_after);
        self.state.queue.release();
        Ok(Some(inactive_at.map_or(next, |at| next.min(at))))
    }

    /// Since when nobody has wanted anything, if so: such connections go first when one must.
    pub fn inactive_since(&self) -> Option<Duration> {
        self.state.clock.uninterested_since
    }
}
