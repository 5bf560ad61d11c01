use proptest::prelude::*;

use super::*;

fn address(at: u32) -> SocketAddr {
    SocketAddr::from(([10, 1, (at >> 8) as u8, at as u8], 6881))
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn sender(book: &Book) -> Sender {
    Sender::new(book, [10, 9, 9, 9].into(), Duration::ZERO)
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
    let mut book = Book::new(false);
    let mut sender = sender(&book);
    book.joined(address(1), Flags::OUTGOING);
    book.joined(address(2), Flags::default());
    assert_eq!(sender.message(&book, None, secs(4)), None, "before the first is due");
    let first = sender.message(&book, None, secs(5)).expect("due");
    assert_eq!(added(&first), [address(1), address(2)]);
    assert_eq!(first.added[0].flags, Flags::OUTGOING);
    assert!(first.dropped.is_empty());

    book.left(address(1));
    book.joined(address(3), Flags::SEED);
    book.joined(address(4), Flags::SEED);
    book.left(address(4));
    assert_eq!(sender.due(), secs(65));
    assert_eq!(sender.message(&book, None, secs(64)), None);
    let second = sender.message(&book, None, secs(65)).expect("due");
    assert_eq!(added(&second), [address(3)]);
    assert_eq!(second.dropped, [address(1)], "of 4 it never heard");

    assert_eq!(sender.message(&book, None, secs(500)), None, "nothing happened");
    book.left(address(3));
    assert!(sender.message(&book, None, secs(501)).is_some(), "and then something did");
}

#[test]
fn a_new_connection_hears_of_all_who_are_here() {
    let mut book = Book::new(false);
    (0..120).for_each(|at| book.joined(address(at), Flags::default()));
    (0..10).for_each(|at| book.left(address(at)));
    let mut sender = sender(&book);
    let counts: Vec<usize> = (1..5)
        .filter_map(|minute| sender.message(&book, None, secs(minute * 60)))
        .inspect(|message| assert!(message.dropped.is_empty(), "{message:?}"))
        .map(|message| message.added.len())
        .collect();
    assert_eq!(counts, [50, 50, 10]);
}

#[test]
fn nobody_is_told_of_itself_or_of_a_loopback_that_is_not_its_own() {
    let mut book = Book::new(false);
    let ours = "127.0.0.1:5".parse().expect("valid");
    book.joined(address(1), Flags::default());
    book.joined(ours, Flags::default());
    assert_eq!(sender(&book).message(&book, Some(address(1)), secs(9)), None);
    let mut neighbour = Sender::new(&book, [127, 0, 0, 1].into(), Duration::ZERO);
    let told = neighbour.message(&book, None, secs(9)).expect("due");
    assert_eq!(added(&told), [address(1), ours]);
}

#[test]
fn private_torrents_exchange_nothing() {
    let mut book = Book::new(true);
    book.joined(address(1), Flags::default());
    assert_eq!(sender(&book).message(&book, None, secs(99)), None);
    let mut receiver = Receiver::new(true, [10, 9, 9, 9].into());
    assert_eq!(receiver.receive(b"d5:added6:\x01\x01\x01\x01\0\x01e", secs(1)), Ok(None));
}

#[test]
fn flags_change_without_news() {
    let mut book = Book::new(false);
    let mut early = sender(&book);
    book.joined(address(1), Flags::default());
    assert!(early.message(&book, None, secs(5)).is_some());
    book.joined(address(1), Flags::SEED);
    assert_eq!(early.message(&book, None, secs(99)), None);
    let late = sender(&book).message(&book, None, secs(99)).expect("due");
    assert_eq!(late.added[0].flags, Flags::SEED);
}

#[test]
fn those_who_left_are_bounded() {
    let mut book = Book::new(false);
    for at in 0..10_000 {
        book.joined(address(at), Flags::default());
        book.left(address(at));
    }
    assert_eq!(book.changes.len(), DEPARTED_MAX);
    assert_eq!(book.numbers.len(), DEPARTED_MAX);
    assert_eq!(book.departed.len(), DEPARTED_MAX);
}

#[test]
fn honest_senders_are_heard_and_floods_end() {
    let payload = b"d5:added6:\x01\x01\x01\x01\0\x01e";
    for spacing in [50, 55, 60, 61, 600] {
        let mut receiver = Receiver::new(false, [10, 9, 9, 9].into());
        for at in 0..100 {
            let taken = receiver.receive(payload, secs(at * spacing));
            assert!(matches!(taken, Ok(Some(_))), "every {spacing} s, message {at}");
        }
    }
    let mut receiver = Receiver::new(false, [10, 9, 9, 9].into());
    let mut taken = 0;
    let flood = (0..3600).find_map(|second| match receiver.receive(payload, secs(second)) {
        Ok(message) => {
            taken += usize::from(message.is_some());
            None
        }
        Err(violation) => Some((second, violation)),
    });
    assert_eq!(flood, Some((12, Violation::PexFlood { ignored: 11 })));
    assert_eq!(taken, 2, "the first, and one before its time");
    let mut receiver = Receiver::new(false, [10, 9, 9, 9].into());
    assert!(matches!(receiver.receive(b"x", secs(0)), Err(Violation::PexMessage(_))));
}

/// A connection, and what it believes to be here.
struct Listener {
    sender: Sender,
    believes: BTreeSet<SocketAddr>,
}

impl Listener {
    fn new(book: &Book, now: Duration) -> Self {
        let sender = Sender::new(book, [10, 0, 0, 1].into(), now);
        Self { sender, believes: BTreeSet::new() }
    }

    fn hear(&mut self, book: &Book, now: Duration) {
        let Some(message) = self.sender.message(book, None, now) else { return };
        assert!(message.added.len() <= CONTACTS_MAX);
        for gone in &message.dropped {
            self.believes.remove(gone);
        }
        self.believes.extend(added(&message));
    }
}

#[test]
fn who_leaves_twice_between_two_messages_is_dropped() {
    let mut book = Book::new(false);
    let mut listener = Listener::new(&book, Duration::ZERO);
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
        let mut book = Book::new(false);
        let mut here = BTreeSet::new();
        let mut listeners: Vec<Listener> = Vec::new();
        let mut now = Duration::ZERO;
        for (at, what) in steps {
            match what {
                0 => {
                    book.left(address(at));
                    here.remove(&address(at));
                }
                1 if at < 3 => listeners.push(Listener::new(&book, now)),
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
