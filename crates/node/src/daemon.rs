//! `understudy run`: puts a node together from its configuration and keeps it running.
//!
//! Everything that can be refused is refused before PostgreSQL is touched. A daemon that ends leaves
//! PostgreSQL running: the next one takes it up again, and until then nothing is acknowledged. If none
//! comes before the lease's deadline, the guardian ends it.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use understudy_consensus::{Applied, ChannelTo, Consensus, ConsensusOptions, Lane};
use understudy_core::ClusterState;
use understudy_core::node::{Core, CoreOptions, Event};
use understudy_postgres::{Binaries, GuardianLink, OsUser, Server, Settings};
use understudy_shipping::journal::{Journal, JournalError, JournalOptions, Limits};
use understudy_shipping::permit_cell::PermitCell;
use understudy_shipping::receiver::StandbyProgress;
use understudy_shipping::relay::{Relay, RelayOptions};
use understudy_transport::{
    ChannelOptions, Dialer, Identity, ListenOptions, Listener, TlsIdentity,
};
use understudy_types::{Clock, DurabilityMode, Epoch, NodeId, NodeKind, NodeName};

use crate::certificates::{Certificates, Stamps};
use crate::clock::BootClock;
use crate::config::{NodeConfig, PostgresConfig};
use crate::doors::{self, Doors};
use crate::driver::{Driver, Shared};
use crate::follower::FollowerOptions;
use crate::guard::{self, GuardTeller};
use crate::hands::{BulkDialer, Hands, HandsOptions, Observer, journal_aside};
use crate::http::HttpDoor;
use crate::journal_node::JournalNode;
use crate::limits;
use crate::observer::{LocalSeen, Sight, observe};
use crate::receipts::Promised;
use crate::recorder::{LastWordsCell, Recorder, RecorderOptions};
use crate::recovery::{self, Superseded};
use crate::reports::{self, Board};
use crate::retention;
use crate::service_manager::ServiceManager;
use crate::telemetry::Telemetry;

/// The node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigErrors),
    /// The certificate belongs to somebody else.
    #[error(
        "use certificate {path}: it identifies {found}, but the configuration is of {wanted}; \
         issue one for this node, or use this node's own configuration"
    )]
    WrongCertificate {
        /// The certificate's file.
        path: String,
        /// Who it identifies.
        found: String,
        /// Who it should.
        wanted: String,
    },
    /// A directory cannot be made or has the wrong owner.
    #[error("prepare directory {path}")]
    Directory {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Any other part could not start.
    #[error("{what}")]
    Part {
        /// Which part.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It ran and had to stop, because going on would not have been safe.
    #[error("stop: {0}")]
    Fatal(String),
}

fn part<E>(what: &'static str) -> impl FnOnce(E) -> RunError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| RunError::Part { what, source: source.into() }
}

/// Runs a node until it is told to stop. Blocks the calling thread.
///
/// # Errors
/// Why it cannot run, or had to stop.
pub fn run(config_path: &Path) -> Result<(), RunError> {
    let config = NodeConfig::load(config_path)?;
    let telemetry = crate::telemetry::start(&config.log);
    let last_words = LastWordsCell::default();
    stop_at_broken_invariants(last_words.clone());
    for warning in &config.warnings {
        tracing::warn!(warning, "configuration");
    }
    understudy_shipping::memory::keep_freed_memory();
    allow_many_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .thread_name("understudy-main")
        .enable_all()
        .build()
        .map_err(part("start the runtime"))?;
    let outcome = runtime.block_on(run_node(config, config_path, &last_words, telemetry));
    // Streams that clients hold open must not hold the end up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Raises the soft limit on open files to the hard one: the doors alone may have thousands of connections,
/// and the usual soft limit of 1024 is for programs that use select(2).
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

/// A panic is a broken invariant, in whichever task: the design is safe when the process stops.
fn stop_at_broken_invariants(last_words: LastWordsCell) {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(%panic, "broken invariant: the daemon stops");
        print(panic);
        // What led to it is what a replay is for.
        if let Some(last_words) = last_words.get() {
            last_words.speak();
        }
        std::process::abort();
    }));
}

