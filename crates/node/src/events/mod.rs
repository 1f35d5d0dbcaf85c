//! What happened, in the operator's words: the closed set of kinds, and the form of an event.
//!
//! Events are derived from successive snapshots (`derive`), kept in a bounded journal in memory
//! (`journal`) and told over gRPC (`service`). They decide nothing. What came and went between two
//! snapshots, 200 ms, was seen by nobody here.

mod derive;
mod journal;
mod observer;
mod service;
#[cfg(test)]
mod tests;
mod wire;

use serde::{Deserialize, Serialize};
use understudy_types::Epoch;

pub use derive::{agreed_between, events_between, events_of_record, local_between};
pub(crate) use journal::EventJournal;
pub(crate) use observer::{EventObserver, know_the_agreed};
pub(crate) use service::EventsService;

/// Version of the JSON form; grows when a reader of the old form would misread the new one.
pub const EVENT_VERSION: u32 = 1;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// It belongs to the record.
    Info,
    /// Somebody should look at it in working hours.
    Warning,
    /// The service is or was away, unprotected or at risk.
    Alert,
}

impl Severity {
    /// All of them, the least first.
    pub const ALL: [Severity; 3] = [Severity::Info, Severity::Warning, Severity::Alert];

    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Alert => "alert",
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $word:literal,)*) => {
        /// What sort of thing happened: a closed set.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Kind] = &[$(Kind::$kind,)*];

            /// As it is printed.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Kind::$kind => $word,)*
                }
            }
        }
    };
}

kinds! {
    /// This node's daemon began, and its journal of events with it.
    DaemonStarted = "daemon-started",
    /// What this node is changed; without `from`: what it is, when its daemon has just learnt it.
    RoleChange = "role-change",
    /// Clients can write at this node, or can no more.
    WritableChange = "writable-change",
    /// Who holds the lease changed.
    ActiveChange = "active-change",
    /// A new epoch was granted.
    EpochChange = "epoch-change",
    /// The promoted node reported where its history begins and what may be lost.
    Promotion = "promotion",
    /// Whether a loss of the active would be answered, or why not.
    FailoverVerdict = "failover-verdict",
    /// This node's look ahead found something that would spoil a failover, or something else than before.
    ValidationChange = "validation-change",
    /// The RPO dial's mode in force.
    ModeChange = "mode-change",
    /// Commits go on with nobody waited for, or are protected again.
    LiftedChange = "lifted-change",
    /// Somebody ordered something.
    OperationStarted = "operation-started",
    /// It was done, or failed.
    OperationEnded = "operation-ended",
    /// PostgreSQL answers at this node.
    PostgresUp = "postgres-up",
    /// It does not any more.
    PostgresDown = "postgres-down",
    /// This node does not hear another one any more.
    NodeUnreachable = "node-unreachable",
    /// It hears it again.
    NodeHeard = "node-heard",
    /// This node hears a majority of the voters, or none.
    MajorityChange = "majority-change",
    /// This node is not where it should be.
    TroubleBegan = "trouble-began",
    /// It is again.
    TroubleEnded = "trouble-ended",
    /// A known limit of the gate, or of the room for WAL, was found at this node.
    WarningBegan = "warning-began",
    /// It is gone.
    WarningEnded = "warning-ended",
    /// There is a reason now not to promote a node.
    MarkSet = "mark-set",
    /// There is none any more.
    MarkCleared = "mark-cleared",
    /// Automatic failover is off, until a stated end.
    PauseBegan = "pause-began",
    /// It is on again.
    PauseEnded = "pause-ended",
    /// New certificate files were taken into use.
    CertificateRenewed = "certificate-renewed",
    /// New certificate files do not do; what was in use goes on.
    CertificateRefused = "certificate-refused",
    /// A hook's program did well.
    HookDone = "hook-done",
    /// A hook's program failed, could not be started, or was killed at its time limit.
    HookFailed = "hook-failed",
    /// A hook's queue was full: its program was not run for some events.
    HookOverflow = "hook-overflow",
}

impl Kind {
    /// It tells of a hook; no hook is called for it, so that none calls itself.
    pub fn is_of_a_hook(self) -> bool {
        matches!(self, Kind::HookDone | Kind::HookFailed | Kind::HookOverflow)
    }
}

/// Something that happened, before it has its place in a node's journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// What sort.
    pub kind: Kind,
    /// How much it matters.
    pub severity: Severity,
    /// What it is about.
    pub subject: String,
    /// In a sentence.
    pub words: String,
    /// At that moment.
    pub epoch: Epoch,
    /// Before.
    pub from: Option<String>,
    /// Afterwards.
    pub to: Option<String>,
    /// Wall-clock microseconds since the Unix epoch.
    pub at_unix_us: i64,
}

/// An event of a node's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// [`EVENT_VERSION`].
    pub version: u32,
    /// Its number in the journal of the node, from 1 with each start of the daemon.
    pub sequence: u64,
    /// By the wall clock of the node, or, of what the cluster has on record, as it is recorded.
    pub at_unix_us: i64,
    /// Who saw it.
    pub node: String,
    /// What sort.
    pub kind: Kind,
    /// How much it matters.
    pub severity: Severity,
    /// What it is about: a node, an operation, a hook's program, the cluster.
    pub subject: String,
    /// In a sentence.
    pub words: String,
    /// At that moment.
    pub epoch: Epoch,
    /// Before; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Afterwards; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}
