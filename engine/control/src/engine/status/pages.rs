//! What the embedded tracker's pages list: our torrents, their magnets and .torrent files.
//!
//! Owns: a table of names for other threads to read. Never: the registry itself.
//! Flow: the engine puts and removes; the tracker's pages ask.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, sync::RwLock};

use seedring_proto::units::InfoHash;

use super::magnet_of;
use crate::{
    config::model::{Config, TrackerRef, Trackers},
    engine::torrents::Torrent,
    trackers::embedded::{Catalogue, Listing},
};

#[derive(Default)]
pub struct Pages {
    rows: RwLock<Rows>,
}

#[derive(Default)]
struct Rows {
    by_hash: HashMap<InfoHash, Row>,
    by_file: HashMap<String, InfoHash>,
    /// The announce URL of the embedded tracker, where the user fixed one.
    fixed_url: Option<String>,
    listen: Option<SocketAddr>,
}

struct Row {
    name: String,
    file: String,
    size_bytes: u64,
    torrent_file: PathBuf,
    tiers: Tiers,
}

enum Tiers {
    Keep(Vec<Vec<String>>),
    /// `None`: the embedded tracker.
    Own(Vec<Vec<Option<String>>>),
}

impl Rows {
    fn announce_url(&self, reached_as: Option<&str>) -> Option<String> {
        if let Some(url) = &self.fixed_url {
            return Some(url.clone());
        }
        match (reached_as, self.listen) {
            (Some(host), _) => Some(format!("http://{host}/announce")),
            (None, Some(listen)) => Some(format!("http://{listen}/announce")),
            (None, None) => None,
        }
    }

    fn tiers(&self, row: &Row, reached_as: Option<&str>) -> Vec<Vec<String>> {
        match &row.tiers {
            Tiers::Keep(tiers) => tiers.clone(),
            Tiers::Own(tiers) => {
                let url = |url: &Option<String>| url.clone().or(self.announce_url(reached_as));
                let tiers = tiers.iter().map(|tier| tier.iter().filter_map(url).collect());
                tiers.filter(|tier: &Vec<String>| !tier.is_empty()).collect()
            }
        }
    }

    fn magnet(&self, hash: &InfoHash, reached_as: Option<&str>) -> Option<String> {
        let row = self.by_hash.get(hash)?;
        let trackers = self.tiers(row, reached_as).into_iter().flatten().collect();
        Some(magnet_of(&row.name, *hash, trackers))
    }
}

impl Pages {
    pub fn set_url(&self, config: &Config, listen: Option<SocketAddr>) {
        let mut rows = self.rows.write().expect("invariant: no panic while held");
        rows.fixed_url = config.tracker.as_ref().and_then(|tracker| tracker.url.clone());
        rows.listen = listen;
    }

    pub fn put(&self, torrent: &Torrent) {
        let mut rows = self.rows.write().expect("invariant: no panic while held");
        let hash = torrent.info_hash();
        let tiers = match &torrent.wanted.trackers {
            Trackers::Keep => {
                let tiers = torrent
                    .tiers
                    .iter()
                    .map(|tier| tier.iter().filter(|url| !has_secret(url)).cloned().collect());
                Tiers::Keep(tiers.filter(|tier: &Vec<String>| !tier.is_empty()).collect())
            }
            Trackers::Tiers(tiers) => Tiers::Own(
                tiers.iter().map(|tier| tier.iter().filter_map(public_url).collect()).collect(),
            ),
        };
        // Two torrents of one name: the second is listed under its hash.
        let taken = rows.by_file.get(&torrent.name).is_some_and(|other| *other != hash);
        let file = if taken { hash.to_string() } else { torrent.name.clone() };
        rows.by_file.insert(file.clone(), hash);
        let row = Row {
            name: torrent.name.clone(),
            file,
            size_bytes: torrent.total_bytes,
            torrent_file: torrent.place.torrent_file.clone(),
            tiers,
        };
        rows.by_hash.insert(hash, row);
    }

    pub fn remove(&self, hash: &InfoHash) {
        let mut rows = self.rows.write().expect("invariant: no panic while held");
        if let Some(row) = rows.by_hash.remove(hash) {
            rows.by_file.remove(&row.file);
        }
    }

