//! Owns: what of a comparison's runs becomes a picture: bars, a curve over what was varied,
//! latency by percentile, speed over time.
//! Never: how a picture is drawn (`plot`); makes one that shows nothing. Flow: runs -> values ->
//! medians -> `Plot`s of the report.

use super::{
    kind::{Target, Tuning},
    plot::{self, Bar, Bars, Chart, Series, Steps},
    rounds, seeding,
    summary::Spread,
};
use crate::leech::Outcome;

/// Where the greatest value is more than so many times the least, a curve goes up by factors.
const EQUAL_MAX: f64 = 20.0;

/// What follows NAME- in the picture's file name, and its SVG.
pub type Plot = (String, String);

/// How a figure is told in a picture.
#[derive(Clone, Copy)]
pub struct Figure<'a> {
    /// Of its file.
    pub name: &'a str,
    pub title: &'a str,
    pub unit: &'a str,
    pub digits: usize,
}

pub const SPEED: Figure<'_> =
    Figure { name: "speed", title: "Throughput", unit: "MiB/s", digits: 0 };
pub const COST: Figure<'_> = Figure {
    name: "cpu",
    title: "CPU seconds per GiB sent (less is better)",
    unit: "CPU seconds per GiB",
    digits: 3,
};
pub const P99: Figure<'_> = Figure {
    name: "p99",
    title: "Latency of a block, 99th percentile (less is better)",
    unit: "milliseconds from request to block",
    digits: 2,
};
pub const MEMORY: Figure<'_> =
    Figure { name: "memory", title: "Private memory at the end", unit: "MiB", digits: 1 };

/// A line's name in the legend, the target that gives it its colour, and which of that target's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    name: String,
    owner: String,
    turn: usize,
}

impl Line {
    /// A target's only one.
    pub fn of(target: impl Into<String>) -> Line {
        let name = target.into();
        let turn = usize::from(name.ends_with("default settings"));
        Line { owner: name.clone(), name, turn }
    }

    /// One of several of the same target, told apart by `name`.
    pub fn turn(name: impl Into<String>, owner: impl Into<String>, turn: usize) -> Line {
        Line { name: name.into(), owner: owner.into(), turn }
    }

    fn series(self, points: Vec<(f64, Spread)>) -> Series {
        Series { name: self.name, owner: self.owner, turn: self.turn, points }
    }
}

/// Values by their key, in the order in which the keys came.
fn grouped<K: PartialEq, V>(values: impl IntoIterator<Item = (K, V)>) -> Vec<(K, Vec<V>)> {
    let mut groups: Vec<(K, Vec<V>)> = Vec::new();
    for (key, value) in values {
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, of_it)) => of_it.push(value),
            None => groups.push((key, vec![value])),
        }
    }
    groups
}

/// A bar each target and point: target, point, value, for each run.
pub fn bars(
    figure: Figure<'_>,
    values: impl IntoIterator<Item = (String, String, f64)>,
) -> Option<Plot> {
    let values = values.into_iter().filter(|(_, _, value)| value.is_finite());
    let targets = grouped(values.map(|(target, point, value)| (target, (point, value))));
    let mut bars = Vec::new();
    for (target, of_it) in targets {
        for (point, values) in grouped(of_it) {
            bars.extend(Spread::of(values).map(|spread| Bar {
                target: target.clone(),
                point,
                spread,
            }));
        }
    }
    let Figure { name, title, unit, digits } = figure;
    let svg = Bars { title: title.into(), unit: unit.into(), digits, bars };
    (!svg.bars.is_empty()).then(|| (name.to_owned(), svg.svg()))
}

/// A line each target over what was varied, `across`; bars, where there is one value of that alone.
pub fn curve(
    figure: Figure<'_>,
    across: &str,
    steps: Steps,
    values: impl IntoIterator<Item = (String, f64, f64)>,
) -> Option<Plot> {
    let values: Vec<_> = values.into_iter().filter(|(_, _, value)| value.is_finite()).collect();
    let first = values.first()?.1;
    #[expect(clippy::float_cmp, reason = "the same whole number, never computed")]
    if values.iter().all(|(_, at, _)| *at == first) {
        let point = format!("{first} {across}");
        return bars(figure, values.into_iter().map(|(target, _, up)| (target, point.clone(), up)));
    }
    let lines = grouped(values.into_iter().map(|(target, at, up)| (target, (at, up))));
    let series = lines.into_iter().map(|(target, points)| {
        let mut points: Vec<_> = grouped(points)
            .into_iter()
            .filter_map(|(at, values)| Some((at, Spread::of(values)?)))
            .collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        Line::of(target).series(points)
    });
    let series: Vec<Series> = series.collect();
    let chart = Chart {
        title: figure.title.to_owned(),
        across: across.to_owned(),
        up: format!("{}: median, min to max", figure.unit),
        up_steps: up_steps(&series),
        series,
        across_steps: steps,
        marks: Vec::new(),
    };
    Some((figure.name.to_owned(), chart.svg()))
}

