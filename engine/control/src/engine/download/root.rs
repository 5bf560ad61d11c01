//! The folder that is downloaded into, and how it is known to be the right one (D5).
//!
//! Owns: the marker file of a save folder. Never: content.
//! Flow: made once, when a torrent is added; compared each time before anything is written.
//!
//! A folder may be a place where a disk is mounted. When that disk is away, what lies there is an
//! empty folder of another file system: to make files in it would fill the wrong disk, and hide
//! them once the right one is back. So the folder gets a marker file with a random name in it, and
//! a folder without that marker is taken for absent. Device numbers can't do this: they change
//! over a restart of the machine.

use std::{
    fs, io,
    io::Read as _,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

pub const MARKER: &str = ".seedring-root";
/// A marker is 32 digits and a line end; more is no marker of ours.
const MARKER_BYTES_MAX: u64 = 64;

/// A save folder that was found to be the right one. Whatever happens to its path from here on,
/// this leads to it.
pub struct Root {
    /// Without symbolic links.
    pub path: PathBuf,
    folder: OwnedFd,
    pub id: String,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// Makes the folder if it is not there, and its marker if it has none. For a new torrent alone.
pub fn establish(folder: &Path) -> Result<Root, String> {
    let fail = |error: io::Error| format!("{}: {error}", folder.display());
    fs::create_dir_all(folder).map_err(fail)?;
    let (path, opened) = open(folder).map_err(fail)?;
    if let Some(id) = marker_of(&opened).map_err(fail)? {
        return Ok(Root { path, folder: opened, id });
    }
    let id: String = rand::random::<[u8; 16]>().iter().map(|byte| format!("{byte:02x}")).collect();
    match write_marker(&opened, &id) {
        Ok(()) => Ok(Root { path, folder: opened, id }),
        // Another engine was faster: its marker is as good.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match marker_of(&opened) {
            Ok(Some(id)) => Ok(Root { path, folder: opened, id }),
            _ => Err(fail(error)),
        },
        Err(error) => Err(format!(
            "{}: {error}; to download into a folder, this user must be able to write to it",
            folder.display()
        )),
    }
}

/// The folder, if it is the one with this marker. Makes nothing.
pub fn check(folder: &Path, id: &str) -> Result<Root, String> {
    let fail = |error: io::Error| format!("{}: {error}", folder.display());
    let (path, opened) = open(folder).map_err(fail)?;
    match marker_of(&opened).map_err(fail)? {
        Some(found) if found == id => Ok(Root { path, folder: opened, id: found }),
        Some(_) => Err(format!(
            "{} is another folder than the one downloaded into: its {MARKER} is another one",
            folder.display()
        )),
        None => Err(format!(
            "{} has no {MARKER}: is its disk mounted? If this is the right folder, put the file \
             back with the line {id} in it",
            folder.display()
        )),
    }
}

fn open(folder: &Path) -> io::Result<(PathBuf, OwnedFd)> {
    let path = fs::canonicalize(folder)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&path, flags, Mode::empty())?;
    Ok((path, opened))
}

/// `None`: there is none, or something else under its name.
fn marker_of(folder: &OwnedFd) -> io::Result<Option<String>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(folder, MARKER, flags, Mode::empty()) {
        Ok(file) => fs::File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut text = String::new();
    file.take(MARKER_BYTES_MAX).read_to_string(&mut text)?;
    Ok(Some(text.trim().to_owned()).filter(|id| !id.is_empty()))
}

/// On disk when this returns.
fn write_marker(folder: &OwnedFd, id: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, MARKER, flags, Mode::from(0o644))?;
    let mut file = fs::File::from(file);
    io::Write::write_all(&mut file, format!("{id}\n").as_bytes())?;
    file.sync_all()?;
    rustix::fs::fsync(folder)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_known_again_by_its_marker_and_nothing_is_made_in_another() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("deep/save");
        let id = establish(&folder).unwrap().id;
        assert_eq!(establish(&folder).unwrap().id, id, "a second torrent in the same folder");
        assert!(check(&folder, &id).is_ok());
        fs::rename(&folder, dir.path().join("away")).unwrap();
        assert!(check(&folder, &id).is_err());
        assert!(!folder.exists(), "made again");
        fs::create_dir(&folder).unwrap();
        let why = check(&folder, &id).err().unwrap();
        assert!(why.contains("mounted") && why.contains(&id), "{why}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::write(folder.join(MARKER), "another\n").unwrap();
        assert!(check(&folder, &id).err().unwrap().contains("another folder"));
    }
}
