//! Waking a sleeping shard from another thread, at the price of one atomic while it is awake.
//!
//! Owns: the sleep state and the eventfd. Never: what there is to do (queues are others').
//! Flow: a producer queues, then `wake`; the shard arms, rechecks its queues, sleeps.
//!
//! No wake-up is lost: `wake` and `arm` are read-modify-writes of one atomic, so one comes first.
//! If `wake` does, `arm` sees `NOTIFIED` and the shard stays awake; if `arm` does, `wake` sees
//! `ASLEEP` and writes the eventfd. A wake-up while awake is kept until the next `arm`.
//! `tests/wake_model.rs` checks every interleaving.

mod sleep_state;

use std::{io, os::fd::OwnedFd, sync::Arc};

use rustix::event::{EventfdFlags, eventfd};

use sleep_state::SleepState;

/// The atomics of `sleep_state`, which the model in tests/wake_model.rs replaces by loom's.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicU32, Ordering};
}

struct Shared {
    state: SleepState,
    /// `None`: the simulator's, which looks at `state` itself.
    eventfd: Option<OwnedFd>,
}

/// Wakes one shard. Any thread, any number of clones.
#[derive(Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

impl Waker {
    /// A waker and the sleeper's end, over an eventfd.
    pub fn pair() -> io::Result<(Waker, Sleeper)> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waker::over(Some(eventfd)))
    }

    /// The same without a descriptor, for a simulated shard: `Sleeper::disarm` tells.
    pub fn virtual_pair() -> (Waker, Sleeper) {
        Waker::over(None)
    }

    fn over(eventfd: Option<OwnedFd>) -> (Waker, Sleeper) {
        let shared = Arc::new(Shared { state: SleepState::new(), eventfd });
        (Waker { shared: Arc::clone(&shared) }, Sleeper { shared })
    }

    /// Ends the shard's sleep, or keeps its next one from starting. Call it after queueing.
    pub fn wake(&self) {
        if self.shared.state.notify()
            && let Some(eventfd) = &self.shared.eventfd
        {
            // Cannot block or fail: the counter takes 2^64 - 2 of these, the descriptor lives.
            let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
        }
    }
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waker")
    }
}

/// The sleeping side of a `Waker`. One a shard.
pub struct Sleeper {
    shared: Arc<Shared>,
}

impl Sleeper {
    /// See `SleepState::arm`.
    pub fn arm(&self) -> bool {
        self.shared.state.arm()
    }

    /// See `SleepState::disarm`.
    pub fn disarm(&self) -> bool {
        self.shared.state.disarm()
    }

    pub fn waker(&self) -> Waker {
        Waker { shared: Arc::clone(&self.shared) }
    }

    pub(crate) fn eventfd(&self) -> &OwnedFd {
        self.shared.eventfd.as_ref().expect("a virtual sleeper was given to a kernel backend")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_while_awake_keeps_the_next_sleep_from_starting() {
        let (waker, sleeper) = Waker::virtual_pair();
        waker.wake();
        waker.wake();
        assert!(!sleeper.arm());
        assert!(sleeper.arm());
        waker.wake();
        assert!(sleeper.disarm());
        assert!(!sleeper.disarm());
    }

    #[test]
    fn the_eventfd_is_written_only_for_a_sleeper() {
        let (waker, sleeper) = Waker::pair().expect("eventfd");
        let mut counter = [0; 8];
        waker.wake();
        assert_eq!(
            rustix::io::read(sleeper.eventfd(), &mut counter),
            Err(rustix::io::Errno::AGAIN)
        );
        assert!(!sleeper.arm());
        assert!(sleeper.arm());
        waker.wake();
        waker.wake();
        rustix::io::read(sleeper.eventfd(), &mut counter).expect("written");
        assert_eq!(u64::from_ne_bytes(counter), 1);
    }
}
