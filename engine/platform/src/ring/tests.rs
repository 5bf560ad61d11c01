//! What only the ring does.
