//! Commands, what their proposers believed, and the outcomes of `apply`.
//!
//! "Committed" grants nothing: only *Accepted* does (mistake 1 of docs/safety.md).

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{
    ClusterId, DurabilityMode, Epoch, Lsn, NodeId, ProcessStart, PromotionId, SystemId, Timeline,
};

use super::{Dial, LossBound, LossLimit, Mark, Member, NodeVerb, OperationKind, Published};
use crate::ClusterConfig;

/// What the proposer of a change of holder believed; compared field by field at apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expect {
    /// The epoch.
    pub epoch: Epoch,
    /// The last accepted renewal of it.
    pub seq: u64,
    /// The generation of the durability in force.
    pub generation: u64,
    /// The phase.
    pub phase: PhaseKey,
    /// The configuration's version.
    pub config_version: u64,
}

/// A phase, as far as expectations compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PhaseKey {
    /// Nobody was ever granted anything.
    Bootstrap,
    /// This promotion is under way.
    Promoting(PromotionId),
    /// A holder runs.
    Running,
    /// A holder is handing over, on behalf of this operation.
    Handover(u64),
}

/// Who speaks as the holder: every command of a holder carries it (RULE 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderProof {
    /// The epoch it holds.
    pub epoch: Epoch,
    /// Its id.
    pub node: NodeId,
    /// The start of the process that speaks.
    pub process: ProcessStart,
}

/// Why a node is granted an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PromoteCause {
    /// The first grant of a founded cluster.
    Bootstrap,
    /// The proposer's own clock says that the lease is over.
    LeaseOver,
    /// The holder gave its lease back.
    Released,
    /// A promotion before it did not get done.
    Supersede,
    /// In `zero`, by policy: the holder is silent, and the candidate's seal keeps it from
    /// acknowledging anything, whatever is left of its lease.
    Sealed,
}

