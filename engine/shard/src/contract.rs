//! The whole contract between control and a shard: `Command` in, `Event` out, `Globals` shared.
//!
//! Owns: these types. Never: how either side does its part.
//! Flow: control -> mailbox -> shard tick; shard -> mailbox -> control. Events are hints: the truth
//! is in the piece maps and counters, and a lost event makes control read them again.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use seedring_platform::descriptors::OwnedSocket;
use seedring_proto::{
    peer::session::SILENT_AFTER,
    units::{InfoHash, PeerId, PieceIndex},
    wire::{Handshake, pex::Contact},
};

use crate::{
    limits::Meter,
    stats::Stats,
    torrent::{Shared, TorrentId},
};

/// What control asks of a shard.
#[derive(Debug)]
pub enum Command {
    /// Know these torrents. Repeating one that is known does nothing.
    Add(Vec<Arc<Shared>>),
    /// Forget a torrent: its connections close, its files close.
    Remove(TorrentId),
    /// A torrent's phase or contents changed: look again (connections of one that is not Active
    /// close; connections that wait for contents go on).
    Look(TorrentId),
    /// Close a torrent's connections, those being dialled included: its trackers were changed
    /// (BEP 27). It stays, and whoever comes from here on is let in.
    Disconnect(TorrentId),
    /// Connect to a peer that a tracker named.
    Dial { torrent: TorrentId, address: SocketAddr },
    /// Ask a peer for a piece of metadata (BEP 9); `peer` as in `Event::Metadata` of this shard.
    AskMetadata { torrent: TorrentId, peer: u64, piece: u32 },
    /// Close one connection; `peer` as in the events of this shard.
    Close { torrent: TorrentId, peer: u64 },
    /// Close so many connections of a download, those that are worth least here.
    Turnover { torrent: TorrentId, count: u32 },
    /// Close every connection of this IP address: it is banned.
    Shun(IpAddr),
    /// Hash pieces `first .. first + count` and set or clear their bits. `offer`: good pieces
    /// become offered too.
    Verify { torrent: TorrentId, first: PieceIndex, count: u32, offer: bool },
    /// Tell the torrent's peers here that a piece is offered now.
    Have { torrent: TorrentId, piece: PieceIndex },
    /// Tell the torrent's peers here that a piece is offered no more (BEP 54).
    Lost { torrent: TorrentId, piece: PieceIndex },
    /// Unchoke slots this shard may use among all its torrents; `u32::MAX`: unlimited.
    Slots(u32),
    /// Send `Event::Stats`.
    Report,
    /// Send `Event::Peers` of one torrent.
    Peers(TorrentId),
    /// Close everything; `Event::Stopped` follows when nothing is in flight any more.
    Stop,
}

/// What a shard tells control.
#[derive(Debug)]
pub enum Event {
    /// A peer asked for a cold torrent: load `Shared::contents`, then `Command::Look`.
    Activate(TorrentId),
    /// No connection and no work is left for this torrent here: contents may be dropped.
    Idle(TorrentId),
    /// Progress of `Command::Verify`: pieces done since the last such event, and how many failed.
    Verified {
        torrent: TorrentId,
        pieces: u32,
        failed: u32,
        bytes: u64,
        done: bool,
    },
    /// A piece came to be offered while peers are connected: control passes it on to all shards
    /// (`Command::Have`).
    Offered {
        torrent: TorrentId,
        piece: PieceIndex,
    },
    /// A piece that was offered is not any more while peers are connected: control passes it on to
    /// all shards (`Command::Lost`).
    Lost {
        torrent: TorrentId,
        piece: PieceIndex,
    },
    /// A piece did not match its hash; its bits were cleared.
    PieceFailed {
        torrent: TorrentId,
        piece: PieceIndex,
    },
    /// What a peer says of metadata that is not known yet. `peer` names its connection on this
    /// shard.
    Metadata {
        torrent: TorrentId,
        peer: u64,
        address: SocketAddr,
        said: MetadataSaid,
    },
    /// Nothing that is wanted of a download is missing any more, as this shard sees it; all of it
    /// is synced. Control compares with the bits, and takes `Shared::download` away.
    Complete(TorrentId),
    /// A download can't be written on: it is halted (`Download::halt`) until control lets it go on.
    /// What was being written is not had; nothing else is lost.
    WriteFailed {
        torrent: TorrentId,
        path: PathBuf,
        error: io::Error,
    },
    /// Blocks of a piece that is not whole are on the device, in the torrent's file beside its
    /// content: they need not be fetched again. `blocks`: in BEP 3 bit order, all that are there;
    /// empty: none any more.
    Kept {
        info_hash: InfoHash,
        piece: PieceIndex,
        slot: u32,
        blocks: Box<[u8]>,
    },
    /// A peer sent blocks of a piece that failed its hash, and nobody else did: it is banned.
    Poisoned {
        torrent: TorrentId,
        ip: IpAddr,
        piece: PieceIndex,
    },
    /// A file can't be read as the torrent says. Nothing is served from it.
    Trouble {
        torrent: TorrentId,
        path: PathBuf,
        trouble: Trouble,
        /// Pieces whose read failed, and that were verified until then.
        doubted: Vec<PieceIndex>,
    },
    /// A dialled peer: connected and handshaken, or why not.
    Dialed {
        torrent: TorrentId,
        address: SocketAddr,
        outcome: DialOutcome,
    },
    /// A peer came to us and is connected; `peer` names its connection on this shard.
    Accepted {
        torrent: TorrentId,
        peer: u64,
        address: SocketAddr,
    },
    /// The port on which a connected peer listens, as it says, and whether it wants nothing (it has
    /// all, or BEP 21). Again when that changes; not for private torrents.
    Met {
        torrent: TorrentId,
        address: SocketAddr,
        dialed: bool,
        listen_port: Option<u16>,
        seed: bool,
    },
    /// A connection of `Accepted` is gone, of which `listen_port` was told.
    Left {
        torrent: TorrentId,
        address: SocketAddr,
        listen_port: Option<u16>,
    },
    /// Whom a peer says it is connected to (BEP 11).
    Contacts {
        torrent: TorrentId,
        contacts: Vec<Contact>,
    },
    /// Accepting stopped for a while (descriptor limit, memory).
    AcceptFailed(io::Error),
    /// A peer broke the protocol and was disconnected; for debug logs.
    PeerFault {
        address: SocketAddr,
        why: String,
    },
    Stats(Box<Stats>),
    Peers {
        torrent: TorrentId,
        peers: Vec<PeerReport>,
    },
    /// Nothing is in flight; final statistics.
    Stopped(Box<Stats>),
}

