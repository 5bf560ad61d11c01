//! Which block one connection is asked for next.
//!
//! Owns: the order among blocks of pieces begun, new pieces, late blocks and the endgame.
//! Never: sends a request, or counts who has what (`ask`). Flow: a connection has room -> a block,
//! or nothing.
//!
//! A connection is asked, in this order, for: blocks that nobody was asked for of pieces begun
//! here; a new piece, as the picker has it; blocks that are late with another peer; and when
//! nothing is free any more (endgame), any block that has not begun to come, so that the slowest
//! peer does not hold up the end. A block is asked of two peers at most; the second is cancelled
//! when the first brings it.
//!
//! A seed is first asked for what only seeds have. The rest of a piece that a leech has begun to
//! give can be had of leeches, and what the only seed of a new swarm sends twice holds all of them
//! up: 11 leeches at a seed of the same rate took 1.33 times as long as it needs for one copy, for
//! it gave 1.33 of them, and 1.06 so (`sim_fleet`).

use std::time::Duration;

use seedring_platform::memory::{Class, Lease};
use seedring_proto::{
    peer::session::Session,
    swarm::picker::Order,
    units::{Block, PieceIndex},
};

use super::{
    Fetch,
    partial::{NoMemory, Partial},
};
use crate::{connections::Key, torrent::Choice};

/// Blocks in the endgame that one connection is asked for beside its own.
const ENDGAME_BLOCKS_MAX: usize = 16;

/// What looking for a block to ask for came to.
pub(super) enum Next {
    Ask(Block),
    Nothing,
    NoMemory,
}

/// A look for one connection's next block.
pub(super) struct Asking<'a> {
    pub session: &'a Session,
    pub key: Key,
    pub now: Duration,
    pub shard: usize,
    /// Bytes that downloads may hold.
    pub budget: usize,
}

impl Asking<'_> {
    pub fn next(
        &self,
        fetch: &mut Fetch,
        held_bytes: &mut usize,
        mut lease: impl FnMut(Class) -> Option<Lease>,
    ) -> Next {
        let may = |piece: PieceIndex| self.session.may_request(piece);
        let begun = fetch.partials.values().find(|p| p.has_unasked() && may(p.piece()));
        let mut begun = begun.map(Partial::piece);
        if self.is_a_seed_among_leeches(fetch)
            && let Some(piece) = self.of_seeds(fetch, held_bytes, begun)
        {
            begun = Some(piece);
        }
        loop {
            let piece = match begun.take() {
                Some(piece) => piece,
                None => match self.take_up(fetch, held_bytes) {
                    Some(Ok(piece)) => piece,
                    Some(Err(NoMemory)) => return Next::NoMemory,
                    None => return self.again(fetch),
                },
            };
            fetch.take_left(piece, &mut lease);
            let partial = fetch.partials.get_mut(&piece).expect("invariant: begun, or just made");
            match partial.ask(self.key, &mut lease) {
                Ok(Some(block)) => return Next::Ask(block),
                Ok(None) => {} // all of it is on disk
                Err(NoMemory) => return Next::NoMemory,
            }
        }
    }

    /// Nothing is free: late blocks, and with nothing of its own to do, any block.
    fn again(&self, fetch: &mut Fetch) -> Next {
        let own = self.session.requests().map_or(0, |requests| requests.len());
        let any = own < ENDGAME_BLOCKS_MAX;
        let may = |partial: &&mut Partial| self.session.may_request(partial.piece());
        let mut begun = fetch.partials.values_mut().filter(may);
        match begun.find_map(|partial| partial.ask_again(self.key, any)) {
            Some(block) => Next::Ask(block),
            None => Next::Nothing,
        }
    }

    fn is_a_seed_among_leeches(&self, fetch: &Fetch) -> bool {
        self.session.pieces().is_complete()
            && fetch.has_leeches()
            && fetch.download.order(&fetch.shared.pieces) != Order::Sequential
    }

    /// A piece that only seeds have, for one of them: begun here, or else new, unless that is of
    /// lower priority than `begun`.
    fn of_seeds(
        &self,
        fetch: &mut Fetch,
        held_bytes: &mut usize,
        begun: Option<PieceIndex>,
    ) -> Option<PieceIndex> {
        let Fetch { partials, download, shared, picker, contents, .. } = &mut *fetch;
        let rare = |partial: &&Partial| {
            partial.has_unasked()
                && download.only_seeds_have(partial.piece())
                && self.session.may_request(partial.piece())
        };
        if let Some(partial) = partials.values().find(rare) {
            return Some(partial.piece());
        }
        if *held_bytes + Partial::buffer_bytes(contents.layout.piece_bytes) > self.budget {
            return None;
        }
        let least = begun.map_or(0, |piece| download.priority(piece));
        let had = &shared.pieces;
        let choice = Choice { download, had };
        let may = |piece| self.session.may_request(piece) && download.priority(piece) >= least;
        let claim = |piece| download.claim(had, piece, self.shard);
        let piece = picker.pick_of_seeds(&choice, download.order(had), self.now, may, claim)?;
        let length = contents.layout.piece_length(piece);
        *held_bytes += Partial::buffer_bytes(length);
        partials.insert(piece, Partial::new(piece, length));
        Some(piece)
    }

    /// Claims a new piece. `None`: nothing is free that this peer has.
    fn take_up(
        &self,
        fetch: &mut Fetch,
        held_bytes: &mut usize,
    ) -> Option<Result<PieceIndex, NoMemory>> {
        let layout = &fetch.contents.layout;
        let most = Partial::buffer_bytes(layout.piece_bytes);
        // One piece may always be under way, however large.
        if *held_bytes > 0 && *held_bytes + most > self.budget {
            return Some(Err(NoMemory));
        }
        let had = &fetch.shared.pieces;
        let choice = Choice { download: &fetch.download, had };
        let order = fetch.download.order(had);
        let has = |piece| self.session.may_request(piece);
        let claim = |piece| fetch.download.claim(had, piece, self.shard);
        let left = fetch.left_behind(has, claim);
        let piece = left.or_else(|| fetch.picker.pick(&choice, order, self.now, has, claim))?;
        let length = layout.piece_length(piece);
        *held_bytes += Partial::buffer_bytes(length);
        fetch.partials.insert(piece, Partial::new(piece, length));
        Some(Ok(piece))
    }
}

impl Fetch {
    /// Whether a peer is connected that lacks something. Relaxed: a count that is late by a peer is
    /// harmless.
    fn has_leeches(&self) -> bool {
        let connections = self.shared.connections.load(std::sync::atomic::Ordering::Relaxed);
        connections > self.download.seeds()
    }
}
