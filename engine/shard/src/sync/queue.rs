//! A queue with rtrb's interface and orderings whose positions loom interleaves.
//!
//! Owns: a ring of slots and its two positions, in models alone. Never: a built engine.
//! Flow: push: look at the head (Acquire), fill, publish the tail (Release); pop: the mirror image.

use std::sync::{Arc, Mutex};

use loom::sync::atomic::{AtomicUsize, Ordering};

pub(crate) struct RingBuffer<T> {
    /// A lock of the standard library: never contended, since loom runs one thread at a time, and
    /// invisible to loom, so that only the positions order what the slots hold.
    slots: Box<[Mutex<Option<T>>]>,
    /// Both only grow; a slot is a position modulo the capacity.
    head: AtomicUsize,
    tail: AtomicUsize,
}

pub(crate) struct Producer<T> {
    ring: Arc<RingBuffer<T>>,
    tail: usize,
}

pub(crate) struct Consumer<T> {
    ring: Arc<RingBuffer<T>>,
    head: usize,
}

#[derive(Debug)]
pub(crate) enum PushError<T> {
    Full(T),
}

#[derive(Debug)]
pub(crate) struct Empty;

impl<T> RingBuffer<T> {
    #[allow(clippy::new_ret_no_self)]
    pub(crate) fn new(capacity: usize) -> (Producer<T>, Consumer<T>) {
        let ring = Arc::new(RingBuffer {
            slots: (0..capacity).map(|_| Mutex::new(None)).collect(),
            head: AtomicUsize::new(0),
            tail: AtomicUsize::new(0),
        });
        (Producer { ring: Arc::clone(&ring), tail: 0 }, Consumer { ring, head: 0 })
    }

    fn slot(&self, position: usize) -> std::sync::MutexGuard<'_, Option<T>> {
        let slot = self.slots[position % self.slots.len()].try_lock();
        slot.expect("invariant: head and tail keep the two ends apart")
    }
}

impl<T> Producer<T> {
    pub(crate) fn push(&mut self, value: T) -> Result<(), PushError<T>> {
        if self.slots() == 0 {
            return Err(PushError::Full(value));
        }
        *self.ring.slot(self.tail) = Some(value);
        self.tail += 1;
        self.ring.tail.store(self.tail, Ordering::Release);
        Ok(())
    }

    pub(crate) fn slots(&self) -> usize {
        self.ring.slots.len() - (self.tail - self.ring.head.load(Ordering::Acquire))
    }
}

impl<T> Consumer<T> {
    pub(crate) fn pop(&mut self) -> Result<T, Empty> {
        if self.is_empty() {
            return Err(Empty);
        }
        let value = self.ring.slot(self.head).take().expect("invariant: filled before the tail");
        self.head += 1;
        self.ring.head.store(self.head, Ordering::Release);
        Ok(value)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == self.ring.tail.load(Ordering::Acquire)
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.ring) < 2
    }
}