/// Why a holder gave its lease back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReleaseCause {
    /// Its gate is shut for good and no process of its PostgreSQL is left.
    Fenced,
    /// It shut down cleanly; everything up to here is in its WAL.
    CleanEnd(Lsn),
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first entry: who and what the cluster is.
    Found {
        /// The cluster's uuid.
        cluster: ClusterId,
        /// Every founding member.
        members: Vec<(NodeId, Member)>,
        /// The configuration to begin with.
        config: ClusterConfig,
        /// Who is granted the first epoch.
        initial_active: NodeId,
    },
    /// The holder goes on.
    Renew {
        /// Who renews.
        by: HolderProof,
        /// Grows by one with each; a retry is a new one.
        seq: u64,
        /// D of this renewal.
        ttl: Duration,
        /// What it publishes.
        published: Published,
    },
    /// The holder gives the lease back.
    Release {
        /// Who.
        by: HolderProof,
        /// The last renewal that it knows to be accepted.
        seq: u64,
        /// On what ground.
        cause: ReleaseCause,
    },
    /// `node` is waited for from now on, and may be promoted. Proposed only once the gate waits.
    SyncAdd {
        /// The holder.
        by: HolderProof,
        /// The generation it is meant for.
        generation: u64,
        /// Who is added.
        node: NodeId,
        /// k from then on, as in [`super::Durability::copies`].
        #[serde(default, skip_serializing_if = "crate::config::is_zero")]
        copies: u32,
        /// Everything acknowledged up to here is durable there.
        at: Lsn,
    },
    /// `node` is no longer waited for. The gate goes on waiting until this is accepted.
    SyncRemove {
        /// The holder.
        by: HolderProof,
        /// The generation it is meant for.
        generation: u64,
        /// Who is removed.
        node: NodeId,
        /// k from then on, as in [`super::Durability::copies`].
        #[serde(default, skip_serializing_if = "crate::config::is_zero")]
        copies: u32,
    },
    /// The mode that the configuration wants is in force. A strengthening is proposed only once the
    /// gate waits as it demands and everything ever acknowledged is where it has to be.
    SetEff {
        /// The holder.
        by: HolderProof,
        /// The generation it is meant for.
        generation: u64,
        /// The configuration it is meant for: once that has changed, it has no effect any more.
        config_version: u64,
        /// The mode.
        mode: DurabilityMode,
        /// Wall-clock microseconds, for the record.
        at_unix_us: i64,
    },
    /// An operator turns the dial: this is what is wanted from now on.
    SetDial {
        /// All of it.
        dial: Dial,
        /// Refused in another epoch.
        epoch: Epoch,
        /// Refused when the configuration has changed since the operator looked.
        config_version: u64,
        /// Who.
        caller: String,
        /// Why.
        reason: String,
        /// Wall-clock microseconds.
        at_unix_us: i64,
    },
    /// An operator's failover to a node that lacks what was acknowledged, up to a stated loss.
    AcceptLoss {
        /// To whom.
        to: NodeId,
        /// Valid in this epoch only.
        epoch: Epoch,
        /// How much.
        limit: LossLimit,
        /// Who.
        caller: String,
        /// Why.
        reason: String,
        /// Wall-clock microseconds.
        at_unix_us: i64,
    },
    /// Keeps a node from being promoted.
    SetMark {
        /// Which.
        node: NodeId,
        /// Why.
        mark: Mark,
    },
    /// Lifts a mark. Only the holder, once the node is attached and consistent.
    ClearMark {
        /// The holder.
        by: HolderProof,
        /// Which.
        node: NodeId,
    },
    /// Grants the next epoch.
    Promote {
        /// To whom.
        to: NodeId,
        /// The next epoch.
        epoch: Epoch,
        /// This promotion's own identity.
        promotion: PromotionId,
        /// The timeline to write on: above every granted one, or the last one when `to` resumes.
        timeline: Timeline,
        /// Why.
        cause: PromoteCause,
        /// What the proposer believed.
        expect: Expect,
        /// The candidate's durable end, as it reported it; `None` for whoever resumes.
        durable_lsn: Option<Lsn>,
        /// With `Bootstrap`: PostgreSQL's system identifier.
        system_id: Option<SystemId>,
    },
    /// The candidate is done; it holds the epoch.
    Promoted {
        /// The epoch.
        epoch: Epoch,
        /// The candidate.
        node: NodeId,
        /// The promotion.
        promotion: PromotionId,
        /// The timeline it writes on.
        timeline: Timeline,
        /// Where it left its parent; `None` when it resumed or is the first.
        fork_lsn: Option<Lsn>,
        /// Wall-clock microseconds, for the record.
        at_unix_us: i64,
    },
    /// An operator's failover.
    OrderFailover {
        /// To whom.
        to: NodeId,
        /// Refused in another epoch.
        epoch: Epoch,
        /// Who ordered it.
        caller: String,
        /// Why.
        reason: String,
        /// Wall-clock microseconds.
        at_unix_us: i64,
    },
    /// An operator's switchover.
    OrderSwitchover {
        /// To whom.
        to: NodeId,
        /// Refused in another epoch.
        epoch: Epoch,
        /// How long clients may be shut out before it is undone; kept within
        /// `PAUSE_BUDGET_MIN` and `PAUSE_BUDGET_MAX`.
        budget: Duration,
        /// Who ordered it.
        caller: String,
        /// Why.
        reason: String,
        /// Wall-clock microseconds.
        at_unix_us: i64,
    },
    /// The holder begins to hand over: clients are shut out from here on.
    Handover {
        /// The holder.
        by: HolderProof,
        /// On whose behalf.
        operation: u64,
    },
    /// The holder goes on instead of handing over. Not possible once it has released.
    Undo {
        /// The holder.
        by: HolderProof,
        /// What it does not carry out.
        operation: u64,
        /// Why not.
        why: String,
        /// Wall-clock microseconds.
        at_unix_us: i64,
    },
    /// Ends an operation that cannot be carried out.
    EndOrder {
        /// Which.
        operation: u64,
        /// How it ended.
        why: String,
        /// Wall-clock microseconds.
        at_unix_us: i64,
    },
    /// An operator's order to one node about its PostgreSQL.
    OrderNode {
        /// Which.
        node: NodeId,
        /// What it is to do.
        verb: NodeVerb,
        /// Refused in another epoch.
        epoch: Epoch,
        /// Commits may wait until it is done.
        accepts_waiting: bool,
        /// Who ordered it.
        caller: String,
        /// Why.
        reason: String,
        /// Wall-clock microseconds.
        at_unix_us: i64,
    },
    /// The node begins to carry out what it was ordered.
    BeginNodeOrder {
        /// Which order.
        operation: u64,
        /// The node.
        node: NodeId,
        /// The start of its process, which alone carries it out.
        process: ProcessStart,
    },
    /// An order to a node has come to its end.
    EndNodeOrder {
        /// Which.
        operation: u64,
        /// It was not carried out as ordered.
        failed: bool,
        /// Why not, or what came of it.
        words: String,
        /// Wall-clock microseconds.
        at_unix_us: i64,
    },
    /// An operator's switchover that is to begin later.
    ScheduleSwitchover {
        /// To whom.
        to: NodeId,
        /// Refused in another epoch; the one at its time may be another.
        epoch: Epoch,
        /// As in `OrderSwitchover`.
        budget: Duration,
        /// When, wall-clock microseconds.
        due_unix_us: i64,
        /// Who ordered it.
        caller: String,
        /// Why.
        reason: String,
        /// Wall-clock microseconds.
        at_unix_us: i64,
    },
    /// The time of a scheduled switchover has come.
    BeginScheduled {
        /// Which.
        operation: u64,
        /// Wall-clock microseconds.
        at_unix_us: i64,
    },
    /// An operator takes a scheduled switchover back.
    CancelScheduled {
        /// Who.
        caller: String,
        /// Why.
        reason: String,
        /// Wall-clock microseconds.
        at_unix_us: i64,
    },
    /// Stops automatic failover.
    Pause {
        /// Until then, wall-clock microseconds.
        until_unix_us: i64,
        /// Who.
        caller: String,
        /// Why.
        reason: String,
        /// Wall-clock microseconds.
        at_unix_us: i64,
    },
    /// A configured node comes back into an incarnation that was recovered; it has no vote yet.
    AdmitMember {
        /// Its number in this incarnation.
        node: NodeId,
        /// Who it is, and its storage.
        member: Member,
    },
    /// Consensus has given a vote to exactly these; for the judgement of what a loss would mean.
    SetVoters {
        /// Their numbers.
        voters: BTreeSet<NodeId>,
    },
    /// Ends a pause: by an operator, or because its time has come.
    Resume {
        /// Who; `None` when its time had come.
        caller: Option<String>,
        /// Why.
        reason: String,
        /// Wall-clock microseconds.
        at_unix_us: i64,
    },
}

