//! What only the ring does.

use std::{io::Write, net::TcpListener, os::unix::net::UnixStream};

use socket2::SockRef;

use super::*;
use crate::memory::PoolOptions;

fn ring() -> Ring {
    let pool = Pool::new(PoolOptions { cap_bytes: 1 << 20, huge_pages: false }).expect("pool");
    Ring::new(RingOptions::new(pool, Instant::now())).expect("ring")
}

/// Waits for completions until there are `count`, and keeps them: their buffers stay away.
fn reap(ring: &mut Ring, count: usize) -> Vec<Completion> {
    let mut completions = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while completions.len() < count && Instant::now() < deadline {
        ring.wait(Some(ring.now() + Duration::from_millis(50)), &|| false);
        ring.reap(&mut completions, count);
    }
    assert_eq!(completions.len(), count, "in 10 s");
    completions
}

#[test]
fn receive_buffers_are_offered_as_they_are_needed() {
    let mut ring = ring();
    assert_eq!(ring.buffers.offered(), 64);
    let mut far = Vec::new();
    for n in 0..100 {
        let (near, other) = UnixStream::pair().expect("pair");
        let socket = Socket::from_os(near.into());
        ring.submit(Op::Receive { token: Token(n), socket, bulk: false }).expect("room");
        far.push(other);
    }
    // One after the other, each gets a buffer that was used before.
    for other in &mut far {
        other.write_all(b"a").expect("write");
        reap(&mut ring, 1);
    }
    assert_eq!(ring.buffers.offered(), 64);
    // At once, they need more.
    far.iter_mut().for_each(|other| other.write_all(b"b").expect("write"));
    let held = reap(&mut ring, far.len());
    for completion in &held {
        assert!(matches!(&completion.outcome, Outcome::Received(Ok(bytes)) if **bytes == *b"b"));
    }
    assert_eq!(ring.buffers.offered(), 128);
    assert_eq!(ring.statistics().starved, 0, "there were more to offer");
}

/// The kernel would end a connect by it, however long the caller wants to wait.
#[test]
fn the_user_timeout_begins_with_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let mut ring = ring();
    let socket = ring.socket(address, None).expect("socket");
    let timeout = |socket: &Socket| {
        let fd = socket.as_os().expect("real");
        SockRef::from(&fd).tcp_user_timeout().expect("option")
    };
    assert_eq!(timeout(&socket), None);
    let connect = Op::Connect { token: Token(1), socket: socket.clone(), address };
    ring.submit(connect).expect("room");
    reap(&mut ring, 1);
    assert_eq!(timeout(&socket), Some(descriptors::USER_TIMEOUT));
}
