//! One address's connection, as all announces to it share it.
//!
//! Owns: the connection id and its life, when the next connect request may go out, what came back
//! instead of an id. Never: sends, or knows which announces wait.
//! Flow: [`super::exchanges`] asks whether there is an id, or hope of one, and notes what it sent
//! and heard.

use std::net::SocketAddr;
use std::time::Duration;

use super::packet::{ConnectionId, PacketError};
use super::transactions::TransactionId;

#[derive(Debug, Default)]
pub(super) struct Connection {
    id: Option<(ConnectionId, Duration)>,
    /// Counts ids, since a tracker may give the same one again (opentracker makes it of our
    /// address).
    grants: u64,
    /// The connect request that is not answered.
    pub(super) asked: Option<TransactionId>,
    /// Connect requests in a row without an id in return.
    unanswered: u32,
    /// No connect request before this.
    not_before: Duration,
    /// An answer to the last one is awaited until here.
    patience: Duration,
    /// The last one came back with an error: nothing is awaited until `not_before`.
    turned_away: Option<TurnedAway>,
    fault: Option<PacketError>,
}

#[derive(Debug)]
pub(super) enum TurnedAway {
    /// The tracker's text, fit to show.
    Refused(String),
    /// The kernel's.
    Unsendable(String),
}

impl Connection {
    /// With its number, for [`Self::forget`].
    pub(super) fn id(&self, now: Duration) -> Option<(ConnectionId, u64)> {
        self.id.and_then(|(id, until)| (until > now).then_some((id, self.grants)))
    }

    pub(super) fn may_ask(&self, now: Duration) -> bool {
        now >= self.not_before
    }

    /// While no request may go out: can an id still come before `end`?
    pub(super) fn has_hope(&self, now: Duration, end: Duration) -> bool {
        self.turned_away.is_none() && (now < self.patience || self.not_before < end)
    }

    /// When [`Self::may_ask`] and [`Self::has_hope`] may change.
    pub(super) fn deadlines(&self) -> [Duration; 2] {
        [self.not_before, self.patience]
    }

    /// A connect request goes out; the wait after it doubles with each that is not answered.
    pub(super) fn ask(&mut self, now: Duration, wait: Duration, doublings_max: u32) {
        let doublings = self.unanswered.min(doublings_max);
        self.not_before = now + wait.saturating_mul(1 << doublings);
        self.patience = now + wait;
        self.unanswered = self.unanswered.saturating_add(1);
        self.turned_away = None;
    }

    pub(super) fn granted(&mut self, now: Duration, id: ConnectionId, life: Duration) {
        self.id = Some((id, now + life));
        self.grants += 1;
        self.unanswered = 0;
        self.not_before = now;
        self.patience = now;
        self.fault = None;
    }

    /// It is asked again when its schedule says so, whichever torrents want to before.
    pub(super) fn turn_away(&mut self, now: Duration, why: TurnedAway) {
        self.patience = now;
        self.turned_away = Some(why);
    }

    /// What arrived was no answer; that may still come.
    pub(super) fn note(&mut self, fault: PacketError) {
        self.fault = Some(fault);
    }

    /// This id was not good; a newer one stays.
    pub(super) fn forget(&mut self, grant: u64) {
        if self.grants == grant {
            self.id = None;
        }
    }

    /// Shutdown. An address that is known to be silent keeps its distance.
    pub(super) fn hurry(&mut self, soon: Duration) {
        self.patience = self.patience.min(soon);
        if self.unanswered <= 1 {
            self.not_before = self.not_before.min(soon);
        }
    }

    /// Nothing would be lost with it.
    pub(super) fn is_idle(&self, now: Duration) -> bool {
        self.id(now).is_none() && self.may_ask(now)
    }

    pub(super) fn wait(&self, now: Duration) -> Duration {
        self.not_before.saturating_sub(now)
    }

    pub(super) fn is_refused(&self) -> bool {
        matches!(self.turned_away, Some(TurnedAway::Refused(_)))
    }

    /// Why there is no id, where that is known.
    pub(super) fn reason(&self, address: SocketAddr) -> Option<String> {
        match &self.turned_away {
            Some(TurnedAway::Refused(text)) => Some(text.clone()),
            Some(TurnedAway::Unsendable(why)) => {
                Some(format!("cannot send to the tracker at {address}: {why}"))
            }
            None => self.fault.as_ref().map(ToString::to_string),
        }
    }
}
