//! The one snapshot of the cluster that every report renders: `status`, `/status`, `WatchStatus`,
//! health endpoints and metrics.
//!
//! The content is exactly that of `ClusterStatus` in admin.proto. What is unknown is absent, never
//! zero, and nothing is ever stated more favourably than it is (I24). Nothing here decides anything.

mod acceptance;
mod build;
mod derived;
mod flush_history;
mod readiness;
#[cfg(test)]
pub(crate) mod tests;
mod wire;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use understudy_postgres::STANDBY_PARAMETERS;
use understudy_types::{
    ClusterId, DurabilityMode, Epoch, Lsn, NodeKind, PromotionId, SystemId, Timeline,
};

use crate::receipts::ReceiptSummary;
use crate::validation::ValidationReport;

pub(crate) use build::operation;
pub use build::{StatusBuilder, StatusInputs};
pub use derived::{Promotion, Waited};
pub(crate) use readiness::replaying;
pub use readiness::{Readiness, readiness};

/// Version of the JSON form; grows when a reader of the old form would misread the new one.
pub const STATUS_VERSION: u32 = 1;

/// The cluster as one node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// [`STATUS_VERSION`].
    pub version: u32,
    /// Which cluster.
    pub cluster: ClusterId,
    /// Name of the node that answers.
    pub answered_by: String,
    /// Its wall clock, microseconds since the Unix epoch.
    pub at_unix_us: i64,
    /// The Raft leader, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// The answering node hears a majority.
    pub majority: bool,
    /// The newest epoch that was granted.
    pub epoch: Epoch,
    /// Who holds the lease, as far as the answering node can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// `bootstrap`, `promoting`, `running`, `handover`, or `no-active`: granted, but nobody holds the
    /// lease.
    pub phase: String,
    /// The dial in force.
    pub durability: DurabilityMode,
    /// Nobody is waited for, and that is recorded.
    pub durability_lifted: bool,
    /// Of the durability in force.
    pub generation: u64,
    /// Who is waited for.
    pub waited_for: Vec<String>,
    /// At how many of them a commit has to be durable.
    #[serde(default)]
    pub durable_copies: u32,
    /// Who may be promoted.
    pub eligible: Vec<String>,
    /// The ceiling, where the mode has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_ceiling_seconds: Option<f64>,
    /// What would be lost now, as time; absent while the active is not heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure_seconds: Option<f64>,
    /// The same in bytes of WAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure_bytes: Option<u64>,
    /// Would an automatic failover happen now.
    pub failover: FailoverVerdict,
    /// Every member, in order of its number.
    pub nodes: Vec<NodeStatus>,
    /// What operators ordered, oldest first.
    pub operations: Vec<OperationView>,
    /// End of the pause; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_until_unix_us: Option<i64>,
    /// PostgreSQL's identifier; absent before the first grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<SystemId>,
    /// Every reported grant, oldest first.
    pub lineage: Vec<LineageStatus>,
    /// The state's log index at the answering node.
    pub applied_index: u64,
    /// Since when the active has been writable without a break, as the answering node knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writable_since_unix_us: Option<i64>,
    /// The dial as it is wanted; `durability` is what is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dial: Option<DialView>,
    /// The newest look of the answering node whether a failover would work; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationReport>,
    /// A switchover that is to begin at a stated time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_switchover: Option<ScheduledView>,
}

/// The RPO dial, as an operator set it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DialView {
    /// The mode.
    pub mode: DurabilityMode,
    /// The ceiling of `bounded`, the limit of `best-effort` for a failover without a person.
    pub ceiling_seconds: f64,
    /// `stall` or `degrade`.
    pub on_passive_loss: String,
    /// In `zero`: promote on a seal, before the lease of a silent active is over.
    pub promote_without_lease_wait: bool,
    /// Of the configuration.
    pub config_version: u64,
}

/// Would an automatic failover happen now, and why or why not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverVerdict {
    /// One of a closed set of words: `understudy_core::verdict::Reason::kind`.
    pub reason: String,
    /// The same in a sentence.
    pub words: String,
    /// A loss of the active now would be answered without a person.
    pub would_fail_over: bool,
    /// The command by which an operator would accept the loss that stands in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_command: Option<String>,
}

/// What a member is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SiteRole {
    /// It holds the lease.
    Active,
    /// A data node that does not.
    Passive,
    /// It votes and keeps no data.
    Witness,
    /// It votes and keeps the WAL, and has no PostgreSQL.
    Journal,
}

