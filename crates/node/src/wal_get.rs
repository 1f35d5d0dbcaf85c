//! WAL for PostgreSQL's `restore_command`, from a journal's files: works while no daemon runs.
//!
//! Takes no lock and changes nothing but the target.

use std::path::Path;

pub use understudy_shipping::journal::{GetOutcome, JournalError};

/// Copies a finished segment or a history file by PostgreSQL's name to `target`, durably; a segment is
/// verified before it is served.
///
/// # Errors
/// When the file is there and cannot be read or does not verify, or the target cannot be written.
pub fn wal_get(journal: &Path, name: &str, target: &Path) -> Result<GetOutcome, JournalError> {
    understudy_shipping::journal::get(journal, name, target)
}
