//! Owns: the images as tests see them: containers, Compose projects, what is left of them.
//! Never: speaks the engine's API; the `docker` and Compose commands are what users have.
//! Flow: `tests/run docker` builds the images and names the daemon in DOCKER_HOST; a test starts a
//! [`Container`] or a [`Project`], and dropping it removes all that it made.

mod container;
pub mod nodes;
mod project;
pub mod swarm;

pub use container::{Container, Volume};
pub use project::Project;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::interop::repository_root;

/// Numbers what one test makes; nothing is published through it.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Runs `docker` to its end and returns what it printed; its failure is an error.
pub fn docker(arguments: &[&str]) -> Result<String> {
    let (status, text) = try_docker(arguments)?;
    if status != 0 {
        bail!("docker {}: status {status}: {}", arguments.join(" "), text.trim());
    }
    Ok(text.trim().to_owned())
}

/// The same with its exit status, and both outputs together.
pub fn try_docker(arguments: &[&str]) -> Result<(i32, String)> {
    run(Command::new("docker").args(arguments))
}

fn run(command: &mut Command) -> Result<(i32, String)> {
    let Output { status, stdout, stderr } = command.output().with_context(|| {
        format!("{:?} cannot be run: `tests/run docker` installs it", command.get_program())
    })?;
    let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    Ok((status.code().unwrap_or(-1), text))
}

/// A name that no other running test has.
fn unused_name() -> String {
    format!("seedring-t{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed))
}

/// An image that `tests/run docker` built: `seedring` or `seedring-bench`.
pub fn image(name: &str) -> String {
    let tag = std::env::var("SEEDRING_IMAGE_TAG").unwrap_or_else(|_| "test".to_owned());
    format!("{name}:{tag}")
}

/// A file of `docker/`.
pub fn file(name: &str) -> PathBuf {
    repository_root().join("docker").join(name)
}

/// `--security-opt` for our profile.
pub fn profile() -> String {
    format!("seccomp={}", file("seccomp.json").display())
}

/// Our profile without the calls of io_uring: what newer engines' own one comes to.
pub fn profile_without_io_uring(folder: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file("seccomp.json"))?;
    let mut profile: Value = serde_json::from_str(&text)?;
    let groups = profile["syscalls"].as_array_mut().context("a list of groups")?;
    let is_io_uring = |name: &Value| name.as_str().is_some_and(|it| it.starts_with("io_uring_"));
    let before = groups.len();
    groups.retain(|group| !group["names"].as_array().is_some_and(|it| it.iter().all(is_io_uring)));
    ensure!(groups.len() + 1 == before, "the calls of io_uring are one group");
    let path = folder.join("without-io-uring.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&profile)?)?;
    Ok(format!("seccomp={}", path.display()))
}

/// The report of `bench/scenarios/quick.yaml` in the image of the bench alone: two rounds of both
/// engines at both numbers of connections; the two that are not in it are listed.
pub fn check_quick(report: &Value) -> Result<()> {
    let report = &report["report"];
    let runs = report["runs"].as_array().context("runs")?;
    for target in ["seedring", "seedring on epoll"] {
        let count = runs.iter().filter(|run| run["target"] == target).count();
        ensure!(count == 4, "{count} runs of {target}, not 2 rounds at 2 points: {report}");
    }
    let absent: Vec<&str> =
        report["absent"].as_array().context("absent")?.iter().filter_map(Value::as_str).collect();
    ensure!(absent.len() == 2, "iperf3 and libtorrent are not in this image: {absent:?}");
    for name in ["iperf3", "libtorrent"] {
        ensure!(absent.iter().any(|line| line.starts_with(name)), "no {name}: {absent:?}");
    }
    ensure!(report["failed"].as_array().is_some_and(Vec::is_empty), "{}", report["failed"]);
    Ok(())
}
