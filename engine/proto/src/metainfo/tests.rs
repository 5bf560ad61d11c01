use proptest::prelude::*;

use super::*;
use crate::bencode::Encoder;
use crate::units::FileIndex;

const HASHES: [u8; 40] = *b"AAAAAAAAAAAAAAAAAAAABBBBBBBBBBBBBBBBBBBB";

/// A torrent around entries of `info` that are encoded already; the keys must be in order.
fn torrent(info: &str) -> Vec<u8> {
    format!("d4:infod{info}ee").into_bytes()
}

fn parse(info: &str) -> Result<Metainfo, Error> {
    Metainfo::parse(&torrent(info))
}

fn single() -> String {
    let hashes = String::from_utf8_lossy(&HASHES).into_owned();
    format!("6:lengthi20000e4:name5:a.bin12:piece lengthi16384e6:pieces40:{hashes}")
}

/// `files` of five bytes each with the paths, given encoded.
fn multi(files: &[&str]) -> String {
    let entry = |file: &&str| format!("d6:lengthi5e4:pathl{file}ee");
    let files: String = files.iter().map(entry).collect();
    format!("5:filesl{files}e4:name1:n12:piece lengthi16384e6:pieces20:{}", "H".repeat(20))
}

#[test]
fn reads_a_single_file() {
    let bytes = torrent(&single());
    let metainfo = Metainfo::parse(&bytes).expect("valid");
    // sha1sum of the bytes between `4:info` and the last `e`.
    assert_eq!(metainfo.info_hash.to_string(), "61d09b5fa87277ddb6acb97c90d08f3ba70a1abf");
    assert_eq!(&*metainfo.raw_info, &bytes[7..bytes.len() - 1]);
    let info = &metainfo.info;
    assert_eq!((info.name.as_str(), info.single_file, info.private), ("a.bin", true, false));
    assert_eq!((info.layout.total_bytes, info.layout.piece_count()), (20000, 2));
    assert_eq!(info.piece_hashes.get(PieceIndex(1)), Some(b"BBBBBBBBBBBBBBBBBBBB"));
    assert_eq!(info.piece_hashes.get(PieceIndex(2)), None);
    assert_eq!(info.piece_hashes.as_bytes(), HASHES);
    assert_eq!(info.content_path(FileIndex(0)).as_deref(), Some("a.bin"));
    assert_eq!(info.kind, Kind::V1);
    assert_eq!(metainfo.warnings, []);
    let again = Metainfo::from_info(&metainfo.raw_info).expect("valid");
    assert_eq!(again.info_hash, metainfo.info_hash);
    assert_eq!(again.info.layout, info.layout);
}

#[test]
fn reads_many_files() {
    let metainfo = parse(&multi(&["1:a", "3:dir1:b", "2:..2:..3:etc", "1:a"])).expect("valid");
    let info = &metainfo.info;
    let paths: Vec<_> = info.layout.files.iter().map(|file| &*file.path).collect();
    assert_eq!(paths, ["a", "dir/b", "_/_/etc", "a.1"]);
    let offsets: Vec<_> = info.layout.files.iter().map(|file| file.offset).collect();
    assert_eq!(offsets, [0, 5, 10, 15]);
    assert_eq!(info.content_path(FileIndex(1)).as_deref(), Some("n/dir/b"));
    assert_eq!(info.content_path(FileIndex(4)), None);
    assert_eq!(metainfo.warnings, [Warning::Collisions { files: 1 }]);
}

