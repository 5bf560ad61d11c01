use proptest::prelude::*;

use super::*;
use crate::units::Block;
use crate::wire::FrameLimits;
use crate::wire::extended::MetadataMessage;
use crate::wire::message::Message;

mod changes;
mod crossing;
mod download;
mod exchange;
mod faults;
mod idle;
mod link;

/// Eight pieces of 64 KiB, the last one of 5 bytes.
#[derive(Clone)]
pub(super) struct Content {
    pub offered: Vec<bool>,
    pub metadata: Option<Vec<u8>>,
}

impl Content {
    pub fn whole() -> Self {
        Self { offered: vec![true; 8], metadata: Some(vec![b'm'; 40_000]) }
    }
}

impl Torrent for Content {
    fn info_hash(&self) -> InfoHash {
        InfoHash([0xaa; 20])
    }
    fn piece_count(&self) -> u32 {
        self.offered.len() as u32
    }
    fn piece_length(&self, piece: PieceIndex) -> u32 {
        assert!(piece.0 < self.piece_count(), "asked within the torrent only");
        if piece.0 + 1 == self.piece_count() { 5 } else { 65536 }
    }
    fn offered(&self, piece: PieceIndex) -> bool {
        self.offered[piece.0 as usize]
    }
    fn offers_all(&self) -> bool {
        self.offered.iter().all(|offered| *offered)
    }
    fn metadata(&self) -> Option<&[u8]> {
        self.metadata.as_deref()
    }
    fn private(&self) -> bool {
        false
    }
}

pub(super) const PLAIN: Reserved = Reserved([0; 8]);
pub(super) const FAST: Reserved = Reserved([0, 0, 0, 0, 0, 0, 0, 4]);
pub(super) const T0: Duration = Duration::from_secs(1000);

/// A session and what it said.
pub(super) struct Side {
    pub session: Session,
    pub torrent: Content,
    pub now: Duration,
    pub out: Vec<u8>,
    pub events: Vec<Event>,
    pub sink: Sink,
}

/// What was handed over of what was asked for.
#[derive(Default)]
pub(super) struct Sink {
    coming: Option<(Block, Vec<u8>)>,
    pub blocks: Vec<(Block, Vec<u8>)>,
    pub metadata: Vec<(u32, u32, Vec<u8>)>,
    pub contacts: Vec<Vec<u8>>,
}

impl Blocks for Sink {
    fn data(&mut self, block: Block, at: u32, bytes: &[u8]) {
        let (_, mut data) = self.coming.take().filter(|_| at > 0).unwrap_or((block, Vec::new()));
        assert!(!bytes.is_empty() && data.len() == at as usize, "in order");
        data.extend_from_slice(bytes);
        match data.len() == block.length as usize {
            true => self.blocks.push((block, data)),
            false => self.coming = Some((block, data)),
        }
    }

    fn metadata(&mut self, piece: u32, total_bytes: u32, data: &[u8]) {
        self.metadata.push((piece, total_bytes, data.to_vec()));
    }

    fn contacts(&mut self, payload: &[u8]) -> Result<(), Violation> {
        self.contacts.push(payload.to_vec());
        Ok(())
    }
}

impl Side {
    pub fn new(remote: Reserved, change: impl Fn(&mut Options)) -> Self {
        Self::with(Content::whole(), remote, change)
    }

    pub fn with(torrent: Content, remote: Reserved, change: impl Fn(&mut Options)) -> Self {
        let mut options = Options::new(remote);
        options.request_queue_max = 4;
        options.allowed_fast = 0;
        change(&mut options);
        let mut out = Vec::new();
        let session = Session::open(&options, &torrent, T0, 1, &mut out);
        Self { session, torrent, now: T0, out, events: Vec::new(), sink: Sink::default() }
    }

    /// An unchoked, interested peer of whom nothing is on the way.
    pub fn serving(remote: Reserved) -> Self {
        let mut side = Self::new(remote, |_| {});
        side.hear(&[Message::Interested]).expect("valid");
        side.session.unchoke(T0, &mut side.out);
        side.out.clear();
        side.events.clear();
        side
    }

    pub fn hear(&mut self, messages: &[Message<'_>]) -> Result<(), Violation> {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.encode(&mut bytes));
        self.hear_bytes(&bytes)
    }

    pub fn hear_bytes(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let Self { session, torrent, now, out, events, sink } = self;
        session.receive(bytes, torrent, *now, out, events, sink)
    }

    /// What was said since the last call.
    pub fn said(&mut self) -> Vec<String> {
        said(&std::mem::take(&mut self.out))
    }

    pub fn peer(&self) -> Summary<'_> {
        self.session.peer(PeerId(*b"-TR4050-abcdefghijkl"))
    }

