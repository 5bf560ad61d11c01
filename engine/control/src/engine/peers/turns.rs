//! Whose turn it is to dial, among thousands of torrents.
//!
//! Owns: who waits for its time, who for its turn, how many dials there may be.
//! Never: addresses, or what a torrent may do (the engine looks when its turn comes).
//! Flow: a roster has something to dial at a time -> that time comes -> in turn, downloads before
//! seeds -> a few dials -> the end of the queue.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use seedring_shard::torrent::TorrentId;

/// Dials begun in a second, of all torrents together: libtorrent begins 30. A start with thousands
/// of torrents is then no storm that fills a router's table.
const DIALS_PER_S: u32 = 50;
/// Dials without an answer yet. Half of what is named is not there and takes its time to say so.
const DIALLING_MAX: u32 = 256;
/// One turn in so many is a seed's, though downloads wait.
const SEEDS_ONE_IN: u32 = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Waits(Duration),
    Ready,
}

#[derive(Debug)]
pub struct Turns {
    /// Dials under way.
    pub dialling: u32,
    /// By the time at which there is something to dial.
    waiting: BTreeSet<(Duration, TorrentId)>,
    /// Downloads, and seeds.
    ready: [VecDeque<TorrentId>; 2],
    places: HashMap<TorrentId, Place>,
    turns: u32,
    /// Dials that may be begun, in thousandths, and when that was reckoned.
    tokens: u32,
    reckoned_at: Duration,
}

impl Default for Turns {
    /// A second's dials may begin at once: a download that has just started does not wait for them.
    fn default() -> Turns {
        Turns {
            dialling: 0,
            waiting: BTreeSet::new(),
            ready: Default::default(),
            places: HashMap::new(),
            turns: 0,
            tokens: DIALS_PER_S * 1_000,
            reckoned_at: Duration::ZERO,
        }
    }
}

impl Turns {
    /// A torrent has something to dial at this time, or not. Whoever has a place in a queue keeps
    /// it.
    pub fn due(&mut self, id: TorrentId, at: Option<Duration>) {
        match (self.places.get(&id), at) {
            (Some(Place::Ready), _) => {}
            (Some(Place::Waits(before)), Some(at)) if *before == at => {}
            (_, at) => {
                self.stop_waiting(id);
                if let Some(at) = at {
                    self.waiting.insert((at, id));
                    self.places.insert(id, Place::Waits(at));
                }
            }
        }
    }

    fn stop_waiting(&mut self, id: TorrentId) {
        if let Some(Place::Waits(at)) = self.places.remove(&id) {
            self.waiting.remove(&(at, id));
        }
    }

    pub fn forget(&mut self, id: TorrentId) {
        match self.places.remove(&id) {
            Some(Place::Waits(at)) => _ = self.waiting.remove(&(at, id)),
            Some(Place::Ready) => {
                self.ready.iter_mut().for_each(|queue| queue.retain(|waits| *waits != id));
            }
            None => {}
        }
    }

    /// Those whose time has come take their places. `wants`: whether a torrent is a download.
    pub fn gather(&mut self, now: Duration, wants: impl Fn(TorrentId) -> bool) {
        while let Some((at, id)) = self.waiting.first().copied().filter(|(at, _)| *at <= now) {
            self.waiting.remove(&(at, id));
            self.places.insert(id, Place::Ready);
            self.ready[usize::from(!wants(id))].push_back(id);
        }
    }

    /// How many dials may begin now.
    pub fn room(&mut self, now: Duration) -> u32 {
        let passed_ms = now.saturating_sub(self.reckoned_at).as_millis().min(1_000) as u32;
        self.reckoned_at = now;
        self.tokens = (self.tokens + passed_ms * DIALS_PER_S).min(DIALS_PER_S * 1_000);
        (self.tokens / 1_000).min(DIALLING_MAX.saturating_sub(self.dialling))
    }

    pub fn begun(&mut self, dials: u32) {
        self.tokens = self.tokens.saturating_sub(dials * 1_000);
    }

    /// Whose turn it is. It leaves the queue: `due` says when it comes back.
    pub fn next(&mut self, seeds_too: bool) -> Option<TorrentId> {
        self.turns = self.turns.wrapping_add(1);
        let [downloads, seeds] = &mut self.ready;
        let seeds_first = self.turns.is_multiple_of(SEEDS_ONE_IN) || downloads.is_empty();
        let id = match seeds_too && seeds_first {
            true => seeds.pop_front().or_else(|| downloads.pop_front()),
            false => downloads.pop_front(),
        }?;
        self.places.remove(&id);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Torrents that wait for their turn.
    fn ready(turns: &Turns) -> usize {
        turns.ready.iter().map(VecDeque::len).sum()
    }

    fn ids(numbers: std::ops::Range<u32>) -> Vec<TorrentId> {
        numbers.map(TorrentId).collect()
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn in_turn_and_downloads_more_often() {
        let mut turns = Turns::default();
        ids(0..20).into_iter().for_each(|id| turns.due(id, Some(secs(1))));
        turns.gather(secs(0), |_| true);
        assert_eq!(turns.next(true), None, "not yet");
        turns.gather(secs(1), |id| id.0 < 10);
        let order: Vec<u32> = (0..12).filter_map(|_| turns.next(true)).map(|id| id.0).collect();
        assert_eq!(order, [0, 1, 10, 2, 3, 4, 11, 5, 6, 7, 12, 8]);
        assert_eq!(turns.next(false).map(|id| id.0), Some(9));
        assert_eq!(turns.next(false), None, "seeds have no room");
        assert_eq!(ready(&turns), 7);
    }

    #[test]
    fn one_place_each_which_is_kept() {
        let mut turns = Turns::default();
        for at in [5, 3, 4, 4] {
            turns.due(TorrentId(1), Some(secs(at)));
        }
        assert_eq!(turns.waiting.len(), 1);
        turns.gather(secs(3), |_| true);
        assert_eq!(ready(&turns), 0);
        turns.gather(secs(4), |_| true);
        turns.due(TorrentId(1), Some(secs(99)));
        turns.due(TorrentId(1), None);
        turns.due(TorrentId(2), Some(secs(1)));
        turns.forget(TorrentId(2));
        assert_eq!((ready(&turns), turns.waiting.len()), (1, 0));
        assert_eq!(turns.next(true), Some(TorrentId(1)));
        turns.due(TorrentId(1), Some(secs(5)));
        turns.due(TorrentId(1), None);
        turns.gather(secs(9), |_| true);
        assert_eq!(turns.next(true), None);
        assert!(turns.places.is_empty() && turns.waiting.is_empty());
    }

    #[test]
    fn dials_have_a_rate_and_a_bound() {
        let mut turns = Turns::default();
        assert_eq!(turns.room(Duration::from_millis(20)), DIALS_PER_S, "at once, at the start");
        turns.begun(DIALS_PER_S);
        assert_eq!(turns.room(Duration::from_millis(20)), 0);
        assert_eq!(turns.room(secs(100)), DIALS_PER_S);
        turns.begun(DIALS_PER_S);
        assert_eq!(turns.room(secs(100)), 0);
        assert_eq!(turns.room(secs(100) + Duration::from_millis(100)), DIALS_PER_S / 10);
        assert_eq!(turns.room(secs(500)), DIALS_PER_S, "what was not used is not saved up");
        turns.dialling = DIALLING_MAX - 1;
        assert_eq!(turns.room(secs(500)), 1);
        turns.dialling = DIALLING_MAX + 1;
        assert_eq!(turns.room(secs(500)), 0);
    }
}
