//! Memory that received bytes lie in, used again and again.
//!
//! Owns: the buffers that nobody holds. Never: which socket they are for.
//! Flow: `take` -> filled by a receive -> `Received` -> dropped -> kept for the next.

use std::{cell::RefCell, rc::Rc};

/// Buffers kept; more are given back to the allocator.
const KEPT_MAX: usize = 64;

pub(super) struct Buffers {
    kept: RefCell<Vec<Box<[u8]>>>,
    each_bytes: usize,
}

impl Buffers {
    pub(super) fn new(each_bytes: usize) -> Rc<Buffers> {
        Rc::new(Buffers { kept: RefCell::default(), each_bytes })
    }

    pub(super) fn take(self: &Rc<Self>) -> Buffer {
        let kept = self.kept.borrow_mut().pop();
        let bytes = kept.unwrap_or_else(|| vec![0; self.each_bytes].into_boxed_slice());
        Buffer { bytes, filled: 0, home: Rc::clone(self) }
    }
}

/// One buffer; kept again on drop.
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    filled: usize,
    home: Rc<Buffers>,
}

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub(super) fn filled(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes.len(), "{bytes} bytes in {}", self.bytes.len());
        self.filled = bytes;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut kept = self.home.kept.borrow_mut();
        if kept.len() < KEPT_MAX {
            kept.push(std::mem::take(&mut self.bytes));
        }
    }
}
