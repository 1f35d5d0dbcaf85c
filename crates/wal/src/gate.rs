//! How far commits may be acknowledged now: the acknowledgement gate as a pure function.
//!
//! It is the GATE formula of `docs/safety.md`, for a permit that the core has published.
//! Whether this node may hold a permit at all is the core's decision; that the check happens in the
//! same moment as the write is the permit cell's duty. Nothing here may reach back below what was
//! reported before: a status update that goes backwards would be a lie to PostgreSQL.

use std::time::Duration;

use understudy_types::{
    BootInstant, DurabilityMode, Lsn, NodeId, Permit, Quorum, ReceiverPosition, SeededBug,
};

use crate::exposure::ExposureTracker;

/// Five eighths of the way to the ceiling, releases are this far apart.
const PACE_HALF_WAY: Duration = Duration::from_millis(50);
/// Releases are never further apart than this by slowing alone; at the ceiling itself nothing passes.
const PACE_MAX: Duration = Duration::from_secs(1);

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
    /// `bounded`: how far apart releases are now, because exposure is near the ceiling.
    pub delay: Duration,
}

/// What one mode allows, before it is put together with what was reported already.
struct Allowed {
    limit: Lsn,
    reason: GateReason,
    look_again: Option<BootInstant>,
    delay: Duration,
}

impl Allowed {
    fn now(limit: Lsn, reason: GateReason) -> Allowed {
        Allowed { limit, reason, look_again: None, delay: Duration::ZERO }
    }
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
        let (reason, delay) = (GateReason::Expired, Duration::ZERO);
        return Release { upto, reason, look_again: None, delay };
    }
    let Allowed { limit, reason, look_again, delay } = match permit.mode {
        DurabilityMode::Zero => {
            let (limit, reason) = zero(permit, positions);
            Allowed::now(limit, reason)
        }
        DurabilityMode::Bounded => bounded(now, permit, positions, exposure),
        DurabilityMode::BestEffort => {
            let (limit, reason) = within_credit(permit, positions);
            Allowed::now(limit, reason)
        }
    };
    assert!(
        limit <= positions.flush_lsn.max(positions.last_report),
        "the gate would release {limit}, past the local flush position {}",
        positions.flush_lsn
    );
    let look_again = look_again.unwrap_or(permit.deadline).min(permit.deadline);
    let upto = limit.max(positions.last_report);
    Release { upto, reason, look_again: Some(look_again), delay }
}

/// The position against which exposure counts: what survives the loss of this site, whoever takes over.
///
/// Where all are waited for that is what *every* one of them has. With quorums, a promotion takes what
/// any of n − k + 1 of them has, so it is what k of them have. With nobody waited for it is the best of
/// whoever is there; 0/0 if there is nobody. Without a permit nobody is waited for yet.
pub fn surviving_lsn(permit: Option<&Permit>, receivers: &[ReceiverPosition]) -> Lsn {
    let of = |node: &NodeId| {
        let found = receivers.iter().find(|receiver| receiver.node == *node);
        found.map_or(Lsn::ZERO, |receiver| receiver.durable_lsn)
    };
    let Some(permit) = permit.filter(|permit| !permit.waited_for.is_empty()) else {
        let best = receivers.iter().filter(|r| may_take_over(r)).map(|r| r.durable_lsn).max();
        return best.unwrap_or(Lsn::ZERO);
    };
    let kth = |quorum: &Quorum| {
        let mut durable: Vec<Lsn> = quorum.members.iter().map(of).collect();
        durable.sort_unstable_by(|a, b| b.cmp(a));
        let last = quorum.needed_count().checked_sub(1);
        last.and_then(|last| durable.get(last)).copied().unwrap_or(Lsn::ZERO)
    };
    let by_quorum = permit.quorums.iter().map(kth).min();
    let by_all = || permit.waited_for.iter().map(of).min();
    by_quorum.or_else(by_all).unwrap_or(Lsn::ZERO)
}

/// The same, where it is known: `None` while fewer of those who are waited for have said where they stand
/// than have to have a commit, or nobody has. Unknown is not 0/0: what would be lost then is not
/// "everything since the beginning".
pub fn known_surviving_lsn(permit: Option<&Permit>, receivers: &[ReceiverPosition]) -> Option<Lsn> {
    let known = |node: &&NodeId| receivers.iter().any(|receiver| receiver.node == **node);
    let enough =
        |quorum: &Quorum| quorum.members.iter().filter(known).count() >= quorum.needed_count();
    let all_known = permit.is_none_or(|permit| match permit.quorums.is_empty() {
        true => permit.waited_for.iter().all(|node| known(&node)),
        false => permit.quorums.iter().all(enough),
    });
    let somebody = match permit.is_some_and(|permit| !permit.waited_for.is_empty()) {
        true => !receivers.is_empty(),
        false => receivers.iter().any(may_take_over),
    };
    (somebody && all_known).then(|| surviving_lsn(permit, receivers))
}

