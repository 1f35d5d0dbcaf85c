//! The service over real TLS: who may do what, and in which words it is refused.

use std::net::SocketAddr;
use std::sync::Mutex;

use tempfile::TempDir;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use understudy_proto::v1::admin_client::AdminClient;
use understudy_transport::{
    Authority, ChannelOptions, DoorLayer, Identity, ListenOptions, Listener, TlsIdentity, connect,
    server,
};
use understudy_types::Epoch;

use super::*;
use crate::status::Writability;
use crate::status::tests::{NORTH, SOUTH, Scene, running_state};

/// A log that applies at once, or fails as it is told to.
struct Log {
    state: watch::Sender<Arc<ClusterState>>,
    failure: Mutex<Option<OperationError>>,
}

#[tonic::async_trait]
impl Operations for Log {
    async fn propose(&self, command: Command) -> Result<(u64, Outcome), OperationError> {
        if let Some(failure) = self.failure.lock().unwrap().clone() {
            return Err(failure);
        }
        let mut state = ClusterState::clone(&self.state.borrow());
        let index = 100 + state.operations.len() as u64;
        let outcome = state.apply(index, &command);
        self.state.send_replace(Arc::new(state));
        Ok((index, outcome))
    }
}

struct Door {
    dir: TempDir,
    authority: Authority,
    address: SocketAddr,
    log: Arc<Log>,
    status: watch::Sender<Arc<ClusterStatus>>,
}

fn person(role: Role) -> Identity {
    Identity::Person { name: "ada".to_owned(), role }
}

fn issue(authority: &Authority, dir: &TempDir, identity: &Identity) -> TlsIdentity {
    let base = dir.path().join(identity.to_string().replace(' ', "-"));
    let (certificate, key) = (base.with_extension("pem"), base.with_extension("key"));
    let ca = dir.path().join("ca.pem");
    if !certificate.exists() {
        authority.issue(identity).unwrap().save(&certificate, &key).unwrap();
    }
    TlsIdentity::load(&ca, &certificate, &key).unwrap()
}

async fn open() -> Door {
    let dir = tempfile::tempdir().unwrap();
    let state = running_state();
    let authority = Authority::create(state.identity.unwrap().cluster).unwrap();
    authority.save(&dir.path().join("ca.pem"), &dir.path().join("ca.key")).unwrap();
    let (state, states) = watch::channel(Arc::new(state));
    let log = Arc::new(Log { state, failure: Mutex::new(None) });
    let (status, statuses) = watch::channel(Arc::new(Scene::seen_by(NORTH).build()));
    let writability: WritabilityFn =
        Arc::new(|| Writability { writable: true, reason: String::new() });
    let service = AdminService::new(AdminContext {
        operations: log.clone(),
        status: statuses.clone(),
        state: states,
        writability: writability.clone(),
    });
    let (routes, reporter) = admin_routes(service).unwrap();
    tokio::spawn(report_health(reporter, statuses, writability));
    let north = issue(&authority, &dir, &Identity::Node("north".parse().unwrap()));
    let any = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(any, &north, ListenOptions::default()).await.unwrap();
    let address = listener.local_addr();
    let serving = server()
        .layer(DoorLayer(crate::access::AccessDoor))
        .add_routes(routes)
        .serve_with_incoming(listener.incoming());
    tokio::spawn(async move { serving.await.unwrap() });
    Door { dir, authority, address, log, status }
}

impl Door {
    fn channel(&self, identity: &Identity) -> Channel {
        let identity = issue(&self.authority, &self.dir, identity);
        let north = "north".parse().unwrap();
        let options = ChannelOptions::admin();
        connect(&self.address.to_string(), &north, &identity, &options).unwrap()
    }

    fn client(&self, identity: &Identity) -> AdminClient<Channel> {
        AdminClient::new(self.channel(identity))
    }

    fn operator(&self) -> AdminClient<Channel> {
        self.client(&person(Role::Operator))
    }
}

fn failover() -> v1::FailoverRequest {
    v1::FailoverRequest { reason: "maintenance".to_owned(), ..Default::default() }
}

fn switchover() -> v1::SwitchoverRequest {
    v1::SwitchoverRequest { reason: "maintenance".to_owned(), ..Default::default() }
}

