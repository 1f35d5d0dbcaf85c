//! Judgements on single steps of the protocol, for whoever can see the truth of a whole cluster at
//! once: the simulator, and recorded histories of real runs.
//!
//! One function an invariant of docs/safety.md, named as the sentence that it checks. They take plain
//! values and know nothing of how the steps came about.

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_types::{BootInstant, DurabilityMode, Epoch, Lsn, NodeId, PromotionId, Quorum};

/// So many refused entries of one node in a second are many times what every race together makes.
const REFUSED_MAX: u32 = 100;

/// A sentence that is not true, with what was seen instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {sentence}: {seen}")]
pub struct Breach {
    /// The invariant or rule of docs/safety.md.
    pub invariant: &'static str,
    /// What should hold.
    pub sentence: &'static str,
    /// What was seen.
    pub seen: String,
}

fn require(
    holds: bool,
    invariant: &'static str,
    sentence: &'static str,
    seen: impl FnOnce() -> String,
) -> Result<(), Breach> {
    if holds { Ok(()) } else { Err(Breach { invariant, sentence, seen: seen() }) }
}

/// A grant: an accepted Promote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What was granted.
    pub epoch: Epoch,
    /// To whom.
    pub node: NodeId,
    /// By which promotion.
    pub promotion: PromotionId,
}

/// A release of the gate, as it was written to PostgreSQL.
#[derive(Clone, Debug)]
pub struct Release<'a> {
    /// By whom.
    pub node: NodeId,
    /// Under which epoch.
    pub epoch: Epoch,
    /// How far.
    pub upto_lsn: Lsn,
    /// The mode of the permit.
    pub mode: DurabilityMode,
    /// Who is waited for by the permit.
    pub waited_for: &'a [NodeId],
    /// The permit's quorums; with none all of them are waited for.
    pub quorums: &'a [Quorum],
}

/// The truth at the moment of a release.
#[derive(Clone, Debug)]
pub struct Truth<'a> {
    /// The newest epoch that was granted anywhere.
    pub newest_epoch: Epoch,
    /// Flushed by the primary.
    pub flush_lsn: Lsn,
    /// Durable and complete in the journal of each node.
    pub durable: &'a BTreeMap<NodeId, Lsn>,
    /// Who may be promoted, by the newest state of all; only of the same epoch.
    pub eligible: &'a [NodeId],
    /// The greatest credit of an accepted renewal of this epoch.
    pub credit: Lsn,
}

/// I1: granted epochs strictly increase, and a promotion is granted once.
///
/// # Errors
/// With the two grants.
pub fn each_grant_has_an_epoch_of_its_own(before: &[Grant], grant: &Grant) -> Result<(), Breach> {
    let clash = before.iter().find(|b| b.epoch >= grant.epoch || b.promotion == grant.promotion);
    require(clash.is_none(), "I1", "granted epochs increase and are granted once", || {
        format!("{grant:?} after {clash:?}")
    })
}

/// I3, I4: nothing is acknowledged under an epoch once a newer one was granted.
///
/// # Errors
/// With the release and the newer epoch.
pub fn nobody_acknowledges_under_an_epoch_that_was_superseded(
    release: &Release<'_>,
    truth: &Truth<'_>,
) -> Result<(), Breach> {
    require(
        truth.newest_epoch <= release.epoch,
        "I3 I4",
        "no acknowledgement is written under an older epoch after a newer one was granted",
        || {
            format!(
                "node {} released {} under epoch {} while epoch {} was granted",
                release.node, release.upto_lsn, release.epoch, truth.newest_epoch
            )
        },
    )
}

/// I4: at one moment at most one node could acknowledge.
///
/// # Errors
/// With both nodes.
pub fn at_most_one_gate_is_open(open: &[NodeId]) -> Result<(), Breach> {
    require(open.len() <= 1, "I4", "at most one gate is open at a time", || format!("{open:?}"))
}

/// I4: an epoch is granted only when nobody can acknowledge under an older one any more.
///
/// # Errors
/// With the nodes that can.
pub fn no_gate_is_open_when_an_epoch_is_granted(
    open: &[NodeId],
    epoch: Epoch,
) -> Result<(), Breach> {
    require(open.is_empty(), "I4 I16", "no gate is open when an epoch is granted", || {
        format!("epoch {epoch} is granted while the gate of {open:?} is open")
    })
}

