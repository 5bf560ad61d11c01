//! Owns: swarms of the engine and six other clients, each as a seed, as a leech, and as both.
//! Never: skips a client, but for rqbit where it is not installed, which it says.
//! Flow: members on hosts of a network of their own, found through opentracker; all complete by
//! their own word, then every byte compared. `SEEDRING_ROUNDS=10` repeats each transfer and prints
//! how often it went well (`cargo test ... --test interop_swarm -- --nocapture`).

use anyhow::{Context, Result, bail, ensure};
use seedring_tests::interop::swarm::{Link, Round, repeat};
use seedring_tests::interop::{
    Client, ControlledSeed, Downloader, Has, Place, RunningClient, SeedingClient, Source, Swarm,
    put_pieces, wait_until,
};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const LIMIT: Duration = Duration::from_secs(60);
const SWARM_LIMIT: Duration = Duration::from_secs(120);

/// Hosts.
const SEED: usize = 0;
const ENGINE: usize = 1;
const LEECH: usize = 2;

/// By .torrent and by magnet link; what the first one gives does not keep the second one away.
fn both_links(client: Client, does: &str, once: impl Fn(Link, &Round) -> Result<()>) -> Result<()> {
    if !client.is_there() {
        return Ok(());
    }
    let [torrent, magnet] = [Link::Torrent, Link::Magnet].map(|link| {
        let what = format!("{client:?} {does}, {link:?}");
        repeat(TMP, &what, |round| once(link, round))
    });
    torrent.and(magnet)
}

/// The engine gets everything from `client`, its only seed.
fn seeds(client: Client) -> Result<()> {
    both_links(client, "seeds", |link, round| seeds_once(client, link, round))
}

fn seeds_once(client: Client, link: Link, round: &Round) -> Result<()> {
    let mut swarm = Swarm::of(round, 2)?;
    let (content, torrent) = (&swarm.content, &swarm.torrent);
    let folder = swarm.scratch.folder("seed")?;
    let mut seed = SeedingClient::start(client, &swarm.host(SEED), &folder, content, torrent)?;
    swarm.tracker.wait_for(&swarm.info_hash, 1, 0).context("the seed's announce")?;
    let place = swarm.place("engine", ENGINE, Has::Nothing)?;
    let mut engine = start_engine(&swarm, &place, link, "")?;
    if let Err(error) = engine.wait_complete(LIMIT) {
        return Err(error.context(format!("{:#}", seed.process().failure("was the seed"))));
    }
    seed.stop()?;
    swarm.check(&place.save, None)?;
    if client == Client::Rqbit {
        // It sets the length of files that have it already, which changes their times.
        return swarm.content.compare(swarm.content.root(), false);
    }
    swarm.content.check_untouched()
}

/// `client` gets everything from an engine that does not have everything yet itself: nobody else
/// is within its reach.
fn leeches(client: Client) -> Result<()> {
    both_links(client, "leeches", |link, round| leeches_once(client, link, round))
}

fn leeches_once(client: Client, link: Link, round: &Round) -> Result<()> {
    /// The engine needs 22 s for everything, unless the seed is let loose.
    const SLOW: u32 = 1 << 20;
    /// What the client gets meanwhile, at least. Not more: rTorrent that has all that the engine
    /// has may ask for more 30 s later only.
    const TRADED: u64 = 32 << 10;
    let mut swarm = Swarm::of(round, 3)?;
    let folder = swarm.scratch.folder("seed")?;
    let (host, content) = (swarm.host(SEED), &swarm.content);
    swarm.network.separate(SEED, LEECH)?;
    let seed = ControlledSeed::slow(&host, &folder, content, &swarm.torrent, SLOW)?;
    swarm.tracker.wait_for(&swarm.info_hash, 1, 0).context("the seed's announce")?;
    let place = swarm.place("engine", ENGINE, Has::Nothing)?;
    let mut engine = start_engine(&swarm, &place, Link::Torrent, "")?;
    swarm.tracker.wait_for(&swarm.info_hash, 1, 1).context("the engine's announce")?;
    let leech = swarm.place("leech", LEECH, Has::Nothing)?;
    let mut running = RunningClient::start(client, leech.clone(), swarm.source(link))?;
    let traded = wait_until("the leech to get something", LIMIT, || {
        engine.process().check_running()?;
        running.process().check_running()?;
        let torrent = engine.torrent()?;
        let (sent, missing) = (&torrent["uploaded_bytes"], &torrent["missing_bytes"]);
        ensure!(missing.as_u64().is_some_and(|bytes| bytes > 0), "too late: {torrent}");
        Ok(sent.as_u64().is_some_and(|bytes| bytes >= TRADED).then_some(()))
    });
    traded.map_err(|error| running.failure(&format!("{error:#}")))?;
    seed.unleash()?;
    engine.wait_complete(LIMIT)?;
    running.wait_complete(LIMIT)?;
    running.stop()?;
    swarm.check(&leech.save, Some(client))?;
    swarm.check(&place.save, None)
}

