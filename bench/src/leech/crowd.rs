//! Owns: who is in the load: what part each connection plays, of which torrent it is, when it comes
//! and how long it stays.
//! Never: opens a socket, looks at what came. Flow: options -> `Crowd` -> lanes for the workers;
//! while they run, arrivals. The same seed gives the same crowd.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Options,
    assembly::Assembly,
    connection::Lane,
    sample::Sample,
    walk::{Random, Walk},
};
use crate::torrent::{Grid, Torrent};

/// Places for those that come, over how many there are on average: a Poisson crowd of 50 is never
/// that much larger.
const PLACES_FACTOR: f64 = 2.0;
const PLACES_MORE: usize = 64;

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes what it can get; what is measured.
    Active,
    /// Reads at a low rate, with as many requests outstanding as the others.
    Slow,
    /// Is there.
    Idle,
}

/// A torrent that the target seeds.
pub struct Offer {
    pub torrent: Torrent,
    pub grid: Grid,
}

pub struct Crowd {
    options: Options,
    pub offers: Vec<Offer>,
    /// What is hashed of each of them; empty where nothing is.
    samples: Vec<Sample>,
    popularity: Popularity,
}

impl Crowd {
    pub fn new(options: &Options, offers: Vec<Offer>) -> Self {
        let popularity = Popularity::new(offers.len(), options.zipf);
        let sample = if options.verify { Some(Sample::ALL) } else { options.verify_sample };
        let pieces: Vec<u64> = offers.iter().map(|offer| offer.grid.pieces()).collect();
        let samples = sample.map_or(Vec::new(), |sample| sample.of_each(&pieces));
        Crowd { options: options.clone(), offers, samples, popularity }
    }

    /// Connections that are there from the start, those that are measured first.
    pub fn roles(&self) -> impl Iterator<Item = Role> {
        let options = &self.options;
        let idle = options.idle.unwrap_or(0) + options.idle_beside;
        let active = options.active();
        let of = |role: Role, count: usize| std::iter::repeat_n(role, count);
        of(Role::Active, active).chain(of(Role::Slow, options.slow)).chain(of(Role::Idle, idle))
    }

    /// Those of them that are this process's, by their numbers.
    pub fn members(&self) -> Vec<(usize, Role)> {
        let part = self.options.part;
        self.roles().enumerate().filter(|(index, _)| part.has(*index)).collect()
    }

    /// Places that one of so many workers keeps free for those that come.
    pub fn more_places(&self, workers: usize) -> usize {
        let average = self.options.arrivals.unwrap_or(0.0) * self.options.stay.unwrap_or(0.0);
        let more = if self.options.arrivals.is_some() { PLACES_MORE } else { 0 };
        (average * (PLACES_FACTOR - 1.0) / workers as f64).ceil() as usize + more
    }

    /// Connection `index` of `connections`; `None`: one that comes later.
    pub fn lane(&self, index: usize, connections: Option<usize>, role: Role) -> Lane {
        let options = &self.options;
        let mut random = Random(options.seed ^ (index as u64).wrapping_mul(0xa076_1d64_78bd_642f));
        let offer = self.popularity.choose(&mut random);
        let sample = self.samples.get(offer).copied();
        let walk = Walk::new(
            self.offers[offer].grid,
            options.pattern,
            sample.is_some(),
            options.once,
            index,
            connections.map(|connections| connections.max(index + 1)),
            options.seed,
        );
        Lane {
            index,
            offer,
            role,
            source: options.source_of(index),
            walk,
            retry: Vec::new(),
            assembly: sample.map(Assembly::new),
            ordered: true,
            was_ready: false,
            was_done: false,
            reopens: 0,
            leaves: None,
            window_bytes: 0,
        }
    }

    /// Who comes to worker `number` of `workers`, from `start` on.
    pub fn arrivals(&self, number: usize, workers: usize, start: Instant) -> Option<Arrivals> {
        let (rate, stay) = self.options.arrivals.zip(self.options.stay)?;
        let random = Random(self.options.seed ^ (number as u64 + 1).wrapping_mul(0x9fb2_1c65));
        let gap = workers as f64 / rate;
        let mut arrivals = Arrivals { random, gap, stay, next: start, index: number, workers };
        arrivals.next = start + arrivals.random.exponential(gap);
        Some(arrivals)
    }
}

impl Options {
    /// How many are measured, in the whole crowd; of those that come and go, on average.
    pub fn active(&self) -> usize {
        match (self.arrivals, self.stay) {
            _ if self.idle.is_some() => 0,
            (Some(rate), Some(stay)) => (rate * stay).round().max(1.0) as usize,
            _ => self.connections,
        }
    }
}

impl Offer {
    pub fn new(torrent: Torrent, block_bytes: u32) -> Self {
        let grid = Grid::new(&torrent, block_bytes);
        Offer { torrent, grid }
    }
}

