//! Content that goes, comes back or changes.
//!
//! Owns: parking, looking again, taking content up anew; loading what shards need to serve.
//! Never: clears what is known of content that is merely away (D5), hashes.
//! Flow: trouble -> park -> looked at every few seconds -> taken up under a new number -> begin.
//!
//! A torrent whose content was away or changed gets a new number and a new piece map. Whatever
//! shards still hold of the old one (descriptors, chunks, half-done hashes) can then not set a bit
//! for files that are others by now. Parked, it holds no descriptor, so that a file system can be
//! unmounted.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use seedring_shard::{
    Command,
    torrent::{Contents, Download as Transfer, Phase, Shared, TorrentId},
};

use super::{
    Engine, LOOK_EVERY, Note,
    admit::set_verified,
    download::look::{self as download, Found, Trust},
    look::{Condition, NO_STAMP, contents_of, look, still_verified},
    peers::FIRST_BACKOFF,
    prepare::{Place, read_torrent},
    torrents::{Recheck, State},
};
use crate::state::{Download, Record};

/// Torrents looked at in one go, and such goes a second: ten thousand are through in five seconds.
const LOOK_BATCH: usize = 256;
const LOOK_BATCHES: usize = 8;
/// A look that is under way is not repeated before this time.
const LOOK_TAKES_MAX: Duration = Duration::from_secs(600);
/// Doublings of `LOOK_EVERY` for files that are there and can't be read: at most 320 s.
const TROUBLES_MAX: u32 = 6;

/// What a look found.
pub(crate) struct Looked {
    id: TorrentId,
    condition: Condition,
    /// Pieces whose files are still those that were hashed.
    verified: Vec<u8>,
    contents: Option<Arc<Contents>>,
    /// Of a download: what is missing, and what to hash first.
    transfer: Option<Arc<Transfer>>,
    to_verify: Vec<(u32, u32)>,
    /// Pieces that were had when it was looked are not there.
    lost: bool,
}

impl Looked {
    fn new(id: TorrentId, condition: Condition) -> Looked {
        Looked {
            id,
            condition,
            verified: Vec::new(),
            contents: None,
            transfer: None,
            to_verify: Vec::new(),
            lost: false,
        }
    }
}

/// What a look needs to know.
struct ToLook {
    id: TorrentId,
    place: Place,
    known: Record,
    direct_io: bool,
    download: Option<(Download, Trust)>,
    set_aside: u32,
}

