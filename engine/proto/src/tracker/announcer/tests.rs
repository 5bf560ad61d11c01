use super::*;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn endpoint(name: &str) -> Arc<Endpoint> {
    let url = TrackerUrl::parse(&format!("http://{name}/announce")).unwrap();
    let host = url.host_key().into();
    Arc::new(Endpoint { url, host, origin: Origin::User })
}

/// An announcer with its surroundings: tests say what each tracker does.
struct Bench {
    announcer: Announcer,
    timing: Timing,
    jitter: Jitter,
}

impl Bench {
    fn new(tiers: &[&[&str]], seed: u64) -> Self {
        let mut jitter = Jitter::new(seed);
        let tiers = tiers.iter().map(|t| t.iter().map(|n| endpoint(n)).collect()).collect();
        let announcer = Announcer::new(s(0), tiers, &mut jitter);
        Self { announcer, timing: Timing::default(), jitter }
    }

    fn poll(&mut self, now: Duration) -> Option<(String, Event)> {
        let announce = self.announcer.poll(now)?;
        Some((announce.endpoint.url.host().to_owned(), announce.event))
    }

    fn good(&mut self, now: Duration, interval: u64) -> bool {
        let reply = Reply { interval: Some(s(interval)), ..Reply::default() };
        self.announcer.succeeded(now, &reply, &self.timing, &mut self.jitter)
    }

    fn bad(&mut self, now: Duration, retry: Retry, maybe_heard: bool) {
        let (message, refused, unreached) = ("no".into(), false, false);
        let failure = Failure { message, retry, refused, maybe_heard, unreached };
        self.announcer.failed(now, &failure, &self.timing, &mut self.jitter);
    }
}

fn is(host: &str, event: Event) -> Option<(String, Event)> {
    Some((host.to_owned(), event))
}

#[test]
fn started_then_regular_at_the_interval_then_stopped() {
    let mut b = Bench::new(&[&["a"]], 1);
    assert_eq!(b.poll(s(0)), is("a", Event::Started));
    assert_eq!(b.announcer.deadline(), None, "one announce in flight");
    assert_eq!(b.poll(s(5)), None);
    b.good(s(1), 1800);
    let due = b.announcer.deadline().unwrap();
    assert!(due >= s(1801) && due <= s(1831), "{due:?}");
    assert_eq!(b.poll(due - s(31)), None);
    assert_eq!(b.poll(due), is("a", Event::Regular));
    b.good(due, 1800);
    b.announcer.stop(due);
    assert_eq!(b.poll(due), is("a", Event::Stopped));
    assert!(!b.announcer.is_done());
    b.good(due, 1800);
    assert!(b.announcer.is_done());
    assert_eq!(b.announcer.deadline(), None);
}

#[test]
fn intervals_are_clamped() {
    for (said, least, most) in [(0, 60, 63), (5, 60, 63), (10_000_000, 86400, 86430)] {
        let mut b = Bench::new(&[&["a"]], 1);
        b.poll(s(0));
        b.good(s(0), said);
        let due = b.announcer.deadline().unwrap();
        assert!(due >= s(least) && due <= s(most), "{said} gave {due:?}");
    }
}

#[test]
fn the_next_in_the_tier_then_the_next_tier_and_promotion() {
    let mut b = Bench::new(&[&["a", "b"], &["c"]], 1);
    let (first, _) = b.poll(s(0)).unwrap();
    b.bad(s(0), Retry::Backoff, false);
    let (second, event) = b.poll(s(0)).unwrap();
    assert_eq!(event, Event::Started);
    assert!(first != second && first != "c" && second != "c", "{first} {second}");
    b.bad(s(0), Retry::Backoff, false);
    assert_eq!(b.poll(s(0)), is("c", Event::Started));
    assert!(!b.good(s(1), 600));
    // All backoffs are over: again from the top, where the second now answers and is promoted.
    assert_eq!(b.poll(s(700)).unwrap().0, first);
    b.bad(s(700), Retry::Backoff, false);
    assert_eq!(b.poll(s(700)).unwrap().0, second);
    assert!(b.good(s(700), 600), "another tracker answered");
    assert_eq!(b.poll(s(1400)).unwrap().0, second);
    b.good(s(1400), 600);
    // Both that accepted `started` are told `stopped`; the one that never did is not.
    b.announcer.stop(s(1401));
    assert_eq!(b.poll(s(1401)), is(&second, Event::Stopped));
    b.good(s(1401), 600);
    assert_eq!(b.poll(s(1401)), is("c", Event::Stopped));
    b.good(s(1401), 600);
    assert!(b.announcer.is_done());
}

#[test]
fn tiers_are_shuffled_inside_only() {
    let mut firsts = std::collections::HashSet::new();
    for seed in 0..50 {
        let mut b = Bench::new(&[&["a", "b", "c"], &["d", "e"]], seed);
        firsts.insert(b.poll(s(0)).unwrap().0);
    }
    assert_eq!(firsts.len(), 3);
    assert!(!firsts.contains("d") && !firsts.contains("e"));
}

