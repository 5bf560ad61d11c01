//! Owns: what control promises of downloads: what is there counts, nothing acknowledged is lost,
//! nothing is made or deleted where it must not be.
//! Never: a second client; where bytes have to come from a peer, another engine seeds them.
//! Flow: one engine a test, moved by commands.

#![allow(clippy::unwrap_used)] // clippy takes only the functions with #[test] for tests

mod support;

use std::{fs, path::Path, time::Duration};

use rustix::process::Signal;
use seedring_control::{
    control_socket,
    engine::commands::{Action, AddFrom, AddTorrent, FilesReport, Reply, StorageChoice},
    state::{Download, Record, Store},
};
use seedring_proto::{metainfo::Metainfo, units::InfoHash};
use support::{Engine, Item, PIECE, Site, Tracker, all, hashed, is, served_right, torrent};

fn act(site: &Site, action: Action) -> Result<Reply, String> {
    let socket = site.path("state/control.sock");
    control_socket::act::<Reply>(&socket, action).map_err(|error| format!("{error:#}"))
}

fn add(site: &Site, item: &Item, folder: &str) -> Result<Reply, String> {
    let from = AddFrom::Torrent(fs::read(&item.torrent).unwrap());
    add_from(site, from, folder, false)
}

fn add_from(site: &Site, from: AddFrom, folder: &str, paused: bool) -> Result<Reply, String> {
    let folder = site.path(folder);
    let (sequential, only, labels) = (false, Vec::new(), vec![String::from("tv")]);
    let storage = StorageChoice::default();
    act(site, Action::Add(AddTorrent { from, folder, paused, sequential, only, labels, storage }))
}

fn remove(site: &Site, which: &str, delete_content: bool) -> Result<Reply, String> {
    act(site, Action::Remove { torrent: which.into(), delete_content })
}

