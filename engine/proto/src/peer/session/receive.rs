//! Owns: what each message of a peer does to its session.
//! Never: allocates for a request, or answers one that the torrent does not bound.
//! Flow: called for each message of a `receive`; a turn gathers what the call's events will be.

use std::net::IpAddr;
use std::time::Duration;

use super::{Blocks, Event, METADATA_OUT_BYTES, REQUEST_BYTES_MAX, State, Torrent};
use crate::units::Block;
use crate::wire::Violation;
use crate::wire::extended::{self, ExtensionHandshake, MetadataMessage, metadata_piece};
use crate::wire::message::{Message, id};

/// Requests in flight when a choke was sent may still come for this long without being counted.
const CHOKE_GRACE: Duration = Duration::from_secs(10);
/// Refused requests that are borne at least, whatever the queue's bound.
const REFUSED_MAX_LEAST: u32 = 300;
/// Messages about requests that are borne though they come to nothing (see [`Idle`]): so many times
/// the queue's bound, and at least so many. An honest peer sends a pipeline of them at most at a
/// time: cancels that cross with their blocks at the end of a download, requests that cross a choke
/// and are made again after the unchoke. No pipeline is longer than the queue.
const IDLE_MAX_QUEUES: u32 = 4;
const IDLE_MAX_LEAST: u32 = 1200;
/// And so many a second are forgotten: clients that ask again or elsewhere for each block that is
/// late, and those that plan anew with each piece they get, stay below it. A walk through a full
/// queue takes 2 microseconds, so at this rate they cost nothing.
const IDLE_FORGOTTEN_PER_S: u32 = 20;
/// Bytes a peer may send for nothing in one of these spans: unknown messages, unrequested blocks.
const UNWANTED_BYTES_MAX: u32 = 256 << 10;
/// Metadata is served this often to one peer, with room for small ones to be asked for again.
const METADATA_TIMES_MAX: u64 = 2;
const METADATA_BYTES_SPARE: u64 = 1 << 20;

/// Messages about requests that came to nothing: doubles of requests that wait, cancels, requests
/// that a choke crossed. Each is a walk through the queue and pays for nothing; blocks served and
/// time take them off.
#[derive(Debug)]
pub(super) struct Idle {
    count: u32,
    settled_s: u32,
}

impl Idle {
    pub fn new(now: Duration) -> Self {
        Self { count: 0, settled_s: now.as_secs() as u32 }
    }

    /// A block was served.
    pub fn paid(&mut self) {
        self.count = self.count.saturating_sub(1);
    }

    fn count(&mut self, queue_max: u16, now: Duration) -> Result<(), Violation> {
        let now_s = now.as_secs() as u32;
        let passed_s = now_s.saturating_sub(self.settled_s);
        let forgotten = passed_s.saturating_mul(IDLE_FORGOTTEN_PER_S);
        self.count = self.count.saturating_sub(forgotten) + 1;
        self.settled_s = now_s;
        if self.count > Self::max(queue_max) {
            return Err(Violation::IdleFlood { count: self.count });
        }
        Ok(())
    }

    fn max(queue_max: u16) -> u32 {
        IDLE_MAX_LEAST.max(IDLE_MAX_QUEUES * u32::from(queue_max))
    }

    #[cfg(test)]
    pub fn half_of_bound(&self, queue_max: u16) -> bool {
        self.count <= Self::max(queue_max) / 2
    }
}

/// One call of `receive`.
pub(super) struct Turn {
    pub now: Duration,
    out_before: usize,
    events_before: usize,
    was_interested: bool,
    wanted_nothing: (bool, bool),
    pub requested: bool,
    pub cancelled: bool,
    pub client_named: bool,
    pub introduced: bool,
    pub our_address: Option<IpAddr>,
    pub metadata_bytes: Option<u32>,
    pieces_said: bool,
}

impl Turn {
    pub fn new(state: &State, now: Duration, out_before: usize, events_before: usize) -> Self {
        Self {
            now,
            out_before,
            events_before,
            was_interested: state.peer_interested,
            wanted_nothing: (state.pieces.is_complete(), state.peer_upload_only),
            requested: false,
            cancelled: false,
            client_named: false,
            introduced: false,
            our_address: None,
            metadata_bytes: None,
            pieces_said: false,
        }
    }

    /// Says what changed between the call's begin and end, each at most once.
    pub fn finish(self, state: &mut State, out_after: usize, events: &mut Vec<Event>) {
        if out_after > self.out_before {
            state.clock.sent(self.now);
        }
        state.settle_download(self.now);
        match (self.was_interested, state.peer_interested) {
            (false, true) => events.push(Event::Interested),
            (true, false) => events.push(Event::NotInterested),
            _ => {}
        }
        if self.cancelled {
            events.push(Event::Cancelled);
        }
        if self.requested {
            events.push(Event::Requested);
        }
        if self.client_named {
            events.push(Event::ClientNamed);
        }
        if self.introduced {
            events.push(Event::Introduced);
        }
        events.extend(self.our_address.map(Event::OurAddress));
        events.extend(self.metadata_bytes.map(Event::MetadataSize));
        if self.pieces_said {
            let mut at = 0;
            events.retain(|event| {
                at += 1;
                at <= self.events_before || !matches!(event, Event::Have(_) | Event::DontHave(_))
            });
            events.push(Event::Pieces);
        }
        let (was_complete, was_upload_only) = self.wanted_nothing;
        if !was_complete && state.pieces.is_complete() {
            events.push(Event::PeerComplete);
        } else if !was_upload_only && state.peer_upload_only {
            events.push(Event::PeerUploadOnly);
        }
    }
}

