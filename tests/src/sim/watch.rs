//! What a fleet does over virtual time: where a swarm loses the time that it loses.
//!
//! Owns: a line for each second of how far links are used, pieces spread and slots go round.
//! Never: changes anything of a run. Flow: the test looks on after each turn -> lines, for a
//! reader. The first engine is the seed.

use std::time::Duration;

use seedring_proto::units::PieceIndex;

use super::{fleet::Fleet, swarm::Swarm};

const EVERY: Duration = Duration::from_secs(1);

/// See the module.
pub struct Watch {
    /// What each engine may give a second.
    up: u64,
    piece_bytes: u64,
    began: Duration,
    next: Duration,
    /// Of each engine, at the last line.
    uploaded: Vec<u64>,
    pub lines: Vec<String>,
}

impl Watch {
    pub fn new(fleet: &Fleet, up: u64, piece_bytes: u32) -> Watch {
        let uploaded = vec![0; fleet.engines.len()];
        let (began, piece_bytes) = (fleet.world.now(), u64::from(piece_bytes));
        Watch { up, piece_bytes, began, next: began + EVERY, uploaded, lines: Vec::new() }
    }

    pub fn look(&mut self, fleet: &Fleet) {
        if fleet.world.now() < self.next {
            return;
        }
        self.next += EVERY;
        let uploaded: Vec<u64> = fleet.engines.iter().map(Swarm::uploaded_bytes).collect();
        let used = uploaded.iter().zip(&self.uploaded);
        let used: Vec<f64> = used.map(|(now, then)| (now - then) as f64 / self.up as f64).collect();
        self.uploaded = uploaded;
        let (seed, leeches) = used.split_first().expect("invariant: a fleet has a seed");
        let idle = leeches.iter().filter(|used| **used < 0.5).count();
        let (had, holders) = self.had(fleet);
        let total = holders.len() as u64 * self.piece_bytes;
        let complete = had.iter().filter(|had| **had == holders.len() as u64).count();
        let with = |n: u32| holders.iter().filter(|holders| **holders == n).count();
        let came: u64 = fleet.engines[1..].iter().map(|e| stats(e, |s| s.downloaded_bytes)).sum();
        let kept = had.iter().sum::<u64>() * self.piece_bytes;
        self.lines.push(format!(
            "{:5.1} s: seed {:3.0} %, {:.2} copies, out {} of {}, once {}; leeches {:3.0} %, \
             {idle} idle, have {:2.0} %, {complete} complete, under way {:.2} MiB each; \
             unchoked {:.1} of {:.1}, the seed {} of {}",
            (fleet.world.now() - self.began).as_secs_f64(),
            seed * 100.0,
            self.uploaded[0] as f64 / total as f64,
            holders.len() - with(0),
            holders.len(),
            with(1),
            mean(leeches) * 100.0,
            kept as f64 / (total * leeches.len() as u64) as f64 * 100.0,
            came.saturating_sub(kept) as f64 / (leeches.len() << 20) as f64,
            mean_of(fleet, |s| u64::from(s.unchoked)),
            mean_of(fleet, |s| u64::from(s.interested)),
            stats(&fleet.engines[0], |s| u64::from(s.unchoked)),
            stats(&fleet.engines[0], |s| u64::from(s.interested)),
        ));
    }

    /// How many pieces each leech has, and how many leeches each piece.
    fn had(&self, fleet: &Fleet) -> (Vec<u64>, Vec<u32>) {
        let mut holders = Vec::new();
        let mut had = Vec::new();
        for leech in fleet.engines.iter().flat_map(|engine| &engine.loadings.all) {
            let pieces = &leech.shared.pieces;
            holders.resize(pieces.piece_count() as usize, 0);
            let mut count = 0;
            for (at, holders) in holders.iter_mut().enumerate() {
                let has = pieces.is_verified(PieceIndex(at as u32));
                *holders += u32::from(has);
                count += u64::from(has);
            }
            had.push(count);
        }
        (had, holders)
    }
}

fn stats(engine: &Swarm, what: impl Fn(&seedring_shard::stats::Stats) -> u64) -> u64 {
    (0..engine.shards()).map(|shard| what(engine.stats(shard))).sum()
}

fn mean_of(fleet: &Fleet, what: impl Fn(&seedring_shard::stats::Stats) -> u64) -> f64 {
    let leeches = &fleet.engines[1..];
    let sum: u64 = leeches.iter().map(|leech| stats(leech, &what)).sum();
    sum as f64 / leeches.len() as f64
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