/// It has data, and not a journal alone, which begins somewhere.
fn may_take_over(receiver: &ReceiverPosition) -> bool {
    receiver.begin_lsn == Lsn::ZERO
}

/// min(F, for each quorum the k-th largest durable of its members), if enough of them are attached.
fn zero(permit: &Permit, positions: &GatePositions<'_>) -> (Lsn, GateReason) {
    if permit.waited_for.is_empty() {
        return if permit.sole_survivor {
            (positions.flush_lsn, GateReason::CaughtUp)
        } else {
            (positions.last_report, GateReason::NobodyWaitedFor)
        };
    }
    let durable = if permit.quorums.is_empty() {
        let all = permit.waited_for.len();
        kth_durable(&permit.waited_for, all, positions.receivers)
    } else {
        permit.quorums.iter().try_fold(Lsn::MAX, |least, quorum| {
            let needed = quorum.needed_count();
            let kth = kth_durable(&quorum.members, needed, positions.receivers)?;
            Ok(least.min(kth))
        })
    };
    match durable {
        Err(not_attached) => (positions.last_report, not_attached),
        Ok(durable) if durable < positions.flush_lsn => (durable, GateReason::WaitingForDurable),
        Ok(_) => (positions.flush_lsn, GateReason::CaughtUp),
    }
}

/// What at least `needed_count` attached ones of `members` have made durable; else, that too few are.
fn kth_durable(
    members: &[NodeId],
    needed_count: usize,
    receivers: &[ReceiverPosition],
) -> Result<Lsn, GateReason> {
    let mut durable: Vec<Lsn> = receivers
        .iter()
        .filter(|receiver| receiver.attached && members.contains(&receiver.node))
        .map(|receiver| receiver.durable_lsn)
        .collect();
    durable.sort_unstable_by(|a, b| b.cmp(a));
    let kth = needed_count.checked_sub(1).and_then(|last| durable.get(last));
    let attached_count = durable.len();
    kth.copied().ok_or(GateReason::NotAttached { attached_count, needed_count })
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
) -> Allowed {
    let (limit, reason) = within_credit(permit, positions);
    let Some(ceiling) = permit.exposure_max else { return Allowed::now(limit, reason) };
    // Nobody is waited for, and that is not recorded: after a failover the policy says that commits
    // wait. Exposure could not be bounded either, because nobody else has what came before.
    if permit.waited_for.is_empty() && !permit.sole_survivor {
        return Allowed::now(positions.last_report, GateReason::NobodyWaitedFor);
    }
    let surviving = surviving_lsn(Some(permit), positions.receivers);
    // Judged as if released now: the acknowledged commit that ends the span is the one in question.
    let exposes = limit > surviving;
    let exposure = if exposes { tracker.time_if_released(surviving, now) } else { Duration::ZERO };
    if limit <= positions.last_report {
        return Allowed::now(limit, reason);
    }
    if exposure > ceiling {
        let reason = GateReason::ExposureAtCeiling { exposure, ceiling };
        let delay = PACE_MAX;
        return Allowed { limit: positions.last_report, reason, look_again: None, delay };
    }
    let delay = pace(exposure, ceiling);
    let next = tracker.last_release().map_or(now, |last| last + delay);
    if next > now {
        let (limit, reason) = (positions.last_report, GateReason::Paced);
        return Allowed { limit, reason, look_again: Some(next), delay };
    }
    Allowed { limit, reason, look_again: None, delay }
}

/// How far apart releases are at this exposure: nothing up to a quarter of the ceiling, then ever further.
///
/// A writer that waits for its commit writes nothing meanwhile, so this throttles what is written. It
/// grows without bound towards the ceiling (up to `PACE_MAX`), so that there is a pace at which the
/// passive, if it receives at all, keeps up, and exposure settles there instead of at the ceiling.
/// It begins as early as that because exposure is a time: what was written at full speed before
/// is still on its way, and ages while it is. A passive that receives two thirds of what is written is
/// slowed for in time; for a slower one the ceiling itself holds until that backlog has passed.
pub fn pace(exposure: Duration, ceiling: Duration) -> Duration {
    let free = ceiling / 4;
    let over = exposure.saturating_sub(free).as_secs_f64();
    let left = ceiling.saturating_sub(exposure).as_secs_f64();
    if over <= 0.0 {
        return Duration::ZERO;
    }
    if left <= over * PACE_HALF_WAY.as_secs_f64() / PACE_MAX.as_secs_f64() {
        return PACE_MAX;
    }
    PACE_HALF_WAY.mul_f64(over / left)
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
