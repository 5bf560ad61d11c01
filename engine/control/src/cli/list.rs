//! Owns: the arguments of `list` and where the running engine is found.
//! Never: speaks to it here; the control socket does.
//! Flow: arguments -> socket path -> the engine's answer, printed.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;

use std::path::PathBuf;

use super::torrent::percent;
use super::{check, print};
use crate::control_socket;
use crate::engine::status::{EngineReport, TorrentReport, duration};

/// Which engine is meant: one of these, or the environment's, or the quickstart's state_dir.
#[derive(Debug, Args)]
pub struct EngineArgs {
    /// The engine's control socket.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["state_dir", "config"])]
    pub socket: Option<PathBuf>,
    /// The engine's state_dir.
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub state_dir: Option<PathBuf>,
    /// The engine's configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl EngineArgs {
    /// The socket's path; what is wrong with the configuration file is printed.
    pub(super) fn socket_path(&self) -> Result<PathBuf, ExitCode> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        if let Some(dir) = &self.state_dir {
            return Ok(dir.join("control.sock"));
        }
        match &self.config {
            Some(file) => check::load(file).map(|config| config.control_socket),
            None => Ok(crate::config::control_socket_of_environment(&check::environment)
                .unwrap_or_else(|| PathBuf::from("var/seedring/control.sock"))),
        }
    }
}

pub fn run(args: ListArgs) -> ExitCode {
    let socket = match args.engine.socket_path() {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    if args.json {
        return match control_socket::ask::<serde_json::Value>(&socket, None) {
            Ok(report) => print::json(&report),
            Err(error) => print::failed(&error),
        };
    }
    match control_socket::ask::<EngineReport>(&socket, None) {
        Ok(report) => print::text(&table(&report)),
        Err(error) => print::failed(&error),
    }
}

/// For people: a line a torrent, then what the engine as a whole is doing.
fn table(report: &EngineReport) -> String {
    let mut out = String::new();
    let header = ["INFO-HASH", "STATE", "SIZE", "HAD", "UPLOADED", "PEERS", "NAME"];
    let _ = writeln!(
        out,
        "{:<10} {:<11} {:>10} {:>7} {:>10} {:>5}  {}",
        header[0], header[1], header[2], header[3], header[4], header[5], header[6]
    );
    for torrent in &report.torrents {
        let _ = writeln!(
            out,
            "{:<10} {:<11} {:>10} {:>7} {:>10} {:>5}  {}",
            &torrent.info_hash[..10],
            torrent.state,
            print::size(torrent.total_bytes),
            had(torrent),
            print::size(torrent.uploaded_bytes),
            torrent.connections,
            print::safe(&torrent.name)
        );
        if let Some(line) = transfer(torrent) {
            let _ = writeln!(out, "           {line}");
        }
        if let Some(detail) = &torrent.detail {
            let _ = writeln!(out, "           {}", print::safe(detail));
        }
        if !torrent.labels.is_empty() {
            let _ = writeln!(out, "           labels: {}", print::safe(&torrent.labels.join(", ")));
        }
    }
    for failed in &report.failed {
        let _ = writeln!(out, "failed     {}: {}", failed.source, print::safe(&failed.why));
    }
    if let Some(why) = &report.not_saved {
        let _ = writeln!(out, "not saved  {}; it is tried again", print::safe(why));
    }
    let _ = writeln!(
        out,
        "{} torrent{} ({} being prepared), {} peer{}, {} uploaded in {} s, listening on {}",
        report.torrents.len(),
        plural(report.torrents.len() as u64),
        report.preparing,
        report.connections,
        plural(report.connections.into()),
        print::size(report.uploaded_bytes),
        report.uptime_s,
        report.listening.join(", ")
    );
    out
}

/// How much of it is there.
fn had(torrent: &TorrentReport) -> String {
    let pieces = torrent.pieces_offered.max(torrent.pieces_verified);
    match torrent.pieces {
        0 => String::from("?"),
        all => percent(pieces.into(), all.into()),
    }
}

/// What moves of a download: `12.0 MiB/s down, 1.0 MiB/s up, 4 min left, ratio 0.50`; of what is
/// verified: `1.2 GiB/s hashed, 4 min left`.
pub(super) fn transfer(torrent: &TorrentReport) -> Option<String> {
    if torrent.hashed_bytes_per_s > 0 {
        let mut line = format!("{}/s hashed", print::size(torrent.hashed_bytes_per_s));
        if let Some(seconds) = torrent.eta_s {
            let _ = write!(line, ", {} left", duration(seconds as f64));
        }
        return Some(line);
    }
    if torrent.missing_bytes == 0 && torrent.downloaded_bytes == 0 {
        return None;
    }
    let mut line = format!(
        "{}/s down, {}/s up",
        print::size(torrent.download_bytes_per_s),
        print::size(torrent.upload_bytes_per_s)
    );
    if torrent.missing_bytes > 0 {
        let _ = write!(line, ", {} missing", print::size(torrent.missing_bytes));
    }
    if let Some(seconds) = torrent.eta_s {
        let _ = write!(line, ", {} left", duration(seconds as f64));
    }
    if torrent.downloaded_bytes > 0 {
        let ratio = torrent.uploaded_bytes as f64 / torrent.downloaded_bytes as f64;
        let _ = write!(line, ", ratio {ratio:.2}");
    }
    Some(line)
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_a_line_of_their_own_whatever_the_torrent_does() {
        let torrent = |name: &str, labels: &[&str]| TorrentReport {
            info_hash: "0123456789abcdef".into(),
            name: name.into(),
            labels: labels.iter().map(ToString::to_string).collect(),
            ..TorrentReport::default()
        };
        let idle = torrent("idle", &["tv", "a\x1bb"]);
        let hashed = TorrentReport { hashed_bytes_per_s: 1024, ..torrent("hashed", &["tv"]) };
        let fetched = TorrentReport { missing_bytes: 1024, ..torrent("fetched", &["tv"]) };
        let torrents = vec![idle, hashed, fetched, torrent("bare", &[])];
        let text = table(&EngineReport { torrents, ..EngineReport::default() });
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let after = |name: &str| {
            let row = lines.iter().position(|line| line.ends_with(name)).unwrap();
            lines[row + 1..].iter().take_while(|line| !line.starts_with("0123")).collect::<Vec<_>>()
        };
        assert_eq!(after("idle"), [&"labels: tv, a\u{fffd}b"], "{text}");
        assert_eq!(after("hashed"), [&"1.0 KiB/s hashed", &"labels: tv"], "{text}");
        assert_eq!(after("fetched")[1], &"labels: tv", "{text}");
        assert!(!after("bare").iter().any(|line| line.starts_with("labels")), "{text}");
    }
}
