//! Owns: the payloads of the extension protocol: its handshake (BEP 10), ut_metadata (BEP 9) and
//! lt_donthave (BEP 54); ut_pex has a file of its own.
//! Never: keeps a payload, or trusts a number in it beyond its type.
//! Flow: the session parses what a peer said and encodes what we say, numbers as each side chose.

use std::net::IpAddr;

use crate::bencode::{Document, Encoder, Value};
use crate::units::PieceIndex;
use crate::wire::Violation;
use crate::wire::message::{Message, prefix};

/// Number of the extension handshake.
pub const HANDSHAKE: u8 = 0;
/// The number under which peers send us ut_metadata.
pub const UT_METADATA: u8 = 1;
/// The number under which peers will send us ut_pex (BEP 11).
pub const UT_PEX: u8 = 2;
/// The number under which peers will send us lt_donthave (BEP 54).
pub const LT_DONTHAVE: u8 = 3;
/// The highest number that our handshake gives: that of a session which also downloads, or only
/// uploads, without peer exchange.
pub const LOCAL_ID_MAX: u8 = LT_DONTHAVE;
pub const LOCAL_ID_MAX_UPLOADING: u8 = UT_METADATA;

/// Metadata travels in parts of this size, the last one shorter (BEP 9).
pub const METADATA_PIECE_BYTES: usize = 16384;

/// An extension handshake, ours or a peer's. What it does not say is `None`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ExtensionHandshake<'a> {
    /// The number under which the sender wants ut_metadata; `Some(0)` switches it off.
    pub ut_metadata: Option<u8>,
    /// The same for ut_pex.
    pub ut_pex: Option<u8>,
    /// The same for lt_donthave.
    pub lt_donthave: Option<u8>,
    /// `v`: name and version of the client, as it was sent.
    pub client: Option<&'a [u8]>,
    /// `reqq`: requests that the sender queues without dropping.
    pub request_queue: Option<u32>,
    /// `yourip`: the receiver's address as the sender sees it.
    pub your_ip: Option<IpAddr>,
    /// `upload_only` (BEP 21): the sender wants nothing.
    pub upload_only: Option<bool>,
    /// `metadata_size`: bytes of the info dictionary; 0 and negative ones count as not said.
    pub metadata_bytes: Option<u32>,
    /// `p`: the sender's listening port.
    pub listen_port: Option<u16>,
}

impl<'a> ExtensionHandshake<'a> {
    /// Reads the payload after number 0. Values of a wrong type or range count as not said, since
    /// clients differ there; trailing bytes are accepted.
    ///
    /// # Errors
    /// No bencoded value, or one that is no dictionary.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Violation> {
        let (document, _) =
            Document::parse_prefix(payload).map_err(Violation::ExtensionHandshake)?;
        let mut said = Self::default();
        for (key, value) in document.root().dict_iter() {
            match key {
                b"m" => {
                    said.ut_metadata = value.dict_get("ut_metadata").and_then(number);
                    said.ut_pex = value.dict_get("ut_pex").and_then(number);
                    said.lt_donthave = value.dict_get("lt_donthave").and_then(number);
                }
                b"v" => said.client = value.as_bytes(),
                b"reqq" => said.request_queue = number(value),
                b"yourip" => said.your_ip = value.as_bytes().and_then(address),
                b"upload_only" => said.upload_only = value.as_int().map(|flag| flag != 0),
                b"metadata_size" => said.metadata_bytes = number(value).filter(|bytes| *bytes > 0),
                b"p" => said.listen_port = number(value).filter(|port| *port > 0),
                _ => {}
            }
        }
        Ok(said)
    }

    /// Appends the whole message, length prefix included.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut payload = Vec::with_capacity(160);
        let mut dict = Encoder::new(&mut payload);
        dict.begin_dict().key("m").begin_dict();
        let numbers = [
            ("lt_donthave", self.lt_donthave),
            ("ut_metadata", self.ut_metadata),
            ("ut_pex", self.ut_pex),
        ];
        for (name, id) in numbers {
            if let Some(id) = id {
                dict.key(name).int(i64::from(id));
            }
        }
        dict.end();
        if let Some(bytes) = self.metadata_bytes {
            dict.key("metadata_size").int(i64::from(bytes));
        }
        if let Some(port) = self.listen_port {
            dict.key("p").int(i64::from(port));
        }
        if let Some(requests) = self.request_queue {
            dict.key("reqq").int(i64::from(requests));
        }
        if let Some(flag) = self.upload_only {
            dict.key("upload_only").int(i64::from(flag));
        }
        if let Some(client) = self.client {
            dict.key("v").bytes(client);
        }
        match self.your_ip {
            Some(IpAddr::V4(ip)) => dict.key("yourip").bytes(&ip.octets()),
            Some(IpAddr::V6(ip)) => dict.key("yourip").bytes(&ip.octets()),
            None => &mut dict,
        };
        dict.end();
        dict.finish();
        Message::Extended { id: HANDSHAKE, payload: &payload }.encode(out);
    }
}

