//! Several streams in step, whatever the lengths and the parts in which their bytes come.
//!
//! Owns: which streams go side by side, and how far. Never: instructions (`kernels`), copies of
//! payload (but for what crosses the 64-byte blocks of a stream). Flow: `update_many` puts feeds
//! into lanes, each group of lanes advances by the blocks that all of it have at hand, an empty
//! lane takes the next feed.

use std::ops::Range;

use super::{Block, Kernel, PieceHasher, State, kernels::STREAMS_MAX, pace::Pace};

/// The same place of the pages of 16 streams is one set of the caches, which has eight ways: each
/// would push out what was prefetched for another. So a group of streams is ahead of the group
/// before it by this many blocks, more than are prefetched.
const GROUP: usize = 4;
const STAGGER_BLOCKS: usize = 8;
/// Shorter runs are not worth the steps of fewer streams that it takes.
const STAGGERED_MIN_BLOCKS: usize = 256;
const PAGE_BYTES: usize = 4096;

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
        lanes.stagger(pace);
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

    /// Content lies in pages, and pieces go on in step: without this the same lines of all lanes'
    /// pages are in use at once (4.9 GiB/s of 16 streams from memory, and 5.5 with it, on Zen 4).
    fn stagger(&mut self, pace: &Pace) {
        let place = |lane: usize| self.runs[lane].as_ptr().addr() % PAGE_BYTES;
        let kernel = pace.kernel(GROUP);
        if self.runs.len() < STREAMS_MAX
            || pace.kernel(STREAMS_MAX).streams() < STREAMS_MAX
            || kernel.streams() < GROUP
            || self.runs.iter().any(|run| run.len() < STAGGERED_MIN_BLOCKS)
            || (GROUP..STREAMS_MAX).step_by(GROUP).any(|lane| place(lane) != place(0))
        {
            return;
        }
        for group in 1..STREAMS_MAX / GROUP {
            let lanes = group * GROUP..(group + 1) * GROUP;
            self.go_on(kernel, lanes, group * STAGGER_BLOCKS);
        }
    }

    /// Each group of lanes goes on by the blocks that all of the group have.
    fn advance(&mut self, pace: &Pace) {
        let mut from = 0;
        while from < self.runs.len() {
            let left = self.runs.len() - from;
            let kernel = pace.kernel(left);
            let to = from + kernel.streams().min(left);
            let blocks = self.runs[from..to].iter().map(|run| run.len()).min().unwrap_or(0);
            self.go_on(kernel, from..to, blocks);
            from = to;
        }
    }

    /// These lanes, no more than the kernel takes, go on by so many blocks.
    fn go_on(&mut self, kernel: Kernel, lanes: Range<usize>, blocks: usize) {
        let mut now: [&[Block]; STREAMS_MAX] = [&[]; STREAMS_MAX];
        for (now, run) in now.iter_mut().zip(&mut self.runs[lanes.clone()]) {
            (*now, *run) = run.split_at(blocks);
        }
        kernel.advance(&mut self.states[lanes.clone()], &now[..lanes.len()]);
        self.rest[lanes].iter_mut().for_each(|rest| rest.hasher.took(blocks));
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
