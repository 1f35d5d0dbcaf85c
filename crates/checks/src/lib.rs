//! Judges histories: what was acknowledged, what survived, whether two sites hold the same.
//!
//! One function an invariant, named as the sentence that it checks, over plain values.
//! Simulation, the fault rig, tests and the demo share them, so nothing here does IO, reads a clock
//! or knows where a row came from.

mod invariants;
mod ledger;
pub mod protocol;
mod receipts;
mod sites;
mod tenures;

pub use invariants::{
    Violation, each_connection_lost_only_its_last_writes, every_acknowledged_row_survived,
    exposure_of_the_lost, lost_writes, no_row_was_never_attempted,
    no_row_went_back_or_appeared_twice, nothing_that_failed_for_certain_is_there,
};
pub use ledger::{
    AlreadyFinished, Counts, Ledger, LedgerFull, Outcome, RowId, SurvivingRow, Tenant, Write,
    WriteId,
};
pub use receipts::{
    ReceiptedCommit, span_of_what_was_lost, the_receipts_name_exactly_what_was_lost,
};
pub use sites::{Difference, SiteContent, TableDigest, compare_sites};
pub use tenures::{Deed, deeds_outside_their_side_s_tenure, tenures_seen};
