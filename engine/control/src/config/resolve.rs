//! Owns: what holds between keys: paths made absolute, what excludes or needs what.
//! Never: single values; those are valid once they were read.
//! Flow: `file` shapes and their nodes come in, `model::Config` goes out.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path, PathBuf};

use super::file::{ConfigFile, DownloadsFile, List, Listen, TorrentEntry, TrackersField};
use super::model::{
    Announce, Config, DownloadOptions, EmbeddedTracker, Files, Folder, MagnetLink, Source, Storage,
    TorrentLimits, TorrentSource, TrackerRef, Trackers, Verify, check_suffix, is_glob,
};
use super::read::{Problem, Reading};
use super::tree::{Node, Place, Value};
use super::units::ByteSize;

/// Keys of an entry that say how its files are downloaded.
const HOW_DOWNLOADED: [&str; 6] = [
    "sequential",
    "only",
    "preallocate",
    "incomplete_folder",
    "incomplete_suffix",
    "move_completed_to",
];

/// The file after reading, with its tree for positions.
pub(super) struct Resolver<'a> {
    pub(super) root: &'a Node,
    pub(super) reading: &'a Reading,
    pub(super) warnings: Vec<Problem>,
    /// What relative paths start from; absolute.
    pub(super) base: PathBuf,
    pub(super) has_tracker: bool,
    /// What the environment says where the file says nothing.
    pub(super) control_socket: Option<PathBuf>,
}

