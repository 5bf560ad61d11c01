//! Figures of a swarm: what is the least possible, and how evenly it was carried.
//!
//! Owns: the formula of the ideal time, Jain's index. Never: measures.
//! Flow: a simulated fleet and one of processes finish -> their figures are held against these.

use std::time::Duration;

/// The least time in which one seed and its leeches can have all of them complete: the seed sends
/// each byte once, the slowest leech takes all bytes, and all together upload a copy for each leech
/// (Kumar and Ross, "Peer-assisted file distribution", 2006).
/// Rates in bytes a second; `down` is the slowest leech's, where one binds.
pub fn ideal_time(bytes: u64, seed_up: u64, leeches_up: &[u64], down: Option<u64>) -> Duration {
    let all_up: u64 = seed_up + leeches_up.iter().sum::<u64>();
    let copies = bytes as f64 * leeches_up.len() as f64;
    let once = bytes as f64 / seed_up as f64;
    let together = copies / all_up as f64;
    let taken = down.map_or(0.0, |down| bytes as f64 / down as f64);
    Duration::from_secs_f64(once.max(together).max(taken))
}

/// Jain's index: 1 where all gave the same, 1/n where one gave everything.
pub fn fairness(given: &[u64]) -> f64 {
    let sum: f64 = given.iter().map(|bytes| *bytes as f64).sum();
    let squares: f64 = given.iter().map(|bytes| (*bytes as f64).powi(2)).sum();
    if squares == 0.0 { 1.0 } else { sum * sum / (given.len() as f64 * squares) }
}

/// Least, middle and most of the ratios and of the fairness of several runs, in words; sorts them.
pub fn spread(ratios: &mut [f64], fairness: &mut [f64]) -> String {
    let three = |values: &mut [f64]| {
        values.sort_unstable_by(f64::total_cmp);
        let three = [values.first(), values.get(values.len() / 2), values.last()];
        three.map(|value| format!("{:.3}", value.copied().unwrap_or(f64::NAN))).join(" ")
    };
    format!("ratio {}, fairness {} (least, middle, most)", three(ratios), three(fairness))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ideal_is_bound_by_the_seed_by_all_or_by_a_download() {
        let seconds = |s: u64| Duration::from_secs(s);
        assert_eq!(ideal_time(100, 10, &[10; 9], None), seconds(10));
        // A quick seed and leeches that give little: 9 copies by 20 a second.
        assert_eq!(ideal_time(100, 11, &[1; 9], None), seconds(45));
        assert_eq!(ideal_time(100, 50, &[50], Some(5)), seconds(20));
    }

    #[test]
    fn runs_are_told_by_their_least_middle_and_most() {
        let told = spread(&mut [1.2, 1.0, 1.1], &mut [0.9, 0.8]);
        assert!(told.starts_with("ratio 1.000 1.100 1.200, fairness 0.800 0.900 0.900"), "{told}");
    }

    #[test]
    fn one_who_gives_everything_is_as_unfair_as_it_gets() {
        assert!((fairness(&[7; 8]) - 1.0).abs() < 1e-9);
        assert!((fairness(&[7, 0, 0, 0]) - 0.25).abs() < 1e-9);
    }
}
