//! Owns: loads of many connections: mostly idle ones, slow readers, connections that come and go,
//! torrents chosen by Zipf's law.
//! Never: measures (the load does). Flow: scenario -> each target fresh -> the load alone and
//! beside the others -> report.

use anyhow::{Context, Result};

use super::{
    Options,
    kind::{self, Kind, Target},
    many,
    pictures::{self, Figure, Plot},
    plot::Steps,
    rounds::{
        self, COST, Column, LOAD_BUSY, MIB, P50, P99, PRIVATE, Run, SERVED, SPEED, interleave,
        measures_table, result_table,
    },
    seeding,
    summary::Report,
    target::{self, Content, Running, Way},
};
use crate::leech::Outcome;

pub const TARGETS: [Kind; 5] =
    [Kind::Seedring, Kind::Libtorrent, Kind::Qbittorrent, Kind::Rtorrent, Kind::Rqbit];
/// Of `connections`: how many are open.
pub const IDLE: [usize; 3] = [2_000, 10_000, 50_000];
/// Those that ask for blocks beside the idle ones, and what they ask for together.
const ACTIVE: usize = 20;
const ACTIVE_MIB_PER_S: usize = 64;
/// Of `slow-readers`.
pub const FAST: [usize; 1] = [10];
/// Connections that a target may hold beyond those of the load.
const SPARE: usize = 1000;

fn bytes_each(run: &Run) -> Option<f64> {
    Some(run.outcome.as_ref()?.idle_bytes_per_connection?.private)
}

/// Of runs in which nothing is asked for: how many are there.
fn idle(run: &Run) -> Option<usize> {
    let outcome = run.outcome.as_ref()?;
    outcome.idle_bytes_per_connection.map(|_| outcome.connections)
}

fn rss_each(run: &Run) -> Option<f64> {
    Some(run.outcome.as_ref()?.idle_bytes_per_connection?.rss)
}

fn busy_percent(run: &Run) -> Option<f64> {
    Some(100.0 * run.outcome.as_ref()?.target_busy?)
}

fn p99_9(run: &Run) -> Option<f64> {
    let outcome = run.outcome.as_ref()?;
    rounds::some_blocks(outcome, outcome.latency_ms.p99_9)
}

/// A target started for so many connections; its command goes into the report once.
fn started(
    options: &Options,
    (round, target): (usize, Target),
    way: &Way<'_>,
    report: &mut Report,
) -> Result<Running> {
    let running = target::start(target, options, way)?;
    let line = format!("{target}: `{}`", running.command);
    if round == 1 && !report.commands.contains(&line) {
        report.commands.push(line);
    }
    Ok(running)
}

fn load(
    options: &Options,
    content: &Content,
    running: &Running,
    arguments: &[String],
) -> Result<Outcome> {
    let torrents = if content.more.is_empty() { &content.torrent } else { &content.folder };
    options
        .leech(torrents, running.pid(), arguments)
        .with_context(|| format!("its output: {}", running.last_words()))
}

