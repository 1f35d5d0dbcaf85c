//! What a promotion may lose, from what was published last, and how much of it an operator accepts.
//!
//! Time is an upper figure and may be unknown; bytes are a lower figure, what is missing for certain.
//! It must not state a loss smaller than it can be, nor call the unknown nothing (I24).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{DurabilityMode, Lsn, NodeId};

use super::{ClusterState, ReleaseCause};

/// What of the acknowledged may be missing at a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossBound {
    /// From the oldest acknowledged commit that is missing to the newest, at most; `None` when that
    /// is not known.
    pub time_max: Option<Duration>,
    /// WAL that the active had flushed and the candidate has not, at least.
    pub wal_bytes_min: u64,
}

/// A stated loss. With neither figure, whatever it may be is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossLimit {
    /// Commits of at most this span.
    pub age_max: Option<Duration>,
    /// At most this much WAL, by what is known.
    pub bytes_max: Option<u64>,
}

impl LossBound {
    /// Nothing is missing.
    pub const NONE: LossBound = LossBound { time_max: Some(Duration::ZERO), wal_bytes_min: 0 };

    /// Nothing can be missing.
    pub fn is_none(&self) -> bool {
        *self == LossBound::NONE
    }
}

impl LossLimit {
    /// Whether a loss stays within what was stated. An unknown span fits only where none was stated.
    pub fn covers(&self, loss: &LossBound) -> bool {
        let span = |max: Duration| loss.time_max.is_some_and(|time| time <= max);
        self.age_max.is_none_or(span) && self.bytes_max.is_none_or(|max| loss.wal_bytes_min <= max)
    }
}

impl fmt::Display for LossBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("nothing");
        }
        match self.time_max {
            Some(time) => write!(f, "up to {time:.1?} of commits")?,
            None => f.write_str("an unknown span of commits")?,
        }
        write!(f, " (at least {} bytes of WAL)", self.wal_bytes_min)
    }
}

impl fmt::Display for LossLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.age_max, self.bytes_max) {
            (None, None) => f.write_str("any loss"),
            (Some(age), None) => write!(f, "{age:.1?} of commits"),
            (None, Some(bytes)) => write!(f, "{bytes} bytes of WAL"),
            (Some(age), Some(bytes)) => write!(f, "{age:.1?} of commits and {bytes} bytes of WAL"),
        }
    }
}

impl ClusterState {
    /// What may be missing at `to`, whose journal is durable up to `durable_lsn`, if the present
    /// holder is lost.
    pub fn loss_bound(&self, to: NodeId, durable_lsn: Lsn) -> LossBound {
        // With a quorum it will have fetched what enough of them have, before it opens.
        let fetches = self.durability.is_quorum() && self.durability.eligible.contains(&to);
        let published = self.holder.as_ref().and_then(|holder| holder.published.as_ref());
        let fetched_lsn = published.and_then(|p| p.survives).filter(|_| fetches).map(|s| s.lsn);
        self.loss_bound_alone(to, durable_lsn.max(fetched_lsn.unwrap_or(durable_lsn)))
    }

    /// The same where nobody else can be asked for what is missing there.
    pub fn loss_bound_alone(&self, to: NodeId, durable_lsn: Lsn) -> LossBound {
        let holder = self.holder.as_ref();
        let Some((holder, published)) = holder.and_then(|h| Some((h, h.published.as_ref()?)))
        else {
            // Nobody ever renewed, so nothing was ever acknowledged.
            return LossBound::NONE;
        };
        let waited_for =
            self.durability.mode == DurabilityMode::Zero && self.durability.eligible.contains(&to);
        let clean =
            matches!(holder.released, Some(ReleaseCause::CleanEnd(end)) if durable_lsn >= end);
        if waited_for || clean {
            return LossBound::NONE;
        }
        let survives = published.survives.filter(|survives| durable_lsn >= survives.lsn);
        LossBound {
            // Until the lease's end one more commit may have been acknowledged, together with which
            // the oldest that is missing is lost.
            time_max: survives.map(|survives| survives.oldest_age + holder.ttl),
            wal_bytes_min: published.flush_lsn.bytes_since(durable_lsn),
        }
    }

    /// What is known to be durable at `node`, by what was published last.
    pub fn known_durable(&self, node: NodeId) -> Lsn {
        let published = self.holder.as_ref().and_then(|holder| holder.published.as_ref());
        published.and_then(|p| p.durable.get(&node).copied()).unwrap_or(Lsn::ZERO)
    }

    /// The loss that an operator accepts for a promotion of `to` in this epoch.
    pub(super) fn accepted_loss(&self, to: NodeId) -> Option<LossLimit> {
        self.order.as_ref().filter(|order| order.to == to).and_then(|order| order.accepts)
    }
}
