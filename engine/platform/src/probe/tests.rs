//! The classification as a table, and the refusals that can really be made here.

use std::{fs, process::Command};

use super::*;

fn machine() -> Observations {
    Observations {
        kernel_release: "6.8.0-31-generic".to_owned(),
        io_uring_disabled: Some(0),
        io_uring_group: Some(-1),
        groups: vec![1000],
        is_admin: false,
        seccomp_filter: false,
        memlock_limit_bytes: 8 << 20,
        container: None,
    }
}

fn kind(change: impl FnOnce(&mut Observations), errno: Errno) -> (Kind, String) {
    let mut seen = machine();
    change(&mut seen);
    let unavailable = classify(&seen, &errno.into());
    (unavailable.kind, unavailable.message)
}

type Row = (&'static str, fn(&mut Observations), Errno, Kind, &'static str);

#[test]
fn who_forbids_it_and_what_to_do() {
    let table: [Row; 13] = [
        ("old", |m| m.kernel_release = "5.15.0".into(), Errno::INVAL, Kind::Kernel, "6.1 or newer"),
        ("old wins", |m| m.kernel_release = "4.19".into(), Errno::NOSYS, Kind::Kernel, "4.19"),
        ("not built in", |_| (), Errno::NOSYS, Kind::Kernel, "CONFIG_IO_URING"),
        ("off", |m| m.io_uring_disabled = Some(2), Errno::PERM, Kind::Disabled(2), "sysctl kernel"),
        (
            "off for users",
            |m| m.io_uring_disabled = Some(1),
            Errno::PERM,
            Kind::Disabled(1),
            "group",
        ),
        (
            "off for users, but in the group: the filter",
            |m| {
                m.io_uring_disabled = Some(1);
                m.io_uring_group = Some(1000);
                m.seccomp_filter = true;
            },
            Errno::PERM,
            Kind::Seccomp,
            "seccomp",
        ),
        (
            "off for users, but root: the filter",
            |m| {
                m.io_uring_disabled = Some(1);
                m.is_admin = true;
                m.seccomp_filter = true;
            },
            Errno::PERM,
            Kind::Seccomp,
            "seccomp",
        ),
        ("filter", |m| m.seccomp_filter = true, Errno::PERM, Kind::Seccomp, "io_uring_register"),
        ("filter, ENOSYS", |m| m.seccomp_filter = true, Errno::NOSYS, Kind::Seccomp, "seccomp"),
        (
            "docker",
            |m| {
                m.seccomp_filter = true;
                m.container = Some("docker");
            },
            Errno::PERM,
            Kind::Seccomp,
            "--security-opt seccomp=",
        ),
        ("memlock", |_| (), Errno::NOMEM, Kind::Memlock, "8192 KiB"),
        ("no memory", |m| m.memlock_limit_bytes = u64::MAX, Errno::NOMEM, Kind::Other, "failed"),
        ("nobody says", |_| (), Errno::PERM, Kind::Other, "SELinux"),
    ];
    for (name, change, errno, expected, hint) in table {
        let (found, message) = kind(change, errno);
        assert_eq!(found, expected, "{name}: {message}");
        assert!(message.contains(hint), "{name}: {message}");
    }
}

#[test]
fn releases_are_read() {
    for (release, expected) in
        [("6.18.44-fc", (6, 18)), ("6.1", (6, 1)), ("5.10.0-28-amd64", (5, 10)), ("?", (0, 0))]
    {
        let mut seen = machine();
        seen.kernel_release = release.to_owned();
        assert_eq!(seen.kernel(), expected);
    }
}

#[test]
fn groups_are_read() {
    assert_eq!(observe::groups("Gid:\t100\t101\t102\t103\nGroups:\t4 24 \n"), [4, 24, 101]);
}

#[test]
fn this_machine_is_described() {
    let probe = probe();
    assert!(!probe.kernel_release.is_empty());
    match probe.io_uring {
        Ok(features) => assert!(features.task_run == TaskRun::Deferred, "{features:?}"),
        Err(unavailable) => assert_ne!(unavailable.kind, Kind::Other, "{unavailable}"),
    }
}

/// Runs one ignored test of this binary in a process of its own and returns what it printed.
fn in_a_child(test: &str) -> String {
    let output = Command::new(std::env::current_exe().expect("path"))
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .expect("child");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn a_seccomp_filter_is_recognised() {
    let text = in_a_child("probe::tests::child_under_a_seccomp_filter");
    assert!(text.contains("kind=Seccomp"), "{text}");
}

/// Classic BPF: load the system call's number; io_uring_setup gives EPERM, all else is allowed.
#[test]
#[ignore = "installs a seccomp filter: run by a_seccomp_filter_is_recognised in its own process"]
fn child_under_a_seccomp_filter() {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: libc::SYS_io_uring_setup as u32,
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: a prctl with integer arguments only.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(result, 0);
    // SAFETY: the filter and its program live across the call; the kernel copies them.
    let result =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    let unavailable = probe().io_uring.expect_err("the filter forbids it");
    println!("kind={:?} {unavailable}", unavailable.kind);
}

/// Where the sysctl may be written (root, kernel 6.6): switched off, probed, put back.
#[test]
fn the_sysctl_is_recognised() {
    const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";
    let Ok(before) = fs::read_to_string(SYSCTL) else { return };
    if std::env::var_os("SEEDRING_TEST_SYSCTL").is_none() {
        // It is the whole machine's: only where the caller says that nobody else minds.
        return;
    }
    struct Restore(String);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = fs::write(SYSCTL, &self.0);
        }
    }
    let _restore = Restore(before);
    if fs::write(SYSCTL, "2").is_err() {
        return;
    }
    let unavailable = probe().io_uring.expect_err("switched off");
    assert_eq!(unavailable.kind, Kind::Disabled(2), "{unavailable}");
}
