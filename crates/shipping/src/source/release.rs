//! What the gate knows, and the one place in which commits are released.
//!
//! Every piece of news is judged as `wal::gate` judges under the permit in the cell, on the thread that
//! brings it: a receiver's acknowledgement is in PostgreSQL's socket before anybody else is woken. What
//! is judged and written lies under one lock, which is held for one non-blocking write at most. Nothing
//! above what was reported before is ever sent outside `PermitCell::with_open`.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use understudy_types::{BootInstant, Exposure, Lsn, ReceiverPosition, Survival};
use understudy_wal::exposure::ExposureTracker;
use understudy_wal::gate::{GatePositions, GateReason, Release, release};

use super::gate::GateError;
use super::state::{Progress, Shared};
use crate::replication::{StatusSender, TrySend};

/// After a full socket.
const RETRY: Duration = Duration::from_millis(1);

/// Why the gate is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Something may have changed.
    News,
    /// PostgreSQL is to be told whatever has changed, and asked for an answer if `ask`.
    Repeat {
        /// It owes us a sign of life.
        ask: bool,
    },
}

/// What one judgement wrote.
enum Wrote {
    Nothing,
    Sent,
    Retry,
    Failed(GateError),
}

/// What the gate knows.
pub(super) struct Known {
    /// Leads to PostgreSQL, while there is a connection that is good.
    sender: Option<StatusSender>,
    /// Why it is not good any more, until the gate has heard of it.
    failure: Option<GateError>,
    exposure: ExposureTracker,
    flush_lsn: Lsn,
    apply_lsn: Lsn,
    look_again: Option<Instant>,
    reason: Option<GateReason>,
    release_delay: Duration,
}

impl Known {
    pub(super) fn new(assumed_since: BootInstant) -> Known {
        Known {
            sender: None,
            failure: None,
            exposure: ExposureTracker::new(assumed_since),
            flush_lsn: Lsn::ZERO,
            apply_lsn: Lsn::ZERO,
            look_again: None,
            reason: None,
            release_delay: Duration::ZERO,
        }
    }
}

impl Shared {
    /// The gate's connection stands, and its server has flushed up to here.
    pub(super) fn gate_connected(&self, sender: StatusSender, flush_lsn: Lsn) {
        let mut known = self.known();
        known.sender = Some(sender);
        known.failure = None;
        known.flush_lsn = flush_lsn;
    }

    /// Nothing is written to the gate's connection any more once this returns.
    pub(super) fn gate_disconnected(&self) {
        self.known().sender = None;
    }

    /// Why the connection is of no more use, told once.
    pub(super) fn take_gate_failure(&self) -> Option<GateError> {
        self.known().failure.take()
    }

    /// The primary has flushed up to here.
    pub(super) fn flushed(&self, lsn: Lsn) {
        let mut known = self.known();
        known.flush_lsn = known.flush_lsn.max(lsn);
    }

    /// How far the primary has flushed.
    pub(super) fn flush_lsn(&self) -> Lsn {
        self.known().flush_lsn
    }

    /// When the gate has to be judged though nothing else happens.
    pub(super) fn look_again(&self) -> Option<Instant> {
        self.known().look_again
    }

    /// What would be lost now, what survives since when, and how far apart releases are.
    pub(super) fn exposed(
        &self,
        surviving_lsn: Lsn,
        known_surviving_lsn: Option<Lsn>,
        now: BootInstant,
    ) -> (Exposure, Option<Survival>, Duration) {
        let known = self.known();
        let survives = known_surviving_lsn.map(|lsn| known.exposure.survival(lsn, now));
        (known.exposure.exposure(surviving_lsn), survives, known.release_delay)
    }

    /// Tells heartbeats how far everything is.
    pub(super) fn tell_progress(&self) {
        // Read where it is told, so that of two threads none tells what the other has surpassed.
        self.progress.send_if_modified(|told| {
            let released_lsn = self.cell.status().released_upto;
            let progress = Progress { flush_lsn: self.flush_lsn(), released_lsn };
            std::mem::replace(told, progress) != progress
        });
    }

