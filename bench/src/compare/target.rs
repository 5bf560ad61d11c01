//! Owns: how each seeder is started, known to serve, and ended.
//! Never: measures. Flow: preset -> `start` -> `Running` (pid) -> the load -> dropped: ended.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::{
    Cores, Options, TARGET, afar,
    kind::{Kind, Target, Tuning},
    many, on_cores, rival,
};
use crate::{cut, leech, torrent::Torrent};

/// Until a target serves its first block: rTorrent hashes all content first.
const SERVES_MAX: Duration = Duration::from_secs(120);
/// Between one try for a block and the next.
const PATIENCE: Duration = Duration::from_secs(2);
/// transmission unchokes each 10 s.
const ROUND_MAX: Duration = Duration::from_secs(15);
/// Until a target that was asked to end is killed.
const END_MAX: Duration = Duration::from_secs(10);
/// What the engine may hold where a comparison says nothing.
const CONNECTIONS: usize = 10_000;

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
/// What those for libtorrent import.
const LIBTORRENT_SESSION: Script =
    ("libtorrent_session.py", include_str!("../../rivals/libtorrent_session.py"));

/// Puts a script where its target can run it, and beside it what it imports.
pub fn script(options: &Options, (name, text): Script) -> Result<PathBuf> {
    let (session, session_text) = LIBTORRENT_SESSION;
    fs::write(options.site.work.join(session), session_text)?;
    let path = options.site.work.join(name);
    fs::write(&path, text)?;
    Ok(path)
}

/// Torrents and the folder of their content.
#[derive(Clone)]
pub struct Content {
    pub torrent: PathBuf,
    /// Further ones; then all are the .torrent files of the folder.
    pub more: Vec<PathBuf>,
    pub folder: PathBuf,
}

impl Content {
    pub fn torrents(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.torrent).chain(&self.more)
    }

    /// The .torrent, or a glob of all.
    pub fn pattern(&self) -> String {
        if self.more.is_empty() { self.torrent.display().to_string() } else { self.all_in_folder() }
    }

    /// A glob of whatever torrents the folder has.
    pub fn all_in_folder(&self) -> String {
        self.folder.join("*.torrent").display().to_string()
    }
}

/// How a target is to seed.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    pub content: &'a Content,
    /// Connections it has to hold, where it is tuned.
    pub connections: usize,
    /// What the engine does about content that is there; others do what they do.
    pub verify: &'static str,
    /// It finds what it left behind.
    pub again: bool,
}

impl<'a> Way<'a> {
    pub fn of(content: &'a Content) -> Self {
        Way { content, connections: CONNECTIONS, verify: "trust", again: false }
    }
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
    /// Connections it may hold, half of them of one torrent. `None`: its own limits, and its own
    /// number of shards and size of the cache.
    pub connections: Option<usize>,
}

impl Settings {
    /// One shard at the targets' address, with this content, which it trusts, and a cache of so
    /// much; as many connections as a comparison opens where it says nothing. A preset says what
    /// is otherwise.
    pub fn of(content: &Content, state: PathBuf, cache: impl Into<String>) -> Self {
        Settings {
            shards: 1,
            cache: cache.into(),
            verify: "trust",
            state,
            torrents: content.pattern(),
            content: content.folder.clone(),
            listen: TARGET,
            direct_io: "auto",
            io: "uring",
            connections: Some(CONNECTIONS),
        }
    }
}

/// Starts a target on its core and waits until it serves a block of each torrent's sample.
pub fn start(target: Target, options: &Options, way: &Way<'_>) -> Result<Running> {
    let mut running = spawn_target(target, options, way)?;
    if !target.kind.is_ceiling() {
        running.wait_until_served(options.target(), &Torrent::read(&way.content.torrent)?)?;
    }
    Ok(running)
}

