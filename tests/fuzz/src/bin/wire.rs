//! Owns: the fuzz target of the wire format: handshake, frames, messages, extension payloads.
//! Never: expects that bytes are accepted.
//! Flow: the first byte says where the stream is cut; cut or whole, it must read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use seedring_proto::wire::extended::{ExtensionHandshake, MetadataMessage};
use seedring_proto::wire::{FrameLimits, FrameReader, Handshake, Message, Violation, piece_header};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(handshake)) = Handshake::parse(bytes) {
        assert_eq!(handshake.encode(), bytes[..Handshake::LEN]);
    }
    let Some((step, stream)) = bytes.split_first() else { return };
    for piece_data_bytes in [0, 16384] {
        let limits = FrameLimits { bitfield_bytes: 100, piece_data_bytes, extended_id: 1 };
        let whole = read(limits, stream, stream.len().max(1));
        assert_eq!(read(limits, stream, usize::from(*step).max(1)), whole);
        let streamed = read_streamed(limits, stream, stream.len().max(1));
        assert_eq!(read_streamed(limits, stream, usize::from(*step).max(1)), streamed);
        // What ends within a piece was streamed so far, and gathered not at all.
        assert!(streamed.starts_with(&whole.0));
    }
    if let Ok(said) = ExtensionHandshake::parse(stream) {
        let mut frame = Vec::new();
        said.encode(&mut frame);
        assert_eq!(ExtensionHandshake::parse(&frame[6..]), Ok(said));
    }
    if let Ok(Some(message)) = MetadataMessage::parse(stream) {
        let mut frame = Vec::new();
        message.encode(3, &mut frame);
        let again = MetadataMessage::parse(&frame[6..]);
        // Only a data message carries bytes after its head.
        assert_eq!(again, Ok(Some(message)));
    }
});

/// The messages of a stream that comes `step` bytes at a time, encoded again, and how it ended.
fn read(limits: FrameLimits, stream: &[u8], step: usize) -> (Vec<u8>, usize, Option<Violation>) {
    let mut reader = FrameReader::new(limits);
    let (mut encoded, mut skipped) = (Vec::new(), 0);
    for part in stream.chunks(step) {
        let mut input = part;
        loop {
            match reader.next(input) {
                Err(violation) => return (encoded, skipped, Some(violation)),
                Ok((used, None)) => {
                    assert_eq!(used, input.len());
                    break;
                }
                Ok((used, Some(message))) => {
                    input = &input[used..];
                    match message {
                        Message::Skipped { .. } => skipped += 1,
                        message => message.encode(&mut encoded),
                    }
                }
            }
        }
        assert!(
            reader.held_bytes() <= 2 * stream.len() + 64,
            "no memory for what was only claimed"
        );
    }
    (encoded, skipped, None)
}

/// The same with pieces in parts, whose bytes add up to the frames.
fn read_streamed(limits: FrameLimits, stream: &[u8], step: usize) -> Vec<u8> {
    let mut reader = FrameReader::new(limits);
    reader.stream_pieces(true);
    let mut encoded = Vec::new();
    for part in stream.chunks(step) {
        let mut input = part;
        loop {
            let Ok((used, message)) = reader.next(input) else { return encoded };
            input = &input[used..];
            let Some(message) = message else { break };
            match message {
                Message::Skipped { .. } => {}
                Message::PieceBegin(block) => encoded.extend_from_slice(&piece_header(block)),
                Message::PieceData(data) => encoded.extend_from_slice(data),
                message => message.encode(&mut encoded),
            }
        }
        assert!(reader.held_bytes() <= 2 * stream.len() + 64);
    }
    encoded
}
