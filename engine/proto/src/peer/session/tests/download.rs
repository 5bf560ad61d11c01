//! Owns: what a downloading session asks, takes and bears. Never: a real peer on the other side.
//! Flow: test only.

use super::*;
use crate::peer::Requests;
use crate::wire::extended;

/// A session that wants all of a torrent, of a peer that has it and serves it.
fn leech(remote: Reserved) -> Side {
    let torrent = Content { offered: vec![false; 2001], metadata: Some(vec![1; 100]) };
    let mut side = Side::with(torrent, remote, |options| options.upload_only = false);
    let all = vec![0xff; 250].into_iter().chain([0x80]).collect::<Vec<_>>();
    side.hear(&[Message::Bitfield(&all), Message::Unchoke]).expect("valid");
    side.session.set_interested(true, &mut side.out);
    side.out.clear();
    side.events.clear();
    side
}

fn ask(side: &mut Side, blocks: &[Block]) {
    for block in blocks {
        side.session.request(*block, side.now, &mut side.out);
    }
}

fn data(block: Block) -> Vec<u8> {
    let data = vec![block.piece.0 as u8; block.length as usize];
    let mut bytes = Vec::new();
    Message::Piece { piece: block.piece, begin: block.begin, data: &data }.encode(&mut bytes);
    bytes
}

/// How many of these come until it is a fault.
fn borne(side: &mut Side, blocks: impl IntoIterator<Item = Block>) -> usize {
    blocks.into_iter().take_while(|block| side.hear_bytes(&data(*block)).is_ok()).count()
}

fn blocks(pieces: std::ops::Range<u32>) -> Vec<Block> {
    pieces.map(|piece| block(piece, 0)).collect()
}

#[test]
fn what_was_asked_for_is_handed_over_as_it_comes() {
    let mut side = leech(FAST);
    let asked = block(3, 16384);
    ask(&mut side, &[asked]);
    assert_eq!(side.said(), [format!("{:?}", Message::Request(asked))]);
    for part in data(asked).chunks(5000) {
        assert!(side.events.is_empty(), "not before it is whole");
        side.hear_bytes(part).expect("asked for");
    }
    assert_eq!(side.events, [Event::Block(asked)]);
    assert_eq!(side.sink.blocks, [(asked, vec![3; 16384])]);
    assert_eq!(side.session.downloaded_bytes(), 16384);
    assert!(side.session.requests().is_some_and(Requests::is_empty));
}

#[test]
fn what_nobody_asked_for_is_unwanted() {
    for remote in [FAST, PLAIN] {
        assert_eq!(borne(&mut leech(remote), vec![block(1, 0); 100]), 15);
        let mut side = leech(remote);
        ask(&mut side, &[block(1, 0)]);
        let other = Block { length: 16383, ..block(1, 0) };
        assert_eq!(borne(&mut side, vec![other; 100]), 15, "another length is another block");
        assert!(side.sink.blocks.is_empty() && side.events.is_empty());
        let empty = Block { length: 0, ..block(1, 0) };
        assert!(borne(&mut leech(remote), vec![empty; 100_000]) < 30_000, "none is free");
    }
}

#[test]
fn what_was_taken_back_may_still_come_once() {
    let late = blocks(0..100);
    let mut side = leech(FAST);
    ask(&mut side, &late);
    late.iter().for_each(|block| side.session.cancel(*block, &mut side.out));
    assert_eq!(borne(&mut side, late.iter().copied()), 100);
    assert!(side.sink.blocks.is_empty() && side.events.is_empty());
    assert_eq!(borne(&mut side, late.iter().copied()), 15, "once");

    let mut side = leech(FAST);
    ask(&mut side, &late);
    late.iter().for_each(|block| side.session.cancel(*block, &mut side.out));
    side.now += LATE_FOR;
    assert_eq!(borne(&mut side, late.iter().copied()), 15, "not for ever");
}

