//! The holder of a running epoch: lease, permit, start and restart, and giving the lease back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{
    BootInstant, DurabilityMode, Epoch, Lsn, NodeId, Permit, PermitSerial, Quorum, SeededBug,
    Survival,
};

use super::switchover::Switching;
use super::sync_set::Leaving;
use super::{Action, Completion, Core, PostgresView, Role, Slot, Task};
use crate::state::{Command, HolderProof, Measured, Published, ReleaseCause};

/// A server that answers neither an open session nor a new one for this long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// A server whose sessions answer but that lets no new one in for this long has failed. Longer than the
/// other: a storm of connections can look alike for a while.
pub(super) const DOOR_SILENCE_MAX: Duration = Duration::from_secs(6);
/// The server is restarted in place this often within `RESTART_WINDOW`; then the lease is given back.
const RESTARTS_MAX: usize = 3;
const RESTART_WINDOW: Duration = Duration::from_secs(300);
/// How far beyond its flush position a holder may release until its next renewal.
const CREDIT_BYTES: u64 = 256 * 1024 * 1024;

/// What the holder is doing.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Step {
    /// Renewing; no lease yet.
    Acquiring,
    /// Asking the majority whether the grant still stands.
    Reading,
    /// Having the server run as a primary behind the gate.
    Taking,
    /// Waiting until what was recovered is covered as the dial demands.
    Covering { end_lsn: Lsn },
    /// Letting clients in.
    LettingIn,
    /// Serving.
    Open,
    /// Clients are shut out and the server is being stopped, by an operator's order.
    HandingOver,
    /// The server is being stopped to be started again, by an operator's order; the gate is open.
    Restarting,
    /// Ordered to step down: the gate is shut, what it released is on its way.
    Draining,
    /// Ending every process of the server.
    Fencing { then: AfterFence },
    /// Giving the lease back.
    Releasing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum AfterFence {
    Restart,
    Release,
}

/// The holder's own memory; gone with the epoch or the process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HolderStage {
    epoch: Epoch,
    step: Step,
    /// Own flushed end when the server was taken: everything that may ever have been acknowledged.
    pub(super) floor: Lsn,
    /// Waited for although not recorded yet: strengthen first.
    pub(super) pending_adds: BTreeSet<NodeId>,
    /// The permit that first contained them.
    pub(super) added_by: BTreeMap<NodeId, PermitSerial>,
    /// Joins whose outcome is unknown, with their generation.
    pub(super) proposed_adds: BTreeMap<NodeId, u64>,
    /// Who is about to leave a quorum.
    #[serde(default)]
    pub(super) leaving: Option<Leaving>,
    /// The quorums that the newest permit waits for, each with the first permit that did.
    #[serde(default)]
    pub(super) quorums_since: Vec<(Quorum, PermitSerial)>,
    /// How the gate was made to wait as a stricter mode demands, before that is recorded.
    pub(super) strengthening: Option<super::dial::Strengthening>,
    pub(super) last_attached: BTreeMap<NodeId, BootInstant>,
    restarts: Vec<BootInstant>,
    /// The switchover that is being carried out.
    pub(super) switching: Option<Switching>,
    /// Which switchover is not carried out, and why not.
    pub(super) undo: Option<(u64, String)>,
    /// On what ground the lease goes back.
    release: ReleaseCause,
    /// When this process became the holder of the epoch.
    since: BootInstant,
    /// A fence was proven since, and no server was taken after it.
    clean: bool,
}

