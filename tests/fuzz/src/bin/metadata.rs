//! Owns: the fuzz target of fetching metadata: peers that claim, give, reject, leave in any order.
//! Never: expects that what a peer gives is right.
//! Flow: three bytes choose peer, act and piece; bounds hold throughout, nobody who only gave
//! what is right is banned, and in the end one honest peer has it done.
#![no_main]

use std::collections::BTreeSet;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use seedring_proto::limits::TORRENT_BYTES_MAX;
use seedring_proto::swarm::metadata::{ASKS_A_PEER_MAX, Action, MetadataFetch};
use seedring_proto::units::InfoHash;
use seedring_proto::wire::extended::{METADATA_PIECE_BYTES, metadata_piece};
use sha1::{Digest, Sha1};

const HONEST: u8 = 200;

/// What the machine asked for, and who has lied.
struct Seen {
    all: Vec<u8>,
    waiting: BTreeSet<(u8, u32)>,
    liars: BTreeSet<u8>,
}

impl Seen {
    fn step(&mut self, fetch: &mut MetadataFetch<u8>, now: Duration) {
        let mut actions = Vec::new();
        fetch.step(now, &mut actions);
        self.act(actions);
        assert!(fetch.next_step(now).is_none_or(|next| next > now));
    }

    fn act(&mut self, actions: Vec<Action<u8>>) {
        let mut asked = [0; 256];
        for action in actions {
            match action {
                Action::Ask { peer, piece } => {
                    self.waiting.insert((peer, piece));
                    asked[usize::from(peer)] += 1;
                    assert!(asked[usize::from(peer)] <= ASKS_A_PEER_MAX);
                }
                Action::Ban(peer) => assert!(self.liars.contains(&peer), "{peer} did not lie"),
                Action::Done(all) => assert_eq!(all, self.all),
            }
        }
    }

    /// `wrong` adds to the first byte, and to the total from 128.
    fn give(&mut self, fetch: &mut MetadataFetch<u8>, peer: u8, piece: u32, wrong: u8) {
        let mut total = self.all.len() as u32;
        let mut data = metadata_piece(&self.all, piece).unwrap_or_default().to_vec();
        if let Some(first) = data.first_mut() {
            *first = first.wrapping_add(wrong);
        }
        total += u32::from(wrong / 128);
        if wrong > 0 {
            self.liars.insert(peer);
        }
        let mut actions = Vec::new();
        match fetch.received(peer, piece, total, &data, &mut actions) {
            Ok(_) => self.act(actions),
            Err(_) => fetch.left(peer),
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&pieces, rest)) = bytes.split_first() else { return };
    let length = METADATA_PIECE_BYTES * usize::from(pieces % 4) + 1 + usize::from(pieces);
    let all: Vec<u8> = (0..length).map(|at| at as u8).collect();
    let mut fetch = MetadataFetch::new(InfoHash(Sha1::digest(&all).into()));
    let mut seen = Seen { all, waiting: BTreeSet::new(), liars: BTreeSet::new() };
    let mut now = Duration::ZERO;
    // Each piece that is given costs a hash of the whole at most.
    for act in rest.chunks_exact(3).take(2_000) {
        let (peer, piece) = (act[0] % 16, u32::from(act[2] % 6));
        match act[1] {
            0 => _ = fetch.claimed(peer, u32::from(act[2]) << 18),
            1..32 => _ = fetch.claimed(peer, seen.all.len() as u32),
            32..48 => fetch.left(peer),
            48..64 => fetch.rejected(peer, piece, now),
            64..80 => now += Duration::from_secs(u64::from(act[2])),
            80..112 => {
                // Whatever was asked for first is answered.
                if let Some((peer, piece)) = seen.waiting.pop_first() {
                    seen.give(&mut fetch, peer, piece, act[2] % 2);
                }
            }
            wrong => seen.give(&mut fetch, peer, piece, wrong - 112),
        }
        seen.step(&mut fetch, now);
        assert!(fetch.held_bytes() <= TORRENT_BYTES_MAX);
        assert!(fetch.held_bytes() <= 2_000 * METADATA_PIECE_BYTES);
        if fetch.is_done() {
            assert_eq!(fetch.held_bytes(), 0);
            return;
        }
    }
    // The others go, and one that is honest comes.
    (0..16).for_each(|peer| fetch.left(peer));
    fetch.claimed(HONEST, seen.all.len() as u32);
    for _ in 0..2_000 {
        seen.step(&mut fetch, now);
        let asked: Vec<u32> = seen
            .waiting
            .iter()
            .filter(|(peer, _)| *peer == HONEST)
            .map(|(_, piece)| *piece)
            .collect();
        seen.waiting.clear();
        for piece in asked {
            seen.give(&mut fetch, HONEST, piece, 0);
        }
        if fetch.is_done() {
            return;
        }
        now = fetch.next_step(now).unwrap_or(now + Duration::from_secs(1));
    }
    panic!("not done at {now:?}");
});
