//! Reads the header of one WAL page (`XLogPageHeaderData`, `XLogLongPageHeaderData`).
//!
//! It says what the bytes mean and whether they can be the page at a position; what may follow what
//! is the scanner's business.

use understudy_types::{Lsn, SegmentSize, SystemId, Timeline};

use super::version::WalVersion;

/// The size of a WAL page (`XLOG_BLCKSZ`): 8 KiB unless PostgreSQL was compiled otherwise.
pub const PAGE_BYTES: u64 = 8192;
/// The header of every page but a segment's first (`SizeOfXLogShortPHD`).
pub const SHORT_HEADER_BYTES: usize = 24;
/// The header of a segment's first page (`SizeOfXLogLongPHD`).
pub const LONG_HEADER_BYTES: usize = 40;

const FIRST_IS_CONTRECORD: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000F;

/// What a WAL page says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// `xlp_magic`: which major version wrote it.
    pub magic: u16,
    /// `xlp_tli`: the timeline it was begun on.
    pub timeline: Timeline,
    /// `xlp_pageaddr`: its own position.
    pub page_lsn: Lsn,
    /// Its first bytes are the rest of a record that began before it.
    pub continues_record: bool,
    /// The record that began before it was never finished and is replaced by one on this page.
    pub overwrites_record: bool,
    /// `xlp_rem_len`: bytes of the continued record that are still to come, this page included.
    pub remaining_bytes: u32,
    /// Only on a segment's first page: system identifier and segment size in bytes.
    pub segment: Option<(SystemId, u32)>,
}

/// Why bytes cannot be the header of the page at a position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageFault {
    /// The header is all zero: nothing was ever written here.
    #[error("page was never written")]
    Zeroes,
    /// Not PostgreSQL's WAL, or of a version that is not accepted.
    #[error("page magic {0:#06X} is none of PostgreSQL 14 to 18")]
    Magic(u16),
    /// Another version's than the pages before it, which no cluster's WAL is.
    #[error("page magic {found:#06X} is not {expected:#06X}, as before it")]
    OtherMagic {
        /// What the page says.
        found: u16,
        /// What the pages before it say.
        expected: u16,
    },
    /// A flag that no accepted version sets, or a long header where a short one belongs.
    #[error("page flags {0:#06X} are impossible here")]
    Flags(u16),
    /// A page of another position, as in a recycled segment.
    #[error("page says that it is the one at {0}")]
    Address(Lsn),
    /// The page's timeline cannot be at this position.
    #[error("page is of timeline {found}, expected {expected}")]
    Timeline {
        /// What the page says.
        found: u32,
        /// The newest timeline that is possible here.
        expected: Timeline,
    },
    /// The last page of all, behind which there is no position: nobody has ever written so much.
    #[error("page reaches to the end of all positions")]
    BeyondAll,
    /// The WAL of another cluster.
    #[error("page is of system {found}, expected {expected}")]
    System {
        /// What the page says.
        found: SystemId,
        /// Whose WAL is read.
        expected: SystemId,
    },
    /// Another segment or page size than the one it is read with.
    #[error("page belongs to segments of {segment_bytes} bytes with pages of {page_bytes} bytes")]
    Geometry {
        /// Segment size that the page states.
        segment_bytes: u32,
        /// Page size that the page states.
        page_bytes: u32,
    },
    /// The page goes on with a record that it should not, or not with the one that it should.
    #[error("page continues {found:?} bytes of a record, expected {expected:?}")]
    Continuation {
        /// Bytes that the page says are left, `None` if it continues nothing.
        found: Option<u32>,
        /// Bytes that must be left, `None` if a record has to begin here.
        expected: Option<u32>,
    },
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes were sliced"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were sliced"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were sliced"))
}

/// How long the header of the page at `page_lsn` is.
pub(super) fn header_bytes(page_lsn: Lsn, size: SegmentSize) -> usize {
    if page_lsn.0.is_multiple_of(size.bytes()) { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES }
}

impl PageHeader {
    /// Reads the header of the page at `page_lsn`; `bytes` must hold `header_bytes` of it.
    ///
    /// WAL is in the byte order of the machine that wrote it; little-endian is assumed, and anything
    /// else fails by its magic.
    ///
    /// # Errors
    /// When the bytes cannot be the header of that page.
    pub fn parse(bytes: &[u8], page_lsn: Lsn, size: SegmentSize) -> Result<PageHeader, PageFault> {
        let magic = u16_at(bytes, 0);
        let flags = u16_at(bytes, 2);
        let first_of_segment = page_lsn.0.is_multiple_of(size.bytes());
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(PageFault::Zeroes);
        }
        if WalVersion::from_magic(magic).is_none() {
            return Err(PageFault::Magic(magic));
        }
        let both = FIRST_IS_CONTRECORD | FIRST_IS_OVERWRITE_CONTRECORD;
        let long = flags & LONG_HEADER != 0;
        if flags & !ALL_FLAGS != 0 || long != first_of_segment || flags & both == both {
            return Err(PageFault::Flags(flags));
        }
        let stated_lsn = Lsn(u64_at(bytes, 8));
        if stated_lsn != page_lsn {
            return Err(PageFault::Address(stated_lsn));
        }
        let timeline = Timeline::new(u32_at(bytes, 4))
            .ok_or(PageFault::Timeline { found: 0, expected: Timeline::FIRST })?;
        let segment = long.then(|| (SystemId(u64_at(bytes, 24)), u32_at(bytes, 32)));
        if let Some((_, segment_bytes)) = segment {
            let page_bytes = u32_at(bytes, 36);
            if u64::from(segment_bytes) != size.bytes() || u64::from(page_bytes) != PAGE_BYTES {
                return Err(PageFault::Geometry { segment_bytes, page_bytes });
            }
        }
        Ok(PageHeader {
            magic,
            timeline,
            page_lsn,
            continues_record: flags & FIRST_IS_CONTRECORD != 0,
            overwrites_record: flags & FIRST_IS_OVERWRITE_CONTRECORD != 0,
            remaining_bytes: u32_at(bytes, 16),
            segment,
        })
    }

    /// What a segment's first page says about system and segment size, before either is known.
    ///
    /// # Errors
    /// When the bytes cannot be the first page of a segment.
    pub fn identify(bytes: &[u8; LONG_HEADER_BYTES]) -> Result<PageHeader, PageFault> {
        let segment_bytes = u32_at(bytes, 32);
        let page_bytes = u32_at(bytes, 36);
        let size = SegmentSize::new(segment_bytes)
            .ok_or(PageFault::Geometry { segment_bytes, page_bytes })?;
        // A page from the middle of a segment has content where the size was looked for.
        let stated_lsn = Lsn(u64_at(bytes, 8));
        if !stated_lsn.0.is_multiple_of(size.bytes()) {
            return Err(PageFault::Address(stated_lsn));
        }
        PageHeader::parse(bytes, stated_lsn, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_from_the_middle_of_a_segment_does_not_identify_it() {
        // A short header, and content behind it that happens to be a segment size and a page size.
        let mut bytes = [0; LONG_HEADER_BYTES];
        bytes[..2].copy_from_slice(&0xD110_u16.to_le_bytes());
        bytes[4] = 1;
        bytes[8..16].copy_from_slice(&(3 * PAGE_BYTES).to_le_bytes());
        bytes[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        bytes[36..].copy_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
        let stated_lsn = Lsn(3 * PAGE_BYTES);
        assert_eq!(PageHeader::identify(&bytes), Err(PageFault::Address(stated_lsn)));
    }
}
