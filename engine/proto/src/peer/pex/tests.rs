use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn address(at: u32) -> SocketAddr {
    SocketAddr::from(([10, 1, (at >> 8) as u8, at as u8], 6881))
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const REMOTE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 9, 9));

fn sender() -> Sender {
    Sender::new(Duration::ZERO)
}

fn added(message: &PexMessage) -> Vec<SocketAddr> {
    message.added.iter().map(|contact| contact.address).collect()
}

#[test]
fn only_a_port_that_is_listened_on_is_told() {
    let remote = address(1);
    assert_eq!(contact_address(remote, true, None), Some(remote));
    assert_eq!(contact_address(remote, true, Some(9)), Some(remote));
    assert_eq!(contact_address(remote, false, None), None);
    assert_eq!(contact_address(remote, false, Some(0)), None);
    let listens = SocketAddr::new(remote.ip(), 9);
    assert_eq!(contact_address(remote, false, Some(9)), Some(listens));
    let mapped = "[::ffff:10.1.0.1]:6881".parse().expect("valid");
    assert_eq!(contact_address(mapped, true, None), Some(remote));
}

#[test]
fn deltas_once_a_minute() {
    let mut book = Book::default();
    let mut sender = sender();
    assert!(book.joined(address(1), Flags::OUTGOING));
    book.joined(address(2), Flags::default());
    assert_eq!(sender.message(&book, REMOTE, None, secs(4)), None, "before the first is due");
    let first = sender.message(&book, REMOTE, None, secs(5)).expect("due");
    assert_eq!(added(&first), [address(1), address(2)]);
    assert_eq!(first.added[0].flags, Flags::OUTGOING);
    assert!(first.dropped.is_empty());

    book.left(address(1));
    book.joined(address(3), Flags::SEED);
    book.joined(address(4), Flags::SEED);
    book.left(address(4));
    assert_eq!(sender.due(), secs(65));
    assert_eq!(sender.message(&book, REMOTE, None, secs(64)), None);
    let second = sender.message(&book, REMOTE, None, secs(65)).expect("due");
    assert_eq!(added(&second), [address(3)]);
    assert_eq!(second.dropped, [address(1)], "of 4 it never heard");

    assert_eq!(sender.message(&book, REMOTE, None, secs(500)), None, "nothing happened");
    book.left(address(3));
    assert_eq!(sender.message(&book, REMOTE, None, secs(559)), None, "once a minute");
    assert!(sender.message(&book, REMOTE, None, secs(560)).is_some(), "and then something did");
}

#[test]
fn a_new_connection_hears_of_all_who_are_here() {
    let mut book = Book::default();
    (0..120).for_each(|at| assert!(book.joined(address(at), Flags::default())));
    (0..10).for_each(|at| assert!(book.left(address(at))));
    let mut sender = sender();
    let counts: Vec<usize> = (1..5)
        .filter_map(|minute| sender.message(&book, REMOTE, None, secs(minute * 60)))
        .inspect(|message| assert!(message.dropped.is_empty(), "{message:?}"))
        .map(|message| message.added.len())
        .collect();
    assert_eq!(counts, [50, 50, 10]);
}

#[test]
fn nobody_is_told_of_itself_or_of_a_loopback_that_is_not_its_own() {
    let mut book = Book::default();
    let ours = "127.0.0.1:5".parse().expect("valid");
    book.joined(address(1), Flags::default());
    book.joined(ours, Flags::default());
    assert_eq!(sender().message(&book, REMOTE, Some(address(1)), secs(9)), None);
    let told = sender().message(&book, [127, 0, 0, 1].into(), None, secs(9)).expect("due");
    assert_eq!(added(&told), [address(1), ours]);
}

#[test]
fn flags_change_without_news() {
    let mut book = Book::default();
    let mut early = sender();
    book.joined(address(1), Flags::default());
    assert!(early.message(&book, REMOTE, None, secs(5)).is_some());
    book.joined(address(1), Flags::SEED);
    assert!(!book.joined(address(1), Flags::SEED));
    assert_eq!(early.message(&book, REMOTE, None, secs(99)), None);
    let late = sender().message(&book, REMOTE, None, secs(99)).expect("due");
    assert_eq!(late.added[0].flags, Flags::SEED);
}

#[test]
fn those_who_left_are_bounded() {
    let mut book = Book::default();
    for at in 0..10_000 {
        assert!(book.joined(address(at), Flags::default()));
        assert!(book.left(address(at)));
        assert!(!book.left(address(at)));
    }
    assert_eq!((book.changes.len(), book.here()), (DEPARTED_MAX, 0));
    assert_eq!(size_of::<Change>(), 28);
}

