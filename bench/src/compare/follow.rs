//! Owns: one process from before its start until it has done its work: the time, what it cost.
//! Never: knows what the work is; waits for the process (what it spent is read while /proc has it).
//! Flow: `Start::now` -> spawn -> `follow` -> `Work`.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use super::target::Running;
use crate::probe::{self, Memory, Reading};

/// Between two looks: what a time can be wrong by.
const LOOK: Duration = Duration::from_millis(2);
/// Memory is read each so many looks.
const LOOKS_A_SAMPLE: u32 = 10;

/// What says that the work is done.
#[derive(Clone, Debug)]
pub enum Done {
    /// It ends, with 0.
    Exit,
    /// It runs on, and this file is there.
    File(PathBuf),
    /// It runs on, and has printed this.
    Printed(&'static str),
}

/// Taken before the process is started.
pub struct Start {
    at: Instant,
    softirqd_seconds: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Work {
    /// From before the process was started until its work was done.
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub user_seconds: f64,
    /// Of the whole machine, meanwhile.
    pub softirqd_seconds: f64,
    pub peak_rss_bytes: u64,
    /// The most that any sample showed.
    pub peak_private_bytes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
}

impl Start {
    pub fn now() -> Self {
        Start { softirqd_seconds: probe::softirqd_seconds(), at: Instant::now() }
    }

    pub fn elapsed(&self) -> Duration {
        self.at.elapsed()
    }
}

/// Watches a process that was spawned after `start` until it is done, at most for `limit`.
pub fn follow(running: &Running, start: &Start, done: &Done, limit: Duration) -> Result<Work> {
    let mut peak = Memory::default();
    for look in 0_u32.. {
        let ended = running.ended()?;
        if let Some(status) = ended.filter(|status| *status != 0 || !matches!(done, Done::Exit)) {
            bail!("{} ended ({status}): {}", running.command, running.last_words());
        }
        let is_done = match done {
            Done::Exit => ended.is_some(),
            Done::File(path) => path.exists(),
            Done::Printed(text) => {
                fs::read(&running.log).is_ok_and(|log| String::from_utf8_lossy(&log).contains(text))
            }
        };
        if look.is_multiple_of(LOOKS_A_SAMPLE) || is_done {
            peak = peak.most(Memory::of(running.pid()).unwrap_or_default());
        }
        if is_done {
            break;
        }
        ensure!(
            start.elapsed() < limit,
            "{} was not done in {} s: {}",
            running.command,
            limit.as_secs(),
            running.last_words()
        );
        thread::sleep(LOOK);
    }
    let seconds = start.elapsed().as_secs_f64();
    let last = Reading::take(running.pid())?;
    Ok(Work {
        seconds,
        cpu_seconds: last.cpu_seconds,
        user_seconds: last.user_seconds,
        softirqd_seconds: last.softirqd_seconds - start.softirqd_seconds,
        peak_rss_bytes: peak.peak_rss_bytes,
        peak_private_bytes: peak.private_bytes,
        read_bytes: last.read_bytes,
        written_bytes: last.written_bytes,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::compare::target::spawn;

    fn shell(name: &str, script: &str) -> (Start, Running, PathBuf) {
        let folder = std::env::temp_dir().join(format!("follow-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let start = Start::now();
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(&folder);
        (start, spawn(command, &folder).expect("sh"), folder)
    }

    #[test]
    fn an_ended_process_is_still_read() {
        let script = "dd if=/dev/zero of=x bs=64k count=16 2>/dev/null; i=0; \
                      while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 0.1";
        let (start, running, folder) = shell("exit", script);
        let work = follow(&running, &start, &Done::Exit, Duration::from_secs(60)).expect("done");
        assert!(work.cpu_seconds > 0.0 && work.seconds > 0.1 && work.peak_rss_bytes > 0);
        fs::remove_dir_all(folder).ok();
    }

    #[test]
    fn a_file_or_a_word_ends_the_work_of_one_that_runs_on() {
        for (name, done) in [("file", Done::File("x".into())), ("word", Done::Printed("ready"))] {
            let (start, running, folder) = shell(name, "echo ready; : > x; sleep 60");
            let done = match done {
                Done::File(path) => Done::File(folder.join(path)),
                other => other,
            };
            follow(&running, &start, &done, Duration::from_secs(10)).expect("done");
            assert_eq!(running.ended().expect("its state"), None);
            fs::remove_dir_all(folder).ok();
        }
    }

    #[test]
    fn a_failure_and_a_limit_are_errors() {
        let (start, running, folder) = shell("fails", "echo no disk; exit 3");
        let error = follow(&running, &start, &Done::Exit, Duration::from_secs(10));
        let error = error.expect_err("it failed").to_string();
        assert!(error.contains("(3)") && error.contains("no disk"), "{error}");
        fs::remove_dir_all(folder).ok();
        let (start, running, folder) = shell("slow", "sleep 60");
        assert!(follow(&running, &start, &Done::Exit, Duration::from_millis(20)).is_err());
        fs::remove_dir_all(folder).ok();
    }
}
