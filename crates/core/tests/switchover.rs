//! A switchover with a fault at every step of it: whatever is killed or cut off, nothing acknowledged is lost, nobody serves beside
//! somebody else, and the operation comes to a known end.

#![allow(clippy::unwrap_used)] // a failed step should panic here

mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use understudy_core::state::OperationStatus;
use understudy_types::{DurabilityMode, NodeId};

use world::{BUDGET, NORTH, SOUTH, WITNESS, World};

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
            OperationStatus::Running | OperationStatus::Cancelled(_) => {
                unreachable!("it has ended, and nobody took it back")
            }
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
