//! One torrent's announces.
//!
//! Owns: the tiers (BEP 12), what each tracker was told, when to announce next and to whom.
//! Never: waits for a host's turn (the governor does), sends, reads totals or a clock.
//! Flow: the schedule polls it when due, executes the announce, and gives the outcome back.
//!
//! One announce of a torrent is in flight at a time, whatever the number of listen addresses,
//! shards
//! and trackers, so a tracker that counts traffic counts it once. That is also all that BEP 27
//! asks of
//! a private torrent: one tracker at a time; the next tier only where the one before failed.

use std::sync::Arc;
use std::time::Duration;

use super::announce::Event;
use super::jitter::Jitter;
use super::reply::{Reply, Retry};
use super::url::TrackerUrl;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Where the tracker names none.
    pub interval_default: Duration,
    /// What a tracker asks for is clamped to these (threat 14).
    pub interval_min: Duration,
    pub interval_max: Duration,
    /// Earliest announce for more peers, where the tracker names none.
    pub min_interval_default: Duration,
    /// First wait after a failure; it doubles with each, up to `backoff_max`.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// Times `stopped` is tried at a tracker that does not answer, and the wait between.
    pub stop_attempts_max: u8,
    pub stop_retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            interval_default: Duration::from_secs(1800),
            interval_min: Duration::from_secs(60),
            interval_max: Duration::from_secs(86400),
            min_interval_default: Duration::from_secs(300),
            backoff_min: Duration::from_secs(15),
            backoff_max: Duration::from_secs(3600),
            stop_attempts_max: 2,
            stop_retry: Duration::from_secs(3),
        }
    }
}

/// A tracker as all torrents that name it share it.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub url: TrackerUrl,
    /// [`TrackerUrl::host_key`].
    pub host: Arc<str>,
    pub origin: Origin,
}

/// Who named the tracker: decides where it may lead (RELIABILITY, threat 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The user's configuration.
    User,
    /// A .torrent file or a magnet link.
    Torrent,
}

/// An announce to make now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announce {
    pub endpoint: Arc<Endpoint>,
    pub event: Event,
    pub tracker_id: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Fit to show.
    pub message: String,
    pub retry: Retry,
    /// The tracker answered and said no; asking the same again changes nothing.
    pub refused: bool,
    /// The request may have arrived although no answer did, so `stopped` is owed.
    pub maybe_heard: bool,
    /// Nothing was sent, because its host has no address or takes no connection.
    pub unreached: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    NotContacted,
    Announcing,
    Working,
    /// Failed this many times in a row.
    Failing(u32),
    /// The tracker said `retry in: never` (BEP 31).
    GivenUp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackerStatus {
    pub tier: u16,
    /// Secrets masked.
    pub url: String,
    pub state: State,
    /// In the schedule's time; `None` where nothing is planned.
    pub next_announce: Option<Duration>,
    pub last_success: Option<Duration>,
    pub seeders: Option<u32>,
    pub leechers: Option<u32>,
    pub peers: u32,
    /// Warning or failure, fit to show.
    pub message: Option<String>,
}

#[derive(Debug)]
struct Tracker {
    endpoint: Arc<Endpoint>,
    tier: u16,
    /// `started` was accepted and `stopped` was not sent since.
    registered: bool,
    /// An announce got lost on the way, the tracker may list us.
    maybe_registered: bool,
    given_up: bool,
    failures: u32,
    stop_attempts: u8,
    not_before: Duration,
    tracker_id: Option<Box<[u8]>>,
    last_success: Option<Duration>,
    seeders: Option<u32>,
    leechers: Option<u32>,
    peers: u32,
    message: Option<Box<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Stopping,
    Done,
}

#[derive(Debug)]
pub struct Announcer {
    /// By tier, inside a tier the one to try first in front.
    trackers: Vec<Tracker>,
    phase: Phase,
    in_flight: Option<(usize, Event)>,
    next: Duration,
    /// No announce for more peers before this.
    more_not_before: Duration,
    completed_owed: bool,
    current: Option<Arc<Endpoint>>,
}

impl Announcer {
    /// Shuffles each tier once (BEP 12); the first announce is due at `now`.
    #[must_use]
    pub fn new(now: Duration, tiers: Vec<Vec<Arc<Endpoint>>>, jitter: &mut Jitter) -> Self {
        let mut trackers = Vec::with_capacity(tiers.iter().map(Vec::len).sum());
        for (tier, mut endpoints) in tiers.into_iter().enumerate() {
            jitter.shuffle(&mut endpoints);
            let tier = u16::try_from(tier).unwrap_or(u16::MAX);
            trackers.extend(endpoints.into_iter().map(|endpoint| Tracker::new(endpoint, tier)));
        }
        Self {
            trackers,
            phase: Phase::Running,
            in_flight: None,
            next: now,
            more_not_before: now,
            completed_owed: false,
            current: None,
        }
    }

