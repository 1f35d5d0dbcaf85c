//! The journal: WAL as received, verified, durable, in PostgreSQL's own segment files.
//!
//! Acknowledged is only what is fsynced and verified to the end of a complete record (I11), and no
//! such byte is ever overwritten with a different one (I12). It refuses frames of any epoch but the
//! admitted one and keeps the newest epoch it was told, durably (I1). It does not decide who is
//! admitted, nor fetch anything.
//!
//! Its files are changed under one lock (`writer`): by a thread of its own that works off a queue, or,
//! while that has nothing to do, by whoever brings a little and wants it durable at once. The handle can
//! be cloned and used from anywhere. Calls that are not `async` block for a few file operations.

mod commands;
mod error;
mod fetch;
mod files;
mod held;
pub mod inspect;
mod meta;
mod reader;
mod recover;
mod room;
mod tip;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use std::thread::JoinHandle;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, oneshot, watch};
use understudy_types::{
    Admission, Epoch, Lineage, Lsn, SealedEnd, SegmentSize, SystemId, Timeline, TimelineHistory,
};

pub use error::{AppendError, JournalError};
pub use fetch::{GetOutcome, ScanResult, ScanStop, get, scan_pg_wal};
pub(crate) use reader::Ahead;
pub use reader::{JournalReader, ReadOutcome};
pub use room::{Limits, Room};

use files::History;
use held::Chain;
use meta::Meta;
use writer::{Item, Writer};

/// How a journal behaves.
#[derive(Clone, Copy, Debug)]
pub struct JournalOptions {
    /// Bytes that may wait to be written; `append` waits when there are more. Below 4 GiB.
    pub queue_bytes_max: usize,
    /// How much it may hold. What goes over that is refused, and nothing that is held suffers.
    pub limits: Limits,
}

impl Default for JournalOptions {
    fn default() -> Self {
        JournalOptions { queue_bytes_max: 16 * 1024 * 1024, limits: Limits::NONE }
    }
}

/// What a journal holds.
#[derive(Clone, Debug)]
pub struct JournalPositions {
    /// The timeline that its end is on.
    pub timeline: Timeline,
    /// The first byte of those that reach to the end without a gap.
    pub begin_lsn: Lsn,
    /// Written and verified as far as that is possible, maybe within a record, maybe not durable.
    pub written_lsn: Lsn,
    /// Everything before this is durable and verified. The end of a complete record, or of the rest
    /// of one that the journal begins with, or `begin_lsn`.
    pub durable_lsn: Lsn,
    /// What went wrong last. If it `is_fatal`, nothing more will be stored until the journal is
    /// opened again. If not, what was received did not fit or did not verify, and was dropped: go on
    /// from `durable_lsn`. `None` again when more has become durable.
    pub error: Option<Arc<JournalError>>,
}

/// The end of the journal, for comparison with somebody else's WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The timeline of the end.
    pub timeline: Timeline,
    /// The start of the last complete record; where the journal begins if it holds none, so equal to
    /// `durable_lsn` if it was only begun.
    pub tail_lsn: Lsn,
    /// The durable end.
    pub durable_lsn: Lsn,
    /// SHA-256 of the bytes from `tail_lsn` to `durable_lsn`.
    pub sha256: [u8; 32],
}

/// What handles and the writer share.
struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
    wake: Condvar,
    room: Arc<Semaphore>,
    room_bytes: usize,
    positions: watch::Sender<Option<JournalPositions>>,
}

/// The queue, and what the writer has made durable for all to see.
struct State {
    queue: Vec<Item>,
    closing: bool,
    failed: Option<Arc<JournalError>>,
    admitted: Option<Epoch>,
    /// The end of what is written or queued.
    expected_lsn: Option<Lsn>,
    meta: Meta,
    histories: BTreeMap<Timeline, History>,
    timeline: Option<Timeline>,
    durable_lsn: Option<Lsn>,
    last_record_lsn: Option<Lsn>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it changes the state halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    fn why_dropped(&self) -> JournalError {
        match &self.lock().failed {
            Some(error) => JournalError::Failed(Arc::clone(error)),
            None => JournalError::Closed,
        }
    }
}

