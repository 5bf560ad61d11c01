//! Owns: the target's part of a measurement: what its process spent in a window, and what it held.
//! Never: knows how the load is made: it may be another process's on another machine.
//! Flow: `Watched` before the load -> `begin` -> looks -> `end` -> into the load's `Outcome`.

use std::time::Instant;

use anyhow::Result;

use super::{
    Options,
    outcome::{IdleBytes, Outcome},
};
use crate::{
    meters::{self, Marks, Meters},
    probe::{Memory, Reading, is_running},
};

/// System calls are counted so long, after the window.
const SYSCALLS_SECONDS: f64 = 1.0;
const GIB: f64 = 1_073_741_824.0;

/// The target, read before the load came.
pub struct Watched {
    pid: Option<u32>,
    core: Option<usize>,
    counts_syscalls: bool,
    before_load: Option<Reading>,
}

/// The same in a window.
pub struct Watching<'a> {
    of: &'a Watched,
    before: Option<Reading>,
    marks: Marks,
    begin: Instant,
    private_by_second: Vec<u64>,
}

/// After it.
pub struct Seen {
    before_load: Option<Reading>,
    before: Option<Reading>,
    after: Option<Reading>,
    marks: (Marks, Marks),
    seconds: f64,
    private_by_second: Vec<u64>,
    /// What perf said, where it was asked.
    syscalls: Option<Result<f64>>,
}

impl Watched {
    pub fn new(options: &Options) -> Result<Self> {
        Ok(Watched {
            pid: options.pid,
            core: options.target_core,
            counts_syscalls: options.syscalls,
            before_load: options.pid.map(Reading::take).transpose()?,
        })
    }

    /// Nothing but what it spends.
    pub fn of(pid: Option<u32>) -> Result<Self> {
        let before_load = pid.map(Reading::take).transpose()?;
        Ok(Watched { pid, core: None, counts_syscalls: false, before_load })
    }

    pub fn begin(&self) -> Result<Watching<'_>> {
        Ok(Watching {
            of: self,
            before: self.pid.map(Reading::take).transpose()?,
            marks: Marks::take(self.core),
            begin: Instant::now(),
            private_by_second: Vec::new(),
        })
    }

    pub fn has_ended(&self) -> Option<u32> {
        self.pid.filter(|pid| !is_running(*pid))
    }

    /// Each second, from a window of their own: counting makes each of them slower.
    pub fn count_syscalls(&self) -> Option<Result<f64>> {
        let pid = self.pid.filter(|_| self.counts_syscalls)?;
        let count = meters::syscalls(pid, SYSCALLS_SECONDS);
        Some(count.map(|count| count as f64 / SYSCALLS_SECONDS))
    }

    /// How long the load has to go on after the window, for those who count: perf takes a moment to
    /// start.
    pub fn linger_seconds(&self) -> f64 {
        if self.counts_syscalls { SYSCALLS_SECONDS + 0.5 } else { 0.0 }
    }
}

impl Watching<'_> {
    /// Memory, once a second.
    pub fn look(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.begin).as_secs_f64();
        let is_second = since >= self.private_by_second.len() as f64;
        if let Some(memory) = self.of.pid.filter(|_| is_second).and_then(Memory::of) {
            self.private_by_second.push(memory.private_bytes);
        }
    }

    pub fn why_ended(&self) -> Option<String> {
        let pid = self.of.has_ended()?;
        let seconds = self.begin.elapsed().as_secs_f64();
        Some(format!("the target (process {pid}) ended {seconds:.1} s into the window"))
    }

    /// `is_partial`: one that is gone can't be read, and need not be.
    pub fn end(self, is_partial: bool) -> Result<Seen> {
        let seconds = self.begin.elapsed().as_secs_f64();
        let after = match self.of.pid.map(Reading::take).transpose() {
            Ok(after) => after,
            Err(_) if is_partial => None,
            Err(error) => return Err(error),
        };
        Ok(Seen {
            before_load: self.of.before_load,
            before: self.before,
            after,
            marks: (self.marks, Marks::take(self.of.core)),
            seconds,
            private_by_second: self.private_by_second,
            syscalls: None,
        })
    }
}

impl Seen {
    pub fn with_syscalls(mut self, counted: Option<Result<f64>>) -> Self {
        self.syscalls = counted;
        self
    }

    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    pub fn cpu_seconds(&self) -> Option<f64> {
        let (before, after) = self.before.zip(self.after)?;
        Some(after.cpu_seconds - before.cpu_seconds)
    }

    /// `gib_per_s_meanwhile`: what came while system calls were counted.
    pub fn put_into(self, outcome: &mut Outcome, is_idle: bool, gib_per_s_meanwhile: f64) {
        let gib = outcome.payload_bytes as f64 / GIB;
        let target = self.before.zip(self.after);
        let per_gib = |difference: f64| if gib > 0.0 { difference / gib } else { 0.0 };
        let of_target = |field: fn(&Reading) -> f64| {
            target.map(|(before, after)| per_gib(field(&after) - field(&before)))
        };
        outcome.target_cpu_seconds_per_gib = of_target(|reading| reading.cpu_seconds);
        outcome.target_user_seconds_per_gib = of_target(|reading| reading.user_seconds);
        outcome.target_read_bytes =
            target.map(|(before, after)| after.read_bytes.saturating_sub(before.read_bytes));
        outcome.target_switches_per_gib =
            of_target(|reading| (reading.voluntary_switches + reading.involuntary_switches) as f64);
        outcome.softirqd_seconds_per_gib = of_target(|reading| reading.softirqd_seconds);
        outcome.target_before = self.before_load;
        outcome.target_after = self.after;
        outcome.target_busy = target
            .map(|(before, after)| (after.cpu_seconds - before.cpu_seconds) / outcome.seconds);
        outcome.idle_bytes_per_connection =
            self.before_load.zip(self.after).filter(|_| is_idle).map(|(before, after)| {
                let served = outcome.connections_served.max(1) as f64;
                let each = |field: fn(&Reading) -> u64| {
                    (field(&after) as f64 - field(&before) as f64) / served
                };
                IdleBytes {
                    private: each(|reading| reading.private_bytes),
                    rss: each(|reading| reading.rss_bytes),
                    pss: each(|reading| reading.pss_bytes),
                }
            });
        outcome.target_private_by_second = self.private_by_second;
        let mut meters = Meters::between((&self.marks.0, &self.marks.1), target, gib);
        match self.syscalls {
            Some(Ok(per_second)) if gib_per_s_meanwhile > 0.0 => {
                meters.syscalls_per_gib = Some(per_second / gib_per_s_meanwhile);
            }
            Some(Ok(_)) => meters.not_measured.push("system calls: nothing came meanwhile".into()),
            Some(Err(error)) => meters.not_measured.push(format!("system calls: {error:#}")),
            None => {}
        }
        outcome.meters = meters;
    }
}
