//! The way back of an old member: its consensus storage is set aside for an empty one of the new
//! incarnation. Data directory and journal stay: the daemon follows, rewinds or clones, and writes the
//! loss receipt, as after any return.

use understudy_consensus::offline::{self, Offline};
use understudy_core::state::CannotRecover;
use understudy_types::ClusterIncarnation;

use super::ask::{Answer, ask};
use super::statement::Refusal;
use super::{ANSWER_PATIENCE, RecoverError, number_members};
use crate::config::NodeConfig;
use crate::daemon::load_identity;

/// What would be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejoinPlan {
    /// The incarnation that the storage here is of; `None` without a storage.
    pub from: Option<ClusterIncarnation>,
    /// The one to come into.
    pub to: ClusterIncarnation,
    /// Who belongs to it.
    pub heard_from: String,
}

/// Brings this node into the newest incarnation that another member is of; with `dry_run` only says
/// which.
///
/// # Errors
/// When nobody answers who is of a newer one, two have the same number, or the disk says no.
pub async fn rejoin(
    mut config: NodeConfig,
    dry_run: bool,
    progress: &mut dyn FnMut(&str),
) -> Result<RejoinPlan, RecoverError> {
    let identity = load_identity(&config)?;
    let dir = config.data_dir.join("raft");
    let old = Offline::open(&dir)?;
    let from = old.as_ref().map(|old| old.identity.cluster_incarnation);
    let own = from.unwrap_or_default();
    let configured = config.id;
    number_members(&mut config, own)?;
    let answers = ask(&config, &identity.of_incarnation(own), ANSWER_PATIENCE, progress).await;
    let (to, heard_from) = newest(&answers, own)?;
    let plan = RejoinPlan { from, to, heard_from };
    if dry_run {
        return Ok(plan);
    }
    let node = to.number_of(configured).ok_or(CannotRecover::Number(configured))?;
    match old {
        Some(old) => old.begin_empty(to, node)?,
        None => offline::create_empty(&dir, config.cluster, to, node, &config.name)?,
    }
    Ok(plan)
}

fn heard(answer: &Answer) -> Option<(ClusterIncarnation, &Answer)> {
    let described = answer.outcome.as_ref().ok()?;
    Some((described.incarnation, answer))
}

fn newest(
    answers: &[Answer],
    own: ClusterIncarnation,
) -> Result<(ClusterIncarnation, String), Refusal> {
    let newer = answers.iter().filter_map(heard).filter(|(found, _)| found.number > own.number);
    let newest = newer.max_by_key(|(found, _)| found.number);
    let Some((to, first)) = newest else {
        let said: Vec<String> =
            answers.iter().map(|answer| format!("{}: {}", answer.name, answer.words())).collect();
        return Err(Refusal::NothingToRejoin { own: own.to_string(), heard: said.join("; ") });
    };
    let mut others = answers.iter().filter_map(heard);
    let rival = others.find(|(found, _)| found.number == to.number && found.id != to.id);
    if let Some((_, second)) = rival {
        let (first, second) = (first.name.to_string(), second.name.to_string());
        return Err(Refusal::TwoIncarnations { first, second });
    }
    Ok((to, first.name.to_string()))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::ask::Described;
    use super::*;
    use understudy_types::{Epoch, NodeId};

    fn answer(name: &str, incarnation: Option<ClusterIncarnation>) -> Answer {
        let described = |incarnation| Described {
            incarnation,
            can_vote: true,
            majority: true,
            epoch: Epoch::NONE,
            holds_lease: false,
        };
        let outcome = incarnation.map(described).ok_or_else(|| "refused".to_owned());
        Answer { node: NodeId(1), name: name.parse().unwrap(), outcome }
    }

    #[test]
    fn only_a_newer_incarnation_is_rejoined_and_no_choice_is_made_between_two() {
        let founded = ClusterIncarnation::FOUNDED;
        let (one, other) = (founded.next(Uuid::from_u128(1)), founded.next(Uuid::from_u128(2)));
        let of = |answers: &[Answer], own| newest(answers, own);
        let silent = answer("witness", None);
        assert!(matches!(
            of(&[answer("north", Some(founded)), silent.clone()], founded),
            Err(Refusal::NothingToRejoin { .. })
        ));
        let found = of(&[answer("south", Some(one)), silent.clone()], founded);
        assert_eq!(found, Ok((one, "south".to_owned())));
        assert!(of(&[answer("south", Some(one))], one).is_err(), "it is of that one already");
        assert!(matches!(
            of(&[answer("south", Some(one)), answer("north", Some(other))], founded),
            Err(Refusal::TwoIncarnations { .. })
        ));
        assert!(
            of(
                &[
                    answer("south", Some(one.next(Uuid::from_u128(3)))),
                    answer("north", Some(other))
                ],
                founded
            )
            .is_ok()
        );
    }
}
