//! Three cores over a perfect log and a modelled executor: the main story, event by event.
//!
//! What is modelled here is only what the core asks for; the real executor is tested with real
//! PostgreSQL in `tests/`.

#![allow(clippy::unwrap_used)] // a failed step should panic here

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use understudy_core::node::{
    Action, Completion, Core, CoreOptions, Damping, DataView, Event, GuardWish, JournalView,
    LocalView, PostgresFacts, PostgresView, Task,
};
use understudy_core::rejoin::{Rung, Survey};
use understudy_core::state::{Member, Phase};
use understudy_core::verdict::Reason;
use understudy_core::{ClusterConfig, ClusterState, Command, Outcome, Timing};
use understudy_types::{
    BootInstant, ClusterId, DurabilityMode, Exposure, Incarnation, Lineage, Lsn, NodeId, NodeKind,
    PermitSerial, ProcessStart, PromotionId, ReceiverPosition, SealedEnd, SourcePositions,
    SystemId, Timeline,
};

const NORTH: NodeId = NodeId(1);
const SOUTH: NodeId = NodeId(2);
const WITNESS: NodeId = NodeId(3);
const SYSTEM: SystemId = SystemId(42);
const STEP: Duration = Duration::from_millis(20);

/// One modelled machine.
struct Machine {
    core: Core,
    alive: bool,
    empty: bool,
    postgres: Option<Server>,
    journal: Option<JournalView>,
    recorded: Vec<Lineage>,
    end: Lsn,
    following: Option<NodeId>,
    source: bool,
    released: Lsn,
    /// How its server behaves; a fence cures it.
    sickness: PostgresFacts,
    fences: u32,
    applied: usize,
    uuid: u128,
    permit: Option<PermitSerial>,
    /// The timeline that its data is on, where that is not the newest one of its history.
    stands_on: Option<Timeline>,
    joins: u32,
    /// Of the last time that it took a server.
    exposed_since: Option<BootInstant>,
}

#[derive(Clone, Copy)]
struct Server {
    primary: bool,
    timeline: Timeline,
}

/// The wall clock of this world runs beside the other one.
fn wall(now: BootInstant) -> i64 {
    i64::try_from(now.0 / 1000).unwrap()
}

struct World {
    now: BootInstant,
    machines: BTreeMap<NodeId, Machine>,
    log: Vec<(Command, Outcome, Arc<ClusterState>)>,
    state: ClusterState,
}

impl World {
    fn new(mode: DurabilityMode) -> World {
        let mut state = ClusterState::default();
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
        let outcome = state.apply(1, &found);
        assert!(outcome.is_accepted(), "{outcome:?}");
        let log = vec![(found, outcome, Arc::new(state.clone()))];
        let machines = [NORTH, SOUTH, WITNESS].map(|id| (id, Machine::new(id, 1))).into();
        World { now: BootInstant(1_000_000_000), machines, log, state }
    }

    /// One step of time: every live machine sees the log, the others' reports, its own surroundings.
    fn step(&mut self) {
        self.now = self.now + STEP;
        let now = self.now;
        let alive: Vec<NodeId> =
            self.machines.iter().filter(|(_, m)| m.alive).map(|(id, _)| *id).collect();
        let majority = alive.len() >= 2;
        let leader = alive.last().copied();
        let reports: Vec<_> =
            alive.iter().map(|id| self.machines[id].core.own_report(now)).collect();
        for id in &alive {
            let positions = self.positions(*id);
            let machine = self.machines.get_mut(id).unwrap();
            while majority && machine.applied < self.log.len() {
                let (command, outcome, state) = self.log[machine.applied].clone();
                machine.applied += 1;
                machine
                    .core
                    .handle_event(now, Event::State { state, applied: Some((command, outcome)) });
            }
            machine.uuid += 1;
            let fresh = PromotionId(uuid::Uuid::from_u128((u128::from(id.0) << 64) | machine.uuid));
            let view = machine.view();
            machine.core.handle_event(
                now,
                Event::Leadership { is_leader: majority && Some(*id) == leader, majority },
            );
            machine.core.handle_event(now, Event::Local { view, fresh, wall_unix_us: wall(now) });
            machine.core.handle_event(now, Event::Source(positions));
            for report in reports.iter().filter(|report| report.node != *id) {
                machine.core.handle_event(now, Event::Peer(report.clone()));
            }
            machine.core.handle_event(now, Event::Tick);
        }
        for id in alive {
            self.act(id, majority);
        }
    }

