use proptest::prelude::*;

use super::*;
use crate::units::{Block, PieceIndex};

const LIMITS: FrameLimits =
    FrameLimits { bitfield_bytes: 4, piece_data_bytes: 16384, extended_id: 1 };
const SEEDING: FrameLimits = FrameLimits { piece_data_bytes: 0, ..LIMITS };

/// Messages of a stream given in parts that end at `cuts`, printed; the last one is the fault.
fn read(limits: FrameLimits, stream: &[u8], cuts: &[usize]) -> Vec<String> {
    let mut reader = FrameReader::new(limits);
    let mut seen = Vec::new();
    let mut start = 0;
    for end in cuts.iter().copied().chain([stream.len()]) {
        let mut input = &stream[start..end];
        start = end;
        loop {
            match reader.next(input) {
                Ok((used, Some(message))) => {
                    seen.push(format!("{message:?}"));
                    input = &input[used..];
                }
                Ok((used, None)) => {
                    assert_eq!(used, input.len(), "without a message all bytes are used");
                    break;
                }
                Err(violation) => {
                    seen.push(format!("{violation:?}"));
                    return seen;
                }
            }
        }
    }
    seen
}

fn stream() -> Vec<u8> {
    let block = Block { piece: PieceIndex(3), begin: 16384, length: 16384 };
    let mut out = Vec::new();
    for message in [
        Message::Extended { id: 0, payload: b"d1:v4:teste" },
        Message::Bitfield(&[1, 2, 3, 4]),
        Message::KeepAlive,
        Message::Request(block),
        Message::Request(block),
        Message::Piece { piece: PieceIndex(1), begin: 0, data: b"unasked" },
        Message::Extended { id: 9, payload: b"another's" },
        Message::Cancel(block),
        Message::Port(1),
    ] {
        message.encode(&mut out);
    }
    out.extend_from_slice(b"\0\0\0\x03\xc8\x01\x02");
    Message::HaveAll.encode(&mut out);
    out
}

#[test]
fn a_whole_stream_comes_out_in_order() {
    let seen = read(SEEDING, &stream(), &[]);
    assert_eq!(seen.len(), 11);
    assert_eq!(seen[5], "Skipped { id: 7, length: 16 }");
    assert_eq!(seen[6], "Skipped { id: 20, length: 11 }");
    assert_eq!(seen[9], "Skipped { id: 200, length: 3 }");
    assert_eq!(seen[10], "HaveAll");
    assert!(read(LIMITS, &stream(), &[])[5].starts_with("Piece"));
}

#[test]
fn every_single_cut_and_single_bytes_give_the_same() {
    let stream = stream();
    for limits in [LIMITS, SEEDING] {
        let whole = read(limits, &stream, &[]);
        for cut in 0..=stream.len() {
            assert_eq!(read(limits, &stream, &[cut]), whole, "cut at {cut}");
        }
        let all: Vec<usize> = (0..stream.len()).collect();
        assert_eq!(read(limits, &stream, &all), whole);
    }
}

#[test]
fn lengths_are_refused_before_their_bytes_come() {
    let cases: [(&[u8], Violation); 5] = [
        (b"\x00\x10\x00\x01", Violation::FrameLength((1 << 20) + 1)),
        (b"\x7f\xff\xff\xff", Violation::FrameLength(0x7fff_ffff)),
        (b"\0\0\0\x06\x05", Violation::FrameTooLong { id: 5, length: 6, max: 5 }),
        (b"\0\x01\0\x01\x14\x01", Violation::FrameTooLong { id: 20, length: 65537, max: 65536 }),
        (b"\0\0\0\x0e\x06", Violation::MessageLength { id: 6, length: 14 }),
    ];
    for (bytes, violation) in cases {
        let mut reader = FrameReader::new(LIMITS);
        assert_eq!(reader.next(&bytes[..bytes.len() - 1]).map(|(_, message)| message), Ok(None));
        assert_eq!(reader.next(&bytes[bytes.len() - 1..]), Err(violation));
    }
    let piece = (16384u32 + 10).to_be_bytes();
    let mut reader = FrameReader::new(LIMITS);
    let too_long = Violation::FrameTooLong { id: 7, length: 16394, max: 16393 };
    assert_eq!(reader.next(&[piece.as_slice(), &[7]].concat()), Err(too_long));
}

