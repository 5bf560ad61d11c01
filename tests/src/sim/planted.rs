//! Bugs on purpose: a backend that does what a buggy shard or backend would.
//!
//! Owns: the planted bugs, one at a time. Never: is used but to show that the oracles find them.
//! Flow: shard -> oracle -> `Planted` -> simulator.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use seedring_platform::{
    descriptors::Socket,
    memory::Pool,
    op::{Completion, Io, Op, Outcome, Shutdown, Token},
    send_batch::SendBatch,
    wake::Waker,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    None,
    /// A send is reported twice.
    SentTwice,
    /// The end of a send never arrives.
    SentNever,
    /// One byte of every 40th read is another one (a read of the wrong place, a chunk reused).
    WrongByte,
    /// Every 40th read reads 512 bytes further on.
    WrongOffset,
    /// The shares of every 20th batch are held for ever.
    LeaseKept,
    /// The second half of a batch is sent without waiting for the first.
    TwoSends,
    /// A short send counts as a whole one: bytes are missing from the stream.
    ShortSendIgnored,
    /// A sync is reported without having been made.
    SyncSkipped,
    /// Every 20th write goes 512 bytes further on.
    WriteElsewhere,
}

impl Plant {
    pub const ALL: &'static [Plant] = &[
        Plant::SentTwice,
        Plant::SentNever,
        Plant::WrongByte,
        Plant::WrongOffset,
        Plant::LeaseKept,
        Plant::TwoSends,
        Plant::ShortSendIgnored,
    ];

    /// Those that only who writes can meet.
    pub const OF_WRITING: &'static [Plant] = &[Plant::SyncSkipped, Plant::WriteElsewhere];
}

pub struct Planted<I> {
    inner: I,
    plant: Plant,
    count: u64,
    #[allow(clippy::vec_box)]
    kept: Vec<Box<SendBatch>>,
    /// Syncs that `SyncSkipped` reports with the next reap.
    skipped: Vec<Completion>,
}

/// Batches that `LeaseKept` keeps.
const KEPT_MAX: usize = 8;

impl<I: Io> Planted<I> {
    pub fn new(inner: I, plant: Plant) -> Planted<I> {
        Planted { inner, plant, count: 0, kept: Vec::new(), skipped: Vec::new() }
    }

    fn every(&mut self, n: u64) -> bool {
        self.count += 1;
        self.count.is_multiple_of(n)
    }

    /// `None`: the completion is swallowed.
    fn alter(&mut self, mut completion: Completion) -> [Option<Completion>; 2] {
        let token = completion.token;
        match (&mut completion.outcome, self.plant) {
            (Outcome::Sent { result: Ok(n), batch: Some(_) }, Plant::SentTwice) => {
                let outcome = Outcome::Sent { result: Ok(*n), batch: Some(self.inner.batch()) };
                let again = self.every(30).then_some(Completion { token, outcome });
                [Some(completion), again]
            }
            (Outcome::Sent { batch: Some(_), .. }, Plant::SentNever) if self.every(30) => {
                [None, None]
            }
            (Outcome::Sent { result: Ok(n), batch: Some(batch) }, Plant::ShortSendIgnored) => {
                *n = batch.len_bytes();
                [Some(completion), None]
            }
            (Outcome::Sent { batch: Some(batch), .. }, Plant::LeaseKept) => {
                if self.count % 20 == 19 && self.kept.len() < KEPT_MAX {
                    self.kept.push(batch.remainder(0));
                }
                self.count += 1;
                [Some(completion), None]
            }
            (Outcome::Read { result: Ok(n), lease }, Plant::WrongByte) => {
                if self.count % 40 == 39 && *n > 0 {
                    lease[*n / 2] ^= 0x10;
                }
                self.count += 1;
                [Some(completion), None]
            }
            _ => [Some(completion), None],
        }
    }
}

impl<I: Io> Io for Planted<I> {
    fn now(&self) -> Duration {
        self.inner.now()
    }

    fn pool(&self) -> &Pool {
        self.inner.pool()
    }

    fn batch(&mut self) -> Box<SendBatch> {
        self.inner.batch()
    }

    fn recycle(&mut self, batch: Box<SendBatch>) {
        self.inner.recycle(batch);
    }

    fn submit(&mut self, mut op: Op) -> Result<(), Op> {
        if self.plant == Plant::WrongOffset
            && let Op::Read { offset, .. } = &mut op
            && self.every(40)
        {
            *offset += 512;
        }
        match &mut op {
            Op::Sync { token, .. } if self.plant == Plant::SyncSkipped => {
                let outcome = Outcome::Synced(Ok(()));
                self.skipped.push(Completion { token: *token, outcome });
                return Ok(());
            }
            Op::Write { offset, .. } if self.plant == Plant::WriteElsewhere && self.every(20) => {
                *offset += 512;
            }
            _ => {}
        }
        if self.plant == Plant::TwoSends
            && let Op::SendBatch { token, socket, batch, .. } = &op
            && batch.len_bytes() > 2
            && self.every(20)
        {
            let second = batch.remainder(batch.len_bytes() / 2);
            let (token, socket) = (*token, socket.clone());
            self.inner.submit(op)?;
            let second = Op::SendBatch { token, socket, batch: second, zero_copy: false };
            return self.inner.submit(second).or(Ok(()));
        }
        self.inner.submit(op)
    }

    fn cancel(&mut self, token: Token) {
        self.inner.cancel(token);
    }

    fn socket(&mut self, remote: SocketAddr, bind: Option<IpAddr>) -> io::Result<Socket> {
        self.inner.socket(remote, bind)
    }

    fn shutdown(&mut self, socket: &Socket, how: Shutdown) {
        self.inner.shutdown(socket, how);
    }

    fn reap(&mut self, completions: &mut Vec<Completion>, max: usize) {
        let before = completions.len();
        self.inner.reap(completions, max);
        completions.append(&mut self.skipped);
        if self.plant != Plant::None {
            let genuine: Vec<_> = completions.drain(before..).collect();
            for completion in genuine {
                completions.extend(self.alter(completion).into_iter().flatten());
            }
        }
    }

    fn wait(&mut self, until: Option<Duration>, pending: &dyn Fn() -> bool) {
        self.inner.wait(until, pending);
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.skipped.len()
    }
}
