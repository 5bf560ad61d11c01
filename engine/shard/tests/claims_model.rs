//! Every interleaving of shards that claim pieces: `cargo test -p seedring-shard --features loom
//! --test claims_model`. `LOOM_MAX_PREEMPTIONS=6` is the long form.
//!
//! Owns: that a piece has one holder at a time, and none once it is had. Never: blocks, disks.
//! Flow: threads claim, complete or give up, release; each work on a piece is counted.

use loom::{
    model::Builder,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};
use seedring_proto::units::PieceIndex;
use seedring_shard::torrent::{Download, PieceMap};

const PIECE: PieceIndex = PieceIndex(0);

struct Torrent {
    download: Download,
    had: PieceMap,
    /// Shards at work on the piece now, and pieces completed in all.
    at_work: AtomicU32,
    completed: AtomicU32,
}

fn torrent() -> Arc<Torrent> {
    Arc::new(Torrent {
        download: Download::new(1),
        had: PieceMap::new(1),
        at_work: AtomicU32::new(0),
        completed: AtomicU32::new(0),
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plant {
    None,
    /// The claim goes before the piece is had.
    ReleaseFirst,
}

/// One shard's try at the piece.
fn work(torrent: &Torrent, shard: usize, completes: bool, plant: Plant) {
    if !torrent.download.claim(&torrent.had, PIECE, shard) {
        return;
    }
    assert_eq!(torrent.at_work.fetch_add(1, Ordering::AcqRel), 0, "one holder at a time");
    torrent.at_work.fetch_sub(1, Ordering::AcqRel);
    if !completes {
        return torrent.download.release(PIECE, shard);
    }
    torrent.completed.fetch_add(1, Ordering::AcqRel);
    if plant == Plant::ReleaseFirst {
        torrent.download.release(PIECE, shard);
        torrent.had.set_verified(PIECE, true);
    } else {
        torrent.had.set_verified(PIECE, true);
        torrent.download.release(PIECE, shard);
    }
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(check);
}

fn race(completes: [bool; 2], plant: Plant) {
    let torrent = torrent();
    let other = {
        let torrent = torrent.clone();
        thread::spawn(move || work(&torrent, 1, completes[1], plant))
    };
    work(&torrent, 0, completes[0], plant);
    // It looks again, as a shard with room for requests does.
    work(&torrent, 0, completes[0], plant);
    other.join().expect("a thread");
    let completed = torrent.completed.load(Ordering::Acquire);
    assert!(completed <= 1, "a piece was fetched {completed} times");
    assert!(!torrent.download.is_claimed(PIECE), "whoever claimed it gave it back");
    assert_eq!(torrent.had.is_verified(PIECE), completed == 1);
}

#[test]
fn a_piece_is_fetched_once() {
    model(|| race([true, true], Plant::None));
}

#[test]
fn a_piece_that_is_given_up_is_free_for_others() {
    model(|| race([false, true], Plant::None));
    model(|| race([true, false], Plant::None));
}

#[test]
#[should_panic(expected = "fetched 2 times")]
fn a_claim_that_goes_before_the_bit_is_found() {
    model(|| race([true, true], Plant::ReleaseFirst));
}
