//! The candidate: from a grant to the report of its promotion (docs/safety.md, "Promotion").
//!
//! Each step is idempotent and begins anew after a restart, from what the server and the journal say.
//! Until the report is accepted nothing was acknowledged under the new epoch, so the leader may
//! supersede it at any moment; the linearizable read before the promotion keeps the two apart.

use serde::{Deserialize, Serialize};
use understudy_types::{BootInstant, Lsn, NodeId, PromotionId, SealedEnd, SeededBug, Timeline};

use super::{Action, Completion, Core, Grant, Role, Slot, Task, TaskFailure};
use crate::rejoin::{Rung, Survey};
use crate::state::{Command, HolderProof, Mark, Phase, Promoting};

/// What the candidate is doing.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Step {
    /// Asking the majority whether the grant still stands.
    Confirming,
    /// Making the epoch durable and refusing older frames.
    Sealing,
    /// Having enough of those that are waited for seal theirs, and fetching what the own journal lacks.
    Collecting,
    /// Waiting until the standby has replayed the sealed end.
    Replaying(SealedEnd),
    /// The standby is down: looking at what the data directory holds before anything starts on it.
    Surveying(SealedEnd),
    /// Asking once more, right before the step that cannot be taken back.
    ConfirmingAgain(SealedEnd),
    /// The server is being promoted.
    Promoting,
    /// Going on as the holder that it was, or after a promotion that was carried out before a crash:
    /// renewing, then taking the server.
    Resuming,
    /// Telling the cluster.
    Reporting { fork_lsn: Option<Lsn> },
}

/// The candidate's own memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Candidate {
    promotion: PromotionId,
    step: Step,
    failure: Option<TaskFailure>,
}

impl Candidate {
    pub(super) fn begin(promotion: PromotionId) -> Candidate {
        Candidate { promotion, step: Step::Confirming, failure: None }
    }

    pub(super) fn promotion(&self) -> PromotionId {
        self.promotion
    }

    /// The server becomes a primary, or is one, and no lease covers it yet.
    pub(super) fn promotes(&self) -> bool {
        matches!(self.step, Step::Promoting | Step::Reporting { .. })
    }

    /// Going on with a server that is on the granted timeline already.
    pub(super) fn resumes(&self) -> bool {
        matches!(self.step, Step::Resuming)
    }

    pub(super) fn word(&self) -> &'static str {
        match self.step {
            Step::Confirming => "candidate",
            Step::Sealing => "sealing",
            Step::Collecting => "collecting",
            Step::Replaying(_) | Step::Surveying(_) => "replaying",
            Step::ConfirmingAgain(_) | Step::Promoting => "promoting",
            Step::Resuming => "resuming",
            Step::Reporting { .. } => "reporting",
        }
    }
}

impl Core {
    fn candidate(&mut self) -> &mut Candidate {
        match &mut self.role {
            Role::Candidate(candidate) => candidate,
            Role::Idle | Role::Holder(_) | Role::Passive(_) | Role::Journal(_) => {
                unreachable!("only called in the candidate's role")
            }
        }
    }

    fn promoting(&self) -> Option<&Promoting> {
        match &self.state.phase {
            Phase::Promoting(promoting) => Some(promoting),
            Phase::Bootstrap | Phase::Running | Phase::Handover(_) => None,
        }
    }

    pub(super) fn advance_candidate(&mut self, now: BootInstant) {
        if let Some(failure) = self.candidate().failure.take() {
            self.after_failure(now, &failure);
        }
        let Some(promoting) = self.promoting().cloned() else { return };
        let first = promoting.cause == crate::state::PromoteCause::Bootstrap;
        let idle = self.running.is_none() && now >= self.retry_at;
        match self.candidate().step {
            Step::Confirming if idle => self.run(Task::ReadIndex),
            Step::Sealing if idle => self.run(Task::Seal(self.state.epoch)),
            Step::Collecting if idle => self.collect_seals(&promoting),
            Step::Replaying(sealed) => {
                self.watch_replay(&promoting, sealed, idle);
            }
            Step::Surveying(_) if idle => self.run(Task::Survey),
            Step::ConfirmingAgain(_) if idle => self.run(Task::ReadIndex),
            Step::Resuming => self.resume(now, &promoting, first, idle),
            Step::Reporting { fork_lsn } => {
                self.report(now, &promoting, fork_lsn);
            }
            Step::Confirming
            | Step::Sealing
            | Step::Collecting
            | Step::Surveying(_)
            | Step::ConfirmingAgain(_)
            | Step::Promoting => {}
        }
    }

    /// A server that already runs on the granted timeline only has to be reported.
    fn already_promoted(&self, promoting: &Promoting) -> bool {
        self.postgres_facts().is_some_and(|facts| {
            facts.in_recovery == Some(false) && facts.timeline == Some(promoting.timeline)
        })
    }

