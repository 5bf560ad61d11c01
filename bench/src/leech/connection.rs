//! Owns: one connection to the target: its socket, what it has asked for, what it still has to
//! send.
//! Never: reads blocks (inbound does), waits, knows of other connections.
//! Flow: worker event -> `on_writable` / inbound's `on_readable` -> `refill` -> requests out.

use std::{
    collections::VecDeque,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    net::SocketAddr,
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::{event::epoll::EventFlags, io::Errno, net::SendFlags};
use seedring_proto::units::Block;
use socket2::{Domain, Protocol, Socket, Type};

use super::{assembly::Assembly, crowd::Role, frames, inbound::Inbound, tally::Tally, walk::Walk};
use crate::torrent::{Grid, Torrent};

/// Draws of a random walk until a block is found that is not outstanding.
const DRAWS_MAX: usize = 16;
/// Of a slow reader: what it has not read waits at the target, as with a slow line.
const SLOW_BUFFER_BYTES: usize = 4 << 10;

/// Lives as long as the load: what must survive when the socket is opened again.
pub struct Lane {
    pub index: usize,
    /// Which of the torrents it is of.
    pub offer: usize,
    pub role: Role,
    pub source: Option<SocketAddr>,
    pub walk: Walk,
    /// Blocks asked for once and not received: rejected, or lost with a socket.
    pub retry: Vec<u64>,
    pub assembly: Option<Assembly>,
    /// Heads may be skipped: blocks have come in the order asked for so far.
    pub ordered: bool,
    pub was_ready: bool,
    pub was_done: bool,
    pub reopens: u32,
    /// When it goes; `None`: it stays.
    pub leaves: Option<Instant>,
    /// Payload of the window.
    pub window_bytes: u64,
}

#[derive(Clone, Copy)]
pub struct Pending {
    pub number: u64,
    pub block: Block,
    /// When it was asked for; in open loop when it should have been.
    pub since: Instant,
}

/// What a connection needs of its worker for the time of one event.
pub struct Context<'a> {
    pub torrent: &'a Torrent,
    pub grid: Grid,
    pub tally: &'a mut Tally,
    /// Never written by the kernel (MSG_TRUNC), only its length counts; small messages go
    /// elsewhere.
    pub discard: &'a mut [u8],
    pub now: Instant,
    pub measuring: bool,
    /// Payload bytes that became whole during this event.
    pub received_bytes: u64,
    pub outstanding_max: usize,
    pub skip_heads: bool,
    /// Bytes that may be taken from the socket still: a slow reader's.
    pub allowance: usize,
    pub open_loop: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Connecting,
    Greeting,
    Open,
}

/// Why a socket's life ended.
#[derive(Debug)]
pub enum End {
    /// The target closed, or the socket failed.
    Closed(String),
    /// Blocks came in another order than asked for while heads were skipped: which block is whole
    /// is not known any more.
    Reordered,
}

/// An eighth of what may be outstanding, so that a call carries several requests.
pub fn asked_at_once(outstanding_max: usize) -> usize {
    (outstanding_max / 8).max(1)
}

pub struct Connection {
    pub socket: Socket,
    pub lane: Box<Lane>,
    pub stage: Stage,
    pub fast: bool,
    pub choked: bool,
    pub outstanding: VecDeque<Pending>,
    /// Open loop: times at which blocks should have been asked for.
    pub due: VecDeque<Instant>,
    pub inbox: Vec<u8>,
    pub inbound: Inbound,
    /// Blocks in a row that came in the order asked for.
    pub in_order: u32,
    outbox: Vec<u8>,
    out_start: usize,
    /// What its worker's epoll waits for.
    pub awaits: EventFlags,
    opened: Instant,
    has_block: bool,
}

