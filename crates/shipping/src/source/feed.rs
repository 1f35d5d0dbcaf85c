//! One receiver's WAL, in order and across timelines: from the primary, else from the local journal.
//!
//! Each feed has a walsender of its own, with the receiver's retention slot. It does not judge what may
//! be sent to whom; it only reads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use understudy_types::{Lsn, Timeline};

use super::attach::ValidAttach;
use super::state::Shared;
use crate::journal::{JournalError, JournalReader, ReadOutcome};
use crate::replication::{
    NextTimeline, ReplicationClient, ReplicationError, ReplicationEvent, Started, StatusSender,
    WalStream,
};

/// How much is read from the journal at once.
const READ_BYTES_MAX: usize = 256 * 1024;

/// An older walsender of the same slot needs a moment to notice that its client is gone.
const SLOT_PATIENCE: Duration = Duration::from_secs(10);

/// `undefined_file`: PostgreSQL no longer has the segment. `object_in_use`, `duplicate_object`: slots.
const SQLSTATE_NO_FILE: &str = "58P01";
const SQLSTATE_IN_USE: &str = "55006";
const SQLSTATE_EXISTS: &str = "42710";
/// `object_not_in_prerequisite_state`: the slot was invalidated, because it retained too much.
const SQLSTATE_INVALIDATED: &str = "55000";

#[derive(Debug, thiserror::Error)]
pub(super) enum FeedError {
    /// Neither the primary nor the journal has the WAL.
    #[error("read WAL of timeline {timeline} at {lsn}: it is no longer held here")]
    Gone { timeline: Timeline, lsn: Lsn },
    #[error("read WAL from the primary")]
    Primary(#[from] ReplicationError),
    #[error("read WAL from the local journal")]
    Journal(#[from] JournalError),
    #[error("read WAL at {expected}: the primary sent {found}")]
    OutOfOrder { expected: Lsn, found: Lsn },
    #[error("follow the primary: it stopped timeline {timeline} at {lsn} without a next one")]
    NoNextTimeline { timeline: Timeline, lsn: Lsn },
    #[error("check the primary: it has another system identifier")]
    WrongServer,
    /// Somebody has WAL that the primary never had, or has lost.
    #[error("read WAL up to {lsn}: the primary's ends at {flush_lsn}")]
    Ahead { lsn: Lsn, flush_lsn: Lsn },
}

pub(super) enum FeedEvent {
    /// The next bytes of the current timeline.
    Data { lsn: Lsn, bytes: Bytes },
    /// The timeline ends here; the feed goes on with the next.
    Switch { timeline: Timeline, fork_lsn: Lsn, raw_history: Bytes },
    /// A sign of life.
    Idle,
}

/// Where status updates of the present walsender connection go, and whether one is wanted at once.
#[derive(Default)]
pub(super) struct StatusLine {
    sender: Mutex<Option<StatusSender>>,
    pub(super) wanted: Notify,
}

impl StatusLine {
    pub(super) fn sender(&self) -> Option<StatusSender> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, sender: Option<StatusSender>) {
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = sender;
    }
}

enum Input {
    Closed,
    Primary(WalStream),
    Journal(JournalReader),
    /// The timeline ends exactly where reading was to go on.
    Ended(NextTimeline),
}

pub(super) struct Feed {
    shared: Arc<Shared>,
    application_name: String,
    slot: String,
    timeline: Timeline,
    /// The next byte.
    lsn: Lsn,
    /// What the receiver holds already: the primary must have it too.
    held_lsn: Lsn,
    input: Input,
    pub(super) status: Arc<StatusLine>,
}

impl Feed {
    /// A feed for a receiver, from the tail that is to be compared on.
    pub(super) fn new(shared: Arc<Shared>, node: &str, attach: &ValidAttach) -> Feed {
        let (timeline, lsn) = (attach.read_timeline, attach.tail_lsn);
        Feed {
            held_lsn: attach.start_lsn,
            application_name: format!("understudy-{node}"),
            slot: format!("{}{}", shared.options.slot_prefix, node.replace('-', "_")),
            shared,
            timeline,
            lsn,
            input: Input::Closed,
            status: Arc::default(),
        }
    }

    pub(super) fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// Makes sure that `next` has something to read from. Not cancel-safe: a cancelled one starts over.
    pub(super) async fn open(&mut self) -> Result<(), FeedError> {
        if !matches!(self.input, Input::Closed) {
            return Ok(());
        }
        self.status.set(None);
        let until = Instant::now() + SLOT_PATIENCE;
        loop {
            match self.connect().await {
                Err(FeedError::Primary(error))
                    if error.sqlstate() == Some(SQLSTATE_IN_USE) && Instant::now() < until =>
                {
                    sleep(Duration::from_millis(50)).await;
                }
                Err(FeedError::Primary(error)) if error.sqlstate() == Some(SQLSTATE_NO_FILE) => {
                    return self.fall_back();
                }
                Err(FeedError::Primary(error))
                    if error.sqlstate() == Some(SQLSTATE_INVALIDATED) && Instant::now() < until =>
                {
                    tracing::warn!(slot = self.slot, "slot was invalidated, making a new one");
                    self.drop_slot().await?;
                }
                other => return other,
            }
        }
    }

