//! Owns: what outlives the process, and what a process that ends badly may cost.
//! Never: peeks into the database; what counts is what the next process does.
//! Flow: start, serve, stop or kill, start again.

mod support;

use std::{fs, time::Duration};

use rustix::process::Signal;
use support::{
    Engine, PIECE, Peer, Site, Tracker, all, hashed, is, one, served_right, spoil, torrent,
};

#[test]
fn a_restart_hashes_nothing_and_totals_go_on() {
    let site = Site::new();
    let items = [site.item("one", 40, &[]), site.item("two", 1, &[])];
    let total: u64 = items.iter().map(|item| item.bytes.len() as u64).sum();
    for shards in ["shards: 1", "shards: 2", "shards: 2"] {
        let mut engine = site.run(shards, &all("full"));
        let report = engine.ready();
        assert!(items.iter().all(|item| is(&report, &item.name, "seeding")), "{report:#?}");
        let first = torrent(&report, "one").unwrap().uploaded_bytes == 0;
        let report = engine.wait("counted", |r| !first || hashed(r) == total);
        assert_eq!(hashed(&report), if first { total } else { 0 });
        let before = torrent(&report, "one").unwrap().uploaded_bytes;
        assert_eq!(served_right(engine.address(), &items[0]), 40);
        let sent = items[0].bytes.len() as u64;
        engine.wait("totals", |r| torrent(r, "one").unwrap().uploaded_bytes == before + sent);
        engine.stop();
    }
    assert!(!site.path("state/control.sock").exists(), "the socket's name goes with the engine");
}

#[test]
fn after_a_kill_totals_are_never_too_high_and_no_piece_is_believed_wrongly() {
    let site = Site::new();
    let item = site.item("file", 12, &[]);
    let mut engine = site.run("", &all("full"));
    engine.ready();
    assert_eq!(served_right(engine.address(), &item), 12);
    // Pieces 3 and 4 go bad, and the engine sees it while it serves.
    spoil(&item.content, 3 * PIECE, 2 * PIECE);
    std::thread::sleep(Duration::from_millis(1_200));
    served_right(engine.address(), &item);
    std::thread::sleep(Duration::from_millis(5_800)); // a saving, and its transaction
    let sent = torrent(&engine.report().unwrap(), "file").unwrap().uploaded_bytes;
    engine.kill();
    assert!(site.path("state/control.sock").exists(), "it was really killed");

    let mut engine = site.run("", &all("quick"));
    let report = engine.ready();
    let uploaded = torrent(&report, "file").unwrap().uploaded_bytes;
    assert!(uploaded <= sent && uploaded + (16 << 20) >= sent, "{uploaded} of {sent}");
    assert!(uploaded > 0, "it was saved before the kill");
    assert_eq!(served_right(engine.address(), &item), 10);
    assert_eq!(torrent(&engine.report().unwrap(), "file").unwrap().pieces_offered, 10);
    engine.stop();
}

#[test]
fn trust_is_not_remembered_as_verification() {
    let site = Site::new();
    let item = site.item("file", 5, &[]);
    spoil(&item.content, PIECE, 10);
    let mut engine = site.run("", &all("trust"));
    let report = engine.ready();
    assert!(is(&report, "file", "seeding"));
    engine.stop();
    let mut engine = site.run("", &all("full"));
    let report = engine.ready();
    assert!(is(&report, "file", "partial"), "{report:#?}");
    assert_eq!(torrent(&report, "file").unwrap().pieces_verified, 4);
    assert!(engine.log().contains("1 of 5 pieces do not match"), "{}", engine.log());
    assert_eq!(served_right(engine.address(), &item), 4);
    engine.stop();
}

