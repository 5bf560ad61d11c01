//! Owns: the downloading side of a session: interest, what was asked for, whose data is coming.
//! Never: chooses a block, keeps its data, or blames a peer for what crossed with our own word.
//! Flow: the torrent's download asks -> messages of the peer -> [`Blocks`] and events.
//!
//! Every request that went out has one answer due: data, or a reject where that can be said. One
//! that was taken back, or that a choke voided, is remembered for a minute, so that its answer is
//! told from what nobody asked for. A block may be asked for again meanwhile: data then counts for
//! the request that stands, a reject for the one that was taken back, since peers answer in order.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Event, Session, State, Torrent, opening};
use crate::peer::Requests;
use crate::peer::requests::SNUBBED_AFTER;
use crate::units::{Block, PieceIndex};
use crate::wire::Violation;
use crate::wire::extended::{DontHave, MetadataMessage};
use crate::wire::message::Message;

/// Requests outstanding at one peer, whatever it says that it queues: libtorrent's default for
/// what it queues itself.
pub const PIPELINE_MAX: u32 = 2000;
/// Answers to what was taken back may come for this long.
pub const LATE_FOR: Duration = Duration::from_secs(60);
/// Pieces kept of a peer's allowed fast set; BEP 6 takes 10.
const ALLOWED_MAX: usize = 32;
/// Rejects of what was not asked for, less blocks that came: a peer that took longer than a minute
/// to turn down a whole pipeline is no flood.
const STRAY_REJECTS_MAX: u32 = 2 * PIPELINE_MAX;
/// Metadata requests whose answers are told from what nobody asked for; three at a time go out.
const METADATA_ASKED_MAX: usize = 16;

/// Where the bytes go that were asked for.
pub trait Blocks {
    /// Bytes of a block that was asked for, in order; `at` is from the block's start.
    fn data(&mut self, block: Block, at: u32, bytes: &[u8]);

    /// A piece of metadata that was asked for (BEP 9), of a whole of `total_bytes` as the peer
    /// says: neither is checked.
    fn metadata(&mut self, piece: u32, total_bytes: u32, data: &[u8]) {
        let _ = (piece, total_bytes, data);
    }

    /// A message of peer exchange (BEP 11) that came in time; not looked at.
    ///
    /// # Errors
    /// It cannot be read: the connection closes.
    fn contacts(&mut self, payload: &[u8]) -> Result<(), Violation> {
        let _ = payload;
        Ok(())
    }
}

/// For sessions that ask for nothing.
impl Blocks for () {
    fn data(&mut self, _: Block, _: u32, _: &[u8]) {}
}

/// See the module. Apart from the session, since most sessions only upload.
#[derive(Debug)]
pub(super) struct Download {
    pub requests: Requests,
    pub am_interested: bool,
    /// Everything is there: this waits only for what may still be on its way.
    over: bool,
    incoming: Option<Incoming>,
    late: Late,
    /// What the peer lets us have while it chokes us.
    allowed: Vec<PieceIndex>,
    stray_rejects: u32,
    bytes: u64,
    /// Since when we want something of the peer.
    wants_since: Option<Duration>,
    /// When a block last came whole.
    gave_at: Option<Duration>,
    /// When this was last told the time.
    seen_at: Duration,
    metadata_asked: Vec<u32>,
    /// What the peer said, and what of it was given out as an event; 0: nothing.
    metadata_said_bytes: u32,
    metadata_told_bytes: u32,
}

/// The piece message whose data is coming.
#[derive(Debug)]
struct Incoming {
    block: Block,
    at: u32,
    wanted: bool,
}

/// Requests that were taken back or voided, the oldest first.
#[derive(Debug, Default)]
struct Late(VecDeque<(Block, Duration)>);

impl Late {
    fn add(&mut self, block: Block, now: Duration) {
        if self.0.len() >= PIPELINE_MAX as usize {
            self.0.pop_front();
        }
        self.0.push_back((block, now));
    }

    /// Whether an answer was still due, which this is.
    fn answered(&mut self, block: Block) -> bool {
        let place = self.0.iter().position(|(late, _)| *late == block);
        place.and_then(|place| self.0.remove(place)).is_some()
    }

    fn expire(&mut self, now: Duration) {
        while self.0.front().is_some_and(|(_, since)| now.saturating_sub(*since) >= LATE_FOR) {
            self.0.pop_front();
        }
    }
}

