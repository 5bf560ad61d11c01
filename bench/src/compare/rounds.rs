//! Owns: what scenarios of one load share: targets x points x rounds, interleaved, and the tables
//! of their runs.
//! Never: lets a failed run end the others, or leaves it out of the report. Flow: scenario ->
//! `interleave` -> runs -> `result_table`, `measures_table`.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::{
    Options,
    kind::Target,
    seeding::as_text,
    summary::{Report, Spread, table},
};
use crate::{cut, leech::Outcome};

pub const MIB: f64 = 1_048_576.0;

/// One measurement of one target.
#[derive(Serialize)]
pub struct Run {
    pub round: usize,
    #[serde(serialize_with = "as_text")]
    pub target: Target,
    /// What was varied.
    pub point: String,
    pub outcome: Option<Outcome>,
    /// What the load does not know.
    pub figures: BTreeMap<&'static str, f64>,
}

impl Run {
    pub fn new(round: usize, target: Target, point: impl Into<String>) -> Self {
        Run { round, target, point: point.into(), outcome: None, figures: BTreeMap::new() }
    }

    pub fn with(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        self
    }

    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied()
    }

    fn of(&self, field: impl Fn(&Outcome) -> Option<f64>) -> Option<f64> {
        self.outcome.as_ref().and_then(field)
    }
}

/// A column of a table: its head, decimals, and what stands there.
pub struct Column {
    pub head: &'static str,
    pub digits: usize,
    pub of: fn(&Run) -> Option<f64>,
}

/// Columns that several scenarios have.
pub const SPEED: Column =
    Column { head: "MiB/s", digits: 0, of: |run| run.of(|outcome| Some(outcome.mib_per_s)) };
pub const COST: Column = Column {
    head: "CPU-s per GiB",
    digits: 3,
    of: |run| run.of(|outcome| outcome.target_cpu_seconds_per_gib),
};
pub const P50: Column =
    Column { head: "p50 ms", digits: 2, of: |run| run.of(|o| some_blocks(o, o.latency_ms.p50)) };
pub const P99: Column =
    Column { head: "p99 ms", digits: 2, of: |run| run.of(|o| some_blocks(o, o.latency_ms.p99)) };
pub const SERVED: Column = Column {
    head: "connections served",
    digits: 0,
    of: |run| run.of(|o| Some(o.connections_served as f64)),
};
pub const PRIVATE: Column = Column {
    head: "private MiB",
    digits: 1,
    of: |run| run.of(|o| Some(o.target_after?.private_bytes as f64 / MIB)),
};
pub const LOAD_BUSY: Column =
    Column { head: "load busy", digits: 2, of: |run| run.of(|o| Some(o.load_busy)) };

/// Where nothing was asked for, there is no latency.
pub fn some_blocks(outcome: &Outcome, value: f64) -> Option<f64> {
    (outcome.latency_ms.blocks > 0).then_some(value)
}

/// Each round runs each target once; what fails is in the report, with its round.
pub fn interleave(
    options: &Options,
    targets: &[Target],
    report: &mut Report,
    mut one: impl FnMut(usize, Target, &mut Vec<Run>, &mut Report) -> Result<()>,
) -> Vec<Run> {
    let mut runs = Vec::new();
    for round in cut::rounds(options.rounds) {
        for target in targets {
            options.label(target, round);
            if let Err(error) = one(round, *target, &mut runs, report) {
                report.fail(&format!("{target}, round {round}"), &error);
                options.say_failure(report);
            }
        }
    }
    runs
}

/// The runs, and that there are some.
pub fn finish(mut report: Report, runs: &[Run]) -> Result<Report> {
    cut::check().or_else(|cut| if runs.is_empty() { Err(cut) } else { Ok(()) })?;
    ensure!(!runs.is_empty(), "no run succeeded: {}", report.failed.join("; "));
    report.runs = runs.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    Ok(report)
}

/// Medians with the least and the greatest: a row a target and point, in the order they ran.
pub fn result_table(runs: &[Run], columns: &[Column]) -> String {
    let mut head = vec!["target", "load"];
    head.extend(columns.iter().map(|column| column.head));
    table(&head, &rows(runs, columns))
}

fn rows(runs: &[Run], columns: &[Column]) -> Vec<Vec<String>> {
    let mut seen: Vec<(Target, &str)> = Vec::new();
    for run in runs {
        if !seen.contains(&(run.target, &run.point)) {
            seen.push((run.target, &run.point));
        }
    }
    let row = |(target, point): &(Target, &str)| {
        let of = |column: &Column| {
            let chosen = runs.iter().filter(|run| run.target == *target && run.point == *point);
            Spread::of(chosen.filter_map(column.of))
                .map_or("-".to_owned(), |spread| spread.text(column.digits))
        };
        let mut row = vec![target.to_string(), (*point).to_owned()];
        row.extend(columns.iter().map(of));
        row
    };
    seen.iter().map(row).collect()
}

