//! Owns: what a transfer between real programs needs (hosts, content, tracker, seeder, clients).
//! Never: knows how the engine works inside; it sees a program, its output and its sockets.
//! Flow: `tests/tests/interop.rs` and its neighbours build a [`Network`], put programs on its
//! hosts, wait for their own word that they are done, and compare every file's hash.
//!
//! Every wait has a limit, every program and every namespace goes away when its owner is dropped,
//! and what a killed test left behind is swept by the next one.

pub mod client;
pub mod content;
pub mod downloader;
pub mod evidence;
pub mod network;
pub mod process;
pub mod seeder;
pub mod seeding;
pub mod swarm;
pub mod tracker;

pub use client::{Client, Has, Place, RunningClient, Source};
pub use content::{Content, Shape};
pub use downloader::Downloader;
pub use network::{Host, Network};
pub use process::Process;
pub use seeder::{Recipe, Seeder};
pub use seeding::{ControlledSeed, SeedingClient, put_pieces};
pub use swarm::Swarm;
pub use tracker::Opentracker;

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The checkout that this crate was built from.
pub fn repository_root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("invariant: the tests crate lies in the repository").to_path_buf()
}

/// The Python that has libtorrent: `SEEDRING_PYTHON`, else where `tests/run` installs it.
pub fn python() -> Result<PathBuf> {
    let path = match std::env::var_os("SEEDRING_PYTHON") {
        Some(path) => PathBuf::from(path),
        None => std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| repository_root().join("target"), PathBuf::from)
            .join("interop-venv/bin/python"),
    };
    if !path.exists() {
        bail!(
            "no Python with libtorrent at {}: run `tests/run deps` first, or name one in \
             SEEDRING_PYTHON",
            path.display()
        );
    }
    Ok(path)
}

/// The engine under test: `SEEDRING_BIN`, else the `seedring` built beside this test binary.
pub fn seedring_binary() -> Result<PathBuf> {
    let path = match std::env::var_os("SEEDRING_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let test = std::env::current_exe().context("where this test binary lies")?;
            let profile = test.parent().and_then(Path::parent).context("no target folder")?;
            profile.join("seedring")
        }
    };
    if !path.exists() {
        bail!("no engine at {}: run `cargo build --profile ci` first", path.display());
    }
    Ok(path)
}

/// A script of `tests/interop/`.
pub fn script(name: &str) -> PathBuf {
    repository_root().join("tests/interop").join(name)
}

/// Asks `done` every 50 ms until it answers, or fails after `limit` with what was awaited.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {:.0} s in vain for {what}", limit.as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A folder for one test under the build's own temporary folder, removed at its end unless
/// `SEEDRING_KEEP` is set.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// `base` is `env!("CARGO_TARGET_TMPDIR")` of the calling test.
    pub fn new(base: &str, test: &str) -> Result<Self> {
        let path = Path::new(base).join(format!("{test}-{}", std::process::id()));
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path })
    }

    /// A fresh folder inside.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Errors quote the logs; the contents of a failed run would fill the disk.
        if std::env::var_os("SEEDRING_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
