//! The gRPC service in front of consensus, as the daemon has it.

use tonic::{Request, Response, Status, Streaming};
use understudy_consensus::PeerServer;
use understudy_proto::v1;
use understudy_proto::v1::peer_server::Peer;
use understudy_transport as transport;
use understudy_types::NodeName;

/// Hands every call to consensus, with the name of who calls.
pub(crate) struct Service(pub(crate) PeerServer);

fn caller<T>(request: &Request<T>) -> Result<NodeName, Status> {
    // Where there is no TLS, in simulated time, the connection itself knows.
    match request.extensions().get::<NodeName>() {
        Some(name) => Ok(name.clone()),
        None => transport::require_any_node(request).cloned(),
    }
}

macro_rules! delegate {
    ($self:ident, $request:ident, $method:ident) => {{
        let peer = caller(&$request)?;
        $self.0.$method(&peer, $request.into_inner()).await.map(Response::new)
    }};
}

#[tonic::async_trait]
impl Peer for Service {
    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloResponse>, Status> {
        delegate!(self, request, hello)
    }
    async fn append_entries(
        &self,
        request: Request<v1::RaftMessage>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        delegate!(self, request, append_entries)
    }
    async fn vote(
        &self,
        request: Request<v1::RaftMessage>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        delegate!(self, request, vote)
    }
    async fn pre_vote(
        &self,
        request: Request<v1::RaftMessage>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        delegate!(self, request, pre_vote)
    }
    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPart>>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        delegate!(self, request, install_snapshot)
    }
    async fn transfer_leader(
        &self,
        request: Request<v1::RaftMessage>,
    ) -> Result<Response<v1::RaftMessage>, Status> {
        delegate!(self, request, transfer_leader)
    }
    async fn propose(
        &self,
        request: Request<v1::ProposeRequest>,
    ) -> Result<Response<v1::ProposeResponse>, Status> {
        delegate!(self, request, propose)
    }
    async fn read_index(
        &self,
        request: Request<v1::ReadIndexRequest>,
    ) -> Result<Response<v1::ReadIndexResponse>, Status> {
        delegate!(self, request, read_index)
    }
    async fn reach(
        &self,
        request: Request<v1::ReachRequest>,
    ) -> Result<Response<v1::ReachResponse>, Status> {
        delegate!(self, request, reach)
    }
    async fn report(
        &self,
        _: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        Err(Status::unimplemented("consensus knows no reports"))
    }
}
