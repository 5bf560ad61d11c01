//! Owns: real clients, each fetching a multi-file torrent from the engine, by each tracker.
//! Never: skips: a missing client, missing rights or a missing engine fails.
//! Flow: `tests/run interop` installs the clients and runs this; see `tests/src/interop/`.

use anyhow::{Context, Result};
use seedring_tests::interop::seeder::{make_torrent, transfer};
use seedring_tests::interop::{
    Client, Content, Network, Opentracker, Recipe, Scratch, Seeder, Shape, Source,
};
use seedring_tests::live::engine::run_program;
use std::time::Duration;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const LIMIT: Duration = Duration::from_secs(90);
const HUGE_LIMIT: Duration = Duration::from_secs(240);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Torrent,
    Magnet,
}

/// The engine makes the torrent and tracks it.
fn by_embedded_tracker(test: &str, client: Client, link: Link, shape: Shape) -> Result<()> {
    let scratch = Scratch::new(TMP, test)?;
    let content = Content::make(&scratch.folder("content")?.join("mixed"), shape)?;
    let network = Network::new(2)?;
    let recipe = embedded(&content);
    let seeder = Seeder::start(&network.host(0), &scratch.folder("seeder")?, recipe)?;
    let source = match link {
        Link::Torrent => Source::Torrent(seeder.torrent()),
        Link::Magnet => Source::Magnet(seeder.magnet()),
    };
    let limit = if shape == Shape::Huge { HUGE_LIMIT } else { LIMIT };
    transfer(client, &network.host(1), &scratch.folder("client")?, source, &content, limit)
}

/// A torrent that the engine makes and tracks.
fn embedded(content: &Content) -> Recipe<'_> {
    let (torrent, embedded_tracker, verify) = (None, true, "full");
    Recipe { content, torrent, embedded_tracker, verify, super_seeding: false }
}

/// A torrent that libtorrent made, tracked by opentracker on a third host.
fn by_opentracker(test: &str, client: Client, scheme: &str) -> Result<()> {
    let scratch = Scratch::new(TMP, test)?;
    let content = Content::make(&scratch.folder("content")?.join("mixed"), Shape::Mixed)?;
    let network = Network::new(3)?;
    let torrent = scratch.path().join("foreign.torrent");
    let announce = format!("{scheme}://{}:6969/announce", network.host(2).address());
    let info_hash = make_torrent(&content, &announce, &torrent, 0)?;
    let mut tracker =
        Opentracker::start(&network.host(2), &scratch.folder("tracker")?, &[&info_hash])?;
    assert_eq!(tracker.announce_url(scheme), announce);
    let recipe = Recipe {
        content: &content,
        torrent: Some(&torrent),
        embedded_tracker: false,
        verify: "quick",
        super_seeding: false,
    };
    let _seeder = Seeder::start(&network.host(0), &scratch.folder("seeder")?, recipe)?;
    tracker.wait_for(&info_hash, 1, 0).context("the engine's announce")?;
    let source = Source::Torrent(&torrent);
    transfer(client, &network.host(1), &scratch.folder("client")?, source, &content, LIMIT)
}

#[test]
fn qbittorrent_embedded() -> Result<()> {
    let (client, link) = (Client::Qbittorrent, Link::Torrent);
    by_embedded_tracker("qbittorrent_embedded", client, link, Shape::Mixed)
}

#[test]
fn transmission_embedded() -> Result<()> {
    let (client, link) = (Client::Transmission, Link::Torrent);
    by_embedded_tracker("transmission_embedded", client, link, Shape::Mixed)
}

#[test]
fn aria2_embedded() -> Result<()> {
    by_embedded_tracker("aria2_embedded", Client::Aria2, Link::Torrent, Shape::Mixed)
}

#[test]
fn rtorrent_embedded() -> Result<()> {
    by_embedded_tracker("rtorrent_embedded", Client::Rtorrent, Link::Torrent, Shape::Mixed)
}

#[test]
fn libtorrent_embedded() -> Result<()> {
    by_embedded_tracker("libtorrent_embedded", Client::Libtorrent, Link::Torrent, Shape::Mixed)
}

#[test]
fn qbittorrent_embedded_magnet() -> Result<()> {
    let (client, link) = (Client::Qbittorrent, Link::Magnet);
    by_embedded_tracker("qbittorrent_embedded_magnet", client, link, Shape::Mixed)
}

#[test]
fn transmission_embedded_magnet() -> Result<()> {
    let (client, link) = (Client::Transmission, Link::Magnet);
    by_embedded_tracker("transmission_embedded_magnet", client, link, Shape::Mixed)
}

#[test]
fn aria2_embedded_magnet() -> Result<()> {
    by_embedded_tracker("aria2_embedded_magnet", Client::Aria2, Link::Magnet, Shape::Mixed)
}

#[test]
fn libtorrent_embedded_magnet() -> Result<()> {
    let (client, link) = (Client::Libtorrent, Link::Magnet);
    by_embedded_tracker("libtorrent_embedded_magnet", client, link, Shape::Mixed)
}

#[test]
fn libtorrent_embedded_huge() -> Result<()> {
    by_embedded_tracker("libtorrent_embedded_huge", Client::Libtorrent, Link::Torrent, Shape::Huge)
}

#[test]
fn qbittorrent_opentracker() -> Result<()> {
    by_opentracker("qbittorrent_opentracker", Client::Qbittorrent, "http")
}

#[test]
fn transmission_opentracker() -> Result<()> {
    by_opentracker("transmission_opentracker", Client::Transmission, "http")
}

