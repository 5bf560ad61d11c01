//! Owns: when a session last heard, said and wanted something, and what follows from silence.
//! Never: asks for the time: every moment is handed in.
//! Flow: receive and upload note moments; the shard's timer calls `timeout` when the last one said.

use std::num::NonZeroU64;
use std::ops::Add;
use std::time::Duration;

use super::Session;
use crate::wire::Violation;
use crate::wire::message::Message;

/// We say something at least this often, give or take a tenth. BEP 3 wants it every two minutes.
pub const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(100);
/// A peer that says nothing is closed, unless the user says otherwise after this long: two minutes
/// by BEP 3, and room for a late keep-alive.
pub const SILENT_AFTER: Duration = Duration::from_secs(180);
/// A connection on which nobody wants anything is closed, as libtorrent does when it is full.
pub const INACTIVE_AFTER: Duration = Duration::from_secs(600);
/// Unwanted bytes are forgotten after this long.
const UNWANTED_SPAN_S: u32 = 600;

/// A moment in eight bytes, none where it is optional too: a session keeps six, and there are
/// thousands of sessions.
#[derive(Clone, Copy, Debug)]
struct Moment(NonZeroU64);

impl Moment {
    fn of(at: Duration) -> Self {
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        Self(NonZeroU64::MIN.saturating_add(nanos))
    }

    fn get(self) -> Duration {
        Duration::from_nanos(self.0.get() - 1)
    }
}

impl Add<Duration> for Moment {
    type Output = Duration;

    fn add(self, span: Duration) -> Duration {
        self.get() + span
    }
}

#[derive(Debug)]
pub(super) struct Clock {
    last_heard: Moment,
    last_said: Moment,
    uninterested_since: Option<Moment>,
    waiting_since: Option<Moment>,
    last_choked: Option<Moment>,
    last_unchoked: Option<Moment>,
    unwanted_since_s: u32,
    /// How much earlier than others its keep-alives go out.
    keep_alive_early_ms: u16,
}

impl Clock {
    /// `seed` spreads keep-alives, so that connections made together do not wake together.
    pub fn new(now: Duration, seed: u64) -> Self {
        let spread_ms = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        Self {
            last_heard: Moment::of(now),
            last_said: Moment::of(now),
            uninterested_since: Some(Moment::of(now)),
            waiting_since: None,
            last_choked: None,
            last_unchoked: None,
            unwanted_since_s: now.as_secs() as u32,
            keep_alive_early_ms: (spread_ms % 10_000) as u16,
        }
    }

    pub fn heard(&mut self, now: Duration) {
        self.last_heard = Moment::of(now);
    }

    pub fn sent(&mut self, now: Duration) {
        self.last_said = Moment::of(now);
    }

    pub fn interest(&mut self, interested: bool, am_choking: bool, now: Duration) {
        if interested {
            self.uninterested_since = None;
            if am_choking {
                self.waiting_since.get_or_insert(Moment::of(now));
            }
        } else {
            self.waiting_since = None;
            self.uninterested_since.get_or_insert(Moment::of(now));
        }
    }

    /// We want something of the peer: for as long nobody counts as without interest.
    pub fn interested_ourselves(&mut self, now: Duration) {
        self.uninterested_since = self.uninterested_since.map(|_| Moment::of(now));
    }

    pub fn choked(&mut self, peer_interested: bool, now: Duration) {
        self.sent(now);
        self.last_choked = Some(self.last_said);
        self.waiting_since = peer_interested.then_some(self.last_said);
    }

    pub fn unchoked(&mut self, now: Duration) {
        self.sent(now);
        self.last_unchoked = Some(self.last_said);
        self.waiting_since = None;
    }

    pub fn choked_within(&self, span: Duration, now: Duration) -> bool {
        self.last_choked.is_some_and(|at| now.saturating_sub(at.get()) < span)
    }

    pub fn last_unchoked(&self) -> Option<Duration> {
        self.last_unchoked.map(Moment::get)
    }

    pub fn waiting_since(&self) -> Option<Duration> {
        self.waiting_since.map(Moment::get)
    }

    pub fn unwanted_span_over(&mut self, now: Duration) -> bool {
        let now_s = now.as_secs() as u32;
        let over = now_s.saturating_sub(self.unwanted_since_s) >= UNWANTED_SPAN_S;
        if over {
            self.unwanted_since_s = now_s;
        }
        over
    }

    fn keep_alive_after(&self) -> Duration {
        KEEP_ALIVE_AFTER - Duration::from_millis(self.keep_alive_early_ms.into())
    }
}

impl Session {
    /// Does what is due, and gives the moment of the next call. A call too early does no harm.
    /// `silent_after`: how long a peer may say nothing; it may differ from call to call.
    ///
    /// # Errors
    /// The peer was silent for `silent_after`, or neither side interested for [`INACTIVE_AFTER`]:
    /// the connection is to be closed, without blame.
    pub fn timeout(
        &mut self,
        now: Duration,
        silent_after: Duration,
        out: &mut Vec<u8>,
    ) -> Result<Option<Duration>, Violation> {
        self.state.settle_download(now);
        let am_interested = self.state.am_interested();
        let clock = &mut self.state.clock;
        let silent_at = clock.last_heard + silent_after;
        if now >= silent_at {
            return Err(Violation::Silent(silent_after));
        }
        let inactive_since = clock.uninterested_since.filter(|_| !am_interested);
        let inactive_at = inactive_since.map(|since| since + INACTIVE_AFTER);
        if inactive_at.is_some_and(|at| now >= at) {
            return Err(Violation::Inactive(INACTIVE_AFTER));
        }
        if now >= clock.last_said + clock.keep_alive_after() {
            Message::KeepAlive.encode(out);
            clock.sent(now);
        }
        let next = silent_at.min(clock.last_said + clock.keep_alive_after());
        Ok(Some(inactive_at.map_or(next, |at| next.min(at))))
    }

    /// Since when nobody has wanted anything, if so: such connections go first when one must.
    pub fn inactive_since(&self) -> Option<Duration> {
        let since = self.state.clock.uninterested_since.filter(|_| !self.state.am_interested());
        since.map(Moment::get)
    }
}