impl SiteRole {
    /// Every role.
    pub const ALL: [SiteRole; 4] =
        [SiteRole::Active, SiteRole::Passive, SiteRole::Witness, SiteRole::Journal];

    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            SiteRole::Active => "active",
            SiteRole::Passive => "passive",
            SiteRole::Witness => "witness",
            SiteRole::Journal => "journal",
        }
    }
}

/// One member, as far as the answering node knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub site: String,
    /// What it can be.
    pub kind: NodeKind,
    /// What it is.
    pub role: SiteRole,
    /// Its daemon's word for what it does; `unreachable` when it has not been heard lately.
    pub state: String,
    /// Since it was last heard; absent when never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_seconds_ago: Option<f64>,
    /// Its PostgreSQL answers. False also when the node is not heard.
    pub postgres_running: bool,
    /// Its PostgreSQL's timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// A primary's local flush position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flush_lsn: Option<Lsn>,
    /// What its gate has released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_lsn: Option<Lsn>,
    /// Durable in its journal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durable_lsn: Option<Lsn>,
    /// Replayed by its standby.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_lsn: Option<Lsn>,
    /// WAL of the active that is not yet durable there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durable_lag_bytes: Option<u64>,
    /// WAL of the active that is not yet replayed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_lag_bytes: Option<u64>,
    /// For how long at most its durable position has been behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durable_lag_seconds: Option<f64>,
    /// For how long at most its replay has been behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_lag_seconds: Option<f64>,
    /// It receives the active's stream, for this epoch.
    pub attached: bool,
    /// Clients are let in and its gate is open.
    pub writable: bool,
    /// What is left of its lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_left_seconds: Option<f64>,
    /// A long step that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<StepProgress>,
    /// Why it is not where it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Where applications reach its PostgreSQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres_address: Option<String>,
    /// Its HTTP door.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_address: Option<String>,
    /// Its gRPC door.
    pub grpc_address: String,
    /// Of its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_version: Option<String>,
    /// What keeps it from being promoted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
    /// It leads the consensus.
    pub leader: bool,
    /// Known limits of the gate that were found at its server, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The newest loss receipt that it keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_receipt: Option<ReceiptSummary>,
    /// How far apart its gate keeps releases, because exposure is near the ceiling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_delay_seconds: Option<f64>,
    /// Received and flushed by its standby.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_lsn: Option<Lsn>,
    /// PostgreSQL's `server_version_num`, such as 150018.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version_num: Option<u32>,
    /// When its postmaster started, microseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postmaster_start_unix_us: Option<i64>,
    /// When the newest commit that its standby has replayed was made, by the server's wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed_commit_unix_us: Option<i64>,
    /// Somebody has paused replay there.
    #[serde(default)]
    pub replay_paused: bool,
    /// Settings of its PostgreSQL that take effect with its next restart, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending_restart: Vec<String>,
    /// Those, and the ones of which a standby must not have less than its primary, with their values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<ParameterView>,
}

/// A setting of a PostgreSQL that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterView {
    /// Its name.
    pub name: String,
    /// What is in force.
    pub running: String,
    /// What would be after a restart, where that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_restart: Option<String>,
}

impl NodeStatus {
    fn parameter(&self, name: &str) -> Option<&ParameterView> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }

    /// A setting that is a number, as it is in force; absent while that is not known.
    pub fn in_force(&self, name: &str) -> Option<u64> {
        self.parameter(name)?.running.parse().ok()
    }

    /// Of what a standby must not have less of than its primary: what a restart would make larger here,
    /// and what smaller.
    pub fn rising_and_falling(&self) -> (Vec<&str>, Vec<&str>) {
        let (mut rising, mut falling) = (Vec::new(), Vec::new());
        for name in STANDBY_PARAMETERS {
            match self.after_restart(name).cmp(&self.in_force(name)) {
                std::cmp::Ordering::Greater => rising.push(name),
                std::cmp::Ordering::Less => falling.push(name),
                std::cmp::Ordering::Equal => {}
            }
        }
        (rising, falling)
    }

    /// The same as it would be after a restart.
    pub fn after_restart(&self, name: &str) -> Option<u64> {
        let parameter = self.parameter(name)?;
        parameter.after_restart.as_ref().unwrap_or(&parameter.running).parse().ok()
    }
}