    /// When [`Self::poll`] has something to do; `None` while an announce is in flight and when
    /// done.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let idle = self.in_flight.is_none() && self.phase != Phase::Done;
        idle.then(|| self.candidates().map(|t| t.not_before).min())
            .flatten()
            .map(|t| t.max(self.next))
    }

    /// True when nothing is left to say: every tracker that knew of us was told `stopped`.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Trackers still to be told `stopped`.
    #[must_use]
    pub fn stops_owed(&self) -> usize {
        self.trackers.iter().filter(|t| t.registered || t.maybe_registered).count()
    }

    /// The announce that is due, which counts as in flight from here until [`Self::succeeded`],
    /// [`Self::failed`] or [`Self::withdrawn`].
    pub fn poll(&mut self, now: Duration) -> Option<Announce> {
        if self.deadline().is_none_or(|at| at > now) {
            return None;
        }
        let stopping = self.phase == Phase::Stopping;
        let at =
            self.trackers.iter().position(|t| t.is_candidate(self.phase) && t.not_before <= now)?;
        let tracker = &self.trackers[at];
        let event = match (stopping, tracker.registered) {
            (true, _) => Event::Stopped,
            (false, false) => Event::Started,
            (false, true) if self.completed_owed => Event::Completed,
            (false, true) => Event::Regular,
        };
        self.in_flight = Some((at, event));
        let tracker_id = tracker.tracker_id.as_deref().map(<[u8]>::to_vec);
        Some(Announce { endpoint: Arc::clone(&tracker.endpoint), event, tracker_id })
    }

    /// The announce in flight was taken back before anything was sent.
    pub fn withdrawn(&mut self) {
        assert!(self.in_flight.take().is_some(), "an announce was withdrawn that is not in flight");
        self.settle();
    }

    /// True where another tracker than the last time answered: on a private torrent, peers of
    /// the one
    /// before are to be dropped (BEP 27).
    pub fn succeeded(
        &mut self,
        now: Duration,
        reply: &Reply,
        timing: &Timing,
        jitter: &mut Jitter,
    ) -> bool {
        let (at, event) = self.in_flight.take().expect("invariant: outcomes follow polls");
        let interval = clamp(reply.interval.unwrap_or(timing.interval_default), timing);
        let tracker = &mut self.trackers[at];
        tracker.accept(now, reply, event);
        if event == Event::Stopped {
            self.settle();
            return false;
        }
        self.completed_owed &= event != Event::Completed;
        if self.phase == Phase::Running {
            // At most a twentieth late, which spreads torrents that were announced together.
            let spread = (interval / 20).min(Duration::from_secs(30));
            self.next = now + interval + jitter.up_to(spread);
            let min = reply.min_interval.unwrap_or(timing.min_interval_default);
            self.more_not_before = now + min.max(timing.interval_min).min(interval);
            if self.completed_owed {
                self.next = now;
            }
        }
        let endpoint = Arc::clone(&tracker.endpoint);
        let switched = self.current.as_ref().is_some_and(|before| *before != endpoint);
        self.current = Some(endpoint);
        self.promote(at);
        self.settle();
        switched
    }

    pub fn failed(
        &mut self,
        now: Duration,
        failure: &Failure,
        timing: &Timing,
        jitter: &mut Jitter,
    ) {
        let (at, event) = self.in_flight.take().expect("invariant: outcomes follow polls");
        let stopping = self.phase == Phase::Stopping;
        let tracker = &mut self.trackers[at];
        tracker.failures = tracker.failures.saturating_add(1);
        tracker.message = Some(failure.message.as_str().into());
        tracker.maybe_registered |= failure.maybe_heard && event != Event::Stopped;
        tracker.given_up |= failure.retry == Retry::Never;
        if event == Event::Stopped {
            tracker.stop_attempts += 1;
            if failure.refused || tracker.stop_attempts >= timing.stop_attempts_max {
                tracker.forget();
            }
        }
        let wait = match failure.retry {
            _ if stopping && event == Event::Stopped => timing.stop_retry,
            _ if stopping => Duration::ZERO,
            Retry::After(wait) => wait.max(timing.backoff_min).min(timing.interval_max),
            Retry::Backoff | Retry::Never => backoff(tracker.failures, timing, jitter),
        };
        tracker.not_before = now + wait;
        // The next tracker of the tier, or the next tier, is tried at once.
        self.next = now;
        self.settle();
    }

    /// Announces earlier than planned, as soon as the tracker's minimum interval allows.
    pub fn want_more_peers(&mut self, now: Duration) {
        if self.phase == Phase::Running && self.in_flight.is_none() {
            self.next = self.next.min(self.more_not_before.max(now));
        }
    }

    /// A user asks: trackers in backoff or given up are tried again; the minimum interval still
    /// holds.
    pub fn announce_now(&mut self, now: Duration) {
        for tracker in &mut self.trackers {
            tracker.given_up = false;
            tracker.not_before = tracker.not_before.min(now);
        }
        self.want_more_peers(now);
    }

    /// The last piece is there: `completed` goes to the tracker in use, once.
    pub fn completed(&mut self, now: Duration) {
        self.completed_owed = true;
        if self.phase == Phase::Running && self.in_flight.is_none() {
            self.next = self.next.min(now);
        }
    }

    /// From here only `stopped` is sent, to each tracker that knows of us.
    pub fn stop(&mut self, now: Duration) {
        if self.phase != Phase::Running {
            return;
        }
        self.phase = Phase::Stopping;
        self.next = now;
        for tracker in &mut self.trackers {
            tracker.not_before = now;
        }
        self.settle();
    }

    pub fn status(&self) -> impl Iterator<Item = TrackerStatus> + '_ {
        let in_flight = self.in_flight.map(|(at, _)| at);
        self.trackers.iter().enumerate().map(move |(at, tracker)| {
            let current = self.current.as_ref() == Some(&tracker.endpoint);
            let next = match (current && tracker.failures == 0, tracker.failures > 0) {
                (true, _) => Some(self.next),
                (_, true) => Some(tracker.not_before),
                _ => None,
            };
            let quiet = self.phase == Phase::Done || tracker.given_up || in_flight == Some(at);
            tracker.status(in_flight == Some(at), next.filter(|_| !quiet))
        })
    }

    fn candidates(&self) -> impl Iterator<Item = &Tracker> {
        self.trackers.iter().filter(|t| t.is_candidate(self.phase))
    }

    /// BEP 12: the tracker that answered moves to the front of its tier.
    fn promote(&mut self, at: usize) {
        let tier = self.trackers[at].tier;
        let front = self.trackers.iter().position(|t| t.tier == tier).unwrap_or(at);
        self.trackers[front..=at].rotate_right(1);
    }

    fn settle(&mut self) {
        if self.phase == Phase::Stopping && self.in_flight.is_none() && self.stops_owed() == 0 {
            self.phase = Phase::Done;
        }
    }
}

