//! Owns: what we asked one peer for and have not got, and how much that may be.
//! Never: chooses a block, or knows which piece it is good for. Flow: downloads ask, the session
//! matches what comes; the clock says what is late.
//!
//! The pipeline holds what the peer sends in its round trip and [`AHEAD`] (or [`AHEAD_BYTES_MAX`])
//! more, so that it never runs dry: bandwidth times delay (both measured), from [`DEPTH_MIN`]
//! blocks to the peer's `reqq`. It begins small and grows by a block for each that comes while the
//! rate still grows, as TCP's slow start does, at most to twice of what the rate so far calls for:
//! a peer that is fast is found out in a few round trips, and one that is slow does not hold much
//! that others could bring sooner.

use std::collections::VecDeque;
use std::time::Duration;

use crate::units::{BLOCK_BYTES, Block};

/// Blocks outstanding at least: one is on its way while the next is asked for, with room for a
/// peer that answers in pairs.
pub const DEPTH_MIN: u32 = 4;
/// Where a peer does not say what it queues (BEP 10 `reqq`): libtorrent's default.
pub const DEPTH_MAX_DEFAULT: u32 = 250;
/// Asked for beyond one round trip, so that a peer busy with others does not run dry.
pub const AHEAD: Duration = Duration::from_millis(500);
/// And at most so much: half a second of a fast peer is more memory than the processor's caches
/// hold, and each of its bytes is then fetched from memory for each step on its way to the disk
/// (four seeders with a GiB/s together held 128 MiB under way).
pub const AHEAD_BYTES_MAX: u64 = 4 << 20;
/// To where a pipeline grows before a rate is known.
const DEPTH_FIRST: u32 = 64;
/// A peer that sent nothing of what it was asked for in this time is snubbing us (libtorrent,
/// Transmission: 60 s; what waits for it is then asked of others, and of it one block at a time).
pub const SNUBBED_AFTER: Duration = Duration::from_secs(60);
/// Without an answer for so many times the usual, a block may be asked of somebody else.
const LATE_TIMES: u32 = 4;
const LATE_MIN: Duration = Duration::from_secs(2);
/// Rates are taken over spans of this length.
const SPAN: Duration = Duration::from_millis(250);

/// What a peer gives is compared over one to two of these: the choker's interval.
const GIVEN_SPAN: Duration = Duration::from_secs(10);

/// Bytes over the last [`GIVEN_SPAN`] to two of them.
#[derive(Clone, Copy, Debug)]
struct Given {
    began: Duration,
    bytes: u64,
    /// Of the span before, if there was one.
    before: Option<u64>,
}

impl Given {
    fn at(mut self, now: Duration) -> Self {
        let passed = now.saturating_sub(self.began);
        if passed >= 2 * GIVEN_SPAN {
            self = Self { began: now - GIVEN_SPAN, bytes: 0, before: Some(0) };
        } else if passed >= GIVEN_SPAN {
            let began = self.began + GIVEN_SPAN;
            self = Self { began, bytes: 0, before: Some(self.bytes) };
        }
        self
    }

    fn add(&mut self, bytes: u64, now: Duration) {
        *self = self.at(now);
        self.bytes += bytes;
    }

    fn per_s(self, now: Duration) -> u64 {
        let given = self.at(now);
        let before = given.before.map_or(Duration::ZERO, |_| GIVEN_SPAN);
        let span = (now.saturating_sub(given.began) + before).max(Duration::from_secs(1));
        let bytes = given.bytes + given.before.unwrap_or(0);
        bytes.saturating_mul(1_000) / span.as_millis() as u64
    }
}

/// A block that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Outstanding {
    block: Block,
    asked_at: Duration,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Requests {
    outstanding: VecDeque<Outstanding>,
    depth: u32,
    depth_max: u32,
    growing: bool,
    /// The shortest time from a request to its block: what the route takes.
    round_trip: Option<Duration>,
    span_began: Duration,
    span_bytes: u64,
    /// Bytes a second over the last whole span; smoothed.
    rate_bytes_per_s: u64,
    given: Given,
    heard_at: Duration,
    snubbed: bool,
}

impl Requests {
    pub fn new(now: Duration) -> Self {
        Self {
            outstanding: VecDeque::new(),
            depth: DEPTH_MIN,
            depth_max: DEPTH_MAX_DEFAULT,
            growing: true,
            round_trip: None,
            span_began: now,
            span_bytes: 0,
            rate_bytes_per_s: 0,
            given: Given { began: now, bytes: 0, before: None },
            heard_at: now,
            snubbed: false,
        }
    }

    /// What the peer says that it queues (`reqq`). One less is asked for where there are many:
    /// Transmission (3.00) says 512, rejects the 512th, and sends the reject up to 10 s later.
    pub fn set_depth_max(&mut self, reqq: u32) {
        self.depth_max = reqq.max(1) - u32::from(reqq > DEPTH_FIRST);
        self.depth = self.depth.min(self.depth_max);
    }

    /// Blocks that may be asked for now.
    pub fn room(&self) -> usize {
        let depth = if self.snubbed { 1 } else { self.depth };
        (depth as usize).saturating_sub(self.outstanding.len())
    }

    pub fn len(&self) -> usize {
        self.outstanding.len()
    }

    pub fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    pub fn is_snubbed(&self) -> bool {
        self.snubbed
    }

    /// Bytes on the heap.
    pub fn held_bytes(&self) -> usize {
        self.outstanding.capacity() * size_of::<Outstanding>()
    }

    /// Gives the memory back while nothing is outstanding.
    pub fn release(&mut self) {
        if self.outstanding.is_empty() {
            self.outstanding = VecDeque::new();
        }
    }

