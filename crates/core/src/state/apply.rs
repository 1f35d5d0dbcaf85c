//! `ClusterState::apply`: every transition, with its conditions. Pure; no clock.
//!
//! One function a command, each a list of refusals followed by the change (docs/safety.md,
//! "Commands"). What only the proposer's clock can know (is the lease over?) is the proposer's duty;
//! that nothing was renewed since it looked is checked here.

use std::collections::{BTreeMap, BTreeSet};

use understudy_types::{
    ClusterId, DurabilityMode, Epoch, Lsn, NodeId, NodeKind, SeededBug, SystemId, Timeline,
};

use super::orders::Ordered;
use super::switchover::Order;
use super::{
    ClusterState, Command, Durability, Expect, FailoverOrder, Granted, Holder, HolderProof,
    Identity, Ineligible, LossBound, Mark, Member, OPERATIONS_KEPT, Operation, OperationKind,
    OperationStatus, Outcome, Pause, Phase, PromoteCause, Promoting, Published, Rejection,
};
use crate::{ClusterConfig, OnSoleSurvivor};

pub(super) type Applied = Result<Option<u64>, Rejection>;

impl ClusterState {
    /// Applies the entry at `index`. The state changes if and only if the outcome is *Accepted*.
    pub fn apply(&mut self, index: u64, command: &Command) -> Outcome {
        match self.try_apply(index, command) {
            Ok(operation) => Outcome::Accepted { operation },
            Err(rejection) => Outcome::Rejected(rejection),
        }
    }

    fn try_apply(&mut self, index: u64, command: &Command) -> Applied {
        if !matches!(command, Command::Found { .. }) && self.identity.is_none() {
            return Err(Rejection::NotFounded);
        }
        match command {
            Command::Found { cluster, members, config, initial_active } => {
                self.found(*cluster, members, *config, *initial_active)
            }
            Command::Renew { by, seq, ttl, published } => self.renew(by, *seq, *ttl, published),
            Command::Release { by, seq, cause } => {
                self.check_holder(by)?;
                self.check_seq(*seq)?;
                let holder = self.holder.as_mut().expect("check_holder found one");
                holder.released = Some(*cause);
                self.note_clean_end();
                Ok(None)
            }
            Command::SyncAdd { by, generation, node, copies, at } => {
                self.sync_add(by, *generation, *node, *copies, *at)
            }
            Command::SyncRemove { by, generation, node, copies } => {
                self.sync_remove(by, *generation, *node, *copies)
            }
            Command::SetEff { by, generation, config_version, mode, at_unix_us } => {
                self.set_eff(by, *generation, *config_version, *mode, *at_unix_us)
            }
            Command::SetDial { .. } => self.set_dial(index, command),
            Command::AcceptLoss { .. } => self.accept_loss(index, command),
            Command::SetMark { node, mark } => self.set_mark(*node, mark),
            Command::ClearMark { by, node } => {
                self.check_holder(by)?;
                self.marks.remove(node).map(|_| None).ok_or(Rejection::NoChange)
            }
            Command::AdmitMember { node, member } => self.admit_member(*node, member),
            Command::SetVoters { voters } => self.set_voters(voters),
            Command::Promote { .. } => self.promote(command),
            Command::Promoted { .. } => self.promoted(command),
            Command::OrderFailover { to, epoch, caller, reason, at_unix_us } => {
                self.order_failover(*to, *epoch)?;
                let kind = OperationKind::Failover;
                self.begin(index, kind, caller, reason, *at_unix_us, OperationStatus::Running);
                self.order = Some(FailoverOrder { operation: index, to: *to, accepts: None });
                Ok(Some(index))
            }
            Command::OrderSwitchover { to, epoch, budget, caller, reason, at_unix_us } => {
                let (to, epoch, budget) = (*to, *epoch, *budget);
                let at_unix_us = *at_unix_us;
                let order = Order { to, epoch, budget, caller, reason, at_unix_us };
                self.order_switchover(index, &order)
            }
            Command::Handover { by, operation } => self.hand_over(by, *operation),
            Command::Undo { by, operation, why, at_unix_us } => {
                self.undo(by, *operation, why, *at_unix_us)
            }
            Command::EndOrder { operation, why, at_unix_us } => {
                self.check_may_end(*operation)?;
                if self.end_switchover(*operation, why, *at_unix_us)
                    || self.end_scheduled(*operation, why, *at_unix_us)
                {
                    return Ok(None);
                }
                if self.order.as_ref().map(|order| order.operation) != Some(*operation) {
                    return Err(Rejection::NoOperation);
                }
                self.order = None;
                self.end(*operation, OperationStatus::Failed(why.clone()), *at_unix_us);
                Ok(None)
            }
            Command::OrderNode { .. }
            | Command::BeginNodeOrder { .. }
            | Command::EndNodeOrder { .. }
            | Command::ScheduleSwitchover { .. }
            | Command::BeginScheduled { .. }
            | Command::CancelScheduled { .. } => self.apply_order(index, command),
            Command::Pause { until_unix_us, caller, reason, at_unix_us } => {
                if let Some(previous) = self.pause.take() {
                    self.end(previous.operation, OperationStatus::Done, *at_unix_us);
                }
                let kind = OperationKind::Pause;
                self.begin(index, kind, caller, reason, *at_unix_us, OperationStatus::Running);
                self.pause = Some(Pause { until_unix_us: *until_unix_us, operation: index });
                Ok(Some(index))
            }
            Command::Resume { caller, reason, at_unix_us } => {
                let pause = self.pause.take().ok_or(Rejection::NoChange)?;
                self.end(pause.operation, OperationStatus::Done, *at_unix_us);
                let Some(caller) = caller else { return Ok(None) };
                let kind = OperationKind::Resume;
                self.begin(index, kind, caller, reason, *at_unix_us, OperationStatus::Done);
                self.end(index, OperationStatus::Done, *at_unix_us);
                Ok(Some(index))
            }
        }
    }

