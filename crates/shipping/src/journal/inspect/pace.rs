//! `Pace`: keeps a reader below a rate, so that the WAL path never waits for it.
//!
//! Time that was not used is not saved up: after a pause it goes on at the same rate, without a burst.

use std::time::{Duration, Instant};

/// Reads at most so many bytes a second.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    free_at: Instant,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second: bytes_per_second.max(1), free_at: Instant::now() }
    }

    /// Waits until `bytes` more may be read.
    pub(super) fn wait_for(&mut self, bytes: usize) {
        let wait = self.wait_at(Instant::now(), bytes);
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
    }

    fn wait_at(&mut self, now: Instant, bytes: usize) -> Duration {
        let begins = self.free_at.max(now);
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second);
        self.free_at = begins + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        begins.duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_and_a_pause_is_not_made_up_for() {
        let mut pace = Pace::new(1000);
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(pace.wait_at(start, 500), Duration::ZERO);
        assert_eq!(pace.wait_at(start, 500), second / 2);
        // Ten seconds later it may begin at once, and no faster than the rate after it.
        let later = start + 10 * second;
        assert_eq!(pace.wait_at(later, 1000), Duration::ZERO);
        assert_eq!(pace.wait_at(later, 1000), second);
        assert_eq!(pace.wait_at(later, 1000), 2 * second);
    }
}
