//! What there is of a download on disk, against what the store says of it.
//!
//! Owns: looking at its files, what is trusted, what is hashed, the folder that shards write in.
//! Never: hashes, writes content. Flow: prepare and the looks at content -> `Found` -> admit.
//!
//! While something is missing a file's time says nothing, since we write to it. What the store
//! says was synced before it was stored (D2), so it is taken as it is where its file is long
//! enough. What was there before us is hashed first.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use seedring_platform::descriptors::OwnedFile;
use seedring_proto::{
    metainfo::Metainfo,
    units::{FileIndex, PieceIndex},
};
use seedring_shard::torrent::{
    Contents, Download as Transfer, FilePlace, Growth, KeptPiece, Places, Stamp, Writing,
};

use super::{
    super::look::{Condition, has_bit, still_verified},
    places::{Finder, PARTS, make_folders, parts_of},
    root::{self, MARKER, Root},
    select,
};
use crate::state::{Download, Record};

/// What a look at a download found.
pub struct Found {
    pub condition: Condition,
    /// Pieces that are had, BEP 3 bit order. Where the folder is away: all that were had.
    pub verified: Vec<u8>,
    pub stamps: Box<[Option<Stamp>]>,
    pub contents: Option<Arc<Contents>>,
    /// `None`: nothing is missing, as the store has it; or the folder is away.
    pub transfer: Option<Arc<Transfer>>,
    /// Runs of pieces that may be there, to be hashed.
    pub to_verify: Vec<(u32, u32)>,
    /// Bytes that are wanted and missing, and how many the file system has room for.
    pub missing_bytes: u64,
    pub free_bytes: u64,
}

/// How much of a file there is.
struct OnDisk {
    stamp: Stamp,
    /// Something was written to it: not one hole.
    has_blocks: bool,
}

/// What is believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// The store.
    Known,
    /// Nothing: all that is there is hashed.
    Again,
    /// The bits, and that everything wanted is there: it was just completed.
    Finished,
}

/// Looks, and gets ready what shards need. `row.files` must be chosen already.
pub fn look(
    row: &Download,
    metainfo: &Metainfo,
    record: Option<&Record>,
    direct_io: bool,
    trust: Trust,
) -> Found {
    let known = || record.map(|r| (r.verified.clone(), r.stamps.clone())).unwrap_or_default();
    let away = |condition| {
        let (verified, stamps) = known();
        Found {
            condition,
            verified,
            stamps: stamps.into(),
            contents: None,
            transfer: None,
            to_verify: Vec::new(),
            missing_bytes: 0,
            free_bytes: 0,
        }
    };
    let root = match root::check(&row.folder, &row.root) {
        Ok(root) => root,
        Err(why) => return away(Condition::Missing(why)),
    };
    let complete = match trust {
        Trust::Known => row.completed_at.is_some(),
        Trust::Again => false,
        Trust::Finished => true,
    };
    let on_disk = match files(&root, metainfo, row, !complete) {
        Ok(files) => files,
        Err(condition) => return away(condition),
    };
    let look = Look { row, metainfo, on_disk, record, trust };
    if complete && let Some(condition) = look.what_is_missing(&root) {
        return away(condition);
    }
    match look.found(root, complete, direct_io) {
        Ok(found) => found,
        Err(why) => away(Condition::Missing(why)),
    }
}

/// What shards need to serve a complete download; `stamps`: what its files were when they were
/// verified.
pub fn contents_of(
    row: &Download,
    metainfo: &Metainfo,
    stamps: Box<[Option<Stamp>]>,
    direct_io: bool,
) -> Result<Contents, String> {
    let found = look(row, metainfo, None, direct_io, Trust::Finished);
    match (found.contents.and_then(Arc::into_inner), found.condition) {
        (Some(contents), _) => Ok(Contents { stamps, ..contents }),
        (None, Condition::Missing(why) | Condition::Differs(why)) => Err(why),
        (None, _) => Err(String::from("no content")),
    }
}

struct Look<'a> {
    row: &'a Download,
    metainfo: &'a Metainfo,
    on_disk: Files,
    record: Option<&'a Record>,
    trust: Trust,
}

/// The save folder, what there is of each file, and where.
struct Files {
    folder: OwnedFd,
    files: Vec<Option<OnDisk>>,
    places: Box<[FilePlace]>,
}

