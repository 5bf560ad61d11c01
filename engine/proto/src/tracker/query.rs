//! What a client asks of the embedded tracker.
//!
//! Owns: the query string into valid values (BEP 3, 7, 23, 48). Never: answers, or trusts an
//! address in it.
//! Flow: the embedded tracker's server hands over the raw query; the swarm store gets the value.

use std::net::{IpAddr, Ipv6Addr};

use super::announce::Event;
use crate::units::{InfoHash, PeerId};

/// Info-hashes of one scrape that are answered.
pub const SCRAPE_HASHES_MAX: usize = 64;
/// Parameters looked at; real clients send under 20.
const PARAMETERS_MAX: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} is not valid")]
    Invalid(&'static str),
    #[error("too many parameters")]
    TooMany,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnounceQuery {
    pub info_hash: InfoHash,
    pub peer_id: PeerId,
    pub port: u16,
    pub left_bytes: u64,
    pub event: Event,
    pub numwant: Option<u32>,
    pub compact: bool,
    pub no_peer_id: bool,
    /// What the client says its addresses are: believed only where the operator allowed it.
    pub claimed_ip: Option<IpAddr>,
    pub claimed_ipv6: Option<Ipv6Addr>,
}

impl AnnounceQuery {
    pub fn parse(query: &str) -> Result<Self, QueryError> {
        let mut fields = Fields::default();
        for (n, pair) in query.split('&').enumerate() {
            if n >= PARAMETERS_MAX {
                return Err(QueryError::TooMany);
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            fields.take(key, value)?;
        }
        fields.finish()
    }
}

/// Info-hashes of a scrape (BEP 48); none means all, which the store may refuse.
pub fn scrape_hashes(query: &str) -> Result<Vec<InfoHash>, QueryError> {
    query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("info_hash="))
        .take(SCRAPE_HASHES_MAX)
        .map(|value| twenty(value, "info_hash").map(InfoHash))
        .collect()
}

#[derive(Default)]
struct Fields {
    info_hash: Option<InfoHash>,
    peer_id: Option<PeerId>,
    port: Option<u16>,
    left_bytes: Option<u64>,
    event: Option<Event>,
    numwant: Option<u32>,
    compact: Option<bool>,
    no_peer_id: bool,
    claimed_ip: Option<IpAddr>,
    claimed_ipv6: Option<Ipv6Addr>,
}

impl Fields {
    fn take(&mut self, key: &str, value: &str) -> Result<(), QueryError> {
        match key {
            "info_hash" => self.info_hash = Some(InfoHash(twenty(value, "info_hash")?)),
            "peer_id" => self.peer_id = Some(PeerId(twenty(value, "peer_id")?)),
            "port" => self.port = Some(value.parse().map_err(|_| QueryError::Invalid("port"))?),
            // Some clients send -1 while they do not know, as with a magnet link.
            "left" => self.left_bytes = Some(value.parse().unwrap_or(u64::MAX)),
            "event" => {
                self.event = match value {
                    "started" => Some(Event::Started),
                    "completed" => Some(Event::Completed),
                    "stopped" => Some(Event::Stopped),
                    _ => None,
                }
            }
            "numwant" => self.numwant = value.parse().ok(),
            "compact" => self.compact = Some(value != "0"),
            "no_peer_id" => self.no_peer_id = value != "0",
            "ip" => self.claimed_ip = text(value).and_then(|t| t.parse().ok()),
            "ipv6" => self.claimed_ipv6 = text(value).and_then(|t| t.parse().ok()),
            _ => {}
        }
        Ok(())
    }

    fn finish(self) -> Result<AnnounceQuery, QueryError> {
        let port = self.port.ok_or(QueryError::Missing("port"))?;
        let event = self.event.unwrap_or(Event::Regular);
        if port == 0 && event != Event::Stopped {
            return Err(QueryError::Invalid("port"));
        }
        Ok(AnnounceQuery {
            info_hash: self.info_hash.ok_or(QueryError::Missing("info_hash"))?,
            peer_id: self.peer_id.ok_or(QueryError::Missing("peer_id"))?,
            port,
            left_bytes: self.left_bytes.unwrap_or(u64::MAX),
            event,
            numwant: self.numwant,
            // BEP 23: compact is what clients expect unless they ask otherwise.
            compact: self.compact.unwrap_or(true),
            no_peer_id: self.no_peer_id,
            claimed_ip: self.claimed_ip,
            claimed_ipv6: self.claimed_ipv6,
        })
    }
}

fn twenty(value: &str, name: &'static str) -> Result<[u8; 20], QueryError> {
    decode_percent(value, 20).and_then(|b| b.try_into().ok()).ok_or(QueryError::Invalid(name))
}

fn text(value: &str) -> Option<String> {
    String::from_utf8(decode_percent(value, 64)?).ok()
}

/// Percent-decoding once; `+` is a plus sign in announce queries. `None` for a broken escape or
/// too much.
pub fn decode_percent(value: &str, bytes_max: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes_max);
    let mut bytes = value.bytes();
    while let Some(b) = bytes.next() {
        if out.len() == bytes_max {
            return None;
        }
        out.push(match b {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                (high * 16 + low) as u8
            }
            other => other,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::announce::{Crypto, Request, Totals};
    use proptest::prelude::*;

    fn request(hash: [u8; 20], id: [u8; 20], port: u16, left: u64) -> Request {
        Request {
            info_hash: InfoHash(hash),
            peer_id: PeerId(id),
            port,
            totals: Totals { left_bytes: left, ..Totals::default() },
            event: Event::Completed,
            key: 1,
            numwant: 7,
            ip: None,
            ipv6: Some(Ipv6Addr::LOCALHOST),
            crypto: Crypto::Supported,
            tracker_id: None,
        }
    }

    proptest! {
        /// Encoded exactly once: what we send decodes to the same bytes.
        #[test]
        fn what_we_send_reads_back(hash: [u8; 20], id: [u8; 20], port in 1u16.., left: u64) {
            let query = AnnounceQuery::parse(&request(hash, id, port, left).parameters()).unwrap();
            prop_assert_eq!(query.info_hash.0, hash);
            prop_assert_eq!(query.peer_id.0, id);
            prop_assert_eq!((query.port, query.left_bytes), (port, left));
            prop_assert_eq!(query.event, Event::Completed);
            prop_assert_eq!(query.numwant, Some(7));
            prop_assert!(query.compact && query.no_peer_id);
            prop_assert_eq!(query.claimed_ipv6, Some(Ipv6Addr::LOCALHOST));
        }

        #[test]
        fn no_query_panics(query in "[a-z_=&%0-9]{0,200}") {
            let _ = AnnounceQuery::parse(&query);
            let _ = scrape_hashes(&query);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(AnnounceQuery::parse(""), Err(QueryError::Missing("port")));
        assert_eq!(AnnounceQuery::parse("port=1"), Err(QueryError::Missing("info_hash")));
        assert_eq!(
            AnnounceQuery::parse("port=0&info_hash=x"),
            Err(QueryError::Invalid("info_hash"))
        );
        assert_eq!(AnnounceQuery::parse("info_hash=%zz"), Err(QueryError::Invalid("info_hash")));
        let long = "a=b&".repeat(PARAMETERS_MAX + 1);
        assert_eq!(AnnounceQuery::parse(&long), Err(QueryError::TooMany));
    }
}
