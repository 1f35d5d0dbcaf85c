//! The dial, the loss that an operator accepts, and the fast policy: each refusal, and what is kept.

use understudy_types::Survival;

use super::*;
use crate::OnPassiveLoss;

pub(super) fn any_mode(number: u64) -> DurabilityMode {
    [DurabilityMode::BestEffort, DurabilityMode::Bounded, DurabilityMode::Zero]
        [(number % 3) as usize]
}

pub(super) fn set_dial(bench: &Bench, mode: DurabilityMode) -> Command {
    Command::SetDial {
        dial: Dial { mode, ..Dial::of(&bench.state.config) },
        epoch: bench.state.epoch,
        config_version: bench.state.config_version,
        caller: "person ada (operator)".to_owned(),
        reason: "test".to_owned(),
        at_unix_us: 5,
    }
}

pub(super) fn set_eff(bench: &Bench, by: HolderProof, mode: DurabilityMode) -> Command {
    let generation = bench.state.durability.generation;
    let config_version = bench.state.config_version;
    Command::SetEff { by, generation, config_version, mode, at_unix_us: 6 }
}

pub(super) fn accept(bench: &Bench, to: NodeId, limit: LossLimit) -> Command {
    let (caller, reason) = ("person ada (operator)".to_owned(), "test".to_owned());
    Command::AcceptLoss { to, epoch: bench.state.epoch, limit, caller, reason, at_unix_us: 7 }
}

fn up_to(seconds: u64) -> LossLimit {
    LossLimit { age_max: Some(Duration::from_secs(seconds)), bytes_max: None }
}

/// B left the set; since then commits of `age` went on, and B has 100 bytes less.
fn unprotected(age: Duration) -> Bench {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    let (by, generation) = (bench.proof(A, 1), bench.state.durability.generation);
    bench.accept(Command::SyncRemove { by, generation, node: B, copies: 0 });
    renew_with(&mut bench, |published| {
        published.exposure = Exposure { time: age, lost_wal_bytes: 100 };
        published.survives = Some(Survival { lsn: Lsn(900), oldest_age: age });
    });
    bench
}

fn renew_with(bench: &mut Bench, change: impl FnOnce(&mut Published)) {
    let seq = bench.state.holder.as_ref().unwrap().seq + 1;
    let Command::Renew { by, ttl, mut published, .. } = bench.renew(A, 1, seq) else { panic!() };
    change(&mut published);
    bench.accept(Command::Renew { by, seq, ttl, published });
}

fn status_of(bench: &Bench, operation: u64) -> &OperationStatus {
    &bench.state.operations[&operation].status
}

#[test]
fn an_operator_writes_what_is_wanted_and_only_the_holder_brings_it_in_force() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    let generation = bench.state.durability.generation;
    let order = set_dial(&bench, DurabilityMode::Zero);
    bench.accept(order);
    let operation = bench.index;
    assert_eq!(bench.state.config.mode, DurabilityMode::Zero);
    assert_eq!(bench.state.durability.mode, DurabilityMode::Bounded);
    assert_eq!(bench.state.durability.generation, generation);
    assert_eq!(*status_of(&bench, operation), OperationStatus::Running);
    let what = bench.state.operations[&operation].what.clone().unwrap();
    assert!(what.starts_with("zero"), "{what}");

    let eff = set_eff(&bench, bench.proof(A, 1), DurabilityMode::Zero);
    bench.accept(eff);
    assert_eq!(bench.state.durability.mode, DurabilityMode::Zero);
    assert_eq!(bench.state.durability.generation, generation + 1);
    assert_eq!(*status_of(&bench, operation), OperationStatus::Done);
}

#[test]
fn a_dial_meant_for_another_epoch_or_configuration_is_refused() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    let late = set_dial(&bench, DurabilityMode::Zero);
    let first = set_dial(&bench, DurabilityMode::BestEffort);
    bench.accept(first);
    assert!(matches!(bench.reject(late), Rejection::ConfigVersion { .. }));
    let same = set_dial(&bench, DurabilityMode::BestEffort);
    assert_eq!(bench.reject(same), Rejection::NoChange);
    let Command::SetDial { dial, config_version, caller, reason, at_unix_us, .. } =
        set_dial(&bench, DurabilityMode::Zero)
    else {
        panic!()
    };
    let epoch = Epoch::NONE;
    let other = Command::SetDial { dial, epoch, config_version, caller, reason, at_unix_us };
    assert!(matches!(bench.reject(other), Rejection::Epoch { .. }));
}

