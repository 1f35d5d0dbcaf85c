//! Reads the headers at the front of a record's body (`XLogRecordBlockHeader` and what may stand
//! beside them): which databases its blocks are in, and where its main data lies.
//!
//! Page images and data are never looked at. Bytes that cannot be headers are an answer, not a panic.

use super::fields::Fields;
use super::record::RECORD_HEADER_BYTES;
use super::version::WalVersion;

/// No record has longer headers: 33 blocks of at most 27 bytes, origin, top transaction, main data.
pub(super) const HEADERS_BYTES_MAX: usize = 1024;

const BLOCK_ID_MAX: u8 = 32;
const MAIN_DATA_SHORT: u8 = 255;
const MAIN_DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOP_TRANSACTION: u8 = 252;
const HAS_IMAGE: u8 = 0x10;
const SAME_RELATION: u8 = 0x80;
const IMAGE_HAS_HOLE: u8 = 0x01;

/// What the headers of a record say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BodyHeaders {
    /// The first database, other than the shared one, that a block of it is in.
    pub(super) database: Option<u32>,
    /// The transaction that a subtransaction's record belongs to (only with `wal_level = logical`).
    pub(super) top_xid: Option<u32>,
    /// Where the main data begins, counted from the record's first byte.
    pub(super) main_data_offset: usize,
}

/// Reads the headers from the first bytes of a record's body; `total_bytes` is the whole record.
/// `None` when they are cut, or are no headers.
pub(super) fn read_headers(
    body: &[u8],
    total_bytes: usize,
    version: WalVersion,
) -> Option<BodyHeaders> {
    let body_bytes = total_bytes.checked_sub(RECORD_HEADER_BYTES)?;
    let mut fields = Fields(&body[..body.len().min(body_bytes)]);
    let given = fields.0.len();
    let mut found = BodyHeaders::default();
    let mut data_bytes: usize = 0;
    let mut main_bytes = 0;
    // As PostgreSQL does it: headers go on until what is left is what they announced.
    while body_bytes - (given - fields.0.len()) > data_bytes {
        match fields.u8()? {
            MAIN_DATA_SHORT => {
                main_bytes = usize::from(fields.u8()?);
                data_bytes = data_bytes.checked_add(main_bytes)?;
                break;
            }
            MAIN_DATA_LONG => {
                main_bytes = usize::try_from(fields.u32()?).ok()?;
                data_bytes = data_bytes.checked_add(main_bytes)?;
                break;
            }
            ORIGIN => _ = fields.u16()?,
            TOP_TRANSACTION => found.top_xid = Some(fields.u32()?),
            0..=BLOCK_ID_MAX => {
                let (bytes, database) = read_block(&mut fields, version)?;
                data_bytes = data_bytes.checked_add(bytes)?;
                found.database = found.database.or(database);
            }
            _ => return None,
        }
    }
    let left = body_bytes - (given - fields.0.len());
    found.main_data_offset = total_bytes.checked_sub(main_bytes)?;
    (left == data_bytes).then_some(found)
}

/// The rest of a block's header: bytes of image and data, and its database unless that is the shared
/// one or stands in the header before it.
fn read_block(fields: &mut Fields<'_>, version: WalVersion) -> Option<(usize, Option<u32>)> {
    let flags = fields.u8()?;
    let mut bytes = usize::from(fields.u16()?);
    if flags & HAS_IMAGE != 0 {
        bytes += usize::from(fields.u16()?);
        let _hole_offset = fields.u16()?;
        let image = fields.u8()?;
        if image & version.compressed_bits() != 0 && image & IMAGE_HAS_HOLE != 0 {
            let _hole_bytes = fields.u16()?;
        }
    }
    let mut database = None;
    if flags & SAME_RELATION == 0 {
        let _tablespace = fields.u32()?;
        database = Some(fields.u32()?).filter(|database| *database != 0);
        let _relation = fields.u32()?;
    }
    let _block = fields.u32()?;
    Some((bytes, database))
}
