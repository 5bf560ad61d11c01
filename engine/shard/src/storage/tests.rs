//! Storage against a kernel whose answers the test gives.

use std::{collections::BTreeSet, io, net::SocketAddr, path::PathBuf, sync::Arc};

use seedring_platform::{
    descriptors::{OwnedFile, Socket, Virtual},
    hash::sha1_many,
    memory::PoolOptions,
    op::{Completion, Identity, Op, Shutdown, Token},
    send_batch::SendBatch,
    wake::Waker,
    window::Window,
};
use seedring_proto::{
    layout::{Layout, NewFile},
    metainfo::Metainfo,
};

use super::{
    files::{OPENING_MAX, Place, TRANSIENT_REST},
    *,
};
use crate::token::Target;

const TORRENT: TorrentId = TorrentId(1);
const US: Waiter = Waiter::Connection(7);
const EMFILE: i32 = 24;
const EINTR: i32 = 4;

/// Keeps what is submitted; the test completes it.
pub(crate) struct TestIo {
    pub now: Duration,
    pub ops: Vec<Op>,
    pub refuses: bool,
    pub completed: Vec<Completion>,
    /// What files in memory hold, and whether that stays so; `None`: nothing is in memory.
    pub memory: Option<(u8, bool)>,
    /// But this byte.
    pub absent: Option<u64>,
    pool: Pool,
}

struct Nothing;

impl Virtual for Nothing {
    fn id(&self) -> u64 {
        0
    }
}

pub(crate) fn file() -> File {
    File::from(OwnedFile::from_virtual(Box::new(Nothing)))
}

impl TestIo {
    pub fn new(cap_bytes: usize) -> TestIo {
        let pool = Pool::new(PoolOptions { cap_bytes, huge_pages: false }).unwrap();
        let now = Duration::from_secs(1);
        let (ops, completed) = (Vec::new(), Vec::new());
        TestIo { now, ops, refuses: false, completed, memory: None, absent: None, pool }
    }
}

impl Io for TestIo {
    fn now(&self) -> Duration {
        self.now
    }
    fn pool(&self) -> &Pool {
        &self.pool
    }
    fn batch(&mut self) -> Box<SendBatch> {
        Box::default()
    }
    fn recycle(&mut self, _: Box<SendBatch>) {}
    fn submit(&mut self, op: Op) -> Result<(), Op> {
        if self.refuses {
            return Err(op);
        }
        self.ops.push(op);
        Ok(())
    }
    fn cancel(&mut self, _: Token) {}
    fn socket(&mut self, _: SocketAddr, _: Option<std::net::IpAddr>) -> io::Result<Socket> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn shutdown(&mut self, _: &Socket, _: Shutdown) {}
    fn reap(&mut self, completions: &mut Vec<Completion>, _: usize) {
        completions.append(&mut self.completed);
    }
    fn wait(&mut self, _: Option<Duration>, _: &dyn Fn() -> bool) {}
    fn window(&mut self, _: &File, offset: u64, length: usize) -> Option<Window> {
        if self.absent.is_some_and(|at| (offset..offset + length as u64).contains(&at)) {
            return None;
        }
        self.memory.map(|(byte, whole)| Window::from_vec(vec![byte; length], whole))
    }
    fn waker(&self) -> Waker {
        Waker::virtual_pair().0
    }
    fn in_flight(&self) -> usize {
        self.ops.len()
    }
}

/// A torrent of these files, whose bytes are `byte` all over.
pub(crate) fn contents(piece_bytes: u32, files: &[u64], byte: u8) -> Contents {
    let named = |(n, length): (usize, &u64)| NewFile {
        path: format!("{n}").into(),
        length: *length,
        ..NewFile::default()
    };
    let layout = Layout::new(piece_bytes, files.iter().enumerate().map(named).collect()).unwrap();
    let mut info = b"d5:filesl".to_vec();
    for (n, length) in files.iter().enumerate() {
        let path = n.to_string();
        let text = format!("d6:lengthi{length}e4:pathl{}:{path}ee", path.len());
        info.extend_from_slice(text.as_bytes());
    }
    let hashes = (0..layout.piece_count()).flat_map(|piece| {
        let length = layout.piece_length(seedring_proto::units::PieceIndex(piece));
        sha1_many(&[&vec![byte; length as usize]])[0]
    });
    let hashes: Vec<u8> = hashes.collect();
    let count = hashes.len();
    info.extend_from_slice(
        format!("e4:name1:t12:piece lengthi{piece_bytes}e6:pieces{count}:").as_bytes(),
    );
    info.extend_from_slice(&hashes);
    info.push(b'e');
    let metainfo = Metainfo::from_info(&info).unwrap();
    Contents {
        layout,
        piece_hashes: metainfo.info.piece_hashes,
        raw_info: Arc::from(info),
        private: false,
        base: PathBuf::from("/srv/t"),
        base_is_file: false,
        places: Default::default(),
        stamps: Box::new([]),
        direct_io: false,
        writing: None,
    }
}

