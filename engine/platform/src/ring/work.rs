//! What the ring holds for an operation.
//!
//! Owns: descriptor, memory and kernel-visible structures of each kind of operation.
//! Never: where they lie (`slots`), kernel calls. Flow: `entries` makes it, `complete` takes it.

use crate::{
    descriptors::Socket,
    files::FileWork,
    send_batch::SendBatch,
    slots::{self, Held},
};

pub(super) type Slots = slots::Slots<Work>;

/// What an operation holds while it is in flight. Boxed parts are those that the kernel has
/// addresses of.
pub(super) enum Work {
    Accept(Accept),
    Connect {
        socket: Socket,
        address: Box<socket2::SockAddr>,
    },
    Receive(Receive),
    Send {
        socket: Socket,
        batch: Box<SendBatch>,
        zero_copy: bool,
    },
    /// A zero-copy send that was taken whole; the kernel still reads the pages. No descriptor.
    Release {
        batch: Box<SendBatch>,
    },
    File(FileWork),
}

pub(super) struct Accept {
    pub listener: Socket,
    pub cancelled: bool,
}

pub(super) struct Receive {
    pub socket: Socket,
    pub once: bool,
    pub bulk: bool,
    /// In the kernel; otherwise it waits for buffers (`Ring::starved`).
    pub armed: bool,
    pub cancelled: bool,
}

impl Held for Work {
    fn is_cancellable(&self) -> bool {
        matches!(self, Work::Accept(_) | Work::Connect { .. } | Work::Receive(_))
    }
}
