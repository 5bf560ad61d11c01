//! Owns: seeders of the bench's own: what each has (everything, or a share of the pieces: BEP 21),
//! whether it fetches the rest from who downloads from it (a mixed peer), where its bytes are from.
//! Never: is measured as a target; is clever. Flow: listener -> a thread a connection (`serve`) ->
//! requests in, blocks out; a mixed peer's own requests are `fetch`.

mod content;
mod fetch;
mod serve;

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

pub use content::Content;
use fetch::Gained;

use crate::{
    faulty::Fault,
    leech::{
        frames::{PIECE_HEAD_BYTES, id},
        walk::Random,
    },
    torrent::Torrent,
};

const CONNECTIONS_MAX: usize = 1024;
const BLOCK_BYTES_MAX: u32 = 128 << 10;
/// Until threads whose socket was shut are gone.
const CLOSING_MAX: Duration = Duration::from_secs(1);
/// How often totals are written down.
const TOTALS_EVERY: Duration = Duration::from_millis(100);

/// What is seeded, and where.
#[derive(clap::Args)]
pub struct Source {
    #[arg(long)]
    pub torrent: PathBuf,
    /// Its file, whole.
    #[arg(long, required_unless_present = "content_seed", conflicts_with = "content_seed")]
    pub content: Option<PathBuf>,
    /// In place of a file: the bytes that `payload --seed` of this number makes, made as they are
    /// asked for.
    #[arg(long, value_name = "NUMBER")]
    pub content_seed: Option<u64>,
    /// Where to listen; port 0: any, and it is printed which.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
}

impl Source {
    pub fn open(&self, torrent: &Torrent) -> Result<Content> {
        match (&self.content, self.content_seed) {
            (Some(path), _) => Content::file(path, torrent),
            (None, Some(seed)) => Content::made(seed, torrent),
            (None, None) => bail!("--content or --content-seed is needed"),
        }
    }
}

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    source: Source,
    /// How many percent of the pieces it has; below 100 it is one of several.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    have_percent: u8,
    /// It is one of so many, which have everything together.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    of: u32,
    /// Which of them, from 0.
    #[arg(long, default_value_t = 0)]
    number: u32,
    /// Fetches the other pieces from who downloads from it, checks each byte, and has them then: a
    /// mixed peer, leech and seed in one.
    #[arg(long)]
    fetch: bool,
    /// A file in which it keeps what it sent and fetched so far, as JSON.
    #[arg(long, value_name = "FILE")]
    totals: Option<PathBuf>,
}

/// Which pieces one of several seeders has.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub percent: u8,
    pub of: u32,
    pub number: u32,
}

impl Share {
    pub const ALL: Share = Share { percent: 100, of: 1, number: 0 };

    fn is_all(self) -> bool {
        self.percent == 100
    }

    /// Of the seeders, in a ring, that share has each piece, rounded up, so that none is missing:
    /// those from a place on that is random by the piece's number.
    fn has(self, piece: u32) -> bool {
        let (of, number) = (u64::from(self.of), u64::from(self.number));
        let first = Random(u64::from(piece)).below(of);
        (number + of - first) % of < u64::from(Share::holders(self.percent, self.of))
    }

    /// How many of the seeders have each piece.
    pub fn holders(percent: u8, of: u32) -> u32 {
        (u64::from(of) * u64::from(percent)).div_ceil(100) as u32
    }

    /// An error where a part is asked for and would be everything.
    pub fn check(percent: u8, of: u32) -> Result<()> {
        ensure!(
            percent == 100 || Share::holders(percent, of) < of,
            "{percent} % of {of} seeders, rounded up, is all of them: more seeders, or less percent"
        );
        Ok(())
    }
}

/// What one seeder, or several, sent and got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub sent_bytes: u64,
    pub fetched_bytes: u64,
    /// Fetched blocks that were not the content's.
    pub wrong_blocks: u64,
}

impl Totals {
    pub fn and(self, other: Totals) -> Totals {
        Totals {
            sent_bytes: self.sent_bytes + other.sent_bytes,
            fetched_bytes: self.fetched_bytes + other.fetched_bytes,
            wrong_blocks: self.wrong_blocks + other.wrong_blocks,
        }
    }

    /// What came since.
    pub fn since(self, before: Totals) -> Totals {
        Totals {
            sent_bytes: self.sent_bytes.saturating_sub(before.sent_bytes),
            fetched_bytes: self.fetched_bytes.saturating_sub(before.fetched_bytes),
            wrong_blocks: self.wrong_blocks.saturating_sub(before.wrong_blocks),
        }
    }

