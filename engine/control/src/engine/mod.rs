//! The engine: start, the loop of the control plane, the end.
//!
//! Owns: every control-side part and the order in which they start and stop.
//! Never: data-plane work; blocking work goes to `spawn_blocking` and comes back as a `Note`.
//! Flow: configuration -> prepare -> admit -> shards; shard and tracker events -> state -> store,
//! status.

mod admit;
mod announce;
pub mod commands;
mod content;
pub(crate) mod download;
mod events;
mod look;
mod muffled;
mod once;
mod peers;
mod pending;
mod prepare;
mod reload;
mod shards;
mod signals;
mod start;
pub mod status;
mod stop;
pub mod torrents;
mod verify;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use seedring_proto::units::InfoHash;
use seedring_shard::{
    Globals,
    stats::Stats,
    torrent::{Contents, TorrentId},
};
use tokio::sync::{Notify, mpsc};

pub use self::start::run;
use self::{
    content::Looked,
    muffled::Muffled,
    peers::Peers,
    pending::Pending,
    prepare::{Known, Prepared, Progress},
    shards::Shards,
    signals::{Signal, Signals},
    torrents::Torrents,
};
use crate::{
    config::model::Config,
    plan::Wanted,
    state::Store,
    trackers::{
        self, Trackers,
        embedded::{Embedded, Leech},
    },
};

/// How often totals and verified pieces are handed to the store: within the 10 s that a crash may
/// cost (D4).
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// How often content that is away is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often unchoke slots follow the shards' interested peers.
const SHARE_SLOTS_EVERY: Duration = Duration::from_secs(10);
/// Progress of one preparation is told at most so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// What blocking work brings back.
pub(crate) enum Note {
    Prepared(Vec<Result<Prepared, (Wanted, prepare::Error)>>),
    Contents(TorrentId, Result<Arc<Contents>, String>),
    /// With how often each had been set aside when the look began.
    Looked(Vec<(u32, Looked)>),
    Progress(Progress),
    Loaded(Box<Result<(Config, Vec<Wanted>), String>>),
    /// A download of which all is there, looked at for its stamps.
    Finished(TorrentId, Result<Box<download::look::Found>, String>),
    /// A move wants to take its next step.
    MoveStep(TorrentId, download::moving::Step, std::sync::mpsc::SyncSender<Result<(), String>>),
    Moved(TorrentId, Result<download::mover::Moved, String>),
    /// The last step of a move that copied.
    SourceRemoved(TorrentId, Result<(), String>),
    /// Bytes free for a halted download.
    Room(TorrentId, Result<u64, String>),
    /// Or why not, and the bytes.
    MetadataKept(InfoHash, Result<(), (String, Vec<u8>)>),
    /// A command did what blocks.
    Command(Box<commands::Done>),
}

pub(crate) struct Engine {
    config: Config,
    globals: Arc<Globals>,
    shards: Shards,
    torrents: Torrents,
    known: Arc<Known>,
    store: Arc<Store>,
    trackers: Trackers,
    embedded: Option<Embedded>,
    leeches: mpsc::Receiver<Leech>,
    catalogue: Arc<status::Pages>,
    peers: Peers,
    pending: Pending,
    /// Content to look at, and when.
    looking: HashMap<TorrentId, Instant>,
    /// Torrents to verify again, and when.
    rehash: HashMap<TorrentId, Instant>,
    notes: (mpsc::UnboundedSender<Note>, mpsc::UnboundedReceiver<Note>),
    stats: Vec<Option<Stats>>,
    /// When each shard last said how it is.
    heard_at: Vec<Instant>,
    peer_requests: HashMap<TorrentId, Vec<status::PeerRequest>>,
    /// Torrents just added whose commands wait until others find them.
    unanswered: Vec<commands::Unanswered>,
    /// Folders being hashed, by name.
    made_progress: HashMap<String, Progress>,
    began: Instant,
    all_ready_after: Option<Duration>,
    /// Said since the start or the last reload.
    told_ready: bool,
    reloading: bool,
    reload_again: bool,
    saved_at: Instant,
    shared_slots_at: Instant,
    muffled: Muffled,
    /// Since when everything wanted is there (`Config::until_complete`).
    there_since: Option<Instant>,
    display: status::Display,
}

