//! A node that keeps the journal and has no PostgreSQL: it follows whoever holds, and begins anew where
//! what it has is not the holder's.
//!
//! There is nothing to fence and nothing to promote. What it stored stays on its disk, set aside, when it
//! begins anew: it may be all that is left of a history that was given up.

use serde::{Deserialize, Serialize};
use understudy_types::{Admission, BootInstant, Epoch, NodeId, PermitSerial};

use super::{Action, Completion, Core, FollowEnd, Role, Task};

/// Its memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct JournalStage {
    following: Option<(Epoch, NodeId)>,
    /// What it has cannot go on: it is to be set aside.
    anew: bool,
}

impl JournalStage {
    pub(super) fn word(&self) -> &'static str {
        match (self.anew, self.following) {
            (true, _) => "beginning anew",
            (false, Some(_)) => "journal",
            (false, None) => "waiting",
        }
    }
}

impl Core {
    fn journal_stage(&mut self) -> &mut JournalStage {
        match &mut self.role {
            Role::Journal(stage) => stage,
            Role::Idle | Role::Holder(_) | Role::Candidate(_) | Role::Passive(_) => {
                unreachable!("only called in the journal's role")
            }
        }
    }

    pub(super) fn advance_journal(&mut self, now: BootInstant) {
        let idle = self.running.is_none() && now >= self.retry_at;
        // By what was applied before a restart, a journal that followed a newer grant since would look
        // like one of another history (mistake 18).
        if !self.confirmed {
            if idle && self.state.identity.is_some() {
                self.run(Task::ReadIndex);
            }
            return;
        }
        let (Some(holder), Some(current)) = (self.state.active(), self.state.current().cloned())
        else {
            // Whoever is being promoted may have it sealed, and does that itself.
            self.stop_following();
            return;
        };
        let history = self.state.history();
        let held = self.local.journal.and_then(|journal| journal.promotion);
        if held.is_some_and(|held| history.iter().all(|entry| entry.promotion != held)) {
            self.trouble = Some("what is held here is not in the cluster's history".to_owned());
            self.journal_stage().anew = true;
        }
        if self.journal_stage().anew {
            self.stop_following();
            if idle {
                self.run(Task::BeginJournalAnew(self.state.epoch));
            }
            return;
        }
        let epoch = self.state.epoch;
        if !idle || self.journal_stage().following == Some((epoch, holder)) {
            return;
        }
        self.permit_serial = PermitSerial(self.permit_serial.0 + 1);
        let admission = Admission {
            serial: self.permit_serial,
            epoch,
            promotion: current.promotion,
            timeline: current.timeline,
        };
        self.journal_stage().following = Some((epoch, holder));
        self.actions.push_back(Action::Follow { holder, admission, history });
    }

    fn stop_following(&mut self) {
        if self.journal_stage().following.take().is_some() {
            self.actions.push_back(Action::Unfollow);
        }
    }

    pub(super) fn journal_completed(&mut self, completion: &Completion) {
        match completion {
            Completion::ReadDone => self.confirmed = true,
            Completion::JournalEmptied => self.journal_stage().anew = false,
            Completion::DataReady
            | Completion::Fenced
            | Completion::Held { .. }
            | Completion::ClientsLetIn
            | Completion::Sealed(_)
            | Completion::PromotedLocally { .. }
            | Completion::Surveyed(_)
            | Completion::Joined
            | Completion::Drained
            | Completion::SwitchoverPrepared
            | Completion::ClientsShutOut
            | Completion::StoppedCleanly { .. }
            | Completion::StandbyRestarted
            | Completion::Reloaded { .. } => {}
        }
    }

    pub(super) fn journal_follow_ended(&mut self, now: BootInstant, end: FollowEnd) {
        let stage = self.journal_stage();
        stage.following = None;
        let words = match end {
            FollowEnd::Again(words) => {
                self.retry_at = now + super::TASK_RETRY;
                words
            }
            FollowEnd::Diverged(words)
            | FollowEnd::WalGone(words)
            | FollowEnd::JournalFailed(words) => {
                stage.anew = true;
                words
            }
        };
        self.trouble = Some(words);
    }
}
