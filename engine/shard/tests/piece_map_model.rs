//! Every interleaving of threads on one piece map: `cargo test -p seedring-shard --features loom
//! --test piece_map_model`. `LOOM_MAX_PREEMPTIONS=6` is the long form.
//!
//! Owns: that counts follow bits, and that who sees an offered piece sees it verified.
//! Never: hashing. Flow: threads set and clear; readers look meanwhile, and all is added up at the
//! end.

use loom::{
    model::Builder,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
};
use seedring_proto::units::PieceIndex;
use seedring_shard::torrent::PieceMap;

/// The part of the map that the models use, so that planted bugs run in them too.
trait Pieces: Send + Sync + 'static {
    fn set_offered(&self, piece: u32, on: bool);
    fn set_verified(&self, piece: u32);
    fn is_offered(&self, piece: u32) -> bool;
    fn is_verified(&self, piece: u32) -> bool;
    fn offered_count(&self) -> u32;
}

impl Pieces for PieceMap {
    fn set_offered(&self, piece: u32, on: bool) {
        PieceMap::set_offered(self, PieceIndex(piece), on);
    }

    fn set_verified(&self, piece: u32) {
        PieceMap::set_verified(self, PieceIndex(piece), true);
    }

    fn is_offered(&self, piece: u32) -> bool {
        PieceMap::is_offered(self, PieceIndex(piece))
    }

    fn is_verified(&self, piece: u32) -> bool {
        PieceMap::is_verified(self, PieceIndex(piece))
    }

    fn offered_count(&self) -> u32 {
        PieceMap::offered_count(self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plant {
    /// Load, change, store.
    Torn,
    /// Read-modify-writes that publish nothing.
    Unordered,
}

struct Planted {
    plant: Plant,
    offered: AtomicU64,
    verified: AtomicU64,
    offered_count: AtomicU32,
}

impl Planted {
    fn new(plant: Plant) -> Planted {
        let (offered, verified) = (AtomicU64::new(0), AtomicU64::new(0));
        Planted { plant, offered, verified, offered_count: AtomicU32::new(0) }
    }

    /// The word before.
    fn change(&self, word: &AtomicU64, bit: u64, on: bool) -> u64 {
        if self.plant == Plant::Torn {
            let before = word.load(Ordering::Acquire);
            word.store(if on { before | bit } else { before & !bit }, Ordering::Release);
            return before;
        }
        match on {
            true => word.fetch_or(bit, Ordering::Relaxed),
            false => word.fetch_and(!bit, Ordering::Relaxed),
        }
    }
}

impl Pieces for Planted {
    fn set_offered(&self, piece: u32, on: bool) {
        let bit = 1 << piece;
        match (on, self.change(&self.offered, bit, on) & bit == 0) {
            (true, true) => _ = self.offered_count.fetch_add(1, Ordering::AcqRel),
            (false, false) => _ = self.offered_count.fetch_sub(1, Ordering::AcqRel),
            _ => {}
        }
    }

    fn set_verified(&self, piece: u32) {
        self.change(&self.verified, 1 << piece, true);
    }

    fn is_offered(&self, piece: u32) -> bool {
        self.offered.load(Ordering::Relaxed) & (1 << piece) != 0
    }

    fn is_verified(&self, piece: u32) -> bool {
        self.verified.load(Ordering::Relaxed) & (1 << piece) != 0
    }

    fn offered_count(&self) -> u32 {
        self.offered_count.load(Ordering::Acquire)
    }
}

fn model(preemptions: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(check);
}

fn spawn<M: Pieces>(map: &Arc<M>, f: impl FnOnce(&M) + 'static) -> thread::JoinHandle<()> {
    let map = Arc::clone(map);
    thread::spawn(move || f(&map))
}

const PIECES: u32 = 3;

/// Two shards and control set and clear the same pieces.
fn counts<M: Pieces>(map: Arc<M>) {
    let one = spawn(&map, |map| {
        map.set_offered(0, true);
        map.set_offered(1, true);
    });
    let two = spawn(&map, |map| {
        map.set_offered(0, true);
        map.set_offered(2, true);
    });
    map.set_offered(0, false);
    // Whoever looks meanwhile sees a number of pieces that there may be.
    let seen = map.offered_count();
    assert!(seen <= PIECES, "{seen} of {PIECES} pieces are offered");
    [one, two].into_iter().for_each(|thread| thread.join().expect("a thread"));
    let bits = (0..PIECES).filter(|&piece| map.is_offered(piece)).count();
    assert_eq!(map.offered_count() as usize, bits, "the count follows the bits");
    assert!(map.is_offered(1) && map.is_offered(2), "nobody cleared these");
}

/// Full verification on two shards, and one that greets a peer.
fn verification<M: Pieces>(map: Arc<M>, hashed: impl Fn(&M, u32) + Copy + 'static) {
    let one = spawn(&map, move |map| hashed(map, 0));
    let two = spawn(&map, move |map| hashed(map, 1));
    if map.offered_count() == 2 {
        // What makes us say that we have all.
        assert!(map.is_verified(0) && map.is_verified(1), "offered whole, not verified");
    }
    for piece in [1, 0] {
        if map.is_offered(piece) {
            assert!(map.is_verified(piece), "piece {piece} is offered, not verified");
        }
    }
    [one, two].into_iter().for_each(|thread| thread.join().expect("a thread"));
    assert!((0..2).all(|piece| map.is_offered(piece) && map.is_verified(piece)));
}

fn in_order<M: Pieces>(map: &M, piece: u32) {
    map.set_verified(piece);
    map.set_offered(piece, true);
}

#[test]
fn counts_follow_bits_whoever_sets_and_clears() {
    model(3, || counts(Arc::new(PieceMap::new(PIECES))));
}

#[test]
fn an_offered_piece_is_seen_verified() {
    model(3, || verification(Arc::new(PieceMap::new(2)), in_order));
}

#[test]
#[should_panic(expected = "assertion")]
fn a_torn_change_is_found() {
    model(3, || counts(Arc::new(Planted::new(Plant::Torn))));
}

#[test]
#[should_panic(expected = "not verified")]
fn bits_that_publish_nothing_are_found() {
    model(3, || verification(Arc::new(Planted::new(Plant::Unordered)), in_order));
}

#[test]
#[should_panic(expected = "not verified")]
fn offering_before_verifying_is_found() {
    model(3, || {
        verification(Arc::new(PieceMap::new(2)), |map, piece| {
            Pieces::set_offered(map, piece, true);
            Pieces::set_verified(map, piece);
        });
    });
}
