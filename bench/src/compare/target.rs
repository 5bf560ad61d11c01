//! Owns: how each seeder is started, known to serve, and ended.
//! Never: measures. Flow: preset -> `start` -> `Running` (pid) -> the load -> dropped: ended.

use std::{
    fmt,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::{Cores, Options, TARGET, on_cores, summary::Report};
use crate::{leech, torrent::Torrent};

/// Until a target serves its first block: rTorrent hashes all content first.
const SERVES_MAX: Duration = Duration::from_secs(120);
/// Until a target that was asked to end is killed.
const END_MAX: Duration = Duration::from_secs(10);

#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    clap::ValueEnum,
    serde::Deserialize,
    serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Iperf3,
    Seedring,
    /// The same engine where io_uring can't be had.
    SeedringEpoll,
    TokioUring,
    Libtorrent,
    Rtorrent,
    Rqbit,
    /// Downloads only.
    Transmission,
    /// Downloads only.
    Aria2,
    /// Rechecks only.
    Sha1sum,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Iperf3 => "iperf3 (ceiling)",
            Kind::Seedring => "seedring",
            Kind::SeedringEpoll => "seedring on epoll",
            Kind::TokioUring => "tokio-uring, straightforward",
            Kind::Libtorrent => "libtorrent",
            Kind::Rtorrent => "rTorrent",
            Kind::Rqbit => "rqbit",
            Kind::Transmission => "transmission",
            Kind::Aria2 => "aria2",
            Kind::Sha1sum => "sha1sum",
        })
    }
}

impl Kind {
    /// The installed version, or why there is none and what to do.
    pub fn version(self, options: &Options) -> Result<String> {
        let (program, arguments, remedy): (&Path, Vec<String>, &str) = match self {
            Kind::Iperf3 => (Path::new("iperf3"), vec!["--version".into()], "apt install iperf3"),
            Kind::Seedring | Kind::SeedringEpoll => {
                (&options.site.seedring, vec!["--version".into()], "cargo build --release")
            }
            Kind::TokioUring => (
                &options.site.baseline,
                vec!["--version".into()],
                "cargo build --release --manifest-path bench/baselines/Cargo.toml",
            ),
            Kind::Libtorrent => {
                let script = script(options, LIBTORRENT_SEED)?;
                let arguments = vec![script.display().to_string(), "--version".into()];
                (
                    &options.site.python,
                    arguments,
                    "python3 -m venv V; V/bin/pip install libtorrent; --python V/bin/python",
                )
            }
            Kind::Rtorrent => (&options.site.rtorrent, vec!["-h".into()], "apt install rtorrent"),
            Kind::Rqbit => (&options.site.rqbit, vec!["--version".into()], "cargo install rqbit"),
            Kind::Transmission => (
                &options.site.transmission,
                vec!["--version".into()],
                "apt install transmission-cli (3.00)",
            ),
            Kind::Aria2 => (&options.site.aria2, vec!["--version".into()], "apt install aria2"),
            Kind::Sha1sum => {
                (Path::new("sha1sum"), vec!["--version".into()], "apt install coreutils")
            }
        };
        let output = Command::new(program)
            .args(&arguments)
            .output()
            .with_context(|| format!("cannot run {}; try: {remedy}", program.display()))?;
        // transmission says it on stderr.
        let said = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
        let text = String::from_utf8_lossy(said);
        let line = text.lines().find(|line| line.chars().any(|letter| letter.is_ascii_digit()));
        let line = line.map(str::trim).filter(|_| output.status.success());
        line.map(|line| line.trim_end_matches('.').to_string()).with_context(|| {
            let complaint = String::from_utf8_lossy(&output.stderr);
            format!("{}: {}; try: {remedy}", program.display(), complaint.trim())
        })
    }
}

/// A program by path stays found from another working folder; links stay links (Python's virtual
/// environments are told by them).
pub fn absolute(program: &Path) -> PathBuf {
    if program.components().count() < 2 {
        return program.into();
    }
    std::path::absolute(program).unwrap_or_else(|_| program.into())
}

/// A script's name and text.
pub type Script = (&'static str, &'static str);
pub const LIBTORRENT_SEED: Script =
    ("libtorrent_seed.py", include_str!("../../rivals/libtorrent_seed.py"));

/// Puts a script where its target can run it.
pub fn script(options: &Options, (name, text): Script) -> Result<PathBuf> {
    let path = options.site.work.join(name);
    fs::write(&path, text)?;
    Ok(path)
}

