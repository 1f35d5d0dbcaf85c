//! Who may speak in consensus: the founding list, and which storage answers to which number.
//!
//! A node that lost its storage has forgotten its votes; if it passed for the one it was, two
//! leaders could win one term. So every message carries the incarnation of its sender's storage, and
//! both sides compare it with the one that the cluster was founded with; and what its storage's past
//! is, by which an older copy of the same storage is told (`past`). This file decides who is believed;
//! it must not talk to anybody.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{Either, select};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;
use understudy_core::state::{ClusterState, Member};
use understudy_proto::v1;
use understudy_types::{ClusterId, Incarnation, NodeId, NodeKind, NodeName, SiteName};

use crate::past::{Pasts, Unknown};

/// Grows when a message changes in a way that an older program would misread.
pub const PROTOCOL_VERSION: u32 = 4;

/// Which of the two connections to a node. TCP delivers in order, so one lost packet holds up all that
/// follows on its connection, and what is lost again holds it up longer each time; the other
/// connection knows nothing of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// The one that is begun with.
    First,
    /// Connected when the first one kept somebody waiting.
    Second,
}

/// An answer that takes longer may be stuck behind a lost packet. A third of the patience for a
/// heartbeat's answer with the default profile, so that the other lane has two thirds.
const OTHER_LANE_AFTER: Duration = Duration::from_millis(100);

impl Lane {
    pub(crate) fn other(self) -> Lane {
        match self {
            Lane::First => Lane::Second,
            Lane::Second => Lane::First,
        }
    }
}

/// Gives a channel to a node, `None` when it has no address. It must not block, and should always
/// give the same lazily connecting channel for the same lane, kept apart from bulk data.
pub type ChannelTo = Arc<dyn Fn(NodeId, Lane) -> Option<Channel> + Send + Sync>;

/// One line of the founding list, the same in every node's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundingMember {
    /// Its number in consensus.
    pub id: NodeId,
    /// Its name, as in its certificate.
    pub name: NodeName,
    /// Where it is.
    pub site: SiteName,
    /// What it can be.
    pub kind: NodeKind,
    /// host:port of its gRPC door.
    pub address: String,
}

impl FoundingMember {
    /// As a member, with the storage that answers to its number.
    pub(crate) fn with_storage(&self, incarnation: Incarnation) -> Member {
        Member {
            name: self.name.clone(),
            site: self.site.clone(),
            kind: self.kind,
            address: self.address.clone(),
            incarnation,
        }
    }
}

impl From<&FoundingMember> for v1::FoundingMember {
    fn from(member: &FoundingMember) -> v1::FoundingMember {
        v1::FoundingMember {
            node_id: member.id.0,
            name: member.name.to_string(),
            address: member.address.clone(),
            witness: member.kind == NodeKind::Witness,
            site: member.site.to_string(),
            journal: member.kind == NodeKind::Journal,
        }
    }
}

/// Why this node must not take part any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OlderCopy {
    /// Its storage is the older one for certain, and must not be opened again.
    pub(crate) proven: bool,
    /// What was found.
    pub(crate) words: String,
}

