//! Owns: 1,000 torrents under 50 leeches: SIGHUP, a bad configuration, SIGTERM, a second start.
//! Never: asks the engine how it served: leeches count their own bytes, the tracker its announces.
//! What it hashed nobody else knows: `seedring list` says that.
//! Flow: an engine process on loopback, 50 connections kept open throughout, 20 of which fetch all
//! the time; after its end another one on the same state.

use anyhow::{Context, Result, ensure};
use seedring_tests::interop::{Scratch, wait_until};
use seedring_tests::live::torrent::PIECE_BYTES;
use seedring_tests::live::{Engine, Peer, RecordingTracker, SingleFile, loopback_address};
use serde_json::Value;
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const TORRENTS: usize = 1000;
const CHANGED: usize = 20;
const LEECHES: usize = 50;
/// Of them, how many fetch while the configuration is read again.
const FETCHING: usize = 20;
/// Between two blocks of one of those: the torrents are small, and each block is asked for often.
const PAUSE: Duration = Duration::from_millis(10);
const LENGTH: usize = PIECE_BYTES + 5_000;

fn yaml(files: &[SingleFile]) -> Result<String> {
    let mut text = "torrents:\n".to_owned();
    for file in files {
        text += &file.entry("full")?;
    }
    Ok(text)
}

/// Leeches that ask for one block after the other, each from its torrent.
struct Fetching<'scope, 'files> {
    threads: Vec<ScopedJoinHandle<'scope, Result<(&'files SingleFile, Peer)>>>,
    blocks: &'scope [AtomicU64],
}

impl Fetching<'_, '_> {
    /// Waits until each has had another block than those before this call.
    fn wait_for_another_block(&self) -> Result<()> {
        // Relaxed: a count, which nothing else is read after.
        let counts = || self.blocks.iter().map(|count| count.load(Ordering::Relaxed));
        let before: Vec<u64> = counts().collect();
        wait_until("a block to each leech", Duration::from_secs(20), || {
            let broke = self.threads.iter().position(ScopedJoinHandle::is_finished);
            ensure!(broke.is_none(), "leech {broke:?} ended");
            Ok(counts().zip(&before).all(|(now, before)| now > *before).then_some(()))
        })
    }
}

/// Fetches until `ended`; what is wrong or does not come is an error.
fn fetch_on<'a>(
    file: &'a SingleFile,
    mut peer: Peer,
    blocks: &AtomicU64,
    ended: &AtomicBool,
) -> Result<(&'a SingleFile, Peer)> {
    for (piece, begin) in [(0, 0), (0, 16 << 10), (1, 0)].into_iter().cycle() {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        file.check_block(&mut peer, piece, begin).context("while it was reloaded")?;
        blocks.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
    Ok((file, peer))
}

fn hashed_bytes(report: &Value) -> u64 {
    let shards = report["shards"].as_array().into_iter().flatten();
    shards.filter_map(|shard| shard["hashed_bytes"].as_u64()).sum()
}

/// What `seedring list` says when all was dealt with and shards have told of it since.
fn report_when_ready(engine: &Engine) -> Result<Value> {
    wait_until("the engine to be ready", Duration::from_secs(60), || {
        // Between its start and its control socket nobody answers.
        let Ok(text) = engine.command(&["list", "--json"]) else { return Ok(None) };
        let report: Value = serde_json::from_str(&text)?;
        let ready_ms = report["ready_after_ms"].as_u64();
        let now_ms = report["uptime_s"].as_u64().context("uptime_s")? * 1_000;
        // Shards tell once a second.
        Ok(ready_ms.is_some_and(|ready_ms| now_ms > ready_ms + 2_000).then_some(report))
    })
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

    let hashed = hashed_bytes(&report_when_ready(&engine)?);
    ensure!(hashed == (TORRENTS * LENGTH) as u64, "hashed {hashed} bytes at the first start");

    // Twenty of them fetch without an end, and go on through all of this.
    let blocks: Vec<AtomicU64> = (0..FETCHING).map(|_| AtomicU64::new(0)).collect();
    let ended = AtomicBool::new(false);
    let busy = leeches.split_off(LEECHES - 1 - FETCHING);
    std::thread::scope(|scope| {
        let (blocks, ended) = (&blocks[..], &ended);
        let threads = busy.into_iter().zip(blocks);
        let threads = threads
            .map(|((file, peer), blocks)| scope.spawn(move || fetch_on(file, peer, blocks, ended)));
        let fetching = Fetching { threads: threads.collect(), blocks };
        let reloaded = reload(&mut engine, &tracker, &files, &mut leaving, &fetching);
        ended.store(true, Ordering::Relaxed);
        for thread in fetching.threads {
            leeches.push(thread.join().expect("invariant: a leech returns its errors")?);
        }
        reloaded
    })?;
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

    check_second_start(scratch.path(), address, after, &counted)?;
    for file in &files {
        file.check_untouched()?;
    }
    Ok(())
}

/// Bad YAML, then another 20 of 1,000, while leeches fetch.
fn reload(
    engine: &mut Engine,
    tracker: &RecordingTracker,
    files: &[SingleFile],
    leaving: &mut Peer,
    fetching: &Fetching<'_, '_>,
) -> Result<()> {
    fetching.wait_for_another_block()?;
    // Bad YAML changes nothing.
    engine.reload("torrents: [unclosed\n")?;
    engine.wait_for_text(&["seedring.yaml"])?;
    std::thread::sleep(Duration::from_millis(500));
    engine.process().check_running()?;
    files[3].check_block(leaving, 0, 0)?;
    fetching.wait_for_another_block()?;

    // 20 of 1,000 change: every other socket survives.
    engine.reload(&yaml(&files[CHANGED..])?)?;
    fetching.wait_for_another_block()?;
    tracker.wait_for("started", TORRENTS + CHANGED, Duration::from_secs(60))?;
    tracker.wait_for("stopped", CHANGED, Duration::from_secs(60))?;
    ensure!(leaving.is_closed_within(Duration::from_secs(10))?, "a removed torrent kept a peer");
    fetching.wait_for_another_block()
}

/// Every torrent is seeded again with its totals, and nothing is hashed for it.
fn check_second_start(
    folder: &Path,
    address: Ipv4Addr,
    files: &[SingleFile],
    counted: &HashMap<&str, u64>,
) -> Result<()> {
    let engine = Engine::start(folder, address, &yaml(files)?)?;
    let report = report_when_ready(&engine)?;
    let torrents = report["torrents"].as_array().context("a list of torrents")?;
    ensure!(torrents.len() == files.len(), "{} torrents", torrents.len());
    for torrent in torrents {
        ensure!(torrent["state"] == "seeding", "{torrent}");
        if let Some(bytes) = torrent["info_hash"].as_str().and_then(|hash| counted.get(hash)) {
            ensure!(torrent["uploaded_bytes"] == *bytes, "{bytes} were fetched: {torrent}");
        }
    }
    let hashed = hashed_bytes(&report);
    ensure!(hashed == 0, "hashed {hashed} bytes at the second start");
    for file in files.iter().step_by(100) {
        file.check_served(engine.address())?;
    }
    let hashed = hashed_bytes(&report_when_ready(&engine)?);
    ensure!(hashed == 0, "hashed {hashed} bytes to serve what was verified");
    engine.stop().map(drop)
}
