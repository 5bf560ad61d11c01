//! Owns: a Swarm of several daemons, each in a network namespace with a name of its own,
//! joined by a bridge: several machines, as far as Docker can tell.
//! Never: touches the machine's own network or daemon. Flow: `mod.rs`.

use super::{docker, try_docker, unused_name};
use crate::interop::wait_until;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Ended and removed when dropped.
#[derive(Debug)]
pub struct Nodes {
    bridge: String,
    daemons: Vec<Daemon>,
}

#[derive(Debug)]
struct Daemon {
    namespace: String,
    host: String,
    /// Its sockets: their paths have to be short.
    run: PathBuf,
    data: PathBuf,
    process: Child,
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output().context("ip")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {}", complaint.trim());
    Ok(())
}

impl Nodes {
    /// `count` of them, called node1 and so on; the first manages. `options`: of its daemon alone.
    pub fn start(tmp: &str, count: usize, options: &[String]) -> Result<Self> {
        let bridge = unused_name();
        ip(&format!("netns add {bridge}"))?;
        let mut nodes = Self { bridge, daemons: Vec::new() };
        let bridge = &nodes.bridge;
        ip(&format!("-n {bridge} link add br0 type bridge"))?;
        ip(&format!("-n {bridge} link set br0 up"))?;
        for number in 1..=count {
            let options = if number == 1 { options } else { &[] };
            let daemon = Daemon::start(tmp, &nodes.bridge, number, options)?;
            nodes.daemons.push(daemon);
        }
        for daemon in &nodes.daemons {
            wait_until("a daemon", LIMIT, || Ok(daemon.answers().then_some(())))
                .with_context(|| daemon.log())?;
        }
        nodes.docker(1, &["swarm", "init", "--advertise-addr", "10.78.0.1"])?;
        let token = nodes.docker(1, &["swarm", "join-token", "-q", "worker"])?;
        for number in 2..=count {
            nodes.docker(number, &["swarm", "join", "--token", &token, "10.78.0.1:2377"])?;
        }
        Ok(nodes)
    }

    fn daemon(&self, number: usize) -> &Daemon {
        &self.daemons[number - 1]
    }

    /// As DOCKER_HOST.
    pub fn host(&self, number: usize) -> &str {
        &self.daemon(number).host
    }

    pub fn docker(&self, number: usize, arguments: &[&str]) -> Result<String> {
        docker(&[&["--host", self.host(number)], arguments].concat())
    }

    /// An image of the tests' daemon.
    pub fn load(&self, number: usize, image: &str) -> Result<()> {
        let mut save = Command::new("docker")
            .args(["save", image])
            .stdout(Stdio::piped())
            .spawn()
            .context("docker save")?;
        let archive = save.stdout.take().context("its output")?;
        let mut load = Command::new("docker");
        load.args(["--host", self.host(number), "load", "-q"]).stdin(archive);
        let loaded = load.output().context("docker load")?;
        ensure!(save.wait()?.success() && loaded.status.success(), "docker save, docker load");
        Ok(())
    }

    /// A command on this node's network.
    pub fn on(&self, number: usize, program: &Command) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.daemon(number).namespace));
        command.arg(program.get_program()).args(program.get_args());
        command
    }
}

impl Daemon {
    fn start(tmp: &str, bridge: &str, number: usize, options: &[String]) -> Result<Self> {
        let namespace = unused_name();
        ip(&format!("netns add {namespace}"))?;
        // Named by the namespace that it ends up in: the machine's own has no room for two eth0.
        let end = format!("port{number}");
        ip(&format!("-n {bridge} link add {end} type veth peer name eth0 netns {namespace}"))?;
        ip(&format!("-n {bridge} link set {end} master br0 up"))?;
        for rest in [
            "link set lo up",
            "link set eth0 up",
            &format!("addr add 10.78.0.{number}/24 dev eth0"),
            "route add default via 10.78.0.254",
        ] {
            ip(&format!("-n {namespace} {rest}"))?;
        }
        let run = Path::new("/run").join(&namespace);
        let data = Path::new(tmp).join(&namespace);
        fs::create_dir_all(&run)?;
        fs::create_dir_all(&data)?;
        let host = format!("unix://{}/docker.sock", run.display());
        let log = File::create(run.join("log"))?;
        // Not `ip netns exec`: it mounts a /sys of its own, without cgroups.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}")).args(["unshare", "--uts", "sh", "-c"]);
        command.arg(format!("hostname node{number} && exec dockerd \"$@\"")).arg("dockerd");
        command.args(["--host", &host, "--data-root"]).arg(data.join("data"));
        command.arg("--exec-root").arg(run.join("exec")).arg("--pidfile").arg(run.join("pid"));
        command.args(options).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().context("dockerd")?;
        Ok(Self { namespace, host, run, data, process })
    }

    fn answers(&self) -> bool {
        try_docker(&["--host", &self.host, "info"]).is_ok_and(|(status, _)| status == 0)
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.run.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(10).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn end(&mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        wait_until("the end of a daemon", LIMIT, || Ok(self.process.try_wait()?))?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{}: {error:#}", self.namespace);
            let _ = self.process.kill();
        }
        // It leaves namespaces of its networks mounted.
        for entry in fs::read_dir(self.run.join("exec/netns")).into_iter().flatten().flatten() {
            let _ = Command::new("umount").arg(entry.path()).status();
        }
        let _ = ip(&format!("netns del {}", self.namespace));
        let _ = fs::remove_dir_all(&self.run);
        let _ = fs::remove_dir_all(&self.data);
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.daemons.clear();
        let _ = ip(&format!("netns del {}", self.bridge));
    }
}
