//! The conformance suite on the ring and on epoll: the real kernel, loopback, a temporary folder.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    time::Instant,
};

use seedring_platform::{
    Io,
    conformance::{Rig, World, run},
    descriptors::{self, File, ListenOptions, Socket},
    epoll::{Epoll, EpollOptions},
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

fn pool() -> Pool {
    Pool::new(PoolOptions { cap_bytes: 16 << 20, huge_pages: false }).expect("pool")
}

fn rig(folder: tempfile::TempDir, receive_buffers: u32) -> Rig<Ring> {
    let options = RingOptions {
        entries: 32,
        in_flight_max: 64,
        receive_buffers,
        ..RingOptions::new(pool(), Instant::now())
    };
    rig_over(Ring::new(options).expect("ring"), folder)
}

fn epoll_rig(folder: tempfile::TempDir) -> Rig<Epoll> {
    let options = EpollOptions { in_flight_max: 64, ..EpollOptions::new(pool(), Instant::now()) };
    rig_over(Epoll::new(options).expect("epoll"), folder)
}

fn rig_over<I: Io>(io: I, folder: tempfile::TempDir) -> Rig<I> {
    let path = folder.path().join("root");
    std::fs::create_dir(&path).expect("folder");
    let root = descriptors::open_directory(&path).expect("root");
    let world = Box::new(Kernel { root, path, _folder: folder });
    Rig { io, world, in_flight_max: 64, threads: true }
}

#[test]
fn epoll_keeps_the_promises_of_the_seam() {
    run(|| epoll_rig(tempfile::tempdir().expect("folder")));
}

#[test]
fn epoll_keeps_them_on_the_disk_of_the_build() {
    let beside = std::env::current_exe().expect("path");
    let beside = beside.parent().expect("folder");
    run(|| epoll_rig(tempfile::tempdir_in(beside).expect("folder")));
}

#[test]
fn the_ring_keeps_the_promises_of_the_seam() {
    run(|| rig(tempfile::tempdir().expect("folder"), 1024));
}

/// What `Access::Create` makes belongs to its owner and is for all to read, less the umask.
#[test]
fn new_files_and_folders_have_plain_modes() {
    use seedring_platform::{Access, Io, Op, OpenRequest, Outcome, Token};
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("root");
    let mut rig = rig(folder, 16);
    let path = c"folder/inner/file".to_owned();
    let request = Box::new(OpenRequest {
        root: rig.world.root(),
        path,
        direct: false,
        access: Access::Create,
    });
    rig.io.submit(Op::Open { token: Token(1), request }).expect("room");
    let mut completions = Vec::new();
    while completions.is_empty() {
        let until = rig.io.now() + std::time::Duration::from_secs(1);
        rig.io.wait(Some(until), &|| false);
        rig.io.reap(&mut completions, 8);
    }
    assert!(matches!(completions[0].outcome, Outcome::Opened(Ok(_))), "{completions:?}");
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("status");
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:")).expect("umask");
    let umask = u32::from_str_radix(umask.trim(), 8).expect("octal");
    let mode = |path: &str| {
        std::fs::metadata(root.join(path)).expect("made").permissions().mode() & 0o7777
    };
    assert_eq!(mode("folder"), 0o755 & !umask);
    assert_eq!(mode("folder/inner"), 0o755 & !umask);
    assert_eq!(mode("folder/inner/file"), 0o644 & !umask);
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
