//! `Lsn`: a byte position in the write-ahead log.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A position in the write-ahead log, in bytes since its beginning (`XLogRecPtr`).
///
/// Printed as PostgreSQL prints it, `hi/lo` in hexadecimal. `Lsn::ZERO` is PostgreSQL's
/// `InvalidXLogRecPtr`: no WAL was ever written there. Where a position may be unknown the type is
/// `Option<Lsn>`, never zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The invalid position, before every valid one.
    pub const ZERO: Lsn = Lsn(0);
    /// The greatest position.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// Bytes from `earlier` to `self`, or zero if `earlier` is not earlier.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The position rounded down to a multiple of `alignment` bytes (a power of two).
    pub fn align_down(self, alignment: u64) -> Lsn {
        debug_assert!(alignment.is_power_of_two());
        Lsn(self.0 & !(alignment - 1))
    }

    /// The position rounded up to a multiple of `alignment` bytes (a power of two).
    pub fn align_up(self, alignment: u64) -> Lsn {
        debug_assert!(alignment.is_power_of_two());
        Lsn(self.0.saturating_add(alignment - 1) & !(alignment - 1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text is not an LSN of the form `16/B374D848`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse LSN {text:?}: expected two hexadecimal numbers joined by '/', as in 16/B374D848")]
pub struct ParseLsnError {
    text: String,
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseLsnError { text: text.to_owned() };
        let half = |part: &str| {
            let plain =
                (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            if plain { u32::from_str_radix(part, 16).map_err(|_| error()) } else { Err(error()) }
        };
        let (hi, lo) = text.split_once('/').ok_or_else(error)?;
        Ok(Lsn(u64::from(half(hi)?) << 32 | u64::from(half(lo)?)))
    }
}

impl Add<u64> for Lsn {
    type Output = Lsn;
    fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }
}

impl Sub<u64> for Lsn {
    type Output = Lsn;
    fn sub(self, bytes: u64) -> Lsn {
        Lsn(self.0 - bytes)
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_printed_parses_back(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse::<Lsn>().unwrap(), Lsn(value));
        }
    }

    #[test]
    fn text_that_is_not_an_lsn_is_refused() {
        for text in ["", "/", "1", "1/", "/1", "123456789/0", "0/+1", "0/0/0", "g/0", " 0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn alignment_rounds_to_the_page() {
        assert_eq!(Lsn(8193).align_down(8192), Lsn(8192));
        assert_eq!(Lsn(8193).align_up(8192), Lsn(16384));
        assert_eq!(Lsn(8192).align_up(8192), Lsn(8192));
    }
}
