//! Owns: the downloading comparison: targets x numbers of seeders x rounds, interleaved; its table
//! and its curve.
//! Never: counts a download whose content is not what the torrent says. Flow: swarm -> each target
//! fresh -> complete -> on disk -> hashed -> report.

use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use seedring_proto::units::PieceIndex;
use serde::Serialize;
use sha1::{Digest, Sha1};

use super::{
    Options,
    downloader::{self, Place, can_download},
    follow::{self, Start, Watch, Work},
    kind::{self, Kind},
    pictures::{self, Figure, Plot},
    plot::Steps,
    seeding::{self, as_text},
    summary::{Report, Spread, table},
    swarm::Swarm,
};
use crate::{
    agents::{Seeded, runner},
    cut, payload,
    seed::Share,
    torrent::Torrent,
};

const GIB: f64 = 1_073_741_824.0;
const MIB: f64 = 1_048_576.0;
pub const TARGETS: [Kind; 6] =
    [Kind::Seedring, Kind::Libtorrent, Kind::Transmission, Kind::Rqbit, Kind::Vortex, Kind::Aria2];
/// Of a curve over numbers of seeders.
pub const CURVE_TARGETS: [Kind; 2] = [Kind::Seedring, Kind::Libtorrent];
pub const LIMIT: Duration = Duration::from_secs(300);

#[derive(Serialize)]
struct Run {
    round: usize,
    #[serde(serialize_with = "as_text")]
    target: Kind,
    peers: usize,
    mib_per_s: f64,
    cpu_seconds_per_gib: f64,
    /// From start until the content was on the disk (fsync).
    on_disk_seconds: f64,
    /// The seeders' CPU over wall time: near 1, they were the limit.
    seeders_busy: f64,
    /// What the bench's own seeders sent and, as mixed peers, got of the downloader.
    #[serde(skip_serializing_if = "Option::is_none")]
    seeders_sent_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seeders_fetched_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    seeders_by_agent: Vec<Seeded>,
    work: Work,
}

pub fn run(options: &Options) -> Result<Report> {
    let mut report = Report { title: "Downloading".into(), ..Report::default() };
    let mut targets = kind::present(options, options.targets(), &mut report)?;
    targets.retain(|kind| match can_download(*kind, options) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("{kind} is absent: {error:#}");
            report.absent.push(format!("{kind}: {error:#}"));
            false
        }
    });
    ensure!(!targets.is_empty(), "none of the targets can download");
    let (content, size) = (seeding::hot_content(options)?, options.size_bytes());
    let torrent = Torrent::read(&content.torrent)?;
    let most = *options.peers.iter().max().context("--peers needs a number")?;
    ensure!(!options.peers.contains(&0), "--peers must be at least 1");
    ensure!(
        options.seeders_have_percent == 100 || options.peers.len() == 1,
        "where seeders have a part each there is one number of them: fewer would not have all"
    );
    Share::check(options.seeders_have_percent, most as u32).context("--seeders-have-percent")?;
    ensure!(
        !options.mixed_peers || options.seeders_have_percent < 100,
        "--mixed-peers needs --seeders-have-percent below 100: who has everything fetches nothing"
    );
    if let Some(afar) = &options.site.afar {
        runner::check_seeders(&afar.runner, options.target(), most, options.seeders_have_percent)?;
    }
    // A copy at a time, in a folder of the work folder.
    payload::ensure_room(&options.run_folder("download")?.join(seeding::CONTENT), size)?;
    let swarm = Swarm::start(options, &content, most)?;
    let mut runs = Vec::new();
    for round in cut::rounds(options.rounds) {
        for peers in &options.peers {
            for kind in &targets {
                let at = (round, *kind, *peers);
                options.label(&format!("{kind}, {peers} seeders"), round);
                if let Err(error) = one_run(options, &swarm, &torrent, at, &mut runs, &mut report) {
                    report.fail(&format!("{kind}, {peers} seeders, round {round}"), &error);
                    options.say_failure(&report);
                }
            }
        }
    }
    report.sections.push(result_table(options, &targets, &runs));
    report.plots = plots(&runs);
    report.runs = runs.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    Ok(report)
}

