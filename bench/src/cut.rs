//! Owns: that a comparison is to end before its time: SIGINT and SIGTERM, once and twice.
//! Never: loses what was measured until then. Flow: `watch` before anything is started -> a signal
//! -> what runs is asked to end -> no further run begins -> the report, marked as cut short.
//!
//! A terminal sends its signal to all that run in front. So that the first one ends nothing but by
//! us, the comparison and each of its programs are in process groups of their own.

use std::{
    fs, io,
    process::{self, Child},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal},
};
use tokio::signal::unix::{SignalKind, signal};

/// What a shell says of a program that SIGINT ended.
pub const STATUS: u8 = 130;
/// Between two looks of one that waits.
const LOOK: Duration = Duration::from_millis(50);

/// Set by the thread of the signals; read by all others. Nothing is published through it.
static IS_ASKED: AtomicBool = AtomicBool::new(false);

/// Calls `act` with 1, 2, ... at each SIGINT or SIGTERM from now on, on a thread of its own.
pub fn watch(act: impl Fn(u32) + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = async move {
        for number in 1.. {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            act(number);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(wait))?;
    Ok(())
}

/// The comparison itself: the first signal cuts it short, the second ends it at once. Its programs
/// are killed with it (`on_cores`).
pub fn watch_comparison() -> Result<()> {
    watch(|number| {
        if number > 1 {
            eprintln!("ended at once: no report");
            process::exit(i32::from(STATUS));
        }
        IS_ASKED.store(true, Relaxed);
        eprintln!("cut short: what was measured is being written; once more to end at once");
        end_programs();
    })
    .context("the signals")
}

/// The one that waits for the comparison: what it gets, the comparison is told.
pub fn forward(comparison: &Child) -> Result<()> {
    let held = pidfd_open(Pid::from_child(comparison), PidfdFlags::empty())?;
    let tell = move || match pidfd_send_signal(&held, Signal::TERM) {
        // It has ended: of several, one after the other, each is told by a watch of its own.
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => eprintln!("the comparison cannot be told: {error}"),
    };
    let tell = Arc::new(tell);
    let told = Arc::clone(&tell);
    watch(move |_| {
        IS_ASKED.store(true, Relaxed);
        told();
    })
    .context("the signals")?;
    // It came while none of them ran.
    if is_asked() {
        tell();
    }
    Ok(())
}

pub fn is_asked() -> bool {
    IS_ASKED.load(Relaxed)
}

/// An error where the comparison is to end.
pub fn check() -> Result<()> {
    ensure!(!is_asked(), "cut short by a signal");
    Ok(())
}

/// Rounds from 1 on, until it is to end.
pub fn rounds(count: usize) -> impl Iterator<Item = usize> {
    (1..=count).take_while(|_| !is_asked())
}

/// Sleeps, unless it is to end.
pub fn sleep(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    {
        check()?;
        thread::sleep(left.min(LOOK));
    }
    check()
}

/// SIGTERM to each target and load: those children that lead a process group (`on_cores`).
fn end_programs() {
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        for pid in pids {
            match end_program(pid) {
                // It has ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => eprintln!("process {}: {error}", pid.as_raw_pid()),
                Ok(()) => {}
            }
        }
    }
}

fn end_program(pid: Pid) -> io::Result<()> {
    // Held before it is looked at, so that its number is not another's meanwhile.
    let held = pidfd_open(pid, PidfdFlags::empty())?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()))?;
    if parent_and_group(&stat) == Some((getpid(), pid)) {
        pidfd_send_signal(held, Signal::TERM)?;
    }
    Ok(())
}

/// Of proc_pid_stat(5): after the name in brackets, which may hold anything, and the state.
fn parent_and_group(stat: &str) -> Option<(Pid, Pid)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(1);
    let mut next = || Pid::from_raw(fields.next()?.parse().ok()?);
    Some((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let pid = |raw| Pid::from_raw(raw).expect("above 0");
        assert_eq!(parent_and_group("7 (a) b (c)) S 3 5 5 0 -1"), Some((pid(3), pid(5))));
        assert_eq!(parent_and_group("7 (a) S 0 0"), None);
        assert_eq!(parent_and_group("nonsense"), None);
    }

    #[test]
    fn a_sleep_is_as_long_as_it_should_be() {
        let start = Instant::now();
        sleep(Duration::from_millis(120)).expect("nobody asks it to end");
        assert!(start.elapsed() >= Duration::from_millis(120));
        assert_eq!(rounds(3).collect::<Vec<_>>(), [1, 2, 3]);
    }
}
