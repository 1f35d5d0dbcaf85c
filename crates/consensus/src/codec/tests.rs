//! Every variant survives the way there and back; what is unknown or damaged is refused.

use std::collections::{BTreeMap, BTreeSet};

use understudy_core::state::{
    ConfigChange, Dial, Durability, Expect, FailoverOrder, Granted, Handover, Holder, HolderProof,
    Identity, Ineligible, LossBound, LossLimit, Mark, Measured, Member, NodeOrder, NodeVerb,
    Operation, OperationKind, OperationStatus, Pause, Phase, PhaseKey, PromoteCause, Promoting,
    Published, Recovery, Rejection, ReleaseCause, Scheduled, Switchover,
};
use understudy_core::{ClusterConfig, OnPassiveLoss, OnSoleSurvivor};
use understudy_types::{
    ClusterId, ClusterIncarnation, DurabilityMode, Epoch, Exposure, Incarnation, Lsn, NodeId,
    NodeKind, ProcessStart, PromotionId, Survival, SystemId, Timeline,
};

use super::*;

const EPOCH: Epoch = Epoch { incarnation: 1, number: u64::MAX };
const BY: HolderProof = HolderProof { epoch: EPOCH, node: NodeId(2), process: ProcessStart(9) };

fn promotion(n: u128) -> PromotionId {
    PromotionId(Uuid::from_u128(n))
}

fn timeline(n: u32) -> Timeline {
    Timeline::new(n).unwrap()
}

fn member(n: u128, kind: NodeKind) -> Member {
    Member {
        name: format!("node-{n}").parse().unwrap(),
        site: "south".parse().unwrap(),
        kind,
        address: format!("[::1]:{n}"),
        incarnation: Incarnation(Uuid::from_u128(u128::MAX - n)),
    }
}

fn published() -> Published {
    Published {
        flush_lsn: Lsn::MAX,
        credit: Lsn(1 << 40),
        exposure: Exposure { time: Duration::from_nanos(1_000_000_001), lost_wal_bytes: 3 },
        durable: BTreeMap::from([(NodeId(1), Lsn(5)), (NodeId(3), Lsn::ZERO)]),
        survives: Some(Survival { lsn: Lsn(4), oldest_age: Duration::from_nanos(7) }),
        measured: Some(Measured { by: NodeId(3), at_unix_us: -5 }),
    }
}

fn configs() -> Vec<ClusterConfig> {
    let config = |mode, on_passive_loss, on_sole_survivor| ClusterConfig {
        mode,
        rpo: Duration::new(7, 1),
        on_passive_loss,
        degrade_after: Duration::ZERO,
        on_sole_survivor,
        promote_without_lease_wait: mode == DurabilityMode::Zero,
        durable_copies: u32::from(mode == DurabilityMode::Bounded),
    };
    vec![
        config(DurabilityMode::Zero, OnPassiveLoss::Stall, OnSoleSurvivor::Open),
        config(DurabilityMode::Bounded, OnPassiveLoss::Degrade, OnSoleSurvivor::Stall),
        config(DurabilityMode::BestEffort, OnPassiveLoss::Stall, OnSoleSurvivor::Open),
    ]
}

fn limits() -> [LossLimit; 3] {
    let span = Duration::from_nanos(3_000_000_001);
    [
        LossLimit { age_max: None, bytes_max: None },
        LossLimit { age_max: Some(span), bytes_max: Some(0) },
        LossLimit { age_max: Some(Duration::ZERO), bytes_max: None },
    ]
}

fn losses() -> [LossBound; 2] {
    let span = Duration::from_nanos(3_000_000_001);
    [
        LossBound { time_max: Some(span), wal_bytes_min: u64::MAX },
        LossBound { time_max: None, wal_bytes_min: 0 },
    ]
}

