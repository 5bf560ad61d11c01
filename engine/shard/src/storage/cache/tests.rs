//! What the cache keeps, what it drops, and who hears of a load.

use seedring_platform::memory::{Pool, PoolOptions};

use super::*;

const FILE: FileId = FileId(7);

fn pool() -> Pool {
    Pool::new(PoolOptions { cap_bytes: 4 << 20, huge_pages: false }).unwrap()
}

fn load(cache: &mut Cache, pool: &Pool, offset: u64, class: Class) {
    let mut lease = loop {
        match pool.lease(class) {
            Some(lease) => break lease,
            None => assert!(cache.evict().is_some(), "nothing to evict"),
        }
    };
    lease[0] = (offset / PAGE_BYTES) as u8;
    let id = cache.begin(FILE, offset, class, 0);
    let length = class.bytes();
    assert!(cache.loaded(id, lease.freeze(length)).is_empty());
}

/// Somebody reads the whole chunk that starts here.
fn read(cache: &mut Cache, offset: u64) {
    let Found::Ready(share, _, id) = cache.find(FILE, offset) else { panic!("not cached") };
    cache.take(id, 0, share.len(), false);
}

#[test]
fn a_chunk_is_found_by_any_offset_in_it() {
    let (mut cache, pool) = (Cache::new(), pool());
    load(&mut cache, &pool, 262_144, Class::K256);
    load(&mut cache, &pool, 65_536, Class::K16);
    assert!(matches!(cache.find(FILE, 524_287), Found::Ready(_, 262_144, _)));
    assert!(matches!(cache.find(FILE, 65_536 + 16_383), Found::Ready(_, 65_536, _)));
    assert!(matches!(cache.find(FILE, 65_536 + 16_384), Found::Missing));
    assert!(matches!(cache.find(FileId(8), 262_144), Found::Missing));
}

#[test]
fn a_scan_does_not_evict_what_a_second_reader_came_for() {
    let (mut cache, pool) = (Cache::new(), pool());
    load(&mut cache, &pool, 0, Class::K256);
    for _ in 0..3 {
        read(&mut cache, 0);
    }
    for chunk in 1..200 {
        load(&mut cache, &pool, chunk * 262_144, Class::K256);
        read(&mut cache, chunk * 262_144);
    }
    assert!(matches!(cache.find(FILE, 0), Found::Ready(..)), "the hot chunk is gone");
    assert!(matches!(cache.find(FILE, 262_144), Found::Missing), "the scan stayed");
}

#[test]
fn what_a_send_holds_is_not_evicted() {
    let (mut cache, pool) = (Cache::new(), pool());
    load(&mut cache, &pool, 0, Class::K16);
    let Found::Ready(held, ..) = cache.find(FILE, 0) else { panic!("not cached") };
    assert!(cache.evict().is_none());
    drop(held);
    assert!(cache.evict().is_some());
    assert_eq!(cache.bytes(), 0);
}

#[test]
fn a_pinned_newcomer_does_not_hide_what_could_go() {
    let (mut cache, pool) = (Cache::new(), pool());
    for chunk in 0..8 {
        load(&mut cache, &pool, chunk * 262_144, Class::K256);
        (0..2).for_each(|_| read(&mut cache, chunk * 262_144));
    }
    assert!(cache.evict().is_some(), "the eight move to the main queue, and one goes");
    load(&mut cache, &pool, 90 * 262_144, Class::K256);
    let Found::Ready(_held, ..) = cache.find(FILE, 90 * 262_144) else { panic!("not cached") };
    for _ in 0..7 {
        assert!(cache.evict().is_some());
    }
    assert!(cache.evict().is_none(), "only the held one is left");
}

#[test]
fn waiters_of_one_load_share_its_read_and_all_hear_of_its_failure() {
    let mut cache = Cache::new();
    let id = cache.begin(FILE, 0, Class::K64, 0);
    assert!(matches!(cache.find(FILE, 40_000), Found::Loading(found, 65_536) if found == id));
    for waiter in [Waiter::Connection(1), Waiter::Connection(2), Waiter::Connection(1)] {
        cache.wait(id, waiter);
    }
    assert_eq!(cache.failed(id), [Waiter::Connection(1), Waiter::Connection(2)]);
    assert!(matches!(cache.find(FILE, 40_000), Found::Missing));
    assert_eq!(cache.bytes(), 0);
}

#[test]
fn a_changed_file_leaves_nothing_behind() {
    let (mut cache, pool) = (Cache::new(), pool());
    for chunk in 0..8 {
        load(&mut cache, &pool, chunk * 65_536, Class::K64);
    }
    cache.drop_files(&[FILE]);
    assert_eq!((cache.bytes(), pool.leased_bytes()), (0, 0));
}

