//! Owns: `inspect`: what a .torrent file or a magnet link says, for people or as JSON.
//! Never: opens content, asks a peer or a tracker.
//! Flow: argument -> proto's parsers -> printed; exit 0 when usable, 1 with the reason when not.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::process::ExitCode;

use clap::Args;
use seedring_proto::limits::TORRENT_BYTES_MAX;
use seedring_proto::magnet::Magnet;
use seedring_proto::metainfo::{Kind, Metainfo};
use seedring_proto::units::FileIndex;
use serde_json::{Value as Json, json};

use super::print;

/// Files listed for people; JSON has all.
const FILES_SHOWN_MAX: usize = 200;

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A .torrent file, - for stdin, or a magnet link.
    #[arg(value_name = "FILE|MAGNET")]
    torrent: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: InspectArgs) -> ExitCode {
    let is_magnet = args.torrent.get(..7).is_some_and(|head| head.eq_ignore_ascii_case("magnet:"));
    let read = if is_magnet { magnet(&args.torrent) } else { torrent(&args.torrent) };
    match read {
        Ok((text, json)) => {
            if args.json {
                print::json(&json)
            } else {
                print::text(&text)
            }
        }
        Err(reason) => {
            if args.json {
                print::json(&json!({ "usable": false, "reason": reason }));
            }
            let shown = if is_magnet { "magnet" } else { &args.torrent };
            print::failed(&format!("{}: {reason}", print::safe(shown)))
        }
    }
}

/// For people, and as JSON.
type Report = (String, Json);

fn torrent(path: &str) -> Result<Report, String> {
    let bytes = read(path).map_err(|error| error.to_string())?;
    let metainfo = Metainfo::parse(&bytes).map_err(|error| error.to_string())?;
    Ok((torrent_text(&metainfo), torrent_json(&metainfo)))
}

/// At most a byte more than a torrent may have, so that a wrong argument (a film) is not read
/// whole.
fn read(path: &str) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let bound = TORRENT_BYTES_MAX as u64 + 1;
    if path == "-" {
        std::io::stdin().lock().take(bound).read_to_end(&mut bytes)?;
    } else {
        File::open(path)?.take(bound).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn kind(metainfo: &Metainfo) -> &'static str {
    match metainfo.info.kind {
        Kind::V1 => "v1",
        Kind::Hybrid => "hybrid",
        _ => "other",
    }
}

/// Paths as they would be on disk, sizes; padding has no path and is left out.
fn files(metainfo: &Metainfo) -> impl Iterator<Item = (String, u64)> + '_ {
    metainfo.info.layout.files.iter().enumerate().filter_map(|(index, file)| {
        let index = FileIndex(u32::try_from(index).ok()?);
        Some((metainfo.info.content_path(index)?, file.length))
    })
}

fn torrent_json(metainfo: &Metainfo) -> Json {
    let info = &metainfo.info;
    let files: Vec<Json> =
        files(metainfo).map(|(path, length)| json!({ "path": path, "length": length })).collect();
    let warnings: Vec<String> = metainfo.warnings.iter().map(ToString::to_string).collect();
    json!({
        "usable": true,
        "info_hash": metainfo.info_hash.to_string(),
        "info_hash_v2": metainfo.info_hash_v2.map(|hash| hex(&hash)),
        "kind": kind(metainfo),
        "name": info.name,
        "single_file": info.single_file,
        "files": files,
        "total_size": info.layout.total_bytes,
        "piece_length": info.layout.piece_bytes,
        "pieces": info.layout.piece_count(),
        "private": info.private,
        "source": info.source,
        "trackers": metainfo.announce,
        "web_seeds": metainfo.web_seeds,
        "nodes": metainfo.nodes.iter().map(|(host, port)| json!([host, port])).collect::<Vec<_>>(),
        "comment": metainfo.comment,
        "created_by": metainfo.created_by,
        "creation_date": metainfo.creation_date,
        "warnings": warnings,
    })
}

