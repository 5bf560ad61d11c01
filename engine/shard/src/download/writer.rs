//! Good pieces to disk: which files are open for writing, what is being written, what is synced.
//!
//! Owns: descriptors for writing, writes and syncs under way, which pieces wait for a sync.
//! Never: hashing, claims, what is done about a failure (control halts and resumes). Flow:
//! `write_piece` -> its files open (and are made) -> writes -> had -> each file synced -> synced.
//!
//! A file goes past the page cache where its pieces start at pages ([`Contents::is_direct`]); what
//! is left of its last page goes through a descriptor of its own, which is buffered, so that direct
//! and buffered transfers do not meet in a page (the kernel then fails the next sync). Others go
//! through the page cache (decision 0012). A file is synced 4 s or 48 MiB after its first write
//! that is not, which bounds what a crash may cost (D3: 5 s, 64 MiB).
//!
//! A failed sync is final: all that was written since the last good one is not had any more.

mod opening;
mod syncing;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use seedring_platform::{
    descriptors::File,
    memory::Share,
    op::{Io, Op},
    write_batch::WriteBatch,
};
use seedring_proto::units::{FileIndex, PieceIndex};

use super::{Downloads, Fetch, partial::Whole};
use crate::{
    contract::Event,
    mix::Hashed,
    shard::Shard,
    token::Target,
    torrent::{Contents, Download, PAGE_BYTES, Shared, TorrentId},
};

/// Opens and syncs in the kernel at once: each may take one of the ring's worker threads.
const SLOW_MAX: usize = 32;
/// A file that nothing is written to for this long is closed.
const CLOSE_AFTER: Duration = Duration::from_secs(20);
/// Files open for writing; above, idle ones are closed sooner.
const OPEN_MAX: usize = 256;
/// How often it is looked for files to sync and to close: not each tick, since they may be many.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// After the in-flight table was full.
const REFUSED_REST: Duration = Duration::from_millis(10);

enum State {
    Closed,
    Opening,
    /// Open; its size is being set.
    Allocating(File),
    Open(File),
}

/// What of a file goes through one descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum FilePart {
    /// All of it, or its whole pages where it is direct.
    Body,
    /// The rest of the last page of a direct file.
    Tail,
}

/// A file of a downloading torrent.
struct Entry {
    torrent: TorrentId,
    index: FileIndex,
    part: FilePart,
    /// A direct descriptor is asked for.
    direct: bool,
    /// What offsets and lengths of writes are multiples of: 1 where it is buffered.
    align_bytes: usize,
    download: Arc<Download>,
    contents: Arc<Contents>,
    state: State,
    /// Segments that wait until it is open.
    waiting: VecDeque<Segment>,
    /// Writes queued or in the kernel.
    writes: u32,
    /// Pieces written and not covered by a sync under way.
    dirty: Vec<PieceIndex>,
    dirty_bytes: u64,
    dirty_since: Duration,
    syncing: Option<Vec<PieceIndex>>,
    used_at: Duration,
}

/// What of a piece lies in one file.
struct Segment {
    job: u32,
    file: u32,
    offset: u64,
    batch: Box<WriteBatch>,
}

/// A piece that is being written.
struct Job {
    shared: Arc<Shared>,
    download: Arc<Download>,
    piece: PieceIndex,
    length: u32,
    /// Each that holds a part of it, once.
    files: Vec<u32>,
    left: u32,
    failed: Option<(PathBuf, io::Error)>,
}

/// See the module.
pub struct Writer {
    files: BTreeMap<u32, Entry>,
    ids: HashMap<(TorrentId, FileIndex, FilePart), u32>,
    folders: HashMap<TorrentId, File, Hashed>,
    next_file: u32,
    jobs: HashMap<u32, Job, Hashed>,
    next_job: u32,
    to_open: VecDeque<u32>,
    slow: usize,
    runnable: VecDeque<Segment>,
    /// In the kernel, by token.
    under_way: Vec<Option<Segment>>,
    free: Vec<u32>,
    /// Files that a piece still waits for, by piece.
    unsynced: HashMap<(TorrentId, PieceIndex), u32>,
    rest_until: Duration,
    /// When it is looked for files to sync and to close.
    look_at: Duration,
    sync_all: bool,
}

