//! Owns: what `seedring-bench compare OLD NEW` says by its exit status, as scripts see it.
//! Never: figures of a machine: the reports are made here. Flow: two JSON files -> the binary.

mod support;

use std::{fs, path::Path};

use serde_json::{Value, json};
use support::{Scratch, bench, said};

/// A report with a run of each round, CPU-s per GiB around 0.2 and 1,000 MiB/s.
fn report() -> Value {
    let run = |round: u32| {
        let noise = 1.0 + f64::from(round % 3) / 200.0;
        json!({"round": round, "target": "seedring", "connections": 50,
            "cpu_seconds_per_gib": 0.2 * noise, "mib_per_s": 1000.0 * noise,
            "outcome": null, "open_loop": null})
    };
    json!({"schema": 2, "date": "2026-01-01", "environment": {"kernel": "6.1", "cpu": "one"},
        "settings": {"preset": "seeding"}, "content_bytes": 1 << 30, "arguments": [],
        "cautions": [], "report": {"title": "T", "versions": [], "failed": [],
        "cut_short": false, "runs": (1..=7).map(run).collect::<Vec<_>>()}})
}

/// The same with one figure of each run times so much.
fn times(report: &Value, figure: &str, factor: f64) -> Value {
    let mut report = report.clone();
    for run in report["report"]["runs"].as_array_mut().expect("runs") {
        run[figure] = (run[figure].as_f64().expect("a number") * factor).into();
    }
    report
}

fn judged(scratch: &Scratch, new: &Value, more: &[&str]) -> (Option<i32>, String) {
    let write = |name: &str, report: &Value| {
        let path = scratch.0.join(name);
        fs::write(&path, report.to_string()).expect("written");
        path
    };
    let (old, new) = (write("old.json", &report()), write("new.json", new));
    let word = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (old, new) = (word(&old), word(&new));
    let mut arguments = vec!["compare", &*old, &*new];
    arguments.extend(more);
    let output = bench(&arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text + &said(&output))
}

#[test]
fn one_is_the_status_of_something_that_is_worse() {
    let scratch = Scratch::new("judged");
    let old = report();
    let (status, text) = judged(&scratch, &old, &[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("worse 0") && !text.contains("**worse**"), "{text}");
    for (figure, factor, name) in
        [("cpu_seconds_per_gib", 1.2, "CPU-s per GiB"), ("mib_per_s", 0.8, "MiB/s")]
    {
        let (status, text) = judged(&scratch, &times(&old, figure, factor), &[]);
        assert_eq!(status, Some(1), "{figure}: {text}");
        let line = text.lines().find(|line| line.contains("**worse**")).expect("a verdict");
        assert!(line.contains(name) && text.contains("worse 1"), "{text}");
        // The other way round it is better, and within the tolerance it is neither.
        let (status, text) = judged(&scratch, &times(&old, figure, 1.0 / factor), &[]);
        assert_eq!(status, Some(0), "{figure}: {text}");
        assert!(text.contains("Better 1"), "{text}");
        let wide = judged(&scratch, &times(&old, figure, factor), &["--tolerance", "40"]);
        assert_eq!(wide.0, Some(0), "{}", wide.1);
    }
    let (status, text) = judged(&scratch, &times(&old, "mib_per_s", 0.8), &["--json"]);
    let json: Value = serde_json::from_str(&text).expect("JSON");
    let lines = json["lines"].as_array().expect("lines");
    assert!(lines.iter().any(|line| line["verdict"] == "worse"), "{text}");
    assert_eq!(status, Some(1));
}

#[test]
fn two_is_the_status_of_reports_that_do_not_compare() {
    let scratch = Scratch::new("judged-not");
    let mut new = report();
    new["content_bytes"] = 1.into();
    let (status, text) = judged(&scratch, &new, &[]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("the content's size in bytes differs"), "{text}");
}
