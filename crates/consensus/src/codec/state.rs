//! The replicated state as a message and back, exactly.
//!
//! It must not depend on the order of anything but keys.

use std::collections::BTreeSet;
use std::time::Duration;

use understudy_core::state::{
    ClusterState, Durability, FailoverOrder, Granted, Holder, Identity, Operation, OperationKind,
    OperationStatus, Pause, Phase, Promoting,
};
use understudy_proto::v1::cluster_state as message;
use understudy_proto::{FieldError, parse_timeline, v1};
use understudy_types::{ClusterId, Epoch, Lsn, NodeId, ProcessStart, PromotionId, SystemId};

use super::dial::{read_change, read_limit, read_loss, write_change, write_limit, write_loss};
use super::parts::{
    read_config, read_mark, read_member, read_mode, read_promote_cause, read_published,
    read_release, write_config, write_mark, write_member, write_mode, write_promote_cause,
    write_published, write_release,
};
use super::{epoch, nanos, orders, recovery, required, switchover, unspecified, uuid, word};

pub(super) fn write(state: &ClusterState) -> v1::ClusterState {
    let granted = state.lineage.iter().map(|(epoch, granted)| write_granted(*epoch, granted));
    let operations = state.operations.iter().map(|(id, operation)| write_operation(*id, operation));
    let marks = state
        .marks
        .iter()
        .map(|(node, mark)| message::Marked { node: node.0, mark: Some(write_mark(mark)) });
    v1::ClusterState {
        identity: state.identity.as_ref().map(|identity| message::Identity {
            cluster: identity.cluster.0.as_bytes().to_vec(),
            system_id: identity.system_id.map(|id| id.0),
            initial_active: identity.initial_active.0,
        }),
        members: state.members.iter().map(|(id, member)| write_member(*id, member)).collect(),
        config: Some(write_config(&state.config)),
        config_version: state.config_version,
        epoch: Some(state.epoch.into()),
        phase: Some(write_phase(&state.phase)),
        holder: state.holder.as_ref().map(write_holder),
        durability: Some(write_durability(&state.durability)),
        lineage: granted.collect(),
        timeline_high: state.timeline_high.map(|timeline| timeline.get()),
        marks: marks.collect(),
        pause: state.pause.as_ref().map(|pause| message::Pause {
            until_unix_us: pause.until_unix_us,
            operation: pause.operation,
        }),
        order: state.order.as_ref().map(|order| message::FailoverOrder {
            operation: order.operation,
            to: order.to.0,
            accepts: order.accepts.as_ref().map(write_limit),
        }),
        operations: operations.collect(),
        switchover: state.switchover.as_ref().map(switchover::write_state),
        recovery: state.recovery.as_ref().map(recovery::write),
        node_orders: state.node_orders.iter().map(|(id, o)| orders::write_state(*id, o)).collect(),
        scheduled: state.scheduled.as_ref().map(orders::write_scheduled),
        config_history: state.config_history.iter().map(|(v, c)| write_change(*v, c)).collect(),
    }
}

pub(super) fn read(state: v1::ClusterState) -> Result<ClusterState, FieldError> {
    let mark = |m: message::Marked| Ok((NodeId(m.node), read_mark(m.mark)?));
    Ok(ClusterState {
        identity: state.identity.map(read_identity).transpose()?,
        members: state.members.into_iter().map(read_member).collect::<Result<_, _>>()?,
        config: read_config(state.config)?,
        config_version: state.config_version,
        epoch: epoch("epoch", state.epoch)?,
        phase: read_phase(required("phase", state.phase)?)?,
        holder: state.holder.map(read_holder).transpose()?,
        durability: read_durability(required("durability", state.durability)?)?,
        lineage: state.lineage.into_iter().map(read_granted).collect::<Result<_, _>>()?,
        timeline_high: state
            .timeline_high
            .map(|number| parse_timeline("timeline_high", number))
            .transpose()?,
        marks: state.marks.into_iter().map(mark).collect::<Result<_, FieldError>>()?,
        pause: state
            .pause
            .map(|pause| Pause { until_unix_us: pause.until_unix_us, operation: pause.operation }),
        order: state.order.map(|order| FailoverOrder {
            operation: order.operation,
            to: NodeId(order.to),
            accepts: order.accepts.map(read_limit),
        }),
        operations: state.operations.into_iter().map(read_operation).collect::<Result<_, _>>()?,
        switchover: state.switchover.map(switchover::read_state).transpose()?,
        recovery: state.recovery.map(recovery::read).transpose()?,
        node_orders: state.node_orders.iter().map(orders::read_state).collect::<Result<_, _>>()?,
        scheduled: state.scheduled.as_ref().map(orders::read_scheduled),
        config_history: state
            .config_history
            .into_iter()
            .map(read_change)
            .collect::<Result<_, _>>()?,
    })
}

