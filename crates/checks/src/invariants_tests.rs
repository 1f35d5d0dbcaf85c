//! Tests of the invariants: each one is shown to bite, and an honest history passes all of them.

use proptest::prelude::*;

use super::*;

fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

/// A ledger of `(row, revision, connection, outcome)`, sent and ended one after the other.
fn ledger(writes: &[(u64, u32, u64, Outcome)]) -> Ledger {
    let mut ledger = Ledger::new(1000);
    for (index, (row, revision, connection, outcome)) in writes.iter().enumerate() {
        let at = ms(index as u64 * 10);
        let write = ledger.begin(RowId(*row), Tenant(1), *revision, *connection, at).unwrap();
        ledger.finish(write, *outcome, None, at + ms(5)).unwrap();
    }
    ledger
}

fn rows(rows: &[(u64, u32)]) -> Vec<SurvivingRow> {
    let row = |(row, revision): &(u64, u32)| SurvivingRow {
        tenant: Tenant(1),
        row: RowId(*row),
        revision: *revision,
    };
    rows.iter().map(row).collect()
}

use Outcome::{Acknowledged as Ok_, Failed, Unknown};

#[test]
fn a_missing_acknowledged_row_is_lost_and_a_missing_unknown_one_is_not() {
    let ledger = ledger(&[(1, 0, 1, Ok_), (2, 0, 1, Unknown), (3, 0, 1, Ok_), (4, 0, 1, Failed)]);
    assert_eq!(
        every_acknowledged_row_survived(&ledger, &rows(&[(1, 0)])),
        Err(Violation::Lost { rows: vec![RowId(3)] })
    );
    assert_eq!(every_acknowledged_row_survived(&ledger, &rows(&[(1, 0), (3, 0)])), Ok(()));
    assert_eq!(every_acknowledged_row_survived(&ledger, &rows(&[(1, 0), (2, 0), (3, 0)])), Ok(()));
}

#[test]
fn a_row_in_another_tenants_database_does_not_count_as_survived() {
    let ledger = ledger(&[(1, 0, 1, Ok_)]);
    let elsewhere = [SurvivingRow { tenant: Tenant(2), row: RowId(1), revision: 0 }];
    assert!(every_acknowledged_row_survived(&ledger, &elsewhere).is_err());
    assert!(no_row_was_never_attempted(&ledger, &elsewhere).is_err());
}

#[test]
fn a_write_under_way_is_unknown_and_may_end_only_once() {
    let mut ledger = Ledger::new(1);
    let write = ledger.begin(RowId(1), Tenant(1), 0, 1, ms(0)).unwrap();
    assert_eq!(ledger.counts().unknown, 1);
    ledger.finish(write, Ok_, None, ms(1)).unwrap();
    assert!(ledger.finish(write, Unknown, None, ms(2)).is_err());
    assert!(ledger.begin(RowId(2), Tenant(1), 0, 1, ms(3)).is_err(), "the bound is kept");
    assert_eq!(ledger.counts().acknowledged_rows, 1);
}

#[test]
fn rows_and_revisions_that_nobody_wrote_are_found() {
    let ledger = ledger(&[(1, 0, 1, Ok_)]);
    assert!(no_row_was_never_attempted(&ledger, &rows(&[(1, 0)])).is_ok());
    assert!(no_row_was_never_attempted(&ledger, &rows(&[(1, 0), (9, 0)])).is_err());
    assert!(no_row_was_never_attempted(&ledger, &rows(&[(1, 1)])).is_err());
}

#[test]
fn a_refused_write_that_took_effect_is_found_unless_a_retry_may_have_made_it() {
    let refused = ledger(&[(1, 0, 1, Failed)]);
    assert!(nothing_that_failed_for_certain_is_there(&refused, &rows(&[(1, 0)])).is_err());
    let retried = ledger(&[(1, 0, 1, Failed), (1, 0, 2, Unknown)]);
    assert!(nothing_that_failed_for_certain_is_there(&retried, &rows(&[(1, 0)])).is_ok());
}

