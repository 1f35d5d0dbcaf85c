//! Reads the header of one WAL record (`XLogRecord`) and knows how its checksum is made.
//!
//! It does not look into a record's data.

use understudy_types::Lsn;

/// The size of a record's header (`SizeOfXLogRecord`).
pub const RECORD_HEADER_BYTES: usize = 24;
/// The longest record that is believed: PostgreSQL 16 limits them to 1020 MiB, older versions to what
/// can be allocated, 1 GiB.
pub const RECORD_BYTES_MAX: u32 = 1 << 30;
/// Where the checksum stands in the header; what is before it is covered by it.
const CHECKSUM_OFFSET: usize = 20;

const XLOG_RESOURCE_MANAGER: u8 = 0;
const XLOG_SWITCH: u8 = 0x40;
const INFO_OF_RESOURCE_MANAGER: u8 = 0xF0;

/// What a WAL record says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// `xl_tot_len`: header and data, without alignment and page headers.
    pub total_bytes: u32,
    /// `xl_xid`: the transaction, 0 for none.
    pub xid: u32,
    /// `xl_prev`: the start of the record before it.
    pub previous_lsn: Lsn,
    /// `xl_info`.
    pub info: u8,
    /// `xl_rmid`: the resource manager.
    pub resource_manager: u8,
    /// `xl_crc`: CRC-32C of the data, then of the header before this field.
    pub checksum: u32,
}

impl RecordHeader {
    /// Reads a header; any 24 bytes are one.
    pub fn parse(bytes: &[u8; RECORD_HEADER_BYTES]) -> RecordHeader {
        let u32_at = |at: usize| {
            u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were sliced"))
        };
        let previous = bytes[8..16].try_into().expect("eight bytes were sliced");
        RecordHeader {
            total_bytes: u32_at(0),
            xid: u32_at(4),
            previous_lsn: Lsn(u64::from_le_bytes(previous)),
            info: bytes[16],
            resource_manager: bytes[17],
            checksum: u32_at(CHECKSUM_OFFSET),
        }
    }

    /// `pg_switch_wal` or an archive timeout: the rest of the segment is zero and belongs to it.
    pub fn is_segment_switch(&self) -> bool {
        self.resource_manager == XLOG_RESOURCE_MANAGER
            && self.info & INFO_OF_RESOURCE_MANAGER == XLOG_SWITCH
    }
}

/// The checksum that a record must carry, from the CRC-32C of its data.
pub(super) fn finish_checksum(data_crc: u32, header: &[u8; RECORD_HEADER_BYTES]) -> u32 {
    crc32c::crc32c_append(data_crc, &header[..CHECKSUM_OFFSET])
}