impl Command {
    /// A word for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Command::Found { .. } => "found",
            Command::Renew { .. } => "renew",
            Command::Release { .. } => "release",
            Command::SyncAdd { .. } => "sync-add",
            Command::SyncRemove { .. } => "sync-remove",
            Command::SetEff { .. } => "set-eff",
            Command::SetDial { .. } => "set-dial",
            Command::AcceptLoss { .. } => "accept-loss",
            Command::SetMark { .. } => "set-mark",
            Command::ClearMark { .. } => "clear-mark",
            Command::Promote { .. } => "promote",
            Command::Promoted { .. } => "promoted",
            Command::OrderFailover { .. } => "order-failover",
            Command::OrderSwitchover { .. } => "order-switchover",
            Command::Handover { .. } => "handover",
            Command::Undo { .. } => "undo",
            Command::EndOrder { .. } => "end-order",
            Command::OrderNode { .. } => "order-node",
            Command::BeginNodeOrder { .. } => "begin-node-order",
            Command::EndNodeOrder { .. } => "end-node-order",
            Command::ScheduleSwitchover { .. } => "schedule-switchover",
            Command::BeginScheduled { .. } => "begin-scheduled",
            Command::CancelScheduled { .. } => "cancel-scheduled",
            Command::Pause { .. } => "pause",
            Command::Resume { .. } => "resume",
            Command::AdmitMember { .. } => "admit-member",
            Command::SetVoters { .. } => "set-voters",
        }
    }
}

/// What `apply` made of a command. Act only on `Accepted`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub enum Outcome {
    /// It took effect; `operation` names what it began, if it began one.
    Accepted {
        /// The operation's id: the entry's log index.
        operation: Option<u64>,
    },
    /// It had no effect.
    Rejected(Rejection),
}

impl Outcome {
    /// Accepted, without an operation.
    pub const ACCEPTED: Outcome = Outcome::Accepted { operation: None };

    /// Whether it took effect.
    pub fn is_accepted(&self) -> bool {
        matches!(self, Outcome::Accepted { .. })
    }
}

