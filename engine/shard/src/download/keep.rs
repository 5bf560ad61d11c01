//! Pieces in part, kept on disk: what is gathered is not fetched twice.
//!
//! Owns: each torrent's file of blocks as this shard writes and reads it, which pieces are kept.
//! Never: content (what is here was not hashed yet, so it lies in a file of its own and no late
//! write of it can meet a good piece). Flow: a download ends, or a piece has been slow for long ->
//! blocks to the file -> synced -> control hears and stores which; at the next start -> `Kept` ->
//! whoever claims the piece reads them back. The hash of the whole piece decides, as always.

mod left;

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::CString,
    io,
    os::unix::ffi::OsStrExt,
    sync::Arc,
    time::Duration,
};

use seedring_platform::{
    descriptors::File,
    memory::{Class, Lease, Share},
    op::{Access, Identity, Io, Op, OpenRequest},
    write_batch::WriteBatch,
};
use seedring_proto::units::{BLOCK_BYTES, PieceIndex};

use super::partial::{Gathered, Partial};
use crate::{
    contract::Event,
    shard::Shard,
    token::{Kept as What, Target},
    torrent::{BLOCKS, Contents, Download, KeptPiece, Phase, Shared, TorrentId, kept_offset},
};

/// A piece is kept before it is whole when it has been under way for so long,
const SLOW_AFTER: Duration = Duration::from_secs(5);
/// and so many bytes came that are not kept. Each is then written twice, so fast pieces are not.
const SLOW_BYTES: u32 = 1 << 20;
/// Reads and writes in the kernel at once.
const RUNNING_MAX: usize = 32;
/// A file that nothing was done with for this long is closed.
const CLOSE_AFTER: Duration = Duration::from_secs(20);
/// After the in-flight table was full.
const REFUSED_REST: Duration = Duration::from_millis(10);
/// Read in one go; what a chunk of a piece is.
const CHUNK_BYTES: u32 = 256 << 10;

enum State {
    Closed,
    Opening,
    Open(File),
}

/// One thing to be done with a file of blocks.
enum Work {
    /// Part of a job.
    Write { job: u32, offset: u64, batch: Box<WriteBatch> },
    /// A chunk of a piece, counted from its beginning.
    Read { kept: Arc<KeptPiece>, chunk: u32 },
}

/// A torrent's file of blocks.
struct Side {
    shared: Arc<Shared>,
    contents: Arc<Contents>,
    state: State,
    work: VecDeque<Work>,
    /// Of its work, what is in the kernel.
    running: u32,
    /// Written and not synced.
    written: Vec<Job>,
    syncing: Option<Vec<Job>>,
    used_at: Duration,
}

/// A piece on its way to disk.
struct Job {
    torrent: TorrentId,
    kept: KeptPiece,
    left: u32,
    failed: bool,
}

/// What is on disk of a piece, or on its way there.
struct Keeping {
    download: Arc<Download>,
    slot: Option<u32>,
    blocks: Box<[u8]>,
    since: Duration,
    jobs: u32,
    /// It is whole, or given up: the slot is free when nothing is written to it any more.
    over: bool,
}

/// See the module.
pub struct Keeper {
    sides: BTreeMap<TorrentId, Side>,
    pieces: BTreeMap<(TorrentId, PieceIndex), Keeping>,
    jobs: BTreeMap<u32, Job>,
    next_job: u32,
    /// In the kernel, by token.
    running: Vec<Option<(TorrentId, Work)>>,
    free: Vec<u32>,
    rest_until: Duration,
}

impl Default for Keeper {
    fn default() -> Self {
        Keeper {
            sides: BTreeMap::new(),
            pieces: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
            running: (0..RUNNING_MAX).map(|_| None).collect(),
            free: (0..RUNNING_MAX as u32).rev().collect(),
            rest_until: Duration::ZERO,
        }
    }
}

impl Side {
    fn is_settled(&self) -> bool {
        self.work.is_empty()
            && self.running == 0
            && self.written.is_empty()
            && self.syncing.is_none()
            && !matches!(self.state, State::Opening)
    }
}

impl Keeper {
    /// Nothing is being opened, read, written or synced.
    pub fn is_settled(&self) -> bool {
        self.sides.values().all(Side::is_settled)
    }

    /// Closes everything (the end).
    pub fn clear(&mut self) {
        assert!(self.is_settled(), "what is kept is synced first");
        self.sides.clear();
        self.pieces.clear();
    }

