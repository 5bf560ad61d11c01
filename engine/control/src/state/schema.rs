//! The database's tables and how older versions become newer ones.
//!
//! Owns: the schema. Never: rows. Flow: `open` -> `migrate`, once at start.

use std::path::Path;

use rusqlite::Connection;

use super::Error;

/// `PRAGMA user_version` of a database that is up to date.
pub const VERSION: i64 = 5;

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

/// Brings the schema up to date, or says why it can't be.
pub fn migrate(database: &mut Connection, path: &Path) -> Result<(), Error> {
    let fail = |source| Error::Database { path: path.to_owned(), source };
    let found: i64 =
        database.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
    if found > VERSION {
        return Err(Error::Newer { path: path.to_owned(), found, known: VERSION });
    }
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
