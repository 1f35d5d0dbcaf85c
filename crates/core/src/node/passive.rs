//! Everybody who does not hold the epoch: fence what runs as a primary, climb the rejoin ladder,
//! follow the holder.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{Admission, BootInstant, Epoch, NodeId, PermitSerial, SeededBug};

use super::orders::STOP_PATIENCE;
use super::{
    Action, Completion, Core, DataView, FollowEnd, PostgresFacts, PostgresView, Role, Task,
    TaskFailure,
};
use crate::rejoin::{self, Plan, Rung, Survey};

/// A standby that answers nothing for this long is started again.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What the passive is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Step {
    /// Not known yet how things stand.
    Assessing,
    /// Ending every process of a server that must not run as it does.
    Fencing,
    /// Looking at the data directory.
    Surveying,
    /// Climbing a rung of the ladder.
    Joining(Rung),
    /// The standby runs; the stream is followed.
    Following,
    /// A person has to decide; the trouble says what.
    Refused,
}

/// The passive's own memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PassiveStage {
    step: Step,
    /// The lowest rung that may still be tried.
    at_least: Rung,
    following: Option<(Epoch, NodeId)>,
}

impl PassiveStage {
    pub(super) fn begin() -> PassiveStage {
        PassiveStage { step: Step::Assessing, at_least: Rung::Follow, following: None }
    }

    /// What runs here is a standby, or nothing does and that was proven.
    pub(super) fn is_fenced(&self) -> bool {
        match self.step {
            Step::Assessing | Step::Fencing => false,
            Step::Surveying | Step::Joining(_) | Step::Following | Step::Refused => true,
        }
    }

    /// The standby runs and is kept running.
    pub(super) fn is_following(&self) -> bool {
        matches!(self.step, Step::Following)
    }

    /// A person has to decide.
    pub(super) fn has_refused(&self) -> bool {
        matches!(self.step, Step::Refused)
    }

    pub(super) fn word(&self) -> &'static str {
        match self.step {
            Step::Assessing => "assessing",
            Step::Fencing => "fencing",
            Step::Surveying => "surveying",
            Step::Joining(Rung::Follow) => "joining: follow",
            Step::Joining(Rung::Rewind) => "joining: rewind",
            Step::Joining(Rung::Clone) => "joining: clone",
            Step::Following => "passive",
            Step::Refused => "refused",
        }
    }
}

impl Core {
    fn passive(&mut self) -> &mut PassiveStage {
        match &mut self.role {
            Role::Passive(stage) => stage,
            Role::Idle | Role::Holder(_) | Role::Candidate(_) | Role::Journal(_) => {
                unreachable!("only called in the passive's role")
            }
        }
    }

    /// A standby runs here, on complete data, and its journal follows the present lineage.
    pub(super) fn promotable(&self, stage: &PassiveStage) -> bool {
        let standby = self
            .postgres_facts()
            .is_some_and(|facts| facts.in_recovery == Some(true) && !facts.short_of_parameters);
        matches!(stage.step, Step::Following) && standby && self.local.journal.is_some()
    }

    pub(super) fn advance_passive(&mut self, now: BootInstant) {
        let idle = self.running.is_none() && now >= self.retry_at;
        match self.passive().step {
            Step::Assessing => self.assess(idle),
            Step::Fencing if idle => self.run(Task::Fence),
            Step::Surveying if idle => self.run(Task::Survey),
            Step::Joining(_) if idle => {
                // The holder may have changed while a rung was being climbed.
                self.passive().step = Step::Surveying;
                self.run(Task::Survey);
            }
            Step::Following => self.keep_following(idle),
            Step::Refused => self.reassess_refusal(),
            Step::Fencing | Step::Surveying | Step::Joining(_) => {}
        }
    }

