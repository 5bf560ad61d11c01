//! Owns: what the kernel and its settings say: io_uring, limits, memory, network, clock.
//! Never: looks at ports, folders or content; that is `site`.
//! Flow: /proc, /sys and platform's probe -> findings.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};
use seedring_platform::{probe, resources};

use super::Finding;
use crate::cli::print::size;
use crate::config::Config;
use crate::config::model::{CacheSize, IoBackend, Limits};

/// Descriptors beside connections: open content, listeners, the store, rings.
const DESCRIPTORS_BESIDE: u64 = 1024;
const MEMLOCK_WANTED_BYTES: u64 = 64 << 20;
/// Its number in capabilities(7).
const CAP_IPC_LOCK: u32 = 14;
/// 2020-01-01; a clock before it was never set.
const CLOCK_LEAST_SECONDS: u64 = 1_577_836_800;

pub(super) fn check(config: Option<&Config>) -> Vec<Finding> {
    let seen = probe::probe();
    let mut findings = vec![
        kernel(&seen.kernel_release),
        io_uring(&seen, config),
        memlock(seen.memlock_limit_bytes, may_lock(&read("/proc/self/status"))),
        descriptors(config),
        memory(config),
        huge_pages(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        swap(&read("/proc/meminfo"), &read("/proc/sys/vm/swappiness")),
        congestion(
            &read("/proc/sys/net/ipv4/tcp_congestion_control"),
            &read("/proc/sys/net/core/default_qdisc"),
        ),
        clock(),
    ];
    findings.extend(seen.container.map(|name| Finding::good("container", name)));
    findings
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
    if (next(), next()) >= probe::KERNEL_MIN {
        Finding::good("kernel", release)
    } else {
        let (major, minor) = probe::KERNEL_MIN;
        Finding::bad("kernel", release, format!("use Linux {major}.{minor} or newer"))
    }
}

fn io_uring(seen: &probe::Probe, config: Option<&Config>) -> Finding {
    match &seen.io_uring {
        Ok(features) if features.steps_down.is_empty() => Finding::good("io_uring", "usable"),
        Ok(features) => Finding::warning(
            "io_uring",
            format!("usable, without {}", features.steps_down.join("; ")),
            "a newer kernel has it; the engine runs without",
        ),
        Err(unavailable) if config.is_some_and(|config| config.io == IoBackend::Epoll) => {
            let found = format!("not usable, and not asked for (io: epoll): {unavailable}");
            Finding::good("io_uring", found)
        }
        Err(unavailable) => {
            let text = unavailable.to_string();
            let (found, remedy) = text.split_once(": ").unwrap_or((&text, "see the message"));
            if config.is_some_and(|config| config.io == IoBackend::Uring) {
                return Finding::bad("io_uring", found, remedy);
            }
            let found = format!("{found}; the engine runs on epoll, for more CPU");
            Finding::warning("io_uring", found, remedy)
        }
    }
}

/// `exempt`: the kernel does not apply it to this process.
fn memlock(limit_bytes: u64, exempt: bool) -> Finding {
    match limit_bytes {
        u64::MAX => Finding::good("locked memory", "unlimited"),
        bytes if bytes >= MEMLOCK_WANTED_BYTES => Finding::good("locked memory", size(bytes)),
        bytes if exempt => Finding::good(
            "locked memory",
            format!("{}, which CAP_IPC_LOCK lifts for this user", size(bytes)),
        ),
        bytes => Finding::warning(
            "locked memory",
            format!(
                "limited to {}; the cache is registered with the kernel, which counts against it: \
                 what goes above is served too, for more CPU",
                size(bytes)
            ),
            "systemd: LimitMEMLOCK=infinity; shell: ulimit -l unlimited; \
             Docker: --ulimit memlock=-1",
        ),
    }
}

/// Whether CAP_IPC_LOCK is effective, as /proc/self/status shows it.
fn may_lock(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_some_and(|bits| bits & (1 << CAP_IPC_LOCK) != 0)
}

fn descriptors(config: Option<&Config>) -> Finding {
    let limits = config.map_or_else(Limits::default, |config| config.limits);
    let wanted = u64::from(limits.connections) + DESCRIPTORS_BESIDE;
    // The engine raises the soft limit to the hard one by itself.
    descriptors_for(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX), wanted)
}

