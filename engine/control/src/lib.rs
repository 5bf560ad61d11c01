#![forbid(unsafe_code)]
//! The control plane.
