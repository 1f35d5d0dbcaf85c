//! Three cores over a perfect log, and an executor whose tasks take time. Whatever is done to them, nobody
//! serves beside somebody else and nothing that was acknowledged is lost: the world itself asserts it.

#![allow(clippy::unwrap_used)] // a failed step should panic here
#![allow(dead_code)] // each test file uses its own part of it

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use understudy_core::node::{
    Action, Completion, Core, CoreOptions, DataView, Event, JournalView, LocalView, PostgresFacts,
    PostgresView, Task, TaskId,
};
use understudy_core::rejoin::{Rung, Survey};
use understudy_core::state::{Member, OperationStatus, ReleaseCause};
use understudy_core::{ClusterConfig, ClusterState, Command, Outcome, Rejection, Timing};
use understudy_types::{
    BootInstant, ClusterId, DurabilityMode, Epoch, Exposure, Incarnation, Lineage, Lsn, NodeId,
    NodeKind, Permit, ProcessStart, PromotionId, ReceiverPosition, SealedEnd, SourcePositions,
    SystemId, Timeline,
};

pub(crate) const NORTH: NodeId = NodeId(1);
pub(crate) const SOUTH: NodeId = NodeId(2);
pub(crate) const WITNESS: NodeId = NodeId(3);
pub(crate) const SYSTEM: SystemId = SystemId(42);
pub(crate) const STEP: Duration = Duration::from_millis(20);
/// A task is carried out this many steps after it was begun, if it can be.
pub(crate) const TASK_STEPS: u32 = 3;
pub(crate) const LONG: Duration = Duration::from_secs(120);
pub(crate) const BUDGET: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Server {
    Stopped,
    Standby(Timeline),
    Primary(Timeline),
}

pub(crate) struct Machine {
    pub(crate) core: Core,
    pub(crate) alive: bool,
    pub(crate) empty: bool,
    pub(crate) process: u64,
    pub(crate) server: Server,
    pub(crate) clients: bool,
    /// The gate's connection and the receivers' streams.
    pub(crate) source: bool,
    pub(crate) permit: Option<Permit>,
    pub(crate) closed: Option<Epoch>,
    pub(crate) journal: Option<JournalView>,
    pub(crate) recorded: Vec<Lineage>,
    /// The end of its WAL.
    pub(crate) end: Lsn,
    /// Reported to its PostgreSQL as flushed, in this process.
    pub(crate) released: Lsn,
    pub(crate) following: Option<NodeId>,
    pub(crate) task: Option<(TaskId, Task, u32)>,
    pub(crate) applied: usize,
    pub(crate) uuid: u128,
    /// Of its server, as ordered.
    pub(crate) stops: u32,
    pub(crate) reloads: u32,
    pub(crate) clones: u32,
    /// Its standby has less of a parameter than its primary, until it is started again.
    pub(crate) short: bool,
}

impl Machine {
    pub(crate) fn new(id: NodeId, process: u64) -> Machine {
        let kind = if id == WITNESS { NodeKind::Witness } else { NodeKind::Data };
        let options =
            CoreOptions { me: id, kind, process: ProcessStart(process), timing: Timing::DEFAULT };
        Machine {
            core: Core::new(options),
            alive: true,
            empty: true,
            process,
            server: Server::Stopped,
            clients: false,
            source: false,
            permit: None,
            closed: None,
            journal: None,
            recorded: Vec::new(),
            end: Lsn::ZERO,
            released: Lsn::ZERO,
            following: None,
            task: None,
            applied: 0,
            uuid: 0,
            stops: 0,
            reloads: 0,
            clones: 0,
            short: false,
        }
    }

