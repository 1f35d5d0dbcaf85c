//! The lease, from both sides (I4): the holder's deadline and the challenger's wait.
//!
//! The holder counts from the moment it *sent* a renewal, shortened; the challenger from the moment
//! it *applied* it, lengthened. Only the local clock is used on each side.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_types::{BootInstant, Epoch, SeededBug};

use crate::{ClusterState, Outcome, Timing};

/// Renewals that may be under way at once; more are not sent.
const IN_FLIGHT_MAX: usize = 8;

/// A failed renewal is followed by another one after this.
const FAILED_RETRY: Duration = Duration::from_millis(100);

/// The holder's side. The fields are public because the exhaustive model carries them in its states.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HolderLease {
    /// The epoch that the rest speaks of.
    pub epoch: Epoch,
    /// seq → (sent at, ttl); a renewal counts from the moment *before* it was handed out.
    pub sent: BTreeMap<u64, (BootInstant, Duration)>,
    /// The greatest sequence number handed out in this epoch. A number is never handed out twice: the
    /// late acceptance of its first use would count from the second one's sending.
    pub newest: u64,
    /// The moment from which nothing is released; `None` before the first accepted renewal.
    pub deadline: Option<BootInstant>,
    /// When the last renewal was handed out.
    pub last_sent: Option<BootInstant>,
}

impl HolderLease {
    /// Forgets everything that belongs to another epoch.
    pub fn enter(&mut self, epoch: Epoch) {
        if self.epoch != epoch {
            *self = HolderLease { epoch, ..HolderLease::default() };
        }
    }

    /// The sequence number of a renewal to send now, if one is due. The caller proposes it at once.
    pub fn due(&mut self, now: BootInstant, accepted_seq: u64, timing: &Timing) -> Option<u64> {
        self.sent.retain(|seq, _| *seq > accepted_seq);
        let waited = self.last_sent.is_none_or(|at| now.since(at) >= timing.renew);
        if !waited || self.sent.len() >= IN_FLIGHT_MAX {
            // A renewal whose fate is unknown for a whole ttl can no longer prolong anything.
            self.sent.retain(|_, (at, ttl)| now.since(*at) < *ttl);
            return None;
        }
        let seq = self.newest.max(accepted_seq) + 1;
        self.newest = seq;
        self.sent.insert(seq, (now, timing.ttl));
        self.last_sent = Some(now);
        Some(seq)
    }

    /// The outcome of a renewal of this process: only *Accepted* prolongs the lease.
    pub fn settled(&mut self, epoch: Epoch, seq: u64, outcome: &Outcome, timing: &Timing) {
        if outcome.is_accepted() || SeededBug::CommittedTakenForAccepted.is_on() {
            self.accepted(epoch, seq, timing);
        }
    }

    /// A renewal of this process and epoch was accepted.
    fn accepted(&mut self, epoch: Epoch, seq: u64, timing: &Timing) {
        if epoch != self.epoch {
            return;
        }
        if let Some((at, ttl)) = self.sent.remove(&seq) {
            let deadline = at + timing.holder_span(ttl);
            self.deadline = Some(self.deadline.map_or(deadline, |before| before.max(deadline)));
        }
    }

    /// A renewal did not come through: the next one goes out sooner than usual, but not at once.
    pub(crate) fn failed(&mut self, now: BootInstant, timing: &Timing) {
        self.last_sent = Some((now + FAILED_RETRY) - timing.renew);
    }

    /// The moment from which nothing is released; `None` before the first accepted renewal.
    pub(crate) fn deadline(&self) -> Option<BootInstant> {
        self.deadline
    }

    /// When the next renewal is due.
    pub(crate) fn next_due(&self, timing: &Timing) -> BootInstant {
        self.last_sent.map_or(BootInstant::ZERO, |at| at + timing.renew)
    }
}

/// The challenger's side, kept on every voter by its own volatile clock. The fields are public for the
/// same reason as the holder's.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ChallengerClock {
    /// The epoch, the renewal and whether somebody was active, as they were seen last.
    pub seen: Option<(Epoch, u64, bool)>,
    /// When that was seen first.
    pub seen_at: BootInstant,
    /// When the longest lease that was seen to run is over.
    pub over_at: BootInstant,
}

