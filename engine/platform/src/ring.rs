//! The io_uring backend.
#![allow(dead_code)]
pub(crate) mod buffers;
