//! Owns: the calls by which upload and choker act on a session.
//! Never: sends a block: a block taken from the queue is the caller's to send or to refuse.
//! Flow: choker -> choke, unchoke; upload -> take, sent, reject; verify -> have, reject_piece.

use std::time::Duration;

use super::{Session, State};
use crate::peer::UploadQueue;
use crate::units::{Block, PieceIndex};
use crate::wire::extended::DontHave;
use crate::wire::message::Message;

impl Session {
    /// Stops serving: says so and drops what waits, rejecting it where that can be said. Blocks of
    /// the allowed fast set stay (BEP 6).
    pub fn choke(&mut self, now: Duration, out: &mut Vec<u8>) {
        let state = &mut self.state;
        if state.am_choking {
            return;
        }
        state.am_choking = true;
        state.clock.choked(state.peer_interested, now);
        // Who cannot be told of each request knows by this that none of them will be served.
        state.unheard = false;
        Message::Choke.encode(out);
        let (fast, allowed) = (state.fast, &state.allowed_fast);
        let dropped = |piece| allowed.as_ref().is_none_or(|set| !set.contains(piece));
        state.queue.remove_where(dropped, |block| {
            if fast {
                Message::Reject(block).encode(out);
            }
        });
        state.queue.release();
    }

    /// Starts serving.
    pub fn unchoke(&mut self, now: Duration, out: &mut Vec<u8>) {
        if self.state.am_choking {
            self.state.am_choking = false;
            self.state.clock.unchoked(now);
            Message::Unchoke.encode(out);
        }
    }

    /// When it was last unchoked, if ever; for the choker.
    pub fn last_unchoked(&self) -> Option<Duration> {
        self.state.clock.last_unchoked()
    }

    /// Since when it has been interested and choked, if it is; for the choker.
    pub fn waiting_since(&self) -> Option<Duration> {
        self.state.clock.waiting_since()
    }

    pub fn queue(&self) -> &UploadQueue {
        &self.state.queue
    }

    /// Takes a block out of the queue to send it, 0 being the one asked for first.
    pub fn take(&mut self, place: usize) -> Option<Block> {
        let block = self.state.queue.remove(place)?;
        self.state.refused = self.state.refused.saturating_sub(1);
        self.state.idle.paid();
        Some(block)
    }

    /// Drops a queued block, and says so where that can be said.
    pub fn reject(&mut self, place: usize, out: &mut Vec<u8>) {
        if let Some(block) = self.state.queue.remove(place) {
            self.state.drop_request(block, out);
        }
    }

    /// Whether requests were dropped of a peer that cannot be told so (no fast extension): a choke
    /// and an unchoke make it ask again; without them it waits for as long as its patience lasts.
    pub fn unheard(&self) -> bool {
        self.state.unheard
    }

    /// Drops everything queued.
    pub fn reject_all(&mut self, out: &mut Vec<u8>) {
        self.reject_where(|_| true, out);
    }

    /// Drops what is queued of a piece that is offered no more.
    pub fn reject_piece(&mut self, piece: PieceIndex, out: &mut Vec<u8>) {
        self.reject_where(|queued| queued == piece, out);
    }

    /// Says that a piece is offered from now on, unless the peer has it.
    pub fn have(&mut self, piece: PieceIndex, out: &mut Vec<u8>) {
        if !self.state.pieces.has(piece) {
            Message::Have(piece).encode(out);
        }
    }

    /// A piece is offered no more: what is queued of it is dropped, and who takes such messages is
    /// told (BEP 54). Others find out when they ask.
    pub fn dont_have(&mut self, piece: PieceIndex, out: &mut Vec<u8>) {
        self.reject_piece(piece, out);
        if self.state.peer_dont_have_id > 0 {
            DontHave(piece).encode(self.state.peer_dont_have_id, out);
        }
    }

    /// Blocks went out: no keep-alive is due for a while.
    pub fn sent(&mut self, now: Duration) {
        self.state.clock.sent(now);
    }

    fn reject_where(&mut self, wanted: impl Fn(PieceIndex) -> bool, out: &mut Vec<u8>) {
        let State { fast, queue, unheard, .. } = &mut self.state;
        queue.remove_where(wanted, |block| match *fast {
            true => Message::Reject(block).encode(out),
            false => *unheard = true,
        });
    }
}