/// A journal that is open. The last handle dropped writes what is queued and closes it.
#[derive(Clone, Debug)]
pub struct Journal {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    writer: Arc<Mutex<Writer>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("journal writer panicked");
        }
    }
}

impl Journal {
    /// Opens the journal in `dir`, which is created if missing, and finds its durable end from the
    /// files alone. What lies behind that end was never acknowledged and is cleared.
    ///
    /// # Errors
    /// When another process has it open, files cannot be read or written, or contradict each other.
    pub fn open(dir: &Path, options: JournalOptions) -> Result<Journal, JournalError> {
        fs::create_dir_all(dir).map_err(JournalError::io("create directory", dir))?;
        let lock = lock_directory(dir)?;
        Journal::open_locked(dir, options, lock)
    }

    /// Opens a journal of which WAL that was durable is damaged or gone (`LostWal`): as an empty one, with
    /// all of its WAL and history files moved into the empty or missing directory `into`. Epochs stay known;
    /// a sealed end does not.
    ///
    /// # Errors
    /// As `open`, and when `into` has content or files cannot be moved.
    pub fn open_without_wal(
        dir: &Path,
        into: &Path,
        options: JournalOptions,
    ) -> Result<Journal, JournalError> {
        let lock = lock_directory(dir)?;
        files::remove_temporary(dir)?;
        let meta = Meta::load(dir)?.unwrap_or_default();
        files::make_target(into)?;
        files::move_wal(dir, into, files::histories(dir)?.into_keys())?;
        meta.without_wal().store(dir)?;
        Journal::open_locked(dir, options, lock)
    }

