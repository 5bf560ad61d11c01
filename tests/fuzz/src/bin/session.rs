//! Owns: the fuzz target of the peer session: hostile streams, and upload's calls between them.
//! Never: expects that a stream is accepted.
//! Flow: a byte chooses what happens next, the bytes after it are received; bounds hold throughout.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use seedring_proto::peer::session::SILENT_AFTER;
use seedring_proto::peer::{Options, Session, Torrent};
use seedring_proto::units::{InfoHash, PeerId, PieceIndex};
use seedring_proto::wire::Reserved;

const QUEUE_MAX: usize = 16;

struct Content {
    offered: [bool; 9],
    metadata: Vec<u8>,
}

impl Torrent for Content {
    fn info_hash(&self) -> InfoHash {
        InfoHash([1; 20])
    }
    fn piece_count(&self) -> u32 {
        self.offered.len() as u32
    }
    fn piece_length(&self, piece: PieceIndex) -> u32 {
        assert!(piece.0 < self.piece_count());
        if piece.0 == 8 { 77 } else { 32768 }
    }
    fn offered(&self, piece: PieceIndex) -> bool {
        self.offered[piece.0 as usize]
    }
    fn offers_all(&self) -> bool {
        self.offered == [true; 9]
    }
    fn metadata(&self) -> Option<&[u8]> {
        Some(&self.metadata)
    }
    fn private(&self) -> bool {
        false
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, mut rest)) = bytes.split_first() else { return };
    let reserved = Reserved([0, 0, 0, 0, 0, (kind & 1) << 4, 0, (kind & 2) << 1]);
    let mut options = Options::new(reserved);
    options.request_queue_max = QUEUE_MAX as u32;
    options.your_ip = Some([10, 0, 0, kind].into());
    options.upload_only = kind & 4 == 0;
    let mut torrent = Content { offered: [true; 9], metadata: vec![b'x'; 20_000] };
    torrent.offered[5] = kind & 8 == 0;
    let mut now = Duration::from_secs(100);
    let (mut out, mut events) = (Vec::new(), Vec::new());
    let mut session = Session::open(&options, &torrent, now, u64::from(kind), &mut out);
    while let Some((&act, after)) = rest.split_first() {
        rest = after;
        out.clear();
        events.clear();
        match act {
            0 => session.choke(now, &mut out),
            1 => session.unchoke(now, &mut out),
            2 => _ = session.take(0),
            3 => session.reject(2, &mut out),
            4 => session.reject_all(&mut out),
            5 => {
                torrent.offered[3] = !torrent.offered[3];
                session.reject_piece(PieceIndex(3), &mut out);
            }
            6 => now += Duration::from_secs(30),
            8 => session.shrink(),
            7 => {
                let Ok(next) = session.timeout(now, SILENT_AFTER, &mut out) else { return };
                assert!(next.is_some_and(|next| next > now));
            }
            length => {
                let (part, after) = rest.split_at(rest.len().min(usize::from(length)));
                rest = after;
                if session.receive(part, &torrent, now, &mut out, &mut events).is_err() {
                    return;
                }
                let haves = part.len() / 9;
                assert!(events.len() <= 8 + haves, "{events:?}");
            }
        }
        assert!(session.queue().len() <= QUEUE_MAX);
        for block in session.queue().iter() {
            assert!(block.length > 0);
            assert!(block.begin + block.length <= torrent.piece_length(block.piece));
        }
        let peer = session.peer(PeerId([kind; 20]));
        assert!(peer.pieces_have <= 9 && peer.client.chars().count() <= 64);
    }
});
