//! Owns: IP addresses of peers that sent what they knew, or should have known, to be wrong.
//! Never: closes a connection, or says for how long: the oldest are let off when there are many.
//! Flow: a poisoned piece or metadata -> `add`; accepting, dialling and learning ask.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;

/// More are a sign that the bans are wrong, or of somebody with a network to spend.
const BANS_MAX: usize = 4_096;

/// Bans of the whole engine: a liar of one torrent is one of all.
#[derive(Clone, Debug, Default)]
pub struct Bans {
    banned: HashSet<IpAddr>,
    /// The oldest first.
    order: VecDeque<IpAddr>,
}

impl Bans {
    /// False: it was banned already.
    pub fn add(&mut self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        if !self.banned.insert(ip) {
            return false;
        }
        self.order.push_back(ip);
        if self.order.len() > BANS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.banned.remove(&oldest);
        }
        true
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        self.banned.contains(&ip.to_canonical())
    }

    pub fn all(&self) -> &HashSet<IpAddr> {
        &self.banned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_let_off() {
        let mut bans = Bans::default();
        let ip = |at: usize| IpAddr::from((at as u128 + (1 << 100)).to_be_bytes());
        assert!(bans.add("::ffff:1.2.3.4".parse().expect("valid")));
        assert!(!bans.add([1, 2, 3, 4].into()) && bans.contains([1, 2, 3, 4].into()));
        (1..BANS_MAX).for_each(|at| assert!(bans.add(ip(at))));
        assert!(bans.contains([1, 2, 3, 4].into()));
        assert!(bans.add(ip(0)));
        assert!(!bans.contains([1, 2, 3, 4].into()));
        assert_eq!(bans.all().len(), BANS_MAX);
    }
}