    pub fn magnet(&self, hash: &InfoHash) -> Option<String> {
        self.rows.read().expect("invariant: no panic while held").magnet(hash, None)
    }

    /// Where a torrent's .torrent can be fetched from the embedded tracker.
    pub fn torrent_url(&self, hash: &InfoHash) -> Option<String> {
        let rows = self.rows.read().expect("invariant: no panic while held");
        let (listen, row) = (rows.listen?, rows.by_hash.get(hash)?);
        let file = percent_encoded(&row.file);
        Some(format!("http://{listen}/torrents/{file}.torrent"))
    }
}

impl Catalogue for Pages {
    fn listings(&self, reached_as: &str) -> Vec<Listing> {
        let rows = self.rows.read().expect("invariant: no panic while held");
        let listing = |(hash, row): (&InfoHash, &Row)| Listing {
            name: row.name.clone(),
            info_hash: *hash,
            size_bytes: row.size_bytes,
            magnet: rows.magnet(hash, Some(reached_as)).unwrap_or_default(),
            file: Some(row.file.clone()),
        };
        let mut listings: Vec<Listing> = rows.by_hash.iter().map(listing).collect();
        listings.sort_by(|a, b| a.name.cmp(&b.name));
        listings
    }

    fn torrent(&self, name: &str, reached_as: &str) -> Option<Vec<u8>> {
        let (path, tiers) = {
            let rows = self.rows.read().expect("invariant: no panic while held");
            let row = rows.by_hash.get(rows.by_file.get(name)?)?;
            (row.torrent_file.clone(), rows.tiers(row, Some(reached_as)))
        };
        let metainfo = crate::engine::prepare::read_torrent(&path).ok()?;
        Some(with_trackers(&metainfo, &tiers))
    }
}

/// What may be given away of a tracker. `Some(None)`: the embedded one.
#[allow(clippy::option_option, reason = "neither is the other")]
fn public_url(tracker: &TrackerRef) -> Option<Option<String>> {
    match tracker {
        TrackerRef::Embedded => Some(None),
        TrackerRef::Url(url) => (!has_secret(url)).then(|| Some(url.clone())),
    }
}

/// Configured trackers that may be given away. Without the embedded one: where it is reached is
/// known when it is asked.
pub fn public_tiers(trackers: &Trackers) -> Vec<Vec<String>> {
    let Trackers::Tiers(tiers) = trackers else { return Vec::new() };
    let tiers = tiers.iter().map(|tier| tier.iter().filter_map(public_url).flatten().collect());
    tiers.filter(|tier: &Vec<String>| !tier.is_empty()).collect()
}

/// Whether an announce address identifies its user: such a one is for the tracker alone, and goes
/// neither into magnet links nor into .torrent files that we give away.
fn has_secret(url: &str) -> bool {
    seedring_proto::tracker::redact::redact(url) != url
}

/// A name as a path segment of a URL (RFC 3986 unreserved characters stay).
fn percent_encoded(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// A .torrent with the trackers that we announce to, its info dictionary to the byte.
pub fn with_trackers(
    metainfo: &seedring_proto::metainfo::Metainfo,
    tiers: &[Vec<String>],
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(metainfo.raw_info.len() + 512);
    let mut out = seedring_proto::bencode::Encoder::new(&mut bytes);
    out.begin_dict();
    if let Some(first) = tiers.iter().flatten().next() {
        out.key("announce").str(first);
        out.key("announce-list").begin_list();
        for tier in tiers {
            out.begin_list();
            tier.iter().for_each(|url| {
                out.str(url);
            });
            out.end();
        }
        out.end();
    }
    if let Some(comment) = &metainfo.comment {
        out.key("comment").str(comment);
    }
    if let Some(created_by) = &metainfo.created_by {
        out.key("created by").str(created_by);
    }
    if let Some(date) = metainfo.creation_date {
        out.key("creation date").int(date);
    }
    out.key("info").raw(&metainfo.raw_info);
    if !metainfo.web_seeds.is_empty() {
        out.key("url-list").begin_list();
        metainfo.web_seeds.iter().for_each(|url| {
            out.str(url);
        });
        out.end();
    }
    out.end();
    out.finish();
    bytes
}
