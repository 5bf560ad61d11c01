//! From a wish to download to a torrent that can be admitted. Blocking; runs beside the engine.
//!
//! Owns: pairing a .torrent or a magnet with what the store has of its download; the first look.
//! Never: the registry, shards. Flow: `Wanted` -> here -> `Prepared` -> the engine admits it.

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use seedring_proto::{magnet::Magnet, metainfo::Metainfo, units::InfoHash};
use seedring_shard::torrent::Download as Transfer;

use super::{
    super::{
        look::Condition,
        prepare::{Error, Known, Place, Prepared, read_torrent, write_whole},
    },
    look::{self, Found, Trust},
    moving, root, select,
};
use crate::{
    config::model::DownloadOptions,
    plan::{From, Wanted},
    state::{Download, Record},
};

/// What admission needs of a download beside the rest.
pub struct PreparedDownload {
    pub row: Download,
    /// The store has to hear of it.
    pub fresh: bool,
    pub to_verify: Vec<(u32, u32)>,
    pub transfer: Option<std::sync::Arc<Transfer>>,
    /// Said once: the file system is too small.
    pub warning: Option<String>,
}

pub fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Where a download's .torrent lies.
pub fn torrent_file(state_dir: &Path, hash: &InfoHash) -> PathBuf {
    state_dir.join("torrents").join(format!("{hash}.torrent"))
}

/// One that the configuration or the command line asks for.
pub fn configured(
    wanted: Wanted,
    known: &Known,
    from: &From,
    folder: &Path,
    options: &DownloadOptions,
) -> Result<Prepared, Error> {
    let stored = |hash: &InfoHash| torrent_file(&known.state_dir, hash);
    let (hash, magnet, metainfo) = match from {
        From::Torrent(path) => {
            let metainfo = read_torrent(path)?;
            let place = stored(&metainfo.info_hash);
            if !place.exists() {
                keep_torrent(path, &place)?;
            }
            (metainfo.info_hash, None, Some(metainfo))
        }
        From::Magnet(link) => {
            let magnet = parse_magnet(link)?;
            let metainfo = read_torrent(&stored(&magnet.info_hash)).ok();
            (magnet.info_hash, Some(link.clone()), metainfo)
        }
    };
    let before = known.download_of(&hash);
    let chosen = |row: &Download| row.chosen.as_ref().unwrap_or(&row.folder) == folder;
    let same = before.filter(|row| row.by_command || chosen(row));
    let mut fresh = same.is_none();
    let mut row = same.unwrap_or_else(|| Download { added_at: now_s(), ..Download::default() });
    if !row.by_command && (row.only != options.only || row.sequential != options.sequential) {
        let other_files = row.only != options.only;
        (row.only, row.sequential) = (options.only.clone(), options.sequential);
        if other_files
            && let Some(metainfo) = &metainfo
            && !row.files.is_empty()
        {
            let chosen = choose(&row, metainfo)?;
            for (file, chosen) in row.files.iter_mut().zip(chosen) {
                file.priority = chosen.priority;
            }
            row.completed_at = None;
        }
        fresh = true;
    }
    if !row.by_command {
        let known = row.clone();
        moving::choose(&mut row, folder, &options.storage);
        fresh |= row != known;
    }
    row.magnet = magnet.or(row.magnet);
    finish(wanted, known, hash, row, metainfo, fresh)
}

/// One that a command added.
pub fn added(wanted: Wanted, known: &Known, hash: InfoHash) -> Result<Prepared, Error> {
    let row = known.download_of(&hash).ok_or_else(|| Error::Torrent {
        path: wanted.origin.path().to_owned(),
        why: String::from("it was removed meanwhile"),
    })?;
    let place = torrent_file(&known.state_dir, &hash);
    let metainfo = match read_torrent(&place) {
        Ok(metainfo) => Some(metainfo),
        Err(_) if row.magnet.is_some() => None,
        Err(error) => return Err(error),
    };
    finish(wanted, known, hash, row, metainfo, false)
}

