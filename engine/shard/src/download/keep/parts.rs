//! What keeping needs of its surroundings: the file, the batches, a download's side of it.
//!
//! Owns: how the file is opened, runs of bytes as writes, what is taken up of what was left.
//! Never: when. Flow: `keep` and `ask` call.

use std::{ffi::CString, io, os::unix::ffi::OsStrExt};

use seedring_platform::{
    descriptors::File,
    memory::{Class, Lease, Share},
    op::{Access, OpenRequest},
    write_batch::WriteBatch,
};
use seedring_proto::units::PieceIndex;

use super::{
    super::{
        Fetch,
        partial::{Gathered, Partial},
    },
    Part, Side,
};
use crate::torrent::BLOCKS;

/// How a side's file is opened, beneath the save folder.
pub(super) fn open(side: &Side) -> io::Result<Box<OpenRequest>> {
    let writing = side.contents.writing.as_ref();
    let writing = writing.ok_or_else(|| io::Error::from(io::ErrorKind::PermissionDenied))?;
    let path = side.contents.places.parts.join(BLOCKS);
    let path = path.strip_prefix(&writing.folder_path).map_err(io::Error::other)?;
    Ok(Box::new(OpenRequest {
        root: File::from(writing.folder.try_clone()?),
        path: CString::new(path.as_os_str().as_bytes())?,
        direct: false,
        access: Access::Create,
    }))
}

/// Runs of bytes as batches: what follows on what goes with it.
pub(super) fn batches(
    runs: Vec<(u32, Share, std::ops::Range<usize>)>,
) -> Vec<(u32, Box<WriteBatch>)> {
    let mut batches: Vec<(u32, Box<WriteBatch>)> = Vec::new();
    for (at, share, range) in runs {
        match batches.last_mut() {
            Some((start, batch)) if *start + batch.len_bytes() as u32 == at && !batch.is_full() => {
                batch.push(&share, range);
            }
            _ => {
                let mut batch = Box::new(WriteBatch::new());
                batch.push(&share, range);
                batches.push((at, batch));
            }
        }
    }
    batches
}

impl Fetch {
    pub(in super::super) fn part(&self) -> Part<'_> {
        Part { shared: &self.shared, contents: &self.contents, download: &self.download }
    }

    /// A piece that an earlier run left in part, and that this peer has.
    pub(in super::super) fn left_behind(
        &self,
        may: impl Fn(PieceIndex) -> bool,
        claim: impl Fn(PieceIndex) -> bool,
    ) -> Option<PieceIndex> {
        let wanted = |piece: &PieceIndex| self.download.priority(*piece) > 0 && may(*piece);
        self.download.kept.waiting().find(|piece| wanted(piece) && claim(*piece))
    }

    /// What was left of a piece that was just claimed; its buffer waits for it.
    pub(in super::super) fn take_left(
        &mut self,
        piece: PieceIndex,
        lease: impl FnMut(Class) -> Option<Lease>,
    ) {
        let Some(kept) = self.download.kept.take(piece) else { return };
        let Some(partial) = self.partials.get_mut(&piece) else { return };
        if kept.fits(partial.length()) {
            partial.reserve(kept.numbers(), lease);
            self.to_restore.push(kept.clone());
        }
    }
}

/// What is gathered of a piece, at its end.
pub(in super::super) fn gathered(partial: Partial) -> Option<Gathered> {
    (partial.here() > 0).then(|| partial.into_gathered())
}
