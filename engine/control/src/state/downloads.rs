//! Downloads as rows.
//!
//! Owns: the table `downloads`. Never: when it is written. Flow: store thread writes, `load` reads.

use std::{collections::HashMap, ffi::OsStr, os::unix::ffi::OsStrExt, path::PathBuf};

use rusqlite::{Connection, Transaction, params, types::Type};
use seedring_platform::op::Allocation;
use seedring_proto::units::InfoHash;

use super::{Download, FileRow, Goal, Moving};

/// Of a file's byte: what of it is the priority, and what says that it was there before us.
const PRIORITY: u8 = 0x07;
const FOREIGN: u8 = 0x80;

pub fn load(database: &Connection) -> rusqlite::Result<HashMap<InfoHash, Download>> {
    let mut downloads = HashMap::new();
    let mut rows = database.prepare(
        "SELECT info_hash, folder, root, magnet, files, only, sequential, labels, by_command,
         added_at, completed_at, allocation, suffix, chosen, goal, goal_root, moving
         FROM downloads",
    )?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let (folder, files): (Vec<u8>, Vec<u8>) = (row.get(1)?, row.get(4)?);
        let download = Download {
            folder: path(&folder),
            root: row.get(2)?,
            magnet: row.get(3)?,
            files: files.into_iter().map(file_of).collect(),
            only: texts(5, &row.get::<_, String>(5)?)?,
            sequential: row.get(6)?,
            labels: texts(7, &row.get::<_, String>(7)?)?,
            by_command: row.get(8)?,
            added_at: row.get(9)?,
            completed_at: row.get(10)?,
            allocation: if row.get(11)? { Allocation::Full } else { Allocation::Sparse },
            suffix: row.get(12)?,
            chosen: row.get::<_, Option<Vec<u8>>>(13)?.map(|bytes| path(&bytes)),
            goal: match row.get::<_, Option<Vec<u8>>>(14)? {
                Some(folder) => Some(Goal { folder: path(&folder), root: row.get(15)? }),
                None => None,
            },
            moving: moving_of(row.get(16)?),
        };
        downloads.insert(InfoHash(row.get(0)?), download);
    }
    Ok(downloads)
}

/// `None`: to be removed.
pub fn write(
    change: &Transaction<'_>,
    downloads: &HashMap<InfoHash, Option<Box<Download>>>,
) -> rusqlite::Result<()> {
    let mut save = change.prepare_cached(
        "INSERT OR REPLACE INTO downloads
         (info_hash, folder, root, magnet, files, only, sequential, labels, by_command, added_at,
          completed_at, allocation, suffix, chosen, goal, goal_root, moving)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
    )?;
    let mut forget = change.prepare_cached("DELETE FROM downloads WHERE info_hash = ?1")?;
    for (info_hash, download) in downloads {
        let Some(download) = download else {
            forget.execute([&info_hash.0[..]])?;
            continue;
        };
        let files: Vec<u8> = download.files.iter().map(byte_of).collect();
        save.execute(params![
            &info_hash.0[..],
            download.folder.as_os_str().as_bytes(),
            download.root,
            download.magnet,
            files,
            serde_json::json!(download.only).to_string(),
            download.sequential,
            serde_json::json!(download.labels).to_string(),
            download.by_command,
            download.added_at,
            download.completed_at,
            download.allocation == Allocation::Full,
            download.suffix,
            download.chosen.as_ref().map(|folder| folder.as_os_str().as_bytes()),
            download.goal.as_ref().map(|goal| goal.folder.as_os_str().as_bytes()),
            download.goal.as_ref().map_or("", |goal| &*goal.root),
            number_of(download.moving),
        ])?;
    }
    Ok(())
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

fn number_of(moving: Moving) -> i64 {
    match moving {
        Moving::No => 0,
        Moving::Renaming => 1,
        Moving::Placing => 2,
        Moving::Removing => 3,
    }
}

fn moving_of(number: i64) -> Moving {
    match number {
        1 => Moving::Renaming,
        2 => Moving::Placing,
        3 => Moving::Removing,
        _ => Moving::No,
    }
}

fn byte_of(file: &FileRow) -> u8 {
    file.priority.min(PRIORITY) | if file.foreign { FOREIGN } else { 0 }
}

fn file_of(byte: u8) -> FileRow {
    FileRow { priority: byte & PRIORITY, foreign: byte & FOREIGN != 0 }
}

/// A list of texts as JSON.
fn texts(column: usize, json: &str) -> rusqlite::Result<Vec<String>> {
    serde_json::from_str(json).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
    })
}
