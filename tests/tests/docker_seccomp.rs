//! Owns: that docker/seccomp.json lets the engine work and refuses what it was not seen to use.
//! Never: trusts the file: what a process is refused is asked of the kernel.
//! Flow: the profile beside its evidence; a program that tries calls, in containers with and
//! without it; the engine where the calls of io_uring are refused. The interoperability tests run
//! under it too (`tests/run docker`).

use anyhow::{Context, Result, ensure};
use seedring_tests::docker::{
    Container, docker, file, image, profile, profile_without_io_uring, try_docker,
};
use seedring_tests::interop::{Scratch, repository_root, wait_until};
use seedring_tests::live::SingleFile;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const LIMIT: Duration = Duration::from_secs(30);

/// Calls by the comment of their group; one that depends on its arguments may have several.
fn groups() -> Result<Vec<(String, BTreeSet<String>)>> {
    let profile: Value = serde_json::from_str(&std::fs::read_to_string(file("seccomp.json"))?)?;
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO", "what is not listed is refused");
    let groups = profile["syscalls"].as_array().context("groups")?.iter().map(|group| {
        let names = group["names"].as_array().into_iter().flatten();
        let names = names.filter_map(|name| Some(name.as_str()?.to_owned())).collect();
        (group["comment"].as_str().unwrap_or_default().to_owned(), names)
    });
    Ok(groups.collect())
}

/// What the programs were seen to call, and who of them (docker/seccomp/record).
fn seen() -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(file("seccomp/seen.tsv"))?;
    let lines = text.lines().skip(1);
    Ok(lines.filter_map(|line| line.split_once('\t')).map(|(a, b)| (a.into(), b.into())).collect())
}

/// A call without evidence is in the one group that says why it is there all the same.
#[test]
fn the_profile_lists_what_was_seen() -> Result<()> {
    let (groups, seen) = (groups()?, seen()?);
    ensure!(seen.len() > 60, "{} calls seen: is seen.tsv whole?", seen.len());
    let listed: BTreeSet<&String> = groups.iter().flat_map(|(_, names)| names).collect();
    let missing: Vec<_> = seen.keys().filter(|name| !listed.contains(name)).collect();
    ensure!(missing.is_empty(), "seen, and refused: {missing:?}");
    let unseen: Vec<_> = groups
        .iter()
        .filter(|(comment, _)| !comment.starts_with("Not seen"))
        .flat_map(|(_, names)| names)
        .filter(|name| !seen.contains_key(*name))
        .collect();
    ensure!(unseen.is_empty(), "allowed, and never seen: {unseen:?}");
    let count: usize = groups.iter().map(|(_, names)| names.len()).sum();
    let families = groups.iter().filter(|(_, names)| names.contains("socket")).count();
    ensure!(count == listed.len() + families - 1, "a call stands in two groups");
    Ok(())
}

/// Each call and what the kernel said, in a container with this option.
fn attempts(program: &str, security: &str) -> Result<BTreeMap<String, String>> {
    let mount = format!("{program}:/attempt:ro");
    let options = ["run", "--rm", "--network=none", "--cap-drop=ALL", "--security-opt", security];
    let rest = ["-v", &mount, "--entrypoint=/attempt", &image("seedring-bench")];
    let text = docker(&[&options[..], &rest].concat())?;
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    Ok(lines.map(|(call, answer)| (call.to_owned(), answer.to_owned())).collect())
}

#[test]
fn a_call_that_is_not_listed_is_refused() -> Result<()> {
    let scratch = Scratch::new(TMP, "docker_attempt")?;
    let program = scratch.path().join("attempt").display().to_string();
    let source = repository_root().join("tests/src/docker/attempt.c");
    let built = Command::new("cc").args(["-static", "-o", &program]).arg(source).status()?;
    ensure!(built.success(), "cc failed: is libc6-dev installed?");
    let without = attempts(&program, "seccomp=unconfined")?;
    let with = attempts(&program, &profile())?;
    let refused = "Operation not permitted";
    for call in ["memfd_create", "getpgrp", "times", "personality", "inotify_init1", "fork"] {
        assert_eq!(without[call], "allowed", "{call}: no filter");
        assert_eq!(with[call], refused, "{call}: the profile");
    }
    for call in ["getpid", "gettid"] {
        assert_eq!(with[call], "allowed", "{call}");
    }
    // Not for want of the filter: the test would show nothing else.
    assert_eq!(without["sethostname"], refused);
    Ok(())
}

