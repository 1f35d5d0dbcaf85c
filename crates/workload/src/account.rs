//! The final account: what the survivor holds, whether the other site holds the same, and what the
//! invariants say to it.
//!
//! It reads through ordinary sessions, as a user would, and never writes.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};
use understudy_checks::{
    Counts, Ledger, RowId, SiteContent, SurvivingRow, TableDigest, Tenant, compare_sites,
    each_connection_lost_only_its_last_writes, every_acknowledged_row_survived,
    exposure_of_the_lost, lost_writes, no_row_was_never_attempted,
    no_row_went_back_or_appeared_twice, nothing_that_failed_for_certain_is_there,
};
use understudy_types::Lsn;

use crate::endpoint::{Credentials, Endpoint, EndpointError, connect};
use crate::{database_name, revision_of};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Databases that are read at the same time.
const PARALLEL_COUNT: usize = 4;

/// A server could not be read.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// It could not be reached.
    #[error("read what a site holds")]
    Endpoint(#[from] EndpointError),
    /// It refused a question.
    #[error("read database {database} at {endpoint}")]
    Query {
        /// Where.
        endpoint: String,
        /// Which database.
        database: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// It did not answer in time.
    #[error("read database {database} at {endpoint}: no answer within {timeout:?}")]
    Timeout {
        /// Where.
        endpoint: String,
        /// Which database.
        database: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// The passive did not get as far as the active was.
    #[error(
        "wait for {endpoint} to replay up to {wanted_lsn}: it stands at {} after {timeout:?}",
        .replay_lsn.map_or_else(|| "an unknown position".to_owned(), |lsn| lsn.to_string())
    )]
    NotReplayed {
        /// Where.
        endpoint: String,
        /// The active's flush position.
        wanted_lsn: Lsn,
        /// The passive's, when it was asked last.
        replay_lsn: Option<Lsn>,
        /// How long was waited.
        timeout: Duration,
    },
}

/// A database at a server, for questions and for the words of an error.
struct Source<'a> {
    endpoint: &'a Endpoint,
    credentials: &'a Credentials,
    database: String,
}

impl Source<'_> {
    async fn connect(&self) -> Result<PgConnection, AccountError> {
        Ok(connect(self.endpoint, self.credentials, &self.database, CONNECT_TIMEOUT).await?)
    }

    async fn answered<T>(
        &self,
        question: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, AccountError> {
        let (endpoint, database) = (self.endpoint.to_string(), self.database.clone());
        match tokio::time::timeout(QUERY_TIMEOUT, question).await {
            Ok(answer) => {
                answer.map_err(|source| AccountError::Query { endpoint, database, source })
            }
            Err(_) => Err(AccountError::Timeout { endpoint, database, timeout: QUERY_TIMEOUT }),
        }
    }

    fn wrong(&self, source: sqlx::Error) -> AccountError {
        let (endpoint, database) = (self.endpoint.to_string(), self.database.clone());
        AccountError::Query { endpoint, database, source }
    }

    async fn lsn(&self, sql: &'static str) -> Result<Option<Lsn>, AccountError> {
        let mut connection = self.connect().await?;
        let row = self.answered(sqlx::query(sql).fetch_one(&mut connection)).await?;
        let text: Option<String> = row.try_get(0).map_err(|error| self.wrong(error))?;
        text.map(|text| {
            text.parse().map_err(|error| self.wrong(sqlx::Error::Decode(Box::new(error))))
        })
        .transpose()
    }
}

fn main_database<'a>(endpoint: &'a Endpoint, credentials: &'a Credentials) -> Source<'a> {
    Source { endpoint, credentials, database: "postgres".to_owned() }
}

/// Up to where the active's WAL is flushed. With no writer left, everything that was ever committed
/// lies before it.
///
/// # Errors
/// [`AccountError`]; at a server in recovery too.
pub async fn flushed_lsn(
    endpoint: &Endpoint,
    credentials: &Credentials,
) -> Result<Lsn, AccountError> {
    let source = main_database(endpoint, credentials);
    let lsn = source.lsn("SELECT pg_current_wal_flush_lsn()::text").await?;
    lsn.ok_or_else(|| source.wrong(sqlx::Error::RowNotFound))
}

