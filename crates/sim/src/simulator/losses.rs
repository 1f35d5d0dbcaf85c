//! What a failover lost of what was acknowledged, held against the terms on which it was granted.
//!
//! An acknowledgement keeps the promise of the mode it was given in, however the dial is turned later;
//! what a failover as a whole may lose is judged by the mode that was in force when it was granted.

use std::time::Duration;

use understudy_checks::protocol;
use understudy_core::ClusterState;
use understudy_core::state::LossBound;
use understudy_types::{DurabilityMode, Epoch, Lsn, NodeId};

use super::judges::SAMPLED;
use super::machine::Acked;
use super::world::{World, note};

/// On which terms an epoch was granted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    mode: Option<DurabilityMode>,
    rpo: Duration,
    /// An operator has accepted a loss.
    accepted: bool,
    /// The old active gave its lease back after a clean stop.
    clean: bool,
}

impl Terms {
    /// Those of a grant to `to` that is accepted in this state.
    pub(crate) fn of(before: &ClusterState, to: NodeId) -> Terms {
        Terms {
            mode: Some(before.durability.mode),
            rpo: before.config.rpo,
            accepted: before.order.as_ref().is_some_and(|o| o.to == to && o.accepts.is_some()),
            clean: before.switchover.as_ref().is_some_and(|s| s.clean_end.is_some()),
        }
    }
}

fn named<'a>(acked: impl IntoIterator<Item = &'a Acked>) -> Vec<(Lsn, Epoch)> {
    acked.into_iter().map(|ack| (Lsn(ack.end), ack.epoch)).collect()
}

impl World {
    /// A new epoch runs: what was acknowledged and is not in its WAL is lost.
    pub(crate) fn account_for_losses(&mut self, node: usize, stated: Option<LossBound>) {
        let wal = &self.machines[node].postgres.data.wal;
        let (kept, lost): (Vec<_>, Vec<_>) = std::mem::take(&mut self.acks)
            .into_iter()
            .partition(|ack| wal.holds(Lsn(ack.start), ack.id));
        let newest = kept.iter().chain(&lost).map(|ack| ack.decided_at).max().unwrap_or(0);
        let oldest = lost.iter().map(|ack| ack.decided_at).min().unwrap_or(newest);
        let span = Duration::from_nanos(newest - oldest);
        self.lost_count += lost.len() as u64;
        self.acks = kept;
        let terms = self.terms;
        note!(
            self,
            "n{} runs the new epoch; lost {} over {span:?} under {terms:?}, stated {stated:?}",
            node + 1,
            lost.len()
        );
        if terms.clean {
            self.judge(protocol::a_switchover_loses_nothing(&named(&lost)));
        }
        if terms.accepted {
            return;
        }
        let mode = terms.mode.unwrap_or(DurabilityMode::Zero);
        self.judge(protocol::in_zero_every_acknowledged_commit_survives(mode, &named(&lost)));
        let promised = lost.iter().filter(|ack| ack.mode == DurabilityMode::Zero && ack.waited);
        self.judge(protocol::in_zero_every_acknowledged_commit_survives(
            DurabilityMode::Zero,
            &named(promised),
        ));
        if self.somebody_was_away(oldest, newest) {
            return;
        }
        let drift = 1.0 + 2.0 * f64::from(self.plan.timing.drift_ppm) / 1e6;
        let allowed = terms.rpo.mul_f64(drift) + SAMPLED;
        self.judge(protocol::in_bounded_a_failover_loses_at_most_the_ceiling(mode, span, allowed));
        if let Some(stated) = stated.and_then(|stated| stated.time_max) {
            let stated = stated.mul_f64(drift) + SAMPLED;
            self.judge(protocol::a_promotion_loses_at_most_what_it_states(span, stated));
        }
    }

    /// Mistake 14: acknowledged under an older epoch by a process that was frozen between the decision
    /// and the write. In zero that is harmless, because the survivor has it; in the other modes it is
    /// lost like what was delivered in time.
    pub(crate) fn delivered_late(&mut self, acked: &[Acked], active: Option<NodeId>) {
        let Some(active) = active else { return };
        let wal = &self.machines[self.index_of(active)].postgres.data.wal;
        let lost: Vec<Acked> =
            acked.iter().filter(|ack| !wal.holds(Lsn(ack.start), ack.id)).copied().collect();
        self.lost_count += lost.len() as u64;
        if self.terms.accepted {
            return;
        }
        let promised = lost.iter().filter(|ack| ack.mode == DurabilityMode::Zero && ack.waited);
        self.judge(protocol::in_zero_every_acknowledged_commit_survives(
            DurabilityMode::Zero,
            &named(promised),
        ));
    }
}
