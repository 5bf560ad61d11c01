//! Owns: a seeder of the bench's own: of a share of the pieces (a partial seed, BEP 21), or with a
//! fault.
//! Never: is measured as a target; is clever. Flow: listener -> a thread a connection -> requests
//! in, blocks out, the fault in between.

use std::{
    fs::File,
    io::{BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    faulty::Fault,
    leech::{
        frames::{self, HANDSHAKE_BYTES, MESSAGE_BYTES_MAX, PIECE_HEAD_BYTES, id},
        walk::Random,
    },
    torrent::Torrent,
};

const CONNECTIONS_MAX: usize = 1024;
const BLOCK_BYTES_MAX: u32 = 128 << 10;
/// Answers are gathered up to this before they are sent.
const SEND_BYTES: usize = 256 << 10;
/// Exit status of a crash, so that it is known from any other end.
const CRASHED: i32 = 70;
/// The extension handshake (BEP 10) of one that wants nothing (BEP 21).
const UPLOAD_ONLY: &[u8] = b"d1:mde11:upload_onlyi1ee";

/// What is seeded, and where.
#[derive(clap::Args)]
pub struct Source {
    #[arg(long)]
    pub torrent: PathBuf,
    /// Its file, whole.
    #[arg(long)]
    pub content: PathBuf,
    /// Where to listen; port 0: any, and it is printed which.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
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
}

/// Which pieces one of several seeders has.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    percent: u8,
    of: u32,
    number: u32,
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

pub struct Seeder {
    torrent: Torrent,
    content: File,
    share: Share,
    fault: Fault,
    start: Instant,
    /// Sent so far, on all connections. Relaxed: a count, nothing is published through it.
    blocks: AtomicU64,
    connections: AtomicUsize,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let Options { have_percent: percent, of, number, .. } = *options;
    ensure!(number < of, "--number {number} of {of}: it is counted from 0");
    Share::check(percent, of).context("--have-percent")?;
    let share = Share { percent, of, number };
    Seeder::of(&options.source, share, Fault::None)?.listen(options.source.listen, "")
}

impl Seeder {
    pub fn of(source: &Source, share: Share, fault: Fault) -> Result<Self> {
        Seeder::new(&source.torrent, &source.content, share, fault)
    }

    fn new(torrent: &Path, content: &Path, share: Share, fault: Fault) -> Result<Self> {
        let torrent = Torrent::read(torrent)?;
        let name = content.display();
        let content =
            File::open(content).with_context(|| format!("cannot read the content {name}"))?;
        let length = content.metadata()?.len();
        let expected = torrent.total_bytes;
        ensure!(length == expected, "{name} has {length} bytes, the torrent has {expected}");
        Ok(Seeder {
            torrent,
            content,
            share,
            fault,
            start: Instant::now(),
            blocks: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
        })
    }

    /// Serves until the process ends; `what` is said after the address.
    pub fn listen(self, address: SocketAddr, what: &str) -> Result<ExitCode> {
        let listener = bind(address, what)?;
        let seeder = Arc::new(self);
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            if seeder.connections.fetch_add(1, Relaxed) >= CONNECTIONS_MAX {
                seeder.connections.fetch_sub(1, Relaxed);
                continue;
            }
            let seeder = seeder.clone();
            thread::Builder::new().name("peer".into()).spawn(move || {
                if let Err(error) = seeder.serve(stream) {
                    eprintln!("a connection ended: {error:#}");
                }
                seeder.connections.fetch_sub(1, Relaxed);
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut input = BufReader::with_capacity(64 << 10, stream.try_clone()?);
        let mut hello = [0; HANDSHAKE_BYTES];
        input.read_exact(&mut hello).context("handshake")?;
        ensure!(hello[28..48] == self.torrent.info_hash, "another torrent");
        let says_more = !self.share.is_all() && frames::has_extensions(&hello);
        hello[20..28].fill(0);
        if says_more {
            frames::set_extensions(&mut hello);
        }
        // Clients keep one connection a peer ID.
        let own_id = match self.fault {
            Fault::None => format!("-SBSEED-{:012}", self.share.number),
            _ => format!("-SBFAULT{:012}", 0),
        };
        hello[48..].copy_from_slice(own_id.as_bytes());
        let mut out = hello.to_vec();
        let pieces = self.torrent.piece_hashes.len();
        put_bitfield(&mut out, pieces, |piece| self.share.has(piece));
        if says_more {
            out.extend_from_slice(&(UPLOAD_ONLY.len() as u32 + 2).to_be_bytes());
            out.extend_from_slice(&[id::EXTENDED, 0]);
            out.extend_from_slice(UPLOAD_ONLY);
        }
        stream.write_all(&out)?;
        out.clear();
        let mut message = Vec::new();
        loop {
            let mut prefix = [0; 4];
            if input.read_exact(&mut prefix).is_err() {
                return Ok(());
            }
            let length = u32::from_be_bytes(prefix);
            ensure!(length <= MESSAGE_BYTES_MAX, "a message of {length} bytes");
            message.resize(length as usize, 0);
            input.read_exact(&mut message)?;
            let mut goes_on = true;
            match message.split_first() {
                Some((&id::INTERESTED, _)) => out.extend_from_slice(&[0, 0, 0, 1, id::UNCHOKE]),
                Some((&id::REQUEST, words)) => goes_on = self.answer(words, &mut out)?,
                _ => {}
            }
            let is_last = input.buffer().is_empty();
            if (is_last || !goes_on || out.len() >= SEND_BYTES) && !out.is_empty() {
                self.stall();
                stream.write_all(&out)?;
                out.clear();
            }
            if !goes_on {
                if matches!(self.fault, Fault::Crash(_)) {
                    std::process::exit(CRASHED);
                }
                return Ok(());
            }
        }
    }

    /// `false`: this was the connection's last block.
    fn answer(&self, words: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let asked = Request::read(&self.torrent, words)?;
        let Request { piece, length, offset, .. } = asked;
        ensure!(self.share.has(piece), "a request for piece {piece}, which is not here");
        let number = self.blocks.fetch_add(1, Relaxed) + 1;
        let goes_wrong = |every: u64| number.is_multiple_of(every);
        let named = match self.fault {
            Fault::WrongPiece(every) if goes_wrong(every) => {
                (piece + 1) % self.torrent.piece_hashes.len().max(2) as u32
            }
            _ => piece,
        };
        let start = out.len();
        out.extend_from_slice(&Request { piece: named, ..asked }.head());
        out.resize(start + PIECE_HEAD_BYTES + length as usize, 0);
        let payload = &mut out[start + PIECE_HEAD_BYTES..];
        self.content.read_exact_at(payload, offset).context("the content")?;
        match self.fault {
            Fault::Corrupt(every) if goes_wrong(every) => payload[length as usize / 2] ^= 1,
            Fault::Unasked(every) if goes_wrong(every) => out.extend_from_within(start..),
            Fault::Close(every) | Fault::Crash(every) => return Ok(!goes_wrong(every)),
            _ => {}
        }
        Ok(true)
    }

    /// Waits where nothing may be sent now.
    fn stall(&self) {
        let Fault::Stall { length, period } = self.fault else { return };
        let phase = self.start.elapsed().as_nanos() % period.as_nanos();
        let left = period.as_nanos() - phase;
        if left <= length.as_nanos() {
            thread::sleep(Duration::from_nanos(left as u64));
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
    use crate::payload;

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
    fn a_partial_seed_says_what_it_has_and_closes_for_what_it_has_not() {
        let folder = std::env::temp_dir().join(format!("seed-{}", std::process::id()));
        let file = folder.join("content.bin");
        let torrent = payload::make(&file, 9 * 16_384, 16_384, 3).expect("content");
        let share = Share { percent: 50, of: 2, number: 1 };
        let seeder = Seeder::new(&torrent, &file, share, Fault::None).expect("a seeder");
        let info_hash = seeder.torrent.info_hash;
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("open");
        let (stream, _) = listener.accept().expect("a client");
        let served = thread::spawn(move || seeder.serve(stream));
        let mut hello = frames::handshake(&info_hash, b"-XX0000-000000000000");
        frames::set_extensions(&mut hello);
        client.write_all(&hello).expect("sent");
        let mut answer = [0; HANDSHAKE_BYTES];
        client.read_exact(&mut answer).expect("a handshake");
        assert!(frames::has_extensions(&answer) && answer[27] == 0, "no fast extension");
        assert_eq!(&answer[48..], b"-SBSEED-000000000001");
        let mut bitfield = [0; 7];
        client.read_exact(&mut bitfield).expect("a bitfield");
        assert_eq!(&bitfield[..5], [0, 0, 0, 3, id::BITFIELD]);
        let has = |piece: u32| bitfield[5 + piece as usize / 8] & (0x80 >> (piece % 8)) != 0;
        assert!(
            (0..9).all(|piece| has(piece) == share.has(piece)) && (9..16).all(|piece| !has(piece))
        );
        let mut said = [0; 30];
        client.read_exact(&mut said).expect("an extension handshake");
        assert_eq!(&said, b"\0\0\0\x1a\x14\0d1:mde11:upload_onlyi1ee");
        let mut ask = |piece: u32| {
            let mut request = vec![0, 0, 0, 13, id::REQUEST];
            for word in [piece, 0, 16_384] {
                request.extend_from_slice(&word.to_be_bytes());
            }
            client.write_all(&request).expect("sent");
            let mut block = vec![0; PIECE_HEAD_BYTES + 16_384];
            client.read_exact(&mut block).map(|()| block)
        };
        let (there, missing): (Vec<u32>, Vec<u32>) = (0..9).partition(|piece| has(*piece));
        let block = ask(there[0]).expect("a block");
        let content = std::fs::read(&file).expect("content");
        let start = there[0] as usize * 16_384;
        assert!(block[PIECE_HEAD_BYTES..] == content[start..start + 16_384]);
        assert!(ask(missing[0]).is_err(), "it closes the connection");
        let error = served.join().expect("no panic").expect_err("refused").to_string();
        assert!(error.contains("not here"), "{error}");
        std::fs::remove_dir_all(folder).ok();
    }
}
