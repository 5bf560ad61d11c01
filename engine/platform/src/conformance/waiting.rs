//! Time, sleeping, waking, bounded reaping, and the end of a backend.

use std::{cell::Cell, time::Duration};

use super::{Bench, Case};
use crate::{
    memory::Class,
    op::{Io, Op, Outcome, Token},
};

pub(super) fn cases<I: Io>() -> Vec<Case<I>> {
    vec![
        ("a wait ends at its deadline", deadline),
        ("other work keeps a wait from sleeping", pending_work),
        ("a wake-up is kept for the next wait", wake_before_wait),
        ("another thread ends a wait", wake_from_thread),
        ("a completion ends a wait", completion_ends_wait),
        ("reaping is bounded", reap_bounded),
        ("time stands still within a turn", time_stands),
    ]
}

/// Long enough that no case means to sit it out.
const LONG: Duration = Duration::from_secs(15);

fn deadline<I: Io>(bench: &mut Bench<I>) {
    let until = bench.rig.io.now() + Duration::from_millis(30);
    for _ in 0..100 {
        bench.rig.io.wait(Some(until), &|| false);
        if bench.rig.io.now() >= until {
            break;
        }
    }
    let now = bench.rig.io.now();
    assert!(now >= until && now < until + LONG, "{now:?} for {until:?}");
    // A deadline that has passed is no wait at all.
    bench.rig.io.wait(Some(Duration::ZERO), &|| false);
}

fn pending_work<I: Io>(bench: &mut Bench<I>) {
    let start = bench.rig.io.now();
    let asked = Cell::new(0);
    bench.rig.io.wait(Some(start + LONG), &|| {
        asked.set(asked.get() + 1);
        true
    });
    assert_eq!(asked.get(), 1);
    assert!(bench.rig.io.now() < start + LONG / 2);
}

fn wake_before_wait<I: Io>(bench: &mut Bench<I>) {
    let start = bench.rig.io.now();
    let waker = bench.rig.io.waker();
    for _ in 0..3 {
        waker.wake();
        bench.rig.io.wait(Some(start + LONG), &|| false);
    }
    assert!(bench.rig.io.now() < start + LONG / 2, "a wake-up was lost");
}

fn wake_from_thread<I: Io>(bench: &mut Bench<I>) {
    if !bench.rig.threads {
        return;
    }
    for round in 0..20u64 {
        let start = bench.rig.io.now();
        let waker = bench.rig.io.waker();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(round * 100));
            waker.wake();
        });
        bench.rig.io.wait(Some(start + LONG), &|| false);
        // It may return early for no reason; the wake-up then shows in the next one.
        thread.join().expect("thread");
        assert!(bench.rig.io.now() < start + LONG / 2, "the wake-up was lost");
        bench.turn();
    }
}

fn completion_ends_wait<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("file", b"content");
    let Outcome::Opened(Ok((file, _))) = bench.open(1, "file", false) else {
        panic!("the file opens")
    };
    let start = bench.rig.io.now();
    bench.submit(Op::Identify { token: Token(2), file });
    let mut seen = Vec::new();
    while seen.is_empty() {
        bench.rig.io.wait(Some(start + LONG), &|| false);
        bench.rig.io.reap(&mut seen, 8);
        assert!(bench.rig.io.now() < start + LONG, "nothing came");
    }
    assert!(matches!(seen[0].outcome, Outcome::Identified(Ok(_))));
    assert!(bench.rig.io.now() < start + LONG / 2);
}

fn reap_bounded<I: Io>(bench: &mut Bench<I>) {
    bench.rig.world.write("file", &[7; 40_000]);
    let Outcome::Opened(Ok((file, _))) = bench.open(1, "file", false) else {
        panic!("the file opens")
    };
    for n in 0..20 {
        let lease = bench.rig.io.pool().lease(Class::K16).expect("lease");
        let op =
            Op::Read { token: Token(n), file: file.clone(), offset: n * 100, length: 100, lease };
        bench.submit(op);
    }
    let mut seen = Vec::new();
    let start = bench.rig.io.now();
    while seen.len() < 20 {
        let before = seen.len();
        bench.rig.io.reap(&mut seen, 3);
        assert!(seen.len() - before <= 3, "{} at once", seen.len() - before);
        assert!(bench.rig.io.now() < start + LONG, "{} of 20 came", seen.len());
        let until = bench.rig.io.now() + Duration::from_millis(5);
        bench.rig.io.wait(Some(until), &|| false);
    }
    assert_eq!(bench.rig.io.in_flight(), 0);
    let mut tokens: Vec<u64> = seen.iter().map(|it| it.token.0).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..20).collect::<Vec<_>>());
    let mut none = Vec::new();
    bench.rig.io.reap(&mut none, 0);
    assert!(none.is_empty());
}

fn time_stands<I: Io>(bench: &mut Bench<I>) {
    let first = bench.rig.io.now();
    if bench.rig.threads {
        std::thread::sleep(Duration::from_millis(3));
    }
    assert_eq!(bench.rig.io.now(), first, "read once a turn");
    let until = first + Duration::from_millis(2);
    bench.rig.io.wait(Some(until), &|| false);
    bench.rig.io.reap(&mut bench.seen, 8);
    assert!(bench.rig.io.now() >= first);
}
