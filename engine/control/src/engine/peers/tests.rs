use super::*;

const FACTS: Facts = Facts { id: TorrentId(1), private: false, wants: true, exchange: true };
const SEEDING: Facts = Facts { wants: false, ..FACTS };

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn peers() -> Peers {
    Peers::new(vec![address("40.0.0.1:6881")], Some(2))
}

/// What may be dialled now, of one torrent.
fn due(peers: &mut Peers, facts: Facts, now: Duration) -> Vec<SocketAddr> {
    let mut dial = Vec::new();
    peers.known_roster(facts, |roster| roster.next(now, 100, &mut dial));
    dial
}

#[test]
fn an_address_is_dialled_once_and_rests_after_a_failure() {
    let mut peers = peers();
    let named = ["40.0.0.1:6881", "40.0.0.2:1", "40.0.0.3:0", "0.0.0.0:5"].map(address);
    peers.learn(FACTS, &named, Source::Tracker, secs(2));
    assert!(due(&mut peers, FACTS, secs(1)).is_empty(), "not yet");
    assert_eq!(due(&mut peers, FACTS, secs(2)), [named[1]]);
    assert_eq!(peers.turns.dialling, 1);
    peers.dialed(FACTS, named[1], DialOutcome::Refused, secs(2));
    assert_eq!(peers.turns.dialling, 0);
    assert!(due(&mut peers, FACTS, secs(60)).is_empty());
    assert_eq!(due(&mut peers, FACTS, secs(80)), [named[1]]);
    peers.dialed(FACTS, named[1], DialOutcome::Oneself, secs(80));
    peers.learn(FACTS, &named, Source::Tracker, secs(80));
    assert!(due(&mut peers, FACTS, secs(9_999)).is_empty());
}

/// BEP 40 goes by the addresses that both sides see.
#[test]
fn where_a_tracker_sees_us_orders_the_peers_and_is_not_dialled() {
    let mut peers = Peers::new(vec![address("192.168.1.2:6881")], Some(2));
    let named = ["40.0.0.2:1", "40.0.3.3:1", "40.0.0.1:6881"].map(address);
    peers.seen_at(address("0.0.0.0:6881"));
    assert!(peers.told.is_empty());
    peers.seen_at(address("50.0.0.1:6881"));
    peers.seen_at(address("[2001:db8::1]:6881"));
    peers.seen_at(named[2]);
    assert_eq!(peers.told, [address("[2001:db8::1]:6881"), named[2]], "one a family, the last");
    peers.learn(FACTS, &named, Source::Tracker, secs(0));
    let mut expected = named[..2].to_vec();
    let rank = |peer: &SocketAddr| seedring_proto::swarm::roster::priority(named[2], *peer);
    expected.sort_by_key(|peer| std::cmp::Reverse(rank(peer)));
    assert_eq!(due(&mut peers, FACTS, secs(0)), expected);
}

/// A turn that finds nothing to dial yet puts nothing off; one that finds no room does.
#[test]
fn who_has_no_room_waits_and_who_has_it_keeps_its_time() {
    let mut peers = peers();
    let is_ready = |peers: &mut Peers, now| {
        peers.turns.gather(now, |_| true);
        peers.turns.next(true) == Some(FACTS.id)
    };
    peers.learn(FACTS, &[address("40.0.0.2:1")], Source::Tracker, secs(12));
    assert!(is_ready(&mut peers, secs(10)), "to be looked at");
    assert!(due(&mut peers, FACTS, secs(10)).is_empty());
    peers.rest(FACTS.id, secs(10), secs(20));
    assert!(!is_ready(&mut peers, secs(11)) && is_ready(&mut peers, secs(12)));
    peers.known_roster(FACTS, |roster| roster.next(secs(12), 0, &mut Vec::new()));
    peers.rest(FACTS.id, secs(12), secs(22));
    assert!(!is_ready(&mut peers, secs(21)) && is_ready(&mut peers, secs(22)));
    // News of the torrent bring its turn forward.
    peers.rest(FACTS.id, secs(22), secs(32));
    peers.learn(FACTS, &[address("40.0.1.2:1")], Source::Tracker, secs(0));
    assert!(is_ready(&mut peers, secs(23)));
}

#[test]
fn a_connected_peer_rests_and_its_end_is_told_once() {
    let mut peers = peers();
    let peer = address("40.0.0.2:1");
    peers.learn(FACTS, &[peer], Source::Tracker, secs(0));
    assert_eq!(due(&mut peers, FACTS, secs(0)), [peer]);
    peers.dialed(FACTS, peer, DialOutcome::Connected, secs(0));
    assert_eq!(peers.turns.dialling, 0);
    peers.learn(FACTS, &[peer], Source::Tracker, secs(0));
    assert!(due(&mut peers, FACTS, secs(9_999)).is_empty());
    peers.dialed(FACTS, peer, DialOutcome::Closed, secs(9_999));
    peers.dialed(FACTS, peer, DialOutcome::Closed, secs(9_999));
    assert_eq!(due(&mut peers, FACTS, secs(10_080)), [peer]);
}