impl ChallengerClock {
    /// Takes notice of the applied state. Anything that may have prolonged a lease restarts the wait,
    /// with the longest ttl that is still running; so does the first state after an own start.
    pub fn observe(&mut self, now: BootInstant, state: &ClusterState, timing: &Timing) {
        let Some(holder) = &state.holder else { return };
        let key = (state.epoch, holder.seq, state.active().is_some());
        if self.seen.is_none() && SeededBug::NoWaitAfterStart.is_on() {
            self.seen = Some(key);
            self.over_at = now;
        }
        if self.seen != Some(key) {
            self.seen = Some(key);
            self.seen_at = now;
            let from_configuration = SeededBug::TtlFromConfiguration.is_on();
            let ttl = if from_configuration { timing.ttl } else { holder.ttl.max(timing.ttl) };
            self.over_at = self.over_at.max(now + timing.challenger_span(ttl));
        }
    }

    /// The lease of the present epoch is over as far as this node's clock can tell.
    pub fn is_over(&self, now: BootInstant) -> bool {
        self.seen.is_some() && now >= self.over_at
    }

    /// For how long nothing has prolonged it, as far as this node has applied.
    pub(crate) fn quiet_for(&self, now: BootInstant) -> Option<Duration> {
        self.seen.map(|_| now.since(self.seen_at))
    }

    /// When it will be, unless it is renewed.
    pub(crate) fn over_at(&self) -> Option<BootInstant> {
        self.seen.map(|_| self.over_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootInstant {
        BootInstant(ms * 1_000_000)
    }

    #[test]
    fn the_deadline_counts_from_the_sending_not_from_the_answer() {
        let timing = Timing::DEFAULT;
        let mut lease = HolderLease::default();
        let epoch = Epoch { incarnation: 0, number: 1 };
        lease.enter(epoch);
        let seq = lease.due(at(1000), 0, &timing).unwrap();
        lease.accepted(epoch, seq, &timing);
        assert_eq!(lease.deadline(), Some(at(1000) + timing.holder_span(timing.ttl)));
    }

    #[test]
    fn a_late_acceptance_of_an_older_renewal_never_shortens_the_lease() {
        let timing = Timing::DEFAULT;
        let mut lease = HolderLease::default();
        let epoch = Epoch { incarnation: 0, number: 1 };
        lease.enter(epoch);
        let first = lease.due(at(1000), 0, &timing).unwrap();
        let second = lease.due(at(2000), 0, &timing).unwrap();
        lease.accepted(epoch, second, &timing);
        let deadline = lease.deadline();
        lease.accepted(epoch, first, &timing);
        assert_eq!(lease.deadline(), deadline);
    }

    #[test]
    fn a_sequence_number_is_never_handed_out_twice_even_after_a_long_freeze() {
        let timing = Timing::DEFAULT;
        let mut lease = HolderLease::default();
        // As many as may be under way, none of whose outcomes is known; then the process is frozen.
        let mut handed_out = Vec::new();
        for n in 0..IN_FLIGHT_MAX as u64 {
            handed_out.extend(lease.due(at(1000 + 800 * n), 0, &timing));
        }
        assert_eq!(handed_out.len(), IN_FLIGHT_MAX);
        let first = handed_out[0];
        assert_eq!(lease.due(at(60_000), 0, &timing), None);
        let next = lease.due(at(60_001), 0, &timing).unwrap();
        assert!(!handed_out.contains(&next), "{next} was handed out before: {handed_out:?}");
        // The first one was accepted before the freeze, and that is learnt only now.
        lease.settled(Epoch::default(), first, &Outcome::ACCEPTED, &timing);
        assert!(lease.deadline().is_none_or(|deadline| deadline < at(60_001)));
    }

    #[test]
    fn an_acceptance_of_another_epoch_grants_nothing() {
        let timing = Timing::DEFAULT;
        let mut lease = HolderLease::default();
        lease.enter(Epoch { incarnation: 0, number: 2 });
        let seq = lease.due(at(1), 0, &timing).unwrap();
        lease.accepted(Epoch { incarnation: 0, number: 1 }, seq, &timing);
        assert_eq!(lease.deadline(), None);
    }
}
