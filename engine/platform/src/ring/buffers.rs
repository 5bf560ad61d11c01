//! Buffers that the kernel picks from when bytes arrive (a provided-buffer ring, Linux 5.19).
//!
//! Owns: the buffers, the ring that offers them, the count of those that are away.
//! Never: which socket they are for. Flow: kernel fills one -> completion -> `Received` -> dispatch
//! drops it -> offered again.
//!
//! The kernel takes buffers in turn, so all that are offered get touched and pass through the
//! cache: a few are offered at first, and twice as many whenever a receive found none.

use std::{
    cell::Cell,
    io,
    ptr::NonNull,
    rc::Rc,
    sync::atomic::{AtomicU16, Ordering},
};

use io_uring::{Submitter, types::BufRingEntry};

use crate::memory::mapping::Mapping;

/// The groups' numbers: small buffers for requests and handshakes, which are many and short, and
/// large ones for content, of which one completion should bring much.
pub(super) const GROUP: u16 = 0;
pub(super) const BULK: u16 = 1;
/// The kernel's limit for one group.
const BUFFERS_MAX: u32 = 1 << 15;
/// Offered at first, in all.
const OFFERED_FIRST_BYTES: u32 = 256 << 10;

/// The memory and the shared ring. Counted: `Received` values may outlive the ring they came from.
pub(crate) struct ReceiveBuffers {
    ring: Mapping,
    memory: Mapping,
    count: u16,
    each_bytes: u32,
    group: u16,
    tail: Cell<u16>,
    /// Buffers 0 to this one are in use; the others were never touched.
    offered: Cell<u16>,
    /// Buffers that completions carried out and that were not dropped yet.
    away: Cell<u16>,
}

impl ReceiveBuffers {
    /// `count` is rounded up to a power of two, at most 32,768.
    pub(super) fn new(group: u16, count: u32, each_bytes: u32) -> io::Result<Rc<ReceiveBuffers>> {
        let count = count.clamp(1, BUFFERS_MAX).next_power_of_two() as u16;
        let ring_bytes = usize::from(count) * size_of::<BufRingEntry>();
        let memory_bytes = usize::from(count) * each_bytes as usize;
        let buffers = Rc::new(ReceiveBuffers {
            ring: Mapping::new(ring_bytes.next_multiple_of(4096), false)?,
            memory: Mapping::new(memory_bytes.next_multiple_of(4096), false)?,
            count,
            each_bytes,
            group,
            tail: Cell::new(0),
            offered: Cell::new(0),
            away: Cell::new(0),
        });
        buffers.offer_up_to(count.min((OFFERED_FIRST_BYTES / each_bytes).max(1) as u16));
        Ok(buffers)
    }

    fn offer_up_to(&self, count: u16) {
        for id in self.offered.replace(count)..count {
            self.offer(id);
        }
    }

    /// A receive found no buffer: unless some are back since, offers as many again as there are.
    /// `false`: all are offered already.
    pub(super) fn grow(&self) -> bool {
        let offered = self.offered.get();
        if offered == self.count {
            return false;
        }
        if self.home() == 0 {
            self.offer_up_to(offered.saturating_mul(2).min(self.count));
        }
        true
    }

    #[cfg(test)]
    pub(super) fn offered(&self) -> u16 {
        self.offered.get()
    }

    pub(super) fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let base = self.ring.base().as_ptr().addr() as u64;
        // SAFETY: `ring` is page-aligned, holds `count` entries (a power of two), and is unmapped
        // only with this value, which the Ring keeps until nothing is in flight (and leaks if that
        // does not come in time); the kernel pins the ring's own pages besides.
        unsafe { submitter.register_buf_ring_with_flags(base, self.count, self.group, 0) }
    }

    /// Buffers that the kernel may have left: a starved receive is armed again when some are back.
    pub(super) fn home(&self) -> u16 {
        self.offered.get() - self.away.get()
    }

    fn at(&self, id: u16) -> NonNull<u8> {
        assert!(id < self.count, "the kernel names a buffer that it was offered");
        // SAFETY: id < count, so the offset is inside `memory`.
        unsafe { self.memory.base().add(usize::from(id) * self.each_bytes as usize) }
    }

    /// Puts a buffer (back) into the ring.
    fn offer(&self, id: u16) {
        let entries: *mut BufRingEntry = self.ring.base().as_ptr().cast();
        let tail = self.tail.get();
        let slot = usize::from(tail & (self.count - 1));
        // SAFETY: slot < count entries of the mapping. At most `count` ids exist and each is in
        // the ring at most once, so the kernel has consumed whatever was in this slot.
        let entry = unsafe { entries.add(slot) };
        // SAFETY: as above; addr, len and bid are written field by field because the first
        // entry's `resv` is the tail itself. This thread is the only producer.
        let entry = unsafe { &mut *entry };
        entry.set_addr(self.at(id).as_ptr().addr() as u64);
        entry.set_len(self.each_bytes);
        entry.set_bid(id);
        self.tail.set(tail.wrapping_add(1));
        // SAFETY: the ring's base is a mapped, page-aligned array of entries.
        let shared_tail = unsafe { BufRingEntry::tail(entries) };
        // SAFETY: an aligned u16 in a living mapping, written only here; the kernel only reads it.
        let shared_tail = unsafe { AtomicU16::from_ptr(shared_tail.cast_mut()) };
        // Release: partner of the kernel's acquire load of the tail when it picks a buffer.
        shared_tail.store(self.tail.get(), Ordering::Release);
    }

    /// A completion carried buffer `id` with `len_bytes` in it.
    pub(super) fn carried(self: &Rc<Self>, id: u16, len_bytes: usize) -> RingBuffer {
        assert!(len_bytes <= self.each_bytes as usize, "the kernel fills what it was offered");
        self.away.set(self.away.get() + 1);
        RingBuffer { buffers: Rc::clone(self), start: self.at(id), len_bytes, id }
    }
}

/// One filled buffer; offered to the kernel again on drop.
pub(crate) struct RingBuffer {
    buffers: Rc<ReceiveBuffers>,
    start: NonNull<u8>,
    len_bytes: usize,
    id: u16,
}

impl RingBuffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: len_bytes <= each_bytes from the buffer's start, inside `memory`, which
        // `buffers` keeps mapped; the kernel does not write it before `drop` offers it again.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len_bytes) }
    }
}

impl Drop for RingBuffer {
    fn drop(&mut self) {
        self.buffers.away.set(self.buffers.away.get() - 1);
        self.buffers.offer(self.id);
    }
}
