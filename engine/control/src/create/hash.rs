//! Owns: the SHA-1 of each piece of scanned content, several pieces at a time.
//! Never: keeps more than a window a thread in memory, or a file open longer than it is read.
//! Flow: `make` calls it; threads take the next piece until there is none.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use sha1::{Digest, Sha1};

use super::{Content, Error, at};

/// Called with the bytes hashed so far; `false` stops the work.
pub type Progress<'a> = &'a (dyn Fn(u64) -> bool + Sync);

const WINDOW_BYTES: usize = 256 << 10;
const THREADS_MAX: usize = 8;
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
    let mut hashes = vec![0; pieces as usize * HASH_BYTES];
    let done: Vec<Vec<(u32, [u8; HASH_BYTES])>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| work.run())).collect();
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
    fn run(&self) -> Vec<(u32, [u8; HASH_BYTES])> {
        let mut reader = Reader { work: self, open: None, window: vec![0; WINDOW_BYTES] };
        let mut done = Vec::new();
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.pieces {
                return done;
            }
            match reader.hash(piece) {
                Ok(hash) => done.push((piece, hash)),
                Err(error) => {
                    // Partner: the load before each window. Only to stop soon; nothing rests on it.
                    self.stop.store(true, Ordering::Relaxed);
                    let mut failure = self.failure.lock().expect("invariant: no panic with it");
                    failure.get_or_insert(error);
                    return done;
                }
            }
        }
    }
}

struct Reader<'a> {
    work: &'a Work<'a>,
    /// The file read last: neighbouring pieces are mostly in the same one.
    open: Option<(usize, File, PathBuf)>,
    window: Vec<u8>,
}

impl Reader<'_> {
    fn hash(&mut self, piece: u32) -> Result<[u8; HASH_BYTES], Error> {
        let work = self.work;
        let mut at_byte = u64::from(piece) * work.piece_bytes;
        let end = (at_byte + work.piece_bytes).min(work.content.total_bytes);
        // The last file that starts at or before the piece; empty files before it are passed over.
        let mut index = work.offsets.partition_point(|offset| *offset <= at_byte) - 1;
        let mut hasher = Sha1::new();
        while at_byte < end {
            if work.stop.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let file = &work.content.files[index];
            let file_end = work.offsets[index] + file.length;
            if at_byte >= file_end {
                index += 1;
                continue;
            }
            // Lossless: at most the window.
            let length = (end.min(file_end) - at_byte).min(WINDOW_BYTES as u64) as usize;
            self.read(index, at_byte - work.offsets[index], length)?;
            hasher.update(&self.window[..length]);
            at_byte += length as u64;
            let hashed = work.hashed_bytes.fetch_add(length as u64, Ordering::Relaxed);
            if !(work.progress)(hashed + length as u64) {
                return Err(Error::Cancelled);
            }
        }
        Ok(hasher.finalize().into())
    }

    fn read(&mut self, index: usize, offset: u64, length: usize) -> Result<(), Error> {
        if self.open.as_ref().is_none_or(|(open, ..)| *open != index) {
            let path = self.work.content.file_path(&self.work.content.files[index]);
            let file = File::open(&path).map_err(|source| at(&path, source))?;
            self.open = Some((index, file, path));
        }
        let (_, file, path) = self.open.as_ref().expect("invariant: opened above");
        match file.read_exact_at(&mut self.window[..length], offset) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(Error::Changed(path.clone()))
            }
            Err(source) => Err(at(path, source)),
        }
    }
}
