//! Owns: peer exchange (BEP 11) between the engine and libtorrent, and what it does with hostile
//! messages and private torrents.
//! Never: lets a tracker name whom peer exchange should name.
//! Flow: peers that know one other peer alone -> that one tells them of each other -> they connect.

use anyhow::{Context, Result, ensure};
use seedring_tests::interop::seeder::make_torrent;
use seedring_tests::interop::{
    Content, Downloader, Host, Network, Opentracker, Process, Scratch, Shape, Source, python,
    script, wait_until,
};
use seedring_tests::live::torrent::PIECE_BYTES;
use seedring_tests::live::{Engine, Manner, Message, Peer, Seed, SingleFile, loopback_address};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
/// libtorrent tells others once a minute.
const LIMIT: Duration = Duration::from_secs(150);
const PORT: u16 = 6881;
/// Too slow to get anything whole: who downloads so stays a leech.
const SLOW: &str = "2000";

/// A libtorrent that says whom it is connected to.
struct Swarmer {
    process: Process,
}

impl Swarmer {
    fn start(host: &Host, folder: &Path, torrent: &Path, options: &[&str]) -> Result<Self> {
        let mut command = host.command(python()?);
        command.arg(script("libtorrent_peer.py")).args([torrent, folder]);
        command.arg(format!("{}:{PORT}", host.address())).args(options);
        let log = folder.join("peer.log");
        let mut process = Process::start("libtorrent", &mut command, &log)?;
        process.wait_for_log("the check of its files", Duration::from_secs(30), |log| {
            log.contains("ready").then_some(())
        })?;
        Ok(Self { process })
    }

    /// Who named a peer that it is connected to, as it says last.
    fn source_of(log: &str, peer: Ipv4Addr) -> Option<String> {
        let complete = &log[..log.rfind('\n')?];
        let last = complete.lines().rfind(|line| line.starts_with("peers"))?;
        let named = last.split(' ').find_map(|word| word.strip_prefix(&format!("{peer}:")))?;
        Some(named.split_once('=')?.1.to_owned())
    }

    fn wait_for(&mut self, peer: Ipv4Addr, limit: Duration) -> Result<String> {
        let what = format!("a connection to {peer}");
        self.process.wait_for_log(&what, limit, |log| Self::source_of(log, peer))
    }
}

fn at(host: &Host) -> String {
    format!("{}:{PORT}", host.address())
}

/// Content, a torrent of it, and a network of four hosts.
struct Setup {
    content: Content,
    torrent: PathBuf,
    info_hash: String,
    network: Network,
    scratch: Scratch,
}

impl Setup {
    fn new(test: &str, private: bool) -> Result<Self> {
        let scratch = Scratch::new(TMP, test)?;
        let content = Content::make(&scratch.folder("content")?.join("mixed"), Shape::Mixed)?;
        let network = Network::new(4)?;
        let torrent = scratch.path().join("foreign.torrent");
        let announce = format!("http://{}:6969/announce", network.host(3).address());
        let info_hash = match private {
            false => make_torrent(&content, &announce, &torrent, 0)?,
            true => make_private(&content, &announce, &torrent)?,
        };
        Ok(Self { content, torrent, info_hash, network, scratch })
    }

    /// The folder that holds the content.
    fn parent(&self) -> Result<&Path> {
        self.content.root().parent().context("content has a folder")
    }

    /// The engine seeds, and asks no tracker.
    fn seed(&self, host: usize) -> Result<Process> {
        let (host, folder) = (self.network.host(host), self.scratch.folder("engine")?);
        let yaml = format!(
            "state_dir: {}\nlisten: [\"{}\"]\nmemory: {{ cache: 64MiB }}\ntorrents:\n  - files: \
             {}\n    content: {}\n    trackers: []\n",
            serde_json::to_string(&folder.join("state"))?,
            at(&host),
            serde_json::to_string(&self.torrent)?,
            serde_json::to_string(self.parent()?)?
        );
        let configuration = folder.join("seedring.yaml");
        std::fs::write(&configuration, yaml)?;
        let mut command = host.command(seedring_tests::interop::seedring_binary()?);
        command.arg("run").arg(&configuration);
        Process::start("seedring", &mut command, &folder.join("seedring.log"))
    }

    /// A leech that knows the engine alone.
    fn leech(&self, host: usize, engine: usize) -> Result<Swarmer> {
        let folder = self.scratch.folder(&format!("leech-{host}"))?;
        let engine = at(&self.network.host(engine));
        let options = ["--no-trackers", "--download", SLOW, "--connect", &engine];
        Swarmer::start(&self.network.host(host), &folder, &self.torrent, &options)
    }
}

