//! Owns: what a configuration needs of this machine: ports, state_dir, content.
//! Never: leaves a trace; ports are bound and let go, a probe file is removed.
//! Flow: `Config` -> findings.

use std::collections::HashSet;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, statfs};

use super::Finding;
use crate::config::Config;
use crate::config::model::{Source, Switch};
use crate::control_socket;
use crate::engine::status::EngineReport;

/// Findings of one kind that are printed; the rest is counted.
const SHOWN_MAX: usize = 10;
/// .torrent files looked for.
const FILES_CHECKED_MAX: usize = 200_000;
/// Entries looked at for a file of which direct reads are tried.
const ENTRIES_MAX: usize = 1_000;
const NFS: i64 = 0x6969;
const CIFS: i64 = 0xFF53_4D42;
const FUSE: i64 = 0x6573_5546;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    // With its own engine running, taken ports are as they should be.
    let running = control_socket::ask::<EngineReport>(&config.control_socket, None).is_ok();
    let mut findings = Vec::new();
    if running {
        let found = format!("running; it answers on {}", config.control_socket.display());
        findings.push(Finding::good("engine", found));
    }
    findings.extend(config.listen.iter().map(|at| port("port", at, running)));
    if let Some(tracker) = &config.tracker {
        findings.extend(tracker.listen.iter().map(|at| port("tracker port", at, running)));
    }
    findings.push(state_dir(&config.state_dir));
    findings.extend(content(config));
    if config.direct_io != Switch::Off {
        findings.extend(direct_io(config));
    }
    findings
}

fn port(check: &'static str, at: &SocketAddr, running: bool) -> Finding {
    match TcpListener::bind(at) {
        Ok(_) if running => Finding::warning(
            check,
            format!("{at} is free, though the engine runs: it was started with another address"),
            "restart it, so that it listens as the configuration says",
        ),
        Ok(_) => Finding::good(check, format!("{at} is free")),
        Err(error) if running && error.kind() == std::io::ErrorKind::AddrInUse => {
            Finding::good(check, format!("{at} is taken, as it should be: the engine runs"))
        }
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
    let mut seen = HashSet::new();
    for torrent in &config.torrents {
        let (path, files) = match &torrent.source {
            Source::Folder(folder) => (&folder.path, Vec::new()),
            Source::Files(files) => (&files.content, files.expand().unwrap_or_default()),
            // Its folder is made when the download begins.
            Source::Magnet(_) => continue,
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
        let paths = if good == 1 { "path" } else { "paths" };
        findings.push(Finding::good("content", format!("{good} {paths} can be read")));
    }
    findings
}

/// Whether each content folder's file system takes direct reads: one file of each device is tried.
fn direct_io(config: &Config) -> Vec<Finding> {
    let mut devices = HashSet::new();
    let (mut good, mut refused) = (0_usize, Vec::new());
    for torrent in &config.torrents {
        let path = match &torrent.source {
            Source::Folder(folder) => &folder.path,
            Source::Files(files) => &files.content,
            Source::Magnet(magnet) => &magnet.folder,
        };
        let Some(file) = some_file(path) else { continue };
        let Ok(found) = fs::metadata(&file) else { continue };
        if !devices.insert(found.dev()) {
            continue;
        }
        let direct = File::options()
            .read(true)
            .custom_flags((OFlags::DIRECT | OFlags::NONBLOCK).bits().cast_signed())
            .open(&file);
        match direct {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => refused.push(path),
            Err(_) => {} // said by `content`
            Ok(_) => good += 1,
        }
    }
    let mut findings: Vec<Finding> = refused
        .iter()
        .take(SHOWN_MAX)
        .map(|path| {
            let found = format!("{}: this file system has no O_DIRECT", path.display());
            let remedy = "reads go through the page cache, which takes memory beside memory.cache; \
                          keep content on ext4, XFS, Btrfs or ZFS 2.3 for less";
            Finding::warning("direct I/O", found, remedy)
        })
        .collect();
    if good > 0 && refused.is_empty() {
        let found = format!("content's file systems take it ({good} tried)");
        findings.push(Finding::good("direct I/O", found));
    }
    findings
}

/// A regular file at `path` or below it, looked for among the first entries only.
fn some_file(path: &Path) -> Option<PathBuf> {
    let mut folders = vec![path.to_owned()];
    let mut left = ENTRIES_MAX;
    while let Some(next) = folders.pop() {
        let Ok(found) = fs::symlink_metadata(&next) else { continue };
        if found.is_file() {
            return Some(next);
        }
        let entries = if found.is_dir() { fs::read_dir(&next).ok() } else { None };
        for entry in entries.into_iter().flatten().flatten().take(left) {
            left -= 1;
            folders.push(entry.path());
        }
    }
    None
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
        assert_eq!(port("port", &at, false).verdict, Verdict::Bad);
        assert_eq!(port("port", &at, true).verdict, Verdict::Good, "the engine has it");
        drop(taken);
        assert_eq!(port("port", &at, false).verdict, Verdict::Good);
        assert_eq!(port("port", &at, true).verdict, Verdict::Warning);
    }

    #[test]
    fn direct_reads_are_tried_where_there_is_a_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("here/deep")).unwrap();
        let text = "state_dir: state\ntorrents: [{ folder: here }, { folder: gone }]";
        let config = Config::parse(text, "x", dir.path(), &|_| None).unwrap().config;
        assert!(direct_io(&config).is_empty(), "nothing to try it with");
        let file = dir.path().join("here/deep/file");
        fs::write(&file, "abc").unwrap();
        assert_eq!(some_file(&dir.path().join("here")), Some(file));
        assert_eq!(direct_io(&config).len(), 1);
        // A file of /proc takes no direct reads.
        let text = "state_dir: state\ntorrents: [{ folder: /proc/version }]";
        let config = Config::parse(text, "x", dir.path(), &|_| None).unwrap().config;
        assert_eq!(direct_io(&config)[0].verdict, Verdict::Warning);
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
