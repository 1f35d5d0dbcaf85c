//! Orders to one node with a fault at every step of them, over the world of three cores: they are carried
//! out once or not at all, the epoch stays, and each comes to a known end.

#![allow(clippy::unwrap_used)] // a failed step should panic here

mod world;

use std::time::Duration;

use understudy_core::state::{NodeVerb, OperationStatus, SCHEDULE_TOLERANCE};
use understudy_core::{Command, Outcome, Rejection};
use understudy_types::{DurabilityMode, NodeId};

use world::{BUDGET, NORTH, SOUTH, WITNESS, World, wall_unix_us};

const BOTH: [NodeId; 2] = [NORTH, SOUTH];

fn try_order(world: &mut World, node: NodeId, verb: NodeVerb, accepts_waiting: bool) -> Outcome {
    let epoch = world.state.epoch;
    world.enter(Command::OrderNode {
        node,
        verb,
        epoch,
        accepts_waiting,
        caller: "test".to_owned(),
        reason: "because".to_owned(),
        at_unix_us: 1,
    })
}

fn order(world: &mut World, node: NodeId, verb: NodeVerb) -> u64 {
    let outcome = try_order(world, node, verb, true);
    let Outcome::Accepted { operation: Some(operation) } = outcome else { panic!("{outcome:?}") };
    operation
}

fn schedule(world: &mut World, to: NodeId, after: Duration) -> u64 {
    let due_unix_us = wall_unix_us(world.now + after);
    let outcome = world.enter(Command::ScheduleSwitchover {
        to,
        epoch: world.state.epoch,
        budget: BUDGET,
        due_unix_us,
        caller: "test".to_owned(),
        reason: "at night".to_owned(),
        at_unix_us: 1,
    });
    let Outcome::Accepted { operation: Some(operation) } = outcome else { panic!("{outcome:?}") };
    operation
}

fn end_of(world: &mut World, operation: u64) -> OperationStatus {
    world.run_until("the end", |w| w.status(operation) != OperationStatus::Running);
    world.status(operation)
}

#[test]
fn a_restart_is_done_once_under_the_same_epoch_at_either_node() {
    for node in BOTH {
        for mode in [DurabilityMode::Zero, DurabilityMode::Bounded] {
            let mut world = World::protected(mode);
            let operation = order(&mut world, node, NodeVerb::Restart);
            assert_eq!(end_of(&mut world, operation), OperationStatus::Done);
            world.run_until("protected", World::is_protected);
            assert_eq!((world.serving(), world.state.epoch.number), (vec![NORTH], 1));
            world.run_for(Duration::from_secs(5));
            assert_eq!(world.machines[&node].stops, 1);
            assert!(world.state.node_orders.is_empty());
        }
    }
}

#[test]
fn the_active_serves_on_while_its_passive_is_restarted_or_anybody_reloads() {
    for (node, verb) in
        [(SOUTH, NodeVerb::Restart), (SOUTH, NodeVerb::Reload), (NORTH, NodeVerb::Reload)]
    {
        let mut world = World::protected(DurabilityMode::Zero);
        let operation = order(&mut world, node, verb);
        let before = world.acknowledged;
        while world.status(operation) == OperationStatus::Running {
            world.step();
            assert_eq!(world.serving(), [NORTH]);
            // Its journal goes on acknowledging.
            assert!(world.machines[&SOUTH].following == Some(NORTH));
        }
        world.run_for(Duration::from_secs(1));
        assert!(world.acknowledged > before);
        if verb == NodeVerb::Reload {
            assert_eq!(world.machines[&node].reloads, 1);
            let report = world.state.operations[&operation].report.as_deref();
            assert_eq!(report, Some("work_mem is 8MB"));
        }
    }
}

/// Kills the node's daemon, or its whole site, at the n-th step after the order, for every n until it is
/// over by itself; the order is never carried out twice.
fn killed_at_every_step(node: NodeId, verb: NodeVerb, site: bool) {
    for n in 0.. {
        let mut world = World::protected(DurabilityMode::Zero);
        let operation = order(&mut world, node, verb);
        for _ in 0..n {
            world.step();
        }
        let over = world.status(operation) != OperationStatus::Running;
        let done_before = world.machines[&node].stops;
        world.kill(node, site);
        world.run_for(Duration::from_millis(400));
        world.restart(node);
        let status = end_of(&mut world, operation);
        world.run_until("protected", World::is_protected);
        assert!(world.state.node_orders.is_empty());
        let active = world.serving()[0];
        assert!(world.machines[&active].end >= world.acknowledged);
        if done_before > 0 {
            assert_eq!(world.machines[&node].stops, done_before, "step {n}: done twice");
        }
        if let OperationStatus::Failed(why) = &status {
            assert!(why.contains("anew"), "{why}");
        }
        if over {
            return;
        }
        assert!(n < 500, "it is never over");
    }
}

