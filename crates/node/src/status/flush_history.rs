//! When the active's WAL reached which position, as far as this node saw it: turns a lag in bytes
//! into an upper bound of it in seconds.
//!
//! Bounded: when it is full its resolution is halved, which only makes the bound looser.

use std::time::Duration;

use understudy_types::{BootInstant, Epoch, Lsn};

const ENTRIES_MAX: usize = 2048;

/// A position and the last moment at which the active had no more than it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    flush_lsn: Lsn,
    last_at: BootInstant,
}

/// The active's flush positions over time, within one epoch.
#[derive(Debug, Default)]
pub(super) struct FlushHistory {
    epoch: Epoch,
    entries: Vec<Seen>,
}

impl FlushHistory {
    /// Takes an observation that was true at `at`.
    pub(super) fn observe(&mut self, epoch: Epoch, at: BootInstant, flush_lsn: Lsn) {
        if epoch != self.epoch {
            self.epoch = epoch;
            self.entries.clear();
        }
        match self.entries.last_mut() {
            Some(last) if flush_lsn <= last.flush_lsn => last.last_at = last.last_at.max(at),
            _ => self.entries.push(Seen { flush_lsn, last_at: at }),
        }
        if self.entries.len() > ENTRIES_MAX {
            let mut nth = 0_usize;
            self.entries.retain(|_| {
                nth += 1;
                nth % 2 == 1
            });
        }
    }

    /// For how long at most there has been WAL beyond `lsn`; zero when there is none, `None` when
    /// that began before this node watched.
    pub(super) fn behind(&self, now: BootInstant, lsn: Lsn) -> Option<Duration> {
        if self.entries.last()?.flush_lsn <= lsn {
            return Some(Duration::ZERO);
        }
        let reached = self.entries.partition_point(|seen| seen.flush_lsn <= lsn);
        let seen = self.entries.get(reached.checked_sub(1)?)?;
        Some(now.since(seen.last_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootInstant {
        BootInstant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn lag_counts_from_the_last_moment_at_which_the_active_had_no_more() {
        let mut history = FlushHistory::default();
        let epoch = Epoch::NONE.next();
        assert_eq!(history.behind(at(1), Lsn(5)), None);
        for (second, lsn) in [(10, 100), (20, 100), (30, 200), (40, 300)] {
            history.observe(epoch, at(second), Lsn(lsn));
        }
        assert_eq!(history.behind(at(50), Lsn(300)), Some(Duration::ZERO));
        assert_eq!(history.behind(at(50), Lsn(150)), Some(Duration::from_secs(30)));
        assert_eq!(history.behind(at(50), Lsn(99)), None);
        history.observe(epoch.next(), at(60), Lsn(50));
        assert_eq!(history.behind(at(60), Lsn(50)), Some(Duration::ZERO));
    }

    #[test]
    fn a_full_history_stays_bounded_and_never_understates() {
        let mut history = FlushHistory::default();
        let epoch = Epoch::NONE.next();
        for second in 0..10_000_u64 {
            history.observe(epoch, at(second), Lsn(1 + second));
        }
        assert!(history.entries.len() <= ENTRIES_MAX);
        for lsn in [1, 777, 5_000, 9_990] {
            let truth = Duration::from_secs(9_999 - (lsn - 1));
            let bound = history.behind(at(9_999), Lsn(lsn)).unwrap();
            assert!(bound >= truth, "{bound:?} understates {truth:?}");
        }
    }
}
