//! What a switchover would do, and whether it is possible now: the plan that `--dry-run` shows.
//!
//! Judged from the replicated state and this node's newest snapshot. It decides nothing: the order is
//! judged again when it is applied, and by the active before it shuts a client out.

use std::time::Duration;

use tonic::Status;
use understudy_core::state::{PAUSE_BUDGET_MAX, PAUSE_BUDGET_MIN};
use understudy_core::{ClusterState, OnSoleSurvivor};
use understudy_proto::v1;
use understudy_types::{Epoch, NodeId};

use super::rejection_words;
use crate::status::{ClusterStatus, NodeStatus};

/// The pause budget of an order that names none.
const PAUSE_BUDGET: Duration = Duration::from_secs(10);
/// A candidate that is further behind is waited for before clients are shut out.
const LAG_NOTED_BYTES: u64 = 16 * 1024 * 1024;

/// The budget that was asked for.
// A Status is what tonic's handlers must return; boxing it here would only be undone there.
#[allow(clippy::result_large_err)]
pub(super) fn checked_budget(millis: u64) -> Result<Duration, Status> {
    if millis == 0 {
        return Ok(PAUSE_BUDGET);
    }
    let budget = Duration::from_millis(millis);
    if (PAUSE_BUDGET_MIN..=PAUSE_BUDGET_MAX).contains(&budget) {
        return Ok(budget);
    }
    let (min, max) = (PAUSE_BUDGET_MIN.as_millis(), PAUSE_BUDGET_MAX.as_millis());
    let words =
        format!("pause_budget_ms = {millis}: expected {min} to {max}, or 0 for the default");
    Err(Status::invalid_argument(words))
}

/// The plan of a switchover to `to`.
pub(super) fn plan(
    state: &ClusterState,
    status: &ClusterStatus,
    to: NodeId,
    epoch: Epoch,
    budget: Duration,
) -> v1::SwitchoverPlan {
    let candidate = state.name_of(to);
    let node = status.node(&candidate);
    let reasons = reasons(state, status, to, epoch);
    let active = state.active().map(|active| state.name_of(active)).unwrap_or_default();
    let steps = steps(state, &active, &candidate, budget);
    v1::SwitchoverPlan {
        possible: reasons.is_empty(),
        reasons,
        active,
        to: candidate,
        epoch: Some(state.epoch.into()),
        pause_budget_ms: u64::try_from(budget.as_millis()).unwrap_or(u64::MAX),
        durable_lag_bytes: node.and_then(|node| node.durable_lag_bytes),
        replay_lag_bytes: node.and_then(|node| node.replay_lag_bytes),
        steps,
    }
}

fn reasons(state: &ClusterState, status: &ClusterStatus, to: NodeId, epoch: Epoch) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Err(rejection) = state.check_switchover(to, epoch) {
        reasons.push(rejection_words(state, &rejection));
    }
    if !status.majority {
        reasons.push(format!("{} hears no majority of the voters", status.answered_by));
    }
    match state.active().and_then(|active| status.node(&state.name_of(active))) {
        Some(active) if !active.writable => {
            reasons.push(format!("{} does not serve now ({})", active.name, active.state));
        }
        Some(_) => {}
        None => reasons.push("nobody is active, so nobody can hand over".to_owned()),
    }
    if let Some(node) = status.node(&state.name_of(to)) {
        reasons.extend(lacks(node));
    }
    reasons
}

/// What keeps the candidate from taking over, as far as this node has heard of it.
fn lacks(node: &NodeStatus) -> Option<String> {
    let name = &node.name;
    if node.state == "unreachable" {
        return Some(format!("{name} is not heard"));
    }
    if !node.attached {
        return Some(format!("{name} does not receive WAL ({})", node.state));
    }
    let replay = node.replay_lag_bytes.filter(|lag| *lag > LAG_NOTED_BYTES)?;
    Some(format!("the standby at {name} has {replay} bytes of WAL to replay; it is waited for"))
}

fn steps(state: &ClusterState, active: &str, to: &str, budget: Duration) -> Vec<String> {
    let opens = match state.config.on_sole_survivor {
        OnSoleSurvivor::Open => {
            format!("{to} opens under the next epoch, and health checks send clients there")
        }
        OnSoleSurvivor::Stall => format!(
            "{to} opens under the next epoch; by on_sole_survivor = \"stall\" its commits wait until \
             {active} follows"
        ),
    };
    vec![
        format!("{active} writes a checkpoint while clients are served"),
        format!(
            "{active} refuses new sessions, gives open transactions up to a quarter of the pause \
             budget, ends them, and stops PostgreSQL cleanly once {to} has every byte"
        ),
        format!("if that takes longer than {budget:?}, {active} starts again and serves on"),
        format!("{active} gives its lease back, and {to} is promoted where the WAL ends"),
        opens,
        format!("{active} follows {to} from where it stopped, without rewind or copy"),
    ]
}