impl HolderStage {
    pub(super) fn begin(epoch: Epoch, since: BootInstant) -> HolderStage {
        HolderStage {
            epoch,
            step: Step::Acquiring,
            floor: Lsn::ZERO,
            pending_adds: BTreeSet::new(),
            added_by: BTreeMap::new(),
            proposed_adds: BTreeMap::new(),
            leaving: None,
            quorums_since: Vec::new(),
            strengthening: None,
            last_attached: BTreeMap::new(),
            restarts: Vec::new(),
            switching: None,
            undo: None,
            release: ReleaseCause::Fenced,
            since,
            clean: false,
        }
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(super) fn word(&self) -> &'static str {
        match self.step {
            Step::Acquiring | Step::Reading => "acquiring",
            Step::Taking => "starting",
            Step::Covering { .. } => "covering",
            Step::LettingIn => "opening",
            Step::Open => "holder",
            Step::HandingOver => self.switching.map_or("stopping", |switching| switching.word()),
            Step::Restarting => "restarting",
            Step::Draining => "stepping-down",
            Step::Fencing { .. } => "fencing",
            Step::Releasing => "released",
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.step, Step::Open)
    }

    pub(super) fn hands_over(&self) -> bool {
        matches!(self.step, Step::HandingOver)
    }

    pub(super) fn hand_over(&mut self, switching: Switching) {
        self.switching = Some(switching);
        self.step = Step::HandingOver;
    }

    pub(super) fn stop_for_restart(&mut self) {
        self.step = Step::Restarting;
    }

    fn is_restarting(&self) -> bool {
        matches!(self.step, Step::Restarting)
    }

    pub(super) fn let_in_again(&mut self) {
        self.step = Step::LettingIn;
    }

    pub(super) fn release(&mut self, cause: ReleaseCause) {
        self.release = cause;
        self.step = Step::Releasing;
    }

    pub(super) fn since(&self) -> BootInstant {
        self.since
    }

    /// It was proven that nothing of the server is left.
    pub(super) fn stopped_clean(&mut self) {
        self.clean = true;
    }

    /// Nothing of the server is left, and none was taken since that was proven.
    pub(super) fn is_clean(&self) -> bool {
        self.clean
    }

    /// The lease is being given back, which the fence came before.
    pub(super) fn gave_up(&self) -> bool {
        self.clean && matches!(self.step, Step::Releasing)
    }

    /// The gate's connection exists and its server should be alive.
    fn has_server(&self) -> bool {
        matches!(self.step, Step::Covering { .. } | Step::LettingIn | Step::Open)
    }

    pub(super) fn gives_up(&self) -> bool {
        let fencing = matches!(self.step, Step::Fencing { then: AfterFence::Release });
        fencing || matches!(self.step, Step::Draining | Step::Releasing)
    }
}

impl Core {
    pub(super) fn stage(&mut self) -> &mut HolderStage {
        match &mut self.role {
            Role::Holder(stage) => stage,
            Role::Idle | Role::Candidate(_) | Role::Passive(_) | Role::Journal(_) => {
                unreachable!("only called in the holder's role")
            }
        }
    }

    pub(super) fn proof(&self) -> HolderProof {
        HolderProof { epoch: self.state.epoch, node: self.me, process: self.process }
    }

    pub(super) fn advance_holder(&mut self, now: BootInstant) {
        let released = self.state.holder.as_ref().is_some_and(|holder| holder.released.is_some());
        if released {
            self.stage().step = Step::Releasing;
            return;
        }
        if self.state.order.is_some() && !self.stage().gives_up() {
            if self.renewed_here() {
                self.step_down();
                return;
            }
            self.stop_without_lease();
        }
        self.renew_when_due(now);
        self.watch_server(now);
        self.advance_switchover(now);
        let idle = self.running.is_none() && now >= self.retry_at;
        match self.stage().step {
            Step::Acquiring => {
                if self.lease_runs(now) && idle {
                    self.stage().step = Step::Reading;
                    self.run(Task::ReadIndex);
                }
            }
            Step::Covering { end_lsn } => {
                let covered = self.source.as_ref().is_some_and(|s| s.released_lsn >= end_lsn);
                if covered && self.lease_runs(now) {
                    self.stage().step = Step::LettingIn;
                    self.run(Task::LetClientsIn { epoch: self.state.epoch });
                } else {
                    self.trouble = self.covering_trouble(end_lsn);
                }
            }
            Step::Fencing { .. } if idle => self.run(Task::Fence),
            Step::LettingIn if idle => self.run(Task::LetClientsIn { epoch: self.state.epoch }),
            Step::Draining if idle => self.run(Task::Drain),
            Step::Releasing => self.propose_release(now),
            Step::Reading
            | Step::Taking
            | Step::LettingIn
            | Step::Open
            | Step::HandingOver
            | Step::Restarting
            | Step::Draining
            | Step::Fencing { .. } => {}
        }
        if self.stage().has_server() {
            self.change_sync_set(now);
            self.change_mode(now);
            self.publish_permit();
        } else if self.stage().hands_over() || self.stage().is_restarting() {
            // The stop waits until the gate has let everything pass.
            self.publish_permit();
        }
    }

