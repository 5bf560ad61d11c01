use super::*;
use crate::tracker::reply::Retry;
use std::collections::VecDeque;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn hash(n: u32) -> InfoHash {
    let mut hash = [0; 20];
    hash[..4].copy_from_slice(&n.to_be_bytes());
    InfoHash(hash)
}

fn torrent(n: u32, tiers: &[&[&str]]) -> Torrent {
    let tiers = tiers.iter().map(|t| t.iter().map(|u| (*u).to_owned()).collect()).collect();
    Torrent { info_hash: hash(n), tiers, origin: Origin::User, private: true }
}

fn good() -> Result<Reply, Failure> {
    Ok(Reply { interval: Some(s(1800)), ..Reply::default() })
}

fn bad() -> Result<Reply, Failure> {
    let retry = Retry::Backoff;
    Err(Failure {
        message: "no".into(),
        retry,
        refused: false,
        maybe_heard: false,
        unreached: false,
    })
}

/// Trackers in virtual time: each request takes `latency`; what arrives is recorded.
struct World {
    schedule: Schedule,
    now: Duration,
    latency: Duration,
    running: VecDeque<(Duration, Job)>,
    /// When each event of each torrent arrived.
    heard: HashMap<InfoHash, Vec<(Duration, Event)>>,
    per_host_most: usize,
    starts: Vec<Duration>,
    down: bool,
}

impl World {
    fn new(limits: Limits, latency: Duration) -> Self {
        let options = Options { limits, seed: 42, ..Options::default() };
        Self {
            schedule: Schedule::new(options),
            now: Duration::ZERO,
            latency,
            running: VecDeque::new(),
            heard: HashMap::new(),
            per_host_most: 0,
            starts: Vec::new(),
            down: false,
        }
    }

    /// Runs events in order of time up to `until`, or until nothing is planned.
    fn run(&mut self, until: Duration) {
        loop {
            while let Some(job) = self.schedule.poll(self.now) {
                self.starts.push(self.now);
                self.running.push_back((self.now + self.latency, job));
                let host = self.running.back().map(|(_, j)| j.endpoint.host.clone()).unwrap();
                self.per_host_most =
                    self.per_host_most.max(self.schedule.governor().running_at(&host));
            }
            let done = self.running.front().map(|(at, _)| *at);
            let Some(next) = [done, self.schedule.deadline()].into_iter().flatten().min() else {
                break;
            };
            if next > until {
                self.now = until;
                break;
            }
            self.now = self.now.max(next);
            while self.running.front().is_some_and(|(at, _)| *at <= self.now) {
                let (at, job) = self.running.pop_front().unwrap();
                let outcome = if self.down { bad() } else { good() };
                if outcome.is_ok() {
                    self.heard.entry(job.info_hash).or_default().push((at, job.event));
                }
                self.schedule.finished(self.now, job.id, &outcome);
            }
        }
    }
}

const URL: &str = "http://t.example/announce";

#[test]
fn ten_thousand_torrents_of_one_tracker_start_evenly_and_stop_in_time() {
    let mut world = World::new(Limits::default(), Duration::from_millis(50));
    for n in 0..10_000 {
        assert!(world.schedule.add(s(0), torrent(n, &[&[URL]])));
    }
    world.run(s(300));
    assert_eq!(world.heard.len(), 10_000, "each was announced");
    assert!(world.heard.values().all(|h| h.len() == 1 && h[0].1 == Event::Started));
    assert!(world.per_host_most <= 4);
    // 50 a second: never more than 51 in any second.
    for window in world.starts.windows(52) {
        assert!(window[51] - window[0] >= s(1));
    }
    assert_eq!(world.schedule.endpoints.len(), 1, "one copy of the address");
    // Two hours later each was announced at its interval, and only then.
    world.run(s(7200));
    for heard in world.heard.values() {
        assert!((4..=5).contains(&heard.len()), "{heard:?}");
        for pair in heard.windows(2) {
            let wait = pair[1].0 - pair[0].0;
            assert!(wait >= s(1800) && wait < s(1900), "{wait:?}");
        }
    }
    // Some have an announce on its way when the end comes.
    let begun = world.now;
    world.per_host_most = 0;
    world.schedule.shutdown(begun);
    assert!(!world.schedule.add(begun, torrent(99_999, &[&[URL]])));
    world.run(begun + s(60));
    assert!(world.schedule.is_empty());
    assert_eq!(world.schedule.stops(), Stops { sent: 10_000, failed: 0, owed: 0 });
    assert!(world.heard.values().all(|h| h.last().unwrap().1 == Event::Stopped));
    assert!(world.per_host_most <= 16);
    // 16 at a time, 50 ms each: 31 s.
    assert!(world.now - begun < s(33), "{:?}", world.now - begun);
}

