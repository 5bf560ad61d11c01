//! The embedded tracker's swarms.
//!
//! Owns: who is in which swarm, what an announce and a scrape are answered (BEP 3, 7, 23, 48),
//! expiry.
//! Never: opens a socket; takes an address from a query unless the operator allowed it.
//! Flow: the embedded tracker's server gives parsed queries and the connection's two ends; bytes
//! come back.
//!
//! Seedring's own peer is not announced over HTTP but registered: it is offered with the address
//! by
//! which the asking client reached the tracker, so that one configuration works on loopback, in a
//! container and on a LAN.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::announce::Event;
use super::jitter::Jitter;
use super::query::AnnounceQuery;
use crate::bencode::Encoder;
use crate::units::{InfoHash, PeerId};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Serve any info-hash instead of the allowed ones only.
    pub open: bool,
    pub interval: Duration,
    pub min_interval: Duration,
    pub swarms_max: usize,
    pub peers_per_swarm_max: usize,
    pub peers_max: usize,
    /// Peers that one address may hold in a swarm; loopback is exempt.
    pub peers_per_ip_max: usize,
    pub numwant_default: usize,
    pub numwant_max: usize,
    /// Believe `ip=` and `ipv6=` of clients on loopback and private networks.
    pub trust_claimed_ip: bool,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            open: false,
            interval: Duration::from_secs(1800),
            min_interval: Duration::from_secs(60),
            swarms_max: 200_000,
            peers_per_swarm_max: 5_000,
            peers_max: 500_000,
            peers_per_ip_max: 64,
            numwant_default: 50,
            numwant_max: 200,
            trust_claimed_ip: false,
            seed: 0,
        }
    }
}

/// The two ends of a client's connection, and the Host header where it is an address.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    pub client: SocketAddr,
    pub local: SocketAddr,
    pub host: Option<IpAddr>,
}

/// Seedring itself, as a peer of the torrents it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPeer {
    pub peer_id: PeerId,
    /// Where it takes peers; an unspecified address stands for the one the client used.
    pub listens: Vec<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("this tracker does not serve that torrent")]
    NotServed,
    #[error("this tracker is full")]
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub seeders: u32,
    pub leechers: u32,
    pub downloaded: u32,
}

/// What an announce comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Bencoded, for the client.
    pub body: Vec<u8>,
    /// The client, where it is missing something of a torrent that seedring's own peer is in: it
    /// can be dialled there. Never one for whom the swarm has no place, so what one address makes
    /// us dial is bounded.
    pub leech: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy)]
struct Peer {
    address: SocketAddr,
    peer_id: PeerId,
    seeds: bool,
    completed: bool,
    seen: Duration,
}

#[derive(Debug, Default)]
struct Swarm {
    peers: Vec<Peer>,
    by_address: HashMap<SocketAddr, usize>,
    downloaded: u32,
    /// We are in it: whether with everything.
    own_seeds: Option<bool>,
}

#[derive(Debug)]
pub struct SwarmStore {
    options: Options,
    jitter: Jitter,
    allowed: HashSet<InfoHash>,
    swarms: HashMap<InfoHash, Swarm>,
    own: Option<OwnPeer>,
    peers: usize,
    expired_at: Duration,
}

impl SwarmStore {
    #[must_use]
    pub fn new(options: Options) -> Self {
        let jitter = Jitter::new(options.seed);
        Self {
            options,
            jitter,
            allowed: HashSet::new(),
            swarms: HashMap::new(),
            own: None,
            peers: 0,
            expired_at: Duration::ZERO,
        }
    }

    /// Serves this info-hash also where the tracker is closed.
    pub fn allow(&mut self, info_hash: InfoHash) {
        self.allowed.insert(info_hash);
    }

    /// Forgets the torrent, its peers included.
    pub fn disallow(&mut self, info_hash: &InfoHash) {
        self.allowed.remove(info_hash);
        if let Some(swarm) = self.swarms.remove(info_hash) {
            self.peers -= swarm.peers.len();
        }
    }

