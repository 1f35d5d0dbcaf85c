//! Flapping damped: after several automatic failovers within a short time the next one waits longer.
//!
//! A failover and a failover back are what two sites are for and are never held up. Beyond that each
//! further one within the window is given a hold that doubles, so that a holder whose line comes and
//! goes has the time to renew, which ends the matter without any promotion. The hold only delays what
//! the lease already allows: it must never shorten a wait, never act on an operator's order or on a
//! lease that was given back, and always ends (docs/decisions/0020).

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{BootInstant, Epoch};

use super::Core;
use crate::ClusterState;
use crate::state::{Phase, PromoteCause};
use crate::verdict::{Reason, Verdict};

/// This many automatic failovers within the window are free: one, and the way back.
const FREE: usize = 2;
/// What is applied this soon after the own start may be an old part of the log, applied again.
const REPLAY: Duration = Duration::from_secs(2);
/// More are not remembered; by then the hold is the longest for long.
const REMEMBERED: usize = 64;

/// How further failovers are held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damping {
    /// Failovers count for this long.
    pub window: Duration,
    /// The first hold; each further failover within the window doubles it. Zero: no damping.
    pub hold: Duration,
    /// No hold is longer.
    pub hold_max: Duration,
}

impl Damping {
    /// Nothing is held up.
    pub const OFF: Damping =
        Damping { window: Duration::ZERO, hold: Duration::ZERO, hold_max: Duration::ZERO };

    /// The third failover within ten minutes waits 15 s longer, the fourth 30 s, none over two minutes.
    pub const DEFAULT: Damping = Damping {
        window: Duration::from_secs(600),
        hold: Duration::from_secs(15),
        hold_max: Duration::from_secs(120),
    };
}

/// When this node applied the automatic failovers that count; volatile.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct FlapWatch {
    damping: Damping,
    began: Option<BootInstant>,
    seen: Epoch,
    moves: VecDeque<BootInstant>,
}

impl FlapWatch {
    pub(super) fn new(damping: Damping) -> FlapWatch {
        FlapWatch { damping, began: None, seen: Epoch::default(), moves: VecDeque::new() }
    }

    /// Takes notice of an applied state.
    pub(super) fn observe(&mut self, now: BootInstant, state: &ClusterState) {
        let began = *self.began.get_or_insert(now);
        if state.epoch <= self.seen {
            return;
        }
        self.seen = state.epoch;
        if !moved_by_itself(state) {
            return;
        }
        // An own start forgets when the failovers before it were. They count as if they were recent,
        // but only as far as they leave the next one free: an outage must not last longer only because
        // a daemon was restarted before.
        let replayed = now.since(began) < REPLAY;
        if replayed && self.moves.len() + 1 >= FREE {
            return;
        }
        if self.moves.len() == REMEMBERED {
            self.moves.pop_front();
        }
        self.moves.push_back(now);
    }

    /// How many failovers count now, and how long the next one waits beyond the end of the lease;
    /// `None` where it does not.
    fn hold(&self, now: BootInstant) -> Option<(usize, Duration)> {
        let Damping { window, hold, hold_max } = self.damping;
        let count = self.moves.iter().filter(|at| now.since(**at) < window).count();
        if count < FREE || hold.is_zero() {
            return None;
        }
        let doublings = u32::try_from(count - FREE).unwrap_or(u32::MAX);
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        Some((count, hold.saturating_mul(factor).min(hold_max)))
    }
}

/// The state's epoch was granted without an operator's word and without the old holder's help. A grant
/// that was skipped (the state came as a snapshot) counts: nothing is known of it.
fn moved_by_itself(state: &ClusterState) -> bool {
    if state.order.is_some() || state.switchover.is_some() {
        return false;
    }
    match &state.phase {
        Phase::Bootstrap => false,
        Phase::Running | Phase::Handover(_) => state.lineage.len() > 1,
        Phase::Promoting(promoting) => match promoting.cause {
            PromoteCause::LeaseOver | PromoteCause::Sealed | PromoteCause::Released => {
                !promoting.resumes
            }
            PromoteCause::Bootstrap | PromoteCause::Supersede => false,
        },
    }
}

impl Core {
    /// Sets how flapping is damped; a core begins without.
    #[must_use]
    pub fn with_damping(mut self, damping: Damping) -> Core {
        self.flaps = FlapWatch::new(damping);
        self
    }

    /// The hold that an automatic failover has to wait for beyond the end of the lease.
    pub(super) fn hold(&self, now: BootInstant) -> Option<(usize, Duration)> {
        let holder = self.state.holder.as_ref()?;
        if self.state.order.is_some() || holder.released.is_some() {
            return None;
        }
        self.flaps.hold(now)
    }

    /// What is left of it, counted from the end of the lease on this node's clock.
    pub(super) fn hold_left(&self, now: BootInstant) -> Option<Duration> {
        let (_, hold) = self.hold(now)?;
        let until = self.challenger.over_at()? + hold;
        (until > now).then(|| until.since(now))
    }

    /// The verdict with the hold in it.
    pub(super) fn damped(&self, now: BootInstant, verdict: Verdict) -> Verdict {
        let (candidate, lost) = match &verdict.reason {
            Reason::Ready { candidate } => (candidate.clone(), false),
            Reason::FailingOver { candidate } => (candidate.clone(), true),
            Reason::NotFounded
            | Reason::Bootstrap
            | Reason::HandingOver { .. }
            | Reason::Promoting { .. }
            | Reason::Damped { .. }
            | Reason::NoMajority
            | Reason::Paused
            | Reason::NoPassive
            | Reason::SoleSurvivor
            | Reason::NoVotes
            | Reason::TooFewVoters { .. }
            | Reason::TooFewCopies { .. }
            | Reason::CandidateSilent { .. }
            | Reason::CandidateNotReady { .. }
            | Reason::CandidateElsewhere { .. }
            | Reason::NotEligible { .. } => return verdict,
        };
        let Some((failovers, hold)) = self.hold(now) else { return verdict };
        let left = self.hold_left(now).filter(|_| lost);
        if lost && left.is_none() {
            return verdict;
        }
        Verdict { reason: Reason::Damped { candidate, failovers, hold, left }, ..verdict }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootInstant {
        BootInstant(seconds * 1_000_000_000)
    }

    fn watch(moves: &[u64]) -> FlapWatch {
        let moves = moves.iter().map(|seconds| at(*seconds)).collect();
        FlapWatch { moves, ..FlapWatch::new(Damping::DEFAULT) }
    }

    #[test]
    fn one_failover_and_the_way_back_are_free_and_then_the_hold_doubles_up_to_its_bound() {
        let holds = |moves: &[u64]| watch(moves).hold(at(100)).map(|(_, hold)| hold.as_secs());
        assert_eq!(holds(&[]), None);
        assert_eq!(holds(&[10]), None);
        assert_eq!(holds(&[10, 20]), Some(15));
        assert_eq!(holds(&[10, 20, 30]), Some(30));
        assert_eq!(holds(&[10, 20, 30, 40, 50, 60, 70, 80]), Some(120));
        assert_eq!(holds(&[1; REMEMBERED]), Some(120));
    }

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        assert_eq!(watch(&[10, 20]).hold(at(611)), None);
    }
}
