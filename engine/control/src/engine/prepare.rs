//! From what the configuration asks for to a torrent that can be served. Blocking; runs beside the engine.
//!
//! Owns: reading .torrent files, making torrents from folders, comparing content with what is known.
//! Never: the registry, shards. Flow: `Wanted` -> `prepare` -> `Prepared` -> the engine admits it.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use seedring_proto::{
    layout::Layout,
    metainfo::Metainfo,
    units::{InfoHash, PieceIndex},
};
use seedring_shard::torrent::{Contents, Stamp};
use sha1::{Digest, Sha1};

use crate::{
    config::model::Folder,
    create,
    plan::{Origin, Wanted},
    state::{MadeTorrent, Record},
};

/// A .torrent file may be so large (RELIABILITY: libtorrent's 10 MB is too small for real ones).
const TORRENT_FILE_BYTES_MAX: u64 = 64 << 20;

/// A torrent, ready to be admitted.
pub struct Prepared {
    pub wanted: Wanted,
    pub info_hash: InfoHash,
    pub name: String,
    pub total_bytes: u64,
    pub piece_count: u32,
    pub private: bool,
    /// Trackers that the .torrent names.
    pub tiers: Vec<Vec<String>>,
    pub place: Place,
    pub condition: Condition,
    /// Pieces verified earlier whose files are still the same, BEP 3 bit order.
    pub verified: Vec<u8>,
    pub uploaded_bytes: u64,
    pub added_at: Option<i64>,
    /// Made just now: remember it.
    pub made: Option<MadeTorrent>,
    /// Kept where verification follows at once.
    pub contents: Option<Arc<Contents>>,
}

/// Where a torrent's parts lie on this machine.
#[derive(Clone, Debug)]
pub struct Place {
    pub torrent_file: PathBuf,
    /// As configured; may be a symlink or not be there.
    pub content: PathBuf,
    pub single_file: bool,
}

