//! Owns: the payload of ut_pex (BEP 11): who joined and who left, IPv4 and IPv6, with flags.
//! Never: keeps when a message came; that, and what may be told, is the peer's own state.
//! Flow: the receiving side parses into addresses fit to dial, the sending side encodes.

use std::net::{IpAddr, SocketAddr};

use crate::address::{
    COMPACT_V4_BYTES, COMPACT_V6_BYTES, exchangeable, from_compact, push_compact,
};
use crate::bencode::{Document, Encoder, Value};
use crate::wire::Violation;
use crate::wire::message::Message;

/// Contacts in `added` and `added6` together, and in `dropped` and `dropped6` together (BEP 11).
/// A first message may have more; what is over is cut, as from anybody.
pub const CONTACTS_MAX: usize = 50;

/// What the sender knows of a contact: one byte of `added.f`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Flags(pub u8);

impl Flags {
    /// It prefers encrypted connections.
    pub const ENCRYPTION: Self = Self(0x01);
    /// It is a seed, or wants nothing (BEP 21).
    pub const SEED: Self = Self(0x02);
    pub const UTP: Self = Self(0x04);
    /// It speaks ut_holepunch (BEP 55).
    pub const HOLEPUNCH: Self = Self(0x08);
    /// The sender dialled it, so it can be reached.
    pub const OUTGOING: Self = Self(0x10);

    /// Whether all of `other` are set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A peer that the sender is connected to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contact {
    pub address: SocketAddr,
    pub flags: Flags,
}

/// One message. Parsed ones hold at most [`CONTACTS_MAX`] of each kind, none of them twice.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PexMessage {
    pub added: Vec<Contact>,
    pub dropped: Vec<SocketAddr>,
}

impl PexMessage {
    /// Reads the payload after the extension number, from a peer at `teller`. Addresses that make
    /// no sense are left out; trailing bytes, flags that are missing and values of a wrong type
    /// are forgiven, since clients differ there.
    ///
    /// # Errors
    /// No bencode at the front.
    pub fn parse(payload: &[u8], teller: IpAddr) -> Result<Self, Violation> {
        let (document, _) = Document::parse_prefix(payload).map_err(Violation::PexMessage)?;
        let mut message = Self::default();
        let root = document.root();
        let families = [
            ("added", "added.f", "dropped", COMPACT_V4_BYTES),
            ("added6", "added6.f", "dropped6", COMPACT_V6_BYTES),
        ];
        for (added, flags, dropped, entry_bytes) in families {
            let flags = bytes_of(root, flags);
            for (at, entry) in bytes_of(root, added).chunks_exact(entry_bytes).enumerate() {
                let flags = Flags(flags.get(at).copied().unwrap_or(0));
                message.take_added(entry, flags, teller);
            }
            for entry in bytes_of(root, dropped).chunks_exact(entry_bytes) {
                message.take_dropped(entry, teller);
            }
        }
        Ok(message)
    }

    fn take_added(&mut self, entry: &[u8], flags: Flags, teller: IpAddr) {
        let address = from_compact(entry).and_then(|address| exchangeable(address, teller));
        let Some(address) = address else { return };
        let known = self.added.iter().any(|contact| contact.address == address);
        if !known && self.added.len() < CONTACTS_MAX {
            self.added.push(Contact { address, flags });
        }
    }

    fn take_dropped(&mut self, entry: &[u8], teller: IpAddr) {
        let address = from_compact(entry).and_then(|address| exchangeable(address, teller));
        let Some(address) = address else { return };
        if !self.dropped.contains(&address) && self.dropped.len() < CONTACTS_MAX {
            self.dropped.push(address);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.dropped.is_empty()
    }

    /// Appends the whole message under the number that the receiver chose. Lists that are empty
    /// are left out.
    pub fn encode(&self, receiver_id: u8, out: &mut Vec<u8>) {
        let mut payload = Vec::with_capacity(64 + self.added.len() * 19 + self.dropped.len() * 18);
        let mut dict = Encoder::new(&mut payload);
        dict.begin_dict();
        for (key, flags_key, v4) in [("added", "added.f", true), ("added6", "added6.f", false)] {
            let of_family = self.added.iter().filter(|contact| contact.address.is_ipv4() == v4);
            let flags: Vec<u8> = of_family.clone().map(|contact| contact.flags.0).collect();
            if !flags.is_empty() {
                let addresses = compact(of_family.map(|contact| contact.address));
                dict.key(key).bytes(&addresses).key(flags_key).bytes(&flags);
            }
        }
        for (key, v4) in [("dropped", true), ("dropped6", false)] {
            let of_family = self.dropped.iter().filter(|address| address.is_ipv4() == v4);
            let addresses = compact(of_family.copied());
            if !addresses.is_empty() {
                dict.key(key).bytes(&addresses);
            }
        }
        dict.end();
        dict.finish();
        Message::Extended { id: receiver_id, payload: &payload }.encode(out);
    }
}

fn compact(addresses: impl Iterator<Item = SocketAddr>) -> Vec<u8> {
    let mut bytes = Vec::new();
    addresses.for_each(|address| push_compact(address, &mut bytes));
    bytes
}

fn bytes_of<'buf>(root: Value<'_, 'buf>, key: &str) -> &'buf [u8] {
    root.dict_get(key).and_then(|value| value.as_bytes()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
