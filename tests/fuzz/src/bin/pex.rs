//! Owns: the fuzz target of peer exchange: a payload as bytes, and a torrent's comings and goings.
//! Never: expects that bytes are accepted.
//! Flow: what is read is bounded, can be dialled, and is read the same when it is written; what
//! is told to a connection adds up to who is there.
#![no_main]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use seedring_proto::peer::pex::{Book, INTERVAL, Sender};
use seedring_proto::wire::pex::{CONTACTS_MAX, Flags, PexMessage};

const TELLER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(9, 9, 9, 9));
/// In the network of those that join.
const LISTENER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 9, 9));

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = PexMessage::parse(bytes, TELLER) {
        assert!(message.added.len() <= CONTACTS_MAX && message.dropped.len() <= CONTACTS_MAX);
        let added = message.added.iter().map(|contact| contact.address);
        for address in added.chain(message.dropped.iter().copied()) {
            assert!(address.port() != 0 && !address.ip().is_unspecified());
            assert!(!address.ip().is_multicast() && !address.ip().is_loopback());
        }
        // IPv4 inside of IPv6 comes out as IPv4, and so before the others.
        let mut expected = message.clone();
        expected.added.sort_by_key(|contact| !contact.address.is_ipv4());
        expected.dropped.sort_by_key(|address| !address.is_ipv4());
        let mut out = Vec::new();
        message.encode(2, &mut out);
        assert_eq!(PexMessage::parse(&out[6..], TELLER), Ok(expected));
    }

    let mut book = Book::default();
    let mut here = BTreeSet::new();
    let mut told = BTreeSet::new();
    let mut sender = Sender::new(Duration::ZERO);
    let mut now = Duration::ZERO;
    for step in bytes.chunks_exact(2) {
        let address = SocketAddr::from(([10, 0, 0, step[1]], 6881));
        match step[0] % 4 {
            0 => {
                book.left(address);
                here.remove(&address);
            }
            1 => {
                now += INTERVAL;
                hear(&mut sender, &book, now, &mut told);
            }
            _ => {
                book.joined(address, Flags(step[0]));
                here.insert(address);
            }
        }
    }
    for _ in 0..=256 / CONTACTS_MAX + 256 / CONTACTS_MAX {
        now += INTERVAL;
        hear(&mut sender, &book, now, &mut told);
    }
    assert_eq!(told, here);
});

fn hear(sender: &mut Sender, book: &Book, now: Duration, told: &mut BTreeSet<SocketAddr>) {
    let Some(message) = sender.message(book, LISTENER, None, now) else { return };
    assert!(message.added.len() <= CONTACTS_MAX && message.dropped.len() <= CONTACTS_MAX);
    message.dropped.iter().for_each(|address| _ = told.remove(address));
    told.extend(message.added.iter().map(|contact| contact.address));
}
