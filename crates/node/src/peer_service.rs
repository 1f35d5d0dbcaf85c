//! The `Peer` service: consensus is handed on to its own server, reports are pinned to the board.

use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};
use understudy_consensus::PeerServer;
use understudy_proto::v1;
use understudy_proto::v1::peer_server::Peer;
use understudy_transport::require_any_node;
use understudy_types::{NodeId, NodeName};

use crate::reports::Board;

/// Serves peers that are members; who they are comes from their certificates alone.
pub(crate) struct PeerService {
    pub(crate) me: NodeId,
    pub(crate) members: BTreeMap<NodeName, NodeId>,
    pub(crate) consensus: PeerServer,
    pub(crate) board: Arc<Board>,
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloResponse>, Status> {
        let peer = require_any_node(&request)?.clone();
        self.consensus.hello(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn append_entries(
        &self,
        request: Request<v1::RaftMessage>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        let peer = require_any_node(&request)?.clone();
        self.consensus.append_entries(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn vote(
        &self,
        request: Request<v1::RaftMessage>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        let peer = require_any_node(&request)?.clone();
        self.consensus.vote(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn pre_vote(
        &self,
        request: Request<v1::RaftMessage>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        let peer = require_any_node(&request)?.clone();
        self.consensus.pre_vote(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::RaftMessage>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        let peer = require_any_node(&request)?.clone();
        self.consensus.transfer_leader(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn propose(
        &self,
        request: Request<v1::ProposeRequest>,
    ) -> Result<Response<v1::ProposeResponse>, Status> {
        let peer = require_any_node(&request)?.clone();
        self.consensus.propose(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn read_index(
        &self,
        request: Request<v1::ReadIndexRequest>,
    ) -> Result<Response<v1::ReadIndexResponse>, Status> {
        let peer = require_any_node(&request)?.clone();
        self.consensus.read_index(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn reach(
        &self,
        request: Request<v1::ReachRequest>,
    ) -> Result<Response<v1::ReachResponse>, Status> {
        let peer = require_any_node(&request)?.clone();
        self.consensus.reach(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPart>>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        let peer = require_any_node(&request)?.clone();
        self.consensus.install_snapshot(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn report(
        &self,
        request: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        let name = require_any_node(&request)?;
        let node = self.members.get(name).copied().ok_or_else(|| {
            Status::permission_denied(format!("{name} is not a member of this cluster"))
        })?;
        if let Some(report) = request.into_inner().report {
            self.board.take(node, report);
        }
        Ok(Response::new(v1::ReportResponse { report: self.board.of(self.me) }))
    }
}