fn read_identity(identity: message::Identity) -> Result<Identity, FieldError> {
    Ok(Identity {
        cluster: ClusterId(uuid("identity.cluster", &identity.cluster)?),
        system_id: identity.system_id.map(SystemId),
        initial_active: NodeId(identity.initial_active),
    })
}

fn write_phase(phase: &Phase) -> message::Phase {
    let (kind, promoting, handover) = match phase {
        Phase::Bootstrap => (v1::PhaseKind::Bootstrap, None, None),
        Phase::Promoting(promoting) => (v1::PhaseKind::Promoting, Some(promoting), None),
        Phase::Running => (v1::PhaseKind::Running, None, None),
        Phase::Handover(handover) => (v1::PhaseKind::Handover, None, Some(handover)),
    };
    message::Phase {
        kind: kind.into(),
        promoting: promoting.map(|promoting| message::Promoting {
            to: promoting.to.0,
            promotion: promoting.promotion.0.as_bytes().to_vec(),
            timeline: promoting.timeline.get(),
            cause: write_promote_cause(promoting.cause),
            resumes: promoting.resumes,
            loss: Some(write_loss(&promoting.loss)),
            others_to_seal: promoting.others_to_seal,
        }),
        handover: handover.map(switchover::write_phase),
    }
}

fn read_phase(phase: message::Phase) -> Result<Phase, FieldError> {
    match word("phase.kind", phase.kind)? {
        v1::PhaseKind::Bootstrap => Ok(Phase::Bootstrap),
        v1::PhaseKind::Running => Ok(Phase::Running),
        v1::PhaseKind::Handover => {
            let handover = required("phase.handover", phase.handover)?;
            Ok(Phase::Handover(switchover::read_phase(&handover)))
        }
        v1::PhaseKind::Promoting => {
            let promoting = required("phase.promoting", phase.promoting)?;
            Ok(Phase::Promoting(Promoting {
                to: NodeId(promoting.to),
                promotion: PromotionId(uuid("phase.promotion", &promoting.promotion)?),
                timeline: parse_timeline("phase.timeline", promoting.timeline)?,
                cause: read_promote_cause(promoting.cause)?,
                resumes: promoting.resumes,
                loss: read_loss(promoting.loss)?,
                others_to_seal: promoting.others_to_seal,
            }))
        }
        v1::PhaseKind::Unspecified => Err(unspecified("phase.kind")),
    }
}

fn write_holder(holder: &Holder) -> message::Holder {
    message::Holder {
        node: holder.node.0,
        process_start: holder.process.0,
        seq: holder.seq,
        ttl_ns: nanos(holder.ttl),
        released: holder.released.as_ref().map(write_release),
        published: holder.published.as_ref().map(write_published),
    }
}

fn read_holder(holder: message::Holder) -> Result<Holder, FieldError> {
    Ok(Holder {
        node: NodeId(holder.node),
        process: ProcessStart(holder.process_start),
        seq: holder.seq,
        ttl: Duration::from_nanos(holder.ttl_ns),
        released: holder.released.map(|cause| read_release(Some(cause))).transpose()?,
        published: holder.published.map(read_published),
    })
}

fn write_durability(durability: &Durability) -> message::Durability {
    let numbers = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|node| node.0).collect();
    message::Durability {
        mode: write_mode(durability.mode),
        waited: numbers(&durability.waited),
        eligible: numbers(&durability.eligible),
        generation: durability.generation,
        lifted: durability.lifted,
        copies: durability.copies,
    }
}

