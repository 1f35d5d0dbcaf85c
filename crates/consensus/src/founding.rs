//! The founding of a cluster, exactly once, by everybody or by nobody.
//!
//! Every founding member must answer that its storage is empty and that it was given the same list;
//! then the member with the lowest number initialises openraft with all of them at once, and the
//! first leader proposes `Found` with everybody's incarnation. A node whose storage was lost finds
//! out here, before it takes part in anything. Nothing is founded by time-out or by a majority.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use openraft::BasicNode;
use tokio::sync::watch;
use tonic::Code;
use understudy_core::ClusterConfig;
use understudy_core::state::Command;
use understudy_proto::v1;
use understudy_types::{ClusterIncarnation, Incarnation, NodeId, NodeName};

use crate::hello::{NoHello, hello};
use crate::leadership::Leadership;
use crate::peers::{FoundingMember, Peers};
use crate::server::{Write, write};
use crate::{RaftHandle, encode_command};

const ROUND_EVERY: Duration = Duration::from_millis(300);
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
const FOUND_TIMEOUT: Duration = Duration::from_secs(5);

/// How far the founding is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundingStatus {
    /// Not yet founded; for each node that is waited for, why.
    Waiting {
        /// Who, and why.
        r#for: Vec<(NodeName, String)>,
    },
    /// This node must not take part.
    Refused {
        /// What is wrong.
        why: String,
        /// What to do about it.
        remedy: String,
    },
    /// The cluster is founded, and this node is one of it.
    Done,
}

/// What founding needs besides the peers.
pub(crate) struct Founding {
    pub(crate) raft: RaftHandle,
    pub(crate) peers: Arc<Peers>,
    pub(crate) admitted: Arc<AtomicBool>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) config: ClusterConfig,
    pub(crate) initial_active: NodeId,
    pub(crate) incarnation: ClusterIncarnation,
    pub(crate) status: watch::Sender<FoundingStatus>,
}

/// What another member said.
enum Answer {
    /// It agrees with us.
    Agrees { storage_empty: bool },
    /// It knows this node's number by another storage.
    WrongStorage(String),
    /// No answer, or one that does not fit; the words say why.
    NotYet(String),
}

impl Founding {
    /// Works until the cluster is founded or openraft stops.
    pub(crate) async fn run(self) {
        let mut state = self.peers.state.clone();
        loop {
            if state.borrow_and_update().identity.is_some() {
                self.admitted.store(true, Ordering::Release);
                self.publish(FoundingStatus::Done);
                return;
            }
            let status = match self.raft.is_initialized().await {
                Err(_) => return,
                // A later incarnation is never founded: its leader lets this node in.
                Ok(false) if !self.incarnation.is_founded() => self.wait_for_admission(),
                Ok(false) => self.begin().await,
                Ok(true) => self.found().await,
            };
            self.publish(status);
            tokio::select! {
                _ = state.changed() => {}
                () = tokio::time::sleep(ROUND_EVERY) => {}
            }
        }
    }

    fn publish(&self, status: FoundingStatus) {
        // `Found` may have been applied while a round of hellos was under way.
        if status != FoundingStatus::Done && self.peers.state.borrow().identity.is_some() {
            return;
        }
        self.status.send_if_modified(|seen| {
            let changed = *seen != status;
            if changed {
                tracing::info!(?status, "founding");
                *seen = status;
            }
            changed
        });
    }

    fn others(&self) -> impl Iterator<Item = NodeId> {
        self.peers.members.keys().copied().filter(|id| *id != self.peers.node)
    }

    fn name(&self, node: NodeId) -> NodeName {
        self.peers.members[&node].name.clone()
    }

