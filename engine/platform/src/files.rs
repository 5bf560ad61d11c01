//! Operations on files, step by step, whoever makes the calls.
//!
//! Owns: what an operation holds, its calls in order, what each answer means.
//! Never: the calls (the ring queues them, a helper thread makes them).
//! Flow: `Op` -> `FileWork` -> `call` -> answer -> `step` -> the next call, or the outcome.

mod call;
mod create;
mod open;

use std::io;

pub(crate) use call::Call;
use call::Registered;
use create::{Creating, Next};
pub(crate) use open::{FOLDER_MODE, STATUS_MASK, adopt};

use crate::{
    descriptors::File,
    memory::Lease,
    op::{Access, Allocation, Op, OpenRequest, Outcome, Token},
    write_batch::WriteBatch,
};

/// What an operation on a file holds while it is in flight. Boxed parts are those that the kernel
/// has addresses of.
pub(crate) enum FileWork {
    Open {
        request: Box<OpenRequest>,
        how: Box<libc::open_how>,
        direct: bool,
    },
    /// An open that may have to make what is missing, and syncs directories.
    Create(Box<Creating>),
    /// The second half of an open.
    OpenedStatus {
        file: File,
        status: Box<libc::statx>,
    },
    Identify {
        file: File,
        status: Box<libc::statx>,
    },
    Read {
        file: File,
        offset: u64,
        length: u32,
        lease: Lease,
    },
    Write {
        file: File,
        offset: u64,
        batch: Box<WriteBatch>,
    },
    Sync {
        file: File,
        data_only: bool,
    },
    Allocate {
        file: File,
        length_bytes: u64,
        mode: Allocation,
    },
}

/// What follows from an answer.
pub(crate) enum Step {
    /// `call` has the next one. Only opens have several.
    Again(FileWork),
    Done(Outcome),
}

impl FileWork {
    /// `Err`: no operation on a file.
    pub(crate) fn of(op: Op) -> Result<(Token, FileWork), Op> {
        Ok(match op {
            Op::Open { token, request } if request.access == Access::Create => {
                (token, FileWork::Create(Box::new(Creating::new(request))))
            }
            Op::Open { token, request } => {
                let direct = request.direct;
                let how = Box::new(open::how(request.access, direct));
                (token, FileWork::Open { request, how, direct })
            }
            Op::Identify { token, file } => {
                (token, FileWork::Identify { file, status: open::empty_status() })
            }
            Op::Read { token, file, offset, length, lease } => {
                assert!(length as usize <= lease.len(), "{length} bytes into {}", lease.len());
                (token, FileWork::Read { file, offset, length, lease })
            }
            Op::Write { token, file, offset, batch } => {
                assert!(!batch.is_empty(), "a batch to write has bytes");
                (token, FileWork::Write { file, offset, batch })
            }
            Op::Sync { token, file, data_only } => (token, FileWork::Sync { file, data_only }),
            Op::Allocate { token, file, length_bytes, mode } => {
                assert!(length_bytes > 0, "the kernel refuses an empty range");
                (token, FileWork::Allocate { file, length_bytes, mode })
            }
            other => return Err(other),
        })
    }

    /// The call that comes next. Its addresses are valid until `step`.
    pub(crate) fn call(&mut self) -> Call {
        match self {
            FileWork::Open { request, how, .. } => Call::Open {
                folder: request.root.raw(),
                path: request.path.as_ptr(),
                how: &raw const **how,
            },
            FileWork::Create(creating) => creating.call(),
            FileWork::OpenedStatus { file, status } | FileWork::Identify { file, status } => {
                Call::Status { fd: file.raw(), status: &raw mut **status }
            }
            FileWork::Read { file, offset, length, lease } => Call::Read {
                fd: file.raw(),
                data: lease.data().as_ptr(),
                length: *length,
                offset: *offset,
                arena: lease.arena(),
            },
            FileWork::Write { file, offset, batch } => {
                let arena = batch.only_arena();
                let vectors = batch.prepare();
                let range = arena.map(|arena| Registered {
                    arena,
                    data: vectors[0].iov_base.cast_const().cast(),
                    length: vectors[0].iov_len as u32,
                });
                let (vectors, count) = (vectors.as_ptr(), vectors.len() as u32);
                Call::Write { fd: file.raw(), vectors, count, offset: *offset, range }
            }
            FileWork::Sync { file, data_only } => {
                Call::Sync { fd: file.raw(), data_only: *data_only }
            }
            FileWork::Allocate { file, length_bytes, mode } => {
                // Of the last byte alone: a file of this size with a hole before it.
                let offset = match mode {
                    Allocation::Sparse => *length_bytes - 1,
                    Allocation::Full => 0,
                };
                Call::Allocate { fd: file.raw(), offset, length: *length_bytes - offset }
            }
        }
    }

    /// Takes the answer to `call`: a result, or an error's number, negative.
    pub(crate) fn step(self, answer: i32) -> Step {
        let result = usize::try_from(answer).map_err(|_| io::Error::from_raw_os_error(-answer));
        Step::Done(match self {
            FileWork::Open { request, mut how, direct: true } if answer == -libc::EINVAL => {
                // The file system has no direct I/O (overlayfs, old tmpfs): once more without.
                *how = open::how(request.access, false);
                return Step::Again(FileWork::Open { request, how, direct: false });
            }
            FileWork::Open { .. } => match result {
                Ok(_) => return look_at_opened(File::from_os(adopt(answer))),
                Err(error) => Outcome::Opened(Err(error)),
            },
            FileWork::Create(mut creating) => match creating.step(answer) {
                Next::Step => return Step::Again(FileWork::Create(creating)),
                Next::Made(file) => return look_at_opened(file),
                Next::Failed(error) => Outcome::Opened(Err(error)),
            },
            FileWork::OpenedStatus { file, status } => Outcome::Opened(
                result.and_then(|_| open::settle(&file, &status)).map(|identity| (file, identity)),
            ),
            FileWork::Identify { file, status } => {
                Outcome::Identified(result.and_then(|_| open::identity(&file, &status)))
            }
            FileWork::Read { lease, .. } => Outcome::Read { result, lease },
            FileWork::Write { batch, .. } => Outcome::Written { result, batch },
            FileWork::Sync { .. } => Outcome::Synced(result.map(|_| ())),
            FileWork::Allocate { .. } => Outcome::Allocated(result.map(|_| ())),
        })
    }
}

fn look_at_opened(file: File) -> Step {
    Step::Again(FileWork::OpenedStatus { file, status: open::empty_status() })
}
