//! Three nodes of consensus in one process, over real sockets with real certificates.
//!
//! The network is cut by taking away the way to a node; nothing else here is a stand-in.

mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;
use understudy_consensus::*;
use understudy_core::ClusterConfig;
use understudy_core::state::{Command, Mark};
use understudy_proto::v1::peer_server::PeerServer as PeerService;
use understudy_transport as transport;
use understudy_types::{ClusterId, ClusterIncarnation, NodeId, NodeKind, NodeName};
use uuid::Uuid;

use service::Service;
pub(crate) use understudy_line::{Habit, Line};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Where everybody is, and who is cut off.
#[derive(Default)]
struct Ways {
    addresses: BTreeMap<NodeId, SocketAddr>,
    cut: BTreeSet<NodeId>,
    /// From whom to whom; empty where nobody plays with single lines.
    lines: BTreeMap<(NodeId, NodeId), Line>,
}

pub(crate) struct Lab {
    dir: tempfile::TempDir,
    authority: transport::Authority,
    cluster: ClusterId,
    ways: Arc<Mutex<Ways>>,
    files: AtomicU64,
    with_lines: bool,
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) consensus: Consensus,
    pub(crate) applied: mpsc::UnboundedReceiver<Applied>,
    /// A runtime of its own, so that its connections end with it.
    serving: Option<tokio::runtime::Runtime>,
}

pub(crate) fn name(id: u64) -> NodeName {
    ["", "north-1", "south-1", "witness"][usize::try_from(id).unwrap()].parse().unwrap()
}

/// A command that is always accepted: it replaces node 1's mark.
pub(crate) fn mark(text: impl ToString) -> Command {
    Command::SetMark { node: NodeId(1), mark: Mark::Suspect(text.to_string()) }
}

/// Waits for a condition on a watched value, and panics with its last value when it does not come.
pub(crate) async fn wait<T: Clone + std::fmt::Debug>(
    what: &str,
    watched: &mut watch::Receiver<T>,
    mut reached: impl FnMut(&T) -> bool,
) -> T {
    let waited = tokio::time::timeout(PATIENCE, watched.wait_for(|value| reached(value))).await;
    if let Some(value) = waited.ok().and_then(|found| found.ok().map(|value| value.clone())) {
        return value;
    }
    panic!("{what} did not come within {PATIENCE:?}; last: {:?}", watched.borrow())
}

impl Lab {
    pub(crate) fn new() -> Lab {
        let cluster = ClusterId(Uuid::new_v4());
        let authority = transport::Authority::create(cluster).unwrap();
        let dir = tempfile::tempdir().unwrap();
        authority.save(&dir.path().join("ca.pem"), &dir.path().join("ca.key")).unwrap();
        let ways = Arc::default();
        Lab { dir, authority, cluster, ways, files: AtomicU64::new(0), with_lines: false }
    }

    /// As [`Lab::new`], with a line between any two nodes whose habits can be set.
    pub(crate) fn with_lines() -> Lab {
        Lab { with_lines: true, ..Lab::new() }
    }

    /// What `from` has begun towards `to` stands still from now on, but a new connection works; says
    /// how many they were.
    pub(crate) fn connections_stand_still(&self, from: NodeId, to: NodeId) -> usize {
        let ways = self.ways.lock().unwrap();
        let line = &ways.lines[&(from, to)];
        let dead_before = line.begun();
        line.set(Habit { dead_before, ..Habit::default() });
        dead_before
    }

    /// Sets how the line between two nodes behaves, whoever dialled.
    pub(crate) fn between(&self, one: NodeId, other: NodeId, habit: Habit) {
        let ways = self.ways.lock().unwrap();
        for pair in [(one, other), (other, one)] {
            ways.lines[&pair].set(habit);
        }
    }

    pub(crate) fn identity(&self, node: u64) -> transport::TlsIdentity {
        let issued = self.authority.issue(&transport::Identity::Node(name(node))).unwrap();
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let base = self.dir.path().join(number.to_string());
        let (cert, key) = (base.with_extension("pem"), base.with_extension("key"));
        issued.save(&cert, &key).unwrap();
        transport::TlsIdentity::load(&self.dir.path().join("ca.pem"), &cert, &key).unwrap()
    }

    pub(crate) fn members(&self) -> Vec<FoundingMember> {
        let member = |id: u64| FoundingMember {
            id: NodeId(id),
            name: name(id),
            site: ["", "north", "south", "middle"][usize::try_from(id).unwrap()].parse().unwrap(),
            kind: if id == 3 { NodeKind::Witness } else { NodeKind::Data },
            address: format!("{}:7400", name(id)),
        };
        (1..=3).map(member).collect()
    }

