//! Making a ring: the best set of flags that this kernel takes, and why not a better one.
//!
//! Owns: the ladder of set-up flags, `Features`, the reason for a failure.
//! Never: operations. Flow: `Ring::new` and the start-up probe call `build`.

use std::io;

use io_uring::{IoUring, Probe, opcode};
use rustix::io::Errno;

use crate::probe::{self, Unavailable};

/// When the kernel runs the work that completes our operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskRun {
    /// When we enter to wait (Linux 6.1): 0.203 CPU-s/GiB in the seeding prototype.
    Deferred,
    /// At our next system call (Linux 5.19): 0.233.
    Cooperative,
    /// Whenever it likes, interrupting us: 0.263.
    Plain,
}

/// What the ring does here. Each step down says why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Features {
    pub task_run: TaskRun,
    /// Arenas are registered, so that reads need not pin pages.
    pub registered_memory: bool,
    /// Vectored zero-copy sends, with a report whether the kernel copied after all.
    pub zero_copy: bool,
    pub steps_down: Vec<String>,
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error("{what}: {source}")]
    Resource { what: &'static str, source: io::Error },
}

impl SetupError {
    pub(super) fn resource(what: &'static str) -> impl FnOnce(io::Error) -> SetupError {
        move |source| SetupError::Resource { what, source }
    }
}

/// `IORING_SEND_ZC_REPORT_USAGE`.
const ZERO_COPY_KERNEL_MIN: (u32, u32) = (6, 2);

/// Operations without which there is no backend, with the kernel that brought the last of them.
const NEEDED: [(u8, &str); 16] = [
    (opcode::AcceptMulti::CODE, "accept"),
    (opcode::Connect::CODE, "connect"),
    (opcode::RecvMulti::CODE, "recv"),
    (opcode::SendMsg::CODE, "sendmsg"),
    (opcode::Read::CODE, "read"),
    (opcode::ReadFixed::CODE, "read_fixed"),
    (opcode::OpenAt2::CODE, "openat2"),
    (opcode::Statx::CODE, "statx"),
    (opcode::AsyncCancel::CODE, "async_cancel"),
    (opcode::PollAdd::CODE, "poll_add"),
    (opcode::Recv::CODE, "recv"),
    (opcode::Writev::CODE, "writev"),
    (opcode::WriteFixed::CODE, "write_fixed"),
    (opcode::Fsync::CODE, "fsync"),
    (opcode::Fallocate::CODE, "fallocate"),
    (opcode::MkDirAt::CODE, "mkdirat"),
];

/// Sets up a ring of `entries` with a completion queue of `completion_entries`.
pub(crate) fn build(
    entries: u32,
    completion_entries: u32,
) -> Result<(IoUring, Features), Unavailable> {
    let ladder = [TaskRun::Deferred, TaskRun::Cooperative, TaskRun::Plain];
    let mut steps_down = Vec::new();
    for task_run in ladder {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(completion_entries).setup_clamp().setup_submit_all();
        match task_run {
            TaskRun::Deferred => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag()
            }
            TaskRun::Cooperative => builder.setup_coop_taskrun().setup_taskrun_flag(),
            TaskRun::Plain => &mut builder,
        };
        match builder.build(entries) {
            Ok(ring) => return finish(ring, task_run, steps_down),
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                steps_down.push(format!("{task_run:?} task work: refused by this kernel"));
            }
            Err(error) => return Err(probe::explain(&error)),
        }
    }
    Err(probe::explain(&io::Error::from(Errno::INVAL)))
}

fn finish(
    ring: IoUring,
    task_run: TaskRun,
    mut steps_down: Vec<String>,
) -> Result<(IoUring, Features), Unavailable> {
    let mut known = Probe::new();
    ring.submitter().register_probe(&mut known).map_err(|error| probe::explain(&error))?;
    if let Some((_, name)) = NEEDED.iter().find(|(code, _)| !known.is_supported(*code)) {
        return Err(probe::missing_operation(name));
    }
    if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
        return Err(probe::missing_operation("waiting with a timeout"));
    }
    // Without the report of 6.2 a route that copies after all would not be noticed.
    let zero_copy =
        known.is_supported(opcode::SendMsgZc::CODE) && probe::kernel() >= ZERO_COPY_KERNEL_MIN;
    if !zero_copy {
        steps_down.push("zero-copy sends: they need Linux 6.2 (usage reports)".to_owned());
    }
    Ok((ring, Features { task_run, registered_memory: false, zero_copy, steps_down }))
}
