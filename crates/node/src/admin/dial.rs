//! What an operator says about the dial and about a loss, read into commands; the plan of a change, and the
//! changes that were made.
//!
//! What is left out of a request keeps its value. Nothing is decided here: `apply` accepts or refuses.

use std::time::Duration;

use tonic::{Code, Status};
use understudy_core::state::{CONFIG_CHANGES_KEPT, Command, Dial, LossLimit};
use understudy_core::{ClusterState, OnPassiveLoss};
use understudy_proto::v1;
use understudy_types::{DurabilityMode, NodeId};

use super::{checked_reason, refusal, wall_unix_us};

/// The dial that a request asks for.
// A Status is what tonic's handlers must return; boxing it here would only be undone there.
#[allow(clippy::result_large_err)]
pub(super) fn wanted(state: &ClusterState, request: &v1::SetRpoRequest) -> Result<Dial, Status> {
    let mut dial = Dial::of(&state.config);
    if !request.mode.is_empty() {
        let mode = request.mode.parse();
        dial.mode = mode.map_err(|error: String| Status::invalid_argument(error))?;
    }
    if let Some(millis) = request.ceiling_ms {
        dial.rpo = Duration::from_millis(millis);
    }
    dial.on_passive_loss = match request.on_passive_loss.as_str() {
        "" => dial.on_passive_loss,
        "stall" => OnPassiveLoss::Stall,
        "degrade" => OnPassiveLoss::Degrade,
        other => {
            let words = format!("on_passive_loss = {other:?}: expected stall or degrade");
            return Err(Status::invalid_argument(words));
        }
    };
    if let Some(on) = request.promote_without_lease_wait {
        dial.promote_without_lease_wait = on;
    }
    Ok(dial)
}

/// What setting `dial` would do, as an operation that was not recorded.
pub(super) fn planned(state: &ClusterState, dial: &Dial) -> v1::OperationResponse {
    let plan = plan(state, dial);
    let operation = v1::Operation {
        kind: "rpo".to_owned(),
        outcome: "planned".to_owned(),
        what: dial.to_string(),
        detail: plan,
        ..v1::Operation::default()
    };
    v1::OperationResponse { operation: Some(operation) }
}

fn plan(state: &ClusterState, dial: &Dial) -> String {
    let in_force = state.durability.mode;
    let mut plan = if dial.mode > in_force {
        format!(
            "{in_force} is strengthened to {}: the gate waits first, and it is recorded once what was \
             acknowledged satisfies it",
            dial.mode
        )
    } else if dial.mode < in_force {
        format!(
            "{in_force} is weakened to {}: it is recorded first, and the gate follows",
            dial.mode
        )
    } else {
        format!("{in_force} stays in force")
    };
    if dial.mode == DurabilityMode::Zero && state.durability.eligible.is_empty() {
        plan += "; nobody is waited for at present, so commits are protected only once a passive has \
                 joined";
    } else if dial.mode == DurabilityMode::Zero && dial.on_passive_loss == OnPassiveLoss::Stall {
        plan += "; while the passive is away, commits wait";
    }
    if dial.mode == DurabilityMode::BestEffort && in_force != DurabilityMode::BestEffort {
        plan += "; nothing limits what a loss of the active may cost";
    }
    if dial.promote_without_lease_wait && !state.config.promote_without_lease_wait {
        plan += "; in zero, readers and sessions that opted out may go on at the old active until its \
                 lease is over";
    }
    plan
}

/// What is agreed on, or was in another version, and the last changes.
#[allow(clippy::result_large_err)]
pub(super) fn agreed(
    state: &ClusterState,
    version: Option<u64>,
) -> Result<v1::ConfigResponse, Status> {
    let version = version.unwrap_or(state.config_version);
    let dial = state.dial_at(version).ok_or_else(|| {
        let words = format!(
            "version = {version}: it is not known; the present one is {}, and the last {} changes are \
             remembered: `understudy config history` lists them",
            state.config_version, CONFIG_CHANGES_KEPT
        );
        refusal(Code::FailedPrecondition, "no-version", words)
    })?;
    let changes = state.config_history.iter().map(|(version, change)| v1::ConfigChange {
        version: *version,
        operation: change.operation,
        caller: change.caller.clone(),
        reason: change.reason.clone(),
        at_unix_us: change.at_unix_us,
        before: Some(values(&change.before)),
        after: Some(values(&change.after)),
    });
    Ok(v1::ConfigResponse {
        version,
        epoch: Some(state.epoch.into()),
        values: Some(values(&dial)),
        durable_copies: state.config.durable_copies,
        changes: changes.collect(),
    })
}

fn values(dial: &Dial) -> v1::ConfigValues {
    v1::ConfigValues {
        mode: dial.mode.to_string(),
        ceiling_ms: u64::try_from(dial.rpo.as_millis()).unwrap_or(u64::MAX),
        on_passive_loss: dial.on_passive_loss.word().to_owned(),
        promote_without_lease_wait: dial.promote_without_lease_wait,
    }
}

/// The order to go on in spite of a stated loss. It names its epoch: a later one is another loss.
#[allow(clippy::result_large_err)]
pub(super) fn accept_loss(
    request: &v1::FailoverRequest,
    accepted: &v1::AcceptedLoss,
    to: NodeId,
    caller: String,
) -> Result<Command, Status> {
    let Some(epoch) = request.expect_epoch else {
        let words = "expect_epoch: a loss is accepted for one epoch, say which";
        return Err(Status::invalid_argument(words));
    };
    Ok(Command::AcceptLoss {
        to,
        epoch: epoch.into(),
        limit: LossLimit {
            age_max: accepted.age_max_ms.map(Duration::from_millis),
            bytes_max: accepted.bytes_max,
        },
        caller,
        reason: checked_reason(request.reason.clone())?,
        at_unix_us: wall_unix_us(),
    })
}
