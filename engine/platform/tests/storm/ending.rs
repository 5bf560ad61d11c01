//! A backend that goes with operations in flight brings their memory home first.

use std::time::{Duration, Instant};

use seedring_platform::{
    Access, Io, Op, OpenRequest, Token,
    descriptors::Socket,
    epoll::{Epoll, EpollOptions},
    memory::{Class, Pool, PoolOptions},
    ring::{Ring, RingOptions},
    write_batch::WriteBatch,
};

use super::Scratch;

/// A backend that goes with operations in flight bios their memory home first.
#[test]
fn dropping_the_ring_bios_everything_home() {
    let options = |pool| RingOptions::new(pool, Instant::now());
    drop_in_flight(|pool| Ring::new(options(pool)).expect("ring"));
}

#[test]
fn dropping_epoll_bios_everything_home() {
    let options = |pool| EpollOptions::new(pool, Instant::now());
    drop_in_flight(|pool| Epoll::new(options(pool)).expect("epoll"));
}

fn drop_in_flight<I: Io>(make: impl FnOnce(Pool) -> I) {
    let pool = Pool::new(PoolOptions { cap_bytes: 8 << 20, huge_pages: false }).expect("pool");
    let mut io = make(pool.clone());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("address");
    let mut ends = Vec::new();
    for n in 0..4 {
        let near = std::net::TcpStream::connect(address).expect("connect");
        let (far, _) = listener.accept().expect("accept");
        let near = Socket::from_os(near.into());
        io.submit(Op::Receive { token: Token(n), socket: near.clone(), bulk: false })
            .expect("room");
        // Stuck: nobody reads the other end.
        let share = pool.lease(Class::K256).expect("lease").freeze(256 << 10);
        let mut batch = io.batch();
        (0..120).for_each(|_| batch.push_share(&share, 0..share.len()));
        let zero_copy = n % 2 == 0;
        let op = Op::SendBatch { token: Token(n), socket: near, batch, zero_copy };
        io.submit(op).expect("room");
        ends.push(far);
    }
    let scratch = Scratch::new(false);
    for n in 0..8 {
        let share = pool.lease(Class::K256).expect("lease").freeze(256 << 10);
        let mut batch = Box::new(WriteBatch::new());
        (0..32).for_each(|_| batch.push(&share, 0..share.len()));
        let (file, offset) = (scratch.file.clone(), n * (8 << 20));
        io.submit(Op::Write { token: Token(20 + n), file, offset, batch }).expect("room");
        let path = std::ffi::CString::new(format!("deep/folder/{n}/file")).expect("no zero byte");
        let (root, access) = (scratch.root.clone(), Access::Create);
        let request = Box::new(OpenRequest { root, path, direct: false, access });
        io.submit(Op::Open { token: Token(40 + n), request }).expect("room");
    }
    io.submit(Op::Accept {
        token: Token(9),
        listener: Socket::from_os(listener.try_clone().expect("listener").into()),
    })
    .expect("room");
    io.reap(&mut Vec::new(), 64);
    io.wait(Some(io.now() + Duration::from_millis(50)), &|| false);
    assert!(io.in_flight() >= 9);
    let before = Instant::now();
    // The copied bytes that a zero-copy send left in the socket's queue are its own.
    drop(io);
    assert!(before.elapsed() < Duration::from_secs(3), "took {:?}", before.elapsed());
    assert_eq!(pool.leased_bytes(), 0);
    for end in ends {
        end.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut { end }, &mut rest);
    }
}
