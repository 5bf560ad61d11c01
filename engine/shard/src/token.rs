//! What an operation's token means in a shard.
//!
//! Owns: the packing of a target into 64 bits. Never: the targets themselves.
//! Flow: whoever submits packs, dispatch unpacks.

use seedring_platform::op::Token;

use crate::{connections::Key, storage::files::FileId};

/// Whom a completion is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    Listener(u32),
    /// A connection's connect.
    Connect(Key),
    Receive(Key),
    Send(Key),
    Open(FileId),
    Identify(FileId),
    Read(u32),
    WriteOpen(u32),
    Allocate(u32),
    Write(u32),
    Sync(u32),
    /// Of the file of blocks of pieces in part: its open, a read, a write, a sync.
    Keep(Kept, u32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    Open,
    Read,
    Write,
    Sync,
}

const KIND_SHIFT: u32 = 60;

impl Target {
    pub fn token(self) -> Token {
        let (kind, value) = match self {
            Target::Listener(n) => (0, u64::from(n)),
            Target::Connect(key) => (1, key.0),
            Target::Receive(key) => (2, key.0),
            Target::Send(key) => (3, key.0),
            Target::Open(FileId(n)) => (4, u64::from(n)),
            Target::Identify(FileId(n)) => (5, u64::from(n)),
            Target::Read(n) => (6, u64::from(n)),
            Target::WriteOpen(n) => (7, u64::from(n)),
            Target::Allocate(n) => (8, u64::from(n)),
            Target::Write(n) => (9, u64::from(n)),
            Target::Sync(n) => (10, u64::from(n)),
            Target::Keep(what, n) => (11, (what as u64) << 32 | u64::from(n)),
        };
        debug_assert!(value < 1 << KIND_SHIFT);
        Token(kind << KIND_SHIFT | value)
    }

    pub fn of(token: Token) -> Target {
        let value = token.0 & ((1 << KIND_SHIFT) - 1);
        match token.0 >> KIND_SHIFT {
            0 => Target::Listener(value as u32),
            1 => Target::Connect(Key(value)),
            2 => Target::Receive(Key(value)),
            3 => Target::Send(Key(value)),
            4 => Target::Open(FileId(value as u32)),
            5 => Target::Identify(FileId(value as u32)),
            6 => Target::Read(value as u32),
            7 => Target::WriteOpen(value as u32),
            8 => Target::Allocate(value as u32),
            9 => Target::Write(value as u32),
            10 => Target::Sync(value as u32),
            11 => {
                let what = [Kept::Open, Kept::Read, Kept::Write, Kept::Sync];
                Target::Keep(what[(value >> 32) as usize], value as u32)
            }
            kind => panic!("a token of kind {kind}, which nobody makes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_brings_its_target_back() {
        let key = Key((0xfff_ffff << 32) | 0xffff_fffe);
        for target in [
            Target::Listener(3),
            Target::Connect(key),
            Target::Receive(key),
            Target::Send(key),
            Target::Open(FileId(u32::MAX)),
            Target::Identify(FileId(0)),
            Target::Read(77),
            Target::WriteOpen(1),
            Target::Allocate(2),
            Target::Write(3),
            Target::Sync(u32::MAX),
            Target::Keep(Kept::Open, 0),
            Target::Keep(Kept::Sync, u32::MAX),
        ] {
            assert_eq!(Target::of(target.token()), target);
        }
    }
}
