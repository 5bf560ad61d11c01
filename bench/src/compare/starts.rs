//! Owns: starting with many torrents, and starting again under load.
//! Never: takes a target's word for it: what counts is that blocks are served.
//! Flow: start -> blocks of a sample of all torrents -> end -> start again; load -> end -> start
//! again -> bytes flow.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Options, afar,
    kind::{self, Kind, Target},
    many,
    pictures::{self, Figure, Plot},
    rounds::{self, Column, MIB, Run, SPEED, interleave, measures_table, result_table},
    seeding,
    summary::Report,
    target::{self, Running, Way},
};
use crate::{cut, leech, probe::Reading, torrent::Torrent};

/// Those that are known to take thousands; transmission and qBittorrent need minutes for 1,000.
pub const START_TARGETS: [Kind; 6] = [
    Kind::Seedring,
    Kind::Libtorrent,
    Kind::Rtorrent,
    Kind::Rqbit,
    Kind::Transmission,
    Kind::Qbittorrent,
];
pub const RESTART_TARGETS: [Kind; 3] = [Kind::Seedring, Kind::Libtorrent, Kind::Rqbit];
/// Connections of the load that lives through a restart.
pub const CONNECTIONS: [usize; 1] = [50];
/// Until a target that was started again serves.
const SERVES_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(2);

/// Torrents on the first start of all, and on the next one.
pub fn start_up(options: &Options) -> Result<Report> {
    let mut report = Report { title: "Starting with many torrents".into(), ..Report::default() };
    let targets = kind::targets(options, options.targets(), &mut report)?;
    let content = many::content(options)?;
    let sample = many::sample(&content);
    let first = Torrent::read(&content.torrent)?;
    let runs = interleave(options, &targets, &mut report, |round, target, runs, report| {
        for again in [false, true] {
            let way = Way { verify: "quick", again, ..Way::of(&content) };
            let began = Instant::now();
            let mut running = target::spawn_target(target, options, &way)?;
            if round == 1 && !again {
                report.commands.push(format!("{target}: `{}`", running.command));
            }
            running.wait_until_served(options.target(), &first)?;
            let first_block = began.elapsed().as_secs_f64();
            many::wait_until_all_serve(options, &running, &sample)?;
            let seconds = began.elapsed().as_secs_f64();
            let reading = Reading::take(running.pid())?;
            running.end()?;
            let mut run =
                Run::new(round, target, if again { "second start" } else { "first start" });
            run.figures.insert("first_block_seconds", first_block);
            run.figures.insert("all_serve_seconds", seconds);
            run.figures.insert("cpu_seconds", reading.cpu_seconds);
            run.figures.insert("private_mib", reading.private_bytes as f64 / MIB);
            eprintln!(
                "round {round}  {:<24} {:<12} {first_block:.2} s to a block, {seconds:.2} s to all",
                target, run.point
            );
            runs.push(run);
        }
        Ok(())
    });
    let columns = [
        Column { head: "s to the first block", digits: 2, of: |r| r.figure("first_block_seconds") },
        Column { head: "s until all serve", digits: 2, of: |run| run.figure("all_serve_seconds") },
        Column { head: "CPU-s", digits: 2, of: |run| run.figure("cpu_seconds") },
        Column { head: "private MiB", digits: 1, of: |run| run.figure("private_mib") },
    ];
    report.sections.push(format!(
        "{} torrents of {} KiB, content in the page cache, server on core {}; {} rounds, \
         interleaved. The first start has no state of before; the second finds what the first \
         left. All serve: each of {} torrents, evenly chosen, has served a block. seedring runs \
         with `verify: quick`, libtorrent in seed mode, qBittorrent is told to skip its check; \
         rTorrent, transmission and rqbit hash everything on the first start.\n\n{}",
        options.torrents,
        many::FILE_BYTES >> 10,
        options.site.server_core,
        options.rounds,
        sample.len(),
        result_table(&runs, &columns)
    ));
    report.plots = start_plots(&runs);
    rounds::finish(report, &runs)
}

