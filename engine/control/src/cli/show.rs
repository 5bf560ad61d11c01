//! Owns: the arguments of `show` and where the running engine is found.
//! Never: speaks to it here; the control socket does.
//! Flow: arguments -> socket path -> the engine's answer, printed.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;

use super::list::{self, EngineArgs};
use super::print;
use crate::control_socket;
use crate::engine::status::{PeerLine, TorrentDetail, TrackerReport};

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The torrent: its info-hash, the beginning of it, or its name.
    pub torrent: String,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: ShowArgs) -> ExitCode {
    let socket = match args.engine.socket_path() {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    if args.json {
        return match control_socket::ask::<serde_json::Value>(&socket, Some(&args.torrent)) {
            Ok(detail) => print::json(&detail),
            Err(error) => print::failed(&error),
        };
    }
    match control_socket::ask::<TorrentDetail>(&socket, Some(&args.torrent)) {
        Ok(detail) => print::text(&page(&detail)),
        Err(error) => print::failed(&error),
    }
}

fn page(detail: &TorrentDetail) -> String {
    let torrent = &detail.torrent;
    let labels = torrent.labels.join(", ");
    let mut out = String::new();
    let mut row = |key: &str, value: &str| {
        let _ = writeln!(out, "{key:<12} {}", print::safe(value));
    };
    row("name", &torrent.name);
    row("info-hash", &torrent.info_hash);
    row("state", &torrent.state);
    if let Some(text) = &torrent.detail {
        row("", text);
    }
    row("size", &print::size(torrent.total_bytes));
    let pieces = format!(
        "{}, {} offered, {} verified",
        torrent.pieces, torrent.pieces_offered, torrent.pieces_verified
    );
    row("pieces", &pieces);
    row("uploaded", &print::size(torrent.uploaded_bytes));
    if torrent.downloaded_bytes > 0 {
        row("downloaded", &print::size(torrent.downloaded_bytes));
    }
    if let Some(line) = list::transfer(torrent) {
        row(if torrent.hashed_bytes_per_s > 0 { "verifying" } else { "transfer" }, &line);
    }
    row("added", &print::time(torrent.added_at));
    row("completed", &torrent.completed_at.map_or_else(|| "-".into(), print::time));
    row("labels", if torrent.labels.is_empty() { "-" } else { &labels });
    row("content", &detail.content);
    row(".torrent", &detail.torrent_file);
    row("magnet", &detail.magnet);
    if torrent.private {
        row("private", "yes: its peers come from its own trackers alone");
    }
    if detail.trackers.is_empty() {
        row("tracker", "none");
    }
    for tracker in &detail.trackers {
        row("tracker", &tracker_line(tracker));
    }
    if detail.peers.is_empty() {
        row("peer", "none connected");
    }
    for peer in &detail.peers {
        row("peer", &peer_line(peer));
    }
    out
}

fn tracker_line(tracker: &TrackerReport) -> String {
    let mut line = format!("{} {}", tracker.url, tracker.state);
    if let (Some(seeds), Some(leeches)) = (tracker.seeders, tracker.leechers) {
        line.push_str(&format!(", {seeds} seeding, {leeches} leeching"));
    }
    if let Some(seconds) = tracker.next_announce_in_s {
        line.push_str(&format!(", next in {seconds} s"));
    }
    if let Some(message) = &tracker.message {
        line.push_str(&format!(", {message}"));
    }
    line
}

fn peer_line(peer: &PeerLine) -> String {
    let (whole, tenth) = (peer.progress_permille / 10, peer.progress_permille % 10);
    let choked = match (peer.unchoked, peer.interested) {
        (true, _) => "unchoked",
        (false, true) => "waits for a slot",
        (false, false) => "not interested",
    };
    format!(
        "{} {} has {whole}.{tenth} %, {} sent, {}/s now, {choked}{}",
        peer.address,
        if peer.client.is_empty() { "(unknown client)" } else { &peer.client },
        print::size(peer.uploaded_bytes),
        print::size(peer.upload_bytes_per_s),
        match (peer.source.as_str(), peer.dialed) {
            ("" | "incoming", false) => String::new(),
            ("", true) => ", dialled by us".into(),
            (source, true) => format!(", dialled by us (from {source})"),
            (source, false) => format!(" (also from {source})"),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_labels_trackers_and_peers_say_what_they_are() {
        let mut detail = TorrentDetail::default();
        let text = page(&detail);
        assert!(text.contains("tracker      none") && text.contains("none connected"), "{text}");
        assert!(text.contains("completed    -\n") && text.contains("labels       -\n"), "{text}");
        detail.torrent.added_at = 1_000_000_000;
        detail.torrent.completed_at = Some(1_000_000_061);
        detail.torrent.labels = vec!["tv".into(), "hd".into()];
        detail.torrent.private = true;
        detail.trackers.push(TrackerReport {
            url: "http://t/".into(),
            state: "working".into(),
            next_announce_in_s: Some(60),
            seeders: Some(2),
            leechers: Some(7),
            ..TrackerReport::default()
        });
        detail.peers.push(PeerLine {
            address: "[::1]:5".into(),
            dialed: true,
            interested: true,
            uploaded_bytes: 1024,
            progress_permille: 125,
            source: "pex".into(),
            ..PeerLine::default()
        });
        let text = page(&detail);
        let expected = "http://t/ working, 2 seeding, 7 leeching, next in 60 s";
        assert!(text.contains(expected) && text.contains("private      yes"), "{text}");
        for expected in [
            "added        2001-09-09 01:46:40 UTC\n",
            "completed    2001-09-09 01:47:41 UTC\n",
            "labels       tv, hd\n",
        ] {
            assert!(text.contains(expected), "{text}");
        }
        let expected = "[::1]:5 (unknown client) has 12.5 %, 1.0 KiB sent, 0 B/s now, waits for a \
                        slot, dialled by us (from pex)";
        assert!(text.contains(expected), "{text}");
    }
}
