//! Opens and reads in the kernel, and what becomes of them.
//!
//! Owns: which reads wait (for their file, for a slot, for the machine to recover), which are under
//! way. Never: who wants the bytes. Flow: `gather` wants a chunk -> its file opens -> a slot ->
//! read -> the cache, news.

use std::{collections::VecDeque, io, mem, ops::Range, time::Duration};

use seedring_platform::{
    descriptors::File,
    memory::{Class, Lease},
    op::{Access, Identity, Io, Op, OpenRequest},
};
use seedring_proto::units::FileIndex;

use super::{
    News, Storage,
    cache::{EntryId, Waiter},
    files::{
        FileId, Gone, IDENTITY_AGE_MAX, Place, State, TRANSIENT_REST, TRANSIENT_TRIES_MAX, Verdict,
        relative_to_root,
    },
};
use crate::{
    contract::Trouble,
    stats::Stats,
    token::Target,
    torrent::{Contents, TorrentId},
};

/// A read in the kernel.
struct Reading {
    entry: EntryId,
    file: FileId,
    offset: u64,
    expected: u32,
    tries: u16,
}

/// A read that is still to be submitted.
pub(super) struct Wanted {
    pub entry: EntryId,
    pub file: FileId,
    pub offset: u64,
    pub class: Class,
    pub lease: Lease,
    pub tries: u16,
}

/// Where reads stand. A read whose file is not open waits in the file's entry.
pub(super) struct Reads {
    /// In the kernel, by token.
    under_way: Vec<Option<Reading>>,
    free: Vec<u32>,
    /// Their file is open; they wait for a slot.
    runnable: VecDeque<Wanted>,
    /// The machine could not, for now; by the time of the next attempt.
    later: VecDeque<(Duration, Wanted)>,
    /// The in-flight table was full: the next attempt.
    refused_until: Duration,
}

impl Reads {
    pub fn new(reads_max: usize) -> Self {
        Reads {
            under_way: (0..reads_max).map(|_| None).collect(),
            free: (0..reads_max as u32).rev().collect(),
            runnable: VecDeque::new(),
            later: VecDeque::new(),
            refused_until: Duration::ZERO,
        }
    }

    /// Takes out the waiting reads of some files.
    fn take_of(&mut self, gone: impl Fn(FileId) -> bool) -> Vec<Wanted> {
        let mut taken = Vec::new();
        if self.runnable.iter().any(|wanted| gone(wanted.file)) {
            for wanted in mem::take(&mut self.runnable) {
                if gone(wanted.file) {
                    taken.push(wanted);
                } else {
                    self.runnable.push_back(wanted);
                }
            }
        }
        for (at, wanted) in mem::take(&mut self.later) {
            if gone(wanted.file) {
                taken.push(wanted);
            } else {
                self.later.push_back((at, wanted));
            }
        }
        taken
    }
}

