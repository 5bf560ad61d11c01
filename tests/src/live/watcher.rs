//! Owns: a leech that never rests: it fetches random blocks of several torrents and compares each
//! byte.
//! Never: minds being refused: only wrong bytes count.
//! Flow: started beside a test that does harm to the engine's disk; asked at its end.

use super::peer::{BLOCK_BYTES, Peer};
use super::torrent::SingleFile;
use crate::sim::Rng;
use anyhow::{Result, ensure};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Blocks fetched over one connection.
const BLOCKS: u32 = 16;
/// Between two connections: it must not take the processor for itself.
const REST: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct Score {
    stop: AtomicBool,
    right: AtomicU64,
    /// When how many bytes of which file came, since it was last asked.
    received: Mutex<HashMap<String, Vec<(Instant, u64)>>>,
    wrong: Mutex<Vec<String>>,
}

#[derive(Debug)]
pub struct Watcher {
    score: Arc<Score>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Visits `files` in turn, for ever; one that is named often is visited often.
    pub fn start(engine: SocketAddr, files: Vec<SingleFile>) -> Self {
        let score = Arc::new(Score::default());
        let theirs = score.clone();
        let thread = std::thread::spawn(move || {
            let mut rng = Rng::new(5);
            while !theirs.stop.load(Ordering::Relaxed) {
                for file in &files {
                    // Away, choked, closed: all the same.
                    let _ = visit(engine, file, &mut rng, &theirs);
                    if theirs.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    std::thread::sleep(REST);
                }
            }
        });
        Self { score, thread: Some(thread) }
    }

    /// Blocks that came and were right.
    pub fn right(&self) -> u64 {
        self.score.right.load(Ordering::Relaxed)
    }

    /// Takes the list of what came since the last call, by the file's name.
    pub fn take_received(&self) -> HashMap<String, Vec<(Instant, u64)>> {
        std::mem::take(&mut self.score.received.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// No block ever held a wrong byte.
    pub fn check(&self) -> Result<()> {
        let wrong = self.score.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(wrong.is_empty(), "wrong bytes were sent: {wrong:?}");
        Ok(())
    }
}

impl Score {
    fn count(&self, file: &SingleFile, bytes: u64) {
        self.right.fetch_add(1, Ordering::Relaxed);
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        received.entry(file.name.clone()).or_default().push((Instant::now(), bytes));
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.score.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn visit(engine: SocketAddr, file: &SingleFile, rng: &mut Rng, score: &Score) -> Result<()> {
    let mut peer = Peer::unchoked(engine, &file.info_hash)?;
    for _ in 0..BLOCKS {
        if score.stop.load(Ordering::Relaxed) {
            break;
        }
        let piece = rng.below(u64::from(file.piece_count())) as u32;
        let blocks = u64::from(file.piece_length(piece).div_ceil(BLOCK_BYTES));
        let begin = rng.below(blocks) as u32 * BLOCK_BYTES;
        let wanted = file.block(piece, begin);
        match peer.fetch(piece, begin, u32::try_from(wanted.len())?)? {
            Some(bytes) if bytes == wanted => score.count(file, bytes.len() as u64),
            Some(_) => {
                let mut wrong = score.wrong.lock().unwrap_or_else(PoisonError::into_inner);
                wrong.push(format!("{} {piece}/{begin}", file.name));
            }
            None => {}
        }
    }
    Ok(())
}
