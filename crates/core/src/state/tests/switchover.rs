//! What `apply` must and must not allow while a switchover is under way.

use super::*;

pub(super) fn order(bench: &Bench, to: NodeId) -> Command {
    Command::OrderSwitchover {
        to,
        epoch: bench.state.epoch,
        budget: Duration::from_secs(10),
        caller: "person ada (operator)".to_owned(),
        reason: "patch".to_owned(),
        at_unix_us: 1,
    }
}

/// The switchover's operation; 0 when none is under way.
pub(super) fn under_way(bench: &Bench) -> u64 {
    bench.state.switchover.as_ref().map_or(0, |switchover| switchover.operation)
}

fn handover(bench: &Bench) -> Command {
    Command::Handover { by: bench.proof(A, 1), operation: under_way(bench) }
}

fn undo(bench: &Bench, operation: u64) -> Command {
    Command::Undo { by: bench.proof(A, 1), operation, why: "slow".to_owned(), at_unix_us: 2 }
}

fn release(bench: &Bench, end: u64) -> Command {
    let seq = bench.state.holder.as_ref().unwrap().seq;
    Command::Release { by: bench.proof(A, 1), seq, cause: ReleaseCause::CleanEnd(Lsn(end)) }
}

/// Ordered and accepted; the operation's number.
fn ordered(bench: &mut Bench) -> u64 {
    let command = order(bench, B);
    bench.accept(command);
    bench.index
}

/// Handed over by A, which has published 900 for B and ends at 1200; not yet promoted.
fn released(mode: DurabilityMode) -> (Bench, u64) {
    let mut bench = Bench::protected(mode);
    let operation = ordered(&mut bench);
    let command = handover(&bench);
    bench.accept(command);
    let command = release(&bench, 1200);
    bench.accept(command);
    (bench, operation)
}

fn status(bench: &Bench, operation: u64) -> OperationStatus {
    bench.state.operations[&operation].status.clone()
}

fn failure(bench: &Bench, operation: u64) -> String {
    match status(bench, operation) {
        OperationStatus::Failed(why) => why,
        other => panic!("it is {other:?}"),
    }
}

#[test]
fn a_switchover_that_goes_well_is_done_with_the_promotion() {
    for mode in [DurabilityMode::Zero, DurabilityMode::Bounded, DurabilityMode::BestEffort] {
        let (mut bench, operation) = released(mode);
        assert_eq!(status(&bench, operation), OperationStatus::Running);
        assert_eq!(bench.state.handed_to(), Some(B));
        bench.promote(B, PromoteCause::Released, tli(2), Some(1200));
        bench.promoted(B, Some(1200));
        assert_eq!(status(&bench, operation), OperationStatus::Done);
        assert_eq!(bench.state.switchover, None);
    }
}

#[test]
fn a_candidate_that_lacks_a_byte_of_the_clean_end_is_refused_in_every_mode() {
    for mode in [DurabilityMode::Zero, DurabilityMode::Bounded] {
        let (mut bench, _) = released(mode);
        for durable in [None, Some(900), Some(1199)] {
            let command = bench.promote_command(B, PromoteCause::Released, tli(2), durable);
            let refused = bench.reject(command);
            let why = Ineligible::LostWal;
            assert_eq!(refused, Rejection::NotEligible { node: B, why });
        }
    }
}

#[test]
fn nobody_is_promoted_in_a_handover_before_the_release() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    ordered(&mut bench);
    let command = handover(&bench);
    bench.accept(command);
    let command = bench.promote_command(B, PromoteCause::Released, tli(2), Some(5000));
    assert!(matches!(bench.reject(command), Rejection::NotEligible { .. }));
    let command = bench.promote_command(B, PromoteCause::Supersede, tli(2), Some(5000));
    assert_eq!(bench.reject(command), Rejection::Phase);
}

#[test]
fn a_proposer_that_has_not_seen_the_handover_promotes_nobody() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    ordered(&mut bench);
    let before = bench.promote_command(B, PromoteCause::LeaseOver, tli(2), Some(5000));
    let command = handover(&bench);
    bench.accept(command);
    assert_eq!(bench.reject(before), Rejection::Phase);
}

#[test]
fn the_holder_renews_in_a_handover_and_no_longer_after_the_release() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    ordered(&mut bench);
    let command = handover(&bench);
    bench.accept(command);
    let renew = bench.renew(A, 1, 2);
    bench.accept(renew);
    let stale = Command::Release {
        by: bench.proof(A, 1),
        seq: 1,
        cause: ReleaseCause::CleanEnd(Lsn(1200)),
    };
    assert!(matches!(bench.reject(stale), Rejection::Seq { .. }));
    let command = release(&bench, 1200);
    bench.accept(command);
    let renew = bench.renew(A, 1, 3);
    assert_eq!(bench.reject(renew), Rejection::Released);
}

