//! A complete download to where it belongs: under its own names, in its last folder.
//!
//! Owns: where a download lies and goes, the steps of a move and what a crash between them leaves.
//! Never: the registry, shards (`mover`), a file that was there before us. Blocking.
//! Flow: complete -> on the same file system each file is renamed; else all are copied into the
//! goal's folder for parts, synced, hashed, put in their places, and the source goes last.
//!
//! ```text
//! No --same file system--> Renaming -----------------------------------------> No, at the goal
//! No --copied and hashed--> Placing --all in place--> Removing --source gone--> No, at the goal
//! ```
//! Each arrow is one row in the store, on disk before the next step. At any moment the row says
//! where the whole content is, or (`Renaming`, `Placing`) that each file is at one of two places
//! and the rest is to be brought over. What is copied counts for nothing before `Placing`.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use rustix::fs::{AtFlags, OFlags};
use seedring_platform::op::Allocation;
use seedring_proto::metainfo::Metainfo;

use super::{
    copy,
    delete::{self, remove_folder},
    look::{full_path, open},
    places::{self, make_folders, parts_of, rename_new},
    root::{self, Root},
};
use crate::{
    config::model::{Preallocate, Storage},
    engine::prepare::Place,
    state::{Download, Goal, Moving},
};

/// How far a move is, and whether it is to end.
#[derive(Debug, Default)]
pub struct Progress {
    pub done_bytes: AtomicU64,
    pub total_bytes: AtomicU64,
    pub cancelled: AtomicBool,
}

impl Progress {
    pub fn percent(&self) -> u64 {
        let of = self.total_bytes.load(Ordering::Relaxed).max(1);
        self.done_bytes.load(Ordering::Relaxed) * 100 / of
    }
}

/// What the row says from now on; durable before the next step is taken.
#[derive(Debug)]
pub struct Step {
    pub moving: Moving,
    /// Which files are not ours alone, and stay at the source as well.
    pub foreign: Vec<bool>,
}

/// What a move needs to know.
pub struct Move<'a> {
    pub row: &'a Download,
    pub metainfo: &'a Metainfo,
    /// Pieces that are had.
    pub verified: &'a [u8],
    /// Where other torrents' content lies.
    pub others: &'a [Place],
    pub progress: &'a Progress,
    /// Has the row stored. `Err`: the move is not wanted any more.
    pub say: &'a dyn Fn(Step) -> Result<(), String>,
}

/// Where a download lies, and where it goes; `content`: the folder that was asked for.
pub fn choose(row: &mut Download, content: &Path, storage: &Storage) {
    row.allocation = match storage.preallocate {
        Preallocate::Full => Allocation::Full,
        Preallocate::None | Preallocate::Sparse => Allocation::Sparse,
    };
    row.chosen = Some(content.to_owned());
    if row.folder.as_os_str().is_empty() {
        row.folder = storage.incomplete_folder.clone().unwrap_or_else(|| content.to_owned());
    }
    if row.files.is_empty() {
        // Later its files have the names that they have.
        row.suffix.clone_from(&storage.incomplete_suffix);
    }
    if row.moving == Moving::No {
        let last = storage.move_completed_to.clone().unwrap_or_else(|| content.to_owned());
        let known = row.goal.take().filter(|goal| goal.folder == last);
        let new = Goal { folder: last, root: String::new() };
        row.goal = (new.folder != row.folder).then(|| known.unwrap_or(new));
    }
}

/// Makes sure of both folders, once (D5).
pub fn establish(row: &mut Download) -> Result<bool, String> {
    let mut fresh = false;
    if row.root.is_empty() {
        row.root = root::establish(&row.folder)?.id;
        fresh = true;
    }
    if let Some(goal) = &mut row.goal
        && goal.root.is_empty()
    {
        goal.root = root::establish(&goal.folder)?.id;
        fresh = true;
    }
    Ok(fresh)
}

/// All of it is at its goal: what the row says then.
pub fn arrived(row: &mut Download) {
    let Some(goal) = row.goal.take() else { return row.moving = Moving::No };
    let left = Goal {
        folder: std::mem::replace(&mut row.folder, goal.folder),
        root: std::mem::replace(&mut row.root, goal.root),
    };
    if row.moving == Moving::Placing {
        (row.moving, row.goal) = (Moving::Removing, Some(left));
    } else {
        settled(row);
    }
}

/// Nothing of it is left where it was: from here on all of it is ours.
pub fn settled(row: &mut Download) {
    if row.moving != Moving::No {
        row.files.iter_mut().for_each(|file| file.foreign = false);
    }
    (row.moving, row.goal) = (Moving::No, None);
}

