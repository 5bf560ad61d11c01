//! Owns: one container, its end, and a volume. Never: waits without a limit.
//! Flow: `mod.rs`.

use super::{docker, try_docker, unused_name};
use crate::interop::wait_until;
use anyhow::{Context, Result, bail, ensure};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const HEALTHY_LIMIT: Duration = Duration::from_secs(30);

/// Removed when dropped, with its anonymous volumes.
#[derive(Debug)]
pub struct Container {
    name: String,
}

impl Container {
    /// `docker run -d` with these options, image and command.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let container = Self { name: unused_name() };
        docker(&[&["run", "-d", "--name", &container.name], arguments].concat())?;
        Ok(container)
    }

    /// What `docker inspect -f FORMAT` says.
    pub fn inspect(&self, format: &str) -> Result<String> {
        docker(&["inspect", "-f", format, &self.name])
    }

    pub fn address(&self) -> Result<Ipv4Addr> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        self.inspect(format)?.parse().context("the container's address")
    }

    /// A line of the /proc status of its first process, without its name.
    pub fn status(&self, field: &str) -> Result<String> {
        let pid = self.inspect("{{.State.Pid}}")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let words: Vec<_> = line.context("no such field")?.split_whitespace().collect();
        Ok(words.join(" "))
    }

    pub fn logs(&self) -> Result<String> {
        Ok(try_docker(&["logs", &self.name])?.1)
    }

    /// Exit status and output of a command inside.
    pub fn exec(&self, command: &[&str]) -> Result<(i32, String)> {
        try_docker(&[&["exec", &self.name], command].concat())
    }

    /// Files of its root that are not as in the image.
    pub fn changes(&self) -> Result<String> {
        docker(&["diff", &self.name])
    }

    /// By the image's own health check.
    pub fn wait_healthy(&self) -> Result<()> {
        let healthy = wait_until("a healthy container", HEALTHY_LIMIT, || {
            self.check_running()?;
            Ok((self.inspect("{{.State.Health.Status}}")? == "healthy").then_some(()))
        });
        healthy.with_context(|| format!("it said: {}", self.logs().unwrap_or_default()))
    }

    /// Until its log holds all of these.
    pub fn wait_for_text(&self, wanted: &[&str]) -> Result<String> {
        let found = wait_until("words in its log", HEALTHY_LIMIT, || {
            let log = self.logs()?;
            Ok(wanted.iter().all(|text| log.contains(text)).then_some(log))
        });
        found.with_context(|| format!("{wanted:?} in: {}", self.logs().unwrap_or_default()))
    }

    fn check_running(&self) -> Result<()> {
        ensure!(self.inspect("{{.State.Running}}")? == "true", "it ended: {}", self.logs()?);
        Ok(())
    }

    /// Asks it to end within `grace`: its exit status and how long that took. (137: it was killed.)
    pub fn stop(&self, grace: Duration) -> Result<(i32, Duration)> {
        let began = Instant::now();
        docker(&["stop", "-t", &grace.as_secs().to_string(), &self.name])?;
        Ok((self.inspect("{{.State.ExitCode}}")?.parse()?, began.elapsed()))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: {}", self.name, self.logs().unwrap_or_default());
        }
        let _ = try_docker(&["rm", "-f", "-v", &self.name]);
    }
}

/// A named volume; removed when dropped, which is after its containers.
#[derive(Debug)]
pub struct Volume {
    name: String,
}

impl Volume {
    pub fn new() -> Result<Self> {
        let volume = Self { name: unused_name() };
        docker(&["volume", "create", &volume.name])?;
        Ok(volume)
    }

    /// As an option `-v`.
    pub fn at(&self, path: &str) -> String {
        format!("{}:{path}", self.name)
    }

    /// Where the daemon keeps it, for a look from outside.
    pub fn path(&self) -> Result<std::path::PathBuf> {
        let path = docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", &self.name])?;
        if !std::path::Path::new(&path).is_dir() {
            bail!("{path} is not on this machine: the tests need a local daemon");
        }
        Ok(path.into())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = try_docker(&["volume", "rm", "-f", &self.name]);
    }
}