#[test]
fn a_bitfield_by_piece_count_may_pass_a_mebibyte() {
    let limits = FrameLimits { bitfield_bytes: 2 << 20, ..LIMITS };
    let mut bytes = Vec::new();
    Message::Bitfield(&vec![0xff; 2 << 20]).encode(&mut bytes);
    assert_eq!(read(limits, &bytes, &[70_000]).len(), 1);
}

#[test]
fn a_claimed_length_holds_no_memory() {
    let mut reader = FrameReader::new(LIMITS);
    let (_, message) = reader.next(b"\0\x01\0\0\x14\0").expect("within the limit");
    assert_eq!(message, None);
    assert!(reader.mid_frame());
    assert_eq!(reader.held_bytes(), KEPT_BYTES);
    let filler = vec![b'x'; 65536 - 2];
    let (used, message) = reader.next(&filler).expect("the rest");
    assert_eq!(used, filler.len());
    assert!(
        matches!(message, Some(Message::Extended { id: 0, payload }) if payload.len() == 65534)
    );
    assert!(matches!(reader.next(b""), Ok((0, None))));
    assert_eq!(reader.held_bytes(), KEPT_BYTES, "given back");
    assert!(!reader.mid_frame());
    reader.shrink();
    assert_eq!(reader.held_bytes(), 0);
}

#[test]
fn between_frames_nothing_is_held_and_within_one_all_of_it() {
    let mut reader = FrameReader::new(LIMITS);
    assert!(matches!(reader.next(b"\0\0\0\x05\x04\0\0\0\x07"), Ok((9, Some(_)))));
    assert!(matches!(reader.next(b""), Ok((0, None))));
    assert_eq!(reader.held_bytes(), 0, "a frame that came whole");
    assert_eq!(reader.next(b"\0\0\0\x05\x04\0"), Ok((6, None)));
    reader.shrink();
    assert!(reader.mid_frame());
    let have = Message::Have(crate::units::PieceIndex(9));
    assert_eq!(reader.next(b"\0\0\x09"), Ok((3, Some(have))));
    reader.shrink();
    assert!(!reader.mid_frame() && reader.held_bytes() == 0, "given out, then given back");
    assert_eq!(reader.next(b"\0\0\0\x05\x04\0\0\0\x09"), Ok((9, Some(have))));
}

/// As `read`, with pieces streamed and put together again; parts of data are not told apart.
fn read_streamed(limits: FrameLimits, stream: &[u8], cuts: &[usize]) -> Vec<String> {
    let mut reader = FrameReader::new(limits);
    reader.stream_pieces(true);
    let (mut seen, mut piece): (Vec<String>, Option<(Block, Vec<u8>)>) = (Vec::new(), None);
    let mut start = 0;
    for end in cuts.iter().copied().chain([stream.len()]) {
        let mut input = &stream[start..end];
        start = end;
        loop {
            match reader.next(input) {
                Ok((used, Some(message))) => {
                    match message {
                        Message::PieceBegin(block) => {
                            assert!(piece.is_none(), "one at a time");
                            piece = Some((block, Vec::new()));
                        }
                        Message::PieceData(part) => {
                            assert!(!part.is_empty());
                            assert!(input.as_ptr_range().contains(&part.as_ptr()), "not copied");
                            piece.as_mut().expect("begun").1.extend_from_slice(part);
                        }
                        message => seen.push(format!("{message:?}")),
                    }
                    input = &input[used..];
                    if let Some((Block { piece, begin, .. }, data)) =
                        piece.take_if(|(block, data)| block.length as usize == data.len())
                    {
                        let data = &data[..];
                        seen.push(format!("{:?}", Message::Piece { piece, begin, data }));
                    }
                    assert!(piece.is_none() || reader.mid_frame());
                }
                Ok((used, None)) => {
                    assert_eq!(used, input.len(), "without a message all bytes are used");
                    break;
                }
                Err(violation) => {
                    seen.push(format!("{violation:?}"));
                    return seen;
                }
            }
        }
        assert!(reader.held_bytes() <= stream.len() + KEPT_BYTES);
    }
    seen
}