#[test]
fn a_ceiling_below_twice_the_ttl_is_refused_and_says_what_would_do() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    let Command::SetDial { mut dial, epoch, config_version, caller, reason, at_unix_us } =
        set_dial(&bench, DurabilityMode::Bounded)
    else {
        panic!()
    };
    dial.rpo = Duration::from_millis(5999);
    let order = Command::SetDial { dial, epoch, config_version, caller, reason, at_unix_us };
    let Rejection::BadDial(words) = bench.reject(order) else { panic!() };
    assert!(words.contains("6s"), "{words}");
}

#[test]
fn a_lower_ceiling_and_a_policy_hold_as_soon_as_they_are_recorded() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    renew_with(&mut bench, |published| published.exposure.time = Duration::from_secs(30));
    assert_eq!(bench.state.check_data(B, Some(Lsn(900))), Ok(()));
    let Command::SetDial { mut dial, epoch, config_version, caller, reason, at_unix_us } =
        set_dial(&bench, DurabilityMode::Bounded)
    else {
        panic!()
    };
    dial.rpo = Duration::from_secs(20);
    dial.on_passive_loss = OnPassiveLoss::Degrade;
    bench.accept(Command::SetDial { dial, epoch, config_version, caller, reason, at_unix_us });
    assert_eq!(*status_of(&bench, bench.index), OperationStatus::Done);
    let refused = bench.state.check_data(B, Some(Lsn(900)));
    assert!(matches!(refused, Err(Ineligible::OverCeiling { .. })), "{refused:?}");
}

#[test]
fn a_mode_is_recorded_only_for_the_generation_the_configuration_and_the_holder_it_was_meant_for() {
    let mut bench = Bench::protected(DurabilityMode::Bounded);
    let unwanted = set_eff(&bench, bench.proof(A, 1), DurabilityMode::Zero);
    assert_eq!(bench.reject(unwanted), Rejection::Mode(DurabilityMode::Bounded));
    let order = set_dial(&bench, DurabilityMode::Zero);
    bench.accept(order);
    let late = set_eff(&bench, bench.proof(A, 1), DurabilityMode::Zero);

    // The dial is turned back while the recording is under way: the gate has followed it already.
    let back = set_dial(&bench, DurabilityMode::Bounded);
    let turned = bench.index;
    bench.accept(back);
    assert!(matches!(status_of(&bench, turned), OperationStatus::Failed(_)));
    assert!(matches!(bench.reject(late), Rejection::ConfigVersion { .. }));
    assert_eq!(bench.state.durability.mode, DurabilityMode::Bounded);

    let again = set_dial(&bench, DurabilityMode::Zero);
    bench.accept(again);
    let eff = set_eff(&bench, bench.proof(A, 1), DurabilityMode::Zero);
    let foreign = set_eff(&bench, bench.proof(B, 1), DurabilityMode::Zero);
    assert_eq!(bench.reject(foreign), Rejection::NotHolder(B));
    let older = set_eff(&bench, bench.proof(A, 0), DurabilityMode::Zero);
    assert!(matches!(bench.reject(older), Rejection::Process { .. }));
    let (by, generation) = (bench.proof(A, 1), bench.state.durability.generation);
    bench.accept(Command::SyncRemove { by, generation, node: B, copies: 0 });
    let add = bench.sync_add(B);
    bench.accept(add);
    assert!(matches!(bench.reject(eff), Rejection::Generation { .. }));
}

#[test]
fn a_join_neither_strengthens_nor_weakens_the_mode() {
    for (before, wanted) in [
        (DurabilityMode::Bounded, DurabilityMode::Zero),
        (DurabilityMode::Zero, DurabilityMode::Bounded),
    ] {
        let mut bench = Bench::protected(before);
        let (by, generation) = (bench.proof(A, 1), bench.state.durability.generation);
        bench.accept(Command::SyncRemove { by, generation, node: B, copies: 0 });
        // A join under the old mode is on its way when the dial is turned.
        let add = bench.sync_add(B);
        let order = set_dial(&bench, wanted);
        bench.accept(order);
        bench.accept(add);
        assert_eq!(bench.state.durability.mode, before);
        assert!(bench.state.durability.eligible.contains(&B));
    }
}

#[test]
fn a_new_epoch_begins_with_the_mode_that_is_wanted() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let order = set_dial(&bench, DurabilityMode::BestEffort);
    bench.accept(order);
    let operation = bench.index;
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    bench.promoted(B, Some(950));
    assert_eq!(bench.state.durability.mode, DurabilityMode::BestEffort);
    assert_eq!(*status_of(&bench, operation), OperationStatus::Done);
}

#[test]
fn a_turn_of_the_dial_between_the_look_and_the_promotion_defeats_the_promotion() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let late = bench.promote_command(B, PromoteCause::LeaseOver, tli(2), Some(900));
    let order = set_dial(&bench, DurabilityMode::Bounded);
    bench.accept(order);
    assert!(matches!(bench.reject(late), Rejection::ConfigVersion { .. }));
}

