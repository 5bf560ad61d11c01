//! Owns: results by node: what the agents of each machine found, as a table of the report.
//! Never: averages a percentile. Flow: runs as JSON -> outcomes by agent -> histograms added by
//! node -> medians over rounds.

use anyhow::Result;
use serde_json::Value;

use super::wire::AgentInfo;
use crate::{
    caution,
    compare::{Spread, table},
    environment::Environment,
    leech::{ByAgent, Latency, read_histogram},
};

/// One node's part of one load of one run.
struct Part {
    /// Target, point and load, in words.
    of: [String; 2],
    node: String,
    agents: usize,
    connections: usize,
    mib_per_s: f64,
    latency: Latency,
    busy: f64,
}

/// A section for the report, of agents beside the target's machine; `None`: no load came from any.
pub fn section(
    runs: &[Value],
    agents: &[AgentInfo],
    target: &Environment,
) -> Result<Option<String>> {
    let mut parts = Vec::new();
    for run in runs.iter().filter_map(Value::as_object) {
        let target = run.get("target").and_then(Value::as_str).unwrap_or("seedring").to_owned();
        for (name, outcome) in caution::outcomes(run) {
            let Ok(by_agent) = serde_json::from_value(outcome["by_agent"].clone()) else {
                continue;
            };
            let words = [caution::point(run), name];
            let point: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
            parts.extend(of_nodes(&[target.clone(), point.join(", ")], by_agent)?);
        }
    }
    if parts.is_empty() {
        return Ok(None);
    }
    let who: Vec<String> = agents.iter().map(|agent| in_words(agent, target)).collect();
    Ok(Some(format!(
        "The load came from {} agents: {}. Of each node, its agents together; latency from their \
         histograms added; medians over the rounds.\n\n{}",
        agents.len(),
        who.join("; "),
        table(
            &[
                "target",
                "load",
                "node",
                "agents",
                "connections",
                "MiB/s",
                "p50 ms",
                "p99 ms",
                "busy"
            ],
            &rows(&parts)
        )
    )))
}

/// An agent, with what of its machine is not as the target's.
fn in_words(agent: &AgentInfo, target: &Environment) -> String {
    let AgentInfo { name, node, cores, kernel, revision, .. } = agent;
    let machine = &target.machine;
    let others = [
        ("", &agent.cpu, &machine.cpu),
        ("governor ", &agent.governor, &machine.governor),
        ("mitigations ", &agent.mitigations, &machine.mitigations),
        ("interface ", &agent.nic, &target.nic),
    ];
    let differs: String = others
        .iter()
        .filter(|(_, its, targets)| its != targets && !its.is_empty())
        .map(|(what, its, _)| format!(", {what}{its}"))
        .collect();
    format!("{name} on {node} ({cores} cores, Linux {kernel}, revision {revision}{differs})")
}

fn of_nodes(of: &[String; 2], by_agent: Vec<ByAgent>) -> Result<Vec<Part>> {
    let mut nodes: Vec<String> = by_agent.iter().map(|one| one.node.clone()).collect();
    nodes.sort();
    nodes.dedup();
    let of_node = |node: String| {
        let mine = || by_agent.iter().filter(|one| one.node == node).map(|one| &one.outcome);
        let mut histogram = read_histogram("")?;
        for outcome in mine() {
            histogram.add(read_histogram(&outcome.latency_ms.histogram)?)?;
        }
        Ok(Part {
            of: of.clone(),
            agents: mine().count(),
            connections: mine().map(|outcome| outcome.connections).sum(),
            mib_per_s: mine().map(|outcome| outcome.mib_per_s).sum(),
            latency: Latency::of(&histogram),
            busy: mine().map(|outcome| outcome.load_busy).fold(0.0, f64::max),
            node,
        })
    };
    nodes.into_iter().map(of_node).collect()
}

fn rows(parts: &[Part]) -> Vec<Vec<String>> {
    let mut seen: Vec<(&[String; 2], &str)> = Vec::new();
    for part in parts {
        if !seen.contains(&(&part.of, &part.node)) {
            seen.push((&part.of, &part.node));
        }
    }
    let row = |(of, node): &(&[String; 2], &str)| {
        let mine = || parts.iter().filter(|part| part.of == **of && part.node == *node);
        let median = |field: fn(&Part) -> f64, digits: usize| {
            let spread = Spread::of(mine().map(field));
            spread.map_or("-".into(), |spread| format!("{:.digits$}", spread.median))
        };
        let latency = |field: fn(&Latency) -> f64| {
            let some = mine().filter(|part| part.latency.blocks > 0);
            let spread = Spread::of(some.map(|part| field(&part.latency)));
            spread.map_or("-".into(), |spread| format!("{:.2}", spread.median))
        };
        vec![
            of[0].clone(),
            of[1].clone(),
            (*node).to_owned(),
            median(|part| part.agents as f64, 0),
            median(|part| part.connections as f64, 0),
            median(|part| part.mib_per_s, 0),
            latency(|latency| latency.p50),
            latency(|latency| latency.p99),
            median(|part| part.busy, 2),
        ]
    };
    seen.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::wire::Place, *};

    #[test]
    fn of_an_agent_it_says_what_differs_from_the_target() {
        let nowhere = Path::new("/nowhere");
        let mut target = Environment::read(nowhere, nowhere, "cubic", ("x", "eth0 (ice)"));
        target.machine.cpu = "CPU 1".into();
        target.machine.governor = "performance".into();
        target.machine.mitigations = "spectre_v2".into();
        let mut agent = AgentInfo {
            name: "a".into(),
            node: "n".into(),
            place: Place::default(),
            cores: 4,
            kernel: "6.1".into(),
            cpu: "CPU 1".into(),
            governor: "performance".into(),
            mitigations: "spectre_v2".into(),
            nic: "eth0 (ice)".into(),
            revision: "abc".into(),
            iperf3: Err("no".into()),
            has_sources: false,
        };
        assert_eq!(in_words(&agent, &target), "a on n (4 cores, Linux 6.1, revision abc)");
        agent.cpu = "CPU 2".into();
        agent.governor = "powersave".into();
        agent.nic = "eth1 (virtio_net)".into();
        // Not every machine has it.
        agent.mitigations = String::new();
        let words = "a on n (4 cores, Linux 6.1, revision abc, CPU 2, governor powersave, \
                     interface eth1 (virtio_net))";
        assert_eq!(in_words(&agent, &target), words);
    }
}
