//! Each test is a mistake of docs/safety.md that `apply` must not allow, or a rule that always holds.

use std::time::Duration;

use proptest::prelude::*;
use understudy_types::{
    ClusterId, DurabilityMode, Epoch, Exposure, Incarnation, Lsn, NodeId, NodeKind, ProcessStart,
    PromotionId, SystemId, Timeline,
};
use uuid::Uuid;

use super::*;
use crate::OnSoleSurvivor;

mod config_history;
mod dial;
mod recovery;
mod switchover;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const W: NodeId = NodeId(3);

struct Bench {
    state: ClusterState,
    index: u64,
    promotions: u128,
}

fn member(name: &str, kind: NodeKind) -> Member {
    Member {
        name: name.parse().unwrap(),
        site: name.parse().unwrap(),
        kind,
        address: format!("{name}:7400"),
        incarnation: Incarnation(Uuid::from_u128(1)),
    }
}

impl Bench {
    /// Founded, A promoted and running from process start 1, B in the set.
    fn protected(mode: DurabilityMode) -> Bench {
        let mut bench = Bench { state: ClusterState::default(), index: 0, promotions: 0 };
        let config = ClusterConfig { mode, ..ClusterConfig::default() };
        bench.accept(Command::Found {
            cluster: ClusterId(Uuid::from_u128(7)),
            members: vec![
                (A, member("north", NodeKind::Data)),
                (B, member("south", NodeKind::Data)),
                (W, member("witness", NodeKind::Witness)),
            ],
            config,
            initial_active: A,
        });
        bench.promote(A, PromoteCause::Bootstrap, Timeline::FIRST, None);
        bench.promoted(A, None);
        let renew = bench.renew(A, 1, 1);
        bench.accept(renew);
        let add = bench.sync_add(B);
        bench.accept(add);
        bench
    }

    fn apply(&mut self, command: &Command) -> Outcome {
        self.index += 1;
        self.state.apply(self.index, command)
    }

    fn accept(&mut self, command: Command) {
        let outcome = self.apply(&command);
        assert!(outcome.is_accepted(), "{command:?} was {outcome:?}");
    }

    fn reject(&mut self, command: Command) -> Rejection {
        let before = self.state.clone();
        match self.apply(&command) {
            Outcome::Rejected(rejection) => {
                assert_eq!(self.state, before, "a rejected command changed the state");
                rejection
            }
            Outcome::Accepted { .. } => panic!("{command:?} was accepted"),
        }
    }

    fn proof(&self, node: NodeId, process: u64) -> HolderProof {
        HolderProof { epoch: self.state.epoch, node, process: ProcessStart(process) }
    }

    fn renew(&self, node: NodeId, process: u64, seq: u64) -> Command {
        let published = Published {
            flush_lsn: Lsn(1000),
            credit: Lsn(5000),
            exposure: Exposure::NONE,
            survives: Some(Survival { lsn: Lsn(900), oldest_age: Duration::ZERO }),
            durable: [(B, Lsn(900))].into(),
            measured: None,
        };
        let by = self.proof(node, process);
        Command::Renew { by, seq, ttl: Duration::from_secs(3), published }
    }

    fn sync_add(&self, node: NodeId) -> Command {
        let generation = self.state.durability.generation;
        Command::SyncAdd { by: self.proof(A, 1), generation, node, copies: 0, at: Lsn(900) }
    }

    fn promote_command(
        &mut self,
        to: NodeId,
        cause: PromoteCause,
        timeline: Timeline,
        durable: Option<u64>,
    ) -> Command {
        self.promotions += 1;
        Command::Promote {
            to,
            epoch: self.state.epoch.next(),
            promotion: PromotionId(Uuid::from_u128(self.promotions)),
            timeline,
            cause,
            expect: self.state.expect(),
            durable_lsn: durable.map(Lsn),
            system_id: Some(SystemId(42)),
        }
    }

    fn promote(
        &mut self,
        to: NodeId,
        cause: PromoteCause,
        timeline: Timeline,
        durable: Option<u64>,
    ) {
        let command = self.promote_command(to, cause, timeline, durable);
        self.accept(command);
    }

    fn promoted(&mut self, node: NodeId, fork: Option<u64>) {
        let command = self.promoted_command(node, fork);
        self.accept(command);
    }

    fn promoted_command(&self, node: NodeId, fork: Option<u64>) -> Command {
        let Phase::Promoting(promoting) = &self.state.phase else { panic!("nobody is promoted") };
        Command::Promoted {
            epoch: self.state.epoch,
            node,
            promotion: promoting.promotion,
            timeline: promoting.timeline,
            fork_lsn: fork.map(Lsn),
            at_unix_us: 1,
        }
    }
}

