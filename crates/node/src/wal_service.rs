//! The `Wal` service: receivers attach to the source while there is one; tools tunnel to PostgreSQL.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures::Stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};
use understudy_proto::v1;
use understudy_proto::v1::refused::Reason;
use understudy_proto::v1::wal_server::Wal;
use understudy_shipping::journal::Journal;
use understudy_shipping::source::{self, Peer, SourceHandle};
use understudy_shipping::tunnel::{TunnelTarget, serve_tunnel};
use understudy_transport::require_any_node;
use understudy_types::{NodeId, NodeName};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves peers that are members; who they are comes from their certificates alone.
pub(crate) struct WalService {
    pub(crate) members: BTreeMap<NodeName, NodeId>,
    pub(crate) source: watch::Receiver<Option<SourceHandle>>,
    pub(crate) journal: Journal,
    pub(crate) tunnel: TunnelTarget,
}

impl WalService {
    fn member<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        let name = require_any_node(request)?;
        let node = self.members.get(name).copied().ok_or_else(|| {
            Status::permission_denied(format!("{name} is not a member of this cluster"))
        })?;
        Ok(Peer { node, name: name.clone() })
    }
}

#[tonic::async_trait]
impl Wal for WalService {
    type StreamStream = Answers<v1::FromSource>;
    type TunnelStream = Answers<v1::TunnelChunk>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::ToSource>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let peer = self.member(&request)?;
        let source = self.source.borrow().clone();
        let answers = match source {
            Some(source) => source.attach(request.into_inner(), peer),
            None => source::refuse(
                Reason::NotHolder,
                "this node does not hold the epoch, or is not ready yet",
                self.journal.max_epoch(),
            ),
        };
        Ok(Response::new(Box::pin(answers)))
    }

    async fn tunnel(
        &self,
        request: Request<Streaming<v1::TunnelChunk>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let peer = self.member(&request)?;
        tracing::debug!(peer = %peer.name, "tunnel opened");
        let answers = serve_tunnel(self.tunnel.clone(), request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }
}
