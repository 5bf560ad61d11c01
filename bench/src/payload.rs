//! Owns: deterministic content and its .torrent, made once and kept.
//! Never: ships data; the same seed number gives the same bytes on every machine.
//! Flow: compare (or the command line) -> file and .torrent below a folder.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use seedring_proto::bencode::{Document, Encoder};
use sha1::{Digest, Sha1};

use crate::{
    cut,
    leech::{Random, parse_bytes},
};

/// The discard port: nobody answers. rTorrent refuses a torrent without any tracker.
const ANNOUNCE: &str = "http://127.0.0.1:9/announce";
/// Smaller content is not worth a sync each.
const SYNC_MIN_BYTES: u64 = 64 << 20;

#[derive(clap::Args)]
pub struct Options {
    /// The file to make; its torrent is PATH.torrent beside it.
    path: PathBuf,
    #[arg(long, default_value = "2GiB", value_parser = parse_bytes)]
    size: u64,
    #[arg(long, default_value = "1MiB", value_parser = parse_bytes)]
    piece: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(options: Options) -> Result<ExitCode> {
    let torrent = make(&options.path, options.size, options.piece, options.seed)?;
    println!("{}", torrent.display());
    Ok(ExitCode::SUCCESS)
}

/// Content of a seed number: the same bytes as `make` writes, from wherever they are wanted.
#[derive(Clone, Copy)]
pub struct Made(pub u64);

/// Bytes of one random number.
const WORD_BYTES: u64 = 8;

impl Made {
    /// Fills in the bytes from `offset` on.
    pub fn fill(self, bytes: &mut [u8], offset: u64) {
        let mut random = Random::after(self.0, offset / WORD_BYTES);
        // Bytes of the first number that lie before the offset.
        let skip = (offset % WORD_BYTES) as usize;
        let (head, words) = match skip {
            0 => bytes.split_at_mut(0),
            _ => bytes.split_at_mut((WORD_BYTES as usize - skip).min(bytes.len())),
        };
        if !head.is_empty() {
            head.copy_from_slice(&random.next().to_le_bytes()[skip..][..head.len()]);
        }
        for word in words.chunks_mut(WORD_BYTES as usize) {
            word.copy_from_slice(&random.next().to_le_bytes()[..word.len()]);
        }
    }
}

/// Makes `path` and `path`.torrent unless both are there with the right size. Gives the torrent.
pub fn make(path: &Path, size_bytes: u64, piece_bytes: u64, seed: u64) -> Result<PathBuf> {
    let torrent = PathBuf::from(format!("{}.torrent", path.display()));
    let there = fs::metadata(path).is_ok_and(|found| found.len() == size_bytes);
    if there && torrent.exists() {
        return Ok(torrent);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    ensure_room(path, size_bytes)?;
    let name = path.file_name().and_then(|name| name.to_str()).context("a UTF-8 file name")?;
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let made = Made(seed);
    let mut hashes = Vec::new();
    let mut piece = vec![0_u8; piece_bytes as usize];
    let mut left = size_bytes;
    while left > 0 {
        cut::check()?;
        let length = left.min(piece_bytes) as usize;
        made.fill(&mut piece[..length], size_bytes - left);
        hashes.extend_from_slice(&Sha1::digest(&piece[..length]));
        out.write_all(&piece[..length])
            .with_context(|| format!("cannot write {}: is the disk full?", path.display()))?;
        left -= length as u64;
    }
    let file = out
        .into_inner()
        .map_err(|error| error.into_error())
        .with_context(|| format!("cannot write {}: is the disk full?", path.display()))?;
    if size_bytes >= SYNC_MIN_BYTES {
        file.sync_all()?;
    }
    let partial = PathBuf::from(format!("{}.partial", torrent.display()));
    fs::write(&partial, single_file(name, size_bytes, piece_bytes, &hashes))?;
    fs::rename(&partial, &torrent)?;
    Ok(torrent)
}

/// Says so before anything is written, where the file system can't hold it.
pub fn ensure_room(path: &Path, size_bytes: u64) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let found = rustix::fs::statvfs(folder)
        .with_context(|| format!("cannot look at the file system of {}", folder.display()))?;
    // What is there under this name is written anew.
    let there = fs::metadata(path).map_or(0, |found| found.blocks() * 512);
    let free = found.f_bavail * found.f_frsize + there;
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    ensure!(
        free >= size_bytes,
        "no space for the content: {} needs {} MiB, its file system has {} MiB; free some, or use \
         a smaller --size, or another folder (--work)",
        path.display(),
        mib(size_bytes),
        free >> 20
    );
    Ok(())
}

/// The same torrent (the same info-hash) with another tracker.
pub fn with_announce(torrent: &[u8], announce: &str) -> Result<Vec<u8>> {
    let document = Document::parse(torrent)?;
    let info = document.root().dict_get("info").context("no \"info\" dictionary")?;
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes);
    encoder.begin_dict().key("announce").str(announce).key("info").raw(info.raw()).end();
    encoder.finish();
    Ok(bytes)
}

