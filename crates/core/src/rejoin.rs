//! The rejoin ladder: how a data directory gets back under the present holder.
//!
//! Follow where that is proven safe, else rewind, else clone. Proven safe means that the end of the
//! node's own WAL lies at or before the point where the cluster's history left it; checkpoints alone
//! do not say that (mistake 12 of docs/safety.md).

use serde::{Deserialize, Serialize};
use understudy_types::{Lineage, Lsn, SeededBug, SystemId, Timeline};

/// What was found in a data directory whose PostgreSQL is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Survey {
    /// Nothing is there.
    Empty,
    /// It cannot be used, and it is not ours to remove.
    Unusable(String),
    /// A clone or rewind did not finish.
    Dirty,
    /// A cluster.
    Cluster {
        /// Its system identifier.
        system_id: SystemId,
        /// The timeline of the end of its WAL.
        timeline: Timeline,
        /// The end of the last complete record of its own WAL.
        end_lsn: Lsn,
        /// The lineage that this node recorded while it held or followed; empty if it never did.
        recorded: Vec<Lineage>,
        /// Neither made here nor come to be the node's own: it is followed where that is proven safe, and
        /// never rewound or copied over.
        #[serde(default)]
        foreign: bool,
    },
}

/// A rung of the ladder, cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rung {
    /// Start as a standby on what is there.
    Follow,
    /// `pg_rewind`.
    Rewind,
    /// A fresh base backup.
    Clone,
}

/// What to do, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Plan {
    /// Climb this rung. `keep_from`: first copy the node's own WAL from here on into `divergent/`.
    Join {
        /// Which rung.
        rung: Rung,
        /// Where diverged WAL begins; `None` when there is none.
        keep_from: Option<Lsn>,
        /// Why this one.
        why: String,
    },
    /// A person has to decide.
    Refuse(String),
}

/// Chooses the rung, no lower than `at_least` (a lower one has failed before).
pub fn plan(survey: &Survey, system_id: SystemId, history: &[Lineage], at_least: Rung) -> Plan {
    match (survey, climb(survey, system_id, history, at_least)) {
        (Survey::Cluster { foreign: true, .. }, Plan::Join { rung, why, .. })
            if rung > Rung::Follow =>
        {
            Plan::Refuse(format!(
                "the data directory was not made by this node, and it cannot be followed as it is \
                 ({why}); it is not overwritten: move it away to have a copy of the active put there"
            ))
        }
        (_, plan) => plan,
    }
}

/// The same, whosever the data directory is.
fn climb(survey: &Survey, system_id: SystemId, history: &[Lineage], at_least: Rung) -> Plan {
    let join = |rung: Rung, keep_from: Option<Lsn>, why: String| {
        // A follower whose bytes turned out to differ keeps all of its WAL: where it parted from the
        // cluster's history is not known.
        let differs = rung == Rung::Follow && at_least == Rung::Rewind;
        let keep_from = keep_from.or(differs.then_some(Lsn::ZERO));
        Plan::Join { rung: rung.max(at_least), keep_from, why }
    };
    match survey {
        Survey::Empty => join(Rung::Clone, None, "the data directory is empty".to_owned()),
        Survey::Dirty => {
            join(Rung::Clone, None, "a clone or rewind did not finish here".to_owned())
        }
        Survey::Unusable(what) => Plan::Refuse(what.clone()),
        Survey::Cluster { system_id: found, .. } if *found != system_id => Plan::Refuse(format!(
            "the data directory belongs to another cluster: its system identifier is {found}, this \
             cluster's is {system_id}; move it away to have it cloned afresh"
        )),
        Survey::Cluster { timeline, end_lsn, recorded, .. } => {
            let own = recorded.iter().rev().find(|entry| entry.timeline == *timeline);
            let position = history.iter().rposition(|entry| match own {
                Some(own) => entry.timeline == own.timeline && entry.promotion == own.promotion,
                // Never held, never followed: the number is all there is, and the first attachment
                // compares the bytes.
                None => recorded.is_empty() && entry.timeline == *timeline,
            });
            match position {
                Some(position) => {
                    let fork = left_at(history, position);
                    judge_end(*timeline, *end_lsn, fork, &join)
                }
                None => {
                    let fork = last_common_fork(recorded, history);
                    let why = format!("timeline {timeline} here is not in the cluster's history");
                    match fork {
                        Some(fork) if number_is_taken(*timeline, recorded, history) => {
                            let why = format!("{why}, which has that number for another one");
                            join(Rung::Clone, Some(fork), why)
                        }
                        Some(fork) => join(Rung::Rewind, Some(fork), why),
                        None => join(Rung::Clone, Some(Lsn::ZERO), why),
                    }
                }
            }
        }
    }
}