    pub fn queued(&self) -> Vec<Block> {
        self.session.queue().iter().collect()
    }
}

fn said(bytes: &[u8]) -> Vec<String> {
    let limits = FrameLimits { bitfield_bytes: 99, piece_data_bytes: 1 << 17, extended_id: 255 };
    let mut reader = FrameReader::new(limits);
    let mut seen = Vec::new();
    let mut input = bytes;
    while let (used, Some(message)) = reader.next(input).expect("valid") {
        seen.push(match message {
            Message::Extended { id, payload } => {
                format!("Extended {id} {}", payload.escape_ascii())
            }
            message => format!("{message:?}"),
        });
        input = &input[used..];
    }
    assert!(!reader.mid_frame(), "whole messages only");
    seen
}

pub(super) fn block(piece: u32, begin: u32) -> Block {
    Block { piece: PieceIndex(piece), begin, length: 16384 }
}

fn rejected(block: Block) -> String {
    format!("{:?}", Message::Reject(block))
}

#[test]
fn opens_with_what_it_offers() {
    let some = |remote, offered: [u8; 8]| {
        let torrent = Content { offered: offered.map(|flag| flag == 1).to_vec(), metadata: None };
        Side::with(torrent, remote, |_| {}).said()
    };
    assert_eq!(some(PLAIN, [1; 8]), ["Bitfield([255])"]);
    assert_eq!(some(PLAIN, [1, 0, 1, 0, 0, 0, 0, 1]), ["Bitfield([161])"]);
    assert_eq!(some(PLAIN, [0; 8]), [""; 0]);
    assert_eq!(some(FAST, [1; 8]), ["HaveAll"]);
    assert_eq!(some(FAST, [0; 8]), ["HaveNone"]);
    assert_eq!(some(FAST, [0, 1, 0, 0, 0, 0, 0, 0]), ["Bitfield([64])"]);
}

#[test]
fn the_extension_handshake_says_all() {
    let mut side = Side::new(Reserved::OURS, |options| {
        options.client = "seedring 0.1";
        options.your_ip = Some([10, 0, 0, 9].into());
        options.listen_port = Some(6881);
    });
    let expected = "Extended 0 d1:md11:ut_metadatai1ee13:metadata_sizei40000e1:pi6881e4:reqqi4e\
        11:upload_onlyi1e1:v12:seedring 0.16:yourip4:\\n\\x00\\x00\\te";
    assert_eq!(side.said(), [expected, "HaveAll"]);
}

#[test]
fn requests_queue_in_order_and_once() {
    let mut side = Side::serving(FAST);
    let (a, b) = (block(0, 0), block(0, 16384));
    side.hear(&[Message::Request(a), Message::Request(b), Message::Request(a)]).expect("valid");
    assert_eq!(side.queued(), [a, b]);
    assert_eq!(side.events, [Event::Requested]);
    assert_eq!(side.session.take(0), Some(a));
    assert_eq!(side.queued(), [b]);
    side.hear(&[Message::Request(a)]).expect("asked again after it was taken");
    assert_eq!(side.queued(), [b, a]);
    assert!(side.out.is_empty());
}

#[test]
fn a_full_queue_rejects_and_a_flood_closes() {
    for (remote, answered) in [(FAST, 2), (PLAIN, 0)] {
        let mut side = Side::serving(remote);
        let requests: Vec<_> = (0..6).map(|at| Message::Request(block(at, 0))).collect();
        side.hear(&requests).expect("a little too many");
        assert_eq!(side.session.queue().len(), 4);
        let rejects = [rejected(block(4, 0)), rejected(block(5, 0))];
        assert_eq!(side.said(), rejects[..answered]);
        let mut outcome = Ok(());
        let mut sent = 2;
        while outcome.is_ok() && sent < 1000 {
            outcome = side.hear(&[Message::Request(block(6, 0))]);
            sent += 1;
        }
        assert_eq!(outcome, Err(Violation::RequestFlood { refused: 301 }));
        assert_eq!(sent, 301);
    }
}