    fn positions(&self, id: NodeId) -> Option<SourcePositions> {
        let machine = &self.machines[&id];
        if !machine.source {
            return None;
        }
        let receivers = self
            .machines
            .iter()
            .filter(|(_, other)| other.alive && other.following == Some(id))
            .map(|(node, other)| ReceiverPosition {
                node: *node,
                attached: true,
                durable_lsn: other.journal.map_or(Lsn::ZERO, |journal| journal.durable_lsn),
                replay_lsn: Some(other.end),
                begin_lsn: Lsn::ZERO,
            })
            .collect();
        Some(SourcePositions {
            read_at: self.now,
            flush_lsn: machine.end,
            released_lsn: machine.released,
            permit: machine.permit,
            exposure: Exposure::NONE,
            survives: None,
            release_delay: Duration::ZERO,
            gate_connected: true,
            receivers,
        })
    }

    fn act(&mut self, id: NodeId, majority: bool) {
        let now = self.now;
        let wish = self.machines[&id].core.guard_wish(now);
        self.machines[&id].check_guard_is_right(wish);
        let mut done = VecDeque::new();
        while let Some(action) = self.machines.get_mut(&id).unwrap().core.poll_action() {
            let machine = self.machines.get_mut(&id).unwrap();
            match action {
                Action::Propose(slot, command) => {
                    if majority {
                        let outcome = self.state.apply(self.log.len() as u64 + 1, &command);
                        self.log.push((command, outcome, Arc::new(self.state.clone())));
                    } else {
                        machine.core.handle_event(now, Event::ProposalFailed(slot));
                    }
                }
                Action::SetPermit(permit) => {
                    machine.permit = Some(permit.serial);
                    if now < permit.deadline {
                        machine.released = machine.end;
                    }
                    machine.core.handle_event(now, Event::PermitInForce(permit.serial));
                }
                Action::CloseGate(_) => machine.source = false,
                Action::Follow { holder, admission, history } => {
                    let end = self.machines[&holder].end;
                    let machine = self.machines.get_mut(&id).unwrap();
                    machine.following = Some(holder);
                    machine.recorded = history;
                    machine.end = machine.end.max(end);
                    machine.journal = Some(JournalView {
                        timeline: admission.timeline,
                        durable_lsn: machine.end,
                        promotion: Some(admission.promotion),
                        begin_lsn: Lsn::ZERO,
                    });
                }
                Action::Unfollow => machine.following = None,
                Action::Run(task_id, task) => {
                    if matches!(task, Task::Hold(_) | Task::PromoteLocally { .. }) {
                        let guarded = matches!(wish, GuardWish::Until(at) if at > now);
                        assert!(guarded, "node {id} begins {task:?} with {wish:?} at {now}");
                    }
                    done.push_back((task_id, task));
                }
            }
        }
        while let Some((task_id, task)) = done.pop_front() {
            let holder_end = match &task {
                Task::Join { holder, .. } => self.machines[holder].end,
                _ => Lsn::ZERO,
            };
            let machine = self.machines.get_mut(&id).unwrap();
            let completion = machine.carry_out(task, holder_end);
            let view = machine.view();
            machine.uuid += 1;
            let fresh = PromotionId(uuid::Uuid::from_u128((u128::from(id.0) << 64) | machine.uuid));
            let wall_unix_us = wall(now);
            machine.core.handle_event(now, Event::Local { view, fresh, wall_unix_us });
            machine.core.handle_event(now, Event::TaskDone(task_id, Ok(completion)));
        }
    }

