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
    pace::Pace,
    tally::{Board, Tally},
};
use crate::torrent::{Grid, Torrent};

/// Events taken at once.
const EVENTS_MAX: usize = 128;
/// Connections of one worker that may be on their way to a handshake at the same time.
const OPENING_MAX: usize = 64;
/// Receives of dropped payload, at most; the memory behind it is never touched.
const DISCARD_BYTES: usize = 1 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Until a lost connection is opened again; grows with each time, to a second.
const REOPEN_MS: u64 = 20;
/// A target that does not answer a handshake in this time has lost that connection.
const GREETING_MAX: Duration = Duration::from_secs(15);

pub struct Plan {
    pub torrent: Arc<Torrent>,
    pub grid: Grid,
    pub target: SocketAddr,
    pub outstanding_max: usize,
    pub skip_heads: bool,
    pub idle: bool,
    pub pace: Option<Pace>,
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
}

impl Worker {
    pub fn new(plan: Plan, lanes: Vec<Lane>, board: Arc<Board>) -> Result<Self> {
        let now = Instant::now();
        Ok(Worker {
            plan,
            board,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create")?,
            places: lanes.into_iter().map(|lane| Place::Waiting(Box::new(lane), now)).collect(),
            opening: 0,
            tally: Tally::default(),
            discard: vec![0; DISCARD_BYTES],
            next_round: now,
            next_keep_alive: now + KEEP_ALIVE,
        })
    }

    /// Until the board says stop.
    pub fn run(mut self) -> Result<Tally> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while !self.board.stop.load(Relaxed) {
            let mut now = Instant::now();
            if now >= self.next_round {
                self.round(now)?;
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
                self.on_event(event.data.u64() as usize, event.flags, now)?;
            }
        }
        Ok(self.tally)
    }

    /// What is due by time and not by an event: opening, giving up, keep-alives.
    fn round(&mut self, now: Instant) -> Result<()> {
        let keep_alive = now >= self.next_keep_alive;
        if keep_alive {
            self.next_keep_alive = now + KEEP_ALIVE;
        }
        for place in 0..self.places.len() {
            match &mut self.places[place] {
                Place::Waiting(_, at) if *at <= now && self.opening < OPENING_MAX => {
                    self.open(place, now)?;
                }
                Place::Live(connection, since)
                    if connection.stage != Stage::Open && now - *since > GREETING_MAX =>
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
        match Connection::open(lane, self.plan.target, &self.plan.torrent) {
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

    fn on_event(&mut self, place: usize, flags: epoll::EventFlags, now: Instant) -> Result<()> {
        let Some(Place::Live(connection, _)) = self.places.get_mut(place) else { return Ok(()) };
        let stage = connection.stage;
        let mut context = Context {
            torrent: &self.plan.torrent,
            grid: self.plan.grid,
            tally: &mut self.tally,
            discard: &mut self.discard,
            now,
            measuring: self.board.measuring.load(Relaxed),
            received_bytes: 0,
            outstanding_max: self.plan.outstanding_max,
            skip_heads: self.plan.skip_heads,
            idle: self.plan.idle,
            open_loop: self.plan.pace.is_some(),
        };
        let mut outcome = Ok(());
        if stage == Stage::Connecting || flags.contains(epoll::EventFlags::OUT) {
            outcome = connection.on_writable(&mut context);
        }
        if outcome.is_ok() && stage != Stage::Connecting {
            outcome = connection.on_readable(&mut context);
        }
        self.board.payload_bytes.fetch_add(context.received_bytes, Relaxed);
        if let Err(end) = outcome {
            self.lose(place, end, now);
            return Ok(());
        }
        let wants_writable = connection.wants_writable();
        if wants_writable != connection.waits_writable {
            connection.waits_writable = wants_writable;
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, wants_writable);
            let data = epoll::EventData::new_u64(place as u64);
            epoll::modify(&self.epoll, &connection.socket, data, flags).context("epoll_ctl")?;
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
        if open && !connection.lane.was_ready && (self.plan.idle || !connection.choked) {
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
            self.places[place] = Place::Waiting(lane, now + pause.min(Duration::from_secs(1)));
        }
    }

    /// Open loop: hands the blocks that are due to connections; says when the next one is.
    fn pace_connections(&mut self, now: Instant) -> Option<Duration> {
        let pace = self.plan.pace.as_mut()?;
        let connections = self.places.len();
        let mut touched = Vec::new();
        for (turn, due) in pace.due(now) {
            let place = turn as usize % connections;
            match &mut self.places[place] {
                Place::Live(connection, _) if connection.due.len() < Pace::DUE_MAX => {
                    connection.due.push_back(due);
                    touched.push(place);
                }
                _ => self.tally.overdue_dropped += 1,
            }
        }
        let next = pace.next_due();
        for place in touched {
            // Asking is an event like any other: the connection refills itself.
            if self.on_event(place, epoll::EventFlags::OUT, now).is_err() {
                self.tally.overdue_dropped += 1;
            }
        }
        Some(next.saturating_duration_since(Instant::now()))
    }
}
