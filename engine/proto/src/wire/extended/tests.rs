use proptest::prelude::*;

use super::*;

// The example of BEP 10.
#[test]
fn reads_the_handshake_of_bep_10() {
    let said = ExtensionHandshake::parse(
        b"d1:md11:LT_metadatai1e6:\xb5T_PEXi2ee1:pi6881e1:v13:\xc2\xb5Torrent 1.2e",
    );
    let expected = ExtensionHandshake {
        client: Some(b"\xc2\xb5Torrent 1.2"),
        listen_port: Some(6881),
        ..Default::default()
    };
    assert_eq!(said, Ok(expected));
}

#[test]
fn writes_sorted_keys() {
    let mut out = Vec::new();
    ExtensionHandshake {
        ut_metadata: Some(1),
        ut_pex: Some(2),
        lt_donthave: Some(3),
        client: Some(b"seedring 0.1"),
        request_queue: Some(2000),
        your_ip: Some([10, 0, 0, 1].into()),
        upload_only: Some(true),
        metadata_bytes: Some(31235),
        listen_port: Some(6881),
    }
    .encode(&mut out);
    let payload = b"d1:md11:lt_donthavei3e11:ut_metadatai1e6:ut_pexi2ee\
        13:metadata_sizei31235e1:pi6881e4:reqqi2000e\
        11:upload_onlyi1e1:v12:seedring 0.16:yourip4:\x0a\0\0\x01e";
    assert_eq!(&out[6..], payload);
    assert_eq!(out[..6], [0, 0, 0, payload.len() as u8 + 2, 20, 0]);
}

#[test]
fn senseless_values_count_as_not_said() {
    let said = ExtensionHandshake::parse(
        b"d1:mi4e13:metadata_sizei-1e1:pi70000e4:reqqi-5e1:vi1e6:yourip3:abce",
    );
    assert_eq!(said, Ok(ExtensionHandshake::default()));
    assert!(ExtensionHandshake::parse(b"i1e").is_ok_and(|said| said.client.is_none()));
    for garbage in [&b""[..], b"d", b"hello", b"d1:v99999999999:"] {
        let parsed = ExtensionHandshake::parse(garbage);
        assert!(matches!(parsed, Err(Violation::ExtensionHandshake(_))), "{garbage:?}");
    }
}

#[test]
fn the_numbers_that_a_peer_chose() {
    let said = ExtensionHandshake::parse(
        b"d1:md11:lt_donthavei7e11:ut_metadatai2e6:ut_pexi0e11:upload_onlyi3eee",
    );
    let expected = ExtensionHandshake {
        ut_metadata: Some(2),
        ut_pex: Some(0),
        lt_donthave: Some(7),
        ..Default::default()
    };
    assert_eq!(said, Ok(expected));
    let said = ExtensionHandshake::parse(b"d1:md11:lt_donthavei256e6:ut_pexi-1eee");
    assert_eq!(said, Ok(ExtensionHandshake::default()));
}

#[test]
fn dont_have_is_a_piece_and_nothing_else() {
    let mut out = Vec::new();
    DontHave(PieceIndex(0x0102_0304)).encode(7, &mut out);
    assert_eq!(out, [0, 0, 0, 6, 20, 7, 1, 2, 3, 4]);
    assert_eq!(DontHave::parse(&out[6..]), Ok(DontHave(PieceIndex(0x0102_0304))));
    for payload in [&b""[..], b"abc", b"abcde"] {
        let length = Violation::DontHaveLength { got: payload.len() };
        assert_eq!(DontHave::parse(payload), Err(length));
    }
}

// The examples of BEP 9.
#[test]
fn metadata_messages_as_bep_9_writes_them() {
    let data = MetadataMessage::Data { piece: 0, total_bytes: 3425, data: b"xxxxxxxx" };
    let table: [(MetadataMessage<'_>, &[u8]); 3] = [
        (MetadataMessage::Request { piece: 0 }, b"d8:msg_typei0e5:piecei0ee"),
        (data, b"d8:msg_typei1e5:piecei0e10:total_sizei3425eexxxxxxxx"),
        (MetadataMessage::Reject { piece: 0 }, b"d8:msg_typei2e5:piecei0ee"),
    ];
    for (message, payload) in table {
        assert_eq!(MetadataMessage::parse(payload), Ok(Some(message)));
        let mut out = Vec::new();
        message.encode(3, &mut out);
        assert_eq!(out[3..6], [payload.len() as u8 + 2, 20, 3]);
        assert_eq!(&out[6..], payload);
    }
    assert_eq!(MetadataMessage::parse(b"d8:msg_typei7e5:piecei0ee"), Ok(None));
    assert_eq!(MetadataMessage::parse(b"d8:msg_typei0e5:piecei-1ee"), Ok(None));
    assert!(MetadataMessage::parse(b"what").is_err());
}

#[test]
fn metadata_is_cut_in_16_kib() {
    let metadata = vec![1; METADATA_PIECE_BYTES * 2 + 5];
    let lengths = [0, 1, 2].map(|piece| metadata_piece(&metadata, piece).map(<[u8]>::len));
    assert_eq!(lengths, [Some(16384), Some(16384), Some(5)]);
    assert_eq!(metadata_piece(&metadata, 3), None);
    assert_eq!(metadata_piece(&metadata, u32::MAX), None);
    assert_eq!(metadata_piece(&metadata[..16384], 1), None);
}

proptest! {
    #[test]
    fn random_payloads_never_panic(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = ExtensionHandshake::parse(&payload);
        let _ = MetadataMessage::parse(&payload);
        let _ = DontHave::parse(&payload);
    }
}
