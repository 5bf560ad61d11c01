//! Owns: the Compose files as they are handed out: what they start works, and goes away whole.
//! Never: changes them; what differs by machine is in their variables.
//! Flow: up -> a client, or the agents' reports -> down -> nothing is left.

use anyhow::{Context, Result, ensure};
use seedring_tests::docker::{Project, check_quick, docker};
use seedring_tests::interop::{Content, Process, Scratch, Shape, wait_until};
use std::process::Command;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const LIMIT: Duration = Duration::from_secs(60);

/// Ports of this machine's network: the projects of these tests share it.
const PORTS: [(&str, &str); 2] = [("SEEDRING_PORT", "26881"), ("SEEDRING_TRACKER_PORT", "26969")];

#[test]
fn compose_seeds_a_folder_and_leaves_nothing() -> Result<()> {
    let scratch = Scratch::new(TMP, "compose")?;
    let content = Content::make(&scratch.folder("media")?.join("mixed"), Shape::Mixed)?;
    let media = content.root().display().to_string();
    let variables = [PORTS[0], PORTS[1], ("MEDIA", &media), ("NAME", "mixed")];
    let project = Project::new("compose.yaml", &variables);
    project.compose(&["up", "-d"])?;
    let containers = project.containers("seedring")?;
    let [container] = &containers[..] else { panic!("{containers:?}") };
    let folder = scratch.folder("aria2")?;
    let mut command = Command::new("aria2c");
    command.args(["--no-conf", "--enable-dht=false", "--bt-enable-lpd=false", "--seed-time=0"]);
    command.args(["--listen-port=26900-26999", "--max-tries=30", "--retry-wait=1"]);
    command.args(["--summary-interval=0", "--no-proxy=127.0.0.1", "--dir"]).arg(&folder);
    command.arg("http://127.0.0.1:26969/torrents/mixed.torrent").env("HOME", &folder);
    wait_until("the engine to seed", LIMIT, || {
        let log = docker(&["logs", container])?;
        Ok(log.contains("1 torrent seeding").then_some(()))
    })?;
    let mut aria2 = Process::start("aria2c", &mut command, &folder.join("log"))?;
    aria2.wait_success(LIMIT)?;
    content.compare(&folder.join("mixed"), false)?;
    project.compose(&["stop"])?;
    let ended = docker(&["inspect", "-f", "{{.State.ExitCode}}", container])?;
    assert_eq!(ended, "0", "{}", docker(&["logs", container])?);
    project.end()?;
    content.check_untouched()
}

/// As it is handed out, `bench/scenarios/quick.yaml` and all: what this image has not is listed as
/// absent, and no failure.
#[test]
fn compose_runs_a_scenario_with_four_agents_and_leaves_nothing() -> Result<()> {
    let scratch = Scratch::new(TMP, "compose_bench")?;
    let folder = scratch.path().display().to_string();
    let variables = [("SEEDRING_PORT", "26882"), ("SEEDRING_BENCH_PORT", "26970")];
    let project = Project::new("compose.bench.yaml", &variables);
    project.compose(&["up", "-d", "--scale", "agent=4"])?;
    let containers = project.containers("comparison")?;
    let [comparison] = &containers[..] else { panic!("{containers:?}") };
    wait_until("the end of the comparison", 3 * LIMIT, || {
        let status = docker(&["inspect", "-f", "{{.State.Status}}", comparison])?;
        Ok((status == "exited").then_some(()))
    })?;
    let log = docker(&["logs", comparison])?;
    let status = docker(&["inspect", "-f", "{{.State.ExitCode}}", comparison])?;
    ensure!(status == "0", "{status}: {log}");
    docker(&["cp", &format!("{comparison}:/work/report"), &folder])?;
    let report = std::fs::read(scratch.path().join("report/quick.json"))?;
    check_quick(&serde_json::from_slice(&report)?)?;
    let agents = project.containers("agent")?;
    assert_eq!(agents.len(), 4);
    for agent in &agents {
        wait_until("the end of an agent", LIMIT, || {
            let status = docker(&["inspect", "-f", "{{.State.Status}}", agent])?;
            Ok((status == "exited").then_some(()))
        })?;
        let status = docker(&["inspect", "-f", "{{.State.ExitCode}}", agent])?;
        ensure!(status == "0", "{status}: {}", docker(&["logs", agent])?);
    }
    project.end()
}

/// The files that this machine cannot run as they are can be read at least.
#[test]
fn the_other_files_are_valid() -> Result<()> {
    for file in ["compose.rivals.yaml", "stack.yaml"] {
        let project = Project::new(file, &[]);
        let read = project.compose(&["config"]).with_context(|| file)?;
        ensure!(read.contains("seedring"), "{file}: {read}");
        std::mem::forget(project); // nothing was started
    }
    Ok(())
}
