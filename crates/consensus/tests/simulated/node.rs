//! One node: the real stack on a simulated network, disk and clock, with a client beside it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};
use turmoil::net::{TcpListener, TcpStream};
use understudy_consensus::*;
use understudy_core::ClusterConfig;
use understudy_core::state::{Command, Mark};
use understudy_proto::v1::peer_server::PeerServer as PeerService;
use understudy_transport as transport;
use understudy_types::{ClusterId, ClusterIncarnation, NodeId, NodeKind, NodeName};
use uuid::Uuid;

use crate::disk::Disk;
use crate::history::History;
use crate::service::Service;

const PORT: u16 = 7400;
/// Few, so that snapshots are made, sent and installed in every run.
const SNAPSHOT_EVERY: u64 = 30;
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn name(node: u64) -> String {
    format!("node-{node}")
}

/// What a node finds at each start.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) node: u64,
    pub(crate) disk: Disk,
    pub(crate) history: History,
    /// Set when the node cannot go on without a restart, with the reason.
    pub(crate) ended: Arc<Mutex<Option<String>>>,
    /// Differs from node to node, so that openraft's own dice decide nothing.
    pub(crate) election: Duration,
    /// How often the client beside the node asks.
    pub(crate) pace: Duration,
}

impl Place {
    fn options(&self) -> ConsensusOptions {
        ConsensusOptions {
            data_dir: "not-used".into(),
            cluster: ClusterId(Uuid::nil()),
            incarnation: ClusterIncarnation::FOUNDED,
            node: NodeId(self.node),
            name: name(self.node).parse().unwrap(),
            members: (1..=3).map(member).collect(),
            initial_active: NodeId(1),
            config: ClusterConfig::default(),
            heartbeat: Duration::from_millis(100),
            election_min: self.election,
            election_max: self.election + Duration::from_millis(1),
            channel: channels(),
        }
    }

    /// Runs until the power goes.
    pub(crate) async fn run(self) -> turmoil::Result {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
        let surroundings = Surroundings {
            device: Arc::new(self.disk.clone()),
            runtime: tokio::runtime::Handle::current(),
            snapshot_every: SNAPSHOT_EVERY,
        };
        let (consensus, applied) = match Consensus::start_on(self.options(), surroundings).await {
            Ok(started) => started,
            Err(error) => return self.end(format!("start: {error:?}")).await,
        };
        let node = NodeId(self.node);
        self.history.book().started(node, consensus.process_start());
        tokio::spawn(serve(listener, consensus.clone()));
        tokio::spawn(follow(node, self.history.clone(), applied));
        tokio::spawn(watch_leader(node, self.history.clone(), consensus.clone()));
        tokio::spawn(propose(self.clone(), consensus.clone()));
        let mut fatal = consensus.fatal();
        let why = fatal.wait_for(Option::is_some).await.map(|why| why.clone().unwrap_or_default());
        self.end(why.unwrap_or_else(|_| "consensus is gone".to_owned())).await
    }

    /// As a daemon would end: nothing more happens until somebody starts it again.
    async fn end(&self, why: String) -> turmoil::Result {
        *self.ended.lock().unwrap() = Some(why);
        std::future::pending().await
    }
}

fn member(id: u64) -> FoundingMember {
    FoundingMember {
        id: NodeId(id),
        name: name(id).parse().unwrap(),
        site: format!("site-{id}").parse().unwrap(),
        kind: if id == 3 { NodeKind::Witness } else { NodeKind::Data },
        address: format!("{}:{PORT}", name(id)),
    }
}

async fn serve(listener: TcpListener, consensus: Consensus) {
    let incoming = futures::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, from)| {
            let name = turmoil::reverse_lookup(from.ip()).unwrap();
            Named { stream, name: name.parse().unwrap() }
        });
        Some((accepted, listener))
    });
    let service = PeerService::new(Service(consensus.server()));
    // The accept loop ends with the node; an error of one connection is that connection's.
    let served = transport::server().add_service(service).serve_with_incoming(incoming.boxed());
    served.await.unwrap();
}

async fn follow(node: NodeId, history: History, mut applied: mpsc::UnboundedReceiver<Applied>) {
    while let Some(step) = applied.recv().await {
        history.book().applied(node, &step);
    }
}

async fn watch_leader(node: NodeId, history: History, consensus: Consensus) {
    let mut leadership = consensus.leadership();
    loop {
        let now = *leadership.borrow_and_update();
        if now.is_leader {
            history.book().leads(node, now.term);
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// The client: proposes and reads by way of its node, and remembers what it was told.
async fn propose(place: Place, consensus: Consensus) {
    let mut founding = consensus.founding();
    if founding.wait_for(|status| *status == FoundingStatus::Done).await.is_err() {
        return;
    }
    let (node, life) = (NodeId(place.node), consensus.process_start());
    for number in 0_u64.. {
        tokio::time::sleep(place.pace).await;
        let floor = place.history.book().floor();
        if number % 4 == 3 {
            if let Ok(index) = consensus.read_index(PATIENCE).await {
                place.history.book().read(node, floor, index);
            }
            continue;
        }
        let text = format!("{node}, start {}, {number}", life.0);
        let command = Command::SetMark { node: NodeId(1), mark: Mark::Suspect(text.clone()) };
        let answer = consensus.propose(command, PATIENCE).await.map(|(index, outcome)| {
            assert!(outcome.is_accepted(), "{outcome:?}");
            index
        });
        place.history.book().answered(text, floor, answer);
    }
}

/// Ways to the others: one connection a lane, made when it is used.
fn channels() -> ChannelTo {
    let made: Mutex<BTreeMap<(NodeId, Lane), Channel>> = Mutex::default();
    Arc::new(move |to, lane| {
        let channel = || {
            let options = transport::ChannelOptions::consensus();
            let uri: Uri = format!("http://{}:{PORT}", name(to.0)).parse().unwrap();
            let connect = move |uri: Uri| async move {
                let address = (uri.host().unwrap().to_owned(), PORT);
                let connecting = TcpStream::connect(address);
                let within = tokio::time::timeout(options.connect_timeout, connecting).await;
                Ok::<_, std::io::Error>(TokioIo::new(within??))
            };
            Endpoint::from(uri)
                .http2_keep_alive_interval(options.keepalive_interval)
                .keep_alive_timeout(options.keepalive_timeout)
                .keep_alive_while_idle(true)
                .connect_with_connector_lazy(tower::service_fn(connect))
        };
        Some(made.lock().unwrap().entry((to, lane)).or_insert_with(channel).clone())
    })
}

/// A connection that knows whose it is, as one with certificates would.
struct Named {
    stream: TcpStream,
    name: NodeName,
}

impl Connected for Named {
    type ConnectInfo = NodeName;

    fn connect_info(&self) -> NodeName {
        self.name.clone()
    }
}

impl AsyncRead for Named {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Named {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