#[test]
fn an_undo_ends_the_operation_and_is_refused_after_the_release() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let operation = ordered(&mut bench);
    let command = handover(&bench);
    bench.accept(command.clone());
    let back = undo(&bench, operation);
    bench.accept(back.clone());
    assert_eq!(bench.state.phase, Phase::Running);
    assert_eq!(failure(&bench, operation), "slow");
    // Late duplicates change nothing, also while another one is under way.
    assert_eq!(bench.reject(back.clone()), Rejection::NoOperation);
    assert_eq!(bench.reject(command.clone()), Rejection::NoOperation);
    ordered(&mut bench);
    assert_eq!(bench.reject(command), Rejection::NoOperation);
    assert_eq!(bench.reject(back), Rejection::NoOperation);

    let (mut bench, operation) = released(DurabilityMode::Zero);
    let back = undo(&bench, operation);
    assert_eq!(bench.reject(back), Rejection::Released);
}

#[test]
fn commands_of_a_process_that_has_been_replaced_are_refused() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let operation = ordered(&mut bench);
    let late = [handover(&bench), undo(&bench, operation), release(&bench, 1200)];
    let renew = bench.renew(A, 2, 2);
    bench.accept(renew);
    for command in late {
        assert!(matches!(bench.reject(command), Rejection::Process { .. }));
    }
}

#[test]
fn the_loss_of_the_active_in_a_handover_ends_the_operation_as_a_failover() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let operation = ordered(&mut bench);
    let command = handover(&bench);
    bench.accept(command);
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    assert_eq!(status(&bench, operation), OperationStatus::Running);
    bench.promoted(B, Some(900));
    assert!(failure(&bench, operation).contains("failover"));
}

#[test]
fn the_old_active_resumes_on_its_timeline_when_the_candidate_is_lost() {
    // Before anybody was granted the next epoch.
    let (mut bench, operation) = released(DurabilityMode::Zero);
    bench.promote(A, PromoteCause::Released, tli(1), None);
    bench.promoted(A, None);
    assert!(failure(&bench, operation).contains("goes on as the active"));
    // And after.
    let (mut bench, operation) = released(DurabilityMode::Bounded);
    bench.promote(B, PromoteCause::Released, tli(2), Some(1200));
    bench.promote(A, PromoteCause::Supersede, tli(1), None);
    bench.promoted(A, None);
    assert_eq!(bench.state.current().unwrap().timeline, tli(1));
    assert!(failure(&bench, operation).contains("goes on as the active"));
}

#[test]
fn the_leader_can_end_what_nobody_else_ends() {
    for hand_it_over in [false, true] {
        let mut bench = Bench::protected(DurabilityMode::Zero);
        let operation = ordered(&mut bench);
        if hand_it_over {
            let command = handover(&bench);
            bench.accept(command);
        }
        bench.accept(Command::EndOrder { operation, why: "stale".to_owned(), at_unix_us: 3 });
        assert_eq!(bench.state.phase, Phase::Running);
        assert_eq!(failure(&bench, operation), "stale");
        let renew = bench.renew(A, 1, 2);
        bench.accept(renew);
    }
}

#[test]
fn an_order_is_not_ended_while_its_clean_end_binds_a_promotion() {
    let (mut bench, operation) = released(DurabilityMode::Bounded);
    bench.promote(B, PromoteCause::Released, tli(2), Some(1200));
    let end = Command::EndOrder { operation, why: "stale".to_owned(), at_unix_us: 3 };
    assert_eq!(bench.reject(end), Rejection::Phase);
    bench.promoted(B, Some(1200));
    assert_eq!(bench.state.operations[&operation].status, OperationStatus::Done);
}

#[test]
fn what_cannot_be_switched_to_is_refused_before_anything_happens() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let to_itself = order(&bench, A);
    assert!(matches!(bench.reject(to_itself), Rejection::NotEligible { .. }));
    let to_the_witness = order(&bench, W);
    assert_eq!(bench.reject(to_the_witness), Rejection::NotADataNode(W));
    let mut stale = order(&bench, B);
    if let Command::OrderSwitchover { epoch, .. } = &mut stale {
        *epoch = Epoch::NONE;
    }
    assert!(matches!(bench.reject(stale), Rejection::Epoch { .. }));
    let operation = ordered(&mut bench);
    let second = order(&bench, B);
    assert_eq!(bench.reject(second), Rejection::Busy(operation));
    let failover = Command::OrderFailover {
        to: B,
        epoch: bench.state.epoch,
        caller: String::new(),
        reason: String::new(),
        at_unix_us: 1,
    };
    assert_eq!(bench.reject(failover), Rejection::Busy(operation));
    bench.accept(Command::SetMark { node: B, mark: Mark::Dirty });
    let command = handover(&bench);
    assert!(matches!(bench.reject(command), Rejection::NotEligible { .. }));
}

#[test]
fn a_budget_out_of_bounds_is_brought_within_them() {
    for (asked, kept) in [(0, PAUSE_BUDGET_MIN), (86_400, PAUSE_BUDGET_MAX)] {
        let mut bench = Bench::protected(DurabilityMode::Zero);
        let mut command = order(&bench, B);
        if let Command::OrderSwitchover { budget, .. } = &mut command {
            *budget = Duration::from_secs(asked);
        }
        bench.accept(command);
        assert_eq!(bench.state.switchover.as_ref().unwrap().budget, kept);
    }
}
