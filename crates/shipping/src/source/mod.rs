//! The source: what runs beside the primary, holds its acknowledgement gate and ships its WAL.
//!
//! One source lives for one epoch on one primary. It acts under the permit in the cell and decides
//! nothing: not who is active, not who is waited for. It never starts or stops PostgreSQL.

mod attach;
mod feed;
mod gate;
mod release;
mod session;
mod state;

pub use crate::compression::CompressionSeen;
pub use attach::{
    AckFault, PROTOCOL_VERSION, Refusal, SourceIdentity, ValidAttach, validate, validate_ack,
};

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use understudy_proto::v1;
use understudy_proto::v1::refused::Reason;
use understudy_types::{BootInstant, Clock, Epoch, NodeId, NodeName, SegmentSize, SourcePositions};

use self::gate::Gate;
use self::state::Shared;
use crate::journal::Journal;
use crate::permit_cell::PermitCell;
use crate::replication::ConnectOptions;
use crate::thread::run_on_its_own;

/// Messages to one receiver that may wait in memory: 16 frames of up to 256 KiB.
const CHANNEL_MESSAGES_MAX: usize = 16;

/// Bounds connecting to the local PostgreSQL and each command there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What a source needs to know.
#[derive(Clone)]
pub struct SourceOptions {
    /// Where the primary's Unix socket lies.
    pub socket_dir: PathBuf,
    /// The primary's port, as in the socket's name.
    pub port: u16,
    /// The role with REPLICATION that the node uses.
    pub user: String,
    /// The random name in `synchronous_standby_names` on the postmaster's command line.
    pub gate_name: String,
    /// Cluster, system identifier, epoch, promotion and history that receivers have to agree with.
    pub identity: SourceIdentity,
    /// The primary's segment size.
    pub segment_size: SegmentSize,
    /// Before the node's name in slots' names: `understudy_`.
    pub slot_prefix: String,
    /// What an earlier process acknowledged counts as released at this moment (`ExposureTracker::new`).
    pub assumed_since: BootInstant,
    /// Serves WAL that the primary no longer has.
    pub journal: Option<Journal>,
}

impl SourceOptions {
    fn connect_options(&self, application_name: &str) -> ConnectOptions {
        ConnectOptions {
            socket_dir: self.socket_dir.clone(),
            port: self.port,
            user: self.user.clone(),
            application_name: application_name.to_owned(),
            answer_timeout: ANSWER_TIMEOUT,
        }
    }
}

/// Who calls, as the channel's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number in consensus.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
}

/// What a receiver is sent: the response of the `Wal.Stream` call.
pub type ToReceiver = ReceiverStream<Result<v1::FromSource, Status>>;

/// The source could not start.
#[derive(Debug, thiserror::Error)]
#[error("start the gate's thread")]
pub struct StartError(#[source] io::Error);

/// A running source; clones speak to the same one. Dropping it stops nothing: call `stop`.
#[derive(Clone)]
pub struct SourceHandle {
    shared: Arc<Shared>,
}

/// Starts sources.
pub struct Source;

impl Source {
    /// Starts the gate on a thread of its own; receivers' streams run where `attach` is called.
    ///
    /// # Errors
    /// When the thread or its event loop cannot be made.
    pub fn start(
        options: SourceOptions,
        cell: Arc<PermitCell>,
        clock: Arc<dyn Clock>,
    ) -> Result<SourceHandle, StartError> {
        let shared = Arc::new(Shared::new(options, cell, clock));
        let gate = Gate::new(Arc::clone(&shared));
        let gone = shared.gate_gone.clone();
        run_on_its_own("understudy-gate", move || async move {
            // Also when it panics: nobody may wait for ever for a gate that is gone.
            let _gone = gone.drop_guard();
            gate.run().await;
        })
        .map_err(StartError)?;
        Ok(SourceHandle { shared })
    }
}

impl SourceHandle {
    /// What each receiver's stream last decided about compression, and why.
    pub fn compression(&self) -> BTreeMap<NodeId, CompressionSeen> {
        self.shared.compression()
    }

    /// Serves one receiver: the body of the `Wal.Stream` call. Needs a tokio runtime around it.
    ///
    /// A second stream of the same node replaces the first.
    pub fn attach<S>(&self, inbound: S, peer: Peer) -> ToReceiver
    where
        S: Stream<Item = Result<v1::ToSource, Status>> + Send + Unpin + 'static,
    {
        let (outbound, responses) = mpsc::channel(CHANNEL_MESSAGES_MAX);
        tokio::spawn(session::run(Arc::clone(&self.shared), peer, inbound, outbound));
        ReceiverStream::new(responses)
    }

    /// Where everything stands: every 50 ms while something changes, and at once when a receiver or the
    /// gate comes or goes.
    pub fn positions(&self) -> watch::Receiver<SourcePositions> {
        self.shared.positions.subscribe()
    }

    /// The newest epoch, newer than this source's, that a receiver has spoken of: a reason to fence.
    pub fn newer_epoch(&self) -> watch::Receiver<Option<Epoch>> {
        self.shared.newer_epoch.subscribe()
    }

    /// The process id of the walsender that serves the gate, as in `pg_stat_replication.pid`.
    pub fn gate_backend_pid(&self) -> Option<u32> {
        self.shared.gate_backend_pid()
    }

    /// How long the gate's walsender has owed an answer that it was asked for; zero while it owes none, or
    /// while there is no connection. A walsender that stands still confirms nothing, and is not replaced
    /// by another connection: it stays PostgreSQL's first synchronous standby as long as it exists.
    pub fn gate_silent_for(&self) -> Duration {
        self.shared.gate_silent_for()
    }

    /// Closes the gate's connection; this source never makes another one. Returns once it is closed.
    ///
    /// Fencing and a fast stop need it: PostgreSQL's fast shutdown waits for a gate that never flushes.
    pub async fn drop_gate(&self) {
        self.shared.gate_dropped.cancel();
        self.shared.gate_gone.cancelled().await;
    }

    /// Ends the gate and every stream. Returns once the gate's connection is closed.
    pub async fn stop(&self) {
        self.shared.stopping.cancel();
        self.shared.gate_gone.cancelled().await;
    }
}

/// The answer of a node that is not the holder, or not yet.
pub fn refuse(reason: Reason, detail: &str, epoch: Epoch) -> ToReceiver {
    let (outbound, responses) = mpsc::channel(1);
    outbound
        .try_send(Ok(Refusal::new(reason, detail).message(epoch)))
        .expect("the channel has just been made, with room for one");
    ReceiverStream::new(responses)
}
