//! Owns: which connections go where there is no room for others.
//! Never: says whom instead (the roster), or closes one.
//! Flow: a full torrent's connections as values -> those that are worth least -> the shard closes
//! them.

use std::cmp::Reverse;
use std::time::Duration;

/// How often a download that has all the connections it aims at exchanges some of them; libtorrent
/// does it as often.
pub const TURNOVER_EVERY: Duration = Duration::from_secs(300);
/// Of so many connections one goes each time: 4 %, as with libtorrent.
const ONE_IN: u32 = 25;
/// A connection is not judged before it had time to show what it is worth: that of a few rounds of
/// unchoking.
const JUDGED_AFTER: Duration = Duration::from_secs(60);

/// One connection of a torrent.
#[derive(Clone, Copy, Debug)]
pub struct Member<K> {
    pub key: K,
    /// When it opened.
    pub opened: Duration,
    /// What it gives us and what it takes, in bytes a second.
    pub down_bytes_per_s: u64,
    pub up_bytes_per_s: u64,
    /// We want something of it, and it of us.
    pub am_interested: bool,
    pub peer_interested: bool,
    /// It would serve us now.
    pub serves: bool,
}

impl<K: Copy> Member<K> {
    fn is_judged(&self, now: Duration) -> bool {
        now.saturating_sub(self.opened) >= JUDGED_AFTER
    }

    /// Whether somebody who is not known at all is worth more: nobody wants anything here, and that
    /// not only since just now.
    pub fn is_useless(&self, now: Duration) -> bool {
        let moves = self.down_bytes_per_s + self.up_bytes_per_s > 0;
        self.is_judged(now) && !moves && !self.am_interested && !self.peer_interested
    }

    /// Who is worth least has the least; of equals, who has had the most time.
    fn worth(&self) -> impl Ord + use<K> {
        let served = self.serves && self.am_interested;
        let wants = (self.am_interested, self.peer_interested);
        (self.down_bytes_per_s, self.up_bytes_per_s, served, wants, self.opened)
    }
}

/// How many of so many connections go at a time.
pub fn part(connections: u32) -> u32 {
    connections.div_ceil(ONE_IN)
}

/// Appends the `count` members that are worth least, of those that can be judged.
pub fn least_useful<K: Copy + Ord>(
    members: &mut Vec<Member<K>>,
    count: usize,
    now: Duration,
    leaving: &mut Vec<K>,
) {
    members.retain(|member| member.is_judged(now));
    members.sort_by_key(|member| (member.worth(), Reverse(member.key)));
    leaving.extend(members.iter().take(count).map(|member| member.key));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(key: u32) -> Member<u32> {
        Member {
            key,
            opened: Duration::ZERO,
            down_bytes_per_s: 0,
            up_bytes_per_s: 0,
            am_interested: true,
            peer_interested: false,
            serves: false,
        }
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_least_useful_go_and_nobody_who_has_just_come() {
        let mut members = vec![
            Member { down_bytes_per_s: 9, ..member(0) },
            Member { up_bytes_per_s: 100, ..member(1) },
            Member { serves: true, ..member(2) },
            member(3),
            Member { am_interested: false, ..member(4) },
            Member { am_interested: false, peer_interested: true, ..member(5) },
            Member { am_interested: false, opened: secs(100), ..member(6) },
            Member { am_interested: false, opened: secs(1), ..member(7) },
        ];
        let mut leaving = Vec::new();
        least_useful(&mut members, 99, secs(100), &mut leaving);
        assert_eq!(leaving, [4, 7, 5, 3, 2, 1, 0]);
        leaving.clear();
        least_useful(&mut members, 2, secs(100), &mut leaving);
        assert_eq!(leaving, [4, 7]);
    }

    #[test]
    fn useless_is_who_neither_wants_nor_has() {
        let idle = Member { am_interested: false, ..member(1) };
        assert!(idle.is_useless(secs(60)) && !idle.is_useless(secs(59)));
        assert!(!member(1).is_useless(secs(99)), "it has something, and may unchoke us");
        for useful in [
            Member { peer_interested: true, ..idle },
            Member { up_bytes_per_s: 1, ..idle },
            Member { down_bytes_per_s: 1, ..idle },
        ] {
            assert!(!useful.is_useless(secs(99)), "{useful:?}");
        }
    }

    #[test]
    fn four_in_a_hundred_and_one_at_least() {
        assert_eq!([1, 25, 26, 50, 500].map(part), [1, 1, 2, 2, 20]);
    }
}
