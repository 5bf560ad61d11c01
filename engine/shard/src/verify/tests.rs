//! What may become verified, and in which order.

use std::sync::Arc;

use seedring_platform::{
    descriptors::OwnedFile,
    hash::{Kernel, Pace},
    op::{Allocation, Completion, Identity, Op, Outcome},
};
use seedring_proto::units::{InfoHash, PeerId};

use super::*;
use crate::{
    Globals,
    mailbox::{Receiver, channel},
    shard::{Links, Options},
    storage::{
        self,
        files::FileId,
        tests::{TestIo, contents, file},
    },
    torrent::{Growth, Phase, Shared, Writing},
};

pub(crate) const TORRENT: TorrentId = TorrentId(5);
pub(crate) const GOOD: u8 = 7;
/// Less than anything takes: one batch, and no more.
const ONE_BATCH: Duration = Duration::from_nanos(1);

pub(crate) struct Bench {
    pub shard: Shard<TestIo>,
    pub shared: Arc<Shared>,
    length: u64,
    events: Receiver<Event>,
}

/// A shard with one torrent of one file, of pieces of this size.
pub(crate) fn bench(pool_bytes: usize, piece_bytes: u32, length: u64) -> Bench {
    let contents = contents(piece_bytes, &[length], GOOD);
    let shared = Shared::new(TORRENT, InfoHash([5; 20]), contents.layout.piece_count());
    shared.contents.store(Some(Arc::new(contents)));
    shared.set_phase(Phase::Active);
    bench_of(pool_bytes, Arc::new(shared), length)
}

/// One of the shards of a torrent.
fn bench_of(pool_bytes: usize, shared: Arc<Shared>, length: u64) -> Bench {
    let globals = Arc::new(Globals::new(PeerId([0; 20]), "test"));
    let storage = storage::Options { reads_max: 64, open_files_max: 16, in_place: true };
    let hashing = Pace::of(&[(Kernel::Single, 36_000), (Kernel::ShaNi4, 58_000)]);
    let options = Options { shard: 0, globals, storage, hashing, root: file(), seed: 1 };
    let (_, commands) = channel(4, Box::new(|| {}));
    let (events, told) = channel(1_024, Box::new(|| {}));
    let links = Links { commands, events, to_shards: Vec::new(), from_shards: Vec::new() };
    let mut shard = Shard::new(TestIo::new(pool_bytes), options, links, Vec::new());
    shard.torrents.insert(TORRENT, Local::new(shared.clone()));
    shard.by_hash.insert(shared.info_hash, TORRENT);
    Bench { shard, shared, length, events: told }
}

impl Bench {
    /// Completes what is in the kernel; reads from `from` on find `byte`.
    pub fn complete(&mut self, byte: impl Fn(u64) -> Option<u8>) {
        let ops = std::mem::take(&mut self.shard.io().ops);
        for op in ops {
            let (token, outcome) = match op {
                Op::Open { token, .. } => {
                    let identity = Identity { size_bytes: self.length, ..Identity::default() };
                    (token, Outcome::Opened(Ok((file(), identity))))
                }
                Op::Read { token, file, offset, length, mut lease } => match byte(offset) {
                    Some(byte) => {
                        lease.fill(byte);
                        (token, Outcome::Read { result: Ok(length as usize), lease })
                    }
                    None => {
                        self.shard.io().ops.push(Op::Read { token, file, offset, length, lease });
                        continue;
                    }
                },
                op => {
                    self.shard.io().ops.push(op);
                    continue;
                }
            };
            self.shard.io().completed.push(Completion { token, outcome });
        }
        for _ in 0..8 {
            self.shard.tick();
        }
    }

    fn is_verified(&self, piece: u32) -> bool {
        self.shared.pieces.is_verified(PieceIndex(piece))
    }

    /// A look at the file finds it modified at this time.
    fn changes(&mut self, file: u32, modified_ns: i128) {
        let found = Identity { size_bytes: self.length, modified_ns, ..Identity::default() };
        let shard = &mut self.shard;
        shard.storage.identified(&mut shard.io, FileId(file), Ok(found), &mut shard.news);
        shard.deliver_news();
        shard.flush_outbox();
    }

