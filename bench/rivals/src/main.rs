//! Owns: vortex's library (io_uring) as a seeder and as a downloader of one torrent.
//! Never: changes how it works; its own command line draws on a terminal and finds peers by DHT
//! alone, so it cannot be driven here.
//! Flow: arguments -> content hashed (by the library) -> its event loop -> until killed, or until
//! everything is there.

use std::{
    net::{SocketAddrV4, TcpListener},
    path::PathBuf,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use vortex_bittorrent::{Command, Config, PeerId, State, Torrent, TorrentEvent, TorrentMetadata};

const USAGE: &str = "vortex-peer [--connections N] [--peers A:P,A:P] --listen ADDRESS:PORT TORRENT \
                     FOLDER\nvortex-peer --version";
const LOOK: Duration = Duration::from_millis(2);
/// What it may send that the reader has not seen yet.
const EVENTS: usize = 512;

struct Options {
    /// It takes so many connections, and serves all of them; its own defaults otherwise.
    connections: Option<usize>,
    /// Downloads from these; seeds where there are none.
    peers: Vec<SocketAddrV4>,
    listen: SocketAddrV4,
    torrent: PathBuf,
    folder: PathBuf,
}

fn options() -> Result<Option<Options>> {
    let (mut connections, mut listen, mut peers, mut paths) = (None, None, Vec::new(), Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--version" => return Ok(None),
            "--connections" => connections = Some(value()?.parse()?),
            "--listen" => listen = Some(value()?.parse()?),
            "--peers" => peers = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            _ => paths.push(PathBuf::from(argument)),
        }
    }
    let Ok([torrent, folder]) = <[PathBuf; 2]>::try_from(paths) else { bail!("{USAGE}") };
    let listen = listen.context(USAGE)?;
    Ok(Some(Options { connections, peers, listen, torrent, folder }))
}

/// Tuned: as many of all as there are connections; buffers for a few blocks of each.
fn config(connections: Option<usize>) -> Config {
    let usual = Config::default();
    let Some(connections) = connections else { return usual };
    Config {
        max_connections: connections,
        max_unchoked: connections as u32,
        write_buffer_pool_size: usual.write_buffer_pool_size.max(1024),
        ..usual
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vortex-peer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let Some(options) = options()? else {
        println!("vortex-bittorrent {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    };
    let metadata = TorrentMetadata::read_from_file(&options.torrent)
        .map_err(|error| anyhow!("{}: {error}", options.torrent.display()))?;
    let config = config(options.connections);
    let id = PeerId::generate();
    let state = State::from_metadata_and_root(id, metadata, options.folder, config)
        .context("the content's folder")?;
    let listener = TcpListener::bind(options.listen).context("the address to listen on")?;
    let mut torrent = Torrent::new(state);
    let is_download = !options.peers.is_empty();
    ensure!(is_download || torrent.is_complete(), "the content is not all there");
    let (commands, of_commands) = mpsc::sync_channel(16);
    let queue = Box::leak(Box::new(heapless::spsc::Queue::<TorrentEvent, EVENTS>::new()));
    let (to_events, mut events) = queue.split();
    if is_download {
        commands.send(Command::ConnectToPeers(options.peers)).context("its event loop")?;
    }
    let running = thread::spawn(move || torrent.start(to_events, of_commands, listener));
    while !running.is_finished() {
        while let Some(event) = events.dequeue() {
            if is_download && matches!(event, TorrentEvent::TorrentComplete) {
                commands.send(Command::Stop).context("its event loop")?;
            }
        }
        thread::sleep(if is_download { LOOK } else { 50 * LOOK });
    }
    let ended = running.join().map_err(|_| anyhow!("its event loop panicked"))?;
    ended.map_err(|error| anyhow!("its event loop: {error}"))?;
    ensure!(is_download, "its event loop ended");
    Ok(())
}