/// I5: in zero nothing is released that is not durable at the active and at everybody waited for.
///
/// # Errors
/// With the node that lacks it.
pub fn in_zero_a_release_is_durable_at_everybody_waited_for(
    release: &Release<'_>,
    truth: &Truth<'_>,
) -> Result<(), Breach> {
    require(
        release.upto_lsn <= truth.flush_lsn,
        "I5",
        "nothing is released beyond the primary's own flush position",
        || format!("{} released, {} flushed", release.upto_lsn, truth.flush_lsn),
    )?;
    if release.mode != DurabilityMode::Zero {
        return Ok(());
    }
    let has =
        |node: &&NodeId| truth.durable.get(node).copied().unwrap_or(Lsn::ZERO) >= release.upto_lsn;
    let met = |quorum: &Quorum| quorum.members.iter().filter(has).count() >= quorum.needed_count();
    let holds = match release.quorums {
        [] => release.waited_for.iter().all(|node| has(&node)),
        quorums => quorums.iter().all(met),
    };
    require(
        holds,
        "I5 I11",
        "in zero a release is durable at everybody who is waited for, or at as many as suffice",
        || {
            format!(
                "node {} released {}, durable is {:?}",
                release.node, release.upto_lsn, truth.durable
            )
        },
    )
}

/// RULE 1: whoever may be promoted is waited for by the gate that releases.
///
/// # Errors
/// With the node that is not waited for.
pub fn whoever_is_eligible_is_waited_for(
    release: &Release<'_>,
    truth: &Truth<'_>,
) -> Result<(), Breach> {
    let missed = truth.eligible.iter().find(|node| !release.waited_for.contains(node));
    require(missed.is_none(), "RULE 1", "whoever is eligible is waited for", || {
        format!("node {missed:?} is eligible, the gate waits for {:?}", release.waited_for)
    })
}

/// I6: in bounded and best-effort nothing is released beyond the credit of an accepted renewal.
///
/// # Errors
/// With both positions.
pub fn a_release_stays_within_the_credit(
    release: &Release<'_>,
    truth: &Truth<'_>,
) -> Result<(), Breach> {
    let counts = release.mode != DurabilityMode::Zero;
    require(
        !counts || release.upto_lsn <= truth.credit,
        "I6",
        "a release stays within the credit of the last accepted renewal",
        || format!("{} released, the credit is {}", release.upto_lsn, truth.credit),
    )
}

/// I6: at a release in bounded, the span of acknowledged commits that would be lost is below the
/// ceiling.
///
/// # Errors
/// With span and ceiling.
pub fn exposure_stays_below_the_ceiling(span: Duration, ceiling: Duration) -> Result<(), Breach> {
    require(span <= ceiling, "I6", "exposure at a release stays below the ceiling", || {
        format!("the span of what would be lost is {span:?}, the ceiling {ceiling:?}")
    })
}

/// I3, I5: after a failover in zero nothing acknowledged is missing.
///
/// # Errors
/// With the first that is.
pub fn in_zero_every_acknowledged_commit_survives(
    mode: DurabilityMode,
    missing: &[(Lsn, Epoch)],
) -> Result<(), Breach> {
    require(
        mode != DurabilityMode::Zero || missing.is_empty(),
        "I3 I5",
        "in zero every acknowledged commit is in the survivor's WAL",
        || format!("{} are missing, the first is {:?}", missing.len(), missing.first()),
    )
}

/// I6: a failover in bounded loses no more than the ceiling, from the oldest lost acknowledgement to
/// the last one.
///
/// # Errors
/// With span and ceiling.
pub fn in_bounded_a_failover_loses_at_most_the_ceiling(
    mode: DurabilityMode,
    lost: Duration,
    ceiling: Duration,
) -> Result<(), Breach> {
    require(
        mode != DurabilityMode::Bounded || lost <= ceiling,
        "I6",
        "in bounded a failover loses no more than the ceiling",
        || format!("lost {lost:?}, the ceiling is {ceiling:?}"),
    )
}

/// I8: a switchover loses nothing, whatever the dial says.
///
/// # Errors
/// With the first acknowledged commit that is missing.
pub fn a_switchover_loses_nothing(missing: &[(Lsn, Epoch)]) -> Result<(), Breach> {
    require(missing.is_empty(), "I8", "a switchover after a clean stop loses nothing", || {
        format!("{} are missing, the first is {:?}", missing.len(), missing.first())
    })
}

