//! Owns: the engine downloading a multi-file torrent from each client, and seeding it on to others.
//! Never: skips: a missing client, missing rights or a missing engine fails.
//! Flow: a client seeds on one host, the engine downloads on another and finds it through a tracker
//! on a third; the client stops, and another one fetches from the engine. See `src/interop/`.

use anyhow::{Context, Result, ensure};
use seedring_tests::interop::seeder::make_torrent;
use seedring_tests::interop::{
    Client, Content, ControlledSeed, Downloader, Network, Opentracker, Scratch, SeedingClient,
    Shape, Source,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const LIMIT: Duration = Duration::from_secs(60);

/// Hosts of the network.
const SEED: usize = 0;
const ENGINE: usize = 1;
const TRACKER: usize = 2;
const LEECH: usize = 3;

struct Swarm {
    torrent: PathBuf,
    info_hash: String,
    content: Content,
    /// Where the engine's copy appears.
    copy: PathBuf,
    tracker: Opentracker,
    network: Network,
    scratch: Scratch,
}

impl Swarm {
    fn new(test: &str) -> Result<Self> {
        Self::in_pieces(test, 0)
    }

    /// 0: of the size that libtorrent chooses.
    fn in_pieces(test: &str, piece_bytes: u32) -> Result<Self> {
        let scratch = Scratch::new(TMP, test)?;
        let content = Content::make(&scratch.folder("content")?.join("mixed"), Shape::Mixed)?;
        let network = Network::new(5)?;
        let host = network.host(TRACKER);
        let torrent = scratch.path().join("foreign.torrent");
        let announce = format!("http://{}:6969/announce", host.address());
        let info_hash = make_torrent(&content, &announce, &torrent, piece_bytes)?;
        let tracker = Opentracker::start(&host, &scratch.folder("tracker")?, &[&info_hash])?;
        let copy = scratch.folder("engine-copy")?;
        Ok(Self { torrent, info_hash, content, copy, tracker, network, scratch })
    }

    /// A seed that the tracker knows of.
    fn seed(&mut self, client: Client) -> Result<SeedingClient> {
        let folder = self.scratch.folder("seed")?;
        let host = self.network.host(SEED);
        let seed = SeedingClient::start(client, &host, &folder, &self.content, &self.torrent)?;
        self.tracker.wait_for(&self.info_hash, 1, 0).context("the seed's announce")?;
        Ok(seed)
    }

    fn download(&self) -> Result<Downloader> {
        let folder = self.scratch.folder("engine")?;
        let source = Source::Torrent(&self.torrent);
        Downloader::start(&self.network.host(ENGINE), &folder, source, &self.copy)
    }

    fn magnet(&self) -> String {
        let tracker = self.tracker.announce_url("http").replace(':', "%3A").replace('/', "%2F");
        format!("magnet:?xt=urn:btih:{}&tr={tracker}", self.info_hash)
    }

    fn check_copy(&self) -> Result<()> {
        let name = self.content.name()?;
        self.content.compare(&self.copy.join(name), false).context("the engine's copy")
    }

    /// `client` fetches from whoever is there.
    fn fetch(&self, client: Client, host: usize) -> Result<()> {
        let folder = self.scratch.folder("leech")?;
        let copy = self.scratch.folder("leech-copy")?;
        let source = Source::Torrent(&self.torrent);
        client.fetch(&self.network.host(host), &folder, &copy, source, LIMIT)?;
        self.content.compare(&copy.join(self.content.name()?), client.skips_empty_files())
    }
}

/// From `client` to the engine, from the engine to `next`.
fn download_from(test: &str, client: Client, next: Client) -> Result<()> {
    let mut swarm = Swarm::new(test)?;
    let seed = swarm.seed(client)?;
    let mut engine = swarm.download()?;
    if let Err(error) = engine.wait_complete(LIMIT) {
        return Err(error.context(seed_log(seed)));
    }
    swarm.check_copy()?;
    seed.stop()?;
    swarm.content.check_untouched()?;
    swarm.fetch(next, LEECH).context("from the engine")?;
    engine.process().check_running()?;
    swarm.check_copy()
}

fn seed_log(mut seed: SeedingClient) -> String {
    format!("{:#}", seed.process().failure("was the seed"))
}

#[test]
fn download_from_qbittorrent() -> Result<()> {
    download_from("download_from_qbittorrent", Client::Qbittorrent, Client::Libtorrent)
}

#[test]
fn download_from_transmission() -> Result<()> {
    download_from("download_from_transmission", Client::Transmission, Client::Aria2)
}

#[test]
fn download_from_aria2() -> Result<()> {
    download_from("download_from_aria2", Client::Aria2, Client::Rtorrent)
}

#[test]
fn download_from_rtorrent() -> Result<()> {
    download_from("download_from_rtorrent", Client::Rtorrent, Client::Qbittorrent)
}

#[test]
fn download_from_libtorrent() -> Result<()> {
    download_from("download_from_libtorrent", Client::Libtorrent, Client::Transmission)
}

/// `seedring download` until it ends by itself, from `source`.
fn download_once(swarm: &Swarm, source: &str) -> Result<()> {
    let folder = swarm.scratch.folder("engine")?;
    let host = swarm.network.host(ENGINE);
    let mut engine = Downloader::start_once(&host, &folder, source, &swarm.copy, &[])?;
    engine.process().wait_success(LIMIT)?;
    swarm.check_copy()
}

#[test]
fn the_command_ends_when_all_is_there() -> Result<()> {
    let mut swarm = Swarm::new("download_command")?;
    let seed = swarm.seed(Client::Libtorrent)?;
    let torrent = swarm.torrent.display().to_string();
    download_once(&swarm, &torrent)?;
    // Nothing is missing, so a second run needs nobody.
    seed.stop()?;
    download_once(&swarm, &torrent)
}

#[test]
fn the_command_takes_a_magnet_link() -> Result<()> {
    let mut swarm = Swarm::new("download_magnet")?;
    let _seed = swarm.seed(Client::Libtorrent)?;
    download_once(&swarm, &swarm.magnet())
}

/// What stands in the way of keeping the metadata goes away by itself, and so does the trouble.
#[test]
fn metadata_that_cannot_be_kept_is_tried_again() -> Result<()> {
    let mut swarm = Swarm::new("download_kept_late")?;
    let _seed = swarm.seed(Client::Libtorrent)?;
    let folder = swarm.scratch.folder("engine")?;
    let place = folder.join("state/torrents").join(format!("{}.torrent", swarm.info_hash));
    std::fs::create_dir_all(place.join("in the way"))?;
    let (host, magnet) = (swarm.network.host(ENGINE), swarm.magnet());
    let mut engine = Downloader::start(&host, &folder, Source::Magnet(&magnet), &swarm.copy)?;
    let said = |log: &str| log.contains("can't be kept, which is tried again").then_some(());
    engine.process().wait_for_log("the trouble", LIMIT, said)?;
    std::fs::remove_dir_all(&place)?;
    engine.wait_complete(LIMIT)?;
    swarm.check_copy()
}

/// Nobody has all pieces; two leeches get them from the two that have half each.
#[test]
fn two_halves_make_a_whole() -> Result<()> {
    let mut swarm = Swarm::new("download_halves")?;
    let mut halves = Vec::new();
    for (part, host) in [(0, SEED), (1, 4)] {
        let folder = swarm.scratch.folder(&format!("half-{part}"))?;
        let (host, torrent): (_, &Path) = (swarm.network.host(host), &swarm.torrent);
        let content = &swarm.content;
        halves.push(ControlledSeed::partial(&host, &folder, content, torrent, part, 2)?);
    }
    swarm.tracker.wait_for(&swarm.info_hash, 0, 2).context("the halves' announces")?;
    let (seeds, _) = swarm.tracker.counts(&swarm.info_hash)?;
    ensure!(seeds == 0, "the tracker knows of {seeds} whole seeds");
    let mut engine = swarm.download()?;
    swarm.fetch(Client::Libtorrent, LEECH).context("the other leech")?;
    engine.wait_complete(LIMIT)?;
    swarm.check_copy()?;
    for half in halves {
        half.stop()?;
    }
    Ok(())
}

/// Files beneath a folder that are not hidden.
fn visible(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().context("an entry has a name")?.to_string_lossy().into_owned();
        match path.is_dir() {
            _ if name.starts_with('.') => {}
            true => found.extend(visible(&path)?),
            false => found.push(name),
        }
    }
    found.sort();
    Ok(found)
}

