//! Accepting, connecting, receiving, cancelling, shutting down.

use std::io::ErrorKind;

use super::{Bench, Case, assert_cancelled, expect_connected};
use crate::{
    descriptors::Socket,
    op::{Io, Op, Outcome, Shutdown, Token},
};

pub(super) fn cases<I: Io>() -> Vec<Case<I>> {
    vec![
        ("accept reports each connection, until cancelled", accept_reports_each),
        ("connecting to nobody is refused", connect_refused),
        ("receiving once leaves nothing in flight", receive_once),
        ("receiving once at the stream's end is empty", receive_once_at_end),
        ("receiving goes on until the end of the stream", receive_until_end),
        ("a reset ends a receive with an error", receive_reset),
        ("a cancelled receive ends and the socket lives on", receive_cancelled),
        ("cancelling what is not there does nothing", cancel_nothing),
        ("a shutdown ends what is in flight", shutdown_in_flight),
        ("an operation in flight holds its socket", operations_hold_sockets),
        ("a full table refuses and gives the operation back", full_table),
    ]
}

fn say<I: Io>(bench: &mut Bench<I>, socket: &Socket, bytes: &[u8]) {
    let mut batch = bench.rig.io.batch();
    batch.push_bytes(bytes);
    bench.send(900, socket, batch);
}

fn accept_reports_each<I: Io>(bench: &mut Bench<I>) {
    let (listener, address) = bench.rig.world.listen();
    bench.submit(Op::Accept { token: Token(1), listener });
    let mut held = Vec::new();
    for n in 0..5 {
        let socket = bench.rig.io.socket(address, None).expect("socket");
        bench.submit(Op::Connect { token: Token(10 + n), socket: socket.clone(), address });
        expect_connected(bench.next(10 + n)).expect("connected");
        held.push(socket);
        match bench.next(1) {
            Outcome::Accepted(Ok((accepted, from))) => {
                assert_eq!(from.ip(), address.ip());
                assert_ne!(from.port(), address.port(), "the peer's address, not ours");
                held.push(accepted);
            }
            other => panic!("accept gave {other:?}"),
        }
    }
    bench.rig.io.cancel(Token(1));
    match bench.next(1) {
        Outcome::AcceptEnded(error) => assert_cancelled(&error),
        other => panic!("a cancelled accept gave {other:?}"),
    }
    bench.silent(1);
}