impl Look<'_> {
    /// A completed download is content like any other: what is gone is waited for.
    fn what_is_missing(&self, root: &Root) -> Option<Condition> {
        let layout = &self.metainfo.info.layout;
        for (at, (file, found)) in layout.files.iter().zip(&self.on_disk.files).enumerate() {
            let wanted = self.row.files.get(at).is_none_or(|row| row.priority > 0);
            if !wanted || file.padding || file.attributes.symlink || file.length == 0 {
                continue;
            }
            let path = root.path.join(full_path(self.metainfo, at));
            match found {
                None => {
                    let why = format!("{}: No such file or directory", path.display());
                    return Some(Condition::Missing(why));
                }
                Some(found) if found.stamp.size_bytes != file.length => {
                    return Some(Condition::Differs(format!(
                        "{} has {} bytes, the torrent says {}",
                        path.display(),
                        found.stamp.size_bytes,
                        file.length
                    )));
                }
                Some(_) => {}
            }
        }
        None
    }

    fn found(&self, root: Root, complete: bool, direct_io: bool) -> Result<Found, String> {
        let layout = &self.metainfo.info.layout;
        let stamps: Box<[Option<Stamp>]> = match complete {
            true => self.on_disk.files.iter().map(|f| f.as_ref().map(|f| f.stamp)).collect(),
            false => layout.files.iter().map(|_| None).collect(),
        };
        let priorities = select::piece_priorities(layout, &self.row.files);
        let verified = self.trusted(complete, &stamps);
        let to_verify = self.to_verify(complete, &verified, &priorities);
        if !complete && (!to_verify.is_empty() || verified.iter().any(|byte| *byte != 0)) {
            self.settle_files(!to_verify.is_empty())?;
        }
        let transfer = (!complete).then(|| self.transfer(&verified, &priorities));
        let missing = (0..layout.piece_count()).map(PieceIndex);
        let missing = missing.filter(|p| priorities[p.0 as usize] > 0 && !has_bit(&verified, *p));
        let missing_bytes = missing.map(|p| u64::from(layout.piece_length(p))).sum();
        let free_bytes = free_bytes(&root);
        let base = root.path.join(&self.metainfo.info.name);
        let contents = self.contents(root, &base, complete, stamps.clone(), direct_io)?;
        Ok(Found {
            condition: Condition::Present { base, stamps: stamps.clone() },
            verified,
            stamps,
            contents: Some(Arc::new(contents)),
            transfer: transfer.map(Arc::new),
            to_verify,
            missing_bytes,
            free_bytes,
        })
    }

    /// Stored bits that the files as they are can stand for.
    fn trusted(&self, complete: bool, stamps: &[Option<Stamp>]) -> Vec<u8> {
        let layout = &self.metainfo.info.layout;
        let mut bits = match self.record {
            Some(record) if complete && self.trust == Trust::Known => {
                still_verified(layout, record, stamps)
            }
            Some(record) if self.trust != Trust::Again => record.verified.clone(),
            _ => Vec::new(),
        };
        bits.resize(layout.piece_count().div_ceil(8) as usize, 0);
        for piece in (0..layout.piece_count()).map(PieceIndex) {
            if has_bit(&bits, piece) && !self.is_there(piece, false) {
                bits[piece.0 as usize / 8] &= !(0x80 >> (piece.0 % 8));
            }
        }
        bits
    }

    /// Whether every byte of a piece lies in a file that reaches so far.
    fn is_there(&self, piece: PieceIndex, written: bool) -> bool {
        let layout = &self.metainfo.info.layout;
        let length = u64::from(layout.piece_length(piece));
        layout.segments(layout.piece_offset(piece), length).all(|segment| {
            segment.padding
                || self.on_disk.files[segment.file.0 as usize].as_ref().is_some_and(|file| {
                    segment.offset + segment.length <= file.stamp.size_bytes
                        && (file.has_blocks || !written)
                })
        })
    }

    /// Of a new download: all that is there. Later: what a recheck left, or what changed files of
    /// a completed one hold.
    fn to_verify(&self, complete: bool, verified: &[u8], priorities: &[u8]) -> Vec<(u32, u32)> {
        let nothing_known = self.record.is_none_or(|r| r.verified.iter().all(|byte| *byte == 0));
        let known = !self.again() && !nothing_known && !self.is_recheck();
        if self.trust == Trust::Finished || (!complete && known) {
            return Vec::new();
        }
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for piece in (0..self.metainfo.info.layout.piece_count()).map(PieceIndex) {
            let wanted = !complete || priorities[piece.0 as usize] > 0;
            if has_bit(verified, piece) || !wanted || !self.is_there(piece, true) {
                continue;
            }
            match runs.last_mut() {
                Some((first, count)) if *first + *count == piece.0 => *count += 1,
                _ => runs.push((piece.0, 1)),
            }
        }
        runs
    }

    /// One was under way: what is not verified yet was not looked at.
    fn is_recheck(&self) -> bool {
        self.record.is_some_and(|record| record.recheck)
    }

    fn again(&self) -> bool {
        self.trust == Trust::Again
    }

    /// Files that are there get their full length, as they would at the first write: shards read
    /// in chunks, and a chunk that ends early fails as a whole. `sync`: what is hashed from here on
    /// may only be stored as had if it can't be lost (D2).
    fn settle_files(&self, sync: bool) -> Result<(), String> {
        let there = self.on_disk.files.iter().enumerate();
        for (at, found) in there.filter_map(|(at, found)| Some((at, found.as_ref()?))) {
            let path = self.path(at);
            let length = self.metainfo.info.layout.files[at].length;
            let settle = || {
                if found.stamp.size_bytes < length {
                    let file = open(&self.on_disk.folder, &path, OFlags::WRONLY)?;
                    rustix::fs::ftruncate(&file, length)?;
                }
                if sync {
                    rustix::fs::fsync(open(&self.on_disk.folder, &path, OFlags::RDONLY)?)?;
                }
                io::Result::Ok(())
            };
            settle().map_err(|error| format!("{path}: {error}"))?;
        }
        Ok(())
    }

    /// A file's path beneath the save folder, as it lies there.
    fn path(&self, at: usize) -> String {
        let own = full_path(self.metainfo, at);
        match self.on_disk.places[at] {
            FilePlace::Own => own,
            FilePlace::Suffixed => format!("{own}{}", self.row.suffix),
            FilePlace::Aside => format!("{}/{at}", parts_of(&self.metainfo.info_hash)),
        }
    }

    fn places(&self, root: &Root) -> Places {
        let all_own = self.on_disk.places.iter().all(|place| *place == FilePlace::Own);
        Places {
            of: if all_own { Box::default() } else { self.on_disk.places.clone() },
            suffix: self.row.suffix.clone(),
            parts: root.path.join(parts_of(&self.metainfo.info_hash)),
        }
    }

    /// Of what was left of pieces in part, that which can still be of use.
    fn kept(&self, verified: &[u8]) -> Vec<KeptPiece> {
        let layout = &self.metainfo.info.layout;
        let use_of = |kept: &&KeptPiece| {
            kept.piece.0 < layout.piece_count()
                && !has_bit(verified, kept.piece)
                && kept.fits(layout.piece_length(kept.piece))
        };
        let of_use = !self.again() && !self.is_recheck();
        let all = self.record.filter(|_| of_use).map_or(&[][..], |record| &record.kept);
        all.iter().filter(use_of).cloned().collect()
    }

    fn transfer(&self, verified: &[u8], priorities: &[u8]) -> Transfer {
        let count = self.metainfo.info.layout.piece_count();
        let transfer = Transfer::new(count).with_kept(self.kept(verified));
        transfer.set_sequential(self.row.sequential);
        select::set_priorities(&transfer, priorities);
        for piece in (0..count).map(PieceIndex).filter(|piece| has_bit(verified, *piece)) {
            transfer.set_synced(piece);
        }
        transfer
    }

    fn contents(
        &self,
        root: Root,
        base: &Path,
        complete: bool,
        stamps: Box<[Option<Stamp>]>,
        direct_io: bool,
    ) -> Result<Contents, String> {
        let Metainfo { info, raw_info, .. } = self.metainfo;
        let writing = match complete {
            true => None,
            false => {
                let folder = self.on_disk.folder.try_clone();
                let folder = folder.map_err(|e| format!("{}: {e}", root.path.display()))?;
                let folder = OwnedFile::from_os(folder);
                let folder_path = root.path.clone();
                let growth = Growth::new(info.layout.piece_count());
                let allocation = self.row.allocation;
                Some(Writing { folder, folder_path, allocation, growth })
            }
        };
        Ok(Contents {
            layout: info.layout.clone(),
            piece_hashes: info.piece_hashes.clone(),
            raw_info: raw_info.clone(),
            private: info.private,
            base: base.to_owned(),
            base_is_file: info.single_file,
            places: self.places(&root),
            stamps,
            direct_io,
            writing,
        })
    }
}

