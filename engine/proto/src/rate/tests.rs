use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// Sends blocks as fast as all buckets permit, and gives the bytes sent between the two times.
fn pump(buckets: &mut [Bucket], block: u64, from: Duration, to: Duration) -> u64 {
    let mut now = from;
    let mut sent = 0;
    loop {
        let ready = buckets.iter_mut().map(|bucket| bucket.ready_at(block, now)).max();
        now = ready.expect("some bucket");
        if now >= to {
            return sent;
        }
        for bucket in buckets.iter_mut() {
            assert!(bucket.permits(block, now), "permitted at the time it named");
            bucket.take(block, now);
        }
        sent += block;
    }
}

#[test]
fn ten_seconds_stay_within_two_percent() {
    for rate in [1_000_000u64, 5_000_000, 125_000_000] {
        let mut buckets = [Bucket::for_limit(Limit::BytesPerSecond(rate), Duration::ZERO)];
        // Steady state first, then any window of 10 s.
        pump(&mut buckets, 16384, Duration::ZERO, 1000 * MS);
        for window in 0..5 {
            let from = 1000 * MS + window * 10_000 * MS;
            let sent = pump(&mut buckets, 16384, from, from + 10_000 * MS);
            let share = sent as f64 / (rate * 10) as f64;
            assert!((0.98..=1.02).contains(&share), "{rate} B/s: {share}");
        }
    }
}

#[test]
fn the_first_window_after_idling_holds_too() {
    let rate = 4_000_000;
    let mut buckets = [Bucket::for_limit(Limit::BytesPerSecond(rate), Duration::ZERO)];
    let from = Duration::from_secs(3600);
    let sent = pump(&mut buckets, 16384, from, from + Duration::from_secs(10));
    assert!((sent as f64 / (rate * 10) as f64 - 1.0).abs() <= 0.02, "{sent}");
}

#[test]
fn the_smaller_of_two_limits_holds() {
    let limits = [Limit::BytesPerSecond(9_000_000), Limit::BytesPerSecond(2_000_000)];
    let mut buckets = limits.map(|limit| Bucket::for_limit(limit, Duration::ZERO));
    let sent = pump(&mut buckets, 16384, Duration::ZERO, Duration::from_secs(10));
    assert!((sent as f64 / 20e6 - 1.0).abs() <= 0.02, "{sent}");
}

#[test]
fn a_changed_rate_holds_at_once() {
    let mut buckets = [Bucket::for_limit(Limit::BytesPerSecond(50_000_000), Duration::ZERO)];
    pump(&mut buckets, 16384, Duration::ZERO, 1000 * MS);
    buckets[0].set_limit(Limit::BytesPerSecond(2_000_000), 1000 * MS);
    let sent = pump(&mut buckets, 16384, 1000 * MS, 11_000 * MS);
    assert!((sent as f64 / 20e6 - 1.0).abs() <= 0.02, "slower: {sent}");
    buckets[0].set_limit(Limit::BytesPerSecond(20_000_000), 11_000 * MS);
    let sent = pump(&mut buckets, 16384, 11_000 * MS, 21_000 * MS);
    assert!((sent as f64 / 200e6 - 1.0).abs() <= 0.02, "faster: {sent}");
}

#[test]
fn unlimited_and_nothing() {
    let mut free = Bucket::for_limit(Limit::Unlimited, Duration::ZERO);
    free.take(u64::MAX, Duration::ZERO);
    assert_eq!(free.available(Duration::ZERO), u64::MAX);
    assert_eq!(free.ready_at(u64::MAX, 5 * MS), 5 * MS);
    let mut shut = Bucket::new(Limit::BytesPerSecond(0), 100, Duration::ZERO);
    assert_eq!(shut.ready_at(100, MS), MS, "what was in the bucket passes");
    shut.take(100, MS);
    assert_eq!(shut.ready_at(1, MS), NEVER);
    assert_eq!(shut.available(NEVER), 0);
}

#[test]
fn a_block_above_the_burst_passes_and_is_paid_back() {
    let mut bucket = Bucket::new(Limit::BytesPerSecond(1000), 100, Duration::ZERO);
    assert!(bucket.permits(5000, Duration::ZERO));
    bucket.take(5000, Duration::ZERO);
    assert_eq!(bucket.available(Duration::ZERO), 0);
    assert_eq!(bucket.ready_at(1, Duration::ZERO), 4901 * MS);
    assert_eq!(bucket.ready_at(5000, Duration::ZERO), 5000 * MS);
}

#[test]
fn time_that_stands_or_steps_back_gives_nothing() {
    let mut bucket = Bucket::new(Limit::BytesPerSecond(1000), 100, 50 * MS);
    bucket.take(100, 50 * MS);
    assert_eq!(bucket.available(20 * MS), 0);
    assert_eq!(bucket.available(50 * MS), 0);
    assert_eq!(bucket.available(60 * MS), 10);
}

proptest! {
    #[test]
    fn never_more_than_rate_burst_and_a_block(
        rate in 1u64..100_000_000,
        burst in 1u64..10_000_000,
        block in 1u64..131_072,
        steps in prop::collection::vec(0u64..2_000_000_000, 1..200),
    ) {
        let mut bucket = Bucket::new(Limit::BytesPerSecond(rate), burst, Duration::ZERO);
        let mut now = Duration::ZERO;
        let mut sent = 0u128;
        for step in steps {
            now += Duration::from_nanos(step);
            if bucket.permits(block, now) {
                bucket.take(block, now);
                sent += u128::from(block);
            }
            let bound = u128::from(rate) * now.as_nanos() / 1_000_000_000;
            prop_assert!(sent <= bound + u128::from(burst) + u128::from(block) + 1);
        }
    }
}
