//! Owns: how many of a shard's slots each group of peers has: a torrent that downloads, or all
//! torrents that seed. Never: which peers get them. Flow: candidates -> groups -> shares.
//!
//! Each group first has [`LEAST`] slots, as far as it has peers for them, so that a download can
//! trade beside thousands of peers of seeding torrents; what is left is divided by how many peers
//! still wait. Where there is not even one slot for each group, they take turns of [`TENURE`].
//!
//! [`TENURE`]: super::TENURE

use std::collections::BTreeMap;

use super::Candidate;

/// Slots of a group before others get more: fewer make no trade.
const LEAST: usize = 4;

/// Interested peers among which slots are given.
pub(super) struct Group {
    pub trades: bool,
    /// Indices of candidates.
    pub members: Vec<usize>,
    /// Slots that it could use.
    wants: usize,
    holds: usize,
}

impl Group {
    /// The groups of those who are interested: torrents that download, in order, then the rest.
    pub fn of<K, T: Copy + Ord>(candidates: &[Candidate<K, T>]) -> Vec<Group> {
        let mut seeding: BTreeMap<T, (usize, usize)> = BTreeMap::new();
        let mut trading: BTreeMap<T, Vec<usize>> = BTreeMap::new();
        let mut seeds = Vec::new();
        for (at, peer) in candidates.iter().enumerate().filter(|(_, peer)| peer.interested) {
            if peer.trade.is_some() {
                trading.entry(peer.torrent).or_default().push(at);
            } else {
                seeds.push(at);
                seeding.entry(peer.torrent).or_default().0 += 1;
                seeding.entry(peer.torrent).or_default().1 = peer.torrent_slots.count();
            }
        }
        let holds =
            |members: &[usize]| members.iter().filter(|at| candidates[**at].unchoked).count();
        let group = |members: Vec<usize>| {
            let bound = candidates[members[0]].torrent_slots.count();
            let (wants, holds) = (members.len().min(bound), holds(&members));
            Group { trades: true, members, wants, holds }
        };
        let mut groups: Vec<Group> = trading.into_values().map(group).collect();
        if !seeds.is_empty() {
            let wants = seeding.values().map(|(peers, bound)| *peers.min(bound)).sum();
            groups.push(Group { trades: false, holds: holds(&seeds), members: seeds, wants });
        }
        groups
    }
}

/// The slots of each group. Where nothing rotates no group is given less than it holds.
pub(super) fn divide(slots: usize, groups: &[Group], rotates: bool, turn: u64) -> Vec<usize> {
    let mut shares = fair(slots, groups, turn);
    let held: usize = groups.iter().map(|group| group.holds.min(group.wants)).sum();
    if rotates || held > slots {
        return shares;
    }
    let mut free = slots - held;
    for (share, group) in shares.iter_mut().zip(groups) {
        let held = group.holds.min(group.wants);
        let more = share.saturating_sub(held).min(free);
        free -= more;
        *share = held + more;
    }
    shares
}

fn fair(slots: usize, groups: &[Group], turn: u64) -> Vec<usize> {
    let wanted: usize = groups.iter().map(|group| group.wants).sum();
    if wanted <= slots {
        return groups.iter().map(|group| group.wants).collect();
    }
    let mut shares = vec![0; groups.len()];
    let mut left = slots;
    // Who comes first moves on by as many as had their turn.
    let first = (turn as usize).wrapping_mul(slots) % groups.len();
    let order: Vec<usize> = (0..groups.len()).map(|n| (first + n) % groups.len()).collect();
    for least in 1..=LEAST {
        for at in order.iter().copied().filter(|at| groups[*at].wants >= least) {
            let one = usize::from(left > 0);
            shares[at] += one;
            left -= one;
        }
    }
    let unmet: Vec<usize> = groups.iter().zip(&shares).map(|(g, share)| g.wants - share).collect();
    let all = unmet.iter().sum::<usize>().max(1) as u128;
    let rest = left;
    for (share, unmet) in shares.iter_mut().zip(&unmet) {
        let part = (rest as u128 * *unmet as u128 / all) as usize;
        *share += part;
        left -= part;
    }
    // What the division dropped: less than one for each group that still waits.
    for at in order {
        let one = usize::from(left > 0 && shares[at] < groups[at].wants);
        shares[at] += one;
        left -= one;
    }
    shares
}
