//! Owns: writing canonical bencode, to the byte, at the end of a buffer that the caller owns.
//! Never: reorders keys: a wrong order is this program's own fault, and asserted.
//! Flow: create makes .torrent files with it, wire its extension messages, tracker its replies.

use std::ops::Range;

/// Appends one or more values to a buffer.
///
/// ```
/// use seedring_proto::bencode::Encoder;
/// let mut out = Vec::new();
/// let mut encoder = Encoder::new(&mut out);
/// encoder.begin_dict().key("bar").str("spam").key("foo").int(42).end();
/// encoder.finish();
/// assert_eq!(out, b"d3:bar4:spam3:fooi42ee");
/// ```
#[derive(Debug)]
pub struct Encoder<'out> {
    out: &'out mut Vec<u8>,
    frames: Vec<Frame>,
}

#[derive(Debug)]
enum Frame {
    List,
    /// Where the key before lies in `out`, and whether it still has no value.
    Dict {
        last_key: Option<Range<usize>>,
        key_waits: bool,
    },
}

impl<'out> Encoder<'out> {
    pub fn new(out: &'out mut Vec<u8>) -> Self {
        Self { out, frames: Vec::new() }
    }

    pub fn int(&mut self, number: i64) -> &mut Self {
        self.value();
        self.out.push(b'i');
        self.out.extend_from_slice(number.to_string().as_bytes());
        self.out.push(b'e');
        self
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.value();
        self.string(bytes);
        self
    }

    pub fn str(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// A value that is encoded already, such as a kept `info` dictionary.
    pub fn raw(&mut self, encoded: &[u8]) -> &mut Self {
        self.value();
        self.out.extend_from_slice(encoded);
        self
    }

    pub fn begin_list(&mut self) -> &mut Self {
        self.value();
        self.out.push(b'l');
        self.frames.push(Frame::List);
        self
    }

    pub fn begin_dict(&mut self) -> &mut Self {
        self.value();
        self.out.push(b'd');
        self.frames.push(Frame::Dict { last_key: None, key_waits: false });
        self
    }

    /// The key of the next value; keys come in ascending order of their bytes.
    ///
    /// # Panics
    /// Outside a dictionary, after a key without value, or where the key is not the greatest yet.
    pub fn key(&mut self, key: impl AsRef<[u8]>) -> &mut Self {
        let key = key.as_ref();
        let Some(Frame::Dict { last_key, key_waits }) = self.frames.last_mut() else {
            panic!("a key is written inside a dictionary");
        };
        assert!(!*key_waits, "the key before has its value");
        let before = last_key.take();
        *key_waits = true;
        if let Some(before) = before {
            assert!(self.out[before] < *key, "keys are written in ascending order");
        }
        self.string(key);
        let written = self.out.len() - key.len()..self.out.len();
        if let Some(Frame::Dict { last_key, .. }) = self.frames.last_mut() {
            *last_key = Some(written);
        }
        self
    }

    /// Closes the list or dictionary begun last.
    ///
    /// # Panics
    /// Where none is open, or a key has no value.
    pub fn end(&mut self) -> &mut Self {
        match self.frames.pop() {
            Some(Frame::Dict { key_waits, .. }) => assert!(!key_waits, "every key has its value"),
            Some(Frame::List) => {}
            None => panic!("an open list or dictionary is ended"),
        }
        self.out.push(b'e');
        self
    }

    /// Says that everything begun was ended.
    ///
    /// # Panics
    /// Where it was not.
    pub fn finish(&self) {
        assert!(self.frames.is_empty(), "every list and dictionary was ended");
    }

    fn value(&mut self) {
        if let Some(Frame::Dict { key_waits, .. }) = self.frames.last_mut() {
            assert!(*key_waits, "a dictionary's value has a key");
            *key_waits = false;
        }
    }

    fn string(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes.len().to_string().as_bytes());
        self.out.push(b':');
        self.out.extend_from_slice(bytes);
    }
}