fn promotes() -> Vec<Command> {
    let phases = [
        PhaseKey::Bootstrap,
        PhaseKey::Promoting(promotion(4)),
        PhaseKey::Running,
        PhaseKey::Handover(0),
    ];
    let causes = [
        PromoteCause::Bootstrap,
        PromoteCause::LeaseOver,
        PromoteCause::Released,
        PromoteCause::Supersede,
        PromoteCause::Sealed,
    ];
    let positions = [(None, None), (Some(Lsn::ZERO), Some(SystemId(u64::MAX)))];
    let mut commands = Vec::new();
    for phase in phases {
        for cause in causes {
            for (durable_lsn, system_id) in positions {
                commands.push(Command::Promote {
                    to: NodeId(3),
                    epoch: EPOCH,
                    promotion: promotion(5),
                    timeline: timeline(u32::MAX),
                    cause,
                    expect: Expect {
                        epoch: Epoch::NONE,
                        seq: 0,
                        generation: 3,
                        phase,
                        config_version: 4,
                    },
                    durable_lsn,
                    system_id,
                });
            }
        }
    }
    commands
}

fn holder_commands() -> Vec<Command> {
    let ttl = Duration::from_millis(3000);
    vec![
        Command::Renew { by: BY, seq: 1, ttl, published: published() },
        Command::Renew { by: BY, seq: 0, ttl: Duration::ZERO, published: Published::default() },
        Command::Release { by: BY, seq: 5, cause: ReleaseCause::Fenced },
        Command::Release { by: BY, seq: 5, cause: ReleaseCause::CleanEnd(Lsn::ZERO) },
        Command::SyncAdd { by: BY, generation: 8, node: NodeId(1), copies: 2, at: Lsn(77) },
        Command::SyncRemove { by: BY, generation: 8, node: NodeId(1), copies: 1 },
        Command::ClearMark { by: BY, node: NodeId(1) },
        Command::Handover { by: BY, operation: 0 },
        Command::Handover { by: BY, operation: u64::MAX },
        Command::Undo { by: BY, operation: 7, why: "zu spät".to_owned(), at_unix_us: -1 },
        Command::SetEff {
            by: BY,
            generation: 3,
            config_version: 4,
            mode: DurabilityMode::BestEffort,
            at_unix_us: -7,
        },
    ]
}

fn commands() -> Vec<Command> {
    let (reason, caller) = ("weil: ü\n".to_owned(), "ops/anna".to_owned());
    let mut commands = vec![
        Command::SetMark { node: NodeId(1), mark: Mark::Dirty },
        Command::SetMark { node: NodeId(1), mark: Mark::Suspect(String::new()) },
        Command::Promoted {
            epoch: EPOCH,
            node: NodeId(1),
            promotion: promotion(0),
            timeline: timeline(1),
            fork_lsn: Some(Lsn(1)),
            at_unix_us: i64::MIN,
        },
        Command::OrderFailover {
            to: NodeId(1),
            epoch: EPOCH,
            caller: caller.clone(),
            reason: reason.clone(),
            at_unix_us: -1,
        },
        Command::OrderSwitchover {
            to: NodeId(2),
            epoch: EPOCH,
            budget: Duration::from_secs(10),
            caller: caller.clone(),
            reason: reason.clone(),
            at_unix_us: 9,
        },
        Command::EndOrder { operation: 3, why: reason.clone(), at_unix_us: 0 },
        Command::Pause {
            until_unix_us: i64::MAX,
            caller: caller.clone(),
            reason: reason.clone(),
            at_unix_us: 1,
        },
        Command::AdmitMember { node: NodeId(1002), member: member(3, NodeKind::Data) },
        Command::SetVoters { voters: BTreeSet::from([NodeId(1001), NodeId(1002)]) },
        Command::Resume { caller: None, reason: String::new(), at_unix_us: 1 },
        Command::Resume { caller: Some(String::new()), reason, at_unix_us: 1 },
    ];
    for limit in limits() {
        let (caller, reason) = (String::new(), "storm".to_owned());
        let to = NodeId(1);
        commands.push(Command::AcceptLoss {
            to,
            epoch: EPOCH,
            limit,
            caller,
            reason,
            at_unix_us: 2,
        });
    }
    for config in configs() {
        commands.push(Command::SetDial {
            dial: Dial::of(&config),
            epoch: EPOCH,
            config_version: 9,
            caller: "c".to_owned(),
            reason: String::new(),
            at_unix_us: 3,
        });
        commands.push(Command::Found {
            cluster: ClusterId(Uuid::from_u128(1)),
            // A command's list keeps its own order.
            members: vec![
                (NodeId(2), member(2, NodeKind::Witness)),
                (NodeId(1), member(1, NodeKind::Data)),
            ],
            config,
            initial_active: NodeId(1),
        });
    }
    commands.extend(holder_commands());
    commands.extend(promotes());
    commands.extend(node_orders());
    commands
}

