//! Owns: which addresses can be dialled, and their compact form (BEP 23 in 6 bytes, BEP 7 in 18).
//! Never: keeps one, or says who may be believed.
//! Flow: peer exchange reads and writes them; the roster takes in nothing else.

use std::net::{IpAddr, SocketAddr};

/// Bytes of a compact IPv4 address and port.
pub const COMPACT_V4_BYTES: usize = 6;
/// Bytes of a compact IPv6 address and port.
pub const COMPACT_V6_BYTES: usize = 18;

/// The one form in which an address is kept: IPv4 inside IPv6 as IPv4, no scope, no flow. `None`
/// for what cannot be dialled: port 0, unspecified, multicast, broadcast, `0.0.0.0/8`, and IPv6
/// link-local ones, which mean nothing without their scope.
pub fn dialable(address: SocketAddr) -> Option<SocketAddr> {
    let ip = address.ip().to_canonical();
    let unfit = match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_unicast_link_local(),
    };
    let fit = address.port() != 0 && !unfit && !ip.is_multicast();
    fit.then_some(SocketAddr::new(ip, address.port()))
}

/// Whether an address means the same host everywhere. Others (loopback, local networks, the shared
/// addresses of RFC 6598) may be a router or a proxy with many behind it.
pub fn is_global(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            !(v4.is_loopback() || v4.is_private() || v4.is_link_local() || shared)
        }
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local()),
    }
}

/// [`dialable`], and one that the other side of a connection sees as we do. A loopback address is
/// told on loopback alone, those of a local network within local networks: told by a stranger they
/// would have us dial services of our own machine or neighbours, and they say nothing to him.
pub fn exchangeable(address: SocketAddr, other_side: IpAddr) -> Option<SocketAddr> {
    let address = dialable(address)?;
    let other_side = other_side.to_canonical();
    let reachable = if address.ip().is_loopback() {
        other_side.is_loopback()
    } else {
        is_global(address.ip()) || !is_global(other_side)
    };
    reachable.then_some(address)
}

/// Reads the compact form; `None` for another length.
pub fn from_compact(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk::<2>()?;
    let ip = match ip.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

/// Appends the compact form.
pub fn push_compact(address: SocketAddr, out: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
        IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect(text)
    }

    #[test]
    fn what_can_be_dialled() {
        let table = [
            ("10.0.0.1:6881", Some("10.0.0.1:6881")),
            ("[::ffff:10.0.0.1]:6881", Some("10.0.0.1:6881")),
            ("[2001:db8::1]:1", Some("[2001:db8::1]:1")),
            ("127.0.0.1:1", Some("127.0.0.1:1")),
            ("10.0.0.1:0", None),
            ("0.0.0.0:1", None),
            ("0.1.2.3:1", None),
            ("[::]:1", None),
            ("224.0.0.1:1", None),
            ("255.255.255.255:1", None),
            ("[ff02::1]:1", None),
            ("[fe80::1]:1", None),
            ("[::ffff:0.0.0.0]:1", None),
            ("[::ffff:224.0.0.1]:1", None),
        ];
        for (given, kept) in table {
            assert_eq!(dialable(address(given)), kept.map(address), "{given}");
        }
    }

    #[test]
    fn loopback_is_for_loopback() {
        for own in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(exchangeable(address(own), [10, 0, 0, 1].into()), None);
            assert!(exchangeable(address(own), [127, 0, 0, 9].into()).is_some());
        }
        let other = address("10.0.0.1:1");
        assert_eq!(exchangeable(other, [127, 0, 0, 1].into()), Some(other));
    }

    #[test]
    fn a_local_network_is_for_a_local_network() {
        let global = address("9.9.9.9:1");
        for own in ["10.0.0.1:1", "192.168.0.1:1", "169.254.0.1:1", "100.64.0.1:1", "[fd00::1]:1"] {
            assert_eq!(exchangeable(address(own), global.ip()), None, "{own}");
            assert_eq!(exchangeable(address(own), [172, 16, 0, 9].into()), Some(address(own)));
            assert_eq!(exchangeable(global, address(own).ip()), Some(global));
        }
        for own in ["100.128.0.1:1", "172.32.0.1:1", "[2001:db8::1]:1"] {
            assert_eq!(exchangeable(address(own), global.ip()), Some(address(own)), "{own}");
        }
    }

    #[test]
    fn compact_form() {
        let mut out = Vec::new();
        push_compact(address("1.2.3.4:258"), &mut out);
        assert_eq!(out, [1, 2, 3, 4, 1, 2]);
        assert_eq!(from_compact(&out), Some(address("1.2.3.4:258")));
        out.clear();
        push_compact(address("[::1]:6881"), &mut out);
        assert_eq!(out.len(), COMPACT_V6_BYTES);
        assert_eq!(from_compact(&out), Some(address("[::1]:6881")));
        for length in (0..25).filter(|n| ![COMPACT_V4_BYTES, COMPACT_V6_BYTES].contains(n)) {
            assert_eq!(from_compact(&vec![1; length]), None);
        }
    }
}
