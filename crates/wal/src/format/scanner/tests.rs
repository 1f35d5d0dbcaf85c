//! The scanner against WAL that is built here record by record, byte by byte.
//! (PostgreSQL's own WAL is read in the journal's tests.)

use proptest::prelude::*;

use super::*;
use crate::format::record::finish_checksum;

const SYSTEM: u64 = 0x1234_5678_9ABC_DEF0;

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

pub(in crate::format) fn options() -> ScanOptions {
    let timeline = Timeline::FIRST;
    let (timeline_since, system_id) = (Some(Lsn::ZERO), Some(SystemId(SYSTEM)));
    ScanOptions { timeline, timeline_since, size: size(), system_id, page_magic: None }
}

/// Writes WAL as PostgreSQL lays it out, beginning with the second segment.
pub(in crate::format) struct Builder {
    pub(in crate::format) begin: Lsn,
    pub(in crate::format) bytes: Vec<u8>,
    previous: Lsn,
    /// (start, end) of each record.
    pub(in crate::format) records: Vec<(Lsn, Lsn)>,
    /// Offsets of bytes that PostgreSQL does not look at.
    ignored: Vec<usize>,
}

impl Builder {
    pub(in crate::format) fn new() -> Builder {
        let begin = Lsn(1 << 20);
        let (bytes, records, ignored) = (Vec::new(), Vec::new(), Vec::new());
        Builder { begin, bytes, previous: Lsn(0xFFF00), records, ignored }
    }

    fn position(&self) -> Lsn {
        self.begin + self.bytes.len() as u64
    }

    fn page_header(&mut self, flags: u16, remaining: u32) {
        let at = self.position();
        let long = at.0.is_multiple_of(size().bytes());
        let flags = flags | if long { 2 } else { 0 };
        self.ignored.push(self.bytes.len() + 2);
        if flags & 1 == 0 {
            self.ignored.extend(self.bytes.len() + 16..self.bytes.len() + 20);
        }
        self.ignored.extend(self.bytes.len() + 20..self.bytes.len() + 24);
        self.bytes.extend(0xD110u16.to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(1u32.to_le_bytes());
        self.bytes.extend(at.0.to_le_bytes());
        self.bytes.extend(remaining.to_le_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(SYSTEM.to_le_bytes());
            self.bytes.extend((size().bytes() as u32).to_le_bytes());
            self.bytes.extend(8192u32.to_le_bytes());
        }
    }

    fn at_page_start(&self) -> bool {
        self.position().0.is_multiple_of(PAGE_BYTES)
    }

    /// Appends a record; with `cut`, stops at the first page boundary within it.
    pub(in crate::format) fn record_of(
        &mut self,
        manager: u8,
        info: u8,
        data: &[u8],
        cut: bool,
        flags: u16,
    ) {
        if self.at_page_start() {
            self.page_header(flags, 0);
        }
        let start = self.position();
        let mut header = [0; RECORD_HEADER_BYTES];
        let total = (RECORD_HEADER_BYTES + data.len()) as u32;
        header[0..4].copy_from_slice(&total.to_le_bytes());
        header[4..8].copy_from_slice(&700u32.to_le_bytes());
        header[8..16].copy_from_slice(&self.previous.0.to_le_bytes());
        header[16] = info;
        header[17] = manager;
        let checksum = finish_checksum(crc32c::crc32c(data), &header);
        header[20..24].copy_from_slice(&checksum.to_le_bytes());
        let mut left = [header.as_slice(), data].concat();
        while !left.is_empty() {
            if self.at_page_start() {
                if cut {
                    return;
                }
                self.page_header(1, left.len() as u32);
            }
            let room = PAGE_BYTES - self.position().0 % PAGE_BYTES;
            let rest = left.split_off(left.len().min(room as usize));
            self.bytes.extend(left);
            left = rest;
        }
        while !self.position().0.is_multiple_of(8) {
            self.ignored.push(self.bytes.len());
            self.bytes.push(0);
        }
        self.previous = start;
        self.records.push((start, self.position()));
    }

    fn record(&mut self, data: &[u8]) {
        self.record_of(10, 0, data, false, 0);
    }

    fn switch(&mut self) {
        self.record_of(0, 0x40, &[], false, 0);
        while !self.position().0.is_multiple_of(size().bytes()) {
            self.bytes.push(0);
        }
        self.records.last_mut().unwrap().1 = self.position();
    }

    /// A record that a crash cut at a page boundary, and the one that recovery wrote instead.
    fn overwritten(&mut self) {
        self.record_of(10, 0, &[7; 20000], true, 0);
        self.record_of(0, 0xD0, &[1; 16], false, 8);
    }
}

fn build(lengths: &[usize]) -> Builder {
    let mut builder = Builder::new();
    for (index, length) in lengths.iter().enumerate() {
        match index % 9 {
            4 => builder.overwritten(),
            7 => builder.switch(),
            _ => builder.record(&vec![index as u8; *length]),
        }
    }
    builder
}

/// What a sink was told of complete records: where each lies, and its bytes.
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
        self.begun.as_mut().unwrap().1.extend_from_slice(bytes);
    }

    fn complete(&mut self, end_lsn: Lsn) {
        let (start_lsn, bytes) = self.begun.take().unwrap();
        self.complete.push((start_lsn, end_lsn, bytes));
    }
}

