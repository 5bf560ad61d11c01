//! Owns: a seed that dials the engine from an address of its own, honest or in one way hostile.
//! Never: judges: it counts what it was asked for and what it sent; the test reads the counts.
//! Flow: a thread dials, shakes hands, answers frames by its [`Manner`], and dials again when the
//! connection is closed, until it is dropped. So it outlives engines that a test kills.

use super::engine::kill;
use super::frames::Frames;
use super::peer::{BLOCK_BYTES, handshake, open_from};
use super::torrent::SingleFile;
use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const REDIAL: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_millis(20);
/// Of unasked blocks and of addresses: many, and yet sent in a moment.
const UNASKED_BLOCKS: u32 = 1_000;
const PEX_ADDRESSES: u32 = 10_000;
const PEX_MESSAGE_ADDRESSES: u32 = 500;
/// For the engine to have taken half a block before it is killed.
const HALF_RECEIVED: Duration = Duration::from_millis(3);
/// Requests that a seed holds: clients of today queue up to 2,000.
const REQUESTS_MAX: usize = 4_096;

/// How a seed treats those who ask it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Honest,
    /// One byte of each block is another.
    WrongBytes,
    /// Answers with blocks that nobody asked for.
    Unasked,
    /// Begins a block and sends a byte of it every 20 ms, whole after five minutes.
    EndlessBlock,
    /// Announces a frame of 2 GiB.
    HugeFrame,
    /// Closes in the middle of the first block.
    Vanishes,
    /// Never unchokes.
    Chokes,
    /// Unchokes, and chokes again as soon as it is asked.
    ChokesWhenAsked,
    /// Rejects each request (BEP 6).
    Rejects,
    /// Claims all pieces and never answers: it has none of them.
    Claims,
    /// A bitfield with a byte too many.
    LongBitfield,
    /// `have` of a piece that is not there.
    HaveOutOfRange,
    /// Honest, and names 10,000 peers that do not exist.
    FloodsPex,
}

/// A block that was sent whole.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub at: Instant,
    pub piece: u32,
    pub begin: u32,
    pub length: u32,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// Bytes a second; 0: as fast as it goes.
    rate: AtomicU64,
    connections: AtomicU64,
    requests: AtomicU64,
    sent: Mutex<Vec<Sent>>,
    /// Blocks until a process is killed in the middle of one, and its id.
    trap: Mutex<Option<(u32, u32)>>,
    sprung: AtomicBool,
}

