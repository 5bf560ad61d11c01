//! Control's part in downloads of a simulated swarm.
//!
//! Owns: torrents that are downloaded, what shards say of them, what must hold of them at any
//! moment. Never: which block is asked of whom. Flow: `add_download` -> events of shards -> bits,
//! commands -> complete: contents without writing, `Shared::download` taken away.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use seedring_platform::op::Allocation;
use seedring_proto::units::PieceIndex;
use seedring_shard::{
    Command, DialOutcome,
    torrent::{Download, KeptPiece, Places, Shared, TorrentId},
};

use super::{World, disk::DirectoryId, swarm::Swarm, torrent::SimTorrent};

/// A halted download goes on after this time, and who could not be dialled is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// The folder for parts, in a torrent's own.
const PARTS: &str = ".parts";

/// A torrent that is downloaded.
pub struct Loading {
    pub torrent: Rc<SimTorrent>,
    pub shared: Arc<Shared>,
    pub download: Arc<Download>,
    pub complete_at: Option<Duration>,
}

/// What control knows of downloads.
#[derive(Default)]
pub struct Loadings {
    pub all: Vec<Loading>,
    pub poisoned: Vec<IpAddr>,
    pub write_failures: u32,
    /// What the store has of pieces in part, of all downloads together.
    pub kept: Rc<RefCell<Vec<KeptPiece>>>,
    resume_at: Vec<(Duration, TorrentId)>,
    dial_at: Vec<(Duration, usize, TorrentId, SocketAddr)>,
}

impl Swarm {
    /// Tells every shard of a torrent of which nothing is there.
    pub fn add_download(
        &mut self,
        torrent: SimTorrent,
        prepare: impl FnOnce(&Download),
    ) -> Rc<SimTorrent> {
        let download = Download::new(torrent.layout.piece_count());
        prepare(&download);
        self.go_on_with(torrent, download)
    }

    /// Tells every shard of a torrent of which some may be there: what is synced, and what is left
    /// of pieces in part.
    pub fn go_on_with(&mut self, torrent: SimTorrent, download: Download) -> Rc<SimTorrent> {
        let shared = torrent.shared(self.shards());
        let download = Arc::new(download);
        for piece in (0..torrent.layout.piece_count()).map(PieceIndex) {
            if download.is_synced(piece) {
                shared.pieces.set_verified(piece, true);
                shared.pieces.set_offered(piece, true);
            }
        }
        shared.contents.store(Some(torrent.contents_to_write(&self.world, self.root)));
        shared.download.store(Some(download.clone()));
        let torrent = Rc::new(torrent);
        self.torrents.push((torrent.clone(), shared.clone()));
        self.tell_all(|| Command::Add(vec![shared.clone()]));
        self.tell_all(|| Command::Look(torrent.id));
        let (known, complete_at) = (torrent.clone(), None);
        self.loadings.all.push(Loading { torrent: known, shared, download, complete_at });
        torrent
    }

    /// Whether every download is complete, and control has put it away.
    pub fn is_loaded(&self) -> bool {
        self.loadings.all.iter().all(|loading| loading.complete_at.is_some())
    }

    /// Pieces that are had and not on the virtual disk as it reads now.
    pub fn had_and_not_there(&self) -> Vec<String> {
        let had = |l: &Loading, piece| l.shared.pieces.is_verified(piece);
        self.missing_on(&self.world, had)
    }

    /// Pieces that the store would keep as safe and that are not on this world's disk.
    pub fn safe_and_not_there(&self, world: &World) -> Vec<String> {
        self.missing_on(world, |loading, piece| loading.download.is_synced(piece))
    }

    fn missing_on(
        &self,
        world: &World,
        claimed: impl Fn(&Loading, PieceIndex) -> bool,
    ) -> Vec<String> {
        let mut missing = Vec::new();
        for loading in &self.loadings.all {
            for piece in (0..loading.torrent.layout.piece_count()).map(PieceIndex) {
                if claimed(loading, piece) && !loading.torrent.is_on(world, self.root, piece) {
                    missing.push(format!("{piece} of {:?}", loading.torrent.id));
                }
            }
        }
        missing
    }

    /// Claims that nobody gave back.
    pub fn claims(&self) -> u32 {
        let claimed = |loading: &Loading| {
            let pieces = (0..loading.torrent.layout.piece_count()).map(PieceIndex);
            pieces.filter(|piece| loading.download.is_claimed(*piece)).count() as u32
        };
        self.loadings.all.iter().map(claimed).sum()
    }

