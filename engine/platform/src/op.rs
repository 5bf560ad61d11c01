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
    window::Window,
    write_batch::WriteBatch,
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
    /// re-arms by itself when the kernel ends a multishot early or buffers ran out. `bulk`: much is
    /// to come, so larger buffers are worth their memory; a completion then carries more.
    Receive { token: Token, socket: Socket, bulk: bool },
    /// Send a batch in order. Completion: `Sent`, once; where `Sent` does not bring the batch back
    /// (zero-copy: pages still in use), `Released` follows with it, once.
    SendBatch { token: Token, socket: Socket, batch: Box<SendBatch>, zero_copy: bool },
    /// Open a file below a directory and look at its identity; with `Access::Create`, make it where
    /// it is missing. Completion: `Opened`, once.
    Open { token: Token, request: Box<OpenRequest> },
    /// Look at an open file's identity again. Completion: `Identified`, once.
    Identify { token: Token, file: File },
    /// Read `length` bytes at `offset` to the start of the lease. Completion: `Read`, once. May be
    /// short; at most `lease.len()`. For a direct file all three are aligned by the caller.
    Read { token: Token, file: File, offset: u64, length: u32, lease: Lease },
    /// Write the batch's bytes in order at `offset`. Completion: `Written`, once. May be short: the
    /// caller advances the batch and writes on. Concurrent writes of one file are not ordered.
    ///
    /// For a direct file the offset and every range of the batch are aligned by the caller. A
    /// file's end that is no multiple goes through a descriptor that is not direct, and not while
    /// direct writes near it are in flight: where a direct write and a buffered transfer meet in
    /// the page cache, the kernel fails the file's next sync with EIO.
    Write { token: Token, file: File, offset: u64, batch: Box<WriteBatch> },
    /// Make what was written durable: every byte whose `Written` was reaped before this was
    /// submitted (writes still in flight may or may not be covered), and the size that is needed to
    /// read it. `data_only` leaves out the times. Completion: `Synced`, once. An error is final:
    /// the kernel may have dropped the pages, so a later sync that succeeds proves nothing about
    /// them. All that was written since the last good sync (also the first part of what is still
    /// being written on) is verified from the device, or written again.
    Sync { token: Token, file: File, data_only: bool },
    /// Make the file at least `length_bytes` long, and with `Allocation::Full` take the space.
    /// Never shrinks a file and changes none of its bytes; new ones read as zero. Completion:
    /// `Allocated`, once: ENOSPC (some of it may have been taken), EOPNOTSUPP where the file system
    /// cannot (the file then grows as it is written).
    Allocate { token: Token, file: File, length_bytes: u64, mode: Allocation },
}

/// How an operation that was cancelled ends.
pub(crate) fn cancellation() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
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
    /// `result`: bytes written, from the batch's start, in order. The batch comes back as it was in
    /// any case.
    Written {
        result: io::Result<usize>,
        batch: Box<WriteBatch>,
    },
    Synced(io::Result<()>),
    Allocated(io::Result<()>),
}

/// A file to open: `path` relative to `root`, never leaving it (openat2: beneath, no symlinks).
#[derive(Debug)]
pub struct OpenRequest {
    pub root: File,
    pub path: CString,
    /// Ask for direct I/O; where the file system refuses, the file is opened buffered and
    /// `Identity::direct` is `None`.
    pub direct: bool,
    pub access: Access,
}

/// What an open file is for. A file is never truncated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reading, of content that is not ours to change.
    Read,
    /// Reading and writing a file that is there.
    Write,
    /// As `Write`; a missing file is made (mode 0644 less the umask), and the folders above it
    /// (0755). When `Opened(Ok)` comes, the file's name is durable, found or made, and so are the
    /// folders that this operation made: the directories above were synced, for which those must
    /// be readable. A folder that another operation is making is durable when that one ends. A
    /// failure may leave what was made so far.
    Create,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocation {
    /// The size only: space is taken as bytes are written.
    Sparse,
    /// All of the space now, so that a later write does not fail for lack of it.
    Full,
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

    /// Bytes of a file where they lie in memory, without a copy: `length` from `offset`, which is a
    /// multiple of `WINDOW_ALIGN`. `None`: not all of them are in memory, or this backend can't
    /// say. No device is waited for, unless the kernel throws a page out in this very moment.
    fn window(&mut self, file: &File, offset: u64, length: usize) -> Option<Window> {
        let _ = (file, offset, length);
        None
    }

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
