//! Owns: when a session offers peer exchange, says something and takes something.
//! Never: what books hold; `peer/pex` has its own tests. Flow: test only.

use std::net::SocketAddr;

use super::*;
use crate::peer::pex::Book;
use crate::wire::extended::{ExtensionHandshake, UT_PEX};
use crate::wire::pex::{Flags, PexMessage};

const REMOTE: SocketAddr =
    SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::new(1, 1, 1, 1), 5000));
/// A peer's extension handshake with a number for ut_pex.
const WANTS: Message<'static> = Message::Extended { id: 0, payload: b"d1:md6:ut_pexi9eee" };
const TOLD: Message<'static> = Message::Extended { id: UT_PEX, payload: b"d5:added0:e" };

/// What the session's extension handshakes say of ut_pex, in turn.
fn offered(out: &[u8]) -> Vec<Option<u8>> {
    let limits = FrameLimits { bitfield_bytes: 1, piece_data_bytes: 0, extended_id: 0 };
    let (mut reader, mut rest, mut said) = (FrameReader::new(limits), out, Vec::new());
    while !rest.is_empty() {
        let (used, message) = reader.next(rest).expect("our own");
        rest = &rest[used..];
        if let Some(Message::Extended { id: 0, payload }) = message {
            said.push(ExtensionHandshake::parse(payload).expect("our own").ut_pex);
        }
    }
    said
}

fn side(exchange: bool, upload_only: bool) -> Side {
    Side::new(Reserved::OURS, |options| {
        (options.exchange, options.upload_only) = (exchange, upload_only);
    })
}

fn tell(side: &mut Side, book: Option<&Book>) -> Option<PexMessage> {
    side.out.clear();
    side.session.tell_contacts(book, REMOTE.ip(), Some(REMOTE), side.now, &mut side.out);
    let payload = side.out.get(6..)?;
    assert_eq!(side.out[4..6], [20, 9], "under the peer's number");
    Some(PexMessage::parse(payload, REMOTE.ip()).expect("our own"))
}

#[test]
fn offered_where_it_may_be() {
    for upload_only in [true, false] {
        assert_eq!(offered(&side(true, upload_only).out), [Some(UT_PEX)]);
        assert_eq!(offered(&side(false, upload_only).out), [None]);
    }
    let mut done = side(true, false);
    done.out.clear();
    done.session.completed(&mut done.out, &done.torrent);
    assert_eq!(offered(&done.out), [Some(UT_PEX)], "what is left out counts as switched off");
}

#[test]
fn of_a_private_torrent_nothing_is_offered_said_or_taken() {
    struct Private(Content);
    impl Torrent for Private {
        fn info_hash(&self) -> InfoHash {
            self.0.info_hash()
        }
        fn piece_count(&self) -> u32 {
            self.0.piece_count()
        }
        fn piece_length(&self, piece: PieceIndex) -> u32 {
            self.0.piece_length(piece)
        }
        fn offered(&self, piece: PieceIndex) -> bool {
            self.0.offered(piece)
        }
        fn offers_all(&self) -> bool {
            self.0.offers_all()
        }
        fn metadata(&self) -> Option<&[u8]> {
            self.0.metadata()
        }
        fn private(&self) -> bool {
            true
        }
    }
    for upload_only in [true, false] {
        let mut private = side(true, upload_only);
        let options = Options { exchange: true, upload_only, ..Options::new(Reserved::OURS) };
        private.out.clear();
        let torrent = Private(Content::whole());
        private.session = Session::open(&options, &torrent, T0, 1, &mut private.out);
        assert_eq!(offered(&private.out), [None]);
        private.hear(&[WANTS, TOLD]).expect("borne");
        assert_eq!(private.session.next_exchange(), None);
        assert!(private.sink.contacts.is_empty());
        let mut book = Book::default();
        book.joined(([2, 2, 2, 2], 1).into(), Flags::default());
        private.now += Duration::from_secs(100);
        assert_eq!(tell(&mut private, Some(&book)), None);
    }
}

#[test]
fn told_when_the_peer_wants_it_once_a_minute() {
    let mut side = side(true, true);
    let mut book = Book::default();
    book.joined(([2, 2, 2, 2], 1).into(), Flags::OUTGOING);
    book.joined(REMOTE, Flags::default());
    side.now += Duration::from_secs(300);
    assert_eq!(side.session.next_exchange(), None);
    assert_eq!(tell(&mut side, Some(&book)), None, "it has not said that it wants it");
    side.hear(&[WANTS]).expect("valid");
    assert!(side.events.contains(&Event::Introduced));
    assert_eq!(side.session.next_exchange(), Some(side.now + Duration::from_secs(5)));
    assert_eq!(tell(&mut side, Some(&book)), None, "too early");
    side.now += Duration::from_secs(5);
    let message = tell(&mut side, Some(&book)).expect("due");
    assert_eq!(message.added.len(), 1, "not of itself");
    assert_eq!(message.added[0].flags, Flags::OUTGOING);
    // Saying it again brings nothing forward; 0 switches it off.
    side.hear(&[WANTS]).expect("valid");
    assert_eq!(side.session.next_exchange(), Some(side.now + Duration::from_secs(60)));
    side.now += Duration::from_secs(60);
    assert_eq!(tell(&mut side, None), None);
    assert_eq!(side.session.next_exchange(), Some(side.now + Duration::from_secs(60)));
    let off = Message::Extended { id: 0, payload: b"d1:md6:ut_pexi0eee" };
    side.hear(&[off]).expect("valid");
    assert_eq!(side.session.next_exchange(), None);
}

#[test]
fn taken_once_a_minute_and_a_flood_closes() {
    for upload_only in [true, false] {
        let mut side = side(true, upload_only);
        side.hear(&[TOLD, TOLD, TOLD]).expect("borne");
        assert_eq!(side.sink.contacts, [b"d5:added0:e", b"d5:added0:e"], "one before its time");
        let flood = (0..99).find_map(|_| side.hear(&[TOLD]).err());
        assert_eq!(flood, Some(Violation::PexFlood { ignored: 11 }));
    }
    // Where it was not offered it is as unwanted as any other message.
    let mut side = side(false, false);
    side.hear(&[TOLD; 50]).expect("borne");
    assert!(side.sink.contacts.is_empty());
}