    async fn connect(&mut self) -> Result<(), FeedError> {
        let connect = self.shared.options.connect_options(&self.application_name);
        let mut client = ReplicationClient::connect(&connect).await?;
        let server = client.identify_system().await?;
        if server.system_id != self.shared.options.identity.system_id {
            return Err(FeedError::WrongServer);
        }
        let lsn = self.lsn.max(self.held_lsn);
        if server.flush_lsn < lsn {
            return Err(FeedError::Ahead { lsn, flush_lsn: server.flush_lsn });
        }
        // A slot that reserves nothing would let the WAL go before the first acknowledgement.
        match client.create_physical_slot(&self.slot, true).await {
            Err(error) if error.sqlstate() != Some(SQLSTATE_EXISTS) => return Err(error.into()),
            _ => {}
        }
        self.input =
            match client.start_replication(Some(&self.slot), self.lsn, self.timeline).await? {
                Started::Streaming(stream, sender) => {
                    self.status.set(Some(sender));
                    Input::Primary(stream)
                }
                Started::TimelineEnded { next, .. } => Input::Ended(next),
            };
        Ok(())
    }

    async fn drop_slot(&self) -> Result<(), FeedError> {
        let connect = self.shared.options.connect_options(&self.application_name);
        let mut client = ReplicationClient::connect(&connect).await?;
        Ok(client.drop_slot(&self.slot).await?)
    }

    /// The WAL is gone from the primary: goes on from the journal, if that holds it.
    fn fall_back(&mut self) -> Result<(), FeedError> {
        self.status.set(None);
        let gone = FeedError::Gone { timeline: self.timeline, lsn: self.lsn };
        let Some(journal) = &self.shared.options.journal else { return Err(gone) };
        let reader = match journal.reader(self.timeline, self.lsn) {
            Ok(reader) => reader,
            Err(JournalError::NotHeld { .. } | JournalError::Empty) => return Err(gone),
            Err(error) => return Err(error.into()),
        };
        // A journal that ends here helps as little as none.
        let positions = journal.positions().borrow().clone();
        let at_end =
            positions.is_none_or(|p| p.timeline == self.timeline && p.durable_lsn <= self.lsn);
        if at_end {
            return Err(gone);
        }
        tracing::info!(timeline = %self.timeline, lsn = %self.lsn, "source reads from its journal");
        self.input = Input::Journal(reader);
        Ok(())
    }

    /// The next event; cancel-safe once `open` has succeeded. `Idle` also means: call `open` again.
    pub(super) async fn next(&mut self) -> Result<FeedEvent, FeedError> {
        let ended = match &mut self.input {
            Input::Closed => return Ok(FeedEvent::Idle),
            Input::Ended(next) => Some(*next),
            Input::Primary(stream) => match stream.recv().await {
                Ok(ReplicationEvent::WalData { start_lsn, data, .. }) => {
                    return self.data(start_lsn, data);
                }
                Ok(ReplicationEvent::Keepalive { reply_requested, .. }) => {
                    if reply_requested {
                        self.status.wanted.notify_one();
                    }
                    return Ok(FeedEvent::Idle);
                }
                Ok(ReplicationEvent::TimelineEnd { next }) => next,
                Err(error) if error.sqlstate() == Some(SQLSTATE_NO_FILE) => {
                    self.input = Input::Closed;
                    self.fall_back()?;
                    return Ok(FeedEvent::Idle);
                }
                Err(error) => return Err(error.into()),
            },
            Input::Journal(reader) => match reader.read(READ_BYTES_MAX)? {
                ReadOutcome::Data { lsn, bytes } => return self.data(lsn, bytes),
                ReadOutcome::AtDurableEnd => {
                    // What follows is the primary's own, and newer.
                    self.input = Input::Closed;
                    return Ok(FeedEvent::Idle);
                }
                ReadOutcome::TimelineEnd { switch_lsn, next } => Some((next, switch_lsn)),
            },
        };
        let Some(next) = ended else {
            return Err(FeedError::NoNextTimeline { timeline: self.timeline, lsn: self.lsn });
        };
        // Kept until the history is here, so that a cancelled call finds it again.
        self.input = Input::Ended(next);
        self.switch(next).await
    }

    fn data(&mut self, lsn: Lsn, bytes: Bytes) -> Result<FeedEvent, FeedError> {
        if lsn != self.lsn {
            return Err(FeedError::OutOfOrder { expected: self.lsn, found: lsn });
        }
        self.lsn = Lsn(lsn.0 + bytes.len() as u64);
        Ok(FeedEvent::Data { lsn, bytes })
    }

    async fn switch(&mut self, (next, fork_lsn): NextTimeline) -> Result<FeedEvent, FeedError> {
        if fork_lsn != self.lsn {
            return Err(FeedError::OutOfOrder { expected: self.lsn, found: fork_lsn });
        }
        self.status.set(None);
        let held = self.shared.options.journal.as_ref().and_then(|j| j.history_raw(next));
        let raw_history = match held {
            Some(raw) => raw,
            None => {
                let connect = self.shared.options.connect_options(&self.application_name);
                let mut client = ReplicationClient::connect(&connect).await?;
                client.timeline_history(next).await?.1
            }
        };
        self.input = Input::Closed;
        self.timeline = next;
        Ok(FeedEvent::Switch { timeline: next, fork_lsn, raw_history })
    }
}
