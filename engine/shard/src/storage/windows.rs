//! Content that is hashed where it lies in the page cache.
//!
//! Owns: the windows held, and what was found not to be in memory. Never: reads, the block cache.
//! Flow: verification asks for a range; where all of it is in memory it is seen in place, else read
//! (`gather`).
//!
//! A copy out of the page cache costs half as much as hashing what was copied, and content in
//! memory is not read from the disk again. Only of files that nobody here writes to: what a failed
//! sync left in the page cache proves nothing.

use std::{collections::VecDeque, ops::Deref, rc::Rc};

use seedring_platform::{memory::Share, op::Io, window::Window};

use super::{
    Part, Storage,
    files::{FileId, State},
};
use crate::torrent::{Contents, TorrentId};

/// A window starts at a multiple of its length in its file. Letting its pages go interrupts the
/// other cores. Where not all of a large one is in memory, a
/// small one may be: a page that the kernel took back does not have 8 MiB read from the disk.
const WINDOW_BYTES: [u64; 2] = [8 << 20, 1 << 20];
/// Smaller files are read: mapping them costs as much as copying.
const FILE_BYTES_MIN: u64 = 64 << 10;
/// Two of each length for as many pieces as are hashed at once at the most: they may lie across
/// two.
const HELD_MAX: usize = 64;
const HELD_BYTES_MAX: u64 = 32 * WINDOW_BYTES[0];

/// Bytes that are to be hashed: `from .. to` of a chunk or a window.
pub struct Seen {
    source: Source,
    from: usize,
    to: usize,
}

enum Source {
    Chunk(Share),
    Window(Rc<Window>),
}

impl Seen {
    /// `false`: some of it, or of what lies near it, was taken away while it was looked at.
    pub fn is_whole(&self) -> bool {
        match &self.source {
            Source::Chunk(_) => true,
            Source::Window(window) => window.is_whole(),
        }
    }
}

impl From<Part> for Seen {
    fn from(Part { share, from, to }: Part) -> Seen {
        Seen { source: Source::Chunk(share), from, to }
    }
}

impl Deref for Seen {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.source {
            Source::Chunk(share) => &share[self.from..self.to],
            Source::Window(window) => &window[self.from..self.to],
        }
    }
}

/// What a look for bytes in memory found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InPlace {
    /// All of them.
    Seen,
    /// A file is being opened; verification hears of it.
    Opening,
    /// They have to be read.
    Not,
}

/// A window of a file, or `None`: it was looked for, and has to be read.
struct Held {
    file: FileId,
    start: u64,
    /// One of `WINDOW_BYTES`, also where the file ends before.
    bytes: u64,
    window: Option<Rc<Window>>,
}

#[derive(Default)]
pub(super) struct Windows {
    /// The longest held first.
    held: VecDeque<Held>,
}

impl Windows {
    fn find(&self, file: FileId, start: u64, bytes: u64) -> Option<Option<Rc<Window>>> {
        let is_it = |held: &&Held| (held.file, held.start, held.bytes) == (file, start, bytes);
        // From the end: the newest are asked for most.
        Some(self.held.iter().rev().find(is_it)?.window.clone())
    }

    fn hold(&mut self, held: Held) {
        let mapped = |held: &Held| if held.window.is_some() { held.bytes } else { 0 };
        let sum = |all: &VecDeque<Held>| all.iter().map(mapped).sum::<u64>();
        while self.held.len() >= HELD_MAX || sum(&self.held) + mapped(&held) > HELD_BYTES_MAX {
            self.held.pop_front();
        }
        self.held.push_back(held);
    }

    /// What is not whole any more has to be read.
    fn shut_torn(&mut self) {
        for held in &mut self.held {
            held.window.take_if(|window| !window.is_whole());
        }
    }

    pub fn drop_files(&mut self, files: &[FileId]) {
        self.held.retain(|held| files.binary_search(&held.file).is_err());
    }

    pub fn clear(&mut self) {
        self.held.clear();
    }
}

impl Storage {
    /// Looks for `length` bytes at `offset` of a torrent in memory; `seen` grows only on `Seen`.
    pub fn see_in_place<I: Io>(
        &mut self,
        io: &mut I,
        torrent: TorrentId,
        contents: &Contents,
        (offset, length): (u64, u32),
        seen: &mut Vec<Seen>,
    ) -> InPlace {
        if !self.in_place || contents.writing.is_some() {
            return InPlace::Not;
        }
        let before = seen.len();
        for segment in contents.layout.segments(offset, u64::from(length)) {
            if segment.padding {
                let mut zeros = Vec::new();
                self.gather_zeros(segment.length, &mut zeros);
                seen.extend(zeros.into_iter().map(Seen::from));
                continue;
            }
            let file = self.files.id(torrent, contents, segment.file);
            let (mut at, end) = (segment.offset, segment.offset + segment.length);
            while at < end {
                let (window, start) = match self.window(io, file, contents, at) {
                    Ok(found) => found,
                    Err(why) => {
                        seen.truncate(before);
                        return why;
                    }
                };
                let (from, to) = ((at - start) as usize, window.len().min((end - start) as usize));
                seen.push(Seen { source: Source::Window(window), from, to });
                at = start + to as u64;
            }
        }
        InPlace::Seen
    }

    /// The window that `at` lies in, and where it starts.
    fn window<I: Io>(
        &mut self,
        io: &mut I,
        file: FileId,
        contents: &Contents,
        at: u64,
    ) -> Result<(Rc<Window>, u64), InPlace> {
        for bytes in WINDOW_BYTES {
            let start = at / bytes * bytes;
            let window = match self.windows.find(file, start, bytes) {
                Some(known) => known,
                None => {
                    let window = self.look_in_memory(io, file, contents, start, bytes)?;
                    self.windows.hold(Held { file, start, bytes, window: window.clone() });
                    window
                }
            };
            if let Some(window) = window {
                return Ok((window, start));
            }
        }
        Err(InPlace::Not)
    }

    /// `Ok(None)`: not all of it is in memory.
    fn look_in_memory<I: Io>(
        &mut self,
        io: &mut I,
        id: FileId,
        contents: &Contents,
        start: u64,
        bytes: u64,
    ) -> Result<Option<Rc<Window>>, InPlace> {
        let now = io.now();
        let Some(entry) = self.files.get(id) else { return Err(InPlace::Not) };
        if entry.length_bytes < FILE_BYTES_MIN {
            return Err(InPlace::Not);
        }
        entry.used_at = now;
        let length = (entry.length_bytes - start).min(bytes) as usize;
        let index = entry.index;
        let file = match &entry.state {
            State::Open(file) => file.clone(),
            State::Failed(_) => return Err(InPlace::Not),
            State::Closed | State::Queued | State::Opening => {
                entry.is_awaited = true;
                self.open(id, contents, index);
                self.go_on(io);
                return Err(InPlace::Opening);
            }
        };
        self.look_again(io, id, now);
        Ok(io.window(&file, start, length).map(Rc::new))
    }

    /// Some of what was seen was not whole: it is read from now on.
    pub fn shut_torn_windows(&mut self) {
        self.windows.shut_torn();
    }

    /// Nothing is verified now.
    pub fn close_windows(&mut self) {
        self.windows.clear();
    }
}