impl Download {
    pub fn new(now: Duration) -> Self {
        Self {
            requests: Requests::new(now),
            am_interested: false,
            over: false,
            incoming: None,
            late: Late::default(),
            allowed: Vec::new(),
            stray_rejects: 0,
            bytes: 0,
            wants_since: None,
            gave_at: None,
            seen_at: now,
            metadata_asked: Vec::new(),
            metadata_said_bytes: 0,
            metadata_told_bytes: 0,
        }
    }

    /// Bytes on the heap, its own included.
    pub fn held_bytes(&self) -> usize {
        let lists = self.allowed.capacity() * size_of::<PieceIndex>()
            + self.metadata_asked.capacity() * size_of::<u32>()
            + self.late.0.capacity() * size_of::<(Block, Duration)>();
        size_of::<Self>() + self.requests.held_bytes() + lists
    }

    /// Gives back what empty lists hold.
    pub fn release(&mut self) {
        self.requests.release();
        if self.late.0.is_empty() {
            self.late.0 = VecDeque::new();
        }
    }

    fn tell_time(&mut self, now: Duration) {
        self.seen_at = self.seen_at.max(now);
        self.late.expire(self.seen_at);
    }

    /// The peer's `reqq`.
    pub fn queues(&mut self, requests: u32) {
        self.requests.set_depth_max(requests.min(PIPELINE_MAX));
    }

    /// What the peer's handshake says of metadata; the size to tell of, where that is news.
    pub fn metadata_size(&mut self, said_bytes: Option<u32>, supported: bool) -> Option<u32> {
        self.metadata_said_bytes = said_bytes.unwrap_or(self.metadata_said_bytes);
        let bytes = self.metadata_said_bytes;
        let news = supported && bytes > 0 && bytes != self.metadata_told_bytes;
        news.then(|| {
            self.metadata_told_bytes = bytes;
            bytes
        })
    }

    /// Notes that a block is not waited for any more.
    fn taken_back(&mut self, block: Block) {
        match &mut self.incoming {
            // Its answer is here, and only the rest of it is to come.
            Some(incoming) if incoming.wanted && incoming.block == block => incoming.wanted = false,
            _ => self.late.add(block, self.seen_at),
        }
    }

    fn stray_reject(&mut self) -> Result<(), Violation> {
        self.stray_rejects += 1;
        if self.stray_rejects > STRAY_REJECTS_MAX {
            return Err(Violation::RejectFlood { count: self.stray_rejects });
        }
        Ok(())
    }
}

impl State {
    pub(super) fn downloads(&self) -> bool {
        self.download.as_ref().is_some_and(|download| !download.over)
    }

    /// Whether the caller hears of each piece that the peer has.
    pub(super) fn tells_pieces(&self) -> bool {
        self.watched || self.downloads()
    }

    /// A session that is to learn the metadata: what the peer has can be no more than heard.
    pub(super) fn metadata_unknown(&self) -> bool {
        self.pieces.total() == 0 && self.download.is_some()
    }

    pub(super) fn am_interested(&self) -> bool {
        self.download.as_ref().is_some_and(|download| download.am_interested)
    }

    /// Notes the time, and drops what is over when nothing more can come of it.
    pub(super) fn settle_download(&mut self, now: Duration) {
        if self.am_interested() {
            self.clock.interested_ourselves(now);
        }
        if let Some(download) = &mut self.download {
            download.tell_time(now);
            if download.over && download.late.0.is_empty() && download.incoming.is_none() {
                self.download = None;
            }
        }
    }

    pub(super) fn on_choke(&mut self, choking: bool, events: &mut Vec<Event>) {
        let changed = self.peer_choking != choking;
        self.peer_choking = choking;
        let fast = self.fast;
        let Some(download) = self.download.as_mut().filter(|download| !download.over) else {
            return;
        };
        if changed {
            events.push(if choking { Event::Choked } else { Event::Unchoked });
        }
        // With the fast extension each is answered by itself (BEP 6).
        if choking && !fast {
            let Download { requests, late, seen_at, .. } = &mut **download;
            for block in requests.void() {
                late.add(block, *seen_at);
                events.push(Event::Returned(block));
            }
        }
    }

    pub(super) fn on_allowed_fast(&mut self, piece: PieceIndex, events: &mut Vec<Event>) {
        let known = piece.0 < self.pieces.total() && self.downloads();
        let Some(download) = self.download.as_mut().filter(|_| known) else { return };
        if download.allowed.len() < ALLOWED_MAX && !download.allowed.contains(&piece) {
            download.allowed.push(piece);
            events.push(Event::AllowedFast(piece));
        }
    }