#[test]
fn one_engine_a_state_folder() {
    let site = Site::new();
    let mut engine = site.run("", "");
    engine.ready();
    let path = site.path("seedring.yaml");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_seedring"))
        .args(["run", path.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("another seedring is running with state_dir"), "{said}");
    engine.ready();
    engine.stop();
}

#[test]
fn a_stop_ends_the_hashing_of_a_folder() {
    let site = Site::new();
    fs::create_dir(site.path("large")).unwrap();
    // Holes cost nothing to make and are hashed like everything else: minutes of work.
    let file = fs::File::create(site.path("large/file")).unwrap();
    file.set_len(64 << 30).unwrap();
    let mut engine = site.run("", "  - { folder: large }\n");
    engine.wait("hashing", |report| report.preparing == 1);
    std::thread::sleep(Duration::from_millis(300));
    let began = std::time::Instant::now();
    let log = engine.stop();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn a_second_signal_forces_the_end() {
    let site = Site::new();
    let tracker = Tracker::start(Some("event=stopped"));
    site.item("file", 2, &[&tracker.url]);
    let mut engine = site.run("", &all("quick"));
    engine.ready();
    tracker.wait("event=started");
    engine.signal(Signal::TERM);
    tracker.wait("event=stopped");
    engine.signal(Signal::INT);
    let began = std::time::Instant::now();
    assert_eq!(engine.end().code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(engine.log().contains("asked twice to stop"), "{}", engine.log());
}

#[test]
fn a_removed_torrent_comes_back_with_its_totals() {
    let site = Site::new();
    let tracker = Tracker::start(None);
    let items = [site.item("keep", 2, &[]), site.item("go", 3, &[&tracker.url])];
    let mut engine = site.run("", &all("full"));
    engine.ready();
    assert_eq!(served_right(engine.address(), &items[1]), 3);
    let sent = items[1].bytes.len() as u64;
    engine.wait("totals", |r| torrent(r, "go").unwrap().uploaded_bytes == sent);
    let total: u64 = items.iter().map(|item| item.bytes.len() as u64).sum();
    engine.wait("counted", |report| hashed(report) == total);
    site.write_yaml("", &one(&items[0], "full"));
    engine.signal(Signal::HUP);
    engine.wait("gone", |report| torrent(report, "go").is_none());
    let line = tracker.wait("event=stopped");
    assert!(line.contains(&format!("uploaded={sent}&")) && line.contains("left=0"), "{line}");
    site.write_yaml("", &all("full"));
    engine.signal(Signal::HUP);
    let report = engine.wait("back", |report| is(report, "go", "seeding"));
    assert_eq!(torrent(&report, "go").unwrap().uploaded_bytes, sent);
    std::thread::sleep(Duration::from_millis(1_100)); // the next statistics
    assert_eq!(hashed(&engine.report().unwrap()), total, "hashed again");
    let mut peer = Peer::connect(engine.address(), &items[1]).unwrap();
    assert!(peer.piece(&items[1], 0).is_some());
    engine.stop();
}

#[test]
fn seed_takes_a_file_a_folder_and_a_torrent_beside_its_content() {
    let site = Site::new();
    fs::create_dir_all(site.path("folder/deep")).unwrap();
    fs::write(site.path("folder/deep/a"), "abc").unwrap();
    fs::write(site.path("single"), "single file").unwrap();
    let item = site.item("known", 2, &[]);
    fs::rename(&item.torrent, site.path("content/known.torrent")).unwrap();
    let arguments = ["seed", "folder", "single", "content/known.torrent", "--state-dir", "state"];
    let listen = ["--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--no-embedded-tracker"];
    let mut engine = Engine::spawn(&site, &[&arguments[..], &listen[..]].concat());
    let report = engine.ready();
    for name in ["folder", "single", "known"] {
        assert!(is(&report, name, "seeding"), "{name}: {report:#?}");
    }
    assert!(report.failed.is_empty());
    for address in &report.listening {
        assert_eq!(served_right(address.parse().unwrap(), &item), 2, "{address}");
    }
    let log = engine.stop();
    assert!(log.contains("magnet:?xt=urn:btih:"), "{log}");
}
