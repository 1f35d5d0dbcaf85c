//! Timelines, PostgreSQL's history files, and the lineage that tells equal numbers apart.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Epoch, Lsn, PromotionId};

/// PostgreSQL's timeline identifier; the first is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(NonZeroU32);

impl Timeline {
    /// The timeline that `initdb` begins with.
    pub const FIRST: Timeline = Timeline(NonZeroU32::MIN);

    /// The timeline of this number; `None` for 0, which is not a timeline.
    pub fn new(number: u32) -> Option<Timeline> {
        NonZeroU32::new(number).map(Timeline)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The timeline of the next higher number.
    #[must_use]
    pub fn next(self) -> Timeline {
        Timeline(self.0.checked_add(1).expect("a cluster never sees four billion promotions"))
    }

    /// The name of its history file, `0000000N.history`.
    pub fn history_file_name(self) -> String {
        format!("{:08X}.history", self.get())
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not a timeline number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse timeline {0:?}: expected a number from 1")]
pub struct ParseTimelineError(String);

impl FromStr for Timeline {
    type Err = ParseTimelineError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.parse().map_err(|_| ParseTimelineError(text.to_owned()))?;
        Timeline::new(number).ok_or_else(|| ParseTimelineError(text.to_owned()))
    }
}

/// One line of a history file: `timeline` was left at `switch_lsn`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// The first position that is not on it any more.
    pub switch_lsn: Lsn,
    /// Free text, as PostgreSQL wrote it.
    pub reason: String,
}

/// The ancestors of a timeline, oldest first, as in PostgreSQL's `.history` files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineHistory {
    /// The timeline whose history this is.
    pub timeline: Timeline,
    /// Its ancestors, numbers and switch positions never decreasing.
    pub ancestors: Vec<HistoryEntry>,
}

/// A history file that PostgreSQL would not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// A line is not `timeline <TAB> LSN <TAB> reason`.
    #[error("parse history of timeline {timeline}: line {line} is not 'timeline LSN reason'")]
    Line {
        /// Whose history.
        timeline: Timeline,
        /// Line number, from 1.
        line: usize,
    },
    /// Timeline numbers or positions go backwards.
    #[error("parse history of timeline {timeline}: line {line} is not after the one before it")]
    Order {
        /// Whose history.
        timeline: Timeline,
        /// Line number, from 1.
        line: usize,
    },
}

impl TimelineHistory {
    /// The whole content of a history file whose number no promotion used: a comment, which PostgreSQL
    /// skips.
    pub const PASSED_OVER: &str = "# understudy: this timeline number was passed over\n";

    /// The history of a timeline without ancestors.
    pub fn root(timeline: Timeline) -> TimelineHistory {
        TimelineHistory { timeline, ancestors: Vec::new() }
    }

    /// Reads the content of a history file (manual, "Timelines"; `readTimeLineHistory`).
    ///
    /// # Errors
    /// When a line has another shape or the order is impossible.
    pub fn parse(timeline: Timeline, text: &str) -> Result<TimelineHistory, HistoryError> {
        let mut ancestors: Vec<HistoryEntry> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            if line.trim().is_empty() || line.trim_start().starts_with('#') {
                continue;
            }
            let bad = HistoryError::Line { timeline, line: number };
            let mut parts = line.trim_start().splitn(3, [' ', '\t']);
            let ancestor: Timeline =
                parts.next().and_then(|part| part.parse().ok()).ok_or(bad.clone())?;
            let switch_lsn: Lsn =
                parts.next().and_then(|part| part.trim().parse().ok()).ok_or(bad)?;
            let reason = parts.next().unwrap_or_default().trim().to_owned();
            let ordered = ancestor < timeline
                && ancestors.last().is_none_or(|previous| {
                    previous.timeline < ancestor && previous.switch_lsn <= switch_lsn
                });
            if !ordered {
                return Err(HistoryError::Order { timeline, line: number });
            }
            ancestors.push(HistoryEntry { timeline: ancestor, switch_lsn, reason });
        }
        Ok(TimelineHistory { timeline, ancestors })
    }

    /// The content of a history file.
    pub fn format(&self) -> String {
        let line = |e: &HistoryEntry| format!("{}\t{}\t{}\n", e.timeline, e.switch_lsn, e.reason);
        self.ancestors.iter().map(line).collect()
    }

    /// Where `timeline` was left in this history: `None` if it is not part of it,
    /// `Some(Lsn::MAX)` for the timeline itself, which has not ended.
    pub fn end_of(&self, timeline: Timeline) -> Option<Lsn> {
        if timeline == self.timeline {
            return Some(Lsn::MAX);
        }
        self.ancestors.iter().find(|entry| entry.timeline == timeline).map(|e| e.switch_lsn)
    }

    /// Which timeline the byte at `lsn` belongs to in this history.
    pub fn timeline_at(&self, lsn: Lsn) -> Timeline {
        self.ancestors
            .iter()
            .find(|entry| lsn < entry.switch_lsn)
            .map_or(self.timeline, |entry| entry.timeline)
    }

    /// The history of a promotion from this timeline to `next` at `fork_lsn`.
    #[must_use]
    pub fn promoted(&self, next: Timeline, fork_lsn: Lsn, reason: &str) -> TimelineHistory {
        let mut ancestors = self.ancestors.clone();
        let reason = reason.to_owned();
        ancestors.push(HistoryEntry { timeline: self.timeline, switch_lsn: fork_lsn, reason });
        TimelineHistory { timeline: next, ancestors }
    }
}

/// One accepted grant in the cluster's history: who was promoted, on which timeline, forked where.
///
/// The list of these, by epoch, is the only authority about which WAL belongs to the cluster: a
/// timeline number alone does not say it (`PromotionId`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The epoch that was granted.
    pub epoch: Epoch,
    /// The promotion's own identity.
    pub promotion: PromotionId,
    /// The timeline the holder writes on.
    pub timeline: Timeline,
    /// Where it left its parent; `None` for the first, and until it is known.
    pub fork_lsn: Option<Lsn>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(number: u32) -> Timeline {
        Timeline::new(number).unwrap()
    }

    #[test]
    fn a_history_file_of_postgresql_is_read_and_written_back() {
        let text =
            "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore 2000-01-01\n";
        let history = TimelineHistory::parse(tli(3), text).unwrap();
        assert_eq!(history.ancestors.len(), 2);
        assert_eq!(history.end_of(tli(1)), Some(Lsn(0x3000148)));
        assert_eq!(history.timeline_at(Lsn(0x3000147)), tli(1));
        assert_eq!(history.timeline_at(Lsn(0x3000148)), tli(2));
        assert_eq!(history.timeline_at(Lsn(0x5000000)), tli(3));
        assert_eq!(TimelineHistory::parse(tli(3), &history.format()).unwrap(), history);
    }

    #[test]
    fn a_history_that_goes_backwards_is_refused() {
        for text in ["2\t0/1\tx\n1\t0/2\tx\n", "1\t0/2\tx\n2\t0/1\tx\n", "3\t0/1\tx\n", "x\t0/1\n"]
        {
            assert!(TimelineHistory::parse(tli(3), text).is_err(), "{text:?} was accepted");
        }
    }
}
