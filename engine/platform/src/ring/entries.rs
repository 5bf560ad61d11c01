//! From an operation to its submission queue entry.
//!
//! Owns: the kernel's flags of each operation. Never: what comes back (`complete`).
//! Flow: `submit` -> `work_of` (into the slot) -> `arm` (entry with the slot's addresses).

use std::io;

use io_uring::{
    opcode, squeue,
    types::{self, FsyncFlags},
};

use super::{
    Ring,
    buffers::{BULK, GROUP},
    create::Creating,
    open,
    slots::{Accept, Receive, SlotId, Work},
};
use crate::{
    descriptors::File,
    op::{Access, Allocation, Op, Token},
    write_batch::WriteBatch,
};

/// Names that are not slots: the generation that a slot of the highest index never reaches.
pub(super) const WAKE: u64 = u64::MAX;
pub(super) const CANCEL: u64 = u64::MAX - 1;

/// Report with the notification whether the kernel copied after all (Linux 6.2).
const SEND_ZC_REPORT_USAGE: u16 = 1 << 3;
/// The kernel goes on with a short send by itself: one completion a batch, and order kept.
const SEND_FLAGS: u32 = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
/// MSG_EOR ends the socket buffer with the batch: otherwise the notifications of one stream chain
/// up and none returns while its queue is full.
const SEND_ZC_FLAGS: u32 = SEND_FLAGS | libc::MSG_EOR as u32;

pub(super) fn cancelled() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}

/// What the slot holds while the operation is in flight.
pub(super) fn work_of(op: Op, zero_copy_allowed: bool) -> (Token, Work) {
    let receive = |socket, once, bulk| {
        Work::Receive(Receive { socket, once, bulk, armed: false, cancelled: false })
    };
    match op {
        Op::Accept { token, listener } => {
            (token, Work::Accept(Accept { listener, cancelled: false }))
        }
        Op::Connect { token, socket, address } => {
            (token, Work::Connect { socket, address: Box::new(address.into()) })
        }
        Op::ReceiveOnce { token, socket } => (token, receive(socket, true, false)),
        Op::Receive { token, socket, bulk } => (token, receive(socket, false, bulk)),
        Op::SendBatch { token, socket, batch, zero_copy } => {
            assert!(!batch.is_empty(), "a batch to send has bytes");
            (token, Work::Send { socket, batch, zero_copy: zero_copy && zero_copy_allowed })
        }
        Op::Open { token, request } => {
            let (access, direct) = (request.access, request.direct);
            if access == Access::Create {
                return (token, Work::Create(Box::new(Creating::new(request))));
            }
            let how = Box::new(open::how(access, direct));
            (token, Work::Open { request, how, direct })
        }
        Op::Identify { token, file } => {
            (token, Work::Identify { file, status: open::empty_status() })
        }
        Op::Read { token, file, offset, length, lease } => {
            assert!(length as usize <= lease.len(), "{length} bytes into {}", lease.len());
            (token, Work::Read { file, offset, length, lease })
        }
        Op::Write { token, file, offset, batch } => {
            assert!(!batch.is_empty(), "a batch to write has bytes");
            (token, Work::Write { file, offset, batch })
        }
        Op::Sync { token, file, data_only } => (token, Work::Sync { file, data_only }),
        Op::Allocate { token, file, length_bytes, mode } => {
            (token, Work::Allocate { file, length_bytes, mode })
        }
    }
}

impl Ring {
    /// Queues the entry of what the slot holds, for the first time or again.
    pub(super) fn arm(&mut self, id: SlotId) {
        let registered = self.arenas_registered;
        let Some(work) = self.slots.work_mut(id) else {
            unreachable!("invariant: only occupied slots are armed")
        };
        let entry = entry_of(work, registered).user_data(id.user_data());
        // SAFETY: every address in the entry points into boxes, leases or shares that the slot
        // holds until `complete` sees the operation's last completion.
        unsafe { self.queue.push(entry) };
    }
}