impl Move<'_> {
    /// The whole move but for `Removing`. `false`: there was nothing to do.
    pub fn run(&self) -> Result<bool, String> {
        let (from, to) = self.roots()?;
        let Some(to) = to else { return self.name_files(&from) };
        self.find_conflicts(&from, &to)?;
        let foreign = self.foreign(&from)?;
        let device = |root: &Root| rustix::fs::fstat(root).map(|found| found.st_dev);
        let same = device(&from).map_err(|error| error.to_string())?
            == device(&to).map_err(|error| error.to_string())?;
        if same {
            (self.say)(Step { moving: Moving::Renaming, foreign: foreign.clone() })?;
            rename_all(&from, Some(&to), self.row, self.metainfo, &foreign)?;
            return Ok(true);
        }
        let copied = copy::all(self, &from, &to);
        let said = copied
            .and_then(|()| (self.say)(Step { moving: Moving::Placing, foreign: foreign.clone() }));
        if let Err(why) = said {
            let _ = copy::drop_all(&to, self.metainfo);
            return Err(why);
        }
        copy::place_all(&to, self.metainfo)?;
        Ok(true)
    }

    fn roots(&self) -> Result<(Root, Option<Root>), String> {
        let from = root::check(&self.row.folder, &self.row.root)?;
        let to = match &self.row.goal {
            Some(goal) => Some(root::check(&goal.folder, &goal.root)?),
            None => None,
        };
        // Two paths to one folder.
        let other = to.filter(|to| to.id != from.id);
        Ok((from, other))
    }

    /// It stays in its folder: files that have the suffix lose it. Each rename is whole by itself,
    /// and a file is found under either name.
    fn name_files(&self, root: &Root) -> Result<bool, String> {
        if self.row.suffix.is_empty() {
            return Ok(self.row.goal.is_some());
        }
        let renamed = rename_all(root, None, self.row, self.metainfo, &[])?;
        Ok(renamed || self.row.goal.is_some())
    }

    fn find_conflicts(&self, from: &Root, to: &Root) -> Result<(), String> {
        for (at, own) in files(self.metainfo) {
            let there = |root: &Root, path: &str| open(root, path, OFlags::PATH).is_ok();
            let to_move = sources(self.row, &own).iter().any(|path| there(from, path));
            if to_move && there(to, &own) {
                let path = to.path.join(&own);
                return Err(format!(
                    "file {at} can't be moved: {} is there already; move it away",
                    path.display()
                ));
            }
        }
        Ok(())
    }

    /// Files that were there before us, or that another torrent has too.
    fn foreign(&self, from: &Root) -> Result<Vec<bool>, String> {
        let base = from.path.join(&self.metainfo.info.name);
        let shared = delete::files_of_others(&base, self.others)?;
        let is_foreign = |at: usize| {
            let whole = from.path.join(full_path(self.metainfo, at));
            self.row.files.get(at).is_none_or(|file| file.foreign) || shared.contains(&whole)
        };
        Ok((0..self.metainfo.info.layout.files.len()).map(is_foreign).collect())
    }
}

/// At start, before its files are looked at: brings to its end what a crash interrupted. `true`:
/// the row says something else now.
pub fn go_on(row: &mut Download, metainfo: &Metainfo) -> Result<bool, String> {
    let Some(goal) = row.goal.clone() else { return Ok(false) };
    match row.moving {
        Moving::No | Moving::Removing => return Ok(false),
        Moving::Renaming => {
            let from = root::check(&row.folder, &row.root)?;
            let to = root::check(&goal.folder, &goal.root)?;
            let foreign: Vec<bool> = row.files.iter().map(|file| file.foreign).collect();
            rename_all(&from, Some(&to), row, metainfo, &foreign)?;
        }
        Moving::Placing => {
            let to = root::check(&goal.folder, &goal.root)?;
            copy::place_all(&to, metainfo)?;
        }
    }
    arrived(row);
    Ok(true)
}

/// The last step of a copy: the source goes, but for what is not ours alone.
pub fn remove_source(row: &Download, metainfo: &Metainfo) -> Result<(), String> {
    let Some(left) = &row.goal else { return Ok(()) };
    let old = Download { folder: left.folder.clone(), root: left.root.clone(), ..row.clone() };
    delete::content(&old, metainfo, &[]).map(drop)
}

