//! Owns: the built program as a process, small torrents, a peer and a tracker moved by hand.
//! Never: asserts what a test is about. Flow: each test has a folder and an engine of its own.

#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::unwrap_used)] // clippy takes only the functions with #[test] for tests

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use seedring_control::{
    control_socket, create,
    engine::status::{EngineReport, TorrentReport},
};

pub const PIECE: usize = 16 << 10;
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A folder with a `content` and a `torrents` folder in it.
pub struct Site {
    pub dir: tempfile::TempDir,
}

/// A torrent of one file, with its bytes.
pub struct Item {
    pub name: String,
    pub bytes: Vec<u8>,
    pub info_hash: [u8; 20],
    pub torrent: PathBuf,
    pub content: PathBuf,
}

impl Site {
    pub fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("content")).unwrap();
        fs::create_dir(dir.path().join("torrents")).unwrap();
        Site { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a file of so many pieces (the last one short) and its torrent.
    pub fn item(&self, name: &str, pieces: usize, trackers: &[&str]) -> Item {
        self.item_of(name, pieces, trackers, false)
    }

    /// The same, private (BEP 27).
    pub fn private(&self, name: &str, pieces: usize, trackers: &[&str]) -> Item {
        self.item_of(name, pieces, trackers, true)
    }

    fn item_of(&self, name: &str, pieces: usize, trackers: &[&str], private: bool) -> Item {
        let content = self.path("content").join(name);
        let bytes = bytes_of(name, pieces * PIECE - 100);
        fs::write(&content, &bytes).unwrap();
        let options = create::Options {
            piece_bytes: Some(PIECE as u32),
            private,
            trackers: trackers.iter().map(|url| vec![(*url).to_owned()]).collect(),
            ..create::Options::default()
        };
        let made = create::make(&create::scan(&content).unwrap(), &options, &|_| true).unwrap();
        let torrent = self.path("torrents").join(format!("{name}.torrent"));
        fs::write(&torrent, &made.torrent).unwrap();
        let info_hash = made.metainfo.info_hash.0;
        Item { name: name.into(), bytes, info_hash, torrent, content }
    }

    pub fn write_yaml(&self, head: &str, torrents: &str) -> PathBuf {
        let path = self.path("seedring.yaml");
        let listen = if head.contains("listen:") { "" } else { "listen: [\"127.0.0.1:0\"]\n" };
        let shards = if head.contains("shards:") { "" } else { "shards: 1\n" };
        let text = format!(
            "base_dir: {}\nstate_dir: state\n{listen}{shards}memory: {{ cache: 16MiB }}\n{head}\n\
             torrents:\n{torrents}\n",
            self.dir.path().display()
        );
        fs::write(&path, text).unwrap();
        path
    }

    pub fn run(&self, head: &str, torrents: &str) -> Engine {
        let path = self.write_yaml(head, torrents);
        Engine::spawn(self, &["run", path.to_str().unwrap()])
    }
}

/// An entry of `torrents` for all items of the site.
pub fn all(verify: &str) -> String {
    format!("  - {{ files: \"torrents/*.torrent\", content: content, verify: {verify} }}\n")
}

pub fn one(item: &Item, verify: &str) -> String {
    let torrent = item.torrent.display();
    format!("  - {{ files: \"{torrent}\", content: content, verify: {verify} }}\n")
}

