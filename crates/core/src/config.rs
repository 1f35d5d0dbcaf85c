//! What the cluster has agreed on, as opposed to what one node is configured with.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::DurabilityMode;

/// What happens to commits when the passive is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnPassiveLoss {
    /// They wait: in `zero` at once, in `bounded` when exposure reaches the ceiling.
    Stall,
    /// The weakening is recorded in Raft, then they go on unprotected.
    Degrade,
}

impl OnPassiveLoss {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            OnPassiveLoss::Stall => "stall",
            OnPassiveLoss::Degrade => "degrade",
        }
    }
}

/// What a newly promoted node does while nobody is left to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnSoleSurvivor {
    /// It opens, recorded as sole survivor: availability first, once the other copy is gone anyway.
    Open,
    /// It accepts no commit until a passive is attached again.
    Stall,
}

/// The cluster's configuration: agreed through consensus, the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// The RPO dial as the operator set it; what is in force is in the durability.
    pub mode: DurabilityMode,
    /// R: the ceiling on exposure in `bounded`; in `best-effort` the limit up to which a loss of the
    /// active is answered without a person.
    pub rpo: Duration,
    /// The policy for a lost passive.
    pub on_passive_loss: OnPassiveLoss,
    /// How long a passive may be away before `Degrade` acts in `zero`.
    pub degrade_after: Duration,
    /// The policy for a promoted node that is alone.
    pub on_sole_survivor: OnSoleSurvivor,
    /// In `zero`, an eligible passive is promoted on its seal, before the lease of an active that has
    /// fallen silent is over (decision 0009). Off by default: what the gate does not cover (readers,
    /// sessions that opted out) may go on at the old side until then.
    pub promote_without_lease_wait: bool,
    /// At how many of those who are waited for a commit has to be durable (k of n); 0 is all of them.
    /// With fewer than all, a promotion takes what any of n - k + 1 of them has (decision 0029).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub durable_copies: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
pub(crate) fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl ClusterConfig {
    /// Of `members_count` nodes that are waited for, how many have to have a commit: 0 for all of them,
    /// else fewer than all.
    pub fn copies_of(&self, members_count: usize) -> u32 {
        let fewer = (self.durable_copies as usize) < members_count;
        if fewer { self.durable_copies } else { 0 }
    }
}

impl Default for ClusterConfig {
    fn default() -> ClusterConfig {
        ClusterConfig {
            mode: DurabilityMode::Bounded,
            rpo: Duration::from_secs(3600),
            on_passive_loss: OnPassiveLoss::Stall,
            degrade_after: Duration::from_secs(1),
            on_sole_survivor: OnSoleSurvivor::Open,
            promote_without_lease_wait: false,
            durable_copies: 0,
        }
    }
}
