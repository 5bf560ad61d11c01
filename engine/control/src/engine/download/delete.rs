//! Deleting what was downloaded (D6).
//!
//! Owns: which files may go: those that the torrent names, inside its folder, that were not there
//! before us and that no other torrent has.
//! Never: follows a symbolic link, takes a folder that is not empty. Flow: `remove
//! --delete-content` -> here, blocking, after the store has forgotten the torrent.

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, OFlags};
use seedring_proto::metainfo::Metainfo;

use super::{
    super::prepare::{Place, read_torrent},
    look::{full_path, open},
    places,
    root::{self, Root},
};
use crate::state::Download;

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    pub files: u32,
    /// Paths that stay, and why.
    pub kept: Vec<String>,
}

/// `others`: where the content of all other torrents lies.
pub fn content(row: &Download, metainfo: &Metainfo, others: &[Place]) -> Result<Deleted, String> {
    let root = root::check(&row.folder, &row.root)?;
    let shared = files_of_others(&root.path.join(&metainfo.info.name), others)?;
    let mut deleted = Deleted::default();
    let mut folders = BTreeSet::new();
    for (at, file) in metainfo.info.layout.files.iter().enumerate() {
        if file.padding || file.attributes.symlink {
            continue;
        }
        let path = full_path(metainfo, at);
        let whole = root.path.join(&path);
        folders.extend(Path::new(&path).ancestors().skip(1).map(Path::to_path_buf));
        // Nothing is known of a file that has no row: it may have been there before us.
        if row.files.get(at).is_none_or(|row| row.foreign) {
            deleted.kept.push(format!("{}: it was there before", whole.display()));
        } else if shared.contains(&whole) {
            deleted.kept.push(format!("{}: another torrent has it", whole.display()));
        } else {
            let suffixed = format!("{path}{}", row.suffix);
            let names = [&path, &suffixed].into_iter().take(1 + usize::from(suffixed != path));
            for path in names {
                match unlink(&root, path) {
                    Ok(true) => deleted.files += 1,
                    Ok(false) => {}
                    Err(error) => deleted.kept.push(format!("{}: {error}", whole.display())),
                }
            }
        }
    }
    if let Err(error) = places::drop_parts(&root, metainfo) {
        let parts = root.path.join(places::parts_of(&metainfo.info_hash));
        deleted.kept.push(format!("{}: {error}", parts.display()));
    }
    // The deepest first; the save folder itself (an empty path) stays.
    for folder in folders.iter().rev().filter(|folder| !folder.as_os_str().is_empty()) {
        let _ = remove_folder(&root, folder);
    }
    Ok(deleted)
}

/// Files of other torrents that lie where ours do.
pub(super) fn files_of_others(base: &Path, others: &[Place]) -> Result<HashSet<PathBuf>, String> {
    let mut files = HashSet::new();
    for place in others {
        let content = std::fs::canonicalize(&place.content).unwrap_or(place.content.clone());
        if !content.starts_with(base) && !base.starts_with(&content) {
            continue;
        }
        if place.single_file {
            files.insert(content);
            continue;
        }
        let other = read_torrent(&place.torrent_file).map_err(|error| {
            format!("{error}; what files it has is not known, so nothing is deleted")
        })?;
        files.extend(other.info.layout.files.iter().map(|file| content.join(&*file.path)));
    }
    Ok(files)
}

/// `false`: it is not there.
fn unlink(root: &Root, path: &str) -> std::io::Result<bool> {
    let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
    let folder = match open(root, folder, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(folder) => folder,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let found = match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if !FileType::from_raw_mode(found.st_mode).is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    rustix::fs::unlinkat(&folder, name, AtFlags::empty())?;
    Ok(true)
}

pub(super) fn remove_folder(root: &Root, path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.and_then(Path::to_str).unwrap_or(".");
    let Some(name) = path.file_name() else { return Ok(()) };
    let parent = open(root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
    rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{create, state::FileRow};

    #[test]
    fn only_what_we_made_goes_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let save = dir.path().join("save");
        for (path, text) in [
            ("t/a", "aaa"),
            ("t/deep/b", "bb"),
            ("t/deep/c", "c"),
            ("t/d", "dd"),
            ("t/link/e", "e"),
        ] {
            let path = save.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let made = |path: &Path| {
            create::make(&create::scan(path).unwrap(), &create::Options::default(), &|_| true)
                .unwrap()
        };
        let torrent = made(&save.join("t"));
        // Another torrent has the folder `deep`, whose `c` is also ours.
        fs::remove_file(save.join("t/deep/b")).unwrap();
        let other = made(&save.join("t/deep"));
        fs::write(save.join("t/deep/b"), "bb").unwrap();
        let other_file = dir.path().join("other.torrent");
        fs::write(&other_file, &other.torrent).unwrap();
        // Outside, and behind a link where a folder of ours was.
        fs::rename(save.join("t/link"), dir.path().join("outside")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), save.join("t/link")).unwrap();
        fs::write(save.join("t/stranger"), "x").unwrap();

        let root = root::establish(&save).unwrap().id;
        let layout = &torrent.metainfo.info.layout;
        let row = |file: &seedring_proto::layout::File| FileRow {
            priority: 4,
            foreign: &*file.path == "d",
        };
        let files = layout.files.iter().map(row).collect();
        let row = Download { folder: save.clone(), root, files, ..Download::default() };
        let others =
            [Place { torrent_file: other_file, content: save.join("t/deep"), single_file: false }];
        let deleted = content(&row, &torrent.metainfo, &others).unwrap();
        assert_eq!(deleted.files, 2, "a and deep/b: {deleted:?}");
        assert_eq!(deleted.kept.len(), 3, "{deleted:?}");
        for (path, there) in [
            ("save/t/a", false),
            ("save/t/deep/b", false),
            ("save/t/deep/c", true),
            ("save/t/d", true),
            ("save/t/stranger", true),
            ("outside/e", true),
        ] {
            assert_eq!(dir.path().join(path).exists(), there, "{path}");
        }
    }
}
