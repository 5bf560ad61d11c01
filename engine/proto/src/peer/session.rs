//! Owns: one peer's state after the handshakes: choke, interest, its requests, its deadlines.
//! Never: reads a clock, a socket or a piece; keeps what a peer sent beyond the stated bounds.
//! Flow: received bytes and time in; bytes to send, events and a queue of blocks to upload out.
//!
//! `out` collects control messages; the caller sends them in order
//! with the blocks that it takes from the queue. Bounds a caller relies on:
//! - one `receive` appends at most its input's length, a metadata piece and 512 bytes more where
//!   `out` was under [`METADATA_OUT_BYTES`], so a caller that stops receiving while much is
//!   unsent bounds a connection's memory;
//! - the queue holds at most [`Options::request_queue_max`] blocks, `events` gets at most one of
//!   each kind a call, and in sessions that download at most one more for each 5 bytes of input
//!   and for each block that was outstanding;
//! - requests that are refused, repeated or taken back are borne up to bounds in `receive.rs`,
//!   which blocks served pay for: then the connection closes.

mod deadlines;
mod download;
mod exchange;
mod opening;
mod receive;
mod upload;

use std::borrow::Cow;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use crate::peer::client::{client_name, printable};
use crate::peer::{AllowedFast, RemotePieces, UploadQueue};
use crate::units::{Block, InfoHash, PeerId, PieceIndex};
use crate::wire::extended::ExtensionHandshake;
use crate::wire::{FrameReader, Reserved, Violation};

pub use deadlines::{INACTIVE_AFTER, KEEP_ALIVE_AFTER, SILENT_AFTER};
pub use download::{Blocks, LATE_FOR, PIPELINE_MAX};

/// The longest block a request may name. BEP 3 speaks of 16 KiB, libtorrent and qBittorrent serve
/// up to 128 KiB, and some old clients ask for 32 or 64 KiB.
pub const REQUEST_BYTES_MAX: u32 = 128 << 10;
/// What libtorrent queues and announces as `reqq`.
pub const REQUEST_QUEUE_DEFAULT: u32 = 2000;
/// Unsent control bytes above which metadata requests are rejected: the peer asks again later.
pub const METADATA_OUT_BYTES: usize = 256 << 10;

/// What a session needs to know of its torrent.
pub trait Torrent {
    fn info_hash(&self) -> InfoHash;
    fn piece_count(&self) -> u32;
    /// Bytes of this piece; asked only below `piece_count`.
    fn piece_length(&self, piece: PieceIndex) -> u32;
    /// Whether we announce it and serve it; asked only below `piece_count`.
    fn offered(&self, piece: PieceIndex) -> bool;
    /// Whether every piece is offered.
    fn offers_all(&self) -> bool;
    /// Sets the bits of offered pieces in `field`, which is zero, in the order of BEP 3: the first
    /// piece in the highest bit. Whether there was one. This goes piece by piece; a torrent of
    /// millions of them takes many at a time.
    fn write_offered(&self, field: &mut [u8]) -> bool {
        let mut some = false;
        for at in (0..self.piece_count()).filter(|at| self.offered(PieceIndex(*at))) {
            field[at as usize / 8] |= 0x80 >> (at % 8);
            some = true;
        }
        some
    }
    /// The raw `info` dictionary, to serve over ut_metadata.
    fn metadata(&self) -> Option<&[u8]>;
    /// BEP 27: peers come from the tracker alone, so no peer exchange. Metadata is served: whoever
    /// knows the info-hash of a private torrent has been let in by its tracker.
    fn private(&self) -> bool;
}

/// What a session starts from.
#[derive(Clone, Debug)]
pub struct Options {
    /// The peer's handshake bits.
    pub remote: Reserved,
    /// Our name and version, sent as `v`.
    pub client: &'static str,
    /// Requests we queue, sent as `reqq`; at most 65,535.
    pub request_queue_max: u32,
    /// The peer's address: sent as `yourip`, and the source of its allowed fast set.
    pub your_ip: Option<IpAddr>,
    /// Sent as `p`: on a connection that we dialled, the peer learns our listening port by it.
    pub listen_port: Option<u16>,
    /// Sent as `upload_only` (BEP 21); such a session asks for nothing, and skips `piece`. Others
    /// may download; they fetch metadata where the torrent has none, which has no pieces then.
    pub upload_only: bool,
    /// Peer exchange (BEP 11) is offered, unless the torrent is private.
    pub exchange: bool,
    /// Pieces of an allowed fast set. 0 where unchoke slots are unlimited, since nobody waits.
    pub allowed_fast: usize,
    /// A seed that gives out its pieces one by one (BEP 16), and so does not say that it is one.
    /// Its torrent offers nothing yet, and its caller hears what the peer has.
    pub hides: bool,
}

