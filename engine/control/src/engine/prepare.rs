//! From what the configuration asks for to a torrent that can be served. Blocking; runs beside the
//! engine.
//!
//! Owns: reading .torrent files, making torrents from folders, pairing both with what is known of
//! them.
//! Never: the registry, shards. Flow: `Wanted` -> `prepare` -> `Prepared` -> the engine admits it.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use seedring_proto::{metainfo::Metainfo, units::InfoHash};
use seedring_shard::torrent::{Contents, KeptPiece, Stamp};
use sha1::{Digest, Sha1};

use super::download::prepare::{self as download, PreparedDownload};
use super::look::{Condition, all_pieces, contents_of, look, still_verified};
use super::status::{public_tiers, with_trackers};
use crate::{
    config::model::{Folder, Verify},
    create,
    plan::{Origin, Wanted},
    state::{Download, MadeTorrent, Record},
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
    /// Pieces verified earlier whose files are still the same, BEP 3 bit order. Where the content
    /// is away: all that were verified.
    pub verified: Vec<u8>,
    /// What `verified` goes with: the files as they are, or as they were before they went away.
    pub stamps: Box<[Option<Stamp>]>,
    /// The store has exactly this.
    pub stored: bool,
    pub uploaded_bytes: u64,
    pub downloaded_bytes: u64,
    /// Of a download: blocks of pieces in part that are on disk.
    pub kept: Vec<KeptPiece>,
    /// By the user's word, before this start.
    pub paused: bool,
    /// It was being hashed anew when the last process ended.
    pub recheck: bool,
    pub added_at: Option<i64>,
    /// Made just now: remember it.
    pub made: Option<MadeTorrent>,
    /// Kept where verification follows at once.
    pub contents: Option<Arc<Contents>>,
    /// `Some`: it is, or was, downloaded.
    pub download: Option<Box<PreparedDownload>>,
}

/// Where a torrent's parts lie on this machine.
#[derive(Clone, Debug)]
pub struct Place {
    pub torrent_file: PathBuf,
    /// As configured; may be a symlink or not be there.
    pub content: PathBuf,
    pub single_file: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: {why}")]
    Torrent { path: PathBuf, why: String },
    #[error("download into {folder}: {why}")]
    Download { folder: PathBuf, why: String },
    #[error("{0}")]
    Create(#[from] create::Error),
}

impl Error {
    /// The engine is stopping; nothing is wrong.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Error::Create(create::Error::Cancelled))
    }
}

/// What the store knows of torrents that are not in the registry, as far as preparing needs it.
/// Locked for a look-up or an insertion at a time, never while something is read.
pub struct Known {
    pub state_dir: PathBuf,
    pub direct_io: bool,
    /// Set at shutdown: hashing ends.
    pub cancelled: AtomicBool,
    records: Mutex<HashMap<InfoHash, Record>>,
    made: Mutex<HashMap<PathBuf, Vec<MadeTorrent>>>,
    /// Of torrents in the registry too.
    downloads: Mutex<HashMap<InfoHash, Download>>,
}

impl Known {
    pub fn new(
        state_dir: PathBuf,
        direct_io: bool,
        records: HashMap<InfoHash, Record>,
        made: HashMap<PathBuf, Vec<MadeTorrent>>,
        downloads: HashMap<InfoHash, Download>,
    ) -> Known {
        Known {
            state_dir,
            direct_io,
            cancelled: AtomicBool::new(false),
            records: Mutex::new(records),
            made: Mutex::new(made),
            downloads: Mutex::new(downloads),
        }
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn records(&self) -> MutexGuard<'_, HashMap<InfoHash, Record>> {
        self.records.lock().expect("invariant: no panic while held")
    }