    pub fn due_at(&self) -> Option<Duration> {
        let waits = |side: &Side| !side.work.is_empty() && !self.free.is_empty();
        self.sides.values().any(waits).then_some(self.rest_until)
    }

    fn side(&mut self, shared: &Arc<Shared>, contents: &Arc<Contents>, now: Duration) -> &mut Side {
        let new = || Side {
            shared: shared.clone(),
            contents: contents.clone(),
            state: State::Closed,
            work: VecDeque::new(),
            running: 0,
            written: Vec::new(),
            syncing: None,
            used_at: now,
        };
        self.sides.entry(shared.id).or_insert_with(new)
    }

    /// A torrent's download is over. What is kept of it stays.
    pub fn ended(&mut self, id: TorrentId) {
        let all = (id, PieceIndex(0))..=(id, PieceIndex(u32::MAX));
        self.pieces.range_mut(all).for_each(|(_, keeping)| keeping.over = true);
        self.pieces.retain(|(torrent, _), keeping| *torrent != id || keeping.jobs > 0);
    }

    /// A piece that was kept is whole, or given up.
    fn forget(&mut self, id: TorrentId, piece: PieceIndex) {
        let Some(keeping) = self.pieces.get_mut(&(id, piece)) else { return };
        keeping.over = true;
        if keeping.jobs == 0
            && let Some(keeping) = self.pieces.remove(&(id, piece))
            && let Some(slot) = keeping.slot
        {
            keeping.download.kept.free_slot(slot);
        }
    }
}

/// A part of a download, as far as it matters here.
pub(super) struct Part<'a> {
    pub shared: &'a Arc<Shared>,
    pub contents: &'a Arc<Contents>,
    pub download: &'a Arc<Download>,
}

impl<I: Io> Shard<I> {
    /// What was gathered of a piece that is not gathered any further here.
    pub(super) fn keep_gathered(&mut self, part: &Part, gathered: &Gathered) {
        let gone = part.shared.phase() == Phase::Removed;
        if gone
            || part.contents.writing.is_none()
            || part.contents.places.parts.as_os_str().is_empty()
        {
            return;
        }
        let now = self.io.now();
        let piece_bytes = part.contents.layout.piece_bytes;
        let keeper = &mut self.downloads.keeper;
        let key = (part.shared.id, gathered.piece);
        let keeping = keeper.pieces.entry(key).or_insert_with(|| Keeping {
            download: part.download.clone(),
            slot: None,
            blocks: Box::default(),
            since: now,
            jobs: 0,
            over: false,
        });
        keeping.since = now;
        let runs = gathered.runs(&keeping.blocks);
        if runs.is_empty() {
            return;
        }
        let Some(slot) = keeping.slot.or_else(|| part.download.kept.take_slot()) else { return };
        keeping.slot = Some(slot);
        keeping.blocks = gathered.blocks.clone();
        keeping.jobs += 1;
        let kept = KeptPiece { piece: gathered.piece, slot, blocks: gathered.blocks.clone() };
        let start = kept_offset(slot, piece_bytes);
        let job = keeper.next_job;
        keeper.next_job = keeper.next_job.wrapping_add(1);
        let batches = batches(runs);
        let left = batches.len() as u32;
        keeper.jobs.insert(job, Job { torrent: key.0, kept, left, failed: false });
        let side = keeper.side(part.shared, part.contents, now);
        side.work.extend(batches.into_iter().map(|(at, batch)| Work::Write {
            job,
            offset: start + u64::from(at),
            batch,
        }));
    }

    /// Once a second: pieces that are slow are kept as far as they came; the slots of those that
    /// are over are free.
    pub(super) fn keep_slow(&mut self, id: TorrentId, now: Duration) {
        let Some(fetch) = self.downloads.torrents.get(&id) else { return };
        let (shared, contents) = (fetch.shared.clone(), fetch.contents.clone());
        let download = fetch.download.clone();
        let mut due = Vec::new();
        let keeper = &mut self.downloads.keeper;
        for partial in fetch.partials.values().filter(|p| p.length() >= 2 * SLOW_BYTES) {
            let keeping = keeper.pieces.entry((id, partial.piece())).or_insert_with(|| Keeping {
                download: download.clone(),
                slot: None,
                blocks: Box::default(),
                since: now,
                jobs: 0,
                over: false,
            });
            let on_disk: u32 = keeping.blocks.iter().map(|byte| byte.count_ones()).sum();
            let news = partial.here().saturating_sub(on_disk) * BLOCK_BYTES;
            if now.saturating_sub(keeping.since) >= SLOW_AFTER && news >= SLOW_BYTES {
                let pool = self.io.pool();
                due.extend(
                    partial.copied(&keeping.blocks, |class| self.storage.lease(pool, class)),
                );
            }
        }
        let own = self.options.shard;
        let over: Vec<PieceIndex> = keeper
            .pieces
            .range((id, PieceIndex(0))..=(id, PieceIndex(u32::MAX)))
            .filter(|((_, piece), _)| !download.is_claimed_by(*piece, own))
            .map(|((_, piece), _)| *piece)
            .collect();
        over.into_iter().for_each(|piece| keeper.forget(id, piece));
        let part = Part { shared: &shared, contents: &contents, download: &download };
        due.iter().for_each(|gathered| self.keep_gathered(&part, gathered));
    }

