//! Owns: counters of the machine around a window: system calls, the kernel's network work on a
//! core, energy; and what all that comes to for a GiB.
//! Never: invents a figure: what cannot be read is listed with the reason.
//! Flow: measure takes `Marks` before and after its window -> `Meters`.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::probe::Reading;

/// Energy of the processor's packages, where the kernel gives it.
const POWERCAP: &str = "/sys/class/powercap";

/// What a window cost beside CPU time, for each GiB of payload.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Meters {
    pub voluntary_switches_per_gib: Option<f64>,
    pub involuntary_switches_per_gib: Option<f64>,
    /// Counted in a window of its own after the measured one: counting them costs.
    pub syscalls_per_gib: Option<f64>,
    /// Time that the target's core spent on interrupts' work, as /proc/stat has it; whoever caused
    /// it.
    pub core_softirq_seconds_per_gib: Option<f64>,
    /// Of the whole machine.
    pub joules_per_gib: Option<f64>,
    /// Bytes read from disks for each byte of payload.
    pub disk_bytes_per_byte: Option<f64>,
    /// What could not be read, and why.
    pub not_measured: Vec<String>,
}

/// The machine's counters at one moment.
pub struct Marks {
    core_softirq_seconds: Option<Result<f64>>,
    joules: Result<f64>,
}

impl Marks {
    pub fn take(core: Option<usize>) -> Self {
        Marks {
            core_softirq_seconds: core.map(core_softirq_seconds),
            joules: joules(Path::new(POWERCAP)),
        }
    }
}

impl Meters {
    /// The difference of two marks and of two readings of the target, over so many GiB.
    pub fn between(
        (before, after): (&Marks, &Marks),
        target: Option<(Reading, Reading)>,
        gib: f64,
    ) -> Self {
        let mut meters = Meters::default();
        let per_gib = |difference: f64| (gib > 0.0).then(|| difference / gib);
        match (&before.joules, &after.joules) {
            // The counter begins again at its end; then nothing is known of the window.
            (Ok(before), Ok(after)) if after >= before => {
                meters.joules_per_gib = per_gib(after - before);
            }
            (Ok(_), Ok(_)) => meters.not_measured.push("energy: its counter began again".into()),
            (Err(error), _) | (_, Err(error)) => {
                meters.not_measured.push(format!("energy: {error:#}"));
            }
        }
        match (&before.core_softirq_seconds, &after.core_softirq_seconds) {
            (Some(Ok(before)), Some(Ok(after))) => {
                meters.core_softirq_seconds_per_gib = per_gib(after - before);
            }
            (Some(Err(error)), _) | (_, Some(Err(error))) => {
                meters.not_measured.push(format!("softirq of the core: {error:#}"));
            }
            _ => {}
        }
        if let Some((before, after)) = target {
            let switches = |field: fn(&Reading) -> u64| {
                per_gib(field(&after).saturating_sub(field(&before)) as f64)
            };
            meters.voluntary_switches_per_gib = switches(|reading| reading.voluntary_switches);
            meters.involuntary_switches_per_gib = switches(|reading| reading.involuntary_switches);
            let read = after.read_bytes.saturating_sub(before.read_bytes) as f64;
            meters.disk_bytes_per_byte = per_gib(read / 1_073_741_824.0);
        }
        meters
    }
}

/// proc_stat(5): the eighth word of the core's line.
fn core_softirq_seconds(core: usize) -> Result<f64> {
    softirq_seconds(&fs::read_to_string("/proc/stat")?, core)
}

