//! How long nobody could write: the prober's acknowledged commits, and the gaps between them.
//!
//! Definition of `write_outage`. One prober commits a row again and again, pausing for one interval
//! (10 to 20 ms) between two tries and going to whichever server accepts it. A fault's write outage
//! is the longest time between two consecutive acknowledgements to it, of which the second one came
//! after the fault (and before the next fault). It therefore contains the undisturbed time between
//! two probes, and is never smaller than the time during which no commit was possible.

use std::time::Duration;

use serde::Serialize;

/// What a fault did to the prober.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Outage {
    /// When the fault was caused, since the ledger's beginning.
    pub fault_at: Duration,
    /// The last acknowledgement before the gap.
    pub last_acknowledged_at: Duration,
    /// The first acknowledgement after it; absent when there was none yet.
    pub acknowledged_again_at: Option<Duration>,
}

impl Outage {
    /// How long nobody could write; `None` while it goes on.
    pub fn write_outage(&self) -> Option<Duration> {
        self.acknowledged_again_at.map(|again| again.saturating_sub(self.last_acknowledged_at))
    }
}

/// Gaps that are kept; those below a few intervals are not worth it. At the bound the shortest is
/// dropped, so that the long ones are never lost.
const GAPS_MAX: usize = 10_000;

/// The prober's acknowledgements, reduced to the gaps between them.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    last: Option<Duration>,
    gaps: Vec<(Duration, Duration)>,
    faults: Vec<Duration>,
}

impl Pulse {
    /// Notes an acknowledged commit of the prober.
    pub(crate) fn acknowledged(&mut self, at: Duration) {
        if let Some(last) = self.last.replace(at) {
            self.gaps.push((last, at));
            if self.gaps.len() > GAPS_MAX {
                // Half of them go at once, so that the sort is paid rarely.
                self.gaps.sort_by_key(|(from, to)| std::cmp::Reverse(to.saturating_sub(*from)));
                self.gaps.truncate(GAPS_MAX / 2);
            }
        }
    }

    /// Notes that a fault is being caused. Faults come in order.
    pub(crate) fn fault(&mut self, at: Duration) {
        self.faults.push(at);
    }

    /// When the prober's last commit was acknowledged.
    pub fn last_acknowledged_at(&self) -> Option<Duration> {
        self.last
    }

    /// The moments of the faults, ascending.
    pub fn faults(&self) -> &[Duration] {
        &self.faults
    }

    /// What each fault did, in order.
    pub fn outages(&self) -> Vec<Outage> {
        let outage = |(index, fault_at): (usize, &Duration)| {
            let until = self.faults.get(index + 1).copied().unwrap_or(Duration::MAX);
            let gap = self
                .gaps
                .iter()
                .filter(|(_, to)| to > fault_at && *to <= until)
                .max_by_key(|(from, to)| to.saturating_sub(*from));
            match gap {
                Some((from, to)) => Outage {
                    fault_at: *fault_at,
                    last_acknowledged_at: *from,
                    acknowledged_again_at: Some(*to),
                },
                None => Outage {
                    fault_at: *fault_at,
                    last_acknowledged_at: self.last.unwrap_or(*fault_at).min(*fault_at),
                    acknowledged_again_at: None,
                },
            }
        };
        self.faults.iter().enumerate().map(outage).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn the_outage_is_the_longest_gap_that_ends_after_the_fault_and_before_the_next() {
        let mut pulse = Pulse::default();
        for at in [0, 15, 400, 415, 430] {
            pulse.acknowledged(ms(at));
        }
        pulse.fault(ms(435));
        for at in [3000, 3015, 3200, 3215] {
            pulse.acknowledged(ms(at));
        }
        pulse.fault(ms(3220));
        for at in [5000, 5015] {
            pulse.acknowledged(ms(at));
        }
        let outages: Vec<_> = pulse.outages().iter().map(Outage::write_outage).collect();
        assert_eq!(outages, [Some(ms(2570)), Some(ms(1785))]);
    }

    #[test]
    fn an_outage_that_goes_on_has_no_length() {
        let mut pulse = Pulse::default();
        pulse.acknowledged(ms(10));
        pulse.acknowledged(ms(25));
        pulse.fault(ms(30));
        assert_eq!(pulse.outages()[0].write_outage(), None);
        assert_eq!(pulse.outages()[0].last_acknowledged_at, ms(25));
    }

    #[test]
    fn the_longest_gaps_outlive_the_bound() {
        let mut pulse = Pulse::default();
        pulse.acknowledged(ms(0));
        pulse.fault(ms(1));
        pulse.acknowledged(ms(5000));
        for step in 1..=30_000 {
            pulse.acknowledged(ms(5000 + 15 * step));
        }
        assert!(pulse.gaps.len() <= GAPS_MAX);
        assert_eq!(pulse.outages()[0].write_outage(), Some(ms(5000)));
    }
}
