//! Owns: what an idle session holds.
//! Never: faults of a single message. Flow: test only.

use super::*;

/// A peer that keeps `pipeline` requests in flight to a seed with the usual queue.
fn pipelining(remote: Reserved, pipeline: u32) -> (Side, Vec<Block>) {
    let torrent = Content { offered: vec![true; 2001], metadata: None };
    let mut side = Side::with(torrent, remote, |options| options.request_queue_max = 2000);
    side.hear(&[Message::Interested]).expect("valid");
    side.session.unchoke(T0, &mut side.out);
    (side, (0..pipeline).map(|piece| block(piece, 0)).collect())
}

fn requests(blocks: &[Block]) -> Vec<Message<'static>> {
    blocks.iter().copied().map(Message::Request).collect()
}

/// A leech that asked for one block and waits, on a torrent of 2,000 pieces.
#[test]
fn an_idle_session_is_small() {
    let (mut side, asked) = pipelining(Reserved::OURS, 1);
    let handshake = Message::Extended { id: 0, payload: b"d1:v17:qBittorrent/5.0.1e" };
    side.hear(&[handshake, Message::HaveNone]).expect("valid");
    let mut bytes = Vec::new();
    requests(&asked).iter().for_each(|request| request.encode(&mut bytes));
    side.hear_bytes(&bytes[..5]).expect("the front of it");
    side.hear_bytes(&bytes[5..]).expect("the rest");
    side.session.take(0).expect("asked for");
    side.session.shrink();
    assert!(size_of::<Session>() <= 240, "{} bytes", size_of::<Session>());
    assert_eq!(side.session.held_bytes(), 17, "its name");
    // One that has some pieces: a bit for each.
    side.hear(&[Message::Have(PieceIndex(7))]).expect("valid");
    assert_eq!(side.session.held_bytes(), 17 + 2001usize.div_ceil(64) * 8);
}
