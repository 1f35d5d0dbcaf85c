//! The loss receipt: which transactions a former active had that the cluster does not have.
//!
//! It is made from the kept WAL of a node that returned, before anything of that node is overwritten,
//! and says only what that WAL says. Whether a client was told of a commit is not in the WAL: a
//! receipt holds every acknowledged commit that was lost, and those that nobody was told of.

mod make;
mod service;
mod store;
mod words;

use serde::{Deserialize, Serialize};
use understudy_types::{ClusterId, DurabilityMode, Epoch, Lineage, Lsn, SystemId};

pub(crate) use make::{Facts, ends_between, make};
pub(crate) use service::ReceiptsService;
pub use store::{StoreError, Transactions, list, load, transactions};
pub(crate) use store::{load_kept, rounds, totals};
pub use words::render;

/// Version of the receipt's JSON form; grows when a reader of the old form would misread the new one.
pub const RECEIPT_VERSION: u32 = 1;
/// The receipt, in its round's directory.
pub(crate) const RECEIPT_FILE: &str = "receipt.json";
/// The same for people.
pub(crate) const TEXT_FILE: &str = "receipt.txt";
/// Every transaction, a JSON object a line.
pub(crate) const TRANSACTIONS_FILE: &str = "transactions.jsonl";
/// The kept WAL, beside them.
pub(crate) const KEPT_WAL: &str = "pg_wal";
/// What was kept, in the directory of the kept WAL.
pub(crate) const KEPT_FILE: &str = "kept.json";
/// Transactions that stand in the receipt itself; all of them are in the file beside it.
pub(crate) const SHOWN_MAX: usize = 1000;

/// What was kept of a data directory's own WAL: the WAL's positions, for people and for the receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) version: u32,
    pub(crate) node: String,
    pub(crate) timeline: u32,
    /// The fork; 0/0 where it is not known.
    pub(crate) from_lsn: Lsn,
    pub(crate) end_lsn: Lsn,
    pub(crate) wal_bytes: u64,
    pub(crate) recorded: Vec<Lineage>,
    pub(crate) history: Vec<Lineage>,
}

/// How a transaction of a receipt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LostKind {
    /// COMMIT.
    Commit,
    /// COMMIT PREPARED. If it was prepared before the fork, the cluster has it prepared still.
    CommitPrepared,
    /// PREPARE TRANSACTION: the cluster does not know it.
    Prepare,
    /// ROLLBACK PREPARED: as with COMMIT PREPARED, the cluster may have it prepared still.
    RollbackPrepared,
}

impl LostKind {
    /// Its changes were there for everybody.
    pub fn is_commit(self) -> bool {
        match self {
            LostKind::Commit | LostKind::CommitPrepared => true,
            LostKind::Prepare | LostKind::RollbackPrepared => false,
        }
    }
}

/// One transaction that the cluster does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostTransaction {
    /// Its number (`pg_current_xact_id()`, without the epoch of wraparounds).
    pub xid: u32,
    /// How it ended.
    pub kind: LostKind,
    /// When, by the clock of the machine that was lost: microseconds since the Unix epoch.
    pub unix_us: i64,
    /// The same, as RFC 3339.
    pub time: String,
    /// Where its record begins.
    pub lsn: Lsn,
    /// Where its record ends.
    pub end_lsn: Lsn,
    /// Its database's oid; `null` if no record of it names one.
    pub database: Option<u32>,
    /// That database's name at the node that took over; `null` if that knows none.
    pub database_name: Option<String>,
    /// The database's default tablespace, where the record names it.
    pub tablespace: Option<u32>,
    /// How many subtransactions it had.
    pub subtransactions: u32,
    /// The name of a prepared transaction; `null` if it was prepared before what was read.
    pub gid: Option<String>,
}

/// What one database lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseLoss {
    /// Its oid; `null` for the transactions that name none.
    pub oid: Option<u32>,
    /// Its name at the node that took over.
    pub name: Option<String>,
    /// Its lost commits.
    pub commits: u64,
}

/// What the cluster had agreed on about losses when the receipt was made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Promised {
    /// The dial.
    pub mode: DurabilityMode,
    /// The ceiling, where the mode has one.
    pub ceiling_seconds: Option<f64>,
}

