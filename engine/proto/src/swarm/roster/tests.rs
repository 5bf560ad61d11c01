use proptest::prelude::*;

use super::*;

fn address(text: &str) -> SocketAddr {
    text.parse().expect(text)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One a network, so that only the bound on all of them counts.
fn apart(at: u32) -> SocketAddr {
    SocketAddr::from(([20 + (at >> 16) as u8, (at >> 8) as u8, at as u8, 1], 6881))
}

fn roster() -> Roster {
    Roster::new(Options::default(), 7)
}

fn next(roster: &mut Roster, now: Duration) -> Vec<SocketAddr> {
    let mut dial = Vec::new();
    roster.next(now, 100, &mut dial);
    dial
}

#[test]
fn an_address_is_dialled_once_and_rests_longer_after_each_failure() {
    let mut roster = roster();
    let peer = address("40.0.0.2:1");
    assert_eq!(roster.due(), None);
    assert!(roster.learn(peer, Source::Tracker, false));
    assert!(roster.learn(address("[::ffff:40.0.0.2]:1"), Source::Pex, false), "the same");
    assert_eq!(roster.len(), 1);
    let mut now = Duration::ZERO;
    assert_eq!(next(&mut roster, now), [peer]);
    assert!(next(&mut roster, now).is_empty(), "it is under way");
    assert_eq!(roster.due(), None);
    for rest in [60, 120, 240, 480, 960, 1920, 3600, 3600] {
        roster.dialled(peer, Outcome::Failed, now);
        assert!(next(&mut roster, now).is_empty());
        let due = roster.due().expect("it rests");
        assert!((now + secs(rest)..=now + secs(rest) * 5 / 4).contains(&due), "{rest}: {due:?}");
        assert!(next(&mut roster, due - Duration::from_nanos(1)).is_empty());
        now = due;
        assert_eq!(next(&mut roster, now), [peer]);
    }
}

#[test]
fn only_a_connection_that_lasts_ends_a_row_of_failures() {
    let mut roster = roster();
    let peer = address("40.0.0.2:1");
    roster.learn(peer, Source::Tracker, false);
    let mut now = Duration::ZERO;
    for (lasted, rest) in [(0, 60), (59, 120), (60, 60), (0, 60), (0, 120)] {
        assert_eq!(next(&mut roster, now), [peer]);
        roster.dialled(peer, Outcome::Connected, now);
        now += secs(lasted);
        roster.dialled(peer, Outcome::Closed, now);
        assert!(next(&mut roster, now).is_empty());
        let due = roster.due().expect("it rests");
        assert!((now + secs(rest)..=now + secs(rest) * 5 / 4).contains(&due), "{rest}: {due:?}");
        now = due;
    }
}

#[test]
fn every_outcome_has_its_rest() {
    let table = [
        (Outcome::NoRoom, Some(LATER)),
        (Outcome::NothingToSay, Some(BACKOFF_FIRST)),
        (Outcome::Oneself, None),
        (Outcome::Connected, None),
    ];
    for (outcome, rest) in table {
        let mut roster = roster();
        let peer = address("40.0.0.2:1");
        roster.learn(peer, Source::Tracker, false);
        next(&mut roster, secs(5));
        roster.dialled(peer, outcome, secs(5));
        roster.learn(peer, Source::Tracker, false);
        assert!(next(&mut roster, secs(5)).is_empty(), "{outcome:?}");
        assert_eq!(roster.due(), rest.map(|rest| secs(5) + rest), "{outcome:?}");
    }
}

#[test]
fn what_cannot_be_dialled_is_not_learnt() {
    let mut roster = roster();
    roster.set_own(&[address("40.0.0.9:6881")]);
    for unfit in ["40.0.0.9:6881", "[::ffff:40.0.0.9]:6881", "40.0.0.3:0", "0.0.0.0:5"] {
        assert!(!roster.learn(address(unfit), Source::Tracker, false), "{unfit}");
    }
    roster.learn(address("40.0.0.7:1"), Source::Tracker, false);
    roster.set_own(&[address("40.0.0.7:1")]);
    assert!(roster.is_empty(), "it turned out to be ourselves");
}

#[test]
fn a_private_torrent_asks_its_tracker_alone() {
    let options = Options { private: true, ..Options::default() };
    let mut roster = Roster::new(options, 1);
    let others = [Source::Pex, Source::Dht, Source::Lsd, Source::Incoming, Source::Magnet];
    for source in others {
        assert!(!roster.learn(address("40.0.0.2:1"), source, false), "{source:?}");
    }
    assert!(roster.accept([40, 0, 0, 2].into()));
    roster.accepted_listens([40, 0, 0, 2].into(), 1, false, secs(0));
    assert!(roster.is_empty());
    assert!(roster.learn(address("40.0.0.3:1"), Source::Tracker, false));
}

#[test]
fn metadata_says_that_it_is_private() {
    let mut roster = roster();
    let [tracker, named] = ["40.0.0.2:1", "40.0.1.2:1"].map(address);
    roster.learn(tracker, Source::Tracker, false);
    roster.learn(named, Source::Magnet, false);
    assert_eq!(roster.source_of(named), Some(Source::Magnet));
    roster.set_private();
    assert_eq!(next(&mut roster, secs(0)), [tracker]);
    assert!(!roster.learn(named, Source::Magnet, false));
}

#[test]
fn some_are_dialled_later_than_they_are_learnt() {
    let mut roster = roster();
    let peer = address("40.0.0.2:1");
    assert!(roster.learn_for(peer, Source::Tracker, false, secs(2)));
    assert!(next(&mut roster, secs(1)).is_empty());
    assert_eq!(roster.due(), Some(secs(2)));
    assert_eq!(next(&mut roster, secs(2)), [peer]);
}

#[test]
fn fewest_failures_then_priority() {
    let mut roster = roster();
    let own = address("123.213.32.10:6881");
    let mut peers: Vec<SocketAddr> = (0..50).map(apart).collect();
    peers.iter().for_each(|peer| _ = roster.learn(*peer, Source::Pex, false));
    roster.set_own(&[own]);
    roster.learn(apart(50), Source::Tracker, false);
    peers.push(apart(50));
    peers.sort_by_key(|peer| std::cmp::Reverse(priority(own, *peer)));
    let mut dial = Vec::new();
    roster.next(secs(0), 3, &mut dial);
    assert_eq!(dial, peers[..3]);
    assert_eq!(roster.due(), Some(Duration::ZERO), "more could be dialled");
    roster.dialled(peers[0], Outcome::Failed, secs(0));
    roster.dialled(peers[1], Outcome::NoRoom, secs(0));
    let rest = next(&mut roster, secs(100));
    assert_eq!(rest[..2], [peers[1], peers[3]]);
    assert_eq!(rest.last(), Some(&peers[0]), "who failed comes last");
}

#[test]
fn one_connection_an_ip() {
    let mut roster = roster();
    let [one, two] = [1, 2].map(|port| SocketAddr::from(([40, 0, 0, 2], port)));
    let ip = one.ip();
    roster.learn(one, Source::Tracker, false);
    roster.learn(two, Source::Tracker, false);
    let first = next(&mut roster, secs(0));
    assert_eq!(first.len(), 1);
    assert!(!roster.accept(ip), "as many as may be");
    assert!(!roster.accept("::ffff:40.0.0.2".parse().expect("valid")));
    roster.dialled(first[0], Outcome::Failed, secs(0));
    assert!(roster.accept(ip));
    assert!(next(&mut roster, secs(0)).is_empty(), "the other waits too");
    assert_eq!(roster.due(), None);
    roster.accepted_closed(ip, None, secs(1));
    assert_eq!(next(&mut roster, secs(1)).len(), 1);

    let options = Options { connections_per_ip_max: None, ..Options::default() };
    let mut open = Roster::new(options, 1);
    (1..300u16).for_each(|port| assert!(open.learn((ip, port).into(), Source::Pex, false)));
    let mut dial = Vec::new();
    open.next(secs(0), 1_000, &mut dial);
    assert_eq!(dial.len(), 299);
    assert!(open.accept(ip));
    open.set_connections_per_ip(Some(1));
    assert!(!open.accept(ip), "those that are there count");
}

/// Of a local address many may be behind one: a router, a proxy, the user's own machines.
#[test]
fn a_local_address_is_not_bounded() {
    for local in ["10.0.0.2", "127.0.0.1", "192.168.1.1", "fd00::1", "100.64.0.1"] {
        let ip: IpAddr = local.parse().expect(local);
        let mut roster = roster();
        (1..300u16).for_each(|port| assert!(roster.learn((ip, port).into(), Source::Pex, false)));
        assert!((0..99).all(|_| roster.accept(ip)), "{local}");
        let mut dial = Vec::new();
        roster.next(secs(0), 1_000, &mut dial);
        assert_eq!((dial.len(), roster.dialling()), (299, 299), "{local}");
        roster.accepted_closed(ip, None, secs(1));
        assert!(roster.live.is_empty());
    }
}

#[test]
fn who_came_to_us_is_not_dialled_while_it_is_here() {
    let mut roster = roster();
    let peer = address("40.0.0.2:6881");
    assert!(roster.accept(peer.ip()));
    roster.accepted_listens(peer.ip(), peer.port(), false, secs(0));
    assert_eq!(roster.len(), 1);
    assert!(next(&mut roster, secs(50)).is_empty());
    roster.accepted_closed(peer.ip(), Some(peer.port()), secs(100));
    assert!(next(&mut roster, secs(100)).is_empty());
    assert_eq!(next(&mut roster, secs(100) + BACKOFF_FIRST * 5 / 4), [peer]);
    roster.dialled(address("40.0.0.77:1"), Outcome::Failed, secs(200));
    assert!(next(&mut roster, secs(9_999)).is_empty(), "it is still being dialled");
}

#[test]
fn seeds_are_not_dialled_by_a_seed() {
    let mut roster = roster();
    let [peer, other] = ["40.0.0.2:1", "40.0.1.2:1"].map(address);
    roster.learn(peer, Source::Pex, true);
    roster.learn(other, Source::Pex, false);
    roster.set_complete(true);
    assert_eq!(next(&mut roster, secs(0)), [other]);
    assert!(!roster.learn(peer, Source::Pex, true));
    assert!(roster.learn(peer, Source::Pex, false), "another says otherwise");
    assert_eq!(next(&mut roster, secs(0)), [peer]);
    roster.dialled(peer, Outcome::NothingToSay, secs(1));
    assert_eq!(roster.due().map(|_| next(&mut roster, BACKOFF_MAX)), Some(vec![]));
    assert_eq!(next(&mut roster, secs(1) + BACKOFF_MAX), [peer]);
    // A peer that came while we had all is not kept, one that we dialled before is.
    assert!(roster.accept([40, 0, 2, 2].into()));
    roster.accepted_listens([40, 0, 2, 2].into(), 1, false, secs(2));
    assert_eq!(roster.len(), 2);
    roster.set_complete(false);
    assert!(roster.learn(address("40.0.3.2:1"), Source::Pex, true));
}

#[test]
fn who_has_everything_keeps_few() {
    let mut roster = roster();
    (0..900).for_each(|at| assert!(roster.learn(apart(at), Source::Pex, false)));
    roster.learn(apart(900), Source::Tracker, false);
    roster.set_complete(true);
    assert_eq!(roster.len(), ADDRESSES_COMPLETE_MAX);
    assert!(roster.entries.contains_key(&apart(900)), "the most trusted stay");
    roster.learn(apart(901), Source::Tracker, false);
    assert_eq!(roster.len(), ADDRESSES_COMPLETE_MAX);
    assert!(roster.entries.contains_key(&apart(901)));
}

#[test]
fn who_is_banned_is_forgotten_when_it_ends() {
    let mut roster = roster();
    let [one, two] = ["40.0.0.2:1", "40.0.1.2:1"].map(address);
    roster.learn(one, Source::Tracker, false);
    assert_eq!(next(&mut roster, secs(0)), [one]);
    roster.learn(two, Source::Tracker, false);
    roster.ban(two.ip());
    roster.ban("::ffff:40.0.0.2".parse().expect("valid"));
    assert!(next(&mut roster, secs(0)).is_empty());
    assert_eq!(roster.len(), 1, "it is being dialled");
    roster.dialled(one, Outcome::Failed, secs(0));
    assert!(roster.is_unused() && roster.dialling() == 0);
}

#[test]
fn in_a_full_roster_the_worst_makes_room() {
    let options = Options { addresses_max: 10, ..Options::default() };
    let mut roster = Roster::new(options, 1);
    (0..10).for_each(|at| assert!(roster.learn(apart(at), Source::Tracker, false)));
    (10..99).for_each(|at| assert!(!roster.learn(apart(at), Source::Pex, false), "{at}"));
    let dialled = next(&mut roster, secs(0));
    assert_eq!(dialled.len(), 10);
    assert!(!roster.learn(apart(10), Source::Tracker, false), "all are in use");
    roster.dialled(dialled[4], Outcome::Failed, secs(0));
    assert!(roster.learn(apart(10), Source::Pex, false), "the place of one that failed");
    assert!(!roster.entries.contains_key(&dialled[4]));
    assert!(roster.learn(apart(11), Source::Tracker, false), "the place of hearsay");
    assert!(!roster.entries.contains_key(&apart(10)));
    assert_eq!(roster.len(), 10);
}

#[test]
fn no_host_and_no_network_fills_it() {
    let mut roster = roster();
    (1..2_000u16)
        .for_each(|port| _ = roster.learn(([40, 0, 0, 1], port).into(), Source::Pex, false));
    assert_eq!(roster.len(), PORTS_A_CONNECTION);
    let newcomer = address("40.0.0.1:5000");
    let one = next(&mut roster, secs(0))[0];
    roster.dialled(one, Outcome::Failed, secs(0));
    assert!(roster.learn(newcomer, Source::Pex, false), "started anew on another port");
    assert_eq!(roster.len(), PORTS_A_CONNECTION);
    for host in 0..=255u8 {
        for port in 1..5u16 {
            roster.learn(([40, 0, 0, host], port).into(), Source::Pex, false);
        }
    }
    assert_eq!(roster.len(), ADDRESSES_MAX_DEFAULT / NETWORK_ONE_IN);
    for host in 0..2_000u128 {
        let ip = (0x2001_0db8_u128 << 96 | host).to_be_bytes();
        roster.learn((ip, 1u16).into(), Source::Pex, false);
    }
    assert_eq!(roster.len(), ADDRESSES_MAX_DEFAULT / NETWORK_ONE_IN * 2);
}

#[test]
fn after_a_restart_all_are_dialled_again() {
    let mut roster = roster();
    (0..5).for_each(|at| _ = roster.learn(apart(at), Source::Tracker, false));
    next(&mut roster, secs(0));
    roster.dialled(apart(0), Outcome::Connected, secs(0));
    roster.dialled(apart(1), Outcome::Oneself, secs(0));
    roster.restart(secs(10), secs(60));
    assert!(next(&mut roster, secs(10)).is_empty());
    assert_eq!(next(&mut roster, secs(100)).len(), 4, "all but ourselves");
}

#[test]
fn whoever_was_left_is_dialled_when_a_download_begins_anew() {
    let mut roster = Roster::new(Options::default(), 7);
    (0..2).for_each(|at| _ = roster.learn(apart(at), Source::Tracker, false));
    assert_eq!(next(&mut roster, secs(0)).len(), 2);
    (0..2).for_each(|at| roster.dialled(apart(at), Outcome::Failed, secs(1)));
    assert!(next(&mut roster, secs(20)).is_empty(), "they rest");
    roster.begin_anew(secs(20));
    assert_eq!(next(&mut roster, secs(20)).len(), 2);
}

#[test]
fn a_seed_repeats_itself() {
    let run = |seed| {
        let mut roster = Roster::new(Options::default(), seed);
        (0..50).for_each(|at| _ = roster.learn(apart(at), Source::Tracker, false));
        next(&mut roster, secs(0))
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Learn(u8, u8, u8),
    Next(usize),
    Outcome(usize, u8),
    Accept(u8),
    Listens(u8, u8),
    AcceptedClosed(usize),
    Ban(u8),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..12u8, 0..4u8, 0..6u8).prop_map(|(ip, port, source)| Step::Learn(ip, port, source)),
        4 => (0..5usize).prop_map(Step::Next),
        5 => (any::<usize>(), 0..6u8).prop_map(|(at, outcome)| Step::Outcome(at, outcome)),
        2 => (0..12u8).prop_map(Step::Accept),
        2 => (0..12u8, 0..4u8).prop_map(|(at, port)| Step::Listens(at, port)),
        2 => any::<usize>().prop_map(Step::AcceptedClosed),
        1 => (0..12u8).prop_map(Step::Ban),
        2 => (0..4_000u64).prop_map(Step::Pass),
    ]
}

