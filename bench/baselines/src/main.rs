//! Owns: a seeder of one single-file torrent as one would first write it on tokio-uring.
//! Never: caches, coalesces, limits or chokes; it is the baseline, not a product.
//! Flow: accept -> a task a connection -> a read and a write a block.
//!
//! What "straightforward" means here: a task per connection, one `read_at` of the block behind its
//! 13-byte header into the connection's own buffer, one `write_all` of both. The buffer is reused,
//! TCP_NODELAY is set, nothing is copied by us: no handicap is built in. Content is not verified.

use std::{fs, io, net::SocketAddr, path::PathBuf, rc::Rc};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use seedring_proto::bencode::Document;
use sha1::{Digest, Sha1};
use tokio_uring::{
    buf::BoundedBuf,
    fs::File,
    net::{TcpListener, TcpStream},
};

const BLOCK_BYTES_MAX: usize = 128 * 1024;
/// Length prefix, message id, piece index, offset (BEP 3).
const PIECE_HEADER_BYTES: usize = 13;
const HANDSHAKE_BYTES: usize = 68;

#[derive(Parser)]
#[command(version, about = "Seeds one single-file torrent with tokio-uring, one task a connection")]
struct Options {
    /// The .torrent file (single file).
    #[arg(long)]
    torrent: PathBuf,
    /// The content: the file itself.
    #[arg(long)]
    content: PathBuf,
    #[arg(long, default_value = "127.0.0.1:6891")]
    listen: SocketAddr,
}

struct Seed {
    info_hash: [u8; 20],
    piece_bytes: u64,
    total_bytes: u64,
    file: File,
}

