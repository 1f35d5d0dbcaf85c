//! Orders to one node and what is scheduled, as messages and back, exactly.

use std::time::Duration;

use understudy_core::Command;
use understudy_core::state::{NodeOrder, NodeVerb, Scheduled};
use understudy_proto::v1::cluster_state as state;
use understudy_proto::v1::command::{self as message, Kind};
use understudy_proto::{FieldError, v1};
use understudy_types::{NodeId, ProcessStart};

use super::{epoch, nanos, unspecified, word};

fn write_verb(verb: NodeVerb) -> i32 {
    let verb = match verb {
        NodeVerb::Restart => v1::NodeVerb::Restart,
        NodeVerb::Reload => v1::NodeVerb::Reload,
        NodeVerb::Reclone => v1::NodeVerb::Reclone,
    };
    verb.into()
}

fn read_verb(verb: i32) -> Result<NodeVerb, FieldError> {
    match word("verb", verb)? {
        v1::NodeVerb::Restart => Ok(NodeVerb::Restart),
        v1::NodeVerb::Reload => Ok(NodeVerb::Reload),
        v1::NodeVerb::Reclone => Ok(NodeVerb::Reclone),
        v1::NodeVerb::Unspecified => Err(unspecified("verb")),
    }
}

/// `None` for every other command.
pub(super) fn write_command(command: &Command) -> Option<Kind> {
    Some(match command {
        Command::OrderNode { node, verb, epoch, accepts_waiting, caller, reason, at_unix_us } => {
            Kind::OrderNode(message::OrderNode {
                node: node.0,
                verb: write_verb(*verb),
                epoch: Some((*epoch).into()),
                accepts_waiting: *accepts_waiting,
                caller: caller.clone(),
                reason: reason.clone(),
                at_unix_us: *at_unix_us,
            })
        }
        Command::BeginNodeOrder { operation, node, process } => {
            Kind::BeginNodeOrder(message::BeginNodeOrder {
                operation: *operation,
                node: node.0,
                process_start: process.0,
            })
        }
        Command::EndNodeOrder { operation, failed, words, at_unix_us } => {
            Kind::EndNodeOrder(message::EndNodeOrder {
                operation: *operation,
                failed: *failed,
                words: words.clone(),
                at_unix_us: *at_unix_us,
            })
        }
        Command::ScheduleSwitchover {
            to,
            epoch,
            budget,
            due_unix_us,
            caller,
            reason,
            at_unix_us,
        } => Kind::ScheduleSwitchover(message::ScheduleSwitchover {
            to: to.0,
            epoch: Some((*epoch).into()),
            budget_ns: nanos(*budget),
            due_unix_us: *due_unix_us,
            caller: caller.clone(),
            reason: reason.clone(),
            at_unix_us: *at_unix_us,
        }),
        Command::BeginScheduled { operation, at_unix_us } => {
            Kind::BeginScheduled(message::BeginScheduled {
                operation: *operation,
                at_unix_us: *at_unix_us,
            })
        }
        Command::CancelScheduled { caller, reason, at_unix_us } => {
            Kind::CancelScheduled(message::CancelScheduled {
                caller: caller.clone(),
                reason: reason.clone(),
                at_unix_us: *at_unix_us,
            })
        }
        _ => return None,
    })
}

pub(super) fn read_order(c: message::OrderNode) -> Result<Command, FieldError> {
    Ok(Command::OrderNode {
        node: NodeId(c.node),
        verb: read_verb(c.verb)?,
        epoch: epoch("epoch", c.epoch)?,
        accepts_waiting: c.accepts_waiting,
        caller: c.caller,
        reason: c.reason,
        at_unix_us: c.at_unix_us,
    })
}

pub(super) fn read_begin(c: &message::BeginNodeOrder) -> Command {
    Command::BeginNodeOrder {
        operation: c.operation,
        node: NodeId(c.node),
        process: ProcessStart(c.process_start),
    }
}

pub(super) fn read_schedule(c: message::ScheduleSwitchover) -> Result<Command, FieldError> {
    Ok(Command::ScheduleSwitchover {
        to: NodeId(c.to),
        epoch: epoch("epoch", c.epoch)?,
        budget: Duration::from_nanos(c.budget_ns),
        due_unix_us: c.due_unix_us,
        caller: c.caller,
        reason: c.reason,
        at_unix_us: c.at_unix_us,
    })
}

pub(super) fn write_state(node: NodeId, order: &NodeOrder) -> state::NodeOrder {
    state::NodeOrder {
        node: node.0,
        operation: order.operation,
        verb: write_verb(order.verb),
        begun: order.begun.map(|process| process.0),
        epoch: Some(order.epoch.into()),
        accepts_waiting: order.accepts_waiting,
    }
}

pub(super) fn read_state(order: &state::NodeOrder) -> Result<(NodeId, NodeOrder), FieldError> {
    let read = NodeOrder {
        operation: order.operation,
        verb: read_verb(order.verb)?,
        epoch: epoch("epoch", order.epoch)?,
        accepts_waiting: order.accepts_waiting,
        begun: order.begun.map(ProcessStart),
    };
    Ok((NodeId(order.node), read))
}

pub(super) fn write_scheduled(scheduled: &Scheduled) -> state::Scheduled {
    state::Scheduled {
        operation: scheduled.operation,
        to: scheduled.to.0,
        budget_ns: nanos(scheduled.budget),
        due_unix_us: scheduled.due_unix_us,
    }
}

pub(super) fn read_scheduled(scheduled: &state::Scheduled) -> Scheduled {
    Scheduled {
        operation: scheduled.operation,
        to: NodeId(scheduled.to),
        budget: Duration::from_nanos(scheduled.budget_ns),
        due_unix_us: scheduled.due_unix_us,
    }
}