fn one_run(
    options: &Options,
    swarm: &Swarm,
    torrent: &Torrent,
    (round, kind, peers): (usize, Kind, usize),
    runs: &mut Vec<Run>,
    report: &mut Report,
) -> Result<()> {
    let place = Place::fresh(options, kind)?;
    let mut offer = swarm.offer(peers)?;
    let start = Start::now();
    let (running, done) = downloader::start(kind, options, &offer.peers, swarm.torrent(), &place)?;
    if report.commands.is_empty() {
        report.commands.push(format!("each of the seeders: `{}`", offer.command()));
    }
    if round == 1 && Some(&peers) == options.peers.first() {
        report.commands.push(format!("{kind}: `{}`", running.command));
    }
    let how = (&done, Watch::Closely);
    let work = follow::follow_while(&running, &start, how, LIMIT, || offer.check())?;
    let file = only_file(&place.content)?;
    File::open(&file)?.sync_all()?;
    let on_disk_seconds = start.elapsed().as_secs_f64();
    running.end()?;
    let spent = offer.end()?;
    let bad = bad_pieces(&file, torrent)?;
    ensure!(bad == 0, "{bad} pieces of the content do not have the torrent's hash");
    let wrong = spent.totals.map_or(0, |totals| totals.wrong_blocks);
    ensure!(wrong == 0, "{wrong} of the blocks that it uploaded are not the content's");
    fs::remove_dir_all(&place.run)?;
    let run = Run {
        round,
        target: kind,
        peers,
        mib_per_s: torrent.total_bytes as f64 / MIB / work.seconds,
        cpu_seconds_per_gib: work.cpu_seconds / (torrent.total_bytes as f64 / GIB),
        on_disk_seconds,
        seeders_busy: spent.busy_seconds / work.seconds,
        seeders_sent_bytes: spent.totals.map(|totals| totals.sent_bytes),
        seeders_fetched_bytes: spent
            .totals
            .filter(|_| options.mixed_peers)
            .map(|totals| totals.fetched_bytes),
        seeders_by_agent: spent.by_agent,
        work,
    };
    if let Some(afar) = &options.site.afar {
        afar.runner.say_figures(run.mib_per_s, run.cpu_seconds_per_gib)?;
    }
    eprintln!(
        "round {round}  {kind:<14} {peers:>2} seeders  {:6.2} s {:6.0} MiB/s {:.3} CPU-s/GiB \
         {:.0} MiB peak",
        run.work.seconds,
        run.mib_per_s,
        run.cpu_seconds_per_gib,
        run.work.peak_rss_bytes as f64 / MIB
    );
    runs.push(run);
    Ok(())
}

/// The torrent has a single file; what a client keeps beside it is smaller.
pub fn only_file(folder: &Path) -> Result<std::path::PathBuf> {
    let mut path = folder.join(seeding::CONTENT);
    // vortex makes a folder of the name, and the file in it.
    if path.is_dir() {
        path.push(seeding::CONTENT);
    }
    ensure!(path.is_file(), "{} was not written", path.display());
    Ok(path)
}

/// How many pieces of the file do not have their hash; one of another length is bad as a whole.
pub fn bad_pieces(path: &Path, torrent: &Torrent) -> Result<usize> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != torrent.total_bytes {
        return Ok(torrent.piece_hashes.len());
    }
    let mut bytes = vec![0; torrent.piece_bytes as usize];
    let mut bad = 0;
    for (index, hash) in torrent.piece_hashes.iter().enumerate() {
        let piece = &mut bytes[..torrent.piece_length(PieceIndex(index as u32)) as usize];
        file.read_exact(piece)?;
        bad += usize::from(Sha1::digest(piece).as_slice() != hash);
    }
    Ok(bad)
}

fn spread(runs: &[Run], kind: Kind, peers: usize, of: impl Fn(&Run) -> f64) -> Option<Spread> {
    Spread::of(runs.iter().filter(|run| run.target == kind && run.peers == peers).map(of))
}

