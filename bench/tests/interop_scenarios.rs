//! Owns: short forms of the scenarios, run as a user runs them, against the engine beside this
//! test.
//! Never: judges a speed. Flow: a scenario's text -> `seedring-bench run` (as root: it makes its
//! own network namespace) -> the report's JSON and Markdown.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

#[path = "../src/schema.rs"]
mod schema;

/// The engine: `SEEDRING_BIN`, else the one built with this test.
fn engine() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_seedring-bench")).with_file_name("seedring");
    std::env::var_os("SEEDRING_BIN").map_or(built, PathBuf::from)
}

/// One with libtorrent, where `tests/run interop` has made it.
fn python() -> String {
    let usual = concat!(env!("CARGO_TARGET_TMPDIR"), "/../interop-venv/bin/python");
    std::env::var("SEEDRING_PYTHON").unwrap_or_else(|_| usual.into())
}

/// What a scenario left: the report, its Markdown, the names of its plots.
struct Found {
    report: Value,
    markdown: String,
    plots: Vec<String>,
}

impl Found {
    fn has_plots(&self, names: &[&str]) {
        assert_eq!(self.plots, names, "{}", self.markdown);
    }
}

/// Comparisons that have no size of the content, or no window.
const NO_SIZE: [&str; 2] = ["seed-many", "start-up"];
const NO_WINDOW: [&str; 5] = ["cold", "download", "recheck", "start-up", "mixed"];

/// Runs a scenario of a single short repeat with 16 MiB.
fn run(name: &str, text: &str, more: &[&str]) -> Found {
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{name}"));
    fs::remove_dir_all(&work).ok();
    fs::create_dir_all(&work).expect("a folder");
    let scenario = work.join(format!("{name}.yaml"));
    let is_one_of =
        |list: &[&str]| list.iter().any(|of| text.contains(&format!("compare: {of}\n")));
    let size = if is_one_of(&NO_SIZE) { "" } else { "size: 16MiB\n" };
    let warm_up = if is_one_of(&NO_WINDOW) { "" } else { "warm_up_seconds: 0.2\n" };
    let head = format!("repeats: 1\n{size}{warm_up}");
    fs::write(&scenario, format!("title: {name}\n{head}{text}")).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_seedring-bench"));
    command.arg("run").arg(&scenario).arg("--work").arg(&work).arg("--seedring").arg(engine());
    let output = command.args(more).output().expect("seedring-bench");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} (root and the engine are needed): {said}");
    let json = fs::read(work.join(format!("{name}.json"))).expect("a report");
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    assert_eq!(schema::check(&json), [""; 0], "{name}");
    let markdown = String::from_utf8_lossy(&output.stdout).into_owned();
    let plots = plots(&work, name, &markdown);
    fs::remove_dir_all(&work).ok();
    Found { report: json["report"].clone(), markdown, plots }
}

/// The plots that the report names: each is in the page, whole, and shows something.
fn plots(work: &Path, name: &str, markdown: &str) -> Vec<String> {
    let page = fs::read_to_string(work.join(format!("{name}.html"))).expect("a page");
    let lines = markdown.lines().filter_map(|line| line.strip_prefix("- !["));
    let names: Vec<String> =
        lines.filter_map(|line| Some(line.split_once(']')?.0.to_owned())).collect();
    for plot in &names {
        let svg = fs::read_to_string(work.join(format!("{name}-{plot}.svg"))).expect(plot);
        assert!(page.contains(&svg), "{plot} is not in the page");
        let shows = |mark: &str| svg.lines().filter(|line| line.contains(mark)).count();
        assert!(shows("class=\"bar\"") + shows("<polyline points=\"") > 0, "{plot}: {svg}");
        for nonsense in ["points=\"\"", "NaN", "inf\"", "\"-"] {
            assert!(!svg.contains(nonsense), "{plot} has {nonsense}: {svg}");
        }
    }
    assert_eq!(page.matches("<svg").count(), names.len(), "the page has other plots");
    names
}

fn runs(report: &Value) -> &Vec<Value> {
    report["runs"].as_array().expect("runs")
}

