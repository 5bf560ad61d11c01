//! The conformance suite on the ring: the real kernel, loopback, a temporary folder.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    time::Instant,
};

use seedring_platform::{
    conformance::{Rig, World, run},
    descriptors::{self, File, ListenOptions, Socket},
    memory::{Pool, PoolOptions},
    ring::{Ring, RingOptions},
};

struct Kernel {
    root: File,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl World for Kernel {
    fn listen(&mut self) -> (Socket, SocketAddr) {
        let owned = descriptors::listen(ListenOptions {
            address: "127.0.0.1:0".parse().expect("an address"),
            backlog: 64,
            reuse_port: false,
            v6_only: false,
        })
        .expect("listen");
        let address = owned.local_addr().expect("address");
        (owned.into(), address)
    }

    fn refusing(&mut self) -> SocketAddr {
        // Bound a moment ago, closed again.
        TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port")
    }

    fn root(&self) -> File {
        self.root.clone()
    }

    fn write(&mut self, path: &str, content: &[u8]) {
        let path = self.path.join(path);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        std::fs::write(path, content).expect("write");
    }

    fn link(&mut self, path: &str, target: &str) {
        std::os::unix::fs::symlink(target, self.path.join(path)).expect("link");
    }
}

fn rig(folder: tempfile::TempDir, receive_buffers: u32) -> Rig<Ring> {
    let pool = Pool::new(PoolOptions { cap_bytes: 16 << 20, huge_pages: false }).expect("pool");
    let path = folder.path().join("root");
    std::fs::create_dir(&path).expect("folder");
    let options = RingOptions {
        entries: 32,
        in_flight_max: 64,
        receive_buffers,
        ..RingOptions::new(pool, Instant::now())
    };
    Rig {
        io: Ring::new(options).expect("ring"),
        world: Box::new(Kernel {
            root: descriptors::open_directory(&path).expect("root"),
            path,
            _folder: folder,
        }),
        in_flight_max: 64,
        threads: true,
    }
}

#[test]
fn the_ring_keeps_the_promises_of_the_seam() {
    run(|| rig(tempfile::tempdir().expect("folder"), 1024));
}

/// The same with so few receive buffers that they run out all the time.
#[test]
fn the_ring_keeps_them_with_two_receive_buffers() {
    run(|| rig(tempfile::tempdir().expect("folder"), 2));
}

/// The same beside the build, which is usually a disk with direct I/O where /tmp may not be.
#[test]
fn the_ring_keeps_them_on_the_disk_of_the_build() {
    let beside = std::env::current_exe().expect("path");
    let beside = beside.parent().expect("folder");
    run(|| rig(tempfile::tempdir_in(beside).expect("folder"), 1024));
}