    fn troubles(&mut self) -> usize {
        let told = std::iter::from_fn(|| self.events.receive());
        told.filter(|event| matches!(event, Event::Trouble { .. })).count()
    }
}

#[test]
fn a_change_that_every_shard_finds_is_told_once() {
    const LENGTH: u64 = 64 << 10;
    let mut one = bench(8 << 20, LENGTH as u32, LENGTH);
    let mut other = bench_of(8 << 20, one.shared.clone(), LENGTH);
    for bench in [&mut one, &mut other] {
        bench.shard.verify(TORRENT, PieceIndex(0), 1, true);
        bench.shard.tick();
        (0..3).for_each(|_| bench.complete(|_| Some(GOOD)));
    }
    one.changes(0, 9);
    assert_eq!((one.troubles(), one.is_verified(0)), (1, false));
    one.shard.verify(TORRENT, PieceIndex(0), 1, true);
    one.shard.tick();
    (0..3).for_each(|_| one.complete(|_| Some(GOOD)));
    assert!(one.is_verified(0), "as it is now");

    other.changes(0, 9);
    assert_eq!((other.troubles(), other.is_verified(0)), (0, true), "the same change");
    other.changes(1, 10);
    assert_eq!((other.troubles(), other.is_verified(0)), (1, false), "another one");
}

/// Two reads of 256 KiB; the second is held back while the file changes.
fn half_a_piece_before_a_change(tell: impl Fn(&mut Bench)) -> bool {
    let mut bench = bench(8 << 20, 512 << 10, 512 << 10);
    bench.shard.verify(TORRENT, PieceIndex(0), 1, true);
    bench.shard.tick();
    bench.complete(|_| None); // the file opens
    bench.complete(|offset| (offset == 0).then_some(GOOD));
    assert_eq!(bench.shard.stats().hashed_bytes, 256 << 10, "half of it");
    tell(&mut bench);
    // From now on the first half is another one.
    for _ in 0..4 {
        bench.complete(|offset| Some(if offset == 0 { GOOD + 1 } else { GOOD }));
    }
    assert!(bench.shard.verify.is_idle());
    bench.is_verified(0)
}

#[test]
fn halves_of_two_files_are_not_a_verified_piece() {
    assert!(half_a_piece_before_a_change(|_| {}), "without a word of the change");
    let by_another = |bench: &mut Bench| {
        bench.shared.epoch.fetch_add(1, Ordering::AcqRel);
    };
    assert!(!half_a_piece_before_a_change(by_another), "another shard saw the change");
    let by_us = |bench: &mut Bench| {
        let changed = Identity { size_bytes: bench.length, modified_ns: 9, ..Identity::default() };
        let shard = &mut bench.shard;
        shard.storage.identified(&mut shard.io, FileId(0), Ok(changed), &mut shard.news);
        shard.deliver_news();
        assert_eq!(bench.shared.epoch.load(Ordering::Acquire), 1);
    };
    assert!(!half_a_piece_before_a_change(by_us), "this shard saw it");
}

#[test]
fn a_piece_that_finds_no_place_among_the_wanted_says_so() {
    let mut bench = bench(8 << 20, 16_384, 300 * 16_384);
    let local = bench.shard.torrents.get_mut(&TORRENT).unwrap();
    let verify = &mut bench.shard.verify;
    let wanted = (0..300).filter(|n| verify.want(TORRENT, PieceIndex(*n), Key(1), local));
    assert_eq!(wanted.count(), WANTED_MAX);
    assert!(verify.want(TORRENT, PieceIndex(0), Key(2), local), "one that is wanted already");
    bench.shard.starved.push_back(Key(3));
    bench.shard.memory_came_home = false;
    let mut job = bench.shard.verify.urgent.pop_front().unwrap();
    bench.shard.piece_over(&mut job, PieceIndex(0), true);
    assert!(bench.shard.memory_came_home, "who found no place looks again");
}