#[test]
fn a_block_taken_back_while_it_comes_is_handed_over_no_more() {
    let mut side = leech(FAST);
    let asked = block(7, 0);
    ask(&mut side, &[asked]);
    let bytes = data(asked);
    side.hear_bytes(&bytes[..1000]).expect("asked for");
    side.session.cancel(asked, &mut side.out);
    ask(&mut side, &[asked]);
    side.hear_bytes(&bytes[1000..]).expect("its rest");
    assert!(side.events.is_empty() && side.sink.blocks.is_empty());
    side.hear_bytes(&bytes).expect("the second answer");
    assert_eq!(side.events, [Event::Block(asked)]);
    assert_eq!(side.sink.blocks, [(asked, vec![7; 16384])]);
}

#[test]
fn rejects_return_blocks_and_a_flood_of_them_closes() {
    let mut side = leech(FAST);
    let (a, b) = (block(0, 0), block(1, 0));
    ask(&mut side, &[a, b]);
    side.session.cancel(b, &mut side.out);
    ask(&mut side, &[b]);
    side.hear(&[a, b].map(Message::Reject)).expect("asked for");
    assert_eq!(side.events, [Event::Returned(a)], "of b the request that was taken back");
    side.hear(&[Message::Reject(b)]).expect("asked for");
    assert_eq!(side.events[1..], [Event::Returned(b)]);
    let strays = (0..9000).take_while(|_| side.hear(&[Message::Reject(a)]).is_ok()).count();
    assert_eq!(strays, 2 * PIPELINE_MAX as usize);
    assert_eq!(
        side.hear(&[Message::Reject(a)]),
        Err(Violation::RejectFlood { count: 2 * PIPELINE_MAX + 2 })
    );
}

#[test]
fn a_choke_voids_requests_where_nothing_else_would_say_so() {
    let asked = blocks(0..3);
    let mut side = leech(PLAIN);
    ask(&mut side, &asked);
    side.hear(&[Message::Choke, Message::Choke]).expect("valid");
    let returned: Vec<_> = asked.iter().copied().map(Event::Returned).collect();
    assert_eq!(side.events[0], Event::Choked);
    assert_eq!(side.events[1..], returned);
    assert!(!side.session.may_request(PieceIndex(0)));
    side.hear(&[Message::Unchoke]).expect("valid");
    ask(&mut side, &asked[..1]);
    side.events.clear();
    assert_eq!(borne(&mut side, asked.iter().copied()), 3, "they crossed the choke");
    assert_eq!(side.events, [Event::Block(asked[0])]);

    let mut side = leech(FAST);
    ask(&mut side, &asked);
    side.hear(&[Message::Choke]).expect("valid");
    assert_eq!(side.events, [Event::Choked]);
    assert_eq!(side.session.requests().map(Requests::len), Some(3));
    side.hear(&[Message::Reject(asked[1])]).expect("valid");
    assert_eq!(side.events[1..], [Event::Returned(asked[1])]);
}

#[test]
fn the_allowed_fast_set_may_be_had_while_choked() {
    let mut side = leech(FAST);
    side.hear(&[Message::Choke]).expect("valid");
    side.events.clear();
    let piece = PieceIndex(5);
    side.hear(&[Message::AllowedFast(piece), Message::AllowedFast(piece)]).expect("valid");
    assert_eq!(side.events, [Event::AllowedFast(piece)]);
    assert!(side.session.may_request(piece) && !side.session.may_request(PieceIndex(6)));
    ask(&mut side, &[block(5, 0)]);
    side.hear(&[Message::Reject(block(5, 0))]).expect("valid");
    assert!(!side.session.may_request(piece), "it had enough");
    side.events.clear();
    for piece in 0..4000 {
        side.hear(&[Message::AllowedFast(PieceIndex(piece))]).expect("valid");
    }
    assert_eq!(side.events.len(), 32);
}

