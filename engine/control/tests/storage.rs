//! Owns: where a download lies on disk at any time: pieces in part, unwanted files, names and
//! folders of what is incomplete and complete.
//! Never: other clients. Flow: one engine seeds, another one fetches from it.

#![allow(clippy::unwrap_used)] // clippy takes only the functions with #[test] for tests

mod support;

use std::{fs, path::Path, time::Duration};

use seedring_control::{
    control_socket, create,
    engine::commands::{Action, AddFrom, AddTorrent, FilesReport, Reply, StorageChoice},
};
use support::{Engine, Item, PIECE, Site, all, bytes_of, hashed, is, served_right, torrent};

/// Of the items made here that have large ones.
const LARGE_PIECE: usize = 4 << 20;

/// A seed and what it seeds.
struct Source {
    site: Site,
    engine: Engine,
}

impl Source {
    fn start(site: Site, head: &str) -> Source {
        let mut engine = site.run(head, &all("full"));
        engine.wait("seeding", |report| {
            !report.torrents.is_empty() && report.torrents.iter().all(|t| t.state == "seeding")
        });
        Source { site, engine }
    }

    fn link(&self, hash: &[u8; 20], name: &str) -> String {
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("magnet:?xt=urn:btih:{hash}&dn={name}&x.pe={}", self.engine.address())
    }
}

/// A folder `t` with these files, as a torrent; its info-hash.
fn folder(site: &Site, files: &[(&str, usize)], piece_bytes: usize) -> [u8; 20] {
    let content = site.path("content/t");
    for (name, length) in files {
        let path = content.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes_of(name, *length)).unwrap();
    }
    let options =
        create::Options { piece_bytes: Some(piece_bytes as u32), ..create::Options::default() };
    let made = create::make(&create::scan(&content).unwrap(), &options, &|_| true).unwrap();
    fs::write(site.path("torrents/t.torrent"), &made.torrent).unwrap();
    made.metainfo.info_hash.0
}

fn add(site: &Site, link: String, only: &[&str], storage: StorageChoice) {
    let add = AddTorrent {
        from: AddFrom::Magnet(link),
        folder: site.path("save"),
        paused: false,
        sequential: false,
        only: only.iter().map(ToString::to_string).collect(),
        labels: Vec::new(),
        storage,
    };
    act::<Reply>(site, Action::Add(add));
}

fn act<T: serde::de::DeserializeOwned>(site: &Site, action: Action) -> T {
    control_socket::act(&site.path("state/control.sock"), action).unwrap()
}

fn want(site: &Site, files: &[&str]) -> FilesReport {
    let files = files.iter().map(ToString::to_string).collect();
    act(site, Action::Files { torrent: "t".into(), priority: Some(4), files })
}

