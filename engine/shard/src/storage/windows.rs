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

/// A window starts at a multiple of this in its file. Mapping costs some microseconds each time,
/// and unmapping interrupts the other cores.
const WINDOW_BYTES: u64 = 8 << 20;
/// Smaller files are read: mapping them costs as much as copying.
const FILE_BYTES_MIN: u64 = 64 << 10;
/// Two for each of as many pieces as are hashed at once at the most: they may lie across two.
const HELD_MAX: usize = 32;

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
    /// `false`: some of it was taken away while it was looked at, and is not the file's.
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
    window: Option<Rc<Window>>,
}

#[derive(Default)]
pub(super) struct Windows {
    /// The longest held first.
    held: VecDeque<Held>,
}

impl Windows {
    fn find(&self, file: FileId, start: u64) -> Option<Option<Rc<Window>>> {
        // From the end: the newest are asked for most.
        let held = self.held.iter().rev().find(|held| held.file == file && held.start == start)?;
        Some(held.window.clone())
    }

    fn hold(&mut self, file: FileId, start: u64, window: Option<Rc<Window>>) {
        if self.held.len() == HELD_MAX {
            self.held.pop_front();
        }
        self.held.push_back(Held { file, start, window });
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
                let start = at / WINDOW_BYTES * WINDOW_BYTES;
                let window = match self.window(io, file, contents, start) {
                    Ok(window) => window,
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

    fn window<I: Io>(
        &mut self,
        io: &mut I,
        id: FileId,
        contents: &Contents,
        start: u64,
    ) -> Result<Rc<Window>, InPlace> {
        if let Some(found) = self.windows.find(id, start) {
            return found.ok_or(InPlace::Not);
        }
        let now = io.now();
        let Some(entry) = self.files.get(id) else { return Err(InPlace::Not) };
        if entry.length_bytes < FILE_BYTES_MIN {
            return Err(InPlace::Not);
        }
        entry.used_at = now;
        let length = (entry.length_bytes - start).min(WINDOW_BYTES) as usize;
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
        let window = io.window(&file, start, length).map(Rc::new);
        self.windows.hold(id, start, window.clone());
        window.ok_or(InPlace::Not)
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
