//! Owns: that the load catches what a target does wrong, and says so in its report.
//! Never: figures. Flow: a faulty target each -> the load -> its JSON.

mod support;

use std::{process::Stdio, thread, time::Duration};

use serde_json::Value;
use support::{Faulty, Scratch, count, found};

#[test]
fn a_target_without_fault_is_not_accused() {
    let scratch = Scratch::new("clean");
    let target = Faulty::start(&scratch, "none");
    for how in [
        ["--verify", "-k", "3", "--bytes", "40MiB"],
        ["--verify-sample", "4", "-k=3", "--bytes", "200MiB"],
        ["--discard", "-k", "3", "--bytes", "200MiB"],
    ] {
        let (status, outcome, complaint) = target.leech(&how);
        assert_eq!(status, 0, "{how:?}: {complaint}");
        let wrong = ["pieces_bad", "unrequested_blocks", "reopened", "reordered"];
        for name in wrong {
            assert_eq!(count(&outcome, name), 0, "{how:?}: {name}");
        }
        assert!(outcome["partial"].is_null(), "{how:?}");
        assert_eq!(count(&outcome, "schema"), 2);
        assert!(outcome["machine"]["kernel"].is_string());
    }
}

#[test]
fn one_corrupt_block_in_100_000() {
    let scratch = Scratch::new("corrupt");
    let target = Faulty::start(&scratch, "corrupt:100000");
    let (status, outcome, _) =
        target.leech(&["--verify", "--block", "1024", "-q", "128", "-k", "2", "--bytes", "230MiB"]);
    // 235,520 blocks of 1 KiB and a little more.
    assert_eq!(status, 1);
    assert_eq!(count(&outcome, "pieces_bad"), 2);
    assert!(count(&outcome, "pieces_verified") > 3500, "{outcome}");
}

#[test]
fn a_sample_of_the_pieces_finds_a_target_that_corrupts() {
    let scratch = Scratch::new("sample");
    let target = Faulty::start(&scratch, "corrupt:50");
    let (status, outcome, _) =
        target.leech(&["--verify-sample", "8", "-k", "4", "--bytes", "400MiB"]);
    assert_eq!(status, 1);
    let (good, bad) = (count(&outcome, "pieces_verified"), count(&outcome, "pieces_bad"));
    // 6,400 pieces of four blocks came; an eighth of them was hashed, 8 % of those are bad.
    assert!((400..1400).contains(&(good + bad)), "{good} + {bad}");
    assert!((20..150).contains(&bad), "{bad} of {}", good + bad);
    assert_eq!(count(&outcome, "reordered"), 0, "heads are still skipped");
}

#[test]
fn blocks_that_nobody_asked_for() {
    let scratch = Scratch::new("unasked");
    let target = Faulty::start(&scratch, "unasked:100");
    let (_, outcome, _) = target.leech(&["--all-heads", "-k", "2", "--bytes", "100MiB"]);
    assert!(count(&outcome, "unrequested_blocks") >= 60, "{outcome}");
    // Where heads are skipped the first of them breaks the order; from then on heads are read.
    let (_, outcome, _) = target.leech(&["-k", "2", "--bytes", "100MiB"]);
    assert!(count(&outcome, "reordered") >= 1, "{outcome}");
    assert!(count(&outcome, "unrequested_blocks") >= 30, "{outcome}");
}

#[test]
fn answers_that_name_another_piece() {
    let scratch = Scratch::new("wrong-piece");
    let target = Faulty::start(&scratch, "wrong-piece:100");
    // What was asked for never comes: in the end all that is outstanding is lost.
    let (status, outcome, complaint) =
        target.leech(&["--verify", "-q", "16", "--patience", "1", "--duration", "20"]);
    assert_eq!(status, 1);
    // One that names a piece which is outstanding as well is taken for it, and has a bad hash.
    assert!(count(&outcome, "unrequested_blocks") >= 8, "{outcome}");
    let partial = outcome["partial"].as_str().expect("marked as partial");
    assert!(partial.contains("sent nothing for 1 s"), "{partial}");
    assert!(complaint.contains("PARTIAL"), "{complaint}");
    assert!(count(&outcome, "payload_bytes") > 1000 * 16_384, "what came until then is kept");
}