impl Engine {
    /// Starts as many preparations as may run.
    fn prepare_next(&mut self) {
        while let Some(batch) = self.pending.next_batch() {
            let (known, notes) = (self.known.clone(), self.notes.0.clone());
            tokio::task::spawn_blocking(move || {
                let (tell, told) = (notes.clone(), Mutex::new(None::<Instant>));
                let progress = move |progress| {
                    // Several threads hash one folder; whoever finds the lock taken has nothing
                    // new.
                    let Ok(mut told) = told.try_lock() else { return };
                    if told.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY) {
                        *told = Some(Instant::now());
                        let _ = tell.send(Note::Progress(progress));
                    }
                };
                let mut results = Vec::with_capacity(batch.len());
                for wanted in batch {
                    let again = wanted.clone();
                    let result = prepare::prepare(wanted, &known, &progress);
                    results.push(result.map_err(|error| (again, error)));
                }
                let _ = notes.send(Note::Prepared(results));
            });
        }
        self.tell_when_ready();
    }

    /// The loop. Ends at a signal, or when a shard has died.
    async fn turn(
        &mut self,
        signals: &mut Signals,
        notify: &Notify,
        heard: &mut mpsc::Receiver<trackers::Event>,
        requests: &mut mpsc::Receiver<status::Request>,
    ) -> anyhow::Result<()> {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Signal::Stop => return Ok(()),
                    Signal::Reload => self.reload(),
                },
                () = notify.notified() => self.shard_events().await,
                Some(note) = self.notes.1.recv() => self.note(note).await,
                Some(event) = heard.recv() => self.tracker_event(event),
                Some((hash, address)) = self.leeches.recv() => self.leech_announced(hash, address),
                Some(request) = requests.recv() => self.answer(request).await,
                _ = second.tick() => self.second().await?,
            }
            self.shards.flush();
            if self.config.until_complete && self.is_all_there()? {
                return Ok(());
            }
        }
    }

    async fn note(&mut self, note: Note) {
        match note {
            Note::Prepared(results) => {
                self.pending.batch_done();
                self.admit_all(results).await;
                self.prepare_next();
            }
            Note::Contents(id, result) => self.contents_loaded(id, result),
            Note::Looked(batch) => {
                for (set_aside, looked) in batch {
                    self.looked(set_aside, looked).await;
                }
            }
            Note::Progress(progress) => {
                self.made_progress.insert(progress.name.clone(), progress);
            }
            Note::Loaded(result) => self.loaded(*result).await,
            Note::Finished(id, found) => self.finished(id, found).await,
            Note::Room(id, room) => self.room(id, room),
            Note::MoveStep(id, step, answer) => self.move_step(id, step, answer),
            Note::Moved(id, moved) => self.moved(id, moved),
            Note::SourceRemoved(id, removed) => self.source_removed(id, removed),
            Note::MetadataKept(hash, written) => self.metadata_kept(hash, written),
            Note::Command(done) => self.command_done(*done).await,
        }
    }

    /// Once a second: look after what waits, save, report.
    async fn second(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.shards.any_ended(),
            "a shard has ended, which is a defect of seedring; its last words are in the log above"
        );
        self.muffled.second();
        self.look_again();
        self.verify_second();
        self.pending.retry(Instant::now());
        self.prepare_next();
        self.turn_over();
        self.dial();
        self.tell_contacts();
        self.answer_added();
        self.downloads_second().await;
        self.shards.send_all(|| seedring_shard::Command::Report);
        if self.saved_at.elapsed() >= SAVE_EVERY {
            self.save_changes();
        }
        if self.shared_slots_at.elapsed() >= SHARE_SLOTS_EVERY {
            self.share_slots();
        }
        self.show_display();
        Ok(())
    }

    /// Hands everything that changed to the store.
    fn save_changes(&mut self) {
        self.saved_at = Instant::now();
        let torrents = self.torrents.iter_mut();
        for (hash, record) in torrents.filter_map(|t| Some((t.info_hash(), t.record_if_changed()?)))
        {
            self.store.save(hash, record);
        }
    }

    fn id_of(&self, hash: &InfoHash) -> Option<TorrentId> {
        self.torrents.id_of(hash)
    }

    /// The shard that torrent-wide commands go to.
    fn home(&self, hash: &InfoHash) -> usize {
        seedring_shard::torrent::Shared::home(hash, self.shards.len())
    }

    /// Says once that everything wanted has been dealt with: after the start, and after a reload.
    fn tell_when_ready(&mut self) {
        let verifying =
            |t: &torrents::Torrent| matches!(t.state, torrents::State::Verifying { .. });
        if self.told_ready || !self.pending.is_idle() || self.torrents.iter().any(verifying) {
            return;
        }
        self.told_ready = true;
        let took = self.began.elapsed();
        let first = self.all_ready_after.is_none();
        self.all_ready_after.get_or_insert(took);
        self.announce_ready(first.then_some(took));
    }
}
