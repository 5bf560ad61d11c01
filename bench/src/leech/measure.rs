//! Owns: the course of one measurement: threads, warm-up, window, readings, the outcome.
//! Never: handles events. Flow: options -> workers -> window between two readings -> `Outcome`.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{
    Options,
    connection::asked_at_once,
    crowd::{Crowd, Offer, Role, fairness},
    histogram,
    lead::{Alone, Found, Lanes, Lead, Progress},
    outcome::{Beside, Latency, Outcome},
    pace::Pace,
    stalls::{Stalls, Watch},
    strain::Strain,
    tally::{Board, Counts, Tally},
    watched::{Seen, Watched, Watching},
    worker::{Plan, Worker},
};
use crate::meters::Meters;

/// Until all connections are unchoked; after it the measurement starts with those that are.
const READY_MAX: Duration = Duration::from_secs(30);
/// More of it, where there are many.
const READY_A_CONNECTION: Duration = Duration::from_millis(2);
/// Of those that come and go, the part that has to be there at the start.
const CROWD_READY: f64 = 0.8;
const LOOK: Duration = Duration::from_millis(2);
/// Idle connections are held so long before memory is read, so that buffers settle.
const IDLE_SETTLE: Duration = Duration::from_secs(3);
const TENTH: Duration = Duration::from_millis(100);
const GIB: f64 = 1_073_741_824.0;

/// By this process alone, the target's process watched.
pub fn run(options: &Options) -> Result<Outcome> {
    let offers = super::crowd::read_offers(options)?;
    let watched = Watched::new(options)?;
    Ok(load(options, offers, Some(&watched), &Alone)?.outcome)
}

/// As a part of a load that somebody else leads and whose target somebody else watches. `None`:
/// none of the crowd is of this part.
pub fn led(options: &Options, offers: Vec<Offer>, lead: &dyn Lead) -> Result<Option<Found>> {
    options.check()?;
    let crowd = Crowd::new(options, Vec::new());
    if crowd.members().is_empty() {
        return Ok(None);
    }
    load(options, offers, None, lead).map(Some)
}

/// How long all has to be as it will be, before the window.
pub fn settle(options: &Options) -> Duration {
    if options.once {
        return Duration::ZERO;
    }
    let idle = if options.idle.is_some() { IDLE_SETTLE } else { Duration::ZERO };
    idle.max(Duration::from_secs_f64(options.warm_up))
}

/// How long connections may need until all are there.
pub fn ready_max(connections: usize) -> Duration {
    READY_MAX + READY_A_CONNECTION * u32::try_from(connections).unwrap_or(u32::MAX)
}

