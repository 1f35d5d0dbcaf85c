//! What other nodes ask of this one's consensus, with the checks that come before any effect.
//!
//! The daemon implements the gRPC trait and hands each call on to here together with the name from
//! the caller's certificate. Refusals before any effect have the codes `InvalidArgument`,
//! `PermissionDenied`, `FailedPrecondition` and `AlreadyExists` (the caller's storage is not the one
//! that it was founded with); every other error leaves open what happened.

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::ReadPolicy;
use openraft::alias::{SnapshotMetaOf, SnapshotOf, VoteOf};
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::{Serialize, de::DeserializeOwned};
use tokio::runtime::Handle;
use tonic::Status;
use understudy_proto::v1;
use understudy_types::{NodeId, NodeName};

use crate::peers::{Peers, parse_incarnation, wrong_storage};
use crate::steering::{Pace, probe};
use crate::{LogCommand, RaftHandle, RaftTypes, decode_command};

/// A snapshot beyond this is not ours: the state is a few KiB.
const SNAPSHOT_BYTES_MAX: usize = 64 << 20;
/// A command beyond this is not ours.
const COMMAND_BYTES_MAX: usize = 1 << 20;
/// A caller without a deadline does not keep a forwarded command waiting longer than this.
const FORWARD_MAX: Duration = Duration::from_secs(30);

/// Answers other nodes. Clones are handles of the same.
#[derive(Clone)]
pub struct PeerServer {
    pub(crate) raft: RaftHandle,
    pub(crate) peers: Arc<Peers>,
    /// A node with empty storage must first have asked whether a cluster knows it by another one.
    pub(crate) admitted: Arc<AtomicBool>,
    /// Where the channels to the others live.
    pub(crate) runtime: Handle,
    pub(crate) pace: Pace,
}

fn stopped() -> Status {
    Status::unavailable("consensus has stopped on this node")
}

#[allow(clippy::result_large_err)]
fn decode<T: DeserializeOwned>(message: &v1::RaftMessage) -> Result<T, Status> {
    serde_json::from_slice(&message.payload)
        .map_err(|error| Status::invalid_argument(format!("read consensus message: {error}")))
}

// What every method may fail with is in the file's head.
#[allow(clippy::missing_errors_doc)]
impl PeerServer {
    #[allow(clippy::result_large_err)]
    fn check(&self, peer: &NodeName, message: &v1::RaftMessage) -> Result<(), Status> {
        if !self.admitted.load(Ordering::Acquire) {
            return Err(Status::failed_precondition(
                "this node's storage is empty, and it has not yet been admitted by the others",
            ));
        }
        self.peers.check_sender(message, peer)?;
        match self.peers.older_copy() {
            None => Ok(()),
            Some(found) => Err(Status::failed_precondition(found.words)),
        }
    }

    #[allow(clippy::result_large_err)]
    fn answer<T: Serialize>(
        &self,
        message: &v1::RaftMessage,
        answer: &T,
    ) -> Result<v1::RaftMessage, Status> {
        let payload = serde_json::to_vec(answer)
            .map_err(|error| Status::internal(format!("write consensus message: {error}")))?;
        Ok(self.peers.envelope(NodeId(message.from), payload))
    }

    /// openraft's AppendEntries, heartbeats included.
    pub async fn append_entries(
        &self,
        peer: &NodeName,
        message: v1::RaftMessage,
    ) -> Result<v1::RaftMessage, Status> {
        self.check(peer, &message)?;
        let request: AppendEntriesRequest<RaftTypes> = decode(&message)?;
        let answer = self.raft.append_entries(request).await.map_err(|_| stopped())?;
        if !matches!(answer, openraft::raft::AppendEntriesResponse::HigherVote(_)) {
            self.peers.note_leader();
        }
        self.answer(&message, &answer)
    }

    /// openraft's Vote.
    pub async fn vote(
        &self,
        peer: &NodeName,
        message: v1::RaftMessage,
    ) -> Result<v1::RaftMessage, Status> {
        self.check(peer, &message)?;
        let request: VoteRequest<RaftTypes> = decode(&message)?;
        let answer = self.raft.vote(request).await.map_err(|_| stopped())?;
        self.answer(&message, &answer)
    }

    /// openraft's pre-vote; changes nothing.
    pub async fn pre_vote(
        &self,
        peer: &NodeName,
        message: v1::RaftMessage,
    ) -> Result<v1::RaftMessage, Status> {
        self.check(peer, &message)?;
        let request: VoteRequest<RaftTypes> = decode(&message)?;
        let answer = self.raft.pre_vote(request).await.map_err(|_| stopped())?;
        self.answer(&message, &answer)
    }

    /// One snapshot in parts, of which only the first has a header.
    pub async fn install_snapshot(
        &self,
        peer: &NodeName,
        mut parts: impl Stream<Item = Result<v1::SnapshotPart, Status>> + Send + Unpin,
    ) -> Result<v1::RaftMessage, Status> {
        let first = parts.next().await.transpose()?;
        let Some(v1::SnapshotPart { header: Some(header), mut data }) = first else {
            return Err(Status::invalid_argument("a snapshot begins with its header"));
        };
        self.check(peer, &header)?;
        let (vote, meta): (VoteOf<RaftTypes>, SnapshotMetaOf<RaftTypes>) = decode(&header)?;
        while let Some(part) = parts.next().await.transpose()? {
            if data.len() + part.data.len() > SNAPSHOT_BYTES_MAX {
                return Err(Status::invalid_argument(format!(
                    "a snapshot has at most {SNAPSHOT_BYTES_MAX} bytes"
                )));
            }
            data.extend_from_slice(&part.data);
        }
        tracing::info!(node = %peer, bytes = data.len(), "snapshot received");
        let snapshot = SnapshotOf::<RaftTypes, _> { meta, snapshot: Cursor::new(data) };
        let answer =
            self.raft.install_full_snapshot(vote, snapshot).await.map_err(|_| stopped())?;
        self.peers.note_leader();
        self.answer(&header, &answer)
    }