/// A piece at the border of a wanted file is fetched whole, once, and the file beside it is not
/// made before it is wanted.
#[test]
fn unwanted_files_are_made_when_they_are_wanted() -> Result<()> {
    let mut swarm = Swarm::new("download_unwanted")?;
    let _seed = swarm.seed(Client::Transmission)?;
    let (folder, host) = (swarm.scratch.folder("engine")?, swarm.network.host(ENGINE));
    let source = Source::Torrent(&swarm.torrent);
    let more = "    only: [\"deep.bin\"]\n";
    let mut engine = Downloader::start_with(&host, &folder, source, &swarm.copy, more)?;
    engine.wait_complete(LIMIT)?;
    let made = visible(&swarm.copy)?;
    ensure!(made == ["deep.bin"], "made: {made:?}");
    let before = engine.number("downloaded_bytes");
    ensure!(before < 4 << 20, "{before} bytes were fetched for one small file");
    engine.command(&["files", &swarm.info_hash, "--priority", "4", "*"])?;
    engine.wait("all files", LIMIT, |torrent| {
        torrent["state"] == "seeding" && torrent["pieces_verified"] == torrent["pieces"]
    })?;
    swarm.check_copy()?;
    let fetched = engine.number("downloaded_bytes");
    let most = swarm.content.bytes() + (256 << 10);
    ensure!(fetched <= most, "{fetched} bytes were fetched, at most {most} are needed");
    let parts = swarm.copy.join(".seedring-parts");
    ensure!(!parts.exists(), "{} is left", parts.display());
    Ok(())
}

/// Pieces of 4 MiB, one of which is in the middle when the engine stops.
#[test]
fn a_stop_in_the_middle_of_a_piece_has_little_fetched_twice() -> Result<()> {
    let mut swarm = Swarm::in_pieces("download_stopped", 4 << 20)?;
    let (seed, host) = (swarm.scratch.folder("seed")?, swarm.network.host(SEED));
    let seed = ControlledSeed::slow(&host, &seed, &swarm.content, &swarm.torrent, 2 << 20)?;
    swarm.tracker.wait_for(&swarm.info_hash, 1, 0).context("the seed's announce")?;
    for stop_at in [3_000_000, 9_000_000] {
        let mut engine = swarm.download()?;
        engine.wait("a part", LIMIT, |torrent| {
            torrent["downloaded_bytes"].as_u64() > Some(stop_at)
        })?;
        engine.process().terminate(Duration::from_secs(20))?;
    }
    seed.unleash()?;
    let mut engine = swarm.download()?;
    engine.wait_complete(LIMIT)?;
    swarm.check_copy()?;
    drop(engine);
    let (sent, bytes) = (seed.stop()?, swarm.content.bytes());
    println!("{sent} bytes were sent of {bytes}");
    ensure!(sent < bytes + (2 << 20), "{sent} bytes were sent of {bytes}");
    Ok(())
}