    pub(crate) fn view(&self) -> LocalView {
        let data = if self.empty {
            DataView::Empty
        } else {
            let timeline = self.recorded.last().map_or(Timeline::FIRST, |last| last.timeline);
            DataView::Cluster { system_id: SYSTEM, timeline }
        };
        let facts = |in_recovery, timeline| {
            PostgresView::Running(PostgresFacts {
                in_recovery: Some(in_recovery),
                timeline: Some(timeline),
                flush_lsn: (!in_recovery).then_some(self.end),
                replay_lsn: in_recovery.then_some(self.end),
                short_of_parameters: in_recovery && self.short,
                ..PostgresFacts::default()
            })
        };
        let postgres = match self.server {
            Server::Stopped => PostgresView::Stopped,
            Server::Standby(timeline) => facts(true, timeline),
            Server::Primary(timeline) => facts(false, timeline),
        };
        LocalView { data, postgres, journal: self.journal }
    }

    pub(crate) fn durable(&self) -> Lsn {
        self.journal.map_or(Lsn::ZERO, |journal| journal.durable_lsn)
    }
}

pub(crate) struct World {
    pub(crate) now: BootInstant,
    pub(crate) machines: BTreeMap<NodeId, Machine>,
    pub(crate) isolated: BTreeSet<NodeId>,
    /// Their disks take nothing.
    pub(crate) stuck: BTreeSet<NodeId>,
    /// What nodes propose of this kind comes behind something that has it rejected.
    pub(crate) contested: Option<&'static str>,
    pub(crate) leader: NodeId,
    pub(crate) log: Vec<(Command, Outcome, Arc<ClusterState>)>,
    pub(crate) state: ClusterState,
    /// The greatest position that any client was told of.
    pub(crate) acknowledged: Lsn,
}

impl World {
    /// Founded and protected, with clients that write all the time.
    pub(crate) fn protected(mode: DurabilityMode) -> World {
        let member = |name: &str, kind, n: u128| Member {
            name: name.parse().unwrap(),
            site: name.parse().unwrap(),
            kind,
            address: format!("{name}:1"),
            incarnation: Incarnation(uuid::Uuid::from_u128(n)),
        };
        let found = Command::Found {
            cluster: ClusterId(uuid::Uuid::from_u128(9)),
            members: vec![
                (NORTH, member("north", NodeKind::Data, 1)),
                (SOUTH, member("south", NodeKind::Data, 2)),
                (WITNESS, member("witness", NodeKind::Witness, 3)),
            ],
            config: ClusterConfig { mode, ..ClusterConfig::default() },
            initial_active: NORTH,
        };
        let machines = [NORTH, SOUTH, WITNESS].map(|id| (id, Machine::new(id, 1))).into();
        let mut world = World {
            now: BootInstant(1_000_000_000),
            machines,
            isolated: BTreeSet::new(),
            stuck: BTreeSet::new(),
            contested: None,
            leader: WITNESS,
            log: Vec::new(),
            state: ClusterState::default(),
            acknowledged: Lsn::ZERO,
        };
        let _ = world.enter(found);
        world.run_until("protected", World::is_protected);
        world
    }

    pub(crate) fn enter(&mut self, command: Command) -> Outcome {
        let outcome = self.state.apply(self.log.len() as u64 + 1, &command);
        self.log.push((command, outcome.clone(), Arc::new(self.state.clone())));
        outcome
    }

    pub(crate) fn order(&mut self, to: NodeId) -> u64 {
        let outcome = self.enter(Command::OrderSwitchover {
            to,
            epoch: self.state.epoch,
            budget: BUDGET,
            caller: "test".to_owned(),
            reason: "because".to_owned(),
            at_unix_us: 1,
        });
        let Outcome::Accepted { operation: Some(operation) } = outcome else {
            panic!("{outcome:?}");
        };
        operation
    }

    pub(crate) fn status(&self, operation: u64) -> OperationStatus {
        self.state.operations[&operation].status.clone()
    }

    pub(crate) fn reachable(&self, id: NodeId) -> bool {
        self.machines[&id].alive && !self.isolated.contains(&id)
    }

