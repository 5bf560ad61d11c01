//! Turns at a tracker's host.
//!
//! Owns: how many requests run at once and how fast they start, a host and in all; which hosts
//! can't be reached. Never: knows what a request says; one ticket a torrent, so the queues are
//! bounded by the number of torrents.
//! Flow: the schedule queues tickets, takes granted ones, and says how each finished.
//!
//! 10,000 torrents of one tracker that start together become an even stream of requests over a few
//! kept connections, instead of a storm that the tracker answers with a ban. A host that takes no
//! connection is tried by one of them every now and then; the others hear of it at once, so that
//! they go on to their next tracker.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// After this many urgent grants in a row a regular one has its turn, so that none starves.
const URGENT_RUN_MAX: u8 = 8;
/// After so many requests in a row that did not reach it, a host is down.
const UNREACHED_MAX: u32 = 4;
/// A host that is down is tried again after this, and after twice as long each time.
const DOWN_MIN: Duration = Duration::from_secs(15);
const DOWN_MAX: Duration = Duration::from_secs(300);
/// While one tries, others are turned away: for at most as long as its connect may take.
const TRIAL: Duration = Duration::from_secs(60);
/// Idle hosts are forgotten when there are this many.
const HOSTS_SWEEP: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub requests_per_host_max: usize,
    pub requests_max: usize,
    /// Starts a second at one host.
    pub requests_per_host_per_s: u32,
    /// Replaces `requests_per_host_max` at shutdown, when the pace is lifted too.
    pub requests_per_host_at_shutdown: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_host_max: 4,
            requests_max: 64,
            requests_per_host_per_s: 50,
            requests_per_host_at_shutdown: 16,
        }
    }
}

/// In the order of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Stopped,
    /// `started` and `completed`.
    Event,
    Regular,
}

const CLASSES: usize = 3;

/// A torrent's slot in the schedule.
pub type Ticket = u32;

/// What the end of a request says of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contact<'a> {
    Made,
    /// No address, no connection; why.
    Failed(&'a str),
    /// It was turned away.
    NotTried,
}

/// A host that could not be reached.
#[derive(Debug)]
struct Down {
    /// Requests in a row.
    failures: u32,
    /// From then on one may try.
    until: Duration,
    why: String,
}

#[derive(Debug, Default)]
struct Host {
    down: Option<Down>,
    queues: [VecDeque<Ticket>; CLASSES],
    running: usize,
    /// Earliest next start.
    next_at: Duration,
    urgent_run: u8,
}

#[derive(Debug)]
pub struct Governor {
    limits: Limits,
    hosts: HashMap<Arc<str>, Host>,
    /// Hosts with a ticket and a free place, by their next start: the longest wait is first.
    eligible: BTreeSet<(Duration, Arc<str>)>,
    running: usize,
    queued: usize,
    hurry: bool,
}

