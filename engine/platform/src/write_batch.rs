//! What lies next to each other in a file, as one vectored write.
//!
//! Owns: shares of the chunks that hold the bytes, their order. Never: a copy of content, where in
//! which file it goes. Flow: a piece's chunks are frozen and listed here, an operation carries the
//! list to the file, its completion brings it back; the caller keeps empty ones for reuse.

use std::{borrow::Borrow, collections::VecDeque, ops::Range};

use crate::memory::Share;

/// Parts of a batch at most: 32 MiB in chunks of 256 KiB. Far below the kernel's 1,024 vectors.
pub const PARTS_MAX: usize = 128;

/// An ordered list of ranges of shares. Bounded by `PARTS_MAX`.
///
/// The bytes cannot change while they are in flight: a share is read-only, and other holders (the
/// cache, a send) only read as well. For a direct file the caller sees to it that each range starts
/// and ends at a multiple of the file's alignment; chunks themselves start at multiples of 4096.
#[derive(Default)]
pub struct WriteBatch {
    parts: VecDeque<(Share, Range<usize>)>,
    len_bytes: usize,
    /// Built by `prepare`; point into the shares.
    vectors: Vec<libc::iovec>,
}

impl WriteBatch {
    pub fn new() -> WriteBatch {
        WriteBatch::default()
    }

    pub fn is_full(&self) -> bool {
        self.parts.len() == PARTS_MAX
    }

    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Bytes that remain to be written.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Appends a range of a share, which is held until these bytes are written. An empty range is
    /// no part.
    pub fn push(&mut self, share: impl Borrow<Share>, range: Range<usize>) {
        let share: &Share = share.borrow();
        assert!(range.end <= share.len(), "{range:?} of a share of {}", share.len());
        if range.is_empty() {
            return;
        }
        assert!(!self.is_full(), "is_full was asked");
        self.len_bytes += range.len();
        self.parts.push_back((share.clone(), range));
    }

    /// Drops the first `bytes` (they were written); shares that are done go home.
    pub fn advance(&mut self, bytes: usize) {
        assert!(bytes <= self.len_bytes, "{bytes} written of {}", self.len_bytes);
        self.len_bytes -= bytes;
        let mut left = bytes;
        while left > 0 {
            let (_, range) =
                self.parts.front_mut().expect("invariant: the parts add up to len_bytes");
            if left < range.len() {
                range.start += left;
                break;
            }
            left -= range.len();
            self.parts.pop_front();
        }
    }

    pub fn clear(&mut self) {
        self.parts.clear();
        self.vectors.clear();
        self.len_bytes = 0;
    }

    /// What remains, in order.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|(share, range)| &share[range.clone()])
    }

    /// The arena of the only part; `None` where there are several.
    pub(crate) fn only_arena(&self) -> Option<u16> {
        match self.parts.front() {
            Some((share, _)) if self.parts.len() == 1 => Some(share.arena()),
            _ => None,
        }
    }

    /// Builds the vectors. What they name is valid until the batch is next changed or dropped: the
    /// in-flight slot holds it, unchanged and boxed, until the last completion.
    pub(crate) fn prepare(&mut self) -> &[libc::iovec] {
        let mut vectors = std::mem::take(&mut self.vectors);
        vectors.clear();
        vectors.extend(self.slices().map(|slice| libc::iovec {
            iov_base: slice.as_ptr().cast_mut().cast(),
            iov_len: slice.len(),
        }));
        self.vectors = vectors;
        &self.vectors
    }
}

impl std::fmt::Debug for WriteBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WriteBatch({} bytes in {} parts)", self.len_bytes, self.parts.len())
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

    fn pool() -> Pool {
        Pool::new(PoolOptions { cap_bytes: 1 << 20, huge_pages: false }).expect("pool")
    }

    proptest! {
        /// However short the writes are, what remains is the rest, and every share comes home.
        #[test]
        fn short_writes_lose_nothing(
            parts in proptest::collection::vec((0usize..5000, 0usize..9000), 1..40),
            taken in proptest::collection::vec(0usize..30_000, 1..60),
        ) {
            let share = filled(&pool());
            let (mut batch, mut expected) = (WriteBatch::new(), Vec::new());
            for (from, len) in parts {
                batch.push(&share, from..from + len);
                expected.extend(&share[from..from + len]);
            }
            let mut at = 0;
            for bytes in taken {
                let bytes = bytes.min(batch.len_bytes());
                batch.advance(bytes);
                at += bytes;
                prop_assert_eq!(batch.len_bytes(), expected.len() - at);
                let rest: Vec<u8> = batch.slices().flatten().copied().collect();
                prop_assert_eq!(&rest, &expected[at..]);
            }
            batch.clear();
            prop_assert_eq!(share.holders(), 1);
        }
    }

    #[test]
    fn the_vectors_name_what_remains() {
        let share = filled(&pool());
        let mut batch = WriteBatch::new();
        batch.push(&share, 100..100);
        batch.push(&share, 0..4096);
        assert_eq!(batch.only_arena(), Some(0));
        batch.push(&share, 8192..9000);
        assert_eq!(batch.only_arena(), None);
        batch.advance(4000);
        let vectors = batch.prepare();
        let lens: Vec<_> = vectors.iter().map(|vector| vector.iov_len).collect();
        assert_eq!(lens, [96, 808]);
        assert_eq!(vectors[1].iov_base.cast_const().cast(), share[8192..].as_ptr());
    }

    #[test]
    fn the_bound_is_said_before_it_is_hit() {
        let share = filled(&pool());
        let mut batch = WriteBatch::new();
        (0..PARTS_MAX).for_each(|_| {
            assert!(!batch.is_full());
            batch.push(&share, 0..1);
        });
        assert!(batch.is_full());
    }
}
