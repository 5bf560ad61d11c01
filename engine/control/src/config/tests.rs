//! The loader as a user meets it: what is accepted, what each mistake says, and that it never
//! panics.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::model::*;
use super::{Config, Diagnostic, reference};

const DIR: &str = "/srv/example";

fn no_environment(_: &str) -> Option<String> {
    None
}

fn load(text: &str) -> Result<super::Loaded, Vec<Diagnostic>> {
    Config::parse(text, "x.yaml", Path::new(DIR), &no_environment)
}

fn good(text: &str) -> Config {
    load(text).unwrap_or_else(|errors| panic!("{}", printed(&errors))).config
}

fn printed(found: &[Diagnostic]) -> String {
    found.iter().map(|one| format!("{one}\n")).collect()
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

#[test]
fn the_quickstart_means_what_it_says() {
    let text = std::fs::read_to_string(repository("config/quickstart.yaml")).unwrap();
    let loaded = load(&text).unwrap();
    assert_eq!(printed(&loaded.warnings), "");
    let config = loaded.config;
    assert_eq!(config.state_dir, Path::new("/srv/example/var/seedring"));
    assert_eq!(config.control_socket, Path::new("/srv/example/var/seedring/control.sock"));
    assert_eq!(config.listen, ["127.0.0.1:6881".parse().unwrap()]);
    assert_eq!(config.memory.cache, CacheSize::Bytes(256 << 20));
    assert_eq!(config.limits, Limits::default());
    let tracker = config.tracker.unwrap();
    assert_eq!(tracker.listen, ["127.0.0.1:6969".parse().unwrap()]);
    let [torrent] = &config.torrents[..] else { panic!("one torrent") };
    assert_eq!(torrent.verify, Verify::Full);
    assert_eq!(torrent.trackers, Trackers::Tiers(vec![vec![TrackerRef::Embedded]]));
    let Source::Folder(folder) = &torrent.source else { panic!("a folder") };
    assert_eq!((folder.path.to_str(), &*folder.name), (Some("/srv/example/docs"), "seedring-docs"));
}

#[test]
fn profiles_and_reference_check_out() {
    for file in ["config/profiles/seedbox-10g.yaml", "config/profiles/vps-small.yaml"] {
        let text = std::fs::read_to_string(repository(file)).unwrap();
        assert_eq!(printed(&load(&text).unwrap().warnings), "", "{file}");
    }
    let config = good(&reference::reference());
    assert_eq!(config, good(""), "the reference, as it is, changes no default");
}

#[test]
fn every_line_of_the_reference_is_a_valid_key() {
    // Uncommented, key by key: what the reference offers, the loader takes.
    let reference = reference::reference();
    let mut keys = 0;
    for (number, line) in reference.lines().enumerate() {
        let trimmed = line.trim_start();
        let Some(setting) = trimmed.strip_prefix("# ") else { continue };
        let Some((name, value)) = setting.split_once(':') else { continue };
        let is_name = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        if !is_name || value.is_empty() || !value.starts_with(' ') || value.len() > 80 {
            continue;
        }
        let mut lines: Vec<String> = reference.lines().map(str::to_string).collect();
        let indent = line.len() - trimmed.len();
        if indent > 2 || (indent == 2 && lines[..number].iter().any(|l| l.starts_with("torrents:")))
        {
            continue;
        }
        lines[number] = format!("{}{setting}", " ".repeat(indent));
        let result = load(&lines.join("\n"));
        if let Err(errors) = result
            && !(indent == 2 && printed(&errors).contains("unknown key"))
        {
            panic!("{setting}\n{}", printed(&errors));
        }
        keys += 1;
    }
    assert!(keys >= 20, "only {keys} settings found in the reference");
}

/// Regenerate with `SEEDRING_BLESS=1 cargo test -p seedring config`.
fn hold_to_file(path: &Path, expected: &str) {
    if std::env::var_os("SEEDRING_BLESS").is_some() {
        std::fs::write(path, expected).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(committed, expected, "{} is out of date (SEEDRING_BLESS=1)", path.display());
}

#[test]
fn committed_schema_and_reference_are_in_sync() {
    let schema = serde_json::to_string_pretty(&reference::schema()).unwrap() + "\n";
    hold_to_file(&repository("config/seedring.schema.json"), &schema);
    hold_to_file(&repository("config/reference.yaml"), &reference::reference());
}

#[test]
fn what_each_mistake_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let mut count = 0;
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "yaml")) {
        let text = std::fs::read_to_string(file).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        let said = match Config::parse(&text, name, Path::new(DIR), &no_environment) {
            Ok(loaded) => format!("usable\n{}", printed(&loaded.warnings)),
            Err(found) => printed(&found),
        };
        hold_to_file(&file.with_extension("expected"), &said);
        count += 1;
    }
    assert!(count >= 10, "{count} files");
}

