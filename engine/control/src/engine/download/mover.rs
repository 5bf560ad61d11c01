//! Complete downloads on their way to where they belong, as the engine sees it.
//!
//! Owns: when a move begins and is tried again, its steps as rows, the exchange of contents for
//! shards. Never: touches files (`moving`, `copy`). Flow: every second: complete and not where it
//! belongs? -> a blocking move, whose steps come as notes and go on when their row is on disk ->
//! moved: shards read from the new place -> the source goes.
//!
//! It is seeded all the while: open files stay readable whatever they are called, and a copy counts
//! for nothing until all of it is in its place.

use std::{
    sync::{Arc, mpsc::SyncSender},
    time::{Duration, Instant},
};

use seedring_shard::{Command, torrent::TorrentId};

use super::{
    super::{Engine, Note, prepare::read_torrent, torrents::State},
    look::{self, Found, Trust},
    moving::{self, Move, Progress, Step},
};
use crate::{
    engine::{look::Condition, prepare::Place},
    state::{Download, Moving},
};

/// After a move that could not be made.
const AGAIN: Duration = Duration::from_secs(60);
/// Moves at the same time: more would only take each other's disk.
const MOVES_MAX: usize = 2;

/// What control keeps of a download's move.
#[derive(Default)]
pub struct Mover {
    under_way: Option<Arc<Progress>>,
    /// Its files have the names they should have, as far as was looked.
    pub settled: bool,
    pub problem: Option<String>,
    again: Option<Instant>,
}

/// What came of a move.
pub(crate) struct Moved {
    /// Something is at another place than before.
    changed: bool,
    found: Box<Found>,
}

impl Mover {
    pub fn progress(&self) -> Option<&Progress> {
        self.under_way.as_deref()
    }

