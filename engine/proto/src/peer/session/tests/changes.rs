//! Owns: what a session says when what we have, or want, changes. Never: how it came to change.
//! Flow: test only.

use super::*;
use crate::wire::extended;

#[test]
fn a_lost_piece_is_told_to_those_who_take_it() {
    let takes = Message::Extended { id: 0, payload: b"d1:md11:lt_donthavei9eee" };
    let other = Message::Extended { id: 0, payload: b"d1:md11:ut_metadatai9eee" };
    let off = Message::Extended { id: 0, payload: b"d1:md11:lt_donthavei0eee" };
    for (said, told) in [(&[takes][..], true), (&[other], false), (&[takes, off], false)] {
        let mut side = Side::serving(Reserved::OURS);
        side.hear(said).expect("valid");
        side.hear(&[2, 3].map(|piece| Message::Request(block(piece, 0)))).expect("offered");
        side.out.clear();
        side.session.dont_have(PieceIndex(3), &mut side.out);
        let mut expected = Vec::new();
        Message::Reject(block(3, 0)).encode(&mut expected);
        if told {
            extended::DontHave(PieceIndex(3)).encode(9, &mut expected);
        }
        assert_eq!(side.out, expected);
        assert_eq!(side.queued(), [block(2, 0)]);
    }
}

#[test]
fn have_is_said_to_those_who_lack_the_piece() {
    let mut side = Side::serving(FAST);
    side.hear(&[Message::Have(PieceIndex(3))]).expect("valid");
    [2, 3].iter().for_each(|piece| side.session.have(PieceIndex(*piece), &mut side.out));
    assert_eq!(side.said(), [format!("{:?}", Message::Have(PieceIndex(2)))]);
    side.hear(&[Message::HaveAll]).expect("valid");
    side.session.have(PieceIndex(4), &mut side.out);
    assert!(side.out.is_empty());
}

#[test]
fn who_wanted_nothing_may_want_something_again() {
    // One that was opened while nothing was wanted, and one that came to want nothing.
    for opened_so in [true, false] {
        let torrent = Content { offered: vec![false; 8], metadata: Some(vec![1; 100]) };
        let mut side =
            Side::with(torrent, Reserved::OURS, |options| options.upload_only = opened_so);
        side.hear(&[Message::HaveAll, Message::Unchoke]).expect("valid");
        if !opened_so {
            side.session.completed(&mut side.out, &side.torrent);
        }
        side.out.clear();
        side.events.clear();
        side.session.request(block(1, 0), side.now, &mut side.out);
        assert!(side.out.is_empty() && !side.session.downloads());

        side.session.wants_again(side.now, &side.torrent, &mut side.out);
        side.session.set_interested(true, &mut side.out);
        side.session.request(block(1, 0), side.now, &mut side.out);
        let said = side.said();
        assert!(said[0].ends_with("11:upload_onlyi0ee"), "{said:?}");
        assert_eq!(
            said[1..],
            ["Interested".into(), format!("{:?}", Message::Request(block(1, 0)))]
        );
        let mut bytes = Vec::new();
        Message::Piece { piece: PieceIndex(1), begin: 0, data: &[7; 16384] }.encode(&mut bytes);
        side.hear_bytes(&bytes).expect("asked for");
        assert_eq!(side.events, [Event::Block(block(1, 0))]);
        side.session.wants_again(side.now, &side.torrent, &mut side.out);
        assert!(side.out.is_empty(), "said once");
    }
}

#[test]
fn a_seed_that_hides_says_nothing_of_itself_and_hears_what_the_peer_has() {
    let nothing = Content { offered: vec![false; 8], metadata: Some(vec![1; 100]) };
    let mut side = Side::with(nothing, Reserved::OURS, |options| options.hides = true);
    let said = side.said();
    assert!(!said[0].contains("upload_only"), "{said:?}");
    assert_eq!(said[1..], ["HaveNone"]);
    side.hear(&[Message::Bitfield(&[0x80]), Message::Have(PieceIndex(3))]).expect("valid");
    assert_eq!(side.events, [Event::Pieces]);
    side.hear(&[Message::Have(PieceIndex(4))]).expect("valid");
    assert_eq!(side.events[1..], [Event::Have(PieceIndex(4))]);
}

#[test]
fn who_gives_nothing_for_a_minute_while_we_want_something_is_owed_nothing() {
    let mut side = Side::new(FAST, |options| options.upload_only = false);
    side.hear(&[Message::HaveAll]).expect("valid");
    side.now += Duration::from_secs(1000);
    side.hear(&[Message::KeepAlive]).expect("valid");
    assert!(!side.session.gives_nothing(side.now), "we want nothing of it");
    side.session.set_interested(true, &mut side.out);
    side.now += Duration::from_secs(59);
    assert!(!side.session.gives_nothing(side.now));
    side.now += Duration::from_secs(1);
    assert!(side.session.gives_nothing(side.now), "it chokes us for a minute");
    side.hear(&[Message::Unchoke]).expect("valid");
    side.session.request(block(1, 0), side.now, &mut side.out);
    let mut bytes = Vec::new();
    Message::Piece { piece: PieceIndex(1), begin: 0, data: &[7; 16384] }.encode(&mut bytes);
    side.hear_bytes(&bytes).expect("asked for");
    assert!(!side.session.gives_nothing(side.now + Duration::from_secs(59)));
    assert!(side.session.gives_nothing(side.now + Duration::from_secs(60)));
    side.session.set_interested(false, &mut side.out);
    assert!(!side.session.gives_nothing(side.now + Duration::from_secs(600)));
}
