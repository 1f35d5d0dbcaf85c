//! Loss receipts against the client's ledger: they name what was lost, and nothing else that a client
//! was told of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::invariants::verdict;
use crate::{Ledger, Outcome, RowId, SurvivingRow, Violation, Write, lost_writes};

/// A commit that a receipt names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptedCommit {
    /// Whose WAL had it: the index of a server, as the caller counts.
    pub side: usize,
    /// The transaction's number (xid). Sides give the same numbers to different transactions, and one
    /// side does so too after it was rewound.
    pub transaction: u32,
    /// When it was committed, on the ledger's clock.
    pub committed_at: Duration,
}

/// Every acknowledged commit that the survivor lacks is in a receipt, and no other acknowledged one is.
///
/// `side_of` says to which server a connection led. A commit counts as the write's if it carries the
/// write's transaction number and was committed while the write was under way, give or take
/// `clocks_differ`, by which the server's wall clock may differ from the ledger's.
/// Changes are judged in the first direction only: a later change can make up for a lost one.
///
/// # Errors
/// [`Violation::LostWithoutReceipt`], else [`Violation::ReceiptedAndThere`].
pub fn the_receipts_name_exactly_what_was_lost(
    ledger: &Ledger,
    rows: &[SurvivingRow],
    side_of: impl Fn(u64) -> Option<usize>,
    receipted: &[ReceiptedCommit],
    clocks_differ: Duration,
) -> Result<(), Violation> {
    let named = Named::new(receipted, clocks_differ);
    let is_receipted = |write: &Write| named.holds(write, &side_of);
    let lost = lost_writes(ledger, rows);
    let unnamed = lost.iter().filter(|write| !is_receipted(write)).map(|write| write.row).collect();
    verdict(unnamed, |rows| Violation::LostWithoutReceipt { rows })?;
    let lost: BTreeSet<RowId> =
        lost.iter().filter(|write| write.revision == 0).map(|write| write.row).collect();
    let inserts = ledger.writes().iter().filter(|write| write.revision == 0);
    let kept = inserts.filter(|w| w.outcome == Outcome::Acknowledged && !lost.contains(&w.row));
    let named = kept.filter(|write| is_receipted(write)).map(|write| write.row).collect();
    verdict(named, |rows| Violation::ReceiptedAndThere { rows })
}

/// From the first to the last acknowledgement of those lost writes that these commits are.
pub fn span_of_what_was_lost(
    ledger: &Ledger,
    rows: &[SurvivingRow],
    side_of: impl Fn(u64) -> Option<usize>,
    receipted: &[ReceiptedCommit],
    clocks_differ: Duration,
) -> Duration {
    let named = Named::new(receipted, clocks_differ);
    let lost = lost_writes(ledger, rows);
    let theirs = lost.iter().filter(|write| named.holds(write, &side_of));
    let ends: Vec<Duration> = theirs.filter_map(|write| write.ended_at).collect();
    let (first, last) = (ends.iter().min(), ends.iter().max());
    first.zip(last).map_or(Duration::ZERO, |(first, last)| *last - *first)
}

/// Receipted commits by what a client knows of them.
struct Named {
    times: BTreeMap<(usize, u32), Vec<Duration>>,
    clocks_differ: Duration,
}

impl Named {
    fn new(receipted: &[ReceiptedCommit], clocks_differ: Duration) -> Named {
        let mut times: BTreeMap<(usize, u32), Vec<Duration>> = BTreeMap::new();
        for commit in receipted {
            times.entry((commit.side, commit.transaction)).or_default().push(commit.committed_at);
        }
        Named { times, clocks_differ }
    }

    fn holds(&self, write: &Write, side_of: impl Fn(u64) -> Option<usize>) -> bool {
        let (Some(side), Some(number)) = (side_of(write.connection), write.transaction) else {
            return false;
        };
        let from = write.sent_at.saturating_sub(self.clocks_differ);
        let to = write.ended_at.map(|ended_at| ended_at + self.clocks_differ);
        let meant = |at: &Duration| *at >= from && to.is_none_or(|to| *at <= to);
        self.times.get(&(side, number)).is_some_and(|times| times.iter().any(meant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tenant;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    /// Row `n` is transaction `100 + n`, under way from `n` to `n + 5` ms over connection 1.
    fn ledger(rows: u64) -> Ledger {
        let mut ledger = Ledger::new(100);
        for row in 1..=rows {
            let write = ledger.begin(RowId(row), Tenant(1), 0, 1, ms(row * 10)).unwrap();
            let number = 100 + u32::try_from(row).unwrap();
            let ended_at = ms(row * 10 + 5);
            ledger.finish(write, Outcome::Acknowledged, Some(number), ended_at).unwrap();
        }
        ledger
    }

    fn judge(receipted: &[(usize, u32, u64)]) -> Result<(), Violation> {
        let rows =
            [1, 2].map(|row| SurvivingRow { tenant: Tenant(1), row: RowId(row), revision: 0 });
        let commit = |(side, transaction, at): &(usize, u32, u64)| ReceiptedCommit {
            side: *side,
            transaction: *transaction,
            committed_at: ms(*at),
        };
        let receipted: Vec<_> = receipted.iter().map(commit).collect();
        let side_of = |_| Some(0);
        the_receipts_name_exactly_what_was_lost(&ledger(3), &rows, side_of, &receipted, ms(2))
    }

    #[test]
    fn the_lost_commit_has_to_be_named_by_its_side_its_number_and_its_time() {
        let without = Err(Violation::LostWithoutReceipt { rows: vec![RowId(3)] });
        assert_eq!(judge(&[(0, 103, 33)]), Ok(()));
        assert_eq!(judge(&[]), without);
        assert_eq!(judge(&[(1, 103, 33)]), without, "another side's");
        assert_eq!(judge(&[(0, 104, 33)]), without, "another transaction");
        assert_eq!(judge(&[(0, 103, 3000)]), without, "the same number, much later");
    }

    #[test]
    fn the_span_of_a_loss_is_that_of_the_acknowledged_commits_that_are_named() {
        let ledger = ledger(4);
        let commit = |number: u32, at| ReceiptedCommit {
            side: 0,
            transaction: number,
            committed_at: ms(at),
        };
        let span = |receipted: &[ReceiptedCommit]| {
            span_of_what_was_lost(&ledger, &[], |_| Some(0), receipted, ms(2))
        };
        assert_eq!(span(&[commit(102, 22), commit(104, 42), commit(900, 44)]), ms(20));
        assert_eq!(span(&[commit(104, 42)]), ms(0));
        assert_eq!(span(&[]), ms(0));
    }

    #[test]
    fn a_commit_that_is_there_must_not_be_named() {
        let there = Err(Violation::ReceiptedAndThere { rows: vec![RowId(1)] });
        assert_eq!(judge(&[(0, 103, 33), (0, 101, 12)]), there);
        // What no client was told of may be there: it was under way.
        assert_eq!(judge(&[(0, 103, 33), (0, 900, 34), (1, 101, 12)]), Ok(()));
    }
}
