//! The dial turned while a holder runs, event by event: what its gate does, and when it is recorded.
//!
//! One core, a log that applies when the test says so, and positions as the test says they are.

#![allow(clippy::unwrap_used)] // a failed step should panic here

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use understudy_core::node::{
    Action, Completion, Core, CoreOptions, DataView, Event, Grant, LocalView, PeerReport,
    PostgresFacts, PostgresView, Task,
};
use understudy_core::state::{Dial, Member, OperationStatus, PromoteCause, Published};
use understudy_core::{ClusterConfig, ClusterState, Command, Outcome, Timing};
use understudy_types::{
    BootInstant, ClusterId, DurabilityMode, Exposure, Incarnation, Lsn, NodeId, NodeKind, Permit,
    PermitSerial, ProcessStart, PromotionId, ReceiverPosition, SourcePositions, Survival, SystemId,
    Timeline,
};
use uuid::Uuid;

const NORTH: NodeId = NodeId(1);
const SOUTH: NodeId = NodeId(2);
const WITNESS: NodeId = NodeId(3);
const STEP: Duration = Duration::from_millis(20);

/// North's core as the holder, with the cluster's log.
struct Bench {
    core: Core,
    now: BootInstant,
    state: ClusterState,
    index: u64,
    /// What the core proposed and the log has not applied yet.
    proposed: VecDeque<Command>,
    /// Kinds of commands that wait for the test.
    withheld: &'static str,
    permit: Option<Permit>,
    positions: Option<SourcePositions>,
    /// No postmaster; the next start cures it.
    stopped: bool,
    /// For what the server was taken last.
    held: Option<Grant>,
}

fn state(mode: DurabilityMode) -> ClusterState {
    let mut state = ClusterState::default();
    let member = |name: &str, kind, n: u128| Member {
        name: name.parse().unwrap(),
        site: name.parse().unwrap(),
        kind,
        address: format!("{name}:1"),
        incarnation: Incarnation(Uuid::from_u128(n)),
    };
    let promotion = PromotionId(Uuid::from_u128(1));
    let found = Command::Found {
        cluster: ClusterId(Uuid::from_u128(9)),
        members: vec![
            (NORTH, member("north", NodeKind::Data, 1)),
            (SOUTH, member("south", NodeKind::Data, 2)),
            (WITNESS, member("witness", NodeKind::Witness, 3)),
        ],
        config: ClusterConfig { mode, ..ClusterConfig::default() },
        initial_active: NORTH,
    };
    assert!(state.apply(1, &found).is_accepted());
    let promote = Command::Promote {
        to: NORTH,
        epoch: state.epoch.next(),
        promotion,
        timeline: Timeline::FIRST,
        cause: PromoteCause::Bootstrap,
        expect: state.expect(),
        durable_lsn: None,
        system_id: Some(SystemId(42)),
    };
    assert!(state.apply(2, &promote).is_accepted());
    let promoted = Command::Promoted {
        epoch: state.epoch,
        node: NORTH,
        promotion,
        timeline: Timeline::FIRST,
        fork_lsn: None,
        at_unix_us: 1,
    };
    assert!(state.apply(3, &promoted).is_accepted());
    state
}

impl Bench {
    /// North serves, south is attached, has everything up to 100 and is in the set.
    fn protected(mode: DurabilityMode) -> Bench {
        let (me, kind) = (NORTH, NodeKind::Data);
        let options = CoreOptions { me, kind, process: ProcessStart(1), timing: Timing::DEFAULT };
        let mut bench = Bench {
            core: Core::new(options),
            now: BootInstant(1_000_000_000),
            state: state(mode),
            index: 3,
            proposed: VecDeque::new(),
            withheld: "",
            permit: None,
            positions: None,
            stopped: false,
            held: None,
        };
        let state = Arc::new(bench.state.clone());
        bench.core.handle_event(bench.now, Event::State { state, applied: None });
        bench.steps(50);
        // South comes; the permit that waits for it is followed by positions read under it.
        for _ in 0..3 {
            bench.positions = Some(bench.read(100, 100));
            bench.steps(20);
        }
        assert!(bench.state.durability.eligible.contains(&SOUTH), "{:?}", bench.state.durability);
        assert_eq!(bench.mode(), mode);
        bench
    }

