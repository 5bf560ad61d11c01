//! Owns: the fuzz target of the peer session: hostile streams, and the calls of upload and download
//! between them.
//! Never: expects that a stream is accepted.
//! Flow: a byte chooses what happens next, the bytes after it are received; bounds hold throughout.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use seedring_proto::peer::session::SILENT_AFTER;
use seedring_proto::peer::{Blocks, Event, Options, Session, Torrent};
use seedring_proto::units::{Block, InfoHash, PeerId, PieceIndex};
use seedring_proto::wire::Reserved;

const QUEUE_MAX: usize = 16;

struct Content {
    offered: Vec<bool>,
    metadata: Option<Vec<u8>>,
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
        !self.offered.contains(&false)
    }
    fn metadata(&self) -> Option<&[u8]> {
        self.metadata.as_deref()
    }
    fn private(&self) -> bool {
        false
    }
}

/// What was asked for, and how far it came.
#[derive(Default)]
struct Asked {
    blocks: Vec<Block>,
    coming: Option<(Block, u32)>,
}

impl Asked {
    fn answered(&mut self, block: Block) {
        let place = self.blocks.iter().position(|asked| *asked == block);
        self.blocks.remove(place.expect("asked for, and answered once"));
    }
}

impl Blocks for Asked {
    fn data(&mut self, block: Block, at: u32, bytes: &[u8]) {
        assert!(!bytes.is_empty() && self.blocks.contains(&block));
        let start = self.coming.filter(|(coming, _)| at > 0 && *coming == block);
        assert_eq!(start.map_or(0, |(_, bytes)| bytes), at);
        self.coming = Some((block, at + bytes.len() as u32));
    }
}

fn block(choice: u8) -> Block {
    let (piece, half) = (u32::from(choice >> 1 & 7), u32::from(choice & 1));
    // Short ones too, so that a stream of few bytes has whole ones.
    let length = if choice & 16 == 0 { 16384 } else { 3 };
    Block { piece: PieceIndex(piece), begin: half * 16384, length }
}

/// A call of the download's. Whether it asked for the block.
fn download(session: &mut Session, act: u8, choice: u8, now: Duration, out: &mut Vec<u8>) -> bool {
    let block = block(choice);
    match act {
        240 => {
            let free = session.requests().is_some_and(|requests| !requests.contains(block));
            if free {
                session.request(block, now, out);
            }
            return free;
        }
        241 => session.cancel(block, out),
        242 => session.set_interested(choice & 1 == 1, out),
        243 => _ = session.check_requests(now),
        244 => session.request_metadata(u32::from(choice), out),
        _ => session.have(PieceIndex(u32::from(choice & 7)), out),
    }
    false
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, mut rest)) = bytes.split_first() else { return };
    let reserved = Reserved([0, 0, 0, 0, 0, (kind & 1) << 4, 0, (kind & 2) << 1]);
    let mut options = Options::new(reserved);
    options.request_queue_max = QUEUE_MAX as u32;
    options.your_ip = Some([10, 0, 0, kind].into());
    options.upload_only = kind & 4 == 0;
    let mut torrent = Content { offered: vec![true; 9], metadata: Some(vec![b'x'; 20_000]) };
    torrent.offered[5] = kind & 8 == 0;
    if kind & 0x14 == 0x14 {
        torrent = Content { offered: Vec::new(), metadata: None };
    }
    let mut asked = Asked::default();
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
                torrent.offered.iter_mut().skip(3).take(1).for_each(|offered| *offered ^= true);
                session.reject_piece(PieceIndex(3), &mut out);
            }
            6 => now += Duration::from_secs(30),
            8 => session.shrink(),
            7 => {
                let Ok(next) = session.timeout(now, SILENT_AFTER, &mut out) else { return };
                assert!(next.is_some_and(|next| next > now));
            }
            240..=245 => {
                let Some((&choice, after)) = rest.split_first() else { return };
                rest = after;
                if download(&mut session, act, choice, now, &mut out) {
                    asked.blocks.push(block(choice));
                }
                if act == 241 {
                    asked.blocks.retain(|asked| *asked != block(choice));
                }
            }
            246 => {
                session.completed(&mut out, &torrent);
                assert!(!session.downloads());
                asked.blocks.clear();
            }
            length => {
                let (part, after) = rest.split_at(rest.len().min(usize::from(length)));
                rest = after;
                let waits = asked.blocks.len();
                let result =
                    session.receive(part, &torrent, now, &mut out, &mut events, &mut asked);
                if result.is_err() {
                    return;
                }
                let said = if options.upload_only { 0 } else { part.len() / 5 + 1 + waits };
                assert!(events.len() <= 8 + said, "{events:?}");
                for event in &events {
                    match event {
                        Event::Block(block) | Event::Returned(block) => asked.answered(*block),
                        _ => {}
                    }
                }
            }
        }
        assert!(session.queue().len() <= QUEUE_MAX);
        for block in session.queue().iter() {
            assert!(block.length > 0);
            assert!(block.begin + block.length <= torrent.piece_length(block.piece));
        }
        let outstanding = session.requests().into_iter().flat_map(|requests| requests.iter());
        assert!(outstanding.eq(asked.blocks.iter().copied()));
        let peer = session.peer(PeerId([kind; 20]));
        assert!(peer.pieces_have <= 9 && peer.client.chars().count() <= 64);
    }
});
