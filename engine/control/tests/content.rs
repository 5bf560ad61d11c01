//! Owns: content that is away, comes back, or is not what it was.
//! Never: changes content through the engine, which writes to none.
//! Flow: one engine a test; files are moved under it.

mod support;

use std::{fs, time::Duration};

use rustix::process::Signal;
use seedring_control::engine::status::EngineReport;
use seedring_proto::metainfo::Metainfo;
use support::{PIECE, Peer, Site, all, bytes_of, hashed, is, served_right, spoil, torrent};

#[test]
fn content_that_was_away_over_a_restart_comes_back_unhashed() {
    let site = Site::new();
    let item = site.item("file", 20, &[]);
    let mut engine = site.run("", &all("full"));
    engine.ready();
    engine.stop();

    fs::rename(site.path("content"), site.path("away")).unwrap();
    let mut engine = site.run("", &all("full"));
    let report = engine.ready();
    assert!(is(&report, "file", "waiting"), "{report:#?}");
    let detail = torrent(&report, "file").unwrap().detail.clone().unwrap();
    assert!(detail.contains("content/file") && detail.contains("No such file"), "{detail}");
    assert!(Peer::connect(engine.address(), &item).is_none(), "it has nothing to serve");
    engine.stop();
    assert!(!site.path("content").exists(), "nothing is made where content should be");

    let mut engine = site.run("", &all("full"));
    engine.ready();
    fs::rename(site.path("away"), site.path("content")).unwrap();
    engine.wait("back", |report| is(report, "file", "seeding"));
    assert_eq!(served_right(engine.address(), &item), 20);
    std::thread::sleep(Duration::from_millis(1_100)); // the next statistics
    assert_eq!(hashed(&engine.report().unwrap()), 0);
    engine.stop();
}

#[test]
fn content_that_goes_while_it_is_seeded_comes_back_unhashed_unless_it_changed() {
    let site = Site::new();
    let items = [site.item("same", 8, &[]), site.item("other", 8, &[])];
    let mut engine = site.run("", &all("full"));
    engine.ready();
    engine.stop();
    let mut engine = site.run("", &all("full"));
    engine.ready();
    fs::rename(site.path("content"), site.path("away")).unwrap();
    for item in &items {
        // Nothing of it is open yet or cached: a request finds that it is gone.
        let peer = Peer::connect(engine.address(), item);
        peer.and_then(|mut peer| peer.piece(item, 0));
        engine.wait("away", |report| is(report, &item.name, "waiting"));
    }
    // One comes back as it was, the other with one bad piece.
    spoil(&site.path("away/other"), 5 * PIECE, 1);
    fs::rename(site.path("away"), site.path("content")).unwrap();
    engine.wait("back", |report| is(report, "same", "seeding") && is(report, "other", "partial"));
    assert_eq!(served_right(engine.address(), &items[0]), 8);
    assert_eq!(served_right(engine.address(), &items[1]), 7);
    std::thread::sleep(Duration::from_millis(1_100));
    assert_eq!(
        hashed(&engine.report().unwrap()),
        items[1].bytes.len() as u64,
        "only what changed was hashed"
    );
    engine.stop();
}

#[test]
fn content_that_is_all_wrong_is_hashed_once_and_taken_up_when_it_is_right() {
    let site = Site::new();
    let item = site.item("file", 6, &[]);
    fs::write(&item.content, bytes_of("something else", item.bytes.len())).unwrap();
    let mut engine = site.run("", &all("full"));
    let report = engine.ready();
    assert!(is(&report, "file", "waiting"), "{report:#?}");
    let detail = torrent(&report, "file").unwrap().detail.clone().unwrap();
    assert!(detail.contains("no piece matches"), "{detail}");
    std::thread::sleep(Duration::from_millis(5_500)); // one look goes by
    assert_eq!(hashed(&engine.report().unwrap()), item.bytes.len() as u64, "hashed in a loop");
    fs::write(&item.content, &item.bytes).unwrap();
    engine.wait("right", |report| is(report, "file", "seeding"));
    assert_eq!(served_right(engine.address(), &item), 6);
    engine.stop();
}

#[test]
fn a_file_that_changes_under_load_is_never_sent_wrong_and_verified_anew() {
    let site = Site::new();
    let item = site.item("file", 64, &[]);
    let mut engine = site.run("", &all("full"));
    engine.ready();
    assert_eq!(served_right(engine.address(), &item), 64);
    // All of it is cached now; what is cached may go on being sent.
    spoil(&item.content, 60 * PIECE, PIECE);
    assert!(served_right(engine.address(), &item) >= 63);
    // Put right again: after the file has settled all of it is offered again.
    fs::write(&item.content, &item.bytes).unwrap();
    std::thread::sleep(Duration::from_millis(1_500));
    served_right(engine.address(), &item);
    engine.wait("whole", |report| {
        is(report, "file", "seeding") && torrent(report, "file").unwrap().pieces_verified == 64
    });
    assert_eq!(served_right(engine.address(), &item), 64);
    engine.stop();
}

