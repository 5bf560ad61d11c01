//! Owns: one connection to the engine, as a leech that a test moves by hand.
//! Never: is polite by itself: it sends what it is told, well-formed or not.
//! Flow: connect or accept, handshake, then messages; blocks are compared with the content on disk.

use anyhow::{Context, Result, bail};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// What a block is at most, and what is asked for here.
pub const BLOCK_BYTES: u32 = 16 << 10;
pub(super) const PROTOCOL: &[u8; 20] = b"\x13BitTorrent protocol";
/// The engine may send a bitfield of 2,097,152 pieces or a block; more is its fault.
const FRAME_BYTES_MAX: usize = 1 << 20;
const WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    KeepAlive,
    Choke,
    Unchoke,
    Have(u32),
    Bitfield(Vec<u8>),
    Block { piece: u32, begin: u32, bytes: Vec<u8> },
    HaveAll,
    HaveNone,
    Reject { piece: u32, begin: u32, length: u32 },
    Other(u8, Vec<u8>),
}

#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    /// Of blocks, as a leech counts them.
    pub payload_bytes: u64,
}

impl Peer {
    /// Connects without saying anything.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, WAIT)
            .with_context(|| format!("connect to the engine at {address}"))?;
        Self::over(stream)
    }

    fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(WAIT))?;
        stream.set_write_timeout(Some(WAIT))?;
        Ok(Self { stream, payload_bytes: 0 })
    }

    /// Connects and shakes hands with the fast extension (BEP 6); `info_hash` in hexadecimal.
    pub fn greet(address: SocketAddr, info_hash: &str) -> Result<Self> {
        let mut peer = Self::connect(address)?;
        peer.send_raw(&handshake(info_hash)?)?;
        let mut reply = [0; 68];
        peer.stream.read_exact(&mut reply).context("the engine's handshake")?;
        if reply[..20] != PROTOCOL[..] || reply[28..48] != decode_hex(info_hash)?[..] {
            bail!("a wrong handshake: {reply:?}");
        }
        if !reply[48..].starts_with(b"-SR") {
            bail!("an unknown peer id: {:?}", &reply[48..]);
        }
        Ok(peer)
    }

    /// Takes a connection that the engine begins within `limit` and shakes hands as the one who was
    /// dialled; `None`: none came.
    pub fn accept(
        listener: &TcpListener,
        info_hash: &str,
        limit: Duration,
    ) -> Result<Option<Self>> {
        listener.set_nonblocking(true)?;
        let start = Instant::now();
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if is_timeout(error.kind()) && start.elapsed() < limit => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) if is_timeout(error.kind()) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        stream.set_nonblocking(false)?;
        let mut peer = Self::over(stream)?;
        let mut hello = [0; 68];
        peer.stream.read_exact(&mut hello).context("the engine's handshake")?;
        if hello[..20] != PROTOCOL[..] || hello[28..48] != decode_hex(info_hash)?[..] {
            bail!("a wrong handshake: {hello:?}");
        }
        peer.send_raw(&handshake(info_hash)?)?;
        Ok(Some(peer))
    }

    /// Greets, says that it is interested and waits until it is unchoked.
    pub fn unchoked(address: SocketAddr, info_hash: &str) -> Result<Self> {
        let mut peer = Self::greet(address, info_hash)?;
        peer.send(2, &[])?;
        peer.wait_for("an unchoke", |message| *message == Message::Unchoke)?;
        Ok(peer)
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("send to the engine")
    }

    /// One message with its length in front.
    pub fn send(&mut self, id: u8, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len() + 1)?;
        let mut frame = length.to_be_bytes().to_vec();
        frame.push(id);
        frame.extend_from_slice(payload);
        self.send_raw(&frame)
    }

    pub fn request(&mut self, piece: u32, begin: u32, length: u32) -> Result<()> {
        let fields = [piece, begin, length];
        self.send(6, &fields.iter().flat_map(|field| field.to_be_bytes()).collect::<Vec<_>>())
    }

    /// The next message; `None` when the engine has closed the connection.
    pub fn receive(&mut self) -> Result<Option<Message>> {
        let mut prefix = [0; 4];
        match self.stream.read_exact(&mut prefix) {
            Ok(()) => {}
            Err(error) if is_closed(error.kind()) => return Ok(None),
            Err(error) => return Err(error).context("waiting for a message"),
        }
        let length = u32::from_be_bytes(prefix) as usize;
        if length == 0 {
            return Ok(Some(Message::KeepAlive));
        }
        if length > FRAME_BYTES_MAX {
            bail!("the engine announced a frame of {length} bytes");
        }
        let mut frame = vec![0; length];
        match self.stream.read_exact(&mut frame) {
            Ok(()) => {}
            Err(error) if is_closed(error.kind()) => return Ok(None),
            Err(error) => return Err(error).context("in the middle of a message"),
        }
        let message = decode(frame[0], &frame[1..])?;
        if let Message::Block { bytes, .. } = &message {
            self.payload_bytes += bytes.len() as u64;
        }
        Ok(Some(message))
    }

    /// Reads on until `wanted` accepts a message.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Message) -> bool) -> Result<Message> {
        let start = Instant::now();
        while start.elapsed() < WAIT {
            match self.receive().with_context(|| format!("waiting for {what}"))? {
                Some(message) if wanted(&message) => return Ok(message),
                Some(_) => {}
                None => bail!("closed while waiting for {what}"),
            }
        }
        bail!("waited in vain for {what}");
    }

    /// Asks for a block; `None` when it is rejected, choked away or the connection is closed.
    pub fn fetch(&mut self, piece: u32, begin: u32, length: u32) -> Result<Option<Vec<u8>>> {
        if self.request(piece, begin, length).is_err() {
            return Ok(None);
        }
        loop {
            match self.receive()? {
                Some(Message::Block { piece: p, begin: b, bytes }) if (p, b) == (piece, begin) => {
                    return Ok(Some(bytes));
                }
                Some(Message::Block { .. }) => bail!("a block that nobody asked for"),
                Some(Message::Reject { .. } | Message::Choke) | None => return Ok(None),
                Some(_) => {}
            }
        }
    }

    /// Whether the engine closes this connection within `limit`; what it says until then is
    /// read and dropped, but a block is an error.
    pub fn is_closed_within(&mut self, limit: Duration) -> Result<bool> {
        let start = Instant::now();
        loop {
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut byte = [0; 4096];
            match self.stream.read(&mut byte) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if is_closed(error.kind()) => return Ok(true),
                Err(error) if is_timeout(error.kind()) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn is_closed(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
    )
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A connection to `to` that comes from the address `from`, which 127/8 has plenty of.
pub fn open_from(from: Ipv4Addr, to: SocketAddr) -> Result<TcpStream> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )?;
    rustix::net::bind(&socket, &SocketAddr::from((from, 0)))?;
    rustix::net::connect(&socket, &to)
        .with_context(|| format!("connect to the engine at {to} from {from}"))?;
    Ok(TcpStream::from(socket))
}

