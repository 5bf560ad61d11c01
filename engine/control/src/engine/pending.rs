//! Wanted torrents that are not in the registry: queued, being prepared, or failed.
//!
//! Owns: their order, how many are prepared at once, when failed ones are tried again.
//! Never: prepares. Flow: start and reload put in; batches go out; results settle them.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::plan::{Origin, Wanted};

/// Preparations at once: one a core is enough to hash folders, and .torrent files are parsed in
/// batches.
const BATCHES_MAX: usize = 2;
const BATCH: usize = 64;
/// What failed is tried again after this time, `OFTEN` times, then more rarely: ten thousand broken
/// .torrent files must not keep a core busy.
const RETRY: Duration = Duration::from_secs(5);
const RETRY_RARELY: Duration = Duration::from_secs(30);
const OFTEN: u32 = 24;

#[derive(Default)]
pub struct Pending {
    queue: VecDeque<Wanted>,
    /// What is being prepared, as it is wanted now: a reload may have changed or dropped it.
    in_flight: HashMap<Origin, Wanted>,
    batches: usize,
    failed: HashMap<Origin, Failed>,
}

struct Failed {
    wanted: Wanted,
    why: String,
    tries: u32,
    /// `None`: queued or being prepared.
    again: Option<Instant>,
}

impl Pending {
    pub fn new(wanted: Vec<Wanted>) -> Pending {
        Pending { queue: wanted.into(), ..Pending::default() }
    }

    /// What to prepare now, if there is something and room for it.
    pub fn next_batch(&mut self) -> Option<Vec<Wanted>> {
        if self.batches == BATCHES_MAX {
            return None;
        }
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(wanted) = self.queue.pop_front()
        {
            // Listed twice: prepared once.
            if self.in_flight.insert(wanted.origin.clone(), wanted.clone()).is_none() {
                batch.push(wanted);
            }
        }
        if batch.is_empty() {
            return None;
        }
        self.batches += 1;
        Some(batch)
    }

    pub fn batch_done(&mut self) {
        self.batches -= 1;
    }

    /// A result came. `None`: nobody wants it any more.
    pub fn settled(&mut self, origin: &Origin) -> Option<Wanted> {
        self.in_flight.remove(origin)
    }

    /// It is in the registry now, or a duplicate of one that is.
    pub fn done(&mut self, origin: &Origin) {
        self.failed.remove(origin);
    }

    /// It could not be prepared. `true`: for the first time with this reason.
    pub fn failed(&mut self, wanted: Wanted, why: String, now: Instant) -> bool {
        let entry = self.failed.entry(wanted.origin.clone());
        let mut fresh = false;
        let entry = entry.or_insert_with(|| {
            fresh = true;
            Failed { wanted: wanted.clone(), why: String::new(), tries: 0, again: None }
        });
        fresh |= entry.why != why;
        entry.tries += 1;
        let wait = if entry.tries <= OFTEN { RETRY } else { RETRY_RARELY };
        (entry.wanted, entry.why, entry.again) = (wanted, why, Some(now + wait));
        fresh
    }

    /// Queues what failed and is due.
    pub fn retry(&mut self, now: Instant) {
        for failed in self.failed.values_mut() {
            if failed.again.is_some_and(|at| at <= now) {
                failed.again = None;
                self.queue.push_back(failed.wanted.clone());
            }
        }
    }

    /// One more, added by a command.
    pub fn push(&mut self, wanted: Wanted) {
        self.queue.push_back(wanted);
    }

    /// It is not wanted any more, wherever it stands.
    pub fn drop_origin(&mut self, origin: &Origin) {
        self.queue.retain(|wanted| wanted.origin != *origin);
        self.in_flight.remove(origin);
        self.failed.remove(origin);
    }

    /// What commands added and is not in the registry yet: a reload keeps it.
    pub fn added(&self) -> Vec<Wanted> {
        let failed = self.failed.values().map(|failed| &failed.wanted);
        let all = self.queue.iter().chain(self.in_flight.values()).chain(failed);
        let mut added: Vec<Wanted> = Vec::new();
        for wanted in all.filter(|wanted| wanted.origin.is_added()) {
            if !added.iter().any(|known| known.origin == wanted.origin) {
                added.push(wanted.clone());
            }
        }
        added
    }

