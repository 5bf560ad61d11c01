//! Owns: taking a connection's bytes in: heads read, payload dropped in the kernel or put in place.
//! Never: copies payload that is only discarded. Flow: worker event -> `on_readable` -> tally,
//! refill.
//!
//! Payload is dropped with `recv(MSG_TRUNC)`, which on TCP frees the bytes without copying them.
//! While blocks come in the order asked for, the heads between outstanding blocks are dropped too
//! (a *run*), and the head after the run must be the one expected; if it is not, the order was
//! broken or something else was said in between, and the connection starts again reading each head.

use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};

use super::{
    connection::{Connection, Context, End, Stage, closed},
    crowd::Role,
    frames::{self, Head, id},
};

/// Blocks whose heads are skipped in one run, at most.
const RUN_MAX: usize = 32;
/// Receives in one event, so that one fast connection does not hold up the others.
const RECEIVES_MAX: usize = 8;

/// Where in the stream the next byte lies.
#[derive(Clone, Copy, Debug)]
pub enum Inbound {
    /// In a message's head, `inbox` holds what came of it.
    Head,
    /// In the front block: `left` bytes of it are missing; then `run` more blocks follow of which
    /// not even the head is looked at.
    Payload { left: usize, run: usize },
    /// In bytes that nobody wants.
    Skip { left: usize },
}

impl Connection {
    pub fn on_readable(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        for _ in 0..RECEIVES_MAX {
            let drained = match self.inbound {
                Inbound::Head => self.receive_head(context)?,
                Inbound::Payload { left, run } => self.receive_payload(context, left, run)?,
                Inbound::Skip { left } => {
                    let wanted = left.min(context.discard.len());
                    let Some(count) = self.drop_bytes(context, wanted)? else { break };
                    self.inbound = match left - count {
                        0 => Inbound::Head,
                        left => Inbound::Skip { left },
                    };
                    count < wanted
                }
            };
            if drained {
                break;
            }
        }
        self.refill(context)
    }

    /// `true`: the socket has no more.
    fn receive_head(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        let wanted = if self.stage == Stage::Greeting {
            frames::HANDSHAKE_BYTES
        } else {
            match frames::head(&self.inbox) {
                // A block's head in one go where blocks are expected.
                Head::Need(_) if self.inbox.is_empty() => frames::PIECE_HEAD_BYTES,
                Head::Need(bytes) => bytes.max(frames::PIECE_HEAD_BYTES),
                _ => unreachable!("invariant: the inbox was read as far as it goes"),
            }
        };
        let start = self.inbox.len();
        let mut bytes = [0; frames::HANDSHAKE_BYTES];
        let room = &mut bytes[..(wanted - start).min(context.allowance)];
        if room.is_empty() {
            return Ok(true);
        }
        let count = match recv(&self.socket, room, RecvFlags::empty()) {
            Ok((0, _)) => return Err(End::Closed("the target closed the connection".into())),
            Ok((count, _)) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
            Err(error) => return Err(closed(&error.into())),
        };
        context.allowance -= count;
        self.inbox.extend_from_slice(&bytes[..count]);
        if self.stage == Stage::Greeting {
            if self.inbox.len() == frames::HANDSHAKE_BYTES {
                self.greeted(context)?;
            }
        } else {
            self.read_inbox(context)?;
        }
        Ok(start + count < wanted)
    }

    /// Acts on every message that the inbox has whole.
    fn read_inbox(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        loop {
            match frames::head(&self.inbox) {
                Head::Need(_) => return Ok(()),
                Head::KeepAlive => drop(self.inbox.drain(..4)),
                Head::Small { id, bytes } => {
                    self.on_message(context, id)?;
                    self.inbox.drain(..bytes);
                }
                Head::Long { bytes } => {
                    self.inbound = Inbound::Skip { left: bytes - self.inbox.len() };
                    self.inbox.clear();
                    return Ok(());
                }
                Head::Piece { piece, begin, length } => {
                    // The inbox never holds more than a head, so all of the payload is still out.
                    self.inbox.clear();
                    return self.on_piece_head(context, piece, begin, length);
                }
                Head::Broken if self.in_run(context) => return Err(End::Reordered),
                Head::Broken => {
                    return Err(End::Closed(format!(
                        "not a message: {}",
                        self.inbox.escape_ascii()
                    )));
                }
            }
        }
    }

    fn in_run(&self, context: &Context<'_>) -> bool {
        context.skip_heads
            && self.lane.ordered
            && self.in_order as usize > 2 * context.outstanding_max
    }

    fn on_piece_head(
        &mut self,
        context: &mut Context<'_>,
        piece: u32,
        begin: u32,
        length: u32,
    ) -> Result<(), End> {
        let found = self.outstanding.iter().position(|pending| {
            let block = pending.block;
            block.piece.0 == piece && block.begin == begin && block.length == length
        });
        match found {
            Some(0) => self.in_order = self.in_order.saturating_add(1),
            _ if self.in_run(context) => return Err(End::Reordered),
            Some(place) => {
                self.lane.ordered = false;
                let pending = self.outstanding.remove(place);
                self.outstanding.extend(pending);
                self.outstanding.rotate_right(1);
            }
            None => {
                context.tally.unrequested_blocks += 1;
                self.inbound = Inbound::Skip { left: length as usize };
                return Ok(());
            }
        }
        let run = if self.in_run(context) { self.run_length() } else { 0 };
        self.inbound = Inbound::Payload { left: length as usize, run };
        Ok(())
    }

