//! One receiver's stream: compared, attached, sent WAL, and listened to.
//!
//! Sending and listening run side by side, so that a receiver that reads slowly still has its
//! acknowledgements heard, and a full channel holds up nothing but its own walsender. A receiver's
//! position counts only once it has acknowledged in this very session: where it *wanted to start* is a
//! claim, not an acknowledgement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::Status;
use understudy_proto::v1::from_source::Message as Outgoing;
use understudy_proto::v1::refused::Reason;
use understudy_proto::v1::{self, to_source::Message as Incoming};
use understudy_types::{BootInstant, Epoch, Lsn, NodeId, ReceiverPosition, Timeline};
use understudy_wal::protocol::HotStandbyFeedback;

use super::Peer;
use super::attach::{Refusal, ValidAttach, validate, validate_ack};
use super::feed::{Feed, FeedError, FeedEvent, StatusLine};
use super::state::Shared;
use crate::compression::{Compression, Packer};

/// The largest frame.
const FRAME_BYTES_MAX: usize = 256 * 1024;
/// While idle a receiver hears from its source this often.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// The slot follows, and feedback is passed on, this often.
const STATUS_TICK: Duration = Duration::from_millis(50);
/// An unchanged status and feedback are repeated this often, to keep the walsender from timing out.
const STATUS_REPEAT: Duration = Duration::from_secs(5);
/// A stream that does not open with an attach in this time ends.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(5);
/// For the session that is replaced to let go of the slot.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(5);
/// For reading the bytes that are compared; they are there already.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(60);
/// A receiver that has confirmed everything stays attached for this long after its walsender's end.
const STAY_MAX: Duration = Duration::from_secs(2);

type Outbound = mpsc::Sender<Result<v1::FromSource, Status>>;

/// How a session ended, other than by its receiver going away.
enum End {
    Refused(Refusal),
    Failed(Status),
    Gone,
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> End {
        End::Refused(refusal)
    }
}

impl From<FeedError> for End {
    fn from(error: FeedError) -> End {
        match &error {
            FeedError::Gone { .. } => Refusal::new(Reason::WalGone, error.to_string()).into(),
            FeedError::Ahead { .. } => Refusal::new(Reason::Diverged, error.to_string()).into(),
            FeedError::Primary(_)
            | FeedError::Journal(_)
            | FeedError::OutOfOrder { .. }
            | FeedError::NoNextTimeline { .. }
            | FeedError::WrongServer => {
                let cause = std::error::Error::source(&error);
                let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
                End::Failed(Status::unavailable(format!("{error}{cause}")))
            }
        }
    }
}

/// Serves one stream to its end.
pub(super) async fn run<S>(shared: Arc<Shared>, peer: Peer, mut inbound: S, outbound: Outbound)
where
    S: Stream<Item = Result<v1::ToSource, Status>> + Send + Unpin,
{
    let node = peer.node;
    let ended = match first_message(&shared, &mut inbound, &peer).await {
        Ok(attach) => {
            let (session, replaced) = shared.enter(node);
            if let Some(replaced) = replaced {
                // At worst the slot is still in use, which the feed waits for as well.
                let _ = timeout(REPLACE_TIMEOUT, replaced.done()).await;
            }
            let ended = tokio::select! {
                ended = begin_and_serve(&shared, &peer, attach, &mut inbound, &outbound) => ended,
                () = session.cancel.cancelled() => End::Gone,
                () = outbound.closed() => End::Gone,
            };
            shared.leave(node, &session);
            ended
        }
        Err(end) => end,
    };
    let last = match ended {
        End::Refused(refusal) => {
            let (reason, detail) = (refusal.reason, refusal.detail.as_str());
            tracing::warn!(%node, ?reason, detail, "receiver refused");
            Ok(refusal.message(shared.options.identity.epoch))
        }
        End::Failed(status) => {
            tracing::warn!(%node, error = status.message(), "stream to receiver failed");
            Err(status)
        }
        End::Gone => {
            tracing::info!(%node, "stream to receiver ended");
            return;
        }
    };
    // A receiver that does not even read this is cut off all the same.
    let _ = timeout(ATTACH_TIMEOUT, outbound.send(last)).await;
}

