//! Owns: one running program, its log file and its end.
//! Never: outlives its owner; waits without a limit.
//! Flow: seeder, tracker and clients each hold one; a failure quotes the end of its log.

use super::wait_until;
use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How much of a log a failure shows.
const LOG_TAIL_BYTES: usize = 4096;

#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both outputs in the file `log` and no input.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let errors = file.try_clone()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {name} (is it installed? `tests/run deps`)"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_path_buf() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it printed until now.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// An error that names the program and quotes the end of its log.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        let log = self.log();
        let mut start = log.len().saturating_sub(LOG_TAIL_BYTES);
        while !log.is_char_boundary(start) {
            start += 1;
        }
        anyhow!("{}: {what}\n--- end of its log ---\n{}\n---", self.name, &log[start..])
    }

    /// An error where the program has already ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => Err(self.failure(&format!("ended early ({status})"))),
            None => Ok(()),
        }
    }

    /// Waits until its log holds a match: `find` is given the whole log.
    pub fn wait_for_log<T>(
        &mut self,
        what: &str,
        limit: Duration,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        let found = wait_until(what, limit, || {
            let found = find(&self.log());
            if found.is_none()
                && let Some(status) = self.child.try_wait()?
            {
                bail!("ended early ({status}), awaited {what}");
            }
            Ok(found)
        });
        found.map_err(|error| self.failure(&format!("{error:#}")))
    }

    /// Waits for its own end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = format!("the end of {}", self.name);
        wait_until(&name, limit, || Ok(self.child.try_wait()?))
            .map_err(|error| self.failure(&format!("{error:#}")))
    }

    /// Waits for its end and demands success.
    pub fn wait_success(&mut self, limit: Duration) -> Result<()> {
        let status = self.wait(limit)?;
        if !status.success() {
            bail!(self.failure(&status.to_string()));
        }
        Ok(())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.signal_to(i32::try_from(self.child.id())?, signal)
    }

    /// To the one program that it has started, of which it is only the frame.
    pub fn signal_child(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let child = children.split_whitespace().next().context("it has no child")?;
        self.signal_to(child.parse()?, signal)
    }

    fn signal_to(&self, pid: i32, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(pid).context("a process id out of range")?;
        rustix::process::kill_process(pid, signal)
            .map_err(|error| self.failure(&format!("signal {signal:?}: {error}")))
    }

    /// SIGTERM, then waits for its end.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(limit)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{:#}", self.failure("was running when the test failed"));
        }
    }
}
