//! Owns: what the state database says of torrents, read as it lies after a crash: pieces that are
//! had, totals, downloads.
//! Never: opens the engine's own files: it reads a copy, so that the engine's next start finds what
//! the crash left.
//! Flow: the engine is killed -> read here -> every piece is compared with the file.

use super::peer::decode_hex;
use super::torrent::SingleFile;
use anyhow::{Context, Result, bail};
use sha1::{Digest, Sha1};
use std::collections::{HashMap, HashSet};
use std::path::Path;

const DATABASE: &str = "state.sqlite";

/// All that the database keeps of torrents, by info-hash.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    rows: HashMap<Vec<u8>, Row>,
    downloads: HashSet<Vec<u8>>,
}

#[derive(Debug, Clone, Default)]
struct Row {
    verified: Vec<u8>,
    uploaded_bytes: u64,
    downloaded_bytes: u64,
}

impl Stored {
    /// What `state_dir` holds; nothing where the engine was killed before it had made its tables.
    pub fn read(state_dir: &Path) -> Result<Self> {
        let mut stored = Self::default();
        if !state_dir.join(DATABASE).exists() {
            return Ok(stored);
        }
        let copy = tempfile::tempdir()?;
        for suffix in ["", "-wal"] {
            let name = format!("{DATABASE}{suffix}");
            match std::fs::copy(state_dir.join(&name), copy.path().join(&name)) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).context(name),
            }
        }
        let database = rusqlite::Connection::open(copy.path().join(DATABASE))?;
        match stored.fill(&database) {
            Err(error) if !error.to_string().contains("no such table") => {
                Err(error).with_context(|| state_dir.join(DATABASE).display().to_string())
            }
            _ => Ok(stored),
        }
    }

    fn fill(&mut self, database: &rusqlite::Connection) -> rusqlite::Result<()> {
        let mut query = database.prepare(
            "SELECT info_hash, verified, uploaded_bytes, downloaded_bytes FROM torrents",
        )?;
        let rows = query.query_map([], |row| {
            let bytes = |column| row.get(column).map(|bytes: i64| bytes.unsigned_abs());
            let (verified, uploaded_bytes) = (row.get(1)?, bytes(2)?);
            let downloaded_bytes = bytes(3)?;
            Ok((row.get(0)?, Row { verified, uploaded_bytes, downloaded_bytes }))
        })?;
        self.rows = rows.collect::<rusqlite::Result<_>>()?;
        let mut query = database.prepare("SELECT info_hash FROM downloads")?;
        self.downloads = query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        Ok(())
    }

    fn row(&self, file: &SingleFile) -> Option<&Row> {
        self.rows.get(&decode_hex(&file.info_hash).ok()?)
    }

    /// Pieces that are had; none of a torrent that it does not know.
    pub fn haves(&self, file: &SingleFile) -> StoredHaves {
        let bits = self.row(file).map(|row| row.verified.as_slice()).unwrap_or_default();
        let bit = |piece: u32| -> bool {
            let byte = bits.get(piece as usize / 8);
            byte.is_some_and(|byte| byte & (0x80 >> (piece % 8)) != 0)
        };
        StoredHaves { had: (0..file.piece_count()).map(bit).collect() }
    }

    pub fn uploaded_bytes(&self, file: &SingleFile) -> u64 {
        self.row(file).map_or(0, |row| row.uploaded_bytes)
    }

    pub fn downloaded_bytes(&self, file: &SingleFile) -> u64 {
        self.row(file).map_or(0, |row| row.downloaded_bytes)
    }

    /// Whether it is kept as a download.
    pub fn downloads(&self, file: &SingleFile) -> bool {
        decode_hex(&file.info_hash).is_ok_and(|hash| self.downloads.contains(&hash))
    }

    pub fn download_count(&self) -> usize {
        self.downloads.len()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredHaves {
    had: Vec<bool>,
}

impl StoredHaves {
    /// What `state_dir` holds of `file`; a torrent that it does not know has nothing.
    pub fn read(state_dir: &Path, file: &SingleFile) -> Result<Self> {
        Ok(Stored::read(state_dir)?.haves(file))
    }

    pub fn has(&self, piece: u32) -> bool {
        self.had.get(piece as usize).copied().unwrap_or(false)
    }

    pub fn count(&self) -> usize {
        self.had.iter().filter(|had| **had).count()
    }

    /// Every piece that is said to be had has its SHA-1 in the file (D2).
    pub fn check(&self, file: &SingleFile, folder: &Path) -> Result<()> {
        if self.count() == 0 {
            return Ok(());
        }
        let path = folder.join(&file.name);
        let copy = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let mut start = 0;
        for piece in 0..file.piece_count() {
            let end = start + file.piece_length(piece) as usize;
            if self.has(piece) {
                let hash = copy.get(start..end).map(|bytes| <[u8; 20]>::from(Sha1::digest(bytes)));
                if hash != Some(file.piece_hash(piece)) {
                    bail!("{}: piece {piece} is stored as had and is not right", path.display());
                }
            }
            start = end;
        }
        Ok(())
    }
}
