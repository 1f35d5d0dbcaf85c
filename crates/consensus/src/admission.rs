//! The way back: in an incarnation that a sole survivor began, the leader lets the other configured
//! nodes in again.
//!
//! A node comes with a storage that was made for this incarnation. It is admitted in the replicated
//! state (so that its storage is known), follows without a vote, and gets its vote once it has caught
//! up. Votes are given when their number becomes odd by it: a second voter would only be one more whose
//! loss stops everything. Each step is found undone or done by whoever leads, so a crash between two of
//! them needs no care. It must not admit a storage that has anything in it already.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::{BasicNode, ChangeMembers};
use tokio::sync::watch;
use understudy_core::state::{Command, Member, Phase};
use understudy_types::{ClusterIncarnation, NodeId};

use crate::hello::hello;
use crate::leadership::Leadership;
use crate::peers::{Peers, parse_incarnation};
use crate::server::{Write, write};
use crate::{RaftHandle, encode_command};

const ROUND_EVERY: Duration = Duration::from_millis(500);
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// A learner that lacks no more than this has caught up.
const LAG_MAX: u64 = 100;

/// What it needs.
pub(crate) struct Admission {
    pub(crate) raft: RaftHandle,
    pub(crate) peers: Arc<Peers>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) incarnation: ClusterIncarnation,
}

impl Admission {
    /// Works until openraft stops; in the founded incarnation there is nothing to do.
    pub(crate) async fn run(self) {
        if self.incarnation.is_founded() {
            return;
        }
        let mut said = String::new();
        loop {
            tokio::time::sleep(ROUND_EVERY).await;
            if !self.leadership.borrow().is_leader {
                continue;
            }
            if let Err(why) = self.round().await
                && why != said
            {
                tracing::info!(why, "a node cannot be let in yet");
                said = why;
            }
        }
    }

    /// One step, if one is possible; else why not.
    async fn round(&self) -> Result<(), String> {
        let state = self.peers.state.borrow().clone();
        if state.phase != Phase::Running {
            return Ok(());
        }
        let (voters, nodes) = self.membership();
        if state.recovery.as_ref().is_some_and(|recovery| recovery.voters != voters) {
            return self.propose(&Command::SetVoters { voters }).await;
        }
        if let Some(id) = state.members.keys().find(|id| !nodes.contains(id)) {
            return self.add_learner(*id, &state.members[id].address).await;
        }
        self.give_votes(&voters, &nodes).await?;
        let mut reason = None;
        let outside = self.peers.members.keys().filter(|id| !state.members.contains_key(id));
        for id in outside {
            match self.look_at(*id).await {
                Ok(member) => {
                    tracing::info!(node = %member.name, number = %id, "node admitted");
                    return self.propose(&Command::AdmitMember { node: *id, member }).await;
                }
                Err(why) => {
                    reason.get_or_insert(format!("{}: {why}", self.peers.members[id].name));
                }
            }
        }
        reason.map_or(Ok(()), Err)
    }

    fn membership(&self) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = &metrics.membership_config;
        let voters = membership.voter_ids().map(NodeId).collect();
        (voters, membership.nodes().map(|(id, _)| NodeId(*id)).collect())
    }

    async fn propose(&self, command: &Command) -> Result<(), String> {
        match write(&self.raft, encode_command(command), CHANGE_TIMEOUT).await {
            Write::Applied { .. } => Ok(()),
            Write::NotLeader(_) => Err("this node does not lead any more".to_owned()),
            Write::Unknown(why) => Err(why),
        }
    }

    async fn add_learner(&self, id: NodeId, address: &str) -> Result<(), String> {
        let adding = self.raft.add_learner(id.0, BasicNode::new(address), false);
        within(adding, "add it as a learner").await?;
        tracing::info!(node = %id, "node follows, without a vote yet");
        Ok(())
    }

    async fn give_votes(
        &self,
        voters: &BTreeSet<NodeId>,
        nodes: &BTreeSet<NodeId>,
    ) -> Result<(), String> {
        let caught_up = self.caught_up();
        let mut wanted: Vec<NodeId> = nodes
            .iter()
            .filter(|n| !voters.contains(n) && caught_up.contains(n))
            .copied()
            .collect();
        if (voters.len() + wanted.len()).is_multiple_of(2) {
            wanted.pop();
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let ids = wanted.iter().map(|id| id.0).collect();
        let change: ChangeMembers<u64, BasicNode> = ChangeMembers::AddVoterIds(ids);
        within(self.raft.change_membership(change, true), "give it a vote").await?;
        tracing::info!(?wanted, "nodes have a vote");
        Ok(())
    }

    fn caught_up(&self) -> BTreeSet<NodeId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let replication = metrics.replication.iter().flatten();
        replication
            .filter(|(_, matched)| {
                matched.as_ref().is_some_and(|matched| matched.index + LAG_MAX >= last)
            })
            .map(|(id, _)| NodeId(*id))
            .collect()
    }

    /// Asks a configured node that is no member for its storage.
    async fn look_at(&self, id: NodeId) -> Result<Member, String> {
        let answer = hello(&self.peers, id, false, HELLO_TIMEOUT).await;
        let hello = answer.map_err(|why| why.to_string())?;
        self.peers.check_hello_of(id, &hello)?;
        if !hello.storage_empty {
            return Err("its storage is not empty, and the cluster does not know it".to_owned());
        }
        let incarnation =
            parse_incarnation(&hello.incarnation).map_err(|status| status.message().to_owned())?;
        Ok(self.peers.members[&id].with_storage(incarnation))
    }
}

async fn within<T, E: std::fmt::Display>(
    change: impl Future<Output = Result<T, E>>,
    what: &str,
) -> Result<(), String> {
    match tokio::time::timeout(CHANGE_TIMEOUT, change).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("{what}: {error}")),
        Err(_) => Err(format!("{what}: not done within {CHANGE_TIMEOUT:?}")),
    }
}
