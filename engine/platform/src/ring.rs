//! The io_uring backend of `trait Io`: one raw ring a shard.
//!
//! Owns: the queues, the in-flight table, receive buffers, the registration of the pool's arenas.
//! Never: BitTorrent, waiting anywhere but in `wait`.
//! Flow: `submit` -> slot + entry -> one enter a tick -> `complete` -> `Completion`s.
//!
//! Lifetimes (the class of bug that io_uring programs have): whatever the kernel has an address or
//! descriptor of lies in a slot and leaves it at the last completion. Dropping the ring cancels,
//! waits for the table to empty, and leaks what does not come home in time.

pub(crate) mod buffers;
mod complete;
mod entries;
mod queue;
mod setup;
mod work;

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use io_uring::{opcode, types};

use self::{
    buffers::{BULK, GROUP, ReceiveBuffers},
    entries::{CANCEL, WAKE},
    queue::Queue,
    setup::build,
    work::{Slots, Work},
};
use crate::{
    descriptors::{self, File, Socket},
    memory::{ARENAS_MAX, Pool},
    op::{Completion, Io, Op, Outcome, Shutdown, Token, cancellation},
    send_batch::{SendBatch, SpareBatches},
    slots::SlotId,
    wake::{Sleeper, Waker},
    window::{Regions, Window},
};

pub(crate) use setup::build as build_for_probe;
pub use setup::{Features, SetupError, TaskRun};

/// How long `drop` waits for operations to end after it cancelled them.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// How to set a ring up.
#[derive(Clone)]
pub struct RingOptions {
    /// Length of the submission queue; a hint, rounded up to a power of two.
    pub entries: u32,
    /// Operations in flight at most; `submit` refuses more.
    pub in_flight_max: u32,
    /// Buffers for receiving; rounded up to a power of two, 32,768 at most.
    pub receive_buffers: u32,
    pub receive_buffer_bytes: u32,
    /// The same for bulk receives.
    pub bulk_buffers: u32,
    pub bulk_buffer_bytes: u32,
    /// Whether `SendBatch { zero_copy: true }` may be honoured; otherwise it is sent by copying.
    pub zero_copy: bool,
    pub pool: Pool,
    /// Where `now` counts from; the same for all shards.
    pub epoch: Instant,
}

impl RingOptions {
    /// The sizes that suit a shard with some thousands of connections.
    pub fn new(pool: Pool, epoch: Instant) -> RingOptions {
        RingOptions {
            entries: 1024,
            in_flight_max: 16_384,
            receive_buffers: 1024,
            receive_buffer_bytes: 4096,
            // A MiB, which is what one tick can bring: of more, the copy into pieces would read
            // from memory what a core's own cache still holds now (decision 0014).
            bulk_buffers: 16,
            bulk_buffer_bytes: 64 << 10,
            zero_copy: true,
            pool,
            epoch,
        }
    }
}

/// What the ring did so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Calls that found the completion queue overflown: it is too short for the load.
    pub overflows: u64,
    /// Receives that found no buffer though all were offered: too few for the load.
    pub starved: u64,
}

/// The kernel behind `trait Io`. Stays on the thread that made it.
pub struct Ring {
    queue: Queue,
    slots: Slots,
    features: Features,
    buffers: Rc<ReceiveBuffers>,
    bulk: Rc<ReceiveBuffers>,
    /// Receives that found no buffer, to be armed when some are back. Stale names are skipped.
    starved: VecDeque<SlotId>,
    starved_total: u64,
    /// Completions that did not fit the last `reap`, or that need no kernel.
    ready: VecDeque<Completion>,
    batches: SpareBatches,
    regions: Regions,
    pool: Pool,
    arenas_registered: usize,
    sleeper: Sleeper,
    wake_armed: bool,
    epoch: Instant,
    now: Duration,
    /// The ring is being dropped: nothing is armed again.
    draining: bool,
}

impl Ring {
    pub fn new(options: RingOptions) -> Result<Ring, SetupError> {
        // Room for every single-shot operation and as many multishot ones again; an overflow is
        // handled, only slower.
        let wanted = options.in_flight_max.max(options.entries).saturating_mul(2).min(1 << 16);
        Self::with_completion_entries(options, wanted)
    }

