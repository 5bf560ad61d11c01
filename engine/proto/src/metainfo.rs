//! Owns: what a .torrent file or an `info` dictionary says (BEP 3 and its extensions), checked.
//! Never: reads a file; keeps a claim that was not compared with the others.
//! Flow: bytes from disk, a magnet's peers or create come in; everything else reads these fields.
//!
//! Accepted though the BEPs frown, since files in the wild have it and other clients take it:
//! keys out of order, bytes after the dictionary, paths that collide. Each leaves a [`Warning`].

mod files;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use sha1::Digest;

use crate::bencode::{self, Document, Value};
use crate::layout::{Layout, LayoutError};
use crate::limits::{
    ADDRESSES_MAX, DIRECTORY_DEPTH_MAX, PIECE_BYTES_MAX, TORRENT_BYTES_MAX, URL_BYTES_MAX,
};
use crate::sanitise;
use crate::units::{InfoHash, PieceIndex};

/// A torrent as its .torrent file describes it.
#[derive(Clone, Debug)]
pub struct Metainfo {
    pub info_hash: InfoHash,
    /// SHA-256 of the `info` dictionary; BEP 52 torrents have it, hybrid ones beside the SHA-1.
    pub info_hash_v2: Option<[u8; 32]>,
    pub info: Info,
    /// The `info` dictionary to the byte, as peers ask for it (BEP 9).
    pub raw_info: Arc<[u8]>,
    /// Tiers of tracker URLs (BEP 12): `announce-list` where it names any, else `announce`.
    pub announce: Vec<Vec<String>>,
    /// BEP 19 `url-list`.
    pub web_seeds: Vec<String>,
    /// BEP 5: hosts and ports that know a trackerless torrent.
    pub nodes: Vec<(String, u16)>,
    pub comment: Option<String>,
    pub created_by: Option<String>,
    /// Seconds since 1970.
    pub creation_date: Option<i64>,
    pub encoding: Option<String>,
    /// What a careful reader wants to know and nobody has to.
    pub warnings: Vec<Warning>,
}

/// The part of a torrent that its info-hash covers.
#[derive(Clone, Debug)]
pub struct Info {
    /// Sanitised: of the file, or of the folder that holds the files.
    pub name: String,
    /// The torrent is one file and no folder: its path is its name.
    pub single_file: bool,
    pub layout: Layout,
    pub piece_hashes: PieceHashes,
    /// BEP 27: peers come from the trackers alone.
    pub private: bool,
    /// Set by private trackers so that the same content has another info-hash.
    pub source: Option<String>,
    pub kind: Kind,
}

/// Which protocol versions a torrent has hashes for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Kind {
    V1,
    /// BEP 52 with hashes for both; shared as v1.
    Hybrid,
}

/// SHA-1 of each piece. Shares the bytes of the raw `info` dictionary, so a clone is cheap.
#[derive(Clone)]
pub struct PieceHashes {
    raw_info: Arc<[u8]>,
    /// Where the hashes start.
    start: usize,
    count: u32,
}

/// Things accepted that another client might refuse.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    #[error("the keys of a dictionary are out of order at byte {offset}")]
    UnsortedKeys { offset: usize },
    #[error("{bytes} bytes follow the end of the torrent")]
    TrailingData { bytes: usize },
    #[error("{files} files have the path of another file or folder and were given numbers")]
    Collisions { files: u32 },
    #[error("{files} symbolic links are left out")]
    Symlinks { files: u32 },
}

/// Why bytes are no torrent that can be shared.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{bytes} bytes are too many for a torrent; at most {TORRENT_BYTES_MAX} are read")]
    TooLarge { bytes: usize },
    #[error("this is not a torrent: {0}")]
    Bencode(#[from] bencode::Error),
    #[error("this is not a torrent: '{key}' should be {expected}")]
    Wrong { key: &'static str, expected: &'static str },
    #[error("this is not a torrent: '{0}' is missing")]
    Missing(&'static str),
    #[error(
        "v2-only torrents (BEP 52) are not supported yet: a hybrid or v1 torrent of the same \
         content is"
    )]
    V2Only,
    #[error(
        "Merkle torrents (BEP 30) are not supported: the format is obsolete, a v1 torrent of the \
         same content is"
    )]
    Merkle,
    #[error("'piece length' is {0}; from 1 to {PIECE_BYTES_MAX} is supported")]
    PieceLength(i64),
    #[error("'pieces' has {found} bytes, but the files' lengths ask for {expected}")]
    Pieces { found: usize, expected: usize },
    #[error("'files' entry {index}: {wrong}")]
    File { index: usize, wrong: FileError },
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// What is wrong with an entry of `files`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    #[error("it should be a dictionary")]
    NotDict,
    #[error("'length' should be an integer that is not negative")]
    Length,
    #[error("'path' should be a list of strings that is not empty")]
    Path,
    #[error("'path' has more than {DIRECTORY_DEPTH_MAX} components")]
    TooDeep,
    #[error("a symbolic link should have no length")]
    SymlinkLength,
}

