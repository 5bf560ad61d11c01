//! Getting what is missing: from requests to pieces that are verified, written and synced.
//!
//! Owns: each downloading torrent's part on this shard: its picker, the pieces under way here.
//! Never: messages (sessions), the choice among pieces (proto's picker), which torrents download
//! (control). Flow: a session has room -> `ask` -> blocks arrive in a piece's buffer (`partial`) ->
//! whole: hashed beside others (`whole`) -> written (`writer`) -> bits, `have` -> synced.
//!
//! Memory: what is being gathered, hashed and written holds at most half of the pool, and what is
//! whole and not written is bounded by itself ([`WRITE_BACK_MAX`]); where either is used up no
//! further piece is taken up, so a slow disk holds receiving back.

mod ask;
mod keep;
mod metadata;
mod next;
mod partial;
mod throttle;
mod whole;
mod writer;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use seedring_platform::op::Io;
use seedring_proto::{
    peer::session::Blocks,
    swarm::picker::Picker,
    units::{Block, PieceIndex},
};

pub use self::ask::Source;
use self::{
    keep::Keeper,
    partial::{Gathered, Partial},
    throttle::HeldBack,
    whole::Verifying,
    writer::Writer,
};
use crate::{
    connections::{Key, Stage},
    contract::{Event, MetadataSaid},
    mix::Hashed,
    shard::Shard,
    torrent::{Contents, Download, KeptPiece, Shared, TorrentId},
};

/// Part of the pool that downloads may hold (a half).
const POOL_PART: usize = 2;
/// Bytes of whole pieces that are not written yet: the lanes of one round of hashing with pieces of
/// a MiB, and as many on their way to the disk. More would only be memory that the caches of the
/// processor do not hold. (One piece may always be on its way, however large.)
const WRITE_BACK_MAX: usize = 32 << 20;
/// Writes in the kernel at once.
const WRITES_MAX: usize = 64;
/// Connections that found no memory, or nothing to ask for, are looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a shard downloads.
pub struct Downloads {
    torrents: HashMap<TorrentId, Fetch, Hashed>,
    /// Whole pieces on their way through hashing.
    verifying: Verifying,
    pub writer: Writer,
    /// Pieces in part, to disk and from there.
    keeper: Keeper,
    /// Bytes of the chunks that pieces under way hold or may come to hold.
    held_bytes: usize,
    /// Those of them that are whole: to be hashed and written.
    write_back_bytes: usize,
    /// Connections whose pipeline has room.
    asking: VecDeque<Key>,
    /// Those that a rate limit holds back.
    held_back: HeldBack,
    /// Found no memory to ask for more.
    starved: bool,
    /// Came in the receive that is being handled.
    metadata: Vec<(Key, MetadataSaid)>,
    look_at: Duration,
}

/// A torrent's part on this shard.
struct Fetch {
    shared: Arc<Shared>,
    contents: Arc<Contents>,
    download: Arc<Download>,
    picker: Picker,
    /// Claimed here and not whole; ordered, so that a seed gives the same run.
    partials: BTreeMap<PieceIndex, Partial>,
    /// Nothing that is wanted was missing when it was last looked.
    complete: bool,
    /// Left on disk by an earlier run, and just taken up.
    to_restore: Vec<KeptPiece>,
}

impl Default for Downloads {
    fn default() -> Self {
        Downloads {
            torrents: HashMap::default(),
            verifying: Verifying::new(),
            writer: Writer::new(WRITES_MAX),
            keeper: Keeper::default(),
            held_bytes: 0,
            write_back_bytes: 0,
            asking: VecDeque::new(),
            held_back: HeldBack::default(),
            starved: false,
            metadata: Vec::new(),
            look_at: Duration::ZERO,
        }
    }
}

impl Downloads {
    pub fn is_idle(&self) -> bool {
        self.torrents.is_empty()
            && self.verifying.is_empty()
            && self.writer.is_idle()
            && self.keeper.is_settled()
    }

    /// All that is on its way to the disk is there.
    pub fn is_settled(&self) -> bool {
        self.writer.is_settled() && self.keeper.is_settled()
    }

