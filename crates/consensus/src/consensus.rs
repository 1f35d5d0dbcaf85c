//! The facade: everything that the daemon sees of consensus.
//!
//! openraft runs on a runtime of its own with two threads, so that elections and heartbeats never
//! wait behind WAL. A command is retried only while it is certain that nobody appended it; what may
//! have been appended is reported as unknown and left to the caller.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::storage::RaftLogStorage as _;
use openraft::{Config, SnapshotPolicy};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::{Code, Request, Status};
use understudy_core::ClusterConfig;
use understudy_core::state::{ClusterState, Command, Outcome};
use understudy_proto::v1;
use understudy_proto::v1::peer_client::PeerClient;
use understudy_types::{
    ClusterId, ClusterIncarnation, Incarnation, NodeId, NodeName, ProcessStart,
};

use crate::admission::Admission;
use crate::device::{Device, Directory};
use crate::founding::{Founding, FoundingStatus};
use crate::leadership::{self, Leadership};
use crate::network::Network;
use crate::peers::{ChannelTo, FoundingMember, Lane, Peers};
use crate::server::{PeerServer, Write, read_index, write};
use crate::state_machine::{Applied, StateMachine, StateMachineError, snapshot_dir};
use crate::steering::{self, Pace, Steering};
use crate::store::{LogStore, StoreError, StoreOptions, StoredIdentity, UnderWay};
use crate::{RaftHandle, decode_outcome, encode_command};

const RETRY_EVERY: Duration = Duration::from_millis(50);
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// After so many of the longest election timeouts a write to the own storage counts as hanging.
const DISK_PATIENCE: u32 = 2;

/// What consensus needs to know.
#[derive(Clone)]
pub struct ConsensusOptions {
    /// Its own directory, kept by this crate alone.
    pub data_dir: PathBuf,
    /// The cluster's uuid.
    pub cluster: ClusterId,
    /// Which incarnation of it; the members' numbers are those of this incarnation.
    pub incarnation: ClusterIncarnation,
    /// This node's number.
    pub node: NodeId,
    /// This node's name, as in its certificate.
    pub name: NodeName,
    /// The founding list, this node included; the same on every node.
    pub members: Vec<FoundingMember>,
    /// Who is granted the first epoch.
    pub initial_active: NodeId,
    /// What the cluster is founded with.
    pub config: ClusterConfig,
    /// How often a leader is heard.
    pub heartbeat: Duration,
    /// The shortest silence before a follower stands for election.
    pub election_min: Duration,
    /// The longest; also for how long followers stay loyal to a silent leader.
    pub election_max: Duration,
    /// The way to the others. It is called on consensus' own runtime.
    pub channel: ChannelTo,
}

/// Why consensus cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// The options contradict themselves.
    #[error("start consensus: {0}")]
    Options(String),
    /// The log cannot be used.
    #[error("start consensus: the log is not usable")]
    Store(#[from] StoreError),
    /// The snapshot cannot be used.
    #[error("start consensus: the state is not usable")]
    StateMachine(#[from] StateMachineError),
    /// No threads.
    #[error("start consensus: create its runtime")]
    Runtime(#[source] std::io::Error),
    /// openraft does not start.
    #[error("start consensus: {0}")]
    Raft(String),
}

/// Why a command was not answered with an outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nobody leads; the command was certainly not appended.
    #[error("propose command: no leader within the time allowed")]
    NoLeader,
    /// The leader was not reached or refused; the command was certainly not appended.
    #[error("propose command: not sent: {0}")]
    NotSent(String),
    /// It may have been appended, and may yet be applied.
    #[error("propose command: outcome unknown: {0}")]
    Unknown(String),
}

/// How much log is kept here, by index; for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogRange {
    /// Everything up to here is only in the snapshot.
    pub purged: Option<u64>,
    /// What the snapshot contains.
    pub snapshot: Option<u64>,
    /// What the state contains.
    pub applied: Option<u64>,
    /// The last entry.
    pub last: Option<u64>,
}

/// A running member of the consensus. Clones are handles of the same.
#[derive(Clone)]
pub struct Consensus(Arc<Inner>);

struct Inner {
    raft: RaftHandle,
    peers: Arc<Peers>,
    identity: StoredIdentity,
    admitted: Arc<AtomicBool>,
    leadership: watch::Receiver<Leadership>,
    founding: watch::Receiver<FoundingStatus>,
    fatal: watch::Receiver<Option<String>>,
    tasks: Vec<tokio::task::AbortHandle>,
    pace: Pace,
    under_way: Arc<UnderWay>,
    handle: Handle,
    /// Its own, unless it was started on the caller's.
    runtime: Mutex<Option<Runtime>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A runtime must not be dropped where it may not block; this one is told to end instead.
        let runtime = self.runtime.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }
}

