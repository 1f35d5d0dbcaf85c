//! The replicated state: small, pure, and the same on every node that applied the same log.
//!
//! Transitions are in `apply`; nothing here knows the time. Wall-clock moments in commands are data
//! that the proposer read.

mod apply;
mod command;
mod config_history;
mod dial;
mod loss;
mod orders;
mod recovery;
mod switchover;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{
    ClusterId, DurabilityMode, Epoch, Exposure, Incarnation, Lineage, Lsn, NodeId, NodeKind,
    NodeName, ProcessStart, PromotionId, SeededBug, SiteName, Survival, SystemId, Timeline,
};

pub use config_history::{CONFIG_CHANGES_KEPT, ConfigChange};
pub use dial::Dial;
pub use loss::{LossBound, LossLimit};
pub use orders::{NodeOrder, NodeVerb, SCHEDULE_TOLERANCE, Scheduled};
pub use recovery::{CannotRecover, Recovery, RecoveryOrder};

pub use command::{
    Command, Expect, HolderProof, Ineligible, Outcome, PhaseKey, PromoteCause, Rejection,
    ReleaseCause,
};
pub use switchover::{Handover, PAUSE_BUDGET_MAX, PAUSE_BUDGET_MIN, Switchover};

use crate::ClusterConfig;

/// Ended operations that are remembered; the oldest is forgotten first.
pub const OPERATIONS_KEPT: usize = 64;

/// Everything that the cluster has agreed on. Collections are ordered, so equal states have equal
/// bytes (I23).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterState {
    /// Set by founding, never changed.
    pub identity: Option<Identity>,
    /// Who belongs to the cluster.
    pub members: BTreeMap<NodeId, Member>,
    /// What was agreed on.
    pub config: ClusterConfig,
    /// Grows with every change of `config`.
    pub config_version: u64,
    /// The newest epoch that was granted.
    pub epoch: Epoch,
    /// Where the protocol stands.
    pub phase: Phase,
    /// Who holds `epoch`; `None` before the first grant.
    pub holder: Option<Holder>,
    /// Who is waited for and who may be promoted.
    pub durability: Durability,
    /// Every grant that was reported as promoted, by epoch.
    #[serde(with = "crate::serde_parts::pairs")]
    pub lineage: BTreeMap<Epoch, Granted>,
    /// The highest timeline number ever granted.
    pub timeline_high: Option<Timeline>,
    /// Nodes that must not be promoted, and why.
    pub marks: BTreeMap<NodeId, Mark>,
    /// Automatic failover is off until then.
    pub pause: Option<Pause>,
    /// An operator's failover that is under way.
    pub order: Option<FailoverOrder>,
    /// An operator's switchover that is under way.
    pub switchover: Option<Switchover>,
    /// What operators ordered, by the log index that recorded it.
    pub operations: BTreeMap<u64, Operation>,
    /// How the present incarnation came to be; `None` in the founded one.
    pub recovery: Option<Recovery>,
    /// Orders to nodes that are under way; one a node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_orders: BTreeMap<NodeId, NodeOrder>,
    /// A switchover that is to begin at a stated time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<Scheduled>,
    /// The last changes of `config`, by the version that each one made.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config_history: BTreeMap<u64, ConfigChange>,
}

/// Which cluster this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Made by `init`.
    pub cluster: ClusterId,
    /// PostgreSQL's; known from the first grant on.
    pub system_id: Option<SystemId>,
    /// The node that is granted the first epoch.
    pub initial_active: NodeId,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name, as in its certificate.
    pub name: NodeName,
    /// Where it is.
    pub site: SiteName,
    /// What it can be.
    pub kind: NodeKind,
    /// host:port of its gRPC door.
    pub address: String,
    /// Which storage answers to this id; a wiped node has another and is refused.
    pub incarnation: Incarnation,
}

/// Where the protocol stands.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Phase {
    /// Founded; nobody was ever granted anything.
    #[default]
    Bootstrap,
    /// `to` was granted the epoch and has not yet reported its promotion.
    Promoting(Promoting),
    /// The holder has reported; it may acknowledge under its lease.
    Running,
    /// As running, but the holder is stopping cleanly so that another node may follow it.
    Handover(Handover),
}

/// A grant that is being carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoting {
    /// The candidate.
    pub to: NodeId,
    /// This promotion's own identity.
    pub promotion: PromotionId,
    /// The timeline that was granted.
    pub timeline: Timeline,
    /// Why it was granted.
    pub cause: PromoteCause,
    /// The candidate goes on with the timeline it held last, without a promotion of PostgreSQL.
    pub resumes: bool,
    /// What of the acknowledged may be missing at the candidate, by what was published last.
    pub loss: LossBound,
    /// So many of the others that are waited for have to be sealed, and asked for what they have, before
    /// the candidate is promoted.
    #[serde(default, skip_serializing_if = "crate::config::is_zero")]
    pub others_to_seal: u32,
}