impl State {
    pub(super) fn on_message(
        &mut self,
        message: Message<'_>,
        torrent: &impl Torrent,
        turn: &mut Turn,
        out: &mut Vec<u8>,
        events: &mut Vec<Event>,
        blocks: &mut impl Blocks,
    ) -> Result<(), Violation> {
        if !matches!(message, Message::Skipped { .. }) {
            self.clock.heard(turn.now);
        }
        match message {
            Message::Request(block) => return self.on_request(block, torrent, turn, out),
            Message::Cancel(block) => return self.on_cancel(block, turn, out),
            Message::KeepAlive | Message::Port(_) => {}
            Message::Choke => self.on_choke(true, events),
            Message::Unchoke => self.on_choke(false, events),
            Message::Interested => self.set_interested(true, turn.now),
            Message::NotInterested => self.set_interested(false, turn.now),
            Message::Have(_) | Message::Bitfield(_) if self.metadata_unknown() => {}
            Message::Have(piece) => {
                if self.pieces.insert(piece)? && self.tells_pieces() {
                    events.push(Event::Have(piece));
                }
            }
            // Also later, and again: aria2 sends one of these in place of many haves. Pieces are
            // only ever added.
            Message::Bitfield(field) => {
                let before = self.pieces.count();
                self.pieces.insert_bitfield(field)?;
                turn.pieces_said |= self.pieces.count() > before && self.tells_pieces();
            }
            Message::HaveAll => {
                self.require_fast(id::HAVE_ALL)?;
                turn.pieces_said |=
                    self.pieces.count() < self.pieces.total() && self.tells_pieces();
                self.pieces.insert_all();
            }
            Message::HaveNone => self.require_fast(id::HAVE_NONE)?,
            Message::Suggest(_) => self.require_fast(id::SUGGEST)?,
            Message::AllowedFast(piece) => {
                self.require_fast(id::ALLOWED_FAST)?;
                self.on_allowed_fast(piece, events);
            }
            Message::Reject(block) => {
                self.require_fast(id::REJECT)?;
                return self.on_reject(block, events);
            }
            Message::Extended { id: extended::UT_METADATA, payload } if self.extended => {
                return self.on_metadata(payload, torrent, turn, out, events, blocks);
            }
            Message::Extended { id: extended::UT_PEX, payload } if self.extended => {
                return self.on_exchange(payload, turn.now, blocks);
            }
            Message::Extended { id, payload } => {
                return self.on_extended(id, payload, turn, events);
            }
            Message::Piece { data, .. } => return self.unwanted(data.len(), turn.now),
            Message::PieceBegin(block) => return self.on_piece_begin(block, turn.now),
            Message::PieceData(bytes) => self.on_piece_data(bytes, turn.now, events, blocks),
            Message::Skipped { length, .. } => return self.unwanted(length as usize, turn.now),
        }
        Ok(())
    }

    fn on_request(
        &mut self,
        block: Block,
        torrent: &impl Torrent,
        turn: &mut Turn,
        out: &mut Vec<u8>,
    ) -> Result<(), Violation> {
        check_bounds(block, torrent)?;
        if !torrent.offered(block.piece) {
            if !self.fast {
                return Err(Violation::RequestNotOffered(block.piece));
            }
            self.count_refused()?;
            self.say_reject(block, out);
            return Ok(());
        }
        if self.am_choking && !self.admit_choked(block) {
            match self.clock.choked_within(CHOKE_GRACE, turn.now) {
                true => self.idle.count(self.request_queue_max, turn.now)?,
                false => self.count_refused()?,
            }
            self.say_reject(block, out);
            return Ok(());
        }
        if self.queue.len() >= usize::from(self.request_queue_max)
            && self.queue.position(block).is_none()
        {
            self.count_refused()?;
            self.drop_request(block, out);
            return Ok(());
        }
        if !self.queue.push(block) {
            // It will be served once: rejecting the double would deny that.
            return self.idle.count(self.request_queue_max, turn.now);
        }
        turn.requested = true;
        Ok(())
    }

    /// BEP 6: the set is for who has too little to trade with.
    fn admit_choked(&mut self, block: Block) -> bool {
        let Some(set) = &mut self.allowed_fast else { return false };
        self.pieces.count() as usize <= set.len() && set.admit(block)
    }

    fn on_cancel(
        &mut self,
        block: Block,
        turn: &mut Turn,
        out: &mut Vec<u8>,
    ) -> Result<(), Violation> {
        self.idle.count(self.request_queue_max, turn.now)?;
        // What is not queued is on its way, was answered, or never asked for: no answer is due.
        if let Some(place) = self.queue.position(block) {
            self.queue.remove(place);
            turn.cancelled = true;
            self.say_reject(block, out);
        }
        Ok(())
    }

