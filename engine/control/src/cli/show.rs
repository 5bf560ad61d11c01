//! Owns: the arguments of `show` and where the running engine is found.
//! Never: speaks to it here; the control socket does.
//! Flow: arguments -> socket path -> the engine's answer, printed.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;

use super::list::EngineArgs;
use super::print;
use crate::control_socket;
use crate::engine::status::TorrentDetail;

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
    row("content", &detail.content);
    row(".torrent", &detail.torrent_file);
    row("magnet", &detail.magnet);
    for tracker in &detail.trackers {
        let next = tracker.next_announce_in_s.map_or(String::new(), |s| format!(", next in {s} s"));
        let message = tracker.message.as_deref().map_or(String::new(), |m| format!(", {m}"));
        row("tracker", &format!("{} {}{next}{message}", tracker.url, tracker.state));
    }
    for peer in &detail.peers {
        let line = format!(
            "{} {} {} {}/s {}.{} %{}{}",
            peer.address,
            peer.client,
            print::size(peer.uploaded_bytes),
            print::size(peer.upload_bytes_per_s),
            peer.progress_permille / 10,
            peer.progress_permille % 10,
            if peer.interested { " interested" } else { "" },
            if peer.unchoked { " unchoked" } else { "" },
        );
        row("peer", &line);
    }
    out
}