#[test]
fn what_peers_wait_for_keeps_its_place_at_the_front() {
    const PIECE: u32 = 64 << 10;
    let mut bench = bench(64 << 20, PIECE, 64 * u64::from(PIECE));
    let shard = &mut bench.shard;
    let contents = shard.torrents.get_mut(&TORRENT).unwrap().contents().cloned().unwrap();
    let (io, stats) = (&mut shard.io, &mut shard.stats);
    let (half, class, peer) = ((0, 32 * PIECE), || Class::K256, Waiter::Connection(1));
    assert!(shard.storage.look_ahead(io, stats, TORRENT, &contents, half, class, peer));
    (0..6).for_each(|_| bench.complete(|_| Some(GOOD)));
    assert_eq!(bench.shard.storage.cache.bytes(), 32 * PIECE as usize, "half of it is in memory");
    for first in [0, 16] {
        bench.shard.verify(TORRENT, PieceIndex(first), 16, true);
    }
    let local = bench.shard.torrents.get_mut(&TORRENT).unwrap();
    assert!(bench.shard.verify.want(TORRENT, PieceIndex(50), Key(1), local));
    for n in 1..6 {
        bench.shard.verify_step(ONE_BATCH);
        assert_eq!(bench.shared.pieces.verified_count(), 4 * n, "the others go on meanwhile");
    }
    for op in std::mem::take(&mut bench.shard.io().ops) {
        if let Op::Read { token, length, mut lease, .. } = op {
            lease.fill(GOOD);
            let outcome = Outcome::Read { result: Ok(length as usize), lease };
            bench.shard.dispatch(Completion { token, outcome });
        }
    }
    bench.shard.verify_step(ONE_BATCH);
    assert!(bench.is_verified(50));
    assert_eq!(bench.shared.pieces.verified_count(), 21, "and nothing else before it");
}

/// At how many places large pieces are begun with this pool, after so many ticks full of hashing.
fn places_after(pool_bytes: usize, ticks: usize) -> usize {
    const PIECE: u32 = 1 << 20;
    let mut bench = bench(pool_bytes, PIECE, 64 * u64::from(PIECE));
    bench.shard.options.hashing = Pace::of(&[(Kernel::Avx512, 115_000)]);
    bench.shard.verify(TORRENT, PieceIndex(0), 64, true);
    (0..ticks).for_each(|_| bench.shard.verify.width.hashing_is_behind());
    bench.shard.tick();
    bench.shard.verify.active.iter().map(|job| job.lanes.len()).sum()
}

#[test]
fn large_pieces_are_read_at_many_places_only_where_hashing_is_behind() {
    assert_eq!(places_after(64 << 20, 0), 1);
    assert_eq!(places_after(64 << 20, 4), 2);
    assert_eq!(places_after(64 << 20, 16), 16);
    assert_eq!(places_after(16 << 20, 16), 8, "two chunks each in a quarter of the pool");
    let mut width = Width::default();
    (0..8).for_each(|_| width.hashing_is_behind());
    width.disk_is_behind(Duration::from_secs(1), 100 << 20);
    assert_eq!(width.lanes(), 4, "fast enough not to be one that seeks");
    width.disk_is_behind(Duration::from_millis(1_200), 101 << 20);
    assert_eq!(width.lanes(), 4, "too early to say");
    width.disk_is_behind(Duration::from_millis(1_300), 130 << 20);
    assert_eq!(width.lanes(), 1);
}

#[test]
fn pieces_hashed_side_by_side_are_told_apart() {
    for piece_bytes in [16 << 10, 40_000, 1 << 20] {
        let length = 40 * u64::from(piece_bytes) + 12_345;
        let mut bench = bench(64 << 20, piece_bytes, length);
        bench.shard.options.hashing = Pace::of(&[(Kernel::Avx512, 115_000)]);
        bench.shard.verify(TORRENT, PieceIndex(0), u32::MAX, true);
        bench.shard.tick();
        let bad = |offset: u64| offset / (256 << 10) == 1;
        for _ in 0..200 {
            bench.complete(|offset| Some(if bad(offset) { GOOD + 1 } else { GOOD }));
        }
        assert!(bench.shard.verify.is_idle());
        for piece in 0..41 {
            let from = u64::from(piece) * u64::from(piece_bytes);
            let to = (from + u64::from(piece_bytes)).min(length);
            let good = to <= 256 << 10 || from >= 512 << 10;
            assert_eq!(bench.is_verified(piece), good, "{piece} of {piece_bytes}");
        }
        assert_eq!(bench.shard.stats().hashed_bytes, length);
    }
}

