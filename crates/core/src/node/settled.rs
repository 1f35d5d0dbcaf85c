//! What had been published when a report was made, so that a report is not held to what came later.
//!
//! A receiver's end moves with every commit. A report says where it was up to half a second ago, and a
//! renewal that was made since then names a later place: under load the one is always behind the
//! other, although nothing is missing. This file remembers when each figure came here, no more.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{BootInstant, Lsn, NodeId};

use super::REPORT_FRESH;
use crate::serde_parts::pairs;
use crate::state::Published;

/// Between a journal's end being looked at and its report being heard here, at most: two looks, one
/// interval of reports, the way.
const REPORT_LAG: Duration = Duration::from_millis(500);

/// The published ends of the last few seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// When it came here, and what it said of each receiver; oldest first.
    #[serde(with = "pairs")]
    known: BTreeMap<NodeId, VecDeque<(BootInstant, Lsn)>>,
}

impl Settled {
    pub(super) fn note(&mut self, now: BootInstant, published: &Published) {
        for (node, lsn) in &published.durable {
            let known = self.known.entry(*node).or_default();
            if known.back().is_none_or(|(_, last)| last != lsn) {
                known.push_back((now, *lsn));
            }
            // One that is older than any report that still counts is enough.
            while known.get(1).is_some_and(|(at, _)| *at + REPORT_FRESH + REPORT_LAG < now) {
                known.pop_front();
            }
        }
    }

    /// What a report of `node` that was heard at `heard_at` must reach at least: what was published when
    /// it can have been made. `None` if nothing was.
    pub(crate) fn floor(&self, node: NodeId, heard_at: BootInstant) -> Option<Lsn> {
        let known = self.known.get(&node)?;
        let settled = known.iter().rev().find(|(at, _)| *at + REPORT_LAG <= heard_at);
        settled.map(|(_, lsn)| *lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_held_to_what_was_published_before_it_was_made() {
        let node = NodeId(2);
        let at = |millis| BootInstant::ZERO + Duration::from_millis(millis);
        let mut settled = Settled::default();
        assert_eq!(settled.floor(node, at(0)), None);
        for second in 1..=10_u64 {
            let durable = [(node, Lsn(second * 100))].into();
            settled.note(at(second * 1000), &Published { durable, ..Published::default() });
        }
        assert_eq!(settled.floor(node, at(10_499)), Some(Lsn(900)));
        assert_eq!(settled.floor(node, at(10_500)), Some(Lsn(1000)));
        assert_eq!(settled.floor(node, at(9_000)), Some(Lsn(800)));
        assert!(settled.known[&node].len() <= 4, "{settled:?}");
    }
}
