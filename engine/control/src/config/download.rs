//! Owns: the configuration that `seedring download` stands for.
//! Never: a default of its own where the file has one.
//! Flow: the command line builds `FetchOptions`; `Config::for_download` makes the configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use seedring_proto::{magnet::Magnet, metainfo::Metainfo};

use super::model::{
    Config, DownloadOptions, Files, MagnetLink, Source, TorrentLimits, TorrentSource, Trackers,
    Verify, check_suffix,
};
use super::seed::SeedOptions;
use super::units::Rate;

/// What the command line may say.
#[derive(Clone, Debug, Default)]
pub struct FetchOptions {
    /// A .torrent file or a magnet link.
    pub torrent: String,
    /// The save folder.
    pub folder: PathBuf,
    /// Empty: all of IPv4 and IPv6, a port that the kernel chooses.
    pub listen: Vec<SocketAddr>,
    /// `None`: one of its own for each torrent, below the user's.
    pub state_dir: Option<PathBuf>,
    pub upload: Rate,
    /// Limit of what is asked for.
    pub rate: Rate,
    pub download: DownloadOptions,
    /// Go on when all is there.
    pub seed: bool,
}

impl Config {
    /// One torrent to download. Each has a state folder of its own, so that several can run at
    /// once, and the same command goes on where it was left.
    pub fn for_download(options: FetchOptions) -> Result<Config, String> {
        let FetchOptions { torrent, folder, listen, state_dir, upload, rate, download, seed } =
            options;
        check_suffix(&download.storage.incomplete_suffix)?;
        let folder = std::path::absolute(&folder)
            .map_err(|error| format!("{}: {error}", folder.display()))?;
        for text in &download.only {
            glob::Pattern::new(text).map_err(|e| format!("\"{text}\" is no pattern: {}", e.msg))?;
        }
        let is_magnet =
            torrent.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("magnet:"));
        let (hash, source) = if is_magnet {
            let magnet: Magnet = torrent.parse().map_err(|error| format!("{error}"))?;
            (magnet.info_hash, Source::Magnet(MagnetLink { link: torrent, folder, download }))
        } else {
            let path = std::path::absolute(&torrent).map_err(|e| format!("{torrent}: {e}"))?;
            let bytes = std::fs::read(&path).map_err(|error| format!("{torrent}: {error}"))?;
            let metainfo = Metainfo::parse(&bytes).map_err(|e| format!("{torrent}: {e}"))?;
            let patterns = vec![path.to_string_lossy().into_owned()];
            let files = Files { patterns, content: folder, download: Some(download) };
            (metainfo.info_hash, Source::Files(files))
        };
        let any = [SocketAddr::from(([0; 4], 0)), SocketAddr::from(([0; 16], 0))];
        let listen = if listen.is_empty() { any.to_vec() } else { listen };
        // The engine's own without torrents, which `seed` makes of nothing.
        let shared = SeedOptions { listen, upload, ..SeedOptions::default() };
        let mut config = Config::for_seed(&[], shared)?;
        config.state_dir = match state_dir {
            Some(dir) => {
                std::path::absolute(&dir).map_err(|e| format!("{}: {e}", dir.display()))?
            }
            None => own_state_dir(&config.state_dir, &hash.to_string()),
        };
        config.control_socket = config.state_dir.join("control.sock");
        config.limits.download = rate;
        config.until_complete = !seed;
        config.torrents = vec![TorrentSource {
            line: 0,
            source,
            trackers: Trackers::Keep,
            verify: Verify::Full,
            limits: TorrentLimits::default(),
            pex: None,
        }];
        Ok(config)
    }
}

/// Part of the hash is enough, and leaves the socket's path short enough for a Unix socket.
fn own_state_dir(state_dir: &Path, hash: &str) -> PathBuf {
    state_dir.join("downloads").join(&hash[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_becomes_one_torrent_with_a_state_folder_of_its_own() {
        let fetch = |torrent: &str| {
            let torrent = torrent.to_owned();
            let folder = PathBuf::from("here");
            Config::for_download(FetchOptions { torrent, folder, ..FetchOptions::default() })
        };
        let link = format!("magnet:?xt=urn:btih:{}", "ab".repeat(20));
        let config = fetch(&link).unwrap();
        assert!(config.until_complete && config.state_dir.ends_with("downloads/abababababababab"));
        let Source::Magnet(magnet) = &config.torrents[0].source else { panic!("{config:?}") };
        assert!(magnet.folder.is_absolute());
        assert!(fetch("magnet:?xt=urn:btih:12").is_err());
        assert!(fetch("/nowhere/x.torrent").unwrap_err().contains("/nowhere/x.torrent"));
    }
}
