//! A download's files as copies on another file system.
//!
//! Owns: copying (holes stay holes), syncing, hashing what was copied, and its way from the folder
//! for parts to its place. Never: which file system, what becomes of the source (`moving`).
//! Flow: `all` -> the row says so -> `place_all`; or `drop_all`.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::FileExt,
    sync::atomic::Ordering,
};

use rustix::fs::{Advice, AtFlags, Mode, OFlags, SeekFrom};
use seedring_proto::{metainfo::Metainfo, units::PieceIndex};
use sha1::{Digest, Sha1};

use super::{
    look::open,
    moving::{Move, above, files, sources, sync_folders},
    places::{make_folders, parts_of, rename_new},
    root::Root,
};
use crate::engine::look::has_bit;

/// Copied in one go.
const STEP_BYTES: usize = 1 << 20;
const CANCELLED: &str = "it is not to be moved any more";

/// The name of a copy in the folder for parts: of a file, and of one that lies aside.
fn name(at: usize, aside: bool) -> String {
    format!("{}-{at}", if aside { "aside" } else { "copy" })
}

/// Copies everything there is at `from` into the folder for parts at `to`, and looks whether the
/// pieces that are had are in the copies as they lie on the device.
pub(super) fn all(work: &Move<'_>, from: &Root, to: &Root) -> Result<(), String> {
    let metainfo = work.metainfo;
    drop_all(to, metainfo).map_err(|error| format!("{}: {error}", to.path.display()))?;
    let parts = parts_of(&metainfo.info_hash);
    let mut found: Vec<(usize, bool, File)> = Vec::new();
    for (at, own) in files(metainfo) {
        let mut names = sources(work.row, &own);
        let aside = names.len();
        names.push(format!("{parts}/{at}"));
        for (number, name) in names.iter().enumerate() {
            match open(from, name, OFlags::RDONLY) {
                Ok(file) => {
                    found.push((at, number == aside, File::from(file)));
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("{}: {error}", from.path.join(name).display())),
            }
        }
    }
    let lengths = found.iter().map(|(_, _, file)| file.metadata().map_or(0, |found| found.len()));
    work.progress.total_bytes.store(lengths.sum::<u64>() * 2, Ordering::Relaxed);
    let mut copies: Vec<Option<File>> = metainfo.info.layout.files.iter().map(|_| None).collect();
    let fail = |error: io::Error| format!("{}: {error}", to.path.join(&parts).display());
    for (at, aside, source) in found {
        let path = format!("{parts}/{}", name(at, aside));
        let (folder, name) = make_folders(to, &path).map_err(fail)?;
        let copy = create(&folder, name).map_err(fail)?;
        copy_bytes(&source, &copy, &|bytes| step(work, bytes)).map_err(fail)?;
        copies[at] = Some(copy);
    }
    sync_folders(to, &BTreeSet::from([parts]))?;
    verify(work, &copies)
}

fn step(work: &Move<'_>, bytes: u64) -> io::Result<()> {
    work.progress.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    match work.progress.cancelled.load(Ordering::Relaxed) {
        true => Err(io::Error::other(CANCELLED)),
        false => Ok(()),
    }
}

fn create(folder: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(rustix::fs::openat(folder, name, flags, Mode::from(0o644))?))
}

/// All that is not a hole; synced, and out of the page cache, so that what is read next is what the
/// device has.
fn copy_bytes(from: &File, to: &File, step: &dyn Fn(u64) -> io::Result<()>) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut buffer = vec![0; STEP_BYTES];
    let mut at = 0;
    while at < length {
        let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => length, // holes up to its end
            Err(rustix::io::Errno::INVAL) => at,    // no such thing as holes here
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(from, SeekFrom::Hole(data.min(length - 1))).unwrap_or(length);
        step(data.min(length) - at)?;
        at = data;
        let end = hole.min(length).max(if data < length { data + 1 } else { length });
        while at < end {
            let most = buffer.len().min((end - at) as usize);
            let read = from.read_at(&mut buffer[..most], at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            to.write_all_at(&buffer[..read], at)?;
            at += read as u64;
            step(read as u64)?;
        }
    }
    to.sync_all()?;
    let _ = rustix::fs::fadvise(to, 0, None, Advice::DontNeed);
    Ok(())
}