    /// A piece is not what its hash says: what is kept of it is worth nothing.
    pub(super) fn forget_kept(&mut self, id: TorrentId, piece: PieceIndex) {
        let kept = self.downloads.keeper.pieces.get(&(id, piece)).and_then(|keeping| keeping.slot);
        self.downloads.keeper.forget(id, piece);
        if let Some(slot) = kept
            && let Some(fetch) = self.downloads.torrents.get(&id)
        {
            let info_hash = fetch.shared.info_hash;
            self.tell(Event::Kept { info_hash, piece, slot, blocks: Box::default() });
        }
    }

    /// A piece was claimed of which an earlier run left blocks: they are read back.
    pub(super) fn restore(&mut self, id: TorrentId, kept: KeptPiece) {
        let now = self.io.now();
        let Some(fetch) = self.downloads.torrents.get(&id) else { return };
        let (shared, contents) = (fetch.shared.clone(), fetch.contents.clone());
        let keeping = Keeping {
            download: fetch.download.clone(),
            slot: Some(kept.slot),
            blocks: kept.blocks.clone(),
            since: now,
            jobs: 0,
            over: false,
        };
        let keeper = &mut self.downloads.keeper;
        keeper.pieces.insert((id, kept.piece), keeping);
        let mut chunks: Vec<u32> =
            kept.numbers().map(|at| at / (CHUNK_BYTES / BLOCK_BYTES)).collect();
        chunks.dedup();
        let kept = Arc::new(kept);
        let side = keeper.side(&shared, &contents, now);
        side.work.extend(chunks.into_iter().map(|chunk| Work::Read { kept: kept.clone(), chunk }));
    }

    /// Opens, reads, writes and syncs as far as limits go.
    pub(super) fn keep_step(&mut self, now: Duration) {
        if self.downloads.keeper.sides.is_empty() || now < self.downloads.keeper.rest_until {
            return;
        }
        let ids: Vec<TorrentId> = self.downloads.keeper.sides.keys().copied().collect();
        for id in ids {
            if !self.keep_on(id, now) {
                self.downloads.keeper.rest_until = now + REFUSED_REST;
                return;
            }
            let known = self.downloads.torrents.contains_key(&id);
            let keeper = &mut self.downloads.keeper;
            let done = |side: &Side| {
                side.is_settled() && (!known || now.saturating_sub(side.used_at) >= CLOSE_AFTER)
            };
            if keeper.sides.get(&id).is_some_and(done) {
                keeper.sides.remove(&id);
            }
        }
    }

    /// `false`: the in-flight table is full.
    fn keep_on(&mut self, id: TorrentId, now: Duration) -> bool {
        let Some(side) = self.downloads.keeper.sides.get_mut(&id) else { return true };
        match &side.state {
            State::Closed if side.work.is_empty() => true,
            State::Closed => match open(side) {
                Ok(request) => {
                    let token = Target::Keep(What::Open, id.0).token();
                    let submitted = self.io.submit(Op::Open { token, request }).is_ok();
                    if submitted {
                        side.state = State::Opening;
                    }
                    submitted
                }
                Err(_) => {
                    self.keep_failed(id);
                    true
                }
            },
            State::Opening => true,
            State::Open(file) => {
                let file = file.clone();
                self.keep_work(id, &file, now)
            }
        }
    }

