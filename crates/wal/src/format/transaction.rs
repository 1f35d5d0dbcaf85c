//! Reads the records in which transactions end (resource manager `Transaction`): COMMIT, ABORT,
//! PREPARE and their two-phase forms (`xl_xact_parsed_commit`, `xl_xact_prepare`).
//!
//! The parts of a record come in a fixed order, each announced by a bit of `xinfo`. A record whose
//! end is missing gives what stands before.

use super::fields::Fields;
use super::version::WalVersion;

/// `RM_XACT_ID`.
pub(super) const TRANSACTION_MANAGER: u8 = 1;

const OPERATION: u8 = 0x70;
const HAS_INFO: u8 = 0x80;

const HAS_DATABASE: u32 = 1 << 0;
const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
const HAS_RELATIONS: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWO_PHASE: u32 = 1 << 4;
const HAS_GID: u32 = 1 << 7;
const HAS_DROPPED_STATISTICS: u32 = 1 << 8;

const RELATION_BYTES: usize = 12;
const INVALIDATION_BYTES: usize = 16;
/// The longest name of a prepared transaction (`GIDSIZE`).
const GID_BYTES_MAX: usize = 200;

/// Between the Unix epoch and PostgreSQL's, the first of January 2000, in microseconds.
const POSTGRES_EPOCH_UNIX_US: i64 = 946_684_800_000_000;

/// How a transaction ended, or was kept for its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TransactionEnd {
    /// COMMIT.
    Commit,
    /// COMMIT PREPARED.
    CommitPrepared,
    /// PREPARE TRANSACTION: it is neither committed nor rolled back yet.
    Prepare,
    /// ROLLBACK, or an error.
    Rollback,
    /// ROLLBACK PREPARED.
    RollbackPrepared,
}

impl TransactionEnd {
    /// Its changes are there for everybody from here on.
    pub fn is_commit(self) -> bool {
        match self {
            TransactionEnd::Commit | TransactionEnd::CommitPrepared => true,
            TransactionEnd::Prepare
            | TransactionEnd::Rollback
            | TransactionEnd::RollbackPrepared => false,
        }
    }
}

/// What the main data of a transaction's record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) end: TransactionEnd,
    /// Microseconds since the Unix epoch.
    pub(super) unix_us: i64,
    /// The session's database and its tablespace.
    pub(super) database: Option<(u32, Option<u32>)>,
    /// How many subtransactions it has.
    pub(super) subtransaction_count: u32,
    pub(super) subtransactions: Vec<u32>,
    /// The transaction, where it is not the one in the record's header.
    pub(super) two_phase_xid: Option<u32>,
    pub(super) gid: Option<String>,
    /// All of the record was understood.
    pub(super) whole: bool,
}

/// Reads the main data of a record with these flags (`xl_info`). `None` when no transaction ends or
/// is prepared there; `Err` when not even its time can be read.
pub(super) fn parse(info: u8, data: &[u8], version: WalVersion) -> Option<Result<Parsed, ()>> {
    let end = match info & OPERATION {
        0x00 => TransactionEnd::Commit,
        0x10 => return Some(parse_prepare(data, version).ok_or(())),
        0x20 => TransactionEnd::Rollback,
        0x30 => TransactionEnd::CommitPrepared,
        0x40 => TransactionEnd::RollbackPrepared,
        // Assignments of subtransactions, and invalidations.
        _ => return None,
    };
    let mut fields = Fields(data);
    let Some(time) = fields.i64() else { return Some(Err(())) };
    let mut parsed = Parsed::new(end, time);
    parsed.whole = parse_parts(&mut parsed, fields, info, version).is_some();
    Some(Ok(parsed))
}

impl Parsed {
    fn new(end: TransactionEnd, postgres_us: i64) -> Parsed {
        Parsed {
            end,
            unix_us: postgres_us.saturating_add(POSTGRES_EPOCH_UNIX_US),
            database: None,
            subtransaction_count: 0,
            subtransactions: Vec::new(),
            two_phase_xid: None,
            gid: None,
            whole: false,
        }
    }
}

/// What `xinfo` announces, in its order; `None` where the record ends too early.
fn parse_parts(
    parsed: &mut Parsed,
    mut fields: Fields<'_>,
    info: u8,
    version: WalVersion,
) -> Option<()> {
    let xinfo = if info & HAS_INFO != 0 { fields.u32()? } else { 0 };
    let has = |part: u32| xinfo & part != 0;
    if has(HAS_DATABASE) {
        parsed.database = Some((fields.u32()?, Some(fields.u32()?)));
    }
    if has(HAS_SUBTRANSACTIONS) {
        let mut counted = fields;
        parsed.subtransaction_count = counted.u32()?;
        let (_, xids) = fields.counted(4)?;
        let number = |xid: &[u8]| Fields(xid).u32();
        parsed.subtransactions = xids.chunks_exact(4).filter_map(number).collect();
    }
    if has(HAS_RELATIONS) {
        fields.counted(RELATION_BYTES)?;
    }
    if has(HAS_DROPPED_STATISTICS) {
        fields.counted(version.dropped_statistic_bytes()?)?;
    }
    if has(HAS_INVALIDATIONS) {
        fields.counted(INVALIDATION_BYTES)?;
    }
    if has(HAS_TWO_PHASE) {
        parsed.two_phase_xid = Some(fields.u32()?);
    }
    if has(HAS_GID) {
        parsed.gid = Some(gid(fields.c_string()?));
    }
    Some(())
}

/// `xl_xact_prepare` (the head of a two-phase file), and the name behind it.
fn parse_prepare(data: &[u8], version: WalVersion) -> Option<Parsed> {
    let mut fields = Fields(data);
    let _magic_and_length = fields.take(8)?;
    let xid = fields.u32()?;
    let database = fields.u32()?;
    let mut parsed = Parsed::new(TransactionEnd::Prepare, fields.i64()?);
    parsed.two_phase_xid = Some(xid);
    parsed.database = Some((database, None));
    parsed.whole = (|| {
        let _owner = fields.u32()?;
        parsed.subtransaction_count = fields.u32()?;
        // Relations and statistics to drop, at commit and at abort; invalidations.
        fields.take(if version == WalVersion::V14 { 12 } else { 20 })?;
        let _drops_init_file = fields.u8()?;
        fields.take(1)?;
        let gid_bytes = usize::from(fields.u16()?);
        let _origin_and_its_time = fields.take(16)?;
        // The head's length is a multiple of eight in every version, so nothing is between.
        let name = fields.take(gid_bytes)?;
        parsed.gid = Some(gid(name.strip_suffix(&[0]).unwrap_or(name)));
        let aligned = gid_bytes.next_multiple_of(8) - gid_bytes;
        fields.take(aligned)?;
        let count = usize::try_from(parsed.subtransaction_count).ok()?;
        let xids = fields.take(count.checked_mul(4)?)?;
        let number = |xid: &[u8]| Fields(xid).u32();
        parsed.subtransactions = xids.chunks_exact(4).filter_map(number).collect();
        Some(())
    })()
    .is_some();
    Some(parsed)
}

fn gid(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(GID_BYTES_MAX)]).into_owned()
}