impl Writer {
    pub fn new(writes_max: usize) -> Self {
        Writer {
            files: BTreeMap::new(),
            ids: HashMap::new(),
            folders: HashMap::default(),
            next_file: 0,
            jobs: HashMap::default(),
            next_job: 0,
            to_open: VecDeque::new(),
            slow: 0,
            runnable: VecDeque::new(),
            under_way: (0..writes_max).map(|_| None).collect(),
            free: (0..writes_max as u32).rev().collect(),
            unsynced: HashMap::new(),
            rest_until: Duration::ZERO,
            look_at: Duration::ZERO,
            sync_all: false,
        }
    }

    /// Nothing is being written or waits for a sync.
    pub fn is_idle(&self) -> bool {
        self.files.is_empty() && self.jobs.is_empty()
    }

    /// No piece is being written.
    pub fn writes_nothing(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Nothing of a torrent is being written or waits for a sync.
    pub fn is_synced(&self, id: TorrentId) -> bool {
        self.jobs.values().all(|job| job.shared.id != id)
            && self.files.values().all(|entry| entry.torrent != id || entry.is_clean())
    }

    /// Nothing is being written, opened or synced, and all is synced.
    pub fn is_settled(&self) -> bool {
        self.jobs.is_empty() && self.slow == 0 && self.files.values().all(Entry::is_clean)
    }

    /// Closes everything (the end).
    pub fn clear(&mut self) {
        assert!(self.is_settled(), "what is written is kept until it is synced");
        self.files.clear();
        self.ids.clear();
        self.folders.clear();
    }

    /// Looks in this tick for what is to be synced.
    pub fn look_soon(&mut self) {
        self.look_at = Duration::ZERO;
    }

    /// Syncs everything as soon as it is written (the orderly end).
    pub fn sync_all(&mut self) {
        self.sync_all = true;
    }

    pub fn due_at(&self) -> Option<Duration> {
        let look = (!self.files.is_empty()).then_some(self.look_at);
        let refused = !self.runnable.is_empty() && !self.free.is_empty();
        look.into_iter().chain(refused.then_some(self.rest_until)).min()
    }

    /// The number of what is open, or will be, for this part of a file.
    fn file(&mut self, fetch: &Fetch, index: FileIndex, part: FilePart, now: Duration) -> u32 {
        let (id, contents) = (fetch.shared.id, &fetch.contents);
        if let Some(file) = self.ids.get(&(id, index, part)) {
            return *file;
        }
        let file = self.next_file;
        self.next_file = self.next_file.wrapping_add(1);
        self.ids.insert((id, index, part), file);
        let entry = Entry {
            torrent: id,
            index,
            part,
            direct: part == FilePart::Body && contents.is_direct(index),
            align_bytes: 1,
            download: fetch.download.clone(),
            contents: contents.clone(),
            state: State::Closed,
            waiting: VecDeque::new(),
            writes: 0,
            dirty: Vec::new(),
            dirty_bytes: 0,
            dirty_since: now,
            syncing: None,
            used_at: now,
        };
        self.files.insert(file, entry);
        file
    }
}

impl Entry {
    fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.syncing.is_none()
    }

    fn is_unused(&self) -> bool {
        self.is_clean()
            && self.writes == 0
            && self.waiting.is_empty()
            && matches!(self.state, State::Closed | State::Open(_))
    }

    fn id(&self) -> (TorrentId, FileIndex, FilePart) {
        (self.torrent, self.index, self.part)
    }

    fn path(&self) -> PathBuf {
        self.contents.path(self.index)
    }

    fn length_bytes(&self) -> u64 {
        self.contents.layout.files[self.index.0 as usize].length
    }
}

impl<I: Io> Shard<I> {
    /// Takes a good piece on its way to its files.
    pub(super) fn write_piece(&mut self, id: TorrentId, whole: Whole) {
        let now = self.io.now();
        let Downloads { torrents, writer, .. } = &mut self.downloads;
        let Some(fetch) = torrents.get(&id) else { return };
        let (shared, download) = (fetch.shared.clone(), fetch.download.clone());
        let layout = &fetch.contents.layout;
        let job = writer.next_job;
        writer.next_job = writer.next_job.wrapping_add(1);
        let start = layout.piece_offset(whole.piece);
        let (mut segments, mut files, mut at) = (Vec::new(), Vec::new(), 0);
        for segment in layout.segments(start, u64::from(whole.length)) {
            let from = at;
            at += segment.length as usize;
            if segment.padding {
                continue;
            }
            let (index, offset, end) =
                (segment.file, segment.offset, segment.offset + segment.length);
            let body_end = match fetch.contents.is_direct(index) {
                true => layout.files[index.0 as usize].length / PAGE_BYTES * PAGE_BYTES,
                false => u64::MAX,
            };
            let middle = body_end.clamp(offset, end);
            for (part, begin, end) in
                [(FilePart::Body, offset, middle), (FilePart::Tail, middle, end)]
            {
                if begin < end {
                    let file = writer.file(fetch, index, part, now);
                    files.push(file);
                    let range = from + (begin - offset) as usize..from + (end - offset) as usize;
                    cut(&whole.chunks, range, begin, |offset, batch| {
                        segments.push(Segment { job, file, offset, batch });
                    });
                }
            }
        }
        let left = segments.len() as u32;
        let (piece, length) = (whole.piece, whole.length);
        writer.jobs.insert(job, Job { shared, download, piece, length, files, left, failed: None });
        for segment in segments {
            self.downloads.writer.enter(segment, now);
        }
        if left == 0 {
            self.job_over(job, now); // a piece of padding alone
        }
    }

