//! Owns: what SIGHUP changes, and what it must leave alone.
//! Never: a thousand torrents; the whole-engine suite has those.
//! Flow: one engine a test, its configuration rewritten under it.

mod support;

use std::{
    fs,
    io::{ErrorKind, Read},
    net::TcpStream,
    time::Duration,
};

use rustix::process::Signal;
use support::{Peer, Site, Tracker, all, is, one, torrent};

#[test]
fn a_bad_file_changes_nothing_and_shows_no_passkey() {
    let site = Site::new();
    let item = site.item("file", 4, &[]);
    let mut engine = site.run("", &all("full"));
    engine.ready();
    let mut peer = Peer::connect(engine.address(), &item).unwrap();
    let key = "0123456789abcdef0123456789abcdef";
    let bad =
        format!("  - {{ folder: x, trackers: [\"http://t.example/{key}/announce\"], colour: 1 }}");
    site.write_yaml("limits: { upload: 1 B/s }", &bad);
    engine.signal(Signal::HUP);
    engine.wait_log("nothing was changed");
    let log = engine.log();
    assert!(log.contains("unknown key \"colour\"") && log.contains("***"), "{log}");
    assert!(!log.contains(key), "{log}");
    assert!(peer.piece(&item, 0).is_some());
    assert!(is(&engine.report().unwrap(), "file", "seeding"));
    engine.stop();
}

#[test]
fn a_torrent_moves_from_one_entry_to_another() {
    let site = Site::new();
    let items = [site.item("stays", 4, &[]), site.item("moves", 4, &[])];
    let mut engine = site.run("", &all("full"));
    engine.ready();
    let mut peer = Peer::connect(engine.address(), &items[0]).unwrap();
    // The same info-hash, from another .torrent file and another content folder.
    fs::create_dir(site.path("elsewhere")).unwrap();
    fs::rename(&items[1].content, site.path("elsewhere/moves")).unwrap();
    fs::rename(&items[1].torrent, site.path("elsewhere/moves.torrent")).unwrap();
    let there = "  - { files: elsewhere/moves.torrent, content: elsewhere, verify: full }\n";
    site.write_yaml("", &format!("{there}{}", all("full")));
    engine.signal(Signal::HUP);
    engine.wait("moved", |report| {
        let moved = torrent(report, "moves");
        moved.is_some_and(|t| t.source.contains("elsewhere") && t.state == "seeding")
    });
    assert!(peer.piece(&items[0], 1).is_some(), "the other torrent's peers stay");
    let mut peer = Peer::connect(engine.address(), &items[1]).unwrap();
    assert_eq!(peer.piece(&items[1], 3).unwrap(), items[1].bytes[3 * support::PIECE..]);
    engine.stop();
}

#[test]
fn a_reload_that_would_empty_the_engine_is_refused() {
    let site = Site::new();
    for n in 0..15 {
        site.item(&format!("file-{n:02}"), 1, &[]);
    }
    let mut engine = site.run("", &all("quick"));
    engine.ready();
    fs::rename(site.path("torrents"), site.path("unmounted")).unwrap();
    fs::create_dir(site.path("torrents")).unwrap();
    // Twice at once: the second is not lost, and changes nothing either.
    engine.signal(Signal::HUP);
    engine.signal(Signal::HUP);
    engine.wait_log("it would remove 15 of 15 torrents");
    assert_eq!(engine.report().unwrap().torrents.len(), 15);
    fs::remove_dir(site.path("torrents")).unwrap();
    fs::rename(site.path("unmounted"), site.path("torrents")).unwrap();
    // Other verification of all of them is no loss.
    site.write_yaml("", &all("full"));
    engine.signal(Signal::HUP);
    engine.wait("all again", |report| {
        report.torrents.len() == 15 && report.torrents.iter().all(|t| t.pieces_verified == 1)
    });
    engine.stop();
}

#[test]
fn a_reload_during_the_hashing_of_a_folder_drops_it() {
    let site = Site::new();
    let item = site.item("file", 2, &[]);
    fs::create_dir(site.path("large")).unwrap();
    let file = fs::File::create(site.path("large/file")).unwrap();
    file.set_len(1 << 30).unwrap(); // holes
    let mut engine = site.run("", "  - { folder: large }\n");
    engine.wait("hashing", |report| report.preparing == 1);
    site.write_yaml("", &one(&item, "quick"));
    engine.signal(Signal::HUP);
    engine.wait("the other", |report| is(report, "file", "seeding"));
    engine.wait("hashed for nothing", |report| report.preparing == 0);
    assert!(torrent(&engine.report().unwrap(), "large").is_none());
    engine.stop();
}

