//! Operations and completions in a word and a number, for the trace.
//!
//! Owns: what the trace says of them. Never: addresses or anything else that differs between runs.
//! Flow: submit and reap note it.

use std::io;

use seedring_platform::op::{Op, Outcome, Token};

pub(super) fn describe(op: &Op) -> (&'static str, Token, i64) {
    match op {
        Op::Accept { token, .. } => ("submit accept", *token, 0),
        Op::Connect { token, .. } => ("submit connect", *token, 0),
        Op::ReceiveOnce { token, .. } => ("submit receive once", *token, 0),
        Op::Receive { token, .. } => ("submit receive", *token, 0),
        Op::SendBatch { token, batch, .. } => ("submit send", *token, batch.len_bytes() as i64),
        Op::Open { token, .. } => ("submit open", *token, 0),
        Op::Identify { token, .. } => ("submit identify", *token, 0),
        Op::Read { token, offset, .. } => ("submit read", *token, *offset as i64),
        Op::Write { token, offset, .. } => ("submit write", *token, *offset as i64),
        Op::Sync { token, data_only, .. } => ("submit sync", *token, i64::from(*data_only)),
        Op::Allocate { token, length_bytes, .. } => {
            ("submit allocate", *token, *length_bytes as i64)
        }
    }
}

fn value<T>(result: &io::Result<T>, ok: impl Fn(&T) -> i64) -> i64 {
    match result {
        Ok(found) => ok(found),
        Err(error) => -i64::from(error.raw_os_error().unwrap_or(1)),
    }
}

pub(super) fn describe_outcome(outcome: &Outcome) -> (&'static str, i64) {
    match outcome {
        Outcome::Accepted(result) => ("accepted", value(result, |_| 0)),
        Outcome::AcceptEnded(error) => {
            ("accept ended", -i64::from(error.raw_os_error().unwrap_or(1)))
        }
        Outcome::Connected(result) => ("connected", value(result, |()| 0)),
        Outcome::Received(result) => ("received", value(result, |bytes| bytes.len() as i64)),
        Outcome::Sent { result, .. } => ("sent", value(result, |&n| n as i64)),
        Outcome::Released { copied, .. } => ("released", i64::from(*copied)),
        Outcome::Opened(result) => ("opened", value(result, |_| 0)),
        Outcome::Identified(result) => ("identified", value(result, |i| i.size_bytes as i64)),
        Outcome::Read { result, .. } => ("read", value(result, |&n| n as i64)),
        Outcome::Written { result, .. } => ("written", value(result, |&n| n as i64)),
        Outcome::Synced(result) => ("synced", value(result, |()| 0)),
        Outcome::Allocated(result) => ("allocated", value(result, |()| 0)),
    }
}