    /// Opens, writes and syncs as far as limits go.
    pub(super) fn write_step(&mut self, now: Duration) {
        self.open_next(now);
        self.submit_writes(now);
        if now >= self.downloads.writer.look_at {
            self.downloads.writer.look_at = now + LOOK_EVERY;
            self.sync_due(now);
            self.downloads.writer.close_unused(now);
        }
    }

    fn submit_writes(&mut self, now: Duration) {
        if now < self.downloads.writer.rest_until {
            return;
        }
        loop {
            let writer = &mut self.downloads.writer;
            if writer.runnable.is_empty() {
                return;
            }
            let Some(slot) = writer.free.pop() else { return };
            let segment = writer.runnable.pop_front().expect("invariant: not empty");
            let entry = writer.files.get(&segment.file).expect("invariant: kept while written to");
            let State::Open(file) = &entry.state else {
                unreachable!("invariant: a file that is written to stays open")
            };
            let file = file.clone();
            let Segment { job, file: number, offset, batch } = segment;
            let op = Op::Write { token: Target::Write(slot).token(), file, offset, batch };
            match self.io.submit(op) {
                Ok(()) => {
                    let batch = Box::default();
                    let waits = Segment { job, file: number, offset, batch };
                    self.downloads.writer.under_way[slot as usize] = Some(waits);
                }
                Err(Op::Write { batch, .. }) => {
                    let writer = &mut self.downloads.writer;
                    writer.free.push(slot);
                    writer.runnable.push_front(Segment { job, file: number, offset, batch });
                    writer.rest_until = now + REFUSED_REST;
                    return;
                }
                Err(_) => unreachable!("invariant: a refused operation comes back"),
            }
        }
    }

    /// Completion of a write.
    pub(crate) fn written(
        &mut self,
        slot: u32,
        result: io::Result<usize>,
        mut batch: Box<WriteBatch>,
    ) {
        let now = self.io.now();
        let writer = &mut self.downloads.writer;
        let segment = writer.under_way[slot as usize].take();
        let segment = segment.expect("invariant: one completion a write");
        writer.free.push(slot);
        // A direct write goes on where it may begin; what lies between is written again.
        let align = writer.files.get(&segment.file).map_or(1, |entry| entry.align_bytes);
        let whole = batch.len_bytes();
        let taken = |bytes: usize| if bytes < whole { bytes / align * align } else { bytes };
        let failed = match result.map(taken) {
            Ok(0) => Some(io::Error::from(io::ErrorKind::WriteZero)),
            Ok(bytes) => {
                self.stats.written_bytes += bytes as u64;
                batch.advance(bytes);
                if !batch.is_empty() {
                    let offset = segment.offset + bytes as u64;
                    writer.runnable.push_front(Segment { offset, batch, ..segment });
                    return;
                }
                None
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                writer.runnable.push_front(Segment { batch, ..segment });
                return;
            }
            Err(error) => Some(error),
        };
        batch.clear();
        self.segment_over(&segment, failed, now);
    }

    fn segment_over(&mut self, segment: &Segment, failed: Option<io::Error>, now: Duration) {
        let writer = &mut self.downloads.writer;
        let entry = writer.files.get_mut(&segment.file).expect("invariant: kept while written to");
        entry.writes -= 1;
        entry.used_at = now;
        let path = entry.path();
        let job = writer.jobs.get_mut(&segment.job).expect("invariant: kept while written");
        job.left -= 1;
        if let Some(error) = failed {
            job.failed.get_or_insert((path, error));
        }
        if job.left == 0 {
            self.job_over(segment.job, now);
        }
    }

