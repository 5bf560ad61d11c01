//! Owns: making a torrent of a folder or a file: which files, in which order, their piece hashes.
//! Never: writes to content, prints, or decides where the .torrent goes.
//! Flow: `seedring create` and the engine's folder sources call `scan`, then `make`.
//!
//! What goes in: regular files, empty and hidden ones too, sorted by the bytes of their path's
//! components. Left out and listed: symbolic links (the engine opens content without following
//! them, so that nothing outside of the folder is ever served), sockets and devices, and what
//! desktops leave behind. Empty folders have no place in the format. An executable file is marked
//! so (BEP 47).

mod hash;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use seedring_proto::bencode::Encoder;
use seedring_proto::limits::{DIRECTORY_DEPTH_MAX, PIECES_MAX};
use seedring_proto::metainfo::{self, Metainfo};
use seedring_proto::units::FileIndex;
use seedring_shard::torrent::Stamp;

pub use hash::Progress;

/// Files of one torrent; more are refused before memory is.
pub const FILES_MAX: usize = 1_000_000;
pub const PIECE_BYTES_MIN: u32 = 16 << 10;
pub const PIECE_BYTES_MAX: u32 = 64 << 20;
/// A piece length is chosen so that there are at most this many, up to 16 MiB.
const PIECES_WANTED_MAX: u64 = 2000;
const PIECE_BYTES_CHOSEN_MAX: u32 = 16 << 20;
/// What desktops write into folders that people look at.
const LITTER: [&str; 3] = [".DS_Store", "Thumbs.db", "desktop.ini"];

/// What was found at a path.
#[derive(Clone, Debug)]
pub struct Content {
    /// The folder or the file.
    pub path: PathBuf,
    /// Its own name.
    pub name: Option<String>,
    pub single_file: bool,
    /// In the torrent's order. For a single file one entry without components.
    pub files: Vec<ContentFile>,
    pub total_bytes: u64,
    /// What was left out and why.
    pub left_out: Vec<(PathBuf, LeftOut)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentFile {
    /// Relative to the folder.
    pub components: Vec<String>,
    pub length: u64,
    pub executable: bool,
    /// Compared again after hashing.
    pub(crate) identity: Identity,
}

impl ContentFile {
    /// What the state store keeps of it.
    pub(crate) fn stamp(&self) -> Stamp {
        let (seconds, nanoseconds) = self.identity.modified;
        let modified_ns = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        Stamp { size_bytes: self.identity.length, modified_ns }
    }
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    length: u64,
    modified: (i64, i64),
    inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    SymbolicLink,
    /// A socket, a pipe or a device.
    Special,
    /// Such as Thumbs.db.
    Litter,
}

/// What the torrent says besides its content.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `None`: the content's own name.
    pub name: Option<String>,
    /// A power of two from 16 KiB to 64 MiB; `None`: chosen from the size.
    pub piece_bytes: Option<u32>,
    pub private: bool,
    pub source: Option<String>,
    pub comment: Option<String>,
    /// Tiers (BEP 12).
    pub trackers: Vec<Vec<String>>,
    pub web_seeds: Vec<String>,
    /// Seconds since 1970; `None`: left out, so that the same content gives the same file.
    pub creation_date: Option<i64>,
    /// Threads that read and hash; 0: one a core, at most 8.
    pub threads: usize,
}