    /// openraft's leadership transfer.
    pub async fn transfer_leader(
        &self,
        peer: &NodeName,
        message: v1::RaftMessage,
    ) -> Result<v1::RaftMessage, Status> {
        self.check(peer, &message)?;
        let request: TransferLeaderRequest<RaftTypes> = decode(&message)?;
        let answer = self.raft.handle_transfer_leader(request).await.map_err(|_| stopped())?;
        self.answer(&message, &answer)
    }

    /// A forwarded command: answered once it is applied here, or that this is not the leader, in
    /// which case it was certainly not appended.
    pub async fn propose(
        &self,
        peer: &NodeName,
        request: v1::ProposeRequest,
    ) -> Result<v1::ProposeResponse, Status> {
        use v1::propose_response::{Applied, Result as Answer};
        self.peers.member(peer)?;
        // What cannot be applied must not get into the log: every node would stop at it.
        if request.command.len() > COMMAND_BYTES_MAX {
            return Err(Status::invalid_argument("the command is too large"));
        }
        decode_command(&request.command)
            .map_err(|error| Status::invalid_argument(format!("read command: {error}")))?;
        let result = match write(&self.raft, request.command, FORWARD_MAX).await {
            Write::Applied { index, outcome } => Answer::Applied(Applied { index, outcome }),
            Write::NotLeader(leader) => Answer::NotLeader(leader.unwrap_or(0)),
            Write::Unknown(why) => return Err(Status::aborted(why)),
        };
        Ok(v1::ProposeResponse { result: Some(result) })
    }

    /// The index that a linearizable read must wait for; proven with a majority, not by a lease.
    pub async fn read_index(
        &self,
        peer: &NodeName,
        _request: v1::ReadIndexRequest,
    ) -> Result<v1::ReadIndexResponse, Status> {
        use v1::read_index_response::Result as Answer;
        self.peers.member(peer)?;
        let result = match tokio::time::timeout(FORWARD_MAX, read_index(&self.raft)).await {
            Ok(Ok(index)) => Answer::Index(index),
            Ok(Err(leader)) => Answer::NotLeader(leader.unwrap_or(0)),
            Err(_) => return Err(Status::aborted("no majority confirmed the leader in time")),
        };
        Ok(v1::ReadIndexResponse { result: Some(result) })
    }

    /// Whether this node gets answers from another member, and soon; for a leader that does not.
    pub async fn reach(
        &self,
        peer: &NodeName,
        request: v1::ReachRequest,
    ) -> Result<v1::ReachResponse, Status> {
        self.peers.member(peer)?;
        let node = NodeId(request.node_id);
        if node == self.peers.node || !self.peers.members.contains_key(&node) {
            return Err(Status::invalid_argument(format!("node {node} is not another member")));
        }
        let probing = self.runtime.spawn(probe(Arc::clone(&self.peers), node, self.pace));
        Ok(v1::ReachResponse { reached: probing.await.unwrap_or(false) })
    }

    /// Who are you, and what is in your storage? A caller whose number belongs to another storage is
    /// refused with `AlreadyExists`; a differing founding list is for the caller to notice.
    pub async fn hello(
        &self,
        peer: &NodeName,
        request: v1::HelloRequest,
    ) -> Result<v1::HelloResponse, Status> {
        let hello = request.hello.ok_or_else(|| Status::invalid_argument("hello is missing"))?;
        if hello.node != peer.as_str() {
            return Err(Status::permission_denied(format!(
                "node {peer} calls itself {}",
                hello.node
            )));
        }
        self.peers.check_hello(&hello).map_err(Status::failed_precondition)?;
        let incarnation = parse_incarnation(&hello.incarnation)?;
        let member = self.peers.member(peer)?;
        let settled = self.raft.is_initialized().await.map_err(|_| stopped())?;
        if !self.peers.remember(member, incarnation, settled) {
            return Err(wrong_storage(peer, incarnation));
        }
        Ok(v1::HelloResponse { hello: Some(self.peers.hello(!settled)) })
    }
}

/// How a write to the local leader ended.
pub(crate) enum Write {
    Applied {
        index: u64,
        outcome: Vec<u8>,
    },
    /// Certainly not appended; the leader, if one is known.
    NotLeader(Option<u64>),
    /// It may have been appended.
    Unknown(String),
}

pub(crate) async fn write(raft: &RaftHandle, command: Vec<u8>, timeout: Duration) -> Write {
    // What stops meanwhile may still be appended; what had stopped before cannot.
    if raft.metrics().borrow_watched().running_state.is_err() {
        return Write::NotLeader(None);
    }
    let written = match tokio::time::timeout(timeout, raft.client_write(LogCommand(command))).await
    {
        Ok(written) => written,
        Err(_) => return Write::Unknown(format!("not applied within {timeout:?}")),
    };
    match written {
        Ok(written) => Write::Applied { index: written.log_id.index, outcome: written.data.0 },
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
            Write::NotLeader(to.leader_id)
        }
        Err(error) => Write::Unknown(error.to_string()),
    }
}

/// The read index of the local leader, or the leader that should be asked.
pub(crate) async fn read_index(raft: &RaftHandle) -> Result<u64, Option<u64>> {
    match raft.get_read_log_id(ReadPolicy::ReadIndex).await {
        Ok((read, _)) => Ok(read.log_id().index),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => Err(to.leader_id),
        Err(_) => Err(None),
    }
}