#[test]
fn connections_that_the_target_closes() {
    let scratch = Scratch::new("close");
    let target = Faulty::start(&scratch, "close:500");
    let (status, outcome, _) = target.leech(&["-k", "4", "--bytes", "60MiB"]);
    assert_eq!(status, 0, "what was asked for came");
    assert!(count(&outcome, "reopened") >= 6, "{outcome}");
    let last = outcome["last_end"].as_str().expect("a reason");
    assert!(last.contains("closed") || last.contains("reset"), "{last}");
}

#[test]
fn open_loop_shows_the_stall_that_closed_loop_hides() {
    let scratch = Scratch::new("stall");
    let target = Faulty::start(&scratch, "stall:1s/10s");
    // Both see the same second of silence, the last of ten.
    let start = |arguments: &[&str]| {
        let mut command = target.leech_command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the load")
    };
    let closed = start(&["-k", "2", "-q", "4", "--duration", "10.5"]);
    let open = start(&["-k", "2", "--duration", "10.5", "--open-loop", "4"]);
    let outcome = |child: std::process::Child| found(&child.wait_with_output().expect("ended")).1;
    let (closed, open) = (outcome(closed), outcome(open));
    let ms = |outcome: &Value, name: &str| outcome["latency_ms"][name].as_f64().expect("a number");
    // Closed: eight blocks of tens of thousands waited.
    assert!(ms(&closed, "p99") < 100.0 && ms(&closed, "p99_9") < 100.0, "{closed}");
    // Open: a tenth of all blocks were due in that second.
    assert!(ms(&open, "p50") < 100.0, "{open}");
    assert!(ms(&open, "p99") > 700.0 && ms(&open, "p90") < 400.0, "{open}");
    // The gap itself is seen by both.
    for outcome in [&closed, &open] {
        assert!((900.0..1300.0).contains(&ms(outcome, "max")), "{outcome}");
        let stalls = &outcome["stalls"];
        let longest = stalls["longest_ms"].as_f64().expect("a number");
        assert!(count(stalls, "count") >= 1 && (850.0..1300.0).contains(&longest), "{stalls}");
    }
}

#[test]
fn a_target_that_is_killed_leaves_what_came_until_then() {
    let scratch = Scratch::new("killed");
    for watch in [true, false] {
        let mut target = Faulty::start(&scratch, "none");
        let pid = target.pid();
        let mut arguments = vec!["-k", "2", "-q", "4", "--duration", "30", "--patience", "1"];
        if watch {
            arguments.extend(["--pid", &pid]);
        }
        let mut command = target.leech_command(&arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let load = command.spawn().expect("the load");
        thread::sleep(Duration::from_millis(800));
        target.child.kill().expect("killed");
        let (status, outcome, complaint) = found(&load.wait_with_output().expect("ended"));
        assert_eq!(status, 1, "{complaint}");
        let partial = outcome["partial"].as_str().expect("marked as partial");
        let words = if watch { "ended" } else { "sent nothing for 1 s" };
        assert!(partial.contains(words) && complaint.contains(words), "{partial}: {complaint}");
        assert!(count(&outcome, "payload_bytes") > 1 << 20, "{outcome}");
        assert!(count(&outcome["latency_ms"], "blocks") > 64, "{outcome}");
        let seconds = outcome["seconds"].as_f64().expect("a number");
        assert!(seconds < 5.0, "it gave up at once: {seconds}");
    }
}

#[test]
fn agents_are_merged_from_their_histograms() {
    let scratch = Scratch::new("merge");
    let target = Faulty::start(&scratch, "none");
    let mut paths = Vec::new();
    let mut blocks = 0;
    for (name, open_loop) in [("a.json", "2"), ("b.json", "6")] {
        let (_, outcome, _) = target.leech(&["--duration", "0.6", "--open-loop", open_loop]);
        blocks += count(&outcome["latency_ms"], "blocks");
        let path = scratch.0.join(name);
        std::fs::write(&path, outcome.to_string()).expect("written");
        paths.push(path.to_str().expect("UTF-8").to_owned());
    }
    let output = support::bench(&["merge", &paths[0], &paths[1], "--json"]);
    let (status, merged, complaint) = found(&output);
    assert_eq!(status, 0, "{complaint}");
    assert_eq!(count(&merged["latency_ms"], "blocks"), blocks);
    assert_eq!(merged["open_loop_mib_per_s"], 8.0);
    assert_eq!(merged["agents"].as_array().map(Vec::len), Some(2));
    let text = support::bench(&["merge", &paths[0], &paths[1]]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("a.json") && text.contains("latency a block"), "{text}");
}
