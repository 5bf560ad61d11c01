//! From an operation to its submission queue entry.
//!
//! Owns: the kernel's flags of each operation. Never: what comes back (`complete`).
//! Flow: `submit` -> `work_of` (into the slot) -> `arm` (entry with the slot's addresses).

use io_uring::{
    opcode, squeue,
    types::{self, FsyncFlags},
};

use super::{
    Ring,
    buffers::{BULK, GROUP},
    work::{Accept, Receive, Work},
};
use crate::{
    files::{Call, FOLDER_MODE, FileWork, STATUS_MASK},
    op::{Op, Token},
    slots::SlotId,
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
        file => {
            let Ok((token, work)) = FileWork::of(file) else {
                unreachable!("invariant: every other operation is one on a file")
            };
            (token, Work::File(work))
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
        Work::File(work) => file_entry(work.call(), arenas_registered),
        Work::Release { .. } => unreachable!("invariant: a taken send is not armed again"),
    }
}

/// Transfers from or to one range of registered memory need no pinning of pages.
fn file_entry(call: Call, arenas_registered: usize) -> squeue::Entry {
    let is_registered = |arena: u16| usize::from(arena) < arenas_registered;
    match call {
        Call::Open { folder, path, how } => {
            // The same struct of three u64 of the kernel's interface.
            opcode::OpenAt2::new(types::Fd(folder), path, how.cast::<types::OpenHow>()).build()
        }
        Call::MakeFolder { folder, name } => {
            opcode::MkDirAt::new(types::Fd(folder), name).mode(FOLDER_MODE).build()
        }
        Call::Status { fd, status } => {
            let status = status.cast::<types::statx>();
            opcode::Statx::new(types::Fd(fd), c"".as_ptr(), status)
                .flags(libc::AT_EMPTY_PATH)
                .mask(STATUS_MASK)
                .build()
        }
        Call::Read { fd, data, length, offset, arena } if is_registered(arena) => {
            opcode::ReadFixed::new(types::Fd(fd), data, length, arena).offset(offset).build()
        }
        Call::Read { fd, data, length, offset, .. } => {
            opcode::Read::new(types::Fd(fd), data, length).offset(offset).build()
        }
        Call::Write { fd, range: Some(range), offset, .. } if is_registered(range.arena) => {
            opcode::WriteFixed::new(types::Fd(fd), range.data, range.length, range.arena)
                .offset(offset)
                .build()
        }
        Call::Write { fd, vectors, count, offset, .. } => {
            opcode::Writev::new(types::Fd(fd), vectors, count).offset(offset).build()
        }
        Call::Sync { fd, data_only } => {
            let flags = if data_only { FsyncFlags::DATASYNC } else { FsyncFlags::empty() };
            opcode::Fsync::new(types::Fd(fd)).flags(flags).build()
        }
        Call::Allocate { fd, offset, length } => {
            opcode::Fallocate::new(types::Fd(fd), length).offset(offset).build()
        }
    }
}