/// As newer engines' default profile has it: the engine says so and works.
#[test]
fn where_io_uring_is_refused_the_engine_seeds_on_epoll_and_says_so() -> Result<()> {
    let scratch = Scratch::new(TMP, "docker_epoll")?;
    let file = SingleFile::make(scratch.path(), "file.bin", 3_000_000, "")?;
    let refuses = profile_without_io_uring(scratch.path())?;
    let image = image("seedring");
    for (security, io_uring) in [(&profile(), true), (&refuses, false)] {
        let content = format!("{}:/downloads:ro", scratch.path().display());
        let options = ["--security-opt", security, "--cap-drop=ALL", "-v", &content];
        let seed = ["seed", "/downloads/file.bin.torrent", "--content", "/downloads/content"];
        let rest = ["--no-embedded-tracker", "--verify=full"];
        let engine = Container::start(
            &[&options[..], &["--health-interval=1s", &image], &seed, &rest].concat(),
        )?;
        engine.wait_healthy()?;
        let log = engine.wait_for_text(&["1 torrent seeding"])?;
        let words = ["a seccomp filter forbids io_uring", "epoll", "docker/seccomp.json"];
        for text in words {
            ensure!(log.contains(text) != io_uring, "{text:?} with {security}: {log}");
        }
        let address = SocketAddr::from((engine.address()?, 6881));
        file.check_served(address).with_context(|| format!("with {security}"))?;
        let (_, doctor) = engine.exec(&["/seedring", "doctor"])?;
        let says = if io_uring { "io_uring       usable" } else { "runs on epoll" };
        ensure!(doctor.contains(says), "{doctor}");
    }
    file.check_untouched()
}

/// `io: uring` makes an error of it.
#[test]
fn io_uring_that_was_asked_for_and_is_refused_ends_the_container() -> Result<()> {
    let scratch = Scratch::new(TMP, "docker_uring")?;
    let refuses = profile_without_io_uring(scratch.path())?;
    let yaml = scratch.path().join("seedring.yaml");
    std::fs::write(&yaml, "state_dir: /config\nio: uring\ntorrents: []\n")?;
    let mount = format!("{}:/config/seedring.yaml:ro", yaml.display());
    let options = ["run", "--rm", "--network=none", "--security-opt", &refuses, "-v", &mount];
    let (status, text) = try_docker(&[&options[..], &[&*image("seedring")]].concat())?;
    ensure!(status == 1 && text.contains("a seccomp filter forbids io_uring"), "{status}: {text}");
    Ok(())
}

/// The load generator as well, whatever it does.
#[test]
fn the_load_works_under_the_profile() -> Result<()> {
    let scratch = Scratch::new(TMP, "docker_load")?;
    let file = SingleFile::make(scratch.path(), "file.bin", 3_000_000, "")?;
    let (security, content) = (profile(), format!("{}:/downloads:ro", scratch.path().display()));
    let options = ["--security-opt", &security, "--cap-drop=ALL", "--health-interval=1s", "-v"];
    let seed = ["seed", "/downloads/file.bin.torrent", "--content", "/downloads/content"];
    let run = [&content, &*image("seedring")];
    let engine =
        Container::start(&[&options[..], &run, &seed, &["--no-embedded-tracker"]].concat())?;
    engine.wait_healthy()?;
    let target = format!("{}:6881", engine.address()?);
    let options = ["run", "--rm", "--security-opt", &security, "--cap-drop=ALL", "-v", &content];
    let leech = ["leech", &target, "--torrent=/downloads/file.bin.torrent", "--json"];
    let whole = ["--once", "--verify", "--pattern=together", "--connections=3"];
    let image = image("seedring-bench");
    let run = [&options[..], &[&*image], &leech, &whole].concat();
    let report: Value = wait_until("the load's report", LIMIT, || {
        let (status, text) = try_docker(&run)?;
        ensure!(status == 0, "{text}");
        Ok(Some(serde_json::from_str(&text).with_context(|| text.clone())?))
    })?;
    let pieces = 3 * 3_000_000_u64.div_ceil(32 << 10);
    assert_eq!(report["pieces_verified"].as_u64(), Some(pieces), "{report}");
    file.check_untouched()
}