#[test]
fn streamed_pieces_are_the_same_pieces_at_every_cut() {
    let stream = stream();
    for limits in [LIMITS, SEEDING] {
        let whole = read(limits, &stream, &[]);
        for cut in 0..=stream.len() {
            assert_eq!(read_streamed(limits, &stream, &[cut]), whole, "cut at {cut}");
        }
        let all: Vec<usize> = (0..stream.len()).collect();
        assert_eq!(read_streamed(limits, &stream, &all), whole);
    }
}

#[test]
fn a_streamed_piece_is_not_kept() {
    let data = vec![7; 16384];
    let mut bytes = Vec::new();
    Message::Piece { piece: PieceIndex(1), begin: 0, data: &data }.encode(&mut bytes);
    let mut reader = FrameReader::new(LIMITS);
    reader.stream_pieces(true);
    let block = Block { piece: PieceIndex(1), begin: 0, length: 16384 };
    assert_eq!(reader.next(&bytes), Ok((13, Some(Message::PieceBegin(block)))));
    assert_eq!(reader.next(&bytes[13..14]), Ok((1, Some(Message::PieceData(&[7])))));
    assert_eq!(reader.next(&[]), Ok((0, None)));
    assert!(reader.mid_frame());
    reader.stream_pieces(false);
    let (used, message) = reader.next(&bytes[14..]).expect("what began goes on");
    assert_eq!((used, message), (16383, Some(Message::PieceData(&data[1..]))));
    assert!(!reader.mid_frame() && reader.held_bytes() == 0);
    let (_, gathered) = reader.next(&bytes).expect("valid");
    assert!(matches!(gathered, Some(Message::Piece { .. })), "off from the next on");
    reader.stream_pieces(true);
    let empty = Block { piece: PieceIndex(2), begin: 5, length: 0 };
    assert_eq!(
        reader.next(b"\0\0\0\x09\x07\0\0\0\x02\0\0\0\x05"),
        Ok((13, Some(Message::PieceBegin(empty))))
    );
    assert!(!reader.mid_frame(), "no data follows");
    let too_long = Violation::FrameTooLong { id: 7, length: 16394, max: 16393 };
    assert_eq!(reader.next(b"\0\0\x40\x0a\x07"), Err(too_long));
}

proptest! {
    #[test]
    fn any_bytes_any_cuts_the_same_outcome(
        stream in prop::collection::vec(prop_oneof![Just(0u8), 0..22u8, any::<u8>()], 0..200),
        mut cuts in prop::collection::vec(0..200usize, 0..12),
    ) {
        cuts.iter_mut().for_each(|cut| *cut = (*cut).min(stream.len()));
        cuts.sort_unstable();
        prop_assert_eq!(read(SEEDING, &stream, &cuts), read(SEEDING, &stream, &[]));
        let whole = read_streamed(LIMITS, &stream, &[]);
        prop_assert_eq!(read_streamed(LIMITS, &stream, &cuts), whole);
    }

    #[test]
    fn pieces_streamed_at_any_cut_are_the_pieces_gathered(
        pieces in prop::collection::vec((0..9u32, 0..9u32, 0..400usize, any::<bool>()), 0..8),
        mut cuts in prop::collection::vec(0..3000usize, 0..30),
    ) {
        let mut stream = Vec::new();
        for (piece, begin, length, have) in pieces {
            let data: Vec<u8> = (0..length).map(|at| at as u8).collect();
            Message::Piece { piece: PieceIndex(piece), begin, data: &data }.encode(&mut stream);
            if have {
                Message::Have(PieceIndex(piece)).encode(&mut stream);
            }
        }
        cuts.iter_mut().for_each(|cut| *cut = (*cut).min(stream.len()));
        cuts.sort_unstable();
        prop_assert_eq!(read_streamed(LIMITS, &stream, &cuts), read(LIMITS, &stream, &[]));
    }
}