/// I24: what a promotion is recorded to lose at most is not less than what it lost.
///
/// # Errors
/// With both spans.
pub fn a_promotion_loses_at_most_what_it_states(
    lost: Duration,
    stated: Duration,
) -> Result<(), Breach> {
    require(lost <= stated, "I24", "a promotion loses at most what it states", || {
        format!("lost {lost:?}, stated {stated:?}")
    })
}

/// I7: whoever is recorded as eligible in zero holds everything that was ever acknowledged.
///
/// # Errors
/// With the number of commits that are missing there.
pub fn whoever_joins_in_zero_holds_all_that_was_acknowledged(
    mode: DurabilityMode,
    node: NodeId,
    missing: usize,
) -> Result<(), Breach> {
    require(
        mode != DurabilityMode::Zero || missing == 0,
        "I7",
        "whoever is recorded as eligible in zero holds all that was acknowledged",
        || format!("node {node} lacks {missing} acknowledged commits"),
    )
}

/// What a node that proposes to give its lease back still does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivingBack {
    /// Processes of its server are left.
    pub processes_left: bool,
    /// Its gate could still release.
    pub gate_open: bool,
    /// It proposed a renewal after it had proposed the release.
    pub renews: bool,
}

/// I16 and mistake 17: a lease is given back only by whoever has stopped for good.
///
/// # Errors
/// With what still runs.
pub fn a_lease_is_given_back_only_when_everything_has_stopped(
    node: NodeId,
    still: GivingBack,
) -> Result<(), Breach> {
    let stopped = !(still.processes_left || still.gate_open || still.renews);
    require(
        stopped,
        "I16",
        "a lease is given back only with the gate shut, renewals stopped and no process left",
        || format!("node {node}: {still:?}"),
    )
}

/// I11, mistake 10: a sealed end is the journal's end, and nothing comes after it.
///
/// # Errors
/// With both positions.
pub fn a_sealed_end_is_the_end(sealed_lsn: Lsn, journal_lsn: Lsn) -> Result<(), Breach> {
    require(sealed_lsn == journal_lsn, "I11", "a sealed end is the journal's end", || {
        format!("sealed at {sealed_lsn}, the journal ends at {journal_lsn}")
    })
}

/// I1, I12: a journal stores nothing of an epoch older than the newest that it knows.
///
/// # Errors
/// With both epochs.
pub fn a_journal_stores_no_older_epoch(frame: Epoch, newest: Epoch) -> Result<(), Breach> {
    require(frame >= newest, "I1 I12", "a journal stores nothing of an older epoch", || {
        format!("stored a frame of epoch {frame} though it knows {newest}")
    })
}

/// I12: no durable byte is overwritten by a different one.
///
/// # Errors
/// With the position; `None` when nothing differs.
pub fn no_durable_byte_is_overwritten(node: NodeId, differs: Option<Lsn>) -> Result<(), Breach> {
    require(differs.is_none(), "I12", "no durable byte is overwritten by a different one", || {
        format!("node {node} at {differs:?}")
    })
}

/// I11, mistake 11: a standby has not replayed what its journal does not hold durably.
///
/// # Errors
/// With both positions.
pub fn a_standby_is_not_ahead_of_its_journal(replay: Lsn, durable: Lsn) -> Result<(), Breach> {
    require(replay <= durable, "I11", "a standby is not ahead of its journal", || {
        format!("replayed {replay}, the journal ends at {durable}")
    })
}

/// I13, mistake 12: whoever runs as a standby holds nothing beyond the fork.
///
/// # Errors
/// With the node and the first position that is not the cluster's.
pub fn a_standby_is_on_the_cluster_s_history(
    node: NodeId,
    beyond: Option<Lsn>,
) -> Result<(), Breach> {
    require(beyond.is_none(), "I13", "a standby holds nothing beyond the fork", || {
        format!("node {node} holds other WAL at {beyond:?}")
    })
}

/// I14: an incomplete data directory neither runs nor is promoted.
///
/// # Errors
/// With the node.
pub fn what_is_incomplete_does_not_run(node: NodeId, incomplete: bool) -> Result<(), Breach> {
    require(!incomplete, "I14", "an incomplete data directory is not started", || {
        format!("node {node} runs on a copy that did not finish")
    })
}

/// Mistake 18: nobody replaces the data of the node that was granted last.
///
/// # Errors
/// With the node.
pub fn the_last_holder_s_data_is_not_replaced(
    node: NodeId,
    last_holder: Option<NodeId>,
) -> Result<(), Breach> {
    require(
        last_holder != Some(node),
        "I13",
        "the data of the node that was granted last is not replaced",
        || format!("node {node} begins to rewind or clone over the only surviving copy"),
    )
}