async fn first_message<S>(shared: &Shared, inbound: &mut S, peer: &Peer) -> Result<ValidAttach, End>
where
    S: Stream<Item = Result<v1::ToSource, Status>> + Send + Unpin,
{
    let first = match timeout(ATTACH_TIMEOUT, inbound.next()).await {
        Ok(Some(Ok(message))) => message.message,
        Ok(Some(Err(_)) | None) => return Err(End::Gone),
        Err(_) => return Err(End::Failed(Status::deadline_exceeded("no attach came"))),
    };
    let Some(Incoming::Attach(attach)) = first else {
        return Err(End::Failed(Status::invalid_argument("the first message is not an attach")));
    };
    note_epoch(shared, attach.epoch);
    Ok(validate(&attach, &shared.options.identity, peer.node)?)
}

/// Tells the core if somebody speaks of a newer epoch.
fn note_epoch(shared: &Shared, epoch: Option<v1::Epoch>) {
    let Some(epoch) = epoch.map(Epoch::from) else { return };
    if epoch > shared.options.identity.epoch {
        shared.newer_epoch.send_if_modified(|known| {
            let newer = known.is_none_or(|known| known < epoch);
            if newer {
                *known = Some(epoch);
            }
            newer
        });
    }
}

async fn begin_and_serve<S>(
    shared: &Arc<Shared>,
    peer: &Peer,
    attach: ValidAttach,
    inbound: &mut S,
    outbound: &Outbound,
) -> End
where
    S: Stream<Item = Result<v1::ToSource, Status>> + Send + Unpin,
{
    if !attach.begin_at_tip {
        return serve(shared, peer, &attach, inbound, outbound).await;
    }
    let flush_lsn = shared.progress.borrow().flush_lsn;
    if flush_lsn == Lsn::ZERO {
        let words = "how far the primary's WAL reaches is not known yet";
        return End::Failed(Status::unavailable(words));
    }
    let options = &shared.options;
    let attach = attach.at_tip(&options.identity, flush_lsn, options.segment_size);
    serve(shared, peer, &attach, inbound, outbound).await
}

async fn serve<S>(
    shared: &Arc<Shared>,
    peer: &Peer,
    attach: &ValidAttach,
    inbound: &mut S,
    outbound: &Outbound,
) -> End
where
    S: Stream<Item = Result<v1::ToSource, Status>> + Send + Unpin,
{
    let mut feed = Feed::new(Arc::clone(shared), peer.name.as_str(), attach);
    let leftover = match timeout(COMPARE_TIMEOUT, compare(&mut feed, attach)).await {
        Ok(Ok(leftover)) => leftover,
        Ok(Err(end)) => return end,
        Err(_) => return End::Failed(Status::deadline_exceeded("comparing took too long")),
    };
    let sent_lsn = AtomicU64::new(attach.start_lsn.0);
    let status = Arc::clone(&feed.status);
    let mut sender = Sending {
        shared,
        outbound,
        sent_lsn: &sent_lsn,
        timeline: attach.timeline,
        node: peer.node,
        compression: Compression::default(),
        packer: Packer::new().ok().filter(|_| attach.zstd),
    };
    let mut listener = Listening {
        shared,
        peer,
        status: &status,
        sent_lsn: &sent_lsn,
        position: None,
        written_lsn: Lsn::ZERO,
        feedback: None,
    };
    let (node, start_lsn, timeline) = (peer.node, attach.start_lsn, attach.timeline);
    tracing::info!(%node, %start_lsn, %timeline, "receiver attached");
    let ended = tokio::select! {
        end = sender.run(&mut feed, attach, leftover) => end,
        end = listener.run(inbound) => return end,
    };
    if let End::Failed(_) = ended {
        stay_until_released(shared, listener.position, Lsn(sent_lsn.load(Ordering::SeqCst))).await;
    }
    ended
}

