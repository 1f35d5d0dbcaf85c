//! May this node be made a sole survivor, and what would be lost? Pure: facts in, a statement or a
//! refusal out.
//!
//! What the node knows ends where it last heard the others, so the figures state what the dial allowed
//! since then, not what was published last; where the dial set no bound they say "unknown" (I24).

use std::collections::BTreeSet;
use std::time::Duration;

use understudy_core::state::{LossBound, LossLimit, Phase};
use understudy_core::{ClusterState, OnPassiveLoss};
use understudy_postgres::DataDirectory;
use understudy_types::{
    ClusterIncarnation, DurabilityMode, Epoch, Lsn, NodeId, NodeKind, PromotionId, SystemId,
};

use super::ask::Answer;
use crate::config::NodeConfig;

/// The node's own copy of the data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// Of the data directory; `None` when it holds no whole cluster.
    pub system_id: Option<SystemId>,
    /// Why it holds none.
    pub problem: Option<String>,
    /// The journal's durable end.
    pub durable_lsn: Option<Lsn>,
    /// When the newest commit in the journal was made, by the clock of the machine that wrote it:
    /// microseconds since the Unix epoch. `None` if none is near its end.
    pub newest_commit_unix_us: Option<i64>,
    /// The promotion whose WAL the journal follows.
    pub promotion: Option<PromotionId>,
}

/// What the judgement rests on.
#[derive(Clone, Debug)]
pub struct Facts {
    /// This node's number.
    pub me: NodeId,
    /// What it can be.
    pub kind: NodeKind,
    /// The incarnation it belongs to.
    pub incarnation: ClusterIncarnation,
    /// The state as stored here.
    pub state: ClusterState,
    /// Consensus never began here.
    pub empty: bool,
    /// Its storage is an older copy of what it told the others; the words say more.
    pub older_copy: Option<String>,
    /// Who has a vote.
    pub voters: BTreeSet<NodeId>,
    /// Its data.
    pub copy: Copy,
    /// What the other members said.
    pub answers: Vec<Answer>,
}

/// Why it is not done. Each says what to do instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No storage at all.
    #[error(
        "this node has no consensus storage: it was never a member, or lost its disk; run this on \
         the data node that survived"
    )]
    NoStorage,
    /// It has one that nothing was ever put into.
    #[error(
        "this node's consensus storage is empty: it has no copy to go on with; run this on the \
             data node that survived, or restore from a backup"
    )]
    NotFounded,
    /// It votes, and has no data.
    #[error("this node is a witness or a journal and has no PostgreSQL; run this on a data node")]
    Witness,
    /// It must not be promoted.
    #[error("this node must not be promoted: it is marked {0}; restore from a backup")]
    Marked(String),
    /// Its data directory is not a whole cluster.
    #[error("this node's data directory cannot be used: {0}; restore from a backup")]
    Data(String),
    /// Another database.
    #[error(
        "the data directory has system identifier {found}, but the cluster's is {expected}: it is \
         another database; put the right one back, or restore from a backup"
    )]
    OtherSystem {
        /// Of the data directory.
        found: SystemId,
        /// Of the cluster.
        expected: SystemId,
    },
    /// It was no full copy.
    #[error(
        "this node is no full copy of the last active's data: {0}; run this on the node that is, or \
         restore from a backup"
    )]
    NotACopy(&'static str),
    /// Not the last resort yet.
    #[error(
        "a majority of the voters answers ({who}): nothing has to be recovered; start this node's \
         daemon, and look at `understudy status`"
    )]
    MajorityAnswers {
        /// By name.
        who: String,
    },
    /// It is alone already.
    #[error("this node has the only vote, so it is a majority by itself: start its daemon")]
    AloneAlready,
    /// Somebody may be confirming writes.
    #[error(
        "{name} answers and holds the lease: it confirms writes that would be lost; stop its daemon, \
         or go on with it instead of this node"
    )]
    HolderAnswers {
        /// Who.
        name: String,
    },
    /// It was done elsewhere.
    #[error(
        "{name} is of incarnation {incarnation}: the cluster was recovered there already; bring this \
         node back into it with `understudy recover --rejoin`"
    )]
    RecoveredElsewhere {
        /// Who says so.
        name: String,
        /// Which.
        incarnation: ClusterIncarnation,
    },
    /// The operator accepts less than may be lost.
    #[error("with this node {loss} may be lost, but only {accepts} is accepted: --accept-loss")]
    LossNotAccepted {
        /// What may be lost.
        loss: LossBound,
        /// What was accepted.
        accepts: LossLimit,
    },
    /// `--rejoin` where nothing was recovered.
    #[error(
        "no node answers that belongs to a newer incarnation than this one ({own}): there is nothing \
         to rejoin; {heard}"
    )]
    NothingToRejoin {
        /// Of this node.
        own: String,
        /// Who said what.
        heard: String,
    },
    /// Two recoveries that know nothing of each other.
    #[error(
        "{first} and {second} belong to different incarnations with the same number: two sides were \
         recovered apart; keep one, and run `understudy recover --sole-survivor` on it once more"
    )]
    TwoIncarnations {
        /// One.
        first: String,
        /// The other.
        second: String,
    },
}

