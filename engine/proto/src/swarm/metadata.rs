//! Owns: fetching a torrent's metadata over ut_metadata (BEP 9) from all peers that offer it.
//! Never: allocates for a length that is only claimed, or gives out bytes whose SHA-1 is another.
//! Flow: claims, data and rejects in; [`Action`]s out: what to ask of whom, whom to ban, the
//! `info` dictionary.
//!
//! Nobody vouches for a claimed size, or for a piece by itself; only the whole can be checked. So:
//! - Each size that is claimed is a [`Whole`] of its own, asked of those who claim it. Several are
//!   fetched side by side, the most claimed first, while their sizes add up to at most 64 MiB. One
//!   that is not done by the end of its turn makes room for those that wait, not before; its next
//!   turn is twice as long. So a lie, however often it is told, only ever delays.
//! - A whole comes from many peers at first. Where it is wrong and one peer gave it all, that
//!   peer is banned. Where several did, nobody can tell who lied: from then on the whole is taken
//!   from one peer at a time, those who gave nothing before first, until it is right. Each lie
//!   then costs its peer the ban.
//!
//! Memory is what arrived: at most 64 MiB, twice that for the moment in which it is put together.
//! Checking 64 MiB takes some 50 ms: this belongs in the control plane, not on a shard.

mod claims;
mod whole;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use sha1::{Digest, Sha1};

use crate::limits::TORRENT_BYTES_MAX;
use crate::units::InfoHash;
use crate::wire::Violation;

use claims::Claimant;
use whole::{Whole, piece_bytes, piece_count};

/// What is announced as `left` while the metadata is not known: BEP 9 is silent there, but 0
/// would make us a seed in the tracker's eyes. libtorrent says the same.
pub const LEFT_WHILE_UNKNOWN_BYTES: u64 = 16384;

/// A piece that has not come by then is asked of another peer too.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A peer that rejected a request is left alone for so long: it has no metadata yet, or enough of
/// answering (BEP 9 lets it).
pub const REJECT_REST: Duration = Duration::from_secs(60);
/// The same for one that did not answer in time; an answer that comes late ends it.
pub const SILENT_REST: Duration = Duration::from_secs(30);
/// Requests to one peer that wait for their answer.
pub const ASKS_A_PEER_MAX: usize = 3;

/// What the caller does. Several may come of one call; they are in the order to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action<K> {
    /// Send the peer a request for this piece.
    Ask { peer: K, piece: u32 },
    /// It lied: close its connection and accept no other from its address. Here it is forgotten;
    /// it may be one that has left already.
    Ban(K),
    /// The raw `info` dictionary. Nothing follows.
    Done(Vec<u8>),
}

/// What became of data that broke no rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It was asked for, and new or late.
    Asked,
    /// Nobody asked for it: the caller counts its bytes as unwanted.
    Unwanted,
}

/// See the module. `K` names a connection.
#[derive(Clone, Debug)]
pub struct MetadataFetch<K> {
    info_hash: InfoHash,
    done: bool,
    peers: BTreeMap<K, Claimant>,
    /// By size in bytes.
    wholes: BTreeMap<u32, Whole<K>>,
}

impl<K: Copy + Ord> MetadataFetch<K> {
    pub fn new(info_hash: InfoHash) -> Self {
        Self { info_hash, done: false, peers: BTreeMap::new(), wholes: BTreeMap::new() }
    }

    /// Whether [`Action::Done`] was given.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Bytes of metadata that arrived and are held.
    pub fn held_bytes(&self) -> usize {
        self.wholes.values().map(Whole::held_bytes).sum()
    }

    /// A peer that takes requests for metadata said, in an extension handshake, how much there is;
    /// a later handshake may say something else. False: 0 or more than 64 MiB, so that this peer
    /// is asked nothing.
    pub fn claimed(&mut self, peer: K, metadata_bytes: u32) -> bool {
        let sane = metadata_bytes > 0 && metadata_bytes as usize <= TORRENT_BYTES_MAX;
        if self.peers.get(&peer).is_some_and(|known| known.claim_bytes == metadata_bytes) {
            return sane;
        }
        self.left(peer);
        if sane && !self.done {
            self.peers.insert(peer, Claimant::new(metadata_bytes));
            self.wholes.entry(metadata_bytes).or_default();
        }
        sane
    }

