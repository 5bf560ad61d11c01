//! Owns: whom the engine dials of those that announce to its own tracker, and whom not.
//! Never: lets a leech dial: what it gets came over the connection that the engine began.
//! Flow: an announce by hand, a listener that waits for the engine, blocks over what it accepted.

use anyhow::{Context, Result, ensure};
use seedring_tests::interop::Scratch;
use seedring_tests::live::torrent::PIECE_BYTES;
use seedring_tests::live::{Engine, Message, Peer, SingleFile, loopback_address};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const TRACKER_PORT: u16 = 6969;
/// Dials begin 2 s after the announce, and are looked for once a second.
const SOON: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::from_secs(5);

/// A client's announce; the tracker answers with the engine's address.
fn announce(tracker: SocketAddr, info_hash: &str, port: u16, left: u64) -> Result<()> {
    let pairs: Vec<&str> = (0..40).step_by(2).filter_map(|at| info_hash.get(at..at + 2)).collect();
    let mut stream = TcpStream::connect(tracker)?;
    write!(
        stream,
        "GET /announce?info_hash=%{}&peer_id=-TT0001-{port:012}&port={port}&uploaded=0&\
         downloaded=0&left={left}&compact=1&event=started HTTP/1.1\r\nHost: {tracker}\r\n\
         Connection: close\r\n\r\n",
        pairs.join("%")
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    ensure!(answer.contains("5:peers") && !answer.contains("failure"), "{answer}");
    Ok(())
}

/// A listener of a leech: the tracker takes the address that the announce comes from.
fn listener() -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

#[test]
fn a_leech_that_announces_to_the_embedded_tracker_is_dialled() -> Result<()> {
    let scratch = Scratch::new(TMP, "dialed")?;
    let address = loopback_address();
    let tracker = SocketAddr::from((address, TRACKER_PORT));
    let ours = SingleFile::make(scratch.path(), "ours.bin", 3 * PIECE_BYTES, "")?;
    // Its .torrent names no tracker: the engine is in no swarm of it.
    let other = SingleFile::make(scratch.path(), "other.bin", PIECE_BYTES, "")?;
    let yaml = format!(
        "tracker: {{ listen: \"{tracker}\" }}\ntorrents:\n{}    trackers: [embedded]\n{}",
        ours.entry("full")?,
        other.entry("full")?
    );
    let mut engine = Engine::start(scratch.path(), address, &yaml)?;
    for file in [&ours, &other] {
        // It listens before all is hashed.
        let begun = Instant::now();
        while let Err(error) = file.check_served(engine.address()) {
            ensure!(begun.elapsed() < SOON, "it is not seeded: {error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    let ((leech, port), (seed, seed_port)) = (listener()?, listener()?);
    let (stranger, stranger_port) = listener()?;
    announce(tracker, &ours.info_hash, seed_port, 0)?;
    announce(tracker, &other.info_hash, stranger_port, 9)?;
    let announced = Instant::now();
    announce(tracker, &ours.info_hash, port, 9)?;
    let mut peer = Peer::accept(&leech, &ours.info_hash, SOON)?.context("it was not dialled")?;
    // Clients that dial us themselves come first: two dials that cross may end both.
    ensure!(announced.elapsed() >= Duration::from_millis(1_500), "{:?}", announced.elapsed());
    peer.send(2, &[])?;
    peer.wait_for("an unchoke", |message| *message == Message::Unchoke)?;
    for piece in 0..3 {
        ours.check_block(&mut peer, piece, 0)?;
    }
    // Announced again, it is dialled no second time; others not at all.
    announce(tracker, &ours.info_hash, port, 9)?;
    for (what, listener) in [("a leech", &leech), ("a seed", &seed), ("a stranger", &stranger)] {
        let again = Peer::accept(listener, &ours.info_hash, NEVER)?;
        ensure!(again.is_none(), "{what} was dialled");
    }
    ours.check_block(&mut peer, 1, 0)?;
    engine.process().check_running()?;
    engine.stop()?;
    Ok(())
}
