//! Owns: that a comparison which is told to end keeps what it measured, ends what it started, and
//! says so; that the second signal ends it at once. As root, as comparisons are: without it those
//! tests say so and stop.
//! Never: figures. Flow: a real comparison -> signals -> exit status, report, processes.

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{BENCH, Scratch, bench};

const PATIENCE: Duration = Duration::from_secs(30);

fn is_root(test: &str) -> bool {
    let output = Command::new("id").arg("-u").output().expect("id");
    let is_root = output.stdout.starts_with(b"0\n");
    if !is_root {
        eprintln!("{test}: needs root, not run");
    }
    is_root
}

/// A seeding comparison of many rounds; a seeder of ours stands in for the engine.
struct Comparison {
    child: Child,
    scratch: Scratch,
}

impl Comparison {
    /// `at_first`: what the stand-in does before it seeds.
    fn start(name: &str, at_first: &str) -> Comparison {
        let scratch = Scratch::new(name);
        Comparison::stand_in(&scratch, at_first);
        let mut command = Command::new(BENCH);
        command
            .args(["compare", "--preset", "seeding", "--targets", "seedring", "--rounds", "50"])
            .args(["--seconds", "0.4", "--warm-up", "0", "--size", "4MiB", "--connections", "2"])
            .arg("--no-open-loop");
        Comparison::run(command, scratch)
    }

    /// The same as two scenarios of a set.
    fn start_set(name: &str, at_first: &str) -> Comparison {
        let scratch = Scratch::new(name);
        Comparison::stand_in(&scratch, at_first);
        let mut command = Command::new(BENCH);
        command.arg("run");
        for name in ["one", "two"] {
            let path = scratch.0.join(format!("{name}.yaml"));
            let text = "compare: seeding\ntargets: [seedring]\nrepeats: 50\nseconds: 0.4\n\
                        warm_up_seconds: 0\nsize: 4MiB\nconnections: [2]\nopen_loop: false\n";
            fs::write(&path, format!("title: {name}\n{text}")).expect("written");
            command.arg(path);
        }
        Comparison::run(command, scratch)
    }

    /// The program that is taken for the engine.
    fn stand_in(scratch: &Scratch, at_first: &str) {
        let folder = scratch.0.display();
        let engine = scratch.0.join("engine");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && echo 'stand-in 1' && exit\n{at_first}\n\
             exec '{BENCH}' faulty --fault none --torrent {folder}/hot/payload.bin.torrent \
             --content {folder}/hot/payload.bin --listen 10.77.0.1:6881\n"
        );
        fs::write(&engine, script).expect("written");
        fs::set_permissions(&engine, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    fn run(mut command: Command, scratch: Scratch) -> Comparison {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let engine = scratch.0.join("engine");
        let child = command
            .args(["--load-core", if cores > 1 { "1" } else { "0" }])
            .arg("--seedring")
            .arg(&engine)
            .arg("--work")
            .arg(&scratch.0)
            .stdout(Stdio::null())
            .stderr(fs::File::create(scratch.0.join("said")).expect("a file"))
            .spawn()
            .expect("the comparison");
        Comparison { child, scratch }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.scratch.0.join("said")).unwrap_or_default()
    }

    /// Until it has said this so many times.
    fn wait_for(&self, words: &str, times: usize) {
        let start = Instant::now();
        while self.said().matches(words).count() < times {
            assert!(start.elapsed() < PATIENCE, "no {words:?}: {}", self.said());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().expect("kill");
        assert!(status.success(), "it has ended: {}", self.said());
    }

    fn end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("its status") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end: {}", self.said());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// All its processes end with it, and with the last of them its network namespace.
    fn nothing_is_left(&self) {
        let start = Instant::now();
        let work = self.scratch.0.to_string_lossy().into_owned();
        let is_ours = |process: &PathBuf| {
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(&work)
        };
        loop {
            let all = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
            let left: Vec<PathBuf> = all.filter(is_ours).collect();
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(5), "{left:?} are left");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn the_first_signal_keeps_the_rounds_measured_so_far() {
    if !is_root("the_first_signal") {
        return;
    }
    for signal in ["INT", "TERM"] {
        let mut comparison = Comparison::start(&format!("cut-{signal}"), "");
        comparison.wait_for("CPU-s/GiB", 2);
        comparison.signal(signal);
        let signalled = Instant::now();
        let status = comparison.end();
        assert!(signalled.elapsed() < Duration::from_secs(10), "it took {:?}", signalled.elapsed());
        assert_eq!(status.code(), Some(130), "{}", comparison.said());
        let read = |ending: &str| {
            let path = comparison.scratch.0.join(format!("seeding.{ending}"));
            fs::read_to_string(path)
                .unwrap_or_else(|error| panic!("{error}: {}", comparison.said()))
        };
        let json: Value = serde_json::from_str(&read("json")).expect("JSON");
        let report = &json["report"];
        assert_eq!(report["cut_short"], true);
        let runs = report["runs"].as_array().expect("runs").len();
        assert!((2..40).contains(&runs), "{runs} runs of 50");
        assert_eq!(report["failed"], Value::Array(Vec::new()), "an ended run is no failure");
        for text in [read("md"), read("html")] {
            assert!(text.contains("CUT SHORT by a signal in round"), "{text}");
        }
        comparison.nothing_is_left();
        let path = comparison.scratch.0.join("seeding.json");
        let path = path.to_str().expect("UTF-8");
        let judged = bench(&["compare", path, path]);
        let judged = String::from_utf8_lossy(&judged.stdout).into_owned();
        assert!(judged.contains("NEW is partial"), "{judged}");
    }
}

/// Of several scenarios the one under way is cut short, and none follows; nor where no run was over
/// yet.
#[test]
fn a_signal_ends_a_set_of_scenarios() {
    if !is_root("a_signal_ends_a_set") {
        return;
    }
    for (name, at_first, words, is_measured) in
        [("set-early", "exec sleep 60", "scenario 1 of 2", false), ("set", "", "CPU-s/GiB", true)]
    {
        let mut comparison = Comparison::start_set(name, at_first);
        comparison.wait_for(words, 1);
        comparison.wait_for("content:", 1);
        comparison.signal("INT");
        let status = comparison.end();
        assert_eq!(status.code(), Some(130), "{}", comparison.said());
        assert!(!comparison.said().contains("scenario 2"), "{}", comparison.said());
        let there = |name: &str| comparison.scratch.0.join(name).exists();
        assert_eq!((there("one.json"), there("index.html")), (is_measured, is_measured));
        assert!(!there("two.json"));
        comparison.nothing_is_left();
    }
}

/// The first one waits for a target that does not want to end; the second one does not.
#[test]
fn the_second_signal_ends_it_at_once() {
    if !is_root("the_second_signal") {
        return;
    }
    let mut comparison = Comparison::start("cut-twice", "trap '' TERM");
    comparison.wait_for("CPU-s/GiB", 1);
    comparison.signal("INT");
    comparison.wait_for("cut short", 1);
    comparison.signal("INT");
    let signalled = Instant::now();
    let status = comparison.end();
    assert!(signalled.elapsed() < Duration::from_secs(3), "it took {:?}", signalled.elapsed());
    assert_eq!(status.code(), Some(130), "{}", comparison.said());
    assert!(!comparison.scratch.0.join("seeding.json").exists(), "no report of it");
    comparison.nothing_is_left();
}
