//! The one source of chance in a simulated run: a small generator, seeded by the run's number.
//!
//! Own code, so that a kept seed means the same for ever; never used for anything but simulation.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A stream of its own for each seed and purpose.
    pub(crate) fn new(seed: u64, purpose: u64) -> Random {
        let mut random = Random(seed ^ purpose.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        random.next();
        random
    }

    /// 64 fresh bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `low..=high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "an empty range, {low} to {high}");
        let span = high - low + 1;
        // The bias of a remainder is far below what a simulation could notice.
        low + if span == 0 { self.next() } else { self.next() % span }
    }

    /// A number in `low..=high` that is as likely to be of one order of magnitude as of another.
    pub(crate) fn spread(&mut self, low: u64, high: u64) -> u64 {
        let (least, most) = (low.max(1).ilog2(), high.max(1).ilog2());
        let bits = self.between(u64::from(least), u64::from(most));
        let base = 1u64 << bits;
        (base + self.next() % base).clamp(low, high)
    }

    /// True in `per_mille` of a thousand cases.
    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.next() % 1000 < per_mille
    }

    /// One of them.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.between(0, of.len() as u64 - 1) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_for_ever() {
        let mut random = Random::new(1, 2);
        let first: Vec<u64> = (0..3).map(|_| random.between(0, 99)).collect();
        let mut again = Random::new(1, 2);
        assert_eq!(first, (0..3).map(|_| again.between(0, 99)).collect::<Vec<_>>());
        let mut other = Random::new(2, 2);
        assert_ne!(first, (0..3).map(|_| other.between(0, 99)).collect::<Vec<_>>());
    }

    #[test]
    fn a_spread_number_stays_within_its_bounds() {
        let mut random = Random::new(7, 7);
        for _ in 0..10_000 {
            let drawn = random.spread(3, 1000);
            assert!((3..=1000).contains(&drawn));
        }
    }
}
