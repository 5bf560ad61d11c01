//! Owns: what the members of one swarm share: content, its .torrent and magnet link, a tracker, a
//! network with a host for each; and how often a test repeats its transfer.
//! Never: helps members find each other: the tracker does.
//! Flow: [`Swarm::new`] -> members are started at their [`Swarm::place`] -> [`Swarm::check`].

use super::seeder::make_torrent;
use super::{
    Client, Content, Has, Host, Network, Opentracker, Place, Scratch, Shape, Source, evidence,
};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

#[derive(Debug)]
pub struct Swarm {
    pub content: Content,
    pub torrent: PathBuf,
    pub info_hash: String,
    pub magnet: String,
    pub tracker: Opentracker,
    pub network: Network,
    pub scratch: Rc<Scratch>,
}

/// One of the transfers that [`repeat`] makes; its folder outlives the programs that log there.
#[derive(Debug)]
pub struct Round {
    scratch: Rc<Scratch>,
    /// 0 is libtorrent's choice.
    piece_bytes: u32,
}

/// What the members are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Torrent,
    Magnet,
}

impl Swarm {
    /// With `hosts` hosts, beside the tracker's. `base` as in [`Scratch::new`]; `piece_bytes` 0 is
    /// libtorrent's choice.
    pub fn new(base: &str, test: &str, hosts: u8, piece_bytes: u32) -> Result<Self> {
        Self::within(Rc::new(Scratch::new(base, test)?), hosts, piece_bytes)
    }

    pub fn of(round: &Round, hosts: u8) -> Result<Self> {
        Self::within(round.scratch.clone(), hosts, round.piece_bytes)
    }

    fn within(scratch: Rc<Scratch>, hosts: u8, piece_bytes: u32) -> Result<Self> {
        let content = Content::make(&scratch.folder("content")?.join("mixed"), Shape::Mixed)?;
        let network = Network::new(hosts + 1)?;
        let host = network.host(hosts.into());
        let torrent = scratch.path().join("foreign.torrent");
        let announce = format!("http://{}:6969/announce", host.address());
        let info_hash = make_torrent(&content, &announce, &torrent, piece_bytes)?;
        let tracker = Opentracker::start(&host, &scratch.folder("tracker")?, &[&info_hash])?;
        let escaped = announce.replace(':', "%3A").replace('/', "%2F");
        let magnet = format!("magnet:?xt=urn:btih:{info_hash}&tr={escaped}");
        Ok(Self { content, torrent, info_hash, magnet, tracker, network, scratch })
    }

    pub fn host(&self, index: usize) -> Host {
        self.network.host(index)
    }

    pub fn source(&self, link: Link) -> Source<'_> {
        match link {
            Link::Torrent => Source::Torrent(&self.torrent),
            Link::Magnet => Source::Magnet(&self.magnet),
        }
    }

    /// Folders of its own for the member `name`, on that host.
    pub fn place(&self, name: &str, host: usize, has: Has) -> Result<Place> {
        let folder = self.scratch.folder(name)?;
        let save = self.scratch.folder(&format!("{name}-copy"))?;
        Ok(Place { host: self.host(host), folder, save, has })
    }

    /// Every byte of a copy that `client`, or the engine, has made below `save`.
    pub fn check(&self, save: &Path, client: Option<Client>) -> Result<()> {
        let lacks_empty = client.is_some_and(Client::skips_empty_files);
        let copy = save.join(self.content.name()?);
        let who = || client.map_or(String::from("the engine"), |client| format!("{client:?}"));
        self.content.compare(&copy, lacks_empty).with_context(|| format!("the copy of {}", who()))
    }
}

/// How often each transfer is made: once, or `SEEDRING_ROUNDS` times.
pub fn rounds() -> Result<u32> {
    let set = std::env::var("SEEDRING_ROUNDS");
    set.map_or(Ok(1), |text| text.parse().context("SEEDRING_ROUNDS is no number"))
}

/// Runs `round` so often, says how often it went well and how long that took, and fails if it
/// failed once, with what all who took part said. Rounds take turns with two sizes of pieces.
/// `base` as in [`Scratch::new`].
pub fn repeat(base: &str, what: &str, mut round: impl FnMut(&Round) -> Result<()>) -> Result<()> {
    let rounds = rounds()?;
    let (mut seconds, mut failures) = (Vec::new(), Vec::new());
    for number in 1..=rounds {
        let piece_bytes = if number % 2 == 1 { 0 } else { 1 << 20 };
        let name = format!("{}-{number}", what.replace([' ', '.', ','], "-"));
        let this = Round { scratch: Rc::new(Scratch::new(base, &name)?), piece_bytes };
        let began = Instant::now();
        let ended = round(&this);
        let took = began.elapsed().as_secs_f64();
        match ended {
            Ok(()) => seconds.push(took),
            Err(error) => {
                let scratch = this.scratch.path();
                let folder = scratch.file_name().context("invariant: it has a name")?;
                let kept = evidence::keep(scratch, &Path::new(base).join("failed").join(folder));
                let kept = kept.unwrap_or_else(|error| format!("no logs are kept: {error:#}"));
                let failure = format!("round {number}, after {took:.1} s: {error:#}\n{kept}");
                println!("{what}: {failure}"); // the other rounds take minutes
                failures.push(failure);
            }
        }
    }
    let longest = seconds.iter().copied().fold(0.0, f64::max);
    let good = seconds.len();
    let each: Vec<String> = seconds.iter().map(|seconds| format!("{seconds:.0}")).collect();
    println!("{what}: {good} of {rounds}, at most {longest:.0} s each ({})", each.join(" "));
    if !failures.is_empty() {
        bail!("{what}: {good} of {rounds} went well\n{}", failures.join("\n"));
    }
    Ok(())
}