/// One member, for the statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberLine {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub site: String,
    /// What it can be.
    pub kind: NodeKind,
    /// It is this node, or what came of asking it.
    pub heard: String,
}

/// What a recovery would do and cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The cluster as it was.
    pub incarnation: ClusterIncarnation,
    /// Its members, this node included.
    pub members: Vec<MemberLine>,
    /// The newest epoch known here.
    pub epoch: Epoch,
    /// Who held it.
    pub holder: Option<String>,
    /// In which phase.
    pub phase: &'static str,
    /// The dial in force.
    pub mode: DurabilityMode,
    /// Nobody was waited for, and that was recorded.
    pub lifted: bool,
    /// This node held the lease last, so it has all that was confirmed under it.
    pub was_active: bool,
    /// Commits waited for this node.
    pub waited_for: bool,
    /// It could have been promoted without a person.
    pub eligible: bool,
    /// Where its journal ends.
    pub durable_lsn: Option<Lsn>,
    /// When the newest commit in it was made, as [`Copy::newest_commit_unix_us`].
    pub newest_commit_unix_us: Option<i64>,
    /// What may be lost.
    pub loss: LossBound,
    /// The same in words.
    pub loss_words: String,
    /// How long a lease that may still run elsewhere is waited for.
    pub lease_wait: Duration,
}

/// Judges the facts.
///
/// # Errors
/// The first reason why not.
pub(super) fn judge(config: &NodeConfig, facts: &Facts) -> Result<Statement, Refusal> {
    let state = &facts.state;
    if facts.kind != NodeKind::Data {
        return Err(Refusal::Witness);
    }
    if facts.empty || state.identity.is_none() {
        return Err(Refusal::NotFounded);
    }
    check_answers(facts)?;
    let was_active = state.last_granted().is_some_and(|(_, last)| last.node == facts.me);
    check_copy(facts, was_active)?;
    let (loss, loss_words) = loss(facts, was_active);
    let holder = state.holder.as_ref().map(|holder| holder.node);
    // Whoever else was granted the epoch may hold a lease without a majority, until it runs out.
    let elsewhere = holder.filter(|holder| *holder != facts.me).is_some();
    let ttl = state.holder.as_ref().map(|h| h.ttl).unwrap_or_default().max(config.timing.ttl);
    let answer_of = |id: NodeId| facts.answers.iter().find(|answer| answer.node == id);
    let members = config.members.iter().map(|member| MemberLine {
        name: member.name.to_string(),
        site: member.site.to_string(),
        kind: member.kind,
        heard: match answer_of(member.id) {
            _ if member.id == facts.me => "this node".to_owned(),
            Some(answer) => answer.words(),
            None => "not asked".to_owned(),
        },
    });
    Ok(Statement {
        incarnation: facts.incarnation,
        members: members.collect(),
        epoch: state.epoch,
        holder: holder.map(|holder| state.name_of(holder)),
        phase: phase_word(&state.phase),
        mode: state.durability.mode,
        lifted: state.durability.lifted,
        was_active,
        waited_for: state.durability.waited.contains(&facts.me),
        eligible: state.durability.eligible.contains(&facts.me),
        durable_lsn: facts.copy.durable_lsn,
        newest_commit_unix_us: facts.copy.newest_commit_unix_us,
        loss,
        loss_words,
        lease_wait: if elsewhere { config.timing.challenger_span(ttl) } else { Duration::ZERO },
    })
}

fn check_answers(facts: &Facts) -> Result<(), Refusal> {
    for answer in &facts.answers {
        let Ok(described) = &answer.outcome else { continue };
        if described.incarnation.number > facts.incarnation.number {
            let name = answer.name.to_string();
            return Err(Refusal::RecoveredElsewhere { name, incarnation: described.incarnation });
        }
        if described.holds_lease && described.incarnation == facts.incarnation {
            return Err(Refusal::HolderAnswers { name: answer.name.to_string() });
        }
    }
    let mine = usize::from(facts.voters.contains(&facts.me));
    if mine == 1 && facts.voters.len() == 1 {
        return Err(Refusal::AloneAlready);
    }
    let voting = facts.answers.iter().filter(|answer| {
        facts.voters.contains(&answer.node)
            && answer.outcome.as_ref().is_ok_and(|described| {
                described.can_vote && described.incarnation == facts.incarnation
            })
    });
    let who: Vec<String> = voting.map(|answer| answer.name.to_string()).collect();
    if (who.len() + mine) * 2 > facts.voters.len() {
        return Err(Refusal::MajorityAnswers { who: who.join(", ") });
    }
    Ok(())
}

