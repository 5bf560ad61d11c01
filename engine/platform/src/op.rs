//! The I/O seam: what a shard may ask of the kernel, and what it hears back.
//!
//! Owns: `trait Io`, the operations and completions, and who holds a resource while it
//! is in flight.
//! Never: kernel words (flags, ring entries), BitTorrent.
//! Flow: shard -> `submit` -> backend -> `reap` -> shard.
//!
//! Three promises that every backend keeps and the conformance suite checks:
//! 1. An operation owns its descriptor and memory until its last completion; nothing is reused or
//!    closed earlier.
//! 2. Each submitted operation completes: a single-shot one once, a multishot one any number of
//!    times and then exactly once with its ending (named at each operation below).
//! 3. Nothing blocks but `wait`.

use std::{
    ffi::CString,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    descriptors::{File, Socket},
    memory::{Lease, Pool},
    send_batch::SendBatch,
    wake::Waker,
};

/// The caller's name for an operation; every completion brings it back. Not interpreted here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Token(pub u64);

/// One request to the kernel. At most 64 bytes, so that a queue of them stays cheap.
#[derive(Debug)]
pub enum Op {
    /// Accept connections until cancelled. Completions: `Accepted` each, at the end `AcceptEnded`.
    /// A transient failure (EMFILE, ENFILE, ENOBUFS, ENOMEM, ECONNABORTED) is reported as
    /// `Accepted(Err)` and the backend goes on only after the caller submits `Accept` again,
    /// preceded by `AcceptEnded`, so that running out of descriptors cannot spin.
    Accept { token: Token, listener: Socket },
    /// Connect. Completion: `Connected`, once.
    Connect { token: Token, socket: Socket, address: SocketAddr },
    /// Receive once. Completion: `Received`, once. Leaves nothing in flight: the socket may then
    /// move to another shard.
    ReceiveOnce { token: Token, socket: Socket },
    /// Receive until the stream ends. Completions: `Received(Ok(bytes))` any number of times, then
    /// exactly one ending: `Received(Ok(empty))` at end of stream or `Received(Err)`. The backend
    /// re-arms by itself when the kernel ends a multishot early or buffers ran out.
    Receive { token: Token, socket: Socket },
    /// Send a batch in order. Completion: `Sent`, once; where `Sent` does not bring the batch back
    /// (zero-copy: pages still in use), `Released` follows with it, once.
    SendBatch { token: Token, socket: Socket, batch: Box<SendBatch>, zero_copy: bool },
    /// Open a file below a directory and look at its identity. Completion: `Opened`, once.
    Open { token: Token, request: Box<OpenRequest> },
    /// Look at an open file's identity again. Completion: `Identified`, once.
    Identify { token: Token, file: File },
    /// Read `length` bytes at `offset` to the start of the lease. Completion: `Read`, once. May be
    /// short; at most `lease.len()`. For a direct file all three are aligned by the caller.
    Read { token: Token, file: File, offset: u64, length: u32, lease: Lease },
}

/// What happened to an operation.
#[derive(Debug)]
pub struct Completion {
    pub token: Token,
    pub outcome: Outcome,
}

#[derive(Debug)]
pub enum Outcome {
    Accepted(io::Result<(Socket, SocketAddr)>),
    /// The accept operation is over: cancelled (ECANCELED), or by the error named.
    AcceptEnded(io::Error),
    Connected(io::Result<()>),
    Received(io::Result<Received>),
    /// `result`: bytes taken by the socket, from the batch's start, in order. `batch`: given back
    /// here unless the kernel still reads from it.
    Sent {
        result: io::Result<usize>,
        batch: Option<Box<SendBatch>>,
    },
    /// The kernel has let go of a zero-copy batch. `copied`: it copied after all.
    Released {
        batch: Box<SendBatch>,
        copied: bool,
    },
    Opened(io::Result<(File, Identity)>),
    Identified(io::Result<Identity>),
    /// `result`: bytes read. The lease comes back in any case.
    Read {
        result: io::Result<usize>,
        lease: Lease,
    },
}