impl Tracker {
    fn new(endpoint: Arc<Endpoint>, tier: u16) -> Self {
        Self {
            endpoint,
            tier,
            registered: false,
            maybe_registered: false,
            given_up: false,
            failures: 0,
            stop_attempts: 0,
            not_before: Duration::ZERO,
            tracker_id: None,
            last_success: None,
            seeders: None,
            leechers: None,
            peers: 0,
            message: None,
        }
    }

    fn is_candidate(&self, phase: Phase) -> bool {
        match phase {
            Phase::Running => !self.given_up,
            Phase::Stopping => self.registered || self.maybe_registered,
            Phase::Done => false,
        }
    }

    fn accept(&mut self, now: Duration, reply: &Reply, event: Event) {
        self.failures = 0;
        self.not_before = now;
        self.last_success = Some(now);
        self.message = reply.warning.as_deref().map(Into::into);
        if event == Event::Stopped {
            self.forget();
            return;
        }
        self.registered = true;
        self.seeders = reply.seeders;
        self.leechers = reply.leechers;
        self.peers = u32::try_from(reply.peers.len()).unwrap_or(u32::MAX);
        if let Some(id) = &reply.tracker_id {
            self.tracker_id = Some(id.as_slice().into());
        }
    }

    fn forget(&mut self) {
        self.registered = false;
        self.maybe_registered = false;
    }

    fn status(&self, in_flight: bool, next_announce: Option<Duration>) -> TrackerStatus {
        let state = match (in_flight, self.given_up, self.failures, self.last_success) {
            (true, ..) => State::Announcing,
            (_, true, ..) => State::GivenUp,
            (_, _, failures @ 1.., _) => State::Failing(failures),
            (_, _, _, Some(_)) => State::Working,
            _ => State::NotContacted,
        };
        TrackerStatus {
            tier: self.tier,
            url: self.endpoint.url.redacted(),
            state,
            next_announce,
            last_success: self.last_success,
            seeders: self.seeders,
            leechers: self.leechers,
            peers: self.peers,
            message: self.message.as_deref().map(str::to_owned),
        }
    }
}

fn clamp(interval: Duration, timing: &Timing) -> Duration {
    interval.clamp(timing.interval_min, timing.interval_max)
}

/// 15 s, 30 s, 60 s ... 1 h, each up to a quarter longer so that torrents do not come back
/// together.
fn backoff(failures: u32, timing: &Timing, jitter: &mut Jitter) -> Duration {
    let doublings = failures.saturating_sub(1).min(20);
    let wait = timing.backoff_min.saturating_mul(1 << doublings).min(timing.backoff_max);
    (wait + jitter.up_to(wait / 4)).min(timing.backoff_max)
}

#[cfg(test)]
mod tests;