impl Options {
    /// A seed that knows nothing of the peer but its handshake.
    pub fn new(remote: Reserved) -> Self {
        Self {
            remote,
            client: concat!("seedring ", env!("CARGO_PKG_VERSION")),
            request_queue_max: REQUEST_QUEUE_DEFAULT,
            your_ip: None,
            listen_port: None,
            upload_only: true,
            exchange: false,
            allowed_fast: 5,
            hides: false,
        }
    }
}

/// What a caller may want to act on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    Interested,
    NotInterested,
    /// At least one block was queued.
    Requested,
    /// At least one block left the queue because the peer does not want it any more.
    Cancelled,
    /// The peer has a piece that it did not have; of sessions that also download, or hide
    /// ([`Options::hides`]).
    Have(PieceIndex),
    /// The peer has every piece: two seeds have nothing to say to each other.
    PeerComplete,
    /// The peer wants nothing though it is not complete (BEP 21).
    PeerUploadOnly,
    /// The peer said what it calls itself.
    ClientNamed,
    /// The peer's extension handshake came, or another one: where it listens is known, and whether
    /// it exchanges peers ([`Session::next_exchange`]).
    Introduced,
    /// Our address as the peer sees it.
    OurAddress(IpAddr),
    // What follows only sessions that also download say; `Pieces` and `DontHave` also those that
    // hide.
    /// The peer chokes us from now on. What waits is returned one by one.
    Choked,
    /// The peer serves us from now on.
    Unchoked,
    /// What the peer has was said anew: at most one a call, which then has no `Have` or
    /// `DontHave`. The pieces are those of [`Session::pieces`].
    Pieces,
    /// The peer lost a piece (BEP 54).
    DontHave(PieceIndex),
    /// A block that was asked for is here whole; [`Blocks`] had the last of it before.
    Block(Block),
    /// A block that was asked for will not come: rejected, or void by a choke.
    Returned(Block),
    /// The peer lets us have this piece while it chokes us.
    AllowedFast(PieceIndex),
    /// Bytes of metadata that the peer says it gives: where the torrent has none, once and
    /// whenever it says another number.
    MetadataSize(u32),
    /// The peer does not give a piece of metadata that it was asked for.
    MetadataRejected(u32),
}

/// A peer as listings show it.
#[derive(Clone, PartialEq, Debug)]
pub struct Summary<'a> {
    pub client: Cow<'a, str>,
    pub pieces_have: u32,
    pub pieces_total: u32,
    pub am_choking: bool,
    pub peer_choking: bool,
    pub peer_interested: bool,
    pub upload_only: bool,
    pub fast: bool,
    pub extended: bool,
    pub listen_port: Option<u16>,
    pub requests_queued: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    reader: FrameReader,
    state: State,
}

/// Everything but the reader, so that a message may borrow from the reader while it is handled.
/// What is said once is not kept, nor what the caller has (the peer's id, what was uploaded): an
/// idle session is a few hundred bytes, and there are thousands.
#[derive(Debug)]
struct State {
    /// Both sides speak the fast extension (BEP 6).
    fast: bool,
    /// Both sides speak the extension protocol (BEP 10).
    extended: bool,
    am_choking: bool,
    peer_choking: bool,
    peer_interested: bool,
    peer_upload_only: bool,
    /// A request was dropped and the peer could not be told.
    unheard: bool,
    /// The number under which the peer wants ut_metadata; 0: it does not.
    peer_metadata_id: u8,
    /// The same for lt_donthave.
    peer_dont_have_id: u8,
    /// What the peer has is told to the caller though we ask it for nothing.
    watched: bool,
    request_queue_max: u16,
    peer_listen_port: Option<NonZeroU16>,
    exchange: exchange::Exchange,
    peer_client: Option<Box<str>>,
    pieces: RemotePieces,
    queue: UploadQueue,
    /// Rare: where unchoke slots are bounded.
    allowed_fast: Option<Box<AllowedFast>>,
    /// Requests turned down, less blocks served since.
    refused: u32,
    /// Absent where we only upload.
    download: Option<Box<download::Download>>,
    idle: receive::Idle,
    unwanted_bytes: u32,
    /// Served; bounded by some times 64 MiB.
    metadata_bytes: u32,
    clock: deadlines::Clock,
}

