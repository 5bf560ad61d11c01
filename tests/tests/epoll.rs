//! Owns: that the engine does its work where io_uring can't be had, and says so.
//! Never: how epoll keeps the seam's promises (platform's conformance suite).
//! Flow: a downloading engine and one that seeds to it, behind a filter or by configuration.

use anyhow::{Context, Result, ensure};
use seedring_tests::interop::{Scratch, repository_root};
use seedring_tests::live::{
    Engine, Manner, Seed, SingleFile, loopback_address, run_program_behind,
};
use std::sync::Arc;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const LENGTH: usize = 48 << 20;
const PIECE_BYTES: usize = 256 << 10;
const SOON: Duration = Duration::from_secs(60);

fn filter() -> Result<[String; 2]> {
    let script = repository_root().join("tests/src/live/without_io_uring.py");
    let script = script.to_str().context("a path outside UTF-8")?.to_owned();
    Ok(["python3".to_owned(), script])
}

/// Downloads a file from a seed, then from its beginning on serves it; both over `io`.
fn round_trip(test: &str, io: &str, wrapper: &[&str], says: &[&str]) -> Result<()> {
    let scratch = Scratch::new(TMP, test)?;
    let source = scratch.folder("source")?;
    let file = SingleFile::make_in_pieces(&source, "file.bin", LENGTH, "", PIECE_BYTES)?;
    let other = SingleFile::make(&source, "other.bin", 3_000_000, "")?;
    let file = Arc::new(file);
    let copy = scratch.folder("copy")?;
    let download = file.download_entry(&copy)?;
    let yaml = format!("io: {io}\ntorrents:\n{download}{}", other.entry("full")?);
    let mut engine = Engine::start_with(scratch.path(), loopback_address(), &yaml, wrapper)?;
    engine.wait_for_text(says)?;
    engine.wait_for_state(&other.info_hash, "seeding", SOON)?;
    other.check_served(engine.address()).context("what is seeded, during the download")?;
    let _seed = Seed::start(&file, engine.address(), loopback_address(), Manner::Honest);
    engine.wait_for_state(&file.info_hash, "seeding", SOON)?;
    file.check_copy(&copy)?;
    file.check_served(engine.address()).context("what was downloaded")?;
    other.check_untouched()?;
    let log = engine.stop()?;
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

#[test]
fn epoll_that_was_asked_for_seeds_and_downloads() -> Result<()> {
    round_trip("epoll_asked", "epoll", &[], &["listening"])
}

#[test]
fn epoll_takes_over_where_io_uring_is_refused() -> Result<()> {
    let filter = filter()?;
    let wrapper = filter.each_ref().map(String::as_str);
    let says =
        ["a seccomp filter forbids io_uring to this process", "epoll", "docker/seccomp.json"];
    round_trip("epoll_refused", "auto", &wrapper, &says)
}

#[test]
fn io_uring_that_was_asked_for_and_is_refused_ends_the_start() -> Result<()> {
    let scratch = Scratch::new(TMP, "uring_refused")?;
    let filter = filter()?;
    let wrapper = filter.each_ref().map(String::as_str);
    let mut engine =
        Engine::launch(scratch.path(), loopback_address(), "io: uring\ntorrents: []\n", &wrapper)?;
    engine.wait_for_text(&["a seccomp filter forbids io_uring to this process"])?;
    let status = engine.process().wait(SOON)?;
    ensure!(!status.success(), "the engine went on: {status}");
    Ok(())
}

#[test]
fn doctor_says_what_runs_instead() -> Result<()> {
    let filter = filter()?;
    let wrapper = filter.each_ref().map(String::as_str);
    let (_, text) = run_program_behind(&wrapper, &["doctor"])?;
    ensure!(text.contains("the engine runs on epoll"), "{text}");
    Ok(())
}
