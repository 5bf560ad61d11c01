//! What this kernel gives us, and where io_uring is missing: who forbids it and what to do.
//!
//! Owns: looking at the machine, the classification of a refusal. Never: choosing a backend.
//! Flow: control asks at start and prints; `Ring::new` explains its failures through here.

mod observe;

use std::{fmt, io};

use rustix::io::Errno;

pub use crate::ring::{Features, TaskRun};
use crate::{resources, ring};

/// The oldest kernel that the ring runs on (deferred task work, vectored zero-copy sends).
pub const KERNEL_MIN: (u32, u32) = (6, 1);
/// Below this, a refusal for lack of memory is the locked-memory limit's doing.
const MEMLOCK_SUSPECT_BYTES: u64 = 64 << 20;

/// The start-up view of the machine.
#[derive(Clone, Debug)]
pub struct Probe {
    /// As the kernel calls itself.
    pub kernel_release: String,
    pub io_uring: Result<Features, Unavailable>,
    /// Soft limit; `u64::MAX`: unlimited.
    pub memlock_limit_bytes: u64,
    /// Name of the container runtime, where there are signs of one.
    pub container: Option<&'static str>,
    /// Whether a seccomp filter is on this process.
    pub seccomp_filter: bool,
    /// `kernel.io_uring_disabled`, where the kernel has it (6.6).
    pub io_uring_disabled: Option<u32>,
}

/// Who keeps io_uring from us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Too old, or built without.
    Kernel,
    /// The sysctl `kernel.io_uring_disabled`, with its value.
    Disabled(u32),
    Seccomp,
    Memlock,
    Other,
}

/// Why io_uring cannot be used, with what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unavailable {
    pub kind: Kind,
    pub message: String,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Unavailable {}

/// Tries a small ring and looks around.
pub fn probe() -> Probe {
    let seen = Observations::of_this_machine();
    Probe {
        io_uring: ring::build_for_probe(8, 16).map(|(_, features)| features),
        memlock_limit_bytes: seen.memlock_limit_bytes,
        container: seen.container,
        seccomp_filter: seen.seccomp_filter,
        io_uring_disabled: seen.io_uring_disabled,
        kernel_release: seen.kernel_release,
    }
}

/// What the machine shows. Classification is a function of this, so that it can be tested.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Observations {
    kernel_release: String,
    io_uring_disabled: Option<u32>,
    /// `kernel.io_uring_group`; -1: none.
    io_uring_group: Option<i64>,
    /// Groups of this process.
    groups: Vec<i64>,
    /// `CAP_SYS_ADMIN` is effective: the sysctl's value 1 does not apply.
    is_admin: bool,
    seccomp_filter: bool,
    memlock_limit_bytes: u64,
    container: Option<&'static str>,
}

impl Observations {
    fn kernel(&self) -> (u32, u32) {
        let mut numbers = self.kernel_release.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
        (next(), next())
    }

    fn sysctl_forbids(&self) -> Option<u32> {
        match self.io_uring_disabled {
            Some(1) => {
                let member = self
                    .io_uring_group
                    .is_some_and(|group| group >= 0 && self.groups.contains(&group));
                (!self.is_admin && !member).then_some(1)
            }
            Some(value) if value >= 2 => Some(value),
            _ => None,
        }
    }
}

/// Explains a failure of `io_uring_setup`.
pub(crate) fn explain(error: &io::Error) -> Unavailable {
    classify(&Observations::of_this_machine(), error)
}

/// The running kernel's version.
pub(crate) fn kernel() -> (u32, u32) {
    Observations::of_this_machine().kernel()
}

/// The kernel has io_uring but lacks a part.
pub(crate) fn missing_operation(name: &str) -> Unavailable {
    let seen = Observations::of_this_machine();
    Unavailable {
        kind: Kind::Kernel,
        message: format!(
            "this kernel ({}) has io_uring without `{name}`: Linux {}.{} or newer is needed",
            seen.kernel_release, KERNEL_MIN.0, KERNEL_MIN.1
        ),
    }
}