fn load(
    options: &Options,
    offers: Vec<Offer>,
    watched: Option<&Watched>,
    lead: &dyn Lead,
) -> Result<Found> {
    let torrents = offers.len();
    let crowd = Arc::new(Crowd::new(options, offers));
    let members = crowd.members();
    raise_descriptor_limit(members.len() + crowd.more_places(1))?;
    let board = Arc::new(Board::default());
    // A load that is over when all have everything is measured from its first packet.
    let begin = if options.once {
        let at = lead.ready(0, members.len(), Duration::ZERO)?;
        thread::sleep(at.saturating_duration_since(Instant::now()));
        Some(at)
    } else {
        None
    };
    let threads = start_workers(options, &crowd, &members, &board)?;
    let workers = threads.len();
    let work = Work { options, members: &members, board: &board, watched, lead, workers };
    let window = work.measure(begin);
    board.stop.store(true, Relaxed);
    let mut tally = Tally::default();
    for worker in threads {
        let counted = worker.join().map_err(|_| anyhow!("a worker of the load panicked"))?;
        tally.merge(&counted?);
    }
    let reason = tally.last_end.as_deref().unwrap_or("it never answered or never unchoked");
    let window = window.with_context(|| format!("last seen on a connection: {reason}"))?;
    let mut outcome = window.course.outcome(options, &members, &tally);
    outcome.beside.torrents = torrents;
    outcome.fairness = fairness(&tally.lane_bytes);
    if let Some(seen) = window.seen {
        let meanwhile = window.lingering_mib_per_s.unwrap_or(0.0) / 1024.0;
        seen.put_into(&mut outcome, options.idle.is_some(), meanwhile);
    }
    let lanes = Lanes::of(&tally.lane_bytes);
    Ok(Found { outcome, lanes, lingering_mib_per_s: window.lingering_mib_per_s })
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
/// Number in the whole crowd, and part in it.
type Member = (usize, Role);

fn count(members: &[Member], role: Role) -> usize {
    members.iter().filter(|(_, of)| *of == role).count()
}

fn start_workers(
    options: &Options,
    crowd: &Arc<Crowd>,
    members: &[Member],
    board: &Arc<Board>,
) -> Result<Threads> {
    let active = count(members, Role::Active);
    let of_all = crowd.roles().filter(|role| *role == Role::Active).count();
    let threads = options.threads.min(if active > 0 { active } else { members.len() });
    let part = options.part;
    let mut started = Vec::new();
    for thread in 0..threads {
        let mine = members.iter().skip(thread).step_by(threads);
        let lanes: Vec<_> =
            mine.map(|(index, role)| crowd.lane(*index, Some(of_all.max(1)), *role)).collect();
        let actives = lanes.iter().filter(|lane| lane.role == Role::Active).count();
        let share = actives as f64 / of_all.max(1) as f64;
        // A part may have none that asks.
        let pace = options.open_loop.filter(|_| actives > 0).map(|mib_per_s| {
            let blocks = mib_per_s * 1_048_576.0 / f64::from(options.block);
            Pace::new(blocks * share, asked_at_once(options.outstanding))
        });
        let (number, of) = (part.number * threads + thread, part.of * threads);
        let plan = Plan {
            crowd: crowd.clone(),
            target: options.target,
            outstanding_max: options.outstanding,
            skip_heads: !options.all_heads && !options.verify,
            pace,
            arrivals: crowd
                .arrivals(number, of, Instant::now())
                .map(|arrivals| (arrivals, crowd.roles().count())),
            more_places: crowd.more_places(of),
            slow_rate: options.slow_rate,
            reopen_max: Duration::from_millis(options.reopen_max),
        };
        let worker = Worker::new(plan, lanes, board.clone())?;
        let name = format!("load-{thread}");
        started.push(thread::Builder::new().name(name).spawn(move || worker.run())?);
    }
    Ok(started)
}

/// How a window went.
#[derive(Default)]
pub struct Course {
    pub served: usize,
    pub seconds: f64,
    pub payload_bytes: u64,
    pub by_tenth: Vec<f64>,
    pub own: Strain,
    pub stalls: Stalls,
    pub cut_short: bool,
    pub partial: Option<String>,
}

/// The part of the run that counts.
struct Window {
    course: Course,
    seen: Option<Seen>,
    lingering_mib_per_s: Option<f64>,
}

/// A load that runs, and its window.
struct Work<'a> {
    options: &'a Options,
    members: &'a [Member],
    board: &'a Board,
    watched: Option<&'a Watched>,
    lead: &'a dyn Lead,
    workers: usize,
}

