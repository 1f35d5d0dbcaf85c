//! A switchover with a fault at every step of it: three cores over a perfect log, and an executor whose
//! tasks take time. Whatever is killed or cut off, nothing acknowledged is lost, nobody serves beside
//! somebody else, and the operation comes to a known end.

#![allow(clippy::unwrap_used)] // a failed step should panic here

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use understudy_core::node::{
    Action, Completion, Core, CoreOptions, DataView, Event, JournalView, LocalView, PostgresFacts,
    PostgresView, Task, TaskId,
};
use understudy_core::rejoin::{Rung, Survey};
use understudy_core::state::{Member, OperationStatus, ReleaseCause};
use understudy_core::{ClusterConfig, ClusterState, Command, Outcome, Timing};
use understudy_types::{
    BootInstant, ClusterId, DurabilityMode, Epoch, Exposure, Incarnation, Lineage, Lsn, NodeId,
    NodeKind, Permit, ProcessStart, PromotionId, ReceiverPosition, SealedEnd, SourcePositions,
    SystemId, Timeline,
};

const NORTH: NodeId = NodeId(1);
const SOUTH: NodeId = NodeId(2);
const WITNESS: NodeId = NodeId(3);
const SYSTEM: SystemId = SystemId(42);
const STEP: Duration = Duration::from_millis(20);
/// A task is carried out this many steps after it was begun, if it can be.
const TASK_STEPS: u32 = 3;
const LONG: Duration = Duration::from_secs(120);
const BUDGET: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq)]
enum Server {
    Stopped,
    Standby(Timeline),
    Primary(Timeline),
}

struct Machine {
    core: Core,
    alive: bool,
    empty: bool,
    process: u64,
    server: Server,
    clients: bool,
    /// The gate's connection and the receivers' streams.
    source: bool,
    permit: Option<Permit>,
    closed: Option<Epoch>,
    journal: Option<JournalView>,
    recorded: Vec<Lineage>,
    /// The end of its WAL.
    end: Lsn,
    /// Reported to its PostgreSQL as flushed, in this process.
    released: Lsn,
    following: Option<NodeId>,
    task: Option<(TaskId, Task, u32)>,
    applied: usize,
    uuid: u128,
}

impl Machine {
    fn new(id: NodeId, process: u64) -> Machine {
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
        }
    }

    fn view(&self) -> LocalView {
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

    fn durable(&self) -> Lsn {
        self.journal.map_or(Lsn::ZERO, |journal| journal.durable_lsn)
    }
}

struct World {
    now: BootInstant,
    machines: BTreeMap<NodeId, Machine>,
    isolated: BTreeSet<NodeId>,
    /// Their disks take nothing.
    stuck: BTreeSet<NodeId>,
    leader: NodeId,
    log: Vec<(Command, Outcome, Arc<ClusterState>)>,
    state: ClusterState,
    /// The greatest position that any client was told of.
    acknowledged: Lsn,
}

