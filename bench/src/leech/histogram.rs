//! Owns: latency histograms as text, exact, so that those of several agents can be added up.
//! Never: percentiles of percentiles. Flow: tally -> text in the JSON -> `merge` reads it back.
//!
//! `STEP:COUNT` for each bucket that holds something, in order: STEP is how much its value (in
//! microseconds, three significant digits) lies above the bucket before. `124:3 1:18` says 3 blocks
//! at 124 us and 18 at 125 us.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

/// Longest latency told apart; longer ones count as this.
const LATENCY_US_MAX: u64 = 120_000_000;

pub fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("invariant: constant bounds are valid")
}

pub fn to_text(histogram: &Histogram<u64>) -> String {
    let mut text = String::new();
    let mut before = 0;
    for bucket in histogram.iter_recorded() {
        let value = bucket.value_iterated_to();
        let gap = if text.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{gap}{}:{}", value - before, bucket.count_since_last_iteration());
        before = value;
    }
    text
}

pub fn from_text(text: &str) -> Result<Histogram<u64>> {
    let mut histogram = empty();
    let mut value = 0_u64;
    for bucket in text.split_whitespace() {
        let wrong = || format!("a histogram's bucket is STEP:COUNT, not {bucket:?}");
        let (step, count) = bucket.split_once(':').with_context(wrong)?;
        let (step, count): (u64, u64) =
            (step.parse().with_context(wrong)?, count.parse().with_context(wrong)?);
        value = value.checked_add(step).with_context(wrong)?;
        ensure!(value <= 2 * LATENCY_US_MAX, wrong());
        histogram.saturating_record_n(value, count);
    }
    Ok(histogram)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leech::Random;

    #[test]
    fn text_and_back_is_the_same_histogram() {
        let mut random = Random(5);
        for round in 0..20 {
            let mut histogram = empty();
            for _ in 0..round * 200 {
                let scale = random.below(27);
                histogram.saturating_record(random.below(2 << scale));
            }
            let text = to_text(&histogram);
            assert_eq!(from_text(&text).expect("our own"), histogram);
        }
    }

    #[test]
    fn merged_text_is_the_histogram_of_all() {
        let (mut one, mut other, mut all) = (empty(), empty(), empty());
        for value in 1..5000_u64 {
            if value % 3 == 0 { &mut one } else { &mut other }.saturating_record(value * value);
            all.saturating_record(value * value);
        }
        let mut merged = from_text(&to_text(&one)).expect("our own");
        merged.add(from_text(&to_text(&other)).expect("our own")).expect("same bounds");
        assert_eq!(merged, all);
        assert_eq!(to_text(&merged), to_text(&all));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["5", "a:1", "1:b", "-1:1", "1:1 18446744073709551615:1"] {
            assert!(from_text(text).is_err(), "{text}");
        }
        assert!(from_text("").expect("nothing").is_empty());
    }
}