    fn assess(&mut self, idle: bool) {
        if !idle || self.local.data == DataView::Unknown {
            return;
        }
        // What was applied before a restart may be long out of date. By it a promotion that was
        // granted here since would look like a divergence, and be fenced and cloned over.
        if !self.confirmed && !SeededBug::JudgeByOldState.is_on() {
            self.run(Task::ReadIndex);
            return;
        }
        match &self.local.postgres {
            PostgresView::Unknown => {}
            PostgresView::Running(facts) => match facts.in_recovery {
                // Written to, or about to be, by nobody who may: end it at once.
                Some(false) => self.fence_passive(),
                Some(true) if self.journal_is_current() && self.is_on_history(facts) => {
                    self.passive().step = Step::Following;
                }
                Some(true) => self.fence_passive(),
                // A stock standby that was adopted: it has no role for us, and its data is followed in
                // place once it is stopped.
                None if facts.not_ours => self.fence_passive(),
                None if facts.silent_for >= SILENCE_MAX => self.fence_passive(),
                None => {}
            },
            // Also with nothing running: the proof that nothing is left costs little, and what it
            // leaves behind (standby.signal) is what the next start needs.
            PostgresView::Stopped => self.fence_passive(),
        }
    }

    /// The data is made afresh, whatever it is; nothing below that rung is tried.
    pub(super) fn reclone(&mut self) {
        self.passive().at_least = Rung::Clone;
        self.fence_passive();
    }

    fn fence_passive(&mut self) {
        self.unfollow();
        self.passive().step = Step::Fencing;
        self.run(Task::Fence);
    }

    /// The timeline that the server replays belongs to the cluster. After a promotion that was never
    /// reported it does not, although journal and lineage still say what they said before: such a
    /// server, come up in recovery again, would pass for a passive by its positions alone.
    fn is_on_history(&self, facts: &PostgresFacts) -> bool {
        let known = |timeline| self.state.lineage.values().any(|l| l.timeline == timeline);
        facts.timeline.is_none_or(known)
    }

    /// The journal follows the WAL of the present promotion, so what runs on it may go on.
    fn journal_is_current(&self) -> bool {
        let current = self.state.last_granted().map(|(_, granted)| granted.promotion);
        current.is_some() && self.local.journal.and_then(|journal| journal.promotion) == current
    }

    fn keep_following(&mut self, idle: bool) {
        // Whoever is active, or nobody: before it is started with more, it cannot be promoted.
        let short = self.postgres_facts().is_some_and(|facts| facts.short_of_parameters);
        if !self.state.is_held() {
            self.unfollow();
            if idle && short {
                self.restart_for_parameters();
            }
            return;
        }
        let Some(holder) = self.state.active() else { return };
        let restarting = self
            .running
            .as_ref()
            .is_some_and(|running| matches!(running.task, Task::RestartStandby { .. }));
        match &self.local.postgres {
            // Its end is meant, and the task answers for it.
            _ if restarting => {}
            PostgresView::Running(facts) if facts.in_recovery == Some(false) => {
                self.fence_passive();
                return;
            }
            // It could not be promoted: that goes through its postmaster.
            PostgresView::Running(facts) if facts.door_silent_for >= SILENCE_MAX => {
                self.trouble = Some(format!(
                    "the standby has let no new session in for {:?}: its postmaster is frozen",
                    facts.door_silent_for
                ));
                self.fence_passive();
                return;
            }
            PostgresView::Running(facts) if !self.is_on_history(facts) => {
                self.trouble = Some("the standby replays a timeline of its own".to_owned());
                self.fence_passive();
                return;
            }
            PostgresView::Running(facts) if facts.silent_for >= SILENCE_MAX => {
                self.trouble =
                    Some(format!("the standby has not answered for {:?}", facts.silent_for));
                self.fence_passive();
                return;
            }
            PostgresView::Stopped if idle => {
                self.trouble = Some("the standby is not running".to_owned());
                self.fence_passive();
                return;
            }
            PostgresView::Running(_) | PostgresView::Stopped | PostgresView::Unknown => {}
        }
        if !self.journal_is_current() {
            self.fence_passive();
            return;
        }
        if !idle {
            return;
        }
        let now = (self.state.epoch, holder);
        let following = self.passive().following == Some(now);
        match (following, short) {
            (false, _) => self.follow(holder),
            (true, true) => self.restart_for_parameters(),
            (true, false) => {}
        }
    }

    /// Its journal goes on.
    fn restart_for_parameters(&mut self) {
        self.trouble = Some("the standby needs what its primary has of a parameter".to_owned());
        self.run(Task::RestartStandby { within: STOP_PATIENCE });
    }