    pub(crate) fn step(&mut self) {
        self.now = self.now + STEP;
        let now = self.now;
        let voters: Vec<NodeId> =
            self.machines.keys().copied().filter(|id| self.reachable(*id)).collect();
        let majority = voters.len() >= 2;
        if !voters.contains(&self.leader) {
            self.leader = voters.last().copied().unwrap_or(WITNESS);
        }
        let alive: Vec<NodeId> =
            self.machines.iter().filter(|(_, m)| m.alive).map(|(id, _)| *id).collect();
        let reports: Vec<_> =
            voters.iter().map(|id| self.machines[id].core.own_report(now)).collect();
        for id in &alive {
            let hears = majority && voters.contains(id);
            let positions = self.positions(*id);
            let is_leader = hears && *id == self.leader;
            let machine = self.machines.get_mut(id).unwrap();
            while hears && machine.applied < self.log.len() {
                let (command, outcome, state) = self.log[machine.applied].clone();
                machine.applied += 1;
                let applied = Some((command, outcome));
                machine.core.handle_event(now, Event::State { state, applied });
            }
            machine.core.handle_event(now, Event::Leadership { is_leader, majority: hears });
            machine.look(*id, now);
            machine.core.handle_event(now, Event::Source(positions));
            for report in reports.iter().filter(|r| hears && r.node != *id) {
                machine.core.handle_event(now, Event::Peer(report.clone()));
            }
            machine.core.handle_event(now, Event::Tick);
        }
        for id in alive {
            self.act(id, majority && voters.contains(&id));
            self.work(id);
        }
        self.stream();
        assert!(self.serving().len() <= 1, "two serve at once: {:?}", self.serving());
    }

    pub(crate) fn positions(&self, id: NodeId) -> Option<SourcePositions> {
        let machine = &self.machines[&id];
        if !machine.source {
            return None;
        }
        let receivers = self
            .machines
            .iter()
            .filter(|(_, other)| other.following == Some(id))
            .map(|(node, other)| ReceiverPosition {
                node: *node,
                attached: self.reachable(*node) && self.reachable(id),
                durable_lsn: other.durable(),
                replay_lsn: Some(other.durable()),
                begin_lsn: Lsn::ZERO,
            })
            .collect();
        Some(SourcePositions {
            read_at: self.now,
            flush_lsn: machine.end,
            released_lsn: machine.released,
            permit: machine.permit.as_ref().map(|permit| permit.serial),
            exposure: Exposure::NONE,
            survives: None,
            release_delay: Duration::ZERO,
            gate_connected: true,
            receivers,
        })
    }

    pub(crate) fn act(&mut self, id: NodeId, hears: bool) {
        let now = self.now;
        while let Some(action) = self.machines.get_mut(&id).unwrap().core.poll_action() {
            match action {
                Action::Propose(slot, command) if !hears => {
                    let _ = command;
                    let machine = self.machines.get_mut(&id).unwrap();
                    machine.core.handle_event(now, Event::ProposalFailed(slot));
                }
                Action::Propose(_, command) => {
                    self.check_release(id, &command);
                    if self.contested == Some(command.kind()) {
                        let outcome = Outcome::Rejected(Rejection::NoChange);
                        self.log.push((command, outcome, Arc::new(self.state.clone())));
                    } else {
                        let _ = self.enter(command);
                    }
                }
                Action::SetPermit(permit) => {
                    let machine = self.machines.get_mut(&id).unwrap();
                    let serial = permit.serial;
                    if machine.closed != Some(permit.epoch) {
                        machine.permit = Some(permit);
                        machine.core.handle_event(now, Event::PermitInForce(serial));
                    }
                }
                Action::CloseGate(epoch) => {
                    let machine = self.machines.get_mut(&id).unwrap();
                    (machine.closed, machine.permit) = (Some(epoch), None);
                }
                Action::Follow { holder, admission, history } => {
                    let machine = self.machines.get_mut(&id).unwrap();
                    machine.following = Some(holder);
                    machine.recorded = history;
                    machine.journal = Some(JournalView {
                        timeline: admission.timeline,
                        durable_lsn: machine.end,
                        promotion: Some(admission.promotion),
                        begin_lsn: Lsn::ZERO,
                    });
                }
                Action::Unfollow => self.machines.get_mut(&id).unwrap().following = None,
                Action::Run(task_id, task) => {
                    let machine = self.machines.get_mut(&id).unwrap();
                    machine.task = Some((task_id, task, TASK_STEPS));
                }
            }
        }
    }