    /// Why the recovered end is not covered yet.
    fn covering_trouble(&self, end_lsn: Lsn) -> Option<String> {
        let waited = &self.state.durability.waited;
        if self.state.durability.mode != DurabilityMode::Zero || waited.is_empty() {
            return None;
        }
        let names: Vec<String> = waited.iter().map(|node| self.state.name_of(*node)).collect();
        Some(format!(
            "waits until what it recovered, up to {end_lsn}, is durable at {}",
            names.join(", ")
        ))
    }

    /// The lease, if one runs, is this process's own, which alone can give it back.
    fn renewed_here(&self) -> bool {
        self.state.holder.as_ref().is_some_and(|holder| holder.process == self.process)
    }

    /// Ordered to step down before this process has renewed: it has no lease to give back, and while the
    /// order stands it gets none. The gate is not shut for good, or the node could not go on as the
    /// holder if the order comes to nothing (mistake 28).
    fn stop_without_lease(&mut self) {
        let fencing = matches!(self.stage().step, Step::Fencing { .. });
        if !fencing && !self.stage().is_clean() {
            self.fence(AfterFence::Restart);
        }
    }

    /// An operator wants another node: shut the gate for good, let the passive catch up, fence.
    fn step_down(&mut self) {
        self.permit = None;
        self.actions.push_back(Action::CloseGate(self.state.epoch));
        let had_server = self.stage().has_server();
        if had_server {
            self.stage().step = Step::Draining;
            self.run(Task::Drain);
        } else {
            self.stage().step = Step::Fencing { then: AfterFence::Release };
            self.run(Task::Fence);
        }
    }

    fn renew_when_due(&mut self, now: BootInstant) {
        if self.stage().gives_up() && !SeededBug::ReleaseWhileRenewing.is_on() {
            return;
        }
        let accepted = self.state.holder.as_ref().map_or(0, |holder| holder.seq);
        let timing = self.timing;
        if let Some(seq) = self.lease.due(now, accepted, &timing) {
            let published = self.publication();
            let by = self.proof();
            let ttl = timing.ttl;
            self.propose(now, Slot::Renew, Command::Renew { by, seq, ttl, published });
        }
    }

    /// What this renewal publishes. What is not known now keeps what was published last: a restart
    /// must not make the cluster believe that a passive has less, or that nothing is exposed.
    fn publication(&self) -> Published {
        let last = self.state.holder.as_ref().and_then(|holder| holder.published.clone());
        let mut published = last.unwrap_or_default();
        // A server that is being started again releases nothing, and the oldest grows older all the same.
        published.survives = published.survives.map(|survives| self.older(survives));
        if let Some(source) = &self.source {
            published.flush_lsn = source.flush_lsn;
            published.exposure = source.exposure;
            // What was the oldest when the positions were read is older now, and may be all that is lost:
            // positions can be as old as the longest stall of this loop (mistake 27).
            let stale = self.now.since(source.read_at);
            let aged = |s: Survival| Survival { oldest_age: s.oldest_age + stale, ..s };
            published.survives = source.survives.map(aged);
            published.measured = Some(Measured { by: self.me, at_unix_us: self.wall_unix_us });
            for receiver in &source.receivers {
                published.raise_durable(receiver.node, receiver.durable_lsn);
            }
        }
        published.credit = published.flush_lsn + CREDIT_BYTES;
        published
    }