    pub(super) fn on_reject(
        &mut self,
        block: Block,
        events: &mut Vec<Event>,
    ) -> Result<(), Violation> {
        let choking = self.peer_choking;
        let Some(download) = &mut self.download else { return Ok(()) };
        if choking {
            download.allowed.retain(|piece| *piece != block.piece);
        }
        if download.late.answered(block) {
            return Ok(());
        }
        if !download.requests.withdraw(block) {
            return download.stray_reject();
        }
        events.push(Event::Returned(block));
        Ok(())
    }

    pub(super) fn on_piece_begin(&mut self, block: Block, now: Duration) -> Result<(), Violation> {
        let mut unwanted = true;
        if let Some(download) = &mut self.download {
            let wanted = download.requests.contains(block);
            unwanted = !wanted && !download.late.answered(block);
            let rest = block.length > 0;
            download.incoming = rest.then_some(Incoming { block, at: 0, wanted });
        }
        // The message's id and numbers count, so that none costs nothing.
        if unwanted { self.unwanted(block.length as usize + 9, now) } else { Ok(()) }
    }

    pub(super) fn on_piece_data(
        &mut self,
        bytes: &[u8],
        now: Duration,
        events: &mut Vec<Event>,
        blocks: &mut impl Blocks,
    ) {
        let Some(download) = &mut self.download else { return };
        let Some(Incoming { block, at, wanted }) = &mut download.incoming else { return };
        let (block, start, wanted) = (*block, *at, *wanted);
        *at += bytes.len() as u32;
        let whole = *at == block.length;
        debug_assert!(*at <= block.length, "the reader gives a piece's own data");
        if whole {
            download.incoming = None;
        }
        if !wanted {
            return;
        }
        blocks.data(block, start, bytes);
        download.bytes += bytes.len() as u64;
        if whole {
            let asked = download.requests.arrived(block, now);
            debug_assert!(asked, "who takes a request back says so of what is coming");
            download.stray_rejects = download.stray_rejects.saturating_sub(1);
            download.gave_at = Some(now);
            events.push(Event::Block(block));
        }
    }

    pub(super) fn on_dont_have(
        &mut self,
        payload: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), Violation> {
        let DontHave(piece) = DontHave::parse(payload)?;
        if !self.metadata_unknown() && self.pieces.remove(piece)? && self.tells_pieces() {
            events.push(Event::DontHave(piece));
        }
        Ok(())
    }

    /// Whether metadata that came, or is refused, was asked for.
    pub(super) fn metadata_answered(&mut self, piece: u32) -> bool {
        let Some(download) = &mut self.download else { return false };
        let place = download.metadata_asked.iter().position(|asked| *asked == piece);
        place.map(|place| download.metadata_asked.remove(place)).is_some()
    }

    pub(super) fn on_metadata_reject(
        &mut self,
        piece: u32,
        events: &mut Vec<Event>,
    ) -> Result<(), Violation> {
        if self.metadata_answered(piece) {
            events.push(Event::MetadataRejected(piece));
            return Ok(());
        }
        self.download.as_mut().map_or(Ok(()), |download| download.stray_reject())
    }
}

impl Session {
    /// Whether this session may ask for blocks: not where it was opened upload-only, nor once all
    /// is there.
    pub fn downloads(&self) -> bool {
        self.state.downloads()
    }

    /// Says whether the peer has something that we want, where that changes.
    pub fn set_interested(&mut self, interested: bool, out: &mut Vec<u8>) {
        let Some(download) = self.active() else { return };
        if std::mem::replace(&mut download.am_interested, interested) != interested {
            download.wants_since = interested.then_some(download.seen_at);
            match interested {
                true => Message::Interested.encode(out),
                false => Message::NotInterested.encode(out),
            }
        }
    }

    pub fn am_interested(&self) -> bool {
        self.state.am_interested()
    }

    pub fn peer_choking(&self) -> bool {
        self.state.peer_choking
    }

    /// Whether the peer would serve this piece now: it has it, and does not choke us or lets us
    /// have this one all the same.
    pub fn may_request(&self, piece: PieceIndex) -> bool {
        let state = &self.state;
        let Some(download) = state.download.as_ref().filter(|download| !download.over) else {
            return false;
        };
        state.pieces.has(piece) && (!state.peer_choking || download.allowed.contains(&piece))
    }

    /// Blocks that may be asked for now, were there any that the peer would serve.
    pub fn room(&self) -> usize {
        self.requests().map_or(0, Requests::room)
    }