    /// Counts a request that is turned down; too many close the connection.
    fn count_refused(&mut self) -> Result<(), Violation> {
        self.refused += 1;
        if self.refused > REFUSED_MAX_LEAST.max(2 * u32::from(self.request_queue_max)) {
            return Err(Violation::RequestFlood { refused: self.refused });
        }
        Ok(())
    }

    /// BEP 6. Without it nothing is said: for where the peer does not wait for the block, because
    /// it was choked or took the request back.
    pub(super) fn say_reject(&self, block: Block, out: &mut Vec<u8>) {
        if self.fast {
            Message::Reject(block).encode(out);
        }
    }

    /// Answers for a request that the peer waits for and that comes to nothing.
    pub(super) fn drop_request(&mut self, block: Block, out: &mut Vec<u8>) {
        self.say_reject(block, out);
        self.unheard |= !self.fast;
    }

    fn set_interested(&mut self, interested: bool, now: Duration) {
        self.peer_interested = interested;
        self.clock.interest(interested, self.am_choking, now);
    }

    fn require_fast(&self, id: u8) -> Result<(), Violation> {
        if self.fast { Ok(()) } else { Err(Violation::FastNotNegotiated(id)) }
    }

    pub(super) fn unwanted(&mut self, bytes: usize, now: Duration) -> Result<(), Violation> {
        if self.clock.unwanted_span_over(now) {
            self.unwanted_bytes = 0;
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.unwanted_bytes = self.unwanted_bytes.saturating_add(bytes);
        if self.unwanted_bytes > UNWANTED_BYTES_MAX {
            return Err(Violation::UnwantedData { bytes: self.unwanted_bytes.into() });
        }
        Ok(())
    }

    fn on_extended(
        &mut self,
        id: u8,
        payload: &[u8],
        turn: &mut Turn,
        events: &mut Vec<Event>,
    ) -> Result<(), Violation> {
        if !self.extended {
            return Err(Violation::ExtendedNotNegotiated);
        }
        match id {
            extended::HANDSHAKE => self.learn(&ExtensionHandshake::parse(payload)?, turn),
            extended::LT_DONTHAVE => return self.on_dont_have(payload, events),
            _ => return self.unwanted(payload.len(), turn.now),
        }
        Ok(())
    }

    fn on_metadata(
        &mut self,
        payload: &[u8],
        torrent: &impl Torrent,
        turn: &mut Turn,
        out: &mut Vec<u8>,
        events: &mut Vec<Event>,
        blocks: &mut impl Blocks,
    ) -> Result<(), Violation> {
        match MetadataMessage::parse(payload)? {
            Some(MetadataMessage::Request { piece }) => {
                self.on_metadata_request(piece, torrent, out)
            }
            Some(MetadataMessage::Reject { piece }) => self.on_metadata_reject(piece, events),
            Some(MetadataMessage::Data { piece, total_bytes, data })
                if self.metadata_answered(piece) =>
            {
                blocks.metadata(piece, total_bytes, data);
                Ok(())
            }
            Some(MetadataMessage::Data { .. }) | None => self.unwanted(payload.len(), turn.now),
        }
    }

    fn on_metadata_request(
        &mut self,
        piece: u32,
        torrent: &impl Torrent,
        out: &mut Vec<u8>,
    ) -> Result<(), Violation> {
        if self.peer_metadata_id == 0 {
            return Ok(());
        }
        let metadata = torrent.metadata().unwrap_or_default();
        let data = metadata_piece(metadata, piece).filter(|_| out.len() < METADATA_OUT_BYTES);
        let answer = match data {
            None => MetadataMessage::Reject { piece },
            Some(data) => {
                self.metadata_bytes = self.metadata_bytes.saturating_add(data.len() as u32);
                let allowed = METADATA_TIMES_MAX * metadata.len() as u64 + METADATA_BYTES_SPARE;
                if u64::from(self.metadata_bytes) > allowed {
                    return Err(Violation::MetadataFlood { bytes: self.metadata_bytes.into() });
                }
                let total_bytes = u32::try_from(metadata.len()).unwrap_or(u32::MAX);
                MetadataMessage::Data { piece, total_bytes, data }
            }
        };
        answer.encode(self.peer_metadata_id, out);
        Ok(())
    }
}

fn check_bounds(block: Block, torrent: &impl Torrent) -> Result<(), Violation> {
    let count = torrent.piece_count();
    if block.piece.0 >= count {
        return Err(Violation::PieceOutOfRange { piece: block.piece, count });
    }
    if block.length == 0 {
        return Err(Violation::RequestEmpty(block.piece));
    }
    if block.length > REQUEST_BYTES_MAX {
        let (length, max) = (block.length, REQUEST_BYTES_MAX);
        return Err(Violation::RequestTooLong { length, max });
    }
    let end = u64::from(block.begin) + u64::from(block.length);
    if end > u64::from(torrent.piece_length(block.piece)) {
        return Err(Violation::RequestPastEnd(block));
    }
    Ok(())
}