fn start_plots(runs: &[Run]) -> Vec<Plot> {
    let bars = |name, title, unit, digits, of| {
        pictures::column(Figure { name, title, unit, digits }, runs, of)
    };
    let plots = [
        bars("all", "From the start until all torrents serve", "seconds", 2, |run| {
            run.figure("all_serve_seconds")
        }),
        bars("first-block", "From the start to the first block", "seconds", 2, |run| {
            run.figure("first_block_seconds")
        }),
        bars("cpu", "CPU until all torrents serve", "CPU seconds", 2, |run| {
            run.figure("cpu_seconds")
        }),
        bars("memory", "Private memory once all serve", "MiB", 1, |run| run.figure("private_mib")),
    ];
    plots.into_iter().flatten().collect()
}

/// Ended and started again while fifty connections ask for all they can get.
pub fn restart(options: &Options) -> Result<Report> {
    let mut report = Report { title: "Restart under load".into(), ..Report::default() };
    let targets = kind::targets(options, options.targets(), &mut report)?;
    let content = seeding::hot_content(options)?;
    let counts = options.connections();
    let runs = interleave(options, &targets, &mut report, |round, target, runs, report| {
        for connections in counts {
            let way = Way::of(&content);
            let running = target::start(target, options, &way)?;
            if round == 1 {
                report.commands.push(format!("{target}: `{}`", running.command));
            }
            let run = restart_once(options, (round, target), &way, running, *connections)?;
            eprintln!(
                "round {round}  {:<24} {connections} connections: {:.2} s to end, {:.2} s to a \
                 block, {:.1} s without bytes",
                target,
                run.figure("end_seconds").unwrap_or(f64::NAN),
                run.figure("first_block_seconds").unwrap_or(f64::NAN),
                run.figure("silent_seconds").unwrap_or(f64::NAN)
            );
            runs.push(run);
        }
        Ok(())
    });
    let columns = [
        Column { head: "s from the signal to its end", digits: 2, of: |r| r.figure("end_seconds") },
        Column {
            head: "s from the start to a block",
            digits: 3,
            of: |run| run.figure("first_block_seconds"),
        },
        Column { head: "s without bytes", digits: 2, of: |run| run.figure("silent_seconds") },
        Column {
            head: "s from the signal to 90 % of the speed",
            digits: 1,
            of: |run| run.figure("recovered_seconds"),
        },
        Column { head: "bytes hashed again", digits: 0, of: |run| run.figure("hashed_bytes") },
        Column {
            head: "connections opened again",
            digits: 0,
            of: |run| Some(run.outcome.as_ref()?.reopened as f64),
        },
        SPEED,
    ];
    report.sections.push(format!(
        "{}, {:.0} MiB hot, server on core {}, {}; {} rounds, interleaved. A third into \
         the load's {} s the target gets SIGTERM, and is started again the moment it has ended; \
         each connection is opened again 20 to 50 ms after it was lost. Without bytes: the \
         longest gap on all connections, where it is longer than 0.1 s. Bytes hashed again are the \
         engine's word; others do not say.\n\n{}",
        options.blocks(),
        options.size_bytes() as f64 / MIB,
        options.site.server_core,
        options.load_place(),
        options.rounds,
        options.seconds,
        result_table(&runs, &columns)
    ));
    report.sections.push(measures_table(&runs));
    report.plots = restart_plots(&runs);
    rounds::finish(report, &runs)
}

/// The phases of a restart, and the speed around it.
fn restart_plots(runs: &[Run]) -> Vec<Plot> {
    const PHASES: [(&str, &str); 4] = [
        ("end_seconds", "from the signal to its end"),
        ("first_block_seconds", "from the start to a block"),
        ("silent_seconds", "without bytes"),
        ("recovered_seconds", "to 90 % of the speed"),
    ];
    let one_point = runs.windows(2).all(|pair| pair[0].point == pair[1].point);
    let values = runs.iter().flat_map(|run| {
        PHASES.iter().filter_map(move |(name, words)| {
            let phase =
                if one_point { (*words).to_owned() } else { format!("{}: {words}", run.point) };
            Some((run.target.to_string(), phase, run.figure(name)?))
        })
    });
    let phases =
        Figure { name: "phases", title: "What a restart takes", unit: "seconds", digits: 2 };
    let time = Figure {
        name: "time",
        title: "Throughput around a restart, last repeat",
        ..pictures::SPEED
    };
    let speed = pictures::last_over_time(time, 0.1, runs, |o| o.mib_per_s_by_tenth.clone());
    [pictures::bars(phases, values), speed].into_iter().flatten().collect()
}

