//! What only the ring does.

use std::net::TcpListener;

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
