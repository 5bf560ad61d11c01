//! A seeded source of spread.
//!
//! Owns: one 64-bit state. Never: for secrets; anything that a stranger must not guess comes
//! from the kernel.
//! Flow: the announcers shuffle tiers and spread retries with it; a seed reproduces every choice.

use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood 2014): one addition and three multiplications a number.
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; 0 for a bound of 0. The bias is below 2^-32 for the small bounds
    /// used.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 {
            return 0;
        }
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// A time in `0..=most`.
    pub fn up_to(&mut self, most: Duration) -> Duration {
        let share = (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        most.mul_f64(share)
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_reproduces_and_bounds_hold() {
        let (mut a, mut b) = (Jitter::new(7), Jitter::new(7));
        for bound in 1..500 {
            let x = a.below(bound);
            assert!(x < bound);
            assert_eq!(x, b.below(bound));
        }
        assert!(a.up_to(Duration::from_secs(3)) <= Duration::from_secs(3));
    }

    #[test]
    fn every_order_of_three_comes_up() {
        let mut seen = std::collections::HashSet::new();
        let mut jitter = Jitter::new(1);
        for _ in 0..200 {
            let mut items = [1, 2, 3];
            jitter.shuffle(&mut items);
            seen.insert(items);
        }
        assert_eq!(seen.len(), 6);
    }
}