/// Those of `kinds` that can run, their versions and the others' reasons in the report.
pub fn present(options: &Options, kinds: &[Kind], report: &mut Report) -> Result<Vec<Kind>> {
    let mut targets = Vec::new();
    for kind in kinds {
        match kind.version(options) {
            Ok(version) => {
                report.versions.push(format!("{kind}: {version}"));
                targets.push(*kind);
            }
            Err(error) => {
                eprintln!("{kind} is absent: {error:#}");
                report.absent.push(format!("{kind}: {error:#}"));
            }
        }
    }
    ensure!(!targets.is_empty(), "none of the targets can run");
    Ok(targets)
}

/// One torrent and the folder of its content.
pub struct Content {
    pub torrent: PathBuf,
    pub folder: PathBuf,
}

/// A target process; ended when dropped.
pub struct Running {
    child: Child,
    pub command: String,
    /// What it prints.
    pub log: PathBuf,
}

/// What is special about how seedring runs in a preset.
#[derive(Clone)]
pub struct Settings {
    pub shards: usize,
    pub cache: String,
    pub verify: &'static str,
    pub state: PathBuf,
    /// The .torrent, or a glob.
    pub torrents: String,
    pub content: PathBuf,
    pub listen: SocketAddr,
    /// `auto`, `on` or `off`.
    pub direct_io: &'static str,
    /// `uring` or `epoll`.
    pub io: &'static str,
}

/// Starts a target on its core and waits until it serves a block.
pub fn start(kind: Kind, options: &Options, content: &Content) -> Result<Running> {
    let name = format!("{kind:?}").to_lowercase();
    let run = options.run_folder(&name)?;
    let mut running = match kind {
        Kind::Seedring | Kind::SeedringEpoll => {
            let cache_mib = (options.size_bytes() >> 20) + 512;
            let settings = Settings {
                shards: 1,
                cache: format!("{cache_mib}MiB"),
                verify: "trust",
                state: run,
                torrents: content.torrent.display().to_string(),
                content: content.folder.clone(),
                listen: TARGET,
                direct_io: "auto",
                io: if kind == Kind::Seedring { "uring" } else { "epoll" },
            };
            seedring(options, &settings, &Cores::one(options.site.server_core))?
        }
        _ => spawn(rival(kind, options, content, &run)?, &run)?,
    };
    if kind != Kind::Iperf3 {
        running.wait_until_served(TARGET, &Torrent::read(&content.torrent)?)?;
    }
    Ok(running)
}

fn rival(kind: Kind, options: &Options, content: &Content, run: &Path) -> Result<Command> {
    let core = &Cores::one(options.site.server_core);
    let (address, port) = (TARGET.ip().to_string(), TARGET.port().to_string());
    let torrent = content.torrent.display().to_string();
    let folder = content.folder.display().to_string();
    let mut command;
    match kind {
        Kind::Seedring | Kind::SeedringEpoll => {
            unreachable!("invariant: seedring has settings of its own")
        }
        Kind::Iperf3 => {
            command = on_cores(Path::new("iperf3"), core);
            command.args(["-s", "-B", &address, "-p", &port]);
        }
        Kind::TokioUring => {
            let file = fs::read_dir(&content.folder)?
                .flatten()
                .map(|entry| entry.path())
                .find(|path| path.extension().is_some_and(|extension| extension == "bin"))
                .context("the content's file")?;
            command = on_cores(&absolute(&options.site.baseline), core);
            command.args(["--torrent", &torrent, "--content"]).arg(file);
            command.args(["--listen", &TARGET.to_string()]);
        }
        Kind::Libtorrent => {
            command = on_cores(&absolute(&options.site.python), core);
            command.arg(script(options, LIBTORRENT_SEED)?);
            command.args([&torrent, &folder, &TARGET.to_string()]);
        }
        Kind::Rtorrent => {
            let mut settings = include_str!("../../rivals/rtorrent.rc").to_string();
            for (name, value) in [
                ("{content}", folder),
                ("{run}", run.display().to_string()),
                ("{address}", address),
                ("{port}", port),
                ("{torrent}", torrent),
            ] {
                settings = settings.replace(name, &value);
            }
            let path = run.join("rtorrent.rc");
            fs::write(&path, settings)?;
            command = on_cores(&absolute(&options.site.rtorrent), core);
            command.args(["-n", "-o", &format!("import={}", path.display())]);
        }
        Kind::Rqbit => {
            command = on_cores(&absolute(&options.site.rqbit), core);
            command.args(["-v", "error", "--disable-dht", "--disable-lsd", "--disable-trackers"]);
            command.args(["--disable-upnp-port-forward", "--ipv4-only"]);
            command.args(["--listen-ip", &address, "--listen-port", &port]);
            command.args(["--peer-limit", "4000", "download", "--disable-http-api"]);
            command.args(["--overwrite", "-o", &folder, &torrent]);
        }
        Kind::Transmission | Kind::Aria2 | Kind::Sha1sum => bail!("{kind} has no part in seeding"),
    }
    command.current_dir(run).env("HOME", run);
    Ok(command)
}

