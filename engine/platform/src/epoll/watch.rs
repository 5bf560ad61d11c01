//! Which sockets are watched, and whose turn it is when one is ready.
//!
//! Owns: the epoll descriptor, the operations that wait on each socket, in order.
//! Never: what they do when it is ready. Flow: `wait_for_input`/`wait_for_output` -> `poll` ->
//! `input`/`output` -> `done`.
//!
//! A socket is watched while operations wait on it, each of which holds it, so that its number
//! means one socket only. Level-triggered: what was not taken is told again.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::{descriptors::Socket, slots::SlotId};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 256;
/// The eventfd's name: no descriptor is that large.
const WAKE: u64 = u64::MAX;

pub(super) struct Watch {
    epoll: OwnedFd,
    sockets: HashMap<RawFd, Watched>,
    /// Told by the kernel, and not looked at yet.
    events: VecDeque<Ready>,
    /// What the kernel fills.
    list: Vec<Event>,
    serial: u32,
}

#[derive(Default)]
struct Watched {
    /// Tells this socket from one that had its number before.
    serial: u32,
    asked: EventFlags,
    input: VecDeque<SlotId>,
    output: VecDeque<SlotId>,
}

/// A socket that something can be done with.
#[derive(Clone, Copy)]
pub(super) struct Ready {
    fd: RawFd,
    serial: u32,
    pub input: bool,
    pub output: bool,
}

impl Watched {
    fn wants(&self) -> EventFlags {
        let mut wants = EventFlags::empty();
        wants.set(EventFlags::IN, !self.input.is_empty());
        wants.set(EventFlags::OUT, !self.output.is_empty());
        wants
    }

    fn data(&self, fd: RawFd) -> EventData {
        EventData::new_u64(u64::from(self.serial) << 32 | u64::from(fd.cast_unsigned()))
    }
}

impl Watch {
    /// `wake`: an eventfd that ends a `poll`, and is never read.
    pub(super) fn new(wake: &OwnedFd) -> io::Result<Watch> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        // Edge-triggered: each write to it is one event.
        epoll::add(&epoll, wake, EventData::new_u64(WAKE), EventFlags::IN | EventFlags::ET)?;
        Ok(Watch {
            epoll,
            sockets: HashMap::new(),
            events: VecDeque::new(),
            list: Vec::with_capacity(EVENTS_MAX),
            serial: 0,
        })
    }

    pub(super) fn wait_for_input(&mut self, socket: &Socket, id: SlotId) -> io::Result<()> {
        self.watched(socket).input.push_back(id);
        self.ask(socket, id)
    }

    pub(super) fn wait_for_output(&mut self, socket: &Socket, id: SlotId) -> io::Result<()> {
        self.watched(socket).output.push_back(id);
        self.ask(socket, id)
    }

    /// Whether something waits already: what comes later waits behind it.
    pub(super) fn has_output(&self, socket: &Socket) -> bool {
        self.sockets.get(&socket.raw()).is_some_and(|watched| !watched.output.is_empty())
    }

    /// An operation waits no longer.
    pub(super) fn done(&mut self, socket: &Socket, id: SlotId) {
        let Some(watched) = self.sockets.get_mut(&socket.raw()) else { return };
        watched.input.retain(|&it| it != id);
        watched.output.retain(|&it| it != id);
        // Asking for less fails only where the socket is not watched any more.
        let _ = self.settle(socket);
    }

    fn watched(&mut self, socket: &Socket) -> &mut Watched {
        let serial = &mut self.serial;
        self.sockets.entry(socket.raw()).or_insert_with(|| {
            *serial = serial.wrapping_add(1);
            Watched { serial: *serial, ..Watched::default() }
        })
    }

    fn ask(&mut self, socket: &Socket, id: SlotId) -> io::Result<()> {
        let asked = self.settle(socket);
        if asked.is_err() {
            self.done(socket, id);
        }
        asked
    }

    /// Asks the kernel for what the socket's operations wait for.
    fn settle(&mut self, socket: &Socket) -> io::Result<()> {
        let (fd, descriptor) = (socket.raw(), borrowed(socket));
        let Some(watched) = self.sockets.get_mut(&fd) else { return Ok(()) };
        let wants = watched.wants();
        let before = std::mem::replace(&mut watched.asked, wants);
        let data = watched.data(fd);
        let result = match (before.is_empty(), wants.is_empty()) {
            (_, false) if before == wants => Ok(()),
            (true, false) => epoll::add(&self.epoll, descriptor, data, wants),
            (false, false) => epoll::modify(&self.epoll, descriptor, data, wants),
            (false, true) => epoll::delete(&self.epoll, descriptor),
            (true, true) => Ok(()),
        };
        if wants.is_empty() {
            self.sockets.remove(&fd);
        } else if result.is_err()
            && let Some(watched) = self.sockets.get_mut(&fd)
        {
            watched.asked = before;
        }
        Ok(result?)
    }

    pub(super) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    pub(super) fn next(&mut self) -> Option<Ready> {
        self.events.pop_front()
    }

    /// The first operation that waits for input on it.
    pub(super) fn input(&self, ready: Ready) -> Option<SlotId> {
        self.of(ready)?.input.front().copied()
    }

    pub(super) fn output(&self, ready: Ready) -> Option<SlotId> {
        self.of(ready)?.output.front().copied()
    }

    fn of(&self, ready: Ready) -> Option<&Watched> {
        self.sockets.get(&ready.fd).filter(|watched| watched.serial == ready.serial)
    }

    /// Takes what the kernel has to tell, waiting for it at most so long; `None`: for ever.
    pub(super) fn poll(&mut self, timeout: Option<Duration>) {
        // In milliseconds, and not too early. One that does not fit is ended early.
        let timeout = timeout.map(|timeout| {
            let milliseconds = timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128);
            Duration::from_millis(milliseconds as u64)
        });
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        self.list.clear();
        let list = rustix::buffer::spare_capacity(&mut self.list);
        match epoll::wait(&self.epoll, list, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("epoll_wait: {error}"),
        }
        for event in &self.list {
            let (data, flags) = (event.data.u64(), event.flags);
            if data == WAKE {
                continue;
            }
            // Who waits on a socket that failed or ended finds that out by trying.
            let over = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            self.events.push_back(Ready {
                fd: (data as u32).cast_signed(),
                serial: (data >> 32) as u32,
                input: over || flags.contains(EventFlags::IN),
                output: over || flags.contains(EventFlags::OUT),
            });
        }
    }
}

pub(super) fn borrowed(socket: &Socket) -> BorrowedFd<'_> {
    socket.as_os().expect("a virtual socket was given to a kernel backend")
}