/// Every piece that is had is hashed from the copies.
fn verify(work: &Move<'_>, copies: &[Option<File>]) -> Result<(), String> {
    let info = &work.metainfo.info;
    let mut buffer = vec![0; STEP_BYTES];
    for piece in (0..info.layout.piece_count()).map(PieceIndex) {
        let length = u64::from(info.layout.piece_length(piece));
        step(work, length).map_err(|error| error.to_string())?;
        if !has_bit(work.verified, piece) {
            continue;
        }
        let mut hasher = Sha1::new();
        for segment in info.layout.segments(info.layout.piece_offset(piece), length) {
            let (mut at, end) = (segment.offset, segment.offset + segment.length);
            while at < end {
                let part = &mut buffer[..STEP_BYTES.min((end - at) as usize)];
                at += part.len() as u64;
                if segment.padding {
                    part.fill(0);
                } else {
                    let from = at - part.len() as u64;
                    let copy = copies[segment.file.0 as usize].as_ref();
                    let copy = copy.ok_or_else(|| format!("{piece} has a file that is missing"))?;
                    copy.read_exact_at(part, from).map_err(|e| format!("{piece}, copied: {e}"))?;
                }
                hasher.update(part);
            }
        }
        let digest: [u8; 20] = hasher.finalize().into();
        if info.piece_hashes.get(piece) != Some(&digest) {
            return Err(format!(
                "{piece} does not match the torrent once it was copied; look at both disks. It \
                 stays where it is"
            ));
        }
    }
    Ok(())
}

/// Copies to their places; what is there already was put there before.
pub(super) fn place_all(to: &Root, metainfo: &Metainfo) -> Result<(), String> {
    let parts = parts_of(&metainfo.info_hash);
    let folder = match open(to, &parts, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{}: {error}", to.path.join(&parts).display())),
    };
    let mut folders = BTreeSet::from([parts.clone()]);
    for (at, own) in files(metainfo) {
        for (aside, path) in [(false, own.clone()), (true, format!("{parts}/{at}"))] {
            let fail = |error: io::Error| format!("{}: {error}", to.path.join(&path).display());
            let (target, new) = match is_there(&folder, &name(at, aside)) {
                true => make_folders(to, &path).map_err(fail)?,
                false => continue,
            };
            rename_new(&folder, &name(at, aside), &target, new).map_err(|e| fail(e.into()))?;
            folders.insert(above(&path));
        }
    }
    sync_folders(to, &folders)?;
    super::places::drop_blocks(to, &metainfo.info_hash).map_err(|error| error.to_string())
}

fn is_there(folder: impl AsFd, name: &str) -> bool {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Copies that are worth nothing.
pub(super) fn drop_all(to: &Root, metainfo: &Metainfo) -> io::Result<()> {
    let parts = parts_of(&metainfo.info_hash);
    let folder = match open(to, &parts, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for (at, _) in files(metainfo) {
        for aside in [false, true] {
            match rustix::fs::unlinkat(&folder, name(at, aside), AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    super::places::drop_blocks(to, &metainfo.info_hash)
}

/// One file, whole under its new name or not there.
pub(super) fn one(
    (folder, old): (&OwnedFd, &str),
    (target, new): (&OwnedFd, &str),
) -> io::Result<()> {
    let source = File::from(open(folder, old, OFlags::RDONLY)?);
    let fresh = format!(".{new}.seedring");
    match rustix::fs::unlinkat(target, &*fresh, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let copy = create(target, &fresh)?;
    copy_bytes(&source, &copy, &|_| Ok(()))?;
    let same = same_bytes(&source, &copy)?;
    if !same {
        return Err(io::Error::other("its copy has other bytes; look at both disks"));
    }
    rename_new(target, &fresh, target, new)?;
    Ok(rustix::fs::fsync(open(target, ".", OFlags::RDONLY | OFlags::DIRECTORY)?)?)
}

fn same_bytes(a: &File, b: &File) -> io::Result<bool> {
    let length = a.metadata()?.len();
    let (mut left, mut right) = (vec![0; STEP_BYTES], vec![0; STEP_BYTES]);
    let mut at = 0;
    while at < length {
        let step = STEP_BYTES.min((length - at) as usize);
        a.read_exact_at(&mut left[..step], at)?;
        b.read_exact_at(&mut right[..step], at)?;
        if left[..step] != right[..step] {
            return Ok(false);
        }
        at += step as u64;
    }
    Ok(b.metadata()?.len() == length)
}
