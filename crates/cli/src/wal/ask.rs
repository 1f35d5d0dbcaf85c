//! Which nodes hold WAL, and how each is asked.

use tonic::transport::Channel;
use understudy_proto::v1;
use understudy_proto::v1::wal_files_client::WalFilesClient;

use crate::context::{Context, ContextNode};
use crate::nodes::{Reason, within};
use crate::operate::CallError;
use crate::status;

/// A thousand holes in a journal, or the pages of a segment of a gibibyte.
pub(super) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// A data node, and how to reach it.
pub(super) struct DataNode<'a> {
    pub(super) name: String,
    place: Option<&'a ContextNode>,
}

/// The data nodes of the cluster, or those of them that were named.
///
/// # Errors
/// When nobody answers who knows which they are, or a name is none of them.
pub(super) async fn data_nodes<'a>(
    context: &'a Context,
    only: &[String],
) -> Result<Vec<DataNode<'a>>, CallError> {
    let status = status::fetch(context).await?;
    let data = status.nodes.iter().filter(|node| node.kind.keeps_wal());
    let nodes: Vec<_> = data
        .filter(|node| only.is_empty() || only.contains(&node.name))
        .map(|node| DataNode {
            name: node.name.clone(),
            place: context.nodes.iter().find(|known| known.name.as_str() == node.name),
        })
        .collect();
    if let Some(name) = only.iter().find(|name| nodes.iter().all(|node| node.name != **name)) {
        let words = match status.nodes.iter().any(|node| node.name == *name) {
            true => format!("--node {name}: a witness holds no WAL; name a data node or a journal"),
            false => format!("--node {name}: the cluster has no such node"),
        };
        return Err(CallError::Usage { words });
    }
    Ok(nodes)
}

impl DataNode<'_> {
    /// A client of the node.
    pub(super) async fn client(
        &self,
        context: &Context,
    ) -> Result<WalFilesClient<Channel>, Reason> {
        let Some(place) = self.place else {
            let words = "the context does not say where it is; add it to [[nodes]]".to_owned();
            return Err(Reason::Unreachable(words));
        };
        let channel = context.connect(place).await;
        let channel = channel.map_err(|error| Reason::Unreachable(error.to_string()))?;
        Ok(WalFilesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// What it holds.
    pub(super) async fn status(
        &self,
        context: &Context,
    ) -> Result<v1::GetWalStatusResponse, Reason> {
        let mut client = self.client(context).await?;
        let answer = within(client.get_wal_status(v1::GetWalStatusRequest {})).await?;
        Ok(answer.into_inner())
    }
}