/// The holder of the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Who.
    pub node: NodeId,
    /// The newest process start of it that renewed; older ones' commands are rejected.
    pub process: ProcessStart,
    /// The last accepted renewal of this epoch.
    pub seq: u64,
    /// D of the last accepted renewal.
    pub ttl: Duration,
    /// It gave the lease back.
    pub released: Option<ReleaseCause>,
    /// What the last accepted renewal published.
    pub published: Option<Published>,
}

/// What a holder publishes with each renewal.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Published {
    /// Its local flush position.
    pub flush_lsn: Lsn,
    /// It releases nothing beyond this until the next renewal (`bounded`, `best-effort`).
    pub credit: Lsn,
    /// What would have been lost when it was sent.
    pub exposure: Exposure,
    /// Against what that was measured; `None` while nobody was known to hold anything.
    pub survives: Option<Survival>,
    /// How far each receiver had made WAL durable.
    pub durable: BTreeMap<NodeId, Lsn>,
    /// Who measured the exposure, and when; a holder without positions repeats the last measurement.
    pub measured: Option<Measured>,
}

impl Published {
    /// No position goes back while one node holds an epoch. A renewal repeats what it does not know from
    /// the state that its holder has applied, and between that state and the renewal another one may have
    /// been accepted, or a join (mistake 31).
    fn not_behind(mut self, last: Option<Published>) -> Published {
        let last = last.filter(|_| !SeededBug::PositionsGoBack.is_on());
        let Some(last) = last else { return self };
        self.flush_lsn = self.flush_lsn.max(last.flush_lsn);
        self.credit = self.credit.max(last.credit);
        for (node, durable_lsn) in last.durable {
            self.raise_durable(node, durable_lsn);
        }
        self
    }

    /// `node` has made WAL durable up to here, or further as is known already.
    pub fn raise_durable(&mut self, node: NodeId, durable_lsn: Lsn) {
        let durable = self.durable.entry(node).or_default();
        *durable = (*durable).max(durable_lsn);
    }
}

/// A moment on one node's own wall clock. It may only ever make exposure larger (docs/safety.md,
/// section 3), and is never compared with another node's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Whose clock.
    pub by: NodeId,
    /// Microseconds since the Unix epoch.
    pub at_unix_us: i64,
}

/// The dial as it is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durability {
    /// The mode.
    pub mode: DurabilityMode,
    /// M: who is waited for.
    pub waited: BTreeSet<NodeId>,
    /// k: at how many of M a commit has to be durable; 0 is all of them, any other number fewer.
    #[serde(default, skip_serializing_if = "crate::config::is_zero")]
    pub copies: u32,
    /// E ⊆ M: who may be promoted.
    pub eligible: BTreeSet<NodeId>,
    /// Grows with every change, so that a late duplicate is recognised.
    pub generation: u64,
    /// Nobody is waited for, and that is recorded: commits go on unprotected.
    pub lifted: bool,
}

impl Default for Durability {
    fn default() -> Durability {
        Durability {
            mode: DurabilityMode::Bounded,
            waited: BTreeSet::new(),
            copies: 0,
            eligible: BTreeSet::new(),
            generation: 0,
            lifted: true,
        }
    }
}

impl Durability {
    /// k: how many of those who are waited for have to have a commit.
    pub fn copies_count(&self) -> usize {
        let all = self.waited.len();
        if self.copies == 0 { all } else { all.min(self.copies as usize) }
    }

    /// Fewer than all of them suffice.
    pub fn is_quorum(&self) -> bool {
        self.copies_count() < self.waited.len()
    }

    /// n - k + 1: of so many of them one has whatever k of them have, so so many have to be sealed before
    /// their ends are read (mistake 10).
    pub fn seals_count(&self) -> usize {
        self.waited.len() + 1 - self.copies_count()
    }
}

/// A promotion that was reported: one link of the lineage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Who was promoted.
    pub node: NodeId,
    /// The promotion's own identity.
    pub promotion: PromotionId,
    /// The timeline it writes on.
    pub timeline: Timeline,
    /// Where it left its parent; `None` for the first grant.
    pub fork_lsn: Option<Lsn>,
    /// The epoch whose history it continues; `None` for the first grant.
    pub parent: Option<Epoch>,
    /// What of the acknowledged may have been lost with this promotion.
    pub loss: LossBound,
    /// When it was reported, in microseconds since the Unix epoch by the promoted node's wall clock; for
    /// people. `None` where an older version recorded it.
    pub at_unix_us: Option<i64>,
}

/// Why a node must not be promoted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mark {
    /// Its data directory is incomplete: a clone or rewind is under way.
    Dirty,
    /// Its promotion did not end where it should; the words say how.
    Suspect(String),
}

