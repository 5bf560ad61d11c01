//! Owns: two sessions that download of each other, or one of the other, over a link that cuts and
//! delays at will. Never: single messages. Flow: test only.

use std::collections::BTreeSet;

use super::*;
use crate::wire::piece_header;

/// A session with what its owner knows.
struct Party {
    side: Side,
    has: BTreeSet<Block>,
    asked: BTreeSet<Block>,
    inbox: Vec<u8>,
}

fn all() -> Vec<Block> {
    let whole = (0..7).flat_map(|piece| (0..4).map(move |at| block(piece, at * 16384)));
    whole.chain([Block { piece: PieceIndex(7), begin: 0, length: 5 }]).collect()
}

fn content(block: Block) -> Vec<u8> {
    let start = block.piece.0 * 65536 + block.begin;
    (start..start + block.length).map(|at| (at % 251) as u8).collect()
}

impl Party {
    fn new(remote: Reserved, has: impl Fn(u32) -> bool) -> Self {
        let offered: Vec<bool> = (0..8).map(has).collect();
        let seeds = offered.iter().all(|offered| *offered);
        let has = all().into_iter().filter(|block| offered[block.piece.0 as usize]).collect();
        let torrent = Content { offered, metadata: None };
        let side = Side::with(torrent, remote, |options| {
            options.upload_only = seeds;
            options.your_ip = Some([80, 4, 4, 200].into());
            options.allowed_fast = 1;
        });
        Self { side, has, asked: BTreeSet::new(), inbox: Vec::new() }
    }

    fn lacks(&self) -> Vec<Block> {
        all().into_iter().filter(|block| !self.has.contains(block)).collect()
    }

    fn ask(&mut self) {
        let lacks = self.lacks();
        let Side { session, out, now, .. } = &mut self.side;
        session.set_interested(lacks.iter().any(|at| session.pieces().has(at.piece)), out);
        for block in lacks {
            if session.room() == 0 {
                break;
            }
            if session.may_request(block.piece) && self.asked.insert(block) {
                session.request(block, *now, out);
            }
        }
    }

    fn cancel(&mut self, place: usize) {
        let block = self.asked.iter().nth(place % self.asked.len().max(1)).copied();
        if let Some(block) = block {
            self.side.session.cancel(block, &mut self.side.out);
            self.asked.remove(&block);
        }
    }

    fn serve(&mut self, count: usize) {
        for _ in 0..count {
            let Some(block) = self.side.session.take(0) else { return };
            self.side.out.extend_from_slice(&piece_header(block));
            self.side.out.extend(content(block));
        }
    }

    /// Hears at most so many bytes of what the other said.
    fn hear(&mut self, bytes: usize) {
        let rest = self.inbox.split_off(bytes.min(self.inbox.len()));
        let part = std::mem::replace(&mut self.inbox, rest);
        self.side.hear_bytes(&part).expect("what a session says, the other takes");
        for (block, data) in self.side.sink.blocks.drain(..) {
            assert_eq!(data, content(block));
            assert!(self.side.events.contains(&Event::Block(block)));
        }
        for event in std::mem::take(&mut self.side.events) {
            match event {
                Event::Block(block) => {
                    assert!(self.asked.remove(&block), "asked for");
                    self.has.insert(block);
                    self.gained(block.piece);
                }
                Event::Returned(block) => assert!(self.asked.remove(&block), "asked for"),
                _ => {}
            }
        }
        let outstanding = self.side.session.requests().into_iter().flat_map(|asked| asked.iter());
        assert_eq!(outstanding.collect::<BTreeSet<_>>(), self.asked);
    }

    fn gained(&mut self, piece: PieceIndex) {
        if !self.lacks().iter().any(|block| block.piece == piece) {
            self.side.torrent.offered[piece.0 as usize] = true;
            self.side.session.have(piece, &mut self.side.out);
        }
    }

    fn again(&mut self) {
        let Side { session, out, now, .. } = &mut self.side;
        if session.unheard() {
            session.choke(*now, out);
        }
        session.unchoke(*now, out);
    }
}

fn step(parties: &mut [Party; 2], kind: u8, which: usize, amount: usize) {
    let party = &mut parties[which];
    let now = party.side.now;
    match kind {
        0 => party.ask(),
        1 => party.cancel(amount),
        2 => party.side.session.choke(now, &mut party.side.out),
        3 | 4 => party.side.session.unchoke(now, &mut party.side.out),
        5 | 6 => party.serve(1 + amount % 4),
        7 => party.side.session.reject(amount % 4, &mut party.side.out),
        8 => parties.iter_mut().for_each(|party| party.side.now += Duration::from_millis(700)),
        9 => party.side.session.shrink(),
        _ => {
            let said = std::mem::take(&mut parties[which].side.out);
            parties[1 - which].inbox.extend(said);
            parties[1 - which].hear(amount);
        }
    }
}

fn run(mut parties: [Party; 2], steps: &[(u8, bool, usize)]) {
    for (kind, which, amount) in steps {
        step(&mut parties, *kind, usize::from(*which), *amount);
    }
    for _ in 0..200 {
        if parties.iter().all(|party| party.lacks().is_empty() && party.inbox.is_empty()) {
            break;
        }
        for which in [0, 1] {
            parties[which].again();
            parties[which].ask();
            parties[which].serve(usize::MAX);
            step(&mut parties, 10, which, usize::MAX);
        }
    }
    for which in [0, 1] {
        let Party { side, .. } = &mut parties[which];
        side.session.completed(&mut side.out, &side.torrent);
        step(&mut parties, 10, which, usize::MAX);
    }
    for mut party in parties {
        assert_eq!(party.lacks(), []);
        assert!(party.asked.is_empty() && !party.side.session.downloads());
        party.side.now += LATE_FOR;
        party.side.session.timeout(party.side.now, SILENT_AFTER, &mut party.side.out).expect("ok");
        assert!(party.side.session.state.download.is_none());
    }
}

fn steps() -> impl Strategy<Value = Vec<(u8, bool, usize)>> {
    let amount = prop_oneof![3 => 0..40usize, 2 => 0..20_000usize, 1 => Just(usize::MAX)];
    prop::collection::vec((0..18u8, any::<bool>(), amount), 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_leech_gets_all_of_a_seed(
        steps in steps(),
        remote in prop_oneof![Just(Reserved::OURS), Just(FAST), Just(PLAIN)],
    ) {
        run([Party::new(remote, |_| true), Party::new(remote, |_| false)], &steps);
    }

    #[test]
    fn two_leeches_complete_each_other(
        steps in steps(),
        remote in prop_oneof![Just(Reserved::OURS), Just(FAST), Just(PLAIN)],
        half in any::<u8>(),
    ) {
        let has = |piece| half >> piece & 1 == 1;
        run([Party::new(remote, has), Party::new(remote, |piece| !has(piece))], &steps);
    }
}
