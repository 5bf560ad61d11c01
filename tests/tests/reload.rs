//! Owns: 1,000 torrents under 50 leeches: SIGHUP, a bad configuration, SIGTERM, a second start.
//! Never: asks the engine how it did: leeches count their own bytes, the tracker its announces.
//! Flow: one engine process on loopback, 50 connections kept open throughout.

use anyhow::{Context, Result, ensure};
use seedring_tests::interop::{Scratch, wait_until};
use seedring_tests::live::torrent::PIECE_BYTES;
use seedring_tests::live::{Engine, Peer, RecordingTracker, SingleFile, loopback_address};
use std::collections::HashMap;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const TORRENTS: usize = 1000;
const CHANGED: usize = 20;
const LEECHES: usize = 50;
const LENGTH: usize = PIECE_BYTES + 5_000;

fn yaml(files: &[SingleFile]) -> Result<String> {
    let mut text = "torrents:\n".to_owned();
    for file in files {
        text += &file.entry("full")?;
    }
    Ok(text)
}

#[test]
fn a_reload_keeps_every_other_socket_and_a_stop_tells_the_totals() -> Result<()> {
    let scratch = Scratch::new(TMP, "reload")?;
    let address = loopback_address();
    let tracker = RecordingTracker::start(address)?;
    let mut files = Vec::new();
    for index in 0..TORRENTS + CHANGED {
        let name = format!("file-{index:04}.bin");
        files.push(SingleFile::make(scratch.path(), &name, LENGTH, &tracker.url())?);
    }
    let (before, after) = (&files[..TORRENTS], &files[CHANGED..]);
    let mut engine = Engine::start(scratch.path(), address, &yaml(before)?)?;
    tracker.wait_for("started", TORRENTS, Duration::from_secs(120))?;

    // One leech on a torrent that will go, the others on torrents that stay.
    let mut leaving = files[3].check_served(engine.address())?;
    let mut leeches: Vec<(&SingleFile, Peer)> = Vec::new();
    for number in 0..LEECHES - 1 {
        let file = &files[CHANGED + number * 19];
        leeches.push((file, file.check_served(engine.address())?));
    }

    // Bad YAML changes nothing.
    engine.reload("torrents: [unclosed\n")?;
    engine.wait_for_text(&["seedring.yaml"])?;
    std::thread::sleep(Duration::from_millis(500));
    engine.process().check_running()?;
    files[3].check_block(&mut leaving, 0, 0)?;

    // 20 of 1,000 change: every other socket survives.
    engine.reload(&yaml(after)?)?;
    tracker.wait_for("started", TORRENTS + CHANGED, Duration::from_secs(60))?;
    tracker.wait_for("stopped", CHANGED, Duration::from_secs(60))?;
    ensure!(leaving.is_closed_within(Duration::from_secs(10))?, "a removed torrent kept a peer");
    for (file, peer) in &mut leeches {
        file.check_block(peer, 0, 16 << 10).context("a socket did not survive the reload")?;
    }
    let engine_address = engine.address();
    for file in &files[TORRENTS..] {
        let what = format!("{} after the reload", file.name);
        wait_until(&what, Duration::from_secs(20), || Ok(file.check_served(engine_address).ok()))?;
    }

    // SIGTERM: each `stopped` says what that torrent's leeches counted themselves.
    let mut counted: HashMap<&str, u64> = HashMap::new();
    for (file, peer) in &leeches {
        *counted.entry(&file.info_hash).or_default() += peer.payload_bytes;
    }
    let kept_open = leeches.len();
    engine.stop()?;
    let stopped = tracker.wait_for("stopped", TORRENTS + CHANGED, Duration::from_secs(5))?;
    for (info_hash, bytes) in &counted {
        let last = stopped.iter().rev().find(|announce| announce.info_hash == *info_hash);
        let last = last.with_context(|| format!("no stopped for {info_hash}"))?;
        ensure!(
            last.uploaded == *bytes && last.left == 0 && last.downloaded == 0,
            "{info_hash}: the leeches got {bytes} bytes, the tracker heard {last:?}"
        );
    }
    ensure!(counted.len() == kept_open, "the leeches were on torrents of their own");

    for file in &files {
        file.check_untouched()?;
    }
    Ok(())
}