fn restart_once(
    options: &Options,
    (round, target): (usize, Target),
    way: &Way<'_>,
    running: Running,
    connections: usize,
) -> Result<Run> {
    let torrent = Torrent::read(&way.content.torrent)?;
    // The load's process outlives the target's: it has no --pid.
    let mut arguments = options.plain_window();
    arguments.extend(options.asked());
    let connections_word = connections.to_string();
    let more = ["--reopen-max", "50", "--connections", &connections_word];
    arguments.extend(more.map(String::from));
    let load = options.begin_load(&way.content.torrent, &arguments)?;
    let until = options.warm_up + options.seconds / 3.0;
    cut::sleep(Duration::from_secs_f64(until))?;
    let signal = Instant::now();
    running.end()?;
    let end_seconds = signal.elapsed().as_secs_f64();
    let start = Instant::now();
    let again = Way { again: true, ..*way };
    let running = target::spawn_target(target, options, &again)?;
    let (at, source) = (options.target(), afar::asker(options.target(), 0));
    while leech::fetch_first_block(at, source, &torrent, Duration::from_secs(2)).is_err() {
        ensure!(running.ended()?.is_none(), "it ended at once: {}", running.last_words());
        ensure!(start.elapsed() < SERVES_MAX, "it does not serve again: {}", running.last_words());
        thread::sleep(LOOK);
    }
    let first_block_seconds = start.elapsed().as_secs_f64();
    let outcome = load.finish()?;
    let mut run = Run::new(round, target, format!("{connections} connections"));
    run.figures.insert("end_seconds", end_seconds);
    run.figures.insert("first_block_seconds", first_block_seconds);
    run.figures.insert("silent_seconds", outcome.stalls.longest_ms / 1000.0);
    if let Some(seconds) = recovered_seconds(&outcome.mib_per_s_by_tenth) {
        run.figures.insert("recovered_seconds", seconds);
    }
    ensure!(outcome.reopened > 0, "the load did not notice: its window was over before");
    if matches!(target.kind, Kind::Seedring | Kind::SeedringEpoll) {
        let settings = target::engine_settings(target, options, &again);
        let list = target::list(options, &settings)?;
        let shards = list["shards"].as_array().context("list: no shards")?;
        let hashed: u64 = shards.iter().filter_map(|shard| shard["hashed_bytes"].as_u64()).sum();
        run.figures.insert("hashed_bytes", hashed as f64);
    }
    running.end()?;
    Ok(run.with(outcome))
}

/// From the first tenth of a second with less than half of the usual speed until one has nine
/// tenths of it.
fn recovered_seconds(tenths: &[f64]) -> Option<f64> {
    let mut sorted = tenths.to_vec();
    sorted.sort_by(f64::total_cmp);
    let usual = *sorted.get(sorted.len() / 2)?;
    let first = tenths.iter().position(|speed| *speed < usual / 2.0)?;
    let tenths = tenths[first..].iter().position(|speed| *speed >= 0.9 * usual)?;
    Some(tenths as f64 / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_of_before_is_found_again() {
        let tenths = [10.0, 9.0, 11.0, 10.0, 4.0, 0.0, 0.0, 0.0, 3.0, 8.0, 9.5, 10.0];
        assert_eq!(recovered_seconds(&tenths), Some(0.6));
        assert_eq!(recovered_seconds(&[10.0, 9.0, 4.0, 10.0]), Some(0.1));
        assert_eq!(recovered_seconds(&[10.0, 9.0, 10.0, 0.0]), None, "it ends so");
        assert_eq!(recovered_seconds(&[10.0, 9.0]), None, "there was none");
    }
}
