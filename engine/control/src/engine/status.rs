//! What the engine tells people and programs about itself.
//!
//! Owns: the report types, answering requests of the control socket, the tracker's pages.
//! Never: changes anything. Flow: request -> registry, shards' statistics, trackers -> report.

mod display;
mod health;
mod pages;
mod ready;

use std::time::Duration;

use seedring_proto::{swarm::roster::Source, units::InfoHash};
use seedring_shard::{Command, PeerReport, torrent::TorrentId};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

pub use self::{
    display::{Display, duration},
    health::HealthReport,
    pages::{Pages, public_tiers, with_trackers},
};
use super::{
    Engine,
    commands::Action,
    download::missing_bytes,
    start::ANSWER_WITHIN,
    torrents::{State, Torrent},
    verify::unhashed_bytes,
};
use crate::{plan::uses_embedded, state::Moving};

/// The whole engine, as `seedring list` shows it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EngineReport {
    pub version: String,
    pub uptime_s: u64,
    pub listening: Vec<String>,
    pub connections: u32,
    pub uploaded_bytes: u64,
    /// Wanted torrents that could not be read or made, and why.
    pub failed: Vec<FailedReport>,
    /// Torrents still being read or made.
    pub preparing: usize,
    /// From start until every torrent was dealt with; `None`: not there yet.
    pub ready_after_ms: Option<u64>,
    /// Why what changed is not in the state store; `None`: it is, or will be in seconds.
    #[serde(default)]
    pub not_saved: Option<String>,
    pub shards: Vec<ShardReport>,
    pub torrents: Vec<TorrentReport>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FailedReport {
    pub source: String,
    pub why: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ShardReport {
    pub shard: usize,
    pub connections: u32,
    pub half_open: u32,
    pub unchoked: u32,
    pub accepted: u64,
    pub dialed: u64,
    pub refused: u64,
    pub violations: u64,
    pub handed_over: u64,
    pub uploaded_bytes: u64,
    pub blocks: u64,
    pub rejected: u64,
    pub sends: u64,
    pub zero_copy_sends: u64,
    pub zero_copy_copied: u64,
    pub cache_bytes: u64,
    pub cache_cap_bytes: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub reads: u64,
    pub read_bytes: u64,
    pub direct_reads: u64,
    pub hashed_bytes: u64,
    pub hash_failures: u64,
    pub memory_stalls: u64,
    pub open_files: u32,
    /// Block service time: request parsed to send completed.
    pub service_p50_us: u64,
    pub service_p99_us: u64,
    pub service_max_us: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TorrentReport {
    pub info_hash: String,
    pub name: String,
    /// `seeding`, `partial`, `verifying`, `waiting`, `downloading`, `halted`, `metadata`, `paused`,
    /// `moving` (which is seeding too).
    pub state: String,
    /// What is wrong or under way, for people.
    pub detail: Option<String>,
    pub total_bytes: u64,
    pub pieces: u32,
    pub pieces_offered: u32,
    pub pieces_verified: u32,
    pub uploaded_bytes: u64,
    pub connections: u32,
    pub private: bool,
    pub source: String,
    #[serde(default)]
    pub downloaded_bytes: u64,
    /// Bytes that are wanted and missing.
    #[serde(default)]
    pub missing_bytes: u64,
    #[serde(default)]
    pub download_bytes_per_s: u64,
    #[serde(default)]
    pub upload_bytes_per_s: u64,
    /// How fast it is hashed, while it is verified.
    #[serde(default)]
    pub hashed_bytes_per_s: u64,
    /// Until it is verified or downloaded, at the rate of now; `None`: it is, or nothing comes.
    #[serde(default)]
    pub eta_s: Option<u64>,
    #[serde(default)]
    pub labels: Vec<String>,
    /// Seconds since 1970, as the next one.
    #[serde(default)]
    pub added_at: i64,
    /// When all that is wanted of a download was there; `None`: it is not, or was never downloaded.
    #[serde(default)]
    pub completed_at: Option<i64>,
    /// Added by a command: a command may remove it.
    #[serde(default)]
    pub added: bool,
}

/// One torrent in full, as `seedring show` shows it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TorrentDetail {
    pub torrent: TorrentReport,
    pub content: String,
    pub torrent_file: String,
    pub magnet: String,
    pub trackers: Vec<TrackerReport>,
    pub peers: Vec<PeerLine>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TrackerReport {
    pub tier: u16,
    /// Secrets masked; `embedded`: our own.
    pub url: String,
    pub state: String,
    pub next_announce_in_s: Option<u64>,
    pub seeders: Option<u32>,
    pub leechers: Option<u32>,
    pub message: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PeerLine {
    pub shard: usize,
    pub address: String,
    pub client: String,
    pub dialed: bool,
    pub interested: bool,
    pub unchoked: bool,
    pub queued_requests: u32,
    pub uploaded_bytes: u64,
    pub upload_bytes_per_s: u64,
    pub progress_permille: u16,
    pub zero_copy: bool,
    /// Who named it: tracker, magnet, pex; incoming: it came by itself.
    #[serde(default)]
    pub source: String,
}

/// Peer reports that wait for one `show`, a shard.
const PEER_REPORTS: usize = 4;

/// What the control socket asks; the answer is a JSON document.
pub enum Request {
    List(oneshot::Sender<Result<String, String>>),
    /// An info-hash, the beginning of one, or a name.
    Show(String, oneshot::Sender<Result<String, String>>),
    Health(oneshot::Sender<Result<String, String>>),
    Act(Box<Action>, oneshot::Sender<Result<String, String>>),
}

/// A `show` that waits for the shards' peers.
pub(crate) struct PeerRequest {
    pub parts: mpsc::Sender<(usize, Vec<PeerLine>)>,
}

impl Engine {
    pub(super) async fn answer(&mut self, request: Request) {
        match request {
            Request::List(answer) => {
                let report = serde_json::to_string(&self.report());
                let _ = answer.send(report.map_err(|error| error.to_string()));
            }
            Request::Show(which, answer) => match self.find(&which) {
                Ok(id) => self.show(id, answer),
                Err(why) => {
                    let _ = answer.send(Err(why));
                }
            },
            Request::Health(answer) => {
                let report = serde_json::to_string(&self.health());
                let _ = answer.send(report.map_err(|error| error.to_string()));
            }
            Request::Act(action, answer) => self.act(*action, answer).await,
        }
    }

    pub(super) fn report(&self) -> EngineReport {
        let stats = self.stats.iter().flatten();
        let mut torrents: Vec<TorrentReport> = self.torrents.iter().map(torrent_report).collect();
        torrents.sort_by(|a, b| a.name.cmp(&b.name).then(a.info_hash.cmp(&b.info_hash)));
        let failed = self.pending.failures().map(|(wanted, why)| FailedReport {
            source: wanted.origin.path().display().to_string(),
            why: why.to_owned(),
        });
        EngineReport {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: self.began.elapsed().as_secs(),
            listening: self.shards.listening.iter().map(ToString::to_string).collect(),
            connections: stats.clone().map(|s| s.connections).sum(),
            uploaded_bytes: stats.clone().map(|s| s.uploaded_bytes).sum(),
            failed: failed.collect(),
            preparing: self.pending.len(),
            ready_after_ms: self.all_ready_after.map(|after| after.as_millis() as u64),
            not_saved: self.store.fault(),
            shards: stats.map(shard_report).collect(),
            torrents,
        }
    }

    /// The one torrent that a user means.
    pub(super) fn find(&self, which: &str) -> Result<TorrentId, String> {
        let lower = which.to_ascii_lowercase();
        let matches = |t: &&Torrent| {
            t.name == which || (lower.len() >= 4 && t.info_hash().to_string().starts_with(&lower))
        };
        let found: Vec<&Torrent> = self.torrents.iter().filter(matches).collect();
        match found[..] {
            [torrent] => Ok(torrent.shared.id),
            [] => Err(format!(
                "no torrent is called \"{which}\", and no info-hash begins so (4 digits of it or \
                 more); see `seedring list`"
            )),
            _ => Err(format!("{} torrents match \"{which}\"; give the info-hash", found.len())),
        }
    }

    fn show(&mut self, id: TorrentId, answer: oneshot::Sender<Result<String, String>>) {
        let Some(torrent) = self.torrents.get(id) else { return };
        let hash = torrent.info_hash();
        let mut detail = TorrentDetail {
            torrent: torrent_report(torrent),
            content: torrent.place.content.display().to_string(),
            torrent_file: torrent.place.torrent_file.display().to_string(),
            magnet: self.catalogue.magnet(&hash).unwrap_or_default(),
            ..TorrentDetail::default()
        };
        if let Some(embedded) = self.embedded.as_ref()
            && uses_embedded(&torrent.wanted.trackers)
        {
            let counts = embedded.counts(&hash).unwrap_or_default();
            detail.trackers.push(TrackerReport {
                url: String::from("embedded"),
                state: String::from("serving"),
                seeders: Some(counts.seeders),
                leechers: Some(counts.leechers),
                ..TrackerReport::default()
            });
        }
        let shards = self.shards.len();
        // Answers to others who ask at the same time come here too.
        let (parts, mut reports) = mpsc::channel(shards * PEER_REPORTS);
        self.peer_requests.entry(id).or_default().push(PeerRequest { parts });
        self.shards.send_all(|| Command::Peers(id));
        let trackers = self.trackers.clone();
        // Beside the loop, which has to go on to hear what the shards say.
        tokio::spawn(async move {
            let status = trackers.status(hash).await.unwrap_or_default();
            detail.trackers.extend(status.trackers.into_iter().map(tracker_report));
            detail.trackers.extend(status.unusable.into_iter().map(|(url, why)| TrackerReport {
                url,
                state: String::from("unusable"),
                message: Some(why.to_string()),
                ..TrackerReport::default()
            }));
            let mut heard = std::collections::HashSet::new();
            while heard.len() < shards {
                let next = tokio::time::timeout(ANSWER_WITHIN, reports.recv()).await;
                let Ok(Some((shard, peers))) = next else { break };
                if heard.insert(shard) {
                    detail.peers.extend(peers);
                }
            }
            let report = serde_json::to_string(&detail).map_err(|error| error.to_string());
            let _ = answer.send(report);
        });
    }

    /// A shard's peers of a torrent, for whoever waits. Requests that have their answer (or gave
    /// up) go.
    pub(super) fn peers_reported(&mut self, id: TorrentId, shard: usize, peers: &[PeerReport]) {
        let Some(waiting) = self.peer_requests.get_mut(&id) else { return };
        let lines = peers.iter().map(|peer| {
            let source = peer.contact.and_then(|contact| self.peers.source_of(id, contact));
            PeerLine { source: source_name(source, peer.dialed).into(), ..peer_line(shard, peer) }
        });
        let lines: Vec<PeerLine> = lines.collect();
        waiting.retain(|request| request.parts.try_send((shard, lines.clone())).is_ok());
        if waiting.is_empty() {
            self.peer_requests.remove(&id);
        }
    }
}

pub(super) fn torrent_report(torrent: &Torrent) -> TorrentReport {
    let pieces = &torrent.shared.pieces;
    let (state, detail) = match &torrent.state {
        State::Verifying { done, of, .. } => {
            ("verifying", Some(format!("{done} of {of} pieces hashed")))
        }
        State::Seeding => match moving(torrent) {
            Some(detail) => ("moving", Some(detail)),
            None => ("seeding", problem(torrent)),
        },
        State::Partial => ("partial", torrent.note.clone()),
        State::Waiting(why) => ("waiting", Some(why.clone())),
        State::Metadata => ("metadata", torrent.note.clone()),
        State::Paused => ("paused", None),
        State::Downloading => match torrent.download.as_ref().and_then(|it| it.halted.as_ref()) {
            Some(halt) => ("halted", Some(halt.why.clone())),
            None => ("downloading", None),
        },
    };
    let download = torrent.download.as_ref();
    let rates = download.map(|it| it.rates).unwrap_or_default();
    let (missing_bytes, unhashed_bytes) = (missing_bytes(torrent), unhashed_bytes(torrent));
    let hashed = if unhashed_bytes > 0 { torrent.hashing.bytes_per_s() } else { 0.0 };
    let (left, rate) =
        if unhashed_bytes > 0 { (unhashed_bytes, hashed) } else { (missing_bytes, rates.down) };
    TorrentReport {
        info_hash: torrent.info_hash().to_string(),
        name: torrent.name.clone(),
        state: state.into(),
        detail,
        total_bytes: torrent.total_bytes,
        pieces: pieces.piece_count(),
        pieces_offered: pieces.offered_count(),
        pieces_verified: pieces.verified_count(),
        uploaded_bytes: torrent.uploaded_bytes(),
        connections: torrent.shared.connections.load(std::sync::atomic::Ordering::Relaxed),
        private: torrent.private,
        source: torrent.wanted.origin.path().display().to_string(),
        downloaded_bytes: torrent.downloaded_bytes(),
        missing_bytes,
        download_bytes_per_s: rates.down as u64,
        upload_bytes_per_s: rates.up as u64,
        hashed_bytes_per_s: hashed as u64,
        eta_s: (left > 0 && rate >= 1.0).then(|| (left as f64 / rate).ceil() as u64),
        labels: download.map(|it| it.row.labels.clone()).unwrap_or_default(),
        added_at: torrent.added_at,
        completed_at: download.and_then(|it| it.row.completed_at),
        added: torrent.wanted.origin.is_added(),
    }
}

/// Where it is on its way to, and how far.
fn moving(torrent: &Torrent) -> Option<String> {
    let download = torrent.download.as_ref()?;
    let (progress, goal) = (download.mover.progress()?, download.row.goal.as_ref()?);
    Some(match download.row.moving {
        Moving::Removing => format!("removing it from {}", goal.folder.display()),
        _ => format!("to {}, {} %", goal.folder.display(), progress.percent()),
    })
}

fn problem(torrent: &Torrent) -> Option<String> {
    let moving = torrent.download.as_ref().and_then(|download| download.mover.problem.clone());
    torrent.note.clone().or(moving)
}

fn shard_report(stats: &seedring_shard::stats::Stats) -> ShardReport {
    ShardReport {
        shard: stats.shard,
        connections: stats.connections,
        half_open: stats.half_open,
        unchoked: stats.unchoked,
        accepted: stats.accepted,
        dialed: stats.dialed,
        refused: stats.refused,
        violations: stats.violations,
        handed_over: stats.handed_over,
        uploaded_bytes: stats.uploaded_bytes,
        blocks: stats.blocks,
        rejected: stats.rejected,
        sends: stats.sends,
        zero_copy_sends: stats.zero_copy_sends,
        zero_copy_copied: stats.zero_copy_copied,
        cache_bytes: stats.cache_bytes,
        cache_cap_bytes: stats.cache_cap_bytes,
        cache_hits: stats.cache_hits,
        cache_misses: stats.cache_misses,
        reads: stats.reads,
        read_bytes: stats.read_bytes,
        direct_reads: stats.direct_reads,
        hashed_bytes: stats.hashed_bytes,
        hash_failures: stats.hash_failures,
        memory_stalls: stats.memory_stalls,
        open_files: stats.open_files,
        service_p50_us: stats.service_us.value_at_quantile(0.5),
        service_p99_us: stats.service_us.value_at_quantile(0.99),
        service_max_us: stats.service_us.max(),
    }
}

fn tracker_report(status: crate::trackers::TrackerStatus) -> TrackerReport {
    TrackerReport {
        tier: status.tier,
        url: status.url,
        state: format!("{:?}", status.state).to_lowercase(),
        next_announce_in_s: status.next_announce_in.map(|wait: Duration| wait.as_secs()),
        seeders: status.seeders,
        leechers: status.leechers,
        message: status.message,
    }
}

fn source_name(source: Option<Source>, dialed: bool) -> &'static str {
    match source {
        Some(Source::Tracker) => "tracker",
        Some(Source::Magnet) => "magnet",
        Some(Source::Lsd) => "lsd",
        Some(Source::Dht) => "dht",
        Some(Source::Pex) => "pex",
        Some(Source::Incoming) => "incoming",
        None if dialed => "",
        None => "incoming",
    }
}

fn peer_line(shard: usize, peer: &PeerReport) -> PeerLine {
    PeerLine {
        shard,
        address: peer.address.to_string(),
        client: peer.client.clone(),
        dialed: peer.dialed,
        interested: peer.interested,
        unchoked: peer.unchoked,
        queued_requests: peer.queued_requests,
        uploaded_bytes: peer.uploaded_bytes,
        upload_bytes_per_s: peer.upload_bytes_per_s,
        progress_permille: peer.progress_permille,
        zero_copy: peer.zero_copy,
        source: String::new(),
    }
}

/// For reports that name a torrent by its hash.
pub(super) fn magnet_of(name: &str, hash: InfoHash, trackers: Vec<String>) -> String {
    let mut magnet = seedring_proto::magnet::Magnet::new(hash);
    magnet.name = Some(name.to_owned());
    magnet.trackers = trackers;
    magnet.to_string()
}