fn judge_end(
    timeline: Timeline,
    end_lsn: Lsn,
    fork: Option<Lsn>,
    join: &dyn Fn(Rung, Option<Lsn>, String) -> Plan,
) -> Plan {
    match fork {
        Some(fork) if end_lsn > fork && !SeededBug::FollowByCheckpoint.is_on() => join(
            Rung::Rewind,
            Some(fork),
            format!("its WAL on timeline {timeline} ends at {end_lsn}, after the fork at {fork}"),
        ),
        Some(fork) => join(
            Rung::Follow,
            None,
            format!("its WAL on timeline {timeline} ends at {end_lsn}, before the fork at {fork}"),
        ),
        None => join(Rung::Follow, None, format!("timeline {timeline} is the current one")),
    }
}

/// Whether the cluster's history has a number that a timeline here may bear too, from where the two part
/// up to the last one here. `pg_rewind` knows timelines by number alone: where both sides have the same
/// one it finds nothing to rewind, and what is here would be followed as it is (I13).
fn number_is_taken(last: Timeline, recorded: &[Lineage], history: &[Lineage]) -> bool {
    let Some((_, shared)) = last_shared(recorded, history) else { return true };
    history[shared + 1..].iter().any(|entry| entry.timeline <= last)
}

/// The last link that both have, as an index into each.
fn last_shared(recorded: &[Lineage], history: &[Lineage]) -> Option<(usize, usize)> {
    let shared = |mine: &Lineage| {
        history.iter().position(|h| h.promotion == mine.promotion && h.timeline == mine.timeline)
    };
    recorded.iter().enumerate().rev().find_map(|(i, m)| shared(m).map(|t| (i, t)))
}

/// Where a history leaves the WAL of its link `at`. That need not be where the next link begins: after a
/// promotion whose WAL was given up, by an accepted loss, the one after it may fork further back.
fn left_at(lineage: &[Lineage], at: usize) -> Option<Lsn> {
    lineage[at + 1..].iter().filter_map(|later| later.fork_lsn).min()
}

