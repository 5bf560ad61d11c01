use proptest::prelude::*;

use super::*;

const BLOCK: Block = Block { piece: PieceIndex(1), begin: 0x0002_0000, length: 0x4000 };

// Bytes written by hand from the tables of BEP 3, BEP 5, BEP 6 and BEP 10.
#[test]
fn encodes_as_the_beps_say() {
    let table: [(Message<'_>, &[u8]); 17] = [
        (Message::KeepAlive, b"\0\0\0\0"),
        (Message::Choke, b"\0\0\0\x01\x00"),
        (Message::Unchoke, b"\0\0\0\x01\x01"),
        (Message::Interested, b"\0\0\0\x01\x02"),
        (Message::NotInterested, b"\0\0\0\x01\x03"),
        (Message::Have(PieceIndex(0x0102_0304)), b"\0\0\0\x05\x04\x01\x02\x03\x04"),
        (Message::Bitfield(&[0xf0, 0x80]), b"\0\0\0\x03\x05\xf0\x80"),
        (Message::Request(BLOCK), b"\0\0\0\x0d\x06\0\0\0\x01\0\x02\0\0\0\0\x40\0"),
        (
            Message::Piece { piece: PieceIndex(1), begin: 0x4000, data: b"xy" },
            b"\0\0\0\x0b\x07\0\0\0\x01\0\0\x40\0xy",
        ),
        (Message::Cancel(BLOCK), b"\0\0\0\x0d\x08\0\0\0\x01\0\x02\0\0\0\0\x40\0"),
        (Message::Port(6881), b"\0\0\0\x03\x09\x1a\xe1"),
        (Message::Suggest(PieceIndex(7)), b"\0\0\0\x05\x0d\0\0\0\x07"),
        (Message::HaveAll, b"\0\0\0\x01\x0e"),
        (Message::HaveNone, b"\0\0\0\x01\x0f"),
        (Message::Reject(BLOCK), b"\0\0\0\x0d\x10\0\0\0\x01\0\x02\0\0\0\0\x40\0"),
        (Message::AllowedFast(PieceIndex(9)), b"\0\0\0\x05\x11\0\0\0\x09"),
        (Message::Extended { id: 0, payload: b"de" }, b"\0\0\0\x04\x14\x00de"),
    ];
    for (message, bytes) in table {
        let mut out = Vec::new();
        message.encode(&mut out);
        assert_eq!(out, bytes, "{message:?}");
        assert_eq!(Message::parse(&bytes[4..]), Ok(message));
    }
}

#[test]
fn piece_header_is_the_front_of_a_piece_message() {
    let data = [3; 5];
    let block = Block { piece: PieceIndex(8), begin: 16, length: 5 };
    let mut out = Vec::new();
    Message::Piece { piece: block.piece, begin: block.begin, data: &data }.encode(&mut out);
    assert_eq!(out[..13], piece_header(block));
}

#[test]
fn a_wrong_length_is_a_violation() {
    for (id, right) in
        [(0, 1), (3, 1), (4, 5), (6, 13), (8, 13), (9, 3), (14, 1), (16, 13), (17, 5)]
    {
        for length in 1..20u32 {
            let mut frame = vec![0; length as usize];
            frame[0] = id;
            let expected =
                if length == right { Ok(()) } else { Err(Violation::MessageLength { id, length }) };
            assert_eq!(Message::parse(&frame).map(|_| ()), expected);
        }
    }
    assert!(Message::parse(&[id::PIECE, 0, 0, 0, 0, 0, 0, 0]).is_err());
    assert!(Message::parse(&[id::EXTENDED]).is_err());
}

proptest! {
    #[test]
    fn what_parses_encodes_to_the_same(frame in prop::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(message) = Message::parse(&frame)
            && !matches!(message, Message::Skipped { .. })
        {
            let mut out = Vec::new();
            message.encode(&mut out);
            prop_assert_eq!(&out[4..], &frame[..]);
            prop_assert_eq!(&out[..4], &(frame.len() as u32).to_be_bytes()[..]);
        }
    }
}
