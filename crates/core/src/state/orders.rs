//! Orders to one node about its PostgreSQL, and a switchover that is to begin at a stated time.
//!
//! An order is an operation from the moment it is accepted until it is `Done` or `Failed`. The node that
//! it names says that it begins before it does anything, and only one process of it ever can: whoever is
//! started after that ends the order instead of carrying it out a second time. What the node does is no
//! matter of the state; only that a copy is never made over the active, nor where every commit would
//! wait for its end unless that was accepted. Pure; moments are data of the proposer.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{DurabilityMode, Epoch, NodeId, ProcessStart};

use super::{ClusterState, OperationKind, OperationStatus, Phase, Rejection};
use super::{PAUSE_BUDGET_MAX, PAUSE_BUDGET_MIN, Switchover};
use crate::OnPassiveLoss;

/// A scheduled switchover that nobody could begin for this long after its time is not begun any more.
pub const SCHEDULE_TOLERANCE: Duration = Duration::from_secs(60);

/// What a node is to do with its PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeVerb {
    /// Stop it and start it again, with the settings of now.
    Restart,
    /// Read the settings anew, and have PostgreSQL read them.
    Reload,
    /// Make its data afresh from the active.
    Reclone,
}

impl NodeVerb {
    /// The kind of operation that it is recorded as.
    pub fn kind(self) -> OperationKind {
        match self {
            NodeVerb::Restart => OperationKind::Restart,
            NodeVerb::Reload => OperationKind::Reload,
            NodeVerb::Reclone => OperationKind::Reclone,
        }
    }

    /// PostgreSQL is away meanwhile.
    fn stops(self) -> bool {
        match self {
            NodeVerb::Restart | NodeVerb::Reclone => true,
            NodeVerb::Reload => false,
        }
    }
}

/// An order to a node that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOrder {
    /// The operation that recorded it.
    pub operation: u64,
    /// What is to be done.
    pub verb: NodeVerb,
    /// The epoch that it was given in. It does not begin in another one: who is active, and what would be
    /// taken away, may have changed.
    pub epoch: Epoch,
    /// Commits may wait until it is done.
    pub accepts_waiting: bool,
    /// The process of the node that began it.
    pub begun: Option<ProcessStart>,
}

/// A switchover that is to begin at a stated time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduled {
    /// The operation that recorded it.
    pub operation: u64,
    /// Who is to become active.
    pub to: NodeId,
    /// As in [`Switchover`].
    pub budget: Duration,
    /// When it begins, wall-clock microseconds by the clock of whoever leads then.
    pub due_unix_us: i64,
}

type Applied = Result<Option<u64>, Rejection>;

/// Who ordered what, and when.
pub(super) struct Ordered<'a> {
    pub(super) caller: &'a str,
    pub(super) reason: &'a str,
    pub(super) at_unix_us: i64,
}

impl ClusterState {
    /// Whether a node could be ordered to do this now. `accepts_waiting`: commits may wait until it is
    /// done.
    ///
    /// # Errors
    /// What stands against it.
    pub fn check_node_order(
        &self,
        node: NodeId,
        verb: NodeVerb,
        epoch: Epoch,
        accepts_waiting: bool,
    ) -> Result<(), Rejection> {
        if let Some(order) = self.node_orders.get(&node) {
            self.check_epoch(epoch)?;
            return Err(Rejection::Busy(order.operation));
        }
        self.check_may_begin(node, verb, epoch, accepts_waiting)
    }

    /// Whether an order that was accepted may begin now: all that it was accepted for still holds.
    ///
    /// # Errors
    /// What stands against it; `Busy` and `Phase` pass, the rest does not.
    pub fn check_begin(&self, node: NodeId, order: &NodeOrder) -> Result<(), Rejection> {
        if order.begun.is_some() {
            return Err(Rejection::NoChange);
        }
        self.check_may_begin(node, order.verb, order.epoch, order.accepts_waiting)
    }