async fn run_node(
    mut config: NodeConfig,
    config_path: &Path,
    last_words: &LastWordsCell,
    telemetry: Telemetry,
) -> Result<(), RunError> {
    // Before the certificate is read: from here on a hang-up means "read it again", and is kept.
    let hangup = signal(SignalKind::hangup()).map_err(part("listen for SIGHUP"))?;
    let loaded = Stamps::take(&config);
    let identity = load_identity(&config)?;
    prepare_directories(&config)?;
    let clock: Arc<dyn Clock> = Arc::new(BootClock);
    let grpc = Listener::bind(config.listen_grpc, &identity, ListenOptions::default())
        .await
        .map_err(part("open the gRPC door"))?;
    let http =
        HttpDoor::bind(config.listen_http, &config.http).map_err(part("open the HTTP door"))?;
    // Before anything of the node begins: which incarnation it is of, and whether that is over.
    let identity = recovery::at_start(&mut config, &identity).await?;
    let metrics = crate::metrics::install().map_err(part("prepare the metrics"))?;
    let postgres = match &config.postgres {
        Some(postgres) => Some(prepare_postgres(&config, postgres, Damaged::SetAside).await?),
        None => None,
    };
    let only_journal = match config.kind {
        NodeKind::Journal => Some(prepare_journal(&config, Damaged::SetAside).await?),
        NodeKind::Data | NodeKind::Witness => None,
    };
    let report_dialers = dialers(&config, &identity, &ChannelOptions::consensus())?;
    let asking = dialers(&config, &identity, &ChannelOptions::admin())?;
    let bulk = dialers(&config, &identity, &ChannelOptions::bulk())?;
    let bulk: BulkDialer = Arc::new(move |node| bulk.get(&node).cloned());
    let (consensus, applied) = Consensus::start(consensus_options(&config, &identity))
        .await
        .map_err(part("start the consensus"))?;
    let (sender, events) = mpsc::unbounded_channel();
    let board = Arc::new(Board::new(clock.clone(), sender.clone()));
    let cell = Arc::new(PermitCell::new(Epoch::NONE));
    let shutdown = CancellationToken::new();
    let fatal = watch::Sender::new(None);
    let superseded = Superseded::new(&config, identity.incarnation(), fatal.clone());
    let guard = start_guard(&config, postgres.as_ref().map(|(server, _)| server), &consensus)?;
    let hands = match postgres {
        Some((server, journal)) => {
            let standby = start_relay(&config, &server, &journal, &shutdown)?;
            let agreed = consensus.state();
            let names: BTreeMap<NodeId, NodeName> =
                config.members.iter().map(|m| (m.id, m.name.clone())).collect();
            Some(Hands::new(HandsOptions {
                me: config.id,
                name: config.name.clone(),
                cluster: config.cluster,
                incarnation: consensus.incarnation(),
                data_dir: config.data_dir.clone(),
                config_path: config_path.to_owned(),
                config: Arc::new(config.clone()),
                guard: guard.clone(),
                server,
                journal,
                cell: cell.clone(),
                clock: clock.clone(),
                bulk: bulk.clone(),
                names: Arc::new(move |node| names.get(&node).cloned()),
                standby,
                events: sender.clone(),
                promised: Arc::new(move || promised(&agreed.borrow())),
                fatal: fatal.clone(),
            }))
        }
        None => None,
    };
    let journal_node = only_journal.map(|journal| {
        let options = FollowerOptions {
            me: config.id,
            name: config.name.clone(),
            cluster: config.cluster,
            incarnation: consensus.incarnation(),
            journal,
            only_journal: true,
            clock: clock.clone(),
            bulk: bulk.clone(),
            standby: watch::Sender::new(StandbyProgress::default()).subscribe(),
            events: sender.clone(),
            fatal: fatal.clone(),
        };
        JournalNode::new(options, config.data_dir.clone())
    });
    if let Some(hands) = hands.clone() {
        // Beside the start: an active that is back must not be late for its lease.
        tokio::spawn(async move { hands.look_at_receipts().await });
    }
    let shared = Arc::new(Shared::default());
    let view = watch::Sender::new(None);
    let look_interval_ms = Arc::new(AtomicU64::new(200));
    let (observed_sender, observed) = mpsc::channel(16);
    let seen = watch::Sender::new(LocalSeen::default());
    let recorder = start_recorder(&config, &consensus, last_words)?;
    let driver = Driver {
        core: Core::new(CoreOptions {
            me: config.id,
            kind: config.kind,
            process: consensus.process_start(),
            timing: config.timing,
        })
        .with_damping(config.damping),
        clock: clock.clone(),
        consensus: consensus.clone(),
        hands: hands.clone(),
        journal_node: journal_node.clone(),
        cell: cell.clone(),
        runtime: tokio::runtime::Handle::current(),
        events,
        sender: sender.clone(),
        shared: shared.clone(),
        view: view.clone(),
        look_interval_ms: look_interval_ms.clone(),
        observed: observed_sender,
        running: None,
        guard: guard.clone().map(GuardTeller::new),
        recorder,
    };
    let seen_by_doors = seen.subscribe();
    let sight = match (hands.clone(), journal_node.clone()) {
        (Some(hands), _) => Sight::Data(Box::new(Observer::new(hands, look_interval_ms))),
        (None, Some(node)) => Sight::Journal(node),
        (None, None) => Sight::Nothing,
    };
    tokio::spawn(observe(sight, observed, seen, sender.clone()));
    tokio::spawn(forward_applied(applied, shared.clone(), sender.clone()));
    tokio::spawn(forward_leadership(consensus.clone(), sender.clone()));
    if let Some(hands) = hands.clone() {
        tokio::spawn(forward_source(hands, cell.clone(), sender.clone()));
    }
    for (peer, dialer) in report_dialers {
        let (board, superseded) = (board.clone(), superseded.clone());
        tokio::spawn(reports::exchange(board, config.id, peer, dialer.channel(), superseded));
    }
    spawn_driver(driver)?;
    let warnings = watch::Sender::new(Vec::new());
    let warnings_seen = warnings.subscribe();
    if let Some(hands) = hands.clone() {
        tokio::spawn(limits::look(hands, seen_by_doors.clone(), warnings));
    }
    let room_words = watch::Sender::new(Vec::new());
    let room_words_seen = room_words.subscribe();
    if let (Some(hands), Some(postgres)) = (hands.clone(), &config.postgres) {
        let (journal, pg_wal) = retention::policies(&config, postgres)
            .map_err(part("look at the file systems for WAL"))?;
        tokio::spawn(retention::look_after(hands, clock.clone(), journal, pg_wal, room_words));
    } else if let Some(node) = &journal_node {
        let policy =
            retention::journal_policy(&config).map_err(part("look at the file system for WAL"))?;
        let (journal, state) = (node.journal().clone(), consensus.state());
        let looking =
            retention::look_after_journal(journal, state, clock.clone(), policy, room_words);
        tokio::spawn(looking);
    }
    let follower = match (&hands, &journal_node) {
        (Some(hands), _) => Some(hands.follower().clone()),
        (None, Some(node)) => Some(node.follower().clone()),
        (None, None) => None,
    };
    let service_manager = ServiceManager::start();
    let ask = config.peers().map(|peer| (peer.name.clone(), asking[&peer.id].channel())).collect();
    let config = Arc::new(config);
    let (news, told) = mpsc::channel(16);
    let certificates =
        Certificates { config: config.clone(), identity: identity.clone(), loaded, news };
    tokio::spawn(certificates.follow(hangup, shutdown.clone()));
    let doors = Doors {
        config,
        consensus: consensus.clone(),
        board,
        clock,
        cell,
        shared,
        view: view.subscribe(),
        seen: seen_by_doors,
        warnings: warnings_seen,
        room_words: room_words_seen,
        hands,
        follower,
        superseded,
        service_manager: service_manager.clone(),
        ask,
        identity,
        validation: watch::Sender::new(None),
        telemetry,
    };
    let served = doors::serve(doors, (grpc, http), metrics, told, shutdown.clone());
    let ended = wait_for_end(&consensus, served, fatal.subscribe(), &shutdown, &service_manager);
    let outcome = ended.await;
    if let Some(guard) = guard {
        guard.leave();
    }
    outcome
}

