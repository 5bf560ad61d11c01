//! Owns: a file system of a chosen size, mounted for one test.
//! Never: stays: it is unmounted with its owner, and those of killed tests by the next one.
//! Flow: mounted before the engine starts, remounted under it, unmounted at the end.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Marks our mounts in the list of mounts; the process id follows.
const SOURCE: &str = "seedring-test-";

#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// An empty one of `mib` MiB at `path`.
    pub fn mount(path: &Path, mib: u32) -> Result<Self> {
        sweep_leftovers();
        std::fs::create_dir_all(path)?;
        let size = format!("size={mib}m,mode=0755");
        run("mount", &["-t", "tmpfs", "-o", &size, &mount_source()], path)
            .context("mount a tmpfs (needs CAP_SYS_ADMIN; a container needs --privileged)")?;
        Ok(Self { path: path.to_path_buf() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn resize(&self, mib: u32) -> Result<()> {
        run("mount", &["-o", &format!("remount,size={mib}m")], &self.path)
    }

    /// Fails while a file is open for writing.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        let option = if read_only { "remount,ro" } else { "remount,rw" };
        run("mount", &["-o", option], &self.path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) -> Result<()> {
    let output = Command::new(program).args(arguments).arg(path).output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{program} {arguments:?} {}: {}", path.display(), text.trim());
    }
    Ok(())
}

/// What our mounts are listed as.
pub(super) fn mount_source() -> String {
    format!("{SOURCE}{}", std::process::id())
}

/// Lazily: an engine that a test killed may still be on its way out.
pub(super) fn unmount(path: &Path) {
    let _ = Command::new("umount").arg("--lazy").arg(path).output();
}

pub(super) fn sweep_leftovers() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(source), Some(path)) = (words.next(), words.next()) else { continue };
        let owner = source.strip_prefix(SOURCE).and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            unmount(Path::new(path));
        }
    }
}
