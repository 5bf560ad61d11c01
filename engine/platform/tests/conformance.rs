//! The conformance suite on the ring.