fn node_orders() -> Vec<Command> {
    let (caller, reason) = ("ada".to_owned(), "new settings".to_owned());
    let verbs = [NodeVerb::Restart, NodeVerb::Reload, NodeVerb::Reclone];
    let order = |verb| Command::OrderNode {
        node: NodeId(2),
        verb,
        epoch: EPOCH,
        accepts_waiting: verb == NodeVerb::Reclone,
        caller: caller.clone(),
        reason: reason.clone(),
        at_unix_us: 4,
    };
    let mut commands: Vec<Command> = verbs.into_iter().map(order).collect();
    let words = String::new();
    commands.extend([
        Command::BeginNodeOrder { operation: 7, node: NodeId(2), process: ProcessStart(5) },
        Command::EndNodeOrder { operation: 7, failed: true, words: reason.clone(), at_unix_us: 1 },
        Command::EndNodeOrder { operation: 7, failed: false, words, at_unix_us: 1 },
        Command::ScheduleSwitchover {
            to: NodeId(1),
            epoch: EPOCH,
            budget: Duration::from_secs(9),
            due_unix_us: i64::MAX,
            caller: caller.clone(),
            reason: reason.clone(),
            at_unix_us: -4,
        },
        Command::BeginScheduled { operation: 8, at_unix_us: 6 },
        Command::CancelScheduled { caller, reason, at_unix_us: 6 },
    ]);
    commands
}

fn rejections() -> Vec<Rejection> {
    let (expected, current) = (3, u64::MAX);
    let ceiling = Duration::from_nanos(5);
    let mut rejections = vec![
        Rejection::AlreadyFounded,
        Rejection::NotFounded,
        Rejection::NotADataNode(NodeId(4)),
        Rejection::BadFounding("two of a name".to_owned()),
        Rejection::Epoch { expected: Epoch::NONE, current: EPOCH },
        Rejection::Phase,
        Rejection::NotHolder(NodeId(4)),
        Rejection::Process { sent: ProcessStart(1), current: ProcessStart(2) },
        Rejection::Released,
        Rejection::Seq { expected, current },
        Rejection::Generation { expected, current },
        Rejection::ConfigVersion { expected, current },
        Rejection::OtherPromotion,
        Rejection::BadTimeline(timeline(3)),
        Rejection::Busy(12),
        Rejection::NoOperation,
        Rejection::NoChange,
        Rejection::BadDial("too low".to_owned()),
        Rejection::BadMember("a stranger".to_owned()),
        Rejection::Mode(DurabilityMode::Zero),
        Rejection::IsActive(NodeId(4)),
        Rejection::WouldStall(NodeId(4)),
    ];
    for why in [
        Ineligible::Marked("dirty".to_owned()),
        Ineligible::NotInSet,
        Ineligible::Lifted,
        Ineligible::OverCeiling { exposure: Duration::from_secs(4), ceiling },
        Ineligible::LostWal,
        Ineligible::IsHolder,
        Ineligible::NotReleased,
        Ineligible::NotByPolicy,
        Ineligible::OverLimit(losses()[0]),
        Ineligible::LossNotAccepted { known: losses()[1], accepted: limits()[1] },
    ] {
        rejections.push(Rejection::NotEligible { node: NodeId(1), why });
    }
    rejections
}

fn operations() -> BTreeMap<u64, Operation> {
    let kinds = [
        OperationKind::Failover,
        OperationKind::Pause,
        OperationKind::Resume,
        OperationKind::Switchover,
        OperationKind::SetDial,
        OperationKind::AcceptLoss,
        OperationKind::Recover,
        OperationKind::Restart,
        OperationKind::Reload,
        OperationKind::Reclone,
    ];
    let statuses = [
        (OperationStatus::Running, None),
        (OperationStatus::Done, Some(1)),
        (OperationStatus::Running, None),
        (OperationStatus::Done, Some(0)),
        (OperationStatus::Failed("it was \u{1f4a5}".to_owned()), Some(i64::MAX)),
        (OperationStatus::Running, None),
        (OperationStatus::Done, Some(7)),
        (OperationStatus::Running, None),
        (OperationStatus::Done, Some(8)),
        (OperationStatus::Cancelled("by ada".to_owned()), Some(9)),
    ];
    let operation = |(id, (kind, (status, ended_unix_us)))| {
        let (caller, reason) = ("c".to_owned(), "r".to_owned());
        let what = (id % 2 == 0).then(|| "zero".to_owned());
        let started_unix_us = -5;
        let report = (id % 3 == 0).then(|| "work_mem = 8MB".to_owned());
        let operation = Operation {
            kind,
            caller,
            reason,
            what,
            status,
            report,
            started_unix_us,
            ended_unix_us,
        };
        (id, operation)
    };
    (1..).zip(kinds.into_iter().zip(statuses)).map(operation).collect()
}