fn torrent_text(metainfo: &Metainfo) -> String {
    let info = &metainfo.info;
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "{label:<14}{}", print::safe(value));
    };
    line("name", &info.name);
    line("info-hash", &metainfo.info_hash.to_string());
    if let Some(hash) = metainfo.info_hash_v2 {
        line("info-hash v2", &hex(&hash));
    }
    line("kind", kind(metainfo));
    let total = info.layout.total_bytes;
    line("size", &format!("{} ({total} bytes)", print::size(total)));
    let piece = print::size(u64::from(info.layout.piece_bytes));
    line("pieces", &format!("{} of {piece}", info.layout.piece_count()));
    line("private", if info.private { "yes" } else { "no" });
    for (tier, urls) in metainfo.announce.iter().enumerate() {
        for url in urls {
            line(&format!("tracker {}", tier + 1), url);
        }
    }
    let one = |label: &str, value: &Option<String>| {
        value.as_ref().map(|value| (label.to_string(), value.clone()))
    };
    let mut more: Vec<(String, String)> = Vec::new();
    more.extend(metainfo.web_seeds.iter().map(|url| ("web seed".to_string(), url.clone())));
    more.extend(one("source", &info.source));
    more.extend(one("comment", &metainfo.comment));
    more.extend(one("created by", &metainfo.created_by));
    let date = metainfo.creation_date.map(|seconds| format!("{seconds} (seconds since 1970)"));
    more.extend(one("created", &date));
    more.extend(metainfo.warnings.iter().map(|one| ("note".to_string(), one.to_string())));
    for (label, value) in &more {
        line(label, value);
    }
    let count = files(metainfo).count();
    line("files", &count.to_string());
    for (path, length) in files(metainfo).take(FILES_SHOWN_MAX) {
        let _ = writeln!(out, "{:>12}  {}", print::size(length), print::safe(&path));
    }
    if count > FILES_SHOWN_MAX {
        let _ = writeln!(out, "{:>12}  and {} more (--json has all)", "", count - FILES_SHOWN_MAX);
    }
    out
}

fn magnet(text: &str) -> Result<Report, String> {
    let magnet: Magnet =
        text.parse().map_err(|error: seedring_proto::magnet::Error| error.to_string())?;
    let json = json!({
        "usable": true,
        "kind": if magnet.info_hash_v2.is_some() { "hybrid" } else { "v1" },
        "info_hash": magnet.info_hash.to_string(),
        "info_hash_v2": magnet.info_hash_v2.map(|hash| hex(&hash)),
        "name": magnet.name,
        "trackers": magnet.trackers,
        "web_seeds": magnet.web_seeds,
        "peers": magnet.peers.iter().map(|(host, port)| json!([host, port])).collect::<Vec<_>>(),
    });
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "{label:<14}{}", print::safe(value));
    };
    line("name", magnet.name.as_deref().unwrap_or("(not in the link)"));
    line("info-hash", &magnet.info_hash.to_string());
    if let Some(hash) = magnet.info_hash_v2 {
        line("info-hash v2", &hex(&hash));
    }
    magnet.trackers.iter().for_each(|url| line("tracker", url));
    magnet.web_seeds.iter().for_each(|url| line("web seed", url));
    magnet.peers.iter().for_each(|(host, port)| line("peer", &format!("{host} port {port}")));
    line("files", "known once a peer has sent them");
    Ok((out, json))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create;

    #[test]
    fn a_torrent_tells_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        std::fs::create_dir_all(top.join("a")).unwrap();
        std::fs::write(top.join("a/b"), vec![7; 20_000]).unwrap();
        std::fs::write(top.join("empty"), "").unwrap();
        let content = create::scan(&top).unwrap();
        let options = create::Options {
            trackers: vec![vec!["http://t/announce".into()]],
            private: true,
            ..create::Options::default()
        };
        let made = create::make(&content, &options, &|_| true).unwrap();
        let path = dir.path().join("x.torrent");
        std::fs::write(&path, &made.torrent).unwrap();
        let (text, json) = torrent(path.to_str().unwrap()).unwrap();
        assert_eq!(json["info_hash"], made.metainfo.info_hash.to_string());
        assert_eq!(json["files"][0], json!({ "path": "top/a/b", "length": 20_000 }));
        assert_eq!(json["files"][1], json!({ "path": "top/empty", "length": 0 }));
        assert_eq!((&json["pieces"], &json["private"]), (&json!(2), &json!(true)));
        assert_eq!(json["trackers"], json!([["http://t/announce"]]));
        assert!(text.contains("top/a/b") && text.contains(&made.metainfo.info_hash.to_string()));
    }

    #[test]
    fn what_is_not_usable_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.torrent");
        for bytes in [&b""[..], b"d4:infod4:name", b"<html>", b"de"] {
            std::fs::write(&path, bytes).unwrap();
            assert!(!torrent(path.to_str().unwrap()).unwrap_err().is_empty());
        }
        assert!(torrent("/nowhere/x.torrent").is_err());
        assert!(magnet("magnet:?xt=urn:btih:zz").is_err());
        let hash = "c12fe1c06bba254a9dc9f519b335aa7c1367a88a";
        let (_, json) = magnet(&format!("magnet:?xt=urn:btih:{hash}&dn=x")).unwrap();
        assert_eq!((&json["info_hash"], &json["name"]), (&json!(hash), &json!("x")));
    }
}