#[test]
fn a_dead_tracker_does_not_hold_up_another() {
    let limits = Limits { requests_max: 8, ..Limits::default() };
    let mut world = World::new(limits, Duration::from_millis(10));
    for n in 0..100 {
        world.schedule.add(s(0), torrent(n, &[&[URL]]));
        world.schedule.add(s(0), torrent(n + 1000, &[&["http://dead.example/announce"]]));
    }
    // The dead one's requests never end: its four places stay taken, no more.
    let mut stuck = 0;
    let mut now = s(0);
    let mut served = 0;
    for _ in 0..10_000 {
        now += Duration::from_millis(10);
        while let Some(job) = world.schedule.poll(now) {
            match job.endpoint.url.host() {
                "dead.example" => stuck += 1,
                _ => {
                    served += 1;
                    world.schedule.finished(now, job.id, &good());
                }
            }
        }
    }
    assert_eq!((stuck, served), (4, 100));
}

#[test]
fn after_an_outage_everything_comes_back_spread_out() {
    let mut world = World::new(Limits::default(), Duration::from_millis(50));
    world.down = true;
    for n in 0..1000 {
        world.schedule.add(s(0), torrent(n, &[&[URL]]));
    }
    world.run(s(20_000));
    let tries = world.starts.len();
    // 15 s doubling to 1 h within 20,000 s: at most 14 attempts each.
    assert!((10_000..=14_000).contains(&tries), "{tries}");
    world.down = false;
    world.run(s(24_000));
    assert_eq!(world.heard.len(), 1000);
}

#[test]
fn a_removed_torrent_says_stopped_with_its_last_totals_and_may_come_back() {
    let mut schedule = Schedule::new(Options::default());
    schedule.add(s(0), torrent(1, &[&[URL]]));
    let job = schedule.poll(s(0)).unwrap();
    assert_eq!((job.event, job.final_totals), (Event::Started, None));
    schedule.finished(s(0), job.id, &good());
    let totals = Totals { uploaded_bytes: 7, downloaded_bytes: 8, left_bytes: 0 };
    assert!(!schedule.add(s(1), torrent(1, &[&[URL]])), "it is there");
    assert!(schedule.remove(s(1), &hash(1), totals));
    let job = schedule.poll(s(1)).unwrap();
    assert_eq!((job.event, job.final_totals), (Event::Stopped, Some(totals)));
    assert!(schedule.add(s(1), torrent(1, &[&[URL]])), "added again meanwhile");
    assert_eq!(schedule.finished(s(2), job.id, &good()), Effect::default());
    let job = schedule.poll(s(2)).unwrap();
    assert_eq!((job.event, job.final_totals), (Event::Started, None));
    schedule.finished(s(2), job.id, &good());
    assert!(schedule.remove(s(3), &hash(1), totals));
    let job = schedule.poll(s(3)).unwrap();
    assert!(schedule.finished(s(3), job.id, &good()).removed);
    assert!(schedule.is_empty() && schedule.timers.is_empty());
}

#[test]
fn a_queued_announce_gives_way_to_stopped() {
    let mut schedule = Schedule::new(Options::default());
    for n in 0..3 {
        schedule.add(s(0), torrent(n, &[&[URL]]));
    }
    let first = schedule.poll(s(0)).unwrap();
    assert!(schedule.poll(s(0)).is_none(), "the others wait for their turn");
    assert_eq!(schedule.governor().queued(), 2);
    schedule.shutdown(s(0));
    assert_eq!(schedule.governor().queued(), 0);
    assert_eq!(schedule.len(), 1, "only the one that may be known remains");
    schedule.finished(s(1), first.id, &good());
    assert_eq!(schedule.stops(), Stops { sent: 0, failed: 0, owed: 1 });
    let job = schedule.poll(s(1)).unwrap();
    assert_eq!(job.event, Event::Stopped);
    schedule.finished(s(1), job.id, &bad());
    let job = schedule.poll(s(4)).unwrap();
    schedule.finished(s(4), job.id, &bad());
    assert_eq!(schedule.stops(), Stops { sent: 0, failed: 1, owed: 0 });
    assert!(schedule.is_empty());
}

