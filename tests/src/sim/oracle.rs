//! The promises of the seam, checked around any backend.
//!
//! Owns: what each operation still owes, where leases are, what batches held. Never: changes what
//! passes through. Flow: shard -> `Checked` -> backend, and back; a broken promise is a violation.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use seedring_platform::{
    descriptors::Socket,
    memory::Pool,
    op::{Completion, Io, Op, Outcome, Shutdown, Token},
    send_batch::SendBatch,
    wake::Waker,
};

use super::rng::mix;

/// What was found; shared with who judges the run.
pub type Findings = Rc<RefCell<Vec<String>>>;

const FINDINGS_MAX: usize = 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owed {
    /// `failed`: it reported an error and owes its ending next.
    Accept {
        failed: bool,
    },
    Connect,
    ReceiveOnce,
    Receive,
    Send {
        length: usize,
        zero_copy: bool,
        hash: u64,
    },
    Release {
        hash: u64,
    },
    Open,
    Identify,
    Read {
        address: usize,
        length: u32,
    },
    Write {
        length: usize,
        hash: u64,
    },
    Sync,
    Allocate,
}

/// A backend whose every completion is held against what was submitted.
pub struct Checked<I> {
    inner: I,
    owed: BTreeMap<Token, Vec<Owed>>,
    /// Memory that a read writes to: start and end.
    written: BTreeMap<usize, usize>,
    findings: Findings,
}

fn hash<'a>(slices: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut hash = 0x5bd1_e995;
    for slice in slices {
        for &byte in slice.iter().step_by(61).chain(slice.last()) {
            hash = mix(hash ^ u64::from(byte));
        }
        hash ^= slice.len() as u64;
    }
    hash
}

impl<I: Io> Checked<I> {
    pub fn new(inner: I) -> Checked<I> {
        let findings = Findings::default();
        Checked { inner, owed: BTreeMap::new(), written: BTreeMap::new(), findings }
    }

    pub fn inner(&self) -> &I {
        &self.inner
    }

    pub fn inner_mut(&mut self) -> &mut I {
        &mut self.inner
    }

    pub fn findings(&self) -> Findings {
        self.findings.clone()
    }

    /// Everything must be home: operations, leases.
    pub fn finish(&mut self) {
        for (token, owed) in std::mem::take(&mut self.owed) {
            self.found(format!("{token:?} never completed: {owed:?}"));
        }
        let leased = self.inner.pool().leased_bytes();
        if leased > 0 {
            self.found(format!("{leased} bytes of leases did not come home"));
        }
    }

    fn found(&self, text: String) {
        let mut findings = self.findings.borrow_mut();
        if findings.len() < FINDINGS_MAX {
            findings.push(text);
        }
    }

    fn note(&mut self, op: &Op) -> (Token, Owed) {
        match op {
            Op::Accept { token, .. } => (*token, Owed::Accept { failed: false }),
            Op::Connect { token, .. } => (*token, Owed::Connect),
            Op::ReceiveOnce { token, .. } => (*token, Owed::ReceiveOnce),
            Op::Receive { token, .. } => (*token, Owed::Receive),
            Op::SendBatch { token, batch, zero_copy, .. } => {
                self.check_unwritten(*token, batch.slices());
                let (length, hash) = (batch.len_bytes(), hash(batch.slices()));
                (*token, Owed::Send { length, zero_copy: *zero_copy, hash })
            }
            Op::Open { token, .. } => (*token, Owed::Open),
            Op::Identify { token, .. } => (*token, Owed::Identify),
            Op::Read { token, length, lease, .. } => {
                let address = lease.as_ptr() as usize;
                if self.written.insert(address, address + lease.len()).is_some() {
                    self.found(format!("{token:?} reads into a lease that is in flight"));
                }
                (*token, Owed::Read { address, length: *length })
            }
            Op::Write { token, batch, .. } => {
                self.check_unwritten(*token, batch.slices());
                let (length, hash) = (batch.len_bytes(), hash(batch.slices()));
                (*token, Owed::Write { length, hash })
            }
            Op::Sync { token, .. } => (*token, Owed::Sync),
            Op::Allocate { token, .. } => (*token, Owed::Allocate),
        }
    }