/// Where the two histories part, if they share anything.
fn last_common_fork(recorded: &[Lineage], history: &[Lineage]) -> Option<Lsn> {
    let (mine, theirs) = last_shared(recorded, history)?;
    match (left_at(recorded, mine), left_at(history, theirs)) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_types::{Epoch, PromotionId};

    const SYSTEM: SystemId = SystemId(7);

    fn link(number: u64, timeline: u32, uuid: u128, fork: Option<u64>) -> Lineage {
        Lineage {
            epoch: Epoch { incarnation: 0, number },
            promotion: PromotionId(uuid::Uuid::from_u128(uuid)),
            timeline: Timeline::new(timeline).unwrap(),
            fork_lsn: fork.map(Lsn),
        }
    }

    fn cluster(timeline: u32, end: u64, recorded: Vec<Lineage>) -> Survey {
        let timeline = Timeline::new(timeline).unwrap();
        Survey::Cluster { system_id: SYSTEM, timeline, end_lsn: Lsn(end), recorded, foreign: false }
    }

    fn rung_of(survey: Survey, history: &[Lineage]) -> Option<(Rung, Option<Lsn>)> {
        match plan(&survey, SYSTEM, history, Rung::Follow) {
            Plan::Join { rung, keep_from, .. } => Some((rung, keep_from)),
            Plan::Refuse(_) => None,
        }
    }

    #[test]
    fn wal_that_ends_after_the_fork_is_rewound_and_kept_from_there() {
        let history = [link(1, 1, 10, None), link(2, 2, 20, Some(100))];
        let survey = cluster(1, 101, vec![link(1, 1, 10, None)]);
        assert_eq!(rung_of(survey, &history), Some((Rung::Rewind, Some(Lsn(100)))));
    }

    #[test]
    fn wal_that_ends_at_the_fork_follows() {
        let history = [link(1, 1, 10, None), link(2, 2, 20, Some(100))];
        let survey = cluster(1, 100, vec![link(1, 1, 10, None)]);
        assert_eq!(rung_of(survey, &history), Some((Rung::Follow, None)));
    }

    #[test]
    fn a_later_promotion_that_forked_further_back_is_what_counts() {
        // The second promotion never left its machine, and an accepted loss promoted a node that had less.
        let history = [link(1, 1, 10, None), link(2, 2, 20, Some(100)), link(3, 3, 30, Some(60))];
        for (end, rung) in
            [(100, Some((Rung::Rewind, Some(Lsn(60))))), (60, Some((Rung::Follow, None)))]
        {
            assert_eq!(rung_of(cluster(1, end, vec![link(1, 1, 10, None)]), &history), rung);
        }
        // The given-up promotion's own node; of what it shares with the others everything from there on is kept.
        let survey = cluster(2, 150, vec![link(1, 1, 10, None), link(2, 2, 20, Some(100))]);
        assert_eq!(rung_of(survey, &history), Some((Rung::Rewind, Some(Lsn(60)))));
        let survey = cluster(2, 150, vec![link(1, 1, 10, None), link(2, 2, 21, Some(100))]);
        assert_eq!(rung_of(survey, &history), Some((Rung::Clone, Some(Lsn(60)))));
    }

    #[test]
    fn an_equal_timeline_number_of_another_promotion_never_follows() {
        let history = [link(1, 1, 10, None), link(2, 2, 20, Some(100))];
        let survey = cluster(2, 90, vec![link(1, 1, 10, None), link(2, 2, 99, Some(80))]);
        assert_eq!(rung_of(survey, &history), Some((Rung::Clone, Some(Lsn(80)))));
    }

    #[test]
    fn a_timeline_of_unknown_origin_is_cloned_where_its_number_may_be_the_cluster_s() {
        let (recorded, history) =
            (vec![link(1, 1, 10, None)], [link(1, 1, 10, None), link(2, 2, 20, Some(100))]);
        // Promoted by hand, once or twice: the number 2 is taken.
        for timeline in [2, 3] {
            let survey = cluster(timeline, 150, recorded.clone());
            assert_eq!(rung_of(survey, &history), Some((Rung::Clone, Some(Lsn(100)))));
        }
        // A grant that was superseded: the cluster's own promotion got a number above it.
        let history = [link(1, 1, 10, None), link(3, 3, 30, Some(100))];
        let survey = cluster(2, 150, vec![link(1, 1, 10, None), link(2, 2, 20, Some(90))]);
        assert_eq!(rung_of(survey, &history), Some((Rung::Rewind, Some(Lsn(90)))));
    }

    #[test]
    fn a_foreign_data_directory_is_refused_and_an_incomplete_one_cloned() {
        let history = [link(1, 1, 10, None)];
        let foreign = Survey::Cluster {
            system_id: SystemId(8),
            timeline: Timeline::FIRST,
            end_lsn: Lsn(1),
            recorded: vec![],
            foreign: false,
        };
        assert_eq!(rung_of(foreign, &history), None);
        assert_eq!(rung_of(Survey::Dirty, &history), Some((Rung::Clone, None)));
        assert_eq!(rung_of(Survey::Empty, &history), Some((Rung::Clone, None)));
    }

    #[test]
    fn a_directory_that_the_node_did_not_make_is_followed_or_left_alone() {
        let history = [link(1, 1, 10, None), link(2, 2, 20, Some(100))];
        let adopted = |timeline, end| {
            let timeline = Timeline::new(timeline).unwrap();
            let (recorded, foreign) = (Vec::new(), true);
            Survey::Cluster { system_id: SYSTEM, timeline, end_lsn: Lsn(end), recorded, foreign }
        };
        assert_eq!(rung_of(adopted(2, 150), &history), Some((Rung::Follow, None)));
        assert_eq!(rung_of(adopted(1, 100), &history), Some((Rung::Follow, None)));
        // Beyond the fork, or promoted by hand: it has writes that nobody else may have.
        assert_eq!(rung_of(adopted(1, 101), &history), None);
        assert_eq!(rung_of(adopted(3, 150), &history), None);
        let after_a_failure = plan(&adopted(2, 150), SYSTEM, &history, Rung::Clone);
        assert!(matches!(after_a_failure, Plan::Refuse(_)), "{after_a_failure:?}");
    }

    #[test]
    fn a_rung_that_failed_is_not_tried_again() {
        let history = [link(1, 1, 10, None)];
        let survey = cluster(1, 5, vec![link(1, 1, 10, None)]);
        let Plan::Join { rung, .. } = plan(&survey, SYSTEM, &history, Rung::Clone) else {
            panic!()
        };
        assert_eq!(rung, Rung::Clone);
    }
}
