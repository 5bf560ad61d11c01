//! Owns: the configuration that `seedring seed PATH...` stands for.
//! Never: a default of its own where the file has one.
//! Flow: the command line builds `SeedOptions`; `Config::for_seed` makes the configuration of them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::file::ConfigFile;
use super::model::{
    Announce, Config, EmbeddedTracker, Files, Folder, Source, Storage, TorrentLimits,
    TorrentSource, TrackerRef, Trackers, Verify,
};
use super::resolve::absolute;
use super::units::{Period, Rate};
use super::variables;

/// What the command line may say; `None` and empty are the defaults.
#[derive(Clone, Debug, Default)]
pub struct SeedOptions {
    /// Empty: all of IPv4 and IPv6, port 6881.
    pub listen: Vec<SocketAddr>,
    /// Each a tier of its own.
    pub trackers: Vec<String>,
    /// `None`: no embedded tracker.
    pub embedded_tracker: Option<SocketAddr>,
    pub state_dir: Option<PathBuf>,
    pub verify: Option<Verify>,
    pub upload: Rate,
    /// Where the content of .torrent files lies; `None`: beside each of them.
    pub content: Option<PathBuf>,
    pub name: Option<String>,
    pub private: bool,
    pub super_seeding: bool,
}

impl Config {
    /// Folders and files become torrents; a `.torrent` file is seeded from the content beside it.
    pub fn for_seed(paths: &[PathBuf], options: SeedOptions) -> Result<Config, String> {
        let working_dir = std::env::current_dir()
            .map_err(|error| format!("the working directory cannot be read: {error}"))?;
        if options.name.is_some() && paths.len() > 1 {
            return Err("--name goes with one path; leave it out, or seed one".to_string());
        }
        let mut tiers: Vec<Vec<TrackerRef>> = Vec::new();
        if options.embedded_tracker.is_some() {
            tiers.push(vec![TrackerRef::Embedded]);
        }
        tiers.extend(options.trackers.iter().map(|url| vec![TrackerRef::Url(url.clone())]));
        let torrents = paths
            .iter()
            .map(|path| torrent(&working_dir, path, &tiers, &options))
            .collect::<Result<_, _>>()?;
        let file = ConfigFile::default();
        let state_dir = match options.state_dir {
            Some(dir) => working_dir.join(dir),
            None => default_state_dir(&working_dir, &file),
        };
        let listen = if options.listen.is_empty() {
            file.listen.0.iter().map(|at| at.0).collect()
        } else {
            options.listen
        };
        let tracker = options.embedded_tracker.map(|at| EmbeddedTracker {
            listen: vec![at],
            interval: Period::from_secs(120),
            url: None,
        });
        let mut limits = file.limits;
        limits.upload = options.upload;
        Ok(Config {
            file: None,
            control_socket: variables::control_socket(&|name| std::env::var(name).ok())
                .unwrap_or_else(|| state_dir.join("control.sock")),
            state_dir,
            listen,
            announce: Announce::default(),
            shards: file.shards,
            pin: file.pin,
            io: file.io,
            zero_copy: file.zero_copy,
            direct_io: file.direct_io,
            memory: file.memory,
            limits,
            timeouts: file.timeouts,
            pex: file.pex,
            tracker,
            tracker_client: file.tracker_client,
            downloads: Storage::default(),
            log: file.log,
            torrents,
            until_complete: false,
        })
    }
}

/// `$XDG_STATE_HOME/seedring`, as the directory standard has it; else beside the user's other
/// state.
fn default_state_dir(working_dir: &Path, file: &ConfigFile) -> PathBuf {
    let home = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    if let Some(state) = home("XDG_STATE_HOME") {
        return state.join("seedring");
    }
    match home("HOME") {
        Some(home) => home.join(".local/state/seedring"),
        None => working_dir.join(&file.state_dir),
    }
}

fn torrent(
    working_dir: &Path,
    path: &Path,
    tiers: &[Vec<TrackerRef>],
    options: &SeedOptions,
) -> Result<TorrentSource, String> {
    let text = path.to_str().ok_or_else(|| format!("{}: not UTF-8", path.display()))?;
    let absolute_path = absolute(working_dir, text);
    if let Err(error) = std::fs::metadata(&absolute_path) {
        return Err(format!("{}: {error}", path.display()));
    }
    let is_torrent = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("torrent"));
    let (source, trackers, verify) = if is_torrent {
        let beside =
            absolute_path.parent().map_or_else(|| working_dir.to_path_buf(), Path::to_path_buf);
        let content = options.content.as_ref().map_or(beside, |content| working_dir.join(content));
        let patterns = vec![absolute_path.to_string_lossy().into_owned()];
        let trackers = if options.trackers.is_empty() {
            Trackers::Keep
        } else {
            Trackers::Tiers(tiers.to_vec())
        };
        (Source::Files(Files { patterns, content, download: None }), trackers, Verify::Quick)
    } else {
        // `seed .` and `seed ..` are named after the folder that they lead to.
        let real = std::fs::canonicalize(&absolute_path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let own = real.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = options.name.clone().or(own).ok_or_else(|| {
            format!("{}: has no name of its own; give one with --name", path.display())
        })?;
        let folder = Folder {
            path: absolute_path,
            name,
            piece_length: None,
            private: options.private,
            source: None,
            comment: None,
            web_seeds: Vec::new(),
        };
        (Source::Folder(folder), Trackers::Tiers(tiers.to_vec()), Verify::Full)
    };
    let verify = options.verify.unwrap_or(verify);
    let super_seeding = options.super_seeding;
    let limits = TorrentLimits { super_seeding, ..TorrentLimits::default() };
    Ok(TorrentSource { line: 0, source, trackers, verify, limits, pex: None })
}
