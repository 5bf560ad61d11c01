//! Owns: that bad input and failing targets are named, with a remedy, and that what was measured is
//! kept and marked. As root, as comparisons are: without it those tests say so and stop.
//! Never: figures. Flow: the binary -> exit status, complaint, report.

mod support;

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use support::{BENCH, Scratch, bench, is_root, said, stand_in};

#[test]
fn mistakes_in_a_scenario_have_line_column_and_remedy() {
    let scratch = Scratch::new("scenario");
    let path = scratch.0.join("x.yaml");
    for (text, words) in [
        ("title: t\ncompare: seeding\nconections: [1]\n", ["line 3", "column 1", "connections"]),
        ("title: t\ncompare: seedin\n", ["line 2", "column 10", "seeding"]),
        ("title: t\ncompare: many\nseeders: [4]\n", ["line 3", "column 1", "compare: download"]),
        ("title: t\ncompare: seeding\nrepeats: 0\n", ["line 3", "column 1", "begin at 1"]),
        ("title: t\ncompare: seeding\nsize: 1KiB\n", ["line 3", "column 1", "at least 1MiB"]),
        ("title: t\ncompare: many\nsize: 1GiB\n", ["line 3", "column 1", "compare: seeding"]),
        ("title: t\ncompare: cold\ntargets: [rqbit]\n", ["line 3", "column 1", "takes seedring"]),
        ("title: t\ncompare: mixed\nblock: 16KiB\n", ["line 3", "column 1", "compare: mixed"]),
    ] {
        fs::write(&path, text).expect("written");
        let output = bench(&["run", path.to_str().expect("UTF-8")]);
        let complaint = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}: {complaint}");
        assert!(complaint.contains("x.yaml"), "{complaint}");
        for word in words {
            assert!(complaint.contains(word), "{text:?} should say {word:?}: {complaint}");
        }
    }
}

#[test]
fn a_port_that_is_taken() {
    let scratch = Scratch::new("port");
    let (content, torrent) = scratch.content(1 << 20, 64 << 10);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let output = Command::new(BENCH)
        .args(["faulty", "--fault", "none", "--listen", &address, "--torrent"])
        .arg(torrent)
        .arg("--content")
        .arg(content)
        .output()
        .expect("it runs");
    let complaint = said(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint.contains(&address) && complaint.contains("is the port taken"), "{complaint}");
}

/// The bench, its files on a file system of so many MiB in a mount namespace, gone with it.
fn in_mib(mib: u64, scratch: &Scratch, arguments: &str) -> String {
    let folder = scratch.0.join("small");
    fs::create_dir_all(&folder).expect("a folder");
    let script = format!("mount -t tmpfs -o size={mib}m none \"$1\" && exec \"$2\" {arguments}");
    let output = Command::new("unshare")
        .args(["--mount", "--", "sh", "-c", &script, "sh"])
        .arg(&folder)
        .arg(BENCH)
        .output()
        .expect("unshare");
    let complaint = said(&output);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    complaint
}

#[test]
fn no_space_for_the_content() {
    if !is_root("no_space_for_the_content") {
        return;
    }
    let scratch = Scratch::new("space");
    let alone = r#"payload "$1/x" --size 8MiB"#;
    let compared = r#"compare --targets sha1sum --preset recheck --size 8MiB --work "$1""#;
    for arguments in [alone, compared] {
        let complaint = in_mib(2, &scratch, arguments);
        for words in ["no space for the content", "needs 8 MiB", "has 2 MiB", "--size", "--work"] {
            assert!(complaint.contains(words), "{words}: {complaint}");
        }
    }
}

/// The content fits, a download of it does not: said before a seeder is started.
#[test]
fn no_space_for_a_downloads_copy() {
    if !is_root("no_space_for_a_downloads_copy") {
        return;
    }
    let scratch = Scratch::new("copy");
    let engine = stand_in(&scratch, "true", "true");
    let compared = "compare --targets seedring --preset download --size 4MiB --work \"$1\"";
    let arguments = format!("{compared} --seedring '{}'", engine.display());
    let complaint = in_mib(6, &scratch, &arguments);
    for words in ["no space for the content", "needs 4 MiB", "has 1 MiB", "payload.bin"] {
        assert!(complaint.contains(words), "{words}: {complaint}");
    }
}