fn tli(number: u32) -> Timeline {
    Timeline::new(number).unwrap()
}

#[test]
fn a_renewal_between_the_look_and_the_promotion_defeats_the_promotion() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let late = bench.promote_command(B, PromoteCause::LeaseOver, tli(2), Some(900));
    let renew = bench.renew(A, 1, 2);
    bench.accept(renew);
    assert_eq!(bench.reject(late), Rejection::Seq { expected: 1, current: 2 });
}

#[test]
fn a_renewal_takes_no_position_back_that_this_epoch_has_published() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    let published = |bench: &Bench| bench.state.holder.clone().unwrap().published.unwrap();
    let lower = |command: Command| match command {
        Command::Renew { by, seq, ttl, published } => {
            let (flush_lsn, credit) = (Lsn(400), Lsn(500));
            let published = Published { flush_lsn, credit, durable: [].into(), ..published };
            Command::Renew { by, seq, ttl, published }
        }
        other => panic!("{other:?}"),
    };
    // Sent before what was published or joined was known at the holder.
    let before = published(&bench);
    let late = lower(bench.renew(A, 1, 2));
    bench.accept(late);
    let after = published(&bench);
    assert_eq!((after.flush_lsn, after.credit), (before.flush_lsn, before.credit));
    assert_eq!(after.durable, [(B, Lsn(900))].into());
    assert_eq!(bench.state.known_durable(B), Lsn(900));
    // The next holder's positions are its own.
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    let first = lower(bench.renew(B, 1, 1));
    bench.accept(first);
    assert_eq!(published(&bench).credit, Lsn(500));
}

#[test]
fn a_renewal_after_the_promotion_grants_nothing() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let late = bench.renew(A, 1, 2);
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    assert!(matches!(bench.reject(late), Rejection::Epoch { .. }));
}

#[test]
fn a_join_meant_for_an_older_generation_is_rejected() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let generation = bench.state.durability.generation;
    let by = bench.proof(A, 1);
    let remove = Command::SyncRemove { by, generation, node: B, copies: 0 };
    bench.accept(remove.clone());
    let duplicate = Command::SyncAdd { by, generation, node: B, copies: 0, at: Lsn(1) };
    assert!(matches!(bench.reject(duplicate), Rejection::Generation { .. }));
    assert!(matches!(bench.reject(remove), Rejection::Generation { .. }));
}

#[test]
fn a_command_that_outlives_its_process_is_rejected() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let old_renewal = bench.renew(A, 1, 3);
    let old_release =
        Command::Release { by: bench.proof(A, 1), seq: 2, cause: ReleaseCause::Fenced };
    let fresh = bench.renew(A, 2, 2);
    bench.accept(fresh);
    assert!(matches!(bench.reject(old_renewal), Rejection::Process { .. }));
    assert!(matches!(bench.reject(old_release), Rejection::Process { .. }));
}

#[test]
fn nothing_is_renewed_after_a_release_and_the_release_names_the_last_renewal() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let by = bench.proof(A, 1);
    let early = Command::Release { by, seq: 0, cause: ReleaseCause::Fenced };
    assert!(matches!(bench.reject(early), Rejection::Seq { .. }));
    bench.accept(Command::Release { by, seq: 1, cause: ReleaseCause::Fenced });
    let renew = bench.renew(A, 1, 2);
    assert_eq!(bench.reject(renew), Rejection::Released);
    bench.promote(B, PromoteCause::Released, tli(2), Some(900));
}

#[test]
fn a_candidate_that_lost_wal_it_once_had_is_not_promoted() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let command = bench.promote_command(B, PromoteCause::LeaseOver, tli(2), Some(899));
    let expected = Rejection::NotEligible { node: B, why: Ineligible::LostWal };
    assert_eq!(bench.reject(command), expected);
}

#[test]
fn a_node_that_left_the_set_or_is_marked_is_not_promoted() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    bench.accept(Command::SetMark { node: B, mark: Mark::Suspect("test".to_owned()) });
    let command = bench.promote_command(B, PromoteCause::LeaseOver, tli(2), Some(900));
    assert!(matches!(bench.reject(command), Rejection::NotEligible { .. }));
    assert!(bench.state.durability.waited.contains(&B), "the gate's set stays");

    let mut bench = Bench::protected(DurabilityMode::Bounded);
    let generation = bench.state.durability.generation;
    let by = bench.proof(A, 1);
    bench.accept(Command::SyncRemove { by, generation, node: B, copies: 0 });
    let command = bench.promote_command(B, PromoteCause::LeaseOver, tli(2), Some(900));
    let expected = Rejection::NotEligible { node: B, why: Ineligible::Lifted };
    assert_eq!(bench.reject(command), expected);
}

