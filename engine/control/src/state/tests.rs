//! Owns: what the store must keep over restarts, damage, newer versions and what other programs
//! left in its place. Never: the engine.
//! Flow: each test has a folder of its own.

use std::path::Path;

use seedring_proto::units::PieceIndex;

use super::*;

fn record(uploaded_bytes: u64) -> Record {
    let stamp = Stamp { size_bytes: 7, modified_ns: -3 };
    Record {
        name: "größe".into(),
        uploaded_bytes,
        verified: vec![0xff, 0x80],
        stamps: vec![Some(stamp), None],
        added_at: 1_700_000_000,
        downloaded_bytes: 3,
        paused: true,
        kept: vec![
            KeptPiece { piece: PieceIndex(7), slot: 3, blocks: Box::new([0xa0, 1]) },
            KeptPiece { piece: PieceIndex(9), slot: 0, blocks: Box::new([]) },
        ],
        recheck: true,
    }
}

fn download(folder: &str) -> Download {
    Download {
        folder: folder.into(),
        root: "0123".into(),
        magnet: Some("magnet:?xt=urn:btih:0".into()),
        files: vec![
            FileRow { priority: 7, foreign: true },
            FileRow { priority: 0, foreign: false },
        ],
        only: vec!["*.iso".into(), "größe \"x\"".into()],
        sequential: true,
        labels: vec!["a".into()],
        by_command: true,
        added_at: 5,
        completed_at: Some(9),
        allocation: Allocation::Full,
        suffix: ".part".into(),
        chosen: Some("/srv/chosen".into()),
        goal: Some(Goal { folder: "/srv/done".into(), root: "4567".into() }),
        moving: Moving::Placing,
    }
}

#[test]
fn a_download_is_there_once_after_its_flush_and_never_again_after_it_was_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (kept, gone) = (InfoHash([1; 20]), InfoHash([2; 20]));
    let (store, _) = Store::open(dir.path()).unwrap();
    for hash in [kept, gone] {
        store.save_download(hash, Download::default());
        store.save_download(hash, download("/srv/ä"));
        store.save(hash, record(1));
    }
    store.flush_later().wait().unwrap();
    // In one batch and over several: what came last counts.
    store.save_download(gone, download("/elsewhere"));
    store.forget(gone);
    store.flush().unwrap();
    store.forget(kept);
    store.save_download(kept, download("/srv/ä"));
    drop(store);
    let (_store, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!(loaded.downloads, HashMap::from([(kept, download("/srv/ä"))]));
    assert!(loaded.torrents.is_empty(), "totals go with it");
}

#[test]
fn what_was_flushed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let hash = InfoHash([7; 20]);
    let made =
        |n| MadeTorrent { manifest: [n; 20], options: [3; 20], info_hash: InfoHash([2; 20]) };
    let key = {
        let (store, loaded) = Store::open(dir.path()).unwrap();
        assert!(loaded.torrents.is_empty());
        (0..100).for_each(|n| store.save(hash, record(n)));
        [9, 1, 5].into_iter().for_each(|n| store.made("/srv/ä".into(), made(n)));
        store.flush().unwrap();
        loaded.tracker_key
    };
    let (_store, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!(loaded.torrents[&hash], record(99));
    assert_eq!(loaded.made[Path::new("/srv/ä")], [made(9), made(1), made(5)]);
    assert_eq!(loaded.tracker_key, key);
}

