//! The transitions of a planned switchover: ordered, handed over, undone, ended.
//!
//! An order is an operation from the moment it is accepted until it is `Done` or `Failed`, whoever dies
//! meanwhile: it ends with the next reported promotion, with the holder's own undoing, or by the
//! leader's hand. A handover grants nothing by itself; only a release opens the way for another node,
//! and then only for one that has everything up to the clean end. Pure; no clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{Epoch, Lsn, NodeId};

use super::{
    ClusterState, HolderProof, Ineligible, OperationKind, OperationStatus, Phase, PromoteCause,
    Rejection, ReleaseCause,
};

/// Shortest pause of writes that an order may allow: less would end most switchovers by itself.
pub const PAUSE_BUDGET_MIN: Duration = Duration::from_secs(1);
/// Longest: beyond it a failover is the better answer.
pub const PAUSE_BUDGET_MAX: Duration = Duration::from_secs(300);

/// A switchover that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switchover {
    /// The operation that recorded it.
    pub operation: u64,
    /// Who is to become active.
    pub to: NodeId,
    /// The epoch in which it was ordered; another one ends it.
    pub epoch: Epoch,
    /// How long clients may be shut out before it is undone.
    pub budget: Duration,
    /// Once the lease was given back after a clean stop: the end of the old active's WAL.
    pub clean_end: Option<Lsn>,
}

/// The holder is handing its role over: clients are shut out, PostgreSQL is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// On whose behalf.
    pub operation: u64,
    /// To whom.
    pub to: NodeId,
    /// How long it may take, by the holder's clock, from its acceptance on.
    pub budget: Duration,
}

type Applied = Result<Option<u64>, Rejection>;

/// An operator's switchover, as ordered.
pub(super) struct Order<'a> {
    pub(super) to: NodeId,
    pub(super) epoch: Epoch,
    pub(super) budget: Duration,
    pub(super) caller: &'a str,
    pub(super) reason: &'a str,
    pub(super) at_unix_us: i64,
}

impl ClusterState {
    /// A holder acts under its lease: running, or handing over.
    pub fn is_held(&self) -> bool {
        match self.phase {
            Phase::Running | Phase::Handover(_) => true,
            Phase::Bootstrap | Phase::Promoting(_) => false,
        }
    }

    /// The handover under way.
    pub fn handover(&self) -> Option<&Handover> {
        match &self.phase {
            Phase::Handover(handover) => Some(handover),
            Phase::Bootstrap | Phase::Promoting(_) | Phase::Running => None,
        }
    }

    /// Where the WAL of a holder ends that stopped cleanly and gave its lease back.
    pub fn clean_end(&self) -> Option<Lsn> {
        match self.holder.as_ref()?.released? {
            ReleaseCause::CleanEnd(end) => Some(end),
            ReleaseCause::Fenced => None,
        }
    }

    /// Whom alone an operator's switchover lets take over: after a clean release that is whoever was
    /// asked for, or else the old active again.
    pub fn handed_to(&self) -> Option<NodeId> {
        self.clean_end()?;
        self.switchover.as_ref().map(|switchover| switchover.to)
    }

    /// The next change of the active is an operator's wish, so that no pause holds it back: an ordered
    /// failover, or a switchover whose active has given its lease back.
    pub fn is_ordered(&self) -> bool {
        self.order.is_some() || self.handed_to().is_some()
    }

    /// Where the WAL of a holder ended that handed over cleanly, also when the first who was granted the
    /// epoch after it is superseded.
    pub fn handover_end(&self) -> Option<Lsn> {
        let noted = self.switchover.as_ref().and_then(|switchover| switchover.clean_end);
        self.clean_end().or(noted)
    }

    /// How many of the others that are waited for have to be sealed, besides `to` itself, before it is
    /// promoted. None where all were waited for, where a clean handover has put everything at `to`, or
    /// where a person accepts what is lost.
    pub fn others_to_seal(&self, to: NodeId) -> usize {
        let durability = &self.durability;
        let enough = self.handover_end().is_some()
            || !durability.waited.contains(&to)
            || self.accepted_loss(to).is_some();
        if enough { 0 } else { durability.seals_count() - 1 }
    }

    /// Whether `to` has the data that a promotion may rest on: after a clean stop everything up to its
    /// end, so that nothing can be lost; otherwise what the dial asks for.
    ///
    /// # Errors
    /// Why not.
    pub fn check_candidate(&self, to: NodeId, durable_lsn: Option<Lsn>) -> Result<(), Ineligible> {
        let Some(end) = self.handover_end() else {
            return self.check_data(to, durable_lsn);
        };
        self.check_successor(to)?;
        // It may have more than that, of a half record that was never finished; never less.
        if durable_lsn.is_none_or(|durable| durable < end) {
            return Err(Ineligible::LostWal);
        }
        Ok(())
    }

    /// Whether a switchover may lead to `to`. What is exposed does not matter: before the release
    /// everything has to be durable there, whatever the dial says.
    ///
    /// # Errors
    /// Why not.
    pub fn check_successor(&self, to: NodeId) -> Result<(), Ineligible> {
        if let Some(mark) = self.marks.get(&to) {
            return Err(Ineligible::Marked(mark.to_string()));
        }
        if self.durability.lifted {
            return Err(Ineligible::Lifted);
        }
        if self.durability.eligible.contains(&to) { Ok(()) } else { Err(Ineligible::NotInSet) }
    }