#[test]
fn aria2_opentracker() -> Result<()> {
    by_opentracker("aria2_opentracker", Client::Aria2, "http")
}

#[test]
fn rtorrent_opentracker() -> Result<()> {
    by_opentracker("rtorrent_opentracker", Client::Rtorrent, "http")
}

#[test]
fn libtorrent_opentracker() -> Result<()> {
    by_opentracker("libtorrent_opentracker", Client::Libtorrent, "http")
}

/// Seed and client have no other way to each other than a tracker over UDP.
#[test]
fn libtorrent_opentracker_udp() -> Result<()> {
    by_opentracker("libtorrent_opentracker_udp", Client::Libtorrent, "udp")
}

/// `create` yields the info-hash that libtorrent computes for the same content.
#[test]
fn created_torrents_have_libtorrents_info_hash() -> Result<()> {
    let scratch = Scratch::new(TMP, "create")?;
    let content = Content::make(&scratch.folder("content")?.join("mixed"), Shape::Mixed)?;
    for (piece_length, piece_bytes) in [("16KiB", 16 << 10), ("256KiB", 256 << 10)] {
        let theirs = scratch.path().join("libtorrent.torrent");
        let expected = make_torrent(&content, "http://10.77.0.3/announce", &theirs, piece_bytes)?;
        let ours = scratch.path().join("ours.torrent").display().to_string();
        let root = content.root().display().to_string();
        let create = ["create", &root, "-o", &ours, "--piece-length", piece_length, "--force"];
        let (status, text) = run_program(&create)?;
        assert_eq!(status, 0, "{text}");
        for path in [ours, theirs.display().to_string()] {
            let (status, text) = run_program(&["inspect", "--json", &path])?;
            assert_eq!(status, 0, "{text}");
            let report: serde_json::Value = serde_json::from_str(&text)?;
            assert_eq!(report["info_hash"].as_str(), Some(&*expected), "{path}");
            assert_eq!(report["total_size"].as_u64(), Some(content.bytes()), "{path}");
        }
    }
    content.check_untouched()
}

/// A box behind NAT: nobody reaches its port, so it must dial the peers that the tracker names.
#[test]
fn seedring_dials_peers() -> Result<()> {
    let scratch = Scratch::new(TMP, "seedring_dials_peers")?;
    let content = Content::make(&scratch.folder("content")?.join("mixed"), Shape::Mixed)?;
    let network = Network::new(3)?;
    let (seed_host, leech_host) = (network.host(0), network.host(1));
    let torrent = scratch.path().join("foreign.torrent");
    let announce = format!("http://{}:6969/announce", network.host(2).address());
    let info_hash = make_torrent(&content, &announce, &torrent, 0)?;
    let mut tracker =
        Opentracker::start(&network.host(2), &scratch.folder("tracker")?, &[&info_hash])?;
    seed_host.block_tcp_port(6881)?;
    let (seeder_folder, leech_folder) = (scratch.folder("seeder")?, scratch.folder("client")?);
    std::thread::scope(|scope| {
        let leech = scope.spawn(|| {
            let source = Source::Torrent(&torrent);
            transfer(Client::Libtorrent, &leech_host, &leech_folder, source, &content, LIMIT)
        });
        // The leech asks first and hears of nobody: only the engine can open the connection.
        tracker.wait_for(&info_hash, 0, 1)?;
        let recipe = Recipe {
            content: &content,
            torrent: Some(&torrent),
            embedded_tracker: false,
            verify: "full",
            super_seeding: false,
        };
        let _seeder = Seeder::start(&seed_host, &seeder_folder, recipe)?;
        leech.join().expect("the leech's thread")
    })
}

/// Two clients that get pieces one by one, and the rest from each other.
#[test]
fn a_super_seed_begins_a_swarm() -> Result<()> {
    let scratch = Scratch::new(TMP, "super_seed")?;
    let content = Content::make(&scratch.folder("content")?.join("mixed"), Shape::Mixed)?;
    let network = Network::new(3)?;
    let recipe = Recipe { super_seeding: true, ..embedded(&content) };
    let mut seeder = Seeder::start(&network.host(0), &scratch.folder("seeder")?, recipe)?;
    let fetches = [(Client::Libtorrent, 1, "libtorrent"), (Client::Aria2, 2, "aria2")];
    let torrent = seeder.torrent();
    std::thread::scope(|scope| {
        let fetches = fetches.map(|(client, host, name)| {
            let (content, host, folder) = (&content, network.host(host), scratch.folder(name));
            let source = Source::Torrent(torrent);
            scope.spawn(move || transfer(client, &host, &folder?, source, content, LIMIT))
        });
        fetches.into_iter().try_for_each(|fetch| fetch.join().expect("a client's thread"))
    })?;
    seeder.process().check_running()
}

/// Alone with it a client gets everything, without waiting for others that could pass it on.
#[test]
fn a_super_seed_serves_one_that_is_alone() -> Result<()> {
    let scratch = Scratch::new(TMP, "super_seed_alone")?;
    let content = Content::make(&scratch.folder("content")?.join("mixed"), Shape::Mixed)?;
    let network = Network::new(2)?;
    let recipe = Recipe { super_seeding: true, ..embedded(&content) };
    let seeder = Seeder::start(&network.host(0), &scratch.folder("seeder")?, recipe)?;
    let source = Source::Torrent(seeder.torrent());
    let folder = scratch.folder("client")?;
    transfer(Client::Transmission, &network.host(1), &folder, source, &content, LIMIT)
}