#[test]
fn reads_what_stands_around_info() {
    let bytes = format!(
        "d8:announce6:http:a13:announce-listll6:http:b1: 5:udp:cel3:x yel5:udp:dee\
         7:comment4:a\x1bbc10:created by2:me13:creation datei7e8:encoding5:UTF-84:infod{}e\
         5:nodesll4:hosti80eel4:hosti65536eee8:url-list9: http:/w e\n",
        single()
    );
    let metainfo = Metainfo::parse(bytes.as_bytes()).expect("valid");
    assert_eq!(metainfo.announce, [vec!["http:b", "udp:c"], vec!["udp:d"]]);
    assert_eq!(metainfo.comment.as_deref(), Some("a bc"));
    assert_eq!(metainfo.created_by.as_deref(), Some("me"));
    assert_eq!(metainfo.creation_date, Some(7));
    assert_eq!(metainfo.encoding.as_deref(), Some("UTF-8"));
    assert_eq!(metainfo.nodes, [("host".to_owned(), 80)]);
    assert_eq!(metainfo.web_seeds, ["http:/w"]);
    assert_eq!(metainfo.warnings, [Warning::TrailingData { bytes: 1 }]);
}

#[test]
fn announce_is_used_without_a_list() {
    for list in ["", "13:announce-listle", "13:announce-listll0:ee"] {
        let bytes = format!("d8:announce6:http:a{list}4:infod{}ee", single());
        let metainfo = Metainfo::parse(bytes.as_bytes()).expect("valid");
        assert_eq!(metainfo.announce, [["http:a"]], "{list}");
    }
}

#[test]
fn web_seeds_come_as_a_list_too() {
    let bytes = format!("d4:infod{}e8:url-listl3:ftp4:httpi1eee", single());
    let metainfo = Metainfo::parse(bytes.as_bytes()).expect("valid");
    assert_eq!(metainfo.web_seeds, ["ftp", "http"]);
}

#[test]
fn private_and_source_are_kept() {
    let info = format!("{}7:privatei1e6:source4:PTP!", single());
    let info = parse(&info).expect("valid").info;
    assert_eq!((info.private, info.source.as_deref()), (true, Some("PTP!")));
    assert!(!parse(&format!("{}7:privatei0e", single())).expect("valid").info.private);
}

#[test]
fn utf8_names_win() {
    let hashes = "H".repeat(20);
    let info = format!(
        "5:filesld6:lengthi5e4:pathl1:\x07e10:path.utf-8l2:éee\
         d6:lengthi5e4:pathl1:be10:path.utf-8leee4:name1:?10:name.utf-82:ü\
         12:piece lengthi16384e6:pieces20:{hashes}"
    );
    let info = parse(&info).expect("valid").info;
    assert_eq!(info.name, "ü");
    assert_eq!((&*info.layout.files[0].path, &*info.layout.files[1].path), ("é", "b"));
}

#[test]
fn padding_and_attributes() {
    let info = format!(
        "5:filesl\
         d4:attr2:xh6:lengthi5e4:pathl1:aee\
         d4:attr1:p6:lengthi11e4:pathl4:.pad2:11ee\
         d4:attr1:l4:pathl4:linke12:symlink pathl2:..2:..6:passwdee\
         d6:lengthi4e4:pathl23:_____padding_file_0_if ee\
         d6:lengthi5e4:pathl4:.pad2:11ee\
         e4:name1:n12:piece lengthi16e6:pieces40:{}",
        "H".repeat(40)
    );
    let metainfo = parse(&info).expect("valid");
    let files = &metainfo.info.layout.files;
    assert_eq!((files[0].attributes.executable, files[0].attributes.hidden), (true, true));
    let padding: Vec<_> = files.iter().map(|file| file.padding).collect();
    assert_eq!(padding, [false, true, false, true, false]);
    assert_eq!((&*files[1].path, &*files[3].path, &*files[4].path), ("", "", ".pad/11"));
    assert_eq!((files[2].attributes.symlink, files[2].length), (true, 0));
    assert_eq!(metainfo.info.content_path(FileIndex(1)), None);
    assert_eq!(metainfo.warnings, [Warning::Symlinks { files: 1 }]);
    let piece: Vec<_> = metainfo.info.layout.segments(0, 16).map(|part| part.padding).collect();
    assert_eq!(piece, [false, true]);
}