    /// Whether a switchover to `to` could be ordered now.
    ///
    /// # Errors
    /// What stands against it.
    pub fn check_switchover(&self, to: NodeId, epoch: Epoch) -> Result<(), Rejection> {
        self.check_epoch(epoch)?;
        self.check_running()?;
        self.check_data_node(to)?;
        let busy = self.order.as_ref().map(|order| order.operation);
        let busy = busy.or(self.switchover.as_ref().map(|switchover| switchover.operation));
        let busy = busy.or(self.stopping_order(to));
        if let Some(operation) = busy {
            return Err(Rejection::Busy(operation));
        }
        if self.holder.as_ref().is_some_and(|holder| holder.released.is_some()) {
            return Err(Rejection::Released);
        }
        if self.active() == Some(to) {
            return Err(Rejection::NotEligible { node: to, why: Ineligible::IsHolder });
        }
        // The position is judged at Promote; what is missing now has to be there by then.
        self.check_successor(to).map_err(|why| Rejection::NotEligible { node: to, why })
    }

    pub(super) fn order_switchover(&mut self, index: u64, order: &Order<'_>) -> Applied {
        self.check_switchover(order.to, order.epoch)?;
        let budget = order.budget.clamp(PAUSE_BUDGET_MIN, PAUSE_BUDGET_MAX);
        let (kind, running) = (OperationKind::Switchover, OperationStatus::Running);
        self.begin(index, kind, order.caller, order.reason, order.at_unix_us, running);
        self.switchover = Some(Switchover {
            operation: index,
            to: order.to,
            epoch: order.epoch,
            budget,
            clean_end: None,
        });
        Ok(Some(index))
    }

    pub(super) fn hand_over(&mut self, by: &HolderProof, operation: u64) -> Applied {
        self.check_holder(by)?;
        self.check_running()?;
        let switchover = self.switchover.as_ref().filter(|found| found.operation == operation);
        let switchover = switchover.ok_or(Rejection::NoOperation)?;
        let (to, budget) = (switchover.to, switchover.budget);
        // Refused before a client is shut out for nothing.
        self.check_successor(to).map_err(|why| Rejection::NotEligible { node: to, why })?;
        self.phase = Phase::Handover(Handover { operation, to, budget });
        Ok(None)
    }

    pub(super) fn undo(
        &mut self,
        by: &HolderProof,
        operation: u64,
        why: &str,
        at_unix_us: i64,
    ) -> Applied {
        // Not after the release: `check_holder` refuses it then.
        self.check_holder(by)?;
        if self.end_switchover(operation, why, at_unix_us) {
            Ok(None)
        } else {
            Err(Rejection::NoOperation)
        }
    }

    /// Ends the switchover of this number as failed; a handover goes back to running. False when it is
    /// not under way.
    pub(super) fn end_switchover(&mut self, operation: u64, why: &str, at_unix_us: i64) -> bool {
        if self.switchover.as_ref().map(|found| found.operation) != Some(operation) {
            return false;
        }
        self.switchover = None;
        if self.handover().is_some() {
            self.phase = Phase::Running;
        }
        self.end(operation, OperationStatus::Failed(why.to_owned()), at_unix_us);
        true
    }

    /// A promotion that may not begin below a clean end ends the order itself, and until then the order
    /// says where that end is, whoever supersedes it.
    pub(crate) fn check_may_end(&self, operation: u64) -> Result<(), Rejection> {
        let switchover = self.switchover.as_ref().filter(|found| found.operation == operation);
        let bound = switchover.is_some_and(|found| found.clean_end.is_some());
        if bound && !self.is_held() { Err(Rejection::Phase) } else { Ok(()) }
    }

    /// The lease was given back: from now on the candidate answers for the clean end.
    pub(super) fn note_clean_end(&mut self) {
        let end = self.clean_end();
        if let Some(switchover) = &mut self.switchover {
            switchover.clean_end = end;
        }
    }

    /// A promotion was reported: whatever was ordered has come to its end with it.
    pub(super) fn settle_switchover(
        &mut self,
        promoted: NodeId,
        cause: PromoteCause,
        at_unix_us: i64,
    ) {
        let Some(switchover) = self.switchover.take() else { return };
        let status = match (switchover.to == promoted, cause, switchover.clean_end) {
            // However often it was superseded on the way: the clean end was kept to.
            (true, PromoteCause::Released | PromoteCause::Supersede, Some(_)) => {
                OperationStatus::Done
            }
            (true, _, _) => OperationStatus::Failed(format!(
                "the active was lost before it had handed over; {} took over by a failover",
                self.name_of(promoted)
            )),
            (false, _, _) => OperationStatus::Failed(format!(
                "{} could not take over; {} goes on as the active",
                self.name_of(switchover.to),
                self.name_of(promoted)
            )),
        };
        self.end(switchover.operation, status, at_unix_us);
    }
}