impl Engine {
    /// Content is in trouble: the torrent leaves the shards, nothing is announced as lost, and it
    /// is looked at until it is well.
    pub(super) fn park(&mut self, id: TorrentId, why: String) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let line = format!("{}: {why}; it is looked for every few seconds", torrent.name);
        let first = torrent.troubles <= 1 && !matches!(torrent.state, State::Waiting(_));
        let doublings = torrent.troubles.saturating_sub(1).min(TROUBLES_MAX);
        torrent.state = State::Waiting(why);
        torrent.awaits_contents = false;
        torrent.verifying = Default::default();
        torrent.shared.set_phase(Phase::Parked);
        torrent.shared.contents.store(None);
        torrent.touch();
        self.looking.insert(id, Instant::now() + LOOK_EVERY * 2u32.pow(doublings));
        self.shards.send_all(|| Command::Remove(id));
        if first {
            self.muffled.warn(&line);
        }
    }

    /// Looks at content that is away or in doubt, beside the loop.
    pub(super) fn look_again(&mut self) {
        let now = Instant::now();
        let due = self.looking.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id);
        let due: Vec<TorrentId> = due.take(LOOK_BATCH * LOOK_BATCHES).collect();
        let mut batch = Vec::new();
        for id in due {
            self.looking.insert(id, now + LOOK_TAKES_MAX);
            let Some(torrent) = self.torrents.get(id) else {
                self.looking.remove(&id);
                continue;
            };
            let known = Record {
                verified: torrent.verified(),
                stamps: torrent.stamps.to_vec(),
                kept: torrent.kept(),
                recheck: torrent.recheck != Recheck::No,
                ..Record::default()
            };
            let direct_io = self.known.direct_io;
            let trust = match torrent.recheck {
                Recheck::Asked => Trust::Again,
                Recheck::No | Recheck::Begun => Trust::Known,
            };
            let download = torrent.download.as_ref().map(|it| (it.row.clone(), trust));
            let place = torrent.place.clone();
            let set_aside = torrent.set_aside;
            batch.push(ToLook { id, place, known, direct_io, download, set_aside });
            if batch.len() == LOOK_BATCH {
                self.look_at(std::mem::take(&mut batch));
            }
        }
        self.look_at(batch);
    }

    fn look_at(&self, batch: Vec<ToLook>) {
        if batch.is_empty() {
            return;
        }
        let notes = self.notes.0.clone();
        tokio::task::spawn_blocking(move || {
            let looked = |it: &ToLook| (it.set_aside, it.look());
            let _ = notes.send(Note::Looked(batch.iter().map(looked).collect()));
        });
    }

    /// Content was looked at: still away, as it was, or back.
    pub(super) async fn looked(&mut self, set_aside: u32, looked: Looked) {
        let Looked { id, condition, verified, contents, transfer, to_verify, lost } = looked;
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        if torrent.set_aside != set_aside {
            return; // by what is asked of it since, it is looked at again
        }
        if matches!(torrent.state, State::Verifying { .. } | State::Paused | State::Metadata) {
            self.looking.remove(&id);
            return;
        }
        let waiting = matches!(torrent.state, State::Waiting(_));
        let stamps = match condition {
            Condition::Present { stamps, .. } => stamps,
            Condition::Unknown => return,
            Condition::Missing(why) | Condition::Differs(why) => {
                torrent.troubles = 0;
                if waiting {
                    torrent.state = State::Waiting(why);
                    self.looking.insert(id, Instant::now() + LOOK_EVERY);
                    return;
                }
                return self.park(id, why);
            }
        };
        if lost && !waiting {
            // Only what nobody writes to can be looked at well.
            return self.park(id, String::from("files that were downloaded are gone"));
        }
        let same = torrent.stamps == stamps;
        if same && waiting && torrent.hopeless {
            self.looking.insert(id, Instant::now() + LOOK_EVERY);
            return;
        }
        self.looking.remove(&id);
        if same && !waiting {
            return;
        }
        let what = if waiting { "content is there" } else { "content changed" };
        if torrent.troubles <= 1 {
            let line = format!("{}: {what}", torrent.name);
            self.muffled.info(&line);
        }
        let Some(torrent) = self.torrents.remove(id) else { return };
        torrent.shared.set_phase(Phase::Removed);
        self.shards.send_all(|| Command::Remove(id));
        let new_id = self.torrents.next_id();
        let old = &torrent.shared;
        let shared =
            Shared::new(new_id, old.info_hash, old.pieces.piece_count()).over(self.shards.len());
        shared.uploaded_bytes.store(torrent.uploaded_bytes(), Ordering::Relaxed);
        shared.downloaded_bytes.store(torrent.downloaded_bytes(), Ordering::Relaxed);
        shared.download.store(transfer);
        set_verified(&shared, &verified);
        shared.contents.store(contents);
        let shared = Arc::new(shared);
        let mut torrent = torrent;
        torrent.taken_up(shared.clone(), stamps, verified);
        if let Some(download) = &mut torrent.download {
            download.taken_up(to_verify);
        }
        let again = (self.shards.now(), FIRST_BACKOFF);
        self.peers.renumber(id, new_id, torrent.private, again);
        self.torrents.insert(torrent);
        self.apply_limits(new_id);
        self.shards.send_all(|| Command::Add(vec![shared.clone()]));
        self.begin(new_id).await;
        self.tell_when_ready();
    }

    /// A file changed while it was served: its stamp vouches for nothing any more.
    pub(super) fn doubt(&mut self, id: TorrentId, path: &std::path::Path) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        let contents = torrent.shared.contents.load_full();
        let file = contents.and_then(|contents| {
            let files = 0..contents.layout.files.len();
            let index = |n: &usize| seedring_proto::units::FileIndex(*n as u32);
            files.into_iter().find(|n| contents.path(index(n)) == path)
        });
        match file.and_then(|file| torrent.stamps.get_mut(file)) {
            Some(stamp) => *stamp = Some(NO_STAMP),
            // Which one it was can't be told any more.
            None => torrent.stamps.fill(Some(NO_STAMP)),
        }
        torrent.hopeless = false;
        torrent.touch();
    }

    /// Nobody serves it any more: files that changed meanwhile are taken as they are now.
    pub(super) fn went_idle(&mut self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        // A download keeps its folder open until all of it is there.
        if matches!(torrent.state, State::Verifying { .. }) || torrent.is_downloading() {
            return;
        }
        // Other shards keep what they hold; whoever needs it again asks.
        torrent.shared.contents.store(None);
        if torrent.stamps.contains(&Some(NO_STAMP))
            && torrent.shared.connections.load(Ordering::Relaxed) == 0
        {
            self.looking.insert(id, Instant::now());
        }
    }

    /// Reads a torrent's layout and hashes for the shards, beside the loop.
    pub(super) fn load_contents(&self, id: TorrentId) {
        let Some(torrent) = self.torrents.get(id) else { return };
        let (place, stamps) = (torrent.place.clone(), torrent.stamps.clone());
        let (notes, direct_io) = (self.notes.0.clone(), self.known.direct_io);
        let row = torrent.download.as_ref().map(|download| download.row.clone());
        tokio::task::spawn_blocking(move || {
            let loaded = read_torrent(&place.torrent_file).map_err(|e| e.to_string());
            let contents = loaded.and_then(|metainfo| {
                if let Some(row) = row {
                    return download::contents_of(&row, &metainfo, stamps, direct_io);
                }
                let base = std::fs::canonicalize(&place.content)
                    .map_err(|error| format!("{}: {error}", place.content.display()))?;
                let condition = Condition::Present { base, stamps };
                contents_of(&metainfo, &place, &condition, direct_io)
                    .ok_or_else(|| "no content".to_owned())
            });
            let _ = notes.send(Note::Contents(id, contents.map(Arc::new)));
        });
    }

    pub(super) fn contents_loaded(&mut self, id: TorrentId, result: Result<Arc<Contents>, String>) {
        let Some(torrent) = self.torrents.get_mut(id) else { return };
        if matches!(torrent.state, State::Waiting(_) | State::Paused) {
            return; // parked meanwhile
        }
        match result {
            Ok(contents) => {
                torrent.shared.contents.store(Some(contents));
                let verify = std::mem::take(&mut torrent.awaits_contents);
                self.shards.send_all(|| Command::Look(id));
                if verify {
                    self.send_verify(id);
                }
            }
            Err(why) => self.park(id, why),
        }
    }
}