    fn wait_for_admission(&self) -> FoundingStatus {
        let why = format!("the leader of incarnation {} is to admit this node", self.incarnation);
        FoundingStatus::Waiting { r#for: vec![(self.peers.name.clone(), why)] }
    }

    /// One round while this node's storage is empty.
    async fn begin(&self) -> FoundingStatus {
        let answers =
            join_all(self.others().map(|id| async move { (id, self.ask(id).await) })).await;
        let mut waiting = Vec::new();
        for (id, answer) in answers {
            match answer {
                Answer::Agrees { storage_empty: true } => {}
                Answer::Agrees { storage_empty: false } => {
                    let why = "it has begun; waiting to hear from its leader".to_owned();
                    waiting.push((self.name(id), why));
                }
                Answer::NotYet(why) => waiting.push((self.name(id), why)),
                Answer::WrongStorage(why) => {
                    self.admitted.store(false, Ordering::Release);
                    return FoundingStatus::Refused {
                        why,
                        remedy: format!(
                            "stop this daemon and put back the raft directory that node {} was \
                             founded with; a node whose votes are lost must not vote again under \
                             the same number",
                            self.peers.name
                        ),
                    };
                }
            }
        }
        self.admitted.store(true, Ordering::Release);
        if waiting.is_empty() {
            let first = self.peers.members.keys().next().copied().unwrap_or(self.peers.node);
            if first == self.peers.node {
                self.initialise().await;
            } else {
                waiting.push((self.name(first), "everybody is ready; it is to begin".to_owned()));
            }
        }
        FoundingStatus::Waiting { r#for: waiting }
    }

    async fn initialise(&self) {
        let nodes: BTreeMap<u64, BasicNode> = self
            .peers
            .members
            .values()
            .map(|member| (member.id.0, BasicNode::new(&member.address)))
            .collect();
        match self.raft.initialize(nodes).await {
            Ok(()) => tracing::info!(members = self.peers.members.len(), "consensus initialised"),
            // Another node's vote came in between; then it has begun in its own way.
            Err(error) => tracing::warn!(%error, "consensus was not initialised"),
        }
    }

    /// One round after openraft has begun: the leader proposes `Found` as soon as it knows the
    /// storage of every member.
    async fn found(&self) -> FoundingStatus {
        self.admitted.store(true, Ordering::Release);
        let Leadership { is_leader, leader, .. } = *self.leadership.borrow();
        if !is_leader {
            let who = leader.filter(|id| *id != self.peers.node);
            let who = who.filter(|id| self.peers.members.contains_key(id));
            let r#for = who.map(|id| (self.name(id), "it leads and is to found".to_owned()));
            return FoundingStatus::Waiting { r#for: r#for.into_iter().collect() };
        }
        let unknown = self.others().filter(|id| self.peers.bound(*id).is_none());
        let answers = join_all(unknown.map(|id| async move { (id, self.ask(id).await) })).await;
        let waiting: Vec<_> = answers
            .into_iter()
            .filter_map(|(id, answer)| match answer {
                Answer::Agrees { .. } => None,
                Answer::WrongStorage(why) | Answer::NotYet(why) => Some((self.name(id), why)),
            })
            .collect();
        if waiting.is_empty() {
            self.propose().await;
        }
        FoundingStatus::Waiting { r#for: waiting }
    }

    async fn propose(&self) {
        let with_storage = |(id, member): (&NodeId, &FoundingMember)| {
            Some((*id, member.with_storage(self.peers.bound(*id)?)))
        };
        let members: Vec<_> = self.peers.members.iter().filter_map(with_storage).collect();
        if members.len() != self.peers.members.len() {
            return;
        }
        let command = Command::Found {
            cluster: self.peers.cluster,
            members,
            config: self.config,
            initial_active: self.initial_active,
        };
        // Applied twice it is rejected the second time, so an unknown outcome needs no care.
        match write(&self.raft, encode_command(&command), FOUND_TIMEOUT).await {
            Write::Applied { index, .. } => tracing::info!(index, "cluster founded"),
            Write::NotLeader(leader) => tracing::info!(?leader, "founding left to the leader"),
            Write::Unknown(reason) => tracing::warn!(reason, "founding not confirmed"),
        }
    }

    async fn ask(&self, node: NodeId) -> Answer {
        let settled = match self.raft.is_initialized().await {
            Ok(settled) => settled,
            Err(error) => return Answer::NotYet(error.to_string()),
        };
        match hello(&self.peers, node, !settled, HELLO_TIMEOUT).await {
            Ok(hello) => self.read(node, &hello, settled).unwrap_or_else(Answer::NotYet),
            Err(NoHello::Refused(status)) if status.code() == Code::AlreadyExists => {
                let (name, why) = (self.name(node), status.message());
                Answer::WrongStorage(format!("node {name} refuses: {why}"))
            }
            Err(why) => Answer::NotYet(why.to_string()),
        }
    }

    fn read(&self, node: NodeId, hello: &v1::Hello, settled: bool) -> Result<Answer, String> {
        self.peers.check_hello_of(node, hello)?;
        let incarnation: Incarnation =
            hello.incarnation.parse().map_err(|_| "it gave no incarnation".to_owned())?;
        if !self.peers.remember(node, incarnation, settled) {
            return Err("its storage is not the one that was heard before".to_owned());
        }
        Ok(Answer::Agrees { storage_empty: hello.storage_empty })
    }
}
