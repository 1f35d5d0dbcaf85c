//! An input as WAL: the bytes from a page boundary on, which say themselves where that is.

use understudy_types::{Lsn, SegmentSize, Timeline};
use understudy_wal::format::{PAGE_BYTES, ScanOptions, Scanner, Stop, WalVersion};

use crate::random::Random;

/// Where bytes that do not say it begin.
pub(super) const DEFAULT_BEGIN: Lsn = Lsn(1 << 20);

pub(super) struct Wal<'a> {
    pub(super) begin: Lsn,
    pub(super) bytes: &'a [u8],
    pub(super) size: SegmentSize,
    pub(super) timeline: Timeline,
    pub(super) version: WalVersion,
}

impl Wal<'_> {
    /// What the first page's header says, as far as it makes sense.
    pub(super) fn of(bytes: &[u8]) -> Wal<'_> {
        let mut head = [0; 40];
        let known = bytes.len().min(head.len());
        head[..known].copy_from_slice(&bytes[..known]);
        let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let address = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
        let begin = if address > 0 { Lsn(address).align_down(PAGE_BYTES) } else { DEFAULT_BEGIN };
        let small = SegmentSize::new(1 << 20).expect("PostgreSQL accepts 1 MiB");
        let long = u16_at(2) & 2 != 0;
        let size = SegmentSize::new(u32_at(32)).filter(|_| long).unwrap_or(small);
        let timeline = Timeline::new(u32_at(4)).unwrap_or(Timeline::FIRST);
        let version = WalVersion::from_magic(u16_at(0)).unwrap_or(WalVersion::V15To17);
        Wal { begin, bytes, size, timeline, version }
    }

    /// On one known timeline, as what follows a known fork.
    pub(super) fn strict(&self) -> ScanOptions {
        ScanOptions {
            timeline: self.timeline,
            timeline_since: Some(Lsn::ZERO),
            size: self.size,
            system_id: None,
            page_magic: None,
        }
    }

    /// Of any timeline, as what lies before one.
    pub(super) fn loose(&self) -> ScanOptions {
        let timeline = Timeline::new(u32::MAX).expect("it is not 0");
        ScanOptions { timeline, timeline_since: None, ..self.strict() }
    }
}

/// Most of the time makes checksums and predecessors right, so that what is behind them is reached.
pub(super) fn polish(bytes: &mut [u8], random: &mut Random) {
    if random.once_in(3) {
        return;
    }
    for _ in 0..1 + random.below(60) {
        let wal = Wal::of(bytes);
        let begin = wal.begin;
        if begin.0.checked_add(bytes.len() as u64).is_none() {
            return;
        }
        let mut scanner = Scanner::new(wal.loose(), begin, None);
        let (at, right) = match scanner.push(bytes) {
            Err(Stop::Checksum { at, computed, .. }) => (at + 20, computed.to_le_bytes().to_vec()),
            Err(Stop::Previous { at, expected: Some(expected), .. }) => {
                (at + 8, expected.0.to_le_bytes().to_vec())
            }
            Ok(()) | Err(_) => return,
        };
        let at = at.bytes_since(begin) as usize;
        // A header that lies on two pages is left as it is.
        match bytes.get_mut(at..at + right.len()) {
            Some(field) => field.copy_from_slice(&right),
            None => return,
        }
    }
}