/// Waits until a server in recovery has replayed up to `wanted_lsn`. One that is not in recovery is
/// waited for, too: it may be about to restart as a standby.
///
/// # Errors
/// [`AccountError::NotReplayed`] after `timeout`, or the last failure to ask.
pub async fn wait_until_replayed(
    endpoint: &Endpoint,
    credentials: &Credentials,
    wanted_lsn: Lsn,
    timeout: Duration,
) -> Result<(), AccountError> {
    let source = main_database(endpoint, credentials);
    let deadline = tokio::time::Instant::now() + timeout;
    loop {
        let answer = source.lsn("SELECT pg_last_wal_replay_lsn()::text").await;
        match answer {
            Ok(Some(replay_lsn)) if replay_lsn >= wanted_lsn => return Ok(()),
            Ok(replay_lsn) if tokio::time::Instant::now() >= deadline => {
                let endpoint = endpoint.to_string();
                return Err(AccountError::NotReplayed {
                    endpoint,
                    wanted_lsn,
                    replay_lsn,
                    timeout,
                });
            }
            Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
            Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Every work-log entry of the tenants 0 to `tenants_count`.
///
/// # Errors
/// [`AccountError`]: one tenant that cannot be read leaves no account.
pub async fn read_rows(
    endpoint: &Endpoint,
    credentials: &Credentials,
    tenants_count: u32,
) -> Result<Vec<SurvivingRow>, AccountError> {
    let tenant = |tenant: u32| async move {
        let database = database_name(tenant);
        let source = Source { endpoint, credentials, database };
        let mut connection = source.connect().await?;
        let sql = "SELECT client_worklog_id, time_spent_seconds FROM worklog";
        let rows = source.answered(sqlx::query(sql).fetch_all(&mut connection)).await?;
        let row = |row: &sqlx::postgres::PgRow| {
            let (id, spent) = (row.try_get::<i64, _>(0)?, row.try_get::<i32, _>(1)?);
            // A negative identity was never given out; as a huge one it is found to be unexpected.
            let row = RowId(id.cast_unsigned());
            Ok(SurvivingRow { tenant: Tenant(tenant), row, revision: revision_of(spent) })
        };
        let rows: Result<Vec<_>, _> = rows.iter().map(row).collect();
        rows.map_err(|error| source.wrong(error))
    };
    let tenants = stream::iter(0..=tenants_count).map(tenant).buffer_unordered(PARALLEL_COUNT);
    Ok(tenants.try_collect::<Vec<_>>().await?.concat())
}

/// The content of a whole site: every permanent table outside the system schemas, in every database
/// that takes connections.
///
/// Rows are digested one by one and put in the order of their digests, so two sites are equal exactly
/// when every row is (md5 serves against accidents, not against forgers), whatever the physical order
/// and whether or not there is a key.
///
/// # Errors
/// [`AccountError`].
pub async fn read_site(
    endpoint: &Endpoint,
    credentials: &Credentials,
) -> Result<SiteContent, AccountError> {
    let source = main_database(endpoint, credentials);
    let mut connection = source.connect().await?;
    let sql = "SELECT datname::text FROM pg_database WHERE datallowconn AND datname <> 'template1'";
    let rows = source.answered(sqlx::query(sql).fetch_all(&mut connection)).await?;
    let names: Result<Vec<String>, _> = rows.iter().map(|row| row.try_get(0)).collect();
    let names = names.map_err(|error| source.wrong(error))?;

    let database = |database: String| async move {
        let source = Source { endpoint, credentials, database };
        let tables = read_tables(&source).await?;
        Ok::<_, AccountError>((source.database, tables))
    };
    let databases = stream::iter(names).map(database).buffer_unordered(PARALLEL_COUNT);
    Ok(SiteContent { databases: databases.try_collect().await? })
}

async fn read_tables(source: &Source<'_>) -> Result<BTreeMap<String, TableDigest>, AccountError> {
    let mut connection = source.connect().await?;
    // What a row looks like as text must not depend on a role's or a database's settings.
    let settings =
        "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres';
        SET extra_float_digits = 1; SET bytea_output = 'hex'; SET lc_monetary = 'C'";
    source.answered(sqlx::raw_sql(settings).execute(&mut connection)).await?;
    let sql = "\
        SELECT format('%I.%I', n.nspname, c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p'
          AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'";
    let rows = source.answered(sqlx::query(sql).fetch_all(&mut connection)).await?;
    let mut tables = BTreeMap::new();
    for row in rows {
        let table: String = row.try_get(0).map_err(|error| source.wrong(error))?;
        // The name comes quoted from the server's own format('%I').
        let sql = format!(
            "SELECT count(*), coalesce(md5(string_agg(digest, '' ORDER BY digest)), '')
             FROM (SELECT md5(understudy_row::text) COLLATE \"C\" AS digest
                   FROM {table} AS understudy_row) AS digests"
        );
        let question = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut connection);
        let row = source.answered(question).await?;
        let digest = || {
            let (count, digest) = (row.try_get::<i64, _>(0)?, row.try_get::<String, _>(1)?);
            Ok(TableDigest { rows_count: count.cast_unsigned(), digest })
        };
        tables.insert(table, digest().map_err(|error| source.wrong(error))?);
    }
    Ok(tables)
}

/// [`read_site`] of the passive, once it has replayed up to `wanted_lsn`.
///
/// # Errors
/// [`AccountError`].
pub async fn read_site_when_replayed(
    endpoint: &Endpoint,
    credentials: &Credentials,
    wanted_lsn: Lsn,
    timeout: Duration,
) -> Result<SiteContent, AccountError> {
    wait_until_replayed(endpoint, credentials, wanted_lsn, timeout).await?;
    read_site(endpoint, credentials).await
}

/// How the passive differs from the active, in words, once it has replayed all that the active had
/// flushed when this was called; empty when both hold the same. Nobody writes meanwhile.
///
/// # Errors
/// [`AccountError`].
pub async fn differences_between_sites(
    active: (&Endpoint, &Credentials),
    passive: (&Endpoint, &Credentials),
    timeout: Duration,
) -> Result<Vec<String>, AccountError> {
    let wanted_lsn = flushed_lsn(active.0, active.1).await?;
    let second = read_site_when_replayed(passive.0, passive.1, wanted_lsn, timeout).await?;
    let first = read_site(active.0, active.1).await?;
    Ok(compare_sites(&first, &second).iter().map(ToString::to_string).collect())
}

/// What the invariants say about a ledger and the survivor's rows.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// How many writes ended how.
    pub counts: Counts,
    /// Distinct rows with an acknowledged write that is not there.
    pub lost_rows: u64,
    /// From the oldest lost acknowledgement to the last one before the fault; the worst of all faults.
    pub lost_seconds: f64,
    /// Rows that were read back.
    pub surviving_rows: u64,
    /// Every invariant that does not hold, in words; the loss of rows itself is not among them,
    /// because policy may allow it.
    pub violations: Vec<String>,
}

/// Judges a ledger against the rows that survived. `faults` as in the pulse.
pub fn verdict_of(ledger: &Ledger, rows: &[SurvivingRow], faults: &[Duration]) -> Verdict {
    let mut lost: Vec<RowId> = lost_writes(ledger, rows).iter().map(|write| write.row).collect();
    lost.sort_unstable();
    lost.dedup();
    debug_assert_eq!(lost.is_empty(), every_acknowledged_row_survived(ledger, rows).is_ok());
    // A row that went back is a lost write, which the hole check judges; twice is never allowed.
    let mut checks = vec![
        no_row_was_never_attempted(ledger, rows),
        nothing_that_failed_for_certain_is_there(ledger, rows),
        each_connection_lost_only_its_last_writes(ledger, rows),
    ];
    if lost.is_empty() {
        checks.push(no_row_went_back_or_appeared_twice(ledger, rows));
    }
    Verdict {
        counts: ledger.counts(),
        lost_rows: u64::try_from(lost.len()).expect("a length fits"),
        lost_seconds: exposure_of_the_lost(ledger, rows, faults).as_secs_f64(),
        surviving_rows: u64::try_from(rows.len()).expect("a length fits"),
        violations: checks.into_iter().filter_map(Result::err).map(|v| v.to_string()).collect(),
    }
}

impl Verdict {
    /// About a ledger in which nothing was ever written.
    pub fn empty() -> Verdict {
        verdict_of(&Ledger::new(0), &[], &[])
    }
}