    fn watch_server(&mut self, now: BootInstant) {
        let watched = self.stage().has_server() || self.stage().is_restarting();
        if !watched {
            return;
        }
        if !self.lease_runs(now) {
            self.trouble = Some("the lease ran out: no majority confirms it".to_owned());
            self.fence(AfterFence::Restart);
            return;
        }
        if self.stage().is_restarting() {
            return;
        }
        let failed = match &self.local.postgres {
            PostgresView::Unknown => None,
            PostgresView::Stopped => Some("PostgreSQL is not running".to_owned()),
            PostgresView::Running(facts) if facts.silent_for >= SILENCE_MAX => {
                Some(format!("PostgreSQL has not answered for {:?}", facts.silent_for))
            }
            PostgresView::Running(facts) if facts.door_silent_for >= DOOR_SILENCE_MAX => {
                Some(format!(
                    "PostgreSQL has let nobody in, or not answered its gate, for {:?}: it stands still",
                    facts.door_silent_for
                ))
            }
            PostgresView::Running(facts) if facts.in_recovery == Some(true) => {
                Some("PostgreSQL restarted by itself and came up read-only".to_owned())
            }
            PostgresView::Running(facts) if facts.foreign_server => {
                Some("a PostgreSQL runs here that this node did not start".to_owned())
            }
            PostgresView::Running(facts) if facts.foreign_gate => {
                Some("somebody else is connected under the gate's name".to_owned())
            }
            PostgresView::Running(_) => None,
        };
        let Some(words) = failed else { return };
        let stage = self.stage();
        stage.restarts.retain(|at| now.since(*at) < RESTART_WINDOW);
        stage.restarts.push(now);
        let often = stage.restarts.len() > RESTARTS_MAX;
        let somebody_else = !self.state.durability.eligible.is_empty();
        self.trouble = Some(words);
        self.fence(if often && somebody_else { AfterFence::Release } else { AfterFence::Restart });
    }

    pub(super) fn fence(&mut self, then: AfterFence) {
        // A restart in place keeps the epoch, so the permit may come back with the next server; until
        // then there is no connection that it could act on.
        self.permit = None;
        if then == AfterFence::Release {
            self.actions.push_back(Action::CloseGate(self.state.epoch));
        }
        self.source = None;
        self.stage().step = Step::Fencing { then };
        self.run(Task::Fence);
    }

    pub(super) fn holder_completed(&mut self, now: BootInstant, completion: Completion) {
        match completion {
            Completion::ReadDone => {
                if let (true, Some(grant)) = (self.lease_runs(now), self.running_grant()) {
                    let stage = self.stage();
                    stage.step = Step::Taking;
                    stage.clean = false;
                    self.exposed_from.get_or_insert(grant.exposed_since);
                    self.run(Task::Hold(grant));
                } else {
                    self.stage().step = Step::Acquiring;
                }
            }
            Completion::Held { end_lsn } => {
                let stage = self.stage();
                stage.floor = end_lsn;
                stage.step = Step::Covering { end_lsn };
            }
            Completion::ClientsLetIn => self.stage().step = Step::Open,
            Completion::Drained => {
                self.source = None;
                self.stage().step = Step::Fencing { then: AfterFence::Release };
                self.run(Task::Fence);
            }
            Completion::Fenced => {
                self.stage().clean = true;
                match self.stage().step {
                    Step::Fencing { then: AfterFence::Release } => {
                        self.stage().step = Step::Releasing;
                        self.propose_release(now);
                    }
                    Step::Restarting => {
                        self.permit = None;
                        self.source = None;
                        self.stage().step = Step::Acquiring;
                    }
                    _ => self.stage().step = Step::Acquiring,
                }
            }
            Completion::SwitchoverPrepared => self.switchover_prepared(now),
            Completion::ClientsShutOut => self.clients_shut_out(now),
            Completion::StoppedCleanly { end_lsn } => self.stopped_cleanly(now, end_lsn),
            Completion::DataReady
            | Completion::Sealed(_)
            | Completion::PromotedLocally { .. }
            | Completion::Surveyed(_)
            | Completion::Joined
            | Completion::JournalEmptied
            | Completion::StandbyRestarted
            | Completion::Reloaded { .. } => {}
        }
    }