    /// The connection has closed. What it was asked for is asked of others at the next
    /// [`MetadataFetch::step`].
    pub fn left(&mut self, peer: K) {
        let Some(gone) = self.peers.remove(&peer) else { return };
        if let Some(whole) = self.wholes.get_mut(&gone.claim_bytes) {
            gone.waiting().for_each(|piece| whole.unasked(piece));
            whole.peer_left(peer);
        }
        self.forget_unclaimed();
    }

    /// The peer rejected a request for a piece.
    pub fn rejected(&mut self, peer: K, piece: u32, now: Duration) {
        let Some(claimant) = self.peers.get_mut(&peer) else { return };
        let Some(waited) = claimant.answered(piece) else { return };
        claimant.rest(now + REJECT_REST);
        if let Some(whole) = self.wholes.get_mut(&claimant.claim_bytes)
            && waited
        {
            whole.unasked(piece);
        }
    }

    /// A piece of metadata arrived, of a whole of `total_bytes` as the message says.
    ///
    /// # Errors
    /// Another total than the peer claimed, a piece outside of it, or one with another length
    /// than it has there. The caller closes the connection and calls [`MetadataFetch::left`].
    pub fn received(
        &mut self,
        peer: K,
        piece: u32,
        total_bytes: u32,
        data: &[u8],
        actions: &mut Vec<Action<K>>,
    ) -> Result<Taken, Violation> {
        let Some(claimant) = self.peers.get_mut(&peer) else { return Ok(Taken::Unwanted) };
        let claimed = claimant.claim_bytes;
        if total_bytes != claimed {
            return Err(Violation::MetadataTotal { got: total_bytes, claimed });
        }
        let count = piece_count(claimed);
        if piece >= count {
            return Err(Violation::MetadataOutOfRange { piece, count });
        }
        let expected = piece_bytes(claimed, piece);
        if data.len() != expected {
            return Err(Violation::MetadataLength { piece, got: data.len(), expected });
        }
        if claimant.answered(piece).is_none() {
            return Ok(Taken::Unwanted);
        }
        claimant.rested();
        if let Some(whole) = self.wholes.get_mut(&claimed) {
            whole.arrived(piece, peer, data);
            if whole.is_whole(claimed) {
                self.judge(claimed, actions);
            }
        }
        Ok(Taken::Asked)
    }

    /// Every piece of one size is there: is it the metadata?
    fn judge(&mut self, size: u32, actions: &mut Vec<Action<K>>) {
        let Some(whole) = self.wholes.get_mut(&size) else { return };
        let mut hash = Sha1::new();
        whole.pieces().for_each(|data| hash.update(data));
        if <[u8; 20]>::from(hash.finalize()) == self.info_hash.0 {
            actions.push(Action::Done(whole.put_together(size)));
            self.done = true;
            self.wholes.clear();
            return;
        }
        let givers = whole.failed();
        self.end_waits(size);
        // One giver is a liar; several are left to be tried one by one.
        if let [liar] = givers[..] {
            actions.push(Action::Ban(liar));
            self.left(liar);
        }
    }

    /// Nobody is waited for any more for this size; answers to what was asked may still come.
    fn end_waits(&mut self, size: u32) {
        let claimants = self.peers.values_mut().filter(|peer| peer.claim_bytes == size);
        claimants.for_each(Claimant::give_up_all);
    }