/// From 0, so that heights compare, unless one of them would press the others to the floor.
fn up_steps(series: &[Series]) -> Steps {
    let spreads = || series.iter().flat_map(|series| series.points.iter().map(|(_, at)| at));
    let least = spreads().map(|at| at.min).fold(f64::INFINITY, f64::min);
    let greatest = spreads().map(|at| at.max).fold(0.0, f64::max);
    match least > 0.0 && greatest / least > EQUAL_MAX {
        true => Steps::Factors,
        false => Steps::Equal,
    }
}

/// A line each over the percentiles, by factors both ways.
pub fn latency<'a>(
    name: &str,
    title: &str,
    outcomes: impl IntoIterator<Item = (Line, &'a Outcome)>,
) -> Option<Plot> {
    let lines = grouped(outcomes).into_iter().filter_map(|(line, outcomes)| {
        let points = percentiles(&outcomes);
        (!points.is_empty()).then(|| line.series(points))
    });
    let series: Vec<Series> = lines.collect();
    let chart = Chart {
        title: title.to_owned(),
        across: "percentile of blocks".to_owned(),
        up: "milliseconds from request to block".to_owned(),
        series,
        across_steps: Steps::Factors,
        up_steps: Steps::Factors,
        marks: [(2.0, "50"), (10.0, "90"), (100.0, "99"), (1000.0, "99.9"), (10_000.0, "99.99")]
            .map(|(at, name)| (at, name.to_owned()))
            .to_vec(),
    };
    (!chart.series.is_empty()).then(|| (name.to_owned(), chart.svg()))
}

/// Of the runs' curves: one over the part of blocks that took longer, and how long. Where fewer
/// blocks than one are above it, a percentile would be the longest of all.
fn percentiles(outcomes: &[&Outcome]) -> Vec<(f64, Spread)> {
    let longest = outcomes.iter().map(|outcome| outcome.latency_ms.curve.len()).max().unwrap_or(0);
    let point = |at: usize| {
        let here = |outcome: &&Outcome| -> Option<(f64, f64)> {
            let (percent, ms) = outcome.latency_ms.curve.get(at).copied()?;
            let across = 1.0 / (1.0 - percent / 100.0);
            (ms > 0.0 && across <= outcome.latency_ms.blocks as f64).then_some((across, ms))
        };
        let found: Vec<(f64, f64)> = outcomes.iter().filter_map(here).collect();
        Some((found.first()?.0, Spread::of(found.iter().map(|(_, ms)| *ms))?))
    };
    // The first is the shortest of all, and no percentile.
    (1..longest).filter_map(point).collect()
}

/// Values that follow one another in equal steps of so many seconds, a line each.
pub fn over_time(
    figure: Figure<'_>,
    step_seconds: f64,
    lines: impl IntoIterator<Item = (Line, Vec<f64>)>,
) -> Option<Plot> {
    let one = |value: f64| Spread { median: value, min: value, max: value };
    let series: Vec<Series> = lines
        .into_iter()
        .filter(|(_, values)| values.len() > 1)
        .map(|(line, values)| {
            let points = values.iter().enumerate();
            line.series(points.map(|(at, v)| ((at + 1) as f64 * step_seconds, one(*v))).collect())
        })
        .collect();
    let end = series.iter().filter_map(|series| series.points.last()).map(|point| point.0);
    let end = end.fold(0.0, f64::max);
    let chart = Chart {
        title: figure.title.to_owned(),
        across: "seconds".to_owned(),
        up: figure.unit.to_owned(),
        series,
        across_steps: Steps::Equal,
        up_steps: Steps::Equal,
        marks: plot::marks(end),
    };
    (!chart.series.is_empty()).then(|| (figure.name.to_owned(), chart.svg()))
}

