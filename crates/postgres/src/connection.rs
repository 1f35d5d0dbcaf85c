//! Sessions of the node's own role over the Unix socket, each step with a deadline.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions, Connection};

use crate::error::{Error, Result};
use crate::settings::{ROLE_MANAGEMENT, Settings};

/// Opens a session of the management role in database `postgres`.
pub(crate) async fn open(settings: &Settings, patience: Duration) -> Result<PgConnection> {
    open_as(&settings.socket_dir, settings.port, ROLE_MANAGEMENT, patience).await
}

/// Opens a session of the management role in any database.
pub(crate) async fn open_in(
    settings: &Settings,
    database: &str,
    patience: Duration,
) -> Result<PgConnection> {
    open_at(&settings.socket_dir, settings.port, ROLE_MANAGEMENT, database, patience).await
}

/// Opens a session of a role in database `postgres`.
pub(crate) async fn open_as(
    socket_dir: &Path,
    port: u16,
    role: &str,
    patience: Duration,
) -> Result<PgConnection> {
    open_at(socket_dir, port, role, "postgres", patience).await
}

async fn open_at(
    socket_dir: &Path,
    port: u16,
    role: &str,
    database: &str,
    patience: Duration,
) -> Result<PgConnection> {
    let options = PgConnectOptions::new_without_pgpass()
        .socket(socket_dir)
        .port(port)
        .username(role)
        .database(database)
        .ssl_mode(PgSslMode::Disable)
        .application_name("understudy-management")
        // What the node itself writes is acknowledged to nobody, and must not wait for the gate.
        .options([("synchronous_commit", "local"), ("search_path", "pg_catalog")])
        .disable_statement_logging();
    match tokio::time::timeout(patience, options.connect()).await {
        Ok(Ok(session)) => Ok(session),
        Ok(Err(source)) => {
            Err(Error::Connect { socket_dir: socket_dir.to_owned(), source: Box::new(source) })
        }
        Err(_) => Err(Error::Timeout { what: "a connection", waited: patience }),
    }
}

/// Says goodbye; what the server makes of it does not matter any more.
pub(crate) async fn close(session: PgConnection) {
    let _ended = tokio::time::timeout(Duration::from_secs(1), session.close()).await;
}

/// Waits for a statement, and no longer than `patience`.
pub(crate) async fn within<T>(
    what: &'static str,
    patience: Duration,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T> {
    match tokio::time::timeout(patience, statement).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(Error::Query { what, source: Box::new(source) }),
        Err(_) => Err(Error::Timeout { what, waited: patience }),
    }
}

/// An error with its sources in one line.
pub(crate) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
