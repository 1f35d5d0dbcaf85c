//! Builds the snapshot from the replicated state, the core's judgement and the nodes' reports.
//!
//! Pure, but for a memory of the active's positions that turns bytes of lag into seconds. A report
//! that is not fresh proves nothing about the present: what it said is shown as positions only.

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_core::ClusterState;
use understudy_core::node::{REPORT_FRESH, Standing};
use understudy_core::state::{Mark, Operation, OperationStatus, Phase};
use understudy_core::verdict::{Reason, Verdict};
use understudy_proto::v1;
use understudy_types::{BootInstant, ClusterId, DurabilityMode, Lsn, NodeId, NodeKind, Timeline};

use super::acceptance;
use super::flush_history::FlushHistory;
use super::{
    ClusterStatus, DialView, FailoverVerdict, LineageStatus, NodeStatus, OperationView,
    STATUS_VERSION, ScheduledView, SiteRole, StepProgress,
};
use crate::config;
use crate::validation::ValidationReport;

/// What a snapshot is made from.
#[derive(Debug)]
pub struct StatusInputs<'a> {
    /// From the configuration: known before founding.
    pub cluster: ClusterId,
    /// This node.
    pub me: NodeId,
    /// The founding members, shown while the state has none yet.
    pub members: &'a [config::Member],
    /// The replicated state.
    pub state: &'a ClusterState,
    /// Its log index here.
    pub applied_index: u64,
    /// How this node stands.
    pub standing: &'a Standing,
    /// Would the active's loss be answered.
    pub verdict: &'a Verdict,
    /// The Raft leader, as this node knows it.
    pub leader: Option<NodeId>,
    /// This node hears a majority.
    pub majority: bool,
    /// This node's own clock says that the lease is over (`Core::lease_over`).
    pub lease_over: bool,
    /// The newest report of each node with the moment it came in; the own one, made now, included.
    pub reports: &'a BTreeMap<NodeId, (BootInstant, v1::NodeReport)>,
    /// Writes are possible here at this moment, by the permit cell.
    pub writable: bool,
    /// Now.
    pub now: BootInstant,
    /// Wall clock, microseconds since the Unix epoch.
    pub wall_unix_us: i64,
    /// Since when the active has been writable without a break, as this node knows it.
    pub writable_since_unix_us: Option<i64>,
    /// The newest look whether a failover would work.
    pub validation: Option<&'a ValidationReport>,
}

/// Makes snapshots, one after the other; keep one for the life of the daemon.
#[derive(Debug, Default)]
pub struct StatusBuilder {
    flushed: FlushHistory,
}

impl StatusBuilder {
    /// The cluster as `inputs` show it.
    pub fn build(&mut self, inputs: &StatusInputs<'_>) -> ClusterStatus {
        let view = View::new(inputs);
        if let Some((at, flush_lsn)) = view.active_flush {
            self.flushed.observe(inputs.state.epoch, at, flush_lsn);
        }
        let state = inputs.state;
        let names = |nodes: &std::collections::BTreeSet<NodeId>| {
            nodes.iter().map(|node| state.name_of(*node)).collect()
        };
        let bounded = state.durability.mode == DurabilityMode::Bounded;
        let exposure = view.exposure();
        ClusterStatus {
            version: STATUS_VERSION,
            cluster: inputs.cluster,
            answered_by: view.name_of(inputs.me),
            at_unix_us: inputs.wall_unix_us,
            leader: inputs.leader.map(|leader| view.name_of(leader)),
            majority: inputs.majority,
            epoch: state.epoch,
            active: view.active.map(|active| view.name_of(active)),
            phase: view.phase().to_owned(),
            durability: state.durability.mode,
            durability_lifted: state.durability.lifted,
            generation: state.durability.generation,
            waited_for: names(&state.durability.waited),
            durable_copies: u32::try_from(state.durability.copies_count()).unwrap_or(u32::MAX),
            eligible: names(&state.durability.eligible),
            rpo_ceiling_seconds: bounded.then_some(state.config.rpo.as_secs_f64()),
            exposure_seconds: exposure.map(|(time, _)| time.as_secs_f64()),
            exposure_bytes: exposure.map(|(_, bytes)| bytes),
            failover: FailoverVerdict {
                reason: inputs.verdict.reason.kind().to_owned(),
                words: inputs.verdict.reason.to_string(),
                would_fail_over: inputs.verdict.would_fail_over,
                accept_command: view.accept_command(),
            },
            nodes: view.members.iter().map(|member| self.node(&view, member)).collect(),
            operations: state.operations.iter().map(|(id, op)| operation(state, *id, op)).collect(),
            paused_until_unix_us: state.pause.as_ref().map(|pause| pause.until_unix_us),
            system_id: state.identity.and_then(|identity| identity.system_id),
            lineage: lineage(state),
            applied_index: inputs.applied_index,
            writable_since_unix_us: inputs.writable_since_unix_us,
            dial: state.identity.map(|_| dial(state)),
            validation: inputs.validation.cloned(),
            scheduled_switchover: state.scheduled.map(|scheduled| ScheduledView {
                operation: scheduled.operation,
                to: state.name_of(scheduled.to),
                at_unix_us: scheduled.due_unix_us,
            }),
        }
    }

