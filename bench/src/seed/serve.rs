//! Owns: one connection of a seeder: handshake, what it has, requests in, blocks out, the fault in
//! between.
//! Never: decides what is fetched (`fetch`). Flow: socket -> messages -> `answer` -> socket.

use std::{
    io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::TcpStream,
    sync::atomic::Ordering::Relaxed,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Request, Seeder, fetch::Fetch, put_bitfield};
use crate::{
    faulty::Fault,
    leech::frames::{self, HANDSHAKE_BYTES, MESSAGE_BYTES_MAX, PIECE_HEAD_BYTES, id},
};

/// Answers are gathered up to this before they are sent.
const SEND_BYTES: usize = 256 << 10;
/// Exit status of a crash, so that it is known from any other end.
const CRASHED: i32 = 70;
/// The extension handshake (BEP 10) of one that wants nothing (BEP 21).
const UPLOAD_ONLY: &[u8] = b"d1:mde11:upload_onlyi1ee";

/// A mixed peer that hears nothing looks about this often.
const LOOK: Duration = Duration::from_millis(500);

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Nothing came until the socket's timeout.
fn is_silent(input: &mut BufReader<TcpStream>) -> bool {
    input.fill_buf().is_err_and(|error| is_timeout(&error))
}

/// However long the pauses in it are.
fn read_whole(input: &mut BufReader<TcpStream>, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match input.read(bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => bytes = &mut bytes[count..],
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The next message can be read without waiting.
fn has_whole_message(buffered: &[u8]) -> bool {
    let prefix = buffered.first_chunk::<4>().map(|prefix| u32::from_be_bytes(*prefix));
    prefix.is_some_and(|length| buffered.len() - 4 >= length as usize)
}

impl Seeder {
    /// Until the other side closes, or it breaks the protocol.
    pub(super) fn serve(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut input = BufReader::with_capacity(64 << 10, stream.try_clone()?);
        let mut hello = [0; HANDSHAKE_BYTES];
        input.read_exact(&mut hello).context("handshake")?;
        ensure!(hello[28..48] == self.torrent.info_hash, "another torrent");
        let wants_nothing = !self.share.is_all() && !self.fetches;
        let says_more = wants_nothing && frames::has_extensions(&hello);
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
        // What comes meanwhile is told once more, which does no harm.
        let told = self.gained().count();
        put_bitfield(&mut out, pieces, |piece| self.has(piece));
        if says_more {
            out.extend_from_slice(&(UPLOAD_ONLY.len() as u32 + 2).to_be_bytes());
            out.extend_from_slice(&[id::EXTENDED, 0]);
            out.extend_from_slice(UPLOAD_ONLY);
        }
        stream.write_all(&out)?;
        out.clear();
        let mut fetch = self.fetches.then(|| Fetch::new(self, told));
        if fetch.is_some() {
            stream.set_read_timeout(Some(LOOK))?;
        }
        let mut message = Vec::new();
        loop {
            if is_silent(&mut input) {
                if let Some(fetch) = &mut fetch {
                    // What another connection fetched, or let go, is news here.
                    fetch.ask(&mut out);
                    stream.write_all(&out)?;
                    out.clear();
                }
                continue;
            }
            let mut prefix = [0; 4];
            if read_whole(&mut input, &mut prefix).is_err() {
                return Ok(());
            }
            let length = u32::from_be_bytes(prefix);
            ensure!(length <= MESSAGE_BYTES_MAX, "a message of {length} bytes");
            message.resize(length as usize, 0);
            read_whole(&mut input, &mut message)?;
            let mut goes_on = true;
            match message.split_first() {
                Some((&id::INTERESTED, _)) => out.extend_from_slice(&[0, 0, 0, 1, id::UNCHOKE]),
                Some((&id::REQUEST, words)) => goes_on = self.answer(words, &mut out)?,
                Some((&kind, body)) => {
                    if let Some(fetch) = &mut fetch {
                        fetch.hear(kind, body)?;
                    }
                }
                None => {}
            }
            let is_last = !has_whole_message(input.buffer());
            if let Some(fetch) = fetch.as_mut().filter(|_| is_last) {
                fetch.ask(&mut out);
            }
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
        ensure!(self.has(piece), "a request for piece {piece}, which is not here");
        let number = self.blocks.fetch_add(1, Relaxed) + 1;
        self.sent_bytes.fetch_add(u64::from(length), Relaxed);
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
        self.content.read(payload, offset)?;
        match self.fault {
            Fault::Corrupt(every) if goes_wrong(every) => payload[length as usize / 2] ^= 1,
            Fault::Unasked(every) if goes_wrong(every) => out.extend_from_within(start..),
            Fault::Close(every) | Fault::Crash(every) => return Ok(!goes_wrong(every)),
            _ => {}
        }
        Ok(true)
    }

    /// A fetched block.
    pub(super) fn got(&self, bytes: u64, is_right: bool) {
        self.fetched_bytes.fetch_add(bytes, Relaxed);
        self.wrong_blocks.fetch_add(u64::from(!is_right), Relaxed);
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
    use std::{net::TcpListener, sync::Arc};

    use sha1::{Digest, Sha1};

    use super::*;
    use crate::{
        payload::{self, Made},
        seed::{Content, Share, Totals},
        torrent::Torrent,
    };

    #[test]
    fn a_partial_seed_says_what_it_has_and_closes_for_what_it_has_not() {
        let folder = std::env::temp_dir().join(format!("seed-{}", std::process::id()));
        let file = folder.join("content.bin");
        let torrent = payload::make(&file, 9 * 16_384, 16_384, 3).expect("content");
        let share = Share { percent: 50, of: 2, number: 1 };
        let torrent = Arc::new(Torrent::read(&torrent).expect("a torrent"));
        let content = Arc::new(Content::file(&file, &torrent).expect("content"));
        let seeder = Arc::new(Seeder::new(torrent, content, share, Fault::None));
        let (mut client, served) = connect(&seeder);
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

    /// A client that has said its handshake, and what becomes of its connection.
    fn connect(seeder: &Arc<Seeder>) -> (TcpStream, thread::JoinHandle<Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("open");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let (stream, _) = listener.accept().expect("a client");
        let mut hello = frames::handshake(&seeder.torrent.info_hash, b"-XX0000-000000000000");
        frames::set_extensions(&mut hello);
        client.write_all(&hello).expect("sent");
        let seeder = Arc::clone(seeder);
        (client, thread::spawn(move || seeder.serve(stream)))
    }

    /// A mixed peer of nine pieces of one block each, of which it has one half.
    fn mixed() -> (Arc<Seeder>, Share) {
        let made = Made(3);
        let mut bytes = vec![0; 9 * 16_384];
        made.fill(&mut bytes, 0);
        let hash = |piece: &[u8]| Sha1::digest(piece).into();
        let torrent = Arc::new(Torrent {
            info_hash: [7; 20],
            total_bytes: bytes.len() as u64,
            piece_bytes: 16_384,
            piece_hashes: bytes.chunks(16_384).map(hash).collect(),
        });
        let content = Content::made(3, &torrent).expect("of this seed");
        assert!(Content::made(4, &torrent).is_err(), "of another seed");
        let share = Share { percent: 50, of: 2, number: 1 };
        let seeder = Seeder::new(torrent, Arc::new(content), share, Fault::None).fetching(true);
        (Arc::new(seeder), share)
    }

    fn read_message(client: &mut TcpStream) -> (u8, Vec<u8>) {
        let mut prefix = [0; 4];
        client.read_exact(&mut prefix).expect("a message");
        let mut message = vec![0; u32::from_be_bytes(prefix) as usize];
        client.read_exact(&mut message).expect("a message");
        (message[0], message[1..].to_vec())
    }

    /// After both handshakes: all pieces are here, and it is unchoked.
    fn offer_all(client: &mut TcpStream) {
        let mut hello = [0; HANDSHAKE_BYTES];
        client.read_exact(&mut hello).expect("a handshake");
        assert!(!frames::has_extensions(&hello), "no upload_only: it wants something");
        assert_eq!(read_message(client).0, id::BITFIELD);
        let mut out = Vec::new();
        put_bitfield(&mut out, 9, |_| true);
        out.extend_from_slice(&[0, 0, 0, 1, id::UNCHOKE]);
        client.write_all(&out).expect("sent");
        assert_eq!(read_message(client).0, id::INTERESTED);
    }

    /// The answer to a request of it, with one byte changed where that is wanted.
    fn give(client: &mut TcpStream, request: &[u8], is_right: bool) -> u32 {
        let (piece, begin) = (frames::word(request, 0), frames::word(request, 4));
        let mut block = vec![0; 16_384];
        Made(3).fill(&mut block, u64::from(piece) * 16_384 + u64::from(begin));
        block[100] ^= u8::from(!is_right);
        let head = Request { piece, begin, length: 16_384, offset: 0 }.head();
        client.write_all(&[&head[..], &block].concat()).expect("sent");
        piece
    }

    #[test]
    fn a_mixed_peer_fetches_what_it_lacks_and_has_it_then() {
        let (seeder, share) = mixed();
        let (mut client, served) = connect(&seeder);
        offer_all(&mut client);
        let lacking: Vec<u32> = (0..9).filter(|piece| !share.has(*piece)).collect();
        let (mut asked, mut told, mut is_content) = (Vec::new(), Vec::new(), false);
        while !is_content {
            match read_message(&mut client) {
                (id::REQUEST, words) => asked.push(give(&mut client, &words, true)),
                (id::HAVE, words) => told.push(frames::word(&words, 0)),
                (id::NOT_INTERESTED, _) => is_content = true,
                (kind, _) => panic!("message {kind}"),
            }
        }
        asked.sort_unstable();
        told.sort_unstable();
        assert_eq!((&asked, &told), (&lacking, &lacking), "each once, no other");
        // Another client finds it a seed, and gets one of the fetched pieces.
        let (mut other, also_served) = connect(&seeder);
        let mut hello = [0; HANDSHAKE_BYTES];
        other.read_exact(&mut hello).expect("a handshake");
        assert_eq!(read_message(&mut other), (id::BITFIELD, vec![0xff, 0x80]));
        let mut request = vec![0, 0, 0, 13, id::REQUEST];
        for word in [lacking[0], 0, 16_384] {
            request.extend_from_slice(&word.to_be_bytes());
        }
        other.write_all(&request).expect("sent");
        assert_eq!(read_message(&mut other).0, id::PIECE);
        let fetched = lacking.len() as u64 * 16_384;
        let totals = Totals { sent_bytes: 16_384, fetched_bytes: fetched, wrong_blocks: 0 };
        assert_eq!(seeder.totals(), totals);
        drop((client, other));
        served.join().expect("no panic").expect("closed");
        also_served.join().expect("no panic").expect("closed");
    }

    #[test]
    fn a_wrong_byte_and_a_choke_are_no_fetched_pieces() {
        let (seeder, share) = mixed();
        let (mut client, served) = connect(&seeder);
        offer_all(&mut client);
        let (_, words) = read_message(&mut client);
        give(&mut client, &words, false);
        let error = served.join().expect("no panic").expect_err("refused").to_string();
        assert!(error.contains("not the content's"), "{error}");
        assert_eq!(seeder.totals().wrong_blocks, 1);
        assert_eq!(seeder.gained().count(), 0);
        // What was under way is asked for again, after a choke too.
        let (mut client, served) = connect(&seeder);
        offer_all(&mut client);
        let lacking = (0..9).filter(|piece| !share.has(*piece)).count();
        let ask = |client: &mut TcpStream| -> Vec<Vec<u8>> {
            (0..lacking)
                .map(|_| read_message(client))
                .inspect(|(kind, _)| assert_eq!(*kind, id::REQUEST))
                .map(|(_, words)| words)
                .collect()
        };
        let first = ask(&mut client);
        client.write_all(&[0, 0, 0, 1, id::CHOKE, 0, 0, 0, 1, id::UNCHOKE]).expect("sent");
        assert_eq!(ask(&mut client), first);
        drop(client);
        served.join().expect("no panic").expect("closed");
    }
}
