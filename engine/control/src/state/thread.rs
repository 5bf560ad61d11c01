//! The one thread that writes to the database.
//!
//! Owns: the connection, the queue, the merging of records. Never: blocks its callers for the disk.
//! Flow: `save` queues; the thread gathers for a moment, writes one transaction, syncs; `flush`
//! waits.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rusqlite::{Connection, OptionalExtension, params};
use seedring_proto::units::InfoHash;

use super::{BATCH, Download, Error, Loaded, MadeTorrent, Record, downloads, encode, schema};

/// Messages that wait; a sender that finds it full waits for the disk.
const QUEUE_MAX: usize = 16_384;

/// Torrents remembered of one folder as it changes; the oldest go.
const MADE_MAX: i64 = 32;
/// A batch that could not be written (a full disk) is tried again after this time.
const RETRY: Duration = Duration::from_secs(5);

enum Message {
    Save(InfoHash, Box<Record>),
    Made(PathBuf, MadeTorrent),
    Download(InfoHash, Box<Download>),
    /// Totals, pieces and download of a torrent.
    Forget(InfoHash),
    Flush(SyncSender<Result<(), String>>),
    Stop,
}

/// Why the last batch could not be written; `None`: it was.
type Fault = Arc<Mutex<Option<String>>>;

/// The handle. Dropping it flushes and ends the thread.
pub struct Store {
    queue: SyncSender<Message>,
    thread: Option<JoinHandle<()>>,
    fault: Fault,
    /// Held for as long as the store is open: one process a state folder.
    _lock: std::fs::File,
}

impl Store {
    /// Opens (or makes) `state_dir` and its database, and reads everything.
    ///
    /// A database that is damaged, or that a newer version or another program wrote, is set aside
    /// under another name and a new one begun: totals start at zero, content is verified again;
    /// both are said in the log.
    pub fn open(state_dir: &Path) -> Result<(Store, Loaded), Error> {
        let folder = |source| Error::Folder { path: state_dir.to_owned(), source };
        std::fs::create_dir_all(state_dir.join("torrents")).map_err(folder)?;
        let lock = lock(state_dir)?;
        let path = state_dir.join("state.sqlite");
        let opened = open(&path);
        let useless = match &opened {
            Err(Error::Database { source, .. }) if is_damage(source) => Some("damaged"),
            Err(Error::Newer { .. }) => Some("newer"),
            Err(Error::Foreign(_)) => Some("foreign"),
            _ => None,
        };
        let (database, loaded) = match (opened, useless) {
            (Err(error), Some(why)) => {
                let aside = set_aside(&path, why).map_err(folder)?;
                tracing::error!(
                    "{error} ({why}); it was moved to {}, and a new one begun: content is verified \
                     again, totals start at zero",
                    aside.display()
                );
                open(&path)?
            }
            (opened, _) => opened?,
        };
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let fault = Fault::default();
        let writer = Writer { database, path, fault: fault.clone() };
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(&messages))
            .map_err(folder)?;
        Ok((Store { queue, thread: Some(thread), fault, _lock: lock }, loaded))
    }

    /// Why what changed is not on disk; it is tried again every few seconds.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps a torrent's record; on disk at the next flush or a moment later.
    pub fn save(&self, info_hash: InfoHash, record: Record) {
        self.send(Message::Save(info_hash, Box::new(record)));
    }

    /// Remembers which torrent was made from a folder.
    pub fn made(&self, path: PathBuf, made: MadeTorrent) {
        self.send(Message::Made(path, made));
    }

    /// Keeps what a download needs; on disk when a flush that was asked for later has returned.
    pub fn save_download(&self, info_hash: InfoHash, download: Download) {
        self.send(Message::Download(info_hash, Box::new(download)));
    }

    /// Removes all that is kept of a torrent; for good when a flush has returned.
    pub fn forget(&self, info_hash: InfoHash) {
        self.send(Message::Forget(info_hash));
    }

    /// Waits for the disk on another thread: what was saved before this call.
    pub fn flush_later(&self) -> Flush {
        let (answer, done) = sync_channel(1);
        self.send(Message::Flush(answer));
        Flush { done }
    }

    fn send(&self, message: Message) {
        // The thread ends only with this handle.
        let _ = self.queue.send(message);
    }

    /// Waits until everything saved so far is on disk. Blocking.
    pub fn flush(&self) -> Result<(), String> {
        self.flush_later().wait()
    }
}

