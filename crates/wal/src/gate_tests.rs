//! Properties of the gate: what it must never release, and what it must not withhold.

use proptest::prelude::*;
use understudy_types::{Epoch, PermitSerial, PromotionId, Quorum};

use super::*;

const DEADLINE: BootInstant = BootInstant(1_000_000_000);

fn permit(mode: DurabilityMode) -> Permit {
    Permit {
        serial: PermitSerial(1),
        epoch: Epoch { incarnation: 0, number: 1 },
        promotion: PromotionId("7e0f7f0e-0000-4000-8000-000000000001".parse().unwrap()),
        deadline: DEADLINE,
        mode,
        waited_for: vec![NodeId(2)],
        quorums: Vec::new(),
        sole_survivor: false,
        credit: Lsn::MAX,
        exposure_max: None,
    }
}

fn receiver(node: u64, attached: bool, durable: u64) -> ReceiverPosition {
    let durable_lsn = Lsn(durable);
    let begin_lsn = Lsn::ZERO;
    ReceiverPosition { node: NodeId(node), attached, durable_lsn, replay_lsn: None, begin_lsn }
}

fn judge(
    now: u64,
    permit: &Permit,
    flush: u64,
    last: u64,
    receivers: &[ReceiverPosition],
) -> Release {
    let positions = GatePositions { flush_lsn: Lsn(flush), last_report: Lsn(last), receivers };
    release(BootInstant(now), permit, &positions, &ExposureTracker::new(BootInstant::ZERO))
}

#[test]
fn in_zero_nothing_passes_while_a_waited_for_node_is_detached() {
    let mut permit = permit(DurabilityMode::Zero);
    permit.waited_for = vec![NodeId(2), NodeId(3)];
    let receivers = [receiver(2, true, 500), receiver(3, false, 500)];
    let release = judge(0, &permit, 400, 100, &receivers);
    assert_eq!(release.upto, Lsn(100));
    let reason = GateReason::NotAttached { attached_count: 1, needed_count: 2 };
    assert_eq!(release.reason, reason);
    let receivers = [receiver(2, true, 500), receiver(3, true, 300)];
    let release = judge(0, &permit, 400, 100, &receivers);
    assert_eq!((release.upto, release.reason), (Lsn(300), GateReason::WaitingForDurable));
}

/// Of these nodes so many.
fn quorum(members: &[u64], needed: usize) -> Quorum {
    Quorum { members: members.iter().copied().map(NodeId).collect(), needed }
}

#[test]
fn in_zero_so_many_of_those_waited_for_suffice_as_the_quorum_says() {
    let mut permit = permit(DurabilityMode::Zero);
    permit.waited_for = vec![NodeId(2), NodeId(3), NodeId(4)];
    permit.quorums = vec![quorum(&[2, 3, 4], 2)];
    let receivers = [receiver(2, true, 200), receiver(3, true, 390), receiver(4, true, 300)];
    assert_eq!(judge(0, &permit, 400, 100, &receivers).upto, Lsn(300));
    // One that is detached does not count, however much it has.
    let receivers = [receiver(2, true, 200), receiver(3, false, 390), receiver(4, true, 300)];
    assert_eq!(judge(0, &permit, 400, 100, &receivers).upto, Lsn(200));
    let receivers = [receiver(2, false, 200), receiver(3, false, 390), receiver(4, true, 300)];
    let reason = GateReason::NotAttached { attached_count: 1, needed_count: 2 };
    assert_eq!(judge(0, &permit, 400, 100, &receivers).reason, reason);
}

#[test]
fn while_the_set_changes_both_quorums_have_to_be_met() {
    let mut permit = permit(DurabilityMode::Zero);
    permit.waited_for = vec![NodeId(2), NodeId(3)];
    permit.quorums = vec![quorum(&[2], 1), quorum(&[2, 3], 1)];
    let receivers = [receiver(2, true, 200), receiver(3, true, 390)];
    assert_eq!(judge(0, &permit, 400, 100, &receivers).upto, Lsn(200));
}