/// Opens the folder that the files lie in (made, where it may be) and looks at each of them.
/// `may_make`: wanted files without bytes are made where they are missing, since no shard writes to
/// those, and wanted files that were kept aside come out.
fn files(
    root: &Root,
    metainfo: &Metainfo,
    row: &Download,
    may_make: bool,
) -> Result<Files, Condition> {
    let name = &metainfo.info.name;
    let path = root.path.join(name);
    if name == MARKER || name == PARTS {
        let why = format!("{}: the torrent has the name of what is hidden here", path.display());
        return Err(Condition::Differs(why));
    }
    let fail = |error: &io::Error| Condition::Missing(format!("{}: {error}", path.display()));
    let folder = root.as_fd().try_clone_to_owned().map_err(|error| fail(&error))?;
    if !metainfo.info.single_file {
        open_folder(root, name, may_make).map_err(|error| fail(&error))?;
    }
    let finder = Finder::new(root, metainfo, row).map_err(|error| fail(&error))?;
    let layout = &metainfo.info.layout;
    let mut files = Vec::with_capacity(layout.files.len());
    let mut places = vec![FilePlace::Own; layout.files.len()].into_boxed_slice();
    for (at, file) in layout.files.iter().enumerate() {
        if file.padding || file.attributes.symlink {
            files.push(None);
            continue;
        }
        let own = full_path(metainfo, at);
        let path = root.path.join(&own);
        if file.length == 0 && may_make && finder.is_wanted(at) {
            make_empty(root, &own).map_err(|error| {
                Condition::Missing(format!("{} can't be made: {error}", path.display()))
            })?;
        }
        let found = finder.find(at, may_make);
        let (place, found) =
            found.map_err(|error| Condition::Missing(format!("{}: {error}", path.display())))?;
        places[at] = place;
        let Some(found) = found else {
            files.push(None);
            continue;
        };
        if !FileType::from_raw_mode(found.st_mode).is_file() {
            let why = format!("{} is not a regular file", path.display());
            return Err(Condition::Differs(why));
        }
        let size_bytes = found.st_size.cast_unsigned();
        if size_bytes > file.length {
            return Err(Condition::Differs(format!(
                "{} has {size_bytes} bytes, the torrent says {}; move it away, or choose another \
                 folder",
                path.display(),
                file.length
            )));
        }
        files.push(Some(on_disk(&found)));
    }
    Ok(Files { folder, files, places })
}

