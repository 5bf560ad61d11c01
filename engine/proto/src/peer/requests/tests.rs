//! Owns: how the pipeline follows a peer. Never: sockets. Flow: a peer of a given rate and delay
//! in virtual time.

use super::*;
use crate::units::PieceIndex;

fn block(at: u32) -> Block {
    Block { piece: PieceIndex(at / 64), begin: at % 64 * BLOCK_BYTES, length: BLOCK_BYTES }
}

/// A peer that answers in order, each block `delay` after it was asked at the earliest, at most
/// `rate` bytes a second. Returns the bytes that came in `seconds`.
fn run(requests: &mut Requests, rate: u64, delay: Duration, seconds: u64) -> u64 {
    let per_block = Duration::from_nanos(u64::from(BLOCK_BYTES) * 1_000_000_000 / rate);
    let (mut now, mut next, mut bytes) = (Duration::ZERO, 0, 0);
    let mut due: VecDeque<(Duration, Block)> = VecDeque::new();
    let mut free_at = Duration::ZERO;
    while now < Duration::from_secs(seconds) {
        while requests.room() > 0 {
            requests.ask(block(next), now);
            free_at = (now + delay / 2).max(free_at) + per_block;
            due.push_back((free_at + delay / 2, block(next)));
            next += 1;
        }
        let (at, block) = due.pop_front().expect("something is outstanding");
        now = at;
        assert!(requests.arrived(block, now));
        bytes += u64::from(block.length);
    }
    bytes
}

#[test]
fn the_pipeline_keeps_a_fast_peer_busy_over_a_long_way() {
    let mut requests = Requests::new(Duration::ZERO);
    requests.set_depth_max(2_000);
    let (rate, delay) = (20_000_000, Duration::from_millis(200));
    let bytes = run(&mut requests, rate, delay, 20);
    assert!(bytes as f64 > 0.9 * rate as f64 * 20.0, "{bytes}");
    // 20 MB/s over 0.2 s and what is asked ahead.
    assert!((240..=1_500).contains(&requests.depth), "{}", requests.depth);
}

#[test]
fn a_fast_peer_nearby_holds_no_more_than_keeps_it_busy() {
    let mut requests = Requests::new(Duration::ZERO);
    requests.set_depth_max(2_000);
    let (rate, delay) = (500_000_000, Duration::from_micros(200));
    let bytes = run(&mut requests, rate, delay, 3);
    assert!(bytes as f64 > 0.9 * rate as f64 * 3.0, "{bytes}");
    let most = 2 * (AHEAD_BYTES_MAX / u64::from(BLOCK_BYTES)) as u32;
    assert!((16..=most).contains(&requests.depth), "{}", requests.depth);
}

/// Transmission, which says that it queues 512, rejects what would be the 512th.
#[test]
fn a_queue_is_not_filled_to_its_last_place() {
    for (reqq, most) in [(512, 511), (250, 249), (4, 4), (1, 1), (0, 1)] {
        let mut requests = Requests::new(Duration::ZERO);
        requests.set_depth_max(reqq);
        run(&mut requests, 500_000_000, Duration::from_millis(200), 3);
        assert_eq!(requests.depth, most, "{reqq}");
    }
}

#[test]
fn a_slow_peer_holds_few_blocks() {
    let mut requests = Requests::new(Duration::ZERO);
    run(&mut requests, 50_000, Duration::from_millis(50), 60);
    assert!(requests.depth <= 2 * DEPTH_MIN, "{}", requests.depth);
    assert!((40_000..=60_000).contains(&requests.rate_bytes_per_s(Duration::from_secs(60))));
}

#[test]
fn a_peers_queue_is_never_overrun() {
    let mut requests = Requests::new(Duration::ZERO);
    requests.set_depth_max(2);
    assert_eq!(requests.room(), 2);
    run(&mut requests, 100_000_000, Duration::from_millis(100), 5);
    assert_eq!(requests.depth, 2);
}

#[test]
fn silence_is_snubbing_and_one_block_ends_it() {
    let mut requests = Requests::new(Duration::ZERO);
    let at = Duration::from_secs;
    requests.ask(block(0), at(100));
    requests.ask(block(1), at(100));
    assert_eq!(requests.next_check(), Some(at(160)), "silence before the request is no fault");
    assert!(!requests.check(at(159)));
    assert!(requests.check(at(160)) && !requests.check(at(161)), "said once");
    assert_eq!(requests.room(), 0, "one at a time");
    assert!(requests.arrived(block(0), at(162)) && !requests.is_snubbed());
}

#[test]
fn what_is_late_may_be_asked_of_others() {
    let mut requests = Requests::new(Duration::ZERO);
    run(&mut requests, 1_000_000, Duration::from_millis(10), 5);
    requests.void().for_each(drop);
    let at = Duration::from_secs;
    requests.ask(block(7), at(10));
    assert_eq!(requests.late(at(11)).count(), 0);
    assert_eq!(requests.late(at(13)).collect::<Vec<_>>(), [block(7)]);
}

#[test]
fn what_was_not_asked_for_does_not_match() {
    let mut requests = Requests::new(Duration::ZERO);
    requests.ask(block(3), Duration::ZERO);
    let other = Block { length: 1, ..block(3) };
    assert!(
        !requests.arrived(other, Duration::ZERO) && !requests.arrived(block(4), Duration::ZERO)
    );
    assert!(requests.withdraw(block(3)) && !requests.withdraw(block(3)));
    assert!(requests.is_empty());
}