struct Bench {
    io: TestIo,
    storage: Storage,
    stats: Stats,
    news: Vec<News>,
    contents: Contents,
}

impl Bench {
    fn new(cap_bytes: usize, open_files_max: usize, files: &[u64]) -> Bench {
        let io = TestIo::new(cap_bytes);
        let options = Options { reads_max: 512, open_files_max, in_place: true };
        let storage = Storage::new(options, file(), io.pool());
        let (stats, contents) = (Stats::new(0), contents(1 << 20, files, 7));
        Bench { io, storage, stats, news: Vec::new(), contents }
    }

    fn gather(&mut self, offset: u64, length: u32, class: Class) -> Gather {
        let (io, stats, contents) = (&mut self.io, &mut self.stats, &self.contents);
        let (range, mut parts) = ((offset, length), Vec::new());
        self.storage.gather(io, stats, TORRENT, contents, range, || class, US, &mut parts)
    }

    fn look_ahead(&mut self, offset: u64, length: u32) -> bool {
        let (io, stats, contents) = (&mut self.io, &mut self.stats, &self.contents);
        self.storage.look_ahead(io, stats, TORRENT, contents, (offset, length), || Class::K256, US)
    }

    fn under_way(&self) -> (usize, usize) {
        let opens = self.io.ops.iter().filter(|op| matches!(op, Op::Open { .. })).count();
        (opens, self.io.ops.iter().filter(|op| matches!(op, Op::Read { .. })).count())
    }

    /// Completes what is in the kernel now; what that submits stays there.
    fn complete(&mut self, errno: Option<i32>) {
        let failed = || errno.map(io::Error::from_raw_os_error);
        for op in std::mem::take(&mut self.io.ops) {
            match op {
                Op::Open { token, .. } => {
                    let Target::Open(id) = Target::of(token) else { panic!("{token:?}") };
                    let size_bytes = self.storage.files.get(id).map_or(0, |e| e.length_bytes);
                    let identity = Identity { size_bytes, ..Identity::default() };
                    let result = failed().map_or_else(|| Ok((file(), identity)), Err);
                    self.storage.opened(&mut self.io, id, result, &mut self.news);
                }
                Op::Read { token, length, lease, .. } => {
                    let Target::Read(slot) = Target::of(token) else { panic!("{token:?}") };
                    let result = failed().map_or(Ok(length as usize), Err);
                    let (io, stats, news) = (&mut self.io, &mut self.stats, &mut self.news);
                    self.storage.read(io, stats, slot, result, lease, news);
                }
                _ => {}
            }
        }
    }

    fn troubles(&self) -> usize {
        self.news.iter().filter(|news| matches!(news, News::Trouble { .. })).count()
    }
}

#[test]
fn ten_thousand_small_files_open_a_few_at_a_time_and_all_arrive() {
    let mut bench = Bench::new(256 << 20, 100, &[1_000; 10_000]);
    assert_eq!(bench.gather(0, 10_000_000, Class::K256), Gather::Waiting);
    let mut opened = 0;
    for _ in 0..2_000 {
        let (opens, _) = bench.under_way();
        assert!(opens <= OPENING_MAX, "{opens} opens at once");
        assert!(opens + bench.storage.open_files() <= 100, "over the limit of descriptors");
        opened += opens;
        bench.complete(None);
    }
    assert_eq!((opened, bench.under_way()), (10_000, (0, 0)));
    assert_eq!(bench.gather(0, 10_000_000, Class::K256), Gather::Ready);
}

#[test]
fn an_operation_that_the_table_refuses_is_tried_again() {
    let mut bench = Bench::new(8 << 20, 16, &[1 << 20]);
    bench.io.refuses = true;
    assert_eq!(bench.gather(0, 16_384, Class::K16), Gather::Waiting);
    let again = bench.storage.next_attempt(bench.io.now).expect("an attempt is planned");
    (bench.io.refuses, bench.io.now) = (false, again);
    bench.storage.go_on(&mut bench.io);
    assert_eq!(bench.under_way(), (1, 0));
    bench.io.refuses = true;
    let opens = std::mem::take(&mut bench.io.ops);
    bench.io.ops = opens;
    bench.complete(None);
    assert_eq!(bench.under_way(), (0, 0), "the read was refused");
    let again = bench.storage.next_attempt(bench.io.now).expect("an attempt is planned");
    (bench.io.refuses, bench.io.now) = (false, again);
    bench.storage.go_on(&mut bench.io);
    bench.complete(None);
    assert_eq!(bench.gather(0, 16_384, Class::K16), Gather::Ready);
    assert_eq!(bench.storage.next_attempt(bench.io.now), None, "nothing is left to do");
}