/// Everything that can be there is there.
fn full() -> ClusterState {
    let granted = |n: u32, parent, fork_lsn| Granted {
        node: NodeId(u64::from(n)),
        promotion: promotion(u128::from(n)),
        timeline: timeline(n),
        fork_lsn,
        parent,
        loss: losses()[n as usize % 2],
        at_unix_us: (n > 1).then_some(i64::from(n)),
    };
    let first = Epoch { incarnation: 0, number: 1 };
    ClusterState {
        identity: Some(Identity {
            cluster: ClusterId(Uuid::from_u128(1)),
            system_id: Some(SystemId(7)),
            initial_active: NodeId(1),
        }),
        members: BTreeMap::from([
            (NodeId(1), member(1, NodeKind::Data)),
            (NodeId(200), member(2, NodeKind::Witness)),
        ]),
        config: configs()[1],
        config_version: 3,
        epoch: EPOCH,
        phase: Phase::Running,
        holder: Some(Holder {
            node: NodeId(1),
            process: ProcessStart(4),
            seq: 9,
            ttl: Duration::from_secs(3),
            released: Some(ReleaseCause::CleanEnd(Lsn(6))),
            published: Some(published()),
        }),
        durability: Durability {
            mode: DurabilityMode::Zero,
            waited: BTreeSet::from([NodeId(1), NodeId(2)]),
            copies: 1,
            eligible: BTreeSet::from([NodeId(2)]),
            generation: 5,
            lifted: false,
        },
        lineage: BTreeMap::from([
            (first, granted(1, None, None)),
            (EPOCH, granted(2, Some(first), Some(Lsn(8)))),
        ]),
        timeline_high: Some(timeline(2)),
        marks: BTreeMap::from([
            (NodeId(2), Mark::Dirty),
            (NodeId(3), Mark::Suspect("fork".to_owned())),
        ]),
        pause: Some(Pause { until_unix_us: 5, operation: 6 }),
        order: Some(FailoverOrder { operation: 5, to: NodeId(2), accepts: Some(limits()[1]) }),
        switchover: Some(Switchover {
            operation: 6,
            to: NodeId(1),
            epoch: EPOCH,
            budget: Duration::from_secs(10),
            clean_end: Some(Lsn(99)),
        }),
        operations: operations(),
        recovery: Some(Recovery {
            incarnation: ClusterIncarnation::FOUNDED.next(Uuid::from_u128(5)),
            survivor: "south".to_owned(),
            from_epoch: first,
            caller: "root".to_owned(),
            reason: "storm".to_owned(),
            loss: losses()[1],
            accepted: limits()[0],
            at_unix_us: 8,
            voters: BTreeSet::from([NodeId(1001)]),
        }),
        node_orders: BTreeMap::from([
            (
                NodeId(1),
                NodeOrder {
                    operation: 8,
                    verb: NodeVerb::Restart,
                    epoch: first,
                    accepts_waiting: false,
                    begun: None,
                },
            ),
            (
                NodeId(2),
                NodeOrder {
                    operation: 9,
                    verb: NodeVerb::Reclone,
                    epoch: first,
                    accepts_waiting: true,
                    begun: Some(ProcessStart(3)),
                },
            ),
        ]),
        scheduled: Some(Scheduled {
            operation: 10,
            to: NodeId(2),
            budget: Duration::from_secs(5),
            due_unix_us: -1,
        }),
        config_history: config_history(),
    }
}