/// A ut_metadata message (BEP 9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetadataMessage<'a> {
    Request { piece: u32 },
    Data { piece: u32, total_bytes: u32, data: &'a [u8] },
    Reject { piece: u32 },
}

impl<'a> MetadataMessage<'a> {
    /// Reads the payload after the extension number. `None`: a kind that BEP 9 wants ignored, or
    /// numbers that make no sense.
    ///
    /// # Errors
    /// No bencode at the front.
    pub fn parse(payload: &'a [u8]) -> Result<Option<Self>, Violation> {
        let (document, data) =
            Document::parse_prefix(payload).map_err(Violation::MetadataMessage)?;
        let root = document.root();
        let field = |key: &str| root.dict_get(key);
        let Some(piece) = field("piece").and_then(number) else {
            return Ok(None);
        };
        Ok(match field("msg_type").and_then(|kind| kind.as_int()) {
            Some(0) => Some(Self::Request { piece }),
            Some(1) => field("total_size").and_then(number).map(|total_bytes| Self::Data {
                piece,
                total_bytes,
                data,
            }),
            Some(2) => Some(Self::Reject { piece }),
            _ => None,
        })
    }

    /// Appends the whole message under the number that the receiver chose.
    pub fn encode(&self, receiver_id: u8, out: &mut Vec<u8>) {
        let mut head = Vec::with_capacity(64);
        let (kind, piece, total_bytes, data) = match *self {
            Self::Request { piece } => (0, piece, None, &[][..]),
            Self::Data { piece, total_bytes, data } => (1, piece, Some(total_bytes), data),
            Self::Reject { piece } => (2, piece, None, &[][..]),
        };
        let mut dict = Encoder::new(&mut head);
        dict.begin_dict().key("msg_type").int(kind).key("piece").int(i64::from(piece));
        if let Some(bytes) = total_bytes {
            dict.key("total_size").int(i64::from(bytes));
        }
        dict.end();
        dict.finish();
        prefix(out, crate::wire::message::id::EXTENDED, 1 + head.len() + data.len());
        out.push(receiver_id);
        out.extend_from_slice(&head);
        out.extend_from_slice(data);
    }
}

/// lt_donthave (BEP 54): the sender lost a piece that it said it had. The payload is the piece's
/// index in 4 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DontHave(pub PieceIndex);

impl DontHave {
    /// Reads the payload after the extension number.
    ///
    /// # Errors
    /// Another length than 4.
    pub fn parse(payload: &[u8]) -> Result<Self, Violation> {
        let index = <[u8; 4]>::try_from(payload)
            .map_err(|_| Violation::DontHaveLength { got: payload.len() })?;
        Ok(Self(PieceIndex(u32::from_be_bytes(index))))
    }

    /// Appends the whole message under the number that the receiver chose.
    pub fn encode(self, receiver_id: u8, out: &mut Vec<u8>) {
        Message::Extended { id: receiver_id, payload: &self.0.0.to_be_bytes() }.encode(out);
    }
}

/// The part of the metadata that `piece` names.
pub fn metadata_piece(metadata: &[u8], piece: u32) -> Option<&[u8]> {
    let start = (piece as usize).checked_mul(METADATA_PIECE_BYTES)?;
    let end = metadata.len().min(start.saturating_add(METADATA_PIECE_BYTES));
    metadata.get(start..end).filter(|part| !part.is_empty())
}

fn number<T: TryFrom<i64>>(value: Value<'_, '_>) -> Option<T> {
    value.as_int().and_then(|number| T::try_from(number).ok())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
