use super::*;
use crate::tracker::reply::Reply;

const HASH: InfoHash = InfoHash([1; 20]);

fn at(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn ends(client: &str, local: &str) -> Ends {
    Ends { client: client.parse().unwrap(), local: local.parse().unwrap(), host: None }
}

fn query(id: u8, port: u16, left: u64, more: &str) -> AnnounceQuery {
    let id = format!("%{id:02x}").repeat(20);
    let hash = "%01".repeat(20);
    let text = format!("info_hash={hash}&peer_id={id}&port={port}&left={left}{more}");
    AnnounceQuery::parse(&text).unwrap()
}

fn store() -> SwarmStore {
    let mut store = SwarmStore::new(Options { seed: 3, ..Options::default() });
    store.allow(HASH);
    store
}

fn peers(store: &mut SwarmStore, now: u64, query: &AnnounceQuery, ends: &Ends) -> Vec<SocketAddr> {
    let answer = store.announce(at(now), query, ends).unwrap();
    let mut peers = Reply::parse(&answer.body).unwrap().peers;
    peers.sort_unstable();
    peers
}

#[test]
fn a_closed_tracker_serves_what_it_was_told() {
    let mut store = SwarmStore::new(Options::default());
    let e = ends("192.0.2.1:5", "192.0.2.9:6969");
    assert_eq!(store.announce(at(0), &query(1, 1, 1, ""), &e), Err(Refusal::NotServed));
    store.allow(HASH);
    assert!(store.announce(at(0), &query(1, 1, 1, ""), &e).is_ok());
    store.disallow(&HASH);
    assert_eq!((store.peers(), store.counts(&HASH)), (0, None));
    let mut open = SwarmStore::new(Options { open: true, swarms_max: 1, ..Options::default() });
    assert!(open.announce(at(0), &query(1, 1, 1, ""), &e).is_ok());
    let mut other = query(1, 1, 1, "");
    other.info_hash = InfoHash([2; 20]);
    assert_eq!(open.announce(at(0), &other, &e), Err(Refusal::Full));
}

#[test]
fn others_are_offered_never_oneself_nor_seeds_to_who_completed() {
    let mut store = store();
    let a = ends("192.0.2.1:5", "192.0.2.9:6969");
    let b = ends("[2001:db8::1]:5", "[2001:db8::9]:6969");
    assert_eq!(peers(&mut store, 0, &query(1, 1001, 0, ""), &a), []);
    let seed: SocketAddr = "192.0.2.1:1001".parse().unwrap();
    assert_eq!(peers(&mut store, 0, &query(2, 1002, 9, ""), &b), [seed]);
    let leech: SocketAddr = "[2001:db8::1]:1002".parse().unwrap();
    assert_eq!(peers(&mut store, 1, &query(1, 1001, 0, ""), &a), [leech]);
    // Nothing left may also mean: not even the metadata yet.
    assert_eq!(peers(&mut store, 1, &query(3, 1003, 0, "&compact=0"), &a), [seed, leech]);
    let counts = Counts { seeders: 2, leechers: 1, downloaded: 0 };
    assert_eq!(store.counts(&HASH), Some(counts));
    // It completes once, however often it says so, then it leaves.
    for _ in 0..2 {
        assert_eq!(peers(&mut store, 2, &query(2, 1002, 0, "&event=completed"), &b), []);
    }
    let counts = Counts { seeders: 3, leechers: 0, downloaded: 1 };
    assert_eq!(store.counts(&HASH), Some(counts));
    assert_eq!(peers(&mut store, 2, &query(2, 1002, 0, ""), &b), []);
    assert_eq!(peers(&mut store, 2, &query(2, 1002, 0, "&event=stopped"), &b), []);
    assert_eq!(store.peers(), 2);
}

#[test]
fn a_leech_is_to_be_dialled_where_seedring_is_in_the_swarm() {
    let options = Options { peers_per_ip_max: 2, ..Options::default() };
    let mut store = SwarmStore::new(options);
    store.allow(HASH);
    let own = PeerId([9; 20]);
    store.set_own(OwnPeer { peer_id: own, listens: vec!["192.0.2.9:6881".parse().unwrap()] });
    let e = ends("[::ffff:192.0.2.1]:5", "192.0.2.9:6969");
    let leech = |store: &mut SwarmStore, id, port, left, more| {
        store.announce(at(0), &query(id, port, left, more), &e).unwrap().leech
    };
    let address = |port| Some(SocketAddr::new("192.0.2.1".parse().unwrap(), port));
    assert_eq!(leech(&mut store, 1, 1001, 9, ""), None, "we are not in it");
    store.register_self(HASH, true);
    assert_eq!(leech(&mut store, 1, 1001, 9, ""), address(1001), "again: it was not dialled yet");
    assert_eq!(leech(&mut store, 2, 1002, 0, ""), None, "it seeds");
    assert_eq!(leech(&mut store, 9, 1001, 9, ""), None, "ourselves");
    assert_eq!(leech(&mut store, 3, 1003, 9, ""), None, "one address names two peers at most");
    assert_eq!(leech(&mut store, 1, 1001, 9, "&event=stopped"), None);
    assert_eq!(leech(&mut store, 3, 1003, 9, "&event=started"), address(1003));
    store.unregister_self(&HASH);
    assert_eq!(leech(&mut store, 3, 1003, 9, ""), None, "we left it");
}

#[test]
fn silent_peers_expire() {
    let mut store = store();
    let e = ends("192.0.2.1:5", "192.0.2.9:6969");
    for id in 0..50 {
        peers(&mut store, u64::from(id), &query(id, 1000 + u16::from(id), 9, ""), &e);
    }
    assert_eq!(store.peers(), 50);
    store.expire(at(3600 + 60 + 25));
    assert_eq!(store.peers(), 25);
    store.expire(at(10_000));
    assert_eq!((store.peers(), store.counts(&HASH)), (0, Some(Counts::default())));
}

#[test]
fn selection_is_random_bounded_and_even() {
    let mut store = store();
    for n in 0..200u16 {
        let e = ends(&format!("10.0.{}.{}:5", n / 100, n % 100 + 1), "10.9.9.9:6969");
        peers(&mut store, 0, &query(n as u8, 2000, 9, ""), &e);
    }
    let e = ends("10.1.0.1:5", "10.9.9.9:6969");
    let mut hits: HashMap<SocketAddr, u32> = HashMap::new();
    for _ in 0..400 {
        let offered = peers(&mut store, 1, &query(255, 3000, 9, "&numwant=20"), &e);
        assert_eq!(offered.len(), 20);
        offered.into_iter().for_each(|p| *hits.entry(p).or_default() += 1);
    }
    // 40 expected each, standard deviation 6.
    assert_eq!(hits.len(), 200);
    assert!(hits.values().all(|n| (10..80).contains(n)));
    assert_eq!(peers(&mut store, 1, &query(255, 3000, 9, "&numwant=100000"), &e).len(), 200);
    assert_eq!(peers(&mut store, 1, &query(255, 3000, 9, "&numwant=0"), &e).len(), 0);
}

#[test]
fn memory_is_bounded() {
    let options = Options { peers_per_swarm_max: 10, peers_per_ip_max: 3, ..Options::default() };
    let mut store = SwarmStore::new(options);
    store.allow(HASH);
    for port in 1..20 {
        peers(&mut store, 0, &query(port as u8, port, 9, ""), &ends("192.0.2.1:5", "192.0.2.9:1"));
    }
    assert_eq!(store.peers(), 3);
    for port in 1..20 {
        peers(&mut store, 0, &query(port as u8, port, 9, ""), &ends("127.0.0.1:5", "127.0.0.1:1"));
    }
    assert_eq!(store.peers(), 10);
}

#[test]
fn our_own_peer_appears_as_the_client_reached_us() {
    let mut store = store();
    let listens = vec!["0.0.0.0:6881".parse().unwrap(), "[::]:6882".parse().unwrap()];
    store.set_own(OwnPeer { peer_id: PeerId([9; 20]), listens });
    store.register_self(HASH, true);
    let mut seen = |client: &str, local: &str, host: Option<&str>, left: u64| {
        let mut e = ends(client, local);
        e.host = host.map(|h| h.parse().unwrap());
        let shown = peers(&mut store, 0, &query(1, 7, left, "&event=stopped"), &e);
        assert_eq!(shown, []);
        let all = peers(&mut store, 0, &query(1, 7, left, ""), &e);
        all.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(seen("127.0.0.1:5", "127.0.0.1:6969", None, 1), ["127.0.0.1:6881"]);
    assert_eq!(seen("10.0.0.5:5", "10.0.0.1:6969", None, 1), ["10.0.0.1:6881"]);
    // A dual-stack listener shows mapped addresses.
    assert_eq!(seen("[::ffff:10.0.0.5]:5", "[::ffff:10.0.0.1]:6969", None, 1), ["10.0.0.1:6881"]);
    assert_eq!(seen("[fd00::5]:5", "[fd00::1]:6969", None, 1), ["[fd00::1]:6882"]);
    // A published port of a container.
    assert_eq!(
        seen("10.0.0.5:5", "172.17.0.2:6969", Some("10.0.0.1"), 1),
        ["10.0.0.1:6881", "172.17.0.2:6881"]
    );
    // A far client that claims Host: 127.0.0.1 is not sent to itself.
    assert_eq!(seen("10.0.0.5:5", "10.0.0.1:6969", Some("127.0.0.1"), 1), ["10.0.0.1:6881"]);
    // Who completed has no use for a seed; who only says that nothing is left may have.
    assert_eq!(seen("10.0.0.5:5", "10.0.0.1:6969", None, 0), ["10.0.0.1:6881"]);
    let done = query(1, 7, 0, "&event=completed");
    assert_eq!(peers(&mut store, 0, &done, &ends("10.0.0.5:5", "10.0.0.1:6969")), []);
    let own = query(9, 6881, 0, "&event=started");
    let before = store.peers();
    assert!(
        !peers(&mut store, 0, &own, &ends("10.0.0.1:5", "10.0.0.1:6969"))
            .contains(&"10.0.0.1:6881".parse().unwrap())
    );
    assert_eq!(store.peers(), before);
    store.unregister_self(&HASH);
    let shown = peers(&mut store, 0, &query(77, 7, 1, ""), &ends("127.0.0.1:5", "127.0.0.1:6969"));
    assert!(!shown.contains(&"127.0.0.1:6881".parse().unwrap()));
}

#[test]
fn concrete_loopback_addresses_are_for_loopback_clients() {
    let mut store = store();
    let listens = vec!["127.0.0.1:6881".parse().unwrap(), "192.0.2.1:6881".parse().unwrap()];
    store.set_own(OwnPeer { peer_id: PeerId([9; 20]), listens: listens.clone() });
    store.register_self(HASH, true);
    let near = ends("127.0.0.1:5", "127.0.0.1:6969");
    assert_eq!(peers(&mut store, 0, &query(1, 7, 1, ""), &near), listens);
    let far = ends("192.0.2.5:5", "192.0.2.1:6969");
    let shown = peers(&mut store, 0, &query(2, 8, 1, ""), &far);
    // Neither our loopback address nor that of the client before.
    assert_eq!(shown, [listens[1]]);
}

#[test]
fn claimed_addresses_are_believed_only_from_near_and_when_allowed() {
    let claim = query(1, 7, 1, "&ip=198.51.100.7");
    let other = query(2, 8, 1, "");
    let elsewhere = ends("203.0.113.1:5", "192.0.2.1:6969");
    for (trust, from, shown) in [
        (false, "10.0.0.2:5", "10.0.0.2:7"),
        (true, "10.0.0.2:5", "198.51.100.7:7"),
        (true, "192.0.2.77:5", "192.0.2.77:7"),
    ] {
        let mut store = SwarmStore::new(Options { trust_claimed_ip: trust, ..Options::default() });
        store.allow(HASH);
        peers(&mut store, 0, &claim, &ends(from, "192.0.2.1:6969"));
        let expected: SocketAddr = shown.parse().unwrap();
        assert_eq!(peers(&mut store, 0, &other, &elsewhere), [expected]);
    }
}

#[test]
fn scrape_counts_what_was_asked_for() {
    let mut store = store();
    peers(&mut store, 0, &query(1, 1, 0, ""), &ends("192.0.2.1:5", "192.0.2.9:1"));
    let expected =
        [&b"d5:filesd20:"[..], &[1; 20], b"d8:completei1e10:downloadedi0e10:incompletei0eeee"]
            .concat();
    assert_eq!(store.scrape(&[HASH, InfoHash([2; 20]), HASH]), expected);
    assert_eq!(store.scrape(&[]), b"d5:filesdee");
}