    /// All of a piece was written, or some of it can't be.
    fn job_over(&mut self, job: u32, now: Duration) {
        let job = self.downloads.writer.jobs.remove(&job).expect("invariant: it ends once");
        let (torrent, piece) = (job.shared.id, job.piece);
        self.downloads.settled(job.length);
        let writer = &mut self.downloads.writer;
        if let Some((path, error)) = job.failed {
            job.download.release(piece, self.options.shard);
            if let Some(fetch) = self.downloads.torrents.get_mut(&torrent) {
                fetch.picker.refresh();
            }
            return self.write_failed(torrent, path, error);
        }
        for file in &job.files {
            let entry = writer.files.get_mut(file).expect("invariant: kept while written to");
            if entry.dirty.is_empty() {
                entry.dirty_since = now;
            }
            entry.dirty.push(piece);
            entry.dirty_bytes += u64::from(job.length);
        }
        match job.files.len() {
            0 => job.download.set_synced(piece),
            files => _ = writer.unsynced.insert((torrent, piece), files as u32),
        }
        self.piece_written(&job.shared, &job.download, piece);
        self.memory_came_home = true;
        if std::mem::take(&mut self.downloads.starved) {
            let ids: Vec<TorrentId> = self.downloads.torrents.keys().copied().collect();
            ids.into_iter().for_each(|id| self.ask_others(id));
        }
        self.look_whether_complete(torrent);
    }

    /// A download can't be written on: nothing more is asked for until control says so.
    fn write_failed(&mut self, torrent: TorrentId, path: PathBuf, error: io::Error) {
        if let Some(fetch) = self.downloads.torrents.get(&torrent)
            && fetch.download.halt()
        {
            self.tell(Event::WriteFailed { torrent, path, error });
            let keys = self.keys_here(torrent);
            keys.into_iter().for_each(|key| self.take_back_if_halted(key));
        }
    }
}

impl Writer {
    /// A segment waits for its file, or for its turn.
    fn enter(&mut self, segment: Segment, now: Duration) {
        let entry = self.files.get_mut(&segment.file).expect("invariant: made by the caller");
        entry.writes += 1;
        entry.used_at = now;
        match entry.state {
            State::Open(_) => self.runnable.push_back(segment),
            State::Closed if entry.waiting.is_empty() => {
                self.to_open.push_back(segment.file);
                entry.waiting.push_back(segment);
            }
            _ => entry.waiting.push_back(segment),
        }
    }

    /// A file is open: what waits for it is written.
    fn go_on(&mut self, file: u32) {
        if let Some(entry) = self.files.get_mut(&file) {
            self.runnable.append(&mut entry.waiting);
        }
    }

    fn close_unused(&mut self, now: Duration) {
        let many = self.files.len() > OPEN_MAX;
        let unused = |entry: &Entry| {
            entry.is_unused() && (many || now.saturating_sub(entry.used_at) >= CLOSE_AFTER)
        };
        let gone: Vec<u32> =
            self.files.iter().filter(|(_, e)| unused(e)).map(|(file, _)| *file).collect();
        for file in gone {
            if let Some(entry) = self.files.remove(&file) {
                self.ids.remove(&entry.id());
            }
        }
        if self.files.is_empty() {
            self.folders.clear();
        }
    }

    /// A torrent is gone: what is not needed for writes under way closes.
    pub fn drop_torrent(&mut self, id: TorrentId) {
        self.files.retain(|_, entry| {
            let keep = entry.torrent != id || !entry.is_unused();
            if !keep {
                self.ids.remove(&entry.id());
            }
            keep
        });
        self.folders.remove(&id);
    }
}

/// An error once more, for each who has to hear of it.
fn same(error: &io::Error) -> io::Error {
    let kind = || io::Error::from(error.kind());
    error.raw_os_error().map_or_else(kind, io::Error::from_raw_os_error)
}

/// Bytes `range` of a piece as batches to be written from `offset` on.
fn cut(
    chunks: &[Share],
    range: std::ops::Range<usize>,
    mut offset: u64,
    mut emit: impl FnMut(u64, Box<WriteBatch>),
) {
    let mut batch = Box::new(WriteBatch::new());
    let mut chunk_at = 0;
    for chunk in chunks {
        let (start, end) = (chunk_at, chunk_at + chunk.len());
        chunk_at = end;
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from >= to {
            continue;
        }
        if batch.is_full() {
            let bytes = batch.len_bytes() as u64;
            emit(offset, std::mem::take(&mut batch));
            offset += bytes;
        }
        batch.push(chunk, from - start..to - start);
    }
    if !batch.is_empty() {
        emit(offset, batch);
    }
}
