//! Numbers that follow from a seed, the same ones on every machine and with every compiler.
//!
//! SplitMix64 (Steele, Lea, Flood 2014). For choosing what a rig does next, for nothing secret.

use std::time::Duration;

/// A sequence.
#[derive(Clone, Debug)]
pub(crate) struct Sequence(u64);

impl Sequence {
    pub(crate) fn of(seed: u64) -> Sequence {
        Sequence(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "{low} to {high} is no range");
        low + self.next() % (high - low).saturating_add(1)
    }

    /// A time between two numbers of milliseconds.
    pub(crate) fn milliseconds(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }

    /// One of several.
    pub(crate) fn one_of<T: Copy>(&mut self, several: &[T]) -> T {
        let last = several.len().checked_sub(1).expect("there is something to choose from");
        let index = self.between(0, last as u64);
        several[usize::try_from(index).expect("it is below a length")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_published_numbers() {
        // The first outputs of the reference implementation for 1234567.
        let mut sequence = Sequence::of(1_234_567);
        assert_eq!(sequence.next(), 6_457_827_717_110_365_317);
        assert_eq!(sequence.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn both_ends_of_a_range_come_and_nothing_beyond() {
        let mut sequence = Sequence::of(1);
        let drawn: std::collections::BTreeSet<u64> =
            (0..200).map(|_| sequence.between(3, 5)).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [3, 4, 5]);
    }
}