/// A bar each target and point of a column.
pub fn column(
    figure: Figure<'_>,
    runs: &[rounds::Run],
    of: fn(&rounds::Run) -> Option<f64>,
) -> Option<Plot> {
    let value = |run: &rounds::Run| Some((run.target.to_string(), run.point.clone(), of(run)?));
    bars(figure, runs.iter().filter_map(value))
}

/// Latency by percentile, a picture each point.
pub fn latency_by_point(runs: &[rounds::Run]) -> Vec<Plot> {
    let found = runs.iter().filter_map(|run| {
        let line = Line::of(run.target.to_string());
        Some((run.point.clone(), (line, run.outcome.as_ref()?)))
    });
    let points = grouped(found);
    let picture = |(point, outcomes): (String, Vec<(Line, &Outcome)>)| {
        let title = format!("Latency of a block: {point}");
        latency(&format!("latency-{}", in_file_name(&point)), &title, outcomes)
    };
    points.into_iter().filter_map(picture).collect()
}

/// The last run of each target: what it did over time.
pub fn last_over_time(
    figure: Figure<'_>,
    step_seconds: f64,
    runs: &[rounds::Run],
    of: fn(&Outcome) -> Vec<f64>,
) -> Option<Plot> {
    let found = runs
        .iter()
        .filter_map(|run| Some((Line::of(run.target.to_string()), of(run.outcome.as_ref()?))));
    let last = grouped(found).into_iter().filter_map(|(line, mut all)| Some((line, all.pop()?)));
    over_time(figure, step_seconds, last)
}

fn in_file_name(words: &str) -> String {
    let letters = words.chars().map(|letter| match letter {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '.' => letter.to_ascii_lowercase(),
        _ => '-',
    });
    let mut name: String = letters.collect();
    while name.contains("--") {
        name = name.replace("--", "-");
    }
    name.trim_matches('-').to_owned()
}

/// Those of the seeding comparison.
pub fn of_seeding(connections: &[usize], runs: &[seeding::Run]) -> Vec<Plot> {
    let over = |figure: Figure<'_>, of: fn(&seeding::Run) -> f64| {
        let value = |run: &seeding::Run| (run.target.to_string(), run.connections as f64, of(run));
        curve(figure, "connections", Steps::Factors, runs.iter().map(value))
    };
    let speed = Figure { title: "Throughput, server on one core", ..SPEED };
    let mut plots: Vec<Plot> =
        [over(COST, |run| run.cpu_seconds_per_gib), over(speed, |run| run.mib_per_s)]
            .into_iter()
            .flatten()
            .collect();
    plots.extend(tuned_beside_default(connections, runs));
    let at = |count: usize| runs.iter().filter(move |run| run.connections == count);
    let outcome = |run: &'_ seeding::Run| Line::of(run.target.to_string());
    for count in connections {
        let all = at(*count).filter_map(|run| Some((outcome(run), run.outcome.as_ref()?)));
        let title = format!("Latency of a block at {}, full load", super::connections(*count));
        plots.extend(latency(&format!("latency-{count}"), &title, all));
        let half = at(*count).filter_map(|run| Some((outcome(run), run.open_loop.as_ref()?)));
        let title = format!(
            "Latency of a block at {}, half load (from when it was due)",
            super::connections(*count)
        );
        plots.extend(latency(&format!("latency-{count}-half"), &title, half));
    }
    if let Some(count) = connections.last() {
        let all = at(*count).filter_map(|run| Some((outcome(run), run.outcome.as_ref()?)));
        let last = grouped(all).into_iter().filter_map(|(line, all)| Some((line, *all.last()?)));
        let title = format!("Throughput over time at {}, last repeat", super::connections(*count));
        let figure = Figure { name: "time", title: &title, ..SPEED };
        let tenths = last.map(|(line, outcome)| (line, outcome.mib_per_s_by_tenth.clone()));
        plots.extend(over_time(figure, 0.1, tenths));
    }
    plots
}

