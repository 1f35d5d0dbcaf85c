//! Asks every node for the cluster's status, a few times a second, and keeps the best answer.
//!
//! The best answer is that of a node which hears a majority, and of those the one that has applied
//! most: a node that is just coming back would otherwise tell yesterday's news. A node that was
//! listened to stays in favour while it hears a majority, so that small differences between two nodes'
//! knowledge do not read as events.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use futures::future::join_all;
use tonic::transport::Channel;
use understudy_proto::v1::admin_client::AdminClient;
use understudy_proto::v1::{ClusterStatus, GetStatusRequest};
use understudy_transport::{ChannelOptions, connect};

use super::screen::{SharedScene, lock};
use crate::context::Context;

const INTERVAL: Duration = Duration::from_millis(150);
/// A node on the same machine that says nothing for so long is taken for absent.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(400);

/// Connections to every node, under the operator's certificate.
///
/// # Errors
/// When the context that `init` wrote cannot be loaded. Nodes need not be there yet.
pub(super) fn clients(context: &Path) -> Result<Vec<AdminClient<Channel>>> {
    let context = Context::load(context)?;
    let options = ChannelOptions::admin();
    let mut clients = Vec::new();
    for node in &context.nodes {
        let channel = connect(&node.address, &node.name, &context.identity, &options)?;
        clients.push(AdminClient::new(channel));
    }
    Ok(clients)
}

/// Keeps the scene's status up to date until it is dropped.
pub(super) async fn watch(clients: Vec<AdminClient<Channel>>, scene: SharedScene) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut favourite = String::new();
    loop {
        ticks.tick().await;
        let answers = join_all(clients.iter().cloned().map(ask)).await;
        if let Some(status) = best(answers.into_iter().flatten().collect(), &favourite) {
            favourite.clone_from(&status.answered_by);
            lock(&scene).take_status(status);
        }
    }
}

async fn ask(mut client: AdminClient<Channel>) -> Option<ClusterStatus> {
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.get_status(GetStatusRequest {}));
    answer.await.ok()?.ok()?.into_inner().status
}

fn best(answers: Vec<ClusterStatus>, favourite: &str) -> Option<ClusterStatus> {
    let rank = |status: &ClusterStatus| {
        let favoured = status.answered_by == favourite;
        (status.majority, favoured, status.applied_index)
    };
    answers.into_iter().max_by_key(rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_majority_is_not_believed_however_much_it_has_applied() {
        let status = |name: &str, majority, applied_index| ClusterStatus {
            answered_by: name.to_owned(),
            majority,
            applied_index,
            ..ClusterStatus::default()
        };
        let answers = vec![status("a", false, 90), status("b", true, 70), status("c", true, 71)];
        let name = |favourite| best(answers.clone(), favourite).map(|status| status.answered_by);
        assert_eq!(name("").as_deref(), Some("c"));
        assert_eq!(name("b").as_deref(), Some("b"));
        assert_eq!(name("a").as_deref(), Some("c"));
        assert!(best(Vec::new(), "a").is_none());
    }
}
