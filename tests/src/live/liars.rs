//! Owns: who lies about metadata, who never ends, and a tracker whose answer is 100 MB.
//! Never: says a true thing; never more bytes a second than a home connection carries, since a test
//! measures what they cost the engine and not the machine.
//! Flow: each a thread that dials the engine (or waits for it), says its lie, and comes again when
//! it is thrown out.

pub use super::dialer::Dialer;
use super::frames::Frames;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What one of them sends a second at most.
const BYTES_PER_S: f64 = (4 << 20) as f64;
const ANSWER_BYTES: usize = 100_000_000;
const TURN: Duration = Duration::from_millis(20);
/// The id that it wants to hear about metadata under.
const OUR_ID: u8 = 3;

/// What somebody says of a torrent's metadata, or without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// 2 GiB of metadata.
    Huge,
    /// None at all.
    Empty,
    /// 1 MiB, and each piece of it is made up.
    WrongBytes,
    /// Another size with each piece.
    OtherSizes,
    /// Pieces of metadata that nobody asked for, without end.
    Unasked,
    /// Extension messages that mean nothing, without end.
    Extensions,
    /// Extension handshakes, without end.
    Handshakes,
}

impl Lie {
    pub const OF_METADATA: [Lie; 5] =
        [Lie::Huge, Lie::Empty, Lie::WrongBytes, Lie::OtherSizes, Lie::Unasked];
    pub const ENDLESS: [Lie; 2] = [Lie::Extensions, Lie::Handshakes];

    fn claimed_bytes(self) -> u64 {
        match self {
            Lie::Huge => 1 << 31,
            Lie::Empty => 0,
            _ => 1 << 20,
        }
    }
}

/// Comes to the engine with a lie about one torrent, again and again.
pub fn start(info_hash: &str, engine: SocketAddr, from: Ipv4Addr, lie: Lie) -> Dialer {
    Dialer::start(info_hash, engine, from, move |frames, goes_on| tell(frames, lie, goes_on))
}

fn tell(frames: &mut Frames, lie: Lie, goes_on: &dyn Fn() -> bool) -> Result<()> {
    frames.send(14, &[])?;
    let size = lie.claimed_bytes();
    let hello = format!("\0d1:md11:ut_metadatai{OUR_ID}ee13:metadata_sizei{size}ee");
    frames.send(20, hello.as_bytes())?;
    // Under which the engine wants to hear of metadata; 0 until it has said so.
    let mut theirs = 0;
    let mut paid = Instant::now();
    while goes_on() {
        while let Some((id, payload)) = frames.next(Duration::from_millis(1))? {
            match payload.split_first() {
                Some((0, rest)) if id == 20 => theirs = metadata_id(rest).unwrap_or(theirs),
                Some((&OUR_ID, rest)) if id == 20 => {
                    let piece = asked_piece(rest).unwrap_or(0);
                    answer(frames, lie, theirs, piece)?;
                }
                _ => {}
            }
        }
        let sent = match lie {
            Lie::Unasked if theirs > 0 => {
                answer(frames, lie, theirs, 7)?;
                16 << 10
            }
            Lie::Extensions => {
                let bytes = vec![b'x'; 32 << 10];
                frames.send(20, &[&[99], &bytes[..]].concat())?;
                bytes.len()
            }
            Lie::Handshakes => {
                frames.send(20, hello.as_bytes())?;
                hello.len()
            }
            _ => 0,
        };
        if sent == 0 {
            std::thread::sleep(TURN);
        }
        paid += Duration::from_secs_f64(sent as f64 / BYTES_PER_S);
        std::thread::sleep(paid.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// One piece of metadata, as BEP 9 has it, and wrong.
fn answer(frames: &mut Frames, lie: Lie, id: u8, piece: u64) -> Result<()> {
    let size = if lie == Lie::OtherSizes { 16_384 * (piece + 2) + 1 } else { lie.claimed_bytes() };
    let mut payload = vec![id];
    let head = format!("d8:msg_typei1e5:piecei{piece}e10:total_sizei{size}ee");
    payload.extend_from_slice(head.as_bytes());
    payload.resize(payload.len() + (16 << 10), b'5');
    frames.send(20, &payload)
}

/// The number behind `key` in bencoded bytes.
fn number(bytes: &[u8], key: &str) -> Option<u64> {
    let text = String::from_utf8_lossy(bytes);
    let rest = text.split_once(key)?.1;
    rest.split_once('e')?.0.parse().ok()
}

fn metadata_id(bytes: &[u8]) -> Option<u8> {
    u8::try_from(number(bytes, "11:ut_metadatai")?).ok()
}

fn asked_piece(bytes: &[u8]) -> Option<u64> {
    number(bytes, "5:piecei")
}

/// A tracker that answers every announce with 100 MB; how often it was asked, and what was taken.
#[derive(Debug)]
pub struct EndlessTracker {
    address: SocketAddr,
    asked: Arc<AtomicU64>,
    taken_bytes: Arc<AtomicU64>,
}

impl EndlessTracker {
    /// Its thread ends with the process.
    pub fn start(address: Ipv4Addr) -> Result<Self> {
        let listener = TcpListener::bind((address, 0))?;
        let address = listener.local_addr()?;
        let tracker = Self { address, asked: Arc::default(), taken_bytes: Arc::default() };
        let (asked, taken) = (tracker.asked.clone(), tracker.taken_bytes.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                asked.fetch_add(1, Ordering::Relaxed);
                // The engine closes when it has had enough.
                let _ = pour(&stream, &taken);
            }
        });
        Ok(tracker)
    }

    pub fn url(&self) -> String {
        format!("http://{}/announce", self.address)
    }

    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Bytes that left; some of them lie in sockets.
    pub fn taken_bytes(&self) -> u64 {
        self.taken_bytes.load(Ordering::Relaxed)
    }
}

fn pour(stream: &TcpStream, taken: &AtomicU64) -> Result<()> {
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while !lines.next().context("a request")??.is_empty() {}
    let mut stream = stream;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {ANSWER_BYTES}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let name = format!("d8:intervali60e5:peers{ANSWER_BYTES}:");
    stream.write_all(name.as_bytes())?;
    let bytes = vec![7; 64 << 10];
    for _ in 0..ANSWER_BYTES / bytes.len() {
        stream.write_all(&bytes)?;
        taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_found_in_extension_messages() {
        let hello = b"d1:md11:ut_metadatai2e6:ut_pexi1ee1:pi6881ee";
        assert_eq!(super::metadata_id(hello), Some(2));
        assert_eq!(super::asked_piece(b"d8:msg_typei0e5:piecei12ee"), Some(12));
    }
}