impl Connection {
    /// Begins to connect. The socket is non-blocking; writability tells how it went.
    pub fn open(
        lane: Box<Lane>,
        target: SocketAddr,
        torrent: &Torrent,
        now: Instant,
    ) -> Result<Self, (Box<Lane>, io::Error)> {
        let buffer = (lane.role == Role::Slow).then_some(SLOW_BUFFER_BYTES);
        let socket = match dial(target, lane.source, buffer) {
            Ok(socket) => socket,
            Err(error) => return Err((lane, error)),
        };
        let outbox = frames::handshake(&torrent.info_hash, &peer_id(&lane)).to_vec();
        Ok(Connection {
            socket,
            lane,
            stage: Stage::Connecting,
            fast: false,
            choked: true,
            outstanding: VecDeque::new(),
            due: VecDeque::new(),
            inbox: Vec::with_capacity(frames::HANDSHAKE_BYTES),
            inbound: Inbound::Head,
            in_order: 0,
            outbox,
            out_start: 0,
            awaits: EventFlags::IN | EventFlags::OUT,
            opened: now,
            has_block: false,
        })
    }

    /// The socket is gone: what was asked for goes back to the lane.
    pub fn close(mut self) -> Box<Lane> {
        let lost = self.outstanding.drain(..).map(|pending| pending.number);
        self.lane.retry.extend(lost);
        self.lane.reopens += 1;
        self.lane
    }

    pub fn on_writable(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        if self.stage == Stage::Connecting {
            if let Some(error) = self.socket.take_error().map_err(|error| closed(&error))? {
                return Err(closed(&error));
            }
            self.stage = Stage::Greeting;
        }
        self.flush()?;
        self.refill(context)
    }

    /// The target's handshake is here.
    pub fn greeted(&mut self, context: &Context<'_>) -> Result<(), End> {
        self.fast = frames::read_handshake(&self.inbox, &context.torrent.info_hash)
            .map_err(|error| End::Closed(error.to_string()))?;
        self.inbox.clear();
        self.stage = Stage::Open;
        if self.fast {
            frames::push_have_none(&mut self.outbox);
        }
        if self.lane.role != Role::Idle {
            frames::push_interested(&mut self.outbox);
        }
        self.flush()
    }

    /// Asks for blocks until enough are outstanding, several in a call; in open loop for those due.
    pub fn refill(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        if self.choked || self.stage != Stage::Open || self.lane.role == Role::Idle {
            return Ok(());
        }
        // Twice the same block at once could not be told apart.
        let most = context.outstanding_max.min(context.grid.blocks as usize);
        let free = most.saturating_sub(self.outstanding.len());
        if free < asked_at_once(most) && !context.open_loop {
            return Ok(());
        }
        for _ in 0..free {
            let since = if context.open_loop && self.lane.role == Role::Active {
                let Some(due) = self.due.pop_front() else { break };
                due
            } else {
                context.now
            };
            let Some(number) = self.next_block() else { break };
            let block = context.grid.block(number);
            frames::push_request(&mut self.outbox, block);
            self.outstanding.push_back(Pending { number, block, since });
        }
        self.flush()
    }

    /// What is outstanding is not asked for again, as no client does: a target may answer two such
    /// requests once, and the second would wait for ever. Only endless walks come to a block again,
    /// so that skipping one loses nothing.
    fn next_block(&mut self) -> Option<u64> {
        let Lane { retry, walk, .. } = &mut *self.lane;
        (0..DRAWS_MAX)
            .map_while(|_| retry.pop().or_else(|| walk.next()))
            .find(|number| !self.outstanding.iter().any(|pending| pending.number == *number))
    }

    /// All that was to be fetched is here.
    pub fn is_done(&self) -> bool {
        self.outstanding.is_empty() && self.lane.retry.is_empty() && self.lane.walk.is_over()
    }

    pub fn keep_alive(&mut self) -> Result<(), End> {
        if self.stage == Stage::Open {
            frames::push_keep_alive(&mut self.outbox);
            self.flush()?;
        }
        Ok(())
    }

