//! `add`: from bytes or a link to a torrent that a restart brings back.
//!
//! Owns: the order in which that becomes durable. Never: prepares it; that is the same as at start.
//! Flow: parsed, its folder made (blocking) -> its hash is taken -> .torrent and rows written and
//! synced (blocking) -> queued like any other -> acknowledged when other commands find it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use seedring_proto::{metainfo::Metainfo, units::InfoHash};

use super::{AddFrom, AddTorrent, Answer, Done, Reply, reply, wanted};
use crate::{
    config::model::{Storage, check_suffix},
    engine::{
        Engine, Note,
        download::{
            moving,
            prepare::{now_s, parse_magnet, torrent_file},
            select,
        },
        prepare::write_whole,
    },
    plan::{Origin, Wanted},
    state::{Download, Record},
};

/// Folders that are being hashed may be before it in the queue: whoever added it hears of it then,
/// though it can't be found yet.
const FOUND_WITHIN: Duration = Duration::from_secs(2);

/// A torrent that is on disk, and an `add` that waits for it to be there for other commands.
pub(crate) struct Unanswered {
    hash: InfoHash,
    name: String,
    until: Instant,
    answer: Answer,
}

/// A torrent that can be added.
pub(crate) struct Parsed {
    hash: InfoHash,
    name: String,
    /// Its .torrent file, byte by byte.
    torrent: Option<Vec<u8>>,
    raw_info: Option<Arc<[u8]>>,
    row: Download,
    paused: bool,
}

impl Engine {
    pub(super) fn add(&mut self, add: AddTorrent, answer: Answer) {
        let (notes, all) = (self.notes.0.clone(), self.config.downloads.clone());
        tokio::task::spawn_blocking(move || {
            let parsed = parse(add, &all);
            let _ = notes.send(Note::Command(Box::new(Done::Parsed(parsed, answer))));
        });
    }

    /// Takes the hash, so that a second one is refused, and has it written.
    pub(super) fn parsed(&mut self, parsed: Result<Box<Parsed>, String>, answer: Answer) {
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(why) => return reply::<()>(answer, Err(why)),
        };
        let Parsed { hash, name, torrent, raw_info, row, paused } = *parsed;
        if let Some(raw_info) = raw_info
            && self.waits_for_metadata(&hash)
        {
            self.metadata_arrived(hash, &raw_info);
            let notes = vec![String::from("its magnet was there already; the file says the rest")];
            return reply(answer, Ok(Reply { info_hash: hash.to_string(), name, notes }));
        }
        let there = self.torrents.id_of(&hash).is_some()
            || self.known.download_of(&hash).is_some_and(|row| row.by_command);
        if there {
            let why = format!("{name} ({hash}) is there already; see `seedring show {hash}`");
            return reply::<()>(answer, Err(why));
        }
        // Totals go on; what was verified of it was verified elsewhere.
        let before = self.known.record_of(&hash).unwrap_or_default();
        let record = Record {
            name: name.clone(),
            verified: Vec::new(),
            stamps: Vec::new(),
            added_at: row.added_at,
            paused,
            ..before
        };
        self.known.keep_download(hash, row.clone());
        self.known.keep(hash, record.clone());
        let (store, notes) = (self.store.clone(), self.notes.0.clone());
        let path = torrent_file(&self.known.state_dir, &hash);
        tokio::task::spawn_blocking(move || {
            let written = torrent.map_or(Ok(()), |bytes| write_whole(&path, &bytes));
            let written = written.map_err(|error| format!("{}: {error}", path.display()));
            let kept = written.and_then(|()| {
                store.save(hash, record);
                store.save_download(hash, row);
                store.flush()
            });
            let done = Done::Added(hash, name, kept, answer);
            let _ = notes.send(Note::Command(Box::new(done)));
        });
    }

    pub(super) fn added(
        &mut self,
        hash: InfoHash,
        name: String,
        kept: Result<(), String>,
        answer: Answer,
    ) {
        if let Err(why) = kept {
            // Not acknowledged: it must not come up at a later start either.
            self.known.forget(&hash);
            self.store.forget(hash);
            self.forgotten(&hash);
            return reply::<()>(answer, Err(format!("not added: it can't be saved: {why}")));
        }
        tracing::info!("{name} ({hash}): added");
        self.pending.push(wanted(hash, name.clone()));
        self.prepare_next();
        self.unanswered.push(Unanswered {
            hash,
            name,
            until: Instant::now() + FOUND_WITHIN,
            answer,
        });
    }

    /// Replies to each `add` whose torrent is in the registry, or can't come there soon.
    pub(in crate::engine) fn answer_added(&mut self) {
        let now = Instant::now();
        let (torrents, pending) = (&self.torrents, &self.pending);
        let why = |hash: &InfoHash| {
            let same = |wanted: &Wanted| match &wanted.origin {
                Origin::Added { info_hash, .. } => info_hash == hash,
                _ => false,
            };
            let failed = pending.failures().find(|(wanted, _)| same(wanted));
            failed.map(|(_, why)| format!("{why}; it is tried again every few seconds"))
        };
        let settled = |it: &mut Unanswered| {
            torrents.id_of(&it.hash).is_some() || why(&it.hash).is_some() || it.until <= now
        };
        for Unanswered { hash, name, answer, .. } in self.unanswered.extract_if(.., settled) {
            let notes = why(&hash).into_iter().collect();
            reply(answer, Ok(Reply { info_hash: hash.to_string(), name, notes }));
        }
    }
}

fn parse(add: AddTorrent, all: &Storage) -> Result<Box<Parsed>, String> {
    let AddTorrent { from, folder, paused, sequential, only, labels, storage } = add;
    let storage = storage.over(all);
    check_suffix(&storage.incomplete_suffix)?;
    let others = [&storage.incomplete_folder, &storage.move_completed_to];
    let relative = others.into_iter().flatten().chain([&folder]).find(|path| !path.is_absolute());
    if let Some(path) = relative {
        return Err(format!("{}: the folder must be absolute", path.display()));
    }
    only.iter().try_for_each(|text| select::pattern(text).map(drop))?;
    let (hash, name, torrent, raw_info, magnet) = match from {
        AddFrom::Torrent(bytes) => {
            let metainfo = Metainfo::parse(&bytes).map_err(|error| error.to_string())?;
            select::choose(&metainfo, &only, None)?;
            let (hash, name) = (metainfo.info_hash, metainfo.info.name.clone());
            (hash, name, Some(bytes), Some(metainfo.raw_info), None)
        }
        AddFrom::Magnet(link) => {
            let magnet = parse_magnet(&link).map_err(|error| error.to_string())?;
            let hash = magnet.info_hash;
            let name = magnet.name.unwrap_or_else(|| hash.to_string());
            (hash, name, None, None, Some(link))
        }
    };
    let mut row = Download {
        magnet,
        files: Vec::new(),
        only,
        sequential,
        labels,
        by_command: true,
        added_at: now_s(),
        ..Download::default()
    };
    moving::choose(&mut row, &folder, &storage);
    moving::establish(&mut row)?;
    Ok(Box::new(Parsed { hash, name, torrent, raw_info, row, paused }))
}
