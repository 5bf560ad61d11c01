//! A tracker's answer to an announce.
//!
//! Owns: parsing it into valid values (BEP 3, 7, 23, 24, 31). Never: trusts a count, an address
//! or a text in it.
//! Flow: control reads at most [`WIRE_BYTES_MAX`] and inflates at most [`INFLATED_BYTES_MAX`],
//! parses,
//! and reports the result to the schedule; addresses go on to the shards.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::redact::redact_text;
use crate::bencode::{self, Document, Value};

/// RELIABILITY, threat 14.
pub const WIRE_BYTES_MAX: usize = 1 << 20;
pub const INFLATED_BYTES_MAX: usize = 4 << 20;
/// Trackers send 50 to 200; what comes after these is not looked at.
pub const PEERS_MAX: usize = 2000;
/// A tracker id goes back into every request line, so it is kept only up to this length.
pub const TRACKER_ID_BYTES_MAX: usize = 256;
/// Of a tracker's message.
pub(super) const TEXT_CHARS_MAX: usize = 300;

/// A good answer. Times are as the tracker said them, not yet clamped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// Addresses that can be dialled: no port 0, no unspecified, multicast or broadcast address.
    pub peers: Vec<SocketAddr>,
    pub interval: Option<Duration>,
    pub min_interval: Option<Duration>,
    pub tracker_id: Option<Vec<u8>>,
    /// Fit to show: no control characters, secrets masked, bounded.
    pub warning: Option<String>,
    pub seeders: Option<u32>,
    pub leechers: Option<u32>,
    pub downloaded: Option<u32>,
    pub external_ip: Option<IpAddr>,
}

/// When a refused announce may be tried again (BEP 31).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Nothing was said: back off as for any failure.
    Backoff,
    After(Duration),
    Never,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    #[error("the tracker refused: {reason}")]
    Refused { reason: String, retry: Retry },
    #[error("the tracker's answer is not a tracker reply: {0}")]
    Bencode(#[from] bencode::Error),
    #[error("the tracker's answer is not a dictionary")]
    NotDictionary,
    #[error("the tracker's answer has neither peers nor an interval")]
    Empty,
    #[error("the tracker's answer has more than {INFLATED_BYTES_MAX} bytes")]
    TooLarge,
}

impl Reply {
    pub fn parse(bytes: &[u8]) -> Result<Self, ReplyError> {
        if bytes.len() > INFLATED_BYTES_MAX {
            return Err(ReplyError::TooLarge);
        }
        // Some trackers end their answer with a line break.
        let (document, _rest) = Document::parse_prefix(bytes)?;
        let root = document.root();
        if !root.is_dict() {
            return Err(ReplyError::NotDictionary);
        }
        if let Some(reason) = root.dict_get("failure reason") {
            let reason = text(reason).unwrap_or_else(|| "no reason given".to_owned());
            return Err(ReplyError::Refused { reason, retry: retry(root) });
        }
        let interval = seconds(root, "interval");
        let peers = peers(root);
        if interval.is_none() && peers.is_none() {
            return Err(ReplyError::Empty);
        }
        Ok(Self {
            peers: peers.unwrap_or_default(),
            interval,
            min_interval: seconds(root, "min interval"),
            tracker_id: root
                .dict_get("tracker id")
                .and_then(|v| v.as_bytes())
                .filter(|id| !id.is_empty() && id.len() <= TRACKER_ID_BYTES_MAX)
                .map(<[u8]>::to_vec),
            warning: root.dict_get("warning message").and_then(text),
            seeders: count(root, "complete"),
            leechers: count(root, "incomplete"),
            downloaded: count(root, "downloaded"),
            external_ip: root.dict_get("external ip").and_then(|v| v.as_bytes()).and_then(address),
        })
    }
}

/// `None` where the reply has no peers key at all.
fn peers(root: Value<'_, '_>) -> Option<Vec<SocketAddr>> {
    let (v4, v6) = (root.dict_get("peers"), root.dict_get("peers6"));
    if v4.is_none() && v6.is_none() {
        return None;
    }
    let mut out = Vec::new();
    if let Some(list) = v4.filter(Value::is_list) {
        let dictionaries = list.list().take(PEERS_MAX).filter_map(dictionary_peer);
        out.extend(dictionaries);
    } else if let Some(bytes) = v4.and_then(|v| v.as_bytes()) {
        out.extend(bytes.chunks_exact(6).take(PEERS_MAX).filter_map(compact_peer));
    }
    if let Some(bytes) = v6.and_then(|v| v.as_bytes()) {
        let room = PEERS_MAX - out.len();
        out.extend(bytes.chunks_exact(18).take(room).filter_map(compact_peer));
    }
    Some(out)
}

/// Address and port as BEP 23 (6 bytes), BEP 7 (18 bytes) and BEP 15 have them.
pub(super) fn compact_peer(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_at(bytes.len() - 2);
    dialable(address(ip)?, u16::from_be_bytes([port[0], port[1]]))
}

/// Host names are not looked up: a reply could make us resolve and dial anything.
fn dictionary_peer(peer: Value<'_, '_>) -> Option<SocketAddr> {
    let ip = peer.dict_get("ip")?.as_str()?.parse().ok()?;
    let port = u16::try_from(peer.dict_get("port")?.as_int()?).ok()?;
    dialable(ip, port)
}

fn dialable(ip: IpAddr, port: u16) -> Option<SocketAddr> {
    let ip = ip.to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] == 0);
    let fit = port != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast;
    fit.then_some(SocketAddr::new(ip, port))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|b| IpAddr::V4(Ipv4Addr::from(b))),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|b| IpAddr::V6(Ipv6Addr::from(b))),
        _ => None,
    }
}

