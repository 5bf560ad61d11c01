//! Everything ready for one connection, as one vectored send.
//!
//! Owns: the small bytes (message headers), shares of the chunks (content), their order.
//! Never: a copy of content. Flow: upload fills it, an operation carries it to the socket, the last
//! completion brings it back.

use std::{borrow::Borrow, collections::VecDeque, ops::Range};

use crate::memory::Share;

/// Parts of a batch at most: 32 blocks with a header each, and as much again across chunks.
pub const PARTS_MAX: usize = 128;
/// Small bytes of a batch at most.
pub const OWN_BYTES_MAX: usize = 32 << 10;
/// Room for small bytes that a batch keeps for its next use: the headers of 32 blocks, twice.
const OWN_BYTES_KEPT: usize = 1 << 10;
/// Empty batches that a backend keeps.
const SPARE_MAX: usize = 256;

/// A backend's empty batches. Boxed, because the kernel has addresses of a batch's header while it
/// is in flight.
#[derive(Default)]
pub(crate) struct SpareBatches {
    #[allow(clippy::vec_box)]
    spare: Vec<Box<SendBatch>>,
}

impl SpareBatches {
    pub(crate) fn take(&mut self) -> Box<SendBatch> {
        self.spare.pop().unwrap_or_default()
    }

    pub(crate) fn give_back(&mut self, mut batch: Box<SendBatch>) {
        batch.clear();
        batch.shrink();
        if self.spare.len() < SPARE_MAX {
            self.spare.push(batch);
        }
    }
}

enum Part {
    /// Bytes of `own`.
    Own(Range<usize>),
    Share(Share, Range<usize>),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Part::Own(range) | Part::Share(_, range) => range.len(),
        }
    }

    fn skip(&mut self, bytes: usize) {
        match self {
            Part::Own(range) | Part::Share(_, range) => range.start += bytes,
        }
    }
}

/// A pooled, ordered list of byte ranges to send. Bounded by `PARTS_MAX` and `OWN_BYTES_MAX`.
pub struct SendBatch {
    own: Vec<u8>,
    parts: VecDeque<Part>,
    len_bytes: usize,
    /// Built by `prepare`; point into `own` and the shares, which stay put until then on.
    vectors: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl SendBatch {
    pub fn new() -> SendBatch {
        SendBatch {
            own: Vec::new(),
            parts: VecDeque::new(),
            len_bytes: 0,
            vectors: Vec::new(),
            header: empty_header(),
        }
    }

    /// Whether `parts` more parts with `bytes` more small bytes still go in.
    pub fn room_for(&self, parts: usize, bytes: usize) -> bool {
        self.parts.len() + parts <= PARTS_MAX && self.own.len() + bytes <= OWN_BYTES_MAX
    }

    pub fn is_full(&self) -> bool {
        !self.room_for(1, 1)
    }

    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Bytes that remain to be sent.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Appends a copy of `bytes`; one part at most, none where the last part is small bytes too.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        assert!(self.own.len() + bytes.len() <= OWN_BYTES_MAX, "room_for was asked");
        let start = self.own.len();
        self.own.extend_from_slice(bytes);
        self.len_bytes += bytes.len();
        match self.parts.back_mut() {
            Some(Part::Own(range)) if range.end == start => range.end += bytes.len(),
            _ => self.push_part(Part::Own(start..start + bytes.len())),
        }
    }

    /// Appends a range of a share, which is held until these bytes are sent.
    pub fn push_share(&mut self, share: impl Borrow<Share>, range: Range<usize>) {
        let share: &Share = share.borrow();
        assert!(range.end <= share.len(), "{range:?} of a share of {}", share.len());
        if range.is_empty() {
            return;
        }
        self.len_bytes += range.len();
        self.push_part(Part::Share(share.clone(), range));
    }

    fn push_part(&mut self, part: Part) {
        assert!(self.parts.len() < PARTS_MAX, "room_for was asked");
        self.parts.push_back(part);
    }

    /// Drops the first `bytes` (they were sent); shares that are done go home.
    pub fn advance(&mut self, bytes: usize) {
        assert!(bytes <= self.len_bytes, "{bytes} sent of {}", self.len_bytes);
        self.len_bytes -= bytes;
        let mut left = bytes;
        while left > 0 {
            let first = self.parts.front_mut().expect("invariant: the parts add up to len_bytes");
            if left < first.len() {
                first.skip(left);
                break;
            }
            left -= first.len();
            self.parts.pop_front();
        }
        if self.parts.is_empty() {
            self.own.clear();
        }
    }

    pub fn clear(&mut self) {
        self.parts.clear();
        self.own.clear();
        self.vectors.clear();
        self.header = empty_header();
        self.len_bytes = 0;
    }

    /// Gives back what a cleared batch needs only for large messages (bitfields, metadata).
    pub fn shrink(&mut self) {
        self.own.shrink_to(OWN_BYTES_KEPT);
    }

