//! The backend of `trait Io` where io_uring can't be had: epoll for sockets, threads for files.
//!
//! Owns: the in-flight table, receive buffers. Never: BitTorrent, waiting anywhere but in `wait`.
//! Flow: `submit` tries at once, or has the socket watched, or gives the call to a helper thread;
//! `reap` does what became possible -> `Completion`s.
//!
//! Slower than the ring (a system call for each receive and send, a change of threads for each
//! read), and everything that the ring does works here as well, but zero-copy: sends copy.

mod buffers;
mod helpers;
mod sockets;
mod watch;

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

pub(crate) use self::buffers::Buffer;
use self::{buffers::Buffers, helpers::Helpers, watch::Watch};
use crate::{
    descriptors::{self, File, Socket},
    files::{FileWork, Step},
    memory::Pool,
    op::{Completion, Io, Op, Outcome, Shutdown, Token},
    send_batch::{SendBatch, SpareBatches},
    slots::{Held, SlotId, Slots},
    wake::{Sleeper, Waker},
    window::{Regions, Window},
};

/// How long `drop` waits for calls on files to end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// How to set the backend up.
#[derive(Clone)]
pub struct EpollOptions {
    /// Operations in flight at most; `submit` refuses more.
    pub in_flight_max: u32,
    pub receive_buffer_bytes: usize,
    /// The same for bulk receives.
    pub bulk_buffer_bytes: usize,
    pub pool: Pool,
    /// Where `now` counts from; the same for all shards.
    pub epoch: Instant,
}

impl EpollOptions {
    /// The sizes that suit a shard with some thousands of connections.
    pub fn new(pool: Pool, epoch: Instant) -> EpollOptions {
        EpollOptions {
            in_flight_max: 16_384,
            receive_buffer_bytes: 16 << 10,
            bulk_buffer_bytes: 128 << 10,
            pool,
            epoch,
        }
    }
}

/// The kernel behind `trait Io`, by its older calls. Stays on the thread that made it.
pub struct Epoll {
    watch: Watch,
    slots: Slots<Work>,
    helpers: Helpers,
    buffers: Rc<Buffers>,
    bulk: Rc<Buffers>,
    /// Completions that nobody took yet.
    ready: VecDeque<Completion>,
    batches: SpareBatches,
    regions: Regions,
    pool: Pool,
    sleeper: Sleeper,
    epoch: Instant,
    now: Duration,
}

/// What an operation holds while it is in flight.
enum Work {
    Accept {
        listener: Socket,
    },
    Connect {
        socket: Socket,
    },
    Receive {
        socket: Socket,
        once: bool,
        bulk: bool,
    },
    Send {
        socket: Socket,
        batch: Box<SendBatch>,
    },
    File(FileWork),
    /// A step of a helper thread holds it; for no longer than a function call.
    Taken,
}

impl Held for Work {
    fn is_cancellable(&self) -> bool {
        matches!(self, Work::Accept { .. } | Work::Connect { .. } | Work::Receive { .. })
    }
}

impl Epoll {
    pub fn new(options: EpollOptions) -> io::Result<Epoll> {
        let (waker, sleeper) = Waker::pair()?;
        let mut epoll = Epoll {
            watch: Watch::new(sleeper.eventfd())?,
            slots: Slots::new(options.in_flight_max),
            helpers: Helpers::new(waker),
            buffers: Buffers::new(options.receive_buffer_bytes),
            bulk: Buffers::new(options.bulk_buffer_bytes),
            ready: VecDeque::new(),
            batches: SpareBatches::default(),
            regions: Regions::default(),
            pool: options.pool,
            sleeper,
            epoch: options.epoch,
            now: Duration::ZERO,
        };
        epoll.refresh_now();
        Ok(epoll)
    }

    fn refresh_now(&mut self) {
        self.now = self.epoch.elapsed();
    }

    fn say(&mut self, token: Token, outcome: Outcome) {
        self.ready.push_back(Completion { token, outcome });
    }

    /// The operation's last completion.
    fn end(&mut self, id: SlotId, outcome: Outcome) {
        let token = self.slots.token(id);
        self.slots.vacate(id);
        self.say(token, outcome);
    }

    /// Gives the operation's next call to a helper.
    fn call(&mut self, id: SlotId) {
        let Some(Work::File(work)) = self.slots.work_mut(id) else {
            unreachable!("invariant: the caller put work on a file there")
        };
        let call = work.call();
        // SAFETY: the slot keeps the work untouched until `answered`, and `drop` leaks it where a
        // helper does not come back.
        if let Err(error) = unsafe { self.helpers.call(id, call) } {
            self.answered(id, -error.raw_os_error().unwrap_or(libc::EAGAIN));
        }
    }

