//! The pool's promises: cap, exclusivity, counting, alignment, poison.

use super::*;

fn pool(cap_bytes: usize) -> Pool {
    Pool::new(PoolOptions { cap_bytes, huge_pages: false }).expect("pool")
}

#[test]
fn the_cap_holds_and_everything_comes_home() {
    let pool = pool(1 << 20);
    let leases: Vec<_> = (0..64).map(|_| pool.lease(Class::K16).expect("under the cap")).collect();
    assert_eq!(pool.leased_bytes(), 1 << 20);
    assert!(pool.lease(Class::K16).is_none());
    drop(leases);
    assert_eq!(pool.leased_bytes(), 0);
    let whole: Vec<_> = (0..4).map(|_| pool.lease(Class::K256).expect("returned whole")).collect();
    assert!(pool.lease(Class::K64).is_none());
    drop(whole);
}

#[test]
fn a_pool_grows_by_arenas_up_to_its_cap() {
    let pool = pool((64 << 20) + (512 << 10));
    assert_eq!((pool.arenas(), pool.mapped_bytes()), (1, 4 << 20), "little is pinned at first");
    let mut leases: Vec<_> =
        (0..258).map(|_| pool.lease(Class::K256).expect("under the cap")).collect();
    let spans: Vec<usize> = (0..pool.arenas()).map(|arena| pool.arena_span(arena).1).collect();
    assert_eq!(spans[..16], [4 << 20; 16], "a growth is a short pause");
    assert_eq!(spans[16..], [512 << 10]);
    assert_eq!(pool.mapped_bytes(), (64 << 20) + (512 << 10));
    assert!(pool.lease(Class::K16).is_none());
    assert_eq!(leases[257].arena(), 16);
    for (n, lease) in leases.iter_mut().enumerate() {
        let (base, length) = pool.arena_span(usize::from(lease.arena()));
        let offset = lease.as_ptr().addr() - base.as_ptr().addr();
        assert!(offset + lease.len() <= length, "in its arena");
        lease[..4].copy_from_slice(&(n as u32).to_le_bytes());
    }
    assert!(leases.iter().enumerate().all(|(n, lease)| lease[..4] == (n as u32).to_le_bytes()));
}

#[test]
fn a_large_pool_grows_by_larger_arenas_so_that_they_fit_the_rings_table() {
    let pool = pool(8 << 30);
    let leases: Vec<_> = (0..97).map(|_| pool.lease(Class::K256)).collect();
    assert!(leases.iter().all(Option::is_some));
    let spans: Vec<usize> = (0..pool.arenas()).map(|arena| pool.arena_span(arena).1).collect();
    assert_eq!(spans, [4 << 20, 4 << 20, 8 << 20, 16 << 20]);
}

#[test]
fn chunks_are_apart_and_aligned() {
    let pool = pool(1 << 20);
    let mut leases: Vec<_> = [Class::K16, Class::K64, Class::K256, Class::K16]
        .map(|class| pool.lease(class).expect("lease"))
        .into();
    for (i, lease) in leases.iter_mut().enumerate() {
        assert_eq!(lease.len(), lease.class().bytes());
        assert_eq!(lease.as_ptr().align_offset(4096), 0);
        lease.fill(i as u8);
    }
    for (i, lease) in leases.iter().enumerate() {
        assert!(lease.iter().all(|&byte| byte == i as u8));
    }
}

#[test]
fn the_last_share_gives_the_chunk_back() {
    let pool = pool(256 << 10);
    let mut lease = pool.lease(Class::K64).expect("lease");
    lease[..5].copy_from_slice(b"hello");
    let share = lease.freeze(5);
    let other = share.clone();
    assert_eq!((&*share, other.holders()), (&b"hello"[..], 2));
    drop(share);
    assert_eq!((other.holders(), pool.leased_bytes()), (1, 64 << 10));
    drop(other);
    assert_eq!(pool.leased_bytes(), 0);
}

#[test]
fn a_lease_outlives_its_pool_handle() {
    let pool = pool(1 << 20);
    let mut lease = pool.lease(Class::K256).expect("lease");
    drop(pool);
    lease.fill(7);
    assert!(lease.iter().all(|&byte| byte == 7));
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "written after its last holder")]
fn a_write_after_return_is_caught() {
    let pool = pool(1 << 20);
    let lease = pool.lease(Class::K64).expect("lease");
    let data = lease.data();
    drop(lease);
    // SAFETY: 20,000 is inside the chunk of 64 KiB.
    let inside = unsafe { data.add(20_000) };
    // SAFETY: the arena is mapped while `pool` lives; this plants the bug that the poison is for.
    unsafe { inside.write(1) };
    let _ = pool.lease(Class::K64);
}

#[test]
#[should_panic(expected = "bytes of a chunk")]
fn freezing_more_than_the_chunk_is_refused() {
    let lease = pool(1 << 20).lease(Class::K16).expect("lease");
    let _ = lease.freeze((16 << 10) + 1);
}

#[test]
fn the_class_fits() {
    assert_eq!(Class::for_bytes(1), Class::K16);
    assert_eq!(Class::for_bytes(16 << 10), Class::K16);
    assert_eq!(Class::for_bytes((16 << 10) + 1), Class::K64);
    assert_eq!(Class::for_bytes(64 << 10), Class::K64);
    assert_eq!(Class::for_bytes(100 << 10), Class::K256);
    assert_eq!(Class::for_bytes(1 << 30), Class::K256);
}
