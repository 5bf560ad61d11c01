//! Owns: how each seeder is started, known to serve, and ended.
//! Never: measures. Flow: preset -> `start` -> `Running` (pid) -> the load -> dropped: ended.

use std::{
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{Cores, Options, TARGET, on_cores};
use crate::{leech, torrent::Torrent};

/// Until a target serves its first block: rTorrent hashes all content first.
const SERVES_MAX: Duration = Duration::from_secs(120);
/// Until a target that was asked to end is killed.
const END_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    Iperf3,
    Seedring,
    TokioUring,
    Libtorrent,
    Rtorrent,
    Rqbit,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Iperf3 => "iperf3 (ceiling)",
            Kind::Seedring => "seedring",
            Kind::TokioUring => "tokio-uring, straightforward",
            Kind::Libtorrent => "libtorrent",
            Kind::Rtorrent => "rTorrent",
            Kind::Rqbit => "rqbit",
        })
    }
}

impl Kind {
    /// The installed version, or why there is none and what to do.
    pub fn version(self, options: &Options) -> Result<String> {
        let (program, arguments, remedy): (&Path, Vec<String>, &str) = match self {
            Kind::Iperf3 => (Path::new("iperf3"), vec!["--version".into()], "apt install iperf3"),
            Kind::Seedring => {
                (&options.seedring, vec!["--version".into()], "cargo build --release")
            }
            Kind::TokioUring => (
                &options.baseline,
                vec!["--version".into()],
                "cargo build --release --manifest-path bench/baselines/Cargo.toml",
            ),
            Kind::Libtorrent => {
                let script = libtorrent_script(options)?;
                let arguments = vec![script.display().to_string(), "--version".into()];
                (
                    &options.python,
                    arguments,
                    "python3 -m venv V; V/bin/pip install libtorrent; --python V/bin/python",
                )
            }
            Kind::Rtorrent => (&options.rtorrent, vec!["-h".into()], "apt install rtorrent"),
            Kind::Rqbit => (&options.rqbit, vec!["--version".into()], "cargo install rqbit"),
        };
        let output = Command::new(program)
            .args(&arguments)
            .output()
            .with_context(|| format!("cannot run {}; try: {remedy}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
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
fn absolute(program: &Path) -> PathBuf {
    if program.components().count() < 2 {
        return program.into();
    }
    std::path::absolute(program).unwrap_or_else(|_| program.into())
}

fn libtorrent_script(options: &Options) -> Result<PathBuf> {
    let path = options.work.join("libtorrent_seed.py");
    fs::write(&path, include_str!("../../rivals/libtorrent_seed.py"))?;
    Ok(path)
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
    log: PathBuf,
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
}

/// Starts a target on its core and waits until it serves a block.
pub fn start(kind: Kind, options: &Options, content: &Content) -> Result<Running> {
    let name = format!("{kind:?}").to_lowercase();
    let run = options.run_folder(&name)?;
    let mut running = match kind {
        Kind::Seedring => {
            let cache_mib = (options.size_bytes() >> 20) + 512;
            let settings = Settings {
                shards: 1,
                cache: format!("{cache_mib}MiB"),
                verify: "trust",
                state: run,
                torrents: content.torrent.display().to_string(),
                content: content.folder.clone(),
            };
            seedring(options, &settings, &Cores::one(options.server_core))?
        }
        _ => spawn(rival(kind, options, content, &run)?, &run)?,
    };
    if kind != Kind::Iperf3 {
        running.wait_until_served(&Torrent::read(&content.torrent)?)?;
    }
    Ok(running)
}

fn rival(kind: Kind, options: &Options, content: &Content, run: &Path) -> Result<Command> {
    let core = &Cores::one(options.server_core);
    let (address, port) = (TARGET.ip().to_string(), TARGET.port().to_string());
    let torrent = content.torrent.display().to_string();
    let folder = content.folder.display().to_string();
    let mut command;
    match kind {
        Kind::Seedring => unreachable!("invariant: seedring has settings of its own"),
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
            command = on_cores(&absolute(&options.baseline), core);
            command.args(["--torrent", &torrent, "--content"]).arg(file);
            command.args(["--listen", &TARGET.to_string()]);
        }
        Kind::Libtorrent => {
            command = on_cores(&absolute(&options.python), core);
            command.arg(libtorrent_script(options)?);
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
            command = on_cores(&absolute(&options.rtorrent), core);
            command.args(["-n", "-o", &format!("import={}", path.display())]);
        }
        Kind::Rqbit => {
            command = on_cores(&absolute(&options.rqbit), core);
            command.args(["-v", "error", "--disable-dht", "--disable-lsd", "--disable-trackers"]);
            command.args(["--disable-upnp-port-forward", "--ipv4-only"]);
            command.args(["--listen-ip", &address, "--listen-port", &port]);
            command.args(["--peer-limit", "4000", "download", "--disable-http-api"]);
            command.args(["--overwrite", "-o", &folder, &torrent]);
        }
    }
    command.current_dir(run).env("HOME", run);
    Ok(command)
}

/// Starts the engine with a configuration of these settings.
pub fn seedring(options: &Options, settings: &Settings, cores: &Cores) -> Result<Running> {
    fs::create_dir_all(&settings.state)?;
    let yaml = format!(
        "state_dir: {}\nlisten: [\"{TARGET}\"]\nshards: {}\npin: off\nio: uring\n\
         memory: {{ cache: {} }}\n\
         limits: {{ upload: unlimited, connections: 10000, connections_per_torrent: 5000, \
         upload_slots: unlimited }}\n\
         torrents:\n  - files: \"{}\"\n    content: {}\n    verify: {}\n",
        settings.state.display(),
        settings.shards,
        settings.cache,
        settings.torrents,
        settings.content.display(),
        settings.verify,
    );
    let path = settings.state.join("bench.yaml");
    fs::write(&path, yaml)?;
    let program = options
        .seedring
        .canonicalize()
        .with_context(|| format!("{}: cargo build --release", options.seedring.display()))?;
    let mut command = on_cores(&program, cores);
    command.arg("run").arg(&path).current_dir(&settings.state);
    spawn(command, &settings.state)
}

fn spawn(mut command: Command, run: &Path) -> Result<Running> {
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

    pub fn wait_until_served(&mut self, torrent: &Torrent) -> Result<()> {
        let deadline = Instant::now() + SERVES_MAX;
        let mut last = anyhow!("not tried");
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}): {}", self.command, self.last_words());
            }
            let source = "10.77.0.9:0".parse().ok();
            match leech::fetch_first_block(TARGET, source, torrent, Duration::from_secs(2)) {
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
