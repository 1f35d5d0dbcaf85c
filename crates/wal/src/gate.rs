//! How far commits may be acknowledged now: the acknowledgement gate as a pure function.
//!
//! It is the GATE formula of `docs/safety.md`, for a permit that the core has published.
//! Whether this node may hold a permit at all is the core's decision; that the check happens in the
//! same moment as the write is the permit cell's duty. Nothing here may reach back below what was
//! reported before: a status update that goes backwards would be a lie to PostgreSQL.

use std::time::Duration;

use understudy_types::{
    BootInstant, DurabilityMode, Lsn, NodeId, Permit, ReceiverPosition, SeededBug,
};

use crate::exposure::ExposureTracker;

/// In the last fifth before the ceiling, commits are slowed: releases are this far apart at the ceiling.
const PACE_MAX: Duration = Duration::from_millis(200);

/// What the gate judges by, besides the permit.
#[derive(Clone, Copy, Debug)]
pub struct GatePositions<'a> {
    /// The primary's local flush position (F).
    pub flush_lsn: Lsn,
    /// The greatest flush position that this process has reported in this epoch; 0/0 at its start.
    pub last_report: Lsn,
    /// Every receiver, each node once.
    pub receivers: &'a [ReceiverPosition],
}

/// Why the gate releases as far as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateReason {
    /// Everything that is durable here is released.
    CaughtUp,
    /// The permit's deadline has come: nothing more, whatever the mode.
    Expired,
    /// `zero` or `bounded`, an empty set, and no record that this node is the sole survivor.
    NobodyWaitedFor,
    /// `zero`: fewer receivers are attached than have to make a commit durable.
    NotAttached {
        /// How many of those waited for are attached.
        attached_count: usize,
        /// How many are needed.
        needed_count: usize,
    },
    /// `zero`: released up to what is durable at enough of those that are waited for.
    WaitingForDurable,
    /// Released up to the renewal's credit, and there is more.
    CreditUsed,
    /// `bounded`: one more acknowledged commit would exceed the ceiling.
    ExposureAtCeiling {
        /// What exposure would become.
        exposure: Duration,
        /// The ceiling, less one ttl.
        ceiling: Duration,
    },
    /// `bounded`: slowed, because exposure is near the ceiling.
    Paced,
}

/// How far to acknowledge.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// Report this as flushed; never below the last report.
    pub upto: Lsn,
    /// What limits it.
    pub reason: GateReason,
    /// The answer may change at this moment though nothing else changes; `None` if it cannot.
    pub look_again: Option<BootInstant>,
}

/// Judges how far commits may be acknowledged at `now` under `permit`.
pub fn release(
    now: BootInstant,
    permit: &Permit,
    positions: &GatePositions<'_>,
    exposure: &ExposureTracker,
) -> Release {
    if now >= permit.deadline && !SeededBug::DeadlineIgnored.is_on() {
        let upto = positions.last_report;
        return Release { upto, reason: GateReason::Expired, look_again: None };
    }
    let (limit, reason, look_again) = match permit.mode {
        DurabilityMode::Zero => {
            let (limit, reason) = zero(permit, positions);
            (limit, reason, None)
        }
        DurabilityMode::Bounded => bounded(now, permit, positions, exposure),
        DurabilityMode::BestEffort => {
            let (limit, reason) = within_credit(permit, positions);
            (limit, reason, None)
        }
    };
    assert!(
        limit <= positions.flush_lsn.max(positions.last_report),
        "the gate would release {limit}, past the local flush position {}",
        positions.flush_lsn
    );
    let look_again = look_again.unwrap_or(permit.deadline).min(permit.deadline);
    Release { upto: limit.max(positions.last_report), reason, look_again: Some(look_again) }
}

/// The position against which exposure counts: what survives at *every* node that could take over.
///
/// With nobody waited for it is the best of whoever is there; 0/0 if there is nobody.
pub fn surviving_lsn(waited_for: &[NodeId], receivers: &[ReceiverPosition]) -> Lsn {
    let of = |node: &NodeId| {
        let found = receivers.iter().find(|receiver| receiver.node == *node);
        found.map_or(Lsn::ZERO, |receiver| receiver.durable_lsn)
    };
    let least = waited_for.iter().map(of).min();
    let best = || receivers.iter().map(|receiver| receiver.durable_lsn).max();
    least.or_else(best).unwrap_or(Lsn::ZERO)
}