    fn node(&self, view: &View<'_>, member: &MemberLine) -> NodeStatus {
        let inputs = view.inputs;
        let own = member.id == inputs.me;
        let heard = inputs.reports.get(&member.id);
        let report = heard.map(|(_, report)| report);
        let fresh = view.fresh(member.id);
        let role = view.role(member);
        let lag = |lsn: Option<Lsn>| {
            let follows = matches!(role, SiteRole::Passive | SiteRole::Journal);
            let lsn = lsn.filter(|_| follows)?;
            // Known only against an active that is heard, and never less than what that said.
            let bytes = view.active_flush?.1.bytes_since(lsn);
            let behind = self.flushed.behind(inputs.now, lsn);
            Some((bytes, behind.map(|time| time.as_secs_f64())))
        };
        let durable_lsn = report.and_then(|report| report.durable_lsn).map(Lsn);
        let replay_lsn = report.and_then(|report| report.replay_lsn).map(Lsn);
        let (durable_lag, replay_lag) = (lag(durable_lsn), lag(replay_lsn));
        let words = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        NodeStatus {
            name: member.name.clone(),
            site: member.site.clone(),
            kind: member.kind,
            role,
            state: match fresh {
                _ if own => inputs.standing.word.to_owned(),
                Some(report) => report.state.clone(),
                None => "unreachable".to_owned(),
            },
            heard_seconds_ago: heard.map(|(at, _)| inputs.now.since(*at).as_secs_f64()),
            postgres_running: fresh.is_some_and(|report| report.postgres_running),
            timeline: report.and_then(|report| report.timeline).and_then(Timeline::new),
            flush_lsn: report.and_then(|report| report.flush_lsn).map(Lsn),
            released_lsn: report.and_then(|report| report.released_lsn).map(Lsn),
            durable_lsn,
            replay_lsn,
            durable_lag_bytes: durable_lag.map(|(bytes, _)| bytes),
            replay_lag_bytes: replay_lag.map(|(bytes, _)| bytes),
            durable_lag_seconds: durable_lag.and_then(|(_, seconds)| seconds),
            replay_lag_seconds: replay_lag.and_then(|(_, seconds)| seconds),
            attached: fresh.is_some_and(|report| report.attached),
            writable: view.writable(member.id),
            lease_left_seconds: view.lease_left(member.id).map(|left| left.as_secs_f64()),
            progress: fresh.and_then(progress),
            trouble: match fresh {
                _ if own => inputs.standing.trouble.clone(),
                Some(report) => words(&report.trouble),
                None => None,
            },
            postgres_address: report.and_then(|report| words(&report.postgres_address)),
            http_address: report.and_then(|report| words(&report.http_address)),
            grpc_address: member.address.clone(),
            program_version: report.and_then(|report| words(&report.version)),
            mark: inputs.state.marks.get(&member.id).map(mark),
            leader: inputs.leader == Some(member.id),
            warnings: fresh.map(|report| report.warnings.clone()).unwrap_or_default(),
            newest_receipt: report
                .and_then(|report| report.newest_receipt.clone())
                .and_then(|receipt| receipt.try_into().ok()),
            release_delay_seconds: fresh
                .and_then(|report| report.release_delay_ns)
                .map(|delay| Duration::from_nanos(delay).as_secs_f64()),
            receive_lsn: report.and_then(|report| report.receive_lsn).map(Lsn),
            server_version_num: report.and_then(|report| report.server_version_num),
            postmaster_start_unix_us: fresh.and_then(|report| report.postmaster_start_unix_us),
            replayed_commit_unix_us: report.and_then(|report| report.replayed_commit_unix_us),
            replay_paused: fresh.is_some_and(|report| report.replay_paused),
            pending_restart: fresh.map(pending_restart).unwrap_or_default(),
            parameters: fresh
                .map(|report| report.parameters.iter().cloned().map(Into::into).collect())
                .unwrap_or_default(),
        }
    }
}