    fn follow(&mut self, holder: NodeId) {
        let epoch = self.state.epoch;
        let Some(current) = self.state.current().cloned() else { return };
        self.permit_serial = PermitSerial(self.permit_serial.0 + 1);
        let admission = Admission {
            serial: self.permit_serial,
            epoch,
            promotion: current.promotion,
            timeline: current.timeline,
        };
        let history = self.state.history();
        self.passive().following = Some((epoch, holder));
        self.actions.push_back(Action::Follow { holder, admission, history });
    }

    fn unfollow(&mut self) {
        if self.passive().following.take().is_some() {
            self.actions.push_back(Action::Unfollow);
        }
    }

    /// A refusal stands until the data directory is another one.
    fn reassess_refusal(&mut self) {
        if self.local.data == DataView::Empty {
            self.trouble = None;
            self.passive().step = Step::Assessing;
        }
    }

    pub(super) fn passive_completed(&mut self, now: BootInstant, completion: Completion) {
        match completion {
            Completion::Fenced => {
                self.passive().step = Step::Surveying;
                self.run(Task::Survey);
            }
            Completion::Surveyed(survey) => self.surveyed(now, &survey),
            Completion::Joined => {
                let stage = self.passive();
                stage.step = Step::Following;
                stage.at_least = Rung::Follow;
                stage.following = None;
            }
            Completion::ReadDone => self.confirmed = true,
            Completion::DataReady
            | Completion::Held { .. }
            | Completion::ClientsLetIn
            | Completion::Sealed(_)
            | Completion::PromotedLocally { .. }
            | Completion::Drained
            | Completion::SwitchoverPrepared
            | Completion::ClientsShutOut
            | Completion::StoppedCleanly { .. }
            | Completion::JournalEmptied
            | Completion::StandbyRestarted
            | Completion::Reloaded { .. } => {}
        }
    }

    fn surveyed(&mut self, now: BootInstant, survey: &Survey) {
        let system_id = self.state.identity.as_ref().and_then(|identity| identity.system_id);
        let (Some(holder), Some(system_id)) = (self.state.active(), system_id) else {
            // Nobody to join yet; look again a little later.
            self.retry_at = now + super::TASK_RETRY;
            return;
        };
        let history = self.state.history();
        let at_least = self.passive().at_least;
        match rejoin::plan(survey, system_id, &history, at_least) {
            Plan::Join { rung, keep_from, why } => {
                self.trouble = Some(format!("{}: {why}", rung.word()));
                self.passive().step = Step::Joining(rung);
                let epoch = self.state.epoch;
                self.run(Task::Join { rung, keep_from, holder, history, epoch });
            }
            Plan::Refuse(why) => {
                self.trouble = Some(why);
                self.passive().step = Step::Refused;
            }
        }
    }

    pub(super) fn passive_failed(&mut self, task: &Task, failure: &TaskFailure) {
        if matches!(task, Task::RestartStandby { .. }) {
            self.passive().step = Step::Fencing;
        }
        let Task::Join { rung, .. } = task else { return };
        // Only what a rung itself could not do leads to the next one, which costs more and destroys
        // more; a holder that cannot be reached does not.
        if failure.suspect {
            let next = rung.next();
            self.passive().at_least = next;
        }
        self.passive().step = Step::Fencing;
    }

    pub(super) fn follow_ended(&mut self, now: BootInstant, end: FollowEnd) {
        if matches!(self.role, Role::Journal(_)) {
            return self.journal_follow_ended(now, end);
        }
        let Role::Passive(stage) = &mut self.role else { return };
        stage.following = None;
        let (words, at_least) = match end {
            FollowEnd::Again(words) => {
                self.trouble = Some(words);
                self.retry_at = now + super::TASK_RETRY;
                return;
            }
            FollowEnd::Diverged(words) => (words, Rung::Rewind),
            FollowEnd::WalGone(words) => (words, Rung::Clone),
            FollowEnd::JournalFailed(words) => (words, Rung::Follow),
        };
        stage.at_least = stage.at_least.max(at_least);
        stage.step = Step::Fencing;
        self.trouble = Some(words);
    }
}

impl Rung {
    /// The next higher rung.
    fn next(self) -> Rung {
        match self {
            Rung::Follow => Rung::Rewind,
            Rung::Rewind | Rung::Clone => Rung::Clone,
        }
    }

    /// The verb.
    pub fn word(self) -> &'static str {
        match self {
            Rung::Follow => "follow",
            Rung::Rewind => "rewind",
            Rung::Clone => "clone",
        }
    }
}