/// A flush that was asked for.
pub struct Flush {
    done: Receiver<Result<(), String>>,
}

impl Flush {
    /// Blocking.
    pub fn wait(self) -> Result<(), String> {
        self.done.recv().map_err(|_| "the state store's thread has ended".to_owned())?
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state_dir: &Path) -> Result<std::fs::File, Error> {
    let folder = |source| Error::Folder { path: state_dir.to_owned(), source };
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(state_dir.join("lock"))
        .map_err(folder)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::InUse(state_dir.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(folder(source)),
    }
}

/// What no other try can read: broken pages, rows that are not ours, tables that are not there. A
/// disk that is full, locked or fails is something else.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::{
        Error,
        ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown},
    };
    match error.sqlite_error_code() {
        Some(code) => matches!(code, DatabaseCorrupt | NotADatabase | Unknown),
        None => matches!(
            error,
            Error::FromSqlConversionFailure(..)
                | Error::IntegralValueOutOfRange(..)
                | Error::InvalidColumnType(..)
                | Error::Utf8Error(..)
        ),
    }
}

/// Moves a database away, with what its log holds: whoever repairs it wants both. The log goes
/// first, since a new database must not find it.
fn set_aside(path: &Path, why: &str) -> std::io::Result<PathBuf> {
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    let aside = path.with_extension(format!("{why}-{seconds}"));
    let with = |path: &Path, tail: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(tail);
        PathBuf::from(name)
    };
    for tail in ["-wal", "-shm", ""] {
        match std::fs::rename(with(path, tail), with(&aside, tail)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

fn open(path: &Path) -> Result<(Connection, Loaded), Error> {
    let fail = |source| Error::Database { path: path.to_owned(), source };
    let mut database = Connection::open(path).map_err(fail)?;
    schema::inspect(&database, path)?;
    database.pragma_update(None, "journal_mode", "WAL").map_err(fail)?;
    database.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
    schema::migrate(&mut database, path)?;
    let loaded = load(&database).map_err(fail)?;
    Ok((database, loaded))
}

fn load(database: &Connection) -> rusqlite::Result<Loaded> {
    let mut loaded = Loaded::default();
    let columns = "info_hash, name, uploaded_bytes, verified, stamps, added_at, \
                   downloaded_bytes, paused, kept, recheck";
    let mut rows = database.prepare(&format!("SELECT {columns} FROM torrents"))?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let stamps = encode::parse_stamps(&row.get::<_, Vec<u8>>(4)?);
        let record = Record {
            name: row.get(1)?,
            uploaded_bytes: row.get::<_, i64>(2)? as u64,
            // Without stamps nothing says that the files are still those that were verified.
            verified: if stamps.is_some() { row.get(3)? } else { Vec::new() },
            stamps: stamps.unwrap_or_default(),
            added_at: row.get(5)?,
            downloaded_bytes: row.get::<_, i64>(6)? as u64,
            paused: row.get(7)?,
            kept: encode::parse_kept(&row.get::<_, Vec<u8>>(8)?),
            recheck: row.get(9)?,
        };
        loaded.torrents.insert(InfoHash(row.get(0)?), record);
    }
    loaded.downloads = downloads::load(database)?;
    let mut rows =
        database.prepare("SELECT path, manifest, info_hash, options FROM made ORDER BY made_at")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let path: Vec<u8> = row.get(0)?;
        let options: Vec<u8> = row.get(3)?;
        let made = MadeTorrent {
            manifest: row.get(1)?,
            info_hash: InfoHash(row.get(2)?),
            // Rows of the first schema have none: they equal no folder's options.
            options: options.try_into().unwrap_or_default(),
        };
        let path = PathBuf::from(OsStr::from_bytes(&path));
        loaded.made.entry(path).or_default().push(made);
    }
    let key: Option<i64> =
        database.query_row("SELECT tracker_key FROM identity", [], |row| row.get(0)).optional()?;
    loaded.tracker_key = match key {
        Some(key) => key as u32,
        None => {
            let key: u32 = rand::random();
            let insert = "INSERT INTO identity (one, tracker_key) VALUES (1, ?1)";
            database.execute(insert, [i64::from(key)])?;
            key
        }
    };
    Ok(loaded)
}

#[derive(Default)]
struct Batch {
    /// `None`: to be removed.
    records: HashMap<InfoHash, Option<Box<Record>>>,
    downloads: HashMap<InfoHash, Option<Box<Download>>>,
    made: Vec<(PathBuf, MadeTorrent)>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.downloads.is_empty() && self.made.is_empty()
    }
}

