//! Owns: bencode (BEP 3): a parsed document over borrowed bytes, its values, and the encoder.
//! Never: recurses, copies a string, or allocates for a length that is only claimed.
//! Flow: metainfo, extension messages and tracker replies read values; create and wire encode.
//!
//! A document is a flat tape of 12-byte tokens in the order of the bytes, so neither parsing nor
//! dropping recurses: nesting of 20,000 levels that ends other clients (rqbit #660) is one error
//! here. Strictness, where the BEP leaves doubt or real torrents break it:
//! - integers and lengths: no leading zero, no `-0`, no plus sign; integers fit in an `i64`;
//! - keys out of order are accepted, as libtorrent does, because torrents in the wild have them;
//!   [`Document::unsorted_key`] tells where the first one is;
//! - a key that is there twice is refused: two readers could see two different torrents.

mod encode;
mod parse;
#[cfg(test)]
mod tests;

pub use encode::Encoder;

/// Containers inside each other at most; libtorrent's bound, and real torrents stay under 10.
pub const DEPTH_MAX: usize = 100;
/// Values and keys in a document at most: 36 MB of tape, enough for 300,000 files 4 levels deep.
pub const TOKENS_MAX: usize = 3_000_000;

/// Why bytes are not bencode, and at which byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not valid bencode: {kind} at byte {offset}")]
pub struct Error {
    pub offset: usize,
    pub kind: ErrorKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    #[error("the data ends in the middle of a value")]
    Truncated,
    #[error("data follows the end of the value")]
    TrailingData,
    #[error("a value was expected (a digit, 'i', 'l' or 'd')")]
    ExpectedValue,
    #[error("a dictionary key was expected (a string)")]
    ExpectedKey,
    #[error("a dictionary key has no value")]
    MissingValue,
    #[error("a decimal digit was expected")]
    ExpectedDigit,
    #[error("a number has a leading zero")]
    LeadingZero,
    #[error("negative zero")]
    NegativeZero,
    #[error("a number does not fit in 64 bits")]
    Overflow,
    #[error("the same key is there twice in one dictionary")]
    DuplicateKey,
    #[error("more than {DEPTH_MAX} levels of nesting")]
    TooDeep,
    #[error("more than {TOKENS_MAX} values")]
    TooManyTokens,
    #[error("more than 4 GiB of data")]
    TooLarge,
}

/// One value of the tape. Its kind is the byte at `start`.
#[derive(Clone, Copy, Debug)]
struct Token {
    start: u32,
    /// One past the value's last byte.
    end: u32,
    /// Containers: index of the token after everything inside. Strings: where the text starts.
    link: u32,
}

/// A parsed document: the bytes it was made of, and where each value lies in them.
#[derive(Clone, Debug)]
pub struct Document<'buf> {
    bytes: &'buf [u8],
    tokens: Vec<Token>,
    unsorted_key: Option<usize>,
}

impl<'buf> Document<'buf> {
    /// Parses bytes that are one value and nothing else.
    ///
    /// # Errors
    /// The first thing that is not bencode, with its offset; see [`ErrorKind`].
    pub fn parse(bytes: &'buf [u8]) -> Result<Self, Error> {
        let (document, rest) = Self::parse_prefix(bytes)?;
        if rest.is_empty() {
            Ok(document)
        } else {
            let offset = bytes.len() - rest.len();
            Err(Error { offset, kind: ErrorKind::TrailingData })
        }
    }

    /// Parses one value at the front and gives back the bytes after it: in a BEP 9 data message
    /// the piece follows the dictionary.
    ///
    /// # Errors
    /// As [`Document::parse`], trailing data excepted.
    pub fn parse_prefix(bytes: &'buf [u8]) -> Result<(Self, &'buf [u8]), Error> {
        let tape = parse::parse(bytes)?;
        let rest = &bytes[tape.end..];
        let document = Self { bytes, tokens: tape.tokens, unsorted_key: tape.unsorted_key };
        Ok((document, rest))
    }

    /// The outermost value.
    pub fn root(&self) -> Value<'_, 'buf> {
        Value { bytes: self.bytes, tokens: &self.tokens, at: 0 }
    }

    /// Offset of the first dictionary key that is smaller than the one before it.
    pub fn unsorted_key(&self) -> Option<usize> {
        self.unsorted_key
    }
}

/// A value in a document. What it lends lives as long as the bytes, not the document.
#[derive(Clone, Copy)]
pub struct Value<'doc, 'buf> {
    bytes: &'buf [u8],
    tokens: &'doc [Token],
    at: usize,
}