    /// Orders to one node, and what is scheduled.
    fn apply_order(&mut self, index: u64, command: &Command) -> Applied {
        match command {
            Command::OrderNode {
                node,
                verb,
                epoch,
                accepts_waiting,
                caller,
                reason,
                at_unix_us,
            } => {
                self.check_node_order(*node, *verb, *epoch, *accepts_waiting)?;
                let ordered = Ordered { caller, reason, at_unix_us: *at_unix_us };
                self.order_node(index, *node, *verb, *accepts_waiting, &ordered)
            }
            Command::BeginNodeOrder { operation, node, process } => {
                self.begin_node_order(*operation, *node, *process)
            }
            Command::EndNodeOrder { operation, failed, words, at_unix_us } => {
                self.end_node_order(*operation, *failed, words, *at_unix_us)
            }
            Command::ScheduleSwitchover {
                to,
                epoch,
                budget,
                due_unix_us,
                caller,
                reason,
                at_unix_us,
            } => {
                self.check_schedule(*to, *epoch)?;
                let ordered = Ordered { caller, reason, at_unix_us: *at_unix_us };
                self.schedule(index, *to, *budget, *due_unix_us, &ordered)
            }
            Command::BeginScheduled { operation, at_unix_us } => {
                self.begin_scheduled(*operation, *at_unix_us)
            }
            Command::CancelScheduled { caller, reason, at_unix_us } => {
                self.cancel_scheduled(&Ordered { caller, reason, at_unix_us: *at_unix_us })
            }
            _ => unreachable!("called for these only"),
        }
    }