impl Seed {
    fn pieces(&self) -> usize {
        self.total_bytes.div_ceil(self.piece_bytes) as usize
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    tokio_uring::builder()
        .entries(4096)
        .uring_builder(tokio_uring::uring_builder().setup_cqsize(8192))
        .start(run(options))
}

async fn run(options: Options) -> Result<()> {
    let seed = Rc::new(open(&options).await?);
    let listener = TcpListener::bind(options.listen)
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    println!("seeding on {}", listener.local_addr()?);
    loop {
        let (stream, address) = listener.accept().await.context("accept")?;
        let seed = seed.clone();
        tokio_uring::spawn(async move {
            if let Err(error) = serve(&seed, stream).await {
                eprintln!("{address}: {error:#}");
            }
        });
    }
}

async fn open(options: &Options) -> Result<Seed> {
    let name = options.torrent.display();
    let bytes = fs::read(&options.torrent).with_context(|| format!("cannot read {name}"))?;
    let document = Document::parse(&bytes).with_context(|| name.to_string())?;
    let info = document.root().dict_get("info").with_context(|| format!("{name}: no info"))?;
    let number = |key: &str| {
        info.dict_get(key)
            .and_then(|value| value.as_int())
            .and_then(|value| u64::try_from(value).ok())
            .filter(|value| *value > 0)
            .with_context(|| format!("{name}: info has no {key} (only single-file torrents)"))
    };
    let (piece_bytes, total_bytes) = (number("piece length")?, number("length")?);
    let content = options.content.display();
    let file = File::open(&options.content).await.with_context(|| format!("open {content}"))?;
    let found = fs::metadata(&options.content)?.len();
    ensure!(found == total_bytes, "{content} has {found} bytes, the torrent says {total_bytes}");
    Ok(Seed { info_hash: Sha1::digest(info.raw()).into(), piece_bytes, total_bytes, file })
}

/// Bytes received and not yet used, filled by `read`.
struct Inbox {
    bytes: Vec<u8>,
    scratch: Option<Vec<u8>>,
}

impl Inbox {
    /// Reads until at least `wanted` bytes are there. `false`: the peer closed between messages.
    async fn fill(&mut self, stream: &TcpStream, wanted: usize) -> Result<bool> {
        while self.bytes.len() < wanted {
            let scratch = self.scratch.take().expect("invariant: one fill at a time");
            let (result, scratch) = stream.read(scratch).await;
            let count = match result {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                other => other?,
            };
            self.bytes.extend_from_slice(&scratch[..count]);
            self.scratch = Some(scratch);
            if count == 0 {
                ensure!(self.bytes.is_empty(), "closed in the middle of a message");
                return Ok(false);
            }
        }
        Ok(true)
    }
}

async fn serve(seed: &Seed, stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut inbox = Inbox { bytes: Vec::new(), scratch: Some(vec![0; 16 * 1024]) };
    if !inbox.fill(&stream, HANDSHAKE_BYTES).await? {
        return Ok(());
    }
    ensure!(&inbox.bytes[..20] == b"\x13BitTorrent protocol", "not BitTorrent");
    ensure!(inbox.bytes[28..48] == seed.info_hash, "another torrent");
    inbox.bytes.drain(..HANDSHAKE_BYTES);
    send(&stream, greeting(seed)).await?;

    let mut block = vec![0; PIECE_HEADER_BYTES + 16 * 1024];
    while inbox.fill(&stream, 4).await? {
        let length = word(&inbox.bytes, 0) as usize;
        ensure!(length <= 1 << 20, "a message of {length} bytes");
        ensure!(inbox.fill(&stream, 4 + length).await?, "closed in the middle of a message");
        match inbox.bytes.get(4).filter(|_| length > 0) {
            Some(2) => send(&stream, vec![0, 0, 0, 1, 1]).await?, // interested: unchoke
            Some(6) => {
                ensure!(length == 13, "a request of {length} bytes");
                let piece = word(&inbox.bytes, 5);
                let (begin, count) = (word(&inbox.bytes, 9), word(&inbox.bytes, 13));
                block = answer(seed, &stream, block, piece, begin, count).await?;
            }
            _ => {}
        }
        inbox.bytes.drain(..4 + length);
    }
    Ok(())
}

/// Handshake and the whole bitfield.
fn greeting(seed: &Seed) -> Vec<u8> {
    let mut bytes = b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(&seed.info_hash);
    bytes.extend_from_slice(b"-TU0500-baseline0000");
    let pieces = seed.pieces();
    let mut bitfield = vec![0xff_u8; pieces.div_ceil(8)];
    if let Some(last) = bitfield.last_mut().filter(|_| !pieces.is_multiple_of(8)) {
        *last = 0xff << (8 - pieces % 8);
    }
    bytes.extend_from_slice(&(bitfield.len() as u32 + 1).to_be_bytes());
    bytes.push(5);
    bytes.extend_from_slice(&bitfield);
    bytes
}

/// One block: read behind the header, write both.
async fn answer(
    seed: &Seed,
    stream: &TcpStream,
    mut block: Vec<u8>,
    piece: u32,
    begin: u32,
    count: u32,
) -> Result<Vec<u8>> {
    let offset = u64::from(piece) * seed.piece_bytes + u64::from(begin);
    let count = count as usize;
    if count > BLOCK_BYTES_MAX || offset + count as u64 > seed.total_bytes {
        bail!("a request out of range: piece {piece}, begin {begin}, length {count}");
    }
    if block.len() < PIECE_HEADER_BYTES + count {
        block.resize(PIECE_HEADER_BYTES + count, 0);
    }
    block[..4].copy_from_slice(&(count as u32 + 9).to_be_bytes());
    block[4] = 7;
    block[5..9].copy_from_slice(&piece.to_be_bytes());
    block[9..13].copy_from_slice(&begin.to_be_bytes());
    let end = PIECE_HEADER_BYTES + count;
    let (result, slice) =
        seed.file.read_exact_at(block.slice(PIECE_HEADER_BYTES..end), offset).await;
    result.context("read")?;
    let (result, slice) = stream.write_all(slice.into_inner().slice(..end)).await;
    result.context("write")?;
    Ok(slice.into_inner())
}

async fn send(stream: &TcpStream, bytes: Vec<u8>) -> Result<()> {
    Ok(stream.write_all(bytes).await.0?)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
