//! What the machine lets this process have: descriptors, memory.
//!
//! Owns: reading and raising those limits. Never: deciding on sizes (control does).
//! Flow: control asks at start.

use std::{fs, io, path::Path};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open descriptors to the hard one. Returns (soft, hard) as they are
/// then; `u64::MAX` stands for unlimited.
pub fn raise_nofile_limit() -> io::Result<(u64, u64)> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let limit = getrlimit(Resource::Nofile);
    Ok((limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX)))
}

/// Soft limit of locked memory in bytes; `u64::MAX` for unlimited.
pub fn memlock_limit_bytes() -> u64 {
    getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX)
}

/// Bytes this process can still take: the least of the machine's `MemAvailable` and what each
/// control group above it (v2, v1) has left.
pub fn memory_available_bytes() -> io::Result<u64> {
    available_bytes(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
}

fn available_bytes(proc: &Path, cgroups: &Path) -> io::Result<u64> {
    let path = proc.join("meminfo");
    let meminfo = fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let mut available = meminfo_bytes(&meminfo, "MemAvailable:").ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: no MemAvailable line (kernel 3.14 or newer expected)", path.display()),
        )
    })?;
    let membership = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
    for line in membership.lines() {
        // hierarchy:controllers:path, see cgroups(7); v2 has hierarchy 0 and no controllers.
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if controllers.is_empty() {
            let limits = ("memory.max", "memory.current");
            available = available.min(group_left_bytes(cgroups, path, limits));
        } else if controllers.split(',').any(|name| name == "memory") {
            let limits = ("memory.limit_in_bytes", "memory.usage_in_bytes");
            available = available.min(group_left_bytes(&cgroups.join("memory"), path, limits));
        }
    }
    Ok(available)
}

/// The least that the group or one of its ancestors leaves. A path that is not there (the group's
/// own name inside a container's view) leaves the mount's root, which is looked at last.
fn group_left_bytes(mount: &Path, path: &str, (max, current): (&str, &str)) -> u64 {
    let group = mount.join(path.trim_start_matches('/'));
    let mut left = u64::MAX;
    for folder in group.ancestors().take_while(|folder| folder.starts_with(mount)) {
        let read =
            |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
        // "max" does not parse: no limit at this level.
        if let Some(limit) = read(max) {
            // Page cache counts as usage but is given back under pressure.
            let cached = fs::read_to_string(folder.join("memory.stat"))
                .map(|stat| stat_bytes(&stat, "inactive_file") + stat_bytes(&stat, "active_file"))
                .unwrap_or(0);
            let used = read(current).unwrap_or(0).saturating_sub(cached);
            left = left.min(limit.saturating_sub(used));
        }
    }
    left
}

fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn stat_bytes(stat: &str, key: &str) -> u64 {
    stat.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with 8 GiB available and the cgroup files given.
    fn machine(membership: &str, files: &[(&str, &str)]) -> u64 {
        let root = tempfile::tempdir().expect("folder");
        let proc = root.path().join("proc");
        fs::create_dir_all(proc.join("self")).expect("folder");
        fs::write(proc.join("meminfo"), "MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\n")
            .expect("write");
        fs::write(proc.join("self/cgroup"), membership).expect("write");
        let cgroups = root.path().join("cgroup");
        for (path, content) in files {
            let path = cgroups.join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(path, content).expect("write");
        }
        available_bytes(&proc, &cgroups).expect("available")
    }

    #[test]
    fn without_groups_it_is_what_the_machine_has() {
        assert_eq!(machine("", &[]), 8 << 30);
        assert_eq!(machine("0::/\n", &[("a/memory.max", "1\n")]), 8 << 30);
    }

    #[test]
    fn a_limit_of_an_ancestor_counts_and_cache_does_not() {
        let left = machine(
            "0::/user/app\n",
            &[
                ("user/app/memory.max", "max\n"),
                ("user/memory.max", "1073741824\n"),
                ("user/memory.current", "536870912\n"),
                ("user/memory.stat", "anon 5\ninactive_file 268435456\nactive_file 0\n"),
            ],
        );
        assert_eq!(left, (1 << 30) - (256 << 20));
    }

    #[test]
    fn version_one_and_a_containers_view() {
        let files = [
            ("memory/memory.limit_in_bytes", "2097152"),
            ("memory/memory.usage_in_bytes", "97152"),
        ];
        assert_eq!(machine("4:cpu,memory:/docker/abc\n2:pids:/x\n", &files), 2_000_000);
    }

    #[test]
    fn this_machine_has_some() {
        assert!(memory_available_bytes().expect("available") > 1 << 20);
    }

    #[test]
    fn the_soft_limit_reaches_the_hard_one() {
        let (soft, hard) = raise_nofile_limit().expect("limit");
        assert_eq!(soft, hard);
    }
}
