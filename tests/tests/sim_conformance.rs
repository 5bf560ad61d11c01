//! The conformance suite of `trait Io` on the simulator, so that what shards meet in simulated runs
//! is what the ring promises.
//!
//! Owns: the simulator as a rig, and the weather that the suite allows. Never: threads (time is
//! virtual). Flow: a seed -> a fresh world for each case -> the suite -> no oracle has anything to
//! say.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
};

use seedring_platform::{
    conformance::{Rig, World, run},
    descriptors::{File, Socket},
};
use seedring_tests::sim::{
    self, Content, DirectoryId, FaultKind, Faults, Link, SimIo, SimOptions, oracle::Checked,
};

/// What the suite lets a backend do: it asks for whole sends, whole small receives and one look at
/// `pending`, so that nothing is cut and no wait ends early.
fn fair_weather() -> Faults {
    use FaultKind::*;
    let mut faults = Faults::none();
    for kind in [Reordered, Delayed, ReleasedLate, ReleasedCopied, ReleasedAtOnce] {
        faults.set(kind, 200);
    }
    // Writes are written on; kept wake-ups are part of the seam.
    faults.set(ShortWrite, 200);
    faults.with(ReceiveBuffersOut, 100).with(WakeLost, 0)
}

struct Machine {
    world: sim::World,
    root: DirectoryId,
    ports: u16,
    findings: sim::oracle::Findings,
    hits: Rc<Cell<u64>>,
}

impl World for Machine {
    fn listen(&mut self) -> (Socket, SocketAddr) {
        let address = self.refusing();
        (Socket::from(self.world.listen(address)), address)
    }

    fn refusing(&mut self) -> SocketAddr {
        self.ports += 1;
        SocketAddr::from(([10, 0, 0, 1], self.ports))
    }

    fn root(&self) -> File {
        self.world.root_handle(self.root)
    }

    fn write(&mut self, path: &str, content: &[u8]) {
        let (size_bytes, content) = (content.len() as u64, Content::Bytes(content.to_vec()));
        self.world.write_file(self.root, path, size_bytes, content);
    }

    fn link(&mut self, path: &str, _target: &str) {
        self.world.with_disk(|disk| disk.link(self.root, path));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.world.trace_tail(60));
            return;
        }
        // The suite fills a table with receives of one socket, and tries what is refused: unaligned
        // transfers, writes to what is open for reading.
        let allowed = [
            "two operations 'receive'",
            "an unaligned direct",
            "a write to a file that is not open for writing",
        ];
        let mut found = self.world.violations();
        found.retain(|text| !allowed.iter().any(|allowed| text.contains(allowed)));
        found.extend(self.findings.borrow().iter().cloned());
        assert!(found.is_empty(), "{found:#?}\n{}", self.world.trace_tail(60));
        assert_eq!(self.world.open_files(), 0, "a file was left open");
        let faults = self.world.faults();
        // One case fills the table itself.
        let kinds = FaultKind::ALL.iter().filter(|&&kind| kind != FaultKind::TableFull);
        let hits: u64 = kinds.map(|&kind| faults.hits(kind)).sum();
        self.hits.set(self.hits.get() + hits);
    }
}

/// Every case in worlds of this kind; how many faults struck.
fn conforms(first_seed: u64, faults: impl Fn() -> Faults, direct_io: Option<u32>) -> u64 {
    let (seed, hits) = (AtomicU64::new(first_seed), Rc::new(Cell::new(0)));
    run(|| {
        let world = sim::World::new(seed.fetch_add(1, Ordering::Relaxed), faults());
        // The suite sends 64 KiB at once and takes it for granted that a socket has room for it.
        world.set_link(Some(Link::FAST));
        if let Some(align_bytes) = direct_io {
            world.set_direct_io(align_bytes);
        }
        let in_flight_max = 64;
        let options = SimOptions { pool_bytes: 16 << 20, in_flight_max, ..SimOptions::default() };
        let io = Checked::new(SimIo::new(&world, options));
        let (root, findings) = (world.directory(), io.findings());
        let machine = Machine { world, root, ports: 1_000, findings, hits: hits.clone() };
        Rig { io, world: Box::new(machine), in_flight_max, threads: false }
    });
    hits.get()
}

#[test]
fn the_simulator_keeps_the_promises_of_the_seam() {
    let hits = conforms(0, Faults::none, None);
    assert_eq!(hits, 0, "without faults nothing strikes");
}

#[test]
fn it_keeps_them_with_direct_io() {
    conforms(0, Faults::none, Some(4096));
    conforms(0, Faults::none, Some(512));
}

#[test]
fn it_keeps_them_in_the_weather_that_the_suite_allows() {
    let hits: u64 = (0..5).map(|round| conforms(round * 1_000, fair_weather, None)).sum();
    println!("{hits} faults struck");
    assert!(hits > 200, "{hits} faults struck");
}
