//! Sending: order, partial sends, zero-copy, and when memory comes home.

use super::{Bench, Case, pattern, patterned};
use crate::{
    memory::Class,
    op::{Io, Op, Outcome, Shutdown, Token},
};

pub(super) fn cases<I: Io>() -> Vec<Case<I>> {
    vec![
        ("a batch arrives in order", batch_in_order),
        ("a large batch arrives whole, however it is taken", large_batch),
        ("zero-copy gives each batch back exactly once", zero_copy_once),
        ("a send to a closed end fails and gives the batch back", send_after_close),
        ("a shutdown ends a send that nobody takes", stuck_send_ends),
        ("many connections at once keep their streams apart", many_streams),
    ]
}

fn batch_in_order<I: Io>(bench: &mut Bench<I>) {
    let (near, far) = bench.pair();
    bench.submit(Op::Receive { token: Token(1), socket: far, bulk: false });
    let share = bench.share(Class::K64, 0);
    let mut batch = bench.rig.io.batch();
    let mut expected = Vec::new();
    for block in 0..30 {
        batch.push_bytes(&[block as u8; 13]);
        expected.extend([block as u8; 13]);
        batch.push_share(&share, block * 1000..block * 1000 + 900);
        expected.extend(&share[block * 1000..block * 1000 + 900]);
    }
    let op = Op::SendBatch { token: Token(2), socket: near.clone(), batch, zero_copy: false };
    bench.submit(op);
    assert_eq!(share.holders(), 31, "the operation holds what it sends");
    match bench.next(2) {
        Outcome::Sent { result, batch: Some(mut batch) } => {
            batch.advance(result.expect("sent"));
            bench.send(2, &near, batch);
        }
        other => panic!("a send gave {other:?}"),
    }
    drop(near);
    let (bytes, end) = bench.received(1);
    end.expect("an orderly end");
    assert!(bytes == expected, "{} bytes came of {}", bytes.len(), expected.len());
    assert_eq!(share.holders(), 1);
}

fn large_batch<I: Io>(bench: &mut Bench<I>) {
    let (near, far) = bench.pair();
    let mut batch = bench.rig.io.batch();
    let len = 24 * Class::K256.bytes();
    for chunk in 0..24 {
        let share = bench.share(Class::K256, chunk * Class::K256.bytes());
        let bytes = share.len();
        batch.push_share(share, 0..bytes);
    }
    assert_eq!(batch.len_bytes(), len);
    bench.submit(Op::SendBatch { token: Token(2), socket: near.clone(), batch, zero_copy: false });
    // The receiver comes late: the socket's buffer fills first.
    bench.turn();
    bench.submit(Op::Receive { token: Token(1), socket: far, bulk: false });
    let mut received = 0;
    let mut check = |bytes: &[u8]| {
        let right = bytes.iter().enumerate().all(|(at, &byte)| byte == pattern(received + at));
        assert!(right, "wrong bytes between {received} and {}", received + bytes.len());
        received += bytes.len();
        received
    };
    loop {
        // Both ends run in this loop, as they would in a shard.
        if let Some(at) = bench.seen.iter().position(|it| it.token == Token(2)) {
            let Outcome::Sent { result, batch: Some(mut batch) } = bench.seen.remove(at).outcome
            else {
                panic!("a copying send gives its batch back")
            };
            batch.advance(result.expect("sent"));
            if batch.is_empty() {
                bench.rig.io.recycle(batch);
            } else {
                let socket = near.clone();
                bench.submit(Op::SendBatch { token: Token(2), socket, batch, zero_copy: false });
            }
        }
        match bench.next(1) {
            Outcome::Received(Ok(bytes)) => {
                assert!(!bytes.is_empty(), "the stream ended early");
                if check(&bytes) == len {
                    break;
                }
            }
            other => panic!("a receive gave {other:?}"),
        }
    }
    drop(near);
    bench.received(1).1.expect("an orderly end");
    while let Some(at) = bench.seen.iter().position(|it| it.token == Token(2)) {
        if let Outcome::Sent { batch: Some(batch), .. } = bench.seen.remove(at).outcome {
            bench.rig.io.recycle(batch);
        }
    }
}

fn zero_copy_once<I: Io>(bench: &mut Bench<I>) {
    let (near, far) = bench.pair();
    bench.submit(Op::Receive { token: Token(1), socket: far, bulk: false });
    let mut expected = 0;
    for round in 0..8usize {
        let share = bench.share(Class::K64, expected);
        let mut batch = bench.rig.io.batch();
        batch.push_share(&share, 0..share.len());
        expected += share.len();
        let token = 100 + round as u64;
        let socket = near.clone();
        bench.submit(Op::SendBatch { token: Token(token), socket, batch, zero_copy: true });
        let Outcome::Sent { result, batch } = bench.next(token) else { panic!("not a send") };
        assert_eq!(result.expect("sent"), share.len());
        let batch = match batch {
            Some(batch) => batch,
            None => match bench.next(token) {
                Outcome::Released { batch, .. } => batch,
                other => panic!("after a zero-copy send came {other:?}"),
            },
        };
        assert_eq!(share.holders(), 2, "the batch still holds its share");
        bench.rig.io.recycle(batch);
        assert_eq!(share.holders(), 1);
        bench.silent(token);
    }
    drop(near);
    let (bytes, end) = bench.received(1);
    end.expect("an orderly end");
    assert!(bytes == patterned(expected), "{} bytes came of {expected}", bytes.len());
}

