//! Damage to real WAL: the verified end never lies beyond the record that was damaged.

use std::sync::OnceLock;

use understudy_types::Lsn;
use understudy_wal::format::{PAGE_BYTES, PageHeader, ScanOptions};

use super::scanner::{Scanned, scan};
use super::wal::Wal;
use super::{Target, about, as_it_is, layout};
use crate::corpus;

pub(super) const TARGET: Target = Target {
    name: "damage",
    about: "places in real WAL, and what happens to it there",
    words: &[],
    polish: as_it_is,
    judge,
};

/// A disk writes no less than this at once.
const SECTOR_BYTES: usize = 512;
/// One damage: its kind, its place, and where other bytes come from.
const DAMAGE_BYTES: usize = 9;

/// Where a page says how much of a record goes on in it.
const REST_OF_RECORD: std::ops::Range<usize> = 16..20;

/// Undamaged WAL, and what is in it.
struct Real {
    bytes: Vec<u8>,
    scanned: Scanned,
}

/// The kept files that a server wrote.
fn real() -> &'static [Real] {
    static REAL: OnceLock<Vec<Real>> = OnceLock::new();
    REAL.get_or_init(|| {
        let files = corpus::load("scanner").expect("the corpus can be read");
        let of_server = files.into_iter().filter(|(path, _)| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("real-"))
        });
        let read = |bytes: Vec<u8>| {
            let wal = Wal::of(&bytes);
            let scanned = scan(expected(&wal), wal.begin, [wal.bytes]);
            assert!(!scanned.records.is_empty(), "{:?}", scanned.stop);
            Real { scanned, bytes }
        };
        let real: Vec<Real> = of_server.map(|(_, bytes)| read(bytes)).collect();
        assert!(!real.is_empty(), "there is no real WAL in the corpus");
        real
    })
}

fn judge(input: &[u8]) -> String {
    let Some((which, damages)) = input.split_first() else { return "nothing".to_owned() };
    let real = &real()[usize::from(*which) % real().len()];
    let mut damaged = real.bytes.clone();
    for damage in damages.chunks_exact(DAMAGE_BYTES) {
        let number = |at: usize| {
            let bytes = damage[at..at + 4].try_into().expect("four bytes were sliced");
            u32::from_le_bytes(bytes) as usize
        };
        let (at, from) = (number(1) % damaged.len(), number(5) % real.bytes.len());
        harm(&mut damaged, damage[0], at, from, &real.bytes);
    }
    let wal = Wal::of(&real.bytes);
    let begin = wal.begin;
    let now = scan(expected(&wal), begin, [damaged.as_slice()]);
    // How much of the first page belongs to a record that began before it nothing can check, nor that a
    // whole record of another place is not the first one: it names any predecessor.
    let first_end = real.scanned.records[0].1.bytes_since(begin) as usize;
    let copied = damages.chunks_exact(DAMAGE_BYTES).any(|damage| matches!(damage[0] % 16, 10 | 11));
    let other_first = copied && damaged.get(..first_end) != real.bytes.get(..first_end);
    if other_first || damaged.get(REST_OF_RECORD) != real.bytes.get(REST_OF_RECORD) {
        return format!("{which} beginning {}", about(now.records.len()));
    }
    let invented = now.records.iter().find(|record| !real.scanned.records.contains(record));
    assert_eq!(invented.map(|(start, ..)| start), None, "a record that nobody wrote");
    let length = damaged.len().min(real.bytes.len());
    let different =
        (0..length).find(|at| damaged[*at] != real.bytes[*at] && matters(real, *at, damaged[*at]));
    let cut = (damaged.len() < real.bytes.len()).then_some(damaged.len());
    let Some(first) = different.or(cut) else {
        assert_eq!(now.end_lsn, real.scanned.end_lsn, "nothing that matters was changed");
        return "no damage".to_owned();
    };
    let touched = begin + first as u64;
    let (end_lsn, kept) = intact(real, touched);
    assert!(
        now.end_lsn <= end_lsn,
        "{touched} was damaged, WAL counts as good up to {} instead of {end_lsn}",
        now.end_lsn
    );
    let left = now.records.len();
    assert!(left >= kept, "{touched} was damaged, and only {left} of {kept} records are left");
    format!("{which} {} {}", about(kept), different.is_some())
}

/// One of the ways in which bytes come to harm.
fn harm(bytes: &mut Vec<u8>, kind: u8, at: usize, from: usize, real: &[u8]) {
    let sector = at - at % SECTOR_BYTES;
    let end = (sector + SECTOR_BYTES).min(bytes.len());
    match kind % 16 {
        // A sector that was never written, in a file that held zeroes.
        8 | 9 => bytes[sector..end].fill(0),
        // A sector of another place.
        10 | 11 => {
            let source = (from - from % SECTOR_BYTES).min(real.len() - (end - sector));
            let other = &real[source..source + (end - sector)];
            bytes[sector..end].copy_from_slice(other);
        }
        // The end of what was written.
        12 => bytes.truncate(at.max(1)),
        bit => bytes[at] ^= 1 << (bit % 8),
    }
}

/// Where the last record ends that lies before `touched`, and how many there are up to there.
fn intact(real: &Real, touched: Lsn) -> (Lsn, usize) {
    let records = &real.scanned.records;
    let kept = records.iter().take_while(|(_, end, _)| *end <= touched).count();
    (kept.checked_sub(1).map_or(records[0].0, |last| records[last].1), kept)
}

/// Whether it matters to anybody that the byte at `at` is `now`: not what aligns, not the part of a record
/// whose beginning is not there, not the unused fields of a page's header, not what lies behind the last
/// record.
fn matters(real: &Real, at: usize, now: u8) -> bool {
    let wal = Wal::of(&real.bytes);
    let lsn = wal.begin + at as u64;
    if lsn >= real.scanned.end_lsn {
        return false;
    }
    let in_page = (lsn.0 % PAGE_BYTES) as usize;
    let page_lsn = lsn - in_page as u64;
    let flags = real.bytes[at - in_page + 2];
    let continues = flags & 1 != 0;
    let header_bytes = if page_lsn.0.is_multiple_of(wal.size.bytes()) { 40 } else { 24 };
    match in_page {
        // That it may be removed, and that it overwrites where there is nothing to be overwritten.
        2 => (now ^ flags) & !(if continues { 4 } else { 4 | 8 }) != 0,
        16..20 => continues,
        20..24 => false,
        _ if in_page < header_bytes => true,
        _ => real.scanned.records.iter().any(|(start, _, bytes)| {
            *start <= lsn && lsn < layout::end_unaligned(*start, bytes.len(), wal.size)
        }),
    }
}

/// Everything that is known of the real WAL is told to the scanner.
fn expected(wal: &Wal<'_>) -> ScanOptions {
    let heads = wal.bytes.chunks(PAGE_BYTES as usize).filter_map(|page| page.first_chunk());
    let known = heads.filter_map(|head| PageHeader::identify(head).ok()?.segment).next();
    let system_id = known.map(|(system_id, _)| system_id);
    let page_magic = Some(u16::from_le_bytes([wal.bytes[0], wal.bytes[1]]));
    ScanOptions { system_id, page_magic, ..wal.strict() }
}
