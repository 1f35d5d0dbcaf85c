//! What follows from a snapshot, for the forms that show it: HTTP's answers and the command line's.

use serde_json::{Value, json};
use understudy_types::{DurabilityMode, Lsn, Timeline};

use super::{ClusterStatus, LineageStatus};

/// How commits wait for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// Each one is durable there before it is acknowledged.
    Each,
    /// It is one of several of whom some suffice, so that it may lack a commit.
    Some,
    /// They do not.
    No,
}

/// A promotion that left a history behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Promotion<'a> {
    /// The timeline that was left.
    pub left: Timeline,
    /// Where.
    pub fork_lsn: Lsn,
    /// In words.
    pub reason: String,
    /// What it led to.
    pub grant: &'a LineageStatus,
}

impl ClusterStatus {
    /// How commits wait for this node.
    pub fn waited(&self, node: &str) -> Waited {
        let zero = self.durability == DurabilityMode::Zero && !self.durability_lifted;
        if !zero || !self.waited_for.iter().any(|name| name == node) {
            return Waited::No;
        }
        let all = self.durable_copies as usize >= self.waited_for.len();
        if all { Waited::Each } else { Waited::Some }
    }

    /// Every promotion but the first, oldest first.
    pub fn promotions(&self) -> impl Iterator<Item = Promotion<'_>> {
        let grants = self.lineage.iter();
        grants.clone().zip(grants.skip(1)).filter_map(|(before, grant)| {
            let reason = format!("promotion of {} in epoch {}", grant.node, grant.epoch);
            Some(Promotion { left: before.timeline, fork_lsn: grant.fork_lsn?, reason, grant })
        })
    }

    /// What the cluster has agreed on; `None` before it is founded.
    pub fn agreed(&self) -> Option<Value> {
        let dial = self.dial.as_ref()?;
        Some(json!({
            "version": dial.config_version,
            "durability": {
                "mode": dial.mode.to_string(),
                "rpo_seconds": dial.ceiling_seconds,
                "on_passive_loss": dial.on_passive_loss,
                "promote_without_lease_wait": dial.promote_without_lease_wait,
                "durable_copies": self.durable_copies,
            },
        }))
    }
}