#[test]
fn of_a_crowd_those_who_came_last_are_told() {
    let mut book = Book::default();
    (0..1_000).for_each(|at| assert!(book.joined(address(at), Flags::default())));
    assert_eq!((book.changes.len(), book.here()), (HERE_MAX, HERE_MAX));
    let first = sender().message(&book, REMOTE, None, secs(5)).expect("due");
    assert_eq!(added(&first)[0], address(800));
    assert!(!book.left(address(0)), "it is not told of any more");
    (800..1_000).for_each(|at| assert!(book.left(address(at))));
    assert_eq!((book.changes.len(), book.here()), (HERE_MAX, 0));
}

#[test]
fn numbers_that_ran_out_tell_no_more() {
    let mut book = Book { last: u32::MAX - 1, ..Book::default() };
    assert!(book.joined(address(1), Flags::default()));
    assert!(!book.joined(address(2), Flags::default()));
    assert_eq!(book.here(), 1);
    assert!(!book.left(address(1)));
    assert!(book.changes.is_empty() && book.here() == 0);
}

#[test]
fn messages_are_due_at_whole_seconds() {
    let ms = Duration::from_millis;
    let mut sender = Sender::new(ms(1_300));
    assert_eq!(sender.due(), secs(7));
    sender.pass(ms(7_000));
    assert_eq!(sender.due(), secs(67));
    assert!(size_of::<Sender>() + size_of::<Receiver>() <= 20);
}

#[test]
fn honest_senders_are_heard_and_floods_end() {
    for spacing in [50, 55, 60, 61, 600] {
        let mut receiver = Receiver::default();
        for at in 0..100 {
            let taken = receiver.admit(secs(at * spacing));
            assert_eq!(taken, Ok(true), "every {spacing} s, message {at}");
        }
    }
    let (mut receiver, mut taken) = (Receiver::default(), 0);
    let flood = (0..3600).find_map(|second| match receiver.admit(secs(second)) {
        Ok(admitted) => {
            taken += usize::from(admitted);
            None
        }
        Err(violation) => Some((second, violation)),
    });
    assert_eq!(flood, Some((12, Violation::PexFlood { ignored: 11 })));
    assert_eq!(taken, 2, "the first, and one before its time");
}

/// A connection, and what it believes to be here.
struct Listener {
    sender: Sender,
    believes: BTreeSet<SocketAddr>,
}

impl Listener {
    fn new(now: Duration) -> Self {
        let sender = Sender::new(now);
        Self { sender, believes: BTreeSet::new() }
    }

    fn hear(&mut self, book: &Book, now: Duration) {
        let Some(message) = self.sender.message(book, [10, 0, 0, 1].into(), None, now) else {
            return;
        };
        assert!(message.added.len() <= CONTACTS_MAX);
        for gone in &message.dropped {
            self.believes.remove(gone);
        }
        self.believes.extend(added(&message));
    }
}

#[test]
fn who_leaves_twice_between_two_messages_is_dropped() {
    let mut book = Book::default();
    let mut listener = Listener::new(Duration::ZERO);
    book.joined(address(1), Flags::default());
    listener.hear(&book, secs(5));
    assert_eq!(listener.believes.len(), 1);
    for _ in 0..2 {
        book.left(address(1));
        book.joined(address(1), Flags::default());
    }
    book.left(address(1));
    listener.hear(&book, secs(65));
    assert!(listener.believes.is_empty());
}

proptest! {
    /// Whatever joins and leaves, what a connection was told is what is here, once all is told.
    #[test]
    fn told_is_here(steps in prop::collection::vec((0..30u32, 0..4u8), 0..300)) {
        let mut book = Book::default();
        let mut here = BTreeSet::new();
        let mut listeners: Vec<Listener> = Vec::new();
        let mut now = Duration::ZERO;
        for (at, what) in steps {
            match what {
                0 => {
                    prop_assert_eq!(book.left(address(at)), here.remove(&address(at)));
                }
                1 if at < 3 => listeners.push(Listener::new(now)),
                2 if at < 10 => {
                    now += secs(u64::from(at) * 10);
                    listeners.iter_mut().for_each(|listener| listener.hear(&book, now));
                }
                _ => {
                    book.joined(address(at), Flags::default());
                    here.insert(address(at));
                }
            }
        }
        for listener in &mut listeners {
            listener.hear(&book, now + INTERVAL);
            prop_assert_eq!(&listener.believes, &here);
        }
    }
}