#[test]
fn a_suspicion_of_a_candidate_ends_with_its_promotion_and_does_not_come_back() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    let suspect = Command::SetMark { node: B, mark: Mark::Suspect("test".to_owned()) };
    bench.accept(suspect.clone());
    bench.promoted(B, Some(900));
    assert!(bench.state.marks.is_empty());
    assert_eq!(bench.reject(suspect), Rejection::Phase, "committed late, for the second time");
}

#[test]
fn over_the_ceiling_nobody_is_promoted_by_itself() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    let Command::Renew { by, ttl, mut published, .. } = bench.renew(A, 1, 2) else { panic!() };
    let rpo = bench.state.config.rpo;
    published.exposure = Exposure { time: rpo - ttl + Duration::from_nanos(1), lost_wal_bytes: 1 };
    bench.accept(Command::Renew { by, seq: 2, ttl, published });
    let command = bench.promote_command(B, PromoteCause::LeaseOver, tli(2), Some(900));
    let rejection = bench.reject(command);
    let over =
        matches!(rejection, Rejection::NotEligible { why: Ineligible::OverCeiling { .. }, .. });
    assert!(over, "{rejection:?}");
}

#[test]
fn a_timeline_number_is_never_granted_twice() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let again = bench.promote_command(B, PromoteCause::LeaseOver, tli(1), Some(900));
    assert_eq!(bench.reject(again), Rejection::BadTimeline(tli(1)));
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    // The one that was granted to B and never reported is burned too.
    bench.promote(A, PromoteCause::Supersede, tli(1), None);
    bench.promoted(A, None);
    assert_eq!(bench.state.timeline_high, Some(tli(2)));
}

#[test]
fn whoever_resumes_goes_on_in_its_own_history() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let before = bench.state.history();
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    bench.promote(A, PromoteCause::Supersede, tli(1), None);
    bench.promoted(A, None);
    let after = bench.state.history();
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].promotion, before[0].promotion);
    assert_eq!(after[0].epoch, Epoch { incarnation: 0, number: 3 });
}

#[test]
fn candidate_and_superseder_exclude_each_other() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    let report = bench.promoted_command(B, Some(950));
    let supersede = bench.promote_command(A, PromoteCause::Supersede, tli(1), None);
    bench.accept(report.clone());
    assert_eq!(bench.reject(supersede), Rejection::Phase);

    let mut bench = Bench::protected(DurabilityMode::Zero);
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    let report = bench.promoted_command(B, Some(950));
    bench.promote(A, PromoteCause::Supersede, tli(1), None);
    assert!(matches!(bench.reject(report), Rejection::Epoch { .. }));
}

#[test]
fn a_new_epoch_begins_alone_and_says_so() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    bench.promoted(B, Some(950));
    assert!(bench.state.durability.eligible.is_empty() && bench.state.durability.lifted);

    let mut bench = Bench::protected(DurabilityMode::Zero);
    bench.state.config.on_sole_survivor = OnSoleSurvivor::Stall;
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    bench.promoted(B, Some(950));
    assert!(!bench.state.durability.lifted);
}

#[test]
fn an_ordered_failover_stops_renewals_until_it_has_ended() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let order = |epoch| Command::OrderFailover {
        to: B,
        epoch,
        caller: "person ada (operator)".to_owned(),
        reason: "patch".to_owned(),
        at_unix_us: 1,
    };
    let stale = order(Epoch::NONE);
    assert!(matches!(bench.reject(stale), Rejection::Epoch { .. }));
    let now = order(bench.state.epoch);
    bench.accept(now.clone());
    let operation = bench.index;
    assert!(matches!(bench.reject(now), Rejection::Busy(_)));
    let renew = bench.renew(A, 1, 2);
    assert_eq!(bench.reject(renew.clone()), Rejection::Released);
    bench.accept(Command::EndOrder { operation, why: "nobody".to_owned(), at_unix_us: 2 });
    bench.accept(renew);
    let status = &bench.state.operations[&operation].status;
    assert_eq!(*status, OperationStatus::Failed("nobody".to_owned()));
}