impl Metainfo {
    /// Reads a .torrent file.
    ///
    /// # Errors
    /// What is wrong with it, in words for whoever made or chose the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > TORRENT_BYTES_MAX {
            return Err(Error::TooLarge { bytes: bytes.len() });
        }
        let (document, rest) = Document::parse_prefix(bytes)?;
        let root = document.root();
        if !root.is_dict() {
            return Err(Error::Wrong { key: "the outermost value", expected: "a dictionary" });
        }
        let info = root.dict_get("info").ok_or(Error::Missing("info"))?;
        let mut metainfo = Self::from_value(info, document.unsorted_key())?;
        if !rest.is_empty() {
            metainfo.warnings.push(Warning::TrailingData { bytes: rest.len() });
        }
        metainfo.announce = announce(root);
        metainfo.web_seeds = urls(root.dict_get("url-list"));
        metainfo.nodes = nodes(root);
        let text = |key: &str| root.dict_get(key).and_then(|value| value.as_bytes());
        metainfo.comment = text("comment.utf-8").or(text("comment")).map(sanitise::text);
        metainfo.created_by = text("created by").map(sanitise::text);
        metainfo.encoding = text("encoding").map(sanitise::text);
        metainfo.creation_date = root.dict_get("creation date").and_then(|value| value.as_int());
        Ok(metainfo)
    }

    /// Reads an `info` dictionary alone, as a magnet's peers send it. Whoever asked for it compares
    /// `info_hash` with the one that was asked for.
    ///
    /// # Errors
    /// As [`Metainfo::parse`]; bytes after the dictionary too, for they are part of the hash.
    pub fn from_info(raw_info: &[u8]) -> Result<Self, Error> {
        if raw_info.len() > TORRENT_BYTES_MAX {
            return Err(Error::TooLarge { bytes: raw_info.len() });
        }
        let document = Document::parse(raw_info)?;
        Self::from_value(document.root(), document.unsorted_key())
    }

    fn from_value(info: Value<'_, '_>, unsorted_key: Option<usize>) -> Result<Self, Error> {
        if !info.is_dict() {
            return Err(Error::Wrong { key: "info", expected: "a dictionary" });
        }
        let raw_info: Arc<[u8]> = info.raw().into();
        let mut warnings = Vec::new();
        if let Some(offset) = unsorted_key {
            warnings.push(Warning::UnsortedKeys { offset });
        }
        let parsed = Info::from_value(info, &raw_info, &mut warnings)?;
        let is_v2 = parsed.kind == Kind::Hybrid;
        Ok(Self {
            info_hash: InfoHash(sha1::Sha1::digest(&raw_info).into()),
            info_hash_v2: is_v2.then(|| sha2::Sha256::digest(&raw_info).into()),
            info: parsed,
            raw_info,
            announce: Vec::new(),
            web_seeds: Vec::new(),
            nodes: Vec::new(),
            comment: None,
            created_by: None,
            creation_date: None,
            encoding: None,
            warnings,
        })
    }
}

impl Info {
    /// Path of a file under the folder that torrents are put in: with the torrent's own name.
    /// `None` for padding, which is on no disk, and for an index that is none.
    pub fn content_path(&self, file: crate::units::FileIndex) -> Option<String> {
        let file = self.layout.files.get(file.0 as usize).filter(|file| !file.padding)?;
        let name = &self.name;
        Some(if self.single_file { name.clone() } else { format!("{name}/{}", file.path) })
    }

    fn from_value(
        info: Value<'_, '_>,
        raw_info: &Arc<[u8]>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, Error> {
        let kind = kind(info)?;
        let name = info.dict_get("name.utf-8").or_else(|| info.dict_get("name"));
        let name = name.ok_or(Error::Missing("name"))?;
        let name = name.as_bytes().ok_or(Error::Wrong { key: "name", expected: "a string" })?;
        let name = sanitise::component(name);
        let piece_bytes = int(info, "piece length")?.ok_or(Error::Missing("piece length"))?;
        let piece_bytes = u32::try_from(piece_bytes)
            .ok()
            .filter(|bytes| (1..=PIECE_BYTES_MAX).contains(bytes))
            .ok_or(Error::PieceLength(piece_bytes))?;
        let (files, single_file) = files::read(info, &name, warnings)?;
        let layout = Layout::new(piece_bytes, files)?;
        let source = info.dict_get("source").and_then(|value| value.as_bytes());
        Ok(Self {
            name,
            single_file,
            piece_hashes: PieceHashes::read(info, raw_info, layout.piece_count())?,
            layout,
            private: int(info, "private")?.is_some_and(|private| private != 0),
            source: source.map(sanitise::text),
            kind,
        })
    }
}

impl PieceHashes {
    /// Of a torrent whose metadata is not known.
    pub fn none() -> Self {
        Self { raw_info: Arc::from([]), start: 0, count: 0 }
    }

