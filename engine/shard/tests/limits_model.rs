//! Every interleaving of shards that take from one limit: `cargo test -p seedring-shard --features
//! loom --test limits_model`. `LOOM_MAX_PREEMPTIONS=6` is the long form.
//!
//! Owns: that `Meter` loses no byte that was taken, and what two shards may take at once.
//! Never: the kernel's clock. Flow: threads ask, take and are added up; the bound is compared.

use std::time::Duration;

use loom::{
    model::Builder,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use seedring_shard::limits::Meter;

const RATE: u64 = 1_000_000;
/// 40 ms of the rate: the second one in a row goes over the burst, the third is refused.
const BLOCK: u64 = 40_000;
const BURST: Duration = Duration::from_millis(50);
const NOW: Duration = Duration::from_secs(10);

trait Limit: Send + Sync + 'static {
    fn new() -> Self;
    fn is_open(&self, now: Duration) -> bool;
    fn take(&self, bytes: u64, now: Duration);
    fn ready_at(&self) -> Duration;
}

impl Limit for Meter {
    fn new() -> Meter {
        Meter::new(Some(RATE))
    }

    fn is_open(&self, now: Duration) -> bool {
        Meter::is_open(self, now)
    }

    fn take(&self, bytes: u64, now: Duration) {
        Meter::take(self, bytes, now);
    }

    fn ready_at(&self) -> Duration {
        Meter::ready_at(self)
    }
}

/// The planted bug: a load and a store where `Meter` has a read-modify-write.
struct Torn(AtomicU64);

impl Limit for Torn {
    fn new() -> Torn {
        Torn(AtomicU64::new(0))
    }

    fn is_open(&self, now: Duration) -> bool {
        self.ready_at() <= now
    }

    fn take(&self, bytes: u64, now: Duration) {
        let arrival = self.0.load(Ordering::Relaxed).max(now.as_nanos() as u64);
        self.0.store(arrival + bytes * 1_000_000_000 / RATE, Ordering::Relaxed);
    }

    fn ready_at(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed)).saturating_sub(BURST)
    }
}

fn model(preemptions: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(check);
}

fn upload<L: Limit>(limit: &L, asks: usize, now: Duration) -> u64 {
    let mut taken = 0;
    for _ in 0..asks {
        if limit.is_open(now) {
            limit.take(BLOCK, now);
            taken += BLOCK;
        }
    }
    taken
}

/// Two shards whose ticks began `apart`.
fn two_shards<L: Limit>(apart: Duration) {
    let limit = Arc::new(L::new());
    let other = {
        let limit = Arc::clone(&limit);
        thread::spawn(move || upload(&*limit, 3, NOW + apart))
    };
    let taken = upload(&*limit, 3, NOW) + other.join().expect("the other shard");
    let cost = Duration::from_nanos(taken * 1_000_000_000 / RATE);
    let block = Duration::from_nanos(BLOCK * 1_000_000_000 / RATE);
    assert!(cost <= apart + BURST + 2 * block, "{taken} bytes at once are too many");
    assert!(taken >= 2 * BLOCK, "the burst was not given: {taken} bytes");
    if apart.is_zero() {
        assert_eq!(limit.ready_at() + BURST, NOW + cost, "what was taken is what is paid for");
    }
}

#[test]
fn two_shards_take_a_burst_and_a_block_each_at_most() {
    model(4, || two_shards::<Meter>(Duration::ZERO));
}

#[test]
fn two_shards_with_different_clocks_do_too() {
    model(4, || two_shards::<Meter>(Duration::from_millis(20)));
}

/// Three of them that take without asking (a batch that was filled already): nothing is lost.
#[test]
fn three_shards_lose_no_byte() {
    model(3, || {
        let limit = Arc::new(<Meter as Limit>::new());
        let others: Vec<_> = (0..2)
            .map(|_| {
                let limit = Arc::clone(&limit);
                thread::spawn(move || limit.take(BLOCK, NOW))
            })
            .collect();
        limit.take(BLOCK, NOW);
        others.into_iter().for_each(|other| other.join().expect("a shard"));
        assert_eq!(limit.ready_at() + BURST, NOW + Duration::from_millis(3 * 40));
    });
}

#[test]
#[should_panic(expected = "bytes at once are too many")]
fn a_load_before_a_store_is_found() {
    model(4, || two_shards::<Torn>(Duration::ZERO));
}
