//! Every torrent's announces, together.
//!
//! Owns: the announcers, their timers, the governor, and which requests run. Never: sends,
//! resolves, or reads
//! totals; a job is executed by control, which asks for totals at that moment.
//! Flow: commands and outcomes in; [`Schedule::poll`] gives the next [`Job`],
//! [`Schedule::deadline`] when to ask again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::announce::{Event, Totals};
use super::announcer::{Announce, Announcer, Endpoint, Failure, Origin, Timing, TrackerStatus};
use super::governor::{Class, Contact, Governor, Limits, Ticket};
use super::jitter::Jitter;
use super::reply::{Reply, Retry};
use super::url::{TrackerUrl, UrlError};
use crate::units::InfoHash;

/// Trackers of one torrent that are used; the rest of a longer list is left out.
pub const TRACKERS_PER_TORRENT_MAX: usize = 64;
const ENDPOINTS_SWEEP_MIN: usize = 1024;

#[derive(Debug, Clone, Default)]
pub struct Options {
    pub timing: Timing,
    pub limits: Limits,
    pub seed: u64,
}

/// Who announces what to whom.
#[derive(Debug, Clone)]
pub struct Torrent {
    pub info_hash: InfoHash,
    /// BEP 12.
    pub tiers: Vec<Vec<String>>,
    pub origin: Origin,
    pub private: bool,
}

/// A request to make now. Its outcome comes back with `id`.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: JobId,
    pub info_hash: InfoHash,
    pub endpoint: Arc<Endpoint>,
    pub event: Event,
    pub tracker_id: Option<Vec<u8>>,
    /// Set for a torrent that was removed: what to report instead of asking.
    pub final_totals: Option<Totals>,
    /// Set where its host can't be reached: the outcome, at once, without asking.
    pub turned_away: Option<Failure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct JobId {
    slot: Ticket,
    serial: u64,
}

/// What an outcome led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effect {
    /// Another tracker than before answered for a private torrent: drop the peers of the one
    /// before.
    pub switched: bool,
    /// The torrent is gone from the schedule.
    pub removed: bool,
}

/// How far `stopped` got since the schedule began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stops {
    pub sent: usize,
    /// Refused, or not answered in as many attempts as there are.
    pub failed: usize,
    /// Not yet sent, or sent and not answered.
    pub owed: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TorrentStatus {
    /// By tier, in the order in which they are tried.
    pub trackers: Vec<TrackerStatus>,
    /// Addresses that cannot be used, secrets masked, and why.
    pub unusable: Vec<(String, UrlError)>,
}

#[derive(Debug)]
enum Place {
    Queued(Announce, Class),
    /// With its serial number, and whether the tracker is asked.
    Running(Announce, u64, bool),
}

#[derive(Debug)]
struct Entry {
    info_hash: InfoHash,
    announcer: Announcer,
    private: bool,
    place: Option<Place>,
    timer: Option<Duration>,
    final_totals: Option<Totals>,
    /// Added again while `stopped` was still on its way.
    again: Option<Torrent>,
    unusable: Box<[(String, UrlError)]>,
}

#[derive(Debug)]
pub struct Schedule {
    timing: Timing,
    jitter: Jitter,
    governor: Governor,
    slots: Vec<Option<Entry>>,
    free: Vec<Ticket>,
    by_hash: HashMap<InfoHash, Ticket>,
    timers: BTreeSet<(Duration, Ticket)>,
    endpoints: HashMap<(String, Origin), Arc<Endpoint>>,
    endpoints_sweep: usize,
    serial: u64,
    stops: Stops,
    shutdown: bool,
}