fn connect_refused<I: Io>(bench: &mut Bench<I>) {
    let address = bench.rig.world.refusing();
    let socket = bench.rig.io.socket(address, None).expect("socket");
    bench.submit(Op::Connect { token: Token(1), socket, address });
    let error = expect_connected(bench.next(1)).expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

fn receive_once<I: Io>(bench: &mut Bench<I>) {
    let (near, far) = bench.pair();
    bench.submit(Op::ReceiveOnce { token: Token(1), socket: far.clone() });
    bench.silent(1);
    say(bench, &near, b"handshake");
    match bench.next(1) {
        Outcome::Received(Ok(bytes)) => assert_eq!(&*bytes, b"handshake"),
        other => panic!("a receive gave {other:?}"),
    }
    assert_eq!(bench.rig.io.in_flight(), 0);
    say(bench, &near, b"more");
    bench.silent(1);
    let moved = far.into_owned().expect("nothing in flight holds it");
    let far = Socket::from(moved);
    bench.submit(Op::ReceiveOnce { token: Token(2), socket: far });
    match bench.next(2) {
        Outcome::Received(Ok(bytes)) => assert_eq!(&*bytes, b"more"),
        other => panic!("a receive gave {other:?}"),
    }
}

fn receive_once_at_end<I: Io>(bench: &mut Bench<I>) {
    let (near, far) = bench.pair();
    drop(near);
    bench.submit(Op::ReceiveOnce { token: Token(1), socket: far });
    match bench.next(1) {
        Outcome::Received(Ok(bytes)) => assert!(bytes.is_empty()),
        other => panic!("a receive gave {other:?}"),
    }
}

fn receive_until_end<I: Io>(bench: &mut Bench<I>) {
    let (near, far) = bench.pair();
    bench.submit(Op::Receive { token: Token(1), socket: far, bulk: false });
    for n in 0..20u8 {
        say(bench, &near, &[n; 100]);
        if n % 7 == 0 {
            bench.turn();
        }
    }
    bench.rig.io.shutdown(&near, Shutdown::Orderly);
    drop(near);
    let (bytes, end) = bench.received(1);
    end.expect("an orderly end");
    let expected: Vec<u8> = (0..20u8).flat_map(|n| [n; 100]).collect();
    assert_eq!(bytes, expected);
    bench.silent(1);
}

fn receive_reset<I: Io>(bench: &mut Bench<I>) {
    let (near, far) = bench.pair();
    bench.submit(Op::Receive { token: Token(1), socket: far.clone(), bulk: false });
    bench.turn();
    // Unread bytes and no lingering: the close resets.
    say(bench, &far, b"never read");
    bench.rig.io.shutdown(&near, Shutdown::Reset);
    drop(near);
    let (bytes, end) = bench.received(1);
    assert!(bytes.is_empty());
    // A backend may deliver the FIN of the shutdown before the close's RST.
    if let Err(error) = end {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let mut batch = bench.rig.io.batch();
    batch.push_bytes(b"to nobody");
    bench.submit(Op::SendBatch { token: Token(2), socket: far, batch, zero_copy: false });
    match bench.next(2) {
        Outcome::Sent { result, batch } => {
            assert!(result.is_err(), "a send after a reset gave {result:?}");
            bench.rig.io.recycle(batch.expect("the batch comes back"));
        }
        other => panic!("a send gave {other:?}"),
    }
}

fn receive_cancelled<I: Io>(bench: &mut Bench<I>) {
    let (near, far) = bench.pair();
    for (round, once) in [(0, false), (1, true), (2, false)] {
        let (token, socket) = (Token(round), far.clone());
        bench.submit(if once {
            Op::ReceiveOnce { token, socket }
        } else {
            Op::Receive { token, socket, bulk: false }
        });
        if round == 2 {
            // Cancelled before it reached the kernel at all.
        } else {
            bench.turn();
        }
        bench.rig.io.cancel(Token(round));
        let (bytes, end) = bench.received(round);
        assert!(bytes.is_empty());
        assert_cancelled(&end.expect_err("cancelled"));
    }
    say(bench, &near, b"still here");
    bench.submit(Op::ReceiveOnce { token: Token(9), socket: far });
    match bench.next(9) {
        Outcome::Received(Ok(bytes)) => assert_eq!(&*bytes, b"still here"),
        other => panic!("a receive gave {other:?}"),
    }
}

fn cancel_nothing<I: Io>(bench: &mut Bench<I>) {
    let (near, far) = bench.pair();
    bench.rig.io.cancel(Token(77));
    bench.submit(Op::ReceiveOnce { token: Token(1), socket: far.clone() });
    bench.rig.io.cancel(Token(2));
    bench.silent(1);
    say(bench, &near, b"x");
    assert!(matches!(bench.next(1), Outcome::Received(Ok(bytes)) if &*bytes == b"x"));
    bench.rig.io.cancel(Token(1));
    bench.submit(Op::ReceiveOnce { token: Token(1), socket: far });
    bench.silent(1);
    bench.rig.io.cancel(Token(1));
    assert!(matches!(bench.next(1), Outcome::Received(Err(_))));
}

fn shutdown_in_flight<I: Io>(bench: &mut Bench<I>) {
    for how in [Shutdown::Orderly, Shutdown::Reset] {
        let (near, far) = bench.pair();
        bench.submit(Op::Receive { token: Token(1), socket: near.clone(), bulk: false });
        bench.turn();
        bench.rig.io.shutdown(&near, how);
        let (bytes, _) = bench.received(1);
        assert!(bytes.is_empty());
        drop((near, far));
    }
}

fn operations_hold_sockets<I: Io>(bench: &mut Bench<I>) {
    let (near, far) = bench.pair();
    bench.submit(Op::Receive { token: Token(1), socket: far.clone(), bulk: false });
    bench.turn();
    let far = far.into_owned().expect_err("the receive holds it");
    drop(far);
    // The connection lives on although no handle is left.
    say(bench, &near, b"are you there");
    match bench.next(1) {
        Outcome::Received(Ok(bytes)) => assert_eq!(&*bytes, b"are you there"),
        other => panic!("a receive gave {other:?}"),
    }
    drop(near);
    bench.received(1).1.expect("an orderly end");
}

fn full_table<I: Io>(bench: &mut Bench<I>) {
    let (_near, far) = bench.pair();
    let max = bench.rig.in_flight_max;
    assert_eq!(bench.rig.io.in_flight(), 0);
    for n in 0..max {
        bench.submit(Op::ReceiveOnce { token: Token(n as u64), socket: far.clone() });
    }
    let refused = bench.rig.io.submit(Op::ReceiveOnce { token: Token(5000), socket: far.clone() });
    let Err(Op::ReceiveOnce { token: Token(5000), socket }) = refused else {
        panic!("a full table gave {refused:?}")
    };
    assert!(socket.is_same(&far));
    assert_eq!(bench.rig.io.in_flight(), max);
    bench.turn();
    for n in 0..max {
        bench.rig.io.cancel(Token(n as u64));
    }
    for n in 0..max {
        assert!(matches!(bench.next(n as u64), Outcome::Received(Err(_))));
    }
    assert_eq!(bench.rig.io.in_flight(), 0);
    bench.submit(Op::ReceiveOnce { token: Token(1), socket: far });
    bench.rig.io.cancel(Token(1));
    assert!(matches!(bench.next(1), Outcome::Received(Err(_))));
}