/// At a fast stop the walsender behind a session ends as soon as the receiver has confirmed everything,
/// which may be before the gate has seen the last WAL on its own connection. A receiver that is detached
/// counts for nothing there, so PostgreSQL would wait for the gate until the stop is given up: whoever has
/// confirmed everything stays attached until the gate has used it, for a moment at most.
async fn stay_until_released(shared: &Shared, position: Option<ReceiverPosition>, sent_lsn: Lsn) {
    let Some(position) = position.filter(|position| position.durable_lsn == sent_lsn) else {
        return;
    };
    let mut progress = shared.progress.subscribe();
    let released = progress.wait_for(|progress| progress.released_lsn >= position.durable_lsn);
    // Not released in time, or the gate is gone: then there is nothing to stay for.
    let _ = timeout(STAY_MAX, released).await;
}

/// I12: reads the receiver's tail from here and compares it, before a single byte is sent.
///
/// Returns what was read beyond it.
async fn compare(feed: &mut Feed, attach: &ValidAttach) -> Result<Option<(Lsn, Bytes)>, End> {
    feed.open().await?;
    let mut hasher = Sha256::new();
    let mut lsn = attach.tail_lsn;
    let mut leftover = None;
    while lsn < attach.start_lsn {
        feed.open().await?;
        match feed.next().await? {
            FeedEvent::Data { lsn: at, bytes } => {
                let wanted = attach.start_lsn.bytes_since(at).min(bytes.len() as u64);
                let wanted = usize::try_from(wanted).expect("it is at most a buffer's length");
                hasher.update(&bytes[..wanted]);
                lsn = Lsn(at.0 + wanted as u64);
                if wanted < bytes.len() {
                    leftover = Some((lsn, bytes.slice(wanted..)));
                }
            }
            FeedEvent::Switch { timeline, fork_lsn, .. } if timeline > attach.timeline => {
                let held = attach.timeline;
                let detail = format!("timeline {held} was left at {fork_lsn}");
                return Err(Refusal::new(Reason::Diverged, detail).into());
            }
            FeedEvent::Switch { .. } | FeedEvent::Idle => {}
        }
    }
    let nothing_held = attach.tail_lsn == attach.start_lsn;
    if !nothing_held && hasher.finalize().as_slice() != attach.tail_sha256.as_slice() {
        let (from, to) = (attach.tail_lsn, attach.start_lsn);
        let detail = format!("the receiver's WAL from {from} to {to} is other WAL");
        return Err(Refusal::new(Reason::Diverged, detail).into());
    }
    Ok(leftover)
}

struct Sending<'a> {
    shared: &'a Shared,
    outbound: &'a Outbound,
    /// Everything before this may have been sent; an acknowledgement cannot go beyond it.
    sent_lsn: &'a AtomicU64,
    /// The receiver's timeline.
    timeline: Timeline,
    node: NodeId,
    compression: Compression,
    /// `None` where the receiver cannot read it.
    packer: Option<Packer>,
}

