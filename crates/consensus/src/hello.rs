//! One question to another node: who are you, and what is in your storage?
//!
//! It brings the answer, and does not judge it: whether an answer is believed is `peers`' to say.

use std::fmt;
use std::time::Duration;

use tonic::{Request, Status};
use understudy_proto::v1;
use understudy_proto::v1::peer_client::PeerClient;
use understudy_types::NodeId;

use crate::peers::Peers;

/// Why there is no answer.
pub(crate) enum NoHello {
    NoAddress,
    Silent(Duration),
    Refused(Status),
    Empty,
}

impl fmt::Display for NoHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoHello::NoAddress => write!(f, "it has no address"),
            NoHello::Silent(within) => write!(f, "no answer within {within:?}"),
            NoHello::Refused(status) => write!(f, "{}", status.message()),
            NoHello::Empty => write!(f, "it answered without a hello"),
        }
    }
}

/// Asks `node`; `storage_empty` is what this node says of its own storage.
pub(crate) async fn hello(
    peers: &Peers,
    node: NodeId,
    storage_empty: bool,
    within: Duration,
) -> Result<v1::Hello, NoHello> {
    let channel = peers.channel(node).ok_or(NoHello::NoAddress)?;
    let own = peers.hello(storage_empty);
    let mut request = Request::new(v1::HelloRequest { hello: Some(own) });
    request.set_timeout(within);
    let mut client = PeerClient::new(channel);
    let answer = tokio::time::timeout(within, client.hello(request)).await;
    let answer = answer.map_err(|_| NoHello::Silent(within))?.map_err(NoHello::Refused)?;
    answer.into_inner().hello.ok_or(NoHello::Empty)
}
