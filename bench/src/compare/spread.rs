//! Owns: one hot torrent on one shard and on several: bytes a shard, CPU per GiB, speed.
//! Never: pins single shards. Flow: rounds of each number of shards interleaved -> report.
//!
//! Where there are cores for both, the engine has as many as it has shards and the load others:
//! only then do speeds compare. CPU per GiB compares in any case.

use std::{num::NonZero, thread};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::{
    Cores, Options,
    kind::Kind,
    pictures::{self, Figure, Line, Plot},
    plot::Steps,
    seeding,
    summary::{Report, Spread, table},
    target::{self, Settings},
};
use crate::{cut, leech::Outcome, torrent::Torrent};

/// Connections a shard, where there are many; at least 50 in all, and the same at each point.
const CONNECTIONS_A_SHARD: usize = 25;
/// Names under which the engine may count a shard's bytes, the best first.
const SENT: [&str; 3] = ["uploaded_bytes", "sent_bytes", "uploaded"];

#[derive(Serialize)]
struct Run {
    round: usize,
    shards: usize,
    outcome: Outcome,
    /// Bytes each shard sent during the run; empty where the engine did not say.
    sent_bytes: Vec<u64>,
}

impl Run {
    /// The part of the shard that sent least.
    fn least(&self) -> Option<f64> {
        let all: u64 = self.sent_bytes.iter().sum();
        let least = self.sent_bytes.iter().min()?;
        (all > 0).then(|| *least as f64 / all as f64)
    }
}

/// Who runs where, the same at each point of a run.
struct Places {
    connections: usize,
    /// Cores of the load; `None`: whichever are free.
    load: Option<Cores>,
    load_threads: usize,
}

impl Places {
    fn of(options: &Options) -> Result<Places> {
        let most = options.shards.iter().copied().max().unwrap_or(0);
        ensure!(most > 0 && !options.shards.contains(&0), "--shards needs numbers above 0");
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let apart = cores >= 2 * most;
        Ok(Places {
            connections: (CONNECTIONS_A_SHARD * most).max(50),
            load: apart.then(|| Cores::range(most, cores - most)),
            load_threads: if apart { cores - most } else { 1 },
        })
    }

    fn engine(&self, shards: usize) -> Cores {
        if self.load.is_some() { Cores::range(0, shards) } else { Cores::Any }
    }
}

pub fn run(options: &Options) -> Result<Report> {
    let places = Places::of(options)?;
    let mut report =
        Report { title: "One hot torrent, several shards".into(), ..Report::default() };
    report.versions.push(format!("seedring: {}", Kind::Seedring.version(options)?));
    let content = seeding::hot_content(options)?;
    let mut runs = Vec::new();
    for round in cut::rounds(options.rounds) {
        for shards in options.shards.iter().copied() {
            options.label(&format!("{shards} shards"), round);
            let run = match one_run(options, &places, &content, (round, shards), &mut report) {
                Ok(run) => run,
                Err(error) => {
                    report.fail(&format!("{shards} shards, round {round}"), &error);
                    options.say_failure(&report);
                    continue;
                }
            };
            eprintln!(
                "round {round}  {shards} shards  {:.3} CPU-s/GiB {:.0} MiB/s, least shard {}",
                run.outcome.target_cpu_seconds_per_gib.unwrap_or(0.0),
                run.outcome.mib_per_s,
                run.least().map_or("?".into(), |part| format!("{:.0} %", 100.0 * part)),
            );
            runs.push(run);
        }
    }
    report.sections.push(result_table(options, &places, &runs));
    report.plots = plots(&runs);
    report.runs = runs.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    Ok(report)
}

fn one_run(
    options: &Options,
    places: &Places,
    content: &target::Content,
    (round, shards): (usize, usize),
    report: &mut Report,
) -> Result<Run> {
    let torrent = Torrent::read(&content.torrent)?;
    let cache = format!("{}MiB", shards as u64 * ((options.size_bytes() >> 20) + 256));
    let state = options.run_folder("seedring")?;
    let listen = options.target();
    let settings = Settings { shards, listen, ..Settings::of(content, state, cache) };
    let mut running = target::seedring(options, &settings, &places.engine(shards))?;
    running.wait_until_served(options.target(), &torrent)?;
    if round == 1 {
        report.commands.push(format!("{shards} shards: `{}`", running.command));
    }
    let load = places.load.clone().unwrap_or(Cores::Any);
    let threads = places.load_threads.to_string();
    // Each shard has a cache of its own: enough downloads that each of them sees all of it.
    let downloads = (20 * shards).min(100).to_string();
    options.heat(&content.torrent, running.pid())?;
    let heat = ["--once", "--pattern", "sequential", "--threads", &threads, "-k", &downloads];
    options.leech_on(&load, &content.torrent, running.pid(), &heat.map(String::from))?;
    let before = shard_bytes(options, &settings);
    let mut arguments = options.window();
    arguments.extend(["-k".into(), places.connections.to_string()]);
    arguments.extend(["--threads".into(), threads]);
    let outcome = options.leech_on(&load, &content.torrent, running.pid(), &arguments)?;
    let after = shard_bytes(options, &settings);
    let sent_bytes = match (before, after) {
        (Ok(before), Ok(after)) => {
            after.iter().zip(before).map(|(after, before)| after - before).collect()
        }
        (Err(error), _) | (_, Err(error)) => {
            report.absent.push(format!("bytes a shard: {error:#}"));
            Vec::new()
        }
    };
    running.end()?;
    Ok(Run { round, shards, outcome, sent_bytes })
}