impl ConsensusOptions {
    fn pace(&self) -> Pace {
        let ConsensusOptions { heartbeat, election_min, election_max, .. } = *self;
        Pace { heartbeat, election_min, election_max }
    }
}

/// What consensus stands on instead of a directory and threads of its own.
pub struct Surroundings {
    /// What survives the process.
    pub device: Arc<dyn Device>,
    /// Where everything runs.
    pub runtime: Handle,
    /// Entries from one snapshot to the next; a quarter of them is kept in the log behind it.
    pub snapshot_every: u64,
}

/// Entries from one snapshot to the next.
const SNAPSHOT_EVERY: u64 = 2000;

fn raft_config(options: &ConsensusOptions, snapshot_every: u64) -> Result<Config, ConsensusError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: options.cluster.to_string(),
        // openraft also ends each heartbeat after this, and a leader whose heartbeats are not
        // answered in time accepts no command. So it is the patience; `steering` sets the pace.
        heartbeat_interval: millis(options.pace().answer_patience()),
        election_timeout_min: millis(options.election_min),
        election_timeout_max: millis(options.election_max),
        enable_pre_vote: Some(true),
        // A restarted leader stands for election like everybody else: what it had committed last is
        // known only to the others.
        enable_leader_restore: Some(false),
        install_snapshot_timeout: 10_000,
        max_payload_entries: 256,
        replication_lag_threshold: 4000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every),
        max_in_snapshot_log_to_keep: snapshot_every / 4,
        purge_batch_size: 64,
        backoff: "50ms 100ms 200ms ...500ms".to_owned(),
        ..Config::default()
    };
    config.validate().map_err(|error| ConsensusError::Options(error.to_string()))
}

fn check_members(options: &ConsensusOptions) -> Result<(), ConsensusError> {
    let bad = |why: String| Err(ConsensusError::Options(why));
    let ids: std::collections::BTreeSet<_> = options.members.iter().map(|m| m.id).collect();
    let names: std::collections::BTreeSet<_> = options.members.iter().map(|m| &m.name).collect();
    if ids.len() != options.members.len() || names.len() != options.members.len() {
        return bad("an id or a name occurs twice in the founding list".to_owned());
    }
    if !options.members.iter().any(|m| m.id == options.node && m.name == options.name) {
        return bad(format!(
            "node {} ({}) is not in the founding list",
            options.node, options.name
        ));
    }
    Ok(())
}

