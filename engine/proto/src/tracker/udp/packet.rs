//! The packets of the UDP tracker protocol.
//!
//! Owns: their bytes (BEP 15, 41). Never: knows which transaction is open, or trusts a number in
//! an answer.
//! Flow: [`super::exchanges`] builds requests here and reads answers whose transaction it knows.

use std::net::IpAddr;
use std::time::Duration;

pub use super::transactions::TransactionId;
use crate::tracker::announce::{Event, Request};
use crate::tracker::redact::redact_text;
use crate::tracker::reply::{PEERS_MAX, Reply, TEXT_CHARS_MAX, compact_peer};
use crate::tracker::url::TrackerUrl;

/// What of an answer is looked at: 226 IPv6 peers, three times what we ask for. A longer one is
/// cut here, and only its last peers are lost.
pub const ANSWER_BYTES_MAX: usize = 4096;

const MAGIC: u64 = 0x0417_2710_1980;
const CONNECT: u32 = 0;
const ANNOUNCE: u32 = 1;
const ERROR: u32 = 3;
const CONNECT_ANSWER_BYTES: usize = 16;
const ANNOUNCE_ANSWER_BYTES: usize = 20;
/// BEP 41: option types, and the most that one option holds.
const URL_DATA: u8 = 2;
const OPTION_BYTES_MAX: usize = 255;

/// Proves to a tracker that we receive at our address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionId(pub u64);

/// Decides how long the peers of an answer are: as the socket that it came by, whatever is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn peer_bytes(self) -> usize {
        match self {
            Self::V4 => 6,
            Self::V6 => 18,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("the tracker's answer is cut short: {0} bytes")]
    Short(usize),
    #[error("the tracker's answer is of another kind ({0}) than what was asked")]
    Action(u32),
    /// The tracker's text, fit to show.
    #[error("the tracker refused: {0}")]
    Refused(String),
}

#[must_use]
pub fn connect_request(transaction: TransactionId) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    out.extend(MAGIC.to_be_bytes());
    out.extend(CONNECT.to_be_bytes());
    out.extend(transaction.0.to_be_bytes());
    out
}

/// An announce, with the path and query of the tracker's address behind it (BEP 41): that is
/// where a passkey is. An address that is only a host and a port adds nothing.
#[must_use]
pub fn announce_request(
    connection: ConnectionId,
    transaction: TransactionId,
    request: &Request,
    url: &TrackerUrl,
    family: Family,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend(connection.0.to_be_bytes());
    out.extend(ANNOUNCE.to_be_bytes());
    out.extend(transaction.0.to_be_bytes());
    out.extend(request.info_hash.0);
    out.extend(request.peer_id.0);
    out.extend(request.totals.downloaded_bytes.to_be_bytes());
    out.extend(request.totals.left_bytes.to_be_bytes());
    out.extend(request.totals.uploaded_bytes.to_be_bytes());
    out.extend(event_code(request.event).to_be_bytes());
    // The field has room for IPv4 alone; over IPv6 it is to be 0, "the sender's".
    let ip = request.ip.filter(|_| family == Family::V4);
    out.extend(ip.map_or([0; 4], |ip| ip.octets()));
    out.extend(request.key.to_be_bytes());
    out.extend(i32::try_from(request.numwant).unwrap_or(-1).to_be_bytes());
    out.extend(request.port.to_be_bytes());
    let path_and_query = url.path_and_query();
    if path_and_query != "/" {
        for part in path_and_query.as_bytes().chunks(OPTION_BYTES_MAX) {
            out.extend([URL_DATA, part.len() as u8]);
            out.extend(part);
        }
    }
    out
}

fn event_code(event: Event) -> u32 {
    match event {
        Event::Regular => 0,
        Event::Completed => 1,
        Event::Started => 2,
        Event::Stopped => 3,
    }
}

/// The transaction that a datagram claims to answer; `None` where it is too short for one.
#[must_use]
pub fn transaction(answer: &[u8]) -> Option<TransactionId> {
    number(answer, 4).map(TransactionId)
}

pub fn parse_connect(answer: &[u8]) -> Result<ConnectionId, PacketError> {
    check(answer, CONNECT, CONNECT_ANSWER_BYTES)?;
    let id = answer[8..16].try_into().expect("invariant: the length was checked");
    Ok(ConnectionId(u64::from_be_bytes(id)))
}