/// What the content looked like.
#[derive(Clone, Debug)]
pub enum Condition {
    /// Every file is there with its size.
    Present { base: PathBuf, stamps: Box<[Option<Stamp>]> },
    /// A file or folder is not there, or can't be looked at.
    Missing(String),
    /// A file has another size than the torrent says.
    Differs(String),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: {why}")]
    Torrent { path: PathBuf, why: String },
    #[error("{0}")]
    Create(#[from] create::Error),
}

/// What the store knows, as far as preparing needs it. Shared by the preparing threads.
pub struct Known {
    pub state_dir: PathBuf,
    pub records: HashMap<InfoHash, Record>,
    pub made: HashMap<PathBuf, Vec<MadeTorrent>>,
    pub direct_io: bool,
}

/// How far the making of a torrent is.
#[derive(Clone, Debug)]
pub struct Progress {
    pub name: String,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// Reads or makes the torrent, and looks at its content.
pub fn prepare(
    wanted: Wanted,
    known: &Known,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Prepared, Error> {
    match wanted.origin.clone() {
        Origin::File { torrent, content } => {
            let metainfo = read_torrent(&torrent)?;
            Ok(finish(wanted, known, metainfo, torrent, &content, None))
        }
        Origin::Folder(folder) => from_folder(wanted, &folder, known, progress),
    }
}

pub fn read_torrent(path: &Path) -> Result<Metainfo, Error> {
    let read = |error| Error::Read { path: path.to_owned(), error };
    let length = fs::metadata(path).map_err(read)?.len();
    if length > TORRENT_FILE_BYTES_MAX {
        let why = format!("{length} bytes are no .torrent file; at most 64 MiB are read");
        return Err(Error::Torrent { path: path.to_owned(), why });
    }
    let bytes = fs::read(path).map_err(read)?;
    Metainfo::parse(&bytes)
        .map_err(|error| Error::Torrent { path: path.to_owned(), why: error.to_string() })
}

fn finish(
    wanted: Wanted,
    known: &Known,
    metainfo: Metainfo,
    torrent_file: PathBuf,
    content_root: &Path,
    made: Option<MadeTorrent>,
) -> Prepared {
    let content = match &wanted.origin {
        Origin::File { .. } => content_root.join(&metainfo.info.name),
        Origin::Folder(_) => content_root.to_owned(),
    };
    let place = Place { torrent_file, content, single_file: metainfo.info.single_file };
    let condition = look(&metainfo.info.layout, &place);
    let record = known.records.get(&metainfo.info_hash);
    let fresh = made.is_some();
    let verified = match (&condition, record) {
        (Condition::Present { .. }, _) if fresh => all_pieces(&metainfo.info.layout),
        (Condition::Present { stamps, .. }, Some(record)) => {
            still_verified(&metainfo.info.layout, record, stamps)
        }
        _ => Vec::new(),
    };
    let contents = contents_of(&metainfo, &place, &condition, known.direct_io);
    let needs_hashing = wanted.verify == crate::config::model::Verify::Full && !fresh;
    Prepared {
        info_hash: metainfo.info_hash,
        name: metainfo.info.name.clone(),
        total_bytes: metainfo.info.layout.total_bytes,
        piece_count: metainfo.info.layout.piece_count(),
        private: metainfo.info.private,
        tiers: metainfo.announce.clone(),
        place,
        condition,
        verified,
        uploaded_bytes: record.map_or(0, |r| r.uploaded_bytes),
        added_at: record.map(|r| r.added_at),
        made,
        contents: contents.filter(|_| needs_hashing).map(Arc::new),
        wanted,
    }
}

/// A torrent from a folder: the one made earlier while nothing changed, else a new one.
fn from_folder(
    wanted: Wanted,
    folder: &Folder,
    known: &Known,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Prepared, Error> {
    let made_before = known.made.get(&folder.path).map_or(&[][..], Vec::as_slice);
    let stored = |hash: &InfoHash| known.state_dir.join("torrents").join(format!("{hash}.torrent"));
    let content = match create::scan(&folder.path) {
        Ok(content) => content,
        // The content is away: what was made of it is known and waits for it.
        Err(error) => {
            let Some(made) = made_before.last() else { return Err(error.into()) };
            let path = stored(&made.info_hash);
            let metainfo = read_torrent(&path)?;
            return Ok(finish(wanted, known, metainfo, path, &folder.path, None));
        }
    };
    let manifest = manifest_of(folder, &content);
    if let Some(made) = made_before.iter().find(|made| made.manifest == manifest) {
        let path = stored(&made.info_hash);
        if let Ok(metainfo) = read_torrent(&path) {
            return Ok(finish(wanted, known, metainfo, path, &folder.path, None));
        }
    }
    let options = create::Options {
        name: Some(folder.name.clone()),
        piece_bytes: folder.piece_length,
        private: folder.private,
        source: folder.source.clone(),
        comment: folder.comment.clone(),
        web_seeds: folder.web_seeds.clone(),
        ..create::Options::default()
    };
    let (name, total_bytes) = (folder.name.clone(), content.total_bytes);
    let tell = |done_bytes| {
        progress(Progress { name: name.clone(), done_bytes, total_bytes });
        true
    };
    let result = create::make(&content, &options, &tell)?;
    let path = stored(&result.metainfo.info_hash);
    write_whole(&path, &result.torrent)
        .map_err(|error| Error::Read { path: path.clone(), error })?;
    let made = MadeTorrent { manifest, info_hash: result.metainfo.info_hash };
    Ok(finish(wanted, known, result.metainfo, path, &folder.path, Some(made)))
}

/// A digest of everything that a made torrent depends on: options, paths, sizes, times.
fn manifest_of(folder: &Folder, content: &create::Content) -> [u8; 20] {
    let mut hasher = Sha1::new();
    hasher.update(format!("{folder:?}"));
    for file in &content.files {
        file.components.iter().for_each(|name| {
            hasher.update(name);
            hasher.update([0]);
        });
        hasher.update(format!("{:?}", file.identity));
    }
    hasher.finalize().into()
}

/// Writes a file that is there whole or not at all, also after a crash.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = fs::File::create(&fresh)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Looks at every file that the torrent names.
pub fn look(layout: &Layout, place: &Place) -> Condition {
    let base = match fs::canonicalize(&place.content) {
        Ok(base) => base,
        Err(error) => {
            return Condition::Missing(format!("{}: {error}", place.content.display()));
        }
    };
    let mut stamps = Vec::with_capacity(layout.files.len());
    for file in &*layout.files {
        if file.padding || file.attributes.symlink {
            stamps.push(None);
            continue;
        }
        let path = if place.single_file { base.clone() } else { base.join(&*file.path) };
        match fs::symlink_metadata(&path) {
            Err(error) => return Condition::Missing(format!("{}: {error}", path.display())),
            Ok(found) if !found.is_file() => {
                return Condition::Differs(format!("{} is not a regular file", path.display()));
            }
            Ok(found) if found.len() != file.length => {
                return Condition::Differs(format!(
                    "{} has {} bytes, the torrent says {}",
                    path.display(),
                    found.len(),
                    file.length
                ));
            }
            Ok(found) => stamps.push(Some(stamp_of(&found))),
        }
    }
    Condition::Present { base, stamps: stamps.into() }
}

fn stamp_of(found: &fs::Metadata) -> Stamp {
    let modified_ns = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
    Stamp { size_bytes: found.len(), modified_ns }
}

fn all_pieces(layout: &Layout) -> Vec<u8> {
    let count = layout.piece_count();
    let mut bits = vec![0xff; count.div_ceil(8) as usize];
    if let Some(last) = bits.last_mut()
        && !count.is_multiple_of(8)
    {
        *last = 0xff << (8 - count % 8);
    }
    bits
}

/// Bits of pieces that were verified, less those of files that are not what they were then.
pub fn still_verified(layout: &Layout, record: &Record, now: &[Option<Stamp>]) -> Vec<u8> {
    if record.stamps.len() != now.len() {
        return Vec::new();
    }
    let mut bits = record.verified.clone();
    bits.resize(layout.piece_count().div_ceil(8) as usize, 0);
    let piece_bytes = u64::from(layout.piece_bytes);
    for ((file, then), now) in layout.files.iter().zip(&record.stamps).zip(now) {
        if then == now || file.length == 0 {
            continue;
        }
        let last = (file.offset + file.length - 1) / piece_bytes;
        for piece in file.offset / piece_bytes..=last {
            bits[piece as usize / 8] &= !(0x80 >> (piece % 8));
        }
    }
    bits
}

/// Whether a piece's bit is set in BEP 3 order.
pub fn has_bit(bits: &[u8], piece: PieceIndex) -> bool {
    bits.get(piece.0 as usize / 8).is_some_and(|byte| byte & (0x80 >> (piece.0 % 8)) != 0)
}

/// What shards need to serve; `None`: the content is not there.
pub fn contents_of(
    metainfo: &Metainfo,
    place: &Place,
    condition: &Condition,
    direct_io: bool,
) -> Option<Contents> {
    let Condition::Present { base, stamps } = condition else { return None };
    Some(Contents {
        layout: metainfo.info.layout.clone(),
        piece_hashes: metainfo.info.piece_hashes.clone(),
        raw_info: metainfo.raw_info.clone(),
        private: metainfo.info.private,
        base: base.clone(),
        base_is_file: place.single_file,
        stamps: stamps.clone(),
        direct_io,
    })
}

#[cfg(test)]
mod tests {
    use seedring_proto::layout::NewFile;

    use super::*;

    fn layout(lengths: &[u64]) -> Layout {
        let file = |(n, length): (usize, &u64)| NewFile {
            path: format!("f{n}").into(),
            length: *length,
            ..NewFile::default()
        };
        Layout::new(10, lengths.iter().enumerate().map(file).collect()).unwrap()
    }

    #[test]
    fn a_changed_file_takes_its_pieces_and_no_others() {
        let layout = layout(&[25, 5, 40]);
        let stamp = |n| Some(Stamp { size_bytes: n, modified_ns: 1 });
        let record = Record {
            verified: all_pieces(&layout),
            stamps: vec![stamp(25), stamp(5), stamp(40)],
            ..Record::default()
        };
        assert_eq!(record.verified, [0b1111_1110]);
        let mut now = record.stamps.clone();
        assert_eq!(still_verified(&layout, &record, &now), [0b1111_1110]);
        now[1] = Some(Stamp { size_bytes: 5, modified_ns: 2 });
        assert_eq!(still_verified(&layout, &record, &now), [0b1101_1110]);
        now.pop();
        assert_eq!(still_verified(&layout, &record, &now), [] as [u8; 0]);
    }

    #[test]
    fn content_is_looked_at_file_by_file() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place {
            torrent_file: PathBuf::new(),
            content: dir.path().to_owned(),
            single_file: false,
        };
        let layout = layout(&[3, 2]);
        assert!(matches!(look(&layout, &place), Condition::Missing(m) if m.contains("f0")));
        fs::write(dir.path().join("f0"), "abc").unwrap();
        fs::write(dir.path().join("f1"), "a").unwrap();
        let Condition::Differs(why) = look(&layout, &place) else { panic!("one byte is missing") };
        assert!(why.contains("f1") && why.contains("1 bytes") && why.contains('2'), "{why}");
        fs::write(dir.path().join("f1"), "ab").unwrap();
        let Condition::Present { stamps, .. } = look(&layout, &place) else { panic!("all there") };
        assert_eq!(stamps[1].unwrap().size_bytes, 2);
    }
}