    /// It is not wanted any more: a copy ends where it is.
    pub fn cancel(&self) {
        if let Some(progress) = &self.under_way {
            progress.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

/// Whether a complete download is somewhere else than it belongs.
pub fn is_due(row: &Download, mover: &Mover) -> bool {
    let unnamed = !row.suffix.is_empty() && !mover.settled;
    row.completed_at.is_some() && (row.moving != Moving::No || row.goal.is_some() || unnamed)
}

impl Engine {
    /// Once a second.
    pub(in crate::engine) fn moves_second(&mut self) {
        let now = Instant::now();
        let (mut due, mut running) = (Vec::new(), 0);
        for torrent in self.torrents.iter() {
            let Some(download) = &torrent.download else { continue };
            let mover = &download.mover;
            running += usize::from(mover.under_way.is_some());
            let free = mover.under_way.is_none() && mover.again.is_none_or(|at| at <= now);
            if free && torrent.state == State::Seeding && is_due(&download.row, mover) {
                due.push(torrent.shared.id);
            }
        }
        let room = MOVES_MAX.saturating_sub(running);
        due.into_iter().take(room).for_each(|id| self.begin_move(id));
    }

    fn begin_move(&mut self, id: TorrentId) {
        let others = self.torrents.iter().filter(|other| other.shared.id != id);
        let others: Vec<Place> = others.map(|other| other.place.clone()).collect();
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let (record, path) = (torrent.record(), torrent.place.torrent_file.clone());
        let Some(download) = &mut torrent.download else { return };
        let progress = Arc::new(Progress::default());
        download.mover.under_way = Some(progress.clone());
        let (row, notes, direct_io) =
            (download.row.clone(), self.notes.0.clone(), self.known.direct_io);
        if row.moving == Moving::Removing {
            tokio::task::spawn_blocking(move || {
                let removed = read_torrent(&path).map_err(|error| error.to_string());
                let removed = removed.and_then(|metainfo| moving::remove_source(&row, &metainfo));
                let _ = notes.send(Note::SourceRemoved(id, removed));
            });
            return;
        }
        tokio::task::spawn_blocking(move || {
            let say = |step: Step| {
                let (answer, told) = std::sync::mpsc::sync_channel(1);
                let _ = notes.send(Note::MoveStep(id, step, answer));
                told.recv().unwrap_or_else(|_| Err(String::from("the engine is stopping")))
            };
            let moved = read_torrent(&path).map_err(|error| error.to_string());
            let moved = moved.and_then(|metainfo| {
                let work = Move {
                    row: &row,
                    metainfo: &metainfo,
                    verified: &record.verified,
                    others: &others,
                    progress: &progress,
                    say: &say,
                };
                let changed = work.run()?;
                let mut after = row.clone();
                if changed {
                    moving::arrived(&mut after);
                }
                let found =
                    look::look(&after, &metainfo, Some(&record), direct_io, Trust::Finished);
                Ok(Moved { changed, found: Box::new(found) })
            });
            let _ = notes.send(Note::Moved(id, moved));
        });
    }

    /// A move wants to take its next step: not before the row says so on disk.
    pub(in crate::engine) fn move_step(
        &mut self,
        id: TorrentId,
        step: Step,
        answer: SyncSender<Result<(), String>>,
    ) {
        let Some(torrent) = self.torrents.get_mut(id) else {
            let _ = answer.send(Err(String::from("it was removed")));
            return;
        };
        let hash = torrent.info_hash();
        let Some(download) = &mut torrent.download else { return };
        if download.row.completed_at.is_none() {
            let _ = answer.send(Err(String::from("more of it is wanted")));
            return;
        }
        download.row.moving = step.moving;
        for (file, foreign) in download.row.files.iter_mut().zip(step.foreign) {
            file.foreign = foreign;
        }
        let row = download.row.clone();
        self.save_download(hash, &row);
        let flush = self.store.flush_later();
        tokio::task::spawn_blocking(move || {
            let _ = answer.send(flush.wait());
        });
    }

    pub(in crate::engine) fn moved(&mut self, id: TorrentId, moved: Result<Moved, String>) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let (hash, name) = (torrent.info_hash(), torrent.name.clone());
        let Some(download) = &mut torrent.download else { return };
        download.mover.under_way = None;
        let Moved { changed, found } = match moved {
            Ok(moved) => moved,
            Err(why) => {
                download.mover.again = Some(Instant::now() + AGAIN);
                if download.mover.problem.as_ref() != Some(&why) {
                    tracing::error!("{name}: {why}; it is seeded from where it is");
                    download.mover.problem = Some(why);
                }
                return;
            }
        };
        download.mover.problem = None;
        download.mover.settled = true;
        if !changed {
            return;
        }
        moving::arrived(&mut download.row);
        let row = download.row.clone();
        torrent.place.content = match torrent.place.content.file_name() {
            Some(name) => row.folder.join(name),
            None => row.folder.clone(),
        };
        torrent.touch();
        self.save_download(hash, &row);
        tracing::info!("{name}: moved to {}", row.folder.display());
        self.read_from_there(id, *found);
    }

    /// Shards open the files at their new place.
    fn read_from_there(&mut self, id: TorrentId, found: Found) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let seeding = torrent.state == State::Seeding;
        let complete = torrent.download.as_ref().is_some_and(|d| d.row.completed_at.is_some());
        let Condition::Present { .. } = found.condition else {
            if seeding {
                self.park(id, String::from("its files are looked for where they were moved to"));
            }
            return;
        };
        match torrent.state {
            State::Seeding if complete => {
                torrent.stamps = found.stamps;
                if torrent.shared.contents.load().is_some() {
                    torrent.shared.contents.store(found.contents);
                }
                self.catalogue.put(torrent);
                self.shards.send_all(|| Command::Look(id));
            }
            State::Paused => torrent.stamps = found.stamps,
            _ => {
                self.looking.insert(id, Instant::now());
            }
        }
    }

    pub(in crate::engine) fn source_removed(&mut self, id: TorrentId, removed: Result<(), String>) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let (hash, name) = (torrent.info_hash(), torrent.name.clone());
        let Some(download) = &mut torrent.download else { return };
        download.mover.under_way = None;
        match removed {
            Ok(()) => {
                moving::settled(&mut download.row);
                let row = download.row.clone();
                self.save_download(hash, &row);
            }
            Err(why) => {
                download.mover.again = Some(Instant::now() + AGAIN);
                if download.mover.problem.as_ref() != Some(&why) {
                    tracing::warn!("{name}: it was moved, and what is left there stays: {why}");
                    download.mover.problem = Some(why);
                }
            }
        }
    }
}