/// min(F, k-th largest durable of those waited for), if enough of them are attached.
fn zero(permit: &Permit, positions: &GatePositions<'_>) -> (Lsn, GateReason) {
    if permit.waited_for.is_empty() {
        return if permit.sole_survivor {
            (positions.flush_lsn, GateReason::CaughtUp)
        } else {
            (positions.last_report, GateReason::NobodyWaitedFor)
        };
    }
    // A quorum of none would be no durability at all; it cannot be configured, and means all here.
    let all = permit.waited_for.len();
    let needed_count = if permit.quorum == 0 { all } else { permit.quorum };
    let waited = |receiver: &&ReceiverPosition| {
        receiver.attached && permit.waited_for.contains(&receiver.node)
    };
    let mut durable: Vec<Lsn> =
        positions.receivers.iter().filter(waited).map(|receiver| receiver.durable_lsn).collect();
    let attached_count = durable.len();
    if attached_count < needed_count {
        let reason = GateReason::NotAttached { attached_count, needed_count };
        return (positions.last_report, reason);
    }
    durable.sort_unstable_by(|a, b| b.cmp(a));
    let kth = durable[needed_count - 1];
    if kth < positions.flush_lsn {
        (kth, GateReason::WaitingForDurable)
    } else {
        (positions.flush_lsn, GateReason::CaughtUp)
    }
}

/// min(F, credit).
fn within_credit(permit: &Permit, positions: &GatePositions<'_>) -> (Lsn, GateReason) {
    if permit.credit < positions.flush_lsn && !SeededBug::CreditIgnored.is_on() {
        (permit.credit, GateReason::CreditUsed)
    } else {
        (positions.flush_lsn, GateReason::CaughtUp)
    }
}

/// min(F, credit) while the span of lost commits, with this release, stays within the ceiling.
fn bounded(
    now: BootInstant,
    permit: &Permit,
    positions: &GatePositions<'_>,
    tracker: &ExposureTracker,
) -> (Lsn, GateReason, Option<BootInstant>) {
    let (limit, reason) = within_credit(permit, positions);
    let Some(ceiling) = permit.exposure_max else { return (limit, reason, None) };
    // Nobody is waited for, and that is not recorded: after a failover the policy says that commits
    // wait. Exposure could not be bounded either, because nobody else has what came before.
    if permit.waited_for.is_empty() && !permit.sole_survivor {
        return (positions.last_report, GateReason::NobodyWaitedFor, None);
    }
    let surviving = surviving_lsn(&permit.waited_for, positions.receivers);
    // Judged as if released now: the acknowledged commit that ends the span is the one in question.
    let exposes = limit > surviving;
    let exposure = if exposes { tracker.time_if_released(surviving, now) } else { Duration::ZERO };
    if limit <= positions.last_report {
        return (limit, reason, None);
    }
    if exposure > ceiling {
        let reason = GateReason::ExposureAtCeiling { exposure, ceiling };
        return (positions.last_report, reason, None);
    }
    let next = tracker.last_release().map_or(now, |last| last + pace(exposure, ceiling));
    if next > now {
        return (positions.last_report, GateReason::Paced, Some(next));
    }
    (limit, reason, None)
}

/// How far apart releases are at this exposure: nothing up to four fifths of the ceiling, then rising.
fn pace(exposure: Duration, ceiling: Duration) -> Duration {
    let free = ceiling / 5 * 4;
    let Some(over) = exposure.checked_sub(free).filter(|over| !over.is_zero()) else {
        return Duration::ZERO;
    };
    let share = over.as_secs_f64() / (ceiling - free).as_secs_f64().max(f64::MIN_POSITIVE);
    PACE_MAX.mul_f64(share.clamp(0.0, 1.0))
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
