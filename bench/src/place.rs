//! Owns: `seedring-bench place`: becomes another program, on some cores, at nice -20, that
//! ends when the one who started it does.
//! Never: stays: it is that process from then on. Flow: comparison -> this -> target or load.
//!
//! What setpriv, taskset and nice do one after the other, in an image that has none of them.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context, Result, bail};
use rustix::{
    process::{Pid, Signal, getppid, set_parent_process_death_signal, setpriority_process},
    thread::{CpuSet, sched_setaffinity},
};

const NICE: i32 = -20;

#[derive(clap::Args)]
pub struct Options {
    /// Cores, as `taskset -c` writes them; left out: any.
    #[arg(long)]
    cores: Option<String>,
    /// Whose child it has to be: one that was left alone before this ran ends at once.
    #[arg(long)]
    parent: Option<i32>,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Returns only if it can't.
pub fn run(options: &Options) -> Result<std::process::ExitCode> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("the parent's death signal")?;
    let parent = getppid().map_or(0, Pid::as_raw_pid);
    if options.parent.is_some_and(|expected| expected != parent) {
        bail!("the process that wanted this is gone");
    }
    if let Some(cores) = &options.cores {
        let set = parse_cores(cores)?;
        sched_setaffinity(None, &set).with_context(|| {
            format!("cores {cores}: this machine, or this container, has not all of them")
        })?;
    }
    // Without the right to it the process runs all the same, as it does under `nice`.
    if let Err(error) = setpriority_process(None, NICE) {
        eprintln!("the priority stays as it is: {error}");
    }
    let (program, arguments) = options.command.split_first().context("a program to become")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// `0`, `1-3`, `0,2-3`.
fn parse_cores(list: &str) -> Result<CpuSet> {
    let mut set = CpuSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<usize>().ok().filter(|core| *core < CpuSet::MAX_CPU);
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            bail!("{list:?} is no list of cores, such as 0 or 1-3,6");
        };
        (first..=last).for_each(|core| set.set(core));
    }
    anyhow::ensure!(set.count() > 0, "{list:?} names no core");
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_written_as_taskset_writes_them() {
        let of = |list: &str| {
            let set = parse_cores(list).expect(list);
            (0..16).filter(|core| set.is_set(*core)).collect::<Vec<_>>()
        };
        assert_eq!(of("0"), [0]);
        assert_eq!(of("1-3,6"), [1, 2, 3, 6]);
        for wrong in ["", "a", "1-", "-1", "3-1", "1,,2", "99999"] {
            assert!(parse_cores(wrong).is_err(), "{wrong}");
        }
    }
}
