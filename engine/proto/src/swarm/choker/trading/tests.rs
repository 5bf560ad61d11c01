//! Owns: a market of chokers that trade with each other, in virtual time.
//! Never: sessions: what a peer gives is its capacity, in equal parts to whom it unchokes.
//! Flow: test only.

use proptest::prelude::*;

use super::super::{Candidate, Choker, INTERVAL, Slots, TENURE, Trade};
use super::*;

const SNUBBED_AFTER: Duration = Duration::from_secs(60);

struct Trader {
    choker: Choker,
    capacity: u64,
    /// A free rider takes and never unchokes.
    gives: bool,
}

/// What one trader knows of another, and has done for it.
#[derive(Clone, Copy, Default)]
struct Link {
    unchoked: bool,
    last_unchoked: Option<Duration>,
    waiting_since: Option<Duration>,
    /// Bytes that it gave in this interval and the one before.
    gave: [u64; 2],
    gave_at: Duration,
    turns: u32,
}

struct Market {
    traders: Vec<Trader>,
    /// `links[me][other]`.
    links: Vec<Vec<Link>>,
    received: Vec<u64>,
    now: Duration,
}

impl Market {
    fn new(slots: u32, capacities: &[(u64, bool)], seed: u64) -> Self {
        let trader = |(n, (capacity, gives)): (usize, &(u64, bool))| {
            let choker = Choker::new(Slots::Limited(slots), seed ^ (n as u64) << 40);
            Trader { choker, capacity: *capacity, gives: *gives }
        };
        let count = capacities.len();
        let waits = Link { waiting_since: Some(Duration::ZERO), ..Link::default() };
        Self {
            traders: capacities.iter().enumerate().map(trader).collect(),
            links: vec![vec![waits; count]; count],
            received: vec![0; count],
            now: Duration::ZERO,
        }
    }

    /// All of them rotate, then give for an interval.
    fn round(&mut self) {
        let count = self.traders.len();
        for me in 0..count {
            if !self.traders[me].gives {
                continue;
            }
            let candidates: Vec<Candidate<usize, u8>> =
                (0..count).filter(|other| *other != me).map(|other| self.seen(me, other)).collect();
            let mut decisions = Vec::new();
            self.traders[me].choker.rechoke(self.now, &candidates, &mut decisions);
            for (other, unchoke) in decisions {
                let link = &mut self.links[me][other];
                link.unchoked = unchoke;
                link.waiting_since = (!unchoke).then_some(self.now);
                if unchoke {
                    link.last_unchoked = Some(self.now);
                    link.turns += 1;
                }
            }
        }
        self.links.iter_mut().flatten().for_each(|link| link.gave = [0, link.gave[0]]);
        self.now += INTERVAL;
        for me in 0..count {
            let served: Vec<usize> = (0..count).filter(|o| self.links[me][*o].unchoked).collect();
            let part = self.traders[me].capacity * INTERVAL.as_secs();
            for other in &served {
                let bytes = part / served.len() as u64;
                self.received[*other] += bytes;
                let back = &mut self.links[*other][me];
                back.gave[0] += bytes;
                back.gave_at = self.now;
            }
        }
    }

    fn seen(&self, me: usize, other: usize) -> Candidate<usize, u8> {
        let link = self.links[me][other];
        let gives_bytes_per_s = (link.gave[0] + link.gave[1]) / 20;
        let snubs = self.now.saturating_sub(link.gave_at) >= SNUBBED_AFTER;
        Candidate {
            key: other,
            torrent: 0,
            torrent_slots: Slots::Unlimited,
            interested: true,
            unchoked: link.unchoked,
            rate_bytes_per_s: 0,
            trade: Some(Trade { gives_bytes_per_s, snubs }),
            last_unchoked: link.last_unchoked,
            waiting_since: link.waiting_since,
        }
    }

    fn run(&mut self, minutes: u32) {
        (0..minutes * 6).for_each(|_| self.round());
    }

    /// What a trader got, as a part of what it could give.
    fn returns(&self, who: std::ops::Range<usize>) -> f64 {
        let got: u64 = self.received[who.clone()].iter().sum();
        let could: u64 = self.traders[who].iter().map(|trader| trader.capacity).sum();
        got as f64 / (could * self.now.as_secs()) as f64
    }
}

fn fairness(got: &[u64]) -> f64 {
    let sum: f64 = got.iter().map(|bytes| *bytes as f64).sum();
    let squares: f64 = got.iter().map(|bytes| (*bytes as f64).powi(2)).sum();
    sum * sum / (got.len() as f64 * squares)
}

#[test]
fn equals_get_what_they_give() {
    for seed in 0..4 {
        let mut market = Market::new(5, &[(100_000, true); 40], seed);
        market.run(60);
        let fairness = fairness(&market.received);
        assert!(fairness > 0.97, "seed {seed}: {fairness}");
    }
}

#[test]
fn a_free_rider_gets_its_turns_of_the_optimistic_slot_and_no_more() {
    let mut capacities = [(100_000, true); 30];
    capacities[24..].iter_mut().for_each(|(_, gives)| *gives = false);
    for seed in 0..4 {
        let mut market = Market::new(5, &capacities, seed);
        market.run(5); // all are new
        market.received.fill(0);
        let began = market.now;
        market.run(60);
        // 24 traders with one optimistic slot of five; all those who have no regular one share it.
        let optimistic = 24 * 20_000 * (market.now - began).as_secs();
        let (honest, riders): (u64, u64) =
            (market.received[..24].iter().sum(), market.received[24..].iter().sum());
        assert!(riders < optimistic * 4 / 10, "seed {seed}: {riders} of {optimistic}");
        let (honest, rider) = (honest / 24, riders / 6);
        assert!(rider * 4 < honest, "seed {seed}: a rider {rider}, who gives {honest}");
        assert!(rider > 0, "it is not shut out");
    }
}

