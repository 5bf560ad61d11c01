//! Owns: what is transferred (a folder of made-up files) and the hash of each file.
//! Never: depends on anything but its shape, so that two runs make the same bytes.
//! Flow: made before the seeder starts; compared with what each client wrote; checked once more
//! at the end, since an engine that only seeds may write nothing to content.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const BUFFER_BYTES: usize = 1 << 20;

/// What the folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// About 24 MiB: nested folders, odd sizes, empty files, names outside ASCII.
    Mixed,
    /// The same with one file that takes the whole over 1 GiB.
    Huge,
    /// One small file.
    Tiny,
}

impl Shape {
    fn files(self) -> Vec<(&'static str, u64)> {
        if self == Self::Tiny {
            return vec![("tiny.bin", 50_001)];
        }
        let mut files = vec![
            ("a-single-byte.txt", 1),
            ("empty.bin", 0),
            ("one-block.bin", 16_384),
            ("nested/a/b/c/deep.bin", 100_003),
            ("nested/empty/also-empty.dat", 0),
            ("nested/größe/данные 日本語.bin", 2_345_679),
            ("nested/it's (one) & another, 50% #1.dat", 40_001),
            ("zz-последний 🌱.txt", 333),
            ("main.bin", 20_971_527),
        ];
        if self == Self::Huge {
            files.push(("nested/huge.bin", (1 << 30) + 4_567_891));
        }
        files
    }
}

type Hash = [u8; 32];

#[derive(Debug)]
pub struct Content {
    root: PathBuf,
    hashes: BTreeMap<String, Hash>,
    bytes: u64,
    modified: BTreeMap<String, SystemTime>,
}

impl Content {
    /// Makes the files under `root`, whose last component becomes the torrent's name.
    pub fn make(root: &Path, shape: Shape) -> Result<Self> {
        let mut hashes = BTreeMap::new();
        let mut modified = BTreeMap::new();
        let mut bytes = 0;
        for (seed, (name, length)) in (1..).zip(shape.files()) {
            let path = root.join(name);
            let folder = path.parent().context("a file has a folder")?;
            std::fs::create_dir_all(folder)?;
            hashes.insert(name.to_owned(), write_file(&path, seed, length)?);
            modified.insert(name.to_owned(), std::fs::metadata(&path)?.modified()?);
            bytes += length;
        }
        Ok(Self { root: root.to_path_buf(), hashes, bytes, modified })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The torrent's name.
    pub fn name(&self) -> Result<&str> {
        self.root.file_name().and_then(|name| name.to_str()).context("a root without a name")
    }

    /// Compares the files under `copy` with what was made, each by its SHA-256.
    /// `may_lack_empty` is for clients that do not create files without bytes.
    pub fn compare(&self, copy: &Path, may_lack_empty: bool) -> Result<()> {
        let mut wrong = Vec::new();
        let empty = Hash::from(Sha256::digest([]));
        for (name, expected) in &self.hashes {
            match hash_file(&copy.join(name)) {
                Ok(hash) if hash == *expected => {}
                Ok(_) => wrong.push(format!("{name}: another SHA-256")),
                Err(_) if may_lack_empty && *expected == empty => {}
                Err(error) => wrong.push(format!("{name}: {error:#}")),
            }
        }
        if !wrong.is_empty() {
            bail!("{} differs from the content:\n  {}", copy.display(), wrong.join("\n  "));
        }
        Ok(())
    }

    /// The seeded files are as they were made: same bytes, same time, nothing added.
    pub fn check_untouched(&self) -> Result<()> {
        self.compare(&self.root, false).context("the seeder changed the content")?;
        for (name, modified) in &self.modified {
            if std::fs::metadata(self.root.join(name))?.modified()? != *modified {
                bail!("the seeder wrote to {name}");
            }
        }
        let files = count_files(&self.root)?;
        if files != self.hashes.len() {
            bail!("the seeder added files: {files} instead of {}", self.hashes.len());
        }
        Ok(())
    }
}

fn count_files(folder: &Path) -> Result<usize> {
    let mut files = 0;
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                files += 1;
            }
        }
    }
    Ok(files)
}

/// Bytes of a 64-bit xorshift generator: no two blocks alike, the same in every run.
fn write_file(path: &Path, seed: u64, length: u64) -> Result<Hash> {
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; BUFFER_BYTES];
    let mut left = length;
    while left > 0 {
        for word in buffer.as_chunks_mut::<8>().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.write_all(&buffer[..take])?;
        hasher.update(&buffer[..take]);
        left -= take as u64;
    }
    Ok(hasher.finalize().into())
}

fn hash_file(path: &Path) -> Result<Hash> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; BUFFER_BYTES];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(&buffer[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_byte_and_a_missing_file_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let content = Content::make(&folder.path().join("tiny"), Shape::Tiny).unwrap();
        content.check_untouched().unwrap();
        let path = content.root().join("tiny.bin");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[50_000] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(content.compare(content.root(), false).is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(content.compare(content.root(), true).is_err());
    }
}