fn entry_of(work: &mut Work, arenas_registered: usize) -> squeue::Entry {
    match work {
        Work::Accept(it) => {
            opcode::AcceptMulti::new(types::Fd(it.listener.raw())).flags(libc::SOCK_CLOEXEC).build()
        }
        Work::Connect { socket, address } => {
            opcode::Connect::new(types::Fd(socket.raw()), address.as_ptr().cast(), address.len())
                .build()
        }
        Work::Receive(it) => {
            it.armed = true;
            let fd = types::Fd(it.socket.raw());
            if it.once {
                // Length 0: that of the buffer which the kernel picks.
                opcode::Recv::new(fd, std::ptr::null_mut(), 0)
                    .buf_group(GROUP)
                    .build()
                    .flags(squeue::Flags::BUFFER_SELECT)
            } else {
                opcode::RecvMulti::new(fd, if it.bulk { BULK } else { GROUP }).build()
            }
        }
        Work::Send { socket, batch, zero_copy: false } => {
            opcode::SendMsg::new(types::Fd(socket.raw()), batch.prepare()).flags(SEND_FLAGS).build()
        }
        Work::Send { socket, batch, zero_copy: true } => {
            opcode::SendMsgZc::new(types::Fd(socket.raw()), batch.prepare())
                .ioprio(SEND_ZC_REPORT_USAGE)
                .flags(SEND_ZC_FLAGS)
                .build()
        }
        Work::Open { request, how, .. } => {
            opcode::OpenAt2::new(types::Fd(request.root.raw()), request.path.as_ptr(), &**how)
                .build()
        }
        Work::OpenedStat { file, status } | Work::Identify { file, status } => {
            open::status_entry(file, status)
        }
        Work::Read { file, offset, length, lease } => {
            let fd = types::Fd(file.raw());
            let data = lease.data().as_ptr();
            if usize::from(lease.arena()) < arenas_registered {
                opcode::ReadFixed::new(fd, data, *length, lease.arena()).offset(*offset).build()
            } else {
                opcode::Read::new(fd, data, *length).offset(*offset).build()
            }
        }
        Work::Write { file, offset, batch } => write_entry(file, *offset, batch, arenas_registered),
        Work::Create(creating) => creating.entry(),
        Work::Sync { file, data_only } => {
            let flags = if *data_only { FsyncFlags::DATASYNC } else { FsyncFlags::empty() };
            opcode::Fsync::new(types::Fd(file.raw())).flags(flags).build()
        }
        Work::Allocate { file, length_bytes, mode } => {
            let fd = types::Fd(file.raw());
            // Mode 0 of fallocate takes the space of a range and never shrinks: of the last byte
            // alone, that makes a file of this size with a hole before it.
            let offset = match mode {
                Allocation::Sparse => *length_bytes - 1,
                Allocation::Full => 0,
            };
            opcode::Fallocate::new(fd, *length_bytes - offset).offset(offset).build()
        }
        Work::Release { .. } => unreachable!("invariant: a taken send is not armed again"),
    }
}

/// One range of registered memory needs no pinning of pages; several go as vectors.
fn write_entry(
    file: &File,
    offset: u64,
    batch: &mut WriteBatch,
    arenas_registered: usize,
) -> squeue::Entry {
    let fd = types::Fd(file.raw());
    let registered = batch.only_arena().filter(|arena| usize::from(*arena) < arenas_registered);
    let vectors = batch.prepare();
    match (registered, vectors) {
        (Some(arena), [only]) => {
            let (data, len) = (only.iov_base.cast_const().cast(), only.iov_len as u32);
            opcode::WriteFixed::new(fd, data, len, arena).offset(offset).build()
        }
        _ => {
            let (data, count) = (vectors.as_ptr(), vectors.len() as u32);
            opcode::Writev::new(fd, data, count).offset(offset).build()
        }
    }
}