#[test]
fn dropping_the_store_writes_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    store.save(InfoHash([1; 20]), record(5));
    drop(store);
    let (_store, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!(loaded.torrents.len(), 1);
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A store with one record whose database was then changed by `spoil`.
fn spoiled(spoil: impl FnOnce(&Path, rusqlite::Connection)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    store.save(InfoHash([1; 20]), record(5));
    drop(store);
    let path = dir.path().join("state.sqlite");
    spoil(&path, rusqlite::Connection::open(&path).unwrap());
    dir
}

#[test]
fn a_database_that_cannot_be_used_is_set_aside_whole_and_the_engine_starts() {
    let garbage = spoiled(|path, database| {
        drop(database);
        std::fs::write(path, vec![0x55; 8_192]).unwrap();
    });
    let row = spoiled(|_, database| {
        let bad = "UPDATE torrents SET name = CAST(x'ff' AS TEXT)";
        database.execute(bad, []).unwrap();
    });
    let table = spoiled(|_, database| {
        database.execute("DROP TABLE made", []).unwrap();
    });
    let newer = spoiled(|_, database| database.pragma_update(None, "user_version", 99).unwrap());
    for (dir, why) in
        [(&garbage, "damaged"), (&row, "damaged"), (&table, "damaged"), (&newer, "newer")]
    {
        let before = std::fs::read(dir.path().join("state.sqlite")).unwrap();
        let (store, loaded) = Store::open(dir.path()).unwrap();
        assert!(loaded.torrents.is_empty());
        store.save(InfoHash([2; 20]), record(6));
        store.flush().unwrap();
        let names = names(dir.path());
        let aside = names.iter().find(|n| n.contains(why)).unwrap();
        assert_eq!(std::fs::read(dir.path().join(aside)).unwrap(), before, "{names:?}");
    }
}

/// A database of another program where ours would be, with a table that we don't have.
fn of_another_program(more: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let database = rusqlite::Connection::open(dir.path().join("state.sqlite")).unwrap();
    let notes = "CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('theirs');";
    database.execute_batch(&format!("{notes}{more}")).unwrap();
    dir
}

#[test]
fn a_database_of_another_program_is_set_aside_as_it_was() {
    let plain = of_another_program("");
    let versioned = of_another_program("PRAGMA user_version = 3;");
    let newer = of_another_program("PRAGMA user_version = 99;");
    let same_names = of_another_program(
        "CREATE TABLE torrents (a); CREATE TABLE made (a); CREATE TABLE identity (a);",
    );
    let with_an_id = of_another_program("PRAGMA application_id = 252006674; DROP TABLE notes;");
    for dir in [&plain, &versioned, &newer, &same_names, &with_an_id] {
        let before = std::fs::read(dir.path().join("state.sqlite")).unwrap();
        let (store, loaded) = Store::open(dir.path()).unwrap();
        assert!(loaded.torrents.is_empty());
        store.save(InfoHash([2; 20]), record(6));
        drop(store);
        let names = names(dir.path());
        let aside: Vec<_> = names.iter().filter(|name| name.contains("foreign")).collect();
        assert_eq!(aside.len(), 1, "{names:?}");
        assert_eq!(std::fs::read(dir.path().join(aside[0])).unwrap(), before, "not a byte of it");
        let (_store, loaded) = Store::open(dir.path()).unwrap();
        assert_eq!(loaded.torrents.len(), 1, "the new one is ours");
    }
}

fn application_id(dir: &Path) -> i64 {
    let database = rusqlite::Connection::open(dir.join("state.sqlite")).unwrap();
    database.pragma_query_value(None, "application_id", |row| row.get(0)).unwrap()
}

#[test]
fn a_store_of_ours_without_the_id_is_taken_and_gets_it() {
    let made = spoiled(|_, _| {});
    let mark = application_id(made.path());
    assert_eq!(mark, 0x7364_7267, "\"sdrg\"");
    let without = spoiled(|_, database| {
        database.pragma_update(None, "application_id", 0).unwrap();
    });
    assert_eq!(application_id(without.path()), 0);
    let (store, loaded) = Store::open(without.path()).unwrap();
    assert_eq!(loaded.torrents[&InfoHash([1; 20])], record(5));
    drop(store);
    assert_eq!(application_id(without.path()), mark);
    let names = names(without.path());
    assert!(!names.iter().any(|name| name.contains("foreign")), "{names:?}");
}

#[test]
fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).err().unwrap();
    assert!(matches!(error, Error::InUse(_)));
    assert!(error.to_string().contains("another seedring is running"), "{error}");
    drop(store);
    assert!(Store::open(dir.path()).is_ok());
}

