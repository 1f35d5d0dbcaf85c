//! Keeps the leadership where it can work: sets the pace of heartbeats, and hands leadership on.
//!
//! Three cases call for another leader although nobody is dead (docs/decisions/0019):
//!
//! - the leader hears no majority while the others hear it, so they elect nobody: a line that is too
//!   slow, or that carries one way only;
//! - the leader does not hear a member that another follower hears: it goes to who hears everybody,
//!   because the member cannot even have its lease renewed otherwise;
//! - its daemon is about to stop.
//!
//! Nothing here is needed for safety: openraft elects, with its own checks, whoever is named here.
//! Nothing here may decide who is active.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::{Instant as _, WatchReceiver as _};
use openraft::{RaftMetrics, ServerState};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Request;
use understudy_proto::v1;
use understudy_proto::v1::peer_client::PeerClient;
use understudy_types::{Incarnation, NodeId};

use crate::hello::hello;
use crate::peers::Peers;
use crate::{RaftHandle, RaftTypes};

/// Looks in a row without a majority before leadership is given away: one look alone may only say
/// that this process did not run for a while.
const DEAF_LOOKS: u32 = 3;

/// A question about a member is not repeated sooner than this.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// The durations that steering goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Between two heartbeats.
    pub(crate) heartbeat: Duration,
    /// The shortest silence before an election.
    pub(crate) election_min: Duration,
    /// The longest; also openraft's leader lease.
    pub(crate) election_max: Duration,
}

impl Pace {
    /// How long an answer to a heartbeat is waited for. openraft refuses an interval of heartbeats
    /// that is not below the election timeout, and takes the one for the other.
    pub(crate) fn answer_patience(&self) -> Duration {
        self.election_min.saturating_sub(Duration::from_millis(1))
    }
}

/// What is known of another voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Other {
    /// Since it was sent something that it has acknowledged; since the leader's beginning if nothing.
    silent_for: Duration,
    /// The last entry that it is known to have.
    matched: Option<u64>,
}

/// One look of a leader at its followers.
#[derive(Clone, Debug)]
struct Look {
    term: u64,
    /// As [`Other::silent_for`], of a majority.
    deaf_for: Duration,
    others: BTreeMap<NodeId, Other>,
}

impl Look {
    /// The follower that would make the best leader, as far as can be told from here.
    fn best(&self) -> Option<NodeId> {
        let freshest = self.others.iter().min_by_key(|(_, other)| {
            // Acknowledgements within one heartbeat of each other say nothing about who is nearer.
            let coarse = other.silent_for.as_millis() / 100;
            (coarse, std::cmp::Reverse(other.matched))
        });
        freshest.map(|(node, _)| *node)
    }

    fn silent(&self, pace: &Pace) -> Vec<NodeId> {
        let silent = self.others.iter().filter(|(_, o)| o.silent_for > pace.election_max);
        silent.map(|(node, _)| *node).collect()
    }

    fn heard(&self, pace: &Pace) -> Vec<NodeId> {
        let heard = self.others.iter().filter(|(_, o)| o.silent_for <= pace.election_min);
        heard.map(|(node, _)| *node).collect()
    }
}

/// What a look calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Stay,
    /// Give leadership away; the words say why.
    HandTo(NodeId, &'static str),
    /// Ask each of `of` whether it hears all of `about`.
    Ask {
        about: Vec<NodeId>,
        of: Vec<NodeId>,
    },
}

/// One leader's time in office.
#[derive(Debug)]
struct Office {
    term: u64,
    since: Instant,
    deaf_looks: u32,
    asked: Option<Instant>,
    /// Leadership was given away; openraft sends no heartbeats from then on.
    handed: bool,
}

impl Office {
    fn new(term: u64, now: Instant) -> Office {
        Office { term, since: now, deaf_looks: 0, asked: None, handed: false }
    }

    fn judge(&mut self, now: Instant, look: &Look, pace: &Pace) -> Step {
        // A new leader is given the time in which everybody must have been heard; so leadership does
        // not go round faster than that either where nobody can hold it.
        let settled = now.saturating_duration_since(self.since) >= pace.election_max * 2;
        if self.handed || !settled || look.others.is_empty() {
            return Step::Stay;
        }
        if look.deaf_for > pace.election_max {
            self.deaf_looks += 1;
            return match look.best() {
                Some(node) if self.deaf_looks >= DEAF_LOOKS => {
                    Step::HandTo(node, "no majority answers in time")
                }
                _ => Step::Stay,
            };
        }
        self.deaf_looks = 0;
        let (about, of) = (look.silent(pace), look.heard(pace));
        let due = self.asked.is_none_or(|at| now.saturating_duration_since(at) >= ASK_EVERY);
        if about.is_empty() || of.is_empty() || !due {
            return Step::Stay;
        }
        self.asked = Some(now);
        Step::Ask { about, of }
    }
}