/// A switchover that is to begin at a stated time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledView {
    /// The operation that recorded it.
    pub operation: u64,
    /// Who is to become active.
    pub to: String,
    /// When, microseconds since the Unix epoch by the clock of whoever leads then.
    pub at_unix_us: i64,
}

/// How far a long step is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepProgress {
    /// Which: `clone`, `rewind`, …
    pub what: String,
    /// Done so far.
    pub done_bytes: u64,
    /// In all; absent while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Absent while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<f64>,
}

/// Something that an operator ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationView {
    /// The log index that recorded it.
    pub id: u64,
    /// `failover`, `accept-loss`, `switchover`, `rpo`, `pause`, `resume`, `restart`, `reload`, `reclone`.
    pub kind: String,
    /// Who ordered it.
    pub caller: String,
    /// Why, in their words.
    pub reason: String,
    /// What exactly, where the verb alone does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
    /// `scheduled`, `running`, `done`, `refused`, `failed`, `cancelled`.
    pub outcome: String,
    /// How it failed, or what came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Wall-clock microseconds since the Unix epoch.
    pub started_unix_us: i64,
    /// The same, when it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_unix_us: Option<i64>,
}

/// One reported grant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LineageStatus {
    /// Of the grant.
    pub epoch: Epoch,
    /// Who was promoted.
    pub node: String,
    /// What it writes on.
    pub timeline: Timeline,
    /// Where it left its parent; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork_lsn: Option<Lsn>,
    /// The promotion's own identity.
    pub promotion: PromotionId,
    /// Span of acknowledged commits that may have been lost, at most; absent when unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_seconds_max: Option<f64>,
    /// WAL that was missing for certain.
    #[serde(default)]
    pub lost_wal_bytes_min: u64,
    /// When it was reported, microseconds since the Unix epoch by the promoted node's wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_unix_us: Option<i64>,
}

impl OperationView {
    /// It has come to its end.
    pub fn is_over(&self) -> bool {
        !matches!(self.outcome.as_str(), "scheduled" | "running")
    }
}

impl ClusterStatus {
    /// The member of this name.
    pub fn node(&self, name: &str) -> Option<&NodeStatus> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The answering node's own line; absent only before it knows its members.
    pub fn own(&self) -> Option<&NodeStatus> {
        self.node(&self.answered_by)
    }

    /// The snapshot as it may be told at a moment when this node's gate says `writable`: what has
    /// ended since it was taken is not claimed.
    #[must_use]
    pub fn at_most_writable(mut self, writable: bool) -> ClusterStatus {
        let own = self.nodes.iter_mut().find(|node| node.name == self.answered_by);
        if let Some(own) = own.filter(|own| own.writable && !writable) {
            own.writable = false;
            own.lease_left_seconds = None;
        }
        self
    }
}

impl ClusterStatus {
    /// The snapshot as it may be told when it has not been made anew for too long: who was who, and nothing
    /// that it would take the present to know.
    #[must_use]
    pub fn of_the_past(mut self) -> ClusterStatus {
        let words = "this node's view of the cluster stands still";
        self.majority = false;
        self.leader = None;
        self.active = None;
        self.phase = "no-active".to_owned();
        self.exposure_seconds = None;
        self.exposure_bytes = None;
        self.writable_since_unix_us = None;
        self.validation = None;
        self.failover = FailoverVerdict {
            reason: "stale".to_owned(),
            words: words.to_owned(),
            would_fail_over: false,
            accept_command: None,
        };
        for node in &mut self.nodes {
            node.state = "unreachable".to_owned();
            node.postgres_running = false;
            node.attached = false;
            node.writable = false;
            node.leader = false;
            node.heard_seconds_ago = None;
            node.lease_left_seconds = None;
            node.durable_lag_bytes = None;
            node.durable_lag_seconds = None;
            node.replay_lag_bytes = None;
            node.replay_lag_seconds = None;
        }
        self
    }
}

/// Whether writes are possible at this very moment, and in either case why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writability {
    /// Clients are let in, the gate is open and the lease runs.
    pub writable: bool,
    /// In words.
    pub reason: String,
}

/// Judges at the moment of the call, from the permit cell and the clock, never from a snapshot, so
/// that no answer outlives the lease. Must not block.
pub type WritabilityFn = Arc<dyn Fn() -> Writability + Send + Sync>;