    /// How many blocks after the front one may come unseen: up to the first that is hashed.
    fn run_length(&self) -> usize {
        let hashed = |block| self.lane.assembly.as_ref().is_some_and(|all| all.wants(block));
        let mut unseen = self.outstanding.iter().take(RUN_MAX + 1).map(|pending| pending.block);
        match unseen.position(hashed) {
            Some(first) => first.saturating_sub(1),
            None => RUN_MAX.min(self.outstanding.len() - 1),
        }
    }

    /// Whether the front block's bytes are kept.
    fn keeps_front(&self) -> bool {
        let kept = self.lane.assembly.as_ref().zip(self.outstanding.front());
        kept.is_some_and(|(assembly, front)| assembly.wants(front.block))
    }

    /// `true`: the socket has no more.
    fn receive_payload(
        &mut self,
        context: &mut Context<'_>,
        left: usize,
        run: usize,
    ) -> Result<bool, End> {
        let wanted = left
            + self
                .outstanding
                .iter()
                .skip(1)
                .take(run)
                .map(|next| frame_bytes(next.block))
                .sum::<usize>();
        let wanted = wanted.min(context.discard.len());
        let received = if self.keeps_front() {
            self.place_bytes(context, left)?
        } else {
            self.drop_bytes(context, wanted)?
        };
        let Some(received) = received else { return Ok(true) };
        let (mut left, mut run, mut count) = (left, run, received);
        while count >= left {
            count -= left;
            self.block_arrived(context);
            if run == 0 {
                assert_eq!(count, 0, "invariant: never receives past the run");
                self.inbound = Inbound::Head;
                return Ok(received < wanted);
            }
            run -= 1;
            let next = self.outstanding.front().expect("invariant: a run is of outstanding blocks");
            left = frame_bytes(next.block);
        }
        self.inbound = Inbound::Payload { left: left - count, run };
        Ok(received < wanted)
    }

    fn block_arrived(&mut self, context: &mut Context<'_>) {
        let Some(pending) = self.outstanding.pop_front() else { return };
        let bytes = u64::from(pending.block.length);
        if self.lane.role == Role::Slow {
            context.tally.slow_bytes += if context.measuring { bytes } else { 0 };
        } else {
            context.received_bytes += bytes;
            context.tally.blocks += 1;
            if context.measuring {
                context.tally.record(context.now.saturating_duration_since(pending.since));
                self.lane.window_bytes += bytes;
            }
            if let Some(time) = self.first_block(context.now) {
                context.tally.record_first_block(time);
            }
        }
        let Some(assembly) = &mut self.lane.assembly else { return };
        match assembly.arrived(context.torrent, pending.block) {
            Some(true) => context.tally.pieces_verified += 1,
            Some(false) => context.tally.pieces_bad += 1,
            None => {}
        }
    }

    /// `None`: nothing there now.
    fn drop_bytes(&self, context: &mut Context<'_>, wanted: usize) -> Result<Option<usize>, End> {
        let room = &mut context.discard[..wanted.min(context.allowance)];
        if room.is_empty() {
            return Ok(None);
        }
        let count = received(recv(&self.socket, room, RecvFlags::TRUNC).map(|(_, count)| count))?;
        context.allowance -= count.unwrap_or(0);
        Ok(count)
    }

    fn place_bytes(&mut self, context: &Context<'_>, left: usize) -> Result<Option<usize>, End> {
        let (Some(assembly), Some(front)) = (&mut self.lane.assembly, self.outstanding.front())
        else {
            unreachable!("invariant: payload belongs to the front block");
        };
        let slot = assembly.slot(context.torrent, front.block);
        let start = slot.len() - left;
        let room = &mut slot[start..];
        received(recv(&self.socket, room, RecvFlags::empty()).map(|(_, count)| count))
    }

    fn on_message(&mut self, context: &mut Context<'_>, message: u8) -> Result<(), End> {
        match message {
            id::UNCHOKE => self.choked = false,
            id::CHOKE => {
                self.choked = true;
                context.tally.chokes += 1;
                // Without the fast extension a choke takes the requests with it (BEP 3).
                if !self.fast {
                    let lost = self.outstanding.drain(..).map(|pending| pending.number);
                    self.lane.retry.extend(lost);
                }
            }
            id::REJECT => {
                context.tally.rejects += 1;
                let (piece, begin) = (frames::word(&self.inbox, 5), frames::word(&self.inbox, 9));
                let found = self.outstanding.iter().position(|pending| {
                    pending.block.piece.0 == piece && pending.block.begin == begin
                });
                if let Some(pending) = found.and_then(|place| self.outstanding.remove(place)) {
                    self.lane.retry.push(pending.number);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn received(result: Result<usize, Errno>) -> Result<Option<usize>, End> {
    match result {
        Ok(0) => Err(End::Closed("the target closed the connection".into())),
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(closed(&error.into())),
    }
}

fn frame_bytes(block: seedring_proto::units::Block) -> usize {
    frames::PIECE_HEAD_BYTES + block.length as usize
}
