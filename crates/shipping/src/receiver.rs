//! The receiver: dials the holder, attaches with what the journal holds, and brings WAL into it.
//!
//! It acknowledges nothing but what the journal calls durable, and at most what this stream brought.
//! It does not decide whom to follow: it acts under an admission, and ends with a typed reason when
//! going on is the core's decision.
//!
//! It has a thread of its own, with the connection on it. What somebody waits for, a few bytes that have
//! just been committed, is decrypted, made durable and acknowledged there without waking anybody else;
//! more than that goes to the journal's thread, so that reading and writing run side by side.

pub mod checks;

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use understudy_proto::v1::from_source::Message as Incoming;
use understudy_proto::v1::refused::Reason;
use understudy_proto::v1::wal_client::WalClient;
use understudy_proto::v1::{self, to_source::Message as Outgoing};
use understudy_types::{
    Admission, BootInstant, Clock, ClusterId, Epoch, Incarnation, Lineage, Lsn, NodeId, NodeName,
    SegmentSize, SystemId, Timeline,
};
use understudy_wal::protocol::HotStandbyFeedback;

use crate::compression::Unpacking;
use crate::journal::{AppendError, Journal, JournalError, JournalPositions};
use crate::relay::RelayPositions;
use crate::source::PROTOCOL_VERSION;
use crate::thread::run_on_its_own;

/// Between attempts to reach the holder.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Between two tries to store more where there was no room.
const ROOM_RETRY: Duration = Duration::from_secs(2);
/// For the call to be answered at all.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// For the source to compare and attach; it may have to read a long record.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(70);
/// A source sends ten heartbeats a second; this much silence means that it is gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Without news the position is repeated this often.
const ACK_INTERVAL: Duration = Duration::from_millis(100);
/// Acknowledgements that may wait for the network; newer ones are merged meanwhile.
const ACKS_MAX: usize = 4;
/// Frames that came together are made durable together, and by this thread if they are no more than this.
const FEW_BYTES_MAX: usize = 64 * 1024;
/// A sync that takes longer is a slow disk's, and the next ones for a while are done elsewhere.
const SYNC_PATIENCE: Duration = Duration::from_millis(100);
const SLOW_DISK_MEMORY: Duration = Duration::from_secs(10);
/// The largest message: a frame of 256 KiB with room for its envelope, or a history file.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Where to begin when the journal holds nothing.
#[derive(Clone, Copy, Debug)]
pub enum EmptyStart {
    /// Where a standby needs it.
    At {
        /// The timeline that the standby needs first.
        timeline: Timeline,
        /// The position that the standby needs first; the stream begins with its segment.
        lsn: Lsn,
        /// The cluster's segment size.
        segment_size: SegmentSize,
    },
    /// With the segment that the primary is writing.
    AtTip,
}

/// Where the local standby stands, for the acknowledgements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StandbyProgress {
    /// Replayed; `None` while there is no standby or it has not said.
    pub replay_lsn: Option<Lsn>,
    /// Its hot-standby feedback, if it gives any.
    pub feedback: Option<HotStandbyFeedback>,
}

impl StandbyProgress {
    /// Follows what the local standby reports to the relay, as long as that runs. Needs a tokio runtime
    /// around it.
    pub fn of_relay(
        mut reported: watch::Receiver<Option<RelayPositions>>,
    ) -> watch::Receiver<StandbyProgress> {
        let progress = watch::Sender::new(StandbyProgress::default());
        let followed = progress.subscribe();
        tokio::spawn(async move {
            while reported.changed().await.is_ok() {
                let now = reported.borrow_and_update().unwrap_or_default();
                let (replay_lsn, feedback) = (now.replay_lsn, now.feedback);
                progress.send_replace(StandbyProgress { replay_lsn, feedback });
            }
        });
        followed
    }
}

/// Makes a channel whose work is done on the runtime that it is made in.
pub type Connect = Arc<dyn Fn() -> Channel + Send + Sync>;

