use proptest::prelude::*;

use super::*;
use crate::tracker::announce::{Crypto, Event, Totals};
use crate::tracker::jitter::Jitter;
use crate::units::{InfoHash, PeerId};

const V4: &str = "192.0.2.1:80";
const OTHER: &str = "192.0.2.2:80";
const V6: &str = "[2001:db8::1]:80";
const GOOD: &[u8] = b"\0\0\x07\x08\0\0\0\x04\0\0\0\x03";

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn announcement() -> Announcement {
    let request = Request {
        info_hash: InfoHash([7; 20]),
        peer_id: PeerId([8; 20]),
        port: 6881,
        totals: Totals::default(),
        event: Event::Started,
        key: 9,
        numwant: 80,
        ip: None,
        ipv6: None,
        crypto: Crypto::Unsupported,
        tracker_id: None,
    };
    Announcement { request, url: TrackerUrl::parse("udp://t.example:80/announce").unwrap() }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    at: Duration,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl Sent {
    fn is_connect(&self) -> bool {
        self.bytes.len() == 16
    }

    /// An answer with this action and body.
    fn answer(&self, action: u8, body: &[u8]) -> Vec<u8> {
        let transaction = &self.bytes[12..16];
        [&[0, 0, 0, action], transaction, body].concat()
    }

    fn connection(&self) -> u64 {
        u64::from_be_bytes(self.bytes[..8].try_into().unwrap())
    }
}

/// The machine in virtual time; what it sends is kept.
struct World {
    machine: Exchanges,
    now: Duration,
    sent: Vec<Sent>,
    ended: Vec<(Duration, ExchangeId, Result<Reply, Failure>)>,
    next_id: ExchangeId,
}

impl World {
    fn new() -> Self {
        Self {
            machine: Exchanges::new(Timing::default(), [1; 32]),
            now: Duration::ZERO,
            sent: Vec::new(),
            ended: Vec::new(),
            next_id: 0,
        }
    }

    fn begin(&mut self, addresses: &[&str]) -> ExchangeId {
        self.next_id += 1;
        let addresses = addresses.iter().map(|a| address(a)).collect();
        self.machine.begin(self.now, self.next_id, addresses, announcement());
        self.settle();
        self.next_id
    }

    fn settle(&mut self) {
        while let Some(action) = self.machine.poll(self.now) {
            match action {
                Action::Send { to, datagram } => {
                    self.sent.push(Sent { at: self.now, to, bytes: datagram });
                }
                Action::Ended { id, outcome } => self.ended.push((self.now, id, outcome)),
            }
        }
    }

    fn run(&mut self, until: Duration) {
        while let Some(at) = self.machine.deadline().filter(|at| *at <= until) {
            assert!(at > self.now, "time goes on");
            self.now = at;
            self.settle();
        }
        self.now = until;
        self.settle();
    }

    fn receive(&mut self, from: SocketAddr, bytes: &[u8]) {
        self.machine.received(self.now, from, bytes);
        self.settle();
    }

    /// The tracker answers the last packet, as it should unless told otherwise.
    fn answer(&mut self, action: u8, body: &[u8]) {
        let last = self.sent.last().unwrap().clone();
        self.receive(last.to, &last.answer(action, body));
    }

    /// `id` as the connection id.
    fn let_connect(&mut self, id: u64) {
        assert!(self.sent.last().unwrap().is_connect());
        self.answer(0, &id.to_be_bytes());
    }

    fn times(&self, to: &str) -> Vec<u64> {
        let to = address(to);
        self.sent.iter().filter(|s| s.to == to).map(|s| s.at.as_secs()).collect()
    }

    fn failure(&self) -> &Failure {
        self.ended.last().unwrap().2.as_ref().unwrap_err()
    }
}

#[test]
fn an_announce_connects_and_is_answered() {
    let mut world = World::new();
    let id = world.begin(&[V4]);
    world.let_connect(5);
    let announce = world.sent[1].clone();
    assert_eq!((announce.connection(), announce.bytes.len()), (5, 98 + 2 + "/announce".len()));
    assert_ne!(announce.bytes[12..16], world.sent[0].bytes[12..16], "a transaction of its own");
    world.answer(1, &[GOOD, b"\x0a\0\0\x01\x1a\xe1"].concat());
    let (_, ended, outcome) = world.ended.pop().unwrap();
    let reply = outcome.unwrap();
    assert_eq!((ended, reply.interval, reply.seeders), (id, Some(s(1800)), Some(3)));
    assert_eq!(reply.peers, [address("10.0.0.1:6881")]);
    assert_eq!(world.machine.running(), 0);
    assert_eq!(world.machine.deadline(), None);
}

#[test]
fn peers_are_of_the_family_that_answered() {
    let mut world = World::new();
    world.begin(&[V6]);
    world.let_connect(5);
    let peer = [&[0x20, 1, 0xd, 0xb8], &[0; 11][..], &[7, 0x1a, 0xe1]].concat();
    world.answer(1, &[GOOD, &peer].concat());
    let reply = world.ended.pop().unwrap().2.unwrap();
    assert_eq!(reply.peers, [address("[2001:db8::7]:6881")]);
}

#[test]
fn a_connection_is_shared_for_a_minute() {
    let mut world = World::new();
    // Two wait for one connect request.
    world.begin(&[V4]);
    world.begin(&[V4]);
    assert_eq!(world.sent.len(), 1);
    world.let_connect(5);
    assert_eq!(world.sent.len(), 3);
    for n in [1, 2] {
        let sent = world.sent[n].clone();
        world.receive(sent.to, &sent.answer(1, GOOD));
    }
    assert_eq!(world.ended.len(), 2);
    world.now = ms(59_999);
    world.begin(&[V4]);
    assert!(!world.sent.last().unwrap().is_connect());
    world.answer(1, GOOD);
    world.now = s(60);
    world.begin(&[V4]);
    assert!(world.sent.last().unwrap().is_connect());
}

#[test]
fn a_silent_address_is_asked_ever_less_often_whoever_asks() {
    let mut world = World::new();
    for second in 0..1000 {
        world.run(s(second));
        world.begin(&[V4]);
    }
    world.run(s(1100));
    assert_eq!(world.times(V4), [0, 15, 45, 105, 225, 465, 945]);
    assert_eq!(world.ended.len(), 1000);
    // Those of the first half minute wait their time, later ones are told at once.
    assert_eq!(world.ended[0].0, s(30));
    assert_eq!(world.ended[0].2.as_ref().unwrap_err().message, "no answer from the tracker");
    let (at, _, outcome) = world.ended.iter().find(|e| e.1 == 150).unwrap();
    assert_eq!(*at, s(149));
    let failure = outcome.as_ref().unwrap_err();
    assert_eq!(failure.retry, Retry::After(s(225 - 149)));
    assert!(failure.message.starts_with("the tracker is silent"), "{}", failure.message);
    assert!(!failure.maybe_heard);
    // An answer, however late, ends the silence.
    let last = world.sent.last().unwrap().clone();
    world.receive(last.to, &last.answer(0, &[9; 8]));
    world.begin(&[V4]);
    assert_eq!(world.sent.last().unwrap().connection(), 0x0909_0909_0909_0909);
}

#[test]
fn a_lost_announce_is_sent_again_on_a_fresh_connection() {
    let mut world = World::new();
    world.begin(&[V4]);
    world.let_connect(5);
    let first = world.sent.last().unwrap().clone();
    world.run(s(15));
    // A tracker that began anew does not know the id of before.
    world.let_connect(6);
    let second = world.sent.last().unwrap().clone();
    assert_eq!((second.at, second.connection()), (s(15), 6));
    assert_eq!(second.bytes[8..], first.bytes[8..], "the same announce");
    // The answer to the first was only late.
    world.receive(first.to, &first.answer(1, GOOD));
    assert!(world.ended[0].2.is_ok());
    // One that is lost for good.
    world.begin(&[V4]);
    world.run(s(45));
    let failure = world.failure();
    assert!(failure.maybe_heard && !failure.refused, "{failure:?}");
    assert_eq!(failure.message, "the tracker does not answer, though it let us connect");
}

#[test]
fn an_id_that_comes_again_is_not_taken_for_the_one_before() {
    let mut world = World::new();
    world.begin(&[V4]);
    world.let_connect(5);
    world.run(s(10));
    world.begin(&[V4]);
    world.run(s(15));
    // The first asks for another id and gets the same number.
    world.let_connect(5);
    assert_eq!(world.times(V4), [0, 0, 10, 15, 15]);
    // The second's patience ends: its connection has been renewed already.
    world.run(s(25));
    assert_eq!(world.times(V4), [0, 0, 10, 15, 15, 25]);
    assert!(!world.sent.last().unwrap().is_connect());
}

#[test]
fn what_is_not_an_answer_changes_nothing() {
    let mut world = World::new();
    world.begin(&[V4]);
    let asked = world.sent[0].clone();
    let good = asked.answer(0, &[5; 8]);
    let mut guessed = good.clone();
    guessed[7] ^= 1;
    world.receive(asked.to, &guessed);
    world.receive(address(OTHER), &good);
    world.receive(address("192.0.2.1:81"), &good);
    world.receive(asked.to, &good[..7]);
    world.receive(asked.to, &[]);
    assert_eq!((world.machine.strays(), world.sent.len()), (5, 1));
    world.receive(asked.to, &good[..15]);
    world.receive(asked.to, &asked.answer(1, &[0; 12]));
    assert_eq!(world.sent.len(), 1);
    world.receive(asked.to, &good);
    let announce = world.sent.last().unwrap().clone();
    // The answer to the connect again, and an announce's from another address.
    world.receive(asked.to, &good);
    world.receive(address(OTHER), &announce.answer(1, GOOD));
    world.receive(asked.to, &announce.answer(1, &GOOD[..11]));
    assert!(world.ended.is_empty());
    // What was wrong is told in the end.
    world.run(s(30));
    assert_eq!(world.failure().message, "the tracker's answer is cut short: 19 bytes");
    assert!(world.failure().maybe_heard);
}

#[test]
fn refusals_end_an_announce() {
    let mut world = World::new();
    world.begin(&[V4]);
    world.let_connect(5);
    world.answer(3, b"unregistered torrent");
    let failure = world.failure();
    assert_eq!(failure.message, "unregistered torrent");
    assert!(failure.refused && !failure.maybe_heard);
    // Refused at the connect: told to all, and asked again only when its time has come.
    let mut world = World::new();
    world.begin(&[V4]);
    world.begin(&[V4]);
    world.answer(3, b"go away");
    world.begin(&[V4]);
    assert_eq!((world.ended.len(), world.sent.len()), (3, 1));
    assert_eq!(world.failure().message, "go away");
    assert!(world.failure().refused);
    assert_eq!(world.failure().retry, Retry::After(s(15)));
    world.run(s(15));
    world.begin(&[V4]);
    world.let_connect(5);
    world.answer(1, GOOD);
    assert!(world.ended.last().unwrap().2.is_ok());
}

#[test]
fn a_connection_id_that_is_not_known_is_renewed_once() {
    let mut world = World::new();
    world.begin(&[V4]);
    world.let_connect(5);
    world.answer(3, b"Connection ID missmatch.\0");
    world.let_connect(6);
    assert_eq!(world.sent.last().unwrap().connection(), 6);
    assert!(world.ended.is_empty());
    world.answer(3, b"Connection ID missmatch.\0");
    assert_eq!(world.failure().message, "Connection ID missmatch.");
    assert_eq!(world.sent.len(), 4);
}

#[test]
fn the_next_address_is_asked_when_the_first_is_silent() {
    let mut world = World::new();
    world.begin(&[V6, V4, OTHER]);
    world.run(ms(1500));
    assert_eq!((world.times(V6), world.times(V4), world.times(OTHER)), (vec![0], vec![1], vec![]));
    world.let_connect(5);
    world.answer(1, GOOD);
    assert!(world.ended[0].2.is_ok());
    // The connection that is there is used, whatever stands in front.
    world.begin(&[V6, V4, OTHER]);
    assert_eq!(world.sent.last().unwrap().to, address(V4));
    world.answer(1, GOOD);
    // With no route the next one is asked at once, and the first left alone.
    let mut world = World::new();
    world.begin(&[V6, V4]);
    world.machine.unsendable(world.now, address(V6), "Network is unreachable".to_owned());
    world.settle();
    assert_eq!((world.times(V6), world.times(V4)), (vec![0], vec![0]));
    world.machine.unsendable(world.now, address(V4), "Network is unreachable".to_owned());
    world.settle();
    assert_eq!(
        world.failure().message,
        "cannot send to the tracker at [2001:db8::1]:80: Network is unreachable"
    );
    assert!(!world.failure().refused && !world.failure().maybe_heard);
}

#[test]
fn an_address_that_lets_connect_and_then_is_silent_gives_way() {
    let mut world = World::new();
    world.begin(&[V6, V4]);
    world.let_connect(5);
    world.run(s(15));
    assert_eq!(world.sent.last().unwrap().to, address(V4));
    world.let_connect(6);
    assert_eq!(world.sent.last().unwrap().connection(), 6);
    world.answer(1, GOOD);
    assert!(world.ended[0].2.is_ok());
}

#[test]
fn shutdown_shortens_the_waits() {
    let mut world = World::new();
    let silent = world.begin(&[V4]);
    world.run(s(1));
    world.machine.hurry(world.now);
    world.settle();
    world.run(s(10));
    assert_eq!(world.times(V4), [0, 3]);
    assert_eq!(world.ended.iter().map(|e| (e.0, e.1)).collect::<Vec<_>>(), [(s(5), silent)]);
    world.begin(&[OTHER]);
    world.let_connect(5);
    world.run(s(12));
    world.let_connect(6);
    world.run(s(20));
    assert_eq!(world.times(OTHER), [10, 10, 12, 12]);
    assert_eq!(world.ended.last().unwrap().0, s(15));
}

#[test]
fn nothing_is_sent_for_what_was_abandoned() {
    let mut world = World::new();
    let id = world.begin(&[V4]);
    world.let_connect(5);
    let announce = world.sent.last().unwrap().clone();
    world.machine.abandon(id);
    world.receive(announce.to, &announce.answer(1, GOOD));
    world.run(s(100));
    assert_eq!((world.sent.len(), world.ended.len(), world.machine.strays()), (2, 0, 1));
    assert!(world.machine.transactions.len() == 0);
}

#[test]
fn forgotten_addresses_leave_nothing() {
    let mut world = World::new();
    for n in 0..3000u32 {
        let address = SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + n), 80));
        world.begin(&[&address.to_string()]);
        world.run(s(u64::from(n) * 40));
    }
    world.run(s(200_000));
    assert_eq!(world.ended.len(), 3000);
    assert!(world.machine.connections.len() <= CONNECTIONS_SWEEP);
    assert!(world.machine.transactions.len() <= CONNECTIONS_SWEEP);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the network does: each announce ends once and in its time, connect requests to an
    /// address keep their distance, and what is sent is bounded.
    #[test]
    fn any_network_is_survived(seed in 0u64.., loss in 0usize..100, hurry_at in 0u64..200) {
        let mut jitter = Jitter::new(seed);
        let mut world = World::new();
        let mut begun = BTreeMap::new();
        let mut seen = 0;
        for tick in 0..400u64 {
            world.run(ms(tick * 500));
            if tick / 2 == hurry_at {
                world.machine.hurry(world.now);
                world.settle();
            }
            if jitter.below(4) == 0 {
                let all = [V4, V6, OTHER];
                let id = world.begin(&all[jitter.below(3)..]);
                begun.insert(id, world.now);
            }
            if jitter.below(20) == 0 {
                let id = jitter.next_u64() % (world.next_id + 1);
                let running = world.ended.iter().all(|e| e.1 != id);
                world.machine.abandon(id);
                if running {
                    begun.remove(&id);
                }
            }
            while seen < world.sent.len() {
                let packet = world.sent[seen].clone();
                seen += 1;
                if jitter.below(100) < loss {
                    continue;
                }
                let action = match jitter.below(10) {
                    0 => 3,
                    1 => 2,
                    _ => u8::from(!packet.is_connect()),
                };
                let bytes = packet.answer(action, &[4; 20][..jitter.below(21)]);
                world.receive(packet.to, &bytes);
            }
        }
        world.run(s(300));
        prop_assert_eq!(world.machine.running(), 0);
        let ended: BTreeMap<_, _> = world.ended.iter().map(|e| (e.1, e.0)).collect();
        prop_assert_eq!(ended.len(), world.ended.len(), "an announce ends once");
        for (id, at) in &begun {
            prop_assert!(ended.get(id).is_some_and(|end| *end <= *at + s(30)), "{}", id);
        }
        prop_assert!(world.machine.transactions.len() <= 3, "only connects are left open");
        for to in [V4, V6, OTHER] {
            let packets: Vec<_> = world.sent.iter().filter(|p| p.to == address(to)).collect();
            for pair in packets.windows(2) {
                let both_connect = pair[0].is_connect() && pair[1].is_connect();
                let wait = if pair[1].at >= s(hurry_at) { s(0) } else { s(15) };
                prop_assert!(!both_connect || pair[1].at - pair[0].at >= wait);
            }
        }
    }
}
