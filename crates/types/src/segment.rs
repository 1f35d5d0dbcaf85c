//! WAL segment files: their size and PostgreSQL's names for them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Lsn, Timeline};

/// The size of a WAL segment, in bytes: a power of two from 1 MiB to 1 GiB (`wal_segment_size`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// What `initdb` chooses unless told otherwise: 16 MiB.
    pub const DEFAULT: SegmentSize = SegmentSize(16 * 1024 * 1024);

    /// The size, if PostgreSQL accepts it.
    pub fn new(bytes: u32) -> Option<SegmentSize> {
        let valid = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        valid.then_some(SegmentSize(bytes))
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// Segments in one 4 GiB "log file" of PostgreSQL's naming.
    fn per_xlog_id(self) -> u64 {
        0x1_0000_0000 / self.bytes()
    }
}

impl TryFrom<u32> for SegmentSize {
    type Error = String;
    fn try_from(bytes: u32) -> Result<Self, Self::Error> {
        SegmentSize::new(bytes)
            .ok_or_else(|| format!("{bytes} is not a power of two from 1 MiB to 1 GiB"))
    }
}

impl From<SegmentSize> for u32 {
    fn from(size: SegmentSize) -> u32 {
        size.0
    }
}

/// One WAL segment: timeline and number (start LSN divided by the segment size).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSegment {
    /// The timeline in the file's name.
    pub timeline: Timeline,
    /// The start LSN divided by the segment size.
    pub number: u64,
}

impl WalSegment {
    /// The segment that holds the byte at `lsn`.
    pub fn containing(timeline: Timeline, lsn: Lsn, size: SegmentSize) -> WalSegment {
        WalSegment { timeline, number: lsn.0 / size.bytes() }
    }

    /// The position of its first byte.
    pub fn start(self, size: SegmentSize) -> Lsn {
        Lsn(self.number * size.bytes())
    }

    /// The position just after its last byte.
    pub fn end(self, size: SegmentSize) -> Lsn {
        Lsn((self.number + 1) * size.bytes())
    }

    /// The segment after it on the same timeline.
    #[must_use]
    pub fn next(self) -> WalSegment {
        WalSegment { timeline: self.timeline, number: self.number + 1 }
    }

    /// The name of its file, 24 hexadecimal digits (`XLogFileName`).
    pub fn file_name(self, size: SegmentSize) -> String {
        let per_id = size.per_xlog_id();
        let (hi, lo) = (self.number / per_id, self.number % per_id);
        format!("{:08X}{hi:08X}{lo:08X}", self.timeline.get())
    }

    /// The segment that a file of this name holds.
    ///
    /// # Errors
    /// When the name is not 24 upper-case hexadecimal digits, the timeline is 0, or the number does
    /// not exist with segments of this size.
    pub fn parse(name: &str, size: SegmentSize) -> Result<WalSegment, ParseSegmentError> {
        let error = || ParseSegmentError { name: name.to_owned() };
        let digit = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
        if name.len() != 24 || !name.bytes().all(digit) {
            return Err(error());
        }
        let part = |range| u32::from_str_radix(&name[range], 16).map_err(|_| error());
        let (timeline, hi, lo) = (part(0..8)?, part(8..16)?, part(16..24)?);
        let per_id = size.per_xlog_id();
        if u64::from(lo) >= per_id {
            return Err(error());
        }
        let timeline = Timeline::new(timeline).ok_or_else(error)?;
        Ok(WalSegment { timeline, number: u64::from(hi) * per_id + u64::from(lo) })
    }
}

/// The file name is not that of a WAL segment of the given size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse WAL file name {name:?}: expected 24 upper-case hexadecimal digits of a segment")]
pub struct ParseSegmentError {
    name: String,
}

impl fmt::Display for SegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}MiB", self.0 >> 20)
    }
}

impl FromStr for SegmentSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes: u32 = text.parse().map_err(|_| format!("{text:?} is not a number of bytes"))?;
        bytes.try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_postgresqls() {
        let size = SegmentSize::DEFAULT;
        let segment = WalSegment::containing(Timeline::FIRST, "16/B374D848".parse().unwrap(), size);
        assert_eq!(segment.file_name(size), "0000000100000016000000B3");
    }

    proptest! {
        #[test]
        fn a_name_parses_back(tli in 1u32.., lsn: u64, shift in 20u32..=30) {
            let size = SegmentSize::new(1 << shift).unwrap();
            let timeline = Timeline::new(tli).unwrap();
            let segment = WalSegment::containing(timeline, Lsn(lsn), size);
            prop_assert_eq!(WalSegment::parse(&segment.file_name(size), size).unwrap(), segment);
        }
    }

    #[test]
    fn a_segment_number_that_cannot_exist_is_refused() {
        assert!(WalSegment::parse("000000010000000000000100", SegmentSize::DEFAULT).is_err());
        assert!(WalSegment::parse("000000000000000000000001", SegmentSize::DEFAULT).is_err());
        assert!(WalSegment::parse("00000001000000000000000g", SegmentSize::DEFAULT).is_err());
    }
}
