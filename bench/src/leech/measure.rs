//! Owns: the course of one measurement: threads, warm-up, window, readings, the outcome.
//! Never: handles events. Flow: options -> workers -> window between two readings -> `Outcome`.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{
    Options,
    crowd::{Crowd, Role, fairness},
    histogram,
    pace::Pace,
    stalls::{Stalls, Watch},
    strain::Strain,
    tally::{Board, Tally},
    worker::{Plan, Worker},
};
use crate::{
    meters::{self, Marks, Meters},
    probe::{Memory, Reading, is_running},
};

/// Until all connections are unchoked; after it the measurement starts with those that are.
const READY_MAX: Duration = Duration::from_secs(30);
/// More of it, where there are many.
const READY_A_CONNECTION: Duration = Duration::from_millis(2);
/// Of those that come and go, the part that has to be there at the start.
const CROWD_READY: f64 = 0.8;
/// System calls are counted so long, after the window.
const SYSCALLS_SECONDS: f64 = 1.0;
const LOOK: Duration = Duration::from_millis(2);
/// Idle connections are held so long before memory is read, so that buffers settle.
const IDLE_SETTLE: Duration = Duration::from_secs(3);
const TENTH: Duration = Duration::from_millis(100);
const GIB: f64 = 1_073_741_824.0;

/// What a run of the load found. Figures of the target are `None` without --pid.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub target: String,
    pub connections: usize,
    pub connections_served: usize,
    pub outstanding: usize,
    pub block_bytes: u32,
    pub pattern: String,
    pub open_loop_mib_per_s: Option<f64>,
    pub seconds: f64,
    pub payload_bytes: u64,
    pub mib_per_s: f64,
    /// The same of each tenth of a second of the window.
    #[serde(default)]
    pub mib_per_s_by_tenth: Vec<f64>,
    pub latency_ms: Latency,
    pub target_cpu_seconds_per_gib: Option<f64>,
    pub target_user_seconds_per_gib: Option<f64>,
    pub target_read_bytes: Option<u64>,
    pub target_switches_per_gib: Option<f64>,
    pub target_before: Option<Reading>,
    pub target_after: Option<Reading>,
    pub softirqd_seconds_per_gib: Option<f64>,
    pub load_cpu_seconds_per_gib: f64,
    /// Part of the window in which the load was on a CPU; near its thread count, it was the limit.
    pub load_busy: f64,
    /// The same of its threads that could have run and had no core.
    #[serde(default)]
    pub load_waiting: f64,
    #[serde(default)]
    pub load_threads: usize,
    /// In words, where the load and not the target was the limit.
    #[serde(default)]
    pub load_was_limit: Option<String>,
    pub idle_bytes_per_connection: Option<IdleBytes>,
    /// From a connection's first packet to its first block, of all connections until the end.
    #[serde(default)]
    pub first_block_ms: Latency,
    /// Jain's index over what the connections got, where they stay.
    #[serde(default)]
    pub fairness: Option<f64>,
    /// The target's CPU time over the window's.
    #[serde(default)]
    pub target_busy: Option<f64>,
    /// The target's own memory, each second of the window.
    #[serde(default)]
    pub target_private_by_second: Vec<u64>,
    #[serde(default)]
    pub beside: Beside,
    #[serde(default)]
    pub meters: Meters,
    pub rejects: u64,
    pub chokes: u64,
    pub reopened: u64,
    pub reordered: u64,
    pub unrequested_blocks: u64,
    pub overdue_dropped: u64,
    pub pieces_verified: u64,
    pub pieces_bad: u64,
    /// Gaps in which no connection got anything.
    #[serde(default)]
    pub stalls: Stalls,
    pub last_end: Option<String>,
    /// The deadline passed before the work was done.
    pub cut_short: bool,
    /// Why the window ended before its time: what is here was measured until then.
    #[serde(default)]
    pub partial: Option<String>,
}

/// Who was there beside those that are measured, and who came and went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Beside {
    pub torrents: usize,
    pub idle: usize,
    pub slow: usize,
    pub slow_kib_per_s: f64,
    pub arrivals: u64,
    pub departures: u64,
    /// Those that came while no place was free.
    pub turned_away: u64,
}

/// Request sent (open loop: due) to block received whole, in the window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    pub blocks: u64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    #[serde(default)]
    pub p99_99: f64,
    pub max: f64,
    /// Percentiles and their values, for a curve.
    #[serde(default)]
    pub curve: Vec<(f64, f64)>,
    /// Everything, exact, so that it can be added to another's: `histogram.rs` says how to read it.
    #[serde(default)]
    pub histogram: String,
}

