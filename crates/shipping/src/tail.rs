//! What a candidate lacks and another sealed journal has: sealing it, serving its tail, fetching it.
//!
//! Where k of n suffice for a commit, the candidate's own journal need not have what was acknowledged; one
//! of any n - k + 1 of them has (decision 0029). Which journals have to be asked is the core's decision.
//! Whoever serves has sealed first, so nothing is added behind what it says; whoever fetches compares the
//! last record that both have before it stores anything, and what it stores is verified like any WAL.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use understudy_proto::v1::wal_client::WalClient;
use understudy_proto::{parse_timeline, v1};
use understudy_types::{
    Admission, Epoch, Lsn, PermitSerial, PromotionId, SealedEnd, SystemId, Timeline,
};

use crate::compression::Unpacking;
use crate::journal::{AppendError, Journal, JournalError, ReadOutcome};
use crate::receiver::checks;

/// For a journal to be sealed: everything queued there is made durable first.
const SEAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two frames of a tail; more is a node that does not answer.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Of WAL in one frame.
const FRAME_BYTES: usize = 256 * 1024;
/// Frames that wait for the network.
const FRAMES_MAX: usize = 8;

/// The end of another node's journal, sealed for this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSeal {
    /// Whose WAL it is.
    pub system_id: SystemId,
    /// Of the last byte.
    pub timeline: Timeline,
    /// Everything before it is verified and durable there.
    pub durable_lsn: Lsn,
    /// Its first byte: what lies before cannot be fetched from there.
    pub begin_lsn: Lsn,
}

