//! A new incarnation of the cluster, made of what one data node has: the state that it begins with,
//! and the way back to more members.
//!
//! It must not decide whether a sole survivor may be made one: that takes a person, and knowledge that
//! is in no log. What is carried over is what later epochs rest on (history, timelines, configuration,
//! the record of operations); what belonged to the old members' leases and sets is not.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use understudy_types::{ClusterIncarnation, Epoch, NodeId, PromotionId};

use super::apply::Applied;
use super::{
    ClusterState, Durability, Granted, Holder, LossBound, LossLimit, Member, Operation,
    OperationKind, OperationStatus, Phase, PromoteCause, Promoting, Published, Rejection,
};

/// Timelines that old members may have been granted without this node hearing of it. Numbers between
/// are burned with a file each, and two histories with one number are still told apart by their
/// promotions, so this is a courtesy to people and archives and no rule that safety rests on.
const TIMELINE_MARGIN: usize = 16;

/// How the present incarnation came to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// The incarnation that was made.
    pub incarnation: ClusterIncarnation,
    /// Its first member, by name.
    pub survivor: String,
    /// The newest epoch that the survivor knew of the incarnation before.
    pub from_epoch: Epoch,
    /// Who ordered it, as the survivor's machine knew them.
    pub caller: String,
    /// Why, in their words.
    pub reason: String,
    /// What may have been lost, as far as the survivor could know.
    pub loss: LossBound,
    /// What the operator accepted.
    pub accepted: LossLimit,
    /// Wall-clock microseconds since the Unix epoch.
    pub at_unix_us: i64,
    /// Members that have a vote; the others have been admitted and follow.
    pub voters: BTreeSet<NodeId>,
}

/// What a recovery is made with.
#[derive(Clone, Debug)]
pub struct RecoveryOrder {
    /// The incarnation that the old state belongs to.
    pub from: ClusterIncarnation,
    /// The incarnation to make.
    pub incarnation: ClusterIncarnation,
    /// The survivor's number in the old incarnation.
    pub survivor: NodeId,
    /// It as a member of the new one, with its new storage.
    pub member: Member,
    /// The identity of its promotion.
    pub promotion: PromotionId,
    /// What may be lost.
    pub loss: LossBound,
    /// What the operator accepts.
    pub accepted: LossLimit,
    /// Who ordered it.
    pub caller: String,
    /// Why.
    pub reason: String,
    /// Wall-clock microseconds.
    pub at_unix_us: i64,
    /// The log index at which the new state begins; above every index of the old log.
    pub index: u64,
}

/// Why a state cannot begin a new incarnation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotRecover {
    /// Nobody was ever active, so there is nothing to save.
    #[error("no node of this cluster was ever active: found it anew with `understudy init`")]
    NeverActive,
    /// The configured number leaves no room for another incarnation's.
    #[error("node {0} has a number of 1000 or more, which leaves no room for a new incarnation's")]
    Number(NodeId),
}

impl ClusterState {
    /// The state that the new incarnation begins with: the survivor is its only member and has been
    /// granted an epoch above every one of the incarnation before.
    ///
    /// # Errors
    /// When there is nothing to carry over, or a number does not fit.
    pub fn recovered(&self, order: &RecoveryOrder) -> Result<ClusterState, CannotRecover> {
        let (old_epoch, old_last) = self.last_granted().ok_or(CannotRecover::NeverActive)?;
        let number = |old: NodeId| {
            let configured = order.from.configured(old);
            order.incarnation.number_of(configured).ok_or(CannotRecover::Number(configured))
        };
        let me = number(order.survivor)?;
        let promoting = match &self.phase {
            // Its server may be on the granted timeline already.
            Phase::Promoting(under_way) if under_way.to == order.survivor => {
                Promoting { to: me, others_to_seal: 0, ..under_way.clone() }
            }
            Phase::Promoting(_) | Phase::Running | Phase::Handover(_) | Phase::Bootstrap => {
                let resumes = old_last.node == order.survivor;
                let high = self.timeline_high.unwrap_or(old_last.timeline).max(old_last.timeline);
                let above = (0..TIMELINE_MARGIN).fold(high, |timeline, _| timeline.next());
                Promoting {
                    to: me,
                    promotion: order.promotion,
                    timeline: if resumes { old_last.timeline } else { above.next() },
                    cause: PromoteCause::LeaseOver,
                    resumes,
                    loss: order.loss,
                    // Nobody else is there to be asked.
                    others_to_seal: 0,
                }
            }
        };
        let lineage: Result<BTreeMap<Epoch, Granted>, CannotRecover> = self
            .lineage
            .iter()
            .map(|(epoch, granted)| {
                Ok((*epoch, Granted { node: number(granted.node)?, ..granted.clone() }))
            })
            .collect();
        let before = self.epoch.max(old_epoch);
        let mut fresh = ClusterState {
            identity: self
                .identity
                .map(|identity| super::Identity { initial_active: me, ..identity }),
            members: BTreeMap::from([(me, order.member.clone())]),
            config: self.config,
            config_version: self.config_version + 1,
            config_history: self.config_history.clone(),
            epoch: Epoch { incarnation: order.incarnation.number, number: before.number + 1 },
            timeline_high: self.timeline_high.max(Some(promoting.timeline)),
            phase: Phase::Promoting(promoting),
            holder: Some(self.first_holder(me)),
            durability: Durability {
                mode: self.config.mode,
                generation: self.durability.generation + 1,
                ..Durability::default()
            },
            lineage: lineage?,
            operations: self.operations.clone(),
            recovery: Some(Recovery {
                incarnation: order.incarnation,
                survivor: order.member.name.to_string(),
                from_epoch: before,
                caller: order.caller.clone(),
                reason: order.reason.clone(),
                loss: order.loss,
                accepted: order.accepted,
                at_unix_us: order.at_unix_us,
                voters: BTreeSet::from([me]),
            }),
            ..ClusterState::default()
        };
        fresh.record_recovery(order);
        Ok(fresh)
    }

