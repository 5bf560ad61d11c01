//! Cores this process may use, and pinning a thread to one.
//!
//! Owns: the affinity calls. Never: which shard goes where (control decides).
//! Flow: control lists cores at start, each shard's thread pins itself.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct CpuId(pub usize);

/// The affinity mask's cores, ascending: what a cpuset, container or `taskset` leaves us.
pub fn cores() -> io::Result<Vec<CpuId>> {
    let mask = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| mask.is_set(cpu)).map(CpuId).collect())
}

/// Pins the calling thread. Fails for a core outside the mask that the process may use.
pub fn pin_current_thread(core: CpuId) -> io::Result<()> {
    if core.0 >= CpuSet::MAX_CPU {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("core {} is above the limit of {}", core.0, CpuSet::MAX_CPU),
        ));
    }
    let mut mask = CpuSet::new();
    mask.set(core.0);
    Ok(sched_setaffinity(None, &mask)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_has_one_core() {
        let all = cores().expect("mask");
        assert!(!all.is_empty());
        let last = *all.last().expect("a core");
        std::thread::spawn(move || {
            pin_current_thread(last).expect("pin");
            assert_eq!(cores().expect("mask"), [last]);
        })
        .join()
        .expect("thread");
        assert_eq!(cores().expect("mask"), all, "only that thread was pinned");
    }

    #[test]
    fn a_core_that_is_not_there_is_an_error() {
        assert!(pin_current_thread(CpuId(CpuSet::MAX_CPU)).is_err());
    }
}
