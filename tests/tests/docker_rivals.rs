//! Owns: the image of the other clients, on a Debian that debootstrap made: they are in it, are
//! measured in it, and seed from it.
//! Never: looks at figures; windows are too short for any.
//! Flow: `tests/run docker` builds the image -> Compose -> a report, or the load's JSON.

use anyhow::{Context, Result, ensure};
use seedring_tests::docker::{Project, docker, image};
use seedring_tests::interop::{Scratch, wait_until};
use serde_json::Value;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const LIMIT: Duration = Duration::from_secs(90);
/// Every target that is a package, or ours. Transmission unchokes by a clock, which takes longer.
const TARGETS: [&str; 8] =
    ["iperf3", "nginx", "bare", "seedring", "libtorrent", "qbittorrent", "rtorrent", "aria2"];

#[test]
fn a_scenario_finds_every_packaged_client_in_the_image() -> Result<()> {
    let scratch = Scratch::new(TMP, "docker_rivals")?;
    let scenario = format!(
        "title: Rivals\ncompare: seeding\ntargets: [{}]\nsize: 16MiB\nconnections: [1]\n\
         repeats: 1\nseconds: 1\nwarm_up_seconds: 0.2\nopen_loop: false\n",
        TARGETS.join(", ")
    );
    std::fs::write(scratch.path().join("rivals.yaml"), scenario)?;
    let rivals = image("seedring-rivals");
    let variables = [("SEEDRING_RIVALS_IMAGE", &*rivals), ("COMPOSE_PROFILES", "scenario")];
    let project = Project::new("compose.rivals.yaml", &variables);
    let volume = format!("{}:/scratch", scratch.path().display());
    let said = project.compose(&[
        "run",
        "-T",
        "--rm",
        "-v",
        &volume,
        "scenario",
        "run",
        "/scratch/rivals.yaml",
        "--seedring=/usr/local/bin/seedring",
        "--work=/work",
        "--out=/scratch/report",
    ])?;
    let report = std::fs::read(scratch.path().join("report/rivals.json")).context(said)?;
    let report: Value = serde_json::from_slice(&report)?;
    let report = &report["report"];
    for list in ["absent", "failed"] {
        ensure!(report[list].as_array().is_some_and(Vec::is_empty), "{list}: {}", report[list]);
    }
    let runs = report["runs"].as_array().context("runs")?;
    assert_eq!(runs.len(), TARGETS.len(), "{runs:?}");
    project.end()
}

#[test]
fn a_client_seeds_to_the_load_from_its_container() -> Result<()> {
    let rivals = image("seedring-rivals");
    for (client, port) in [("libtorrent", "26884"), ("rtorrent", "26885")] {
        let variables = [
            ("SEEDRING_RIVALS_IMAGE", &*rivals),
            ("COMPOSE_PROFILES", client),
            ("SEEDRING_PORT", port),
            ("SIZE", "16MiB"),
            ("CONNECTIONS", "2"),
            ("SECONDS_MEASURED", "1"),
        ];
        let project = Project::new("compose.rivals.yaml", &variables);
        project.compose(&["up", "-d"])?;
        let containers = project.containers("leech")?;
        let [leech] = &containers[..] else { panic!("{containers:?}") };
        let status = wait_until("the end of the load", LIMIT, || {
            let state = docker(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", leech])?;
            Ok(state.strip_prefix("exited ").map(str::to_owned))
        })?;
        let log = docker(&["logs", leech])?;
        ensure!(status == "0", "{client}: {status}: {log}");
        let json = log.find('{').map(|at| &log[at..]).with_context(|| log.clone())?;
        let outcome: Value = serde_json::from_str(json).with_context(|| log.clone())?;
        ensure!(outcome["payload_bytes"].as_u64() > Some(0), "{client}: {outcome}");
        project.end()?;
    }
    Ok(())
}
