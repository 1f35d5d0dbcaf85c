//! How much acknowledged work would be lost if the active vanished now, measured as time.
//!
//! The tracker remembers when which WAL was released, in a bounded ring that merges neighbours when it
//! is full. Every merge keeps the *earlier* moment, so that exposure may be reported too high and is
//! never reported too low (I6, I24). It must not look at the age of what waits: while commits are
//! stalled nothing more is acknowledged, and exposure stands still (mistake 13 of the protocol's list).

use std::collections::VecDeque;
use std::time::Duration;

use understudy_types::{BootInstant, Exposure, Lsn, Survival};

/// Releases closer together than this are one sample.
const SAMPLE_SPACING: Duration = Duration::from_millis(1);

/// How many samples are kept; when there are more, old neighbours are merged.
const SAMPLES_MAX: usize = 4096;

/// A merged span is at first at most this part of its age long: exposure is too high by half a per cent.
const FINEST_PARTS_OF_AGE: u32 = 200;

/// The WAL between the sample before and `upto` was released at `at` or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    upto: Lsn,
    at: BootInstant,
}

/// When which WAL was released to clients.
#[derive(Clone, Debug)]
pub struct ExposureTracker {
    /// Ascending in both fields.
    samples: VecDeque<Sample>,
    /// What was released by an earlier process counts as released at this moment.
    assumed_since: BootInstant,
    last: Option<Sample>,
}

impl ExposureTracker {
    /// A tracker that has seen no release yet.
    ///
    /// What an earlier process of this node acknowledged is unknown here. It counts as released at
    /// `assumed_since`: the present for a cluster that has just been made, and for every other start
    /// the present less the exposure that was last published and the time since.
    pub fn new(assumed_since: BootInstant) -> ExposureTracker {
        ExposureTracker { samples: VecDeque::new(), assumed_since, last: None }
    }

    /// Records that everything before `upto` is released as of `now`. Going backwards has no effect.
    pub fn released(&mut self, upto: Lsn, now: BootInstant) {
        let Some(last) = self.last else {
            let sample = Sample { upto, at: self.assumed_since.min(now) };
            self.samples.push_back(sample);
            self.last = Some(Sample { upto, at: now });
            return;
        };
        if upto <= last.upto {
            return;
        }
        let now = now.max(last.at);
        self.last = Some(Sample { upto, at: now });
        match self.samples.back_mut() {
            Some(newest) if now.since(newest.at) < SAMPLE_SPACING => newest.upto = upto,
            _ => {
                self.samples.push_back(Sample { upto, at: now });
                if self.samples.len() > SAMPLES_MAX {
                    self.coarsen();
                }
            }
        }
    }

    /// What would be lost now, if everything before `durable_lsn` survives.
    pub fn exposure(&self, durable_lsn: Lsn) -> Exposure {
        let (Some(last), Some(oldest)) = (self.last, self.oldest_not_durable(durable_lsn)) else {
            return Exposure::NONE;
        };
        Exposure { time: last.at.since(oldest), lost_wal_bytes: last.upto.bytes_since(durable_lsn) }
    }

    /// How long the span of lost commits would be if one more were released at `now`.
    pub fn time_if_released(&self, durable_lsn: Lsn, now: BootInstant) -> Duration {
        let Some(last) = self.last else {
            // What an earlier process acknowledged is all there is, and nobody knows how far it went.
            return now.since(self.assumed_since);
        };
        let oldest = self.oldest_not_durable(durable_lsn);
        oldest.map_or(Duration::ZERO, |oldest| now.max(last.at).since(oldest))
    }

    /// What is known to survive when everything before `durable_lsn` does.
    pub fn survival(&self, durable_lsn: Lsn, now: BootInstant) -> Survival {
        Survival { lsn: durable_lsn, oldest_age: self.time_if_released(durable_lsn, now) }
    }

    /// When the last release was; `None` before the first.
    pub fn last_release(&self) -> Option<BootInstant> {
        self.last.map(|sample| sample.at)
    }