#[test]
fn the_peers_queue_bounds_the_pipeline() {
    let mut side = leech(Reserved::OURS);
    assert_eq!(side.session.room(), 4);
    side.hear(&[Message::Extended { id: 0, payload: b"d4:reqqi2ee" }]).expect("valid");
    assert_eq!(side.session.room(), 2);
    ask(&mut side, &[block(0, 0)]);
    assert_eq!(side.session.room(), 1);
    let next = side.session.next_request_check().expect("one is outstanding");
    assert!(side.session.check_requests(next) && !side.session.check_requests(next));
}

#[test]
fn interest_is_said_on_change_and_keeps_the_connection() {
    let mut side = leech(FAST);
    assert!(side.session.am_interested());
    side.session.set_interested(true, &mut side.out);
    assert!(side.out.is_empty() && side.session.inactive_since().is_none());
    for _ in 0..100 {
        side.now += Duration::from_secs(60);
        side.hear(&[Message::KeepAlive]).expect("valid");
        side.session.timeout(side.now, SILENT_AFTER, &mut side.out).expect("we are interested");
    }
    side.out.clear();
    side.session.set_interested(false, &mut side.out);
    assert_eq!(side.said(), ["NotInterested"]);
    assert_eq!(side.session.inactive_since(), Some(side.now));
    side.now += INACTIVE_AFTER;
    side.hear(&[Message::KeepAlive]).expect("valid");
    let end = side.session.timeout(side.now, SILENT_AFTER, &mut side.out);
    assert_eq!(end, Err(Violation::Inactive(INACTIVE_AFTER)));
}

#[test]
fn pieces_are_told_at_once_or_one_by_one() {
    let mut side = Side::new(Reserved::OURS, |options| options.upload_only = false);
    side.hear(&[Message::Have(PieceIndex(1)), Message::Have(PieceIndex(1))]).expect("valid");
    assert_eq!(side.events, [Event::Have(PieceIndex(1))]);
    side.events.clear();
    let field = Message::Bitfield(&[0b0110_0000]);
    side.hear(&[Message::Have(PieceIndex(0)), field, field]).expect("valid");
    assert_eq!(side.events, [Event::Pieces]);
    side.hear(&[field, Message::HaveNone]).expect("nothing new");
    assert_eq!(side.events.len(), 1);
    side.hear(&[Message::HaveAll]).expect("valid");
    assert_eq!(side.events[1..], [Event::Pieces, Event::PeerComplete]);
    let mut lost = Vec::new();
    [2, 2].iter().for_each(|piece| extended::DontHave(PieceIndex(*piece)).encode(3, &mut lost));
    side.events.clear();
    side.hear_bytes(&lost).expect("valid");
    assert_eq!(side.events, [Event::DontHave(PieceIndex(2))]);
    assert_eq!(side.session.pieces().count(), 7);
    lost.clear();
    extended::DontHave(PieceIndex(8)).encode(3, &mut lost);
    assert!(side.hear_bytes(&lost).is_err());
}

#[test]
fn a_complete_session_only_uploads() {
    let mut side = leech(Reserved::OURS);
    let asked = blocks(0..40);
    ask(&mut side, &asked);
    side.hear_bytes(&data(asked[0])[..20]).expect("asked for");
    side.out.clear();
    side.session.completed(&mut side.out, &side.torrent);
    let said = side.said();
    assert_eq!(said[0], "NotInterested");
    assert_eq!(said[1], format!("{:?}", Message::Cancel(asked[0])));
    let again = "Extended 0 d1:md11:lt_donthavei3e11:ut_metadatai1ee13:metadata_sizei100e\
        4:reqqi4e11:upload_onlyi1ee";
    assert_eq!(said[41..], [again]);
    assert!(!side.session.downloads() && side.session.room() == 0);
    assert!(side.session.requests().is_none() && !side.session.may_request(PieceIndex(0)));
    side.hear_bytes(&data(asked[0])[20..]).expect("its rest");
    assert_eq!(borne(&mut side, asked[1..].iter().copied()), 39, "on their way");
    assert!(side.events.is_empty() && side.sink.blocks.is_empty());
    side.session.shrink();
    assert_eq!(side.session.held_bytes(), 0, "nothing is left of the download");
    assert_eq!(borne(&mut side, asked), 15);

    let mut side = leech(FAST);
    ask(&mut side, &[block(0, 0)]);
    side.session.completed(&mut side.out, &side.torrent);
    side.now += LATE_FOR;
    side.session.timeout(side.now, SILENT_AFTER, &mut side.out).expect("fine");
    side.session.shrink();
    assert_eq!(side.session.held_bytes(), 0, "nor when nothing came");
}