#[test]
fn a_daemon_that_is_killed_at_any_step_does_not_repeat_what_it_began() {
    for site in [false, true] {
        killed_at_every_step(NORTH, NodeVerb::Restart, site);
        killed_at_every_step(SOUTH, NodeVerb::Restart, site);
        killed_at_every_step(SOUTH, NodeVerb::Reclone, site);
    }
}

#[test]
fn a_passive_is_made_afresh_and_is_protected_again() {
    let mut world = World::protected(DurabilityMode::Bounded);
    let before = world.machines[&SOUTH].clones;
    let operation = order(&mut world, SOUTH, NodeVerb::Reclone);
    assert_eq!(end_of(&mut world, operation), OperationStatus::Done);
    world.run_until("protected", World::is_protected);
    assert_eq!(world.machines[&SOUTH].clones, before + 1);
    assert_eq!(world.serving(), [NORTH]);
}

#[test]
fn what_would_be_unsafe_is_refused_with_its_kind() {
    let mut world = World::protected(DurabilityMode::Zero);
    let mut refused = |node, verb, accepts| match try_order(&mut world, node, verb, accepts) {
        Outcome::Rejected(why) => why,
        accepted @ Outcome::Accepted { .. } => panic!("{accepted:?}"),
    };
    let reclone = NodeVerb::Reclone;
    assert_eq!(refused(NORTH, reclone, true), Rejection::IsActive(NORTH));
    assert_eq!(refused(SOUTH, reclone, false), Rejection::WouldStall(SOUTH));
    assert_eq!(refused(WITNESS, NodeVerb::Restart, true), Rejection::NotADataNode(WITNESS));

    let running = order(&mut world, SOUTH, NodeVerb::Restart);
    let busy = Outcome::Rejected(Rejection::Busy(running));
    assert_eq!(try_order(&mut world, SOUTH, NodeVerb::Reload, true), busy);
    assert_eq!(try_order(&mut world, NORTH, NodeVerb::Restart, true), busy);
    let epoch = world.state.epoch;
    assert_eq!(world.state.check_switchover(SOUTH, epoch), Err(Rejection::Busy(running)));
    end_of(&mut world, running);

    let moving = world.order(SOUTH);
    let busy = Outcome::Rejected(Rejection::Busy(moving));
    assert_eq!(try_order(&mut world, NORTH, NodeVerb::Restart, true), busy);
    assert_eq!(try_order(&mut world, SOUTH, reclone, true), busy);
    end_of(&mut world, moving);
}

#[test]
fn an_order_to_a_node_that_is_not_heard_is_ended_by_the_leader() {
    let mut world = World::protected(DurabilityMode::Bounded);
    world.isolated.insert(SOUTH);
    let operation = order(&mut world, SOUTH, NodeVerb::Restart);
    let OperationStatus::Failed(why) = end_of(&mut world, operation) else { panic!("done") };
    assert!(why.contains("not heard"), "{why}");
    world.isolated.clear();
    world.run_until("protected", World::is_protected);
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.machines[&SOUTH].stops, 0, "carried out after its end");
}

#[test]
fn a_scheduled_switchover_begins_at_its_time_whoever_leads_then() {
    let mut world = World::protected(DurabilityMode::Zero);
    let operation = schedule(&mut world, SOUTH, Duration::from_secs(6));
    world.run_for(Duration::from_secs(2));
    world.kill(WITNESS, false);
    world.run_for(Duration::from_secs(2));
    world.restart(WITNESS);
    assert!(world.state.scheduled.is_some() && world.state.switchover.is_none());
    assert_eq!(end_of(&mut world, operation), OperationStatus::Done);
    world.run_until("served", |w| w.serving() == [SOUTH]);
}

#[test]
fn a_scheduled_switchover_that_is_cancelled_does_not_happen() {
    let mut world = World::protected(DurabilityMode::Zero);
    let operation = schedule(&mut world, SOUTH, Duration::from_secs(3));
    let (caller, reason) = ("ada".to_owned(), "not tonight".to_owned());
    let outcome = world.enter(Command::CancelScheduled { caller, reason, at_unix_us: 2 });
    assert_eq!(outcome, Outcome::Accepted { operation: Some(operation) });
    world.run_for(Duration::from_secs(6));
    assert_eq!((world.serving(), world.state.epoch.number), (vec![NORTH], 1));
    let OperationStatus::Cancelled(why) = world.status(operation) else { panic!("it ran") };
    assert!(why.contains("ada") && why.contains("not tonight"), "{why}");
}