    pub(super) fn offered(&mut self, torrent: TorrentId, piece: PieceIndex) {
        self.tell_all(|| Command::Have { torrent, piece });
    }

    /// Blocks of a piece in part are on disk; none: no more.
    pub(super) fn kept(&mut self, kept: KeptPiece) {
        let mut all = self.loadings.kept.borrow_mut();
        all.retain(|other| other.piece != kept.piece && other.slot != kept.slot);
        if !kept.blocks.is_empty() {
            all.push(kept);
        }
    }

    pub(super) fn write_failed(&mut self, torrent: TorrentId) {
        self.loadings.write_failures += 1;
        self.loadings.resume_at.push((self.world.now() + AGAIN, torrent));
    }

    /// A shard sees nothing missing: the bits say whether that is so.
    pub(super) fn completed(&mut self, id: TorrentId) {
        let now = self.world.now();
        let Some(loading) = self.loadings.all.iter_mut().find(|l| l.torrent.id == id) else {
            return;
        };
        let wanted = |piece: &PieceIndex| loading.download.priority(*piece) > 0;
        let mut pieces = (0..loading.torrent.layout.piece_count()).map(PieceIndex).filter(wanted);
        let safe = pieces.all(|piece| loading.download.is_synced(piece));
        let complete = loading.download.is_complete(&loading.shared.pieces);
        if !safe || !complete || loading.complete_at.is_some() {
            return;
        }
        loading.complete_at = Some(now);
        loading.shared.download.store(None);
        loading.shared.contents.store(Some(loading.torrent.contents(false)));
        self.tell_all(|| Command::Look(id));
    }

    pub(super) fn dial_failed(
        &mut self,
        shard: usize,
        torrent: TorrentId,
        address: SocketAddr,
        outcome: DialOutcome,
    ) {
        let loads = self.loadings.all.iter().any(|l| l.torrent.id == torrent);
        let banned = self.loadings.poisoned.contains(&address.ip());
        if loads && !banned && outcome != DialOutcome::Connected {
            self.loadings.dial_at.push((self.world.now() + AGAIN, shard, torrent, address));
        }
    }

    /// What control does when its time has come.
    pub(super) fn load_on(&mut self) {
        let now = self.world.now();
        let due = self.loadings.resume_at.extract_if(.., |(at, _)| *at <= now);
        let due: Vec<TorrentId> = due.map(|(_, id)| id).collect();
        for loading in self.loadings.all.iter().filter(|l| due.contains(&l.torrent.id)) {
            loading.download.resume();
        }
        let due: Vec<_> = self.loadings.dial_at.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, shard, torrent, address) in due {
            if self.loadings.all.iter().any(|l| l.torrent.id == torrent && l.complete_at.is_none())
            {
                self.tell(shard, Command::Dial { torrent, address });
            }
        }
    }
}

impl SimTorrent {
    /// Contents whose files are made beneath the torrent's own folder.
    pub(super) fn contents_to_write(
        &self,
        world: &World,
        root: DirectoryId,
    ) -> Arc<seedring_shard::torrent::Contents> {
        let folder = world.root_beneath(root, &self.folder());
        let folder_path = self.base.clone();
        let growth = seedring_shard::torrent::Growth::new(self.layout.piece_count());
        let allocation = Allocation::Sparse;
        let writing = seedring_shard::torrent::Writing { folder, folder_path, allocation, growth };
        let contents = self.contents(false);
        let contents = Arc::into_inner(contents).expect("invariant: just made");
        let places = Places { parts: self.base.join(PARTS), ..Places::default() };
        Arc::new(seedring_shard::torrent::Contents { writing: Some(writing), places, ..contents })
    }

    /// Whether a piece's bytes can be read from the virtual disk.
    pub fn is_on(&self, world: &World, root: DirectoryId, piece: PieceIndex) -> bool {
        let (start, length) = (self.layout.piece_offset(piece), self.layout.piece_length(piece));
        let mut at = start;
        let segments: Vec<_> = self.layout.segments(start, u64::from(length)).collect();
        segments.into_iter().all(|segment| {
            let mut bytes = vec![0; segment.length as usize];
            let offset = at;
            at += segment.length;
            if segment.padding {
                return true;
            }
            let path = self.path(segment.file.0 as usize);
            let read = world.with_disk(|disk| {
                let node = disk.find(root, path.as_bytes());
                node.map_or(0, |node| disk.read(node, segment.offset, &mut bytes))
            });
            read == bytes.len() && self.differs(offset, &bytes).is_none()
        })
    }
}