#[test]
fn a_row_behind_its_acknowledged_revision_went_back() {
    let ledger = ledger(&[(1, 0, 1, Ok_), (1, 1, 1, Ok_), (1, 2, 1, Unknown)]);
    assert!(no_row_went_back_or_appeared_twice(&ledger, &rows(&[(1, 1)])).is_ok());
    assert!(no_row_went_back_or_appeared_twice(&ledger, &rows(&[(1, 2)])).is_ok());
    assert_eq!(
        no_row_went_back_or_appeared_twice(&ledger, &rows(&[(1, 0)])),
        Err(Violation::WentBack { rows: vec![RowId(1)] })
    );
    assert_eq!(
        no_row_went_back_or_appeared_twice(&ledger, &rows(&[(1, 1), (1, 1)])),
        Err(Violation::Twice { rows: vec![RowId(1)] })
    );
}

#[test]
fn losing_the_end_of_a_connection_is_no_hole_and_losing_its_middle_is() {
    let ledger = ledger(&[(1, 0, 1, Ok_), (2, 0, 1, Ok_), (3, 0, 1, Ok_), (4, 0, 2, Ok_)]);
    // Row 4 went over another connection, as after a failover: no order is claimed between the two.
    assert!(each_connection_lost_only_its_last_writes(&ledger, &rows(&[(1, 0), (4, 0)])).is_ok());
    assert_eq!(
        each_connection_lost_only_its_last_writes(&ledger, &rows(&[(1, 0), (3, 0), (4, 0)])),
        Err(Violation::Hole { rows: vec![RowId(2)] })
    );
}

#[test]
fn the_time_that_was_lost_is_counted_for_each_fault_alone() {
    // Acknowledged at 5, 15, 25 | fault at 28 | 35, 45 | fault at 48 | 55.
    let ledger = ledger(&[
        (1, 0, 1, Ok_),
        (2, 0, 1, Ok_),
        (3, 0, 1, Ok_),
        (4, 0, 2, Ok_),
        (5, 0, 2, Ok_),
        (6, 0, 3, Ok_),
    ]);
    let faults = [ms(28), ms(48)];
    let all = [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0)];
    assert_eq!(exposure_of_the_lost(&ledger, &rows(&all), &faults), Duration::ZERO);
    let some = [(1, 0), (4, 0), (6, 0)];
    assert_eq!(exposure_of_the_lost(&ledger, &rows(&some), &faults), ms(10));
}

#[test]
fn a_violation_prints_how_many_and_the_first_few() {
    let lost = Violation::Lost { rows: (1..=7).map(RowId).collect() };
    assert_eq!(lost.to_string(), "acknowledged rows were lost: 7 (1, 2, 3, 4, 5, …)");
}

proptest! {
    /// Whatever prefix of the log survives: nothing acknowledged within it is lost, everything
    /// acknowledged after it is reported, and never a hole.
    #[test]
    fn a_surviving_prefix_is_judged_exactly(
        outcomes in prop::collection::vec((0u8..3, 0u64..3), 1..60),
        keep in 0usize..60,
    ) {
        let writes: Vec<_> = outcomes.iter().enumerate().map(|(index, (outcome, connection))| {
            let outcome = [Ok_, Failed, Unknown][*outcome as usize];
            (index as u64, 0, *connection, outcome)
        }).collect();
        let ledger = ledger(&writes);
        let keep = keep.min(writes.len());
        let applied = writes[..keep].iter().filter(|w| w.3 != Failed).map(|w| (w.0, 0));
        let surviving = rows(&applied.collect::<Vec<_>>());

        let expected: Vec<RowId> =
            writes[keep..].iter().filter(|w| w.3 == Ok_).map(|w| RowId(w.0)).collect();
        match every_acknowledged_row_survived(&ledger, &surviving) {
            Ok(()) => prop_assert!(expected.is_empty()),
            Err(violation) => prop_assert_eq!(violation, Violation::Lost { rows: expected }),
        }
        prop_assert!(no_row_was_never_attempted(&ledger, &surviving).is_ok());
        prop_assert!(nothing_that_failed_for_certain_is_there(&ledger, &surviving).is_ok());
        prop_assert!(no_row_went_back_or_appeared_twice(&ledger, &surviving).is_ok());
        prop_assert!(each_connection_lost_only_its_last_writes(&ledger, &surviving).is_ok());
    }
}