/// What a peer says of metadata; control's machine judges it.
#[derive(Debug)]
pub enum MetadataSaid {
    /// It has some, of so many bytes, and takes requests for it.
    Size(u32),
    /// A piece, of a whole of `total_bytes` as it says.
    Piece {
        piece: u32,
        total_bytes: u32,
        data: Box<[u8]>,
    },
    Rejected(u32),
    /// Its connection is closing.
    Left,
}

/// Why a file can't be served.
#[derive(Debug)]
pub enum Trouble {
    /// open or read failed.
    Io(io::Error),
    /// The file is shorter than the torrent says.
    Short { expected_bytes: u64, found_bytes: u64 },
    /// Size, modification time or inode changed while the file was served.
    Changed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DialOutcome {
    Connected,
    /// It has everything too: no use for us.
    Seed,
    /// Ourselves.
    Oneself,
    Refused,
    /// Not tried: too many dials wait, or too many connections are open. Ask again soon.
    Later,
    /// Connected, then closed or broke the protocol before or after the handshake.
    Closed,
}

/// One line of a peer listing.
#[derive(Clone, Debug)]
pub struct PeerReport {
    pub address: SocketAddr,
    /// Where others reach it, as far as known.
    pub contact: Option<SocketAddr>,
    pub client: String,
    pub dialed: bool,
    pub interested: bool,
    pub unchoked: bool,
    pub queued_requests: u32,
    pub uploaded_bytes: u64,
    pub upload_bytes_per_s: u64,
    /// How much the peer has, in thousandths.
    pub progress_permille: u16,
    pub zero_copy: bool,
}

/// What all shards of a process share beside torrents: limits and counts, all atomic.
#[derive(Debug)]
pub struct Globals {
    pub peer_id: PeerId,
    /// Sent as `v` in the extension handshake.
    pub client: &'static str,
    /// Told to peers (BEP 10 `p`); 0: not told.
    pub listen_port: AtomicU16,
    pub upload: Meter,
    /// Payload asked of all peers together.
    pub download: Meter,
    /// Whoever sent what fails its hash: not accepted. Control replaces the whole set.
    pub banned: ArcSwap<HashSet<IpAddr>>,
    pub connections: AtomicU32,
    pub connections_max: AtomicU32,
    pub zero_copy: AtomicBool,
    pub direct_io: AtomicBool,
    /// From accept, or from the end of a connect, to a whole handshake, ms. Connections that began
    /// before a change keep what they began with.
    pub handshake_timeout_ms: AtomicU64,
    /// A connect that is not done within this time is given up, ms; as above.
    pub connect_timeout_ms: AtomicU64,
    /// An open connection on which no message comes for so long is closed, ms. A change is seen
    /// by all connections within a second.
    pub idle_timeout_ms: AtomicU64,
}

impl Globals {
    pub fn new(peer_id: PeerId, client: &'static str) -> Self {
        Globals {
            peer_id,
            client,
            listen_port: AtomicU16::new(0),
            upload: Meter::new(None),
            download: Meter::new(None),
            banned: ArcSwap::default(),
            connections: AtomicU32::new(0),
            connections_max: AtomicU32::new(2_000),
            zero_copy: AtomicBool::new(true),
            direct_io: AtomicBool::new(true),
            handshake_timeout_ms: AtomicU64::new(Handshake::DEADLINE.as_millis() as u64),
            connect_timeout_ms: AtomicU64::new(15_000),
            idle_timeout_ms: AtomicU64::new(SILENT_AFTER.as_millis() as u64),
        }
    }

    pub fn handshake_timeout(&self) -> Duration {
        // Relaxed, here and below: a number alone, nothing is published with it.
        Duration::from_millis(self.handshake_timeout_ms.load(Ordering::Relaxed))
    }

    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms.load(Ordering::Relaxed))
    }

    pub fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms.load(Ordering::Relaxed))
    }
}

/// A connection on its way to another shard, with nothing in flight.
#[derive(Debug)]
pub struct Handover {
    pub socket: OwnedSocket,
    pub address: SocketAddr,
    /// The handshake and whatever came with it.
    pub bytes: Vec<u8>,
    /// The torrent that it is for; it is in this one's count already.
    pub torrent: Arc<Shared>,
}