    pub fn set_own(&mut self, own: OwnPeer) {
        self.own = Some(own);
    }

    /// Seedring's own peer is in this swarm from now on; allows the info-hash.
    pub fn register_self(&mut self, info_hash: InfoHash, seeds: bool) {
        self.allow(info_hash);
        self.swarms.entry(info_hash).or_default().own_seeds = Some(seeds);
    }

    /// Seedring's own peer left (paused, or its content is missing); the swarm stays.
    pub fn unregister_self(&mut self, info_hash: &InfoHash) {
        if let Some(swarm) = self.swarms.get_mut(info_hash) {
            swarm.own_seeds = None;
        }
    }

    #[must_use]
    pub fn peers(&self) -> usize {
        self.peers
    }

    #[must_use]
    pub fn counts(&self, info_hash: &InfoHash) -> Option<Counts> {
        self.swarms.get(info_hash).map(Swarm::counts)
    }

    pub fn announce(
        &mut self,
        now: Duration,
        query: &AnnounceQuery,
        ends: &Ends,
    ) -> Result<Answer, Refusal> {
        self.expire(now);
        if !self.serves(&query.info_hash) {
            return Err(Refusal::NotServed);
        }
        if !self.swarms.contains_key(&query.info_hash)
            && self.swarms.len() >= self.options.swarms_max
        {
            return Err(Refusal::Full);
        }
        let is_own = self.own.as_ref().is_some_and(|own| own.peer_id == query.peer_id);
        let address = self.client_address(query, ends);
        let noted = !is_own && self.note(now, query, address);
        let Some(swarm) = self.swarms.get(&query.info_hash) else {
            // `stopped` for a swarm that nobody is in.
            let body = encode(&self.options, Counts::default(), &[], query, ends);
            return Ok(Answer { body, leech: None });
        };
        let dialable = noted && query.left_bytes > 0 && swarm.own_seeds.is_some();
        let leech = dialable.then_some(address);
        let wanted = query.numwant.map_or(self.options.numwant_default, |n| n as usize);
        let wanted =
            if query.event == Event::Stopped { 0 } else { wanted.min(self.options.numwant_max) };
        let seeds = swarm.has_completed(query, address);
        let mut chosen = Vec::new();
        let useful = swarm.own_seeds.is_some_and(|own_seeds| !(own_seeds && seeds));
        if let Some(own) = self.own.as_ref().filter(|_| useful && !is_own && wanted > 0) {
            chosen = own_addresses(own, ends).into_iter().map(|a| (a, own.peer_id)).collect();
        }
        let room = wanted.saturating_sub(chosen.len());
        swarm.sample(address, query, seeds, room, &mut self.jitter, &mut chosen);
        Ok(Answer { body: encode(&self.options, swarm.counts(), &chosen, query, ends), leech })
    }

