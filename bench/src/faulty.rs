//! Owns: a seeder that does one thing wrong, so that it can be shown that the load sees it.
//! Never: stands in a figure that is published; is fast or clever. Flow: listener -> a thread a
//! connection -> requests in, blocks out, the fault in between.

use std::{
    fmt,
    fs::File,
    io::{BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    leech::frames::{HANDSHAKE_BYTES, MESSAGE_BYTES_MAX, PIECE_HEAD_BYTES, id},
    torrent::Torrent,
};

const CONNECTIONS_MAX: usize = 1024;
const BLOCK_BYTES_MAX: u32 = 128 << 10;
/// Answers are gathered up to this before they are sent.
const SEND_BYTES: usize = 256 << 10;
/// Exit status of a crash, so that it is known from any other end.
const CRASHED: i32 = 70;

#[derive(clap::Args)]
pub struct Options {
    #[arg(long)]
    torrent: PathBuf,
    /// Its file.
    #[arg(long)]
    content: PathBuf,
    /// Where to listen; port 0: any, and it is printed which.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// What goes wrong: none, corrupt:N, wrong-piece:N, unasked:N (each with every N-th block),
    /// stall:LENGTH/PERIOD (as 1s/10s), close:N (that connection), crash:N (the process).
    #[arg(long)]
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// One byte is another one.
    Corrupt(u64),
    /// The answer names another piece than was asked for.
    WrongPiece(u64),
    /// A block is sent once more, which nobody asked for.
    Unasked(u64),
    /// Nothing is sent for the last `length` of each `period`.
    Stall {
        length: Duration,
        period: Duration,
    },
    Close(u64),
    Crash(u64),
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').unwrap_or((text, ""));
        let every = || -> Result<u64, String> {
            let number = value.parse().ok().filter(|number| *number > 0);
            number.ok_or_else(|| format!("expected {name}:N with N above 0, found {text:?}"))
        };
        Ok(match name {
            "none" => Fault::None,
            "corrupt" => Fault::Corrupt(every()?),
            "wrong-piece" => Fault::WrongPiece(every()?),
            "unasked" => Fault::Unasked(every()?),
            "close" => Fault::Close(every()?),
            "crash" => Fault::Crash(every()?),
            "stall" => {
                let both = value
                    .split_once('/')
                    .and_then(|(length, period)| Some((duration(length)?, duration(period)?)));
                let both = both.filter(|(length, period)| length < period && !length.is_zero());
                let (length, period) = both.ok_or_else(|| {
                    format!("expected stall:LENGTH/PERIOD such as stall:1s/10s, found {text:?}")
                })?;
                Fault::Stall { length, period }
            }
            _ => return Err(format!("unknown fault {text:?}: see --help")),
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// `1s` or `250ms`.
fn duration(text: &str) -> Option<Duration> {
    let (digits, scale) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix('s')?, 1000),
    };
    Some(Duration::from_millis(digits.parse::<u64>().ok()?.checked_mul(scale)?))
}

struct Target {
    torrent: Torrent,
    content: File,
    fault: Fault,
    start: Instant,
    /// Sent so far, on all connections. Relaxed: a count, nothing is published through it.
    blocks: AtomicU64,
    connections: AtomicUsize,
}

pub fn run(options: Options) -> Result<ExitCode> {
    let torrent = Torrent::read(&options.torrent)?;
    let content = File::open(&options.content)
        .with_context(|| format!("cannot read the content {}", options.content.display()))?;
    let length = content.metadata()?.len();
    ensure!(
        length == torrent.total_bytes,
        "{} has {length} bytes, the torrent has {}",
        options.content.display(),
        torrent.total_bytes
    );
    let listener = TcpListener::bind(options.listen).with_context(|| {
        format!(
            "cannot listen on {}: is the port taken (`ss -ltnp`), is the address this machine's?",
            options.listen
        )
    })?;
    println!("listening on {} with fault {}", listener.local_addr()?, options.fault);
    std::io::stdout().flush()?;
    eprintln!("a target that is wrong on purpose: its figures are worth nothing");
    let target = Arc::new(Target {
        torrent,
        content,
        fault: options.fault,
        start: Instant::now(),
        blocks: AtomicU64::new(0),
        connections: AtomicUsize::new(0),
    });
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if target.connections.fetch_add(1, Relaxed) >= CONNECTIONS_MAX {
            target.connections.fetch_sub(1, Relaxed);
            continue;
        }
        let target = target.clone();
        thread::Builder::new().name("peer".into()).spawn(move || {
            if let Err(error) = target.serve(stream) {
                eprintln!("a connection ended: {error:#}");
            }
            target.connections.fetch_sub(1, Relaxed);
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Target {
    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut input = BufReader::with_capacity(64 << 10, stream.try_clone()?);
        let mut hello = [0; HANDSHAKE_BYTES];
        input.read_exact(&mut hello).context("handshake")?;
        ensure!(hello[28..48] == self.torrent.info_hash, "another torrent");
        // No extensions; the name of what is wrong on purpose.
        hello[20..28].fill(0);
        hello[48..].copy_from_slice(b"-SBFAULT000000000000");
        let mut out = hello.to_vec();
        self.put_bitfield(&mut out);
        stream.write_all(&out)?;
        out.clear();
        loop {
            let mut prefix = [0; 4];
            if input.read_exact(&mut prefix).is_err() {
                return Ok(());
            }
            let length = u32::from_be_bytes(prefix);
            ensure!(length <= MESSAGE_BYTES_MAX, "a message of {length} bytes");
            let mut message = vec![0; length as usize];
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

    fn put_bitfield(&self, out: &mut Vec<u8>) {
        let pieces = self.torrent.piece_hashes.len();
        let mut bits = vec![0xff_u8; pieces.div_ceil(8)];
        if let Some(last) = bits.last_mut().filter(|_| !pieces.is_multiple_of(8)) {
            *last = 0xff << (8 - pieces % 8);
        }
        out.extend_from_slice(&(bits.len() as u32 + 1).to_be_bytes());
        out.push(id::BITFIELD);
        out.extend_from_slice(&bits);
    }

    /// `false`: this was the connection's last block.
    fn answer(&self, words: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let (words, rest) = words.as_chunks::<4>();
        let [piece, begin, length] = words else { anyhow::bail!("a request of another form") };
        ensure!(rest.is_empty(), "a request of another form");
        let [piece, begin, length] = [piece, begin, length].map(|word| u32::from_be_bytes(*word));
        let offset = u64::from(piece) * u64::from(self.torrent.piece_bytes) + u64::from(begin);
        let end = offset + u64::from(length);
        ensure!(
            (1..=BLOCK_BYTES_MAX).contains(&length) && end <= self.torrent.total_bytes,
            "a request outside of the torrent"
        );
        let number = self.blocks.fetch_add(1, Relaxed) + 1;
        let goes_wrong = |every: u64| number.is_multiple_of(every);
        let named = match self.fault {
            Fault::WrongPiece(every) if goes_wrong(every) => {
                (piece + 1) % self.torrent.piece_hashes.len().max(2) as u32
            }
            _ => piece,
        };
        let start = out.len();
        out.extend_from_slice(&(length + 9).to_be_bytes());
        out.push(id::PIECE);
        out.extend_from_slice(&named.to_be_bytes());
        out.extend_from_slice(&begin.to_be_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read() {
        let read = |text: &str| text.parse::<Fault>();
        assert_eq!(read("corrupt:100000"), Ok(Fault::Corrupt(100_000)));
        assert_eq!(read("wrong-piece:3"), Ok(Fault::WrongPiece(3)));
        let (length, period) = (Duration::from_millis(250), Duration::from_secs(2));
        assert_eq!(read("stall:250ms/2s"), Ok(Fault::Stall { length, period }));
        for wrong in ["corrupt", "corrupt:0", "stall:2s/1s", "stall:1/2", "stall:0s/1s", "slow:1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