impl Resolver<'_> {
    pub(super) fn config(
        &mut self,
        file: ConfigFile,
        entries: Vec<(usize, &Node, TorrentEntry)>,
    ) -> Config {
        let state_dir = self.path(&file.state_dir);
        let listen: Vec<SocketAddr> = file.listen.0.iter().map(|Listen(at)| *at).collect();
        self.check_listen(&listen, &file);
        let announce = self.announce(&file);
        self.check_limits(&file);
        let downloads = self.downloads(&file.downloads);
        let tracker = file.tracker.map(|tracker| EmbeddedTracker {
            listen: tracker.listen.0.into_iter().map(|Listen(at)| at).collect(),
            interval: tracker.interval,
            url: tracker.url.map(|url| url.0),
        });
        let mut torrents: Vec<TorrentSource> = Vec::with_capacity(entries.len());
        let mut seen = HashMap::new();
        for (index, node, entry) in entries {
            let Some(torrent) = self.torrent(index, node, entry, &downloads) else { continue };
            self.check_twice(&mut seen, index, node, &torrent);
            torrents.push(torrent);
        }
        Config {
            file: None,
            control_socket: match &file.control_socket {
                Some(path) => self.path(path),
                None => match self.control_socket.take() {
                    Some(path) => path,
                    None => state_dir.join("control.sock"),
                },
            },
            state_dir,
            listen,
            announce,
            shards: file.shards,
            pin: file.pin,
            io: file.io,
            zero_copy: file.zero_copy,
            direct_io: file.direct_io,
            memory: file.memory,
            limits: file.limits,
            timeouts: file.timeouts,
            pex: file.pex,
            tracker,
            tracker_client: file.tracker_client,
            downloads,
            log: file.log,
            torrents,
            until_complete: false,
        }
    }

    fn path(&self, text: &str) -> PathBuf {
        absolute(&self.base, text)
    }

    fn error(&self, place: Place, key: &str, message: String, help: &str) {
        let help = (!help.is_empty()).then(|| help.to_string());
        self.reading.report(Problem { place, key: key.to_string(), message, help });
    }

    fn warn(&mut self, place: Place, key: &str, message: String, help: &str) {
        let help = (!help.is_empty()).then(|| help.to_string());
        self.warnings.push(Problem { place, key: key.to_string(), message, help });
    }

    fn check_listen(&mut self, listen: &[SocketAddr], file: &ConfigFile) {
        let node = self.root.get("listen");
        let read_well = node.is_none_or(|node| self.reads_whole(node));
        if listen.is_empty() && read_well {
            let help = "write such as listen: [\"0.0.0.0:6881\"], or leave the key out";
            let place = self.key_place(&["listen"]);
            self.error(place, "listen", "no address to listen on".to_string(), help);
        }
        if let Some(node) = node {
            self.check_addresses(listen, node, "listen");
        }
        let Some(tracker) = &file.tracker else { return };
        let node = self.root.get("tracker").and_then(|tracker| tracker.get("listen"));
        let trackers: Vec<SocketAddr> = tracker.listen.0.iter().map(|Listen(at)| *at).collect();
        if trackers.is_empty() && node.is_none_or(|node| self.reads_whole(node)) {
            let help = "write such as tracker: { listen: \"127.0.0.1:6969\" }, \
                        or leave tracker out for none";
            let place = self.key_place(&["tracker"]);
            self.error(place, "tracker.listen", "the tracker needs an address".to_string(), help);
        }
        if let Some(node) = node {
            self.check_addresses(&trackers, node, "tracker.listen");
            if let Some(at) = trackers.iter().find(|at| at.port() != 0 && overlaps(at, listen)) {
                let message = format!("{at} is taken by listen already");
                self.error(node.place, "tracker.listen", message, "give the tracker another port");
            }
        }
    }

    /// The same address twice, or beside one that contains it.
    fn check_addresses(&self, addresses: &[SocketAddr], node: &Node, key: &str) {
        let mut read = node.items().iter().filter(|item| !self.reading.is_aside(item));
        for (index, at) in addresses.iter().enumerate() {
            let place = read.next().unwrap_or(node).place;
            if at.port() == 0 {
                continue;
            }
            if addresses[..index].contains(at) {
                let message = format!("{at} is listed twice");
                self.error(place, key, message, "leave one of them out");
            } else if overlaps(at, &addresses[..index]) {
                let message = format!("{at} is contained in an address listed before it");
                self.error(
                    place,
                    key,
                    message,
                    "an unspecified address (0.0.0.0, [::]) has them all",
                );
            }
        }
    }

    fn announce(&self, file: &ConfigFile) -> Announce {
        let mut announce = Announce { port: file.announce.port, ..Announce::default() };
        let place = self.key_place(&["announce", "address"]);
        for address in &file.announce.address.0 {
            let ip = address.0;
            if ip.is_unspecified() || ip.is_multicast() {
                let message = format!("{ip} is not an address that peers can reach");
                self.error(
                    place,
                    "announce.address",
                    message,
                    "leave it out, or write the public one",
                );
            }
            let before = match ip {
                IpAddr::V4(ip) => announce.ipv4.replace(ip).map(IpAddr::V4),
                IpAddr::V6(ip) => announce.ipv6.replace(ip).map(IpAddr::V6),
            };
            if before.is_some() {
                let message = "two addresses of one family; one IPv4 and one IPv6 can be announced";
                self.error(place, "announce.address", message.to_string(), "leave one of them out");
            }
        }
        announce
    }

    fn check_limits(&mut self, file: &ConfigFile) {
        let limits = &file.limits;
        let written = self.root.get("limits").is_some_and(|limits| {
            limits.get("connections").is_some() || limits.get("connections_per_torrent").is_some()
        });
        if written && limits.connections_per_torrent > limits.connections {
            let place = self.key_place(&["limits", "connections_per_torrent"]);
            let message = format!(
                "connections_per_torrent ({}) is more than connections ({}), which holds",
                limits.connections_per_torrent, limits.connections
            );
            self.warn(
                place,
                "limits",
                message,
                "raise connections, or lower connections_per_torrent",
            );
        }
    }

    fn torrent(
        &mut self,
        index: usize,
        node: &Node,
        entry: TorrentEntry,
        downloads: &Storage,
    ) -> Option<TorrentSource> {
        let key = format!("torrents[{index}]");
        let has =
            |name: &str| node.get(name).is_some_and(|node| !matches!(node.value, Value::Null));
        let named: Vec<&str> =
            ["folder", "files", "magnet"].into_iter().filter(|name| has(name)).collect();
        match named[..] {
            [] => {
                let message = "neither folder, files nor magnet: nothing to seed".to_string();
                let help = "folder: for content to make a torrent of, files: for .torrent files, \
                            magnet: for a link";
                self.error(node.place, &key, message, help);
                return None;
            }
            [_] => {}
            [first, second, ..] => {
                let place = node.entry(second).map_or(node.place, |(key, _)| key.place);
                let message = format!("a torrent has either {first} or {second}, not both");
                self.error(place, &key, message, "make two entries of it");
                return None;
            }
        }
        self.check_misplaced(node, &key, has("folder"));
        let options = self.download_options(node, &key, &entry, has("magnet"));
        let options = options.map(|options| DownloadOptions {
            storage: self.storage(node, &key, &entry, downloads),
            ..options
        });
        self.check_trackers(node, &key, &entry, has("folder"));
        let limits = TorrentLimits {
            upload: entry.limits.upload,
            download: entry.limits.download,
            connections: entry.limits.connections,
            upload_slots: entry.limits.upload_slots,
            super_seeding: entry.super_seeding,
        };
        let (verify, pex) = (entry.verify, entry.pex);
        let trackers = entry.trackers.clone();
        let is_folder = has("folder");
        let source = if is_folder {
            Source::Folder(self.folder(node, &key, entry)?)
        } else if has("magnet") {
            Source::Magnet(self.magnet(node, &key, entry, options.unwrap_or_default())?)
        } else {
            let files = self.files(node, &key, entry)?;
            Source::Files(Files { download: options, ..files })
        };
        let trackers = match trackers {
            Some(TrackersField::Tiers(tiers)) => Trackers::Tiers(tiers),
            Some(TrackersField::Keep) => Trackers::Keep,
            None if !is_folder => Trackers::Keep,
            None if self.has_tracker => Trackers::Tiers(vec![vec![TrackerRef::Embedded]]),
            None => Trackers::Tiers(Vec::new()),
        };
        let verify = verify.unwrap_or(if is_folder { Verify::Full } else { Verify::Quick });
        Some(TorrentSource { line: node.place.line, source, trackers, verify, limits, pex })
    }

    /// Keys that belong to the other kind of entry.
    fn check_misplaced(&self, node: &Node, key: &str, is_folder: bool) {
        const OF_FOLDER: [&str; 6] =
            ["name", "piece_length", "private", "source", "comment", "web_seeds"];
        let of_files = ["content", "download"].iter().chain(&HOW_DOWNLOADED);
        let misplaced: Vec<&str> = match is_folder {
            true => of_files.copied().collect(),
            false => OF_FOLDER.to_vec(),
        };
        for name in misplaced {
            let Some((name_node, _)) = node.entry(name) else { continue };
            let (message, help) = if is_folder {
                (format!("{name} goes with files; folder is the content itself"), "leave it out")
            } else {
                (
                    format!("{name} is in the .torrent file already; it goes with folder"),
                    "leave it out",
                )
            };
            self.error(name_node.place, key, message, help);
        }
    }

    /// `None`: nothing is to be downloaded.
    fn download_options(
        &self,
        node: &Node,
        key: &str,
        entry: &TorrentEntry,
        is_magnet: bool,
    ) -> Option<DownloadOptions> {
        let place_of = |name: &str| node.entry(name).map_or(node.place, |(key, _)| key.place);
        if is_magnet && entry.download == Some(false) {
            let message = "a magnet is downloaded always: nothing else is known of it".to_string();
            self.error(place_of("download"), key, message, "leave download out");
        }
        if !is_magnet && entry.download != Some(true) {
            let written = HOW_DOWNLOADED.into_iter().find(|name| node.get(name).is_some());
            if let Some(name) = written.filter(|_| node.get("folder").is_none()) {
                let message = format!("{name} says how to download, and nothing is downloaded");
                self.error(place_of(name), key, message, "add download: true, or leave it out");
            }
            return None;
        }
        let only = &entry.only.0;
        for (index, text) in only.iter().enumerate() {
            let Err(error) = glob::Pattern::new(text) else { continue };
            let items = node.get("only").map_or(&[][..], Node::items);
            let place = items.get(index).map_or_else(|| place_of("only"), |item| item.place);
            let message = format!("\"{text}\" is not a pattern: {}", error.msg);
            let help = "* stands for any part of a name, ** for any folders";
            self.error(place, &format!("{key}.only"), message, help);
        }
        let sequential = entry.sequential.unwrap_or(false);
        Some(DownloadOptions { sequential, only: only.clone(), ..DownloadOptions::default() })
    }

    /// How downloads are kept where nothing else is said.
    fn downloads(&self, file: &DownloadsFile) -> Storage {
        let suffix = file.incomplete_suffix.clone().unwrap_or_default();
        self.check_suffix(
            &suffix,
            self.key_place(&["downloads", "incomplete_suffix"]),
            "downloads",
        );
        Storage {
            preallocate: file.preallocate,
            incomplete_folder: file.incomplete_folder.as_deref().map(|path| self.path(path)),
            incomplete_suffix: suffix,
            move_completed_to: file.move_completed_to.as_deref().map(|path| self.path(path)),
        }
    }

    /// How one entry's are.
    fn storage(&self, node: &Node, key: &str, entry: &TorrentEntry, all: &Storage) -> Storage {
        let folder = |own: &Option<String>, all: &Option<PathBuf>| match own {
            Some(path) => Some(self.path(path)),
            None => all.clone(),
        };
        let suffix = entry.incomplete_suffix.as_ref().unwrap_or(&all.incomplete_suffix);
        if let Some(written) = node.get("incomplete_suffix") {
            self.check_suffix(suffix, written.place, key);
        }
        Storage {
            preallocate: entry.preallocate.unwrap_or(all.preallocate),
            incomplete_folder: folder(&entry.incomplete_folder, &all.incomplete_folder),
            incomplete_suffix: suffix.clone(),
            move_completed_to: folder(&entry.move_completed_to, &all.move_completed_to),
        }
    }

    fn check_suffix(&self, suffix: &str, place: Place, key: &str) {
        if let Err(message) = check_suffix(suffix) {
            self.error(place, &format!("{key}.incomplete_suffix"), message, "");
        }
    }

    fn magnet(
        &self,
        node: &Node,
        key: &str,
        entry: TorrentEntry,
        download: DownloadOptions,
    ) -> Option<MagnetLink> {
        let place = node.get("magnet").map_or(node.place, |magnet| magnet.place);
        let link = entry.magnet?;
        if let Err(error) = link.parse::<seedring_proto::magnet::Magnet>() {
            let help = "copy the whole link, and put it in quotes";
            self.error(place, &format!("{key}.magnet"), error.to_string(), help);
        }
        let Some(content) = entry.content else {
            if node.get("content").is_none_or(|content| self.reads_whole(content)) {
                let message = "content is missing: the folder to download into".to_string();
                self.error(place, key, message, "add content: with that folder");
            }
            return None;
        };
        Some(MagnetLink { link, folder: self.path(&content), download })
    }

    fn check_trackers(&mut self, node: &Node, key: &str, entry: &TorrentEntry, is_folder: bool) {
        let place = node.get("trackers").map_or(node.place, |trackers| trackers.place);
        let key = format!("{key}.trackers");
        match &entry.trackers {
            Some(TrackersField::Keep) if is_folder => {
                let message =
                    "keep is for .torrent files; a folder has no trackers yet".to_string();
                self.error(place, &key, message, "list URLs, or [embedded]");
            }
            Some(TrackersField::Tiers(tiers)) => {
                let mut seen = Vec::new();
                for tracker in tiers.iter().flatten() {
                    if seen.contains(&tracker) {
                        let TrackerRef::Url(url) = tracker else { continue };
                        let message = format!("{url} is listed twice");
                        self.warn(place, &key, message, "it is announced to once");
                    }
                    seen.push(tracker);
                    if matches!(tracker, TrackerRef::Embedded) && !self.has_tracker {
                        let message = "embedded is named, but there is no tracker section";
                        let help =
                            "add tracker: { listen: \"127.0.0.1:6969\" }, or remove embedded";
                        self.error(place, &key, message.to_string(), help);
                    }
                }
            }
            _ => {}
        }
    }

    fn folder(&self, node: &Node, key: &str, entry: TorrentEntry) -> Option<Folder> {
        let written = entry.folder?;
        let path = self.path(&written);
        let own = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let Some(name) = entry.name.or(own).filter(|name| !name.trim().is_empty()) else {
            let message = "the folder has no name of its own".to_string();
            self.error(node.place, key, message, "add name:");
            return None;
        };
        if name.contains(['/', '\0']) || name == "." || name == ".." {
            let place = node.get("name").map_or(node.place, |name| name.place);
            let message = format!("\"{}\" cannot be a torrent's name", name.escape_debug());
            self.error(place, &format!("{key}.name"), message, "a name has no / in it");
        }
        let piece_length = match entry.piece_length {
            Some(ByteSize(bytes)) if !bytes.is_power_of_two() => {
                let place = node.get("piece_length").map_or(node.place, |length| length.place);
                let message = format!("{bytes} bytes is not a power of two");
                let help = format!("the next one is {}", ByteSize(bytes.next_power_of_two()));
                self.error(place, &format!("{key}.piece_length"), message, &help);
                None
            }
            Some(ByteSize(bytes)) => u32::try_from(bytes).ok(),
            None => None,
        };
        Some(Folder {
            path,
            name,
            piece_length,
            private: entry.private.unwrap_or(false),
            source: entry.source,
            comment: entry.comment,
            web_seeds: entry.web_seeds.0.into_iter().map(|url| url.0).collect(),
        })
    }

    fn files(&mut self, node: &Node, key: &str, entry: TorrentEntry) -> Option<Files> {
        let List(written) = entry.files;
        let files = node.get("files")?;
        if written.is_empty() {
            if self.reads_whole(files) {
                let message = "an empty list: nothing to seed".to_string();
                self.error(files.place, &format!("{key}.files"), message, "name a .torrent file");
            }
            return None;
        }
        let Some(content) = entry.content else {
            if node.get("content").is_none_or(|content| self.reads_whole(content)) {
                let message = "content is missing: where the files of the torrents lie".to_string();
                let help = "add content: with the folder that holds them";
                self.error(files.place, key, message, help);
            }
            return None;
        };
        let mut patterns = Vec::with_capacity(written.len());
        for (index, text) in written.iter().enumerate() {
            let place = files.items().get(index).unwrap_or(files).place;
            let pattern = self.path(text).to_string_lossy().into_owned();
            if is_glob(&pattern)
                && let Err(error) = glob::Pattern::new(&pattern)
            {
                let message = format!("\"{text}\" is not a pattern: {}", error.msg);
                let help = "* stands for any part of a name, ** for any folders";
                self.error(place, &format!("{key}.files"), message, help);
                continue;
            }
            patterns.push(pattern);
        }
        Some(Files { patterns, content: self.path(&content), download: None })
    }

    fn check_twice(
        &mut self,
        seen: &mut HashMap<String, usize>,
        index: usize,
        node: &Node,
        torrent: &TorrentSource,
    ) {
        let paths: Vec<String> = match &torrent.source {
            Source::Folder(folder) => vec![format!("{}\0{}", folder.path.display(), folder.name)],
            Source::Files(files) => files.patterns.clone(),
            Source::Magnet(magnet) => vec![magnet.link.clone()],
        };
        for path in paths {
            let shown = path.split('\0').next().unwrap_or_default().to_string();
            if let Some(first) = seen.insert(path, index) {
                let message = format!("{shown} is listed in torrents[{first}] already");
                self.warn(node.place, &format!("torrents[{index}]"), message, "it is seeded once");
            }
        }
    }

    /// Whether nothing of a node was set aside, so that what is missing was never there.
    fn reads_whole(&self, node: &Node) -> bool {
        !self.reading.is_aside(node) && node.items().iter().all(|item| self.reads_whole(item))
    }

    fn key_place(&self, path: &[&str]) -> Place {
        let mut node = self.root;
        let mut place = Place::default();
        for name in path {
            let Some((key, value)) = node.entry(name) else { break };
            (node, place) = (value, key.place);
        }
        place
    }
}

/// Whether the kernel would refuse to bind both.
fn overlaps(at: &SocketAddr, others: &[SocketAddr]) -> bool {
    others.iter().any(|other| {
        other.port() == at.port()
            && other.is_ipv4() == at.is_ipv4()
            && (other.ip() == at.ip() || other.ip().is_unspecified() || at.ip().is_unspecified())
    })
}

/// Joins without asking the file system. `.` goes; `..` stays, for `a` in `a/../b` may be a
/// symlink.
pub(super) fn absolute(base: &Path, text: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for component in base.join(text).components() {
        match component {
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    path
}
