//! Owns: whom a downloader downloads from: seeders with an address each, and a tracker that names
//! them.
//! Never: is measured as a target; what it costs is shown beside. Flow: `Swarm::start` -> torrent
//! with this tracker -> `offer` so many -> the downloader announces, connects -> what they spent.
//!
//! Here each seeder is a process of its own because clients keep one connection a peer ID: an
//! engine, or, where each is to have a part of the pieces only, the bench's own. Content comes from
//! the page cache, which they share: hot caches of their own would not fit for 32 of them. Agents
//! play the bench's own. Mixed peers, and those of agents, begin anew with each download.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use seedring_proto::bencode::Encoder;

use super::{
    Afar, Cores, Options, on_cores, seeding,
    target::{self, Content, Running, Settings},
};
use crate::{
    agents::{Ask, Seeded, runner::Seeding},
    namespace, payload,
    probe::Reading,
    seed::Totals,
    torrent::Torrent,
};

/// No client's own default port: some listen on all addresses.
const PORT: u16 = 7001;
const TRACKER_PORT: u16 = 7000;
/// Seeders have the addresses 10.77.0.1 and up.
pub const SEEDERS_MAX: usize = 200;
const CACHE: &str = "32MiB";
/// What a client's announce may be long.
const REQUEST_BYTES_MAX: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(2);
/// Until what seeders sent and fetched last is written down, which they do each 0.1 s.
const TOTALS: Duration = Duration::from_millis(300);
/// In the folder of a seeder's state.
const TOTALS_FILE: &str = "totals.json";

type Offered = Arc<Mutex<Vec<SocketAddrV4>>>;

pub struct Swarm {
    who: Who,
    tracker: Tracker,
}

enum Who {
    Here(Vec<Seeder>),
    /// Here too: with each download they get what they lack.
    Mixed(Box<Options>, Content),
    /// Agents; `Ask::seeders` is another number each time.
    Afar(Afar, Ask),
}

struct Seeder {
    running: Running,
    address: SocketAddrV4,
    /// Of the bench's own.
    totals: Option<PathBuf>,
}

/// While it lives, so many seed, and the tracker names them.
pub struct Offer<'a> {
    of: Of<'a>,
    /// What those who are here had spent and sent before.
    cpu_seconds: f64,
    totals: Totals,
    pub peers: Vec<SocketAddrV4>,
}

enum Of<'a> {
    Here(&'a [Seeder]),
    Mixed(Vec<Seeder>),
    Afar(&'a Afar, Seeding<'a>),
}

/// What the seeders of one download spent, sent and got.
pub struct Spent {
    /// CPU time of all who are here, which share a core; of agents, of the one that had most to do,
    /// over the cores that its seeders could use.
    pub busy_seconds: f64,
    /// Of the bench's own.
    pub totals: Option<Totals>,
    pub by_agent: Vec<Seeded>,
}

impl Swarm {
    /// Starts the tracker and, where they are the same for all downloads, so many seeders on the
    /// load's core, and waits until they seed.
    pub fn start(options: &Options, content: &Content, count: usize) -> Result<Self> {
        ensure!((1..=SEEDERS_MAX).contains(&count), "--peers must be from 1 to {SEEDERS_MAX}");
        let who = match &options.site.afar {
            Some(afar) => Who::Afar(afar.clone(), asked(options, count)),
            None if options.mixed_peers => Who::Mixed(Box::new(options.clone()), content.clone()),
            None => Who::Here(start_here(options, content, count)?),
        };
        let tracker = Tracker::start(options, content)?;
        Ok(Swarm { who, tracker })
    }

    /// From now on the tracker names so many.
    pub fn offer(&self, count: usize) -> Result<Offer<'_>> {
        let of = match &self.who {
            Who::Here(seeders) => Of::Here(&seeders[..count.min(seeders.len())]),
            Who::Mixed(options, content) => Of::Mixed(start_here(options, content, count)?),
            Who::Afar(afar, ask) => {
                let ask = Ask { seeders: count, ..ask.clone() };
                Of::Afar(afar, afar.runner.seed(&self.tracker.torrent, ask)?)
            }
        };
        let peers: Vec<SocketAddrV4> = match &of {
            Of::Afar(_, seeding) => {
                seeding.addresses.iter().map(|at| v4(*at)).collect::<Result<_>>()?
            }
            of => of.here().iter().map(|one| one.address).collect(),
        };
        self.tracker.name(&peers);
        let cpu_seconds = of.cpu_seconds()?;
        let totals = of.totals()?.unwrap_or_default();
        Ok(Offer { of, cpu_seconds, totals, peers })
    }

    /// The content's torrent, with this swarm's tracker.
    pub fn torrent(&self) -> &Path {
        &self.tracker.torrent
    }
}