    fn found(
        &mut self,
        cluster: ClusterId,
        members: &[(NodeId, Member)],
        config: ClusterConfig,
        initial_active: NodeId,
    ) -> Applied {
        if self.identity.is_some() {
            return Err(Rejection::AlreadyFounded);
        }
        let map: BTreeMap<NodeId, Member> = members.iter().cloned().collect();
        let names: BTreeSet<_> = map.values().map(|member| &member.name).collect();
        if map.len() != members.len() || names.len() != members.len() {
            return Err(Rejection::BadFounding("an id or a name occurs twice".to_owned()));
        }
        if map.get(&initial_active).is_none_or(|member| member.kind != NodeKind::Data) {
            return Err(Rejection::NotADataNode(initial_active));
        }
        self.identity = Some(Identity { cluster, system_id: None, initial_active });
        self.members = map;
        self.config = config;
        self.config_version = 1;
        self.durability.mode = config.mode;
        Ok(None)
    }

    fn renew(
        &mut self,
        by: &HolderProof,
        seq: u64,
        ttl: std::time::Duration,
        published: &Published,
    ) -> Applied {
        self.check_epoch(by.epoch)?;
        // Only the holder that the order is against: whoever is being promoted instead, or takes the
        // lease back because nobody else could, has to be able to renew, or the order never ends.
        let order_pending = self.order.is_some() && self.phase == Phase::Running;
        let holder = self.holder.as_mut().ok_or(Rejection::NotHolder(by.node))?;
        if holder.node != by.node {
            return Err(Rejection::NotHolder(by.node));
        }
        if by.process < holder.process && !SeededBug::NoProcessStart.is_on() {
            return Err(Rejection::Process { sent: by.process, current: holder.process });
        }
        // An ordered failover must come to pass even if the holder does not cooperate: its lease is
        // not prolonged any more.
        if holder.released.is_some() || order_pending {
            return Err(Rejection::Released);
        }
        if seq <= holder.seq {
            return Err(Rejection::Seq { expected: seq, current: holder.seq });
        }
        // What the holder before it published is no measure for this one.
        let last = holder.published.take().filter(|_| holder.seq > 0);
        holder.process = by.process;
        holder.seq = seq;
        holder.ttl = ttl;
        holder.published = Some(published.clone().not_behind(last));
        Ok(None)
    }

    fn sync_add(
        &mut self,
        by: &HolderProof,
        generation: u64,
        node: NodeId,
        copies: u32,
        at: Lsn,
    ) -> Applied {
        self.check_holder(by)?;
        self.check_running()?;
        self.check_sync_generation(generation)?;
        let journal = self.is_journal(node);
        if !journal {
            self.check_data_node(node)?;
        }
        if node == by.node {
            return Err(Rejection::NotEligible { node, why: Ineligible::IsHolder });
        }
        if let Some(mark) = self.marks.get(&node) {
            return Err(Rejection::NotEligible { node, why: Ineligible::Marked(mark.to_string()) });
        }
        let protects = if journal { &self.durability.waited } else { &self.durability.eligible };
        if protects.contains(&node) {
            return Err(Rejection::NoChange);
        }
        self.durability.waited.insert(node);
        self.durability.copies = copies;
        if !journal {
            self.durability.eligible.insert(node);
        }
        self.durability.lifted = false;
        // The mode stays: what was waited for by this join was the mode in force or a stricter one,
        // and the configuration may have changed since (mistake 16). `SetEff` changes it.
        self.durability.generation += 1;
        // From now on it answers for this position: a promotion of it with less is refused, also
        // before the next renewal publishes where it stands.
        if let Some(published) = self.holder.as_mut().and_then(|h| h.published.as_mut()) {
            published.raise_durable(node, at);
        }
        Ok(None)
    }

    fn sync_remove(
        &mut self,
        by: &HolderProof,
        generation: u64,
        node: NodeId,
        copies: u32,
    ) -> Applied {
        self.check_holder(by)?;
        self.check_running()?;
        self.check_sync_generation(generation)?;
        if !self.durability.waited.remove(&node) {
            return Err(Rejection::NoChange);
        }
        self.durability.copies = copies;
        self.durability.eligible.remove(&node);
        self.durability.lifted = self.durability.waited.is_empty();
        self.durability.generation += 1;
        Ok(None)
    }