impl Sending<'_> {
    async fn run(
        &mut self,
        feed: &mut Feed,
        attach: &ValidAttach,
        leftover: Option<(Lsn, Bytes)>,
    ) -> End {
        match self.stream(feed, attach, leftover).await {
            Ok(()) => End::Gone,
            Err(end) => end,
        }
    }

    async fn stream(
        &mut self,
        feed: &mut Feed,
        attach: &ValidAttach,
        leftover: Option<(Lsn, Bytes)>,
    ) -> Result<(), End> {
        let identity = &self.shared.options.identity;
        self.send(Outgoing::Attached(v1::Attached {
            epoch: Some(identity.epoch.into()),
            promotion: identity.promotion.to_string(),
            system_id: identity.system_id.0,
            segment_size_bytes: self.shared.options.segment_size.into(),
            timeline: attach.timeline.get(),
            start_lsn: attach.start_lsn.0,
        }))
        .await?;
        self.heartbeat();
        if let Some((lsn, bytes)) = leftover {
            self.data(feed.timeline(), lsn, bytes).await?;
        }
        let mut progress = self.shared.progress.subscribe();
        let mut tick = interval(HEARTBEAT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut news_at = Instant::now();
        loop {
            feed.open().await?;
            tokio::select! {
                event = feed.next() => match event? {
                    FeedEvent::Data { lsn, bytes } => self.data(feed.timeline(), lsn, bytes).await?,
                    FeedEvent::Switch { timeline, fork_lsn, raw_history } => {
                        self.switch(timeline, fork_lsn, raw_history).await?;
                    }
                    FeedEvent::Idle => {}
                },
                // The gate's thread outlives its sessions, so this cannot spin on a closed channel.
                _ = progress.changed(), if news_at.elapsed() >= Duration::from_millis(5) => {
                    news_at = Instant::now();
                    self.heartbeat();
                }
                _ = tick.tick() => self.heartbeat(),
            }
        }
    }

    async fn data(&mut self, timeline: Timeline, lsn: Lsn, mut bytes: Bytes) -> Result<(), End> {
        let mut lsn = lsn;
        while !bytes.is_empty() {
            let data = bytes.split_to(bytes.len().min(FRAME_BYTES_MAX));
            let next_lsn = Lsn(lsn.0 + data.len() as u64);
            // Before the frame: the acknowledgement may be back before `send` returns.
            self.sent_lsn.store(next_lsn.0, Ordering::SeqCst);
            let crc32c = crc32c::crc32c(&data);
            let (data, raw_bytes) = self.pack(data);
            let bytes = data.len();
            let frame = Outgoing::Frame(v1::Frame {
                epoch: Some(self.shared.options.identity.epoch.into()),
                timeline: timeline.get(),
                lsn: lsn.0,
                crc32c,
                data,
                raw_bytes,
            });
            let begun = Instant::now();
            self.send(frame).await?;
            self.decide(bytes, begun.elapsed());
            lsn = next_lsn;
        }
        Ok(())
    }

    /// The bytes as they go on the line, and how many they were, if they are compressed.
    fn pack(&mut self, data: Bytes) -> (Bytes, u32) {
        let wanted = self.compression.wants(data.len());
        let Some(packer) = &mut self.packer else { return (data, 0) };
        if !wanted && !self.compression.wants_a_try(data.len()) {
            return (data, 0);
        }
        let begun = Instant::now();
        match packer.pack(&data) {
            Ok(packed) => {
                self.compression.packed(data.len(), packed.len(), begun.elapsed());
                let raw_bytes = u32::try_from(data.len()).unwrap_or(0);
                let smaller = wanted && packed.len() < data.len() && raw_bytes > 0;
                if smaller { (packed.into(), raw_bytes) } else { (data, 0) }
            }
            Err(error) => {
                tracing::warn!(%error, "WAL is not compressed");
                self.packer = None;
                (data, 0)
            }
        }
    }

    fn decide(&mut self, bytes: usize, waited: Duration) {
        let now = self.shared.clock.now().since(BootInstant::ZERO);
        if let Some(seen) = self.compression.sent(now, bytes, waited) {
            self.shared.compression_seen(self.node, seen);
        }
    }

    async fn switch(&mut self, to: Timeline, fork_lsn: Lsn, history: Bytes) -> Result<(), End> {
        // A receiver that is there already holds the fork and the history.
        if to <= self.timeline {
            return Ok(());
        }
        self.timeline = to;
        self.send(Outgoing::TimelineSwitch(v1::TimelineSwitch {
            epoch: Some(self.shared.options.identity.epoch.into()),
            timeline: to.get(),
            fork_lsn: fork_lsn.0,
            history: history.into(),
        }))
        .await
    }

    /// A sign of life, unless the channel is full of better ones.
    fn heartbeat(&self) {
        let progress = *self.shared.progress.borrow();
        let heartbeat = v1::Heartbeat {
            epoch: Some(self.shared.options.identity.epoch.into()),
            flush_lsn: progress.flush_lsn.0,
            released_lsn: progress.released_lsn.0,
            sent_ns: self.shared.clock.now().0,
        };
        let _ = self.outbound.try_send(Ok(message(Outgoing::Heartbeat(heartbeat))));
    }

    async fn send(&self, outgoing: Outgoing) -> Result<(), End> {
        self.outbound.send(Ok(message(outgoing))).await.map_err(|_| End::Gone)
    }
}