fn nothing_failed(report: &Value) {
    for list in ["absent", "failed"] {
        assert_eq!(report[list], Value::Array(Vec::new()), "something did not run");
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number, not {value}"))
}

#[test]
fn connections_idle_and_active() {
    let text = "compare: connections\ntargets: [seedring]\nconnections: [300]\nseconds: 0.5\n";
    let found = run("connections", text, &[]);
    let (report, markdown) = (&found.report, &found.markdown);
    nothing_failed(report);
    found.has_plots(&[
        "memory",
        "idle-cpu",
        "p99",
        "latency-20-active-beside-0-idle",
        "latency-20-active-beside-300-idle",
    ]);
    let points: Vec<_> = runs(report).iter().map(|run| &run["point"]).collect();
    assert_eq!(points, ["20 active beside 0 idle", "300 idle", "20 active beside 300 idle"]);
    let idle = &runs(report)[1]["outcome"];
    assert_eq!(idle["connections_served"], 300);
    let each = number(&idle["idle_bytes_per_connection"]["private"]);
    assert!((0.0..100_000.0).contains(&each), "{each} bytes a connection");
    let active = &runs(report)[2]["outcome"];
    assert_eq!(active["connections_served"], 320);
    assert_eq!((&active["connections"], &active["beside"]["idle"]), (&20.into(), &300.into()));
    assert!(number(&active["latency_ms"]["p50"]) > 0.0);
    assert!(markdown.contains("| private bytes each |"), "{markdown}");
}

#[test]
fn slow_readers_beside_fast_ones() {
    let text = "compare: slow-readers\ntargets: [seedring]\nconnections: [4]\nslow: 40\n\
                slow_rate: 32KiB\nseconds: 2\n";
    let found = run("slow-readers", text, &[]);
    let report = &found.report;
    nothing_failed(report);
    found.has_plots(&[
        "speed",
        "cpu",
        "p99",
        "first-block",
        "memory",
        "memory-time",
        "latency-4-fast-beside-0-slow",
        "latency-4-fast-beside-40-slow",
    ]);
    let alone = &runs(report)[0]["outcome"];
    let beside = &runs(report)[1]["outcome"];
    assert_eq!((&alone["connections_served"], &alone["beside"]["slow"]), (&4.into(), &0.into()));
    assert_eq!(beside["connections_served"], 44);
    // 40 at 32 KiB/s; a block counts when it is whole.
    let rate = number(&beside["beside"]["slow_kib_per_s"]);
    assert!((300.0..2000.0).contains(&rate), "{rate} KiB/s of 1280");
    // They have not been counted as what is measured.
    assert!(number(&beside["mib_per_s"]) > 10.0 * rate / 1024.0, "{beside}");
    let fairness = number(&beside["fairness"]);
    assert!(fairness > 0.3 && fairness <= 1.0, "{fairness}");
}

#[test]
fn churn_beside_as_many_that_stay() {
    let text = "compare: churn\ntargets: [seedring]\npattern: rarest-first\n\
                arrivals_per_second: 60\nstay_seconds: 0.5\n\
                seconds: 2\n";
    let found = run("churn", text, &[]);
    let (report, markdown) = (&found.report, &found.markdown);
    nothing_failed(report);
    found.has_plots(&[
        "speed",
        "cpu",
        "p99",
        "first-block",
        "memory",
        "memory-time",
        "latency-30-that-stay",
        "latency-30-on-average-come-and-go",
    ]);
    let (stay, churn) = (&runs(report)[0]["outcome"], &runs(report)[1]["outcome"]);
    assert_eq!(stay["connections"], 30);
    assert_eq!(stay["beside"]["arrivals"], 0);
    // More than two seconds of sixty, and as many went as came, but for those that are there.
    let came = number(&churn["beside"]["arrivals"]);
    let went = number(&churn["beside"]["departures"]);
    assert!(came > 80.0 && went > 0.6 * came, "{came} came, {went} went");
    assert_eq!(churn["beside"]["turned_away"], 0);
    assert!(number(&churn["first_block_ms"]["blocks"]) > 0.8 * came, "{churn}");
    assert!(churn["fairness"].is_null(), "a place is many connections");
    assert!(!churn["target_private_by_second"].as_array().expect("a list").is_empty());
    assert!(markdown.contains("private MiB at first"), "{markdown}");
    assert_eq!(
        (&stay["pattern"], &churn["pattern"]),
        (&"rarest-first".into(), &"rarest-first".into())
    );
}

#[test]
fn many_torrents_by_their_popularity() {
    let text = "compare: seed-many\ntargets: [seedring]\ntorrents: 40\nzipf: 1.2\n\
                arrivals_per_second: 40\nstay_seconds: 0.5\nseconds: 1.5\n";
    let found = run("seed-many", text, &[]);
    let report = &found.report;
    nothing_failed(report);
    found.has_plots(&[
        "speed",
        "cpu",
        "p99",
        "first-block",
        "memory",
        "memory-time",
        "latency-40-torrents",
    ]);
    let outcome = &runs(report)[0]["outcome"];
    assert_eq!(outcome["beside"]["torrents"], 40);
    assert!(number(&outcome["payload_bytes"]) > 0.0);
    assert_eq!(outcome["pieces_bad"], 0);
}

#[test]
fn start_up_first_and_second() {
    let text = "compare: start-up\ntargets: [seedring]\ntorrents: 60\n";
    let found = run("start-up", text, &[]);
    let report = &found.report;
    nothing_failed(report);
    found.has_plots(&["all", "first-block", "cpu", "memory"]);
    let points: Vec<_> = runs(report).iter().map(|run| &run["point"]).collect();
    assert_eq!(points, ["first start", "second start"]);
    for run in runs(report) {
        let figures = &run["figures"];
        let first = number(&figures["first_block_seconds"]);
        assert!(first > 0.0 && first <= number(&figures["all_serve_seconds"]), "{figures}");
    }
}

#[test]
fn restart_under_load() {
    let text = "compare: restart\ntargets: [seedring]\nconnections: [5]\nseconds: 3\n";
    let found = run("restart", text, &[]);
    let report = &found.report;
    nothing_failed(report);
    found.has_plots(&["phases", "time"]);
    let run = &runs(report)[0];
    let figures = &run["figures"];
    assert_eq!(figures["hashed_bytes"], 0.0, "nothing is hashed again");
    assert!(number(&figures["silent_seconds"]) < 2.0, "{figures}");
    assert!(number(&figures["first_block_seconds"]) > 0.0, "{figures}");
    assert!(number(&run["outcome"]["reopened"]) >= 5.0, "each connection was opened again");
}

/// Each is seed and leech, the seed is slow; content is hashed before a member counts.
#[test]
fn a_mixed_swarm_and_swarms_of_the_same() {
    let text = "compare: mixed\ntargets: [seedring, qbittorrent]\nmembers: 2\n\
                seed_mib_per_s: 8\n";
    let found = run("mixed", text, &[]);
    let (report, markdown) = (&found.report, &found.markdown);
    nothing_failed(report);
    found.has_plots(&["seconds", "cpu"]);
    let points: Vec<_> = runs(report).iter().map(|run| &run["point"]).collect();
    assert_eq!(points, ["one of each", "one of each", "2 alike", "2 alike", "2 alike", "2 alike"]);
    for run in runs(report) {
        let figures = &run["figures"];
        let (own, all) = (number(&figures["seconds"]), number(&figures["all_seconds"]));
        // 16 MiB at 8 MiB/s, and a burst.
        assert!(own > 0.5 && own <= all, "{run}");
    }
    assert!(markdown.contains("s until all had all"), "{markdown}");
}

/// Two that hash nothing at their start, an absent one, and measures beside CPU time.
#[test]
fn rivals_seed_and_an_absent_one_is_listed() {
    let text = "compare: seeding\ntargets: [seedring, qbittorrent, aria2, nginx, vortex]\n\
                connections: [2]\nseconds: 2\nopen_loop: false\n";
    let absent = ["--nginx", "/nowhere/nginx", "--vortex", "/nowhere/vortex-peer"];
    let found = run("rivals", text, &absent);
    let (report, markdown) = (&found.report, &found.markdown);
    found.has_plots(&["cpu", "speed", "latency-2", "time"]);
    let lines = report["absent"].as_array().expect("a list");
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (line, remedy) in lines.iter().zip(["apt install nginx-light", "cargo build --release"]) {
        assert!(line.as_str().is_some_and(|line| line.contains(remedy)), "{line}");
    }
    let targets: Vec<_> = runs(report).iter().map(|run| &run["target"]).collect();
    assert_eq!(targets, ["seedring", "qBittorrent", "aria2"]);
    for run in runs(report) {
        assert_eq!(run["outcome"]["connections_served"], 2, "{}", run["target"]);
        let meters = &run["outcome"]["meters"];
        assert!(number(&meters["voluntary_switches_per_gib"]) >= 0.0);
        let missing = meters["not_measured"].to_string();
        // Either a figure, or the reason why there is none.
        for (key, word) in [("syscalls_per_gib", "system calls"), ("joules_per_gib", "energy")] {
            assert_eq!(meters[key].is_null(), missing.contains(word), "{meters}");
        }
        assert!(run["outcome"]["first_block_ms"]["blocks"].as_u64() >= Some(2));
    }
    let settings = report["settings"].to_string();
    assert!(settings.contains("qBittorrent: no limit"), "{settings}");
    assert!(!markdown.contains("nginx sendfile (ceiling) |"), "the absent one has no row");
}

/// As it is handed out. The engines are there; others are, or are listed with the reason.
#[test]
fn the_quick_scenario_measures_or_lists_every_target_and_has_plots() {
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-quick");
    fs::remove_dir_all(&work).ok();
    let mut command = Command::new(env!("CARGO_BIN_EXE_seedring-bench"));
    command.arg("run").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/quick.yaml"));
    command.args(["--repeats", "1", "--python", &python(), "--seedring"]).arg(engine());
    let output = command.arg("--work").arg(&work).output().expect("seedring-bench");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "root and the engine are needed: {said}");
    let json = fs::read(work.join("quick.json")).expect("a report");
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    let report = &json["report"];
    let markdown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        plots(&work, "quick", &markdown),
        ["cpu", "speed", "latency-1", "latency-50", "time"]
    );
    fs::remove_dir_all(&work).ok();
    let absent = report["absent"].as_array().expect("a list");
    for target in ["iperf3 (ceiling)", "seedring", "seedring on epoll", "libtorrent"] {
        let points = runs(report).iter().filter(|run| run["target"] == target).count();
        let of_it = |line: &&Value| {
            line.as_str().is_some_and(|line| line.starts_with(&format!("{target}: ")))
        };
        let reason = absent.iter().find(of_it).and_then(Value::as_str);
        match reason {
            None => {
                assert_eq!(points, if target.starts_with("iperf3") { 1 } else { 2 }, "{target}")
            }
            Some(reason) => {
                assert!(points == 0 && reason.contains("try: "), "{target}: {reason}");
                assert!(!target.starts_with("seedring"), "{reason}");
            }
        }
    }
}