impl Governor {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        assert!(limits.requests_max > 0 && limits.requests_per_host_max > 0);
        assert!(limits.requests_per_host_per_s > 0 && limits.requests_per_host_at_shutdown > 0);
        Self {
            limits,
            hosts: HashMap::new(),
            eligible: BTreeSet::new(),
            running: 0,
            queued: 0,
            hurry: false,
        }
    }

    #[must_use]
    pub fn running(&self) -> usize {
        self.running
    }

    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Requests running at one host.
    #[must_use]
    pub fn running_at(&self, host: &str) -> usize {
        self.hosts.get(host).map_or(0, |h| h.running)
    }

    pub fn enqueue(&mut self, now: Duration, host: &Arc<str>, class: Class, ticket: Ticket) {
        if self.hosts.len() >= HOSTS_SWEEP && !self.hosts.contains_key(host) {
            let is_idle = |h: &Host| h.running == 0 && !h.is_waiting() && h.next_at <= now;
            self.hosts.retain(|_, h| !is_idle(h) || h.is_down(now));
        }
        self.change(host, |h| h.queues[class as usize].push_back(ticket));
        self.queued += 1;
    }

    /// Takes a ticket out again; false where it was granted already.
    pub fn withdraw(&mut self, host: &Arc<str>, class: Class, ticket: Ticket) -> bool {
        let mut found = false;
        self.change(host, |h| {
            let queue = &mut h.queues[class as usize];
            if let Some(at) = queue.iter().position(|t| *t == ticket) {
                queue.remove(at);
                found = true;
            }
        });
        self.queued -= usize::from(found);
        found
    }

    /// The next ticket whose turn it is; it counts as running until [`Self::finished`].
    pub fn grant(&mut self, now: Duration) -> Option<Ticket> {
        if self.running >= self.limits.requests_max {
            return None;
        }
        let (at, host) = self.eligible.first()?.clone();
        if at > now {
            return None;
        }
        let is_down = self.hosts.get(&host).is_some_and(|h| h.is_down(now));
        let gap = match self.hurry || is_down {
            true => Duration::ZERO,
            false => Duration::from_secs(1) / self.limits.requests_per_host_per_s,
        };
        let mut ticket = None;
        self.change(&host, |h| {
            ticket = h.take();
            h.running += 1;
            h.next_at = h.next_at.max(now) + gap;
        });
        self.running += 1;
        self.queued -= 1;
        Some(ticket.expect("invariant: an eligible host has a ticket"))
    }

    /// Asked with each ticket that is granted: why its host is not to be asked now. `None`: ask it;
    /// where it is down, this one tries whether it still is.
    pub fn turned_away(&mut self, now: Duration, host: &Arc<str>) -> Option<String> {
        let host = self.hosts.get_mut(host)?;
        let is_down = host.is_down(now);
        let down = host.down.as_mut().filter(|down| down.failures >= UNREACHED_MAX)?;
        if is_down {
            let again = (down.until - now).as_secs_f32().ceil();
            return Some(format!("{} (tried again in {again} s at the earliest)", down.why));
        }
        down.until = now + TRIAL;
        None
    }

    pub fn finished(&mut self, now: Duration, host: &Arc<str>, contact: Contact<'_>) {
        self.change(host, |h| {
            assert!(h.running > 0, "a request finished that was not granted");
            h.running -= 1;
            match contact {
                Contact::Made => h.down = None,
                Contact::Failed(why) => h.not_reached(now, why),
                Contact::NotTried => {}
            }
        });
        self.running -= 1;
    }

    /// When [`Self::grant`] may have something; `None` while all places are taken or nothing
    /// waits.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        if self.running >= self.limits.requests_max {
            return None;
        }
        self.eligible.first().map(|(at, _)| *at)
    }

    /// Shutdown: the pace is lifted and each host gets more places.
    pub fn hurry(&mut self, now: Duration) {
        self.hurry = true;
        let hosts: Vec<Arc<str>> = self.hosts.keys().cloned().collect();
        for host in hosts {
            self.change(&host, |h| h.next_at = h.next_at.min(now));
        }
    }

    fn per_host_max(&self) -> usize {
        match self.hurry {
            true => self.limits.requests_per_host_at_shutdown,
            false => self.limits.requests_per_host_max,
        }
    }

    /// Changes a host and keeps `eligible` in step with it.
    fn change(&mut self, key: &Arc<str>, edit: impl FnOnce(&mut Host)) {
        let places = self.per_host_max();
        let host = self.hosts.entry(Arc::clone(key)).or_default();
        self.eligible.remove(&(host.next_at, Arc::clone(key)));
        edit(host);
        if host.is_waiting() && host.running < places {
            self.eligible.insert((host.next_at, Arc::clone(key)));
        }
    }
}

impl Host {
    fn is_down(&self, now: Duration) -> bool {
        self.down.as_ref().is_some_and(|d| d.failures >= UNREACHED_MAX && now < d.until)
    }

    fn not_reached(&mut self, now: Duration, why: &str) {
        let failures = self.down.as_ref().map_or(0, |down| down.failures).saturating_add(1);
        let doublings = failures.saturating_sub(UNREACHED_MAX).min(8);
        let wait = (DOWN_MIN * (1 << doublings)).min(DOWN_MAX);
        self.down = Some(Down { failures, until: now + wait, why: why.to_owned() });
    }

    fn is_waiting(&self) -> bool {
        self.queues.iter().any(|q| !q.is_empty())
    }

