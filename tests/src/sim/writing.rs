//! What writes, syncs and allocations report, and the machine that comes up after an end.
//!
//! Owns: the faults of writing, the rules for who writes what, reboots. Never: the in-flight table.
//! Flow: `reap` takes a ready operation and asks here; a test takes images at any moment.

use std::io;

use seedring_platform::{
    descriptors::File,
    op::{Allocation, Token},
    write_batch::WriteBatch,
};

use super::{
    disk::{DirectoryId, Disk, NodeId},
    durable::Survives,
    fault::{FaultKind, Faults},
    flight::file_id,
    outcome::{fails, snapshot},
    world::{Core, OpenFile, World},
};

impl Core {
    /// What a shard must see to before it writes.
    pub fn check_write(&mut self, file: &File, offset: u64, batch: &WriteBatch) {
        let length = batch.len_bytes() as u64;
        if batch.is_empty() {
            self.violation("an empty batch was submitted to a file".into());
        }
        if self.writable(file).is_none() {
            self.violation("a write to a file that is not open for writing".into());
        }
        let memory = batch.slices().map(|slice| (slice.as_ptr() as usize, slice.len()));
        if !self.is_aligned(file, offset, memory) {
            self.violation(format!("an unaligned direct write: {length} bytes at {offset}"));
        }
        let node = self.writable(file);
        let overlaps = self.writes_in_flight().any(|(other, at, batch)| {
            let end = at + batch.len_bytes() as u64;
            self.writable(other) == node && at < offset + length && offset < end
        });
        if overlaps && node.is_some() {
            self.violation(format!("two writes in flight of the bytes at {offset}"));
        }
    }

    pub fn check_written(&mut self, token: Token, batch: &WriteBatch, then: u64) {
        if snapshot(batch.slices()) != then {
            self.violation(format!("bytes changed while they were written ({token:?})"));
        }
    }

    fn writable(&self, file: &File) -> Option<NodeId> {
        self.files.get(&file_id(file)).filter(|file| file.writable).and_then(|file| file.node)
    }

    pub fn write(&mut self, file: &File, offset: u64, batch: &WriteBatch) -> io::Result<usize> {
        let Some(node) = self.writable(file) else { return fails(libc::EBADF) };
        let memory = batch.slices().map(|slice| (slice.as_ptr() as usize, slice.len()));
        if !self.is_aligned(file, offset, memory) {
            return fails(libc::EINVAL);
        }
        let (length, unit) = (batch.len_bytes() as u64, self.unit_of(file));
        let mut taken = length;
        let failed = self.strikes(FaultKind::WriteFailed);
        if failed {
            taken = self.rng.below(length + 1);
        } else if self.strikes(FaultKind::Interrupted) {
            return fails(*self.rng.pick(&[libc::EINTR, libc::EAGAIN]));
        } else if self.strikes(FaultKind::DiskFull) {
            return fails(libc::ENOSPC);
        } else if length > unit && self.strikes(FaultKind::ShortWrite) {
            taken = self.rng.between(1, length / unit - 1) * unit;
        }
        let bytes: Vec<u8> = batch.slices().flatten().copied().take(taken as usize).collect();
        if failed {
            if !bytes.is_empty() {
                let _ = self.disk.write_at(node, offset, &bytes, self.now_ns);
            }
            return fails(libc::EIO);
        }
        self.disk.write_at(node, offset, &bytes, self.now_ns).map_err(io::Error::from_raw_os_error)
    }

    /// What a direct file's transfers are multiples of.
    fn unit_of(&self, file: &File) -> u64 {
        let direct = self.files.get(&file_id(file)).is_some_and(|file| file.direct);
        let needs = self.disk.direct.filter(|_| direct);
        needs.map_or(1, |needs| u64::from(needs.offset_bytes))
    }

    pub fn sync(&mut self, file: &File, covers: u64) -> io::Result<()> {
        let Some(OpenFile { node: Some(node), .. }) = self.files.get(&file_id(file)) else {
            return fails(libc::EBADF);
        };
        let node = *node;
        if self.strikes(FaultKind::SyncFailed) {
            self.disk.lose(node, covers, &mut self.rng);
            return fails(libc::EIO);
        }
        self.disk.sync(node, covers);
        Ok(())
    }

    pub fn allocate(&mut self, file: &File, length_bytes: u64, mode: Allocation) -> io::Result<()> {
        if length_bytes == 0 {
            return Ok(());
        }
        let Some(node) = self.writable(file) else { return fails(libc::EBADF) };
        if self.strikes(FaultKind::AllocateRefused) {
            return fails(libc::EOPNOTSUPP);
        }
        if self.strikes(FaultKind::DiskFull) {
            return fails(libc::ENOSPC);
        }
        let full = mode == Allocation::Full;
        self.disk.grow(node, length_bytes, full, self.now_ns).map_err(io::Error::from_raw_os_error)
    }

    /// The disk as an end at this moment leaves it; writes in flight may have come through.
    fn image(&mut self, survives: Survives) -> Disk {
        let mut disk = self.disk.clone();
        let mut coming = Vec::new();
        if !matches!(survives, Survives::Prefix(_)) {
            for (file, offset, batch) in self.writes_in_flight() {
                if let Some(node) = self.writable(file) {
                    coming.push((node, offset, batch.slices().collect::<Vec<_>>().concat()));
                }
            }
        }
        for (node, offset, bytes) in coming {
            if self.rng.per_mille(500) {
                // In a disk that is full it does not.
                let _ = disk.write_at(node, offset, &bytes, self.now_ns);
            }
        }
        disk.image(survives, &mut self.rng)
    }
}

impl World {
    /// The machine, or the process, that comes up after an end at this moment: the disk as it is
    /// left, the clock further on, nothing else. This world goes on: many ends can be tried.
    pub fn reboot(&self, seed: u64, faults: Faults, survives: Survives) -> World {
        let world = World::new(seed, faults);
        let mut old = self.core.borrow_mut();
        let disk = old.image(survives);
        let mut core = world.core.borrow_mut();
        core.disk = disk;
        core.now_ns = old.now_ns + 1_000_000_000;
        drop(core);
        world
    }

    /// At most so much may be written beneath the directory.
    pub fn limit_space(&self, directory: DirectoryId, limit_bytes: u64) {
        self.core.borrow_mut().disk.limit_space(directory, limit_bytes);
    }
}