    /// A moment not later than the release of the oldest commit that is not durable.
    fn oldest_not_durable(&self, durable_lsn: Lsn) -> Option<BootInstant> {
        let index = self.samples.partition_point(|sample| sample.upto <= durable_lsn);
        self.samples.get(index).map(|sample| sample.at)
    }

    /// Merges old neighbours until a quarter of the ring is free.
    ///
    /// A merged span may be as long as a fraction of its age, so that exposure is too high by at most
    /// that fraction; the fraction doubles until enough was merged.
    fn coarsen(&mut self) {
        let now = self.last.map_or(BootInstant::ZERO, |last| last.at);
        let mut parts = FINEST_PARTS_OF_AGE;
        while self.samples.len() > SAMPLES_MAX * 3 / 4 {
            let mut merged: VecDeque<Sample> = VecDeque::with_capacity(SAMPLES_MAX + 1);
            for sample in self.samples.drain(..) {
                match merged.back_mut() {
                    Some(span) if fits(span.at, sample.at, now, parts) => span.upto = sample.upto,
                    _ => merged.push_back(sample),
                }
            }
            self.samples = merged;
            parts /= 2;
        }
    }
}

/// Whether a span that began at `start` may include a release at `at`, seen from `now`.
///
/// With no parts left everything fits, which bounds the merging.
fn fits(start: BootInstant, at: BootInstant, now: BootInstant, parts: u32) -> bool {
    parts == 0 || at.since(start) <= now.since(start) / parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(value: u64) -> BootInstant {
        BootInstant(value * 1_000_000)
    }

    #[test]
    fn an_idle_primary_has_no_growing_exposure() {
        let mut tracker = ExposureTracker::new(ms(1000));
        tracker.released(Lsn(100), ms(1000));
        tracker.released(Lsn(200), ms(2000));
        tracker.released(Lsn(300), ms(5000));
        let expected = Exposure { time: Duration::from_secs(3), lost_wal_bytes: 200 };
        assert_eq!(tracker.exposure(Lsn(100)), expected);
        assert_eq!(tracker.time_if_released(Lsn(100), ms(9000)), Duration::from_secs(7));
        assert_eq!(tracker.exposure(Lsn(300)), Exposure::NONE);
        assert_eq!(tracker.time_if_released(Lsn(300), ms(9000)), Duration::ZERO);
    }

    #[test]
    fn what_an_earlier_process_released_counts_from_the_assumed_moment() {
        let mut tracker = ExposureTracker::new(ms(1000));
        tracker.released(Lsn(500), ms(4000));
        assert_eq!(tracker.exposure(Lsn(499)).time, Duration::from_secs(3));
    }

    proptest! {
        /// Against an exact record of every release: never less, and at most two per cent more.
        #[test]
        fn exposure_is_never_reported_too_low_however_much_is_merged(
            steps in proptest::collection::vec((1u64..5000, 0u64..40_000), 5000..12_000),
            durable_share in 0.0f64..1.0,
        ) {
            let mut tracker = ExposureTracker::new(ms(1));
            let (mut lsn, mut micros) = (1000, 1_000_000);
            let mut exact = Vec::new();
            for (bytes, wait) in steps {
                lsn += bytes;
                micros += wait;
                let at = BootInstant(micros * 1000);
                if exact.is_empty() {
                    tracker = ExposureTracker::new(at);
                }
                tracker.released(Lsn(lsn), at);
                exact.push((Lsn(lsn), at));
            }
            prop_assert!(tracker.samples.len() <= SAMPLES_MAX);
            let durable = Lsn((lsn as f64 * durable_share) as u64);
            let oldest = exact.iter().find(|(upto, _)| *upto > durable).map(|(_, at)| *at);
            let last = exact.last().map(|(_, at)| *at).unwrap();
            let truth = oldest.map_or(Duration::ZERO, |oldest| last.since(oldest));
            let told = tracker.exposure(durable).time;
            prop_assert!(told >= truth, "told {told:?}, truth {truth:?}");
            let most = truth + truth / 50 + 2 * SAMPLE_SPACING;
            prop_assert!(told <= most, "told {told:?}, truth {truth:?}");
        }
    }
}