#[derive(Debug)]
pub struct Made {
    /// The .torrent file.
    pub torrent: Vec<u8>,
    pub metainfo: Metainfo,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: nothing to make a torrent of: no file has any bytes", .0.display())]
    Empty(PathBuf),
    #[error("{}: neither a file nor a folder", .0.display())]
    NotContent(PathBuf),
    #[error("{}: the name is not UTF-8, which torrents are in; rename it", .0.display())]
    NotUtf8(PathBuf),
    #[error("{}: folders are nested deeper than {DIRECTORY_DEPTH_MAX}", .0.display())]
    TooDeep(PathBuf),
    #[error("{}: more than {FILES_MAX} files; make several torrents of it", .0.display())]
    TooManyFiles(PathBuf),
    #[error("{}: has no name of its own; give the torrent one", .0.display())]
    NoName(PathBuf),
    #[error("{path}: the name cannot be kept in a torrent (clients would write {kept}); rename it")]
    Name { path: String, kept: String },
    #[error("a piece length of {0} bytes: expected a power of two from 16 KiB to 64 MiB")]
    PieceLength(u32),
    #[error("{pieces} pieces, at most {PIECES_MAX} are supported; choose a greater piece length")]
    TooManyPieces { pieces: u64 },
    #[error("{}: changed while it was hashed; start again when nothing writes to it", .0.display())]
    Changed(PathBuf),
    #[error("stopped")]
    Cancelled,
    #[error("the torrent made is not one: {0}")]
    Metainfo(#[from] metainfo::Error),
}

/// Lists what a torrent of this path would hold. Reads folders, opens no file.
pub fn scan(path: &Path) -> Result<Content, Error> {
    let metadata = fs::metadata(path).map_err(|source| at(path, source))?;
    let real = fs::canonicalize(path).map_err(|source| at(path, source))?;
    let name = real.file_name().and_then(|name| name.to_str()).map(str::to_string);
    let mut content = Content {
        path: path.to_path_buf(),
        name,
        single_file: metadata.is_file(),
        files: Vec::new(),
        total_bytes: 0,
        left_out: Vec::new(),
    };
    if metadata.is_file() {
        content.files.push(content_file(Vec::new(), &metadata));
    } else if metadata.is_dir() {
        walk(&mut content)?;
    } else {
        return Err(Error::NotContent(path.to_path_buf()));
    }
    content.total_bytes = content.files.iter().map(|file| file.length).sum();
    if content.total_bytes == 0 {
        return Err(Error::Empty(path.to_path_buf()));
    }
    Ok(content)
}

/// Hashes the content and makes the .torrent. `progress` is called from several threads with the
/// bytes hashed so far; where it answers `false`, the work stops with [`Error::Cancelled`].
pub fn make(content: &Content, options: &Options, progress: Progress<'_>) -> Result<Made, Error> {
    let name = options.name.clone().or_else(|| content.name.clone());
    let name = name.ok_or_else(|| Error::NoName(content.path.clone()))?;
    let piece_bytes = match options.piece_bytes {
        Some(bytes) => bytes,
        None => choose_piece_bytes(content.total_bytes),
    };
    if !piece_bytes.is_power_of_two() || !(PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&piece_bytes)
    {
        return Err(Error::PieceLength(piece_bytes));
    }
    let pieces = content.total_bytes.div_ceil(u64::from(piece_bytes));
    if pieces > u64::from(PIECES_MAX) {
        return Err(Error::TooManyPieces { pieces });
    }
    let hashes = hash::hash_pieces(content, piece_bytes, options.threads, progress)?;
    check_unchanged(content)?;
    let info = encode_info(content, options, &name, piece_bytes, &hashes);
    let torrent = encode_torrent(options, &info);
    let metainfo = Metainfo::parse(&torrent)?;
    check_names(content, &name, &metainfo)?;
    Ok(Made { torrent, metainfo })
}

/// The smallest power of two that gives at most 2000 pieces, from 16 KiB to 16 MiB.
pub fn choose_piece_bytes(total_bytes: u64) -> u32 {
    let mut piece_bytes = PIECE_BYTES_MIN;
    while piece_bytes < PIECE_BYTES_CHOSEN_MAX
        && total_bytes.div_ceil(u64::from(piece_bytes)) > PIECES_WANTED_MAX
    {
        piece_bytes *= 2;
    }
    while piece_bytes < PIECE_BYTES_MAX
        && total_bytes.div_ceil(u64::from(piece_bytes)) > u64::from(PIECES_MAX)
    {
        piece_bytes *= 2;
    }
    piece_bytes
}

impl Content {
    /// Where a file of it lies.
    pub fn file_path(&self, file: &ContentFile) -> PathBuf {
        let mut path = self.path.clone();
        path.extend(&file.components);
        path
    }
}

fn at(path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.to_path_buf(), source }
}

fn content_file(components: Vec<String>, metadata: &fs::Metadata) -> ContentFile {
    ContentFile {
        components,
        length: metadata.len(),
        executable: metadata.mode() & 0o100 != 0,
        identity: Identity::of(metadata),
    }
}

impl Identity {
    fn of(metadata: &fs::Metadata) -> Identity {
        Identity {
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            inode: metadata.ino(),
        }
    }
}

