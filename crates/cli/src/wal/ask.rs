//! Which nodes hold WAL, and how each is asked.

use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Status};
use understudy_proto::v1;
use understudy_proto::v1::wal_files_client::WalFilesClient;

use crate::context::{Context, ContextNode};
use crate::operate::CallError;
use crate::status;

/// How long a node may take to answer.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// A thousand holes in a journal, or the pages of a segment of a gibibyte.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Why a node did not do what it was asked for.
#[derive(Clone, Debug)]
pub(super) enum Reason {
    /// It cannot be reached, or stopped answering.
    Unreachable(String),
    /// It answered no.
    Refused(String),
}

impl Reason {
    pub(super) fn words(&self) -> &str {
        match self {
            Reason::Unreachable(words) | Reason::Refused(words) => words,
        }
    }
}

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

/// An answer that comes in time.
pub(super) async fn within<T>(
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, Reason> {
    match tokio::time::timeout(CALL_TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|status| judged(&status)),
        Err(_) => Err(Reason::Unreachable(format!("no answer in {CALL_TIMEOUT:?}"))),
    }
}

fn judged(status: &Status) -> Reason {
    let words = status.message().to_owned();
    match status.code() {
        Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::InvalidArgument
        | Code::Unimplemented => Reason::Refused(words),
        _ => Reason::Unreachable(words),
    }
}
