//! Orders to one node and scheduled switchovers: what is asked for, what it would do, and what the nodes'
//! settings have against it.
//!
//! The state judges an order again when it is applied. That a standby would not start, or would stop
//! replaying, because its primary allows more than it does, only the nodes' reports tell, so it is judged
//! here, before the order is proposed.

use std::time::Duration;

use tonic::{Code, Status};
use understudy_core::state::{Command, NodeVerb};
use understudy_core::{ClusterState, OnPassiveLoss};
use understudy_postgres::STANDBY_PARAMETERS;
use understudy_proto::v1;
use understudy_types::{DurabilityMode, Epoch, NodeId};

use super::{checked_reason, refusal, rejection_words, wall_unix_us};
use crate::status::{ClusterStatus, NodeStatus, SiteRole};

/// The furthest that a switchover may be scheduled ahead: ten weeks.
const AHEAD_MAX: Duration = Duration::from_secs(70 * 86_400);

/// An order to a node, read.
pub(super) struct Wanted {
    pub(super) node: NodeId,
    pub(super) verb: NodeVerb,
    pub(super) epoch: Epoch,
    accepts_waiting: bool,
}

// A Status is what tonic's handlers must return; boxing it here would only be undone there.
#[allow(clippy::result_large_err)]
pub(super) fn wanted(
    state: &ClusterState,
    request: &v1::NodeOrderRequest,
) -> Result<Wanted, Status> {
    let verb = [NodeVerb::Restart, NodeVerb::Reload, NodeVerb::Reclone]
        .into_iter()
        .find(|verb| verb.kind().word() == request.verb)
        .ok_or_else(|| {
            let given = &request.verb;
            Status::invalid_argument(format!("verb = {given:?}: expected restart, reload, reclone"))
        })?;
    let node = state.data_nodes().find(|id| state.name_of(*id) == request.node);
    let node = node.ok_or_else(|| {
        let names: Vec<String> = state.data_nodes().map(|id| state.name_of(id)).collect();
        let (given, names) = (&request.node, names.join(", "));
        Status::invalid_argument(format!("node = {given:?}: not a data node, which are {names}"))
    })?;
    let epoch = request.expect_epoch.map_or(state.epoch, Into::into);
    Ok(Wanted { node, verb, epoch, accepts_waiting: request.accepts_waiting })
}

#[allow(clippy::result_large_err)]
pub(super) fn command(
    wanted: &Wanted,
    state: &ClusterState,
    status: &ClusterStatus,
    caller: String,
    reason: String,
) -> Result<Command, Status> {
    if let Some(words) = standby_would_lack(state, status, wanted) {
        return Err(refusal(Code::FailedPrecondition, "parameters", words));
    }
    Ok(Command::OrderNode {
        node: wanted.node,
        verb: wanted.verb,
        epoch: wanted.epoch,
        accepts_waiting: wanted.accepts_waiting,
        caller,
        reason: checked_reason(reason)?,
        at_unix_us: wall_unix_us(),
    })
}

/// Which setting would be smaller at a standby than at its primary after this restart.
fn standby_would_lack(
    state: &ClusterState,
    status: &ClusterStatus,
    wanted: &Wanted,
) -> Option<String> {
    if wanted.verb != NodeVerb::Restart {
        return None;
    }
    let node = status.node(&state.name_of(wanted.node))?;
    let others = || status.nodes.iter().filter(|other| other.name != node.name);
    let active = node.role == SiteRole::Active;
    STANDBY_PARAMETERS.iter().find_map(|name| {
        let next = node.after_restart(name)?;
        if active {
            let mut passives = others().filter(|other| other.role == SiteRole::Passive);
            let lacking = passives
                .find(|other| other.in_force(name).is_some_and(|running| running < next))?;
            return Some(format!(
                "{} would have {name} = {next}, more than {} has now, which would stop replaying: \
                 restart {} first",
                node.name, lacking.name, lacking.name
            ));
        }
        let primary = status.active.as_deref().and_then(|active| status.node(active))?;
        let needed = primary.in_force(name)?;
        (next < needed).then(|| {
            format!(
                "{} would have {name} = {next}, less than the {needed} of {}, and would not start: \
                 restart {} first",
                node.name, primary.name, primary.name
            )
        })
    })
}