#[test]
fn hybrid_is_read_as_v1_and_v2_alone_is_refused() {
    let tree = "9:file treede";
    let hybrid = single().replace("4:name", &format!("{tree}4:name"));
    let hybrid = hybrid.replace("6:length", "");
    let hybrid = hybrid.replacen("i20000e", "", 1);
    let hybrid = hybrid.replacen(tree, &format!("{tree}6:lengthi20000e12:meta versioni2e"), 1);
    let metainfo = parse(&hybrid).expect("valid");
    assert_eq!(metainfo.info.kind, Kind::Hybrid);
    assert!(metainfo.info_hash_v2.is_some());
    let v2 = format!("{tree}12:meta versioni2e4:name1:a12:piece lengthi16384e");
    let error = parse(&v2).expect_err("refused");
    assert_eq!(error, Error::V2Only);
    assert!(error.to_string().starts_with("v2-only torrents (BEP 52) are not supported yet"));
    let merkle =
        format!("6:lengthi5e4:name1:a12:piece lengthi16384e9:root hash20:{}", "H".repeat(20));
    assert_eq!(parse(&merkle).expect_err("refused"), Error::Merkle);
}

#[test]
fn refuses_with_a_reason() {
    let single = single();
    let hashes = "H".repeat(20);
    let table: &[(String, &str)] = &[
        (
            single.replace("20000", "16384"),
            "'pieces' has 40 bytes, but the files' lengths ask for 20",
        ),
        (
            single.replace("20000", "99999"),
            "'pieces' has 40 bytes, but the files' lengths ask for 140",
        ),
        (single.replace("16384", "0"), "'piece length' is 0; from 1 to"),
        (single.replace("16384", "-1"), "'piece length' is -1"),
        (single.replace("16384", "268435457"), "'piece length' is 268435457"),
        (single.replace("20000", "-1"), "'length' should be an integer that is not negative"),
        (single.replace("20000", "0"), "nothing to share"),
        (single.replace("20000", "9223372036854775807"), "at most 2097152"),
        (single.replace("4:name5", "4:nome5"), "'name' is missing"),
        (single.replace("4:name5:a.bin", "4:namei1e"), "'name' should be a string"),
        (single.replace("6:pieces", "6:piecez"), "'pieces' is missing"),
        (single.replace("6:length", "6:lengtz"), "'length' is missing"),
        (single.replace("12:piece length", "12:piece lengtz"), "'piece length' is missing"),
        (single.replace("i16384e", "3:abc"), "'piece length' should be an integer"),
        (multi(&[]), "nothing to share"),
        (multi(&[""]), "'files' entry 0: 'path' should be a list of strings"),
        (multi(&["1:a", "i1e"]), "'files' entry 1: 'path' should be a list of strings"),
        (multi(&[&"1:a".repeat(101)]), "'path' has more than 100 components"),
        (multi(&["1:a"]).replace("i5e", "i-5e"), "'files' entry 0: 'length' should be"),
        (multi(&["1:a"]).replace("d6:lengthi5e4:pathl1:aee", "i7e"), "it should be a dictionary"),
        (multi(&["1:a"]).replace("l1:ae", "d1:ai1ee"), "'path' should be a list"),
        (
            format!("5:filesde4:name1:n12:piece lengthi1e6:pieces20:{hashes}"),
            "'files' should be a list",
        ),
        (
            format!(
                "5:filesld6:lengthi9223372036854775807e4:pathl1:aeed6:lengthi1e4:pathl1:beee\
                 4:name1:n12:piece lengthi1e6:pieces20:{hashes}"
            ),
            "more than 2^63 bytes",
        ),
        (
            format!(
                "5:filesld4:attr1:l6:lengthi1e4:pathl1:aeee\
                 4:name1:n12:piece lengthi1e6:pieces20:{hashes}"
            ),
            "a symbolic link should have no length",
        ),
    ];
    for (info, reason) in table {
        let error = parse(info).expect_err(reason).to_string();
        assert!(error.contains(reason), "'{error}' should tell '{reason}'");
    }
    let whole: &[(&[u8], &str)] = &[
        (b"", "ends in the middle of a value at byte 0"),
        (b"<html>", "this is not a torrent: not valid bencode: a value was expected"),
        (b"le", "'the outermost value' should be a dictionary"),
        (b"de", "'info' is missing"),
        (b"d4:infoi1ee", "'info' should be a dictionary"),
        (&torrent(&single)[..100], "ends in the middle"),
    ];
    for (bytes, reason) in whole {
        let error = Metainfo::parse(bytes).expect_err(reason).to_string();
        assert!(error.contains(reason), "'{error}' should tell '{reason}'");
    }
    assert!(matches!(Metainfo::from_info(b"dei1e"), Err(Error::Bencode(_))));
}