/// A receiver could not start.
#[derive(Debug, thiserror::Error)]
#[error("start the receiver's thread")]
pub struct StartError(#[source] io::Error);

/// What a receiver needs to know.
#[derive(Clone)]
pub struct ReceiverOptions {
    /// Leads to the holder.
    pub connect: Connect,
    /// Where WAL goes.
    pub journal: Journal,
    /// Under what it is stored; put in force in the journal at the start.
    pub admission: Admission,
    /// The lineage up to the admitted epoch; stored when an empty journal begins.
    pub lineage: Vec<Lineage>,
    /// The cluster.
    pub cluster: ClusterId,
    /// PostgreSQL's system identifier, if it is known.
    pub system_id: Option<SystemId>,
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Where to begin when the journal holds nothing.
    pub empty_start: Option<EmptyStart>,
    /// There is no data here but the journal: what lies before its beginning is missing, and is said to be.
    pub only_journal: bool,
    /// Where the local standby stands.
    pub standby: watch::Receiver<StandbyProgress>,
}

/// Why a receiver ended for good.
#[derive(Clone, Debug)]
pub enum ReceiverEnd {
    /// The source refused in a way that trying again does not change.
    Refused {
        /// On which to act.
        reason: Reason,
        /// For people.
        detail: String,
        /// The source's epoch.
        epoch: Epoch,
    },
    /// The journal is sealed, or admits another epoch by now.
    NotAdmitted,
    /// The journal is empty and nobody said where to begin.
    NothingToStartFrom,
    /// The journal failed and has to be opened again.
    JournalFailed(Arc<JournalError>),
    /// `stop` was called.
    Cancelled,
}

/// What the newest heartbeat said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceHeartbeat {
    /// The primary's flush position.
    pub flush_lsn: Lsn,
    /// What its gate has released.
    pub released_lsn: Lsn,
    /// When it arrived here.
    pub received_at: BootInstant,
}

/// How a receiver is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiverStatus {
    /// The source has attached it and the stream is up.
    pub attached: bool,
    /// The newest heartbeat, also of an earlier stream.
    pub heartbeat: Option<SourceHeartbeat>,
    /// Why the last attempt or stream ended.
    pub last_problem: Option<String>,
    /// How many times it has tried to attach.
    pub attempt_count: u64,
}

/// A running receiver. Dropping the handle stops it.
pub struct ReceiverHandle {
    status: watch::Receiver<ReceiverStatus>,
    cancel: CancellationToken,
    end: oneshot::Receiver<ReceiverEnd>,
}

impl ReceiverHandle {
    /// How it is doing.
    pub fn status(&self) -> watch::Receiver<ReceiverStatus> {
        self.status.clone()
    }

    /// Asks it to end; `ended` says when it has.
    pub fn stop(&self) {
        self.cancel.cancel();
    }

    /// Waits for its end. May be called again only if an earlier call was dropped before it returned.
    pub async fn ended(&mut self) -> ReceiverEnd {
        // A panic in the thread is a broken invariant: it must not pass for an orderly end.
        (&mut self.end).await.expect("the receiver's thread panicked")
    }
}

impl Drop for ReceiverHandle {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Starts receivers.
pub struct Receiver;

impl Receiver {
    /// Starts one on a thread of its own; it reconnects by itself until it ends.
    ///
    /// # Errors
    /// When the thread or its event loop cannot be made.
    pub fn start(
        options: ReceiverOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<ReceiverHandle, StartError> {
        let cancel = CancellationToken::new();
        let status = watch::Sender::new(ReceiverStatus::default());
        let subscribed = status.subscribe();
        let slow_until = Cell::default();
        let running = Running { options, clock, status, cancel: cancel.clone(), slow_until };
        let (ending, end) = oneshot::channel();
        run_on_its_own("receiver", move || async move {
            // Nobody may be left to hear of it.
            let _ = ending.send(running.run().await);
        })
        .map_err(StartError)?;
        Ok(ReceiverHandle { status: subscribed, cancel, end })
    }
}

/// Why one stream ended.
enum StreamEnd {
    Final(ReceiverEnd),
    /// To be tried again.
    Again(String),
}

impl StreamEnd {
    fn again(problem: impl Into<String>) -> StreamEnd {
        StreamEnd::Again(problem.into())
    }
}

impl From<JournalError> for StreamEnd {
    fn from(error: JournalError) -> StreamEnd {
        match &error {
            JournalError::NotAdmitted { .. } | JournalError::StaleEpoch { .. } => {
                StreamEnd::Final(ReceiverEnd::NotAdmitted)
            }
            _ if error.is_fatal() => StreamEnd::Final(ReceiverEnd::JournalFailed(Arc::new(error))),
            _ => StreamEnd::Again(error.to_string()),
        }
    }
}

impl From<AppendError> for StreamEnd {
    fn from(error: AppendError) -> StreamEnd {
        match error {
            AppendError::Refused { .. } => StreamEnd::Final(ReceiverEnd::NotAdmitted),
            AppendError::Failed(error) => StreamEnd::Final(ReceiverEnd::JournalFailed(error)),
            error => StreamEnd::Again(error.to_string()),
        }
    }
}

/// Frames of one timeline that came together.
#[derive(Default)]
struct Few {
    timeline: Option<Timeline>,
    frames: Vec<(Lsn, Bytes)>,
    bytes: usize,
}

impl Few {
    fn push(&mut self, timeline: Timeline, lsn: Lsn, data: Bytes) {
        self.timeline = Some(timeline);
        self.bytes += data.len();
        self.frames.push((lsn, data));
    }
}

struct Running {
    options: ReceiverOptions,
    clock: Arc<dyn Clock>,
    status: watch::Sender<ReceiverStatus>,
    cancel: CancellationToken,
    slow_until: Cell<Option<Instant>>,
}

impl Running {
    async fn run(self) -> ReceiverEnd {
        let end = tokio::select! {
            () = self.cancel.cancelled() => ReceiverEnd::Cancelled,
            end = self.reconnect() => end,
        };
        self.status.send_modify(|status| status.attached = false);
        tracing::info!(epoch = %self.options.admission.epoch, ?end, "receiver ended");
        end
    }