    /// Positions as they would be read now: what was released, and what south has.
    fn read(&self, released: u64, durable: u64) -> SourcePositions {
        let south = ReceiverPosition {
            node: SOUTH,
            attached: true,
            durable_lsn: Lsn(durable),
            replay_lsn: Some(Lsn(durable)),
            begin_lsn: Lsn::ZERO,
        };
        SourcePositions {
            read_at: self.now,
            flush_lsn: Lsn(released),
            released_lsn: Lsn(released),
            permit: self.permit.as_ref().map(|permit| permit.serial),
            exposure: Exposure::NONE,
            survives: Some(Survival { lsn: Lsn(durable), oldest_age: Duration::ZERO }),
            release_delay: Duration::ZERO,
            gate_connected: true,
            receivers: vec![south],
        }
    }

    fn steps(&mut self, count: u32) {
        for _ in 0..count {
            self.now = self.now + STEP;
            let look = self.look();
            self.handle(look);
            // Positions lie in a cell: the core sees the newest that were read, however old.
            self.handle(Event::Source(self.positions.clone()));
            self.handle(Event::Tick);
            self.apply_what_may_be();
        }
    }

    fn look(&self) -> Event {
        let facts = PostgresFacts {
            in_recovery: Some(false),
            timeline: Some(Timeline::FIRST),
            flush_lsn: Some(Lsn(100)),
            ..PostgresFacts::default()
        };
        let data = DataView::Cluster { system_id: SystemId(42), timeline: Timeline::FIRST };
        let postgres = match self.stopped {
            true => PostgresView::Stopped,
            false => PostgresView::Running(facts),
        };
        let view = LocalView { data, postgres, journal: None };
        Event::Local { view, fresh: PromotionId(Uuid::from_u128(77)), wall_unix_us: 1 }
    }

    fn handle(&mut self, event: Event) {
        self.core.handle_event(self.now, event);
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Propose(_, command) => self.proposed.push_back(command),
                Action::SetPermit(permit) => {
                    let serial = permit.serial;
                    self.permit = Some(permit);
                    self.core.handle_event(self.now, Event::PermitInForce(serial));
                }
                Action::Run(id, task) => {
                    let completion = match task {
                        Task::ReadIndex => Completion::ReadDone,
                        Task::Fence => Completion::Fenced,
                        Task::Hold(grant) => {
                            self.stopped = false;
                            self.held = Some(grant);
                            // The observer looks before the result of a task is told.
                            let look = self.look();
                            self.core.handle_event(self.now, look);
                            Completion::Held { end_lsn: Lsn(100) }
                        }
                        Task::LetClientsIn { .. } => Completion::ClientsLetIn,
                        other => panic!("not expected here: {other:?}"),
                    };
                    if matches!(completion, Completion::Held { .. }) {
                        self.positions = Some(self.read(100, 0));
                        self.positions.as_mut().unwrap().receivers.clear();
                    }
                    self.core.handle_event(self.now, Event::TaskDone(id, Ok(completion)));
                }
                Action::CloseGate(_) | Action::Follow { .. } | Action::Unfollow => {
                    panic!("not expected here: {action:?}")
                }
            }
        }
    }

    fn apply_what_may_be(&mut self) {
        let (now, later): (Vec<_>, Vec<_>) =
            self.proposed.drain(..).partition(|command| command.kind() != self.withheld);
        self.proposed = later.into();
        for command in now {
            let _ = self.commit(command);
        }
    }

    fn commit(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let outcome = self.state.apply(self.index, &command);
        let state = Arc::new(self.state.clone());
        self.handle(Event::State { state, applied: Some((command, outcome.clone())) });
        outcome
    }

    fn turn(&mut self, mode: DurabilityMode) -> u64 {
        let order = Command::SetDial {
            dial: Dial { mode, ..Dial::of(&self.state.config) },
            epoch: self.state.epoch,
            config_version: self.state.config_version,
            caller: "test".to_owned(),
            reason: "because".to_owned(),
            at_unix_us: 2,
        };
        assert!(self.commit(order).is_accepted());
        self.index
    }

    fn mode(&self) -> DurabilityMode {
        self.permit.as_ref().unwrap().mode
    }

    fn in_force(&self) -> DurabilityMode {
        self.state.durability.mode
    }

    fn status(&self, operation: u64) -> &OperationStatus {
        &self.state.operations[&operation].status
    }
}

