//! What others reach a node through: gRPC for peers and operators, HTTP for load balancers and
//! Prometheus. All of it answers from memory; whether writes are possible is read from the permit cell
//! at the moment of the question, so that no answer outlives the lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use understudy_consensus::{Consensus, ProposeError};
use understudy_core::node::PeerReport;
use understudy_core::{Command, Outcome};
use understudy_proto::v1::debug_server::DebugServer;
use understudy_proto::v1::events_server::EventsServer;
use understudy_proto::v1::log_server::LogServer;
use understudy_proto::v1::peer_server::PeerServer;
use understudy_proto::v1::receipts_server::ReceiptsServer;
use understudy_proto::v1::recovery_server::RecoveryServer;
use understudy_proto::v1::validation_server::ValidationServer;
use understudy_proto::v1::wal_files_server::WalFilesServer;
use understudy_proto::v1::wal_server::WalServer;
use understudy_shipping::permit_cell::PermitCell;
use understudy_shipping::tunnel::TunnelTarget;
use understudy_transport::{DoorLayer, IncarnationDoor, Listener, TlsIdentity};
use understudy_types::{Clock, NodeId, NodeName};

use crate::access::AccessDoor;
use crate::admin::{
    AdminContext, AdminService, OperationError, Operations, admin_routes, report_health,
};
use crate::clock::wall_unix_us;
use crate::config::NodeConfig;
use crate::daemon::RunError;
use crate::debug::{Collector, DebugService};
use crate::driver::{Shared, View};
use crate::events::{EventJournal, EventObserver, EventsService, Happening, know_the_agreed};
use crate::follower::Follower;
use crate::hands::{Hands, tunnel_roles};
use crate::hooks::Hooks;
use crate::http::{HealthCheckers, HttpDoor, HttpState};
use crate::metrics::{Local, StatusMetrics, set_compression};
use crate::observer::LocalSeen;
use crate::own_report;
use crate::peer_service::PeerService;
use crate::receipts::{ReceiptsService, divergent_dir};
use crate::recovery::{OPEN_PATHS, RecoveryService, Superseded};
use crate::reports::Board;
use crate::service_manager::{ServiceManager, StatusLine, feed_watchdog};
use crate::status::{ClusterStatus, StatusBuilder, StatusInputs, Writability, WritabilityFn};
use crate::telemetry::{LogService, Telemetry};
use crate::validation::{
    Describer, DescriberOptions, ValidationReport, ValidationService, Validator, keep_validating,
};
use crate::wal_files::WalFilesService;
use crate::wal_service::WalService;

/// How often the own report and the status are made.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(200);
/// How long an operator's command may take to be applied.
const OPERATOR_PATIENCE: Duration = Duration::from_secs(10);

/// Everything that the doors answer from.
#[derive(Clone)]
pub(crate) struct Doors {
    pub(crate) config: Arc<NodeConfig>,
    pub(crate) consensus: Consensus,
    pub(crate) board: Arc<Board>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) cell: Arc<PermitCell>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) view: watch::Receiver<Option<View>>,
    pub(crate) seen: watch::Receiver<LocalSeen>,
    /// Known limits of the gate at this node's server.
    pub(crate) warnings: watch::Receiver<Vec<String>>,
    /// What there is to say of the room for WAL.
    pub(crate) room_words: watch::Receiver<Vec<String>>,
    pub(crate) hands: Option<Hands>,
    /// The receiving half of a node that keeps WAL.
    pub(crate) follower: Option<Follower>,
    /// Hears of a newer incarnation of the cluster.
    pub(crate) superseded: Arc<Superseded>,
    pub(crate) service_manager: ServiceManager,
    /// Channels for questions that nothing waits for.
    pub(crate) ask: BTreeMap<NodeName, Channel>,
    /// This node's certificate, as it is in use at any moment.
    pub(crate) identity: TlsIdentity,
    /// The newest look whether a failover would work.
    pub(crate) validation: watch::Sender<Option<Arc<ValidationReport>>>,
    /// The hand on the log, and its newest lines.
    pub(crate) telemetry: Telemetry,
}

