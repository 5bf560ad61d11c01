use proptest::prelude::*;

use super::*;

// What libtorrent 2.1.1 makes of the same names on Linux, but for the zero-width joiner.
#[test]
fn components_are_safe() {
    let table: &[(&[u8], &str)] = &[
        (b"plain.txt", "plain.txt"),
        (b"..", "_"),
        (b".", "_"),
        (b"", "_"),
        (b"/", "_"),
        (b"...", "..."),
        (b"/etc/passwd", "etcpasswd"),
        (b"..\\..\\x", "....x"),
        (b"./.", "_"),
        (b".\0.", "_"),
        (b"a\0b", "ab"),
        (b"a\nb\x7fc", "a_b_c"),
        ("a\u{85}b".as_bytes(), "a_b"),
        ("a\u{202e}gpj.exe".as_bytes(), "agpj.exe"),
        ("\u{202e}".as_bytes(), "_"),
        (".\u{200f}.".as_bytes(), "_"),
        ("\u{feff}a".as_bytes(), "a"),
        ("👩\u{200d}🚀".as_bytes(), "👩\u{200d}🚀"),
        (b"a\xffb", "a_b"),
        (b"\xff\xfe", "__"),
        (b"\xe4\xb8", "_"),
        ("a\u{fffd}b".as_bytes(), "a\u{fffd}b"),
        (b" a. ", " a. "),
        ("日本語.dat".as_bytes(), "日本語.dat"),
    ];
    for (raw, name) in table {
        assert_eq!(component(raw), *name, "{}", raw.escape_ascii());
    }
}

#[test]
fn long_components_keep_their_extension() {
    let name = component(&[&[b'x'; 300][..], b".txt"].concat());
    assert_eq!((name.len(), name.ends_with("x.txt")), (255, true));
    let name = component(format!("{}.mkv", "é".repeat(200)).as_bytes());
    assert_eq!((name.len(), name.ends_with("é.mkv")), (254, true));
    let name = component(&[&[b'x'; 260][..], b".", &[b'y'; 40][..]].concat());
    assert_eq!(name, "x".repeat(255));
    assert_eq!(component(&[b'x'; 255]).len(), 255);
}

#[test]
fn paths_stay_inside() {
    assert_eq!(path([&b".."[..], b"..", b"etc", b"passwd"]), "_/_/etc/passwd");
    assert_eq!(path([&b"/"[..], b"a"]), "_/a");
    assert_eq!(path([]), "_");
}

#[test]
fn text_cannot_steer_a_terminal() {
    assert_eq!(text(b"a\x1b[31mb\r\n\xffc"), "a [31mb  \u{fffd}c");
    assert_eq!(text(&vec![b'x'; 10_000]).len(), TEXT_BYTES_MAX);
}

fn resolved(paths: &[&str]) -> (Vec<String>, u32) {
    let mut paths: Vec<Box<str>> = paths.iter().map(|path| (*path).into()).collect();
    let count = resolve_collisions(&mut paths);
    (paths.into_iter().map(String::from).collect(), count)
}

// The first five as libtorrent 2.1.1 names them; the sixth it gets wrong (two files `f.1`).
#[test]
fn collisions_get_numbers() {
    let table: &[(&[&str], &[&str])] = &[
        (&["a.txt", "a.txt", "a.txt"], &["a.txt", "a.1.txt", "a.2.txt"]),
        (&["a", "a/b"], &["a.1", "a/b"]),
        (&["a/b", "a"], &["a/b", "a.1"]),
        (&["d/f.tar.gz", "d/f.tar.gz"], &["d/f.tar.gz", "d/f.tar.1.gz"]),
        (&["a/b/c", "x"], &["a/b/c", "x"]),
        (&["f", "f", "f.1"], &["f", "f.2", "f.1"]),
        (&["f", "f", "f.1/x"], &["f", "f.2", "f.1/x"]),
        (&["a", "a-b", "a/b", "a"], &["a.1", "a-b", "a/b", "a.2"]),
        (&["a", "a/b", "a/b/c"], &["a.1", "a/b.1", "a/b/c"]),
        (&["A", "a"], &["A", "a"]),
        (&["", "", ".x", ".x"], &["", "", ".x", ".x.1"]),
    ];
    for (given, expected) in table {
        let changed = given.iter().zip(*expected).filter(|(a, b)| a != b).count() as u32;
        assert_eq!(resolved(given), (expected.iter().map(|x| x.to_string()).collect(), changed));
    }
}

// Threat 13: names made to collide after each number must not cost n squared.
#[test]
fn hostile_collisions_cost_n_log_n() {
    let mut paths: Vec<Box<str>> = vec!["a".into(); 30_000];
    paths.extend((0..30_000).map(|number| format!("a.{number}").into_boxed_str()));
    let stem = "x".repeat(250);
    paths.extend((0..20_000).flat_map(|number| {
        let path = format!("{stem}{number:05}").into_boxed_str();
        [path.clone(), path]
    }));
    assert_eq!(resolve_collisions(&mut paths), 29_999 + 20_000);
    let unique: BTreeSet<_> = paths.iter().collect();
    assert_eq!(unique.len(), paths.len());
}

proptest! {
    #[test]
    fn components_are_safe_and_stable(raw in prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        "[./\\\\\u{202e}\u{200f}a]{0,6}".prop_map(String::into_bytes),
        "\\PC{200,300}".prop_map(String::into_bytes),
        (any::<String>(), 240..300usize, "\\.\\PC{0,20}")
            .prop_map(|(a, n, c)| format!("{a}{}{c}", "ü".repeat(n / 2)).into_bytes()),
    ]) {
        let name = component(&raw);
        prop_assert!(!matches!(name.as_str(), "" | "." | ".."));
        prop_assert!(name.len() <= 255);
        let turns = "/\\\u{202e}\u{200f}";
        let unsafe_here = |letter: char| letter.is_control() || turns.contains(letter);
        prop_assert!(!name.contains(unsafe_here));
        prop_assert_eq!(component(name.as_bytes()), name);
    }

    #[test]
    fn no_two_files_collide(
        given in proptest::collection::vec("(a|b|a\\.1|a\\.2)(/(a|b|a\\.1)){0,2}", 0..30),
    ) {
        let mut paths: Vec<Box<str>> = given.iter().map(|path| path.as_str().into()).collect();
        let count = resolve_collisions(&mut paths);
        let files: BTreeSet<&str> = paths.iter().map(|path| &**path).collect();
        prop_assert_eq!(files.len(), paths.len());
        for path in &paths {
            for (slash, _) in path.match_indices('/') {
                prop_assert!(!files.contains(&path[..slash]), "{} is a folder", &path[..slash]);
            }
        }
        let changed = paths.iter().zip(&given).filter(|(a, b)| ***a != ***b).count();
        prop_assert_eq!(changed as u32, count);
        prop_assert_eq!(resolve_collisions(&mut paths), 0, "stable once resolved");
    }
}