#[test]
fn a_machine_short_of_descriptors_for_a_while_is_no_trouble_of_the_file() {
    let mut bench = Bench::new(8 << 20, 16, &[1 << 20, 1 << 20]);
    assert_eq!(bench.gather(1 << 20, 16_384, Class::K16), Gather::Waiting);
    bench.complete(None);
    bench.complete(None);
    assert_eq!(bench.storage.open_files(), 1);
    assert_eq!(bench.gather(0, 16_384, Class::K16), Gather::Waiting);
    bench.complete(Some(EMFILE));
    assert_eq!(bench.storage.open_files(), 0, "unused files are closed");
    assert_eq!(bench.under_way(), (0, 0), "not again at once");
    bench.io.now += TRANSIENT_REST;
    bench.storage.go_on(&mut bench.io);
    bench.complete(None);
    bench.complete(Some(EINTR));
    bench.io.now += TRANSIENT_REST;
    bench.storage.go_on(&mut bench.io);
    bench.complete(None);
    assert_eq!(bench.gather(0, 16_384, Class::K16), Gather::Ready);
    assert_eq!(bench.troubles(), 0);
}

#[test]
fn what_does_not_pass_is_trouble_in_the_end() {
    let mut bench = Bench::new(8 << 20, 16, &[1 << 20]);
    assert_eq!(bench.gather(0, 16_384, Class::K16), Gather::Waiting);
    for _ in 0..1_000 {
        bench.complete(Some(EMFILE));
        bench.io.now += TRANSIENT_REST;
        bench.storage.go_on(&mut bench.io);
    }
    assert_eq!(bench.troubles(), 1);
    assert!(matches!(bench.news[0], News::Wake(US)), "who waited hears of it");
}

#[test]
fn a_file_opened_twice_counts_once() {
    let mut files = Files::new(16);
    let contents = contents(1 << 20, &[1 << 20], 0);
    let id = files.id(TORRENT, &contents, FileIndex(0));
    let now = Duration::from_secs(1);
    let place = Place { path: c"srv/t/0".into(), direct: false };
    for _ in 0..2 {
        files.want_open(id, place.clone());
        assert!(files.next_to_open(now).is_some());
        files.fail(id, now);
        files.get(id).unwrap().state = State::Closed;
    }
    files.want_open(id, place);
    let identity = Identity { size_bytes: 1 << 20, ..Identity::default() };
    for first in [true, false] {
        assert_eq!(files.open_ended(id), first);
        if first {
            files.opened(id, file(), identity, now);
        }
    }
    files.fail(id, now);
    assert_eq!(files.open_count(), 0);
}

#[test]
fn looking_ahead_counts_nothing_and_is_bounded() {
    let mut bench = Bench::new(4 << 20, 16, &[64 << 20]);
    assert!(!bench.look_ahead(0, 64 << 20), "all that fits a quarter of the pool");
    assert_eq!(bench.storage.cache.ahead_bytes(), 1 << 20);
    (0..2).for_each(|_| bench.complete(None));
    assert!(bench.look_ahead(0, 1 << 20), "it is there");
    assert!(!bench.look_ahead(1 << 20, 1), "nobody has used any of it");
    assert_eq!((bench.stats.cache_hits, bench.stats.reads), (0, 4));
    assert_eq!(bench.gather(0, 16_384, Class::K256), Gather::Ready);
    assert_eq!(bench.stats.cache_hits, 1);
    assert!(bench.look_ahead(1 << 20, 1), "there is room for one more");
}

#[test]
fn a_gather_that_waits_uses_nothing() {
    let mut bench = Bench::new(8 << 20, 16, &[1 << 20]);
    bench.gather(0, 16_384, Class::K16);
    (0..2).for_each(|_| bench.complete(None));
    for _ in 0..10 {
        assert_eq!(bench.gather(0, 32_768, Class::K16), Gather::Waiting);
    }
    assert_eq!((bench.stats.cache_hits, bench.stats.cache_misses), (0, 2));
    (0..2).for_each(|_| bench.complete(None));
    assert_eq!(bench.gather(0, 32_768, Class::K16), Gather::Ready);
    assert_eq!(bench.stats.cache_hits, 2);
}

#[test]
fn a_small_read_finds_memory_in_a_pool_of_larger_chunks() {
    // The zeros take 16 KiB of one super-block of four.
    let mut bench = Bench::new(1 << 20, 16, &[64 << 20]);
    for chunk in 0..12 {
        assert_eq!(bench.gather(chunk << 16, 16_384, Class::K64), Gather::Waiting);
    }
    (0..2).for_each(|_| bench.complete(None));
    // Nobody has come for them: their time is over.
    bench.io.now += Duration::from_secs(1);
    bench.storage.go_on(&mut bench.io);
    for chunk in 20..35 {
        assert_eq!(bench.gather(chunk << 16, 16_384, Class::K16), Gather::Waiting);
    }
    (0..2).for_each(|_| bench.complete(None));
    bench.io.now += Duration::from_secs(1);
    bench.storage.go_on(&mut bench.io);
    for chunk in 40..52 {
        assert_eq!(bench.gather(chunk << 16, 16_384, Class::K16), Gather::Waiting, "{chunk}");
    }
}