#[test]
fn private_torrents_are_told_of_a_switch() {
    let mut schedule = Schedule::new(Options::default());
    schedule.add(s(0), torrent(1, &[&[URL], &["https://u.example/announce"]]));
    let job = schedule.poll(s(0)).unwrap();
    schedule.finished(s(0), job.id, &good());
    let later = schedule.deadline().unwrap();
    let job = schedule.poll(later).unwrap();
    schedule.finished(later, job.id, &bad());
    let job = schedule.poll(later).unwrap();
    assert_eq!(job.endpoint.url.host(), "u.example");
    assert!(schedule.finished(later, job.id, &good()).switched);
}

#[test]
fn addresses_that_cannot_be_used_are_listed_redacted() {
    let mut schedule = Schedule::new(Options::default());
    let wss = "wss://t.example:80/0123456789abcdef0123/announce";
    schedule.add(s(0), torrent(1, &[&[wss, URL, URL]]));
    let TorrentStatus { trackers, unusable } = schedule.status(&hash(1)).unwrap();
    assert_eq!(trackers.len(), 1, "named twice, used once");
    assert_eq!(unusable.len(), 1);
    assert_eq!(unusable[0].0, "wss://t.example:80/***/announce");
    let none = torrent(2, &[&[wss]]);
    schedule.add(s(0), none);
    let job = schedule.poll(s(0)).unwrap();
    assert_eq!(job.info_hash, hash(1));
    schedule.finished(s(0), job.id, &good());
    assert!(schedule.remove(s(1), &hash(2), Totals::default()));
    assert_eq!(schedule.len(), 1);
}

proptest::proptest! {
    /// Commands and outcomes in any order: one request a torrent, caps hold, and the end is
    /// reached.
    #[test]
    fn any_history_ends(steps in proptest::collection::vec((0u8..9, 0u32..12), 1..200)) {
        let limits = Limits { requests_per_host_max: 2, requests_max: 3, ..Limits::default() };
        let mut schedule = Schedule::new(Options { limits, ..Options::default() });
        let mut running: Vec<Job> = Vec::new();
        let mut now = s(0);
        let tiers: [&[&[&str]]; 3] =
            [&[&[URL]], &[&[URL, "http://u.example/a"]], &[&["http://v.example/a"], &[URL]]];
        for (step, n) in steps {
            match step {
                0 | 1 => { schedule.add(now, torrent(n, tiers[n as usize % 3])); }
                2 => { schedule.remove(now, &hash(n), Totals::default()); }
                3 => schedule.want_more_peers(now, &hash(n)),
                4 => schedule.completed(now, &hash(n)),
                5 => now += s(u64::from(n) * 30),
                _ if running.is_empty() => {}
                outcome => {
                    let job = running.swap_remove(n as usize % running.len());
                    let outcome = if outcome == 6 { bad() } else { good() };
                    schedule.finished(now, job.id, &outcome);
                }
            }
            while let Some(job) = schedule.poll(now) {
                proptest::prop_assert!(running.iter().all(|r| r.info_hash != job.info_hash));
                running.push(job);
            }
            proptest::prop_assert!(running.len() <= 3);
            now += Duration::from_millis(20);
        }
        schedule.shutdown(now);
        for _ in 0..2000 {
            while let Some(job) = schedule.poll(now) {
                running.push(job);
            }
            match running.pop() {
                Some(job) => { schedule.finished(now, job.id, &good()); }
                None => now = schedule.deadline().unwrap_or(now),
            }
        }
        proptest::prop_assert!(schedule.is_empty() && schedule.timers.is_empty());
        proptest::prop_assert_eq!(schedule.stops().owed, 0);
    }
}
