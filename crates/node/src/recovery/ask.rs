//! Asks every other configured member which incarnation it is of and how it stands, each within a
//! bounded time and all at once. It changes nothing and concludes nothing.

use std::time::Duration;

use futures::future::join_all;
use tonic::Request;
use understudy_proto::v1;
use understudy_proto::v1::recovery_client::RecoveryClient;
use understudy_transport::{ChannelOptions, TlsIdentity, connect_now};
use understudy_types::{ClusterIncarnation, Epoch, NodeId, NodeName};

use crate::config::{Member, NodeConfig};

/// What a member said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// Which incarnation it is of.
    pub incarnation: ClusterIncarnation,
    /// Its storage holds a vote or a log.
    pub can_vote: bool,
    /// It hears a majority.
    pub majority: bool,
    /// The newest epoch there.
    pub epoch: Epoch,
    /// It holds the lease.
    pub holds_lease: bool,
}

/// What came of asking one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its number in this node's incarnation.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// What it said, or why nothing.
    pub outcome: Result<Described, String>,
}

impl Answer {
    /// For people.
    pub fn words(&self) -> String {
        match &self.outcome {
            Err(why) => format!("no answer: {why}"),
            Ok(described) => {
                let majority = if described.majority { "" } else { " no" };
                format!(
                    "answers: incarnation {}, epoch {}, hears{majority} majority",
                    described.incarnation, described.epoch
                )
            }
        }
    }
}

/// Asks them all; `progress` hears each answer as it comes to be known.
pub(crate) async fn ask(
    config: &NodeConfig,
    identity: &TlsIdentity,
    within: Duration,
    progress: &mut dyn FnMut(&str),
) -> Vec<Answer> {
    let count = config.peers().count();
    progress(&format!("asking the other {count} members, up to {:.1} s", within.as_secs_f64()));
    let asked = config.peers().map(|member| async move {
        let asking = describe(member, identity, config);
        let outcome = tokio::time::timeout(within, asking).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("silent for {within:?}")));
        Answer { node: member.id, name: member.name.clone(), outcome }
    });
    let answers = join_all(asked).await;
    for answer in &answers {
        progress(&format!("{}: {}", answer.name, answer.words()));
    }
    answers
}

/// The same of one member, this node's own daemon perhaps.
pub(crate) async fn describe(
    member: &Member,
    identity: &TlsIdentity,
    config: &NodeConfig,
) -> Result<Described, String> {
    let options = ChannelOptions::admin();
    let channel = connect_now(&member.address, &member.name, identity, &options)
        .await
        .map_err(|error| error.to_string())?;
    match RecoveryClient::new(channel).describe(Request::new(v1::DescribeRequest {})).await {
        Ok(answer) => read(&answer.into_inner()),
        // Whoever is up and cannot say how it stands is taken for a voter of this incarnation: what
        // can only make us more careful.
        Err(status) if status.code() == tonic::Code::Unimplemented => Ok(Described {
            incarnation: ClusterIncarnation::FOUNDED,
            can_vote: true,
            majority: false,
            epoch: Epoch::NONE,
            holds_lease: false,
        }),
        Err(status) => Err(format!("{} ({})", status.message(), config.cluster)),
    }
}

fn read(answer: &v1::DescribeResponse) -> Result<Described, String> {
    Ok(Described {
        incarnation: answer.incarnation.parse().map_err(|error| format!("{error}"))?,
        can_vote: answer.can_vote,
        majority: answer.majority,
        epoch: answer.epoch.unwrap_or_default().into(),
        holds_lease: answer.lease_left_ms.is_some(),
    })
}
