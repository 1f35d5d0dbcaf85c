//! Who leads, and whether a majority is in reach: watched several times a second.
//!
//! openraft's own `is_leader` stays true on a leader that is cut off, so it is never used alone
//! here. Nothing here is a fencing lease: whoever writes data holds one of its own.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::{Instant as _, WatchReceiver as _};
use openraft::{RaftMetrics, ServerState};
use tokio::sync::watch;
use understudy_types::NodeId;

use crate::peers::Peers;
use crate::store::LogStore;
use crate::{RaftHandle, RaftTypes};

/// The longest time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// For the disk to take a mark.
const CONDEMN_PATIENCE: Duration = Duration::from_secs(2);

/// What this node knows about leadership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader of the term, as far as it is known; it may be cut off.
    pub leader: Option<NodeId>,
    /// This node leads, a majority has said so recently, and it has applied an entry of its own
    /// term, so that its state is up to date.
    pub is_leader: bool,
    /// The term.
    pub term: u64,
    /// As leader: a majority answered recently. As follower: a leader was heard recently.
    pub majority: bool,
}

fn assess(metrics: &RaftMetrics<RaftTypes>, peers: &Peers, recent: Duration) -> Leadership {
    let leader = metrics.current_leader.map(NodeId);
    let term = metrics.current_term;
    if metrics.state == ServerState::Leader {
        let alone = metrics.membership_config.voter_ids().count() == 1;
        let acked = metrics.last_quorum_acked.is_some_and(|at| at.elapsed() < recent);
        let majority = alone || acked;
        let applied = metrics.last_applied.is_some_and(|id| id.leader_id.term == term);
        return Leadership { leader, is_leader: majority && applied, term, majority };
    }
    let heard = peers.leader_heard_ago().is_some_and(|ago| ago < recent);
    Leadership { leader, is_leader: false, term, majority: leader.is_some() && heard }
}

/// Publishes leadership until openraft stops, and then why it did.
pub(crate) async fn watch(
    raft: RaftHandle,
    store: LogStore,
    peers: Arc<Peers>,
    recent: Duration,
    leadership: watch::Sender<Leadership>,
    fatal: watch::Sender<Option<String>>,
) {
    let mut metrics = raft.metrics();
    let mut state = peers.state.clone();
    loop {
        let (now, stopped) = {
            let metrics = metrics.borrow_and_update();
            let stopped = metrics.running_state.as_ref().err().map(ToString::to_string);
            (assess(&metrics, &peers, recent), stopped)
        };
        let older = peers.older_copy();
        let found = older.as_ref().map(|found| found.words.clone());
        let stopped = stopped.or_else(|| wiped(&peers)).or(found);
        if let Some(reason) = stopped {
            let term = now.term;
            leadership.send_replace(Leadership { term, ..Leadership::default() });
            if let Some(found) = older.filter(|found| found.proven) {
                condemn(&store, found.words).await;
            }
            tracing::error!(reason, "consensus has stopped");
            fatal.send_replace(Some(reason));
            // Not awaited for its result: a stopped openraft has nothing more to say.
            let _ = raft.shutdown().await;
            return;
        }
        leadership.send_if_modified(|seen| {
            let changed = *seen != now;
            if changed {
                let (from, to) = (seen.leader, now.leader);
                let Leadership { is_leader, term, majority, .. } = now;
                tracing::info!(?from, ?to, is_leader, term, majority, "leadership changed");
                *seen = now;
            }
            changed
        });
        tokio::select! {
            _ = metrics.changed() => {}
            _ = state.changed() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Writes into the storage that it is not to be opened again; a disk that hangs must not keep the daemon
/// from ending.
async fn condemn(store: &LogStore, why: String) {
    match tokio::time::timeout(CONDEMN_PATIENCE, store.condemn(why)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "this storage cannot be marked as an older copy"),
        Err(_) => tracing::warn!("this storage was not marked as an older copy in time"),
    }
}

/// The replicated state may say that this storage is not the one its member was founded with.
fn wiped(peers: &Peers) -> Option<String> {
    let state = peers.state.borrow();
    let bound = state.members.get(&peers.node)?.incarnation;
    (bound != peers.incarnation).then(|| {
        format!(
            "the cluster was founded with storage {bound} of node {}, but this is storage {}",
            peers.name, peers.incarnation
        )
    })
}
