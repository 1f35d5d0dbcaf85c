//! Page headers: what is accepted, written again, is the same bytes.

use understudy_types::{Lsn, SegmentSize};
use understudy_wal::format::{
    LONG_HEADER_BYTES, PAGE_BYTES, PageFault, PageHeader, SHORT_HEADER_BYTES,
};

use super::Target;
use crate::allocation::within;
use crate::random::Random;

pub(super) const TARGET: Target =
    Target { name: "pages", about: "headers of WAL pages", words: &[], polish, judge };

/// An input is the page's header and, behind it, the position it is read at and the segment size.
const INPUT_BYTES: usize = LONG_HEADER_BYTES + 9;

/// That the header says its own position is too much for chance.
fn polish(input: &mut Vec<u8>, random: &mut Random) {
    input.resize(INPUT_BYTES, 0);
    if !random.once_in(4) {
        let position = &input[LONG_HEADER_BYTES..LONG_HEADER_BYTES + 8];
        let position = u64::from_le_bytes(position.try_into().expect("eight bytes were sliced"));
        let page = Lsn(position).align_down(PAGE_BYTES);
        input[8..16].copy_from_slice(&page.0.to_le_bytes());
    }
}

fn judge(input: &[u8]) -> String {
    let mut bytes = [0; INPUT_BYTES];
    let known = input.len().min(INPUT_BYTES);
    bytes[..known].copy_from_slice(&input[..known]);
    let (head, place) = bytes.split_at(LONG_HEADER_BYTES);
    let position = u64::from_le_bytes(place[..8].try_into().expect("eight bytes were sliced"));
    let page_lsn = Lsn(position).align_down(PAGE_BYTES);
    let size = SegmentSize::new(1 << (20 + place[8] % 11)).expect("a power of two in its range");
    let long = page_lsn.0.is_multiple_of(size.bytes());
    let head = &head[..if long { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES }];
    let parsed = within(0, 0, || PageHeader::parse(head, page_lsn, size));
    if let Ok(header) = &parsed {
        assert_eq!(header.page_lsn, page_lsn);
        assert_eq!(header.segment.is_some(), long);
        assert_eq!(written(header, head, size), head, "{header:?}");
    }
    let whole: &[u8; LONG_HEADER_BYTES] = bytes.first_chunk().expect("it is longer");
    let identified = PageHeader::identify(whole);
    if let Ok(header) = &identified {
        let (_, segment_bytes) = header.segment.expect("only a segment's first page identifies");
        assert!(header.page_lsn.0.is_multiple_of(u64::from(segment_bytes)));
    }
    format!("{} {}", word(&parsed), word(&identified))
}

/// The header again, from what was understood; the bits and bytes that nobody reads come from `given`.
fn written(header: &PageHeader, given: &[u8], size: SegmentSize) -> Vec<u8> {
    const REMOVABLE: u16 = 0x0004;
    let unread = u16::from_le_bytes([given[2], given[3]]) & REMOVABLE;
    let mut flags = unread | u16::from(header.continues_record);
    flags |= if header.segment.is_some() { 2 } else { 0 };
    flags |= if header.overwrites_record { 8 } else { 0 };
    let mut bytes = Vec::new();
    bytes.extend(header.magic.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(header.timeline.get().to_le_bytes());
    bytes.extend(header.page_lsn.0.to_le_bytes());
    bytes.extend(header.remaining_bytes.to_le_bytes());
    bytes.extend_from_slice(&given[20..24]);
    if let Some((system_id, segment_bytes)) = header.segment {
        assert_eq!(u64::from(segment_bytes), size.bytes());
        bytes.extend(system_id.0.to_le_bytes());
        bytes.extend(segment_bytes.to_le_bytes());
        bytes.extend((PAGE_BYTES as u32).to_le_bytes());
    }
    bytes
}

fn word(parsed: &Result<PageHeader, PageFault>) -> String {
    match parsed {
        Ok(header) => format!(
            "{:X} {} {} {}",
            header.magic,
            header.continues_record,
            header.overwrites_record,
            header.segment.is_some()
        ),
        Err(PageFault::Zeroes) => "zeroes".to_owned(),
        Err(PageFault::Magic(_)) => "magic".to_owned(),
        Err(PageFault::OtherMagic { .. } | PageFault::BeyondAll) => {
            panic!("only a scanner knows what is before and behind it")
        }
        Err(PageFault::Flags(_)) => "flags".to_owned(),
        Err(PageFault::Address(_)) => "address".to_owned(),
        Err(PageFault::Timeline { .. }) => "timeline".to_owned(),
        Err(PageFault::System { .. }) => "system".to_owned(),
        Err(PageFault::Geometry { .. }) => "geometry".to_owned(),
        Err(PageFault::Continuation { .. }) => "continuation".to_owned(),
    }
}