#[test]
fn a_download_comes_back_to_seeds_and_nobody_to_who_is_banned() {
    let mut peers = peers();
    let (seed, liar) = (address("40.0.0.2:1"), address("40.0.0.3:1"));
    peers.learn(FACTS, &[seed, liar], Source::Tracker, secs(0));
    assert_eq!(due(&mut peers, FACTS, secs(0)).len(), 2);
    peers.dialed(FACTS, seed, DialOutcome::Seed, secs(0));
    peers.dialed(FACTS, liar, DialOutcome::Closed, secs(0));
    assert!(peers.ban(liar.ip()) && !peers.ban(liar.ip()));
    peers.learn(FACTS, &[address("40.0.0.3:2")], Source::Tracker, secs(0));
    let contact = Contact { address: address("40.0.0.3:3"), flags: Flags::default() };
    peers.told(FACTS, &[contact]);
    peers.listens(FACTS, address("40.0.0.3:9"), 4, false, secs(0));
    assert!(!peers.accepted(FACTS, liar.ip()));
    assert_eq!(due(&mut peers, FACTS, secs(61)), [seed]);
    peers.dialed(SEEDING, seed, DialOutcome::Seed, secs(61));
    assert!(due(&mut peers, SEEDING, secs(200)).is_empty(), "two seeds are no use to each other");
}

#[test]
fn connections_to_one_address_are_bounded_with_those_that_came() {
    let mut peers = peers();
    let ip = IpAddr::from([40, 0, 0, 2]);
    peers.learn(FACTS, &[(ip, 1).into(), (ip, 2).into()], Source::Tracker, secs(0));
    assert!(peers.accepted(FACTS, ip));
    assert_eq!(due(&mut peers, FACTS, secs(0)).len(), 1);
    assert!(!peers.accepted(FACTS, ip));
    assert!(peers.accepted(Facts { id: TorrentId(2), ..FACTS }, ip), "of one torrent");
    peers.left(FACTS, (ip, 4_000).into(), None, secs(1));
    assert_eq!(due(&mut peers, FACTS, secs(1)).len(), 1);
    peers.set_connections_per_ip(None);
    assert!(peers.accepted(FACTS, ip));
    // Who may have many behind it is not even counted.
    let mut local = Peers::new(Vec::new(), Some(1));
    assert!((0..99).all(|_| local.accepted(SEEDING, [192, 168, 0, 1].into())));
    assert!(local.swarms.is_empty());
}

#[test]
fn a_seed_takes_leeches_alone_and_keeps_none_that_came() {
    let mut peers = peers();
    let [leech, seed, came] = ["40.0.0.2:1", "40.0.1.2:1", "40.0.2.2:1"].map(address);
    let contacts = [(leech, Flags::default()), (seed, Flags::SEED)];
    let contacts = contacts.map(|(address, flags)| Contact { address, flags });
    peers.told(Facts { exchange: false, ..SEEDING }, &contacts);
    assert!(peers.swarms.is_empty());
    peers.told(SEEDING, &contacts);
    peers.listens(SEEDING, came, 1, false, secs(0));
    assert_eq!(due(&mut peers, SEEDING, secs(0)), [leech]);
    assert_eq!(peers.source_of(FACTS.id, leech), Some(Source::Pex));
    peers.told(FACTS, &contacts);
    assert_eq!(due(&mut peers, FACTS, secs(0)), [seed], "a download wants it");
}

#[test]
fn peers_are_told_of_two_and_more_and_of_those_who_left() {
    let mut peers = peers();
    let [one, two] = ["40.0.0.2:1", "40.0.1.2:1"].map(address);
    peers.here(FACTS, Some(one), Flags::OUTGOING);
    assert!(peers.news(secs(0)).is_empty(), "to one alone there is nothing to say");
    peers.here(FACTS, None, Flags::OUTGOING);
    peers.here(FACTS, Some(two), Flags::OUTGOING);
    assert_eq!(peers.news(secs(1)).len(), 1);
    assert!(peers.news(secs(99)).is_empty());
    peers.dialed(FACTS, one, DialOutcome::Closed, secs(2));
    assert!(peers.news(secs(5)).is_empty(), "not so often");
    let told = peers.news(secs(6));
    assert_eq!((told.len(), told[0].1.here()), (1, 1));
    peers.left(FACTS, address("40.0.1.2:555"), Some(1), secs(7));
    peers.deserted(FACTS.id);
    assert!(peers.swarms.is_empty() && peers.news(secs(99)).is_empty());
    peers.here(Facts { exchange: false, ..FACTS }, Some(one), Flags::OUTGOING);
    assert!(peers.swarms.is_empty());
}

#[test]
fn another_number_keeps_whom_it_knew() {
    let mut peers = peers();
    let [one, two] = ["40.0.0.2:1", "40.0.1.2:1"].map(address);
    peers.learn(FACTS, &[one], Source::Tracker, secs(0));
    peers.learn(FACTS, &[two], Source::Magnet, secs(0));
    assert_eq!(due(&mut peers, FACTS, secs(0)).len(), 2);
    let new = Facts { id: TorrentId(2), private: true, ..FACTS };
    peers.renumber(FACTS.id, new.id, true, (secs(5), secs(1)));
    assert_eq!(peers.turns.dialling, 0);
    assert!(due(&mut peers, new, secs(5)).is_empty());
    assert_eq!(due(&mut peers, new, secs(7)), [one], "the other is not the tracker's");
    assert_eq!(peers.turns.dialling, 1);
    peers.forget(new.id);
    assert_eq!(peers.turns.dialling, 0);
}