    /// Closes everything (the end).
    pub fn clear(&mut self) {
        self.writer.clear();
        self.keeper.clear();
    }

    /// Whether something that is wanted of a torrent is missing.
    pub fn wants_more(&self, id: TorrentId) -> bool {
        let fetch = self.torrents.get(&id);
        fetch.is_some_and(|fetch| !fetch.download.is_complete(&fetch.shared.pieces))
    }

    /// The same as of the last look, a second ago at most.
    pub fn is_trading(&self, id: TorrentId) -> bool {
        self.torrents.get(&id).is_some_and(|fetch| !fetch.complete)
    }

    pub fn is_known(&self, id: TorrentId) -> bool {
        self.torrents.contains_key(&id)
    }

    /// As much is whole and not written as may be.
    fn is_behind(&self) -> bool {
        self.write_back_bytes >= WRITE_BACK_MAX
    }

    /// A piece is whole.
    fn gathered(&mut self, id: TorrentId, partial: Partial, now: Duration) {
        self.write_back_bytes += Partial::buffer_bytes(partial.length());
        self.verifying.push(id, partial.into_whole(), now);
    }

    /// A whole piece has left: written, or thrown away.
    fn settled(&mut self, length: u32) {
        let bytes = Partial::buffer_bytes(length);
        self.held_bytes -= bytes;
        self.write_back_bytes -= bytes;
    }

    /// When the tick should come back, if something waits for time alone.
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.is_idle() {
            return None;
        }
        let deadlines = [
            Some(self.look_at),
            self.verifying.due_at(),
            self.writer.due_at(),
            self.keeper.due_at(),
            self.held_back.due_at(),
        ];
        deadlines.into_iter().flatten().min()
    }
}

/// Where a session's blocks go.
pub struct Sink<'a> {
    downloads: &'a mut Downloads,
    torrent: TorrentId,
    key: Key,
}

impl Downloads {
    pub fn sink(&mut self, torrent: TorrentId, key: Key) -> Sink<'_> {
        Sink { downloads: self, torrent, key }
    }
}

impl Blocks for Sink<'_> {
    fn data(&mut self, block: Block, at: u32, bytes: &[u8]) {
        if let Some(fetch) = self.downloads.torrents.get_mut(&self.torrent)
            && let Some(partial) = fetch.partials.get_mut(&block.piece)
        {
            partial.data(self.key, block, at, bytes);
        }
    }

    fn metadata(&mut self, piece: u32, total_bytes: u32, data: &[u8]) {
        self.keep_metadata(piece, total_bytes, data);
    }
}

impl<I: Io> Shard<I> {
    /// A torrent's download began, changed or ended, or a connection of it opened.
    pub(crate) fn follow_download(&mut self, id: TorrentId) {
        let Some(local) = self.torrents.get_mut(&id) else { return self.end_download(id) };
        let wanted = local.shared.download.load_full();
        let known = self.downloads.torrents.get(&id).map(|fetch| &fetch.download);
        match (wanted, known) {
            (None, None) => {}
            (Some(wanted), Some(known)) if Arc::ptr_eq(&wanted, known) => {}
            (None, Some(_)) => {
                // Complete, as control sees it, which may be sooner than this shard does.
                self.keys_here(id).into_iter().for_each(|key| self.enough(key));
                self.end_download(id);
            }
            (Some(download), _) => {
                self.end_download(id);
                let Some(local) = self.torrents.get_mut(&id) else { return };
                let Some(contents) = local.contents().cloned() else { return };
                let seed = self.options.seed ^ u64::from(id.0);
                let fetch = Fetch {
                    shared: local.shared.clone(),
                    contents,
                    download,
                    picker: Picker::new(seed),
                    partials: BTreeMap::new(),
                    complete: false,
                    to_restore: Vec::new(),
                };
                self.downloads.torrents.insert(id, fetch);
                self.keys_here(id).into_iter().for_each(|key| self.peer_pieces(key));
            }
        }
    }

