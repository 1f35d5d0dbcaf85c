//! What only the Raft leader does: grant epochs, supersede what is stuck, end what has ended.
//!
//! Everything it proposes says what it believed, so a leader that is mistaken about its own
//! leadership, or late, does no harm.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{BootInstant, Epoch, Lsn, NodeId, SystemId, Timeline};

use super::{Core, REPORT_FRESH, Slot};
use crate::ClusterState;
use crate::state::{Command, NodeOrder, Phase, PromoteCause};
use crate::verdict::{self, Candidacy, Evidence};

/// A promotion that has not been reported after this is superseded, if anybody else can.
const PROMOTION_STUCK: Duration = Duration::from_secs(30);
/// A candidate that has not been heard for this long is given up.
const CANDIDATE_SILENT: Duration = Duration::from_secs(4);
/// How long others have the chance before whoever gave its lease back may take it up again.
const RESUME_PATIENCE: Duration = Duration::from_secs(2);
/// An ordered failover that found nobody to promote for this long is called off.
const ORDER_PATIENCE: Duration = Duration::from_secs(15);

/// When this node saw the present phase begin; volatile.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct LeaderView {
    phase: Option<(Epoch, bool)>,
    since: BootInstant,
    lost_since: Option<BootInstant>,
    order_since: Option<(u64, BootInstant)>,
    switchover_since: Option<(u64, BootInstant)>,
    /// Orders to nodes, by operation and whether they had begun.
    #[serde(default, with = "crate::serde_parts::pairs")]
    node_orders_since: BTreeMap<(u64, bool), BootInstant>,
}

impl LeaderView {
    pub(super) fn observe(&mut self, now: BootInstant, state: &ClusterState) {
        let key = (state.epoch, matches!(state.phase, Phase::Promoting(_)));
        if self.phase != Some(key) {
            self.phase = Some(key);
            self.since = now;
            self.lost_since = None;
        }
        self.order_since = state.order.as_ref().map(|order| match self.order_since {
            Some((id, at)) if id == order.operation => (id, at),
            Some(_) | None => (order.operation, now),
        });
        self.switchover_since =
            state.switchover.as_ref().map(|switchover| match self.switchover_since {
                Some((id, at)) if id == switchover.operation => (id, at),
                Some(_) | None => (switchover.operation, now),
            });
        let before = std::mem::take(&mut self.node_orders_since);
        let keys = state.node_orders.values().map(|o| (o.operation, o.begun.is_some()));
        self.node_orders_since =
            keys.map(|key| (key, before.get(&key).copied().unwrap_or(now))).collect();
    }

    /// For how long this node has known of an order as it stands, begun or not.
    pub(super) fn order_known_for(&self, now: BootInstant, order: &NodeOrder) -> Option<Duration> {
        let key = (order.operation, order.begun.is_some());
        self.node_orders_since.get(&key).map(|since| now.since(*since))
    }

    /// Since when this node has known of the switchover under way.
    pub(super) fn switchover_since(&self) -> Option<BootInstant> {
        self.switchover_since.map(|(_, at)| at)
    }
}

impl Core {
    pub(super) fn advance_leader(&mut self, now: BootInstant) {
        if self.state.identity.is_none() {
            return;
        }
        if let Some(pause) = &self.state.pause
            && self.wall_unix_us >= pause.until_unix_us
        {
            let reason = "its time has come".to_owned();
            let at_unix_us = self.wall_unix_us;
            self.propose(
                now,
                Slot::Housekeeping,
                Command::Resume { caller: None, reason, at_unix_us },
            );
        }
        match self.state.phase.clone() {
            Phase::Bootstrap => self.grant_first(now),
            Phase::Promoting(promoting) => self.supersede_if_stuck(now, promoting.to),
            Phase::Running | Phase::Handover(_) => self.answer_loss(now),
        }
        self.end_stale_switchover(now);
        self.end_stale_orders(now);
        self.begin_what_is_due(now);
    }

    /// The first epoch goes to the node that founding named, once it has a data directory.
    fn grant_first(&mut self, now: BootInstant) {
        let Some(identity) = self.state.identity else { return };
        let initial = identity.initial_active;
        let Some((system_id, timeline)) = self.report_of(now, initial).and_then(|r| r.data) else {
            return;
        };
        self.grant(now, initial, timeline, PromoteCause::Bootstrap, None, Some(system_id));
    }

