//! The arena that a pool will need next, made before it does.
//!
//! Owns: the thread that maps it and touches its pages. Never: decides when one is needed (the pool
//! does). Flow: the pool runs low -> `begin` -> pages come in elsewhere -> `take` at the growth.
//!
//! First touches are the dear part: 5 ms a MiB in a guest whose host has to find the memory, which
//! was a pause of 15 to 20 ms of a shard for each 4 MiB by which its cache grew.

use std::{
    io,
    thread::{self, JoinHandle},
};

use rustix::{
    process::{getpid, getpriority_process, setpriority_process},
    thread::{gettid, sched_getaffinity, sched_setaffinity},
};

use super::mapping::Mapping;

/// A thread that does no more than this needs little.
const STACK_BYTES: usize = 64 << 10;
/// How much nicer it is than the shard it works for, with which it may share a core.
const NICER: i32 = 10;
const NICEST: i32 = 19;

/// A mapping that is being made.
pub(super) struct Spare {
    len_bytes: usize,
    maker: JoinHandle<io::Result<Mapping>>,
}

impl Spare {
    /// `None`: no thread can be had; the pool then grows as it needs to.
    pub(super) fn begin(len_bytes: usize, huge_pages: bool) -> Option<Spare> {
        let maker = thread::Builder::new().name("memory".into()).stack_size(STACK_BYTES);
        let maker = maker.spawn(move || {
            step_aside();
            let mapping = Mapping::new(len_bytes, huge_pages)?;
            // Where pages can't be had now, whoever touches them first will see to it.
            let _ = mapping.populate();
            Ok(mapping)
        });
        Some(Spare { len_bytes, maker: maker.ok()? })
    }

    /// The mapping, if it is of this length; waits where it is not ready: whoever needs it would
    /// have to touch the same pages.
    pub(super) fn take(self, len_bytes: usize) -> Option<Mapping> {
        if self.len_bytes != len_bytes {
            return None;
        }
        self.maker.join().ok()?.ok()
    }
}

/// Off the core that the shard is pinned to, where there are others, and behind it where not.
/// That any of it fails costs speed, nothing else.
fn step_aside() {
    if let Ok(all) = sched_getaffinity(Some(getpid())) {
        let _ = sched_setaffinity(None, &all);
    }
    let this = gettid();
    if let Ok(nice) = getpriority_process(Some(this)) {
        let _ = setpriority_process(Some(this), (nice + NICER).min(NICEST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{cores, pin_current_thread};

    #[test]
    fn what_is_taken_is_mapped_and_its_pages_are_there() {
        let len_bytes = 4 << 20;
        let spare = Spare::begin(len_bytes, true).expect("a thread");
        let mapping = spare.take(len_bytes).expect("a mapping");
        assert_eq!(mapping.len_bytes(), len_bytes);
        let resident = mapping.resident_pages().expect("mincore");
        assert_eq!(resident, len_bytes / 4096);
    }

    #[test]
    fn one_of_another_length_is_not_taken() {
        let spare = Spare::begin(4 << 20, false).expect("a thread");
        assert!(spare.take(2 << 20).is_none());
    }

    #[test]
    fn it_leaves_the_core_of_the_thread_it_works_for() {
        let all = cores().expect("mask");
        let last = *all.last().expect("a core");
        let (seen, nice) = thread::spawn(move || {
            pin_current_thread(last).expect("pin");
            thread::spawn(|| {
                step_aside();
                (cores().expect("mask"), getpriority_process(Some(gettid())).expect("nice"))
            })
            .join()
            .expect("thread")
        })
        .join()
        .expect("thread");
        // The main thread of a test process is not pinned.
        assert_eq!(seen, all);
        let own = getpriority_process(Some(gettid())).expect("nice");
        assert_eq!(nice, (own + NICER).min(NICEST));
    }
}