/// Works as long as openraft does.
pub(crate) struct Steering {
    pub(crate) raft: RaftHandle,
    pub(crate) peers: Arc<Peers>,
    pub(crate) pace: Pace,
}

impl Steering {
    pub(crate) async fn run(self) {
        let mut beat = tokio::time::interval(self.pace.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut office: Option<Office> = None;
        let mut question: Option<JoinHandle<Option<NodeId>>> = None;
        loop {
            beat.tick().await;
            let now = Instant::now();
            let look = {
                let metrics = self.raft.metrics();
                let metrics = metrics.borrow_watched();
                if metrics.running_state.is_err() {
                    return;
                }
                let since = office.as_ref().map_or(Duration::ZERO, |office| now - office.since);
                look(&metrics, since)
            };
            let Some(look) = look else {
                office = None;
                drop(question.take().inspect(JoinHandle::abort));
                continue;
            };
            if self.raft.trigger().heartbeat().await.is_err() {
                return;
            }
            let office = match &mut office {
                Some(office) if office.term == look.term => office,
                other => other.insert(Office::new(look.term, now)),
            };
            if let Some(asked) = question.take_if(|asked| asked.is_finished()) {
                let found = asked.await.ok().flatten();
                // What was asked about may have come back meanwhile, or the one that hears it gone.
                let still = found.filter(|node| {
                    !look.silent(&self.pace).is_empty() && look.heard(&self.pace).contains(node)
                });
                if let Some(node) = still
                    && !office.handed
                {
                    self.hand_to(office, node, "it hears a member that is not heard here").await;
                    continue;
                }
            }
            match office.judge(now, &look, &self.pace) {
                Step::Stay => {}
                Step::HandTo(node, reason) => self.hand_to(office, node, reason).await,
                Step::Ask { about, of } if question.is_none() => {
                    let (peers, pace) = (Arc::clone(&self.peers), self.pace);
                    question = Some(tokio::spawn(ask_all(peers, pace, about, of)));
                }
                Step::Ask { .. } => {}
            }
        }
    }

    async fn hand_to(&self, office: &mut Office, node: NodeId, reason: &'static str) {
        tracing::info!(to = %node, term = office.term, reason, "leadership is handed on");
        office.handed = true;
        // A stopped openraft is noticed by the next look.
        let _ = self.raft.trigger().transfer_leader(node.0).await;
    }
}

/// What a leader knows of the others; `None` where this node does not lead.
fn look(metrics: &RaftMetrics<RaftTypes>, since: Duration) -> Option<Look> {
    if metrics.state != ServerState::Leader {
        return None;
    }
    let acked = |node: u64| {
        let at = metrics.heartbeat.as_ref().and_then(|heard| heard.get(&node).copied().flatten());
        at.map_or(since, |at| at.elapsed())
    };
    let matched = |node: u64| {
        let matched = metrics.replication.as_ref().and_then(|known| known.get(&node));
        matched.and_then(|log| log.as_ref()).map(|log| log.index)
    };
    let voters = metrics.membership_config.voter_ids().filter(|node| *node != metrics.id);
    let others = voters
        .map(|node| (NodeId(node), Other { silent_for: acked(node), matched: matched(node) }))
        .collect();
    let deaf_for = metrics.last_quorum_acked.map_or(since, |at| at.elapsed());
    Some(Look { term: metrics.current_term, deaf_for, others })
}

/// The first of `of` that hears all of `about`.
async fn ask_all(
    peers: Arc<Peers>,
    pace: Pace,
    about: Vec<NodeId>,
    of: Vec<NodeId>,
) -> Option<NodeId> {
    for node in of {
        let mut all = true;
        for silent in &about {
            all &= *silent == node || ask(&peers, &pace, node, *silent).await;
        }
        if all {
            return Some(node);
        }
    }
    None
}

async fn ask(peers: &Peers, pace: &Pace, node: NodeId, about: NodeId) -> bool {
    let Some(channel) = peers.channel(node) else { return false };
    let mut client = PeerClient::new(channel);
    let asked = client.reach(Request::new(v1::ReachRequest { node_id: about.0 }));
    let answer = tokio::time::timeout(pace.election_min * 4, asked).await;
    matches!(answer, Ok(Ok(answer)) if answer.get_ref().reached)
}

/// Whether `node` answers here, and within half an election timeout: a member that is merely slow is
/// slow for the next leader too, and leadership would go to and fro.
pub(crate) async fn probe(peers: Arc<Peers>, node: NodeId, pace: Pace) -> bool {
    // The first one may have to open the connection, which says nothing about the line.
    answers(&peers, node, pace.election_min * 2).await
        && answers(&peers, node, pace.election_min / 2).await
}

async fn answers(peers: &Peers, node: NodeId, within: Duration) -> bool {
    let Ok(hello) = hello(peers, node, false, within).await else { return false };
    let storage: Option<Incarnation> = hello.incarnation.parse().ok();
    hello.node_id == node.0 && storage.is_some() && storage == peers.bound(node)
}

/// Before a planned stop: leadership goes to a follower that was heard just now, so that nobody has
/// to wait for an election. Gives the new leader, `None` when there was nothing to hand over or
/// nobody took it in time; then the others elect one as ever.
pub(crate) async fn step_aside(raft: &RaftHandle, pace: Pace, within: Duration) -> Option<NodeId> {
    let mut metrics = raft.metrics();
    let (own, to) = {
        let metrics = metrics.borrow_watched();
        let look = look(&metrics, Duration::MAX)?;
        let to = look.best().filter(|node| look.heard(&pace).contains(node))?;
        (metrics.id, to)
    };
    tracing::info!(%to, reason = "this node is about to stop", "leadership is handed on");
    raft.trigger().transfer_leader(to.0).await.ok()?;
    let taken = async {
        loop {
            let leader = metrics.borrow_and_update().current_leader;
            if let Some(leader) = leader.filter(|leader| *leader != own) {
                return Some(NodeId(leader));
            }
            metrics.changed().await.ok()?;
        }
    };
    tokio::time::timeout(within, taken).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(300),
        election_max: Duration::from_millis(600),
    };

