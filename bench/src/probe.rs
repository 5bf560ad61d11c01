//! Owns: what /proc says of a process and its descendants, and of the machine.
//! Never: keeps state between readings; a figure is the difference of two readings.
//! Flow: measure and compare read before and after, and subtract.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One reading of a process with all its descendants.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Reading {
    /// User and system time of all threads, those that ended and io-wq workers counted.
    pub cpu_seconds: f64,
    pub user_seconds: f64,
    /// All ksoftirqd threads of the machine: network work that is charged to nobody.
    pub softirqd_seconds: f64,
    /// Bytes that came from the block layer (/proc/PID/io read_bytes).
    pub read_bytes: u64,
    /// Bytes that went to the block layer, or were made dirty in the page cache for it.
    #[serde(default)]
    pub written_bytes: u64,
    pub threads: u64,
    pub rss_bytes: u64,
    /// Anonymous and huge pages: what the process holds itself, the page cache it maps left out.
    pub private_bytes: u64,
    /// Proportional set size; 0 where smaps_rollup is not readable.
    pub pss_bytes: u64,
    pub voluntary_switches: u64,
    pub involuntary_switches: u64,
}

impl Reading {
    /// Reads `pid` and its descendants. Of one that ended and was not waited for, CPU time and disk
    /// bytes are still there, memory is not.
    pub fn take(pid: u32) -> Result<Self> {
        let mut reading = Reading { softirqd_seconds: softirqd_seconds(), ..Reading::default() };
        for process in descendants(pid) {
            let added = reading.add(process);
            if process == pid {
                added.with_context(|| {
                    format!("cannot read /proc/{pid}: is the target running, may this user see it?")
                })?;
            }
        }
        Ok(reading)
    }

    fn add(&mut self, pid: u32) -> Result<()> {
        let root = PathBuf::from(format!("/proc/{pid}"));
        let stat = Stat::read(&root.join("stat"))?;
        self.cpu_seconds += stat.user_seconds + stat.system_seconds;
        self.user_seconds += stat.user_seconds;
        self.threads += stat.threads;
        let status = fs::read_to_string(root.join("status"))?;
        let kib = |key: &str| 1024 * field(&status, key);
        let huge_bytes = kib("HugetlbPages:");
        self.rss_bytes += kib("VmRSS:") + huge_bytes;
        self.private_bytes += kib("RssAnon:") + kib("RssShmem:") + huge_bytes;
        let rollup = fs::read_to_string(root.join("smaps_rollup")).unwrap_or_default();
        self.pss_bytes += 1024 * field(&rollup, "Pss:") + huge_bytes;
        let io = fs::read_to_string(root.join("io")).unwrap_or_default();
        self.read_bytes += field(&io, "read_bytes:");
        self.written_bytes += field(&io, "write_bytes:");
        for task in fs::read_dir(root.join("task"))?.flatten() {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            self.voluntary_switches += field(&status, "voluntary_ctxt_switches:");
            self.involuntary_switches += field(&status, "nonvoluntary_ctxt_switches:");
        }
        Ok(())
    }
}

/// What one process holds now, cheap enough to be read often.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// The most that it ever held (VmHWM), huge pages added.
    pub peak_rss_bytes: u64,
    /// Anonymous, shared and huge pages.
    pub private_bytes: u64,
}

impl Memory {
    /// The greater of each.
    pub fn most(self, other: Self) -> Self {
        Memory {
            peak_rss_bytes: self.peak_rss_bytes.max(other.peak_rss_bytes),
            private_bytes: self.private_bytes.max(other.private_bytes),
        }
    }

    /// `None`: the process is gone.
    pub fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Some(Self::parse(&status))
    }

    fn parse(status: &str) -> Self {
        let kib = |key: &str| 1024 * field(status, key);
        let huge_bytes = kib("HugetlbPages:");
        Memory {
            peak_rss_bytes: kib("VmHWM:") + huge_bytes,
            private_bytes: kib("RssAnon:") + kib("RssShmem:") + huge_bytes,
        }
    }
}

