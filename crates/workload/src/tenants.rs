//! Makes the tenants: a database each, copied from one prepared template.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Row};

use crate::endpoint::{Credentials, Endpoint, EndpointError, connect};

/// The prober's own tenant: it has a database like any other.
pub const PROBE_TENANT: u32 = 0;

const TEMPLATE: &str = "worklog_template";
const TIMEOUT: Duration = Duration::from_secs(60);

/// The tenants could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TenantsError {
    /// The server could not be reached.
    #[error("make the tenants' databases")]
    Endpoint(#[from] EndpointError),
    /// The server refused a statement.
    #[error("make the database {database}")]
    Statement {
        /// Which one.
        database: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A statement took too long: the disk is slow, or commits are not acknowledged.
    #[error("make the database {database}: no answer within {timeout:?}")]
    Timeout {
        /// Which one.
        database: String,
        /// How long was waited.
        timeout: Duration,
    },
}

/// The name of a tenant's database: `tenant_0001`.
pub fn database_name(tenant: u32) -> String {
    format!("tenant_{tenant:04}")
}

/// Makes the databases of tenants 0 (the prober's) to `count` at a writable server; those that exist
/// stay as they are. `progress` is told the number of those done. The role needs CREATEDB.
///
/// The template is copied as files: one database's pages through the log would be 7 MiB of WAL for
/// each tenant, to be shipped, kept and replayed, while a copy of files is a record of a few bytes.
///
/// # Errors
/// [`TenantsError`]; calling it again goes on where it stopped.
pub async fn prepare_tenants(
    endpoint: &Endpoint,
    credentials: &Credentials,
    count: u32,
    mut progress: impl FnMut(u32),
) -> Result<(), TenantsError> {
    let mut main = connect(endpoint, credentials, "postgres", TIMEOUT).await?;
    let existing = existing_databases(&mut main).await?;
    if !existing.iter().any(|name| name == TEMPLATE) {
        execute(&mut main, TEMPLATE, format!("CREATE DATABASE {TEMPLATE}")).await?;
    }
    let mut template = connect(endpoint, credentials, TEMPLATE, TIMEOUT).await?;
    execute(&mut template, TEMPLATE, crate::CREATE_WORKLOG.to_owned()).await?;
    // A template that somebody is connected to cannot be copied, so the goodbye is waited for.
    let _ = tokio::time::timeout(TIMEOUT, template.close()).await;

    let strategy = if version(&mut main).await? >= 150_000 { "STRATEGY file_copy" } else { "" };
    for tenant in 0..=count {
        let name = database_name(tenant);
        if !existing.contains(&name) {
            let sql = format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE} {strategy}");
            execute_patiently(&mut main, &name, sql).await?;
        }
        progress(tenant);
    }
    Ok(())
}

/// The server forgets a session only some moments after its client left, so a template that is still
/// in use is tried again for a while.
async fn execute_patiently(
    connection: &mut PgConnection,
    database: &str,
    sql: String,
) -> Result<(), TenantsError> {
    const TEMPLATE_IN_USE: &str = "55006";
    for _ in 0..100 {
        match execute(connection, database, sql.clone()).await {
            Err(TenantsError::Statement { source: sqlx::Error::Database(error), .. })
                if error.code().as_deref() == Some(TEMPLATE_IN_USE) =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => return other,
        }
    }
    execute(connection, database, sql).await
}

async fn existing_databases(connection: &mut PgConnection) -> Result<Vec<String>, TenantsError> {
    let rows = sqlx::query("SELECT datname::text FROM pg_database").fetch_all(connection);
    let rows = answered("postgres", rows).await?;
    rows.iter().map(|row| row.try_get(0).map_err(|source| statement("postgres", source))).collect()
}

async fn version(connection: &mut PgConnection) -> Result<i32, TenantsError> {
    let row = sqlx::query("SELECT current_setting('server_version_num')::integer");
    let row = answered("postgres", row.fetch_one(connection)).await?;
    row.try_get(0).map_err(|source| statement("postgres", source))
}

async fn execute(
    connection: &mut PgConnection,
    database: &str,
    sql: String,
) -> Result<(), TenantsError> {
    // Names are formed here from numbers and constants: nothing comes from outside.
    let statement = sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection);
    answered(database, statement).await.map(|_| ())
}

async fn answered<T>(
    database: &str,
    question: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, TenantsError> {
    match tokio::time::timeout(TIMEOUT, question).await {
        Ok(answer) => answer.map_err(|source| statement(database, source)),
        Err(_) => Err(TenantsError::Timeout { database: database.to_owned(), timeout: TIMEOUT }),
    }
}

fn statement(database: &str, source: sqlx::Error) -> TenantsError {
    TenantsError::Statement { database: database.to_owned(), source }
}