#[test]
fn a_folder_that_was_never_there_is_seeded_when_it_comes_and_named_once() {
    let site = Site::new();
    let (later, never) = ("  - { folder: later, name: docs }\n", "  - { folder: never }\n");
    let mut engine = site.run("", &format!("{later}{never}"));
    let report = engine.ready();
    assert_eq!(report.failed.len(), 2, "{report:#?}");
    // What is taken out of the configuration while it is away stays out when it comes.
    site.write_yaml("", later);
    engine.signal(Signal::HUP);
    engine.wait("one is taken out", |report| {
        report.failed.len() == 1 && report.failed[0].source.ends_with("/later")
    });
    std::thread::sleep(Duration::from_millis(5_500)); // it was tried again
    for folder in ["later", "never"] {
        fs::create_dir(site.path(folder)).unwrap();
        fs::write(site.path(folder).join("a"), "abc").unwrap();
    }
    let report = engine.wait("there", |report| is(report, "docs", "seeding"));
    assert!(report.failed.is_empty() && report.torrents.len() == 1, "{report:#?}");
    let log = engine.log();
    let lines = log.lines().filter(|line| line.contains("ERROR"));
    assert_eq!(lines.filter(|line| line.contains("later: No such file")).count(), 1, "{log}");
    engine.stop();

    // Away at the next start, it waits under its name and its hash, and needs no hashing.
    fs::rename(site.path("later"), site.path("hidden")).unwrap();
    let mut engine = site.run("", "  - { folder: later, name: docs }\n");
    let again = engine.ready();
    assert!(is(&again, "docs", "waiting"), "{again:#?}");
    assert_eq!(again.torrents[0].info_hash, report.torrents[0].info_hash);
    fs::rename(site.path("hidden"), site.path("later")).unwrap();
    engine.wait("back", |report| is(report, "docs", "seeding"));
    assert_eq!(hashed(&engine.report().unwrap()), 0);
    engine.stop();
}

#[test]
fn the_torrent_of_a_folder_names_its_trackers_and_no_passkey() {
    let site = Site::new();
    fs::create_dir(site.path("folder")).unwrap();
    fs::write(site.path("folder").join("a"), "abc").unwrap();
    let secret = "http://127.0.0.1:2/announce?passkey=0123456789abcdef0123456789abcdef";
    let folder =
        |url: &str| format!("  - {{ folder: folder, trackers: [\"{url}\", \"{secret}\"] }}\n");
    for url in ["http://127.0.0.1:1/announce", "http://127.0.0.1:3/announce"] {
        let mut engine = site.run("", &folder(url));
        let report = engine.wait("seeding", |report| is(report, "folder", "seeding"));
        let hash = &report.torrents[0].info_hash;
        let path = site.path("state/torrents").join(format!("{hash}.torrent"));
        engine.wait_log(&path.display().to_string());
        let metainfo = Metainfo::parse(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            (metainfo.announce, metainfo.info_hash.to_string()),
            (vec![vec![url.into()]], hash.clone())
        );
        engine.stop();
    }
}

#[test]
fn what_is_verified_says_how_fast_and_how_long() {
    // Holes: nothing is written for it. So large that it is not over before it was looked at.
    const PIECES: u64 = 4_096;
    const PIECE_BYTES: u64 = 16 << 20;
    let site = Site::new();
    let file = fs::File::create(site.path("content/holes")).unwrap();
    file.set_len(PIECES * PIECE_BYTES).unwrap();
    let mut metainfo = format!(
        "d4:infod6:lengthi{}e4:name5:holes12:piece lengthi{PIECE_BYTES}e6:pieces{}:",
        PIECES * PIECE_BYTES,
        PIECES * 20
    )
    .into_bytes();
    metainfo.extend(std::iter::repeat_n(0, PIECES as usize * 20));
    metainfo.extend(b"ee");
    fs::write(site.path("torrents/holes.torrent"), metainfo).unwrap();
    let mut engine = site.run("", &all("full"));
    let says = |report: &EngineReport| torrent(report, "holes").is_some_and(|t| t.eta_s.is_some());
    let report = engine.wait("an estimate", says);
    let it = torrent(&report, "holes").unwrap();
    assert_eq!(it.state, "verifying");
    let (rate, eta_s) = (it.hashed_bytes_per_s, it.eta_s.unwrap());
    let left = rate.saturating_mul(eta_s);
    assert!(rate > 1 << 20 && left <= PIECES * PIECE_BYTES + rate, "{it:#?}");
    assert!(left > PIECES * PIECE_BYTES / 8, "{it:#?}");
    let socket = site.path("state/control.sock");
    for command in [vec!["list"], vec!["show", "holes"]] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_seedring"))
            .args(command)
            .arg("--socket")
            .arg(&socket)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("/s hashed, ") && text.contains(" left"), "{text}");
    }
    engine.kill();
}