    /// The same with a completion queue of a given length, for tests of its overflow.
    pub fn with_completion_entries(
        options: RingOptions,
        completion_entries: u32,
    ) -> Result<Ring, SetupError> {
        let (ring, mut features) = build(options.entries, completion_entries)?;
        let queue = Queue::new(ring);
        let offer = |group, count, each_bytes| -> Result<_, SetupError> {
            let buffers = ReceiveBuffers::new(group, count, each_bytes)
                .map_err(SetupError::resource("memory for receive buffers"))?;
            buffers.register(&queue.submitter()).map_err(SetupError::resource(
                "offering receive buffers to the kernel (Linux 5.19)",
            ))?;
            Ok(buffers)
        };
        let buffers = offer(GROUP, options.receive_buffers, options.receive_buffer_bytes)?;
        let bulk = offer(BULK, options.bulk_buffers, options.bulk_buffer_bytes)?;
        match queue.submitter().register_buffers_sparse(ARENAS_MAX as u32) {
            Ok(()) => features.registered_memory = true,
            Err(error) => features.steps_down.push(format!("registered memory: {error}")),
        }
        if !options.zero_copy {
            features.zero_copy = false;
        }
        let (_, sleeper) = Waker::pair().map_err(SetupError::resource("an eventfd"))?;
        let mut ring = Ring {
            queue,
            slots: Slots::new(options.in_flight_max),
            features,
            buffers,
            bulk,
            starved: VecDeque::new(),
            starved_total: 0,
            ready: VecDeque::new(),
            batches: SpareBatches::default(),
            regions: Regions::default(),
            pool: options.pool,
            arenas_registered: 0,
            sleeper,
            wake_armed: false,
            epoch: options.epoch,
            now: Duration::ZERO,
            draining: false,
        };
        ring.register_arenas();
        ring.refresh_now();
        Ok(ring)
    }

    /// What this ring does and which steps down it took.
    pub fn features(&self) -> &Features {
        &self.features
    }

    pub fn statistics(&self) -> Statistics {
        Statistics {
            enters: self.queue.enters,
            overflows: self.queue.overflows,
            starved: self.starved_total,
        }
    }

    fn refresh_now(&mut self) {
        self.now = self.epoch.elapsed();
    }

    /// Registers arenas that the pool grew since. A refusal (locked-memory limit) ends it for
    /// good: reads then pin their pages one by one.
    fn register_arenas(&mut self) {
        while self.features.registered_memory && self.arenas_registered < self.pool.arenas() {
            let (base, len_bytes) = self.pool.arena_span(self.arenas_registered);
            let span = [libc::iovec { iov_base: base.as_ptr().cast(), iov_len: len_bytes }];
            let at = self.arenas_registered as u32;
            // SAFETY: the arena stays mapped as long as the pool, of which this ring holds a
            // handle until it is drained (and leaks one if that fails).
            match unsafe { self.queue.submitter().register_buffers_update(at, &span, None) } {
                Ok(()) => self.arenas_registered += 1,
                Err(error) => {
                    self.features.registered_memory = false;
                    self.features.steps_down.push(format!(
                        "registered memory: arena {at} refused ({error}); \
                         raise the locked-memory limit (LimitMEMLOCK=, ulimit -l)"
                    ));
                }
            }
        }
    }

    /// Arms receives that waited for buffers, at most as many as there are buffers.
    fn rearm_starved(&mut self) {
        let (mut home, mut bulk_home) = (self.buffers.home(), self.bulk.home());
        for _ in 0..self.starved.len() {
            if home == 0 && bulk_home == 0 {
                return;
            }
            let Some(id) = self.starved.pop_front() else { return };
            let Some(Work::Receive(it)) = self.slots.work_mut(id) else { continue };
            let home = if it.bulk { &mut bulk_home } else { &mut home };
            match (it.armed, *home) {
                (true, _) => {}
                (false, 0) => self.starved.push_back(id),
                (false, _) => {
                    *home -= 1;
                    self.arm(id);
                }
            }
        }
    }

    fn arm_wake(&mut self) {
        if self.wake_armed || self.draining {
            return;
        }
        self.wake_armed = true;
        let fd = types::Fd(std::os::fd::AsRawFd::as_raw_fd(self.sleeper.eventfd()));
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true);
        // SAFETY: the entry holds no addresses.
        unsafe { self.queue.push(poll.build().user_data(WAKE)) };
    }

    /// Marks one operation cancelled and asks the kernel to end it.
    fn cancel_one(&mut self, id: SlotId) {
        let in_kernel = match self.slots.work_mut(id) {
            Some(Work::Receive(it)) => {
                it.cancelled = true;
                it.armed
            }
            Some(Work::Accept(it)) => {
                it.cancelled = true;
                true
            }
            Some(Work::Connect { .. }) => true,
            _ => return,
        };
        if in_kernel {
            let entry = opcode::AsyncCancel::new(id.user_data()).build().user_data(CANCEL);
            // SAFETY: the entry holds no addresses.
            unsafe { self.queue.push(entry) };
        } else {
            // Starved: nothing in the kernel would answer.
            let token = self.slots.token(id);
            self.slots.vacate(id);
            self.ready
                .push_back(Completion { token, outcome: Outcome::Received(Err(cancellation())) });
        }
    }
}