fn result_table(options: &Options, targets: &[Kind], runs: &[Run]) -> String {
    let mut rows = Vec::new();
    for peers in &options.peers {
        for kind in targets {
            let text = |digits: usize, of: &dyn Fn(&Run) -> f64| {
                spread(runs, *kind, *peers, of).map_or("-".into(), |spread| spread.text(digits))
            };
            let median = |digits: usize, of: &dyn Fn(&Run) -> f64| {
                spread(runs, *kind, *peers, of)
                    .map_or("-".into(), |spread| format!("{:.digits$}", spread.median))
            };
            rows.push(vec![
                kind.to_string(),
                peers.to_string(),
                text(2, &|run| run.work.seconds),
                text(0, &|run| run.mib_per_s),
                text(3, &|run| run.cpu_seconds_per_gib),
                median(2, &|run| run.on_disk_seconds),
                median(0, &|run| run.work.peak_rss_bytes as f64 / MIB),
                median(0, &|run| run.work.peak_private_bytes as f64 / MIB),
                median(0, &|run| run.work.written_bytes as f64 / MIB),
                median(0, &|run| run.work.read_bytes as f64 / MIB),
                median(2, &|run| run.work.softirqd_seconds),
                median(2, &|run| run.seeders_busy),
            ]);
            if options.mixed_peers {
                let uploaded = |run: &Run| run.seeders_fetched_bytes.unwrap_or(0) as f64 / MIB;
                rows.last_mut().expect("invariant: it was just pushed").push(median(0, &uploaded));
            }
        }
    }
    let mut head = vec![
        "target",
        "seeders",
        "seconds: median (min..max)",
        "MiB/s",
        "CPU-s per GiB",
        "s until on disk",
        "peak RSS MiB",
        "peak private MiB",
        "written MiB",
        "read MiB",
        "ksoftirqd s",
        "seeders busy",
    ];
    if options.mixed_peers {
        head.push("uploaded MiB");
    }
    let whose = match &options.site.afar {
        None => format!("content from the page cache) on core {}", options.site.load_core),
        Some(afar) => {
            format!("content made from its seed number) by {} agents", afar.runner.agents.len())
        }
    };
    format!(
        "{:.0} MiB in pieces of 1 MiB, content to a folder on disk; downloader on core {}, seeders \
         ({}, {whose}, all nice -20; peers from a tracker; {} \
         rounds, interleaved, each target fresh each round. Seconds run from the start of the \
         process until it says that all is there and verified; then the file is synced (\"until on \
         disk\") and hashed. CPU is user + system time of the downloader and its children; what \
         the kernel writes back later is nobody's. Where \"seeders busy\" nears 1 the seeders were \
         the limit.\n\n{}",
        options.size_bytes() as f64 / MIB,
        options.site.server_core,
        seeders(options),
        options.rounds,
        table(&head, &rows)
    )
}

/// What they are, in words.
fn seeders(options: &Options) -> String {
    let count = options.peers.first().map_or(0, |count| *count as u32);
    match options.seeders_have_percent {
        100 if options.site.afar.is_some() => "the bench's own".into(),
        100 => "engines of their own".into(),
        percent => format!(
            "the bench's own, each piece at {} of the {count}, which ones by chance, {}",
            Share::holders(percent, count),
            match options.mixed_peers {
                true => "fetching the others from the downloader",
                false => "upload_only",
            }
        ),
    }
}

/// Curves over the number of seeders, or bars where there is one.
fn plots(runs: &[Run]) -> Vec<Plot> {
    let over = |name, title, unit, digits, of: fn(&Run) -> f64| {
        let value = |run: &Run| (run.target.to_string(), run.peers as f64, of(run));
        let figure = Figure { name, title, unit, digits };
        pictures::curve(figure, "seeders", Steps::Factors, runs.iter().map(value))
    };
    let cost = "CPU seconds per GiB downloaded (less is better)";
    let plots = [
        over("peers", "Download speed", "MiB/s", 0, |run| run.mib_per_s),
        over("cpu", cost, "CPU seconds per GiB", 3, |run| run.cpu_seconds_per_gib),
        over("memory", "Most memory of the downloader, its own", "MiB", 0, |run| {
            run.work.peak_private_bytes as f64 / MIB
        }),
    ];
    plots.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_and_a_short_file_are_bad() {
        let folder = std::env::temp_dir().join(format!("download-{}", std::process::id()));
        let path = folder.join(seeding::CONTENT);
        let made = payload::make(&path, 100_000, 32_768, 5).expect("content");
        let torrent = Torrent::read(&made).expect("its torrent");
        assert_eq!(bad_pieces(&path, &torrent).expect("hashed"), 0);
        let mut bytes = fs::read(&path).expect("content");
        bytes[99_999] ^= 1;
        fs::write(&path, &bytes).expect("written");
        assert_eq!(bad_pieces(&path, &torrent).expect("hashed"), 1);
        fs::write(&path, &bytes[..99_999]).expect("written");
        assert_eq!(bad_pieces(&path, &torrent).expect("hashed"), 4);
        fs::remove_dir_all(folder).ok();
    }
}