    fn watch_replay(&mut self, promoting: &Promoting, sealed: SealedEnd, idle: bool) {
        if self.already_promoted(promoting) {
            // Seen only now; it is confirmed once more, and then reported.
            self.candidate().step = Step::Confirming;
            return;
        }
        let facts = self.postgres_facts().cloned();
        if let Some(timeline) = facts.as_ref().and_then(|facts| facts.timeline)
            && !self.stands_on(promoting, timeline)
        {
            return;
        }
        let replayed = facts.as_ref().and_then(|facts| facts.replay_lsn);
        let target_lsn = match SeededBug::WaitForSealInsideRecord.is_on() {
            true => sealed.durable_lsn,
            false => sealed.record_end_lsn,
        };
        if replayed.is_some_and(|lsn| lsn >= target_lsn) {
            self.trouble = None;
            self.candidate().step = Step::ConfirmingAgain(sealed);
            self.run(Task::ReadIndex);
            return;
        }
        self.trouble = Some(format!(
            "waits until the standby has replayed {}; it is at {}",
            sealed.record_end_lsn,
            replayed.map_or("an unknown position".to_owned(), |lsn| lsn.to_string())
        ));
        // A standby that is down is started again on what it has, once that is known: after a crash it
        // may be what the promotion left.
        if facts.is_none() && idle {
            self.candidate().step = Step::Surveying(sealed);
            self.run(Task::Survey);
        }
    }

    /// Whether data on `timeline` can be the standby that is to be promoted; if not, what it is decides.
    fn stands_on(&mut self, promoting: &Promoting, timeline: Timeline) -> bool {
        if self.state.lineage.values().any(|granted| granted.timeline == timeline) {
            return true;
        }
        if timeline == promoting.timeline {
            // Promoted, and stopped before that was reported. As a standby it would be one on no
            // history, and PostgreSQL would pick another number at its next promotion: it goes on as
            // the primary that it is, under a lease (mistake 26).
            self.candidate().step = Step::Resuming;
        } else {
            let words = format!(
                "its data is on timeline {timeline}, which is neither in the cluster's history nor \
                 the granted one, {}",
                promoting.timeline
            );
            self.candidate().failure = Some(TaskFailure { words, suspect: true });
        }
        false
    }

    fn candidate_surveyed(&mut self, promoting: &Promoting, survey: Survey) {
        let Step::Surveying(sealed) = self.candidate().step else { return };
        self.candidate().step = Step::Replaying(sealed);
        let Survey::Cluster { timeline, .. } = survey else {
            let words = "its data directory is not whole".to_owned();
            self.candidate().failure = Some(TaskFailure { words, suspect: true });
            return;
        };
        if self.stands_on(promoting, timeline) {
            self.run(Task::Join {
                rung: Rung::Follow,
                keep_from: None,
                holder: promoting.to,
                history: self.state.history(),
                epoch: self.state.epoch,
            });
        }
    }

    /// Going on on the same timeline: a lease first, then the server, as any restart of a holder.
    fn resume(&mut self, now: BootInstant, promoting: &Promoting, first: bool, idle: bool) {
        let accepted = self.state.holder.as_ref().map_or(0, |holder| holder.seq);
        let timing = self.timing;
        if let Some(seq) = self.lease.due(now, accepted, &timing) {
            let by = HolderProof { epoch: self.state.epoch, node: self.me, process: self.process };
            let published = self
                .state
                .holder
                .as_ref()
                .and_then(|holder| holder.published.clone())
                .unwrap_or_default();
            let ttl = timing.ttl;
            self.propose(now, Slot::Renew, Command::Renew { by, seq, ttl, published });
        }
        if self.lease_runs(now) && idle {
            let Some(grant) = self.candidate_grant(promoting, first) else { return };
            self.exposed_from.get_or_insert(grant.exposed_since);
            self.run(Task::Hold(grant));
        }
    }

    fn candidate_grant(&self, promoting: &Promoting, first: bool) -> Option<Grant> {
        let promotion = match self.state.last_granted() {
            Some((_, last)) if promoting.resumes && !first => last.promotion,
            _ => promoting.promotion,
        };
        Some(Grant {
            epoch: self.state.epoch,
            promotion,
            timeline: promoting.timeline,
            system_id: self.state.identity.as_ref()?.system_id?,
            history: self.state.history(),
            exposed_since: self.exposed_since(),
        })
    }

    fn report(&mut self, now: BootInstant, promoting: &Promoting, fork_lsn: Option<Lsn>) {
        let command = Command::Promoted {
            epoch: self.state.epoch,
            node: self.me,
            promotion: promoting.promotion,
            timeline: promoting.timeline,
            fork_lsn,
            at_unix_us: self.wall_unix_us,
        };
        self.propose(now, Slot::Promoted, command);
    }

