//! Is the active lost, and who may follow it? A typed answer with a sentence, for the leader's
//! decision and for `status` alike, so that the two cannot disagree.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use understudy_types::{BootInstant, Lsn, NodeId, PromotionId};

use crate::ClusterState;
use crate::node::{HeardReport, PeerReport, REPORT_FRESH, Settled};
use crate::state::{Ineligible, Phase};

/// What the judgement rests on.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// The replicated state.
    pub state: &'a ClusterState,
    /// What the peers said.
    pub peers: &'a BTreeMap<NodeId, HeardReport>,
    /// Now, on the judging node's clock.
    pub now: BootInstant,
    /// The judging node.
    pub me: NodeId,
    /// It hears a majority.
    pub majority: bool,
    /// Its own clock says that the lease is over.
    pub lease_over: bool,
    /// What it would report itself.
    pub own: PeerReport,
    /// What was published when, for saying how things stand while nobody is to be promoted.
    pub settled: &'a Settled,
}

impl Evidence<'_> {
    /// What it says now, if it is heard.
    fn report_of(&self, node: NodeId) -> Option<&PeerReport> {
        if node == self.me {
            return Some(&self.own);
        }
        let heard = self.peers.get(&node);
        heard.filter(|heard| self.now.since(heard.at) < REPORT_FRESH).map(|heard| &heard.report)
    }

    /// Its seal would tell a candidate that has WAL up to `from_lsn` what was acknowledged: it has what it
    /// is known to have had, and nothing is missing before it begins. A candidate that was granted without
    /// that would collect in vain for ever.
    fn can_be_asked(&self, node: NodeId, from_lsn: Lsn, rule: Rule) -> bool {
        self.report_of(node).is_some_and(|report| {
            let known = self.state.known_durable(node);
            let whole = rule == Rule::Outlook || report.durable_lsn.is_some_and(|has| has >= known);
            whole && report.begin_lsn <= from_lsn
        })
    }
}

/// Who would be promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidacy {
    /// Who.
    pub node: NodeId,
    /// Its journal's durable end, as reported.
    pub durable_lsn: Lsn,
}

/// Why things are as they are. A closed set: `kind` is the stable word, `Display` the sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The cluster is not founded yet.
    NotFounded,
    /// Founded; the first active is not up yet.
    Bootstrap,
    /// The active holds the lease; its loss would be answered.
    Ready {
        /// Who would take over.
        candidate: String,
    },
    /// The lease is over; the candidate is being promoted.
    FailingOver {
        /// Who takes over.
        candidate: String,
    },
    /// As ready or failing over, but later: there were too many automatic failovers lately.
    Damped {
        /// Who takes over.
        candidate: String,
        /// Automatic failovers within the window.
        failovers: usize,
        /// How long the next one waits beyond the end of the lease.
        hold: Duration,
        /// What is left of it; `None` while the active holds the lease.
        left: Option<Duration>,
    },
    /// The active is handing over by an operator's order.
    HandingOver {
        /// Who takes over.
        candidate: String,
    },
    /// A promotion is under way.
    Promoting {
        /// Who is being promoted.
        candidate: String,
    },
    /// This node does not hear a majority of the voters.
    NoMajority,
    /// An operator has paused automatic failover.
    Paused,
    /// There is no other data node.
    NoPassive,
    /// A sole survivor was made a new incarnation, and no other data node is back yet.
    SoleSurvivor,
    /// After a recovery: without the active, nobody could be elected.
    NoVotes,
    /// Without the active, those who are heard are no majority of the voters.
    TooFewVoters {
        /// How many of the others are heard.
        heard: usize,
        /// How many votes it takes.
        needed: usize,
    },
    /// Commits waited for some of several nodes only, and too few of those are heard to tell what they
    /// have.
    TooFewCopies {
        /// How many of them are heard, and have what the others may lack.
        heard: usize,
        /// How many have to be.
        needed: usize,
    },
    /// The candidate is not heard.
    CandidateSilent {
        /// Who.
        candidate: String,
    },
    /// The candidate is heard, but no complete standby runs there.
    CandidateNotReady {
        /// Who.
        candidate: String,
    },
    /// The candidate follows another history.
    CandidateElsewhere {
        /// Who.
        candidate: String,
    },
    /// The data rules forbid it.
    NotEligible {
        /// Who.
        candidate: String,
        /// Why.
        why: Ineligible,
    },
}