    fn open_locked(
        dir: &Path,
        options: JournalOptions,
        lock: File,
    ) -> Result<Journal, JournalError> {
        files::remove_temporary(dir)?;
        let meta = Meta::load(dir)?.unwrap_or_default();
        let histories = files::histories(dir)?;
        let tip = recover::recover(dir, &meta, &histories)?;
        let (positions, _) = watch::channel(None);
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            state: Mutex::new(State {
                queue: Vec::new(),
                closing: false,
                failed: None,
                admitted: None,
                expected_lsn: None,
                meta: meta.clone(),
                histories: histories.clone(),
                timeline: None,
                durable_lsn: None,
                last_record_lsn: None,
            }),
            wake: Condvar::new(),
            room: Arc::new(Semaphore::new(options.queue_bytes_max)),
            room_bytes: options.queue_bytes_max,
            positions,
        });
        let mut writer = Writer {
            shared: Arc::clone(&shared),
            dir: dir.to_owned(),
            meta,
            histories,
            tip,
            limits: options.limits,
            _lock: lock,
        };
        writer.publish(None);
        writer.expect_from_end();
        let writer = Arc::new(Mutex::new(writer));
        let worked_on = Arc::clone(&writer);
        let waited_at = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer::work_off_the_queue(&worked_on, &waited_at))
            .map_err(JournalError::io("start the writer of", dir))?;
        Ok(Journal { inner: Arc::new(Inner { shared, writer, thread: Some(thread) }) })
    }

    /// The newest epoch it was ever told.
    pub fn max_epoch(&self) -> Epoch {
        self.inner.shared.lock().meta.max_epoch
    }

    /// The end that was sealed, while no later epoch has been admitted; also after a restart.
    pub fn sealed(&self) -> Option<SealedEnd> {
        self.inner.shared.lock().meta.sealed.and_then(|seal| seal.end)
    }

    /// Makes `epoch` the newest known, if it is, durably; an older one changes nothing. An admission
    /// of an older epoch ends.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn raise_epoch(&self, epoch: Epoch) -> Result<(), JournalError> {
        self.call(move |writer| writer.raise_epoch(epoch))
    }

    /// Ends the admission, makes what is queued durable, then the epoch and the end; frames of older
    /// epochs are refused from now on, also after a restart. `None` when the journal is empty.
    ///
    /// # Errors
    /// When a newer epoch is known, or it cannot be made durable.
    pub fn seal(&self, epoch: Epoch) -> Result<Option<SealedEnd>, JournalError> {
        {
            let mut state = self.inner.shared.lock();
            let max_epoch = state.meta.max_epoch;
            if epoch < max_epoch {
                return Err(JournalError::StaleEpoch { epoch, max_epoch });
            }
            // From here on nothing more gets into the queue: it can be drained.
            state.admitted = None;
        }
        self.call(move |writer| writer.seal(epoch))
    }

    /// Admits frames of exactly this epoch, and lifts a seal. Not remembered over a restart.
    ///
    /// # Errors
    /// When a newer epoch is known, or the epoch cannot be made durable.
    pub fn admit(&self, admission: Admission) -> Result<(), JournalError> {
        self.call(move |writer| writer.admit(admission))
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.inner.shared.dir
    }

    /// Whose WAL it holds, in segments of which size; `None` while it is empty.
    pub fn identity(&self) -> Option<(SystemId, SegmentSize)> {
        let state = self.inner.shared.lock();
        let content = state.meta.content.filter(|_| state.timeline.is_some())?;
        Some((content.system_id, content.size))
    }

    /// Begins an empty journal at the beginning of a segment.
    ///
    /// # Errors
    /// When it is not empty, `start_lsn` is not a segment's beginning, or files cannot be written.
    pub fn begin(
        &self,
        system_id: SystemId,
        size: SegmentSize,
        timeline: Timeline,
        lineage: Vec<Lineage>,
        start_lsn: Lsn,
    ) -> Result<(), JournalError> {
        self.call(move |writer| writer.begin(system_id, size, timeline, lineage, start_lsn))
    }

    /// Queues bytes of WAL; waits while the queue is full. They are durable when `positions` says so;
    /// if they do not verify, `positions` says that.
    ///
    /// Bytes that are held already are compared. Callers that append at the same time must not care
    /// about their order.
    ///
    /// # Errors
    /// When the frame is refused; nothing of it is stored then.
    pub async fn append(
        &self,
        epoch: Epoch,
        timeline: Timeline,
        lsn: Lsn,
        data: Bytes,
    ) -> Result<(), AppendError> {
        let shared = &self.inner.shared;
        if data.is_empty() {
            return Ok(());
        }
        if data.len() > shared.room_bytes {
            let (bytes, bytes_max) = (data.len(), shared.room_bytes);
            return Err(AppendError::TooLarge { bytes, bytes_max });
        }
        let room = u32::try_from(data.len()).expect("the queue's bound is below 4 GiB");
        let room = Arc::clone(&shared.room)
            .acquire_many_owned(room)
            .await
            .expect("the semaphore is never closed");
        let mut state = shared.lock();
        let expected_lsn = state.check_frame(epoch, timeline)?;
        state.expected_lsn = Some(follow_up(expected_lsn, lsn, &data)?);
        state.queue.push(Item::Frame { lsn, data, _room: room });
        drop(state);
        shared.wake.notify_one();
        Ok(())
    }

    /// Writes bytes of WAL and makes them durable before it returns, on the caller's thread: for the few
    /// bytes of a commit somebody waits for, which would lose more time by waking a thread than by the
    /// writing. False, with nothing done, while others are at work here: `append` then.
    ///
    /// What `append` says of errors and positions holds here too. Blocks for a sync of the disk.
    ///
    /// # Errors
    /// When a frame is refused; nothing of any of them is stored then.
    pub fn append_now(
        &self,
        epoch: Epoch,
        timeline: Timeline,
        frames: &[(Lsn, Bytes)],
    ) -> Result<bool, AppendError> {
        let mut writer = match self.inner.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Poisoned(_)) => panic!("the journal's writer panicked"),
        };
        {
            let mut state = self.inner.shared.lock();
            if !state.queue.is_empty() {
                return Ok(false);
            }
            let mut expected_lsn = state.check_frame(epoch, timeline)?;
            for (lsn, data) in frames {
                expected_lsn = follow_up(expected_lsn, *lsn, data)?;
            }
            state.expected_lsn = Some(expected_lsn);
        }
        writer.write_and_sync(frames);
        Ok(true)
    }

    /// Leaves the present timeline for `timeline` at `fork_lsn`, which must be the durable end.
    /// Stores the history file, and begins the first segment as PostgreSQL does, with a copy of the
    /// bytes up to the fork. Being on that timeline already, by the same history, is success.
    ///
    /// # Errors
    /// `Gap` when WAL before the fork is missing; `Diverged` when the durable end is past the fork or
    /// the histories contradict; `NotAdmitted`; or files cannot be written.
    pub async fn switch_timeline(
        &self,
        epoch: Epoch,
        timeline: Timeline,
        raw_history: &[u8],
        fork_lsn: Lsn,
    ) -> Result<(), JournalError> {
        let raw_history = raw_history.to_vec();
        let (reply, answer) = oneshot::channel();
        self.queue(
            move |writer| {
                let admitted = writer.shared.lock().admitted;
                if admitted != Some(epoch) {
                    return Err(JournalError::NotAdmitted { epoch, admitted });
                }
                writer.switch_timeline(timeline, &raw_history, fork_lsn)
            },
            |result| drop(reply.send(result)),
        )?;
        answer.await.unwrap_or_else(|_| Err(self.inner.shared.why_dropped()))
    }

    /// Stores a history file as PostgreSQL wrote it.
    ///
    /// # Errors
    /// When it is none, contradicts the one that is held, or cannot be written.
    pub fn put_history(&self, timeline: Timeline, raw: &[u8]) -> Result<(), JournalError> {
        let raw = raw.to_vec();
        self.call(move |writer| writer.store_history(timeline, &raw))
    }

    /// The history of a timeline; the first one's is known without a file.
    pub fn history(&self, timeline: Timeline) -> Option<TimelineHistory> {
        let held = self.inner.shared.lock().histories.get(&timeline).map(|h| h.parsed.clone());
        let first = timeline == Timeline::FIRST;
        held.or_else(|| first.then(|| TimelineHistory::root(timeline)))
    }

    /// The content of a history file, as PostgreSQL wrote it.
    pub fn history_raw(&self, timeline: Timeline) -> Option<Bytes> {
        self.inner.shared.lock().histories.get(&timeline).map(|history| history.raw.clone())
    }

    /// The lineage that its WAL follows, as it was told.
    pub fn lineage(&self) -> Vec<Lineage> {
        self.inner.shared.lock().meta.lineage.clone()
    }

    /// Replaces the lineage, durably.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn set_lineage(&self, lineage: Vec<Lineage>) -> Result<(), JournalError> {
        self.call(move |writer| writer.set_lineage(lineage))
    }

    /// What it holds, whenever that changes; `None` while it is empty.
    pub fn positions(&self) -> watch::Receiver<Option<JournalPositions>> {
        self.inner.shared.positions.subscribe()
    }

    /// The last complete record, as its position and hash; `None` while the journal is empty.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn tail(&self) -> Result<Option<Tail>, JournalError> {
        let (chain, tail_lsn, durable_lsn, timeline) = {
            let shared = &self.inner.shared;
            let state = shared.lock();
            let (Some(timeline), Some(durable_lsn)) = (state.timeline, state.durable_lsn) else {
                return Ok(None);
            };
            let content = state.meta.content.ok_or(JournalError::Empty)?;
            let tail_lsn = state.last_record_lsn.unwrap_or(content.begin_lsn);
            let chain = Chain::new(&shared.dir, content.size, timeline, &state.histories);
            (chain, tail_lsn, durable_lsn, timeline)
        };
        let mut hash = Sha256::new();
        chain.read(tail_lsn, durable_lsn, |_, bytes| {
            hash.update(bytes);
            Ok(())
        })?;
        Ok(Some(Tail { timeline, tail_lsn, durable_lsn, sha256: hash.finalize().into() }))
    }

    /// Reads `timeline` from a position on: the journal's own or an ancestor of it. Before the
    /// timeline's first segment its ancestors' bytes are read, as PostgreSQL's walsender does.
    ///
    /// # Errors
    /// When the journal is empty or does not hold the position.
    pub fn reader(&self, timeline: Timeline, from: Lsn) -> Result<JournalReader, JournalError> {
        JournalReader::open(Arc::clone(&self.inner.shared), timeline, from)
    }

    /// Moves all WAL and history files into the empty or missing directory `into`. The journal is empty
    /// after it; epoch and seal stay.
    ///
    /// # Errors
    /// When `into` has content, or files cannot be moved.
    pub fn set_aside(&self, into: &Path) -> Result<(), JournalError> {
        let into = into.to_owned();
        self.call(move |writer| writer.set_aside(&into))
    }

    /// Removes whole segments before `lsn`, except that of the last record; returns bytes freed.
    ///
    /// # Errors
    /// When the journal is empty or files cannot be removed.
    pub fn remove_before(&self, lsn: Lsn) -> Result<u64, JournalError> {
        self.call(move |writer| writer.remove_before(lsn))
    }

    /// Runs something on the writer's thread and waits for it.
    fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.queue(work, move |result| drop(reply.send(result)))?;
        answer.recv().unwrap_or_else(|_| Err(self.inner.shared.why_dropped()))
    }

    fn queue<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> Result<T, JournalError> + Send + 'static,
        answer: impl FnOnce(Result<T, JournalError>) + Send + 'static,
    ) -> Result<(), JournalError> {
        let shared = &self.inner.shared;
        let command = Box::new(move |writer: &mut Writer| {
            answer(work(writer).map_err(|error| {
                if !error.is_fatal() {
                    return error;
                }
                // Memory and disk may differ now: only opening again can tell.
                let error = Arc::new(error);
                writer.fail(Arc::clone(&error));
                JournalError::Failed(error)
            }));
        });
        let mut state = shared.lock();
        if let Some(error) = &state.failed {
            return Err(JournalError::Failed(Arc::clone(error)));
        }
        state.queue.push(Item::Command(command));
        drop(state);
        shared.wake.notify_one();
        Ok(())
    }
}

