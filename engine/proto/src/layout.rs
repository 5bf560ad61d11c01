//! Owns: where each byte of a torrent lies: its pieces, its files, and how one maps to the other.
//! Never: opens a file, or knows what folder the paths are under.
//! Flow: metainfo and create build it; request checks, readers and verification ask it.

use crate::limits::{BLOCK_BYTES_MAX, PIECE_BYTES_MAX, PIECES_MAX};
use crate::units::{Block, FileIndex, PieceIndex};

/// Pieces and files of one torrent. Valid once made: offsets add up, no file reaches past the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Nominal; the last piece may be shorter.
    pub piece_bytes: u32,
    /// Of all files, padding included; never 0.
    pub total_bytes: u64,
    /// In the torrent's order, so by ascending offset.
    pub files: Box<[File]>,
}

/// A file's place in the torrent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    /// Sanitised, components joined with `/`. In a torrent of many files it is relative to the
    /// torrent's folder and does not begin with its name. Empty for padding, which no disk holds.
    pub path: Box<str>,
    pub length: u64,
    /// Of the file's first byte in the torrent.
    pub offset: u64,
    /// BEP 47: zeros between files, that are supplied and not read.
    pub padding: bool,
    pub attributes: Attributes,
}

/// BEP 47 `attr`, padding aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attributes {
    pub executable: bool,
    pub hidden: bool,
    /// The torrent means a link. It is never followed and never made; its length is 0.
    pub symlink: bool,
}

/// A file before its offset is known.
#[derive(Clone, Debug, Default)]
pub struct NewFile {
    pub path: Box<str>,
    pub length: u64,
    pub padding: bool,
    pub attributes: Attributes,
}

/// Part of a range of bytes that lies in one file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    pub file: FileIndex,
    /// In the file.
    pub offset: u64,
    /// Never 0.
    pub length: u64,
    /// Zeros: nothing is to be read.
    pub padding: bool,
}

/// Why sizes make no layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("the piece length is {0} bytes; from 1 to {PIECE_BYTES_MAX} are supported")]
    PieceLength(u32),
    #[error("the files have no bytes, so there is nothing to share")]
    Empty,
    #[error("the lengths of the files add up to more than 2^63 bytes")]
    Overflow,
    #[error("{0} pieces; at most {PIECES_MAX} are supported, a greater piece length gives fewer")]
    TooManyPieces(u64),
    #[error("more than 2^32 files")]
    TooManyFiles,
}

impl Layout {
    /// Places the files one after the other.
    ///
    /// # Errors
    /// A size outside of the crate's limits, or nothing but empty files.
    pub fn new(piece_bytes: u32, files: Vec<NewFile>) -> Result<Self, LayoutError> {
        if piece_bytes == 0 || piece_bytes > PIECE_BYTES_MAX {
            return Err(LayoutError::PieceLength(piece_bytes));
        }
        if u32::try_from(files.len()).is_err() {
            return Err(LayoutError::TooManyFiles);
        }
        let mut total_bytes: u64 = 0;
        let mut placed = Vec::with_capacity(files.len());
        for NewFile { path, length, padding, attributes } in files {
            placed.push(File { path, length, offset: total_bytes, padding, attributes });
            total_bytes = total_bytes
                .checked_add(length)
                .filter(|total| *total <= i64::MAX as u64)
                .ok_or(LayoutError::Overflow)?;
        }
        if total_bytes == 0 {
            return Err(LayoutError::Empty);
        }
        let pieces = total_bytes.div_ceil(u64::from(piece_bytes));
        if pieces > u64::from(PIECES_MAX) {
            return Err(LayoutError::TooManyPieces(pieces));
        }
        Ok(Self { piece_bytes, total_bytes, files: placed.into_boxed_slice() })
    }

    pub fn piece_count(&self) -> u32 {
        // Lossless: `new` bounds it by PIECES_MAX.
        self.total_bytes.div_ceil(u64::from(self.piece_bytes)) as u32
    }