impl World {
    /// Founded and protected, with clients that write all the time.
    fn protected(mode: DurabilityMode) -> World {
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
            leader: WITNESS,
            log: Vec::new(),
            state: ClusterState::default(),
            acknowledged: Lsn::ZERO,
        };
        let _ = world.enter(found);
        world.run_until("protected", World::is_protected);
        world
    }

    fn enter(&mut self, command: Command) -> Outcome {
        let outcome = self.state.apply(self.log.len() as u64 + 1, &command);
        self.log.push((command, outcome.clone(), Arc::new(self.state.clone())));
        outcome
    }

    fn order(&mut self, to: NodeId) -> u64 {
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

    fn status(&self, operation: u64) -> OperationStatus {
        self.state.operations[&operation].status.clone()
    }

    fn reachable(&self, id: NodeId) -> bool {
        self.machines[&id].alive && !self.isolated.contains(&id)
    }

    fn step(&mut self) {
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

    fn positions(&self, id: NodeId) -> Option<SourcePositions> {
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

    fn act(&mut self, id: NodeId, hears: bool) {
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
                    let _ = self.enter(command);
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
    fn check_release(&self, id: NodeId, command: &Command) {
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
    fn work(&mut self, id: NodeId) {
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
    fn stream(&mut self) {
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

    fn serving(&self) -> Vec<NodeId> {
        let serving = |id: &NodeId| {
            self.machines[id].alive && self.machines[id].core.standing(self.now).serving
        };
        self.machines.keys().copied().filter(serving).collect()
    }

    fn is_protected(&self) -> bool {
        self.state.durability.eligible.len() == 1 && self.serving().len() == 1
    }

    fn run_until(&mut self, what: &str, done: impl Fn(&World) -> bool) -> Duration {
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

    fn run_for(&mut self, span: Duration) {
        let until = self.now + span;
        while self.now < until {
            self.step();
        }
    }

    /// SIGKILL to the daemon, and to its PostgreSQL if the whole site is lost.
    fn kill(&mut self, id: NodeId, site: bool) {
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

    fn restart(&mut self, id: NodeId) {
        let machine = self.machines.get_mut(&id).unwrap();
        machine.process += 1;
        machine.core = Machine::new(id, machine.process).core;
        machine.alive = true;
        machine.closed = None;
        machine.applied = 0;
    }
}

impl Machine {
    fn look(&mut self, id: NodeId, now: BootInstant) {
        self.uuid += 1;
        let fresh = PromotionId(uuid::Uuid::from_u128(
            (u128::from(id.0) << 96) | (u128::from(self.process) << 64) | self.uuid,
        ));
        let view = self.view();
        self.core.handle_event(now, Event::Local { view, fresh, wall_unix_us: 1 });
    }

    fn carry_out(&mut self, task: Task, holder_end: Lsn, acknowledged: Lsn) -> Completion {
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
            Task::Survey if self.empty => Completion::Surveyed(Survey::Empty),
            Task::Survey => Completion::Surveyed(Survey::Cluster {
                system_id: SYSTEM,
                timeline: self.recorded.last().map_or(Timeline::FIRST, |last| last.timeline),
                end_lsn: self.end,
                recorded: self.recorded.clone(),
            }),
            Task::Join { rung, history, holder, .. } => {
                if rung != Rung::Follow {
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

const MODES: [DurabilityMode; 3] =
    [DurabilityMode::Zero, DurabilityMode::Bounded, DurabilityMode::BestEffort];

#[test]
fn a_switchover_moves_the_active_there_and_back_and_is_done() {
    for mode in MODES {
        let mut world = World::protected(mode);
        for to in [SOUTH, NORTH, SOUTH] {
            let operation = world.order(to);
            let acknowledged = world.acknowledged;
            world.run_until("the end", |w| w.status(operation) != OperationStatus::Running);
            assert_eq!(world.status(operation), OperationStatus::Done, "{mode:?}");
            world.run_until("protected again", World::is_protected);
            assert_eq!(world.serving(), [to]);
            assert!(world.machines[&to].end >= world.acknowledged.max(acknowledged));
        }
        assert_eq!(world.state.epoch.number, 4);
    }
}

#[test]
fn clients_are_served_until_the_handover_is_accepted_and_not_beyond() {
    let mut world = World::protected(DurabilityMode::Zero);
    world.order(SOUTH);
    while world.state.handover().is_none() {
        world.step();
        assert_eq!(world.serving(), [NORTH]);
    }
    let outage = world.run_until("served again", |w| w.serving() == [SOUTH]);
    assert!(outage < Duration::from_secs(2), "{outage:?}");
}

/// What happens in the middle, and what brings it back.
#[derive(Clone, Copy, Debug)]
enum Fault {
    KillSite(NodeId, Duration),
    KillDaemon(NodeId, Duration),
    Isolate(NodeId, Duration),
    ChangeLeader(NodeId),
}

fn strike(world: &mut World, fault: Fault) {
    match fault {
        Fault::KillSite(id, away) | Fault::KillDaemon(id, away) => {
            world.kill(id, matches!(fault, Fault::KillSite(..)));
            world.run_for(away);
            world.restart(id);
        }
        Fault::Isolate(id, away) => {
            world.isolated.insert(id);
            world.run_for(away);
            world.isolated.clear();
        }
        Fault::ChangeLeader(to) => world.leader = to,
    }
}

/// The fault at the n-th step after the order, for every n until the switchover is over by itself.
fn at_every_step(mode: DurabilityMode, fault: Fault) -> BTreeSet<&'static str> {
    let mut ends = BTreeSet::new();
    for n in 0.. {
        let mut world = World::protected(mode);
        let operation = world.order(SOUTH);
        for _ in 0..n {
            world.step();
        }
        let over = world.is_protected() && world.serving() == [SOUTH];
        strike(&mut world, fault);
        world.run_until(&format!("the end, after {fault:?} at step {n}"), |w| {
            w.status(operation) != OperationStatus::Running
        });
        world.run_until(&format!("protected, after {fault:?} at step {n}"), World::is_protected);
        assert!(world.state.switchover.is_none() && world.state.handover().is_none());
        let active = world.serving()[0];
        assert!(world.machines[&active].end >= world.acknowledged || mode != DurabilityMode::Zero);
        ends.insert(match world.status(operation) {
            OperationStatus::Done => "done",
            OperationStatus::Failed(_) if active == NORTH => "undone",
            OperationStatus::Failed(_) => "failed over",
            OperationStatus::Running => unreachable!("it has ended"),
        });
        if over {
            break;
        }
        assert!(n < 500, "it is never over");
    }
    ends
}

const SHORT: Duration = Duration::from_millis(400);
/// Longer than a lease and than the pause budget.
const AWAY: Duration = Duration::from_secs(9);

#[test]
fn the_loss_of_the_old_actives_site_at_any_step_has_a_known_end() {
    let ends = at_every_step(DurabilityMode::Zero, Fault::KillSite(NORTH, AWAY));
    assert_eq!(ends, ["done", "failed over"].into());
}

#[test]
fn a_restart_of_the_old_actives_daemon_at_any_step_has_a_known_end() {
    for mode in MODES {
        let ends = at_every_step(mode, Fault::KillDaemon(NORTH, SHORT));
        assert_eq!(ends, ["done", "undone"].into(), "{mode:?}");
    }
}

#[test]
fn the_loss_of_the_candidates_site_at_any_step_has_a_known_end() {
    let ends = at_every_step(DurabilityMode::Zero, Fault::KillSite(SOUTH, AWAY));
    assert_eq!(ends, ["done", "undone"].into());
    let ends = at_every_step(DurabilityMode::Zero, Fault::KillSite(SOUTH, SHORT));
    assert!(ends.contains("done") && !ends.contains("failed over"), "{ends:?}");
}

#[test]
fn a_candidate_that_is_cut_off_at_any_step_has_a_known_end() {
    for away in [SHORT, AWAY] {
        for mode in MODES {
            let ends = at_every_step(mode, Fault::Isolate(SOUTH, away));
            assert!(ends.contains("done"), "{mode:?}, {away:?}: {ends:?}");
            assert!(!ends.contains("failed over"), "{mode:?}, {away:?}: {ends:?}");
        }
    }
}

#[test]
fn an_active_that_is_cut_off_at_any_step_has_a_known_end() {
    let ends = at_every_step(DurabilityMode::Zero, Fault::Isolate(NORTH, AWAY));
    assert!(ends.contains("done") && ends.contains("failed over"), "{ends:?}");
    let _ = at_every_step(DurabilityMode::Zero, Fault::Isolate(NORTH, SHORT));
}

#[test]
fn the_loss_or_change_of_the_leader_at_any_step_does_not_matter() {
    let ends = at_every_step(DurabilityMode::Zero, Fault::KillDaemon(WITNESS, AWAY));
    assert_eq!(ends, ["done"].into());
    for to in [NORTH, SOUTH] {
        let ends = at_every_step(DurabilityMode::Zero, Fault::ChangeLeader(to));
        assert_eq!(ends, ["done"].into());
    }
}

#[test]
fn a_pause_that_takes_longer_than_its_budget_is_undone_and_nothing_is_lost() {
    let mut world = World::protected(DurabilityMode::Zero);
    let operation = world.order(SOUTH);
    world.run_until("the handover", |w| w.state.handover().is_some());
    // Attached, alive, and its journal stands still: the stop cannot end.
    world.stuck.insert(SOUTH);
    let began = world.now;
    world.run_until("the end", |w| w.status(operation) != OperationStatus::Running);
    let took = world.now.since(began);
    assert!(took >= BUDGET && took < BUDGET + Duration::from_secs(1), "{took:?}");
    assert!(world.state.holder.as_ref().unwrap().released.is_none());
    world.stuck.clear();
    let OperationStatus::Failed(why) = world.status(operation) else { panic!("it was done") };
    assert!(why.contains("pause budget"), "{why}");
    world.run_until("protected again", World::is_protected);
    assert_eq!(world.serving(), [NORTH]);
    assert_eq!(world.state.epoch.number, 1);
}

#[test]
fn a_switchover_to_a_candidate_that_is_not_ready_shuts_nobody_out() {
    let mut world = World::protected(DurabilityMode::Bounded);
    world.isolated.insert(SOUTH);
    let operation = world.order(SOUTH);
    while world.status(operation) == OperationStatus::Running {
        world.step();
        assert_eq!(world.serving(), [NORTH]);
        assert!(world.state.handover().is_none());
    }
    let OperationStatus::Failed(why) = world.status(operation) else { panic!("it was done") };
    assert!(why.contains("not begun"), "{why}");
}