fn finish(
    wanted: Wanted,
    known: &Known,
    hash: InfoHash,
    mut row: Download,
    metainfo: Option<Metainfo>,
    mut fresh: bool,
) -> Result<Prepared, Error> {
    let folder = row.folder.clone();
    let fail = |why| Error::Download { folder: folder.clone(), why };
    fresh |= moving::establish(&mut row).map_err(fail)?;
    let record = known.record_of(&hash);
    let Some(metainfo) = metainfo else {
        return without_metadata(wanted, known, hash, row, record, fresh);
    };
    fresh |= moving::go_on(&mut row, &metainfo).map_err(fail)?;
    if row.files.is_empty() {
        row.files = choose(&row, &metainfo)?;
        if let Ok(root) = root::check(&row.folder, &row.root) {
            let before = look::there_before(&root, &metainfo, &row);
            row.files.iter_mut().zip(before).for_each(|(file, before)| file.foreign = before);
        }
        fresh = true;
    }
    let found = look::look(&row, &metainfo, record.as_ref(), known.direct_io, Trust::Known);
    let place = Place {
        torrent_file: torrent_file(&known.state_dir, &hash),
        content: row.folder.join(&metainfo.info.name),
        single_file: metainfo.info.single_file,
    };
    let stored = record
        .as_ref()
        .is_some_and(|r| r.verified == found.verified && r.stamps[..] == found.stamps[..]);
    let warning = too_small(&found, &row.folder);
    let layout = &metainfo.info.layout;
    let Found { condition, verified, stamps, contents, transfer, to_verify, .. } = found;
    Ok(Prepared {
        info_hash: hash,
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
        kept: record.as_ref().map_or_else(Vec::new, |r| r.kept.clone()),
        paused: record.as_ref().is_some_and(|r| r.paused),
        recheck: record.as_ref().is_some_and(|r| r.recheck),
        added_at: Some(row.added_at),
        made: None,
        contents,
        download: Some(Box::new(PreparedDownload { row, fresh, to_verify, transfer, warning })),
        wanted,
    })
}

/// A magnet whose metadata no peer has given yet.
fn without_metadata(
    wanted: Wanted,
    known: &Known,
    hash: InfoHash,
    row: Download,
    record: Option<Record>,
    fresh: bool,
) -> Result<Prepared, Error> {
    let magnet = parse_magnet(row.magnet.as_deref().unwrap_or_default())?;
    let place = Place {
        torrent_file: torrent_file(&known.state_dir, &hash),
        content: row.folder.clone(),
        single_file: false,
    };
    Ok(Prepared {
        info_hash: hash,
        name: magnet.name.clone().unwrap_or_else(|| hash.to_string()),
        total_bytes: 0,
        piece_count: 0,
        private: false,
        tiers: magnet.tiers(),
        place,
        condition: Condition::Unknown,
        verified: Vec::new(),
        stamps: Box::default(),
        stored: record.is_some(),
        uploaded_bytes: 0,
        downloaded_bytes: 0,
        kept: Vec::new(),
        paused: record.is_some_and(|r| r.paused),
        recheck: false,
        added_at: Some(row.added_at),
        made: None,
        contents: None,
        download: Some(Box::new(PreparedDownload {
            row,
            fresh,
            to_verify: Vec::new(),
            transfer: None,
            warning: None,
        })),
        wanted,
    })
}

fn choose(row: &Download, metainfo: &Metainfo) -> Result<Vec<crate::state::FileRow>, Error> {
    let magnet = row.magnet.as_deref().and_then(|link| link.parse::<Magnet>().ok());
    select::choose(metainfo, &row.only, magnet.as_ref())
        .map_err(|why| Error::Download { folder: row.folder.clone(), why })
}

fn too_small(found: &Found, folder: &Path) -> Option<String> {
    (found.missing_bytes > found.free_bytes).then(|| {
        format!(
            "{} has room for {} MiB, {} MiB are missing",
            folder.display(),
            found.free_bytes >> 20,
            found.missing_bytes.div_ceil(1 << 20)
        )
    })
}

pub fn parse_magnet(link: &str) -> Result<Magnet, Error> {
    link.parse::<Magnet>()
        .map_err(|error| Error::Torrent { path: link.into(), why: error.to_string() })
}

fn keep_torrent(path: &Path, place: &Path) -> Result<(), Error> {
    let read = |error| Error::Read { path: path.to_owned(), error };
    let bytes = std::fs::read(path).map_err(read)?;
    write_whole(place, &bytes).map_err(|error| Error::Read { path: place.to_owned(), error })
}