    /// Mistake 17: nothing runs, nothing is let through, and the candidate has it all.
    pub(crate) fn check_release(&self, id: NodeId, command: &Command) {
        let Command::Release { cause, .. } = command else { return };
        let machine = &self.machines[&id];
        assert!(machine.server == Server::Stopped && machine.permit.is_none());
        if let ReleaseCause::CleanEnd(end) = cause {
            let to = self.state.switchover.as_ref().unwrap().to;
            assert_eq!(*end, machine.end);
            assert!(self.machines[&to].durable() >= *end);
        }
    }

    /// A task takes its time; one that cannot be done is not done.
    pub(crate) fn work(&mut self, id: NodeId) {
        let now = self.now;
        let Some((task_id, task, left)) = self.machines.get_mut(&id).unwrap().task.take() else {
            return;
        };
        let read = matches!(task, Task::ReadIndex);
        let possible = match &task {
            Task::ReadIndex => {
                let machine = &self.machines[&id];
                self.reachable(id) && machine.applied == self.log.len()
            }
            Task::StopCleanly { to, .. } => {
                let following = self.machines[to].following == Some(id);
                following
                    && self.reachable(id)
                    && self.reachable(*to)
                    && self.machines[to].durable() >= self.machines[&id].end
            }
            Task::Join { holder, .. } => self.reachable(id) && self.reachable(*holder),
            Task::PrepareData
            | Task::Fence
            | Task::Hold(_)
            | Task::LetClientsIn { .. }
            | Task::Drain
            | Task::PrepareSwitchover
            | Task::ShutClientsOut { .. }
            | Task::Seal(_)
            | Task::BeginJournalAnew(_)
            | Task::StopForRestart { .. }
            | Task::RestartStandby { .. }
            | Task::Reload
            | Task::CollectSeals { .. }
            | Task::PromoteLocally { .. }
            | Task::Survey => true,
        };
        if !possible || (left > 1 && !read) {
            let left = left.saturating_sub(1).max(1);
            self.machines.get_mut(&id).unwrap().task = Some((task_id, task, left));
            return;
        }
        let holder_end = match &task {
            Task::Join { holder, .. } => self.machines[holder].end,
            _ => Lsn::ZERO,
        };
        let zero = self.state.config.mode == DurabilityMode::Zero;
        let acknowledged = if zero { self.acknowledged } else { Lsn::ZERO };
        let machine = self.machines.get_mut(&id).unwrap();
        let completion = machine.carry_out(task, holder_end, acknowledged);
        machine.look(id, now);
        machine.core.handle_event(now, Event::TaskDone(task_id, Ok(completion)));
        let hears = self.reachable(id);
        self.act(id, hears);
    }

