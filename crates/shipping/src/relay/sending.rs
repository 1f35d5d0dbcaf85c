//! The stream of one relay client: WAL up to the journal's durable end, keepalives, its reports.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use understudy_types::{Lsn, Timeline};
use understudy_wal::protocol::{
    BackendMessage, FrontendMessage, StandbyMessage, StandbyStatus, WalSenderMessage, wal_data_room,
};

use super::session::{Session, SessionEnd, fatal, shutting_down};
use crate::journal::{Ahead, JournalError, JournalReader};
use crate::replication::pg_now;

/// WAL in one message at most, as PostgreSQL's walsender (`MAX_SEND_SIZE`).
const SEND_BYTES_MAX: usize = 128 * 1024;

/// While WAL trickles, a message goes out no sooner than this after the last one: a standby wakes three
/// processes and syncs its own copy for each, and nobody waits for it but who asks for `remote_apply`.
const PACE: Duration = Duration::from_millis(2);
/// So much goes out at once.
const FULL_BYTES: usize = 64 * 1024;

/// How a stream ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// The client wanted no more.
    Client,
    /// Everything on the timeline was sent.
    Timeline {
        /// The timeline that follows.
        next: Timeline,
        /// Where.
        switch_lsn: Lsn,
    },
}

/// What came of looking for WAL.
enum Filled {
    /// There is something to write.
    Something,
    /// Everything durable was sent.
    Nothing,
    /// There is a little, and the last message was a moment ago.
    TooSoon,
    /// The timeline is over, and our CopyDone is to be written.
    End(StreamEnd),
}

/// What the client sent asks for.
enum Heard {
    Nothing,
    Keepalive,
    Done,
}

