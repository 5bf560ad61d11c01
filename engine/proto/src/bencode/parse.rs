//! Owns: the walk over the bytes that makes the tape, with every check of the grammar.
//! Never: recurses; keeps more than one frame a level and one token a value.
//! Flow: called by `Document`; what it accepts, the values above it read without checking again.

use super::{DEPTH_MAX, Error, ErrorKind, TOKENS_MAX, Token};

pub(super) struct Tape {
    pub tokens: Vec<Token>,
    /// One past the last byte of the value.
    pub end: usize,
    pub unsorted_key: Option<usize>,
}

/// An open container.
struct Frame {
    token: usize,
    /// Lists expect values only.
    is_dict: bool,
    /// A key was read and its value was not.
    key_waits: bool,
    /// Token of the key before, to check the order.
    last_key: Option<usize>,
    sorted: bool,
}

struct Parser<'buf> {
    bytes: &'buf [u8],
    at: usize,
    tokens: Vec<Token>,
    frames: Vec<Frame>,
    unsorted_key: Option<usize>,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Tape, Error> {
    if u32::try_from(bytes.len()).is_err() {
        return Err(Error { offset: 0, kind: ErrorKind::TooLarge });
    }
    let (tokens, frames) = (Vec::new(), Vec::new());
    let mut parser = Parser { bytes, at: 0, tokens, frames, unsorted_key: None };
    // Each turn consumes at least one byte, so the loop is bounded by the input.
    loop {
        parser.step()?;
        if parser.frames.is_empty() {
            break;
        }
    }
    Ok(Tape { tokens: parser.tokens, end: parser.at, unsorted_key: parser.unsorted_key })
}

