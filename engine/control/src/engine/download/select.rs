//! Which files of a torrent are wanted, and which pieces that means.
//!
//! Owns: patterns to files, files to pieces. Never: touches a running download by itself.
//! Flow: options of the user -> a priority a file (kept) -> a priority a piece (shards).

use seedring_proto::{layout::Layout, magnet::Magnet, metainfo::Metainfo, units::FileIndex};
use seedring_shard::torrent::{Download as Transfer, PRIORITY_NORMAL};

use crate::state::FileRow;

/// A row a file: those that a pattern names (or all), of them those that the magnet asks for.
///
/// # Errors
/// A pattern that can't be read, or that no file matches.
pub fn choose(
    metainfo: &Metainfo,
    only: &[String],
    magnet: Option<&Magnet>,
) -> Result<Vec<FileRow>, String> {
    let mut chosen = vec![only.is_empty(); metainfo.info.layout.files.len()];
    for text in only {
        let pattern = pattern(text)?;
        let mut matched = false;
        for (at, wanted) in chosen.iter_mut().enumerate() {
            if matches(&pattern, metainfo, at) {
                (*wanted, matched) = (true, true);
            }
        }
        if !matched {
            return Err(format!(
                "\"{text}\" matches no file of {}; `seedring inspect` lists them",
                metainfo.info.name
            ));
        }
    }
    let row = |(at, wanted): (usize, bool)| {
        let asked = magnet.is_none_or(|magnet| magnet.selects(FileIndex(at as u32)));
        let priority = if wanted && (asked || !only.is_empty()) { PRIORITY_NORMAL } else { 0 };
        FileRow { priority, foreign: false }
    };
    Ok(chosen.into_iter().enumerate().map(row).collect())
}

pub fn pattern(text: &str) -> Result<glob::Pattern, String> {
    glob::Pattern::new(text).map_err(|error| {
        format!("\"{text}\" is not a pattern: {}; * stands for any part of a name", error.msg)
    })
}

/// Against the path in the torrent, and against the file's own name.
pub fn matches(pattern: &glob::Pattern, metainfo: &Metainfo, at: usize) -> bool {
    let path = path_of(metainfo, at);
    let name = path.rsplit('/').next().unwrap_or(path);
    pattern.matches(path) || pattern.matches(name)
}

/// A file's path as users see it.
pub fn path_of(metainfo: &Metainfo, at: usize) -> &str {
    match metainfo.info.single_file {
        true => &metainfo.info.name,
        false => &metainfo.info.layout.files[at].path,
    }
}

/// Each piece has the highest priority of its files.
pub fn piece_priorities(layout: &Layout, files: &[FileRow]) -> Vec<u8> {
    let mut priorities = vec![0; layout.piece_count() as usize];
    for (at, file) in files.iter().enumerate().take(layout.files.len()) {
        if layout.files[at].padding {
            continue;
        }
        for piece in layout.file_pieces(FileIndex(at as u32)) {
            let priority = &mut priorities[piece as usize];
            *priority = file.priority.max(*priority);
        }
    }
    priorities
}

pub fn set_priorities(transfer: &Transfer, priorities: &[u8]) {
    for (at, priority) in priorities.iter().enumerate() {
        transfer.set_priority(seedring_proto::units::PieceIndex(at as u32), *priority);
    }
}

#[cfg(test)]
mod tests {
    use seedring_proto::layout::NewFile;

    use super::*;

    #[test]
    fn a_piece_is_wanted_as_much_as_the_file_that_is_wanted_most() {
        let file = |length, padding| NewFile { length, padding, ..NewFile::default() };
        let files = vec![file(15, false), file(5, true), file(10, false), file(30, false)];
        let layout = Layout::new(10, files).unwrap();
        let row = |priority| FileRow { priority, foreign: false };
        let rows = [row(7), row(7), row(0), row(4)];
        assert_eq!(piece_priorities(&layout, &rows), [7, 7, 0, 4, 4, 4]);
    }

    #[test]
    fn patterns_choose_before_a_link_does_and_must_match_something() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("t");
        std::fs::create_dir_all(folder.join("deep")).unwrap();
        for path in ["a.iso", "deep/b.iso", "c.txt"] {
            std::fs::write(folder.join(path), path).unwrap();
        }
        let content = crate::create::scan(&folder).unwrap();
        let made = crate::create::make(&content, &crate::create::Options::default(), &|_| true);
        let metainfo = made.unwrap().metainfo;
        let files = metainfo.info.layout.files.iter();
        let paths: Vec<&str> = files.map(|file| &*file.path).collect();
        let chosen = |only: &[&str], link: &str| {
            let only: Vec<String> = only.iter().map(ToString::to_string).collect();
            let magnet = link.parse::<Magnet>().ok();
            choose(&metainfo, &only, magnet.as_ref()).map(|rows| {
                let wanted = paths.iter().zip(rows).filter(|(_, row)| row.priority > 0);
                wanted.map(|(path, _)| *path).collect::<Vec<_>>()
            })
        };
        let third = format!("magnet:?xt=urn:btih:{}&so=2", metainfo.info_hash);
        assert_eq!(chosen(&[], "").unwrap(), paths);
        assert_eq!(chosen(&[], &third).unwrap(), [paths[2]], "BEP 53");
        assert_eq!(chosen(&["*.iso"], &third).unwrap(), ["a.iso", "deep/b.iso"], "the user's word");
        assert_eq!(chosen(&["deep/*", "c.*"], "").unwrap().len(), 2);
        assert!(chosen(&["*.iso", "*.mkv"], "").unwrap_err().contains("*.mkv"));
        assert!(chosen(&["["], "").unwrap_err().contains("not a pattern"));
    }
}