    fn keep_work(&mut self, id: TorrentId, file: &File, now: Duration) -> bool {
        loop {
            let keeper = &mut self.downloads.keeper;
            let Some(side) = keeper.sides.get_mut(&id) else { return true };
            let Some(slot) = keeper.free.pop() else { return true };
            let Some(work) = side.work.pop_front() else {
                keeper.free.push(slot);
                break;
            };
            side.used_at = now;
            let piece_bytes = side.contents.layout.piece_bytes;
            let op = match work {
                Work::Write { job, offset, batch } => {
                    let waits = Work::Write { job, offset, batch: Box::default() };
                    keeper.running[slot as usize] = Some((id, waits));
                    let token = Target::Keep(What::Write, slot).token();
                    Op::Write { token, file: file.clone(), offset, batch }
                }
                Work::Read { kept, chunk } => {
                    let Some(lease) = self.storage.lease(self.io.pool(), Class::K256) else {
                        self.downloads.keeper.free.push(slot);
                        self.restored(id, &kept, chunk, &[]);
                        continue;
                    };
                    let length = side.contents.layout.piece_length(kept.piece);
                    let begin = chunk * CHUNK_BYTES;
                    let offset = kept_offset(kept.slot, piece_bytes) + u64::from(begin);
                    let length = (length - begin).min(CHUNK_BYTES);
                    keeper.running[slot as usize] = Some((id, Work::Read { kept, chunk }));
                    let token = Target::Keep(What::Read, slot).token();
                    Op::Read { token, file: file.clone(), offset, length, lease }
                }
            };
            match self.io.submit(op) {
                Ok(()) => side.running += 1,
                Err(op) => {
                    let work = keeper.running[slot as usize].take().map(|(_, work)| work);
                    keeper.free.push(slot);
                    side.work.extend(work.map(|work| match (work, op) {
                        (Work::Write { job, offset, .. }, Op::Write { batch, .. }) => {
                            Work::Write { job, offset, batch }
                        }
                        (work, _) => work,
                    }));
                    return false;
                }
            }
        }
        let Some(side) = self.downloads.keeper.sides.get_mut(&id) else { return true };
        if side.running > 0 || side.written.is_empty() || side.syncing.is_some() {
            return true;
        }
        let token = Target::Keep(What::Sync, id.0).token();
        let submitted =
            self.io.submit(Op::Sync { token, file: file.clone(), data_only: true }).is_ok();
        if submitted {
            side.syncing = Some(std::mem::take(&mut side.written));
        }
        submitted
    }

    /// Completion of the open of a file of blocks.
    pub(crate) fn kept_opened(&mut self, id: u32, result: io::Result<(File, Identity)>) {
        let id = TorrentId(id);
        let Some(side) = self.downloads.keeper.sides.get_mut(&id) else { return };
        match result {
            Ok((file, _)) => side.state = State::Open(file),
            Err(_) => {
                side.state = State::Closed;
                self.keep_failed(id);
            }
        }
    }

    /// There is no such file to be had: what was to be kept is not, and what was left is lost.
    fn keep_failed(&mut self, id: TorrentId) {
        let Some(side) = self.downloads.keeper.sides.get_mut(&id) else { return };
        for work in std::mem::take(&mut side.work) {
            match work {
                Work::Write { job, .. } => self.job_step(id, job, true),
                Work::Read { kept, chunk } => self.restored(id, &kept, chunk, &[]),
            }
        }
    }

    /// Completion of a write of blocks.
    pub(crate) fn kept_written(
        &mut self,
        slot: u32,
        result: io::Result<usize>,
        mut batch: Box<WriteBatch>,
    ) {
        let Some((id, Work::Write { job, offset, .. })) = self.kept_ended(slot) else { return };
        let bytes = result.unwrap_or(0);
        self.stats.written_bytes += bytes as u64;
        batch.advance(bytes);
        let keeper = &mut self.downloads.keeper;
        if bytes > 0
            && !batch.is_empty()
            && let Some(side) = keeper.sides.get_mut(&id)
        {
            side.work.push_front(Work::Write { job, offset: offset + bytes as u64, batch });
            return;
        }
        self.job_step(id, job, bytes == 0);
    }

    fn kept_ended(&mut self, slot: u32) -> Option<(TorrentId, Work)> {
        let keeper = &mut self.downloads.keeper;
        let ended = keeper.running[slot as usize].take();
        let (id, work) = ended.expect("invariant: one completion an operation");
        keeper.free.push(slot);
        if let Some(side) = keeper.sides.get_mut(&id) {
            side.running -= 1;
        }
        Some((id, work))
    }