/// Counts and interval are signed in BEP 15; negative ones say nothing.
pub fn parse_announce(answer: &[u8], family: Family) -> Result<Reply, PacketError> {
    check(answer, ANNOUNCE, ANNOUNCE_ANSWER_BYTES)?;
    let not_negative = |at| number(answer, at).filter(|n| i32::try_from(*n).is_ok());
    let peers = answer[ANNOUNCE_ANSWER_BYTES..].chunks_exact(family.peer_bytes());
    Ok(Reply {
        peers: peers.take(PEERS_MAX).filter_map(compact_peer).collect(),
        interval: not_negative(8).map(|s| Duration::from_secs(s.into())),
        leechers: not_negative(12),
        seeders: not_negative(16),
        ..Reply::default()
    })
}

fn check(answer: &[u8], action: u32, bytes_min: usize) -> Result<(), PacketError> {
    let short = PacketError::Short(answer.len());
    match number(answer, 0) {
        Some(ERROR) if answer.len() >= 8 => Err(PacketError::Refused(error_text(&answer[8..]))),
        Some(given) if given == action && answer.len() >= bytes_min => Ok(()),
        Some(given) if given == action => Err(short),
        Some(given) => Err(PacketError::Action(given)),
        None => Err(short),
    }
}

fn error_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = redact_text(text.trim(), TEXT_CHARS_MAX);
    if text.is_empty() { "no reason given".to_owned() } else { text }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().expect("invariant: four bytes")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tracker::announce::{Crypto, Totals};
    use crate::units::{InfoHash, PeerId};

    const TRANSACTION: TransactionId = TransactionId(0xdead_beef);

    fn request() -> Request {
        Request {
            info_hash: InfoHash(*b"hhhhhhhhhhhhhhhhhhhh"),
            peer_id: PeerId(*b"-SR0100-abcdefghijkl"),
            port: 6881,
            totals: Totals { uploaded_bytes: 1, downloaded_bytes: 2, left_bytes: 3 },
            event: Event::Started,
            key: 0xbeef,
            numwant: 80,
            ip: Some([192, 0, 2, 7].into()),
            ipv6: None,
            crypto: Crypto::Unsupported,
            tracker_id: None,
        }
    }

    fn announce(url: &str, family: Family) -> Vec<u8> {
        let url = TrackerUrl::parse(url).unwrap();
        announce_request(ConnectionId(0x0102_0304_0506_0708), TRANSACTION, &request(), &url, family)
    }

    // The offsets are those of BEP 15's tables.
    #[test]
    fn requests_are_exact() {
        let connect = connect_request(TRANSACTION);
        assert_eq!(connect, *b"\0\0\x04\x17\x27\x10\x19\x80\0\0\0\0\xde\xad\xbe\xef");
        let bytes = announce("udp://t:80", Family::V4);
        let mut expected = b"\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x01\xde\xad\xbe\xef".to_vec();
        expected.extend(b"hhhhhhhhhhhhhhhhhhhh-SR0100-abcdefghijkl");
        expected.extend(b"\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x01");
        expected.extend(b"\0\0\0\x02\xc0\0\x02\x07\0\0\xbe\xef\0\0\0\x50\x1a\xe1");
        assert_eq!(bytes, expected);
        assert_eq!(bytes.len(), 98);
        // Over IPv6 the address field stays empty.
        assert_eq!(announce("udp://t:80/", Family::V6)[84..88], [0; 4]);
    }

    #[test]
    fn events_have_the_protocols_numbers() {
        let codes = [Event::Regular, Event::Completed, Event::Started, Event::Stopped];
        assert_eq!(codes.map(event_code), [0, 1, 2, 3]);
    }

    #[test]
    fn path_and_query_follow_as_options() {
        let bytes = announce("udp://t:80/announce?passkey=k", Family::V4);
        assert_eq!(bytes[98..], *b"\x02\x13/announce?passkey=k");
        let long = "a".repeat(600);
        let bytes = announce(&format!("udp://t:80/{long}"), Family::V4);
        let mut rest = &bytes[98..];
        let mut joined: Vec<u8> = Vec::new();
        while let [URL_DATA, length, tail @ ..] = rest {
            let (part, after) = tail.split_at(usize::from(*length));
            joined.extend(part);
            rest = after;
        }
        assert!(rest.is_empty());
        assert_eq!(joined, format!("/{long}").into_bytes());
    }

    #[test]
    fn answers_are_read() {
        let connected = b"\0\0\0\0\xde\xad\xbe\xef\x01\x02\x03\x04\x05\x06\x07\x08";
        assert_eq!(transaction(connected), Some(TRANSACTION));
        assert_eq!(parse_connect(connected), Ok(ConnectionId(0x0102_0304_0506_0708)));
        let mut bytes = b"\0\0\0\x01\xde\xad\xbe\xef\0\0\x07\x08\0\0\0\x04\0\0\0\x03".to_vec();
        bytes.extend(b"\x0a\0\0\x01\x1a\xe1\x0a\0\0\x02\0\0cut");
        let reply = parse_announce(&bytes, Family::V4).unwrap();
        assert_eq!(reply.interval, Some(Duration::from_secs(1800)));
        assert_eq!((reply.seeders, reply.leechers), (Some(3), Some(4)));
        // Port 0 and the bytes of a cut peer are left out.
        assert_eq!(reply.peers, ["10.0.0.1:6881".parse().unwrap()]);
    }

    #[test]
    fn peers_are_as_long_as_the_family_says() {
        let mut bytes = b"\0\0\0\x01\xde\xad\xbe\xef\xff\xff\xff\xff\0\0\0\0\x80\0\0\0".to_vec();
        bytes.extend("2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
        bytes.extend(b"\x1a\xe1");
        let reply = parse_announce(&bytes, Family::V6).unwrap();
        assert_eq!(reply.peers, ["[2001:db8::7]:6881".parse().unwrap()]);
        // Negative.
        assert_eq!((reply.interval, reply.seeders, reply.leechers), (None, None, Some(0)));
    }

    #[test]
    fn faults_have_names() {
        let of = |bytes: &[u8]| parse_connect(bytes).unwrap_err();
        assert_eq!(of(b"\0\0\0\0\xde\xad\xbe\xef1234567"), PacketError::Short(15));
        assert_eq!(of(b"\0\0"), PacketError::Short(2));
        assert_eq!(of(b"\0\0\0\x01\xde\xad\xbe\xef12345678"), PacketError::Action(1));
        let refused = |text: &str| PacketError::Refused(text.to_owned());
        assert_eq!(of(b"\0\0\0\x03\xde\xad\xbe\xefgo \x1b[1maway\n"), refused("go [1maway"));
        assert_eq!(of(b"\0\0\0\x03\xde\xad\xbe\xef"), refused("no reason given"));
        assert_eq!(of(b"\0\0\0\x03\xde\xad"), PacketError::Action(3));
        let key = b"\0\0\0\x03\xde\xad\xbe\xefno key 0123456789abcdef0123456789abcdef";
        assert_eq!(of(key), refused("no key ***"));
        let announced = b"\0\0\0\x01\xde\xad\xbe\xef\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(parse_announce(announced, Family::V4), Err(PacketError::Short(19)));
    }

    proptest! {
        #[test]
        fn no_answer_panics_and_peers_can_be_dialled(
            mut bytes in proptest::collection::vec(0u8.., 0..200),
            action in 0u8..5,
        ) {
            if let Some(first) = bytes.first_chunk_mut::<4>() {
                *first = [0, 0, 0, action];
            }
            let _ = (transaction(&bytes), parse_connect(&bytes));
            for family in [Family::V4, Family::V6] {
                match parse_announce(&bytes, family) {
                    Ok(reply) => {
                        prop_assert!(bytes.len() >= ANNOUNCE_ANSWER_BYTES);
                        prop_assert!(reply.peers.len() <= bytes.len() / family.peer_bytes());
                        prop_assert!(reply.peers.iter().all(|p| p.port() != 0));
                    }
                    Err(PacketError::Refused(text)) => {
                        prop_assert!(!text.is_empty() && !text.contains(char::is_control));
                    }
                    Err(_) => {}
                }
            }
        }
    }
}