    fn check_unwritten<'a>(&self, token: Token, slices: impl Iterator<Item = &'a [u8]>) {
        for slice in slices {
            let start = slice.as_ptr() as usize;
            let before = self.written.range(..start + slice.len()).next_back();
            if before.is_some_and(|(_, &end)| end > start) {
                self.found(format!("{token:?} sends or writes memory that a read writes to"));
            }
        }
    }

    /// Takes the first operation of this token that fits.
    fn settle(&mut self, token: Token, fits: impl Fn(&Owed) -> bool, what: &str) -> Option<Owed> {
        let owed = self.owed.get_mut(&token);
        let found = owed.and_then(|owed| {
            let at = owed.iter().position(fits)?;
            Some(owed.swap_remove(at))
        });
        if found.is_none() {
            self.found(format!("{token:?}: a completion that nobody is owed: {what}"));
        } else if self.owed.get(&token).is_some_and(Vec::is_empty) {
            self.owed.remove(&token);
        }
        found
    }

    fn owe(&mut self, token: Token, owed: Owed) {
        self.owed.entry(token).or_default().push(owed);
    }

    fn check(&mut self, completion: &Completion) {
        let token = completion.token;
        match &completion.outcome {
            Outcome::Accepted(result) => {
                let open = |owed: &Owed| *owed == Owed::Accept { failed: false };
                if self.settle(token, open, "Accepted").is_some() {
                    self.owe(token, Owed::Accept { failed: result.is_err() });
                }
            }
            Outcome::AcceptEnded(_) => {
                self.settle(token, |owed| matches!(owed, Owed::Accept { .. }), "AcceptEnded");
            }
            Outcome::Connected(_) => {
                self.settle(token, |owed| *owed == Owed::Connect, "Connected");
            }
            Outcome::Received(result) => {
                let receives = |owed: &Owed| matches!(owed, Owed::Receive | Owed::ReceiveOnce);
                let found = self.settle(token, receives, "Received");
                let goes_on = result.as_ref().is_ok_and(|bytes| !bytes.is_empty());
                if found == Some(Owed::Receive) && goes_on {
                    self.owe(token, Owed::Receive);
                }
            }
            Outcome::Sent { result, batch } => self.check_sent(token, result, batch.as_deref()),
            Outcome::Released { batch, .. } => {
                // Several batches of one token may be out, and come home in any order.
                let now = hash(batch.slices());
                let what = "Released, with bytes that no batch in flight had";
                self.settle(token, |owed| *owed == Owed::Release { hash: now }, what);
            }
            Outcome::Opened(_) => {
                self.settle(token, |owed| *owed == Owed::Open, "Opened");
            }
            Outcome::Identified(_) => {
                self.settle(token, |owed| *owed == Owed::Identify, "Identified");
            }
            Outcome::Read { result, lease } => {
                let at = lease.as_ptr() as usize;
                let same =
                    |owed: &Owed| matches!(owed, Owed::Read { address, .. } if *address == at);
                self.written.remove(&at);
                if let Some(Owed::Read { length, .. }) = self.settle(token, same, "Read")
                    && result.as_ref().is_ok_and(|&n| n > length as usize)
                {
                    self.found(format!("{token:?}: more was read than was asked for"));
                }
            }
            Outcome::Written { result, batch } => {
                let now = hash(batch.slices());
                let same = |owed: &Owed| matches!(owed, Owed::Write { hash, .. } if *hash == now);
                let what = "Written, with bytes that no batch in flight had";
                if let Some(Owed::Write { length, .. }) = self.settle(token, same, what)
                    && result.as_ref().is_ok_and(|&n| n == 0 || n > length)
                {
                    self.found(format!("{token:?}: {result:?} written of {length}"));
                }
            }
            Outcome::Synced(_) => {
                self.settle(token, |owed| *owed == Owed::Sync, "Synced");
            }
            Outcome::Allocated(_) => {
                self.settle(token, |owed| *owed == Owed::Allocate, "Allocated");
            }
        }
    }

    fn check_sent(
        &mut self,
        token: Token,
        result: &std::io::Result<usize>,
        batch: Option<&SendBatch>,
    ) {
        let sends = |owed: &Owed| matches!(owed, Owed::Send { .. });
        let Some(Owed::Send { length, zero_copy, hash: then }) = self.settle(token, sends, "Sent")
        else {
            return;
        };
        if result.as_ref().is_ok_and(|&n| n == 0 || n > length) {
            self.found(format!("{token:?}: {result:?} sent of {length}"));
        }
        match batch {
            Some(batch) if hash(batch.slices()) != then => {
                self.found(format!("{token:?}: the batch changed while it was in flight"));
            }
            Some(_) => {}
            None if zero_copy => self.owe(token, Owed::Release { hash: then }),
            None => self.found(format!("{token:?}: a copied batch did not come back")),
        }
    }
}

impl<I: Io> Io for Checked<I> {
    fn now(&self) -> Duration {
        self.inner.now()
    }

    fn pool(&self) -> &Pool {
        self.inner.pool()
    }

    fn batch(&mut self) -> Box<SendBatch> {
        let batch = self.inner.batch();
        if !batch.is_empty() {
            self.found("a fresh batch holds bytes".into());
        }
        batch
    }

    fn recycle(&mut self, batch: Box<SendBatch>) {
        self.inner.recycle(batch);
    }

    fn submit(&mut self, op: Op) -> Result<(), Op> {
        let (token, owed) = self.note(&op);
        let result = self.inner.submit(op);
        match (&result, owed) {
            (Ok(()), owed) => self.owe(token, owed),
            (Err(_), Owed::Read { address, .. }) => {
                self.written.remove(&address);
            }
            (Err(_), _) => {}
        }
        result
    }

    fn cancel(&mut self, token: Token) {
        self.inner.cancel(token);
    }

    fn socket(&mut self, remote: SocketAddr, bind: Option<IpAddr>) -> std::io::Result<Socket> {
        self.inner.socket(remote, bind)
    }

    fn shutdown(&mut self, socket: &Socket, how: Shutdown) {
        self.inner.shutdown(socket, how);
    }

    fn reap(&mut self, completions: &mut Vec<Completion>, max: usize) {
        let before = completions.len();
        self.inner.reap(completions, max);
        if completions.len() > before + max {
            self.found(format!("{} completions, at most {max} asked for", completions.len()));
        }
        for completion in &completions[before..] {
            self.check(completion);
        }
        let owed: usize = self.owed.values().map(Vec::len).sum();
        if owed != self.inner.in_flight() {
            let in_flight = self.inner.in_flight();
            self.found(format!("{owed} completions are owed, {in_flight} operations in flight"));
        }
    }

    fn wait(&mut self, until: Option<Duration>, pending: &dyn Fn() -> bool) {
        self.inner.wait(until, pending);
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }
}
