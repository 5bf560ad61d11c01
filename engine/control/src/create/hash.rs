//! Owns: the SHA-1 of each piece of scanned content, many pieces at a time.
//! Never: keeps more than a window a lane in memory, or many files open.
//! Flow: `make` calls it; each thread has as many lanes as hash best side by side, and each lane
//! takes the next piece until there is none.

use std::collections::VecDeque;
use std::fs::File;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use rustix::fs::{Advice, fadvise};
use seedring_platform::hash::{Feed, Pace, PieceHasher, Sha1Hash, update_many};

use super::{Content, Error, at};

/// Called with the bytes hashed so far; `false` stops the work.
pub type Progress<'a> = &'a (dyn Fn(u64) -> bool + Sync);

/// What a lane reads in one go.
const WINDOW_BYTES: usize = 256 << 10;
/// What a lane announces to the kernel in one go: lanes read at different places, and a disk that
/// has to seek for each of their windows would be slow.
const AHEAD_BYTES: u64 = 4 << 20;
const THREADS_MAX: usize = 8;
/// Open files of a thread.
const OPEN_MAX: usize = 16;
const HASH_BYTES: usize = 20;

struct Work<'a> {
    content: &'a Content,
    /// Where each file starts in the torrent.
    offsets: Vec<u64>,
    piece_bytes: u64,
    pieces: u32,
    next: AtomicU32,
    hashed_bytes: AtomicU64,
    /// Set by whichever thread fails first; the others see it before their next window.
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
    progress: Progress<'a>,
}

pub(super) fn hash_pieces(
    content: &Content,
    piece_bytes: u32,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Vec<u8>, Error> {
    let pieces = content.total_bytes.div_ceil(u64::from(piece_bytes));
    let pieces = u32::try_from(pieces).expect("invariant: make bounds the number of pieces");
    let mut offsets = Vec::with_capacity(content.files.len());
    let mut offset = 0;
    for file in &content.files {
        offsets.push(offset);
        offset += file.length;
    }
    let work = Work {
        content,
        offsets,
        piece_bytes: u64::from(piece_bytes),
        pieces,
        next: AtomicU32::new(0),
        hashed_bytes: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
        progress,
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if threads == 0 { cores.min(THREADS_MAX) } else { threads.min(THREADS_MAX) };
    let threads = threads.clamp(1, pieces as usize);
    let lanes = Pace::measured().streams().min((pieces as usize).div_ceil(threads));
    let mut hashes = vec![0; pieces as usize * HASH_BYTES];
    let done: Vec<Vec<(u32, Sha1Hash)>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| work.run(lanes))).collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("invariant: it never panics"))
            .collect()
    });
    let failure = work.failure.into_inner().expect("invariant: no thread panicked with it");
    if let Some(error) = failure {
        return Err(error);
    }
    for (piece, hash) in done.into_iter().flatten() {
        hashes[piece as usize * HASH_BYTES..][..HASH_BYTES].copy_from_slice(&hash);
    }
    Ok(hashes)
}

impl Work<'_> {
    fn run(&self, lanes: usize) -> Vec<(u32, Sha1Hash)> {
        let mut done = Vec::new();
        if let Err(error) = self.hash_side_by_side(lanes, &mut done) {
            // Partner: the load before each window. Only to stop soon; nothing rests on it.
            self.stop.store(true, Ordering::Relaxed);
            let mut failure = self.failure.lock().expect("invariant: no panic with it");
            failure.get_or_insert(error);
        }
        done
    }

    /// All lanes fill their windows, then all windows are hashed.
    fn hash_side_by_side(
        &self,
        lanes: usize,
        done: &mut Vec<(u32, Sha1Hash)>,
    ) -> Result<(), Error> {
        let mut reader = Reader { work: self, open: VecDeque::new() };
        let mut lanes: Vec<Lane> = (0..lanes).map_while(|_| self.next_piece()).collect();
        while !lanes.is_empty() {
            let mut bytes = 0;
            for lane in &mut lanes {
                reader.fill(lane)?;
                bytes += lane.filled as u64;
            }
            hash_windows(&mut lanes);
            let hashed = self.hashed_bytes.fetch_add(bytes, Ordering::Relaxed);
            if !(self.progress)(hashed + bytes) {
                return Err(Error::Cancelled);
            }
            let mut index = 0;
            while index < lanes.len() {
                let lane = &mut lanes[index];
                if lane.at_byte < lane.end {
                    index += 1;
                    continue;
                }
                done.push((lane.piece, std::mem::take(&mut lane.hasher).finish()));
                match self.next_piece() {
                    Some(next) => {
                        let window = std::mem::take(&mut lane.window);
                        *lane = Lane { window, ..next };
                    }
                    None => drop(lanes.swap_remove(index)),
                }
            }
        }
        Ok(())
    }

    fn next_piece(&self) -> Option<Lane> {
        let piece = self.next.fetch_add(1, Ordering::Relaxed);
        if piece >= self.pieces {
            return None;
        }
        let at_byte = u64::from(piece) * self.piece_bytes;
        Some(Lane {
            piece,
            at_byte,
            end: (at_byte + self.piece_bytes).min(self.content.total_bytes),
            // The last that starts at or before the piece; empty ones before it are passed over.
            file: self.offsets.partition_point(|offset| *offset <= at_byte) - 1,
            announced_to: 0,
            hasher: PieceHasher::new(),
            window: Vec::new(),
            filled: 0,
        })
    }
}

