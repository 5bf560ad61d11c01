//! Owns: content that the cache cannot hold: disk reads of many leeches together, and the speed of
//! one beside a plain O_DIRECT read of the same file.
//! Never: counts a run whose content was in the page cache. Flow: plain read, one leech, fifty ->
//! report.

use std::{
    fs::{File, OpenOptions},
    io::Read as _,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    Cores, Options, TARGET,
    kind::Kind,
    load::VERIFY_SAMPLE,
    pictures::{self, Line, Plot},
    seeding,
    summary::{Report, Spread, table},
    target::{self, Content, Settings},
};
use crate::{cut, leech::Outcome, torrent::Torrent};

/// The engine's cache here: an eighth of the default content.
const CACHE: &str = "256MiB";
const TOGETHER: usize = 50;
/// The plain reader: so many reads of so many bytes in flight.
const READERS: usize = 4;
const READ_BYTES: usize = 1 << 20;
const ALIGNMENT: usize = 4096;

#[derive(Serialize)]
struct Run {
    round: usize,
    plain_mib_per_s: f64,
    one: Outcome,
    together: Outcome,
    reads_over_size: f64,
}

pub fn run(options: &Options) -> Result<Report> {
    let mut report = Report { title: "Content larger than the cache".into(), ..Report::default() };
    report.versions.push(format!("seedring: {}", Kind::Seedring.version(options)?));
    let content = seeding::hot_content(options)?;
    let file = content.folder.join(seeding::CONTENT);
    let size = options.size_bytes() as f64;
    let mut runs = Vec::new();
    for round in cut::rounds(options.rounds) {
        match one_round(options, &content, &file, round, &mut report) {
            Ok(run) => runs.push(run),
            Err(error) => report.fail(&format!("round {round}"), &error),
        }
    }
    let spread = |of: &dyn Fn(&Run) -> f64, digits: usize| {
        Spread::of(runs.iter().map(of)).map_or("-".into(), |spread| spread.text(digits))
    };
    let rows = vec![
        vec!["plain O_DIRECT read, MiB/s".into(), spread(&|run| run.plain_mib_per_s, 0)],
        vec!["one leech in order, MiB/s".into(), spread(&|run| run.one.mib_per_s, 0)],
        vec![
            "one leech over plain read".into(),
            spread(&|run| run.one.mib_per_s / run.plain_mib_per_s, 2),
        ],
        vec![
            format!("{TOGETHER} leeches together in order, MiB/s"),
            spread(&|run| run.together.mib_per_s, 0),
        ],
        vec![
            "their disk reads over the torrent's size".into(),
            spread(&|run| run.reads_over_size, 3),
        ],
        vec![
            "their CPU-s per GiB".into(),
            spread(&|run| run.together.target_cpu_seconds_per_gib.unwrap_or(0.0), 3),
        ],
    ];
    report.sections.push(format!(
        "{:.0} MiB of content, cache {CACHE}, one shard. The page cache is emptied of the file \
         before each step, one piece in {VERIFY_SAMPLE} is hashed. The plain reader keeps \
         {READERS} reads of 1 MiB in flight. Disk reads are the process's read_bytes.\n\n{}",
        size / 1_048_576.0,
        table(&["", "median (min..max)"], &rows)
    ));
    report.plots = plots(&runs);
    report.runs = runs.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    Ok(report)
}

fn one_round(
    options: &Options,
    content: &Content,
    file: &Path,
    round: usize,
    report: &mut Report,
) -> Result<Run> {
    let torrent = Torrent::read(&content.torrent)?;
    let size = options.size_bytes() as f64;
    forget(file)?;
    let plain_mib_per_s = plain_read(file)?;
    let settings = Settings::of(content, options.run_folder("seedring")?, CACHE);
    forget(file)?;
    let mut running = target::seedring(options, &settings, &Cores::one(options.site.server_core))?;
    running.wait_until_served(TARGET, &torrent)?;
    if round == 1 {
        report.commands.push(format!("`{}`", running.command));
    }
    let fetch = |connections: usize| -> Result<Outcome> {
        forget(file)?;
        let connections = connections.to_string();
        let arguments = ["--once", "--pattern", "together", "--outstanding", "64"];
        let sample = ["--verify-sample", VERIFY_SAMPLE, "-k", &connections];
        let arguments: Vec<String> =
            arguments.iter().chain(&sample).map(ToString::to_string).collect();
        options.leech(&content.torrent, running.pid(), &arguments)
    };
    let one = fetch(1)?;
    let together = fetch(TOGETHER)?;
    let reads_over_size = together.target_read_bytes.unwrap_or(0) as f64 / size;
    eprintln!(
        "round {round}  plain {plain_mib_per_s:.0} MiB/s, one leech {:.0} MiB/s, \
         {TOGETHER} together {:.0} MiB/s with reads of {reads_over_size:.2} times the size",
        one.mib_per_s, together.mib_per_s
    );
    running.end()?;
    Ok(Run { round, plain_mib_per_s, one, together, reads_over_size })
}

fn plots(runs: &[Run]) -> Vec<Plot> {
    let seedring = || Kind::Seedring.to_string();
    let together = format!("{TOGETHER} leeches together");
    let speeds = runs.iter().flat_map(|run| {
        [
            (
                "plain O_DIRECT read".to_owned(),
                format!("{READERS} reads at a time"),
                run.plain_mib_per_s,
            ),
            (seedring(), "one leech".to_owned(), run.one.mib_per_s),
            (seedring(), together.clone(), run.together.mib_per_s),
        ]
    });
    let figure = pictures::Figure { title: "Content from the disk, in order", ..pictures::SPEED };
    let lines = runs.iter().flat_map(|run| {
        [
            (Line::turn("one leech", seedring(), 0), &run.one),
            (Line::turn(together.clone(), seedring(), 1), &run.together),
        ]
    });
    let title = "Latency of a block that comes from the disk";
    let plots = [pictures::bars(figure, speeds), pictures::latency("latency", title, lines)];
    plots.into_iter().flatten().collect()
}

/// Drops the file's pages from the page cache.
pub fn forget(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    file.sync_all().ok();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// The whole file once with O_DIRECT, in order, several reads in flight. MiB/s.
pub fn plain_read(path: &Path) -> Result<f64> {
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(direct).open(path);
    let file = file.with_context(|| {
        format!("{}: no O_DIRECT on this file system; use --work on ext4 or xfs", path.display())
    })?;
    let size = file.metadata()?.len();
    let next = AtomicU64::new(0);
    let start = Instant::now();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope.spawn(|| -> std::io::Result<()> {
                    let mut bytes = vec![0_u8; READ_BYTES + ALIGNMENT];
                    let skip = bytes.as_ptr().align_offset(ALIGNMENT);
                    loop {
                        let offset = next.fetch_add(READ_BYTES as u64, Relaxed);
                        if offset >= size {
                            return Ok(());
                        }
                        file.read_at(&mut bytes[skip..skip + READ_BYTES], offset)?;
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))??;
        }
        anyhow::Ok(())
    })
    .context("the plain read")?;
    let seconds = start.elapsed().as_secs_f64();
    // A file that fits a page-cache read would make the comparison meaningless: it must be there.
    File::open(path)?.read_exact(&mut [0])?;
    Ok(size as f64 / 1_048_576.0 / seconds)
}
