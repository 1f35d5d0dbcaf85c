//! A sole survivor's first state, and the way back: what is carried over, what is not, and who is let in.

use std::collections::BTreeSet;

use understudy_types::ClusterIncarnation;

use super::*;
use crate::state::{CannotRecover, LossLimit, OperationKind, RecoveryOrder};

const INDEX: u64 = 500;

fn order(survivor: NodeId, name: &str) -> RecoveryOrder {
    let from = ClusterIncarnation::FOUNDED;
    RecoveryOrder {
        from,
        incarnation: from.next(Uuid::from_u128(99)),
        survivor,
        member: member(name, NodeKind::Data),
        promotion: PromotionId(Uuid::from_u128(77)),
        loss: LossBound::NONE,
        accepted: LossLimit { age_max: None, bytes_max: None },
        caller: "root".to_owned(),
        reason: "storm".to_owned(),
        at_unix_us: 9,
        index: INDEX,
    }
}

fn new_number(old: NodeId) -> NodeId {
    NodeId(1000 + old.0)
}

fn recovered(bench: &Bench, survivor: NodeId, name: &str) -> Bench {
    let state = bench.state.recovered(&order(survivor, name)).unwrap();
    Bench { state, index: INDEX, promotions: 1000 }
}

/// The survivor has reported its promotion.
fn serving(bench: &Bench) -> Bench {
    let mut bench = recovered(bench, B, "south");
    let Phase::Promoting(promoting) = bench.state.phase.clone() else { panic!("it is granted") };
    bench.accept(Command::Promoted {
        epoch: bench.state.epoch,
        node: promoting.to,
        promotion: promoting.promotion,
        timeline: promoting.timeline,
        fork_lsn: Some(Lsn(5)),
        at_unix_us: 10,
    });
    bench
}

fn admit(node: NodeId, name: &str) -> Command {
    Command::AdmitMember { node, member: member(name, NodeKind::Data) }
}

#[test]
fn a_passive_is_granted_an_epoch_and_a_timeline_above_every_old_one() {
    let old = Bench::protected(DurabilityMode::Zero);
    let new = recovered(&old, B, "south").state;
    assert!(new.epoch > old.state.epoch);
    assert!(new.epoch > Epoch { number: u64::MAX, ..old.state.epoch });
    let Phase::Promoting(promoting) = &new.phase else { panic!("it is granted at once") };
    assert_eq!(promoting.to, new_number(B));
    assert!(!promoting.resumes);
    let high = old.state.timeline_high.unwrap();
    assert!(promoting.timeline.get() > high.get() + 10, "{}", promoting.timeline);
    assert_eq!(new.timeline_high, Some(promoting.timeline));
}

#[test]
fn the_last_active_goes_on_with_its_own_timeline() {
    let old = Bench::protected(DurabilityMode::Zero);
    let new = recovered(&old, A, "north").state;
    let Phase::Promoting(promoting) = &new.phase else { panic!("it is granted at once") };
    assert!(promoting.resumes);
    assert_eq!(Some(promoting.timeline), old.state.timeline_high);
    assert_eq!(new.last_granted().unwrap().1.node, new_number(A));
}

#[test]
fn a_promotion_that_was_under_way_to_the_survivor_keeps_its_timeline() {
    let mut old = Bench::protected(DurabilityMode::Zero);
    old.promote(B, PromoteCause::LeaseOver, Timeline::FIRST.next(), Some(1000));
    let new = recovered(&old, B, "south").state;
    let (Phase::Promoting(before), Phase::Promoting(after)) = (&old.state.phase, &new.phase) else {
        panic!("both are promoting")
    };
    assert_eq!((before.promotion, before.timeline), (after.promotion, after.timeline));
    assert_eq!(after.to, new_number(B));
}

#[test]
fn history_and_record_are_carried_over_and_members_and_sets_are_not() {
    let mut old = Bench::protected(DurabilityMode::Zero);
    old.accept(Command::Pause {
        until_unix_us: 100,
        caller: "ada".to_owned(),
        reason: "work".to_owned(),
        at_unix_us: 1,
    });
    let new = recovered(&old, B, "south").state;
    assert_eq!(new.history(), old.state.history());
    assert_eq!(new.config, old.state.config);
    assert!(new.config_version > old.state.config_version);
    assert_eq!(new.members.keys().copied().collect::<Vec<_>>(), [new_number(B)]);
    assert!(new.durability.waited.is_empty() && new.durability.eligible.is_empty());
    assert!(new.durability.lifted);
    assert!(new.pause.is_none() && new.marks.is_empty());
    let kinds: Vec<_> = new.operations.values().map(|o| (o.kind, o.status.clone())).collect();
    assert!(matches!(kinds[0], (OperationKind::Pause, OperationStatus::Failed(_))), "{kinds:?}");
    assert_eq!(kinds[1], (OperationKind::Recover, OperationStatus::Done));
    assert_eq!(new.operations[&INDEX].reason, "storm");
}