#[test]
fn new_trackers_hear_of_a_torrent_and_old_ones_of_its_end() {
    let site = Site::new();
    let (old, new) = (Tracker::start(None), Tracker::start(None));
    let item = site.item("file", 2, &[&old.url]);
    let mut engine = site.run("", &all("quick"));
    engine.ready();
    old.wait("event=started");
    let mut peer = Peer::connect(engine.address(), &item).unwrap();
    assert!(peer.piece(&item, 0).is_some());
    let sent = support::PIECE as u64;
    engine.wait("counted", |r| torrent(r, "file").unwrap().uploaded_bytes == sent);
    let entry = format!(
        "  - {{ files: \"torrents/*.torrent\", content: content, verify: quick, \
         trackers: [\"{}\"] }}\n",
        new.url
    );
    site.write_yaml("", &entry);
    engine.signal(Signal::HUP);
    let line = old.wait("event=stopped");
    assert!(line.contains(&format!("uploaded={sent}&")), "{line}");
    let line = new.wait("event=started");
    assert!(line.contains("uploaded=0&"), "{line}");
    assert!(peer.piece(&item, 1).is_some(), "its peers stay");
    engine.stop();
    assert_eq!(old.asked().len(), 2, "{:?}", old.asked());
}

/// BEP 27: peers of a private torrent's old tracker go with it, those of other torrents stay.
#[test]
fn new_trackers_of_a_private_torrent_end_its_connections() {
    let site = Site::new();
    let (old, new) = (Tracker::start(None), Tracker::start(None));
    let private = site.private("private", 2, &[&old.url]);
    let public = site.item("public", 2, &[&old.url]);
    for shards in ["shards: 1", "shards: 2"] {
        let mut engine = site.run(shards, &all("full"));
        engine.ready();
        let mut leaves = Peer::connect(engine.address(), &private).unwrap();
        let mut stays = Peer::connect(engine.address(), &public).unwrap();
        assert!(leaves.piece(&private, 0).is_some() && stays.piece(&public, 0).is_some());
        // Other limits alone end nothing.
        let entry = |more: &str| {
            format!(
                "  - {{ files: \"torrents/*.torrent\", content: content, verify: full, {more}, \
                 limits: {{ connections: 100 }} }}\n"
            )
        };
        site.write_yaml(shards, &entry("trackers: keep"));
        engine.signal(Signal::HUP);
        engine.wait_log("2 changed");
        assert!(leaves.piece(&private, 1).is_some());
        site.write_yaml(shards, &entry(&format!("trackers: [\"{}\"]", new.url)));
        engine.signal(Signal::HUP);
        new.wait("event=started");
        assert!(leaves.is_closed());
        assert!(stays.piece(&public, 1).is_some());
        let mut again = Peer::connect(engine.address(), &private).unwrap();
        assert_eq!(again.piece(&private, 1).unwrap(), private.bytes[support::PIECE..]);
        engine.stop();
    }
}

#[test]
fn timeouts_change_and_nobody_is_dropped() {
    let site = Site::new();
    let item = site.item("file", 4, &[]);
    let mut engine = site.run("timeouts: { handshake: 2m, idle: 1h }", &all("full"));
    engine.ready();
    let address = engine.address();
    let mut peer = Peer::connect(address, &item).unwrap();
    let mute = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        stream
    };
    let is_closed = |mut stream: &TcpStream| match stream.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    };
    let before = mute();
    assert!(!is_closed(&before), "two minutes for a handshake");
    site.write_yaml("timeouts: { handshake: 1s, idle: 30s, connect: 2s }", &all("full"));
    engine.signal(Signal::HUP);
    engine.wait_log("reloaded: 0 added, 0 removed, 0 changed");
    assert!(is_closed(&mute()), "a second for a handshake");
    assert!(!is_closed(&before), "it keeps the time that it began with");
    assert!(peer.piece(&item, 1).is_some(), "open connections stay");
    assert!(!engine.log().contains("timeouts."), "{}", engine.log());
    engine.stop();
}