/// The link to the guardian, if there is to be one.
fn start_guard(
    config: &NodeConfig,
    server: Option<&Server>,
    consensus: &Consensus,
) -> Result<Option<Arc<GuardianLink>>, RunError> {
    let (Some(postgres), Some(server)) = (&config.postgres, server) else { return Ok(None) };
    let owner = server.settings().os_user.clone();
    let process = consensus.process_start().0;
    let link = guard::link(&config.data_dir, &postgres.data_directory, owner, process)
        .map_err(part("prepare the guardian"))?;
    if !postgres.guardian {
        guard::retire(&link);
        return Ok(None);
    }
    tokio::spawn(guard::keep(link.clone()));
    Ok(Some(link))
}

/// The decision recorder, unless the configuration says otherwise.
fn start_recorder(
    config: &NodeConfig,
    consensus: &Consensus,
    last_words: &LastWordsCell,
) -> Result<Recorder, RunError> {
    if config.trace_bytes_max == 0 {
        return Ok(Recorder::default());
    }
    let recorder = Recorder::start(RecorderOptions {
        dir: config.data_dir.join("trace"),
        bytes_max: config.trace_bytes_max,
        node: config.id,
        name: config.name.to_string(),
        process: consensus.process_start(),
    })
    .map_err(part("start the recorder's thread"))?;
    if let Some(words) = recorder.last_words() {
        last_words.get_or_init(|| words);
    }
    Ok(recorder)
}