    /// Judges and writes; true if the gate's own thread has something to do about it: there is a moment
    /// to wait for that it does not know, or the connection is broken.
    pub(super) fn judge(&self, why: Why) -> bool {
        let mut known = self.known();
        let receivers = self.receivers();
        let before = known.look_again;
        match self.evaluate(&mut known, &receivers, why) {
            Wrote::Nothing | Wrote::Sent => {}
            Wrote::Retry => known.look_again = Some(Instant::now() + RETRY),
            Wrote::Failed(error) => {
                // Not a byte of what was begun goes out any more, whoever else holds the connection.
                if let Some(sender) = known.sender.take() {
                    sender.hang_up();
                }
                known.failure = Some(error);
            }
        }
        let sooner = match (known.look_again, before) {
            // A deadline that was computed anew differs by what passed between two looks at a clock.
            (Some(now), Some(before)) => now + RETRY < before,
            (now, None) => now.is_some(),
            (None, Some(_)) => false,
        };
        sooner || known.failure.is_some()
    }

    fn evaluate(&self, known: &mut Known, receivers: &[ReceiverPosition], why: Why) -> Wrote {
        if self.gate_dropped.is_cancelled() {
            return Wrote::Nothing;
        }
        let Some(sender) = known.sender.clone() else { return Wrote::Nothing };
        let (repeat, ask) = match why {
            Why::News => (false, false),
            Why::Repeat { ask } => (true, ask),
        };
        let identity = &self.options.identity;
        let applied = applied_lsn(receivers);
        let judged =
            self.cell.with_open(identity.epoch, self.clock.as_ref(), |now, permit, last| {
                if permit.promotion != identity.promotion {
                    return (None, None);
                }
                let positions =
                    GatePositions { flush_lsn: known.flush_lsn, last_report: last, receivers };
                let release = release(now, permit, &positions, &known.exposure);
                let apply_lsn = release.upto.min(applied);
                if release.upto == last && apply_lsn <= known.apply_lsn && !repeat {
                    return (None, Some((release, now, Wrote::Nothing)));
                }
                let wrote = write(&sender, release.upto, apply_lsn, ask);
                let released = matches!(wrote, Wrote::Sent).then_some(release.upto);
                if released.is_some() {
                    known.apply_lsn = apply_lsn;
                    known.exposure.released(release.upto, now);
                }
                (released, Some((release, now, wrote)))
            });
        let Some((release, now, wrote)) = judged.flatten() else {
            known.look_again = None;
            known.reason = None;
            known.release_delay = Duration::ZERO;
            // Shut: nothing above the last report, which may be repeated.
            return if repeat { self.repeat_last(known, &sender, ask) } else { Wrote::Nothing };
        };
        known.remember(&release, now);
        wrote
    }

    fn repeat_last(&self, known: &Known, sender: &StatusSender, ask: bool) -> Wrote {
        let status = self.cell.status();
        let same_epoch = status.epoch == self.options.identity.epoch;
        let last = if same_epoch { status.released_upto } else { Lsn::ZERO };
        write(sender, last, last.min(known.apply_lsn), ask)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // As with the permit's own lock there is nothing half done that could release too much: what was
        // written is remembered in the cell.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn remember(&mut self, release: &Release, now: BootInstant) {
        if self.reason != Some(release.reason) {
            let (upto_lsn, reason) = (release.upto, release.reason);
            tracing::debug!(%upto_lsn, ?reason, "gate judged anew");
            self.reason = Some(release.reason);
        }
        self.release_delay = release.delay;
        // A deadline far away would overflow tokio's clock; the tick comes long before.
        let wait = release.look_again.map(|at| at.since(now).min(Duration::from_secs(60)));
        self.look_again = wait.map(|wait| Instant::now() + wait);
    }
}

/// One non-blocking write of one status update: write = flush. `ask` wants an answer at once.
fn write(sender: &StatusSender, flush_lsn: Lsn, apply_lsn: Lsn, ask: bool) -> Wrote {
    match sender.try_send_status(flush_lsn, flush_lsn, apply_lsn, ask) {
        Ok(TrySend::Sent) => Wrote::Sent,
        Ok(TrySend::WouldBlock) => Wrote::Retry,
        // The rest could go out when the permit is over: the connection ends with half a message,
        // on which the server does not act.
        Ok(TrySend::Partial) => Wrote::Failed(GateError::Broken),
        Err(source) => Wrote::Failed(GateError::Write(source)),
    }
}

/// How far a standby has replayed, for `remote_apply`; nothing while no attached one says so.
fn applied_lsn(receivers: &[ReceiverPosition]) -> Lsn {
    let attached = receivers.iter().filter(|receiver| receiver.attached);
    attached.filter_map(|receiver| receiver.replay_lsn).max().unwrap_or(Lsn::ZERO)
}
