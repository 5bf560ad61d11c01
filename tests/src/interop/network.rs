//! Owns: a private network of hosts, each a network namespace, on one bridge.
//! Never: touches a namespace or an interface that it did not make; routes nothing outside.
//! Flow: a test makes a [`Network`], adds hosts, runs programs there; dropping it removes all.
//!
//! Hosts are needed because several clients refuse peers and trackers at 127.x addresses. All
//! networks use the same 10.77.0.0/24: each lies in namespaces of its own.

use anyhow::{Context, Result, bail};
use std::net::Ipv4Addr;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// Names of namespaces made here start so; the process id follows, so that leftovers are told.
const PREFIX: &str = "seedring-t";
const HOSTS_MAX: u8 = 100;

/// Counts the networks of this process; nothing is published through it.
static NETWORKS: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub struct Network {
    switch: String,
    hosts: Vec<Host>,
}

/// One host: cheap to clone, valid while its [`Network`] lives.
#[derive(Debug, Clone)]
pub struct Host {
    namespace: String,
    address: Ipv4Addr,
}

impl Network {
    /// A network with `hosts` hosts, 10.77.0.1 upwards.
    pub fn new(hosts: u8) -> Result<Self> {
        assert!(hosts <= HOSTS_MAX);
        if !rustix::process::geteuid().is_root() {
            bail!(
                "the interoperability tests make network namespaces: run them as root \
                 (`sudo tests/run interop`)"
            );
        }
        sweep_leftovers();
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let switch = format!("{PREFIX}{}-{number}", std::process::id());
        let mut network = Self { switch: switch.clone(), hosts: Vec::new() };
        ip(&["netns", "add", &switch]).context(
            "make a network namespace (needs CAP_SYS_ADMIN and `ip` of iproute2; a container \
             needs --privileged)",
        )?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for last in 1..=hosts {
            network.add_host(last)?;
        }
        Ok(network)
    }

    fn add_host(&mut self, last: u8) -> Result<()> {
        let namespace = format!("{}-{last}", self.switch);
        let address = Ipv4Addr::new(10, 77, 0, last);
        let (port, with_prefix) = (format!("port{last}"), format!("{address}/24"));
        ip(&["netns", "add", &namespace])?;
        self.hosts.push(Host { namespace: namespace.clone(), address });
        ip(&[
            "-n",
            &self.switch,
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &namespace,
        ])?;
        ip(&["-n", &self.switch, "link", "set", &port, "master", "br0", "up"])?;
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
        ip(&["-n", &namespace, "addr", "add", &with_prefix, "dev", "eth0"])?;
        // cubic by route: a namespace may not choose a restricted algorithm by sysctl, and bbr
        // without an fq queue arms a timer for each segment.
        ip(&[
            "-n",
            &namespace,
            "route",
            "change",
            "10.77.0.0/24",
            "dev",
            "eth0",
            "src",
            &address.to_string(),
            "congctl",
            "cubic",
        ])
    }

    /// Host `index` counts from 0: it has the address 10.77.0.(index + 1).
    pub fn host(&self, index: usize) -> Host {
        self.hosts[index].clone()
    }

    /// Pulls a host's plug: nothing that it sends arrives, nobody hears of its end.
    pub fn unplug(&self, index: usize) -> Result<()> {
        ip(&["-n", &self.switch, "link", "set", "dev", &format!("port{}", index + 1), "down"])
    }

    /// From now on nothing goes from one of these hosts to the other, by any protocol. (A route
    /// that blackholes does not stop a socket that is bound to an interface, as clients' are.)
    pub fn separate(&self, one: usize, other: usize) -> Result<()> {
        for index in [one, other] {
            let port = format!("port{}", index + 1);
            let isolate = ["link", "set", "dev", &port, "type", "bridge_slave", "isolated", "on"];
            ip(&[&["-n", &self.switch], &isolate[..]].concat())?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            remove_namespace(&host.namespace);
        }
        remove_namespace(&self.switch);
    }
}

impl Host {
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A command on this host. It dies with the thread that starts it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace, "setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program)
            .env("LC_ALL", "C.UTF-8")
            .env_remove("http_proxy")
            .env_remove("https_proxy")
            .env_remove("all_proxy");
        command
    }

    /// Runs a command to its end and returns what it printed; its failure is an error.
    pub fn output(&self, argv: &[&str]) -> Result<Vec<u8>> {
        let (program, arguments) = argv.split_first().context("no command")?;
        checked(self.command(program).args(arguments), argv)
    }

    /// From now on nobody reaches TCP port `port` here: what it would answer is dropped.
    pub fn block_tcp_port(&self, port: u16) -> Result<()> {
        let port = port.to_string();
        ip(&["-n", &self.namespace, "rule", "add", "ipproto", "tcp", "sport", &port, "blackhole"])
    }

    /// GET by curl on this host; an HTTP error status or no answer within 5 s is an error.
    pub fn http_get(&self, url: &str) -> Result<Vec<u8>> {
        self.output(&["curl", "--silent", "--show-error", "--fail", "--max-time", "5", url])
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    checked(Command::new("ip").args(arguments), arguments).map(drop)
}

fn checked(command: &mut Command, argv: &[&str]) -> Result<Vec<u8>> {
    let Output { status, stdout, stderr } =
        command.output().with_context(|| format!("start {argv:?}"))?;
    if !status.success() {
        bail!("{argv:?}: {status}: {}", String::from_utf8_lossy(&stderr).trim());
    }
    Ok(stdout)
}

/// Ends what still runs in the namespace, then removes it.
fn remove_namespace(name: &str) {
    if let Ok(out) = Command::new("ip").args(["netns", "pids", name]).output() {
        for pid in String::from_utf8_lossy(&out.stdout).lines() {
            let pid = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// Removes the namespaces of test processes that are gone (killed by a time limit, say).
fn sweep_leftovers() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let Some(pid) = owner.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
            remove_namespace(&name);
        }
    }
}
