//! Owns: hashing content that is there: the engine's `verify: full`, libtorrent's force_recheck,
//! sha1sum; hot and cold, on one core and on two; and a plain O_DIRECT read, cold's ceiling.
//! Never: counts a run that hashed less than everything. Flow: round -> hot, cold -> cores -> each
//! target fresh -> report.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Cores, Options, TARGET, cold,
    follow::{Done, Start, Watch, Work, follow},
    kind::{self, Kind},
    on_cores,
    pictures::{self, Figure, Plot},
    seeding,
    summary::{Report, Spread, table},
    target::{self, Content, Script, Settings, absolute, spawn},
};

use crate::cut;

const GIB: f64 = 1_073_741_824.0;
pub const TARGETS: [Kind; 3] = [Kind::Seedring, Kind::Libtorrent, Kind::Sha1sum];
const CORES: [usize; 2] = [1, 2];
const LIMIT: Duration = Duration::from_secs(120);
const CACHE: &str = "256MiB";
/// The engine's log once all torrents were dealt with, and once one was hashed.
const READY: &str = "s after start";
const VERIFIED: &str = "pieces verified";
const LIBTORRENT_RECHECK: Script =
    ("libtorrent_recheck.py", include_str!("../../rivals/libtorrent_recheck.py"));

/// Rows of the table.
const SEEDRING: &str = "seedring, direct_io: off";
const DIRECT: &str = "seedring";
const LIBTORRENT: &str = "libtorrent";
const PLAIN: &str = "plain O_DIRECT read";
const START_ALONE: &str = "seedring's start alone (verify: trust)";
const RUNNING: &str = "seedring recheck, engine running";

/// The engine's `verify` and `direct_io`.
type Way = (&'static str, &'static str);

/// One row of the table: who, and on how many cores.
type Row = (String, usize);