#[test]
fn blocks_served_pay_for_requests_refused() {
    let mut side = Side::serving(FAST);
    for round in 0..1000 {
        let requests: Vec<_> = (0..5).map(|at| Message::Request(block(at, 0))).collect();
        side.hear(&requests).unwrap_or_else(|fault| panic!("round {round}: {fault}"));
        while side.session.take(0).is_some() {}
        side.out.clear();
    }
}

#[test]
fn cancels_take_out_and_are_answered() {
    for (remote, answers) in [(FAST, 1), (PLAIN, 0)] {
        let mut side = Side::serving(remote);
        let (a, b, c) = (block(0, 0), block(0, 16384), block(1, 0));
        side.hear(&[a, b].map(Message::Request)).expect("valid");
        side.session.take(0);
        side.events.clear();
        side.hear(&[a, b, c].map(Message::Cancel)).expect("valid");
        assert_eq!(side.said(), vec![rejected(b); answers], "not what was taken or never asked");
        assert_eq!(side.events, [Event::Cancelled]);
        assert!(side.queued().is_empty());
    }
}

#[test]
fn choking_rejects_what_waits() {
    let mut side = Side::serving(FAST);
    let (a, b) = (block(0, 0), block(1, 0));
    side.hear(&[a, b].map(Message::Request)).expect("valid");
    side.session.choke(T0, &mut side.out);
    side.session.choke(T0, &mut side.out);
    assert_eq!(side.said(), ["Choke".to_owned(), rejected(a), rejected(b)]);
    assert!(side.session.am_choking() && side.queued().is_empty());
    side.hear(&[Message::Request(a)]).expect("it crossed the choke");
    assert_eq!(side.said(), [rejected(a)]);

    let mut plain = Side::serving(PLAIN);
    plain.hear(&[a].map(Message::Request)).expect("valid");
    plain.session.choke(T0, &mut plain.out);
    plain.hear(&[a].map(Message::Request)).expect("valid");
    assert_eq!(plain.said(), ["Choke"]);
    assert!(plain.queued().is_empty());
}

#[test]
fn requests_to_a_choking_side_are_borne_only_while_they_may_cross() {
    let mut side = Side::serving(FAST);
    side.session.choke(T0, &mut side.out);
    for _ in 0..1000 {
        side.hear(&[Message::Request(block(0, 0))]).expect("within the grace");
    }
    side.now += Duration::from_secs(11);
    let refusals = (0..1000).take_while(|_| side.hear(&[Message::Request(block(0, 0))]).is_ok());
    assert_eq!(refusals.count(), 300);
}

#[test]
fn the_allowed_fast_set_is_served_while_choked() {
    let mut side = Side::new(FAST, |options| {
        options.your_ip = Some([80, 4, 4, 200].into());
        options.allowed_fast = 2;
        options.request_queue_max = 100;
    });
    let opening = side.said();
    assert_eq!(opening.len(), 3);
    let allowed: Vec<u32> = side
        .session
        .state
        .allowed_fast
        .iter()
        .flat_map(|set| set.iter())
        .map(|piece| piece.0)
        .collect();
    assert_eq!(opening[1], format!("AllowedFast(PieceIndex({}))", allowed[0]));
    let other = (0..7).find(|piece| !allowed.contains(piece)).expect("one of seven");
    side.hear(&[block(allowed[0], 0), block(other, 0)].map(Message::Request)).expect("valid");
    assert_eq!(side.queued(), [block(allowed[0], 0)]);
    assert_eq!(side.said(), [rejected(block(other, 0))]);
    // Unchoked, served and choked again: of what waits, the set's blocks stay.
    side.session.unchoke(T0, &mut side.out);
    side.hear(&[Message::Request(block(other, 0))]).expect("valid");
    side.session.choke(T0, &mut side.out);
    assert_eq!(side.queued(), [block(allowed[0], 0)]);
    // BEP 6: a peer that has more than the set can trade, and waits like others.
    side.hear(&[0, 1, 2].map(|piece| Message::Have(PieceIndex(piece)))).expect("valid");
    side.hear(&[Message::Request(block(allowed[0], 16384))]).expect("valid");
    assert_eq!(side.queued().len(), 1);
}