fn start_engine(swarm: &Swarm, place: &Place, link: Link, more: &str) -> Result<Downloader> {
    let source = swarm.source(link);
    Downloader::start_with(&place.host, &place.folder, source, &place.save, more)
}

/// Everybody who takes part in a swarm of many.
struct Members {
    engines: Vec<(Downloader, PathBuf)>,
    clients: Vec<(RunningClient, PathBuf)>,
}

impl Members {
    fn count(&self) -> u64 {
        (self.engines.len() + self.clients.len()) as u64
    }

    /// Waits until each has said that it has everything, ends the clients, compares every byte.
    fn complete(&mut self, swarm: &Swarm) -> Result<()> {
        let began = Instant::now();
        let mut waiting: Vec<usize> = (0..self.count() as usize).collect();
        while !waiting.is_empty() {
            let mut still = Vec::new();
            for at in waiting {
                let complete = match at.checked_sub(self.engines.len()) {
                    None => self.engines[at].0.is_complete()?,
                    Some(at) => self.clients[at].0.is_complete()?,
                };
                if !complete {
                    still.push(at);
                } else {
                    println!("  {}: {:.1} s", self.name(at), began.elapsed().as_secs_f64());
                }
            }
            if began.elapsed() > SWARM_LIMIT && !still.is_empty() {
                let late: Vec<String> = still.iter().map(|at| self.failure(*at)).collect();
                bail!("{} members do not complete\n{}", late.len(), late.join("\n"));
            }
            waiting = still;
            // Each question is a program of its own.
            std::thread::sleep(Duration::from_millis(300));
        }
        for (client, save) in self.clients.drain(..) {
            let which = client.client();
            client.stop()?;
            swarm.check(&save, Some(which))?;
        }
        self.engines.iter().try_for_each(|(_, save)| swarm.check(save, None))
    }

    fn name(&self, at: usize) -> String {
        match at.checked_sub(self.engines.len()) {
            None => format!("engine {}", at + 1),
            Some(at) => format!("{:?}", self.clients[at].0.client()),
        }
    }

    fn failure(&self, at: usize) -> String {
        match at.checked_sub(self.engines.len()) {
            None => format!("{}: {:?}", self.name(at), self.engines[at].0.torrent()),
            Some(at) => format!("{:#}", self.clients[at].0.failure("is not complete")),
        }
    }
}

/// All clients that are there, each on a host of its own from `host` on.
fn others() -> Vec<Client> {
    Client::ALL.into_iter().filter(|client| client.is_there()).collect()
}

/// One seed that alone would take a minute and a half to give everybody everything: they have to
/// trade. (It is there first: rqbit, given a magnet link, asks its first peers for the metadata and
/// then nobody any more.)
fn all_trade(link: Link) -> Result<()> {
    repeat(TMP, &format!("all trade, {link:?}"), |round| {
        const SLOW: u32 = 2 << 20;
        let mut swarm = Swarm::of(round, 8)?;
        let folder = swarm.scratch.folder("seed")?;
        let (host, content) = (swarm.host(SEED), &swarm.content);
        let seed = ControlledSeed::slow(&host, &folder, content, &swarm.torrent, SLOW)?;
        swarm.tracker.wait_for(&swarm.info_hash, 1, 0).context("the seed's announce")?;
        let place = swarm.place("engine", ENGINE, Has::Nothing)?;
        let engine = start_engine(&swarm, &place, link, "")?;
        let mut members = Members { engines: vec![(engine, place.save)], clients: Vec::new() };
        for (client, host) in others().into_iter().zip(LEECH..) {
            let place = swarm.place(&format!("{client:?}"), host, Has::Nothing)?;
            let save = place.save.clone();
            members.clients.push((RunningClient::start(client, place, swarm.source(link))?, save));
        }
        let count = members.count();
        members.complete(&swarm)?;
        let copies = seed.stop()? as f64 / swarm.content.bytes() as f64;
        let sent = members.engines[0].0.number("uploaded_bytes") as f64;
        let sent = sent / swarm.content.bytes() as f64;
        println!("  the seed sent {copies:.2} copies to {count}, the engine {sent:.2}");
        ensure!(copies < count as f64 / 2.0, "the seed sent {copies:.2} copies to {count}");
        ensure!(sent > 0.1, "the engine sent {sent:.2} copies");
        Ok(())
    })
}