#[test]
fn the_fast_find_the_fast() {
    let mut capacities = [(200_000, true); 30];
    capacities[15..].iter_mut().for_each(|(capacity, _)| *capacity = 20_000);
    for seed in 0..4 {
        let mut market = Market::new(5, &capacities, seed);
        market.run(10);
        market.received.fill(0);
        let (began, mut regular) = (market.now, 0);
        market.run(30);
        for me in 0..15 {
            regular += (0..15).filter(|other| market.links[me][*other].unchoked).count();
        }
        let fast =
            market.returns(0..15) * market.now.as_secs_f64() / (market.now - began).as_secs_f64();
        assert!(regular >= 15 * 3, "seed {seed}: {regular} of 75 slots of the fast are theirs");
        assert!(fast > 0.75, "seed {seed}: they get back {fast:.2} of what they give");
    }
}

#[test]
fn whom_everybody_snubs_tries_all_in_turn() {
    // Nobody answers: each slot is an optimistic one, for 30 s.
    let mut capacities = [(100_000, false); 21];
    capacities[0].1 = true;
    let mut market = Market::new(5, &capacities, 1);
    market.run(10);
    let turns: Vec<u32> = market.links[0][1..].iter().map(|link| link.turns).collect();
    // 600 s of five slots are 100 turns of 30 s, five for each of twenty.
    assert!(turns.iter().all(|turns| (4..=6).contains(turns)), "{turns:?}");
    // One that gives among them is found, and kept.
    market.traders[7].gives = true;
    market.run(5);
    assert!(market.links[0][7].unchoked && market.links[7][0].unchoked);
    let turns = market.links[0][7].turns;
    market.run(10);
    assert_eq!(market.links[0][7].turns, turns, "its slot is a regular one");
}

#[test]
fn one_slot_is_for_who_gives_and_for_the_others_in_turn() {
    let mut market = Market::new(1, &[(100_000, true); 4], 3);
    market.run(60);
    for me in 0..4 {
        let turns = (0..4).filter(|other| *other != me).map(|other| market.links[me][other].turns);
        assert!(turns.clone().all(|turns| turns > 0), "{:?}", turns.collect::<Vec<_>>());
    }
    assert!(fairness(&market.received) > 0.8, "{:?}", market.received);
}

#[test]
fn who_was_never_tried_waits_a_third() {
    let trade = Some(Trade::default());
    let peer = |key, waiting_s: u64, last: Option<u64>| Candidate {
        key,
        torrent: 0,
        torrent_slots: Slots::Unlimited,
        interested: true,
        unchoked: false,
        rate_bytes_per_s: 0,
        trade,
        last_unchoked: last.map(Duration::from_secs),
        waiting_since: Some(Duration::from_secs(1_000 - waiting_s)),
    };
    let chosen = |peers: &[Candidate<u32, u32>]| {
        let mut decisions = Vec::new();
        let now = Duration::from_secs(1_000);
        Choker::new(Slots::Limited(1), 1).rechoke(now, peers, &mut decisions);
        decisions
    };
    assert_eq!(chosen(&[peer(1, 100, Some(800)), peer(2, 40, None)]), [(2, true)]);
    assert_eq!(chosen(&[peer(1, 100, Some(800)), peer(2, 30, None)]), [(1, true)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever they give: bounds hold, all slots are used, and everybody is tried within the time
    /// that the optimistic slots take to go round.
    #[test]
    fn slots_hold_and_nobody_starves(
        slots in 1..12u32,
        peers in prop::collection::vec((0..1_000_000u64, any::<bool>()), 1..40),
        seed in any::<u64>(),
    ) {
        let mut choker = Choker::new(Slots::Limited(slots), seed);
        let count = peers.len();
        let waits = Link { waiting_since: Some(Duration::ZERO), ..Link::default() };
        let mut links = vec![waits; count];
        let round = TENURE + INTERVAL;
        let each = if slots == 1 { round * 4 } else { round };
        let bound = each * (count as u32 + 1) * 3;
        let mut now = Duration::ZERO;
        for _ in 0..300 {
            let candidates: Vec<Candidate<usize, u8>> = (0..count).map(|key| Candidate {
                key,
                torrent: 0,
                torrent_slots: Slots::Unlimited,
                interested: true,
                unchoked: links[key].unchoked,
                rate_bytes_per_s: 0,
                trade: Some(Trade { gives_bytes_per_s: peers[key].0, snubs: peers[key].1 }),
                last_unchoked: links[key].last_unchoked,
                waiting_since: links[key].waiting_since,
            }).collect();
            let mut decisions = Vec::new();
            choker.rechoke(now, &candidates, &mut decisions);
            for (key, unchoke) in decisions {
                prop_assert_ne!(links[key].unchoked, unchoke);
                links[key].unchoked = unchoke;
                links[key].waiting_since = (!unchoke).then_some(now);
                if unchoke { links[key].last_unchoked = Some(now) }
                let used = links.iter().filter(|link| link.unchoked).count();
                prop_assert!(used <= slots as usize);
            }
            let used = links.iter().filter(|link| link.unchoked).count();
            prop_assert_eq!(used, count.min(slots as usize));
            for link in &links {
                if let Some(since) = link.waiting_since {
                    prop_assert!(now - since <= bound, "{:?} of {bound:?}", now - since);
                }
            }
            now += INTERVAL;
        }
    }
}