#[test]
fn a_withdrawn_piece_is_rejected() {
    let mut side = Side::serving(FAST);
    side.hear(&[block(0, 0), block(1, 0)].map(Message::Request)).expect("valid");
    side.torrent.offered[1] = false;
    side.session.reject_piece(PieceIndex(1), &mut side.out);
    side.hear(&[Message::Request(block(1, 0))]).expect("it cannot know yet");
    assert_eq!(side.said(), [rejected(block(1, 0)), rejected(block(1, 0))]);
    assert_eq!(side.queued(), [block(0, 0)]);
    side.session.have(PieceIndex(1), &mut side.out);
    side.session.reject(0, &mut side.out);
    assert!(!side.session.unheard());
    assert_eq!(side.said(), ["Have(PieceIndex(1))".to_owned(), rejected(block(0, 0))]);
}

#[test]
fn interest_is_told_once_and_waiting_is_timed() {
    let mut side = Side::new(FAST, |_| {});
    side.hear(&[Message::Interested, Message::Interested]).expect("valid");
    assert_eq!(side.events, [Event::Interested]);
    assert_eq!((side.session.waiting_since(), side.session.inactive_since()), (Some(T0), None));
    side.now += Duration::from_secs(5);
    side.session.unchoke(side.now, &mut side.out);
    assert_eq!(side.session.waiting_since(), None);
    assert_eq!(side.session.last_unchoked(), Some(side.now));
    side.session.choke(side.now, &mut side.out);
    assert_eq!(side.session.waiting_since(), Some(side.now));
    side.hear(&[Message::NotInterested]).expect("valid");
    assert_eq!(side.events[1..], [Event::NotInterested]);
    assert_eq!(side.session.waiting_since(), None);
    assert_eq!(side.session.inactive_since(), Some(side.now));
}

#[test]
fn a_complete_peer_is_noticed_however_it_says_so() {
    let haves: Vec<_> = (0..8).map(|piece| Message::Have(PieceIndex(piece))).collect();
    for messages in [&haves[..], &[Message::HaveAll], &[Message::Bitfield(&[0xff])]] {
        let mut side = Side::new(FAST, |_| {});
        side.hear(messages).expect("valid");
        assert_eq!(side.events, [Event::PeerComplete]);
        assert!(side.session.peer_wants_nothing());
        assert_eq!(side.peer().pieces_have, 8);
    }
}

/// aria2 says so in place of many haves.
#[test]
fn a_later_bitfield_adds_pieces_and_takes_none() {
    let mut side = Side::new(FAST, |_| {});
    let said = [
        Message::HaveNone,
        Message::Have(PieceIndex(0)),
        Message::Bitfield(&[0b0110_0000]),
        Message::Bitfield(&[0b0000_0001]),
        Message::HaveNone,
    ];
    side.hear(&said).expect("valid");
    assert_eq!(side.peer().pieces_have, 4);
    assert_eq!(side.events, []);
    side.hear(&[Message::HaveAll]).expect("valid");
    assert_eq!(side.events, [Event::PeerComplete]);
}

#[test]
fn the_extension_handshake_is_kept() {
    let mut side = Side::new(Reserved::OURS, |_| {});
    assert_eq!(side.peer().client, "Transmission 4.0.5");
    let payload = b"d1:md11:ut_metadatai3ee1:pi51413e11:upload_onlyi1e1:v10:\x1b[1mqB 5.06:yourip\
        4:\x01\x02\x03\x04e";
    side.hear(&[Message::Extended { id: 0, payload }]).expect("valid");
    let ours = Event::OurAddress([1, 2, 3, 4].into());
    assert_eq!(side.events, [Event::ClientNamed, Event::Introduced, ours, Event::PeerUploadOnly]);
    let peer = side.peer();
    assert_eq!((&*peer.client, peer.listen_port), ("[1mqB 5.0", Some(51413)));
    assert!(peer.upload_only && side.session.peer_wants_nothing());
}

