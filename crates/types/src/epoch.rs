//! `Epoch`: the fencing token, and `ProcessStart`: which life of a node speaks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Counts the changes of the active node; compared lexicographically.
///
/// `incarnation` grows only when a sole survivor is made a new cluster by hand, `number` by one with
/// every accepted promotion. Whoever knows a newer epoch refuses an older one (invariant I1).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch {
    /// Which incarnation of the cluster; 0 until a sole survivor is recovered by hand.
    pub incarnation: u32,
    /// Which promotion within the incarnation; 0 before the first one.
    pub number: u64,
}

impl Epoch {
    /// Before anybody was ever granted anything.
    pub const NONE: Epoch = Epoch { incarnation: 0, number: 0 };

    /// The epoch of the next promotion.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch { incarnation: self.incarnation, number: self.number + 1 }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.incarnation == 0 {
            write!(f, "{}", self.number)
        } else {
            write!(f, "{}.{}", self.incarnation, self.number)
        }
    }
}

/// The text is not an epoch such as `7` or `1.7`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse epoch {0:?}: expected a number such as 7, or incarnation and number such as 1.7")]
pub struct ParseEpochError(String);

impl FromStr for Epoch {
    type Err = ParseEpochError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |_| ParseEpochError(text.to_owned());
        let (incarnation, number) = text.split_once('.').unwrap_or(("0", text));
        Ok(Epoch {
            incarnation: incarnation.parse().map_err(error)?,
            number: number.parse().map_err(error)?,
        })
    }
}

/// Which start of a node's daemon a command comes from; grows with every start of that node.
///
/// It is the node's own durable counter. A command that outlives the process that sent it carries an
/// older start than the state knows and is rejected (mistake 15 of the protocol's list).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ProcessStart(pub u64);

impl fmt::Display for ProcessStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
