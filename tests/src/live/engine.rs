//! Owns: one engine process on a loopback address, its configuration file and its state.
//! Never: reads more than its users can: its output, its sockets, its exit status.
//! Flow: written by a test as YAML, started, asked by peers, signalled, stopped.

use crate::interop::{Process, repository_root, seedring_binary, wait_until};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

const PORT: u16 = 6881;
/// The way to the kernel is `SEEDRING_TEST_IO`'s, so that all tests can be run on the other one.
pub const IO: &str = "io: ${SEEDRING_TEST_IO:-auto}\n";
const START_LIMIT: Duration = Duration::from_secs(60);

/// Numbers the addresses of this process; nothing is published through it.
static NEXT_ADDRESS: AtomicU8 = AtomicU8::new(1);

/// A loopback address that no other running test has: process id and a count make it.
pub fn loopback_address() -> Ipv4Addr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 0x80, low, NEXT_ADDRESS.fetch_add(1, Ordering::Relaxed))
}

#[derive(Debug)]
pub struct Engine {
    process: Process,
    folder: PathBuf,
    address: SocketAddr,
}

impl Engine {
    /// Starts with `yaml` after the lines that place it, and waits until it listens.
    pub fn start(folder: &Path, address: Ipv4Addr, yaml: &str) -> Result<Self> {
        Self::start_with(folder, address, yaml, &[])
    }

    /// The same behind `wrapper`, a command that runs its arguments (`prlimit`, `setpriv`).
    pub fn start_with(
        folder: &Path,
        address: Ipv4Addr,
        yaml: &str,
        wrapper: &[&str],
    ) -> Result<Self> {
        let mut engine = Self::launch(folder, address, yaml, wrapper)?;
        let address = engine.address;
        wait_until("the engine to listen", START_LIMIT, || {
            engine.process.check_running()?;
            Ok(TcpStream::connect(address).ok())
        })?;
        Ok(engine)
    }

    /// The same without waiting: for configurations that must fail.
    pub fn launch(folder: &Path, address: Ipv4Addr, yaml: &str, wrapper: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let address = SocketAddr::from((address, PORT));
        let configuration = Self::write_configuration(folder, address, yaml)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(wrapper);
        command.arg(seedring_binary()?).arg("run").arg(&configuration);
        command.current_dir(folder);
        let process = Process::start("seedring", &mut command, &folder.join("seedring.log"))?;
        Ok(Self { process, folder: folder.to_path_buf(), address })
    }

    fn write_configuration(folder: &Path, address: SocketAddr, yaml: &str) -> Result<PathBuf> {
        let path = folder.join("seedring.yaml");
        let head = format!(
            "state_dir: state\nbase_dir: {}\nlisten: [\"{address}\"]\nmemory: {{ cache: 32MiB }}\n",
            serde_json::to_string(folder.to_str().context("a path outside UTF-8")?)?
        );
        let io = if yaml.starts_with("io:") { "" } else { IO };
        std::fs::write(&path, head + io + yaml)?;
        Ok(path)
    }

    /// Writes another configuration and sends SIGHUP.
    pub fn reload(&self, yaml: &str) -> Result<()> {
        Self::write_configuration(&self.folder, self.address, yaml)?;
        self.process.signal(Signal::HUP)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until its output holds all of these.
    pub fn wait_for_text(&mut self, wanted: &[&str]) -> Result<()> {
        let what = format!("{wanted:?} in the engine's output");
        self.process.wait_for_log(&what, Duration::from_secs(30), |log| {
            wanted.iter().all(|text| log.contains(text)).then_some(())
        })
    }

    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Runs a command that speaks to this engine; its failure is an error.
    pub fn command(&self, words: &[&str]) -> Result<String> {
        let state_dir = self.state_dir().display().to_string();
        let (status, text) = run_program(&[words, &["--state-dir", &state_dir]].concat())?;
        if status != 0 {
            bail!("seedring {words:?}: status {status}: {text}");
        }
        Ok(text)
    }

    /// What `seedring list` says of one torrent; `None`: it does not know it (yet).
    pub fn torrent(&self, info_hash: &str) -> Result<Option<Value>> {
        let report: Value = serde_json::from_str(&self.command(&["list", "--json"])?)?;
        let torrents = report["torrents"].as_array().context("a list of torrents")?;
        Ok(torrents.iter().find(|torrent| torrent["info_hash"] == info_hash).cloned())
    }

    /// Waits until `seedring list` says that the torrent is in this state.
    pub fn wait_for_state(
        &mut self,
        info_hash: &str,
        state: &str,
        limit: Duration,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let reached = wait_until(&format!("the state `{state}`"), limit, || {
            self.process.check_running()?;
            // Between its start and its control socket nobody answers.
            last = self.torrent(info_hash).ok().flatten().unwrap_or_default();
            Ok((last["state"] == state).then(|| last.clone()))
        });
        reached.map_err(|error| self.process.failure(&format!("{error:#}; it is {last}")))
    }

    /// SIGKILL: it has no say in its end.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(Duration::from_secs(10)).map(drop)
    }

    /// SIGTERM; it must end by itself, with success.
    pub fn stop(mut self) -> Result<String> {
        let status = self.process.terminate(Duration::from_secs(20))?;
        if !status.success() {
            return Err(self.process.failure(&format!("ended with {status} after SIGTERM")));
        }
        Ok(self.process.log())
    }
}

/// Runs the engine's program to its end: exit status and everything it printed.
pub fn run_program(arguments: &[&str]) -> Result<(i32, String)> {
    run_program_behind(&["env"], arguments)
}

/// The same behind `wrapper`, a command that runs its arguments.
pub fn run_program_behind(wrapper: &[&str], arguments: &[&str]) -> Result<(i32, String)> {
    let (program, first) = wrapper.split_first().context("a wrapper")?;
    let mut command = Command::new(program);
    command.args(first).arg(seedring_binary()?).args(arguments);
    let output = command.current_dir(repository_root()).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
}

/// SIGKILL to a process that may be gone already.
pub(super) fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}
