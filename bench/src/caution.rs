//! Owns: what a reader of a report must know about its runs, in words: where the load was the
//! limit, what it caught a target doing.
//! Never: leaves a run out for it. Flow: runs as JSON -> lines, in every form of the report.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::leech::BUSY_MAX;

/// Endings of whole numbers that are measures and not points.
const MEASURED: [&str; 4] = ["_bytes", "_ms", "_seconds", "_count"];

/// The load's outcomes in a run: a name each, empty for the run's own.
pub fn outcomes(run: &Map<String, Value>) -> Vec<(String, &Value)> {
    run.iter()
        .filter(|(_, value)| value["latency_ms"].is_object())
        .map(|(name, value)| match name.as_str() {
            "outcome" => (String::new(), value),
            other => (other.replace('_', " "), value),
        })
        .collect()
}

/// At which point a run was taken: what stands in it and is no measure, as `key=value`s.
pub fn point(run: &Map<String, Value>) -> String {
    let mut words = Vec::new();
    for (key, value) in run {
        let is_measure = MEASURED.iter().any(|ending| key.ends_with(ending));
        let text = match value {
            _ if key == "round" || key == "target" || is_measure => continue,
            Value::String(text) => text.clone(),
            Value::Bool(yes) => yes.to_string(),
            Value::Number(number) if !number.is_f64() => number.to_string(),
            _ => continue,
        };
        words.push(if key == "point" { text } else { format!("{key}={text}") });
    }
    words.join(" ")
}

/// The load, and not the target, was the limit of this outcome. Before the load said so itself, how
/// busy it was tells.
pub fn limited(outcome: &Value) -> bool {
    let threads = outcome["load_threads"].as_f64().unwrap_or(1.0).max(1.0);
    let busy = outcome["load_busy"].as_f64().unwrap_or(0.0);
    outcome["load_was_limit"].is_string() || busy >= BUSY_MAX * threads
}

/// What was seen at one point, all rounds together.
#[derive(Default)]
struct Seen {
    rounds: u64,
    limited: u64,
    busy_most: f64,
    seeders_limited: u64,
    pieces_bad: u64,
    unrequested: u64,
    reopened: u64,
    last_end: String,
    overdue: u64,
    stalls: u64,
    stall_longest_ms: f64,
}

/// A line for each thing to know, by target and point.
pub fn of_runs(runs: &[Value]) -> Vec<String> {
    let mut all: BTreeMap<String, Seen> = BTreeMap::new();
    for run in runs.iter().filter_map(Value::as_object) {
        let target = run.get("target").and_then(Value::as_str).unwrap_or("seedring");
        let point = point(run);
        let named = |part: &str| {
            let words = [target, &point, part];
            let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
            words.join(", ")
        };
        let busy = run.get("seeders_busy").and_then(Value::as_f64);
        if let Some(busy) = busy {
            let seen = all.entry(named("")).or_default();
            seen.rounds += 1;
            seen.seeders_limited += u64::from(busy >= BUSY_MAX);
        }
        for (part, outcome) in outcomes(run) {
            all.entry(named(&part)).or_default().add(outcome);
        }
    }
    all.iter().flat_map(|(name, seen)| seen.lines(name)).collect()
}

impl Seen {
    fn add(&mut self, outcome: &Value) {
        let count = |name: &str| outcome[name].as_u64().unwrap_or(0);
        let stalls = &outcome["stalls"];
        self.rounds += 1;
        self.limited += u64::from(limited(outcome));
        self.busy_most = self.busy_most.max(outcome["load_busy"].as_f64().unwrap_or(0.0));
        self.pieces_bad += count("pieces_bad");
        self.unrequested += count("unrequested_blocks");
        self.reopened += count("reopened");
        if let Some(reason) = outcome["last_end"].as_str() {
            reason.clone_into(&mut self.last_end);
        }
        self.overdue += count("overdue_dropped");
        self.stalls += stalls["count"].as_u64().unwrap_or(0);
        let longest = stalls["longest_ms"].as_f64().unwrap_or(0.0);
        self.stall_longest_ms = self.stall_longest_ms.max(longest);
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let rounds = self.rounds;
        let mut lines = Vec::new();
        let mut line = |says: bool, words: String| {
            if says {
                lines.push(format!("{name}: {words}"));
            }
        };
        line(
            self.limited > 0,
            format!(
                "the load was the limit in {} of {rounds} windows (busy up to {:.0} %): the \
                 target may be faster than this",
                self.limited,
                100.0 * self.busy_most
            ),
        );
        line(
            self.seeders_limited > 0,
            format!("the seeders were the limit in {} of {rounds} runs", self.seeders_limited),
        );
        line(self.pieces_bad > 0, format!("{} pieces did not have their hash", self.pieces_bad));
        line(
            self.unrequested > 0,
            format!("{} blocks answered requests that nobody made", self.unrequested),
        );
        line(
            self.reopened > 0,
            format!("{} connections were lost: {}", self.reopened, self.last_end),
        );
        line(
            self.overdue > 0,
            format!("{} blocks were never asked for, so late was the target", self.overdue),
        );
        line(
            self.stalls > 0,
            format!(
                "nothing came at all {} times, for {:.0} ms at the longest",
                self.stalls, self.stall_longest_ms
            ),
        );
        lines
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_happened_is_said() {
        let quiet = json!({"latency_ms": {}, "load_busy": 0.4, "reopened": 0});
        let loud = json!({"latency_ms": {}, "load_busy": 0.97, "pieces_bad": 2, "reopened": 3,
            "unrequested_blocks": 4, "last_end": "the target closed the connection",
            "overdue_dropped": 0, "stalls": {"count": 1, "longest_ms": 1003.2}});
        let run = |round: u32, outcome: &Value| {
            json!({"round": round, "target": "a", "connections": 50, "outcome": outcome,
                "open_loop": quiet})
        };
        assert_eq!(of_runs(&[run(1, &quiet), run(2, &quiet)]), [""; 0]);
        let lines = of_runs(&[run(1, &quiet), run(2, &loud)]);
        assert_eq!(
            lines,
            [
                "a, connections=50: the load was the limit in 1 of 2 windows (busy up to 97 %): \
                 the target may be faster than this",
                "a, connections=50: 2 pieces did not have their hash",
                "a, connections=50: 4 blocks answered requests that nobody made",
                "a, connections=50: 3 connections were lost: the target closed the connection",
                "a, connections=50: nothing came at all 1 times, for 1003 ms at the longest",
            ]
        );
        let download = json!({"round": 1, "target": "b", "peers": 4, "seeders_busy": 0.99});
        assert_eq!(of_runs(&[download]), ["b, peers=4: the seeders were the limit in 1 of 1 runs"]);
    }

    #[test]
    fn four_threads_may_be_busier_than_one() {
        let outcome = |busy: f64| json!({"load_threads": 4, "load_busy": busy});
        assert!(!limited(&outcome(2.0)) && limited(&outcome(3.7)));
        assert!(limited(&json!({"load_busy": 0.1, "load_was_limit": "waited for a core"})));
    }
}