impl Work<'_> {
    /// `begin`: where it has begun already.
    fn measure(&self, begin: Option<Instant>) -> Result<Window> {
        let (options, board) = (self.options, self.board);
        let deadline = Instant::now() + Duration::from_secs_f64(options.deadline);
        if begin.is_none() {
            let part = if options.arrivals.is_some() { CROWD_READY } else { 1.0 };
            let wanted = (self.members.len() as f64 * part).ceil() as usize;
            self.wait_until_ready(wanted, deadline)?;
            board.pacing.store(true, Relaxed);
            let served = board.ready.load(Relaxed);
            let at = self.lead.ready(served, self.members.len(), settle(options))?;
            thread::sleep(at.saturating_duration_since(Instant::now()));
        }
        board.pacing.store(true, Relaxed);
        board.measuring.store(true, Relaxed);
        let watching = self.watched.map(Watched::begin).transpose()?;
        let own_before = Strain::now();
        let bytes_before = board.payload_bytes.load(Relaxed);
        let begin = begin.unwrap_or_else(Instant::now);
        let mut seen = Sight::new(self, watching, begin, bytes_before, own_before);
        seen.until_over(deadline);
        // Bytes first, readings after: the work of a reading must not be in the window.
        let payload_bytes = board.payload_bytes.load(Relaxed) - bytes_before;
        let seconds = begin.elapsed().as_secs_f64();
        let own = Strain::now().since(own_before);
        let mut course = seen.course;
        (course.payload_bytes, course.seconds, course.own) = (payload_bytes, seconds, own);
        course.served = board.ready.load(Relaxed);
        let is_partial = course.partial.is_some();
        let after = seen.watching.map(|watching| watching.end(is_partial)).transpose()?;
        board.measuring.store(false, Relaxed);
        let (start, bytes) = (Instant::now(), board.payload_bytes.load(Relaxed));
        let counted = self.watched.filter(|_| !is_partial).and_then(Watched::count_syscalls);
        let is_alone = counted.is_some();
        if !is_alone && !is_partial {
            thread::sleep(Duration::from_secs_f64(options.linger));
        }
        let lingered = (board.payload_bytes.load(Relaxed) - bytes) as f64 / 1_048_576.0;
        let since = start.elapsed().as_secs_f64();
        let has_lingered = is_alone || options.linger > 0.0;
        Ok(Window {
            course,
            seen: after.map(|seen| seen.with_syscalls(counted)),
            lingering_mib_per_s: has_lingered.then(|| lingered / since),
        })
    }

    fn wait_until_ready(&self, connections: usize, deadline: Instant) -> Result<()> {
        let patience = ready_max(connections);
        let until = deadline.min(Instant::now() + patience);
        for look in 0_u32.. {
            if self.board.ready.load(Relaxed) >= connections {
                break;
            }
            let ended = self.watched.filter(|_| look.is_multiple_of(50));
            if let Some(pid) = ended.and_then(Watched::has_ended) {
                bail!("the target (process {pid}) ended before it served every connection");
            }
            if let Some(why) = self.lead.stop() {
                bail!("{why}");
            }
            if Instant::now() >= until {
                let ready = self.board.ready.load(Relaxed);
                ensure!(ready > 0, "no connection was served within {} s", patience.as_secs());
                eprintln!(
                    "only {ready} of {connections} connections were unchoked; measuring those"
                );
                break;
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    fn is_over(&self, begin: Instant, bytes: u64) -> bool {
        match self.options.bytes {
            _ if self.options.once => self.board.done.load(Relaxed) == self.members.len(),
            Some(wanted) => bytes >= wanted,
            None => begin.elapsed().as_secs_f64() >= self.options.duration,
        }
    }

    /// Blocks a second that this process's members ask for in open loop.
    fn blocks_per_second(&self) -> Option<f64> {
        let share = share_of(self.options, self.members);
        let rate = |mib: f64| mib * share * 1_048_576.0 / f64::from(self.options.block);
        self.options.open_loop.map(rate)
    }
}

/// The part of the crowd's active ones that these are.
fn share_of(options: &Options, members: &[Member]) -> f64 {
    let all = options.active().max(1) as f64;
    count(members, Role::Active) as f64 / all
}

/// A window that is looked at while it lasts.
struct Sight<'a> {
    work: &'a Work<'a>,
    watching: Option<Watching<'a>>,
    begin: Instant,
    bytes_before: u64,
    own_before: Strain,
    tenth: (u64, Instant),
    course: Course,
    /// Tenths that the lead has heard of, and what latency it knows.
    heard: usize,
    latency_heard: hdrhistogram::Histogram<u64>,
    asked: Option<Instant>,
}

impl<'a> Sight<'a> {
    fn new(
        work: &'a Work<'a>,
        watching: Option<Watching<'a>>,
        begin: Instant,
        bytes_before: u64,
        own_before: Strain,
    ) -> Self {
        Sight {
            work,
            watching,
            begin,
            bytes_before,
            own_before,
            tenth: (bytes_before, begin),
            course: Course::default(),
            heard: 0,
            latency_heard: histogram::empty(),
            asked: None,
        }
    }

    /// Until it is over, or can't go on.
    fn until_over(&mut self, deadline: Instant) {
        let (work, board) = (self.work, self.work.board);
        let mut watch = Watch::new(self.bytes_before, Instant::now(), work.blocks_per_second());
        let interval = work.lead.interval();
        let mut next = interval.map(|interval| self.begin + interval);
        loop {
            let (bytes, now) = (board.payload_bytes.load(Relaxed), Instant::now());
            watch.look(bytes, now);
            let is_tenth = self.note_tenth(bytes, now);
            if let Some(watching) = &mut self.watching {
                watching.look(now);
            }
            if let Some((at, interval)) = next.zip(interval)
                && now >= at
            {
                // Workers answer within their next rounds.
                board.asked.fetch_add(1, Relaxed);
                self.asked = Some(now);
                next = Some(at + interval);
            }
            self.tell();
            if work.is_over(self.begin, bytes - self.bytes_before) {
                break;
            }
            self.course.partial = self.why_in_vain(is_tenth, watch.silent(now));
            self.course.cut_short = now >= deadline;
            if self.course.partial.is_some() || self.course.cut_short {
                break;
            }
            thread::sleep(LOOK);
        }
        if work.options.idle.is_none() {
            self.course.stalls = watch.finish();
        }
    }

    fn note_tenth(&mut self, bytes: u64, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.tenth.1);
        let is_tenth = since >= TENTH;
        if is_tenth {
            let mib = (bytes - self.tenth.0) as f64 / 1_048_576.0;
            self.course.by_tenth.push(mib / since.as_secs_f64());
            self.tenth = (bytes, now);
        }
        is_tenth
    }

    fn why_in_vain(&self, look_at_process: bool, silent: Duration) -> Option<String> {
        let options = self.work.options;
        if let Some(why) = self.work.lead.stop() {
            return Some(why);
        }
        let watching = self.watching.as_ref().filter(|_| look_at_process);
        if let Some(why) = watching.and_then(Watching::why_ended) {
            return Some(why);
        }
        let silent = silent.as_secs_f64();
        (options.idle.is_none() && silent >= options.patience)
            .then(|| format!("{} sent nothing for {:.0} s", options.target, options.patience))
    }

    /// What all workers have counted, once all have answered.
    fn tell(&mut self) {
        if self.asked.is_none() {
            return;
        }
        let Some(tally) = self.work.board.answers(self.work.workers) else { return };
        let now = Instant::now();
        self.asked = None;
        let own = Strain::now().since(self.own_before);
        let mut latency = tally.latency_us.clone();
        if latency.subtract(&self.latency_heard).is_err() {
            return;
        }
        self.latency_heard = tally.latency_us.clone();
        let tenths = self.course.by_tenth[self.heard..].to_vec();
        self.heard = self.course.by_tenth.len();
        self.work.lead.hear(Progress {
            seconds: now.saturating_duration_since(self.begin).as_secs_f64(),
            payload_bytes: self.work.board.payload_bytes.load(Relaxed) - self.bytes_before,
            served: self.work.board.ready.load(Relaxed),
            mib_per_s_by_tenth: tenths,
            latency: histogram::to_text(&latency),
            counts: Counts::of(&tally),
            cpu_seconds: own.cpu_seconds,
            waiting_seconds: own.waiting_seconds,
        });
    }
}