#[test]
fn much_that_was_used_often_is_still_memory() {
    let (mut cache, pool) = (Cache::new(), pool());
    for chunk in 0..250 {
        load(&mut cache, &pool, chunk * 16_384, Class::K16);
        (0..5).for_each(|_| read(&mut cache, chunk * 16_384));
    }
    for _ in 0..250 {
        assert!(cache.evict().is_some());
    }
    assert_eq!(cache.bytes(), 0);
}

#[test]
fn a_pinned_main_queue_does_not_hide_a_newcomer() {
    let pool = Pool::new(PoolOptions { cap_bytes: 16 << 20, huge_pages: false }).unwrap();
    let mut cache = Cache::new();
    let mut held = Vec::new();
    for chunk in 0..600 {
        load(&mut cache, &pool, chunk * 16_384, Class::K16);
        (0..2).for_each(|_| read(&mut cache, chunk * 16_384));
    }
    assert!(cache.evict().is_some(), "all move to the main queue");
    for chunk in 0..600 {
        if let Found::Ready(share, ..) = cache.find(FILE, chunk * 16_384) {
            held.push(share);
        }
    }
    load(&mut cache, &pool, 700 * 16_384, Class::K16);
    assert!(cache.evict().is_some(), "the newcomer can go");
    load(&mut cache, &pool, 701 * 16_384, Class::K16);
    (0..2).for_each(|_| read(&mut cache, 701 * 16_384));
    assert!(cache.evict().is_some(), "also where it moves behind those that can't");
    assert!(cache.evict().is_none());
    assert_eq!(held.len(), 599);
}

#[test]
fn what_was_read_ahead_outlives_what_was_read_to_its_end_once() {
    let (mut cache, pool) = (Cache::new(), pool());
    for chunk in 0..8 {
        load(&mut cache, &pool, chunk * 262_144, Class::K256);
        (0..2).for_each(|_| read(&mut cache, chunk * 262_144));
    }
    assert!(cache.evict().is_some(), "the others move to the main queue");
    let ahead = |n: u64| (20 + n) * 262_144;
    (0..2).for_each(|n| load(&mut cache, &pool, ahead(n), Class::K256));
    load(&mut cache, &pool, 30 * 262_144, Class::K256);
    read(&mut cache, 30 * 262_144);
    assert_eq!(cache.ahead_bytes(), 512 << 10);
    for _ in 0..3 {
        assert!(cache.evict().is_some());
        (0..2).for_each(|n| assert!(cache.covered_to(FILE, ahead(n)).is_some(), "{n} is gone"));
    }
    let left = cache.bytes() / Class::K256.bytes();
    (0..left).for_each(|_| assert!(cache.evict().is_some(), "spared once, not for ever"));
    assert_eq!((cache.bytes(), cache.ahead_bytes()), (0, 0));
}

/// Fifty leeches that read everything in order, the last so many blocks behind the first, each with
/// its next chunk read ahead as far as a quarter of the cache goes. How often each byte is read.
fn reads_of_fifty(spread: i64) -> f64 {
    const CHUNKS: i64 = 256;
    const BLOCKS: i64 = 16;
    let pool = Pool::new(PoolOptions { cap_bytes: 16 << 20, huge_pages: false }).unwrap();
    let (mut cache, mut loads) = (Cache::new(), 0);
    let mut loaded = |cache: &mut Cache, block: i64| {
        loads += 1;
        load(cache, &pool, block as u64 * PAGE_BYTES, Class::K256);
    };
    let mut at: Vec<i64> = (0..50).map(|n| -n * spread / 50).collect();
    let mut random = 1u64;
    while at.iter().any(|at| *at < CHUNKS * BLOCKS) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = &mut at[(random >> 33) as usize % 50];
        let (block, next) = (*at, *at + BLOCKS);
        *at += i64::from(block < CHUNKS * BLOCKS);
        if !(0..CHUNKS * BLOCKS).contains(&block) {
            continue;
        }
        let offset = block as u64 * PAGE_BYTES;
        if cache.covered_to(FILE, offset).is_none() {
            loaded(&mut cache, block);
        }
        let Found::Ready(_, start, id) = cache.find(FILE, offset) else { panic!("it is gone") };
        let from = (offset - start) as usize;
        cache.take(id, from, from + PAGE_BYTES as usize, false);
        let ahead = cache.covered_to(FILE, next as u64 * PAGE_BYTES).is_none();
        if ahead && next < CHUNKS * BLOCKS && cache.ahead_bytes() < 4 << 20 {
            loaded(&mut cache, next);
        }
    }
    f64::from(loads) / CHUNKS as f64
}

#[test]
fn leeches_in_order_over_more_than_the_cache_read_it_about_once() {
    for spread in [0, 64, 128] {
        let times = reads_of_fifty(spread);
        assert!(times <= 1.15, "{spread} blocks apart: each byte is read {times} times");
    }
}
