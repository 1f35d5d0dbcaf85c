//! Where PostgreSQL may be found, and which of them may be written to now.
//!
//! It decides as libpq's `target_session_attrs=read-write` does: connect, ask, and go on to the next
//! one. It never asks Understudy.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions, Row};
use tokio::sync::watch;

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The site's or node's name, for people.
    pub name: String,
    /// A host name, an address, or (as in libpq) a directory with a Unix socket when it begins with
    /// a slash.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.name, self.host, self.port)
    }
}

/// Whom to log in as.
#[derive(Clone)]
pub struct Credentials {
    /// The role.
    pub user: String,
    /// Its password; none where the server knows the caller otherwise (peer).
    pub password: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials {{ user: {:?} }}", self.user)
    }
}

/// A server could not be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// No connection; the server may be gone, starting or refusing.
    #[error("connect to database {database} at {endpoint}")]
    Connect {
        /// Where.
        endpoint: String,
        /// Which database.
        database: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// Nothing came back in time.
    #[error("connect to database {database} at {endpoint}: no answer within {timeout:?}")]
    Timeout {
        /// Where.
        endpoint: String,
        /// Which database.
        database: String,
        /// How long was waited.
        timeout: Duration,
    },
}

/// Opens a connection, within `timeout`. Dropping it closes the socket without a word.
///
/// # Errors
/// [`EndpointError`]; every one of them may be tried again.
pub async fn connect(
    endpoint: &Endpoint,
    credentials: &Credentials,
    database: &str,
    timeout: Duration,
) -> Result<PgConnection, EndpointError> {
    let mut options = PgConnectOptions::new_without_pgpass()
        .port(endpoint.port)
        .username(&credentials.user)
        .database(database)
        .ssl_mode(PgSslMode::Prefer)
        .application_name("understudy-workload")
        .disable_statement_logging();
    options = if endpoint.host.starts_with('/') {
        options.socket(PathBuf::from(&endpoint.host))
    } else {
        options.host(&endpoint.host)
    };
    if let Some(password) = &credentials.password {
        options = options.password(password);
    }
    let database = || database.to_owned();
    match tokio::time::timeout(timeout, options.connect()).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(source)) => {
            let endpoint = endpoint.to_string();
            Err(EndpointError::Connect { endpoint, database: database(), source })
        }
        Err(_) => {
            let endpoint = endpoint.to_string();
            Err(EndpointError::Timeout { endpoint, database: database(), timeout })
        }
    }
}

/// The server may be written to: it is not in recovery and does not refuse writes by default.
pub(crate) async fn is_writable(
    connection: &mut PgConnection,
    timeout: Duration,
) -> Result<bool, sqlx::Error> {
    let question = sqlx::query(
        "SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'",
    );
    match tokio::time::timeout(timeout, question.fetch_one(connection)).await {
        Ok(row) => row?.try_get(0),
        Err(_) => Err(sqlx::Error::PoolTimedOut),
    }
}

/// Which endpoint was last seen writable; its `serial` grows with every finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writable {
    /// Index into the endpoints.
    pub index: usize,
    /// Grows with every finding, so that a writer knows news from what has just failed it.
    pub serial: u64,
}

/// Finds the writable endpoint, one search for all writers.
///
/// One client searches and the others wait for its finding: a herd of writers that each logs in at a
/// standby fifty times a second would take the processor from the very promotion that they wait for.
pub struct Locator {
    endpoints: Vec<Endpoint>,
    credentials: Credentials,
    connect_timeout: Duration,
    found: watch::Sender<Option<Writable>>,
}

impl Locator {
    /// A locator over both sites' servers.
    pub fn new(
        endpoints: Vec<Endpoint>,
        credentials: Credentials,
        connect_timeout: Duration,
    ) -> Locator {
        Locator { endpoints, credentials, connect_timeout, found: watch::Sender::new(None) }
    }

    /// The servers, in the order that [`Writable::index`] counts.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// What was found last; `None` while nobody is known to be writable.
    pub fn subscribe(&self) -> watch::Receiver<Option<Writable>> {
        self.found.subscribe()
    }

    /// The last finding failed whoever used it: nobody is known to be writable until it is found anew.
    pub(crate) fn lost(&self) {
        self.found.send_if_modified(|found| found.take().is_some());
    }

    /// Tries each server once, the one that was `tried_last` last, and returns a connection to
    /// `database` at the first that is writable.
    pub(crate) async fn search(
        &self,
        database: &str,
        tried_last: Option<usize>,
        serial: u64,
    ) -> Option<(Writable, PgConnection)> {
        let count = self.endpoints.len();
        for step in 1..=count {
            let index = (tried_last.unwrap_or(count - 1) + step) % count;
            let opened = self.connect(index, database).await;
            let Ok(mut connection) = opened else { continue };
            if let Ok(true) = is_writable(&mut connection, self.connect_timeout).await {
                let writable = Writable { index, serial };
                self.found.send_replace(Some(writable));
                return Some((writable, connection));
            }
        }
        None
    }

    /// Opens a connection to one of the servers.
    pub(crate) async fn connect(
        &self,
        index: usize,
        database: &str,
    ) -> Result<PgConnection, EndpointError> {
        connect(&self.endpoints[index], &self.credentials, database, self.connect_timeout).await
    }
}