#[test]
fn in_zero_an_empty_set_needs_a_recorded_sole_survivor() {
    let mut permit = permit(DurabilityMode::Zero);
    permit.waited_for.clear();
    let bystander = [receiver(9, true, 400)];
    assert_eq!(judge(0, &permit, 400, 100, &bystander).reason, GateReason::NobodyWaitedFor);
    assert_eq!(judge(0, &permit, 400, 100, &bystander).upto, Lsn(100));
    permit.sole_survivor = true;
    assert_eq!(judge(0, &permit, 400, 100, &[]).upto, Lsn(400));
}

#[test]
fn in_bounded_an_empty_set_needs_a_recorded_sole_survivor_too() {
    let mut permit = permit(DurabilityMode::Bounded);
    permit.waited_for.clear();
    permit.exposure_max = Some(Duration::from_secs(10));
    let release = judge(0, &permit, 400, 100, &[]);
    assert_eq!((release.upto, release.reason), (Lsn(100), GateReason::NobodyWaitedFor));
    // Recorded: the ceiling is lifted, and commits go on.
    permit.exposure_max = None;
    permit.sole_survivor = true;
    assert_eq!(judge(0, &permit, 400, 100, &[]).upto, Lsn(400));
}

#[test]
fn in_bounded_the_ceiling_holds_and_the_way_to_it_is_slowed() {
    let ms = |value: u64| BootInstant(value * 1_000_000);
    let mut permit = permit(DurabilityMode::Bounded);
    permit.deadline = BootInstant::NEVER;
    permit.exposure_max = Some(Duration::from_secs(10));
    let receivers = [receiver(2, false, 100)];
    let mut tracker = ExposureTracker::new(ms(0));
    tracker.released(Lsn(100), ms(0));
    tracker.released(Lsn(200), ms(1000));
    let mut last_report = Lsn(200);
    let mut slowed = false;
    let mut flush = 200;
    for now in (1000..30_000).step_by(10) {
        flush += 10;
        let positions = GatePositions { flush_lsn: Lsn(flush), last_report, receivers: &receivers };
        let release = release(ms(now), &permit, &positions, &tracker);
        slowed |= release.reason == GateReason::Paced;
        if release.upto > last_report {
            assert!(now <= 11_000, "released at {now} ms, more than 10 s after the oldest");
            last_report = release.upto;
            tracker.released(last_report, ms(now));
        } else if now > 11_000 {
            assert!(matches!(release.reason, GateReason::ExposureAtCeiling { .. }));
        }
    }
    assert!(slowed, "the ceiling was reached at full speed");
    assert!(tracker.exposure(Lsn(100)).time <= Duration::from_secs(10));
    // Once the passive has it all, everything goes on at once.
    let caught_up = [receiver(2, true, last_report.0)];
    let positions = GatePositions { flush_lsn: Lsn(flush), last_report, receivers: &caught_up };
    assert_eq!(release(ms(40_000), &permit, &positions, &tracker).upto, Lsn(flush));
}

/// Writers that each wait for their commit before they write the next, and a passive that makes
/// `bytes_per_second` durable.
struct Load {
    writers: u64,
    commit_bytes: u64,
    think_ms: u64,
    bytes_per_second: u64,
}

