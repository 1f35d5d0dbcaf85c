//! What the snapshot says in the situations that matter, and that no form of it loses anything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use understudy_core::ClusterState;
use understudy_core::node::Standing;
use understudy_core::state::{
    Durability, Granted, Holder, Identity, Ineligible, LossBound, Mark, Member, Operation,
    OperationKind, OperationStatus, Pause, Phase, Published, ReleaseCause, Scheduled,
};
use understudy_core::verdict::{Reason, Verdict};
use understudy_proto::v1;
use understudy_types::{
    BootInstant, ClusterId, DurabilityMode, Epoch, Incarnation, Lsn, NodeId, NodeKind,
    ProcessStart, PromotionId, Survival, SystemId, Timeline,
};
use uuid::Uuid;

use super::*;

pub(crate) const NORTH: NodeId = NodeId(1);
pub(crate) const SOUTH: NodeId = NodeId(2);
pub(crate) const WITNESS: NodeId = NodeId(3);
const NOW: BootInstant = BootInstant(100_000_000_000);

/// A cluster whose node north is active, south passive, and a witness.
pub(crate) struct Scene {
    pub(crate) state: ClusterState,
    pub(crate) standing: Standing,
    pub(crate) reports: BTreeMap<NodeId, (BootInstant, v1::NodeReport)>,
    pub(crate) me: NodeId,
    pub(crate) writable: bool,
    pub(crate) lease_over: bool,
    pub(crate) now: BootInstant,
}

fn cluster() -> ClusterId {
    ClusterId(Uuid::from_u128(7))
}

pub(crate) fn running_state() -> ClusterState {
    let member = |name: &str, kind| Member {
        name: name.parse().unwrap(),
        site: name.parse().unwrap(),
        kind,
        address: format!("{name}.example:7400"),
        incarnation: Incarnation(Uuid::from_u128(1)),
    };
    let epoch = Epoch { incarnation: 0, number: 1 };
    let granted = Granted {
        node: NORTH,
        promotion: PromotionId(Uuid::from_u128(11)),
        timeline: Timeline::FIRST,
        fork_lsn: None,
        parent: None,
        loss: LossBound::NONE,
        at_unix_us: Some(1_699_990_000_000_000),
    };
    ClusterState {
        identity: Some(Identity {
            cluster: cluster(),
            system_id: Some(SystemId(7_300_000_000_000_000_001)),
            initial_active: NORTH,
        }),
        members: BTreeMap::from([
            (NORTH, member("north", NodeKind::Data)),
            (SOUTH, member("south", NodeKind::Data)),
            (WITNESS, member("witness", NodeKind::Witness)),
        ]),
        epoch,
        phase: Phase::Running,
        holder: Some(Holder {
            node: NORTH,
            process: ProcessStart(1),
            seq: 9,
            ttl: Duration::from_secs(3),
            released: None,
            published: None,
        }),
        durability: Durability {
            mode: DurabilityMode::Bounded,
            waited: BTreeSet::from([SOUTH]),
            copies: 0,
            eligible: BTreeSet::from([SOUTH]),
            generation: 4,
            lifted: false,
        },
        lineage: BTreeMap::from([(epoch, granted)]),
        ..ClusterState::default()
    }
}

impl Scene {
    /// As `me` sees it, everybody heard 200 ms ago.
    pub(crate) fn seen_by(me: NodeId) -> Scene {
        let heard = |mut report: v1::NodeReport, id: NodeId| {
            report.node_id = id.0;
            let at = if id == me { NOW } else { NOW - Duration::from_millis(200) };
            (id, (at, report))
        };
        let north = v1::NodeReport {
            state: "holder".to_owned(),
            postgres_running: true,
            timeline: Some(1),
            flush_lsn: Some(5_000),
            released_lsn: Some(4_000),
            exposure_ns: Some(1_500_000_000),
            exposure_bytes: Some(700),
            postgres_address: "north.example:5432".to_owned(),
            lease_left_ms: Some(2_000),
            writable: true,
            version: "0.1.0".to_owned(),
            ..v1::NodeReport::default()
        };
        let south = v1::NodeReport {
            state: "passive".to_owned(),
            postgres_running: true,
            timeline: Some(1),
            durable_lsn: Some(4_300),
            replay_lsn: Some(4_100),
            attached: true,
            ..v1::NodeReport::default()
        };
        let witness = v1::NodeReport { state: "witness".to_owned(), ..v1::NodeReport::default() };
        let standing = Standing {
            word: if me == NORTH { "holder" } else { "passive" },
            trouble: None,
            promotable: me == SOUTH,
            resumable: false,
            serving: me == NORTH,
            deadline: (me == NORTH).then_some(NOW + Duration::from_secs(2)),
        };
        Scene {
            state: running_state(),
            standing,
            reports: [heard(north, NORTH), heard(south, SOUTH), heard(witness, WITNESS)].into(),
            me,
            writable: me == NORTH,
            lease_over: false,
            now: NOW,
        }
    }

