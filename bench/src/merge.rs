//! Owns: `seedring-bench merge`: what several agents found at the same time, as one outcome.
//! Never: averages a percentile; merges what was asked for in different ways. Flow: `leech --json`
//! of each agent -> histograms added, rates summed -> one outcome, with the agents' own beside it.

use std::{collections::BTreeMap, fmt::Display, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::{
    environment::SCHEMA,
    leech::{Beside, Latency, Outcome, read_histogram},
    report,
};

/// What `merge` adds up by name.
const KNOWN: [&str; 37] = [
    "target",
    "connections",
    "connections_served",
    "outstanding",
    "block_bytes",
    "pattern",
    "open_loop_mib_per_s",
    "seconds",
    "payload_bytes",
    "mib_per_s",
    "mib_per_s_by_tenth",
    "latency_ms",
    "target_cpu_seconds_per_gib",
    "target_user_seconds_per_gib",
    "target_read_bytes",
    "target_switches_per_gib",
    "target_before",
    "target_after",
    "softirqd_seconds_per_gib",
    "load_cpu_seconds_per_gib",
    "load_busy",
    "load_waiting",
    "load_threads",
    "load_was_limit",
    "beside",
    "rejects",
    "chokes",
    "reopened",
    "reordered",
    "unrequested_blocks",
    "overdue_dropped",
    "pieces_verified",
    "pieces_bad",
    "stalls",
    "last_end",
    "cut_short",
    "partial",
];

#[derive(clap::Args)]
pub struct Options {
    /// Outputs of `leech --json`, an agent each.
    #[arg(required = true)]
    outcomes: Vec<PathBuf>,
    /// Print JSON instead of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Merged {
    schema: u64,
    #[serde(flatten)]
    outcome: Outcome,
    /// What each agent found by itself.
    agents: Vec<Agent>,
}

#[derive(Serialize)]
pub struct Agent {
    pub name: String,
    pub outcome: Outcome,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let agents: Vec<Agent> = options
        .outcomes
        .iter()
        .map(|path| {
            let name = path.display().to_string();
            let text = fs::read(path).with_context(|| format!("cannot read {name}"))?;
            let outcome = serde_json::from_slice(&text)
                .with_context(|| format!("{name} is not what `leech --json` prints"))?;
            Ok(Agent { name, outcome })
        })
        .collect::<Result<_>>()?;
    let outcome = merge(&agents)?;
    let is_partial = outcome.partial.is_some();
    if options.json {
        let merged = Merged { schema: SCHEMA, outcome, agents };
        println!("{}", serde_json::to_string_pretty(&merged)?);
    } else {
        print!("{}", report::leech(&outcome));
        print!("\n{}", by_agent(&agents));
    }
    Ok(if is_partial { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Whether they did the same work, and have histograms. Gives the first.
fn ensure_alike(agents: &[Agent]) -> Result<&Outcome> {
    let first = agents.first().context("no outcomes")?;
    for agent in agents {
        let same = |what: &str, one: &dyn Display, other: &dyn Display| {
            let (one, other) = (one.to_string(), other.to_string());
            let (first, name) = (&first.name, &agent.name);
            ensure!(one == other, "{what} differs: {one} in {first}, {other} in {name}");
            Ok(())
        };
        let (a, b) = (&first.outcome, &agent.outcome);
        same("the block size", &a.block_bytes, &b.block_bytes)?;
        same("the number of outstanding requests", &a.outstanding, &b.outstanding)?;
        same("the pattern", &a.pattern, &b.pattern)?;
        let open = |outcome: &Outcome| outcome.open_loop_mib_per_s.is_some();
        same("whether the loop is open", &open(a), &open(b))?;
        ensure!(
            b.idle_bytes_per_connection.is_none(),
            "{}: of idle connections there is nothing to add up",
            agent.name
        );
        ensure!(
            b.latency_ms.blocks == 0 || !b.latency_ms.histogram.is_empty(),
            "{} has no histogram: a newer `leech` writes it",
            agent.name
        );
    }
    Ok(&first.outcome)
}

/// What they found together.
pub fn merge(agents: &[Agent]) -> Result<Outcome> {
    let mut merged = ensure_alike(agents)?.clone();
    let all = || agents.iter().map(|agent| &agent.outcome);
    let sum = |of: fn(&Outcome) -> u64| all().map(of).sum::<u64>();
    let gib_per_s: f64 = all().map(|one| one.mib_per_s).sum::<f64>() / 1024.0;
    // Cost is spent a second over what came a second: windows of agents differ a little.
    let rate = |one: &Outcome, per_gib: f64| per_gib * one.mib_per_s / 1024.0;
    let load_rate: f64 = all().map(|one| rate(one, one.load_cpu_seconds_per_gib)).sum();
    let of_target = |of: fn(&Outcome) -> Option<f64>| {
        let rate = of_targets(all().filter_map(|one| Some((one, rate(one, of(one)?)))))?;
        Some(if gib_per_s > 0.0 { rate / gib_per_s } else { 0.0 })
    };
    let tenths = all().map(|one| one.mib_per_s_by_tenth.len()).min().unwrap_or(0);
    let named = |of: fn(&Outcome) -> Option<&String>| {
        let lines: Vec<String> = agents
            .iter()
            .filter_map(|agent| Some(format!("{}: {}", agent.name, of(&agent.outcome)?)))
            .collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    };
    let mut targets: Vec<&str> = all().map(|one| one.target.as_str()).collect();
    targets.sort_unstable();
    targets.dedup();
    merged.target = targets.join(", ");
    merged.connections = all().map(|one| one.connections).sum();
    merged.connections_served = all().map(|one| one.connections_served).sum();
    merged.open_loop_mib_per_s = all().map(|one| one.open_loop_mib_per_s).sum();
    merged.seconds = all().map(|one| one.seconds).fold(0.0, f64::max);
    merged.payload_bytes = sum(|one| one.payload_bytes);
    merged.mib_per_s = gib_per_s * 1024.0;
    merged.mib_per_s_by_tenth =
        (0..tenths).map(|at| all().map(|one| one.mib_per_s_by_tenth[at]).sum()).collect();
    merged.latency_ms = latency(agents)?;
    merged.target_cpu_seconds_per_gib = of_target(|one| one.target_cpu_seconds_per_gib);
    merged.target_user_seconds_per_gib = of_target(|one| one.target_user_seconds_per_gib);
    merged.target_switches_per_gib = of_target(|one| one.target_switches_per_gib);
    merged.softirqd_seconds_per_gib = of_target(|one| one.softirqd_seconds_per_gib);
    let reads = all().filter_map(|one| Some((one, one.target_read_bytes? as f64)));
    merged.target_read_bytes = of_targets(reads).map(|bytes| bytes as u64);
    merged.target_before = all().find_map(|one| one.target_before);
    merged.target_after = all().find_map(|one| one.target_after);
    merged.load_cpu_seconds_per_gib = if gib_per_s > 0.0 { load_rate / gib_per_s } else { 0.0 };
    merged.load_busy = all().map(|one| one.load_busy).sum();
    merged.load_waiting = all().map(|one| one.load_waiting).sum();
    merged.load_threads = all().map(|one| one.load_threads).sum();
    merged.load_was_limit = named(|one| one.load_was_limit.as_ref());
    merged.beside = beside(agents);
    merged.rejects = sum(|one| one.rejects);
    merged.chokes = sum(|one| one.chokes);
    merged.reopened = sum(|one| one.reopened);
    merged.reordered = sum(|one| one.reordered);
    merged.unrequested_blocks = sum(|one| one.unrequested_blocks);
    merged.overdue_dropped = sum(|one| one.overdue_dropped);
    merged.pieces_verified = sum(|one| one.pieces_verified);
    merged.pieces_bad = sum(|one| one.pieces_bad);
    // Each agent sees the same gaps of one target: they are not added up.
    merged.stalls = all()
        .map(|one| one.stalls)
        .max_by(|one, other| one.total_ms.total_cmp(&other.total_ms))
        .unwrap_or_default();
    merged.last_end = named(|one| one.last_end.as_ref());
    merged.cut_short = all().any(|one| one.cut_short);
    merged.partial = named(|one| one.partial.as_ref());
    with_the_rest(merged, agents)
}

/// What `merge` does not know by name: histograms are added, what all agents have alike is kept,
/// and anything else is left out, because one agent's would be wrong for all.
fn with_the_rest(merged: Outcome, agents: &[Agent]) -> Result<Outcome> {
    let Value::Object(mut all) = serde_json::to_value(merged)? else {
        unreachable!("invariant: a struct is an object")
    };
    let of_agents: Vec<Value> = agents
        .iter()
        .map(|agent| serde_json::to_value(&agent.outcome))
        .collect::<Result<_, serde_json::Error>>()?;
    let unknown: Vec<String> =
        all.keys().filter(|key| !KNOWN.contains(&key.as_str())).cloned().collect();
    for key in unknown {
        let values: Vec<&Value> = of_agents.iter().map(|outcome| &outcome[&key]).collect();
        match of_all(&values)? {
            Some(value) => drop(all.insert(key, value)),
            None => drop(all.remove(&key)),
        }
    }
    serde_json::from_value(Value::Object(all)).context("a field that can't be merged")
}

/// Others of all agents; each has all torrents.
fn beside(agents: &[Agent]) -> Beside {
    let all = || agents.iter().map(|agent| &agent.outcome.beside);
    Beside {
        torrents: all().map(|one| one.torrents).max().unwrap_or(0),
        idle: all().map(|one| one.idle).sum(),
        slow: all().map(|one| one.slow).sum(),
        slow_kib_per_s: all().map(|one| one.slow_kib_per_s).sum(),
        arrivals: all().map(|one| one.arrivals).sum(),
        departures: all().map(|one| one.departures).sum(),
        turned_away: all().map(|one| one.turned_away).sum(),
    }
}

/// Of all blocks of all agents.
fn latency(agents: &[Agent]) -> Result<Latency> {
    let mut all = read_histogram("")?;
    for agent in agents {
        let text = &agent.outcome.latency_ms.histogram;
        let histogram = read_histogram(text).with_context(|| agent.name.clone())?;
        all.add(histogram).context("histograms of different bounds")?;
    }
    Ok(Latency::of(&all))
}

/// Added up where they are histograms, as it is where it is the same everywhere.
fn of_all(values: &[&Value]) -> Result<Option<Value>> {
    let texts: Option<Vec<&str>> = values.iter().map(|value| value["histogram"].as_str()).collect();
    let Some(texts) = texts else {
        let first = values.first().filter(|first| values.iter().all(|value| value == *first));
        return Ok(first.map(|value| Value::clone(value)));
    };
    let mut sum = read_histogram("")?;
    for text in texts {
        sum.add(read_histogram(text)?).context("histograms of different bounds")?;
    }
    Ok(Some(serde_json::to_value(Latency::of(&sum))?))
}

/// Agents that watch the same target see the same cost: its mean counts; that of several targets is
/// summed. `None`: nobody watched.
fn of_targets<'a>(rates: impl Iterator<Item = (&'a Outcome, f64)>) -> Option<f64> {
    let mut by_target: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (outcome, rate) in rates {
        by_target.entry(&outcome.target).or_default().push(rate);
    }
    let mean = |rates: &Vec<f64>| rates.iter().sum::<f64>() / rates.len() as f64;
    (!by_target.is_empty()).then(|| by_target.values().map(mean).sum())
}

fn by_agent(agents: &[Agent]) -> String {
    let rows: Vec<Vec<String>> = agents
        .iter()
        .map(|agent| {
            let outcome = &agent.outcome;
            vec![
                agent.name.clone(),
                outcome.connections.to_string(),
                format!("{:.0}", outcome.mib_per_s),
                format!("{:.2}", outcome.latency_ms.p50),
                format!("{:.2}", outcome.latency_ms.p99),
                format!("{:.2}", outcome.load_busy),
            ]
        })
        .collect();
    crate::compare::table(
        &["agent", "connections", "MiB/s", "p50 ms", "p99 ms", "load busy"],
        &rows,
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An agent whose blocks took these microseconds.
    fn agent(name: &str, target: &str, mib_per_s: f64, micros: &[u64]) -> Agent {
        let mut histogram = read_histogram("").expect("empty");
        micros.iter().for_each(|value| histogram.saturating_record(*value));
        let outcome = json!({
            "target": target, "connections": 5, "connections_served": 5, "outstanding": 32,
            "block_bytes": 16384, "pattern": "random", "open_loop_mib_per_s": null,
            "seconds": 2.0, "payload_bytes": 100, "mib_per_s": mib_per_s,
            "mib_per_s_by_tenth": [1.0, 2.0], "latency_ms": Latency::of(&histogram),
            "target_cpu_seconds_per_gib": 1024.0 / mib_per_s, "target_user_seconds_per_gib": null,
            "target_read_bytes": 7, "target_switches_per_gib": null, "target_before": null,
            "target_after": null, "softirqd_seconds_per_gib": null,
            "load_cpu_seconds_per_gib": 0.1, "load_busy": 0.4, "idle_bytes_per_connection": null,
            "rejects": 1, "chokes": 0, "reopened": 2, "reordered": 0, "unrequested_blocks": 3,
            "overdue_dropped": 0, "pieces_verified": 4, "pieces_bad": 1, "last_end": null,
            "cut_short": false,
        });
        Agent { name: name.into(), outcome: serde_json::from_value(outcome).expect("an outcome") }
    }

    #[test]
    fn rates_are_summed_and_percentiles_come_from_all_blocks() {
        let fast: Vec<u64> = (0..900).map(|n| 100 + n % 7).collect();
        let slow: Vec<u64> = (0..100).map(|n| 50_000 + n * 1000).collect();
        let agents = [agent("a", "t", 300.0, &fast), agent("b", "t", 100.0, &slow)];
        let merged = merge(&agents).expect("alike");
        assert!((merged.mib_per_s - 400.0).abs() < 1e-9);
        assert_eq!((merged.connections, merged.pieces_bad, merged.unrequested_blocks), (10, 2, 6));
        assert_eq!(merged.mib_per_s_by_tenth, [2.0, 4.0]);
        // A tenth of all blocks is slow: the mean of both p99 would be half of this.
        let both: Vec<u64> = fast.iter().chain(&slow).copied().collect();
        let expected = agent("both", "t", 1.0, &both).outcome.latency_ms;
        assert_eq!(merged.latency_ms.histogram, expected.histogram);
        assert!(merged.latency_ms.p50 < 0.2 && merged.latency_ms.p99 > 130.0);
        // Both saw one target spend one CPU second a second.
        let cost = merged.target_cpu_seconds_per_gib.expect("watched");
        assert!((cost - 1024.0 / 400.0).abs() < 1e-9, "{cost}");
        assert_eq!((merged.target_read_bytes, merged.load_busy), (Some(7), 0.8));
    }

    #[test]
    fn what_is_not_known_by_name_is_never_one_agents() {
        let merged = |one: Value, other: Value| of_all(&[&one, &other]).expect("readable");
        assert_eq!(merged(json!(3), json!(3)), Some(json!(3)));
        assert_eq!(merged(json!({"a": 1}), json!({"a": 2})), None);
        let both = merged(json!({"histogram": "5:1"}), json!({"histogram": "7:2"}));
        assert_eq!(both.expect("added")["histogram"], "5:1 2:2");
        // And all that is known is there to be known.
        let agents = [agent("a", "t", 1.0, &[5]), agent("b", "t", 1.0, &[7])];
        let all = serde_json::to_value(merge(&agents).expect("alike")).expect("JSON");
        for key in KNOWN {
            assert!(all.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn several_targets_spend_together() {
        let agents = [agent("a", "t", 100.0, &[1]), agent("b", "u", 100.0, &[1])];
        let merged = merge(&agents).expect("alike");
        assert_eq!(merged.target, "t, u");
        let cost = merged.target_cpu_seconds_per_gib.expect("watched");
        assert!((cost - 2.0 * 1024.0 / 200.0).abs() < 1e-9, "{cost}");
    }

    #[test]
    fn different_work_is_not_added_up() {
        let refused = |change: fn(&mut Outcome)| {
            let mut other = agent("b", "t", 1.0, &[1]);
            change(&mut other.outcome);
            let error = merge(&[agent("a", "t", 1.0, &[1]), other]).expect_err("not alike");
            format!("{error:#}")
        };
        let block = refused(|one| one.block_bytes = 1024);
        assert!(block.contains("block size differs: 16384 in a, 1024 in b"), "{block}");
        assert!(refused(|one| one.open_loop_mib_per_s = Some(5.0)).contains("loop is open"));
        assert!(refused(|one| one.latency_ms.histogram.clear()).contains("no histogram"));
        assert!(refused(|one| one.latency_ms.histogram = "x".into()).contains("STEP:COUNT"));
        let one_partial = [agent("a", "t", 1.0, &[1]), {
            let mut other = agent("b", "t", 1.0, &[1]);
            other.outcome.partial = Some("the target ended".into());
            other
        }];
        let merged = merge(&one_partial).expect("alike");
        assert_eq!(merged.partial.as_deref(), Some("b: the target ended"));
    }
}
