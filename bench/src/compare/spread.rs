//! Owns: one hot torrent on one shard and on two: bytes a shard, CPU per GiB.
//! Never: pins the engine to one core. Flow: rounds of 1, 2 shards interleaved -> report.

use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::{
    Options, seeding,
    summary::{Report, Spread, table},
    target::{self, Settings},
};
use crate::{leech::Outcome, torrent::Torrent};

const CONNECTIONS: usize = 50;
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

pub fn run(options: &Options) -> Result<Report> {
    let mut report =
        Report { title: "One hot torrent, several shards".into(), ..Report::default() };
    report.versions.push(format!("seedring: {}", target::Kind::Seedring.version(options)?));
    let content = seeding::hot_content(options)?;
    let torrent = Torrent::read(&content.torrent)?;
    let mut runs = Vec::new();
    for round in 1..=options.rounds {
        for shards in [1, 2] {
            let settings = Settings {
                shards,
                cache: format!("{}MiB", 2 * (options.size_bytes() >> 20) + 512),
                verify: "trust",
                state: options.run_folder("seedring")?,
                torrents: content.torrent.display().to_string(),
                content: content.folder.clone(),
            };
            let mut running = target::seedring(options, &settings, None)?;
            running.wait_until_served(&torrent)?;
            if round == 1 {
                report.commands.push(format!("{shards} shards: `{}`", running.command));
            }
            let heat = ["--once", "--pattern", "sequential", "--connections", "20"];
            options.leech(&content.torrent, running.pid(), &heat.map(String::from))?;
            let before = shard_bytes(options, &settings);
            let mut arguments = options.window();
            arguments.extend(["-k".into(), CONNECTIONS.to_string()]);
            let outcome = options.leech_anywhere(&content.torrent, running.pid(), &arguments)?;
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
            let run = Run { round, shards, outcome, sent_bytes };
            eprintln!(
                "round {round}  {shards} shards  {:.3} CPU-s/GiB {:.0} MiB/s, least shard {}",
                run.outcome.target_cpu_seconds_per_gib.unwrap_or(0.0),
                run.outcome.mib_per_s,
                run.least().map_or("?".into(), |part| format!("{:.0} %", 100.0 * part)),
            );
            runs.push(run);
        }
    }
    report.sections.push(result_table(&runs));
    report.runs = runs.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    Ok(report)
}

fn result_table(runs: &[Run]) -> String {
    let of = |shards: usize, field: &dyn Fn(&Run) -> Option<f64>| {
        Spread::of(runs.iter().filter(|run| run.shards == shards).filter_map(field))
    };
    let cost = |run: &Run| run.outcome.target_cpu_seconds_per_gib;
    let text = |spread: Option<Spread>, digits| {
        spread.map_or("-".into(), |spread: Spread| spread.text(digits))
    };
    let one = of(1, &cost).map_or(f64::NAN, |spread| spread.median);
    let rows: Vec<Vec<String>> = [1, 2]
        .into_iter()
        .map(|shards| {
            let spread = of(shards, &cost);
            vec![
                shards.to_string(),
                text(spread, 3),
                spread.map_or("-".into(), |spread| format!("{:.2}x", spread.median / one)),
                text(of(shards, &|run| Some(run.outcome.mib_per_s)), 0),
                text(of(shards, &Run::least), 2),
            ]
        })
        .collect();
    format!(
        "{CONNECTIONS} connections, random blocks, content heated by 20 downloads. Neither shards \
         nor load are pinned, and the load takes part of two cores, so speeds do not compare; CPU \
         per GiB does.\n\n{}",
        table(
            &[
                "shards",
                "CPU-s per GiB: median (min..max)",
                "times one shard",
                "MiB/s",
                "part of the shard that sent least"
            ],
            &rows
        )
    )
}

/// Bytes sent by each shard so far, as the engine says.
fn shard_bytes(options: &Options, settings: &Settings) -> Result<Vec<u64>> {
    let output = Command::new(options.seedring.canonicalize()?)
        .args(["list", "--json", "--config"])
        .arg(settings.state.join("bench.yaml"))
        .current_dir(&settings.state)
        .output()
        .context("seedring list")?;
    anyhow::ensure!(
        output.status.success(),
        "seedring list --json: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let json: Value = serde_json::from_slice(&output.stdout).context("seedring list --json")?;
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
