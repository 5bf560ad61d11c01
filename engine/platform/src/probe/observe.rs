//! Reading /proc for the probe.
//!
//! Owns: the files' formats. Never: conclusions. Flow: `Observations` -> `classify`.

use std::{env, fs, path::Path};

use super::{Observations, resources};

const CAP_SYS_ADMIN: u32 = 21;

impl Observations {
    pub(super) fn of_this_machine() -> Observations {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        Observations {
            kernel_release: read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "?".to_owned()),
            io_uring_disabled: number("/proc/sys/kernel/io_uring_disabled"),
            io_uring_group: number("/proc/sys/kernel/io_uring_group"),
            groups: groups(&status),
            is_admin: field(&status, "CapEff:")
                .and_then(|mask| u64::from_str_radix(mask, 16).ok())
                .is_some_and(|mask| mask & (1 << CAP_SYS_ADMIN) != 0),
            seccomp_filter: field(&status, "Seccomp:") == Some("2"),
            memlock_limit_bytes: resources::memlock_limit_bytes(),
            container: container(),
        }
    }
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number<T: std::str::FromStr>(path: &str) -> Option<T> {
    read(path)?.parse().ok()
}

pub(super) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Supplementary groups and the effective one.
pub(super) fn groups(status: &str) -> Vec<i64> {
    let effective = field(status, "Gid:").and_then(|ids| ids.split_whitespace().nth(1));
    let others = field(status, "Groups:").into_iter().flat_map(str::split_whitespace);
    others.chain(effective).filter_map(|id| id.parse().ok()).collect()
}

fn container() -> Option<&'static str> {
    if env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        return Some("kubernetes");
    }
    if Path::new("/run/.containerenv").exists() {
        return Some("podman");
    }
    if Path::new("/.dockerenv").exists() {
        return Some("docker");
    }
    let groups = fs::read_to_string("/proc/1/cgroup").unwrap_or_default();
    ["kubepods", "docker", "libpod", "containerd"]
        .into_iter()
        .find(|name| groups.contains(name))
        .map(|name| match name {
            "kubepods" => "kubernetes",
            "libpod" => "podman",
            other => other,
        })
}
