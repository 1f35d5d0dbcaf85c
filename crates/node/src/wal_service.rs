//! The `Wal` service: receivers attach to the source while there is one; tools tunnel to PostgreSQL.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};
use understudy_core::ClusterState;
use understudy_core::state::Phase;
use understudy_proto::v1;
use understudy_proto::v1::refused::Reason;
use understudy_proto::v1::wal_server::Wal;
use understudy_shipping::source::{self, Peer, SourceHandle};
use understudy_shipping::tail;
use understudy_shipping::tunnel::{TunnelTarget, serve_tunnel};
use understudy_transport::require_any_node;
use understudy_types::{Epoch, Region};

use crate::config::Member;
use crate::follower::Follower;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves peers that are members and may have data; who they are comes from their certificates alone.
pub(crate) struct WalService {
    /// What the cluster has agreed on, as applied here.
    pub(crate) state: watch::Receiver<Arc<ClusterState>>,
    pub(crate) follower: Follower,
    pub(crate) members: Vec<Member>,
    /// Where WAL may be sent; nowhere named is anywhere.
    pub(crate) allowed_regions: BTreeSet<Region>,
    /// `None` at a node without a PostgreSQL, which never has one.
    pub(crate) source: Option<watch::Receiver<Option<SourceHandle>>>,
    /// The same.
    pub(crate) tunnel: Option<TunnelTarget>,
}

impl WalService {
    fn member<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        let name = require_any_node(request)?;
        let member = self.members.iter().find(|member| member.name == *name).ok_or_else(|| {
            Status::permission_denied(format!("{name} is not a member of this cluster"))
        })?;
        member.check_may_have_data(&self.allowed_regions).map_err(Status::permission_denied)?;
        Ok(Peer { node: member.id, name: name.clone() })
    }
}

impl WalService {
    /// Nobody seals this journal but who was granted the epoch, as far as is known here.
    fn check_promoted(&self, peer: &Peer, epoch: Epoch) -> Result<(), Status> {
        let state = self.state.borrow();
        let promotes =
            matches!(&state.phase, Phase::Promoting(under_way) if under_way.to == peer.node);
        if state.epoch == epoch && promotes {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "no promotion of {} in epoch {epoch} is known here yet; the epoch is {}",
            peer.name, state.epoch
        )))
    }
}

#[tonic::async_trait]
impl Wal for WalService {
    type StreamStream = Answers<v1::FromSource>;
    type TunnelStream = Answers<v1::TunnelChunk>;
    type FetchTailStream = Answers<v1::Frame>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::ToSource>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let peer = self.member(&request)?;
        let source = self.source.as_ref().and_then(|source| source.borrow().clone());
        let answers = match source {
            Some(source) => source.attach(request.into_inner(), peer),
            None => source::refuse(
                Reason::NotHolder,
                "this node does not hold the epoch, or is not ready yet",
                self.follower.journal().max_epoch(),
            ),
        };
        Ok(Response::new(Box::pin(answers)))
    }

    async fn tunnel(
        &self,
        request: Request<Streaming<v1::TunnelChunk>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let peer = self.member(&request)?;
        let target = self.tunnel.clone().ok_or_else(|| {
            Status::failed_precondition("this node has no PostgreSQL to tunnel to")
        })?;
        tracing::debug!(peer = %peer.name, "tunnel opened");
        let answers = serve_tunnel(target, request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn seal(
        &self,
        request: Request<v1::SealRequest>,
    ) -> Result<Response<v1::SealResponse>, Status> {
        let peer = self.member(&request)?;
        let epoch = request.into_inner().epoch.map(Epoch::from).unwrap_or_default();
        self.check_promoted(&peer, epoch)?;
        let sealed = self.follower.seal_for(epoch).await.map_err(Status::unavailable)?;
        let journal = self.follower.journal();
        let system_id = journal.identity().map(|(system_id, _)| system_id);
        let begin_lsn = journal.positions().borrow().as_ref().map_or(0, |held| held.begin_lsn.0);
        let sealed = sealed.zip(system_id).map(|(sealed, system_id)| v1::SealedJournal {
            system_id: system_id.0,
            timeline: sealed.timeline.get(),
            durable_lsn: sealed.durable_lsn.0,
            begin_lsn,
        });
        Ok(Response::new(v1::SealResponse { sealed }))
    }

    async fn fetch_tail(
        &self,
        request: Request<v1::FetchTailRequest>,
    ) -> Result<Response<Self::FetchTailStream>, Status> {
        let peer = self.member(&request)?;
        let request = request.into_inner();
        self.check_promoted(&peer, request.epoch.map(Epoch::from).unwrap_or_default())?;
        let frames = tail::serve(self.follower.journal().clone(), request).await?;
        Ok(Response::new(Box::pin(frames)))
    }
}