fn check_copy(facts: &Facts, was_active: bool) -> Result<(), Refusal> {
    let state = &facts.state;
    if let Some(mark) = state.marks.get(&facts.me) {
        return Err(Refusal::Marked(mark.to_string()));
    }
    let found = match (&facts.copy.problem, facts.copy.system_id) {
        (Some(problem), _) => return Err(Refusal::Data(problem.clone())),
        (None, None) => return Err(Refusal::Data("nothing is known of it".to_owned())),
        (None, Some(found)) => found,
    };
    let expected = state.identity.and_then(|identity| identity.system_id);
    if let Some(expected) = expected.filter(|expected| *expected != found) {
        return Err(Refusal::OtherSystem { found, expected });
    }
    let Some((_, last)) = state.last_granted() else {
        return Err(Refusal::NotACopy("no node was ever active"));
    };
    if was_active {
        return Ok(());
    }
    if facts.copy.durable_lsn.is_none() {
        return Err(Refusal::NotACopy("its journal is empty"));
    }
    if facts.copy.promotion != Some(last.promotion) {
        return Err(Refusal::NotACopy(
            "its journal follows another history than the last active's",
        ));
    }
    Ok(())
}

/// What the dial allowed the last active to confirm without this node.
fn loss(facts: &Facts, was_active: bool) -> (LossBound, String) {
    let state = &facts.state;
    if was_active && facts.older_copy.is_none() {
        let words = "nothing: this node was the last active, and has all that it confirmed";
        return (LossBound::NONE, words.to_owned());
    }
    let durable = facts.copy.durable_lsn.unwrap_or(Lsn::ZERO);
    let known = state.loss_bound_alone(facts.me, durable);
    let eligible = state.durability.eligible.contains(&facts.me) && !state.durability.lifted;
    let stalls = state.config.on_passive_loss == OnPassiveLoss::Stall;
    // What is wanted may be weaker than what is in force, and then may have come in force since.
    let mode = state.durability.mode.min(state.config.mode);
    let unknown = |why: &str| {
        let bytes = known.wal_bytes_min;
        let words = format!("an unknown span of commits, at least {bytes} bytes of WAL: {why}");
        (LossBound { time_max: None, wal_bytes_min: bytes }, words)
    };
    if facts.older_copy.is_some() {
        return unknown("this node was put back on an older copy of what it knew");
    }
    if state.durability.is_quorum() {
        return unknown("commits waited for some of several nodes, and the others cannot be asked");
    }
    match mode {
        _ if !eligible => unknown("commits did not wait for this node"),
        DurabilityMode::Zero if stalls => {
            let words = "nothing that was confirmed: in zero every commit waited for this node";
            (LossBound::NONE, words.to_owned())
        }
        DurabilityMode::Bounded if stalls => {
            let (rpo, bytes) = (state.config.rpo, known.wal_bytes_min);
            let words = format!(
                "up to {rpo:?} of commits, the ceiling; at least {bytes} bytes of WAL are missing"
            );
            (LossBound { time_max: Some(rpo), wal_bytes_min: bytes }, words)
        }
        DurabilityMode::Zero | DurabilityMode::Bounded => unknown(
            "by on_passive_loss = \"degrade\" the active may have gone on without this node, \
             together with the others, after it was last heard",
        ),
        DurabilityMode::BestEffort => unknown("best-effort sets no bound"),
    }
}

fn phase_word(phase: &Phase) -> &'static str {
    match phase {
        Phase::Bootstrap => "bootstrap",
        Phase::Promoting(_) => "promoting",
        Phase::Running => "running",
        Phase::Handover(_) => "handover",
    }
}

/// Why a data directory is none to go on with.
pub(super) fn words_of(directory: &DataDirectory) -> String {
    match directory {
        DataDirectory::Missing => "it is not there".to_owned(),
        DataDirectory::Empty => "it is empty".to_owned(),
        DataDirectory::NotACluster { what } => format!("it is no PostgreSQL cluster: {what}"),
        DataDirectory::WrongVersion { found, wanted } => {
            format!("it is of PostgreSQL {found}, the programs are of {wanted}")
        }
        DataDirectory::Dirty { what } => format!("a copy or rewind did not finish: {what}"),
        DataDirectory::Cluster(_) => "it is whole".to_owned(),
    }
}

#[cfg(test)]
mod tests;