/// Each member has other pieces, one has none, nobody has all: all complete.
#[test]
fn parts_make_a_whole() -> Result<()> {
    repeat(TMP, "parts make a whole", |round| {
        let mut swarm = Swarm::of(round, 8)?;
        let others = others();
        let parts = others.len() + 1;
        let mut members = Members { engines: Vec::new(), clients: Vec::new() };
        let place = swarm.place("engine", ENGINE, Has::Some)?;
        put_pieces(&swarm.content, &swarm.torrent, &place.save, 0, parts)?;
        members.engines.push((start_engine(&swarm, &place, Link::Torrent, "")?, place.save));
        for (part, client) in (1..).zip(others) {
            let place = swarm.place(&format!("{client:?}"), ENGINE + part, Has::Some)?;
            put_pieces(&swarm.content, &swarm.torrent, &place.save, part, parts)?;
            let (save, source) = (place.save.clone(), Source::Torrent(&swarm.torrent));
            members.clients.push((RunningClient::start(client, place, source)?, save));
        }
        swarm.tracker.wait_for(&swarm.info_hash, 0, 2).context("the announces of some")?;
        let place = swarm.place("engine-with-nothing", SEED, Has::Nothing)?;
        members.engines.push((start_engine(&swarm, &place, Link::Magnet, "")?, place.save));
        members.complete(&swarm)
    })
}

/// Two engines have all that they want, each other files, and the seed is gone: who wants
/// everything gets it from both.
#[test]
fn selections_make_a_whole() -> Result<()> {
    repeat(TMP, "selections make a whole", |round| {
        let mut swarm = Swarm::of(round, 9)?;
        let folder = swarm.scratch.folder("seed")?;
        let (host, content, torrent) = (swarm.host(SEED), &swarm.content, &swarm.torrent);
        let seed = SeedingClient::start(Client::Libtorrent, &host, &folder, content, torrent)?;
        swarm.tracker.wait_for(&swarm.info_hash, 1, 0).context("the seed's announce")?;
        let mut partial = Vec::new();
        let selections = ["[main.bin]", "[\"nested/**\", \"*.txt\", one-block.bin, empty.bin]"];
        for (at, only) in (0..).zip(selections) {
            let place = swarm.place(&format!("engine-{at}"), ENGINE + at, Has::Nothing)?;
            let more = format!("    only: {only}\n");
            let mut engine = start_engine(&swarm, &place, Link::Torrent, &more)?;
            engine.wait_complete(LIMIT).with_context(|| format!("only {only}"))?;
            partial.push(engine);
        }
        seed.stop()?;
        let mut members = Members { engines: Vec::new(), clients: Vec::new() };
        for (client, host) in others().into_iter().zip(LEECH + 1..) {
            let place = swarm.place(&format!("{client:?}"), host, Has::Nothing)?;
            let (save, source) = (place.save.clone(), Source::Torrent(&swarm.torrent));
            members.clients.push((RunningClient::start(client, place, source)?, save));
        }
        members.complete(&swarm)?;
        for engine in &mut partial {
            engine.process().check_running()?;
            let log = engine.process().log();
            ensure!(!log.contains("it is looked for"), "it looked for what is not wanted:\n{log}");
        }
        Ok(())
    })
}

#[test]
fn all_trade_from_a_torrent() -> Result<()> {
    all_trade(Link::Torrent)
}

#[test]
fn all_trade_from_a_magnet() -> Result<()> {
    all_trade(Link::Magnet)
}

#[test]
fn qbittorrent_seeds() -> Result<()> {
    seeds(Client::Qbittorrent)
}

#[test]
fn transmission_seeds() -> Result<()> {
    seeds(Client::Transmission)
}

#[test]
fn aria2_seeds() -> Result<()> {
    seeds(Client::Aria2)
}

#[test]
fn rtorrent_seeds() -> Result<()> {
    seeds(Client::Rtorrent)
}

#[test]
fn libtorrent_seeds() -> Result<()> {
    seeds(Client::Libtorrent)
}

#[test]
fn rqbit_seeds() -> Result<()> {
    seeds(Client::Rqbit)
}

#[test]
fn qbittorrent_leeches() -> Result<()> {
    leeches(Client::Qbittorrent)
}

#[test]
fn transmission_leeches() -> Result<()> {
    leeches(Client::Transmission)
}

#[test]
fn aria2_leeches() -> Result<()> {
    leeches(Client::Aria2)
}

#[test]
fn rtorrent_leeches() -> Result<()> {
    leeches(Client::Rtorrent)
}

#[test]
fn libtorrent_leeches() -> Result<()> {
    leeches(Client::Libtorrent)
}

#[test]
fn rqbit_leeches() -> Result<()> {
    leeches(Client::Rqbit)
}
