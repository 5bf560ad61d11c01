//! The engine: start, the loop of the control plane, the end.
//!
//! Owns: every control-side part and the order in which they start and stop.
//! Never: data-plane work; blocking work goes to `spawn_blocking` and comes back as a `Note`.
//! Flow: configuration -> prepare -> admit -> shards; shard and tracker events -> state -> store, status.

mod admit;
mod events;
mod peers;
mod prepare;
mod reload;
mod shards;
mod start;
pub mod status;
mod stop;
pub mod torrents;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use seedring_proto::units::InfoHash;
use seedring_shard::{Globals, stats::Stats, torrent::TorrentId};
use tokio::sync::{Notify, mpsc};

pub use self::start::run;
use self::{
    peers::PeerBooks,
    prepare::{Condition, Known, Prepared},
    shards::Shards,
    torrents::Torrents,
};
use crate::{
    config::model::Config,
    plan::Wanted,
    state::Store,
    trackers::{self, Trackers, embedded::Embedded},
};

/// How often totals and verified pieces are handed to the store: within the 10 s that a crash may
/// cost (D4).
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// How often content that is away is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Preparations at once: one a core is enough to hash folders, and .torrent files are parsed in
/// batches.
const PREPARING_MAX: usize = 2;
const PREPARE_BATCH: usize = 64;

/// What blocking work brings back.
pub(crate) enum Note {
    Prepared(Vec<Result<Prepared, (Wanted, prepare::Error)>>),
    Contents(TorrentId, Result<Arc<seedring_shard::torrent::Contents>, String>),
    Looked(TorrentId, Condition, Vec<u8>),
    Progress(prepare::Progress),
}

pub(crate) struct Engine {
    config: Config,
    globals: Arc<Globals>,
    shards: Shards,
    torrents: Torrents,
    known: Arc<Known>,
    store: Store,
    trackers: Trackers,
    embedded: Option<Embedded>,
    catalogue: Arc<status::Pages>,
    peers: PeerBooks,
    /// Wanted torrents that are not prepared yet.
    queue: VecDeque<Wanted>,
    preparing: usize,
    /// Wanted torrents that could not be prepared: why, and when to try again.
    failed: Vec<(Wanted, String, Instant)>,
    looking: HashMap<TorrentId, Instant>,
    notes: (mpsc::UnboundedSender<Note>, mpsc::UnboundedReceiver<Note>),
    stats: Vec<Option<Stats>>,
    peer_requests: HashMap<TorrentId, Vec<status::PeerRequest>>,
    made_progress: Option<prepare::Progress>,
    began: Instant,
    all_ready_after: Option<Duration>,
    saved_at: Instant,
    display: status::Display,
}

impl Engine {
    /// Starts as many preparations as may run.
    fn prepare_next(&mut self) {
        while self.preparing < PREPARING_MAX && !self.queue.is_empty() {
            let count = PREPARE_BATCH.min(self.queue.len());
            let batch: Vec<Wanted> = self.queue.drain(..count).collect();
            let (known, notes) = (self.known.clone(), self.notes.0.clone());
            self.preparing += 1;
            tokio::task::spawn_blocking(move || {
                let tell = notes.clone();
                let progress = move |progress| {
                    let _ = tell.send(Note::Progress(progress));
                };
                let results = batch.into_iter().map(|wanted| {
                    let again = wanted.clone();
                    prepare::prepare(wanted, &known, &progress).map_err(|error| (again, error))
                });
                let results: Vec<_> = results.collect();
                let _ = notes.send(Note::Prepared(results));
            });
        }
        self.tell_when_ready();
    }

    /// The loop. Ends at a signal, or when a shard has died.
    async fn turn(
        &mut self,
        notify: &Notify,
        heard: &mut mpsc::Receiver<trackers::Event>,
        requests: &mut mpsc::Receiver<status::Request>,
    ) -> anyhow::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = hangup.recv() => self.reload().await,
                () = notify.notified() => self.shard_events().await,
                Some(note) = self.notes.1.recv() => self.note(note).await,
                Some(event) = heard.recv() => self.tracker_event(event),
                Some(request) = requests.recv() => self.answer(request).await,
                _ = second.tick() => self.second().await?,
            }
            self.shards.flush();
        }
    }

    async fn note(&mut self, note: Note) {
        match note {
            Note::Prepared(results) => {
                self.preparing -= 1;
                self.admit_all(results).await;
                self.prepare_next();
            }
            Note::Contents(id, result) => self.contents_loaded(id, result),
            Note::Looked(id, condition, verified) => self.looked(id, condition, &verified).await,
            Note::Progress(progress) => self.made_progress = Some(progress),
        }
    }

    /// Once a second: look after what waits, save, report.
    async fn second(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.shards.any_ended(), "a shard has ended; see the log above");
        self.look_again();
        self.try_failed_again();
        self.dial_again();
        self.shards.send_all(|| seedring_shard::Command::Report);
        if self.saved_at.elapsed() >= SAVE_EVERY {
            self.save_changes();
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
}
