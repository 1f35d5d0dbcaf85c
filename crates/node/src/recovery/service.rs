//! Answers the one question that is answered across incarnations: which one, and how it stands.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::{Request, Response, Status};
use understudy_consensus::Consensus;
use understudy_proto::v1;
use understudy_proto::v1::recovery_server::Recovery;
use understudy_types::{ClusterIncarnation, NodeId};

use crate::config::NodeConfig;
use crate::status::ClusterStatus;

/// What the door between incarnations lets through.
pub(crate) const OPEN_PATHS: &[&str] = &["/understudy.v1.Recovery/Describe"];

/// Serves any node of the cluster and any person.
pub(crate) struct RecoveryService {
    pub(crate) config: Arc<NodeConfig>,
    pub(crate) incarnation: ClusterIncarnation,
    pub(crate) consensus: Consensus,
    pub(crate) status: watch::Receiver<Arc<ClusterStatus>>,
}

#[tonic::async_trait]
impl Recovery for RecoveryService {
    async fn describe(
        &self,
        _: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        let status = self.status.borrow().clone();
        let lease_left = status.own().and_then(|own| own.lease_left_seconds);
        let name = |id: NodeId| {
            let member = self.config.members.iter().find(|member| member.id == id);
            member.map_or_else(|| id.to_string(), |member| member.name.to_string())
        };
        Ok(Response::new(v1::DescribeResponse {
            node: self.config.name.to_string(),
            node_id: self.config.id.0,
            incarnation: self.incarnation.to_string(),
            can_vote: self.consensus.can_vote().await,
            majority: self.consensus.leadership().borrow().majority,
            epoch: Some(status.epoch.into()),
            lease_left_ms: lease_left.map(|seconds| (seconds * 1000.0) as u64),
            voters: self.consensus.voters().into_iter().map(name).collect(),
        }))
    }
}
