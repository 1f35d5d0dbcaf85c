//! The `lag` of a replica check: `10MB` of WAL, as Patroni has it, or `5s` of time.
//!
//! A lag that is not known never satisfies a limit.

use std::time::Duration;

/// How far behind is still good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LagLimit {
    Bytes(u64),
    Time(Duration),
}

/// PostgreSQL's and Patroni's units: powers of 1024.
const BYTES: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("kB", 1 << 10),
    ("KB", 1 << 10),
    ("KiB", 1 << 10),
    ("MB", 1 << 20),
    ("MiB", 1 << 20),
    ("GB", 1 << 30),
    ("GiB", 1 << 30),
    ("TB", 1 << 40),
];
const MILLIS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("min", 60_000), ("h", 3_600_000)];

impl LagLimit {
    /// The limit that a parameter's value asks for.
    ///
    /// # Errors
    /// In words, when it cannot be read.
    pub(super) fn of_value(text: &str) -> Result<LagLimit, String> {
        LagLimit::parse(text).ok_or_else(|| {
            format!(
                "lag={text}: expected bytes as 1048576, 512kB, 10MB, or time as 500ms, 5s, 1min"
            )
        })
    }

    fn parse(text: &str) -> Option<LagLimit> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let scale = |units: &[(&str, u64)]| {
            let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
            number.checked_mul(*scale)
        };
        let bytes = scale(BYTES).map(LagLimit::Bytes);
        bytes.or_else(|| scale(MILLIS).map(|millis| LagLimit::Time(Duration::from_millis(millis))))
    }

    /// Whether a lag is within the limit.
    ///
    /// # Errors
    /// In words, when it is not, or not known.
    pub(super) fn check(self, bytes: Option<u64>, seconds: Option<f64>) -> Result<(), String> {
        match self {
            LagLimit::Bytes(max) => match bytes {
                Some(lag) if lag <= max => Ok(()),
                Some(lag) => Err(format!("{lag} bytes behind, more than {max}")),
                None => Err("how many bytes it is behind is not known".to_owned()),
            },
            LagLimit::Time(max) => match seconds {
                Some(lag) if lag <= max.as_secs_f64() => Ok(()),
                Some(lag) => Err(format!("{lag:.1} s behind, more than {} s", max.as_secs_f64())),
                None => Err("for how long it has been behind is not known".to_owned()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_read_as_patroni_reads_them_and_as_time() {
        assert_eq!(LagLimit::of_value("10MB"), Ok(LagLimit::Bytes(10 << 20)));
        assert_eq!(LagLimit::of_value("512kB"), Ok(LagLimit::Bytes(512 << 10)));
        assert_eq!(LagLimit::of_value("77"), Ok(LagLimit::Bytes(77)));
        assert_eq!(LagLimit::of_value("5s"), Ok(LagLimit::Time(Duration::from_secs(5))));
        for wrong in ["", "s", "5 s", "-1", "10XB", "99999999999999999999GB"] {
            assert!(LagLimit::of_value(wrong).is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn an_unknown_lag_satisfies_no_limit() {
        assert!(LagLimit::Bytes(u64::MAX).check(None, Some(0.0)).is_err());
        assert!(LagLimit::Time(Duration::MAX).check(Some(0), None).is_err());
        assert!(LagLimit::Bytes(7).check(Some(7), None).is_ok());
        assert!(LagLimit::Bytes(7).check(Some(8), None).is_err());
    }
}