fn hash_windows(lanes: &mut [Lane]) {
    let parts = lanes.iter_mut().map(|lane| (&mut lane.hasher, &lane.window[..lane.filled]));
    let (hashers, windows): (Vec<&mut PieceHasher>, Vec<&[u8]>) = parts.unzip();
    let pairs = hashers.into_iter().zip(&windows);
    let feed = |(hasher, window)| Feed { hasher, parts: std::slice::from_ref(window) };
    update_many(&mut pairs.map(feed).collect::<Vec<_>>());
}

/// A piece that is being read and hashed.
struct Lane {
    piece: u32,
    /// Where in the torrent it goes on, and where the piece ends.
    at_byte: u64,
    end: u64,
    /// The file that `at_byte` is in.
    file: usize,
    /// Bytes of the torrent that the kernel was told of.
    announced_to: u64,
    hasher: PieceHasher,
    window: Vec<u8>,
    filled: usize,
}

struct Reader<'a> {
    work: &'a Work<'a>,
    /// Files read last, the last one first: neighbouring pieces are mostly in the same ones.
    open: VecDeque<(usize, File, PathBuf)>,
}

impl Reader<'_> {
    /// Reads the next window of a piece, over as many files as it takes.
    fn fill(&mut self, lane: &mut Lane) -> Result<(), Error> {
        let work = self.work;
        if work.stop.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        // Lossless: at most the window.
        let wanted = (lane.end - lane.at_byte).min(WINDOW_BYTES as u64) as usize;
        // The first window of a lane is its longest.
        lane.window.resize(lane.window.len().max(wanted), 0);
        lane.filled = 0;
        while lane.filled < wanted {
            let start = work.offsets[lane.file];
            let file_end = start + work.content.files[lane.file].length;
            if lane.at_byte >= file_end {
                lane.file += 1;
                continue;
            }
            let left = (wanted - lane.filled) as u64;
            let length = (file_end - lane.at_byte).min(left) as usize;
            let (_, file, path) = self.open(lane.file)?;
            let offset = lane.at_byte - start;
            if lane.at_byte >= lane.announced_to {
                let ahead = (file_end.min(lane.end) - lane.at_byte).min(AHEAD_BYTES);
                // Only advice: where the file system takes none, reading is as good as before.
                let _ = fadvise(file, offset, NonZero::new(ahead), Advice::WillNeed);
                lane.announced_to = lane.at_byte + ahead;
            }
            let into = &mut lane.window[lane.filled..lane.filled + length];
            match file.read_exact_at(into, offset) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Err(Error::Changed(path.clone()));
                }
                Err(source) => return Err(at(path, source)),
            }
            lane.filled += length;
            lane.at_byte += length as u64;
        }
        Ok(())
    }

    fn open(&mut self, index: usize) -> Result<&(usize, File, PathBuf), Error> {
        match self.open.iter().position(|(open, ..)| *open == index) {
            Some(0) => {}
            Some(place) => self.open.make_contiguous()[..=place].rotate_right(1),
            None => {
                let path = self.work.content.file_path(&self.work.content.files[index]);
                let file = File::open(&path).map_err(|source| at(&path, source))?;
                self.open.truncate(OPEN_MAX - 1);
                self.open.push_front((index, file, path));
            }
        }
        Ok(&self.open[0])
    }
}