/// A seeding comparison of the stand-ins, with its JSON, Markdown and HTML.
fn compare(scratch: &Scratch, engine: &Path, more: &[&str]) -> (Output, Value, [String; 2]) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let output = Command::new(BENCH)
        .args(["compare", "--preset", "seeding", "--targets", "seedring,seedring-epoll"])
        .args(["--rounds", "1", "--warm-up", "0", "--size", "8MiB", "--connections", "2"])
        .args(["--no-open-loop", "--load-core", if cores > 1 { "1" } else { "0" }])
        .arg("--seedring")
        .arg(engine)
        .arg("--work")
        .arg(&scratch.0)
        .args(more)
        .output()
        .expect("the comparison");
    let read = |ending: &str| {
        let text = fs::read_to_string(scratch.0.join(format!("seeding.{ending}")));
        text.unwrap_or_else(|error| panic!("{ending}: {error}; {}", said(&output)))
    };
    let json = serde_json::from_str(&read("json")).expect("JSON");
    let texts = [read("md"), read("html")];
    (output, json, texts)
}

#[test]
fn a_target_that_crashes_leaves_the_others_figures_and_its_own_so_far() {
    if !is_root("a_target_that_crashes") {
        return;
    }
    let scratch = Scratch::new("crash");
    // Well after the heating download of 512 blocks, well before the window's end.
    let engine = stand_in(&scratch, "faulty none", "faulty crash:8000");
    let (output, json, texts) = compare(&scratch, &engine, &["--seconds", "2.5"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let report = &json["report"];
    let runs = report["runs"].as_array().expect("runs");
    assert_eq!((runs.len(), runs[0]["target"].as_str()), (1, Some("seedring")));
    let failed = report["failed"][0].as_str().expect("what failed");
    assert!(failed.contains("seedring on epoll, round 1"), "{failed}");
    assert!(failed.contains("the target (process") && failed.contains("ended"), "{failed}");
    let until_then = &report["interrupted"][0]["outcome"];
    assert!(until_then["payload_bytes"].as_u64() > Some(1 << 20), "{until_then}");
    for text in &texts {
        assert!(text.contains("PARTIAL: 1 runs failed"), "{text}");
        assert!(text.contains("seedring on epoll, round 1: "), "{text}");
    }
    // What a report says of its circumstances.
    assert_eq!(json["schema"], 2);
    assert_eq!(json["content_bytes"], 8 << 20);
    assert_eq!(json["settings"]["preset"], "seeding");
    let around = ["kernel", "cpu", "mitigations", "governor", "network", "nic", "file_system"];
    for key in around.iter().chain(&["congestion", "git_revision", "engine_sha1"]) {
        assert!(json["environment"][*key].is_string(), "{key}: {}", json["environment"]);
    }
    judged_with_itself(&scratch);
}

/// Two positional arguments are reports to be judged; one round is too few for a verdict.
fn judged_with_itself(scratch: &Scratch) {
    let report = scratch.0.join("seeding.json");
    let report = report.to_str().expect("UTF-8");
    let output = bench(&["compare", report, report]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(text.contains("too few rounds") && text.contains("NEW is partial"), "{text}");
    let other = scratch.0.join("other.json");
    let changed = fs::read_to_string(report).expect("the report");
    let changed = changed.replace("\"content_bytes\": 8388608", "\"content_bytes\": 1");
    fs::write(&other, changed).expect("written");
    let output = bench(&["compare", report, other.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("content's size"), "{}", said(&output));
    let output = bench(&["compare", report, "missing.json"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let both = bench(&["compare", report, report, "--preset", "cold"]);
    assert!(said(&both).contains("cannot be used with"), "{}", said(&both));
}

#[test]
fn an_engine_that_may_not_use_io_uring_is_reported_with_its_own_words() {
    if !is_root("an_engine_that_may_not_use_io_uring") {
        return;
    }
    let scratch = Scratch::new("no-uring");
    let engine = Path::new(BENCH).with_file_name("seedring");
    assert!(engine.exists(), "{}: cargo build --profile ci", engine.display());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let filter = root.join("tests/src/live/without_io_uring.py");
    let forbidden = format!("exec python3 '{}' '{}' \"$@\"", filter.display(), engine.display());
    let engine = stand_in(&scratch, &forbidden, "faulty none");
    let (output, json, texts) = compare(&scratch, &engine, &["--seconds", "0.3"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let failed = json["report"]["failed"][0].as_str().expect("what failed");
    assert!(failed.contains("a seccomp filter forbids io_uring to this process"), "{failed}");
    assert!(texts[1].contains("a seccomp filter forbids io_uring"), "{}", texts[1]);
    assert_eq!(json["report"]["runs"].as_array().map(Vec::len), Some(1), "the other one ran");
}