    /// The bencoded answer to a scrape (BEP 48). Only named torrents: a closed tracker does not
    /// list.
    #[must_use]
    pub fn scrape(&self, hashes: &[InfoHash]) -> Vec<u8> {
        let mut hashes: Vec<InfoHash> = hashes.to_vec();
        hashes.sort_unstable();
        hashes.dedup();
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out);
        encoder.begin_dict().key("files").begin_dict();
        for hash in &hashes {
            let Some(counts) = self.swarms.get(hash).map(Swarm::counts) else { continue };
            encoder.key(hash.0).begin_dict();
            encoder.key("complete").int(counts.seeders.into());
            encoder.key("downloaded").int(counts.downloaded.into());
            encoder.key("incomplete").int(counts.leechers.into());
            encoder.end();
        }
        encoder.end().end();
        encoder.finish();
        out
    }

    /// Drops peers that were silent for two intervals; at most once in a sixteenth of one.
    pub fn expire(&mut self, now: Duration) {
        if now < self.expired_at + self.options.interval / 16 {
            return;
        }
        self.expired_at = now;
        let silence = self.options.interval * 2 + Duration::from_secs(60);
        let oldest = now.saturating_sub(silence);
        let mut gone = 0;
        let allowed = &self.allowed;
        self.swarms.retain(|hash, swarm| {
            // From the end, so that what a removal moves was looked at already.
            for at in (0..swarm.peers.len()).rev() {
                if swarm.peers[at].seen < oldest {
                    swarm.remove(at);
                    gone += 1;
                }
            }
            allowed.contains(hash) || !swarm.peers.is_empty() || swarm.own_seeds.is_some()
        });
        self.peers -= gone;
    }

    fn serves(&self, info_hash: &InfoHash) -> bool {
        self.options.open || self.allowed.contains(info_hash)
    }

    /// The connection's address with the announced port; a claimed one only where it is believed.
    fn client_address(&self, query: &AnnounceQuery, ends: &Ends) -> SocketAddr {
        let seen = ends.client.ip().to_canonical();
        let claimed = query.claimed_ip.or(query.claimed_ipv6.map(IpAddr::V6));
        let ip = match claimed {
            Some(claimed) if self.options.trust_claimed_ip && is_near(seen) => claimed,
            _ => seen,
        };
        SocketAddr::new(ip, query.port)
    }

    /// `true`: it is in the swarm from here on.
    fn note(&mut self, now: Duration, query: &AnnounceQuery, address: SocketAddr) -> bool {
        if query.event == Event::Stopped {
            if let Some(swarm) = self.swarms.get_mut(&query.info_hash) {
                self.peers -= usize::from(swarm.leave(address));
            }
            return false;
        }
        let swarm = self.swarms.entry(query.info_hash).or_default();
        let seeds = query.left_bytes == 0;
        let peer_id = query.peer_id;
        let completed = query.event == Event::Completed;
        if let Some(&at) = swarm.by_address.get(&address) {
            let peer = &mut swarm.peers[at];
            swarm.downloaded += u32::from(completed && !peer.completed);
            let completed = completed || peer.completed;
            *peer = Peer { address, peer_id, seeds, completed, seen: now };
            return true;
        }
        let ip = address.ip();
        let crowded = !ip.is_loopback()
            && swarm.peers.iter().filter(|p| p.address.ip() == ip).count()
                >= self.options.peers_per_ip_max;
        let full = swarm.peers.len() >= self.options.peers_per_swarm_max
            || self.peers >= self.options.peers_max;
        if crowded || full {
            // It still gets peers; it is only not offered to others.
            return false;
        }
        swarm.downloaded += u32::from(completed);
        swarm.by_address.insert(address, swarm.peers.len());
        swarm.peers.push(Peer { address, peer_id, seeds, completed, seen: now });
        self.peers += 1;
        true
    }
}

impl Swarm {
    fn counts(&self) -> Counts {
        let seeding = self.peers.iter().filter(|p| p.seeds).count()
            + usize::from(self.own_seeds == Some(true));
        let all = self.peers.len() + usize::from(self.own_seeds.is_some());
        let number = |n| u32::try_from(n).unwrap_or(u32::MAX);
        Counts {
            seeders: number(seeding),
            leechers: number(all - seeding),
            downloaded: self.downloaded,
        }
    }

    /// Known to have the content: it said that it completed here. That nothing is left is not
    /// enough: aria2 says so while it has a magnet link and no metadata yet (1.36), and would be
    /// left without peers.
    fn has_completed(&self, query: &AnnounceQuery, address: SocketAddr) -> bool {
        let known = self.by_address.get(&address).is_some_and(|&at| self.peers[at].completed);
        query.left_bytes == 0 && (known || query.event == Event::Completed)
    }

    fn leave(&mut self, address: SocketAddr) -> bool {
        let Some(&at) = self.by_address.get(&address) else { return false };
        self.remove(at);
        true
    }

