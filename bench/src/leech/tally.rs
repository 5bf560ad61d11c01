//! Owns: what one worker has counted, and the counters the measuring thread reads while it runs.
//! Never: decides anything. Flow: connections count here; workers' tallies are merged at the end.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::histogram;

/// Shared by the workers and the measuring thread. All `Relaxed`: each is a count of its own, and
/// nothing else is published through them.
#[derive(Default)]
pub struct Board {
    pub stop: AtomicBool,
    /// The open loop's schedule begins when this is set: all are there that will be. What was due
    /// before would be late already.
    pub pacing: AtomicBool,
    /// Latencies are recorded while this is set.
    pub measuring: AtomicBool,
    /// Payload bytes received whole, all workers.
    pub payload_bytes: AtomicU64,
    /// Connections that were unchoked at least once (idle mode: whose handshake was answered).
    pub ready: AtomicUsize,
    /// Connections that have fetched all they should (--once).
    pub done: AtomicUsize,
    /// How often the measuring thread has asked for the tallies so far.
    pub asked: AtomicU64,
    answers: Mutex<Answers>,
}

/// To one question: a worker that is late for it is not in the next one's sum twice.
#[derive(Default)]
struct Answers {
    question: u64,
    workers: usize,
    sum: Tally,
}

impl Board {
    /// A worker's tally, if it was asked for since `answered`.
    pub fn answer(&self, answered: &mut u64, tally: &Tally) {
        let question = self.asked.load(Relaxed);
        if *answered == question {
            return;
        }
        *answered = question;
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.question != question {
            *answers = Answers { question, ..Answers::default() };
        }
        answers.workers += 1;
        answers.sum.merge(tally);
    }

    /// The sum of all, once so many workers have answered the last question.
    pub fn answers(&self, workers: usize) -> Option<Tally> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_whole = answers.workers == workers && answers.question == self.asked.load(Relaxed);
        is_whole.then(|| {
            answers.workers = 0;
            std::mem::take(&mut answers.sum)
        })
    }
}

/// What is counted and not measured, of one worker or of all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub rejects: u64,
    pub chokes: u64,
    pub reopened: u64,
    pub reordered: u64,
    pub unrequested_blocks: u64,
    pub overdue_dropped: u64,
    pub pieces_verified: u64,
    pub pieces_bad: u64,
    pub slow_bytes: u64,
    pub arrivals: u64,
    pub departures: u64,
    pub turned_away: u64,
    pub last_end: Option<String>,
}

impl Counts {
    pub fn of(tally: &Tally) -> Self {
        Counts {
            rejects: tally.rejects,
            chokes: tally.chokes,
            reopened: tally.reopened,
            reordered: tally.reordered,
            unrequested_blocks: tally.unrequested_blocks,
            overdue_dropped: tally.overdue_dropped,
            pieces_verified: tally.pieces_verified,
            pieces_bad: tally.pieces_bad,
            slow_bytes: tally.slow_bytes,
            arrivals: tally.arrivals,
            departures: tally.departures,
            turned_away: tally.turned_away,
            last_end: tally.last_end.clone(),
        }
    }

    pub fn tally(&self) -> Tally {
        Tally {
            rejects: self.rejects,
            chokes: self.chokes,
            reopened: self.reopened,
            reordered: self.reordered,
            unrequested_blocks: self.unrequested_blocks,
            overdue_dropped: self.overdue_dropped,
            pieces_verified: self.pieces_verified,
            pieces_bad: self.pieces_bad,
            slow_bytes: self.slow_bytes,
            arrivals: self.arrivals,
            departures: self.departures,
            turned_away: self.turned_away,
            last_end: self.last_end.clone(),
            ..Tally::default()
        }
    }
}

pub struct Tally {
    pub latency_us: Histogram<u64>,
    /// From a connection's first packet to its first block, of all connections.
    pub first_block_us: Histogram<u64>,
    /// Payload of slow readers in the window.
    pub slow_bytes: u64,
    pub arrivals: u64,
    pub departures: u64,
    /// Those that came while no place was free.
    pub turned_away: u64,
    /// What each connection got in the window, where they stay.
    pub lane_bytes: Vec<u64>,
    pub blocks: u64,
    pub rejects: u64,
    pub chokes: u64,
    /// Connections opened again, because the target closed them.
    pub reopened: u64,
    /// Connections opened again, because blocks came in another order while heads were skipped.
    pub reordered: u64,
    pub unrequested_blocks: u64,
    pub pieces_verified: u64,
    pub pieces_bad: u64,
    /// Open loop: blocks whose time came while too many waited; they were never asked for.
    pub overdue_dropped: u64,
    /// Why connections ended, the last reason.
    pub last_end: Option<String>,
}

impl Default for Tally {
    fn default() -> Self {
        Tally {
            latency_us: histogram::empty(),
            first_block_us: histogram::empty(),
            slow_bytes: 0,
            arrivals: 0,
            departures: 0,
            turned_away: 0,
            lane_bytes: Vec::new(),
            blocks: 0,
            rejects: 0,
            chokes: 0,
            reopened: 0,
            reordered: 0,
            unrequested_blocks: 0,
            pieces_verified: 0,
            pieces_bad: 0,
            overdue_dropped: 0,
            last_end: None,
        }
    }
}

impl Tally {
    pub fn record(&mut self, latency: Duration) {
        self.latency_us.saturating_record(latency.as_micros() as u64);
    }

    pub fn record_first_block(&mut self, time: Duration) {
        self.first_block_us.saturating_record(time.as_micros() as u64);
    }

    pub fn merge(&mut self, other: &Tally) {
        self.latency_us.add(&other.latency_us).expect("invariant: same bounds");
        self.first_block_us.add(&other.first_block_us).expect("invariant: same bounds");
        self.slow_bytes += other.slow_bytes;
        self.arrivals += other.arrivals;
        self.departures += other.departures;
        self.turned_away += other.turned_away;
        self.lane_bytes.extend_from_slice(&other.lane_bytes);
        self.blocks += other.blocks;
        self.rejects += other.rejects;
        self.chokes += other.chokes;
        self.reopened += other.reopened;
        self.reordered += other.reordered;
        self.unrequested_blocks += other.unrequested_blocks;
        self.pieces_verified += other.pieces_verified;
        self.pieces_bad += other.pieces_bad;
        self.overdue_dropped += other.overdue_dropped;
        if other.last_end.is_some() {
            self.last_end.clone_from(&other.last_end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_whole_or_not_there() {
        let board = Board::default();
        let tally = |blocks: u64| Tally { blocks, ..Tally::default() };
        let (mut one, mut other) = (0, 0);
        board.answer(&mut one, &tally(5));
        assert!(board.answers(2).is_none(), "nobody asked");
        board.asked.fetch_add(1, Relaxed);
        board.answer(&mut one, &tally(5));
        board.answer(&mut one, &tally(6));
        assert!(board.answers(2).is_none(), "the other has not answered");
        board.asked.fetch_add(1, Relaxed);
        board.answer(&mut one, &tally(7));
        board.answer(&mut other, &tally(100));
        assert_eq!(board.answers(2).map(|sum| sum.blocks), Some(107));
        assert!(board.answers(2).is_none(), "once");
    }
}