#[test]
fn what_stands_against_it_at_its_time_is_its_outcome() {
    let mut world = World::protected(DurabilityMode::Zero);
    let operation = schedule(&mut world, NORTH, Duration::from_secs(1));
    let OperationStatus::Failed(why) = end_of(&mut world, operation) else { panic!("it ran") };
    assert!(why.contains("north: it is the active node"), "{why}");
}

#[test]
fn a_time_that_passed_while_nobody_could_act_is_missed_and_not_made_up_for() {
    let mut world = World::protected(DurabilityMode::Bounded);
    let operation = schedule(&mut world, SOUTH, Duration::from_secs(1));
    world.isolated.extend([SOUTH, WITNESS]);
    world.run_for(SCHEDULE_TOLERANCE + Duration::from_secs(5));
    world.isolated.clear();
    let OperationStatus::Failed(why) = end_of(&mut world, operation) else { panic!("it ran") };
    assert!(why.contains("missed"), "{why}");
    world.run_for(Duration::from_secs(3));
    assert!(world.state.switchover.is_none());
}

#[test]
fn an_order_does_not_outlive_the_epoch_that_it_was_given_in() {
    for verb in [NodeVerb::Restart, NodeVerb::Reclone] {
        let mut world = World::protected(DurabilityMode::Zero);
        world.contested = Some("begin-node-order");
        let operation = order(&mut world, SOUTH, verb);
        world.kill(NORTH, true);
        world.run_until("the lease is over", |w| w.machines[&SOUTH].core.lease_over(w.now));
        // From here on South is needed, and does not take its own standby away.
        world.contested = None;
        world.run_until("south serves", |w| w.serving() == [SOUTH]);
        let OperationStatus::Failed(why) = end_of(&mut world, operation) else { panic!("done") };
        assert!(why.contains("the active changed"), "{why}");
        assert_eq!((world.machines[&SOUTH].stops, world.machines[&SOUTH].clones), (0, 1));
    }
}

#[test]
fn what_is_refused_is_not_proposed_again_at_once() {
    let mut world = World::protected(DurabilityMode::Bounded);
    let operation = order(&mut world, SOUTH, NodeVerb::Reload);
    let kind = "begin-node-order";
    world.contested = Some(kind);
    let moment = Duration::from_secs(2);
    world.run_for(moment);
    let proposed = world.log.iter().filter(|(command, _, _)| command.kind() == kind).count();
    let steps = moment.as_millis() / world::STEP.as_millis();
    assert!((2..steps as usize / 5).contains(&proposed), "{proposed} entries in {steps} steps");
    world.contested = None;
    assert_eq!(end_of(&mut world, operation), OperationStatus::Done);
}

#[test]
fn an_order_that_a_failover_keeps_from_beginning_is_not_proposed_at_all() {
    let mut world = World::protected(DurabilityMode::Bounded);
    world.kill(SOUTH, false);
    let operation = order(&mut world, SOUTH, NodeVerb::Reclone);
    world.stuck.insert(SOUTH);
    let moving = world.enter(Command::OrderFailover {
        to: SOUTH,
        epoch: world.state.epoch,
        caller: "test".to_owned(),
        reason: "because".to_owned(),
        at_unix_us: 1,
    });
    assert!(moving.is_accepted(), "{moving:?}");
    world.restart(SOUTH);
    world.run_until("ended", |w| w.status(operation) != OperationStatus::Running);
    let begun = world.log.iter().filter(|(command, _, _)| command.kind() == "begin-node-order");
    assert_eq!(begun.count(), 0);
}

#[test]
fn a_standby_that_lacks_of_a_parameter_is_started_again_and_can_take_over() {
    for dies in [false, true] {
        let mut world = World::protected(DurabilityMode::Zero);
        world.machines.get_mut(&SOUTH).unwrap().short = true;
        if dies {
            world.kill(NORTH, true);
            world.run_until("south serves", |w| w.serving() == [SOUTH]);
        } else {
            let before = world.acknowledged;
            world.run_until("protected", |w| w.machines[&SOUTH].stops == 1 && w.is_protected());
            world.run_for(Duration::from_secs(1));
            assert!(world.acknowledged > before && world.serving() == [NORTH]);
        }
        assert_eq!(world.machines[&SOUTH].stops, 1);
    }
}
