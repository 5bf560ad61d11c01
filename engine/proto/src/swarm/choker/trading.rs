//! Owns: who has the slots of a torrent that downloads: tit for tat (BEP 3).
//! Never: more than one torrent: what peers of different torrents give does not compare.
//! Flow: the choker's share of slots -> here -> who is chosen.
//!
//! Slots go, in this order, to
//! 1. those who give us most, all slots but one in ten (at least one): the regular ones. Who holds
//!    one keeps it against others that are hardly faster, since a choke voids what is on its way;
//! 2. optimistic ones: whoever was tried last, for [`TENURE`]; then who has waited longest, where
//!    the wait of those never tried counts three times;
//! 3. whoever is left.
//!
//! Who snubs us, or gave nothing in the last 20 s, gets no regular slot. What regular ones that
//! leaves are optimistic too: a torrent that everybody snubs tries all of them in turn, and a new
//! one finds out in 30 s who answers. A free rider so gets its turn of one slot and no more.
//!
//! [`TENURE`]: super::TENURE

use std::cmp::Reverse;
use std::time::Duration;

use super::{TENURE, View};

/// One slot in so many is optimistic, at least one: the original client had one of its 4 to 7.
const OPTIMISTIC_ONE_IN: usize = 10;
/// Of so many turns, one is optimistic where there is but one slot.
const TURNS_OF_ONE_SLOT: u64 = 3;
/// The wait of who was never unchoked counts so many times (BEP 3: three times as likely).
const NEW_COUNTS: u32 = 3;

pub(super) fn choose<K, T>(
    view: &View<'_, K, T>,
    members: &[usize],
    slots: usize,
    chosen: &mut [bool],
) {
    let View { now, rotates, candidates, lots } = *view;
    let holds = |at: &&usize| candidates[**at].unchoked;
    let mut left = slots;
    let mut give = |at: usize, chosen: &mut [bool]| {
        if left > 0 && !chosen[at] {
            chosen[at] = true;
            left -= 1;
        }
    };
    let mut givers: Vec<usize> =
        members.iter().copied().filter(|at| worth(view, *at) > 0).collect();
    givers.sort_unstable_by_key(|at| (Reverse(worth(view, *at)), lots[*at]));
    let mut waiting: Vec<usize> = members.iter().copied().filter(|at| !holds(&at)).collect();
    waiting.sort_unstable_by_key(|at| (Reverse(waited(view, *at)), lots[*at]));
    let mut tried: Vec<usize> = members.iter().copied().filter(|at| holds(&at)).collect();
    // The longest there first: of those in tenure it has the least to go.
    tried.sort_unstable_by_key(|at| (candidates[*at].last_unchoked, lots[*at]));

    if rotates {
        let regular = slots - optimistic(slots, now).min(slots);
        givers.iter().take(regular).for_each(|at| give(*at, chosen));
        let in_tenure = tried.iter().filter(|at| candidates[**at].in_tenure(now));
        in_tenure.for_each(|at| give(*at, chosen));
    } else {
        // Nobody loses a slot between rotations, unless there are fewer; who gives keeps first.
        givers.iter().filter(holds).chain(&tried).for_each(|at| give(*at, chosen));
        givers.iter().for_each(|at| give(*at, chosen));
    }
    waiting.iter().chain(&givers).chain(&tried).for_each(|at| give(*at, chosen));
}

fn optimistic(slots: usize, now: Duration) -> usize {
    match slots {
        1 => usize::from((now.as_secs() / TENURE.as_secs()).is_multiple_of(TURNS_OF_ONE_SLOT)),
        slots => slots.div_ceil(OPTIMISTIC_ONE_IN),
    }
}

/// What a peer gives, an eighth more where it holds a slot; 0: no claim to a regular one.
fn worth<K, T>(view: &View<'_, K, T>, at: usize) -> u64 {
    let peer = &view.candidates[at];
    let trade = peer.trade.unwrap_or_default();
    match trade.snubs {
        true => 0,
        false if peer.unchoked => trade.gives_bytes_per_s.saturating_mul(9) / 8,
        false => trade.gives_bytes_per_s,
    }
}

fn waited<K, T>(view: &View<'_, K, T>, at: usize) -> Duration {
    let peer = &view.candidates[at];
    let wait = view.now.saturating_sub(peer.waiting_since.unwrap_or(view.now));
    if peer.last_unchoked.is_none() { wait * NEW_COUNTS } else { wait }
}

#[cfg(test)]
mod tests;