fn message(outgoing: Outgoing) -> v1::FromSource {
    v1::FromSource { message: Some(outgoing) }
}

struct Listening<'a> {
    shared: &'a Shared,
    peer: &'a Peer,
    status: &'a StatusLine,
    sent_lsn: &'a AtomicU64,
    /// As acknowledged in this session.
    position: Option<ReceiverPosition>,
    written_lsn: Lsn,
    feedback: Option<HotStandbyFeedback>,
}

impl Listening<'_> {
    async fn run<S>(&mut self, inbound: &mut S) -> End
    where
        S: Stream<Item = Result<v1::ToSource, Status>> + Send + Unpin,
    {
        let mut tick = interval(STATUS_TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = (Lsn::ZERO, Lsn::ZERO, None);
        let mut told_feedback = None;
        let mut told_at = Instant::now();
        loop {
            let mut asked = false;
            tokio::select! {
                incoming = inbound.next() => {
                    match incoming {
                        Some(Ok(v1::ToSource { message: Some(Incoming::Ack(ack)) })) => {
                            if let Err(end) = self.acknowledged(&ack) {
                                return end;
                            }
                        }
                        Some(Ok(_)) => {
                            let status = Status::invalid_argument("only acknowledgements may follow");
                            return End::Failed(status);
                        }
                        Some(Err(_)) | None => return End::Gone,
                    }
                    continue;
                }
                () = self.status.wanted.notified() => asked = true,
                _ = tick.tick() => {}
            }
            let durable_lsn = self.position.map_or(Lsn::ZERO, |position| position.durable_lsn);
            let replay_lsn = self.position.and_then(|position| position.replay_lsn);
            let now_told = (self.written_lsn, durable_lsn, replay_lsn);
            let repeat = told_at.elapsed() >= STATUS_REPEAT;
            let Some(sender) = self.status.sender() else { continue };
            // A walsender that has gone shows at the reading end; here a failure is nobody's news.
            if asked || repeat || now_told != told {
                told = now_told;
                told_at = Instant::now();
                let applied = replay_lsn.unwrap_or(Lsn::ZERO);
                let _ = sender.send_status(self.written_lsn, durable_lsn, applied, false).await;
            }
            if let Some(feedback) = self.feedback
                && (repeat || told_feedback != Some(feedback))
            {
                told_feedback = Some(feedback);
                let _ = sender.send_feedback(feedback).await;
            }
        }
    }

    fn acknowledged(&mut self, ack: &v1::Ack) -> Result<(), End> {
        let identity = &self.shared.options.identity;
        note_epoch(self.shared, ack.epoch);
        let sent_lsn = Lsn(self.sent_lsn.load(Ordering::SeqCst));
        let before = self.position.map_or(Lsn::ZERO, |position| position.durable_lsn);
        let position = validate_ack(ack, identity, self.peer.node, before..=sent_lsn)
            .map_err(|fault| End::Failed(fault.into()))?;
        let durable_lsn = position.durable_lsn;
        self.written_lsn = Lsn(ack.written_lsn).max(durable_lsn);
        self.feedback = ack.feedback.map(|feedback| HotStandbyFeedback {
            xmin: feedback.xmin,
            xmin_epoch: feedback.xmin_epoch,
            catalog_xmin: feedback.catalog_xmin,
            catalog_xmin_epoch: feedback.catalog_xmin_epoch,
        });
        if self.position != Some(position) {
            self.position = Some(position);
            self.shared.acknowledged(position);
        }
        Ok(())
    }
}