/// Percentiles of a curve: each step leaves half of the blocks above.
const CURVE: [f64; 14] = [
    0.0,
    50.0,
    75.0,
    87.5,
    93.75,
    96.875,
    98.4375,
    99.21875,
    99.609_375,
    99.804_687_5,
    99.902_343_75,
    99.951_171_875,
    99.975_585_937_5,
    99.987_792_968_75,
];

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct IdleBytes {
    pub private: f64,
    pub rss: f64,
    pub pss: f64,
}

impl Latency {
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        if histogram.is_empty() {
            return Latency::default();
        }
        Latency {
            blocks: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: histogram.max() as f64 / 1000.0,
            curve: CURVE.iter().map(|percent| (*percent, at(percent / 100.0))).collect(),
            histogram: histogram::to_text(histogram),
        }
    }
}

pub fn run(options: &Options) -> Result<Outcome> {
    let crowd = Arc::new(Crowd::new(options)?);
    let roles: Vec<Role> = crowd.roles().collect();
    raise_descriptor_limit(roles.len() + crowd.more_places(1))?;
    let before_load = options.pid.map(Reading::take).transpose()?;
    let board = Arc::new(Board::default());
    let threads = start_workers(options, &crowd, &roles, &board)?;
    let connections = roles.len();
    let window = Window::measure(options, connections, &board, before_load);
    board.stop.store(true, Relaxed);
    let mut tally = Tally::default();
    for worker in threads {
        let counted = worker.join().map_err(|_| anyhow!("a worker of the load panicked"))?;
        tally.merge(&counted?);
    }
    let reason = tally.last_end.as_deref().unwrap_or("it never answered or never unchoked");
    let window = window.with_context(|| format!("last seen on a connection: {reason}"))?;
    let mut outcome = window.outcome(options, connections, &tally);
    outcome.beside.torrents = crowd.offers.len();
    Ok(outcome)
}

fn raise_descriptor_limit(connections: usize) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = connections as u64 + 64;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).with_context(|| {
        format!(
            "{connections} connections need {wanted} open files, the hard limit is {}: raise it \
             (`ulimit -Hn`)",
            limit.maximum.unwrap_or(0)
        )
    })
}

type Threads = Vec<thread::JoinHandle<Result<Tally>>>;

fn start_workers(
    options: &Options,
    crowd: &Arc<Crowd>,
    roles: &[Role],
    board: &Arc<Board>,
) -> Result<Threads> {
    let active = roles.iter().filter(|role| **role == Role::Active).count();
    let threads = options.threads.min(if active > 0 { active } else { roles.len() });
    let mut started = Vec::new();
    for thread in 0..threads {
        let mine = roles.iter().enumerate().skip(thread).step_by(threads);
        let lanes: Vec<_> =
            mine.map(|(index, role)| crowd.lane(index, active.max(1), *role)).collect();
        let actives = lanes.iter().filter(|lane| lane.role == Role::Active).count();
        let share = actives as f64 / active.max(1) as f64;
        let pace = options.open_loop.map(|mib_per_s| {
            let blocks = mib_per_s * 1_048_576.0 / f64::from(options.block);
            Pace::new(blocks * share, Instant::now())
        });
        let plan = Plan {
            crowd: crowd.clone(),
            target: options.target,
            outstanding_max: options.outstanding,
            skip_heads: !options.all_heads && !options.verify,
            pace,
            arrivals: crowd
                .arrivals(thread, threads, Instant::now())
                .map(|arrivals| (arrivals, roles.len())),
            more_places: crowd.more_places(threads),
            slow_rate: options.slow_rate,
            reopen_max: Duration::from_millis(options.reopen_max),
        };
        let worker = Worker::new(plan, lanes, board.clone())?;
        let name = format!("load-{thread}");
        started.push(thread::Builder::new().name(name).spawn(move || worker.run())?);
    }
    Ok(started)
}

/// The part of the run that counts.
struct Window {
    served: usize,
    seconds: f64,
    payload_bytes: u64,
    by_tenth: Vec<f64>,
    private_by_second: Vec<u64>,
    meters: Meters,
    own: Strain,
    stalls: Stalls,
    before: Option<Reading>,
    after: Option<Reading>,
    before_load: Option<Reading>,
    cut_short: bool,
    partial: Option<String>,
}