fn result_table(options: &Options, places: &Places, runs: &[Run]) -> String {
    let of = |shards: usize, field: &dyn Fn(&Run) -> Option<f64>| {
        Spread::of(runs.iter().filter(|run| run.shards == shards).filter_map(field))
    };
    let cost = |run: &Run| run.outcome.target_cpu_seconds_per_gib;
    let speed = |run: &Run| Some(run.outcome.mib_per_s);
    let busy = |run: &Run| Some(run.outcome.load_busy);
    let median = |shards, field| of(shards, field).map_or(f64::NAN, |spread| spread.median);
    let times = |shards, field| {
        let first = options.shards.first().copied().unwrap_or(1);
        format!("{:.2}x", median(shards, field) / median(first, field))
    };
    let text = |spread: Option<Spread>, digits| {
        spread.map_or("-".into(), |spread: Spread| spread.text(digits))
    };
    let rows: Vec<Vec<String>> = options
        .shards
        .iter()
        .copied()
        .map(|shards| {
            vec![
                shards.to_string(),
                text(of(shards, &cost), 3),
                times(shards, &cost),
                text(of(shards, &speed), 0),
                times(shards, &speed),
                text(of(shards, &Run::least), 2),
                text(of(shards, &busy), 2),
            ]
        })
        .collect();
    let placed = match &places.load {
        Some(Cores::These(load)) => format!(
            "The engine has cores 0 to N-1 for N shards, the load {} threads on cores {load}.",
            places.load_threads
        ),
        _ => "Neither shards nor load are pinned, and the load takes part of the same cores, so \
              speeds do not compare; CPU per GiB does."
            .into(),
    };
    format!(
        "{} connections, {}; content heated by whole downloads, the first of them hashed. \
         {placed} Times: over the first row.\n\n{}",
        places.connections,
        options.blocks(),
        table(
            &[
                "shards",
                "CPU-s per GiB: median (min..max)",
                "times",
                "MiB/s",
                "times",
                "part of the shard that sent least",
                "load busy (of its threads)"
            ],
            &rows
        )
    )
}

/// Curves over the number of shards, or bars where there is one.
fn plots(runs: &[Run]) -> Vec<Plot> {
    let over = |figure: Figure<'_>, of: fn(&Run) -> Option<f64>| {
        let value = |run: &Run| Some((Kind::Seedring.to_string(), run.shards as f64, of(run)?));
        pictures::curve(figure, "shards", Steps::Equal, runs.iter().filter_map(value))
    };
    let name = |shards: usize| format!("{shards} shard{}", if shards == 1 { "" } else { "s" });
    let mut counts: Vec<usize> = runs.iter().map(|run| run.shards).collect();
    counts.sort_unstable();
    counts.dedup();
    let lines = runs.iter().map(|run| {
        let turn = counts.iter().position(|count| *count == run.shards).unwrap_or(0);
        (Line::turn(name(run.shards), Kind::Seedring.to_string(), turn), &run.outcome)
    });
    let plots = [
        over(pictures::SPEED, |run| Some(run.outcome.mib_per_s)),
        over(pictures::COST, |run| run.outcome.target_cpu_seconds_per_gib),
        pictures::latency("latency", "Latency of a block, full load", lines),
    ];
    plots.into_iter().flatten().collect()
}

/// Bytes sent by each shard so far, as the engine says.
fn shard_bytes(options: &Options, settings: &Settings) -> Result<Vec<u64>> {
    let json = target::list(options, settings)?;
    find_shards(&json).context("seedring list --json lists no shards with their bytes")
}

/// The first array of the name `shards`, however deep, whose members count bytes.
fn find_shards(json: &Value) -> Option<Vec<u64>> {
    if let Some(shards) = json.get("shards").and_then(Value::as_array) {
        let sent = |shard: &Value| SENT.iter().find_map(|name| shard.get(name)?.as_u64());
        if let Some(bytes) = shards.iter().map(sent).collect::<Option<Vec<u64>>>() {
            return Some(bytes);
        }
    }
    match json {
        Value::Object(members) => members.values().find_map(find_shards),
        Value::Array(members) => members.iter().find_map(find_shards),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_found_wherever_they_are() {
        let json = serde_json::json!({"shards": 2, "engine": {"shards": [
            {"sent_bytes": 5, "uploaded_bytes": 4}, {"uploaded_bytes": 6}]}});
        assert_eq!(find_shards(&json), Some(vec![4, 6]));
        assert_eq!(find_shards(&serde_json::json!({"shards": [{"x": 1}]})), None);
    }
}