/// A handshake that offers the fast extension and the extension protocol.
pub fn handshake(info_hash: &str) -> Result<Vec<u8>> {
    let mut bytes = PROTOCOL.to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0x10, 0, 0x04]);
    bytes.extend_from_slice(&decode_hex(info_hash)?);
    bytes.extend_from_slice(b"-TT0001-");
    // Peer ids differ, else the engine may take two connections for one peer's.
    let unique = NEXT_PEER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    bytes.extend_from_slice(format!("{unique:012}").as_bytes());
    Ok(bytes)
}

/// Numbers peers; nothing is published through it.
static NEXT_PEER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

pub fn decode_hex(text: &str) -> Result<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)).collect()
}

fn decode(id: u8, payload: &[u8]) -> Result<Message> {
    let field = |index: usize| -> Result<u32> {
        let bytes = payload.get(index * 4..index * 4 + 4).context("a message cut short")?;
        Ok(u32::from_be_bytes(bytes.try_into()?))
    };
    Ok(match id {
        0 => Message::Choke,
        1 => Message::Unchoke,
        4 => Message::Have(field(0)?),
        5 => Message::Bitfield(payload.to_vec()),
        7 => Message::Block {
            piece: field(0)?,
            begin: field(1)?,
            bytes: payload.get(8..).context("a block cut short")?.to_vec(),
        },
        14 => Message::HaveAll,
        15 => Message::HaveNone,
        16 => Message::Reject { piece: field(0)?, begin: field(1)?, length: field(2)? },
        _ => Message::Other(id, payload.to_vec()),
    })
}