    fn run_until(
        &mut self,
        what: &str,
        limit: Duration,
        done: impl Fn(&World) -> bool,
    ) -> Duration {
        let start = self.now;
        while !done(self) {
            self.step();
            let standings: Vec<_> = self
                .machines
                .iter()
                .map(|(id, m)| (*id, m.alive, m.core.standing(self.now)))
                .collect();
            assert!(
                self.now.since(start) < limit,
                "{what} did not happen within {limit:?}: phase {:?}, durability {:?}\n{standings:#?}",
                self.state.phase,
                self.state.durability
            );
        }
        self.now.since(start)
    }

    fn serving(&self) -> Vec<NodeId> {
        let serving = |m: &&NodeId| {
            self.machines[m].alive && self.machines[m].core.standing(self.now).serving
        };
        self.machines.keys().filter(serving).copied().collect()
    }

    /// An operator orders a failover to south.
    fn order_south(&mut self) {
        let order = Command::OrderFailover {
            to: SOUTH,
            epoch: self.state.epoch,
            caller: "test".to_owned(),
            reason: "because".to_owned(),
            at_unix_us: 1,
        };
        let outcome = self.state.apply(self.log.len() as u64 + 1, &order);
        assert!(outcome.is_accepted(), "{outcome:?}");
        self.log.push((order, outcome, Arc::new(self.state.clone())));
    }

    fn kill(&mut self, id: NodeId) {
        let machine = self.machines.get_mut(&id).unwrap();
        machine.alive = false;
        machine.postgres = None;
        machine.following = None;
        machine.source = false;
        machine.released = Lsn::ZERO;
    }

    fn restart(&mut self, id: NodeId, process: u64) {
        let machine = self.machines.get_mut(&id).unwrap();
        machine.core = Machine::new(id, process).core;
        machine.alive = true;
        machine.applied = 0;
    }
}

impl Machine {
    fn new(id: NodeId, process: u64) -> Machine {
        let kind = if id == WITNESS { NodeKind::Witness } else { NodeKind::Data };
        let process = ProcessStart(process);
        Machine {
            core: Core::new(CoreOptions { me: id, kind, process, timing: Timing::DEFAULT }),
            alive: true,
            empty: true,
            postgres: None,
            journal: None,
            recorded: Vec::new(),
            end: Lsn::ZERO,
            following: None,
            source: false,
            released: Lsn::ZERO,
            sickness: PostgresFacts::default(),
            fences: 0,
            applied: 0,
            uuid: 0,
            permit: None,
            stands_on: None,
            joins: 0,
            exposed_since: None,
        }
    }

    fn timeline(&self) -> Timeline {
        let newest = || self.recorded.last().map_or(Timeline::FIRST, |last| last.timeline);
        self.stands_on.unwrap_or_else(newest)
    }

    fn view(&self) -> LocalView {
        let data = if self.empty {
            DataView::Empty
        } else {
            DataView::Cluster { system_id: SYSTEM, timeline: self.timeline() }
        };
        let postgres = self.postgres.map_or(PostgresView::Stopped, |server| {
            PostgresView::Running(PostgresFacts {
                in_recovery: Some(!server.primary),
                timeline: Some(server.timeline),
                flush_lsn: server.primary.then_some(self.end),
                replay_lsn: (!server.primary).then_some(self.end),
                ..self.sickness.clone()
            })
        });
        LocalView { data, postgres, journal: self.journal }
    }

    /// A guardian is only told that there is nothing to guard when there is nothing.
    fn check_guard_is_right(&self, wish: GuardWish) {
        let primary = self.postgres.is_some_and(|server| server.primary);
        assert!(!(primary && wish == GuardWish::Nothing), "an unguarded primary");
        if self.core.standing(BootInstant::ZERO).word == "holder" {
            assert!(matches!(wish, GuardWish::Until(_)), "a holder with {wish:?}");
        }
    }