    /// What remains, in order.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| match part {
            Part::Own(range) => &self.own[range.clone()],
            Part::Share(share, range) => &share[range.clone()],
        })
    }

    /// A new batch of what follows the first `bytes`, with its own holds on the shares: to send on
    /// while the kernel still reads from this one.
    pub fn remainder(&self, bytes: usize) -> Box<SendBatch> {
        assert!(bytes <= self.len_bytes, "{bytes} sent of {}", self.len_bytes);
        let mut rest = Box::new(SendBatch::new());
        let mut skip = bytes;
        for part in &self.parts {
            let skipped = skip.min(part.len());
            skip -= skipped;
            match part {
                Part::Own(range) => rest.push_bytes(&self.own[range.start + skipped..range.end]),
                Part::Share(share, range) => {
                    rest.push_share(share, range.start + skipped..range.end);
                }
            }
        }
        rest
    }

    /// Builds the message header and its vectors and returns where it lies. Valid until the batch
    /// is next changed or dropped: the in-flight slot holds it, unchanged and boxed, until the
    /// last completion.
    pub(crate) fn prepare(&mut self) -> *const libc::msghdr {
        let mut vectors = std::mem::take(&mut self.vectors);
        vectors.clear();
        vectors.extend(self.slices().map(|slice| libc::iovec {
            iov_base: slice.as_ptr().cast_mut().cast(),
            iov_len: slice.len(),
        }));
        self.vectors = vectors;
        self.header = empty_header();
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = self.vectors.len() as _;
        &raw const self.header
    }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: a C struct of integers and pointers, for which all zeroes is valid (no name, no
    // vectors, no control data).
    unsafe { std::mem::zeroed() }
}

impl Default for SendBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SendBatch({} bytes in {} parts)", self.len_bytes, self.parts.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::{Class, Pool, PoolOptions};

    fn filled(pool: &Pool) -> Share {
        let mut lease = pool.lease(Class::K16).expect("lease");
        lease.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * 7 % 251) as u8);
        lease.freeze(Class::K16.bytes())
    }

    fn whole(batch: &SendBatch) -> Vec<u8> {
        batch.slices().flatten().copied().collect()
    }

    proptest! {
        /// However it is built and however the kernel takes it, the stream is the same.
        #[test]
        fn partial_sends_lose_nothing(
            parts in proptest::collection::vec((any::<bool>(), 0usize..300, 0usize..9000), 1..40),
            taken in proptest::collection::vec(0usize..30_000, 1..60),
        ) {
            let pool = Pool::new(PoolOptions { cap_bytes: 1 << 20, huge_pages: false }).unwrap();
            let share = filled(&pool);
            let mut batch = SendBatch::new();
            let mut expected = Vec::new();
            for (own, small, large) in parts {
                if own {
                    let bytes: Vec<u8> = (0..small).map(|i| i as u8).collect();
                    batch.push_bytes(&bytes);
                    expected.extend(bytes);
                } else {
                    batch.push_share(&share, small..small + large);
                    expected.extend(&share[small..small + large]);
                }
            }
            prop_assert_eq!(batch.len_bytes(), expected.len());
            let mut at = 0;
            for bytes in taken {
                let bytes = bytes.min(batch.len_bytes());
                prop_assert_eq!(whole(&batch.remainder(bytes)), &expected[at + bytes..]);
                batch.advance(bytes);
                at += bytes;
                prop_assert_eq!(whole(&batch), &expected[at..]);
            }
            batch.clear();
            prop_assert_eq!(share.holders(), 1);
        }
    }

    #[test]
    fn the_header_names_what_remains() {
        let pool = Pool::new(PoolOptions { cap_bytes: 1 << 20, huge_pages: false }).unwrap();
        let share = filled(&pool);
        let mut batch = Box::new(SendBatch::new());
        batch.push_bytes(b"head");
        batch.push_bytes(b"er");
        batch.push_share(share.clone(), 100..200);
        batch.advance(3);
        let header = batch.prepare();
        // SAFETY: `prepare` returned it and the batch has not changed since.
        let count = unsafe { (*header).msg_iovlen };
        assert_eq!(count, 2, "adjacent small bytes are one vector");
        assert_eq!(batch.vectors[0].iov_len, 3);
        assert_eq!(batch.vectors[1].iov_base.cast_const().cast(), share[100..].as_ptr());
    }

    #[test]
    fn bounds_are_said_before_they_are_hit() {
        let pool = Pool::new(PoolOptions { cap_bytes: 1 << 20, huge_pages: false }).unwrap();
        let share = filled(&pool);
        let mut batch = SendBatch::new();
        for _ in 0..PARTS_MAX {
            assert!(batch.room_for(1, 0));
            batch.push_share(&share, 0..1);
        }
        assert!(batch.is_full());
        batch.clear();
        batch.push_bytes(&vec![0; OWN_BYTES_MAX]);
        assert!(batch.room_for(1, 0) && !batch.room_for(1, 1));
    }
}