#[test]
fn after_a_change_seen_by_another_shard_nothing_of_before_is_found() {
    let mut bench = Bench::new(8 << 20, 16, &[1 << 20]);
    bench.storage.see_epoch(TORRENT, 3, &mut bench.news);
    bench.gather(0, 16_384, Class::K16);
    (0..2).for_each(|_| bench.complete(None));
    bench.storage.see_epoch(TORRENT, 3, &mut bench.news);
    assert_eq!(bench.gather(0, 16_384, Class::K16), Gather::Ready);
    assert_eq!(bench.gather(65_536, 16_384, Class::K16), Gather::Waiting);
    bench.news.clear();
    bench.storage.see_epoch(TORRENT, 4, &mut bench.news);
    assert_eq!(bench.storage.open_files(), 0);
    bench.complete(None);
    assert!(matches!(bench.news[..], [News::Wake(US)]), "the read of before fails");
    assert_eq!(bench.gather(65_536, 16_384, Class::K16), Gather::Waiting);
    assert_eq!(bench.gather(0, 16_384, Class::K16), Gather::Waiting);
    // The file is what it was: the identity known from before the change is compared.
    (0..2).for_each(|_| bench.complete(None));
    assert_eq!(bench.gather(0, 16_384, Class::K16), Gather::Ready);
    assert_eq!(bench.troubles(), 0);
}

#[test]
fn what_was_read_for_somebody_waits_a_moment_for_him() {
    let mut bench = Bench::new(1 << 20, 16, &[64 << 20]);
    let chunk = |n: u64| n << 18;
    (0..3).for_each(|n| assert_eq!(bench.gather(chunk(n), 16, Class::K256), Gather::Waiting));
    (0..2).for_each(|_| bench.complete(None));
    // 15 of 16 KiB are free beside the zeros; the sixteenth finds nothing.
    (10..25).for_each(|n| assert_eq!(bench.gather(chunk(n), 16, Class::K16), Gather::Waiting));
    assert_eq!(bench.gather(chunk(30), 16, Class::K16), Gather::NoMemory);
    assert_eq!(bench.gather(chunk(1), 16, Class::K256), Gather::Ready, "he came");
    assert_eq!(bench.gather(chunk(30), 16, Class::K16), Gather::Waiting, "in its place");
    for n in 40..55 {
        assert_eq!(bench.gather(chunk(n), 16, Class::K16), Gather::Waiting);
    }
    assert_eq!(bench.gather(chunk(60), 16, Class::K16), Gather::NoMemory);
    bench.io.now += Duration::from_millis(200);
    bench.storage.go_on(&mut bench.io);
    assert_eq!(bench.gather(chunk(60), 16, Class::K16), Gather::Waiting, "not for ever");
}

#[test]
fn a_file_that_stays_short_is_in_doubt_once() {
    let mut bench = Bench::new(8 << 20, 16, &[1 << 20]);
    let short = || Ok((file(), Identity { size_bytes: 9, ..Identity::default() }));
    for first in [true, false, false] {
        assert_eq!(bench.gather(0, 16_384, Class::K16), Gather::Waiting);
        let Some(Op::Open { token, .. }) = bench.io.ops.pop() else { panic!("it opens") };
        let Target::Open(id) = Target::of(token) else { panic!("{token:?}") };
        bench.storage.opened(&mut bench.io, id, short(), &mut bench.news);
        let Some(News::Trouble { range, .. }) = bench.news.pop() else { panic!("it is short") };
        assert_eq!(range.is_some(), first);
        bench.io.now += Duration::from_secs(3);
    }
}

#[test]
fn a_torrent_that_goes_takes_its_waiting_reads_along() {
    let mut bench = Bench::new(8 << 20, 16, &[1_000; 200]);
    bench.gather(0, 200_000, Class::K16);
    bench.complete(None); // some are open and read, some open, some wait
    bench.storage.drop_torrent(TORRENT, &mut bench.news);
    bench.complete(None);
    bench.complete(None);
    let zeros = Class::K16.bytes();
    assert_eq!(bench.under_way(), (0, 0));
    assert_eq!((bench.storage.open_files(), bench.io.pool().leased_bytes()), (0, zeros));
    let woken: BTreeSet<_> = bench.news.iter().map(|n| format!("{n:?}")).collect();
    assert_eq!(woken.len(), 1, "one waiter, who is told: {woken:?}");
}