    fn set_mark(&mut self, node: NodeId, mark: &Mark) -> Applied {
        self.check_data_node(node)?;
        if self.marks.get(&node) == Some(mark) {
            return Err(Rejection::NoChange);
        }
        // Said of a candidate, and committed after its promotion succeeded all the same.
        let granted = self.last_granted().is_some_and(|(_, last)| last.node == node);
        if granted && matches!(self.phase, Phase::Running | Phase::Handover(_)) {
            return Err(Rejection::Phase);
        }
        self.marks.insert(node, mark.clone());
        // RULE 1 allows this at any time: E shrinks, the gate's set stays.
        if self.durability.eligible.remove(&node) {
            self.durability.generation += 1;
        }
        Ok(None)
    }

    fn promote(&mut self, command: &Command) -> Applied {
        let Command::Promote {
            to,
            epoch,
            promotion,
            timeline,
            cause,
            expect,
            durable_lsn,
            system_id,
        } = command
        else {
            unreachable!("called for Promote only");
        };
        self.check_expect(*cause, expect)?;
        self.check_data_node(*to)?;
        if *epoch != self.epoch.next() {
            return Err(Rejection::Epoch { expected: *epoch, current: self.epoch });
        }
        let resumes = self.last_granted().is_some_and(|(_, granted)| granted.node == *to);
        self.check_cause(*cause, *to, resumes, *durable_lsn)?;
        self.check_timeline(*timeline, resumes)?;
        let loss = match durable_lsn {
            Some(durable) if !resumes => self.loss_bound(*to, *durable),
            Some(_) | None => LossBound::NONE,
        };
        let others_to_seal = if resumes { 0 } else { self.others_to_seal(*to) };
        self.adopt_system_id(*cause, *system_id)?;
        // An acceptance is used up by the grant.
        if let Some(order) = &mut self.order {
            order.accepts = None;
        }
        self.epoch = *epoch;
        self.timeline_high = self.timeline_high.max(Some(*timeline));
        // What was published last stays until the new holder renews: a supersession is judged by it.
        let (ttl, published) =
            self.holder.take().map_or((Default::default(), None), |h| (h.ttl, h.published));
        self.holder = Some(Holder {
            node: *to,
            process: Default::default(),
            seq: 0,
            ttl,
            released: None,
            published,
        });
        self.phase = Phase::Promoting(Promoting {
            to: *to,
            promotion: *promotion,
            timeline: *timeline,
            cause: *cause,
            resumes,
            loss,
            others_to_seal: u32::try_from(others_to_seal).unwrap_or(u32::MAX),
        });
        Ok(None)
    }

    /// The lease side and the data side of ELIGIBLE.
    fn check_cause(
        &self,
        cause: PromoteCause,
        to: NodeId,
        resumes: bool,
        durable_lsn: Option<Lsn>,
    ) -> Result<(), Rejection> {
        match cause {
            PromoteCause::Bootstrap => {
                let initial = self.identity.as_ref().map(|identity| identity.initial_active);
                let fits = self.phase == Phase::Bootstrap && initial == Some(to);
                return if fits { Ok(()) } else { Err(Rejection::Phase) };
            }
            PromoteCause::LeaseOver => self.check_held()?,
            PromoteCause::Released => {
                self.check_held()?;
                if self.holder.as_ref().is_none_or(|holder| holder.released.is_none()) {
                    return Err(Rejection::NotEligible { node: to, why: Ineligible::NotReleased });
                }
            }
            // A sealed passive acknowledges nothing more, and in `zero` the gate waits for all of them.
            PromoteCause::Sealed => {
                self.check_running()?;
                if !self.promotes_on_seal(to) {
                    return Err(Rejection::NotEligible { node: to, why: Ineligible::NotByPolicy });
                }
            }
            // Until Promoted is accepted the new epoch has acknowledged nothing, so it may be
            // superseded at once; expect.phase has named the promotion that is superseded.
            PromoteCause::Supersede => {
                let under_way = matches!(self.phase, Phase::Promoting(_));
                if !under_way && !SeededBug::SupersedeWithoutPhase.is_on() {
                    return Err(Rejection::Phase);
                }
            }
        }
        // Whoever ran last has everything that was ever acknowledged, in every mode.
        if resumes {
            return match self.marks.get(&to) {
                Some(mark) => Err(Rejection::NotEligible {
                    node: to,
                    why: Ineligible::Marked(mark.to_string()),
                }),
                None => Ok(()),
            };
        }
        self.check_candidate(to, durable_lsn)
            .map_err(|why| Rejection::NotEligible { node: to, why })
    }

