//! Owns: the configuration as the engine uses it: every value valid, every path absolute.
//! Never: YAML, defaults' wording, positions in a file; those are `file` and `load`.
//! Flow: `load` or `seed` builds it once; start-up, reload and plan read it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

pub use super::sections::{
    CacheSize, IoBackend, Limits, Log, LogFormat, LogLevel, Memory, Preallocate, Shards, Switch,
    Timeouts, TrackerClient, Verify,
};
pub use super::units::{ByteSize, CountLimit, Period, Rate};

/// What the engine should be and seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file it came from; what SIGHUP reads again. `None` for `seedring seed`.
    pub file: Option<PathBuf>,
    /// Identity, totals, what was verified. Created at start.
    pub state_dir: PathBuf,
    /// The Unix socket that `list` and `show` speak to.
    pub control_socket: PathBuf,
    /// Where peers connect; not empty, no duplicates. Port 0 lets the kernel choose.
    pub listen: Vec<SocketAddr>,
    pub announce: Announce,
    pub shards: Shards,
    /// One shard a core, held there. `auto`: where there are as many cores as shards.
    pub pin: Switch,
    pub io: IoBackend,
    pub zero_copy: Switch,
    pub direct_io: Switch,
    pub memory: Memory,
    pub limits: Limits,
    pub timeouts: Timeouts,
    /// Peers of a torrent tell each other of peers (BEP 11), never those of a private one.
    pub pex: bool,
    /// The embedded tracker; `None` when it is left out.
    pub tracker: Option<EmbeddedTracker>,
    pub tracker_client: TrackerClient,
    /// How downloads that a command adds are kept, unless it says otherwise.
    pub downloads: Storage,
    pub log: Log,
    pub torrents: Vec<TorrentSource>,
    /// End when everything wanted is there (`seedring download`).
    pub until_complete: bool,
}

/// What trackers are told, where it differs from what the kernel says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announce {
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    /// `None`: the port that the engine listens on.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddedTracker {
    /// Not empty.
    pub listen: Vec<SocketAddr>,
    /// What clients are told to wait between announces.
    pub interval: Period,
    /// The URL that goes into torrents; `None`: made from the first listen address.
    pub url: Option<String>,
}

/// One entry of `torrents`.
#[derive(Clone, Debug, PartialEq)]
pub struct TorrentSource {
    /// Line of the entry in the configuration file, 0 when there is none; for messages.
    pub line: u32,
    pub source: Source,
    pub trackers: Trackers,
    pub verify: Verify,
    pub limits: TorrentLimits,
    /// `None`: `Config::pex`.
    pub pex: Option<bool>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    Folder(Folder),
    Files(Files),
    Magnet(MagnetLink),
}

/// A torrent to download of which only the link is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MagnetLink {
    /// Checked: it can be read.
    pub link: String,
    /// The save folder.
    pub folder: PathBuf,
    pub download: DownloadOptions,
}

/// How a torrent is downloaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DownloadOptions {
    /// First piece to last.
    pub sequential: bool,
    /// Patterns of the files that are wanted; empty: all.
    pub only: Vec<String>,
    pub storage: Storage,
}

/// How a download is kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Storage {
    pub preallocate: Preallocate,
    /// Where it lies until it is complete; `None`: in its save folder.
    pub incomplete_folder: Option<PathBuf>,
    /// What its files' names end with until it is complete; may be empty.
    pub incomplete_suffix: String,
    /// Where it lies from then on; `None`: in its save folder.
    pub move_completed_to: Option<PathBuf>,
}

/// The longest suffix.
const SUFFIX_BYTES_MAX: usize = 32;

/// # Errors
/// It can't be the end of a file's name.
pub fn check_suffix(suffix: &str) -> Result<(), String> {
    let good = suffix.len() <= SUFFIX_BYTES_MAX && !suffix.contains(['/', '\0']);
    match good {
        true => Ok(()),
        false => Err(format!(
            "\"{}\" can't be the end of a file's name; write such as .part, at most \
             {SUFFIX_BYTES_MAX} bytes",
            suffix.escape_debug()
        )),
    }
}

/// Content for which the engine makes the torrent itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Folder {
    /// A folder, or a single file.
    pub path: PathBuf,
    /// Never empty: the folder's own name unless the user chose one.
    pub name: String,
    /// A power of two; `None`: chosen from the size.
    pub piece_length: Option<u32>,
    pub private: bool,
    pub source: Option<String>,
    pub comment: Option<String>,
    pub web_seeds: Vec<String>,
}

/// Existing .torrent files and where their content lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Absolute paths or globs, in the order written.
    pub patterns: Vec<String>,
    /// The folder that holds each torrent's file or top folder.
    pub content: PathBuf,
    /// `Some`: content that is missing is downloaded.
    pub download: Option<DownloadOptions>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trackers {
    /// Those in the .torrent file.
    Keep,
    /// These, tier by tier (BEP 12); no tiers: none at all.
    Tiers(Vec<Vec<TrackerRef>>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrackerRef {
    /// The engine's own tracker; only where `Config::tracker` is there.
    Embedded,
    /// `http://`, `https://` or `udp://`.
    Url(String),
}

/// How a torrent is seeded. Numbers are within the engine's own limits; the smaller of both holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TorrentLimits {
    pub upload: Rate,
    pub download: Rate,
    /// `None`: `limits.connections_per_torrent`.
    pub connections: Option<u32>,
    pub upload_slots: CountLimit,
    /// BEP 16.
    pub super_seeding: bool,
}

impl Files {
    /// The .torrent files there are now, sorted within each pattern, each once.
    ///
    /// A plain path is returned whether it exists or not, so that its absence is reported by
    /// whoever opens it; a glob returns what it matches, which may be nothing.
    pub fn expand(&self) -> Result<Vec<PathBuf>, glob::GlobError> {
        let mut seen = std::collections::HashSet::new();
        let mut found = Vec::new();
        for pattern in &self.patterns {
            if !is_glob(pattern) {
                let path = PathBuf::from(pattern);
                if seen.insert(path.clone()) {
                    found.push(path);
                }
                continue;
            }
            let matches = glob::glob(pattern).expect("invariant: patterns are checked at load");
            for path in matches {
                let path = path?;
                if seen.insert(path.clone()) {
                    found.push(path);
                }
            }
        }
        Ok(found)
    }
}

/// Whether a path is a pattern. A file that exists under its literal name is never one.
pub(super) fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?', '[']) && !Path::new(pattern).exists()
}