/// The dial as the cluster has agreed on it.
fn promised(state: &ClusterState) -> Promised {
    let config = state.config;
    let bounded = config.mode == DurabilityMode::Bounded;
    let ceiling_seconds = bounded.then_some(config.rpo.as_secs_f64());
    Promised { mode: config.mode, ceiling_seconds }
}

/// The loop gets a thread of its own, so that nothing on the main runtime can hold it up.
fn spawn_driver(driver: Driver) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(part("start the core's runtime"))?;
    std::thread::Builder::new()
        .name("understudy-core".to_owned())
        .spawn(move || {
            runtime.block_on(driver.run());
            // The loop only ends with the daemon, or by a broken invariant, after which nothing may go
            // on: the design is safe when the process stops.
        })
        .map_err(part("start the core's thread"))?;
    Ok(())
}

/// A stop waits at most this long for somebody to take over the leadership of the consensus.
const STEP_ASIDE_PATIENCE: Duration = Duration::from_secs(1);

async fn wait_for_end(
    consensus: &Consensus,
    served: impl Future<Output = Result<(), RunError>>,
    mut own_fatal: watch::Receiver<Option<String>>,
    shutdown: &CancellationToken,
    service_manager: &ServiceManager,
) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(part("listen for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(part("listen for SIGINT"))?;
    let mut fatal = consensus.fatal();
    let outcome = tokio::select! {
        outcome = served => outcome,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        why = fatal.wait_for(Option::is_some) => {
            let why = why.ok().and_then(|why| why.clone()).unwrap_or_default();
            Err(RunError::Fatal(format!("the consensus cannot go on safely: {why}")))
        }
        why = own_fatal.wait_for(Option::is_some) => {
            let why = why.ok().and_then(|why| why.clone()).unwrap_or_default();
            Err(RunError::Fatal(why))
        }
    };
    service_manager.stopping();
    tracing::info!("stopping; PostgreSQL is left to the next daemon, or to the guardian");
    // While it is still served: the new leader needs this node's vote, or at least its log.
    if outcome.is_ok()
        && let Some(leader) = consensus.step_aside(STEP_ASIDE_PATIENCE).await
    {
        tracing::info!(%leader, "leadership was taken over");
    }
    shutdown.cancel();
    consensus.shutdown().await;
    outcome
}

pub(crate) fn load_identity(config: &NodeConfig) -> Result<TlsIdentity, RunError> {
    let tls = &config.tls;
    let identity = TlsIdentity::load(&tls.ca, &tls.certificate, &tls.key)
        .map_err(part("load the node's certificate"))?;
    let wanted = Identity::Node(config.name.clone());
    if *identity.identity() != wanted || identity.cluster() != config.cluster {
        return Err(RunError::WrongCertificate {
            path: tls.certificate.display().to_string(),
            found: format!("{} of cluster {}", identity.identity(), identity.cluster()),
            wanted: format!("{wanted} of cluster {}", config.cluster),
        });
    }
    Ok(identity)
}

pub(crate) fn prepare_directories(config: &NodeConfig) -> Result<(), RunError> {
    let make = |path: &Path, mode: u32, group: Option<u32>| {
        let prepare = || {
            std::fs::create_dir_all(path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            if group.is_some() && rustix::process::geteuid().is_root() {
                chown(path, None, group)?;
            }
            Ok(())
        };
        prepare().map_err(|source| RunError::Directory { path: path.display().to_string(), source })
    };
    // PostgreSQL's user passes through to run/ and reads the journal for restore_command.
    make(&config.data_dir, 0o711, None)?;
    make(&config.data_dir.join("raft"), 0o700, None)?;
    make(&config.data_dir.join("trace"), 0o700, None)?;
    if config.kind == NodeKind::Journal {
        make(&config.data_dir.join("wal"), 0o700, None)?;
        make(&config.data_dir.join("divergent"), 0o700, None)?;
    }
    if let Some(postgres) = &config.postgres {
        let user = OsUser::lookup(&postgres.os_user).map_err(part("find PostgreSQL's user"))?;
        make(&config.data_dir.join("wal"), 0o750, Some(user.gid))?;
        make(&config.data_dir.join("divergent"), 0o700, None)?;
        make(&config.data_dir.join("postgres-state"), 0o700, None)?;
        let run = config.data_dir.join("run");
        make(&run, 0o755, None)?;
        if rustix::process::geteuid().is_root() {
            chown(&run, Some(user.uid), Some(user.gid)).map_err(|source| RunError::Directory {
                path: run.display().to_string(),
                source,
            })?;
        }
    }
    Ok(())
}

/// What becomes of a journal of which WAL that was durable is damaged or gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damaged {
    /// It is moved away, for a person to look at, and begins anew. A node whose journal is empty is not
    /// promoted; it fetches its WAL from the active, or is copied afresh if that has it no more.
    SetAside,
    /// Nothing is changed.
    Refused,
}

pub(crate) async fn prepare_postgres(
    config: &NodeConfig,
    postgres: &PostgresConfig,
    damaged: Damaged,
) -> Result<(Server, Journal), RunError> {
    let server = prepare_server(config, postgres).await?;
    Ok((server, prepare_journal(config, damaged).await?))
}

/// The handle on the server; touches nothing of it.
pub(crate) async fn prepare_server(
    config: &NodeConfig,
    postgres: &PostgresConfig,
) -> Result<Server, RunError> {
    let bin_dir = postgres.bin_dir.clone();
    let binaries = tokio::task::spawn_blocking(move || Binaries::find(bin_dir.as_deref(), None))
        .await
        .expect("looking for programs does not panic")
        .map_err(part("find PostgreSQL's programs"))?;
    let os_user = OsUser::lookup(&postgres.os_user).map_err(part("find PostgreSQL's user"))?;
    let (_, pg_wal) =
        retention::policies(config, postgres).map_err(part("look at the file systems for WAL"))?;
    Server::new(
        Settings {
            data_dir: postgres.data_directory.clone(),
            state_dir: config.data_dir.join("postgres-state"),
            port: postgres.port,
            listen_addresses: postgres.listen_addresses.clone(),
            socket_dir: postgres.socket_directory.clone(),
            os_user,
            log_file: config.data_dir.join("postgres-log").join("postgres.log"),
            parameters: retention::with_limits(postgres.parameters.clone(), &pg_wal),
            node_name: config.name.to_string(),
        },
        binaries,
    )
    .map_err(part("prepare PostgreSQL"))
}

async fn prepare_journal(config: &NodeConfig, damaged: Damaged) -> Result<Journal, RunError> {
    let policy =
        retention::journal_policy(config).map_err(part("look at the file system for WAL"))?;
    let data_dir = config.data_dir.clone();
    let limits = Limits { bytes_max: policy.bytes_max, reserve_bytes: policy.reserve_bytes };
    let options = JournalOptions { limits, ..JournalOptions::default() };
    tokio::task::spawn_blocking(move || open_journal(&data_dir, options, damaged))
        .await
        .expect("opening the journal does not panic")
        .map_err(part("open the journal"))
}

fn open_journal(
    data_dir: &Path,
    options: JournalOptions,
    damaged: Damaged,
) -> Result<Journal, JournalError> {
    let dir = data_dir.join("wal");
    match Journal::open(&dir, options) {
        Err(JournalError::LostWal { path, detail, max_epoch }) if damaged == Damaged::SetAside => {
            let into = journal_aside(data_dir, max_epoch)?;
            tracing::error!(
                path = %path.display(),
                detail,
                into = %into.display(),
                "WAL that was durable here is lost; the journal is set aside and begins anew"
            );
            Journal::open_without_wal(&dir, &into, options)
        }
        opened => opened,
    }
}

fn start_relay(
    config: &NodeConfig,
    server: &Server,
    journal: &Journal,
    shutdown: &CancellationToken,
) -> Result<watch::Receiver<StandbyProgress>, RunError> {
    let version = server.binaries().version();
    let uids = vec![rustix::process::geteuid().as_raw(), server.settings().os_user.uid];
    let options = RelayOptions::new(
        config.data_dir.join("run"),
        uids,
        format!("{}.{}", version.major, version.minor),
        config.name.to_string(),
    );
    let relay = Relay::bind(options, journal.clone()).map_err(part("open the walsender socket"))?;
    let standby = StandbyProgress::of_relay(relay.positions());
    tokio::spawn(relay.run(shutdown.clone()));
    Ok(standby)
}

fn dialers(
    config: &NodeConfig,
    identity: &TlsIdentity,
    options: &ChannelOptions,
) -> Result<BTreeMap<NodeId, Dialer>, RunError> {
    config
        .peers()
        .map(|peer| {
            understudy_transport::dialer(&peer.address, &peer.name, identity, options)
                .map(|dialer| (peer.id, dialer))
                .map_err(part("prepare a channel to a peer"))
        })
        .collect()
}

/// Channels of the consensus' own, made when they are first asked for: then their work is done on its
/// runtime, and nothing on the main one can hold up a heartbeat.
fn consensus_finder(config: &NodeConfig, identity: &TlsIdentity) -> ChannelTo {
    let members: BTreeMap<NodeId, crate::config::Member> =
        config.peers().map(|peer| (peer.id, peer.clone())).collect();
    let identity = identity.clone();
    let made: Mutex<BTreeMap<(NodeId, Lane), Channel>> = Mutex::default();
    Arc::new(move |node, lane| {
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = made.get(&(node, lane)) {
            return Some(channel.clone());
        }
        let peer = members.get(&node)?;
        let options = ChannelOptions::consensus();
        let channel =
            understudy_transport::connect(&peer.address, &peer.name, &identity, &options).ok()?;
        made.insert((node, lane), channel.clone());
        Some(channel)
    })
}

fn consensus_options(config: &NodeConfig, identity: &TlsIdentity) -> ConsensusOptions {
    let founding = |member: &crate::config::Member| understudy_consensus::FoundingMember {
        id: member.id,
        name: member.name.clone(),
        site: member.site.clone(),
        kind: member.kind,
        address: member.address.clone(),
    };
    let initial = config.members.iter().find(|member| member.name == config.initial_active);
    ConsensusOptions {
        data_dir: config.data_dir.join("raft"),
        cluster: config.cluster,
        incarnation: identity.incarnation(),
        node: config.id,
        name: config.name.clone(),
        members: config.members.iter().map(founding).collect(),
        initial_active: initial.expect("validation requires that it is a member").id,
        config: config.durability,
        heartbeat: config.timing.heartbeat,
        election_min: config.timing.election_min,
        election_max: config.timing.election_max,
        channel: consensus_finder(config, identity),
    }
}

async fn forward_applied(
    mut applied: mpsc::UnboundedReceiver<Applied>,
    shared: Arc<Shared>,
    sender: mpsc::UnboundedSender<Event>,
) {
    while let Some(entry) = applied.recv().await {
        let index = entry.index;
        let event = Event::State { state: entry.state, applied: entry.command.zip(entry.outcome) };
        if sender.send(event).is_err() {
            return;
        }
        shared.applied_index.send_replace(index);
    }
}

async fn forward_leadership(consensus: Consensus, sender: mpsc::UnboundedSender<Event>) {
    let mut leadership = consensus.leadership();
    loop {
        let now = *leadership.borrow_and_update();
        let event = Event::Leadership { is_leader: now.is_leader, majority: now.majority };
        if sender.send(event).is_err() || leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Carries the source's positions to the core, and shuts the gate when a receiver knows a newer epoch.
async fn forward_source(hands: Hands, cell: Arc<PermitCell>, sender: mpsc::UnboundedSender<Event>) {
    let mut source = hands.source();
    loop {
        let now = source.borrow_and_update().clone();
        let Some(handle) = now else {
            if sender.send(Event::Source(None)).is_err() || source.changed().await.is_err() {
                return;
            }
            continue;
        };
        let mut positions = handle.positions();
        let mut newer = handle.newer_epoch();
        loop {
            let event = Event::Source(Some(positions.borrow_and_update().clone()));
            if sender.send(event).is_err() {
                return;
            }
            tokio::select! {
                changed = positions.changed() => if changed.is_err() { break },
                changed = newer.changed() => {
                    if changed.is_ok() && newer.borrow_and_update().is_some() {
                        let released_upto = cell.close();
                        tracing::warn!(%released_upto, "a receiver knows a newer epoch: gate shut");
                    }
                }
                _ = source.changed() => break,
            }
        }
    }
}
