//! What a place holds, as ranges of the WAL and the gaps between them.

use understudy_types::{Lsn, SegmentSize, Timeline, WalSegment};

use super::place::Place;
use super::survey::{Holding, Survey};

/// WAL without a gap, on one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The timeline.
    pub timeline: Timeline,
    /// Its first byte.
    pub from_lsn: Lsn,
    /// The position after its last byte. Of a last segment that nobody can say the end of, the end of
    /// the file.
    pub to_lsn: Lsn,
    /// Files that it lies in.
    pub segments: u64,
}

impl Range {
    /// How much WAL it is.
    pub fn bytes(&self) -> u64 {
        self.to_lsn.bytes_since(self.from_lsn)
    }
}

/// WAL that is missing between the first byte held and the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The timeline that its first byte is on.
    pub timeline: Timeline,
    /// Its first byte.
    pub from_lsn: Lsn,
    /// The position after its last byte.
    pub to_lsn: Lsn,
    /// The name of the first file that is missing.
    pub first_file: String,
}

/// What is held of the newest timeline's history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// In the order of the WAL.
    pub ranges: Vec<Range>,
    /// In the order of the WAL.
    pub gaps: Vec<Gap>,
}

impl Survey {
    /// What is held, as ranges.
    pub fn coverage(&self, place: &Place) -> Coverage {
        let mut coverage = Coverage::default();
        let mut covered_lsn = None;
        for holding in &self.holdings {
            for (first, last) in runs(holding, place.size) {
                let timeline = holding.timeline;
                let of = |number| WalSegment { timeline, number };
                let file_from = of(first).start(place.size);
                let file_to = of(last).end(place.size);
                let to_lsn = holding.ends_lsn.map_or(file_to, |ends_lsn| ends_lsn.min(file_to));
                // A timeline's first file repeats its parent's bytes up to where it left it.
                let begins_lsn = holding.begins_lsn.unwrap_or(Lsn::ZERO);
                let repeated = covered_lsn.is_some_and(|covered| covered >= begins_lsn);
                let from_lsn = if repeated { file_from.max(begins_lsn) } else { file_from };
                self.note_gap(&mut coverage, covered_lsn, from_lsn, place.size);
                let segments = last - first + 1;
                coverage.ranges.push(Range { timeline, from_lsn, to_lsn, segments });
                covered_lsn = covered_lsn.max(Some(to_lsn));
            }
        }
        if let (Some(end_lsn), Some(_)) = (place.end_lsn(), covered_lsn) {
            self.note_gap(&mut coverage, covered_lsn, end_lsn, place.size);
        }
        coverage
    }

    fn note_gap(
        &self,
        coverage: &mut Coverage,
        covered_lsn: Option<Lsn>,
        to_lsn: Lsn,
        size: SegmentSize,
    ) {
        let Some(from_lsn) = covered_lsn.filter(|covered| *covered < to_lsn) else { return };
        let on = |holding: &&Holding| holding.ends_lsn.is_none_or(|ends_lsn| from_lsn < ends_lsn);
        let Some(holding) = self.holdings.iter().find(on).or(self.holdings.last()) else { return };
        let timeline = holding.timeline;
        let first_file = WalSegment::containing(timeline, from_lsn, size).file_name(size);
        coverage.gaps.push(Gap { timeline, from_lsn, to_lsn, first_file });
    }
}

/// First and last number of each run of segments that hold WAL.
fn runs(holding: &Holding, size: SegmentSize) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in holding.files.keys().copied() {
        let start = WalSegment { timeline: holding.timeline, number }.start(size);
        if holding.ends_lsn.is_some_and(|ends_lsn| ends_lsn <= start) {
            break;
        }
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    runs
}