impl Parser<'_> {
    /// Reads one string or integer, or opens or closes one container.
    fn step(&mut self) -> Result<(), Error> {
        let start = self.at;
        let byte = self.peek()?;
        let expects_key = self.frames.last().is_some_and(|top| top.is_dict && !top.key_waits);
        if expects_key && byte != b'e' && !byte.is_ascii_digit() {
            return Err(self.error(start, ErrorKind::ExpectedKey));
        }
        match byte {
            b'0'..=b'9' => {
                let text = self.string()?;
                self.push(start, text)?;
                if expects_key {
                    return self.key_read();
                }
            }
            b'i' => {
                self.integer()?;
                self.push(start, 0)?;
            }
            b'l' | b'd' => return self.open(byte == b'd'),
            b'e' if !self.frames.is_empty() => return self.close(),
            _ => return Err(self.error(start, ErrorKind::ExpectedValue)),
        }
        self.value_read();
        Ok(())
    }

    fn open(&mut self, is_dict: bool) -> Result<(), Error> {
        if self.frames.len() == DEPTH_MAX {
            return Err(self.error(self.at, ErrorKind::TooDeep));
        }
        let start = self.at;
        self.at += 1;
        let token = self.tokens.len();
        self.push(start, 0)?;
        self.frames.push(Frame { token, is_dict, key_waits: false, last_key: None, sorted: true });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Error> {
        let top = self.frames.pop().expect("invariant: the caller saw an open container");
        if top.key_waits {
            return Err(self.error(self.at, ErrorKind::MissingValue));
        }
        self.at += 1;
        let next = self.tokens.len() as u32;
        self.tokens[top.token].end = self.at as u32;
        self.tokens[top.token].link = next;
        if !top.sorted {
            self.refuse_duplicates(top.token)?;
        }
        self.value_read();
        Ok(())
    }

    /// The value just read was a list's item, or what a key waited for.
    fn value_read(&mut self) {
        if let Some(top) = self.frames.last_mut() {
            top.key_waits = false;
        }
    }

    /// The string just read is a key: it must differ from its neighbour, and should be greater.
    fn key_read(&mut self) -> Result<(), Error> {
        let this = self.tokens.len() - 1;
        let top = self.frames.last_mut().expect("invariant: keys are read inside a dictionary");
        let before = top.last_key.replace(this);
        top.key_waits = true;
        let Some(before) = before else { return Ok(()) };
        let start = self.tokens[this].start as usize;
        match self.text(before).cmp(self.text(this)) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => return Err(self.error(start, ErrorKind::DuplicateKey)),
            std::cmp::Ordering::Greater => {
                self.unsorted_key.get_or_insert(start);
                self.frames.last_mut().expect("invariant: as above").sorted = false;
            }
        }
        Ok(())
    }

    /// In a dictionary in order neighbours tell; in any other all keys are sorted once, so that a
    /// million keys cost n log n and not n squared.
    fn refuse_duplicates(&self, dict: usize) -> Result<(), Error> {
        let mut keys = Vec::new();
        let end = self.tokens[dict].link as usize;
        let mut at = dict + 1;
        while at < end {
            keys.push(at);
            // A key's value: one token, or all up to a container's link.
            let value = self.tokens[at + 1];
            let contains = matches!(self.bytes[value.start as usize], b'l' | b'd');
            at = if contains { value.link as usize } else { at + 2 };
        }
        keys.sort_by(|a, b| self.text(*a).cmp(self.text(*b)));
        match keys.windows(2).find(|pair| self.text(pair[0]) == self.text(pair[1])) {
            Some(pair) => {
                let start = self.tokens[pair[1]].start as usize;
                Err(self.error(start, ErrorKind::DuplicateKey))
            }
            None => Ok(()),
        }
    }

    fn text(&self, token: usize) -> &[u8] {
        let token = self.tokens[token];
        &self.bytes[token.link as usize..token.end as usize]
    }

    fn push(&mut self, start: usize, link: usize) -> Result<(), Error> {
        if self.tokens.len() == TOKENS_MAX {
            return Err(self.error(start, ErrorKind::TooManyTokens));
        }
        // Lossless: the length of the input was checked to fit in an u32.
        self.tokens.push(Token { start: start as u32, end: self.at as u32, link: link as u32 });
        Ok(())
    }

    /// Passes over `<length>:<text>` and says where the text starts.
    fn string(&mut self) -> Result<usize, Error> {
        let start = self.at;
        let length = self.number(start)?;
        if self.peek()? != b':' {
            return Err(self.error(self.at, ErrorKind::ExpectedDigit));
        }
        self.at += 1;
        let text = self.at;
        let left = self.bytes.len() - text;
        match usize::try_from(length) {
            Ok(length) if length <= left => self.at += length,
            _ => return Err(self.error(start, ErrorKind::Truncated)),
        }
        Ok(text)
    }

    /// Passes over `i<number>e`.
    fn integer(&mut self) -> Result<(), Error> {
        let start = self.at;
        self.at += 1;
        let negative = self.peek()? == b'-';
        self.at += usize::from(negative);
        let magnitude = self.number(start)?;
        if self.peek()? != b'e' {
            return Err(self.error(self.at, ErrorKind::ExpectedDigit));
        }
        self.at += 1;
        if negative && magnitude == 0 {
            return Err(self.error(start, ErrorKind::NegativeZero));
        }
        let magnitude_max = i64::MAX as u64 + u64::from(negative);
        if magnitude > magnitude_max {
            return Err(self.error(start, ErrorKind::Overflow));
        }
        Ok(())
    }

    /// Passes over decimal digits; `start` is what an overflow is reported at.
    fn number(&mut self, start: usize) -> Result<u64, Error> {
        let first = self.at;
        let mut number: u64 = 0;
        loop {
            let byte = self.peek()?;
            if !byte.is_ascii_digit() {
                break;
            }
            number = number
                .checked_mul(10)
                .and_then(|tens| tens.checked_add(u64::from(byte - b'0')))
                .ok_or(self.error(start, ErrorKind::Overflow))?;
            self.at += 1;
        }
        match self.at - first {
            0 => Err(self.error(first, ErrorKind::ExpectedDigit)),
            1 => Ok(number),
            _ if self.bytes[first] == b'0' => Err(self.error(first, ErrorKind::LeadingZero)),
            _ => Ok(number),
        }
    }

    fn peek(&self) -> Result<u8, Error> {
        self.bytes.get(self.at).copied().ok_or(self.error(self.at, ErrorKind::Truncated))
    }

    fn error(&self, offset: usize, kind: ErrorKind) -> Error {
        Error { offset, kind }
    }
}