#[derive(Debug)]
pub struct Seed {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Seed {
    /// Dials `engine` from the address `from`, again and again, until it is dropped.
    pub fn start(
        file: &Arc<SingleFile>,
        engine: SocketAddr,
        from: Ipv4Addr,
        manner: Manner,
    ) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            rate: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            sent: Mutex::new(Vec::new()),
            trap: Mutex::new(None),
            sprung: AtomicBool::new(false),
        });
        let (theirs, file) = (Arc::clone(&shared), Arc::clone(file));
        let thread = std::thread::spawn(move || {
            while !theirs.stop.load(Ordering::Relaxed) {
                // Closed, refused, or the engine is not there: all the same to a seed.
                let _ = Upload::serve(&file, engine, from, manner, &theirs);
                std::thread::sleep(REDIAL);
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// Bytes a second from now on; 0: as fast as it goes.
    pub fn set_rate(&self, bytes_per_s: u64) {
        self.shared.rate.store(bytes_per_s, Ordering::Relaxed);
    }

    /// Connections on which the engine shook hands.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Kills the process `pid` when it has half of the `nth` block from now on.
    pub fn set_trap(&self, pid: u32, nth: u32) {
        *self.shared.trap.lock().unwrap_or_else(PoisonError::into_inner) = Some((nth, pid));
        self.shared.sprung.store(false, Ordering::Relaxed);
    }

    /// Whether the trap has killed; it is taken away.
    pub fn take_trap(&self) -> bool {
        *self.shared.trap.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.shared.sprung.swap(false, Ordering::Relaxed)
    }

    /// Takes the list of blocks sent since the last call.
    pub fn take_sent(&self) -> Vec<Sent> {
        std::mem::take(&mut self.shared.sent.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared {
    /// The process to kill in the middle of this block, if it is the one.
    fn springs(&self) -> Option<u32> {
        let mut trap = self.trap.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, pid) = trap.as_mut()?;
        *left = left.saturating_sub(1);
        if *left > 0 {
            return None;
        }
        let pid = *pid;
        *trap = None;
        self.sprung.store(true, Ordering::Relaxed);
        Some(pid)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    piece: u32,
    begin: u32,
    length: u32,
}

/// One connection.
struct Upload<'a> {
    file: &'a SingleFile,
    manner: Manner,
    shared: &'a Shared,
    frames: Frames,
    queue: VecDeque<Request>,
    /// When the rate allows the next block.
    next_at: Instant,
}

impl<'a> Upload<'a> {
    fn serve(
        file: &'a SingleFile,
        engine: SocketAddr,
        from: Ipv4Addr,
        manner: Manner,
        shared: &'a Shared,
    ) -> Result<()> {
        let mut frames = Frames::new(open_from(from, engine)?)?;
        frames.send_raw(&handshake(&file.info_hash)?)?;
        frames.take_handshake(&file.info_hash)?;
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let (queue, next_at) = (VecDeque::new(), Instant::now());
        let mut upload = Self { file, manner, shared, frames, queue, next_at };
        upload.open()?;
        while !shared.stop.load(Ordering::Relaxed) {
            let wait = if upload.queue.is_empty() { IDLE } else { Duration::from_millis(1) };
            while let Some((id, payload)) = upload.frames.next(wait)? {
                upload.hear(id, &payload)?;
            }
            upload.answer()?;
        }
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        match self.manner {
            Manner::HugeFrame => return self.frames.send_raw(&[0x7F, 0xFF, 0xFF, 0xFF, 7]),
            Manner::LongBitfield => {
                let bytes = self.file.piece_count().div_ceil(8) as usize + 1;
                return self.frames.send(5, &vec![0xFF; bytes]);
            }
            // Everything, in the fast extension's one message.
            _ => self.frames.send(14, &[])?,
        }
        match self.manner {
            Manner::HaveOutOfRange => self.frames.send(4, &u32::MAX.to_be_bytes())?,
            Manner::FloodsPex => self.flood_pex()?,
            _ => {}
        }
        if self.manner != Manner::Chokes {
            self.frames.send(1, &[])?;
        }
        Ok(())
    }

    fn hear(&mut self, id: u8, payload: &[u8]) -> Result<()> {
        let request = || -> Option<Request> {
            let field = |at: usize| Some(u32::from_be_bytes(*payload.get(at..)?.first_chunk()?));
            Some(Request { piece: field(0)?, begin: field(4)?, length: field(8)? })
        };
        match (id, request()) {
            (6, Some(request)) => {
                self.shared.requests.fetch_add(1, Ordering::Relaxed);
                if self.queue.len() < REQUESTS_MAX {
                    self.queue.push_back(request);
                }
            }
            (8, Some(cancelled)) => {
                // BEP 6: what is not sent is rejected.
                let before = self.queue.len();
                self.queue.retain(|queued| *queued != cancelled);
                if self.queue.len() < before {
                    self.reject(cancelled)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn reject(&mut self, request: Request) -> Result<()> {
        let fields = [request.piece, request.begin, request.length];
        self.frames.send(16, fields.map(u32::to_be_bytes).as_flattened())
    }

    /// Answers what is queued, one block at most where there is a rate.
    fn answer(&mut self) -> Result<()> {
        while let Some(&request) = self.queue.front() {
            let rate = self.shared.rate.load(Ordering::Relaxed);
            if rate > 0 && Instant::now() < self.next_at {
                return Ok(());
            }
            self.queue.pop_front();
            self.answer_one(request)?;
            if rate > 0 {
                let cost = Duration::from_secs_f64(f64::from(request.length) / rate as f64);
                // A pause gives no credit: bursts would tell nothing of the rate.
                self.next_at = self.next_at.max(Instant::now() - REDIAL) + cost;
            }
        }
        Ok(())
    }

    fn answer_one(&mut self, request: Request) -> Result<()> {
        let mut frame = self.block_frame(request)?;
        match self.manner {
            Manner::Honest | Manner::FloodsPex => {}
            Manner::WrongBytes => *frame.last_mut().context("a block")? ^= 1,
            Manner::Unasked => return self.send_unasked(),
            Manner::EndlessBlock => return self.trickle(&frame),
            Manner::Vanishes => {
                self.frames.send_raw(&frame[..frame.len() / 2])?;
                anyhow::bail!("gone");
            }
            Manner::ChokesWhenAsked => {
                self.queue.clear();
                self.frames.send(0, &[])?;
                self.reject(request)?;
                return self.frames.send(1, &[]);
            }
            Manner::Rejects => return self.reject(request),
            _ => return Ok(()),
        }
        if let Some(pid) = self.shared.springs() {
            self.frames.send_raw(&frame[..frame.len() / 2])?;
            std::thread::sleep(HALF_RECEIVED);
            kill(pid);
            anyhow::bail!("killed");
        }
        self.frames.send_raw(&frame)?;
        let Request { piece, begin, length } = request;
        let sent = Sent { at: Instant::now(), piece, begin, length };
        self.shared.sent.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
        Ok(())
    }

    fn block_frame(&self, request: Request) -> Result<Vec<u8>> {
        let Request { piece, begin, length } = request;
        let bytes = self.file.range(piece, begin, length).context("a request out of range")?;
        let mut frame = Vec::with_capacity(bytes.len() + 13);
        frame.extend_from_slice(&(bytes.len() as u32 + 9).to_be_bytes());
        frame.push(7);
        frame.extend_from_slice(&piece.to_be_bytes());
        frame.extend_from_slice(&begin.to_be_bytes());
        frame.extend_from_slice(bytes);
        Ok(frame)
    }

    fn send_unasked(&mut self) -> Result<()> {
        let asked: Vec<Request> = self.queue.drain(..).collect();
        for number in 0..UNASKED_BLOCKS {
            let piece = number % self.file.piece_count();
            let length = BLOCK_BYTES.min(self.file.piece_length(piece));
            let request = Request { piece, begin: 0, length };
            if !asked.contains(&request) {
                let mut frame = self.block_frame(request)?;
                *frame.last_mut().context("a block")? ^= 1;
                self.frames.send_raw(&frame)?;
            }
        }
        Ok(())
    }

    fn trickle(&mut self, frame: &[u8]) -> Result<()> {
        for byte in frame {
            if self.shared.stop.load(Ordering::Relaxed) {
                break;
            }
            self.frames.send_raw(&[*byte])?;
            std::thread::sleep(IDLE);
        }
        Ok(())
    }

    /// Peer exchange (BEP 11) under the number that the engine's handshake gives.
    fn flood_pex(&mut self) -> Result<()> {
        self.frames.send(20, b"\x00d1:md6:ut_pexi1eee")?;
        for first in (0..PEX_ADDRESSES).step_by(PEX_MESSAGE_ADDRESSES as usize) {
            let mut payload = format!("\u{2}d5:added{}:", PEX_MESSAGE_ADDRESSES * 6).into_bytes();
            for number in first..first + PEX_MESSAGE_ADDRESSES {
                let [_, _, high, low] = number.to_be_bytes();
                // On this machine, and nobody listens there.
                payload.extend_from_slice(&[127, 66, high, low, 0, 9]);
            }
            payload.push(b'e');
            self.frames.send(20, &payload)?;
        }
        Ok(())
    }
}