#[test]
fn exposure_goes_on_over_a_restart_of_the_server_from_the_oldest_commit_that_is_not_durable() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    // Released seven seconds ago and not durable at south; read now, and not read again.
    let age = Duration::from_secs(7);
    let from = bench.now - age;
    let mut positions = bench.read(200, 100);
    positions.survives = Some(Survival { lsn: Lsn(100), oldest_age: age });
    bench.positions = Some(positions);
    bench.steps(100);
    // What is published meanwhile says how old that is by now, not how old it was when it was read.
    let published = bench.state.holder.as_ref().unwrap().published.as_ref().unwrap();
    let oldest = published.survives.unwrap().oldest_age;
    assert!(oldest > age + Duration::from_secs(1), "{oldest:?}");
    bench.stopped = true;
    bench.steps(5);
    let held = bench.held.as_ref().unwrap();
    assert_eq!(held.exposed_since, from, "{} later", bench.now.since(from).as_secs());
}

#[test]
fn a_strengthening_is_done_at_the_gate_before_it_is_recorded() {
    for before in [DurabilityMode::Bounded, DurabilityMode::BestEffort] {
        let mut bench = Bench::protected(before);
        // Read before the dial is turned. Until the stricter permit is in force the gate goes on to
        // 200, which these positions do not know: by them south would have everything (mistake 16).
        let stale = bench.read(100, 100);
        bench.positions = Some(stale);
        let operation = bench.turn(DurabilityMode::Zero);
        bench.steps(2);
        assert_eq!(bench.mode(), DurabilityMode::Zero, "the gate waits at once");
        bench.steps(100);
        assert_eq!(bench.in_force(), before, "recorded by positions of an earlier permit");

        bench.positions = Some(bench.read(200, 199));
        bench.steps(100);
        assert_eq!(bench.in_force(), before, "recorded before south had everything");
        assert_eq!(*bench.status(operation), OperationStatus::Running);
        assert!(bench.core.standing(bench.now).trouble.is_some_and(|t| t.contains("zero")));

        bench.positions = Some(bench.read(200, 200));
        bench.steps(5);
        assert_eq!(bench.in_force(), DurabilityMode::Zero);
        assert_eq!(*bench.status(operation), OperationStatus::Done);
        assert_eq!(bench.mode(), DurabilityMode::Zero);
    }
}

#[test]
fn a_weakening_is_recorded_before_the_gate_follows() {
    for wanted in [DurabilityMode::Bounded, DurabilityMode::BestEffort] {
        let mut bench = Bench::protected(DurabilityMode::Zero);
        bench.withheld = "set-eff";
        let operation = bench.turn(wanted);
        bench.steps(100);
        assert!(!bench.proposed.is_empty(), "the weakening is not proposed");
        assert_eq!(bench.mode(), DurabilityMode::Zero, "done before it is recorded");
        bench.withheld = "";
        bench.steps(5);
        assert_eq!((bench.in_force(), bench.mode()), (wanted, wanted));
        assert_eq!(*bench.status(operation), OperationStatus::Done);
    }
}

#[test]
fn a_recording_that_comes_after_the_dial_was_turned_back_has_no_effect() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    bench.withheld = "set-eff";
    bench.turn(DurabilityMode::Zero);
    bench.steps(2);
    bench.positions = Some(bench.read(200, 200));
    bench.steps(5);
    let late = bench.proposed.pop_front().expect("it is proposed, and its outcome unknown");
    bench.turn(DurabilityMode::Bounded);
    bench.steps(5);
    assert_eq!(bench.mode(), DurabilityMode::Bounded, "the gate is loose again");
    assert!(!bench.commit(late).is_accepted());
    assert_eq!(bench.in_force(), DurabilityMode::Bounded);
}