fn seconds(root: Value<'_, '_>, key: &str) -> Option<Duration> {
    let seconds = root.dict_get(key)?.as_int()?;
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

fn count(root: Value<'_, '_>, key: &str) -> Option<u32> {
    let number = root.dict_get(key)?.as_int()?;
    (number >= 0).then(|| u32::try_from(number).unwrap_or(u32::MAX))
}

/// BEP 31: minutes as an integer or in digits, or the word `never`.
fn retry(root: Value<'_, '_>) -> Retry {
    let Some(value) = root.dict_get("retry in") else {
        // Not in a BEP, but trackers send an interval with a failure and mean it.
        return seconds(root, "interval").map_or(Retry::Backoff, Retry::After);
    };
    if value.as_bytes() == Some(b"never") {
        return Retry::Never;
    }
    let minutes = value.as_int().or_else(|| value.as_str()?.trim().parse().ok());
    match minutes.and_then(|m| u64::try_from(m).ok()) {
        Some(minutes) => Retry::After(Duration::from_secs(minutes.saturating_mul(60))),
        None => Retry::Backoff,
    }
}

fn text(value: Value<'_, '_>) -> Option<String> {
    let text = String::from_utf8_lossy(value.as_bytes()?);
    Some(redact_text(text.trim(), TEXT_CHARS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_compact_reply() {
        let mut bytes = b"d8:completei3e10:downloadedi9e11:external ip4:\xc0\x00\x02\x01\
            10:incompletei4e8:intervali1800e12:min intervali300e5:peers14:"
            .to_vec();
        bytes.extend([10, 0, 0, 1, 0x1a, 0xe1, 10, 0, 0, 2, 0, 0, 1, 2]);
        bytes.extend(b"6:peers618:");
        bytes.extend(Ipv6Addr::LOCALHOST.octets());
        bytes.extend([0x1a, 0xe2]);
        bytes.extend(b"10:tracker id3:abc15:warning message4:slowe\n");
        let reply = Reply::parse(&bytes).unwrap();
        // Port 0 and the trailing two bytes are left out.
        assert_eq!(reply.peers, ["10.0.0.1:6881".parse().unwrap(), "[::1]:6882".parse().unwrap()]);
        assert_eq!(reply.interval, Some(Duration::from_secs(1800)));
        assert_eq!(reply.min_interval, Some(Duration::from_secs(300)));
        assert_eq!((reply.seeders, reply.leechers, reply.downloaded), (Some(3), Some(4), Some(9)));
        assert_eq!(reply.external_ip, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(reply.tracker_id.as_deref(), Some(&b"abc"[..]));
        assert_eq!(reply.warning.as_deref(), Some("slow"));
    }

    #[test]
    fn dictionary_peers_without_names() {
        let reply = Reply::parse(
            b"d8:intervali60e5:peersl\
              d2:ip9:127.0.0.17:peer id20:aaaaaaaaaaaaaaaaaaaa4:porti6881ee\
              d2:ip3:::14:porti6881ee\
              d2:ip11:example.com4:porti6881ee\
              d2:ip9:127.0.0.14:porti70000ee\
              d2:ip9:224.0.0.14:porti1eeee",
        )
        .unwrap();
        let expected: Vec<SocketAddr> =
            vec!["127.0.0.1:6881".parse().unwrap(), "[::1]:6881".parse().unwrap()];
        assert_eq!(reply.peers, expected);
    }

    #[test]
    fn refusals_say_when_to_come_back() {
        let refused = |bytes: &[u8]| match Reply::parse(bytes) {
            Err(ReplyError::Refused { reason, retry }) => (reason, retry),
            other => panic!("{other:?}"),
        };
        let minutes = |m: u64| Retry::After(Duration::from_secs(m * 60));
        assert_eq!(refused(b"d14:failure reason2:noe"), ("no".into(), Retry::Backoff));
        assert_eq!(refused(b"d14:failure reason2:no8:retry ini5ee").1, minutes(5));
        assert_eq!(refused(b"d14:failure reason2:no8:retry in1:7e").1, minutes(7));
        assert_eq!(refused(b"d14:failure reason2:no8:retry in5:nevere").1, Retry::Never);
        assert_eq!(refused(b"d14:failure reason2:no8:retry ini-5ee").1, Retry::Backoff);
        assert_eq!(refused(b"d14:failure reason3:\x1b[1e").0, "[1");
    }

    #[test]
    fn odd_replies() {
        assert!(matches!(Reply::parse(b"<html>"), Err(ReplyError::Bencode(_))));
        assert!(matches!(Reply::parse(b""), Err(ReplyError::Bencode(_))));
        assert_eq!(Reply::parse(b"le"), Err(ReplyError::NotDictionary));
        assert_eq!(Reply::parse(b"de"), Err(ReplyError::Empty));
        let reply = Reply::parse(b"d8:completei-1e8:intervali-5e5:peers0:e").unwrap();
        assert_eq!((reply.seeders, reply.interval), (None, None));
        let mut many = b"d5:peers30000:".to_vec();
        many.extend(std::iter::repeat_n(7u8, 30000));
        many.push(b'e');
        assert_eq!(Reply::parse(&many).unwrap().peers.len(), PEERS_MAX);
        let large = vec![b'i'; INFLATED_BYTES_MAX + 1];
        assert_eq!(Reply::parse(&large), Err(ReplyError::TooLarge));
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics_and_peers_stay_bounded(
            bytes in proptest::collection::vec(0u8.., 0..400),
        ) {
            if let Ok(reply) = Reply::parse(&bytes) {
                proptest::prop_assert!(reply.peers.len() <= PEERS_MAX);
            }
        }
    }
}