/// A member, from the state or, before founding, from the configuration.
#[derive(Debug)]
struct MemberLine {
    id: NodeId,
    name: String,
    site: String,
    kind: NodeKind,
    address: String,
}

/// The inputs with what follows from them.
struct View<'a> {
    inputs: &'a StatusInputs<'a>,
    members: Vec<MemberLine>,
    /// Who holds the lease, as far as can be told.
    active: Option<NodeId>,
    /// How far the active's WAL reaches, and when it said so; only while it is heard.
    active_flush: Option<(BootInstant, Lsn)>,
}

impl<'a> View<'a> {
    fn new(inputs: &'a StatusInputs<'a>) -> View<'a> {
        let state = inputs.state;
        let released = state.holder.as_ref().is_some_and(|holder| holder.released.is_some());
        let active = state.active().filter(|_| !released && !inputs.lease_over);
        let mut view = View { inputs, members: members(inputs), active, active_flush: None };
        view.active_flush = active.and_then(|active| {
            let report = view.fresh(active)?;
            let flush_lsn = Lsn(report.flush_lsn?);
            Some((inputs.reports.get(&active)?.0, flush_lsn))
        });
        view
    }

    fn name_of(&self, node: NodeId) -> String {
        let found = self.members.iter().find(|member| member.id == node);
        found.map_or_else(|| format!("node {node}"), |member| member.name.clone())
    }

    /// A node's report, if it speaks for the present.
    fn fresh(&self, node: NodeId) -> Option<&'a v1::NodeReport> {
        let (at, report) = self.inputs.reports.get(&node)?;
        (self.inputs.now.since(*at) < REPORT_FRESH).then_some(report)
    }

    fn role(&self, member: &MemberLine) -> SiteRole {
        match member.kind {
            NodeKind::Witness => SiteRole::Witness,
            NodeKind::Journal => SiteRole::Journal,
            NodeKind::Data if self.active == Some(member.id) => SiteRole::Active,
            NodeKind::Data => SiteRole::Passive,
        }
    }

    fn phase(&self) -> &'static str {
        match &self.inputs.state.phase {
            Phase::Bootstrap => "bootstrap",
            Phase::Promoting(_) => "promoting",
            Phase::Running if self.active.is_some() => "running",
            Phase::Handover(_) if self.active.is_some() => "handover",
            Phase::Running | Phase::Handover(_) => "no-active",
        }
    }

    /// What is left of a node's lease now; a report grows old while it lies here.
    fn lease_left(&self, node: NodeId) -> Option<Duration> {
        let left = if node == self.inputs.me {
            self.inputs.standing.deadline?.since(self.inputs.now)
        } else {
            let report = self.fresh(node)?;
            let age = self.inputs.now.since(self.inputs.reports.get(&node)?.0);
            Duration::from_millis(report.lease_left_ms?).saturating_sub(age)
        };
        (!left.is_zero()).then_some(left)
    }

    fn writable(&self, node: NodeId) -> bool {
        if node == self.inputs.me {
            return self.inputs.writable;
        }
        let said = self.fresh(node).is_some_and(|report| report.writable);
        said && self.active == Some(node) && self.lease_left(node).is_some()
    }

    /// How an operator would have a lost active replaced all the same.
    fn accept_command(&self) -> Option<String> {
        let Reason::NotEligible { candidate, why } = &self.inputs.verdict.reason else {
            return None;
        };
        if self.active.is_some() {
            return None;
        }
        let to = self.members.iter().find(|member| member.name == *candidate)?.id;
        let durable_lsn = Lsn(self.fresh(to)?.durable_lsn?);
        acceptance::command(self.inputs.state, to, durable_lsn, why)
    }

    /// What the active said that would be lost, with what may have been added since it said so.
    fn exposure(&self) -> Option<(Duration, u64)> {
        let active = self.active?;
        let report = self.fresh(active)?;
        let age = self.inputs.now.since(self.inputs.reports.get(&active)?.0);
        let mut time = Duration::from_nanos(report.exposure_ns?);
        if !time.is_zero() {
            time += age;
        }
        Some((time, report.exposure_bytes?))
    }
}