#[test]
fn failures_back_off_to_an_hour_and_success_resets() {
    let mut b = Bench::new(&[&["a"]], 9);
    let mut now = s(0);
    for n in 0..12u32 {
        assert_eq!(b.poll(now), is("a", Event::Started));
        b.bad(now, Retry::Backoff, false);
        let wait = b.announcer.deadline().unwrap() - now;
        let base = s(15 << n.min(8)).min(s(3600));
        assert!(wait >= base && wait <= (base * 5 / 4).min(s(3600)), "{n}: {wait:?}");
        now += wait;
    }
    b.poll(now);
    b.good(now, 1800);
    now = b.announcer.deadline().unwrap();
    b.poll(now);
    b.bad(now, Retry::Backoff, false);
    assert!(b.announcer.deadline().unwrap() - now <= s(19));
}

#[test]
fn retry_in_is_obeyed() {
    let mut b = Bench::new(&[&["a"]], 1);
    b.poll(s(0));
    b.bad(s(0), Retry::After(s(7200)), false);
    assert_eq!(b.announcer.deadline(), Some(s(7200)));
    b.poll(s(7200));
    b.bad(s(7200), Retry::After(s(0)), false);
    assert_eq!(b.announcer.deadline(), Some(s(7215)), "never at once");
    b.poll(s(7215));
    b.bad(s(7215), Retry::Never, false);
    assert_eq!(b.announcer.deadline(), None);
    assert_eq!(b.announcer.status().next().unwrap().state, State::GivenUp);
    b.announcer.announce_now(s(8000));
    assert_eq!(b.poll(s(8000)), is("a", Event::Started));
}

#[test]
fn more_peers_respect_the_minimum_interval() {
    let mut b = Bench::new(&[&["a"]], 1);
    b.poll(s(0));
    let reply = Reply { interval: Some(s(1800)), min_interval: Some(s(200)), ..Reply::default() };
    b.announcer.succeeded(s(0), &reply, &b.timing, &mut b.jitter);
    b.announcer.want_more_peers(s(10));
    assert_eq!(b.announcer.deadline(), Some(s(200)));
    b.poll(s(200));
    b.announcer.want_more_peers(s(201));
    assert_eq!(b.announcer.deadline(), None, "one is in flight");
}

#[test]
fn completed_is_said_once_and_at_once() {
    let mut b = Bench::new(&[&["a"]], 1);
    b.poll(s(0));
    // The last piece comes while `started` is on its way.
    b.announcer.completed(s(1));
    b.good(s(2), 1800);
    assert_eq!(b.poll(s(2)), is("a", Event::Completed));
    b.bad(s(3), Retry::Backoff, false);
    let again = b.announcer.deadline().unwrap();
    assert_eq!(b.poll(again), is("a", Event::Completed));
    b.good(again, 1800);
    let next = b.announcer.deadline().unwrap();
    assert!(next >= again + s(1800));
    assert_eq!(b.poll(next), is("a", Event::Regular));
}

#[test]
fn a_lost_started_owes_a_stopped_that_is_tried_twice() {
    let mut b = Bench::new(&[&["a"]], 1);
    b.poll(s(0));
    b.announcer.stop(s(1));
    assert!(!b.announcer.is_done(), "the request may have arrived");
    b.bad(s(2), Retry::Backoff, true);
    assert_eq!(b.poll(s(2)), is("a", Event::Stopped));
    b.bad(s(3), Retry::Backoff, true);
    assert_eq!(b.announcer.deadline(), Some(s(6)));
    assert_eq!(b.poll(s(6)), is("a", Event::Stopped));
    b.bad(s(7), Retry::Backoff, true);
    assert!(b.announcer.is_done());
}

#[test]
fn nothing_said_nothing_to_stop() {
    let mut b = Bench::new(&[&["a"]], 1);
    b.announcer.stop(s(0));
    assert!(b.announcer.is_done());
    let mut b = Bench::new(&[&["a"]], 1);
    b.poll(s(0));
    b.announcer.stop(s(0));
    b.announcer.withdrawn();
    assert!(b.announcer.is_done());
    let mut b = Bench::new(&[&["a"]], 1);
    b.poll(s(0));
    b.bad(s(0), Retry::Backoff, false);
    b.announcer.stop(s(0));
    assert!(b.announcer.is_done(), "it never connected");
}

#[test]
fn status_tells_each_tracker() {
    let mut b = Bench::new(&[&["a"], &["b"], &["c"]], 1);
    b.poll(s(0));
    b.bad(s(0), Retry::Backoff, false);
    b.poll(s(0));
    let reply = Reply {
        seeders: Some(3),
        leechers: Some(4),
        warning: Some("careful".into()),
        interval: Some(s(100)),
        ..Reply::default()
    };
    b.announcer.succeeded(s(1), &reply, &b.timing, &mut b.jitter);
    let status: Vec<_> = b.announcer.status().collect();
    assert_eq!(status[0].state, State::Failing(1));
    assert!(status[0].next_announce.is_some_and(|at| at >= s(15)));
    assert_eq!(status[0].message.as_deref(), Some("no"));
    assert_eq!((status[1].state, status[1].last_success), (State::Working, Some(s(1))));
    assert_eq!((status[1].seeders, status[1].leechers), (Some(3), Some(4)));
    assert!(status[1].next_announce.is_some_and(|at| at >= s(101)));
    assert_eq!(status[1].message.as_deref(), Some("careful"));
    assert_eq!((status[2].state, status[2].next_announce), (State::NotContacted, None));
}