    /// Until Promoted is accepted the new epoch has acknowledged nothing: anybody who has the data may
    /// be granted the next one, the old holder too.
    fn supersede_if_stuck(&mut self, now: BootInstant, candidate: NodeId) {
        let elapsed = now.since(self.leader.since);
        let silent = candidate != self.me
            && self.peers.get(&candidate).is_none_or(|h| now.since(h.at) >= CANDIDATE_SILENT);
        let marked = self.state.marks.contains_key(&candidate);
        let given_up = silent && elapsed >= CANDIDATE_SILENT;
        if !(given_up || marked || elapsed >= PROMOTION_STUCK) {
            return;
        }
        let last = self.state.last_granted().map(|(_, granted)| (granted.node, granted.timeline));
        if let Some((node, timeline)) = last
            && node != candidate
            && self.report_of(now, node).is_some_and(|report| report.resumable)
        {
            self.grant(now, node, timeline, PromoteCause::Supersede, None, None);
            return;
        }
        let evidence = self.evidence(now);
        let choice = verdict::choose(&evidence).ok().filter(|found| found.node != candidate);
        if let Some(found) = choice {
            self.grant_next(now, found, PromoteCause::Supersede);
        }
    }

    fn answer_loss(&mut self, now: BootInstant) {
        let Some(holder) = self.state.holder.clone() else { return };
        let released = holder.released.is_some();
        if !released && !self.challenger.is_over(now) {
            self.leader.lost_since = None;
            self.promote_on_seal(now, holder.node);
            return;
        }
        let lost_since = *self.leader.lost_since.get_or_insert(now);
        let ordered = self.state.order.is_some();
        let free = self.state.pause.is_none() && self.hold_left(now).is_none();
        let allowed = self.state.is_ordered() || free;
        let cause = if released { PromoteCause::Released } else { PromoteCause::LeaseOver };
        let choice = verdict::choose(&self.evidence(now));
        match choice {
            Ok(found) if allowed => {
                self.grant_next(now, found, cause);
                return;
            }
            Ok(_) | Err(_) => {}
        }
        if let Some((operation, since)) = self.leader.order_since
            && now.since(since) >= ORDER_PATIENCE
        {
            let why = choice.err().map_or("nobody could be promoted".to_owned(), |r| r.to_string());
            let at_unix_us = self.wall_unix_us;
            let command = Command::EndOrder { operation, why, at_unix_us };
            self.propose(now, Slot::Housekeeping, command);
            return;
        }
        // Whoever gave the lease back has all the data: better it than nobody.
        let patient = now.since(lost_since) >= RESUME_PATIENCE;
        let back = self.report_of(now, holder.node).is_some_and(|report| report.resumable);
        if released && !ordered && patient && back {
            let Some(timeline) = self.state.current().map(|granted| granted.timeline) else {
                return;
            };
            self.grant(now, holder.node, timeline, PromoteCause::Released, None, None);
        }
    }

    pub(super) fn grant_next(&mut self, now: BootInstant, found: Candidacy, cause: PromoteCause) {
        let high = self.state.timeline_high;
        let timeline = high.map_or(Timeline::FIRST, Timeline::next);
        self.grant(now, found.node, timeline, cause, Some(found.durable_lsn), None);
    }

    fn grant(
        &mut self,
        now: BootInstant,
        to: NodeId,
        timeline: Timeline,
        cause: PromoteCause,
        durable_lsn: Option<Lsn>,
        system_id: Option<SystemId>,
    ) {
        let under_way = self
            .pending
            .get(&Slot::Promote)
            .is_some_and(|at| now.since(*at) < super::PROPOSAL_RETRY);
        if under_way {
            return;
        }
        // Each proposal has an identity of its own: of two in flight at most one is accepted, and
        // which one must be told apart.
        let Some(promotion) = self.fresh.take() else { return };
        let command = Command::Promote {
            to,
            epoch: self.state.epoch.next(),
            promotion,
            timeline,
            cause,
            expect: self.state.expect(),
            durable_lsn,
            system_id,
        };
        self.propose(now, Slot::Promote, command);
    }

    pub(super) fn report_of(&self, now: BootInstant, node: NodeId) -> Option<super::PeerReport> {
        if node == self.me {
            return Some(self.own_report(now));
        }
        let heard = self.peers.get(&node)?;
        (now.since(heard.at) < REPORT_FRESH).then(|| heard.report.clone())
    }

    pub(super) fn evidence(&self, now: BootInstant) -> Evidence<'_> {
        Evidence {
            state: &self.state,
            peers: &self.peers,
            now,
            me: self.me,
            majority: self.majority,
            lease_over: self.lease_over(now),
            own: self.own_report(now),
            settled: &self.settled,
        }
    }
}
