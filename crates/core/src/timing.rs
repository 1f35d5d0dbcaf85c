//! The protocol's durations and the inequalities between them.
//!
//! A configuration that breaks an inequality is refused with the inequality in the message; the
//! reasons stand beside each check (docs/safety.md, "Timing").

use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::SeededBug;

/// Every duration that safety or the time of a failover rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Raft heartbeat.
    pub heartbeat: Duration,
    /// Least Raft election timeout.
    pub election_min: Duration,
    /// Greatest Raft election timeout.
    pub election_max: Duration,
    /// D: how long a renewal of the lease holds.
    pub ttl: Duration,
    /// r: how often the holder renews.
    pub renew: Duration,
    /// M: what the holder gives away of its lease for check-to-write and kill time.
    pub margin: Duration,
    /// ρ: how far two machines' clocks may run apart, in parts per million.
    pub drift_ppm: u32,
}

/// What a commit through Raft may take (99th percentile) before the lease is in danger.
const COMMIT_BUDGET: Duration = Duration::from_millis(50);

impl Timing {
    /// Failover in about three seconds; survives one leader change and one lost renewal.
    pub const DEFAULT: Timing = Timing {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(300),
        election_max: Duration::from_millis(600),
        ttl: Duration::from_secs(3),
        renew: Duration::from_millis(750),
        margin: Duration::from_millis(150),
        drift_ppm: 5_000,
    };

    /// Failover in half that, for sites a few milliseconds apart with dependable disks.
    pub const FAST: Timing = Timing {
        heartbeat: Duration::from_millis(50),
        election_min: Duration::from_millis(150),
        election_max: Duration::from_millis(300),
        ttl: Duration::from_secs(1),
        renew: Duration::from_millis(200),
        margin: Duration::from_millis(50),
        drift_ppm: 5_000,
    };

    /// How long the holder may rely on a renewal of this ttl, from the moment it was sent (I4):
    /// D·(1 − ρ) − M.
    pub fn holder_span(&self, ttl: Duration) -> Duration {
        if SeededBug::DriftSignTurned.is_on() {
            return (ttl + self.drift_of(ttl)).saturating_sub(self.margin);
        }
        let margin = if SeededBug::NoMargin.is_on() { Duration::ZERO } else { self.margin };
        ttl.saturating_sub(self.drift_of(ttl)).saturating_sub(margin)
    }

    /// How long a challenger waits after it applied a renewal of this ttl (I4): D·(1 + ρ).
    pub fn challenger_span(&self, ttl: Duration) -> Duration {
        if SeededBug::DriftSignTurned.is_on() {
            return ttl.saturating_sub(self.drift_of(ttl));
        }
        ttl + self.drift_of(ttl)
    }

    fn drift_of(&self, span: Duration) -> Duration {
        // Rounded up: a bound that is a nanosecond short is not a bound.
        let nanos = (span.as_nanos() * u128::from(self.drift_ppm)).div_ceil(1_000_000);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// What the round trip between the Raft leader and the nearer of the others must stay below. Each
    /// heartbeat is sent once the one before was answered, and the leader's say ends `election_max`
    /// after the sending of the last one that a majority has answered; one that is answered later than
    /// `election_min` does not count.
    pub fn round_trip_max(&self) -> Duration {
        (self.election_max.saturating_sub(self.heartbeat) / 2).min(self.election_min)
    }

    /// Checks every inequality.
    ///
    /// # Errors
    /// One sentence for each that does not hold, with both sides as numbers.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let usable = self.holder_span(self.ttl);
        let leader_change = self.election_max * 2 + self.heartbeat + COMMIT_BUDGET;
        let mut broken = Vec::new();
        let mut require = |holds: bool, text: String| {
            if !holds {
                broken.push(text);
            }
        };
        require(
            !self.heartbeat.is_zero() && !self.renew.is_zero(),
            "heartbeat and renew_interval must be greater than zero".to_owned(),
        );
        require(
            self.election_min < self.election_max,
            format!(
                "election_min < election_max does not hold: {:?} and {:?}",
                self.election_min, self.election_max
            ),
        );
        require(
            self.heartbeat * 3 <= self.election_min,
            format!(
                "3 × heartbeat <= election_min does not hold: 3 × {:?} > {:?}",
                self.heartbeat, self.election_min
            ),
        );
        require(
            self.renew * 2 + COMMIT_BUDGET <= usable,
            format!(
                "2 × renew_interval + {COMMIT_BUDGET:?} <= lease_ttl × (1 − drift) − margin does not \
                 hold (one lost renewal must be survived): 2 × {:?} + {COMMIT_BUDGET:?} > {usable:?}",
                self.renew
            ),
        );
        require(
            self.renew + leader_change <= usable,
            format!(
                "renew_interval + 2 × election_max + heartbeat + {COMMIT_BUDGET:?} <= lease_ttl × \
                 (1 − drift) − margin does not hold (one change of the Raft leader must be survived): \
                 {:?} + {leader_change:?} > {usable:?}",
                self.renew
            ),
        );
        require(
            self.drift_ppm <= 100_000,
            format!("drift_bound <= 10 % does not hold: {} ppm", self.drift_ppm),
        );
        if broken.is_empty() { Ok(()) } else { Err(broken) }
    }
}

impl Default for Timing {
    fn default() -> Timing {
        Timing::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_profiles_keep_every_inequality() {
        assert_eq!(Timing::DEFAULT.check(), Ok(()));
        assert_eq!(Timing::FAST.check(), Ok(()));
    }

    #[test]
    fn the_holder_stops_before_the_challenger_starts_at_both_extremes_of_drift() {
        for timing in [Timing::DEFAULT, Timing::FAST] {
            // A holder's clock that runs slow by ρ sees less time pass than really does; a
            // challenger's that runs fast by ρ sees more.
            let rho = f64::from(timing.drift_ppm) / 1e6;
            let holder_real = timing.holder_span(timing.ttl).as_secs_f64() / (1.0 - rho);
            let challenger_real = timing.challenger_span(timing.ttl).as_secs_f64() / (1.0 + rho);
            assert!(holder_real < challenger_real);
        }
    }

    #[test]
    fn a_round_trip_of_a_fifth_of_a_second_is_within_the_default_timings() {
        assert_eq!(Timing::DEFAULT.round_trip_max(), Duration::from_millis(250));
        assert_eq!(Timing::FAST.round_trip_max(), Duration::from_millis(125));
    }

    #[test]
    fn a_renewal_interval_that_cannot_survive_a_lost_one_is_refused_with_the_inequality() {
        let timing = Timing { renew: Duration::from_millis(1500), ..Timing::DEFAULT };
        let broken = timing.check().unwrap_err();
        assert!(broken.iter().any(|line| line.contains("2 × renew_interval")), "{broken:?}");
    }
}