    /// Sends what it can; what is left waits for writability.
    fn flush(&mut self) -> Result<(), End> {
        if self.stage == Stage::Connecting {
            return Ok(());
        }
        while self.out_start < self.outbox.len() {
            let bytes = &self.outbox[self.out_start..];
            match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => self.out_start += sent,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(closed(&error.into())),
            }
        }
        if self.out_start == self.outbox.len() {
            self.outbox.clear();
            self.out_start = 0;
        }
        Ok(())
    }

    /// What its worker has to wait for: a slow reader is not woken by what came.
    pub fn wants(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, !self.reads_by_time());
        flags.set(EventFlags::OUT, self.stage == Stage::Connecting || !self.outbox.is_empty());
        flags
    }

    /// It takes what it may each tick, once blocks can come.
    pub fn reads_by_time(&self) -> bool {
        self.lane.role == Role::Slow && self.stage == Stage::Open && !self.choked
    }

    /// How long it took from the first packet to this, its first block; `None`: it had one.
    pub fn first_block(&mut self, now: Instant) -> Option<Duration> {
        let is_first = !std::mem::replace(&mut self.has_block, true);
        is_first.then(|| now.saturating_duration_since(self.opened))
    }
}

/// Nobody else's: a target takes one connection of a peer ID, and several loads may run against it.
fn peer_id(lane: &Lane) -> [u8; 20] {
    static OWN: OnceLock<u64> = OnceLock::new();
    let own = OWN.get_or_init(|| RandomState::new().build_hasher().finish()).to_be_bytes();
    let mut peer_id = *b"-SB0100-000000000000";
    peer_id[8..14].copy_from_slice(&own[..6]);
    peer_id[14..18].copy_from_slice(&(lane.index as u32).to_be_bytes());
    peer_id[18..].copy_from_slice(&(lane.reopens as u16).to_be_bytes());
    peer_id
}

pub fn closed(error: &io::Error) -> End {
    End::Closed(error.to_string())
}

fn dial(
    target: SocketAddr,
    source: Option<SocketAddr>,
    receive_buffer: Option<usize>,
) -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(source) = source {
        socket.bind(&source.into())?;
    }
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
        other => other?,
    }
    Ok(socket)
}

/// One block over a blocking socket, to see whether a target serves.
pub fn fetch_first_block(
    target: SocketAddr,
    source: Option<SocketAddr>,
    torrent: &Torrent,
    patience: Duration,
) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let deadline = Instant::now() + patience;
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(source) = source {
        socket.bind(&source.into())?;
    }
    socket.connect_timeout(&target.into(), patience).context("connect")?;
    let mut stream = std::net::TcpStream::from(socket);
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(&frames::handshake(&torrent.info_hash, b"-SB0100-probe0000000"))?;
    let mut greeting = [0; frames::HANDSHAKE_BYTES];
    stream.read_exact(&mut greeting).context("handshake")?;
    let mut out = Vec::new();
    if frames::read_handshake(&greeting, &torrent.info_hash)? {
        frames::push_have_none(&mut out);
    }
    frames::push_interested(&mut out);
    stream.write_all(&out)?;
    let first = Grid::new(torrent, 16_384).block(0);
    loop {
        anyhow::ensure!(Instant::now() < deadline, "no block within {} s", patience.as_secs());
        let mut prefix = [0; 4];
        stream.read_exact(&mut prefix).context("waiting for a block")?;
        let length = u32::from_be_bytes(prefix);
        anyhow::ensure!(length <= frames::MESSAGE_BYTES_MAX, "a message of {length} bytes");
        let mut message = vec![0; length as usize];
        stream.read_exact(&mut message).context("waiting for a block")?;
        match message.first() {
            Some(&frames::id::PIECE) => return Ok(()),
            Some(&frames::id::UNCHOKE) => {
                out.clear();
                frames::push_request(&mut out, first);
                stream.write_all(&out)?;
            }
            _ => {}
        }
    }
}