    /// Whether `to` has the data that a promotion may rest on, by what was published last.
    ///
    /// # Errors
    /// Why not.
    pub fn check_data(&self, to: NodeId, durable_lsn: Option<Lsn>) -> Result<(), Ineligible> {
        if let Some(limit) = self.accepted_loss(to) {
            return self.check_accepted(to, durable_lsn.unwrap_or(Lsn::ZERO), &limit);
        }
        if let Some(mark) = self.marks.get(&to) {
            return Err(Ineligible::Marked(mark.to_string()));
        }
        if self.durability.lifted {
            return Err(Ineligible::Lifted);
        }
        if !self.durability.eligible.contains(&to) {
            return Err(Ineligible::NotInSet);
        }
        let Some(published) = self.holder.as_ref().and_then(|holder| holder.published.as_ref())
        else {
            // A grant that never renewed acknowledged nothing; its predecessor's publication is gone
            // with it, so only the stricter rules above speak.
            return Ok(());
        };
        let known = self.published_durable(to).unwrap_or(Lsn::ZERO);
        if durable_lsn.is_none_or(|durable| durable < known) {
            return Err(Ineligible::LostWal);
        }
        let ceiling = self.config.rpo;
        match self.durability.mode {
            DurabilityMode::Zero => {}
            DurabilityMode::Bounded => {
                let ttl = self.holder.as_ref().map(|holder| holder.ttl).unwrap_or_default();
                let exposure = published.exposure.time + ttl;
                if exposure > ceiling {
                    return Err(Ineligible::OverCeiling { exposure, ceiling });
                }
            }
            // No ceiling kept the gate within it, so only what can be missing at most counts.
            DurabilityMode::BestEffort => {
                let loss = self.loss_bound(to, durable_lsn.unwrap_or(known));
                if loss.time_max.is_none_or(|time| time > ceiling) {
                    return Err(Ineligible::OverLimit(loss));
                }
            }
        }
        Ok(())
    }

    /// How far `node` had made WAL durable, by what was published last.
    pub fn published_durable(&self, node: NodeId) -> Option<Lsn> {
        let published = self.holder.as_ref()?.published.as_ref()?;
        published.durable.get(&node).copied()
    }

    fn check_timeline(&self, timeline: Timeline, resumes: bool) -> Result<(), Rejection> {
        let fits = if resumes {
            self.last_granted().is_some_and(|(_, granted)| granted.timeline == timeline)
        } else {
            self.timeline_high.is_none_or(|high| timeline > high)
        };
        if fits { Ok(()) } else { Err(Rejection::BadTimeline(timeline)) }
    }

    fn adopt_system_id(
        &mut self,
        cause: PromoteCause,
        system_id: Option<SystemId>,
    ) -> Result<(), Rejection> {
        if cause != PromoteCause::Bootstrap {
            return Ok(());
        }
        let missing = || Rejection::BadFounding("the system identifier is missing".to_owned());
        let system_id = system_id.ok_or_else(missing)?;
        let identity = self.identity.as_mut().expect("try_apply checked that it is founded");
        identity.system_id = Some(system_id);
        Ok(())
    }