#[test]
fn all_errors_come_at_once() {
    let text = "\
shards: many
listne: [\"1.2.3.4:5\"]
limits: { connections: 0, upload: fast, upload_slots: -3 }
memory: { cache: 1KiB }
timeouts: { idle: 3 }
tracker: { listen: nowhere }
torrents:
  - { folder: a, verify: ful }
  - { files: b.torrent }
  - { folder: c, files: d.torrent, content: x }
  - { folder: e, verfy: full, trackers: [ftp://x/] }
  - { folder: f, piece_length: 100KiB }
";
    let errors = load(text).unwrap_err();
    let lines: Vec<u32> = errors.iter().map(|error| error.line).collect();
    assert_eq!(lines, [1, 2, 3, 3, 3, 4, 5, 6, 8, 9, 10, 11, 11, 12], "{}", printed(&errors));
    assert!(errors.iter().all(|error| error.excerpt.is_some() && error.column > 0));
}

#[test]
fn an_error_in_one_of_many_torrents_is_found_once_and_soon() {
    let mut text = String::from("torrents:\n");
    for n in 0..20_000 {
        text.push_str(&format!("  - {{ files: t/{n}.torrent, content: /srv/{n} }}\n"));
    }
    text.push_str("  - { files: t/x.torrent, conten: /srv/x }\n");
    let started = std::time::Instant::now();
    let errors = load(&text).unwrap_err();
    assert_eq!(errors.len(), 2, "{}", printed(&errors));
    assert!(started.elapsed().as_secs() < 30);
}

#[test]
fn a_hundred_thousand_torrents_are_within_the_budget() {
    let mut text = String::from("torrents:\n");
    for n in 0..100_000 {
        text.push_str(&format!("  - {{ files: {n}.torrent, content: c, verify: quick }}\n"));
    }
    assert_eq!(good(&text).torrents.len(), 100_000);
}

#[test]
fn values_take_the_environment() {
    let environment = |name: &str| (name == "CONNS").then(|| "77".to_string());
    let text = "limits: { connections: \"${CONNS}\", connections_per_torrent: \"${NO:-7}\" }\n\
                torrents: [{ folder: 'a$${b}', name: n }]\n";
    let config = Config::parse(text, "x", Path::new(DIR), &environment).expect("valid").config;
    assert_eq!((config.limits.connections, config.limits.connections_per_torrent), (77, 7));
    let Source::Folder(folder) = &config.torrents[0].source else { panic!("a folder") };
    assert_eq!(folder.path, Path::new("/srv/example/a${b}"));
}

#[test]
fn trackers_as_clients_understand_them() {
    let trackers = |text: &str| {
        let text =
            format!("tracker: {{ listen: '127.0.0.1:1' }}\ntorrents: [{{ folder: a, {text} }}]");
        good(&text).torrents.remove(0).trackers
    };
    let url = |text: &str| TrackerRef::Url(text.to_string());
    let (a, b, c) = ("http://a/", "https://b/x", "udp://c:1");
    assert_eq!(
        trackers(&format!("trackers: [\"{a}\", \"{b}\"]")),
        Trackers::Tiers(vec![vec![url(a)], vec![url(b)]]),
        "a flat list: each a tier of its own"
    );
    assert_eq!(
        trackers(&format!("trackers: [[\"{a}\", \"{b}\"], [\"{c}\", embedded]]")),
        Trackers::Tiers(vec![vec![url(a), url(b)], vec![url(c), TrackerRef::Embedded]])
    );
    assert_eq!(trackers("trackers: []"), Trackers::Tiers(vec![]));
    assert_eq!(trackers("name: x"), Trackers::Tiers(vec![vec![TrackerRef::Embedded]]));
}

#[test]
fn globs_find_files_each_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
    for name in ["1.torrent", "a/2.torrent", "a/b/3.torrent", "a/b/4.txt"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let text = "torrents: [{ files: ['**/*.torrent', 'a/2.torrent', gone.torrent], content: . }]";
    let config = Config::parse(text, "x", dir.path(), &no_environment).unwrap().config;
    let Source::Files(files) = &config.torrents[0].source else { panic!("files") };
    let found = files.expand().unwrap();
    let names: Vec<_> =
        found.iter().map(|path| path.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["1.torrent", "a/2.torrent", "a/b/3.torrent", "gone.torrent"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_text_makes_the_loader_panic(text in "\\PC{0,200}") {
        let _ = load(&text).map_err(|errors| printed(&errors));
    }

    #[test]
    fn no_mutation_of_a_good_file_does(
        at in 0usize..2000, cut in 0usize..40, insert in "[ \\n:#\\[\\]{}\"'&*!|>$a-z0-9é-]{0,12}",
    ) {
        const GOOD: &str = "\
state_dir: &x \"${HOME:-/v}\"\nlisten: ['0.0.0.0:1', '[::]:2']\nshards: 2\n\
memory: { cache: 64MiB }\n\
limits:\n  upload: 10Mbit/s\n  connections: 9\ntracker: { listen: ['127.0.0.1:3'], interval: 5m }\n\
torrents:\n  - folder: a\n    trackers: [embedded, [http://a/, udp://b:1/]]\n\
\x20   limits: { upload: 1MB/s }\n\
  - { files: ['*.torrent', b], content: *x, verify: trust }\n\
\x20 - files: >\n      x y\n    content: |\n      z\n";
        let mut text: Vec<char> = GOOD.chars().collect();
        let at = at % text.len();
        let end = (at + cut).min(text.len());
        text.splice(at..end, insert.chars());
        let text: String = text.into_iter().collect();
        match load(&text) {
            Ok(loaded) => prop_assert!(loaded.warnings.iter().all(|one| !one.is_error())),
            Err(found) => {
                prop_assert!(found.iter().any(Diagnostic::is_error));
                prop_assert!(!printed(&found).is_empty());
            }
        }
    }
}
