//! What a completed receive brings: bytes, wherever they lie.
//!
//! Owns: the kinds of received bytes. Never: their meaning.
//! Flow: ring (a provided buffer, returned to the kernel on drop), epoll (a buffer, kept on drop)
//! or simulator (a vector) -> shard.

use crate::{epoll::Buffer, ring::buffers::RingBuffer};

pub(crate) enum ReceivedInner {
    Owned(Vec<u8>),
    Ring(RingBuffer),
    Epoll(Buffer),
}

impl ReceivedInner {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            ReceivedInner::Owned(bytes) => bytes,
            ReceivedInner::Ring(buffer) => buffer.bytes(),
            ReceivedInner::Epoll(buffer) => buffer.bytes(),
        }
    }
}