    /// One part of a piece is written, or can't be.
    fn job_step(&mut self, id: TorrentId, number: u32, failed: bool) {
        let keeper = &mut self.downloads.keeper;
        let Some(job) = keeper.jobs.get_mut(&number) else { return };
        job.failed |= failed;
        job.left -= 1;
        if job.left > 0 {
            return;
        }
        let Some(job) = keeper.jobs.remove(&number) else { return };
        match keeper.sides.get_mut(&id) {
            Some(side) if !job.failed => side.written.push(job),
            _ => self.keeping_over(&job, false),
        }
    }

    /// Completion of a sync of blocks.
    pub(crate) fn kept_synced(&mut self, id: u32, result: io::Result<()>) {
        let Some(side) = self.downloads.keeper.sides.get_mut(&TorrentId(id)) else { return };
        let jobs = side.syncing.take().unwrap_or_default();
        let info_hash = side.shared.info_hash;
        for job in jobs {
            let good = result.is_ok();
            self.keeping_over(&job, good);
            if good {
                let KeptPiece { piece, slot, blocks } = job.kept;
                self.tell(Event::Kept { info_hash, piece, slot, blocks });
            }
        }
    }

    fn keeping_over(&mut self, job: &Job, good: bool) {
        let keeper = &mut self.downloads.keeper;
        let (id, piece) = (job.torrent, job.kept.piece);
        let Some(keeping) = keeper.pieces.get_mut(&(id, piece)) else { return };
        keeping.jobs -= 1;
        if !good {
            keeping.blocks = Box::default();
        }
        if keeping.over {
            keeper.forget(id, piece);
        }
    }

    /// Completion of a read of blocks.
    pub(crate) fn kept_read(&mut self, slot: u32, result: io::Result<usize>, lease: Lease) {
        let Some((id, Work::Read { kept, chunk })) = self.kept_ended(slot) else { return };
        self.restored(id, &kept, chunk, &lease[..result.unwrap_or(0).min(lease.len())]);
    }

    /// `bytes`: of that chunk of the piece, as far as they could be read.
    fn restored(&mut self, id: TorrentId, kept: &KeptPiece, chunk: u32, bytes: &[u8]) {
        let now = self.io.now();
        let Some(fetch) = self.downloads.torrents.get_mut(&id) else { return };
        let Some(partial) = fetch.partials.get_mut(&kept.piece) else { return };
        let per_chunk = CHUNK_BYTES / BLOCK_BYTES;
        for at in kept.numbers().filter(|at| at / per_chunk == chunk) {
            let from = ((at % per_chunk) * BLOCK_BYTES) as usize;
            let length = BLOCK_BYTES.min(partial.length() - at * BLOCK_BYTES) as usize;
            match bytes.get(from..from + length) {
                Some(bytes) => partial.restored(at, bytes),
                None => partial.lost(at),
            }
        }
        if partial.is_whole() {
            let partial = fetch.partials.remove(&kept.piece).expect("invariant: looked up above");
            self.downloads.gathered(id, partial, now);
        } else {
            self.ask_others(id);
        }
    }
}

/// How a side's file is opened, beneath the save folder.
fn open(side: &Side) -> io::Result<Box<OpenRequest>> {
    let writing = side.contents.writing.as_ref();
    let writing = writing.ok_or_else(|| io::Error::from(io::ErrorKind::PermissionDenied))?;
    let path = side.contents.places.parts.join(BLOCKS);
    let path = path.strip_prefix(&writing.folder_path).map_err(io::Error::other)?;
    Ok(Box::new(OpenRequest {
        root: File::from(writing.folder.try_clone()?),
        path: CString::new(path.as_os_str().as_bytes())?,
        direct: false,
        access: Access::Create,
    }))
}

/// Runs of bytes as batches: what follows on what goes with it.
fn batches(runs: Vec<(u32, Share, std::ops::Range<usize>)>) -> Vec<(u32, Box<WriteBatch>)> {
    let mut batches: Vec<(u32, Box<WriteBatch>)> = Vec::new();
    for (at, share, range) in runs {
        match batches.last_mut() {
            Some((start, batch)) if *start + batch.len_bytes() as u32 == at && !batch.is_full() => {
                batch.push(&share, range);
            }
            _ => {
                let mut batch = Box::new(WriteBatch::new());
                batch.push(&share, range);
                batches.push((at, batch));
            }
        }
    }
    batches
}

/// What is gathered of a piece, at its end.
pub(super) fn gathered(partial: Partial) -> Option<Gathered> {
    (partial.here() > 0).then(|| partial.into_gathered())
}
