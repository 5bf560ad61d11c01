//! Owns: many small torrents: time until all seed, memory each, idle CPU; idle connections.
//! Never: takes the engine's word for it: "seeding" means that a block was served.
//! Flow: content once -> first start -> idle -> connections -> second start -> report.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::{
    Cores, Options, TARGET, afar,
    kind::Kind,
    pictures::{self, Figure, Plot},
    summary::{Report, Spread, table},
    target::{self, Content, Running, Settings},
};
use crate::{
    cut,
    leech::{self, IdleBytes},
    payload,
    probe::Reading,
    torrent::Torrent,
};

pub const FILE_BYTES: u64 = 64 << 10;
const PIECE_BYTES: u64 = 16 << 10;
const CACHE: &str = "64MiB";
/// Torrents asked for a block before a start counts as done: each seeds or the start is not over.
const SAMPLE: usize = 200;
const START_MAX: Duration = Duration::from_secs(300);
const IDLE: Duration = Duration::from_secs(15);
const IDLE_CONNECTIONS: usize = 2000;

#[derive(Serialize)]
struct Start {
    round: usize,
    second: bool,
    seconds: f64,
    rss_bytes: u64,
    private_bytes: u64,
    idle_cpu_percent: f64,
    idle_connection_bytes: Option<IdleBytes>,
}

pub fn run(options: &Options) -> Result<Report> {
    let mut report = Report { title: "Many small torrents".into(), ..Report::default() };
    report.versions.push(format!("seedring: {}", Kind::Seedring.version(options)?));
    let content = content(options)?;
    let sample = sample(&content);
    let bare = bare_private_bytes(options, &content)?;
    let mut starts = Vec::new();
    for round in cut::rounds(options.rounds) {
        if let Err(error) = one_round(options, &content, &sample, round, &mut starts, &mut report) {
            report.fail(&format!("round {round}"), &error);
        }
    }
    report.sections.push(result_table(options, &starts, bare));
    report.plots = plots(&starts);
    report.runs = starts.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    Ok(report)
}

fn one_round(
    options: &Options,
    content: &Content,
    sample: &[PathBuf],
    round: usize,
    starts: &mut Vec<Start>,
    report: &mut Report,
) -> Result<()> {
    let settings = Settings {
        verify: "quick",
        ..Settings::of(content, options.run_folder("seedring")?, CACHE)
    };
    for second in [false, true] {
        let start = Instant::now();
        let running = target::seedring(options, &settings, &Cores::one(options.site.server_core))?;
        if starts.is_empty() {
            report.commands.push(format!("`{}`", running.command));
        }
        wait_until_all_serve(options, &running, sample)?;
        let seconds = start.elapsed().as_secs_f64();
        let found = after_start(options, &running, sample, second)?;
        eprintln!(
            "round {round}  {} start {seconds:.2} s, {:.0} MiB private, {:.2} % idle CPU",
            if second { "second" } else { "first" },
            found.private_bytes as f64 / 1_048_576.0,
            found.idle_cpu_percent
        );
        running.end()?;
        starts.push(Start { round, second, seconds, ..found });
    }
    Ok(())
}

/// Small single-file torrents, made once.
pub fn content(options: &Options) -> Result<Content> {
    let folder = options.site.work.join(format!("many-{}", options.torrents));
    eprintln!("content: {} torrents in {}", options.torrents, folder.display());
    let mut torrents = Vec::new();
    for number in 0..options.torrents {
        let file = folder.join(format!("small-{number:06}.bin"));
        cut::check()?;
        torrents.push(payload::make(&file, FILE_BYTES, PIECE_BYTES, number as u64 + 100)?);
    }
    ensure!(!torrents.is_empty(), "--torrents must be at least 1");
    let torrent = torrents.remove(0);
    Ok(Content { torrent, more: torrents, folder })
}

/// An even sample of them, and the last.
pub fn sample(content: &Content) -> Vec<PathBuf> {
    let torrents: Vec<&PathBuf> = content.torrents().collect();
    let step = (torrents.len() / SAMPLE).max(1);
    let last = torrents.last().copied();
    torrents.iter().copied().step_by(step).chain(last).cloned().collect()
}

/// What the engine holds with a single torrent: subtracted when memory a torrent is reckoned.
fn bare_private_bytes(options: &Options, content: &Content) -> Result<u64> {
    let state = options.run_folder("seedring-bare")?;
    let settings = Settings {
        verify: "quick",
        torrents: content.torrent.display().to_string(),
        ..Settings::of(content, state, CACHE)
    };
    let mut running = target::seedring(options, &settings, &Cores::one(options.site.server_core))?;
    running.wait_until_served(TARGET, &Torrent::read(&content.torrent)?)?;
    thread::sleep(Duration::from_secs(2));
    let bytes = Reading::take(running.pid())?.private_bytes;
    running.end()?;
    Ok(bytes)
}