    fn carry_out(&mut self, task: Task, holder_end: Lsn) -> Completion {
        match task {
            Task::ReadIndex => Completion::ReadDone,
            Task::CollectSeals { .. } => unreachable!("one passive alone is no quorum"),
            Task::BeginJournalAnew(_) => unreachable!("no node here has nothing but a journal"),
            Task::StopForRestart { .. } | Task::RestartStandby { .. } | Task::Reload => {
                unreachable!("nobody orders it here")
            }
            Task::PrepareData => {
                self.empty = false;
                self.end = Lsn(100);
                Completion::DataReady
            }
            Task::Fence => {
                self.postgres = None;
                self.source = false;
                self.sickness = PostgresFacts::default();
                self.fences += 1;
                Completion::Fenced
            }
            Task::Hold(grant) => {
                self.postgres = Some(Server { primary: true, timeline: grant.timeline });
                self.recorded = grant.history;
                self.exposed_since = Some(grant.exposed_since);
                self.source = true;
                Completion::Held { end_lsn: self.end }
            }
            Task::LetClientsIn { .. } => Completion::ClientsLetIn,
            Task::Drain => Completion::Drained,
            Task::PrepareSwitchover => Completion::SwitchoverPrepared,
            Task::ShutClientsOut { .. } => Completion::ClientsShutOut,
            Task::StopCleanly { .. } => {
                self.postgres = None;
                self.source = false;
                Completion::StoppedCleanly { end_lsn: self.end }
            }
            Task::Seal(epoch) => Completion::Sealed(self.journal.map(|journal| SealedEnd {
                epoch,
                timeline: journal.timeline,
                durable_lsn: journal.durable_lsn,
                record_end_lsn: journal.durable_lsn,
            })),
            Task::PromoteLocally { grant, target_lsn, .. } => {
                self.postgres = Some(Server { primary: true, timeline: grant.timeline });
                self.stands_on = Some(grant.timeline);
                let fork_lsn = if target_lsn == Lsn::ZERO { self.end } else { target_lsn };
                Completion::PromotedLocally { timeline: grant.timeline, fork_lsn }
            }
            Task::Survey if self.empty => Completion::Surveyed(Survey::Empty),
            Task::Survey => Completion::Surveyed(Survey::Cluster {
                system_id: SYSTEM,
                timeline: self.timeline(),
                end_lsn: self.end,
                recorded: self.recorded.clone(),
                foreign: false,
            }),
            Task::Join { rung, history, .. } => {
                if rung != Rung::Follow {
                    self.end = holder_end;
                }
                let last = history.last().expect("a holder has a history").clone();
                self.joins += 1;
                self.stands_on = None;
                self.empty = false;
                self.postgres = Some(Server { primary: false, timeline: last.timeline });
                self.journal = Some(JournalView {
                    timeline: last.timeline,
                    durable_lsn: self.end,
                    promotion: Some(last.promotion),
                    begin_lsn: Lsn::ZERO,
                });
                self.recorded = history;
                Completion::Joined
            }
        }
    }
}

