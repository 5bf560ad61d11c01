//! Owns: `seedring-bench pull`: a file fetched over HTTP again and again, its bytes dropped in the
//! kernel; what a server of files gives is the ceiling of seeding them.
//! Never: speaks to a seeder, keeps a byte. Flow: options -> connections -> window -> `Pulled`.

use std::{
    io,
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    event::{Timespec, epoll},
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    leech::{Alone, Lead, Part, Source},
    probe::{Reading, own_cpu_seconds},
};

/// An answer's head is shorter.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Dropped at once, at most; the memory behind it is never touched.
const DISCARD_BYTES: usize = 1 << 20;
/// Receives in one event, so that one connection does not hold up the others.
const RECEIVES_MAX: usize = 8;
const EVENTS_MAX: usize = 128;
const CONNECTIONS_MAX: usize = 100_000;
const SILENCE_MAX: Duration = Duration::from_secs(10);
const GIB: f64 = 1_073_741_824.0;

#[derive(clap::Args, Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Where the server listens, as ADDRESS:PORT.
    pub target: SocketAddr,
    /// What is fetched, such as /payload.bin.
    pub path: String,
    #[arg(long, short = 'k', default_value_t = 1)]
    pub connections: usize,
    #[arg(long, default_value_t = 10.0)]
    pub duration: f64,
    #[arg(long, default_value_t = 2.0)]
    pub warm_up: f64,
    /// Addresses to connect from, as ADDRESS/PREFIX.
    #[arg(long)]
    pub source: Option<Source>,
    /// The server's process.
    #[arg(long)]
    #[serde(skip)]
    pub pid: Option<u32>,
}

/// What came in the window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pulled {
    pub connections: usize,
    pub seconds: f64,
    pub bytes: u64,
    pub mib_per_s: f64,
    pub target_cpu_seconds_per_gib: Option<f64>,
    pub load_busy: f64,
}

struct Connection {
    socket: Socket,
    /// Of the answer that is being received; `None`: its head.
    left: Option<u64>,
    head: Vec<u8>,
}

pub fn run(options: Options) -> Result<ExitCode> {
    options.check()?;
    let pulled = part(&options, Part::default(), &Alone)?.context("no connections")?;
    println!("{}", serde_json::to_string_pretty(&pulled)?);
    Ok(ExitCode::SUCCESS)
}

impl Options {
    pub fn check(&self) -> Result<()> {
        let most = CONNECTIONS_MAX;
        ensure!((1..=most).contains(&self.connections), "--connections must be 1 to {most}");
        let fits = |seconds: f64| (0.0..=86_400.0).contains(&seconds);
        ensure!(
            self.duration > 0.0 && fits(self.duration) && fits(self.warm_up),
            "--duration and --warm-up are seconds"
        );
        let is_path = self.path.starts_with('/') && !self.path.contains(['\r', '\n', ' ']);
        ensure!(is_path, "what is fetched is a path such as /payload.bin, not {:?}", self.path);
        Ok(())
    }
}

impl Pulled {
    /// What two agents pulled in the same window.
    pub fn and(mut self, other: &Pulled) -> Pulled {
        self.connections += other.connections;
        self.bytes += other.bytes;
        self.seconds = self.seconds.max(other.seconds);
        self.mib_per_s += other.mib_per_s;
        self.load_busy += other.load_busy;
        self
    }
}

/// Those of the connections that are this process's. `None`: there are none.
pub fn part(options: &Options, part: Part, lead: &dyn Lead) -> Result<Option<Pulled>> {
    options.check()?;
    let mine: Vec<usize> = (0..options.connections).filter(|index| part.has(*index)).collect();
    if mine.is_empty() {
        return Ok(None);
    }
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", options.path, options.target);
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create")?;
    let mut connections = Vec::new();
    for (place, index) in mine.iter().enumerate() {
        let connection = Connection::open(options, *index, request.as_bytes())?;
        let data = epoll::EventData::new_u64(place as u64);
        epoll::add(&poll, &connection.socket, data, epoll::EventFlags::IN).context("epoll_ctl")?;
        connections.push(connection);
    }
    let mut discard = vec![0; DISCARD_BYTES];
    let mut receive_until = |end: Instant| -> Result<u64> {
        let (mut bytes, mut last) = (0, Instant::now());
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while Instant::now() < end {
            events.clear();
            let timeout = Timespec::try_from(Duration::from_millis(20)).context("a timeout")?;
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&poll, room, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error)).context("epoll_wait"),
            }
            for event in &events {
                let connection = &mut connections[event.data.u64() as usize];
                bytes += connection.receive(request.as_bytes(), &mut discard)?;
                last = Instant::now();
            }
            if let Some(why) = lead.stop() {
                bail!(why);
            }
            ensure!(last.elapsed() < SILENCE_MAX, "{} sent nothing for 10 s", options.target);
        }
        Ok(bytes)
    };
    let warm_up = Duration::from_secs_f64(options.warm_up);
    receive_until(lead.ready(mine.len(), mine.len(), warm_up)?)?;
    let before = options.pid.map(Reading::take).transpose()?;
    let (own, start) = (own_cpu_seconds(), Instant::now());
    let bytes = receive_until(start + Duration::from_secs_f64(options.duration))?;
    let (seconds, own) = (start.elapsed().as_secs_f64(), own_cpu_seconds() - own);
    let after = options.pid.map(Reading::take).transpose()?;
    let gib = bytes as f64 / GIB;
    ensure!(bytes > 0, "{} sent nothing in {seconds:.1} s", options.target);
    Ok(Some(Pulled {
        connections: mine.len(),
        seconds,
        bytes,
        mib_per_s: gib * 1024.0 / seconds,
        target_cpu_seconds_per_gib: before
            .zip(after)
            .map(|(before, after)| (after.cpu_seconds - before.cpu_seconds) / gib),
        load_busy: own / seconds,
    }))
}

