//! Owns: a swarm of engine processes on hosts of their own: one has everything, each gives at a
//! known rate, all complete; how long it takes beside the least possible, and how evenly it is
//! carried.
//! Never: fails because others took the machine's time: one round of three has to be good.
//! Flow: network, tracker, seed -> leeches all at once -> all seed -> bytes compared, figures.
//! `SEEDRING_FLEET_MIB` says of how many MiB (10), `SEEDRING_FLEET_ROUNDS` runs so many rounds and
//! prints their figures.

use anyhow::{Context, Result, ensure};
use seedring_tests::figures::{fairness, ideal_time, spread};
use seedring_tests::interop::{Downloader, Network, Opentracker, Scratch, wait_until};
use seedring_tests::live::SingleFile;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const LEECHES: usize = 7;
/// Hosts of the network: the seed, the leeches, the tracker.
const TRACKER: usize = LEECHES + 1;
const MIB: usize = 10;
const PIECE_BYTES: usize = 128 << 10;
const RATE: &str = "1MiB/s";
const RATE_BYTES: u64 = 1 << 20;
/// Beside the ideal, from the start of the processes to the last word that all is there.
const RATIO_MAX: f64 = 1.3;
const FAIRNESS_MIN: f64 = 0.9;
/// Rounds of which one has to be good.
const ROUNDS: usize = 3;
/// Times the ideal: beyond this something stands still.
const STILL: f64 = 6.0;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

struct Fleet {
    seed: Downloader,
    leeches: Vec<(Downloader, PathBuf)>,
    _tracker: Opentracker,
    _network: Network,
    file: SingleFile,
    _scratch: Scratch,
}

impl Fleet {
    /// The leeches have just been started.
    fn start(bytes: usize) -> Result<Self> {
        let scratch = Scratch::new(TMP, "fleet")?;
        let network = Network::new(LEECHES as u8 + 2)?;
        let host = network.host(TRACKER);
        let announce = format!("http://{}:6969/announce", host.address());
        let source = scratch.folder("source")?;
        let file = SingleFile::make_in_pieces(&source, "file.bin", bytes, &announce, PIECE_BYTES)?;
        let allowed = [file.info_hash.as_str()];
        let mut tracker = Opentracker::start(&host, &scratch.folder("tracker")?, &allowed)?;
        let yaml = format!("limits: {{ upload: {RATE} }}\n");
        let start = |number: usize, copy: &PathBuf| {
            let folder = scratch.folder(&format!("engine-{number}"))?;
            Downloader::start_configured(&network.host(number), &folder, &file.torrent, copy, &yaml)
        };
        let content = file.content.parent().context("content has a folder")?.to_path_buf();
        let mut seed = start(0, &content)?;
        seed.wait_complete(Duration::from_secs(30)).context("the seed")?;
        tracker.wait_for(&file.info_hash, 1, 0).context("the seed's announce")?;
        let mut leeches = Vec::new();
        for number in 1..=LEECHES {
            let copy = scratch.folder(&format!("copy-{number}"))?;
            leeches.push((start(number, &copy)?, copy));
        }
        let (_tracker, _network, _scratch) = (tracker, network, scratch);
        Ok(Self { seed, leeches, _tracker, _network, file, _scratch })
    }

    fn uploaded_bytes(engine: &Downloader) -> Result<u64> {
        engine.torrent()?["uploaded_bytes"].as_u64().context("uploaded_bytes in the list")
    }
}

/// How long all took beside the ideal, and Jain's index of what the leeches gave.
fn share(bytes: usize) -> Result<(f64, f64)> {
    let mut fleet = Fleet::start(bytes)?;
    let began = Instant::now();
    let ideal = ideal_time(bytes as u64, RATE_BYTES, &[RATE_BYTES; LEECHES], None);
    let limit = ideal.mul_f64(STILL) + Duration::from_secs(10);
    let mut at = vec![None; LEECHES];
    wait_until("all leeches to complete", limit, || {
        for (at, (leech, _)) in at.iter_mut().zip(&mut fleet.leeches) {
            leech.process().check_running()?;
            // Between its start and its control socket nobody answers.
            if at.is_none() && leech.torrent().unwrap_or_default()["state"] == "seeding" {
                *at = Some(began.elapsed());
            }
        }
        Ok(at.iter().all(Option::is_some).then_some(()))
    })
    .with_context(|| format!("complete at {at:?}"))?;
    let took = at.into_iter().flatten().max().unwrap_or_default();
    for (_, copy) in &fleet.leeches {
        fleet.file.check_copy(copy)?;
    }
    let given = fleet.leeches.iter().map(|(leech, _)| Fleet::uploaded_bytes(leech));
    let given = given.collect::<Result<Vec<u64>>>()?;
    let from_seed = Fleet::uploaded_bytes(&fleet.seed)?;
    let (ratio, fair) = (took.as_secs_f64() / ideal.as_secs_f64(), fairness(&given));
    println!(
        "{} processes, {} MiB: {:.1} s, ideal {:.1} s, ratio {ratio:.3}, fairness of upload \
         {fair:.3}, the seed gave {:.2} copies",
        LEECHES + 1,
        bytes >> 20,
        took.as_secs_f64(),
        ideal.as_secs_f64(),
        from_seed as f64 / bytes as f64,
    );
    ensure!(given.iter().all(|bytes| *bytes > 0), "a leech gave nothing: {given:?}");
    Ok((ratio, fair))
}

#[test]
fn a_swarm_of_engine_processes_completes_near_the_ideal_and_evenly() -> Result<()> {
    let bytes = number("SEEDRING_FLEET_MIB", MIB) << 20;
    let rounds = number("SEEDRING_FLEET_ROUNDS", 0);
    let good = |(ratio, fair): &(f64, f64)| *ratio <= RATIO_MAX && *fair >= FAIRNESS_MIN;
    let mut figures = Vec::new();
    while figures.len() < rounds.max(ROUNDS) && (rounds > 0 || !figures.iter().any(good)) {
        figures.push(share(bytes)?);
    }
    let (mut ratios, mut fair): (Vec<f64>, Vec<f64>) = figures.iter().copied().unzip();
    println!("of {} rounds: {}", ratios.len(), spread(&mut ratios, &mut fair));
    ensure!(figures.iter().any(good), "ratio and fairness of upload: {figures:?}");
    Ok(())
}