fn softirq_seconds(text: &str, core: usize) -> Result<f64> {
    let name = format!("cpu{core}");
    let line = text.lines().find(|line| line.split(' ').next() == Some(&name));
    let ticks: f64 = line
        .and_then(|line| line.split_whitespace().nth(7)?.parse().ok())
        .with_context(|| format!("/proc/stat has no {name}"))?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// Of all packages that `folder` names.
fn joules(folder: &Path) -> Result<f64> {
    let entries = fs::read_dir(folder).context("no RAPL: the kernel gives no powercap")?;
    let (mut micro, mut packages) = (0.0, 0);
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = fs::read_to_string(path.join("name")).unwrap_or_default();
        if !name.starts_with("package") {
            continue;
        }
        let text = fs::read_to_string(path.join("energy_uj"));
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        micro += text.trim().parse::<f64>().context("energy_uj is no number")?;
        packages += 1;
    }
    ensure!(packages > 0, "no RAPL: no package in {}", folder.display());
    Ok(micro / 1e6)
}

/// System calls of a process's threads in so many seconds from now.
pub fn syscalls(pid: u32, seconds: f64) -> Result<u64> {
    let output = Command::new("perf")
        .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &pid.to_string(), "--"])
        .args(["sleep", &seconds.to_string()])
        .output()
        .context("cannot run perf: apt install linux-perf")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "perf stat: {}", said.trim());
    counted(&said)
}

/// The first word of the line of the event.
fn counted(text: &str) -> Result<u64> {
    let line = text.lines().find(|line| line.contains("raw_syscalls:sys_enter"));
    let word = line.and_then(|line| line.split(',').next()).context("perf counted nothing")?;
    word.trim().parse().with_context(|| format!("perf says: {word}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_is_told_from_those_of_longer_numbers() {
        let text = "cpu  1 2 3 4 5 6 900 8\ncpu10 0 0 0 0 0 0 500 0\ncpu1 0 0 0 0 0 0 200 0\n";
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let seconds = softirq_seconds(text, 1).expect("there");
        assert!((seconds * ticks - 200.0).abs() < 1e-9, "{seconds}");
        assert!(softirq_seconds(text, 2).is_err());
        assert!(core_softirq_seconds(0).is_ok(), "this machine has a first core");
    }

    #[test]
    fn energy_is_of_the_packages_or_absent_with_the_reason() {
        let folder = std::env::temp_dir().join(format!("powercap-{}", std::process::id()));
        for (zone, name, micro) in
            [("a", "package-0\n", "1500000\n"), ("b", "dram\n", "9\n"), ("c", "package-1", "2")]
        {
            fs::create_dir_all(folder.join(zone)).expect("a folder");
            fs::write(folder.join(zone).join("name"), name).expect("written");
            fs::write(folder.join(zone).join("energy_uj"), micro).expect("written");
        }
        assert!((joules(&folder).expect("two packages") - 1.500_002).abs() < 1e-9);
        fs::remove_dir_all(&folder).expect("removed");
        assert!(joules(&folder).expect_err("gone").to_string().contains("no RAPL"));
    }

    #[test]
    fn perf_is_read_and_its_refusal_is_no_number() {
        let text = "1234,,raw_syscalls:sys_enter,999,100.00,,\n";
        assert_eq!(counted(text).expect("counted"), 1234);
        assert!(counted("<not counted>,,raw_syscalls:sys_enter,0,0.00,,\n").is_err());
        assert!(counted("").is_err());
    }

    #[test]
    fn what_cannot_be_read_is_listed() {
        let missing = || Marks {
            core_softirq_seconds: Some(Err(anyhow::anyhow!("no core"))),
            joules: Err(anyhow::anyhow!("no RAPL")),
        };
        let before = Reading { voluntary_switches: 10, read_bytes: 1 << 30, ..Reading::default() };
        let after = Reading { voluntary_switches: 30, read_bytes: 5 << 30, ..Reading::default() };
        let meters = Meters::between((&missing(), &missing()), Some((before, after)), 2.0);
        assert_eq!(meters.voluntary_switches_per_gib, Some(10.0));
        assert_eq!(meters.disk_bytes_per_byte, Some(2.0));
        assert_eq!((meters.joules_per_gib, meters.core_softirq_seconds_per_gib), (None, None));
        assert_eq!(meters.not_measured, ["energy: no RAPL", "softirq of the core: no core"]);
    }
}
