//! Owns: one thread of the load: its connections, its epoll, its share of the open-loop schedule.
//! Never: reads the target's figures, prints. Flow: measure spawns it -> events -> tally at the
//! end.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::{
    event::{Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
};

use super::{
    connection::{Connection, Context, End, Lane, Stage},
    crowd::{Arrivals, Crowd, Role},
    pace::Pace,
    tally::{Board, Tally},
};

/// Events taken at once.
const EVENTS_MAX: usize = 128;
/// Connections of one worker that may be on their way to a handshake at the same time.
const OPENING_MAX: usize = 64;
/// Receives of dropped payload, at most; the memory behind it is never touched.
const DISCARD_BYTES: usize = 1 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Until a lost connection is opened again; doubles with each time, up to a limit.
const REOPEN_MS: u64 = 20;
/// A target that does not answer a handshake in this time has lost that connection.
const GREETING_MAX: Duration = Duration::from_secs(15);
/// How often a slow reader reads.
const SLOW_TICK: Duration = Duration::from_millis(250);

pub struct Plan {
    pub crowd: Arc<Crowd>,
    pub target: SocketAddr,
    pub outstanding_max: usize,
    pub skip_heads: bool,
    pub pace: Option<Pace>,
    /// Who comes while it runs, and how many were there at first (of all workers).
    pub arrivals: Option<(Arrivals, usize)>,
    /// Free places, for those that come.
    pub more_places: usize,
    /// Bytes a second that a slow reader reads.
    pub slow_rate: u64,
    pub reopen_max: Duration,
}

enum Place {
    Live(Box<Connection>, Instant),
    /// To be opened at this time.
    Waiting(Box<Lane>, Instant),
    Empty,
}

pub struct Worker {
    plan: Plan,
    board: Arc<Board>,
    epoll: OwnedFd,
    places: Vec<Place>,
    opening: usize,
    tally: Tally,
    discard: Vec<u8>,
    next_round: Instant,
    next_keep_alive: Instant,
    next_slow_tick: Instant,
    /// Those that are measured are the first places, the slow ones the next.
    active: usize,
    slow: std::ops::Range<usize>,
    free: Vec<usize>,
    /// The last of the board's questions that it answered.
    answered: u64,
}

impl Worker {
    pub fn new(mut plan: Plan, mut lanes: Vec<Lane>, board: Arc<Board>) -> Result<Self> {
        let now = Instant::now();
        let active = lanes.iter().filter(|lane| lane.role == Role::Active).count();
        let slow = lanes.iter().filter(|lane| lane.role == Role::Slow).count();
        if let Some((arrivals, _)) = &mut plan.arrivals {
            // An exponential time has no memory: what is left of it is as long on average.
            lanes[..active].iter_mut().for_each(|lane| lane.leaves = Some(now + arrivals.stay()));
        }
        let more = plan.more_places;
        let free = (lanes.len()..lanes.len() + more).rev().collect();
        let waiting = lanes.into_iter().map(|lane| Place::Waiting(Box::new(lane), now));
        Ok(Worker {
            plan,
            board,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create")?,
            places: waiting.chain((0..more).map(|_| Place::Empty)).collect(),
            opening: 0,
            tally: Tally::default(),
            discard: vec![0; DISCARD_BYTES],
            next_round: now,
            next_keep_alive: now + KEEP_ALIVE,
            next_slow_tick: now + SLOW_TICK,
            active,
            slow: active..active + slow,
            free,
            answered: 0,
        })
    }