fn hash_of(item: &Item) -> String {
    item.info_hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Copies a torrent's content into a save folder.
fn put(site: &Site, item: &Item, folder: &str) {
    fs::create_dir_all(site.path(folder)).unwrap();
    fs::copy(&item.content, site.path(folder).join(&item.name)).unwrap();
}

#[test]
fn what_is_there_already_is_hashed_once_and_seeded_without_a_byte_fetched() {
    let site = Site::new();
    let tracker = Tracker::start(None);
    let item = site.item("file", 20, &[&tracker.url]);
    put(&site, &item, "save");
    let mut engine = site.run("", "");
    engine.ready();
    let reply = add(&site, &item, "save").unwrap();
    assert_eq!((reply.info_hash, &*reply.name), (hash_of(&item), "file"));
    let report = engine.wait("seeding", |report| is(report, "file", "seeding"));
    let seen = torrent(&report, "file").unwrap();
    assert_eq!((seen.pieces_verified, seen.downloaded_bytes, seen.missing_bytes), (20, 0, 0));
    assert_eq!((&seen.labels[..], seen.added), (&["tv".to_owned()][..], true));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = now.as_secs().cast_signed();
    let (added_at, completed_at) = (seen.added_at, seen.completed_at.unwrap());
    assert!((now - 60..=completed_at).contains(&added_at) && completed_at <= now, "{seen:#?}");
    assert_eq!(served_right(engine.address(), &item), 20);
    let error = add(&site, &item, "elsewhere").unwrap_err();
    assert!(error.contains("there already"), "{error}");
    let line = tracker.wait("event=started");
    assert!(line.contains("left=0"), "{line}");
    engine.kill();

    // Acknowledged, so it is there, once; and what was verified is believed.
    let mut engine = site.run("", "");
    let report = engine.wait("again", |report| is(report, "file", "seeding"));
    assert_eq!(report.torrents.len(), 1);
    let seen = torrent(&report, "file").unwrap();
    assert_eq!(seen.added_at, added_at);
    let completed_at = seen.completed_at;
    engine.stop();
    let mut engine = site.run("", "");
    let report = engine.wait("a third time", |report| is(report, "file", "seeding"));
    let seen = torrent(&report, "file").unwrap();
    assert_eq!((seen.added_at, seen.completed_at), (added_at, completed_at));
    assert_eq!(seen.labels, ["tv"]);
    std::thread::sleep(Duration::from_millis(1_100)); // the next statistics
    assert_eq!(hashed(&engine.report().unwrap()), 0);
    assert!(!tracker.asked().iter().any(|line| line.contains("event=completed")));
    engine.stop();
}

#[test]
fn of_a_file_that_is_there_in_part_the_good_pieces_count_and_the_rest_is_announced_as_left() {
    let site = Site::new();
    let tracker = Tracker::start(None);
    let item = site.item("file", 20, &[&tracker.url]);
    fs::create_dir(site.path("save")).unwrap();
    let mut bytes = item.bytes[..12 * PIECE + 5].to_vec();
    bytes[3 * PIECE] ^= 1;
    fs::write(site.path("save/file"), &bytes).unwrap();
    let mut engine = site.run("", "");
    engine.ready();
    add(&site, &item, "save").unwrap();
    let report = engine.wait("downloading", |report| is(report, "file", "downloading"));
    let seen = torrent(&report, "file").unwrap();
    assert_eq!((seen.pieces_verified, seen.completed_at), (11, None));
    let line = tracker.wait("event=started");
    let left = item.bytes.len() * 9 / 20;
    assert!(line.contains(&format!("left={left}&")), "{line}");
    let files: FilesReport = control_socket::act(
        &site.path("state/control.sock"),
        Action::Files { torrent: "file".into(), priority: Some(7), files: vec!["0".into()] },
    )
    .unwrap();
    assert_eq!((files.files[0].had_bytes, files.files[0].priority), (11 * PIECE as u64, Some(7)));
    engine.stop();
    let mut engine = site.run("", "");
    let report = engine.wait("again", |report| is(report, "file", "downloading"));
    assert_eq!(torrent(&report, "file").unwrap().pieces_verified, 11, "stored as synced");
    engine.stop();
}

#[test]
fn what_is_deleted_while_it_is_downloaded_is_missed_soon_and_fetched_again() {
    let source = Site::new();
    let item = source.item("file", 40, &[]);
    let site = Site::new();
    fs::create_dir(site.path("save")).unwrap();
    fs::write(site.path("save/file"), &item.bytes[..12 * PIECE]).unwrap();
    let mut engine = site.run("", "");
    engine.ready();
    add(&site, &item, "save").unwrap();
    engine.wait("downloading", |report| is(report, "file", "downloading"));
    assert_eq!(torrent(&engine.report().unwrap(), "file").unwrap().pieces_verified, 12);
    fs::remove_file(site.path("save/file")).unwrap();
    engine.wait("missed", |report| {
        let seen = torrent(report, "file");
        is(report, "file", "downloading") && seen.is_some_and(|t| t.pieces_verified == 0)
    });
    // It is a download like any other: all of it comes from a seed.
    let mut seeder = source.run("", &all("full"));
    seeder.wait("seeding", |report| is(report, "file", "seeding"));
    let seed = seeder.address();
    let link = format!("magnet:?xt=urn:btih:{}&x.pe={seed}", hash_of(&item));
    remove(&site, "file", false).unwrap();
    add_from(&site, AddFrom::Magnet(link), "save", false).unwrap();
    engine.wait("fetched", |report| is(report, "file", "seeding"));
    assert_eq!(fs::read(site.path("save/file")).unwrap(), item.bytes);
    engine.stop();
    seeder.stop();
}

#[test]
fn a_save_folder_that_is_away_is_waited_for_and_nothing_is_made_in_its_place() {
    let site = Site::new();
    let item = site.item("file", 4, &[]);
    put(&site, &item, "save");
    let mut engine = site.run("", "");
    engine.ready();
    add(&site, &item, "save").unwrap();
    engine.wait("seeding", |report| is(report, "file", "seeding"));
    engine.stop();
    fs::rename(site.path("save"), site.path("away")).unwrap();
    let mut engine = site.run("", "");
    engine.wait("away", |report| is(report, "file", "waiting"));
    assert!(!site.path("save").exists());
    // An empty folder where a disk was mounted.
    fs::create_dir(site.path("save")).unwrap();
    engine.wait("another", |report| {
        let detail = torrent(report, "file").and_then(|t| t.detail.clone());
        detail.is_some_and(|why| why.contains("mounted"))
    });
    assert_eq!(fs::read_dir(site.path("save")).unwrap().count(), 0);
    fs::remove_dir(site.path("save")).unwrap();
    fs::rename(site.path("away"), site.path("save")).unwrap();
    engine.wait("back", |report| is(report, "file", "seeding"));
    assert_eq!(hashed(&engine.report().unwrap()), 0);
    engine.stop();
}

#[test]
fn a_removed_torrent_does_not_come_back_and_takes_only_its_own_files_with_it() {
    let site = Site::new();
    let (ours, theirs) = (site.item("ours", 3, &[]), site.item("theirs", 3, &[]));
    put(&site, &theirs, "save");
    let yaml = format!(
        "  - {{ files: \"{}\", content: content }}\n",
        site.item("listed", 2, &[]).torrent.display()
    );
    let mut engine = site.run("", &yaml);
    engine.ready();
    for item in [&ours, &theirs] {
        add(&site, item, "save").unwrap();
    }
    engine.wait("both", |report| {
        is(report, "ours", "downloading") && is(report, "theirs", "seeding")
    });
    let error = remove(&site, "listed", true).unwrap_err();
    assert!(error.contains("seedring.yaml") && error.contains("line"), "{error}");
    remove(&site, "ours", true).unwrap();
    let reply = remove(&site, "theirs", true).unwrap();
    assert!(reply.notes.iter().any(|note| note.contains("it was there before")), "{reply:?}");
    assert!(site.path("save/theirs").exists(), "it was there before us");
    let kept = || fs::read_dir(site.path("state/torrents")).unwrap().count();
    engine.wait("no .torrent of theirs is left", |_| kept() == 0);
    engine.kill();
    let mut engine = site.run("", &yaml);
    let report = engine.ready();
    assert_eq!(report.torrents.len(), 1, "{report:#?}");
    assert!(is(&report, "listed", "seeding"));
    engine.stop();
}

#[test]
fn a_pause_and_what_was_added_outlive_restarts_and_reloads() {
    let site = Site::new();
    let tracker = Tracker::start(None);
    let items = [site.item("listed", 3, &[&tracker.url]), site.item("added", 3, &[])];
    put(&site, &items[1], "save");
    let yaml = support::one(&items[0], "full");
    let mut engine = site.run("", &yaml);
    engine.ready();
    let from = AddFrom::Torrent(fs::read(&items[1].torrent).unwrap());
    add_from(&site, from, "save", true).unwrap();
    engine.wait("paused", |report| is(report, "added", "paused"));
    act(&site, Action::Pause { torrent: "listed".into() }).unwrap();
    tracker.wait("event=stopped");
    assert!(support::Peer::connect(engine.address(), &items[0]).is_none());
    engine.signal(Signal::HUP);
    engine.wait_log("reloaded");
    engine.kill();

    let mut engine = site.run("", &yaml);
    engine.wait("both", |report| is(report, "listed", "paused") && is(report, "added", "paused"));
    for name in ["listed", "added"] {
        act(&site, Action::Resume { torrent: name.into() }).unwrap();
        engine.wait("resumed", |report| is(report, name, "seeding"));
    }
    assert_eq!(served_right(engine.address(), &items[0]), 3);
    assert_eq!(served_right(engine.address(), &items[1]), 3);
    engine.stop();
}

#[test]
fn a_recheck_finds_what_changed_unseen_and_has_it_fetched_again() {
    let site = Site::new();
    let item = site.item("file", 8, &[]);
    put(&site, &item, "save");
    let mut engine = site.run("", "");
    engine.ready();
    add(&site, &item, "save").unwrap();
    engine.wait("seeding", |report| is(report, "file", "seeding"));
    spoil_unseen(&site.path("save/file"), 5 * PIECE);
    act(&site, Action::Recheck { torrent: "file".into() }).unwrap();
    let report = engine.wait("found", |report| is(report, "file", "downloading"));
    assert_eq!(torrent(&report, "file").unwrap().pieces_verified, 7);
    engine.stop();
}

/// What was acknowledged is done, whatever happens to the process (D1).
#[test]
fn a_recheck_that_was_asked_for_outlives_a_crash() {
    let site = Site::new();
    let item = site.item("file", 8, &[]);
    let listed = site.item("listed", 8, &[]);
    put(&site, &item, "save");
    let yaml = support::one(&listed, "trust");
    let mut engine = site.run("", &yaml);
    engine.ready();
    add(&site, &item, "save").unwrap();
    engine.wait("seeding", |report| is(report, "file", "seeding"));
    spoil_unseen(&site.path("save/file"), 5 * PIECE);
    spoil_unseen(&listed.content, 3 * PIECE);
    for name in ["file", "listed"] {
        act(&site, Action::Recheck { torrent: name.into() }).unwrap();
    }
    engine.kill();
    let mut engine = site.run("", &yaml);
    let report = engine.wait("found", |report| {
        is(report, "file", "downloading") && is(report, "listed", "partial")
    });
    for name in ["file", "listed"] {
        assert_eq!(torrent(&report, name).unwrap().pieces_verified, 7);
    }
    engine.stop();
}

/// What a recheck hashed before the process ended is not hashed again.
#[test]
fn a_recheck_goes_on_where_it_was() {
    let site = Site::new();
    let item = site.item("file", 16, &[]);
    put(&site, &item, "save");
    let mut engine = site.run("", "");
    engine.ready();
    add(&site, &item, "save").unwrap();
    engine.wait("seeding", |report| is(report, "file", "seeding"));
    engine.stop();
    // As it is when half is done.
    let hash = InfoHash(item.info_hash);
    let (store, loaded) = Store::open(&site.path("state")).unwrap();
    let (record, row) = (loaded.torrents[&hash].clone(), loaded.downloads[&hash].clone());
    assert!(row.completed_at.is_some() && !record.recheck, "{row:?}");
    store.save(hash, Record { verified: vec![0xff, 0], recheck: true, ..record });
    store.save_download(hash, Download { completed_at: None, ..row });
    drop(store);
    let mut engine = site.run("", "");
    engine.wait("seeding", |report| is(report, "file", "seeding"));
    std::thread::sleep(Duration::from_millis(1_100)); // the next statistics
    assert_eq!(hashed(&engine.report().unwrap()), (item.bytes.len() - 8 * PIECE) as u64);
    engine.stop();
    let (_store, loaded) = Store::open(&site.path("state")).unwrap();
    let record = &loaded.torrents[&hash];
    assert_eq!((&record.verified[..], record.recheck), (&[0xff, 0xff][..], false));
    assert!(loaded.downloads[&hash].completed_at.is_some());
}

/// Changes a byte and gives the file its old time back.
fn spoil_unseen(path: &Path, at: usize) {
    let before = fs::metadata(path).unwrap().modified().unwrap();
    support::spoil(path, at, 1);
    fs::File::options().write(true).open(path).unwrap().set_modified(before).unwrap();
}

#[test]
fn a_magnet_waits_for_its_metadata_and_goes_on_with_the_file() {
    let site = Site::new();
    let tracker = Tracker::start(None);
    let item = site.item("file", 3, &[]);
    put(&site, &item, "save");
    let mut engine = site.run("", "");
    engine.ready();
    let link = format!("magnet:?xt=urn:btih:{}&dn=file&tr={}", hash_of(&item), tracker.url);
    add_from(&site, AddFrom::Magnet(link), "save", false).unwrap();
    engine.wait("waits", |report| is(report, "file", "metadata"));
    let line = tracker.wait("event=started");
    assert!(line.contains("left=16384&"), "0 would make us a seed: {line}");
    engine.kill();
    let mut engine = site.run("", "");
    engine.wait("still waits", |report| is(report, "file", "metadata"));
    add(&site, &item, "save").unwrap();
    let report = engine.wait("known", |report| is(report, "file", "seeding"));
    assert_eq!(report.torrents.len(), 1);
    engine.kill();
    let mut engine = site.run("", "");
    engine.wait("kept", |report| is(report, "file", "seeding"));
    assert_eq!(served_right(engine.address(), &item), 3);
    engine.stop();
}

#[test]
fn the_configuration_downloads_what_is_missing_and_removes_what_is_taken_out() {
    let site = Site::new();
    let item = site.item("file", 3, &[]);
    let other = site.item("other", 2, &[]);
    put(&site, &other, "new");
    let yaml = "  - { files: \"torrents/*.torrent\", content: new, download: true }\n";
    let mut engine = site.run("", yaml);
    engine
        .wait("both", |report| is(report, "file", "downloading") && is(report, "other", "seeding"));
    let error = remove(&site, "file", false).unwrap_err();
    assert!(error.contains("take it out there"), "{error}");
    fs::remove_file(&item.torrent).unwrap();
    engine.signal(Signal::HUP);
    engine.wait("gone", |report| report.torrents.len() == 1);
    engine.stop();
}

/// One engine seeds a file, another one that knows its address from a link fetches it.
#[test]
fn a_file_and_a_magnet_are_fetched_from_a_seed_and_told_to_trackers_once() {
    let source = Site::new();
    let item = source.item("file", 300, &[]);
    let mut seeder = source.run("", &all("full"));
    seeder.wait("seeding", |report| is(report, "file", "seeding"));
    let seed = seeder.address();
    for by_magnet in [false, true] {
        let site = Site::new();
        let tracker = Tracker::start(None);
        let link = format!(
            "magnet:?xt=urn:btih:{}&dn=file&x.pe={seed}&tr={}&ws=http://127.0.0.1:9/web",
            hash_of(&item),
            tracker.url
        );
        let mut engine = site.run("", "");
        engine.ready();
        add_from(&site, AddFrom::Magnet(link), "save", false).unwrap();
        if !by_magnet {
            add(&site, &item, "save").unwrap();
        }
        let report = engine.wait("fetched", |report| is(report, "file", "seeding"));
        assert_eq!(fs::read(site.path("save/file")).unwrap(), item.bytes);
        let kept = site.path("state/torrents").join(format!("{}.torrent", hash_of(&item)));
        let kept = Metainfo::parse(&fs::read(kept).unwrap()).unwrap();
        assert!(!by_magnet || !kept.web_seeds.is_empty(), "those of the link stay with it");
        let seen = torrent(&report, "file").unwrap();
        assert!(seen.downloaded_bytes >= item.bytes.len() as u64, "{seen:?}");
        let line = tracker.wait("event=completed");
        assert!(line.contains("left=0"), "{line}");
        assert_eq!(served_right(engine.address(), &item), 300);
        engine.stop();
        let mut engine = site.run("", "");
        engine.wait("again", |report| is(report, "file", "seeding"));
        std::thread::sleep(Duration::from_millis(1_100)); // the next statistics
        assert_eq!(hashed(&engine.report().unwrap()), 0, "nothing is hashed again");
        engine.stop();
        let completed = tracker.asked().iter().filter(|l| l.contains("event=completed")).count();
        assert_eq!(completed, 1, "{:?}", tracker.asked());
    }
    seeder.stop();
}

#[test]
fn a_download_of_what_is_there_ends_with_success_and_says_why_it_can_not() {
    let site = Site::new();
    let item = site.item("file", 3, &[]);
    put(&site, &item, "to");
    let torrent = item.torrent.to_str().unwrap();
    let listen = ["--listen", "127.0.0.1:0", "--state-dir", "state"];
    for _ in 0..2 {
        let arguments = ["download", torrent, "--to", "to"];
        let mut engine = Engine::spawn(&site, &[&arguments[..], &listen[..]].concat());
        assert_eq!(engine.end().code(), Some(0), "{}", engine.log());
    }
    let arguments = ["download", torrent, "--to", "to", "--only", "*.iso"];
    let mut engine = Engine::spawn(&site, &[&arguments[..], &listen[..]].concat());
    assert_eq!(engine.end().code(), Some(1));
    assert!(engine.log().contains("matches no file"), "{}", engine.log());
}