fn pause(for_seconds: u64) -> v1::PauseRequest {
    v1::PauseRequest { for_seconds, reason: "maintenance".to_owned() }
}

fn kind_of(status: &Status) -> Option<&str> {
    status.metadata().get(REFUSAL_KEY).and_then(|kind| kind.to_str().ok())
}

#[tokio::test]
async fn viewers_and_nodes_may_look_and_only_operators_may_order() {
    let door = open().await;
    let node = Identity::Node("south".parse().unwrap());
    for who in [person(Role::Viewer), node] {
        let mut client = door.client(&who);
        let status = client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
        let status = ClusterStatus::try_from(status.status.unwrap()).unwrap();
        assert_eq!(status.active.as_deref(), Some("north"));
        let refusals = [
            client.failover(failover()).await.unwrap_err(),
            client.switchover(switchover()).await.unwrap_err(),
            client.pause(pause(60)).await.unwrap_err(),
            client.resume(v1::ResumeRequest { reason: "x".to_owned() }).await.unwrap_err(),
        ];
        for refused in refusals {
            assert_eq!(refused.code(), Code::PermissionDenied, "{who}");
            assert!(refused.message().contains(&who.to_string()), "{refused:?}");
        }
    }
    assert!(door.log.state.borrow().operations.is_empty(), "a refused order had an effect");
    door.client(&person(Role::BreakGlass)).pause(pause(60)).await.unwrap();
}

