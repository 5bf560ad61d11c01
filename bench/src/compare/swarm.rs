//! Owns: whom a downloader downloads from: seeders, each a process with an address of its own, and
//! a tracker that names them.
//! Never: is measured as a target; what it costs is shown beside. Flow: `Swarm::start` -> torrent
//! with this tracker -> `offer` so many -> the downloader announces, connects.
//!
//! Each seeder is a process of its own because clients keep one connection a peer ID: an engine,
//! or, where each is to have a part of the pieces only, the bench's own. Content comes from the
//! page cache, which they share: hot caches of their own would not fit for 32 of them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use seedring_proto::bencode::Encoder;

use super::{
    Cores, Options, on_cores, seeding,
    target::{self, Content, Running, Settings},
};
use crate::{namespace, payload, probe::Reading, torrent::Torrent};

/// No client's own default port: some listen on all addresses.
const PORT: u16 = 7001;
const TRACKER: SocketAddrV4 = SocketAddrV4::new(namespace::ADDRESS, 7000);
/// Seeders have the addresses 10.77.0.1 and up.
pub const SEEDERS_MAX: usize = 200;
const CACHE: &str = "32MiB";
/// What a client's announce may be long.
const REQUEST_BYTES_MAX: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(2);

type Offered = Arc<Mutex<Vec<SocketAddrV4>>>;

pub struct Swarm {
    seeders: Vec<(Running, SocketAddrV4)>,
    offered: Offered,
    /// The content's torrent, with this swarm's tracker.
    pub torrent: PathBuf,
}

impl Swarm {
    /// Starts the tracker and so many seeders on the load's core, and waits until they seed.
    pub fn start(options: &Options, content: &Content, count: usize) -> Result<Self> {
        ensure!((1..=SEEDERS_MAX).contains(&count), "--peers must be from 1 to {SEEDERS_MAX}");
        let torrent = Torrent::read(&content.torrent)?;
        let mut seeders = Vec::new();
        let is_partial = options.seeders_have_percent < 100;
        for number in 0..count {
            let address = seeder_address(number);
            let running = match is_partial {
                true => partial_seed(options, content, (number, count))?,
                false => whole_seed(options, content, number)?,
            };
            seeders.push((running, address));
        }
        for (running, address) in &mut seeders {
            match is_partial {
                true => wait_until_open(running, *address)?,
                false => running.wait_until_served(SocketAddr::V4(*address), &torrent)?,
            }
        }
        let offered = Offered::default();
        let listener = TcpListener::bind(TRACKER).context("the tracker's address")?;
        let answered = Arc::clone(&offered);
        thread::spawn(move || serve(&listener, &answered));
        let path = options.site.work.join("swarm.torrent");
        let announce = format!("http://{TRACKER}/announce");
        fs::write(&path, payload::with_announce(&fs::read(&content.torrent)?, &announce)?)?;
        Ok(Swarm { seeders, offered, torrent: path })
    }

    /// From now on the tracker names the first `count`.
    pub fn offer(&self, count: usize) {
        let addresses = self.seeders.iter().map(|(_, address)| *address).take(count).collect();
        *self.offered.lock().expect("invariant: no panic while it is held") = addresses;
    }

    /// Whom the tracker names now.
    pub fn offered(&self) -> Vec<SocketAddrV4> {
        self.offered.lock().expect("invariant: no panic while it is held").clone()
    }

    /// CPU time of all seeders so far.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let each = self.seeders.iter().map(|(running, _)| Reading::take(running.pid()));
        each.map(|reading| Ok(reading?.cpu_seconds)).sum()
    }

    pub fn command(&self) -> &str {
        self.seeders.first().map_or("", |(running, _)| &running.command)
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
) -> Result<Running> {
    let this = std::env::current_exe().context("the path of this program")?;
    let mut command = on_cores(&this, &Cores::one(options.site.load_core));
    command.arg("seed").arg("--torrent").arg(&content.torrent);
    command.arg("--content").arg(content.folder.join(seeding::CONTENT));
    command.args(["--listen", &seeder_address(number).to_string()]);
    command.args(["--have-percent", &options.seeders_have_percent.to_string()]);
    command.args(["--of", &count.to_string(), "--number", &number.to_string()]);
    target::spawn(command, &state(options, number)?)
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