/// A magnet's session: what the peer has is heard and forgotten, the metadata is asked for.
#[test]
fn metadata_is_fetched_by_who_knows_nothing() {
    let nothing = Content { offered: Vec::new(), metadata: None };
    let mut side = Side::with(nothing, Reserved::OURS, |options| options.upload_only = false);
    let client = Options::new(FAST).client;
    let length = client.len();
    let opening = "d1:md11:lt_donthavei3e11:ut_metadatai1ee4:reqqi4e";
    let said = side.said();
    assert_eq!(said[0], format!("Extended 0 {opening}1:v{length}:{client}e"));
    assert_eq!(said[1..], ["HaveNone"]);
    let field = vec![0xff; 260_000];
    let pieces = [Message::Bitfield(&field), Message::Have(PieceIndex(9)), Message::HaveAll];
    side.hear(&pieces).expect("nobody can know better yet");
    side.session.request_metadata(0, &mut side.out);
    assert!(side.out.is_empty(), "no number to ask under");
    let payload = b"d1:md11:ut_metadatai7ee13:metadata_sizei20000ee";
    side.hear(&[Message::Extended { id: 0, payload }; 2]).expect("valid");
    assert_eq!(side.events, [Event::Introduced, Event::MetadataSize(20_000)]);
    side.events.clear();
    (0..2).for_each(|piece| side.session.request_metadata(piece, &mut side.out));
    assert_eq!(side.said()[0], "Extended 7 d8:msg_typei0e5:piecei0ee");
    let mut answers = Vec::new();
    let data = vec![b'm'; 16384];
    let answer = MetadataMessage::Data { piece: 0, total_bytes: 20_000, data: &data };
    answer.encode(1, &mut answers);
    MetadataMessage::Reject { piece: 1 }.encode(1, &mut answers);
    side.hear_bytes(&answers).expect("asked for");
    assert_eq!(side.sink.metadata, [(0, 20_000, data.clone())]);
    assert_eq!(side.events, [Event::MetadataRejected(1)]);
    let unasked = (0..100).take_while(|_| side.hear_bytes(&answers).is_ok()).count();
    assert_eq!(unasked, 15);
    assert_eq!(side.sink.metadata.len(), 1);
}

#[test]
fn a_download_that_waits_is_small() {
    let mut side = leech(FAST);
    let asked = blocks(0..2000);
    ask(&mut side, &asked);
    asked.iter().for_each(|block| side.session.cancel(*block, &mut side.out));
    ask(&mut side, &asked);
    asked.iter().for_each(|block| side.session.cancel(*block, &mut side.out));
    assert!(side.session.held_bytes() < 256 << 10, "{}", side.session.held_bytes());
    side.now += LATE_FOR;
    side.session.timeout(side.now, SILENT_AFTER, &mut side.out).expect("fine");
    side.session.shrink();
    assert!(side.session.held_bytes() <= 512, "{}", side.session.held_bytes());
}

#[test]
fn a_session_that_only_uploads_carries_no_download() {
    let mut side = Side::serving(FAST);
    assert!(!side.session.downloads() && side.session.requests().is_none());
    side.session.set_interested(true, &mut side.out);
    side.session.request(block(0, 0), T0, &mut side.out);
    side.hear(&[Message::Unchoke, Message::AllowedFast(PieceIndex(0))]).expect("valid");
    assert!(side.out.is_empty() && side.events.is_empty());
    side.session.shrink();
    assert_eq!(side.session.held_bytes(), 0);
}
