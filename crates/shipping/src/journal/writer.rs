//! The writer: what changes the journal's files, one caller at a time.
//!
//! A thread of its own takes everything that is queued, writes it, makes it durable once, and publishes
//! the new end. Commands run between frames, in the order in which they were queued. It decides nothing
//! about epochs beyond what a command asked it to.

use std::collections::BTreeMap;
use std::fs::File;
use std::mem;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use understudy_types::{Lsn, Timeline};

use super::error::JournalError;
use super::files::{self, History};
use super::meta::Meta;
use super::room::Limits;
use super::tip::Tip;
use super::{JournalPositions, Shared};

/// Something to do on the writer's thread.
pub(super) type Command = Box<dyn FnOnce(&mut Writer) + Send>;

/// What waits in the queue.
pub(super) enum Item {
    /// Bytes to write; the permit is the room they take in the queue.
    Frame { lsn: Lsn, data: Bytes, _room: OwnedSemaphorePermit },
    /// Runs after everything queued before it is durable.
    Command(Command),
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) dir: PathBuf,
    pub(super) meta: Meta,
    pub(super) histories: BTreeMap<Timeline, History>,
    pub(super) tip: Option<Tip>,
    pub(super) limits: Limits,
    /// Held as long as the journal is open.
    pub(super) _lock: File,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Works until the journal is closed and the queue is empty.
pub(super) fn work_off_the_queue(writer: &Mutex<Writer>, shared: &Shared) {
    while shared.wait_for_items() {
        writer.lock().expect("whoever wrote to the journal panicked").work_off();
    }
}

impl Shared {
    /// Waits until something is queued; false when the journal is closed instead.
    fn wait_for_items(&self) -> bool {
        let mut state = self.lock();
        loop {
            if !state.queue.is_empty() {
                return true;
            }
            if state.closing {
                return false;
            }
            state = self.wait(state);
        }
    }
}

impl Writer {
    /// Everything that is queued by now.
    fn work_off(&mut self) {
        let batch = mem::take(&mut self.shared.lock().queue);
        let mut rejected = false;
        let mut frames = false;
        for item in batch {
            if self.shared.lock().failed.is_some() {
                break;
            }
            match item {
                Item::Frame { .. } if rejected => {}
                Item::Frame { lsn, data, _room } => {
                    frames = true;
                    rejected = !self.write(lsn, &data);
                }
                Item::Command(command) => {
                    if !rejected && frames {
                        self.sync();
                    }
                    frames = false;
                    command(self);
                }
            }
        }
        if frames && !rejected {
            self.sync();
        }
    }

    /// Frames that were checked against the queue's state, all of them with one sync.
    pub(super) fn write_and_sync(&mut self, frames: &[(Lsn, Bytes)]) {
        if frames.iter().all(|(lsn, data)| self.write(*lsn, data)) {
            self.sync();
        }
    }

    /// Returns false if the bytes were refused.
    fn write(&mut self, lsn: Lsn, data: &[u8]) -> bool {
        let Some(tip) = &mut self.tip else { return false };
        match tip.write(lsn, data, &self.limits) {
            Ok(()) => true,
            Err(error) => {
                self.reject(error);
                false
            }
        }
    }

    /// Makes what was written durable and tells everybody.
    fn sync(&mut self) {
        if self.shared.lock().failed.is_some() {
            return;
        }
        if let Err(error) = self.try_sync() {
            self.fail(Arc::new(error));
        }
    }

    pub(super) fn try_sync(&mut self) -> Result<(), JournalError> {
        let Some(tip) = &mut self.tip else { return Ok(()) };
        tip.sync()?;
        if tip.content.first_durable_lsn.is_none() && tip.durable_lsn > tip.content.begin_lsn {
            tip.content.first_durable_lsn = Some(tip.durable_lsn);
            self.meta.content = Some(tip.content);
            self.meta.store(&self.dir)?;
        }
        self.publish(None);
        match &mut self.tip {
            Some(tip) => tip.finish_segments(),
            None => Ok(()),
        }
    }

    /// Received bytes are not what they should be: back to the durable end.
    fn reject(&mut self, error: JournalError) {
        if error.is_fatal() {
            return self.fail(Arc::new(error));
        }
        tracing::warn!(error = &error as &dyn std::error::Error, "received WAL refused");
        if error.is_no_room() {
            // What came before it is as good as ever, and would only be sent again.
            self.sync();
        }
        if let Some(tip) = &mut self.tip
            && let Err(error) = tip.rewind()
        {
            return self.fail(Arc::new(error));
        }
        self.expect_from_end();
        self.publish(Some(Arc::new(error)));
    }

    /// The end of this journal until it is opened again.
    pub(super) fn fail(&mut self, error: Arc<JournalError>) {
        tracing::error!(error = &error as &dyn std::error::Error, "journal failed");
        let mut state = self.shared.lock();
        state.failed = Some(Arc::clone(&error));
        // Whoever waits for a dropped command is told of the failure.
        let dropped = mem::take(&mut state.queue);
        drop(state);
        drop(dropped);
        self.shared.positions.send_modify(|positions| {
            if let Some(positions) = positions {
                positions.error = Some(error);
            }
        });
    }

    /// Copies what others may see to where they see it.
    pub(super) fn publish(&mut self, error: Option<Arc<JournalError>>) {
        let positions = self.tip.as_ref().map(|tip| JournalPositions {
            timeline: tip.timeline,
            begin_lsn: tip.begin_lsn,
            written_lsn: tip.written_lsn,
            durable_lsn: tip.durable_lsn,
            error,
        });
        let mut state = self.shared.lock();
        if state.meta != self.meta {
            state.meta = self.meta.clone();
        }
        state.last_record_lsn = self.tip.as_ref().and_then(|tip| tip.last_record_lsn);
        state.durable_lsn = self.tip.as_ref().map(|tip| tip.durable_lsn);
        state.timeline = self.tip.as_ref().map(|tip| tip.timeline);
        drop(state);
        self.shared.positions.send_replace(positions);
    }

    /// Queued frames are gone: the next one has to follow what is written.
    pub(super) fn expect_from_end(&mut self) {
        let mut state = self.shared.lock();
        state.queue.retain(|item| matches!(item, Item::Command(_)));
        state.expected_lsn = self.tip.as_ref().map(|tip| tip.written_lsn);
    }

    /// Adopts new metadata once it is durable.
    pub(super) fn store_meta(&mut self, meta: Meta) -> Result<(), JournalError> {
        if meta != self.meta {
            meta.store(&self.dir)?;
            self.meta = meta;
        }
        Ok(())
    }

    /// Stores a history file; the same content again is nothing new, another one is refused.
    pub(super) fn store_history(
        &mut self,
        timeline: Timeline,
        raw: &[u8],
    ) -> Result<(), JournalError> {
        let history = files::parse_history(timeline, raw)?;
        if let Some(held) = self.histories.get(&timeline) {
            let same = held.parsed.ancestors.len() == history.parsed.ancestors.len()
                && held
                    .parsed
                    .ancestors
                    .iter()
                    .zip(&history.parsed.ancestors)
                    .all(|(a, b)| a.timeline == b.timeline && a.switch_lsn == b.switch_lsn);
            let lsn = history.parsed.ancestors.last().map_or(Lsn::ZERO, |entry| entry.switch_lsn);
            return if same { Ok(()) } else { Err(JournalError::Diverged { timeline, lsn }) };
        }
        files::replace_durably(&self.dir.join(timeline.history_file_name()), raw)?;
        self.histories.insert(timeline, history);
        self.shared.lock().histories = self.histories.clone();
        Ok(())
    }
}
