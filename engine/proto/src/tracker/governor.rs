//! Turns at a tracker's host.
//!
//! Owns: how many requests run at once and how fast they start, a host and in all. Never: knows
//! what
//! a request says; one ticket a torrent, so the queues are bounded by the number of torrents.
//! Flow: the schedule queues tickets, takes granted ones, and says when each finished.
//!
//! 10,000 torrents of one tracker that start together become an even stream of requests over a
//! few
//! kept connections, instead of a storm that the tracker answers with a ban.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// After this many urgent grants in a row a regular one has its turn, so that none starves.
const URGENT_RUN_MAX: u8 = 8;
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

#[derive(Debug, Default)]
struct Host {
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
            self.hosts.retain(|_, h| h.running > 0 || h.is_waiting() || h.next_at > now);
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
        let gap = match self.hurry {
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

    pub fn finished(&mut self, host: &Arc<str>) {
        self.change(host, |h| {
            assert!(h.running > 0, "a request finished that was not granted");
            h.running -= 1;
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
    fn idle_hosts_are_forgotten() {
        let mut governor = Governor::new(Limits::default());
        for n in 0..(HOSTS_SWEEP * 3) {
            let h = host(&format!("h{n}"));
            let now = ms(n as u64 * 100);
            governor.enqueue(now, &h, Class::Regular, 1);
            assert_eq!(governor.grant(now), Some(1));
            governor.finished(&h);
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
                    governor.finished(&names[tickets[t as usize].0]);
                }
                now += ms(7);
            }
            prop_assert!(served.iter().all(|n| *n == 1));
        }
    }
}