/// Regular files beneath a folder, hidden ones too.
fn files_in(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap() != ".seedring-root" {
                found.push(path.strip_prefix(folder).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn what_a_stop_finds_in_the_middle_of_a_piece_is_not_fetched_again() {
    let site = Site::new();
    let hash = folder(&site, &[("a", 2 * LARGE_PIECE), ("b", LARGE_PIECE + 1)], LARGE_PIECE);
    let total = (3 * LARGE_PIECE + 1) as u64;
    let source = Source::start(site, "limits: { upload: 2MiB/s }\n");
    let site = Site::new();
    let mut engine = site.run("", "");
    engine.ready();
    add(&site, source.link(&hash, "t"), &[], StorageChoice::default());
    for part in 1..=3 {
        engine.wait("a part", |report| {
            torrent(report, "t").is_some_and(|t| t.downloaded_bytes > part * total / 5)
        });
        engine.stop();
        engine = site.run("", "");
    }
    let report = engine.wait("fetched", |report| is(report, "t", "seeding"));
    let fetched = torrent(&report, "t").unwrap().downloaded_bytes;
    println!("{fetched} bytes were fetched of {total}");
    // What was on its way when it stopped, three times: far less than the pieces in part.
    assert!(fetched < total + (1 << 20), "{fetched} bytes were fetched of {total}");
    for (name, length) in [("a", 2 * LARGE_PIECE), ("b", LARGE_PIECE + 1)] {
        assert!(fs::read(site.path("save/t").join(name)).unwrap() == bytes_of(name, length));
    }
    assert_eq!(files_in(&site.path("save")), ["t/a", "t/b"], "nothing is left beside it");
    engine.stop();
}

#[test]
fn an_unwanted_file_is_never_made_and_comes_out_of_what_is_kept_aside_when_it_is_wanted() {
    let files = [("a", 3 * PIECE + 100), ("deep/b", 2 * PIECE), ("z", 4 * PIECE)];
    let total: u64 = files.iter().map(|(_, length)| *length as u64).sum();
    let site = Site::new();
    let hash = folder(&site, &files, PIECE);
    let source = Source::start(site, "");
    let site = Site::new();
    let mut engine = site.run("", "");
    engine.ready();
    add(&site, source.link(&hash, "t"), &["a"], StorageChoice::default());
    engine.wait("the first", |report| is(report, "t", "seeding"));
    let visible = |site: &Site| files_in(&site.path("save/t"));
    assert_eq!(visible(&site), ["a"]);
    assert_eq!(files_in(&site.path("save")).len(), 2, "a piece has bytes of `b`, aside");
    let listed: FilesReport =
        act(&site, Action::Files { torrent: "t".into(), priority: None, files: Vec::new() });
    let aside: Vec<&str> = listed.files.iter().filter_map(|f| f.lies.as_deref()).collect();
    assert_eq!(aside, ["aside", "aside"]);
    engine.stop();
    // Over a restart too; and it is served, the bytes that are aside with it.
    let mut engine = site.run("", "");
    let report = engine.wait("again", |report| is(report, "t", "seeding"));
    assert_eq!(torrent(&report, "t").unwrap().pieces_verified, 4);
    let item = Item {
        name: "t".into(),
        bytes: files.iter().flat_map(|(name, length)| bytes_of(name, *length)).collect(),
        info_hash: hash,
        torrent: site.path("none"),
        content: site.path("none"),
    };
    assert_eq!(served_right(engine.address(), &item), 4);
    want(&site, &["deep/b"]);
    engine.wait("the second", |report| {
        torrent(report, "t").is_some_and(|t| t.state == "seeding" && t.pieces_verified == 6)
    });
    assert_eq!(visible(&site), ["a", "deep/b"]);
    engine.stop();
    let mut engine = site.run("", ""); // who is known is dialled at once again
    engine.wait("a third time", |report| is(report, "t", "seeding"));
    want(&site, &["z"]);
    let report = engine.wait("all", |report| {
        torrent(report, "t").is_some_and(|t| t.state == "seeding" && t.pieces_verified == t.pieces)
    });
    assert_eq!(files_in(&site.path("save")), ["t/a", "t/deep/b", "t/z"]);
    for (name, length) in files {
        assert!(fs::read(site.path("save/t").join(name)).unwrap() == bytes_of(name, length));
    }
    let fetched = torrent(&report, "t").unwrap().downloaded_bytes;
    assert_eq!(fetched, total, "no piece was fetched twice");
    engine.stop();
}

/// While it is incomplete its files have the suffix, in the folder for that; then it is moved, over
/// file systems too, and seeded from there.
fn moved(done: &Path) {
    let files = [("a", 3 * PIECE + 100), ("deep/b", 200 * PIECE), ("z", 4 * PIECE)];
    let site = Site::new();
    let hash = folder(&site, &files, PIECE);
    let source = Source::start(site, "limits: { upload: 1MiB/s }\n");
    let site = Site::new();
    let mut engine = site.run("", "");
    engine.ready();
    let storage = StorageChoice {
        incomplete_folder: Some(site.path("incomplete")),
        incomplete_suffix: Some(".part".into()),
        move_completed_to: Some(done.to_owned()),
        ..StorageChoice::default()
    };
    add(&site, source.link(&hash, "t"), &["a", "b"], storage);
    engine.wait("a part", |report| {
        torrent(report, "t").is_some_and(|t| t.state == "downloading" && t.pieces_verified > 20)
    });
    assert!(files_in(&site.path("incomplete/t")).iter().all(|name| name.ends_with(".part")));
    assert!(!done.join("t").exists() && !site.path("save").exists());
    engine.kill();
    let mut engine = site.run("", "");
    engine.wait("moved", |report| {
        is(report, "t", "seeding") && files_in(&site.path("incomplete")).is_empty()
    });
    assert_eq!(files_in(&done.join("t")), ["a", "deep/b"]);
    assert_eq!(files_in(done).len(), 3, "the part of `z` that is at the border");
    assert!(!site.path("incomplete/t").exists(), "no folder is left either");
    for (name, length) in &files[..2] {
        assert!(fs::read(done.join("t").join(name)).unwrap() == bytes_of(name, *length));
    }
    let item = Item {
        name: "t".into(),
        bytes: files.iter().flat_map(|(name, length)| bytes_of(name, *length)).collect(),
        info_hash: hash,
        torrent: site.path("none"),
        content: site.path("none"),
    };
    assert_eq!(served_right(engine.address(), &item), 204);
    engine.stop();
    let mut engine = site.run("", "");
    engine.wait("again", |report| is(report, "t", "seeding"));
    std::thread::sleep(Duration::from_millis(1_100)); // the next statistics
    assert_eq!(hashed(&engine.report().unwrap()), 0, "nothing is hashed again");
    want(&site, &["z"]);
    engine.wait("all", |report| {
        torrent(report, "t").is_some_and(|t| t.state == "seeding" && t.pieces_verified == t.pieces)
    });
    let named = |names: &[String]| names.iter().any(|name| name.ends_with("/z"));
    engine.wait("its name", |_| named(&files_in(done)));
    assert_eq!(files_in(done), ["t/a", "t/deep/b", "t/z"]);
    act::<Reply>(&site, Action::Remove { torrent: "t".into(), delete_content: true });
    assert!(files_in(done).is_empty(), "{:?}", files_in(done));
    engine.stop();
}

#[test]
fn a_complete_download_gets_its_names_and_is_renamed_to_its_folder() {
    let done = tempfile::tempdir().unwrap();
    moved(done.path());
}

#[test]
fn a_complete_download_is_copied_to_another_file_system() {
    let done = tempfile::tempdir_in("/dev/shm").unwrap();
    moved(done.path());
}

#[test]
fn what_is_there_already_is_not_written_over() {
    let site = Site::new();
    let item = site.item("file", 3, &[]);
    let source = Source::start(site, "");
    let site = Site::new();
    let mut engine = site.run("", "");
    engine.ready();
    let done = site.path("done");
    fs::create_dir(&done).unwrap();
    fs::write(done.join("file"), "another").unwrap();
    let storage =
        StorageChoice { move_completed_to: Some(done.clone()), ..StorageChoice::default() };
    add(&site, source.link(&item.info_hash, "file"), &[], storage);
    let report = engine.wait("the reason", |report| {
        let detail = torrent(report, "file").and_then(|t| t.detail.clone());
        detail.is_some_and(|why| why.contains("is there already"))
    });
    assert!(is(&report, "file", "seeding"));
    assert_eq!(fs::read_to_string(done.join("file")).unwrap(), "another");
    assert_eq!(fs::read(site.path("save/file")).unwrap(), item.bytes);
    assert!(source.site.path("content/file").exists());
    engine.stop();
}

#[test]
fn a_download_command_keeps_to_its_limit_and_ends_when_all_is_moved() {
    let site = Site::new();
    let item = site.item("file", 100, &[]);
    let source = Source::start(site, "");
    let site = Site::new();
    let link = source.link(&item.info_hash, "file");
    let began = std::time::Instant::now();
    let mut engine = Engine::spawn(
        &site,
        &[
            "download",
            &link,
            "--to",
            "work",
            "--listen",
            "127.0.0.1:0",
            "--state-dir",
            "state",
            "--limit",
            "500KB/s",
            "--preallocate",
            "full",
            "--incomplete-suffix",
            ".part",
            "--move-completed-to",
            "done",
        ],
    );
    assert_eq!(engine.end().code(), Some(0), "{}", engine.log());
    let took = began.elapsed().as_secs_f64();
    assert!(took > 100.0 * PIECE as f64 / 500e3 * 0.95, "{took} s");
    assert_eq!(files_in(&site.path("done")), ["file"]);
    assert!(files_in(&site.path("work")).is_empty());
    assert_eq!(fs::read(site.path("done/file")).unwrap(), item.bytes);
}