    /// WAL is written, travels, is made durable, and is acknowledged as the permits allow.
    pub(crate) fn stream(&mut self) {
        for id in [NORTH, SOUTH] {
            let source = self.machines[&id].following;
            let link = source.is_some_and(|source| {
                self.reachable(id) && self.reachable(source) && self.machines[&source].source
            });
            if let Some(source) = source.filter(|_| link && !self.stuck.contains(&id)) {
                let end = self.machines[&source].end;
                let machine = self.machines.get_mut(&id).unwrap();
                machine.end = machine.end.max(end);
                if let Some(journal) = &mut machine.journal {
                    journal.durable_lsn = journal.durable_lsn.max(end);
                }
            }
        }
        for id in [NORTH, SOUTH] {
            let receivers = self.positions(id).map(|p| p.receivers).unwrap_or_default();
            let now = self.now;
            let machine = self.machines.get_mut(&id).unwrap();
            if !machine.alive || !matches!(machine.server, Server::Primary(_)) {
                continue;
            }
            if machine.clients {
                machine.end.0 += 10;
            }
            let Some(permit) = machine.permit.as_ref().filter(|p| now < p.deadline) else {
                continue;
            };
            let covered = match permit.mode {
                DurabilityMode::Zero if permit.sole_survivor => machine.end,
                DurabilityMode::Zero => permit
                    .waited_for
                    .iter()
                    .map(|node| {
                        let found = receivers.iter().find(|r| r.node == *node && r.attached);
                        found.map_or(Lsn::ZERO, |r| r.durable_lsn)
                    })
                    .min()
                    .unwrap_or(Lsn::ZERO),
                DurabilityMode::Bounded | DurabilityMode::BestEffort => machine.end,
            };
            if machine.source {
                machine.released = machine.released.max(covered.min(machine.end));
                self.acknowledged = self.acknowledged.max(machine.released);
            }
        }
    }

    pub(crate) fn serving(&self) -> Vec<NodeId> {
        let serving = |id: &NodeId| {
            self.machines[id].alive && self.machines[id].core.standing(self.now).serving
        };
        self.machines.keys().copied().filter(serving).collect()
    }

    pub(crate) fn is_protected(&self) -> bool {
        self.state.durability.eligible.len() == 1 && self.serving().len() == 1
    }

    pub(crate) fn run_until(&mut self, what: &str, done: impl Fn(&World) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            self.step();
            let standings: Vec<_> =
                self.machines.iter().map(|(id, m)| (*id, m.core.standing(self.now))).collect();
            assert!(
                self.now.since(start) < LONG,
                "{what} did not happen within {LONG:?}: phase {:?}, switchover {:?}, operations \
                 {:?}, durability {:?}\n{standings:#?}",
                self.state.phase,
                self.state.switchover,
                self.state.operations,
                self.state.durability
            );
        }
        self.now.since(start)
    }

    pub(crate) fn run_for(&mut self, span: Duration) {
        let until = self.now + span;
        while self.now < until {
            self.step();
        }
    }

    /// SIGKILL to the daemon, and to its PostgreSQL if the whole site is lost.
    pub(crate) fn kill(&mut self, id: NodeId, site: bool) {
        let machine = self.machines.get_mut(&id).unwrap();
        machine.alive = false;
        machine.source = false;
        machine.following = None;
        (machine.task, machine.permit) = (None, None);
        machine.released = Lsn::ZERO;
        if site {
            (machine.server, machine.clients) = (Server::Stopped, false);
        }
    }

    pub(crate) fn restart(&mut self, id: NodeId) {
        let machine = self.machines.get_mut(&id).unwrap();
        machine.process += 1;
        machine.core = Machine::new(id, machine.process).core;
        machine.alive = true;
        machine.closed = None;
        machine.applied = 0;
    }
}

impl Machine {
    pub(crate) fn look(&mut self, id: NodeId, now: BootInstant) {
        self.uuid += 1;
        let fresh = PromotionId(uuid::Uuid::from_u128(
            (u128::from(id.0) << 96) | (u128::from(self.process) << 64) | self.uuid,
        ));
        let view = self.view();
        let wall_unix_us = wall_unix_us(now);
        self.core.handle_event(now, Event::Local { view, fresh, wall_unix_us });
    }