impl Window {
    fn measure(
        options: &Options,
        connections: usize,
        board: &Board,
        before_load: Option<Reading>,
    ) -> Result<Self> {
        let start = Instant::now();
        let deadline = start + Duration::from_secs_f64(options.deadline);
        if !options.once {
            let part = if options.arrivals.is_some() { CROWD_READY } else { 1.0 };
            let wanted = (connections as f64 * part).ceil() as usize;
            wait_until_ready(options, wanted, board, deadline)?;
            let settle = if options.idle.is_some() { IDLE_SETTLE } else { Duration::ZERO };
            thread::sleep(settle.max(Duration::from_secs_f64(options.warm_up)));
        }
        board.measuring.store(true, Relaxed);
        let before = options.pid.map(Reading::take).transpose()?;
        let marks = Marks::take(options.target_core);
        let own_before = Strain::now();
        let bytes_before = board.payload_bytes.load(Relaxed);
        let begin = if options.once { start } else { Instant::now() };
        let work = Work { options, connections, board, begin, bytes_before, deadline };
        let course = work.watch();
        // Bytes first, readings after: the work of a reading must not be in the window.
        let payload_bytes = board.payload_bytes.load(Relaxed) - bytes_before;
        let seconds = begin.elapsed().as_secs_f64();
        let own = Strain::now().since(own_before);
        let after = match options.pid.map(Reading::take).transpose() {
            Ok(after) => after,
            Err(_) if course.partial.is_some() => None,
            Err(error) => return Err(error),
        };
        board.measuring.store(false, Relaxed);
        let target = before.zip(after);
        let gib = payload_bytes as f64 / GIB;
        let marks = (&marks, &Marks::take(options.target_core));
        let mut meters = Meters::between(marks, target, gib);
        count_syscalls(options, board, &mut meters);
        Ok(Window {
            served: board.ready.load(Relaxed),
            seconds,
            payload_bytes,
            by_tenth: course.by_tenth,
            private_by_second: course.private_by_second,
            meters,
            own,
            stalls: course.stalls,
            before,
            after,
            before_load,
            cut_short: course.cut_short,
            partial: course.partial,
        })
    }

    fn outcome(&self, options: &Options, connections: usize, tally: &Tally) -> Outcome {
        let gib = self.payload_bytes as f64 / GIB;
        let threads = options.threads.min(connections);
        let target = self.before.zip(self.after);
        let per_gib = |difference: f64| if gib > 0.0 { difference / gib } else { 0.0 };
        let of_target = |field: fn(&Reading) -> f64| {
            target.map(|(before, after)| per_gib(field(&after) - field(&before)))
        };
        let idle = options.idle.and(self.before_load.zip(self.after)).map(|(before, after)| {
            let each = |field: fn(&Reading) -> u64| {
                (field(&after) as f64 - field(&before) as f64) / self.served.max(1) as f64
            };
            IdleBytes {
                private: each(|reading| reading.private_bytes),
                rss: each(|reading| reading.rss_bytes),
                pss: each(|reading| reading.pss_bytes),
            }
        });
        Outcome {
            target: options.target.to_string(),
            connections: connections - options.slow - options.idle_beside,
            connections_served: self.served,
            outstanding: options.outstanding,
            block_bytes: options.block,
            pattern: format!("{:?}", options.pattern).to_lowercase(),
            open_loop_mib_per_s: options.open_loop,
            seconds: self.seconds,
            payload_bytes: self.payload_bytes,
            mib_per_s: gib * 1024.0 / self.seconds,
            mib_per_s_by_tenth: self.by_tenth.clone(),
            latency_ms: Latency::of(&tally.latency_us),
            target_cpu_seconds_per_gib: of_target(|reading| reading.cpu_seconds),
            target_user_seconds_per_gib: of_target(|reading| reading.user_seconds),
            target_read_bytes: target
                .map(|(before, after)| after.read_bytes.saturating_sub(before.read_bytes)),
            target_switches_per_gib: of_target(|reading| {
                (reading.voluntary_switches + reading.involuntary_switches) as f64
            }),
            target_before: self.before_load,
            target_after: self.after,
            softirqd_seconds_per_gib: of_target(|reading| reading.softirqd_seconds),
            load_cpu_seconds_per_gib: per_gib(self.own.cpu_seconds),
            load_busy: self.own.cpu_seconds / self.seconds,
            load_waiting: self.own.waiting_seconds / self.seconds,
            load_threads: threads,
            load_was_limit: self.own.was_limit(self.seconds, threads),
            idle_bytes_per_connection: idle,
            first_block_ms: Latency::of(&tally.first_block_us),
            fairness: fairness(&tally.lane_bytes),
            target_busy: target
                .map(|(before, after)| (after.cpu_seconds - before.cpu_seconds) / self.seconds),
            target_private_by_second: self.private_by_second.clone(),
            beside: Beside {
                torrents: 1,
                idle: options.idle_beside,
                slow: options.slow,
                slow_kib_per_s: tally.slow_bytes as f64 / 1024.0 / self.seconds,
                arrivals: tally.arrivals,
                departures: tally.departures,
                turned_away: tally.turned_away,
            },
            meters: self.meters.clone(),
            rejects: tally.rejects,
            chokes: tally.chokes,
            reopened: tally.reopened,
            reordered: tally.reordered,
            unrequested_blocks: tally.unrequested_blocks,
            overdue_dropped: tally.overdue_dropped,
            pieces_verified: tally.pieces_verified,
            pieces_bad: tally.pieces_bad,
            stalls: self.stalls,
            last_end: tally.last_end.clone(),
            cut_short: self.cut_short,
            partial: self.partial.clone(),
        }
    }
}