impl Course {
    /// The load's part of what was found: the target's is for those who watch it.
    pub fn outcome(&self, options: &Options, members: &[Member], tally: &Tally) -> Outcome {
        let gib = self.payload_bytes as f64 / GIB;
        let per_gib = |difference: f64| if gib > 0.0 { difference / gib } else { 0.0 };
        let seconds = self.seconds.max(1e-9);
        let active = count(members, Role::Active);
        let threads = options.threads.min(if active > 0 { active } else { members.len() });
        let slow = count(members, Role::Slow);
        let idle_beside = match options.idle {
            Some(_) => 0,
            None => count(members, Role::Idle),
        };
        Outcome {
            target: options.target.to_string(),
            connections: members.len() - slow - idle_beside,
            connections_served: self.served,
            outstanding: options.outstanding,
            block_bytes: options.block,
            pattern: options.pattern.name(),
            open_loop_mib_per_s: options.open_loop.map(|mib| mib * share_of(options, members)),
            seconds: self.seconds,
            payload_bytes: self.payload_bytes,
            mib_per_s: gib * 1024.0 / seconds,
            mib_per_s_by_tenth: self.by_tenth.clone(),
            latency_ms: Latency::of(&tally.latency_us),
            target_cpu_seconds_per_gib: None,
            target_user_seconds_per_gib: None,
            target_read_bytes: None,
            target_switches_per_gib: None,
            target_before: None,
            target_after: None,
            softirqd_seconds_per_gib: None,
            load_cpu_seconds_per_gib: per_gib(self.own.cpu_seconds),
            load_busy: self.own.cpu_seconds / seconds,
            load_waiting: self.own.waiting_seconds / seconds,
            load_threads: threads,
            load_was_limit: self.own.was_limit(seconds, threads),
            idle_bytes_per_connection: None,
            first_block_ms: Latency::of(&tally.first_block_us),
            fairness: None,
            target_busy: None,
            target_private_by_second: Vec::new(),
            beside: Beside {
                torrents: 1,
                idle: idle_beside,
                slow,
                slow_kib_per_s: tally.slow_bytes as f64 / 1024.0 / seconds,
                arrivals: tally.arrivals,
                departures: tally.departures,
                turned_away: tally.turned_away,
            },
            meters: Meters::default(),
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
            by_agent: Vec::new(),
        }
    }
}
