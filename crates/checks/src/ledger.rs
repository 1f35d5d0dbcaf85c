//! The ledger: every write that a client attempted, and what the client was told about it.
//!
//! It records; it never judges, and it never turns an unknown outcome into a known one.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// A row's identity, unique over all tenants and for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RowId(pub u64);

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A tenant's number; each has a database of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Tenant(pub u32);

/// Where a write stands in its ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(usize);

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The server confirmed the commit, without a warning.
    Acknowledged,
    /// The server refused the statement: it is certain that nothing was committed.
    Failed,
    /// Neither: no answer, a broken connection, a time-out, or an answer with a warning. The row may
    /// be there or not, and both are right.
    Unknown,
}

/// One attempted write: the insert of a row (revision 0) or a change that makes it `revision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Write {
    /// Which row.
    pub row: RowId,
    /// In whose database.
    pub tenant: Tenant,
    /// 0 for the insert, then growing by one with every change of the row.
    pub revision: u32,
    /// The connection it was sent over. A connection never spans two servers, and sends one write
    /// after the other.
    pub connection: u64,
    /// When it was sent, since the ledger's beginning, on a monotonic clock.
    pub sent_at: Duration,
    /// When its outcome was known; absent while it is under way.
    pub ended_at: Option<Duration>,
    /// What the client was told; [`Outcome::Unknown`] while it is under way.
    pub outcome: Outcome,
    /// The transaction's number (xid), if the client was told.
    pub transaction: Option<u32>,
}

/// The ledger holds as many writes as it was made for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record a write: the ledger holds {capacity_count} writes, its bound")]
pub struct LedgerFull {
    /// The bound.
    pub capacity_count: usize,
}

/// An outcome was reported for a write that had one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record the outcome {outcome:?} of row {row}: it has ended before")]
pub struct AlreadyFinished {
    /// Which row.
    pub row: RowId,
    /// The outcome that came too late.
    pub outcome: Outcome,
}

/// How many writes ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Inserts and changes that were confirmed.
    pub acknowledged: u64,
    /// Inserts alone that were confirmed: rows that must be there.
    pub acknowledged_rows: u64,
    /// Certainly refused.
    pub failed: u64,
    /// Without a certain outcome, those under way included.
    pub unknown: u64,
}

/// All writes that were attempted, in the order in which they were sent.
///
/// Bounded: at its capacity [`Ledger::begin`] refuses, and the writer has to stop, because a write
/// that nobody remembers would weaken every verdict.
#[derive(Debug)]
pub struct Ledger {
    writes: Vec<Write>,
    capacity_count: usize,
}

impl Ledger {
    /// An empty ledger for at most `capacity_count` writes.
    pub fn new(capacity_count: usize) -> Ledger {
        Ledger { writes: Vec::new(), capacity_count }
    }

    /// Notes a write before it is sent, so that a client that dies has not forgotten it.
    ///
    /// # Errors
    /// The ledger is at its bound; the write must not be sent.
    pub fn begin(
        &mut self,
        row: RowId,
        tenant: Tenant,
        revision: u32,
        connection: u64,
        sent_at: Duration,
    ) -> Result<WriteId, LedgerFull> {
        if self.writes.len() >= self.capacity_count {
            return Err(LedgerFull { capacity_count: self.capacity_count });
        }
        self.writes.push(Write {
            row,
            tenant,
            revision,
            connection,
            sent_at,
            ended_at: None,
            outcome: Outcome::Unknown,
            transaction: None,
        });
        Ok(WriteId(self.writes.len() - 1))
    }

    /// Notes what the client was told, with the transaction's number if that was said too.
    ///
    /// # Errors
    /// The write has an outcome already.
    pub fn finish(
        &mut self,
        write: WriteId,
        outcome: Outcome,
        transaction: Option<u32>,
        ended_at: Duration,
    ) -> Result<(), AlreadyFinished> {
        let write = &mut self.writes[write.0];
        if write.ended_at.is_some() {
            return Err(AlreadyFinished { row: write.row, outcome });
        }
        write.outcome = outcome;
        write.transaction = transaction;
        write.ended_at = Some(ended_at);
        Ok(())
    }

    /// Every write, in the order in which they were sent.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// How many writes ended how; looks at every write.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for write in &self.writes {
            match write.outcome {
                Outcome::Acknowledged => {
                    counts.acknowledged += 1;
                    counts.acknowledged_rows += u64::from(write.revision == 0);
                }
                Outcome::Failed => counts.failed += 1,
                Outcome::Unknown => counts.unknown += 1,
            }
        }
        counts
    }
}

/// A row as it was read back from the surviving server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SurvivingRow {
    /// In whose database it was found.
    pub tenant: Tenant,
    /// Which row.
    pub row: RowId,
    /// The revision it is at.
    pub revision: u32,
}