    fn look(deaf_ms: u64, others: [(u64, u64, u64); 2]) -> Look {
        let other = |(node, silent, matched): (u64, u64, u64)| {
            let silent_for = Duration::from_millis(silent);
            (NodeId(node), Other { silent_for, matched: Some(matched) })
        };
        let others = others.into_iter().map(other).collect();
        Look { term: 4, deaf_for: Duration::from_millis(deaf_ms), others }
    }

    fn settled() -> (Office, Instant) {
        let now = Instant::now();
        (Office::new(4, now), now + PACE.election_max * 2)
    }

    #[test]
    fn a_leader_that_everybody_answers_stays() {
        let (mut office, now) = settled();
        for _ in 0..20 {
            assert_eq!(office.judge(now, &look(90, [(2, 90, 7), (3, 110, 7)]), &PACE), Step::Stay);
        }
    }

    #[test]
    fn a_leader_without_a_majority_goes_only_when_several_looks_agree_and_to_the_freshest() {
        let (mut office, now) = settled();
        let deaf = look(700, [(2, 900, 9), (3, 700, 7)]);
        assert_eq!(office.judge(now, &deaf, &PACE), Step::Stay);
        assert_eq!(office.judge(now, &deaf, &PACE), Step::Stay);
        // One look with a majority begins the count anew: this process had only not run.
        assert_eq!(office.judge(now, &look(50, [(2, 50, 9), (3, 50, 7)]), &PACE), Step::Stay);
        assert_eq!(office.judge(now, &deaf, &PACE), Step::Stay);
        assert_eq!(office.judge(now, &deaf, &PACE), Step::Stay);
        assert!(matches!(office.judge(now, &deaf, &PACE), Step::HandTo(NodeId(3), _)));
    }

    #[test]
    fn of_two_that_answer_alike_the_one_with_the_longer_log_leads() {
        assert_eq!(look(0, [(2, 20, 7), (3, 40, 9)]).best(), Some(NodeId(3)));
    }

    #[test]
    fn a_silent_member_makes_the_leader_ask_those_it_hears_and_not_all_the_time() {
        let (mut office, now) = settled();
        let silent = look(90, [(2, 90, 7), (3, 800, 7)]);
        let ask = Step::Ask { about: vec![NodeId(3)], of: vec![NodeId(2)] };
        assert_eq!(office.judge(now, &silent, &PACE), ask);
        assert_eq!(office.judge(now + PACE.heartbeat, &silent, &PACE), Step::Stay);
        assert_eq!(office.judge(now + ASK_EVERY, &silent, &PACE), ask);
    }

    #[test]
    fn a_new_leader_and_one_that_has_handed_on_do_nothing() {
        let now = Instant::now();
        let mut office = Office::new(4, now);
        let silent = look(90, [(2, 90, 7), (3, 800, 7)]);
        assert_eq!(office.judge(now + PACE.election_max, &silent, &PACE), Step::Stay);
        office.handed = true;
        assert_eq!(office.judge(now + PACE.election_max * 4, &silent, &PACE), Step::Stay);
    }
}
