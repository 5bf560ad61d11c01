//! The wake-up protocol alone, apart from how a sleeper is roused.
//!
//! Owns: one atomic. Never: descriptors, queues. Flow: `Waker` and `Sleeper` call it; the model in
//! tests/wake_model.rs includes this file with loom's atomics.

use super::atomic::{AtomicU32, Ordering};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const NOTIFIED: u32 = 2;

/// Whether the shard sleeps, and whether it was notified.
pub(super) struct SleepState {
    state: AtomicU32,
}

impl SleepState {
    pub(super) fn new() -> SleepState {
        SleepState { state: AtomicU32::new(AWAKE) }
    }

    /// The sleeper, about to sleep. `false`: it was notified meanwhile and must not.
    pub(super) fn arm(&self) -> bool {
        // AcqRel: partner of the swap in `notify`; on failure what was queued before that swap is
        // visible to the sleeper.
        match self.state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(found) => {
                debug_assert_eq!(found, NOTIFIED, "only the sleeper sets ASLEEP");
                self.disarm();
                false
            }
        }
    }

    /// The sleeper, awake again, before it looks at its queues. `true`: it had been notified.
    pub(super) fn disarm(&self) -> bool {
        // AcqRel: partner of the swap in `notify`; a read-modify-write, so that a notification in
        // between is seen here or stays for the next `arm`.
        self.state.swap(AWAKE, Ordering::AcqRel) == NOTIFIED
    }

    /// A producer, after it queued. `true`: the sleeper sleeps and must be roused by the caller.
    #[must_use]
    pub(super) fn notify(&self) -> bool {
        // AcqRel: Release publishes what was queued before (partners: `arm` and `disarm`). A swap
        // even where a load would show NOTIFIED already: a load could run ahead of the queueing.
        self.state.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP
    }
}
