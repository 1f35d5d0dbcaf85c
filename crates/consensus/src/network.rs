//! openraft's messages to other nodes, over the `Peer` service.
//!
//! Every answer is checked for coming from the storage that the cluster was founded with before
//! openraft may count it. A message that is not answered at once is sent a second time beside the
//! first, on the other lane: openraft takes each for what it is, however often it comes. Whatever fails
//! is openraft's to retry, with its own backoff.

use std::future::Future;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use openraft::BasicNode;
use openraft::RPCTypes;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use serde::{Serialize, de::DeserializeOwned};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use understudy_proto::v1::peer_client::PeerClient;
use understudy_proto::v1::{RaftMessage, SnapshotPart};
use understudy_types::NodeId;

use crate::RaftTypes;
use crate::peers::{Lane, Peers};

/// A snapshot travels in parts of this size.
const PART_BYTES: usize = 1 << 20;

/// Entries may take this long, whatever the heartbeat interval is: an fsync on a slow disk behind a
/// long line is no reason to send them again. Nobody else waits meanwhile.
const ENTRIES_TTL_MIN: Duration = Duration::from_secs(1);

/// Makes the links.
///
/// The worker that sends heartbeats gives each of them as long as openraft's heartbeat interval,
/// which is set to the patience of an answer (`raft_config`), not to the pace of the heartbeats; so
/// a heartbeat may use up all of it.
pub(crate) struct Network {
    pub(crate) peers: Arc<Peers>,
}

impl RaftNetworkFactory<RaftTypes> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Link {
        Link { peers: Arc::clone(&self.peers), target: NodeId(target) }
    }
}

/// The way to one node.
pub(crate) struct Link {
    peers: Arc<Peers>,
    target: NodeId,
}

type CallError = RPCError<RaftTypes>;
type Answer = Result<Response<RaftMessage>, Status>;

fn unreachable(why: impl ToString) -> CallError {
    RPCError::Unreachable(Unreachable::from_string(why))
}

impl Link {
    fn client(&self, lane: Lane) -> Result<PeerClient<Channel>, CallError> {
        if let Some(found) = self.peers.older_copy() {
            return Err(unreachable(found.words));
        }
        self.peers
            .channel_on(self.target, lane)
            .map(PeerClient::new)
            .ok_or_else(|| unreachable(format!("node {} has no address", self.target)))
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> CallError {
        let (id, target) = (self.peers.node.0, self.target.0);
        RPCError::Timeout(Timeout { action, id, target, timeout })
    }

    /// One call within `ttl`, which begins with the first byte and so covers connecting too.
    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        action: RPCTypes,
        ttl: Duration,
        message: &Q,
        send: impl AsyncFn(PeerClient<Channel>, Request<RaftMessage>) -> Answer,
    ) -> Result<A, CallError> {
        let envelope = self.peers.envelope(self.target, encode(message)?);
        let send_on = |lane: Lane| {
            let client = self.client(lane)?;
            let mut request = Request::new(envelope.clone());
            request.set_timeout(ttl);
            Ok::<_, CallError>(send(client, request))
        };
        let answered = self.peers.first_answer(self.target, send_on);
        match tokio::time::timeout(ttl, answered).await {
            Err(_) => Err(self.timeout(action, ttl)),
            Ok(answer) => self.read(answer?),
        }
    }

    fn read<A: DeserializeOwned>(&self, answer: Answer) -> Result<A, CallError> {
        let answer = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                if status.code() != Code::Unavailable {
                    let reason = status.message();
                    tracing::debug!(node = %self.target, reason, "consensus message refused");
                }
                return Err(unreachable(status));
            }
        };
        if let Err(reason) = self.peers.check_answer(self.target, &answer) {
            tracing::warn!(node = %self.target, reason, "consensus answer refused");
            return Err(unreachable(reason));
        }
        serde_json::from_slice(&answer.payload)
            .map_err(|error| RPCError::Network(NetworkError::new(&error)))
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CallError> {
    serde_json::to_vec(value).map_err(|error| RPCError::Network(NetworkError::new(&error)))
}

impl RaftNetworkV2<RaftTypes> for Link {
    type SnapshotData = Cursor<Vec<u8>>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<RaftTypes>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftTypes>, CallError> {
        let ttl = if rpc.entries.is_empty() {
            option.hard_ttl()
        } else {
            option.soft_ttl().max(ENTRIES_TTL_MIN)
        };
        self.call(
            RPCTypes::AppendEntries,
            ttl,
            &rpc,
            async |mut client: PeerClient<Channel>, request| client.append_entries(request).await,
        )
        .await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<RaftTypes>,
        option: RPCOption,
    ) -> Result<VoteResponse<RaftTypes>, CallError> {
        self.call(
            RPCTypes::Vote,
            option.hard_ttl(),
            &rpc,
            async |mut client: PeerClient<Channel>, request| client.vote(request).await,
        )
        .await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<RaftTypes>,
        option: RPCOption,
    ) -> Result<VoteResponse<RaftTypes>, CallError> {
        self.call(
            RPCTypes::Vote,
            option.hard_ttl(),
            &rpc,
            async |mut client: PeerClient<Channel>, request| client.pre_vote(request).await,
        )
        .await
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<RaftTypes>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<RaftTypes>, CallError> {
        self.call(
            RPCTypes::TransferLeader,
            option.hard_ttl(),
            &req,
            async |mut client: PeerClient<Channel>, request| client.transfer_leader(request).await,
        )
        .await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<RaftTypes>,
        snapshot: SnapshotOf<RaftTypes, Cursor<Vec<u8>>>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<RaftTypes>, StreamingError<RaftTypes>> {
        let mut client = self.client(self.peers.lane(self.target))?;
        let header = self.peers.envelope(self.target, encode(&(&vote, &snapshot.meta))?);
        let first = SnapshotPart { header: Some(header), data: Vec::new() };
        let data = bytes::Bytes::from(snapshot.snapshot.into_inner());
        let parts = (0..data.len()).step_by(PART_BYTES).map(move |at| {
            let end = data.len().min(at + PART_BYTES);
            SnapshotPart { header: None, data: data[at..end].to_vec() }
        });
        let parts = futures::stream::once(async { first }).chain(futures::stream::iter(parts));
        let ttl = option.soft_ttl();
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = tokio::time::timeout(ttl, client.install_snapshot(parts)) => match answer {
                Err(_) => Err(self.timeout(RPCTypes::InstallSnapshot, ttl).into()),
                Ok(answer) => Ok(self.read(answer)?),
            },
        }
    }
}
