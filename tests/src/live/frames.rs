//! Owns: the frames of one connection, as they arrive, under short waits.
//! Never: loses a byte when a wait ends in the middle of a frame.
//! Flow: a seed sends, and asks for the next frame between its own doings.

use super::peer::{PROTOCOL, decode_hex};
use anyhow::{Result, bail, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const HANDSHAKE_BYTES: usize = 68;
const FRAME_BYTES_MAX: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Frames {
    stream: TcpStream,
    buffer: Vec<u8>,
    wait: Duration,
}

impl Frames {
    pub fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: Vec::new(), wait: Duration::ZERO })
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    pub fn send(&mut self, id: u8, payload: &[u8]) -> Result<()> {
        let mut frame = u32::try_from(payload.len() + 1)?.to_be_bytes().to_vec();
        frame.push(id);
        frame.extend_from_slice(payload);
        self.send_raw(&frame)
    }

    /// Reads the engine's handshake, which must name the torrent.
    pub fn take_handshake(&mut self, info_hash: &str) -> Result<()> {
        let start = Instant::now();
        while self.buffer.len() < HANDSHAKE_BYTES {
            ensure!(start.elapsed() < PATIENCE, "no handshake");
            self.fill(Duration::from_millis(100))?;
        }
        let hello: Vec<u8> = self.buffer.drain(..HANDSHAKE_BYTES).collect();
        ensure!(
            hello[..20] == PROTOCOL[..] && hello[28..48] == decode_hex(info_hash)?[..],
            "a wrong handshake: {hello:?}"
        );
        Ok(())
    }

    /// The next frame as id and payload; keep-alives are dropped. `None`: none within `wait`.
    pub fn next(&mut self, wait: Duration) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            if let Some(frame) = self.cut()? {
                match frame.split_first() {
                    Some((id, payload)) => return Ok(Some((*id, payload.to_vec()))),
                    None => continue,
                }
            }
            if !self.fill(wait)? {
                return Ok(None);
            }
        }
    }

    fn cut(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(prefix) = self.buffer.first_chunk() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix) as usize;
        ensure!(length <= FRAME_BYTES_MAX, "the engine announced a frame of {length} bytes");
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        let frame = self.buffer[4..4 + length].to_vec();
        self.buffer.drain(..4 + length);
        Ok(Some(frame))
    }

    /// Whether anything came within `wait`; a closed connection is an error.
    fn fill(&mut self, wait: Duration) -> Result<bool> {
        if self.wait != wait {
            self.stream.set_read_timeout(Some(wait))?;
            self.wait = wait;
        }
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => bail!("closed"),
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}