impl Reason {
    /// The stable word.
    pub fn kind(&self) -> &'static str {
        match self {
            Reason::NotFounded => "not-founded",
            Reason::Bootstrap => "bootstrap",
            Reason::Ready { .. } => "ready",
            Reason::FailingOver { .. } => "failing-over",
            Reason::Damped { .. } => "damped",
            Reason::HandingOver { .. } => "handing-over",
            Reason::Promoting { .. } => "promoting",
            Reason::NoMajority => "no-majority",
            Reason::Paused => "paused",
            Reason::NoPassive => "no-passive",
            Reason::SoleSurvivor => "sole-survivor",
            Reason::NoVotes => "no-votes",
            Reason::TooFewVoters { .. } => "too-few-voters",
            Reason::TooFewCopies { .. } => "too-few-copies",
            Reason::CandidateSilent { .. } => "candidate-silent",
            Reason::CandidateNotReady { .. } => "candidate-not-ready",
            Reason::CandidateElsewhere { .. } => "candidate-elsewhere",
            Reason::NotEligible { why, .. } => match why {
                Ineligible::Marked(_) => "candidate-marked",
                Ineligible::NotInSet => "not-eligible",
                Ineligible::Lifted => "unprotected",
                Ineligible::OverCeiling { .. } => "over-ceiling",
                Ineligible::OverLimit(_) => "over-limit",
                Ineligible::LossNotAccepted { .. } => "loss-not-accepted",
                Ineligible::LostWal => "candidate-behind",
                Ineligible::IsHolder | Ineligible::NotReleased | Ineligible::NotByPolicy => {
                    "lease-running"
                }
            },
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NotFounded => f.write_str("the cluster is waiting to be founded"),
            Reason::Bootstrap => f.write_str("the first active is being prepared"),
            Reason::Ready { candidate } => {
                write!(f, "if the active is lost, {candidate} takes over by itself")
            }
            Reason::FailingOver { candidate } => {
                write!(f, "the active has lost its lease; {candidate} takes over")
            }
            Reason::Damped { candidate, failovers, hold, left: None } => write!(
                f,
                "if the active is lost, {candidate} takes over {} s later than usual: there were \
                 {failovers} automatic failovers lately",
                hold.as_secs()
            ),
            Reason::Damped { candidate, failovers, left: Some(left), .. } => write!(
                f,
                "the active has lost its lease; {candidate} takes over in {} s unless the active \
                 comes back, because there were {failovers} automatic failovers lately; an ordered \
                 failover does not wait",
                left.as_secs() + 1
            ),
            Reason::HandingOver { candidate } => {
                write!(f, "the active is handing over to {candidate}")
            }
            Reason::Promoting { candidate } => write!(f, "{candidate} is being promoted"),
            Reason::NoMajority => f.write_str(
                "this node does not hear a majority of the voters, so nothing can be decided here",
            ),
            Reason::Paused => f.write_str("automatic failover is paused by an operator"),
            Reason::NoPassive => f.write_str("there is no other data node to take over"),
            Reason::SoleSurvivor => f.write_str(
                "the active is the sole survivor and unprotected: bring the other nodes back with \
                 `understudy recover --rejoin` on each of them",
            ),
            Reason::NoVotes => f.write_str(
                "the active has the only vote, until enough other nodes are back that they are a \
                 majority without it: `understudy recover --rejoin` on each of them",
            ),
            Reason::TooFewVoters { heard, needed } => write!(
                f,
                "without the active {heard} of the voters would be left of those who are heard, and it takes \
                 {needed}: start the missing nodes, or mend the line to them"
            ),
            Reason::TooFewCopies { heard, needed } => write!(
                f,
                "{heard} of the nodes that commits waited for can be asked, and {needed} have to be: only \
                 they can say together what was acknowledged"
            ),
            Reason::CandidateSilent { candidate } => write!(f, "{candidate} is not heard"),
            Reason::CandidateNotReady { candidate } => {
                write!(f, "{candidate} is heard, but no complete standby runs there yet")
            }
            Reason::CandidateElsewhere { candidate } => {
                write!(f, "{candidate} does not follow the active's history yet")
            }
            Reason::NotEligible { candidate, why } => {
                write!(f, "{candidate} may not be promoted: {why}")
            }
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Verdict {
    /// Why.
    pub reason: Reason,
    /// A loss of the active now would be answered without a person, or is being answered.
    pub would_fail_over: bool,
}

/// Judges the present situation.
pub fn judge(evidence: &Evidence<'_>) -> Verdict {
    let state = evidence.state;
    let no = |reason| Verdict { reason, would_fail_over: false };
    if state.identity.is_none() {
        return no(Reason::NotFounded);
    }
    if !evidence.majority {
        return no(Reason::NoMajority);
    }
    match &state.phase {
        Phase::Bootstrap => no(Reason::Bootstrap),
        Phase::Promoting(promoting) => Verdict {
            reason: Reason::Promoting { candidate: state.name_of(promoting.to) },
            would_fail_over: true,
        },
        Phase::Running | Phase::Handover(_) => {
            let lost = evidence.lease_over
                || state.holder.as_ref().is_some_and(|holder| holder.released.is_some());
            let choice = choose_by(evidence, if lost { Rule::Promotion } else { Rule::Outlook });
            let outlook = !lost && state.handover().is_none();
            match choice {
                _ if state.pause.is_some() && !state.is_ordered() => no(Reason::Paused),
                Err(Reason::NoPassive) if state.recovery.is_some() => no(Reason::SoleSurvivor),
                Ok(_) if outlook && !state.can_elect_without_holder() => no(Reason::NoVotes),
                Err(reason) => no(reason),
                Ok(_) if outlook && let Some((heard, needed)) = voters_short(evidence) => {
                    no(Reason::TooFewVoters { heard, needed })
                }
                Ok(found) => {
                    let candidate = state.name_of(found.node);
                    let reason = if lost {
                        Reason::FailingOver { candidate }
                    } else if state.handover().is_some() {
                        Reason::HandingOver { candidate }
                    } else {
                        Reason::Ready { candidate }
                    };
                    Verdict { reason, would_fail_over: true }
                }
            }
        }
    }
}

/// How many of the voters other than the holder are heard, and how many it takes to decide that it is lost, if
/// those are too few. Only an outlook: once it is lost, the majority that is heard decides.
fn voters_short(evidence: &Evidence<'_>) -> Option<(usize, usize)> {
    let state = evidence.state;
    let holder = state.holder.as_ref().map(|holder| holder.node);
    let voters = state.voters();
    let needed = voters.len() / 2 + 1;
    let others = voters.iter().filter(|voter| Some(**voter) != holder);
    let heard = others.filter(|voter| evidence.report_of(**voter).is_some()).count();
    (heard < needed).then_some((heard, needed))
}

/// Who would be promoted if the active were lost: the eligible node with the most WAL.
///
/// # Errors
/// Why nobody can be; of several candidates' reasons the first one's.
pub fn choose(evidence: &Evidence<'_>) -> Result<Candidacy, Reason> {
    choose_by(evidence, Rule::Promotion)
}

/// How a candidate's report is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// It has what it says, and no more.
    Promotion,
    /// The active is there: a report that was true when it was made is not behind.
    Outlook,
}

fn choose_by(evidence: &Evidence<'_>, rule: Rule) -> Result<Candidacy, Reason> {
    let state = evidence.state;
    let holder = state.holder.as_ref().map(|holder| holder.node);
    let wanted = state.order.as_ref().map(|order| order.to).or(state.handed_to());
    let promotion = state.last_granted().map(|(_, granted)| granted.promotion);
    let mut best: Option<Candidacy> = None;
    let mut first_reason = None;
    for node in state.data_nodes().filter(|node| Some(*node) != holder) {
        if wanted.is_some_and(|wanted| wanted != node) {
            continue;
        }
        match consider(evidence, node, promotion, rule) {
            Ok(found) if best.is_none_or(|best| found.durable_lsn > best.durable_lsn) => {
                best = Some(found);
            }
            Ok(_) => {}
            Err(reason) => {
                first_reason.get_or_insert(reason);
            }
        }
    }
    best.ok_or_else(|| first_reason.unwrap_or(Reason::NoPassive))
}

fn consider(
    evidence: &Evidence<'_>,
    node: NodeId,
    promotion: Option<PromotionId>,
    rule: Rule,
) -> Result<Candidacy, Reason> {
    let candidate = evidence.state.name_of(node);
    let (report, heard_at) = if node == evidence.me {
        (&evidence.own, evidence.now)
    } else {
        let heard = evidence.peers.get(&node);
        match heard.filter(|heard| evidence.now.since(heard.at) < REPORT_FRESH) {
            Some(heard) => (&heard.report, heard.at),
            None => return Err(Reason::CandidateSilent { candidate }),
        }
    };
    let mut durable_lsn = report.durable_lsn;
    // Without a floor nothing excuses a report: this node has only just begun to listen.
    let floor = evidence.settled.floor(node, heard_at);
    if rule == Rule::Outlook && floor.is_some() && durable_lsn >= floor {
        durable_lsn = durable_lsn.max(evidence.state.published_durable(node));
    }
    if let Err(why) = evidence.state.check_candidate(node, durable_lsn) {
        return Err(Reason::NotEligible { candidate, why });
    }
    let Some(durable_lsn) = report.durable_lsn.filter(|_| report.promotable) else {
        return Err(Reason::CandidateNotReady { candidate });
    };
    if report.promotion != promotion {
        return Err(Reason::CandidateElsewhere { candidate });
    }
    let needed = evidence.state.others_to_seal(node) + 1;
    let waited = evidence.state.durability.waited.iter();
    let asked = |other: &NodeId| evidence.can_be_asked(*other, durable_lsn, rule);
    let heard = waited.filter(|other| **other == node || asked(other)).count();
    if needed > 1 && heard < needed {
        return Err(Reason::TooFewCopies { heard, needed });
    }
    Ok(Candidacy { node, durable_lsn })
}