pub fn read_offers(options: &Options) -> Result<Vec<Offer>> {
    let torrents = torrents(&options.torrent)?;
    torrents.iter().map(|path| Ok(Offer::new(Torrent::read(path)?, options.block))).collect()
}

/// Those of a folder, by name, or the one.
pub fn torrents(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut torrents: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "torrent"))
        .collect();
    torrents.sort();
    ensure!(!torrents.is_empty(), "no .torrent in {}", path.display());
    Ok(torrents)
}

/// Zipf's law: the Nth of them is chosen as often as 1/N to the power of the exponent.
struct Popularity {
    /// The part of all choices up to and with each.
    up_to: Vec<f64>,
}

impl Popularity {
    fn new(count: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let mut up_to: Vec<f64> = (1..=count)
            .map(|rank| {
                sum += (rank as f64).powf(-exponent);
                sum
            })
            .collect();
        up_to.iter_mut().for_each(|part| *part /= sum);
        Popularity { up_to }
    }

    fn choose(&self, random: &mut Random) -> usize {
        let at = random.unit();
        self.up_to.partition_point(|part| *part <= at).min(self.up_to.len() - 1)
    }
}

/// Connections come as a Poisson process and stay an exponential time.
pub struct Arrivals {
    random: Random,
    /// Seconds between two, on average.
    gap: f64,
    /// Seconds that each stays, on average.
    stay: f64,
    next: Instant,
    index: usize,
    workers: usize,
}

impl Arrivals {
    /// Whether one has come by `now`; asked until there is none.
    pub fn is_due(&mut self, now: Instant) -> bool {
        if self.next > now {
            return false;
        }
        self.next += self.random.exponential(self.gap);
        true
    }

    /// A number for the next one, after those that were there at first.
    pub fn next_index(&mut self, at_first: usize) -> usize {
        let index = at_first + self.index;
        self.index += self.workers;
        index
    }

    pub fn stay(&mut self) -> Duration {
        self.random.exponential(self.stay)
    }
}

/// Jain's index of fairness: 1 where all got the same, 1/N where one of N got everything.
pub fn fairness(bytes: &[u64]) -> Option<f64> {
    let sum: f64 = bytes.iter().map(|bytes| *bytes as f64).sum();
    let squares: f64 = bytes.iter().map(|bytes| (*bytes as f64).powi(2)).sum();
    (squares > 0.0).then(|| sum * sum / (bytes.len() as f64 * squares))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leech::Part;

    #[test]
    fn the_first_torrents_are_chosen_most() {
        let popularity = Popularity::new(100, 1.0);
        let mut random = Random(7);
        let mut chosen = [0_u32; 100];
        for _ in 0..52_000 {
            chosen[popularity.choose(&mut random)] += 1;
        }
        // 1 over the 100th harmonic number, 5.187: 10,025 of them, and half of that.
        assert!((9_700..10_350).contains(&chosen[0]), "{}", chosen[0]);
        assert!((4_800..5_250).contains(&chosen[1]), "{}", chosen[1]);
        assert!(chosen.iter().all(|count| *count > 0));
        let equal = Popularity::new(2, 0.0);
        assert_eq!(equal.up_to, [0.5, 1.0]);
    }

    #[test]
    fn arrivals_have_their_rate_and_stay() {
        let start = Instant::now();
        let mut arrivals =
            Arrivals { random: Random(3), gap: 0.01, stay: 2.0, next: start, index: 1, workers: 2 };
        let end = start + Duration::from_secs(100);
        let mut count = 0;
        let mut stayed = 0.0;
        while arrivals.is_due(end) {
            count += 1;
            stayed += arrivals.stay().as_secs_f64();
        }
        assert!((9_600..10_400).contains(&count), "{count} of 10,000");
        assert!((1.9..2.1).contains(&(stayed / f64::from(count))), "{stayed}");
        assert_eq!((arrivals.next_index(10), arrivals.next_index(10)), (11, 13));
    }

    #[test]
    fn parts_are_the_whole_crowd_and_nobody_is_in_two() {
        let options = Options { slow: 5, idle_beside: 3, connections: 7, ..for_test() };
        let all = Crowd::new(&options, Vec::new()).members();
        let mut parts: Vec<(usize, Role)> = (0..4)
            .flat_map(|number| {
                let part = Part { number, of: 4 };
                Crowd::new(&Options { part, ..options.clone() }, Vec::new()).members()
            })
            .collect();
        parts.sort_by_key(|(index, _)| *index);
        assert_eq!((all.len(), &parts), (15, &all));
    }

    fn for_test() -> Options {
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            options: Options,
        }
        let words = ["leech", "127.0.0.1:1", "--torrent", "x"];
        <Alone as clap::Parser>::parse_from(words).options
    }

    #[test]
    fn fairness_is_1_for_equals_and_1_of_n_for_one() {
        assert_eq!(fairness(&[5, 5, 5, 5]), Some(1.0));
        assert_eq!(fairness(&[8, 0, 0, 0]), Some(0.25));
        assert_eq!(fairness(&[0, 0]), None);
    }
}