/// A tail could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The other node did not answer, or refused.
    #[error("ask the other node for it")]
    Call(#[source] Status),
    /// The other node fell silent.
    #[error("the other node has sent nothing for {SILENCE_MAX:?}")]
    Silent,
    /// It ended before what it had promised.
    #[error("the other node sent WAL up to {have_lsn} only, {wanted_lsn} was promised")]
    Short {
        /// What is here now.
        have_lsn: Lsn,
        /// What should be.
        wanted_lsn: Lsn,
    },
    /// What it sent cannot be what was asked for.
    #[error("the other node sent something else: {0}")]
    Wrong(String),
    /// The own journal refuses it.
    #[error("store it")]
    Append(#[from] AppendError),
    /// The own journal cannot go on.
    #[error("the own journal")]
    Journal(#[from] JournalError),
}

/// Has the node behind `channel` seal its journal for `epoch`; `None` when that is empty.
///
/// # Errors
/// What it answered instead: `FailedPrecondition` while it does not know of the promotion yet.
pub async fn seal_at(channel: Channel, epoch: Epoch) -> Result<Option<PeerSeal>, Status> {
    let request = v1::SealRequest { epoch: Some(epoch.into()) };
    let mut client = WalClient::new(channel);
    let answer = within(SEAL_TIMEOUT, client.seal(request)).await?.into_inner();
    let Some(sealed) = answer.sealed else { return Ok(None) };
    let timeline = parse_timeline("sealed.timeline", sealed.timeline)
        .map_err(|error| Status::internal(error.to_string()))?;
    Ok(Some(PeerSeal {
        system_id: SystemId(sealed.system_id),
        timeline,
        durable_lsn: Lsn(sealed.durable_lsn),
        begin_lsn: Lsn(sealed.begin_lsn),
    }))
}

async fn within<T>(
    patience: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let silent = || Status::deadline_exceeded(format!("no answer within {patience:?}"));
    tokio::time::timeout(patience, call).await.map_err(|_| silent())?
}

/// Brings the journal, sealed for `epoch`, up to `seal` from the node behind `channel`, and seals it again.
///
/// # Errors
/// When the other node does not give it, it does not fit, or it cannot be stored. The journal holds a
/// part of it then, verified like the whole, and admits nothing older than `epoch`.
pub async fn fetch(
    channel: Channel,
    journal: &Journal,
    epoch: Epoch,
    seal: PeerSeal,
) -> Result<Option<SealedEnd>, TailError> {
    let (held, tail) = {
        let journal = journal.clone();
        blocking(move || Ok::<_, JournalError>((journal.identity(), journal.tail()?))).await?
    };
    let Some(tail) = tail else { return Err(JournalError::Empty.into()) };
    let same = held.is_some_and(|(system_id, _)| system_id == seal.system_id);
    if !same || tail.timeline != seal.timeline {
        let words = format!(
            "it holds timeline {} of system {}, this journal is on timeline {}",
            seal.timeline, seal.system_id, tail.timeline
        );
        return Err(TailError::Wrong(words));
    }
    let from_lsn = tail.durable_lsn;
    let request = v1::FetchTailRequest {
        epoch: Some(epoch.into()),
        timeline: tail.timeline.get(),
        tail_lsn: tail.tail_lsn.0,
        tail_sha256: tail.sha256.to_vec(),
        from_lsn: from_lsn.0,
        to_lsn: seal.durable_lsn.0,
    };
    let mut client = WalClient::new(channel);
    let mut frames = within(SILENCE_MAX, client.fetch_tail(request))
        .await
        .map_err(TailError::Call)?
        .into_inner();
    // The epoch's own admission: whatever is older stays refused.
    let admission = Admission {
        serial: PermitSerial::default(),
        epoch,
        promotion: PromotionId(uuid::Uuid::nil()),
        timeline: tail.timeline,
    };
    let admitting = journal.clone();
    blocking(move || admitting.admit(admission)).await?;
    let stored = store(&mut frames, journal, epoch, tail.timeline).await;
    let sealing = journal.clone();
    let sealed = blocking(move || sealing.seal(epoch)).await?;
    stored?;
    let have_lsn = sealed.map_or(Lsn::ZERO, |sealed| sealed.durable_lsn);
    if have_lsn < seal.durable_lsn {
        return Err(TailError::Short { have_lsn, wanted_lsn: seal.durable_lsn });
    }
    Ok(sealed)
}

async fn store(
    frames: &mut tonic::Streaming<v1::Frame>,
    journal: &Journal,
    epoch: Epoch,
    timeline: Timeline,
) -> Result<(), TailError> {
    let mut unpacking = Unpacking::default();
    loop {
        let next = tokio::time::timeout(SILENCE_MAX, frames.next()).await;
        let Some(frame) = next.map_err(|_| TailError::Silent)? else { return Ok(()) };
        let frame = frame.map_err(TailError::Call)?;
        let (of, lsn, data) =
            checks::frame(frame, epoch, &mut unpacking).map_err(TailError::Wrong)?;
        if of != timeline {
            return Err(TailError::Wrong(format!("WAL of timeline {of}")));
        }
        journal.append(epoch, timeline, lsn, data).await?;
    }
}

/// Serves what `request` asks for: the body of the `Wal.FetchTail` call. Needs a tokio runtime around it.
///
/// # Errors
/// When the journal is not sealed for that epoch, holds something else where both should be equal, or does
/// not hold what is asked for.
pub async fn serve(
    journal: Journal,
    request: v1::FetchTailRequest,
) -> Result<ReceiverStream<Result<v1::Frame, Status>>, Status> {
    let epoch = request.epoch.map(Epoch::from).unwrap_or_default();
    let timeline = parse_timeline("timeline", request.timeline)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let sealed = journal.sealed().filter(|sealed| sealed.epoch == epoch);
    let Some(sealed) = sealed else {
        return Err(Status::failed_precondition(format!(
            "this journal is not sealed for epoch {epoch}"
        )));
    };
    let (from_lsn, to_lsn) = (Lsn(request.from_lsn), Lsn(request.to_lsn));
    if timeline != sealed.timeline || to_lsn > sealed.durable_lsn || from_lsn > to_lsn {
        return Err(Status::failed_precondition(format!(
            "{from_lsn} to {to_lsn} of timeline {timeline} is asked for; this journal was sealed at {} of \
             timeline {}",
            sealed.durable_lsn, sealed.timeline
        )));
    }
    let (compared, theirs) = (journal.clone(), request.tail_sha256);
    let tail_lsn = Lsn(request.tail_lsn);
    let own = blocking(move || digest(&compared, timeline, tail_lsn, from_lsn))
        .await
        .map_err(not_held)?;
    if own[..] != theirs[..] {
        return Err(Status::new(
            Code::FailedPrecondition,
            format!(
                "the WAL from {tail_lsn} to {from_lsn} is another one here: the two have diverged"
            ),
        ));
    }
    let (sender, frames) = mpsc::channel(FRAMES_MAX);
    tokio::task::spawn_blocking(move || send(&journal, epoch, timeline, from_lsn, to_lsn, &sender));
    Ok(ReceiverStream::new(frames))
}

fn not_held(error: JournalError) -> Status {
    Status::failed_precondition(error.to_string())
}

/// SHA-256 of the journal's bytes in a range that it holds.
fn digest(
    journal: &Journal,
    timeline: Timeline,
    from_lsn: Lsn,
    to_lsn: Lsn,
) -> Result<[u8; 32], JournalError> {
    let mut hash = Sha256::new();
    read(journal, timeline, from_lsn, to_lsn, |_, bytes| {
        hash.update(&bytes);
        true
    })?;
    Ok(hash.finalize().into())
}

/// Hands on the bytes of a range in order, until `take` says that it has enough.
fn read(
    journal: &Journal,
    timeline: Timeline,
    from_lsn: Lsn,
    to_lsn: Lsn,
    mut take: impl FnMut(Lsn, Bytes) -> bool,
) -> Result<(), JournalError> {
    let mut reader = journal.reader(timeline, from_lsn)?;
    while reader.position() < to_lsn {
        let left = usize::try_from(to_lsn.bytes_since(reader.position())).unwrap_or(usize::MAX);
        let position = reader.position();
        match reader.read(left.min(FRAME_BYTES))? {
            ReadOutcome::Data { lsn, bytes } => {
                if !take(lsn, bytes) {
                    return Ok(());
                }
            }
            ReadOutcome::AtDurableEnd | ReadOutcome::TimelineEnd { .. } => {
                return Err(JournalError::NotHeld { timeline, lsn: position });
            }
        }
    }
    Ok(())
}

fn send(
    journal: &Journal,
    epoch: Epoch,
    timeline: Timeline,
    from_lsn: Lsn,
    to_lsn: Lsn,
    sender: &mpsc::Sender<Result<v1::Frame, Status>>,
) {
    let sent = read(journal, timeline, from_lsn, to_lsn, |lsn, data| {
        let frame = v1::Frame {
            epoch: Some(epoch.into()),
            timeline: timeline.get(),
            lsn: lsn.0,
            crc32c: crc32c::crc32c(&data),
            data,
            raw_bytes: 0,
        };
        sender.blocking_send(Ok(frame)).is_ok()
    });
    if let Err(error) = sent {
        // Whoever asked has gone if this cannot be told either.
        let _ = sender.blocking_send(Err(not_held(error)));
    }
}

/// Runs file work off the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("file work does not panic and is not cancelled")
}

#[cfg(test)]
mod tests;