    fn keys_here(&self, id: TorrentId) -> Vec<Key> {
        self.torrents.get(&id).map_or(Vec::new(), |local| local.peers.values().copied().collect())
    }

    /// Gives back what is claimed here. What is being written goes on to its end.
    pub(crate) fn end_download(&mut self, id: TorrentId) {
        if self.downloads.is_known(id) {
            self.keys_here(id).into_iter().for_each(|key| self.source_ended(key));
        }
        let Some(mut fetch) = self.downloads.torrents.remove(&id) else { return };
        let mut gathered = Vec::new();
        for (_, piece) in std::mem::take(&mut fetch.partials) {
            self.downloads.held_bytes -= Partial::buffer_bytes(piece.length());
            fetch.download.release(piece.piece(), self.options.shard);
            gathered.extend(keep::gathered(piece));
        }
        for whole in self.downloads.verifying.drop_torrent(id) {
            self.downloads.settled(whole.length);
            fetch.download.release(whole.piece, self.options.shard);
            gathered.push(Gathered::whole(&whole));
        }
        // Nothing of it is fetched twice.
        gathered.iter().for_each(|piece| self.keep_gathered(&fetch.part(), piece));
        self.downloads.keeper.ended(id);
    }

    /// One tick's part of all downloads. `true`: there is more to do at once.
    pub(crate) fn download_step(&mut self) -> bool {
        if self.downloads.is_idle() {
            return false;
        }
        let now = self.io.now();
        if now >= self.downloads.look_at {
            self.downloads.look_at = now + LOOK_EVERY;
            self.look_at_downloads(now);
        }
        let hashing = self.hash_whole(now);
        self.write_step(now);
        self.keep_step(now);
        self.ask_held(now);
        self.ask_all(now) || hashing
    }

    /// Once a second: who snubs us, what is late, what we still want of whom, what is complete.
    fn look_at_downloads(&mut self, now: Duration) {
        let mut ids: Vec<TorrentId> = self.downloads.torrents.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let Some(fetch) = self.downloads.torrents.get_mut(&id) else { continue };
            fetch.picker.refresh();
            let (download, shared) = (fetch.download.clone(), fetch.shared.clone());
            let complete = download.is_complete(&shared.pieces);
            if std::mem::replace(&mut fetch.complete, complete) != complete {
                self.rechoke_soon();
            }
            if !complete {
                self.give_up_stalled(id, now);
            }
            self.keep_slow(id, now);
            for key in self.keys_here(id) {
                if complete {
                    self.enough(key);
                } else {
                    self.look_at_peer(key, now);
                }
            }
            if complete && self.downloads.writer.is_synced(id) {
                self.tell(Event::Complete(id));
            }
        }
        self.downloads.starved = false;
    }

    /// Something was written or synced: whether that was the last of it, so that nobody waits for
    /// the next look.
    fn look_whether_complete(&mut self, id: TorrentId) {
        let Some(fetch) = self.downloads.torrents.get_mut(&id) else { return };
        if !fetch.partials.is_empty() || !fetch.download.is_complete(&fetch.shared.pieces) {
            return;
        }
        if !std::mem::replace(&mut fetch.complete, true) {
            self.rechoke_soon();
        }
        self.downloads.writer.look_soon();
        if self.downloads.writer.is_synced(id) {
            self.tell(Event::Complete(id));
        }
    }

    /// Nothing that is wanted is missing: this peer is not asked any more.
    fn enough(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Open(open) = &mut connection.stage else { return };
        if !open.session.downloads() {
            return;
        }
        let Some(local) = self.torrents.get(&open.torrent) else { return };
        let contents = local.contents.as_ref().expect("invariant: kept while a peer is here");
        let view = local.view(contents, key);
        let id = open.torrent;
        open.session.completed(&mut connection.out, &view);
        let useless = open.session.peer_wants_nothing();
        self.uncount_pieces(key);
        self.enqueue(key);
        if useless && self.torrents.get(&id).is_some_and(|local| local.shared.pieces.offers_all()) {
            self.close(key, seedring_platform::op::Shutdown::Orderly);
        }
    }
}
