//! Owns: one process from before its start until it has done its work: the time, what it cost.
//! Never: knows what the work is; waits for the process (what it spent is read while /proc has it).
//! Flow: `Start::now` -> spawn -> `follow` -> `Work`.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::target::Running;
use crate::probe::{self, Memory, Reading};

/// Memory is read each so many looks.
const LOOKS_A_SAMPLE: u32 = 10;
const DAY_US: u64 = 86_400_000_000;

/// How often a process is looked at, on cores that may be its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watch {
    /// Each 2 ms, which is what its time can be wrong by; its memory each 20 ms.
    Closely,
    /// Each 50 ms, its memory at the end: of who tells its time itself. To read the memory of a
    /// process holds it up where it maps and unmaps, for milliseconds.
    Rarely,
}

impl Watch {
    fn pause(self) -> Duration {
        Duration::from_millis(if self == Watch::Closely { 2 } else { 50 })
    }
}

/// What says that the work is done.
#[derive(Clone, Debug)]
pub enum Done {
    /// It ends, with 0.
    Exit,
    /// It runs on, and this file is there.
    File(PathBuf),
    /// It runs on, and has logged a line with this: the time is the line's own.
    Logged(&'static str),
}

/// Taken before the process is started.
pub struct Start {
    at: Instant,
    by_the_clock: SystemTime,
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
        let softirqd_seconds = probe::softirqd_seconds();
        Start { softirqd_seconds, by_the_clock: SystemTime::now(), at: Instant::now() }
    }

    /// Until the time of day that a line of a log begins with, less than a day later.
    fn until(&self, line: &str) -> Result<Duration> {
        let time = time_of_day_us(line);
        let time = time.with_context(|| format!("no time stamp is in the log's line: {line}"))?;
        let start = self.by_the_clock.duration_since(UNIX_EPOCH)?.as_micros() as u64 % DAY_US;
        Ok(Duration::from_micros((time + DAY_US - start) % DAY_US))
    }

    pub fn elapsed(&self) -> Duration {
        self.at.elapsed()
    }
}

/// Of a line that begins as RFC 3339 says, in UTC: `2026-11-27T12:02:30.432682Z`.
fn time_of_day_us(line: &str) -> Option<u64> {
    let (time, _) = line.split_once('T')?.1.split_once('Z')?;
    let (time, fraction) = time.split_once('.')?;
    let mut parts = time.split(':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    let micros: u64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    Some(((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + micros)
}

/// Watches a process that was spawned after `start` until it is done, at most for `limit`.
pub fn follow(
    running: &Running,
    start: &Start,
    how: (&Done, Watch),
    limit: Duration,
) -> Result<Work> {
    follow_while(running, start, how, limit, || Ok(()))
}

/// The same for as long as `check`, which is asked at each look, finds nothing wrong.
pub fn follow_while(
    running: &Running,
    start: &Start,
    (done, watch): (&Done, Watch),
    limit: Duration,
    mut check: impl FnMut() -> Result<()>,
) -> Result<Work> {
    let mut peak = Memory::default();
    let mut told = None;
    for look in 0_u32.. {
        let ended = running.ended()?;
        if let Some(status) = ended.filter(|status| *status != 0 || !matches!(done, Done::Exit)) {
            bail!("{} ended ({status}): {}", running.command, running.last_words());
        }
        let is_done = match done {
            Done::Exit => ended.is_some(),
            Done::File(path) => path.exists(),
            Done::Logged(text) => {
                let log = fs::read(&running.log).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                // A line that is being written has no end yet.
                let mut lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
                let line = lines.find(|line| line.contains(text));
                told = line.map(|line| start.until(line)).transpose()?;
                told.is_some()
            }
        };
        let is_sample = watch == Watch::Closely && look.is_multiple_of(LOOKS_A_SAMPLE);
        if is_sample || is_done {
            peak = peak.most(Memory::of(running.pid()).unwrap_or_default());
        }
        if is_done {
            break;
        }
        check()?;
        ensure!(
            start.elapsed() < limit,
            "{} was not done in {} s: {}",
            running.command,
            limit.as_secs(),
            running.last_words()
        );
        thread::sleep(watch.pause());
    }
    let seconds = told.unwrap_or_else(|| start.elapsed()).as_secs_f64();
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
        let work = follow(&running, &start, (&Done::Exit, Watch::Closely), Duration::from_secs(60))
            .expect("done");
        assert!(work.cpu_seconds > 0.0 && work.seconds > 0.1 && work.peak_rss_bytes > 0);
        fs::remove_dir_all(folder).ok();
    }

    #[test]
    fn a_file_ends_the_work_of_one_that_runs_on() {
        let (start, running, folder) = shell("file", ": > x; sleep 60");
        let done = Done::File(folder.join("x"));
        follow(&running, &start, (&done, Watch::Closely), Duration::from_secs(10)).expect("done");
        assert_eq!(running.ended().expect("its state"), None);
        fs::remove_dir_all(folder).ok();
    }

    #[test]
    fn the_time_of_a_line_is_its_own() {
        let script = "sleep 0.3; date -u +%FT%T.%6NZ\\ INFO\\ done; sleep 60";
        let (start, running, folder) = shell("stamp", script);
        let logged = (&Done::Logged("done"), Watch::Rarely);
        let work = follow(&running, &start, logged, Duration::from_secs(20)).expect("done");
        assert!((0.3..start.elapsed().as_secs_f64()).contains(&work.seconds), "{work:?}");
        fs::remove_dir_all(folder).ok();
        let late = UNIX_EPOCH + Duration::from_secs(86_399);
        let start = Start { by_the_clock: late, ..start };
        let after = start.until("1970-01-02T00:00:02.5Z  INFO ready").expect("a stamp");
        assert_eq!(after, Duration::from_millis(3_500), "past midnight");
        assert!(start.until("ready").is_err());
    }

    #[test]
    fn a_failure_and_a_limit_are_errors() {
        let (start, running, folder) = shell("fails", "echo no disk; exit 3");
        let exit = (&Done::Exit, Watch::Rarely);
        let error = follow(&running, &start, exit, Duration::from_secs(10));
        let error = error.expect_err("it failed").to_string();
        assert!(error.contains("(3)") && error.contains("no disk"), "{error}");
        fs::remove_dir_all(folder).ok();
        let (start, running, folder) = shell("slow", "sleep 60");
        assert!(follow(&running, &start, exit, Duration::from_millis(20)).is_err());
        fs::remove_dir_all(folder).ok();
    }
}