    pub(crate) fn build(&self) -> ClusterStatus {
        self.build_with(&mut StatusBuilder::default())
    }

    fn build_with(&self, builder: &mut StatusBuilder) -> ClusterStatus {
        let reason = Reason::Ready { candidate: "south".to_owned() };
        self.judged(builder, Verdict { reason, would_fail_over: true })
    }

    fn judged(&self, builder: &mut StatusBuilder, verdict: Verdict) -> ClusterStatus {
        builder.build(&StatusInputs {
            cluster: cluster(),
            me: self.me,
            members: &[],
            state: &self.state,
            applied_index: 77,
            standing: &self.standing,
            verdict: &verdict,
            leader: Some(WITNESS),
            majority: true,
            lease_over: self.lease_over,
            reports: &self.reports,
            writable: self.writable,
            now: self.now,
            wall_unix_us: 1_700_000_000_000_000,
            writable_since_unix_us: Some(1_699_999_000_000_000),
            validation: None,
        })
    }

    pub(crate) fn report(&mut self, node: NodeId) -> &mut v1::NodeReport {
        &mut self.reports.get_mut(&node).unwrap().1
    }

    pub(crate) fn silence(&mut self, node: NodeId) {
        self.reports.get_mut(&node).unwrap().0 = NOW - Duration::from_secs(10);
    }
}

#[test]
fn roles_positions_and_lags_are_told_as_they_were_heard() {
    let status = Scene::seen_by(SOUTH).build();
    assert_eq!(status.answered_by, "south");
    assert_eq!(status.active.as_deref(), Some("north"));
    assert_eq!((status.phase.as_str(), status.leader.as_deref()), ("running", Some("witness")));
    let roles: Vec<_> = status.nodes.iter().map(|node| node.role).collect();
    assert_eq!(roles, [SiteRole::Active, SiteRole::Passive, SiteRole::Witness]);
    let (north, south) = (status.node("north").unwrap(), status.node("south").unwrap());
    assert!(north.writable && !south.writable && south.attached);
    assert_eq!(north.durable_lag_bytes, None);
    assert_eq!((south.durable_lag_bytes, south.replay_lag_bytes), (Some(700), Some(900)));
    assert_eq!(north.lease_left_seconds, Some(1.8), "a report grows old while it lies here");
    assert_eq!(status.exposure_bytes, Some(700));
    assert_eq!(status.exposure_seconds, Some(1.7), "exposure grows while a report lies here");
    assert_eq!(status.rpo_ceiling_seconds, Some(3600.0));
    assert!(status.failover.would_fail_over);
    assert_eq!(status.failover.words, "if the active is lost, south takes over by itself");
}

#[test]
fn what_depends_on_an_active_that_is_not_heard_is_unknown() {
    let mut scene = Scene::seen_by(SOUTH);
    scene.silence(NORTH);
    let status = scene.build();
    assert_eq!((status.exposure_seconds, status.exposure_bytes), (None, None));
    let (north, south) = (status.node("north").unwrap(), status.node("south").unwrap());
    assert_eq!((south.durable_lag_bytes, south.replay_lag_bytes), (None, None));
    assert_eq!(north.state, "unreachable");
    assert!(!north.writable && !north.postgres_running);
    assert_eq!(north.lease_left_seconds, None);
    assert_eq!(status.active.as_deref(), Some("north"), "its lease still runs here");
}

