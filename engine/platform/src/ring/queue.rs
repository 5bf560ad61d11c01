//! The two queues shared with the kernel, and the call that moves them.
//!
//! Owns: submission and completion queue, entries that found the submission queue full.
//! Never: what an entry means. Flow: entries in -> one enter a tick -> completions out.

use std::{collections::VecDeque, io, time::Duration};

use io_uring::{IoUring, Submitter, cqueue, squeue, types};
use rustix::io::Errno;

/// A completion queue entry, copied out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub user_data: u64,
    pub result: i32,
    pub flags: u32,
}

pub(super) struct Queue {
    ring: IoUring,
    /// Bounded: an operation has one entry and one cancel outside the kernel at most.
    backlog: VecDeque<squeue::Entry>,
    /// System calls made.
    pub enters: u64,
    /// Enters that found the completion queue overflown.
    pub overflows: u64,
}

impl Queue {
    pub(super) fn new(ring: IoUring) -> Queue {
        Queue { ring, backlog: VecDeque::new(), enters: 0, overflows: 0 }
    }

    pub(super) fn submitter(&self) -> Submitter<'_> {
        self.ring.submitter()
    }

    /// Queues an entry.
    ///
    /// # Safety
    /// Whatever the entry points to stays valid and unmoved until its last completion.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        // SAFETY: the caller's promise is the one that `push` asks for.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }

    /// Whether entries wait for the kernel.
    pub(super) fn has_unsubmitted(&mut self) -> bool {
        !self.backlog.is_empty() || !self.ring.submission().is_empty()
    }

    /// Whether the kernel holds completions back until it is entered: deferred work, or an
    /// overflown completion queue.
    pub(super) fn kernel_holds_back(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    pub(super) fn is_empty(&mut self) -> bool {
        self.ring.completion().is_empty()
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        let entry = self.ring.completion().next()?;
        Some(Entry { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() })
    }

    /// Hands everything queued to the kernel, runs its deferred work, does not wait.
    pub(super) fn submit(&mut self) {
        loop {
            self.refill();
            let before = self.ring.submission().len();
            self.count_enter();
            settle(self.ring.submit());
            let after = self.ring.submission().len();
            // Not everything was taken: the kernel wants completions reaped first (EBUSY) or has
            // no memory now (EAGAIN). The rest goes with a later tick.
            if self.backlog.is_empty() || after >= before {
                return;
            }
        }
    }

    /// Hands everything queued to the kernel and sleeps until a completion or for `timeout`.
    pub(super) fn submit_and_wait(&mut self, timeout: Option<Duration>) {
        self.refill();
        while !self.backlog.is_empty() {
            let waiting = self.backlog.len();
            self.submit();
            if self.backlog.len() >= waiting || !self.is_empty() {
                return;
            }
        }
        self.count_enter();
        let result = match timeout {
            None => self.ring.submitter().submit_and_wait(1),
            Some(timeout) => {
                let timespec = types::Timespec::from(timeout);
                let args = types::SubmitArgs::new().timespec(&timespec);
                self.ring.submitter().submit_with_args(1, &args)
            }
        };
        settle(result);
    }

    fn count_enter(&mut self) {
        self.enters += 1;
        self.overflows += u64::from(self.ring.submission().cq_overflow());
    }

    fn refill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: whoever queued the entry through `push` made the promise.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }
}

/// What can go wrong with an enter and is not a mistake of ours: the time passed, a signal came,
/// the completion queue overflowed (reap first), no memory for requests at the moment.
fn settle(result: io::Result<usize>) {
    let Err(error) = result else { return };
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let expected = [Errno::TIME, Errno::INTR, Errno::BUSY, Errno::AGAIN];
    assert!(errno.is_some_and(|errno| expected.contains(&errno)), "io_uring_enter: {error}");
}

/// Which provided buffer the completion carries.
pub(super) fn buffer_of(entry: Entry) -> Option<u16> {
    cqueue::buffer_select(entry.flags)
}