#[test]
fn in_best_effort_nobody_is_promoted_beyond_the_operators_limit() {
    let mut bench = Bench::protected(DurabilityMode::BestEffort);
    let limit = bench.state.config.rpo;
    let ttl = Duration::from_secs(3);
    let set = |age| {
        move |published: &mut Published| {
            published.survives = Some(Survival { lsn: Lsn(900), oldest_age: age });
        }
    };
    renew_with(&mut bench, set(limit - ttl));
    assert_eq!(bench.state.check_data(B, Some(Lsn(900))), Ok(()));
    renew_with(&mut bench, set(limit - ttl + Duration::from_nanos(1)));
    let refused = bench.state.check_data(B, Some(Lsn(900)));
    assert!(matches!(refused, Err(Ineligible::OverLimit(_))), "{refused:?}");
    // What is not known is not small.
    renew_with(&mut bench, |published| published.survives = None);
    let refused = bench.state.check_data(B, Some(Lsn(900)));
    let Err(Ineligible::OverLimit(loss)) = refused else { panic!("{refused:?}") };
    assert_eq!(loss.time_max, None);
}

#[test]
fn an_accepted_loss_promotes_once_records_what_may_be_lost_and_is_used_up() {
    let mut bench = unprotected(Duration::from_secs(20));
    let refused = bench.promote_command(B, PromoteCause::LeaseOver, tli(2), Some(900));
    let rejection = bench.reject(refused);
    assert_eq!(rejection, Rejection::NotEligible { node: B, why: Ineligible::Lifted });

    let order = accept(&bench, B, up_to(23));
    bench.accept(order);
    let operation = bench.index;
    // From here on the holder's lease is not prolonged.
    let renew = bench.renew(A, 1, 9);
    assert_eq!(bench.reject(renew), Rejection::Released);
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    assert_eq!(bench.state.order.as_ref().unwrap().accepts, None);
    bench.promoted(B, Some(900));
    assert_eq!(*status_of(&bench, operation), OperationStatus::Done);
    let loss = bench.state.current().unwrap().loss;
    let expected = LossBound { time_max: Some(Duration::from_secs(23)), wal_bytes_min: 100 };
    assert_eq!(loss, expected);
}

#[test]
fn an_acceptance_holds_for_its_epoch_its_node_and_its_figures_only() {
    let mut bench = unprotected(Duration::from_secs(20));
    let order = accept(&bench, B, up_to(22));
    let Rejection::NotEligible { why: Ineligible::LossNotAccepted { known, .. }, .. } =
        bench.reject(order)
    else {
        panic!()
    };
    assert_eq!(known.time_max, Some(Duration::from_secs(23)));
    let bytes = |max| LossLimit { age_max: None, bytes_max: Some(max) };
    let order = accept(&bench, B, bytes(99));
    assert!(matches!(bench.reject(order), Rejection::NotEligible { .. }));
    let Command::AcceptLoss { to, limit, caller, reason, at_unix_us, .. } =
        accept(&bench, B, bytes(100))
    else {
        panic!()
    };
    let epoch = Epoch::NONE;
    let other = Command::AcceptLoss { to, epoch, limit, caller, reason, at_unix_us };
    assert!(matches!(bench.reject(other), Rejection::Epoch { .. }));
    let witness = accept(&bench, W, bytes(100));
    assert_eq!(bench.reject(witness), Rejection::NotADataNode(W));
    let holder = accept(&bench, A, bytes(100));
    let expected = Rejection::NotEligible { node: A, why: Ineligible::IsHolder };
    assert_eq!(bench.reject(holder), expected);

    // More came to be missing between the acceptance and the grant: it is judged again.
    let order = accept(&bench, B, bytes(100));
    bench.accept(order);
    let again = accept(&bench, B, bytes(100));
    assert!(matches!(bench.reject(again), Rejection::Busy(_)));
    let less = bench.promote_command(B, PromoteCause::LeaseOver, tli(2), Some(899));
    let expected = Rejection::NotEligible { node: B, why: Ineligible::LostWal };
    assert_eq!(bench.reject(less), expected);
}