fn on_disk(found: &Stat) -> OnDisk {
    let modified_ns =
        i128::from(found.st_mtime) * 1_000_000_000 + i128::from(found.st_mtime_nsec.cast_signed());
    OnDisk {
        stamp: Stamp { size_bytes: found.st_size.cast_unsigned(), modified_ns },
        has_blocks: found.st_blocks > 0,
    }
}

/// Which files are there already, before the first look with a chosen list.
pub fn there_before(root: &Root, metainfo: &Metainfo, row: &Download) -> Vec<bool> {
    let count = metainfo.info.layout.files.len();
    let folder = match metainfo.info.single_file {
        true => Ok(()),
        false => open(root, &metainfo.info.name, OFlags::PATH).map(drop),
    };
    match folder {
        Err(error) if error.kind() == io::ErrorKind::NotFound => vec![false; count],
        _ => match files(root, metainfo, row, false) {
            Ok(found) => found.files.iter().map(Option::is_some).collect(),
            // Something is in the way, or can't be looked at: none of it is ours.
            Err(_) => vec![true; count],
        },
    }
}

fn open_folder(root: &Root, name: &str, may_make: bool) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match open(root, name, flags) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && may_make => {
            rustix::fs::mkdirat(root, name, Mode::from(0o777))?;
            rustix::fs::fsync(root)?;
            open(root, name, flags)
        }
        opened => opened,
    }
}

/// Makes a file without bytes and the folders above it, beneath `base` and through no link; one
/// that is there stays.
fn make_empty(base: impl AsFd, path: &str) -> io::Result<()> {
    let (folder, name) = make_folders(base, path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(&folder, name, flags, Mode::from(0o666)).map_err(io::Error::from) {
        Ok(_) => Ok(rustix::fs::fsync(&folder)?),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Beneath a folder, through no symbolic link.
pub fn open(folder: impl AsFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat2(folder, path, flags, Mode::empty(), resolve)?)
}

/// A file's path beneath the save folder.
pub fn full_path(metainfo: &Metainfo, at: usize) -> String {
    let info = &metainfo.info;
    match info.single_file {
        true => info.name.clone(),
        false => format!("{}/{}", info.name, info.layout.files[at].path),
    }
}

/// Room on the file system of a folder, for this user.
pub fn free_bytes(folder: impl AsFd) -> u64 {
    rustix::fs::fstatvfs(folder).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize))
}

/// Bytes of a file that lie in pieces that are had.
pub fn had_bytes(metainfo: &Metainfo, at: usize, verified: &[u8]) -> u64 {
    let layout = &metainfo.info.layout;
    let file = &layout.files[at];
    let piece_bytes = u64::from(layout.piece_bytes);
    let pieces = layout.file_pieces(FileIndex(at as u32)).map(PieceIndex);
    let had = pieces.filter(|piece| has_bit(verified, *piece)).map(|piece| {
        let from = u64::from(piece.0) * piece_bytes;
        let to = (from + piece_bytes).min(file.offset + file.length);
        to - from.max(file.offset)
    });
    had.sum()
}