/// What a run cost beside CPU time; what could not be measured is said below.
pub fn measures_table(runs: &[Run]) -> String {
    measures(runs.iter().filter_map(|run| {
        let outcome = run.outcome.as_ref()?;
        Some((vec![run.target.to_string(), run.point.clone()], outcome))
    }))
}

/// The same of any runs: how each is named, and what it gave.
pub fn measures<'a>(runs: impl Iterator<Item = (Vec<String>, &'a Outcome)>) -> String {
    type Field = fn(&Outcome) -> Option<f64>;
    let columns: [(&str, usize, Field); 9] = [
        ("switches per GiB, voluntary", 0, |o| o.meters.voluntary_switches_per_gib),
        ("involuntary", 0, |o| o.meters.involuntary_switches_per_gib),
        ("system calls per GiB", 0, |o| o.meters.syscalls_per_gib),
        ("first block ms: p50", 2, |o| {
            (o.first_block_ms.blocks > 0).then_some(o.first_block_ms.p50)
        }),
        ("p99", 2, |o| (o.first_block_ms.blocks > 0).then_some(o.first_block_ms.p99)),
        ("fairness (Jain)", 3, |o| o.fairness),
        ("disk bytes per byte", 3, |o| o.meters.disk_bytes_per_byte),
        ("softirq of its core, s per GiB", 3, |o| o.meters.core_softirq_seconds_per_gib),
        ("J per GiB", 1, |o| o.meters.joules_per_gib),
    ];
    let mut of: Vec<(Vec<String>, Vec<&Outcome>)> = Vec::new();
    let mut missing: Vec<&str> = Vec::new();
    for (name, outcome) in runs {
        for reason in &outcome.meters.not_measured {
            if !missing.contains(&reason.as_str()) {
                missing.push(reason);
            }
        }
        match of.iter_mut().find(|(known, _)| *known == name) {
            Some((_, outcomes)) => outcomes.push(outcome),
            None => of.push((name, vec![outcome])),
        }
    }
    let rows: Vec<Vec<String>> = of
        .into_iter()
        .map(|(mut row, outcomes)| {
            row.extend(columns.iter().map(|(_, digits, field)| {
                let spread = Spread::of(outcomes.iter().filter_map(|outcome| field(outcome)));
                spread.map_or("-".to_owned(), |spread| format!("{:.*}", *digits, spread.median))
            }));
            row
        })
        .collect();
    let mut head = vec!["target", "load"];
    head.extend(columns.iter().map(|(head, _, _)| *head));
    let missing = match missing.as_slice() {
        [] => String::new(),
        reasons => format!("\nNot measured:\n- {}\n", reasons.join("\n- ")),
    };
    format!(
        "Switches are of all of the target's threads; system calls are counted by perf in a second \
         of its own after windows of 2 s and more. First block: from a connection's first packet, \
         the warm-up's counted. Softirq is what /proc/stat says of the core, whoever caused it. \
         Medians.\n\n{}{}",
        table(&head, &rows),
        missing
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::kind::Kind;

    fn run(round: usize, point: &str, value: f64) -> Run {
        let mut run = Run::new(round, Kind::Seedring.into(), point);
        run.figures.insert("seconds", value);
        run
    }

    #[test]
    fn rows_are_medians_in_the_order_of_the_first_round_and_a_failure_is_kept() {
        let options = Options { rounds: 3, ..Options::default() };
        let targets = [Target::from(Kind::Seedring), Target::from(Kind::Rqbit)];
        let mut report = Report::default();
        let runs = interleave(&options, &targets, &mut report, |round, target, runs, _| {
            ensure!(target.kind == Kind::Seedring, "it broke");
            runs.push(run(round, "many", round as f64));
            runs.push(run(round, "few", 7.0));
            Ok(())
        });
        let column = Column { head: "seconds", digits: 1, of: |run| run.figure("seconds") };
        let text = result_table(&runs, &[column, SPEED]);
        assert!(text.contains("| seedring | many | 2.0 (1.0..3.0) | - |"), "{text}");
        assert!(text.find("many") < text.find("few"));
        assert_eq!(report.failed.len(), 3);
        assert_eq!(report.failed[1], "rqbit, round 2: it broke");
        assert_eq!(finish(report, &runs).expect("some ran").runs.len(), 6);
        assert!(finish(Report::default(), &[]).is_err());
    }
}
