//! Owns: what a configuration needs of this machine: ports, state_dir, content.
//! Never: leaves a trace; ports are bound and let go, a probe file is removed.
//! Flow: `Config` -> findings.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use rustix::fs::statfs;

use super::Finding;
use crate::config::Config;
use crate::config::model::Source;

/// Findings of one kind that are printed; the rest is counted.
const SHOWN_MAX: usize = 10;
/// .torrent files looked for.
const FILES_CHECKED_MAX: usize = 200_000;
const NFS: i64 = 0x6969;
const CIFS: i64 = 0xFF53_4D42;
const FUSE: i64 = 0x6573_5546;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let mut findings: Vec<Finding> = config.listen.iter().map(|at| port("port", at)).collect();
    if let Some(tracker) = &config.tracker {
        findings.extend(tracker.listen.iter().map(|at| port("tracker port", at)));
    }
    findings.push(state_dir(&config.state_dir));
    findings.extend(content(config));
    findings
}

fn port(check: &'static str, at: &SocketAddr) -> Finding {
    match TcpListener::bind(at) {
        Ok(_) => Finding::good(check, format!("{at} is free")),
        Err(error) => {
            let remedy = match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "another program listens there (ss -ltnp shows it; it may be seedring): \
                     stop it, or choose another port"
                }
                std::io::ErrorKind::PermissionDenied => {
                    "ports below 1024 need CAP_NET_BIND_SERVICE; choose one above"
                }
                std::io::ErrorKind::AddrNotAvailable => {
                    "this machine has no such address (ip address shows them)"
                }
                _ => "choose another address",
            };
            Finding::bad(check, format!("{at}: {error}"), remedy)
        }
    }
}

/// Whether it can be written: itself, or the folder above it that is there already.
fn state_dir(dir: &Path) -> Finding {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let probe = existing.join(format!(".seedring-doctor-{}", std::process::id()));
    let written = File::create_new(&probe);
    let _ = fs::remove_file(&probe);
    if let Err(error) = written {
        let found = format!("{}: {error}", existing.display());
        return Finding::bad("state_dir", found, "make it writable for this user");
    }
    let found = format!("{} is writable", dir.display());
    match statfs(existing).map(|stat| stat.f_type & 0xFFFF_FFFF) {
        Ok(NFS | CIFS) => Finding::warning(
            "state_dir",
            format!("{found}, over the network"),
            "keep it on a local disk: locks and syncs of the store need one",
        ),
        Ok(FUSE) => Finding::warning(
            "state_dir",
            format!("{found}, on FUSE"),
            "keep it on a local disk, unless this file system syncs as one",
        ),
        _ => Finding::good("state_dir", found),
    }
}

fn content(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut good, mut missing) = (0_usize, 0_usize);
    let mut bad = |path: &Path, error: std::io::Error| {
        missing += 1;
        if missing <= SHOWN_MAX {
            let remedy = match error.kind() {
                std::io::ErrorKind::NotFound => "mount or restore it, or correct the path",
                _ => "let this user read it",
            };
            findings.push(Finding::bad("content", format!("{}: {error}", path.display()), remedy));
        }
    };
    let mut seen = std::collections::HashSet::new();
    for torrent in &config.torrents {
        let (path, files) = match &torrent.source {
            Source::Folder(folder) => (&folder.path, Vec::new()),
            Source::Files(files) => (&files.content, files.expand().unwrap_or_default()),
        };
        if seen.insert(path.clone()) {
            match readable(path) {
                Ok(()) => good += 1,
                Err(error) => bad(path, error),
            }
        }
        for file in files.iter().take(FILES_CHECKED_MAX) {
            match File::open(file) {
                Ok(_) => good += 1,
                Err(error) => bad(file, error),
            }
        }
    }
    if missing > SHOWN_MAX {
        let found = format!("{} more cannot be read", missing - SHOWN_MAX);
        findings.push(Finding::bad("content", found, "as above"));
    }
    if missing == 0 {
        findings.push(Finding::good("content", format!("{good} paths can be read")));
    }
    findings
}

fn readable(path: &Path) -> std::io::Result<()> {
    if fs::metadata(path)?.is_dir() {
        fs::read_dir(path).map(drop)
    } else {
        File::open(path).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_taken_port_is_found() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        assert_eq!(port("port", &at).verdict, Verdict::Bad);
        drop(taken);
        assert_eq!(port("port", &at).verdict, Verdict::Good);
    }

    #[test]
    fn missing_content_is_named_and_no_trace_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let text = "state_dir: state\ntorrents: [{ folder: gone }, { folder: here }]";
        fs::create_dir(dir.path().join("here")).unwrap();
        let config = Config::parse(text, "x", dir.path(), &|_| None).unwrap().config;
        let findings = content(&config);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].found.contains("gone"));
        assert_eq!(state_dir(&config.state_dir).verdict, Verdict::Good);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