/// Where both are there: bars side by side.
fn tuned_beside_default(connections: &[usize], runs: &[seeding::Run]) -> Vec<Plot> {
    if runs.iter().all(|run| run.target.tuning == Tuning::Tuned) {
        return Vec::new();
    }
    let pictures = connections.iter().flat_map(|count| {
        let chosen = move |of: fn(&seeding::Run) -> f64| {
            runs.iter().filter(|run| run.connections == *count).map(move |run| {
                let Target { kind, tuning } = run.target;
                let whose = match tuning {
                    Tuning::Tuned if kind.has_defaults() => "tuned",
                    Tuning::Tuned => "",
                    Tuning::Default => "default",
                };
                (kind.to_string(), whose.to_owned(), of(run))
            })
        };
        let (speed, cost) = (format!("settings-speed-{count}"), format!("settings-cpu-{count}"));
        let title =
            |of: &str| format!("{of}, {}: tuned and default settings", super::connections(*count));
        [
            bars(
                Figure { name: &speed, title: &title("Throughput"), ..SPEED },
                chosen(|run| run.mib_per_s),
            ),
            bars(
                Figure { name: &cost, title: &title("CPU seconds per GiB"), ..COST },
                chosen(|run| run.cpu_seconds_per_gib),
            ),
        ]
    });
    pictures.flatten().collect()
}

/// An outcome of so many blocks that took 1 ms, and some longer.
#[cfg(test)]
pub fn made_up(blocks: u64) -> Outcome {
    let curve = [(0.0, 0.5), (50.0, 1.0), (75.0, 2.0), (87.5, 3.0)];
    serde_json::from_value(serde_json::json!({
        "target": "a", "connections": 1, "connections_served": 1, "outstanding": 1,
        "block_bytes": 16384, "pattern": "Random", "seconds": 1.0, "payload_bytes": 16384,
        "mib_per_s": 10.0, "mib_per_s_by_tenth": [9.0, 11.0],
        "latency_ms": {"blocks": blocks, "p50": 1.0, "p90": 3.0, "p99": 3.0, "p99_9": 3.0,
            "max": 3.0, "curve": curve},
        "load_cpu_seconds_per_gib": 0.1, "load_busy": 0.1, "rejects": 0, "chokes": 0,
        "reopened": 0, "reordered": 0, "unrequested_blocks": 0, "overdue_dropped": 0,
        "pieces_verified": 0, "pieces_bad": 0, "cut_short": false
    }))
    .expect("as the load writes it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_needs_a_block_above_it() {
        let points = |blocks| percentiles(&[&made_up(blocks)]).len();
        assert_eq!((points(100), points(4), points(1)), (3, 2, 0));
    }

    #[test]
    fn a_picture_without_a_value_is_left_out() {
        assert!(bars(SPEED, []).is_none());
        assert!(bars(SPEED, [("a".into(), "x".into(), f64::NAN)]).is_none());
        assert!(curve(SPEED, "shards", Steps::Equal, []).is_none());
        assert!(latency("latency", "none", []).is_none());
        assert!(over_time(SPEED, 0.1, [(Line::of("a"), vec![5.0])]).is_none());
    }

    #[test]
    fn one_value_across_is_bars_and_several_are_lines() {
        let values = |counts: &[f64]| -> Vec<(String, f64, f64)> {
            counts.iter().map(|at| ("seedring".to_owned(), *at, 10.0 * at)).collect()
        };
        let (name, svg) =
            curve(SPEED, "seeders", Steps::Factors, values(&[4.0, 4.0])).expect("one");
        assert_eq!(name, "speed");
        assert!(svg.contains("class=\"bar\"") && svg.contains("(4 seeders)"), "{svg}");
        let (_, svg) = curve(SPEED, "seeders", Steps::Factors, values(&[4.0, 1.0])).expect("two");
        assert!(svg.contains("<polyline") && svg.contains("median, min to max"), "{svg}");
    }

    #[test]
    fn a_curve_goes_up_from_0_unless_one_value_would_press_the_others_to_the_floor() {
        let begins_at_0 = |greatest: f64| {
            let values = [("a".into(), 1.0, 1.0), ("b".into(), 4.0, greatest)];
            let (_, svg) = curve(SPEED, "seeders", Steps::Factors, values).expect("a curve");
            svg.contains(">0</text>")
        };
        assert!(begins_at_0(15.0) && !begins_at_0(1500.0));
    }

    #[test]
    fn names_of_files_are_plain() {
        assert_eq!(in_file_name("20 active beside 50,000 idle"), "20-active-beside-50-000-idle");
    }
}
