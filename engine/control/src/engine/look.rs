//! Content as it lies on disk, against what a torrent says and what was verified.
//!
//! Owns: looking at files, their stamps, and which verified pieces those still vouch for.
//! Never: hashes, changes anything. Flow: prepare, and the engine's looks at content that was away.
//!
//! A stamp stands for bytes that were hashed: a bit is kept only where the file has the stamp that
//! it had before its bytes were read. Whatever changed in between loses its bits, never keeps them.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use seedring_proto::{layout::Layout, metainfo::Metainfo, units::PieceIndex};
use seedring_shard::torrent::{Contents, Stamp};

use super::prepare::Place;
use crate::state::Record;

/// What the content looked like.
#[derive(Clone, Debug)]
pub enum Condition {
    /// Every file is there with its size, and can be read.
    Present { base: PathBuf, stamps: Box<[Option<Stamp>]> },
    /// A file or folder is not there, or can't be read.
    Missing(String),
    /// A file has another size than the torrent says, or is no file.
    Differs(String),
    /// What the files are is not known yet: a magnet without its metadata.
    Unknown,
}

/// Equal to no file's stamp: its pieces are hashed again at the next start or opening.
pub const NO_STAMP: Stamp = Stamp { size_bytes: u64::MAX, modified_ns: 0 };

/// Looks at every file that the torrent names, and opens each as the shards will: without
/// following symbolic links.
pub fn look(layout: &Layout, place: &Place) -> Condition {
    let missing =
        |path: &Path, error: &io::Error| Condition::Missing(format!("{}: {error}", path.display()));
    let base = match fs::canonicalize(&place.content) {
        Ok(base) => base,
        Err(error) => return missing(&place.content, &error),
    };
    let folder = match place.single_file {
        true => None,
        false => match open_folder(&base) {
            Ok(folder) => Some(folder),
            Err(error) => return missing(&base, &error),
        },
    };
    let mut stamps = Vec::with_capacity(layout.files.len());
    for file in &*layout.files {
        if file.padding || file.attributes.symlink {
            stamps.push(None);
            continue;
        }
        let path = if place.single_file { base.clone() } else { base.join(&*file.path) };
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            // Nothing is ever read of an empty file.
            Err(error) if file.length == 0 && error.kind() == io::ErrorKind::NotFound => {
                stamps.push(None);
                continue;
            }
            Err(error) => return missing(&path, &error),
        };
        if !found.is_file() {
            return Condition::Differs(format!("{} is not a regular file", path.display()));
        }
        if found.len() != file.length {
            return Condition::Differs(format!(
                "{} has {} bytes, the torrent says {}",
                path.display(),
                found.len(),
                file.length
            ));
        }
        let opened = match &folder {
            Some(folder) => can_be_read_below(folder, &file.path),
            None => can_be_read(&base),
        };
        if let Err(error) = opened {
            return missing(&path, &error);
        }
        stamps.push(Some(stamp_of(&found)));
    }
    Condition::Present { base, stamps: stamps.into() }
}

fn open_folder(base: &Path) -> io::Result<fs::File> {
    let flags = (OFlags::PATH | OFlags::DIRECTORY).bits().cast_signed();
    fs::File::options().read(true).custom_flags(flags).open(base)
}

fn can_be_read(path: &Path) -> io::Result<()> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    fs::File::options().read(true).custom_flags(flags).open(path).map(drop)
}

fn can_be_read_below(folder: &fs::File, path: &str) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(folder, path, flags, Mode::empty(), resolve).map(drop)?;
    Ok(())
}

pub fn stamp_of(found: &fs::Metadata) -> Stamp {
    let modified_ns = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
    Stamp { size_bytes: found.len(), modified_ns }
}

pub fn all_pieces(layout: &Layout) -> Vec<u8> {
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
        places: Default::default(),
        stamps: stamps.clone(),
        direct_io,
        writing: None,
    })
}

#[cfg(test)]
mod tests {
    use seedring_proto::layout::NewFile;

    use super::*;

    fn layout_of(lengths: &[u64]) -> Layout {
        let file = |(n, length): (usize, &u64)| NewFile {
            path: format!("f{n}").into(),
            length: *length,
            ..NewFile::default()
        };
        Layout::new(10, lengths.iter().enumerate().map(file).collect()).unwrap()
    }

    #[test]
    fn a_changed_file_takes_its_pieces_and_no_others() {
        let layout = layout_of(&[25, 5, 40]);
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
    fn a_file_that_changed_while_it_was_served_never_keeps_its_pieces() {
        let layout = layout_of(&[10]);
        let record = Record {
            verified: all_pieces(&layout),
            stamps: vec![Some(NO_STAMP)],
            ..Record::default()
        };
        let now = [Some(Stamp { size_bytes: 10, modified_ns: 0 })];
        assert_eq!(still_verified(&layout, &record, &now), [0]);
    }

    #[test]
    fn a_link_inside_the_content_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        fs::write(dir.path().join("real/f"), "abc").unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let file = NewFile { path: "link/f".into(), length: 3, ..NewFile::default() };
        let layout = Layout::new(10, vec![file]).unwrap();
        let place = Place {
            torrent_file: PathBuf::new(),
            content: dir.path().to_owned(),
            single_file: false,
        };
        assert!(matches!(look(&layout, &place), Condition::Missing(why) if why.contains("link/f")));
    }

    #[test]
    fn content_is_looked_at_file_by_file() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place {
            torrent_file: PathBuf::new(),
            content: dir.path().to_owned(),
            single_file: false,
        };
        let layout = layout_of(&[3, 2]);
        assert!(matches!(look(&layout, &place), Condition::Missing(m) if m.contains("f0")));
        fs::write(dir.path().join("f0"), "abc").unwrap();
        fs::write(dir.path().join("f1"), "a").unwrap();
        let Condition::Differs(why) = look(&layout, &place) else { panic!("one byte is missing") };
        assert!(why.contains("f1") && why.contains("1 bytes") && why.contains('2'), "{why}");
        fs::write(dir.path().join("f1"), "ab").unwrap();
        let Condition::Present { stamps, .. } = look(&layout, &place) else { panic!("all there") };
        assert_eq!(stamps[1].unwrap().size_bytes, 2);
        let empty = layout_of(&[3, 2, 0]);
        let Condition::Present { stamps, .. } = look(&empty, &place) else { panic!("f2 is empty") };
        assert_eq!(stamps[2], None);
    }
}
