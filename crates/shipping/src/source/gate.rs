//! The gate's own connection: this node as PostgreSQL's synchronous standby.
//!
//! It learns how far WAL is flushed and reports back how far commits may be acknowledged, as
//! `wal::gate` judges under the permit in the cell. It runs on a thread of its own, so that neither bulk
//! transfer nor the core can stand before it. The connection has no slot (releasing commits must not
//! move what is retained) and asks for nothing but the newest WAL. Nothing above what was reported
//! before is ever sent outside `PermitCell::with_open`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use understudy_types::{Lsn, ReceiverPosition, SourcePositions};
use understudy_wal::exposure::ExposureTracker;
use understudy_wal::gate::{
    GatePositions, GateReason, known_surviving_lsn, release, surviving_lsn,
};

use super::state::{Progress, Shared};
use crate::replication::{
    ReplicationClient, ReplicationError, ReplicationEvent, Started, StatusSender, TrySend,
    WalStream,
};

/// Positions are published, and the last report is repeated, this often.
///
/// The repetition matters: PostgreSQL ignores a report that reaches a walsender which has not caught up.
const TICK: Duration = Duration::from_millis(50);

/// Between attempts to connect.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(200);

/// After a full socket.
const RETRY: Duration = Duration::from_millis(1);

/// Why the gate has no connection (any more).
#[derive(Debug, thiserror::Error)]
enum GateError {
    #[error("hold the gate's connection")]
    Replication(#[from] ReplicationError),
    #[error("verify the gate's server: it has {found}, expected {expected}")]
    WrongServer { found: String, expected: String },
    #[error("release commits: the status update did not fit into the socket")]
    Broken,
    #[error("release commits: writing failed")]
    Write(#[source] std::io::Error),
}

/// A walsender that has said nothing for so long is asked to, and again as often.
const ASK_AFTER: Duration = Duration::from_secs(1);
/// A gap of this between two ticks is our own: what was not listened to was not silent.
const OWN_STALL: Duration = Duration::from_millis(500);

/// Whether the walsender answers. Only the time in which this thread listened counts.
#[derive(Debug, Default)]
struct Hearing {
    /// Unheard of since the last message, in time that was listened to.
    silent_for: Duration,
    /// The silence at which it was asked last; `None` while it owes no answer.
    asked_at: Option<Duration>,
    last_tick: Option<Instant>,
}

impl Hearing {
    fn heard(&mut self) {
        self.silent_for = Duration::ZERO;
        self.asked_at = None;
    }

    /// Counts the time since the last tick.
    fn tick(&mut self, now: Instant) {
        let since = self.last_tick.replace(now).map_or(Duration::ZERO, |last| now - last);
        if since < OWN_STALL {
            self.silent_for += since;
        }
    }

    /// Whether the next status update should ask for an answer.
    fn wants_answer(&self) -> bool {
        self.silent_for >= self.asked_at.unwrap_or_default() + ASK_AFTER
    }

    fn asked(&mut self) {
        self.asked_at = Some(self.silent_for);
    }

    /// How long an answer is owed.
    fn overdue(&self) -> Duration {
        if self.asked_at.is_some() { self.silent_for } else { Duration::ZERO }
    }
}

/// What one evaluation wrote.
enum Wrote {
    Nothing,
    Sent,
    Retry,
    Failed(GateError),
}

pub(super) struct Gate {
    shared: Arc<Shared>,
    exposure: ExposureTracker,
    flush_lsn: Lsn,
    apply_lsn: Lsn,
    look_again: Option<Instant>,
    published: Option<Instant>,
    reason: Option<GateReason>,
    release_delay: Duration,
    hearing: Hearing,
}

impl Gate {
    pub(super) fn new(shared: Arc<Shared>) -> Gate {
        Gate {
            exposure: ExposureTracker::new(shared.options.assumed_since),
            flush_lsn: Lsn::ZERO,
            apply_lsn: Lsn::ZERO,
            look_again: None,
            published: None,
            reason: None,
            release_delay: Duration::ZERO,
            hearing: Hearing::default(),
            shared,
        }
    }

    /// Runs until the source stops.
    pub(super) async fn run(mut self) {
        let dropped = self.shared.gate_dropped.clone();
        let mut backoff = BACKOFF_MIN;
        while !dropped.is_cancelled() {
            let opened = tokio::select! {
                () = dropped.cancelled() => break,
                opened = self.connect() => opened,
            };
            let error = match opened {
                Ok((mut stream, sender)) => {
                    backoff = BACKOFF_MIN;
                    let pid = stream.backend_pid();
                    tracing::info!(pid, flush_lsn = %self.flush_lsn, "gate connected");
                    self.shared.set_gate_backend_pid(Some(pid));
                    let ended = self.serve(&mut stream, &sender).await;
                    drop((stream, sender));
                    self.shared.set_gate_backend_pid(None);
                    match ended {
                        Ok(()) => break,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "gate has no connection");
            let until = Instant::now() + backoff;
            backoff = (backoff * 2).min(BACKOFF_MAX);
            while Instant::now() < until && !dropped.is_cancelled() {
                self.publish();
                tokio::select! {
                    () = dropped.cancelled() => {}
                    () = sleep_until(until) => {}
                    () = sleep(TICK) => {}
                }
            }
        }
        self.shared.gate_gone.cancel();
        // Receivers may still be attached: a last missing tail is shipped after the gate is gone.
        while !self.shared.stopping.is_cancelled() {
            self.publish();
            tokio::select! {
                () = self.shared.stopping.cancelled() => {}
                () = self.shared.wake_gate.notified() => {}
                () = sleep(TICK) => {}
            }
        }
        self.publish();
    }

    async fn connect(&mut self) -> Result<(WalStream, StatusSender), GateError> {
        let options = &self.shared.options;
        let connect = options.connect_options(&options.gate_name);
        let mut client = ReplicationClient::connect(&connect).await?;
        let server = client.identify_system().await?;
        let expected = (options.identity.system_id, options.identity.history.timeline);
        if (server.system_id, server.timeline) != expected {
            let say = |(system, timeline)| format!("system {system}, timeline {timeline}");
            return Err(GateError::WrongServer {
                found: say((server.system_id, server.timeline)),
                expected: say(expected),
            });
        }
        self.flush_lsn = server.flush_lsn;
        match client.start_replication(None, server.flush_lsn, server.timeline).await? {
            Started::Streaming(stream, sender) => Ok((stream, sender)),
            Started::TimelineEnded { next, .. } => Err(GateError::WrongServer {
                found: format!("timeline {} as the next", next.0),
                expected: format!("timeline {} as the newest", expected.1),
            }),
        }
    }

    /// Evaluates the gate at every edge; ends well only when the gate is dropped.
    async fn serve(
        &mut self,
        stream: &mut WalStream,
        sender: &StatusSender,
    ) -> Result<(), GateError> {
        let shared = Arc::clone(&self.shared);
        let permit_changed = shared.cell.changed();
        self.hearing = Hearing::default();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let look_again = self.look_again.unwrap_or_else(|| Instant::now() + TICK * 2);
            let mut repeat = false;
            tokio::select! {
                () = shared.gate_dropped.cancelled() => return Ok(()),
                event = stream.recv() => {
                    self.hearing.heard();
                    repeat = self.learn(event?)?;
                }
                () = shared.wake_gate.notified() => {}
                () = permit_changed.notified() => {}
                () = sleep_until(look_again) => {}
                _ = tick.tick() => {
                    self.hearing.tick(Instant::now());
                    shared.set_gate_silent_for(self.hearing.overdue());
                    repeat = true;
                }
            }
            if shared.gate_dropped.is_cancelled() {
                return Ok(());
            }
            match self.evaluate(sender, repeat) {
                Wrote::Nothing | Wrote::Sent => {}
                Wrote::Retry => self.look_again = Some(Instant::now() + RETRY),
                Wrote::Failed(error) => return Err(error),
            }
            self.publish();
        }
    }

    /// Takes an event; says whether the server wants an answer whatever happens.
    fn learn(&mut self, event: ReplicationEvent) -> Result<bool, GateError> {
        match event {
            ReplicationEvent::WalData { start_lsn, server_end_lsn, data } => {
                // The walsender sends only what is flushed, so the end of the bytes is a flush position.
                let end_lsn = Lsn(start_lsn.0 + data.len() as u64).max(server_end_lsn);
                self.flush_lsn = self.flush_lsn.max(end_lsn);
                Ok(false)
            }
            ReplicationEvent::Keepalive { server_end_lsn, reply_requested } => {
                self.flush_lsn = self.flush_lsn.max(server_end_lsn);
                Ok(reply_requested)
            }
            ReplicationEvent::TimelineEnd { .. } => Err(GateError::WrongServer {
                found: "the end of its timeline".to_owned(),
                expected: "a primary".to_owned(),
            }),
        }
    }

    /// Judges and writes, in one step under the permit; repeats the last report if asked to.
    fn evaluate(&mut self, sender: &StatusSender, repeat: bool) -> Wrote {
        let ask = repeat && self.hearing.wants_answer();
        if ask {
            // Asked or not able to (a full socket): an answer is owed either way.
            self.hearing.asked();
        }
        let shared = Arc::clone(&self.shared);
        let identity = &shared.options.identity;
        let receivers = shared.receivers();
        let applied = applied_lsn(&receivers);
        let judged =
            shared.cell.with_open(identity.epoch, shared.clock.as_ref(), |now, permit, last| {
                if permit.promotion != identity.promotion {
                    return (None, None);
                }
                let positions = GatePositions {
                    flush_lsn: self.flush_lsn,
                    last_report: last,
                    receivers: &receivers,
                };
                let release = release(now, permit, &positions, &self.exposure);
                let apply_lsn = release.upto.min(applied);
                if release.upto == last && apply_lsn <= self.apply_lsn && !repeat {
                    return (None, Some((release, now, Wrote::Nothing)));
                }
                let wrote = write(sender, release.upto, apply_lsn, ask);
                let released = matches!(wrote, Wrote::Sent).then_some(release.upto);
                if released.is_some() {
                    self.apply_lsn = apply_lsn;
                    self.exposure.released(release.upto, now);
                }
                (released, Some((release, now, wrote)))
            });
        let Some((release, now, wrote)) = judged.flatten() else {
            self.look_again = None;
            self.reason = None;
            self.release_delay = Duration::ZERO;
            // Shut: nothing above the last report, which may be repeated.
            return if repeat { self.repeat_last(sender, ask) } else { Wrote::Nothing };
        };
        if self.reason != Some(release.reason) {
            let (upto_lsn, reason) = (release.upto, release.reason);
            tracing::debug!(%upto_lsn, ?reason, "gate judged anew");
            self.reason = Some(release.reason);
        }
        self.release_delay = release.delay;
        // A deadline far away would overflow tokio's clock; the tick comes long before.
        let wait = release.look_again.map(|at| at.since(now).min(Duration::from_secs(60)));
        self.look_again = wait.map(|wait| Instant::now() + wait);
        wrote
    }

    fn repeat_last(&self, sender: &StatusSender, ask: bool) -> Wrote {
        let status = self.shared.cell.status();
        let same_epoch = status.epoch == self.shared.options.identity.epoch;
        let last = if same_epoch { status.released_upto } else { Lsn::ZERO };
        write(sender, last, last.min(self.apply_lsn), ask)
    }

    /// Publishes positions: at once after an edge, else every tick.
    fn publish(&mut self) {
        let now = Instant::now();
        let due = self.published.is_none_or(|last| now.duration_since(last) >= TICK);
        let status = self.shared.cell.status();
        let released_lsn = status.released_upto;
        let progress = Progress { flush_lsn: self.flush_lsn, released_lsn };
        self.shared
            .progress
            .send_if_modified(|known| std::mem::replace(known, progress) != progress);
        if !self.shared.take_edge() && !due {
            return;
        }
        self.published = Some(now);
        let receivers = self.shared.receivers();
        let waited_for = self.shared.cell.permit().map(|p| p.waited_for).unwrap_or_default();
        let boot_now = self.shared.clock.now();
        let known = known_surviving_lsn(&waited_for, &receivers);
        let positions = SourcePositions {
            read_at: boot_now,
            flush_lsn: self.flush_lsn,
            released_lsn,
            permit: status.serial,
            exposure: self.exposure.exposure(surviving_lsn(&waited_for, &receivers)),
            survives: known.map(|lsn| self.exposure.survival(lsn, boot_now)),
            release_delay: self.release_delay,
            gate_connected: self.shared.gate_backend_pid().is_some(),
            receivers,
        };
        self.shared.positions.send_if_modified(|known| {
            let changed = *known != positions;
            *known = positions;
            changed
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_that_was_listened_to_is_silence_and_an_answer_ends_it() {
        let (mut hearing, start) = (Hearing::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        for ms in (0..=1000).step_by(50) {
            assert!(!hearing.wants_answer() && hearing.overdue().is_zero());
            hearing.tick(at(ms));
        }
        assert!(hearing.wants_answer());
        hearing.asked();
        assert!(!hearing.wants_answer(), "it is asked once a second");
        assert_eq!(hearing.overdue(), Duration::from_secs(1));
        // The thread itself stood still for a minute.
        hearing.tick(at(61_000));
        assert_eq!(hearing.overdue(), Duration::from_secs(1));
        for ms in (61_050..=62_000).step_by(50) {
            hearing.tick(at(ms));
        }
        assert_eq!(hearing.overdue(), Duration::from_secs(2));
        assert!(hearing.wants_answer(), "it is asked again");
        hearing.heard();
        assert!(hearing.overdue().is_zero() && !hearing.wants_answer());
    }
}