#[test]
fn nobody_is_active_once_the_lease_is_over_or_given_back() {
    let mut over = Scene::seen_by(SOUTH);
    over.lease_over = true;
    let mut released = Scene::seen_by(SOUTH);
    released.state.holder.as_mut().unwrap().released = Some(ReleaseCause::Fenced);
    for scene in [over, released] {
        let status = scene.build();
        assert_eq!((status.active.as_deref(), status.phase.as_str()), (None, "no-active"));
        let north = status.node("north").unwrap();
        assert_eq!((north.role, north.writable), (SiteRole::Passive, false));
        assert_eq!(status.exposure_seconds, None);
    }
}

#[test]
fn a_report_of_being_writable_ends_with_the_lease_it_told_of() {
    let mut scene = Scene::seen_by(SOUTH);
    scene.report(NORTH).lease_left_ms = Some(150);
    let north = scene.build().node("north").unwrap().clone();
    assert_eq!((north.writable, north.lease_left_seconds), (false, None));
    let mut own = Scene::seen_by(NORTH);
    own.writable = false;
    assert!(!own.build().own().unwrap().writable, "the own answer is the permit cell's");
}

#[test]
fn a_passive_that_fell_silent_shows_its_last_positions_and_nothing_better() {
    let mut scene = Scene::seen_by(NORTH);
    scene.silence(SOUTH);
    let south = scene.build().node("south").unwrap().clone();
    assert_eq!(south.durable_lsn, Some(Lsn(4_300)));
    assert_eq!(south.durable_lag_bytes, Some(700));
    assert!(!south.attached);
    scene.reports.remove(&SOUTH);
    let south = scene.build().node("south").unwrap().clone();
    assert_eq!(
        (south.heard_seconds_ago, south.durable_lsn, south.durable_lag_bytes),
        (None, None, None)
    );
}

#[test]
fn lag_in_seconds_is_counted_from_when_the_active_passed_that_position() {
    let mut builder = StatusBuilder::default();
    let mut scene = Scene::seen_by(NORTH);
    scene.report(NORTH).flush_lsn = Some(4_300);
    let south = scene.build_with(&mut builder).node("south").unwrap().clone();
    assert_eq!(south.durable_lag_seconds, Some(0.0));
    assert_eq!(south.replay_lag_seconds, None, "it began before this node watched");
    scene.now = NOW + Duration::from_secs(3);
    scene.reports.get_mut(&NORTH).unwrap().0 = scene.now;
    scene.report(NORTH).flush_lsn = Some(9_000);
    let south = scene.build_with(&mut builder).node("south").unwrap().clone();
    assert_eq!(south.durable_lag_seconds, Some(3.0));
}

#[test]
fn before_founding_the_configured_members_are_shown() {
    let scene = Scene::seen_by(NORTH);
    let member = crate::config::Member {
        name: "north".parse().unwrap(),
        id: NORTH,
        site: "attic".parse().unwrap(),
        region: None,
        kind: NodeKind::Data,
        address: "127.0.0.1:7400".to_owned(),
    };
    let verdict = Verdict { reason: Reason::NotFounded, would_fail_over: false };
    let status = StatusBuilder::default().build(&StatusInputs {
        cluster: cluster(),
        me: NORTH,
        members: &[member],
        state: &ClusterState::default(),
        applied_index: 0,
        standing: &scene.standing,
        verdict: &verdict,
        leader: None,
        majority: false,
        lease_over: false,
        reports: &BTreeMap::new(),
        writable: false,
        now: NOW,
        wall_unix_us: 0,
        writable_since_unix_us: None,
        validation: None,
    });
    assert_eq!((status.answered_by.as_str(), status.phase.as_str()), ("north", "bootstrap"));
    assert_eq!(status.own().unwrap().site, "attic");
    assert_eq!(status.system_id, None);
}

