//! Several streams in step, whatever the lengths and the parts in which their bytes come.
//!
//! Owns: which streams go side by side, and how far. Never: instructions (`kernels`), copies of
//! payload (but for what crosses the 64-byte blocks of a stream). Flow: `update_many` puts feeds
//! into lanes, each group of lanes advances by the blocks that all of it have at hand, an empty
//! lane takes the next feed.

use super::{Block, PieceHasher, State, kernels::STREAMS_MAX, pace::Pace};

/// Bytes for one hasher: these parts, one after the other.
pub struct Feed<'a> {
    pub hasher: &'a mut PieceHasher,
    pub parts: &'a [&'a [u8]],
}

impl Feed<'_> {
    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }
}

/// Gives each hasher its bytes, many side by side. It pays best when there are as many feeds as
/// `Pace::streams` and all are of one length.
pub fn update_many(feeds: &mut [Feed<'_>]) {
    match feeds {
        [] => {}
        [feed] => {
            for part in feed.parts {
                feed.hasher.update(part);
            }
        }
        _ => update_at(Pace::measured(), feeds),
    }
}

/// `update_many` with kernels chosen by this pace, all of which the CPU must have: for tests and
/// measurements.
pub fn update_at(pace: &Pace, feeds: &mut [Feed<'_>]) {
    // The longest first: what is left alone at the end is short.
    feeds.sort_by_key(|feed| std::cmp::Reverse(feed.bytes()));
    let mut waiting = feeds.iter_mut();
    let mut lanes = Lanes::new();
    loop {
        while lanes.runs.len() < pace.streams() {
            let Some(feed) = waiting.next() else { break };
            lanes.open(feed);
        }
        if lanes.runs.is_empty() {
            return;
        }
        lanes.advance(pace);
        lanes.refill();
    }
}

/// The streams under way. All three have the same length and order.
struct Lanes<'f, 'a> {
    states: Vec<State>,
    /// Whole blocks that are at hand; never empty between two calls.
    runs: Vec<&'a [Block]>,
    rest: Vec<Rest<'f, 'a>>,
}

/// What follows a lane's run.
struct Rest<'f, 'a> {
    hasher: &'f mut PieceHasher,
    /// The end of the part under way: less than a block.
    end: &'a [u8],
    parts: std::slice::Iter<'a, &'a [u8]>,
}

impl<'a> Rest<'_, 'a> {
    /// The next run of whole blocks, `None` when all is taken in. The hasher's state is up to date
    /// before and after.
    fn next_run(&mut self) -> Option<&'a [Block]> {
        loop {
            self.hasher.keep(std::mem::take(&mut self.end));
            let part = self.hasher.complete_tail(self.parts.next()?);
            let (run, end) = part.as_chunks();
            self.end = end;
            if !run.is_empty() {
                return Some(run);
            }
        }
    }
}

impl<'f, 'a> Lanes<'f, 'a> {
    fn new() -> Self {
        let (states, runs) = (Vec::with_capacity(STREAMS_MAX), Vec::with_capacity(STREAMS_MAX));
        Lanes { states, runs, rest: Vec::with_capacity(STREAMS_MAX) }
    }

    fn open(&mut self, feed: &'f mut Feed<'a>) {
        let mut rest = Rest { hasher: feed.hasher, end: &[], parts: feed.parts.iter() };
        if let Some(run) = rest.next_run() {
            self.states.push(rest.hasher.state);
            self.runs.push(run);
            self.rest.push(rest);
        }
    }

    /// Each group of lanes goes on by the blocks that all of the group have.
    fn advance(&mut self, pace: &Pace) {
        let mut from = 0;
        while from < self.runs.len() {
            let left = self.runs.len() - from;
            let kernel = pace.kernel(left);
            let to = from + kernel.streams().min(left);
            let group = &mut self.runs[from..to];
            let blocks = group.iter().map(|run| run.len()).min().unwrap_or(0);
            let mut now: [&[Block]; STREAMS_MAX] = [&[]; STREAMS_MAX];
            for (now, run) in now.iter_mut().zip(group) {
                (*now, *run) = run.split_at(blocks);
            }
            kernel.advance(&mut self.states[from..to], &now[..to - from]);
            self.rest[from..to].iter_mut().for_each(|rest| rest.hasher.took(blocks));
            from = to;
        }
    }

    /// Lanes that have no block left take their next part, or close.
    fn refill(&mut self) {
        let mut lane = 0;
        while lane < self.runs.len() {
            if self.runs[lane].is_empty() {
                let rest = &mut self.rest[lane];
                rest.hasher.state = self.states[lane];
                let Some(run) = rest.next_run() else {
                    self.states.swap_remove(lane);
                    self.runs.swap_remove(lane);
                    self.rest.swap_remove(lane);
                    continue;
                };
                self.states[lane] = rest.hasher.state;
                self.runs[lane] = run;
            }
            lane += 1;
        }
    }
}