    /// What is due: deadlines that passed, and requests to peers that can take some. To be called
    /// after every call that changed something, and at [`MetadataFetch::next_step`].
    pub fn step(&mut self, now: Duration, actions: &mut Vec<Action<K>>) {
        if self.done {
            return;
        }
        self.expire(now);
        let sizes = self.admit(now);
        for size in sizes {
            self.choose_single(size, now);
            let Some(whole) = self.wholes.get_mut(&size) else { continue };
            let claimants = self.peers.iter_mut().filter(|(_, peer)| peer.claim_bytes == size);
            let mut able: Vec<_> = claimants
                .filter(|(key, peer)| whole.may_give(**key) && peer.can_be_asked(now))
                .collect();
            // One request each in turn, so that every peer has a part in it.
            for _ in 0..ASKS_A_PEER_MAX {
                for (key, peer) in &mut able {
                    if peer.waiting().count() >= ASKS_A_PEER_MAX {
                        continue;
                    }
                    let Some(piece) = whole.next_piece(size, |piece| peer.waits_for(piece)) else {
                        continue;
                    };
                    whole.asked(piece);
                    peer.asked(piece, now + ANSWER_WITHIN);
                    actions.push(Action::Ask { peer: **key, piece });
                }
            }
        }
    }

    /// When [`MetadataFetch::step`] is to be called at the latest; `None`: nothing is waited for.
    pub fn next_step(&self, now: Duration) -> Option<Duration> {
        if self.done {
            return None;
        }
        let peers = self.peers.values().filter_map(|peer| peer.next_deadline(now));
        let turns = self.wholes.values().filter_map(|whole| whole.next_turn(now));
        peers.chain(turns).min()
    }

    fn expire(&mut self, now: Duration) {
        for peer in self.peers.values_mut() {
            let Some(whole) = self.wholes.get_mut(&peer.claim_bytes) else { continue };
            peer.expire(now, |piece| whole.unasked(piece));
        }
    }

    /// The sizes to fetch now, the likeliest first; what the others had is dropped.
    fn admit(&mut self, now: Duration) -> Vec<u32> {
        let mut votes: BTreeMap<u32, usize> = BTreeMap::new();
        for peer in self.peers.values() {
            *votes.entry(peer.claim_bytes).or_default() += 1;
        }
        let votes_of = |size: &u32| votes.get(size).copied().unwrap_or(0);
        let all_bytes: u64 = self.wholes.keys().map(|size| u64::from(*size)).sum();
        for whole in self.wholes.values_mut() {
            match all_bytes > TORRENT_BYTES_MAX as u64 {
                // Somebody waits: whoever had its turn goes to the end of the line.
                true => whole.end_turn(now),
                false => whole.renew_turn(now),
            }
        }
        let mut line: Vec<u32> = self.wholes.keys().copied().collect();
        line.sort_by_key(|size| {
            let whole = self.wholes.get(size).map(|whole| (!whole.has_turn(), whole.turns()));
            (votes_of(size) == 0, whole, Reverse(votes_of(size)), *size)
        });
        let mut room = TORRENT_BYTES_MAX as u64;
        let (mut admitted, mut dropped) = (Vec::new(), Vec::new());
        for size in line {
            match room.checked_sub(u64::from(size)) {
                Some(left) => {
                    room = left;
                    admitted.push(size);
                }
                None => dropped.push(size),
            }
        }
        for size in dropped {
            if let Some(whole) = self.wholes.get_mut(&size)
                && whole.suspend()
            {
                self.end_waits(size);
            }
        }
        for size in &admitted {
            if let Some(whole) = self.wholes.get_mut(size) {
                whole.begin_turn(now);
            }
        }
        self.forget_unclaimed();
        admitted
    }

    /// Where a size is taken from one peer at a time: whose turn is it?
    fn choose_single(&mut self, size: u32, now: Duration) {
        let Some(whole) = self.wholes.get_mut(&size).filter(|whole| whole.is_single()) else {
            return;
        };
        let claimants = self.peers.iter().filter(|(_, peer)| peer.claim_bytes == size);
        let able = claimants.filter(|(_, peer)| !peer.is_resting(now));
        if whole.choose_single(able.map(|(key, _)| *key), now) {
            self.end_waits(size);
        }
    }

    fn forget_unclaimed(&mut self) {
        let peers = &self.peers;
        self.wholes.retain(|size, whole| {
            whole.held_bytes() > 0 || peers.values().any(|peer| peer.claim_bytes == *size)
        });
    }
}

#[cfg(test)]
mod tests;