/// With every optional part present.
fn full() -> ClusterStatus {
    let mut scene = Scene::seen_by(NORTH);
    scene.state.marks.insert(SOUTH, Mark::Suspect("fork elsewhere".to_owned()));
    scene.state.pause = Some(Pause { until_unix_us: 5, operation: 3 });
    let operation = |status, ended_unix_us| Operation {
        kind: OperationKind::Failover,
        caller: "person ada (operator)".to_owned(),
        reason: "maintenance".to_owned(),
        what: Some("to south".to_owned()),
        report: None,
        status,
        started_unix_us: 1,
        ended_unix_us,
    };
    let (to, budget) = (SOUTH, Duration::from_secs(9));
    scene.state.scheduled = Some(Scheduled { operation: 9, to, budget, due_unix_us: 7 });
    let failed = OperationStatus::Failed("nobody is there".to_owned());
    scene.state.operations.insert(3, operation(OperationStatus::Running, None));
    scene.state.operations.insert(9, operation(failed, Some(2)));
    let second = Granted {
        node: NORTH,
        promotion: PromotionId(Uuid::from_u128(12)),
        timeline: Timeline::new(2).unwrap(),
        fork_lsn: Some(Lsn(0x1_0000_0028)),
        parent: Some(scene.state.epoch),
        loss: LossBound { time_max: Some(Duration::from_secs(4)), wal_bytes_min: 700 },
        at_unix_us: None,
    };
    scene.state.epoch = scene.state.epoch.next();
    scene.state.lineage.insert(scene.state.epoch, second);
    let south = scene.report(SOUTH);
    south.progress_what = "clone".to_owned();
    south.progress_done_bytes = 10;
    south.progress_total_bytes = 100;
    south.trouble = "joining again".to_owned();
    south.http_address = "south.example:7480".to_owned();
    south.parameters = vec![v1::ServerParameter {
        name: "max_connections".to_owned(),
        running: "60".to_owned(),
        after_restart: Some("80".to_owned()),
    }];
    scene.build()
}

#[test]
fn the_wire_form_and_the_json_form_lose_nothing() {
    for status in [full(), Scene::seen_by(WITNESS).build()] {
        let wire = v1::ClusterStatus::from(&status);
        assert_eq!(ClusterStatus::try_from(wire).unwrap(), status);
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<ClusterStatus>(&json).unwrap(), status);
    }
}

#[test]
fn a_refusal_by_the_data_rules_names_the_command_that_would_accept_the_loss() {
    let mut scene = Scene::seen_by(SOUTH);
    scene.state.holder.as_mut().unwrap().published = Some(Published {
        flush_lsn: Lsn(5_000),
        durable: BTreeMap::from([(SOUTH, Lsn(4_300))]),
        survives: Some(Survival { lsn: Lsn(4_300), oldest_age: Duration::from_millis(10_200) }),
        ..Published::default()
    });
    let refused = |why| {
        let reason = Reason::NotEligible { candidate: "south".to_owned(), why };
        Verdict { reason, would_fail_over: false }
    };
    let told = |scene: &Scene, why| {
        scene.judged(&mut StatusBuilder::default(), refused(why)).failover.accept_command
    };
    assert_eq!(told(&scene, Ineligible::Lifted), None, "the active is there");
    scene.lease_over = true;
    let expected =
        "understudy failover --to south --epoch 1 --accept-loss 14s --reason \"...\"".to_owned();
    assert_eq!(told(&scene, Ineligible::Lifted), Some(expected));
    assert_eq!(told(&scene, Ineligible::Marked("dirty".to_owned())), None);
    scene.state.holder.as_mut().unwrap().published.as_mut().unwrap().survives = None;
    let unknown = told(&scene, Ineligible::NotInSet).unwrap();
    assert!(unknown.contains("--accept-loss any"), "{unknown}");
}

#[test]
fn json_has_a_version_lsns_as_text_and_no_null() {
    let json = serde_json::to_value(full()).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["lineage"][1]["fork_lsn"], "1/28");
    assert_eq!(json["system_id"], "7300000000000000001");
    assert!(!json.to_string().contains("null"), "unknown must be absent");
}

#[test]
fn a_word_that_is_no_role_is_refused_with_its_field() {
    let mut wire = v1::ClusterStatus::from(&full());
    wire.nodes[0].role = "boss".to_owned();
    let error = ClusterStatus::try_from(wire).unwrap_err();
    assert_eq!(error.field, "role");
}

#[test]
fn readiness_follows_the_role() {
    let ready = |scene: &Scene, writable| readiness(&scene.build(), writable).ready;
    assert!(ready(&Scene::seen_by(NORTH), true));
    assert!(!ready(&Scene::seen_by(NORTH), false));
    assert!(ready(&Scene::seen_by(SOUTH), false));
    assert!(ready(&Scene::seen_by(WITNESS), false));
    let mut detached = Scene::seen_by(SOUTH);
    detached.report(SOUTH).attached = false;
    assert!(!ready(&detached, false));
}
