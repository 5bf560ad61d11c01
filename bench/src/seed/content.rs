//! Owns: where a seeder's bytes come from: a file, or the seed number that the file would be made
//! of.
//! Never: keeps any. Flow: a request's offset -> `read` -> the block.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use anyhow::{Context, Result, ensure};
use seedring_proto::units::PieceIndex;
use sha1::{Digest, Sha1};

use crate::{payload::Made, torrent::Torrent};

pub enum Content {
    File(File),
    Made(Made),
}

impl Content {
    /// A file, which has to be of the torrent's length.
    pub fn file(path: &Path, torrent: &Torrent) -> Result<Content> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("cannot read the content {name}"))?;
        let (length, expected) = (file.metadata()?.len(), torrent.total_bytes);
        ensure!(length == expected, "{name} has {length} bytes, the torrent has {expected}");
        Ok(Content::File(file))
    }

    /// What `payload` makes of a seed number; the torrent's first and last piece have to be of it.
    pub fn made(seed: u64, torrent: &Torrent) -> Result<Content> {
        let made = Made(seed);
        let mut piece = vec![0; torrent.piece_bytes as usize];
        for index in [0, torrent.piece_hashes.len() - 1] {
            let bytes = &mut piece[..torrent.piece_length(PieceIndex(index as u32)) as usize];
            made.fill(bytes, index as u64 * u64::from(torrent.piece_bytes));
            ensure!(
                Sha1::digest(&*bytes).as_slice() == torrent.piece_hashes[index],
                "the torrent is not of what `payload --seed {seed}` makes: piece {index} is another"
            );
        }
        Ok(Content::Made(made))
    }

    pub fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Content::File(file) => file.read_exact_at(bytes, offset).context("the content"),
            Content::Made(made) => {
                made.fill(bytes, offset);
                Ok(())
            }
        }
    }
}