    fn remove(&mut self, at: usize) {
        let gone = self.peers.swap_remove(at);
        self.by_address.remove(&gone.address);
        if let Some(moved) = self.peers.get(at) {
            self.by_address.insert(moved.address, at);
        }
    }

    /// Up to `room` others at random (reservoir sampling); who completed is not given
    /// seeds.
    fn sample(
        &self,
        asking: SocketAddr,
        query: &AnnounceQuery,
        seeds: bool,
        room: usize,
        jitter: &mut Jitter,
        chosen: &mut Vec<(SocketAddr, PeerId)>,
    ) {
        let first = chosen.len();
        let local = asking.ip().is_loopback();
        let others = self.peers.iter().filter(|p| {
            let other = p.address != asking && p.peer_id != query.peer_id;
            other && !(seeds && p.seeds) && (local || !p.address.ip().is_loopback())
        });
        for (n, peer) in others.enumerate() {
            let offered = (peer.address, peer.peer_id);
            if n < room {
                chosen.push(offered);
            } else {
                let at = jitter.below(n + 1);
                if at < room {
                    chosen[first + at] = offered;
                }
            }
        }
    }
}

/// Where this client can reach seedring.
fn own_addresses(own: &OwnPeer, ends: &Ends) -> Vec<SocketAddr> {
    let client_is_local = ends.client.ip().to_canonical().is_loopback();
    let mut out = Vec::new();
    let mut offer = |ip: IpAddr, port: u16| {
        let address = SocketAddr::new(ip, port);
        if !out.contains(&address) && (client_is_local || !ip.is_loopback()) {
            out.push(address);
        }
    };
    for listen in &own.listens {
        let ip = listen.ip().to_canonical();
        if !ip.is_unspecified() {
            offer(ip, listen.port());
            continue;
        }
        // Behind a forwarded port (a container) only the Host header knows the outer address.
        let used = [ends.host, Some(ends.local.ip())];
        for used in used.into_iter().flatten().map(|ip| ip.to_canonical()) {
            if used.is_ipv4() == ip.is_ipv4() && !used.is_unspecified() {
                offer(used, listen.port());
            }
        }
    }
    out
}

fn is_near(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

fn encode(
    options: &Options,
    counts: Counts,
    peers: &[(SocketAddr, PeerId)],
    query: &AnnounceQuery,
    ends: &Ends,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(128 + peers.len() * 18);
    let mut encoder = Encoder::new(&mut out);
    encoder.begin_dict();
    encoder.key("complete").int(counts.seeders.into());
    encoder.key("downloaded").int(counts.downloaded.into());
    match ends.client.ip().to_canonical() {
        IpAddr::V4(ip) => encoder.key("external ip").bytes(&ip.octets()),
        IpAddr::V6(ip) => encoder.key("external ip").bytes(&ip.octets()),
    };
    encoder.key("incomplete").int(counts.leechers.into());
    encoder.key("interval").int(seconds(options.interval));
    encoder.key("min interval").int(seconds(options.min_interval));
    if query.compact {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (address, _) in peers {
            match address.ip() {
                IpAddr::V4(ip) => {
                    v4.extend(ip.octets().into_iter().chain(address.port().to_be_bytes()))
                }
                IpAddr::V6(ip) => {
                    v6.extend(ip.octets().into_iter().chain(address.port().to_be_bytes()))
                }
            }
        }
        encoder.key("peers").bytes(&v4);
        if !v6.is_empty() {
            encoder.key("peers6").bytes(&v6);
        }
    } else {
        encoder.key("peers").begin_list();
        for (address, peer_id) in peers {
            encoder.begin_dict().key("ip").str(&address.ip().to_string());
            if !query.no_peer_id {
                encoder.key("peer id").bytes(&peer_id.0);
            }
            encoder.key("port").int(address.port().into()).end();
        }
        encoder.end();
    }
    encoder.end();
    encoder.finish();
    out
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
