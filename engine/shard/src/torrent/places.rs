//! Where the files of a torrent lie that do not lie under their own names.
//!
//! Owns: the two other places: under the name with a suffix while the torrent is incomplete, and
//! aside. Never: which file lies where (control looks and says). Flow: control fills it in,
//! `Contents::path` asks it.
//!
//! A piece at the border of a wanted and an unwanted file has bytes of both. Those of the unwanted
//! one are kept aside in a file of its own length (with holes), so that the piece can be hashed and
//! served like any other, and the unwanted file itself is never made.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use seedring_proto::units::FileIndex;

/// Where one file lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FilePlace {
    /// Under its own name.
    #[default]
    Own,
    /// Under its own name and the suffix.
    Suffixed,
    /// In the torrent's folder for parts, under its number.
    Aside,
}

/// The default: all files lie under their own names, and there is no folder for parts.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// A place a file; empty: all `Own`.
    pub of: Box<[FilePlace]>,
    pub suffix: String,
    /// The torrent's folder for parts, absolute, beneath the save folder. Made when it is needed.
    pub parts: PathBuf,
}

impl Places {
    pub fn place(&self, file: FileIndex) -> FilePlace {
        self.of.get(file.0 as usize).copied().unwrap_or_default()
    }

    pub fn is_aside(&self, file: FileIndex) -> bool {
        self.place(file) == FilePlace::Aside
    }

    /// `own`: its own path.
    pub(super) fn path(&self, file: FileIndex, own: impl FnOnce() -> PathBuf) -> PathBuf {
        match self.place(file) {
            FilePlace::Own => own(),
            FilePlace::Suffixed => with_suffix(&own(), &self.suffix),
            FilePlace::Aside => self.parts.join(file.0.to_string()),
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_lies_where_its_place_says() {
        let of = Box::new([FilePlace::Own, FilePlace::Suffixed, FilePlace::Aside]);
        let places = Places { of, suffix: String::from(".part"), parts: PathBuf::from("/s/.p/h") };
        let path = |n| places.path(FileIndex(n), || PathBuf::from("/s/t/f.iso"));
        assert_eq!(path(0), Path::new("/s/t/f.iso"));
        assert_eq!(path(1), Path::new("/s/t/f.iso.part"));
        assert_eq!(path(2), Path::new("/s/.p/h/2"));
        assert_eq!(path(3), Path::new("/s/t/f.iso"), "what nothing is said of");
    }
}