    fn promoted(&mut self, command: &Command) -> Applied {
        let Command::Promoted { epoch, node, promotion, timeline, fork_lsn, at_unix_us } = command
        else {
            unreachable!("called for Promoted only");
        };
        self.check_epoch(*epoch)?;
        let Phase::Promoting(promoting) = &self.phase else { return Err(Rejection::Phase) };
        if promoting.promotion != *promotion || promoting.to != *node {
            return Err(Rejection::OtherPromotion);
        }
        if promoting.timeline != *timeline {
            return Err(Rejection::BadTimeline(*timeline));
        }
        let cause = promoting.cause;
        let parent = self.last_granted().map(|(epoch, _)| epoch);
        // Whoever resumes writes on in its own history: same promotion identity, no fork.
        let loss = promoting.loss;
        let promotion = match (promoting.resumes, parent) {
            (true, Some(parent)) => self.lineage[&parent].promotion,
            _ => *promotion,
        };
        let (fork_lsn, parent) = match (promoting.resumes, parent) {
            (true, Some(parent)) => {
                let before = &self.lineage[&parent];
                (before.fork_lsn, before.parent)
            }
            _ => (*fork_lsn, parent),
        };
        let granted = Granted {
            node: *node,
            promotion,
            timeline: *timeline,
            fork_lsn,
            parent,
            loss,
            at_unix_us: Some(*at_unix_us),
        };
        self.lineage.insert(*epoch, granted);
        self.phase = Phase::Running;
        // What made it suspect did not come true, and nobody but a holder could take the mark away: once
        // it is released it could never be granted again (mistake 29).
        self.marks.remove(node);
        self.durability = self.durability_alone();
        // Where the others stood counts for nobody until they have joined anew, and on a timeline that was
        // left they may have stood beyond everything on the present one (mistake 34).
        if let Some(published) = self.holder.as_mut().and_then(|h| h.published.as_mut()) {
            published.durable.clear();
        }
        // In the new epoch nothing has been acknowledged yet, so what is wanted is in force.
        self.end_dial_changes(OperationStatus::Done, *at_unix_us);
        if let Some(order) = self.order.take() {
            let status = if order.to == *node {
                OperationStatus::Done
            } else {
                let name = self.name_of(*node);
                OperationStatus::Failed(format!("{name} was promoted instead"))
            };
            self.end(order.operation, status, *at_unix_us);
        }
        self.settle_switchover(*node, cause, *at_unix_us);
        Ok(None)
    }

    /// The durability of a new epoch: nobody is attached yet.
    fn durability_alone(&self) -> Durability {
        Durability {
            mode: self.config.mode,
            waited: BTreeSet::new(),
            copies: 0,
            eligible: BTreeSet::new(),
            generation: self.durability.generation + 1,
            // The first grant has no data to protect yet; later ones follow the policy.
            // A recovered survivor was opened by a person, and has nobody to wait for.
            lifted: self.lineage.len() <= 1
                || self.survives_alone()
                || self.config.on_sole_survivor == OnSoleSurvivor::Open,
        }
    }

    fn order_failover(&mut self, to: NodeId, epoch: Epoch) -> Result<(), Rejection> {
        self.check_epoch(epoch)?;
        self.check_running()?;
        self.check_data_node(to)?;
        if let Some(order) = &self.order {
            return Err(Rejection::Busy(order.operation));
        }
        if let Some(switchover) = &self.switchover {
            return Err(Rejection::Busy(switchover.operation));
        }
        if self.active() == Some(to) {
            return Err(Rejection::NotEligible { node: to, why: Ineligible::IsHolder });
        }
        // Refused before the active is stopped for nothing. The position is judged at Promote.
        self.check_data(to, Some(Lsn::MAX)).map_err(|why| Rejection::NotEligible { node: to, why })
    }

    pub(super) fn begin(
        &mut self,
        index: u64,
        kind: OperationKind,
        caller: &str,
        reason: &str,
        at_unix_us: i64,
        status: OperationStatus,
    ) {
        let operation = Operation {
            kind,
            caller: caller.to_owned(),
            reason: reason.to_owned(),
            what: None,
            status,
            report: None,
            started_unix_us: at_unix_us,
            ended_unix_us: None,
        };
        self.operations.insert(index, operation);
        let running = |o: &Operation| o.status == OperationStatus::Running;
        while self.operations.len() > OPERATIONS_KEPT {
            let Some(oldest) = self.operations.iter().find(|(_, o)| !running(o)).map(|(id, _)| *id)
            else {
                break;
            };
            self.operations.remove(&oldest);
        }
    }

