//! The invariants over a ledger and the rows that were read back: one function each.
//!
//! They judge and count; how a violation is answered is the caller's business.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::{Ledger, Outcome, RowId, SurvivingRow, Tenant, Write};

/// An invariant does not hold, with every row that shows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Confirmed to the client, and not there.
    #[error("acknowledged rows were lost: {}", Sample(.rows))]
    Lost {
        /// Distinct rows, ascending.
        rows: Vec<RowId>,
    },
    /// There, and nobody ever wrote them (or not in that database, or not that revision).
    #[error("rows appeared that nobody attempted to write: {}", Sample(.rows))]
    NeverAttempted {
        /// Distinct rows, ascending.
        rows: Vec<RowId>,
    },
    /// There, although the server had refused every write that could have made them so.
    #[error("rows appeared whose writes had all failed: {}", Sample(.rows))]
    FailedAndThere {
        /// Distinct rows, ascending.
        rows: Vec<RowId>,
    },
    /// At a revision before one that was confirmed.
    #[error("rows went back behind an acknowledged revision: {}", Sample(.rows))]
    WentBack {
        /// Distinct rows, ascending.
        rows: Vec<RowId>,
    },
    /// Found more than once.
    #[error("rows appeared more than once: {}", Sample(.rows))]
    Twice {
        /// Distinct rows, ascending.
        rows: Vec<RowId>,
    },
    /// Lost, and in no loss receipt.
    #[error("acknowledged rows were lost and no receipt names them: {}", Sample(.rows))]
    LostWithoutReceipt {
        /// Distinct rows, ascending.
        rows: Vec<RowId>,
    },
    /// Named as lost by a receipt, and there.
    #[error("a receipt names acknowledged rows that are there: {}", Sample(.rows))]
    ReceiptedAndThere {
        /// Distinct rows, ascending.
        rows: Vec<RowId>,
    },
    /// Lost, although a later write over the same connection survived: a hole in the log.
    #[error("rows were lost before later ones of the same connection: {}", Sample(.rows))]
    Hole {
        /// Distinct rows, ascending.
        rows: Vec<RowId>,
    },
}

/// Prints how many, and the first few.
struct Sample<'a>(&'a Vec<RowId>);

impl fmt::Display for Sample<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", self.0.len())?;
        for (index, row) in self.0.iter().take(5).enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{row}")?;
        }
        f.write_str(if self.0.len() > 5 { ", …)" } else { ")" })
    }
}

type Found = BTreeMap<(Tenant, RowId), u32>;

/// The highest revision of each row; duplicates are judged by a function of their own.
fn found(rows: &[SurvivingRow]) -> Found {
    let mut found = Found::new();
    for row in rows {
        let revision = found.entry((row.tenant, row.row)).or_insert(row.revision);
        *revision = (*revision).max(row.revision);
    }
    found
}

fn survived(found: &Found, write: &Write) -> bool {
    found.get(&(write.tenant, write.row)).is_some_and(|revision| *revision >= write.revision)
}

/// No rows are no violation.
pub(crate) fn verdict(
    mut rows: Vec<RowId>,
    violation: fn(Vec<RowId>) -> Violation,
) -> Result<(), Violation> {
    rows.sort_unstable();
    rows.dedup();
    if rows.is_empty() { Ok(()) } else { Err(violation(rows)) }
}

/// Every acknowledged write whose effect is not there, in the order in which they were sent.
pub fn lost_writes(ledger: &Ledger, rows: &[SurvivingRow]) -> Vec<Write> {
    let found = found(rows);
    let acknowledged = ledger.writes().iter().filter(|w| w.outcome == Outcome::Acknowledged);
    acknowledged.filter(|write| !survived(&found, write)).copied().collect()
}

/// What was confirmed to a client is there, in its tenant's database (I3, I5).
///
/// # Errors
/// [`Violation::Lost`] with each row whose insert or confirmed change is missing.
pub fn every_acknowledged_row_survived(
    ledger: &Ledger,
    rows: &[SurvivingRow],
) -> Result<(), Violation> {
    let lost = lost_writes(ledger, rows).iter().map(|write| write.row).collect();
    verdict(lost, |rows| Violation::Lost { rows })
}

/// Nothing is there that no client ever tried to write, at that revision, for that tenant.
///
/// # Errors
/// [`Violation::NeverAttempted`].
pub fn no_row_was_never_attempted(ledger: &Ledger, rows: &[SurvivingRow]) -> Result<(), Violation> {
    let mut attempted = Found::new();
    for write in ledger.writes() {
        let revision = attempted.entry((write.tenant, write.row)).or_insert(write.revision);
        *revision = (*revision).max(write.revision);
    }
    let unexpected = rows.iter().filter(|row| {
        attempted.get(&(row.tenant, row.row)).is_none_or(|revision| row.revision > *revision)
    });
    verdict(unexpected.map(|row| row.row).collect(), |rows| Violation::NeverAttempted { rows })
}