    /// Until the board says stop.
    pub fn run(mut self) -> Result<Tally> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while !self.board.stop.load(Relaxed) {
            let mut now = Instant::now();
            if now >= self.next_round {
                self.round(now)?;
                self.slow_readers_read(now)?;
                self.board.answer(&mut self.answered, &self.tally);
                self.next_round =
                    now + Duration::from_millis(if self.opening > 0 { 1 } else { 20 });
            }
            let mut sleep = self.next_round.saturating_duration_since(now);
            if let Some(until) = self.pace_connections(now) {
                sleep = sleep.min(until);
            }
            events.clear();
            let timeout = Timespec::try_from(sleep).context("a timeout")?;
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error)).context("epoll_wait"),
            }
            now = Instant::now();
            for event in &events {
                self.on_event(event.data.u64() as usize, event.flags, now, usize::MAX)?;
            }
        }
        // Of those that come and go, one place is many connections: no part is anybody's.
        if self.plan.arrivals.is_none() {
            let lanes = self.places[..self.active].iter().map(|place| match place {
                Place::Live(connection, _) => connection.lane.window_bytes,
                Place::Waiting(lane, _) => lane.window_bytes,
                Place::Empty => 0,
            });
            self.tally.lane_bytes = lanes.collect();
        }
        Ok(self.tally)
    }

    /// Those that come by chance take a free place.
    fn arrive(&mut self, now: Instant) {
        let Some((arrivals, at_first)) = &mut self.plan.arrivals else { return };
        while arrivals.is_due(now) {
            let index = arrivals.next_index(*at_first);
            let stay = arrivals.stay();
            let Some(place) = self.free.pop() else {
                self.tally.turned_away += 1;
                continue;
            };
            self.tally.arrivals += 1;
            let mut lane = self.plan.crowd.lane(index, None, Role::Active);
            lane.leaves = Some(now + stay);
            self.places[place] = Place::Waiting(Box::new(lane), now);
        }
    }

    /// Its time is over: the socket is closed, whatever is under way.
    fn leave(&mut self, place: usize) {
        if let Place::Live(connection, _) = &self.places[place] {
            self.opening -= usize::from(connection.stage != Stage::Open);
        }
        self.places[place] = Place::Empty;
        self.free.push(place);
        self.tally.departures += 1;
    }

    /// Each takes what it may for this tick, whatever its socket holds.
    fn slow_readers_read(&mut self, now: Instant) -> Result<()> {
        if self.slow.is_empty() || now < self.next_slow_tick {
            return Ok(());
        }
        self.next_slow_tick = now + SLOW_TICK;
        let bytes = (self.plan.slow_rate as f64 * SLOW_TICK.as_secs_f64()).ceil() as usize;
        for place in self.slow.clone() {
            if let Place::Live(connection, _) = &self.places[place]
                && connection.reads_by_time()
            {
                self.on_event(place, epoll::EventFlags::IN, now, bytes)?;
            }
        }
        Ok(())
    }

    /// What is due by time and not by an event: opening, giving up, keep-alives.
    fn round(&mut self, now: Instant) -> Result<()> {
        let keep_alive = now >= self.next_keep_alive;
        if keep_alive {
            self.next_keep_alive = now + KEEP_ALIVE;
        }
        self.arrive(now);
        let come_and_go = self.plan.arrivals.is_some();
        for place in 0..self.places.len() {
            match &mut self.places[place] {
                Place::Live(connection, _)
                    if come_and_go && connection.lane.leaves.is_some_and(|at| at <= now) =>
                {
                    self.leave(place);
                }
                Place::Waiting(lane, _)
                    if come_and_go && lane.leaves.is_some_and(|at| at <= now) =>
                {
                    self.leave(place);
                }
                Place::Waiting(_, at) if *at <= now && self.opening < OPENING_MAX => {
                    self.open(place, now)?;
                }
                Place::Live(connection, since)
                    if self.opening > 0
                        && connection.stage != Stage::Open
                        && now - *since > GREETING_MAX =>
                {
                    self.lose(place, End::Closed("no handshake within 15 s".into()), now);
                }
                Place::Live(connection, _) if keep_alive => {
                    if let Err(end) = connection.keep_alive() {
                        self.lose(place, end, now);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn open(&mut self, place: usize, now: Instant) -> Result<()> {
        let Place::Waiting(lane, _) = std::mem::replace(&mut self.places[place], Place::Empty)
        else {
            return Ok(());
        };
        let torrent = &self.plan.crowd.offers[lane.offer].torrent;
        match Connection::open(lane, self.plan.target, torrent, now) {
            Ok(connection) => {
                let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT;
                let data = epoll::EventData::new_u64(place as u64);
                epoll::add(&self.epoll, &connection.socket, data, flags).context("epoll_ctl")?;
                self.opening += 1;
                self.places[place] = Place::Live(Box::new(connection), now);
            }
            Err((lane, error)) if error.raw_os_error() == Some(Errno::MFILE.raw_os_error()) => {
                drop(lane);
                return Err(error).context("out of descriptors: raise `ulimit -n`");
            }
            Err((lane, error)) => {
                self.tally.last_end = Some(error.to_string());
                self.places[place] = Place::Waiting(lane, now + Duration::from_millis(200));
            }
        }
        Ok(())
    }

    /// `allowance`: bytes that may be taken from its socket.
    fn on_event(
        &mut self,
        place: usize,
        flags: epoll::EventFlags,
        now: Instant,
        allowance: usize,
    ) -> Result<()> {
        let Some(Place::Live(connection, _)) = self.places.get_mut(place) else { return Ok(()) };
        let stage = connection.stage;
        let by_time = connection.reads_by_time();
        if by_time && flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP) {
            self.lose(place, End::Closed("the target closed the connection".into()), now);
            return Ok(());
        }
        let offer = &self.plan.crowd.offers[connection.lane.offer];
        let mut context = Context {
            torrent: &offer.torrent,
            grid: offer.grid,
            tally: &mut self.tally,
            discard: &mut self.discard,
            now,
            measuring: self.board.measuring.load(Relaxed),
            received_bytes: 0,
            outstanding_max: self.plan.outstanding_max,
            skip_heads: self.plan.skip_heads,
            allowance,
            open_loop: self.plan.pace.is_some(),
        };
        let mut outcome = Ok(());
        if stage == Stage::Connecting || flags.contains(epoll::EventFlags::OUT) {
            outcome = connection.on_writable(&mut context);
        }
        let is_turn = !by_time || flags.contains(epoll::EventFlags::IN);
        if outcome.is_ok() && stage != Stage::Connecting && is_turn {
            outcome = connection.on_readable(&mut context);
        }
        self.board.payload_bytes.fetch_add(context.received_bytes, Relaxed);
        if let Err(end) = outcome {
            self.lose(place, end, now);
            return Ok(());
        }
        let wants = connection.wants();
        if wants != connection.awaits {
            connection.awaits = wants;
            let data = epoll::EventData::new_u64(place as u64);
            epoll::modify(&self.epoll, &connection.socket, data, wants).context("epoll_ctl")?;
        }
        if stage != Stage::Open && connection.stage == Stage::Open {
            self.opening -= 1;
        }
        self.note_progress(place);
        Ok(())
    }

    fn note_progress(&mut self, place: usize) {
        let Place::Live(connection, _) = &mut self.places[place] else { return };
        let open = connection.stage == Stage::Open;
        let is_idle = connection.lane.role == Role::Idle;
        if open && !connection.lane.was_ready && (is_idle || !connection.choked) {
            connection.lane.was_ready = true;
            self.board.ready.fetch_add(1, Relaxed);
        }
        if open && !connection.lane.was_done && connection.is_done() {
            connection.lane.was_done = true;
            self.board.done.fetch_add(1, Relaxed);
        }
    }

    /// The socket ends; its lane is opened again after a while.
    fn lose(&mut self, place: usize, end: End, now: Instant) {
        let Place::Live(connection, _) = std::mem::replace(&mut self.places[place], Place::Empty)
        else {
            return;
        };
        if connection.stage != Stage::Open {
            self.opening -= 1;
        }
        let mut lane = connection.close();
        let mut pause = Duration::from_millis(REOPEN_MS << lane.reopens.min(6));
        match end {
            End::Closed(reason) => {
                self.tally.reopened += 1;
                self.tally.last_end = Some(reason);
            }
            End::Reordered => {
                self.tally.reordered += 1;
                lane.ordered = false;
                pause = Duration::ZERO;
            }
        }
        if !lane.was_done {
            self.places[place] = Place::Waiting(lane, now + pause.min(self.plan.reopen_max));
        }
    }

    /// Open loop: hands the blocks that are due to connections; says when the next one is.
    fn pace_connections(&mut self, now: Instant) -> Option<Duration> {
        let pace = self.plan.pace.as_mut()?;
        if !self.board.pacing.load(Relaxed) {
            return None;
        }
        let connections = self.active;
        let at_once = pace.at_once();
        let dropped = at_once as u64;
        let mut touched = Vec::new();
        for (turn, due) in pace.due(now) {
            let place = turn as usize % connections;
            match &mut self.places[place] {
                Place::Live(connection, _) if connection.due.len() < Pace::DUE_MAX => {
                    connection.due.extend(std::iter::repeat_n(due, at_once));
                    touched.push(place);
                }
                _ => self.tally.overdue_dropped += dropped,
            }
        }
        let next = pace.next_due();
        for place in touched {
            // Asking is an event like any other: the connection refills itself.
            if self.on_event(place, epoll::EventFlags::OUT, now, usize::MAX).is_err() {
                self.tally.overdue_dropped += dropped;
            }
        }
        Some(next?.saturating_duration_since(Instant::now()))
    }
}
