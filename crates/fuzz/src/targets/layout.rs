//! How records lie in WAL, written a second time: from a position and a length to an end, and from records
//! to bytes. What the scanner says is compared with it.

use understudy_types::{Lsn, SegmentSize};
use understudy_wal::format::{LONG_HEADER_BYTES, PAGE_BYTES, SHORT_HEADER_BYTES};

use super::wal::DEFAULT_BEGIN;

pub(super) const RECORD_HEADER_BYTES: usize = 24;

fn page_header_bytes(at: u64, size: SegmentSize) -> u64 {
    let long = at.is_multiple_of(size.bytes());
    (if long { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES }) as u64
}

/// The end, aligned, of a record of `length` bytes that begins at `start`.
pub(super) fn end_of(start: Lsn, length: usize, size: SegmentSize) -> Lsn {
    Lsn(end_unaligned(start, length, size).0.next_multiple_of(8))
}

/// The end of `length` bytes of a record that begin at `start`, page headers between them.
pub(super) fn end_unaligned(start: Lsn, length: usize, size: SegmentSize) -> Lsn {
    let (mut at, mut left) = (start.0, length as u64);
    while left > 0 {
        if at.is_multiple_of(PAGE_BYTES) {
            at += page_header_bytes(at, size);
        }
        let fits = left.min(PAGE_BYTES - at % PAGE_BYTES);
        at += fits;
        left -= fits;
    }
    Lsn(at)
}

/// The checksum of a whole record.
pub(super) fn checksum(record: &[u8]) -> u32 {
    let (header, data) = record.split_at(RECORD_HEADER_BYTES);
    crc32c::crc32c_append(crc32c::crc32c(data), &header[..20])
}

/// A record to be laid out.
pub(super) struct Record<'a> {
    pub(super) manager: u8,
    pub(super) info: u8,
    pub(super) xid: u32,
    pub(super) body: &'a [u8],
}

/// Records one after the other, from the second segment of 1 MiB on, as PostgreSQL 15 lays them out; and
/// where the last one ends.
pub(super) fn lay_out(records: &[Record<'_>]) -> (Vec<u8>, Lsn) {
    let size = SegmentSize::new(1 << 20).expect("PostgreSQL accepts 1 MiB");
    let begin = DEFAULT_BEGIN;
    let mut bytes = Vec::new();
    let mut previous = begin - 8;
    let position = |bytes: &Vec<u8>| begin + bytes.len() as u64;
    for record in records {
        begin_page(&mut bytes, begin, size, 0);
        let start = position(&bytes);
        let mut whole = Vec::new();
        whole.extend(((RECORD_HEADER_BYTES + record.body.len()) as u32).to_le_bytes());
        whole.extend(record.xid.to_le_bytes());
        whole.extend(previous.0.to_le_bytes());
        whole.extend([record.info, record.manager, 0, 0, 0, 0, 0, 0]);
        whole.extend_from_slice(record.body);
        let checksum = checksum(&whole);
        whole[20..24].copy_from_slice(&checksum.to_le_bytes());
        let mut left = whole.as_slice();
        while !left.is_empty() {
            begin_page(&mut bytes, begin, size, left.len() as u32);
            let room = PAGE_BYTES - position(&bytes).0 % PAGE_BYTES;
            let (now, later) = left.split_at(left.len().min(room as usize));
            bytes.extend_from_slice(now);
            left = later;
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        assert_eq!(position(&bytes), end_of(start, whole.len(), size), "two ways to lay out");
        previous = start;
    }
    let end = position(&bytes);
    (bytes, end)
}

/// A page's header, where one has to be.
fn begin_page(bytes: &mut Vec<u8>, begin: Lsn, size: SegmentSize, remaining: u32) {
    let at = begin + bytes.len() as u64;
    if !at.0.is_multiple_of(PAGE_BYTES) {
        return;
    }
    let long = at.0.is_multiple_of(size.bytes());
    let flags = u16::from(remaining > 0) | if long { 2 } else { 0 };
    bytes.extend(0xD110_u16.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(at.0.to_le_bytes());
    bytes.extend(remaining.to_le_bytes());
    bytes.extend([0; 4]);
    if long {
        bytes.extend(7_u64.to_le_bytes());
        bytes.extend((size.bytes() as u32).to_le_bytes());
        bytes.extend((PAGE_BYTES as u32).to_le_bytes());
    }
}