    fn read(info: Value<'_, '_>, raw_info: &Arc<[u8]>, count: u32) -> Result<Self, Error> {
        let pieces = info.dict_get("pieces").ok_or(Error::Missing("pieces"))?;
        let hashes =
            pieces.as_bytes().ok_or(Error::Wrong { key: "pieces", expected: "a string" })?;
        let expected = count as usize * 20;
        if hashes.len() != expected {
            return Err(Error::Pieces { found: hashes.len(), expected });
        }
        // The string ends where its value ends; the hashes are the last bytes of it.
        let end = pieces.offset() + pieces.raw().len() - info.offset();
        Ok(Self { raw_info: raw_info.clone(), start: end - expected, count })
    }

    /// Pieces of the torrent.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Hash of a piece; `None` where the torrent has no such piece.
    pub fn get(&self, piece: PieceIndex) -> Option<&[u8; 20]> {
        self.as_bytes().as_chunks::<20>().0.get(piece.0 as usize)
    }

    /// All of them, 20 bytes each.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw_info[self.start..self.start + self.count as usize * 20]
    }
}

impl fmt::Debug for PieceHashes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hashes", self.count)
    }
}

fn kind(info: Value<'_, '_>) -> Result<Kind, Error> {
    let is_v2 = int(info, "meta version")? == Some(2);
    match info.dict_get("pieces") {
        Some(_) if is_v2 && info.dict_get("file tree").is_some() => Ok(Kind::Hybrid),
        Some(_) => Ok(Kind::V1),
        None if is_v2 => Err(Error::V2Only),
        None if info.dict_get("root hash").is_some() => Err(Error::Merkle),
        None => Err(Error::Missing("pieces")),
    }
}

fn int(info: Value<'_, '_>, key: &'static str) -> Result<Option<i64>, Error> {
    let value = info.dict_get(key);
    let wrong = Error::Wrong { key, expected: "an integer" };
    value.map(|value| value.as_int().ok_or(wrong)).transpose()
}

/// BEP 12: where `announce-list` is there, `announce` is not used.
fn announce(root: Value<'_, '_>) -> Vec<Vec<String>> {
    let mut left = ADDRESSES_MAX;
    let mut tiers = Vec::new();
    for tier in root.dict_get("announce-list").into_iter().flat_map(|value| value.list()) {
        let urls: Vec<String> = tier.list().filter_map(url).take(left).collect();
        left -= urls.len();
        if !urls.is_empty() {
            tiers.push(urls);
        }
    }
    if tiers.is_empty() {
        tiers.extend(root.dict_get("announce").and_then(url).map(|url| vec![url]));
    }
    tiers
}

/// A list of URLs, or one alone; both are in use (BEP 19).
fn urls(value: Option<Value<'_, '_>>) -> Vec<String> {
    let Some(value) = value else { return Vec::new() };
    if value.is_list() {
        value.list().filter_map(url).take(ADDRESSES_MAX).collect()
    } else {
        url(value).into_iter().collect()
    }
}

fn url(value: Value<'_, '_>) -> Option<String> {
    usable_url(value.as_str()?)
}

/// Without the blanks around it; `None` where what is left could break a request's line apart, is
/// too long or is nothing. Which schemes work is for the tracker client to say.
pub(crate) fn usable_url(text: &str) -> Option<String> {
    let url = text.trim();
    let breaks = |letter: char| letter.is_control() || letter.is_whitespace();
    let usable = !url.is_empty() && url.len() <= URL_BYTES_MAX && !url.contains(breaks);
    usable.then(|| url.to_owned())
}

fn nodes(root: Value<'_, '_>) -> Vec<(String, u16)> {
    let node = |pair: Value<'_, '_>| {
        let mut pair = pair.list();
        let host = url(pair.next()?)?;
        let port = u16::try_from(pair.next()?.as_int()?).ok()?;
        Some((host, port))
    };
    let nodes = root.dict_get("nodes").into_iter().flat_map(|value| value.list());
    nodes.filter_map(node).take(ADDRESSES_MAX).collect()
}