/// The four kinds of value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Int,
    Bytes,
    List,
    Dict,
}

impl<'doc, 'buf> Value<'doc, 'buf> {
    fn token(&self) -> Token {
        self.tokens[self.at]
    }

    pub fn kind(&self) -> Kind {
        match self.bytes[self.token().start as usize] {
            b'i' => Kind::Int,
            b'l' => Kind::List,
            b'd' => Kind::Dict,
            _ => Kind::Bytes,
        }
    }

    /// Offset of the value's first byte in the document.
    pub fn offset(&self) -> usize {
        self.token().start as usize
    }

    /// The value as it was written, to the byte: what an info-hash is computed of.
    pub fn raw(&self) -> &'buf [u8] {
        let token = self.token();
        &self.bytes[token.start as usize..token.end as usize]
    }

    pub fn as_int(&self) -> Option<i64> {
        if self.kind() != Kind::Int {
            return None;
        }
        let raw = self.raw();
        let digits = std::str::from_utf8(&raw[1..raw.len() - 1]);
        digits.ok().and_then(|digits| digits.parse().ok())
    }

    pub fn as_bytes(&self) -> Option<&'buf [u8]> {
        let token = self.token();
        (self.kind() == Kind::Bytes).then(|| &self.bytes[token.link as usize..token.end as usize])
    }

    /// The string, if it is one and is UTF-8.
    pub fn as_str(&self) -> Option<&'buf str> {
        self.as_bytes().and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    pub fn is_dict(&self) -> bool {
        self.kind() == Kind::Dict
    }

    pub fn is_list(&self) -> bool {
        self.kind() == Kind::List
    }

    /// The items of a list; none where this is something else.
    pub fn list(&self) -> List<'doc, 'buf> {
        List { inside: self.inside(Kind::List) }
    }

    /// Keys and values of a dictionary in the order of the bytes; none where this is something
    /// else.
    pub fn dict_iter(&self) -> Dict<'doc, 'buf> {
        Dict { inside: self.inside(Kind::Dict) }
    }

    /// The value of a key. A walk over the keys: look up a bounded number of them.
    pub fn dict_get(&self, key: impl AsRef<[u8]>) -> Option<Value<'doc, 'buf>> {
        let key = key.as_ref();
        self.dict_iter().find(|(found, _)| *found == key).map(|(_, value)| value)
    }

    fn inside(&self, kind: Kind) -> Siblings<'doc, 'buf> {
        let end = if self.kind() == kind { self.token().link as usize } else { self.at + 1 };
        Siblings { bytes: self.bytes, tokens: self.tokens, at: self.at + 1, end }
    }
}

/// Values that follow each other in one container.
#[derive(Clone)]
struct Siblings<'doc, 'buf> {
    bytes: &'buf [u8],
    tokens: &'doc [Token],
    at: usize,
    end: usize,
}

impl<'doc, 'buf> Iterator for Siblings<'doc, 'buf> {
    type Item = Value<'doc, 'buf>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let value = Value { bytes: self.bytes, tokens: self.tokens, at: self.at };
        self.at = match value.kind() {
            Kind::Int | Kind::Bytes => self.at + 1,
            Kind::List | Kind::Dict => value.token().link as usize,
        };
        Some(value)
    }
}

/// See [`Value::list`].
#[derive(Clone)]
pub struct List<'doc, 'buf> {
    inside: Siblings<'doc, 'buf>,
}

impl<'doc, 'buf> Iterator for List<'doc, 'buf> {
    type Item = Value<'doc, 'buf>;

    fn next(&mut self) -> Option<Self::Item> {
        self.inside.next()
    }
}

/// See [`Value::dict_iter`].
#[derive(Clone)]
pub struct Dict<'doc, 'buf> {
    inside: Siblings<'doc, 'buf>,
}

impl<'doc, 'buf> Iterator for Dict<'doc, 'buf> {
    type Item = (&'buf [u8], Value<'doc, 'buf>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.inside.next()?.as_bytes()?;
        Some((key, self.inside.next()?))
    }
}

impl std::fmt::Debug for Value<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // One level only: printing must not recurse either.
        match self.kind() {
            Kind::Int => write!(f, "{}", self.raw().escape_ascii()),
            Kind::Bytes => write!(f, "\"{}\"", self.as_bytes().unwrap_or(b"").escape_ascii()),
            Kind::List => write!(f, "list of {} bytes", self.raw().len()),
            Kind::Dict => write!(f, "dictionary of {} bytes", self.raw().len()),
        }
    }
}