#[test]
fn an_acceptance_overrides_neither_a_mark_nor_a_running_lease() {
    let mut bench = unprotected(Duration::from_secs(20));
    let any = LossLimit { age_max: None, bytes_max: None };
    bench.accept(Command::SetMark { node: B, mark: Mark::Dirty });
    let order = accept(&bench, B, any);
    let rejection = bench.reject(order);
    let marked = matches!(&rejection, Rejection::NotEligible { why: Ineligible::Marked(_), .. });
    assert!(marked, "{rejection:?}");

    let mut bench = unprotected(Duration::from_secs(20));
    let order = accept(&bench, B, any);
    bench.accept(order);
    bench.accept(Command::SetMark { node: B, mark: Mark::Dirty });
    let promote = bench.promote_command(B, PromoteCause::LeaseOver, tli(2), Some(900));
    assert!(matches!(bench.reject(promote), Rejection::NotEligible { .. }));

    // Whether the lease is over is what the proposer's clock says; that it was released, and that
    // nothing was renewed since it looked, is checked as ever.
    let mut bench = unprotected(Duration::from_secs(20));
    let order = accept(&bench, B, any);
    bench.accept(order);
    let promote = bench.promote_command(B, PromoteCause::Released, tli(2), Some(900));
    let expected = Rejection::NotEligible { node: B, why: Ineligible::NotReleased };
    assert_eq!(bench.reject(promote), expected);
    let promote = bench.promote_command(B, PromoteCause::Sealed, tli(2), Some(900));
    let expected = Rejection::NotEligible { node: B, why: Ineligible::NotByPolicy };
    assert_eq!(bench.reject(promote), expected);
}

#[test]
fn an_unknown_loss_is_accepted_only_where_none_is_stated() {
    let mut bench = unprotected(Duration::from_secs(20));
    renew_with(&mut bench, |published| published.survives = None);
    let order = accept(&bench, B, up_to(u64::from(u32::MAX)));
    assert!(matches!(bench.reject(order), Rejection::NotEligible { .. }));
    let any = accept(&bench, B, LossLimit { age_max: None, bytes_max: None });
    bench.accept(any);
}

#[test]
fn in_zero_an_eligible_node_loses_nothing_and_after_a_clean_end_nobody_does() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    let Phase::Promoting(promoting) = &bench.state.phase else { panic!() };
    assert!(promoting.loss.is_none());

    let mut bench = Bench::protected(DurabilityMode::Bounded);
    assert_eq!(bench.state.loss_bound(B, Lsn(900)).wal_bytes_min, 100);
    let by = bench.proof(A, 1);
    bench.accept(Command::Release { by, seq: 1, cause: ReleaseCause::CleanEnd(Lsn(1000)) });
    assert!(bench.state.loss_bound(B, Lsn(1000)).is_none());
    assert!(!bench.state.loss_bound(B, Lsn(999)).is_none());
}

#[test]
fn an_order_that_was_granted_does_not_keep_the_old_holder_from_resuming() {
    let mut bench = unprotected(Duration::from_secs(20));
    let order = accept(&bench, B, up_to(60));
    bench.accept(order);
    let operation = bench.index;
    bench.promote(B, PromoteCause::LeaseOver, tli(2), Some(900));
    bench.promote(A, PromoteCause::Supersede, tli(1), None);
    let renew = bench.renew(A, 2, 1);
    bench.accept(renew);
    bench.promoted(A, None);
    assert!(bench.state.current().unwrap().loss.is_none());
    assert!(matches!(status_of(&bench, operation), OperationStatus::Failed(_)));
    // Nothing of the acceptance is left for the new epoch.
    assert_eq!(bench.state.order, None);
}

#[test]
fn a_promotion_on_a_seal_needs_the_policy_zero_in_force_and_an_eligible_node() {
    let mut bench = Bench::protected(DurabilityMode::Zero);
    let off = bench.promote_command(B, PromoteCause::Sealed, tli(2), Some(900));
    let expected = Rejection::NotEligible { node: B, why: Ineligible::NotByPolicy };
    assert_eq!(bench.reject(off), expected);
    bench.state.config.promote_without_lease_wait = true;

    // A removal that is accepted first defeats it by the generation; one that comes after it finds
    // another epoch.
    let late = bench.promote_command(B, PromoteCause::Sealed, tli(2), Some(900));
    let (by, generation) = (bench.proof(A, 1), bench.state.durability.generation);
    let remove = Command::SyncRemove { by, generation, node: B, copies: 0 };
    let mut removed = Bench { state: bench.state.clone(), index: bench.index, promotions: 50 };
    removed.accept(remove.clone());
    assert!(matches!(removed.reject(late.clone()), Rejection::Generation { .. }));
    let alone = removed.promote_command(B, PromoteCause::Sealed, tli(2), Some(900));
    assert_eq!(removed.reject(alone), expected);
    bench.accept(late);
    assert!(matches!(bench.reject(remove), Rejection::Epoch { .. }));

    let mut bench = Bench::protected(DurabilityMode::Bounded);
    bench.state.config.promote_without_lease_wait = true;
    let bounded = bench.promote_command(B, PromoteCause::Sealed, tli(2), Some(900));
    assert_eq!(bench.reject(bounded), expected);
    // Wanted is not in force.
    bench.state.config.mode = DurabilityMode::Zero;
    let wanted = bench.promote_command(B, PromoteCause::Sealed, tli(2), Some(900));
    assert_eq!(bench.reject(wanted), expected);
}
