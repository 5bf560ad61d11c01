//! Owns: what tests of the binary share: a folder, content, the faulty target, runs of the load, a
//! program that passes for the engine.
//! Never: outlives its test. Flow: test -> `Scratch` -> `Faulty` -> `leech` -> exit status, JSON.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

/// What reports look like.
#[path = "../../src/schema.rs"]
pub mod schema;

pub const BENCH: &str = env!("CARGO_BIN_EXE_seedring-bench");

/// A folder of one test, removed at its end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = folder.join(format!("bench-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a scratch folder");
        Scratch(folder)
    }

    /// Content of so many bytes in pieces of so many, and its torrent.
    pub fn content(&self, bytes: u64, piece_bytes: u64) -> (PathBuf, PathBuf) {
        let file = self.0.join("content.bin");
        let output = bench(&[
            "payload",
            file.to_str().expect("UTF-8"),
            "--size",
            &bytes.to_string(),
            "--piece",
            &piece_bytes.to_string(),
        ]);
        assert!(output.status.success(), "{}", said(&output));
        let torrent = self.0.join("content.bin.torrent");
        (file, torrent)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

pub fn bench(arguments: &[&str]) -> Output {
    Command::new(BENCH).args(arguments).output().expect("the bench runs")
}

/// What it complained of.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn is_root(test: &str) -> bool {
    let output = Command::new("id").arg("-u").output().expect("id");
    let is_root = output.stdout.starts_with(b"0\n");
    if !is_root {
        eprintln!("{test}: needs root, not run");
    }
    is_root
}

/// A program that passes for the engine: what is started for `seedring` does as `uring` says, what
/// is started for `seedring-epoll` as `epoll` says. Both see the content's folder as $hot.
pub fn stand_in(scratch: &Scratch, uring: &str, epoll: &str) -> PathBuf {
    let path = scratch.0.join("engine");
    let hot = scratch.0.join("hot");
    let script = format!(
        "#!/bin/sh\nhot='{}'\n[ \"$1\" = --version ] && echo 'stand-in 1' && exit\n\
         faulty() {{ exec '{BENCH}' faulty --torrent $hot/payload.bin.torrent \
         --content $hot/payload.bin --listen 10.77.0.1:6881 --fault $1; }}\n\
         if grep -q 'io: epoll' \"$2\"; then {epoll}; else {uring}; fi\n",
        hot.display()
    );
    fs::write(&path, script).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

/// The target that does one thing wrong; killed when dropped.
pub struct Faulty {
    pub child: Child,
    pub address: String,
    pub torrent: PathBuf,
}

impl Faulty {
    pub fn start(scratch: &Scratch, fault: &str) -> Faulty {
        let (content, torrent) = scratch.content(16 << 20, 64 << 10);
        let mut child = Command::new(BENCH)
            .args(["faulty", "--fault", fault, "--torrent"])
            .arg(&torrent)
            .arg("--content")
            .arg(&content)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the faulty target");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("its address");
        let address = line.split(' ').nth(2).expect("listening on ADDRESS").to_owned();
        Faulty { child, address, torrent }
    }

    pub fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// A run of the load against it: exit status, what it found, what it complained of.
    pub fn leech(&self, arguments: &[&str]) -> (i32, Value, String) {
        let output = self.leech_command(arguments).output().expect("the load");
        found(&output)
    }

    pub fn leech_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BENCH);
        command.args(["leech", &self.address, "--json", "--warm-up", "0", "--torrent"]);
        command.arg(&self.torrent).args(arguments);
        command
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub fn found(output: &Output) -> (i32, Value, String) {
    let json = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", said(output)));
    (output.status.code().expect("it ended by itself"), json, said(output))
}

pub fn count(outcome: &Value, name: &str) -> u64 {
    outcome[name].as_u64().unwrap_or_else(|| panic!("no {name}"))
}
