//! Torrents of real folders: order, hashes, what is left out, and what stops the work.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicU64, Ordering};

use sha1::{Digest, Sha1};

use super::*;

fn folder(files: &[(&str, usize)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, length) in files {
        let path = dir.path().join("top").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let bytes: Vec<u8> = (0..*length).map(|n| (n * 31 + length) as u8).collect();
        fs::write(path, bytes).unwrap();
    }
    dir
}

fn made(dir: &tempfile::TempDir, options: &Options) -> Made {
    make(&scan(&dir.path().join("top")).unwrap(), options, &|_| true).unwrap()
}

#[test]
fn pieces_are_those_of_the_files_one_after_the_other() {
    let dir =
        folder(&[("b/x", 40_000), ("a", 5), ("b/empty", 0), ("ünï cödé", 70_001), ("b.txt", 1)]);
    let content = scan(&dir.path().join("top")).unwrap();
    let paths: Vec<String> = content.files.iter().map(|file| file.components.join("/")).collect();
    assert_eq!(paths, ["a", "b/empty", "b/x", "b.txt", "ünï cödé"], "folders sort as their name");
    let all: Vec<u8> =
        content.files.iter().flat_map(|file| fs::read(content.file_path(file)).unwrap()).collect();
    let expected: Vec<u8> = all.chunks(16 << 10).flat_map(Sha1::digest).collect();
    for threads in [1, 3] {
        let options = Options { piece_bytes: Some(16 << 10), threads, ..Options::default() };
        let made = made(&dir, &options);
        assert_eq!(made.metainfo.info.piece_hashes.as_bytes(), expected);
        assert_eq!(made.metainfo.info.layout.total_bytes, all.len() as u64);
    }
}

#[test]
fn the_info_dictionary_is_canonical_to_the_byte() {
    let dir = folder(&[("x", 3), ("run", 2)]);
    let run = dir.path().join("top/run");
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
    let options = Options { private: true, source: Some("S".into()), ..Options::default() };
    let mut all = fs::read(&run).unwrap();
    all.extend(fs::read(dir.path().join("top/x")).unwrap());
    let mut expected = b"d5:filesld4:attr1:x6:lengthi2e4:pathl3:runeed6:lengthi3e4:pathl1:xeee\
        4:name3:top12:piece lengthi16384e6:pieces20:"
        .to_vec();
    expected.extend(Sha1::digest(&all));
    expected.extend(b"7:privatei1e6:source1:Se");
    let made = made(&dir, &options);
    assert_eq!(&*made.metainfo.raw_info, expected);
    assert_eq!(made.metainfo.info_hash.0, <[u8; 20]>::from(Sha1::digest(&expected)));
}

#[test]
fn what_surrounds_info_does_not_change_the_info_hash() {
    let dir = folder(&[("x", 100)]);
    let plain = made(&dir, &Options::default());
    let options = Options {
        comment: Some("c".into()),
        trackers: vec![vec!["http://a/".into(), "http://b/".into()], vec!["http://c/".into()]],
        web_seeds: vec!["http://w/".into()],
        creation_date: Some(5),
        ..Options::default()
    };
    let full = made(&dir, &options);
    assert_eq!(full.metainfo.info_hash, plain.metainfo.info_hash);
    assert_eq!(full.metainfo.announce, options.trackers);
    assert_eq!(full.metainfo.web_seeds, options.web_seeds);
    assert_eq!(full.metainfo.comment.as_deref(), Some("c"));
}

#[test]
fn links_and_litter_are_left_out_and_listed() {
    let dir = folder(&[("x", 10), (".hidden", 1), ("a/Thumbs.db", 9)]);
    symlink("/etc/passwd", dir.path().join("top/link")).unwrap();
    symlink(".", dir.path().join("top/a/loop")).unwrap();
    let content = scan(&dir.path().join("top")).unwrap();
    assert_eq!(content.files.len(), 2);
    let why: Vec<LeftOut> = content.left_out.iter().map(|(_, why)| *why).collect();
    assert_eq!(why, [LeftOut::Litter, LeftOut::SymbolicLink, LeftOut::SymbolicLink]);
}

#[test]
fn one_file_is_a_torrent_without_a_folder() {
    let dir = folder(&[("x.iso", 50_000)]);
    let content = scan(&dir.path().join("top/x.iso")).unwrap();
    let made = make(&content, &Options::default(), &|_| true).unwrap();
    assert!(made.metainfo.info.single_file);
    assert_eq!(made.metainfo.info.name, "x.iso");
}

#[test]
fn what_cannot_be_made_says_why() {
    let dir = folder(&[("empty", 0)]);
    assert!(matches!(scan(&dir.path().join("top")), Err(Error::Empty(_))));
    assert!(matches!(scan(&dir.path().join("gone")), Err(Error::Io { .. })));
    let dir = folder(&[("x", 100_000)]);
    let content = scan(&dir.path().join("top")).unwrap();
    let bad = Options { piece_bytes: Some(20_000), ..Options::default() };
    assert!(matches!(make(&content, &bad, &|_| true), Err(Error::PieceLength(20_000))));
    let name = Options { name: Some("a/b".into()), ..Options::default() };
    assert!(matches!(make(&content, &name, &|_| true), Err(Error::Name { .. })));
}

#[test]
fn a_file_that_changes_is_noticed() {
    let dir = folder(&[("x", 100_000), ("y", 1000)]);
    let content = scan(&dir.path().join("top")).unwrap();
    let path = dir.path().join("top/x");
    fs::write(&path, vec![0; 50_000]).unwrap();
    let error = make(&content, &Options::default(), &|_| true).unwrap_err();
    assert!(matches!(&error, Error::Changed(changed) if *changed == path), "{error}");
}

#[test]
fn progress_counts_every_byte_and_can_stop_the_work() {
    let dir = folder(&[("x", 1_000_000), ("y", 77)]);
    let content = scan(&dir.path().join("top")).unwrap();
    let most = AtomicU64::new(0);
    make(&content, &Options::default(), &|hashed| {
        most.fetch_max(hashed, Ordering::Relaxed);
        true
    })
    .unwrap();
    assert_eq!(most.into_inner(), 1_000_077);
    let stopped = make(&content, &Options::default(), &|hashed| hashed < 300_000);
    assert!(matches!(stopped, Err(Error::Cancelled)));
}

#[test]
fn piece_lengths_grow_with_the_content() {
    for (total, piece) in [
        (1, 16 << 10),
        (2000 * (16 << 10), 16 << 10),
        (2000 * (16 << 10) + 1, 32 << 10),
        (4 << 30, 4 << 20),
        (1 << 40, 16 << 20),
        (1 << 46, 32 << 20),
    ] {
        assert_eq!(choose_piece_bytes(total), piece, "{total}");
    }
}
