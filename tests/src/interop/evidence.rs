//! Owns: what is kept of a transfer that failed: logs and settings of all who took part.
//! Never: content, or what was fetched of it: that fills the disk and says less than the logs.
//! Flow: [`super::swarm::repeat`] -> a round fails, its programs are ended -> [`keep`].

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

const KINDS: [&str; 5] = ["log", "yaml", "conf", "rc", "json"];
/// A log's end is what matters; Transmission's, at its most talkative, has 1 MiB a minute.
const KEPT_BYTES_MAX: usize = 4 << 20;
const QUOTED_BYTES_MAX: usize = 3 << 10;

/// Copies the logs and settings below `scratch` to `folder`; returns the end of each log, for
/// who sees no more than what the test printed.
pub fn keep(scratch: &Path, folder: &Path) -> Result<String> {
    let mut quoted = format!("logs and settings are kept in {}", folder.display());
    for path in files(scratch)? {
        let inside = path.strip_prefix(scratch).context("a file outside of its folder")?;
        let to = folder.join(inside);
        std::fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        let bytes = std::fs::read(&path)?;
        std::fs::write(to, tail(&bytes, KEPT_BYTES_MAX))?;
        if path.extension().is_some_and(|kind| kind == "log") {
            let end = String::from_utf8_lossy(tail(&bytes, QUOTED_BYTES_MAX));
            quoted += &format!("\n--- end of {} ---\n{}", inside.display(), end.trim_end());
        }
    }
    Ok(quoted)
}

fn tail(bytes: &[u8], most: usize) -> &[u8] {
    &bytes[bytes.len().saturating_sub(most)..]
}

fn files(scratch: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![scratch.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let kind = path.extension().and_then(|kind| kind.to_str());
            if entry.file_type()?.is_dir() {
                if name != "content" && !name.ends_with("-copy") {
                    folders.push(path);
                }
            } else if entry.file_type()?.is_file() && kind.is_some_and(|it| KINDS.contains(&it)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    #[test]
    fn logs_are_kept_and_content_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (scratch, kept) = (folder.path().join("round"), folder.path().join("kept"));
        for (path, text) in [
            ("engine/seedring.log", "it said so"),
            ("engine/seedring.yaml", "listen: []"),
            ("engine-copy/fetched.log", "of the content"),
            ("content/mixed/main.log", "of the content"),
            ("engine/state/seedring.db", "rows"),
        ] {
            let path = scratch.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let quoted = super::keep(&scratch, &kept).unwrap();
        assert!(quoted.contains("it said so") && !quoted.contains("of the content"), "{quoted}");
        assert!(kept.join("engine/seedring.yaml").is_file());
        assert!(!kept.join("content").exists() && !kept.join("engine-copy").exists());
        assert!(!kept.join("engine/state").exists());
    }
}
