use proptest::prelude::*;
use sha1::Digest;

use super::*;
use crate::metainfo::Metainfo;
use crate::units::PieceIndex;

/// Nested folders, odd sizes, an empty file, names that are not ASCII; byte i of a file is
/// (7 i + bytes in its path) mod 256. Not in order.
const FILES: &[(&str, u64)] = &[
    ("b.txt", 1),
    ("a/z.bin", 70_000),
    ("a/é.txt", 3),
    ("a.b", 5),
    ("a-b/q", 16_384),
    ("B", 100_001),
    ("empty", 0),
    ("a/sub/deep/x", 33_333),
    ("a/sub.txt", 7),
    ("ünï/日本語.dat", 12_345),
    ("Z/1", 2),
    ("a b/c", 9),
];

fn folder(files: &[(&str, u64)]) -> Builder {
    let file = |(path, length): &(&str, u64)| SourceFile {
        path: path.split('/').map(str::to_owned).collect(),
        length: *length,
        executable: false,
    };
    Builder::new("content", SourceFiles::Folder(files.iter().map(file).collect()))
}

/// Hashes the content that the plan asks for, piece by piece.
fn finish(plan: &Plan) -> Vec<u8> {
    let mut hashes = Vec::new();
    for piece in (0..plan.layout.piece_count()).map(PieceIndex) {
        let mut hash = sha1::Sha1::new();
        let length = u64::from(plan.layout.piece_length(piece));
        for part in plan.layout.segments(plan.layout.piece_offset(piece), length) {
            let path_bytes = plan.layout.files[part.file.0 as usize].path.len() as u64;
            let byte = |at: u64| (at * 7 + path_bytes) as u8;
            let range = part.offset..part.offset + part.length;
            hash.update(range.map(byte).collect::<Vec<u8>>());
        }
        hashes.extend_from_slice(&hash.finalize());
    }
    plan.finish(&hashes)
}

fn info_hash(builder: Builder) -> String {
    let plan = builder.plan().expect("valid");
    Metainfo::parse(&finish(&plan)).expect("valid").info_hash.to_string()
}

// The hashes come from the Python package `libtorrent` 2.1.1: the files above written to disk,
// `fs.add_file` for each in the order of `sorted(paths, key=str.encode)` with the flags that
// `add_files` finds, `create_torrent(fs, piece_size, flags=create_torrent.v1_only)`,
// `set_piece_hashes`, SHA-1 of the bencoded `info`.
#[test]
fn info_hashes_are_those_of_libtorrent() {
    let sixteen = |builder| Builder { piece_bytes: Some(16_384), ..builder };
    assert_eq!(info_hash(sixteen(folder(FILES))), "82b7e00afbb089281ed0c452d2713bc041e4a7ec");

    let private = Builder { private: true, piece_bytes: Some(65_536), ..folder(FILES) };
    assert_eq!(info_hash(private.clone()), "809e7bdd543173ae3699856cdf9c65faa9c6c4c8");
    let source = Builder { source: Some("PTP".to_owned()), ..private };
    assert_eq!(info_hash(source), "a084d48f908b7c36b93e5f8bc90353e109bb7dbe");

    let as_given = Builder { order: Order::AsGiven, ..sixteen(folder(FILES)) };
    assert_eq!(info_hash(as_given), "74f69972e897e7b3a40c1cbacdab3e75234a8cb2");

    // With `chmod 755 a.b`.
    let mut executable = sixteen(folder(FILES));
    if let SourceFiles::Folder(files) = &mut executable.source_files {
        files[3].executable = true;
    }
    assert_eq!(info_hash(executable), "a53e96ecd59391dc1171e75ef18022d1ab617f2f");

    let single = |executable| {
        let file = SourceFiles::File { length: 100_000, executable };
        sixteen(Builder::new("single.bin", file))
    };
    assert_eq!(info_hash(single(false)), "56c59de43c4041d45021c832c3cf67f80df3306c");
    assert_eq!(info_hash(single(true)), "68dcb48528490fc8148de988a590a04ee750147d");
}

#[test]
fn what_is_not_hashed_is_written_too() {
    let tiers = [vec!["http://a", "http://b"], vec![], vec!["udp://c"]];
    let trackers = tiers.map(|tier| tier.into_iter().map(str::to_owned).collect()).to_vec();
    let builder = Builder {
        comment: Some("hello".to_owned()),
        created_by: Some("seedring".to_owned()),
        creation_date: Some(1_700_000_000),
        trackers,
        web_seeds: vec!["http://w/".to_owned(), "http://v/".to_owned()],
        ..folder(FILES)
    };
    let plan = builder.clone().plan().expect("valid");
    let metainfo = Metainfo::parse(&finish(&plan)).expect("valid");
    assert_eq!(metainfo.announce, [vec!["http://a", "http://b"], vec!["udp://c"]]);
    assert_eq!(metainfo.web_seeds, builder.web_seeds);
    assert_eq!(metainfo.comment.as_deref(), Some("hello"));
    assert_eq!(metainfo.created_by.as_deref(), Some("seedring"));
    assert_eq!(metainfo.creation_date, Some(1_700_000_000));
    assert_eq!(metainfo.warnings, []);
    assert_eq!(metainfo.info.layout, plan.layout);
    assert_eq!(info_hash(builder), info_hash(folder(FILES)), "only `info` is hashed");
}