#[derive(Serialize)]
struct Run {
    round: usize,
    target: String,
    cores: usize,
    cold: bool,
    seconds: f64,
    cpu_seconds: f64,
    work: Option<Work>,
    /// What the engine says: hashed, and read past the page cache.
    engine: Option<Engine>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Engine {
    ready_after_ms: u64,
    hashed_bytes: u64,
    read_bytes: u64,
    direct_reads: u64,
}

/// What the script for libtorrent prints.
#[derive(Deserialize)]
struct Printed {
    seconds: f64,
    cpu_seconds: f64,
}

pub fn run(options: &Options) -> Result<Report> {
    let mut report = Report { title: "Rechecking".into(), ..Report::default() };
    let targets = kind::present(options, options.targets(), &mut report)?;
    let content = seeding::hot_content(options)?;
    let mut runs = Vec::new();
    for round in cut::rounds(options.rounds) {
        for is_cold in [false, true] {
            if is_cold {
                match plain(&content, round) {
                    Ok(run) => runs.push(run),
                    Err(error) => report.fail(&format!("{PLAIN}, round {round}"), &error),
                }
            }
            for cores in CORES {
                for kind in &targets {
                    let at = (round, cores, is_cold);
                    let done = one_run(options, &content, *kind, at, &mut report);
                    match done {
                        Ok(of_it) => runs.extend(of_it),
                        Err(error) => {
                            let what = format!("{kind}, {cores} cores, round {round}");
                            report.fail(&what, &error);
                        }
                    }
                }
            }
        }
    }
    report.sections.push(result_table(options, &runs));
    report.sections.push(ratio_table(&runs));
    report.plots = plots(options.size_bytes() as f64 / GIB, &runs);
    report.runs = runs.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    Ok(report)
}

fn plain(content: &Content, round: usize) -> Result<Run> {
    cut::check()?;
    let file = file(content);
    cold::forget(&file)?;
    let mib_per_s = cold::plain_read(&file)?;
    let seconds = fs::metadata(&file)?.len() as f64 / 1_048_576.0 / mib_per_s;
    eprintln!("round {round}  {PLAIN} {mib_per_s:.0} MiB/s");
    let target = PLAIN.to_string();
    let (cpu_seconds, work, engine) = (0.0, None, None);
    Ok(Run { round, target, cores: 1, cold: true, seconds, cpu_seconds, work, engine })
}

fn file(content: &Content) -> PathBuf {
    content.folder.join(seeding::CONTENT)
}

/// The run of one target; for the engine also that of its start without hashing.
fn one_run(
    options: &Options,
    content: &Content,
    kind: Kind,
    (round, cores, is_cold): (usize, usize, bool),
    report: &mut Report,
) -> Result<Vec<Run>> {
    let mut ways: Vec<(String, Option<Way>)> = match kind {
        // In the page cache what lies there, past it what does not.
        Kind::Seedring => vec![(DIRECT.into(), Some(("full", "auto")))],
        Kind::Libtorrent => vec![(kind.to_string(), None)],
        Kind::Sha1sum if cores == 1 => vec![(kind.to_string(), None)],
        // One file is one thread's.
        Kind::Sha1sum => Vec::new(),
        _ => bail!("{kind} has no part in rechecking"),
    };
    if kind == Kind::Seedring && !is_cold {
        ways.push((SEEDRING.into(), Some(("full", "off"))));
        ways.push((START_ALONE.into(), Some(("trust", "off"))));
    }
    let mut runs = Vec::new();
    for (target, way) in ways {
        cut::check()?;
        if is_cold {
            cold::forget(&file(content))?;
        } else {
            std::io::copy(&mut fs::File::open(file(content))?, &mut std::io::sink())?;
        }
        let (measured, running) = match way {
            Some(way) => seedring(options, content, cores, way)?,
            None => (rival(options, content, kind, cores)?, None),
        };
        let running = running.map(|measured| (String::from(RUNNING), measured));
        for (target, measured) in std::iter::once((target, measured)).chain(running) {
            let (command, seconds, cpu_seconds, work, engine) = measured;
            if round == 1 && !is_cold {
                report.commands.push(format!("{target}, {cores} cores: `{command}`"));
            }
            eprintln!(
                "round {round}  {target:<40} {cores} cores {}  {seconds:.3} s {cpu_seconds:.2} \
                 CPU-s",
                heat(is_cold)
            );
            let cold = is_cold;
            runs.push(Run { round, target, cores, cold, seconds, cpu_seconds, work, engine });
        }
    }
    Ok(runs)
}

/// Command, seconds, CPU seconds, and more about it.
type Measured = (String, f64, f64, Option<Work>, Option<Engine>);

/// The engine from its start until it is ready; where it hashed nothing for that, also what a
/// recheck of the running engine takes.
fn seedring(
    options: &Options,
    content: &Content,
    cores: usize,
    (verify, direct_io): Way,
) -> Result<(Measured, Option<Measured>)> {
    let settings = Settings {
        shards: cores,
        verify,
        direct_io,
        ..Settings::of(content, options.run_folder("seedring")?, CACHE)
    };
    let start = Start::now();
    let running = target::seedring(options, &settings, &Cores::range(0, cores))?;
    let work = follow(&running, &start, (&Done::Logged(READY), Watch::Rarely), LIMIT)?;
    let command = running.command.clone();
    let mut rechecked = None;
    if verify != "full" {
        let start = Start::now();
        target::ask(options, &settings, &["recheck", seeding::CONTENT])?;
        let verified = (&Done::Logged(VERIFIED), Watch::Rarely);
        let mut recheck = follow(&running, &start, verified, LIMIT)?;
        recheck.cpu_seconds -= work.cpu_seconds;
        recheck.user_seconds -= work.user_seconds;
        rechecked = Some(recheck);
    }
    // Shards publish their statistics once in a while: what was hashed is seen a moment later.
    let mut engine = read_engine(&target::list(options, &settings)?)?;
    while engine.hashed_bytes < options.size_bytes() && start.elapsed() < LIMIT {
        thread::sleep(Duration::from_millis(100));
        engine = read_engine(&target::list(options, &settings)?)?;
    }
    running.end()?;
    let hashed = engine.hashed_bytes;
    ensure!(hashed == options.size_bytes(), "{hashed} bytes were hashed");
    let seconds = engine.ready_after_ms as f64 / 1000.0;
    let rechecked = rechecked.map(|work| {
        let command = format!("seedring recheck {}", seeding::CONTENT);
        (command, work.seconds, work.cpu_seconds, Some(work), Some(engine))
    });
    Ok(((command, seconds, work.cpu_seconds, Some(work), Some(engine)), rechecked))
}

fn read_engine(json: &Value) -> Result<Engine> {
    let shards = json.get("shards").and_then(Value::as_array).context("list: no shards")?;
    let sum = |key: &str| shards.iter().filter_map(|shard| shard.get(key)?.as_u64()).sum();
    let ready = json.get("ready_after_ms").and_then(Value::as_u64);
    Ok(Engine {
        ready_after_ms: ready.context("list: no ready_after_ms, it is not ready")?,
        hashed_bytes: sum("hashed_bytes"),
        read_bytes: sum("read_bytes"),
        direct_reads: sum("direct_reads"),
    })
}

fn rival(options: &Options, content: &Content, kind: Kind, cores: usize) -> Result<Measured> {
    let run = options.run_folder(&format!("recheck-{kind}"))?;
    let where_it_runs = Cores::range(0, cores);
    let mut command;
    if kind == Kind::Libtorrent {
        command = on_cores(&absolute(&options.site.python), &where_it_runs);
        command.arg(target::script(options, LIBTORRENT_RECHECK)?).arg(&content.torrent);
        command.arg(&content.folder).args([TARGET.to_string(), cores.to_string()]);
    } else {
        command = on_cores(Path::new("sha1sum"), &where_it_runs);
        command.arg(file(content));
    }
    command.current_dir(&run).env("HOME", &run);
    let start = Start::now();
    let running = spawn(command, &run)?;
    // libtorrent tells its time itself.
    let watch = if kind == Kind::Libtorrent { Watch::Rarely } else { Watch::Closely };
    let work = follow(&running, &start, (&Done::Exit, watch), LIMIT)?;
    let (mut seconds, mut cpu_seconds) = (work.seconds, work.cpu_seconds);
    if kind == Kind::Libtorrent {
        let printed: Printed = serde_json::from_slice(&fs::read(&running.log)?)
            .with_context(|| format!("it printed: {}", running.last_words()))?;
        (seconds, cpu_seconds) = (printed.seconds, printed.cpu_seconds);
    }
    Ok((running.command.clone(), seconds, cpu_seconds, Some(work), None))
}

fn heat(is_cold: bool) -> &'static str {
    if is_cold { "cold" } else { "hot" }
}