impl Schedule {
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            timing: options.timing,
            jitter: Jitter::new(options.seed),
            governor: Governor::new(options.limits),
            slots: Vec::new(),
            free: Vec::new(),
            by_hash: HashMap::new(),
            timers: BTreeSet::new(),
            endpoints: HashMap::new(),
            endpoints_sweep: ENDPOINTS_SWEEP_MIN,
            serial: 0,
            stops: Stops::default(),
            shutdown: false,
        }
    }

    /// False where the torrent is announced already, or everything is being stopped.
    pub fn add(&mut self, now: Duration, torrent: Torrent) -> bool {
        if self.shutdown {
            return false;
        }
        if let Some(&slot) = self.by_hash.get(&torrent.info_hash) {
            let entry = self.entry(slot);
            let stopping = entry.final_totals.is_some() && entry.again.is_none();
            if stopping {
                entry.again = Some(torrent);
            }
            return stopping;
        }
        self.insert(now, torrent);
        true
    }

    /// Sends `stopped` with these totals to each tracker that knows of the torrent, then forgets
    /// it.
    pub fn remove(&mut self, now: Duration, info_hash: &InfoHash, totals: Totals) -> bool {
        let Some(&slot) = self.by_hash.get(info_hash) else { return false };
        let entry = self.entry(slot);
        entry.again = None;
        entry.final_totals.get_or_insert(totals);
        self.stop(now, slot);
        true
    }

    pub fn want_more_peers(&mut self, now: Duration, info_hash: &InfoHash) {
        self.with(info_hash, |a| a.want_more_peers(now));
    }

    pub fn announce_now(&mut self, now: Duration, info_hash: &InfoHash) {
        self.with(info_hash, |a| a.announce_now(now));
    }

    pub fn completed(&mut self, now: Duration, info_hash: &InfoHash) {
        self.with(info_hash, |a| a.completed(now));
    }

    /// From here only `stopped` is sent, as fast as the caps at shutdown allow.
    pub fn shutdown(&mut self, now: Duration) {
        self.shutdown = true;
        self.governor.hurry(now);
        for slot in 0..self.slots.len() {
            if let Some(entry) = &mut self.slots[slot] {
                entry.again = None;
                self.stop(now, slot as Ticket);
            }
        }
    }

    /// Torrents held, those being stopped included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    #[must_use]
    pub fn stops(&self) -> Stops {
        let entries = self.slots.iter().flatten();
        let owed = entries.map(|e| e.announcer.stops_owed()).sum();
        Stops { owed, ..self.stops }
    }

    #[must_use]
    pub fn governor(&self) -> &Governor {
        &self.governor
    }

    /// The next request to make; call until `None`.
    pub fn poll(&mut self, now: Duration) -> Option<Job> {
        while let Some(&(at, slot)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            self.due(now, slot);
        }
        let slot = self.governor.grant(now)?;
        self.serial += 1;
        let id = JobId { slot, serial: self.serial };
        let entry = self.entry(slot);
        let Some(Place::Queued(announce, _)) = entry.place.take() else {
            unreachable!("invariant: a granted ticket is queued")
        };
        let turned_away = self.governor.turned_away(now, &announce.endpoint.host);
        let turned_away = turned_away.map(|message| Failure {
            message,
            retry: Retry::Backoff,
            refused: false,
            maybe_heard: false,
            unreached: true,
        });
        let entry = self.entry(slot);
        let asked = turned_away.is_none();
        let job = Job {
            id,
            info_hash: entry.info_hash,
            endpoint: Arc::clone(&announce.endpoint),
            event: announce.event,
            tracker_id: announce.tracker_id.clone(),
            final_totals: entry.final_totals,
            turned_away,
        };
        entry.place = Some(Place::Running(announce, id.serial, asked));
        Some(job)
    }

    /// When [`Self::poll`] may have something, if nothing else happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let timer = self.timers.first().map(|(at, _)| *at);
        [timer, self.governor.deadline()].into_iter().flatten().min()
    }

    /// Each job's outcome, exactly once.
    pub fn finished(
        &mut self,
        now: Duration,
        id: JobId,
        outcome: &Result<Reply, Failure>,
    ) -> Effect {
        let entry =
            self.slots[id.slot as usize].as_mut().expect("invariant: a running job keeps its slot");
        let (announce, asked) = match entry.place.take() {
            Some(Place::Running(announce, serial, asked)) if serial == id.serial => {
                (announce, asked)
            }
            other => unreachable!("invariant: one outcome a job: {other:?}"),
        };
        let contact = match outcome {
            _ if !asked => Contact::NotTried,
            Err(failure) if failure.unreached => Contact::Failed(&failure.message),
            _ => Contact::Made,
        };
        self.governor.finished(now, &announce.endpoint.host, contact);
        let owed_before = entry.announcer.stops_owed();
        let mut effect = Effect::default();
        match outcome {
            Ok(reply) => {
                let switched =
                    entry.announcer.succeeded(now, reply, &self.timing, &mut self.jitter);
                effect.switched = switched && entry.private;
                self.stops.sent += usize::from(announce.event == Event::Stopped);
            }
            Err(failure) => {
                entry.announcer.failed(now, failure, &self.timing, &mut self.jitter);
                let gave_up =
                    announce.event == Event::Stopped && entry.announcer.stops_owed() < owed_before;
                self.stops.failed += usize::from(gave_up);
            }
        }
        effect.removed = self.settle(now, id.slot);
        effect
    }

    /// `None` for a torrent that is not announced.
    #[must_use]
    pub fn status(&self, info_hash: &InfoHash) -> Option<TorrentStatus> {
        let slot = *self.by_hash.get(info_hash)?;
        let entry = self.slots[slot as usize].as_ref()?;
        let trackers = entry.announcer.status().collect();
        Some(TorrentStatus { trackers, unusable: entry.unusable.to_vec() })
    }

    fn insert(&mut self, now: Duration, torrent: Torrent) {
        let mut unusable = Vec::new();
        let mut room = TRACKERS_PER_TORRENT_MAX;
        let mut tiers = Vec::new();
        for tier in &torrent.tiers {
            let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
            for text in tier.iter().take(room) {
                match self.endpoint(text, torrent.origin) {
                    Ok(endpoint) if endpoints.contains(&endpoint) => {}
                    Ok(endpoint) => endpoints.push(endpoint),
                    Err(error) => unusable.push((super::redact::redact(text), error)),
                }
            }
            room -= tier.len().min(room);
            tiers.push(endpoints);
        }
        let entry = Entry {
            info_hash: torrent.info_hash,
            announcer: Announcer::new(now, tiers, &mut self.jitter),
            private: torrent.private,
            place: None,
            timer: None,
            final_totals: None,
            again: None,
            unusable: unusable.into(),
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            Ticket::try_from(self.slots.len() - 1).expect("invariant: fewer than 2^32 torrents")
        });
        self.by_hash.insert(entry.info_hash, slot);
        self.slots[slot as usize] = Some(entry);
        self.arm(slot);
    }

    /// Addresses are shared: 100,000 torrents of one tracker hold one copy of it.
    fn endpoint(&mut self, text: &str, origin: Origin) -> Result<Arc<Endpoint>, UrlError> {
        let url = TrackerUrl::parse(text)?;
        if self.endpoints.len() >= self.endpoints_sweep {
            self.endpoints.retain(|_, e| Arc::strong_count(e) > 1);
            self.endpoints_sweep = (self.endpoints.len() * 2).max(ENDPOINTS_SWEEP_MIN);
        }
        let endpoint = self.endpoints.entry((url.exposed(), origin)).or_insert_with(|| {
            let host = url.host_key().into();
            Arc::new(Endpoint { url, host, origin })
        });
        Ok(Arc::clone(endpoint))
    }

    fn stop(&mut self, now: Duration, slot: Ticket) {
        self.take_back(slot);
        self.entry(slot).announcer.stop(now);
        self.settle(now, slot);
    }

    /// A queued announce that is not a `stopped` itself gives way to one.
    fn take_back(&mut self, slot: Ticket) {
        let entry = self.entry(slot);
        match entry.place.take() {
            Some(Place::Queued(announce, class)) if class != Class::Stopped => {
                entry.announcer.withdrawn();
                let found = self.governor.withdraw(&announce.endpoint.host, class, slot);
                assert!(found, "a queued announce was not in its queue");
            }
            other => entry.place = other,
        }
    }

    fn due(&mut self, now: Duration, slot: Ticket) {
        let entry = self.entry(slot);
        entry.timer = None;
        if let Some(announce) = entry.announcer.poll(now) {
            let class = match announce.event {
                Event::Stopped => Class::Stopped,
                Event::Started | Event::Completed => Class::Event,
                Event::Regular => Class::Regular,
            };
            let host = Arc::clone(&announce.endpoint.host);
            entry.place = Some(Place::Queued(announce, class));
            self.governor.enqueue(now, &host, class, slot);
        }
        self.arm(slot);
    }

    fn with(&mut self, info_hash: &InfoHash, act: impl FnOnce(&mut Announcer)) {
        if let Some(&slot) = self.by_hash.get(info_hash) {
            act(&mut self.entry(slot).announcer);
            self.arm(slot);
        }
    }

    /// Puts the timer where the announcer wants it; drops a torrent that has nothing left to say.
    fn settle(&mut self, now: Duration, slot: Ticket) -> bool {
        let entry = self.entry(slot);
        if !entry.announcer.is_done() {
            self.arm(slot);
            return false;
        }
        assert!(entry.place.is_none(), "a finished torrent has no request");
        let timer = entry.timer.take();
        let entry = self.slots[slot as usize].take().expect("invariant: just borrowed");
        self.timers.remove(&(timer.unwrap_or_default(), slot));
        self.by_hash.remove(&entry.info_hash);
        self.free.push(slot);
        match entry.again {
            Some(torrent) => {
                self.insert(now, torrent);
                false
            }
            None => true,
        }
    }

    fn arm(&mut self, slot: Ticket) {
        let entry = self.slots[slot as usize].as_mut().expect("invariant: the slot is taken");
        let wanted = entry.announcer.deadline();
        if entry.timer == wanted {
            return;
        }
        if let Some(old) = entry.timer.take() {
            self.timers.remove(&(old, slot));
        }
        if let Some(at) = wanted {
            self.timers.insert((at, slot));
        }
        entry.timer = wanted;
    }

    fn entry(&mut self, slot: Ticket) -> &mut Entry {
        self.slots[slot as usize].as_mut().expect("invariant: the slot is taken")
    }
}

#[cfg(test)]
mod tests;
