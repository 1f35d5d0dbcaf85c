//! The decision recorder: what goes through the core's door, kept in a ring of files beside the node's
//! other state (docs/decisions/0018-the-decision-recorder.md).
//!
//! Here is the loop's side of it. It never waits and never fails: an event is copied into a bounded
//! queue, and what the queue cannot take is dropped and counted. The files are the `writer`'s, on a
//! thread of its own.

mod ring;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use understudy_core::node::{Action, Core, Event};
use understudy_types::{BootInstant, NodeId, ProcessStart};

pub(crate) use writer::describe;

/// Messages that may wait for the writer: several seconds of a busy node.
const QUEUE_MAX: usize = 8192;
/// How long a process that ends by a broken invariant waits for its last words.
const LAST_WORDS_PATIENCE: Duration = Duration::from_millis(300);

/// Whose decisions, and where they go.
#[derive(Clone, Debug)]
pub(crate) struct RecorderOptions {
    /// Where the files are; made by whoever prepared the node's directories.
    pub(crate) dir: PathBuf,
    /// How much they may occupy together.
    pub(crate) bytes_max: u64,
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) process: ProcessStart,
}

/// What the loop tells the writer.
#[derive(Debug)]
pub(super) enum Message {
    /// The core between two events: a file may begin here. So many events were dropped before.
    Snapshot { at: BootInstant, core: Box<Core>, missed_count: u64 },
    /// An event, before it is handled.
    Event(BootInstant, Box<Event>),
    /// What was decided on it.
    Actions(Vec<Action>),
    /// To be answered once everything before it is with the kernel.
    Flush(SyncSender<()>),
}

/// What both sides look at.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// The writer begins a file with the next snapshot, and needs one.
    pub(super) wants_snapshot: AtomicBool,
    /// Events that the loop could not hand over, since the daemon started.
    pub(super) missed_total: AtomicU64,
}

/// Every file of a recorder's directory with its size, the oldest first.
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn files(dir: &Path) -> std::io::Result<Vec<(PathBuf, u64)>> {
    let files = ring::files(dir)?;
    Ok(files.into_iter().map(|(_, path, bytes)| (path, bytes)).collect())
}

/// The loop's side. Without files behind it every call does nothing.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    sender: SyncSender<Message>,
    shared: Arc<Shared>,
    /// Events since the last one that was handed over; a snapshot has to come before the next.
    missed_count: u64,
    /// The last event was handed over, so that its actions belong to it.
    heard: bool,
}

impl Recorder {
    /// Begins a recording. Nothing that goes wrong with the files later on comes back.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn start(options: RecorderOptions) -> std::io::Result<Recorder> {
        let (recorder, receiver, shared) = Recorder::pair();
        std::thread::Builder::new()
            .name("understudy-trace".to_owned())
            .spawn(move || writer::run(&options, &receiver, &shared))?;
        Ok(recorder)
    }

    /// A recorder and what its writer reads.
    pub(super) fn pair() -> (Recorder, Receiver<Message>, Arc<Shared>) {
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        let shared = Arc::new(Shared::default());
        shared.wants_snapshot.store(true, Ordering::Relaxed);
        let live = Live { sender, shared: shared.clone(), missed_count: 0, heard: false };
        (Recorder { live: Some(live) }, receiver, shared)
    }

    /// An event is about to be handled by this core.
    pub(crate) fn event(&mut self, at: BootInstant, event: &Event, core: &Core) {
        let Some(live) = &mut self.live else { return };
        live.heard = live.snapshot_if_due(at, core)
            && live.sender.try_send(Message::Event(at, Box::new(event.clone()))).is_ok();
        if !live.heard {
            live.missed_count += 1;
            live.shared.missed_total.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was decided on the event before.
    pub(crate) fn actions<'a>(&mut self, actions: impl Iterator<Item = &'a Action>) {
        let Some(live) = &mut self.live else { return };
        if !live.heard {
            return;
        }
        let actions: Vec<Action> = actions.cloned().collect();
        if !actions.is_empty() && live.sender.try_send(Message::Actions(actions)).is_err() {
            // The event without its decisions would look like a difference.
            live.missed_count += 1;
            live.shared.missed_total.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// For whoever has to end the process: its last words.
    pub(crate) fn last_words(&self) -> Option<LastWords> {
        self.live.as_ref().map(|live| LastWords(live.sender.clone()))
    }
}

impl Live {
    /// Hands the core over where the writer wants it, or where something is missing. False when it has
    /// to come first and cannot.
    fn snapshot_if_due(&mut self, at: BootInstant, core: &Core) -> bool {
        let wanted = self.shared.wants_snapshot.load(Ordering::Relaxed);
        if !wanted && self.missed_count == 0 {
            return true;
        }
        // In the middle of a turn the core has decided what is not carried out yet; the next turn is near.
        if core.decided().len() > 0 {
            return self.missed_count == 0;
        }
        let message =
            Message::Snapshot { at, core: Box::new(core.clone()), missed_count: self.missed_count };
        if self.sender.try_send(message).is_err() {
            return self.missed_count == 0;
        }
        self.shared.wants_snapshot.store(false, Ordering::Relaxed);
        self.missed_count = 0;
        true
    }
}

/// Has what was recorded so far written, for a process that ends.
#[derive(Clone, Debug)]
pub(crate) struct LastWords(SyncSender<Message>);

impl LastWords {
    /// Returns when everything is with the kernel, or a short time is up.
    pub(crate) fn speak(&self) {
        let (done, answer) = sync_channel(1);
        if self.0.try_send(Message::Flush(done)).is_ok() {
            let _ = answer.recv_timeout(LAST_WORDS_PATIENCE);
        }
    }
}

/// Where the panic hook, which is there before the recorder, finds it.
pub(crate) type LastWordsCell = Arc<OnceLock<LastWords>>;