    pub(crate) fn data_dir(&self, node: u64) -> PathBuf {
        self.dir.path().join(format!("raft-{node}"))
    }

    pub(crate) fn address(&self, node: u64) -> String {
        self.ways.lock().unwrap().addresses[&NodeId(node)].to_string()
    }

    /// From now on nobody reaches `node`, and it reaches nobody.
    pub(crate) fn cut(&self, node: NodeId) {
        self.ways.lock().unwrap().cut.insert(node);
    }

    pub(crate) fn heal(&self, node: NodeId) {
        self.ways.lock().unwrap().cut.remove(&node);
    }

    fn channel(&self, from: u64) -> ChannelTo {
        let (ways, identity) = (Arc::clone(&self.ways), self.identity(from));
        let own: Mutex<BTreeMap<(NodeId, Lane, SocketAddr), Channel>> = Mutex::default();
        Arc::new(move |to, lane| {
            let ways = ways.lock().unwrap();
            if ways.cut.contains(&NodeId(from)) || ways.cut.contains(&to) {
                return None;
            }
            let direct = ways.addresses.get(&to).copied();
            let line = ways.lines.get(&(NodeId(from), to)).map(|line| line.address);
            let address = line.or(direct)?;
            let mut own = own.lock().unwrap();
            let channel = own.entry((to, lane, address)).or_insert_with(|| {
                let options = transport::ChannelOptions::consensus();
                transport::connect(&address.to_string(), &name(to.0), &identity, &options).unwrap()
            });
            Some(channel.clone())
        })
    }

    pub(crate) fn options(&self, node: u64) -> ConsensusOptions {
        ConsensusOptions {
            data_dir: self.data_dir(node),
            cluster: self.cluster,
            incarnation: ClusterIncarnation::FOUNDED,
            node: NodeId(node),
            name: name(node),
            members: self.members(),
            initial_active: NodeId(1),
            config: ClusterConfig::default(),
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
            channel: self.channel(node),
        }
    }

    pub(crate) async fn start(&self, node: u64) -> Node {
        self.start_with(self.options(node)).await
    }

    pub(crate) async fn start_with(&self, options: ConsensusOptions) -> Node {
        let id = options.node;
        // The file of a node that was just stopped is closed by a thread of its own.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let (consensus, applied) = loop {
            match Consensus::start(options.clone()).await {
                Ok(started) => break started,
                Err(ConsensusError::Store(StoreError::Open { .. }))
                    if tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("node {id} does not start: {error:?}"),
            }
        };
        let any = "127.0.0.1:0".parse().unwrap();
        let identity = self.identity(id.0);
        let serving = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let options = transport::ListenOptions::default();
        let listening =
            serving.spawn(async move { transport::Listener::bind(any, &identity, options).await });
        let listener = listening.await.unwrap().unwrap();
        if self.with_lines {
            for from in (1..=3).map(NodeId).filter(|from| *from != id) {
                let line = Line::to(listener.local_addr()).await.unwrap();
                self.ways.lock().unwrap().lines.insert((from, id), line);
            }
        }
        self.ways.lock().unwrap().addresses.insert(id, listener.local_addr());
        let service = PeerService::new(Service(consensus.server()));
        let server = transport::server().add_service(service);
        serving.spawn(async move {
            server.serve_with_incoming(listener.incoming()).await.unwrap();
        });
        Node { id, consensus, applied, serving: Some(serving) }
    }

    /// Three nodes, founded.
    pub(crate) async fn cluster(&self) -> Vec<Node> {
        let mut nodes = Vec::new();
        for id in 1..=3 {
            nodes.push(self.start(id).await);
        }
        for node in &nodes {
            node.founded().await;
        }
        nodes
    }
}

impl Node {
    pub(crate) async fn founded(&self) {
        let mut founding = self.consensus.founding();
        wait("founding", &mut founding, |status| *status == FoundingStatus::Done).await;
    }

    pub(crate) async fn stop(mut self) {
        self.serving.take().unwrap().shutdown_background();
        self.consensus.shutdown().await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.shutdown_background();
        }
    }
}

/// Waits for a condition that nobody announces.
pub(crate) async fn until(what: &str, reached: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !reached() {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The index in `nodes` of the one that leads.
pub(crate) async fn leader(nodes: &[Node]) -> usize {
    let leads = || nodes.iter().position(|n| n.consensus.leadership().borrow().is_leader);
    until("a leader", || leads().is_some()).await;
    leads().expect("it led a moment ago")
}
