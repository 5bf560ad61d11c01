//! Owns: `seedring-bench swarm` in a real Swarm of one node: what comes out, what is said where it
//! can't go on, and that nothing is left, however it ends.
//! Never: pulls an image; joins a Swarm of others.
//! Flow: the daemon and images of `tests/run docker` -> a Swarm -> runs, one at a time.

use anyhow::{Context, Result, ensure};
use seedring_tests::docker::swarm::{Stack, Swarm, bench, is_active, left_behind};
use seedring_tests::docker::{check_quick, docker, image};
use seedring_tests::interop::{Process, Scratch, repository_root, wait_until};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const LIMIT: Duration = Duration::from_secs(120);

/// What `quick.yaml` does, in a few seconds.
const SHORT: &str = "title: Four agents, in some seconds\ncompare: seeding\ntargets: [seedring]\n\
                     size: 16MiB\nconnections: [8]\nrepeats: 1\nseconds: 1\nwarm_up_seconds: 0.2\n\
                     open_loop: false\n";

fn scenario(scratch: &Scratch, text: &str) -> Result<PathBuf> {
    let path = scratch.path().join("short.yaml");
    fs::write(&path, text)?;
    Ok(path)
}

/// `swarm run` of this image, on a port of the test's own.
fn swarm_run(scratch: &Scratch, scenario: &Path, port: u16) -> Result<Command> {
    let mut command = bench()?;
    command.args(["swarm", "run"]).arg(scenario).arg("--image").arg(image("seedring-bench"));
    // Limits that the daemon may not raise would keep the containers from starting.
    command.args(["--nofile=0", "--memlock=0", "--port", &port.to_string(), "--out"]);
    command.arg(scratch.path().join("report"));
    Ok(command)
}

/// Its exit status, and all that it printed.
fn outcome(command: &mut Command) -> Result<(i32, String)> {
    let output = command.output().context("seedring-bench")?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status.code().unwrap_or(-1), text))
}