fn end_of(records: &[(Lsn, Lsn)], cut: Lsn, begin: Lsn) -> (Lsn, Option<Lsn>) {
    let complete = records.iter().rfind(|(_, end)| *end <= cut);
    complete.map_or((begin, None), |(start, end)| (*end, Some(*start)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_cut_in_any_chunks_ends_at_the_last_complete_record(
        lengths in prop::collection::vec(0usize..30_000, 1..12),
        chunk in 1usize..20_000,
        cut in 0.0f64..1.0,
    ) {
        let built = build(&lengths);
        let kept = (built.bytes.len() as f64 * cut) as usize;
        let mut scanner = Scanner::new(options(), built.begin, None);
        for piece in built.bytes[..kept].chunks(chunk) {
            scanner.push(piece).unwrap();
        }
        let expected = end_of(&built.records, built.begin + kept as u64, built.begin);
        prop_assert_eq!((scanner.end_lsn(), scanner.last_record_lsn()), expected);
    }

    #[test]
    fn a_flipped_bit_stops_before_the_record_that_holds_it(
        lengths in prop::collection::vec(0usize..20_000, 1..9),
        place in 0.0f64..1.0,
        bit in 0u32..8,
    ) {
        let mut built = build(&lengths);
        let at = (built.bytes.len() as f64 * place) as usize;
        let touched = built.begin + at as u64;
        // Half a record that was overwritten is never read by anybody.
        let read = built.records.iter().any(|(start, end)| *start <= touched && touched < *end)
            || touched.0 % PAGE_BYTES < SHORT_HEADER_BYTES_U64;
        prop_assume!(read && !built.ignored.contains(&at));
        built.bytes[at] ^= 1 << bit;
        let mut scanner = Scanner::new(options(), built.begin, None);
        prop_assert!(scanner.push(&built.bytes).is_err());
        prop_assert!(scanner.end_lsn() <= touched);
        prop_assert!(scanner.stop().is_some());
    }

    #[test]
    fn at_once_and_byte_by_byte_are_told_the_same_and_stop_at_the_same(
        lengths in prop::collection::vec(0usize..400, 1..120),
        switched in any::<bool>(),
        flipped in prop::option::of((0.0f64..1.0, 0u32..8)),
    ) {
        let mut built = Builder::new();
        lengths.iter().for_each(|length| built.record(&vec![*length as u8; *length]));
        if let Some((place, bit)) = flipped {
            let at = (built.bytes.len() as f64 * place) as usize;
            built.bytes[at] ^= 1 << bit;
        }
        if switched {
            built.switch();
        }
        let scan = |chunk: usize| {
            let mut scanner = Scanner::new(options(), built.begin, None);
            let mut heard = Heard::default();
            let ended = built.bytes.chunks(chunk).try_for_each(|piece| {
                scanner.push_to(piece, &mut heard)
            });
            // Where it stands after an error depends on the step that it was in.
            let position = ended.is_ok().then(|| scanner.position());
            (ended, position, scanner.end_lsn(), scanner.last_record_lsn(), heard.complete)
        };
        prop_assert_eq!(scan(built.bytes.len()), scan(1));
    }

    #[test]
    fn garbage_never_panics_and_never_counts_as_a_record(
        bytes in prop::collection::vec(any::<u8>(), 0..40_000),
        offset in 0u64..2000,
    ) {
        let from = Lsn((1 << 20) + offset * 8);
        prop_assume!(from.0.is_multiple_of(PAGE_BYTES) || from.0 % PAGE_BYTES >= 40);
        let mut scanner = Scanner::new(options(), from, None);
        let _ = scanner.push(&bytes);
        prop_assert_eq!(scanner.end_lsn(), from);
    }

    #[test]
    fn a_start_within_a_record_passes_over_the_rest_of_it(pages in 1usize..19) {
        let mut built = Builder::new();
        built.record(&[1; 100_000]);
        built.record(&[2; 50_000]);
        let from = pages * PAGE_BYTES as usize;
        let mut scanner = Scanner::new(options(), built.begin + from as u64, None);
        scanner.push(&built.bytes[from..]).unwrap();
        let (start, end) = built.records[1];
        let last = if built.begin + from as u64 <= start { Some(start) } else { None };
        prop_assert_eq!((scanner.end_lsn(), scanner.last_record_lsn()), (end, last));
    }

    #[test]
    fn going_on_from_a_records_end_is_as_if_never_stopped(index in 0usize..12) {
        let built = build(&[100, 9000, 3, 20_000, 0, 77, 8192, 0, 5, 6, 7, 8]);
        let (start, end) = built.records[index];
        let mut scanner = Scanner::new(options(), end, Some(start));
        scanner.push(&built.bytes[end.bytes_since(built.begin) as usize..]).unwrap();
        let (start, end) = *built.records.last().unwrap();
        prop_assert_eq!((scanner.end_lsn(), scanner.last_record_lsn()), (end, Some(start)));
    }
}

const SHORT_HEADER_BYTES_U64: u64 = 24;

#[test]
fn a_continuation_that_was_overwritten_ends_the_record_and_the_chain_goes_on() {
    let mut built = Builder::new();
    built.record(&[1; 10]);
    let before = built.records[0].0;
    built.overwritten();
    built.record(&[2; 10]);
    assert_eq!(built.records.len(), 3);
    let mut scanner = Scanner::new(options(), built.begin, None);
    scanner.push(&built.bytes).unwrap();
    assert_eq!(scanner.end_lsn(), built.position());
    let at = built.records[1].0.bytes_since(built.begin) as usize;
    assert_eq!(built.bytes[at + 8..at + 16], before.0.to_le_bytes());
}

#[test]
fn a_page_of_another_version_than_the_one_before_it_is_refused_also_by_who_goes_on() {
    let mut built = Builder::new();
    built.record(&[1; 10_000]);
    built.record(&[2; 10_000]);
    let (start, end) = built.records[0];
    let second_page = PAGE_BYTES as usize;
    // 15's to 18's is one bit, and both are accepted.
    built.bytes[second_page] ^= 0x08;
    let mut scanner = Scanner::new(options(), built.begin, None);
    let fault = PageFault::OtherMagic { found: 0xD118, expected: 0xD110 };
    let at = built.begin + PAGE_BYTES;
    assert_eq!(scanner.push(&built.bytes), Err(Stop::Page { at, fault }));
    built.bytes[second_page] ^= 0x08;
    let third_page = 2 * second_page;
    built.bytes[third_page] ^= 0x08;
    let rest = &built.bytes[end.bytes_since(built.begin) as usize..];
    let mut whole = Scanner::new(options(), built.begin, None);
    let _ = whole.push(&built.bytes);
    assert_eq!(whole.end_lsn(), end);
    let mut again = Scanner::new(whole.options(), end, Some(start));
    assert!(matches!(
        again.push(rest),
        Err(Stop::Page { fault: PageFault::OtherMagic { .. }, .. })
    ));
}

#[test]
fn the_end_of_all_positions_is_refused_instead_of_waited_for() {
    let last_page = Lsn::MAX.align_down(PAGE_BYTES);
    let mut scanner = Scanner::new(options(), last_page, None);
    let fault = PageFault::BeyondAll;
    assert_eq!(scanner.push(&[0; 9000]), Err(Stop::Page { at: last_page, fault }));
}

#[test]
fn an_unwritten_place_is_told_from_a_damaged_one() {
    let mut built = Builder::new();
    built.record(&[1; 10]);
    let end = built.position();
    let mut scanner = Scanner::new(options(), built.begin, None);
    built.bytes.extend([0; 64]);
    assert_eq!(scanner.push(&built.bytes), Err(Stop::Zeroes { at: end }));
    assert_eq!(scanner.end_lsn(), end);
}

#[test]
fn wal_of_a_later_timeline_or_of_another_system_is_refused() {
    let mut built = Builder::new();
    built.record(&[1; 10]);
    let other = ScanOptions { system_id: Some(SystemId(1)), ..options() };
    let mut scanner = Scanner::new(other, built.begin, None);
    assert!(matches!(
        scanner.push(&built.bytes),
        Err(Stop::Page { fault: PageFault::System { .. }, .. })
    ));
    let next = ScanOptions {
        timeline: Timeline::FIRST.next(),
        timeline_since: Some(built.begin),
        ..options()
    };
    let mut scanner = Scanner::new(next, built.begin, None);
    assert!(matches!(
        scanner.push(&built.bytes),
        Err(Stop::Page { fault: PageFault::Timeline { .. }, .. })
    ));
}