fn spread(
    runs: &[Run],
    (target, cores): (&str, usize),
    is_cold: bool,
    of: impl Fn(&Run) -> f64,
) -> Option<Spread> {
    let chosen = |run: &&Run| run.target == target && run.cores == cores && run.cold == is_cold;
    Spread::of(runs.iter().filter(chosen).map(of))
}

/// Targets in the order they first ran, those on one core first.
fn rows_of(runs: &[Run]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for run in runs {
        let row = (run.target.clone(), run.cores);
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    rows.sort_by_key(|(_, cores)| *cores);
    rows
}

fn result_table(options: &Options, runs: &[Run]) -> String {
    let gib = options.size_bytes() as f64 / GIB;
    let mut rows = Vec::new();
    for (target, cores) in rows_of(runs) {
        let mut row = vec![target.clone(), cores.to_string()];
        for is_cold in [false, true] {
            let at = (target.as_str(), cores);
            let text = |digits: usize, of: &dyn Fn(&Run) -> f64| {
                spread(runs, at, is_cold, of).map_or("-".into(), |spread| spread.text(digits))
            };
            row.push(text(3, &|run| run.seconds));
            let hashes = target != START_ALONE;
            row.push(if hashes { text(2, &|run| gib / run.seconds) } else { "-".into() });
            let has_cost = target != PLAIN;
            row.push(if has_cost { text(3, &|run| run.cpu_seconds / gib) } else { "-".into() });
        }
        rows.push(row);
    }
    let head = [
        "target",
        "cores",
        "hot: s, median (min..max)",
        "hot: GiB/s",
        "hot: CPU-s per GiB",
        "cold: s",
        "cold: GiB/s",
        "cold: CPU-s per GiB",
    ];
    format!(
        "{:.0} MiB in pieces of 1 MiB, {} rounds, interleaved, each target fresh each round, nice \
         -20. Hot: the file was read once before; cold: the page cache was emptied of it. \
         seedring: from the start of the process until it is ready (`ready_after_ms`; a shard a \
         core, cache {CACHE}), its CPU likewise, so its start is in both figures; what that is by \
         itself is a row of its own, and so is `seedring recheck` of the engine that was started \
         so, from before the command until the time stamp of its line that all is verified, which \
         is what force_recheck is beside. By itself (`direct_io: auto`) it hashes \
         what lies in the page cache there, and reads the rest past it; hot ratios are those \
         of `direct_io: off`, which does the same with content that is all in memory. libtorrent: \
         from force_recheck until checked, without its start, a hashing thread a core. \
         sha1sum: the whole process. The plain reader keeps 4 reads of 1 MiB in flight.\n\n{}",
        options.size_bytes() as f64 / 1_048_576.0,
        options.rounds,
        table(&head, &rows)
    )
}

/// What hashes, hot and cold, on one core and on two.
fn plots(gib: f64, runs: &[Run]) -> Vec<Plot> {
    let bars = |name, title, unit, is_cold: bool, of: &dyn Fn(&Run) -> f64| {
        let chosen = runs.iter().filter(|run| run.cold == is_cold && run.target != START_ALONE);
        let value = |run: &Run| {
            let cores = format!("{} core{}", run.cores, if run.cores == 1 { "" } else { "s" });
            let point = if run.target == PLAIN { String::new() } else { cores };
            (run.target.clone(), point, of(run))
        };
        pictures::bars(Figure { name, title, unit, digits: 2 }, chosen.map(value))
    };
    let speed = |run: &Run| gib / run.seconds;
    let cost = |run: &Run| if run.target == PLAIN { f64::NAN } else { run.cpu_seconds / gib };
    let per_gib = "CPU seconds per GiB";
    let plots = [
        bars("hot", "Content hashed, from the page cache", "GiB/s", false, &speed),
        bars("cold", "Content hashed, from the disk", "GiB/s", true, &speed),
        bars("cpu-hot", "CPU of hashing, from the page cache", per_gib, false, &cost),
        bars("cpu-cold", "CPU of hashing, from the disk", per_gib, true, &cost),
    ];
    plots.into_iter().flatten().collect()
}

/// Ratios of one round.
struct Round<'a>(&'a [Run], usize);