#[test]
fn a_stricter_permit_of_an_earlier_turn_proves_nothing() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    bench.withheld = "set-eff";
    bench.turn(DurabilityMode::Zero);
    bench.steps(2);
    // Turned to something weaker than what is in force, which is not recorded yet: the gate is loose
    // again. Positions are read under its permit, and then it releases up to 300.
    bench.turn(DurabilityMode::BestEffort);
    bench.steps(2);
    assert_eq!(bench.mode(), DurabilityMode::Bounded);
    bench.positions = Some(bench.read(200, 200));
    bench.turn(DurabilityMode::Zero);
    bench.steps(200);
    let is_zero =
        |command: &Command| matches!(command, Command::SetEff { mode: DurabilityMode::Zero, .. });
    assert!(!bench.proposed.iter().any(is_zero), "by positions from before the gate waited");
    bench.positions = Some(bench.read(300, 300));
    bench.steps(200);
    assert!(bench.proposed.iter().any(is_zero), "{:?}", bench.proposed);
}

#[test]
fn best_effort_to_bounded_waits_until_exposure_is_below_the_ceiling() {
    let mut bench = Bench::protected(DurabilityMode::BestEffort);
    bench.turn(DurabilityMode::Bounded);
    bench.steps(2);
    let ceiling = bench.state.config.rpo - Timing::DEFAULT.ttl;
    assert_eq!(bench.permit.as_ref().unwrap().exposure_max, Some(ceiling));
    let mut over = bench.read(300, 200);
    over.exposure = Exposure { time: ceiling + STEP, lost_wal_bytes: 100 };
    bench.positions = Some(over.clone());
    bench.steps(50);
    assert_eq!(bench.in_force(), DurabilityMode::BestEffort);
    over.exposure.time = ceiling;
    bench.positions = Some(over);
    bench.steps(5);
    assert_eq!(bench.in_force(), DurabilityMode::Bounded);
}

#[test]
fn a_join_is_not_recorded_by_positions_of_an_earlier_permit() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let remove = Command::SyncRemove {
        by: understudy_core::state::HolderProof {
            epoch: bench.state.epoch,
            node: NORTH,
            process: ProcessStart(1),
        },
        generation: bench.state.durability.generation,
        node: SOUTH,
        copies: 0,
    };
    let before = bench.read(100, 100);
    bench.positions = Some(before.clone());
    assert!(bench.commit(remove).is_accepted());
    // As the sole survivor the gate went on to 200; then south is waited for again.
    bench.steps(100);
    assert!(bench.permit.as_ref().unwrap().waited_for.contains(&SOUTH));
    assert!(bench.permit.as_ref().unwrap().serial > before.permit.unwrap_or(PermitSerial(0)));
    assert!(bench.state.durability.eligible.is_empty(), "recorded by stale positions");
    bench.positions = Some(bench.read(200, 150));
    bench.steps(50);
    assert!(bench.state.durability.eligible.is_empty(), "recorded without everything");
    bench.positions = Some(bench.read(200, 200));
    bench.steps(5);
    assert!(bench.state.durability.eligible.contains(&SOUTH));
}

/// A witness, which hears what the test lets it hear.
fn witness() -> Core {
    Core::new(CoreOptions {
        me: WITNESS,
        kind: NodeKind::Witness,
        process: ProcessStart(1),
        timing: Timing::DEFAULT,
    })
}

fn report(node: NodeId, durable_lsn: Lsn, promotable: bool, state: &ClusterState) -> PeerReport {
    PeerReport {
        node,
        process: ProcessStart(1),
        epoch: state.epoch,
        data: None,
        durable_lsn: Some(durable_lsn),
        promotion: Some(state.current().unwrap().promotion),
        begin_lsn: Lsn::ZERO,
        promotable,
        resumable: false,
    }
}

