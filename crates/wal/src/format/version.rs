//! Which major version wrote a WAL page, and what differs between the forms of their records.
//!
//! Only what this crate reads is told apart here. A page of any other version is refused by its magic
//! before a record of it is looked at.

/// A major version whose WAL is understood: 14 to 18. It is tested with 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalVersion {
    /// PostgreSQL 14: one bit says that a page image is compressed; nothing on dropped statistics.
    V14,
    /// PostgreSQL 15 to 17: one bit for each compression; 12 bytes for each dropped statistic.
    V15To17,
    /// PostgreSQL 18: 16 bytes for each dropped statistic.
    V18,
}

/// The page magics (`XLOG_PAGE_MAGIC`) of the major versions.
const MAGICS: [(u16, WalVersion); 5] = [
    (0xD10D, WalVersion::V14),
    (0xD110, WalVersion::V15To17),
    (0xD113, WalVersion::V15To17),
    (0xD116, WalVersion::V15To17),
    (0xD118, WalVersion::V18),
];

impl WalVersion {
    /// The version that writes pages with this magic; `None` if it is none that is understood.
    pub fn from_magic(magic: u16) -> Option<WalVersion> {
        MAGICS.iter().find(|(known, _)| *known == magic).map(|(_, version)| *version)
    }

    /// The bits of `bimg_info` that say that an image is compressed (`BKPIMAGE_COMPRESSED`).
    pub(super) fn compressed_bits(self) -> u8 {
        match self {
            WalVersion::V14 => 0x02,
            WalVersion::V15To17 | WalVersion::V18 => 0x04 | 0x08 | 0x10,
        }
    }

    /// Bytes of one dropped statistic (`xl_xact_stats_item`); `None` where there are none.
    pub(super) fn dropped_statistic_bytes(self) -> Option<usize> {
        match self {
            WalVersion::V14 => None,
            WalVersion::V15To17 => Some(12),
            WalVersion::V18 => Some(16),
        }
    }
}