#[test]
fn a_survivor_alone_opens_whatever_the_policy_and_says_that_it_is_unprotected() {
    let mut old = Bench::protected(DurabilityMode::Zero);
    old.state.config.on_sole_survivor = crate::OnSoleSurvivor::Stall;
    let new = serving(&old).state;
    assert_eq!(new.phase, Phase::Running);
    assert_eq!(new.durability.mode, DurabilityMode::Zero);
    assert!(new.durability.lifted, "there is nobody to wait for");
    assert_eq!(new.last_granted().unwrap().1.parent, Some(old.state.epoch));
}

#[test]
fn old_members_commands_have_no_effect_in_the_new_incarnation() {
    let old = Bench::protected(DurabilityMode::Zero);
    let mut new = serving(&old);
    for command in [
        old.renew(A, 1, 2),
        old.sync_add(B),
        Command::SetMark { node: A, mark: Mark::Dirty },
        Command::Release {
            by: HolderProof { epoch: old.state.epoch, node: A, process: ProcessStart(1) },
            seq: 1,
            cause: ReleaseCause::Fenced,
        },
    ] {
        let before = new.state.clone();
        let outcome = new.state.apply(600, &command);
        assert!(!outcome.is_accepted(), "{command:?}");
        assert_eq!(new.state, before);
    }
}

#[test]
fn what_was_never_active_cannot_be_recovered() {
    let empty = ClusterState::default();
    assert_eq!(empty.recovered(&order(A, "north")), Err(CannotRecover::NeverActive));
}

#[test]
fn a_number_without_room_for_the_next_incarnation_is_refused() {
    let mut old = Bench::protected(DurabilityMode::Zero);
    for granted in old.state.lineage.values_mut() {
        granted.node = NodeId(1000);
    }
    assert_eq!(old.state.recovered(&order(B, "south")), Err(CannotRecover::Number(NodeId(1000))));
}

#[test]
fn only_a_recovered_cluster_that_serves_admits_and_only_new_numbers() {
    let mut founded = Bench::protected(DurabilityMode::Zero);
    assert!(!founded.state.apply(9, &admit(NodeId(9), "east")).is_accepted());
    let mut promoting = recovered(&founded, B, "south");
    assert!(!promoting.state.apply(501, &admit(new_number(A), "north")).is_accepted());

    let mut new = serving(&founded);
    assert!(!new.state.apply(600, &admit(A, "north")).is_accepted(), "an old number");
    assert!(!new.state.apply(600, &admit(new_number(A), "south")).is_accepted(), "a name twice");
    new.accept(admit(new_number(A), "north"));
    let again = new.state.apply(602, &admit(new_number(A), "north"));
    assert_eq!(again, Outcome::Rejected(Rejection::NoChange));
    let Command::AdmitMember { node, mut member } = admit(new_number(A), "north") else { panic!() };
    member.incarnation = Incarnation(Uuid::from_u128(2));
    assert!(!new.state.apply(603, &Command::AdmitMember { node, member }).is_accepted());
}

#[test]
fn without_votes_of_others_no_failover_is_promised() {
    let mut new = serving(&Bench::protected(DurabilityMode::Zero));
    assert!(!new.state.can_elect_without_holder());
    new.accept(admit(new_number(A), "north"));
    new.accept(Command::AdmitMember {
        node: new_number(W),
        member: member("witness", NodeKind::Witness),
    });
    assert!(!new.state.can_elect_without_holder(), "they follow, but have no vote");
    let strangers = BTreeSet::from([NodeId(7)]);
    assert!(!new.state.apply(700, &Command::SetVoters { voters: strangers }).is_accepted());
    new.accept(Command::SetVoters { voters: [A, B, W].map(new_number).into() });
    assert!(new.state.can_elect_without_holder());
}
