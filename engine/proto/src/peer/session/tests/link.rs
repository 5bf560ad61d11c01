//! Owns: sessions under streams: any cut the same, any bytes without panic, bounds at each step.
//! Never: names single messages. Flow: test only.

use super::*;

fn message() -> impl Strategy<Value = Vec<u8>> {
    let block = (0..10u32, 0..6u32, prop_oneof![8 => Just(16384u32), 1 => 0..140_000u32]).prop_map(
        |(piece, at, length)| Block { piece: PieceIndex(piece), begin: at * 16384, length },
    );
    let good = (0..7u32, 0..4u32).prop_map(|(piece, at)| self::block(piece, at * 16384));
    let encoded = |message: Message<'_>| {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        bytes
    };
    prop_oneof![
        20 => good.clone().prop_map(move |block| encoded(Message::Request(block))),
        1 => block.prop_map(move |block| encoded(Message::Request(block))),
        5 => good.prop_map(move |block| encoded(Message::Cancel(block))),
        2 => any::<bool>().prop_map(move |interested| {
            encoded(if interested { Message::Interested } else { Message::NotInterested })
        }),
        3 => (0..8u32).prop_map(move |piece| encoded(Message::Have(PieceIndex(piece)))),
        1 => any::<u8>().prop_map(move |bits| encoded(Message::Bitfield(&[bits]))),
        1 => Just(encoded(Message::KeepAlive)),
        1 => Just(encoded(Message::Extended { id: 0, payload: b"d1:md11:ut_metadatai2eee" })),
        1 => (0..4u32).prop_map(|piece| {
            let mut bytes = Vec::new();
            MetadataMessage::Request { piece }.encode(1, &mut bytes);
            bytes
        }),
        1 => prop::collection::vec(any::<u8>(), 0..30).prop_map(move |data| {
            encoded(Message::Piece { piece: PieceIndex(0), begin: 0, data: &data })
        }),
    ]
}

/// Everything that can be seen of a session after a stream.
fn outcome(
    remote: Reserved,
    stream: &[u8],
    cuts: &[usize],
) -> (String, Vec<u8>, Vec<Block>, String) {
    let mut side = Side::serving(remote);
    let mut result = Ok(());
    let mut start = 0;
    for end in cuts.iter().copied().chain([stream.len()]) {
        let before = side.out.len();
        result = side.hear_bytes(&stream[start..end]);
        assert!(side.session.queue().len() <= 4, "the queue's bound");
        assert!(side.out.len() - before <= (end - start) * 20_000 / 30 + 20_000);
        start = end;
        if result.is_err() {
            break;
        }
    }
    let peer = format!("{:?}", side.peer());
    (format!("{result:?}"), side.out.clone(), side.queued(), peer)
}

proptest! {
    #[test]
    fn any_cut_of_a_stream_gives_the_same(
        messages in prop::collection::vec(message(), 0..40),
        mut cuts in prop::collection::vec(0..600usize, 0..20),
        remote in prop_oneof![Just(Reserved::OURS), Just(FAST), Just(PLAIN)],
    ) {
        let stream = messages.concat();
        cuts.iter_mut().for_each(|cut| *cut = (*cut).min(stream.len()));
        cuts.sort_unstable();
        prop_assert_eq!(outcome(remote, &stream, &cuts), outcome(remote, &stream, &[]));
    }

    #[test]
    fn random_bytes_never_panic(
        stream in prop::collection::vec(
            prop_oneof![3 => Just(0u8), 2 => 0..22u8, 1 => any::<u8>()],
            0..300,
        ),
    ) {
        let _ = outcome(Reserved::OURS, &stream, &[]);
    }

    /// With the fast extension each request that was not taken, and is not queued, was rejected.
    #[test]
    fn every_request_is_answered(
        wanted in prop::collection::vec((0..7u32, 0..4u32, 0..4u8), 0..60),
    ) {
        let mut side = Side::serving(FAST);
        let (mut asked, mut taken) = (Vec::new(), Vec::new());
        for (piece, at, then) in wanted {
            let block = block(piece, at * 16384);
            if !side.queued().contains(&block) {
                asked.push(block);
            }
            side.hear(&[Message::Request(block)]).expect("within the bounds");
            match then {
                0 => taken.extend(side.session.take(0)),
                1 => side.hear(&[Message::Cancel(block)]).expect("valid"),
                2 => {
                    side.session.choke(T0, &mut side.out);
                    side.session.unchoke(T0, &mut side.out);
                }
                _ => {}
            }
        }
        taken.extend(side.queued());
        let mut answers: Vec<String> = taken.into_iter().map(rejected).collect();
        answers.extend(side.said().into_iter().filter(|said| said.starts_with("Reject")));
        let mut asked: Vec<String> = asked.into_iter().map(rejected).collect();
        asked.sort_unstable();
        answers.sort_unstable();
        prop_assert_eq!(answers, asked);
    }
}

#[test]
fn a_served_stream_needs_no_new_memory() {
    let mut side = Side::serving(FAST);
    let mut bytes = Vec::new();
    (0..4).for_each(|at| Message::Request(block(1, at * 16384)).encode(&mut bytes));
    let mut held = None;
    for round in 1..1000 {
        // Cut inside a request, each time elsewhere.
        let cut = round % bytes.len();
        side.hear_bytes(&bytes[..cut]).expect("valid");
        side.hear_bytes(&bytes[cut..]).expect("valid");
        assert_eq!(side.session.queue().len(), 4);
        while side.session.take(0).is_some() {}
        let now = side.session.held_bytes();
        assert_eq!(*held.get_or_insert(now), now, "round {round}");
    }
    side.session.shrink();
    assert_eq!(side.session.held_bytes(), 0, "idle, it gives all memory back");
}

/// Two sessions, each the other's peer, over a link that cuts at will.
#[test]
fn two_sessions_understand_each_other() {
    let mut seed = Side::new(Reserved::OURS, |options| options.listen_port = Some(6881));
    let nothing = Content { offered: vec![false; 8], metadata: None };
    let mut leech = Side::with(nothing, Reserved::OURS, |options| {
        options.upload_only = false;
        options.client = "other 1.0";
    });
    for step in [1, 7, 64, 4096] {
        for (from, to) in [(0, 1), (1, 0)] {
            let sides = [&mut seed, &mut leech];
            let bytes = std::mem::take(&mut sides[from].out);
            for part in bytes.chunks(step) {
                sides[to].hear_bytes(part).expect("what one says, the other takes");
            }
        }
        seed.session.have(PieceIndex(step as u32 % 8), &mut seed.out);
        leech.session.unchoke(T0, &mut leech.out);
    }
    assert!(leech.events.contains(&Event::PeerComplete));
    assert_eq!(seed.peer().client, "other 1.0");
    let peer = leech.peer();
    assert_eq!((peer.pieces_have, peer.listen_port, peer.upload_only), (8, Some(6881), true));
    assert!(!seed.peer().peer_choking);
}