/// A row is there only if some write of exactly that revision may have succeeded.
///
/// # Errors
/// [`Violation::FailedAndThere`]: the server said no, and did it.
pub fn nothing_that_failed_for_certain_is_there(
    ledger: &Ledger,
    rows: &[SurvivingRow],
) -> Result<(), Violation> {
    let mut possible: BTreeMap<(Tenant, RowId, u32), bool> = BTreeMap::new();
    for write in ledger.writes() {
        let entry = possible.entry((write.tenant, write.row, write.revision)).or_default();
        *entry |= write.outcome != Outcome::Failed;
    }
    let wrong = rows
        .iter()
        .filter(|row| possible.get(&(row.tenant, row.row, row.revision)) == Some(&false));
    verdict(wrong.map(|row| row.row).collect(), |rows| Violation::FailedAndThere { rows })
}

/// Order per key: a row that is there is there once, at its last acknowledged revision or a later one.
///
/// # Errors
/// [`Violation::Twice`] or [`Violation::WentBack`]. A row that is missing altogether is
/// [`every_acknowledged_row_survived`]'s to find.
pub fn no_row_went_back_or_appeared_twice(
    ledger: &Ledger,
    rows: &[SurvivingRow],
) -> Result<(), Violation> {
    let mut ids: Vec<RowId> = rows.iter().map(|row| row.row).collect();
    ids.sort_unstable();
    let twice = ids.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    verdict(twice, |rows| Violation::Twice { rows })?;

    let found = found(rows);
    let back = lost_writes(ledger, rows)
        .into_iter()
        .filter(|write| found.contains_key(&(write.tenant, write.row)))
        .map(|write| write.row)
        .collect();
    verdict(back, |rows| Violation::WentBack { rows })
}

/// Losing acknowledged writes, where policy allows it, takes the end of the log and leaves no hole: of
/// one connection, a write that was acknowledged before another one was sent is not lost when that
/// other one survived.
///
/// # Errors
/// [`Violation::Hole`] with each lost row before a surviving one.
pub fn each_connection_lost_only_its_last_writes(
    ledger: &Ledger,
    rows: &[SurvivingRow],
) -> Result<(), Violation> {
    let found = found(rows);
    // A row's surviving revision proves only the write that made it: an earlier change of the same
    // row is overtaken by it, so the comparison is with exactly that revision.
    let mut last_survivor: BTreeMap<u64, Duration> = BTreeMap::new();
    for write in ledger.writes() {
        if found.get(&(write.tenant, write.row)) == Some(&write.revision) {
            let sent_at = last_survivor.entry(write.connection).or_insert(write.sent_at);
            *sent_at = (*sent_at).max(write.sent_at);
        }
    }
    let before_a_survivor =
        |write: &Write| match (write.ended_at, last_survivor.get(&write.connection)) {
            (Some(ended_at), Some(sent_at)) => ended_at <= *sent_at,
            _ => false,
        };
    let holes =
        lost_writes(ledger, rows).into_iter().filter(before_a_survivor).map(|w| w.row).collect();
    verdict(holes, |rows| Violation::Hole { rows })
}

/// How much time was lost: for each fault, from the oldest lost acknowledgement before it (and after
/// the fault before that) to the last acknowledgement before it; the greatest of them. Zero when
/// nothing was lost. `faults` are moments since the ledger's beginning, ascending.
///
/// It is measured at the client, so it may exceed what the gate decided by the time that an
/// acknowledgement travels.
pub fn exposure_of_the_lost(
    ledger: &Ledger,
    rows: &[SurvivingRow],
    faults: &[Duration],
) -> Duration {
    let lost = lost_writes(ledger, rows);
    let mut worst = Duration::ZERO;
    for window in 0..=faults.len() {
        let begin = if window == 0 { Duration::ZERO } else { faults[window - 1] };
        let end = faults.get(window).copied().unwrap_or(Duration::MAX);
        // Sent before the fault: an acknowledgement may be read just after it.
        let within = |write: &&Write| (begin..end).contains(&write.sent_at);
        let oldest = lost.iter().filter(within).filter_map(|write| write.ended_at).min();
        let acknowledged = ledger.writes().iter().filter(|w| w.outcome == Outcome::Acknowledged);
        let newest = acknowledged.filter(within).filter_map(|write| write.ended_at).max();
        if let (Some(oldest), Some(newest)) = (oldest, newest) {
            worst = worst.max(newest.saturating_sub(oldest));
        }
    }
    worst
}

#[cfg(test)]
#[path = "invariants_tests.rs"]
mod tests;
