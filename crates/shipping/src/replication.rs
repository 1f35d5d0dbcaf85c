//! A client of PostgreSQL's streaming replication protocol, over the local Unix socket.
//!
//! It runs replication commands and carries a physical stream: WAL in, status messages out. It decides
//! nothing about what may be acknowledged; in particular it never sends a status of its own accord.
//! Peer authentication only: a server that asks for a password is an error.

mod client;
mod stream;

pub use client::{ConnectOptions, ReplicationClient, SlotPosition, Started, SystemIdentity};
pub use stream::{ReplicationEvent, StatusSender, TrySend, WalStream};

use std::path::PathBuf;
use std::time::Duration;

use understudy_types::{Lsn, Timeline};
use understudy_wal::protocol::{ErrorFields, ProtocolError};

/// Where a timeline was left, and for which: the result set after the stream of an older timeline.
pub type NextTimeline = (Timeline, Lsn);

/// A replication connection failed, or the server refused.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// Nobody listens at the socket, or it cannot be reached.
    #[error("connect to PostgreSQL at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server did not answer in time.
    #[error("{action}: no answer within {limit:?}")]
    TimedOut {
        /// What was tried.
        action: &'static str,
        /// How long.
        limit: Duration,
    },
    /// pg_hba asks for something that this client does not have.
    #[error(
        "log in as {user:?}: the server asks for authentication method {code}; \
         pg_hba.conf must let this role in with 'peer' on the local socket"
    )]
    Authentication {
        /// The role.
        user: String,
        /// The code of the authentication request.
        code: u32,
    },
    /// The server reported an error.
    #[error("{action}: server says {}: {} (SQLSTATE {})", report.severity(), report.message(), report.sqlstate())]
    Server {
        /// What was tried.
        action: &'static str,
        /// The server's report.
        report: ErrorFields,
    },
    /// The server sent what is not the protocol.
    #[error("{action}: cannot read the server's answer")]
    Protocol {
        /// What was tried.
        action: &'static str,
        /// What is wrong with it.
        #[source]
        source: ProtocolError,
    },
    /// The server sent something else than the protocol provides for here.
    #[error("{action}: unexpected answer: {problem}")]
    Unexpected {
        /// What was tried.
        action: &'static str,
        /// What came.
        problem: String,
    },
    /// Reading or writing failed.
    #[error("{action}: connection failed")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server closed the connection.
    #[error("{action}: server closed the connection")]
    Closed {
        /// What was tried.
        action: &'static str,
    },
}

impl ReplicationError {
    /// The SQLSTATE, if the server reported an error.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            ReplicationError::Server { report, .. } => Some(report.sqlstate()),
            _ => None,
        }
    }
}

/// The wall clock as PostgreSQL's messages carry it; informative only, never decides anything.
pub(crate) fn pg_now() -> understudy_wal::protocol::PgTimestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let micros = since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
    understudy_wal::protocol::PgTimestamp::from_unix_micros(micros)
}
