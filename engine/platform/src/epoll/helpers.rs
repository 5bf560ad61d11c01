//! Threads that make the calls on files, so that a shard never waits for a disk.
//!
//! Owns: the threads, the calls that wait for one, the answers that nobody took yet.
//! Never: what a call means, the memory that it names (the slot it came from holds that).
//! Flow: `call` -> a thread makes it -> answer and wake-up -> `answers`.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{files::Call, slots::SlotId, wake::Waker};

/// Threads at most: as many calls are with the disk at once.
const THREADS_MAX: usize = 8;

pub(super) struct Helpers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    /// There are answers: looked at without the lock.
    answered: AtomicBool,
    waker: Waker,
}

#[derive(Default)]
struct Queue {
    calls: VecDeque<(SlotId, Call)>,
    answers: Vec<(SlotId, i32)>,
    /// Threads that wait for calls.
    idle: usize,
    ended: bool,
}

impl Shared {
    /// Nobody panics while holding it; were it so, the queue is whole between statements.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Helpers {
    pub(super) fn new(waker: Waker) -> Helpers {
        let shared = Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            answered: AtomicBool::new(false),
            waker,
        };
        Helpers { shared: Arc::new(shared), threads: Vec::new() }
    }

    /// Queues a call. `Err`: there is no thread to make it, and none can be started.
    ///
    /// # Safety
    /// The `FileWork` that the call came from is kept, untouched, until its answer is taken, or for
    /// ever where `end` says that some are still made.
    pub(super) unsafe fn call(&mut self, id: SlotId, call: Call) -> io::Result<()> {
        let mut queue = self.shared.queue();
        if queue.idle <= queue.calls.len() && self.threads.len() < THREADS_MAX {
            drop(queue);
            if let Err(error) = self.start()
                && self.threads.is_empty()
            {
                return Err(error);
            }
            queue = self.shared.queue();
        }
        queue.calls.push_back((id, call));
        drop(queue);
        self.shared.work.notify_one();
        Ok(())
    }

    fn start(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let name = match std::thread::current().name() {
            Some(shard) => format!("{shard}-files"),
            None => "files".to_owned(),
        };
        let thread = std::thread::Builder::new().name(name).spawn(move || shared.run())?;
        self.threads.push(thread);
        Ok(())
    }

    pub(super) fn has_answers(&self) -> bool {
        // Acquire: the partner of the store in `run`; the answers themselves are behind the lock.
        self.shared.answered.load(Ordering::Acquire)
    }

    /// What was answered since.
    pub(super) fn answers(&mut self) -> Vec<(SlotId, i32)> {
        if !self.has_answers() {
            return Vec::new();
        }
        let mut queue = self.shared.queue();
        self.shared.answered.store(false, Ordering::Release);
        std::mem::take(&mut queue.answers)
    }

    /// Makes no more calls. `false`: some that were begun are not over by then.
    pub(super) fn end(&mut self, deadline: Instant) -> bool {
        let mut queue = self.shared.queue();
        queue.ended = true;
        queue.calls.clear();
        drop(queue);
        self.shared.work.notify_all();
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.threads.drain(..).for_each(|thread| {
            let _ = thread.join();
        });
        true
    }
}

impl Shared {
    fn run(&self) {
        let mut queue = self.queue();
        loop {
            if let Some((id, call)) = queue.calls.pop_front() {
                drop(queue);
                // SAFETY: `Helpers::call`'s caller keeps what it names until the answer is taken.
                let answer = unsafe { call.run() };
                queue = self.queue();
                queue.answers.push((id, answer));
                // Release: with the lock's, what the call wrote is seen by who takes the answer.
                self.answered.store(true, Ordering::Release);
                self.waker.wake();
            } else if queue.ended {
                return;
            } else {
                queue.idle += 1;
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }
}
