//! Owns: canonical peer priority (BEP 40): a number that both ends of a pair reckon alike.
//! Never: prefers a peer for what it did.
//! Flow: the roster dials the highest first, and drops the lowest.
//!
//! All peers of a swarm that is larger than their connections then want the same pairs, so that
//! the swarm stays in one part; and who crafts addresses cannot choose whom to be close to.

use std::net::{IpAddr, SocketAddr};

/// The priority of a connection between two peers; higher is better. `None` where one has an
/// IPv4 and the other an IPv6 address: they have none.
pub fn priority(one: SocketAddr, other: SocketAddr) -> Option<u32> {
    if one.ip() == other.ip() {
        let (low, high) = (one.port().min(other.port()), one.port().max(other.port()));
        return Some(crc32c::crc32c(&[low.to_be_bytes(), high.to_be_bytes()].concat()));
    }
    match (one.ip(), other.ip()) {
        (IpAddr::V4(one), IpAddr::V4(other)) => Some(of(one.octets(), other.octets(), 2)),
        (IpAddr::V6(one), IpAddr::V6(other)) => Some(of(one.octets(), other.octets(), 6)),
        _ => None,
    }
}

/// CRC-32C of both, masked, the lower first. The mask keeps `whole` bytes, or one more than they
/// have in common where that is as much or more; of the rest it keeps every second bit.
fn of<const BYTES: usize>(mut one: [u8; BYTES], mut other: [u8; BYTES], whole: usize) -> u32 {
    let common = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
    let kept = if common >= whole { common + 1 } else { whole };
    for address in [&mut one, &mut other] {
        address.iter_mut().skip(kept).for_each(|byte| *byte &= 0x55);
    }
    let (low, high) = (one.min(other), one.max(other));
    crc32c::crc32c(&[low, high].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect(text)
    }

    // The first two are the examples of BEP 40.
    #[test]
    fn as_the_bep_reckons() {
        let own = address("123.213.32.10:1");
        assert_eq!(priority(own, address("98.76.54.32:2")), Some(0xec2d_7224));
        assert_eq!(priority(own, address("123.213.32.234:2")), Some(0x9956_8189));
        let same = |one, other| {
            priority(own, address(one)).expect("one family")
                == priority(own, address(other)).expect("one family")
        };
        // Bits outside of 0x55 count only inside of a network in common.
        assert!(same("98.76.54.32:2", "98.76.158.138:2"));
        assert!(!same("123.213.54.32:2", "123.213.158.32:2"));
        assert!(same("123.213.54.32:2", "123.213.54.138:2"));
        assert!(!same("123.213.32.32:2", "123.213.32.138:2"));
    }

    #[test]
    fn of_one_address_the_ports_decide() {
        let [one, two, three] = [1, 2, 3].map(|port| SocketAddr::from(([10, 0, 0, 1], port)));
        assert_ne!(priority(one, two), priority(one, three));
        assert_eq!(priority(one, two), Some(crc32c::crc32c(&[0, 1, 0, 2])));
    }

    #[test]
    fn ipv6_by_site_and_network() {
        let own = address("[2001:db8:1:203::1]:1");
        let of = |other| priority(own, address(other)).expect("one family");
        assert_eq!(of("[2001:db8:2:aa::1]:1"), of("[2001:db8:2:0::ab]:1"), "two sites");
        assert_ne!(of("[2001:db8:1:aa00::1]:1"), of("[2001:db8:1:0::1]:1"), "one site");
        assert_eq!(of("[2001:db8:1:aa::1]:1"), of("[2001:db8:1:0::1]:1"), "one site, low byte");
        assert_ne!(of("[2001:db8:1:2aa::1]:1"), of("[2001:db8:1:200::1]:1"), "one /56");
        assert_eq!(priority(own, address("1.2.3.4:1")), None);
    }

    proptest! {
        #[test]
        fn both_ends_agree(one: (IpAddr, u16), other: (IpAddr, u16)) {
            let (one, other) = (SocketAddr::from(one), SocketAddr::from(other));
            prop_assert_eq!(priority(one, other), priority(other, one));
        }
    }
}