/// The comparisons of the engine with itself, and those whose table is their own.
#[test]
fn every_other_scenario_has_its_plots() {
    let found = run("spread", "compare: spread\nshards: [1, 2]\nseconds: 0.5\n", &[]);
    nothing_failed(&found.report);
    found.has_plots(&["speed", "cpu", "latency"]);
    let found = run("cold", "compare: cold\n", &[]);
    nothing_failed(&found.report);
    found.has_plots(&["speed", "latency"]);
    let found = run("recheck", "compare: recheck\ntargets: [seedring, sha1sum]\n", &[]);
    nothing_failed(&found.report);
    found.has_plots(&["hot", "cold", "cpu-hot", "cpu-cold"]);
    let text = "compare: download\ntargets: [seedring]\nseeders: [1, 2]\n";
    let found = run("download", text, &[]);
    nothing_failed(&found.report);
    found.has_plots(&["peers", "cpu", "memory"]);
}

/// Each of four seeders has half of the pieces; what is downloaded is hashed.
#[test]
fn downloads_from_partial_seeds() {
    let text = "compare: download\ntargets: [seedring, libtorrent, aria2]\nseeders: [4]\n\
                seeders_have_percent: 50\n";
    let found = run("partial-seeds", text, &["--python", &python()]);
    nothing_failed(&found.report);
    found.has_plots(&["peers", "cpu", "memory"]);
    assert_eq!(runs(&found.report).len(), 3);
    assert!(found.markdown.contains("each piece at 2 of the 4"), "{}", found.markdown);
    let commands = found.report["commands"].to_string();
    assert!(commands.contains("--have-percent 50 --of 4 --number 0"), "{commands}");
}

