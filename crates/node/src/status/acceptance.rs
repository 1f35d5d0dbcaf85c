//! The command by which an operator would accept the loss that keeps a failover from happening.
//!
//! It is shown only while nobody holds the lease and the data rules alone stand in the way. It must
//! not suggest a figure below what is known, nor a way around a mark.

use std::time::Duration;

use understudy_core::ClusterState;
use understudy_core::state::{Ineligible, LossBound};
use understudy_types::{Lsn, NodeId};

/// The command, if there is one that helps. `durable_lsn` is where `to`'s journal ends.
pub(super) fn command(
    state: &ClusterState,
    to: NodeId,
    durable_lsn: Lsn,
    why: &Ineligible,
) -> Option<String> {
    match why {
        Ineligible::NotInSet
        | Ineligible::Lifted
        | Ineligible::OverCeiling { .. }
        | Ineligible::OverLimit(_)
        | Ineligible::LossNotAccepted { .. } => {}
        Ineligible::Marked(_)
        | Ineligible::LostWal
        | Ineligible::IsHolder
        | Ineligible::NotReleased
        | Ineligible::NotByPolicy => return None,
    }
    // What is recorded is judged by what the node is known to have, which may be less than it has.
    let loss = state.loss_bound(to, durable_lsn.min(state.known_durable(to)));
    Some(format!(
        "understudy failover --to {} --epoch {} --accept-loss {} --reason \"...\"",
        state.name_of(to),
        state.epoch,
        figure(&loss)
    ))
}

/// The least that covers it, in whole seconds.
fn figure(loss: &LossBound) -> String {
    let whole = |time: Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
    loss.time_max.map_or_else(|| "any".to_owned(), |time| format!("{}s", whole(time)))
}
