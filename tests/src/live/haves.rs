//! Owns: which pieces the state database says are had, read as it lies after a crash.
//! Never: opens the engine's own files: it reads a copy, so that the engine's next start finds what
//! the crash left.
//! Flow: the engine is killed -> read here -> every piece is compared with the file.

use super::torrent::SingleFile;
use crate::interop::seedring_binary;
use anyhow::{Context, Result, bail};
use rusqlite::OptionalExtension;
use std::path::Path;

const DATABASE: &str = "state.sqlite";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredHaves {
    had: Vec<bool>,
}

impl StoredHaves {
    /// What `state_dir` holds of `file`; a torrent that it does not know has nothing.
    pub fn read(state_dir: &Path, file: &SingleFile) -> Result<Self> {
        let mut had = vec![false; file.piece_count() as usize];
        if !state_dir.join(DATABASE).exists() {
            return Ok(Self { had });
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
        let query = "SELECT verified FROM torrents WHERE hex(info_hash) = upper(?1)";
        let row = database.query_row(query, [&file.info_hash], |row| row.get::<_, Vec<u8>>(0));
        let bits = match row.optional() {
            Ok(bits) => bits.unwrap_or_default(),
            // Killed before it had made its tables.
            Err(error) if error.to_string().contains("no such table") => Vec::new(),
            Err(error) => {
                return Err(error).context(format!("{}", seedring_binary()?.display()));
            }
        };
        for (piece, had) in had.iter_mut().enumerate() {
            *had = bits.get(piece / 8).is_some_and(|byte| byte & (0x80 >> (piece % 8)) != 0);
        }
        Ok(Self { had })
    }

    pub fn has(&self, piece: u32) -> bool {
        self.had.get(piece as usize).copied().unwrap_or(false)
    }

    pub fn count(&self) -> usize {
        self.had.iter().filter(|had| **had).count()
    }

    /// Every piece that is said to be had is right in the file (D2).
    pub fn check(&self, file: &SingleFile, folder: &Path) -> Result<()> {
        if self.count() == 0 {
            return Ok(());
        }
        let path = folder.join(&file.name);
        let copy = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let mut start = 0;
        for piece in 0..file.piece_count() {
            let end = start + file.piece_length(piece) as usize;
            if self.has(piece) && copy.get(start..end) != Some(&file.bytes[start..end]) {
                bail!("{}: piece {piece} is stored as had and is not right", path.display());
            }
            start = end;
        }
        Ok(())
    }
}
