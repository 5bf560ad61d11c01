//! From a completion queue entry to the operation's outcome.
//!
//! Owns: which completion is an operation's last, what is armed again.
//! Never: flags of submissions (`entries`). Flow: `reap` pops an entry -> `complete` -> `ready`.

use std::io;

use io_uring::cqueue;

use super::{
    Ring, entries,
    queue::{Entry, buffer_of},
    work::{Accept, Receive, Work},
};
use crate::{
    descriptors::{self, Socket},
    files::{self, Step},
    op::{Completion, Outcome, Received, cancellation},
    receive::ReceivedInner,
    slots::SlotId,
};

/// In the result of a zero-copy notification: the kernel copied.
const NOTIF_USAGE_COPIED: u32 = 1 << 31;

fn result_of(entry: Entry) -> io::Result<usize> {
    usize::try_from(entry.result).map_err(|_| io::Error::from_raw_os_error(-entry.result))
}

impl Ring {
    pub(super) fn complete(&mut self, entry: Entry) {
        match entry.user_data {
            entries::WAKE => self.wake_armed = cqueue::more(entry.flags),
            // Whether the operation was found or had ended: its own completion says.
            entries::CANCEL => {}
            user_data => self.complete_slot(SlotId::from_user_data(user_data), entry),
        }
    }

    fn complete_slot(&mut self, id: SlotId, entry: Entry) {
        let work = self.slots.work_mut(id).expect("invariant: the kernel completes what it has");
        match work {
            Work::Accept(_) => self.accepted(id, entry),
            Work::Receive(_) => self.received(id, entry),
            Work::Send { .. } => self.sent(id, entry),
            Work::Release { .. } => self.released(id, entry),
            Work::File(_) => self.file_answered(id, entry),
            Work::Connect { .. } => self.connected(id, entry),
        }
    }

    fn say(&mut self, id: SlotId, outcome: Outcome) {
        let token = self.slots.token(id);
        self.ready.push_back(Completion { token, outcome });
    }

    fn connected(&mut self, id: SlotId, entry: Entry) {
        let Work::Connect { socket, .. } = self.slots.vacate(id) else {
            unreachable!("invariant: the caller matched a connect")
        };
        let result = result_of(entry).map(|_| descriptors::connected(&socket));
        self.say(id, Outcome::Connected(result));
    }

    fn file_answered(&mut self, id: SlotId, entry: Entry) {
        let token = self.slots.token(id);
        let Work::File(work) = self.slots.vacate(id) else {
            unreachable!("invariant: the caller matched an operation on a file")
        };
        let outcome = match work.step(entry.result) {
            Step::Done(outcome) => outcome,
            Step::Again(work) if !self.draining => {
                let id = self.slots.occupy(token, Work::File(work));
                return self.arm(id);
            }
            // Only opens have several steps.
            Step::Again(_) => Outcome::Opened(Err(cancellation())),
        };
        self.ready.push_back(Completion { token, outcome });
    }

    fn accepted(&mut self, id: SlotId, entry: Entry) {
        let more = cqueue::more(entry.flags);
        match result_of(entry) {
            Ok(_) => {
                let socket = Socket::from_os(files::adopt(entry.result));
                // A peer that left meanwhile has no address: nobody is there to hear of it.
                if let Ok(address) = descriptors::peer_addr(&socket) {
                    self.say(id, Outcome::Accepted(Ok((socket, address))));
                }
                if more {
                    return;
                }
                let goes_on = matches!(
                    self.slots.work_mut(id),
                    Some(Work::Accept(Accept { cancelled: false, .. }))
                );
                if goes_on && !self.draining {
                    self.arm(id);
                    return;
                }
                self.slots.vacate(id);
                self.say(id, Outcome::AcceptEnded(cancellation()));
            }
            Err(error) => {
                debug_assert!(!more, "an accept that failed is over");
                self.slots.vacate(id);
                if descriptors::accepts_again(&error) {
                    let same = io::Error::from_raw_os_error(-entry.result);
                    self.say(id, Outcome::Accepted(Err(same)));
                }
                self.say(id, Outcome::AcceptEnded(error));
            }
        }
    }

    fn received(&mut self, id: SlotId, entry: Entry) {
        let more = cqueue::more(entry.flags);
        let Some(Work::Receive(Receive { once, bulk, cancelled, armed, .. })) =
            self.slots.work_mut(id)
        else {
            unreachable!("invariant: the caller matched a receive")
        };
        let buffers = if *bulk { &self.bulk } else { &self.buffers };
        // Taken even where nothing was received: some kernels hand a buffer out with a failure.
        let buffer =
            buffer_of(entry).map(|buffer| buffers.carried(buffer, entry.result.max(0) as usize));
        let (once, cancelled) = (*once, *cancelled || self.draining);
        *armed = more;
        match result_of(entry) {
            Ok(0) => {
                debug_assert!(!more, "the stream's end is the receive's end");
                self.slots.vacate(id);
                self.say(id, Outcome::Received(Ok(Received::from_vec(Vec::new()))));
            }
            Ok(_) => {
                let inner = ReceivedInner::Ring(buffer.expect("invariant: bytes lie in a buffer"));
                if once {
                    self.slots.vacate(id);
                }
                self.say(id, Outcome::Received(Ok(Received { inner })));
                if once || more {
                    return;
                }
                // The kernel ended a multishot early: an overflown completion queue, a fair turn.
                if cancelled {
                    self.slots.vacate(id);
                    self.say(id, Outcome::Received(Err(cancellation())));
                } else {
                    self.arm(id);
                }
            }
            Err(_) if entry.result == -libc::ENOBUFS && !cancelled => {
                self.starved_total += u64::from(!buffers.grow());
                self.starved.push_back(id);
            }
            Err(error) => {
                let error = if entry.result == -libc::ENOBUFS { cancellation() } else { error };
                self.slots.vacate(id);
                self.say(id, Outcome::Received(Err(error)));
            }
        }
    }

    fn sent(&mut self, id: SlotId, entry: Entry) {
        assert!(!cqueue::notif(entry.flags), "a send's result comes before its notification");
        let result = result_of(entry);
        if cqueue::more(entry.flags) {
            // The socket took it; the pages are the kernel's until the notification. The
            // descriptor is not needed for that and must not be held open by it.
            let Some(Work::Send { batch, .. }) = self.slots.take(id) else {
                unreachable!("invariant: the caller matched a send")
            };
            self.slots.put(id, Work::Release { batch });
            self.say(id, Outcome::Sent { result, batch: None });
        } else {
            let Work::Send { batch, .. } = self.slots.vacate(id) else {
                unreachable!("invariant: the caller matched a send")
            };
            self.say(id, Outcome::Sent { result, batch: Some(batch) });
        }
    }

    fn released(&mut self, id: SlotId, entry: Entry) {
        assert!(cqueue::notif(entry.flags), "only the notification is left");
        let Work::Release { batch } = self.slots.vacate(id) else {
            unreachable!("invariant: the caller matched a release")
        };
        let copied = entry.result as u32 & NOTIF_USAGE_COPIED != 0;
        self.say(id, Outcome::Released { batch, copied });
    }
}
