//! Owns: a report's JSON read again: what was measured of whom, at which point, in which round.
//! Never: compares. Flow: file -> `Saved` -> judge.
//!
//! Every preset writes its runs in a form of its own; what they share is enough: `round`, `target`,
//! numbers with known names, and outcomes of the load. What else stands in a run and is no measure
//! (`connections`, `peers`, `cold`, ...) is the point at which it was taken.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

use crate::{
    caution::{limited, outcomes, point},
    environment::SCHEMA,
    leech::{BUSY_MAX, parse_bytes},
};

/// Of reports that do not say it: content as `compare` makes it by itself.
const CONTENT_BYTES: u64 = 2 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    CpuPerGib,
    MibPerS,
    P99,
    Seconds,
    CpuSeconds,
    PrivateMib,
}

impl Measure {
    pub fn more_is_better(self) -> bool {
        self == Measure::MibPerS
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Measure::CpuPerGib => "CPU-s per GiB",
            Measure::MibPerS => "MiB/s",
            Measure::P99 => "p99 ms",
            Measure::Seconds => "seconds",
            Measure::CpuSeconds => "CPU-s",
            Measure::PrivateMib => "private MiB",
        })
    }
}

/// One measure of one target at one point, round by round.
#[derive(Clone, Debug)]
pub struct Series {
    pub target: String,
    /// As `key=value`s; empty where there is one point only.
    pub point: String,
    /// Which of several measurements of a run: empty for the run's own.
    pub part: String,
    pub measure: Measure,
    pub by_round: BTreeMap<u64, f64>,
    /// Rounds in which the load, and not the target, was the limit.
    pub limited: usize,
}

impl Series {
    pub fn is_same_as(&self, other: &Series) -> bool {
        self.point == other.point && self.part == other.part && self.measure == other.measure
    }

    pub fn was_limited(&self) -> bool {
        2 * self.limited > self.by_round.len()
    }
}

/// A report as it was written.
#[derive(Debug)]
pub struct Saved {
    pub path: PathBuf,
    pub schema: u64,
    pub preset: String,
    pub content_bytes: u64,
    pub settings: Map<String, Value>,
    pub environment: Map<String, Value>,
    pub versions: Vec<String>,
    /// Runs failed, or a signal cut it short: what is here is what was measured until then.
    pub partial: bool,
    pub series: Vec<Series>,
}