    /// Offset of the piece's first byte in the torrent.
    pub fn piece_offset(&self, piece: PieceIndex) -> u64 {
        u64::from(piece.0) * u64::from(self.piece_bytes)
    }

    /// Bytes of the piece; 0 where the torrent has no such piece.
    pub fn piece_length(&self, piece: PieceIndex) -> u32 {
        let left = self.total_bytes.saturating_sub(self.piece_offset(piece));
        left.min(u64::from(self.piece_bytes)) as u32
    }

    /// Whether a request names bytes that exist, 1 to 128 KiB of them.
    pub fn check_block(&self, block: Block) -> bool {
        let end = u64::from(block.begin) + u64::from(block.length);
        (1..=BLOCK_BYTES_MAX).contains(&block.length)
            && end <= u64::from(self.piece_length(block.piece))
    }

    /// Offset of the block's first byte in the torrent.
    pub fn block_offset(&self, block: Block) -> u64 {
        self.piece_offset(block.piece) + u64::from(block.begin)
    }

    /// The parts of files that hold `length` bytes from `offset`, in order; empty files are left
    /// out, and so is what lies past the torrent's end.
    pub fn segments(&self, offset: u64, length: u64) -> Segments<'_> {
        let end = offset.saturating_add(length).min(self.total_bytes);
        let next = self.files.partition_point(|file| file.offset + file.length <= offset);
        Segments { files: &self.files, next, at: offset, end }
    }

    /// Pieces that hold a byte of the file, first and one past the last; none of an empty one.
    pub fn file_pieces(&self, file: FileIndex) -> std::ops::Range<u32> {
        let piece_bytes = u64::from(self.piece_bytes);
        match self.files.get(file.0 as usize) {
            Some(file) if file.length > 0 => {
                let first = file.offset / piece_bytes;
                let end = (file.offset + file.length).div_ceil(piece_bytes);
                first as u32..end as u32
            }
            _ => 0..0,
        }
    }
}

