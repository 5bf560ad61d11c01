//! Every interleaving of the wake-up protocol, with loom: `cargo test -p seedring-platform
//! --features loom --test wake_model`. `LOOM_MAX_PREEMPTIONS=6` is the long form.
//!
//! A producer queues one item and wakes; the shard arms, sleeps when it may, disarms, looks. The
//! sleeper's eventfd is a loom condition variable. A lost wake-up shows as a deadlock.

use loom::{
    model::Builder,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use sleep_state::SleepState;

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicU32, Ordering};
}
#[path = "../src/wake/sleep_state.rs"]
mod sleep_state;

struct Eventfd {
    count: Mutex<u32>,
    written: Condvar,
}

impl Eventfd {
    fn write(&self) {
        *self.count.lock().expect("lock") += 1;
        self.written.notify_one();
    }

    fn sleep(&self) {
        let mut count = self.count.lock().expect("lock");
        while *count == 0 {
            count = self.written.wait(count).expect("lock");
        }
        *count = 0;
    }
}

struct Shard {
    state: SleepState,
    eventfd: Eventfd,
    /// Stands for a mailbox: `Relaxed`, so that only the protocol orders it.
    queued: AtomicUsize,
}

impl Shard {
    fn new() -> Arc<Shard> {
        Arc::new(Shard {
            state: SleepState::new(),
            eventfd: Eventfd { count: Mutex::new(0), written: Condvar::new() },
            queued: AtomicUsize::new(0),
        })
    }

    fn produce(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        if self.state.notify() {
            self.eventfd.write();
        }
    }

    /// The shard's loop until it has seen `items`.
    fn consume(&self, items: usize) {
        while self.queued.load(Ordering::Relaxed) < items {
            if self.state.arm() {
                self.eventfd.sleep();
                self.state.disarm();
            }
        }
    }
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(4));
    builder.check(check);
}

#[test]
fn no_wake_up_is_lost_from_one_producer() {
    model(|| {
        let shard = Shard::new();
        let producer = {
            let shard = Arc::clone(&shard);
            thread::spawn(move || {
                shard.produce();
                shard.produce();
            })
        };
        shard.consume(2);
        producer.join().expect("producer");
    });
}

#[test]
fn no_wake_up_is_lost_from_two_producers() {
    model(|| {
        let shard = Shard::new();
        let producers: Vec<_> = (0..2)
            .map(|_| {
                let shard = Arc::clone(&shard);
                thread::spawn(move || shard.produce())
            })
            .collect();
        shard.consume(2);
        for producer in producers {
            producer.join().expect("producer");
        }
    });
}

/// A shard that was woken by something else disarms and looks: what was queued is visible.
#[test]
fn what_was_queued_before_a_notification_is_visible_after_it() {
    model(|| {
        let shard = Shard::new();
        let producer = {
            let shard = Arc::clone(&shard);
            thread::spawn(move || shard.produce())
        };
        if shard.state.disarm() {
            assert_eq!(shard.queued.load(Ordering::Relaxed), 1);
        }
        producer.join().expect("producer");
        assert!(shard.state.disarm() || shard.queued.load(Ordering::Relaxed) == 1);
    });
}
