//! Owns: magnet links: what they say of a torrent (BEP 9, 19, 52, 53), read and written.
//! Never: resolves a host or asks a tracker.
//! Flow: links that users give come in; links to torrents that are shared go out.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::limits::{ADDRESSES_MAX, MAGNET_BYTES_MAX};
use crate::metainfo::{Metainfo, usable_url};
use crate::sanitise;
use crate::units::{FileIndex, InfoHash, InfoHashError};

const BTIH: &str = "urn:btih:";
const BTMH: &str = "urn:btmh:";
/// Multihash head of a SHA-256 of 32 bytes.
const SHA256: &str = "1220";

/// A torrent as a link names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Magnet {
    pub info_hash: InfoHash,
    /// Of a hybrid torrent (BEP 52); kept and printed, not used yet.
    pub info_hash_v2: Option<[u8; 32]>,
    /// `dn`, sanitised.
    pub name: Option<String>,
    /// `tr`, in order.
    pub trackers: Vec<String>,
    /// `ws`, in order.
    pub web_seeds: Vec<String>,
    /// `x.pe`: host (IPv6 without brackets) and port of peers.
    pub peers: Vec<(String, u16)>,
    /// `so` (BEP 53): indices of the files to download; all where it is empty.
    pub select: Vec<RangeInclusive<u32>>,
}

/// Why text is no magnet link that can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("a magnet link starts with 'magnet:?'")]
    NotMagnet,
    #[error("the link has more than {MAGNET_BYTES_MAX} bytes")]
    TooLong,
    #[error("the link names no torrent: 'xt=urn:btih:' and an info-hash are missing")]
    NoInfoHash,
    #[error("the link's info-hash is wrong: {0}")]
    InfoHash(#[from] InfoHashError),
    #[error("the link's 'urn:btmh:' should be followed by 1220 and 64 hexadecimal digits")]
    InfoHashV2,
    #[error(
        "v2-only torrents (BEP 52) are not supported yet: the link has 'urn:btmh:' and no \
         'urn:btih:'"
    )]
    V2Only,
}

impl Magnet {
    /// A link that has nothing but the info-hash.
    pub fn new(info_hash: InfoHash) -> Self {
        Self {
            info_hash,
            info_hash_v2: None,
            name: None,
            trackers: Vec::new(),
            web_seeds: Vec::new(),
            peers: Vec::new(),
            select: Vec::new(),
        }
    }
}

impl Magnet {
    /// The trackers as tiers (BEP 12): a link says nothing of an order among them, so each is a
    /// tier of its own, as in libtorrent and qBittorrent. All of them are then announced to where
    /// that is wished, and one that is there twice is asked once.
    pub fn tiers(&self) -> Vec<Vec<String>> {
        let mut seen = BTreeSet::new();
        let once = self.trackers.iter().filter(|url| seen.insert(url.as_str()));
        once.map(|url| vec![url.clone()]).collect()
    }

    /// Whether the link asks for this file (BEP 53). Indices past the torrent's last file mean
    /// nothing.
    pub fn selects(&self, file: FileIndex) -> bool {
        self.select.is_empty() || self.select.iter().any(|range| range.contains(&file.0))
    }
}

impl From<&Metainfo> for Magnet {
    fn from(metainfo: &Metainfo) -> Self {
        Self {
            info_hash_v2: metainfo.info_hash_v2,
            name: Some(metainfo.info.name.clone()),
            trackers: metainfo.announce.concat(),
            web_seeds: metainfo.web_seeds.clone(),
            ..Self::new(metainfo.info_hash)
        }
    }
}

/// Parameters that are not known, addresses that make no sense, and all past the 1,000th are left
/// out; a wrong info-hash is an error.
impl FromStr for Magnet {
    type Err = Error;

    fn from_str(link: &str) -> Result<Self, Error> {
        let link = link.trim();
        if link.len() > MAGNET_BYTES_MAX {
            return Err(Error::TooLong);
        }
        let scheme = link.get(..8).ok_or(Error::NotMagnet)?;
        if !scheme.eq_ignore_ascii_case("magnet:?") {
            return Err(Error::NotMagnet);
        }
        let mut info_hash = None;
        let mut magnet = Self::new(InfoHash([0; 20]));
        for parameter in link[8..].split('&') {
            // Links copied out of HTML have `&amp;` for `&`.
            let parameter = parameter.strip_prefix("amp;").unwrap_or(parameter);
            let Some((key, value)) = parameter.split_once('=') else { continue };
            // Several of a kind may be numbered: `tr.1`, `tr.2`.
            let numbered = key.rsplit_once('.').filter(|(_, n)| n.parse::<u32>().is_ok());
            let key = numbered.map_or(key, |(key, _)| key);
            if key.eq_ignore_ascii_case("xt") {
                magnet.exact_topic(&decode(value, false), &mut info_hash)?;
            } else {
                magnet.parameter(key, value);
            }
        }
        match info_hash {
            Some(info_hash) => Ok(Self { info_hash, ..magnet }),
            None if magnet.info_hash_v2.is_some() => Err(Error::V2Only),
            None => Err(Error::NoInfoHash),
        }
    }
}