fn members(inputs: &StatusInputs<'_>) -> Vec<MemberLine> {
    if inputs.state.members.is_empty() {
        let line = |member: &config::Member| MemberLine {
            id: member.id,
            name: member.name.to_string(),
            site: member.site.to_string(),
            kind: member.kind,
            address: member.address.clone(),
        };
        return inputs.members.iter().map(line).collect();
    }
    let members = inputs.state.members.iter();
    let line = members.map(|(id, member)| MemberLine {
        id: *id,
        name: member.name.to_string(),
        site: member.site.to_string(),
        kind: member.kind,
        address: member.address.clone(),
    });
    line.collect()
}

fn progress(report: &v1::NodeReport) -> Option<StepProgress> {
    (!report.progress_what.is_empty()).then(|| StepProgress {
        what: report.progress_what.clone(),
        done_bytes: report.progress_done_bytes,
        total_bytes: Some(report.progress_total_bytes).filter(|total| *total != 0),
        bytes_per_second: Some(report.progress_bytes_per_second).filter(|rate| *rate > 0.0),
    })
}

fn pending_restart(report: &v1::NodeReport) -> Vec<String> {
    let pending = report.parameters.iter().filter(|p| p.after_restart.is_some());
    pending.map(|parameter| parameter.name.clone()).collect()
}

fn mark(mark: &Mark) -> String {
    match mark {
        Mark::Dirty => "dirty".to_owned(),
        Mark::Suspect(words) => format!("suspect: {words}"),
    }
}

fn dial(state: &ClusterState) -> DialView {
    DialView {
        mode: state.config.mode,
        ceiling_seconds: state.config.rpo.as_secs_f64(),
        on_passive_loss: state.config.on_passive_loss.word().to_owned(),
        promote_without_lease_wait: state.config.promote_without_lease_wait,
        config_version: state.config_version,
    }
}

/// An operation as it is shown.
pub(crate) fn operation(state: &ClusterState, id: u64, operation: &Operation) -> OperationView {
    let waits = state.scheduled.is_some_and(|scheduled| scheduled.operation == id);
    let (outcome, detail) = match &operation.status {
        OperationStatus::Running if waits => ("scheduled", None),
        OperationStatus::Running => ("running", None),
        OperationStatus::Done => ("done", operation.report.clone()),
        OperationStatus::Failed(words) => ("failed", Some(words.clone())),
        OperationStatus::Cancelled(words) => ("cancelled", Some(words.clone())),
    };
    OperationView {
        id,
        kind: operation.kind.word().to_owned(),
        caller: operation.caller.clone(),
        reason: operation.reason.clone(),
        what: operation.what.clone(),
        outcome: outcome.to_owned(),
        detail,
        started_unix_us: operation.started_unix_us,
        ended_unix_us: operation.ended_unix_us,
    }
}

fn lineage(state: &ClusterState) -> Vec<LineageStatus> {
    let links = state.lineage.iter().map(|(epoch, granted)| LineageStatus {
        epoch: *epoch,
        node: state.name_of(granted.node),
        timeline: granted.timeline,
        fork_lsn: granted.fork_lsn,
        promotion: granted.promotion,
        lost_seconds_max: granted.loss.time_max.map(|time| time.as_secs_f64()),
        lost_wal_bytes_min: granted.loss.wal_bytes_min,
        at_unix_us: granted.at_unix_us,
    });
    links.collect()
}