impl ToLook {
    fn look(&self) -> Looked {
        let (id, place) = (self.id, &self.place);
        let missing = |why: String| Looked::new(id, Condition::Missing(why));
        if let Some((row, trust)) = &self.download {
            return match read_torrent(&place.torrent_file) {
                Ok(metainfo) => {
                    let known = Some(&self.known);
                    let found = download::look(row, &metainfo, known, self.direct_io, *trust);
                    self.found(found)
                }
                Err(error) => missing(error.to_string()),
            };
        }
        // The common case, without reading the torrent: a file system that is away.
        if let Err(error) = std::fs::metadata(&place.content) {
            return missing(format!("{}: {error}", place.content.display()));
        }
        let metainfo = match read_torrent(&place.torrent_file) {
            Ok(metainfo) => metainfo,
            Err(error) => return missing(error.to_string()),
        };
        let layout = &metainfo.info.layout;
        let condition = look(layout, place);
        let verified = match &condition {
            Condition::Present { stamps, .. } => still_verified(layout, &self.known, stamps),
            _ => Vec::new(),
        };
        let contents = contents_of(&metainfo, place, &condition, self.direct_io).map(Arc::new);
        Looked { verified, contents, ..Looked::new(id, condition) }
    }

    fn found(&self, found: Found) -> Looked {
        let Found { condition, verified, contents, transfer, to_verify, .. } = found;
        let lost = transfer.is_some() && verified != self.known.verified;
        Looked { verified, contents, transfer, to_verify, lost, ..Looked::new(self.id, condition) }
    }
}