impl Round<'_> {
    fn find(&self, target: &str, cores: usize, is_cold: bool) -> Option<&Run> {
        self.0.iter().find(|run| {
            (run.round, run.cores, run.cold) == (self.1, cores, is_cold) && run.target == target
        })
    }

    fn hot(&self, target: &str, cores: usize) -> Option<&Run> {
        self.find(target, cores, false)
    }

    fn over_libtorrent(&self) -> Option<f64> {
        Some(self.hot(LIBTORRENT, 1)?.seconds / self.hot(SEEDRING, 1)?.seconds)
    }

    fn over_libtorrent_running(&self) -> Option<f64> {
        Some(self.hot(LIBTORRENT, 1)?.seconds / self.hot(RUNNING, 1)?.seconds)
    }

    fn cost_over_libtorrent(&self) -> Option<f64> {
        Some(self.hot(LIBTORRENT, 1)?.cpu_seconds / self.hot(SEEDRING, 1)?.cpu_seconds)
    }

    fn two_over_one(&self) -> Option<f64> {
        Some(self.hot(SEEDRING, 1)?.seconds / self.hot(SEEDRING, 2)?.seconds)
    }

    fn two_over_one_running(&self) -> Option<f64> {
        Some(self.hot(RUNNING, 1)?.seconds / self.hot(RUNNING, 2)?.seconds)
    }

    fn over_plain(&self, cores: usize) -> Option<f64> {
        let plain = self.find(PLAIN, 1, true)?.seconds;
        Some(plain / self.find(DIRECT, cores, true)?.seconds)
    }
}