impl Magnet {
    /// `xt`: the first info-hash of each kind counts.
    fn exact_topic(&mut self, urn: &[u8], info_hash: &mut Option<InfoHash>) -> Result<(), Error> {
        let urn = String::from_utf8_lossy(urn);
        if let Some(digits) = strip_prefix_any_case(&urn, BTIH) {
            let parsed = match digits.len() {
                32 => InfoHash::from_base32(digits),
                _ => digits.parse(),
            };
            info_hash.get_or_insert(parsed?);
        } else if let Some(multihash) = strip_prefix_any_case(&urn, BTMH) {
            let hash = multihash.strip_prefix(SHA256).and_then(sha256).ok_or(Error::InfoHashV2)?;
            self.info_hash_v2.get_or_insert(hash);
        }
        Ok(())
    }

    fn parameter(&mut self, key: &str, value: &str) {
        let room = |list: usize| list < ADDRESSES_MAX;
        match key {
            "dn" if self.name.is_none() && !value.is_empty() => {
                self.name = Some(sanitise::component(&decode(value, true)));
            }
            "tr" if room(self.trackers.len()) => self.trackers.extend(url(value)),
            "ws" if room(self.web_seeds.len()) => self.web_seeds.extend(url(value)),
            "x.pe" if room(self.peers.len()) => {
                self.peers.extend(url(value).as_deref().and_then(peer));
            }
            "so" => {
                let ranges = decode(value, false);
                let ranges = String::from_utf8_lossy(&ranges);
                let room = ADDRESSES_MAX - self.select.len();
                self.select.extend(ranges.split(',').filter_map(range).take(room));
            }
            _ => {}
        }
    }
}

impl fmt::Display for Magnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "magnet:?xt={BTIH}{}", self.info_hash)?;
        if let Some(hash) = &self.info_hash_v2 {
            write!(f, "&xt={BTMH}{SHA256}")?;
            hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        }
        let mut parameter = |key: &str, value: &str| write!(f, "&{key}={}", Encoded(value));
        if let Some(name) = &self.name {
            parameter("dn", name)?;
        }
        self.trackers.iter().try_for_each(|url| parameter("tr", url))?;
        self.web_seeds.iter().try_for_each(|url| parameter("ws", url))?;
        for (host, port) in &self.peers {
            match host.contains(':') {
                true => write!(f, "&x.pe=[{}]:{port}", Encoded(host))?,
                false => write!(f, "&x.pe={}:{port}", Encoded(host))?,
            }
        }
        for (at, range) in self.select.iter().enumerate() {
            f.write_str(if at == 0 { "&so=" } else { "," })?;
            let (first, last) = (range.start(), range.end());
            match first == last {
                true => write!(f, "{first}")?,
                false => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// Percent-encoded but for what RFC 3986 calls unreserved.
struct Encoded<'text>(&'text str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    write!(f, "{}", byte as char)?;
                }
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

/// `%XX` to bytes; a `%` without two digits stands for itself. Names may have `+` for a space.
fn decode(text: &str, plus_is_space: bool) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| (*byte as char).to_digit(16));
    let text = text.as_bytes();
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match (byte, digit(text.get(at + 1)), digit(text.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high << 4 | low) as u8);
                at += 3;
                continue;
            }
            (b'+', ..) if plus_is_space => decoded.push(b' '),
            _ => decoded.push(*byte),
        }
        at += 1;
    }
    decoded
}

fn url(value: &str) -> Option<String> {
    usable_url(&String::from_utf8(decode(value, false)).ok()?)
}

fn peer(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = bare.unwrap_or(host);
    let is_name = !host.is_empty() && !host.contains(['[', ']']);
    // Without brackets a colon leaves open where an IPv6 address ends.
    (is_name && (bare.is_some() == host.contains(':'))).then(|| (host.to_owned(), port))
}

fn range(text: &str) -> Option<RangeInclusive<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

fn sha256(digits: &str) -> Option<[u8; 32]> {
    let digits = digits.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut hash = [0u8; 32];
    for (at, digit) in digits.iter().enumerate() {
        let value = (*digit as char).to_digit(16)?;
        hash[at / 2] = (hash[at / 2] << 4) | value as u8;
    }
    Some(hash)
}

fn strip_prefix_any_case<'text>(text: &'text str, prefix: &str) -> Option<&'text str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

#[cfg(test)]
mod tests;