    pub(super) fn holder_failed(&mut self, now: BootInstant, task: &Task) {
        match task {
            Task::Drain => {
                self.stage().step = Step::Fencing { then: AfterFence::Release };
                self.run(Task::Fence);
            }
            Task::Hold(_) => {
                let stage = self.stage();
                stage.restarts.retain(|at| now.since(*at) < RESTART_WINDOW);
                stage.restarts.push(now);
                let often = stage.restarts.len() > RESTARTS_MAX;
                let somebody_else = !self.state.durability.eligible.is_empty();
                let give_up = often && somebody_else;
                self.fence(if give_up { AfterFence::Release } else { AfterFence::Restart });
            }
            Task::ReadIndex => self.stage().step = Step::Acquiring,
            Task::StopForRestart { .. } => self.fence(AfterFence::Restart),
            // Tried again by advance_holder after a pause.
            Task::Fence | Task::LetClientsIn { .. } => {}
            Task::PrepareSwitchover | Task::ShutClientsOut { .. } | Task::StopCleanly { .. } => {
                self.switchover_failed(task);
            }
            Task::PrepareData
            | Task::Seal(_)
            | Task::CollectSeals { .. }
            | Task::PromoteLocally { .. }
            | Task::Survey
            | Task::Join { .. }
            | Task::BeginJournalAnew(_)
            | Task::RestartStandby { .. }
            | Task::Reload => {}
        }
    }

    /// Only after the fence: the gate is shut for good, no renewal is sent any more, no process left.
    pub(super) fn propose_release(&mut self, now: BootInstant) {
        let Some(holder) = &self.state.holder else { return };
        if holder.released.is_some() || !self.renewed_here() {
            return;
        }
        let seq = holder.seq;
        let by = self.proof();
        let cause = self.stage().release;
        let command = Command::Release { by, seq, cause };
        self.propose(now, Slot::Release, command);
    }

    /// The stricter of what is in force and what is wanted.
    pub(super) fn mode_in_force(&self) -> DurabilityMode {
        self.state.durability.mode.max(self.state.config.mode)
    }

    fn publish_permit(&mut self) {
        let (Some(deadline), Some(grant)) = (self.lease.deadline(), self.running_grant()) else {
            return;
        };
        let strict = self.stage().switching.is_some_and(|switching| switching.is_strict());
        let mode = if strict { DurabilityMode::Zero } else { self.mode_in_force() };
        let pending = self.stage().pending_adds.clone();
        let lifted = self.state.durability.lifted;
        let mut waited_for: BTreeSet<NodeId> = self.state.durability.waited.clone();
        waited_for.extend(pending.iter().copied());
        if SeededBug::RemoveBeforeRecorded.is_on() {
            waited_for.retain(|node| !self.pending.contains_key(&Slot::SyncRemove(*node)));
        }
        let quorums = self.quorums();
        let published = self.state.holder.as_ref().and_then(|holder| holder.published.as_ref());
        let credit = published.map_or(Lsn::ZERO, |published| published.credit);
        let ceiling = self.state.config.rpo.saturating_sub(self.timing.ttl);
        let bounded = mode == DurabilityMode::Bounded && (!lifted || !pending.is_empty());
        let wanted = Permit {
            serial: self.permit_serial,
            epoch: grant.epoch,
            promotion: grant.promotion,
            deadline,
            mode,
            quorums,
            sole_survivor: lifted && waited_for.is_empty(),
            waited_for: waited_for.into_iter().collect(),
            credit,
            exposure_max: bounded.then_some(ceiling),
        };
        if self.permit.as_ref() == Some(&wanted) {
            return;
        }
        let serial = PermitSerial(self.permit_serial.0 + 1);
        self.stage().note_quorums(&wanted.quorums, serial);
        self.permit_serial = serial;
        let permit = Permit { serial, ..wanted };
        self.permit = Some(permit.clone());
        self.actions.push_back(Action::SetPermit(permit));
    }
}