#[test]
fn a_path_of_100_components_is_read() {
    assert!(parse(&multi(&[&"1:a".repeat(100)])).is_ok());
}

#[test]
fn size_is_bounded() {
    let bytes = vec![b'l'; TORRENT_BYTES_MAX + 1];
    let expected = Error::TooLarge { bytes: bytes.len() };
    assert_eq!(Metainfo::parse(&bytes).expect_err("refused"), expected);
    assert_eq!(Metainfo::from_info(&bytes).expect_err("refused"), expected);
}

#[test]
fn unsorted_keys_are_told() {
    let info = "12:piece lengthi16384e6:lengthi5e4:name1:a6:pieces20:HHHHHHHHHHHHHHHHHHHH";
    let metainfo = parse(info).expect("valid");
    assert_eq!(metainfo.warnings, [Warning::UnsortedKeys { offset: 30 }]);
}

// Threat 13. Optimised it takes 0.5 s of CPU; n squared would take hours in any build.
#[test]
fn many_files_are_read_in_time() {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes);
    encoder.begin_dict().key("info").begin_dict().key("files").begin_list();
    for file in (0..300_000u32).map(|at| at.wrapping_mul(2_654_435_761) % 250_000) {
        let folders = [file % 7, file % 70].map(|folder| format!("folder {folder}"));
        encoder.begin_dict().key("length").int(1).key("path").begin_list();
        encoder.str(&folders[0]).str(&folders[1]).str(&format!("file {file}.txt")).end().end();
    }
    encoder.end().key("name").str("n").key("piece length").int(300_000);
    encoder.key("pieces").bytes(&[0; 20]).end().end().finish();
    let start = std::time::Instant::now();
    let metainfo = Metainfo::parse(&bytes).expect("valid");
    let took = start.elapsed();
    assert_eq!(metainfo.info.layout.files.len(), 300_000);
    assert!(!metainfo.warnings.is_empty(), "50,000 of the paths are copies");
    assert!(took.as_secs() < 60, "{took:?}");
}

fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let seeds = [single(), multi(&["1:a", "1:b1:c", "1:a"])].map(|info| torrent(&info));
    (
        proptest::sample::select(seeds.to_vec()),
        proptest::collection::vec(any::<(prop::sample::Index, u8)>(), 0..4),
    )
        .prop_map(|(mut bytes, changes)| {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
}

proptest! {
    // Whatever is accepted holds together: what later readers rely on without a look.
    #[test]
    fn what_is_accepted_is_consistent(bytes in hostile()) {
        if let Ok(metainfo) = Metainfo::parse(&bytes) {
            let info = &metainfo.info;
            prop_assert_eq!(info.piece_hashes.count(), info.layout.piece_count());
            let hash_bytes = info.layout.piece_count() as usize * 20;
            prop_assert_eq!(info.piece_hashes.as_bytes().len(), hash_bytes);
            let last = info.layout.files.last().expect("not empty");
            prop_assert_eq!(last.offset + last.length, info.layout.total_bytes);
            for file in &info.layout.files {
                let safe = |part: &str| !matches!(part, "" | "." | "..");
                prop_assert!(file.padding || file.path.split('/').all(safe));
            }
            let again = Metainfo::from_info(&metainfo.raw_info).expect("read before");
            prop_assert_eq!(again.info_hash, metainfo.info_hash);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        _ = Metainfo::parse(&bytes);
    }

    #[test]
    fn every_cut_is_refused(cut in any::<prop::sample::Index>()) {
        let bytes = torrent(&single());
        prop_assert!(Metainfo::parse(&bytes[..cut.index(bytes.len())]).is_err());
    }
}