#[test]
fn what_cannot_be_written_waits_and_is_written_when_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    // As on a full disk, every write fails; but this can be taken back.
    let other = rusqlite::Connection::open(dir.path().join("state.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    store.save(InfoHash([1; 20]), record(5));
    assert!(store.flush().unwrap_err().contains("locked"));
    assert!(store.fault().is_some_and(|why| why.contains("state.sqlite")));
    store.save(InfoHash([2; 20]), record(6));
    other.execute_batch("ROLLBACK").unwrap();
    store.flush().unwrap();
    assert_eq!(store.fault(), None);
    drop(store);
    let (_store, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!(loaded.torrents.len(), 2);
}

#[test]
fn stamps_survive_encoding_and_garbage_is_refused() {
    let stamps = record(0).stamps;
    assert_eq!(encode::parse_stamps(&encode::stamps(&stamps)), Some(stamps));
    assert_eq!(encode::parse_stamps(&[0; 16]), None);
    assert_eq!(encode::parse_stamps(&[9; 17]), None);
}

#[test]
fn a_database_of_the_first_schema_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    store.save(InfoHash([4; 20]), record(11));
    store.made(
        "/srv".into(),
        MadeTorrent { manifest: [1; 20], options: [2; 20], info_hash: InfoHash([3; 20]) },
    );
    drop(store);
    let database = rusqlite::Connection::open(dir.path().join("state.sqlite")).unwrap();
    let back = "ALTER TABLE made DROP COLUMN options; ALTER TABLE made DROP COLUMN made_at;
                ALTER TABLE torrents DROP COLUMN downloaded_bytes;
                ALTER TABLE torrents DROP COLUMN paused;
                ALTER TABLE torrents DROP COLUMN kept; ALTER TABLE torrents DROP COLUMN recheck;
                DROP TABLE downloads;
                PRAGMA user_version = 1; PRAGMA application_id = 0;";
    database.execute_batch(back).unwrap();
    drop(database);
    let (_store, loaded) = Store::open(dir.path()).unwrap();
    let expected = Record {
        downloaded_bytes: 0,
        paused: false,
        kept: Vec::new(),
        recheck: false,
        ..record(11)
    };
    assert_eq!(loaded.torrents[&InfoHash([4; 20])], expected);
    assert_eq!(loaded.made[Path::new("/srv")][0].options, [0; 20], "equal to no folder's options");
}

#[test]
fn a_download_of_the_third_schema_stays_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let hash = InfoHash([4; 20]);
    store.save(hash, record(11));
    store.save_download(hash, download("/srv/ä"));
    drop(store);
    let database = rusqlite::Connection::open(dir.path().join("state.sqlite")).unwrap();
    for column in ["allocation", "suffix", "chosen", "goal", "goal_root", "moving"] {
        let back = format!("ALTER TABLE downloads DROP COLUMN {column}");
        database.execute_batch(&back).unwrap();
    }
    let back = "ALTER TABLE torrents DROP COLUMN kept; ALTER TABLE torrents DROP COLUMN recheck;
                PRAGMA user_version = 3;";
    database.execute_batch(back).unwrap();
    drop(database);
    let (_store, loaded) = Store::open(dir.path()).unwrap();
    assert_eq!(loaded.torrents[&hash], Record { kept: Vec::new(), recheck: false, ..record(11) });
    let expected = Download {
        allocation: Allocation::Sparse,
        suffix: String::new(),
        chosen: None,
        goal: None,
        moving: Moving::No,
        ..download("/srv/ä")
    };
    assert_eq!(loaded.downloads[&hash], expected);
}

#[test]
fn of_a_folder_that_keeps_changing_the_newest_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    for n in 0..100 {
        let made =
            MadeTorrent { manifest: [n; 20], options: [0; 20], info_hash: InfoHash([n; 20]) };
        store.made("/srv".into(), made);
    }
    drop(store);
    let (_store, loaded) = Store::open(dir.path()).unwrap();
    let made = &loaded.made[Path::new("/srv")];
    assert_eq!((made.len(), made.last().unwrap().manifest), (32, [99; 20]));
}
