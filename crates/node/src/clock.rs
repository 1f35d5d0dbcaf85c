//! The real clock: `CLOCK_BOOTTIME`, which goes on while the machine is suspended (I4).

use understudy_types::{BootInstant, Clock};

/// Reads the kernel's boot-time clock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> BootInstant {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).expect("time since boot is not negative");
        let nanos = u64::try_from(time.tv_nsec).expect("nanoseconds are not negative");
        BootInstant(seconds * 1_000_000_000 + nanos)
    }
}

/// The wall clock, microseconds since the Unix epoch: for records and people, never for a lease.
pub(crate) fn wall_unix_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}