/// Runs a load for twenty ceilings: the greatest exposure, and the longest time without a release.
fn settle(load: &Load, ceiling: Duration) -> (Duration, Duration) {
    let ms = |value: u64| BootInstant(value * 1_000_000);
    let mut permit = permit(DurabilityMode::Bounded);
    permit.deadline = BootInstant::NEVER;
    permit.exposure_max = Some(ceiling);
    let mut tracker = ExposureTracker::new(ms(0));
    tracker.released(Lsn(0), ms(0));
    let (mut flush, mut last, mut durable) = (0, 0, 0);
    let (mut released_at, mut writes_at) = (0, 0);
    let (mut worst, mut longest) = (Duration::ZERO, Duration::ZERO);
    for now in 0..(ceiling.as_millis() as u64 * 20) {
        if now == writes_at {
            flush += load.writers * load.commit_bytes;
        }
        durable = last.min(durable + load.bytes_per_second / 1000);
        let receivers = [receiver(2, true, durable)];
        let positions =
            GatePositions { flush_lsn: Lsn(flush), last_report: Lsn(last), receivers: &receivers };
        let release = release(ms(now), &permit, &positions, &tracker);
        if release.upto > Lsn(last) {
            last = release.upto.0;
            tracker.released(release.upto, ms(now));
            (released_at, writes_at) = (now, now + load.think_ms);
        }
        worst = worst.max(tracker.exposure(Lsn(durable)).time);
        longest = longest.max(Duration::from_millis(now - released_at));
    }
    (worst, longest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A passive that receives less than is written: exposure never passes the ceiling, and writers
    /// are slowed; if it receives two thirds, until it keeps up, so that commits go on evenly and
    /// the ceiling is never reached.
    #[test]
    fn writers_are_slowed_until_the_passive_keeps_up(
        writers in 1u64..200,
        commit_bytes in 200u64..20_000,
        think_ms in 1u64..20,
        share in 0.15f64..0.95,
        ceiling_s in 5u64..20,
    ) {
        let wanted = writers * commit_bytes * 1000 / (think_ms + 1);
        let bytes_per_second = (wanted as f64 * share) as u64;
        let load = Load { writers, commit_bytes, think_ms, bytes_per_second };
        let ceiling = Duration::from_secs(ceiling_s);
        let (worst, longest) = settle(&load, ceiling);
        let evenly = PACE_MAX + Duration::from_millis(think_ms + 1);
        prop_assert!(worst <= ceiling, "{worst:?} of {ceiling:?}");
        if share > 0.66 {
            prop_assert!(worst < ceiling.mul_f64(0.99), "{worst:?} of {ceiling:?}");
            prop_assert!(longest <= evenly, "{longest:?}");
        }
    }

    #[test]
    fn the_pace_is_free_below_a_quarter_and_never_decreases_towards_the_ceiling(
        ceiling_ms in 1000u64..7_200_000,
        a in 0.0f64..1.2,
        b in 0.0f64..1.2,
    ) {
        let ceiling = Duration::from_millis(ceiling_ms);
        let (low, high) = (ceiling.mul_f64(a.min(b)), ceiling.mul_f64(a.max(b)));
        prop_assert!(pace(low, ceiling) <= pace(high, ceiling));
        prop_assert!(pace(high, ceiling) <= PACE_MAX);
        prop_assert_eq!(pace(ceiling.mul_f64(a.min(0.249)), ceiling), Duration::ZERO);
        prop_assert_eq!(pace(ceiling, ceiling), PACE_MAX);
    }
}

#[test]
fn slowing_never_lets_more_pass_than_the_credit() {
    let mut permit = permit(DurabilityMode::Bounded);
    permit.deadline = BootInstant::NEVER;
    permit.exposure_max = Some(Duration::from_secs(10));
    permit.credit = Lsn(250);
    let mut tracker = ExposureTracker::new(BootInstant::ZERO);
    tracker.released(Lsn(200), BootInstant::ZERO);
    let receivers = [receiver(2, true, 100)];
    let positions =
        GatePositions { flush_lsn: Lsn(400), last_report: Lsn(200), receivers: &receivers };
    let at = |ms: u64| release(BootInstant(ms * 1_000_000), &permit, &positions, &tracker);
    assert_eq!((at(6_250).upto, at(6_250).reason), (Lsn(250), GateReason::CreditUsed));
    assert_eq!(at(6_250).delay, PACE_HALF_WAY);
    assert_eq!(at(2_400).delay, Duration::ZERO);
}

fn modes() -> impl Strategy<Value = DurabilityMode> {
    prop_oneof![
        Just(DurabilityMode::Zero),
        Just(DurabilityMode::Bounded),
        Just(DurabilityMode::BestEffort)
    ]
}

prop_compose! {
    fn situations()(
        mode in modes(),
        waited in proptest::collection::vec(1u64..6, 0..5),
        quorums in proptest::collection::vec(
            (proptest::collection::vec(1u64..6, 1..5), 0usize..6), 0..3),
        sole_survivor: bool,
        credit in 0u64..1000,
        exposure_max in proptest::option::of(0u64..500),
        receivers in proptest::collection::btree_map(1u64..6, (any::<bool>(), 0u64..1000), 0..5),
        now in 0u64..1_500_000_000,
        flush in 0u64..1000,
        last in 0u64..1000,
        released in proptest::collection::vec((0u64..1000, 0u64..1_000_000_000), 0..5),
    ) -> (Permit, Vec<ReceiverPosition>, u64, u64, u64, ExposureTracker) {
        let mut permit = permit(mode);
        permit.waited_for = waited.into_iter().map(NodeId).collect();
        permit.quorums = quorums.iter().map(|(members, k)| quorum(members, *k)).collect();
        permit.sole_survivor = sole_survivor;
        permit.credit = Lsn(credit);
        permit.exposure_max = exposure_max.map(Duration::from_millis);
        let receivers = receivers.into_iter().map(|(n, (a, d))| receiver(n, a, d)).collect();
        let mut tracker = ExposureTracker::new(BootInstant::ZERO);
        for (lsn, at) in released {
            tracker.released(Lsn(lsn), BootInstant(at));
        }
        (permit, receivers, now, flush, last, tracker)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_release_never_goes_back_and_never_beyond_what_was_promised(
        (permit, receivers, now, flush, last, tracker) in situations()
    ) {
        let positions =
            GatePositions { flush_lsn: Lsn(flush), last_report: Lsn(last), receivers: &receivers };
        let now = BootInstant(now);
        let release = release(now, &permit, &positions, &tracker);
        prop_assert!(release.upto >= Lsn(last));
        if release.upto == Lsn(last) {
            return Ok(());
        }
        // From here on something was released, so everything that forbids it must be absent.
        prop_assert!(now < permit.deadline);
        prop_assert!(release.upto <= Lsn(flush));
        prop_assert!(release.look_again.is_some_and(|at| at <= permit.deadline));
        match permit.mode {
            DurabilityMode::Zero if permit.waited_for.is_empty() => {
                prop_assert!(permit.sole_survivor);
            }
            DurabilityMode::Zero => {
                let everybody =
                    [Quorum { members: permit.waited_for.clone(), needed: permit.waited_for.len() }];
                let quorums = match permit.quorums.is_empty() {
                    true => &everybody[..],
                    false => &permit.quorums,
                };
                for quorum in quorums {
                    let have = receivers.iter().filter(|r| {
                        let counts = r.attached && quorum.members.contains(&r.node);
                        counts && r.durable_lsn >= release.upto
                    });
                    prop_assert!(have.count() >= quorum.needed_count());
                }
            }
            DurabilityMode::Bounded => {
                prop_assert!(release.upto <= permit.credit);
                let mut after = tracker.clone();
                after.released(release.upto, now);
                let surviving = surviving_lsn(Some(&permit), &receivers);
                if let Some(ceiling) = permit.exposure_max {
                    let before = tracker.exposure(surviving).time;
                    prop_assert!(after.exposure(surviving).time <= ceiling.max(before));
                }
            }
            DurabilityMode::BestEffort => prop_assert!(release.upto <= permit.credit),
        }
    }

    #[test]
    fn everything_durable_everywhere_is_released_at_once(
        (mut permit, _, _, flush, last, _) in situations()
    ) {
        permit.waited_for.sort();
        permit.waited_for.dedup();
        permit.quorums.clear();
        permit.credit = Lsn(flush);
        let receivers: Vec<_> =
            permit.waited_for.iter().map(|node| receiver(node.0, true, flush)).collect();
        if permit.mode == DurabilityMode::Zero && receivers.is_empty() {
            permit.sole_survivor = true;
        }
        permit.exposure_max = None;
        let release = judge(0, &permit, flush, last, &receivers);
        prop_assert_eq!(release.upto, Lsn(flush.max(last)));
    }
}