/// A torrent of many files, each of which is the one of a torrent of one file. That has to be whole
/// pieces.
pub fn repeated(torrent: &[u8], name: &str, files: &[String]) -> Result<Vec<u8>> {
    let document = Document::parse(torrent)?;
    let info = document.root().dict_get("info").context("no \"info\" dictionary")?;
    let number = |key: &str| info.dict_get(key).and_then(|value| value.as_int());
    let length = number("length").context("it has several files")?;
    let piece_bytes = number("piece length").context("no \"piece length\"")?;
    ensure!(piece_bytes > 0 && length % piece_bytes == 0, "its last piece is a short one");
    let hashes = info.dict_get("pieces").and_then(|value| value.as_bytes());
    let hashes = hashes.context("no \"pieces\"")?.repeat(files.len());
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes);
    encoder.begin_dict().key("announce").str(ANNOUNCE).key("info").begin_dict();
    encoder.key("files").begin_list();
    for file in files {
        encoder.begin_dict().key("length").int(length);
        encoder.key("path").begin_list().str(file).end().end();
    }
    encoder.end().key("name").str(name);
    encoder.key("piece length").int(piece_bytes).key("pieces").bytes(&hashes);
    encoder.key("private").int(1).end().end();
    encoder.finish();
    Ok(bytes)
}

fn single_file(name: &str, size_bytes: u64, piece_bytes: u64, hashes: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes);
    encoder.begin_dict().key("announce").str(ANNOUNCE).key("info").begin_dict();
    encoder.key("length").int(size_bytes as i64).key("name").str(name);
    encoder.key("piece length").int(piece_bytes as i64).key("pieces").bytes(hashes);
    // No DHT, no peer exchange: a benchmark's torrent is nobody else's business (BEP 27).
    encoder.key("private").int(1).end().end();
    encoder.finish();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torrent::Torrent;

    #[test]
    fn the_torrent_fits_its_content() {
        let bytes: Vec<u8> = (0..100_u8).collect();
        let hashes: Vec<u8> =
            bytes.chunks(64).flat_map(|piece| Sha1::digest(piece).to_vec()).collect();
        let torrent = Torrent::parse(&single_file("x", 100, 64, &hashes)).expect("valid");
        assert_eq!((torrent.total_bytes, torrent.piece_bytes), (100, 64));
        assert_eq!(torrent.piece_hashes.len(), 2);
        assert!(Torrent::parse(&single_file("x", 200, 64, &hashes)).is_err());
    }

    #[test]
    fn content_is_the_same_from_wherever_it_is_made() {
        let mut whole = vec![0; 1000];
        Made(7).fill(&mut whole, 0);
        let mut random = Random(7);
        assert!(whole.chunks(8).all(|word| word == random.next().to_le_bytes()));
        for (from, length) in [(0, 1), (1, 3), (3, 5), (5, 4), (7, 993), (8, 16), (250, 100)] {
            let mut part = vec![0; length];
            Made(7).fill(&mut part, from as u64);
            assert_eq!(part, whole[from..from + length], "{length} bytes from {from}");
        }
    }

    #[test]
    fn many_files_that_are_one() {
        let one = single_file("x", 128, 64, &[7; 40]);
        let names = ["a".to_string(), "b".to_string(), "c".to_string()];
        let many = Torrent::parse(&repeated(&one, "many", &names).expect("made")).expect("valid");
        assert_eq!((many.total_bytes, many.piece_hashes.len()), (384, 6));
        let short = single_file("x", 100, 64, &[7; 40]);
        assert!(repeated(&short, "many", &names).is_err());
    }

    #[test]
    fn another_tracker_leaves_the_info_hash() {
        let before = single_file("x", 100, 64, &[7; 40]);
        let after = with_announce(&before, "http://10.77.0.1:1/announce").expect("a torrent");
        let hash = |bytes: &[u8]| Torrent::parse(bytes).expect("valid").info_hash;
        assert_eq!(hash(&after), hash(&before));
        let document = Document::parse(&after).expect("bencoded");
        let announce = document.root().dict_get("announce").and_then(|value| value.as_str());
        assert_eq!(announce, Some("http://10.77.0.1:1/announce"));
    }
}