impl Session<'_> {
    /// Sends from where `reader` stands until the client or the timeline ends.
    pub(super) async fn stream(
        &mut self,
        mut reader: JournalReader,
    ) -> Result<StreamEnd, SessionEnd> {
        if !self.name.is_empty() && self.name == self.shared.options.standby_name {
            let owner = &self.shared.standby_session;
            owner.store(self.serial, std::sync::atomic::Ordering::Relaxed);
            self.shared.standby.send_replace(Some(super::RelayPositions::default()));
        }
        self.put(BackendMessage::CopyBothResponse);
        let end = self.pump(&mut reader).await;
        self.shared.forget_standby(self.serial);
        end
    }

    async fn pump(&mut self, reader: &mut JournalReader) -> Result<StreamEnd, SessionEnd> {
        let mut positions = self.shared.journal.positions();
        let mut ticker = tokio::time::interval(self.shared.options.keepalive_interval);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard_at = Instant::now();
        let mut keepalive_due = None; // with whether a reply is wanted
        let mut ended: Option<StreamEnd> = None; // our CopyDone is out, the client's is awaited
        let mut not_before = Instant::now();
        let shutdown = self.shutdown.clone();
        loop {
            let (mut waits, mut paced) = (false, false);
            if self.out.is_empty() && ended.is_none() {
                let Some(durable_lsn) =
                    positions.borrow_and_update().as_ref().map(|now| now.durable_lsn)
                else {
                    return Err(fatal("57P01", "the journal of the WAL relay was set aside"));
                };
                if let Some(reply_requested) = keepalive_due.take() {
                    self.keepalive(durable_lsn, reply_requested);
                }
                match self.fill(reader, durable_lsn, not_before)? {
                    Filled::Something => not_before = Instant::now() + PACE,
                    Filled::Nothing => waits = true,
                    Filled::TooSoon => paced = true,
                    Filled::End(end) => ended = Some(end),
                }
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Err(shutting_down()),
                message = self.frames.next() => {
                    heard_at = Instant::now();
                    match self.hear(message?)? {
                        Heard::Nothing => {}
                        Heard::Keepalive => keepalive_due = Some(false),
                        Heard::Done => return self.finish(ended).await,
                    }
                }
                written = self.writer.write_buf(&mut self.out), if !self.out.is_empty() => {
                    written?;
                }
                changed = positions.changed(), if waits => {
                    changed.map_err(|_| shutting_down())?;
                }
                () = sleep_until(not_before), if paced => {}
                _ = ticker.tick() => {
                    if heard_at.elapsed() > self.shared.options.client_timeout {
                        return Err(fatal("57P01", "terminating walsender: no reply in time"));
                    }
                    keepalive_due = Some(true);
                }
            }
        }
    }

    /// Puts the next run of WAL into `out`, a little of it only from `not_before` on.
    fn fill(
        &mut self,
        reader: &mut JournalReader,
        durable_lsn: Lsn,
        not_before: Instant,
    ) -> Result<Filled, SessionEnd> {
        let failed = |error: JournalError, lsn: Lsn| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, %lsn, "relay cannot read its journal");
            fatal("58P01", format!("the journal cannot be read at {lsn}"))
        };
        let lsn = reader.position();
        match reader.ahead(SEND_BYTES_MAX).map_err(|error| failed(error, lsn))? {
            // All that there is, and little: at the end of a segment more lies behind it.
            Ahead::Data { bytes }
                if bytes < FULL_BYTES
                    && lsn + bytes as u64 >= durable_lsn
                    && Instant::now() < not_before =>
            {
                Ok(Filled::TooSoon)
            }
            Ahead::Data { bytes } => {
                let (before, end_lsn) = (self.out.len(), durable_lsn.max(lsn + bytes as u64));
                // Into the message itself: WAL is copied often enough on its way.
                let room = wal_data_room(lsn, end_lsn, pg_now(), bytes, &mut self.out);
                if let Err(error) = reader.read_into(room) {
                    // What goes out next is the error, not half a message.
                    self.out.truncate(before);
                    return Err(failed(error, lsn));
                }
                Ok(Filled::Something)
            }
            Ahead::AtDurableEnd => Ok(Filled::Nothing),
            Ahead::TimelineEnd { switch_lsn, next } => {
                self.put(BackendMessage::CopyDone);
                Ok(Filled::End(StreamEnd::Timeline { next, switch_lsn }))
            }
        }
    }

    fn keepalive(&mut self, server_end_lsn: Lsn, reply_requested: bool) {
        let sent_at = pg_now();
        WalSenderMessage::Keepalive { server_end_lsn, sent_at, reply_requested }
            .encode(&mut self.out);
    }

    /// The client has sent its CopyDone: ours follows, unless it went before.
    async fn finish(&mut self, ended: Option<StreamEnd>) -> Result<StreamEnd, SessionEnd> {
        if ended.is_none() {
            self.put(BackendMessage::CopyDone);
        }
        self.flush().await?;
        Ok(ended.unwrap_or(StreamEnd::Client))
    }

    fn hear(&mut self, message: FrontendMessage) -> Result<Heard, SessionEnd> {
        match message {
            FrontendMessage::CopyData(body) => self.report(body),
            FrontendMessage::CopyDone => Ok(Heard::Done),
            FrontendMessage::Terminate => Err(SessionEnd::Gone),
            FrontendMessage::Sync | FrontendMessage::Flush => Ok(Heard::Nothing),
            FrontendMessage::CopyFail(_)
            | FrontendMessage::Query(_)
            | FrontendMessage::Password(_) => {
                Err(fatal("08P01", "unexpected message while WAL is streamed"))
            }
        }
    }

    fn report(&mut self, body: Bytes) -> Result<Heard, SessionEnd> {
        let message = StandbyMessage::decode(body)?;
        if self.shared.is_standby_session(self.serial) {
            self.shared.standby.send_if_modified(|published| {
                let mut now = published.unwrap_or_default();
                match message {
                    StandbyMessage::Status(StandbyStatus {
                        write_lsn,
                        flush_lsn,
                        apply_lsn,
                        ..
                    }) => {
                        let known = |lsn| (lsn != Lsn::ZERO).then_some(lsn);
                        now.write_lsn = known(write_lsn).or(now.write_lsn);
                        now.flush_lsn = known(flush_lsn).or(now.flush_lsn);
                        now.replay_lsn = known(apply_lsn).or(now.replay_lsn);
                    }
                    // Two zeroes are how a standby takes its feedback back.
                    StandbyMessage::Feedback { feedback, .. } => {
                        let given = feedback.xmin != 0 || feedback.catalog_xmin != 0;
                        now.feedback = given.then_some(feedback);
                    }
                }
                let modified = *published != Some(now);
                *published = Some(now);
                modified
            });
        }
        Ok(match message {
            StandbyMessage::Status(status) if status.reply_requested => Heard::Keepalive,
            _ => Heard::Nothing,
        })
    }
}
