//! One moment on every clock that a row reads, so that what one of them says can be put on the ledger's.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// The moment.
pub(crate) struct Clocks {
    ledger: Duration,
    here: Instant,
    boot: f64,
    unix_us: i64,
}

impl Clocks {
    /// Now, which is `ledger` on the ledger's clock.
    pub(crate) fn at(ledger: Duration) -> Clocks {
        let seconds = |at: Timespec| at.tv_sec as f64 + at.tv_nsec as f64 / 1e9;
        let micros = |at: Timespec| at.tv_sec * 1_000_000 + at.tv_nsec / 1000;
        Clocks {
            ledger,
            here: Instant::now(),
            boot: seconds(clock_gettime(ClockId::Boottime)),
            unix_us: micros(clock_gettime(ClockId::Realtime)),
        }
    }

    /// The moment itself on the wall's clock, microseconds since the Unix epoch.
    pub(crate) fn unix_us(&self) -> i64 {
        self.unix_us
    }

    pub(crate) fn of_instant(&self, at: Instant) -> Duration {
        (self.ledger + at.saturating_duration_since(self.here))
            .saturating_sub(self.here.saturating_duration_since(at))
    }

    /// `None` before the ledger began: an earlier row's.
    pub(crate) fn of_boot(&self, seconds: f64) -> Option<Duration> {
        let since = self.ledger.as_secs_f64() + seconds - self.boot;
        (since >= 0.0).then(|| Duration::from_secs_f64(since))
    }

    /// `None` before the ledger began.
    pub(crate) fn of_wall(&self, unix_us: i64) -> Option<Duration> {
        let since = unix_us - self.unix_us + i64::try_from(self.ledger.as_micros()).ok()?;
        u64::try_from(since).ok().map(Duration::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_s_moment_is_the_ledger_s() {
        let clocks = Clocks { unix_us: 1_000_000_000, ..Clocks::at(Duration::from_secs(10)) };
        assert_eq!(clocks.of_wall(1_001_500_000), Some(Duration::from_millis(11_500)));
        assert_eq!(clocks.of_wall(991_000_000), Some(Duration::from_secs(1)));
        assert_eq!(clocks.of_wall(989_000_000), None, "before the ledger");
    }
}