/// The folder of a target's state.
pub fn state_folder(target: Target, options: &Options) -> PathBuf {
    let name = match target.tuning {
        Tuning::Tuned => format!("{:?}", target.kind),
        Tuning::Default => format!("{:?}-default", target.kind),
    };
    options.site.work.join("run").join(name.to_lowercase())
}

/// The same, not waited for.
pub fn spawn_target(target: Target, options: &Options, way: &Way<'_>) -> Result<Running> {
    let run = state_folder(target, options);
    if !way.again {
        empty_folder(&run)?;
    }
    match target.kind {
        Kind::Seedring | Kind::SeedringEpoll => {
            let settings = engine_settings(target, options, way);
            let cores = Cores::one(options.site.server_core);
            seedring(options, &settings, &cores)
        }
        _ => spawn(rival::command(target, options, way, &run)?, &run),
    }
}

/// The engine's settings as a target among others.
pub fn engine_settings(target: Target, options: &Options, way: &Way<'_>) -> Settings {
    let torrents = 1 + way.content.more.len() as u64;
    let content_bytes =
        if torrents > 1 { torrents * many::FILE_BYTES } else { options.size_bytes() };
    let cache_mib = (content_bytes >> 20) + 512;
    Settings {
        verify: way.verify,
        listen: options.target(),
        io: if target.kind == Kind::SeedringEpoll { "epoll" } else { "uring" },
        connections: (target.tuning == Tuning::Tuned).then_some(way.connections),
        ..Settings::of(way.content, state_folder(target, options), format!("{cache_mib}MiB"))
    }
}

/// Makes it, without what it held.
pub fn empty_folder(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    Ok(fs::create_dir_all(folder)?)
}

/// Starts the engine with a configuration of these settings.
pub fn seedring(options: &Options, settings: &Settings, cores: &Cores) -> Result<Running> {
    fs::create_dir_all(&settings.state)?;
    let tuned = settings.connections.map_or(String::new(), |connections| {
        format!(
            "shards: {}\nmemory: {{ cache: {} }}\n\
             limits: {{ upload: unlimited, connections: {connections}, \
             connections_per_torrent: {}, upload_slots: unlimited }}\n",
            settings.shards,
            settings.cache,
            connections.div_ceil(2),
        )
    });
    let yaml = format!(
        "state_dir: {}\nlisten: [\"{}\"]\nio: {}\ndirect_io: {}\n{tuned}\
         torrents:\n  - files: \"{}\"\n    content: {}\n    verify: {}\n",
        settings.state.display(),
        settings.listen,
        settings.io,
        settings.direct_io,
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
    cut::check()?;
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
        .context("cannot run this program once more")?;
    Ok(Running { child, command: in_words(&words), log })
}

/// A command as reports print it: some clients are given each of a thousand torrents by its name.
fn in_words(words: &[String]) -> String {
    const WORDS_MAX: usize = 40;
    let (said, more) = words.split_at(words.len().min(WORDS_MAX));
    match more {
        [] => said.join(" "),
        [more @ .., last] => {
            format!("{} [{} arguments more] {last}", said.join(" "), more.len())
        }
    }
}

impl Running {
    /// The process that was spawned has become the target.
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
        let start = Instant::now();
        let deadline = start + SERVES_MAX;
        let mut last = anyhow!("not tried");
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}): {}", self.command, self.last_words());
            }
            let source = afar::asker(at, 0);
            // Soon after its start a target may have forgotten the connection; later it may be one
            // that unchokes in rounds.
            let patience = if start.elapsed() < 5 * PATIENCE { PATIENCE } else { ROUND_MAX };
            match leech::fetch_first_block(at, source, torrent, patience) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_command_its_begin_and_end_are_said() {
        let words = |count: usize| (1..=count).map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(in_words(&words(3)), "1 2 3");
        assert!(in_words(&words(40)).ends_with(" 39 40"));
        assert!(in_words(&words(1000)).ends_with(" 39 40 [959 arguments more] 1000"));
    }
}
