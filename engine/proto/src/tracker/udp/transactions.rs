//! Transaction ids.
//!
//! Owns: which are open, and for what. Never: gives one out that is open already, or that somebody
//! who saw others could foresee.
//! Flow: [`super::exchanges`] opens one a request, and finds with it what a datagram answers.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;

use sha2::{Digest, Sha256};

/// Ties an answer to its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransactionId(pub u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Connect(SocketAddr),
    Announce(super::exchanges::ExchangeId),
}

/// SHA-256 over a secret and a count.
#[derive(Debug)]
pub(super) struct Transactions {
    seed: [u8; 32],
    count: u64,
    open: HashMap<TransactionId, Owner>,
}

impl Transactions {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, count: 0, open: HashMap::new() }
    }

    pub(super) fn open(&mut self, owner: Owner) -> TransactionId {
        loop {
            self.count += 1;
            let hash = Sha256::new_with_prefix(self.seed).chain_update(self.count.to_be_bytes());
            let hash = hash.finalize();
            let id = TransactionId(u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]));
            if let Entry::Vacant(place) = self.open.entry(id) {
                place.insert(owner);
                return id;
            }
        }
    }

    pub(super) fn owner(&self, id: TransactionId) -> Option<Owner> {
        self.open.get(&id).copied()
    }

    pub(super) fn close(&mut self, id: TransactionId) {
        self.open.remove(&id);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_reproduces_and_ids_differ() {
        let (mut a, mut b) = (Transactions::new([1; 32]), Transactions::new([1; 32]));
        let first = a.open(Owner::Announce(1));
        assert_eq!(first, b.open(Owner::Announce(1)));
        assert_ne!(first, Transactions::new([2; 32]).open(Owner::Announce(1)));
        assert_ne!(first, a.open(Owner::Announce(2)));
        assert_eq!(a.owner(first), Some(Owner::Announce(1)));
        a.close(first);
        assert_eq!((a.owner(first), a.len()), (None, 1));
    }
}