fn classify(seen: &Observations, error: &io::Error) -> Unavailable {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let (kind, message) = match errno {
        _ if seen.kernel() < KERNEL_MIN => (Kind::Kernel, kernel_message(seen)),
        Some(Errno::PERM | Errno::ACCESS) => refused(seen, error),
        Some(Errno::NOSYS) if seen.seccomp_filter => (Kind::Seccomp, seccomp_message(seen)),
        Some(Errno::NOSYS) => (
            Kind::Kernel,
            format!(
                "this kernel ({}) was built without io_uring: use one with CONFIG_IO_URING=y",
                seen.kernel_release
            ),
        ),
        Some(Errno::INVAL) => (Kind::Kernel, kernel_message(seen)),
        Some(Errno::NOMEM) if seen.memlock_limit_bytes < MEMLOCK_SUSPECT_BYTES => (
            Kind::Memlock,
            format!(
                "no memory for an io_uring under the locked-memory limit of {} KiB: raise it \
                 (systemd: LimitMEMLOCK=infinity; shell: ulimit -l unlimited; \
                 Docker: --ulimit memlock=-1)",
                seen.memlock_limit_bytes / 1024
            ),
        ),
        _ => (Kind::Other, format!("io_uring_setup failed: {error}")),
    };
    Unavailable { kind, message }
}

fn kernel_message(seen: &Observations) -> String {
    format!(
        "this kernel ({}) is too old for the io_uring backend: Linux {}.{} or newer is needed",
        seen.kernel_release, KERNEL_MIN.0, KERNEL_MIN.1
    )
}

/// EPERM says nothing about who: the sysctl is looked at first because it can be read exactly.
fn refused(seen: &Observations, error: &io::Error) -> (Kind, String) {
    match seen.sysctl_forbids() {
        Some(1) => (
            Kind::Disabled(1),
            "io_uring is switched off for unprivileged processes (kernel.io_uring_disabled=1): \
             as root, `sysctl kernel.io_uring_disabled=0`, or put this user into the group named \
             by kernel.io_uring_group"
                .to_owned(),
        ),
        Some(value) => (
            Kind::Disabled(value),
            format!(
                "io_uring is switched off on this machine (kernel.io_uring_disabled={value}): \
                 as root, `sysctl kernel.io_uring_disabled=0` (and in /etc/sysctl.d to keep it)"
            ),
        ),
        None if seen.seccomp_filter => (Kind::Seccomp, seccomp_message(seen)),
        None => (
            Kind::Other,
            format!(
                "io_uring_setup was refused ({error}) although neither kernel.io_uring_disabled \
                 nor a seccomp filter forbids it: look for a security module (SELinux, AppArmor) \
                 in the kernel's log"
            ),
        ),
    }
}

fn seccomp_message(seen: &Observations) -> String {
    let remedy = match seen.container {
        Some("docker") => {
            "run the container with `--security-opt seccomp=PROFILE`, with docker/seccomp.json \
             of this project as the profile (Docker's default one forbids io_uring)"
        }
        Some("podman") => {
            "run the container with `--security-opt seccomp=PROFILE`, with docker/seccomp.json \
             of this project as the profile (Podman's default one forbids io_uring)"
        }
        Some("kubernetes") => {
            "give the pod a seccompProfile of type Localhost with docker/seccomp.json of this \
             project (containerd's default one forbids io_uring)"
        }
        _ => {
            "allow io_uring_setup, io_uring_enter and io_uring_register in the filter (systemd: \
             SystemCallFilter=@io-event io_uring_setup io_uring_enter io_uring_register; \
             containers: docker/seccomp.json of this project)"
        }
    };
    format!("a seccomp filter forbids io_uring to this process: {remedy}")
}

#[cfg(test)]
mod tests;