    fn check_may_begin(
        &self,
        node: NodeId,
        verb: NodeVerb,
        epoch: Epoch,
        accepts_waiting: bool,
    ) -> Result<(), Rejection> {
        self.check_epoch(epoch)?;
        self.check_data_node(node)?;
        self.check_undisturbed(node, verb)?;
        if verb == NodeVerb::Reclone && !accepts_waiting && self.would_stall_without(node) {
            return Err(Rejection::WouldStall(node));
        }
        Ok(())
    }

    /// A PostgreSQL is not taken away under a change of the active, nor the active's beside another one.
    fn check_undisturbed(&self, node: NodeId, verb: NodeVerb) -> Result<(), Rejection> {
        if verb == NodeVerb::Reclone && self.holder.as_ref().is_some_and(|h| h.node == node) {
            return Err(Rejection::IsActive(node));
        }
        if !verb.stops() {
            return Ok(());
        }
        let moving = self.order.as_ref().map(|order| order.operation);
        let moving = moving.or(self.switchover.as_ref().map(|switchover| switchover.operation));
        if let Some(operation) = moving {
            return Err(Rejection::Busy(operation));
        }
        if self.phase != Phase::Running {
            return Err(Rejection::Phase);
        }
        let active = self.active();
        let beside = |other: &NodeId| active == Some(node) || active == Some(*other);
        let mut orders = self.node_orders.iter();
        let busy =
            orders.find(|(other, order)| **other != node && order.verb.stops() && beside(other));
        busy.map_or(Ok(()), |(_, order)| Err(Rejection::Busy(order.operation)))
    }

    /// Commits would wait until this node has everything again: it is waited for, fewer than enough are
    /// left without it, and the dial says to wait.
    pub fn would_stall_without(&self, node: NodeId) -> bool {
        let copied = |id: &NodeId| {
            self.node_orders.get(id).is_some_and(|order| order.verb == NodeVerb::Reclone)
        };
        let durability = &self.durability;
        let left = durability.waited.iter().filter(|id| **id != node && !copied(id)).count();
        durability.mode.max(self.config.mode) == DurabilityMode::Zero
            && self.config.on_passive_loss == OnPassiveLoss::Stall
            && durability.waited.contains(&node)
            && left < durability.copies_count()
    }

    /// What takes a PostgreSQL away that a switchover to `to` needs.
    pub(super) fn stopping_order(&self, to: NodeId) -> Option<u64> {
        let needed = self.active().into_iter().chain([to]);
        let mut orders = needed.filter_map(|node| self.node_orders.get(&node));
        orders.find(|order| order.verb.stops()).map(|order| order.operation)
    }

    pub(super) fn order_node(
        &mut self,
        index: u64,
        node: NodeId,
        verb: NodeVerb,
        accepts_waiting: bool,
        ordered: &Ordered<'_>,
    ) -> Applied {
        self.begin(
            index,
            verb.kind(),
            ordered.caller,
            ordered.reason,
            ordered.at_unix_us,
            OperationStatus::Running,
        );
        let name = self.name_of(node);
        self.describe(index, name);
        let epoch = self.epoch;
        let order = NodeOrder { operation: index, verb, epoch, accepts_waiting, begun: None };
        self.node_orders.insert(node, order);
        Ok(Some(index))
    }

    /// The node begins: from here on no other process of it will.
    pub(super) fn begin_node_order(
        &mut self,
        operation: u64,
        node: NodeId,
        process: ProcessStart,
    ) -> Applied {
        let known = self.node_orders.get(&node).copied();
        let order = known.filter(|order| order.operation == operation);
        let order = order.ok_or(Rejection::NoOperation)?;
        self.check_begin(node, &order)?;
        self.node_orders.insert(node, NodeOrder { begun: Some(process), ..order });
        Ok(None)
    }