/// The files that have bytes on disk: number and own path beneath the save folder.
pub(super) fn files(metainfo: &Metainfo) -> impl Iterator<Item = (usize, String)> + '_ {
    let all = metainfo.info.layout.files.iter().enumerate();
    let real = all.filter(|(_, file)| !file.padding && !file.attributes.symlink);
    real.map(|(at, _)| (at, full_path(metainfo, at)))
}

/// Under which names a file may lie in its folder.
pub(super) fn sources(row: &Download, own: &str) -> Vec<String> {
    let suffixed = format!("{own}{}", row.suffix);
    match row.suffix.is_empty() {
        true => vec![own.to_owned()],
        false => vec![own.to_owned(), suffixed],
    }
}

/// Opens the folder above a file. `None`: it is not there.
fn folder_above<'a>(root: &Root, path: &'a str) -> io::Result<Option<(OwnedFd, &'a str)>> {
    let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
    match open(root, folder, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(folder) => Ok(Some((folder, name))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_there(folder: impl AsFd, name: &str) -> bool {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Brings every file that is still at `from` under its own name at `to` (or where it is).
/// `foreign`: files that stay at the source as well. `true`: something was moved.
fn rename_all(
    from: &Root,
    to: Option<&Root>,
    row: &Download,
    metainfo: &Metainfo,
    foreign: &[bool],
) -> Result<bool, String> {
    let goal = to.unwrap_or(from);
    let mut folders = BTreeSet::new();
    for (at, own) in files(metainfo) {
        let fail = |error: io::Error| format!("{}: {error}", goal.path.join(&own).display());
        let mut names = sources(row, &own);
        names.retain(|name| to.is_some() || *name != own);
        for name in names {
            let Some((folder, old)) = folder_above(from, &name).map_err(fail)? else { continue };
            let stays = to.is_some() && foreign.get(at).is_some_and(|foreign| *foreign);
            // A link that an interrupted move made is the file.
            let made = stays && open(goal, &own, OFlags::PATH).is_ok();
            if made || !is_there(&folder, old) {
                continue;
            }
            let (target, new) = make_folders(goal, &own).map_err(fail)?;
            move_file((&folder, old), (&target, new), stays).map_err(fail)?;
            folders.insert(above(&own));
        }
    }
    let changed = !folders.is_empty();
    if let Some(to) = to {
        rename_parts(from, to, metainfo).map_err(|error| error.to_string())?;
    }
    sync_folders(goal, &folders)?;
    if to.is_some() {
        sync_folders(from, &folders)?;
        for folder in folders.iter().rev().flat_map(|folder| Path::new(folder).ancestors()) {
            if !folder.as_os_str().is_empty() {
                let _ = remove_folder(from, folder);
            }
        }
    }
    Ok(changed)
}

/// Renames, or where that can't be (another mount in the middle of the tree) copies.
fn move_file(
    (folder, old): (&OwnedFd, &str),
    (target, new): (&OwnedFd, &str),
    stays: bool,
) -> io::Result<()> {
    let moved = match stays {
        true => rustix::fs::linkat(folder, old, target, new, AtFlags::empty()),
        false => rename_new(folder, old, target, new),
    };
    match moved {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::XDEV | rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP) => {
            copy::one((folder, old), (target, new))?;
            if !stays {
                rustix::fs::unlinkat(folder, old, AtFlags::empty())?;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// What is kept aside goes along.
fn rename_parts(from: &Root, to: &Root, metainfo: &Metainfo) -> io::Result<()> {
    let parts = parts_of(&metainfo.info_hash);
    let Some((folder, _)) = folder_above(from, &format!("{parts}/0"))? else { return Ok(()) };
    for at in 0..metainfo.info.layout.files.len() {
        let name = at.to_string();
        if is_there(&folder, &name) {
            let path = format!("{parts}/{name}");
            let (target, new) = make_folders(to, &path)?;
            move_file((&folder, &name), (&target, new), false)?;
            rustix::fs::fsync(&target)?;
        }
    }
    places::drop_blocks(from, &metainfo.info_hash)
}

/// The folder above a file, `.` for the save folder.
pub(super) fn above(path: &str) -> String {
    path.rsplit_once('/').map_or(".", |(folder, _)| folder).to_owned()
}

/// Names in these folders are durable from here on.
pub(super) fn sync_folders(root: &Root, folders: &BTreeSet<String>) -> Result<(), String> {
    for folder in folders {
        let synced = open(root, folder, OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(|folder| Ok(rustix::fs::fsync(folder)?));
        match synced {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", root.path.join(folder).display())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