fn protected(world: &World) -> bool {
    world.state.durability.eligible.len() == 1 && world.serving().len() == 1
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_founded_cluster_serves_at_the_initial_active_and_then_becomes_protected() {
    for mode in [DurabilityMode::Zero, DurabilityMode::Bounded] {
        let mut world = World::new(mode);
        world.run_until("serving", LONG, |w| w.serving() == [NORTH]);
        world.run_until("protected", LONG, protected);
        assert!(world.state.durability.eligible.contains(&SOUTH));
        assert!(!world.state.durability.lifted);
    }
}

#[test]
fn the_passive_takes_over_when_the_active_is_lost_and_the_old_one_returns() {
    let mut world = World::new(DurabilityMode::Zero);
    world.run_until("protected", LONG, protected);
    for round in 0..4 {
        let active = world.serving()[0];
        let passive = if active == NORTH { SOUTH } else { NORTH };
        world.kill(active);
        let outage = world.run_until("takeover", LONG, |w| w.serving() == [passive]);
        assert!(outage < Duration::from_millis(3600), "round {round} took {outage:?}");
        world.machines.get_mut(&passive).unwrap().end.0 += 1000;
        world.restart(active, round + 2);
        world.run_until("protected again", LONG, protected);
    }
    let last = world.state.last_granted().unwrap();
    assert_eq!((last.0.number, last.1.timeline.get()), (5, 5));
    assert_eq!(world.state.history().len(), 5);
}

#[test]
fn without_a_majority_the_holder_stops_and_nobody_is_promoted_and_the_same_holder_goes_on_after() {
    let mut world = World::new(DurabilityMode::Bounded);
    world.run_until("protected", LONG, protected);
    world.kill(SOUTH);
    world.kill(WITNESS);
    world.run_until("stopped", LONG, |w| w.serving().is_empty());
    let before = world.state.epoch;
    for _ in 0..500 {
        world.step();
        assert!(world.serving().is_empty());
    }
    world.restart(WITNESS, 2);
    world.run_until("going on", LONG, |w| w.serving() == [NORTH]);
    assert_eq!(world.state.epoch, before);
}

/// Makes the holder's server sick; true if it was fenced and serves again, false if another took over.
fn fall_sick(world: &mut World, sickness: &PostgresFacts) -> bool {
    let holder = world.serving()[0];
    let fences = world.machines[&holder].fences;
    world.machines.get_mut(&holder).unwrap().sickness = sickness.clone();
    world.run_until("a fence", LONG, |w| w.machines[&holder].fences > fences);
    world.run_until("serving again", LONG, |w| w.serving().len() == 1);
    world.serving() == [holder]
}

#[test]
fn a_sick_server_is_fenced_and_started_again_a_few_times_and_then_the_lease_is_given_back() {
    let seconds = Duration::from_secs;
    for sickness in [
        PostgresFacts { silent_for: seconds(3), ..PostgresFacts::default() },
        PostgresFacts { door_silent_for: seconds(6), ..PostgresFacts::default() },
        PostgresFacts { foreign_server: true, ..PostgresFacts::default() },
    ] {
        let mut world = World::new(DurabilityMode::Zero);
        world.run_until("protected", LONG, protected);
        for round in 0..3 {
            assert!(fall_sick(&mut world, &sickness), "round {round} of {sickness:?}");
            world.run_until("protected", LONG, protected);
        }
        assert!(!fall_sick(&mut world, &sickness), "{sickness:?} for the fourth time");
        assert_eq!(world.serving(), [SOUTH]);
    }
    // What is not long enough is nothing yet.
    let mut world = World::new(DurabilityMode::Zero);
    world.run_until("protected", LONG, protected);
    let fences = world.machines[&NORTH].fences;
    let sickness = PostgresFacts {
        silent_for: seconds(2),
        door_silent_for: seconds(5),
        ..PostgresFacts::default()
    };
    world.machines.get_mut(&NORTH).unwrap().sickness = sickness;
    for _ in 0..300 {
        world.step();
    }
    assert_eq!((world.machines[&NORTH].fences, world.serving()), (fences, vec![NORTH]));
}

#[test]
fn a_holder_that_starts_anew_leaves_the_guardian_as_it_is_until_it_holds_the_lease_again() {
    let mut world = World::new(DurabilityMode::Zero);
    world.run_until("protected", LONG, protected);
    let wish = |world: &World| world.machines[&NORTH].core.guard_wish(world.now);
    let GuardWish::Until(before) = wish(&world) else { panic!("{:?}", wish(&world)) };
    assert!(before > world.now);
    // The daemon alone: its server goes on.
    world.restart(NORTH, 2);
    assert_eq!(wish(&world), GuardWish::Unchanged, "it knows nothing yet");
    let mut seen = Vec::new();
    world.run_until("serving", LONG, |w| w.serving() == [NORTH]);
    world.restart(NORTH, 3);
    world.machines.get_mut(&SOUTH).unwrap().alive = false;
    world.machines.get_mut(&WITNESS).unwrap().alive = false;
    let committed = world.log.len();
    let north = world.machines.get_mut(&NORTH).unwrap();
    for (command, outcome, state) in world.log[..committed].iter().cloned() {
        let applied = Some((command, outcome));
        north.core.handle_event(world.now, Event::State { state, applied });
        seen.push(north.core.guard_wish(world.now));
    }
    let ttl = Timing::DEFAULT.ttl;
    assert_eq!(seen.last(), Some(&GuardWish::AsBefore(world.now + ttl)));
    assert!(!seen.contains(&GuardWish::Nothing), "{seen:?}");
    let later = world.now + ttl;
    assert_eq!(north.core.guard_wish(later), GuardWish::AsBefore(later), "it does not slide");
}

#[test]
fn a_promotion_that_gets_stuck_is_superseded_by_the_old_holder() {
    let mut world = World::new(DurabilityMode::Zero);
    world.run_until("protected", LONG, protected);
    world.kill(NORTH);
    world.run_until("grant", LONG, |w| matches!(w.state.phase, Phase::Promoting(_)));
    world.kill(SOUTH);
    world.restart(NORTH, 2);
    world.run_until("old holder serving", LONG, |w| w.serving() == [NORTH]);
    assert_eq!(world.state.epoch.number, 3);
    assert_eq!(world.state.current().unwrap().timeline, Timeline::FIRST);
    world.restart(SOUTH, 2);
    world.run_until("protected again", LONG, protected);
}

#[test]
fn an_ordered_failover_moves_the_active_and_ends_as_done() {
    let mut world = World::new(DurabilityMode::Zero);
    world.run_until("protected", LONG, protected);
    world.order_south();
    world.run_until("moved", LONG, |w| w.serving() == [SOUTH]);
    assert!(world.state.order.is_none());
    world.run_until("protected again", LONG, protected);
    assert!(world.state.durability.eligible.contains(&NORTH));
}

#[test]
fn a_candidate_that_lost_power_after_its_promotion_goes_on_as_the_primary_that_it_is() {
    let mut world = World::new(DurabilityMode::Zero);
    world.run_until("protected", LONG, protected);
    world.kill(NORTH);
    world.run_until("grant", LONG, |w| matches!(w.state.phase, Phase::Promoting(_)));
    let Phase::Promoting(promoting) = world.state.phase.clone() else { unreachable!() };
    world.kill(SOUTH);
    // Promoted before that, and not reported. As a standby it would be one on no history.
    let south = world.machines.get_mut(&SOUTH).unwrap();
    south.stands_on = Some(promoting.timeline);
    let joins = south.joins;
    world.restart(SOUTH, 2);
    world.run_until("serving", LONG, |w| w.serving() == [SOUTH]);
    assert_eq!(world.machines[&SOUTH].joins, joins, "it was started as a standby");
    let current = world.state.current().unwrap();
    assert_eq!((current.promotion, current.timeline), (promoting.promotion, promoting.timeline));
    assert!(world.state.marks.is_empty(), "{:?}", world.state.marks);
    world.restart(NORTH, 2);
    world.run_until("protected again", LONG, protected);
}

#[test]
fn a_candidate_on_a_timeline_that_nobody_granted_is_not_promoted() {
    let mut world = World::new(DurabilityMode::Zero);
    world.run_until("protected", LONG, protected);
    world.kill(NORTH);
    world.run_until("grant", LONG, |w| matches!(w.state.phase, Phase::Promoting(_)));
    world.kill(SOUTH);
    let odd = Timeline::FIRST.next().next().next();
    world.machines.get_mut(&SOUTH).unwrap().stands_on = Some(odd);
    world.restart(SOUTH, 2);
    world.run_until("marked", LONG, |w| w.state.marks.contains_key(&SOUTH));
    assert!(world.serving().is_empty());
}

#[test]
fn an_active_that_was_restarted_under_an_order_goes_on_when_the_order_comes_to_nothing() {
    let mut world = World::new(DurabilityMode::Zero);
    world.run_until("protected", LONG, protected);
    world.order_south();
    world.kill(NORTH);
    world.kill(SOUTH);
    // Its new process has never renewed: it has no lease to give back, and gets none meanwhile.
    world.restart(NORTH, 2);
    world.run_until("the order ended", LONG, |w| w.state.order.is_none());
    world.run_until("serving", LONG, |w| w.serving() == [NORTH]);
}

#[test]
fn a_restarted_node_fences_nothing_before_a_majority_has_confirmed_its_state() {
    let mut world = World::new(DurabilityMode::Zero);
    world.run_until("protected", LONG, protected);
    let old_state = Arc::new(world.state.clone());
    // Since that state it was promoted; its daemon died and comes back with what it had applied then.
    let mut machine = Machine::new(SOUTH, 2);
    machine.empty = false;
    machine.postgres = Some(Server { primary: true, timeline: Timeline::FIRST.next() });
    let now = world.now;
    let fresh = PromotionId(uuid::Uuid::from_u128(1));
    machine.core.handle_event(now, Event::State { state: old_state, applied: None });
    let view = machine.view();
    machine.core.handle_event(now, Event::Local { view, fresh, wall_unix_us: 1 });
    let mut asked = false;
    while let Some(action) = machine.core.poll_action() {
        match action {
            Action::Run(_, Task::ReadIndex) => asked = true,
            Action::Run(_, task) => panic!("{task:?} by a state that nobody confirmed"),
            _ => {}
        }
    }
    assert!(asked);
}

#[test]
fn a_holder_whose_daemon_was_away_counts_the_time_as_exposed() {
    let mut world = World::new(DurabilityMode::Bounded);
    world.run_until("protected", LONG, protected);
    let measured = |world: &World| {
        let published = world.state.holder.as_ref().and_then(|holder| holder.published.as_ref());
        published.is_some_and(|published| published.measured.is_some())
    };
    world.run_until("a measurement", LONG, measured);
    // Nobody can take over.
    world.kill(SOUTH);
    let away = LONG * 3;
    let begun = world.now;
    world.kill(NORTH);
    while world.now.since(begun) < away {
        world.step();
    }
    world.restart(NORTH, 2);
    world.run_until("serving", LONG, |w| w.serving() == [NORTH]);
    let since = world.machines[&NORTH].exposed_since.unwrap();
    assert!(since <= begun, "exposed since {since}, but gone since {begun}");
}

const HOLD: Duration = Duration::from_secs(5);

/// The witness leads in this world, so it alone has to know of the damping.
fn damp(world: &mut World) {
    let damping = Damping { window: LONG * 10, hold: HOLD, hold_max: HOLD * 2 };
    let witness = world.machines.get_mut(&WITNESS).unwrap();
    witness.core = Machine::new(WITNESS, 1).core.with_damping(damping);
    witness.applied = 0;
}

/// Loses the active and waits for the other one to serve; then the lost one comes back.
fn lose_active(world: &mut World, process: u64) -> Duration {
    let active = world.serving()[0];
    let passive = if active == NORTH { SOUTH } else { NORTH };
    world.kill(active);
    let outage = world.run_until("takeover", LONG, |w| w.serving() == [passive]);
    world.restart(active, process);
    world.run_until("protected again", LONG, protected);
    outage
}

fn reason(world: &World) -> Reason {
    world.machines[&WITNESS].core.verdict(world.now).reason
}

#[test]
fn a_loss_would_not_be_answered_while_the_others_are_too_few_to_decide_it() {
    let mut world = World::new(DurabilityMode::Zero);
    world.run_until("protected", LONG, protected);
    let seen_by = |world: &World, id: NodeId| world.machines[&id].core.verdict(world.now);
    world.kill(WITNESS);
    for node in [NORTH, SOUTH] {
        world.run_until("the silence to be noticed", LONG, |w| {
            matches!(seen_by(w, node).reason, Reason::TooFewVoters { heard: 1, needed: 2 })
        });
        assert!(!seen_by(&world, node).would_fail_over);
    }
    world.restart(WITNESS, 2);
    world.run_until("ready again", LONG, |w| {
        matches!(seen_by(w, SOUTH).reason, Reason::Ready { .. })
    });
}

#[test]
fn after_a_failover_and_the_way_back_each_further_one_waits_longer_up_to_a_bound() {
    let mut world = World::new(DurabilityMode::Zero);
    damp(&mut world);
    world.run_until("protected", LONG, protected);
    let outages: Vec<Duration> = (2..8).map(|process| lose_active(&mut world, process)).collect();
    let usual = Duration::from_millis(3600);
    let waited = [Duration::ZERO, Duration::ZERO, HOLD, HOLD * 2, HOLD * 2, HOLD * 2];
    for (outage, waited) in outages.iter().zip(waited) {
        assert!(*outage >= waited && *outage < waited + usual, "{outages:?}");
    }
    world.run_until("a warning", LONG, |w| {
        matches!(reason(w), Reason::Damped { failovers: 6, left: None, .. })
    });
    // The count ends with the window.
    for _ in 0..(LONG.as_millis() * 10 / STEP.as_millis()) {
        world.step();
    }
    assert!(matches!(reason(&world), Reason::Ready { .. }), "{:?}", reason(&world));
    assert!(lose_active(&mut world, 8) < usual);
}

#[test]
fn a_holder_that_comes_back_within_the_hold_goes_on_without_a_failover() {
    let mut world = World::new(DurabilityMode::Zero);
    damp(&mut world);
    world.run_until("protected", LONG, protected);
    for process in 2..4 {
        lose_active(&mut world, process);
    }
    let (active, epoch) = (world.serving()[0], world.state.epoch);
    world.kill(active);
    world
        .run_until("the hold", LONG, |w| matches!(reason(w), Reason::Damped { left: Some(_), .. }));
    world.restart(active, 5);
    world.run_until("going on", HOLD, |w| w.serving() == [active]);
    assert_eq!(world.state.epoch, epoch);
}

#[test]
fn an_ordered_failover_does_not_wait_for_the_hold() {
    let mut world = World::new(DurabilityMode::Zero);
    damp(&mut world);
    world.run_until("protected", LONG, protected);
    for process in 2..6 {
        lose_active(&mut world, process);
    }
    let active = world.serving()[0];
    let passive = if active == NORTH { SOUTH } else { NORTH };
    world.kill(active);
    world
        .run_until("the hold", LONG, |w| matches!(reason(w), Reason::Damped { left: Some(_), .. }));
    let order = Command::OrderFailover {
        to: passive,
        epoch: world.state.epoch,
        caller: "test".to_owned(),
        reason: "because".to_owned(),
        at_unix_us: 1,
    };
    let outcome = world.state.apply(world.log.len() as u64 + 1, &order);
    assert!(outcome.is_accepted(), "{outcome:?}");
    world.log.push((order, outcome, Arc::new(world.state.clone())));
    world.run_until("moved", Duration::from_secs(1), |w| w.serving() == [passive]);
}

#[test]
fn a_leader_that_was_restarted_leaves_the_next_failover_free_and_counts_on() {
    let mut world = World::new(DurabilityMode::Zero);
    damp(&mut world);
    world.run_until("protected", LONG, protected);
    for process in 2..7 {
        lose_active(&mut world, process);
    }
    damp(&mut world);
    world.run_until("the log applied again", LONG, |w| w.machines[&WITNESS].applied == w.log.len());
    let usual = Duration::from_millis(3600);
    assert!(lose_active(&mut world, 7) < usual);
    let second = lose_active(&mut world, 8);
    assert!(second >= HOLD && second < HOLD + usual, "{second:?}");
}
