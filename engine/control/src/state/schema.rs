//! The database's tables and how older versions become newer ones.
//!
//! Owns: the schema, the mark that a database is ours. Never: rows.
//! Flow: `open` -> `inspect`, which writes nothing -> `migrate`, once at start.

use std::path::Path;

use rusqlite::Connection;

use super::Error;

/// `PRAGMA user_version` of a database that is up to date.
pub const VERSION: i64 = 5;

/// `PRAGMA application_id` of our databases: "sdrg" as ASCII. SQLite gives 0 to those of programs
/// that set none.
pub const APPLICATION_ID: i32 = i32::from_be_bytes(*b"sdrg");

/// The tables of every version, by which a database is known that was made before ours had an id.
const TABLES: i64 = 3;
const COUNT_TABLES: &str = "SELECT count(*) FROM sqlite_schema
    WHERE type = 'table' AND name IN ('torrents', 'made', 'identity')";

const FIRST: &str = "
CREATE TABLE torrents (
    info_hash BLOB PRIMARY KEY CHECK (length(info_hash) = 20),
    name TEXT NOT NULL,
    uploaded_bytes INTEGER NOT NULL CHECK (uploaded_bytes >= 0),
    verified BLOB NOT NULL,
    stamps BLOB NOT NULL,
    added_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE made (
    path BLOB NOT NULL,
    manifest BLOB NOT NULL,
    info_hash BLOB NOT NULL CHECK (length(info_hash) = 20),
    PRIMARY KEY (path, manifest)
) WITHOUT ROWID;
CREATE TABLE identity (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    tracker_key INTEGER NOT NULL
);
";

/// Which torrent a folder's options gave, and the order in which torrents were made.
const SECOND: &str = "
ALTER TABLE made ADD COLUMN options BLOB NOT NULL DEFAULT x'';
ALTER TABLE made ADD COLUMN made_at INTEGER NOT NULL DEFAULT 0;
";

/// What is downloaded, and what of any torrent goes with it.
const THIRD: &str = "
ALTER TABLE torrents ADD COLUMN downloaded_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE torrents ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
CREATE TABLE downloads (
    info_hash BLOB PRIMARY KEY CHECK (length(info_hash) = 20),
    folder BLOB NOT NULL,
    root TEXT NOT NULL,
    magnet TEXT,
    files BLOB NOT NULL,
    only TEXT NOT NULL,
    sequential INTEGER NOT NULL,
    labels TEXT NOT NULL,
    by_command INTEGER NOT NULL,
    added_at INTEGER NOT NULL,
    completed_at INTEGER
) WITHOUT ROWID;
";

/// Pieces in part, how files are made and named, where a download goes when it is complete.
const FOURTH: &str = "
ALTER TABLE torrents ADD COLUMN kept BLOB NOT NULL DEFAULT x'';
ALTER TABLE downloads ADD COLUMN allocation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE downloads ADD COLUMN suffix TEXT NOT NULL DEFAULT '';
ALTER TABLE downloads ADD COLUMN chosen BLOB;
ALTER TABLE downloads ADD COLUMN goal BLOB;
ALTER TABLE downloads ADD COLUMN goal_root TEXT NOT NULL DEFAULT '';
ALTER TABLE downloads ADD COLUMN moving INTEGER NOT NULL DEFAULT 0;
";

/// A recheck goes on after a restart.
const FIFTH: &str = "ALTER TABLE torrents ADD COLUMN recheck INTEGER NOT NULL DEFAULT 0;";

/// Says why a database can't be ours, or is of a version that is not known here; it stays as it is.
pub fn inspect(database: &Connection, path: &Path) -> Result<(), Error> {
    let fail = |source| Error::Database { path: path.to_owned(), source };
    let number = |sql| database.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(fail);
    let found = number("PRAGMA user_version")?;
    let is_ours = match number("PRAGMA application_id")? {
        id if id == i64::from(APPLICATION_ID) => true,
        0 if number("SELECT count(*) FROM sqlite_schema")? == 0 => true,
        0 => found > 0 && number(COUNT_TABLES)? == TABLES,
        _ => false,
    };
    if !is_ours {
        return Err(Error::Foreign(path.to_owned()));
    }
    if found > VERSION {
        return Err(Error::Newer { path: path.to_owned(), found, known: VERSION });
    }
    Ok(())
}

/// Brings the schema of a database that passed `inspect` up to date.
pub fn migrate(database: &mut Connection, path: &Path) -> Result<(), Error> {
    let fail = |source| Error::Database { path: path.to_owned(), source };
    let number = |database: &Connection, name| {
        database.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(fail)
    };
    // First of all: whatever interrupts the steps below, the database is known as ours.
    if number(database, "application_id")? != i64::from(APPLICATION_ID) {
        database.pragma_update(None, "application_id", APPLICATION_ID).map_err(fail)?;
    }
    let found = number(database, "user_version")?;
    // Each step is a transaction of its own: an interrupted one leaves the version before it.
    for (version, step) in [(1, FIRST), (2, SECOND), (3, THIRD), (4, FOURTH), (5, FIFTH)] {
        if found < version {
            let change = database.transaction().map_err(fail)?;
            change.execute_batch(step).map_err(fail)?;
            change.pragma_update(None, "user_version", version).map_err(fail)?;
            change.commit().map_err(fail)?;
        }
    }
    Ok(())
}