fn read_durability(durability: message::Durability) -> Result<Durability, FieldError> {
    let nodes = |numbers: Vec<u64>| numbers.into_iter().map(NodeId).collect();
    Ok(Durability {
        mode: read_mode(durability.mode)?,
        waited: nodes(durability.waited),
        eligible: nodes(durability.eligible),
        generation: durability.generation,
        lifted: durability.lifted,
        copies: durability.copies,
    })
}

fn write_granted(epoch: Epoch, granted: &Granted) -> message::Granted {
    message::Granted {
        epoch: Some(epoch.into()),
        node: granted.node.0,
        promotion: granted.promotion.0.as_bytes().to_vec(),
        timeline: granted.timeline.get(),
        fork_lsn: granted.fork_lsn.map(|lsn| lsn.0),
        parent: granted.parent.map(Into::into),
        loss: Some(write_loss(&granted.loss)),
        at_unix_us: granted.at_unix_us,
    }
}

fn read_granted(granted: message::Granted) -> Result<(Epoch, Granted), FieldError> {
    Ok((
        epoch("lineage.epoch", granted.epoch)?,
        Granted {
            node: NodeId(granted.node),
            promotion: PromotionId(uuid("lineage.promotion", &granted.promotion)?),
            timeline: parse_timeline("lineage.timeline", granted.timeline)?,
            fork_lsn: granted.fork_lsn.map(Lsn),
            parent: granted.parent.map(Into::into),
            loss: read_loss(granted.loss)?,
            at_unix_us: granted.at_unix_us,
        },
    ))
}

fn write_operation(id: u64, operation: &Operation) -> message::OrderedOperation {
    use message::ordered_operation::{Status, Verb};
    let verb = match operation.kind {
        OperationKind::Failover => Verb::Failover,
        OperationKind::Switchover => Verb::Switchover,
        OperationKind::Pause => Verb::Pause,
        OperationKind::Resume => Verb::Resume,
        OperationKind::SetDial => Verb::SetDial,
        OperationKind::AcceptLoss => Verb::AcceptLoss,
        OperationKind::Recover => Verb::Recover,
        OperationKind::Restart => Verb::Restart,
        OperationKind::Reload => Verb::Reload,
        OperationKind::Reclone => Verb::Reclone,
    };
    let (status, failure) = match &operation.status {
        OperationStatus::Running => (Status::Running, String::new()),
        OperationStatus::Done => (Status::Done, String::new()),
        OperationStatus::Failed(how) => (Status::Failed, how.clone()),
        OperationStatus::Cancelled(how) => (Status::Cancelled, how.clone()),
    };
    message::OrderedOperation {
        id,
        verb: verb.into(),
        caller: operation.caller.clone(),
        reason: operation.reason.clone(),
        status: status.into(),
        failure,
        started_unix_us: operation.started_unix_us,
        ended_unix_us: operation.ended_unix_us,
        what: operation.what.clone(),
        report: operation.report.clone(),
    }
}

fn read_operation(operation: message::OrderedOperation) -> Result<(u64, Operation), FieldError> {
    use message::ordered_operation::{Status, Verb};
    let kind = match word("operation.verb", operation.verb)? {
        Verb::Failover => OperationKind::Failover,
        Verb::Switchover => OperationKind::Switchover,
        Verb::Pause => OperationKind::Pause,
        Verb::Resume => OperationKind::Resume,
        Verb::SetDial => OperationKind::SetDial,
        Verb::AcceptLoss => OperationKind::AcceptLoss,
        Verb::Recover => OperationKind::Recover,
        Verb::Restart => OperationKind::Restart,
        Verb::Reload => OperationKind::Reload,
        Verb::Reclone => OperationKind::Reclone,
        Verb::Unspecified => return Err(unspecified("operation.verb")),
    };
    let status = match word("operation.status", operation.status)? {
        Status::Running => OperationStatus::Running,
        Status::Done => OperationStatus::Done,
        Status::Failed => OperationStatus::Failed(operation.failure),
        Status::Cancelled => OperationStatus::Cancelled(operation.failure),
        Status::Unspecified => return Err(unspecified("operation.status")),
    };
    Ok((
        operation.id,
        Operation {
            kind,
            caller: operation.caller,
            reason: operation.reason,
            what: operation.what,
            report: operation.report,
            status,
            started_unix_us: operation.started_unix_us,
            ended_unix_us: operation.ended_unix_us,
        },
    ))
}