/// Why a command had no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// There is a cluster already.
    #[error("the cluster is founded already")]
    AlreadyFounded,
    /// There is none yet.
    #[error("the cluster is not founded yet")]
    NotFounded,
    /// No such member, or not a data node.
    #[error("node {0} is not a data node of this cluster")]
    NotADataNode(NodeId),
    /// The founding list is not usable.
    #[error("the founding list is not usable: {0}")]
    BadFounding(String),
    /// Meant for another epoch.
    #[error("meant for epoch {expected}, but the epoch is {current}")]
    Epoch {
        /// What the proposer believed.
        expected: Epoch,
        /// What is.
        current: Epoch,
    },
    /// Meant for another phase.
    #[error("not possible in this phase")]
    Phase,
    /// Not from the holder.
    #[error("node {0} does not hold the epoch")]
    NotHolder(NodeId),
    /// From a process that has been replaced.
    #[error("sent by process start {sent}, but {current} has renewed since")]
    Process {
        /// Who sent it.
        sent: ProcessStart,
        /// Who renewed last.
        current: ProcessStart,
    },
    /// The lease was given back.
    #[error("the lease was released")]
    Released,
    /// Another renewal came in between.
    #[error("meant for renewal {expected}, but {current} is the last accepted one")]
    Seq {
        /// What the proposer believed.
        expected: u64,
        /// What is.
        current: u64,
    },
    /// The durability has changed since.
    #[error("meant for generation {expected}, but the generation is {current}")]
    Generation {
        /// What the proposer believed.
        expected: u64,
        /// What is.
        current: u64,
    },
    /// The configuration has changed since.
    #[error("meant for configuration {expected}, but the version is {current}")]
    ConfigVersion {
        /// What the proposer believed.
        expected: u64,
        /// What is.
        current: u64,
    },
    /// The candidate may not be promoted.
    #[error("node {node} is not eligible: {why}")]
    NotEligible {
        /// Which.
        node: NodeId,
        /// Why not.
        why: Ineligible,
    },
    /// Not the promotion that was granted.
    #[error("not the promotion that was granted")]
    OtherPromotion,
    /// A timeline number that cannot be granted.
    #[error("timeline {0} cannot be granted")]
    BadTimeline(Timeline),
    /// Another operation is under way.
    #[error("operation {0} is under way")]
    Busy(u64),
    /// No such operation is under way.
    #[error("no such operation is under way")]
    NoOperation,
    /// Nothing would change.
    #[error("nothing would change")]
    NoChange,
    /// A dial that cannot be set; the words say which value and what would be right.
    #[error("the dial cannot be set so: {0}")]
    BadDial(String),
    /// Nobody who can be admitted; the words say why.
    #[error("the member cannot be admitted: {0}")]
    BadMember(String),
    /// Not the mode that is wanted.
    #[error("the mode that is wanted is {0}")]
    Mode(DurabilityMode),
    /// The active's data is what the others are made from.
    #[error("node {0} is the active one: its data is what copies are made from")]
    IsActive(NodeId),
    /// Every commit would wait for the end of it, and that was not accepted.
    #[error("commits would wait until node {0} has everything again, and nobody accepted that")]
    WouldStall(NodeId),
}

/// Why a node may not be promoted (the data side of ELIGIBLE in docs/safety.md).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Ineligible {
    /// Marked.
    #[error("marked {0}")]
    Marked(String),
    /// Not in the set of those who are waited for and may be promoted.
    #[error("it is not among the nodes that may be promoted")]
    NotInSet,
    /// Nobody is waited for: what it lacks is not known.
    #[error("commits went on without it, so what it lacks is not bounded")]
    Lifted,
    /// The exposure that was published last would break the ceiling.
    #[error(
        "the exposure published last plus one ttl, {exposure:?}, exceeds the ceiling of {ceiling:?}"
    )]
    OverCeiling {
        /// Exposure plus ttl.
        exposure: Duration,
        /// R.
        ceiling: Duration,
    },
    /// In `best-effort`: what may be missing there exceeds the limit for going on without a person.
    #[error("with it {0} would be lost, more than the limit for going on without a person")]
    OverLimit(LossBound),
    /// More would be lost than the operator accepts.
    #[error("with it {known} would be lost, but only {accepted} is accepted")]
    LossNotAccepted {
        /// What is known to be missing.
        known: LossBound,
        /// What the operator stated.
        accepted: LossLimit,
    },
    /// By the policy for `zero`, a seal is enough only while `zero` is in force.
    #[error(
        "the policy to promote without waiting for the lease is not on, or not zero is in force"
    )]
    NotByPolicy,
    /// It has less than it once said that it had.
    #[error("its journal ends before the position that was known to be durable there")]
    LostWal,
    /// The holder cannot be promoted over itself.
    #[error("it is the active node")]
    IsHolder,
    /// The lease still runs as far as the state can tell.
    #[error("the lease has not been given back")]
    NotReleased,
}

impl OperationKind {
    /// The verb.
    pub fn word(self) -> &'static str {
        match self {
            OperationKind::Failover => "failover",
            OperationKind::Switchover => "switchover",
            OperationKind::Pause => "pause",
            OperationKind::Resume => "resume",
            OperationKind::SetDial => "rpo",
            OperationKind::AcceptLoss => "accept-loss",
            OperationKind::Recover => "recover",
            OperationKind::Restart => "restart",
            OperationKind::Reload => "reload",
            OperationKind::Reclone => "reclone",
        }
    }
}