    fn take(&mut self) -> Option<Ticket> {
        let [stopped, event, regular] = &mut self.queues;
        if self.urgent_run >= URGENT_RUN_MAX {
            self.urgent_run = 0;
            if let Some(ticket) = regular.pop_front() {
                return Some(ticket);
            }
        }
        if let Some(ticket) = stopped.pop_front().or_else(|| event.pop_front()) {
            self.urgent_run += 1;
            return Some(ticket);
        }
        self.urgent_run = 0;
        regular.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn urgent_goes_first_and_regular_does_not_starve() {
        let mut governor =
            Governor::new(Limits { requests_per_host_max: 100, ..Limits::default() });
        let h = host("a");
        for t in 0..20 {
            governor.enqueue(ms(0), &h, Class::Event, t);
        }
        governor.enqueue(ms(0), &h, Class::Regular, 100);
        governor.enqueue(ms(0), &h, Class::Stopped, 200);
        let order: Vec<Ticket> = (0..).map_while(|i| governor.grant(ms(i * 20))).collect();
        assert_eq!(order[0], 200);
        assert_eq!(order[URGENT_RUN_MAX as usize], 100);
        assert_eq!(order.len(), 22);
    }

    #[test]
    fn the_pace_of_a_host_holds_and_another_host_does_not_wait() {
        let mut governor = Governor::new(Limits::default());
        for t in 0..3 {
            governor.enqueue(ms(0), &host("a"), Class::Event, t);
        }
        governor.enqueue(ms(0), &host("b"), Class::Event, 9);
        assert_eq!(governor.grant(ms(0)), Some(0));
        assert_eq!(governor.grant(ms(0)), Some(9));
        assert_eq!(governor.grant(ms(19)), None);
        assert_eq!(governor.deadline(), Some(ms(20)));
        assert_eq!(governor.grant(ms(20)), Some(1));
        assert_eq!(governor.grant(ms(39)), None);
        governor.hurry(ms(39));
        assert_eq!(governor.grant(ms(39)), Some(2));
    }

    #[test]
    fn a_host_that_is_down_is_tried_by_one_at_a_time() {
        let mut governor = Governor::new(Limits::default());
        let (h, mut now) = (host("a"), ms(0));
        let ask = |governor: &mut Governor, now, contact| {
            governor.enqueue(now, &h, Class::Event, 1);
            assert_eq!(governor.grant(now), Some(1));
            let why = governor.turned_away(now, &h);
            let contact = if why.is_some() { Contact::NotTried } else { contact };
            governor.finished(now, &h, contact);
            why.is_none()
        };
        for _ in 0..UNREACHED_MAX {
            assert!(ask(&mut governor, now, Contact::Failed("refused")));
            now += ms(100);
        }
        // At once, a hundred of them: no pace is kept with what is not asked.
        assert!((0..100).all(|_| !ask(&mut governor, now, Contact::Made)));
        let asked: Vec<u64> = (0..1200)
            .filter(|s| ask(&mut governor, now + ms(1000 * s), Contact::Failed("refused")))
            .collect();
        assert_eq!(asked, [15, 45, 105, 225, 465, 765, 1065]);
        // One that tries and has not come back yet.
        now += ms(1_400_000);
        governor.enqueue(now, &h, Class::Event, 1);
        assert_eq!(governor.grant(now), Some(1));
        assert_eq!(governor.turned_away(now, &h), None);
        now += ms(20);
        assert!(!ask(&mut governor, now, Contact::Made));
        governor.finished(now, &h, Contact::Made);
        now += ms(20);
        assert!(ask(&mut governor, now, Contact::Made), "it is back, for all");
        assert!(ask(&mut governor, now + ms(20), Contact::Made));
    }

    #[test]
    fn idle_hosts_are_forgotten() {
        let mut governor = Governor::new(Limits::default());
        for n in 0..(HOSTS_SWEEP * 3) {
            let h = host(&format!("h{n}"));
            let now = ms(n as u64 * 100);
            governor.enqueue(now, &h, Class::Regular, 1);
            assert_eq!(governor.grant(now), Some(1));
            governor.finished(now, &h, Contact::Made);
        }
        assert!(governor.hosts.len() <= HOSTS_SWEEP);
    }

    proptest! {
        /// Whatever comes in, caps hold and everything queued is granted exactly once.
        #[test]
        fn caps_hold_and_all_are_served(
            tickets in proptest::collection::vec((0usize..5, 0usize..3), 1..300),
            per_host in 1usize..4, total in 1usize..8, withdrawn in 0usize..20,
        ) {
            let names: Vec<_> = (0..5).map(|n| host(&n.to_string())).collect();
            let limits = Limits {
                requests_per_host_max: per_host,
                requests_max: total,
                ..Limits::default()
            };
            let mut governor = Governor::new(limits);
            let classes = [Class::Stopped, Class::Event, Class::Regular];
            for (t, (h, c)) in tickets.iter().enumerate() {
                governor.enqueue(ms(0), &names[*h], classes[*c], t as Ticket);
            }
            let mut served = vec![0; tickets.len()];
            for (t, (h, c)) in tickets.iter().enumerate().take(withdrawn) {
                prop_assert!(governor.withdraw(&names[*h], classes[*c], t as Ticket));
                prop_assert!(!governor.withdraw(&names[*h], classes[*c], t as Ticket));
                served[t] = 1;
            }
            let mut running: VecDeque<Ticket> = VecDeque::new();
            let mut now = ms(0);
            let mut rounds = 0;
            while governor.queued() > 0 || !running.is_empty() {
                rounds += 1;
                prop_assert!(rounds < 100_000);
                while let Some(t) = governor.grant(now) {
                    served[t as usize] += 1;
                    running.push_back(t);
                }
                prop_assert!(running.len() <= total && running.len() == governor.running());
                for name in &names {
                    prop_assert!(governor.running_at(name) <= per_host);
                }
                if let Some(t) = running.pop_front() {
                    governor.finished(now, &names[tickets[t as usize].0], Contact::Made);
                }
                now += ms(7);
            }
            prop_assert!(served.iter().all(|n| *n == 1));
        }
    }
}
