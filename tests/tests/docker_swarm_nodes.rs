//! Owns: a scenario over three nodes of a Swarm: target on one, load from the others, over
//! their own network and over an overlay; io_uring refused by a node's profile; an image that a
//! node has not.
//! Never: pulls an image, or needs three machines: daemons in network namespaces on a bridge.
//! Flow: `Nodes` -> runs from the first -> reports, and nothing left on any.

use anyhow::{Context, Result, ensure};
use seedring_tests::docker::image;
use seedring_tests::docker::nodes::Nodes;
use seedring_tests::docker::swarm::{bench, left_behind};
use seedring_tests::interop::{Scratch, wait_until};
use serde_json::Value;
use std::fs;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const WORKERS_LIMIT: Duration = Duration::from_secs(20);

/// What of newer engines' own profile matters here. (Ours would not let targets be started.)
const NO_IO_URING: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names":
    ["io_uring_setup", "io_uring_enter", "io_uring_register"], "action": "SCMP_ACT_ERRNO"}]}"#;

fn scenario(targets: &str) -> String {
    format!(
        "title: Three nodes\ncompare: seeding\ntargets: [{targets}]\nsize: 16MiB\n\
         connections: [8]\nrepeats: 1\nseconds: 1\nwarm_up_seconds: 0.2\nopen_loop: false\n"
    )
}

/// A run from the first node: its status, what it printed, its report.
fn run(
    nodes: &Nodes,
    scratch: &Scratch,
    text: &str,
    more: &[&str],
) -> Result<(i32, String, Option<Value>)> {
    let path = scratch.path().join("nodes.yaml");
    fs::write(&path, text)?;
    let report = scratch.path().join("report");
    let _ = fs::remove_dir_all(&report);
    let mut command = bench()?;
    command.args(["swarm", "run"]).arg(&path).args(["--host", nodes.host(1)]);
    command.args(["--image", &image("seedring-bench"), "--nofile=0", "--memlock=0"]);
    command.arg("--out").arg(&report).args(more);
    let output = nodes.on(1, &command).output().context("seedring-bench")?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let json = fs::read(report.join("nodes.json")).ok();
    let json = json.map(|bytes| serde_json::from_slice(&bytes)).transpose()?;
    let left = left_behind(Some(nodes.host(1)))?;
    ensure!(left.is_empty(), "on node1: {left}\n{said}");
    // No manager sees the others' containers: their engines remove them a moment after the tasks.
    for number in [2, 3] {
        let left = || left_behind(Some(nodes.host(number)));
        let is_clean = || Ok(left()?.is_empty().then_some(()));
        wait_until("the end of a worker's containers", WORKERS_LIMIT, is_clean)
            .with_context(|| format!("on node{number}: {}\n{said}", left().unwrap_or_default()))?;
    }
    Ok((output.status.code().unwrap_or(-1), said, json))
}

#[test]
fn three_nodes_give_one_report_and_keep_nothing() -> Result<()> {
    let scratch = Scratch::new(TMP, "swarm_nodes")?;
    // The target's node is one whose engine refuses io_uring, as newer ones do.
    let profile = scratch.path().join("no-io-uring.json").display().to_string();
    fs::write(&profile, NO_IO_URING)?;
    let nodes = Nodes::start(TMP, 3, &[format!("--seccomp-profile={profile}")])?;
    for number in [1, 2] {
        nodes.load(number, &image("seedring-bench"))?;
    }
    let epoll = scenario("seedring-epoll");
    let (status, said, _) = run(&nodes, &scratch, &epoll, &[])?;
    let remedy = format!("docker save {} | ssh node3 docker load", image("seedring-bench"));
    ensure!(status == 1 && said.contains(&remedy), "{status}: {said}");
    nodes.load(3, &image("seedring-bench"))?;

    // Over the nodes' own network.
    let both = scenario("seedring, seedring-epoll");
    let (status, said, report) = run(&nodes, &scratch, &both, &[])?;
    let report = report.with_context(|| format!("no report, {status}: {said}"))?.to_string();
    ensure!(said.contains(&profile), "which profile the node has: {said}");
    ensure!(said.contains("10.78.0.1"), "where the target is: {said}");
    // One target failed, with its reason; the other one's figures are there.
    ensure!(status == 1 && report.contains("io_uring"), "{status}: {said}");
    for node in ["node2", "node3"] {
        ensure!(report.contains(node), "no results of {node}: {report}");
    }

    // Over a network that is made for the run, with one agent on each of the other nodes.
    let overlay = ["--network", "overlay", "--agents-per-node"];
    let (status, said, report) = run(&nodes, &scratch, &epoll, &overlay)?;
    ensure!(status == 0 && said.contains("2 of 2 agents are there"), "{status}: {said}");
    let report = report.context("a report")?.to_string();
    ensure!(report.contains("node2") && report.contains("node3"), "{report}");
    Ok(())
}