pub fn wait_until_all_serve(
    options: &Options,
    running: &Running,
    sample: &[PathBuf],
) -> Result<()> {
    let deadline = Instant::now() + START_MAX;
    let torrents: Vec<Torrent> =
        sample.iter().map(|path| Torrent::read(path)).collect::<Result<_>>()?;
    for (at, torrent) in torrents.iter().enumerate() {
        loop {
            let (target, source) = (options.target(), afar::asker(options.target(), at));
            let fetched = leech::fetch_first_block(target, source, torrent, Duration::from_secs(2));
            let Err(error) = fetched else { break };
            cut::check()?;
            ensure!(
                Instant::now() < deadline,
                "{}: not served in {} s ({error:#}); {}",
                sample[at].display(),
                START_MAX.as_secs(),
                running.last_words()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

fn after_start(
    options: &Options,
    running: &Running,
    sample: &[PathBuf],
    with_connections: bool,
) -> Result<Start> {
    // Announces and first timers settle.
    cut::sleep(Duration::from_secs(5))?;
    let before = Reading::take(running.pid())?;
    cut::sleep(IDLE)?;
    let after = Reading::take(running.pid())?;
    let spent = after.cpu_seconds - before.cpu_seconds;
    let idle_connection_bytes = if with_connections {
        let arguments =
            ["--idle".into(), IDLE_CONNECTIONS.to_string(), "--duration".into(), "5".into()];
        options.leech(&sample[0], running.pid(), &arguments)?.idle_bytes_per_connection
    } else {
        None
    };
    Ok(Start {
        round: 0,
        second: false,
        seconds: 0.0,
        rss_bytes: after.rss_bytes,
        private_bytes: after.private_bytes,
        idle_cpu_percent: 100.0 * spent / IDLE.as_secs_f64(),
        idle_connection_bytes,
    })
}

fn plots(starts: &[Start]) -> Vec<Plot> {
    let bars = |name, title, unit, digits, of: fn(&Start) -> Option<f64>| {
        let value = |start: &Start| {
            let point = if start.second { "second start" } else { "first start" };
            Some((Kind::Seedring.to_string(), point.to_owned(), of(start)?))
        };
        pictures::bars(Figure { name, title, unit, digits }, starts.iter().filter_map(value))
    };
    let plots = [
        bars("seconds", "From the start until all torrents serve", "seconds", 2, |start| {
            Some(start.seconds)
        }),
        bars("memory", "Private memory with all torrents", "MiB", 1, |start| {
            Some(start.private_bytes as f64 / 1_048_576.0)
        }),
        bars("idle-cpu", "CPU while nothing is asked for", "% of a core", 2, |start| {
            Some(start.idle_cpu_percent)
        }),
        bars("connection", "Private memory an idle connection", "bytes", 0, |start| {
            Some(start.idle_connection_bytes?.private)
        }),
    ];
    plots.into_iter().flatten().collect()
}

fn result_table(options: &Options, starts: &[Start], bare: u64) -> String {
    let spread = |second: bool, of: &dyn Fn(&Start) -> Option<f64>, digits: usize| {
        Spread::of(starts.iter().filter(|start| start.second == second).filter_map(of))
            .map_or("-".into(), |spread| spread.text(digits))
    };
    let count = options.torrents as f64;
    let each = |start: &Start| Some((start.private_bytes as f64 - bare as f64) / 1024.0 / count);
    let idle = |start: &Start| start.idle_connection_bytes.map(|bytes| bytes.private);
    type Field<'a> = &'a dyn Fn(&Start) -> Option<f64>;
    let fields: [(&str, Field<'_>, usize); 5] = [
        ("seconds from start to all seeding", &|start| Some(start.seconds), 2),
        ("private memory a torrent, KiB", &each, 2),
        ("RSS, MiB", &|start| Some(start.rss_bytes as f64 / 1_048_576.0), 0),
        ("idle CPU, % of a core", &|start| Some(start.idle_cpu_percent), 2),
        ("private memory an idle connection, B", &idle, 0),
    ];
    let rows: Vec<Vec<String>> = fields
        .iter()
        .map(|(name, field, digits)| {
            vec![(*name).into(), spread(false, field, *digits), spread(true, field, *digits)]
        })
        .collect();
    format!(
        "{} torrents of {} KiB, verify: quick. A start is over when each of {SAMPLE} torrents, \
         evenly chosen, has served a block. Memory a torrent leaves out what the engine holds \
         with one ({:.1} MiB). Idle: {} s after the start, no connections. {IDLE_CONNECTIONS} \
         idle connections: handshake and bitfield done, not interested.\n\n{}",
        options.torrents,
        FILE_BYTES >> 10,
        bare as f64 / 1_048_576.0,
        IDLE.as_secs(),
        table(&["", "first start", "second start"], &rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_starts_are_in_the_pictures() {
        let start = |second: bool| Start {
            round: 1,
            second,
            seconds: 0.5,
            rss_bytes: 9 << 20,
            private_bytes: 8 << 20,
            idle_cpu_percent: 0.0,
            idle_connection_bytes: second.then_some(IdleBytes {
                private: 900.0,
                rss: 1000.0,
                pss: 1000.0,
            }),
        };
        let plots = plots(&[start(false), start(true)]);
        let bars: Vec<_> = plots
            .iter()
            .map(|(name, svg)| (name.as_str(), svg.matches("class=\"bar\"").count()))
            .collect();
        assert_eq!(bars, [("seconds", 2), ("memory", 2), ("idle-cpu", 2), ("connection", 1)]);
        assert!(super::plots(&[]).is_empty());
    }
}