/// What passes by itself: the machine is short of something just now, or a signal came between.
fn is_transient(error: &io::Error) -> bool {
    /// Too many open files, in the system and in the process; `ErrorKind` has no names for them.
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    use io::ErrorKind::{Interrupted, OutOfMemory, WouldBlock};
    matches!(error.kind(), Interrupted | OutOfMemory | WouldBlock)
        || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

impl Storage {
    /// Takes a chunk's read on. The file opens first where it is not open.
    pub(super) fn want<I: Io>(
        &mut self,
        io: &mut I,
        wanted: Wanted,
        contents: &Contents,
        index: FileIndex,
    ) {
        let id = wanted.file;
        self.files.count_read(id, 1);
        let entry = self.files.get(id).expect("invariant: looked up by the caller");
        if matches!(entry.state, State::Open(_)) {
            self.reads.runnable.push_back(wanted);
        } else {
            entry.waiting.push_back(wanted);
            self.open(id, contents, index);
        }
        self.go_on(io);
    }

    /// Sees to it that a file gets its turn to be opened, if it is closed.
    pub(super) fn open(&mut self, id: FileId, contents: &Contents, index: FileIndex) {
        let entry = self.files.get(id).expect("invariant: looked up by the caller");
        if matches!(entry.state, State::Closed) {
            let direct = contents.is_direct(index);
            let path = relative_to_root(&contents.path(index));
            let path = path.expect("invariant: control canonicalised it, layouts hold no NUL");
            self.files.want_open(id, Place { path, direct });
        }
    }

    /// Hands to the kernel what waits, as far as limits go. Cheap where nothing does.
    pub fn go_on<I: Io>(&mut self, io: &mut I) {
        let now = io.now();
        self.cache.now = now;
        while self.reads.later.front().is_some_and(|(at, _)| *at <= now) {
            self.reads.runnable.extend(self.reads.later.pop_front().map(|(_, wanted)| wanted));
        }
        while let Some((id, place)) = self.files.next_to_open(now) {
            let Place { path, direct } = place;
            let (root, access) = (self.root.clone(), Access::Read);
            let request = Box::new(OpenRequest { root, path, direct, access });
            let op = Op::Open { token: Target::Open(id).token(), request };
            if io.submit(op).is_err() {
                self.files.open_refused(id, now);
                break;
            }
        }
        self.submit_reads(io, now);
    }

    /// When `go_on` should be called again; what waits for completions is not in it, and what is
    /// due now has been tried by `go_on`.
    pub fn next_attempt(&self, now: Duration) -> Option<Duration> {
        let reads = &self.reads;
        let later = reads.later.front().map(|(at, _)| *at);
        let refused = (!reads.runnable.is_empty()).then_some(reads.refused_until);
        let due = [later, refused, self.files.rests_until()].into_iter().flatten();
        due.filter(|at| *at > now).min()
    }

    fn submit_reads<I: Io>(&mut self, io: &mut I, now: Duration) {
        while now >= self.reads.refused_until
            && let Some(slot) = self.reads.free.pop()
        {
            let Some(wanted) = self.reads.runnable.pop_front() else {
                self.reads.free.push(slot);
                return;
            };
            if !self.submit_read(io, slot, wanted, now) {
                self.reads.free.push(slot);
                self.reads.refused_until = now + TRANSIENT_REST;
                return;
            }
        }
    }

    /// `false`: the in-flight table is full, the read waits on.
    fn submit_read<I: Io>(&mut self, io: &mut I, slot: u32, wanted: Wanted, now: Duration) -> bool {
        let Wanted { entry, file: id, offset, class, lease, tries } = wanted;
        let known = self.files.get(id).expect("invariant: what waits for a file goes with it");
        let State::Open(file) = &known.state else {
            unreachable!("invariant: a file that is read stays open")
        };
        let expected = (known.length_bytes - offset).min(class.bytes() as u64) as u32;
        let align = known.identity.and_then(|i| i.direct).map_or(1, |d| d.offset_bytes.max(1));
        let length = expected.next_multiple_of(align).min(class.bytes() as u32);
        let (token, file) = (Target::Read(slot).token(), file.clone());
        match io.submit(Op::Read { token, file, offset, length, lease }) {
            Ok(()) => {
                let reading = Reading { entry, file: id, offset, expected, tries };
                self.reads.under_way[slot as usize] = Some(reading);
                self.look_again(io, id, now);
                true
            }
            Err(Op::Read { lease, .. }) => {
                let wanted = Wanted { entry, file: id, offset, class, lease, tries };
                self.reads.runnable.push_front(wanted);
                false
            }
            Err(_) => unreachable!("invariant: a refused operation comes back"),
        }
    }

    /// A file that is being read is looked at each second.
    pub(super) fn look_again<I: Io>(&mut self, io: &mut I, id: FileId, now: Duration) {
        let Some(entry) = self.files.get(id) else { return };
        let State::Open(file) = &entry.state else { return };
        if entry.looking || now.saturating_sub(entry.looked_at) < IDENTITY_AGE_MAX {
            return;
        }
        let op = Op::Identify { token: Target::Identify(id).token(), file: file.clone() };
        entry.looking = io.submit(op).is_ok();
    }

    /// Completion of `Op::Open`.
    pub fn opened<I: Io>(
        &mut self,
        io: &mut I,
        id: FileId,
        result: io::Result<(File, Identity)>,
        news: &mut Vec<News>,
    ) {
        let now = io.now();
        if self.files.open_ended(id) {
            match result {
                Ok((file, identity)) => match self.files.opened(id, file, identity, now) {
                    Verdict::Same => {
                        let entry = self.files.get(id).expect("invariant: opened just now");
                        if mem::take(&mut entry.is_awaited) {
                            news.push(News::Wake(Waiter::Verify));
                        }
                        self.reads.runnable.append(&mut entry.waiting);
                    }
                    Verdict::Trouble(trouble) => {
                        self.trouble(id, trouble, (None, Some(identity)), now, news);
                    }
                },
                Err(error) if is_transient(&error) && self.files.open_later(id, now) => {
                    self.files.give_back_half();
                }
                Err(error) => self.trouble(id, Trouble::Io(error), (None, None), now, news),
            }
        }
        self.go_on(io);
    }

    /// Completion of `Op::Identify`.
    pub fn identified<I: Io>(
        &mut self,
        io: &mut I,
        id: FileId,
        result: io::Result<Identity>,
        news: &mut Vec<News>,
    ) {
        let now = io.now();
        match result.map(|found| (self.files.identified(id, found, now), found)) {
            Ok((Verdict::Same, _)) => {}
            Ok((Verdict::Trouble(trouble), found)) => {
                self.trouble(id, trouble, (None, Some(found)), now, news);
            }
            Err(error) if is_transient(&error) => {
                // The next read looks again.
                if let Some(entry) = self.files.get(id) {
                    entry.looking = false;
                }
            }
            Err(error) => self.trouble(id, Trouble::Io(error), (None, None), now, news),
        }
    }

    /// Completion of `Op::Read`.
    pub fn read<I: Io>(
        &mut self,
        io: &mut I,
        stats: &mut Stats,
        slot: u32,
        result: io::Result<usize>,
        lease: Lease,
        news: &mut Vec<News>,
    ) {
        let now = io.now();
        self.cache.now = now;
        let reading = self.reads.under_way[slot as usize].take();
        let reading = reading.expect("invariant: one completion a read");
        self.reads.free.push(slot);
        let Reading { entry, file, offset, expected, tries } = reading;
        stats.reads += 1;
        let current = self.files.get(file);
        let is_open = current.as_ref().is_some_and(|f| matches!(f.state, State::Open(_)));
        let current = current.map(|entry| (entry.length_bytes, entry.identity));
        let again = matches!(&result, Err(error) if is_transient(error));
        if again && is_open && tries < TRANSIENT_TRIES_MAX {
            // Still counted as a read of its file, which therefore stays open.
            let (class, tries) = (lease.class(), tries + 1);
            let wanted = Wanted { entry, file, offset, class, lease, tries };
            self.reads.later.push_back((now + TRANSIENT_REST, wanted));
            return self.go_on(io);
        }
        self.files.count_read(file, -1);
        match (result, current) {
            (_, None) => self.fail_chunk(entry, news), // replaced or dropped meanwhile
            (Ok(n), Some((_, identity))) if n >= expected as usize => {
                stats.read_bytes += n as u64;
                stats.direct_reads += u64::from(identity.is_some_and(|i| i.direct.is_some()));
                let waiters = self.cache.loaded(entry, lease.freeze(expected as usize));
                news.extend(waiters.into_iter().map(News::Wake));
            }
            (result, Some((length, _))) => {
                let trouble = match result {
                    Ok(n) => {
                        Trouble::Short { expected_bytes: length, found_bytes: offset + n as u64 }
                    }
                    Err(error) => Trouble::Io(error),
                };
                drop(lease);
                self.fail_chunk(entry, news);
                let doubt = offset..offset + u64::from(expected);
                self.trouble(file, trouble, (Some(doubt), None), now, news);
            }
        }
        self.go_on(io);
    }

    fn fail_chunk(&mut self, entry: EntryId, news: &mut Vec<News>) {
        news.extend(self.cache.failed(entry).into_iter().map(News::Wake));
    }

    /// A file is in trouble: what waits for it fails, the shard hears why, which bytes are in doubt
    /// where a read says so, and what the file was found to be.
    fn trouble(
        &mut self,
        id: FileId,
        trouble: Trouble,
        (doubt, found): (Option<Range<u64>>, Option<Identity>),
        now: Duration,
        news: &mut Vec<News>,
    ) {
        let Some(entry) = self.files.get(id) else { return };
        let (torrent, file, length) = (entry.torrent, entry.index, entry.length_bytes);
        let range = match trouble {
            // Bytes that were there are in doubt; a file that can't be opened says nothing of them.
            Trouble::Changed | Trouble::Short { .. } if doubt.is_some() => doubt,
            Trouble::Changed | Trouble::Short { .. } => {
                self.files.is_news(id, &trouble).then_some(0..length)
            }
            Trouble::Io(_) => doubt,
        };
        let waiting = match trouble {
            Trouble::Changed => self.files.replace(id, now),
            _ => self.files.fail(id, now),
        };
        self.forget_files(vec![(id, waiting)], news);
        news.push(News::Trouble { torrent, file, trouble, range, found });
    }

    /// Drops the chunks of these files; the reads that waited for them fail.
    fn forget_files(&mut self, gone: Vec<Gone>, news: &mut Vec<News>) {
        if gone.is_empty() {
            return;
        }
        let mut ids: Vec<FileId> = gone.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        self.cache.drop_files(&ids);
        self.windows.drop_files(&ids);
        let mut failed = self.reads.take_of(|id| ids.binary_search(&id).is_ok());
        failed.extend(gone.into_iter().flat_map(|(_, waiting)| waiting));
        for wanted in failed {
            self.files.count_read(wanted.file, -1);
            self.fail_chunk(wanted.entry, news);
        }
    }

    /// Forgets a torrent's files and chunks (it goes cold or leaves).
    pub fn drop_torrent(&mut self, torrent: TorrentId, news: &mut Vec<News>) {
        let gone = self.files.drop_torrent(torrent);
        self.forget_files(gone, news);
    }

    /// Compares a torrent's epoch with the one its files belong to: where another shard found that
    /// a file changed, no chunk of before is served or hashed here either.
    pub fn see_epoch(&mut self, torrent: TorrentId, epoch: u32, news: &mut Vec<News>) {
        let gone = self.files.see_epoch(torrent, epoch);
        self.forget_files(gone, news);
    }

    /// This shard moved a torrent's epoch on from `before`: the news that made it do so has come
    /// from here, where the file is another one already.
    pub fn moved_epoch(&mut self, torrent: TorrentId, before: u32) {
        self.files.moved_epoch(torrent, before);
    }

    /// The change just found was dealt with when another shard found it: the file is taken as it
    /// was found, and as nothing else.
    pub fn known_change(&mut self, torrent: TorrentId, file: FileIndex, found: Identity) {
        self.files.adopt(torrent, file, found);
    }

    /// Lets go of all memory that is not in the kernel's hands (shutdown).
    pub fn clear(&mut self, news: &mut Vec<News>) {
        let mut waiting = self.files.clear();
        waiting.extend(self.reads.take_of(|_| true));
        for wanted in waiting {
            self.files.count_read(wanted.file, -1);
            self.fail_chunk(wanted.entry, news);
        }
        self.cache.clear();
        self.windows.clear();
        self.zeros = None;
    }
}