/// I23: the same log gives the same state.
///
/// # Errors
/// With the index up to which the log was applied.
pub fn the_same_log_gives_the_same_state(equal: bool, index: u64) -> Result<(), Breach> {
    require(equal, "I23", "the same log gives the same state", || format!("at index {index}"))
}

/// The deadline of a permit is never behind the moment of the decision under it.
///
/// # Errors
/// With both moments, on the holder's own clock.
pub fn a_release_is_decided_before_the_deadline(
    decided_at: BootInstant,
    deadline: BootInstant,
) -> Result<(), Breach> {
    require(decided_at < deadline, "I4", "a release is decided before the deadline", || {
        format!("decided at {decided_at}, the deadline was {deadline}")
    })
}

/// Liveness: without faults, something comes to pass in bounded time.
///
/// # Errors
/// With what is missing.
pub fn without_faults_it_comes_to_pass(
    missing: Option<&str>,
    within: Duration,
) -> Result<(), Breach> {
    require(missing.is_none(), "liveness", "without faults it comes to pass", || {
        format!("not within {within:?}: {}", missing.unwrap_or_default())
    })
}

/// Liveness: what is refused is not asked for again and again, which would fill the log.
///
/// # Errors
/// With how much of one node was refused, and how much may be.
pub fn refusals_do_not_fill_the_log(
    node: NodeId,
    refused: u32,
    within: Duration,
) -> Result<(), Breach> {
    let most = REFUSED_MAX;
    require(refused <= most, "liveness", "refusals do not fill the log", || {
        format!("{refused} entries of {node} were refused within {within:?}, more than {most}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Epoch = Epoch { incarnation: 0, number: 1 };

    fn truth(durable: &BTreeMap<NodeId, Lsn>) -> Truth<'_> {
        Truth {
            newest_epoch: ONE,
            flush_lsn: Lsn(100),
            durable,
            eligible: &[NodeId(2)],
            credit: Lsn(60),
        }
    }

    fn release(upto: u64, mode: DurabilityMode, waited_for: &[NodeId]) -> Release<'_> {
        Release { node: NodeId(1), epoch: ONE, upto_lsn: Lsn(upto), mode, waited_for, quorums: &[] }
    }

    #[test]
    fn a_release_is_judged_by_what_is_durable_waited_for_and_credited() {
        let durable = BTreeMap::from([(NodeId(2), Lsn(50))]);
        let (truth, zero) = (truth(&durable), DurabilityMode::Zero);
        let two = [NodeId(2)];
        let good = release(50, zero, &two);
        assert_eq!(in_zero_a_release_is_durable_at_everybody_waited_for(&good, &truth), Ok(()));
        assert_eq!(whoever_is_eligible_is_waited_for(&good, &truth), Ok(()));
        let early = release(51, zero, &two);
        assert!(in_zero_a_release_is_durable_at_everybody_waited_for(&early, &truth).is_err());
        assert!(whoever_is_eligible_is_waited_for(&release(1, zero, &[]), &truth).is_err());
        let bounded = DurabilityMode::Bounded;
        assert_eq!(a_release_stays_within_the_credit(&release(60, bounded, &two), &truth), Ok(()));
        assert!(a_release_stays_within_the_credit(&release(61, bounded, &two), &truth).is_err());
        assert!(
            in_zero_a_release_is_durable_at_everybody_waited_for(
                &release(101, bounded, &two),
                &truth
            )
            .is_err()
        );
    }

    #[test]
    fn a_second_grant_of_an_epoch_and_a_release_under_an_old_one_are_seen() {
        let grant = |number, id| Grant {
            epoch: Epoch { incarnation: 0, number },
            node: NodeId(1),
            promotion: PromotionId(uuid::Uuid::from_u128(id)),
        };
        assert_eq!(each_grant_has_an_epoch_of_its_own(&[grant(1, 1)], &grant(2, 2)), Ok(()));
        assert!(each_grant_has_an_epoch_of_its_own(&[grant(2, 1)], &grant(2, 2)).is_err());
        assert!(each_grant_has_an_epoch_of_its_own(&[grant(1, 1)], &grant(2, 1)).is_err());
        let durable = BTreeMap::new();
        let newer = Truth { newest_epoch: ONE.next(), ..truth(&durable) };
        let late = release(1, DurabilityMode::Bounded, &[]);
        assert!(nobody_acknowledges_under_an_epoch_that_was_superseded(&late, &newer).is_err());
    }
}