#[test]
fn one_tracker_needs_no_list() {
    let trackers = vec![vec!["http://a".to_owned()]];
    let web_seeds = vec!["http://w/".to_owned()];
    let file = SourceFiles::File { length: 1, executable: false };
    let plan = Builder { trackers, web_seeds, ..Builder::new("f", file) }.plan().expect("valid");
    let expected = b"d8:announce8:http://a4:infod6:lengthi1e4:name1:f12:piece lengthi16384e\
        6:pieces20:HHHHHHHHHHHHHHHHHHHHe8:url-list9:http://w/e";
    assert_eq!(
        plan.finish(&[b'H'; 20]).escape_ascii().to_string(),
        expected.escape_ascii().to_string()
    );
}

#[test]
fn piece_length_follows_the_size() {
    const MIB: u64 = 1 << 20;
    let table = [
        (1, 16 << 10),
        (2000 * 16_384, 16 << 10),
        (2000 * 16_384 + 1, 32 << 10),
        (100 * MIB, 64 << 10),
        (300 * MIB, 256 << 10),
        (1024 * MIB, 1 << 20),
        (5000 * MIB, 4 << 20),
        (20_000 * MIB, 16 << 20),
        (u64::MAX, 16 << 20),
    ];
    for (total_bytes, piece_bytes) in table {
        assert_eq!(choose_piece_bytes(total_bytes), piece_bytes, "{total_bytes}");
    }
}

#[test]
fn refuses_with_a_reason() {
    let refused = |builder: Builder| builder.plan().expect_err("refused").to_string();
    let table = [
        (folder(&[("a/..", 1)]), "'..' cannot be a name in a torrent"),
        (folder(&[("a\nb", 1)]), "'a b' cannot be a name in a torrent: other clients would"),
        (folder(&[("a\\b", 1)]), "store it as 'ab'; rename it first"),
        (Builder { name: "..".to_owned(), ..folder(FILES) }, "'..' cannot be a name"),
        (folder(&[("a", 1), ("a", 1)]), "'a' is there twice"),
        (folder(&[("a", 1), ("a/b", 1)]), "'a' is there twice, or is a file and a folder"),
        (folder(&[(&["a"; 101].join("/"), 1)]), "more than 100 folders deep"),
        (folder(&[]), "nothing to share"),
        (folder(&[("a", 0)]), "nothing to share"),
        (folder(&[("a", u64::MAX), ("b", 1)]), "2^63"),
        (Builder { piece_bytes: Some(16_385), ..folder(FILES) }, "16385 bytes is not supported"),
        (Builder { piece_bytes: Some(8192), ..folder(FILES) }, "8192 bytes is not supported"),
        (Builder { piece_bytes: Some(0), ..folder(FILES) }, "0 bytes is not supported"),
        (
            Builder { piece_bytes: Some(16_384), ..folder(&[("a", 1 << 40)]) },
            "67108864 pieces; at most 2097152 are supported",
        ),
    ];
    for (builder, reason) in table {
        let error = refused(builder);
        assert!(error.contains(reason), "'{error}' should tell '{reason}'");
    }
}

proptest! {
    // What was planned is what any reader of the torrent sees.
    #[test]
    fn what_is_made_is_read(
        files in proptest::collection::btree_map(
            "[a-cé]{1,2}(/[a-c]{1,2}){0,2}", 0..200_000u64, 1..12,
        ),
        executable: bool,
        private: bool,
    ) {
        let files = files.into_iter().map(|(path, length)| SourceFile {
            path: path.split('/').map(str::to_owned).collect(),
            length,
            executable,
        });
        let builder = Builder::new("n", SourceFiles::Folder(files.rev().collect()));
        let Ok(plan) = (Builder { private, ..builder }).plan() else { return Ok(()) };
        let hashes = vec![7; plan.layout.piece_count() as usize * 20];
        let metainfo = Metainfo::parse(&plan.finish(&hashes)).expect("valid");
        prop_assert_eq!(metainfo.info.layout, plan.layout);
        prop_assert_eq!(metainfo.info.piece_hashes.as_bytes(), hashes);
        prop_assert_eq!(metainfo.info.private, private);
        prop_assert_eq!(metainfo.warnings, []);
    }
}