pub(super) fn plan(
    wanted: &Wanted,
    state: &ClusterState,
    status: &ClusterStatus,
) -> v1::NodeOrderPlan {
    let name = state.name_of(wanted.node);
    let node = status.node(&name);
    let mut reasons = Vec::new();
    let judged =
        state.check_node_order(wanted.node, wanted.verb, wanted.epoch, wanted.accepts_waiting);
    if let Err(rejection) = judged {
        reasons.push(rejection_words(state, &rejection));
    }
    reasons.extend(standby_would_lack(state, status, wanted));
    if !status.majority {
        reasons.push(format!("{} hears no majority of the voters", status.answered_by));
    }
    match node {
        Some(node) if node.state == "unreachable" => reasons.push(format!("{name} is not heard")),
        Some(node) if wanted.verb != NodeVerb::Reclone && !node.postgres_running => {
            reasons.push(format!("PostgreSQL at {name} does not answer ({})", node.state));
        }
        Some(_) | None => {}
    }
    let active = state.active() == Some(wanted.node);
    v1::NodeOrderPlan {
        possible: reasons.is_empty(),
        reasons,
        node: name.clone(),
        verb: wanted.verb.kind().word().to_owned(),
        epoch: Some(state.epoch.into()),
        steps: steps(wanted.verb, &name, active, node),
        costs: costs(state, wanted, &name, active),
    }
}

fn steps(verb: NodeVerb, name: &str, active: bool, node: Option<&NodeStatus>) -> Vec<String> {
    let pending =
        node.map(|node| node.pending_restart.join(", ")).filter(|names| !names.is_empty());
    let takes = pending.map_or("no setting that changes is known".to_owned(), |names| {
        format!("these take effect: {names}")
    });
    match (verb, active) {
        (NodeVerb::Reload, _) => vec![
            format!(
                "{name} reads [postgres.parameters] of its file; what is wrong changes nothing"
            ),
            "PostgreSQL reads them, and the outcome says what changed and what waits for a restart"
                .to_owned(),
        ],
        (NodeVerb::Restart, true) => vec![
            format!("{name} writes a checkpoint while clients are served"),
            "PostgreSQL is stopped the fast way with the gate open, the lease renewed all along"
                .to_owned(),
            format!("it is started under the same lease and epoch; {takes}"),
            "clients are let in once what was recovered is covered as the dial demands".to_owned(),
        ],
        (NodeVerb::Restart, false) => vec![
            format!("the standby at {name} is stopped the fast way and started again; {takes}"),
            format!("the journal at {name} goes on receiving and acknowledging"),
        ],
        (NodeVerb::Reclone, _) => vec![
            format!("PostgreSQL at {name} is stopped, and its journal set aside"),
            "its data directory is replaced by a base backup from the active".to_owned(),
            format!("{name} follows, and is waited for again once it has caught up"),
        ],
    }
}

fn costs(state: &ClusterState, wanted: &Wanted, name: &str, active: bool) -> Vec<String> {
    let mut costs = Vec::new();
    match wanted.verb {
        NodeVerb::Reload => {}
        NodeVerb::Restart if active => {
            costs.push("sessions end, and commits wait until PostgreSQL is up again".to_owned());
        }
        NodeVerb::Restart => costs.push(format!(
            "reading sessions at {name} end, and it cannot be promoted before its standby runs again"
        )),
        NodeVerb::Reclone => {
            let eligible = &state.durability.eligible;
            let waited = state.durability.waited.contains(&wanted.node);
            if eligible.iter().all(|node| *node == wanted.node) {
                costs.push(
                    "nobody else could take over: a loss of the active has no answer until it is done"
                        .to_owned(),
                );
            }
            if state.would_stall_without(wanted.node) {
                costs.push(format!("every commit waits until {name} has everything again"));
            } else if waited && state.config.mode == DurabilityMode::Bounded {
                let then = match state.config.on_passive_loss {
                    OnPassiveLoss::Stall => "commits slow down and wait",
                    OnPassiveLoss::Degrade => "commits go on, recorded as unprotected",
                };
                let rpo = state.config.rpo;
                costs.push(format!("when it takes longer than about {rpo:?}, {then}"));
            }
        }
    }
    costs
}

/// The moment that a switchover is scheduled for.
#[allow(clippy::result_large_err)]
pub(super) fn checked_due(due_unix_us: i64) -> Result<i64, Status> {
    let now = wall_unix_us();
    let ahead = i64::try_from(AHEAD_MAX.as_micros()).unwrap_or(i64::MAX);
    if (now..=now.saturating_add(ahead)).contains(&due_unix_us) {
        return Ok(due_unix_us);
    }
    let words = format!(
        "scheduled_unix_us = {due_unix_us}: expected a moment from now ({now}) to ten weeks ahead"
    );
    Err(Status::invalid_argument(words))
}
