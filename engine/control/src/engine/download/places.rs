//! Where each file of a download lies: under its own name, under one with a suffix while it is not
//! complete, or aside.
//!
//! Owns: the names beneath the save folder, the folder for parts, taking a file out of it that is
//! wanted by now. Never: content, decisions on what is wanted. Flow: a look at a download -> here
//! -> `Places` for shards.
//!
//! A file that nobody wants is never made. The bytes of it that belong to pieces at the border of a
//! wanted file are kept aside, in a file of its own in the folder for parts, hidden in the save
//! folder: on the same file system, behind the same marker (D5), and one rename away from being the
//! file itself.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Stat};
use seedring_proto::{metainfo::Metainfo, units::InfoHash};
use seedring_shard::torrent::{BLOCKS, FilePlace};

use super::{
    look::{full_path, open},
    root::Root,
};
use crate::state::Download;

/// Hidden in the save folder; a folder a torrent in it.
pub const PARTS: &str = ".seedring-parts";

/// A torrent's folder for parts, beneath the save folder.
pub fn parts_of(hash: &InfoHash) -> String {
    format!("{PARTS}/{hash}")
}

/// Looks for the files of one torrent.
pub struct Finder<'a> {
    root: &'a Root,
    metainfo: &'a Metainfo,
    row: &'a Download,
    /// The folder for parts, if there is one.
    parts: Option<OwnedFd>,
}

impl Finder<'_> {
    pub fn new<'a>(
        root: &'a Root,
        metainfo: &'a Metainfo,
        row: &'a Download,
    ) -> io::Result<Finder<'a>> {
        let parts = parts_of(&metainfo.info_hash);
        let parts = match open(root, &parts, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(parts) => Some(parts),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Finder { root, metainfo, row, parts })
    }

    pub fn is_wanted(&self, at: usize) -> bool {
        self.row.files.get(at).is_none_or(|file| file.priority > 0)
    }

    /// Where a file lies, or is to be made, and what is there. `take_out`: a file that is wanted
    /// and lies aside becomes a file under its own name.
    pub fn find(&self, at: usize, take_out: bool) -> io::Result<(FilePlace, Option<Stat>)> {
        let own = full_path(self.metainfo, at);
        if let Some(found) = stat(self.root, &own)? {
            return Ok((FilePlace::Own, Some(found)));
        }
        let suffix = &self.row.suffix;
        let named = match suffix.is_empty() {
            true => (FilePlace::Own, own),
            false => (FilePlace::Suffixed, format!("{own}{suffix}")),
        };
        if !suffix.is_empty()
            && let Some(found) = stat(self.root, &named.1)?
        {
            return Ok((FilePlace::Suffixed, Some(found)));
        }
        let wanted = self.is_wanted(at);
        let aside = match &self.parts {
            Some(parts) => stat(parts, &at.to_string())?,
            None => None,
        };
        match (aside, &self.parts) {
            (Some(found), Some(parts)) if wanted && take_out => {
                self.take_out(parts, at, &named.1)?;
                Ok((named.0, Some(found)))
            }
            (Some(found), _) => Ok((FilePlace::Aside, Some(found))),
            (None, _) if wanted => Ok((named.0, None)),
            (None, _) => Ok((FilePlace::Aside, None)),
        }
    }

    /// One rename: at any moment it is there once.
    fn take_out(&self, parts: &OwnedFd, at: usize, to: &str) -> io::Result<()> {
        let (folder, name) = make_folders(self.root, to)?;
        let from = at.to_string();
        rename_new(parts, &from, &folder, name)?;
        rustix::fs::fsync(&folder)?;
        // Opened for its path alone, it can't be synced.
        rustix::fs::fsync(open(parts, ".", OFlags::RDONLY | OFlags::DIRECTORY)?)?;
        Ok(())
    }
}

/// `None`: there is nothing under that name.
fn stat(folder: impl AsFd, path: &str) -> io::Result<Option<Stat>> {
    match open(folder, path, OFlags::PATH).and_then(|file| Ok(rustix::fs::fstat(&file)?)) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Renames, and never onto something that is there.
pub fn rename_new(
    from: impl AsFd,
    old: &str,
    to: impl AsFd,
    new: &str,
) -> Result<(), rustix::io::Errno> {
    rustix::fs::renameat_with(from, old, to, new, RenameFlags::NOREPLACE)
}

/// Makes the folders above a file, beneath `base` and through no link, and names the file in the
/// last of them. What was made is durable.
pub fn make_folders(base: impl AsFd, path: &str) -> io::Result<(OwnedFd, &str)> {
    let there = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut folder = open(base, ".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    for part in folders.split('/').filter(|part| !part.is_empty()) {
        match rustix::fs::mkdirat(&folder, part, Mode::from(0o777)).map_err(io::Error::from) {
            Ok(()) => rustix::fs::fsync(&folder)?,
            Err(error) if there(&error) => {}
            Err(error) => return Err(error),
        }
        folder = open(&folder, part, OFlags::RDONLY | OFlags::DIRECTORY)?;
    }
    Ok((folder, name))
}

/// Blocks of pieces in part are no use any more: their file goes, and the folders that are empty
/// without it.
pub fn drop_blocks(root: &Root, hash: &InfoHash) -> io::Result<()> {
    let parts = parts_of(hash);
    match open(root, &parts, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(folder) => match rustix::fs::unlinkat(&folder, BLOCKS, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => remove_empty(root, hash),
            Err(error) => Err(error.into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// All that is kept aside of a torrent goes.
pub fn drop_parts(root: &Root, metainfo: &Metainfo) -> io::Result<()> {
    let hash = &metainfo.info_hash;
    match open(root, &parts_of(hash), OFlags::PATH | OFlags::DIRECTORY) {
        Ok(folder) => {
            for at in 0..metainfo.info.layout.files.len() {
                match rustix::fs::unlinkat(&folder, at.to_string(), AtFlags::empty()) {
                    Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            drop_blocks(root, hash)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Folders that hold something stay.
fn remove_empty(root: &Root, hash: &InfoHash) -> io::Result<()> {
    let all = open(root, PARTS, OFlags::PATH | OFlags::DIRECTORY)?;
    if rustix::fs::unlinkat(&all, hash.to_string(), AtFlags::REMOVEDIR).is_ok() {
        let _ = rustix::fs::unlinkat(root, PARTS, AtFlags::REMOVEDIR);
    }
    Ok(())
}