/// The first number after a key at a line's start.
fn field(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

struct Stat {
    parent: u32,
    user_seconds: f64,
    system_seconds: f64,
    threads: u64,
}

impl Stat {
    fn read(path: &std::path::Path) -> Result<Self> {
        Self::parse(&fs::read_to_string(path)?).context("unknown form of /proc/PID/stat")
    }

    /// proc_pid_stat(5); the name in parentheses may hold anything, so fields count from the last.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let seconds = |at: usize| Some(fields.get(at)?.parse::<f64>().ok()? / ticks);
        Some(Stat {
            parent: fields.get(1)?.parse().ok()?,
            // With that of children which ended and were waited for.
            user_seconds: seconds(11)? + seconds(13)?,
            system_seconds: seconds(12)? + seconds(14)?,
            threads: fields.get(17)?.parse().ok()?,
        })
    }
}

/// `pid` first, then its children and theirs.
fn descendants(pid: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = processes()
        .filter_map(|process| {
            let stat = Stat::read(&PathBuf::from(format!("/proc/{process}/stat"))).ok()?;
            Some((process, stat.parent))
        })
        .collect();
    let mut family = vec![pid];
    let mut at = 0;
    while at < family.len() {
        let parent = family[at];
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(process, _)| *process));
        at += 1;
    }
    family
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether a process is there and has not ended: one that nobody waited for yet has.
pub fn is_running(pid: u32) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = text.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    state.is_some_and(|state| !matches!(state, "Z" | "X"))
}

/// CPU time of all ksoftirqd threads so far.
pub fn softirqd_seconds() -> f64 {
    processes()
        .filter_map(|pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let stat = Stat::parse(text.contains("(ksoftirqd/").then_some(&text)?)?;
            Some(stat.user_seconds + stat.system_seconds)
        })
        .sum()
}

/// CPU time of this process so far.
pub fn own_cpu_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

/// What a report says about the machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub kernel: String,
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub mitigations: String,
    pub governor: String,
}

impl Machine {
    pub fn read() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_string();
        let mitigations = fs::read_dir("/sys/devices/system/cpu/vulnerabilities")
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| {
                fs::read_to_string(entry.path()).is_ok_and(|text| text.starts_with("Mitigation"))
            })
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ");
        Machine {
            kernel: line("/proc/sys/kernel/osrelease"),
            cpu: cpu
                .map(|name| name.trim_start_matches([' ', '\t', ':']))
                .unwrap_or("unknown")
                .into(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: field(&meminfo, "MemTotal:") as f64 / f64::from(1 << 20),
            mitigations,
            governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b (c)) S 3 7 7 0 -1 0 1 2 3 4 400 200 100 50 20 0 9 0 1 2 3";
        let stat = Stat::parse(text).expect("well formed");
        assert_eq!((stat.parent, stat.threads), (3, 9));
        assert!((stat.user_seconds / stat.system_seconds - 2.0).abs() < 1e-9);
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert!((stat.user_seconds * ticks - 500.0).abs() < 1e-9, "ended children count");
    }

    #[test]
    fn peak_and_private_memory_count_huge_pages() {
        let status = "VmHWM:\t  900 kB\nVmRSS:\t 5 kB\nRssAnon:\t 100 kB\nRssFile:\t 700 kB\n\
                      RssShmem:\t  10 kB\nHugetlbPages:\t 2048 kB\n";
        let memory = Memory::parse(status);
        assert_eq!(memory.peak_rss_bytes, 1024 * (900 + 2048));
        assert_eq!(memory.private_bytes, 1024 * (100 + 10 + 2048));
    }

    #[test]
    fn this_process_is_seen_to_spend_time() {
        let pid = std::process::id();
        assert!(is_running(pid) && !is_running(u32::MAX));
        let before = Reading::take(pid).expect("own /proc");
        let start = std::time::Instant::now();
        let mut sum = 0_u64;
        while start.elapsed().as_millis() < 80 {
            sum = std::hint::black_box(sum + 1);
        }
        let after = Reading::take(pid).expect("own /proc");
        assert!(after.cpu_seconds > before.cpu_seconds);
        assert!(after.rss_bytes > 0 && after.threads > 0);
    }
}
