//! Every interleaving of the wake-up protocol.