/// How the kept WAL ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tail {
    /// With a complete record.
    Whole,
    /// With the beginning of a record that was never finished: no transaction can have ended in it.
    Torn,
    /// It cannot be read up to where it ended when it was kept: the receipt lacks what is behind.
    Unreadable,
}

/// The receipt, as it lies in `receipt.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// [`RECEIPT_VERSION`].
    pub version: u32,
    /// The name of its directory below `divergent/`.
    pub id: String,
    /// Which cluster.
    pub cluster: ClusterId,
    /// PostgreSQL's identifier of the cluster.
    pub system_id: SystemId,
    /// Whose WAL it is.
    pub node: String,
    /// When it was made, microseconds since the Unix epoch.
    pub made_unix_us: i64,
    /// The epoch that was lost; `null` if the node had not recorded it.
    pub lost_epoch: Option<Epoch>,
    /// The epoch under which the node came back.
    pub epoch: Epoch,
    /// The timeline that was left.
    pub timeline: u32,
    /// Where the cluster's history left it; `null` if that is not known. Then all transactions of the
    /// kept WAL are listed, and the cluster has most of them.
    pub fork_lsn: Option<Lsn>,
    /// Where the kept WAL ends.
    pub end_lsn: Lsn,
    /// How far it could be read.
    pub read_lsn: Lsn,
    /// How it ends.
    pub tail: Tail,
    /// The same in words.
    pub tail_words: String,
    /// WAL from the fork to the end.
    pub lost_wal_bytes: u64,
    /// Lost commits.
    pub commits: u64,
    /// Lost PREPAREs, and ROLLBACK PREPAREDs that the cluster did not hear of.
    pub others: u64,
    /// The first lost commit, microseconds since the Unix epoch.
    pub first_commit_unix_us: Option<i64>,
    /// The last one.
    pub last_commit_unix_us: Option<i64>,
    /// From the first lost commit to the last one.
    pub lost_seconds: Option<f64>,
    /// Commits by database, the largest loss first.
    pub databases: Vec<DatabaseLoss>,
    /// What was agreed on.
    pub promised: Option<Promised>,
    /// Records of transactions that were not understood to their end.
    pub unreadable_records: u64,
    /// The first transactions, in the order of the WAL.
    pub transactions: Vec<LostTransaction>,
    /// All of them, a JSON object a line: a file beside this one.
    pub transactions_file: String,
}

impl Receipt {
    /// What a list shows of it.
    pub fn summary(&self) -> ReceiptSummary {
        ReceiptSummary {
            id: self.id.clone(),
            node: self.node.clone(),
            made_unix_us: self.made_unix_us,
            lost_epoch: self.lost_epoch,
            fork_lsn: self.fork_lsn,
            end_lsn: self.end_lsn,
            lost_wal_bytes: self.lost_wal_bytes,
            commits: self.commits,
            lost_seconds: self.lost_seconds,
            tail: self.tail,
        }
    }
}

/// What a list shows of a receipt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceiptSummary {
    /// As in the receipt.
    pub id: String,
    /// As in the receipt.
    pub node: String,
    /// As in the receipt.
    pub made_unix_us: i64,
    /// As in the receipt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_epoch: Option<Epoch>,
    /// As in the receipt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork_lsn: Option<Lsn>,
    /// As in the receipt.
    pub end_lsn: Lsn,
    /// As in the receipt.
    pub lost_wal_bytes: u64,
    /// As in the receipt.
    pub commits: u64,
    /// As in the receipt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_seconds: Option<f64>,
    /// As in the receipt.
    pub tail: Tail,
}

/// Where a node keeps diverged WAL and its receipts.
pub fn divergent_dir(data_dir: &std::path::Path) -> std::path::PathBuf {
    data_dir.join("divergent")
}

/// RFC 3339 with microseconds; the number itself where no calendar has it.
fn moment(unix_us: i64) -> String {
    let time = jiff::Timestamp::from_microsecond(unix_us);
    time.map_or_else(|_| format!("{unix_us} us"), |time| format!("{time:.6}"))
}

#[cfg(test)]
mod tests;