impl Session {
    /// Takes bytes as they came, cut anywhere. Data that was asked for goes to `blocks`.
    ///
    /// # Errors
    /// What the peer did wrong; the connection is to be closed, and this session used no more.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        torrent: &impl Torrent,
        now: Duration,
        out: &mut Vec<u8>,
        events: &mut Vec<Event>,
        blocks: &mut impl Blocks,
    ) -> Result<(), Violation> {
        self.state.settle_download(now);
        let mut turn = receive::Turn::new(&self.state, now, out.len(), events.len());
        let mut input = bytes;
        loop {
            let (used, message) = self.reader.next(input)?;
            input = &input[used..];
            let Some(message) = message else { break };
            self.state.on_message(message, torrent, &mut turn, out, events, blocks)?;
        }
        turn.finish(&mut self.state, out.len(), events);
        Ok(())
    }

    pub fn am_choking(&self) -> bool {
        self.state.am_choking
    }

    pub fn peer_interested(&self) -> bool {
        self.state.peer_interested
    }

    /// Whether the peer has every piece, or said that it wants nothing.
    pub fn peer_wants_nothing(&self) -> bool {
        self.state.pieces.is_complete() || self.state.peer_upload_only
    }

    pub fn pieces(&self) -> &RemotePieces {
        &self.state.pieces
    }

    /// Whether both sides speak the fast extension: then every request is answered.
    pub fn fast(&self) -> bool {
        self.state.fast
    }

    /// Gives back the memory of what is over: a queue without blocks, a frame that came in parts.
    pub fn shrink(&mut self) {
        self.reader.shrink();
        self.state.queue.release();
        if let Some(download) = &mut self.state.download {
            download.release();
        }
    }

    /// Bytes on the heap.
    pub fn held_bytes(&self) -> usize {
        let state = &self.state;
        let client = state.peer_client.as_ref().map_or(0, |client| client.len());
        let allowed = state.allowed_fast.as_ref().map_or(0, |_| size_of::<AllowedFast>());
        let grown = state.queue.held_bytes() + state.pieces.held_bytes();
        let download = state.download.as_ref().map_or(0, |download| download.held_bytes());
        self.reader.held_bytes() + grown + client + allowed + download
    }

    /// For listings. The id of its handshake names the peer's client until the peer does; only
    /// then this allocates.
    pub fn peer(&self, peer_id: PeerId) -> Summary<'_> {
        let state = &self.state;
        Summary {
            client: match &state.peer_client {
                Some(client) => Cow::Borrowed(client),
                None => Cow::Owned(client_name(peer_id)),
            },
            pieces_have: state.pieces.count(),
            pieces_total: state.pieces.total(),
            am_choking: state.am_choking,
            peer_choking: state.peer_choking,
            peer_interested: state.peer_interested,
            upload_only: state.peer_upload_only,
            fast: state.fast,
            extended: state.extended,
            listen_port: state.peer_listen_port.map(NonZeroU16::get),
            requests_queued: state.queue.len(),
        }
    }
}

impl State {
    /// Keeps what the peer's extension handshake says; a later one adds to it (BEP 10).
    fn learn(&mut self, said: &ExtensionHandshake<'_>, turn: &mut receive::Turn) {
        turn.introduced = true;
        self.exchange.said(said.ut_pex, turn.now);
        self.peer_metadata_id = said.ut_metadata.unwrap_or(self.peer_metadata_id);
        self.peer_dont_have_id = said.lt_donthave.unwrap_or(self.peer_dont_have_id);
        self.peer_listen_port =
            said.listen_port.and_then(NonZeroU16::new).or(self.peer_listen_port);
        self.peer_upload_only = said.upload_only.unwrap_or(self.peer_upload_only);
        if let Some(download) = &mut self.download {
            if let Some(requests) = said.request_queue {
                download.queues(requests);
            }
            // Where the torrent has its metadata, nobody asks for it.
            let supported = self.peer_metadata_id > 0 && self.pieces.total() == 0;
            turn.metadata_bytes =
                download.metadata_size(said.metadata_bytes, supported).or(turn.metadata_bytes);
        }
        turn.our_address = said.your_ip.or(turn.our_address);
        if let Some(client) = said.client.map(printable).filter(|client| !client.is_empty()) {
            turn.client_named = true;
            self.peer_client = Some(client.into());
        }
    }
}

#[cfg(test)]
mod tests;