    pub(super) fn end_node_order(
        &mut self,
        operation: u64,
        failed: bool,
        words: &str,
        at_unix_us: i64,
    ) -> Applied {
        let found = self.node_orders.iter().find(|(_, order)| order.operation == operation);
        let node = found.map(|(node, _)| *node).ok_or(Rejection::NoOperation)?;
        self.node_orders.remove(&node);
        if failed {
            self.end(operation, OperationStatus::Failed(words.to_owned()), at_unix_us);
        } else {
            if let Some(operation) = self.operations.get_mut(&operation) {
                operation.report = Some(words.to_owned()).filter(|words| !words.is_empty());
            }
            self.end(operation, OperationStatus::Done, at_unix_us);
        }
        Ok(None)
    }

    /// Whether a switchover to `to` could be scheduled. Whether it is possible is judged at its time.
    ///
    /// # Errors
    /// What stands against it.
    pub fn check_schedule(&self, to: NodeId, epoch: Epoch) -> Result<(), Rejection> {
        self.check_epoch(epoch)?;
        self.check_data_node(to)?;
        match &self.scheduled {
            Some(scheduled) => Err(Rejection::Busy(scheduled.operation)),
            None => Ok(()),
        }
    }

    pub(super) fn schedule(
        &mut self,
        index: u64,
        to: NodeId,
        budget: Duration,
        due_unix_us: i64,
        ordered: &Ordered<'_>,
    ) -> Applied {
        let running = OperationStatus::Running;
        let (caller, reason, at_unix_us) = (ordered.caller, ordered.reason, ordered.at_unix_us);
        self.begin(index, OperationKind::Switchover, caller, reason, at_unix_us, running);
        let name = self.name_of(to);
        self.describe(index, format!("scheduled, to {name}"));
        let budget = budget.clamp(PAUSE_BUDGET_MIN, PAUSE_BUDGET_MAX);
        self.scheduled = Some(Scheduled { operation: index, to, budget, due_unix_us });
        Ok(Some(index))
    }

    /// Its time has come: it begins, or ends here with what stands against it.
    pub(super) fn begin_scheduled(&mut self, operation: u64, at_unix_us: i64) -> Applied {
        let due = self.scheduled.filter(|scheduled| scheduled.operation == operation);
        let due = due.ok_or(Rejection::NoOperation)?;
        if at_unix_us < due.due_unix_us {
            return Err(Rejection::NoChange);
        }
        self.scheduled = None;
        match self.check_switchover(due.to, self.epoch) {
            Ok(()) => {
                self.switchover = Some(Switchover {
                    operation,
                    to: due.to,
                    epoch: self.epoch,
                    budget: due.budget,
                    clean_end: None,
                });
            }
            Err(why) => {
                let why = match why {
                    Rejection::NotEligible { node, why } => {
                        format!("{}: {why}", self.name_of(node))
                    }
                    other => other.to_string(),
                };
                let words = format!("not begun at its time: {why}");
                self.end(operation, OperationStatus::Failed(words), at_unix_us);
            }
        }
        Ok(None)
    }

    /// Ends a scheduled switchover before it has begun. False when it is not the one of this number.
    pub(super) fn end_scheduled(&mut self, operation: u64, why: &str, at_unix_us: i64) -> bool {
        if self.scheduled.map(|scheduled| scheduled.operation) != Some(operation) {
            return false;
        }
        self.scheduled = None;
        self.end(operation, OperationStatus::Failed(why.to_owned()), at_unix_us);
        true
    }

    pub(super) fn cancel_scheduled(&mut self, ordered: &Ordered<'_>) -> Applied {
        let scheduled = self.scheduled.take().ok_or(Rejection::NoOperation)?;
        let status =
            OperationStatus::Cancelled(format!("by {}: {}", ordered.caller, ordered.reason));
        self.end(scheduled.operation, status, ordered.at_unix_us);
        Ok(Some(scheduled.operation))
    }

    fn describe(&mut self, operation: u64, what: String) {
        if let Some(operation) = self.operations.get_mut(&operation) {
            operation.what = Some(what);
        }
    }
}