    pub(super) fn end(&mut self, operation: u64, status: OperationStatus, at_unix_us: i64) {
        if let Some(operation) = self.operations.get_mut(&operation) {
            operation.status = status;
            operation.ended_unix_us = Some(at_unix_us);
        }
    }

    pub(super) fn check_epoch(&self, expected: Epoch) -> Result<(), Rejection> {
        if expected == self.epoch {
            Ok(())
        } else {
            Err(Rejection::Epoch { expected, current: self.epoch })
        }
    }

    pub(super) fn check_running(&self) -> Result<(), Rejection> {
        if self.phase == Phase::Running { Ok(()) } else { Err(Rejection::Phase) }
    }

    fn check_held(&self) -> Result<(), Rejection> {
        if self.is_held() { Ok(()) } else { Err(Rejection::Phase) }
    }

    fn check_seq(&self, expected: u64) -> Result<(), Rejection> {
        let current = self.holder.as_ref().map_or(0, |holder| holder.seq);
        if expected == current { Ok(()) } else { Err(Rejection::Seq { expected, current }) }
    }

    pub(super) fn check_generation(&self, expected: u64) -> Result<(), Rejection> {
        let current = self.durability.generation;
        if expected == current { Ok(()) } else { Err(Rejection::Generation { expected, current }) }
    }

    fn check_sync_generation(&self, expected: u64) -> Result<(), Rejection> {
        if SeededBug::NoGeneration.is_on() { Ok(()) } else { self.check_generation(expected) }
    }

    pub(super) fn check_data_node(&self, node: NodeId) -> Result<(), Rejection> {
        let data = self.members.get(&node).is_some_and(|member| member.kind == NodeKind::Data);
        if data { Ok(()) } else { Err(Rejection::NotADataNode(node)) }
    }

    fn check_expect(&self, cause: PromoteCause, expect: &Expect) -> Result<(), Rejection> {
        self.check_epoch(expect.epoch)?;
        // Phase, renewal and generation each name the promotion that is superseded: its report raises
        // the generation, too. The mistake is to name it by nothing but its epoch.
        if cause == PromoteCause::Supersede && SeededBug::SupersedeWithoutPhase.is_on() {
            return Ok(());
        }
        if expect.phase != self.phase_key() {
            return Err(Rejection::Phase);
        }
        if !SeededBug::PromoteIgnoresSeq.is_on() {
            self.check_seq(expect.seq)?;
        }
        self.check_generation(expect.generation)?;
        self.check_config_version(expect.config_version)
    }

    pub(super) fn check_config_version(&self, expected: u64) -> Result<(), Rejection> {
        let current = self.config_version;
        if expected == current {
            Ok(())
        } else {
            Err(Rejection::ConfigVersion { expected, current })
        }
    }

    /// The holder of the epoch speaks, from the process that renewed last, and has not released.
    pub(super) fn check_holder(&self, by: &HolderProof) -> Result<(), Rejection> {
        self.check_epoch(by.epoch)?;
        let holder = self.holder.as_ref().ok_or(Rejection::NotHolder(by.node))?;
        if holder.node != by.node {
            return Err(Rejection::NotHolder(by.node));
        }
        if holder.process != by.process && !SeededBug::NoProcessStart.is_on() {
            return Err(Rejection::Process { sent: by.process, current: holder.process });
        }
        if holder.released.is_some() {
            return Err(Rejection::Released);
        }
        Ok(())
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Mark::Dirty => f.write_str("dirty: its data directory is incomplete"),
            Mark::Suspect(why) => write!(f, "suspect: {why}"),
        }
    }
}
