//! An announce request, as the bytes of its query string.
//!
//! Owns: the parameters (BEP 3, 7, 23), their order and their encoding. Never: knows where they
//! go or why.
//! Flow: control fills a [`Request`] when the governor grants a job, so that totals are fresh.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::units::{InfoHash, PeerId};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// An announce at the interval: no `event` parameter.
    Regular,
    Started,
    Completed,
    Stopped,
}

impl Event {
    /// The value of the `event` parameter, if it is sent.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Regular => None,
            Self::Started => Some("started"),
            Self::Completed => Some("completed"),
            Self::Stopped => Some("stopped"),
        }
    }
}

/// What is said about encryption of peer connections (the de-facto
/// `supportcrypto`/`requirecrypto`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Crypto {
    #[default]
    Unsupported,
    Supported,
    Required,
}

/// Bytes of payload, as a tracker counts them. `uploaded` and `downloaded` count from `started`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub uploaded_bytes: u64,
    pub downloaded_bytes: u64,
    pub left_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub info_hash: InfoHash,
    pub peer_id: PeerId,
    pub port: u16,
    pub totals: Totals,
    pub event: Event,
    /// Lets a tracker know us after our address changed.
    pub key: u32,
    pub numwant: u32,
    /// Announced addresses, where they are not those the tracker sees.
    pub ip: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    pub crypto: Crypto,
    /// What this tracker gave as `tracker id` before, sent back as it came.
    pub tracker_id: Option<Vec<u8>>,
}

impl Request {
    /// The parameters without a leading `?`; `info_hash` and `peer_id` are percent-encoded
    /// exactly once.
    #[must_use]
    pub fn parameters(&self) -> String {
        let mut out = String::with_capacity(320);
        out.push_str("info_hash=");
        push_encoded(&mut out, &self.info_hash.0);
        out.push_str("&peer_id=");
        push_encoded(&mut out, &self.peer_id.0);
        write!(
            out,
            "&port={}&uploaded={}&downloaded={}&left={}&key={:08X}",
            self.port,
            self.totals.uploaded_bytes,
            self.totals.downloaded_bytes,
            self.totals.left_bytes,
            self.key,
        )
        .expect("invariant: writing to a String cannot fail");
        if let Some(event) = self.event.name() {
            out.push_str("&event=");
            out.push_str(event);
        }
        write!(out, "&numwant={}&compact=1&no_peer_id=1", self.numwant)
            .expect("invariant: writing to a String cannot fail");
        match self.crypto {
            Crypto::Unsupported => {}
            Crypto::Supported => out.push_str("&supportcrypto=1"),
            Crypto::Required => out.push_str("&supportcrypto=1&requirecrypto=1"),
        }
        if let Some(ip) = self.ip {
            write!(out, "&ip={ip}").expect("invariant: writing to a String cannot fail");
        }
        if let Some(ipv6) = self.ipv6 {
            out.push_str("&ipv6=");
            push_encoded(&mut out, ipv6.to_string().as_bytes());
        }
        if let Some(id) = &self.tracker_id {
            out.push_str("&trackerid=");
            push_encoded(&mut out, id);
        }
        out
    }
}

/// Appends bytes with all but RFC 3986's unreserved characters percent-encoded.
pub fn push_encoded(out: &mut String, bytes: &[u8]) {
    for &b in bytes {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(b));
        } else {
            push_percent(out, b);
        }
    }
}

pub(super) fn push_percent(out: &mut String, b: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(b >> 4)]));
    out.push(char::from(DIGITS[usize::from(b & 15)]));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            info_hash: InfoHash([
                0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd,
                0xef, 0x12, 0x34, 0x56, 0x78, 0x9a,
            ]),
            peer_id: PeerId(*b"-SR0100-ab%/ +cdef~\0"),
            port: 6881,
            totals: Totals { uploaded_bytes: 1, downloaded_bytes: 2, left_bytes: 3 },
            event: Event::Started,
            key: 0xbeef,
            numwant: 50,
            ip: None,
            ipv6: None,
            crypto: Crypto::Unsupported,
            tracker_id: None,
        }
    }

    // The info-hash is the example that the specification's wiki encodes, in our upper-case form.
    #[test]
    fn the_query_is_exact() {
        assert_eq!(
            request().parameters(),
            "info_hash=%124Vx%9A%BC%DE%F1%23Eg%89%AB%CD%EF%124Vx%9A\
             &peer_id=-SR0100-ab%25%2F%20%2Bcdef~%00&port=6881&uploaded=1&downloaded=2&left=3\
             &key=0000BEEF&event=started&numwant=50&compact=1&no_peer_id=1"
        );
    }

    #[test]
    fn optional_parameters_come_only_where_set() {
        let mut r = request();
        r.event = Event::Regular;
        r.crypto = Crypto::Required;
        r.ip = Some(Ipv4Addr::new(192, 0, 2, 7));
        r.ipv6 = Some("2001:db8::7".parse().unwrap());
        r.tracker_id = Some(b"a&b".to_vec());
        let query = r.parameters();
        assert!(!query.contains("event="));
        assert!(query.ends_with(
            "&supportcrypto=1&requirecrypto=1&ip=192.0.2.7&ipv6=2001%3Adb8%3A%3A7&trackerid=a%26b"
        ));
    }
}
