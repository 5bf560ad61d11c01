//! Owns: what an idle session holds, and what requests that come to nothing cost a peer.
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

fn cancels(blocks: &[Block]) -> Vec<Message<'static>> {
    blocks.iter().copied().map(Message::Cancel).collect()
}

/// Repeats until the session has enough of it; how often it did not mind.
fn borne(side: &mut Side, messages: &[Message<'_>]) -> (usize, Violation) {
    for round in 0..100_000 {
        side.out.clear();
        if let Err(fault) = side.hear(messages) {
            return (round, fault);
        }
    }
    panic!("borne for ever");
}

#[test]
fn floods_that_come_to_nothing_close() {
    let flood = |count| Violation::IdleFlood { count };
    for remote in [FAST, PLAIN] {
        // The least bound, with the small queue of these tests.
        let double = [Message::Request(block(0, 0))];
        assert_eq!(borne(&mut Side::serving(remote), &double), (1201, flood(1201)));
        let cancel = [Message::Cancel(block(0, 0))];
        assert_eq!(borne(&mut Side::serving(remote), &cancel), (1200, flood(1201)));
        let both = [double[0], cancel[0]];
        assert_eq!(borne(&mut Side::serving(remote), &both), (1200, flood(1201)));
        let mut full = Side::serving(remote);
        full.hear(&[0, 1, 2, 3].map(|piece| Message::Request(block(piece, 0)))).expect("valid");
        assert_eq!(borne(&mut full, &double), (1200, flood(1201)));
        // While a choke may cross with requests.
        let mut choked = Side::serving(remote);
        choked.session.choke(T0, &mut choked.out);
        assert_eq!(borne(&mut choked, &double), (1200, flood(1201)));
        // The bound with a queue of the usual length: four of it.
        let (mut side, _) = pipelining(remote, 0);
        assert_eq!(borne(&mut side, &cancel), (8000, flood(8001)));
    }
}

/// The worst that an honest peer does at once is half of the bound: all its pipeline crosses a
/// choke, is made again after the unchoke though it had arrived, and is taken back at the end,
/// when all of it was sent.
#[test]
fn a_whole_pipeline_that_crosses_is_no_flood() {
    for remote in [FAST, PLAIN] {
        let (mut side, pipeline) = pipelining(remote, 2000);
        for round in 0..20 {
            side.hear(&requests(&pipeline)).expect("first");
            side.session.choke(side.now, &mut side.out);
            side.session.unchoke(side.now, &mut side.out);
            side.hear(&requests(&pipeline)).expect("sent before the choke was heard of");
            side.hear(&requests(&pipeline)).expect("and again after the unchoke");
            assert!(side.session.state.idle.half_of_bound(2000), "round {round}");
            while side.session.take(0).is_some() {}
            side.hear(&cancels(&pipeline)).expect("they cross with their blocks");
            assert!(side.session.state.idle.half_of_bound(2000), "round {round}");
            side.out.clear();
            side.now += Duration::from_secs(100);
        }
    }
}

/// Where nothing is served at all for an hour (a rate limit), and the peer asks again for all of
/// its 500 requests each minute, or takes them back and asks anew.
#[test]
fn time_forgets_what_patience_repeats() {
    let (mut side, pipeline) = pipelining(PLAIN, 500);
    for _ in 0..60 {
        side.hear(&requests(&pipeline)).expect("asked again");
        side.hear(&cancels(&pipeline)).expect("taken back");
        side.hear(&requests(&pipeline)).expect("asked anew");
        assert!(side.session.state.idle.half_of_bound(2000));
        side.now += Duration::from_secs(60);
    }
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
    assert!(size_of::<Session>() <= 272, "{} bytes", size_of::<Session>());
    assert_eq!(side.session.held_bytes(), 17, "its name");
    // One that has some pieces: a bit for each.
    side.hear(&[Message::Have(PieceIndex(7))]).expect("valid");
    assert_eq!(side.session.held_bytes(), 17 + 2001usize.div_ceil(64) * 8);
}