impl Consensus {
    /// Opens the storage and takes part from now on. Applied entries come in log order through the
    /// channel, which must be read.
    ///
    /// # Errors
    /// When the options or the storage are not usable, or another process uses the storage.
    pub async fn start(
        options: ConsensusOptions,
    ) -> Result<(Consensus, mpsc::UnboundedReceiver<Applied>), ConsensusError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("consensus")
            .enable_all()
            .build()
            .map_err(ConsensusError::Runtime)?;
        let surroundings = Surroundings {
            device: Arc::new(Directory::with_snapshots(
                &options.data_dir,
                &snapshot_dir(&options.data_dir, options.incarnation),
            )),
            runtime: runtime.handle().clone(),
            snapshot_every: SNAPSHOT_EVERY,
        };
        Consensus::start_within(options, surroundings, Some(runtime)).await
    }

    /// The same in surroundings that the caller gives, for simulated time; the options' `data_dir`
    /// is not used.
    ///
    /// # Errors
    /// As [`Consensus::start`].
    pub async fn start_on(
        options: ConsensusOptions,
        surroundings: Surroundings,
    ) -> Result<(Consensus, mpsc::UnboundedReceiver<Applied>), ConsensusError> {
        Consensus::start_within(options, surroundings, None).await
    }

    async fn start_within(
        options: ConsensusOptions,
        surroundings: Surroundings,
        runtime: Option<Runtime>,
    ) -> Result<(Consensus, mpsc::UnboundedReceiver<Applied>), ConsensusError> {
        let (handle, pace) = (surroundings.runtime.clone(), options.pace());
        let starting = handle.spawn(Parts::start(options, surroundings));
        let started = starting.await.unwrap_or_else(|error| {
            Err(ConsensusError::Raft(format!("the starting task failed: {error}")))
        });
        match started {
            Ok((parts, applied)) => {
                let Parts { raft, peers, identity, admitted, leadership, founding, .. } = parts;
                let Parts { fatal, under_way, tasks, .. } = parts;
                let inner = Inner {
                    raft,
                    peers,
                    identity,
                    admitted,
                    leadership,
                    founding,
                    fatal,
                    tasks,
                    pace,
                    under_way,
                    handle,
                    runtime: Mutex::new(runtime),
                };
                Ok((Consensus(Arc::new(inner)), applied))
            }
            Err(error) => {
                if let Some(runtime) = runtime {
                    runtime.shutdown_background();
                }
                Err(error)
            }
        }
    }

    /// Has `command` applied, here or at the leader, and gives its log index and outcome. Dropping
    /// the future leaves open whether it is.
    ///
    /// # Errors
    /// Every one says whether the command can still take effect.
    pub async fn propose(
        &self,
        command: Command,
        timeout: Duration,
    ) -> Result<(u64, Outcome), ProposeError> {
        let command = encode_command(&command);
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let refused = match self.try_propose(command.clone(), left).await {
                Err(ProposeError::Unknown(why)) => return Err(ProposeError::Unknown(why)),
                Err(error) => error,
                Ok((index, outcome)) => {
                    let outcome = decode_outcome(&outcome)
                        .map_err(|error| ProposeError::Unknown(format!("applied, but {error}")))?;
                    return Ok((index, outcome));
                }
            };
            if Instant::now() + RETRY_EVERY >= deadline {
                return Err(refused);
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    async fn try_propose(
        &self,
        command: Vec<u8>,
        left: Duration,
    ) -> Result<(u64, Vec<u8>), ProposeError> {
        use v1::propose_response::Result as Answer;
        // The others could agree on it without this disk, and this node would never know: a lease would be
        // renewed that its holder cannot see, and nobody could take over.
        let owed = self.0.under_way.owed_for();
        if owed > self.0.pace.election_max * DISK_PATIENCE {
            return Err(ProposeError::NotSent(format!(
                "the own storage has not taken a write for {owed:?}"
            )));
        }
        let Some(leader) = self.leader() else { return Err(ProposeError::NoLeader) };
        if leader == self.0.peers.node {
            let written = tokio::select! {
                written = write(&self.0.raft, command, left) => written,
                () = self.another_leads(leader) => {
                    Write::Unknown("this node does not lead any more".to_owned())
                }
            };
            return match written {
                Write::Applied { index, outcome } => Ok((index, outcome)),
                Write::NotLeader(_) => Err(ProposeError::NoLeader),
                Write::Unknown(why) => Err(ProposeError::Unknown(why)),
            };
        }
        let lane = self.0.peers.lane(leader);
        let mut client = self.client(leader, lane)?;
        let mut request = Request::new(v1::ProposeRequest { command });
        request.set_timeout(left);
        let asked = self.0.peers.awaited(leader, lane, client.propose(request));
        let asked = tokio::time::timeout(left, asked);
        let answer = tokio::select! {
            answer = asked => answer,
            // Whoever waits for a leader that was replaced could have asked the new one long ago.
            () = self.another_leads(leader) => {
                let why = format!("node {leader} does not lead any more");
                return Err(ProposeError::Unknown(why));
            }
        };
        let answer = match answer {
            Err(_) => {
                let why = format!("node {leader} did not answer within {left:?}");
                return Err(ProposeError::Unknown(why));
            }
            Ok(Err(status)) => return Err(propose_error(&status)),
            Ok(Ok(answer)) => answer.into_inner(),
        };
        match answer.result {
            Some(Answer::Applied(applied)) => Ok((applied.index, applied.outcome)),
            Some(Answer::NotLeader(_)) => Err(ProposeError::NoLeader),
            None => Err(ProposeError::Unknown("the leader's answer is empty".to_owned())),
        }
    }

    /// A linearizable read: when it returns, everything that was acknowledged anywhere before the
    /// call is applied to this node's state. Gives the log index of that moment.
    ///
    /// # Errors
    /// When no majority confirmed a leader in time; never `Unknown`.
    pub async fn read_index(&self, timeout: Duration) -> Result<u64, ProposeError> {
        let reading = async {
            loop {
                if let Ok(index) = self.try_read_index().await {
                    return index;
                }
                tokio::time::sleep(RETRY_EVERY).await;
            }
        };
        let reading = async {
            let index = reading.await;
            self.applied_to(index).await.map(|()| index)
        };
        tokio::time::timeout(timeout, reading).await.unwrap_or(Err(ProposeError::NoLeader))
    }

    async fn try_read_index(&self) -> Result<u64, ProposeError> {
        use v1::read_index_response::Result as Answer;
        let leader = self.leader().ok_or(ProposeError::NoLeader)?;
        if leader == self.0.peers.node {
            return read_index(&self.0.raft).await.map_err(|_| ProposeError::NoLeader);
        }
        let send_on = |lane: Lane| {
            let mut client = self.client(leader, lane)?;
            Ok::<_, ProposeError>(async move { client.read_index(v1::ReadIndexRequest {}).await })
        };
        let answer = tokio::select! {
            answer = self.0.peers.first_answer(leader, send_on) => answer?,
            // A read has no effect: it is simply asked again, of the new leader.
            () = self.another_leads(leader) => return Err(ProposeError::NoLeader),
        };
        match answer.map_err(|status| propose_error(&status))?.into_inner().result {
            Some(Answer::Index(index)) => Ok(index),
            Some(Answer::NotLeader(_)) | None => Err(ProposeError::NoLeader),
        }
    }

    async fn applied_to(&self, index: u64) -> Result<(), ProposeError> {
        let mut metrics = self.0.raft.metrics();
        loop {
            if metrics.borrow_and_update().last_applied.is_some_and(|id| id.index >= index) {
                return Ok(());
            }
            if metrics.changed().await.is_err() {
                return Err(ProposeError::NotSent("consensus has stopped".to_owned()));
            }
        }
    }

    /// Returns once somebody else than `leader` has led for a while: a leader that went in order still
    /// answers what the next one has finished for it, one that was cut off does not.
    async fn another_leads(&self, leader: NodeId) {
        let mut metrics = self.0.raft.metrics();
        loop {
            if metrics.borrow_and_update().current_leader.is_some_and(|now| now != leader.0) {
                return tokio::time::sleep(self.0.pace.election_min).await;
            }
            if metrics.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn leader(&self) -> Option<NodeId> {
        self.0.raft.metrics().borrow_watched().current_leader.map(NodeId)
    }

    fn client(
        &self,
        node: NodeId,
        lane: Lane,
    ) -> Result<PeerClient<tonic::transport::Channel>, ProposeError> {
        if self.0.raft.metrics().borrow_watched().running_state.is_err() {
            return Err(ProposeError::NotSent("consensus has stopped".to_owned()));
        }
        // The channel's connection belongs to consensus' runtime, whoever asks first.
        let _entered = self.0.handle.enter();
        self.0
            .peers
            .channel_on(node, lane)
            .map(PeerClient::new)
            .ok_or_else(|| ProposeError::NotSent(format!("node {node} has no address")))
    }

    /// Who leads, and whether a majority is in reach.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.clone()
    }

    /// The state as applied here.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.0.peers.state.clone()
    }

    /// How far the founding is.
    pub fn founding(&self) -> watch::Receiver<FoundingStatus> {
        self.0.founding.clone()
    }

    /// How much log is kept here.
    pub fn log_range(&self) -> LogRange {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        LogRange {
            purged: metrics.purged.map(|id| id.index),
            snapshot: metrics.snapshot.map(|id| id.index),
            applied: metrics.last_applied.map(|id| id.index),
            last: metrics.last_log_index,
        }
    }

    /// Whose storage this is.
    pub fn identity(&self) -> StoredIdentity {
        self.0.identity.clone()
    }

    /// Who has a vote, by the newest membership here.
    pub fn voters(&self) -> Vec<NodeId> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.voter_ids().map(NodeId).collect()
    }

    /// A vote or a log is stored here, so that this node can take part in an election.
    pub async fn can_vote(&self) -> bool {
        self.0.raft.is_initialized().await.unwrap_or(false)
    }

    /// The storage's own identity.
    pub fn incarnation(&self) -> Incarnation {
        self.0.peers.incarnation
    }

    /// Which start of this node's daemon this is.
    pub fn process_start(&self) -> ProcessStart {
        ProcessStart(self.0.identity.process_start)
    }

    /// What answers the other nodes.
    pub fn server(&self) -> PeerServer {
        PeerServer {
            raft: self.0.raft.clone(),
            peers: Arc::clone(&self.0.peers),
            admitted: Arc::clone(&self.0.admitted),
            runtime: self.0.handle.clone(),
            pace: self.0.pace,
        }
    }

    /// Before a planned stop: hands leadership, if this node has it, to a follower that was heard
    /// just now. Gives the new leader; `None` when there was nothing to hand over, or nobody took it
    /// within the time, and then the others elect one as ever.
    pub async fn step_aside(&self, within: Duration) -> Option<NodeId> {
        steering::step_aside(&self.0.raft, self.0.pace, within).await
    }

    /// Set once consensus has stopped for a reason that a restart must answer: the daemon must stop.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.0.fatal.clone()
    }

    /// Stops taking part. The storage is closed when the last handle is gone.
    pub async fn shutdown(&self) {
        for task in &self.0.tasks {
            task.abort();
        }
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not stop cleanly");
        }
        let runtime = self.0.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            let stopping =
                tokio::task::spawn_blocking(move || runtime.shutdown_timeout(STOP_WITHIN));
            if let Err(error) = stopping.await {
                tracing::warn!(%error, "consensus' runtime did not stop cleanly");
            }
        }
    }
}

