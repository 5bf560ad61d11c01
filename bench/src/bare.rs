//! Owns: a seeder without policy: what answering requests from memory costs, and how late.
//! Never: reads content for a request, chooses whom it serves, limits, waits for more to send.
//! Flow: epoll -> what a socket has -> requests -> one send of what they ask for, out of memory.
//!
//! One thread, all content in memory before it listens, no choking, cache, disk or limits. A
//! reference and no bound: who looks blocks up together, as the engine does, can be cheaper.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Read as _},
    net::{TcpListener, TcpStream},
    ops::Range,
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    fd::OwnedFd,
    io::Errno,
    net::{SendAncillaryBuffer, SendFlags, sendmsg},
};

use crate::{
    leech::frames::{self, HANDSHAKE_BYTES, PIECE_HEAD_BYTES, id},
    seed::{self, Request, Source},
    torrent::Torrent,
};

/// Blocks a send, as the engine has.
const BATCH_BLOCKS: usize = 32;
const RECEIVE_BYTES: usize = 64 << 10;
const MESSAGE_BYTES: usize = 1 << 20;
const EVENTS: usize = 256;
/// What epoll calls the listener; connections are numbered from 0.
const LISTENER: u64 = u64::MAX;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    source: Source,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let torrent = Torrent::read(&options.source.torrent)?;
    let mut content = vec![0; usize::try_from(torrent.total_bytes)?];
    options.source.open(&torrent)?.read(&mut content, 0)?;
    let mut bare = Bare::new(torrent, content)?;
    let listener = seed::bind(options.source.listen, "")?;
    bare.serve(&listener)?;
    Ok(ExitCode::SUCCESS)
}

struct Bare {
    torrent: Torrent,
    content: Vec<u8>,
    epoll: OwnedFd,
    peers: Vec<Option<Peer>>,
    free: Vec<usize>,
    room: Vec<u8>,
}

struct Peer {
    socket: TcpStream,
    greeted: bool,
    /// What came and is not a whole message.
    inbox: Vec<u8>,
    /// Small messages, which go before blocks.
    out: Vec<u8>,
    asked: VecDeque<Asked>,
    /// Bytes of the first of `asked` that are on their way.
    sent: usize,
    /// The socket took less than was to go.
    full: bool,
}

struct Asked {
    head: [u8; PIECE_HEAD_BYTES],
    bytes: Range<usize>,
}

impl Bare {
    fn new(torrent: Torrent, content: Vec<u8>) -> Result<Bare> {
        let (length, expected) = (content.len() as u64, torrent.total_bytes);
        ensure!(length == expected, "the content has {length} bytes, the torrent {expected}");
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("epoll_create")?;
        let (peers, free, room) = (Vec::new(), Vec::new(), vec![0; RECEIVE_BYTES]);
        Ok(Bare { torrent, content, epoll, peers, free, room })
    }

    /// Until the process ends.
    fn serve(&mut self, listener: &TcpListener) -> Result<()> {
        listener.set_nonblocking(true)?;
        epoll::add(&self.epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)
            .context("epoll_ctl")?;
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, room, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error)).context("epoll_wait"),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(listener)?,
                    number => self.on_event(number as usize),
                }
            }
        }
    }

    fn accept(&mut self, listener: &TcpListener) -> Result<()> {
        loop {
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("accept: raise `ulimit -n`?"),
            };
            let number = self.free.pop().unwrap_or(self.peers.len());
            let ready = socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true));
            let data = EventData::new_u64(number as u64);
            let watched = epoll::add(&self.epoll, &socket, data, EventFlags::IN);
            if ready.is_err() || watched.is_err() {
                self.free.extend((number < self.peers.len()).then_some(number));
                continue;
            }
            if number == self.peers.len() {
                self.peers.push(None);
            }
            self.peers[number] = Some(Peer::new(socket));
        }
    }

    fn on_event(&mut self, number: usize) {
        let Some(Some(peer)) = self.peers.get_mut(number) else { return };
        let before = peer.full;
        let turn = peer.turn(&self.torrent, &self.content, &mut self.room);
        match turn {
            Ok(()) if peer.full != before => {
                // It is not asked for more than it can answer.
                let flags = if peer.full { EventFlags::OUT } else { EventFlags::IN };
                let data = EventData::new_u64(number as u64);
                if epoll::modify(&self.epoll, &peer.socket, data, flags).is_err() {
                    self.drop_peer(number);
                }
            }
            Ok(()) => {}
            Err(error) => {
                if !error.is::<Gone>() {
                    eprintln!("a connection ended: {error:#}");
                }
                self.drop_peer(number);
            }
        }
    }

    fn drop_peer(&mut self, number: usize) {
        self.peers[number] = None;
        self.free.push(number);
    }
}