/// What this node knows of itself and of the others.
pub(crate) struct Peers {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) name: NodeName,
    pub(crate) incarnation: Incarnation,
    pub(crate) members: BTreeMap<NodeId, FoundingMember>,
    channel: ChannelTo,
    /// The lane to begin with for each node, where that is not the first.
    lanes: Mutex<BTreeMap<NodeId, Lane>>,
    pub(crate) state: watch::Receiver<Arc<ClusterState>>,
    /// Incarnations heard before the founding was applied; in memory only.
    remembered: Mutex<BTreeMap<NodeId, Incarnation>>,
    pasts: Arc<Pasts>,
    /// Why this node's own storage is an older copy, once that is known.
    older_copy: Mutex<Option<OlderCopy>>,
    heard: Mutex<Option<Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The values are replaced as a whole, so a panic elsewhere cannot leave half of one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    pub(crate) fn new(
        (cluster, node, name): (ClusterId, NodeId, NodeName),
        (incarnation, pasts): (Incarnation, Arc<Pasts>),
        members: &[FoundingMember],
        channel: ChannelTo,
        state: watch::Receiver<Arc<ClusterState>>,
    ) -> Peers {
        Peers {
            cluster,
            node,
            name,
            incarnation,
            members: members.iter().map(|member| (member.id, member.clone())).collect(),
            channel,
            lanes: Mutex::default(),
            state,
            remembered: Mutex::new(BTreeMap::from([(node, incarnation)])),
            pasts,
            older_copy: Mutex::default(),
            heard: Mutex::new(None),
        }
    }

    /// The way to `node` that is begun with.
    pub(crate) fn channel(&self, node: NodeId) -> Option<Channel> {
        self.channel_on(node, self.lane(node))
    }

    /// The way to `node` on that lane.
    pub(crate) fn channel_on(&self, node: NodeId, lane: Lane) -> Option<Channel> {
        (self.channel)(node, lane)
    }

    /// The lane to begin with: on which `node` answered last, or the one beside that which keeps waiting.
    pub(crate) fn lane(&self, node: NodeId) -> Lane {
        lock(&self.lanes).get(&node).copied().unwrap_or(Lane::First)
    }

    fn prefer(&self, node: NodeId, lane: Lane) {
        lock(&self.lanes).insert(node, lane);
    }

    /// Waits for an answer of `node`, on `lane`, to what must not be sent twice; while it takes long,
    /// whoever comes next takes the other lane.
    pub(crate) async fn awaited<A>(
        &self,
        node: NodeId,
        lane: Lane,
        answer: impl Future<Output = Result<A, Status>>,
    ) -> Result<A, Status> {
        let mut answer = pin!(answer);
        if let Ok(answer) = tokio::time::timeout(OTHER_LANE_AFTER, &mut answer).await {
            return answer;
        }
        self.prefer(node, lane.other());
        let answer = answer.await;
        if answer.is_ok() {
            self.prefer(node, lane);
        }
        answer
    }

    /// The first answer of `node` to what may be sent twice, on the lane that worked last or, when that
    /// takes long, on either.
    ///
    /// # Errors
    /// The outer ones are those of `send_on`.
    pub(crate) async fn first_answer<A, E, F: Future<Output = Result<A, Status>>>(
        &self,
        node: NodeId,
        send_on: impl Fn(Lane) -> Result<F, E>,
    ) -> Result<Result<A, Status>, E> {
        let lane = self.lane(node);
        let mut first = pin!(send_on(lane)?);
        if let Ok(answer) = tokio::time::timeout(OTHER_LANE_AFTER, &mut first).await {
            return Ok(answer);
        }
        let second = pin!(send_on(lane.other())?);
        let (by_second, answer) = match select(first, second).await {
            Either::Left((Err(_), second)) => (true, second.await),
            Either::Left((answer, _)) => (false, answer),
            Either::Right((Err(_), first)) => (false, first.await),
            Either::Right((answer, _)) => (true, answer),
        };
        if by_second && answer.is_ok() {
            self.prefer(node, lane.other());
        }
        Ok(answer)
    }

    /// The storage that answers to `node`: as founded, else as first heard.
    pub(crate) fn bound(&self, node: NodeId) -> Option<Incarnation> {
        let founded = self.state.borrow().members.get(&node).map(|member| member.incarnation);
        founded.or_else(|| lock(&self.remembered).get(&node).copied())
    }

    /// Notes the incarnation that `node` gave before the founding. Once this node has voted or
    /// logged anything (`settled`), a second one for the same number is not believed any more.
    /// Says whether `incarnation` is the one that counts.
    pub(crate) fn remember(&self, node: NodeId, incarnation: Incarnation, settled: bool) -> bool {
        let founded = self.state.borrow().members.get(&node).map(|member| member.incarnation);
        if let Some(founded) = founded {
            return founded == incarnation;
        }
        // A founded cluster has no room for a number that it was not founded with.
        if self.state.borrow().identity.is_some() {
            return false;
        }
        let mut remembered = lock(&self.remembered);
        if settled {
            return *remembered.entry(node).or_insert(incarnation) == incarnation;
        }
        remembered.insert(node, incarnation);
        true
    }

    /// A message of ours to `target`.
    pub(crate) fn envelope(&self, target: NodeId, payload: Vec<u8>) -> v1::RaftMessage {
        v1::RaftMessage {
            target: target.0,
            from: self.node.0,
            incarnation: self.incarnation.to_string(),
            payload,
            past: Some((&self.pasts.own()).into()),
            heard: self.pasts.heard_of(target).map(Into::into),
            others: self.others_than(target),
        }
    }

    fn others_than(&self, target: NodeId) -> Vec<v1::StorageKnown> {
        let known = self.pasts.all_known().into_iter();
        let others = known.filter(|(node, _)| *node != target.0);
        others.map(|(node, known)| known.of(NodeId(node))).collect()
    }

    /// Why this node's storage is an older copy of what it told others; it must not take part then.
    pub(crate) fn older_copy(&self) -> Option<OlderCopy> {
        lock(&self.older_copy).clone()
    }

    /// What a message of `member` says of the two storages' pasts. The sender's must not be older than
    /// what was heard of it here, ours not older than what was heard of it there.
    fn check_pasts(
        &self,
        member: NodeId,
        storage: Incarnation,
        message: &v1::RaftMessage,
    ) -> Result<(), Status> {
        if let Some(heard) = &message.heard {
            let heard = heard.try_into().map_err(unreadable)?;
            if let Err(Unknown { proven, words }) = self.pasts.recognise(&heard) {
                let what = match proven {
                    true => "is an older copy",
                    false => "or the one that another node knows is an older copy",
                };
                let why = format!("the storage of node {} {what}: {words}", self.name);
                let found = OlderCopy { proven, words: why.clone() };
                lock(&self.older_copy).get_or_insert(found);
                return Err(Status::failed_precondition(why));
            }
        }
        let past = message.past.as_ref();
        let past = past.ok_or_else(|| Status::invalid_argument("a storage's past is missing"))?;
        let past = past.try_into().map_err(unreadable)?;
        self.pasts.hear(member, storage.0, &past).map_err(|why| {
            let name = self.members.get(&member).map_or("?", |member| member.name.as_str());
            Status::already_exists(format!("node {name} is refused: {why}"))
        })?;
        for known in &message.others {
            let node = NodeId(known.node_id);
            if node != self.node && self.members.contains_key(&node) {
                self.pasts.learn(node, known.try_into().map_err(unreadable)?);
            }
        }
        Ok(())
    }

    /// The configured member behind a certificate's name.
    // A Status is what tonic's handlers must return; boxing it here would only be undone there.
    #[allow(clippy::result_large_err)]
    pub(crate) fn member(&self, peer: &NodeName) -> Result<NodeId, Status> {
        self.members
            .values()
            .find(|member| member.name == *peer)
            .map(|member| member.id)
            .ok_or_else(|| {
                Status::permission_denied(format!("node {peer} is not in the founding list"))
            })
    }

    /// Checks that `message` is meant for this node and comes from whom it says: the certificate is
    /// the member's, and the storage is the one the member was founded with.
    #[allow(clippy::result_large_err)]
    pub(crate) fn check_sender(
        &self,
        message: &v1::RaftMessage,
        peer: &NodeName,
    ) -> Result<NodeId, Status> {
        if message.target != self.node.0 {
            return Err(Status::failed_precondition(format!(
                "meant for node {}, but this is node {} ({})",
                message.target, self.node, self.name
            )));
        }
        let member = self.member(peer)?;
        if member.0 != message.from {
            return Err(Status::permission_denied(format!(
                "node {peer} speaks as number {}, but it is number {member}",
                message.from
            )));
        }
        let incarnation = parse_incarnation(&message.incarnation)?;
        if !self.remember(member, incarnation, true) {
            return Err(wrong_storage(&self.members[&member].name, incarnation));
        }
        self.check_pasts(member, incarnation, message).map(|()| member)
    }

    /// Checks that the answer to a message comes from the node that was asked. An answer of a wiped
    /// node must count neither as a vote nor as a copy.
    pub(crate) fn check_answer(
        &self,
        target: NodeId,
        answer: &v1::RaftMessage,
    ) -> Result<(), String> {
        if answer.from != target.0 || answer.target != self.node.0 {
            return Err(format!("node {target} was asked, but node {} answered", answer.from));
        }
        let given: Incarnation = answer
            .incarnation
            .parse()
            .map_err(|_| format!("node {target} gave no incarnation of its storage"))?;
        match self.bound(target) {
            Some(bound) if bound != given => Err(format!(
                "node {target} answered with storage {given}, but the cluster knows it by {bound}"
            )),
            _ => self
                .check_pasts(target, given, answer)
                .map_err(|status| status.message().to_owned()),
        }
    }

    /// A leader has just been heard and believed.
    pub(crate) fn note_leader(&self) {
        *lock(&self.heard) = Some(Instant::now());
    }

    /// How long ago a leader was heard.
    pub(crate) fn leader_heard_ago(&self) -> Option<Duration> {
        lock(&self.heard).map(|at| at.elapsed())
    }

    /// What this node says of itself. `storage_empty`: it has neither voted nor logged anything.
    pub(crate) fn hello(&self, storage_empty: bool) -> v1::Hello {
        let state = self.state.borrow();
        let system_id = state.identity.and_then(|identity| identity.system_id);
        v1::Hello {
            protocol_version: PROTOCOL_VERSION,
            cluster: self.cluster.to_string(),
            node: self.name.to_string(),
            node_id: self.node.0,
            incarnation: self.incarnation.to_string(),
            system_id: system_id.map_or(0, |id| id.0),
            epoch: Some(state.epoch.into()),
            members: self.members.values().map(v1::FoundingMember::from).collect(),
            storage_empty,
        }
    }

    /// Checks a hello against our own configuration; says what is different.
    pub(crate) fn check_hello(&self, hello: &v1::Hello) -> Result<(), String> {
        check_hello(hello, self.cluster, &self.members)
    }

    /// The same for the answer of `node`, whose list of members has to be ours too.
    pub(crate) fn check_hello_of(&self, node: NodeId, hello: &v1::Hello) -> Result<(), String> {
        check_hello_of(node, hello, self.cluster, &self.members)
    }
}