fn descriptors_for(hard: u64, wanted: u64) -> Finding {
    if hard >= wanted {
        let shown = if hard == u64::MAX { "unlimited".to_string() } else { hard.to_string() };
        return Finding::good("descriptors", format!("{shown} allowed, {wanted} wanted"));
    }
    Finding::bad(
        "descriptors",
        format!("the hard limit is {hard}; {wanted} are wanted (connections, files and the rest)"),
        format!("systemd: LimitNOFILE={wanted}; or lower limits.connections"),
    )
}

fn memory(config: Option<&Config>) -> Finding {
    let available = match resources::memory_available_bytes() {
        Ok(bytes) => bytes,
        Err(error) => return Finding::warning("memory", error.to_string(), "mount /proc"),
    };
    let cache = match config.map(|config| config.memory.cache) {
        Some(CacheSize::Bytes(bytes)) => bytes,
        _ => available / 2,
    };
    cache_fits(available, cache)
}

fn cache_fits(available: u64, cache: u64) -> Finding {
    let found = format!("{} available, {} for the cache", size(available), size(cache));
    if cache > available {
        Finding::bad("memory", found, "lower memory.cache, or write auto")
    } else if cache > available / 5 * 4 {
        Finding::warning("memory", found, "leave the system a fifth: lower memory.cache, or auto")
    } else {
        Finding::good("memory", found)
    }
}

fn huge_pages(enabled: &str) -> Finding {
    if enabled.contains("[never]") || enabled.is_empty() {
        let remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
        Finding::warning("huge pages", "off; the cache takes small pages", remedy)
    } else {
        let chosen = enabled.split(['[', ']']).nth(1).unwrap_or(enabled);
        Finding::good("huge pages", chosen)
    }
}

fn swap(meminfo: &str, swappiness: &str) -> Finding {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("SwapTotal:"));
    let kib = total.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    match kib {
        None | Some(0) => Finding::good("swap", "none"),
        Some(kib) if swappiness.parse().unwrap_or(60) > 60 => Finding::warning(
            "swap",
            format!("{}, vm.swappiness {swappiness}", size(kib * 1024)),
            "sysctl vm.swappiness=10, so that the engine stays in memory",
        ),
        Some(kib) => Finding::good("swap", size(kib * 1024)),
    }
}

/// BBR paces its packets; without fq the kernel does that with a timer a socket, which costs.
fn congestion(control: &str, qdisc: &str) -> Finding {
    let found = format!("{control}, default qdisc {qdisc}");
    if control == "bbr" && qdisc != "fq" {
        let found = format!("{found}: each socket is paced by a timer of its own, which costs");
        let remedy = "sysctl net.core.default_qdisc=fq (and tc qdisc replace dev DEV root fq)";
        Finding::warning("tcp", found, remedy)
    } else {
        Finding::good("tcp", found)
    }
}

fn clock() -> Finding {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(now) if now.as_secs() >= CLOCK_LEAST_SECONDS => Finding::good("clock", "set"),
        _ => Finding::warning(
            "clock",
            "before 2020: certificates of HTTPS trackers will be refused",
            "start a time service: systemctl enable --now systemd-timesyncd",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn each_check_can_fail() {
        for (finding, verdict) in [
            (kernel("6.1.0-13-amd64"), Verdict::Good),
            (kernel("5.15.0"), Verdict::Bad),
            (kernel("6.0.19"), Verdict::Bad),
            (memlock(8 << 20, false), Verdict::Warning),
            (memlock(8 << 20, true), Verdict::Good),
            (descriptors_for(1024, 3024), Verdict::Bad),
            (descriptors_for(4096, 3024), Verdict::Good),
            (cache_fits(1 << 30, 2 << 30), Verdict::Bad),
            (cache_fits(10 << 30, 9 << 30), Verdict::Warning),
            (huge_pages("always madvise [never]"), Verdict::Warning),
            (huge_pages("always [madvise] never"), Verdict::Good),
            (swap("SwapTotal: 1024 kB", "100"), Verdict::Warning),
            (swap("SwapTotal: 0 kB", "100"), Verdict::Good),
            (congestion("bbr", "fq_codel"), Verdict::Warning),
            (congestion("bbr", "fq"), Verdict::Good),
            (congestion("cubic", "fq_codel"), Verdict::Good),
        ] {
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert_eq!(finding.remedy.is_some(), verdict != Verdict::Good, "{finding:?}");
        }
        assert!(may_lock("Name:\tx\nCapEff:\t0000000000004000\n"));
        assert!(!may_lock("CapEff:\t000001ffffffbfff\n") && !may_lock(""));
        assert_eq!(huge_pages("always [madvise] never").found, "madvise");
    }
}
