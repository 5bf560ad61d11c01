//! Opening files beneath a directory, and what makes them the same file.
//!
//! Owns: open flags, the reading of `statx`. Never: which files (storage knows).
//! Flow: openat2 -> statx on the descriptor -> `Opened`; `Identify` is the second half alone.

use std::{io, os::fd::OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::{
    descriptors::File,
    op::{Access, DirectAlignment, Identity},
};

/// `STATX_DIOALIGN`, Linux 6.1.
const STATX_DIOALIGN: u32 = 0x2000;
/// Where the file system does not say: what every device in use accepts.
const ALIGNMENT_UNSAID: DirectAlignment =
    DirectAlignment { memory_bytes: 4096, offset_bytes: 4096 };

/// Of files that are made, less the umask.
const FILE_MODE: u64 = 0o644;
/// Of folders that are made, less the umask.
pub(crate) const FOLDER_MODE: libc::mode_t = 0o755;
/// What is asked of `statx`.
pub(crate) const STATUS_MASK: u32 = libc::STATX_BASIC_STATS | STATX_DIOALIGN;

/// `O_NONBLOCK`: a FIFO in the content must not hang the open; it is cleared afterwards. Never
/// `O_TRUNC`.
pub(super) fn how(access: Access, direct: bool) -> libc::open_how {
    let (kind, mode) = match access {
        Access::Read => (libc::O_RDONLY, 0),
        Access::Write => (libc::O_RDWR, 0),
        Access::Create => (libc::O_RDWR | libc::O_CREAT, FILE_MODE),
    };
    let mut flags = kind | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    if direct {
        flags |= libc::O_DIRECT;
    }
    beneath(flags, mode)
}

/// A directory to make something in, and to sync: `O_PATH` would not do for that.
pub(super) fn how_directory() -> libc::open_how {
    beneath(libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC, 0)
}

fn beneath(flags: i32, mode: u64) -> libc::open_how {
    // SAFETY: a C struct of integers, for which all zeroes is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = flags as u64;
    how.mode = mode;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS;
    how
}

pub(super) fn empty_status() -> Box<libc::statx> {
    // SAFETY: a C struct of integers, for which all zeroes is valid.
    unsafe { Box::new(std::mem::zeroed()) }
}

/// After an open: refuses what is not a regular file, settles the descriptor's flags.
pub(super) fn settle(file: &File, status: &libc::statx) -> io::Result<Identity> {
    let kind = u32::from(status.stx_mode) & libc::S_IFMT;
    if kind == libc::S_IFDIR {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if kind != libc::S_IFREG {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let fd = file.as_os().expect("invariant: opened by this backend");
    let mut flags = fcntl_getfl(fd)?;
    // Left on, it would turn a read that must wait for the disk into EAGAIN.
    flags.remove(OFlags::NONBLOCK);
    if alignment(status).is_none() {
        flags.remove(OFlags::DIRECT);
    }
    fcntl_setfl(fd, flags)?;
    identity(file, status)
}

pub(super) fn identity(file: &File, status: &libc::statx) -> io::Result<Identity> {
    let fd = file.as_os().expect("invariant: opened by this backend");
    let direct = fcntl_getfl(fd)?.contains(OFlags::DIRECT);
    Ok(Identity {
        size_bytes: status.stx_size,
        modified_ns: nanoseconds(&status.stx_mtime),
        changed_ns: nanoseconds(&status.stx_ctime),
        inode: status.stx_ino,
        device: u64::from(status.stx_dev_major) << 32 | u64::from(status.stx_dev_minor),
        direct: if direct { alignment(status) } else { None },
    })
}

/// `None`: the file system says that this file cannot be read directly.
fn alignment(status: &libc::statx) -> Option<DirectAlignment> {
    if status.stx_mask & STATX_DIOALIGN == 0 {
        return Some(ALIGNMENT_UNSAID);
    }
    let (memory_bytes, offset_bytes) = (status.stx_dio_mem_align, status.stx_dio_offset_align);
    (offset_bytes != 0).then_some(DirectAlignment { memory_bytes, offset_bytes })
}

fn nanoseconds(time: &libc::statx_timestamp) -> i128 {
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

/// Takes the descriptor that an answer brought.
pub(crate) fn adopt(result: i32) -> OwnedFd {
    assert!(result >= 0, "the caller looked at the sign");
    // SAFETY: the kernel made this descriptor for the answer that is being looked at, once; nobody
    // else knows it.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(result) }
}