impl State {
    /// Whether frames of this epoch and timeline are taken; where they have to begin.
    fn check_frame(&self, epoch: Epoch, timeline: Timeline) -> Result<Lsn, AppendError> {
        if let Some(error) = &self.failed {
            return Err(AppendError::Failed(Arc::clone(error)));
        }
        if self.admitted != Some(epoch) {
            let (admitted, max_epoch) = (self.admitted, self.meta.max_epoch);
            return Err(AppendError::Refused { epoch, admitted, max_epoch });
        }
        let (Some(expected), Some(expected_lsn)) = (self.timeline, self.expected_lsn) else {
            return Err(AppendError::Empty);
        };
        if timeline != expected {
            return Err(AppendError::WrongTimeline { timeline, expected });
        }
        Ok(expected_lsn)
    }
}

/// Where the frame after this one has to begin.
fn follow_up(expected_lsn: Lsn, lsn: Lsn, data: &[u8]) -> Result<Lsn, AppendError> {
    if lsn > expected_lsn {
        return Err(AppendError::Gap { expected_lsn, lsn });
    }
    Ok(expected_lsn.max(lsn + data.len() as u64))
}

/// Two daemons on one journal would each believe to be alone.
fn lock_directory(dir: &Path) -> Result<File, JournalError> {
    use rustix::fs::{FlockOperation, flock};
    let path = dir.join("journal.lock");
    let file = File::create(&path).map_err(JournalError::io("create", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(JournalError::Locked { path: dir.to_owned() }),
        Err(errno) => Err(JournalError::io("lock", &path)(errno.into())),
    }
}