    pub(crate) fn carry_out(
        &mut self,
        task: Task,
        holder_end: Lsn,
        acknowledged: Lsn,
    ) -> Completion {
        match task {
            Task::ReadIndex => Completion::ReadDone,
            Task::CollectSeals { .. } => unreachable!("one passive alone is no quorum"),
            Task::BeginJournalAnew(_) => unreachable!("no node here has nothing but a journal"),
            Task::PrepareData => {
                (self.empty, self.end) = (false, Lsn(100));
                Completion::DataReady
            }
            Task::Fence => {
                (self.server, self.clients, self.source) = (Server::Stopped, false, false);
                Completion::Fenced
            }
            Task::Hold(grant) => {
                assert!(self.end >= acknowledged, "{acknowledged} was acknowledged, {}", self.end);
                self.server = Server::Primary(grant.timeline);
                (self.recorded, self.source, self.following) = (grant.history, true, None);
                Completion::Held { end_lsn: self.end }
            }
            Task::LetClientsIn { .. } => {
                self.clients = true;
                Completion::ClientsLetIn
            }
            Task::Drain => Completion::Drained,
            Task::PrepareSwitchover => Completion::SwitchoverPrepared,
            Task::ShutClientsOut { .. } => {
                self.clients = false;
                // The shutdown checkpoint, as good as written.
                self.end.0 += 1;
                Completion::ClientsShutOut
            }
            Task::StopCleanly { .. } => {
                (self.server, self.source) = (Server::Stopped, false);
                Completion::StoppedCleanly { end_lsn: self.end }
            }
            Task::Seal(epoch) => Completion::Sealed(self.journal.map(|journal| SealedEnd {
                epoch,
                timeline: journal.timeline,
                durable_lsn: journal.durable_lsn,
                record_end_lsn: journal.durable_lsn,
            })),
            Task::PromoteLocally { grant, target_lsn, .. } => {
                // Zero when it only reads back what it did before.
                assert!(
                    target_lsn == Lsn::ZERO || target_lsn >= acknowledged,
                    "lost: {target_lsn}"
                );
                self.server = Server::Primary(grant.timeline);
                let fork_lsn = if target_lsn == Lsn::ZERO { self.end } else { target_lsn };
                Completion::PromotedLocally { timeline: grant.timeline, fork_lsn }
            }
            Task::StopForRestart { .. } => {
                assert!(self.source, "the stop needs the gate");
                (self.server, self.clients, self.source) = (Server::Stopped, false, false);
                self.stops += 1;
                Completion::Fenced
            }
            Task::RestartStandby { .. } => {
                let Server::Standby(_) = self.server else { panic!("no standby runs here") };
                self.stops += 1;
                self.short = false;
                Completion::StandbyRestarted
            }
            Task::Reload => {
                self.reloads += 1;
                Completion::Reloaded { words: "work_mem is 8MB".to_owned() }
            }
            Task::Survey if self.empty => Completion::Surveyed(Survey::Empty),
            Task::Survey => Completion::Surveyed(Survey::Cluster {
                system_id: SYSTEM,
                timeline: self.recorded.last().map_or(Timeline::FIRST, |last| last.timeline),
                end_lsn: self.end,
                recorded: self.recorded.clone(),
                foreign: false,
            }),
            Task::Join { rung, history, holder, .. } => {
                if rung != Rung::Follow {
                    self.clones += 1;
                    self.end = holder_end;
                }
                let last = history.last().expect("a holder has a history").clone();
                self.empty = false;
                self.server = Server::Standby(last.timeline);
                self.journal = Some(JournalView {
                    timeline: last.timeline,
                    durable_lsn: self.end,
                    promotion: Some(last.promotion),
                    begin_lsn: Lsn::ZERO,
                });
                (self.recorded, self.following) = (history, Some(holder));
                Completion::Joined
            }
        }
    }
}

/// The wall's clock, which goes with the other one.
pub(crate) fn wall_unix_us(now: BootInstant) -> i64 {
    i64::try_from(now.0 / 1000).unwrap()
}
