//! One system call on a file, as plain addresses and descriptors.
//!
//! Owns: the calls' forms, and making one in place. Never: what an answer means (`FileWork`).
//! Flow: `FileWork::call` -> the ring makes an entry of it, or a helper thread runs it -> `step`.

use std::{
    io,
    os::{fd::RawFd, raw::c_char},
};

use super::open;

/// Everything that it names is held by the `FileWork` which it came from, in boxes and leases: it
/// may be moved, not changed.
pub(crate) enum Call {
    Open {
        folder: RawFd,
        path: *const c_char,
        how: *const libc::open_how,
    },
    MakeFolder {
        folder: RawFd,
        name: *const c_char,
    },
    Status {
        fd: RawFd,
        status: *mut libc::statx,
    },
    /// `arena`: the registered memory that it lies in.
    Read {
        fd: RawFd,
        data: *mut u8,
        length: u32,
        offset: u64,
        arena: u16,
    },
    /// `range`: the only one; `None` where there are several.
    Write {
        fd: RawFd,
        vectors: *const libc::iovec,
        count: u32,
        offset: u64,
        range: Option<Registered>,
    },
    Sync {
        fd: RawFd,
        data_only: bool,
    },
    /// Mode 0 of fallocate: takes the space of a range, and never shrinks.
    Allocate {
        fd: RawFd,
        offset: u64,
        length: u64,
    },
}

/// Bytes in an arena, which may be registered with the kernel.
pub(crate) struct Registered {
    pub arena: u16,
    pub data: *const u8,
    pub length: u32,
}

// SAFETY: addresses and numbers. Who sends one to another thread holds what they name until that
// thread has answered, and touches none of it meanwhile.
unsafe impl Send for Call {}

impl Call {
    /// Makes the call, waiting for it. Answers as a completion would: the result, or the error's
    /// number, negative.
    ///
    /// # Safety
    /// The `FileWork` that it came from is kept, untouched, until this returns.
    pub(crate) unsafe fn run(&self) -> i32 {
        loop {
            // SAFETY: the caller's promise.
            let result = unsafe { self.make() };
            if result >= 0 {
                return i32::try_from(result).expect("invariant: transfers are below 2 GiB");
            }
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                errno => return -errno.unwrap_or(libc::EIO),
            }
        }
    }

    /// # Safety
    /// As `run`.
    unsafe fn make(&self) -> libc::c_long {
        match *self {
            Call::Open { folder, path, how } => {
                let size = size_of::<libc::open_how>();
                // SAFETY: a C string and an `open_how` that live until the call returns.
                unsafe { libc::syscall(libc::SYS_openat2, folder, path, how, size) }
            }
            Call::MakeFolder { folder, name } => {
                // SAFETY: a C string that lives until the call returns.
                unsafe { libc::mkdirat(folder, name, open::FOLDER_MODE) }.into()
            }
            Call::Status { fd, status } => {
                let (flags, mask) = (libc::AT_EMPTY_PATH, open::STATUS_MASK);
                // SAFETY: an empty C string, and a `statx` that is ours to write to.
                unsafe { libc::statx(fd, c"".as_ptr(), flags, mask, status) }.into()
            }
            Call::Read { fd, data, length, offset, .. } => {
                // SAFETY: `length` bytes from `data` belong to a lease that nobody looks at.
                unsafe { libc::pread(fd, data.cast(), length as usize, offset as i64) as _ }
            }
            Call::Write { fd, vectors, count, offset, .. } => {
                // SAFETY: `count` vectors whose shares nobody writes to while they are held.
                unsafe { libc::pwritev(fd, vectors, count as i32, offset as i64) as _ }
            }
            // SAFETY: no addresses.
            Call::Sync { fd, data_only: true } => unsafe { libc::fdatasync(fd) }.into(),
            // SAFETY: no addresses.
            Call::Sync { fd, data_only: false } => unsafe { libc::fsync(fd) }.into(),
            Call::Allocate { fd, offset, length } => {
                // SAFETY: no addresses.
                unsafe { libc::fallocate(fd, 0, offset as i64, length as i64) }.into()
            }
        }
    }
}