impl Io for Ring {
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
        if let Op::Read { lease, .. } = &op
            && usize::from(lease.arena()) >= self.arenas_registered
        {
            self.register_arenas();
        }
        if let Op::Allocate { token, length_bytes: 0, .. } = op {
            // Every file is that long; the kernel would refuse the empty range.
            self.ready.push_back(Completion { token, outcome: Outcome::Allocated(Ok(())) });
            return Ok(());
        }
        let (token, work) = entries::work_of(op, self.features.zero_copy);
        let id = self.slots.occupy(token, work);
        self.arm(id);
        Ok(())
    }

    fn cancel(&mut self, token: Token) {
        let ids: Vec<SlotId> = self.slots.cancellable(token).collect();
        for id in ids {
            self.cancel_one(id);
        }
    }

    fn socket(&mut self, remote: SocketAddr, bind: Option<IpAddr>) -> io::Result<Socket> {
        descriptors::connecting(remote, bind)
    }

    fn shutdown(&mut self, socket: &Socket, how: Shutdown) {
        descriptors::shut_down(socket, how);
    }

    fn reap(&mut self, completions: &mut Vec<Completion>, max: usize) {
        let limit = completions.len() + max;
        self.rearm_starved();
        if self.queue.has_unsubmitted() || (self.queue.is_empty() && self.queue.kernel_holds_back())
        {
            self.queue.submit();
        }
        while completions.len() < limit {
            if let Some(completion) = self.ready.pop_front() {
                completions.push(completion);
            } else if let Some(entry) = self.queue.pop() {
                self.complete(entry);
            } else {
                break;
            }
        }
        self.refresh_now();
    }

    fn wait(&mut self, until: Option<Duration>, pending: &dyn Fn() -> bool) {
        self.arm_wake();
        self.rearm_starved();
        if !self.ready.is_empty() || !self.queue.is_empty() {
            self.refresh_now();
            return;
        }
        if !self.sleeper.arm() {
            self.refresh_now();
            return;
        }
        if pending() {
            self.sleeper.disarm();
            self.refresh_now();
            return;
        }
        let timeout = until.map(|until| until.saturating_sub(self.epoch.elapsed()));
        self.queue.submit_and_wait(timeout);
        self.sleeper.disarm();
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

impl Drop for Ring {
    fn drop(&mut self) {
        self.draining = true;
        self.ready.clear();
        let all: Vec<SlotId> = self.slots.ids().collect();
        for id in all {
            // A zero-copy send that was cut short pins its pages until its peer acknowledges
            // them, or the connection is reset.
            if let Some(Work::Send { socket, zero_copy: true, .. }) = self.slots.work_mut(id) {
                descriptors::shut_down(socket, Shutdown::Reset);
            }
            self.cancel_one(id);
        }
        let everything = types::CancelBuilder::any();
        let entry = opcode::AsyncCancel2::new(everything).build().user_data(CANCEL);
        // SAFETY: the entry holds no addresses.
        unsafe { self.queue.push(entry) };
        let deadline = Instant::now() + DRAIN_DEADLINE;
        while self.slots.occupied() > 0 && Instant::now() < deadline {
            self.queue.submit_and_wait(Some(Duration::from_millis(50)));
            while let Some(entry) = self.queue.pop() {
                self.complete(entry);
            }
            self.ready.clear();
        }
        if self.slots.occupied() > 0 {
            // The kernel still writes to or reads from these (a zero-copy send to a peer that
            // acknowledges nothing, a disk that hangs): what it uses must not be reused.
            std::mem::forget(std::mem::replace(&mut self.slots, Slots::new(1)));
            std::mem::forget((Rc::clone(&self.buffers), Rc::clone(&self.bulk)));
            std::mem::forget(self.pool.clone());
        }
    }
}

#[cfg(test)]
mod tests;