    /// What it sends us, over the last span and a fraction of those before.
    pub fn rate_bytes_per_s(&self, now: Duration) -> u64 {
        let silent = now.saturating_sub(self.span_began);
        if silent < 2 * SPAN {
            return self.rate_bytes_per_s;
        }
        // A span that nothing closed: what came in it, over all of it.
        self.span_bytes * 1_000 / (silent.as_millis() as u64).max(1)
    }

    /// What it gave over the last 10 to 20 s: steady enough to trade by.
    pub fn given_bytes_per_s(&self, now: Duration) -> u64 {
        self.given.per_s(now)
    }

    pub fn contains(&self, block: Block) -> bool {
        self.outstanding.iter().any(|asked| asked.block == block)
    }

    /// Notes a request that goes out now.
    pub fn ask(&mut self, block: Block, now: Duration) {
        debug_assert!(!self.contains(block), "a block is asked of a peer once at a time");
        if self.outstanding.is_empty() {
            self.heard_at = self.heard_at.max(now); // silence before counts for nothing
        }
        self.outstanding.push_back(Outstanding { block, asked_at: now });
    }

    /// A whole block came. False: it was not asked for, or not any more.
    pub fn arrived(&mut self, block: Block, now: Duration) -> bool {
        let Some(asked) = self.remove(block) else { return false };
        let took = now.saturating_sub(asked.asked_at);
        self.round_trip = Some(self.round_trip.map_or(took, |before| before.min(took)));
        self.heard_at = now;
        self.snubbed = false;
        self.given.add(u64::from(block.length), now);
        self.count(u64::from(block.length), now);
        true
    }

    /// Takes a request back: cancelled, or the peer rejected it. False: it is not outstanding.
    pub fn withdraw(&mut self, block: Block) -> bool {
        self.remove(block).is_some()
    }

    /// Everything outstanding is void: a choke without the fast extension, or the end.
    pub fn void(&mut self) -> impl Iterator<Item = Block> + '_ {
        self.depth = self.depth.min(DEPTH_MIN.max(self.depth / 2)).min(self.depth_max);
        self.growing = true;
        self.outstanding.drain(..).map(|asked| asked.block)
    }

    /// All blocks outstanding, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Block> + '_ {
        self.outstanding.iter().map(|asked| asked.block)
    }

    /// Blocks that are later than this peer usually is: others may be asked for them.
    pub fn late(&self, now: Duration) -> impl Iterator<Item = Block> + '_ {
        let usual = self.usual_wait();
        let late = move |asked: &&Outstanding| now.saturating_sub(asked.asked_at) > usual;
        self.outstanding.iter().filter(late).map(|asked| asked.block)
    }

    /// Looks at the time: notes a peer that snubs us. True: it has just come to do so, and what is
    /// outstanding may be asked of others.
    pub fn check(&mut self, now: Duration) -> bool {
        let silent = now.saturating_sub(self.heard_at);
        let snubs = !self.outstanding.is_empty() && silent >= SNUBBED_AFTER;
        let news = snubs && !self.snubbed;
        self.snubbed |= snubs;
        if news {
            self.depth = 1;
            self.growing = true;
        }
        news
    }

    /// When `check` may have news.
    pub fn next_check(&self) -> Option<Duration> {
        (!self.outstanding.is_empty() && !self.snubbed).then(|| self.heard_at + SNUBBED_AFTER)
    }

    /// How long a block usually takes: its turn in the pipeline at the rate of now.
    fn usual_wait(&self) -> Duration {
        let bytes = self.outstanding.len() as u64 * u64::from(BLOCK_BYTES);
        let turn = match self.rate_bytes_per_s {
            0 => SNUBBED_AFTER / 2,
            rate => Duration::from_millis(bytes * 1_000 / rate),
        };
        (turn * LATE_TIMES).max(LATE_MIN)
    }

    fn remove(&mut self, block: Block) -> Option<Outstanding> {
        // Peers answer about in order: the place is near the front.
        let place = self.outstanding.iter().position(|asked| asked.block == block)?;
        self.outstanding.remove(place)
    }

    fn count(&mut self, bytes: u64, now: Duration) {
        self.span_bytes += bytes;
        if self.growing {
            let most = DEPTH_FIRST.max(2 * self.wanted_depth()).min(self.depth_max);
            self.depth = most.min(self.depth + 1).max(self.depth);
        }
        let span = now.saturating_sub(self.span_began);
        if span < SPAN {
            return;
        }
        let rate = self.span_bytes * 1_000 / (span.as_millis() as u64).max(1);
        // Growth ends when a larger pipeline brings nothing more.
        self.growing = rate > self.rate_bytes_per_s + self.rate_bytes_per_s / 8;
        self.rate_bytes_per_s =
            if self.growing { rate } else { (3 * self.rate_bytes_per_s + rate) / 4 };
        self.span_began = now;
        self.span_bytes = 0;
        if !self.growing {
            self.depth = self.wanted_depth();
        }
    }

    /// Bandwidth times delay, in blocks.
    fn wanted_depth(&self) -> u32 {
        let sent_in = |time: Duration| {
            let bytes = u128::from(self.rate_bytes_per_s) * time.as_micros() / 1_000_000;
            u64::try_from(bytes).unwrap_or(u64::MAX)
        };
        let round_trip = sent_in(self.round_trip.unwrap_or_default());
        let bytes = round_trip.saturating_add(sent_in(AHEAD).min(AHEAD_BYTES_MAX));
        let blocks = u32::try_from(bytes / u64::from(BLOCK_BYTES)).unwrap_or(u32::MAX);
        blocks.clamp(DEPTH_MIN, u32::MAX / 2).min(self.depth_max)
    }
}

#[cfg(test)]
mod tests;