/// Verifies a torrent whose file lies in memory like this; answers what was read of it.
fn reads_of(memory: Option<(u8, bool)>, writes: bool) -> (Bench, usize) {
    const PIECE: u32 = 256 << 10;
    let mut bench = bench(64 << 20, PIECE, 20 * u64::from(PIECE) + 5_000);
    bench.shard.io().memory = memory;
    if writes {
        let mut contents = contents(PIECE, &[bench.length], GOOD);
        let folder = OwnedFile::from_os(std::fs::File::open("/").unwrap().into());
        let (allocation, growth) = (Allocation::Sparse, Growth::new(21));
        let folder_path = std::path::PathBuf::from("/");
        contents.writing = Some(Writing { folder, folder_path, allocation, growth });
        bench.shared.contents.store(Some(Arc::new(contents)));
    }
    bench.shard.verify(TORRENT, PieceIndex(0), u32::MAX, true);
    bench.shard.tick();
    for _ in 0..40 {
        bench.complete(|_| Some(GOOD));
    }
    assert!(bench.shard.verify.is_idle());
    let reads = bench.shard.stats().reads as usize;
    (bench, reads)
}

#[test]
fn what_lies_in_memory_is_hashed_there() {
    let (bench, reads) = reads_of(Some((GOOD, true)), false);
    assert_eq!((reads, bench.shared.pieces.verified_count()), (0, 21));
    let (bench, reads) = reads_of(Some((GOOD + 1, true)), false);
    assert_eq!((reads, bench.shared.pieces.verified_count()), (0, 0), "it is hashed");
    let (bench, reads) = reads_of(None, false);
    assert_eq!((reads, bench.shared.pieces.verified_count()), (21, 21));
    let (_, reads) = reads_of(Some((GOOD, true)), true);
    assert!(reads > 20, "what is written to is read from the file");
}

#[test]
fn beside_a_page_that_is_not_in_memory_the_rest_is_hashed_there() {
    const MIB: u64 = 1 << 20;
    let mut bench = bench(64 << 20, MIB as u32, 16 * MIB);
    bench.shard.io().memory = Some((GOOD, true));
    bench.shard.io().absent = Some(5 * MIB + 77);
    bench.shard.verify(TORRENT, PieceIndex(0), 16, true);
    bench.shard.tick();
    (0..8).for_each(|_| bench.complete(|_| Some(GOOD)));
    assert_eq!(bench.shared.pieces.verified_count(), 16);
    assert_eq!(bench.shard.stats().read_bytes, MIB, "the piece that it lies in");
}

#[test]
fn what_was_taken_from_memory_while_it_was_hashed_is_read() {
    let (bench, reads) = reads_of(Some((0, false)), false);
    assert_eq!((reads, bench.shared.pieces.verified_count()), (21, 21));
    assert_eq!(bench.shard.stats().hash_failures, 0, "a torn piece is not a bad one");
}

#[test]
fn what_only_verification_reads_leaves_the_cache() {
    let (mut bench, _) = reads_of(None, false);
    let zeros = 16 << 10;
    assert_eq!(bench.shard.storage.cache.bytes(), 0);
    assert_eq!(bench.shard.io().pool().leased_bytes(), zeros);
    // A peer waits for a piece: what is read for it is sent from the same memory.
    bench.shared.pieces.set_all_verified(false);
    bench.shard.io().memory = Some((GOOD + 1, true));
    let local = bench.shard.torrents.get_mut(&TORRENT).unwrap();
    assert!(bench.shard.verify.want(TORRENT, PieceIndex(3), Key(1), local));
    bench.shard.tick();
    (0..4).for_each(|_| bench.complete(|_| Some(GOOD)));
    assert!(bench.is_verified(3));
    assert_eq!(bench.shard.storage.cache.bytes(), 256 << 10);
}

#[test]
fn what_no_peer_waits_for_rests_while_uploads_are_behind() {
    let at = Duration::from_millis;
    let verify = Verify { turn_at: at(100), ..Verify::default() };
    assert!(!verify.gives_way(at(101), None), "nobody asked for anything");
    assert!(!verify.gives_way(at(101), Some(at(100))), "this long a tick may take");
    assert!(verify.gives_way(at(102), Some(at(100))));
    assert!(verify.gives_way(at(114), Some(at(1))));
    assert!(!verify.gives_way(at(115), Some(at(1))), "it has its turn all the same");
}