fn make_private(content: &Content, announce: &str, torrent: &Path) -> Result<String> {
    let output = Command::new(python()?)
        .arg(script("make_torrent.py"))
        .args([content.root(), torrent])
        .arg(announce)
        .env("SEEDRING_PRIVATE", "1")
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The tracker knows an intermediary that has next to nothing; the seed is told of by it alone.
#[test]
fn the_engine_learns_of_a_seed_by_peer_exchange() -> Result<()> {
    const SEED: usize = 0;
    const BETWEEN: usize = 1;
    const ENGINE: usize = 2;
    let setup = Setup::new("pex_learns", false)?;
    let tracker_folder = setup.scratch.folder("tracker")?;
    let mut tracker =
        Opentracker::start(&setup.network.host(3), &tracker_folder, &[&setup.info_hash])?;
    let seed_host = setup.network.host(SEED);
    let log_folder = setup.scratch.folder("seed")?;
    // It says and takes nothing itself, so it can only be found.
    let mut command = seed_host.command(python()?);
    command.arg(script("libtorrent_peer.py")).args([setup.torrent.as_path(), setup.parent()?]);
    command.args([&at(&seed_host), "--no-trackers", "--no-pex"]);
    let mut seed = Process::start("the seed", &mut command, &log_folder.join("seed.log"))?;
    let folder = setup.scratch.folder("between")?;
    let options = ["--download", SLOW, "--connect", &at(&seed_host)];
    let host = setup.network.host(BETWEEN);
    let mut between = Swarmer::start(&host, &folder, &setup.torrent, &options)?;
    between.wait_for(seed_host.address(), LIMIT)?;
    tracker.wait_for(&setup.info_hash, 0, 1).context("the intermediary's announce")?;

    let (folder, copy) = (setup.scratch.folder("engine")?, setup.scratch.folder("copy")?);
    let engine_host = setup.network.host(ENGINE);
    let mut engine =
        Downloader::start(&engine_host, &folder, Source::Torrent(&setup.torrent), &copy)?;
    let mut named = Value::Null;
    let found = wait_until("the engine to find the seed", LIMIT, || {
        engine.process().check_running()?;
        let shown = show(&folder.join("state"), &setup.info_hash).unwrap_or_default();
        let peers = shown["peers"].as_array().cloned().unwrap_or_default();
        let address = at(&seed_host);
        named = peers.into_iter().find(|peer| peer["address"] == address).unwrap_or_default();
        // It may be done, and gone, between two looks.
        let done = engine.torrent().unwrap_or_default()["state"] == "seeding";
        Ok((done || named != Value::Null).then_some(()))
    });
    if let Err(error) = found {
        return Err(error.context(format!("{:#}", between.process.failure("was between"))));
    }
    ensure!(named == Value::Null || named["source"] == "pex", "{named}");
    ensure!(named == Value::Null || named["dialed"] == true, "{named}");
    engine.wait_complete(LIMIT)?;
    setup.content.compare(&copy.join(setup.content.name()?), false)?;
    seed.check_running()
}

/// What `seedring show` says.
fn show(state: &Path, info_hash: &str) -> Result<Value> {
    let mut command = Command::new(seedring_tests::interop::seedring_binary()?);
    command.args(["show", info_hash, "--json", "--state-dir"]).arg(state);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Two leeches that know the engine alone find each other, and no tracker is asked.
#[test]
fn libtorrent_learns_of_a_peer_by_the_engine() -> Result<()> {
    let setup = Setup::new("pex_tells", false)?;
    let mut engine = setup.seed(0)?;
    let (mut one, mut other) = (setup.leech(1, 0)?, setup.leech(2, 0)?);
    let (first, second) = (setup.network.host(1).address(), setup.network.host(2).address());
    one.wait_for(setup.network.host(0).address(), LIMIT)?;
    let named = [one.wait_for(second, LIMIT)?, other.wait_for(first, LIMIT)?];
    ensure!(named.iter().any(|source| source.contains("pex")), "{named:?}");
    engine.check_running()
}

#[test]
fn peers_of_a_private_torrent_are_not_told_of_each_other() -> Result<()> {
    let setup = Setup::new("pex_private", true)?;
    let mut engine = setup.seed(0)?;
    let (mut one, mut other) = (setup.leech(1, 0)?, setup.leech(2, 0)?);
    for leech in [&mut one, &mut other] {
        leech.wait_for(setup.network.host(0).address(), LIMIT)?;
    }
    // In the public swarm it takes some seconds.
    std::thread::sleep(Duration::from_secs(20));
    let hosts = [1, 2].map(|host| setup.network.host(host).address());
    for (leech, stranger) in [(&one, hosts[1]), (&other, hosts[0])] {
        let named = Swarmer::source_of(&leech.process.log(), stranger);
        ensure!(named.is_none(), "told of {stranger}: {named:?}");
    }
    engine.check_running()
}

/// An extension handshake that has a number for ut_pex.
const WANTS: &[u8] = b"\x00d1:md6:ut_pexi1eee";

/// A message of one address, under the number that the engine gives.
fn contact(address: SocketAddr, flags: u8) -> Vec<u8> {
    let SocketAddr::V4(address) = address else { panic!("IPv4 in these tests") };
    let mut payload = b"\x02d5:added6:".to_vec();
    payload.extend_from_slice(&address.ip().octets());
    payload.extend_from_slice(&address.port().to_be_bytes());
    payload.extend_from_slice(b"7:added.f1:");
    payload.extend_from_slice(&[flags, b'e']);
    payload
}

/// Whether a peer of a torrent is heard when it names another; and whether it is offered at all.
fn is_heard(engine: &Engine, file: &SingleFile, flags: u8) -> Result<(bool, bool)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut peer = Peer::greet(engine.address(), &file.info_hash)?;
    let offers = peer.wait_for(
        "an extension handshake",
        |message| matches!(message, Message::Other(20, payload) if payload.first() == Some(&0)),
    )?;
    let Message::Other(_, offers) = offers else { unreachable!("looked at above") };
    let offered = offers.windows(6).any(|part| part == b"ut_pex");
    peer.send(20, WANTS)?;
    peer.send(20, &contact(listener.local_addr()?, flags))?;
    let dialed = Peer::accept(&listener, &file.info_hash, Duration::from_secs(5))?;
    Ok((offered, dialed.is_some()))
}

#[test]
fn private_torrents_and_those_switched_off_take_nothing() -> Result<()> {
    let scratch = Scratch::new(TMP, "pex_taken")?;
    let open = SingleFile::make(scratch.path(), "open.bin", PIECE_BYTES, "")?;
    let private = SingleFile::make_private(scratch.path(), "private.bin", PIECE_BYTES)?;
    let off = SingleFile::make(scratch.path(), "off.bin", PIECE_BYTES, "")?;
    let yaml = format!(
        "torrents:\n{}{}{}    pex: false\n",
        open.entry("full")?,
        private.entry("full")?,
        off.entry("full")?
    );
    let engine = Engine::start(scratch.path(), loopback_address(), &yaml)?;
    for file in [&open, &private, &off] {
        wait_until("the torrent", Duration::from_secs(10), || {
            Ok(file.check_served(engine.address()).ok())
        })?;
    }
    ensure!(is_heard(&engine, &open, 0)? == (true, true), "a leech is dialled");
    ensure!(is_heard(&engine, &open, 2)? == (true, false), "a seed dials no seed");
    ensure!(is_heard(&engine, &private, 0)? == (false, false), "private (BEP 27)");
    ensure!(is_heard(&engine, &off, 0)? == (false, false), "switched off");
    engine.reload(&format!("pex: false\n{yaml}"))?;
    wait_until("the reload", Duration::from_secs(10), || {
        Ok((is_heard(&engine, &open, 0)? == (false, false)).then_some(()))
    })?;
    engine.stop().map(drop)
}

/// Four peers name 10,000 addresses each, again and again; a leech beside them gets the content as
/// it does without them, and the engine does not grow.
#[test]
fn forty_thousand_addresses_cost_nobody_anything() -> Result<()> {
    let scratch = Scratch::new(TMP, "pex_hostile")?;
    let (folder, copy) = (scratch.folder("source")?, scratch.folder("copy")?);
    let length = 256 * PIECE_BYTES;
    let file = Arc::new(SingleFile::make(&folder, "file.bin", length, "")?);
    let yaml = format!("torrents:\n{}", file.download_entry(&copy)?);
    let mut engine = Engine::start(scratch.path(), loopback_address(), &yaml)?;
    let address = engine.address();
    let start = |manner| Seed::start(&file, address, loopback_address(), manner);
    let flooders: Vec<Seed> = (0..4).map(|_| start(Manner::FloodsPex)).collect();
    flooders.iter().for_each(|seed| seed.set_rate(1));
    wait_until("the floods", Duration::from_secs(15), || {
        let all = flooders.iter().all(|seed| seed.connections() > 2);
        Ok(all.then_some(()))
    })
    .context("a flood closes its connection, and it dials again")?;
    let pid = engine.process().pid();
    let before = resident_bytes(pid)?;
    let began = Instant::now();
    let honest = start(Manner::Honest);
    engine.wait_for_state(&file.info_hash, "seeding", Duration::from_secs(60))?;
    let took = began.elapsed();
    file.check_copy(&copy)?;
    let grown = resident_bytes(pid)?.saturating_sub(before);
    ensure!(took < Duration::from_secs(30), "it took {took:?}");
    // What is downloaded is cached, which is what `memory.cache` allows.
    ensure!(grown < (32 + 64) << 20, "grown by {grown} bytes");
    drop((flooders, honest));
    let log = engine.stop()?;
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("VmRSS")?;
    Ok(kib.trim().parse::<u64>()? << 10)
}
