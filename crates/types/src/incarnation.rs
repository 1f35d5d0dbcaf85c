//! `ClusterIncarnation`: which life of a cluster speaks, and how its nodes are numbered.
//!
//! A cluster has one until a majority is lost for good and a sole survivor is made a new one by hand.
//! It must not be confused with [`crate::Incarnation`], the identity of one node's storage.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::NodeId;

/// Numbers that one incarnation of a cluster may give to its nodes; the configuration's are below it.
const NUMBERS: u64 = 1000;

/// Which life of a cluster: 0 as founded, one more with each recovery of a sole survivor.
///
/// The uuid tells two recoveries apart that were made on two sides of a cut, neither knowing of the
/// other: they have the same number, and nothing to say to each other.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ClusterIncarnation {
    /// How often the cluster was recovered.
    pub number: u32,
    /// Made with the recovery; nil as founded.
    pub id: Uuid,
}

impl ClusterIncarnation {
    /// The one that every cluster begins with.
    pub const FOUNDED: ClusterIncarnation = ClusterIncarnation { number: 0, id: Uuid::nil() };

    /// The one that a recovery with this identity makes.
    #[must_use]
    pub fn next(self, id: Uuid) -> ClusterIncarnation {
        ClusterIncarnation { number: self.number + 1, id }
    }

    /// Whether the cluster was never recovered.
    pub fn is_founded(self) -> bool {
        self == ClusterIncarnation::FOUNDED
    }

    /// The consensus number in this incarnation of the node that the configuration gives `configured`,
    /// so that no number of an earlier one is used again (I18). `None` for a number of 1000 or more,
    /// which leaves no room for another incarnation's.
    pub fn number_of(self, configured: NodeId) -> Option<NodeId> {
        if self.number == 0 {
            return Some(configured);
        }
        (configured.0 < NUMBERS).then(|| NodeId(u64::from(self.number) * NUMBERS + configured.0))
    }

    /// The configuration's number of the node that is `number` in this incarnation.
    pub fn configured(self, number: NodeId) -> NodeId {
        NodeId(number.0.saturating_sub(u64::from(self.number) * NUMBERS))
    }
}

impl fmt::Display for ClusterIncarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_founded() {
            f.write_str("0")
        } else {
            write!(f, "{}-{}", self.number, self.id.simple())
        }
    }
}

/// The text is not an incarnation of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse incarnation {0:?}: expected 0, or a number and a uuid such as 1-67e5504410b1426f…")]
pub struct ParseIncarnationError(String);

impl FromStr for ClusterIncarnation {
    type Err = ParseIncarnationError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIncarnationError(text.to_owned());
        if text == "0" {
            return Ok(ClusterIncarnation::FOUNDED);
        }
        let (number, id) = text.split_once('-').ok_or_else(error)?;
        let number: u32 = number.parse().map_err(|_| error())?;
        let id = Uuid::parse_str(id).map_err(|_| error())?;
        if number == 0 { Err(error()) } else { Ok(ClusterIncarnation { number, id }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_reads_back_and_nothing_else_is_read() {
        let recovered = ClusterIncarnation::FOUNDED.next(Uuid::from_u128(7));
        for incarnation in [ClusterIncarnation::FOUNDED, recovered, recovered.next(Uuid::max())] {
            assert_eq!(incarnation.to_string().parse(), Ok(incarnation));
        }
        for text in ["", "1", "0-00000000000000000000000000000007", "x-1", "1-xyz"] {
            assert!(text.parse::<ClusterIncarnation>().is_err(), "{text}");
        }
    }

    #[test]
    fn no_number_is_used_in_two_incarnations() {
        let first = ClusterIncarnation::FOUNDED;
        let second = first.next(Uuid::from_u128(7));
        assert_eq!(first.number_of(NodeId(2)), Some(NodeId(2)));
        assert_eq!(second.number_of(NodeId(2)), Some(NodeId(1002)));
        assert_eq!(second.configured(NodeId(1002)), NodeId(2));
        assert_eq!(second.number_of(NodeId(1000)), None);
    }
}