    fn made(&self) -> MutexGuard<'_, HashMap<PathBuf, Vec<MadeTorrent>>> {
        self.made.lock().expect("invariant: no panic while held")
    }

    fn downloads(&self) -> MutexGuard<'_, HashMap<InfoHash, Download>> {
        self.downloads.lock().expect("invariant: no panic while held")
    }

    pub fn record_of(&self, hash: &InfoHash) -> Option<Record> {
        self.records().get(hash).cloned()
    }

    pub fn download_of(&self, hash: &InfoHash) -> Option<Download> {
        self.downloads().get(hash).cloned()
    }

    pub fn keep_download(&self, hash: InfoHash, download: Download) {
        self.downloads().insert(hash, download);
    }

    /// A command removed it: nothing is known of it any more.
    pub fn forget(&self, hash: &InfoHash) {
        self.downloads().remove(hash);
        self.records().remove(hash);
    }

    /// Whether a folder's torrent has this hash, so that its .torrent is still needed.
    pub fn is_made(&self, hash: &InfoHash) -> bool {
        self.made().values().flatten().any(|made| made.info_hash == *hash)
    }

    /// A torrent left the registry: what is known of it, should it come back.
    pub fn keep(&self, hash: InfoHash, record: Record) {
        self.records().insert(hash, record);
    }

    /// A torrent entered the registry, which knows it from now on.
    pub fn drop_record(&self, hash: &InfoHash) {
        self.records().remove(hash);
    }

    pub fn remember_made(&self, path: PathBuf, made: MadeTorrent) {
        self.made().entry(path).or_default().push(made);
    }

    fn made_of(&self, path: &Path) -> Vec<MadeTorrent> {
        self.made().get(path).cloned().unwrap_or_default()
    }
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
    if known.is_cancelled() {
        return Err(create::Error::Cancelled.into());
    }
    match wanted.origin.clone() {
        Origin::File { torrent, content } => {
            let metainfo = read_torrent(&torrent)?;
            let content = content.join(&metainfo.info.name);
            let single_file = metainfo.info.single_file;
            let place = Place { torrent_file: torrent, content, single_file };
            Ok(finish(wanted, known, &metainfo, place))
        }
        Origin::Folder(folder) => from_folder(wanted, &folder, known, progress),
        Origin::Download { from, folder, options } => {
            download::configured(wanted, known, &from, &folder, &options)
        }
        Origin::Added { info_hash, .. } => download::added(wanted, known, info_hash),
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

fn finish(wanted: Wanted, known: &Known, metainfo: &Metainfo, place: Place) -> Prepared {
    let layout = &metainfo.info.layout;
    let condition = look(layout, &place);
    let record = known.records().get(&metainfo.info_hash).cloned();
    let (verified, stamps) = match (&condition, &record) {
        (Condition::Present { stamps, .. }, Some(record)) => {
            (still_verified(layout, record, stamps), stamps.clone())
        }
        (Condition::Present { stamps, .. }, None) => (Vec::new(), stamps.clone()),
        // Nothing is known to be wrong with it: what was verified waits with the torrent.
        (_, Some(record)) => (record.verified.clone(), record.stamps.clone().into()),
        (_, None) => (Vec::new(), Box::default()),
    };
    let stored =
        record.as_ref().is_some_and(|r| r.verified == verified && r.stamps[..] == stamps[..]);
    let needs_hashing = wanted.verify == Verify::Full && verified != all_pieces(layout);
    let contents = contents_of(metainfo, &place, &condition, known.direct_io);
    Prepared {
        info_hash: metainfo.info_hash,
        name: metainfo.info.name.clone(),
        total_bytes: layout.total_bytes,
        piece_count: layout.piece_count(),
        private: metainfo.info.private,
        tiers: metainfo.announce.clone(),
        place,
        condition,
        verified,
        stamps,
        stored,
        uploaded_bytes: record.as_ref().map_or(0, |r| r.uploaded_bytes),
        downloaded_bytes: record.as_ref().map_or(0, |r| r.downloaded_bytes),
        kept: Vec::new(),
        paused: record.as_ref().is_some_and(|r| r.paused),
        recheck: record.as_ref().is_some_and(|r| r.recheck),
        added_at: record.map(|r| r.added_at),
        made: None,
        contents: contents.filter(|_| needs_hashing).map(Arc::new),
        download: None,
        wanted,
    }
}

/// A torrent from a folder: the one made earlier while nothing changed, else a new one. Its
/// .torrent names the trackers that are configured, so that it can be given to a client.
fn from_folder(
    wanted: Wanted,
    folder: &Folder,
    known: &Known,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Prepared, Error> {
    let made_before = known.made_of(&folder.path);
    let stored = |hash: &InfoHash| known.state_dir.join("torrents").join(format!("{hash}.torrent"));
    let tiers = public_tiers(&wanted.trackers);
    let known_torrent = |made: &MadeTorrent| {
        let path = stored(&made.info_hash);
        let metainfo = read_torrent(&path)?;
        if metainfo.announce != tiers
            && let Err(error) = write_whole(&path, &with_trackers(&metainfo, &tiers))
        {
            tracing::warn!("{}: its trackers are not the configured ones: {error}", path.display());
        }
        let content = folder.path.clone();
        let single_file = metainfo.info.single_file;
        Ok::<_, Error>((metainfo, Place { torrent_file: path, content, single_file }))
    };
    let options = digest_of(folder);
    let content = match create::scan(&folder.path) {
        Ok(content) => content,
        // The content is away: what was made of it last is known and waits for it.
        Err(error) => {
            let last = made_before.iter().rev().find(|made| made.options == options);
            let (metainfo, place) = last.ok_or(Error::Create(error)).and_then(known_torrent)?;
            return Ok(finish(wanted, known, &metainfo, place));
        }
    };
    let manifest = manifest_of(folder, &content);
    if let Some(made) = made_before.iter().find(|made| made.manifest == manifest)
        && let Ok((metainfo, place)) = known_torrent(made)
    {
        return Ok(finish(wanted, known, &metainfo, place));
    }
    let result = make(folder, &content, known, progress)?;
    let metainfo = result.metainfo;
    let path = stored(&metainfo.info_hash);
    write_whole(&path, &with_trackers(&metainfo, &tiers))
        .map_err(|error| Error::Read { path: path.clone(), error })?;
    let place = Place {
        torrent_file: path,
        content: folder.path.clone(),
        single_file: metainfo.info.single_file,
    };
    let mut prepared = finish(wanted, known, &metainfo, place);
    // Every byte was just hashed; that holds for the files as they were scanned, and only while
    // they still are.
    if let Condition::Present { stamps, .. } = &prepared.condition {
        let hashed = |(file, stamp): (&create::ContentFile, &Option<Stamp>)| {
            file.length == 0 || *stamp == Some(file.stamp())
        };
        if stamps.len() != content.files.len() || !content.files.iter().zip(stamps).all(hashed) {
            return Err(create::Error::Changed(folder.path.clone()).into());
        }
        prepared.verified = all_pieces(&metainfo.info.layout);
        prepared.contents = None;
        prepared.stored = false;
    }
    let info_hash = metainfo.info_hash;
    prepared.made = Some(MadeTorrent { manifest, options, info_hash });
    Ok(prepared)
}

fn make(
    folder: &Folder,
    content: &create::Content,
    known: &Known,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<create::Made, Error> {
    let options = create::Options {
        name: Some(folder.name.clone()),
        piece_bytes: folder.piece_length,
        private: folder.private,
        source: folder.source.clone(),
        comment: folder.comment.clone(),
        web_seeds: folder.web_seeds.clone(),
        ..create::Options::default()
    };
    let (name, total_bytes) = (&folder.name, content.total_bytes);
    let tell = |done_bytes| {
        progress(Progress { name: name.clone(), done_bytes, total_bytes });
        !known.is_cancelled()
    };
    Ok(create::make(content, &options, &tell)?)
}

/// A digest of what the user says about a folder.
fn digest_of(folder: &Folder) -> [u8; 20] {
    Sha1::digest(format!("{folder:?}")).into()
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
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
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