    pub(super) fn candidate_completed(&mut self, completion: Completion) {
        let Some(promoting) = self.promoting().cloned() else { return };
        let first = promoting.cause == crate::state::PromoteCause::Bootstrap;
        match completion {
            Completion::ReadDone => self.confirmed(&promoting, first),
            Completion::Sealed(Some(sealed)) => self.sealed(&promoting, sealed),
            Completion::Sealed(None) => {
                self.trouble = Some("its journal is empty: it cannot be promoted".to_owned());
            }
            Completion::PromotedLocally { timeline, fork_lsn } => {
                assert_eq!(timeline, promoting.timeline, "the executor checks the timeline");
                self.candidate().step = Step::Reporting { fork_lsn: Some(fork_lsn) };
            }
            Completion::Held { .. } if promoting.resumes || first => {
                self.candidate().step = Step::Reporting { fork_lsn: None };
            }
            // The fork is read back from the history file by the same task.
            Completion::Held { .. } => self.promote_locally(&promoting, Lsn::ZERO),
            Completion::Surveyed(survey) => self.candidate_surveyed(&promoting, survey),
            Completion::DataReady
            | Completion::Fenced
            | Completion::ClientsLetIn
            | Completion::Joined
            | Completion::Drained
            | Completion::SwitchoverPrepared
            | Completion::ClientsShutOut
            | Completion::StoppedCleanly { .. }
            | Completion::JournalEmptied
            | Completion::StandbyRestarted
            | Completion::Reloaded { .. } => {}
        }
    }

    /// What is acknowledged by k of n may be missing here, and is at one of any n - k + 1 of them.
    fn collect_seals(&mut self, promoting: &Promoting) {
        let waited = self.state.durability.waited.iter();
        let others = waited.copied().filter(|node| *node != self.me);
        let members = others.map(|node| (node, self.state.known_durable(node))).collect();
        let (epoch, needed) = (self.state.epoch, promoting.others_to_seal as usize);
        self.run(Task::CollectSeals { epoch, members, needed });
    }

    /// After a clean handover the seal must reach the end of the old active's WAL: with less, the old
    /// active goes on, which has it.
    fn sealed(&mut self, promoting: &Promoting, sealed: SealedEnd) {
        let own_first = matches!(self.candidate().step, Step::Sealing);
        let others = promoting.others_to_seal > 0 && !SeededBug::PromoteOnOwnSeal.is_on();
        if own_first && others {
            self.candidate().step = Step::Collecting;
            self.collect_seals(promoting);
            return;
        }
        self.trouble = None;
        let clean_end = self.state.switchover.as_ref().and_then(|found| found.clean_end);
        match clean_end.filter(|end| sealed.record_end_lsn < *end) {
            Some(end) => {
                let words = format!(
                    "its journal ends at {} where the old active handed over {end}",
                    sealed.record_end_lsn
                );
                self.candidate().failure = Some(TaskFailure { words, suspect: true });
            }
            None => self.candidate().step = Step::Replaying(sealed),
        }
    }

    fn confirmed(&mut self, promoting: &Promoting, first: bool) {
        let already = self.already_promoted(promoting);
        match self.candidate().step {
            Step::Confirming if promoting.resumes || first => {
                self.candidate().step = Step::Resuming;
            }
            Step::Confirming if already => {
                // The fork is read back from the history file by the same task.
                self.promote_locally(promoting, Lsn::ZERO);
            }
            Step::Confirming => {
                self.actions.push_back(Action::Unfollow);
                self.candidate().step = Step::Sealing;
                let epoch = self.state.epoch;
                self.run(Task::Seal(epoch));
            }
            Step::ConfirmingAgain(sealed) => self.promote_locally(promoting, sealed.record_end_lsn),
            Step::Sealing
            | Step::Collecting
            | Step::Replaying(_)
            | Step::Surveying(_)
            | Step::Promoting
            | Step::Resuming
            | Step::Reporting { .. } => {}
        }
    }

    fn promote_locally(&mut self, promoting: &Promoting, target_lsn: Lsn) {
        let Some(grant) = self.candidate_grant(promoting, false) else { return };
        let peers: Vec<NodeId> = self.state.wal_nodes().filter(|node| *node != self.me).collect();
        self.candidate().step = Step::Promoting;
        self.run(Task::PromoteLocally { grant, target_lsn, peers });
    }

    pub(super) fn candidate_failed(&mut self, failure: &TaskFailure) {
        self.candidate().failure = Some(failure.clone());
    }

    fn after_failure(&mut self, now: BootInstant, failure: &TaskFailure) {
        if failure.suspect {
            let mark = Mark::Suspect(failure.words.clone());
            self.propose(now, Slot::Mark, Command::SetMark { node: self.me, mark });
            return;
        }
        // From the start again: each step finds what it has already done.
        match self.candidate().step {
            Step::Promoting | Step::ConfirmingAgain(_) => self.candidate().step = Step::Confirming,
            Step::Confirming
            | Step::Sealing
            | Step::Collecting
            | Step::Replaying(_)
            | Step::Surveying(_)
            | Step::Resuming
            | Step::Reporting { .. } => {}
        }
    }
}