/// In a window of its own, over the payload that came in it.
fn count_syscalls(options: &Options, board: &Board, meters: &mut Meters) {
    let Some(pid) = options.pid.filter(|_| options.syscalls) else { return };
    let (start, before) = (Instant::now(), board.payload_bytes.load(Relaxed));
    let counted = meters::syscalls(pid, SYSCALLS_SECONDS);
    let seconds = start.elapsed().as_secs_f64();
    let gib_per_s = (board.payload_bytes.load(Relaxed) - before) as f64 / GIB / seconds;
    match counted {
        Ok(count) if gib_per_s > 0.0 => {
            meters.syscalls_per_gib = Some(count as f64 / SYSCALLS_SECONDS / gib_per_s);
        }
        Ok(_) => meters.not_measured.push("system calls: nothing came meanwhile".into()),
        Err(error) => meters.not_measured.push(format!("system calls: {error:#}")),
    }
}

/// The work of a window while it is done.
struct Work<'a> {
    options: &'a Options,
    connections: usize,
    board: &'a Board,
    begin: Instant,
    bytes_before: u64,
    deadline: Instant,
}

/// How the window went.
#[derive(Default)]
struct Course {
    by_tenth: Vec<f64>,
    private_by_second: Vec<u64>,
    stalls: Stalls,
    cut_short: bool,
    partial: Option<String>,
}

impl Work<'_> {
    /// Until it is over, or can't go on.
    fn watch(&self) -> Course {
        let options = self.options;
        let mut course = Course::default();
        let rate = options.open_loop.map(|mib| mib * 1_048_576.0 / f64::from(options.block));
        let mut watch = Watch::new(self.bytes_before, Instant::now(), rate);
        let mut tenth = (self.bytes_before, self.begin);
        loop {
            let (bytes, now) = (self.board.payload_bytes.load(Relaxed), Instant::now());
            watch.look(bytes, now);
            let since = now.saturating_duration_since(tenth.1);
            let is_tenth = since >= TENTH;
            if is_tenth {
                course.by_tenth.push((bytes - tenth.0) as f64 / 1_048_576.0 / since.as_secs_f64());
                tenth = (bytes, now);
            }
            let is_second = now.saturating_duration_since(self.begin).as_secs_f64()
                >= course.private_by_second.len() as f64;
            if let Some(memory) = options.pid.filter(|_| is_second).and_then(Memory::of) {
                course.private_by_second.push(memory.private_bytes);
            }
            if self.is_over(bytes) {
                break;
            }
            course.partial = self.why_in_vain(is_tenth, watch.silent(now));
            course.cut_short = now >= self.deadline;
            if course.partial.is_some() || course.cut_short {
                break;
            }
            thread::sleep(LOOK);
        }
        if options.idle.is_none() {
            course.stalls = watch.finish();
        }
        course
    }

    fn is_over(&self, bytes: u64) -> bool {
        match self.options.bytes {
            _ if self.options.once => self.board.done.load(Relaxed) == self.connections,
            Some(wanted) => bytes - self.bytes_before >= wanted,
            None => self.begin.elapsed().as_secs_f64() >= self.options.duration,
        }
    }

    fn why_in_vain(&self, look_at_process: bool, silent: Duration) -> Option<String> {
        let options = self.options;
        if let Some(pid) = options.pid.filter(|pid| look_at_process && !is_running(*pid)) {
            let seconds = self.begin.elapsed().as_secs_f64();
            return Some(format!(
                "the target (process {pid}) ended {seconds:.1} s into the window"
            ));
        }
        let silent = silent.as_secs_f64();
        (options.idle.is_none() && silent >= options.patience)
            .then(|| format!("{} sent nothing for {:.0} s", options.target, options.patience))
    }
}

fn wait_until_ready(
    options: &Options,
    connections: usize,
    board: &Board,
    deadline: Instant,
) -> Result<()> {
    let patience = READY_MAX + READY_A_CONNECTION * connections as u32;
    let until = deadline.min(Instant::now() + patience);
    for look in 0_u32.. {
        if board.ready.load(Relaxed) >= connections {
            break;
        }
        if let Some(pid) = options.pid.filter(|pid| look.is_multiple_of(50) && !is_running(*pid)) {
            bail!("the target (process {pid}) ended before it served every connection");
        }
        if Instant::now() >= until {
            let ready = board.ready.load(Relaxed);
            ensure!(ready > 0, "no connection was served within {} s", patience.as_secs());
            eprintln!("only {ready} of {connections} connections were unchoked; measuring those");
            break;
        }
        thread::sleep(LOOK);
    }
    Ok(())
}