impl Connection {
    fn open(options: &Options, index: usize, request: &[u8]) -> Result<Self> {
        let domain = Domain::for_address(options.target);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if let Some(source) = options.source {
            socket.bind(&source.address(index).into())?;
        }
        let what = || format!("cannot connect to {}", options.target);
        socket.connect_timeout(&options.target.into(), SILENCE_MAX).with_context(what)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        let connection = Connection { socket, left: None, head: Vec::new() };
        connection.ask(request)?;
        Ok(connection)
    }

    fn ask(&self, request: &[u8]) -> Result<()> {
        // A request is short and nothing else is in the socket's buffer.
        let sent = send(&self.socket, request, SendFlags::NOSIGNAL).context("the request")?;
        ensure!(sent == request.len(), "the request did not fit the socket's buffer");
        Ok(())
    }

    /// Bytes of content that were dropped.
    fn receive(&mut self, request: &[u8], discard: &mut [u8]) -> Result<u64> {
        let mut bytes = 0;
        for _ in 0..RECEIVES_MAX {
            let Some(left) = self.left else {
                if !self.receive_head()? {
                    break;
                }
                continue;
            };
            let wanted = left.min(discard.len() as u64) as usize;
            let room = &mut discard[..wanted];
            let received = match recv(&self.socket, room, RecvFlags::TRUNC) {
                Ok((_, 0)) => bail!("the server closed the connection in an answer"),
                Ok((_, count)) => count,
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => return Err(io::Error::from(error)).context("the answer"),
            };
            bytes += received as u64;
            self.left = Some(left - received as u64).filter(|left| *left > 0);
            if self.left.is_none() {
                self.ask(request)?;
            }
        }
        Ok(bytes)
    }

    /// `true`: it is whole. Its bytes are looked at before they are taken, so that none of the
    /// content is taken with them.
    fn receive_head(&mut self) -> Result<bool> {
        self.head.resize(HEAD_BYTES_MAX, 0);
        let count = match recv(&self.socket, &mut self.head[..], RecvFlags::PEEK) {
            Ok((_, 0)) => bail!("the server closed the connection"),
            Ok((_, count)) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(error) => return Err(io::Error::from(error)).context("an answer's head"),
        };
        let Some((length, left)) = read_head(&self.head[..count])? else {
            ensure!(count < HEAD_BYTES_MAX, "an answer's head is longer than {HEAD_BYTES_MAX}");
            return Ok(false);
        };
        recv(&self.socket, &mut self.head[..length], RecvFlags::empty()).context("a head")?;
        ensure!(left > 0, "the answer is empty");
        self.left = Some(left);
        Ok(true)
    }
}

/// Length of an answer's head, and of what follows. `None`: not whole.
fn read_head(bytes: &[u8]) -> Result<Option<(usize, u64)>> {
    let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..end]).context("an answer's head is not text")?;
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "the server answered: {status}");
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse().ok()).flatten()
    });
    Ok(Some((end + 4, length.context("the answer says no length")?)))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn a_head_gives_the_length_and_another_status_is_an_error() {
        let head = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 42\r\n\r\nabc";
        assert_eq!(read_head(head).expect("good"), Some((head.len() - 3, 42)));
        assert_eq!(read_head(&head[..20]).expect("not whole"), None);
        let missing = read_head(b"HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\n");
        assert!(missing.expect_err("404").to_string().contains("404 Not Found"));
    }

    #[test]
    fn what_a_server_sends_is_counted_and_asked_for_again() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let target = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve(stream));
            }
        });
        let options = Options {
            target,
            path: "/x".into(),
            connections: 3,
            duration: 0.2,
            warm_up: 0.05,
            source: None,
            pid: Some(std::process::id()),
        };
        let pulled = part(&options, Part::default(), &Alone).expect("pulled").expect("some");
        assert!(pulled.bytes > 300_000 && pulled.target_cpu_seconds_per_gib.is_some());
    }

    fn serve(mut stream: std::net::TcpStream) {
        let mut request = [0; 256];
        while stream.read(&mut request).is_ok_and(|count| count > 0) {
            let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n".to_vec();
            answer.resize(answer.len() + 100_000, 7);
            if stream.write_all(&answer).is_err() {
                break;
            }
        }
    }
}