    fn answered(&mut self, id: SlotId, answer: i32) {
        let work = self.slots.work_mut(id).map(|work| std::mem::replace(work, Work::Taken));
        let Some(Work::File(work)) = work else {
            unreachable!("invariant: helpers answer what they were given")
        };
        match work.step(answer) {
            Step::Again(work) => {
                if let Some(place) = self.slots.work_mut(id) {
                    *place = Work::File(work);
                }
                self.call(id);
            }
            Step::Done(outcome) => self.end(id, outcome),
        }
    }

    fn take_answers(&mut self) {
        for (id, answer) in self.helpers.answers() {
            self.answered(id, answer);
        }
    }

    fn wants_no_sleep(&self) -> bool {
        !self.ready.is_empty() || self.watch.has_events() || self.helpers.has_answers()
    }
}

impl Io for Epoll {
    fn now(&self) -> Duration {
        self.now
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn batch(&mut self) -> Box<SendBatch> {
        self.batches.take()
    }

    fn recycle(&mut self, batch: Box<SendBatch>) {
        self.batches.give_back(batch);
    }

    fn submit(&mut self, op: Op) -> Result<(), Op> {
        if self.slots.is_full() {
            return Err(op);
        }
        match op {
            Op::Accept { token, listener } => self.accept(token, listener),
            Op::Connect { token, socket, address } => self.connect(token, socket, address),
            Op::ReceiveOnce { token, socket } => self.receive(token, socket, true, false),
            Op::Receive { token, socket, bulk } => self.receive(token, socket, false, bulk),
            Op::SendBatch { token, socket, batch, .. } => self.send(token, socket, batch),
            // Every file is that long; the kernel would refuse the empty range.
            Op::Allocate { token, length_bytes: 0, .. } => {
                self.say(token, Outcome::Allocated(Ok(())));
            }
            file => {
                let (token, work) = FileWork::of(file)?;
                let id = self.slots.occupy(token, Work::File(work));
                self.call(id);
            }
        }
        Ok(())
    }

    fn cancel(&mut self, token: Token) {
        let ids: Vec<SlotId> = self.slots.cancellable(token).collect();
        for id in ids {
            self.cancel_one(id);
        }
    }

    fn socket(&mut self, remote: SocketAddr, bind: Option<IpAddr>) -> io::Result<Socket> {
        let socket = descriptors::connecting(remote, bind)?;
        rustix::io::ioctl_fionbio(watch::borrowed(&socket), true)?;
        Ok(socket)
    }

    fn shutdown(&mut self, socket: &Socket, how: Shutdown) {
        descriptors::shut_down(socket, how);
    }

    fn reap(&mut self, completions: &mut Vec<Completion>, max: usize) {
        let limit = completions.len() + max;
        self.take_answers();
        let mut polled = false;
        while completions.len() < limit {
            if let Some(completion) = self.ready.pop_front() {
                completions.push(completion);
            } else if let Some(ready) = self.watch.next() {
                self.go_on(ready);
            } else if !std::mem::replace(&mut polled, true) {
                self.watch.poll(Some(Duration::ZERO));
            } else {
                break;
            }
        }
        self.refresh_now();
    }

    fn wait(&mut self, until: Option<Duration>, pending: &dyn Fn() -> bool) {
        if !self.wants_no_sleep() && self.sleeper.arm() {
            // Armed first: an answer that comes now either shows here or ends the sleep.
            if !pending() && !self.helpers.has_answers() {
                let timeout = until.map(|until| until.saturating_sub(self.epoch.elapsed()));
                self.watch.poll(timeout);
            }
            self.sleeper.disarm();
        }
        self.refresh_now();
    }

    fn window(&mut self, file: &File, offset: u64, length: usize) -> Option<Window> {
        self.regions.window(file, offset, length)
    }

    fn waker(&self) -> Waker {
        self.sleeper.waker()
    }

    fn in_flight(&self) -> usize {
        self.slots.occupied() + self.ready.len()
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        if !self.helpers.end(Instant::now() + DRAIN_DEADLINE) {
            // A helper still writes to or reads from these (a disk that hangs): what it uses must
            // not be reused.
            std::mem::forget(std::mem::replace(&mut self.slots, Slots::new(1)));
            std::mem::forget(self.pool.clone());
        }
    }
}