    async fn reconnect(&self) -> ReceiverEnd {
        let (journal, admission) = (self.options.journal.clone(), self.options.admission);
        if let Err(error) = blocking(move || journal.admit(admission)).await {
            return match StreamEnd::from(error) {
                StreamEnd::Final(end) => end,
                StreamEnd::Again(_) => ReceiverEnd::NotAdmitted,
            };
        }
        let channel = (self.options.connect)();
        let mut backoff = BACKOFF_MIN;
        loop {
            self.status.send_modify(|status| status.attempt_count += 1);
            let ended = self.stream(&channel).await;
            let was_attached = self.status.borrow().attached;
            self.status.send_modify(|status| status.attached = false);
            if was_attached {
                backoff = BACKOFF_MIN;
            }
            match ended {
                StreamEnd::Final(end) => return end,
                StreamEnd::Again(problem) => {
                    // However the stream ended, this is what it ended for.
                    let no_room = self.no_room();
                    let pause = if no_room.is_some() { ROOM_RETRY } else { backoff };
                    let problem = no_room.unwrap_or(problem);
                    tracing::info!(problem, "receiver will try again");
                    self.status.send_modify(|status| status.last_problem = Some(problem));
                    sleep(pause).await;
                }
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Why the journal takes no more: nothing but time, or a person, makes room.
    fn no_room(&self) -> Option<String> {
        let positions = self.options.journal.positions();
        let error = positions.borrow().as_ref()?.error.clone()?;
        error.is_no_room().then(|| error.to_string())
    }

    /// One stream, from dialling to its end.
    async fn stream(&self, channel: &Channel) -> StreamEnd {
        match self.attach_and_follow(channel).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn attach_and_follow(
        &self,
        channel: &Channel,
    ) -> Result<std::convert::Infallible, StreamEnd> {
        let attach = self.attach().await?;
        let (outbound, requests) = mpsc::channel(ACKS_MAX);
        let asked_lsn = Some(Lsn(attach.start_lsn)).filter(|_| !attach.begin_at_tip);
        let opening = v1::ToSource { message: Some(Outgoing::Attach(attach)) };
        outbound.try_send(opening).map_err(|_| StreamEnd::again("the new channel is full"))?;
        let mut client =
            WalClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let call = client.stream(ReceiverStream::new(requests));
        let mut inbound = match timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(StreamEnd::again(status.message())),
            Err(_) => return Err(StreamEnd::again("the holder does not answer")),
        };
        let first = self.receive(&mut inbound, ATTACH_TIMEOUT).await?;
        let start_lsn = self.attached(first, asked_lsn).await?;
        let arrived = watch::Sender::new(Arrived { upto_lsn: start_lsn, heartbeat_ns: 0 });
        let mut few = Few::default();
        let ended = tokio::select! {
            end = self.follow(&mut inbound, &mut few, &arrived) => end,
            end = self.acknowledge(&outbound, arrived.subscribe()) => end,
        };
        // What came before the end is good, and may be the last that ever comes of a holder that is lost.
        let _ = self.store(&mut few).await;
        ended
    }

    /// Says where the journal stands.
    async fn attach(&self) -> Result<v1::Attach, StreamEnd> {
        let options = &self.options;
        let journal = options.journal.clone();
        let tail = blocking(move || journal.tail()).await?;
        let mut begin_at_tip = false;
        let (timeline, start_lsn, tail_lsn, hash) = match (tail, options.empty_start) {
            (Some(tail), _) if tail.tail_lsn < tail.durable_lsn => {
                (tail.timeline, tail.durable_lsn, tail.tail_lsn, tail.sha256.to_vec())
            }
            (Some(tail), _) => (tail.timeline, tail.durable_lsn, tail.durable_lsn, Vec::new()),
            (None, Some(EmptyStart::At { timeline, lsn, segment_size })) => {
                let lsn = lsn.align_down(segment_size.bytes());
                (timeline, lsn, lsn, Vec::new())
            }
            (None, Some(EmptyStart::AtTip)) => {
                begin_at_tip = true;
                (options.admission.timeline, Lsn::ZERO, Lsn::ZERO, Vec::new())
            }
            (None, None) => return Err(StreamEnd::Final(ReceiverEnd::NothingToStartFrom)),
        };
        let held = options.journal.identity().map(|(system_id, _)| system_id);
        let epoch: v1::Epoch = options.admission.epoch.into();
        Ok(v1::Attach {
            hello: Some(v1::Hello {
                protocol_version: PROTOCOL_VERSION,
                cluster: options.cluster.to_string(),
                node: options.name.to_string(),
                node_id: options.node.0,
                incarnation: options.incarnation.to_string(),
                system_id: held.or(options.system_id).map_or(0, |system_id| system_id.0),
                epoch: Some(epoch),
                ..Default::default()
            }),
            epoch: Some(epoch),
            promotion: options.admission.promotion.to_string(),
            timeline: timeline.get(),
            start_lsn: start_lsn.0,
            tail_lsn: tail_lsn.0,
            tail_sha256: hash,
            zstd: true,
            begin_at_tip,
        })
    }

    async fn receive(
        &self,
        inbound: &mut tonic::Streaming<v1::FromSource>,
        silence_max: Duration,
    ) -> Result<Incoming, StreamEnd> {
        match timeout(silence_max, inbound.next()).await {
            Ok(received) => message_in(received),
            Err(_) => Err(StreamEnd::again("the holder is silent")),
        }
    }

    /// Checks the source's answer to the attach, and says where the stream begins: where it was asked for,
    /// or at the tip. An empty journal begins here.
    async fn attached(&self, first: Incoming, asked_lsn: Option<Lsn>) -> Result<Lsn, StreamEnd> {
        let attached = match first {
            Incoming::Attached(attached) => attached,
            Incoming::Refused(refused) => return Err(refused_end(refused)),
            Incoming::Frame(_) | Incoming::TimelineSwitch(_) | Incoming::Heartbeat(_) => {
                return Err(StreamEnd::again("the holder sent something before it attached"));
            }
        };
        let admission = &self.options.admission;
        let held = self.options.journal.identity();
        let known = held.map(|(system_id, _)| system_id).or(self.options.system_id);
        let (size, timeline, start_lsn) =
            checks::attached(&attached, admission, known, asked_lsn).map_err(StreamEnd::Again)?;
        if held.is_none() {
            let journal = self.options.journal.clone();
            let lineage = self.options.lineage.clone();
            let system_id = SystemId(attached.system_id);
            blocking(move || journal.begin(system_id, size, timeline, lineage, start_lsn)).await?;
        }
        tracing::info!(epoch = %admission.epoch, %start_lsn, %timeline, "attached to the holder");
        self.status.send_modify(|status| {
            status.attached = true;
            status.last_problem = None;
        });
        Ok(start_lsn)
    }

    /// Brings what arrives into the journal.
    async fn follow(
        &self,
        inbound: &mut tonic::Streaming<v1::FromSource>,
        few: &mut Few,
        arrived: &watch::Sender<Arrived>,
    ) -> Result<std::convert::Infallible, StreamEnd> {
        let mut unpacker = Unpacking::default();
        loop {
            let message = if few.frames.is_empty() {
                self.receive(inbound, SILENCE_MAX).await?
            } else {
                match at_hand(inbound).await {
                    Some(received) => message_in(received)?,
                    None => {
                        self.store(few).await?;
                        continue;
                    }
                }
            };
            match message {
                Incoming::Frame(frame) => {
                    let admitted = self.options.admission.epoch;
                    let (timeline, lsn, data) =
                        checks::frame(frame, admitted, &mut unpacker).map_err(StreamEnd::Again)?;
                    if data.is_empty() {
                        continue;
                    }
                    // Before it is stored: it may be durable, and its acknowledgement due, before
                    // this task goes on.
                    let upto_lsn = lsn + data.len() as u64;
                    arrived.send_modify(|arrived| arrived.upto_lsn = upto_lsn);
                    if few.timeline.is_some_and(|before| before != timeline) {
                        self.store(few).await?;
                    }
                    few.push(timeline, lsn, data);
                    if few.bytes > FEW_BYTES_MAX {
                        self.store(few).await?;
                    }
                }
                Incoming::TimelineSwitch(switch) => {
                    self.store(few).await?;
                    self.switch(switch).await?;
                }
                Incoming::Heartbeat(heartbeat) => {
                    checks::epoch(heartbeat.epoch, self.options.admission.epoch)
                        .map_err(StreamEnd::Again)?;
                    let received = SourceHeartbeat {
                        flush_lsn: Lsn(heartbeat.flush_lsn),
                        released_lsn: Lsn(heartbeat.released_lsn),
                        received_at: self.clock.now(),
                    };
                    self.status.send_modify(|status| status.heartbeat = Some(received));
                    arrived.send_modify(|arrived| arrived.heartbeat_ns = heartbeat.sent_ns);
                }
                Incoming::Refused(refused) => return Err(refused_end(refused)),
                Incoming::Attached(_) => return Err(StreamEnd::again("attached twice")),
            }
        }
    }

    /// Brings into the journal what came together: a little here and now, more by its own thread.
    async fn store(&self, few: &mut Few) -> Result<(), StreamEnd> {
        let Few { timeline: Some(timeline), frames, bytes } = std::mem::take(few) else {
            return Ok(());
        };
        let (journal, epoch) = (&self.options.journal, self.options.admission.epoch);
        let here = bytes <= FEW_BYTES_MAX && !self.disk_is_slow();
        if !(here && self.store_now(epoch, timeline, &frames)?) {
            for (lsn, data) in frames {
                journal.append(epoch, timeline, lsn, data).await?;
            }
        }
        Ok(())
    }

    fn store_now(
        &self,
        epoch: Epoch,
        timeline: Timeline,
        frames: &[(Lsn, Bytes)],
    ) -> Result<bool, AppendError> {
        let begun = Instant::now();
        let done = self.options.journal.append_now(epoch, timeline, frames)?;
        if begun.elapsed() > SYNC_PATIENCE {
            self.slow_until.set(Some(Instant::now() + SLOW_DISK_MEMORY));
        }
        Ok(done)
    }

    /// A disk that took long a moment ago is waited for by the journal's thread, not by this one, on
    /// which the connection is kept alive.
    fn disk_is_slow(&self) -> bool {
        self.slow_until.get().is_some_and(|until| Instant::now() < until)
    }

    async fn switch(&self, switch: v1::TimelineSwitch) -> Result<(), StreamEnd> {
        let epoch = self.options.admission.epoch;
        let (timeline, fork_lsn) = checks::switch(&switch, epoch).map_err(StreamEnd::Again)?;
        tracing::info!(%timeline, %fork_lsn, "following the holder's timeline");
        let journal = &self.options.journal;
        Ok(journal.switch_timeline(epoch, timeline, &switch.history, fork_lsn).await?)
    }

    /// Acknowledges at once what became durable, and repeats the position while nothing happens.
    async fn acknowledge(
        &self,
        outbound: &mpsc::Sender<v1::ToSource>,
        mut arrived: watch::Receiver<Arrived>,
    ) -> Result<std::convert::Infallible, StreamEnd> {
        let mut positions = self.options.journal.positions();
        let left_over = positions.borrow().as_ref().and_then(|position| position.error.clone());
        let mut standby = self.options.standby.clone();
        let mut standby_open = true;
        let mut tick = interval(ACK_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut standby_told = Instant::now();
        loop {
            let position = positions.borrow_and_update().clone();
            let position = position.ok_or_else(|| StreamEnd::again("the journal was emptied"))?;
            if let Some(error) = &position.error {
                if error.is_fatal() {
                    let error = Arc::clone(error);
                    return Err(StreamEnd::Final(ReceiverEnd::JournalFailed(error)));
                }
                // What an earlier stream left behind goes with the next bytes that are durable. What
                // this one brought has been dropped, and nobody would send it again.
                if left_over.as_ref().is_none_or(|known| !Arc::ptr_eq(known, error)) {
                    return Err(StreamEnd::Again(error.to_string()));
                }
            }
            let ack =
                self.ack(&position, *arrived.borrow_and_update(), *standby.borrow_and_update());
            let ack = v1::ToSource { message: Some(Outgoing::Ack(ack)) };
            if outbound.send(ack).await.is_err() {
                return Err(StreamEnd::again("the holder ended the stream"));
            }
            // A standby that replays fast must not turn into a flood of acknowledgements.
            let quiet = standby_told.elapsed() < Duration::from_millis(5);
            tokio::select! {
                changed = positions.changed() => {
                    changed.map_err(|_| StreamEnd::again("the journal was closed"))?;
                }
                changed = standby.changed(), if standby_open && !quiet => {
                    standby_open = changed.is_ok();
                    standby_told = Instant::now();
                }
                _ = tick.tick() => {}
            }
        }
    }

    fn ack(
        &self,
        position: &JournalPositions,
        arrived: Arrived,
        standby: StandbyProgress,
    ) -> v1::Ack {
        // What an earlier stream had queued may become durable now; the source of this one has not
        // sent it yet and would take it for a false claim.
        let durable_lsn = position.durable_lsn.min(arrived.upto_lsn);
        v1::Ack {
            epoch: Some(self.options.admission.epoch.into()),
            promotion: self.options.admission.promotion.to_string(),
            timeline: position.timeline.get(),
            written_lsn: position.written_lsn.min(arrived.upto_lsn).0,
            durable_lsn: durable_lsn.0,
            replay_lsn: standby.replay_lsn.unwrap_or(Lsn::ZERO).min(durable_lsn).0,
            feedback: standby.feedback.map(|feedback| v1::HotStandbyFeedback {
                xmin: feedback.xmin,
                xmin_epoch: feedback.xmin_epoch,
                catalog_xmin: feedback.catalog_xmin,
                catalog_xmin_epoch: feedback.catalog_xmin_epoch,
            }),
            heartbeat_ns: arrived.heartbeat_ns,
            begin_lsn: if self.options.only_journal { position.begin_lsn.0 } else { 0 },
        }
    }
}

type Received = Option<Result<v1::FromSource, tonic::Status>>;

fn message_in(received: Received) -> Result<Incoming, StreamEnd> {
    match received {
        Some(Ok(v1::FromSource { message: Some(message) })) => Ok(message),
        Some(Ok(_)) => Err(StreamEnd::again("the holder sent an unknown message")),
        Some(Err(status)) => Err(StreamEnd::again(status.message())),
        None => Err(StreamEnd::again("the holder ended the stream")),
    }
}

/// What has arrived already, if anything has.
async fn at_hand(inbound: &mut tonic::Streaming<v1::FromSource>) -> Option<Received> {
    // The event loop looks at the socket in the first turn, and whoever reads it is woken for the second.
    for _ in 0..2 {
        if let Some(received) = inbound.next().now_or_never() {
            return Some(received);
        }
        tokio::task::yield_now().await;
    }
    inbound.next().now_or_never()
}

/// What this stream has brought.
#[derive(Clone, Copy, Debug)]
struct Arrived {
    /// The end of the frames that came, in the journal or on their way there; at first the position attached at.
    upto_lsn: Lsn,
    /// The newest heartbeat's clock, to be echoed.
    heartbeat_ns: u64,
}

/// Whether a refusal is the core's business or only a matter of time.
fn refused_end(refused: v1::Refused) -> StreamEnd {
    let reason = refused.reason();
    let epoch = refused.epoch.map(Epoch::from).unwrap_or_default();
    match reason {
        Reason::NotHolder | Reason::Unspecified => {
            StreamEnd::Again(format!("refused: {}", refused.detail))
        }
        Reason::StaleEpoch
        | Reason::NewerEpoch
        | Reason::Diverged
        | Reason::WalGone
        | Reason::WrongCluster => {
            StreamEnd::Final(ReceiverEnd::Refused { reason, detail: refused.detail, epoch })
        }
    }
}

/// Runs a journal operation that waits for the disk where it holds up nobody else.
fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> {
    let task = tokio::task::spawn_blocking(work);
    async move { task.await.expect("the journal operation panicked") }
}
