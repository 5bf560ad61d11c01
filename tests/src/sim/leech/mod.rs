//! Peers of a simulated swarm: honest leeches and hostile ones.
//!
//! Owns: what they have in common: the score, frames out of a stream. Never: the shard's code for
//! the same things. Flow: the world wakes a peer; what it saw goes to the score.

pub mod honest;
pub mod hostile;

use crate::sim::peer::PeerId;

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

/// What happened to all peers of a run.
#[derive(Default, Debug)]
pub struct Tally {
    pub honest: u32,
    pub complete: u32,
    /// Why connections of honest leeches ended before they were complete, and how often.
    pub cut: BTreeMap<&'static str, u32>,
    pub blocks: u64,
    pub bytes: u64,
    /// Bytes that each honest leech got.
    pub by_peer: BTreeMap<PeerId, u64>,
    pub rejects: u64,
    pub metadata: u32,
    pub hostile: u32,
    /// How hostile peers ended, by behaviour.
    pub ended: BTreeMap<&'static str, u32>,
    /// Honest leeches that nothing came to for long, and what they waited for.
    pub stuck: BTreeMap<PeerId, String>,
    /// Wrong bytes, answers to nothing, hostile peers that were kept: each is a failure.
    pub wrong: Vec<String>,
    /// Blocks of a file that somebody changed, sent with its new bytes before that was seen.
    pub stale: u64,
    /// Blocks that came after their cancel.
    pub after_cancel: u64,
    /// The seeder stops: hostile peers may wait in its backlog for as long as that takes.
    pub stopping: bool,
}

pub type Score = Rc<RefCell<Tally>>;

const WRONG_MAX: usize = 10;

impl Tally {
    pub fn wrong(&mut self, text: String) {
        if self.wrong.len() < WRONG_MAX {
            self.wrong.push(text);
        }
    }
}

/// Cuts a stream into frames; an own one, so that a fault of the engine's does not hide itself.
#[derive(Default)]
pub struct Stream {
    bytes: Vec<u8>,
    at: usize,
    /// The handshake was taken off.
    pub greeted: bool,
}

impl Stream {
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.at > 0 {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    pub fn handshake(&mut self) -> Option<[u8; 68]> {
        let found = *self.bytes[self.at..].first_chunk::<68>()?;
        self.at += 68;
        self.greeted = true;
        Some(found)
    }

    /// The next whole frame without its prefix.
    pub fn frame(&mut self) -> Option<Vec<u8>> {
        let rest = &self.bytes[self.at..];
        let length = u32::from_be_bytes(*rest.first_chunk::<4>()?) as usize;
        let frame = rest.get(4..4 + length)?.to_vec();
        self.at += 4 + length;
        Some(frame)
    }
}