/// Whether a hello comes from a founding member of this cluster; says what is different.
///
/// # Errors
/// When it does not.
pub fn check_hello(
    hello: &v1::Hello,
    cluster: ClusterId,
    members: &BTreeMap<NodeId, FoundingMember>,
) -> Result<(), String> {
    if hello.protocol_version != PROTOCOL_VERSION {
        return Err(format!(
            "it speaks version {} of the protocol, this node version {PROTOCOL_VERSION}",
            hello.protocol_version
        ));
    }
    if hello.cluster != cluster.to_string() {
        return Err(format!("it belongs to cluster {}", hello.cluster));
    }
    match members.get(&NodeId(hello.node_id)) {
        Some(member) if member.name.as_str() == hello.node => Ok(()),
        _ => Err(format!(
            "it is node {} ({}), which the founding list here does not have",
            hello.node_id, hello.node
        )),
    }
}

/// The same for the answer of `node`, whose list of members has to be ours too.
///
/// # Errors
/// When it is another's, or its list is another.
pub fn check_hello_of(
    node: NodeId,
    hello: &v1::Hello,
    cluster: ClusterId,
    members: &BTreeMap<NodeId, FoundingMember>,
) -> Result<(), String> {
    check_hello(hello, cluster, members)?;
    if hello.node_id != node.0 {
        return Err(format!("node {} answered in its place", hello.node));
    }
    let ours: Vec<_> = members.values().map(v1::FoundingMember::from).collect();
    if hello.members != ours {
        return Err("its founding list differs from the one here".to_owned());
    }
    Ok(())
}

#[allow(clippy::result_large_err)]
pub(crate) fn parse_incarnation(text: &str) -> Result<Incarnation, Status> {
    text.parse()
        .map_err(|_| Status::invalid_argument(format!("{text:?} is not an incarnation (a uuid)")))
}

fn unreadable(error: uuid::Error) -> Status {
    Status::invalid_argument(format!("read a storage's past: {error}"))
}

/// The refusal of a node that comes with another storage than it was founded with; its code
/// `AlreadyExists` is how the refused node recognises it in the answer to a hello.
pub(crate) fn wrong_storage(name: &NodeName, given: Incarnation) -> Status {
    Status::already_exists(format!(
        "node {name} comes with storage {given}, but the cluster knows it by another one: \
         its raft directory was lost or replaced"
    ))
}