impl Batch {
    /// The newest word on a torrent counts.
    fn take(&mut self, change: Message) {
        match change {
            Message::Save(info_hash, record) => {
                self.records.insert(info_hash, Some(record));
            }
            Message::Made(path, made) => self.made.push((path, made)),
            Message::Download(info_hash, download) => {
                self.downloads.insert(info_hash, Some(download));
            }
            Message::Forget(info_hash) => {
                self.records.insert(info_hash, None);
                self.downloads.insert(info_hash, None);
            }
            Message::Flush(_) | Message::Stop => {}
        }
    }
}

struct Writer {
    database: Connection,
    path: PathBuf,
    fault: Fault,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        let mut batch = Batch::default();
        let mut stop = false;
        while !stop {
            let mut flushes = Vec::new();
            let first = match batch.is_empty() {
                true => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => messages.recv_timeout(RETRY),
            };
            let mut next = match first {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let until = Instant::now() + BATCH;
            while let Some(message) = next.take() {
                match message {
                    Message::Flush(answer) => {
                        flushes.push(answer);
                        break;
                    }
                    Message::Stop => {
                        stop = true;
                        break;
                    }
                    change => batch.take(change),
                }
                let left = until.saturating_duration_since(Instant::now());
                next = match messages.recv_timeout(left) {
                    Ok(message) => Some(message),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => {
                        stop = true;
                        None
                    }
                };
            }
            let result = self.write(&batch);
            // Otherwise kept and written with the next batch: a full disk loses nothing that was
            // there.
            if result.is_ok() {
                batch = Batch::default();
            }
            flushes.into_iter().for_each(|answer| {
                let _ = answer.send(result.clone());
            });
        }
    }

    /// Says in the log when it begins to fail and when it goes well again, not at each try.
    fn write(&mut self, batch: &Batch) -> Result<(), String> {
        if batch.is_empty() {
            return Ok(());
        }
        let path = self.path.display();
        let result = write(&mut self.database, batch).map_err(|e| format!("{path}: {e}"));
        let now = result.as_ref().err().cloned();
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = now.as_ref().filter(|why| fault.as_ref() != Some(*why)) {
            tracing::error!(
                "state not saved: {why}; seeding goes on, and it is tried again every {} s. \
                 Until then a crash loses what changed",
                RETRY.as_secs()
            );
        } else if now.is_none() && fault.is_some() {
            tracing::info!("state saved again: {path}");
        }
        *fault = now;
        result
    }
}

fn write(database: &mut Connection, batch: &Batch) -> rusqlite::Result<()> {
    let change = database.transaction()?;
    {
        let mut save = change.prepare_cached(
            "INSERT OR REPLACE INTO torrents
             (info_hash, name, uploaded_bytes, verified, stamps, added_at, downloaded_bytes, paused,
              kept, recheck)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        let mut forget = change.prepare_cached("DELETE FROM torrents WHERE info_hash = ?1")?;
        for (info_hash, record) in &batch.records {
            let Some(record) = record else {
                forget.execute([&info_hash.0[..]])?;
                continue;
            };
            save.execute(params![
                &info_hash.0[..],
                record.name,
                record.uploaded_bytes as i64,
                record.verified,
                encode::stamps(&record.stamps),
                record.added_at,
                record.downloaded_bytes as i64,
                record.paused,
                encode::kept(&record.kept),
                record.recheck,
            ])?;
        }
        downloads::write(&change, &batch.downloads)?;
        let mut made = change.prepare_cached(
            "INSERT OR REPLACE INTO made (path, manifest, info_hash, options, made_at)
             VALUES (?1, ?2, ?3, ?4, (SELECT coalesce(max(made_at), 0) + 1 FROM made))",
        )?;
        let mut prune = change.prepare_cached(
            "DELETE FROM made WHERE path = ?1 AND made_at NOT IN
             (SELECT made_at FROM made WHERE path = ?1 ORDER BY made_at DESC LIMIT ?2)",
        )?;
        for (path, torrent) in &batch.made {
            let path = path.as_os_str().as_bytes();
            let MadeTorrent { manifest, options, info_hash } = torrent;
            made.execute(params![path, &manifest[..], &info_hash.0[..], &options[..]])?;
            prune.execute(params![path, MADE_MAX])?;
        }
    }
    change.commit()
}
