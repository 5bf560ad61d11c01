//! Owns: what a crowd of hostile peers and a hostile tracker cost the engine: the speed of an
//! honest download beside them, and memory.
//! Never: fails for a machine that is busy otherwise: the figures are printed, the bounds wide.
//! Flow: the same download twice, alone and in the crowd; each in an engine of its own.
//! `SEEDRING_CROWD_MIB` says of how many MiB (96).

use anyhow::{Context, Result, ensure};
use seedring_tests::interop::{Scratch, wait_until};
use seedring_tests::live::liars::{self, EndlessTracker, Lie};
use seedring_tests::live::{Engine, Manner, Seed, SingleFile, loopback_address};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const PIECE_BYTES: usize = 256 << 10;
const MIB: usize = 96;
/// What the honest seed gives: 128 Mbit/s.
const RATE: u64 = 16 << 20;
/// The goals are 0.95 and 64 MiB.
const SPEED_MIN: f64 = 0.6;
const MEMORY_MIB_MAX: u64 = 64;
const TRACKER_BYTES_MAX: u64 = 8 << 20;
const LIMIT: Duration = Duration::from_secs(90);
/// The crowd is at work before the clock runs.
const ASSEMBLE: Duration = Duration::from_secs(3);
const POISONERS: usize = 3;

/// Nobody has its metadata.
const MAGNET: &str = "0123456789abcdef0123456789abcdef01234567";

struct Figures {
    took: Duration,
    /// The most that was resident.
    peak_kib: u64,
}

fn peak_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM")?;
    Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
}

struct Place {
    file: Arc<SingleFile>,
    /// Somebody else's torrent, whose tracker is hostile.
    tracked: SingleFile,
    tracker: EndlessTracker,
}

/// One download in a fresh engine; `crowd` comes first and stays.
fn download<T>(folder: &Path, place: &Place, crowd: impl Fn(&Engine) -> T) -> Result<Figures> {
    let copy = folder.join("copy");
    let yaml = format!(
        "torrents:\n{}{}    trackers: keep\n  - magnet: \"magnet:?xt=urn:btih:{MAGNET}\"\n    \
         content: {}\n",
        place.file.download_entry(&copy)?,
        place.tracked.entry("full")?,
        serde_json::to_string(&copy)?,
    );
    let mut engine = Engine::start(folder, loopback_address(), &yaml)?;
    let _crowd = crowd(&engine);
    std::thread::sleep(ASSEMBLE);
    let hash = place.file.info_hash.clone();
    let began = Instant::now();
    let honest = Seed::start(&place.file, engine.address(), loopback_address(), Manner::Honest);
    honest.set_rate(RATE);
    engine.wait_for_state(&hash, "seeding", LIMIT)?;
    let took = began.elapsed();
    place.file.check_copy(&copy)?;
    let peak_kib = peak_kib(engine.process().pid())?;
    let log = engine.stop()?;
    ensure!(!log.contains("panicked"), "{log}");
    Ok(Figures { took, peak_kib })
}

fn crowd(place: &Place, engine: &Engine) -> (Vec<Seed>, Vec<liars::Dialer>) {
    let manners = [Manner::Unasked, Manner::FloodsPex, Manner::Claims, Manner::Rejects];
    let poisoners = std::iter::repeat_n(Manner::WrongBytes, POISONERS);
    let address = engine.address();
    let seeds = manners.into_iter().chain(poisoners).map(|manner| {
        let seed = Seed::start(&place.file, address, loopback_address(), manner);
        seed.set_rate(2 << 20);
        seed
    });
    let seeds = seeds.collect();
    let of_metadata = Lie::OF_METADATA.into_iter().map(|lie| (MAGNET, lie));
    let endless = Lie::ENDLESS.into_iter().map(|lie| (place.file.info_hash.as_str(), lie));
    let liars = of_metadata
        .chain(endless)
        .map(|(hash, lie)| liars::start(hash, address, loopback_address(), lie));
    (seeds, liars.collect())
}

#[test]
fn a_hostile_crowd_costs_an_honest_download_little_speed_and_memory() -> Result<()> {
    let mib = std::env::var("SEEDRING_CROWD_MIB").ok().and_then(|text| text.parse().ok());
    let length = mib.unwrap_or(MIB) << 20;
    let scratch = Scratch::new(TMP, "crowd")?;
    let source = scratch.folder("source")?;
    let tracker = EndlessTracker::start(loopback_address())?;
    let file = SingleFile::make_in_pieces(&source, "file.bin", length, "", PIECE_BYTES)?;
    let tracked = SingleFile::make(&source, "tracked.bin", 100_000, &tracker.url())?;
    let place = Place { file: Arc::new(file), tracked, tracker };
    let alone = download(&scratch.folder("alone")?, &place, |_| ())?;
    let beside = download(&scratch.folder("beside")?, &place, |engine| crowd(&place, engine))?;
    wait_until("an announce", Duration::from_secs(5), || {
        Ok((place.tracker.asked() > 0).then_some(()))
    })?;
    let speed = alone.took.as_secs_f64() / beside.took.as_secs_f64();
    let more_mib = beside.peak_kib.saturating_sub(alone.peak_kib) >> 10;
    let (asked, taken) = (place.tracker.asked(), place.tracker.taken_bytes());
    println!(
        "{} MiB: {:.2} s alone, {:.2} s in the crowd: {:.1} % of the speed; {} MiB resident at \
         most alone, {more_mib} MiB more in the crowd; {} KiB taken of a tracker's {asked} answers \
         of 100 MB",
        length >> 20,
        alone.took.as_secs_f64(),
        beside.took.as_secs_f64(),
        100.0 * speed,
        alone.peak_kib >> 10,
        taken >> 10,
    );
    ensure!(speed > SPEED_MIN, "{speed:.2} of its speed");
    ensure!(more_mib <= MEMORY_MIB_MAX, "{more_mib} MiB more");
    ensure!(taken <= asked * TRACKER_BYTES_MAX, "{taken} bytes of {asked} answers");
    Ok(())
}
