//! Owns: tests of verdicts, from made-up reports to exit-worthy lines. Never: the statistics
//! (bootstrap tests its own). Flow: JSON -> `Saved` -> `judge_saved`.

use serde_json::json;

use super::*;

fn options(arguments: &[&str]) -> Options {
    #[derive(clap::Parser)]
    struct Alone {
        #[arg(long)]
        preset: Option<String>,
        #[arg(long)]
        rounds: Option<u32>,
        #[arg(long)]
        seconds: Option<u32>,
        #[command(flatten)]
        options: Options,
    }
    let words = ["compare", "old.json", "new.json"].iter().chain(arguments);
    <Alone as clap::Parser>::parse_from(words).options
}

/// A seeding report: target, CPU and speed of each round.
fn report(size: u64, targets: &[(&str, &[f64])]) -> Saved {
    let mut runs = Vec::new();
    for (target, costs) in targets {
        for (round, cost) in costs.iter().enumerate() {
            runs.push(json!({
                "round": round + 1, "target": target, "connections": 50,
                "cpu_seconds_per_gib": cost, "mib_per_s": 1000.0 / cost, "outcome": null,
            }));
        }
    }
    let json = json!({
        "schema": 2, "content_bytes": size, "settings": {"preset": "seeding", "seconds": 3.0},
        "environment": {"kernel": "6.1"}, "report": {"runs": runs, "versions": [], "failed": []},
    });
    let folder = std::env::temp_dir().join(format!("judge-{}-{size}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join(format!("{}.json", runs.len() * 1000 + targets.len()));
    fs::write(&path, json.to_string()).expect("written");
    let saved = Saved::read(&path).expect("a report");
    fs::remove_file(path).ok();
    saved
}

const BASE: [f64; 6] = [1.0, 1.01, 0.99, 1.005, 0.995, 1.0];

fn scaled(factor: f64) -> Vec<f64> {
    BASE.iter().map(|value| value * factor).collect()
}

fn verdicts(judgement: &Judgement) -> Vec<Verdict> {
    judgement.lines.iter().map(|line| line.verdict).collect()
}

fn judged(arguments: &[&str], old: &Saved, new: &Saved) -> Judgement {
    judge_saved(&options(arguments), old, new, false).expect("comparable")
}

#[test]
fn better_same_and_worse() {
    let old = report(1, &[("a", &BASE)]);
    for (factor, expected) in
        [(0.8, Verdict::Better), (1.0, Verdict::Same), (1.01, Verdict::Same), (1.3, Verdict::Worse)]
    {
        let found = judged(&[], &old, &report(1, &[("a", &scaled(factor))]));
        // CPU and speed: the first falls where the second rises.
        assert_eq!(verdicts(&found), [expected; 2], "{factor}: {found:?}");
    }
    let tolerant = judged(&["--tolerance", "50"], &old, &report(1, &[("a", &scaled(1.3))]));
    assert_eq!(verdicts(&tolerant), [Verdict::Same; 2]);
}

#[test]
fn noise_and_few_rounds_give_no_verdict() {
    let noisy = [0.7, 1.4, 1.0, 0.8, 1.3, 1.1];
    let old = report(1, &[("a", &noisy)]);
    let found = judged(&[], &old, &report(1, &[("a", &scaled(1.05))]));
    assert_eq!(verdicts(&found), [Verdict::Undecided; 2]);
    assert!(found.lines[0].why.contains("noise is larger"), "{found:?}");
    let few = report(1, &[("a", &BASE[..4])]);
    let found = judged(&[], &few, &report(1, &[("a", &scaled(9.0))]));
    assert_eq!(verdicts(&found), [Verdict::Undecided; 2]);
    assert!(found.lines[0].why.contains("too few rounds: 4 and 6"), "{found:?}");
}

#[test]
fn a_slower_machine_cancels_by_the_reference() {
    let old = report(1, &[("iperf3 (ceiling)", &BASE), ("a", &scaled(2.0))]);
    let slower = report(1, &[("iperf3 (ceiling)", &scaled(1.5)), ("a", &scaled(3.0))]);
    assert_eq!(verdicts(&judged(&[], &old, &slower)), [Verdict::Worse; 4]);
    let found = judged(&["--reference", "iperf3"], &old, &slower);
    assert_eq!(verdicts(&found), [Verdict::Same; 2], "{found:?}");
    assert!((found.lines[0].old - 2.0).abs() < 1e-9 && (found.lines[0].new - 2.0).abs() < 1e-9);
}

#[test]
fn two_targets_of_one_run_are_compared_round_by_round() {
    // Each round is another machine, as it were; in each the second costs 20 % more.
    let rounds = [1.0, 2.2, 1.4, 3.0, 1.8];
    let more: Vec<f64> = rounds.iter().map(|cost| cost * 1.2).collect();
    let both = report(1, &[("a", &rounds), ("b", &more)]);
    let options = options(&["--between", "a,b"]);
    let paired = judge_saved(&options, &both, &both, true).expect("comparable");
    assert_eq!(verdicts(&paired), [Verdict::Worse; 2], "{paired:?}");
    let apart = judge_saved(&options, &both, &both, false).expect("comparable");
    assert_eq!(verdicts(&apart), [Verdict::Undecided; 2], "{apart:?}");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let old = report(1, &[("a", &BASE)]);
    let refused = |arguments: &[&str], new: &Saved| {
        let error = judge_saved(&options(arguments), &old, new, false).expect_err("not comparable");
        format!("{error:#}")
    };
    let size = refused(&[], &report(2, &[("a", &BASE)]));
    assert!(size.contains("size in bytes differs: 1 in OLD, 2 in NEW"), "{size}");
    let target = refused(&[], &report(1, &[("b", &BASE)]));
    assert!(target.contains("no target"), "{target}");
    let mut schema = report(1, &[("a", &BASE)]);
    schema.schema = 1;
    assert!(refused(&[], &schema).contains("schema version differs: 2 in OLD, 1 in NEW"));
    let mut other = report(1, &[("a", &BASE)]);
    other.preset = "cold".into();
    assert!(refused(&[], &other).contains("what was measured differs"));
    let reference = refused(&["--reference", "iperf3"], &old);
    assert!(reference.contains("no target \"iperf3\""), "{reference}");
}

#[test]
fn a_load_that_was_the_limit_and_other_circumstances_are_named() {
    let old = report(1, &[("a", &BASE)]);
    let mut new = report(1, &[("a", &scaled(1.5))]);
    for series in &mut new.series {
        series.limited = if series.measure.more_is_better() { 6 } else { 0 };
    }
    new.partial = true;
    new.environment.insert("kernel".into(), json!("6.6"));
    new.settings.insert("seconds".into(), json!(8.0));
    let found = judged(&[], &old, &new);
    assert_eq!(verdicts(&found), [Verdict::Worse, Verdict::Undecided]);
    assert!(found.lines[1].why.contains("the load was the limit in NEW"));
    let text = found.text();
    for words in ["NEW is partial", "kernel: \"6.1\" -> \"6.6\"", "seconds: 3.0 -> 8.0"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(text.contains("Better 0, same 0, worse 1, no verdict 1."), "{text}");
}
