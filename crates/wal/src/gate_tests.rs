//! Properties of the gate: what it must never release, and what it must not withhold.

use proptest::prelude::*;
use understudy_types::{Epoch, PermitSerial, PromotionId};

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
        quorum: 1,
        sole_survivor: false,
        credit: Lsn::MAX,
        exposure_max: None,
    }
}

fn receiver(node: u64, attached: bool, durable: u64) -> ReceiverPosition {
    ReceiverPosition { node: NodeId(node), attached, durable_lsn: Lsn(durable), replay_lsn: None }
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
    permit.quorum = 2;
    let receivers = [receiver(2, true, 500), receiver(3, false, 500)];
    let release = judge(0, &permit, 400, 100, &receivers);
    assert_eq!(release.upto, Lsn(100));
    let reason = GateReason::NotAttached { attached_count: 1, needed_count: 2 };
    assert_eq!(release.reason, reason);
    let receivers = [receiver(2, true, 500), receiver(3, true, 300)];
    let release = judge(0, &permit, 400, 100, &receivers);
    assert_eq!((release.upto, release.reason), (Lsn(300), GateReason::WaitingForDurable));
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
        quorum in 0usize..6,
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
        permit.quorum = quorum;
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
                let needed = if permit.quorum == 0 { permit.waited_for.len() } else { permit.quorum };
                let have = receivers.iter().filter(|r| {
                    r.attached && r.durable_lsn >= release.upto && permit.waited_for.contains(&r.node)
                });
                prop_assert!(have.count() >= needed);
            }
            DurabilityMode::Bounded => {
                prop_assert!(release.upto <= permit.credit);
                let mut after = tracker.clone();
                after.released(release.upto, now);
                let surviving = surviving_lsn(&permit.waited_for, &receivers);
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
        permit.quorum = permit.waited_for.len();
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
