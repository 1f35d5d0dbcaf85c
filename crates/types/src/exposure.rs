//! The RPO dial's modes, and exposure: how much would be lost if the active vanished now.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Lsn;

/// The RPO dial: when a commit is acknowledged.
///
/// Ordered by strictness, the strictest last, so that `max` is "the stricter of two".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DurabilityMode {
    /// As soon as its WAL is durable locally; the loss is watched, not limited.
    BestEffort,
    /// As soon as its WAL is durable locally, while exposure stays below a ceiling that is enforced.
    Bounded,
    /// When its WAL is durable at every node that is waited for.
    Zero,
}

impl fmt::Display for DurabilityMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DurabilityMode::BestEffort => "best-effort",
            DurabilityMode::Bounded => "bounded",
            DurabilityMode::Zero => "zero",
        })
    }
}

impl FromStr for DurabilityMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "best-effort" => Ok(DurabilityMode::BestEffort),
            "bounded" => Ok(DurabilityMode::Bounded),
            "zero" => Ok(DurabilityMode::Zero),
            _ => Err(format!("{text:?} is not a durability mode: zero, bounded or best-effort")),
        }
    }
}

/// What would be lost if the active vanished at this moment.
///
/// `time` lies between the oldest acknowledged commit that is not durable at the passive and the last
/// acknowledged one, so an idle primary has none, however long ago its passive left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Exposure {
    /// From the oldest acknowledged commit that would be lost to the newest.
    pub time: Duration,
    /// Acknowledged WAL that is not durable at the passive.
    pub lost_wal_bytes: u64,
}

/// Against what exposure was measured, where anybody else is known to hold anything at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survival {
    /// Everything before this is durable at every node that could take over.
    pub lsn: Lsn,
    /// How long ago the oldest acknowledged commit beyond it was released; zero when there is none.
    ///
    /// Unlike the exposure it grows while nothing is released: a commit released now would be lost
    /// together with one of that age, so this is what a loss is bounded by.
    pub oldest_age: Duration,
}

impl Exposure {
    /// Nothing would be lost.
    pub const NONE: Exposure = Exposure { time: Duration::ZERO, lost_wal_bytes: 0 };
}