impl Of<'_> {
    fn here(&self) -> &[Seeder] {
        match self {
            Of::Here(seeders) => seeders,
            Of::Mixed(seeders) => seeders,
            Of::Afar(..) => &[],
        }
    }

    /// CPU time of all seeders here so far.
    fn cpu_seconds(&self) -> Result<f64> {
        let each = self.here().iter().map(|one| Reading::take(one.running.pid()));
        each.map(|reading| Ok(reading?.cpu_seconds)).sum()
    }

    /// Of the bench's own seeders here so far.
    fn totals(&self) -> Result<Option<Totals>> {
        let mut all = None;
        for path in self.here().iter().filter_map(|one| one.totals.as_deref()) {
            all = Some(Totals::read(path)?.and(all.unwrap_or_default()));
        }
        Ok(all)
    }
}

impl Offer<'_> {
    /// An error: not all of them seed any more.
    pub fn check(&mut self) -> Result<()> {
        match &mut self.of {
            Of::Afar(_, seeding) => seeding.check(),
            Of::Here(_) | Of::Mixed(_) => Ok(()),
        }
    }

    /// How each of them was started.
    pub fn command(&self) -> String {
        match &self.of {
            Of::Afar(afar, _) => format!("a part of {} agents", afar.runner.agents.len()),
            of => of.here().first().map_or(String::new(), |one| one.running.command.clone()),
        }
    }

    /// The download is over, and its process gone.
    pub fn end(self) -> Result<Spent> {
        let (cpu_seconds, before) = (self.cpu_seconds, self.totals);
        let of = match self.of {
            Of::Afar(afar, seeding) => return of_agents(afar, seeding.end()?),
            of => of,
        };
        let busy_seconds = of.cpu_seconds()? - cpu_seconds;
        let mut totals = None;
        if of.here().iter().any(|one| one.totals.is_some()) {
            thread::sleep(TOTALS);
            totals = of.totals()?.map(|totals| totals.since(before));
        }
        Ok(Spent { busy_seconds, totals, by_agent: Vec::new() })
    }
}

fn of_agents(afar: &Afar, by_agent: Vec<Seeded>) -> Result<Spent> {
    let cores = |one: &Seeded| {
        let known = afar.runner.agents.iter().find(|agent| agent.name == one.agent);
        known.map_or(1, |agent| agent.cores).min(one.seeders).max(1) as f64
    };
    let busy = by_agent.iter().map(|one| one.cpu_seconds / cores(one));
    Ok(Spent {
        busy_seconds: busy.fold(0.0, f64::max),
        totals: Some(by_agent.iter().fold(Totals::default(), |all, one| all.and(one.totals))),
        by_agent,
    })
}

fn asked(options: &Options, count: usize) -> Ask {
    Ask {
        seeders: count,
        have_percent: options.seeders_have_percent,
        fetch: options.mixed_peers,
        made: seeding::SEED,
        target: options.target(),
        seconds_max: 2.0 * super::download::LIMIT.as_secs_f64(),
    }
}

/// The tracker's list is the one of BEP 23.
fn v4(address: SocketAddr) -> Result<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(_) => bail!("an agent seeds at {address}: seeders have IPv4 addresses here"),
    }
}

fn start_here(options: &Options, content: &Content, count: usize) -> Result<Vec<Seeder>> {
    let torrent = Torrent::read(&content.torrent)?;
    let mut seeders = Vec::new();
    let is_partial = options.seeders_have_percent < 100;
    for number in 0..count {
        let address = seeder_address(number);
        seeders.push(match is_partial {
            true => partial_seed(options, content, (number, count))?,
            false => {
                let running = whole_seed(options, content, number)?;
                Seeder { running, address, totals: None }
            }
        });
    }
    for Seeder { running, address, .. } in &mut seeders {
        match is_partial {
            true => wait_until_open(running, *address)?,
            false => running.wait_until_served(SocketAddr::V4(*address), &torrent)?,
        }
    }
    Ok(seeders)
}

struct Tracker {
    offered: Offered,
    torrent: PathBuf,
}

impl Tracker {
    /// At the targets' own address.
    fn start(options: &Options, content: &Content) -> Result<Tracker> {
        let port = if options.site.afar.is_some() { 0 } else { TRACKER_PORT };
        let at = SocketAddr::new(options.target().ip(), port);
        let listener = TcpListener::bind(at).with_context(|| format!("the tracker at {at}"))?;
        let announce = format!("http://{}/announce", listener.local_addr()?);
        let offered = Offered::default();
        let answered = Arc::clone(&offered);
        thread::spawn(move || serve(&listener, &answered));
        let torrent = options.site.work.join("swarm.torrent");
        fs::write(&torrent, payload::with_announce(&fs::read(&content.torrent)?, &announce)?)?;
        Ok(Tracker { offered, torrent })
    }

    fn name(&self, peers: &[SocketAddrV4]) {
        let mut offered = self.offered.lock().expect("invariant: no panic while it is held");
        *offered = peers.to_vec();
    }
}