#[test]
fn a_candidate_is_behind_when_it_lost_wal_and_not_because_its_report_is_older_than_a_renewal() {
    let mut state = Bench::protected(DurabilityMode::Zero).state;
    let mut core = witness();
    let begin = BootInstant(5_000_000_000);
    core.handle_event(begin, Event::Leadership { is_leader: true, majority: true });
    // Ten thousand bytes a second; a renewal each second says where south is, its own report where it
    // was a fifth of a second ago.
    let mut looks = |millis: u64, said: &dyn Fn(u64) -> u64| {
        let now = begin + Duration::from_millis(millis);
        if millis.is_multiple_of(1000) {
            let durable = [(SOUTH, Lsn(millis * 10))].into();
            let holder = state.holder.as_mut().unwrap();
            holder.published = Some(Published { durable, ..Published::default() });
            holder.seq += 1;
            core.handle_event(now, Event::State { state: Arc::new(state.clone()), applied: None });
        }
        core.handle_event(now, Event::Peer(report(SOUTH, Lsn(said(millis)), true, &state)));
        core.verdict(now).reason.kind()
    };
    // Whoever has only just begun to listen has nothing to excuse a report with.
    assert_eq!(looks(1000, &|millis| (millis - 200) * 10), "candidate-behind");
    for millis in (1500..10_000).step_by(100) {
        assert_eq!(looks(millis, &|millis| (millis - 200) * 10), "ready", "at {millis}");
    }
    let behind = (10_000..12_000).step_by(100).filter(|m| looks(*m, &|_| 50) == "candidate-behind");
    assert_eq!(behind.count(), 20);
}

/// The witness leads; north published and fell silent, south could take over. When it is promoted,
/// counted from north's last renewal, and why.
fn promoted_after(mode: DurabilityMode, fast: bool) -> (Duration, PromoteCause) {
    let bench = Bench::protected(mode);
    let mut state = bench.state;
    state.config.promote_without_lease_wait = fast;
    let published = Published { durable: [(SOUTH, Lsn(100))].into(), ..Published::default() };
    state.holder.as_mut().unwrap().published = Some(published);
    let mut core = witness();
    let begin = BootInstant(5_000_000_000);
    let report = |node, promotable| report(node, Lsn(100), promotable, &state);
    let (north, south) = (report(NORTH, false), report(SOUTH, true));
    let state = Arc::new(state.clone());
    core.handle_event(begin, Event::State { state: Arc::clone(&state), applied: None });
    core.handle_event(begin, Event::Peer(north));
    for step in 1..1000 {
        let now = begin + STEP * step;
        let fresh = PromotionId(Uuid::from_u128(8));
        core.handle_event(now, Event::Leadership { is_leader: true, majority: true });
        core.handle_event(now, Event::Peer(south.clone()));
        let view = LocalView::default();
        core.handle_event(now, Event::Local { view, fresh, wall_unix_us: 1 });
        while let Some(action) = core.poll_action() {
            if let Action::Propose(_, command @ Command::Promote { .. }) = action {
                let mut after = ClusterState::clone(&state);
                let outcome = after.apply(99, &command);
                assert!(outcome.is_accepted(), "{outcome:?}");
                let Command::Promote { cause, .. } = command else { unreachable!() };
                return (now.since(begin), cause);
            }
        }
    }
    panic!("nobody was promoted")
}

#[test]
fn by_policy_and_in_zero_a_silent_active_is_replaced_before_its_lease_is_over() {
    let over = Timing::DEFAULT.challenger_span(Timing::DEFAULT.ttl);
    let (after, cause) = promoted_after(DurabilityMode::Zero, true);
    assert!(after < Duration::from_secs(2), "{after:?}");
    assert_eq!(cause, PromoteCause::Sealed);
    for (mode, fast) in [(DurabilityMode::Zero, false), (DurabilityMode::Bounded, true)] {
        let (after, cause) = promoted_after(mode, fast);
        assert!(after >= over, "{mode} {fast}: {after:?}");
        assert_eq!(cause, PromoteCause::LeaseOver);
    }
}
