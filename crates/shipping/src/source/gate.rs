//! The gate's own connection: this node as PostgreSQL's synchronous standby.
//!
//! It learns how far WAL is flushed, has every piece of news judged (`release`), and publishes where
//! everything stands. It runs on a thread of its own, so that neither bulk transfer nor the core can
//! stand before it. The connection has no slot (releasing commits must not move what is retained) and
//! asks for nothing but the newest WAL.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use understudy_types::{Lsn, SourcePositions};
use understudy_wal::gate::{known_surviving_lsn, surviving_lsn};

use super::release::Why;
use super::state::Shared;
use crate::replication::{
    ReplicationClient, ReplicationError, ReplicationEvent, Started, StatusSender, WalStream,
};

/// Positions are published, and the last report is repeated, this often.
///
/// The repetition matters: PostgreSQL ignores a report that reaches a walsender which has not caught up.
const TICK: Duration = Duration::from_millis(50);

/// Between attempts to connect.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(200);

/// Why the gate has no connection (any more).
#[derive(Debug, thiserror::Error)]
pub(super) enum GateError {
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

pub(super) struct Gate {
    shared: Arc<Shared>,
    published: Option<Instant>,
    hearing: Hearing,
}

impl Gate {
    pub(super) fn new(shared: Arc<Shared>) -> Gate {
        Gate { shared, published: None, hearing: Hearing::default() }
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
                Ok((mut stream, sender, flush_lsn)) => {
                    backoff = BACKOFF_MIN;
                    let pid = stream.backend_pid();
                    tracing::info!(pid, %flush_lsn, "gate connected");
                    self.shared.set_gate_backend_pid(Some(pid));
                    self.shared.gate_connected(sender, flush_lsn);
                    let ended = self.serve(&mut stream).await;
                    // Whoever brings news finds nothing to write to from here on.
                    self.shared.gate_disconnected();
                    drop(stream);
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

    async fn connect(&self) -> Result<(WalStream, StatusSender, Lsn), GateError> {
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
        match client.start_replication(None, server.flush_lsn, server.timeline).await? {
            Started::Streaming(stream, sender) => Ok((stream, sender, server.flush_lsn)),
            Started::TimelineEnded { next, .. } => Err(GateError::WrongServer {
                found: format!("timeline {} as the next", next.0),
                expected: format!("timeline {} as the newest", expected.1),
            }),
        }
    }

    /// Has the gate judged at every edge; ends well only when the gate is dropped.
    async fn serve(&mut self, stream: &mut WalStream) -> Result<(), GateError> {
        let shared = Arc::clone(&self.shared);
        let permit_changed = shared.cell.changed();
        self.hearing = Hearing::default();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let look_again = shared.look_again().unwrap_or_else(|| Instant::now() + TICK * 2);
            let mut why = Why::News;
            tokio::select! {
                () = shared.gate_dropped.cancelled() => return Ok(()),
                event = stream.recv() => {
                    self.hearing.heard();
                    why = self.learn(event?)?;
                }
                () = shared.wake_gate.notified() => {}
                () = permit_changed.notified() => {}
                () = sleep_until(look_again) => {}
                _ = tick.tick() => {
                    self.hearing.tick(Instant::now());
                    shared.set_gate_silent_for(self.hearing.overdue());
                    why = self.repeat();
                }
            }
            if shared.gate_dropped.is_cancelled() {
                return Ok(());
            }
            shared.judge(why);
            if let Some(error) = shared.take_gate_failure() {
                return Err(error);
            }
            self.publish();
        }
    }

    /// Takes an event; says whether the server wants an answer whatever happens.
    fn learn(&mut self, event: ReplicationEvent) -> Result<Why, GateError> {
        match event {
            ReplicationEvent::WalData { start_lsn, server_end_lsn, data } => {
                // The walsender sends only what is flushed, so the end of the bytes is a flush position.
                let end_lsn = Lsn(start_lsn.0 + data.len() as u64).max(server_end_lsn);
                self.shared.flushed(end_lsn);
                Ok(Why::News)
            }
            ReplicationEvent::Keepalive { server_end_lsn, reply_requested } => {
                self.shared.flushed(server_end_lsn);
                Ok(if reply_requested { self.repeat() } else { Why::News })
            }
            ReplicationEvent::TimelineEnd { .. } => Err(GateError::WrongServer {
                found: "the end of its timeline".to_owned(),
                expected: "a primary".to_owned(),
            }),
        }
    }

    fn repeat(&mut self) -> Why {
        let ask = self.hearing.wants_answer();
        if ask {
            // Asked or not able to (a full socket): an answer is owed either way.
            self.hearing.asked();
        }
        Why::Repeat { ask }
    }

    /// Publishes positions: at once after an edge, else every tick.
    fn publish(&mut self) {
        let now = Instant::now();
        // A little less than a tick, so that one that comes early is not left out.
        let due = self.published.is_none_or(|last| now.duration_since(last) >= TICK * 9 / 10);
        self.shared.tell_progress();
        if !self.shared.take_edge() && !due {
            return;
        }
        self.published = Some(now);
        // The permit is that of the moment at which the position was read, or an older one: with a later
        // one, what was released in between would pass for released under it.
        let (status, flush_lsn) = (self.shared.cell.status(), self.shared.flush_lsn());
        let receivers = self.shared.receivers();
        let permit = self.shared.cell.permit();
        let boot_now = self.shared.clock.now();
        let surviving = surviving_lsn(permit.as_ref(), &receivers);
        let known = known_surviving_lsn(permit.as_ref(), &receivers);
        let (exposure, survives, release_delay) = self.shared.exposed(surviving, known, boot_now);
        let positions = SourcePositions {
            read_at: boot_now,
            flush_lsn,
            released_lsn: status.released_upto,
            permit: status.serial,
            exposure,
            survives,
            release_delay,
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use understudy_types::{
        BootInstant, Clock, ClusterId, DurabilityMode, Epoch, Permit, PermitSerial, PromotionId,
        SegmentSize, SystemId, Timeline, TimelineHistory,
    };

    use super::*;
    use crate::permit_cell::PermitCell;
    use crate::source::{SourceIdentity, SourceOptions};

    const EPOCH: Epoch = Epoch { incarnation: 0, number: 1 };
    const PROMOTION: PromotionId = PromotionId(uuid::Uuid::from_u128(1));

    fn permit(serial: u64, mode: DurabilityMode) -> Permit {
        Permit {
            serial: PermitSerial(serial),
            epoch: EPOCH,
            promotion: PROMOTION,
            deadline: BootInstant(u64::MAX),
            mode,
            waited_for: Vec::new(),
            quorums: Vec::new(),
            sole_survivor: false,
            credit: Lsn::MAX,
            exposure_max: None,
        }
    }

    fn release(cell: &PermitCell, clock: &dyn Clock, upto: Lsn) {
        cell.with_open(EPOCH, clock, |_, _, _| (Some(upto), ())).unwrap();
    }

    struct Still;

    impl Clock for Still {
        fn now(&self) -> BootInstant {
            BootInstant(1)
        }
    }

    /// While it is read, a session releases and the core sets a stricter permit.
    struct Meddling {
        cell: Arc<PermitCell>,
        armed: AtomicBool,
    }

    impl Clock for Meddling {
        fn now(&self) -> BootInstant {
            if self.armed.swap(false, Ordering::SeqCst) {
                release(&self.cell, &Still, Lsn(1000));
                self.cell.set(permit(2, DurabilityMode::Zero)).unwrap();
            }
            Still.now()
        }
    }

    #[test]
    fn a_position_is_never_published_with_a_permit_that_came_after_it() {
        let cell = Arc::new(PermitCell::new(EPOCH));
        let clock = Arc::new(Meddling { cell: Arc::clone(&cell), armed: AtomicBool::new(false) });
        cell.set(permit(1, DurabilityMode::BestEffort)).unwrap();
        release(&cell, &Still, Lsn(100));
        let history = TimelineHistory::root(Timeline::FIRST);
        let options = SourceOptions {
            socket_dir: "/nowhere".into(),
            port: 1,
            user: "nobody".to_owned(),
            gate_name: "gate".to_owned(),
            identity: SourceIdentity {
                cluster: ClusterId(uuid::Uuid::from_u128(2)),
                system_id: SystemId(1),
                epoch: EPOCH,
                promotion: PROMOTION,
                history,
            },
            segment_size: SegmentSize::DEFAULT,
            slot_prefix: "understudy_".to_owned(),
            assumed_since: BootInstant(0),
            journal: None,
        };
        let meddling: Arc<Meddling> = Arc::clone(&clock);
        let shared = Arc::new(Shared::new(options, cell, clock));
        let mut gate = Gate::new(Arc::clone(&shared));
        meddling.armed.store(true, Ordering::SeqCst);
        gate.publish();
        assert!(!meddling.armed.load(Ordering::SeqCst), "nothing happened in between");
        let published = shared.positions.borrow().clone();
        assert_eq!((published.released_lsn, published.permit), (Lsn(100), Some(PermitSerial(1))));
    }

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