/// Different for each name, the same each time.
pub fn bytes_of(name: &str, length: usize) -> Vec<u8> {
    let mut state = name.bytes().fold(0x9e37_79b9_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(31));
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

pub struct Engine {
    child: Child,
    log: PathBuf,
    socket: PathBuf,
}

impl Engine {
    pub fn spawn(site: &Site, arguments: &[&str]) -> Engine {
        let log = site.path("log");
        let out = fs::File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_seedring"))
            .args(arguments)
            .current_dir(site.dir.path())
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Engine { child, log, socket: site.path("state/control.sock") }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn report(&self) -> Option<EngineReport> {
        control_socket::ask(&self.socket, None).ok()
    }

    /// Waits until the report is as wanted.
    pub fn wait(&mut self, what: &str, wanted: impl Fn(&EngineReport) -> bool) -> EngineReport {
        let until = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < until {
            if let Some(report) = self.report() {
                if wanted(&report) {
                    return report;
                }
                last = Some(report);
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{what}: ended with {status}: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{what}: not in time; {last:#?}\n{}", self.log());
    }

    pub fn ready(&mut self) -> EngineReport {
        self.wait("ready", |report| report.ready_after_ms.is_some())
    }

    pub fn wait_log(&mut self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < until, "no \"{text}\" in {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub fn end(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "still running: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn stop(mut self) -> String {
        self.signal(Signal::TERM);
        let status = self.end();
        assert!(status.success(), "{status}: {}", self.log());
        self.log()
    }

    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.end();
    }

    pub fn address(&self) -> SocketAddr {
        self.report().unwrap().listening[0].parse().unwrap()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn hashed(report: &EngineReport) -> u64 {
    report.shards.iter().map(|shard| shard.hashed_bytes).sum()
}

pub fn torrent<'a>(report: &'a EngineReport, name: &str) -> Option<&'a TorrentReport> {
    report.torrents.iter().find(|torrent| torrent.name == name)
}

pub fn is(report: &EngineReport, name: &str, state: &str) -> bool {
    torrent(report, name).is_some_and(|torrent| torrent.state == state)
}

/// A leech, moved by hand.
pub struct Peer {
    stream: TcpStream,
}

impl Peer {
    /// Handshaken, interested and unchoked; `None`: refused.
    pub fn connect(address: SocketAddr, item: &Item) -> Option<Peer> {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut hello = b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0".to_vec();
        hello.extend_from_slice(&item.info_hash);
        hello.extend_from_slice(b"-XX0000-");
        let nonce = format!("{:?}{:?}", Instant::now(), std::thread::current().id());
        hello.extend_from_slice(&bytes_of(&nonce, 12));
        stream.write_all(&hello).ok()?;
        let mut answer = [0; 68];
        stream.read_exact(&mut answer).ok()?;
        assert_eq!(answer[28..48], item.info_hash);
        let mut peer = Peer { stream };
        peer.send(&[2]);
        while peer.message()?.first() != Some(&1) {}
        Some(peer)
    }

    fn send(&mut self, message: &[u8]) {
        let mut frame = (message.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(message);
        let _ = self.stream.write_all(&frame);
    }

    fn message(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).ok()?;
        let mut message = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut message).ok()?;
        Some(message)
    }

    /// The engine ends the connection, in seconds.
    pub fn is_closed(&mut self) -> bool {
        let mut bytes = [0; 4_096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// A whole piece; `None`: the connection was closed, or nothing came.
    pub fn piece(&mut self, item: &Item, piece: usize) -> Option<Vec<u8>> {
        let length = PIECE.min(item.bytes.len() - piece * PIECE);
        let mut request = vec![6];
        for word in [piece, 0, length] {
            request.extend_from_slice(&(word as u32).to_be_bytes());
        }
        self.send(&request);
        loop {
            let message = self.message()?;
            if message.first() == Some(&7) {
                return Some(message[9..].to_vec());
            }
        }
    }
}

/// Every piece of an item that is served at all is right; returns how many were served.
pub fn served_right(address: SocketAddr, item: &Item) -> usize {
    let mut served = 0;
    for piece in 0..item.bytes.len().div_ceil(PIECE) {
        let Some(mut peer) = Peer::connect(address, item) else { continue };
        peer.stream.set_read_timeout(Some(Duration::from_millis(2_500))).unwrap();
        if let Some(bytes) = peer.piece(item, piece) {
            let right = item.bytes.chunks(PIECE).nth(piece).unwrap();
            assert!(bytes == right, "piece {piece} of {} was sent wrong", item.name);
            served += 1;
        }
    }
    served
}

/// An HTTP tracker that notes what it is asked. `silent`: it never answers.
pub struct Tracker {
    pub url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tracker {
    pub fn start(silent_to: Option<&'static str>) -> Tracker {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/announce", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = asked.clone();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                    request.push(byte[0]);
                }
                let text = String::from_utf8_lossy(&request);
                let line = text.lines().next().unwrap_or("").to_owned();
                let silent = silent_to.is_some_and(|what| line.contains(what));
                notes.lock().unwrap().push(line);
                if silent {
                    kept.push(stream);
                    continue;
                }
                let body = "d8:intervali1800e5:peers0:e";
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Tracker { url, asked }
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub fn wait(&self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.asked().into_iter().find(|line| line.contains(text)) {
                return line;
            }
            assert!(Instant::now() < until, "no {text}: {:?}", self.asked());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Overwrites a part of a file, which changes its modification time.
pub fn spoil(path: &Path, offset: usize, length: usize) {
    use std::os::unix::fs::FileExt;
    // Kernels stamp files by the tick: a change within the same one would go unseen.
    std::thread::sleep(Duration::from_millis(20));
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![0xEE; length], offset as u64).unwrap();
}