    /// As `--totals` writes them; nothing was written yet: nothing was sent.
    pub fn read(path: &Path) -> Result<Totals> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is no totals of a seeder", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Totals::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn write(self, path: &Path) -> Result<()> {
        let partial = path.with_extension("partial");
        std::fs::write(&partial, serde_json::to_vec(&self)?)?;
        Ok(std::fs::rename(&partial, path)?)
    }
}

pub struct Seeder {
    torrent: Arc<Torrent>,
    content: Arc<Content>,
    share: Share,
    fault: Fault,
    fetches: bool,
    start: Instant,
    /// Sent so far, on all connections. Relaxed: counts, nothing is published through them.
    blocks: AtomicU64,
    sent_bytes: AtomicU64,
    fetched_bytes: AtomicU64,
    wrong_blocks: AtomicU64,
    /// What it has beyond its share.
    gained: Mutex<Gained>,
    connections: AtomicUsize,
    /// To be shut when it ends.
    open: Mutex<BTreeMap<usize, TcpStream>>,
    is_closing: AtomicBool,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let Options { have_percent: percent, of, number, fetch, .. } = *options;
    ensure!(number < of, "--number {number} of {of}: it is counted from 0");
    Share::check(percent, of).context("--have-percent")?;
    ensure!(
        !fetch || percent < 100,
        "--fetch: who has 100 % has nothing to fetch (--have-percent)"
    );
    let share = Share { percent, of, number };
    let seeder = Arc::new(Seeder::of(&options.source, share, Fault::None)?.fetching(fetch));
    if let Some(path) = options.totals.clone() {
        let counted = Arc::clone(&seeder);
        thread::Builder::new().name("totals".into()).spawn(move || {
            let mut written = None;
            loop {
                let totals = Some(counted.totals()).filter(|totals| written != Some(*totals));
                if let Some(totals) = totals {
                    match totals.write(&path) {
                        Ok(()) => written = Some(totals),
                        Err(error) => eprintln!("{}: {error:#}", path.display()),
                    }
                }
                thread::sleep(TOTALS_EVERY);
            }
        })?;
    }
    seeder.listen(options.source.listen, "")
}

impl Seeder {
    pub fn of(source: &Source, share: Share, fault: Fault) -> Result<Self> {
        let torrent = Arc::new(Torrent::read(&source.torrent)?);
        let content = source.open(&torrent)?;
        Ok(Seeder::new(torrent, Arc::new(content), share, fault))
    }

    pub fn new(torrent: Arc<Torrent>, content: Arc<Content>, share: Share, fault: Fault) -> Self {
        let pieces = torrent.piece_hashes.len();
        Seeder {
            torrent,
            content,
            share,
            fault,
            fetches: false,
            start: Instant::now(),
            blocks: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(0),
            wrong_blocks: AtomicU64::new(0),
            gained: Mutex::new(Gained::new(pieces)),
            connections: AtomicUsize::new(0),
            open: Mutex::default(),
            is_closing: AtomicBool::new(false),
        }
    }

    pub fn fetching(self, fetches: bool) -> Self {
        Seeder { fetches, ..self }
    }

    pub fn totals(&self) -> Totals {
        Totals {
            sent_bytes: self.sent_bytes.load(Relaxed),
            fetched_bytes: self.fetched_bytes.load(Relaxed),
            wrong_blocks: self.wrong_blocks.load(Relaxed),
        }
    }

