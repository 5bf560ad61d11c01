use proptest::prelude::*;

use super::*;

const TELLER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(9, 9, 9, 9));

fn address(text: &str) -> SocketAddr {
    text.parse().expect(text)
}

fn contact(text: &str, flags: u8) -> Contact {
    Contact { address: address(text), flags: Flags(flags) }
}

#[test]
fn both_families_with_flags_to_the_byte() {
    let message = PexMessage {
        added: vec![contact("[2001:db8::1]:3", 0x12), contact("1.2.3.4:258", 0x0d)],
        dropped: vec![address("5.6.7.8:9"), address("[2001:db8::2]:4")],
    };
    let mut out = Vec::new();
    message.encode(7, &mut out);
    let expected = b"d5:added6:\x01\x02\x03\x04\x01\x027:added.f1:\x0d\
        6:added618:\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\0\x038:added6.f1:\x12\
        7:dropped6:\x05\x06\x07\x08\0\x098:dropped618:\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x02\
        \0\x04e";
    assert_eq!(out[..6], [0, 0, 0, expected.len() as u8 + 2, 20, 7]);
    assert_eq!(&out[6..], expected);
    let read = PexMessage::parse(expected, TELLER).expect("valid");
    assert_eq!(read.added, [contact("1.2.3.4:258", 0x0d), contact("[2001:db8::1]:3", 0x12)]);
    assert_eq!(read.dropped, message.dropped);
    let flags = read.added[0].flags;
    assert!(flags.has(Flags::ENCRYPTION.with(Flags::UTP).with(Flags::HOLEPUNCH)));
    assert!(!flags.has(Flags::SEED) && !flags.has(Flags::OUTGOING));
}

#[test]
fn what_clients_get_wrong_is_forgiven() {
    let parse = |payload: &[u8]| PexMessage::parse(payload, TELLER).expect("bencode");
    assert!(parse(b"de").is_empty());
    assert!(parse(b"le").is_empty());
    assert!(parse(b"d5:addedi1e7:droppedlee").is_empty());
    // A byte too many, a flag too few, another value after the dictionary.
    let read = parse(b"d5:added13:\x01\x01\x01\x01\0\x01\x02\x02\x02\x02\0\x02x7:added.f1:\x02eee");
    assert_eq!(read.added, [contact("1.1.1.1:1", 2), contact("2.2.2.2:2", 0)]);
    let garbage = PexMessage::parse(b"d5:added", TELLER);
    assert!(matches!(garbage, Err(Violation::PexMessage(_))));
}

#[test]
fn senseless_addresses_and_doubles_are_left_out() {
    let mut listed = Vec::new();
    for text in
        ["1.1.1.1:0", "0.0.0.0:1", "224.0.0.1:1", "127.0.0.1:1", "255.255.255.255:1", "1.1.1.1:5"]
    {
        push_compact(address(text), &mut listed);
    }
    push_compact(address("1.1.1.1:5"), &mut listed);
    let mut mapped = Vec::new();
    for text in ["[::ffff:1.1.1.1]:5", "[::1]:5", "[ff02::1]:5", "[fe80::1]:5", "[2001::1]:5"] {
        push_compact(address(text), &mut mapped);
    }
    let mut payload = Vec::new();
    let mut dict = Encoder::new(&mut payload);
    dict.begin_dict().key("added").bytes(&listed).key("added6").bytes(&mapped);
    dict.key("dropped").bytes(&listed).key("dropped6").bytes(&mapped).end();
    let read = PexMessage::parse(&payload, TELLER).expect("valid");
    assert_eq!(read.added, [contact("1.1.1.1:5", 0), contact("[2001::1]:5", 0)]);
    assert_eq!(read.dropped, [address("1.1.1.1:5"), address("[2001::1]:5")]);
    let neighbour = PexMessage::parse(&payload, [127, 0, 0, 1].into()).expect("valid");
    assert!(neighbour.dropped.contains(&address("127.0.0.1:1")));
    assert!(neighbour.dropped.contains(&address("[::1]:5")));
}

#[test]
fn more_than_fifty_are_cut() {
    let mut payload = Vec::new();
    let many: Vec<u8> = (1..=80u8).flat_map(|at| [9, 0, 0, at, 0, 1]).collect();
    let six: Vec<u8> = [[0x20; 18], [0x21; 18]].concat();
    let mut dict = Encoder::new(&mut payload);
    dict.begin_dict().key("added").bytes(&many).key("added6").bytes(&six);
    dict.key("dropped").bytes(&many).end();
    let read = PexMessage::parse(&payload, TELLER).expect("valid");
    assert_eq!((read.added.len(), read.dropped.len()), (CONTACTS_MAX, CONTACTS_MAX));
    assert!(read.added.iter().all(|contact| contact.address.is_ipv4()));
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        added in prop::collection::btree_map((any::<IpAddr>(), any::<u16>()), any::<u8>(), 0..50),
        dropped in prop::collection::btree_set((any::<IpAddr>(), any::<u16>()), 0..50),
    ) {
        let fit = |(ip, port): &(IpAddr, u16)| exchangeable(SocketAddr::new(*ip, *port), TELLER);
        let mut message = PexMessage::default();
        for (key, flags) in &added {
            let contact = fit(key).map(|address| Contact { address, flags: Flags(*flags) });
            message.added.extend(contact);
        }
        message.dropped.extend(dropped.iter().filter_map(fit));
        // As they are read: IPv4 first, which those inside of IPv6 have become.
        message.added.sort_by_key(|contact| !contact.address.is_ipv4());
        message.dropped.sort_by_key(|address| !address.is_ipv4());
        let mut out = Vec::new();
        message.encode(1, &mut out);
        prop_assert_eq!(PexMessage::parse(&out[6..], TELLER), Ok(message));
    }

    #[test]
    fn any_bytes_are_taken(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = PexMessage::parse(&payload, TELLER);
    }
}
