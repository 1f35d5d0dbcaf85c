//! What the core is told about the world: the local server, the journal, the peers.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{
    BootInstant, Epoch, Lsn, NodeId, ProcessStart, PromotionId, SourcePositions, SystemId, Timeline,
};

/// What the executor last saw on its own machine. Replaced as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LocalView {
    /// The data directory.
    pub data: DataView,
    /// The server.
    pub postgres: PostgresView,
    /// The journal; `None` while it is empty.
    pub journal: Option<JournalView>,
}

/// The data directory.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum DataView {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// Nothing is there.
    Empty,
    /// A cluster.
    Cluster {
        /// Its system identifier.
        system_id: SystemId,
        /// The timeline in its control file.
        timeline: Timeline,
    },
    /// It cannot be used; the words say why and what to do.
    Unusable(String),
}

/// The local server.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PostgresView {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// No postmaster.
    Stopped,
    /// A postmaster runs.
    Running(PostgresFacts),
}

/// A running server. What it did not say is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PostgresFacts {
    /// For how long neither an open session nor a new one has answered; zero when one just did.
    pub silent_for: Duration,
    /// For how long no new session has been let in, or been refused in words, while older ones may
    /// well answer: so a frozen postmaster looks. Zero when the last attempt was answered.
    pub door_silent_for: Duration,
    /// A standby, or not yet opened for writing.
    pub in_recovery: Option<bool>,
    /// The timeline it writes on or replays.
    pub timeline: Option<Timeline>,
    /// Flushed locally (a primary).
    pub flush_lsn: Option<Lsn>,
    /// Replayed (a standby).
    pub replay_lsn: Option<Lsn>,
    /// It is not the server that this process started or took up as the holder.
    pub foreign_server: bool,
    /// Somebody other than this node is connected under the gate's name.
    pub foreign_gate: bool,
    /// Somebody else started it: it has no gate's name on its command line.
    #[serde(default)]
    pub not_ours: bool,
    /// Its replay has stopped: it was started with less of a parameter than its primary writes WAL with. Only
    /// another start helps, and it could not be promoted before.
    #[serde(default)]
    pub short_of_parameters: bool,
}

/// The journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalView {
    /// The timeline of its last byte.
    pub timeline: Timeline,
    /// Verified and durable up to here.
    pub durable_lsn: Lsn,
    /// The promotion whose WAL it follows.
    pub promotion: Option<PromotionId>,
    /// Where what is here begins, if there is nothing but a journal; zero where the data is here too.
    #[serde(default)]
    pub begin_lsn: Lsn,
}

/// What a peer said last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Who.
    pub node: NodeId,
    /// Its process start.
    pub process: ProcessStart,
    /// The newest epoch it knows.
    pub epoch: Epoch,
    /// Its data directory, if it has one that is usable.
    pub data: Option<(SystemId, Timeline)>,
    /// Its journal's durable end.
    pub durable_lsn: Option<Lsn>,
    /// The promotion its journal follows.
    pub promotion: Option<PromotionId>,
    /// It is able to carry out a promotion: a standby runs there, on complete data.
    pub promotable: bool,
    /// It could go on as the holder that it was: complete data, nothing else under way.
    pub resumable: bool,
    /// Where what it has begins, if it has nothing but a journal.
    #[serde(default)]
    pub begin_lsn: Lsn,
}

/// A peer's report and when it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeardReport {
    /// When it came in, on the local clock.
    pub at: BootInstant,
    /// What it said.
    pub report: PeerReport,
}

/// What the WAL path of a holder said last; `None` while there is no source.
pub type SourceView = Option<SourcePositions>;