impl Saved {
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let text = fs::read(path).with_context(|| format!("cannot read the report {name}"))?;
        let json: Value =
            serde_json::from_slice(&text).with_context(|| format!("{name} is not JSON"))?;
        Self::parse(path, &json).with_context(|| format!("{name}"))
    }

    fn parse(path: &Path, json: &Value) -> Result<Self> {
        let schema = json["schema"]
            .as_u64()
            .context("no report of `compare` or `run`: it has no \"schema\"")?;
        ensure!(
            (1..=SCHEMA).contains(&schema),
            "schema {schema}; this program knows 1 to {SCHEMA}: use the one that wrote it"
        );
        let object = |key: &str| json[key].as_object().cloned().unwrap_or_default();
        let lines = |value: &Value| -> Vec<String> {
            let list = value.as_array().into_iter().flatten();
            list.filter_map(|line| line.as_str().map(String::from)).collect()
        };
        let arguments = lines(&json["arguments"]);
        let argument = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name)?;
            arguments.get(at + 1).cloned()
        };
        // Before schema 2 only the command line told them.
        let (preset, content_bytes) = if schema < 2 {
            let size = argument("--size").and_then(|text| parse_bytes(&text).ok());
            (argument("--preset").unwrap_or("seeding".into()), size.unwrap_or(CONTENT_BYTES))
        } else {
            let preset = json["settings"]["preset"].as_str().context("no \"settings.preset\"")?;
            (preset.to_owned(), json["content_bytes"].as_u64().context("no \"content_bytes\"")?)
        };
        let report = &json["report"];
        let mut saved = Saved {
            path: path.to_owned(),
            schema,
            preset,
            content_bytes,
            settings: object("settings"),
            environment: object(if schema < 2 { "machine" } else { "environment" }),
            versions: lines(&report["versions"]),
            partial: report["cut_short"] == true
                || report["failed"].as_array().is_some_and(|failed| !failed.is_empty()),
            series: Vec::new(),
        };
        for run in report["runs"].as_array().context("no \"report.runs\"")? {
            saved.add(run.as_object().context("a run is not an object")?);
        }
        Ok(saved)
    }

    /// Takes in one run.
    fn add(&mut self, run: &Map<String, Value>) {
        let round = run.get("round").and_then(Value::as_u64).unwrap_or(0);
        let target = run.get("target").and_then(Value::as_str).unwrap_or("seedring").to_owned();
        let point = point(run);
        let seeders_busy = run.get("seeders_busy").and_then(Value::as_f64).unwrap_or(0.0);
        let outcomes = outcomes(run);
        let own_limited = outcomes.iter().any(|(part, value)| part.is_empty() && limited(value))
            || seeders_busy >= BUSY_MAX;
        let mut put = |part: &str, measure: Measure, value: Option<f64>, limited: bool| {
            let Some(value) = value.filter(|value| value.is_finite() && *value > 0.0) else {
                return;
            };
            let here = self.series.iter_mut().find(|series| {
                series.target == target
                    && series.point == point
                    && series.part == part
                    && series.measure == measure
            });
            let series = match here {
                Some(series) => series,
                None => {
                    self.series.push(Series {
                        target: target.clone(),
                        point: point.clone(),
                        part: part.to_owned(),
                        measure,
                        by_round: BTreeMap::new(),
                        limited: 0,
                    });
                    self.series.last_mut().expect("invariant: just pushed")
                }
            };
            // The run's own figures come first; those of its outcome are the same once more.
            if series.by_round.insert(round, value).is_none() {
                series.limited += usize::from(limited);
            }
        };
        let own = |name: &str| run.get(name).and_then(Value::as_f64);
        put("", Measure::CpuPerGib, own("cpu_seconds_per_gib"), false);
        put("", Measure::MibPerS, own("mib_per_s"), own_limited);
        put("", Measure::Seconds, own("seconds"), own_limited);
        put("", Measure::CpuSeconds, own("cpu_seconds"), false);
        // What a scenario measured beside the load, by name.
        for (name, value) in run.get("figures").and_then(Value::as_object).into_iter().flatten() {
            let (part, measure) = match name.as_str() {
                "cpu_seconds_per_gib" => ("", Measure::CpuPerGib),
                "mib_per_s" => ("", Measure::MibPerS),
                "cpu_seconds" => ("", Measure::CpuSeconds),
                "seconds" => ("", Measure::Seconds),
                "private_mib" => ("", Measure::PrivateMib),
                other => match other.strip_suffix("_seconds") {
                    Some(what) => (what, Measure::Seconds),
                    None => continue,
                },
            };
            put(&part.replace('_', " "), measure, value.as_f64(), false);
        }
        for (part, outcome) in &outcomes {
            let limited = limited(outcome);
            put(part, Measure::CpuPerGib, outcome["target_cpu_seconds_per_gib"].as_f64(), false);
            // In open loop the speed is what was asked for.
            if outcome["open_loop_mib_per_s"].is_null() {
                put(part, Measure::MibPerS, outcome["mib_per_s"].as_f64(), limited);
            }
            put(part, Measure::P99, outcome["latency_ms"]["p99"].as_f64(), limited);
        }
    }

    /// The target with this name, or the only one whose name begins so: `iperf3` is "iperf3
    /// (ceiling)".
    pub fn target(&self, name: &str) -> Result<String> {
        let mut names: Vec<&str> = Vec::new();
        for series in &self.series {
            if !names.contains(&series.target.as_str()) {
                names.push(&series.target);
            }
        }
        let same = |target: &str| target.eq_ignore_ascii_case(name);
        let begins = |target: &str| {
            let start = target.get(..name.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(name))
        };
        let exact = names.iter().find(|target| same(target));
        let beginning: Vec<_> = names.iter().filter(|target| begins(target)).collect();
        let found = exact.or(match beginning[..] {
            [only] => Some(only),
            _ => None,
        });
        found.map(ToString::to_string).with_context(|| {
            format!("{} has no target {name:?}; it has {}", self.path.display(), names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn saved(json: &Value) -> Result<Saved> {
        Saved::parse(Path::new("x.json"), json)
    }

    #[test]
    fn runs_of_every_form_give_series() {
        let outcome = json!({"latency_ms": {"p99": 8.0}, "mib_per_s": 90.0, "load_busy": 0.95,
            "target_cpu_seconds_per_gib": 0.5, "open_loop_mib_per_s": null});
        let mut half = outcome.clone();
        half["open_loop_mib_per_s"] = json!(45.0);
        let runs = json!([
            {"round": 1, "target": "a", "connections": 50, "cpu_seconds_per_gib": 0.5,
             "mib_per_s": 90.0, "outcome": outcome, "open_loop": half},
            {"round": 2, "target": "a", "connections": 50, "cpu_seconds_per_gib": 0.6,
             "mib_per_s": 91.0, "outcome": null, "open_loop": null},
            {"round": 1, "second": true, "seconds": 2.5, "rss_bytes": 7},
            {"round": 1, "plain_mib_per_s": 1.0, "one": outcome},
            {"round": 1, "target": "b", "point": "50 slow", "outcome": null, "figures":
                {"first_block_seconds": 0.5, "cpu_seconds": 2.0, "hashed_bytes": 7.0}},
        ]);
        let saved = saved(&json!({"schema": 1, "arguments": [], "report": {"runs": runs}}));
        let saved = saved.expect("a report");
        assert_eq!((saved.preset.as_str(), saved.content_bytes), ("seeding", 2 << 30));
        let names: Vec<String> = saved
            .series
            .iter()
            .map(|one| {
                let rounds = one.by_round.len();
                format!("{}|{}|{}|{}|{rounds}", one.target, one.point, one.part, one.measure)
            })
            .collect();
        let expected = [
            "a|connections=50||CPU-s per GiB|2",
            "a|connections=50||MiB/s|2",
            "a|connections=50|open loop|CPU-s per GiB|1",
            "a|connections=50|open loop|p99 ms|1",
            "a|connections=50||p99 ms|1",
            "seedring|second=true||seconds|1",
            "seedring||one|CPU-s per GiB|1",
            "seedring||one|MiB/s|1",
            "seedring||one|p99 ms|1",
            "b|50 slow|first block|seconds|1",
            "b|50 slow||CPU-s|1",
        ];
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort();
            names
        };
        assert_eq!(sorted(&names), sorted(&expected.map(String::from)));
        let speed = saved.series.iter().find(|one| one.measure == Measure::MibPerS);
        assert_eq!(speed.map(|speed| speed.limited), Some(1), "the load was at 95 %");
    }

    #[test]
    fn what_is_no_report_is_named() {
        let wrong = |json: Value| format!("{:#}", saved(&json).expect_err("no report"));
        assert!(wrong(json!({"runs": []})).contains("no \"schema\""));
        assert!(wrong(json!({"schema": 99})).contains("this program knows 1 to"));
        let no_size = wrong(json!({"schema": 2, "settings": {"preset": "cold"}}));
        assert!(no_size.contains("content_bytes"), "{no_size}");
    }

    #[test]
    fn targets_are_found_by_how_their_names_begin() {
        let runs: Vec<Value> = ["iperf3 (ceiling)", "seedring", "seedring on epoll"]
            .map(|target| json!({"round": 1, "target": target, "mib_per_s": 1.0}))
            .into();
        let saved = saved(&json!({"schema": 1, "report": {"runs": runs}})).expect("a report");
        assert_eq!(saved.target("iperf3").ok().as_deref(), Some("iperf3 (ceiling)"));
        assert_eq!(saved.target("seedring").ok().as_deref(), Some("seedring"));
        assert_eq!(saved.target("seedring on").ok().as_deref(), Some("seedring on epoll"));
        let error = format!("{:#}", saved.target("deluge").expect_err("none"));
        assert!(error.contains("it has iperf3 (ceiling), seedring, "), "{error}");
    }
}