fn whole_seed(options: &Options, content: &Content, number: usize) -> Result<Running> {
    let settings = Settings {
        listen: SocketAddr::V4(seeder_address(number)),
        direct_io: "off",
        ..Settings::of(content, state(options, number)?, CACHE)
    };
    target::seedring(options, &settings, &Cores::one(options.site.load_core))
}

/// One of `count` that have all pieces together.
fn partial_seed(
    options: &Options,
    content: &Content,
    (number, count): (usize, usize),
) -> Result<Seeder> {
    let state = state(options, number)?;
    let totals = state.join(TOTALS_FILE);
    let this = std::env::current_exe().context("the path of this program")?;
    let mut command = on_cores(&this, &Cores::one(options.site.load_core));
    command.arg("seed").arg("--torrent").arg(&content.torrent);
    command.arg("--content").arg(content.folder.join(seeding::CONTENT));
    command.args(["--listen", &seeder_address(number).to_string()]);
    command.args(["--have-percent", &options.seeders_have_percent.to_string()]);
    command.args(["--of", &count.to_string(), "--number", &number.to_string()]);
    command.arg("--totals").arg(&totals);
    if options.mixed_peers {
        command.arg("--fetch");
    }
    let running = target::spawn(command, &state)?;
    Ok(Seeder { running, address: seeder_address(number), totals: Some(totals) })
}

fn state(options: &Options, number: usize) -> Result<PathBuf> {
    options.run_folder(&format!("seeder-{number}"))
}

/// A partial seed may lack the block that others are asked for.
fn wait_until_open(running: &Running, address: SocketAddrV4) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        let is_late = Instant::now() > deadline || running.ended()?.is_some();
        ensure!(!is_late, "{} does not listen: {}", running.command, running.last_words());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn seeder_address(number: usize) -> SocketAddrV4 {
    let [a, b, c, first] = namespace::ADDRESS.octets();
    SocketAddrV4::new(Ipv4Addr::new(a, b, c, first + number as u8), PORT)
}

/// Answers for as long as the process lives.
fn serve(listener: &TcpListener, offered: &Offered) {
    for stream in listener.incoming().flatten() {
        let peers = offered.lock().expect("invariant: no panic while it is held").clone();
        if let Err(error) = answer(stream, &peers) {
            eprintln!("the tracker: {error:#}");
        }
    }
}

fn answer(mut stream: TcpStream, peers: &[SocketAddrV4]) -> Result<()> {
    let request = read_request(&mut stream)?;
    write_answer(&mut stream, request.starts_with("GET /announce"), peers)
}

/// A request's head; what it holds beyond text is nothing that is looked at.
pub fn read_request(stream: &mut TcpStream) -> Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut bytes = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut bytes)?;
        ensure!(count > 0 && request.len() < REQUEST_BYTES_MAX, "no whole request");
        request.extend_from_slice(&bytes[..count]);
    }
    Ok(String::from_utf8_lossy(&request).into_owned())
}

/// The peers, compact; or that there is nothing by the name that was asked for.
pub fn write_answer(
    stream: &mut TcpStream,
    is_announce: bool,
    peers: &[SocketAddrV4],
) -> Result<()> {
    let body = announce_answer(peers);
    let (status, body) =
        if is_announce { ("200 OK", body.as_slice()) } else { ("404 Not Found", b"".as_slice()) };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    Ok(())
}

/// BEP 3 and, for the compact list, BEP 23.
fn announce_answer(peers: &[SocketAddrV4]) -> Vec<u8> {
    let mut compact = Vec::new();
    for peer in peers {
        compact.extend_from_slice(&peer.ip().octets());
        compact.extend_from_slice(&peer.port().to_be_bytes());
    }
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes);
    encoder.begin_dict().key("complete").int(peers.len() as i64).key("incomplete").int(0);
    encoder.key("interval").int(1800).key("peers").bytes(&compact).end();
    encoder.finish();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &str) -> Vec<u8> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("open");
        write!(client, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
        let (stream, _) = listener.accept().expect("a client");
        answer(stream, &[seeder_address(0), seeder_address(3)]).expect("answered");
        let mut text = Vec::new();
        client.read_to_end(&mut text).expect("an answer");
        text
    }

    #[test]
    fn the_tracker_names_the_seeders() {
        let text = ask("/announce?info_hash=x&compact=1");
        assert!(text.starts_with(b"HTTP/1.1 200 OK\r\n"));
        let body = b"d8:completei2e10:incompletei0e8:intervali1800e5:peers12:\
                     \x0a\x4d\x00\x01\x1b\x59\x0a\x4d\x00\x04\x1b\x59e";
        assert!(text.ends_with(body), "{}", String::from_utf8_lossy(&text));
        let length = format!("Content-Length: {}\r\n", body.len());
        assert!(String::from_utf8_lossy(&text).contains(&length));
        assert!(ask("/scrape?x").starts_with(b"HTTP/1.1 404"));
    }
}