    /// Asks for a block. One that is outstanding here is not asked for again.
    pub fn request(&mut self, block: Block, now: Duration, out: &mut Vec<u8>) {
        let Some(download) = self.active() else { return };
        download.tell_time(now);
        debug_assert!(block.length > 0, "a block has bytes");
        download.requests.ask(block, now);
        Message::Request(block).encode(out);
        self.state.clock.sent(now);
    }

    /// Takes a request back; no event follows of this block. What is on its way is skipped.
    pub fn cancel(&mut self, block: Block, out: &mut Vec<u8>) {
        let Some(download) = self.active() else { return };
        if download.requests.withdraw(block) {
            download.taken_back(block);
            Message::Cancel(block).encode(out);
        }
    }

    /// What the peer was asked for; `None` where this session asks for nothing.
    pub fn requests(&self) -> Option<&Requests> {
        let download = self.state.download.as_ref().filter(|download| !download.over);
        download.map(|download| &download.requests)
    }

    /// Looks at the time: true where the peer has just come to snub us, so that others may be
    /// asked for what is outstanding.
    pub fn check_requests(&mut self, now: Duration) -> bool {
        self.active().is_some_and(|download| {
            download.tell_time(now);
            download.requests.check(now)
        })
    }

    /// When `check_requests` may have news.
    pub fn next_request_check(&self) -> Option<Duration> {
        self.requests().and_then(Requests::next_check)
    }

    /// Bytes of blocks that were asked for; 0 once all is there.
    pub fn downloaded_bytes(&self) -> u64 {
        self.state.download.as_ref().map_or(0, |download| download.bytes)
    }

    pub fn download_bytes_per_s(&self, now: Duration) -> u64 {
        self.requests().map_or(0, |requests| requests.rate_bytes_per_s(now))
    }

    /// Whether the peer has given nothing for a minute in which we wanted something of it, choking
    /// us or not: nothing is owed to it (BEP 3, anti-snubbing).
    pub fn gives_nothing(&self, now: Duration) -> bool {
        let download = self.state.download.as_ref().filter(|download| !download.over);
        download.is_some_and(|download| {
            let since =
                download.wants_since.map(|since| since.max(download.gave_at.unwrap_or(since)));
            since.is_some_and(|since| now.saturating_sub(since) >= SNUBBED_AFTER)
        })
    }

    /// Asks for a piece of metadata, where the peer takes such requests (BEP 9).
    pub fn request_metadata(&mut self, piece: u32, out: &mut Vec<u8>) {
        let receiver_id = self.state.peer_metadata_id;
        let Some(download) = self.active().filter(|_| receiver_id > 0) else { return };
        if download.metadata_asked.len() >= METADATA_ASKED_MAX {
            download.metadata_asked.remove(0);
        }
        download.metadata_asked.push(piece);
        MetadataMessage::Request { piece }.encode(receiver_id, out);
    }

    /// All that we want is there: what is outstanding is taken back, and the peer hears that
    /// nothing more is wanted (BEP 21). From now on this session only uploads.
    pub fn completed(&mut self, out: &mut Vec<u8>, torrent: &impl Torrent) {
        self.set_interested(false, out);
        let Some(download) = self.active() else { return };
        let outstanding: Vec<Block> = download.requests.void().collect();
        for block in outstanding {
            Message::Cancel(block).encode(out);
            download.taken_back(block);
        }
        download.over = true;
        let now = download.seen_at;
        if self.state.extended {
            let ut_pex = self.state.exchange.local_id();
            opening::say_upload_only(true, self.state.request_queue_max, ut_pex, torrent, out);
        }
        self.state.settle_download(now);
    }

    /// Something is wanted of this torrent again, or for the first time since the session was
    /// opened: from now on it may ask, and the peer hears that (BEP 21).
    pub fn wants_again(&mut self, now: Duration, torrent: &impl Torrent, out: &mut Vec<u8>) {
        if self.downloads() || self.state.pieces.total() == 0 {
            return;
        }
        let fresh = || Box::new(Download::new(now));
        self.state.download.get_or_insert_with(fresh).over = false;
        let ut_pex = self.state.exchange.local_id();
        let limits = opening::frame_limits(self.state.pieces.total(), true, ut_pex);
        self.reader.set_limits(limits);
        self.reader.stream_pieces(true);
        if self.state.extended {
            opening::say_upload_only(false, self.state.request_queue_max, ut_pex, torrent, out);
        }
    }

    fn active(&mut self) -> Option<&mut Download> {
        self.state.download.as_deref_mut().filter(|download| !download.over)
    }
}