/// Opens the doors and keeps them open until `shutdown`.
///
/// # Errors
/// When the gRPC server ends by itself.
pub(crate) async fn serve(
    doors: Doors,
    (grpc, http): (Listener, HttpDoor),
    metrics: PrometheusHandle,
    news: mpsc::Receiver<Happening>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let writability = doors.writability();
    let first = wait_for_first(&doors).await;
    let (publisher, status) = watch::channel(Arc::new(first));
    let last_publish = Arc::new(AtomicU64::new(doors.clock.now().0));
    let health_checkers = HealthCheckers::default();
    let events = EventJournal::new(doors.config.name.as_str());
    let observer = doors.observer(&events, &status.borrow(), news)?;
    tokio::spawn(publish(doors.clone(), publisher, last_publish.clone(), observer));
    let metrics_text = metrics.clone();
    let state = HttpState {
        status: status.clone(),
        last_publish,
        writability: writability.clone(),
        last_tick: doors.shared.last_turn_ns.clone(),
        clock: doors.clock.clone(),
        metrics,
        patroni_metrics: doors.config.http.patroni_metrics,
        health_checkers: health_checkers.clone(),
    };
    http.spawn(state, shutdown.clone())
        .map_err(|error| RunError::Part { what: "start the HTTP door", source: error.into() })?;
    let status_of_this = status.clone();
    let members: BTreeMap<NodeName, NodeId> =
        doors.config.members.iter().map(|m| (m.name.clone(), m.id)).collect();
    let peer = PeerService {
        me: doors.config.id,
        members,
        consensus: doors.consensus.server(),
        board: doors.board.clone(),
    };
    let admin = AdminService::new(AdminContext {
        operations: Arc::new(Proposer(doors.consensus.clone())),
        status: status.clone(),
        state: doors.consensus.state(),
        writability: writability.clone(),
    });
    let (routes, health) = admin_routes(admin).map_err(|error| RunError::Part {
        what: "prepare the admin service",
        source: error.into(),
    })?;
    tokio::spawn(report_health(health, status, writability));
    let routes = routes.add_service(PeerServer::new(peer));
    let receipts = ReceiptsService::new(divergent_dir(&doors.config.data_dir));
    let routes = routes.add_service(ReceiptsServer::new(receipts));
    let (name, hands) = (doors.config.name.clone(), doors.hands.clone());
    let journal = doors.follower.as_ref().map(|follower| follower.journal().clone());
    let wal_files = WalFilesService::new(name, journal, hands, doors.seen.clone());
    let routes = routes.add_service(WalFilesServer::new(wal_files));
    let validator = doors.validator(status_of_this.clone(), health_checkers);
    tokio::spawn(keep_validating(validator.clone()));
    let routes = routes.add_service(ValidationServer::new(ValidationService::new(validator)));
    let events = EventsService::new(events, shutdown.clone());
    let log = LogService::new(doors.config.name.clone(), doors.telemetry.control.clone());
    let debug = DebugService::new(Collector {
        config: doors.config.clone(),
        lines: doors.telemetry.lines.clone(),
        metrics: metrics_text,
    });
    let routes = routes.add_service(EventsServer::new(events));
    let routes = routes.add_service(LogServer::new(log)).add_service(DebugServer::new(debug));
    let describing = RecoveryService {
        config: doors.config.clone(),
        incarnation: doors.superseded.own,
        consensus: doors.consensus.clone(),
        status: status_of_this,
    };
    let routes = routes.add_service(RecoveryServer::new(describing));
    let routes = match &doors.follower {
        Some(follower) => routes.add_service(WalServer::new(WalService {
            members: doors.config.members.clone(),
            allowed_regions: doors.config.allowed_regions.clone(),
            state: doors.consensus.state(),
            follower: follower.clone(),
            source: doors.hands.as_ref().map(Hands::source),
            tunnel: doors.hands.as_ref().map(|hands| TunnelTarget {
                socket_dir: hands.server().settings().socket_dir.clone(),
                port: hands.server().settings().port,
                users: tunnel_roles(),
            }),
        })),
        None => routes,
    };
    tracing::info!(grpc = %grpc.local_addr(), http = %doors.config.listen_http, "doors open");
    let last_turn_ns = doors.shared.last_turn_ns.clone();
    let manager = doors.service_manager.clone();
    tokio::spawn(feed_watchdog(manager, last_turn_ns, doors.clock.clone()));
    doors.service_manager.ready();
    let superseded = doors.superseded.clone();
    let door = IncarnationDoor::new(superseded.own, OPEN_PATHS, move |from, newer| {
        superseded.heard(from.as_str(), newer);
    });
    understudy_transport::server()
        .layer(DoorLayer(AccessDoor))
        .layer(DoorLayer(door))
        .add_routes(routes)
        .serve_with_incoming_shutdown(grpc.incoming(), shutdown.cancelled_owned())
        .await
        .map_err(|error| RunError::Part { what: "serve gRPC", source: error.into() })
}

impl Doors {
    /// Reads the permit cell at the moment of the call.
    fn writability(&self) -> WritabilityFn {
        let (cell, shared, clock) = (self.cell.clone(), self.shared.clone(), self.clock.clone());
        Arc::new(move || {
            let serving = shared.serving.load(Ordering::Relaxed);
            let open = cell.is_open(clock.now());
            let reason = match (serving, open) {
                (true, true) => "this node is active, and its lease runs",
                (true, false) => "this node was active, but its lease has run out",
                (false, _) => "this node is not active",
            };
            Writability { writable: serving && open, reason: reason.to_owned() }
        })
    }

    /// Looks whether a failover would work.
    fn validator(
        &self,
        status: watch::Receiver<Arc<ClusterStatus>>,
        health_checkers: HealthCheckers,
    ) -> Validator {
        let describer = Describer::new(DescriberOptions {
            config: self.config.clone(),
            status: status.clone(),
            seen: self.seen.clone(),
            hands: self.hands.clone(),
            journal: self.follower.as_ref().map(|follower| follower.journal().clone()),
            health_checkers,
            identity: self.identity.clone(),
        });
        let newest = self.validation.clone();
        Validator::new(describer, self.ask.clone(), status, self.config.timing, newest)
    }

