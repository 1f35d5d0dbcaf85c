//! A walsender over the journal: a stock standby or `pg_receivewal` streams from here.
//!
//! It serves what the journal has made durable and never a byte more, on a Unix socket, to processes of
//! the users that it is told. It has no slots and creates none: what is kept is the journal's business.
//! It decides nothing; what its clients report is published through [`Relay::positions`].

mod sending;
mod session;
pub(crate) mod socket;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use understudy_types::Lsn;
use understudy_wal::protocol::HotStandbyFeedback;

use crate::journal::Journal;

pub use socket::SocketError;

/// How the relay listens and what it says of itself.
#[derive(Debug, Clone)]
pub struct RelayOptions {
    /// The directory of the Unix socket.
    pub socket_dir: PathBuf,
    /// The port in the socket's name, `.s.PGSQL.<port>`; 7432 by default.
    pub port: u16,
    /// Users whose processes are let in, by SO_PEERCRED.
    pub allowed_uids: Vec<u32>,
    /// The cluster's real version, such as "15.18": walreceiver and `pg_receivewal` compare it.
    pub server_version: String,
    /// The `application_name` of the local standby, whose positions are published.
    pub standby_name: String,
    /// Connections at a time; one more is refused.
    pub clients_max: usize,
    /// A status is asked for this often, so that the published positions are never much older.
    pub keepalive_interval: Duration,
    /// A client that streams and was not heard of for so long is cut off (`wal_sender_timeout`).
    pub client_timeout: Duration,
}

impl RelayOptions {
    /// Port 7432, 8 clients, keepalives each second, a timeout of 60 seconds.
    pub fn new(
        socket_dir: PathBuf,
        allowed_uids: Vec<u32>,
        server_version: String,
        standby_name: String,
    ) -> RelayOptions {
        RelayOptions {
            socket_dir,
            port: 7432,
            allowed_uids,
            server_version,
            standby_name,
            clients_max: 8,
            keepalive_interval: Duration::from_secs(1),
            client_timeout: Duration::from_secs(60),
        }
    }
}

/// What the local standby last said of itself; `None` in a field until it has reported one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayPositions {
    /// Written by its walreceiver.
    pub write_lsn: Option<Lsn>,
    /// Fsynced by its walreceiver.
    pub flush_lsn: Option<Lsn>,
    /// Replayed.
    pub replay_lsn: Option<Lsn>,
    /// Which transactions its queries need, if it gives feedback.
    pub feedback: Option<HotStandbyFeedback>,
}

/// What every session knows.
struct Shared {
    journal: Journal,
    options: RelayOptions,
    standby: watch::Sender<Option<RelayPositions>>,
    /// Which session speaks for the standby: the one that began to stream last.
    standby_session: AtomicU64,
}

/// A relay that is bound to its socket; it serves while [`Relay::run`] runs.
pub struct Relay {
    shared: Arc<Shared>,
    listener: UnixListener,
    _socket_file: socket::SocketFile,
}

impl Relay {
    /// Binds the socket. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the path is too long, somebody listens there already, or it cannot be made.
    pub fn bind(options: RelayOptions, journal: Journal) -> Result<Relay, SocketError> {
        let (listener, socket_file) = socket::bind(&options.socket_dir, options.port)?;
        let standby = watch::Sender::new(None);
        let standby_session = AtomicU64::new(0);
        let shared = Arc::new(Shared { journal, options, standby, standby_session });
        Ok(Relay { shared, listener, _socket_file: socket_file })
    }

    /// What the local standby reports; `None` while it does not stream.
    pub fn positions(&self) -> watch::Receiver<Option<RelayPositions>> {
        self.shared.standby.subscribe()
    }

    /// Serves until `shutdown`; then clients are told that the server shuts down, and it returns when
    /// the last one is gone.
    pub async fn run(self, shutdown: CancellationToken) {
        let clients = Arc::new(Semaphore::new(self.shared.options.clients_max));
        let tasks = TaskTracker::new();
        let mut serial = 0;
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _address)) => stream,
                Err(error) => {
                    // Out of descriptors, say: others may still be served, so wait and go on.
                    tracing::warn!(%error, "relay cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            serial += 1;
            let Ok(permit) = Arc::clone(&clients).try_acquire_owned() else {
                session::refuse(stream, "53300", "too many clients of the WAL relay already");
                continue;
            };
            if let Err(reason) = socket::check_peer(&stream, &self.shared.options.allowed_uids) {
                tracing::warn!(reason, "relay refuses a connection");
                session::refuse(stream, "28000", &reason);
                continue;
            }
            let shared = Arc::clone(&self.shared);
            let shutdown = shutdown.clone();
            tasks.spawn(async move {
                session::serve(&shared, stream, serial, shutdown).await;
                shared.forget_standby(serial);
                drop(permit);
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}

impl Shared {
    fn is_standby_session(&self, session: u64) -> bool {
        self.standby_session.load(Ordering::Relaxed) == session
    }

    fn forget_standby(&self, session: u64) {
        if self.is_standby_session(session) {
            self.standby.send_replace(None);
        }
    }
}
