//! The work-log writer: many tenants, a database each, and a ledger of what was acknowledged.
//!
//! It behaves as an application with a multi-host connection string does: it knows both sites'
//! PostgreSQL, looks for the one that may be written to, and reconnects when it is gone.
//! It knows nothing of Understudy's nodes, their state or their interfaces, so that what it measures
//! is what a customer would have seen.

mod account;
mod endpoint;
mod pulse;
mod recorder;
mod tenants;
mod workload;
mod writer;

pub use account::{
    AccountError, Verdict, differences_between_sites, flushed_lsn, read_rows, read_site,
    read_site_when_replayed, verdict_of, wait_until_replayed,
};
pub use endpoint::{Credentials, Endpoint, EndpointError, Locator, Writable, connect};
pub use pulse::{Outage, Pulse};
pub use recorder::Recorder;
pub use tenants::{PROBE_TENANT, TenantsError, database_name, prepare_tenants};
pub use workload::{HISTORY_STEP, Recorded, Stats, Workload, WorkloadOptions};

/// The table with the work-log entries in each tenant's database.
pub(crate) const CREATE_WORKLOG: &str = "\
    CREATE TABLE IF NOT EXISTS worklog (
        client_worklog_id   bigint PRIMARY KEY,
        account_id          bigint NOT NULL,
        client_issue_id     bigint NOT NULL,
        comment             text NOT NULL,
        created             timestamptz NOT NULL DEFAULT now(),
        updated             timestamptz NOT NULL DEFAULT now(),
        started             timestamptz NOT NULL,
        time_spent_seconds  integer NOT NULL
    )";

/// An entry begins with a quarter of an hour, and each change of it books one more minute, so that
/// the revision of a row can be read from the row itself.
pub(crate) fn time_spent_seconds(revision: u32) -> i32 {
    900 + 60 * i32::try_from(revision.min(1_000_000)).expect("bounded in the line itself")
}

/// The inverse of [`time_spent_seconds`]; what nobody could have written becomes `u32::MAX`, so that
/// the checks find it.
pub(crate) fn revision_of(time_spent_seconds: i32) -> u32 {
    let minutes = time_spent_seconds - 900;
    if minutes >= 0 && minutes % 60 == 0 {
        u32::try_from(minutes / 60).unwrap_or(u32::MAX)
    } else {
        u32::MAX
    }
}