/// A file to open: `path` relative to `root`, never leaving it (openat2: beneath, no symlinks).
#[derive(Debug)]
pub struct OpenRequest {
    pub root: File,
    pub path: CString,
    /// Ask for direct I/O; where the file system refuses, the file is opened buffered and
    /// `Identity::direct` is `None`.
    pub direct: bool,
}

/// What makes a file the same file with the same bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    pub size_bytes: u64,
    pub modified_ns: i128,
    pub changed_ns: i128,
    pub inode: u64,
    pub device: u64,
    /// Alignment that direct I/O needs on this file; `None`: the descriptor is buffered.
    pub direct: Option<DirectAlignment>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectAlignment {
    pub memory_bytes: u32,
    pub offset_bytes: u32,
}

/// Bytes received, in a buffer of the backend that goes home when this is dropped. Hold it for the
/// length of one dispatch only: the backend has a bounded number of them.
pub struct Received {
    pub(crate) inner: crate::receive::ReceivedInner,
}

impl Received {
    /// For backends outside this crate (the simulator).
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Received { inner: crate::receive::ReceivedInner::Owned(bytes) }
    }
}

impl std::ops::Deref for Received {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.inner.bytes()
    }
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Received({} bytes)", self.len())
    }
}

/// How a socket is shut down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shutdown {
    /// FIN after what is queued.
    Orderly,
    /// Nothing more is sent; the close that follows resets (linger 0).
    Reset,
}

/// A shard's view of the kernel. One owner, one thread.
pub trait Io {
    /// Monotonic time since an epoch that is common to all shards of a process; read once a
    /// `reap`, so one tick sees one time.
    fn now(&self) -> Duration;

    /// The registered memory that leases come from.
    fn pool(&self) -> &Pool;

    /// An empty batch, from the backend's free list.
    fn batch(&mut self) -> Box<SendBatch>;

    /// Gives a batch back (cleared: its shares are dropped).
    fn recycle(&mut self, batch: Box<SendBatch>);

    /// Queues an operation; it reaches the kernel at the next `reap` or `wait`. `Err(op)`: the
    /// in-flight table (a capacity limit named at construction) is full; nothing was done.
    fn submit(&mut self, op: Op) -> Result<(), Op>;

    /// Asks for the early end of the operations with this token. They still complete (ECANCELED,
    /// or as they would have). Only for `Accept`, `Connect`, `Receive` and `ReceiveOnce`.
    fn cancel(&mut self, token: Token);

    /// A socket to connect with, non-blocking, options set; `bind`: the local address to use.
    fn socket(&mut self, remote: SocketAddr, bind: Option<IpAddr>) -> io::Result<Socket>;

    /// Shuts a socket down now: pending receives and sends end. The descriptor closes when its
    /// last holder (handle or in-flight operation) lets go.
    fn shutdown(&mut self, socket: &Socket, how: Shutdown);

    /// Hands queued operations to the kernel and appends what has completed, at most `max`.
    /// Never blocks.
    fn reap(&mut self, completions: &mut Vec<Completion>, max: usize);

    /// Sleeps until something completed, `until` passed (`None`: for ever), or the waker was used.
    /// `pending` is asked once after the wake-up was armed: `true` means that other work came in
    /// meanwhile, do not sleep. May return early for no reason.
    fn wait(&mut self, until: Option<Duration>, pending: &dyn Fn() -> bool);

    /// For other threads to end a `wait`.
    fn waker(&self) -> Waker;

    /// Operations submitted and not yet completed for the last time (pending zero-copy
    /// notifications count).
    fn in_flight(&self) -> usize;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_stays_small() {
        assert!(size_of::<Op>() <= 64, "Op is {} bytes", size_of::<Op>());
        // `Opened` with its identity is the largest.
        let bytes = size_of::<Completion>();
        assert!(bytes <= 128, "Completion is {bytes} bytes");
    }
}