/// The same four fetch what they lack from whoever downloads from them.
#[test]
fn downloads_from_mixed_peers() {
    let text = "compare: download\ntargets: [seedring, libtorrent, aria2]\nseeders: [4]\n\
                seeders_have_percent: 50\nmixed_peers: true\n";
    let found = run("mixed-peers", text, &["--python", &python()]);
    nothing_failed(&found.report);
    assert_eq!(runs(&found.report).len(), 3);
    for run in runs(&found.report) {
        // Each piece came from one of them, which has half of them at first.
        assert!(run["seeders_sent_bytes"].as_u64() >= Some(16 << 20), "{run}");
        assert!(run["seeders_fetched_bytes"].is_u64(), "{run}");
    }
    assert!(found.markdown.contains("uploaded MiB"), "{}", found.markdown);
}

/// Killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Seeds and mixed peers are on other machines: here, in two agents of this one.
#[test]
fn agents_play_seeds_and_mixed_peers() {
    const TOKEN: &str = "0123456789abcdef";
    for (name, more) in
        [("agents-seed", ""), ("agents-mixed", "seeders_have_percent: 50\nmixed_peers: true\n")]
    {
        let bench = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_seedring-bench"));
            command.args(arguments).env("SEEDRING_BENCH_TOKEN", TOKEN);
            command
        };
        let mut command = bench(&["controller", "--listen", "127.0.0.1:0", "--agents", "2"]);
        let child = command.stdout(Stdio::piped()).spawn().expect("the controller");
        let mut controller = Process(child);
        let mut line = String::new();
        let stdout = controller.0.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("its address");
        let at = line.trim().rsplit(' ').next().expect("listening on ADDRESS").to_owned();
        let agent = |name: &str| {
            let mut command = bench(&["agent", &at, "--name", name, "--node", name]);
            Process(command.spawn().expect("an agent"))
        };
        let agents = [agent("a"), agent("b")];
        let text = format!("compare: download\ntargets: [seedring]\nseeders: [4]\n{more}");
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let place = ["--controller", &at, "--in-place", "--address", &port.to_string()];
        let place = [&place[..], &["--token", TOKEN]].concat();
        let found = run(name, &text, &place);
        nothing_failed(&found.report);
        let run = &runs(&found.report)[0];
        let by_agent = run["seeders_by_agent"].as_array().expect("by agent");
        let seeders: Vec<(&str, u64)> = by_agent
            .iter()
            .map(|one| (one["agent"].as_str().unwrap_or(""), one["seeders"].as_u64().unwrap_or(0)))
            .collect();
        assert_eq!(seeders, [("a", 2), ("b", 2)], "{run}");
        let sent: u64 = by_agent.iter().filter_map(|one| one["sent_bytes"].as_u64()).sum();
        assert!(sent >= 16 << 20 && Some(sent) == run["seeders_sent_bytes"].as_u64(), "{run}");
        assert_eq!(run["seeders_fetched_bytes"].is_u64(), !more.is_empty(), "{run}");
        assert!(found.markdown.contains("by 2 agents"), "{}", found.markdown);
        // They go with their controller, and it with its comparison.
        for mut process in agents.into_iter().chain([controller]) {
            assert!(process.0.wait().expect("it ends").success());
        }
    }
}

/// Not a scenario: the device of its own namespace that takes frames.
#[test]
fn the_micro_benchmark_of_zero_copy_runs() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seedring-bench"));
    command.args(["micro", "zero-copy", "--rounds", "1", "--size", "64MiB", "--cache", "16MiB"]);
    let output = command.args(["-k", "2", "--blocks", "16"]).output().expect("seedring-bench");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "root is needed: {said}");
    let table = String::from_utf8_lossy(&output.stdout);
    let rows = table.lines().filter(|line| line.starts_with("| 16 |")).count();
    assert!(rows >= 2, "copying and zero-copy: {table}");
}

/// Both settings of a target are rows of their own, side by side.
#[test]
fn tuned_beside_default() {
    let text = "compare: seeding\ntargets: [seedring]\nsettings: [tuned, default]\n\
                connections: [1, 4]\nseconds: 0.5\nopen_loop: false\n";
    let found = run("settings", text, &[]);
    nothing_failed(&found.report);
    found.has_plots(&[
        "cpu",
        "speed",
        "settings-speed-1",
        "settings-cpu-1",
        "settings-speed-4",
        "settings-cpu-4",
        "latency-1",
        "latency-4",
        "time",
    ]);
}
