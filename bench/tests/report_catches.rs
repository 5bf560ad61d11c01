//! Owns: that a target which does something wrong stands so in the report of a scenario, in all its
//! forms. As root, as comparisons are: without it these tests say so and stop.
//! Never: figures. Flow: a faulty program in the engine's place -> `seedring-bench run` -> JSON,
//! Markdown, exit status.

mod support;

use std::{fs, process::Command};

use serde_json::Value;
use support::{BENCH, Scratch, is_root, said, schema, stand_in};

/// 512 blocks of content: what the download before the window asks for.
const SCENARIO: &str = "title: Caught\ncompare: seeding\ntargets: [seedring]\nsize: 8MiB\n\
                        connections: [2]\nrepeats: 1\nseconds: 3\nwarm_up_seconds: 0\n\
                        pattern: rarest-first\nopen_loop: false\n";

/// What a scenario says of a target with this fault.
struct Caught {
    status: Option<i32>,
    report: Value,
    cautions: Value,
    /// Markdown and page.
    texts: [String; 2],
}

fn run(scratch: &Scratch, fault: &str) -> Caught {
    let engine = stand_in(scratch, &format!("faulty {fault}"), "true");
    let scenario = scratch.0.join("caught.yaml");
    fs::write(&scenario, SCENARIO).expect("written");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let output = Command::new(BENCH)
        .arg("run")
        .arg(&scenario)
        .args(["--load-core", if cores > 1 { "1" } else { "0" }, "--seedring"])
        .arg(&engine)
        .arg("--work")
        .arg(&scratch.0)
        .output()
        .expect("the scenario");
    let read = |ending: &str| {
        let text = fs::read_to_string(scratch.0.join(format!("caught.{ending}")));
        text.unwrap_or_else(|error| panic!("{ending}: {error}; {}", said(&output)))
    };
    let json: Value = serde_json::from_str(&read("json")).expect("JSON");
    assert_eq!(schema::check(&json), [""; 0]);
    Caught {
        status: output.status.code(),
        report: json["report"].clone(),
        cautions: json["cautions"].clone(),
        texts: [read("md"), read("html")],
    }
}

fn lines(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().filter_map(Value::as_str).collect()
}

impl Caught {
    /// It has no figure: this failed, and what was seen until then is kept.
    fn failed(&self, words: &[&str]) {
        assert_eq!(self.status, Some(1));
        let failed = lines(&self.report["failed"]);
        let [line] = &failed[..] else { panic!("{failed:?}") };
        assert!(line.starts_with("seedring, round 1: "), "{line}");
        assert!(words.iter().all(|word| line.contains(word)), "{words:?}: {line}");
        assert!(lines(&self.cautions).is_empty() && self.runs().is_empty());
        let outcome = &self.report["interrupted"][0]["outcome"];
        assert!(outcome["pieces_bad"].as_u64() > Some(0), "{outcome}");
        for text in &self.texts {
            assert!(text.contains("PARTIAL: 1 runs failed"), "{text}");
            assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
        }
    }

    /// It has figures, and with them what is to be known.
    fn warns(&self, words: &str) -> &Value {
        let cautions = lines(&self.cautions);
        assert!(cautions.iter().any(|line| line.contains(words)), "{words}: {cautions:?}");
        for text in &self.texts {
            assert!(text.contains("To be known") && text.contains(words), "{text}");
        }
        &self.runs()[0]["outcome"]
    }

    fn runs(&self) -> &[Value] {
        self.report["runs"].as_array().expect("runs")
    }
}

#[test]
fn a_block_that_is_corrupt_before_the_window() {
    if !is_root("a_block_that_is_corrupt_before_the_window") {
        return;
    }
    let caught = run(&Scratch::new("caught-heat"), "corrupt:300");
    caught.failed(&["one whole download before it is measured", "1 of 8 pieces"]);
}

#[test]
fn blocks_that_are_corrupt_now_and_then() {
    if !is_root("blocks_that_are_corrupt_now_and_then") {
        return;
    }
    // None in the download of before; of the window a piece in eight is hashed.
    let caught = run(&Scratch::new("caught-window"), "corrupt:600");
    caught.failed(&["--verify-sample 50", "did not have their hash"]);
}

#[test]
fn a_second_of_silence() {
    if !is_root("a_second_of_silence") {
        return;
    }
    let caught = run(&Scratch::new("caught-stall"), "stall:1s/2s");
    let outcome = caught.warns("nothing came at all");
    let longest = outcome["stalls"]["longest_ms"].as_f64().expect("a number");
    assert!((800.0..2000.0).contains(&longest), "{longest} ms");
    assert_eq!((caught.status, caught.runs().len()), (Some(0), 1));
}

#[test]
fn answers_of_another_piece() {
    if !is_root("answers_of_another_piece") {
        return;
    }
    let caught = run(&Scratch::new("caught-piece"), "wrong-piece:900");
    let outcome = caught.warns("blocks answered requests that nobody made");
    assert!(outcome["unrequested_blocks"].as_u64() > Some(0), "{outcome}");
}

#[test]
fn a_target_that_does_nothing_wrong_is_not_accused() {
    if !is_root("a_target_that_does_nothing_wrong_is_not_accused") {
        return;
    }
    let caught = run(&Scratch::new("caught-none"), "none");
    assert_eq!(caught.status, Some(0));
    assert!(lines(&caught.report["failed"]).is_empty());
    let outcome = &caught.runs()[0]["outcome"];
    assert!(outcome["pieces_verified"].as_u64() > Some(0), "some were looked at: {outcome}");
    for wrong in ["pieces_bad", "unrequested_blocks", "reopened"] {
        assert_eq!(outcome[wrong], 0, "{wrong}: {outcome}");
    }
}