    /// Makes the own report and the status of this moment.
    fn snapshot(&self, view: &View, builder: &mut StatusBuilder, sequence: u64) -> ClusterStatus {
        let now = self.clock.now();
        let report = own_report::make(self, view, sequence, now);
        let writable = report.writable;
        self.board.pin_own(self.config.id, report);
        let leadership = *self.consensus.leadership().borrow();
        let state = self.consensus.state().borrow().clone();
        let validation = self.validation.borrow().clone();
        builder.build(&StatusInputs {
            cluster: self.config.cluster,
            me: self.config.id,
            members: &self.config.members,
            state: &state,
            applied_index: *self.shared.applied_index.borrow(),
            standing: &view.standing,
            verdict: &view.verdict,
            leader: leadership.leader,
            majority: leadership.majority,
            lease_over: view.lease_over,
            reports: &self.board.all(),
            writable,
            now,
            wall_unix_us: wall_unix_us(),
            writable_since_unix_us: view.serving_since_unix_us.filter(|_| writable),
            validation: validation.as_deref(),
        })
    }
}

impl Doors {
    /// Who sees what happens, from this first snapshot on; with it the hooks begin.
    fn observer(
        &self,
        journal: &EventJournal,
        first: &ClusterStatus,
        news: mpsc::Receiver<Happening>,
    ) -> Result<EventObserver, RunError> {
        let hooks = Hooks::start(&self.config, journal)
            .map_err(|error| RunError::Part { what: "start the hooks", source: error.into() })?;
        let up_to_date = Arc::new(AtomicBool::new(false));
        tokio::spawn(know_the_agreed(self.consensus.clone(), up_to_date.clone()));
        let mut observer = EventObserver::new(journal.clone(), up_to_date, hooks, news);
        observer.observe(first);
        Ok(observer)
    }

    /// What the streams to the others decided about compression; of one that is not there nothing is known.
    fn record_compression(&self) {
        let source = self.hands.as_ref().and_then(|hands| hands.source().borrow().clone());
        let seen = source.map(|source| source.compression()).unwrap_or_default();
        for member in self.config.peers().filter(|member| member.kind.keeps_wal()) {
            set_compression(member.name.as_str(), seen.get(&member.id));
        }
    }
}

async fn wait_for_first(doors: &Doors) -> ClusterStatus {
    let mut views = doors.view.clone();
    let view = match views.wait_for(Option::is_some).await {
        Ok(view) => view.clone().expect("it was waited for"),
        // The core's thread is gone before it said a word: the daemon is about to end.
        Err(_) => std::future::pending().await,
    };
    doors.snapshot(&view, &mut StatusBuilder::default(), 1)
}

async fn publish(
    doors: Doors,
    publisher: watch::Sender<Arc<ClusterStatus>>,
    last_publish: Arc<AtomicU64>,
    mut observer: EventObserver,
) {
    let mut builder = StatusBuilder::default();
    let mut recorder = StatusMetrics::default();
    let mut line = StatusLine::default();
    let started = Instant::now();
    let mut ticks = tokio::time::interval(PUBLISH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut views = doors.view.clone();
    let mut said = None;
    for sequence in 2.. {
        let hurried = tokio::select! {
            _ = ticks.tick() => false,
            () = wanted_now(&mut views, said.as_ref()) => true,
        };
        let view = doors.view.borrow().clone();
        let Some(view) = view else { continue };
        let status = doors.snapshot(&view, &mut builder, sequence);
        if hurried {
            doors.board.hurry();
        }
        said = Some(view.report);
        let cell = doors.cell.status();
        let local = Local {
            uptime: started.elapsed(),
            late_releases_count: cell.late_release_count,
            last_late_release_at: cell.last_late_release.map(|late| late.at),
        };
        recorder.record(&status, &local);
        observer.observe(&status);
        line.tell(&doors.service_manager, &status);
        doors.record_compression();
        if publisher.send(Arc::new(status)).is_err() {
            return;
        }
        last_publish.store(doors.clock.now().0, Ordering::Release);
    }
}

/// Returns once somebody waits for what this node says of itself, and it says something new.
async fn wanted_now(views: &mut watch::Receiver<Option<View>>, said: Option<&PeerReport>) {
    let wanted = views.wait_for(|view| {
        view.as_ref().is_some_and(|view| view.awaited && Some(&view.report) != said)
    });
    if wanted.await.is_err() {
        // The core's thread is gone; the regular turn goes on until the daemon ends.
        std::future::pending::<()>().await;
    }
}

/// Operators' commands, on their way into the log.
struct Proposer(Consensus);

#[tonic::async_trait]
impl Operations for Proposer {
    async fn propose(&self, command: Command) -> Result<(u64, Outcome), OperationError> {
        self.0.propose(command, OPERATOR_PATIENCE).await.map_err(|error| match error {
            ProposeError::NoLeader => OperationError::NoLeader,
            ProposeError::NotSent(why) => OperationError::NotProposed(why),
            ProposeError::Unknown(why) => OperationError::OutcomeUnknown(why),
        })
    }
}
