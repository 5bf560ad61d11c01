//! Owns: a crash at every step of a move, over file systems and within one. Never: the engine.
//! Flow: content made -> a move that ends at a chosen step -> what a start makes of it.

use std::{cell::Cell, fs, path::PathBuf};

use super::*;
use crate::{create, state::FileRow};

struct Site {
    dir: tempfile::TempDir,
    metainfo: Metainfo,
    row: Download,
    goal: PathBuf,
    /// Another file system, where there is one.
    _far: Option<tempfile::TempDir>,
}

const FILES: [(&str, &str); 3] = [("t/a", "aaaaaaaaaa"), ("t/deep/b", "bb"), ("t/z", "zzz")];

impl Site {
    fn new(far: bool) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let save = dir.path().join("save");
        for (path, text) in FILES {
            let path = save.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let content = create::scan(&save.join("t")).unwrap();
        let metainfo =
            create::make(&content, &create::Options::default(), &|_| true).unwrap().metainfo;
        // `z` is not wanted and lies aside; `deep/b` has the suffix.
        let parts = save.join(parts_of(&metainfo.info_hash));
        fs::create_dir_all(&parts).unwrap();
        fs::rename(save.join("t/z"), parts.join("2")).unwrap();
        fs::rename(save.join("t/deep/b"), save.join("t/deep/b.part")).unwrap();
        let far = far.then(|| tempfile::tempdir_in("/dev/shm").unwrap());
        let goal = far.as_ref().map_or(dir.path(), |far| far.path()).join("goal");
        let file = |priority| FileRow { priority, foreign: false };
        let row = Download {
            root: root::establish(&save).unwrap().id,
            folder: save,
            suffix: ".part".into(),
            files: vec![file(4), file(4), file(0)],
            completed_at: Some(1),
            goal: Some(Goal { root: root::establish(&goal).unwrap().id, folder: goal.clone() }),
            ..Download::default()
        };
        Site { dir, metainfo, row, goal, _far: far }
    }

    /// Moves; of its steps, those before `last` are taken.
    fn run(&mut self, last: usize) -> Result<bool, String> {
        let (taken, said) = (Cell::new(0), Cell::new(Moving::No));
        let say = |step: Step| {
            taken.set(taken.get() + 1);
            if taken.get() > last {
                return Err(String::from("the end"));
            }
            said.set(step.moving);
            Ok(())
        };
        let work = Move {
            row: &self.row,
            metainfo: &self.metainfo,
            verified: &[0x80],
            others: &[],
            progress: &Progress::default(),
            say: &say,
        };
        let result = work.run();
        self.row.moving = said.get();
        result
    }

    /// Which of the files are where, as letters: at the source, at the goal.
    fn lies(&self) -> (String, String) {
        let parts = parts_of(&self.metainfo.info_hash);
        let at = |folder: &Path| {
            let mut found = String::new();
            for (path, text) in FILES {
                let aside = format!("{parts}/2");
                let names =
                    [path, &format!("{path}.part"), if path == "t/z" { &*aside } else { path }];
                if names.iter().any(|name| {
                    fs::read_to_string(folder.join(name)).is_ok_and(|found| found == text)
                }) {
                    found.push_str(&text[..1]);
                }
            }
            found
        };
        (at(&self.dir.path().join("save")), at(&self.goal))
    }
}

fn both(source: &str, goal: &str) -> (String, String) {
    (source.into(), goal.into())
}

#[test]
fn a_move_within_a_file_system_is_gone_on_with_from_any_file() {
    let mut site = Site::new(false);
    assert!(site.run(0).is_err());
    assert_eq!(site.lies(), both("abz", ""), "nothing before the row says so");
    assert_eq!(site.run(1), Ok(true));
    assert_eq!((site.lies(), site.row.moving), (both("", "abz"), Moving::Renaming));
    // As if it had ended after the first file.
    fs::create_dir_all(site.dir.path().join("save/t/deep")).unwrap();
    fs::rename(site.goal.join("t/deep/b"), site.dir.path().join("save/t/deep/b.part")).unwrap();
    let metainfo = site.metainfo.clone();
    assert_eq!(go_on(&mut site.row, &metainfo), Ok(true));
    assert_eq!((site.lies(), site.row.moving), (both("", "abz"), Moving::No));
    assert_eq!((&site.row.folder, &site.row.goal), (&site.goal, &None));
    assert!(!site.dir.path().join("save/t").exists());
    assert_eq!(go_on(&mut site.row, &metainfo), Ok(false));
}

#[test]
fn a_copy_counts_for_nothing_until_it_is_whole_and_the_source_goes_last() {
    let mut site = Site::new(true);
    assert!(site.run(0).is_err());
    assert_eq!(site.lies(), both("abz", ""));
    let hidden = |site: &Site| site.goal.join(places::PARTS).exists();
    assert!(!hidden(&site), "the copies are gone again");
    assert_eq!(site.run(1), Ok(true));
    assert_eq!((site.lies(), site.row.moving), (both("abz", "abz"), Moving::Placing));
    // As if it had ended before one of them was in its place.
    let parts = site.goal.join(parts_of(&site.metainfo.info_hash));
    fs::rename(site.goal.join("t/deep/b"), parts.join("copy-1")).unwrap();
    let metainfo = site.metainfo.clone();
    assert_eq!(go_on(&mut site.row, &metainfo), Ok(true));
    assert_eq!((site.lies(), site.row.moving), (both("abz", "abz"), Moving::Removing));
    assert_eq!(site.row.folder, site.goal);
    for _ in 0..2 {
        remove_source(&site.row, &metainfo).unwrap();
        assert_eq!(site.lies(), both("", "abz"));
    }
    settled(&mut site.row);
    assert_eq!((site.row.moving, &site.row.goal), (Moving::No, &None));
}

#[test]
fn a_copy_that_is_not_what_was_verified_is_not_taken() {
    let mut site = Site::new(true);
    fs::write(site.dir.path().join("save/t/a"), "aaaaaXaaaa").unwrap();
    let why = site.run(9).unwrap_err();
    assert!(why.contains("does not match"), "{why}");
    assert!(site.dir.path().join("save/t/a").exists());
    assert_eq!((site.lies().1, site.row.moving), (String::new(), Moving::No));
}

#[test]
fn what_was_there_before_stays_there() {
    for far in [false, true] {
        let mut site = Site::new(far);
        site.row.files[0].foreign = true;
        assert_eq!(site.run(9), Ok(true));
        let metainfo = site.metainfo.clone();
        if far {
            arrived(&mut site.row);
            remove_source(&site.row, &metainfo).unwrap();
        }
        assert_eq!(site.lies(), both("a", "abz"), "far: {far}");
    }
}

#[test]
fn a_goal_that_is_not_mounted_gets_nothing() {
    for far in [false, true] {
        let mut site = Site::new(far);
        fs::remove_file(site.goal.join(root::MARKER)).unwrap();
        let why = site.run(9).unwrap_err();
        assert!(why.contains("mounted"), "{why}");
        assert_eq!(site.lies(), both("abz", ""));
        assert_eq!(fs::read_dir(&site.goal).unwrap().count(), 0);
    }
}
