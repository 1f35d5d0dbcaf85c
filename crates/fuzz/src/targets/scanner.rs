//! The scanner: the same in pieces of any size, never backwards, nothing told as complete that is not, and
//! whoever goes on from its end finds the same.

use understudy_types::{Lsn, SegmentSize};
use understudy_wal::format::{PageFault, RecordHeader, RecordSink, ScanOptions, Scanner, Stop};

use super::wal::{Wal, polish};
use super::{Target, about, layout, pieces};
use crate::allocation::within;

pub(super) const TARGET: Target = Target {
    name: "scanner",
    about: "WAL from a page boundary on, cut anywhere",
    words: &[],
    polish: |input, random| polish(input, random),
    judge,
};

/// Byte by byte only what is short.
const SINGLE_BYTES_MAX: usize = 20_000;

fn judge(input: &[u8]) -> String {
    let wal = Wal::of(input);
    let mut words = Vec::new();
    for options in [wal.strict(), wal.loose()] {
        let at_once = scan(options, wal.begin, [wal.bytes]);
        assert_eq!(at_once, scan(options, wal.begin, pieces(wal.bytes)), "in pieces");
        if wal.bytes.len() <= SINGLE_BYTES_MAX {
            assert_eq!(at_once, scan(options, wal.begin, wal.bytes.chunks(1)), "byte by byte");
        }
        at_once.check(options.size);
        let mut silent = Scanner::new(options, wal.begin, None);
        let _ = within(0, 0, || silent.push(wal.bytes));
        assert_eq!((silent.end_lsn(), silent.stop()), (at_once.end_lsn, at_once.stop.as_ref()));
        words.push(at_once.word());
    }
    goes_on(&wal);
    words.join(", ")
}

/// From the end of the last record on the rest says the same, since a journal goes on from there.
fn goes_on(wal: &Wal<'_>) {
    let whole = scan(wal.strict(), wal.begin, [wal.bytes]);
    if let Some(last) = whole.last_record_lsn {
        let rest = &wal.bytes[whole.end_lsn.bytes_since(wal.begin) as usize..];
        let mut again = Scanner::new(whole.options, whole.end_lsn, Some(last));
        let _ = again.push(rest);
        let found = (again.end_lsn(), again.last_record_lsn(), again.stop());
        assert_eq!(found, (whole.end_lsn, Some(last), whole.stop.as_ref()), "gone on from the end");
    }
}

#[derive(Debug, PartialEq)]
pub(super) struct Scanned {
    /// What was known at the end.
    options: ScanOptions,
    pub(super) stop: Option<Stop>,
    pub(super) end_lsn: Lsn,
    pub(super) last_record_lsn: Option<Lsn>,
    /// Start and end of each complete record, with its bytes.
    pub(super) records: Vec<(Lsn, Lsn, Vec<u8>)>,
}

/// Scans pieces, and sees that nothing ever goes backwards.
pub(super) fn scan<'a>(
    options: ScanOptions,
    begin: Lsn,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Scanned {
    let mut scanner = Scanner::new(options, begin, None);
    let mut heard = Heard::default();
    let (mut position, mut end_lsn, mut pushed) = (begin, begin, 0);
    for piece in pieces {
        pushed += piece.len() as u64;
        let result = scanner.push_to(piece, &mut heard);
        assert_eq!(result.as_ref().err(), scanner.stop(), "it says why it stopped");
        assert!(scanner.position() >= position && scanner.end_lsn() >= end_lsn, "backwards");
        (position, end_lsn) = (scanner.position(), scanner.end_lsn());
        assert!(end_lsn <= position && position.bytes_since(begin) <= pushed, "beyond what it saw");
        if result.is_err() {
            break;
        }
        assert_eq!(position.bytes_since(begin), pushed, "all of it was read");
    }
    if let Some(stop) = scanner.stop() {
        assert!(place(stop) >= end_lsn, "{stop:?} before {end_lsn}");
        assert!(scanner.clone().push(&[0; 8]).is_err(), "it went on after {stop:?}");
    }
    Scanned {
        options: scanner.options(),
        stop: scanner.stop().cloned(),
        end_lsn,
        last_record_lsn: scanner.last_record_lsn(),
        records: heard.complete,
    }
}

impl Scanned {
    /// Each record is what its own header says, follows the one before it, and its checksum is right.
    fn check(&self, size: SegmentSize) {
        let mut previous: Option<(Lsn, Lsn)> = None;
        for (start, end, bytes) in &self.records {
            let header = RecordHeader::parse(bytes.first_chunk().expect("a record has a header"));
            assert_eq!(header.total_bytes as usize, bytes.len());
            assert_eq!(header.checksum, layout::checksum(bytes));
            assert_eq!(*end, layout::end_of(*start, bytes.len(), size), "record at {start}");
            if let Some((before, end_before)) = previous {
                assert_eq!(header.previous_lsn, before);
                assert!(*start >= end_before, "{start} lies within the record at {before}");
            }
            assert!(header.previous_lsn < *start);
            previous = Some((*start, *end));
        }
        // The last one told may still be waiting for what aligns it, or for the zeroes of a switch.
        if let Some(last) = self.last_record_lsn {
            assert!(self.records.iter().rev().take(2).any(|(start, ..)| *start == last));
        }
    }

    fn word(&self) -> String {
        let stop = match &self.stop {
            None => "none".to_owned(),
            Some(Stop::Page { fault, .. }) => match fault {
                PageFault::Continuation { found, expected } => {
                    format!("continuation {} {}", found.is_some(), expected.is_some())
                }
                fault => fault.to_string().chars().take(20).collect(),
            },
            Some(Stop::Zeroes { .. }) => "zeroes".to_owned(),
            Some(Stop::Length { .. }) => "length".to_owned(),
            Some(Stop::Previous { expected, .. }) => format!("previous {}", expected.is_some()),
            Some(Stop::Checksum { .. }) => "checksum".to_owned(),
            Some(Stop::AfterSwitch { .. }) => "switch".to_owned(),
        };
        format!("{} {stop}", about(self.records.len()))
    }
}

fn place(stop: &Stop) -> Lsn {
    match stop {
        Stop::Page { at, .. }
        | Stop::Zeroes { at }
        | Stop::Length { at, .. }
        | Stop::Previous { at, .. }
        | Stop::Checksum { at, .. }
        | Stop::AfterSwitch { at } => *at,
    }
}

/// What a sink is told of complete records.
#[derive(Default)]
struct Heard {
    begun: Option<(Lsn, Vec<u8>)>,
    complete: Vec<(Lsn, Lsn, Vec<u8>)>,
}

impl RecordSink for Heard {
    fn begin(&mut self, start_lsn: Lsn) {
        self.begun = Some((start_lsn, Vec::new()));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let (_, record) = self.begun.as_mut().expect("bytes belong to a record that has begun");
        record.extend_from_slice(bytes);
    }

    fn complete(&mut self, end_lsn: Lsn) {
        let (start_lsn, bytes) = self.begun.take().expect("what is complete has begun");
        self.complete.push((start_lsn, end_lsn, bytes));
    }
}