/// The peer closed the connection.
#[derive(Debug)]
struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed by the peer")
    }
}

impl std::error::Error for Gone {}

impl Peer {
    fn new(socket: TcpStream) -> Peer {
        let (inbox, out, asked) = (Vec::new(), Vec::new(), VecDeque::new());
        Peer { socket, greeted: false, inbox, out, asked, sent: 0, full: false }
    }

    fn turn(&mut self, torrent: &Torrent, content: &[u8], room: &mut [u8]) -> Result<()> {
        if !self.full {
            match self.socket.read(room) {
                Ok(0) => return Err(Gone.into()),
                Ok(n) => self.inbox.extend_from_slice(&room[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(Gone.into());
                }
                Err(error) => return Err(error.into()),
            }
            let read = self.read_messages(torrent)?;
            self.inbox.drain(..read);
        }
        self.full = false;
        self.send(content)
    }

    /// Answers how many bytes of the inbox were whole messages.
    fn read_messages(&mut self, torrent: &Torrent) -> Result<usize> {
        let mut at = 0;
        if !self.greeted {
            let Some(hello) = self.inbox.first_chunk::<HANDSHAKE_BYTES>() else { return Ok(0) };
            ensure!(hello[28..48] == torrent.info_hash, "another torrent");
            self.out = frames::handshake(&torrent.info_hash, b"-SBBARE-000000000000").to_vec();
            self.out[20..28].fill(0);
            seed::put_bitfield(&mut self.out, torrent.piece_hashes.len(), |_| true);
            self.greeted = true;
            at = HANDSHAKE_BYTES;
        }
        while let Some(prefix) = self.inbox[at..].first_chunk::<4>() {
            let length = u32::from_be_bytes(*prefix) as usize;
            ensure!(length <= MESSAGE_BYTES, "a message of {length} bytes");
            let Some(message) = self.inbox.get(at + 4..at + 4 + length) else { break };
            match message {
                [id::INTERESTED] => self.out.extend_from_slice(&[0, 0, 0, 1, id::UNCHOKE]),
                [id::REQUEST, words @ ..] => self.asked.push_back(Asked::read(torrent, words)?),
                _ => {}
            }
            at += 4 + length;
        }
        Ok(at)
    }

    /// Until nothing is left, or the socket takes no more.
    fn send(&mut self, content: &[u8]) -> Result<()> {
        while !self.out.is_empty() || !self.asked.is_empty() {
            let mut slices = Vec::with_capacity(2 * BATCH_BLOCKS + 1);
            if self.sent == 0 {
                slices.push(IoSlice::new(&self.out));
            }
            let mut skip = self.sent;
            for asked in self.asked.iter().take(BATCH_BLOCKS) {
                for part in [&asked.head[..], &content[asked.bytes.clone()]] {
                    let from = skip.min(part.len());
                    skip -= from;
                    slices.push(IoSlice::new(&part[from..]));
                }
            }
            let mut control = SendAncillaryBuffer::default();
            match sendmsg(&self.socket, &slices, &mut control, SendFlags::NOSIGNAL) {
                Ok(taken) => {
                    // The socket's room is used up: the next call would only say so.
                    self.full = taken < slices.iter().map(|slice| slice.len()).sum();
                    self.took(taken);
                    if self.full {
                        return Ok(());
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.full = true;
                    return Ok(());
                }
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Gone.into()),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    fn took(&mut self, taken: usize) {
        let mut left = taken;
        if self.sent == 0 {
            let small = left.min(self.out.len());
            self.out.drain(..small);
            left -= small;
        }
        left += self.sent;
        while let Some(length) = self.asked.front().map(Asked::wire_bytes)
            && left >= length
        {
            self.asked.pop_front();
            left -= length;
        }
        self.sent = left;
    }
}

impl Asked {
    fn read(torrent: &Torrent, words: &[u8]) -> Result<Asked> {
        let asked = Request::read(torrent, words)?;
        let from = asked.offset as usize;
        Ok(Asked { head: asked.head(), bytes: from..from + asked.length as usize })
    }

    fn wire_bytes(&self) -> usize {
        self.head.len() + self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, thread};

    use super::*;
    use crate::payload;

    const PIECES: u32 = 9;
    const PIECE: u32 = 32 << 10;
    const BLOCK: u32 = 16 << 10;

    /// A connection that was greeted and unchoked, the torrent's content, and its folder.
    fn client(name: &str) -> (TcpStream, Vec<u8>, std::path::PathBuf) {
        let folder = std::env::temp_dir().join(format!("bare-{name}-{}", std::process::id()));
        let file = folder.join("content.bin");
        let total = u64::from(PIECES * PIECE - 5);
        let path = payload::make(&file, total, PIECE.into(), 3).expect("content");
        let torrent = Torrent::read(&path).expect("a torrent");
        let content = fs::read(&file).expect("content");
        let info_hash = torrent.info_hash;
        let mut bare = Bare::new(torrent, content.clone()).expect("a seeder");
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || bare.serve(&listener)); // ends with the process
        let mut client = TcpStream::connect(address).expect("open");
        client.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("set");
        let hello = frames::handshake(&info_hash, b"-XX0000-000000000000");
        client.write_all(&hello[..50]).expect("sent");
        client.write_all(&hello[50..]).expect("sent");
        let mut answer = [0; HANDSHAKE_BYTES + 7];
        client.read_exact(&mut answer).expect("a handshake");
        assert_eq!(answer[HANDSHAKE_BYTES..], [0, 0, 0, 3, id::BITFIELD, 0xff, 0x80]);
        client.write_all(&[0, 0, 0, 1, id::INTERESTED]).expect("sent");
        let mut unchoke = [0; 5];
        client.read_exact(&mut unchoke).expect("an unchoke");
        assert_eq!(unchoke, [0, 0, 0, 1, id::UNCHOKE]);
        (client, content, folder)
    }

    fn request(piece: u32, begin: u32, length: u32) -> Vec<u8> {
        let mut request = vec![0, 0, 0, 13, id::REQUEST];
        [piece, begin, length].iter().for_each(|n| request.extend_from_slice(&n.to_be_bytes()));
        request
    }

    #[test]
    fn whoever_reads_late_gets_every_block_in_order() {
        let (mut client, content, folder) = client("late");
        // Far more than sockets hold: most of it waits until the client reads.
        let places = (0..2_000_u32).map(|n| (n * 7 % PIECES, n % 2 * BLOCK));
        let places: Vec<(u32, u32)> = places.filter(|place| *place != (8, BLOCK)).collect();
        let requests: Vec<u8> =
            places.iter().flat_map(|(piece, begin)| request(*piece, *begin, BLOCK)).collect();
        let mut asks = client.try_clone().expect("a second handle");
        let asking = thread::spawn(move || asks.write_all(&requests));
        let mut block = vec![0; PIECE_HEAD_BYTES + BLOCK as usize];
        for (piece, begin) in places {
            client.read_exact(&mut block).expect("a block");
            let words = [BLOCK + 9, piece, begin].map(u32::to_be_bytes);
            assert!(block[..4] == words[0] && block[4] == id::PIECE);
            assert!(block[5..9] == words[1] && block[9..13] == words[2]);
            let from = (piece * PIECE + begin) as usize;
            assert!(block[PIECE_HEAD_BYTES..] == content[from..from + BLOCK as usize]);
        }
        asking.join().expect("no panic").expect("all was asked for");
        fs::remove_dir_all(folder).ok();
    }

    #[test]
    fn what_is_not_in_the_torrent_ends_the_connection() {
        let (mut client, _, folder) = client("outside");
        client.write_all(&request(8, BLOCK, BLOCK)).expect("sent"); // the last block is shorter
        assert_eq!(client.read(&mut [0; 8]).unwrap_or(0), 0);
        fs::remove_dir_all(folder).ok();
    }
}