#[test]
fn whoever_takes_the_lease_back_during_an_order_can_renew_and_the_order_ends() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    bench.accept(Command::OrderFailover {
        to: B,
        epoch: bench.state.epoch,
        caller: "person ada (operator)".to_owned(),
        reason: "patch".to_owned(),
        at_unix_us: 1,
    });
    let operation = bench.index;
    let seq = bench.state.holder.as_ref().unwrap().seq;
    let by = bench.proof(A, 1);
    bench.accept(Command::Release { by, seq, cause: ReleaseCause::Fenced });
    bench.promote(B, PromoteCause::Released, tli(2), Some(900));
    bench.promote(A, PromoteCause::Supersede, tli(1), None);
    let renew = bench.renew(A, 1, 1);
    bench.accept(renew);
    bench.promoted(A, None);
    let status = &bench.state.operations[&operation].status;
    assert!(matches!(status, OperationStatus::Failed(_)), "{status:?}");
}

/// A command of some kind, right or wrong, from the state's point of view.
fn arbitrary(bench: &mut Bench, choice: u8, a: u64, b: u64) -> Command {
    let node = NodeId(a % 4);
    let by = HolderProof {
        epoch: Epoch { incarnation: 0, number: bench.state.epoch.number.saturating_sub(b % 2) },
        node,
        process: ProcessStart(b % 3),
    };
    let generation = bench.state.durability.generation.saturating_sub(b % 2);
    match choice % 17 {
        0 => bench.renew(node, b % 3, a % 20),
        1 => Command::SyncAdd { by, generation, node: NodeId(b % 4), copies: 0, at: Lsn(a) },
        2 => Command::SyncRemove { by, generation, node: NodeId(b % 4), copies: 0 },
        3 => Command::SetMark { node, mark: Mark::Dirty },
        4 => Command::ClearMark { by, node: NodeId(b % 4) },
        5 => bench.promote_command(
            node,
            if b.is_multiple_of(2) { PromoteCause::LeaseOver } else { PromoteCause::Supersede },
            tli((a % 6 + 1) as u32),
            Some(a),
        ),
        6 => Command::Release { by, seq: a % 20, cause: ReleaseCause::Fenced },
        7 => match &bench.state.phase {
            Phase::Promoting(promoting) => bench.promoted_command(promoting.to, Some(a)),
            Phase::Bootstrap | Phase::Running | Phase::Handover(_) => bench.renew(A, 1, a),
        },
        8 => switchover::order(bench, node),
        9 => Command::Handover { by, operation: switchover::under_way(bench) + b % 2 },
        10 => Command::Undo {
            by,
            operation: switchover::under_way(bench),
            why: "so".to_owned(),
            at_unix_us: 1,
        },
        11 => Command::Release { by, seq: a % 20, cause: ReleaseCause::CleanEnd(Lsn(a)) },
        12 => dial::set_dial(bench, dial::any_mode(a)),
        13 => dial::set_eff(bench, by, dial::any_mode(b)),
        14 => dial::accept(bench, node, LossLimit { age_max: None, bytes_max: Some(a) }),
        _ => bench.renew(A, 1, a % 20),
    }
}

proptest! {
    /// I1 and RULE 1, over any commands in any order: epochs and timelines only grow, eligible stays
    /// a subset of waited-for, a rejected command changes nothing, equal logs make equal states (I23).
    #[test]
    fn whatever_is_proposed_the_rules_hold(
        steps in prop::collection::vec((any::<u8>(), 0u64..2000, 0u64..6), 1..120)
    ) {
        let mut bench = Bench::protected(DurabilityMode::Zero);
        let mut replayed = bench.state.clone();
        for (choice, a, b) in steps {
            let command = arbitrary(&mut bench, choice, a, b);
            let before = bench.state.clone();
            let accepted = bench.apply(&command).is_accepted();
            let after = &bench.state;
            prop_assert!(accepted || *after == before);
            prop_assert!(after.epoch >= before.epoch);
            prop_assert!(after.timeline_high >= before.timeline_high);
            prop_assert!(after.durability.generation >= before.durability.generation);
            prop_assert!(after.durability.eligible.is_subset(&after.durability.waited));
            let holder = after.holder.as_ref().map(|holder| holder.node);
            prop_assert!(holder.is_none_or(|node| !after.durability.waited.contains(&node))
                || !after.is_held());
            // A handover has an operation, an operation that runs has an order, and an ended one none.
            let order = after.switchover.as_ref().map(|order| order.operation);
            prop_assert!(after.handover().is_none_or(|h| Some(h.operation) == order));
            for (id, operation) in &after.operations {
                if operation.kind == OperationKind::Switchover {
                    prop_assert_eq!(
                        operation.status == OperationStatus::Running,
                        order == Some(*id)
                    );
                }
            }
            let _ = replayed.apply(bench.index, &command);
        }
        prop_assert_eq!(replayed, bench.state);
    }
}