/// Starts the engine with a configuration of these settings.
pub fn seedring(options: &Options, settings: &Settings, cores: &Cores) -> Result<Running> {
    fs::create_dir_all(&settings.state)?;
    let yaml = format!(
        "state_dir: {}\nlisten: [\"{}\"]\nshards: {}\npin: off\nio: {}\ndirect_io: {}\n\
         memory: {{ cache: {} }}\n\
         limits: {{ upload: unlimited, connections: 10000, connections_per_torrent: 5000, \
         upload_slots: unlimited }}\n\
         torrents:\n  - files: \"{}\"\n    content: {}\n    verify: {}\n",
        settings.state.display(),
        settings.listen,
        settings.shards,
        settings.io,
        settings.direct_io,
        settings.cache,
        settings.torrents,
        settings.content.display(),
        settings.verify,
    );
    let path = settings.state.join("bench.yaml");
    fs::write(&path, yaml)?;
    let program =
        options.site.seedring.canonicalize().with_context(|| {
            format!("{}: cargo build --release", options.site.seedring.display())
        })?;
    let mut command = on_cores(&program, cores);
    command.arg("run").arg(&path).current_dir(&settings.state);
    spawn(command, &settings.state)
}

/// What the engine of these settings says of itself.
pub fn list(options: &Options, settings: &Settings) -> Result<serde_json::Value> {
    let said = ask(options, settings, &["list", "--json"])?;
    serde_json::from_slice(&said).context("seedring list --json")
}

/// A command to the engine of these settings, and what that prints.
pub fn ask(options: &Options, settings: &Settings, command: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(options.site.seedring.canonicalize()?)
        .args(command)
        .arg("--config")
        .arg(settings.state.join("bench.yaml"))
        .current_dir(&settings.state)
        .output()
        .context("cannot run seedring")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "seedring {}: {}", command.join(" "), complaint.trim());
    Ok(output.stdout)
}

pub fn spawn(mut command: Command, run: &Path) -> Result<Running> {
    let log = run.join("output.log");
    let file = File::create(&log)?;
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .context("cannot run setpriv: install util-linux")?;
    Ok(Running { child, command: words.join(" "), log })
}

impl Running {
    /// All of setpriv, taskset and nice have become the target: one process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, and leaves it to be waited for, so that /proc still knows what it spent.
    /// `None`: it runs.
    pub fn ended(&self) -> Result<Option<i32>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(Pid::from_child(&self.child)), options)?;
        // Killed by a signal: what a shell would say.
        let of_signal = |signal: i32| 128 + signal;
        Ok(status.and_then(|status| {
            status.exit_status().or_else(|| status.terminating_signal().map(of_signal))
        }))
    }

    /// Until it serves a block at this address.
    pub fn wait_until_served(&mut self, at: SocketAddr, torrent: &Torrent) -> Result<()> {
        let deadline = Instant::now() + SERVES_MAX;
        let mut last = anyhow!("not tried");
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}): {}", self.command, self.last_words());
            }
            let source = "10.77.0.9:0".parse().ok();
            match leech::fetch_first_block(at, source, torrent, Duration::from_secs(2)) {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(last).with_context(|| {
            format!("{} served no block in 120 s: {}", self.command, self.last_words())
        })
    }

    /// The end of what it printed.
    pub fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    /// Ends it: asked first, killed after 10 s.
    pub fn end(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        let deadline = Instant::now() + END_MAX;
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.child.kill()?;
        let status = self.child.wait()?;
        ensure!(!status.success(), "invariant: killed");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            eprintln!("{}: cannot be ended: {error:#}", self.command);
        }
    }
}