const SOURCES: [Source; 6] =
    [Source::Pex, Source::Dht, Source::Lsd, Source::Incoming, Source::Magnet, Source::Tracker];
const OUTCOMES: [Outcome; 6] = [
    Outcome::Connected,
    Outcome::Failed,
    Outcome::Closed,
    Outcome::NothingToSay,
    Outcome::Oneself,
    Outcome::NoRoom,
];

proptest! {
    /// Whatever happens, in whatever order: bounds hold, nobody is dialled twice at once, no
    /// connection is forgotten.
    #[test]
    fn bounds_hold(steps in prop::collection::vec(step(), 0..300), max in 1..4u32) {
        let options = Options {
            addresses_max: 20,
            connections_per_ip_max: Some(max),
            private: false,
        };
        let mut roster = Roster::new(options, 3);
        let mut now = Duration::ZERO;
        let mut dialled: Vec<SocketAddr> = Vec::new();
        let mut accepted: Vec<(IpAddr, Option<u16>)> = Vec::new();
        let ip_of = |at: u8| IpAddr::from([40, 0, at % 3, at]);
        for step in steps {
            match step {
                Step::Learn(ip, port, source) => {
                    let address = SocketAddr::new(ip_of(ip), u16::from(port));
                    roster.learn(address, SOURCES[usize::from(source)], port == 3);
                }
                Step::Next(room) => {
                    let before = dialled.len();
                    roster.next(now, room, &mut dialled);
                    prop_assert!(dialled.len() <= before + room);
                    for (at, new) in dialled.iter().enumerate().skip(before) {
                        prop_assert!(!dialled[..at].contains(new), "{new} twice");
                        prop_assert!(new.port() > 0);
                    }
                }
                Step::Outcome(at, outcome) if !dialled.is_empty() => {
                    let at = at % dialled.len();
                    let outcome = OUTCOMES[usize::from(outcome)];
                    roster.dialled(dialled[at], outcome, now);
                    if outcome != Outcome::Connected {
                        dialled.swap_remove(at);
                    }
                }
                Step::Accept(ip) => {
                    accepted.extend(roster.accept(ip_of(ip)).then(|| (ip_of(ip), None)));
                }
                Step::Listens(at, port) if !accepted.is_empty() && port > 0 => {
                    let at = usize::from(at) % accepted.len();
                    let (ip, said) = &mut accepted[at];
                    if said.is_none() {
                        *said = Some(u16::from(port));
                        roster.accepted_listens(*ip, u16::from(port), port == 2, now);
                    }
                }
                Step::AcceptedClosed(at) if !accepted.is_empty() => {
                    let (ip, port) = accepted.swap_remove(at % accepted.len());
                    roster.accepted_closed(ip, port, now);
                }
                Step::Ban(ip) => roster.ban(ip_of(ip)),
                Step::Pass(seconds) => now += secs(seconds),
                _ => {}
            }
            prop_assert!(roster.len() <= 20);
            let waits = |entry: &&Entry| entry.state == State::Dialling;
            let dialling = roster.entries.values().filter(waits).count();
            prop_assert_eq!(roster.dialling() as usize, dialling);
            for at in 0..12 {
                let ip = ip_of(at);
                let live = dialled.iter().filter(|address| address.ip() == ip).count()
                    + accepted.iter().filter(|(from, _)| *from == ip).count();
                prop_assert!(live <= max as usize);
                prop_assert_eq!(roster.live.of(ip) as usize, live);
            }
        }
    }
}