fn send_after_close<I: Io>(bench: &mut Bench<I>) {
    for zero_copy in [false, true] {
        let (near, far) = bench.pair();
        bench.rig.io.shutdown(&near, Shutdown::Orderly);
        let share = bench.share(Class::K16, 0);
        let mut batch = bench.rig.io.batch();
        batch.push_share(&share, 0..share.len());
        bench.submit(Op::SendBatch { token: Token(1), socket: near, batch, zero_copy });
        let Outcome::Sent { result, batch } = bench.next(1) else { panic!("not a send") };
        assert!(result.is_err());
        let batch = batch.unwrap_or_else(|| match bench.next(1) {
            Outcome::Released { batch, .. } => batch,
            other => panic!("after a zero-copy send came {other:?}"),
        });
        bench.rig.io.recycle(batch);
        assert_eq!(share.holders(), 1);
        drop(far);
    }
}

fn stuck_send_ends<I: Io>(bench: &mut Bench<I>) {
    let (near, far) = bench.pair();
    let share = bench.share(Class::K256, 0);
    // More than any socket buffer takes: 31 MiB out of one chunk.
    let mut batch = bench.rig.io.batch();
    for _ in 0..124 {
        batch.push_share(&share, 0..share.len());
    }
    let len = batch.len_bytes();
    let mut op =
        Some(Op::SendBatch { token: Token(1), socket: near.clone(), batch, zero_copy: false });
    // A backend that reports partial sends is asked until it is stuck.
    let mut taken = 0;
    let batch = loop {
        if let Some(op) = op.take() {
            bench.submit(op);
        }
        bench.turn();
        bench.turn();
        let Some(at) = bench.seen.iter().position(|it| it.token == Token(1)) else {
            bench.rig.io.shutdown(&near, Shutdown::Reset);
            let Outcome::Sent { result, batch } = bench.next(1) else { panic!("not a send") };
            taken += result.unwrap_or(0);
            break batch.expect("a copying send gives its batch back");
        };
        let Outcome::Sent { result, batch: Some(mut batch) } = bench.seen.remove(at).outcome else {
            panic!("a copying send gives its batch back")
        };
        let more = result.expect("nothing is wrong yet");
        assert!(more > 0, "a send takes something");
        taken += more;
        batch.advance(more);
        assert!(!batch.is_empty(), "the sockets took {len} bytes unread");
        op = Some(Op::SendBatch { token: Token(1), socket: near.clone(), batch, zero_copy: false });
    };
    assert!(taken < len, "a stuck send does not claim to be done");
    bench.rig.io.recycle(batch);
    assert_eq!(share.holders(), 1);
    drop((near, far));
}

fn many_streams<I: Io>(bench: &mut Bench<I>) {
    let (listener, address) = bench.rig.world.listen();
    let pairs: Vec<_> = (0..16).map(|_| bench.pair_through(&listener, address)).collect();
    let share = bench.share(Class::K256, 0);
    for (n, (near, far)) in pairs.iter().enumerate() {
        bench.submit(Op::Receive { token: Token(n as u64), socket: far.clone(), bulk: false });
        let mut batch = bench.rig.io.batch();
        batch.push_bytes(&[n as u8; 13]);
        batch.push_share(&share, n * 16_384..(n + 1) * 16_384);
        let token = Token(1000 + n as u64);
        bench.submit(Op::SendBatch { token, socket: near.clone(), batch, zero_copy: n % 2 == 0 });
    }
    for n in 0..pairs.len() {
        let Outcome::Sent { result, batch } = bench.next(1000 + n as u64) else {
            panic!("not a send")
        };
        assert_eq!(result.expect("sent"), 13 + 16_384);
        if batch.is_none() {
            let released = bench.next(1000 + n as u64);
            assert!(matches!(released, Outcome::Released { .. }), "{released:?}");
        }
    }
    for (n, (near, far)) in pairs.into_iter().enumerate() {
        drop((near, far));
        let (bytes, end) = bench.received(n as u64);
        end.expect("an orderly end");
        assert!(bytes[..13] == [n as u8; 13]);
        assert!(bytes[13..] == share[n * 16_384..(n + 1) * 16_384]);
    }
}