    /// Whoever held the lease is not waited for: what it published stays, for what may be exposed.
    fn first_holder(&self, me: NodeId) -> Holder {
        let before = self.holder.as_ref();
        let published = before.and_then(|holder| holder.published.clone());
        Holder {
            node: me,
            process: Default::default(),
            seq: 0,
            ttl: before.map(|holder| holder.ttl).unwrap_or_default(),
            released: None,
            published: published.map(|p| Published { durable: BTreeMap::new(), ..p }),
        }
    }

    fn record_recovery(&mut self, order: &RecoveryOrder) {
        let why = "the cluster was recovered from a sole survivor meanwhile";
        let running: Vec<u64> = self
            .operations
            .iter()
            .filter(|(_, operation)| operation.status == OperationStatus::Running)
            .map(|(id, _)| *id)
            .collect();
        for id in running {
            self.end(id, OperationStatus::Failed(why.to_owned()), order.at_unix_us);
        }
        let what = format!(
            "{} alone is incarnation {}; may be lost: {}; accepted: {}",
            order.member.name, order.incarnation.number, order.loss, order.accepted
        );
        let operation = Operation {
            kind: OperationKind::Recover,
            caller: order.caller.clone(),
            reason: order.reason.clone(),
            what: Some(what),
            status: OperationStatus::Done,
            report: None,
            started_unix_us: order.at_unix_us,
            ended_unix_us: Some(order.at_unix_us),
        };
        self.operations.insert(order.index, operation);
    }

    /// The survivor is the only data node yet: there is nobody whom its commits could wait for.
    pub(super) fn survives_alone(&self) -> bool {
        self.recovery.is_some() && self.data_nodes().count() <= 1
    }

    /// If the holder were lost, the votes of the others would still be a majority. In a founded
    /// cluster every member votes, and losing one is what it is made for.
    pub fn can_elect_without_holder(&self) -> bool {
        if self.recovery.is_none() {
            return true;
        }
        let voters = self.voters();
        let holder = self.holder.as_ref().map(|holder| holder.node);
        let left = voters.iter().filter(|voter| Some(**voter) != holder).count();
        left * 2 > voters.len()
    }

    /// Whose votes count: in a founded cluster every member's.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        match &self.recovery {
            Some(recovery) => recovery.voters.iter().copied().collect(),
            None => self.members.keys().copied().collect(),
        }
    }

    /// A configured node comes (back) into an incarnation that was recovered, with a storage that was
    /// made for it. It has no vote by that.
    pub(super) fn admit_member(&mut self, node: NodeId, member: &Member) -> Applied {
        let bad = |why: String| Err(Rejection::BadMember(why));
        let Some(recovery) = &self.recovery else {
            return bad("only a recovered cluster admits members".to_owned());
        };
        if self.phase != Phase::Running {
            return Err(Rejection::Phase);
        }
        if recovery.incarnation.number_of(recovery.incarnation.configured(node)) != Some(node) {
            return bad(format!("{node} is no number of incarnation {}", recovery.incarnation));
        }
        if let Some(known) = self.members.get(&node) {
            if known.incarnation == member.incarnation {
                return Err(Rejection::NoChange);
            }
            return bad(format!("{} is a member with another storage", known.name));
        }
        if self.members.values().any(|known| known.name == member.name) {
            return bad(format!("{} is a member under another number", member.name));
        }
        self.members.insert(node, member.clone());
        Ok(None)
    }

    /// These have a vote from now on; told after consensus has made it so.
    pub(super) fn set_voters(&mut self, voters: &BTreeSet<NodeId>) -> Applied {
        if let Some(stranger) = voters.iter().find(|voter| !self.members.contains_key(voter)) {
            return Err(Rejection::BadMember(format!("node {stranger} is no member")));
        }
        let recovery = self.recovery.as_mut().ok_or(Rejection::NoChange)?;
        if recovery.voters == *voters || voters.is_empty() {
            return Err(Rejection::NoChange);
        }
        recovery.voters.clone_from(voters);
        Ok(None)
    }
}
