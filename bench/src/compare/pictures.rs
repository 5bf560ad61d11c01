//! Owns: the pictures of the seeding comparison. Never: how a picture is drawn (`plot`).
//! Flow: runs -> points a target -> charts.

use super::{
    kind::Target,
    plot::{Chart, Series, Steps},
    seeding::Run,
    summary::Spread,
};
use crate::leech::Outcome;

/// Named for what follows NAME- in their files' names.
pub fn of_seeding(
    targets: &[Target],
    connections: &[usize],
    runs: &[Run],
) -> Vec<(String, String)> {
    let mut pictures = vec![
        (
            "cpu".to_owned(),
            over_connections(
                targets,
                connections,
                runs,
                ("CPU seconds per GiB sent (less is better)", "CPU seconds per GiB"),
                |run| run.cpu_seconds_per_gib,
            ),
        ),
        (
            "speed".to_owned(),
            over_connections(
                targets,
                connections,
                runs,
                ("Throughput, server on one core", "MiB/s"),
                |run| run.mib_per_s,
            ),
        ),
    ];
    for count in connections {
        pictures.push((format!("latency-{count}"), latency(targets, *count, runs)));
    }
    if let Some(count) = connections.last() {
        pictures.push(("time".to_owned(), over_time(targets, *count, runs)));
    }
    let charts = pictures.into_iter().filter(|(_, chart)| !chart.series.is_empty());
    charts.map(|(name, chart)| (name, chart.svg())).collect()
}

fn over_connections(
    targets: &[Target],
    connections: &[usize],
    runs: &[Run],
    (title, up): (&str, &str),
    of: fn(&Run) -> f64,
) -> Chart {
    let series = series(targets, |target| {
        let points = connections.iter().filter_map(|count| {
            let chosen =
                runs.iter().filter(|run| run.target == target && run.connections == *count);
            Some((*count as f64, Spread::of(chosen.map(of))?))
        });
        points.collect()
    });
    Chart {
        title: title.to_owned(),
        across: "connections".to_owned(),
        up: up.to_owned(),
        series,
        across_steps: Steps::Factors,
        up_steps: Steps::Equal,
        marks: Vec::new(),
    }
}

fn latency(targets: &[Target], connections: usize, runs: &[Run]) -> Chart {
    let outcomes = |target: Target| outcomes(runs, target, connections);
    let series = series(targets, |target| {
        let percents = outcomes(target).next().map_or(0, |outcome| outcome.latency_ms.curve.len());
        let points = (1..percents).filter_map(|at| {
            let here = |outcome: &Outcome| outcome.latency_ms.curve.get(at).copied();
            let (percent, _) = here(outcomes(target).next()?)?;
            let values = outcomes(target).filter_map(|outcome| Some(here(outcome)?.1));
            Some((1.0 / (1.0 - percent / 100.0), Spread::of(values)?))
        });
        points.collect()
    });
    Chart {
        title: format!("Latency of a block at {connections} connections, full load"),
        across: "percentile".to_owned(),
        up: "milliseconds from request to block".to_owned(),
        series,
        across_steps: Steps::Factors,
        up_steps: Steps::Factors,
        marks: [(2.0, "50"), (10.0, "90"), (100.0, "99"), (1000.0, "99.9")]
            .map(|(at, name)| (at, name.to_owned()))
            .to_vec(),
    }
}

fn over_time(targets: &[Target], connections: usize, runs: &[Run]) -> Chart {
    let series = series(targets, |target| {
        let Some(outcome) = outcomes(runs, target, connections).last() else { return Vec::new() };
        let tenths = outcome.mib_per_s_by_tenth.iter().enumerate();
        let one = |value: f64| Spread { median: value, min: value, max: value };
        tenths.map(|(at, speed)| ((at + 1) as f64 / 10.0, one(*speed))).collect()
    });
    let end = series.iter().filter_map(|series| series.points.last()).map(|point| point.0);
    let seconds = end.fold(0.0, f64::max).ceil() as u32;
    let every = (seconds / 10).max(1);
    Chart {
        title: format!("Throughput over time at {connections} connections, last repeat"),
        across: "seconds".to_owned(),
        up: "MiB/s".to_owned(),
        series,
        across_steps: Steps::Equal,
        up_steps: Steps::Equal,
        marks: (1..seconds)
            .filter(|second| second % every == 0)
            .map(|second| (f64::from(second), second.to_string()))
            .collect(),
    }
}

fn outcomes(runs: &[Run], target: Target, connections: usize) -> impl Iterator<Item = &Outcome> {
    let chosen =
        runs.iter().filter(move |run| run.target == target && run.connections == connections);
    chosen.filter_map(|run| run.outcome.as_ref())
}

/// A line each target that has points.
fn series(targets: &[Target], points: impl Fn(Target) -> Vec<(f64, Spread)>) -> Vec<Series> {
    let all =
        targets.iter().map(|target| Series { name: target.to_string(), points: points(*target) });
    all.filter(|series| !series.points.is_empty()).collect()
}
