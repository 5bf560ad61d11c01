//! Owns: the Swarm of the tests' daemon, one test at a time, a stack in it, and what a run leaves.
//! Never: touches a Swarm that was there before the test. Flow: `mod.rs`.

use super::project::of_this_machine;
use super::{docker, run, try_docker, unused_name};
use crate::interop::{seedring_binary, wait_until};
use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// On all that `seedring-bench swarm run` makes.
const LABEL: &str = "label=io.seedring.bench.run";

/// A daemon is in one Swarm at a time: others wait until this is dropped.
#[derive(Debug)]
pub struct Swarm {
    _turn: File,
    is_ours: bool,
}

impl Swarm {
    /// In none yet.
    pub fn outside(tmp: &str) -> Result<Self> {
        let path = Path::new(tmp).join("swarm.lock");
        let turn = File::create(&path).with_context(|| path.display().to_string())?;
        flock(&turn, FlockOperation::LockExclusive)?;
        Ok(Self { _turn: turn, is_ours: false })
    }

    /// A Swarm of this node alone; the daemon's own, if it is in one.
    pub fn init(tmp: &str) -> Result<Self> {
        let mut swarm = Self::outside(tmp)?;
        if !is_active()? {
            // Loopback: nobody else is to join.
            let address = ["--advertise-addr=127.0.0.1", "--listen-addr=127.0.0.1:2377"];
            docker(&[&["swarm", "init"][..], &address].concat())?;
            swarm.is_ours = true;
        }
        Ok(swarm)
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = bench().and_then(|mut it| Ok(it.args(["swarm", "clean"]).output()?));
            let _ = try_docker(&["swarm", "leave", "--force"]);
        }
    }
}

/// A stack of a file in docker/, deployed by this Swarm's only node. Removed when dropped.
#[derive(Debug)]
pub struct Stack {
    name: String,
    secret: &'static str,
}

impl Stack {
    /// `secret`: one that the file wants to be there, with its value's file.
    pub fn deploy(
        file: &str,
        variables: &[(&str, &str)],
        secret: (&'static str, &Path),
    ) -> Result<Self> {
        let value = secret.1.display().to_string();
        docker(&["secret", "create", secret.0, &value])?;
        let stack = Self { name: unused_name(), secret: secret.0 };
        let mut command = Command::new("docker");
        command.args(["stack", "deploy", "-c", file, &stack.name]);
        command.current_dir(super::file("")).envs(of_this_machine());
        let (status, text) = run(command.envs(variables.iter().copied()))?;
        ensure!(status == 0, "docker stack deploy -c {file}: status {status}: {text}");
        Ok(stack)
    }

    /// What its services' tasks said last.
    pub fn logs(&self) -> String {
        let services = ["controller", "agent", "comparison"];
        let log = |service| {
            let name = format!("{}_{service}", self.name);
            let tasks = try_docker(&["service", "ps", "--no-trunc", &name]);
            let log = try_docker(&["service", "logs", "--tail", "40", &name]);
            format!("{:?}\n{:?}\n", tasks, log)
        };
        services.map(log).concat()
    }

    /// Removed, and its volumes with it; nothing more may have its label.
    pub fn end(self) -> Result<()> {
        let filter = format!("label=com.docker.stack.namespace={}", self.name);
        docker(&["stack", "rm", &self.name])?;
        docker(&["secret", "rm", self.secret])?;
        wait_until("the end of a stack", LIMIT, || {
            let containers = docker(&["ps", "-aq", "--filter", &filter])?;
            Ok(containers.is_empty().then_some(()))
        })?;
        for volume in docker(&["volume", "ls", "-q", "--filter", &filter])?.lines() {
            docker(&["volume", "rm", volume])?;
        }
        for list in ["service", "secret", "config", "network"] {
            let left = docker(&[list, "ls", "-q", "--filter", &filter])?;
            ensure!(left.is_empty(), "docker {list} ls: {left} is left behind");
        }
        Ok(())
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = try_docker(&["stack", "rm", &self.name]);
        let _ = try_docker(&["secret", "rm", self.secret]);
    }
}

pub fn is_active() -> Result<bool> {
    Ok(docker(&["info", "-f", "{{.Swarm.LocalNodeState}}"])? == "active")
}

/// The load generator that was built with this test.
pub fn bench() -> Result<Command> {
    let test = std::env::current_exe().context("where this test binary lies")?;
    let beside = test.parent().and_then(Path::parent).map(|folder| folder.join("seedring-bench"));
    let path = match beside.filter(|path| path.exists()) {
        Some(path) => path,
        None => seedring_binary()?.with_file_name("seedring-bench"),
    };
    ensure!(path.exists(), "no {}: `tests/run build` makes it", path.display());
    Ok(Command::new(path))
}

/// What runs have left in the daemon that `DOCKER_HOST` or `host` names; empty if it is well.
pub fn left_behind(host: Option<&str>) -> Result<String> {
    let mut left = String::new();
    let lists: [&[&str]; 6] = [
        &["service", "ls", "-q"],
        &["secret", "ls", "-q"],
        &["config", "ls", "-q"],
        &["network", "ls", "-q"],
        &["ps", "-aq"],
        &["volume", "ls", "-q"],
    ];
    for list in lists {
        let host = host.map_or(Vec::new(), |host| vec!["--host", host]);
        let (status, found) = try_docker(&[&host, list, &["--filter", LABEL]].concat())?;
        // Workers and daemons outside of a Swarm know no services: nothing is there.
        if status == 0 && !found.trim().is_empty() {
            left.push_str(&format!("docker {}: {}; ", list.join(" "), found.trim()));
        }
    }
    Ok(left)
}
