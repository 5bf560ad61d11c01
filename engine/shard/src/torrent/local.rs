//! A torrent on one shard.
//!
//! Owns: which connections of this shard belong to it, and which wait for its contents.
//! Never: what other shards do. Flow: connections enter at placement and leave at close.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use seedring_proto::{
    peer::session,
    swarm::SuperSeed,
    units::{PeerId, PieceIndex},
};

use super::{Contents, Shared};
use crate::connections::Key;

/// One shard's view of a torrent.
pub struct Local {
    pub shared: Arc<Shared>,
    /// Kept while there are connections or verification here; then given back.
    pub contents: Option<Arc<Contents>>,
    /// Handshaken connections by the peer's id: a second one of the same peer is refused.
    /// Ordered, so that what is done to all of them is done in the same order in each run.
    pub peers: BTreeMap<PeerId, Key>,
    /// Connections whose handshake named this torrent while it was cold.
    pub waiting: Vec<Key>,
    /// `Event::Activate` went out.
    pub asked: bool,
    /// Verification jobs under way here.
    pub jobs: u32,
    pub unchoked: u32,
    pub interested: u32,
    pub idle_since: Option<Duration>,
    /// To how many peers each piece was begun to be given, while a rate limit holds uploads back;
    /// empty before.
    given: Vec<u16>,
    /// What was shown to whom, while this seed shows its pieces one by one.
    pub super_seed: Option<Box<SuperSeed<Key>>>,
    /// That is over: somebody else seeds too.
    pub shown_all: bool,
}

impl Local {
    pub fn new(shared: Arc<Shared>) -> Self {
        Local {
            shared,
            contents: None,
            peers: BTreeMap::new(),
            waiting: Vec::new(),
            asked: false,
            jobs: 0,
            unchoked: 0,
            interested: 0,
            idle_since: None,
            given: Vec::new(),
            super_seed: None,
            shown_all: false,
        }
    }

    /// The contents, taken over from `Shared` when control has put them there.
    pub fn contents(&mut self) -> Option<&Arc<Contents>> {
        if self.contents.is_none() {
            let loaded = self.shared.contents.load_full();
            // A .torrent that was exchanged under its path must not stand for this one.
            let count = self.shared.pieces.piece_count();
            let fits =
                |contents: &Arc<Contents>| count == 0 || contents.layout.piece_count() == count;
            self.contents = loaded.filter(fits);
        }
        self.contents.as_ref()
    }

    /// This shard's part of a torrent's unchoke slots: as many as it has of the peers that want
    /// something, rounded up, so that every shard with such a peer has one.
    pub fn quota(&self, slots: u32) -> u32 {
        let all = u64::from(self.shared.interested.load(Ordering::Relaxed));
        if slots == u32::MAX || all <= u64::from(self.interested) {
            return slots;
        }
        (u64::from(slots) * u64::from(self.interested)).div_ceil(all) as u32
    }

    /// A peer gets the first of a piece.
    pub fn gives(&mut self, piece: PieceIndex) {
        if self.given.is_empty() {
            self.given = vec![0; self.shared.pieces.piece_count() as usize];
        }
        let times = &mut self.given[piece.0 as usize];
        *times = times.saturating_add(1);
    }

    /// To how many peers a piece was given.
    pub fn given(&self, piece: PieceIndex) -> u16 {
        self.given.get(piece.0 as usize).copied().unwrap_or(0)
    }

    /// Nobody is here any more: what was kept for peers goes.
    pub fn cool(&mut self) {
        self.contents = None;
        self.given = Vec::new();
        self.shown_all |= self.super_seed.take().is_some_and(|seed| seed.is_over());
    }

    pub fn is_unused(&self) -> bool {
        self.peers.is_empty() && self.waiting.is_empty() && self.jobs == 0
    }

    /// `false`: the peer is connected already, here or on another shard.
    pub fn enters(&mut self, peer: PeerId, key: Key) -> bool {
        let is_new = !self.peers.contains_key(&peer) && self.shared.enters(&peer);
        if is_new {
            self.peers.insert(peer, key);
        }
        is_new
    }

    pub fn left(&mut self, peer: &PeerId) {
        self.shared.leaves(peer);
        let key = self.peers.remove(peer);
        if let (Some(key), Some(seed)) = (key, &mut self.super_seed) {
            seed.left(key);
        }
    }

    /// Whether who comes now is shown pieces one by one.
    pub fn hides(&self) -> bool {
        let wanted = self.shared.super_seeding.load(Ordering::Relaxed);
        let over = self.shown_all || self.super_seed.as_ref().is_some_and(|seed| seed.is_over());
        wanted && !over && self.shared.pieces.offers_all()
    }

    /// The torrent as the session of this connection sees it.
    pub fn view<'a>(&'a self, contents: &'a Contents, key: Key) -> View<'a> {
        let seed = self.super_seed.as_deref().filter(|seed| seed.is_known(key));
        View { shared: &self.shared, contents, shown: seed.map(|seed| (seed, key)) }
    }
}

/// What a peer session asks about a torrent.
pub struct View<'a> {
    pub shared: &'a Shared,
    pub contents: &'a Contents,
    /// Where pieces are shown one by one: to whom which.
    shown: Option<(&'a SuperSeed<Key>, Key)>,
}

impl session::Torrent for View<'_> {
    fn info_hash(&self) -> seedring_proto::units::InfoHash {
        self.shared.info_hash
    }
    fn piece_count(&self) -> u32 {
        // None where the metadata is not known.
        self.shared.pieces.piece_count()
    }
    fn piece_length(&self, piece: PieceIndex) -> u32 {
        self.contents.layout.piece_length(piece)
    }
    fn offered(&self, piece: PieceIndex) -> bool {
        let shown = self.shown.is_none_or(|(seed, key)| seed.is_shown(key, piece));
        shown && self.shared.pieces.is_offered(piece)
    }
    fn offers_all(&self) -> bool {
        self.shown.is_none() && self.shared.pieces.offers_all()
    }
    fn write_offered(&self, field: &mut [u8]) -> bool {
        // At its begin a session is shown nothing.
        self.shown.is_none() && self.shared.pieces.write_offered(field)
    }
    fn metadata(&self) -> Option<&[u8]> {
        (self.shared.pieces.piece_count() > 0).then_some(&*self.contents.raw_info)
    }
    fn private(&self) -> bool {
        self.contents.private
    }
}
