//! Owns: one case for each fault of a peer. Never: checks what valid peers get. Flow: test only.

use super::*;

fn fault(remote: Reserved, messages: &[Message<'_>]) -> Violation {
    Side::serving(remote).hear(messages).expect_err("a fault")
}

#[test]
fn requests_out_of_bounds() {
    let request = |piece, begin, length| {
        let block = Block { piece: PieceIndex(piece), begin, length };
        [FAST, PLAIN].map(|remote| Side::serving(remote).hear(&[Message::Request(block)]))
    };
    let both = |fault| [Err(fault), Err(fault)];
    let outside = Violation::PieceOutOfRange { piece: PieceIndex(8), count: 8 };
    assert_eq!(request(8, 0, 16384), both(outside));
    assert_eq!(request(0, 0, 0), both(Violation::RequestEmpty(PieceIndex(0))));
    let long = Violation::RequestTooLong { length: 131_073, max: 131_072 };
    assert_eq!(request(0, 0, 131_073), both(long));
    for (piece, begin, length) in
        [(0, 65535, 2), (0, 65536, 1), (0, u32::MAX, 1), (7, 0, 6), (7, 4, 2), (0, 1, 65536)]
    {
        let past = Violation::RequestPastEnd(Block { piece: PieceIndex(piece), begin, length });
        assert_eq!(request(piece, begin, length), both(past));
    }
    for (piece, begin, length) in [(0, 65535, 1), (0, 0, 65536), (7, 0, 5), (7, 4, 1)] {
        assert_eq!(request(piece, begin, length), [Ok(()), Ok(())]);
    }
}

#[test]
fn a_piece_that_was_never_offered() {
    for (remote, expected) in
        [(FAST, Ok(())), (PLAIN, Err(Violation::RequestNotOffered(PieceIndex(2))))]
    {
        let mut side = Side::serving(remote);
        side.torrent.offered[2] = false;
        assert_eq!(side.hear(&[Message::Request(block(2, 0))]), expected);
        assert!(side.queued().is_empty());
    }
}

#[test]
fn messages_of_extensions_that_were_not_negotiated() {
    let piece = PieceIndex(0);
    let cases = [
        (Message::HaveAll, 14),
        (Message::HaveNone, 15),
        (Message::Suggest(piece), 13),
        (Message::AllowedFast(piece), 17),
        (Message::Reject(block(0, 0)), 16),
    ];
    for (message, id) in cases {
        assert_eq!(fault(PLAIN, &[message]), Violation::FastNotNegotiated(id));
        assert_eq!(Side::serving(FAST).hear(&[message]), Ok(()));
    }
    let handshake = Message::Extended { id: 0, payload: b"de" };
    assert_eq!(fault(FAST, &[handshake]), Violation::ExtendedNotNegotiated);
}

#[test]
fn pieces_said_wrongly() {
    let length = Violation::FrameTooLong { id: 5, length: 3, max: 2 };
    assert_eq!(fault(FAST, &[Message::Bitfield(&[0, 0])]), length);
    let short = Violation::BitfieldLength { got: 0, expected: 1 };
    assert_eq!(fault(FAST, &[Message::Bitfield(&[])]), short);
    let outside = Violation::PieceOutOfRange { piece: PieceIndex(8), count: 8 };
    assert_eq!(fault(FAST, &[Message::Have(PieceIndex(8))]), outside);
    let mut nine = Content::whole();
    nine.offered.push(true);
    let mut side = Side::with(nine, FAST, |_| {});
    assert_eq!(side.hear(&[Message::Bitfield(&[0, 1])]), Err(Violation::BitfieldSpareBits));
}

#[test]
fn data_that_nobody_asked_for() {
    let data = vec![0; 16384];
    let piece = Message::Piece { piece: PieceIndex(0), begin: 0, data: &data };
    let mut side = Side::serving(FAST);
    let borne = (0..100).take_while(|_| side.hear(&[piece]).is_ok()).count();
    assert_eq!(borne, 15, "256 KiB, then closed");
    // A stray one now and then is no fault.
    let mut side = Side::serving(FAST);
    for _ in 0..100 {
        side.now += Duration::from_secs(300);
        side.hear(&[piece]).expect("few a span");
    }
    let unknown = Message::Extended { id: 99, payload: &data };
    let mut side = Side::serving(Reserved::OURS);
    assert_eq!((0..100).take_while(|_| side.hear(&[unknown]).is_ok()).count(), 15);
}

#[test]
fn extension_messages_that_are_not_bencode() {
    let handshake = Message::Extended { id: 0, payload: b"nonsense" };
    let metadata = Message::Extended { id: 1, payload: b"nonsense" };
    let faults = [handshake, metadata].map(|message| fault(Reserved::OURS, &[message]));
    assert!(matches!(faults[0], Violation::ExtensionHandshake(_)));
    assert!(matches!(faults[1], Violation::MetadataMessage(_)));
}

#[test]
fn silence_is_not_broken_by_half_a_message() {
    let mut side = Side::new(FAST, |_| {});
    let mut frame = Vec::new();
    Message::Bitfield(&[0]).encode(&mut frame);
    let mut outcome = Ok(None);
    for byte in frame {
        side.now += Duration::from_secs(50);
        side.hear_bytes(&[byte]).expect("valid so far");
        outcome = side.session.timeout(side.now, SILENT_AFTER, &mut side.out);
        if outcome.is_err() {
            break;
        }
    }
    assert_eq!(outcome, Err(Violation::Silent(SILENT_AFTER)));
}