/// Folder by folder, without recursion.
fn walk(content: &mut Content) -> Result<(), Error> {
    let mut folders: Vec<Vec<String>> = vec![Vec::new()];
    let mut found: BTreeMap<Vec<String>, ContentFile> = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        let mut path = content.path.clone();
        path.extend(&folder);
        if folder.len() >= DIRECTORY_DEPTH_MAX {
            return Err(Error::TooDeep(path));
        }
        for entry in fs::read_dir(&path).map_err(|source| at(&path, source))? {
            let entry = entry.map_err(|source| at(&path, source))?;
            let path = entry.path();
            let metadata = entry.metadata().map_err(|source| at(&path, source))?;
            let name = entry.file_name();
            let name = name.to_str().ok_or_else(|| Error::NotUtf8(path.clone()))?;
            let mut components = folder.clone();
            components.push(name.to_string());
            if metadata.is_symlink() {
                content.left_out.push((path, LeftOut::SymbolicLink));
            } else if metadata.is_dir() {
                folders.push(components);
            } else if !metadata.is_file() {
                content.left_out.push((path, LeftOut::Special));
            } else if LITTER.contains(&name) {
                content.left_out.push((path, LeftOut::Litter));
            } else {
                let file = content_file(components.clone(), &metadata);
                found.insert(components, file);
                if found.len() > FILES_MAX {
                    return Err(Error::TooManyFiles(content.path.clone()));
                }
            }
        }
    }
    content.files = found.into_values().collect();
    content.left_out.sort();
    Ok(())
}

fn check_unchanged(content: &Content) -> Result<(), Error> {
    for file in &content.files {
        let path = content.file_path(file);
        let metadata = fs::metadata(&path).map_err(|source| at(&path, source))?;
        if Identity::of(&metadata) != file.identity {
            return Err(Error::Changed(path));
        }
    }
    Ok(())
}

/// What clients make of the names has to be what they are here, or the content would not be found.
fn check_names(content: &Content, name: &str, metainfo: &Metainfo) -> Result<(), Error> {
    let info = &metainfo.info;
    if info.name != name {
        return Err(Error::Name { path: name.to_string(), kept: info.name.clone() });
    }
    if content.single_file {
        return Ok(());
    }
    for (index, file) in content.files.iter().enumerate() {
        let path = file.components.join("/");
        let index = FileIndex(u32::try_from(index).expect("invariant: at most FILES_MAX files"));
        let kept = info.content_path(index).unwrap_or_default();
        if kept != format!("{name}/{path}") {
            return Err(Error::Name { path, kept });
        }
    }
    Ok(())
}

fn encode_info(
    content: &Content,
    options: &Options,
    name: &str,
    piece_bytes: u32,
    hashes: &[u8],
) -> Vec<u8> {
    // Lossless: lengths are those of files.
    let length = |file: &ContentFile| file.length as i64;
    let mut out = Vec::with_capacity(hashes.len() + content.files.len() * 80 + 256);
    let mut encoder = Encoder::new(&mut out);
    encoder.begin_dict();
    if content.single_file {
        if content.files[0].executable {
            encoder.key("attr").str("x");
        }
        encoder.key("length").int(length(&content.files[0]));
    } else {
        encoder.key("files").begin_list();
        for file in &content.files {
            encoder.begin_dict();
            if file.executable {
                encoder.key("attr").str("x");
            }
            encoder.key("length").int(length(file)).key("path").begin_list();
            for component in &file.components {
                encoder.str(component);
            }
            encoder.end().end();
        }
        encoder.end();
    }
    encoder.key("name").str(name).key("piece length").int(i64::from(piece_bytes));
    encoder.key("pieces").bytes(hashes);
    if options.private {
        encoder.key("private").int(1);
    }
    if let Some(source) = &options.source {
        encoder.key("source").str(source);
    }
    encoder.end();
    encoder.finish();
    out
}

fn encode_torrent(options: &Options, info: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(info.len() + 512);
    let mut encoder = Encoder::new(&mut out);
    encoder.begin_dict();
    let tiers: Vec<&Vec<String>> = options.trackers.iter().filter(|t| !t.is_empty()).collect();
    if let Some(first) = tiers.first() {
        encoder.key("announce").str(&first[0]);
        if tiers.len() > 1 || first.len() > 1 {
            encoder.key("announce-list").begin_list();
            for tier in &tiers {
                encoder.begin_list();
                for url in *tier {
                    encoder.str(url);
                }
                encoder.end();
            }
            encoder.end();
        }
    }
    if let Some(comment) = &options.comment {
        encoder.key("comment").str(comment);
    }
    encoder.key("created by").str(concat!("seedring/", env!("CARGO_PKG_VERSION")));
    if let Some(seconds) = options.creation_date {
        encoder.key("creation date").int(seconds);
    }
    encoder.key("info").raw(info);
    if !options.web_seeds.is_empty() {
        encoder.key("url-list").begin_list();
        for url in &options.web_seeds {
            encoder.str(url);
        }
        encoder.end();
    }
    encoder.end();
    encoder.finish();
    out
}
