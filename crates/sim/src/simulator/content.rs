//! Modelled WAL: records that are told apart by number, so that two copies can be compared.
//!
//! A position is a byte, as in PostgreSQL; a copy may end inside a record. Nothing here knows who holds
//! the copy.

use understudy_types::{Lsn, Timeline};

/// Where every cluster's WAL begins in the model.
pub(crate) const WAL_BEGINS: u64 = 0x100_0000;

/// One record. Equal numbers are equal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rec {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) id: u64,
    pub(crate) timeline: Timeline,
}

/// Bytes that were there were to be replaced by different ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Differs {
    pub(crate) at: u64,
}

/// A copy of WAL without a gap.
#[derive(Clone, Debug)]
pub(crate) struct Wal {
    begin: u64,
    recs: Vec<Rec>,
    /// The end of the bytes held, maybe inside the last record.
    bytes: u64,
}

impl Wal {
    /// Nothing yet, from `begin` on.
    pub(crate) fn from(begin: u64) -> Wal {
        Wal { begin, recs: Vec::new(), bytes: begin }
    }

    pub(crate) fn begin(&self) -> u64 {
        self.begin
    }

    /// The end of the bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The end of the last complete record.
    pub(crate) fn record_end(&self) -> u64 {
        match self.recs.last() {
            Some(last) if last.end <= self.bytes => last.end,
            Some(last) => last.start,
            None => self.begin,
        }
    }

    /// The end of the last complete record at or before the byte `bytes`.
    pub(crate) fn record_end_before(&self, bytes: u64) -> u64 {
        let bytes = bytes.min(self.bytes);
        let index = self.recs.partition_point(|rec| rec.end <= bytes);
        if index == 0 { self.begin } else { self.recs[index - 1].end }
    }

    /// The timeline of the last complete record.
    pub(crate) fn timeline(&self) -> Option<Timeline> {
        let end = self.record_end();
        self.recs.iter().rev().find(|rec| rec.end <= end).map(|rec| rec.timeline)
    }

    /// The end of what was inserted, though it may not be held as bytes yet.
    pub(crate) fn inserted(&self) -> u64 {
        self.recs.last().map_or(self.bytes, |last| last.end)
    }

    /// A record behind the last one; only its writer calls it.
    pub(crate) fn insert(&mut self, length: u64, id: u64, timeline: Timeline) -> Rec {
        let start = self.inserted();
        let rec = Rec { start, end: start + length, id, timeline };
        self.recs.push(rec);
        rec
    }

    /// Bytes up to `upto` are held from now on, of what was inserted.
    pub(crate) fn flush(&mut self, upto: u64) {
        self.bytes = self.bytes.max(upto.min(self.inserted()));
    }

    /// Records that have a byte at or after `lsn`.
    pub(crate) fn after(&self, lsn: u64) -> &[Rec] {
        let index = self.recs.partition_point(|rec| rec.end <= lsn);
        &self.recs[index..]
    }

    /// The record that begins there.
    pub(crate) fn at(&self, start: u64) -> Option<&Rec> {
        let index = self.recs.partition_point(|rec| rec.start < start);
        self.recs.get(index).filter(|rec| rec.start == start)
    }

    /// The last complete record.
    pub(crate) fn last_complete(&self) -> Option<&Rec> {
        self.recs.iter().rev().find(|rec| rec.end <= self.bytes)
    }

    /// Takes records of another copy, up to the byte `upto`. What is held already must be the same.
    pub(crate) fn take(&mut self, recs: &[Rec], upto: u64) -> Result<(), Differs> {
        for rec in recs {
            if rec.start >= upto {
                break;
            }
            match self.at(rec.start).copied() {
                Some(held) if held.id != rec.id => return Err(Differs { at: rec.start }),
                Some(held) if held.end <= self.bytes => {}
                Some(_) => {
                    self.recs.pop();
                    self.recs.push(*rec);
                }
                None if rec.start == self.inserted() => self.recs.push(*rec),
                None => return Err(Differs { at: rec.start }),
            }
            self.bytes = self.bytes.max(upto.min(rec.end));
        }
        Ok(())
    }

    /// Forgets everything from the byte `lsn` on.
    pub(crate) fn cut(&mut self, lsn: u64) {
        let index = self.recs.partition_point(|rec| rec.start < lsn);
        self.recs.truncate(index);
        self.bytes = self.bytes.min(lsn);
    }

    /// What a crash leaves: the bytes, and no more of an unfinished record than them.
    pub(crate) fn crash(&mut self) {
        self.cut(self.bytes);
    }

    /// Recovery as a primary: an unfinished record stays as it is and is marked, nothing overwrites it.
    pub(crate) fn recover_as_primary(&mut self) {
        self.crash();
        let bytes = self.bytes;
        if let Some(last) = self.recs.last_mut() {
            last.end = last.end.min(bytes);
        }
    }

    /// Whether the commit that ends at `lsn` with number `id` is held whole.
    pub(crate) fn holds(&self, start: Lsn, id: u64) -> bool {
        self.at(start.0).is_some_and(|rec| rec.id == id && rec.end <= self.bytes)
    }

    /// The first record of `self` that `other` contradicts, from where both begin.
    pub(crate) fn first_difference(&self, other: &Wal) -> Option<u64> {
        let from = self.begin.max(other.begin);
        let end = self.record_end().min(other.record_end());
        let mine = self.after(from).iter().filter(|rec| rec.start >= from && rec.end <= end);
        let theirs: &[Rec] = other.after(from);
        let mut theirs = theirs.iter().filter(|rec| rec.start >= from);
        mine.zip(theirs.by_ref()).find(|(a, b)| a.id != b.id).map(|(a, _)| a.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> Wal {
        let mut wal = Wal::from(100);
        for id in 1..=3 {
            wal.insert(10, id, Timeline::FIRST);
        }
        wal.flush(125);
        wal
    }

    #[test]
    fn a_copy_may_end_inside_a_record_and_goes_on_there() {
        let primary = filled();
        assert_eq!((primary.bytes(), primary.record_end(), primary.inserted()), (125, 120, 130));
        let mut copy = Wal::from(100);
        copy.take(primary.after(100), 115).unwrap();
        assert_eq!((copy.bytes(), copy.record_end()), (115, 110));
        copy.take(primary.after(110), 125).unwrap();
        assert_eq!((copy.bytes(), copy.record_end()), (125, 120));
    }

    #[test]
    fn a_crashed_primary_marks_its_half_record_and_a_copy_of_it_stays_a_prefix() {
        let mut primary = filled();
        let mut copy = Wal::from(100);
        copy.take(primary.after(100), 125).unwrap();
        primary.recover_as_primary();
        primary.insert(10, 9, Timeline::FIRST);
        primary.flush(135);
        assert_eq!(primary.record_end(), 135);
        copy.take(primary.after(copy.record_end()), 135).unwrap();
        assert_eq!(copy.record_end(), 135);
        assert_eq!(copy.first_difference(&primary), None);
    }

    #[test]
    fn other_bytes_at_a_place_that_is_held_are_seen() {
        let primary = filled();
        let mut other = Wal::from(100);
        other.insert(10, 7, Timeline::FIRST);
        other.flush(110);
        assert!(other.take(primary.after(100), 120).is_err());
        assert_eq!(other.first_difference(&primary), Some(100));
    }
}