fn config_history() -> BTreeMap<u64, ConfigChange> {
    let dials: Vec<Dial> = configs().iter().map(Dial::of).collect();
    let change = |(version, pair): (u64, &[Dial])| {
        let change = ConfigChange {
            operation: version + 7,
            caller: "person ada (administrator)".to_owned(),
            reason: "weil: ü\n".to_owned(),
            at_unix_us: -3,
            before: pair[0],
            after: pair[1],
        };
        (version, change)
    };
    (2..).zip(dials.windows(2)).map(change).collect()
}

fn states() -> Vec<ClusterState> {
    let promoting = Phase::Promoting(Promoting {
        to: NodeId(2),
        promotion: promotion(8),
        timeline: timeline(9),
        cause: PromoteCause::Supersede,
        resumes: true,
        loss: losses()[0],
        others_to_seal: 1,
    });
    let mut bare_holder = full();
    bare_holder.holder =
        bare_holder.holder.map(|holder| Holder { released: None, published: None, ..holder });
    let handover =
        Phase::Handover(Handover { operation: 6, to: NodeId(1), budget: Duration::from_secs(1) });
    vec![
        ClusterState::default(),
        full(),
        ClusterState { phase: promoting, ..full() },
        ClusterState { phase: handover, ..full() },
        bare_holder,
    ]
}

#[test]
fn every_command_survives_the_way_there_and_back() {
    for command in commands() {
        assert_eq!(decode_command(&encode_command(&command)), Ok(command));
    }
}

#[test]
fn every_outcome_survives_the_way_there_and_back() {
    let mut outcomes: Vec<_> = rejections().into_iter().map(Outcome::Rejected).collect();
    outcomes.extend([
        Outcome::ACCEPTED,
        Outcome::Accepted { operation: Some(0) },
        Outcome::Accepted { operation: Some(u64::MAX) },
    ]);
    for outcome in outcomes {
        assert_eq!(decode_outcome(&encode_outcome(&outcome)), Ok(outcome));
    }
}

#[test]
fn every_state_survives_the_way_there_and_back() {
    for state in states() {
        assert_eq!(decode_state(&encode_state(&state)), Ok(state));
    }
}

#[test]
fn a_field_of_a_newer_program_is_refused_and_not_skipped() {
    // Field 1000, a varint.
    let newer = [0xc0, 0x3e, 1];
    for command in commands() {
        let bytes = [encode_command(&command).as_slice(), newer.as_slice()].concat();
        assert_eq!(decode_command(&bytes), Err(CodecError::Unknown { what: "command" }));
    }
    let bytes = [encode_state(&full()).as_slice(), newer.as_slice()].concat();
    assert_eq!(decode_state(&bytes), Err(CodecError::Unknown { what: "cluster state" }));
}

#[test]
fn a_kind_of_a_newer_program_and_an_unspecified_one_are_refused() {
    // `Command` with only field 100, an empty message; and nothing at all.
    for bytes in [vec![0xa2, 0x06, 0], Vec::new()] {
        assert!(matches!(decode_command(&bytes), Err(CodecError::Field { .. })));
        assert!(matches!(decode_outcome(&bytes), Err(CodecError::Field { .. })));
        assert!(matches!(decode_state(&bytes), Err(CodecError::Field { .. })));
    }
    for kind in [0, 999] {
        let rejection = v1::Rejection { kind, ..v1::Rejection::default() };
        let outcome =
            v1::Outcome { kind: Some(v1::outcome::Kind::Rejected(rejection)) }.encode_to_vec();
        assert!(matches!(decode_outcome(&outcome), Err(CodecError::Field { .. })));
    }
}

#[test]
fn entries_out_of_the_order_of_their_keys_are_refused() {
    let mut message = state::write(&full());
    message.members.reverse();
    assert!(matches!(decode_state(&message.encode_to_vec()), Err(CodecError::Unknown { .. })));
}

#[test]
fn damaged_bytes_are_refused_or_are_another_whole_value() {
    let mut accepted = 0;
    for command in commands() {
        let whole = encode_command(&command);
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << bit;
                if let Ok(other) = decode_command(&damaged) {
                    assert_eq!(encode_command(&other), damaged);
                    assert_ne!(other, command);
                    accepted += 1;
                }
            }
            let _: Result<Command, CodecError> = decode_command(&whole[..at]);
        }
    }
    assert!(accepted > 0, "a changed number is a number too");
}