    /// After a reload: these, and nothing else. What is being prepared goes on if it is still
    /// wanted; what failed is tried at once. Returns how many are new.
    pub fn replace(&mut self, wanted: Vec<Wanted>) -> usize {
        let queued: Vec<Origin> = self.queue.drain(..).map(|w| w.origin).collect();
        let mut before = std::mem::take(&mut self.in_flight);
        let mut failed = std::mem::take(&mut self.failed);
        let mut fresh = 0;
        for item in wanted {
            if let Some(known) = failed.remove(&item.origin) {
                let known = Failed { wanted: item.clone(), again: None, ..known };
                self.failed.insert(item.origin.clone(), known);
            } else if !before.contains_key(&item.origin) && !queued.contains(&item.origin) {
                fresh += 1;
            }
            match before.remove(&item.origin) {
                Some(_) => {
                    self.in_flight.insert(item.origin.clone(), item);
                }
                None if self.in_flight.contains_key(&item.origin) => {}
                None => self.queue.push_back(item),
            }
        }
        fresh
    }

    /// Nothing is queued or being prepared.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.batches == 0
    }

    /// Queued or being prepared.
    pub fn len(&self) -> usize {
        self.queue.len() + self.in_flight.len()
    }

    /// What could not be prepared, and why.
    pub fn failures(&self) -> impl ExactSizeIterator<Item = (&Wanted, &str)> {
        self.failed.values().map(|failed| (&failed.wanted, failed.why.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{TorrentLimits, Trackers, Verify};

    fn wanted(name: &str) -> Wanted {
        Wanted {
            origin: Origin::File { torrent: name.into(), content: "/srv".into() },
            trackers: Trackers::Keep,
            verify: Verify::Quick,
            limits: TorrentLimits::default(),
            pex: None,
            line: 1,
        }
    }

    #[test]
    fn what_failed_is_tried_every_five_seconds_and_told_once() {
        let mut pending = Pending::new(vec![wanted("a"), wanted("a")]);
        let now = Instant::now();
        for round in 0..3u32 {
            let now = now + round * RETRY;
            pending.retry(now);
            let batch = pending.next_batch().expect("it is due");
            assert_eq!(batch, [wanted("a")], "listed twice, prepared once");
            assert!(pending.settled(&batch[0].origin).is_some());
            pending.batch_done();
            assert_eq!(pending.failed(wanted("a"), "away".into(), now), round == 0);
            pending.retry(now + RETRY - Duration::from_millis(1));
            assert!(pending.next_batch().is_none() && pending.is_idle(), "not yet due");
        }
        assert!(pending.failed(wanted("a"), "something else".into(), now));
        pending.done(&wanted("a").origin);
        assert_eq!(pending.failures().len(), 0);
    }

    #[test]
    fn a_reload_drops_changes_and_keeps_what_is_under_way() {
        let mut pending = Pending::new(vec![wanted("a"), wanted("b")]);
        let batch = pending.next_batch().expect("two");
        assert_eq!(batch.len(), 2);
        pending.failed(wanted("gone"), "away".into(), Instant::now());
        let mut changed = wanted("b");
        changed.limits.connections = Some(7);
        assert_eq!(pending.replace(vec![changed.clone(), wanted("c")]), 1);
        assert_eq!(pending.settled(&wanted("a").origin), None, "no longer wanted");
        assert_eq!(pending.settled(&wanted("b").origin), Some(changed));
        assert_eq!(pending.failures().len(), 0);
        assert_eq!(pending.next_batch().expect("c alone"), [wanted("c")]);
    }

    #[test]
    fn at_most_two_batches_run() {
        let many = (0..300).map(|n| wanted(&n.to_string())).collect();
        let mut pending = Pending::new(many);
        assert_eq!(pending.next_batch().map(|b| b.len()), Some(BATCH));
        assert_eq!(pending.next_batch().map(|b| b.len()), Some(BATCH));
        assert!(pending.next_batch().is_none());
        pending.batch_done();
        assert!(pending.next_batch().is_some());
    }
}