    fn gained(&self) -> MutexGuard<'_, Gained> {
        self.gained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, piece: u32) -> bool {
        self.share.has(piece) || (self.fetches && self.gained().has(piece))
    }

    /// Serves until the process ends; `what` is said after the address.
    pub fn listen(self: &Arc<Self>, address: SocketAddr, what: &str) -> Result<ExitCode> {
        self.accept(&bind(address, what)?)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Serves whoever connects, until it is closed.
    pub fn accept(self: &Arc<Self>, listener: &TcpListener) -> Result<()> {
        for (number, stream) in listener.incoming().enumerate() {
            if self.is_closing.load(SeqCst) {
                break;
            }
            let Ok(stream) = stream else { continue };
            if self.connections.fetch_add(1, Relaxed) >= CONNECTIONS_MAX {
                self.connections.fetch_sub(1, Relaxed);
                continue;
            }
            if self.opened(number, &stream).is_err() {
                self.connections.fetch_sub(1, Relaxed);
                continue;
            }
            let seeder = Arc::clone(self);
            thread::Builder::new().name("peer".into()).spawn(move || {
                let served = seeder.serve(stream);
                if let Err(error) = served
                    && !seeder.is_closing.load(SeqCst)
                {
                    eprintln!("a connection ended: {error:#}");
                }
                seeder.all_open().remove(&number);
                seeder.connections.fetch_sub(1, Relaxed);
            })?;
        }
        Ok(())
    }

    fn all_open(&self) -> MutexGuard<'_, BTreeMap<usize, TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self, number: usize, stream: &TcpStream) -> Result<()> {
        let mut open = self.all_open();
        open.insert(number, stream.try_clone()?);
        if self.is_closing.load(SeqCst) {
            stream.shutdown(Shutdown::Both).ok();
        }
        Ok(())
    }

    /// Ends all connections, and whoever accepts at this address.
    pub fn close(&self, listening: SocketAddr) {
        self.is_closing.store(true, SeqCst);
        for stream in self.all_open().values() {
            stream.shutdown(Shutdown::Both).ok();
        }
        // `accept` waits in the kernel.
        TcpStream::connect_timeout(&listening, CLOSING_MAX).ok();
        let begin = Instant::now();
        while self.connections.load(Relaxed) > 0 && begin.elapsed() < CLOSING_MAX {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The block that a request names.
#[derive(Clone, Copy)]
pub struct Request {
    pub piece: u32,
    pub begin: u32,
    pub length: u32,
    /// In the torrent.
    pub offset: u64,
}

impl Request {
    /// `words`: the message without its ID.
    pub fn read(torrent: &Torrent, words: &[u8]) -> Result<Request> {
        let (words, rest) = words.as_chunks::<4>();
        let [piece, begin, length] = words else { bail!("a request of another form") };
        ensure!(rest.is_empty(), "a request of another form");
        let [piece, begin, length] = [piece, begin, length].map(|word| u32::from_be_bytes(*word));
        let offset = u64::from(piece) * u64::from(torrent.piece_bytes) + u64::from(begin);
        let end = offset + u64::from(length);
        ensure!(
            (1..=BLOCK_BYTES_MAX).contains(&length) && end <= torrent.total_bytes,
            "a request outside of the torrent"
        );
        Ok(Request { piece, begin, length, offset })
    }

    /// What comes before the block on the wire.
    pub fn head(&self) -> [u8; PIECE_HEAD_BYTES] {
        let mut head = [0; PIECE_HEAD_BYTES];
        head[..4].copy_from_slice(&(self.length + 9).to_be_bytes());
        head[4] = id::PIECE;
        head[5..9].copy_from_slice(&self.piece.to_be_bytes());
        head[9..].copy_from_slice(&self.begin.to_be_bytes());
        head
    }
}

/// The bitfield of those of so many pieces that it has.
pub fn put_bitfield(out: &mut Vec<u8>, pieces: usize, has: impl Fn(u32) -> bool) {
    let mut bits = vec![0_u8; pieces.div_ceil(8)];
    for piece in (0..pieces).filter(|piece| has(*piece as u32)) {
        bits[piece / 8] |= 0x80 >> (piece % 8);
    }
    out.extend_from_slice(&(bits.len() as u32 + 1).to_be_bytes());
    out.push(id::BITFIELD);
    out.extend_from_slice(&bits);
}

/// Listens, and says where; `what` is said after the address.
pub fn bind(address: SocketAddr, what: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| {
        format!(
            "cannot listen on {address}: is the port taken (`ss -ltnp`), is the address this \
             machine's?"
        )
    })?;
    println!("listening on {}{what}", listener.local_addr()?);
    std::io::stdout().flush()?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_seeds_have_their_share_and_everything_together() {
        for (percent, of, holders) in [(1, 2, 1), (50, 4, 2), (25, 8, 2), (30, 8, 3), (100, 3, 3)] {
            let mut own = vec![0; of as usize];
            for piece in 0..4000 {
                let has = |number: &u32| Share { percent, of, number: *number }.has(piece);
                let found: Vec<u32> = (0..of).filter(has).collect();
                assert_eq!(found.len(), holders, "{percent} % of {of}: piece {piece}");
                found.iter().for_each(|number| own[*number as usize] += 1);
            }
            let even = 4000 * holders / of as usize;
            let is_near = |count: &usize| count.abs_diff(even) <= even / 10;
            assert!(own.iter().all(is_near), "{percent} % of {of}: {own:?}");
        }
        assert!((0..100).all(|piece| Share::ALL.has(piece)));
        assert!(Share::check(50, 2).is_ok() && Share::check(100, 1).is_ok());
        assert!(Share::check(50, 1).is_err() && Share::check(90, 4).is_err());
    }

    #[test]
    fn totals_are_what_was_written_last() {
        let path = std::env::temp_dir().join(format!("totals-{}.json", std::process::id()));
        assert_eq!(Totals::read(&path).expect("none yet"), Totals::default());
        let first = Totals { sent_bytes: 5, fetched_bytes: 3, wrong_blocks: 1 };
        first.write(&path).expect("written");
        let both = first.and(first);
        assert_eq!(both.since(first), Totals::read(&path).expect("read"));
        std::fs::write(&path, "{").expect("written");
        assert!(Totals::read(&path).is_err());
        std::fs::remove_file(path).ok();
    }
}
