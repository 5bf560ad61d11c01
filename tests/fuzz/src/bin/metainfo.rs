//! Owns: the fuzz target of .torrent files: metainfo, layout, names, and the link made of them.
//! Never: expects that bytes are accepted.
//! Flow: parse, then hold the result to everything that its readers rely on.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use seedring_proto::layout::Layout;
use seedring_proto::magnet::Magnet;
use seedring_proto::metainfo::Metainfo;
use seedring_proto::units::{FileIndex, PieceIndex};

fuzz_target!(|bytes: &[u8]| {
    _ = Metainfo::from_info(bytes);
    let Ok(metainfo) = Metainfo::parse(bytes) else { return };
    let again = Metainfo::from_info(&metainfo.raw_info).expect("it was read before");
    assert_eq!(again.info_hash, metainfo.info_hash);
    assert_eq!(again.info.layout, metainfo.info.layout);
    let layout = &metainfo.info.layout;
    let pieces = layout.piece_count();
    assert_eq!(metainfo.info.piece_hashes.as_bytes().len(), pieces as usize * 20);
    assert!(metainfo.info.piece_hashes.get(PieceIndex(pieces)).is_none());
    for piece in (0..pieces.min(8)).chain(pieces.saturating_sub(8)..pieces) {
        check_piece(layout, PieceIndex(piece));
    }
    check_paths(&metainfo);
    let magnet = Magnet::from(&metainfo);
    let link = magnet.to_string();
    let parsed: Magnet = link.parse().expect("we wrote it");
    assert_eq!(parsed.name, magnet.name);
    assert_eq!(parsed.info_hash, magnet.info_hash);
});

fn check_piece(layout: &Layout, piece: PieceIndex) {
    let (mut at, length) = (layout.piece_offset(piece), u64::from(layout.piece_length(piece)));
    assert!(length > 0);
    let end = at + length;
    for part in layout.segments(at, length) {
        let file = &layout.files[part.file.0 as usize];
        assert_eq!(file.offset + part.offset, at);
        assert!(part.length > 0 && part.offset + part.length <= file.length);
        assert!(layout.file_pieces(part.file).contains(&piece.0));
        at += part.length;
    }
    assert_eq!(at, end);
}

fn check_paths(metainfo: &Metainfo) {
    let files = &metainfo.info.layout.files;
    let mut paths = HashSet::new();
    for index in (0..files.len() as u32).map(FileIndex) {
        let Some(path) = metainfo.info.content_path(index) else {
            assert!(files[index.0 as usize].padding);
            continue;
        };
        for part in path.split('/') {
            assert!(!matches!(part, "" | "." | "..") && part.len() <= 255, "{path:?}");
            assert!(!part.contains(|letter: char| letter.is_control()), "{path:?}");
        }
        assert!(paths.insert(path), "two files have one path");
    }
    for path in &paths {
        for (slash, _) in path.match_indices('/') {
            assert!(!paths.contains(&path[..slash]), "{path:?} is inside a file");
        }
    }
}