/// Automatic failover is off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Wall-clock end, microseconds since the Unix epoch. It only ever ends a pause.
    pub until_unix_us: i64,
    /// The operation that recorded it.
    pub operation: u64,
}

/// An operator's failover that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverOrder {
    /// The operation that recorded it.
    pub operation: u64,
    /// Who is to be promoted.
    pub to: NodeId,
    /// The loss that the operator accepts for it: in this epoch, and used up by the grant.
    pub accepts: Option<LossLimit>,
}

/// What an operator ordered; it always ends in a known state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The verb.
    pub kind: OperationKind,
    /// The certificate's identity of who ordered it.
    pub caller: String,
    /// Why, in the operator's words.
    pub reason: String,
    /// What exactly, where the verb alone does not say.
    pub what: Option<String>,
    /// How it stands.
    pub status: OperationStatus,
    /// What came of it, where `Done` alone does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
    /// Wall-clock microseconds, from the proposer.
    pub started_unix_us: i64,
    /// The same, when it ended.
    pub ended_unix_us: Option<i64>,
}

/// What kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationKind {
    /// Make another node active.
    Failover,
    /// The same with the active's help: nothing is lost.
    Switchover,
    /// Stop automatic failover.
    Pause,
    /// End a pause.
    Resume,
    /// Turn the RPO dial.
    SetDial,
    /// Make another node active although acknowledged commits are lost by it.
    AcceptLoss,
    /// Make a sole survivor a new incarnation of the cluster.
    Recover,
    /// Restart one node's PostgreSQL.
    Restart,
    /// Have one node's PostgreSQL read its settings anew.
    Reload,
    /// Make one node's data afresh from the active.
    Reclone,
}

/// How an operation stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationStatus {
    /// Under way.
    Running,
    /// Ended as ordered.
    Done,
    /// Ended otherwise; the words say how.
    Failed(String),
    /// Taken back before it had begun; the words say by whom.
    Cancelled(String),
}

impl ClusterState {
    /// The link of the current epoch, if its promotion was reported.
    pub fn current(&self) -> Option<&Granted> {
        self.lineage.get(&self.epoch)
    }

    /// The last link of the lineage: whose WAL the cluster's data is.
    pub fn last_granted(&self) -> Option<(Epoch, &Granted)> {
        self.lineage.iter().next_back().map(|(epoch, granted)| (*epoch, granted))
    }

    /// The chain of grants that ends in the last reported one, oldest first: H(e) with identities.
    pub fn history(&self) -> Vec<Lineage> {
        let mut chain = Vec::new();
        let mut at = self.last_granted().map(|(epoch, _)| epoch);
        while let Some((epoch, granted)) = at.and_then(|e| self.lineage.get_key_value(&e)) {
            chain.push(Lineage {
                epoch: *epoch,
                promotion: granted.promotion,
                timeline: granted.timeline,
                fork_lsn: granted.fork_lsn,
            });
            at = granted.parent;
        }
        chain.reverse();
        chain
    }

    /// The node that may be active: the holder, once its promotion was reported.
    pub fn active(&self) -> Option<NodeId> {
        match self.phase {
            Phase::Running | Phase::Handover(_) => self.holder.as_ref().map(|holder| holder.node),
            Phase::Bootstrap | Phase::Promoting(_) => None,
        }
    }

    /// Data nodes, in order of their ids.
    pub fn data_nodes(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().filter(|(_, m)| m.kind == NodeKind::Data).map(|(id, _)| *id)
    }

    /// Nodes that keep WAL, in order of their ids: data nodes and journals.
    pub fn wal_nodes(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().filter(|(_, m)| m.kind.keeps_wal()).map(|(id, _)| *id)
    }

    /// It keeps WAL and nothing else: it can be waited for, and never be promoted.
    pub fn is_journal(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|member| member.kind == NodeKind::Journal)
    }

    /// A member's name, for people.
    pub fn name_of(&self, node: NodeId) -> String {
        self.members.get(&node).map_or_else(|| format!("node {node}"), |m| m.name.to_string())
    }

    /// The key of the present phase, as a proposer states it in `Expect`.
    pub fn phase_key(&self) -> PhaseKey {
        match &self.phase {
            Phase::Bootstrap => PhaseKey::Bootstrap,
            Phase::Promoting(promoting) => PhaseKey::Promoting(promoting.promotion),
            Phase::Running => PhaseKey::Running,
            Phase::Handover(handover) => PhaseKey::Handover(handover.operation),
        }
    }

    /// What a proposer believes who has seen exactly this state.
    pub fn expect(&self) -> Expect {
        Expect {
            epoch: self.epoch,
            seq: self.holder.as_ref().map_or(0, |holder| holder.seq),
            generation: self.durability.generation,
            phase: self.phase_key(),
            config_version: self.config_version,
        }
    }
}