/// Whether a failed call can have reached the leader's log.
fn propose_error(status: &Status) -> ProposeError {
    let why = status.message().to_owned();
    let refused = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::Unimplemented
    );
    if refused || never_connected(status) {
        ProposeError::NotSent(why)
    } else {
        ProposeError::Unknown(why)
    }
}

/// tonic says so only in the chain of causes.
fn never_connected(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What is made on consensus' own runtime.
struct Parts {
    raft: RaftHandle,
    peers: Arc<Peers>,
    identity: StoredIdentity,
    admitted: Arc<AtomicBool>,
    leadership: watch::Receiver<Leadership>,
    founding: watch::Receiver<FoundingStatus>,
    fatal: watch::Receiver<Option<String>>,
    under_way: Arc<UnderWay>,
    tasks: Vec<tokio::task::AbortHandle>,
}

impl Parts {
    async fn start(
        options: ConsensusOptions,
        surroundings: Surroundings,
    ) -> Result<(Parts, mpsc::UnboundedReceiver<Applied>), ConsensusError> {
        check_members(&options)?;
        let Surroundings { device, runtime: handle, snapshot_every } = surroundings;
        let config = Arc::new(raft_config(&options, snapshot_every)?);
        let pace = options.pace();
        let ConsensusOptions { cluster, node, name, members, channel, .. } = options;
        let incarnation = options.incarnation;
        let store_options = StoreOptions {
            cluster: cluster.0,
            node_id: node.0,
            name: name.to_string(),
            incarnation,
        };
        let mut store = LogStore::open_on(Arc::clone(&device), &store_options)?;
        let (machine, applied) = StateMachine::open_on(device)?;
        let log = store.get_log_state().await;
        let log = log.map_err(|error| ConsensusError::Raft(error.to_string()))?;
        machine.check_log(log.last_purged_log_id.as_ref())?;
        let identity = store.identity().clone();
        let state = machine.state();
        let storage = (Incarnation(identity.incarnation), store.pasts());
        let peers = Arc::new(Peers::new((cluster, node, name), storage, &members, channel, state));
        // The storage of a later incarnation was made on purpose, so no vote of it was ever lost.
        let admitted = AtomicBool::new(!store.was_empty() || !incarnation.is_founded());
        let admitted = Arc::new(admitted);

        let network = Network { peers: Arc::clone(&peers) };
        let condemned = store.clone();
        let under_way = store.under_way();
        let raft = RaftHandle::new(node.0, config, network, store, machine)
            .await
            .map_err(|error| ConsensusError::Raft(error.to_string()))?;

        let (leadership_sender, leadership) = watch::channel(Leadership::default());
        let (fatal_sender, fatal) = watch::channel(None);
        let recent = options.election_max * 2;
        let watching = leadership::watch(
            raft.clone(),
            condemned,
            Arc::clone(&peers),
            recent,
            leadership_sender,
            fatal_sender,
        );
        let waiting = FoundingStatus::Waiting { r#for: Vec::new() };
        let (status, founding) = watch::channel(waiting);
        let work = Founding {
            raft: raft.clone(),
            peers: Arc::clone(&peers),
            admitted: Arc::clone(&admitted),
            leadership: leadership.clone(),
            config: options.config,
            initial_active: options.initial_active,
            incarnation,
            status,
        };
        let steering = Steering { raft: raft.clone(), peers: Arc::clone(&peers), pace };
        let admission = Admission {
            raft: raft.clone(),
            peers: Arc::clone(&peers),
            leadership: leadership.clone(),
            incarnation,
        };
        let tasks = vec![
            handle.spawn(watching).abort_handle(),
            handle.spawn(work.run()).abort_handle(),
            handle.spawn(steering.run()).abort_handle(),
            handle.spawn(admission.run()).abort_handle(),
        ];
        let parts = Parts {
            raft,
            peers,
            identity,
            admitted,
            leadership,
            founding,
            fatal,
            under_way,
            tasks,
        };
        Ok((parts, applied))
    }
}
