//! Owns: that a load by agents is the bare load in several processes: what is counted, what becomes
//! of an agent, a target or a comparison that goes, who is refused.
//! Never: figures. Flow: controller, agents and `run --in-place` as processes on loopback, with a
//! stand-in for the engine -> report, exit status, complaints.

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{BENCH, Scratch, bench, said};

const TOKEN: &str = "0123456789abcdef";
const BLOCK_BYTES: u64 = 16 << 10;

/// Killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(BENCH);
    command.args(arguments).env("SEEDRING_BENCH_TOKEN", TOKEN);
    command
}

/// A controller that waits for so many agents, and its address.
fn controller(more: &[&str]) -> (Process, String) {
    let mut child = command(&["controller", "--listen", "127.0.0.1:0"])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the controller");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("its address");
    let address = line.trim().rsplit(' ').next().expect("listening on ADDRESS").to_owned();
    (Process(child), address)
}

fn agent(controller: &str, name: &str, node: &str) -> Process {
    let child = command(&["agent", controller, "--name", name, "--node", node])
        .args(["--patience", "10"])
        .stderr(Stdio::null())
        .spawn()
        .expect("an agent");
    Process(child)
}

/// What a watcher prints, line by line.
fn watch(controller: &str, scratch: &Scratch) -> (Process, BufReader<ChildStdout>) {
    let mut child = command(&["watch", controller, "--out"])
        .arg(scratch.0.join("watched"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a watcher");
    let stdout = child.stdout.take().expect("piped");
    (Process(child), BufReader::new(stdout))
}

fn wait_for(lines: &mut BufReader<ChildStdout>, what: &str) -> String {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        let count = lines.read_line(&mut line).expect("lines");
        assert!(count > 0, "no line with {what:?}: {seen}");
        seen.push_str(&line);
        if line.contains(what) {
            return line;
        }
    }
}

/// A program that passes for the engine: it seeds with this fault, where its configuration says.
fn stand_in(scratch: &Scratch, fault: &str) -> PathBuf {
    let path = scratch.0.join("engine");
    let script = format!(
        "#!/bin/sh\nhot='{}'\n[ \"$1\" = --version ] && echo 'stand-in 1' && exit\n\
         at=$(sed -n 's/^listen: \\[\"\\(.*\\)\"\\]$/\\1/p' \"$2\")\n\
         exec '{BENCH}' faulty --torrent $hot/payload.bin.torrent --content $hot/payload.bin \
         --listen $at --fault {fault}\n",
        scratch.0.join("work/hot").display()
    );
    fs::write(&path, script).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

fn scenario(scratch: &Scratch, more: &str) -> PathBuf {
    let path = scratch.0.join("small.yaml");
    let text = format!(
        "title: Small\ncompare: seeding\nsize: 8MiB\nwarm_up_seconds: 0.2\nopen_loop: false\n{more}"
    );
    fs::write(&path, text).expect("written");
    path
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").to_string()
}

fn run(scratch: &Scratch, controller: &str, scenario: &PathBuf, fault: &str) -> Command {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut run = command(&["run"]);
    run.arg(scenario)
        .args(["--controller", controller, "--in-place", "--address", &free_port()])
        .args(["--server-core", if cores > 1 { "1" } else { "0" }, "--seedring"])
        .arg(stand_in(scratch, fault))
        .arg("--work")
        .arg(scratch.0.join("work"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    run
}

fn report(scratch: &Scratch, output: &Output) -> Value {
    let path = scratch.0.join("work/small.json");
    let text = fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| panic!("{error}: {}", said(output)));
    serde_json::from_str(&text).expect("JSON")
}

/// Blocks of a histogram's text.
fn blocks_of(latency: &Value) -> u64 {
    let text = latency["histogram"].as_str().expect("a histogram");
    let count = |bucket: &str| bucket.split_once(':').and_then(|(_, count)| count.parse().ok());
    text.split(' ').map(|bucket| count(bucket).unwrap_or(0_u64)).sum()
}

fn whole(outcome: &Value, field: &str) -> u64 {
    outcome[field].as_u64().unwrap_or_else(|| panic!("no {field} in {outcome}"))
}

/// What came in whole is what has a latency, but for what was under way at both ends.
fn assert_accounts(outcome: &Value, connections: u64) {
    let (bytes, blocks) = (whole(outcome, "payload_bytes"), blocks_of(&outcome["latency_ms"]));
    assert!(bytes > 1 << 20, "{bytes} bytes");
    assert_eq!(bytes % BLOCK_BYTES, 0, "whole blocks");
    let apart = (bytes / BLOCK_BYTES).abs_diff(blocks);
    assert!(apart <= 4 * 32 * connections, "{bytes} bytes are not {blocks} blocks");
    let speed = outcome["mib_per_s"].as_f64().expect("a speed");
    let seconds = outcome["seconds"].as_f64().expect("a window");
    let of_bytes = bytes as f64 / f64::from(1 << 20) / seconds;
    assert!((speed / of_bytes - 1.0).abs() < 0.02, "{speed} is not {of_bytes} MiB/s");
}

#[test]
fn agents_count_what_the_bare_load_counts() {
    let scratch = Scratch::new("agents-count");
    let (_controller, at) = controller(&["--agents", "2"]);
    let _agents = [agent(&at, "a", "left"), agent(&at, "b", "right")];
    let (watcher, mut lines) = watch(&at, &scratch);
    let more = "targets: [seedring]\nconnections: [5]\nrepeats: 1\nseconds: 1.3\n";
    let scenario = scenario(&scratch, more);
    let output = run(&scratch, &at, &scenario, "none").output().expect("the comparison");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let json = report(&scratch, &output);
    let outcome = &json["report"]["runs"][0]["outcome"];
    assert_accounts(outcome, 5);
    let by_agent = outcome["by_agent"].as_array().expect("by agent");
    let names: Vec<&str> = by_agent.iter().filter_map(|one| one["agent"].as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let connections: Vec<u64> =
        by_agent.iter().map(|one| whole(&one["outcome"], "connections")).collect();
    assert_eq!((connections, whole(outcome, "connections")), (vec![3, 2], 5));
    let parts = |of: &dyn Fn(&Value) -> u64| by_agent.iter().map(|one| of(&one["outcome"])).sum();
    let bytes: u64 = parts(&|one| whole(one, "payload_bytes"));
    let blocks: u64 = parts(&|one| blocks_of(&one["latency_ms"]));
    assert_eq!(bytes, whole(outcome, "payload_bytes"));
    assert_eq!(blocks, blocks_of(&outcome["latency_ms"]));
    assert_eq!(blocks, whole(&outcome["latency_ms"], "blocks"));
    // The target's process was read by the comparison, its memory too.
    assert!(outcome["target_cpu_seconds_per_gib"].as_f64() > Some(0.0), "{outcome}");
    assert!(outcome["target_after"]["rss_bytes"].as_u64() > Some(0));
    assert!(outcome["partial"].is_null());
    // The window is one: tenths of both were added.
    let tenths = outcome["mib_per_s_by_tenth"].as_array().expect("tenths").len();
    assert!((11..=13).contains(&tenths), "{tenths}");
    // The bare load, of one process, by the same measure.
    let target = support::Faulty::start(&scratch, "none");
    let (status, bare, complaint) = target.leech(&["-k", "5", "--duration", "1.3"]);
    assert_eq!(status, 0, "{complaint}");
    assert_accounts(&bare, 5);
    // Who watches has seen it, and has the report.
    let markdown = scratch.0.join("watched/small.md");
    wait_for(&mut lines, "measuring for 1.3 s");
    wait_for(&mut lines, "MiB/s (a ");
    wait_for(&mut lines, "CPU-s/GiB");
    wait_for(&mut lines, "done");
    drop(watcher);
    let text = fs::read_to_string(markdown).expect("the report");
    assert_eq!(text, fs::read_to_string(scratch.0.join("work/small.md")).expect("the report"));
    for words in ["| seedring | connections=5 | left | 1 | 3 |", "2 agents", "load by 2 agents"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn an_agent_that_is_killed_leaves_what_came_until_then() {
    let scratch = Scratch::new("agents-killed");
    let (_controller, at) = controller(&["--agents", "2"]);
    let (_stays, goes) = (agent(&at, "a", "left"), agent(&at, "b", "right"));
    let (_watcher, mut lines) = watch(&at, &scratch);
    let more = "targets: [seedring]\nconnections: [4]\nrepeats: 2\nseconds: 3\n";
    let scenario = scenario(&scratch, more);
    let comparison = run(&scratch, &at, &scenario, "none").spawn().expect("the comparison");
    // Into the window of the first round, after the heating download.
    wait_for(&mut lines, "measuring for 3 s");
    wait_for(&mut lines, "MiB/s (a ");
    drop(goes);
    let lost = wait_for(&mut lines, "LOST agent");
    assert!(lost.contains("b on right"), "{lost}");
    let output = comparison.wait_with_output().expect("the comparison");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let json = report(&scratch, &output);
    let failed = json["report"]["failed"][0].as_str().expect("what failed");
    assert!(failed.contains("seedring, round 1"), "{failed}");
    assert!(failed.contains("agent b on right was lost"), "{failed}");
    let outcome = &json["report"]["interrupted"][0]["outcome"];
    assert!(outcome["partial"].as_str().expect("partial").contains("b on right"), "{outcome}");
    assert!(outcome["seconds"].as_f64() > Some(2.9), "the other one went on");
    let by_agent = outcome["by_agent"].as_array().expect("by agent");
    assert_eq!(by_agent.len(), 2, "what the lost one had found is there");
    let until_then = &by_agent[1]["outcome"];
    assert!(until_then["seconds"].as_f64() < Some(2.9), "{until_then}");
    assert!(whole(until_then, "payload_bytes") > 1 << 20);
    assert!(blocks_of(&until_then["latency_ms"]) > 100);
    let blocks: u64 = by_agent.iter().map(|one| blocks_of(&one["outcome"]["latency_ms"])).sum();
    assert_eq!(blocks, blocks_of(&outcome["latency_ms"]));
    // The next round was made by the one that was left, and the report says so.
    let runs = json["report"]["runs"].as_array().expect("runs");
    assert_eq!((runs.len(), whole(&runs[0], "round")), (1, 2));
    let by_agent = runs[0]["outcome"]["by_agent"].as_array().expect("by agent");
    assert_eq!((by_agent.len(), whole(&runs[0]["outcome"], "connections")), (1, 4));
    let cautions = json["cautions"].to_string();
    assert!(cautions.contains("agents that were left"), "{cautions}");
    wait_for(&mut lines, "FAILED: seedring, round 1");
}

#[test]
fn an_agent_that_seeds_and_is_killed_ends_that_download() {
    let scratch = Scratch::new("agents-seeder-killed");
    let (_controller, at) = controller(&["--agents", "2"]);
    let (_stays, goes) = (agent(&at, "a", "left"), agent(&at, "b", "right"));
    let (_watcher, mut lines) = watch(&at, &scratch);
    let scenario = scratch.0.join("small.yaml");
    let text = "title: Small\ncompare: download\ntargets: [seedring]\nseeders: [2]\n\
                seeders_have_percent: 50\nsize: 8MiB\nrepeats: 1\n";
    fs::write(&scenario, text).expect("written");
    let mut command = run(&scratch, &at, &scenario, "none");
    // A downloader that waits for what never comes.
    let script = "#!/bin/sh\n[ \"$2\" = --help ] && exit\n[ \"$1\" = download ] && sleep 60\n\
                  echo stand-in 1\n";
    fs::write(scratch.0.join("engine"), script).expect("written");
    let begin = Instant::now();
    let comparison = command.spawn().expect("the comparison");
    wait_for(&mut lines, "2 seeders with 50 % of the pieces, 2 agents");
    wait_for(&mut lines, "measuring until all have everything");
    drop(goes);
    let output = comparison.wait_with_output().expect("the comparison");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(begin.elapsed() < Duration::from_secs(40), "not when the download gave up");
    let json = report(&scratch, &output);
    let failed = json["report"]["failed"][0].as_str().expect("what failed");
    assert!(failed.contains("seedring, 2 seeders, round 1"), "{failed}");
    assert!(failed.contains("lost: agent b on right"), "{failed}");
    wait_for(&mut lines, "FAILED");
}

#[test]
fn a_target_that_crashes_ends_the_window_everywhere() {
    let scratch = Scratch::new("agents-crash");
    let (_controller, at) = controller(&["--agents", "2"]);
    let _agents = [agent(&at, "a", "left"), agent(&at, "b", "right")];
    let more = "targets: [seedring]\nconnections: [4]\nrepeats: 1\nseconds: 20\n";
    let scenario = scenario(&scratch, more);
    let begin = Instant::now();
    // Well after the heating download and the warm-up, well before the window's end.
    let output = run(&scratch, &at, &scenario, "crash:200000").output().expect("the comparison");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(begin.elapsed() < Duration::from_secs(18), "not when the window would be over");
    let json = report(&scratch, &output);
    let failed = json["report"]["failed"][0].as_str().expect("what failed");
    assert!(failed.contains("the target (process") && failed.contains("ended"), "{failed}");
    let outcome = &json["report"]["interrupted"][0]["outcome"];
    assert!(whole(outcome, "payload_bytes") > 1 << 20, "{outcome}");
    assert_eq!(outcome["by_agent"].as_array().map(Vec::len), Some(2));
}

#[test]
fn whoever_is_not_of_us_is_refused_with_the_reason() {
    let scratch = Scratch::new("agents-refused");
    let (_controller, at) = controller(&["--agents", "1"]);
    for role in ["agent", "watch"] {
        let mut wrong = command(&[role, &at, "--patience", "5"]);
        let output = wrong.env("SEEDRING_BENCH_TOKEN", "another-token").output().expect("it ends");
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("wrong token"), "{}", said(&output));
    }
    let mut none = command(&["agent", &at]);
    let output = none.env_remove("SEEDRING_BENCH_TOKEN").output().expect("it ends");
    assert!(said(&output).contains("--token-file or SEEDRING_BENCH_TOKEN"), "{}", said(&output));
    let answer = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(&at).expect("the door");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        // The other side may close while it is written.
        stream.write_all(bytes).ok();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).ok();
        String::from_utf8_lossy(&text).into_owned()
    };
    let version = r#"{"hello":"seedring-bench","version":99,"token":"x","role":"watcher"}"#;
    assert!(answer(format!("{version}\n").as_bytes()).contains("protocol version 99"));
    assert!(answer(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").contains("its hello"));
    answer(&vec![b'['; 1 << 20]);
    let hello =
        format!(r#"{{"hello":"seedring-bench","version":2,"token":"{TOKEN}","role":"watcher"}}"#);
    assert!(answer(format!("{hello}\nnonsense\n").as_bytes()).contains("welcome"));
    // And all of that did it no harm.
    let _agent = agent(&at, "a", "left");
    let more = "targets: [seedring]\nconnections: [2]\nrepeats: 1\nseconds: 0.3\n";
    let scenario = scenario(&scratch, more);
    let output = run(&scratch, &at, &scenario, "none").output().expect("the comparison");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[test]
fn a_missing_agent_is_named_before_anything_starts() {
    let scratch = Scratch::new("agents-missing");
    let (_controller, at) = controller(&["--expect", "a,b", "--wait", "1"]);
    let _agent = agent(&at, "a", "left");
    let more = "targets: [seedring]\nconnections: [2]\nrepeats: 1\nseconds: 1\n";
    let scenario = scenario(&scratch, more);
    let output = run(&scratch, &at, &scenario, "none").output().expect("it ends");
    let complaint = said(&output);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    for words in ["1 of 2 agents", "a on left", "missing: b"] {
        assert!(complaint.contains(words), "{words}: {complaint}");
    }
    assert!(!scratch.0.join("work").exists(), "nothing was started");
}

#[test]
fn a_scenario_that_agents_cannot_play_is_refused_first() {
    let scratch = Scratch::new("agents-other");
    let path = scratch.0.join("recheck.yaml");
    fs::write(&path, "title: t\ncompare: recheck\n").expect("written");
    let path = path.to_str().expect("UTF-8");
    // No controller is there: it is not even asked.
    let output = command(&["run", path, "--controller", "127.0.0.1:1", "--in-place"]).output();
    let complaint = said(&output.expect("it ends"));
    assert!(complaint.contains("`compare: recheck` has no load"), "{complaint}");
    let bare = bench(&["run", path, "--in-place"]);
    assert!(said(&bare).contains("--controller"), "{}", said(&bare));
}

#[test]
fn a_comparison_that_goes_leaves_agents_for_the_next_one() {
    let scratch = Scratch::new("agents-next");
    let (_controller, at) = controller(&["--agents", "1"]);
    let _agent = agent(&at, "a", "left");
    let (_watcher, mut lines) = watch(&at, &scratch);
    let more = "targets: [seedring]\nconnections: [2]\nrepeats: 1\nseconds: 20\n";
    let long = scenario(&scratch, more);
    let comparison = Process(run(&scratch, &at, &long, "none").spawn().expect("the comparison"));
    wait_for(&mut lines, "measuring for 20 s");
    drop(comparison);
    wait_for(&mut lines, "LOST the comparison");
    let short = scenario(&scratch, &more.replace("20", "0.3"));
    let output = run(&scratch, &at, &short, "none").output().expect("the comparison");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[test]
fn sigterm_keeps_the_rounds_so_far_and_marks_the_report() {
    let scratch = Scratch::new("agents-term");
    let (_controller, at) = controller(&["--agents", "1"]);
    let _agent = agent(&at, "a", "left");
    let (_watcher, mut lines) = watch(&at, &scratch);
    let more = "targets: [seedring]\nconnections: [2]\nrepeats: 50\nseconds: 0.7\n";
    let scenario = scenario(&scratch, more);
    let comparison = run(&scratch, &at, &scenario, "none").spawn().expect("the comparison");
    wait_for(&mut lines, "round 2 of 50");
    let pid = comparison.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    let output = comparison.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let json = report(&scratch, &output);
    let runs = json["report"]["runs"].as_array().expect("runs").len();
    assert!((1..50).contains(&runs), "{runs}");
    assert_eq!(json["report"]["cut_short"], true);
    wait_for(&mut lines, "FAILED: cut short by a signal");
}

#[test]
fn ceilings_are_measured_by_agents_too() {
    let scratch = Scratch::new("agents-ceilings");
    let is_there = |program: &str, argument: &str| {
        Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success())
    };
    if !is_there("iperf3", "--version") || !is_there("nginx", "-v") {
        eprintln!("ceilings_are_measured_by_agents_too: needs iperf3 and nginx, not run");
        return;
    }
    let (_controller, at) = controller(&["--agents", "2"]);
    let _agents = [agent(&at, "a", "left"), agent(&at, "b", "right")];
    let more = "targets: [iperf3, nginx]\nconnections: [3]\nrepeats: 1\nseconds: 0.8\n";
    let scenario = scenario(&scratch, more);
    let output = run(&scratch, &at, &scenario, "none").output().expect("the comparison");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let json = report(&scratch, &output);
    let runs = json["report"]["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 2, "{}", said(&output));
    for run in runs {
        assert!(run["mib_per_s"].as_f64() > Some(1.0), "{run}");
        assert!(run["cpu_seconds_per_gib"].as_f64() > Some(0.0), "{run}");
    }
}
