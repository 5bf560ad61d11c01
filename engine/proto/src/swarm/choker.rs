//! Owns: which interested peers are unchoked, over all torrents of a shard.
//! Never: holds a peer, or changes more than it must: decisions name the changes alone.
//! Flow: every [`INTERVAL`], and when interest changes, candidates in, decisions out.
//!
//! A torrent that downloads trades ([`trading`]): its slots are for those who give. All torrents
//! that seed compete with each other ([`seeding`]): their slots are for those who take most, and
//! for turns. The slots of the shard are divided among these groups ([`shares`]): a few for each,
//! then by how many peers want something, so that neither kind starves the other.
//!
//! Unlimited slots mean what they say: whoever is interested is unchoked. That is what a seed with
//! bandwidth to spare wants; where upload is scarce the caller gives a bound ([`trading_slots`],
//! [`seeding_slots`]).

mod seeding;
mod shares;
mod trading;

use std::time::Duration;

use self::shares::Group;

/// Between two rotations; libtorrent's and the original client's figure.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// A turn that is given to one who waited, at least; BEP 3's 30 s of an optimistic unchoke.
pub const TENURE: Duration = Duration::from_secs(30);

/// Slots under an upload limit, at least.
const SLOTS_MIN: u64 = 4;
/// Under an upload limit, whoever has a slot of a seed is given a piece in about this time.
const PIECE_WITHIN: Duration = Duration::from_secs(10);

/// How many peers may be unchoked at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slots {
    Unlimited,
    Limited(u32),
}

impl Slots {
    fn count(self) -> usize {
        match self {
            Self::Unlimited => usize::MAX,
            Self::Limited(count) => count as usize,
        }
    }
}

/// What a peer of a torrent that downloads does for us.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Trade {
    /// Over the last 10 to 20 s.
    pub gives_bytes_per_s: u64,
    /// It has given nothing for a minute in which we wanted something of it.
    pub snubs: bool,
}

/// A peer as the choker sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate<K, T> {
    /// The caller's name of the connection.
    pub key: K,
    pub torrent: T,
    /// The torrent's own bound; the same for all candidates of one torrent.
    pub torrent_slots: Slots,
    pub interested: bool,
    pub unchoked: bool,
    /// What we send it.
    pub rate_bytes_per_s: u64,
    /// There for all candidates of a torrent that downloads, for none of one that seeds.
    pub trade: Option<Trade>,
    pub last_unchoked: Option<Duration>,
    /// Since when it is interested and choked.
    pub waiting_since: Option<Duration>,
}

impl<K, T> Candidate<K, T> {
    /// Was unchoked so lately that its turn is not over.
    fn in_tenure(&self, now: Duration) -> bool {
        self.last_unchoked.is_some_and(|since| now.saturating_sub(since) < TENURE)
    }
}

/// Slots under an upload limit for a torrent that downloads, where the user sets no number: with
/// more, each peer gets too little to be worth an answer. The original client's formula: the root
/// of 0.6 times the KiB a second, and 4 at least.
pub fn trading_slots(upload_bytes_per_s: u64) -> u32 {
    let wide = (upload_bytes_per_s / 1024).saturating_mul(3) / 5;
    wide.isqrt().max(SLOTS_MIN).try_into().unwrap_or(u32::MAX)
}

/// The same for one that seeds: so many that each is given a piece in [`PIECE_WITHIN`], since what
/// is given whole is passed on, and who waits longer asks elsewhere.
pub fn seeding_slots(upload_bytes_per_s: u64, piece_bytes: u32) -> u32 {
    let pieces = upload_bytes_per_s.saturating_mul(PIECE_WITHIN.as_secs());
    let pieces = pieces / u64::from(piece_bytes.max(1));
    trading_slots(upload_bytes_per_s).min(pieces.max(SLOTS_MIN).try_into().unwrap_or(u32::MAX))
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Choker {
    slots_global: Slots,
    random: u64,
    rotates_at: Duration,
}

impl Choker {
    /// `seed` decides between peers that are equal otherwise.
    pub fn new(slots_global: Slots, seed: u64) -> Self {
        Self { slots_global, random: seed, rotates_at: Duration::ZERO }
    }

    /// A new bound; it holds from the next `rechoke`.
    pub fn set_slots(&mut self, slots_global: Slots) {
        self.slots_global = slots_global;
    }

    /// When the next rotation is due.
    pub fn rotates_at(&self) -> Duration {
        self.rotates_at
    }

    /// Appends (key, unchoke?) for each peer whose state changes, chokes first, so that bounds
    /// hold at each step. Before [`Choker::rotates_at`] it only fills slots that are free.
    pub fn rechoke<K: Copy, T: Copy + Ord>(
        &mut self,
        now: Duration,
        candidates: &[Candidate<K, T>],
        decisions: &mut Vec<(K, bool)>,
    ) {
        let rotates = now >= self.rotates_at;
        if rotates {
            self.rotates_at = now + INTERVAL;
        }
        let unlimited = |peer: &Candidate<K, T>| peer.torrent_slots == Slots::Unlimited;
        if self.slots_global == Slots::Unlimited && candidates.iter().all(unlimited) {
            let waiting = candidates.iter().filter(|peer| peer.interested && !peer.unchoked);
            decisions.extend(waiting.map(|peer| (peer.key, true)));
            return;
        }
        let chosen = self.choose(now, rotates, candidates);
        let choked =
            candidates.iter().zip(&chosen).filter(|(peer, chosen)| peer.unchoked && !**chosen);
        decisions.extend(choked.map(|(peer, _)| (peer.key, false)));
        let freed =
            candidates.iter().zip(&chosen).filter(|(peer, chosen)| !peer.unchoked && **chosen);
        decisions.extend(freed.map(|(peer, _)| (peer.key, true)));
    }

    fn choose<K, T: Copy + Ord>(
        &mut self,
        now: Duration,
        rotates: bool,
        candidates: &[Candidate<K, T>],
    ) -> Vec<bool> {
        let lots: Vec<u64> = candidates.iter().map(|_| self.draw()).collect();
        let view = View { now, rotates, candidates, lots: &lots };
        let groups = Group::of(candidates);
        let turn = now.as_secs() / TENURE.as_secs();
        let shares = shares::divide(self.slots_global.count(), &groups, rotates, turn);
        let mut chosen = vec![false; candidates.len()];
        for (group, share) in groups.iter().zip(shares) {
            match group.trades {
                true => trading::choose(&view, &group.members, share, &mut chosen),
                false => seeding::choose(&view, &group.members, share, &mut chosen),
            }
        }
        chosen
    }

    /// splitmix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// One call's input, as the parts see it.
struct View<'a, K, T> {
    now: Duration,
    /// Slots may change hands; else only free ones are filled.
    rotates: bool,
    candidates: &'a [Candidate<K, T>],
    /// Decide among equals.
    lots: &'a [u64],
}

#[cfg(test)]
mod tests;
