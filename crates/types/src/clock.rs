//! Time as the lease knows it: a clock that goes on while the machine is suspended.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment on `CLOCK_BOOTTIME`, in nanoseconds since the machine started.
///
/// A suspended machine must not wake up with a lease that still looks valid, so neither
/// `CLOCK_MONOTONIC` nor `std::time::Instant` (which stop during suspend on Linux) may be used for it.
/// Two machines' moments cannot be compared.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct BootInstant(pub u64);

impl BootInstant {
    /// The moment the machine started.
    pub const ZERO: BootInstant = BootInstant(0);
    /// A moment that never comes.
    pub const NEVER: BootInstant = BootInstant(u64::MAX);

    /// Time from `earlier` to `self`, or zero if `earlier` is not earlier.
    pub fn since(self, earlier: BootInstant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for BootInstant {
    type Output = BootInstant;
    fn add(self, duration: Duration) -> BootInstant {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        BootInstant(self.0.saturating_add(nanos))
    }
}

impl Sub<Duration> for BootInstant {
    type Output = BootInstant;
    fn sub(self, duration: Duration) -> BootInstant {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        BootInstant(self.0.saturating_sub(nanos))
    }
}

impl fmt::Display for BootInstant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot+{:.3}s", self.0 as f64 / 1e9)
    }
}

/// Whoever can tell the time on `CLOCK_BOOTTIME`.
///
/// Contract: never goes backwards, counts suspended time, never blocks.
pub trait Clock: Send + Sync + 'static {
    /// The present moment.
    fn now(&self) -> BootInstant;
}