#[test]
fn metadata_is_served_in_pieces() {
    let mut side = Side::new(Reserved::OURS, |_| {});
    side.out.clear();
    let ask = |side: &mut Side, piece| {
        let mut bytes = Vec::new();
        MetadataMessage::Request { piece }.encode(1, &mut bytes);
        side.hear_bytes(&bytes)
    };
    ask(&mut side, 0).expect("valid");
    assert!(side.out.is_empty(), "no number to answer under");
    side.hear(&[Message::Extended { id: 0, payload: b"d1:md11:ut_metadatai7eee" }]).expect("valid");
    for (piece, bytes) in [(0, 16384), (1, 16384), (2, 40_000 - 32_768)] {
        ask(&mut side, piece).expect("valid");
        let head = format!("d8:msg_typei1e5:piecei{piece}e10:total_sizei40000ee");
        assert_eq!(side.out[4..6], [20, 7]);
        assert_eq!(&side.out[6..6 + head.len()], head.as_bytes());
        assert_eq!(side.out.len(), 6 + head.len() + bytes);
        side.out.clear();
    }
    ask(&mut side, 3).expect("valid");
    side.out.resize(METADATA_OUT_BYTES.max(side.out.len()), 0);
    let unsent = side.out.len();
    ask(&mut side, 0).expect("valid");
    let reject = "Extended 7 d8:msg_typei2e5:piecei0ee";
    assert_eq!(said(&side.out[unsent..]), [reject], "while much is unsent");

    side.out.clear();
    let mut served = 0;
    let outcome = loop {
        match ask(&mut side, 0) {
            Ok(()) => served += side.out.len(),
            Err(fault) => break fault,
        }
        side.out.clear();
    };
    assert!(matches!(outcome, Violation::MetadataFlood { .. }));
    assert!((80_000..1_300_000).contains(&served), "{served}");
}

/// The user's limit may change under an open connection.
#[test]
fn silence_is_as_long_as_the_caller_says() {
    let mut side = Side::new(FAST, |_| {});
    let [short, long] = [30, 3600].map(Duration::from_secs);
    assert_eq!(side.session.timeout(T0, short, &mut side.out), Ok(Some(T0 + short)));
    let now = T0 + SILENT_AFTER;
    let next = side.session.timeout(now, long, &mut side.out).expect("fine");
    assert!(next.is_some_and(|next| next > now && next < T0 + long));
    let end = side.session.timeout(now, short, &mut side.out);
    assert_eq!(end, Err(Violation::Silent(short)));
}

#[test]
fn keeps_alive_and_closes_the_silent_and_the_idle() {
    let mut side = Side::new(FAST, |_| {});
    side.out.clear();
    let first = side.session.timeout(T0, SILENT_AFTER, &mut side.out).expect("fine");
    let first = first.expect("a next one");
    assert!(side.out.is_empty());
    assert!((T0 + KEEP_ALIVE_AFTER * 9 / 10..=T0 + KEEP_ALIVE_AFTER).contains(&first));
    let second = side.session.timeout(first, SILENT_AFTER, &mut side.out).expect("fine");
    assert_eq!(side.said(), ["KeepAlive"]);
    assert_eq!(second, Some(T0 + SILENT_AFTER));
    let end = side.session.timeout(T0 + SILENT_AFTER, SILENT_AFTER, &mut side.out);
    assert_eq!(end, Err(Violation::Silent(SILENT_AFTER)));

    let mut idle = Side::new(FAST, |_| {});
    let mut outcome = Ok(None);
    while outcome.is_ok() {
        idle.now += Duration::from_secs(50);
        idle.hear(&[Message::KeepAlive]).expect("valid");
        outcome = idle.session.timeout(idle.now, SILENT_AFTER, &mut idle.out);
    }
    assert_eq!(outcome, Err(Violation::Inactive(INACTIVE_AFTER)));
    assert_eq!(idle.now, T0 + INACTIVE_AFTER);
    assert!(!Violation::Inactive(INACTIVE_AFTER).is_fault());
}

/// What is dropped of a peer that hears no rejects waits for a choke to say so.
#[test]
fn a_choke_tells_who_hears_no_rejects() {
    let drops: [fn(&mut Side); 3] = [
        |side| side.session.reject(0, &mut side.out),
        |side| side.session.reject_piece(PieceIndex(1), &mut side.out),
        |side| side.hear(&[Message::Request(block(6, 0))]).expect("one too many"),
    ];
    for dropped in drops {
        let mut side = Side::serving(PLAIN);
        side.hear(&[1, 2, 3, 4].map(|piece| Message::Request(block(piece, 0)))).expect("valid");
        dropped(&mut side);
        assert!(side.session.unheard() && side.out.is_empty());
        side.session.choke(T0, &mut side.out);
        assert!(!side.session.unheard(), "told");
        assert_eq!(side.said(), ["Choke"]);
    }
    // A cancel wants no answer, and a choke has given it.
    let mut side = Side::serving(PLAIN);
    let a = block(0, 0);
    side.hear(&[Message::Request(a), Message::Cancel(a)]).expect("valid");
    side.session.choke(T0, &mut side.out);
    side.hear(&[Message::Request(a)]).expect("it crossed the choke");
    assert!(!side.session.unheard());
}