/// What the project's targets are about.
fn ratio_table(runs: &[Run]) -> String {
    let rounds = runs.iter().map(|run| run.round).max().unwrap_or(0);
    let row = |name: &str, of: &dyn Fn(Round<'_>) -> Option<f64>| {
        let spread = Spread::of((1..=rounds).filter_map(|round| of(Round(runs, round))));
        vec![name.to_string(), spread.map_or("-".into(), |spread| spread.text(2))]
    };
    let rows = [
        row("hot, one core: speed over libtorrent's", &|round| round.over_libtorrent()),
        row("the same, engine running", &|round| round.over_libtorrent_running()),
        row("hot, one core: libtorrent's CPU over seedring's", &|round| {
            round.cost_over_libtorrent()
        }),
        row("hot: speed of two cores over one", &|round| round.two_over_one()),
        row("the same, engine running", &|round| round.two_over_one_running()),
        row("cold, one core: speed over the plain read's", &|round| round.over_plain(1)),
        row("cold, two cores: speed over the plain read's", &|round| round.over_plain(2)),
    ];
    table(&["ratio of the same round", "median (min..max)"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(target: &str, cores: usize, is_cold: bool, seconds: f64) -> Run {
        let target = target.to_string();
        let cpu_seconds = seconds * cores as f64;
        Run {
            round: 1,
            target,
            cores,
            cold: is_cold,
            seconds,
            cpu_seconds,
            work: None,
            engine: None,
        }
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let runs = [
            run(SEEDRING, 1, false, 0.6),
            run(RUNNING, 1, false, 0.5),
            run(LIBTORRENT, 1, false, 1.5),
            run(SEEDRING, 2, false, 0.4),
            run(RUNNING, 2, false, 0.25),
            run(DIRECT, 1, true, 2.0),
            run(PLAIN, 1, true, 1.9),
        ];
        let text = ratio_table(&runs);
        for line in [
            "| hot, one core: speed over libtorrent's | 2.50 (2.50..2.50) |",
            "| the same, engine running | 3.00 (3.00..3.00) |",
            "| hot: speed of two cores over one | 1.50 (1.50..1.50) |",
            "| the same, engine running | 2.00 (2.00..2.00) |",
            "| cold, one core: speed over the plain read's | 0.95 (0.95..0.95) |",
            "| cold, two cores: speed over the plain read's | - |",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn rows_are_found_by_the_targets_names() {
        assert_eq!(Kind::Seedring.to_string(), DIRECT);
        assert_eq!(Kind::Libtorrent.to_string(), LIBTORRENT);
    }

    #[test]
    fn the_engine_must_be_ready() {
        let shard = |bytes: u64| serde_json::json!({"hashed_bytes": bytes, "direct_reads": 1});
        let mut json = serde_json::json!({"ready_after_ms": 250, "shards": [shard(5), shard(6)]});
        let engine = read_engine(&json).expect("ready");
        assert_eq!((engine.hashed_bytes, engine.direct_reads), (11, 2));
        json["ready_after_ms"] = Value::Null;
        assert!(read_engine(&json).is_err());
    }
}