/// See [`Layout::segments`].
#[derive(Clone, Debug)]
pub struct Segments<'layout> {
    files: &'layout [File],
    next: usize,
    at: u64,
    end: u64,
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        while self.at < self.end {
            let file = self.files.get(self.next)?;
            let index = FileIndex(self.next as u32);
            self.next += 1;
            let stop = self.end.min(file.offset + file.length);
            if stop > self.at {
                let (offset, length) = (self.at - file.offset, stop - self.at);
                self.at = stop;
                return Some(Segment { file: index, offset, length, padding: file.padding });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(piece_bytes: u32, lengths: &[u64]) -> Result<Layout, LayoutError> {
        let file = |length: &u64| NewFile { length: *length, ..NewFile::default() };
        Layout::new(piece_bytes, lengths.iter().map(file).collect())
    }

    #[test]
    fn pieces_add_up() {
        let layout = layout(10, &[7, 0, 16]).expect("valid");
        assert_eq!((layout.total_bytes, layout.piece_count()), (23, 3));
        let lengths = [0, 1, 2, 3].map(|piece| layout.piece_length(PieceIndex(piece)));
        assert_eq!(lengths, [10, 10, 3, 0]);
        assert_eq!(layout.piece_length(PieceIndex(u32::MAX)), 0);
        assert_eq!(layout.file_pieces(FileIndex(0)), 0..1);
        assert_eq!(layout.file_pieces(FileIndex(1)), 0..0);
        assert_eq!(layout.file_pieces(FileIndex(2)), 0..3);
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(layout(0, &[1]), Err(LayoutError::PieceLength(0)));
        let piece_bytes = PIECE_BYTES_MAX + 1;
        assert_eq!(layout(piece_bytes, &[1]), Err(LayoutError::PieceLength(piece_bytes)));
        assert_eq!(layout(16384, &[]), Err(LayoutError::Empty));
        assert_eq!(layout(16384, &[0, 0]), Err(LayoutError::Empty));
        assert_eq!(layout(16384, &[u64::MAX, 1]), Err(LayoutError::Overflow));
        assert_eq!(layout(16384, &[i64::MAX as u64, 1]), Err(LayoutError::Overflow));
        let pieces = u64::from(PIECES_MAX);
        assert!(layout(1, &[pieces]).is_ok());
        assert_eq!(layout(1, &[pieces + 1]), Err(LayoutError::TooManyPieces(pieces + 1)));
    }

    #[test]
    fn blocks_are_checked() {
        let layout = layout(1 << 20, &[(1 << 20) + 100]).expect("valid");
        let check = |piece, begin, length| {
            layout.check_block(Block { piece: PieceIndex(piece), begin, length })
        };
        assert!(check(0, 0, 16384));
        assert!(check(0, (1 << 20) - 1, 1));
        assert!(check(0, 0, BLOCK_BYTES_MAX));
        assert!(!check(0, 0, BLOCK_BYTES_MAX + 1));
        assert!(!check(0, 0, 0));
        assert!(!check(0, 1 << 20, 1));
        assert!(!check(0, u32::MAX, u32::MAX));
        assert!(!check(0, u32::MAX, 1), "the sum wraps in 32 bits");
        assert!(check(1, 0, 100));
        assert!(!check(1, 1, 100));
        assert!(!check(2, 0, 1));
        assert!(!check(u32::MAX, 0, 1));
    }

    #[test]
    fn segments_cross_files() {
        let layout = layout(10, &[0, 7, 0, 0, 16, 0]).expect("valid");
        let found: Vec<_> = layout
            .segments(5, 10)
            .map(|segment| (segment.file.0, segment.offset, segment.length))
            .collect();
        assert_eq!(found, [(1, 5, 2), (4, 0, 8)]);
        assert_eq!(layout.segments(0, 0).count(), 0);
        assert_eq!(layout.segments(23, 5).count(), 0);
        assert_eq!(layout.segments(u64::MAX, u64::MAX).count(), 0);
        assert_eq!(layout.segments(22, u64::MAX).map(|segment| segment.length).sum::<u64>(), 1);
    }

    proptest! {
        // Laid end to end the segments are the range: no gap, no overlap, no empty one.
        #[test]
        fn segments_cover_the_range(
            lengths in proptest::collection::vec(prop_oneof![Just(0), 1..40u64], 1..20),
            piece_bytes in 1..50u32,
            offset in 0..500u64,
            length in 0..500u64,
        ) {
            prop_assume!(lengths.iter().any(|length| *length > 0));
            let layout = layout(piece_bytes, &lengths).expect("valid");
            let mut at = offset;
            for segment in layout.segments(offset, length) {
                let file = &layout.files[segment.file.0 as usize];
                prop_assert!(segment.length > 0);
                prop_assert_eq!(file.offset + segment.offset, at);
                prop_assert!(segment.offset + segment.length <= file.length);
                at += segment.length;
            }
            let end = (offset + length).min(layout.total_bytes).max(offset);
            prop_assert_eq!(at, end);
        }

        #[test]
        fn pieces_cover_the_torrent(
            lengths in proptest::collection::vec(0..1000u64, 1..9),
            piece_bytes in 1..99u32,
        ) {
            prop_assume!(lengths.iter().any(|length| *length > 0));
            let layout = layout(piece_bytes, &lengths).expect("valid");
            let mut at = 0;
            for piece in (0..layout.piece_count()).map(PieceIndex) {
                prop_assert_eq!(layout.piece_offset(piece), at);
                prop_assert!(layout.piece_length(piece) > 0);
                at += u64::from(layout.piece_length(piece));
            }
            prop_assert_eq!(at, layout.total_bytes);
        }
    }
}