fn heat(options: &Options, content: &Content, running: &Running, target: Target) -> Result<()> {
    if !target.kind.is_heated() {
        return Ok(());
    }
    options
        .heat(&content.torrent, running.pid())
        .with_context(|| format!("its output: {}", running.last_words()))
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn say(run: &Run) {
    let Some(outcome) = &run.outcome else { return };
    eprintln!(
        "round {}  {:<24} {:<28} {:6.0} MiB/s p99 {:.2} ms, {} served",
        run.round,
        run.target,
        run.point,
        outcome.mib_per_s,
        outcome.latency_ms.p99,
        outcome.connections_served
    );
}

/// 2,000 to 50,000 connections, nearly all idle.
pub fn connections(options: &Options) -> Result<Report> {
    let mut report = Report { title: "Many connections".into(), ..Report::default() };
    let targets = kind::targets(options, options.targets(), &mut report)?;
    let content = seeding::hot_content(options)?;
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let fits = |idle: &usize| descriptors.is_none_or(|most| (idle + SPARE) as u64 <= most);
    let (counts, too_many): (Vec<usize>, Vec<usize>) =
        options.connections().iter().partition(|idle| fits(idle));
    for idle in too_many {
        let line = format!(
            "{idle} idle connections: a process may open {} files here, and this one may not raise \
             it (CAP_SYS_RESOURCE; `ulimit -Hn`, LimitNOFILE=)",
            descriptors.unwrap_or(0)
        );
        eprintln!("{line}");
        report.absent.push(line);
    }
    let rate = ACTIVE_MIB_PER_S.to_string();
    let active = words(&["--connections", &ACTIVE.to_string(), "--open-loop", &rate]);
    let runs = interleave(options, &targets, &mut report, |round, target, runs, report| {
        for idle in std::iter::once(0).chain(counts.iter().copied()) {
            // Half of them of one torrent is what the engine is told.
            let way = Way { connections: 2 * (idle + SPARE), ..Way::of(&content) };
            let running = started(options, (round, target), &way, report)?;
            if idle > 0 {
                let mut arguments = words(&["--idle", &idle.to_string(), "--duration"]);
                arguments.push(options.seconds.to_string());
                let point = format!("{idle} idle");
                runs.push(
                    Run::new(round, target, point)
                        .with(load(options, &content, &running, &arguments)?),
                );
                runs.last().into_iter().for_each(say);
            }
            let mut arguments = options.window();
            arguments.extend(active.clone());
            arguments.extend(words(&["--idle-beside", &idle.to_string()]));
            let point = format!("{ACTIVE} active beside {idle} idle");
            let outcome = load(options, &content, &running, &arguments)?;
            runs.push(Run::new(round, target, point).with(outcome));
            runs.last().into_iter().for_each(say);
            running.end()?;
        }
        Ok(())
    });
    let columns = [
        SERVED,
        Column { head: "private bytes each", digits: 0, of: bytes_each },
        Column { head: "RSS bytes each", digits: 0, of: rss_each },
        Column { head: "CPU, % of a core", digits: 2, of: busy_percent },
        P50,
        P99,
        Column { head: "p99.9 ms", digits: 2, of: p99_9 },
        LOAD_BUSY,
    ];
    report.sections.push(format!(
        "{} Idle connections have shaken hands and are not interested; bytes are the process's, of \
         those that were served, over what it held before them. The active ones ask for {rate} \
         MiB/s together, open loop: latency is from when a block was due.\n\n{}",
        said(options, "each target fresh at each number of connections"),
        result_table(&runs, &columns)
    ));
    report.sections.push(measures_table(&runs));
    report.plots = connection_plots(&runs);
    rounds::finish(report, &runs)
}

/// A few fast ones, alone and beside many that hardly read.
pub fn slow_readers(options: &Options) -> Result<Report> {
    let mut report = Report { title: "Slow readers".into(), ..Report::default() };
    let targets = kind::targets(options, options.targets(), &mut report)?;
    let content = seeding::hot_content(options)?;
    let fast = options.connections();
    let runs = interleave(options, &targets, &mut report, |round, target, runs, report| {
        for count in fast {
            for slow in [0, options.slow] {
                let way = Way { connections: 2 * (count + slow + SPARE), ..Way::of(&content) };
                let running = started(options, (round, target), &way, report)?;
                heat(options, &content, &running, target)?;
                let mut arguments = options.window();
                arguments.extend(words(&["--connections", &count.to_string()]));
                arguments.extend(words(&["--slow", &slow.to_string()]));
                arguments.extend(words(&["--slow-rate", &options.slow_rate.to_string()]));
                let outcome = load(options, &content, &running, &arguments)?;
                let point = format!("{count} fast beside {slow} slow");
                runs.push(Run::new(round, target, point).with(outcome));
                runs.last().into_iter().for_each(say);
                running.end()?;
            }
        }
        Ok(())
    });
    let slow_speed: fn(&Run) -> Option<f64> = |run| {
        let beside = &run.outcome.as_ref()?.beside;
        (beside.slow > 0).then_some(beside.slow_kib_per_s)
    };
    let columns = [
        SERVED,
        SPEED,
        COST,
        P50,
        P99,
        Column { head: "slow ones together, KiB/s", digits: 0, of: slow_speed },
        PRIVATE,
        LOAD_BUSY,
    ];
    report.sections.push(format!(
        "{} Speed, cost and latency are of the fast ones, closed loop. A slow one has as many \
         requests outstanding, reads {} bytes a second, four times a second, and has a receive \
         buffer of 4 KiB, so that what it does not read waits at the target.\n\n{}",
        said(options, "each target fresh for each load, heated by one whole download"),
        options.slow_rate,
        result_table(&runs, &columns)
    ));
    report.sections.push(measures_table(&runs));
    report.plots = crowd_plots(&runs);
    rounds::finish(report, &runs)
}

/// What memory did over the window.
fn memory(run: &Run, of: fn(&[u64]) -> Option<u64>) -> Option<f64> {
    Some(of(&run.outcome.as_ref()?.target_private_by_second)? as f64 / MIB)
}

/// As many connections on average, which stay, and which come and go.
pub fn churn(options: &Options) -> Result<Report> {
    let mut report = Report { title: "Connections that come and go".into(), ..Report::default() };
    let targets = kind::targets(options, options.targets(), &mut report)?;
    let content = seeding::hot_content(options)?;
    let average = (options.arrivals * options.stay).round().max(1.0) as usize;
    let runs = interleave(options, &targets, &mut report, |round, target, runs, report| {
        let way = Way { connections: 2 * (2 * average + SPARE), ..Way::of(&content) };
        let running = started(options, (round, target), &way, report)?;
        heat(options, &content, &running, target)?;
        for comes_and_goes in [false, true] {
            let mut arguments = options.window();
            let (who, point) = if comes_and_goes {
                (come_and_go(options), format!("{average} on average, come and go"))
            } else {
                (words(&["--connections", &average.to_string()]), format!("{average} that stay"))
            };
            arguments.extend(who);
            let outcome = load(options, &content, &running, &arguments)?;
            runs.push(Run::new(round, target, point).with(outcome));
            runs.last().into_iter().for_each(say);
        }
        running.end()
    });
    report.sections.push(format!(
        "{} {:.1} connections come each second, by chance (a Poisson process), and stay {:.1} s on \
         average (exponential), then close without a word, with blocks under way.\n\n{}",
        said(options, "heated by one whole download"),
        options.arrivals,
        options.stay,
        result_table(&runs, &crowd_columns())
    ));
    report.sections.push(measures_table(&runs));
    report.plots = crowd_plots(&runs);
    rounds::finish(report, &runs)
}

fn come_and_go(options: &Options) -> Vec<String> {
    words(&["--arrivals", &options.arrivals.to_string(), "--stay", &options.stay.to_string()])
}

fn first_block_p99(run: &Run) -> Option<f64> {
    let first = &run.outcome.as_ref()?.first_block_ms;
    (first.blocks > 0).then_some(first.p99)
}

fn crowd_columns() -> [Column; 10] {
    let came: fn(&Run) -> Option<f64> = |run| {
        let beside = &run.outcome.as_ref()?.beside;
        (beside.arrivals > 0).then_some(beside.arrivals as f64)
    };
    [
        SPEED,
        COST,
        P50,
        P99,
        Column { head: "p99 ms to the first block", digits: 1, of: first_block_p99 },
        Column { head: "came", digits: 0, of: came },
        Column {
            head: "private MiB at first",
            digits: 1,
            of: |run| memory(run, |all| all.first().copied()),
        },
        Column { head: "most", digits: 1, of: |run| memory(run, |all| all.iter().max().copied()) },
        Column { head: "at last", digits: 1, of: |run| memory(run, |all| all.last().copied()) },
        LOAD_BUSY,
    ]
}

/// Those that can take thousands of torrents at a start within the scenario's patience.
pub const MANY_TARGETS: [Kind; 2] = [Kind::Seedring, Kind::Libtorrent];

/// Many torrents, a few of them popular, connections that come and go.
pub fn seed_many(options: &Options) -> Result<Report> {
    let mut report = Report { title: "Many torrents".into(), ..Report::default() };
    let targets = kind::targets(options, options.targets(), &mut report)?;
    let content = many::content(options)?;
    let sample = many::sample(&content);
    let runs = interleave(options, &targets, &mut report, |round, target, runs, report| {
        let average = (options.arrivals * options.stay).round().max(1.0) as usize;
        let way = Way { connections: 2 * (2 * average + SPARE), ..Way::of(&content) };
        let running = started(options, (round, target), &way, report)?;
        many::wait_until_all_serve(options, &running, &sample)?;
        let mut arguments = options.window();
        arguments.extend(come_and_go(options));
        arguments.extend(words(&["--zipf", &options.zipf.to_string()]));
        let outcome = load(options, &content, &running, &arguments)?;
        runs.push(Run::new(round, target, format!("{} torrents", options.torrents)).with(outcome));
        runs.last().into_iter().for_each(say);
        running.end()
    });
    report.sections.push(format!(
        "{} {} torrents of {} KiB; the Nth is chosen as often as 1/N to the power {}. {:.1} \
         connections come each second, by chance, each of one torrent, and stay {:.1} s on \
         average; {} would be there on average.\n\n{}",
        said(options, "each target fresh each round, content in the page cache"),
        options.torrents,
        many::FILE_BYTES >> 10,
        options.zipf,
        options.arrivals,
        options.stay,
        (options.arrivals * options.stay).round(),
        result_table(&runs, &crowd_columns())
    ));
    report.sections.push(measures_table(&runs));
    report.plots = crowd_plots(&runs);
    rounds::finish(report, &runs)
}

/// Over the number of connections: memory and CPU of idle ones, latency of those beside them.
fn connection_plots(runs: &[Run]) -> Vec<Plot> {
    let over = |name, title, unit, digits, of: fn(&Run) -> Option<(usize, f64)>| {
        let value = |run: &Run| {
            let (idle, value) = of(run)?;
            Some((run.target.to_string(), idle as f64, value))
        };
        let figure = Figure { name, title, unit, digits };
        let values = runs.iter().filter_map(value);
        pictures::curve(figure, "idle connections", Steps::Equal, values)
    };
    let mut plots: Vec<Plot> = [
        over("memory", "Private memory an idle connection", "bytes", 0, |run| {
            Some((idle(run)?, bytes_each(run)?))
        }),
        over("idle-cpu", "CPU while nothing is asked for", "% of a core", 2, |run| {
            Some((idle(run)?, busy_percent(run)?))
        }),
        over("p99", "Latency of the active connections, 99th percentile", "ms", 2, |run| {
            Some((run.outcome.as_ref()?.beside.idle, (P99.of)(run)?))
        }),
    ]
    .into_iter()
    .flatten()
    .collect();
    plots.extend(pictures::latency_by_point(runs));
    plots
}

/// Of crowds that ask for all they can get.
fn crowd_plots(runs: &[Run]) -> Vec<Plot> {
    let first = Figure {
        name: "first-block",
        title: "From a connection's first packet to its first block, 99th percentile",
        unit: "milliseconds",
        digits: 1,
    };
    let memory = Figure {
        name: "memory-time",
        title: "Private memory over the window of the last repeat",
        ..pictures::MEMORY
    };
    let mut plots: Vec<Plot> = [
        pictures::column(pictures::SPEED, runs, SPEED.of),
        pictures::column(pictures::COST, runs, COST.of),
        pictures::column(pictures::P99, runs, P99.of),
        pictures::column(first, runs, first_block_p99),
        pictures::column(pictures::MEMORY, runs, PRIVATE.of),
        pictures::last_over_time(memory, 1.0, runs, |outcome| {
            outcome.target_private_by_second.iter().map(|bytes| *bytes as f64 / MIB).collect()
        }),
    ]
    .into_iter()
    .flatten()
    .collect();
    plots.extend(pictures::latency_by_point(runs));
    plots
}

/// What all of these have in common.
fn said(options: &Options, how: &str) -> String {
    format!(
        "{}, {:.0} MiB hot, server on core {}, {}, both nice -20; \
         {} rounds, interleaved, {how}; {} s measured after {} s of warm-up; medians (min..max).",
        options.blocks(),
        options.size_bytes() as f64 / MIB,
        options.site.server_core,
        options.load_place(),
        options.rounds,
        options.seconds,
        options.warm_up
    )
}