#[tokio::test]
async fn a_failover_without_a_target_takes_the_only_other_data_node() {
    let door = open().await;
    let mut operator = door.operator();
    let answer = operator.failover(failover()).await.unwrap().into_inner().operation.unwrap();
    assert_eq!((answer.kind.as_str(), answer.outcome.as_str()), ("failover", "running"));
    assert_eq!(answer.caller, "person ada (operator)");
    assert_eq!(door.log.state.borrow().order.as_ref().unwrap().to, SOUTH);
    let asked = operator.get_operation(v1::GetOperationRequest { id: answer.id }).await.unwrap();
    assert_eq!(asked.into_inner().operation.unwrap(), answer);
    let busy = operator.failover(failover()).await.unwrap_err();
    assert_eq!((busy.code(), kind_of(&busy)), (Code::FailedPrecondition, Some("busy")));
    let unknown = operator.get_operation(v1::GetOperationRequest { id: 4 }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn a_failover_is_refused_in_words_that_say_why() {
    let door = open().await;
    let mut operator = door.operator();
    let to = |to: &str| v1::FailoverRequest { to: to.to_owned(), ..failover() };
    let active = operator.failover(to("north")).await.unwrap_err();
    assert_eq!(active.code(), Code::FailedPrecondition);
    assert_eq!(active.message(), "north is the active node already");
    for wrong in ["witness", "nobody"] {
        let refused = operator.failover(to(wrong)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    let newer = Some(Epoch { incarnation: 0, number: 8 }.into());
    let request = v1::FailoverRequest { expect_epoch: newer, ..failover() };
    let other = operator.failover(request).await.unwrap_err();
    assert_eq!(other.message(), "meant for epoch 8, but the epoch is 1");
    assert_eq!(kind_of(&other), Some("epoch"));
    door.log.state.send_modify(|state| {
        let state = Arc::make_mut(state);
        state.durability.eligible.clear();
    });
    let ineligible = operator.failover(failover()).await.unwrap_err();
    assert!(ineligible.message().starts_with("south may not be promoted: "), "{ineligible:?}");
    assert_eq!(kind_of(&ineligible), Some("not-eligible"));
}

#[tokio::test]
async fn a_plan_changes_nothing_and_names_what_stands_against_it() {
    let door = open().await;
    let mut operator = door.operator();
    let before = door.log.state.borrow().clone();
    let plan = operator.plan_switchover(switchover()).await.unwrap().into_inner();
    assert!(plan.possible && plan.reasons.is_empty(), "{plan:?}");
    assert_eq!((plan.active.as_str(), plan.to.as_str()), ("north", "south"));
    assert_eq!((plan.pause_budget_ms, plan.replay_lag_bytes), (10_000, Some(900)));
    let newer = Some(Epoch { incarnation: 0, number: 8 }.into());
    let request = v1::SwitchoverRequest { expect_epoch: newer, ..switchover() };
    let plan = operator.plan_switchover(request).await.unwrap().into_inner();
    assert!(!plan.possible);
    assert_eq!(plan.reasons, ["meant for epoch 8, but the epoch is 1"]);
    let mut away = Scene::seen_by(NORTH);
    away.reports.remove(&SOUTH);
    door.status.send_replace(Arc::new(away.build()));
    let plan = operator.plan_switchover(switchover()).await.unwrap().into_inner();
    assert_eq!(plan.reasons, ["south is not heard"]);
    assert_eq!(plan.replay_lag_bytes, None);
    assert_eq!(*door.log.state.borrow(), before);
}

#[tokio::test]
async fn a_switchover_has_a_bounded_pause_and_one_operation_at_a_time() {
    let door = open().await;
    let mut operator = door.operator();
    for pause_budget_ms in [1, 999, 300_001] {
        let request = v1::SwitchoverRequest { pause_budget_ms, ..switchover() };
        let refused = operator.switchover(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{pause_budget_ms}");
    }
    let request = v1::SwitchoverRequest { pause_budget_ms: 2000, ..switchover() };
    let answer = operator.switchover(request).await.unwrap().into_inner().operation.unwrap();
    assert_eq!((answer.kind.as_str(), answer.outcome.as_str()), ("switchover", "running"));
    let state = door.log.state.borrow().clone();
    let ordered = state.switchover.as_ref().unwrap();
    assert_eq!((ordered.to, ordered.budget), (SOUTH, Duration::from_secs(2)));
    let busy = operator.failover(failover()).await.unwrap_err();
    assert_eq!((busy.code(), kind_of(&busy)), (Code::FailedPrecondition, Some("busy")));
}

#[tokio::test]
async fn a_pause_needs_an_end_and_can_be_ended_before_it() {
    let door = open().await;
    let mut operator = door.operator();
    for seconds in [0, 604_801] {
        let refused = operator.pause(pause(seconds)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{seconds}");
    }
    let unsaid = v1::PauseRequest { for_seconds: 5, reason: "  ".to_owned() };
    assert_eq!(operator.pause(unsaid).await.unwrap_err().code(), Code::InvalidArgument);
    let before = wall_unix_us();
    operator.pause(pause(600)).await.unwrap();
    let until = door.log.state.borrow().pause.as_ref().unwrap().until_unix_us;
    assert!((599_000_000..=660_000_000).contains(&(until - before)), "{until}");
    let resume = || v1::ResumeRequest { reason: "done".to_owned() };
    let resumed = operator.resume(resume()).await.unwrap().into_inner().operation.unwrap();
    assert_eq!((resumed.kind.as_str(), resumed.outcome.as_str()), ("resume", "done"));
    assert!(door.log.state.borrow().pause.is_none());
    let again = operator.resume(resume()).await.unwrap_err();
    assert_eq!((again.code(), kind_of(&again)), (Code::FailedPrecondition, Some("no-change")));
}

#[tokio::test]
async fn a_definite_refusal_and_an_unknown_outcome_can_be_told_apart() {
    let door = open().await;
    let mut operator = door.operator();
    *door.log.failure.lock().unwrap() = Some(OperationError::NoLeader);
    let none = operator.pause(pause(60)).await.unwrap_err();
    assert_eq!((none.code(), kind_of(&none)), (Code::Unavailable, Some("no-leader")));
    let unknown = OperationError::OutcomeUnknown("the leader went away".to_owned());
    *door.log.failure.lock().unwrap() = Some(unknown);
    let lost = operator.pause(pause(60)).await.unwrap_err();
    assert_eq!((lost.code(), kind_of(&lost)), (Code::DeadlineExceeded, None));
    assert!(lost.message().contains("the leader went away"), "{lost:?}");
}

#[tokio::test]
async fn a_watcher_is_told_again_and_again_until_the_daemon_ends() {
    let door = open().await;
    let mut viewer = door.client(&person(Role::Viewer));
    let too_often = v1::WatchStatusRequest { interval_ms: 5 };
    assert_eq!(viewer.watch_status(too_often).await.unwrap_err().code(), Code::InvalidArgument);
    let watch = v1::WatchStatusRequest { interval_ms: 100 };
    let mut answers = viewer.watch_status(watch).await.unwrap().into_inner();
    let epoch = |answer: v1::GetStatusResponse| answer.status.unwrap().epoch.unwrap().number;
    assert_eq!(epoch(answers.next().await.unwrap().unwrap()), 1);
    let mut scene = Scene::seen_by(NORTH);
    scene.state.epoch = scene.state.epoch.next();
    door.status.send_replace(Arc::new(scene.build()));
    while epoch(answers.next().await.unwrap().unwrap()) != 2 {}
    drop(door.status);
    while answers.next().await.is_some() {}
}

#[tokio::test]
async fn a_stock_reflection_client_finds_every_service() {
    let door = open().await;
    let mut client = ServerReflectionClient::new(door.channel(&person(Role::Viewer)));
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = client.server_reflection_info(tokio_stream::once(list)).await.unwrap();
    let answer: ServerReflectionResponse = answers.into_inner().next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(found)) = answer.message_response else {
        panic!("not a list: {answer:?}");
    };
    let names: Vec<_> = found.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["understudy.v1.Admin", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

#[tokio::test]
async fn health_follows_the_nodes_readiness() {
    let door = open().await;
    let mut client = HealthClient::new(door.channel(&person(Role::Viewer)));
    let mut watched = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    while watched.next().await.unwrap().unwrap().status != 1 {}
    let mut detached = Scene::seen_by(SOUTH);
    detached.me = understudy_types::NodeId(9);
    door.status.send_replace(Arc::new(detached.build()));
    while watched.next().await.unwrap().unwrap().status != 2 {}
}

fn node_order(node: &str, verb: &str) -> v1::NodeOrderRequest {
    let (node, verb, reason) = (node.to_owned(), verb.to_owned(), "maintenance".to_owned());
    v1::NodeOrderRequest { node, verb, reason, ..Default::default() }
}

/// `max_connections` at a node: in force, and after a restart.
fn limit(scene: &mut Scene, node: understudy_types::NodeId, running: u32, after: u32) {
    scene.report(node).parameters = vec![v1::ServerParameter {
        name: "max_connections".to_owned(),
        running: running.to_string(),
        after_restart: (running != after).then(|| after.to_string()),
    }];
}

#[tokio::test]
async fn a_restart_that_would_leave_a_standby_with_less_than_its_primary_is_refused() {
    let door = open().await;
    let mut operator = door.operator();
    for (running, after, first, wrong) in [(60, 80, "south", "north"), (60, 40, "north", "south")] {
        let mut scene = Scene::seen_by(NORTH);
        limit(&mut scene, NORTH, running, after);
        limit(&mut scene, SOUTH, running, after);
        door.status.send_replace(Arc::new(scene.build()));
        let refused = operator.order_node(node_order(wrong, "restart")).await.unwrap_err();
        assert_eq!(kind_of(&refused), Some("parameters"));
        assert!(refused.message().contains(&format!("restart {first} first")), "{refused:?}");
        let plan = operator.plan_node_order(node_order(first, "restart")).await.unwrap();
        let plan = plan.into_inner();
        assert!(plan.possible, "{plan:?}");
        assert!(plan.steps.iter().any(|step| step.contains("max_connections")), "{plan:?}");
    }
    assert!(door.log.state.borrow().node_orders.is_empty());
}

#[tokio::test]
async fn an_order_to_a_node_is_one_operation_and_refused_in_words_where_it_would_hurt() {
    let door = open().await;
    let mut operator = door.operator();
    for (node, verb) in [("witness", "restart"), ("south", "remove"), ("", "reload")] {
        let wrong = operator.order_node(node_order(node, verb)).await.unwrap_err();
        assert_eq!(wrong.code(), Code::InvalidArgument, "{node} {verb}");
    }
    let active = operator.order_node(node_order("north", "reclone")).await.unwrap_err();
    assert_eq!(kind_of(&active), Some("is-active"));
    assert!(active.message().starts_with("north is the active one"), "{active:?}");
    let taken = operator.order_node(node_order("south", "reload")).await.unwrap();
    let taken = taken.into_inner().operation.unwrap();
    assert_eq!((taken.kind.as_str(), taken.what.as_str()), ("reload", "south"));
    let again = operator.order_node(node_order("south", "restart")).await.unwrap_err();
    assert_eq!(kind_of(&again), Some("busy"));
}

#[tokio::test]
async fn a_scheduled_switchover_lies_ahead_is_one_and_can_be_taken_back() {
    let door = open().await;
    let mut operator = door.operator();
    let now = wall_unix_us();
    let at = |unix_us| v1::SwitchoverRequest { scheduled_unix_us: Some(unix_us), ..switchover() };
    for wrong in [now - 60_000_000, i64::MAX] {
        let refused = operator.switchover(at(wrong)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{wrong}");
    }
    let due = now + 3_600_000_000;
    let taken = operator.switchover(at(due)).await.unwrap().into_inner().operation.unwrap();
    assert_eq!((taken.kind.as_str(), taken.outcome.as_str()), ("switchover", "scheduled"));
    let second = operator.switchover(at(due)).await.unwrap_err();
    assert_eq!(kind_of(&second), Some("busy"));
    let cancel = || v1::CancelSwitchoverRequest { reason: "not tonight".to_owned() };
    let ended = operator.cancel_switchover(cancel()).await.unwrap().into_inner().operation.unwrap();
    assert_eq!((ended.id, ended.outcome.as_str()), (taken.id, "cancelled"));
    let none = operator.cancel_switchover(cancel()).await.unwrap_err();
    assert_eq!(kind_of(&none), Some("no-operation"));
}

fn ceiling(seconds: u64, version: u64) -> v1::SetRpoRequest {
    v1::SetRpoRequest {
        ceiling_ms: Some(seconds * 1000),
        expect_config_version: Some(version),
        reason: "audit".to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn the_configuration_is_told_with_its_changes_and_earlier_versions() {
    let door = open().await;
    let mut viewer = door.client(&person(Role::Viewer));
    let present = v1::GetConfigRequest::default();
    let founded = viewer.get_config(present).await.unwrap().into_inner();
    assert!(founded.changes.is_empty(), "{founded:?}");
    let refused = viewer.set_rpo(ceiling(90, founded.version)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let mut administrator = door.client(&person(Role::Administrator));
    administrator.set_rpo(ceiling(90, founded.version)).await.unwrap();
    let now = viewer.get_config(present).await.unwrap().into_inner();
    assert_eq!(now.version, founded.version + 1);
    assert_eq!(now.values.as_ref().unwrap().ceiling_ms, 90_000);
    let [change] = now.changes.as_slice() else { panic!("{now:?}") };
    assert_eq!((change.version, change.reason.as_str()), (now.version, "audit"));
    assert_eq!(change.caller, "person ada (administrator)");
    assert_eq!((&change.before, &change.after), (&founded.values, &now.values));

    let earlier = v1::GetConfigRequest { version: Some(founded.version) };
    assert_eq!(viewer.get_config(earlier).await.unwrap().into_inner().values, founded.values);
    let unknown = v1::GetConfigRequest { version: Some(founded.version + 7) };
    let refused = viewer.get_config(unknown).await.unwrap_err();
    assert_eq!(kind_of(&refused), Some("no-version"));
}

#[tokio::test]
async fn a_change_and_its_dry_run_are_refused_alike_when_the_configuration_is_another() {
    let door = open().await;
    let mut administrator = door.client(&person(Role::Administrator));
    let present = v1::GetConfigRequest::default();
    let version = administrator.get_config(present).await.unwrap().into_inner().version;
    administrator.set_rpo(ceiling(90, version)).await.unwrap();
    for dry_run in [true, false] {
        let late = v1::SetRpoRequest { dry_run, ..ceiling(80, version) };
        let refused = administrator.set_rpo(late).await.unwrap_err();
        assert_eq!(kind_of(&refused), Some("config-version"), "{refused:?}");
        let newer = Some(Epoch { incarnation: 0, number: 8 }.into());
        let other = v1::SetRpoRequest { dry_run, expect_epoch: newer, ..ceiling(80, version + 1) };
        let refused = administrator.set_rpo(other).await.unwrap_err();
        assert_eq!(kind_of(&refused), Some("epoch"), "{refused:?}");
    }
}
