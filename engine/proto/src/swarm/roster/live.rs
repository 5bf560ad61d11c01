//! Owns: how many connections there are to each global IP address.
//! Never: counts those of local networks, of which many may be behind one.
//! Flow: the roster counts each that is dialled or accepted, until it ends.
//!
//! A sorted list: a torrent has some hundred peers, and of the thousands of torrents of a seedbox
//! most have one or none, for which a tree's first node would be ten times the size.

use std::net::IpAddr;

use crate::address::is_global;

#[derive(Clone, Debug, Default)]
pub struct Live(Vec<(IpAddr, u32)>);

impl Live {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn of(&self, ip: IpAddr) -> u32 {
        self.place(ip).map_or(0, |at| self.0[at].1)
    }

    pub fn add(&mut self, ip: IpAddr) {
        if !is_global(ip) {
            return;
        }
        match self.place(ip) {
            Ok(at) => self.0[at].1 += 1,
            Err(at) => {
                if self.0.len() == self.0.capacity() {
                    self.0.reserve_exact(self.0.len() / 4 + 1);
                }
                self.0.insert(at, (ip, 1));
            }
        }
    }

    pub fn remove(&mut self, ip: IpAddr) {
        let Ok(at) = self.place(ip) else { return };
        self.0[at].1 -= 1;
        if self.0[at].1 == 0 {
            self.0.remove(at);
        }
    }

    fn place(&self, ip: IpAddr) -> Result<usize, usize> {
        self.0.binary_search_by_key(&ip, |(ip, _)| *ip)
    }
}