fn check_nothing_is_left() -> Result<()> {
    let left = left_behind(None)?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

#[test]
fn what_is_wrong_is_said_before_anything_is_made() -> Result<()> {
    let scratch = Scratch::new(TMP, "swarm_wrong")?;
    let good = scenario(&scratch, SHORT)?;
    let said = |command: &mut Command, words: &[&str]| -> Result<()> {
        let (status, text) = outcome(command)?;
        for word in words {
            ensure!(status == 1 && text.contains(word), "{status}, without {word:?}: {text}");
        }
        check_nothing_is_left()
    };
    let nobody = ["--host", "unix:///nowhere/docker.sock"];
    let gone = ["/nowhere/docker.sock is not there", "--host or DOCKER_HOST"];
    said(swarm_run(&scratch, &good, 26883)?.args(nobody), &gone)?;
    let outside = Swarm::outside(TMP)?;
    if !is_active()? {
        said(&mut swarm_run(&scratch, &good, 26883)?, &["in no Swarm", "docker swarm init"])?;
        said(bench()?.args(["swarm", "clean"]), &["docker swarm init"])?;
    }
    drop(outside);
    let _swarm = Swarm::init(TMP)?;
    let run = || swarm_run(&scratch, &good, 26883);
    said(run()?.args(["--target-image", "nobody/knows:it"]), &["nobody/knows:it", "docker/build"])?;
    said(run()?.args(["--target-node", "atlantis"]), &["atlantis", "nodes that take tasks are"])?;
    said(run()?.args(["--network", "bridge"]), &["this node alone", "docker network create"])?;
    // The scenario is looked at first: no engine is needed to be told of a mistake.
    let bad = scenario(&scratch, &SHORT.replace("connections: [8]", "conections: [8]"))?;
    let mistake = ["conections", "line 5", "connections"];
    said(swarm_run(&scratch, &bad, 26883)?.args(nobody), &mistake)
}

#[test]
fn a_scenario_runs_with_four_agents_and_leaves_nothing() -> Result<()> {
    let _swarm = Swarm::init(TMP)?;
    let scratch = Scratch::new(TMP, "swarm_runs")?;
    let quick = repository_root().join("bench/scenarios/quick.yaml");
    let (status, text) = outcome(&mut swarm_run(&scratch, &quick, 26884)?)?;
    ensure!(status == 0, "{status}: {text}");
    ensure!(text.contains("services can't name a seccomp profile") || text.contains("our profile"));
    let report = scratch.path().join("report");
    let json: Value = serde_json::from_slice(&fs::read(report.join("quick.json"))?)?;
    check_quick(&json)?;
    let html = fs::read_to_string(report.join("quick.html"))?;
    ensure!(html.contains("<svg"), "a page with plots");
    let node = docker(&["info", "-f", "{{.Name}}"])?;
    let markdown = fs::read_to_string(report.join("quick.md"))?;
    for agent in ["agent-1", "agent-2", "agent-3", "agent-4"] {
        let has = |text: &str| text.contains(agent) && text.contains(&node);
        ensure!(has(&markdown), "no result of {agent} on {node}: {markdown}");
    }
    check_nothing_is_left()
}

/// The file of those who want `docker stack deploy`, on a node that is target and load together.
#[test]
fn the_stack_file_gives_a_report() -> Result<()> {
    let _swarm = Swarm::init(TMP)?;
    let scratch = Scratch::new(TMP, "swarm_stack")?;
    let short = scenario(&scratch, SHORT)?.display().to_string();
    let token = scratch.path().join("token");
    fs::write(&token, "of-this-test-alone")?;
    let node = docker(&["info", "-f", "{{.Swarm.NodeID}}"])?;
    docker(&["node", "update", "--label-add", "seedring-bench=target", &node])?;
    let variables = [
        ("TARGET", "127.0.0.1"),
        ("LOAD", "target"),
        ("AGENTS", "2"),
        ("SEEDRING_BENCH_PORT", "26974"),
        ("SEEDRING_PORT", "26887"),
        ("SCENARIO", &*short),
    ];
    let stack =
        Stack::deploy("stack.bench.yaml", &variables, ("seedring-bench-token", token.as_path()))?;
    let report = scratch.path().join("report");
    let mut watch = bench()?;
    watch.args(["watch", "127.0.0.1:26974", "--token-file"]).arg(&token).arg("--out").arg(&report);
    let (status, text) = outcome(&mut watch)?;
    ensure!(status == 0, "{status}: {text}\n{}", stack.logs());
    let json: Value = serde_json::from_slice(&fs::read(report.join("scenario.json"))?)?;
    ensure!(json["report"]["runs"].as_array().is_some_and(|runs| !runs.is_empty()), "{json}");
    let markdown = fs::read_to_string(report.join("scenario.md"))?;
    for agent in ["agent-1", "agent-2"] {
        ensure!(markdown.contains(agent), "no result of {agent}: {markdown}");
    }
    stack.end()
}

#[test]
fn a_target_that_fails_is_in_the_report_and_nothing_is_left() -> Result<()> {
    let _swarm = Swarm::init(TMP)?;
    let scratch = Scratch::new(TMP, "swarm_fails")?;
    let short = scenario(&scratch, SHORT)?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let (status, text) = outcome(&mut swarm_run(&scratch, &short, port)?)?;
    ensure!(status == 1, "{status}: {text}");
    ensure!(text.contains(&port.to_string()), "the port is named: {text}");
    check_nothing_is_left()
}

/// A run that takes longer than anybody waits.
fn endless(scratch: &Scratch, port: u16) -> Result<Process> {
    let long = scenario(scratch, &SHORT.replace("seconds: 1\n", "seconds: 300\n"))?;
    let mut command = swarm_run(scratch, &long, port)?;
    let mut run = Process::start("swarm run", &mut command, &scratch.path().join("log"))?;
    run.wait_for_log("agents at work", LIMIT, |log| log.contains("8 connections").then_some(()))?;
    Ok(run)
}

#[test]
fn ctrl_c_ends_it_in_order_and_nothing_is_left() -> Result<()> {
    let _swarm = Swarm::init(TMP)?;
    let scratch = Scratch::new(TMP, "swarm_interrupted")?;
    let mut run = endless(&scratch, 26885)?;
    run.signal(rustix::process::Signal::INT)?;
    let status = run.wait(LIMIT)?;
    ensure!(status.code() == Some(130), "{}", run.failure("not the status of Ctrl-C"));
    check_nothing_is_left()
}

/// What nothing could catch: `swarm clean` is there for it.
#[test]
fn clean_removes_what_a_killed_run_left() -> Result<()> {
    let _swarm = Swarm::init(TMP)?;
    let scratch = Scratch::new(TMP, "swarm_killed")?;
    let mut run = endless(&scratch, 26886)?;
    run.signal(rustix::process::Signal::KILL)?;
    run.wait(LIMIT)?;
    ensure!(left_behind(None)?.contains("service ls"), "a killed run removes nothing");
    let (status, listed) = outcome(bench()?.args(["swarm", "clean", "--list"]))?;
    let name = listed.trim().to_owned();
    ensure!(status == 0 && name.len() == 8, "the run's name: {listed}");
    let (status, text) = outcome(bench()?.args(["swarm", "clean", "--run", &name]))?;
    ensure!(status == 0 && text.contains(&name), "{status}: {text}");
    check_nothing_is_left()?;
    wait_until("nothing to clean", LIMIT, || {
        let (_, text) = outcome(bench()?.args(["swarm", "clean"]))?;
        Ok(text.contains("nothing is left").then_some(()))
    })
}
