//! Completions to those whom they are for.
//!
//! Owns: the one place where a token is opened. Never: what is done about it.
//! Flow: reap -> dispatch -> greet, receive, send, storage.

use seedring_platform::op::{Completion, Io, Outcome};

use crate::{
    connections::{Key, Stage},
    contract::Event,
    shard::Shard,
    storage::News,
    token::{Kept, Target},
};

impl<I: Io> Shard<I> {
    pub(crate) fn dispatch(&mut self, completion: Completion) {
        match (Target::of(completion.token), completion.outcome) {
            (Target::Listener(_), Outcome::Accepted(Ok((socket, address)))) => {
                self.accepted(socket, address);
            }
            (Target::Listener(_), Outcome::Accepted(Err(error))) => {
                self.tell(Event::AcceptFailed(error));
            }
            (Target::Listener(n), Outcome::AcceptEnded(_)) => self.accept_ended(n),
            (Target::Connect(key), Outcome::Connected(result)) => {
                self.operation_ended(key);
                self.connected(key, result);
            }
            (Target::Receive(key), Outcome::Received(result)) => self.received(key, result),
            (Target::Send(key), Outcome::Sent { result, batch }) => {
                self.sent(key, result, batch);
            }
            (Target::Send(key), Outcome::Released { batch, copied }) => {
                self.released(key, batch, copied);
            }
            (Target::Open(file), Outcome::Opened(result)) => {
                self.storage.opened(&mut self.io, file, result, &mut self.news);
            }
            (Target::Identify(file), Outcome::Identified(result)) => {
                self.storage.identified(&mut self.io, file, result, &mut self.news);
            }
            (Target::Read(slot), Outcome::Read { result, lease }) => {
                let (io, stats, news) = (&mut self.io, &mut self.stats, &mut self.news);
                self.storage.read(io, stats, slot, result, lease, news);
            }
            (Target::WriteOpen(file), Outcome::Opened(result)) => {
                self.opened_to_write(file, result);
            }
            (Target::Allocate(file), Outcome::Allocated(result)) => self.allocated(file, result),
            (Target::Write(slot), Outcome::Written { result, batch }) => {
                self.written(slot, result, batch);
            }
            (Target::Sync(file), Outcome::Synced(result)) => self.synced(file, result),
            (Target::Keep(Kept::Open, id), Outcome::Opened(result)) => self.kept_opened(id, result),
            (Target::Keep(Kept::Read, slot), Outcome::Read { result, lease }) => {
                self.kept_read(slot, result, lease);
            }
            (Target::Keep(Kept::Write, slot), Outcome::Written { result, batch }) => {
                self.kept_written(slot, result, batch);
            }
            (Target::Keep(Kept::Sync, id), Outcome::Synced(result)) => self.kept_synced(id, result),
            (target, outcome) => panic!("{target:?} completed with {outcome:?}"),
        }
    }

    /// An operation of a connection is over; a closing one goes with its last.
    pub(crate) fn operation_ended(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        connection.operations =
            connection.operations.checked_sub(1).expect("invariant: as many ends as beginnings");
        if connection.operations == 0 && matches!(connection.stage, Stage::Closing(_)) {
            // Dropping the connection drops the last handle: the descriptor closes here.
            self.connections.remove(key);
        }
    }

    /// Storage's news to those who wait.
    pub(crate) fn deliver_news(&mut self) {
        let mut news = std::mem::take(&mut self.news);
        for item in news.drain(..) {
            match item {
                News::Wake(waiter) => self.wake(waiter),
                News::Trouble { torrent, file, trouble, range, found } => {
                    self.file_trouble(torrent, file, trouble, range, found);
                }
            }
        }
        self.news = news;
    }

    /// Queues an event for control. What only informs is dropped when control is far behind; what
    /// control waits for (ends of jobs and dials, requests for contents) is kept: there are no more
    /// of those than jobs, dials and torrents.
    pub(crate) fn tell(&mut self, event: Event) {
        const OUTBOX_MAX: usize = 4_096;
        let informs = matches!(
            event,
            Event::PeerFault { .. }
                | Event::PieceFailed { .. }
                | Event::Stats(_)
                | Event::Peers { .. }
                | Event::AcceptFailed(_)
        );
        if !informs || self.outbox.len() < OUTBOX_MAX {
            self.outbox.push_back(event);
        }
    }

    pub(crate) fn flush_outbox(&mut self) {
        while let Some(event) = self.outbox.pop_front() {
            if let Err(event) = self.links.events.send(event) {
                self.outbox.push_front(event);
                return;
            }
        }
    }
}
