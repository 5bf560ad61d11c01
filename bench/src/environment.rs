//! Owns: what a report says of the circumstances it was measured in, and the version of its form.
//! Never: measures. Flow: comparison ends -> `Environment::read` -> the report's JSON and head.

use std::{fs, io::Read as _, path::Path, process::Command};

use serde::Serialize;
use sha1::{Digest, Sha1};

use crate::probe::Machine;

/// Of reports as JSON. 2: settings, content size, failed runs and the whole environment are kept.
pub const SCHEMA: u64 = 2;

#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    #[serde(flatten)]
    pub machine: Machine,
    pub congestion: String,
    pub network: String,
    /// The interface of the target's address: name, driver, speed, MTU, queues.
    pub nic: String,
    /// Of the folder that holds the content: type, device, options.
    pub file_system: String,
    /// Of the working tree that the comparison was run from; `-dirty` where files were changed.
    pub git_revision: String,
    /// What exactly ran as the engine.
    pub engine_sha1: Option<String>,
}

/// What was measured, and around it.
pub struct Circumstances {
    pub environment: Environment,
    /// The comparison's options.
    pub settings: serde_json::Value,
    pub content_bytes: u64,
}

impl Environment {
    pub fn read(
        work: &Path,
        engine: &Path,
        congestion: &str,
        (network, nic): (&str, &str),
    ) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Environment {
            machine: Machine::read(),
            congestion: congestion.to_owned(),
            network: network.to_owned(),
            nic: nic.to_owned(),
            file_system: mount_of(&mounts, work).unwrap_or_else(|| "unknown".into()),
            git_revision: git_revision(),
            engine_sha1: sha1_of(engine),
        }
    }
}

/// The mount that holds a path, of proc_pid_mountinfo(5).
fn mount_of(mounts: &str, path: &Path) -> Option<String> {
    let mut best: Option<(usize, String)> = None;
    for line in mounts.lines() {
        let Some((own, shared)) = line.split_once(" - ") else { continue };
        let own: Vec<&str> = own.split(' ').collect();
        let shared: Vec<&str> = shared.split(' ').collect();
        let (Some(at), Some(options), Some(kind), Some(device)) =
            (own.get(4), own.get(5), shared.first(), shared.get(1))
        else {
            continue;
        };
        // Spaces are written as \040; such a mount point is not recognised, its parent is.
        let depth = Path::new(at).components().count();
        // The last of several on one place is the one that is seen.
        if path.starts_with(at) && best.as_ref().is_none_or(|(of_best, _)| depth >= *of_best) {
            best = Some((depth, format!("{kind} on {device} ({options})")));
        }
    }
    Some(best?.1)
}

/// `SEEDRING_REVISION` where there is no repository, as in an image.
pub fn git_revision() -> String {
    let git = |arguments: &[&str]| -> Option<String> {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    if let Ok(revision) = std::env::var("SEEDRING_REVISION") {
        return revision;
    }
    let Some(revision) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".into();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    let mark = if changed.is_some_and(|lines| lines.is_empty()) { "" } else { "-dirty" };
    format!("{revision}{mark}")
}

fn sha1_of(path: &Path) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let mut hash = Sha1::new();
    let mut bytes = vec![0; 1 << 16];
    loop {
        match file.read(&mut bytes).ok()? {
            0 => break,
            count => hash.update(&bytes[..count]),
        }
    }
    Some(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_holds_the_path() {
        let mounts = "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      2 1 0:9 / /a rw - tmpfs none rw,size=5k\n\
                      3 1 0:10 / /a ro,noatime - xfs /dev/vdb rw\n\
                      4 1 0:11 / /abc rw - proc proc rw\n";
        let of = |path: &str| mount_of(mounts, Path::new(path));
        assert_eq!(of("/x/y").as_deref(), Some("ext4 on /dev/vda (rw,relatime)"));
        assert_eq!(of("/a/b").as_deref(), Some("xfs on /dev/vdb (ro,noatime)"));
        assert_eq!(mount_of("nonsense\n", Path::new("/")), None);
    }

    #[test]
    fn a_program_is_known_by_its_bytes() {
        let path = std::env::temp_dir().join(format!("sha1-{}", std::process::id()));
        fs::write(&path, b"abc").expect("written");
        let hash = sha1_of(&path);
        fs::remove_file(&path).ok();
        assert_eq!(hash.as_deref(), Some("a9993e364706816aba3e25717850c26c9cd0d89d"));
        assert_eq!(sha1_of(&path), None);
    }
}
